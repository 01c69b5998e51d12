//! A safety net for a thread that makes a call in our name: should we die, it puts itself back (x86_64).
//!
//! The end of a tracer lets its tracee run on with whatever registers it has: those of the injected call, and behind that any
//! code. So before they are changed, all that the thread needs to go on is written to its stack, below where that is in use, as
//! the kernel writes it for a signal handler: registers, floating point state and signal mask. The call is made at a `syscall`
//! that a `ret` follows, with the address of `rt_sigreturn` on top of the stack. Whoever traces to the end puts everything back by
//! `ptrace` and the net is never used; else the thread returns from the call as from a handler, to where it was stopped. A call
//! it was in then ends as interrupted by a signal.

use std::fs::File;
use std::os::unix::fs::FileExt;

/// What the ABI keeps free below the stack for leaf functions.
const RED_ZONE: u64 = 128;
/// Of `fpstate`, which `XRSTOR` asks for.
const ALIGNMENT: u64 = 64;
/// The return address and the `ucontext`, up to a multiple of [`ALIGNMENT`].
const FRAME_BYTES: u64 = 320;
/// `UC_FP_XSTATE`, `UC_SIGCONTEXT_SS`, `UC_STRICT_RESTORE_SS`.
const UC_FLAGS: u64 = 7;
/// No such mode: the thread's alternate stack stays as it is.
const NO_STACK_CHANGE: u64 = 0xFFFF;

/// Where in an `XSAVE` area the kernel looks for how much of it there is (`struct _fpx_sw_bytes`), and the header.
const SOFTWARE_BYTES: usize = 464;
const HEADER: usize = 512;
const LEAST_XSTATE: usize = HEADER + 64;
const MAGIC_1: u32 = 0x4650_5853;
const MAGIC_2: u32 = 0x4650_5845;
/// The tile registers: 8 KiB, behind everything else, which only those who asked for them have.
const TILES: u64 = 3 << 17;
/// Where everything before their data ends: what a thread has that did not ask for them.
const BEFORE_TILES: usize = 2816;

/// A stopped thread as it is to go on.
pub(super) struct Thread<'a> {
    pub(super) registers: &'a libc::user_regs_struct,
    pub(super) signal_mask: u64,
    /// As `PTRACE_GETREGSET` gives it: registers of floating point and vectors in the form of `XSAVE`.
    pub(super) xstate: &'a [u8],
}

/// Writes the net to the stack of a thread of process `pid`. Answers the stack pointer to make calls with; none where there is no
/// room for it.
pub(super) fn spread(pid: u32, thread: &Thread<'_>, restorer: u64) -> Option<u64> {
    let xstate = for_signal_frame(thread.xstate)?;
    let below = thread.registers.rsp.checked_sub(RED_ZONE + xstate.len() as u64)?;
    let fpstate = below / ALIGNMENT * ALIGNMENT;
    let frame = fpstate.checked_sub(FRAME_BYTES)?;
    let mut net = words_of_frame(thread, restorer, fpstate);
    net.resize(FRAME_BYTES as usize, 0);
    net.extend(xstate);
    let memory = File::options()
        .write(true)
        .open(format!("/proc/{pid}/mem"))
        .ok()?;
    memory.write_all_at(&net, frame).ok()?;
    Some(frame)
}

/// `struct rt_sigframe` up to the signal mask.
fn words_of_frame(thread: &Thread<'_>, restorer: u64, fpstate: u64) -> Vec<u8> {
    let of = thread.registers;
    let (rip, rax) = where_to_go_on(of);
    let segments = of.cs & 0xFFFF | (of.ss & 0xFFFF) << 48;
    let head = [restorer, UC_FLAGS, 0, 0, NO_STACK_CHANGE, 0];
    let numbered = [of.r8, of.r9, of.r10, of.r11, of.r12, of.r13, of.r14, of.r15];
    let named = [of.rdi, of.rsi, of.rbp, of.rbx, of.rdx, rax, of.rcx, of.rsp, rip];
    let rest = [of.eflags, segments, 0, 0, 0, 0, fpstate];
    let reserved = [0; 8];
    let words = head.iter().chain(&numbered).chain(&named).chain(&rest);
    let words = words.chain(&reserved).chain([&thread.signal_mask]);
    words.flat_map(|word| word.to_ne_bytes()).collect()
}

/// Instruction pointer and result after a signal that nobody handles; but a call that would be resumed with the time left is
/// interrupted, as `rt_sigreturn` forgets how long that is.
fn where_to_go_on(of: &libc::user_regs_struct) -> (u64, u64) {
    let is_in_call = of.orig_rax as i64 >= 0;
    match (of.rax as i64).wrapping_neg() {
        // ERESTARTSYS, ERESTARTNOINTR, ERESTARTNOHAND: the instruction once more.
        512..=514 if is_in_call => (of.rip - 2, of.orig_rax),
        // ERESTART_RESTARTBLOCK
        516 if is_in_call => (of.rip, -i64::from(libc::EINTR) as u64),
        _ => (of.rip, of.rax),
    }
}

/// The state with what the kernel wants to find around it in a signal frame.
fn for_signal_frame(xstate: &[u8]) -> Option<Vec<u8>> {
    if xstate.len() < LEAST_XSTATE {
        return None;
    }
    let word = |at: usize| u64::from_ne_bytes(*xstate[at..].first_chunk().expect("inside"));
    let (mut features, in_use) = (word(SOFTWARE_BYTES), word(HEADER));
    let mut bytes = xstate.len();
    if in_use & TILES == 0 {
        features &= !TILES;
        bytes = bytes.min(BEFORE_TILES);
    }
    let mut framed = xstate.to_vec();
    let mut software = Vec::with_capacity(HEADER - SOFTWARE_BYTES);
    software.extend(MAGIC_1.to_ne_bytes());
    software.extend((bytes as u32 + 4).to_ne_bytes());
    software.extend(features.to_ne_bytes());
    software.extend((bytes as u32).to_ne_bytes());
    software.resize(HEADER - SOFTWARE_BYTES, 0);
    framed[SOFTWARE_BYTES..HEADER].copy_from_slice(&software);
    // Some kernels (6.15 to 7.0) look for it behind what the thread has, whatever the size above says. What is overwritten is not in use.
    framed.extend(MAGIC_2.to_ne_bytes());
    framed[bytes..bytes + 4].copy_from_slice(&MAGIC_2.to_ne_bytes());
    Some(framed)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn word(bytes: &[u8], at: usize) -> u32 {
        u32::from_ne_bytes(*bytes[at..].first_chunk().unwrap())
    }

    /// The end of the state is found where the thread has no tiles, by kernels that go by its size and by those that do not.
    #[test]
    fn the_end_is_marked_with_and_without_tiles() {
        for (in_use, bytes) in [(7u64, BEFORE_TILES), (7 | TILES, 11_008)] {
            let mut xstate = vec![0; 11_008];
            xstate[SOFTWARE_BYTES..][..8].copy_from_slice(&(7 | TILES).to_ne_bytes());
            xstate[HEADER..][..8].copy_from_slice(&in_use.to_ne_bytes());
            let framed = for_signal_frame(&xstate).unwrap();
            assert_eq!(word(&framed, SOFTWARE_BYTES), MAGIC_1);
            assert_eq!(word(&framed, SOFTWARE_BYTES + 16), bytes as u32);
            assert_eq!([word(&framed, bytes), word(&framed, 11_008)], [MAGIC_2, MAGIC_2]);
        }
        let plain = for_signal_frame(&[0; 832]).unwrap();
        assert_eq!((plain.len(), word(&plain, 832)), (836, MAGIC_2));
        assert!(for_signal_frame(&[0; 512]).is_none());
    }
}
