//! How far a load has come, told to whoever connects, so that its throughput over time can be seen from outside while the
//! guest moves. The guest's clock stands still meanwhile, so nothing is said about time: what comes when is for the
//! client to note.

use std::io::Write as _;
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;

/// Between two messages. The longest silence that a client sees is known to within as much.
const INTERVAL: Duration = Duration::from_millis(10);

/// What a load has done so far, in units of its own.
#[derive(Clone, Debug, Default)]
pub(crate) struct Progress(Arc<AtomicU64>);

impl Progress {
    /// So much more is done.
    pub(crate) fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// What is done.
    pub(crate) fn total(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }

    /// Tells every client of this port from now on.
    pub(crate) fn serve(&self, port: u16) -> Result<(), String> {
        let progress = self.clone();
        serve(port, move |stream| {
            let progress = progress.clone();
            thread::spawn(move || progress.tell(&stream));
        })
    }

    /// Writes what is done, eight bytes with the lowest first, again and again until the client is gone.
    pub(crate) fn tell(&self, mut stream: &TcpStream) {
        while stream.write_all(&self.total().to_le_bytes()).is_ok() {
            thread::sleep(INTERVAL);
        }
    }
}

/// Listens at the port, and gives every connection to `client`, on a thread of its own.
pub(crate) fn serve(port: u16, client: impl Fn(TcpStream) + Send + 'static) -> Result<(), String> {
    let listener = TcpListener::bind(("0.0.0.0", port))
        .map_err(|error| format!("cannot listen at port {port}: {error}"))?;
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            // Without it messages wait for each other, which is no harm but late.
            let _ = stream.set_nodelay(true);
            client(stream);
        }
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use super::*;

    #[test]
    fn clients_are_told_what_is_done() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (stream, _) = listener.accept().unwrap();
        let progress = Progress::default();
        progress.add(5);
        let teller = thread::spawn({
            let progress = progress.clone();
            move || progress.tell(&stream)
        });
        let mut next = || {
            let mut message = [0; 8];
            client.read_exact(&mut message).unwrap();
            u64::from_le_bytes(message)
        };
        assert_eq!(next(), 5);
        progress.add(2);
        while next() != 7 {}
        drop(client);
        teller.join().unwrap();
    }
}
