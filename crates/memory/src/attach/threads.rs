//! Which thread of a process to stop for an injection.

use std::fs;

use crate::{Error, Result};

/// System calls that go on by themselves after a stop.
const RESTARTING: &[i64] = &[
    libc::SYS_accept,
    libc::SYS_clock_nanosleep,
    libc::SYS_futex,
    libc::SYS_nanosleep,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_pause,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_poll,
    libc::SYS_ppoll,
    libc::SYS_pselect6,
    libc::SYS_read,
    libc::SYS_recvfrom,
    libc::SYS_recvmsg,
    #[cfg(target_arch = "x86_64")]
    libc::SYS_select,
];

/// How many threads of a process are tried at most.
const CANDIDATES: usize = 8;

/// The ids of threads of process `pid`, the most suitable first.
///
/// QEMU's `call_rcu` thread sleeps nearly always and nobody waits for it. Next come threads asleep in a call that
/// goes on by itself, then other sleepers, then the rest. The main thread comes last: where the process is a
/// child of ours, somebody may be waiting for its end, and would be told of our stop instead.
pub(super) fn by_suitability(pid: u32) -> Result<Vec<u32>> {
    let folder = format!("/proc/{pid}/task");
    let entries = fs::read_dir(&folder).map_err(|e| match e.raw_os_error() {
        Some(libc::ENOENT | libc::ESRCH) => Error::ProcessGone,
        _ => Error::system(format!("list the threads of process {pid}"), e),
    })?;
    let mut threads: Vec<(u8, u32)> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .map(|thread| (rank(pid, thread), thread))
        .collect();
    threads.sort_unstable();
    // A process with hundreds of threads that all refuse to stop is not worth minutes of waiting.
    Ok(threads
        .into_iter()
        .map(|(_, thread)| thread)
        .take(CANDIDATES)
        .collect())
}

fn rank(pid: u32, thread: u32) -> u8 {
    let file =
        |name: &str| fs::read_to_string(format!("/proc/{pid}/task/{thread}/{name}")).unwrap_or_default();
    let main = thread == pid;
    if file("comm").trim_end() == "call_rcu" && !main {
        return 0;
    }
    // "NUMBER ARGUMENTS..." for a thread asleep in a system call, "running" for one that is not asleep.
    let call = file("syscall");
    let number: Option<i64> = call
        .split_whitespace()
        .next()
        .and_then(|number| number.parse().ok());
    let suitability = match number {
        Some(number) if RESTARTING.contains(&number) => 1,
        Some(_) => 2,
        None => 3,
    };
    if main { suitability + 3 } else { suitability }
}
