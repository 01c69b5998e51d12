//! Which runs there are, and in which order.

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use serde::{Deserialize, Serialize};
use vmferry_api::MigrateRequest;
use vmferry_guest::GuestSpec;

use super::fit;
use super::scenario::{self, Experiment, Guest, GuestKind, Scenario, Variant};
use crate::error::{LabError, Result};
use crate::peer::PeerRequest;

/// Reads words as the `vmferry` command does, so that scenarios speak its language and what it learns works in them at
/// once.
pub trait CommandLine {
    /// What follows `vmferry run`.
    ///
    /// # Errors
    /// What is wrong, in a line.
    fn guest(&self, words: &[String]) -> std::result::Result<GuestSpec, String>;

    /// Checks what follows `vmferry host`.
    ///
    /// # Errors
    /// What is wrong, in a line.
    fn host(&self, words: &[String]) -> std::result::Result<(), String>;

    /// What follows `vmferry migrate`.
    ///
    /// # Errors
    /// What is wrong, in a line.
    fn migration(&self, words: &[String]) -> std::result::Result<MigrateRequest, String>;
}

/// Name of the guest in every run.
pub(crate) const GUEST: &str = "bench";

/// Tells a run from the others of its scenario.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct RunKey {
    /// Name of the guest.
    pub guest: String,
    /// Rate of the link that the scenario asks for.
    pub link: String,
    /// Name of the variant.
    pub variant: String,
    /// From 0.
    pub repetition: u32,
}

/// How a guest is moved.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Request {
    /// By vmferry; the destination is still to be filled in.
    Vmferry(Box<MigrateRequest>),
    /// By vmferry there and back again; the way back is what counts.
    Back {
        /// Both ways.
        request: Box<MigrateRequest>,
        /// Whether a checkpoint is left behind before it goes.
        leaves_checkpoint: bool,
    },
    /// By QEMU itself.
    Qemu(PeerRequest),
    /// It is not: something else is done to it.
    Experiment(Experiment),
}

impl Request {
    /// The guest as it has to be for this; none where this cannot be done with it.
    fn guest(&self, guest: &Guest) -> Option<Guest> {
        match self {
            // It has no QEMU.
            Self::Qemu(_) if guest.kind == GuestKind::Synth => None,
            Self::Qemu(_) | Self::Vmferry(_) | Self::Back { .. } => Some(guest.clone()),
            Self::Experiment(experiment) => experiment.guest(guest),
        }
    }
}

/// A run to make.
#[derive(Clone, Debug)]
pub struct PlannedRun {
    /// Which one it is.
    pub key: RunKey,
    /// Decides the content of its guest.
    pub seed: u64,
    /// The guest.
    pub guest: Guest,
    /// How it is moved.
    pub request: Request,
    /// The same as it would be typed.
    pub words: Vec<String>,
    /// It failed if its migration takes longer, seconds.
    pub limit_s: f64,
    /// Tells under which conditions it is made.
    pub conditions: String,
}

/// The runs of a scenario with guests of these kinds, in order: one repetition after the other, and within each
/// everything in an order of chance, so that what the machine does beside concerns all alike.
///
/// # Errors
/// When the command does not understand an option, or a strategy does not exist.
pub(super) fn plan(
    name: &str,
    scenario: &Scenario,
    kinds: &[GuestKind],
    command: &dyn CommandLine,
) -> Result<Vec<PlannedRun>> {
    let guests: Vec<_> = scenario
        .guests
        .iter()
        .filter(|guest| kinds.contains(&guest.kind))
        .collect();
    let wrong = |why: String| LabError::BadScenario {
        place: name.to_owned(),
        why,
    };
    if guests.is_empty() {
        return Err(wrong("it has no guest of the kind that was asked for".into()));
    }
    scenario::words(&scenario.host_options)
        .and_then(|words| command.host(&words))
        .map_err(|why| wrong(format!("host_options: {why}")))?;
    for guest in &guests {
        let why = |why| wrong(format!("guest {:?}: {why}", guest.name));
        let words = guest_words(guest, &[]).map_err(why)?;
        command.guest(&words).map_err(why)?;
    }
    let mut variants = Vec::new();
    for variant in &scenario.variants {
        let why = |why| wrong(format!("variant {:?}: {why}", variant.name()));
        let (request, words) = request(variant, command).map_err(why)?;
        variants.push((variant, words, request));
    }
    let mut runs = Vec::new();
    for repetition in 0..scenario.repetitions {
        let seed = fit::seed(scenario, repetition);
        let mut block = Vec::new();
        for guest in &guests {
            for link in &scenario.links {
                for (variant, words, request) in &variants {
                    let Some(guest) = request.guest(guest) else {
                        continue;
                    };
                    let key = RunKey {
                        guest: guest.name.clone(),
                        link: link.clone(),
                        variant: variant.name().to_owned(),
                        repetition,
                    };
                    block.push(PlannedRun {
                        conditions: fit::conditions(scenario, &key).unwrap_or_default(),
                        key,
                        seed,
                        guest,
                        request: request.clone(),
                        words: words.clone(),
                        limit_s: variant.limit_s.unwrap_or(scenario.limit_s),
                    });
                }
            }
        }
        shuffle(&mut block, seed);
        runs.append(&mut block);
    }
    Ok(runs)
}

/// What would follow `vmferry run`; `qemu` goes to QEMU.
pub(crate) fn guest_words(guest: &Guest, qemu: &[String]) -> std::result::Result<Vec<String>, String> {
    let mut words = vec![
        GUEST.to_owned(),
        format!("--memory={}", guest.memory),
        format!("--smp={}", guest.vcpus),
    ];
    words.extend(scenario::words(&guest.options)?);
    if guest.agent {
        words.push("--agent".to_owned());
    }
    match guest.kind {
        GuestKind::Synth => {
            let load = guest.load.as_deref().unwrap_or("idle");
            words.push(format!("--synthetic={load}"));
        }
        GuestKind::Qemu => {
            words.push("--".to_owned());
            words.extend_from_slice(qemu);
        }
    }
    Ok(words)
}

/// How a variant moves a guest, and the words for it.
fn request(
    variant: &Variant,
    command: &dyn CommandLine,
) -> std::result::Result<(Request, Vec<String>), String> {
    if let Some(request) = variant.peer_request() {
        let request = request?;
        let words = request.words();
        return Ok((Request::Qemu(request), words));
    }
    if let Some(experiment) = &variant.experiment {
        let words = vec![format!("experiment={}", experiment.name())];
        return Ok((Request::Experiment(experiment.clone()), words));
    }
    let words = migrate_words(variant)?;
    let request = Box::new(command.migration(&words)?);
    let request = match variant.there_and_back {
        true => Request::Back {
            request,
            leaves_checkpoint: variant.leaves_checkpoint,
        },
        false => Request::Vmferry(request),
    };
    Ok((request, words))
}

/// What would follow `vmferry migrate`; the destination is filled in later.
fn migrate_words(variant: &Variant) -> std::result::Result<Vec<String>, String> {
    let strategy = variant.strategy.as_deref().unwrap_or_default();
    let mut words = vec![
        GUEST.to_owned(),
        "--to=unix:/destination".to_owned(),
        format!("--strategy={strategy}"),
    ];
    words.extend(scenario::words(&variant.options)?);
    Ok(words)
}

/// Fisher and Yates.
fn shuffle<T>(items: &mut [T], seed: u64) {
    let mut numbers = SplitMix64::seed_from_u64(seed);
    for end in (1..items.len()).rev() {
        let chosen = numbers.next_u64() % (end as u64 + 1);
        items.swap(end, chosen as usize);
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use std::collections::BTreeSet;

    use vmferry_core::Strategy;

    use super::*;

    /// Knows one option.
    pub(crate) struct Plain;

    impl CommandLine for Plain {
        fn guest(&self, _: &[String]) -> std::result::Result<GuestSpec, String> {
            Ok(GuestSpec {
                name: GUEST.into(),
                backend: "synth".into(),
                config: serde_json::json!({}),
            })
        }

        fn host(&self, _: &[String]) -> std::result::Result<(), String> {
            Ok(())
        }

        fn migration(&self, words: &[String]) -> std::result::Result<MigrateRequest, String> {
            let strategy = words[2].strip_prefix("--strategy=").unwrap();
            let strategy: Strategy = strategy.parse().map_err(|e| format!("{e}"))?;
            match words.get(3) {
                Some(unknown) if unknown != "--verify" => Err(format!("unexpected argument {unknown}")),
                _ => Ok(MigrateRequest::new("x", strategy)),
            }
        }
    }

    fn scenario(options: &str) -> Scenario {
        let text = format!(
            "title = 't'\nlinks = ['1gbit', 'none']\nrepetitions = 3\n\
             [[guest]]\nname = 's'\nkind = 'synth'\nmemory = '1M'\n\
             [[guest]]\nname = 'q'\nkind = 'qemu'\nmemory = '1M'\n\
             [[variant]]\nstrategy = 'pre-copy'\n[[variant]]\nstrategy = 'hybrid'\noptions = {{ {options} }}\n"
        );
        Scenario::parse("t.toml", &text).unwrap()
    }

    #[test]
    fn repetitions_follow_each_other_and_are_mixed_within() {
        let scenario = scenario("verify = true");
        let both = [GuestKind::Synth, GuestKind::Qemu];
        let runs = plan("t", &scenario, &both, &Plain).unwrap();
        assert_eq!(runs.len(), 3 * 2 * 2 * 2);
        let repetitions: Vec<_> = runs.iter().map(|run| run.key.repetition).collect();
        assert!(repetitions.is_sorted());
        assert_eq!(runs.iter().map(|run| &run.key).collect::<BTreeSet<_>>().len(), 24);
        let order = |repetition| {
            let block = runs.iter().filter(|run| run.key.repetition == repetition);
            block
                .map(|run| format!("{} {} {}", run.key.guest, run.key.link, run.key.variant))
                .collect::<Vec<_>>()
        };
        assert_ne!(order(0), order(1));
        let again = plan("t", &scenario, &both, &Plain).unwrap();
        assert!(runs.iter().zip(&again).all(|(one, other)| one.key == other.key));
        let synthetic = plan("t", &scenario, &[GuestKind::Synth], &Plain).unwrap();
        assert_eq!(synthetic.len(), 12);
    }

    #[test]
    fn peers_move_no_synthetic_guest() {
        let with_peer = Scenario::parse(
            "t.toml",
            "title = 't'\nlinks = ['none']\nrepetitions = 1\nlimit_s = 500\n\
             [[guest]]\nname = 's'\nkind = 'synth'\nmemory = '1M'\n\
             [[guest]]\nname = 'q'\nkind = 'qemu'\nmemory = '1M'\n\
             [[variant]]\nstrategy = 'pre-copy'\n\
             [[variant]]\npeer = 'qemu-post-copy'\nlimit_s = 20\n",
        )
        .unwrap();
        let both = [GuestKind::Synth, GuestKind::Qemu];
        let mut runs = plan("t", &with_peer, &both, &Plain).unwrap();
        runs.sort_by(|one, other| one.key.cmp(&other.key));
        let names: Vec<_> = runs
            .iter()
            .map(|run| (run.guest.name.as_str(), run.key.variant.as_str()))
            .collect();
        assert_eq!(
            names,
            [("q", "pre-copy"), ("q", "qemu-post-copy"), ("s", "pre-copy")]
        );
        assert_eq!((runs[0].limit_s, runs[1].limit_s), (500.0, 20.0));
        assert!(matches!(&runs[1].request, Request::Qemu(request) if request.peer.is_post_copy()));
        assert!(
            runs[1]
                .words
                .iter()
                .any(|word| word.contains("migrate-start-postcopy"))
        );
    }

    #[test]
    fn an_option_that_the_command_does_not_know_is_named_with_its_variant() {
        let error = plan("t", &scenario("turbo = 9"), &[GuestKind::Synth], &Plain);
        let error = error.unwrap_err().to_string();
        assert!(
            error.contains("\"hybrid\"") && error.contains("--turbo"),
            "{error}"
        );
    }
}
