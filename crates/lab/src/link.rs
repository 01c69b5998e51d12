//! The link between two hosts, as a scenario or the demo asks for it: `1gbit`, `500mbit+10ms`, `none`.

use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use thiserror::Error;

/// A link of no rate.
const NO_LIMIT: &str = "none";
/// Longer than any way on earth.
const MOST_DELAY_MS: f64 = 1000.0;

/// A rate, and how long a frame is under way.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// As `tc` reads it; none for no limit.
    rate: Option<String>,
    /// From host to host; zero for none.
    delay: Duration,
}

/// What is no link.
#[derive(Clone, Debug, Error, PartialEq, Eq)]
#[error(
    "{0:?} is no link; write a rate, and a delay one way if it is to have one: 1gbit, 500mbit+10ms, 1gbit+0.2ms, or none"
)]
pub struct BadLink(String);

impl Link {
    /// The rate in both directions, as `tc` reads it; none for no limit.
    pub fn rate(&self) -> Option<&str> {
        self.rate.as_deref()
    }

    /// How long a frame is under way from host to host, beside the time that its rate takes: half of a round trip. Zero where
    /// no delay was asked for.
    pub fn delay(&self) -> Duration {
        self.delay
    }
}

impl FromStr for Link {
    type Err = BadLink;

    fn from_str(text: &str) -> Result<Self, BadLink> {
        let (rate, delay) = match text.split_once('+') {
            None => (text, Some(Duration::ZERO)),
            Some((rate, delay)) => (rate, parse_delay(delay)),
        };
        match delay {
            Some(delay) if rate == NO_LIMIT || is_rate(rate) => Ok(Self {
                rate: (rate != NO_LIMIT).then(|| rate.to_owned()),
                delay,
            }),
            _ => Err(BadLink(text.to_owned())),
        }
    }
}

impl fmt::Display for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.rate.as_deref().unwrap_or(NO_LIMIT))?;
        if self.delay.is_zero() {
            return Ok(());
        }
        write!(f, "+{}ms", self.delay.as_secs_f64() * 1e3)
    }
}

/// Whether `tc` reads it as a rate above zero.
fn is_rate(text: &str) -> bool {
    let digits = text.trim_end_matches(|letter: char| letter.is_ascii_alphabetic());
    let unit = text[digits.len()..].to_ascii_lowercase();
    let known = ["bit", "kbit", "mbit", "gbit"].contains(&unit.as_str());
    known && digits.parse::<u32>().is_ok_and(|number| number > 0)
}

fn parse_delay(text: &str) -> Option<Duration> {
    let ms: f64 = text.strip_suffix("ms")?.parse().ok()?;
    (ms > 0.0 && ms <= MOST_DELAY_MS).then(|| Duration::from_secs_f64(ms / 1e3))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_are_read_and_written() {
        for (text, rate, delay_us) in [
            ("1gbit", Some("1gbit"), 0),
            ("500mbit+10ms", Some("500mbit"), 10_000),
            ("1gbit+0.2ms", Some("1gbit"), 200),
            ("none", None, 0),
            ("none+2.5ms", None, 2_500),
        ] {
            let link: Link = text.parse().unwrap();
            assert_eq!(link.rate(), rate, "{text}");
            assert_eq!(link.delay(), Duration::from_micros(delay_us), "{text}");
            assert_eq!(link.to_string(), text);
        }
    }

    #[test]
    fn what_is_no_link_is_refused() {
        for text in [
            "",
            "gbit",
            "1",
            "1gbps!",
            "-1gbit",
            "1 gbit",
            "fast",
            "0mbit",
            "1g",
            "+10ms",
            "1gbit+",
            "1gbit+10",
            "1gbit+0ms",
            "1gbit+-1ms",
            "1gbit+NaNms",
            "1gbit+2s",
            "1gbit+1001ms",
            "1gbit+1ms+1ms",
        ] {
            let error = text.parse::<Link>().unwrap_err().to_string();
            assert!(error.contains("500mbit+10ms"), "{text}: {error}");
        }
    }
}
