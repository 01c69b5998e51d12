//! Loads for the test guest that check their own data, so that a page which a migration lost, tore or left at an old version
//! shows up inside the guest, whatever the report outside says.
//!
//! Each load prints a line now and then on stdout: `guest-load: ok passes=N`, or, from the first fault it finds until it is stopped,
//! `guest-load: CORRUPT ...`. With `--progress PORT` it tells clients of that port how far it has come.

#![forbid(unsafe_code)]

mod allocate;
mod churn;
mod compile;
mod compress;
mod cpu;
mod digest;
mod disk;
mod disk_read;
mod memory;
mod network;
mod pattern;
mod progress;
mod status;
mod text;
mod used;

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::process::ExitCode;

use progress::Progress;

const USAGE: &str = "usage: guest-load write --mib N --rate-mib-s R (0: as fast as it goes) [--progress PORT]
       guest-load read --mib N [--progress PORT]
       guest-load disk --device PATH --mib N --rate-mib-s N
       guest-load churn --folder PATH --mib N
       guest-load used --mib N
       guest-load hold --mib N --held PATH
       guest-load allocate --kib N [--progress PORT]
       guest-load cpu --percent N [--progress PORT]
       guest-load gzip|bzip2 --mib N --folder PATH [--progress PORT]
       guest-load compile --sources PATH --folder PATH [--progress PORT]
       guest-load disk-read --device PATH [--progress PORT]
       guest-load net-send|net-receive --port PORT";

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let outcome = match Command::parse(&arguments) {
        Some(Command {
            load: Load::Used { mib },
            ..
        }) => {
            used::run(mib);
            return ExitCode::SUCCESS;
        }
        Some(command) => command.run(),
        None => Err(USAGE.to_owned()),
    };
    let Err(error) = outcome;
    println!("guest-load: FAILED {error}");
    ExitCode::FAILURE
}

#[derive(Debug, PartialEq, Eq)]
struct Command {
    load: Load,
    /// The port where it tells how far it has come.
    progress: Option<u16>,
}

#[derive(Debug, PartialEq, Eq)]
enum Load {
    Memory {
        mib: usize,
        rate_mib_s: usize,
    },
    Read {
        mib: usize,
    },
    Disk {
        device: String,
        mib: usize,
        rate_mib_s: usize,
    },
    Churn {
        folder: PathBuf,
        mib: usize,
    },
    Used {
        mib: usize,
    },
    Hold {
        mib: usize,
        held: PathBuf,
    },
    Allocate {
        kib: usize,
    },
    Cpu {
        percent: u32,
    },
    Compress {
        program: String,
        mib: usize,
        folder: PathBuf,
    },
    Compile {
        sources: PathBuf,
        folder: PathBuf,
    },
    DiskRead {
        device: PathBuf,
    },
    Send {
        port: u16,
    },
    Receive {
        port: u16,
    },
}

impl Command {
    fn run(self) -> Result<Infallible, String> {
        let progress = Progress::default();
        if let Some(port) = self.progress {
            progress.serve(port)?;
        }
        match self.load {
            Load::Memory { mib, rate_mib_s } => memory::run(mib, rate_mib_s, &progress),
            Load::Read { mib } => memory::read(mib, &progress),
            Load::Disk {
                device,
                mib,
                rate_mib_s,
            } => disk::run(&device, mib, rate_mib_s),
            Load::Churn { folder, mib } => churn::run(mib, &folder),
            Load::Hold { mib, held } => used::hold(mib, &held),
            Load::Allocate { kib } => allocate::run(kib, &progress),
            Load::Cpu { percent } => cpu::run(percent, &progress),
            Load::Compress { program, mib, folder } => compress::run(&program, mib, &folder, &progress),
            Load::Compile { sources, folder } => compile::run(&sources, &folder, &progress),
            Load::DiskRead { device } => disk_read::run(&device, &progress),
            Load::Send { port } => network::send(port),
            Load::Receive { port } => network::receive(port, &progress),
            Load::Used { .. } => Err("it ends".to_owned()),
        }
    }

    fn parse(arguments: &[String]) -> Option<Self> {
        let (kind, options) = arguments.split_first()?;
        let mut values = HashMap::new();
        for pair in options.chunks(2) {
            let [name, value] = pair else { return None };
            values.insert(name.as_str(), value.as_str());
        }
        let progress = match values.get("--progress") {
            Some(port) => Some(port.parse().ok()?),
            None => None,
        };
        Some(Self {
            load: Load::parse(kind, &values)?,
            progress,
        })
    }
}

impl Load {
    fn parse(kind: &str, values: &HashMap<&str, &str>) -> Option<Self> {
        let number = |name: &str| values.get(name)?.parse().ok();
        let positive = |name: &str| number(name).filter(|&number: &usize| number > 0);
        let path = |name: &str| values.get(name).map(PathBuf::from);
        let port = || values.get("--port")?.parse().ok();
        Some(match kind {
            "write" => Self::Memory {
                mib: positive("--mib")?,
                rate_mib_s: number("--rate-mib-s")?,
            },
            "read" => Self::Read {
                mib: positive("--mib")?,
            },
            "disk" => Self::Disk {
                device: values.get("--device")?.to_string(),
                mib: positive("--mib")?,
                rate_mib_s: number("--rate-mib-s")?,
            },
            "used" => Self::Used {
                mib: positive("--mib")?,
            },
            "hold" => Self::Hold {
                mib: positive("--mib")?,
                held: path("--held")?,
            },
            "allocate" => Self::Allocate {
                kib: positive("--kib")?,
            },
            "churn" => Self::Churn {
                folder: path("--folder")?,
                mib: positive("--mib")?,
            },
            "cpu" => Self::Cpu {
                percent: values
                    .get("--percent")?
                    .parse()
                    .ok()
                    .filter(|&percent| percent <= 100)?,
            },
            "gzip" | "bzip2" => Self::Compress {
                program: kind.to_owned(),
                mib: positive("--mib")?,
                folder: path("--folder")?,
            },
            "compile" => Self::Compile {
                sources: path("--sources")?,
                folder: path("--folder")?,
            },
            "disk-read" => Self::DiskRead {
                device: path("--device")?,
            },
            "net-send" => Self::Send { port: port()? },
            "net-receive" => Self::Receive { port: port()? },
            _ => return None,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Option<Load> {
        command(line).map(|command| command.load)
    }

    fn command(line: &str) -> Option<Command> {
        Command::parse(&line.split(' ').map(str::to_owned).collect::<Vec<_>>())
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
        assert_eq!(parse("read --mib 8"), Some(Load::Read { mib: 8 }));
        let disk = Load::Disk {
            device: "/dev/vda".to_owned(),
            mib: 8,
            rate_mib_s: 4,
        };
        let line = "disk --device /dev/vda --mib 8 --rate-mib-s 4";
        assert_eq!(parse(line), Some(disk));
        let churn = Load::Churn {
            folder: "/tmp".into(),
            mib: 8,
        };
        assert_eq!(parse("churn --folder /tmp --mib 8"), Some(churn));
        assert_eq!(parse("used --mib 8"), Some(Load::Used { mib: 8 }));
        let hold = Load::Hold {
            mib: 8,
            held: "/tmp/held".into(),
        };
        assert_eq!(parse("hold --mib 8 --held /tmp/held"), Some(hold));
        assert_eq!(parse("allocate --kib 4"), Some(Load::Allocate { kib: 4 }));
        let bzip2 = Load::Compress {
            program: "bzip2".into(),
            mib: 8,
            folder: "/tmp".into(),
        };
        assert_eq!(parse("bzip2 --mib 8 --folder /tmp"), Some(bzip2));
        let compile = Load::Compile {
            sources: "/src".into(),
            folder: "/tmp".into(),
        };
        assert_eq!(parse("compile --sources /src --folder /tmp"), Some(compile));
        let read = Load::DiskRead {
            device: "/dev/vda".into(),
        };
        assert_eq!(parse("disk-read --device /dev/vda"), Some(read));
        assert_eq!(parse("net-send --port 7"), Some(Load::Send { port: 7 }));
        assert_eq!(parse("net-receive --port 7"), Some(Load::Receive { port: 7 }));
        let cpu = Command {
            load: Load::Cpu { percent: 40 },
            progress: Some(7121),
        };
        assert_eq!(command("cpu --percent 40 --progress 7121"), Some(cpu));
    }

    #[test]
    fn anything_else_is_refused() {
        for line in [
            "",
            "write",
            "write --mib 0 --rate-mib-s 1",
            "write --mib 1",
            "read --mib 0",
            "disk --mib 1",
            "churn --mib 1",
            "allocate --kib 0",
            "hold --mib 1",
            "sleep --mib 1",
            "disk --mib",
            "cpu --percent 101",
            "cpu --percent 1 --progress 70000",
            "gzip --mib 1",
            "compile --folder /tmp",
            "net-send",
        ] {
            assert_eq!(parse(line), None, "{line}");
        }
    }
}
