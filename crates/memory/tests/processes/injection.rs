//! System calls injected into a process that is busy with something else.

use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal};
use vmferry_memory::{Error, RemoteProcess, Syscall, UffdRequest, read_maps};

use crate::can_attach;
use crate::puppet::Puppet;

/// `getpid`.
const GETPID: Syscall = Syscall {
    number: 39,
    arguments: [0; 6],
};

fn pid_of(puppet: &Puppet) -> Pid {
    Pid::from_raw(puppet.pid() as i32).unwrap()
}

/// The state letter of the process's main thread, as `ps` shows it.
fn state(puppet: &Puppet) -> char {
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", puppet.pid())).unwrap();
    stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
}

/// Injects `times` into a puppet that does `work`; gives back how often the work was done and went wrong.
fn disturb(puppet: &mut Puppet, work: &str, times: u32) -> (u64, u64) {
    assert_eq!(puppet.ask(&format!("work {work}")), "started");
    let process = puppet.process();
    let began = Instant::now();
    for _ in 0..times {
        assert_eq!(process.inject(GETPID).unwrap(), i64::from(process.pid()));
    }
    println!(
        "{work}: {} us an injection",
        began.elapsed().as_micros() / u128::from(times)
    );
    let done = puppet.ask("rest");
    let (done, failed) = done.split_once(' ').unwrap();
    (done.parse().unwrap(), failed.parse().unwrap())
}

#[test]
fn five_hundred_injections_go_unnoticed() {
    if !can_attach() {
        return;
    }
    let mut puppet = Puppet::new(1);
    for work in ["compute", "ppoll", "nanosleep", "futex"] {
        let (done, failed) = disturb(&mut puppet, work, 125);
        assert!(done > 10, "{work} was done {done} times");
        assert_eq!(failed, 0, "{work} went wrong");
    }
}

/// Whoever injects may be killed at any moment: the thread is as it was before.
#[test]
fn a_death_in_the_middle_goes_unnoticed() {
    if !can_attach() {
        return;
    }
    let mut puppet = Puppet::new(1);
    puppet.memory.store_u64(8, 1_000_000);
    for work in ["compute", "futex"] {
        assert_eq!(puppet.ask(&format!("work {work}")), "started");
        for round in 0..60 {
            let mut injector = Puppet::new(1);
            let inject = format!("inject {} {}", puppet.pid(), puppet.base());
            assert_eq!(injector.ask(&inject), "injecting");
            std::thread::sleep(Duration::from_micros(3000 + 170 * round));
            drop(injector);
            assert_eq!(puppet.ask("hello"), "hello", "{work}, round {round}");
        }
        let done = puppet.ask("rest");
        let (done, failed) = done.split_once(' ').unwrap();
        assert!(done.parse::<u64>().unwrap() > 100, "{work} was done {done} times");
        assert_eq!(failed, "0", "{work} went wrong");
        // Nothing is left of it.
        let process = puppet.process();
        assert_eq!(process.inject(GETPID).unwrap(), i64::from(process.pid()));
    }
}

/// Threads that end between being chosen and being stopped.
#[test]
fn threads_may_come_and_go() {
    if !can_attach() {
        return;
    }
    let mut puppet = Puppet::new(1);
    let (_, failed) = disturb(&mut puppet, "churn", 150);
    assert_eq!(failed, 0);
}

#[test]
fn signals_may_come_at_any_time() {
    if !can_attach() {
        return;
    }
    let mut puppet = Puppet::new(1);
    let target = pid_of(&puppet);
    let done = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            // Ignored ones (a tracer is told of them even so), and stops and continuations of the whole process.
            for signal in [Signal::URG, Signal::WINCH, Signal::STOP, Signal::CONT]
                .iter()
                .cycle()
            {
                if done.load(Relaxed) && *signal == Signal::URG {
                    return;
                }
                rustix::process::kill_process(target, *signal).unwrap();
                std::thread::sleep(Duration::from_micros(150));
            }
        });
        let process = puppet.process();
        for _ in 0..200 {
            assert_eq!(process.inject(GETPID).unwrap(), i64::from(process.pid()));
        }
        done.store(true, Relaxed);
    });
    rustix::process::kill_process(target, Signal::CONT).unwrap();
    assert_eq!(puppet.ask("hello"), "hello");
}

#[test]
fn a_stopped_process_stays_stopped() {
    if !can_attach() {
        return;
    }
    let mut puppet = Puppet::new(1);
    let target = pid_of(&puppet);
    rustix::process::kill_process(target, Signal::STOP).unwrap();
    while state(&puppet) != 'T' {
        std::thread::yield_now();
    }
    let process = puppet.process();
    for _ in 0..5 {
        assert_eq!(process.inject(GETPID).unwrap(), i64::from(process.pid()));
    }
    // The thread that made the calls joins the others again.
    puppet.tell("hello");
    assert!(!puppet.answers_within(Duration::from_millis(30)), "it runs");
    assert_eq!(state(&puppet), 'T');
    rustix::process::kill_process(target, Signal::CONT).unwrap();
    assert_eq!(puppet.answer(), "hello");
}

#[test]
fn a_call_that_fails_says_so() {
    if !can_attach() {
        return;
    }
    let mut puppet = Puppet::new(1);
    let process = puppet.process();
    let Err(Error::InjectedCall {
        number: 3, source, ..
    }) = process.close_remote(12_345)
    else {
        panic!("closing what is not open");
    };
    assert_eq!(source.raw_os_error(), Some(libc::EBADF));
    let not_a_device = process
        .steal_userfaultfd(UffdRequest::Device { remote_fd: 0 })
        .unwrap_err();
    assert!(
        matches!(not_a_device, Error::InjectedCall { .. }),
        "{not_a_device}"
    );
    assert_eq!(process.find_userfaultfds().unwrap(), []);
    assert!(process.getfd(12_345).is_err());
    assert_eq!(puppet.ask("hello"), "hello");
}

#[test]
fn a_descriptor_is_fetched_without_a_stop() {
    if !can_attach() {
        return;
    }
    let puppet = Puppet::new(3);
    let theirs = std::fs::read_dir(format!("/proc/{}/fd", puppet.pid()))
        .unwrap()
        .map(|entry| entry.unwrap())
        .find(|entry| {
            std::fs::read_link(entry.path())
                .unwrap()
                .to_string_lossy()
                .starts_with("/memfd:puppet")
        })
        .map(|entry| entry.file_name().to_str().unwrap().parse().unwrap())
        .unwrap();
    let fetched = puppet.process().getfd(theirs).unwrap();
    assert_eq!(rustix::fs::fstat(&fetched).unwrap().st_size, 3 * 4096);
}

/// Fails when the injected call does not return: the puppet is let go, as it was.
#[test]
fn a_call_that_blocks_is_given_up() {
    if !can_attach() {
        return;
    }
    let mut puppet = Puppet::new(1);
    let process = puppet.process();
    // Sleeps a minute: a timespec of that length, written where the puppet has its memory.
    puppet.memory.store_u64(0, 60);
    let arguments = [puppet.base(), 0, 0, 0, 0, 0];
    let began = Instant::now();
    let given_up = process
        .inject(Syscall {
            number: libc::SYS_nanosleep,
            arguments,
        })
        .unwrap_err();
    assert!(matches!(given_up, Error::AttachTimedOut { .. }), "{given_up}");
    assert!(began.elapsed() < Duration::from_secs(30));
    assert_eq!(puppet.ask("hello"), "hello");
    assert_eq!(process.inject(GETPID).unwrap(), i64::from(process.pid()));
}

#[test]
fn processes_that_cannot_be_attached_to() {
    assert!(matches!(
        RemoteProcess::open(std::process::id()),
        Err(Error::OwnProcess)
    ));
    assert!(matches!(
        RemoteProcess::open(u32::MAX >> 1),
        Err(Error::ProcessGone)
    ));
    assert!(matches!(RemoteProcess::open(u32::MAX), Err(Error::ProcessGone)));
    assert!(matches!(RemoteProcess::open(0), Err(Error::ProcessGone)));
    if !can_attach() {
        return;
    }
    // One that has exited and that nobody has collected yet.
    let mut child = Command::new("true").spawn().unwrap();
    let process = RemoteProcess::open(child.id()).unwrap();
    while process.is_alive() {
        std::thread::yield_now();
    }
    assert!(matches!(process.inject(GETPID), Err(Error::ProcessGone)));
    child.wait().unwrap();

    let puppet = Puppet::new(1);
    let process = puppet.process();
    assert!(process.is_alive());
    drop(puppet);
    assert!(!process.is_alive());
    assert!(matches!(process.inject(GETPID), Err(Error::ProcessGone)));
    assert!(matches!(process.getfd(0), Err(Error::ProcessGone)));
    assert!(matches!(process.find_userfaultfds(), Err(Error::ProcessGone)));
    assert!(matches!(read_maps(process.pid()), Err(Error::ProcessGone)));
}
