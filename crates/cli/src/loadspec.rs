//! What a synthetic guest does, as written on the command line.

use serde_json::{Map, Value, json};
use thiserror::Error;
use vmferry_guest_synth::SynthConfig;

use crate::units::{UnitError, parse_size};

const MIB: u64 = 1 << 20;

/// A text that describes no load.
#[derive(Debug, Error)]
pub enum LoadSpecError {
    /// A part of it is not understood.
    #[error("{part:?} in the load is not understood: {problem}; {SYNTAX}")]
    Part {
        /// The part.
        part: String,
        /// What is wrong.
        problem: String,
    },
    /// A size in it is none.
    #[error(transparent)]
    Size(#[from] UnitError),
    /// The guest that results is not possible.
    #[error("a synthetic guest like this is not possible: {0}")]
    Config(#[from] vmferry_guest_synth::ConfigError),
}

const SYNTAX: &str = "write for example idle, write:64M,rate=100M, key-value:64M,rate=5000,get=90, oltp:64M,read=50, \
                      compress:64M, read:64M, cpu:40, joined with + for several, and fill:128M for memory that just holds data";

/// The configuration of a guest with `memory_bytes` of RAM and `workers` workers under the load `text`:
/// `KIND[:SIZE[,KEY=VALUE]...]`, joined with `+`. Or the JSON of a [`SynthConfig`] without those two.
///
/// # Errors
/// See [`LoadSpecError`].
pub fn parse(text: &str, memory_bytes: u64, workers: u32) -> Result<SynthConfig, LoadSpecError> {
    let mut config = match text.trim_start().starts_with('{') {
        true => from_json(text)?,
        false => from_words(text)?,
    };
    config.entry("memory_bytes").or_insert(memory_bytes.into());
    config.entry("workers").or_insert(workers.into());
    Ok(SynthConfig::from_json(&Value::Object(config))?)
}

fn from_json(text: &str) -> Result<Map<String, Value>, LoadSpecError> {
    serde_json::from_str(text).map_err(|error| wrong(text, error.to_string()))
}

fn from_words(text: &str) -> Result<Map<String, Value>, LoadSpecError> {
    let mut config = Map::new();
    let mut loads = Vec::new();
    for part in text.split('+').map(str::trim) {
        let (kind, rest) = part.split_once(':').unwrap_or((part, ""));
        let mut settings = rest
            .split(',')
            .map(str::trim)
            .filter(|setting| !setting.is_empty());
        match kind {
            "idle" => {}
            "fill" => {
                config.insert("fill".into(), fill(part, settings)?);
            }
            "cpu" => {
                let percent = settings.next().unwrap_or("100").trim_end_matches('%');
                let percent: u8 = percent
                    .parse()
                    .map_err(|_| wrong(part, format!("{percent:?} is no percentage")))?;
                if let Some(more) = settings.next() {
                    return Err(wrong(part, format!("cpu has no setting {more:?}")));
                }
                loads.push(json!({"kind": "cpu", "percent": percent}));
            }
            "write" | "read" | "key-value" | "oltp" | "compress" => {
                let region = settings
                    .next()
                    .ok_or_else(|| wrong(part, "its size is missing"))?;
                let mut load = Map::from_iter([
                    ("kind".to_owned(), kind.into()),
                    ("region_mib".to_owned(), mebibytes(part, region)?.into()),
                ]);
                for setting in settings {
                    let (key, value) = load_setting(kind, part, setting)?;
                    load.insert(key.into(), value);
                }
                loads.push(Value::Object(load));
            }
            _ => return Err(wrong(part, format!("there is no load {kind:?}"))),
        }
    }
    config.insert("loads".into(), loads.into());
    Ok(config)
}

fn load_setting(kind: &str, part: &str, setting: &str) -> Result<(&'static str, Value), LoadSpecError> {
    let (key, value) = setting
        .split_once('=')
        .ok_or_else(|| wrong(part, format!("{setting:?} has no value")))?;
    let number = || {
        value
            .parse::<u64>()
            .map_err(|_| wrong(part, format!("{value:?} is no number")))
    };
    Ok(match (kind, key) {
        ("write" | "read", "rate") => (
            "rate_mib_per_s",
            mebibytes(part, value.trim_end_matches("/s"))?.into(),
        ),
        (_, "rate") => ("operations_per_s", number()?.into()),
        ("key-value", "get") => ("get_percent", number()?.into()),
        ("key-value", "value") => ("value_bytes", parse_size(value)?.into()),
        ("key-value", "zipf") => {
            let exponent = value
                .parse::<f64>()
                .map_err(|_| wrong(part, format!("{value:?} is no number")))?;
            ("zipf_exponent", exponent.into())
        }
        ("oltp", "read") => ("read_percent", number()?.into()),
        _ => return Err(wrong(part, format!("{kind} has no setting {key:?}"))),
    })
}

fn fill<'a>(part: &str, mut settings: impl Iterator<Item = &'a str>) -> Result<Value, LoadSpecError> {
    let size = settings
        .next()
        .ok_or_else(|| wrong(part, "its size is missing"))?;
    let mut fill = json!({"mib": mebibytes(part, size)?});
    for setting in settings {
        let (key, value) = setting.split_once('=').unwrap_or((setting, ""));
        let percent = value
            .parse::<u8>()
            .map_err(|_| wrong(part, format!("{setting:?} is no percentage")))?;
        match key {
            "zero" | "uniform" | "compressible" => fill[format!("{key}_percent")] = percent.into(),
            _ => return Err(wrong(part, format!("fill has no setting {key:?}"))),
        }
    }
    Ok(fill)
}

fn mebibytes(part: &str, text: &str) -> Result<u64, LoadSpecError> {
    let bytes = parse_size(text)?;
    match bytes % MIB {
        0 => Ok(bytes / MIB),
        _ => Err(wrong(part, format!("{text} is no whole number of MiB"))),
    }
}

fn wrong(part: &str, problem: impl Into<String>) -> LoadSpecError {
    LoadSpecError::Part {
        part: part.to_owned(),
        problem: problem.into(),
    }
}

#[cfg(test)]
mod tests {
    use vmferry_guest_synth::{Fill, LoadConfig};

    use super::*;

    #[test]
    fn reading_and_computing_are_loads() {
        let config = parse("read:32M,rate=100M + cpu:40% + cpu", 256 * MIB, 1).unwrap();
        let expected = [
            LoadConfig::Read {
                region_mib: 32,
                rate_mib_per_s: Some(100),
            },
            LoadConfig::Cpu { percent: 40 },
            LoadConfig::Cpu { percent: 100 },
        ];
        assert_eq!(config.loads, expected);
        for bad in ["cpu:x", "cpu:40,rate=5", "cpu:101", "read"] {
            assert!(parse(bad, 256 * MIB, 1).is_err(), "{bad}");
        }
    }

    #[test]
    fn loads_are_read() {
        let text = "key-value:32M,rate=5000,get=80,value=1K,zipf=1.1 + write:16M,rate=50M + fill:64M,zero=50";
        let config = parse(text, 256 * MIB, 2).unwrap();
        let expected = SynthConfig {
            workers: 2,
            loads: vec![
                LoadConfig::KeyValue {
                    region_mib: 32,
                    get_percent: 80,
                    zipf_exponent: 1.1,
                    value_bytes: 1024,
                    operations_per_s: Some(5000),
                },
                LoadConfig::Write {
                    region_mib: 16,
                    rate_mib_per_s: Some(50),
                },
            ],
            fill: Fill {
                mib: 64,
                zero_percent: 50,
                ..Fill::default()
            },
            ..SynthConfig::new(256 * MIB)
        };
        assert_eq!(config, expected);
        assert_eq!(parse("idle", MIB, 1).unwrap(), SynthConfig::new(MIB));
        let json = parse(
            r#"{"seed": 7, "loads": [{"kind": "compress", "region_mib": 8}]}"#,
            64 * MIB,
            1,
        )
        .unwrap();
        assert_eq!((json.seed, json.loads.len(), json.memory_bytes), (7, 1, 64 * MIB));
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, named) in [
            ("", "no load"),
            ("wirte:64M", "wirte"),
            ("write", "size"),
            ("write:64X", "64X"),
            ("write:100K", "MiB"),
            ("write:16M,get=5", "get"),
            ("write:16M,rate", "no value"),
            ("oltp:16M,read=much", "much"),
            ("fill:16M,zero=300", "zero=300"),
            ("write:512M", "memory_bytes"),
            ("{", "understood"),
        ] {
            let error = parse(text, 256 * MIB, 1).unwrap_err().to_string();
            assert!(error.contains(named), "{text}: {error}");
        }
    }
}
