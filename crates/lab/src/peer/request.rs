//! A peer with its parameters, as a scenario gives them.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::Peer;
use crate::bench::scenario::{OptionValue, Options};

/// No limit: more than any link carries. QEMU's own default would hold it to 128 MiB a second.
const MAX_BANDWIDTH_BYTES_PER_S: u64 = 1 << 50;
/// As vmferry's default, and QEMU's.
const DOWNTIME_LIMIT_MS: u64 = 300;
/// The one option that is no parameter of QEMU.
const START_POSTCOPY_AFTER_S: &str = "start-postcopy-after-s";

/// What QEMU is asked for.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct PeerRequest {
    /// Which way of moving a guest.
    pub peer: Peer,
    /// Migration parameters that are set at both ends, under QEMU's names and in its units.
    pub parameters: Map<String, Value>,
    /// Seconds from the request until the guest is moved while its memory is still at the source; only in post-copy.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub start_postcopy_after_s: Option<f64>,
}

/// An option, and the peers it means something to.
type Known = (&'static str, fn(Peer) -> bool);

/// Parameters of `migrate-set-parameters`, all of them whole numbers, and [`START_POSTCOPY_AFTER_S`].
const OPTIONS: &[Known] = &[
    ("downtime-limit", |_| true),
    ("max-bandwidth", |_| true),
    ("multifd-channels", Peer::is_multifd),
    ("multifd-zstd-level", |peer| peer == Peer::MultifdZstd),
    ("xbzrle-cache-size", |peer| peer == Peer::Xbzrle),
    ("cpu-throttle-initial", |peer| peer == Peer::AutoConverge),
    ("cpu-throttle-increment", |peer| peer == Peer::AutoConverge),
    ("max-cpu-throttle", |peer| peer == Peer::AutoConverge),
    ("max-postcopy-bandwidth", Peer::is_post_copy),
    (START_POSTCOPY_AFTER_S, Peer::is_post_copy),
];

impl PeerRequest {
    /// Reads the options of a scenario.
    ///
    /// # Errors
    /// What is wrong with one, in a line.
    pub fn new(peer: Peer, options: &Options) -> Result<Self, String> {
        let mut parameters = Map::new();
        parameters.insert("downtime-limit".into(), DOWNTIME_LIMIT_MS.into());
        parameters.insert("max-bandwidth".into(), MAX_BANDWIDTH_BYTES_PER_S.into());
        if peer == Peer::MultifdZstd {
            parameters.insert("multifd-compression".into(), "zstd".into());
        }
        let mut start_postcopy_after_s = peer.is_post_copy().then_some(0.0);
        for (name, value) in options {
            if !OPTIONS.iter().any(|(known, _)| known == name) {
                let known: Vec<_> = OPTIONS.iter().map(|(known, _)| *known).collect();
                return Err(format!(
                    "a peer has no option {name:?}; there are {}",
                    known.join(", ")
                ));
            }
            if !concerns(name, peer) {
                return Err(format!("{name} means nothing to {peer}"));
            }
            if name == START_POSTCOPY_AFTER_S {
                start_postcopy_after_s = Some(seconds(value)?);
            } else {
                parameters.insert(name.clone(), whole(name, value)?.into());
            }
        }
        Ok(Self {
            peer,
            parameters,
            start_postcopy_after_s,
        })
    }

    /// What is sent to QEMU's monitors, in order.
    pub fn words(&self) -> Vec<String> {
        let line = |to: &str, name: &str, arguments: Value| {
            format!("{to}: {}", json!({"execute": name, "arguments": arguments}))
        };
        let uri = json!({"uri": "tcp:DESTINATION"});
        let mut words = vec![
            line(
                "source and destination",
                "migrate-set-capabilities",
                json!({"capabilities": self.switches()}),
            ),
            line(
                "source and destination",
                "migrate-set-parameters",
                json!(self.parameters),
            ),
            line("destination", "migrate-incoming", uri.clone()),
            line("source", "migrate", uri),
        ];
        if let Some(after) = self.start_postcopy_after_s {
            let to = format!("source, {after} s later");
            words.push(line(&to, "migrate-start-postcopy", json!({})));
        }
        words
    }

    /// The capabilities that are switched on: those that make the peer, and the one that has moments told.
    pub(super) fn capabilities(&self) -> impl Iterator<Item = &'static str> {
        std::iter::once("events").chain(self.peer.capabilities().iter().copied())
    }

    fn switches(&self) -> Vec<Value> {
        self.capabilities()
            .map(|name| json!({"capability": name, "state": true}))
            .collect()
    }
}

/// Whether an option means something to a peer.
pub(crate) fn concerns(option: &str, peer: Peer) -> bool {
    let known = OPTIONS.iter().find(|(known, _)| *known == option);
    // One that nobody knows is refused by name.
    known.is_none_or(|(_, concerns)| concerns(peer))
}

fn whole(name: &str, value: &OptionValue) -> Result<u64, String> {
    let number = match value {
        OptionValue::Integer(number) => u64::try_from(*number).ok(),
        _ => None,
    };
    number.ok_or_else(|| format!("{name} has to be a whole number, in the unit that QEMU has for it"))
}

fn seconds(value: &OptionValue) -> Result<f64, String> {
    let number = match value {
        OptionValue::Integer(number) => *number as f64,
        OptionValue::Number(number) => *number,
        OptionValue::Flag(_) | OptionValue::Text(_) => f64::NAN,
    };
    let fits = (0.0..=86_400.0).contains(&number);
    fits.then_some(number)
        .ok_or_else(|| format!("{START_POSTCOPY_AFTER_S} has to be a number of seconds, 0 to 86400"))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(peer: Peer, options: &[(&str, OptionValue)]) -> Result<PeerRequest, String> {
        let options = options
            .iter()
            .map(|(name, value)| ((*name).to_owned(), value.clone()));
        PeerRequest::new(peer, &options.collect())
    }

    #[test]
    fn options_become_parameters() {
        let zstd = [
            ("multifd-channels", OptionValue::Integer(4)),
            ("downtime-limit", OptionValue::Integer(50)),
        ];
        let zstd = request(Peer::MultifdZstd, &zstd).unwrap();
        let parameters = json!({"downtime-limit": 50, "max-bandwidth": 1_u64 << 50, "multifd-channels": 4,
                                "multifd-compression": "zstd"});
        assert_eq!(Value::Object(zstd.parameters.clone()), parameters);
        let words = zstd.words();
        assert!(
            words[0].contains(r#""capability":"multifd","state":true"#),
            "{words:#?}"
        );
        assert!(words[3].starts_with("source: ") && words.len() == 4, "{words:#?}");

        let late = [(START_POSTCOPY_AFTER_S, OptionValue::Number(1.5))];
        let late = request(Peer::PostCopy, &late).unwrap();
        assert_eq!(late.start_postcopy_after_s, Some(1.5));
        assert!(late.words()[4].contains("1.5 s later"), "{:#?}", late.words());
        assert_eq!(
            request(Peer::PostCopyPreempt, &[])
                .unwrap()
                .start_postcopy_after_s,
            Some(0.0)
        );
    }

    #[test]
    fn options_that_make_no_sense_are_refused() {
        for (peer, name, value, named) in [
            (
                Peer::PreCopy,
                "turbo",
                OptionValue::Integer(1),
                "no option \"turbo\"",
            ),
            (
                Peer::PreCopy,
                "multifd-channels",
                OptionValue::Integer(1),
                "nothing to qemu-pre-copy",
            ),
            (
                Peer::PreCopy,
                "downtime-limit",
                OptionValue::Text("5ms".into()),
                "whole number",
            ),
            (
                Peer::PreCopy,
                "max-bandwidth",
                OptionValue::Integer(-5),
                "whole number",
            ),
            (
                Peer::PostCopy,
                START_POSTCOPY_AFTER_S,
                OptionValue::Flag(true),
                "seconds",
            ),
        ] {
            let error = request(peer, &[(name, value)]).unwrap_err();
            assert!(error.contains(named), "{error}");
        }
    }
}
