//! Clients of the guest's own load: one hears how far the guest has come, the others take or send what makes its network busy.

use std::io::{self, Read as _, Write as _};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::thread;
use std::time::{Duration, Instant};

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};

use super::{PAUSE, Shared, connection};

/// What is streamed is these bytes over and over: as in the guest's own program.
const BLOCK: usize = 256 << 10;
/// First of the numbers that they are.
const SEED: u64 = 0x6e65_7477_6f72_6b21;
/// Bytes that came within so short a time are noted together.
const GRAIN: Duration = Duration::from_millis(1);
/// What a paced stream sends at once.
const PACED: usize = 16 << 10;

/// What goes over the connection.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stream {
    /// The guest says again and again how much it has done.
    Progress,
    /// The guest sends known bytes as fast as they go.
    FromGuest,
    /// The guest takes known bytes, so many a second at most where that is given, and says how many it has.
    ToGuest {
        /// At most.
        bytes_per_s: Option<u64>,
    },
}

impl Stream {
    /// Follows the stream until the load is stopped; a connection that is lost is made anew.
    pub(super) fn follow(self, first: TcpStream, address: SocketAddr, patience: Duration, shared: &Shared) {
        let mut first = Some(first);
        loop {
            shared.gate.enter();
            let connection = match first.take() {
                Some(first) => Ok(first),
                None => connection::open(address, patience),
            };
            let followed = connection.and_then(|stream| self.follow_one(&stream, shared));
            shared.gate.leave();
            if let Err(error) = followed {
                shared.failed("the guest's stream broke", &error);
                thread::sleep(PAUSE);
            }
            if shared.is_stopped() {
                return;
            }
        }
    }

    /// Ends without an error when the load is stopped, or held back.
    fn follow_one(self, stream: &TcpStream, shared: &Shared) -> io::Result<()> {
        match self {
            Self::Progress => hear(stream, shared),
            Self::FromGuest => take(stream, shared),
            Self::ToGuest { bytes_per_s } => thread::scope(|scope| {
                // It ends with the connection; why that ended is heard below.
                scope.spawn(|| feed(stream, bytes_per_s));
                let heard = hear(stream, shared);
                let _ = stream.shutdown(Shutdown::Both);
                heard
            }),
        }
    }
}

/// Reads totals of eight bytes, the lowest first.
fn hear(mut stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    let mut next = || -> io::Result<u64> {
        let mut total = [0; 8];
        stream.read_exact(&mut total)?;
        Ok(u64::from_le_bytes(total))
    };
    // What was done before is nobody's.
    let mut last = next()?;
    while shared.goes_on() {
        let total = next()?;
        let amount = total.checked_sub(last).ok_or_else(|| {
            let why = format!("the guest has done less than before: {total} after {last}");
            io::Error::new(io::ErrorKind::InvalidData, why)
        })?;
        shared.progressed(amount);
        last = total;
    }
    Ok(())
}

/// Counts and checks bytes.
fn take(mut stream: &TcpStream, shared: &Shared) -> io::Result<()> {
    let block = block();
    let mut piece = vec![0; BLOCK];
    let (mut position, mut amount) = (0, 0);
    let mut noted = Instant::now();
    while shared.goes_on() {
        let length = stream.read(&mut piece[..BLOCK - position])?;
        if length == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        if piece[..length] != block[position..position + length] {
            shared.wrong("bytes from the guest's network are not those that it sends".into());
        }
        position = (position + length) % BLOCK;
        amount += length as u64;
        if noted.elapsed() >= GRAIN {
            shared.progressed(std::mem::take(&mut amount));
            noted = Instant::now();
        }
    }
    Ok(())
}

/// Sends until that fails.
fn feed(mut stream: &TcpStream, bytes_per_s: Option<u64>) {
    let block = block();
    let piece = if bytes_per_s.is_some() { PACED } else { BLOCK };
    let interval = bytes_per_s.map(|rate| Duration::from_secs_f64(piece as f64 / rate.max(1) as f64));
    let mut due = Instant::now();
    for piece in block.chunks(piece).cycle() {
        if let Some(interval) = interval {
            thread::sleep(due.saturating_duration_since(Instant::now()));
            due = (due + interval).max(Instant::now());
        }
        if stream.write_all(piece).is_err() {
            return;
        }
    }
}

fn block() -> Vec<u8> {
    let mut block = vec![0; BLOCK];
    SplitMix64::seed_from_u64(SEED).fill_bytes(&mut block);
    block
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;
    use std::sync::mpsc;

    use super::*;
    use crate::load::{Load, PATIENCE, Record};

    fn guest(act: impl FnOnce(TcpListener) + Send + 'static) -> SocketAddr {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap();
        thread::spawn(move || act(listener));
        address
    }

    fn wait_until(load: &Load, what: impl Fn(&Record) -> bool) {
        let end = Instant::now() + PATIENCE;
        while !what(&load.record()) {
            assert!(Instant::now() < end, "{:?}", load.record().descriptions);
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn progress_is_what_totals_grow_by_and_survives_a_lost_connection() {
        let (again, until) = mpsc::channel::<()>();
        let address = guest(move |listener| {
            let say = |totals: &[u64]| {
                let (mut stream, _) = listener.accept().unwrap();
                for total in totals {
                    stream.write_all(&total.to_le_bytes()).unwrap();
                }
                stream
            };
            drop(say(&[100, 100, 130]));
            let mut stream = say(&[500, 505]);
            until.recv().unwrap();
            stream.write_all(&505u64.to_le_bytes()).unwrap();
        });
        let load = Load::follow(Stream::Progress, address, "pages", PATIENCE, None).unwrap();
        wait_until(&load, |record| record.operations == 35);
        load.shared.stop.store(true, std::sync::atomic::Ordering::Relaxed);
        again.send(()).unwrap();
        let record = load.stop();
        assert_eq!((record.failures, record.unit), (1, "pages"));
        assert_eq!(record.timeline.waits().count(), 0);
    }

    #[test]
    fn a_guest_that_stands_still_is_an_error_to_clients_of_less_patience_only() {
        let still = || {
            guest(|listener| {
                for mut stream in listener.incoming().flatten() {
                    thread::spawn(move || {
                        let _ = stream.write_all(&1u64.to_le_bytes());
                        thread::sleep(Duration::from_millis(500));
                        let _ = stream.write_all(&6u64.to_le_bytes());
                        thread::sleep(Duration::from_secs(5));
                    });
                }
            })
        };
        let follow = |patience| Load::follow(Stream::Progress, still(), "pages", patience, None).unwrap();
        let (patient, other) = (follow(PATIENCE), follow(Duration::from_millis(100)));
        wait_until(&other, |record| record.failures > 0);
        wait_until(&patient, |record| record.operations == 5);
        assert_eq!(patient.record().failures, 0);
    }

    #[test]
    fn a_total_that_falls_is_an_error() {
        let address = guest(|listener| {
            for mut stream in listener.incoming().flatten() {
                let _ = [8u64, 7].map(|total| stream.write_all(&total.to_le_bytes()));
            }
        });
        let load = Load::follow(Stream::Progress, address, "pages", PATIENCE, None).unwrap();
        wait_until(&load, |record| record.failures > 0);
        assert!(load.record().descriptions[0].contains("less than before: 7 after 8"));
    }

    #[test]
    fn bytes_from_the_guest_are_counted_and_checked() {
        let address = guest(|listener| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut block = block();
            stream.write_all(&block).unwrap();
            thread::sleep(GRAIN * 2);
            stream.write_all(&block).unwrap();
            block[1000] ^= 1;
            while stream.write_all(&block).is_ok() {}
        });
        let load = Load::follow(Stream::FromGuest, address, "bytes", PATIENCE, None).unwrap();
        wait_until(&load, |record| record.wrong_values > 0);
        let record = load.stop();
        assert!(
            record.operations >= BLOCK as u64 && record.failures == 0,
            "{record:?}"
        );
    }

    #[test]
    fn bytes_to_the_guest_are_known_and_paced() {
        let (tell, told) = mpsc::channel();
        let address = guest(move |listener| {
            let (mut stream, _) = listener.accept().unwrap();
            let mut taken = vec![0; BLOCK + 10];
            let start = Instant::now();
            stream.read_exact(&mut taken).unwrap();
            stream.write_all(&0u64.to_le_bytes()).unwrap();
            stream.write_all(&(taken.len() as u64).to_le_bytes()).unwrap();
            tell.send((taken, start.elapsed())).unwrap();
            // The client ends first.
            let _ = io::copy(&mut stream, &mut io::sink());
        });
        let stream = Stream::ToGuest {
            bytes_per_s: Some(2 << 20),
        };
        let load = Load::follow(stream, address, "bytes", PATIENCE, None).unwrap();
        wait_until(&load, |record| record.operations == BLOCK as u64 + 10);
        let (taken, took) = told.recv().unwrap();
        let block = block();
        assert!(taken[..BLOCK] == block && taken[BLOCK..] == block[..10]);
        assert!(
            took > Duration::from_millis(100),
            "{took:?} for 256 KiB at 2 MiB/s"
        );
    }

    #[test]
    fn the_block_is_what_the_guest_makes() {
        // The guest's program makes it by itself, and has the same test.
        let block = block();
        let word = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
        assert_eq!(
            (word(0), word(BLOCK - 8)),
            (0x2499_C531_5CAE_8CCF, 0x7FCA_52F5_88BD_1DB5)
        );
    }
}
