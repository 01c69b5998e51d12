//! Results of the micro benches (`cargo bench -p vmferry-benches`), gathered into one file that a report can show: what criterion
//! measured of single functions, and what benches that compare two things wrote.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::machine::{self, Machine};
use crate::error::{LabError, Result};

/// Shape of the file; another one is not read.
const FORMAT: u32 = 1;
/// Folders below criterion's that are looked through: group, function, parameter, and what was measured last.
const DEPTH: usize = 4;

/// Everything that was gathered.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Micro {
    /// Shape of the file.
    pub micro_format: u32,
    /// On what they were measured.
    pub machine: Machine,
    /// When they were gathered, milliseconds since 1970.
    pub gathered_unix_ms: u64,
    /// How busy the machine was then: the load average of the last minute.
    pub load_average: Option<f64>,
    /// Single functions, by group and name.
    pub functions: Vec<Function>,
    /// What benches compared, by bench and name.
    pub comparisons: BTreeMap<String, BTreeMap<String, Compared>>,
}

/// A function that criterion measured.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Function {
    /// What it belongs to; empty where it stands alone.
    pub group: String,
    /// Its name.
    pub name: String,
    /// What one iteration takes, nanoseconds: the median.
    pub ns: f64,
    /// Where that truly lies, by criterion's bootstrap (95 %).
    pub low_ns: f64,
    /// As above.
    pub high_ns: f64,
    /// Bytes that one iteration works on, where that is said.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u64>,
}

/// A figure or a ratio of a bench that compares.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum Compared {
    /// Of several runs.
    Figure {
        /// The one in the middle.
        median: f64,
        /// The smallest.
        min: f64,
        /// The largest.
        max: f64,
        /// What it counts.
        unit: String,
        /// One a run.
        #[serde(default)]
        values: Vec<f64>,
    },
    /// Of two medians.
    Ratio {
        /// The ratio.
        ratio: f64,
        /// What it should be.
        wanted: String,
    },
}

impl Function {
    /// Bytes a second, of those that work on bytes.
    pub fn bytes_per_s(&self) -> Option<f64> {
        self.bytes.map(|bytes| bytes as f64 / self.ns * 1e9)
    }
}

impl Micro {
    /// Gathers what is in `criterion` (`target/criterion`), and in the files that benches wrote with `--json`, each known by its
    /// name without the ending.
    ///
    /// # Errors
    /// When a file cannot be read or is something else; when there is nothing at all.
    pub fn gather(criterion: &Path, files: &[PathBuf]) -> Result<Self> {
        let mut functions = Vec::new();
        find(criterion, DEPTH, &mut functions)?;
        functions.sort_by(|one, other| (&one.group, &one.name).cmp(&(&other.group, &other.name)));
        let mut comparisons = BTreeMap::new();
        for file in files {
            let name = file
                .file_stem()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            comparisons.insert(name, parse(file)?);
        }
        if functions.is_empty() && comparisons.is_empty() {
            return Err(LabError::NoResults {
                path: criterion.to_owned(),
                why: "has no results; `cargo bench -p vmferry-benches --bench micro` makes them".to_owned(),
            });
        }
        Ok(Self {
            micro_format: FORMAT,
            machine: Machine::here(),
            gathered_unix_ms: super::unix_ms(),
            load_average: machine::load_average(),
            functions,
            comparisons,
        })
    }

    /// Reads a file of them.
    ///
    /// # Errors
    /// When it cannot be read, or holds anything else.
    pub fn read(file: &Path) -> Result<Self> {
        let micro: Self = parse(file)?;
        match micro.micro_format {
            FORMAT => Ok(micro),
            other => Err(LabError::NoResults {
                path: file.to_owned(),
                why: format!("has format {other} of micro benches, and this version reads format {FORMAT}"),
            }),
        }
    }
}

fn parse<T: serde::de::DeserializeOwned>(file: &Path) -> Result<T> {
    let bytes = std::fs::read(file).map_err(LabError::system(format!("read {}", file.display())))?;
    serde_json::from_slice(&bytes).map_err(|error| LabError::NoResults {
        path: file.to_owned(),
        why: format!("holds something else than results of micro benches ({error})"),
    })
}

/// What criterion says of a function.
#[derive(Deserialize)]
struct About {
    group_id: String,
    function_id: Option<String>,
    value_str: Option<String>,
    throughput: Option<Throughput>,
}

#[derive(Deserialize)]
struct Throughput {
    #[serde(rename = "Bytes")]
    bytes: Option<u64>,
}

#[derive(Deserialize)]
struct Estimates {
    median: Estimate,
}

#[derive(Deserialize)]
struct Estimate {
    point_estimate: f64,
    confidence_interval: Interval,
}

#[derive(Deserialize)]
struct Interval {
    lower_bound: f64,
    upper_bound: f64,
}

/// Adds the functions whose last results lie in folders called `new` below this one.
fn find(folder: &Path, depth: usize, functions: &mut Vec<Function>) -> Result<()> {
    let new = folder.join("new");
    let (about, estimates) = (new.join("benchmark.json"), new.join("estimates.json"));
    if about.is_file() && estimates.is_file() {
        functions.push(function(parse(&about)?, parse(&estimates)?));
    }
    if depth == 0 {
        return Ok(());
    }
    for entry in std::fs::read_dir(folder).into_iter().flatten().flatten() {
        if entry.path().is_dir() && entry.file_name() != "new" {
            find(&entry.path(), depth - 1, functions)?;
        }
    }
    Ok(())
}

fn function(about: About, estimates: Estimates) -> Function {
    let of = [about.function_id, about.value_str];
    let name = of.into_iter().flatten().collect::<Vec<_>>().join(", ");
    // One that stands alone is its own group.
    let (group, name) = match name.is_empty() || name == about.group_id {
        true => (String::new(), about.group_id),
        false => (about.group_id, name),
    };
    let median = estimates.median;
    Function {
        group,
        name,
        ns: median.point_estimate,
        low_ns: median.confidence_interval.lower_bound,
        high_ns: median.confidence_interval.upper_bound,
        bytes: about.throughput.and_then(|throughput| throughput.bytes),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_criterion_and_benches_left_is_gathered_and_read_again() {
        let folder = tempfile::tempdir().unwrap();
        let criterion = folder.path().join("criterion");
        let write = |path: PathBuf, value: serde_json::Value| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, value.to_string()).unwrap();
        };
        let estimates = json!({"median": {"point_estimate": 2e6, "standard_error": 1.0,
            "confidence_interval": {"confidence_level": 0.95, "lower_bound": 1.5e6, "upper_bound": 3e6}}});
        for (place, about) in [
            (
                "scan of 1 GiB/clean",
                json!({"group_id": "scan of 1 GiB", "function_id": "clean", "value_str": null,
                                          "throughput": {"Bytes": 1_u64 << 30}}),
            ),
            (
                "a fault",
                json!({"group_id": "a fault", "function_id": null, "value_str": null, "throughput": null}),
            ),
        ] {
            for moment in ["new", "base"] {
                write(
                    criterion.join(place).join(moment).join("benchmark.json"),
                    about.clone(),
                );
                write(
                    criterion.join(place).join(moment).join("estimates.json"),
                    estimates.clone(),
                );
            }
        }
        let push = folder.path().join("push.json");
        write(
            push.clone(),
            json!({"pre-copy: vmferry": {"median": 1.2, "min": 1.0, "max": 1.3, "unit": "GiB/s", "values": [1.0, 1.2, 1.3]},
                                   "pre-copy: vmferry / iperf3": {"ratio": 0.8, "wanted": "at least 0.7"}}),
        );
        let micro = Micro::gather(&criterion, std::slice::from_ref(&push)).unwrap();
        let names: Vec<_> = micro
            .functions
            .iter()
            .map(|it| (it.group.as_str(), it.name.as_str()))
            .collect();
        assert_eq!(names, [("", "a fault"), ("scan of 1 GiB", "clean")]);
        let scan = &micro.functions[1];
        assert_eq!((scan.ns, scan.low_ns, scan.high_ns), (2e6, 1.5e6, 3e6));
        assert_eq!(
            scan.bytes_per_s().map(f64::round),
            Some((f64::from(1 << 30) / 0.002).round())
        );
        assert!(matches!(
            &micro.comparisons["push"]["pre-copy: vmferry / iperf3"],
            Compared::Ratio { ratio, .. } if *ratio == 0.8
        ));
        let file = folder.path().join("micro.json");
        std::fs::write(&file, serde_json::to_string(&micro).unwrap()).unwrap();
        assert_eq!(Micro::read(&file).unwrap(), micro);
        let error = Micro::read(&push).unwrap_err().to_string();
        assert!(error.contains("something else"), "{error}");
        let nothing = Micro::gather(&folder.path().join("nowhere"), &[]).unwrap_err();
        assert!(nothing.to_string().contains("cargo bench"), "{nothing}");
    }
}
