//! What ways of sending guest pages to a socket and of taking them in cost on this machine, in turn in one run.
//!
//! `cargo run --release -p vmferry-memory --example transfer_cost [MiB] [repeats]`
//!
//! Each line is one way to send and one way to receive: GiB a second and the CPU seconds per GiB of both sides.

use std::io::{self, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::thread;
use std::time::{Duration, Instant};

use rustix::net::{RecvFlags, SendFlags};
use rustix::pipe::SpliceFlags;
use rustix::time::{ClockId, clock_gettime};
use vmferry_memory::SharedMemory;

type Error = Box<dyn std::error::Error + Send + Sync>;

const HEADER: usize = 32;
const FRAME: u64 = 1 << 20;

#[derive(Clone, Copy, Debug)]
enum Sending {
    /// `writev` from the mapping.
    Mapping,
    /// `sendfile` from the memfd: pages go by reference.
    Sendfile,
    /// A copy out of the mapping, then a write.
    Copy,
}

#[derive(Clone, Copy, Debug)]
enum Receiving {
    /// `readv` into the mapping: a fault a page.
    Mapping,
    /// `readv` into the mapping, populated right before.
    Populated,
    /// Read into a buffer of so many KiB that is used again and again, then `pwrite` to the memfd.
    Buffer(usize),
    /// The socket to a pipe, the pipe to the memfd.
    Splice,
}

fn main() -> Result<(), Error> {
    let mut arguments = std::env::args().skip(1);
    let mib: u64 = arguments.next().map_or(Ok(512), |number| number.parse())?;
    let repeats: usize = arguments.next().map_or(Ok(5), |number| number.parse())?;
    let source = SharedMemory::create("transfer-source", mib << 20)?;
    source.populate(0..source.len())?;
    let mut word = 0x9e37_79b9_7f4a_7c15_u64;
    for at in (0..source.len()).step_by(8) {
        word ^= word << 13;
        word ^= word >> 7;
        word ^= word << 17;
        source.store_u64(at, word);
    }
    let ways = [
        (Sending::Mapping, Receiving::Mapping),
        (Sending::Mapping, Receiving::Populated),
        (Sending::Mapping, Receiving::Buffer(64)),
        (Sending::Mapping, Receiving::Buffer(256)),
        (Sending::Mapping, Receiving::Buffer(1024)),
        (Sending::Mapping, Receiving::Splice),
        (Sending::Sendfile, Receiving::Buffer(256)),
        (Sending::Sendfile, Receiving::Splice),
        (Sending::Copy, Receiving::Buffer(256)),
    ];
    for unix in [false, true] {
        let mut figures = vec![Vec::new(); ways.len()];
        for _ in 0..repeats {
            for (way, figures) in ways.iter().zip(&mut figures) {
                figures.push(transfer(&source, *way, unix)?);
            }
        }
        println!("{} MiB over {}", mib, if unix { "a unix socket" } else { "TCP" });
        for ((sending, receiving), figures) in ways.iter().zip(figures) {
            let median = |pick: fn(&[f64; 3]) -> f64| {
                let mut values: Vec<f64> = figures.iter().map(pick).collect();
                values.sort_by(f64::total_cmp);
                values[values.len() / 2]
            };
            println!(
                "{:10} {:14} {:6.2} GiB/s, CPU s/GiB: source {:.3}, destination {:.3}",
                format!("{sending:?}"),
                format!("{receiving:?}"),
                median(|figure| figure[0]),
                median(|figure| figure[1]),
                median(|figure| figure[2]),
            );
        }
    }
    Ok(())
}

trait Socket: Read + Write + AsFd + Send {}
impl<T: Read + Write + AsFd + Send> Socket for T {}

fn pair(unix: bool) -> io::Result<(Box<dyn Socket>, Box<dyn Socket>)> {
    if unix {
        let (a, b) = UnixStream::pair()?;
        rustix::net::sockopt::set_socket_send_buffer_size(&a, 512 << 10)?;
        return Ok((Box::new(a), Box::new(b)));
    }
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let a = TcpStream::connect(listener.local_addr()?)?;
    a.set_nodelay(true)?;
    if std::env::var_os("AUTO_BUFFER").is_none() {
        rustix::net::sockopt::set_socket_send_buffer_size(&a, 512 << 10)?;
    }
    Ok((Box::new(a), Box::new(listener.accept()?.0)))
}

fn cpu() -> Duration {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn transfer(source: &SharedMemory, way: (Sending, Receiving), unix: bool) -> Result<[f64; 3], Error> {
    let destination = SharedMemory::create("transfer-destination", source.len())?;
    let (mut out, mut into) = pair(unix)?;
    let began = Instant::now();
    let sides = thread::scope(|scope| {
        let sender = scope.spawn(|| -> Result<Duration, Error> {
            let began = cpu();
            let mut copy = vec![0; FRAME as usize];
            for at in (0..source.len()).step_by(FRAME as usize) {
                send(source, &mut *out, at, way.0, &mut copy)?;
            }
            Ok(cpu() - began)
        });
        let receiver = scope.spawn(|| -> Result<Duration, Error> {
            let began = cpu();
            let mut receiver = Receiver::new(way.1)?;
            let mut header = [0; HEADER];
            for at in (0..destination.len()).step_by(FRAME as usize) {
                into.read_exact(&mut header)?;
                receiver.receive(&destination, &*into, at)?;
            }
            Ok(cpu() - began)
        });
        let (sender, receiver) = (sender.join(), receiver.join());
        Ok::<_, Error>((sender.map_err(|_| "panic")??, receiver.map_err(|_| "panic")??))
    })?;
    let seconds = began.elapsed().as_secs_f64();
    let gib = source.len() as f64 / (1u64 << 30) as f64;
    for at in (0..source.len()).step_by(61 << 12) {
        assert_eq!(source.hash_page(at), destination.hash_page(at), "page at {at:#x}");
    }
    Ok([
        gib / seconds,
        sides.0.as_secs_f64() / gib,
        sides.1.as_secs_f64() / gib,
    ])
}

fn send(
    source: &SharedMemory,
    out: &mut dyn Socket,
    at: u64,
    way: Sending,
    copy: &mut [u8],
) -> Result<(), Error> {
    let header = [7; HEADER];
    match way {
        Sending::Mapping => source.write_range_to(out.as_fd(), &header, &[(at, FRAME)])?,
        Sending::Sendfile => {
            rustix::net::send(out.as_fd(), &header, SendFlags::MORE)?;
            let mut offset = at;
            while offset < at + FRAME {
                let count = (at + FRAME - offset) as usize;
                rustix::fs::sendfile(out.as_fd(), source.fd(), Some(&mut offset), count)?;
            }
        }
        Sending::Copy => {
            source.read_at(at, copy);
            out.write_all(&header)?;
            out.write_all(copy)?;
        }
    }
    Ok(())
}

struct Receiver {
    way: Receiving,
    buffer: Vec<u8>,
    pipe: (std::os::fd::OwnedFd, std::os::fd::OwnedFd),
}

impl Receiver {
    fn new(way: Receiving) -> io::Result<Self> {
        let pipe = rustix::pipe::pipe()?;
        rustix::pipe::fcntl_setpipe_size(&pipe.1, 1 << 20)?;
        let buffer = match way {
            Receiving::Buffer(kib) => vec![0; kib << 10],
            _ => Vec::new(),
        };
        Ok(Self { way, buffer, pipe })
    }

    fn receive(&mut self, memory: &SharedMemory, socket: &dyn Socket, at: u64) -> Result<(), Error> {
        match self.way {
            Receiving::Mapping => memory.read_range_from(socket.as_fd(), &[(at, FRAME)])?,
            Receiving::Populated => {
                memory.populate(at..at + FRAME)?;
                memory.read_range_from(socket.as_fd(), &[(at, FRAME)])?;
            }
            Receiving::Buffer(_) => {
                let mut offset = at;
                while offset < at + FRAME {
                    let wanted = self.buffer.len().min((at + FRAME - offset) as usize);
                    let flags = RecvFlags::WAITALL;
                    let (came, _) = rustix::net::recv(socket.as_fd(), &mut self.buffer[..wanted], flags)?;
                    if came == 0 {
                        return Err("the stream ended".into());
                    }
                    let written = rustix::io::pwrite(memory.fd(), &self.buffer[..came], offset)?;
                    offset += written as u64;
                    assert_eq!(came, written);
                }
            }
            Receiving::Splice => {
                let mut offset = at;
                while offset < at + FRAME {
                    let wanted = (at + FRAME - offset) as usize;
                    let flags = SpliceFlags::MOVE;
                    let came = rustix::pipe::splice(socket.as_fd(), None, &self.pipe.1, None, wanted, flags)?;
                    let mut rest = came;
                    while rest > 0 {
                        let out = Some(&mut offset);
                        rest -= rustix::pipe::splice(&self.pipe.0, None, memory.fd(), out, rest, flags)?;
                    }
                    if came == 0 {
                        return Err("the stream ended".into());
                    }
                }
            }
        }
        Ok(())
    }
}
