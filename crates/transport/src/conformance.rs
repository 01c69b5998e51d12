//! What every transport keeps, as one suite.
//!
//! [`run`] takes a way to make connected pairs, [`run_endpoints`] a way to make free endpoints. Both panic at
//! what is not kept. Waiting is bounded, so that a transport that hangs fails rather than blocks.

use std::io::{self, Read, Write};
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::connect::connect;
use crate::endpoint::Endpoint;
use crate::error::TransportError;
use crate::listener::Listener;
use crate::stream::BoxedStream;

/// How long something that should come may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long a thread is given to get blocked. When it is not yet, the check is weaker, not wrong.
const SETTLE: Duration = Duration::from_millis(30);

/// Runs the suite for streams; `pair` makes the two ends of a new connection.
pub fn run(pair: impl Fn() -> (BoxedStream, BoxedStream)) {
    carries_both_ways_at_once(pair());
    gives_what_is_there(pair());
    clones_share_the_connection(pair());
    times_out_reads(pair());
    shutdown_wakes_a_reader(pair());
    shutdown_wakes_a_writer(pair());
    ends_after_what_was_written(pair());
    fails_to_write_to_nobody(pair());
    counts_bytes(pair());
    shows_a_usable_socket(pair());
    takes_every_option(pair());
}

/// Runs the suite for listening and connecting; `free` names an endpoint at which nobody listens.
pub fn run_endpoints(free: impl Fn() -> Endpoint) {
    connects_to_a_listener(&free());
    refuses_an_endpoint_in_use(&free());
    says_that_nobody_listens(&free());
    shutdown_wakes_an_accept(&free());
    frees_the_endpoint(&free());
}

fn carries_both_ways_at_once((mut one, mut other): (BoxedStream, BoxedStream)) {
    // More than all buffers hold: each end has to read while it writes.
    const BYTES: usize = 16 << 20;
    let ends = [(&mut one, 3), (&mut other, 5)];
    thread::scope(|scope| {
        for (end, seed) in ends {
            let mut writer = end.try_clone().unwrap();
            scope.spawn(move || writer.write_all(&pattern(seed, BYTES)).unwrap());
            scope.spawn(move || {
                let mut came = vec![0; BYTES];
                end.read_exact(&mut came).unwrap();
                assert!(
                    came == pattern(8 - seed, BYTES),
                    "other bytes came than were sent"
                );
            });
        }
    });
}

fn gives_what_is_there((mut one, mut other): (BoxedStream, BoxedStream)) {
    one.write_all(b"abc").unwrap();
    let mut space = [0; 100];
    let mut came = Vec::new();
    while came.len() < 3 {
        let count = other.read(&mut space).unwrap();
        assert!(count > 0, "the stream ended");
        came.extend_from_slice(&space[..count]);
    }
    assert_eq!(came, b"abc");
    one.write_all(b"defg").unwrap();
    let mut part = [0; 2];
    other.read_exact(&mut part).unwrap();
    assert_eq!(&part, b"de");
    other.read_exact(&mut part).unwrap();
    assert_eq!(&part, b"fg");
}

fn clones_share_the_connection((one, mut other): (BoxedStream, BoxedStream)) {
    let mut clone = one.try_clone().unwrap();
    drop(one);
    clone.write_all(b"still here").unwrap();
    let mut came = [0; 10];
    other.read_exact(&mut came).unwrap();
    assert_eq!(&came, b"still here");
    drop(clone);
    assert_eq!(
        other.read(&mut came).unwrap(),
        0,
        "open after the last clone is gone"
    );
}

fn times_out_reads((one, mut other): (BoxedStream, BoxedStream)) {
    other.set_read_timeout(Some(Duration::from_millis(10))).unwrap();
    let error = other.read(&mut [0; 8]).unwrap_err();
    assert!(
        matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::TimedOut),
        "{error}"
    );
    assert!(
        other.set_read_timeout(Some(Duration::ZERO)).is_err(),
        "a time-out of zero"
    );
    other.set_read_timeout(None).unwrap();
    let mut writer = one;
    writer.write_all(b"x").unwrap();
    other.read_exact(&mut [0; 1]).unwrap();
}

fn shutdown_wakes_a_reader((one, _other): (BoxedStream, BoxedStream)) {
    let mut reader = one.try_clone().unwrap();
    let result = blocked(move || reader.read(&mut [0; 8]).map(|count| assert_eq!(count, 0)));
    one.shutdown().unwrap();
    // The end of the stream or an error: both say that nothing comes any more.
    let _ = result
        .recv_timeout(PATIENCE)
        .expect("the reader still waits after shutdown");
    one.shutdown().expect("a second shutdown is no error");
}

fn shutdown_wakes_a_writer((one, _other): (BoxedStream, BoxedStream)) {
    let mut writer = one.try_clone().unwrap();
    let result = blocked(move || {
        let chunk = [0; 64 << 10];
        loop {
            writer.write_all(&chunk)?;
        }
    });
    one.shutdown().unwrap();
    let result: io::Result<()> = result
        .recv_timeout(PATIENCE)
        .expect("the writer still waits after shutdown");
    assert!(result.is_err(), "wrote after shutdown");
}

fn ends_after_what_was_written((mut one, mut other): (BoxedStream, BoxedStream)) {
    one.write_all(b"last words").unwrap();
    one.shutdown().unwrap();
    let mut came = Vec::new();
    other.read_to_end(&mut came).unwrap();
    assert_eq!(came, b"last words");
}

fn fails_to_write_to_nobody((mut one, other): (BoxedStream, BoxedStream)) {
    drop(other);
    let result = blocked(move || {
        let chunk = [0; 4096];
        loop {
            one.write_all(&chunk)?;
        }
    });
    let result: io::Result<()> = result
        .recv_timeout(PATIENCE)
        .expect("still writing to a peer that is gone");
    let kind = result.unwrap_err().kind();
    let expected = [
        io::ErrorKind::BrokenPipe,
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::ConnectionAborted,
        io::ErrorKind::NotConnected,
    ];
    assert!(expected.contains(&kind), "a peer that is gone gives {kind:?}");
}

fn counts_bytes((mut one, mut other): (BoxedStream, BoxedStream)) {
    let mut clone = one.try_clone().unwrap();
    one.write_all(&[1; 1000]).unwrap();
    clone.write_all(&[2; 234]).unwrap();
    one.note_written(4096);
    assert_eq!((one.bytes_written(), clone.bytes_written()), (5330, 5330));
    other.read_exact(&mut [0; 1234]).unwrap();
    assert_eq!(other.bytes_written(), 0, "what is read is not written");
}

fn shows_a_usable_socket((one, mut other): (BoxedStream, BoxedStream)) {
    let Some(socket) = one.plain_fd() else {
        return;
    };
    let pieces = [io::IoSlice::new(b"header"), io::IoSlice::new(b"pages")];
    assert_eq!(rustix::io::writev(socket, &pieces).unwrap(), 11);
    let mut came = [0; 11];
    other.read_exact(&mut came).unwrap();
    assert_eq!(&came, b"headerpages");
}

fn takes_every_option((mut one, mut other): (BoxedStream, BoxedStream)) {
    for nodelay in [false, true] {
        one.set_nodelay(nodelay).unwrap();
    }
    one.set_low_delay().unwrap();
    one.set_send_buffer(1 << 20).unwrap();
    for timeout in [
        Duration::from_millis(1),
        Duration::from_secs(20),
        Duration::from_secs(100_000),
    ] {
        one.set_peer_timeout(timeout)
            .unwrap_or_else(|error| panic!("peer time-out {timeout:?}: {error}"));
    }
    assert!(!one.peer().is_empty());
    one.write_all(b"x").unwrap();
    other.read_exact(&mut [0; 1]).unwrap();
}

fn connects_to_a_listener(free: &Endpoint) {
    let listener = Listener::bind(free).unwrap();
    let endpoint = listener.local_endpoint().clone();
    assert_eq!(
        endpoint.to_string().parse::<Endpoint>().unwrap(),
        endpoint,
        "its text means another endpoint"
    );
    let clients = [
        connect(&endpoint, PATIENCE).unwrap(),
        connect(&endpoint, PATIENCE).unwrap(),
    ];
    for (index, mut client) in clients.into_iter().enumerate() {
        let mut server = listener.accept().unwrap();
        client.write_all(&[index as u8]).unwrap();
        let mut came = [9];
        server.read_exact(&mut came).unwrap();
        assert_eq!(came, [index as u8], "connections are accepted in order");
    }
}

fn refuses_an_endpoint_in_use(free: &Endpoint) {
    let listener = Listener::bind(free).unwrap();
    let endpoint = listener.local_endpoint();
    match Listener::bind(endpoint) {
        Err(TransportError::AddressInUse { endpoint: named }) => assert_eq!(named, *endpoint),
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("two listeners at {endpoint}"),
    }
    connect(endpoint, PATIENCE).expect("the first listener is as it was");
}

fn says_that_nobody_listens(free: &Endpoint) {
    let endpoint = Listener::bind(free).unwrap().local_endpoint().clone();
    match connect(&endpoint, PATIENCE) {
        Err(error @ TransportError::NobodyListens { .. }) => {
            assert!(error.to_string().contains(&endpoint.to_string()), "{error}");
        }
        Err(error) => panic!("{error}"),
        Ok(_) => panic!("connected to nobody at {endpoint}"),
    }
}

fn shutdown_wakes_an_accept(free: &Endpoint) {
    let listener = Listener::bind(free).unwrap();
    thread::scope(|scope| {
        let (send, receive) = mpsc::channel();
        let listener = &listener;
        scope.spawn(move || send.send(listener.accept().map(drop)));
        thread::sleep(SETTLE);
        listener.shutdown();
        let result = receive
            .recv_timeout(PATIENCE)
            .expect("the accept still waits after shutdown");
        assert!(
            matches!(result, Err(TransportError::ListenerClosed { .. })),
            "{result:?}"
        );
    });
    assert!(matches!(
        listener.accept(),
        Err(TransportError::ListenerClosed { .. })
    ));
}

fn frees_the_endpoint(free: &Endpoint) {
    let listener = Listener::bind(free).unwrap();
    let endpoint = listener.local_endpoint().clone();
    let kept = connect(&endpoint, PATIENCE).unwrap();
    let served = listener.accept().unwrap();
    drop(listener);
    let again = Listener::bind(&endpoint).expect("the endpoint is free again, with a connection still open");
    drop((kept, served));
    connect(again.local_endpoint(), PATIENCE).unwrap();
}

/// Runs `work`, which is expected to block, in a thread, and gives it the time to.
fn blocked<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> mpsc::Receiver<T> {
    let (send, receive) = mpsc::channel();
    // The receiver is gone only after a failure.
    thread::spawn(move || send.send(work()).unwrap_or(()));
    thread::sleep(SETTLE);
    receive
}

fn pattern(seed: usize, len: usize) -> Vec<u8> {
    (0..len).map(|index| (index * seed % 251) as u8).collect()
}
