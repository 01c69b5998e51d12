//! `/proc/loadavg` and `/proc/meminfo`.

use vmferry_agent_proto::Load;

/// The load from the texts of both files.
pub(crate) fn parse(loadavg: &str, meminfo: &str) -> Option<Load> {
    let mut averages = loadavg.split_ascii_whitespace().map(percent);
    let mut next = || averages.next().flatten();
    Some(Load {
        averages_percent: [next()?, next()?, next()?],
        total_kib: kib(meminfo, "MemTotal:")?,
        free_kib: kib(meminfo, "MemFree:")?,
        available_kib: kib(meminfo, "MemAvailable:")?,
    })
}

/// `1.25` as 125.
fn percent(number: &str) -> Option<u32> {
    let (whole, hundredths) = number.split_once('.')?;
    let whole: u32 = whole.parse().ok()?;
    let hundredths: u32 = hundredths.get(..2)?.parse().ok()?;
    whole.checked_mul(100)?.checked_add(hundredths)
}

fn kib(meminfo: &str, name: &str) -> Option<u64> {
    let line = meminfo.lines().find_map(|line| line.strip_prefix(name))?;
    line.trim().strip_suffix(" kB")?.trim().parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_real_one() {
        let meminfo =
            "MemTotal:         239020 kB\nMemFree:          199884 kB\nMemAvailable:     190232 kB\n";
        let expected = Load {
            averages_percent: [142, 36, 9],
            total_kib: 239_020,
            free_kib: 199_884,
            available_kib: 190_232,
        };
        assert_eq!(parse("1.42 0.36 0.09 2/51 113\n", meminfo), Some(expected));
    }

    #[test]
    fn a_strange_one_is_none() {
        assert_eq!(parse("", ""), None);
        assert_eq!(parse("1 2 3", "MemTotal: many kB"), None);
    }
}
