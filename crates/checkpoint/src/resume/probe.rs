//! The first answer of the guest's service, as a client of it would see it.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, ToSocketAddrs};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use vmferry_core::resume::Service;

/// How long one attempt may take before the next.
const ATTEMPT: Duration = Duration::from_millis(250);
/// Between attempts that fail at once.
const PAUSE: Duration = Duration::from_millis(5);
/// How long a service may take to answer after the start of its guest before nobody asks any more.
const PATIENCE: Duration = Duration::from_secs(120);

/// Asks `service` until it answers, `over` is set, or patience is at its end. Answers when it answered.
pub(super) fn ask(service: &Service, over: &AtomicBool) -> Option<Instant> {
    let asked = Instant::now();
    while !over.load(Ordering::Acquire) && asked.elapsed() < PATIENCE {
        if attempt(service).is_some() {
            return Some(Instant::now());
        }
        std::thread::sleep(PAUSE);
    }
    None
}

fn attempt(service: &Service) -> Option<()> {
    let address: SocketAddr = service.address.to_socket_addrs().ok()?.next()?;
    let mut stream = TcpStream::connect_timeout(&address, ATTEMPT).ok()?;
    let Some(text) = &service.send else {
        return Some(());
    };
    stream.set_read_timeout(Some(ATTEMPT)).ok()?;
    stream.write_all(text.as_bytes()).ok()?;
    (stream.read(&mut [0]).ok()? > 0).then_some(())
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn a_service_that_only_accepts_has_not_answered() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let address = listener.local_addr().unwrap().to_string();
        let mut service = Service { address, send: None };
        assert!(attempt(&service).is_some());
        service.send = Some("version\r\n".into());
        assert!(attempt(&service).is_none());
        let answers = std::thread::spawn(move || {
            // The first two connections are those above.
            for stream in listener.incoming().take(3) {
                let _ = stream.unwrap().write_all(b"VERSION 1\r\n");
            }
        });
        assert!(ask(&service, &AtomicBool::new(false)).is_some());
        answers.join().unwrap();
        assert!(ask(&service, &AtomicBool::new(true)).is_none());
    }
}
