//! While the guest runs at the source: arming, rounds, samples, and the decision to stop.

use std::time::Duration;

use super::asking::Free;
use super::batch::many;
use super::event::{Batch, Command, Event};
use super::recorder::RoundJudged;
use super::state::{Round, State};
use super::{Source, SourceError, view};
use crate::bitmap::PageBitmap;
use crate::ledger::Ledger;
use crate::policy::{LiveStep, RoundPages, RoundPlan};
use crate::report::{Outcome, RoundReport};
use crate::tracking::ScanPoint;

impl Source {
    pub(super) fn live_event(&mut self, now: Duration, event: Event) -> Result<Vec<Command>, SourceError> {
        match (&mut self.state, event) {
            (State::Offered, Event::Accepted { streams }) => {
                // Without a stream no round would ever end; more than were offered nobody serves.
                if !(1..=self.setup.streams).contains(&streams) {
                    let found = format!("an acceptance of {streams} page streams");
                    return Err(self.unexpected(&found, "at least one and no more than were offered"));
                }
                if streams < self.setup.streams {
                    self.recorder.note(format!(
                        "the destination takes {streams} of the {} page streams asked for",
                        self.setup.streams
                    ));
                }
                self.setup.streams = streams;
                match self.copy_disks(now) {
                    Some(commands) => Ok(commands),
                    None => Ok(self.accepted(now)),
                }
            }
            (State::Arming, Event::Armed { data, paused }) => {
                self.recorder.data_found(&data);
                self.recorder.micro_stop(paused);
                self.ledger = Ledger::new(data);
                self.last_scan_at = now;
                self.tracked = true;
                Ok(self.armed(now))
            }
            (State::Asking { until, .. }, Event::Tick) if now >= *until => Ok(self.asked_in_vain(now)),
            (State::Scanning, Event::Scanned(pages)) => {
                self.record_scan(now, pages, ScanPoint::Live);
                if let Some(mut judged) = self.judged.take() {
                    let mut dirtied = std::mem::replace(&mut judged.dirtied, PageBitmap::new(0));
                    dirtied.union_with(&self.last_scan);
                    self.recorder.judge_last_round(judged, &dirtied);
                }
                Ok(self.decide(now))
            }
            (State::Waiting { until }, Event::Tick) if now >= *until => {
                self.state = State::Scanning;
                Ok(vec![Command::Scan])
            }
            (State::AwaitingDisks { until }, Event::Tick) if now >= *until => Ok(self.look_again(now)),
            (State::Round(round), Event::Tick) if round.next_sample.is_some_and(|at| now >= at) => {
                round.next_sample = None;
                round.sampling = true;
                Ok(vec![Command::Scan])
            }
            (State::Round(_), Event::Scanned(pages)) => Ok(self.sampled(now, pages)),
            // A tick may come late, after the state moved on.
            (_, Event::Tick) => Ok(Vec::new()),
            (State::Retracting, Event::Resumed) => Ok(self.decide(now)),
            // The migration ended while the driver was busy for it.
            (State::Ended { .. }, _) => Ok(Vec::new()),
            (_, event) => Err(self.unexpected(
                match event {
                    Event::Accepted { .. } => "an acceptance",
                    Event::Armed { .. } => "the news that tracking is armed",
                    Event::Resumed => "the news that the guest runs",
                    _ => "a scan",
                },
                "an event of the running guest in its turn",
            )),
        }
    }

    /// Asks the policy what comes next while the guest runs.
    pub(super) fn decide(&mut self, now: Duration) -> Vec<Command> {
        let step = self.policy.live(&view(
            now.saturating_sub(self.memory_began),
            &self.ledger,
            &self.last_scan,
            &self.tracking,
            self.rounds,
            &self.rates,
            &self.recorder,
        ));
        self.take_notes();
        match step {
            LiveStep::Round(plan) => self.begin_round(now, plan),
            LiveStep::Wait(time) => {
                self.state = State::Waiting { until: now + time };
                Vec::new()
            }
            LiveStep::SwitchOver if let Some(until) = self.awaits_disks(now) => {
                self.state = State::AwaitingDisks { until };
                Vec::new()
            }
            LiveStep::SwitchOver => {
                self.state = State::Stopping;
                vec![Command::Stop {
                    scan: self.tracked,
                    free: matches!(self.free, Free::AtStop),
                }]
            }
            LiveStep::Abort(reason) => self.fail(now, Outcome::Failed, reason),
        }
    }

    /// The stop waited for the disks; meanwhile the guest went on writing to memory.
    fn look_again(&mut self, now: Duration) -> Vec<Command> {
        if self.tracked {
            self.state = State::Scanning;
            vec![Command::Scan]
        } else {
            self.decide(now)
        }
    }

    fn begin_round(&mut self, now: Duration, plan: RoundPlan) -> Vec<Command> {
        let mut left = self.ledger.pending().clone();
        let held_back = match plan.pages {
            RoundPages::Pending => None,
            RoundPages::PendingExcept(mut held) => {
                held.intersect_with(&left);
                left.subtract(&held);
                self.recorder.counts.filtered += held.count();
                Some(held)
            }
        };
        let mut round = Round::new(self.rounds + 1, left, self.setup.streams, now);
        round.held_back = held_back;
        round.sample_every = plan.sample_every;
        round.next_sample = plan.sample_every.map(|every| now + every);
        self.state = State::Round(round);
        vec![Command::WakeStreams]
    }

    /// What the policy has to say goes into the report.
    fn take_notes(&mut self) {
        for note in self.policy.notes() {
            self.recorder.note(note);
        }
    }

    /// A scan during a round: what it found is for later rounds; the policy may change this one.
    fn sampled(&mut self, now: Duration, pages: PageBitmap) -> Vec<Command> {
        self.record_scan(now, pages, ScanPoint::Live);
        let change = self.policy.sampled(&view(
            now.saturating_sub(self.memory_began),
            &self.ledger,
            &self.last_scan,
            &self.tracking,
            self.rounds,
            &self.rates,
            &self.recorder,
        ));
        self.take_notes();
        let State::Round(round) = &mut self.state else {
            return Vec::new();
        };
        round.sampling = false;
        round.dirtied.union_with(&self.last_scan);
        round.next_sample = round.sample_every.map(|every| now + every);
        if let Some(mut held) = change.hold_back {
            held.intersect_with(&round.left);
            round.left.subtract(&held);
            self.recorder.counts.filtered += held.count();
            round
                .held_back
                .get_or_insert_with(|| PageBitmap::new(self.setup.pages))
                .union_with(&held);
        }
        if let (Some(mut back), Some(held)) = (change.take_back, &mut round.held_back)
            && round.marked.iter().all(|marked| !marked)
        {
            back.intersect_with(held);
            held.subtract(&back);
            back.intersect_with(self.ledger.pending());
            round.taken_back += back.count();
            round.left.union_with(&back);
        }
        vec![Command::WakeStreams]
    }

    pub(super) fn round_batch(&mut self, now: Duration, stream: usize) -> Batch {
        let (round, point) = match &mut self.state {
            State::Round(round) => (round, ScanPoint::Live),
            State::StopCopy(stop) => match &mut stop.rest {
                Some(round) => (round, ScanPoint::Stopped),
                None => return Batch::Idle(None),
            },
            _ => return Batch::Idle(None),
        };
        let left = round.left.count_up_to(many(self.setup.streams));
        if left == 0 {
            self.pace.nothing_to_send(now);
            return match &mut round.marked[stream] {
                true => Batch::Idle(None),
                marked => {
                    *marked = true;
                    Batch::RoundEnd(round.number)
                }
            };
        }
        let number = round.number;
        let (runs, retry_at) = self.claim_batch(now, stream, left);
        if runs.is_empty() {
            return Batch::Idle(retry_at);
        }
        Batch::Pages {
            runs,
            round: number,
            point,
        }
    }

    /// The destination has all pages of the round.
    pub(super) fn round_received(&mut self, now: Duration, number: u32) -> Result<Vec<Command>, SourceError> {
        let complete = |round: &Round| round.number == number && round.marked.iter().all(|&marked| marked);
        match &mut self.state {
            State::Round(round) if complete(round) => {
                let sampling = round.sampling;
                let round = self.finish_round(now);
                self.recorder.round(round);
                self.state = State::Scanning;
                // A sample's scan that is under way serves as the scan of the round's end.
                Ok(if sampling { Vec::new() } else { vec![Command::Scan] })
            }
            State::StopCopy(stop) if stop.rest.as_ref().is_some_and(complete) => {
                let round = self.finish_round(now);
                self.recorder.round(round);
                // Only pages that the destination missed are left.
                let missed = self.ledger.pending().clone();
                let again = (!missed.is_empty())
                    .then(|| Round::new(self.rounds + 1, missed, self.setup.streams, now));
                let wake = again.is_some().then_some(Command::WakeStreams);
                if let State::StopCopy(stop) = &mut self.state {
                    stop.rest = again;
                }
                Ok(wake.map_or_else(|| self.prepare_if_all_sent(), |wake| vec![wake]))
            }
            _ => Err(self.unexpected(
                &format!("the end of round {number}"),
                "the end of the round under way",
            )),
        }
    }

    fn finish_round(&mut self, now: Duration) -> RoundReport {
        let Some(round) = self.state.round_mut() else {
            return RoundReport::default();
        };
        let (pages, bytes, took) = (round.pages, round.bytes, now.saturating_sub(round.began));
        let referenced = round.referenced;
        self.judged = Some(RoundJudged {
            held_back: round.held_back.take(),
            taken_back: round.taken_back,
            dirtied: std::mem::replace(&mut round.dirtied, PageBitmap::new(0)),
        });
        self.rounds += 1;
        self.rates.round_received(pages - referenced, bytes, took);
        RoundReport {
            ms: took.as_secs_f64() * 1e3,
            pages_sent: pages,
            bytes,
            ..RoundReport::default()
        }
    }
}
