//! The end of a session: the last threads, the report.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::thread;
use std::time::{Duration, Instant};

use vmferry_core::report::Outcome;
use vmferry_wire::{DestinationSummary, VerifySummary};

use super::IncomingReport;
use super::driver::Driver;
use super::pages::Sink;
use crate::dir::remove;

impl Driver<'_> {
    pub(super) fn sink(&self) -> Arc<Sink> {
        self.session
            .guest
            .get()
            .expect("a session with a driver has a guest")
            .sink
            .clone()
    }

    pub(super) fn stop_fault_thread(&mut self) {
        self.sink().closing.store(true, Ordering::Release);
        if let Some(thread) = self.fault_thread.take() {
            let _ = thread.join();
        }
    }

    pub(super) fn summary(&self) -> DestinationSummary {
        let sink = self.sink();
        let usage = &self.session.usage;
        usage.sample_memory();
        DestinationSummary {
            faults: sink
                .pager
                .get()
                .map(|pager| pager.fault_summary())
                .unwrap_or_default(),
            cpu_seconds: usage.cpu_seconds(),
            memory_bytes: usage.peak_bytes(),
            verified: self.verified.map(|v| VerifySummary {
                pages: v.pages,
                mismatches: v.mismatches,
            }),
            pages_received: sink.pages.load(Ordering::Relaxed),
        }
    }

    pub(super) fn end(mut self) {
        let name = self.session.name().to_owned();
        let report = self.report();
        // Until the log has the last word, the session answers itself.
        self.shared.sessions().remove(&self.session.token);
        self.stop_fault_thread();
        remove(&self.arrival.dir.session());
        match report.outcome {
            Outcome::Completed => self.shared.host.finished(&name, report),
            _ => {
                remove(&self.arrival.dir.page_states());
                let reason = report.error.clone().unwrap_or_default();
                self.shared.host.discarded(&name, &reason);
            }
        }
        // The source closes first: it may still be reading the last message.
        if let Some(thread) = self.control_reader.take()
            && let Some(control) = self.control.take()
        {
            let closes = Instant::now() + Duration::from_secs(5);
            while !thread.is_finished() && Instant::now() < closes {
                thread::sleep(Duration::from_millis(5));
            }
            let _ = control.shutdown();
            let _ = thread.join();
        }
        self.session.close_streams();
    }

    pub(super) fn report(&self) -> IncomingReport {
        let summary = self.summary();
        let (outcome, error) = self.machine.ended().unwrap_or((Outcome::Failed, None));
        let ms = |time: Duration| time.as_secs_f64() * 1e3;
        let strategy = self.session.guest.get().map(|guest| guest.strategy.clone());
        IncomingReport {
            vm: self.session.name().to_owned(),
            strategy: strategy.unwrap_or_default(),
            outcome,
            error: error.map(str::to_owned),
            total_ms: ms(self.clock.now()),
            running_ms: self.running.map_or(0.0, ms),
            pages_received: summary.pages_received,
            faults: summary.faults.into(),
            cpu_seconds: summary.cpu_seconds,
            memory_bytes: summary.memory_bytes,
            verified: self.verified,
        }
    }
}
