//! Return trips: what a host kept of a guest that left does not cross again.

use std::fs;
use std::path::Path;

use serde_json::Value;
use vmferry_tests::{Hosts, TestGuest, need, shared_turn};

fn bytes(report: &Value) -> u64 {
    report["bytes_on_wire"].as_u64().unwrap()
}

/// Files below a folder.
fn files(folder: &Path, found: &mut Vec<std::path::PathBuf>) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        match path.is_dir() {
            true => files(&path, found),
            false => found.push(path),
        }
    }
}

/// A guest leaves, comes back, leaves by post-copy, and comes back to a store with holes.
#[test]
fn a_guest_comes_back_to_the_pages_that_its_host_kept() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let mut hosts = Hosts::new();
    let guest = TestGuest::new("vm", hosts.dir.path(), 256, "write:8:10", &[]);
    hosts.run(&guest);
    guest.console.wait_for("guest-load: ok");
    let taken = hosts.source.call(&["checkpoint", "vm"]);
    assert_eq!(taken.code, Some(0), "{taken:?}");
    let store = hosts.source.call(&["status"]).expect_json()["host"]["state_dir"]
        .as_str()
        .map(|dir| Path::new(dir).join("checkpoints"));

    let there = hosts
        .migrate("vm", &["--encoding", "raw", "--verify", "--strategy", "pre-copy"])
        .expect_json();
    // Nobody has anything there.
    assert_eq!(there["pages"]["deduplicated"], 0, "{there:#}");
    assert!(there.get("reuse").is_none(), "{there:#}");
    for strategy in ["pre-copy", "post-copy-push", "hybrid"] {
        hosts.swap();
        let options = ["--encoding", "raw", "--verify", "--reuse", "--strategy", strategy];
        let back = hosts.migrate("vm", &options).expect_json();
        assert_eq!(back["outcome"], "completed", "{back:#}");
        assert_eq!(back["verified"]["mismatches"], 0, "{back:#}");
        guest.console.assert_healthy(2);
        println!(
            "{strategy}: {} bytes after {}, {}",
            bytes(&back),
            bytes(&there),
            back["reuse"]
        );
        let reuse = &back["reuse"];
        assert_eq!(reuse["missed_pages"], 0, "{back:#}");
        assert!(back["pages"]["deduplicated"].as_u64().unwrap() > 5000, "{back:#}");
        // Of what it holds it wrote a part since; the rest crosses as 32 bytes a page.
        assert!(
            bytes(&back) < bytes(&there) / 2,
            "{} of {}: {back:#}",
            bytes(&back),
            bytes(&there)
        );
        // Away again, to where nothing is kept.
        hosts.swap();
        let away = hosts
            .migrate("vm", &["--encoding", "raw", "--reuse"])
            .expect_json();
        assert_eq!(away["reuse"]["offered_pages"], 0, "{away:#}");
    }

    // A third of the chunks is damaged, a third is gone.
    let mut chunks = Vec::new();
    files(&store.unwrap().join("chunks"), &mut chunks);
    assert!(chunks.len() > 50);
    for (index, chunk) in chunks.iter().enumerate() {
        match index % 3 {
            0 => fs::remove_file(chunk).unwrap(),
            1 => {
                let mut bytes = fs::read(chunk).unwrap();
                let last = bytes.len() - 1;
                bytes[last] ^= 0xff;
                fs::write(chunk, bytes).unwrap();
            }
            _ => {}
        }
    }
    hosts.swap();
    let options = [
        "--encoding",
        "raw",
        "--verify",
        "--reuse",
        "--strategy",
        "pre-copy",
    ];
    let back = hosts.migrate("vm", &options).expect_json();
    assert_eq!(back["outcome"], "completed", "{back:#}");
    assert_eq!(back["verified"]["mismatches"], 0, "{back:#}");
    assert!(back["reuse"]["missed_pages"].as_u64().unwrap() > 0, "{back:#}");
    guest.console.assert_healthy(2);
}
