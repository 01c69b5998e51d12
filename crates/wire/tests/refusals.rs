//! What is refused, and in which words: what came and what was expected.

use std::io::{self, ErrorKind, Read};

use vmferry_core::{PageBitmap, PageRun, RamBlock, RamLayout};
use vmferry_wire::control::{MAX_DEVICE_STATE_CHUNK_BYTES, MAX_HASHES, MAX_REASON_BYTES, MAX_SPEC_BYTES};
use vmferry_wire::frame::{FrameKind, MAX_PAYLOAD_BYTES, encode_frame};
use vmferry_wire::{
    ControlMessage, FaultRequest, Hello, HelloReply, MAX_RUN_PAGES, Offer, PageFrame, PageHeader, PageSet,
    PageSetParts, SPOKEN, SessionToken, StreamRole, ToDestination, ToSource, VersionRange, WireError,
    clip_reason, crc32, decode_control, encode_control, read_control, write_control,
};

/// A connection that gives `bytes` and then what `end` makes.
struct Connection<'a> {
    bytes: &'a [u8],
    end: fn() -> io::Result<usize>,
}

impl Read for Connection<'_> {
    fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
        if self.bytes.is_empty() {
            return (self.end)();
        }
        // Two bytes at a time: nothing may count on a frame that comes in one piece.
        let count = space.len().min(2);
        self.bytes.read(&mut space[..count])
    }
}

fn open(bytes: &[u8]) -> Connection<'_> {
    Connection {
        bytes,
        end: || panic!("waits for more than it needs"),
    }
}

fn layout() -> RamLayout {
    let block = |name: &str, pages| RamBlock {
        name: name.into(),
        pages,
    };
    RamLayout::new(vec![block("low", 2000), block("high", 3000)]).unwrap()
}

fn says<T: std::fmt::Debug>(result: Result<T, WireError>, words: &[&str]) {
    let message = chain(&result.expect_err("this must be refused"));
    for word in words {
        assert!(message.contains(word), "{message:?} does not say {word:?}");
    }
    assert!(!message.contains('\n'), "more than one line: {message:?}");
}

fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

fn hello() -> Hello {
    Hello {
        versions: SPOKEN,
        session: SessionToken([7; 16]),
        role: StreamRole::Faults,
    }
}

#[test]
fn a_cpu_cap_that_nobody_can_keep_to_is_refused() {
    for percent in [0, 6401, u32::MAX] {
        let cap = ToDestination::CpuCap {
            percent: Some(percent),
        };
        assert!(write_control(&mut Vec::new(), &cap).is_err(), "{percent}");
    }
}

#[test]
fn another_protocol_is_found_out_with_its_first_bytes() {
    // The peers wait for an answer and keep the connection open.
    for garbage in [
        "GET / HTTP/1.1\r\n\r\n",
        "SSH-2.0-OpenSSH",
        "\x16\x03\x01",
        "VMFERRX",
        "\n",
    ] {
        says(
            Hello::read(&mut open(garbage.as_bytes())),
            &["does not speak vmferry", "VMFERRY\\0", "check host and port"],
        );
    }
    says(
        HelloReply::read(&mut open(b"HTTP/1.1 400 Bad Request")),
        &["\"HT\""],
    );
}

#[test]
fn hellos_with_wrong_fields_are_refused() {
    let mut bytes = hello().encode();
    bytes[28] = 9;
    says(Hello::decode(&bytes), &["the hello", "checksum"]);
    let crc = crc32(&bytes[..36]);
    bytes[36..].copy_from_slice(&crc.to_le_bytes());
    says(
        Hello::decode(&bytes),
        &[
            "unknown role of a stream 9",
            "1 (control), 2 (pages), 3 (faults), 4 (disk) or 5 (probe)",
        ],
    );
}

#[test]
fn versions_meet_or_say_why_not() {
    let range = |min, max| VersionRange { min, max };
    for (ours, theirs, version) in [
        (range(1, 1), range(1, 1), 1),
        (range(1, 3), range(2, 9), 3),
        (range(2, 9), range(1, 3), 3),
        (range(1, 5), range(5, 7), 5),
    ] {
        assert_eq!(ours.negotiate(theirs).unwrap(), version, "{ours} {theirs}");
    }
    says(
        range(1, 1).negotiate(range(2, 3)),
        &["versions 2 to 3", "expected version 1", "update vmferry"],
    );
    says(
        range(4, 5).negotiate(range(2, 3)),
        &["versions 2 to 3", "expected versions 4 to 5"],
    );
    says(range(1, 1).negotiate(range(3, 0)), &["versions 3 to 0"]);
}

#[test]
fn replies_are_held_against_the_offer() {
    let offered = VersionRange { min: 1, max: 2 };
    assert_eq!(HelloReply::Welcome { version: 2 }.accepted(offered).unwrap(), 2);
    says(
        HelloReply::Welcome { version: 3 }.accepted(offered),
        &["is 3, expected one of versions 1 to 2"],
    );
    let refused = HelloReply::Refused {
        reason: "busy\x1b[2J\n".into(),
    };
    let came = HelloReply::read(&mut open(&refused.encode())).unwrap();
    says(came.accepted(offered), &["refused the connection: busy [2J "]);
    let long = HelloReply::Refused {
        reason: "ä".repeat(1000),
    }
    .encode();
    let HelloReply::Refused { reason } = HelloReply::read(&mut open(&long)).unwrap() else {
        panic!("not refused")
    };
    assert_eq!(reason, "ä".repeat(512), "a long reason is cut between characters");
    let mut longer = long;
    longer[12..14].copy_from_slice(&1025u16.to_le_bytes());
    says(
        HelloReply::read(&mut open(&longer)),
        &["the reason of a refusal has 1025 bytes", "at most 1024"],
    );
}

#[test]
fn the_end_of_a_connection_is_told_from_silence_and_from_a_cut() {
    let mut bytes = Vec::new();
    write_control(&mut bytes, &ToSource::Pong { nonce: 5 }).unwrap();
    let closed = |bytes| Connection { bytes, end: || Ok(0) };
    let silent = |bytes| Connection {
        bytes,
        end: || Err(ErrorKind::WouldBlock.into()),
    };
    let reset = |bytes| Connection {
        bytes,
        end: || Err(ErrorKind::ConnectionReset.into()),
    };

    let error = read_control::<ToSource>(&mut closed(&[])).unwrap_err();
    assert!(
        matches!(error, WireError::Closed { .. }) && error.is_lost_connection(),
        "{error}"
    );
    let error = read_control::<ToSource>(&mut silent(&[])).unwrap_err();
    assert!(error.is_idle() && !error.is_lost_connection(), "{error}");
    for cut in 1..bytes.len() {
        let error = read_control::<ToSource>(&mut closed(&bytes[..cut])).unwrap_err();
        assert!(
            matches!(error, WireError::Truncated { .. }) && error.is_lost_connection(),
            "{error}"
        );
        let error = read_control::<ToSource>(&mut silent(&bytes[..cut])).unwrap_err();
        assert!(error.is_lost_connection() && !error.is_idle(), "{error}");
    }
    says(
        read_control::<ToSource>(&mut closed(&bytes[..9])),
        &["after 9 bytes of a control message, expected 16"],
    );
    says(
        read_control::<ToSource>(&mut reset(&bytes[..9])),
        &["cannot read a control message", "connection reset"],
    );
    let protocol = read_control::<ToDestination>(&mut open(&bytes)).unwrap_err();
    assert!(!protocol.is_lost_connection(), "{protocol}");
}

#[test]
fn a_signal_does_not_disturb() {
    struct Interrupted<'a>(&'a [u8], bool);
    impl Read for Interrupted<'_> {
        fn read(&mut self, space: &mut [u8]) -> io::Result<usize> {
            self.1 = !self.1;
            if self.1 {
                Err(ErrorKind::Interrupted.into())
            } else {
                open(self.0).read(space).inspect(|&n| self.0 = &self.0[n..])
            }
        }
    }
    let mut bytes = Vec::new();
    write_control(&mut bytes, &ToSource::Pong { nonce: 5 }).unwrap();
    assert_eq!(
        read_control::<ToSource>(&mut Interrupted(&bytes, false)).unwrap(),
        ToSource::Pong { nonce: 5 }
    );
}

#[test]
fn control_frames_with_wrong_headers_are_refused() {
    let good = encode_frame(FrameKind::ToSource, &[9, 5]).unwrap();
    let with = |at: usize, value: &[u8]| {
        let mut frame = good.clone();
        frame[at..at + value.len()].copy_from_slice(value);
        let crc = crc32(&frame[..12]);
        frame[12..16].copy_from_slice(&crc.to_le_bytes());
        frame
    };
    let read = |frame: &[u8]| read_control::<ToSource>(&mut open(frame));
    says(
        read(&with(0, &[1, 2])),
        &[
            "unknown kind of control frame 0x0201",
            "0x5653 (a message to the source)",
        ],
    );
    let wrong_way = encode_frame(FrameKind::ToDestination, &[7]).unwrap();
    says(
        read(&wrong_way),
        &["0x5644 (a message to the destination)", "0x5653"],
    );
    says(read(&with(2, &[1])), &["flags", "is 1, expected 0"]);
    says(
        read(&with(4, &(MAX_PAYLOAD_BYTES as u32 + 1).to_le_bytes())),
        &["4194305 bytes", "at most 4194304"],
    );
    says(
        read(&with(8, &[1])),
        &["the payload of a control message came with checksum"],
    );
    let mut damaged = good;
    damaged[5] ^= 1;
    says(
        read(&damaged),
        &["the header of a control message came with checksum"],
    );
}

#[test]
fn messages_that_do_not_decode_are_refused_by_name() {
    says(decode_control::<ToSource>(&[]), &["without a number"]);
    says(
        decode_control::<ToSource>(&[14]),
        &["unknown control message 14", "0 (Accept) to 13 (Missed)"],
    );
    says(
        decode_control::<ToDestination>(&[0xff, 0xff, 0xff, 0xff, 0x0f]),
        &["4294967295", "0 (Offer) to 13 (AskHeld)"],
    );
    says(
        decode_control::<ToSource>(&[2, 1]),
        &["control message RoundReceived does not decode", "end of buffer"],
    );
    says(decode_control::<ToSource>(&[5, 1, 4]), &["Owner does not decode"]);
    says(
        decode_control::<ToSource>(&[10, 1, 0]),
        &["Pong has 3 bytes, expected at most 2"],
    );
    says(
        decode_control::<ToDestination>(&[4, 0, 5, 1, 2, 3, 4, 5]),
        &["PageHashes does not decode"],
    );
    says(
        decode_control::<ToDestination>(&[8, 1, 0xff]),
        &["Abort does not decode"],
    );
}

#[test]
fn absurd_layouts_are_refused() {
    let offer = |blocks: &[u8]| [&[0, 0], blocks, &[0, 1, 0, 0, 1]].concat();
    assert!(decode_control::<ToDestination>(&offer(&[1, 0, 1])).is_ok());
    let mut too_many = vec![65];
    (0..65).for_each(|_| too_many.extend([0, 1]));
    let mut too_large = vec![1, 0];
    too_large.extend(postcard_varint(1 << 40));
    for blocks in [vec![0], vec![1, 0, 0], too_many, too_large] {
        says(
            decode_control::<ToDestination>(&offer(&blocks)),
            &["Offer does not decode"],
        );
    }
}

fn postcard_varint(mut value: u64) -> Vec<u8> {
    let mut bytes = Vec::new();
    while value >= 0x80 {
        bytes.push(value as u8 | 0x80);
        value >>= 7;
    }
    bytes.push(value as u8);
    bytes
}

/// A bound holds for what we send and for what comes.
#[test]
fn messages_beyond_a_bound_are_refused() {
    fn refused<M: ControlMessage + std::fmt::Debug>(largest: &M, larger: &M, payload: &[u8], words: &[&str]) {
        assert!(encode_control(largest).is_ok());
        says(encode_control(larger), words);
        says(decode_control::<M>(payload), words);
    }
    fn payload(number: u8, before: &[u8], length: usize, after: &[u8]) -> Vec<u8> {
        [
            &[number],
            before,
            &postcard_varint(length as u64),
            &vec![b'x'; length],
            after,
        ]
        .concat()
    }

    let state = |length| ToDestination::DeviceState {
        last: false,
        bytes: vec![b'x'; length],
    };
    let most = MAX_DEVICE_STATE_CHUNK_BYTES;
    let words = ["device state has 1048577 bytes", "at most 1048576"];
    refused(
        &state(most),
        &state(most + 1),
        &payload(3, &[0], most + 1, &[]),
        &words,
    );

    let hashes = |length| ToDestination::PageHashes {
        first: 0,
        hashes: vec![1; length],
    };
    let words = ["page hashes has 65537 hashes", "at most 65536"];
    let bytes = payload(4, &[0], (MAX_HASHES + 1) * 16, &[]);
    refused(&hashes(MAX_HASHES), &hashes(MAX_HASHES + 1), &bytes, &words);

    let abort = |length| ToDestination::Abort {
        reason: "x".repeat(length),
    };
    let most = MAX_REASON_BYTES;
    refused(
        &abort(most),
        &abort(most + 1),
        &payload(8, &[], most + 1, &[]),
        &["the reason to abort has 4097 bytes"],
    );
    let failed = |length| ToSource::Failed {
        reason: "x".repeat(length),
    };
    refused(
        &failed(most),
        &failed(most + 1),
        &payload(8, &[], most + 1, &[]),
        &["the reason of the failure has 4097"],
    );
    let refuse = |length| ToSource::Refuse {
        reason: "x".repeat(length),
    };
    refused(
        &refuse(most),
        &refuse(most + 1),
        &payload(1, &[], most + 1, &[]),
        &["the reason to refuse has 4097"],
    );

    let offer = |spec: usize, block: usize, strategy: usize| {
        ToDestination::Offer(Offer {
            spec_json: "x".repeat(spec),
            layout: RamLayout::single("x".repeat(block), 4096).unwrap(),
            strategy: "x".repeat(strategy),
            streams: 1,
            faults: None,
            verify: false,
            epoch: 1,
        })
    };
    let rest = [1, 0, 1, 0, 1, 0, 0, 1];
    let words = ["specification has 262145 bytes", "at most 262144"];
    let bytes = payload(0, &[], MAX_SPEC_BYTES + 1, &rest);
    refused(
        &offer(MAX_SPEC_BYTES, 256, 256),
        &offer(MAX_SPEC_BYTES + 1, 1, 1),
        &bytes,
        &words,
    );
    says(
        encode_control(&offer(0, 257, 0)),
        &["the name of a RAM block has 257 bytes"],
    );
    says(
        encode_control(&offer(0, 0, 257)),
        &["the strategy's name has 257 bytes"],
    );
}

#[test]
fn a_reason_cannot_play_with_the_terminal() {
    let payload = [&[8u8, 9][..], b"\x1b[31mred\n"].concat();
    let ToSource::Failed { reason } = decode_control(&payload).unwrap() else {
        panic!("another message")
    };
    assert_eq!(reason, " [31mred ");
    let clipped = clip_reason(&"é\n".repeat(5000));
    assert!(clipped.len() <= MAX_REASON_BYTES && clipped.ends_with("é ") | clipped.ends_with('é'));
    assert!(encode_control(&ToSource::Failed { reason: clipped }).is_ok());
}

#[test]
fn device_state_is_cut_into_pieces_and_is_whole_again() {
    for length in [
        0,
        1,
        MAX_DEVICE_STATE_CHUNK_BYTES,
        MAX_DEVICE_STATE_CHUNK_BYTES * 2 + 5,
    ] {
        let state: Vec<u8> = (0..length).map(|at| at as u8).collect();
        let messages = ToDestination::device_state(&state);
        let mut whole = Vec::new();
        for (index, message) in messages.iter().enumerate() {
            assert!(message.check().is_ok());
            let ToDestination::DeviceState { last, bytes } = message else {
                panic!("another message")
            };
            assert_eq!(*last, index + 1 == messages.len());
            whole.extend_from_slice(bytes);
        }
        assert!(whole == state, "state of {length} bytes");
    }
}

/// A header with some fields of another, its checksum right.
fn page_header(kind: u8, flags: u8, byte: u8, first: u64, count: u32, len: u32, crc: u32) -> [u8; 32] {
    let mut bytes = [0; 32];
    bytes[..3].copy_from_slice(&[kind, flags, byte]);
    bytes[8..16].copy_from_slice(&first.to_le_bytes());
    bytes[16..20].copy_from_slice(&count.to_le_bytes());
    bytes[20..24].copy_from_slice(&len.to_le_bytes());
    bytes[24..28].copy_from_slice(&crc.to_le_bytes());
    let header_crc = crc32(&bytes[..28]);
    bytes[28..].copy_from_slice(&header_crc.to_le_bytes());
    bytes
}

#[test]
fn page_frames_with_wrong_fields_are_refused() {
    let decode = |bytes: &[u8; 32]| PageHeader::decode(bytes, &layout());
    assert!(
        decode(&page_header(1, 0, 0, 1990, 20, 20 * 4096, 0)).is_ok(),
        "a run over two blocks"
    );
    for (bytes, words) in [
        (
            page_header(0, 0, 0, 0, 1, 4096, 0),
            ["unknown kind of page frame 0", "1 (raw), 2 (uniform)"],
        ),
        (
            page_header(16, 1, 0, 0, 1, 0, 0),
            [
                "payload length of an encoded page frame",
                "is 0, expected 1 to 4095",
            ],
        ),
        (
            page_header(17, 1, 0, 0, 1, 4096, 0),
            [
                "payload length of an encoded page frame",
                "is 4096, expected 1 to 4095",
            ],
        ),
        (
            page_header(18, 1, 0, 0, 2, u32::MAX, 0),
            ["payload length of an encoded page frame", "expected 1 to 8191"],
        ),
        (page_header(16, 0, 0, 0, 1, 100, 0), ["flags", "is 0, expected 1"]),
        (page_header(17, 1, 3, 0, 1, 100, 0), ["byte", "is 3, expected 0"]),
        (
            page_header(18, 1, 0, 4999, 2, 100, 0),
            ["pages 4999..5001", "5000 pages"],
        ),
        (
            page_header(18, 1, 0, 0, 1025, 100, 0),
            ["a page frame has 1025 pages", "at most 1024"],
        ),
        (
            page_header(19, 0, 0, 0, 1, 100, 0),
            ["payload length", "expected 32"],
        ),
        (
            page_header(1, 0, 0, 0, 1025, 1025 * 4096, 0),
            ["a page frame has 1025 pages", "at most 1024"],
        ),
        (
            page_header(1, 0, 0, 0, u32::MAX, 0, 0),
            ["4294967295 pages", "at most 1024"],
        ),
        (
            page_header(1, 0, 0, 0, 0, 0, 0),
            ["pages that do not exist", "0..0"],
        ),
        (
            page_header(1, 0, 0, 4999, 2, 8192, 0),
            ["pages 4999..5001", "5000 pages"],
        ),
        (
            page_header(2, 0, 0, u64::MAX, 1, 0, 0),
            ["a page frame names pages", "5000 pages"],
        ),
        (
            page_header(1, 0, 0, 7, 2, 8191, 0),
            ["payload length", "is 8191, expected 8192"],
        ),
        (
            page_header(1, 0, 0, 7, 2, 0, 0),
            ["payload length", "is 0, expected 8192"],
        ),
        (page_header(1, 2, 0, 7, 2, 8192, 0), ["flags", "is 2, expected 0"]),
        (page_header(1, 3, 0, 7, 2, 8192, 9), ["flags", "is 3, expected 1"]),
        (
            page_header(1, 0, 0, 7, 2, 8192, 9),
            ["payload checksum", "is 9, expected 0"],
        ),
        (page_header(1, 0, 5, 7, 2, 8192, 0), ["byte", "is 5, expected 0"]),
        (
            page_header(2, 0, 5, 7, 2, 8192, 0),
            ["payload length", "is 8192, expected 0"],
        ),
        (
            page_header(3, 0, 0, 7, 0, 0, 0),
            ["first page", "is 7, expected 0"],
        ),
        (
            page_header(4, 0, 0, 0, 1, 0, 0),
            ["page count", "is 1, expected 0"],
        ),
    ] {
        says(decode(&bytes), &words);
    }
    let mut damaged = page_header(1, 0, 0, 7, 2, 8192, 0);
    damaged[9] ^= 0x80;
    says(
        decode(&damaged),
        &["the header of a page frame came with checksum"],
    );
}

#[test]
fn encoded_pages_do_not_cross_before_version_2() {
    for (kind, name) in [(16, "lz4"), (17, "zstd"), (18, "delta")] {
        let frame = PageHeader::decode(&page_header(kind, 1, 0, 0, 1, 100, 0), &layout()).unwrap();
        frame.check_version(2).unwrap();
        says(
            frame.check_version(1),
            &[
                &format!("{kind} ({name}, not before version 2)"),
                "expected 1 (raw)",
            ],
        );
    }
    let raw = PageHeader::decode(&page_header(1, 0, 0, 0, 1, 4096, 0), &layout()).unwrap();
    raw.check_version(1).unwrap();
}

#[test]
#[should_panic(expected = "a page frame of 1025 pages")]
fn a_page_frame_beyond_the_bound_is_a_mistake_of_ours() {
    let _ = PageHeader::raw(PageRun::new(0, MAX_RUN_PAGES + 1), 1, None);
}

#[test]
fn payloads_are_held_against_their_checksum() {
    let run = PageRun::single(3);
    let payload = [5; 4096];
    let frame = |crc| PageFrame::Raw { run, round: 0, crc };
    frame(Some(crc32(&payload)))
        .check_payload(|| crc32(&payload))
        .unwrap();
    says(
        frame(Some(1)).check_payload(|| crc32(&payload)),
        &["the payload of a raw page frame", "0x00000001"],
    );
    frame(None)
        .check_payload(|| panic!("computes a checksum that nobody compares"))
        .unwrap();
}

#[test]
fn faults_outside_of_ram_are_refused() {
    let request = FaultRequest { page: 5000, seq: 1 }.encode();
    says(
        FaultRequest::decode(&request, &layout()),
        &["a fault request names pages", "5000..5001", "5000 pages"],
    );
    let mut damaged = FaultRequest { page: 1, seq: 1 }.encode();
    damaged[0] = 2;
    says(
        FaultRequest::decode(&damaged, &layout()),
        &["a fault request came with checksum"],
    );
}

/// A message with a set of this form, as its bytes.
fn set(first: u64, pages: u64, coding: &[u8]) -> PageSet {
    let payload = [
        &[1][..],
        &postcard_varint(first),
        &postcard_varint(pages),
        &postcard_varint(coding.len() as u64),
        coding,
    ];
    let ToDestination::Pending { pages } = decode_control(&payload.concat()).unwrap() else {
        panic!("another message")
    };
    pages
}

#[test]
fn sets_with_a_wrong_coding_are_refused() {
    let add = |part: &PageSet| part.add_to(&mut PageBitmap::new(200));
    let token = |length: u64, tag: u64| postcard_varint(length << 2 | tag);
    add(&set(64, 136, &[token(100, 0), token(36, 1)].concat())).unwrap();
    for (part, words) in [
        (
            set(64, 137, &token(137, 1)),
            ["a page set names pages", "64..201"],
        ),
        (
            set(u64::MAX, 2, &token(2, 1)),
            ["a page set names pages", "200 pages"],
        ),
        (
            set(65, 3, &token(3, 1)),
            ["the first page of a page set is 65", "a multiple of 64"],
        ),
        (
            set(0, 200, &token(201, 1)),
            ["length of a run", "is 201, expected 1 to 200"],
        ),
        (
            set(0, 200, &token(u64::MAX >> 2, 0)),
            ["length of a run", "expected 1 to 200"],
        ),
        (
            set(0, 200, &token(0, 0)),
            ["length of a run", "is 0, expected 1 to 200"],
        ),
        (
            set(0, 200, &token(100, 1)),
            ["the bytes left for a token of a page set is 0", "a whole varint"],
        ),
        (
            set(0, 200, &[0xff; 12]),
            ["for a token of a page set is 12", "a whole varint of 64 bits"],
        ),
        (
            set(0, 200, &token(1, 3)),
            ["tag of a token", "is 3, expected 0, 1 or 2"],
        ),
        (
            set(0, 200, &token(5, 2)),
            ["words of bits", "is 5, expected 1 to 4"],
        ),
        (
            set(0, 200, &token(u64::MAX >> 2, 2)),
            ["words of bits", "expected 1 to 4"],
        ),
        (
            set(0, 200, &[token(10, 0), token(1, 2), vec![0; 8]].concat()),
            ["bits of a page set is 10", "a multiple of 64"],
        ),
        (
            set(0, 200, &[token(4, 2), vec![0xff; 31]].concat()),
            ["left for bits of a page set is 31", "expected 32"],
        ),
        (
            set(0, 200, &[token(4, 2), vec![0xff; 32]].concat()),
            ["a word of bits", "0 in the bits beyond the last page"],
        ),
        (
            set(0, 200, &[token(200, 1), vec![0]].concat()),
            ["after the last page of a page set is 1", "expected 0"],
        ),
    ] {
        says(add(&part), &words);
    }
    let long = [
        &[1, 0, 200, 1][..],
        &postcard_varint((2 << 20) + 1),
        &vec![0; (2 << 20) + 1],
    ]
    .concat();
    says(
        decode_control::<ToDestination>(&long),
        &["a page set has 2097153 bytes", "at most 2097152"],
    );
}

#[test]
fn large_sets_cross_in_parts_and_no_part_may_be_missing() {
    // Every second page of 96 GiB: 3 MiB as bits.
    let layout = RamLayout::single("ram", 96 << 30).unwrap();
    let mut pages = PageBitmap::new(layout.pages());
    for word in 0..pages.words().len() {
        pages.insert_word(word, 0x5555_5555_5555_5555);
    }
    let messages = ToDestination::switch(&pages, true);
    assert_eq!(messages.len(), 2);
    let mut parts = PageSetParts::new(&layout);
    for (index, message) in messages.iter().enumerate() {
        let mut bytes = Vec::new();
        write_control(&mut bytes, message).unwrap();
        match read_control(&mut bytes.as_slice()).unwrap() {
            ToDestination::Pending { pages } if index == 0 => parts.add(&pages).unwrap(),
            ToDestination::Switch {
                pending,
                resend: true,
            } if index == 1 => parts.add(&pending).unwrap(),
            other => panic!("message {index} is {other:?}"),
        }
    }
    assert!(parts.finish().unwrap() == pages, "other pages came than went");

    let received = ToSource::received(&pages);
    let set = |index: usize| match &received[index] {
        ToSource::Received { pages, last } => {
            assert_eq!(*last, index == 1);
            pages
        }
        other => panic!("{other:?}"),
    };
    let mut parts = PageSetParts::new(&layout);
    says(
        parts.add(set(1)),
        &["the first page of a part of a page set", "expected 0"],
    );
    parts.add(set(0)).unwrap();
    says(
        parts.add(set(0)),
        &["the first page of a part of a page set is 0"],
    );
    says(
        parts.finish(),
        &[
            "the number of pages that a page set tells of",
            "expected 25165824",
        ],
    );
}

#[test]
fn a_set_of_an_empty_and_of_a_full_guest_is_tiny() {
    for pages in [PageBitmap::new(1 << 28), PageBitmap::full(1 << 28)] {
        let parts = PageSet::parts(&pages);
        assert!(parts.len() == 1 && parts[0].coding_bytes() <= 5, "{parts:?}");
    }
}
