//! Peers that are broken, of another version, or malicious: they end their own session at most.

use std::io::{Read as _, Write as _};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use serde_json::Value;
use vmferry_core::{PageRun, RamBlock, RamLayout};
use vmferry_guest_qemu::QemuConfig;
use vmferry_tests::daemon::PORT;
use vmferry_tests::{Hosts, TestGuest, eventually, need, shared_turn};
use vmferry_wire::version::VersionRange;
use vmferry_wire::{
    Coding, EncodedPages, Hello, HelloReply, Offer, PageEncoder, PageHeader, SPOKEN, SessionToken,
    StreamRole, ToDestination, ToSource, crc32, read_control, write_control,
};

const CONTROL: StreamRole = StreamRole::Control { resume: false };

/// Bytes that are nothing, the same in every run.
fn garbage(seed: u64, len: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        (state >> 32) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

/// Writes what a peer may have closed meanwhile, and reads until the end.
fn pour(mut stream: TcpStream, bytes: &[u8]) -> Vec<u8> {
    let _ = stream
        .write_all(bytes)
        .and_then(|()| stream.shutdown(Shutdown::Write));
    let mut answer = Vec::new();
    stream.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
    let _ = stream.read_to_end(&mut answer);
    answer
}

fn hello(versions: VersionRange, session: SessionToken, role: StreamRole) -> [u8; 40] {
    Hello {
        versions,
        session,
        role,
    }
    .encode()
}

fn guest(hosts: &Hosts) -> TestGuest {
    TestGuest::new("vm", hosts.dir.path(), 192, "write:16:20", &[])
}

#[test]
fn strangers_do_not_disturb_a_migration() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let hosts = Hosts::new();
    let guest = guest(&hosts);
    hosts.run(&guest);
    hosts.network.shape("150mbit");
    hosts.begin("vm", &["--strategy", "post-copy-push", "--verify"]);
    eventually("it is on its way", || hosts.destination.guest("vm").is_some());
    let connect = || hosts.network.connect(0, PORT);
    let unknown = SessionToken([7; 16]);

    // Some that say nothing, while all the others talk.
    let silent: Vec<TcpStream> = (0..20).map(|_| connect()).collect();
    for seed in 0..8 {
        pour(connect(), &garbage(seed, 1 << (2 * seed)));
    }
    pour(connect(), b"GET / HTTP/1.1\r\nHost: x\r\n\r\n");

    let newer = pour(
        connect(),
        &hello(VersionRange { min: 90, max: 99 }, unknown, CONTROL),
    );
    let HelloReply::Refused { reason } = HelloReply::read(&mut &newer[..]).unwrap() else {
        panic!("a version of the future is taken");
    };
    println!("{reason}");
    assert!(
        reason.contains("90 to 99") && reason.contains("versions 1 to") && !reason.contains('\n'),
        "{reason}"
    );

    for role in [
        StreamRole::Pages { index: 0 },
        StreamRole::Faults,
        StreamRole::Pages { index: u16::MAX },
    ] {
        let answer = pour(connect(), &hello(SPOKEN, unknown, role));
        let reply = HelloReply::read(&mut &answer[..]).unwrap();
        assert!(
            matches!(&reply, HelloReply::Refused { reason } if reason.contains("no such session")),
            "{reply:?}"
        );
    }
    for seed in 0..4 {
        let mut bytes = hello(SPOKEN, SessionToken([seed; 16]), CONTROL).to_vec();
        bytes.extend(garbage(seed.into(), 4096));
        pour(connect(), &bytes);
    }
    // And at the socket of the API.
    for seed in 0..4 {
        let mut api = UnixStream::connect(hosts.destination.api()).unwrap();
        let _ = api.write_all(&garbage(seed, 64 << 10));
    }
    let mut api = UnixStream::connect(hosts.destination.api()).unwrap();
    let huge = "POST /v1/guests HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 99999999999\r\n\r\n";
    let _ = api.write_all(huge.as_bytes());

    let report = hosts.wait_for_report("vm");
    assert_eq!(report["outcome"], "completed", "{report:#}");
    assert_eq!(report["verified"]["mismatches"], 0, "{report:#}");
    guest.console.assert_healthy(2);
    hosts.destination.assert_owns("vm");
    drop((silent, api));
}

/// A source that is none of ours, as far as the destination created its guest.
struct FakeSource<'a> {
    hosts: &'a Hosts,
    control: TcpStream,
    session: SessionToken,
}

const PAGES: u64 = 32 << 8;

impl<'a> FakeSource<'a> {
    fn offer(hosts: &'a Hosts, seed: u8) -> Self {
        let session = SessionToken([seed; 16]);
        let mut control = hosts.network.connect(0, PORT);
        control.set_read_timeout(Some(Duration::from_secs(60))).unwrap();
        control.write_all(&hello(SPOKEN, session, CONTROL)).unwrap();
        assert!(matches!(
            HelloReply::read(&mut control).unwrap(),
            HelloReply::Welcome { .. }
        ));
        let config = QemuConfig::new(PAGES * 4096, [""; 0]);
        let block = RamBlock {
            name: config.ram_id.clone(),
            pages: PAGES,
        };
        let offer = Offer {
            spec_json: serde_json::to_string(&config.into_spec("fake")).unwrap(),
            layout: RamLayout::new(vec![block]).unwrap(),
            strategy: "pre-copy".into(),
            streams: 1,
            faults: None,
            verify: false,
            epoch: 1,
        };
        write_control(&mut control, &ToDestination::Offer(offer)).unwrap();
        let answer = read_control::<ToSource>(&mut control).unwrap();
        assert!(matches!(answer, ToSource::Accept { streams: 1 }), "{answer:?}");
        Self {
            hosts,
            control,
            session,
        }
    }

    fn pages(&self) -> TcpStream {
        let mut stream = self.hosts.network.connect(0, PORT);
        stream
            .write_all(&hello(SPOKEN, self.session, StreamRole::Pages { index: 0 }))
            .unwrap();
        assert!(matches!(
            HelloReply::read(&mut stream).unwrap(),
            HelloReply::Welcome { .. }
        ));
        stream
    }

    /// The session ends, with a reason if it is still told; the guest goes, the daemon stays.
    fn assert_ended(mut self, what: &str) {
        let answer = read_control::<ToSource>(&mut self.control);
        let _ = self.control.shutdown(Shutdown::Both);
        println!("{what}: {answer:?}");
        eventually("the guest of the broken session is given up", || {
            if self.hosts.destination.guest("fake").is_some() {
                // Kept for a source that might come back: its operator gives it up.
                self.hosts.destination.call(&["cancel", "fake"]);
            }
            self.hosts.destination.guest("fake").is_none()
        });
        assert!(!self.hosts.destination.guest_dir("fake").exists());
    }
}

#[test]
fn a_source_that_breaks_the_protocol_ends_its_session_only() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let hosts = Hosts::new();
    // Another guest of that host, which must not notice.
    assert_eq!(
        hosts
            .destination
            .call(&["run", "bystander", "--memory", "32M"])
            .code,
        Some(0)
    );

    let raw = |first, count| [header(first, count), garbage(1, 2 * 4096)].concat();
    let page_streams: [(&str, Vec<u8>); 9] = [
        ("garbage for a page frame", garbage(3, 64 << 10)),
        ("a page behind the end of RAM", raw(PAGES, 1)),
        ("a run that reaches over the end of RAM", raw(PAGES - 1, 2)),
        ("a run of more pages than a frame may have", raw(0, 4096)),
        ("a run whose end is beyond all numbers", raw(u64::MAX - 1, 4)),
        ("a run of no pages", raw(0, 0)),
        ("garbage for lz4", encoded(Coding::Lz4, &garbage(6, 900))),
        (
            "a frame of zstd that claims terabytes",
            encoded(Coding::Zstd, &bomb()),
        ),
        // Decodes, but not to what the checksum says: the pages were never sent.
        (
            "a difference to what was never sent",
            encoded(Coding::Delta, &no_change()),
        ),
    ];
    for (seed, (what, bytes)) in (10..).zip(page_streams) {
        let fake = FakeSource::offer(&hosts, seed);
        let mut stream = fake.pages();
        let _ = stream.write_all(&bytes);
        fake.assert_ended(what);
    }
    let mut fake = FakeSource::offer(&hosts, 30);
    let _ = fake.control.write_all(&garbage(4, 4096));
    fake.assert_ended("garbage for a control message");
    let mut fake = FakeSource::offer(&hosts, 31);
    write_control(&mut fake.control, &ToDestination::Commit { epoch: 1 }).unwrap();
    fake.assert_ended("a commit of nothing");

    hosts.destination.assert_owns("bystander");
    let list = hosts.destination.call(&["list"]).expect_json();
    assert_eq!(list.as_array().map(Vec::len), Some(1), "{list}");
}

/// The header of a raw frame of any pages, also of those that ours never sends.
fn header(first: u64, count: u32) -> Vec<u8> {
    let mut header = PageHeader::raw(PageRun::new(0, 1), 1, None).encode();
    header[8..16].copy_from_slice(&first.to_le_bytes());
    header[16..20].copy_from_slice(&count.to_le_bytes());
    header[20..24].copy_from_slice(&count.wrapping_mul(4096).to_le_bytes());
    let checksum = crc32(&header[..28]);
    header[28..].copy_from_slice(&checksum.to_le_bytes());
    header.to_vec()
}

/// A frame of two pages with this payload.
fn encoded(coding: Coding, payload: &[u8]) -> Vec<u8> {
    let frame = EncodedPages {
        run: PageRun::new(40, 2),
        round: 1,
        coding,
        len: payload.len() as u32,
        crc: crc32(payload),
    };
    [&PageHeader::encoded(frame).encode()[..], payload].concat()
}

/// The begin of a zstd frame of 2^40 bytes, and a block that repeats a byte.
fn bomb() -> Vec<u8> {
    let mut frame = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    frame.extend((1u64 << 40).to_le_bytes());
    frame.extend([0x03, 0x00, 0x00, 0x41]);
    frame
}

fn no_change() -> Vec<u8> {
    let pages = [7; 2 * 4096];
    PageEncoder::default().delta(&pages, &pages).unwrap().to_vec()
}

/// What a destination that is none of ours does with a connection.
type Answering = fn(UnixStream);

#[test]
fn a_destination_that_breaks_the_protocol_leaves_the_guest_at_the_source() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let hosts = Hosts::new();
    let guest = guest(&hosts);
    hosts.run(&guest);
    let cases: [(&str, Answering); 6] = [
        ("hangs up", drop),
        ("answers with garbage", |mut stream| {
            let _ = Hello::read(&mut stream);
            let _ = stream.write_all(&garbage(5, 4096));
        }),
        ("speaks another version", |mut stream| {
            let _ = Hello::read(&mut stream);
            let _ = HelloReply::Welcome { version: 99 }.write(&mut stream);
        }),
        ("refuses", |mut stream| {
            let _ = Hello::read(&mut stream);
            let _ = HelloReply::Refused {
                reason: "not today\nerror: forged".into(),
            }
            .write(&mut stream);
        }),
        ("garbles control messages", |mut stream| {
            welcome(&mut stream);
            let _ = stream.write_all(&garbage(6, 4096));
            let _ = stream.read_to_end(&mut Vec::new());
        }),
        ("claims to run what it never got", |mut stream| {
            welcome(&mut stream);
            let _ = read_control::<ToDestination>(&mut stream);
            let _ = write_control(&mut stream, &ToSource::Running { epoch: 1 });
            let _ = stream.read_to_end(&mut Vec::new());
        }),
    ];
    for (number, (what, answering)) in cases.into_iter().enumerate() {
        let path = hosts.dir.path().join(format!("fake{number}.sock"));
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            answering(stream);
        });
        let to = format!("unix:{}", path.display());
        let answer = hosts
            .source
            .call(&["migrate", "vm", "--to", &to, "--strategy", "pre-copy"]);
        let report: Value = answer.json();
        println!("{what}: {}", report["error"]);
        assert_eq!(report["outcome"], "failed", "{report:#}");
        let error = report["error"].as_str().unwrap();
        assert!(
            !error.is_empty() && !error.contains('\n') && error.len() < 1000,
            "{error:?}"
        );
        assert_ne!(answer.code, Some(0));
        hosts.source.assert_owns("vm");
    }
    guest.console.assert_healthy(2);
    let report = hosts
        .migrate("vm", &["--strategy", "pre-copy", "--verify"])
        .expect_json();
    assert_eq!(report["verified"]["mismatches"], 0, "{report:#}");
}

fn welcome(stream: &mut UnixStream) {
    let _ = Hello::read(stream);
    let _ = HelloReply::Welcome { version: SPOKEN.max }.write(stream);
}
