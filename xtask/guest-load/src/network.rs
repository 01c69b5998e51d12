//! The network loads: a stream of known bytes to the client, or from it. What comes from the client is checked, and the client is
//! told how much has come; what goes to it, the client checks and counts.

use std::convert::Infallible;
use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use crate::progress::{self, Progress};
use crate::status::Status;
use crate::text::Numbers;

/// The stream is these bytes over and over.
const BLOCK: usize = 256 << 10;
/// First of the numbers that they are.
const SEED: u64 = 0x6e65_7477_6f72_6b21;
const REPORT_EVERY: Duration = Duration::from_secs(1);

/// Streams to every client for ever.
pub(crate) fn send(port: u16) -> Result<Infallible, String> {
    let block = Arc::new(block());
    progress::serve(port, move |mut stream| {
        let block = Arc::clone(&block);
        thread::spawn(move || while stream.write_all(&block).is_ok() {});
    })?;
    report(&Status::default())
}

/// Takes the stream of every client for ever.
pub(crate) fn receive(port: u16, progress: &Progress) -> Result<Infallible, String> {
    let (block, status) = (Arc::new(block()), Arc::new(Status::default()));
    let (shared, progress) = (Arc::clone(&status), progress.clone());
    progress::serve(port, move |stream| {
        let (block, status) = (Arc::clone(&block), Arc::clone(&shared));
        let (progress, teller) = (progress.clone(), progress.clone());
        let Ok(back) = stream.try_clone() else { return };
        thread::spawn(move || teller.tell(&back));
        thread::spawn(move || take(stream, &block, &progress, &status));
    })?;
    report(&status)
}

fn report(status: &Status) -> ! {
    loop {
        thread::sleep(REPORT_EVERY);
        println!("guest-load: {}", status.line());
    }
}

fn take(mut stream: TcpStream, block: &[u8], progress: &Progress, status: &Status) {
    let mut piece = vec![0; BLOCK];
    let mut position = 0;
    while let Ok(length @ 1..) = stream.read(&mut piece[..block.len() - position]) {
        if piece[..length] != block[position..position + length] {
            status.fault("bytes from the network are not those that were sent");
        }
        position = (position + length) % block.len();
        progress.add(length as u64);
    }
}

fn block() -> Vec<u8> {
    let mut numbers = Numbers(SEED);
    let words = (0..BLOCK / size_of::<u64>()).map(|_| numbers.next().to_le_bytes());
    words.flatten().collect()
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn what_comes_is_counted_and_checked() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let block = block();
        let taken = |sent: Vec<u8>| {
            let mut client = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
            let (stream, _) = listener.accept().unwrap();
            thread::spawn(move || client.write_all(&sent).unwrap());
            let (progress, status) = (Progress::default(), Status::default());
            take(stream, &block, &progress, &status);
            (progress.total(), status.line())
        };
        let twice = [&block[..], &block, &block[..100]].concat();
        let total = twice.len() as u64;
        assert_eq!(taken(twice.clone()), (total, "ok passes=0".into()));
        let mut wrong = twice;
        wrong[BLOCK + 5] ^= 1;
        let (count, line) = taken(wrong);
        assert_eq!(count, total);
        assert!(line.starts_with("CORRUPT 1 times"), "{line}");
    }

    #[test]
    fn the_stream_is_what_clients_expect() {
        // The client makes it by itself, and has the same test.
        let block = block();
        let word = |at: usize| u64::from_le_bytes(block[at..at + 8].try_into().unwrap());
        assert_eq!(
            (word(0), word(BLOCK - 8)),
            (0x2499_C531_5CAE_8CCF, 0x7FCA_52F5_88BD_1DB5)
        );
    }
}
