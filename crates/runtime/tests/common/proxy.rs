//! A link that can be cut: a TCP proxy on loopback.

use std::io::{Read, Write};
use std::net::{Shutdown, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use vmferry_transport::Endpoint;

/// Forwards connections to a host, until it is cut.
#[derive(Clone)]
pub struct Link {
    endpoint: Endpoint,
    state: Arc<State>,
}

struct State {
    up: AtomicBool,
    open: Mutex<Vec<TcpStream>>,
    /// Bytes forwarded towards the host.
    forwarded: AtomicU64,
    /// Bytes a second towards the host; 0 for no limit.
    rate: AtomicU64,
    /// Connections so far.
    count: AtomicUsize,
    /// A connection, counted from 0 in the order they came, with a rate of its own.
    slow: Mutex<Option<(usize, u64)>>,
    /// Connection, time and bytes of each piece that was forwarded.
    pieces: Mutex<Vec<(usize, Instant, u64)>>,
}

impl Link {
    pub fn to(host: &Endpoint) -> Self {
        let Endpoint::Tcp { host, port } = host.clone() else {
            panic!("a TCP endpoint")
        };
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        // What a cut or a slow link holds back is little, whatever the system's default.
        rustix::net::sockopt::set_socket_recv_buffer_size(&listener, 64 << 10).unwrap();
        let endpoint = Endpoint::tcp("127.0.0.1", listener.local_addr().unwrap().port());
        let state = Arc::new(State {
            up: AtomicBool::new(true),
            open: Mutex::default(),
            forwarded: AtomicU64::new(0),
            rate: AtomicU64::new(0),
            count: AtomicUsize::new(0),
            slow: Mutex::default(),
            pieces: Mutex::default(),
        });
        let accepting = state.clone();
        thread::spawn(move || {
            for client in listener.incoming() {
                let Ok(client) = client else { return };
                if accepting.up.load(Ordering::SeqCst)
                    && let Ok(server) = TcpStream::connect((host.as_str(), port))
                {
                    accepting.join(client, server);
                }
            }
        });
        Self { endpoint, state }
    }

    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// Ends all connections and takes no new ones.
    pub fn cut(&self) {
        self.state.up.store(false, Ordering::SeqCst);
        for stream in self.state.open.lock().unwrap().drain(..) {
            let _ = stream.shutdown(Shutdown::Both);
        }
    }

    pub fn mend(&self) {
        self.state.up.store(true, Ordering::SeqCst);
    }

    pub fn forwarded(&self) -> u64 {
        self.state.forwarded.load(Ordering::SeqCst)
    }

    /// Limits the rate towards the host.
    pub fn limit(&self, bytes_per_s: u64) {
        self.state.rate.store(bytes_per_s, Ordering::SeqCst);
    }
}

impl Link {
    /// Gives one connection, counted from 0 in the order they come, a rate of its own.
    pub fn slow_connection(&self, index: usize, bytes_per_s: u64) {
        *self.state.slow.lock().unwrap() = Some((index, bytes_per_s));
    }

    /// Bytes that went over connection `index`, and how many of them after the last ones over `others`.
    pub fn bytes_alone(&self, index: usize, others: &[usize]) -> (u64, u64) {
        let pieces = self.state.pieces.lock().unwrap();
        let last = pieces
            .iter()
            .filter(|(of, ..)| others.contains(of))
            .map(|(_, at, _)| *at)
            .max();
        let own = pieces.iter().filter(|(of, ..)| *of == index);
        let alone = own
            .clone()
            .filter(|(_, at, _)| last.is_none_or(|last| *at > last));
        (
            own.map(|(.., bytes)| bytes).sum(),
            alone.map(|(.., bytes)| bytes).sum(),
        )
    }
}

impl State {
    fn join(self: &Arc<Self>, client: TcpStream, server: TcpStream) {
        let _ = (client.set_nodelay(true), server.set_nodelay(true));
        let mut open = self.open.lock().unwrap();
        open.push(client.try_clone().unwrap());
        open.push(server.try_clone().unwrap());
        drop(open);
        let (client2, server2) = (client.try_clone().unwrap(), server.try_clone().unwrap());
        let forward = self.clone();
        let index = self.count.fetch_add(1, Ordering::SeqCst);
        thread::spawn(move || {
            pump(client, server, |bytes| {
                forward.forwarded.fetch_add(bytes, Ordering::SeqCst);
                forward
                    .pieces
                    .lock()
                    .unwrap()
                    .push((index, Instant::now(), bytes));
                let rate = match *forward.slow.lock().unwrap() {
                    Some((slow, rate)) if slow == index => rate,
                    _ => forward.rate.load(Ordering::SeqCst),
                };
                if rate > 0 {
                    thread::sleep(Duration::from_secs_f64(bytes as f64 / rate as f64));
                }
            });
        });
        thread::spawn(move || pump(server2, client2, |_| {}));
    }
}

fn pump(mut from: TcpStream, mut to: TcpStream, moved: impl Fn(u64)) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
        moved(count as u64);
    }
    let _ = to.shutdown(Shutdown::Both);
    let _ = from.shutdown(Shutdown::Both);
}
