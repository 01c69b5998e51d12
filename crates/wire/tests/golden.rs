//! The bytes of every released protocol version. A line in `golden/` is never changed, only added: hosts of
//! that version are out there. What this build writes must be those bytes, and it must read them back.

use std::collections::BTreeMap;
use std::fmt::Write as _;

use vmferry_core::{PageBitmap, PageRun, RamBlock, RamLayout};
use vmferry_wire::{
    Coding, ControlMessage, DestinationSummary, EncodedPages, FaultModeWire, FaultRequest, FaultSummary,
    HeldPages, Hello, HelloReply, Offer, OwnerState, PageDecoder, PageEncoder, PageFrame, PageSet,
    SessionToken, StreamRole, ToDestination, ToSource, VerifySummary, VersionRange, read_control,
    write_control,
};

const VERSION_1: &str = include_str!("golden/version-1.txt");
const VERSION_2: &str = include_str!("golden/version-2.txt");
const VERSION_3: &str = include_str!("golden/version-3.txt");

#[test]
fn version_1_is_written_and_read_as_ever() {
    let mut lines = Lines::new(VERSION_1);
    hellos(&mut lines);
    control(&mut lines, &to_destination(), "to-destination", 0..11);
    control(&mut lines, &to_source(), "to-source", 0..11);
    pages(&mut lines);
    faults(&mut lines);
    lines.finish();
}

/// Pages that the destination has, of version 3.
fn held_pages(lines: &mut Lines) {
    control(lines, &[ToDestination::AskHeld], "to-destination held", 13..14);
    let held = ToSource::Held {
        fingerprints: vec![0, u64::MAX, 0x0123_4567_89ab_cdef],
        last: true,
    };
    let missed = ToSource::Missed { pages: set_of_runs() };
    control(lines, &[held, missed], "to-source held", 12..14);
    let (run, hashes) = (PageRun::new(1023, 2), [[0xa5; 32], [0x5a; 32]]);
    let header = HeldPages::frame(run, 0x0102_0304, &hashes).encode();
    let golden = lines.check("page held", &[&header, hashes.as_flattened()].concat());
    let mut golden = golden.as_slice();
    let Ok(PageFrame::Held(held)) = PageFrame::read(&mut golden, &layout()) else {
        panic!("no frame of hashes");
    };
    assert_eq!((held.run, held.round), (run, 0x0102_0304));
    assert_eq!(held.read(&mut golden).unwrap(), hashes);
}

#[test]
fn every_message_is_of_some_version() {
    assert_eq!((ToDestination::NAMES.len(), ToSource::NAMES.len()), (14, 14));
}

/// What version 2 has beyond version 1.
#[test]
fn version_2_is_written_and_read_as_ever() {
    let mut lines = Lines::new(VERSION_2);
    encoded_pages(&mut lines);
    lines.finish();
}

/// What version 3 has beyond version 2.
#[test]
fn version_3_is_written_and_read_as_ever() {
    let mut lines = Lines::new(VERSION_3);
    let hello = Hello {
        versions: VersionRange { min: 1, max: 3 },
        session: session(),
        role: StreamRole::Disk { index: 258 },
    };
    let golden = lines.check("hello disk", &hello.encode());
    assert_eq!(Hello::read(&mut golden.as_slice()).unwrap(), hello);
    let plan = ToDestination::Disks {
        plan_json: r#"{"disks":[]}"#.into(),
    };
    let places = ToSource::DisksPlaced {
        places_json: "[]".into(),
    };
    control(&mut lines, &[plan], "to-destination", 12..13);
    control(&mut lines, &[places], "to-source", 11..12);
    let caps = [None, Some(1), Some(6400)].map(|percent| ToDestination::CpuCap { percent });
    control(&mut lines, &caps, "to-destination", 11..12);
    held_pages(&mut lines);
    lines.finish();
}

fn session() -> SessionToken {
    SessionToken(*b"0123456789abcdef")
}

fn layout() -> RamLayout {
    RamLayout::new(vec![
        RamBlock {
            name: "low".into(),
            pages: 1024,
        },
        RamBlock {
            name: "high".into(),
            pages: 300,
        },
    ])
    .unwrap()
}

fn hellos(lines: &mut Lines) {
    let versions = VersionRange { min: 1, max: 1 };
    for (name, role) in [
        ("hello control", StreamRole::Control { resume: false }),
        ("hello control resume", StreamRole::Control { resume: true }),
        ("hello pages", StreamRole::Pages { index: 258 }),
        ("hello faults", StreamRole::Faults),
    ] {
        let hello = Hello {
            versions,
            session: session(),
            role,
        };
        let golden = lines.check(name, &hello.encode());
        assert_eq!(Hello::read(&mut golden.as_slice()).unwrap(), hello, "{name}");
    }
    for (name, reply) in [
        ("reply welcome", HelloReply::Welcome { version: 1 }),
        (
            "reply refused",
            HelloReply::Refused {
                reason: "no such session".into(),
            },
        ),
    ] {
        let golden = lines.check(name, &reply.encode());
        assert_eq!(HelloReply::read(&mut golden.as_slice()).unwrap(), reply, "{name}");
    }
}

/// Messages of a version, whose numbers are `of_version`.
fn control<M: ControlMessage + PartialEq + std::fmt::Debug>(
    lines: &mut Lines,
    messages: &[M],
    way: &str,
    of_version: std::ops::Range<usize>,
) {
    let mut numbers = Vec::new();
    for (index, message) in messages.iter().enumerate() {
        let mut bytes = Vec::new();
        write_control(&mut bytes, message).unwrap();
        // The number of the message is the first byte of the payload.
        let number = bytes[vmferry_wire::frame::FRAME_HEADER_BYTES];
        numbers.push(usize::from(number));
        let golden = lines.check(
            &format!("{way} {index} {}", M::NAMES[usize::from(number)]),
            &bytes,
        );
        assert_eq!(read_control::<M>(&mut golden.as_slice()).unwrap(), *message);
        let name = format!("{message:?}");
        assert!(
            name.starts_with(M::NAMES[usize::from(number)]),
            "message {number} has the name of another: {name}"
        );
    }
    numbers.dedup();
    assert_eq!(
        numbers,
        of_version.collect::<Vec<_>>(),
        "every message {way} has golden bytes, in order"
    );
}

fn set_of_crumbs() -> PageSet {
    let mut set = PageBitmap::new(layout().pages());
    set.insert_run(PageRun::new(3, 200));
    (512..1000)
        .filter(|page| page % 3 == 0 || page % 5 == 0)
        .for_each(|page| {
            set.insert(page);
        });
    PageSet::parts(&set).remove(0)
}

fn set_of_runs() -> PageSet {
    let mut set = PageBitmap::full(layout().pages());
    set.remove_run(PageRun::new(100, 1000));
    PageSet::parts(&set).remove(0)
}

fn to_destination() -> Vec<ToDestination> {
    let offer = |faults| {
        ToDestination::Offer(Offer {
            spec_json: r#"{"name":"vm","backend":"synth","config":{}}"#.into(),
            layout: layout(),
            strategy: "post-copy-push".into(),
            streams: 4,
            faults,
            verify: faults.is_some(),
            epoch: 7,
        })
    };
    vec![
        offer(None),
        offer(Some(FaultModeWire::Missing)),
        offer(Some(FaultModeWire::MissingAndStale)),
        ToDestination::Pending { pages: set_of_runs() },
        ToDestination::Switch {
            pending: set_of_crumbs(),
            resend: true,
        },
        ToDestination::DeviceState {
            last: true,
            bytes: b"state of devices".to_vec(),
        },
        ToDestination::PageHashes {
            first: 1022,
            hashes: vec![0, u128::MAX, 0x0123_4567_89ab_cdef << 64 | 5],
        },
        ToDestination::Prepare { epoch: 7 },
        ToDestination::Commit { epoch: u64::MAX },
        ToDestination::PushedAll,
        ToDestination::Abort {
            reason: "cancelled by the operator".into(),
        },
        ToDestination::Query { epoch: 7 },
        ToDestination::Ping { nonce: 0xfeed },
    ]
}

fn to_source() -> Vec<ToSource> {
    let owner = |state| ToSource::Owner { epoch: 7, state };
    vec![
        ToSource::Accept { streams: 2 },
        ToSource::Refuse {
            reason: "a guest of this name is here".into(),
        },
        ToSource::RoundReceived {
            round: 2,
            pages: 1 << 40,
            bytes: 1 << 52,
        },
        ToSource::Ready { epoch: 7 },
        ToSource::Running { epoch: 7 },
        owner(OwnerState::Unknown),
        owner(OwnerState::Prepared),
        owner(OwnerState::Owner),
        owner(OwnerState::Declined),
        ToSource::Received {
            pages: set_of_runs(),
            last: true,
        },
        ToSource::Complete {
            summary: DestinationSummary {
                faults: FaultSummary {
                    count: 1000,
                    network: 900,
                    local: 100,
                    p50_us: 26.5,
                    p99_us: 61.25,
                    max_us: 1003.0,
                },
                cpu_seconds: 0.125,
                memory_bytes: 1 << 20,
                verified: Some(VerifySummary {
                    pages: 1324,
                    mismatches: 0,
                }),
                pages_received: 1400,
            },
        },
        ToSource::Complete {
            summary: DestinationSummary::default(),
        },
        ToSource::Failed {
            reason: "not enough memory".into(),
        },
        ToSource::Progress {
            faults: 12,
            pages: 345,
        },
        ToSource::Pong { nonce: 0xfeed },
    ]
}

fn pages(lines: &mut Lines) {
    let run = PageRun::new(300, 1024);
    for (name, frame) in [
        (
            "page raw",
            PageFrame::Raw {
                run,
                round: 0x0102_0304,
                crc: None,
            },
        ),
        (
            "page raw with checksum",
            PageFrame::Raw {
                run: PageRun::single(1023),
                round: 0,
                crc: Some(0xdead_beef),
            },
        ),
        (
            "page uniform",
            PageFrame::Uniform {
                run,
                round: 1,
                byte: 0xa5,
            },
        ),
        ("page round end", PageFrame::RoundEnd { round: 3 }),
        ("page push end", PageFrame::PushEnd),
    ] {
        let golden = lines.check(name, &frame.header().encode());
        assert_eq!(
            PageFrame::read(&mut golden.as_slice(), &layout()).unwrap(),
            frame,
            "{name}"
        );
    }
}

/// Headers are written as ever. A payload may be written otherwise by another version of its library, but it is read as
/// ever.
fn encoded_pages(lines: &mut Lines) {
    let old = vec![b'v'; 2 * 4096];
    let mut new = old.clone();
    new[100..104].copy_from_slice(b"new!");
    new[5000..5008].copy_from_slice(b"versions");
    let mut encoder = PageEncoder::default();
    for (coding, name) in [
        (Coding::Lz4, "lz4"),
        (Coding::Zstd, "zstd"),
        (Coding::Delta, "delta"),
    ] {
        let written = match coding {
            Coding::Lz4 => encoder.lz4(&new),
            Coding::Zstd => encoder.zstd(1, &new),
            Coding::Delta => encoder.delta(&old, &new),
        };
        let payload = lines.read(&format!("payload {name}"), written.unwrap());
        let frame = EncodedPages {
            run: PageRun::new(1023, 2),
            round: 0x0102_0304,
            coding,
            len: payload.len() as u32,
            crc: coding.checksum(&payload, &new),
        };
        let golden = lines.check(
            &format!("page {name}"),
            &PageFrame::Encoded(frame).header().encode(),
        );
        assert_eq!(
            PageFrame::read(&mut golden.as_slice(), &layout()).unwrap(),
            PageFrame::Encoded(frame),
            "{name}"
        );
        let mut pages = old.clone();
        PageDecoder::default()
            .read(&mut payload.as_slice(), &frame, &mut pages)
            .unwrap();
        assert!(pages == new, "{name}");
    }
}

fn faults(lines: &mut Lines) {
    let request = FaultRequest {
        page: 1323,
        seq: 0x0a0b_0c0d,
    };
    let golden = lines.check("fault request", &request.encode());
    assert_eq!(
        FaultRequest::read(&mut golden.as_slice(), &layout()).unwrap(),
        request
    );
}

/// The lines `name = bytes in hex` of a file.
struct Lines {
    left: BTreeMap<String, String>,
    wrong: String,
}

impl Lines {
    fn new(text: &str) -> Self {
        let lines = text
            .lines()
            .filter(|line| !line.is_empty() && !line.starts_with('#'));
        let pairs = lines.map(|line| line.split_once(" = ").expect("name = bytes"));
        let left = pairs
            .map(|(name, hex)| (name.to_owned(), hex.to_owned()))
            .collect();
        Self {
            left,
            wrong: String::new(),
        }
    }

    /// Compares `bytes` with the line `name`; answers the bytes of the line.
    fn check(&mut self, name: &str, bytes: &[u8]) -> Vec<u8> {
        let came = hex(bytes);
        match self.left.remove(name) {
            Some(golden) if golden == came => unhex(&golden),
            golden => {
                let _ = writeln!(self.wrong, "{name} = {came}");
                golden.map_or_else(|| bytes.to_vec(), |golden| unhex(&golden))
            }
        }
    }

    /// The bytes of the line `name`, which were `written` when it was made.
    fn read(&mut self, name: &str, written: &[u8]) -> Vec<u8> {
        match self.left.remove(name) {
            Some(golden) => unhex(&golden),
            None => {
                let _ = writeln!(self.wrong, "{name} = {}", hex(written));
                written.to_vec()
            }
        }
    }

    fn finish(self) {
        assert!(
            self.wrong.is_empty(),
            "these bytes are not the golden ones:\n{}",
            self.wrong
        );
        assert!(
            self.left.is_empty(),
            "golden bytes of what this build cannot write: {:?}",
            self.left
        );
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap())
        .collect()
}
