//! A link that takes its time: Ethernet frames from one tap to another, each released when its delay is over.
//!
//! A kernel can do that by itself only where it has `netem`, which many lack; this way it is the same everywhere. The rate
//! of a link is not this relay's business: whatever sends into the taps is shaped there.
//!
//! Frames pass as the kernel hands them over, with the header that says what is left to be done about them: a large segment
//! stays whole, and its checksums are made (or not) at the far end.

mod line;

use std::io;
use std::num::NonZeroU64;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{EventfdFlags, PollFd, PollFlags, Timespec, eventfd, poll};
use rustix::fs::{OFlags, fcntl_getfl, fcntl_setfl};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use tun_rs::{DeviceBuilder, Layer, SyncDevice};

use crate::error::{LabError, Result};
use crate::namespace::Namespace;
use line::Line;

/// The largest segment that a kernel has, and more than all its headers.
const MOST_FRAME_BYTES: usize = (64 << 10) + 512;
/// Frames taken in before those that are due are looked at again.
const AT_ONCE: usize = 64;

/// Two taps, and the threads that carry frames between them. Both taps go when it is dropped.
pub(crate) struct Relay {
    delay: Duration,
    directions: Vec<JoinHandle<()>>,
    /// Ends the threads.
    stop: Arc<OwnedFd>,
    counts: Arc<Counts>,
}

/// What became of the frames of a relay.
#[derive(Default)]
struct Counts {
    frames: AtomicU64,
    /// Released later than they were due, nanoseconds together and the longest.
    late_ns: AtomicU64,
    latest_ns: AtomicU64,
    lost: AtomicU64,
    /// A tap answers no more.
    broken: AtomicBool,
}

impl Relay {
    /// Makes tap `name` in each of two namespaces, and carries what is sent on one to the other, `delay` later.
    ///
    /// # Errors
    /// When the system refuses taps.
    pub(crate) fn start(ends: [(&Namespace, &str); 2], delay: Duration) -> Result<Self> {
        let mut taps = Vec::with_capacity(2);
        for (namespace, name) in ends {
            let tap = namespace.enter(|| tap(name))?;
            taps.push(Arc::new(
                tap.map_err(LabError::system(format!("make the tap {name}")))?,
            ));
        }
        let stop = eventfd(0, EventfdFlags::CLOEXEC).map_err(|error| system(error.into()))?;
        let mut relay = Self {
            delay,
            directions: Vec::new(),
            stop: Arc::new(stop),
            counts: Arc::default(),
        };
        for (from, to) in [(0, 1), (1, 0)] {
            let mut direction = Direction {
                from: Arc::clone(&taps[from]),
                to: Arc::clone(&taps[to]),
                line: Line::new(delay),
                stop: Arc::clone(&relay.stop),
                counts: Arc::clone(&relay.counts),
            };
            let thread = std::thread::Builder::new().name("relay".into());
            let thread = thread.spawn(move || direction.carry());
            relay.directions.push(thread.map_err(system)?);
        }
        Ok(relay)
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        // A counter from zero to one can only succeed.
        let _ = rustix::io::write(&*self.stop, &1u64.to_ne_bytes());
        for thread in self.directions.drain(..) {
            let _ = thread.join();
        }
    }
}

/// How a link kept its delay.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct LinkDelay {
    /// From host to host, as it was asked for, milliseconds.
    pub wanted_ms: f64,
    /// Frames that were carried, every host's link counted.
    pub frames: u64,
    /// How much later than wanted they were released on average, milliseconds; on either host's link.
    pub late_ms: f64,
    /// The same of the latest.
    pub latest_ms: f64,
    /// Frames that were lost, because too many were under way or a host did not take them.
    pub lost: u64,
}

impl LinkDelay {
    /// What these relays, of one link, did so far; none where there are none.
    ///
    /// # Errors
    /// When one of them broke.
    pub(crate) fn of(relays: &[Relay]) -> Result<Option<Self>> {
        if relays
            .iter()
            .any(|relay| relay.counts.broken.load(Ordering::Relaxed))
        {
            return Err(LabError::Missing("the relay of the link lost its tap".into()));
        }
        let each = |of: fn(&Counts) -> &AtomicU64| {
            relays
                .iter()
                .map(move |relay| of(&relay.counts).load(Ordering::Relaxed))
        };
        let ms = |ns: u64| ns as f64 / 1e6;
        let frames: u64 = each(|counts| &counts.frames).sum();
        let late_ns: u64 = each(|counts| &counts.late_ns).sum();
        let wanted: Duration = relays.iter().map(|relay| relay.delay).sum();
        Ok((!relays.is_empty()).then(|| Self {
            wanted_ms: wanted.as_secs_f64() * 1e3,
            frames,
            late_ms: ms(late_ns / frames.max(1)),
            latest_ms: ms(each(|counts| &counts.latest_ns).max().unwrap_or(0)),
            lost: each(|counts| &counts.lost).sum(),
        }))
    }
}

/// A tap of the calling thread's namespace, not up yet.
fn tap(name: &str) -> io::Result<SyncDevice> {
    let device = DeviceBuilder::new()
        .name(name)
        .layer(Layer::L2)
        .enable(false)
        // The header before each frame, and large segments whole.
        .with(|builder| {
            builder.offload(true);
        })
        .build_sync()?;
    let flags = fcntl_getfl(&device)?;
    fcntl_setfl(&device, flags | OFlags::NONBLOCK)?;
    Ok(device)
}

fn system(error: io::Error) -> LabError {
    LabError::system("start the relay of a link")(error)
}

/// One way of a relay, on a thread of its own.
struct Direction {
    from: Arc<SyncDevice>,
    to: Arc<SyncDevice>,
    line: Line,
    stop: Arc<OwnedFd>,
    counts: Arc<Counts>,
}

impl Direction {
    /// Until the relay is dropped, or a tap is gone.
    fn carry(&mut self) {
        // Wake-ups are 50 us late otherwise. Where that is refused they are.
        let _ = rustix::thread::set_current_timer_slack(NonZeroU64::new(1));
        let mut buffer = vec![0; MOST_FRAME_BYTES];
        let carried = loop {
            match self.wait() {
                Ok(true) => break Ok(()),
                Ok(false) => {}
                Err(error) => break Err(error),
            }
            if let Err(error) = self.take_in(&mut buffer) {
                break Err(error);
            }
            self.release();
        };
        self.counts.broken.fetch_or(carried.is_err(), Ordering::Relaxed);
    }

    /// Until there is something to do. Answers whether that is to end.
    fn wait(&self) -> rustix::io::Result<bool> {
        let mut fds = [
            PollFd::new(&*self.from, PollFlags::IN),
            PollFd::new(&*self.stop, PollFlags::IN),
        ];
        let left = self
            .line
            .next_due()
            .map(|due| due.saturating_duration_since(Instant::now()));
        let left = left.map(|left| Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: i64::from(left.subsec_nanos()),
        });
        match poll(&mut fds, left.as_ref()) {
            Ok(_) => Ok(!fds[1].revents().is_empty()),
            Err(Errno::INTR) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn take_in(&mut self, buffer: &mut [u8]) -> rustix::io::Result<()> {
        for _ in 0..AT_ONCE {
            match rustix::io::read(&*self.from, &mut *buffer) {
                Ok(len) => {
                    if !self.line.push(Instant::now(), &buffer[..len]) {
                        self.counts.lost.fetch_add(1, Ordering::Relaxed);
                    }
                }
                Err(Errno::AGAIN) => return Ok(()),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(())
    }

    fn release(&mut self) {
        let now = Instant::now();
        while let Some((due, frame)) = self.line.pop_due(now) {
            // The far end may be down, or its queue full: so frames get lost.
            let sent = rustix::io::write(&*self.to, &frame).is_ok();
            let counter = if sent {
                &self.counts.frames
            } else {
                &self.counts.lost
            };
            counter.fetch_add(1, Ordering::Relaxed);
            let late_ns = u64::try_from((now - due).as_nanos()).unwrap_or(u64::MAX);
            self.counts.late_ns.fetch_add(late_ns, Ordering::Relaxed);
            self.counts.latest_ns.fetch_max(late_ns, Ordering::Relaxed);
        }
    }
}
