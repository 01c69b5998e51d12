//! Every event in every state: it is taken in, ignored without harm, or refused with an error that says what was
//! expected. Nothing panics, and a refused event leaves a machine that can still fail.

use std::collections::VecDeque;
use std::time::Duration;

use vmferry_core::destination::{self, Destination};
use vmferry_core::handover::{Claim, Epoch};
use vmferry_core::policy::{Faults, LiveStep, Needs, Policy, RoundPages, RoundPlan, StopPlan, View};
use vmferry_core::report::Outcome;
use vmferry_core::source::{self, Batch, Command, SentBatch, Side, Source, Summary};
use vmferry_core::{PageBitmap, PageRun};

const PAGES: u64 = 8;
const EPOCH: Epoch = Epoch(3);

/// Does as told; where nothing is told, it switches over and leaves all pages for later.
#[derive(Default)]
struct Scripted {
    live: VecDeque<LiveStep>,
    stop: VecDeque<StopPlan>,
}

impl Policy for Scripted {
    fn needs(&self) -> Needs {
        Needs {
            tracking: true,
            faults: Faults::MissingAndStale,
        }
    }

    fn live(&mut self, _view: &View<'_>) -> LiveStep {
        self.live.pop_front().unwrap_or(LiveStep::SwitchOver)
    }

    fn stop(&mut self, _view: &View<'_>) -> StopPlan {
        self.stop
            .pop_front()
            .unwrap_or(StopPlan::LeavePending { free: None })
    }
}

fn full() -> PageBitmap {
    PageBitmap::full(PAGES)
}

fn none() -> PageBitmap {
    PageBitmap::new(PAGES)
}

mod source_events {
    use vmferry_core::source::{Enlightenment, Event};

    use super::*;

    pub(super) fn all() -> Vec<(&'static str, Event)> {
        let reconnected = |claim| Event::Reconnected {
            epoch: EPOCH,
            claim,
            lacking: (claim != Claim::Declined).then(full),
        };
        vec![
            ("accepted", accepted()),
            ("no streams", Event::Accepted { streams: 0 }),
            (
                "enlightened",
                Event::Enlightened(Enlightenment::Nothing {
                    why: "no port".into(),
                }),
            ),
            ("armed", armed()),
            ("scanned", Event::Scanned(none())),
            ("stopped", stopped()),
            ("resumed", Event::Resumed),
            ("switch taken", Event::SwitchTaken),
            ("state sent", Event::StateSent { bytes: 1 }),
            ("state confirmed", Event::StateConfirmed),
            ("round received", Event::RoundReceived { round: 1 }),
            ("ready", Event::Ready(EPOCH)),
            ("ready for another epoch", Event::Ready(EPOCH.next())),
            ("journaled", Event::Journaled),
            ("journal failed", Event::JournalFailed("full".into())),
            ("running", Event::Running(EPOCH)),
            ("running in another epoch", Event::Running(EPOCH.next())),
            ("complete", Event::Complete(Summary::default())),
            ("disconnected", Event::Disconnected("cut".into())),
            ("reconnected: owner", reconnected(Claim::Owner)),
            ("reconnected: prepared", reconnected(Claim::Prepared)),
            ("reconnected: declined", reconnected(Claim::Declined)),
            (
                "reconnected: another epoch",
                Event::Reconnected {
                    epoch: EPOCH.next(),
                    claim: Claim::Owner,
                    lacking: None,
                },
            ),
            ("cancel", Event::Cancel),
            ("resolve: source", Event::Resolve(Side::Source)),
            ("resolve: destination", Event::Resolve(Side::Destination)),
            ("failed", Event::Failed("broken".into())),
            ("tick", Event::Tick),
        ]
    }

    pub(super) fn accepted() -> Event {
        Event::Accepted { streams: 1 }
    }

    pub(super) fn armed() -> Event {
        Event::Armed {
            data: full(),
            paused: Duration::ZERO,
        }
    }

    pub(super) fn stopped() -> Event {
        Event::Stopped {
            paused_at: Duration::ZERO,
            pages: none(),
            discarded: None,
            free: None,
        }
    }
}

fn new_source(policy: Scripted) -> Source {
    let setup = source::Setup {
        pages: PAGES,
        streams: 2,
        pinned_io: false,
        verify: false,
        epoch: EPOCH,
    };
    Source::new(setup, Box::new(policy))
}

fn source_after(policy: Scripted, events: Vec<source::Event>) -> Source {
    let mut source = new_source(policy);
    for event in events {
        source
            .handle(Duration::ZERO, event)
            .expect("the way to the state");
    }
    source
}

/// A source in each of its states.
fn sources() -> Vec<(&'static str, Source)> {
    use source::Event::*;
    use source_events::{accepted, armed, stopped};
    let live = |step| Scripted {
        live: [step].into(),
        ..Scripted::default()
    };
    let round = || {
        live(LiveStep::Round(RoundPlan {
            pages: RoundPages::Pending,
            sample_every: None,
        }))
    };
    let wait = || live(LiveStep::Wait(Duration::from_secs(1)));
    let plan = |plan| Scripted {
        stop: [plan].into(),
        ..Scripted::default()
    };
    let to = |more: Vec<source::Event>| {
        let way = [
            accepted(),
            armed(),
            stopped(),
            StateSent { bytes: 1 },
            StateConfirmed,
            Ready(EPOCH),
        ];
        source_after(Scripted::default(), way.into_iter().chain(more).collect())
    };
    let mut scanning = source_after(wait(), vec![accepted(), armed()]);
    scanning.handle(Duration::from_secs(1), Tick).unwrap();
    let mut all_sent = to(vec![Journaled, Running(EPOCH)]);
    assert!(matches!(
        all_sent.next_batch(Duration::ZERO, 0),
        Batch::Pages { .. }
    ));
    assert_eq!(all_sent.check_all_pushed(), [Command::SendAllPushed]);
    let setup = source::Setup {
        pages: PAGES,
        streams: 2,
        pinned_io: false,
        verify: false,
        epoch: EPOCH,
    };
    let declined = || Reconnected {
        epoch: EPOCH,
        claim: Claim::Declined,
        lacking: None,
    };
    vec![
        ("offered", new_source(Scripted::default())),
        ("arming", source_after(Scripted::default(), vec![accepted()])),
        ("waiting", source_after(wait(), vec![accepted(), armed()])),
        ("scanning", scanning),
        ("round", source_after(round(), vec![accepted(), armed()])),
        (
            "stopping",
            source_after(Scripted::default(), vec![accepted(), armed()]),
        ),
        (
            "retracting",
            source_after(plan(StopPlan::Retract), vec![accepted(), armed(), stopped()]),
        ),
        (
            "stop, rest",
            source_after(plan(StopPlan::SendPending), vec![accepted(), armed(), stopped()]),
        ),
        (
            "stop, state",
            source_after(Scripted::default(), vec![accepted(), armed(), stopped()]),
        ),
        (
            "preparing",
            source_after(
                Scripted::default(),
                vec![accepted(), armed(), stopped(), StateSent { bytes: 1 }],
            ),
        ),
        (
            "preparing, confirmed",
            source_after(
                Scripted::default(),
                vec![
                    accepted(),
                    armed(),
                    stopped(),
                    StateSent { bytes: 1 },
                    StateConfirmed,
                ],
            ),
        ),
        (
            "preparing, ready",
            source_after(
                Scripted::default(),
                vec![
                    accepted(),
                    armed(),
                    stopped(),
                    StateSent { bytes: 1 },
                    Ready(EPOCH),
                ],
            ),
        ),
        ("handing over", to(vec![])),
        ("handing over, cut", to(vec![Disconnected("cut".into())])),
        ("committing", to(vec![Journaled])),
        ("pushing", to(vec![Journaled, Running(EPOCH)])),
        ("all sent", all_sent),
        ("severed", to(vec![Journaled, Disconnected("cut".into())])),
        (
            "severed, ran there",
            to(vec![Journaled, Running(EPOCH), Disconnected("cut".into())]),
        ),
        (
            "recovered",
            Source::recovered(setup, Box::new(Scripted::default())),
        ),
        (
            "taking back",
            to(vec![Journaled, Disconnected("cut".into()), declined()]),
        ),
        (
            "cancelled",
            source_after(Scripted::default(), vec![accepted(), Cancel]),
        ),
    ]
}

/// Feeds each event to a machine in each state and writes down what became of it.
fn table<M, E>(
    machines: impl Fn() -> Vec<(&'static str, M)>,
    events: impl Fn() -> Vec<(&'static str, E)>,
    mut feed: impl FnMut(M, E) -> char,
) -> String {
    let mut table = String::new();
    for (event, _) in events() {
        let column: String = machines()
            .into_iter()
            .map(|(_, machine)| {
                let fed = events()
                    .into_iter()
                    .find(|(name, _)| *name == event)
                    .expect("it is one of them")
                    .1;
                feed(machine, fed)
            })
            .collect();
        table.push_str(&format!("{column} {event}\n"));
    }
    table
}

/// `x`: taken in. `.`: ignored. `E`: refused, with what was expected. `T`: refused to the operator.
fn feed_source(mut source: Source, event: source::Event) -> char {
    let before = source.progress(Duration::ZERO).phase;
    let fed = source.handle(Duration::ZERO, event);
    // Whatever it was: it can be looked at, asked for pages, and fail.
    let after = source.progress(Duration::ZERO).phase;
    let _ = (
        source.measured(),
        source.ownership(),
        source.deadline(),
        source.demanded(Duration::ZERO, 0),
    );
    if let Batch::Pages { .. } = source.next_batch(Duration::ZERO, 0) {
        source.sent(SentBatch {
            raw: 1,
            bytes: 1,
            ..SentBatch::default()
        });
    }
    source
        .handle(Duration::ZERO, source::Event::Failed("the end".into()))
        .expect("it can fail");
    match fed {
        Ok(commands) if commands.is_empty() && before == after => '.',
        Ok(_) => 'x',
        Err(source::SourceError::TooLate(why)) => {
            assert!(!why.is_empty());
            'T'
        }
        Err(source::SourceError::Unexpected {
            found,
            phase,
            expected,
        }) => {
            assert!(!found.is_empty() && phase == before && !expected.is_empty());
            'E'
        }
        Err(error) => {
            assert!(error.to_string().contains("resolve"), "{error}");
            'E'
        }
    }
}

#[test]
fn every_event_in_every_state_of_a_source() {
    let states: Vec<_> = sources().iter().map(|(state, _)| *state).collect();
    let found = table(sources, source_events::all, feed_source);
    assert_eq!(
        found.trim(),
        SOURCE_TABLE.trim(),
        "states: {states:?}; found:\n{found}"
    );
}

#[test]
fn the_operator_decides_for_a_severed_guest_without_pages_there() {
    use source::Event::*;
    use source_events::{accepted, armed, stopped};
    let policy = Scripted {
        stop: [StopPlan::SendPending].into(),
        ..Scripted::default()
    };
    let mut source = source_after(
        policy,
        vec![accepted(), armed(), stopped(), StateSent { bytes: 1 }],
    );
    assert!(matches!(
        source.next_batch(Duration::ZERO, 0),
        Batch::Pages { .. }
    ));
    assert_eq!(source.next_batch(Duration::ZERO, 0), Batch::RoundEnd(1));
    for event in [
        RoundReceived { round: 1 },
        StateConfirmed,
        Ready(EPOCH),
        Journaled,
        Disconnected("cut".into()),
    ] {
        source.handle(Duration::ZERO, event).unwrap();
    }
    let commands = source.handle(Duration::ZERO, Resolve(Side::Destination)).unwrap();
    assert_eq!(commands, [Command::WakeStreams, Command::Release(EPOCH)]);
    assert_eq!(source.ended(), Some((Outcome::Completed, None)));
}

#[test]
fn a_journal_that_fails_at_the_commit_point_is_undone_before_the_guest_runs() {
    let (_, mut source) = sources()
        .into_iter()
        .find(|(state, _)| *state == "handing over")
        .unwrap();
    let commands = source
        .handle(Duration::ZERO, source::Event::JournalFailed("full".into()))
        .unwrap();
    assert_eq!(
        commands,
        [
            Command::SendAbort("full".into()),
            Command::JournalOwner(EPOCH.next())
        ]
    );
    // The connection may go meanwhile; the operator may want what happens anyway.
    assert_eq!(
        source
            .handle(Duration::ZERO, source::Event::Disconnected("cut".into()))
            .unwrap(),
        []
    );
    source.handle(Duration::ZERO, source::Event::Cancel).unwrap_err();
    let commands = source.handle(Duration::ZERO, source::Event::Journaled).unwrap();
    assert_eq!(commands, [Command::WakeStreams, Command::Rollback]);
    assert_eq!(source.ended(), Some((Outcome::Failed, Some("full"))));
}

#[test]
fn a_guest_that_ran_there_is_never_taken_back_by_itself() {
    for claim in [Claim::Declined, Claim::Prepared] {
        let (_, mut source) = sources()
            .into_iter()
            .find(|(state, _)| *state == "severed, ran there")
            .unwrap();
        let back = source::Event::Reconnected {
            epoch: EPOCH,
            claim,
            lacking: None,
        };
        let error = source.handle(Duration::ZERO, back).unwrap_err();
        assert!(matches!(error, source::SourceError::Denied), "{error}");
        assert_eq!(source.ownership(), source::Ownership::HandedOver(EPOCH));
    }
}

#[test]
fn what_was_demanded_over_a_lost_connection_is_pushed_first() {
    let (_, mut source) = sources()
        .into_iter()
        .find(|(state, _)| *state == "severed, ran there")
        .unwrap();
    source.demanded(Duration::ZERO, 6);
    let lacking = full();
    let back = source::Event::Reconnected {
        epoch: EPOCH,
        claim: Claim::Owner,
        lacking: Some(lacking),
    };
    source.handle(Duration::ZERO, back).unwrap();
    let batches: Vec<_> = (0..2).map(|_| source.next_batch(Duration::ZERO, 0)).collect();
    let first = |batch: &Batch| match batch {
        Batch::Pages { runs, .. } => (runs[0].first, runs.iter().map(|run| run.count).sum::<u64>()),
        other => panic!("{other:?}"),
    };
    assert_eq!((first(&batches[0]), first(&batches[1])), ((6, 1), (0, 7)));
}

#[test]
fn what_the_loading_reads_goes_ahead_once_the_switch_is_taken() {
    use source::Event::*;
    let way = || vec![source_events::accepted(), source_events::armed()];
    let mut source = source_after(Scripted::default(), way());
    source.read_by_load([PageRun::new(6, 9), PageRun::new(2, 1), PageRun::new(99, 2)]);
    source.handle(Duration::ZERO, source_events::stopped()).unwrap();
    let next = |source: &mut Source| match source.next_batch(Duration::ZERO, 0) {
        Batch::Pages { runs, .. } => runs,
        Batch::Idle(None) => Vec::new(),
        other => panic!("{other:?}"),
    };
    assert_eq!(
        next(&mut source),
        [],
        "the destination may not know yet that it is the stop"
    );
    assert_eq!(
        source.handle(Duration::ZERO, SwitchTaken).unwrap(),
        [Command::WakeStreams]
    );
    assert_eq!(next(&mut source), [PageRun::new(6, 2), PageRun::single(2)]);
    assert_eq!(next(&mut source), [], "all others wait for the resume");
    source.handle(Duration::ZERO, StateSent { bytes: 1 }).unwrap();
    assert_eq!(source.demanded(Duration::ZERO, 2), source::Demand::UnderWay);
    assert_eq!(source.demanded(Duration::ZERO, 4), source::Demand::Send);
    assert_eq!(
        next(&mut source),
        [PageRun::single(5)],
        "what lies behind a demanded page"
    );
    assert_eq!(source.measured().counts.ahead, 4);
    // Given up before the commit: the guest goes on here, and no page is sent any more.
    source.handle(Duration::ZERO, Cancel).unwrap();
    assert_eq!(source.next_batch(Duration::ZERO, 0), Batch::Finished);

    // A demand proves the switch as well.
    let mut source = source_after(Scripted::default(), way());
    source.handle(Duration::ZERO, source_events::stopped()).unwrap();
    assert_eq!(source.demanded(Duration::ZERO, 0), source::Demand::Send);
    assert_eq!(next(&mut source), [PageRun::new(1, 7)]);
    let way = [
        StateSent { bytes: 1 },
        Ready(EPOCH),
        StateConfirmed,
        Journaled,
        Running(EPOCH),
    ];
    for event in way {
        source.handle(Duration::ZERO, event).unwrap();
    }
    assert_eq!(
        source.handle(Duration::ZERO, SwitchTaken).unwrap(),
        [],
        "late, and no news any more"
    );
}

mod destination_events {
    use vmferry_core::destination::Event;

    use super::*;

    pub(super) fn all() -> Vec<(&'static str, Event)> {
        vec![
            ("round end", Event::RoundEnd { stream: 0, round: 1 }),
            (
                "round end of another stream",
                Event::RoundEnd { stream: 9, round: 1 },
            ),
            ("round end out of turn", Event::RoundEnd { stream: 0, round: 7 }),
            ("switch", Event::Switch),
            ("state arrived", Event::StateArrived),
            ("prepare", Event::Prepare(EPOCH)),
            ("prepare another epoch", Event::Prepare(EPOCH.next())),
            ("loaded", Event::Loaded),
            ("compared, equal", Event::Compared { mismatches: 0 }),
            ("compared, different", Event::Compared { mismatches: 1 }),
            ("commit", Event::Commit(EPOCH)),
            ("commit another epoch", Event::Commit(EPOCH.next())),
            ("journaled", Event::Journaled),
            ("journal failed", Event::JournalFailed("full".into())),
            ("started", Event::Started),
            ("all arrived", Event::AllArrived),
            ("all pushed", Event::AllPushed),
            ("asked", Event::Asked(EPOCH)),
            ("asked about another epoch", Event::Asked(EPOCH.next())),
            ("abort", Event::Abort("off".into())),
            ("failed", Event::Failed("broken".into())),
            ("broken", Event::Broken("cut".into())),
        ]
    }
}

fn destination_after(verify: bool, events: Vec<destination::Event>) -> Destination {
    let mut machine = Destination::new(destination::Setup {
        streams: 1,
        verify,
        epoch: EPOCH,
    });
    for event in events {
        machine.handle(event).expect("the way to the state");
    }
    machine
}

/// A destination in each of its states.
fn destinations() -> Vec<(&'static str, Destination)> {
    use destination::Event::*;
    let to = |verify, switch: bool, more: &[destination::Event]| {
        let way = switch
            .then_some(Switch)
            .into_iter()
            .chain([StateArrived, Prepare(EPOCH)]);
        destination_after(verify, way.chain(more.iter().cloned()).collect())
    };
    let ran = [Loaded, Commit(EPOCH), Journaled, Started];
    let setup = destination::Setup {
        streams: 1,
        verify: false,
        epoch: EPOCH,
    };
    vec![
        ("receiving", destination_after(false, vec![])),
        ("receiving, switched", destination_after(false, vec![Switch])),
        ("receiving, state", destination_after(false, vec![StateArrived])),
        ("loading", to(false, false, &[])),
        ("comparing", to(true, false, &[Loaded])),
        ("prepared", to(false, true, &ran[..1])),
        ("taking over", to(false, true, &ran[..2])),
        ("starting", to(false, true, &ran[..3])),
        ("running", to(false, true, &ran)),
        ("recovered", Destination::recovered(setup, true)),
        (
            "comparing arrived",
            to(true, true, &[ran.to_vec(), vec![AllArrived, AllPushed]].concat()),
        ),
        ("declining", destination_after(false, vec![Abort("off".into())])),
        (
            "undoing owner",
            to(
                false,
                true,
                &[
                    &ran[..2],
                    &[JournalFailed("full".into()), JournalFailed("full".into())],
                ]
                .concat(),
            ),
        ),
        (
            "declined",
            destination_after(false, vec![Abort("off".into()), Journaled]),
        ),
        (
            "complete",
            to(false, true, &[ran.to_vec(), vec![AllArrived, AllPushed]].concat()),
        ),
    ]
}

/// As [`feed_source`].
fn feed_destination(mut machine: Destination, event: destination::Event) -> char {
    let before = (machine.phase(), machine.owns());
    let fed = machine.handle(event);
    let after = (machine.phase(), machine.owns());
    assert!(!before.1 || after.1, "it gave up what it owns");
    let _ = machine.ended();
    machine
        .handle(destination::Event::Failed("the end".into()))
        .expect("it can fail");
    match fed {
        Ok(commands) if commands.is_empty() && before == after => '.',
        Ok(_) => 'x',
        Err(error) => {
            let text = error.to_string();
            assert!(
                text.starts_with("got ") && text.contains(before.0) && text.contains(", expected "),
                "{text}"
            );
            'E'
        }
    }
}

#[test]
fn every_event_in_every_state_of_a_destination() {
    let states: Vec<_> = destinations().iter().map(|(state, _)| *state).collect();
    let found = table(destinations, destination_events::all, feed_destination);
    assert_eq!(
        found.trim(),
        DESTINATION_TABLE.trim(),
        "states: {states:?}; found:\n{found}"
    );
}

#[test]
fn the_last_page_may_come_before_the_guest_runs() {
    use destination::{Command, Event::*};
    let mut machine = destination_after(
        false,
        vec![Switch, AllArrived, StateArrived, Prepare(EPOCH), Loaded],
    );
    for event in [Commit(EPOCH), Journaled, Started] {
        machine.handle(event).unwrap();
    }
    assert_eq!(
        machine.handle(AllPushed).unwrap(),
        [Command::ReleaseFaults, Command::SendComplete]
    );
}

#[test]
fn a_recovered_destination_that_lacks_nothing_ends() {
    use destination::{Command, Event::*};
    let setup = destination::Setup {
        streams: 1,
        verify: false,
        epoch: EPOCH,
    };
    let mut machine = Destination::recovered(setup, false);
    machine.handle(Asked(EPOCH)).unwrap();
    assert_eq!(
        machine.handle(AllPushed).unwrap(),
        [Command::ReleaseFaults, Command::SendComplete]
    );
}

#[test]
fn what_the_source_said_over_an_older_connection_does_not_count() {
    use destination::Event::*;
    let mut machine = destination_after(
        false,
        vec![
            Switch,
            StateArrived,
            Prepare(EPOCH),
            Loaded,
            Commit(EPOCH),
            Journaled,
            Started,
            AllPushed,
        ],
    );
    machine.handle(Broken("cut".into())).unwrap();
    machine.handle(Asked(EPOCH)).unwrap();
    assert_eq!(
        machine.handle(AllArrived).unwrap(),
        [],
        "the source did not say so on this connection"
    );
}

/// A column a state of [`sources`], a row an event.
const SOURCE_TABLE: &str = "\
xEEEEEEEEEEEEEEEEEEEE. accepted
EEEEEEEEEEEEEEEEEEEEE. no streams
...................... enlightened
ExEEEEEEEEEEEEEEEEEEE. armed
EEExxEEEEEEEEEEEEEEEE. scanned
EEEEExEEEEEEEEEEEEEEE. stopped
EEEEEExEEEEEEEEEEEEEE. resumed
EEEEEEEExxxxx.x....... switch taken
EEEEEEE.xEEEEEEEEEEEE. state sent
EEEEEEEEE.ExEEEEEEEEE. state confirmed
EEEEEEEEEEEEEEEEEEEEE. round received
EEEEEEEEE.xEEEEEEEEEE. ready
EEEEEEEEEEEEEEEEEEEEE. ready for another epoch
EEEEEEEEEEEExxEEEEEEx. journaled
xxxxxxxxxxxxxxxxxxxxx. journal failed
EEEEEEEEEEEEEEx.....E. running
EEEEEEEEEEEEEEEEEEEEE. running in another epoch
EEEEEEEEEEEEEEEExxxxE. complete
xxxxxxxxxxxx..xxxxxx.. disconnected
EEEEEEEEEEEEEExxxxxxE. reconnected: owner
EEEEEEEEEEEEEExEExExE. reconnected: prepared
EEEEEEEEEEEEEExEExExE. reconnected: declined
EEEEEEEEEEEEEEEEEEEEE. reconnected: another epoch
xxxxxxxxxxxxTTTTTTTTTT cancel
TTTTTTTTTTTTTTTTTxxxTT resolve: source
TTTTTTTTTTTTTTTTTTTTTT resolve: destination
xxxxxxxxxxxx..xxxxxx.. failed
...................... tick
";
/// A column a state of [`destinations`], a row an event.
const DESTINATION_TABLE: &str = "\
xxxEEEEEEEE.... round end
EEEEEEEEEEE.... round end of another stream
EEEEEEEEEEE.... round end out of turn
xExEEEEEEEE.... switch
..EEEEEEEEE.... state arrived
EExEEEEEEEE.... prepare
EEEEEEEEEEE.... prepare another epoch
EEExEEEEEEE.... loaded
EEEExEEEEEx.... compared, equal
EEEExEEEEEx.... compared, different
EEEEEx..xxxEE.. commit
EEEEEEEEEEEEE.. commit another epoch
EEEEEExEEEExx.. journaled
xxxxxxxxxxxxx.. journal failed
EEEEEEEx...EE.. started
............... all arrived
EEEEEEE....EE.x all pushed
EEEEEx..xxx.xxx asked
EEEEEEEEEEEEEEE asked about another epoch
xxxxxxxxxxx.x.. abort
xxxxxxxxxxx.x.. failed
xxxxxxxxxxx.x.. broken
";
