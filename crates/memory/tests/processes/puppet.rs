//! A process that does what it is told with memory it shares with us.

use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::PollFd;
use vmferry_memory::{FileId, Mapping, RemoteProcess, SharedMemory, Syscall, mappings_of, spawn_detached};

use crate::PAGE;

/// The environment variable that makes a puppet of this program: `DESCRIPTOR LENGTH` of the shared memory.
pub(crate) const STRINGS: &str = "VMFERRY_TEST_PUPPET";

/// Our end of a puppet; it ends when this is dropped.
pub(crate) struct Puppet {
    child: Child,
    commands: BufReader<UnixStream>,
    /// The memory, as we have it mapped.
    pub(crate) memory: SharedMemory,
}

impl Puppet {
    /// Starts one that has all of a new memory of so many pages mapped, as mapping 0.
    pub(crate) fn new(pages: u64) -> Self {
        let memory = SharedMemory::create("puppet", pages * PAGE).unwrap();
        let (ours, theirs) = UnixStream::pair().unwrap();
        let mut command = Command::new(std::env::current_exe().unwrap());
        command
            .args(["puppet_entry", "--exact", "--nocapture", "--test-threads=1"])
            .env(STRINGS, format!("{} {}", memory.fd().as_raw_fd(), memory.len()))
            .stdin(Stdio::from(OwnedFd::from(theirs)))
            .stdout(Stdio::null());
        let child = spawn_detached(command, &[memory.fd()]).unwrap();
        let mut puppet = Puppet {
            child,
            commands: BufReader::new(ours),
            memory,
        };
        assert_eq!(puppet.ask("hello"), "hello");
        puppet
    }

    pub(crate) fn pid(&self) -> u32 {
        self.child.id()
    }

    pub(crate) fn process(&self) -> RemoteProcess {
        RemoteProcess::open(self.pid()).unwrap()
    }

    /// Where it has the memory mapped.
    pub(crate) fn mappings(&self) -> Vec<Mapping> {
        mappings_of(self.pid(), FileId::of(self.memory.fd()).unwrap()).unwrap()
    }

    /// The address at which its mapping 0 begins, while it has no other.
    pub(crate) fn base(&self) -> u64 {
        let mappings = self.mappings();
        assert_eq!((mappings.len(), mappings[0].file_offset), (1, 0), "{mappings:x?}");
        mappings[0].addresses.start
    }

    /// Gives a command without waiting for the answer.
    pub(crate) fn tell(&mut self, command: &str) {
        writeln!(self.commands.get_mut(), "{command}").unwrap();
    }

    /// Waits for the answer to an earlier command.
    pub(crate) fn answer(&mut self) -> String {
        let mut answer = String::new();
        self.commands.read_line(&mut answer).unwrap();
        assert!(answer.ends_with('\n'), "the puppet died");
        answer.trim_end().to_owned()
    }

    /// Whether an answer comes within `time`.
    pub(crate) fn answers_within(&self, time: Duration) -> bool {
        let mut poll = [PollFd::new(self.commands.get_ref(), rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut poll, Some(&time.try_into().unwrap())).unwrap() > 0
    }

    pub(crate) fn ask(&mut self, command: &str) -> String {
        self.tell(command);
        self.answer()
    }

    /// Has it write `value` to the first word of every page (offsets in pages of mapping `mapping`), by itself or
    /// by a system call.
    pub(crate) fn write(&mut self, by_kernel: bool, mapping: usize, value: u64, pages: &[u64]) {
        let verb = if by_kernel { "kernel-write" } else { "write" };
        let pages: Vec<String> = pages.iter().map(u64::to_string).collect();
        assert_eq!(
            self.ask(&format!("{verb} {mapping} {value} {}", pages.join(" "))),
            "done"
        );
    }

    /// Parses the answer to `read`: the first and the last word of every page.
    pub(crate) fn words(answer: &str) -> Vec<(u64, u64)> {
        let numbers: Vec<u64> = answer
            .split_whitespace()
            .map(|word| word.parse().unwrap())
            .collect();
        numbers.chunks(2).map(|pair| (pair[0], pair[1])).collect()
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        // It may hang in a fault that nobody answers.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The puppet's side: obeys until its strings are cut.
pub(crate) fn dance(strings: &str) {
    let (fd, len) = strings.split_once(' ').unwrap();
    let file = || {
        let path = format!("/proc/self/fd/{fd}");
        OwnedFd::from(
            std::fs::OpenOptions::new()
                .read(true)
                .write(true)
                .open(path)
                .unwrap(),
        )
    };
    let mut memories = vec![SharedMemory::from_fd(file(), 0, len.parse().unwrap()).unwrap()];
    let stream = UnixStream::from(std::io::stdin().as_fd().try_clone_to_owned().unwrap());
    let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
    let mut work: Option<Work> = None;
    while let Some(Ok(line)) = lines.next() {
        let (verb, rest) = line.split_once(' ').unwrap_or((&line, ""));
        let numbers: Vec<u64> = rest
            .split_whitespace()
            .filter_map(|word| word.parse().ok())
            .collect();
        let answer = match verb {
            "hello" => "hello".to_owned(),
            // map FIRST COUNT: one more mapping.
            "map" => {
                let (offset, len) = (numbers[0] * PAGE, numbers[1] * PAGE);
                memories.push(SharedMemory::from_fd(file(), offset, len).unwrap());
                (memories.len() - 1).to_string()
            }
            // write|kernel-write MAPPING VALUE PAGE...
            "write" => {
                let memory = &memories[numbers[0] as usize];
                numbers[2..]
                    .iter()
                    .for_each(|page| memory.store_u64(page * PAGE, numbers[1]));
                "done".to_owned()
            }
            "kernel-write" => {
                kernel_write(&memories[numbers[0] as usize], numbers[1], &numbers[2..]);
                "done".to_owned()
            }
            // read MAPPING THREADS: every page, by so many threads in turns.
            "read" => read(&memories[numbers[0] as usize], numbers[1]),
            // work KIND: a thread named call_rcu that does one kind of thing over and over.
            "work" => {
                work = Some(Work::start(rest.to_owned()));
                "started".to_owned()
            }
            // inject PID ADDRESS: calls of a millisecond, whose timespec is at the address there, until killed.
            "inject" => {
                writeln!(&stream, "injecting").unwrap();
                inject_for_ever(numbers[0] as u32, numbers[1])
            }
            "rest" => work.take().expect("nothing was started").stop(),
            other => panic!("unknown command {other}"),
        };
        writeln!(&stream, "{answer}").unwrap();
    }
}

fn inject_for_ever(pid: u32, timespec: u64) -> ! {
    let process = RemoteProcess::open(pid).unwrap();
    loop {
        let sleep = Syscall {
            number: libc::SYS_nanosleep,
            arguments: [timespec, 0, 0, 0, 0, 0],
        };
        process.inject(sleep).unwrap();
    }
}

/// Has the kernel write to the memory, by reading from a pipe into it.
fn kernel_write(memory: &SharedMemory, value: u64, pages: &[u64]) {
    let (reader, writer) = rustix::pipe::pipe().unwrap();
    for page in pages {
        assert_eq!(rustix::io::write(&writer, &value.to_ne_bytes()).unwrap(), 8);
        memory
            .read_range_from(reader.as_fd(), &[(page * PAGE, 8)])
            .unwrap();
    }
}

fn read(memory: &SharedMemory, threads: u64) -> String {
    let pages = memory.len() / PAGE;
    let words: Vec<AtomicU64> = (0..2 * pages).map(|_| AtomicU64::new(0)).collect();
    std::thread::scope(|scope| {
        for thread in 0..threads {
            let words = &words;
            scope.spawn(move || {
                for page in (thread..pages).step_by(threads as usize) {
                    words[2 * page as usize].store(memory.load_u64(page * PAGE), Relaxed);
                    words[2 * page as usize + 1].store(memory.load_u64((page + 1) * PAGE - 8), Relaxed);
                }
            });
        }
    });
    words
        .iter()
        .map(|word| word.load(Relaxed).to_string())
        .collect::<Vec<_>>()
        .join(" ")
}

/// A thread for injections to disturb.
struct Work {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<(u64, u64)>,
}

impl Work {
    fn start(kind: String) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let work = move || match kind.as_str() {
            "compute" => compute(&told),
            "ppoll" => repeat(&told, ppoll_once),
            "nanosleep" => repeat(&told, || {
                let nap = rustix::thread::Timespec {
                    tv_sec: 0,
                    tv_nsec: 500_000,
                };
                matches!(
                    rustix::thread::nanosleep(&nap),
                    rustix::thread::NanosleepRelativeResult::Ok
                )
            }),
            "futex" => repeat(&told, || {
                let (_sender, receiver) = std::sync::mpsc::sync_channel::<()>(0);
                let began = Instant::now();
                let nap = Duration::from_micros(500);
                receiver.recv_timeout(nap) == Err(std::sync::mpsc::RecvTimeoutError::Timeout)
                    && began.elapsed() >= nap
            }),
            "churn" => repeat(&told, || {
                let short = std::thread::Builder::new().name("call_rcu".into());
                let nap = || std::thread::sleep(Duration::from_micros(200));
                short.spawn(nap).unwrap().join().is_ok()
            }),
            other => panic!("unknown work {other}"),
        };
        let thread = std::thread::Builder::new()
            .name("call_rcu".into())
            .spawn(work)
            .unwrap();
        Work { stop, thread }
    }

    /// Ends it: how often the work was done, and how often it went wrong.
    fn stop(self) -> String {
        self.stop.store(true, Relaxed);
        let (done, failed) = self.thread.join().unwrap();
        format!("{done} {failed}")
    }
}

fn repeat(stop: &AtomicBool, once: impl Fn() -> bool) -> (u64, u64) {
    let (mut done, mut failed) = (0, 0);
    while !stop.load(Relaxed) {
        failed += u64::from(!once());
        done += 1;
    }
    (done, failed)
}

/// Waits for nothing; right when the time was up, and neither earlier nor with an error.
fn ppoll_once() -> bool {
    let (reader, _writer) = rustix::pipe::pipe().unwrap();
    let mut poll = [PollFd::new(&reader, rustix::event::PollFlags::IN)];
    let nap = Duration::from_micros(500);
    let began = Instant::now();
    rustix::event::poll(&mut poll, Some(&nap.try_into().unwrap())) == Ok(0) && began.elapsed() >= nap
}

/// Computes the same thing again and again, in integer and floating point registers: any that is not put back
/// shows in the result.
fn compute(stop: &AtomicBool) -> (u64, u64) {
    let once = || {
        let (mut word, mut number) = (0x9E37_79B9_7F4A_7C15u64, 1.0f64);
        for _ in 0..2000 {
            word ^= word << 13;
            word ^= word >> 7;
            word ^= word << 17;
            number = (number * 1.000_000_1 + (word >> 60) as f64).sqrt();
        }
        (word, number.to_bits())
    };
    let expected = once();
    repeat(stop, || std::hint::black_box(once()) == expected)
}
