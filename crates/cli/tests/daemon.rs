//! Daemons with synthetic guests, driven through the client.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;
use vmferry_cli::Client;
use vmferry_cli::api::{MigrateRequest, Migration, Owner, ReportSide, Role, Stage};
use vmferry_cli::client::ClientError;
use vmferry_cli::daemon::{Daemon, Options};
use vmferry_cli::loadspec;
use vmferry_core::report::{Outcome, Report};
use vmferry_core::sampling::{Budget, SamplingReport};
use vmferry_core::{Limits, Strategy};
use vmferry_guest::{GuestSpec, GuestState};
use vmferry_guest_synth::SynthBackend;
use vmferry_transport::Endpoint;

const MIB: u64 = 1 << 20;
/// Ends a hang; nothing here takes nearly as long.
const LONG: Duration = Duration::from_secs(120);

/// A daemon in a directory of its own, or of the one before it.
struct Host {
    daemon: Option<Daemon>,
    client: Client,
    dir: TempDir,
}

impl Host {
    fn tcp() -> Self {
        Self::start(&|_| Endpoint::tcp("127.0.0.1", 0))
    }

    fn unix() -> Self {
        Self::start(&|dir| Endpoint::unix(dir.path().join("migrate.sock")))
    }

    fn start(listen: &dyn Fn(&TempDir) -> Endpoint) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let daemon = Daemon::start(&options(&dir, listen(&dir))).unwrap();
        let client = Client::new(daemon.api()).unwrap();
        Self {
            daemon: Some(daemon),
            client,
            dir,
        }
    }

    fn restart(&mut self) {
        self.daemon.take().unwrap().stop();
        self.daemon = Some(Daemon::start(&options(&self.dir, Endpoint::tcp("127.0.0.1", 0))).unwrap());
    }

    fn listens_at(&self) -> String {
        self.daemon.as_ref().unwrap().info().listen
    }

    fn run(&self, name: &str, load: &str) {
        self.client.run(&spec(name, load)).unwrap();
    }

    fn migrate(&self, name: &str, request: &MigrateRequest) -> Report {
        let id = self.client.migrate(name, request).unwrap().id;
        self.report(name, &id)
    }

    fn report(&self, name: &str, id: &str) -> Report {
        let began = Instant::now();
        loop {
            match self.client.migration(name).unwrap() {
                Migration {
                    id: ended,
                    stage: Stage::Sent { report },
                } if ended == id => return *report,
                migration => assert!(began.elapsed() < LONG, "it does not end: {migration:?}"),
            }
            thread::sleep(Duration::from_millis(10));
        }
    }

    /// The guest does something, and what it finds is right.
    fn assert_alive(&self, name: &str) {
        let began = Instant::now();
        let before = self.client.stats(name).unwrap().operations;
        loop {
            let now = self.client.stats(name).unwrap();
            assert_eq!(now.violations, 0, "{:?}", now.violations_seen);
            if now.operations > before {
                break;
            }
            assert!(
                began.elapsed() < LONG,
                "{name} stands still: {:?}, {now:?}, {:?}",
                self.client.guest(name).unwrap(),
                self.client.reports().unwrap().last()
            );
            thread::sleep(Duration::from_millis(10));
        }
        let guest = self.client.guest(name).unwrap();
        assert_eq!(
            (guest.role, guest.state),
            (Role::Owner, Some(GuestState::Running))
        );
    }

    fn status_of(&self, request: Result<impl Sized, ClientError>) -> (u16, String) {
        let error = request.err().expect("a refusal");
        (
            error.refusal().unwrap_or_else(|| panic!("{error}")).status,
            error.to_string(),
        )
    }
}

fn options(dir: &TempDir, listen: Endpoint) -> Options {
    Options {
        listen,
        state_dir: dir.path().join("state"),
        api: None,
        max_streams: 64,
        sampling: Some(Budget::default()),
        store: None,
    }
}

fn spec(name: &str, load: &str) -> GuestSpec {
    SynthBackend::spec(name, &loadspec::parse(load, 64 * MIB, 1).unwrap())
}

fn request(to: &str, strategy: Strategy) -> MigrateRequest {
    MigrateRequest {
        verify: true,
        ..MigrateRequest::new(to, strategy)
    }
}

/// One that goes on until somebody ends it.
fn endless(to: &str) -> MigrateRequest {
    let limits = Limits {
        downtime: Duration::ZERO,
        rounds: u32::MAX,
        ..Limits::default()
    };
    MigrateRequest {
        limits,
        ..request(to, Strategy::PreCopy)
    }
}

#[test]
fn a_guest_is_started_looked_at_and_ended() {
    let host = Host::tcp();
    assert_eq!(host.client.guests().unwrap(), []);
    let started = host
        .client
        .run(&spec("web", "key-value:8M,rate=2000 + fill:4M"))
        .unwrap();
    assert_eq!(
        (started.name.as_str(), started.backend.as_str(), started.ram_bytes),
        ("web", "synth", 64 * MIB)
    );
    host.assert_alive("web");
    assert_eq!(host.client.guests().unwrap().len(), 1);
    assert_eq!(host.client.host().unwrap().guests, 1);
    host.client.stop("web", false).unwrap();
    assert_eq!(host.client.guests().unwrap(), []);
    assert!(!host.dir.path().join("state/guests/web").exists());
    assert_eq!(host.status_of(host.client.stop("web", false)).0, 404);
}

/// Waits until so much is known of a guest, and answers what.
fn learned(host: &Host, name: &str, enough: impl Fn(&SamplingReport) -> bool) -> SamplingReport {
    let began = Instant::now();
    loop {
        if let Some(learned) = host.client.guest(name).unwrap().learned
            && enough(&learned)
        {
            return learned;
        }
        assert!(
            began.elapsed() < LONG,
            "nothing is learned: {:?}",
            host.client.guest(name)
        );
        thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn what_was_learned_of_a_guest_stays_while_it_does_and_leaves_with_it() {
    let (a, b) = (Host::tcp(), Host::tcp());
    a.run("web", "write:4M,rate=200M");
    let first = learned(&a, "web", |learned| learned.bursts > 0);
    assert_eq!(
        (first.burst_samples, first.interval_ms, &first.problem),
        (21, 50.0, &None)
    );
    assert_eq!(first.budget_percent, 3.0);
    assert!(first.working_set_pages > 0 && first.states_seen > 0);

    // A migration that fails gives it back.
    let refused = a.migrate("web", &request("tcp:127.0.0.1:1", Strategy::HybridLearning));
    assert_eq!(refused.outcome, Outcome::Failed);
    let after = learned(&a, "web", |_| true);
    assert!(after.samples >= first.samples, "{after:?} after {first:?}");
    a.assert_alive("web");

    // One that completes tells where its working set is from, and the destination starts from nothing.
    let report = a.migrate("web", &request(&b.listens_at(), Strategy::HybridLearning));
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    assert_eq!(report.verified.unwrap().mismatches, 0);
    let notes = report.notes.join("\n");
    assert!(
        notes.contains("the host's sampler (") && notes.contains("bursts"),
        "{notes}"
    );
    assert!(learned(&b, "web", |_| true).samples < first.samples);
    b.assert_alive("web");
    assert!(b.client.guests().unwrap()[0].learned.is_none(), "not in lists");
    b.client.stop("web", false).unwrap();
}

#[test]
fn a_daemon_that_is_not_to_learn_does_not() {
    let dir = tempfile::tempdir().unwrap();
    let options = Options {
        sampling: None,
        ..options(&dir, Endpoint::tcp("127.0.0.1", 0))
    };
    let daemon = Daemon::start(&options).unwrap();
    let client = Client::new(daemon.api()).unwrap();
    client.run(&spec("web", "write:4M,rate=200M")).unwrap();
    assert_eq!(client.host().unwrap().sampling_budget_percent, None);
    assert!(client.guest("web").unwrap().learned.is_none());
}

#[test]
fn what_is_wrong_is_refused_in_one_line_and_leaves_nothing() {
    let host = Host::tcp();
    host.run("web", "write:4M,rate=16M");
    let other = |name: &str, change: &dyn Fn(&mut GuestSpec)| {
        let mut spec = spec(name, "idle");
        change(&mut spec);
        host.status_of(host.client.run(&spec))
    };
    for ((status, line), expected, named) in [
        (other("web", &|_| {}), 409, "already"),
        (other("../etc", &|_| {}), 400, "../etc"),
        (other("", &|_| {}), 400, "name"),
        (
            other("a", &|spec| spec.backend = "xen".into()),
            400,
            "there are: qemu, synth",
        ),
        (
            other("a", &|spec| spec.config["memory_bytes"] = 5.into()),
            400,
            "memory_bytes",
        ),
        (
            other("a", &|spec| spec.config["memory_bytes"] = "much".into()),
            400,
            "understood",
        ),
        (host.status_of(host.client.stats("nobody")), 404, "nobody"),
        (host.status_of(host.client.cancel("web")), 409, "not being moved"),
        (
            host.status_of(host.client.resolve("web", Owner::Here)),
            409,
            "not being moved",
        ),
        (host.status_of(host.client.migration("web")), 404, "no migration"),
        (
            host.status_of(host.client.migrate("web", &request("a b", Strategy::PreCopy))),
            400,
            "no endpoint",
        ),
        (
            host.status_of(host.client.migrate("nobody", &request("x", Strategy::PreCopy))),
            404,
            "nobody",
        ),
    ] {
        assert_eq!(status, expected, "{line}");
        assert!(line.contains(named) && !line.contains('\n'), "{line}");
    }
    let left: Vec<_> = fs::read_dir(host.dir.path().join("state/guests"))
        .unwrap()
        .collect();
    assert_eq!(left.len(), 1, "{left:?}");
    host.assert_alive("web");
}

#[test]
fn guests_move_by_every_strategy_over_tcp_and_unix() {
    let hosts = [Host::tcp(), Host::unix()];
    hosts[0].run(
        "web",
        "key-value:8M,rate=5000 + write:4M,rate=8M + fill:8M,zero=50",
    );
    for (index, strategy) in Strategy::ALL.into_iter().enumerate() {
        let (from, to) = (&hosts[index % 2], &hosts[(index + 1) % 2]);
        let report = from.migrate("web", &request(&to.listens_at(), strategy));
        assert_eq!(
            report.outcome,
            Outcome::Completed,
            "{strategy}: {:?}",
            report.error
        );
        assert_eq!(report.verified.unwrap().mismatches, 0, "{strategy}");
        assert!(
            report.pages.sent > 0 && report.downtime_ms > 0.0,
            "{strategy}: {report:?}"
        );

        assert_eq!(from.client.guests().unwrap(), [], "{strategy}");
        assert!(!from.dir.path().join("state/guests/web").exists());
        to.settled("web");
        to.assert_alive("web");
        let kept = |host: &Host| host.client.reports().unwrap().pop().unwrap();
        assert_eq!(kept(from).side, ReportSide::Source);
        assert_eq!(kept(to).side, ReportSide::Destination);
        assert_eq!(kept(to).report["strategy"], strategy.name());
    }
    for host in &hosts {
        assert_eq!(
            fs::read_dir(host.dir.path().join("state/reports"))
                .unwrap()
                .count(),
            Strategy::ALL.len()
        );
    }
}

impl Host {
    /// A session is under way, and pages arrive.
    fn is_receiving(&self, name: &str) -> bool {
        let stage = self.client.migration(name).map(|migration| migration.stage);
        matches!(stage, Ok(Stage::Incoming { progress }) if progress.received_pages > 0)
    }

    /// The source ends a migration when all pages are acknowledged; the destination has a moment left to note it.
    fn settled(&self, name: &str) {
        let began = Instant::now();
        while self.client.guest(name).unwrap().role != Role::Owner {
            assert!(began.elapsed() < LONG, "{:?}", self.client.guest(name).unwrap());
            thread::sleep(Duration::from_millis(5));
        }
    }
}

#[test]
fn a_migration_that_is_refused_leaves_the_guest_running() {
    let (from, to) = (Host::tcp(), Host::tcp());
    from.run("web", "write:4M,rate=16M");
    to.run("web", "write:4M,rate=16M");

    let clash = from.migrate("web", &request(&to.listens_at(), Strategy::PreCopy));
    assert_eq!(clash.outcome, Outcome::Failed);
    let why = clash.error.unwrap();
    assert!(
        why.contains("a guest named web is on this host already") && !why.contains('\n'),
        "{why}"
    );
    from.assert_alive("web");
    to.assert_alive("web");

    // A port that nobody listens at: it was ours a moment ago.
    let nobody = Host::tcp().listens_at();
    let unreachable = from.migrate("web", &request(&nobody, Strategy::PostCopy));
    assert_eq!(unreachable.outcome, Outcome::Failed);
    let why = unreachable.error.unwrap();
    assert!(
        why.contains("is `vmferry host` running there?") && !why.contains('\n'),
        "{why}"
    );
    from.assert_alive("web");

    // Nothing of it stands in the way of one that works.
    to.client.stop("web", false).unwrap();
    let report = from.migrate("web", &request(&to.listens_at(), Strategy::PreCopy));
    assert_eq!(report.outcome, Outcome::Completed, "{:?}", report.error);
    to.settled("web");
    to.assert_alive("web");
}

#[test]
fn a_migration_is_cancelled_at_either_side() {
    let (from, to) = (Host::tcp(), Host::tcp());
    from.run("web", "write:16M");
    for canceller in [&from, &to] {
        let id = from.client.migrate("web", &endless(&to.listens_at())).unwrap().id;
        let began = Instant::now();
        while !to.is_receiving("web") {
            assert!(began.elapsed() < LONG);
            thread::sleep(Duration::from_millis(5));
        }
        assert_eq!(from.client.guest("web").unwrap().role, Role::Source);
        assert_eq!(from.status_of(from.client.stop("web", true)).0, 409);
        assert_eq!(
            from.status_of(from.client.migrate("web", &endless(&to.listens_at())))
                .0,
            409
        );
        assert_eq!(to.status_of(to.client.resolve("web", Owner::Here)).0, 409);
        canceller.client.cancel("web").unwrap();
        let report = from.report("web", &id);
        assert_ne!(report.outcome, Outcome::Completed);
        from.assert_alive("web");
        while to.client.guest("web").is_ok() {
            assert!(began.elapsed() < LONG);
            thread::sleep(Duration::from_millis(5));
        }
        assert!(!to.dir.path().join("state/guests/web").exists());
    }
}

#[test]
fn a_daemon_that_stops_cancels_what_leaves() {
    let (mut from, to) = (Host::tcp(), Host::tcp());
    from.run("web", "write:16M");
    from.client.migrate("web", &endless(&to.listens_at())).unwrap();
    from.restart();
    let reports = from.client.reports().unwrap();
    assert_eq!(reports.len(), 1);
    assert_eq!(
        reports[0].report["outcome"], "cancelled",
        "{:?}",
        reports[0].report
    );
}

#[test]
fn a_restart_keeps_nothing_of_synthetic_guests_and_says_so() {
    let mut host = Host::tcp();
    host.run("web", "idle");
    // As if it had been killed: the directory stays.
    let guests = host.dir.path().join("state/guests");
    let saved = fs::read(guests.join("web/spec.json")).unwrap();
    host.daemon.take().unwrap().stop();
    fs::create_dir_all(guests.join("web")).unwrap();
    fs::write(guests.join("web/spec.json"), saved).unwrap();
    fs::create_dir(guests.join("half-made")).unwrap();

    host.daemon = Some(Daemon::start(&options(&host.dir, Endpoint::tcp("127.0.0.1", 0))).unwrap());
    let info = host.client.host().unwrap();
    assert_eq!(info.guests, 0);
    assert_eq!(info.notes.len(), 1, "{:?}", info.notes);
    assert!(
        info.notes[0].starts_with("web is gone: synthetic guests live in the daemon"),
        "{:?}",
        info.notes
    );
    assert_eq!(fs::read_dir(&guests).unwrap().count(), 0);
    host.run("web", "idle");
}

#[test]
fn a_guest_that_cannot_be_recovered_is_shown_and_forgotten_only_by_force() {
    let host = Host::tcp();
    let dir = host.dir;
    host.daemon.unwrap().stop();
    let broken = dir.path().join("state/guests/web");
    fs::create_dir(&broken).unwrap();
    fs::write(broken.join("spec.json"), "{").unwrap();

    let daemon = Daemon::start(&options(&dir, Endpoint::tcp("127.0.0.1", 0))).unwrap();
    let client = Client::new(daemon.api()).unwrap();
    let guest = client.guest("web").unwrap();
    assert_eq!(guest.role, Role::Unreachable);
    assert!(guest.problem.unwrap().contains("damaged"));
    assert!(client.migrate("web", &request("x", Strategy::PreCopy)).is_err());
    assert!(
        client
            .stop("web", false)
            .unwrap_err()
            .to_string()
            .contains("--force")
    );
    client.stop("web", true).unwrap();
    assert!(!broken.exists());
}

#[test]
fn only_the_owner_reaches_the_api_and_only_one_daemon_the_state() {
    let host = Host::tcp();
    let socket = host.daemon.as_ref().unwrap().api().to_owned();
    assert_eq!(fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    assert_eq!(
        fs::metadata(socket.parent().unwrap())
            .unwrap()
            .permissions()
            .mode()
            & 0o777,
        0o700
    );
    let second = Daemon::start(&options(&host.dir, Endpoint::tcp("127.0.0.1", 0)));
    let error = second.err().unwrap().to_string();
    assert!(error.contains("another `vmferry host`"), "{error}");
    host.client.host().unwrap();
    drop(host.daemon);
    assert!(!socket.exists());
}

#[test]
fn a_migration_leaves_a_record_for_the_models_and_a_damaged_history_harms_nobody() {
    let (mut a, b) = (Host::tcp(), Host::tcp());
    a.run("web", "write:4M,rate=50M + fill:8M");
    let asked = MigrateRequest {
        workload: Some("memory-write:50".parse().unwrap()),
        limits: Limits {
            cpu_percent: Some(40),
            cpu_destination_percent: Some(60),
            ..Limits::default()
        },
        ..request(&b.listens_at(), Strategy::PostCopyPush)
    };
    let report = a.migrate("web", &asked);
    assert_eq!(report.outcome, Outcome::Completed);
    a.restart();
    let kept = a.client.history().unwrap();
    let [record] = kept.records.as_slice() else {
        panic!("{kept:?}")
    };
    assert_eq!(
        (record.vm.as_str(), record.strategy.as_str(), record.together),
        ("web", "post-copy-push", 1)
    );
    assert_eq!(
        (record.setting.source_percent, record.setting.destination_percent),
        (Some(40.0), Some(60.0))
    );
    assert_eq!(
        record.kind().to_string(),
        "memory-write:50, post-copy-push, synth, auto"
    );
    assert!((record.total_ms, record.data_bytes) == (report.total_ms, report.data_bytes));
    assert_eq!(b.client.history().unwrap().records, [], "the source keeps it");

    a.daemon.take().unwrap().stop();
    fs::write(a.dir.path().join("state/history"), "no database").unwrap();
    a.daemon = Some(Daemon::start(&options(&a.dir, Endpoint::tcp("127.0.0.1", 0))).unwrap());
    let notes = a.client.host().unwrap().notes.join("; ");
    assert!(
        notes.contains("history") && notes.contains("move it away"),
        "{notes}"
    );
    let (status, why) = a.status_of(a.client.history());
    assert!(status == 409 && why.contains("damaged"), "{why}");
    a.run("db", "write:4M");
    let report = a.migrate("db", &request(&b.listens_at(), Strategy::PostCopyPush));
    assert_eq!(report.outcome, Outcome::Completed);
}

#[test]
fn migrations_at_the_same_time_are_known_as_such() {
    let (a, b) = (Host::tcp(), Host::tcp());
    let names = ["one", "two", "three"];
    let slow = |to: &str| MigrateRequest {
        limits: Limits {
            bandwidth_bytes_per_s: Some(8 * MIB),
            ..Limits::default()
        },
        ..request(to, Strategy::PostCopyPush)
    };
    names.iter().for_each(|name| a.run(name, "fill:8M"));
    let ids = names.map(|name| a.client.migrate(name, &slow(&b.listens_at())).unwrap().id);
    for (name, id) in names.iter().zip(&ids) {
        assert_eq!(a.report(name, id).outcome, Outcome::Completed);
    }
    let records = a.client.history().unwrap().records;
    assert_eq!(records.len(), 3);
    assert!(records.iter().all(|record| record.together == 3), "{records:?}");
}
