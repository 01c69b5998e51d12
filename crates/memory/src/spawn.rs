//! Starting a process that outlives us and inherits chosen descriptors.

use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, RawFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command};

use rustix::io::FdFlags;

/// Starts `command` in a session of its own, so that neither Ctrl-C nor the end of our terminal reaches it, with
/// `inherited` open under the numbers they have here. No other child gets them.
///
/// # Errors
/// The program does not start.
pub fn spawn_detached(mut command: Command, inherited: &[BorrowedFd<'_>]) -> io::Result<Child> {
    let inherited: Vec<RawFd> = inherited.iter().map(AsRawFd::as_raw_fd).collect();
    let prepare = move || {
        rustix::process::setsid()?;
        for &fd in &inherited {
            // SAFETY: the descriptors are borrowed until `spawn` below returns, and the child is a copy of us.
            let fd = unsafe { BorrowedFd::borrow_raw(fd) };
            rustix::io::fcntl_setfd(fd, FdFlags::empty())?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec it only makes system calls, and neither allocates nor takes locks.
    unsafe { command.pre_exec(prepare) };
    command.spawn()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::SharedMemory;
    use std::os::fd::AsRawFd;
    use std::process::Stdio;

    #[test]
    fn the_child_has_its_own_session_and_only_what_it_inherits() {
        let given = SharedMemory::create("spawn-given", 4096).unwrap();
        let kept = SharedMemory::create("spawn-kept", 4096).unwrap();
        let script = format!(
            "readlink /proc/self/fd/{}; readlink /proc/self/fd/{}; cut -d' ' -f6 /proc/self/stat",
            given.fd().as_raw_fd(),
            kept.fd().as_raw_fd()
        );
        let mut command = Command::new("/bin/sh");
        command.args(["-c", &script]).stdout(Stdio::piped());
        let child = spawn_detached(command, &[given.fd()]).unwrap();
        let leader = child.id().to_string();
        let output = String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap();
        assert_eq!(
            output.lines().collect::<Vec<_>>(),
            ["/memfd:spawn-given (deleted)", &leader],
            "{output}"
        );
    }
}
