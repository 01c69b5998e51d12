//! What the threads of a session share, and the one that answers held writes.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use vmferry_core::PageRun;
use vmferry_core::take::{OnWrite, Taker, WriteFaults};
use vmferry_guest::{HeldEvent, Vm, WriteHolds};

use super::copies::Copies;
use super::error::{Result, TakeError};
use super::faults::FaultLog;
use super::options::TakeOptions;

/// How long the server waits for a write before it looks whether anything else is the matter.
const LOOK_EVERY: Duration = Duration::from_millis(20);

pub(super) struct Shared {
    pub(super) vm: Arc<dyn Vm>,
    pub(super) holds: Arc<dyn WriteHolds>,
    pub(super) options: TakeOptions,
    pub(super) copies: Copies,
    inner: Mutex<Inner>,
    /// Whether there is a failure, for those that look often.
    has_failed: AtomicBool,
    /// The guest was paused for a checkpoint and would not go on.
    pub(super) is_left_paused: AtomicBool,
    ended: AtomicBool,
}

/// What is asked and done under one lock.
pub(super) struct Inner {
    pub(super) taker: Taker,
    /// Since when a writer waits for a page.
    waiting: HashMap<u64, Instant>,
    log: FaultLog,
    is_broken: bool,
    /// Why the cut was given up. Under the same lock as the taker: a cut that was given up has nothing left to copy, and must not
    /// be taken for one that is complete.
    failure: Option<TakeError>,
}

impl Shared {
    pub(super) fn new(vm: Arc<dyn Vm>, holds: Arc<dyn WriteHolds>, options: TakeOptions) -> Self {
        let pages = vm.ram().layout().pages();
        Self {
            vm,
            holds,
            copies: Copies::new(options.copies_bytes),
            options,
            inner: Mutex::new(Inner {
                taker: Taker::new(pages),
                waiting: HashMap::new(),
                log: FaultLog::default(),
                is_broken: false,
                failure: None,
            }),
            has_failed: AtomicBool::new(false),
            is_left_paused: AtomicBool::new(false),
            ended: AtomicBool::new(false),
        }
    }

    pub(super) fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Answers writes until the session ends. The guest waits for this: nothing here waits for a store.
    pub(super) fn serve(&self) {
        let mut events = Vec::new();
        while !self.ended.load(Ordering::Acquire) {
            let served = self
                .holds
                .wait(LOOK_EVERY, &mut events)
                .map_err(TakeError::from)
                .and_then(|()| self.answer(&mut events));
            if let Err(error) = served {
                tracing::debug!(%error, "writes are not held up any more");
                self.lock().is_broken = true;
                self.fail(error);
                let _ = self.holds.end();
                return self.hear_out();
            }
        }
    }

    /// Nothing is held up any more, but whoever drops pages waits until somebody has heard of it.
    fn hear_out(&self) {
        let mut events = Vec::new();
        while !self.ended.load(Ordering::Acquire) && self.holds.wait(LOOK_EVERY, &mut events).is_ok() {
            events.clear();
        }
    }

    fn answer(&self, events: &mut Vec<HeldEvent>) -> Result<()> {
        let heard = Instant::now();
        for event in events.drain(..) {
            match event {
                HeldEvent::Write(page) => self.on_write(page, heard)?,
                HeldEvent::Discarded(run) => {
                    let mut inner = self.lock();
                    inner.taker.on_discarded(run);
                    let lost = inner.taker.lost();
                    drop(inner);
                    if let Some(page) = lost {
                        self.fail(TakeError::Discarded { page });
                    }
                }
            }
        }
        let waited = self.lock().longest_wait(heard);
        if waited > self.options.patience {
            let waited_ms = waited.as_millis() as u64;
            self.fail(TakeError::TooSlow { waited_ms });
        }
        Ok(())
    }

    fn on_write(&self, page: u64, heard: Instant) -> Result<()> {
        let mut inner = self.lock();
        let run = match inner.taker.on_write(page, self.copies.room_pages()) {
            OnWrite::Wait => {
                // A write may be heard of twice: it waits since the first time.
                let Inner { waiting, log, .. } = &mut *inner;
                waiting.entry(page).or_insert_with(|| {
                    log.waited();
                    heard
                });
                self.copies.nudge();
                return Ok(());
            }
            OnWrite::CopyFirst(run) => {
                let mut content = vec![0; run.bytes() as usize];
                self.vm.ram().read(run, &mut content);
                self.copies.push(run, &content);
                inner.log.copied();
                run
            }
            OnWrite::Release(run) => run,
        };
        inner.waiting.entry(page).or_insert(heard);
        // Under the lock: nobody may protect a page in between and believe that it is.
        inner.release(&[run], &*self.holds)
    }

    /// Protects the pages of `run`.
    pub(super) fn protect(&self, run: PageRun) -> Result<()> {
        self.lock().protect(run, &*self.holds)
    }

    /// The next pages for a saver to copy.
    pub(super) fn claim(&self, max_pages: u64) -> Option<PageRun> {
        self.lock().taker.next(max_pages)
    }

    /// Those are copied.
    pub(super) fn copied(&self, run: PageRun) -> Result<()> {
        let mut inner = self.lock();
        let released = inner.taker.copied(run);
        inner.release(&released, &*self.holds)
    }

    pub(super) fn is_copied(&self) -> bool {
        self.lock().taker.left() == 0 && self.copies.is_empty()
    }

    /// Gives the cut that is being saved up: who waits goes on at once. The first reason is the one that is told.
    pub(super) fn fail(&self, error: TakeError) {
        let mut inner = self.lock();
        inner.failure.get_or_insert(error);
        self.has_failed.store(true, Ordering::Release);
        let released = inner.taker.abandon();
        if let Err(error) = inner.release(&released, &*self.holds) {
            tracing::warn!(%error, "writers could not be released one by one");
        }
        // Still under the lock: or it would be the next cut's copies.
        self.copies.clear();
    }

    pub(super) fn has_failed(&self) -> bool {
        self.has_failed.load(Ordering::Acquire)
    }

    /// # Errors
    /// With the reason, if the cut was given up.
    pub(super) fn check(&self) -> Result<()> {
        let mut inner = self.lock();
        match inner.failure.take() {
            Some(error) => Err(error),
            // Everybody was let go a moment ago, and whoever did it has not said why yet.
            None if inner.is_broken => Err(TakeError::LetGo),
            None => Ok(()),
        }
    }

    /// A new checkpoint begins: what stood against the last one does not against this.
    pub(super) fn begin(&self) {
        self.lock().failure = None;
        self.has_failed.store(false, Ordering::Release);
    }

    /// Whether writes cannot be held up any more: a new session is needed, or the guest is gone.
    pub(super) fn is_broken(&self) -> bool {
        self.lock().is_broken
    }

    pub(super) fn end(&self) {
        self.ended.store(true, Ordering::Release);
    }
}

impl Inner {
    pub(super) fn protect(&mut self, run: PageRun, holds: &dyn WriteHolds) -> Result<()> {
        // In this order: what was protected in part, and then refused, stays open for the taker, which costs a saved page.
        holds.protect(run)?;
        self.taker.protect(run);
        Ok(())
    }

    /// Where one fails, nobody knows any more who waits for what: everybody is let go, and this session is over.
    fn release(&mut self, runs: &[PageRun], holds: &dyn WriteHolds) -> Result<()> {
        for &run in runs {
            if let Err(error) = holds.release(run) {
                self.is_broken = true;
                let _ = holds.end();
                return Err(error.into());
            }
            for page in run.pages() {
                if let Some(since) = self.waiting.remove(&page) {
                    self.log.released(since.elapsed());
                }
            }
        }
        Ok(())
    }

    fn longest_wait(&self, now: Instant) -> Duration {
        let waits = self.waiting.values().map(|since| now.duration_since(*since));
        waits.max().unwrap_or_default()
    }

    /// What was measured about held writes since this was last called.
    pub(super) fn take_faults(&mut self) -> WriteFaults {
        self.log.take()
    }
}

#[cfg(test)]
mod tests;
