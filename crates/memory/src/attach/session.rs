//! One thread of another process, stopped, and system calls made by it (x86_64).

use std::io;
use std::marker::PhantomData;
use std::time::{Duration, Instant};

pub(super) use super::code::CallCode;
use super::{Syscall, net};
use crate::{Error, Result};

/// `cs` of a thread in 64-bit mode.
const CODE_64_BIT: u64 = 0x33;
/// `PTRACE_EVENT_STOP`: what a stop asked for by `PTRACE_INTERRUPT` reports, and a stop of the whole process.
const EVENT_STOP: i32 = 128;
/// What a stop at the beginning or the end of a system call reports, with `PTRACE_O_TRACESYSGOOD`. Should we die in one of them,
/// the kernel would deliver what it reports: this is no signal, and nothing happens.
const CALL_STOP: i32 = libc::SIGTRAP | 0x80;
/// Registers of floating point and vectors, for `PTRACE_GETREGSET`.
const NT_X86_XSTATE: usize = 0x202;
/// More than any processor has of them.
const MOST_XSTATE: usize = 32 << 10;
/// The kernel's internal "interrupted, to be restarted" results (`ERESTARTSYS` to `ERESTART_RESTARTBLOCK`).
const RESTARTS: std::ops::RangeInclusive<i64> = 512..=516;
/// How long the kernel spends at least before a stop is there; then waiting sleeps instead of spinning.
const SPIN: Duration = Duration::from_micros(300);

/// A thread that is stopped and in our hands until this is dropped, which puts everything back.
///
/// All of a session must happen on one thread of ours: `ptrace` allows nobody else.
pub(super) struct Session {
    pid: u32,
    thread: libc::pid_t,
    code: CallCode,
    patience: Duration,
    started: Instant,
    /// What to put back, once it was saved.
    saved: Option<Saved>,
    /// Whether the thread is in a stop now: only then can it be changed and let go.
    stopped: bool,
    not_send: PhantomData<*const ()>,
}

struct Saved {
    registers: libc::user_regs_struct,
    signal_mask: u64,
    /// Where the stack is for calls: on a net, should we die in the middle of one.
    stack: u64,
}

/// Why a thread stopped.
enum Stop {
    /// It was interrupted, or its whole process was stopped.
    Event,
    /// A system call begins or ends.
    Call,
    /// It is about to get this signal.
    Signal(libc::c_int),
}

impl Session {
    /// Stops `thread` of process `pid`.
    pub(super) fn start(pid: u32, thread: u32, code: CallCode, patience: Duration) -> Result<Self> {
        let thread = thread as libc::pid_t;
        let options = libc::PTRACE_O_TRACESYSGOOD as usize;
        ptrace(libc::PTRACE_SEIZE, thread, 0, options).map_err(|e| seize_error(pid, thread, e))?;
        let mut session = Session {
            pid,
            thread,
            code,
            patience,
            started: Instant::now(),
            saved: None,
            stopped: false,
            not_send: PhantomData,
        };
        session.request(libc::PTRACE_INTERRUPT, 0, 0)?;
        // Signals that come first are passed on; the stop asked for comes after them.
        while let Stop::Signal(signal) = session.wait(Instant::now() + patience)? {
            session.resume(libc::PTRACE_CONT, signal)?;
        }
        session.save()?;
        Ok(session)
    }

    /// Saves what is to be put back, here and in a net on the thread's own stack.
    fn save(&mut self) -> Result<()> {
        let registers = self.registers()?;
        if registers.cs != CODE_64_BIT {
            return Err(Error::NotX8664 { pid: self.pid });
        }
        let mut signal_mask = 0u64;
        let mask_size = size_of_val(&signal_mask);
        self.request(libc::PTRACE_GETSIGMASK, mask_size, &raw mut signal_mask as usize)?;
        let thread = net::Thread {
            registers: &registers,
            signal_mask,
            xstate: &self.xstate()?,
        };
        let restorer = self.code.restorer;
        let net = restorer.and_then(|restorer| net::spread(self.pid, &thread, restorer));
        if net.is_none() {
            tracing::debug!(pid = self.pid, "no net below a call: nobody may kill us now");
        }
        self.saved = Some(Saved {
            registers,
            signal_mask,
            stack: net.unwrap_or(registers.rsp),
        });
        Ok(())
    }

    /// Has the stopped thread make `call`; gives back its result.
    pub(super) fn syscall(&mut self, call: Syscall) -> Result<i64> {
        let saved = self.saved.as_ref().expect("a session begins by saving");
        let [rdi, rsi, rdx, r10, r8, r9] = call.arguments;
        let registers = libc::user_regs_struct {
            rip: self.code.call,
            rsp: saved.stack,
            rax: call.number as u64,
            // Not inside a system call: or the kernel would set about restarting the one it was stopped in.
            orig_rax: u64::MAX,
            rdi,
            rsi,
            rdx,
            r10,
            r8,
            r9,
            ..saved.registers
        };
        // In this order: from here on the net puts the signal mask back, too.
        self.set_registers(&registers)?;
        // No handler in the middle of a call.
        self.set_signal_mask(!0)?;
        let result = self.make_call()?;
        match result {
            -4095..0 if RESTARTS.contains(&-result) => Err(Error::AttachTimedOut { pid: self.pid }),
            -4095..0 => {
                let source = io::Error::from_raw_os_error(-result as i32);
                Err(Error::InjectedCall {
                    number: call.number,
                    pid: self.pid,
                    source,
                })
            }
            _ => Ok(result),
        }
    }

    /// Lets the thread make the call; gives back its result, with the thread stopped where it can be let go.
    fn make_call(&mut self) -> Result<i64> {
        let mut deadline = Instant::now() + self.patience;
        let (mut has_begun, mut interrupted) = (false, false);
        self.resume(libc::PTRACE_SYSCALL, 0)?;
        loop {
            let mut passed_on = 0;
            match self.wait(deadline) {
                Ok(Stop::Call) if has_begun => break,
                Ok(Stop::Call) => has_begun = true,
                Ok(Stop::Signal(signal)) => passed_on = not_blockable(signal),
                // The process is stopped or continued as a whole meanwhile.
                Ok(Stop::Event) => {}
                Err(Error::AttachTimedOut { .. }) if !interrupted => {
                    interrupted = true;
                    deadline = Instant::now() + self.patience;
                    self.request(libc::PTRACE_INTERRUPT, 0, 0)?;
                    continue;
                }
                Err(e) => return Err(e),
            }
            self.resume(libc::PTRACE_SYSCALL, passed_on)?;
        }
        let result = self.registers()?.rax as i64;
        self.move_on_to_event()?;
        Ok(result)
    }

    /// From the end of a call to a stop of the kind that we found it in: only there does the kernel look whether the call that
    /// the thread was in is to be restarted. The thread executes nothing on the way.
    fn move_on_to_event(&mut self) -> Result<()> {
        self.request(libc::PTRACE_INTERRUPT, 0, 0)?;
        let deadline = Instant::now() + self.patience;
        let mut passed_on = 0;
        loop {
            self.resume(libc::PTRACE_CONT, passed_on)?;
            passed_on = match self.wait(deadline)? {
                Stop::Event => return Ok(()),
                Stop::Signal(signal) => not_blockable(signal),
                Stop::Call => 0,
            };
        }
    }

    /// Waits until the thread stops.
    fn wait(&mut self, deadline: Instant) -> Result<Stop> {
        let began = Instant::now();
        loop {
            if let Some(status) = self.poll_stop()? {
                self.stopped = true;
                let (signal, event) = (status & 0xFF, status >> 8);
                return Ok(match (event, signal) {
                    (EVENT_STOP, _) => Stop::Event,
                    (_, CALL_STOP) => Stop::Call,
                    _ => Stop::Signal(signal),
                });
            }
            if Instant::now() >= deadline {
                return Err(Error::AttachTimedOut { pid: self.pid });
            }
            if began.elapsed() < SPIN {
                std::thread::yield_now();
            } else {
                std::thread::sleep(Duration::from_micros(100));
            }
        }
    }

    /// The thread's status if it is stopped: the signal, and above it the event.
    fn poll_stop(&self) -> Result<Option<libc::c_int>> {
        // SAFETY: a zeroed siginfo is a valid one.
        let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
        // Nothing is consumed: should the thread have died, that is for its parent to collect.
        let options = libc::WSTOPPED | libc::WEXITED | libc::WNOWAIT | libc::WNOHANG | libc::__WALL;
        // SAFETY: the kernel writes only to `info`.
        if unsafe { libc::waitid(libc::P_PID, self.thread as libc::id_t, &mut info, options) } != 0 {
            return match io::Error::last_os_error() {
                e if e.raw_os_error() == Some(libc::EINTR) => Ok(None),
                // No child and no tracee of that number any more.
                e if e.raw_os_error() == Some(libc::ECHILD) => Err(Error::ProcessGone),
                e => Err(Error::system(format!("wait for process {}", self.pid), e)),
            };
        }
        // SAFETY: `waitid` filled in a child's status, or left zeros.
        let (pid, status) = unsafe { (info.si_pid(), info.si_status()) };
        match (pid, info.si_code) {
            (0, _) => Ok(None),
            (_, libc::CLD_TRAPPED | libc::CLD_STOPPED) => Ok(Some(status)),
            _ => Err(Error::ProcessGone),
        }
    }

    fn registers(&self) -> Result<libc::user_regs_struct> {
        // SAFETY: all bit patterns of plain integers are valid.
        let mut registers: libc::user_regs_struct = unsafe { std::mem::zeroed() };
        self.request(libc::PTRACE_GETREGS, 0, &raw mut registers as usize)?;
        Ok(registers)
    }

    fn set_registers(&self, registers: &libc::user_regs_struct) -> Result<()> {
        self.request(libc::PTRACE_SETREGS, 0, std::ptr::from_ref(registers) as usize)
    }

    fn set_signal_mask(&self, mut mask: u64) -> Result<()> {
        let bytes = size_of_val(&mask);
        self.request(libc::PTRACE_SETSIGMASK, bytes, &raw mut mask as usize)
    }

    fn xstate(&self) -> Result<Vec<u8>> {
        let mut bytes = vec![0; MOST_XSTATE];
        let mut whole = libc::iovec {
            iov_base: bytes.as_mut_ptr().cast(),
            iov_len: bytes.len(),
        };
        self.request(libc::PTRACE_GETREGSET, NT_X86_XSTATE, &raw mut whole as usize)?;
        bytes.truncate(whole.iov_len);
        Ok(bytes)
    }

    /// Lets the thread run on in the way of `request`, delivering `signal` (0: none).
    fn resume(&mut self, request: libc::c_uint, signal: libc::c_int) -> Result<()> {
        self.request(request, 0, signal as usize)?;
        self.stopped = false;
        Ok(())
    }

    /// One `ptrace` request; `data` is a number, or the address of an object of the size the request implies.
    fn request(&self, request: libc::c_uint, address: usize, data: usize) -> Result<()> {
        ptrace(request, self.thread, address, data).map_err(|e| match e.raw_os_error() {
            Some(libc::ESRCH) => Error::ProcessGone,
            _ => Error::system(format!("control process {}", self.pid), e),
        })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if !self.stopped {
            // It never stopped, or died. The end of our thread lets it go.
            return;
        }
        if let Some(saved) = &self.saved {
            // In this order: until the registers are put back, the net would put back the mask, too.
            let restored = self
                .set_signal_mask(saved.signal_mask)
                .and_then(|()| self.set_registers(&saved.registers));
            if let Err(e) = restored {
                tracing::warn!(pid = self.pid, error = %e, "a thread could not be put back as it was");
            }
        }
        if self.request(libc::PTRACE_DETACH, 0, 0).is_ok() {
            let pause_us = self.started.elapsed().as_micros() as u64;
            tracing::debug!(pid = self.pid, thread = self.thread, pause_us, "injected");
        }
    }
}

/// What of signals gets through although all are blocked, and is the thread's at once: the stop of its whole process, which goes on
/// being in force when the thread is let go. (In the stop that we let it go in, a signal cannot be handed over.)
fn not_blockable(signal: libc::c_int) -> libc::c_int {
    match signal {
        libc::SIGSTOP => signal,
        _ => 0,
    }
}

fn seize_error(pid: u32, thread: libc::pid_t, source: io::Error) -> Error {
    match source.raw_os_error() {
        Some(libc::ESRCH) => Error::ProcessGone,
        // The kernel's answer for a thread that is ending, too.
        Some(libc::EPERM) if has_ended(pid, thread) => Error::ProcessGone,
        Some(libc::EPERM) => match tracer_of(pid, thread) {
            Some(tracer) => Error::AlreadyTraced { pid, tracer },
            None => Error::TraceForbidden { pid, source },
        },
        _ => Error::system(format!("attach to process {pid}"), source),
    }
}

/// Whether the thread is a zombie, dead, or not there any more.
fn has_ended(pid: u32, thread: libc::pid_t) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/stat")).unwrap_or_default();
    stat.rsplit_once(") ")
        .is_none_or(|(_, state)| state.starts_with(['Z', 'X', 'x']))
}

/// Who traces the thread, if anybody does.
fn tracer_of(pid: u32, thread: libc::pid_t) -> Option<u32> {
    let status = std::fs::read_to_string(format!("/proc/{pid}/task/{thread}/status")).ok()?;
    let tracer = status
        .lines()
        .find_map(|line| line.strip_prefix("TracerPid:"))?
        .trim()
        .parse()
        .ok()?;
    (tracer != 0).then_some(tracer)
}

/// `ptrace(2)`, for the requests used here: each takes a number in `data`, or reads or writes one object there.
fn ptrace(request: libc::c_uint, thread: libc::pid_t, address: usize, data: usize) -> io::Result<()> {
    // SAFETY: the callers in this file pass, for GETREGS and SETREGS, the address of a `user_regs_struct`; for
    // GETSIGMASK and SETSIGMASK, of a `u64` with its size in `address`; for GETREGSET, of an `iovec` of a buffer; numbers otherwise. The objects live until
    // the call returns, and the other process's memory is not ours to be unsafe about.
    match unsafe { libc::ptrace(request, thread, address, data) } {
        -1 => Err(io::Error::last_os_error()),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::{Child, Command};

    use super::*;

    /// `getpid`.
    const GETPID: Syscall = Syscall {
        number: 39,
        arguments: [0; 6],
    };

    fn state(child: &Child) -> char {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.id())).unwrap();
        stat.rsplit_once(") ").unwrap().1.chars().next().unwrap()
    }

    /// Somebody stops the process while we have it: it is stopped when we are gone.
    #[test]
    fn a_stop_in_between_is_not_lost() {
        let mut child = Command::new("sleep").arg("1000").spawn().unwrap();
        let pid = child.id();
        // Until it sleeps it is not there yet.
        while state(&child) != 'S' {
            std::thread::yield_now();
        }
        let code = CallCode::find(pid).unwrap();
        let started = Session::start(pid, pid, code, Duration::from_secs(10));
        if let Err(Error::TraceForbidden { .. }) = started {
            println!("skipped: processes may not be traced here");
        } else {
            let mut session = started.unwrap();
            // SAFETY: sends a signal to a child of ours.
            assert_eq!(unsafe { libc::kill(pid as libc::pid_t, libc::SIGSTOP) }, 0);
            assert_eq!(session.syscall(GETPID).unwrap(), i64::from(pid));
            drop(session);
            let began = Instant::now();
            while state(&child) != 'T' {
                assert!(began.elapsed() < Duration::from_secs(20), "{}", state(&child));
                std::thread::yield_now();
            }
        }
        child.kill().unwrap();
        child.wait().unwrap();
    }
}
