//! The source's side of a disk's tunnel: an NBD server for the hypervisor's mirror, whose writes go on as frames.
//!
//! A write is answered as soon as it is in the tunnel. Whether it arrived, the next flush says: it is answered when the
//! destination has everything on stable storage, and a mirror that settles ends with one.

use std::io::{self, Write as _};
use std::os::unix::net::UnixStream;
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use vmferry_core::disks::TunnelReport;
use vmferry_disk::DiskError;
use vmferry_disk::nbd::error_code;
use vmferry_disk::nbd::server::{Request, Wanted, encode_reply, greet, read_request};
use vmferry_disk::tunnel::{FromSource, MAX_WRITE_BYTES, Sender, ToSource};
use vmferry_guest::DiskInfo;
use vmferry_transport::BoxedStream;

use super::Shared;
use super::disks::{spawn, wait_for_turn};
use crate::link::chain;

/// How often a thread that waits for the destination looks whether it should go on.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// The tunnel of one disk, shared by the thread that serves the mirror and the one that hears the destination.
pub(super) struct Tunnel {
    state: Mutex<State>,
    changed: Condvar,
}

struct State {
    sender: Sender,
    /// Number of the flush that was answered last.
    flushed: u64,
    /// Bytes that data became.
    compressed_bytes: u64,
    /// Why it cannot go on.
    failed: Option<String>,
}

/// What belongs to a tunnel at work.
struct Ends<'a> {
    tunnel: &'a Tunnel,
    /// Frames go out under its lock, so that their order is the order in which the sender made them.
    wire: &'a Mutex<BoxedStream>,
    shared: &'a Shared,
    stop: &'a AtomicBool,
}

impl Tunnel {
    pub(super) fn new() -> Self {
        Self {
            state: Mutex::new(State {
                sender: Sender::default(),
                flushed: 0,
                compressed_bytes: 0,
                failed: None,
            }),
            changed: Condvar::new(),
        }
    }

    /// Why it broke, if it did.
    pub(super) fn failure(&self) -> Option<String> {
        self.lock().failed.clone()
    }

    /// What crossed so far.
    pub(super) fn report(&self) -> TunnelReport {
        let state = self.lock();
        let sent = state.sender.sent();
        TunnelReport {
            written_bytes: sent.zero_bytes + sent.known_bytes + sent.data_bytes,
            zero_bytes: sent.zero_bytes,
            deduplicated_bytes: sent.known_bytes,
            data_bytes: sent.data_bytes,
            compressed_bytes: state.compressed_bytes,
        }
    }

    /// Serves the mirror of `disk` until it ends the connection.
    pub(super) fn carry(
        self: &Arc<Self>,
        mut mirror: UnixStream,
        wire: BoxedStream,
        disk: &DiskInfo,
        shared: &Arc<Shared>,
        stop: &Arc<AtomicBool>,
    ) -> io::Result<()> {
        let mut answers = wire.try_clone()?;
        let wire = Arc::new(Mutex::new(wire));
        let hear = {
            let (tunnel, wire, shared, stop) = (self.clone(), wire.clone(), shared.clone(), stop.clone());
            spawn("out tunnel", move || {
                let _usage = shared.usage.thread();
                let ends = Ends {
                    tunnel: &tunnel,
                    wire: &wire,
                    shared: &shared,
                    stop: &stop,
                };
                if let Err(reason) = ends.hear(&mut answers) {
                    tunnel.fail(reason);
                }
            })
        };
        let ends = Ends {
            tunnel: self,
            wire: &wire,
            shared,
            stop,
        };
        let served = ends.serve(&mut mirror, disk);
        let _ = mirror.shutdown(std::net::Shutdown::Both);
        let _ = lock(&wire).shutdown();
        let _ = hear.join();
        served.map_err(io::Error::other)
    }

    fn fail(&self, reason: String) {
        self.lock().failed.get_or_insert(reason);
        self.changed.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Waits until `ready`, or until it has failed.
    fn wait_until(&self, stop: &AtomicBool, ready: impl Fn(&State) -> bool) -> Result<(), u32> {
        let mut state = self.lock();
        loop {
            if state.failed.is_some() || stop.load(std::sync::atomic::Ordering::Relaxed) {
                return Err(error_code::IO);
            }
            if ready(&state) {
                return Ok(());
            }
            state = self
                .changed
                .wait_timeout(state, LOOK_EVERY)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }
}

impl Ends<'_> {
    /// Answers the requests of the mirror.
    fn serve(&self, mirror: &mut UnixStream, disk: &DiskInfo) -> Result<(), DiskError> {
        let mut usage = self.shared.usage.thread();
        if !greet(mirror, &disk.id, disk.bytes)? {
            return Ok(());
        }
        while let Some(request) = read_request(mirror, disk.bytes)? {
            let error = self.take(&request).err().unwrap_or(0);
            mirror
                .write_all(&encode_reply(request.cookie, error))
                .map_err(|source| DiskError::Stream {
                    doing: "answer a mirror",
                    source,
                })?;
            usage.flush();
        }
        Ok(())
    }

    /// Carries a request out.
    ///
    /// # Errors
    /// The number to answer it with.
    fn take(&self, request: &Request) -> Result<(), u32> {
        match &request.what {
            Wanted::Write { offset, data } => {
                for (index, part) in data.chunks(MAX_WRITE_BYTES).enumerate() {
                    let offset = offset + (index * MAX_WRITE_BYTES) as u64;
                    let bytes = part.len() as u64;
                    self.put(
                        |sender| !sender.must_wait_to_write(offset, bytes),
                        |sender| sender.write(offset, part),
                    )?;
                }
            }
            // What is forgotten reads as zeros at the source, or as what it was: zeros are right for the first, and a mirror
            // trims for no other reason.
            Wanted::Zero { offset, bytes } | Wanted::Trim { offset, bytes } => self.put(
                |sender| !sender.must_wait_to_zero(*offset, *bytes),
                |sender| vec![sender.zero(*offset, *bytes)],
            )?,
            Wanted::Flush => return self.flush(),
            Wanted::Refused(error) => return Err(*error),
        }
        match request.durable {
            true => self.flush(),
            false => Ok(()),
        }
    }

    fn flush(&self) -> Result<(), u32> {
        let mut number = 0;
        self.put(Sender::is_settled, |sender| {
            let frame = sender.flush();
            if let FromSource::Flush { number: of_frame } = frame {
                number = of_frame;
            }
            vec![frame]
        })?;
        self.tunnel.wait_until(self.stop, |state| state.flushed >= number)
    }

    /// Makes frames once the sender is `ready` for them, and sends them.
    fn put(
        &self,
        ready: impl Fn(&Sender) -> bool,
        make: impl FnOnce(&mut Sender) -> Vec<FromSource>,
    ) -> Result<(), u32> {
        // Nobody else makes the sender less ready.
        self.tunnel.wait_until(self.stop, |state| ready(&state.sender))?;
        let mut wire = lock(self.wire);
        let frames = make(&mut self.tunnel.lock().sender);
        frames
            .iter()
            .try_for_each(|frame| self.send(&mut wire, frame))
            .map_err(|reason| {
                self.tunnel.fail(reason);
                error_code::IO
            })
    }

    fn send(&self, wire: &mut BoxedStream, frame: &FromSource) -> Result<(), String> {
        let encoded = frame.encode().map_err(|e| chain(&e))?;
        if matches!(frame, FromSource::Data { .. } | FromSource::Write { .. }) {
            self.tunnel.lock().compressed_bytes += encoded.payload_bytes as u64;
        }
        wait_for_turn(self.shared, self.stop, encoded.bytes.len() as u64);
        wire.write_all(&encoded.bytes)
            .map_err(|e| format!("the stream of a disk broke: {e}"))
    }

    /// Takes what the destination says, until it ends.
    fn hear(&self, answers: &mut BoxedStream) -> Result<(), String> {
        while let Some(said) = ToSource::read(answers).map_err(|e| chain(&e))? {
            match said {
                ToSource::Answer { number, has } => {
                    let mut wire = lock(self.wire);
                    let frame = self.tunnel.lock().sender.answered(number, has);
                    if let Some(frame) = frame.map_err(|e| chain(&e))? {
                        self.send(&mut wire, &frame)?;
                    }
                }
                ToSource::Flushed { number } => self.tunnel.lock().flushed = number,
                ToSource::Failed { reason } => {
                    return Err(format!("the destination cannot write a disk: {reason}"));
                }
            }
            self.tunnel.changed.notify_all();
        }
        Ok(())
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
