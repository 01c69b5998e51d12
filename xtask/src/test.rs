//! `cargo xtask test`: all that must hold before a change is merged, stage by stage, with a table at the end.

use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use crate::cache::Cache;
use crate::layer::Layer;
use crate::{command, image, setup, tidy};

/// Layers of the guest image that the tests have; those of heavier ones run where somebody built them.
const LAYERS: [Layer; 1] = [Layer::Redis];

/// How a stage ended.
enum Outcome {
    Passed,
    Failed(String),
    Skipped(String),
}

/// One line of the table.
struct Stage {
    name: &'static str,
    outcome: Outcome,
    took: Duration,
}

/// Runs every stage, also after one has failed. `fast` leaves out the set-up, the documentation and the tests on QEMU.
pub(crate) fn run(fast: bool) -> Result<()> {
    let ci = std::env::var("CI").is_ok_and(|value| value == "true");
    let mut stages = Vec::new();
    let mut guest = None;
    if !fast {
        stages.push(stage("set up", || {
            let (outcome, folder) = prepare();
            guest = folder;
            outcome
        }));
    }
    let component = |name: &'static str, arguments: &'static [&'static str]| match missing_component(name, ci)
    {
        Some(outcome) => outcome,
        None => cargo(arguments, &[]),
    };
    stages.push(stage("format", || {
        component("rustfmt", &["fmt", "--all", "--check"])
    }));
    stages.push(stage("tidy", || passed(tidy::run(&crate::repository()))));
    let clippy: &[&str] = &["clippy", "--workspace", "--all-targets", "--", "-D", "warnings"];
    stages.push(stage("clippy", || component("clippy", clippy)));
    if !fast {
        let doc: &[&str] = &["doc", "--workspace", "--no-deps"];
        stages.push(stage("documentation", || {
            cargo(doc, &[("RUSTDOCFLAGS", "-D warnings".into())])
        }));
    }
    stages.push(stage("tests", || {
        // One command for all crates, so that the last lines of its output sum up the whole.
        let all: &[&str] = &["test", "--workspace", "--no-fail-fast"];
        let quick: &[&str] = &[
            "test",
            "--workspace",
            "--no-fail-fast",
            "--exclude",
            "vmferry-tests",
        ];
        if fast {
            cargo(quick, &[])
        } else {
            cargo(all, &test_environment(guest.as_deref()))
        }
    }));
    // By `cargo test`, so that what was built for the tests is used; each runs once and nothing is measured.
    let micro: &[&str] = &["test", "--workspace", "--bench", "micro"];
    stages.push(stage("micro benches", || {
        let environment = (!fast).then(|| test_environment(guest.as_deref()));
        cargo(micro, &environment.unwrap_or_default())
    }));
    summarise(&stages)
}

fn stage(name: &'static str, run: impl FnOnce() -> Outcome) -> Stage {
    eprintln!("\n== {name}");
    let start = Instant::now();
    let outcome = run();
    let took = start.elapsed();
    let word = match &outcome {
        Outcome::Passed => "passed".to_owned(),
        Outcome::Failed(why) => format!("FAILED: {why}"),
        Outcome::Skipped(why) => format!("skipped: {why}"),
    };
    eprintln!("== {name} {word} ({:.1} s)", took.as_secs_f64());
    Stage { name, outcome, took }
}

/// Installs what the tests need and builds the guest image. As root a failure is one of the whole run; others go on without, and
/// tests that need a guest say that they were skipped.
fn prepare() -> (Outcome, Option<PathBuf>) {
    let built = setup::install().and_then(|()| image::build(&Cache::open()?, &LAYERS));
    if let Err(error) = setup::install_browser() {
        eprintln!("the report's page will not be looked at: {error:#}");
    }
    match built {
        Ok(image) => {
            eprintln!("{}", image.summary);
            (Outcome::Passed, Some(image.folder))
        }
        Err(error) if setup::is_root() => (Outcome::Failed(format!("{error:#}")), None),
        Err(error) => (Outcome::Skipped(format!("{error:#}")), None),
    }
}

/// Where the guest image is, and what may not be missing: root has just installed it all, so that a test which cannot run is a
/// failure and not a skip. A `VMFERRY_REQUIRE` that is set already, also to nothing, is believed.
fn test_environment(guest: Option<&Path>) -> Vec<(&'static str, String)> {
    let mut environment = Vec::new();
    if let Some(folder) = guest {
        environment.push(("VMFERRY_GUEST_IMAGE", folder.display().to_string()));
    }
    // `cargo test --workspace` builds the program beside this one; built for itself it would be built anew.
    if let Ok(xtask) = std::env::current_exe()
        && std::env::var_os("VMFERRY_BIN").is_none()
    {
        environment.push((
            "VMFERRY_BIN",
            xtask.with_file_name("vmferry").display().to_string(),
        ));
    }
    if setup::is_root() && std::env::var_os("VMFERRY_REQUIRE").is_none() {
        let browser = if crate::setup::has_browser() {
            ",chromium"
        } else {
            ""
        };
        environment.push(("VMFERRY_REQUIRE", format!("qemu,root,uffd{browser}")));
    }
    environment
}

/// What to say when a component of the toolchain is not there and cannot be had; on CI that is a failure.
fn missing_component(name: &str, ci: bool) -> Option<Outcome> {
    let tool = if name == "clippy" { "clippy" } else { "fmt" };
    let works = || command::output(command::cargo().args([tool, "--version"])).is_ok();
    if works() {
        return None;
    }
    let added = command::run(Command::new("rustup").args(["component", "add", name]));
    if added.is_ok() && works() {
        return None;
    }
    let why = format!("{name} is not installed and `rustup component add {name}` did not bring it");
    Some(if ci {
        Outcome::Failed(why)
    } else {
        Outcome::Skipped(why)
    })
}

fn cargo(arguments: &[&str], environment: &[(&str, String)]) -> Outcome {
    let environment = environment.iter().map(|(name, value)| (name, value));
    passed(command::run_loudly(
        command::cargo().args(arguments).envs(environment),
    ))
}

fn passed(result: Result<()>) -> Outcome {
    match result {
        Ok(()) => Outcome::Passed,
        Err(error) => Outcome::Failed(format!("{error:#}")),
    }
}

/// Prints the table; any failure is an error.
fn summarise(stages: &[Stage]) -> Result<()> {
    println!("\n{}", table(stages));
    let failed: Vec<_> = stages
        .iter()
        .filter(|stage| matches!(stage.outcome, Outcome::Failed(_)))
        .map(|stage| stage.name)
        .collect();
    if !failed.is_empty() {
        bail!("failed: {}", failed.join(", "));
    }
    Ok(())
}

fn table(stages: &[Stage]) -> String {
    let row = |stage: &Stage| {
        let (word, why) = match &stage.outcome {
            Outcome::Passed => ("passed", ""),
            Outcome::Failed(why) => ("FAILED", why.as_str()),
            Outcome::Skipped(why) => ("skipped", why.as_str()),
        };
        format!(
            "{:<14} {word:<8} {:>7.1} s  {why}",
            stage.name,
            stage.took.as_secs_f64()
        )
        .trim_end()
        .to_owned()
    };
    let total: f64 = stages.iter().map(|stage| stage.took.as_secs_f64()).sum();
    let rows = stages
        .iter()
        .map(row)
        .chain([format!("{:<14} {:<8} {total:>7.1} s", "total", "")]);
    rows.collect::<Vec<_>>().join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stages() -> Vec<Stage> {
        let stage = |name, outcome| Stage {
            name,
            outcome,
            took: Duration::from_millis(1500),
        };
        vec![
            stage("format", Outcome::Skipped("no rustfmt".to_owned())),
            stage(
                "clippy",
                Outcome::Failed("`cargo clippy` failed (exit status: 101)".to_owned()),
            ),
            stage("tests", Outcome::Passed),
        ]
    }

    #[test]
    fn the_table_says_what_failed_and_why() {
        let table = table(&stages());
        let lines: Vec<_> = table.lines().collect();
        assert_eq!(lines[0], "format         skipped      1.5 s  no rustfmt");
        assert_eq!(
            lines[1],
            "clippy         FAILED       1.5 s  `cargo clippy` failed (exit status: 101)"
        );
        assert_eq!(lines[2], "tests          passed       1.5 s");
        assert_eq!(lines[3], "total                       4.5 s");
    }

    #[test]
    fn one_failed_stage_fails_the_run() {
        assert_eq!(summarise(&stages()).unwrap_err().to_string(), "failed: clippy");
        assert!(summarise(&stages()[2..]).is_ok());
    }
}
