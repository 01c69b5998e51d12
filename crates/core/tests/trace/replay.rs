//! Replays a trace against the source machine: virtual time, one stream of a fixed rate, a destination that answers
//! at once. It watches that no page is lost, and how often each crosses.

use std::collections::VecDeque;
use std::time::Duration;

use vmferry_core::policy::Policy;
use vmferry_core::report::Outcome;
use vmferry_core::source::{Batch, Command, Event, Measured, SentBatch, Setup, Source, Summary};
use vmferry_core::{Epoch, Limits, PAGE_SIZE, PageBitmap, Strategy, Tuning};

use crate::traces::Trace;

/// Events and batches of one migration at most.
const MOST_STEPS: u32 = 2_000_000;

/// A guest and a link.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Setting {
    pub pages: u64,
    pub pages_per_s: u64,
    pub trace: Trace,
}

/// What came of a migration.
pub(crate) struct Replayed {
    pub measured: Measured,
    /// Most often a page crossed.
    pub most_crossings: u8,
    /// Pages that crossed while the guest stood still.
    pub sent_at_stop: u64,
}

impl Replayed {
    pub(crate) fn sent(&self) -> u64 {
        self.measured.counts.sent
    }

    pub(crate) fn downtime(&self) -> Duration {
        self.measured.downtime.expect("it completed")
    }
}

/// Migrates the guest of `setting` while it does what its trace says.
pub(crate) fn replay(setting: Setting, strategy: Strategy, limits: &Limits, tuning: &Tuning) -> Replayed {
    tuning.check(setting.pages).unwrap();
    replay_policy(setting, strategy.policy(limits, tuning, setting.pages))
}

/// The same with a policy of one's own.
pub(crate) fn replay_policy(setting: Setting, policy: Box<dyn Policy>) -> Replayed {
    let source = Source::new(
        Setup {
            pages: setting.pages,
            streams: 1,
            pinned_io: false,
            verify: false,
            epoch: Epoch(2),
        },
        policy,
    );
    let mut replay = Replay {
        source,
        setting,
        now: Duration::ZERO,
        written_ms: 0,
        runs_here: true,
        runs_there: false,
        armed: false,
        dirty: PageBitmap::new(setting.pages),
        current: PageBitmap::new(setting.pages),
        crossings: vec![0; setting.pages as usize],
        sent_at_stop: 0,
    };
    replay.run();
    assert_eq!(
        replay.current.count(),
        setting.pages,
        "the destination lacks pages, or has stale ones"
    );
    Replayed {
        measured: replay.source.measured(),
        most_crossings: replay.crossings.iter().copied().max().unwrap_or(0),
        sent_at_stop: replay.sent_at_stop,
    }
}

struct Replay {
    source: Source,
    setting: Setting,
    now: Duration,
    /// The guest lived up to this millisecond.
    written_ms: u64,
    runs_here: bool,
    runs_there: bool,
    armed: bool,
    dirty: PageBitmap,
    /// Pages whose current content the destination has.
    current: PageBitmap,
    crossings: Vec<u8>,
    sent_at_stop: u64,
}

impl Replay {
    fn run(&mut self) {
        self.feed(Event::Accepted { streams: 1 });
        for step in 0.. {
            assert!(step < MOST_STEPS, "no end in sight");
            if let Some((outcome, error)) = self.source.ended() {
                assert_eq!(outcome, Outcome::Completed, "{error:?}");
                return;
            }
            if self.source.deadline().is_some_and(|at| at <= self.now) {
                self.feed(Event::Tick);
            }
            match self.source.next_batch(self.now, 0) {
                Batch::Pages { runs, .. } => self.send(&runs),
                Batch::RoundEnd(round) => self.feed(Event::RoundReceived { round }),
                Batch::Idle(at) => {
                    let next = at.into_iter().chain(self.source.deadline()).min();
                    self.live_until(next.expect("somebody waits for something").max(self.now));
                }
                Batch::Finished => {}
            }
        }
    }

    fn send(&mut self, runs: &[vmferry_core::PageRun]) {
        let mut pages = 0;
        for run in runs {
            self.current.insert_run(*run);
            run.pages().for_each(|page| {
                let crossings = &mut self.crossings[page as usize];
                *crossings = crossings.saturating_add(1);
            });
            pages += run.count;
        }
        if !self.runs_here && !self.runs_there {
            self.sent_at_stop += pages;
        }
        self.live_until(self.now + Duration::from_secs(pages) / self.setting.pages_per_s as u32);
        self.source.sent(SentBatch {
            raw: pages,
            bytes: pages * PAGE_SIZE,
            ..SentBatch::default()
        });
        let commands = self.source.check_all_pushed();
        self.execute(commands);
    }

    /// Time goes by, and the guest writes.
    fn live_until(&mut self, until: Duration) {
        self.now = until;
        let until_ms = until.as_millis() as u64;
        for ms in self.written_ms..until_ms {
            if !self.runs_here {
                break;
            }
            for run in self.setting.trace.writes(ms, self.setting.pages) {
                self.current.remove_run(run);
                if self.armed {
                    self.dirty.insert_run(run);
                }
            }
        }
        self.written_ms = until_ms;
    }

    fn feed(&mut self, event: Event) {
        let commands = self.source.handle(self.now, event).unwrap();
        self.execute(commands);
    }

    fn execute(&mut self, commands: Vec<Command>) {
        let mut commands = VecDeque::from(commands);
        while let Some(command) = commands.pop_front() {
            if let Some(event) = self.answer(command) {
                commands.extend(self.source.handle(self.now, event).unwrap());
            }
        }
    }

    fn answer(&mut self, command: Command) -> Option<Event> {
        let pages = self.setting.pages;
        let mut scan = || std::mem::replace(&mut self.dirty, PageBitmap::new(pages));
        match command {
            Command::Arm => {
                self.armed = true;
                Some(Event::Armed {
                    data: PageBitmap::full(pages),
                    paused: Duration::ZERO,
                })
            }
            Command::Scan => Some(Event::Scanned(scan())),
            Command::Stop { scan: tracked, .. } => {
                self.runs_here = false;
                Some(Event::Stopped {
                    paused_at: self.now,
                    pages: if tracked { scan() } else { PageBitmap::full(pages) },
                    discarded: None,
                    free: None,
                })
            }
            Command::Retract => {
                self.runs_here = true;
                Some(Event::Resumed)
            }
            Command::SendState => Some(Event::StateSent { bytes: 0 }),
            Command::SendPrepare(epoch) => Some(Event::Ready(epoch)),
            Command::ConfirmState => Some(Event::StateConfirmed),
            Command::JournalHandedOver(_) => Some(Event::Journaled),
            Command::SendCommit(epoch) => {
                self.runs_there = true;
                Some(Event::Running(epoch))
            }
            Command::SendAllPushed => Some(Event::Complete(Summary::default())),
            Command::SendSwitch { .. } | Command::WakeStreams | Command::Release(_) => None,
            other => panic!("nothing failed here: {other:?}"),
        }
    }
}
