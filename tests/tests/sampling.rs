//! The daemon learns about a real guest on real QEMU while it runs, and its migrations begin with that.

use std::thread;
use std::time::{Duration, Instant};

use serde_json::Value;
use vmferry_tests::{Hosts, TestGuest, need, turn};

/// What the daemon of the source knows of the guest.
fn learned(hosts: &Hosts) -> Value {
    hosts.source.call(&["status", "vm"]).expect_json()["guest"]["learned"].clone()
}

fn wait_until_it_fits(hosts: &Hosts) -> Value {
    // As many tests as it takes, with pauses of seconds in between.
    let until = Instant::now() + Duration::from_secs(900);
    loop {
        let known = learned(hosts);
        if known["fits"] == true {
            return known;
        }
        assert!(
            Instant::now() < until,
            "the model never fits the guest: {known:#}"
        );
        thread::sleep(Duration::from_millis(200));
    }
}

#[test]
fn a_daemon_learns_about_its_guest_keeps_it_and_uses_it() {
    need!(Qemu, Root, Userfaultfd);
    // By itself: on a crowded machine samples come late and are thrown away.
    let _turn = turn();
    let mut hosts = Hosts::new();
    // A loop over little memory as fast as it goes: each sample shows all of it.
    let guest = TestGuest::new("vm", hosts.dir.path(), 192, "write:2:0", &[]);
    hosts.run(&guest);
    let known = wait_until_it_fits(&hosts);
    println!("{known:#}");
    let number = |name: &str| {
        known[name]
            .as_f64()
            .unwrap_or_else(|| panic!("{name}: {known:#}"))
    };
    assert!(
        number("working_set_pages") >= 400.0,
        "2 MiB are 512 pages: {known:#}"
    );
    assert!(number("states_seen") >= 1.0 && number("samples") >= 40.0);
    assert_eq!(number("budget_percent"), 3.0);
    assert_eq!(known["problem"], Value::Null);
    let table = hosts.source.command().args(["status", "vm"]).output().unwrap();
    let table = String::from_utf8_lossy(&table.stdout).into_owned();
    println!("{table}");
    for words in [
        "learned while it runs",
        "all pages, in bursts of 21 samples",
        "fits the guest",
        "of the guest's time",
    ] {
        assert!(table.contains(words), "{words:?} is not in {table}");
    }

    // The next daemon goes on with it, asks one test more, and leaves no file behind.
    hosts.renew_source();
    hosts.source.assert_owns("vm");
    assert!(
        learned(&hosts)["samples"].as_u64() >= known["samples"].as_u64(),
        "{:#}",
        learned(&hosts)
    );
    assert!(!hosts.source.guest_dir("vm").join("learned").exists());
    wait_until_it_fits(&hosts);

    // Killed in the middle of tracking: the next one begins anew, and the guest is none the worse.
    hosts.crash_source();
    hosts.source.assert_owns("vm");
    guest.console.assert_healthy(2);
    wait_until_it_fits(&hosts);

    let report = hosts
        .migrate("vm", &["--strategy", "hybrid-learning", "--verify"])
        .expect_json();
    assert_eq!(report["verified"]["mismatches"], 0, "{report:#}");
    let notes = report["notes"].to_string();
    assert!(notes.contains("pages by the host's sampler"), "{notes}");
    assert!(report["pages"]["filtered"].as_u64() > Some(0), "{report:#}");
    guest.console.assert_healthy(2);
    assert!(
        !hosts.source.guest_dir("vm").exists(),
        "what was known of it left with it"
    );
}

#[test]
fn a_kept_model_filters_a_migration_from_its_first_samples_on() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = turn();
    let hosts = Hosts::new();
    let guest = TestGuest::new("vm", hosts.dir.path(), 192, "write:2:0", &[]);
    hosts.run(&guest);
    wait_until_it_fits(&hosts);
    hosts.network.shape("200mbit");
    let report = hosts
        .migrate(
            "vm",
            &["--strategy", "pre-copy-filter", "--max-rounds", "4", "--verify"],
        )
        .expect_json();
    assert_eq!(report["verified"]["mismatches"], 0, "{report:#}");
    let notes = report["notes"].to_string();
    assert!(notes.contains("tries the model of the host's sampler"), "{notes}");
    // Where the machine is crowded the guest writes otherwise than before, and the filter may say so.
    if !notes.contains("data filter off") {
        let filtered = |round: &Value| round["pages_filtered"].as_u64() > Some(0);
        assert!(
            report["rounds"].as_array().unwrap().iter().any(filtered),
            "{report:#}"
        );
    }
    hosts.network.unshape();
    guest.console.assert_healthy(2);
}
