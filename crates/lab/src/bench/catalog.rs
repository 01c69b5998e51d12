//! The scenarios that come with vmferry: part of the program, so that an installed one has them too.

use std::path::Path;

use super::scenario::Scenario;
use crate::error::{LabError, Result};

/// Name and text of each.
const SCENARIOS: [(&str, &str); 29] = [
    (
        "agent-allocation",
        include_str!("../../../../benches/scenarios/agent-allocation.toml"),
    ),
    (
        "checkpoint-interval",
        include_str!("../../../../benches/scenarios/checkpoint-interval.toml"),
    ),
    (
        "contention-database",
        include_str!("../../../../benches/scenarios/contention-database.toml"),
    ),
    (
        "contention-memcached",
        include_str!("../../../../benches/scenarios/contention-memcached.toml"),
    ),
    (
        "contention-redis",
        include_str!("../../../../benches/scenarios/contention-redis.toml"),
    ),
    (
        "disk-tunnel",
        include_str!("../../../../benches/scenarios/disk-tunnel.toml"),
    ),
    (
        "encodings",
        include_str!("../../../../benches/scenarios/encodings.toml"),
    ),
    (
        "filter-model",
        include_str!("../../../../benches/scenarios/filter-model.toml"),
    ),
    (
        "filter-states",
        include_str!("../../../../benches/scenarios/filter-states.toml"),
    ),
    (
        "filter-workloads",
        include_str!("../../../../benches/scenarios/filter-workloads.toml"),
    ),
    (
        "forecasts",
        include_str!("../../../../benches/scenarios/forecasts.toml"),
    ),
    (
        "forecasts-enlightened",
        include_str!("../../../../benches/scenarios/forecasts-enlightened.toml"),
    ),
    (
        "hybrid-parallel",
        include_str!("../../../../benches/scenarios/hybrid-parallel.toml"),
    ),
    (
        "hybrid-strategies",
        include_str!("../../../../benches/scenarios/hybrid-strategies.toml"),
    ),
    (
        "idle-enlightened",
        include_str!("../../../../benches/scenarios/idle-enlightened.toml"),
    ),
    (
        "memcached-baselines",
        include_str!("../../../../benches/scenarios/memcached-baselines.toml"),
    ),
    (
        "memcached-links",
        include_str!("../../../../benches/scenarios/memcached-links.toml"),
    ),
    (
        "memory-written",
        include_str!("../../../../benches/scenarios/memory-written.toml"),
    ),
    (
        "parallel",
        include_str!("../../../../benches/scenarios/parallel.toml"),
    ),
    (
        "profile",
        include_str!("../../../../benches/scenarios/profile.toml"),
    ),
    (
        "profile-destination",
        include_str!("../../../../benches/scenarios/profile-destination.toml"),
    ),
    (
        "profile-intensity",
        include_str!("../../../../benches/scenarios/profile-intensity.toml"),
    ),
    (
        "profile-paper",
        include_str!("../../../../benches/scenarios/profile-paper.toml"),
    ),
    (
        "resume-configured",
        include_str!("../../../../benches/scenarios/resume-configured.toml"),
    ),
    (
        "resume-memory",
        include_str!("../../../../benches/scenarios/resume-memory.toml"),
    ),
    (
        "return-trip",
        include_str!("../../../../benches/scenarios/return-trip.toml"),
    ),
    (
        "server-strategies",
        include_str!("../../../../benches/scenarios/server-strategies.toml"),
    ),
    (
        "workloads",
        include_str!("../../../../benches/scenarios/workloads.toml"),
    ),
    (
        "write-loop-filter",
        include_str!("../../../../benches/scenarios/write-loop-filter.toml"),
    ),
];

/// Names of all scenarios, in order.
pub fn names() -> impl Iterator<Item = &'static str> {
    SCENARIOS.into_iter().map(|(name, _)| name)
}

/// The scenario of this name, or in the file of this path. Returns its name too.
///
/// # Errors
/// When there is none, or it makes no sense.
pub fn find(name: &str) -> Result<(String, Scenario)> {
    if let Some((name, text)) = SCENARIOS.into_iter().find(|(known, _)| *known == name) {
        return Ok((name.to_owned(), Scenario::parse(&format!("{name}.toml"), text)?));
    }
    let path = Path::new(name);
    if !name.contains('/') && path.extension().is_none_or(|extension| extension != "toml") {
        return Err(LabError::UnknownScenario {
            name: name.to_owned(),
            known: names().collect::<Vec<_>>().join(", "),
        });
    }
    let text = std::fs::read_to_string(path).map_err(LabError::system(format!("read {name}")))?;
    let stem = path
        .file_stem()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned();
    Ok((stem, Scenario::parse(name, &text)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::papers;

    #[test]
    fn every_file_is_a_scenario_that_is_found() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../benches/scenarios");
        let files = std::fs::read_dir(folder).unwrap().flatten();
        let mut files: Vec<_> = files
            .map(|file| file.path().file_stem().unwrap().to_string_lossy().into_owned())
            .collect();
        files.sort();
        let known: Vec<_> = names().map(str::to_owned).collect();
        assert_eq!(files, known);
        for name in names() {
            let (found, scenario) = find(name).unwrap();
            assert_eq!(found, name);
            assert!(
                !scenario.claims.iter().any(|claim| claim.text.is_empty()),
                "{name}"
            );
            assert_ne!(scenario.hash(), scenario.clone().quick().hash(), "{name}");
            assert!(!scenario.figures.is_empty(), "{name}");
            for source in scenario.figures.iter().flat_map(|figure| &figure.source) {
                assert!(papers::find(source).is_some(), "{name}: no paper has {source:?}");
            }
        }
    }

    #[test]
    fn the_list_of_figures_has_every_figure_of_the_papers_and_who_measures_it() {
        let list = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/evaluation/FIGURES.md");
        let list = std::fs::read_to_string(list).unwrap();
        let row = |name: &str| list.lines().find(|line| line.starts_with(&format!("| {name} |")));
        for paper in papers::PAPERS {
            for figure in paper.figures {
                let name = format!("{} {}", paper.name, figure.number);
                assert!(row(&name).is_some(), "{name} is missing");
            }
        }
        for scenario in names() {
            for source in find(scenario)
                .unwrap()
                .1
                .figures
                .iter()
                .flat_map(|figure| &figure.source)
            {
                let row = row(source).unwrap();
                assert!(
                    row.contains(&format!("`{scenario}`")),
                    "{source} is measured by {scenario}: {row}"
                );
            }
        }
    }

    #[test]
    fn others_are_read_from_files() {
        let error = find("no-such").unwrap_err().to_string();
        assert!(error.contains("write-loop-filter"), "{error}");
        let error = find("./no-such.toml").unwrap_err().chain();
        assert!(error.contains("no-such.toml: No such file"), "{error}");
    }
}
