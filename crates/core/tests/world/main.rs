//! Both machines of a migration in a simulated world: virtual time, a guest that writes its memory, streams that
//! deliver in any order, connections that break, daemons that are restarted, disks that are full. Whatever
//! happens, the guest ends at one side with the memory it wrote.

mod agent;
mod checks;
mod chooser;
mod destination_host;
mod destination_streams;
mod disk;
mod guest;
mod network;
mod pager;
mod source_host;
mod source_streams;
mod world;

use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};

use proptest::prelude::*;

use agent::Agent;
use chooser::Chooser;
use vmferry_core::Strategy;
use world::{Scenario, World};

/// Runs of the deterministic loop.
const SEEDS: u64 = 60_000;

fn world(mut chooser: Chooser) -> World {
    let scenario = Scenario::choose(&mut chooser);
    World::new(scenario, chooser)
}

fn run(chooser: Chooser, what: &str) -> World {
    let mut world = world(chooser);
    if let Err(panic) = catch_unwind(AssertUnwindSafe(|| world.run())) {
        eprintln!("{what}: {}", world.describe());
        resume_unwind(panic);
    }
    world
}

/// The same worlds every time. `VMFERRY_WORLD_SEED` runs one of them, `VMFERRY_WORLDS` another number of them.
#[test]
fn every_seeded_world_ends_with_one_guest() {
    let number = |name| std::env::var(name).ok().and_then(|text| text.parse::<u64>().ok());
    let (first, last) = match number("VMFERRY_WORLD_SEED") {
        Some(seed) => (seed, seed + 1),
        None => (0, number("VMFERRY_WORLDS").unwrap_or(SEEDS)),
    };
    let half = first + (last - first) / 2;
    let results = std::thread::scope(|scope| {
        let parts = [(first, half), (half, last)].map(|(from, to)| scope.spawn(move || tally(from, to)));
        parts.map(|part| part.join().unwrap_or_else(|panic| resume_unwind(panic)))
    });
    let mut all = BTreeMap::new();
    for (key, count) in results.into_iter().flatten() {
        *all.entry(key).or_insert(0) += count;
    }
    eprintln!("{all:#?}");
    if last - first >= SEEDS {
        for algorithm in Strategy::ALL {
            for ended in ["Completed", "Failed"] {
                let key = format!("{algorithm:?} {ended}");
                assert!(all.contains_key(&key), "no world {key}");
            }
        }
        for what in [
            "reconnected",
            "severed",
            "source restarted",
            "filtered",
            "dropped exactly",
            "dropped by a list",
            "agent silent",
            "sent ahead",
            "disks moved",
        ] {
            assert!(all.contains_key(what), "no world {what}");
        }
    }
}

/// How the worlds of these seeds ended.
fn tally(from: u64, to: u64) -> BTreeMap<String, u32> {
    let mut tally = BTreeMap::new();
    for seed in from..to {
        let chooser = Chooser::seeded(seed);
        let calm = !chooser.chaotic();
        let world = run(chooser, &format!("VMFERRY_WORLD_SEED={seed}"));
        let ended = world
            .source
            .over
            .flatten()
            .map_or("Restarted".into(), |outcome| format!("{outcome:?}"));
        let mut count = |key: String| *tally.entry(key).or_insert(0) += 1;
        count(format!("{:?} {ended}", world.scenario.algorithm));
        for (seen, what) in [
            (world.checks.reconnects > 0 && world.completed(), "reconnected"),
            (world.checks.severed, "severed"),
            (world.checks.source_restarts > 0, "source restarted"),
            (world.checks.filtered, "filtered"),
            (world.checks.ahead > 0 && world.completed(), "sent ahead"),
            (world.source.disk.is_some() && world.completed(), "disks moved"),
            (world.dropped(Agent::Exact), "dropped exactly"),
            (world.dropped(Agent::Inexact), "dropped by a list"),
            (
                world.scenario.agent == Agent::Silent && world.completed(),
                "agent silent",
            ),
        ] {
            if seen {
                count(what.into());
            }
        }
        for error in &world.checks.errors {
            count(format!("error {error}"));
        }
        if calm {
            assert!(
                world.checks.errors.is_empty(),
                "seed {seed}: {:?}",
                world.checks.errors
            );
        }
    }
    tally
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 500, max_shrink_iters: 20_000, ..ProptestConfig::default() })]

    /// Worlds of any choices, which shrink to the few that matter.
    #[test]
    fn every_chosen_world_ends_with_one_guest(choices in prop::collection::vec(any::<u16>(), 0..3000)) {
        run(Chooser::listed(choices), "choices");
    }
}
