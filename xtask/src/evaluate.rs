//! `cargo xtask evaluate`: every scenario within a budget of time, the micro benches, and the page of all of it.
//!
//! Scenarios are measured pass by pass: one repetition of each, then a second, and so on, so that whenever the time is over all have
//! about as many, and those that matter most have more. `vmferry bench` keeps every run, so the same command goes on where it
//! was ended, whatever ended it.

use std::ffi::OsStr;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use crate::cache::Cache;
use crate::layer::Layer;
use crate::{command, demo, image, setup};

/// What most claims are about: measured first, and most often.
const FIRST: [&str; 3] = ["server-strategies", "idle-enlightened", "write-loop-filter"];
/// Repetitions of those, and of the others, at most.
const MOST: [u32; 2] = [9, 5];
/// How often a bench is looked at.
const LOOK: Duration = Duration::from_millis(200);
/// How long a bench may take to put everything in order after it was interrupted.
const GRACE: Duration = Duration::from_secs(30);
/// Of the budget, what the micro benches are left.
const MICRO_SHARE: f64 = 0.1;
/// Benches that compare, beside `micro`.
const BENCHES: [&str; 3] = ["push", "downtime", "simulation"];

/// What was asked for on the command line.
pub(crate) struct Options {
    /// In the small sizes.
    pub(crate) quick: bool,
    /// How long it may take, building and setting up not counted.
    pub(crate) budget: Duration,
    /// Only these scenarios; all where empty.
    pub(crate) only: Vec<String>,
    /// Without micro benches.
    pub(crate) no_micro: bool,
    /// Where it all goes.
    pub(crate) folder: PathBuf,
}

/// A scenario and what was measured of it.
struct Measured {
    name: String,
    file: PathBuf,
    /// Repetitions that it has had a pass for.
    passes: u32,
    /// How long its last pass took.
    last: Option<Duration>,
    /// Why it is left out from now on.
    given_up: Option<String>,
}

/// Sets up, builds, measures, and writes raw results, page and state.
pub(crate) fn run(options: &Options) -> Result<()> {
    ensure!(
        setup::is_root(),
        "not root: scenarios need network namespaces and QEMU's memory"
    );
    setup::install()?;
    let image = image::build(&Cache::open()?, &Layer::ALL)?;
    let vmferry = demo::build_vmferry()?;
    let raw = options.folder.join("raw");
    std::fs::create_dir_all(&raw).with_context(|| format!("cannot make {}", raw.display()))?;
    let end = Instant::now() + options.budget;
    let micro = match options.no_micro {
        true => Duration::ZERO,
        false => options.budget.mul_f64(MICRO_SHARE),
    };
    let mut scenarios = scenarios(&vmferry, &raw, &options.only)?;
    let bench = Bench {
        vmferry: &vmferry,
        image: &image.folder,
        quick: options.quick,
        end: end - micro,
    };
    bench.measure(&mut scenarios)?;
    let micro = options.folder.join("micro.json");
    if !options.no_micro
        && let Err(error) = micro_benches(&micro, options.quick)
    {
        eprintln!("micro benches: {error:#}");
    }
    // The page and the state are of all that lies there, whatever was measured now.
    let mut all = self::scenarios(&vmferry, &raw, &[])?;
    for scenario in scenarios {
        let place = all.iter_mut().find(|other| other.name == scenario.name);
        *place.expect("all are among all") = scenario;
    }
    report(&vmferry, &all, &micro, &options.folder)
}

/// The scenarios that come with vmferry, those first that matter most.
fn scenarios(vmferry: &Path, raw: &Path, only: &[String]) -> Result<Vec<Measured>> {
    let listed = command::output(Command::new(vmferry).args(["bench", "--list", "--json"]))?;
    let listed: Value = serde_json::from_slice(&listed).context("`vmferry bench --list` wrote no JSON")?;
    let names = listed
        .as_object()
        .context("`vmferry bench --list` wrote no list")?;
    let mut names: Vec<&str> = names.keys().map(String::as_str).collect();
    if let Some(unknown) = only.iter().find(|name| !names.contains(&name.as_str())) {
        bail!("there is no scenario {unknown:?}; there are {}", names.join(", "));
    }
    names.retain(|name| only.is_empty() || only.iter().any(|it| it == name));
    names.sort_by_key(|name| {
        FIRST
            .iter()
            .position(|first| first == name)
            .unwrap_or(FIRST.len())
    });
    let measured = |name: &str| Measured {
        name: name.to_owned(),
        file: raw.join(format!("{name}.json")),
        passes: 0,
        last: None,
        given_up: None,
    };
    Ok(names.into_iter().map(measured).collect())
}

/// How scenarios are measured.
struct Bench<'a> {
    vmferry: &'a Path,
    image: &'a Path,
    quick: bool,
    end: Instant,
}

/// How a pass ended.
enum Pass {
    Done,
    Failed(String),
    /// The time was over.
    Over,
}

impl Bench<'_> {
    /// Pass by pass, until the time is over or everything has been measured as often as it is worth.
    fn measure(&self, scenarios: &mut [Measured]) -> Result<()> {
        for pass in 1..=MOST[0] {
            for scenario in scenarios.iter_mut() {
                let most = MOST[usize::from(!FIRST.contains(&scenario.name.as_str()))];
                if pass > most || scenario.given_up.is_some() {
                    continue;
                }
                let left = self.end.saturating_duration_since(Instant::now());
                // What cannot be ended in time is not begun; the next one may be shorter.
                if left.is_zero() || scenario.last.is_some_and(|last| last > left) {
                    continue;
                }
                eprintln!(
                    "{}: repetition {pass}, {} min left",
                    scenario.name,
                    left.as_secs() / 60
                );
                let begin = Instant::now();
                match self.pass(scenario, pass)? {
                    Pass::Done => {
                        scenario.passes = pass;
                        // Runs that were known took no time, and say nothing of the next.
                        let took = begin.elapsed();
                        scenario.last = scenario.last.max(Some(took));
                    }
                    Pass::Failed(why) => {
                        eprintln!("{}: {why}", scenario.name);
                        scenario.given_up = Some(why);
                    }
                    Pass::Over => {}
                }
            }
        }
        Ok(())
    }

    /// So many repetitions of a scenario: those that its file lacks. When the time is over it is interrupted, and keeps what it has.
    fn pass(&self, scenario: &Measured, repetitions: u32) -> Result<Pass> {
        let mut line = Command::new(self.vmferry);
        line.args(["bench", &scenario.name, "--repetitions", &repetitions.to_string()])
            .arg("--image")
            .arg(self.image)
            .arg(&scenario.file);
        if self.quick {
            line.arg("--quick");
        }
        let mut child = line
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .spawn()
            .with_context(|| format!("cannot start {}", self.vmferry.display()))?;
        let mut interrupted: Option<Instant> = None;
        loop {
            if let Some(status) = child.try_wait().context("cannot wait for vmferry")? {
                return Ok(outcome(status, interrupted.is_some()));
            }
            match interrupted {
                None if Instant::now() >= self.end => {
                    // As Ctrl-C does: it takes everything down.
                    command::run(Command::new("kill").args(["-INT", &child.id().to_string()]))?;
                    interrupted = Some(Instant::now());
                }
                Some(since) if since.elapsed() > GRACE => {
                    child.kill().context("cannot end vmferry")?;
                }
                _ => {}
            }
            thread::sleep(LOOK);
        }
    }
}

fn outcome(status: ExitStatus, interrupted: bool) -> Pass {
    match status.success() {
        true => Pass::Done,
        false if interrupted => Pass::Over,
        false => Pass::Failed(format!("`vmferry bench` failed ({status})")),
    }
}

/// Runs the micro benches and gathers their results in one file.
fn micro_benches(file: &Path, quick: bool) -> Result<()> {
    let bench = |name: &str, arguments: &[&OsStr]| {
        let line = ["bench", "--package", "vmferry-benches", "--bench", name, "--"];
        let mut cargo = command::cargo();
        if quick {
            cargo.env("VMFERRY_BENCH_RUNS", "2");
        }
        command::run(cargo.args(line).args(arguments))
    };
    bench(
        "micro",
        &if quick {
            vec![OsStr::new("--quick")]
        } else {
            Vec::new()
        },
    )?;
    let folder = std::env::temp_dir().join(format!("vmferry-evaluate-{}", std::process::id()));
    std::fs::create_dir_all(&folder)?;
    let mut written = Vec::new();
    for name in BENCHES {
        let out = folder.join(format!("{name}.json"));
        match bench(name, &[OsStr::new("--json"), out.as_os_str()]) {
            Ok(()) => written.push(out),
            Err(error) => eprintln!("bench {name}: {error:#}"),
        }
    }
    // One that was skipped wrote nothing.
    written.retain(|out| out.is_file());
    let line = [
        "run",
        "--release",
        "--package",
        "vmferry-benches",
        "--bin",
        "gather-micro",
        "--",
    ];
    let file = std::path::absolute(file)?;
    let gathered = command::run(command::cargo().args(line).arg(file).args(&written));
    let _ = std::fs::remove_dir_all(&folder);
    gathered
}

/// Writes the page, and what was measured how often.
fn report(vmferry: &Path, scenarios: &[Measured], micro: &Path, folder: &Path) -> Result<()> {
    let files: Vec<&Path> = scenarios
        .iter()
        .map(|scenario| scenario.file.as_path())
        .filter(|file| file.is_file())
        .collect();
    ensure!(!files.is_empty(), "nothing was measured");
    let mut line = Command::new(vmferry);
    line.args(["bench", "report"]).args(&files);
    if micro.is_file() {
        line.arg("--micro").arg(micro);
    }
    command::run(line.arg("--html").arg(folder.join("report.html")))?;
    let mut text = String::from(STATE);
    for scenario in scenarios {
        text += &match state(scenario)? {
            Some(row) => row,
            None => format!("| `{}` | not measured | | | |\n", scenario.name),
        };
    }
    let file = folder.join("STATE.md");
    std::fs::write(&file, text).with_context(|| format!("cannot write {}", file.display()))?;
    eprintln!("{}: all of it", folder.join("report.html").display());
    Ok(())
}

/// What stands above the table.
const STATE: &str = "# State of the evaluation\n\nWritten by `cargo xtask evaluate`. Repetitions are those that every part of a scenario has had.\n\n\
    | scenario | repetitions | runs, failed | claims hold, differ | figures |\n|---|---|---|---|---|\n";

/// A row of the table; none where there is no file.
fn state(scenario: &Measured) -> Result<Option<String>> {
    let Ok(text) = std::fs::read(&scenario.file) else {
        return Ok(None);
    };
    let results: Value = serde_json::from_slice(&text)
        .with_context(|| format!("{} is no file of results", scenario.file.display()))?;
    let list = |name: &str| results[name].as_array().map_or(&[][..], Vec::as_slice);
    let failed = list("runs")
        .iter()
        .filter(|run| run["outcome"]["failed"].is_object());
    let verdicts = |holds: bool| {
        list("verdicts")
            .iter()
            .filter(|verdict| verdict["holds"] == holds)
            .count()
    };
    let measured = list("summary")
        .iter()
        .map(|line| line["measured"].as_u64().unwrap_or(0));
    let mut sources: Vec<&str> = results["content"]["figure"]
        .as_array()
        .map_or(&[][..], Vec::as_slice)
        .iter()
        .flat_map(|figure| figure["source"].as_array().into_iter().flatten())
        .filter_map(Value::as_str)
        .collect();
    sources.sort_unstable();
    sources.dedup();
    let size = if results["quick"] == true {
        " (--quick)"
    } else {
        ""
    };
    let mut row = String::new();
    // A string takes everything.
    let _ = writeln!(
        row,
        "| `{}`{size} | {} | {}, {} | {}, {} | {} |",
        scenario.name,
        measured.min().unwrap_or(0),
        list("runs").len(),
        failed.count(),
        verdicts(true),
        verdicts(false),
        sources.join(", ")
    );
    Ok(Some(row))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn measured(folder: &Path, name: &str) -> Measured {
        Measured {
            name: name.to_owned(),
            file: folder.join(format!("{name}.json")),
            passes: 0,
            last: None,
            given_up: None,
        }
    }

    /// A `vmferry` that notes how it was called.
    fn pretender(folder: &Path, script: &str) -> PathBuf {
        use std::os::unix::fs::PermissionsExt as _;
        let path = folder.join("vmferry");
        let log = folder.join("log");
        std::fs::write(
            &path,
            format!("#!/bin/sh\necho \"$*\" >> {}\n{script}\n", log.display()),
        )
        .unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o755)).unwrap();
        path
    }

    fn calls(folder: &Path) -> Vec<String> {
        let log = std::fs::read_to_string(folder.join("log")).unwrap_or_default();
        let word = |line: &str| {
            let words: Vec<_> = line.split(' ').collect();
            format!("{} {}", words[1], words[3])
        };
        log.lines().map(word).collect()
    }

    #[test]
    fn passes_go_over_all_scenarios_and_on_with_those_that_matter_most() {
        let folder = tempfile();
        let vmferry = pretender(&folder, "case $2 in broken) exit 1 ;; esac");
        let mut scenarios = ["server-strategies", "broken", "encodings"].map(|name| measured(&folder, name));
        let bench = Bench {
            vmferry: &vmferry,
            image: &folder,
            quick: true,
            end: Instant::now() + Duration::from_secs(600),
        };
        bench.measure(&mut scenarios).unwrap();
        let calls = calls(&folder);
        assert_eq!(
            calls[..4],
            [
                "server-strategies 1",
                "broken 1",
                "encodings 1",
                "server-strategies 2"
            ]
        );
        assert_eq!(calls.last().unwrap(), "server-strategies 9");
        assert!(calls.contains(&"encodings 5".to_owned()) && !calls.contains(&"encodings 6".to_owned()));
        assert!(scenarios[1].given_up.as_ref().unwrap().contains("exit status: 1"));
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn a_bench_is_interrupted_when_the_time_is_over() {
        let folder = tempfile();
        let vmferry = pretender(&folder, "trap 'exit 130' INT; sleep 60 & wait $!");
        let mut scenarios = [measured(&folder, "encodings")];
        let bench = Bench {
            vmferry: &vmferry,
            image: &folder,
            quick: false,
            end: Instant::now() + Duration::from_millis(300),
        };
        let begin = Instant::now();
        bench.measure(&mut scenarios).unwrap();
        assert!(begin.elapsed() < Duration::from_secs(30), "{:?}", begin.elapsed());
        assert_eq!((scenarios[0].passes, scenarios[0].given_up.as_ref()), (0, None));
        assert_eq!(calls(&folder).len(), 1);
        std::fs::remove_dir_all(folder).unwrap();
    }

    #[test]
    fn the_state_says_what_was_measured_and_what_came_of_it() {
        let folder = tempfile();
        let scenario = measured(&folder, "encodings");
        assert_eq!(state(&scenario).unwrap(), None);
        let results = serde_json::json!({
            "quick": true, "runs": [{"outcome": {"failed": {"why": "x"}}}, {"outcome": {"measured": {}}}],
            "summary": [{"measured": 2}, {"measured": 1}], "verdicts": [{"holds": true}, {"holds": false}, {"holds": null}],
            "content": {"figure": [{"source": ["b Fig. 2"]}, {"source": ["a Fig. 1", "b Fig. 2"]}, {}]}
        });
        std::fs::write(&scenario.file, results.to_string()).unwrap();
        let row = "| `encodings` (--quick) | 1 | 2, 1 | 1, 1 | a Fig. 1, b Fig. 2 |\n";
        assert_eq!(state(&scenario).unwrap().as_deref(), Some(row));
        std::fs::remove_dir_all(folder).unwrap();
    }

    /// A folder of this test's own: xtask is built before anything else, with few dependencies.
    fn tempfile() -> PathBuf {
        use std::sync::atomic::{AtomicU32, Ordering};
        static COUNT: AtomicU32 = AtomicU32::new(0);
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let folder = std::env::temp_dir().join(format!("vmferry-xtask-{}-{number}", std::process::id()));
        std::fs::create_dir_all(&folder).unwrap();
        folder
    }
}
