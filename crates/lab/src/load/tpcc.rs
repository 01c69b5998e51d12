//! Clients of a database that order and pay like those of TPC-C: new orders, payments and looks at the last order, each a
//! transaction of the server's (the guest image brings them with its tables). In the end everything has to add up: what was paid,
//! what was ordered, what left the stock, and what the clients know they did. Customers and items are equally likely.

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

use super::operate::{self, Client};
use super::postgres::Connection;
use super::{Checked, Shared, Worker};

/// What there is of each, as in the guest image's tables.
const WAREHOUSES: u64 = 4;
const DISTRICTS: u64 = 10;
const CUSTOMERS: u64 = 300;
const ITEMS: u64 = 5000;
/// Of a hundred transactions so many are new orders, and so many payments; the rest look.
const NEW_ORDERS: u64 = 45;
const PAYMENTS: u64 = 43;
/// How long the server may take to look at everything.
const CHECK_TIMEOUT: Duration = Duration::from_secs(300);

/// What all clients did together. Transactions that got no answer were perhaps done.
#[derive(Default)]
struct Books {
    orders: Account,
    /// In the smallest coin.
    paid: Account,
}

#[derive(Default)]
struct Account {
    done: AtomicU64,
    perhaps: AtomicU64,
}

impl Account {
    /// Whether so much is what can be.
    fn fits(&self, found: u64) -> bool {
        let done = self.done.load(Ordering::Relaxed);
        (done..=done + self.perhaps.load(Ordering::Relaxed)).contains(&found)
    }

    fn describe(&self) -> String {
        let [done, perhaps] = [&self.done, &self.perhaps].map(|number| number.load(Ordering::Relaxed));
        format!("{done} (and perhaps {perhaps} more)")
    }
}

/// Connects so many clients, and one that checks in the end.
pub(super) fn prepare(
    address: SocketAddr,
    connections: u32,
    transactions_per_s: f64,
    patience: Duration,
) -> io::Result<(Vec<Worker>, Worker)> {
    let books = Arc::new(Books::default());
    let rate = transactions_per_s / f64::from(connections);
    let worker = |number: u32| -> io::Result<Worker> {
        let terminal = Terminal {
            address,
            patience,
            connection: Some(Connection::open(address, patience)?),
            books: Arc::clone(&books),
        };
        Ok(Box::new(move |shared| {
            operate::run(terminal, rate, u64::from(number), shared);
        }))
    };
    let workers: io::Result<Vec<_>> = (0..connections).map(worker).collect();
    let workers = workers?;
    let mut auditor = Connection::open(address, patience)?;
    let books = Arc::clone(&books);
    let last = move |shared: &Shared| {
        if let Err(error) = audit(&mut auditor, &books, shared) {
            shared.failed("the database cannot be checked", &error);
        }
    };
    Ok((workers, Box::new(last)))
}

/// Compares what the database holds with itself and with the books.
fn audit(connection: &mut Connection, books: &Books, shared: &Shared) -> io::Result<()> {
    connection.set_timeout(CHECK_TIMEOUT)?;
    for inconsistency in connection.query("SELECT inconsistencies()")? {
        shared.wrong(inconsistency);
    }
    for (what, account, statement) in [
        ("orders", &books.orders, "SELECT count(*) FROM orders"),
        ("payments", &books.paid, "SELECT sum(w_ytd) FROM warehouse"),
    ] {
        let found = connection.query(statement)?;
        let number: Option<u64> = found.first().and_then(|text| text.parse().ok());
        if !number.is_some_and(|number| account.fits(number)) {
            let (known, found) = (account.describe(), found.join(" "));
            shared.wrong(format!(
                "{what} come to {found} in the database, and clients know of {known}"
            ));
        }
    }
    Ok(())
}

/// One client.
struct Terminal {
    address: SocketAddr,
    patience: Duration,
    connection: Option<Connection>,
    books: Arc<Books>,
}

impl Client for Terminal {
    fn operate(&mut self, choice: u64) -> io::Result<Checked> {
        let mut connection = match self.connection.take() {
            Some(connection) => connection,
            None => Connection::open(self.address, self.patience)?,
        };
        let transaction = Transaction::choose(choice);
        let entry = match &transaction {
            Transaction::NewOrder { .. } => Some((&self.books.orders, 1)),
            Transaction::Payment { amount, .. } => Some((&self.books.paid, *amount)),
            Transaction::OrderStatus { .. } => None,
        };
        if let Some((account, amount)) = entry {
            account.perhaps.fetch_add(amount, Ordering::Relaxed);
        }
        let rows = connection.query(&transaction.statement())?;
        if let Some((account, amount)) = entry {
            account.perhaps.fetch_sub(amount, Ordering::Relaxed);
            account.done.fetch_add(amount, Ordering::Relaxed);
        }
        self.connection = Some(connection);
        Ok(transaction.check(&rows))
    }

    fn disconnect(&mut self) {
        self.connection = None;
    }
}

/// Of a customer, by warehouse, district and number.
type Customer = [u64; 3];

enum Transaction {
    NewOrder {
        customer: Customer,
        lines: Vec<[u64; 2]>,
    },
    Payment {
        customer: Customer,
        amount: u64,
    },
    OrderStatus {
        customer: Customer,
    },
}

impl Transaction {
    fn choose(choice: u64) -> Self {
        let mut numbers = SplitMix64::seed_from_u64(choice);
        let mut one_to = |most: u64| 1 + numbers.next_u64() % most;
        let customer = [one_to(WAREHOUSES), one_to(DISTRICTS), one_to(CUSTOMERS)];
        match one_to(100) {
            kind if kind <= NEW_ORDERS => {
                let mut lines: Vec<_> = (0..4 + one_to(11)).map(|_| [one_to(ITEMS), one_to(10)]).collect();
                // In an order that all clients have in common none waits for one that waits for it.
                lines.sort_unstable();
                Self::NewOrder { customer, lines }
            }
            kind if kind <= NEW_ORDERS + PAYMENTS => Self::Payment {
                customer,
                amount: one_to(500_000),
            },
            _ => Self::OrderStatus { customer },
        }
    }

    fn statement(&self) -> String {
        match self {
            Self::NewOrder {
                customer: [w, d, c],
                lines,
            } => {
                let list = |column: usize| {
                    let numbers: Vec<_> = lines.iter().map(|line| line[column].to_string()).collect();
                    numbers.join(",")
                };
                format!(
                    "SELECT new_order({w},{d},{c},'{{{}}}','{{{}}}')",
                    list(0),
                    list(1)
                )
            }
            Self::Payment {
                customer: [w, d, c],
                amount,
            } => format!("SELECT payment({w},{d},{c},{amount})"),
            Self::OrderStatus { customer: [w, d, c] } => format!("SELECT order_status({w},{d},{c})"),
        }
    }

    fn check(&self, rows: &[String]) -> Checked {
        let [answer] = rows else {
            return Err(format!("{} gave {} rows", self.statement(), rows.len()));
        };
        let right = match self {
            Self::NewOrder { .. } => answer.parse().is_ok_and(|order: u64| order > 0),
            Self::Payment { amount, .. } => *answer == amount.to_string(),
            Self::OrderStatus { .. } => answer == "whole" || answer == "none",
        };
        match right {
            true => Ok(()),
            false => Err(format!("{} gave {answer:?}", self.statement())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn transactions_are_of_every_kind_and_within_the_tables() {
        let (mut kinds, mut longest) = ([0; 3], 0);
        for choice in 0..10_000 {
            let (kind, [w, d, c]) = match Transaction::choose(choice) {
                Transaction::NewOrder { customer, lines } => {
                    assert!(lines.is_sorted() && (5..=15).contains(&lines.len()));
                    assert!(lines.iter().all(|[item, _]| (1..=ITEMS).contains(item)));
                    longest = longest.max(lines.len());
                    (0, customer)
                }
                Transaction::Payment { customer, amount } => {
                    assert!(amount > 0);
                    (1, customer)
                }
                Transaction::OrderStatus { customer } => (2, customer),
            };
            kinds[kind] += 1;
            assert!(
                (1..=WAREHOUSES).contains(&w) && (1..=DISTRICTS).contains(&d) && (1..=CUSTOMERS).contains(&c)
            );
        }
        assert!(kinds[0] > 4000 && kinds[1] > 3800 && kinds[2] > 900, "{kinds:?}");
        assert_eq!(longest, 15);
    }

    #[test]
    fn statements_are_calls_and_answers_are_checked() {
        let customer = [1, 2, 3];
        let order = Transaction::NewOrder {
            customer,
            lines: vec![[5, 1], [7, 2]],
        };
        assert_eq!(order.statement(), "SELECT new_order(1,2,3,'{5,7}','{1,2}')");
        let payment = Transaction::Payment { customer, amount: 9 };
        assert_eq!(payment.statement(), "SELECT payment(1,2,3,9)");
        let status = Transaction::OrderStatus { customer };
        assert_eq!(status.statement(), "SELECT order_status(1,2,3)");
        for (transaction, answer, right) in [
            (&order, "17", true),
            (&order, "", false),
            (&payment, "9", true),
            (&payment, "8", false),
            (&status, "whole", true),
            (&status, "none", true),
            (&status, "4 lines of 5", false),
        ] {
            assert_eq!(transaction.check(&[answer.into()]).is_ok(), right, "{answer}");
        }
        assert!(order.check(&[]).is_err());
    }

    #[test]
    fn what_had_no_answer_may_be_done_or_not() {
        let account = Account::default();
        account.done.store(10, Ordering::Relaxed);
        account.perhaps.store(2, Ordering::Relaxed);
        let fitting: Vec<_> = (0..20).filter(|&found| account.fits(found)).collect();
        assert_eq!(fitting, [10, 11, 12]);
    }
}
