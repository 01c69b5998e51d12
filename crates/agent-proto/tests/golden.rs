//! The bytes of every released protocol version. A line in `golden/` is never changed, only added: agents of that
//! version are in guests. What this build writes must be those bytes, and it must read them back.

use std::fmt::Write as _;

use vmferry_agent_proto::{
    Answer, Body, Call, Extent, FrameRange, FreeRule, Kernel, LastRun, Load, MapChunk, Request, StructPages,
    read_answer, read_request, write_answer, write_request,
};

const VERSION_1: &str = include_str!("golden/version-1.txt");

#[test]
fn version_1_is_written_and_read_as_ever() {
    let mut written = String::new();
    for (name, call) in calls() {
        let request = Request { id: 7, call };
        let mut bytes = Vec::new();
        write_request(&mut bytes, &request).unwrap();
        assert_eq!(read_request(&mut bytes.as_slice()).unwrap(), request, "{name}");
        line(&mut written, name, &bytes);
    }
    for (name, body) in bodies() {
        let answer = Answer { id: 7, body };
        let mut bytes = Vec::new();
        write_answer(&mut bytes, &answer).unwrap();
        assert_eq!(read_answer(&mut bytes.as_slice()).unwrap(), answer, "{name}");
        line(&mut written, name, &bytes);
    }
    assert_eq!(written, VERSION_1);
}

fn line(written: &mut String, name: &str, bytes: &[u8]) {
    let hex: String = bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    writeln!(written, "{name}: {hex}").unwrap();
}

fn calls() -> [(&'static str, Call); 8] {
    let frames = vec![
        FrameRange {
            first: 256,
            count: 1024,
        },
        FrameRange {
            first: 1 << 20,
            count: 1,
        },
    ];
    [
        ("ping", Call::Ping { version: 1 }),
        (
            "classify",
            Call::Classify {
                active_within_ms: 16_000,
            },
        ),
        ("free", Call::Free),
        ("load", Call::Load),
        ("last runs", Call::LastRuns),
        ("kernel", Call::Kernel),
        (
            "classify in",
            Call::ClassifyIn {
                active_within_ms: 16_000,
                frames: frames.clone(),
            },
        ),
        ("free in", Call::FreeIn { frames }),
    ]
}

fn bodies() -> [(&'static str, Body); 7] {
    let load = Load {
        averages_percent: [142, 36, 9],
        total_kib: 239_020,
        free_kib: 199_884,
        available_kib: 190_232,
    };
    let run = LastRun {
        pid: 42,
        ago_ms: 1500,
        name: "memcached".into(),
    };
    [
        ("pong", Body::Pong { version: 1 }),
        (
            "map",
            Body::Map(MapChunk {
                first_frame: 256,
                runs: vec![0x89, 0x20],
                last: true,
            }),
        ),
        ("load answer", Body::Load(load)),
        ("last runs answer", Body::LastRuns(vec![run])),
        ("kernel answer", Body::Kernel(kernel())),
        (
            "kernel unknown",
            Body::Kernel(Kernel {
                struct_pages: None,
                why_not: "locked down".into(),
                ..kernel()
            }),
        ),
        (
            "failed",
            Body::Failed {
                reason: "not root".into(),
            },
        ),
    ]
}

fn kernel() -> Kernel {
    let rule = FreeRule {
        type_offset: 48,
        type_mask: 0xf000_0080,
        type_value: 0xf000_0000,
        refcount_offset: 52,
        order_offset: 40,
        max_order: 10,
    };
    Kernel {
        release: "6.1.0-51-cloud-amd64".into(),
        struct_pages: Some(StructPages {
            size_bytes: 64,
            rule,
            extents: vec![Extent {
                first_frame: 1,
                frames: 158,
                address: 0xf80_0040,
            }],
        }),
        why_not: String::new(),
    }
}
