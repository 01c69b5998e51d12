//! Loads for the test guest that check their own data, so that a page which a migration lost, tore or left at an old version
//! shows up inside the guest, whatever the report outside says.
//!
//! Each load prints a line a second on stdout: `guest-load: ok passes=N`, or, from the first fault it finds until it is stopped,
//! `guest-load: CORRUPT ...`.

#![forbid(unsafe_code)]

mod churn;
mod disk;
mod memory;
mod pattern;
mod used;

use std::collections::HashMap;
use std::path::PathBuf;
use std::process::ExitCode;

const USAGE: &str = "usage: guest-load write --mib N --rate-mib-s R (0: as fast as it goes)
       guest-load disk --device PATH --mib N
       guest-load churn --folder PATH --mib N
       guest-load used --mib N";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match Load::parse(&arguments) {
        Some(Load::Memory { mib, rate_mib_s }) => memory::run(mib, rate_mib_s),
        Some(Load::Disk { device, mib }) => disk::run(&device, mib),
        Some(Load::Churn { folder, mib }) => churn::run(mib, &folder),
        Some(Load::Used { mib }) => {
            used::run(mib);
            return ExitCode::SUCCESS;
        }
        None => Err(USAGE.to_owned()),
    };
    let Err(error) = outcome;
    println!("guest-load: FAILED {error}");
    ExitCode::FAILURE
}

#[derive(Debug, PartialEq, Eq)]
enum Load {
    Memory { mib: usize, rate_mib_s: usize },
    Disk { device: String, mib: usize },
    Churn { folder: PathBuf, mib: usize },
    Used { mib: usize },
}

impl Load {
    fn parse(arguments: &[String]) -> Option<Self> {
        let (kind, options) = arguments.split_first()?;
        let mut values = HashMap::new();
        for pair in options.chunks(2) {
            let [name, value] = pair else { return None };
            values.insert(name.as_str(), value.as_str());
        }
        let positive = |name: &str| {
            values
                .get(name)?
                .parse()
                .ok()
                .filter(|&number: &usize| number > 0)
        };
        match kind.as_str() {
            "write" => {
                let rate_mib_s = values.get("--rate-mib-s")?.parse().ok()?;
                Some(Self::Memory {
                    mib: positive("--mib")?,
                    rate_mib_s,
                })
            }
            "disk" => Some(Self::Disk {
                device: values.get("--device")?.to_string(),
                mib: positive("--mib")?,
            }),
            "used" => Some(Self::Used {
                mib: positive("--mib")?,
            }),
            "churn" => Some(Self::Churn {
                folder: values.get("--folder")?.into(),
                mib: positive("--mib")?,
            }),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<Load> {
        Load::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn all_loads_are_understood() {
        assert_eq!(
            parse("write --mib 64 --rate-mib-s 0"),
            Some(Load::Memory {
                mib: 64,
                rate_mib_s: 0
            })
        );
        let disk = Load::Disk {
            device: "/dev/vda".to_owned(),
            mib: 8,
        };
        assert_eq!(parse("disk --device /dev/vda --mib 8"), Some(disk));
        let churn = Load::Churn {
            folder: "/tmp".into(),
            mib: 8,
        };
        assert_eq!(parse("churn --folder /tmp --mib 8"), Some(churn));
        assert_eq!(parse("used --mib 8"), Some(Load::Used { mib: 8 }));
    }

    #[test]
    fn anything_else_is_refused() {
        for line in [
            "",
            "write",
            "write --mib 0 --rate-mib-s 1",
            "write --mib 1",
            "disk --mib 1",
            "churn --mib 1",
            "sleep --mib 1",
            "disk --mib",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
