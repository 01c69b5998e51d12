//! The compression load: a text goes through `gzip` or `bzip2` into a file, again and again. The file has to be the same every
//! time.

use std::convert::Infallible;
use std::fs::File;
use std::io::Write as _;
use std::path::Path;
use std::process::{Command, Stdio};
use std::thread;

use crate::digest::Known;
use crate::progress::Progress;
use crate::status::Status;
use crate::text;

/// What is given to the program in one piece. Units of progress are bytes.
const PIECE: usize = 32 << 10;

/// Compresses a text of `mib` MiB with `program`, its results below `folder`, for ever.
pub(crate) fn run(
    program: &str,
    mib: usize,
    folder: &Path,
    progress: &Progress,
) -> Result<Infallible, String> {
    let text = text::write(mib << 20);
    let (status, mut known) = (Status::default(), Known::default());
    let result = folder.join(format!("text.{program}"));
    loop {
        compress(program, &text, &result, progress)?;
        let content = std::fs::read(&result).map_err(|error| format!("cannot read its result: {error}"))?;
        match known.check(0, &content, "compressed text") {
            Ok(()) => status.pass(),
            Err(fault) => status.fault(&fault),
        }
        println!("guest-load: {} bytes={}", status.line(), content.len());
    }
}

fn compress(program: &str, text: &[u8], result: &Path, progress: &Progress) -> Result<(), String> {
    let cannot = |what: &str, error: std::io::Error| format!("cannot {what} {program}: {error}");
    let output = File::create(result).map_err(|error| cannot("keep the result of", error))?;
    let mut child = Command::new(program)
        .args(["-9", "-c"])
        .stdin(Stdio::piped())
        .stdout(output)
        .spawn()
        .map_err(|error| cannot("start", error))?;
    let input = child.stdin.take();
    thread::scope(|scope| {
        // It ends with the pipe, which closes with it.
        scope.spawn(move || {
            let Some(mut input) = input else { return };
            for piece in text.chunks(PIECE) {
                if input.write_all(piece).is_err() {
                    return;
                }
                progress.add(piece.len() as u64);
            }
        });
    });
    match child.wait() {
        Ok(status) if status.success() => Ok(()),
        Ok(status) => Err(format!("{program} failed: {status}")),
        Err(error) => Err(cannot("wait for", error)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_text_becomes_a_file_and_progress() {
        let folder = tempfile::tempdir().unwrap();
        let text = text::write(200_000);
        let progress = Progress::default();
        let results = ["one", "two"].map(|name| {
            let result = folder.path().join(name);
            compress("gzip", &text, &result, &progress).unwrap();
            std::fs::read(result).unwrap()
        });
        assert_eq!(results[0], results[1]);
        assert!(results[0].len() < text.len() * 6 / 10, "{}", results[0].len());
        assert_eq!(progress.total(), 400_000);
        let error = compress("no-such-program", &text, &folder.path().join("x"), &progress);
        assert!(error.unwrap_err().contains("no-such-program"));
        assert!(compress("false", &text, &folder.path().join("x"), &progress).is_err());
    }
}
