//! Instructions in the code of another process that a thread of it can be sent to (x86_64).

use std::fs::File;
use std::os::unix::fs::FileExt;

use crate::{Error, Result, maps};

/// `syscall`.
const SYSCALL: &[u8] = &[0x0F, 0x05];
/// `syscall; ret`.
const SYSCALL_RET: &[u8] = &[0x0F, 0x05, 0xC3];
/// `mov $15, %rax; syscall` and `mov $15, %eax; syscall`: `rt_sigreturn`, as C libraries have it for signal handlers to return to.
const RESTORERS: [&[u8]; 2] = [
    &[0x48, 0xC7, 0xC0, 0x0F, 0, 0, 0, 0x0F, 0x05],
    &[0xB8, 0x0F, 0, 0, 0, 0x0F, 0x05],
];
/// The longest of these, less one: so much of a piece is looked at again with the next.
const SEAM: usize = 8;
const PIECE_BYTES: usize = 1 << 18;

/// Where code is that makes a system call.
#[derive(Clone, Copy, Debug)]
pub(super) struct CallCode {
    /// Of a `syscall`; where `restorer` is there, a `ret` follows it.
    pub(super) call: u64,
    /// Of code that makes `rt_sigreturn`.
    pub(super) restorer: Option<u64>,
}

impl CallCode {
    /// Looks in all code of process `pid`, that of its C library first. Bytes that look like an instruction will do: only they
    /// are executed.
    pub(super) fn find(pid: u32) -> Result<Self> {
        let mut code = maps::read_maps(pid)?;
        code.retain(|entry| entry.executable && entry.path != "[vsyscall]");
        code.sort_by_key(|entry| !entry.path.contains("libc"));
        let memory = File::open(format!("/proc/{pid}/mem")).map_err(|e| match e.raw_os_error() {
            Some(libc::ENOENT | libc::ESRCH) => Error::ProcessGone,
            _ => Error::TraceForbidden { pid, source: e },
        })?;
        let mut found = Found::default();
        let mut buffer = vec![0; PIECE_BYTES];
        for addresses in code.into_iter().map(|entry| entry.addresses) {
            let mut at = addresses.start;
            while at < addresses.end && !found.is_all() {
                let len = buffer.len().min((addresses.end - at) as usize);
                let Ok(read) = memory.read_at(&mut buffer[..len], at) else {
                    break;
                };
                found.look_in(&buffer[..read], at);
                if read <= SEAM {
                    break;
                }
                at += (read - SEAM) as u64;
            }
        }
        found.best().ok_or(Error::NoSyscallInstruction { pid })
    }
}

#[derive(Default)]
struct Found {
    syscall: Option<u64>,
    syscall_ret: Option<u64>,
    restorer: Option<u64>,
}

impl Found {
    fn look_in(&mut self, code: &[u8], at: u64) {
        let find = |pattern: &[u8]| {
            let place = code.windows(pattern.len()).position(|bytes| bytes == pattern);
            place.map(|place| at + place as u64)
        };
        self.syscall = self.syscall.or_else(|| find(SYSCALL));
        self.syscall_ret = self.syscall_ret.or_else(|| find(SYSCALL_RET));
        self.restorer = self
            .restorer
            .or_else(|| RESTORERS.iter().find_map(|restorer| find(restorer)));
    }

    fn is_all(&self) -> bool {
        self.syscall_ret.is_some() && self.restorer.is_some()
    }

    fn best(&self) -> Option<CallCode> {
        let call = match self.is_all() {
            true => self.syscall_ret,
            false => self.syscall,
        };
        call.map(|call| CallCode {
            call,
            restorer: self.restorer.filter(|_| self.is_all()),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_c_library_has_what_it_takes() {
        let found = CallCode::find(std::process::id()).unwrap();
        assert!(found.restorer.is_some(), "{found:x?}");
    }

    #[test]
    fn without_a_restorer_any_call_will_do() {
        let mut found = Found::default();
        found.look_in(&[0x90, 0x0F, 0x05, 0x90, 0x0F, 0x05, 0xC3], 0x1000);
        let best = found.best().unwrap();
        assert_eq!((best.call, best.restorer), (0x1001, None));
        found.look_in(&[0xB8, 0x0F, 0, 0, 0, 0x0F, 0x05], 0x2000);
        let best = found.best().unwrap();
        assert_eq!((best.call, best.restorer), (0x1004, Some(0x2000)));
        assert!(Found::default().best().is_none());
    }
}
