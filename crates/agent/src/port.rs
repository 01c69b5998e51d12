//! The virtio-serial port to the host.

use std::fs::{File, OpenOptions};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
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
    let found = fds[0].revents();
    if found.contains(PollFlags::IN) && !found.contains(PollFlags::HUP) {
        return Ok(Wait::Ready);
    }
    // It says that there is something to read as well, whether there is or not. What there is may be the question of somebody whose
    // coming the driver has not noticed yet: it is read when that is so.
    std::thread::sleep(NOBODY);
    Ok(Wait::Nothing)
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

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
        let mut left = [0; 16];
        assert_eq!((&port).read(&mut left).unwrap(), 15, "nothing is lost");
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
