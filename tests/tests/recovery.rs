//! The link breaks, or one of the two QEMUs ends: the guest always has one owner, and its data stays whole.

use std::sync::Arc;
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};
use vmferry_core::report::Outcome;
use vmferry_core::{Limits, Strategy};
use vmferry_guest::{GuestState, Vm};
use vmferry_runtime::Request;
use vmferry_tests::{Link, Pair, TestGuest, eventually, need, shared_turn};

/// A guest that writes memory all the time, and a link to the destination that can be cut.
struct Scene {
    pair: Pair,
    link: Link,
    guest: TestGuest,
    vm: Arc<dyn Vm>,
    _dir: tempfile::TempDir,
}

impl Scene {
    fn new(load: &str) -> Self {
        let pair = Pair::new();
        let link = Link::to(&pair.endpoint);
        let dir = tempfile::tempdir().unwrap();
        let guest = TestGuest::new("vm", dir.path(), 256, load, &[]);
        let vm = pair.launch(&guest.spec);
        guest.console.wait_for("guest-load: ok");
        Self {
            pair,
            link,
            guest,
            vm,
            _dir: dir,
        }
    }

    fn request(&self, strategy: Strategy) -> Request {
        Request {
            to: self.link.endpoint().clone(),
            ..self.pair.request(strategy)
        }
    }

    /// Rounds without an end, slow enough that something can be done to them.
    fn endless(&self) -> Request {
        self.link.limit(40 << 20);
        Request {
            limits: Limits {
                downtime: Duration::from_micros(1),
                rounds: u32::MAX,
                ..Limits::default()
            },
            ..self.request(Strategy::PreCopy)
        }
    }

    /// The guest is the source's, runs, and can still be moved.
    fn assert_still_here_and_movable(&self) {
        assert_eq!(self.vm.state(), GuestState::Running);
        self.guest.console.assert_healthy(2);
        eventually("the destination let go", || !self.pair.destination.has("vm"));
        let report = self
            .pair
            .migrate(&self.vm, self.pair.request(Strategy::PostCopyPush));
        assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
        assert_eq!(report.verified.map(|verified| verified.mismatches), Some(0));
        self.guest.console.assert_healthy(2);
    }
}

fn kill(vm: &Arc<dyn Vm>) {
    let pid = vm.pid().and_then(|pid| Pid::from_raw(pid.try_into().ok()?));
    kill_process(pid.expect("it has a process"), Signal::KILL).unwrap();
}

fn one_clear_line(error: Option<String>) -> String {
    let error = error.expect("a failure says why");
    assert!(!error.is_empty() && !error.contains('\n'), "{error:?}");
    error
}

#[test]
fn a_cut_in_post_copy_is_survived_twice() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let scene = Scene::new("write:24:40");
    scene.link.limit(10 << 20);
    let outgoing = scene.pair.begin(&scene.vm, scene.request(Strategy::PostCopyPush));
    eventually("the guest runs there", || {
        scene.pair.destination.arrived() == ["vm"]
    });
    for _ in 0..2 {
        scene.link.cut();
        eventually("the source noticed", || outgoing.progress().phase == "reconnect");
        assert!(outgoing.cancel().is_err(), "the guest is the destination's");
        // Its faults wait meanwhile.
        std::thread::sleep(Duration::from_millis(300));
        assert!(outgoing.report().is_none(), "it waits for the link");
        assert_eq!(
            scene.vm.state(),
            GuestState::Paused,
            "the source never runs it again by itself"
        );
        let before = scene.link.forwarded();
        scene.link.mend();
        eventually("pages cross again", || {
            scene.link.forwarded() > before + (1 << 20)
        });
    }
    scene.link.limit(0);
    let report = outgoing.wait();
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    assert_eq!(report.verified.map(|verified| verified.mismatches), Some(0));
    assert!(
        report.notes.iter().any(|note| note.contains("connection lost")),
        "{:?}",
        report.notes
    );
    assert_eq!(scene.vm.state(), GuestState::Gone);
    scene.guest.console.assert_healthy(3);
}

#[test]
fn the_guest_goes_on_when_the_destinations_qemu_dies_in_the_rounds() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let scene = Scene::new("write:24:40");
    let outgoing = scene.pair.begin(&scene.vm, scene.endless());
    eventually("rounds run", || outgoing.progress().round >= 2);
    kill(&scene.pair.destination.guest("vm"));
    // Nobody asks it anything before the stop, so the end of the rounds is what finds it out.
    scene.link.limit(0);
    eventually("it is found out, or there was no need to", || {
        outgoing.report().is_some() || outgoing.progress().round > 40
    });
    if outgoing.report().is_none() {
        outgoing.cancel().unwrap();
    }
    let report = outgoing.wait();
    println!("{:?}: {:?}", report.outcome, report.error);
    assert!(matches!(report.outcome, Outcome::Failed | Outcome::Cancelled));
    scene.assert_still_here_and_movable();
}

#[test]
fn the_guest_goes_on_when_the_destinations_qemu_dies_before_it_is_loaded() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let scene = Scene::new("write:24:40");
    // All pages cross during the stop, so it is paused at the source while QEMU dies over there.
    scene.link.limit(20 << 20);
    let outgoing = scene.pair.begin(&scene.vm, scene.request(Strategy::StopAndCopy));
    eventually("pages cross", || scene.link.forwarded() > 2 << 20);
    assert_eq!(scene.vm.state(), GuestState::Paused);
    kill(&scene.pair.destination.guest("vm"));
    scene.link.limit(0);
    let report = outgoing.wait();
    assert_eq!(report.outcome, Outcome::Failed);
    let error = one_clear_line(report.error);
    println!("{error}");
    assert!(error.contains("vm") && error.contains("gone"), "{error}");
    scene.assert_still_here_and_movable();
}

#[test]
fn a_source_whose_qemu_died_says_so() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let scene = Scene::new("write:24:40");
    let outgoing = scene.pair.begin(&scene.vm, scene.endless());
    eventually("rounds run", || outgoing.progress().round >= 2);
    kill(&scene.vm);
    let report = outgoing.wait();
    assert_eq!(report.outcome, Outcome::Failed);
    let error = one_clear_line(report.error);
    println!("{error}");
    assert!(!error.contains("CORRUPT"));
    eventually("the destination let go", || !scene.pair.destination.has("vm"));
    assert!(scene.pair.destination.arrived().is_empty(), "it never ran there");
    assert_eq!(scene.vm.state(), GuestState::Gone);
}
