//! Every encoding moves a busy guest with every page right, is used where it helps, and falls back where it must.

mod common;

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::thread;
use std::time::Duration;

use common::proxy::Link;
use common::{Pair, assert_healthy, busy};
use vmferry_core::report::{Outcome, Report};
use vmferry_core::{Limits, PAGE_SIZE, Strategy};
use vmferry_guest_synth::{Fill, LoadConfig, SynthConfig};
use vmferry_runtime::Request;
use vmferry_transport::Endpoint;
use vmferry_wire::{Hello, VersionRange};

/// Rounds for sure, and so pages that cross again.
fn some_rounds() -> Limits {
    Limits {
        downtime: Duration::from_micros(1),
        rounds: 5,
        ..Limits::default()
    }
}

fn request(pair: &Pair, strategy: Strategy, encoding: &str) -> Request {
    Request {
        limits: some_rounds(),
        encoding: encoding.parse().unwrap(),
        ..pair.request(strategy)
    }
}

fn moves(config: &SynthConfig, strategy: Strategy, encoding: &str) -> Report {
    let pair = Pair::new();
    let request = request(&pair, strategy, encoding);
    moves_by(&pair, config, request)
}

fn moves_by(pair: &Pair, config: &SynthConfig, request: Request) -> Report {
    let encoding = request.encoding;
    let (vm, dir) = pair.launch("vm", config);
    let report = pair.migrate(vm, dir, request);
    assert_eq!(
        report.outcome,
        Outcome::Completed,
        "{encoding}: {:?}",
        report.error
    );
    let verified = report.verified.expect("it was asked for");
    assert_eq!(
        (verified.pages, verified.mismatches),
        (config.memory_bytes / PAGE_SIZE, 0),
        "{encoding}"
    );
    assert_healthy(&pair.destination, "vm");
    adds_up(&report);
    report
}

/// The figures of a report say the same in different words.
fn adds_up(report: &Report) {
    let (pages, encoding) = (&report.pages, &report.encoding);
    assert_eq!(pages.sent, encoding.pages.sum(), "{report:#?}");
    assert_eq!(pages.raw, encoding.pages.raw);
    assert_eq!(pages.uniform, encoding.pages.uniform);
    assert_eq!(pages.compressed, encoding.pages.lz4 + encoding.pages.zstd);
    assert_eq!(pages.delta, encoding.pages.delta);
    let of_pages = (pages.sent - pages.uniform) * PAGE_SIZE - encoding.saved_bytes;
    assert!(
        report.bytes_on_wire >= of_pages && report.bytes_on_wire < of_pages + of_pages / 8 + (1 << 20),
        "{} bytes for {of_pages} of pages",
        report.bytes_on_wire
    );
}

#[test]
fn raw_pages_are_left_as_they_are() {
    let report = moves(&busy(), Strategy::PreCopy, "raw");
    assert_eq!((report.pages.compressed, report.pages.delta), (0, 0));
    assert!(report.pages.raw > 0 && report.pages.uniform > 0);
    assert_eq!(report.encoding.saved_bytes, 0);
}

#[test]
fn compressed_pages_and_those_that_do_not_shrink() {
    for encoding in ["lz4", "zstd", "zstd:7"] {
        let strategies = [Strategy::PreCopy, Strategy::PostCopyPush, Strategy::Hybrid];
        // A level is no other way than its codec.
        let count = if encoding == "zstd:7" { 1 } else { 3 };
        for strategy in strategies.into_iter().take(count) {
            let report = moves(&busy(), strategy, encoding);
            let pages = report.encoding.pages;
            let (used, other) = match encoding {
                "lz4" => (pages.lz4, pages.zstd),
                _ => (pages.zstd, pages.lz4),
            };
            assert!(used > 500 && other == 0, "{encoding}, {strategy}: {pages:?}");
            assert!(pages.raw > 500, "a part of the guest is noise: {pages:?}");
            assert!(report.encoding.saved_bytes > 1 << 20, "{:?}", report.encoding);
            assert!(report.encoding.cpu_seconds > 0.0);
        }
    }
}

#[test]
fn differences_while_the_guest_runs_at_the_source_and_none_later() {
    for (encoding, compressed) in [("delta", false), ("lz4+delta", true), ("zstd:3+delta", true)] {
        let report = moves(&busy(), Strategy::PreCopy, encoding);
        assert!(report.pages.delta > 100, "{encoding}: {:?}", report.pages);
        assert_eq!(report.pages.compressed > 0, compressed, "{encoding}");
        let first = report.rounds.first().map(|round| round.pages_sent);
        assert!(
            first.is_some_and(|first| report.pages.delta <= report.pages.sent - first),
            "no page has an earlier version in the first round: {report:#?}"
        );
        // There each page crosses at most once before the resume.
        for strategy in [Strategy::Hybrid, Strategy::PostCopyPush] {
            assert_eq!(moves(&busy(), strategy, encoding).pages.delta, 0, "{strategy}");
        }
    }
}

#[test]
fn the_cache_of_versions_is_bounded() {
    let pair = Pair::new();
    let none = Request {
        delta_cache_bytes: Some(0),
        ..request(&pair, Strategy::PreCopy, "delta")
    };
    assert_eq!(moves_by(&pair, &busy(), none).pages.delta, 0);
    let pair = Pair::new();
    let small = Request {
        delta_cache_bytes: Some(1 << 20),
        ..request(&pair, Strategy::PreCopy, "delta")
    };
    let report = moves_by(&pair, &busy(), small);
    let most = 256 * (report.rounds.len() as u64 - 1);
    assert!(
        report.pages.delta <= most,
        "{} of at most {most}",
        report.pages.delta
    );
}

#[test]
fn a_pre_copy_that_goes_on_as_post_copy_sends_whole_pages_from_then_on() {
    let pair = Pair::new();
    let request = Request {
        limits: Limits {
            at_limit: vmferry_core::AtLimit::PostCopy,
            ..some_rounds()
        },
        ..request(&pair, Strategy::PreCopy, "lz4+delta")
    };
    let report = moves_by(&pair, &busy(), request);
    assert!(report.pages.delta > 0, "{:?}", report.pages);
}

/// A guest of which most is static: content of one kind.
fn still(compressible_percent: u8) -> SynthConfig {
    SynthConfig {
        loads: vec![LoadConfig::Write {
            region_mib: 1,
            rate_mib_per_s: Some(2),
        }],
        fill: Fill {
            mib: 40,
            zero_percent: 0,
            uniform_percent: 0,
            compressible_percent,
        },
        seed: 3,
        ..SynthConfig::new(64 << 20)
    }
}

/// Over a link of so many bytes a second for each stream.
fn over_a_slow_link(config: &SynthConfig, encoding: &str, bytes_per_s: u64) -> Report {
    let pair = Pair::new();
    let link = Link::to(&pair.endpoint);
    link.limit(bytes_per_s);
    let request = Request {
        to: link.endpoint().clone(),
        limits: Limits::default(),
        ..request(&pair, Strategy::PreCopy, encoding)
    };
    moves_by(&pair, config, request)
}

#[test]
fn auto_compresses_for_a_slow_link_and_leaves_noise_alone() {
    let text = over_a_slow_link(&still(100), "auto", 10_000_000);
    assert!(
        text.pages.compressed > text.pages.sent / 2,
        "{:?} over time: {:#?}",
        text.pages,
        text.encoding.over_time
    );
    assert!(text.encoding.over_time.len() > 3, "{:?}", text.encoding.over_time);
    let noise = over_a_slow_link(&still(0), "auto", 20_000_000);
    assert!(
        noise.pages.raw > noise.pages.sent * 9 / 10,
        "{:?} over time: {:#?}",
        noise.pages,
        noise.encoding.over_time
    );
}

/// Stands before a host and makes it one of version 1, for which `connections` are.
fn older(host: &Endpoint) -> Endpoint {
    let Endpoint::Tcp { host, port } = host.clone() else {
        panic!("a TCP endpoint")
    };
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let endpoint = Endpoint::tcp("127.0.0.1", listener.local_addr().unwrap().port());
    thread::spawn(move || {
        for client in listener.incoming() {
            let (mut client, mut server) = (
                client.unwrap(),
                TcpStream::connect((host.as_str(), port)).unwrap(),
            );
            let hello = Hello {
                versions: VersionRange { min: 1, max: 1 },
                ..Hello::read(&mut client).unwrap()
            };
            hello.write(&mut server).unwrap();
            let (client2, server2) = (client.try_clone().unwrap(), server.try_clone().unwrap());
            thread::spawn(move || forward(client2, server2));
            thread::spawn(move || forward(server, client));
        }
    });
    endpoint
}

fn forward(mut from: TcpStream, mut to: TcpStream) {
    let mut buffer = vec![0; 64 << 10];
    while let Ok(count @ 1..) = from.read(&mut buffer) {
        if to.write_all(&buffer[..count]).is_err() {
            break;
        }
    }
    let _ = to.shutdown(std::net::Shutdown::Both);
}

#[test]
fn to_a_destination_that_knows_no_encodings_pages_cross_raw_and_it_says_so() {
    for encoding in ["lz4+delta", "auto"] {
        let pair = Pair::new();
        let request = Request {
            to: older(&pair.endpoint),
            ..request(&pair, Strategy::PreCopy, encoding)
        };
        let report = moves_by(&pair, &busy(), request);
        assert_eq!((report.pages.compressed, report.pages.delta), (0, 0));
        let note = report
            .notes
            .iter()
            .find(|note| note.contains("protocol version 1"));
        assert!(
            note.is_some_and(|note| note.contains(encoding) && note.contains("crossed raw")),
            "{:?}",
            report.notes
        );
    }
}
