//! The CPU time of a process.

use std::fs;
use std::time::Duration;

/// The unit of `/proc/PID/stat`: USER_HZ, which is 100 wherever Linux has userfaultfd.
const TICK: Duration = Duration::from_millis(10);

/// What process `pid` used since it was started, all its threads together; none when it is gone.
pub(crate) fn used(pid: u32) -> Option<Duration> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    ticks(&stat).map(|ticks| TICK * ticks)
}

/// User and system time, the 14th and 15th field; the second is a name in parentheses, which may hold anything.
fn ticks(stat: &str) -> Option<u32> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut times = fields
        .split_whitespace()
        .skip(11)
        .map(|field| field.parse::<u32>().ok());
    times.next()??.checked_add(times.next()??)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_and_system_time_are_added() {
        let stat = "7 (a) b 1) S 1 7 7 0 -1 4194560 100 0 0 0 250 42 9 9 20 0 3 0 5 0 0";
        assert_eq!(ticks(stat), Some(292));
        assert_eq!(ticks("7 (a) S 1"), None);
        assert!(used(std::process::id()).is_some() && used(u32::MAX).is_none());
    }
}
