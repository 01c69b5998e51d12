//! The virtio-serial port to the host.

use std::fs::{File, OpenOptions};
use std::io::Read as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use vmferry_agent_proto::PORT;

use crate::error::{AgentError, Result};

/// How long to sleep where nobody has the other end open: then waiting returns at once.
const NOBODY: Duration = Duration::from_millis(100);

/// What waiting found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Wait {
    /// There is something to read.
    Ready,
    /// There is not, yet.
    Nothing,
}

/// The device of the port, where the guest has it.
pub(crate) fn find(ports: &Path) -> Option<PathBuf> {
    let entries = std::fs::read_dir(ports).ok()?;
    entries.flatten().find_map(|entry| {
        let name = std::fs::read_to_string(entry.path().join("name")).ok()?;
        (name.trim_end() == PORT).then(|| Path::new("/dev").join(entry.file_name()))
    })
}

/// Opens the port.
pub(crate) fn open(device: &Path) -> Result<File> {
    OpenOptions::new()
        .read(true)
        .write(true)
        .open(device)
        .map_err(AgentError::file(device))
}

/// Waits until the host says something, at most `timeout`.
pub(crate) fn wait(port: &File, timeout: Duration) -> Result<Wait> {
    let mut fds = [PollFd::new(port, PollFlags::IN)];
    let timeout = Timespec::try_from(timeout).expect("a few seconds");
    match poll(&mut fds, Some(&timeout)) {
        Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(Wait::Nothing),
        Ok(_) => {}
        Err(error) => return Err(AgentError::Wait(error.into())),
    }
    if !fds[0].revents().contains(PollFlags::HUP) {
        return Ok(Wait::Ready);
    }
    forget_what_was_left(port)?;
    std::thread::sleep(NOBODY);
    Ok(Wait::Nothing)
}

/// Who has gone waits for no answer, and the next one is not to find half a question. Without another end the port says that there is
/// something to read, whether there is or not; and somebody may open it just now, so that reading could wait.
fn forget_what_was_left(port: &File) -> Result<()> {
    let set = |flags| fcntl_setfl(port, flags).map_err(|error| AgentError::Wait(error.into()));
    let flags = fcntl_getfl(port).map_err(|error| AgentError::Wait(error.into()))?;
    set(flags | OFlags::NONBLOCK)?;
    let mut buffer = [0; 4096];
    let mut left = port;
    while left.read(&mut buffer).is_ok_and(|bytes| bytes > 0) {}
    set(flags)
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;

    use super::*;

    /// A port without another end says of itself what a pipe without a writer does.
    #[test]
    fn nobody_at_the_other_end_is_nothing_to_read() {
        let (reader, mut writer) = std::io::pipe().unwrap();
        let port = File::from(std::os::fd::OwnedFd::from(reader));
        assert_eq!(wait(&port, Duration::ZERO).unwrap(), Wait::Nothing);
        writer.write_all(b"half a question").unwrap();
        assert_eq!(wait(&port, Duration::ZERO).unwrap(), Wait::Ready);
        drop(writer);
        let begun = std::time::Instant::now();
        assert_eq!(wait(&port, Duration::ZERO).unwrap(), Wait::Nothing);
        assert!(begun.elapsed() >= NOBODY, "it would not rest");
        assert_eq!((&port).read(&mut [0; 16]).unwrap(), 0);
    }

    #[test]
    fn the_port_is_found_by_its_name() {
        let ports = tempfile::tempdir().unwrap();
        for (device, name) in [
            ("vport0p1", "com.redhat.spice.0\n"),
            ("vport1p1", "org.vmferry.agent.0\n"),
        ] {
            std::fs::create_dir(ports.path().join(device)).unwrap();
            std::fs::write(ports.path().join(device).join("name"), name).unwrap();
        }
        assert_eq!(find(ports.path()), Some("/dev/vport1p1".into()));
        assert_eq!(find(&ports.path().join("none")), None);
    }
}
