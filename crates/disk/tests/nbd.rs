//! Client and server of NBD against each other, and both against what no peer should send.

use std::io::{Cursor, Read, Write};
use std::os::unix::net::UnixStream;
use std::thread;

use proptest::prelude::*;
use vmferry_disk::nbd::client::ALLOCATION;
use vmferry_disk::nbd::error_code;
use vmferry_disk::nbd::server::{Wanted, encode_reply, greet, read_request};
use vmferry_disk::{DiskError, NbdClient};

const BYTES: usize = 1 << 20;

/// A server that keeps an export in memory; answers it at the end.
fn serve(mut stream: UnixStream) -> Vec<u8> {
    let mut disk = vec![0xaa; BYTES];
    if !greet(&mut stream, "d", BYTES as u64).unwrap() {
        return disk;
    }
    while let Some(request) = read_request(&mut stream, BYTES as u64).unwrap() {
        let error = match request.what {
            Wanted::Write { offset, data } => {
                disk[offset as usize..][..data.len()].copy_from_slice(&data);
                0
            }
            Wanted::Zero { offset, bytes } => {
                disk[offset as usize..][..bytes as usize].fill(0);
                0
            }
            Wanted::Flush | Wanted::Trim { .. } => 0,
            Wanted::Refused(error) => error,
        };
        stream.write_all(&encode_reply(request.cookie, error)).unwrap();
    }
    disk
}

#[test]
fn what_a_client_writes_arrives() {
    let (ours, theirs) = UnixStream::pair().unwrap();
    let server = thread::spawn(move || serve(theirs));
    let mut client = NbdClient::open(ours, "d", None).unwrap();
    assert_eq!((client.bytes(), client.is_read_only()), (BYTES as u64, false));
    client.write(5, b"hello").unwrap();
    client.write_zeroes(1000, 3000).unwrap();
    client.flush().unwrap();
    let read = client.read(0, &mut [0; 4]).unwrap_err();
    assert!(
        matches!(
            read,
            DiskError::Refused {
                code: error_code::UNSUPPORTED,
                ..
            }
        ),
        "a mirror's server reads nothing: {read}"
    );
    assert!(client.write(BYTES as u64 - 1, b"ab").is_err(), "beyond the end");
    client.disconnect();
    let disk = server.join().unwrap();
    assert_eq!(&disk[4..11], b"\xaahello\xaa");
    assert!(disk[1000..4000].iter().all(|&byte| byte == 0) && disk[4000] == 0xaa);
}

#[test]
fn another_export_and_a_context_are_refused() {
    for (export, context, word) in [("e", None, "error 6"), ("d", Some(ALLOCATION), "no metadata")] {
        let (ours, theirs) = UnixStream::pair().unwrap();
        let server = thread::spawn(move || {
            let mut theirs = theirs;
            greet(&mut theirs, "d", BYTES as u64)
        });
        let error = NbdClient::open(ours, export, context).unwrap_err().to_string();
        assert!(error.contains(word), "{error}");
        assert!(server.join().unwrap().is_err(), "the client went away");
    }
}

/// Reads what it is given, and takes everything that is written.
struct Script(Cursor<Vec<u8>>);

impl Read for Script {
    fn read(&mut self, part: &mut [u8]) -> std::io::Result<usize> {
        self.0.read(part)
    }
}

impl Write for Script {
    fn write(&mut self, part: &[u8]) -> std::io::Result<usize> {
        Ok(part.len())
    }
    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// A server that knows structured replies, up to the replies themselves.
fn hello() -> Vec<u8> {
    let mut bytes = b"NBDMAGICIHAVEOPT\0\x03".to_vec();
    let mut reply = |option: u32, kind: u32, payload: &[u8]| {
        bytes.extend(0x0003_e889_0455_65a9u64.to_be_bytes());
        bytes.extend(option.to_be_bytes());
        bytes.extend(kind.to_be_bytes());
        bytes.extend((payload.len() as u32).to_be_bytes());
        bytes.extend(payload);
    };
    reply(8, 1, &[]);
    reply(10, 4, b"\0\0\0\x07base:allocation");
    reply(10, 1, &[]);
    let mut export = vec![0, 0];
    export.extend((BYTES as u64).to_be_bytes());
    export.extend([0, 1]);
    reply(7, 3, &export);
    reply(7, 1, &[]);
    bytes
}

fn chunk(flags: u16, kind: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = 0x668e_33efu32.to_be_bytes().to_vec();
    bytes.extend(flags.to_be_bytes());
    bytes.extend(kind.to_be_bytes());
    bytes.extend(1u64.to_be_bytes());
    bytes.extend((payload.len() as u32).to_be_bytes());
    bytes.extend(payload);
    bytes
}

fn client(replies: &[Vec<u8>]) -> NbdClient<Script> {
    let script = [hello(), replies.concat()].concat();
    NbdClient::open(Script(Cursor::new(script)), "d", Some(ALLOCATION)).unwrap()
}

#[test]
fn data_and_holes_come_in_parts() {
    let data = [&64u64.to_be_bytes()[..], b"data"].concat();
    let hole = [&68u64.to_be_bytes()[..], &4u32.to_be_bytes()].concat();
    let mut read = [1; 8];
    client(&[chunk(0, 1, &data), chunk(1, 2, &hole)])
        .read(64, &mut read)
        .unwrap();
    assert_eq!(&read, b"data\0\0\0\0");
}

#[test]
fn extents_are_cut_to_the_range() {
    let mut payload = 7u32.to_be_bytes().to_vec();
    for (bytes, flags) in [(4096u32, 0u32), (1 << 30, 3)] {
        payload.extend(bytes.to_be_bytes());
        payload.extend(flags.to_be_bytes());
    }
    let extents = client(&[chunk(1, 5, &payload)]).extents(0, 8192).unwrap();
    let seen: Vec<_> = extents.iter().map(|e| (e.offset, e.bytes, e.is_zero())).collect();
    assert_eq!(seen, [(0, 4096, false), (4096, 4096, true)]);
}

#[test]
fn data_of_something_else_is_refused() {
    for (kind, payload) in [
        (1, [&0u64.to_be_bytes()[..], b"data"].concat()),
        (1, [&(64u64 + 5).to_be_bytes()[..], b"data"].concat()),
        (1, u64::MAX.to_be_bytes().to_vec()),
        (1, vec![0; 4]),
        (2, [&64u64.to_be_bytes()[..], &u32::MAX.to_be_bytes()].concat()),
        (5, 7u32.to_be_bytes().to_vec()),
        (9, vec![]),
    ] {
        let result = client(&[chunk(1, kind, &payload)]).read(64, &mut [0; 8]);
        assert!(result.is_err(), "kind {kind}");
    }
    let refused = client(&[chunk(1, 1 << 15 | 1, b"\0\0\0\x1c\0\0")])
        .read(0, &mut [0; 8])
        .unwrap_err();
    assert!(
        matches!(refused, DiskError::Refused { code: 28, .. }),
        "{refused}"
    );
}

proptest! {
    /// Whatever a server sends: an error or data, and no more memory than a request's.
    #[test]
    fn no_reply_harms_a_client(bytes in prop::collection::vec(any::<u8>(), 0..200), greeted in any::<bool>()) {
        let script = if greeted { [hello(), bytes].concat() } else { bytes };
        if let Ok(mut client) = NbdClient::open(Script(Cursor::new(script)), "d", Some(ALLOCATION)) {
            let _ = client.read(0, &mut [0; 512]);
        }
    }

    /// Whatever a client sends.
    #[test]
    fn no_request_harms_a_server(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
        let mut stream = Script(Cursor::new(bytes.clone()));
        let _ = greet(&mut stream, "d", 4096);
        let mut left = bytes.as_slice();
        while let Ok(Some(request)) = read_request(&mut left, 4096) {
            if let Wanted::Write { offset, data } = request.what {
                prop_assert!(offset + data.len() as u64 <= 4096);
            }
        }
    }
}
