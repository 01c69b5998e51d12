//! Sizes and durations as people write and read them.

use std::time::Duration;

use thiserror::Error;

const UNITS: [(&str, u32); 6] = [("B", 0), ("K", 10), ("M", 20), ("G", 30), ("T", 40), ("P", 50)];

/// A text that is no size or no duration.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum UnitError {
    /// Not a size.
    #[error("{0:?} is no size; write a number and a unit, as in 512M or 4G (K, M, G and T count by 1024)")]
    Size(String),
    /// Not a duration.
    #[error("{0:?} is no duration; write a number and a unit, as in 300ms, 5s or 2m (us, ms, s, m, h)")]
    Duration(String),
    /// Not a percentage.
    #[error("{0:?} is no percentage; write a number, as in 3% or 0.5%")]
    Percent(String),
    /// Not a bandwidth.
    #[error(
        "{0:?} is no bandwidth; write a number and a unit, in bits as in 200mbit or 10gbit, or in bytes as in 25MB/s or 24MiB/s"
    )]
    Bandwidth(String),
    /// Bits, or bytes?
    #[error("{0:?} may be bits or bytes; write {1}bit or {1}B/s")]
    BitsOrBytes(String, String),
    /// Not a share of CPU.
    #[error("{0:?} is no share of CPU; write percent of one core, as in 50%")]
    Cpu(String),
}

/// Bytes in a text such as `512M`, `4G`, `1.5GiB` or `4096`. Units count by 1024.
///
/// # Errors
/// [`UnitError::Size`] when it is none, or not a whole number of bytes below 2^63.
pub fn parse_size(text: &str) -> Result<u64, UnitError> {
    let wrong = || UnitError::Size(text.to_owned());
    let (number, unit) = split_number(text);
    let unit = unit.to_ascii_uppercase();
    let unit = unit
        .strip_suffix("IB")
        .or_else(|| unit.strip_suffix('B'))
        .unwrap_or(&unit);
    let shift = match unit {
        "" => 0,
        _ => {
            UNITS
                .iter()
                .skip(1)
                .find(|(name, _)| *name == unit)
                .ok_or_else(wrong)?
                .1
        }
    };
    scaled(number, 1 << shift).ok_or_else(wrong)
}

/// A duration in a text such as `300ms`, `5s`, `1.5m` or `2h`. The unit may not be left out.
///
/// # Errors
/// [`UnitError::Duration`] when it is none.
pub fn parse_duration(text: &str) -> Result<Duration, UnitError> {
    let wrong = || UnitError::Duration(text.to_owned());
    let (number, unit) = split_number(text);
    let unit_ns = match unit {
        "us" => 1_000,
        "ms" => 1_000_000,
        "s" => 1_000_000_000,
        "m" | "min" => 60 * 1_000_000_000,
        "h" => 3600 * 1_000_000_000,
        _ => return Err(wrong()),
    };
    scaled(number, unit_ns)
        .map(Duration::from_nanos)
        .ok_or_else(wrong)
}

/// The number in a text such as `3%` or `0.5`.
///
/// # Errors
/// [`UnitError::Percent`] when it is none.
pub fn parse_percent(text: &str) -> Result<f64, UnitError> {
    let number = text.trim();
    let number = number.strip_suffix('%').unwrap_or(number).trim_end();
    number.parse().map_err(|_| UnitError::Percent(text.to_owned()))
}

/// Bytes a second in a text such as `200mbit`, `1.5 Gbit/s`, `100Mbps` (bits), `25MB/s` (bytes, counting by 1000) or
/// `24MiB/s` (by 1024).
///
/// # Errors
/// [`UnitError::Bandwidth`] when it is none, [`UnitError::BitsOrBytes`] when its unit does not say which.
pub fn parse_bandwidth(text: &str) -> Result<u64, UnitError> {
    let wrong = || UnitError::Bandwidth(text.to_owned());
    let (number, unit) = split_number(text);
    let (unit, a_second) = match unit.strip_suffix("/s").or_else(|| unit.strip_suffix("ps")) {
        Some(unit) => (unit, true),
        None => (unit, false),
    };
    let (unit, bits) = if let Some(unit) = strip_any(unit, &["bits", "bit", "Bit"]) {
        (unit, true)
    } else if let Some(unit) = unit.strip_suffix('B') {
        (unit, false)
    } else if let Some(unit) = unit.strip_suffix('b').filter(|_| a_second) {
        (unit, true)
    } else {
        let prefix = unit.trim_end_matches(['b', 'i']);
        let known = power(prefix).is_some() && scaled(number, 1).is_some();
        return Err(match known {
            true => UnitError::BitsOrBytes(text.to_owned(), format!("{number}{}", prefix.to_uppercase())),
            false => wrong(),
        });
    };
    let factor = match unit.strip_suffix('i') {
        Some(unit) if !unit.is_empty() => 1 << (10 * power(unit).ok_or_else(wrong)?),
        _ => 1000u64.pow(power(unit).ok_or_else(wrong)?),
    };
    let amount = scaled(number, factor).ok_or_else(wrong)?;
    Ok(if bits { amount / 8 } else { amount })
}

/// The share in a text such as `50%`: percent of one core.
///
/// # Errors
/// [`UnitError::Cpu`] when it is none.
pub fn parse_cpu(text: &str) -> Result<u32, UnitError> {
    let number = text.trim().strip_suffix('%').map(str::trim_end);
    number
        .and_then(|number| number.parse().ok())
        .ok_or_else(|| UnitError::Cpu(text.to_owned()))
}

/// A bandwidth cap as links are named: `200 Mbit/s`.
pub fn bandwidth(bytes_per_s: u64) -> String {
    let mut number = bytes_per_s as f64 * 8.0;
    let mut index = 0;
    while number >= 999.5 && index + 1 < UNITS.len() {
        number /= 1000.0;
        index += 1;
    }
    match index {
        0 => format!("{number:.0} bit/s"),
        1 => format!("{} kbit/s", three_digits(number)),
        _ => format!("{} {}bit/s", three_digits(number), UNITS[index].0),
    }
}

/// `512 MiB`, `1.25 GiB`, `17 B`.
pub fn size(bytes: u64) -> String {
    sized(bytes as f64)
}

/// The same for a rate: `110 MiB/s`.
pub fn rate(bytes_per_s: f64) -> String {
    format!("{}/s", sized(bytes_per_s))
}

/// Milliseconds in the unit that suits them: `85 us`, `4.21 ms`, `1.32 s`, `3 min 20 s`.
pub fn millis(ms: f64) -> String {
    if !ms.is_finite() || ms < 0.0 {
        return "-".into();
    }
    match ms {
        0.0 => "0 ms".into(),
        ms if ms < 0.9995 => format!("{} us", three_digits(ms * 1e3)),
        ms if ms < 999.5 => format!("{} ms", three_digits(ms)),
        ms if ms < 99_950.0 => format!("{} s", three_digits(ms / 1e3)),
        ms => {
            let seconds = (ms / 1e3).round() as u64;
            format!("{} min {} s", seconds / 60, seconds % 60)
        }
    }
}

/// A number with its thousands set apart: `65,536`.
pub fn count(number: u64) -> String {
    let digits = number.to_string();
    let mut grouped = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            grouped.push(',');
        }
        grouped.push(digit);
    }
    grouped
}

fn sized(bytes: f64) -> String {
    let bytes = if bytes.is_finite() { bytes.max(0.0) } else { 0.0 };
    let mut index = 0;
    let mut number = bytes;
    while number >= 999.5 && index + 1 < UNITS.len() {
        number /= 1024.0;
        index += 1;
    }
    match index {
        0 => format!("{number:.0} B"),
        _ => format!("{} {}iB", three_digits(number), UNITS[index].0),
    }
}

/// Three digits that count, without zeros at the end: 4.21, 42.1, 421.
fn three_digits(number: f64) -> String {
    let decimals = match number {
        number if number >= 99.95 => 0,
        number if number >= 9.995 => 1,
        _ => 2,
    };
    let text = format!("{number:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// Thousands that a prefix stands for: 2 for M.
fn power(prefix: &str) -> Option<u32> {
    Some(match prefix {
        "" => 0,
        "k" | "K" => 1,
        "m" | "M" => 2,
        "g" | "G" => 3,
        "t" | "T" => 4,
        _ => return None,
    })
}

fn strip_any<'a>(text: &'a str, suffixes: &[&str]) -> Option<&'a str> {
    suffixes.iter().find_map(|suffix| text.strip_suffix(suffix))
}

fn split_number(text: &str) -> (&str, &str) {
    let text = text.trim();
    let end = text
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(text.len());
    (&text[..end], text[end..].trim_start())
}

/// `number` times `unit`, exact: a fraction counts to its ninth digit.
fn scaled(number: &str, unit: u64) -> Option<u64> {
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    if whole.is_empty() || fraction.len() > 9 || fraction.contains('.') {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(unit)?;
    let fraction = match fraction {
        "" => 0,
        digits => {
            let scale = 10u128.pow(u32::try_from(digits.len()).ok()?);
            u64::try_from(digits.parse::<u128>().ok()? * u128::from(unit) / scale).ok()?
        }
    };
    whole.checked_add(fraction).filter(|sum| *sum < 1 << 63)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read() {
        for (text, bytes) in [
            ("4096", 4096),
            ("0", 0),
            ("512M", 512 << 20),
            ("512m", 512 << 20),
            ("4G", 4 << 30),
            ("4GiB", 4 << 30),
            ("4 GB", 4 << 30),
            ("1.5G", 3 << 29),
            ("64K", 65536),
            ("1T", 1 << 40),
            ("17B", 17),
        ] {
            assert_eq!(parse_size(text), Ok(bytes), "{text}");
        }
        for text in [
            "",
            "G",
            "-1G",
            "1X",
            "1.2.3G",
            "1e9",
            "99999999T",
            "512 M B",
            "0x10",
            ".5G",
        ] {
            assert_eq!(parse_size(text), Err(UnitError::Size(text.into())), "{text}");
        }
    }

    #[test]
    fn durations_are_read() {
        for (text, us) in [
            ("250us", 250),
            ("300ms", 300_000),
            ("5s", 5_000_000),
            ("1.5m", 90_000_000),
        ] {
            assert_eq!(parse_duration(text), Ok(Duration::from_micros(us)), "{text}");
        }
        for text in ["", "300", "5 parsecs", "-5s", "1h30m", "s", "99999999999h"] {
            assert_eq!(
                parse_duration(text),
                Err(UnitError::Duration(text.into())),
                "{text}"
            );
        }
    }

    #[test]
    fn percentages_are_read() {
        for (text, percent) in [("3%", 3.0), ("0.5 %", 0.5), ("12", 12.0)] {
            assert_eq!(parse_percent(text), Ok(percent), "{text}");
        }
        for text in ["", "%", "three", "3%%"] {
            assert_eq!(
                parse_percent(text),
                Err(UnitError::Percent(text.into())),
                "{text}"
            );
        }
    }

    #[test]
    fn bandwidths_are_read() {
        for (text, bytes_per_s) in [
            ("200mbit", 25_000_000),
            ("200Mbit/s", 25_000_000),
            ("200 Mbps", 25_000_000),
            ("200Mb/s", 25_000_000),
            ("1gbit", 125_000_000),
            ("1.5Gbit", 187_500_000),
            ("10kbit", 1250),
            ("1Mibit", 131_072),
            ("8bit/s", 1),
            ("25MB/s", 25_000_000),
            ("25MB", 25_000_000),
            ("25MBps", 25_000_000),
            ("1GiB/s", 1 << 30),
            ("110 MiB/s", 110 << 20),
            ("0mbit", 0),
        ] {
            assert_eq!(parse_bandwidth(text), Ok(bytes_per_s), "{text}");
        }
        for text in [
            "",
            "mbit",
            "fast",
            "-5mbit",
            "5 parsecs/s",
            "1.2.3gbit",
            "99999999tbit",
            "5Xbit",
        ] {
            assert_eq!(
                parse_bandwidth(text),
                Err(UnitError::Bandwidth(text.into())),
                "{text}"
            );
        }
        for text in ["200", "5/s", "200M", "200m", "200mb", "200MiB", "1G"] {
            let read = parse_bandwidth(text);
            match text {
                "200MiB" => assert_eq!(read, Ok(200 << 20)),
                _ => assert!(
                    matches!(read, Err(UnitError::BitsOrBytes(..))),
                    "{text}: {read:?}"
                ),
            }
        }
        let why = parse_bandwidth("200mb").unwrap_err().to_string();
        assert!(why.contains("200Mbit or 200MB/s"), "{why}");
        assert_eq!(bandwidth(25_000_000), "200 Mbit/s");
        assert_eq!(bandwidth(125_000), "1 Mbit/s");
        assert_eq!(bandwidth(1_250_000_000), "10 Gbit/s");
        assert_eq!(bandwidth(12_500), "100 kbit/s");
        for bytes_per_s in [125_000, 25_000_000, 1_250_000_000] {
            assert_eq!(parse_bandwidth(&bandwidth(bytes_per_s)), Ok(bytes_per_s));
        }
    }

    #[test]
    fn shares_of_cpu_are_read() {
        assert_eq!(parse_cpu("50%"), Ok(50));
        assert_eq!(parse_cpu(" 150 %"), Ok(150));
        for text in ["", "50", "%", "0.5", "-5%", "50%%", "99999999999%"] {
            assert_eq!(parse_cpu(text), Err(UnitError::Cpu(text.into())), "{text}");
        }
    }

    #[test]
    fn numbers_are_shown_with_three_digits() {
        assert_eq!(size(0), "0 B");
        assert_eq!(size(999), "999 B");
        assert_eq!(size(1000), "0.98 KiB");
        assert_eq!(size(512 << 20), "512 MiB");
        assert_eq!(size(1023 << 20), "1 GiB");
        assert_eq!(size(5 << 28), "1.25 GiB");
        assert_eq!(rate(115_343_360.0), "110 MiB/s");
        assert_eq!(millis(0.0849), "84.9 us");
        assert_eq!(millis(4.214), "4.21 ms");
        assert_eq!(millis(1324.0), "1.32 s");
        assert_eq!(millis(200_000.0), "3 min 20 s");
        assert_eq!(millis(f64::NAN), "-");
        assert_eq!(count(0), "0");
        assert_eq!(count(999), "999");
        assert_eq!(count(1_048_576), "1,048,576");
    }

    #[test]
    fn what_is_shown_can_be_read() {
        for bytes in [1u64, 1 << 12, 3 << 19, 1 << 33, 7 << 40] {
            assert_eq!(parse_size(&size(bytes)), Ok(bytes));
        }
    }
}
