//! The QMP client against a scripted server: what a healthy QEMU never sends, too.

use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{self, JoinHandle};
use std::time::Duration;

use serde_json::{Value, json};
use vmferry_guest_qemu::qmp::commands::{Cont, QueryStatus, Stop};
use vmferry_guest_qemu::qmp::{Qmp, QmpError};

const GREETING: &str = r#"{"QMP": {"version": {"qemu": {"micro": 0, "minor": 2, "major": 7}, "package": ""}, "capabilities": []}}"#;
const PATIENCE: Duration = Duration::from_secs(60);

/// One client of the scripted server.
struct Peer {
    stream: UnixStream,
    lines: BufReader<UnixStream>,
}

impl Peer {
    fn say(&mut self, line: &str) {
        // The client may be gone already: then the test looks at what it made of the rest.
        let _ = writeln!(self.stream, "{line}");
    }

    /// The next command: its name and id.
    fn command(&mut self) -> (String, Value) {
        let mut line = String::new();
        self.lines.read_line(&mut line).unwrap();
        let command: Value = serde_json::from_str(&line).unwrap();
        (
            command["execute"].as_str().unwrap().to_owned(),
            command["id"].clone(),
        )
    }

    fn answer(&mut self, id: &Value, value: &Value) {
        self.say(&json!({ "return": value, "id": id }).to_string());
    }

    fn negotiate(&mut self) {
        self.say(GREETING);
        let (name, id) = self.command();
        assert_eq!(name, "qmp_capabilities");
        self.answer(&id, &json!({}));
    }
}

/// Serves clients one after the other, the n-th (from 0) by `script(n, peer)`, `count` of them.
fn serve(
    count: usize,
    script: impl Fn(usize, &mut Peer) + Send + 'static,
) -> (tempfile::TempDir, PathBuf, JoinHandle<()>) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp.sock");
    let listener = UnixListener::bind(&path).unwrap();
    let server = thread::spawn(move || {
        for client in 0..count {
            let (stream, _) = listener.accept().unwrap();
            let lines = BufReader::new(stream.try_clone().unwrap());
            script(client, &mut Peer { stream, lines });
        }
    });
    (dir, path, server)
}

#[test]
fn events_between_command_and_answer_go_to_the_log() {
    let (_dir, path, server) = serve(1, |_, peer| {
        peer.negotiate();
        let (name, id) = peer.command();
        assert_eq!(name, "stop");
        peer.say(r#"{"timestamp": {"seconds": 1, "microseconds": 2}, "event": "STOP"}"#);
        peer.say(r#"{"event": "RTC_CHANGE", "data": {"offset": 3}}"#);
        peer.answer(&id, &json!({}));
    });
    let qmp = Qmp::connect(&path, PATIENCE).unwrap();
    let cursor = qmp.events().now();
    qmp.run(&Stop {}).unwrap();
    let event = qmp
        .events()
        .wait(cursor, PATIENCE, "RTC_CHANGE", |event| event.name == "RTC_CHANGE")
        .unwrap();
    assert_eq!(event.data["offset"], 3);
    qmp.events()
        .wait(cursor, PATIENCE, "STOP", |event| event.name == "STOP")
        .unwrap();
    server.join().unwrap();
}

#[test]
fn a_refusal_carries_command_class_and_words() {
    let (_dir, path, server) = serve(1, |_, peer| {
        peer.negotiate();
        let (_, id) = peer.command();
        peer.say(
            &json!({ "error": { "class": "GenericError", "desc": "no such luck" }, "id": id }).to_string(),
        );
    });
    let error = Qmp::connect(&path, PATIENCE).unwrap().run(&Cont {}).unwrap_err();
    assert_eq!(
        error.to_string(),
        "QEMU refused cont: no such luck (GenericError)"
    );
    server.join().unwrap();
}

#[test]
fn a_late_answer_is_dropped_and_not_given_to_the_next_command() {
    let (_dir, path, server) = serve(1, |_, peer| {
        peer.negotiate();
        let (_, first) = peer.command();
        let (_, second) = peer.command();
        peer.answer(&first, &json!({ "status": "paused" }));
        peer.answer(&second, &json!({ "status": "running" }));
    });
    let qmp = Qmp::connect(&path, PATIENCE).unwrap();
    let error = qmp
        .run_within(&QueryStatus {}, Duration::from_millis(20))
        .unwrap_err();
    assert!(
        matches!(
            error,
            QmpError::TimedOut {
                command: "query-status",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(qmp.run(&QueryStatus {}).unwrap().status, "running");
    server.join().unwrap();
}

#[test]
fn answers_find_their_threads() {
    let (_dir, path, server) = serve(1, |_, peer| {
        peer.negotiate();
        let commands = [peer.command(), peer.command()];
        for (name, id) in commands.iter().rev() {
            peer.answer(
                id,
                &if name == "stop" {
                    json!({})
                } else {
                    json!({ "status": "running" })
                },
            );
        }
    });
    let qmp = Arc::new(Qmp::connect(&path, PATIENCE).unwrap());
    let other = Arc::clone(&qmp);
    let stopper = thread::spawn(move || other.run(&Stop {}));
    assert_eq!(qmp.run(&QueryStatus {}).unwrap().status, "running");
    stopper.join().unwrap().unwrap();
    server.join().unwrap();
}

#[test]
fn a_lost_connection_is_an_error_for_the_command_and_made_anew_for_the_next() {
    let (_dir, path, server) = serve(2, |client, peer| {
        peer.negotiate();
        let (_, id) = peer.command();
        if client == 1 {
            peer.answer(&id, &json!({ "status": "running" }));
        }
    });
    let qmp = Qmp::connect(&path, PATIENCE).unwrap();
    let error = qmp.run(&QueryStatus {}).unwrap_err();
    assert!(
        matches!(
            error,
            QmpError::Lost {
                command: "query-status",
                ..
            }
        ),
        "{error}"
    );
    assert_eq!(qmp.run(&QueryStatus {}).unwrap().status, "running");
    server.join().unwrap();
    let error = qmp.run(&QueryStatus {}).unwrap_err();
    assert!(error.is_disconnect(), "{error}");
}

#[test]
fn garbage_in_place_of_an_answer_ends_the_connection() {
    for garbage in [
        "{\"return\": ",
        "[]",
        "\u{0}\u{1}",
        "{\"event\": 7}",
        "{\"hello\": 1}",
        "{\"return\": {}}",
    ] {
        let (_dir, path, server) = serve(1, move |_, peer| {
            peer.negotiate();
            peer.command();
            peer.say(garbage);
            // Stays open: it is the client that has to leave.
            let mut rest = String::new();
            assert_eq!(peer.lines.read_line(&mut rest).unwrap_or(0), 0);
        });
        let error = Qmp::connect(&path, PATIENCE).unwrap().run(&Stop {}).unwrap_err();
        assert!(matches!(error, QmpError::Lost { .. }), "{garbage:?}: {error}");
        server.join().unwrap();
    }
}

#[test]
fn an_endless_line_is_cut_off() {
    let (_dir, path, server) = serve(1, |_, peer| {
        peer.negotiate();
        peer.command();
        let chunk = vec![b'x'; 1 << 20];
        let written = (0..64)
            .take_while(|_| peer.stream.write_all(&chunk).is_ok())
            .count();
        assert!(written < 64, "the client took an endless line");
    });
    let error = Qmp::connect(&path, PATIENCE).unwrap().run(&Stop {}).unwrap_err();
    assert!(error.to_string().contains("a line longer than"), "{error}");
    server.join().unwrap();
}

#[test]
fn an_answer_of_another_form_names_the_command() {
    let (_dir, path, server) = serve(1, |_, peer| {
        peer.negotiate();
        let (_, id) = peer.command();
        peer.answer(&id, &json!({ "status": 5 }));
    });
    let error = Qmp::connect(&path, PATIENCE)
        .unwrap()
        .run(&QueryStatus {})
        .unwrap_err();
    assert_eq!(
        error.to_string(),
        "QEMU's answer to query-status is not understood"
    );
    server.join().unwrap();
}

#[test]
fn who_does_not_greet_is_another_clients_qemu() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("qmp.sock");
    let _busy = UnixListener::bind(&path).unwrap();
    let error = Qmp::connect(&path, Duration::from_millis(20)).err().unwrap();
    assert!(matches!(error, QmpError::NoGreeting { .. }), "{error}");
    assert!(error.to_string().contains("another client"), "{error}");
}

#[test]
fn what_is_not_qemu_is_told_apart_from_nobody() {
    let (dir, path, server) = serve(1, |_, peer| peer.say("SSH-2.0-OpenSSH"));
    let error = Qmp::connect(&path, PATIENCE).err().unwrap();
    assert!(matches!(error, QmpError::NotQmp { .. }), "{error}");
    server.join().unwrap();
    let error = Qmp::connect(&dir.path().join("none.sock"), PATIENCE)
        .err()
        .unwrap();
    assert!(matches!(error, QmpError::Connect { .. }), "{error}");
}

#[test]
fn waiting_for_an_event_ends_with_the_connection() {
    let (_dir, path, server) = serve(1, |_, peer| {
        peer.negotiate();
        let (_, id) = peer.command();
        peer.answer(&id, &json!({}));
    });
    let qmp = Qmp::connect(&path, PATIENCE).unwrap();
    let cursor = qmp.events().now();
    qmp.run(&Stop {}).unwrap();
    let error = qmp
        .events()
        .wait(cursor, PATIENCE, "MIGRATION", |_| false)
        .unwrap_err();
    assert!(matches!(error, QmpError::Lost { .. }), "{error}");
    server.join().unwrap();
}
