//! Workloads in a Linux guest that moves while clients outside watch: what each of them counts goes on, and nothing that it checks is
//! lost.

use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;
use vmferry_tests::{Answer, need, require, turn, vmferry};

/// One run, verified page by page, with so many seconds before the migration and after it.
fn scenario(memory: &str, workload: &str, beside_s: u32) -> String {
    format!(
        "title = 'one workload'\nrepetitions = 1\nwarm_up_s = {beside_s}\ncool_down_s = {beside_s}\nlinks = ['1gbit']\n\
         [[guest]]\nname = 'Linux'\nkind = 'qemu'\nmemory = '{memory}'\nworkload = {{ {workload} }}\n\
         [[variant]]\nstrategy = 'pre-copy'\noptions = {{ verify = true, max-rounds = 5 }}\n"
    )
}

fn bench(folder: &Path, scenario: &str, image: &Path) -> Value {
    let file = folder.join("workload.toml");
    std::fs::write(&file, scenario).unwrap();
    let mut command = Command::new(vmferry::program());
    command
        .arg("bench")
        .arg(&file)
        .arg("--json")
        .arg("--image")
        .arg(image);
    let results = Answer::of(command.stdin(Stdio::null())).json();
    results["runs"][0]["outcome"].clone()
}

/// Moves a guest with this workload, and returns what its clients saw: something done, no error, and that it stopped. How much they saw
/// done is a matter of the machine's speed.
fn moved(memory: &str, workload: &str, beside_s: u32) -> Value {
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    let outcome = bench(
        folder.path(),
        &scenario(memory, workload, beside_s),
        &require::image_dir(),
    );
    let measured = &outcome["measured"];
    assert!(measured.is_object(), "{outcome:#}");
    let verified = &measured["account"]["vmferry"]["verified"];
    assert!(
        verified["mismatches"] == 0 && verified["pages"].as_u64() > Some(1000),
        "{verified}"
    );
    let seen = &measured["operations"];
    assert_eq!(seen["errors"], 0, "{seen:#}");
    assert!(seen["count"].as_u64() > Some(0), "{seen:#}");
    // The pages are compared while the guest stands still, and clients see that.
    assert!(seen["longest_gap_ms"].as_f64().unwrap() > 1.0, "{seen:#}");
    seen.clone()
}

/// Whether the guest image has a layer; says so where it has not.
fn has_layer(name: &str) -> bool {
    let there = require::image_dir().join(format!("layer-{name}.cpio")).exists();
    if !there {
        println!(
            "skipped: no layer {name} in the guest image; make it with `cargo xtask image --layers {name}`"
        );
    }
    there
}

#[test]
fn redis_with_several_clients() {
    need!(Qemu, Root, Userfaultfd);
    if !has_layer("redis") {
        return;
    }
    let server =
        "kind = 'redis', mib = 64, values = 2048, value_bytes = 4096, set_get = '5:5', connections = 4";
    let seen = moved("384M", server, 1);
    assert_eq!(seen["unit"], "operations");
    let latency = &seen["latency"];
    for phase in ["before", "during", "after"] {
        let figure = |name: &str| latency[phase][name].as_f64().unwrap();
        assert!(
            figure("count") > 0.0 && figure("p50_ms") > 0.0,
            "{phase}: {latency:#}"
        );
        assert!(figure("p50_ms") <= figure("p99_ms") && figure("p99_ms") <= figure("max_ms"));
    }
    // One of the operations that were under way when it stopped waited for all of it.
    let longest = latency["during"]["max_ms"].as_f64().unwrap();
    assert!(
        longest > 0.9 * seen["longest_gap_ms"].as_f64().unwrap(),
        "{latency:#}"
    );
    let windows = latency["windows"].as_array().unwrap();
    assert_eq!(windows.len(), seen["windows"].as_array().unwrap().len());
}

#[test]
fn a_processor_at_40_percent() {
    need!(Qemu, Root, Userfaultfd);
    let seen = moved("192M", "kind = 'cpu', percent = 40", 1);
    assert_eq!((&seen["unit"], &seen["latency"]), (&"loops".into(), &Value::Null));
}

#[test]
fn gzip_of_text() {
    need!(Qemu, Root, Userfaultfd);
    let seen = moved("192M", "kind = 'gzip', mib = 4", 1);
    assert_eq!(seen["unit"], "bytes");
}

#[test]
fn a_disk_that_is_read() {
    need!(Qemu, Root, Userfaultfd);
    moved("192M", "kind = 'disk-read', mib = 32", 1);
}

#[test]
fn a_stream_to_the_guest() {
    need!(Qemu, Root, Userfaultfd);
    let seen = moved("192M", "kind = 'net-receive', mib_per_s = 8", 1);
    let rate = seen["before_per_s"].as_f64().unwrap();
    assert!(rate < 1.2 * f64::from(8 << 20), "it is paced: {rate}");
}

#[test]
fn a_stream_from_the_guest() {
    need!(Qemu, Root, Userfaultfd);
    moved("192M", "kind = 'net-send'", 1);
}

#[test]
fn a_database_whose_sums_agree() {
    need!(Qemu, Root, Userfaultfd);
    if !has_layer("database") {
        return;
    }
    let seen = moved("768M", "kind = 'tpcc', mib = 64, connections = 2", 3);
    assert_eq!(seen["unit"], "transactions");
    assert!(seen["latency"]["during"]["count"].as_u64() > Some(0), "{seen:#}");
}

#[test]
fn a_build() {
    need!(Qemu, Root, Userfaultfd);
    if has_layer("compile") {
        assert_eq!(moved("512M", "kind = 'compile'", 8)["unit"], "files");
    }
}

#[test]
fn an_image_without_a_layer_is_a_run_that_failed_and_says_how_to_make_it() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = turn();
    let folder = tempfile::tempdir().unwrap();
    for name in ["vmlinuz", "initramfs.cpio", "image.json"] {
        std::os::unix::fs::symlink(require::image_dir().join(name), folder.path().join(name)).unwrap();
    }
    let outcome = bench(
        folder.path(),
        &scenario("256M", "kind = 'compile'", 1),
        folder.path(),
    );
    let why = outcome["failed"]["why"].as_str().unwrap();
    assert!(why.contains("cargo xtask image --layers compile"), "{why}");
}
