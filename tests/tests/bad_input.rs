//! What an operator can get wrong: each mistake is one clear line and a failure, and the guest goes on at the source.

use std::fs;
use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;
use std::process::{Child, Command, Stdio};

use vmferry_tests::vmferry::program;
use vmferry_tests::{Answer, Hosts, TestGuest, eventually, need, shared_turn};

/// Nobody's user and group on every Linux.
const NOBODY: u32 = 65534;

/// A guest at the source that prints a line every second, and hosts between which it could move.
struct Scene {
    hosts: Hosts,
    guest: TestGuest,
}

impl Scene {
    /// The destination finds the outcome of `prelude`, as in [`Hosts::with_destination`].
    fn new(prelude: &str, args: &[&str]) -> Self {
        let hosts = Hosts::with_destination(prelude);
        let path = hosts.dir.path().display().to_string();
        let args: Vec<String> = args.iter().map(|arg| arg.replace("$DIR", &path)).collect();
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let guest = TestGuest::new("vm", hosts.dir.path(), 192, "write:8:8 vmferry.selfcheck", &args);
        Self { hosts, guest }
    }

    /// The migration fails with a line of these words; the guest goes on, and nothing is left at the destination.
    fn expect_refusal(&self, options: &[&str], words: &[&str]) {
        let answer = self.hosts.migrate("vm", options);
        println!("{}", answer.expect_refusal(words));
        self.assert_untouched();
    }

    fn assert_untouched(&self) {
        self.hosts.source.assert_owns("vm");
        let beats = self.guest.console.count("alive ");
        eventually("the guest's heart beats", || {
            self.guest.console.count("alive ") >= beats + 2
        });
        self.guest.console.assert_healthy(1);
    }

    /// After all that it can still be moved.
    fn assert_movable(&self) {
        let report = self.hosts.migrate("vm", &["--verify"]).expect_json();
        assert_eq!(report["verified"]["mismatches"], 0, "{report:#}");
        self.guest.console.assert_healthy(2);
    }
}

#[test]
fn a_wrong_command_or_destination_leaves_the_guest_alone() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let scene = Scene::new("", &[]);
    let hosts = &scene.hosts;
    hosts.run(&scene.guest);

    // What is wrong with the command itself is told with the usage, as everywhere: the first line says it.
    let answer = hosts.migrate("vm", &["--strategy", "teleport"]);
    assert_eq!(answer.code, Some(2), "{answer:?}");
    let line = answer.stderr.lines().next().unwrap();
    for word in [
        "teleport",
        "stop-and-copy",
        "pre-copy",
        "post-copy",
        "post-copy-push",
    ] {
        assert!(line.contains(word), "{word} is not in {line:?}");
    }
    println!("{line}");
    scene.assert_untouched();

    let no_such_guest = hosts
        .source
        .call(&["migrate", "web", "--to", &hosts.destination.endpoint()]);
    println!("{}", no_such_guest.expect_refusal(&["web", "vmferry list"]));

    let to = |endpoint: &str| hosts.source.call(&["migrate", "vm", "--to", endpoint]);
    // A host at which nobody listens, a host that is not there, a name that nobody knows.
    for (endpoint, words) in [
        ("tcp:10.93.0.2:7121", &["tcp:10.93.0.2:7121", "refused"][..]),
        ("tcp:10.93.0.99:7120", &["tcp:10.93.0.99:7120"]),
        ("tcp:no-such-host.invalid:7120", &["no-such-host.invalid"]),
        ("unix:/nonexistent/in.sock", &["/nonexistent/in.sock"]),
    ] {
        println!("{}", to(endpoint).expect_refusal(words));
        scene.assert_untouched();
    }
    let answer = to("nonsense://x");
    assert_eq!(answer.code, Some(2), "{answer:?}");

    // The same report that a completed migration has, and nothing else on stdout.
    let report = to("tcp:10.93.0.2:7121").json();
    assert_eq!(
        (&report["outcome"], &report["vm"]),
        (&"failed".into(), &"vm".into())
    );

    // A guest of that name is there already.
    let tiny = |name: &str| hosts.destination.call(&["run", name, "--memory", "32M"]);
    assert_eq!(tiny("vm").code, Some(0));
    println!("{}", tiny("vm").expect_refusal(&["vm"]));
    scene.expect_refusal(&[], &["vm", "already"]);
    hosts.destination.assert_owns("vm");
    assert_eq!(hosts.destination.call(&["stop", "vm"]).code, Some(0));
    scene.assert_movable();
}

/// The algorithms that learn have parameters that can be wrong for a guest, which nobody knows before it is asked.
#[test]
fn parameters_of_learning_that_make_no_sense_leave_the_guest_alone() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let scene = Scene::new("", &[]);
    scene.hosts.run(&scene.guest);
    let refused = |strategy: &str, option: &[&str], words: &[&str]| {
        let options = [&["--strategy", strategy], option].concat();
        println!("{}", scene.hosts.migrate("vm", &options).expect_refusal(words));
        scene.hosts.source.assert_owns("vm");
    };
    // 192 MiB are 49,152 pages.
    refused(
        "pre-copy-filter",
        &["--regions", "250"],
        &["250 regions do not divide", "49152 pages", "such as 192"],
    );
    refused("pre-copy-filter", &["--regions", "0"], &["choose 1 to 1024"]);
    refused("pre-copy-filter", &["--regions", "4096"], &["choose 1 to 1024"]);
    for alpha in ["-0.1", "1.5"] {
        refused(
            "hybrid-learning",
            &["--alpha", alpha],
            &["alpha", "between 0 and 1"],
        );
    }
    refused("hybrid-learning", &["--samples", "0"], &["1 to 10000"]);
    refused("hybrid-learning", &["--samples", "20000"], &["1 to 10000"]);
    refused(
        "pre-copy-filter",
        &["--interval", "0ms"],
        &["interval", "more than 0"],
    );
    refused(
        "pre-copy-filter",
        &["--interval", "1h"],
        &["interval", "10000 ms"],
    );
    scene.assert_untouched();
    let report = scene
        .hosts
        .migrate(
            "vm",
            &["--strategy", "hybrid-learning", "--alpha", "1", "--verify"],
        )
        .expect_json();
    assert_eq!(report["verified"]["mismatches"], 0, "{report:#}");
    scene.guest.console.assert_healthy(2);
}

#[test]
fn a_destination_that_lacks_something_leaves_the_guest_alone() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    // Little memory, and a folder that is empty there.
    let scene = Scene::new(
        "cp /proc/meminfo $DIR/meminfo && mount --bind $DIR/meminfo /proc/meminfo
         mkdir -p $DIR/disks && mount -t tmpfs none $DIR/disks",
        &["-drive", "file=$DIR/disks/a.img,format=raw,if=virtio"],
    );
    let dir = scene.hosts.dir.path();
    let disk = dir.join("disks/a.img");
    fs::File::create(&disk).unwrap().set_len(1 << 20).unwrap();
    scene.hosts.run(&scene.guest);
    let path = disk.display().to_string();
    scene.expect_refusal(&[], &[&path, "does not exist", "-drive", "shared storage"]);

    let meminfo = fs::read_to_string("/proc/meminfo").unwrap();
    let line = meminfo
        .lines()
        .find(|line| line.starts_with("MemAvailable"))
        .unwrap();
    // In place: the file itself is mounted there.
    fs::write(
        dir.join("meminfo"),
        meminfo.replace(line, "MemAvailable:     102400 kB"),
    )
    .unwrap();
    let put_there = fs::File::create(format!("/proc/{}/root{path}", scene.hosts.destination.pid()));
    put_there.unwrap().set_len(1 << 20).unwrap();
    scene.expect_refusal(&[], &["192 MiB", "100 MiB are available", "free memory"]);
}

#[test]
fn a_guest_that_cannot_start_is_refused() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let hosts = Hosts::new();
    let run = |args: &[&str]| {
        let fixed = ["run", "vm", "--memory", "64M", "--"];
        // `--json` would be QEMU's behind the dashes.
        Answer::of(hosts.source.command().args(fixed).args(args))
    };
    for (args, words) in [
        (
            &["-kernel", "/no/vmlinuz"][..],
            &["/no/vmlinuz", "does not exist"][..],
        ),
        (&["-device", "no-such-device"], &["no-such-device"]),
        (&["-incoming", "defer"], &["-incoming", "leave it out"]),
        (&["-m", "512"], &["-m 512"]),
    ] {
        println!("{}", run(args).expect_refusal(words));
        assert!(hosts.source.guest("vm").is_none(), "nothing is left");
        assert!(!hosts.source.guest_dir("vm").exists());
    }
    let huge = hosts.source.call(&["run", "vm", "--memory", "100T"]);
    println!("{}", huge.expect_refusal(&["are available"]));
    let missing = hosts
        .source
        .call(&["run", "vm", "--memory", "64M", "--qemu", "qemu-system-none"]);
    println!(
        "{}",
        missing.expect_refusal(&["qemu-system-none", "not installed"])
    );
}

#[test]
fn who_has_no_permission_is_told_so() {
    need!(Qemu, Root, Userfaultfd);
    let _turn = shared_turn();
    let hosts = Hosts::new();
    let dir = hosts.dir.path();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755)).unwrap();
    // Where it was built nobody may look.
    let vmferry = dir.join("vmferry");
    fs::copy(program(), &vmferry).unwrap();

    // A command of another user.
    let socket = hosts.source.api();
    let listed = Answer::of(as_nobody(&vmferry).args(["list", "--host-socket"]).arg(&socket));
    println!(
        "{}",
        listed.expect_refusal(&[&socket.display().to_string(), "ermission denied"])
    );

    // A daemon of another user, to which a guest shall come by post-copy.
    let state = dir.join("nobody");
    fs::create_dir(&state).unwrap();
    chown(&state, Some(NOBODY), Some(NOBODY)).unwrap();
    let endpoint = format!("unix:{}", state.join("in.sock").display());
    let mut command = as_nobody(&vmferry);
    command
        .args(["host", "--listen", &endpoint, "--state-dir"])
        .arg(&state);
    let _daemon = Guarded(
        command
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .unwrap(),
    );
    eventually("it listens", || state.join("in.sock").exists());
    assert_eq!(
        hosts.source.call(&["run", "tiny", "--memory", "32M"]).code,
        Some(0)
    );
    let restricted =
        fs::read_to_string("/proc/sys/vm/unprivileged_userfaultfd").is_ok_and(|value| value.trim() == "0");
    let answer = hosts.source.call(&[
        "migrate",
        "tiny",
        "--to",
        &endpoint,
        "--strategy",
        "post-copy-push",
    ]);
    if restricted {
        println!("{}", answer.expect_refusal(&["userfaultfd"]));
        hosts.source.assert_owns("tiny");
    } else {
        println!("not checked: this kernel permits userfaultfd to everybody: {answer:?}");
    }
}

/// A daemon that is told to end with its test.
struct Guarded(Child);

impl Drop for Guarded {
    fn drop(&mut self) {
        // It may have ended. What it started is in no namespace that would end it: it ends its guests when asked to.
        let _ = rustix::process::kill_process(
            rustix::process::Pid::from_child(&self.0),
            rustix::process::Signal::TERM,
        );
        let _ = self.0.wait();
    }
}

fn as_nobody(program: &Path) -> Command {
    let mut command = Command::new("setpriv");
    let id = NOBODY.to_string();
    command
        .args(["--reuid", &id, "--regid", &id, "--clear-groups"])
        .arg(program);
    command
}
