//! Whatever is written is read back; whatever else comes is an error or a message within all bounds, and
//! never a panic.

use proptest::collection::vec;
use proptest::prelude::*;
use vmferry_core::{PageBitmap, PageRun, RamBlock, RamLayout};
use vmferry_wire::{
    Coding, ControlMessage, DestinationSummary, EncodedPages, FaultModeWire, FaultRequest, FaultSummary,
    HeldPages, Hello, HelloReply, MAX_RUN_PAGES, Offer, OwnerState, PageFrame, PageHeader, PageSet,
    PageSetParts, SessionToken, StreamRole, ToDestination, ToSource, VerifySummary, VersionRange,
    decode_control, encode_control, read_control, write_control,
};

const PAGES: u64 = 70_000;

fn layout() -> RamLayout {
    let block = |name: &str, pages| RamBlock {
        name: name.into(),
        pages,
    };
    RamLayout::new(vec![block("low", 30_000), block("high", PAGES - 30_000)]).unwrap()
}

/// Sets of all kinds: empty, full, runs, crumbs, and crumbs here and runs there.
fn sets() -> impl Strategy<Value = PageBitmap> {
    let runs = vec((0..PAGES, 1u64..9000, any::<bool>()), 0..12);
    let crumbs = (0..PAGES, 0u64..9000, 1u64..9, any::<u64>());
    (1..=PAGES, any::<bool>(), runs, vec(crumbs, 0..3)).prop_map(|(len, full, runs, crumbs)| {
        let mut set = if full {
            PageBitmap::full(len)
        } else {
            PageBitmap::new(len)
        };
        for (first, count, add) in runs {
            let first = first.min(len);
            let run = PageRun::new(first, count.min(len - first));
            if add {
                set.insert_run(run);
            } else {
                set.remove_run(run);
            }
        }
        for (first, count, step, seed) in crumbs {
            let mut state = seed | 1;
            for page in first.min(len)..(first + count).min(len) {
                state = state
                    .wrapping_mul(6_364_136_223_846_793_005)
                    .wrapping_add(1_442_695_040_888_963_407);
                if (state >> 33) % step == 0 {
                    set.insert(page);
                }
            }
        }
        set
    })
}

fn page_sets() -> impl Strategy<Value = PageSet> {
    sets().prop_map(|set| PageSet::parts(&set).remove(0))
}

fn names() -> impl Strategy<Value = String> {
    "[a-z/-]{0,40}"
}

fn offers() -> impl Strategy<Value = Offer> {
    let blocks = vec((names(), 1u64..1 << 20), 1..64);
    let faults = prop_oneof![
        Just(None),
        Just(Some(FaultModeWire::Missing)),
        Just(Some(FaultModeWire::MissingAndStale)),
    ];
    (
        ".{0,300}",
        blocks,
        names(),
        any::<u16>(),
        faults,
        any::<bool>(),
        any::<u64>(),
    )
        .prop_map(|(spec_json, blocks, strategy, streams, faults, verify, epoch)| {
            let blocks = blocks
                .into_iter()
                .map(|(name, pages)| RamBlock { name, pages })
                .collect();
            let layout = RamLayout::new(blocks).unwrap();
            Offer {
                spec_json,
                layout,
                strategy,
                streams,
                faults,
                verify,
                epoch,
            }
        })
}

fn to_destination() -> impl Strategy<Value = ToDestination> {
    prop_oneof![
        offers().prop_map(ToDestination::Offer),
        page_sets().prop_map(|pages| ToDestination::Pending { pages }),
        (page_sets(), any::<bool>()).prop_map(|(pending, resend)| ToDestination::Switch { pending, resend }),
        (any::<bool>(), vec(any::<u8>(), 0..5000))
            .prop_map(|(last, bytes)| ToDestination::DeviceState { last, bytes }),
        (any::<u64>(), vec(any::<u128>(), 0..300))
            .prop_map(|(first, hashes)| ToDestination::PageHashes { first, hashes }),
        any::<u64>().prop_map(|epoch| ToDestination::Prepare { epoch }),
        any::<u64>().prop_map(|epoch| ToDestination::Commit { epoch }),
        Just(ToDestination::PushedAll),
        "\\PC{0,100}".prop_map(|reason| ToDestination::Abort { reason }),
        any::<u64>().prop_map(|epoch| ToDestination::Query { epoch }),
        any::<u64>().prop_map(|nonce| ToDestination::Ping { nonce }),
        "\\PC{0,200}".prop_map(|plan_json| ToDestination::Disks { plan_json }),
    ]
}

fn summaries() -> impl Strategy<Value = DestinationSummary> {
    let faults = (
        any::<u64>(),
        any::<u64>(),
        any::<u64>(),
        0f64..1e9,
        0f64..1e9,
        0f64..1e9,
    )
        .prop_map(|(count, network, local, p50_us, p99_us, max_us)| FaultSummary {
            count,
            network,
            local,
            p50_us,
            p99_us,
            max_us,
        });
    let verified = proptest::option::of(
        any::<(u64, u64)>().prop_map(|(pages, mismatches)| VerifySummary { pages, mismatches }),
    );
    (faults, 0f64..1e6, any::<u64>(), verified, any::<u64>()).prop_map(
        |(faults, cpu_seconds, memory_bytes, verified, pages_received)| DestinationSummary {
            faults,
            cpu_seconds,
            memory_bytes,
            verified,
            pages_received,
        },
    )
}

fn to_source() -> impl Strategy<Value = ToSource> {
    let states = [
        OwnerState::Unknown,
        OwnerState::Prepared,
        OwnerState::Owner,
        OwnerState::Declined,
    ]
    .map(Just);
    let states = proptest::strategy::Union::new(states);
    prop_oneof![
        any::<u16>().prop_map(|streams| ToSource::Accept { streams }),
        "\\PC{0,100}".prop_map(|reason| ToSource::Refuse { reason }),
        any::<(u32, u64, u64)>().prop_map(|(round, pages, bytes)| ToSource::RoundReceived {
            round,
            pages,
            bytes
        }),
        any::<u64>().prop_map(|epoch| ToSource::Ready { epoch }),
        any::<u64>().prop_map(|epoch| ToSource::Running { epoch }),
        (any::<u64>(), states).prop_map(|(epoch, state)| ToSource::Owner { epoch, state }),
        (page_sets(), any::<bool>()).prop_map(|(pages, last)| ToSource::Received { pages, last }),
        summaries().prop_map(|summary| ToSource::Complete { summary }),
        "\\PC{0,100}".prop_map(|reason| ToSource::Failed { reason }),
        any::<(u64, u64)>().prop_map(|(faults, pages)| ToSource::Progress { faults, pages }),
        any::<u64>().prop_map(|nonce| ToSource::Pong { nonce }),
        "\\PC{0,200}".prop_map(|places_json| ToSource::DisksPlaced { places_json }),
        (prop::collection::vec(any::<u64>(), 0..100), any::<bool>())
            .prop_map(|(fingerprints, last)| ToSource::Held { fingerprints, last }),
    ]
}

fn frames() -> impl Strategy<Value = PageFrame> {
    let runs = (0..PAGES, 1..=MAX_RUN_PAGES)
        .prop_map(|(first, count)| PageRun::new(first, count.min(PAGES - first)));
    let codings = prop_oneof![Just(Coding::Lz4), Just(Coding::Zstd), Just(Coding::Delta)];
    let encoded = (runs.clone(), codings);
    prop_oneof![
        (runs.clone(), any::<u32>(), any::<Option<u32>>()).prop_map(|(run, round, crc)| PageFrame::Raw {
            run,
            round,
            crc
        }),
        (runs.clone(), any::<u32>(), any::<u8>()).prop_map(|(run, round, byte)| PageFrame::Uniform {
            run,
            round,
            byte
        }),
        (encoded, any::<u32>(), any::<u32>(), 1u32..4096, any::<u32>()).prop_map(
            |((run, coding), round, len, more, crc)| {
                PageFrame::Encoded(EncodedPages {
                    run,
                    round,
                    coding,
                    len: (len % run.bytes() as u32).max(more.min(run.bytes() as u32 - 1)),
                    crc,
                })
            }
        ),
        (runs, any::<u32>(), any::<u32>()).prop_map(|(run, round, crc)| PageFrame::Held(HeldPages {
            run,
            round,
            crc
        })),
        any::<u32>().prop_map(|round| PageFrame::RoundEnd { round }),
        Just(PageFrame::PushEnd),
    ]
}

fn hellos() -> impl Strategy<Value = Hello> {
    let roles = prop_oneof![
        any::<bool>().prop_map(|resume| StreamRole::Control { resume }),
        any::<u16>().prop_map(|index| StreamRole::Pages { index }),
        Just(StreamRole::Faults),
        Just(StreamRole::Probe),
        any::<u16>().prop_map(|index| StreamRole::Disk { index }),
    ];
    (any::<u16>(), any::<u16>(), any::<[u8; 16]>(), roles).prop_map(|(min, max, token, role)| Hello {
        versions: VersionRange { min, max },
        session: SessionToken(token),
        role,
    })
}

/// What may happen to bytes on their way.
#[derive(Clone, Debug)]
enum Damage {
    Flip(prop::sample::Index, u8),
    Cut(prop::sample::Index),
    Insert(prop::sample::Index, Vec<u8>),
}

fn damage() -> impl Strategy<Value = Damage> {
    prop_oneof![
        (any::<prop::sample::Index>(), 1u8..).prop_map(|(at, bits)| Damage::Flip(at, bits)),
        any::<prop::sample::Index>().prop_map(Damage::Cut),
        (any::<prop::sample::Index>(), vec(any::<u8>(), 1..9))
            .prop_map(|(at, bytes)| Damage::Insert(at, bytes)),
    ]
}

fn damaged(mut bytes: Vec<u8>, damage: &Damage) -> Vec<u8> {
    match damage {
        Damage::Flip(at, bits) => {
            let at = at.index(bytes.len());
            bytes[at] ^= bits;
        }
        Damage::Cut(at) => bytes.truncate(at.index(bytes.len())),
        Damage::Insert(at, more) => {
            let at = at.index(bytes.len());
            bytes.splice(at..at, more.iter().copied());
        }
    }
    bytes
}

fn written<M: ControlMessage>(message: &M) -> Vec<u8> {
    let mut bytes = Vec::new();
    write_control(&mut bytes, message).unwrap();
    bytes
}

/// A message that came through damage: only in the payload's own bytes after its checksum was made right.
fn decodes_within_bounds<M: ControlMessage>(payload: &[u8]) {
    if let Ok(message) = decode_control::<M>(payload) {
        let again = encode_control(&message).expect("a message that was read can be written");
        assert!(
            again.len() <= payload.len() + 8,
            "{} bytes became {}",
            payload.len(),
            again.len()
        );
    }
}

proptest! {
    #[test]
    fn messages_come_as_they_went(down in to_destination(), up in to_source()) {
        prop_assert_eq!(&read_control::<ToDestination>(&mut written(&down).as_slice()).unwrap(), &down);
        prop_assert_eq!(&read_control::<ToSource>(&mut written(&up).as_slice()).unwrap(), &up);
        prop_assert!(read_control::<ToSource>(&mut written(&down).as_slice()).is_err(), "the wrong way round");
        prop_assert!(read_control::<ToDestination>(&mut written(&up).as_slice()).is_err(), "the wrong way round");
    }

    #[test]
    fn messages_follow_each_other(messages in vec(to_source(), 1..6)) {
        let bytes: Vec<u8> = messages.iter().flat_map(written).collect();
        let mut reader = bytes.as_slice();
        for message in &messages {
            prop_assert_eq!(&read_control::<ToSource>(&mut reader).unwrap(), message);
        }
        prop_assert!(read_control::<ToSource>(&mut reader).unwrap_err().is_lost_connection());
    }

    /// Up to 8 bytes inserted may be a frame of their own only by breaking a checksum of 32 bits.
    #[test]
    fn damaged_messages_are_refused(message in to_destination(), damage in damage()) {
        let bytes = written(&message);
        let came = damaged(bytes.clone(), &damage);
        prop_assume!(!came.starts_with(&bytes));
        prop_assert!(read_control::<ToDestination>(&mut came.as_slice()).is_err());
    }

    /// A peer that means harm has its checksums right.
    #[test]
    fn harmful_payloads_are_refused_or_within_bounds(
        down in to_destination(), up in to_source(), damages in vec(damage(), 1..4),
    ) {
        let mut payload = encode_control(&down).unwrap();
        for damage in &damages {
            if payload.is_empty() { break; }
            payload = damaged(payload, damage);
        }
        decodes_within_bounds::<ToDestination>(&payload);
        let mut payload = encode_control(&up).unwrap();
        for damage in &damages {
            if payload.is_empty() { break; }
            payload = damaged(payload, damage);
        }
        decodes_within_bounds::<ToSource>(&payload);
    }

    #[test]
    fn garbage_is_refused_everywhere(bytes in vec(any::<u8>(), 0..200), number in 0u8..16) {
        let layout = layout();
        prop_assert!(Hello::read(&mut bytes.as_slice()).is_err());
        prop_assert!(HelloReply::read(&mut bytes.as_slice()).is_err());
        prop_assert!(read_control::<ToDestination>(&mut bytes.as_slice()).is_err());
        prop_assert!(read_control::<ToSource>(&mut bytes.as_slice()).is_err());
        prop_assert!(PageFrame::read(&mut bytes.as_slice(), &layout).is_err());
        prop_assert!(FaultRequest::read(&mut bytes.as_slice(), &layout).is_err());
        let payload = [&[number], bytes.as_slice()].concat();
        decodes_within_bounds::<ToDestination>(&payload);
        decodes_within_bounds::<ToSource>(&payload);
    }

    #[test]
    fn page_frames_come_as_they_went(frame in frames(), damage in damage()) {
        let bytes = frame.header().encode();
        prop_assert_eq!(PageFrame::read(&mut bytes.as_slice(), &layout()).unwrap(), frame);
        let came = damaged(bytes.to_vec(), &damage);
        prop_assume!(!came.starts_with(&bytes));
        prop_assert!(PageFrame::read(&mut came.as_slice(), &layout()).is_err());
    }

    /// Any header whose checksum is right gives a frame within RAM and bounds, with just these bytes.
    #[test]
    fn harmful_page_headers_are_refused_or_exact(
        frame in frames(), flips in vec((0usize..28, any::<u8>()), 1..4), kind in 0u8..40,
    ) {
        let mut bytes = frame.header().encode();
        for (at, bits) in flips {
            bytes[at] ^= bits;
        }
        if kind < 20 {
            bytes[0] = kind;
        }
        let crc = vmferry_wire::crc32(&bytes[..28]);
        bytes[28..].copy_from_slice(&crc.to_le_bytes());
        if let Ok(came) = PageHeader::decode(&bytes, &layout()) {
            prop_assert_eq!(came.header().encode(), bytes);
            prop_assert!(came.payload_bytes() <= MAX_RUN_PAGES * 4096);
            if let Some(run) = came.run() {
                prop_assert!(layout().check(run).is_ok() && run.count <= MAX_RUN_PAGES);
            }
        }
    }

    #[test]
    fn fault_requests_come_as_they_went(page in 0..PAGES, beyond in PAGES.., seq in any::<u32>(), damage in damage()) {
        let request = FaultRequest { page, seq };
        let bytes = request.encode();
        prop_assert_eq!(FaultRequest::read(&mut bytes.as_slice(), &layout()).unwrap(), request);
        let outside = FaultRequest { page: beyond, seq }.encode();
        prop_assert!(FaultRequest::read(&mut outside.as_slice(), &layout()).is_err());
        let came = damaged(bytes.to_vec(), &damage);
        prop_assume!(!came.starts_with(&bytes));
        prop_assert!(FaultRequest::read(&mut came.as_slice(), &layout()).is_err());
    }

    #[test]
    fn hellos_come_as_they_went(hello in hellos(), damage in damage()) {
        let bytes = hello.encode();
        prop_assert_eq!(Hello::read(&mut bytes.as_slice()).unwrap(), hello);
        let came = damaged(bytes.to_vec(), &damage);
        prop_assume!(!came.starts_with(&bytes));
        prop_assert!(Hello::read(&mut came.as_slice()).is_err());
    }

    #[test]
    fn replies_come_as_they_went(reason in "\\PC{0,200}", version in any::<u16>(), damage in damage()) {
        for reply in [HelloReply::Refused { reason }, HelloReply::Welcome { version }] {
            let bytes = reply.encode();
            prop_assert_eq!(&HelloReply::read(&mut bytes.as_slice()).unwrap(), &reply);
            let came = damaged(bytes.clone(), &damage);
            if !came.starts_with(&bytes) {
                prop_assert!(HelloReply::read(&mut came.as_slice()).is_err());
            }
        }
    }

    #[test]
    fn sets_come_as_they_went(set in sets()) {
        let layout = RamLayout::single("ram", set.len() * 4096).unwrap();
        let mut parts = PageSetParts::new(&layout);
        let mut bytes = 0;
        for part in PageSet::parts(&set) {
            bytes += part.coding_bytes();
            parts.add(&part).unwrap();
        }
        prop_assert_eq!(parts.finish().unwrap(), set.clone());
        let most = set.len().div_ceil(8) + set.len() / 1024 + 32;
        prop_assert!(bytes as u64 <= most, "{bytes} bytes for {} pages", set.len());
        prop_assert!(bytes as u64 <= 10 * (2 * set.runs().count() as u64 + 1), "{bytes} bytes for few runs");
    }

    /// Parts of a peer that means harm: never a page beyond the set, never a panic.
    #[test]
    fn harmful_sets_are_refused_or_within_ram(set in page_sets(), damages in vec(damage(), 1..4), len in 1..PAGES) {
        let mut payload = encode_control(&ToDestination::Pending { pages: set }).unwrap();
        for damage in &damages {
            if payload.is_empty() { break; }
            payload = damaged(payload, damage);
        }
        if let Ok(ToDestination::Pending { pages }) = decode_control(&payload) {
            let mut came = PageBitmap::new(len);
            if pages.add_to(&mut came).is_ok() {
                let covered = pages.covers();
                prop_assert!(covered.end <= len);
                let count = came.count();
                came.remove_run(PageRun::new(covered.start, covered.end - covered.start));
                prop_assert!(came.is_empty(), "{count} pages, some of them not covered by the part");
            }
        }
    }
}
