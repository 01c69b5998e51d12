//! The file that a daemon keeps.

use std::fs;

use vmferry_core::report::{CpuSeconds, Outcome};
use vmferry_forecast::history::{Beside, History, HistoryError, Kept, Record, observations};
use vmferry_forecast::model::Setting;

fn record(number: u64) -> Record {
    Record {
        id: format!("web-{number}"),
        vm: "web".into(),
        to: "tcp:b:7120".into(),
        ended_unix_ms: 1_000 + number,
        backend: "synth".into(),
        strategy: "pre-copy".into(),
        encoding: "raw".into(),
        workload: Some("memory-write:40".parse().unwrap()),
        setting: Setting {
            source_percent: Some(40.0),
            ..Setting::default()
        },
        together: 1,
        outcome: Outcome::Completed,
        ram_bytes: 1 << 30,
        data_bytes: 512 << 20,
        bytes_on_wire: 600 << 20,
        total_ms: 5120.0,
        execution_transfer_ms: 5000.0,
        downtime_ms: 20.0,
        cpu_seconds: CpuSeconds::default(),
        same: None,
        beside: Beside::default(),
        forecast: None,
    }
}

fn open_error(path: &std::path::Path) -> HistoryError {
    History::open(path).map(drop).unwrap_err()
}

#[test]
fn records_are_there_after_a_restart_in_the_order_of_their_ends() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("history.redb");
    let history = History::open(&path).unwrap();
    assert_eq!(history.all().unwrap(), Kept::default());
    history.append(&record(2)).unwrap();
    history.append(&record(1)).unwrap();
    drop(history);
    let history = History::open(&path).unwrap();
    assert_eq!(history.all().unwrap().records, [record(1), record(2)]);
    let Err(HistoryError::Failed { .. }) = History::open(&path).map(drop) else {
        panic!("two daemons cannot have it at once");
    };
    // One that is just ending is waited for.
    let ends = std::thread::spawn(move || {
        std::thread::sleep(std::time::Duration::from_millis(200));
        drop(history);
    });
    assert_eq!(History::open(&path).unwrap().all().unwrap().records.len(), 2);
    ends.join().unwrap();
}

#[test]
fn a_damaged_history_is_named_and_left_alone() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("history.redb");
    fs::write(&path, "not a database at all, whatever it says\n".repeat(100)).unwrap();
    let before = fs::read(&path).unwrap();
    let error = open_error(&path);
    assert!(matches!(error, HistoryError::Damaged { .. }), "{error}");
    assert!(error.to_string().contains("move it away"), "{error}");
    assert_eq!(fs::read(&path).unwrap(), before);

    fs::remove_file(&path).unwrap();
    let history = History::open(&path).unwrap();
    (0..50).for_each(|number| history.append(&record(number)).unwrap());
    drop(history);
    let whole = fs::read(&path).unwrap();
    fs::write(&path, &whole[..whole.len() / 3]).unwrap();
    let error = open_error(&path);
    assert!(matches!(error, HistoryError::Damaged { .. }), "{error}");
}

/// Whatever byte is wrong, nothing panics, and what is read are records.
#[test]
fn no_damage_takes_the_daemon_with_it() {
    let temp = tempfile::tempdir().unwrap();
    let path = temp.path().join("history.redb");
    let history = History::open(&path).unwrap();
    (0..20).for_each(|number| history.append(&record(number)).unwrap());
    drop(history);
    let whole = fs::read(&path).unwrap();
    // Its panics are caught and told; they need not be seen here.
    std::panic::set_hook(Box::new(|_| {}));
    let mut refused = 0;
    for step in 0..60 {
        let mut bytes = whole.clone();
        let place = step * 977 % bytes.len().min(60_000);
        let end = (place + 64).min(bytes.len());
        bytes[place..end].iter_mut().for_each(|byte| *byte ^= 0xA5);
        fs::write(&path, &bytes).unwrap();
        let read = History::open(&path).and_then(|history| {
            history.append(&record(99))?;
            history.all()
        });
        refused += usize::from(read.is_err());
    }
    let _ = std::panic::take_hook();
    assert!(refused > 0, "some of it was seen");
}

#[test]
fn a_directory_in_its_place_is_an_error_with_its_cause() {
    let temp = tempfile::tempdir().unwrap();
    let error = open_error(temp.path());
    assert!(matches!(error, HistoryError::Failed { .. }), "{error}");
}

#[test]
fn only_what_completed_and_went_on_alone_teaches_and_by_its_data() {
    let failed = Record {
        outcome: Outcome::Failed,
        ..record(1)
    };
    let crowded = Record {
        together: 2,
        ..record(2)
    };
    let small = Record {
        data_bytes: 256 << 20,
        total_ms: 2560.0,
        ..record(3)
    };
    let with_disks = Record {
        beside: Beside {
            disks: true,
            ..Beside::default()
        },
        total_ms: 90_000.0,
        ..record(4)
    };
    let kinds = observations(&[record(0), failed, crowded, small, with_disks]);
    assert_eq!(kinds.len(), 1);
    let (kind, observations) = kinds.first_key_value().unwrap();
    assert_eq!(kind.to_string(), "memory-write:40, pre-copy, synth, raw");
    assert_eq!(
        observations.iter().map(|it| it.value).collect::<Vec<_>>(),
        [10.0, 10.0]
    );
}

#[test]
fn records_of_other_versions_are_understood_as_far_as_they_go() {
    let mut value = serde_json::to_value(record(1)).unwrap();
    value["new"] = 5.into();
    value.as_object_mut().unwrap().remove("workload");
    let read: Record = serde_json::from_value(value.clone()).unwrap();
    assert_eq!(read.workload, None);
    // What moved memory alone says nothing of it, as records did before.
    assert_eq!(value.get("beside"), None);
    value["beside"] = serde_json::json!({ "disks": true });
    let read: Record = serde_json::from_value(value).unwrap();
    assert!(read.beside.disks && !read.beside.verify && read.ms_per_mib().is_none());
}
