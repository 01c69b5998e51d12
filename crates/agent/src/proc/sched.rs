//! When threads ran: `/proc/PID/task/TID/sched` where the kernel has it, else `schedstat`.

/// When a thread was last given a CPU, in milliseconds of the scheduler's clock: `se.exec_start` in the text of `sched`.
pub(crate) fn exec_start_ms(sched: &str) -> Option<u64> {
    let line = sched
        .lines()
        .find_map(|line| line.trim().strip_prefix("se.exec_start"))?;
    let value = line.split_once(':')?.1.trim();
    value
        .split_once('.')
        .map_or(value, |(whole, _)| whole)
        .parse()
        .ok()
}

/// How long a thread has run, in nanoseconds: the first number in the text of `schedstat`.
pub(crate) fn run_time_ns(schedstat: &str) -> Option<u64> {
    schedstat.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_files_of_a_real_thread() {
        assert_eq!(
            exec_start_ms(include_str!("../../fixtures/sched")),
            Some(6_272_710)
        );
        assert_eq!(run_time_ns("775215 468240 2\n"), Some(775_215));
    }

    #[test]
    fn what_is_not_there_is_not_guessed() {
        assert_eq!(exec_start_ms("se.vruntime : 1.0\n"), None);
        assert_eq!(exec_start_ms("se.exec_start : never\n"), None);
        assert_eq!(run_time_ns(""), None);
    }
}
