//! `enlightened` on real QEMU: a guest that allocates, frees and checks its data moves again and again, and what it does not
//! use is overwritten at the source at the moment it is dropped. Agents that are missing, hang or lie cost nothing but order;
//! a source that is restarted in the middle loses no page.

use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use vmferry_agent_proto::{
    Answer, Body, Extent, FreeRule, Kernel, MapChunk, StructPages, read_request, write_answer,
};
use vmferry_core::report::{Outcome, Report};
use vmferry_core::{Hints, PageBitmap, Strategy, Tuning};
use vmferry_guest::{
    DirtyTracker, Enlightened, FaultMode, FreeKnowledge, Guest, GuestLoad, GuestRam, GuestSpec, GuestState,
    MigrateIn, MigrateOut, PageFaults, ProcessRan, Result, Vm,
};
use vmferry_runtime::Request;
use vmferry_tests::{Hosts, Pair, TestGuest, eventually, need, turn};

const RAM_MIB: u64 = 160;
/// Far longer than an answer takes, also on a crowded machine.
const PATIENCE: Duration = Duration::from_secs(20);

/// A guest whose free pages are overwritten when they are about to be dropped: if one of them was in use, or crossed all the
/// same, the guest finds garbage in it.
struct Spoiled {
    vm: Arc<dyn Vm>,
    /// Which pages are free can be told exactly.
    exact: bool,
}

impl Spoiled {
    fn inner(&self) -> &dyn Enlightened {
        self.vm.enlightened().expect("it has a port")
    }
}

impl Enlightened for Spoiled {
    fn enlighten(&self, active_within: Duration, timeout: Duration) -> Result<Hints> {
        self.inner().enlighten(active_within, timeout)
    }

    fn calibrate(&self, timeout: Duration) -> Result<FreeKnowledge> {
        match self.exact {
            true => self.inner().calibrate(timeout),
            false => Ok(FreeKnowledge::Listed {
                why: "locked down".into(),
            }),
        }
    }

    fn free_while_paused(&self) -> Option<PageBitmap> {
        let free = self.inner().free_while_paused()?;
        for run in free.runs() {
            self.vm.ram().write(run, &vec![0xa5; run.bytes() as usize]);
        }
        Some(free)
    }

    fn load(&self, timeout: Duration) -> Result<GuestLoad> {
        self.inner().load(timeout)
    }

    fn last_runs(&self, timeout: Duration) -> Result<Vec<ProcessRan>> {
        self.inner().last_runs(timeout)
    }
}

impl Guest for Spoiled {
    fn spec(&self) -> &GuestSpec {
        self.vm.spec()
    }

    fn ram(&self) -> &Arc<GuestRam> {
        self.vm.ram()
    }

    fn state(&self) -> GuestState {
        self.vm.state()
    }

    fn pid(&self) -> Option<u32> {
        self.vm.pid()
    }

    fn pause(&self) -> Result<()> {
        self.vm.pause()
    }

    fn resume(&self) -> Result<()> {
        self.vm.resume()
    }

    fn destroy(&self) {
        self.vm.destroy();
    }
}

impl MigrateOut for Spoiled {
    fn prepare_out(&self) -> Result<()> {
        self.vm.prepare_out()
    }

    fn dirty_tracker(&self) -> Result<Box<dyn DirtyTracker>> {
        self.vm.dirty_tracker()
    }

    fn has_pinned_io(&self) -> bool {
        self.vm.has_pinned_io()
    }

    fn may_discard_pages(&self) -> bool {
        self.vm.may_discard_pages()
    }

    fn before_stop(&self) -> Result<()> {
        self.vm.before_stop()
    }

    fn save_device_state(&self) -> Result<Vec<u8>> {
        self.vm.save_device_state()
    }

    fn enlightened(&self) -> Option<&dyn Enlightened> {
        Some(self)
    }
}

impl MigrateIn for Spoiled {
    fn page_faults(&self, mode: FaultMode) -> Result<Arc<dyn PageFaults>> {
        self.vm.page_faults(mode)
    }

    fn reopen_page_faults(&self) -> Result<Arc<dyn PageFaults>> {
        self.vm.reopen_page_faults()
    }

    fn load_device_state(&self, state: &[u8]) -> Result<()> {
        self.vm.load_device_state(state)
    }

    fn announce(&self) -> Result<()> {
        self.vm.announce()
    }
}

fn guest(dir: &Path, load: &str) -> TestGuest {
    TestGuest::new("vm", dir, RAM_MIB, load, &[]).with_agent()
}

fn request(pair: &Pair, agent_timeout: Duration) -> Request {
    Request {
        tuning: Tuning {
            agent_timeout,
            ..Tuning::default()
        },
        ..pair.request(Strategy::Enlightened)
    }
}

/// Moves a guest and turns its hosts round.
fn ferry(pair: &mut Pair, vm: &Arc<dyn Vm>, agent_timeout: Duration) -> Report {
    let report = pair.migrate(vm, request(pair, agent_timeout));
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    let verified = report.verified.expect("it was asked for");
    assert_eq!((verified.pages, verified.mismatches), (RAM_MIB << 8, 0));
    assert!(
        report.rounds.is_empty() && report.pages.resent == 0,
        "each page crosses once"
    );
    pair.turn_round("vm");
    report
}

/// Moves a guest that allocates and frees so often, its dropped pages overwritten.
fn ferries(times: usize, parameters: &str, exact: bool) {
    let _turn = turn();
    let mut pair = Pair::new();
    let dir = tempfile::tempdir().unwrap();
    let load = format!("churn:32,write:16:50 vmferry.agent {parameters}");
    let guest = guest(dir.path(), &load);
    pair.launch(&guest.spec);
    guest.console.wait_for("guest-load: ok");
    let mut dropped = Vec::new();
    for _ in 0..times {
        let vm: Arc<dyn Vm> = Arc::new(Spoiled {
            vm: pair.source.guest("vm"),
            exact,
        });
        let report = ferry(&mut pair, &vm, PATIENCE);
        assert!(
            report.notes.iter().any(|note| note.contains("kernel code")),
            "{:?}",
            report.notes
        );
        let listed = report.notes.iter().any(|note| note.contains("locked down"));
        assert_eq!(listed, !exact, "{:?}", report.notes);
        dropped.push(report.pages.free);
        println!(
            "execution {:.0} ms, down {:.1} ms, total {:.0} ms, {:?}, {:?}",
            report.execution_transfer_ms, report.downtime_ms, report.total_ms, report.faults, report.pages
        );
    }
    // Of those dropped before nothing has crossed, where the guest has not used them since.
    assert!(dropped[0] > (RAM_MIB << 8) / 20, "{dropped:?}");
    guest.console.assert_healthy(4);
}

#[test]
fn a_guest_that_allocates_and_frees_stays_intact_over_many_moves() {
    need!(Qemu, Root, Userfaultfd);
    ferries(14, "", true);
}

/// Such a kernel takes free pages to be zero, which dropped ones are.
#[test]
fn a_kernel_that_zeroes_what_it_frees_moves_too() {
    need!(Qemu, Root, Userfaultfd);
    ferries(4, "init_on_free=1", true);
}

#[test]
fn where_free_pages_cannot_be_told_its_own_list_serves() {
    need!(Qemu, Root, Userfaultfd);
    ferries(2, "", false);
}

fn fell_back(report: &Report, why: &str) {
    let note = report.notes.iter().find(|note| note.contains("post-copy-push"));
    let note = note.unwrap_or_else(|| panic!("{why}: {:?}", report.notes));
    assert!(note.contains(why), "{why}: {note}");
    assert_eq!(report.pages.free, 0);
}

#[test]
fn the_command_asks_the_agent_and_a_restarted_source_loses_no_page() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = turn();
    let mut hosts = Hosts::new();
    let guest = guest(hosts.dir.path(), "write:16:50 vmferry.agent");
    hosts.run(&guest);
    let mut said = serde_json::Value::Null;
    eventually("the agent answers", || {
        let answer = hosts.source.call(&["agent", "vm", "--balloon"]);
        said = serde_json::from_str(&answer.stdout).unwrap_or_default();
        answer.code == Some(0)
    });
    let memory = &said["load"]["memory_total_bytes"];
    assert!(
        (100 << 20..RAM_MIB << 20).contains(&memory.as_u64().unwrap()),
        "{said}"
    );
    assert!(said["balloon_bytes"].as_u64().is_some(), "{said}");
    let runs = said["last_runs"].as_array().unwrap();
    assert!(runs.iter().any(|ran| ran["name"] == "guest-load"), "{said}");
    hosts
        .source
        .call(&["agent", "vm", "--timeout", "2m"])
        .expect_refusal(&["120000 ms", "at most 60000 ms"]);
    hosts
        .migrate("vm", &["--strategy", "enlightened", "--agent-timeout", "0s"])
        .expect_refusal(&["more than 0"]);

    hosts.network.shape("80mbit");
    hosts.begin(
        "vm",
        &["--strategy", "enlightened", "--agent-timeout", "20s", "--verify"],
    );
    eventually("pages are pushed", || {
        let status = hosts.source.call(&["status", "vm"]).expect_json();
        let progress = &status["migration"]["progress"];
        progress["phase"] == "pull and push" && progress["sent_pages"].as_u64() > Some(500)
    });
    hosts.crash_source();
    hosts.network.unshape();
    let report = hosts.wait_for_report("vm");
    assert_eq!(report["outcome"], "completed", "{report:#}");
    let notes = report["notes"].to_string();
    assert!(
        report["verified"].is_null() && notes.contains("not compared"),
        "{report:#}"
    );
    hosts.destination.assert_owns("vm");
    guest.console.assert_healthy(3);
}

/// The agent's account is in the recording, so that the forecast of `enlightened` is without the pages that are free.
#[test]
fn a_forecast_knows_what_the_guest_does_not_use() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = turn();
    let hosts = Hosts::new();
    let guest = guest(hosts.dir.path(), "write:16:50 vmferry.agent");
    hosts.run(&guest);
    eventually("the agent answers", || {
        hosts.source.call(&["agent", "vm"]).code == Some(0)
    });
    guest.console.assert_healthy(3);
    let to = hosts.destination.endpoint();
    let made = [
        "forecast",
        "vm",
        "--to",
        &to,
        "--record",
        "2s",
        "--encoding",
        "raw",
    ];
    let mut forecasts = serde_json::Value::Null;
    eventually("the agent answers in time", || {
        let answer = hosts.source.call(&[&made[..], &["--simulations", "2"]].concat());
        forecasts = answer.expect_json();
        forecasts["strategies"].to_string().contains("enlightened")
    });
    let forecast = |strategy: &str| {
        let all = forecasts["strategies"].as_array().unwrap();
        let found = all.iter().find(|forecast| forecast["strategy"] == strategy);
        found.unwrap_or_else(|| panic!("{strategy} in {forecasts:#}"))["bytes_on_wire"]["likely"]
            .as_f64()
            .unwrap()
    };
    let moved = [
        "--strategy",
        "enlightened",
        "--encoding",
        "raw",
        "--agent-timeout",
        "20s",
    ];
    let report = hosts.migrate("vm", &moved).expect_json();
    assert_eq!(report["outcome"], "completed", "{report:#}");
    let dropped = report["pages"]["free"].as_u64().unwrap();
    assert!(dropped > 1000, "the agent was not in time: {report:#}");
    let (expected, pushed) = (forecast("enlightened"), forecast("post-copy-push"));
    let spared = 4096.0 * dropped as f64;
    assert!(
        expected < pushed - 0.5 * spared,
        "{expected} and {pushed} bytes expected, {spared} spared"
    );
    let sent = report["bytes_on_wire"].as_f64().unwrap();
    assert!(
        (expected / sent - 1.0).abs() < 0.25,
        "{expected} bytes expected, {sent} sent"
    );
    hosts.destination.assert_owns("vm");
    guest.console.assert_healthy(3);
}

/// What sits at the agent's port, after an honest answer to the ping.
type Liar = fn(&mut UnixStream) -> std::io::Result<()>;

/// Takes the place of the agent: QEMU listens there, and whoever connects from now on comes to the liar.
fn impostor(path: &Path, liar: Liar) -> thread::JoinHandle<()> {
    std::fs::remove_file(path).unwrap();
    let listener = UnixListener::bind(path).unwrap();
    thread::spawn(move || {
        let (mut socket, _) = listener.accept().unwrap();
        let _ = pong(&mut socket).and_then(|()| liar(&mut socket));
    })
}

fn pong(socket: &mut UnixStream) -> std::io::Result<()> {
    reply(socket, Body::Pong { version: 1 })
}

/// Answers the next question, whatever it is.
fn reply(socket: &mut UnixStream, body: Body) -> std::io::Result<()> {
    let id = read_request(socket).map_err(std::io::Error::other)?.id;
    say(socket, id, body)
}

fn say(socket: &mut UnixStream, id: u32, body: Body) -> std::io::Result<()> {
    write_answer(socket, &Answer { id, body }).map_err(std::io::Error::other)
}

fn kernel(struct_pages: Option<StructPages>) -> Body {
    Body::Kernel(Kernel {
        release: "6.1".into(),
        struct_pages,
        why_not: "locked down".into(),
    })
}

fn chunk(first_frame: u64, runs: &[u8], last: bool) -> Body {
    Body::Map(MapChunk {
        first_frame,
        runs: runs.to_vec(),
        last,
    })
}

/// 256 free frames.
const FREE: [u8; 2] = [0x89, 0x20];

/// Says nothing more.
fn hangs(socket: &mut UnixStream) -> std::io::Result<()> {
    loop {
        read_request(socket).map_err(std::io::Error::other)?;
    }
}

/// Talks without end.
fn endless(socket: &mut UnixStream) -> std::io::Result<()> {
    reply(socket, kernel(None))?;
    let id = read_request(socket).map_err(std::io::Error::other)?.id;
    loop {
        say(socket, id, chunk(0, &[], false))?;
    }
}

/// Writes what is no message.
fn noise(socket: &mut UnixStream) -> std::io::Result<()> {
    loop {
        socket.write_all(&[0x76; 4096])?;
    }
}

/// Names frames beyond memory.
fn beyond(socket: &mut UnixStream) -> std::io::Result<()> {
    reply(socket, kernel(None))?;
    reply(socket, chunk((RAM_MIB << 8) - 1, &FREE, true))
}

/// Names frames twice.
fn twice(socket: &mut UnixStream) -> std::io::Result<()> {
    reply(socket, kernel(None))?;
    let id = read_request(socket).map_err(std::io::Error::other)?.id;
    say(socket, id, chunk(0, &FREE, false))?;
    say(socket, id, chunk(255, &FREE, true))
}

/// Has the host look for the account of free pages where there is none; then its list is not believed either.
fn elsewhere(socket: &mut UnixStream) -> std::io::Result<()> {
    let pages = StructPages {
        size_bytes: 64,
        rule: FreeRule {
            type_offset: 0,
            type_mask: 0,
            type_value: 0,
            refcount_offset: 0,
            order_offset: 0,
            max_order: 10,
        },
        extents: vec![Extent {
            first_frame: 0,
            frames: RAM_MIB << 8,
            address: (RAM_MIB << 20) - 4096,
        }],
    };
    reply(socket, kernel(Some(pages)))?;
    reply(socket, chunk(0, &[], true))?;
    reply(socket, chunk((RAM_MIB << 8) - 1, &FREE, true))
}

#[test]
fn agents_that_are_missing_hang_or_lie_cost_nothing_but_order() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = turn();
    let mut pair = Pair::new();
    let dir = tempfile::tempdir().unwrap();
    let guest = guest(dir.path(), "write:16:50");
    pair.launch(&guest.spec);
    guest.console.wait_for("guest-load: ok");
    // Nobody sits at its port.
    let vm = pair.source.guest("vm");
    let report = ferry(&mut pair, &vm, Duration::from_millis(300));
    fell_back(&report, "no answer within");
    let liars: [(Liar, &str); 6] = [
        (hangs, "no answer within"),
        (endless, "no answer within"),
        (noise, "without the beginning of a frame"),
        (beyond, "beyond"),
        (twice, "classified twice"),
        (elsewhere, "beyond"),
    ];
    for (liar, why) in liars {
        let impostor = impostor(&pair.source.dir("vm").path().join("agent.sock"), liar);
        let vm = pair.source.guest("vm");
        let report = ferry(&mut pair, &vm, Duration::from_millis(700));
        println!("{:?}", report.notes);
        fell_back(&report, why);
        drop(vm);
        impostor.join().unwrap();
    }
    guest.console.assert_healthy(2);
}
