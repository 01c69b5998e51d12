//! The compile load, like the build of a large C program: each file is compiled and assembled by programs of its own, one job a
//! processor, and all begins again when the last is done. Each object file has to be the same every time.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::digest::Known;
use crate::progress::Progress;
use crate::status::Status;

/// Compiles the C files of `sources` for ever; what comes of it lies in `folder`. One unit of progress is a file.
pub(crate) fn run(sources: &Path, folder: &Path, progress: &Progress) -> Result<Infallible, String> {
    let build = Build::new(sources, folder)?;
    let status = Status::default();
    loop {
        build.clean()?;
        build.all(progress, &status)?;
        status.pass();
        println!("guest-load: {} files={}", status.line(), progress.total());
    }
}

struct Build {
    files: Vec<PathBuf>,
    folder: PathBuf,
    known: Mutex<Known>,
}

impl Build {
    fn new(sources: &Path, folder: &Path) -> Result<Self, String> {
        let listed = std::fs::read_dir(sources)
            .map_err(|error| format!("cannot list {}: {error}", sources.display()))?;
        let is_source = |path: &PathBuf| path.extension().is_some_and(|extension| extension == "c");
        let mut files: Vec<_> = listed
            .flatten()
            .map(|entry| entry.path())
            .filter(is_source)
            .collect();
        files.sort();
        if files.is_empty() {
            return Err(format!("{} has no C files", sources.display()));
        }
        Ok(Self {
            files,
            folder: folder.join("build"),
            known: Mutex::default(),
        })
    }

    fn clean(&self) -> Result<(), String> {
        // There is none the first time.
        let _ = std::fs::remove_dir_all(&self.folder);
        std::fs::create_dir_all(&self.folder)
            .map_err(|error| format!("cannot make {}: {error}", self.folder.display()))
    }

    fn all(&self, progress: &Progress, status: &Status) -> Result<(), String> {
        let jobs = thread::available_parallelism().map_or(1, usize::from);
        let next = AtomicUsize::new(0);
        let job = || {
            loop {
                let index = next.fetch_add(1, Ordering::Relaxed);
                let Some(source) = self.files.get(index) else {
                    return Ok(());
                };
                let object = self.one(source)?;
                let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
                if let Err(fault) = known.check(index, &object, "object file") {
                    status.fault(&fault);
                }
                drop(known);
                progress.add(1);
            }
        };
        thread::scope(|scope| {
            let jobs: Vec<_> = (0..jobs).map(|_| scope.spawn(job)).collect();
            jobs.into_iter()
                .try_for_each(|job| job.join().unwrap_or_else(|_| Err("a job is lost".to_owned())))
        })
    }

    /// Returns the object file. There are no headers of the system's, which `-ffreestanding` does without, as kernels do.
    fn one(&self, source: &Path) -> Result<Vec<u8>, String> {
        let name = source.file_stem().unwrap_or_default();
        let target = |extension: &str| self.folder.join(name).with_extension(extension);
        let (assembly, object) = (target("s"), target("o"));
        finish(
            Command::new("cc1")
                .args(["-quiet", "-O2", "-ffreestanding"])
                .arg(source)
                .arg("-o")
                .arg(&assembly),
        )?;
        finish(Command::new("as").arg(&assembly).arg("-o").arg(&object))?;
        std::fs::read(&object).map_err(|error| format!("cannot read {}: {error}", object.display()))
    }
}

fn finish(command: &mut Command) -> Result<(), String> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.stdin(Stdio::null()).status() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program} failed: {status}")),
        Err(error) => Err(format!("cannot start {program}: {error}")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sources_are_found_in_order_and_have_to_be_there() {
        let folder = tempfile::tempdir().unwrap();
        let refused = |folder: &Path| Build::new(folder, folder).err().unwrap();
        assert!(refused(folder.path()).contains("no C files"));
        for name in ["b.c", "a.c", "all.h"] {
            std::fs::write(folder.path().join(name), "").unwrap();
        }
        let build = Build::new(folder.path(), folder.path()).unwrap();
        let names: Vec<_> = build.files.iter().map(|path| path.file_name().unwrap()).collect();
        assert_eq!(names, ["a.c", "b.c"]);
        assert!(refused(&folder.path().join("none")).contains("cannot list"));
    }

    #[test]
    fn a_program_that_fails_is_named() {
        assert_eq!(finish(&mut Command::new("true")), Ok(()));
        assert!(
            finish(&mut Command::new("false"))
                .unwrap_err()
                .contains("false failed")
        );
        let missing = finish(&mut Command::new("no-such-program"));
        assert!(missing.unwrap_err().contains("cannot start no-such-program"));
    }
}
