//! The agent in a real guest, asked by the host that runs it.

use std::io::Write as _;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::thread;
use std::time::{Duration, Instant};

use vmferry_agent_proto::{Answer, Body, MapChunk, read_request, write_answer};
use vmferry_core::hints::{Class, Hints};
use vmferry_guest::{Enlightened as _, Guest as _};
use vmferry_guest_qemu::{QemuBackend, QemuGuest};
use vmferry_tests::{TestGuest, need, turn};

const RAM_MIB: u64 = 256;
const PAGES: u64 = RAM_MIB << 8;
/// The load of the guest, as its init script has it: 64 MiB that a process writes.
const LOAD: &str = "write:64:5";
const LOAD_PAGES: u64 = 64 << 8;
const ACTIVE_WITHIN: Duration = Duration::from_secs(16);
/// Far longer than an answer takes; a limit of this test only.
const PATIENCE: Duration = Duration::from_secs(30);

/// A guest that ends with its test.
struct Running(QemuGuest);

impl Drop for Running {
    fn drop(&mut self) {
        self.0.destroy();
    }
}

fn boot(dir: &Path, load: &str) -> (Running, vmferry_tests::Console) {
    let TestGuest { spec, console } = TestGuest::new("vm", dir, RAM_MIB, load, &[]).with_agent();
    let guest = QemuBackend.start(&spec, dir).unwrap();
    (Running(guest), console)
}

fn count(hints: &Hints, class: Class) -> u64 {
    hints.counts()[usize::from(class.number())]
}

fn said(error: &vmferry_guest::GuestError) -> String {
    let mut line = error.to_string();
    let mut cause = std::error::Error::source(error);
    while let Some(error) = cause {
        line = format!("{line}: {error}");
        cause = error.source();
    }
    line
}

/// Two ask at once, and nobody answers: each waits as long as it wants to.
#[test]
fn nobody_waits_for_a_silent_agent_longer_than_asked_to() {
    need!(Qemu, Root);
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let (Running(guest), _) = &boot(dir.path(), "idle");
    thread::scope(|scope| {
        let patient = scope.spawn(|| guest.load(Duration::from_secs(5)));
        thread::sleep(Duration::from_millis(200));
        let why = said(&guest.load(Duration::from_millis(200)).unwrap_err());
        assert!(why.contains("no answer within 200 ms"), "{why}");
        assert!(!patient.is_finished(), "it waited until the other one had enough");
        assert!(patient.join().unwrap().is_err());
    });
}

#[test]
fn a_guest_says_what_its_pages_are_used_for() {
    need!(Qemu, Root);
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let (Running(guest), console) = &boot(dir.path(), &format!("{LOAD} vmferry.agent"));
    console.wait_for("guest-load: ok");

    let start = Instant::now();
    let hints = guest.enlighten(ACTIVE_WITHIN, PATIENCE).unwrap();
    println!("classes of {RAM_MIB} MiB in {:?}: {hints:?}", start.elapsed());
    assert_eq!(hints.pages(), PAGES);
    // The code of a kernel is 5 to 50 MiB, the tables of a small guest under 4 MiB.
    assert!((5 << 8..50 << 8).contains(&count(&hints, Class::KernelCode)));
    assert!((50..1024).contains(&count(&hints, Class::PageTables)));
    assert!(count(&hints, Class::KernelAllocated) > 1000);
    assert!(count(&hints, Class::UserCode) > 20);
    let user_data = count(&hints, Class::UserData);
    assert!(
        (LOAD_PAGES..LOAD_PAGES + (16 << 8)).contains(&user_data),
        "{user_data}"
    );
    assert!(hints.free().count() > 30 << 8 && hints.free().count() < PAGES - LOAD_PAGES);
    assert!(
        hints.free().next_run(0, 1).unwrap().first >= 256,
        "nothing below 1 MiB is free"
    );

    let start = Instant::now();
    guest.calibrate(PATIENCE).unwrap();
    println!("calibrated in {:?}", start.elapsed());
    guest.pause().unwrap();
    let start = Instant::now();
    let exact = guest.free_while_paused().expect("calibrated");
    println!("{} free pages read in {:?}", exact.count(), start.elapsed());
    // The guest has not stood still in between.
    let difference = exact.count().abs_diff(hints.free().count());
    assert!(
        difference < PAGES / 50,
        "{} and {}",
        exact.count(),
        hints.free().count()
    );
    guest.resume().unwrap();
    console.assert_healthy(2);
}

/// Overwrites what is free in 20 stops of a guest that writes and checks its data.
fn drop_free_pages(parameters: &str, fill: u8) {
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let load = format!("write:16:100,write:32:200 vmferry.agent {parameters}");
    let (Running(guest), console) = &boot(dir.path(), &load);
    console.wait_for("guest-load: ok");
    guest.calibrate(PATIENCE).unwrap();
    let mut dropped = 0;
    for _ in 0..20 {
        guest.pause().unwrap();
        let free = guest.free_while_paused().expect("calibrated");
        for run in free.runs() {
            guest.ram().write(run, &vec![fill; run.bytes() as usize]);
        }
        dropped += free.count();
        guest.resume().unwrap();
        thread::sleep(Duration::from_millis(100));
    }
    println!("{dropped} pages overwritten in 20 stops");
    assert!(dropped > 20 * PAGES / 10);
    console.assert_healthy(3);
}

#[test]
fn garbage_in_free_pages_is_never_seen() {
    need!(Qemu, Root);
    drop_free_pages("", 0xa5);
}

/// Such a kernel takes free pages to be zero, which dropped ones are.
#[test]
fn a_kernel_that_zeroes_what_it_frees_goes_on() {
    need!(Qemu, Root);
    drop_free_pages("init_on_free=1", 0);
}

#[test]
fn a_guest_without_an_agent_is_told() {
    need!(Qemu, Root);
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    // A port that the guest's owner gave it.
    let chardev = format!(
        "socket,id=own,path={},server=on,wait=off",
        dir.path().join("own.sock").display()
    );
    let port = "virtserialport,chardev=own,name=org.vmferry.agent.0";
    let args = [
        "-device",
        "virtio-serial-pci",
        "-chardev",
        &chardev,
        "-device",
        port,
    ];
    let TestGuest { spec, console } = TestGuest::new("vm", dir.path(), RAM_MIB, "idle", &args);
    let guest = QemuBackend.start(&spec, dir.path()).unwrap();
    let Running(guest) = &Running(guest);
    console.wait_for("vmferry-guest: ready");
    let error = guest
        .enlighten(ACTIVE_WITHIN, Duration::from_millis(300))
        .unwrap_err();
    assert!(
        said(&error).contains("no answer within 300 ms"),
        "{}",
        said(&error)
    );
    guest.pause().unwrap();
    assert!(guest.free_while_paused().is_none(), "never calibrated");
}

/// A program that sits where the agent's port is and lies.
fn lying_agent(path: &Path, lies: Vec<Vec<MapChunk>>) -> thread::JoinHandle<()> {
    // QEMU listens there; whoever connects from now on comes to us.
    std::fs::remove_file(path).unwrap();
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        for lie in lies {
            let (mut socket, _) = listener.accept().unwrap();
            let mut answer = |bodies: Vec<Body>| {
                let id = read_request(&mut &socket).unwrap().id;
                for body in bodies {
                    write_answer(&mut socket, &Answer { id, body }).unwrap();
                }
            };
            answer(vec![Body::Pong { version: 1 }]);
            answer(lie.into_iter().map(Body::Map).collect());
            let _ = socket.flush();
        }
    })
}

#[test]
fn an_agent_that_lies_is_refused() {
    need!(Qemu, Root);
    let _turn = turn();
    let dir = tempfile::tempdir().unwrap();
    let (Running(guest), _) = &boot(dir.path(), "idle");
    let chunk = |first_frame, runs: &[u8], last| MapChunk {
        first_frame,
        runs: runs.to_vec(),
        last,
    };
    let free_256 = [0x89, 0x20];
    let lies = [
        (vec![chunk(PAGES - 1, &free_256, true)], "beyond"),
        (vec![chunk(1 << 30, &free_256, true)], "beyond"),
        (
            vec![chunk(0, &free_256, false), chunk(255, &free_256, true)],
            "classified twice",
        ),
        (vec![chunk(0, &[0x1f], true)], "class 15"),
        (vec![chunk(0, &free_256, false)], "makes no sense"),
    ];
    let agent = lying_agent(
        &dir.path().join("agent.sock"),
        lies.iter().map(|(chunks, _)| chunks.clone()).collect(),
    );
    for (_, expected) in lies {
        let error = guest.enlighten(ACTIVE_WITHIN, PATIENCE).unwrap_err();
        assert!(said(&error).contains(expected), "{expected}: {}", said(&error));
    }
    agent.join().unwrap();
}
