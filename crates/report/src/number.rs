//! Numbers as people read them.

use vmferry_lab::bench::quantity::Unit;

const BYTES: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];

/// A figure with its unit: `4.21 s`, `512 MiB`, `12.5 %`.
pub(crate) fn show(unit: Unit, value: f64) -> String {
    match unit {
        Unit::Share => format!("{} %", digits(value * 100.0)),
        Unit::Count => grouped(value),
        Unit::PerSecond => format!("{}/s", grouped(value)),
        _ => {
            let (factor, name) = scaled(unit, value);
            format!("{} {name}", digits(value / factor))
        }
    }
}

/// What the numbers of an axis up to `most` are divided by, and how that is called.
pub(crate) fn scaled(unit: Unit, most: f64) -> (f64, &'static str) {
    let most = most.abs();
    match unit {
        Unit::Bytes => {
            let steps = |index: &usize| most >= 999.5 * 1024f64.powi(*index as i32 - 1);
            let index = (1..BYTES.len()).take_while(steps).last().unwrap_or(0);
            (1024f64.powi(index as i32), BYTES[index])
        }
        Unit::Microseconds => time(most, 1.0),
        Unit::Milliseconds => time(most, 1e3),
        Unit::Seconds => time(most, 1e6),
        Unit::Share => (0.01, "%"),
        Unit::PerSecond if most >= 20_000.0 => (1e3, "thousand/s"),
        Unit::PerSecond => (1.0, "/s"),
        Unit::Count if most >= 2e6 => (1e6, "million"),
        Unit::Count if most >= 20_000.0 => (1e3, "thousand"),
        Unit::Count => (1.0, ""),
    }
}

/// Times of which one is `us` microseconds.
fn time(most: f64, us: f64) -> (f64, &'static str) {
    match most * us {
        small if small > 0.0 && small < 999.5 => (1.0 / us, "µs"),
        middle if middle < 999_500.0 => (1e3 / us, "ms"),
        _ => (1e6 / us, "s"),
    }
}

/// Three digits that count, without zeros at the end.
pub(crate) fn digits(number: f64) -> String {
    let decimals = match number.abs() {
        size if size >= 9999.5 => return grouped(number),
        size if size >= 99.95 || size == 0.0 => 0,
        size if size >= 9.995 => 1,
        size if size >= 0.0995 => 2,
        size => (2.0 - size.log10().floor()).clamp(0.0, 9.0) as usize,
    };
    let text = format!("{number:.decimals$}");
    match text.contains('.') {
        true => text.trim_end_matches('0').trim_end_matches('.').to_owned(),
        false => text,
    }
}

/// A ratio: `0.42`, `1.87`, `12.3`.
pub(crate) fn ratio(number: f64) -> String {
    match number.abs() {
        size if (0.0995..9.995).contains(&size) => format!("{number:.2}"),
        _ => digits(number),
    }
}

/// Whole, with its thousands set apart; small ones with their digits.
pub(crate) fn grouped(number: f64) -> String {
    if number.abs() < 100.0 {
        return digits_small(number);
    }
    let whole = format!("{:.0}", number.abs());
    let mut text = String::from(if number < 0.0 { "-" } else { "" });
    for (index, digit) in whole.chars().enumerate() {
        if index > 0 && (whole.len() - index).is_multiple_of(3) {
            text.push(',');
        }
        text.push(digit);
    }
    text
}

fn digits_small(number: f64) -> String {
    match number.fract() == 0.0 {
        true => format!("{number:.0}"),
        false => digits(number),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn figures_have_the_unit_that_suits_them() {
        for (unit, value, text) in [
            (Unit::Milliseconds, 4210.0, "4.21 s"),
            (Unit::Milliseconds, 0.085, "85 µs"),
            (Unit::Milliseconds, 0.0, "0 ms"),
            (Unit::Milliseconds, 28.94, "28.9 ms"),
            (Unit::Milliseconds, 280_932.4, "281 s"),
            (Unit::Microseconds, 104.0, "104 µs"),
            (Unit::Seconds, 7.2, "7.2 s"),
            (Unit::Bytes, 16_745_367_070.0, "15.6 GiB"),
            (Unit::Bytes, 512.0, "512 B"),
            (Unit::Share, 0.125, "12.5 %"),
            (Unit::PerSecond, 1533.48, "1,533/s"),
            (Unit::Count, 4_097_570.0, "4,097,570"),
            (Unit::Count, 3.0, "3"),
        ] {
            assert_eq!(show(unit, value), text);
        }
        assert_eq!(
            (ratio(0.0734), ratio(1.0), ratio(12.34)),
            ("0.0734".into(), "1.00".into(), "12.3".into())
        );
    }

    #[test]
    fn an_axis_has_one_unit() {
        assert_eq!(
            scaled(Unit::Bytes, 3.0 * 1024.0 * 1024.0),
            (1024.0 * 1024.0, "MiB")
        );
        assert_eq!(scaled(Unit::Milliseconds, 25_000.0), (1e3, "s"));
        assert_eq!(scaled(Unit::Count, 4e6), (1e6, "million"));
    }
}
