//! How a session begins: by an offer over a new connection, or by a daemon that was restarted.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::thread;
use std::time::Duration;

use crossbeam_channel::{Receiver, unbounded};
use serde::{Deserialize, Serialize};
use vmferry_core::PageBitmap;
use vmferry_core::destination::{Destination, Setup};
use vmferry_core::handover::Epoch;
use vmferry_guest::{DiskPlan, FaultMode, GuestSpec, PlacedDisk, Vm};
use vmferry_memory::SharedPageStates;
use vmferry_transport::BoxedStream;
use vmferry_wire::{
    FaultModeWire, Offer, SessionToken, ToDestination, ToSource, clip_reason, read_control, write_control,
};

use super::disks::{DisksIn, read_plan};
use super::driver::Driver;
use super::faults;
use super::pages::{Intake, Sink};
use super::session::{Guest, Input, Session};
use super::session_log::{Became, Entry};
use super::{Admitted, Shared};
use crate::clock::Clock;
use crate::cpu_cap::CpuCap;
use crate::dir::{GuestDir, load_json, store_json};
use crate::error::RuntimeError;
use crate::journal::Journal;
use crate::link::{chain, parse_token, token_text};
use crate::pager::Pager;
use crate::usage::Usage;

/// How long the offer may take after the hello.
const OFFER_TIMEOUT: Duration = Duration::from_secs(30);

/// What a restarted daemon needs to take a session up again.
#[derive(Debug, Serialize, Deserialize)]
struct SavedSession {
    session: String,
    strategy: String,
    streams: u16,
    epoch: Epoch,
    mode: FaultMode,
}

/// The guest of a session and what belongs to it.
pub(super) struct Arrival {
    pub vm: Arc<dyn Vm>,
    pub dir: GuestDir,
    pub journal: Journal,
    pub epoch: Epoch,
    pub verify: bool,
}

/// Takes a new session from its offer to its end.
pub(super) fn run(shared: &Arc<Shared>, token: SessionToken, mut control: BoxedStream) {
    let clock = Clock::start();
    let (plan, offer) = match read_offer(&mut control) {
        Ok(read) => read,
        Err(reason) => return refuse(&mut control, &reason),
    };
    let streams = offer.streams.min(shared.max_streams.load(Ordering::Relaxed));
    if streams == 0 {
        return refuse(
            &mut control,
            "got an offer of no page streams, expected at least one",
        );
    }
    let (arrival, mode, places) = match admit(shared, &offer, plan.as_ref()) {
        Ok(admitted) => admitted,
        Err(reason) => return refuse(&mut control, &reason),
    };
    let name = arrival.vm.spec().name.clone();
    let prepared = prepare(shared, token, &offer, (plan, &places), streams, &arrival, mode);
    let accepted = prepared.and_then(|ready| {
        control.set_read_timeout(None).map_err(|e| chain(&e))?;
        Ok(ready)
    });
    match accepted {
        Ok((session, received)) => {
            let setup = Setup {
                streams: usize::from(streams),
                verify: offer.verify,
                epoch: arrival.epoch,
            };
            let machine = Destination::new(setup);
            let mut driver = Driver::new(shared, session, received, machine, arrival, clock);
            let began = driver
                .begin_connection(control)
                .and_then(|()| driver.say_where_disks_are(&places))
                .and_then(|()| driver.send(&ToSource::Accept { streams }));
            driver.run(began.err());
        }
        Err(reason) => {
            arrival.vm.destroy();
            shared.host.discarded(&name, &reason);
            refuse(&mut control, &reason);
        }
    }
}

/// The offer, with the plan of the disks before it where they come too.
fn read_offer(control: &mut BoxedStream) -> Result<(Option<DiskPlan>, Offer), String> {
    control
        .set_read_timeout(Some(OFFER_TIMEOUT))
        .map_err(|e| chain(&e))?;
    let mut next = || read_control::<ToDestination>(control).map_err(|e| chain(&e));
    let (plan, message) = match next()? {
        ToDestination::Disks { plan_json } => (Some(read_plan(&plan_json)?), next()?),
        message => (None, message),
    };
    match message {
        ToDestination::Offer(offer) => Ok((plan, offer)),
        _ => Err("expected an offer".into()),
    }
}

/// Takes a session up whose guest runs here while pages are outstanding.
pub(super) fn recover(shared: &Arc<Shared>, vm: Arc<dyn Vm>, dir: GuestDir) -> Result<(), RuntimeError> {
    let damaged = |why: &str| RuntimeError::Damaged {
        path: dir.session(),
        why: why.into(),
    };
    let saved: SavedSession = load_json(&dir.session())?.ok_or_else(|| damaged("it is missing"))?;
    let token = parse_token(&saved.session).ok_or_else(|| damaged("its session is no token"))?;
    let ram = vm.ram().clone();
    let states = SharedPageStates::open(&dir.page_states(), ram.layout().pages() as usize)
        .map_err(|e| damaged(&chain(&e)))?;
    let faults = vm.reopen_page_faults()?;
    let pager = Pager::new(ram.clone(), faults, saved.mode, states, false);
    pager.recover();
    let outstanding = pager.outstanding() > 0;
    let sink = Sink::new(ram);
    sink.set_intake(Intake::Paged);
    let _ = sink.pager.set(Arc::new(pager));
    let guest = Guest {
        name: vm.spec().name.clone(),
        strategy: saved.strategy,
        sink: Arc::new(sink),
        streams: saved.streams,
        paged: true,
        disks: None,
    };
    let (session, received) = new_session(token, guest);
    shared.sessions().insert(token, session.clone());
    let journal = Journal::open(dir.path())?;
    let setup = Setup {
        streams: usize::from(saved.streams),
        verify: false,
        epoch: saved.epoch,
    };
    let shared = shared.clone();
    let run = move || {
        let arrival = Arrival {
            vm,
            dir,
            journal,
            epoch: saved.epoch,
            verify: false,
        };
        let machine = Destination::recovered(setup, outstanding);
        let mut driver = Driver::new(&shared, session, received, machine, arrival, Clock::start());
        driver.running = Some(Duration::ZERO);
        driver.serve_faults();
        driver.run(None);
    };
    thread::Builder::new()
        .name("in recovered".into())
        .spawn(run)
        .expect("a thread can be started");
    Ok(())
}

/// Tells a source that every page is here.
pub(super) fn say_all_received(pages: u64, control: &mut BoxedStream) -> Result<(), String> {
    let all = PageBitmap::full(pages);
    ToSource::received(&all)
        .iter()
        .try_for_each(|message| write_control(control, message))
        .map_err(|e| chain(&e))
}

fn refuse(control: &mut BoxedStream, reason: &str) {
    // The source may be gone.
    let _ = write_control(
        control,
        &ToSource::Refuse {
            reason: clip_reason(reason),
        },
    );
}

/// Has the host create the guest.
fn admit(
    shared: &Shared,
    offer: &Offer,
    plan: Option<&DiskPlan>,
) -> Result<(Arrival, Option<FaultMode>, Vec<PlacedDisk>), String> {
    let spec: GuestSpec = serde_json::from_str(&offer.spec_json)
        .map_err(|e| format!("the guest's specification cannot be read: {e}"))?;
    let (Admitted { vm, dir }, places) = match plan {
        Some(plan) => shared.host.admit_with_disks(&spec, &offer.layout, plan)?,
        None => (shared.host.admit(&spec, &offer.layout)?, Vec::new()),
    };
    let checked = if vm.ram().layout() == &offer.layout {
        Journal::open(dir.path()).map_err(|e| chain(&e))
    } else {
        Err("the guest created here has another RAM layout than the one on offer".into())
    };
    match checked {
        Ok(journal) => {
            let mode = offer.faults.map(|mode| match mode {
                FaultModeWire::Missing => FaultMode::Missing,
                FaultModeWire::MissingAndStale => FaultMode::MissingAndStale,
            });
            Ok((
                Arrival {
                    vm,
                    dir,
                    journal,
                    epoch: Epoch(offer.epoch),
                    verify: offer.verify,
                },
                mode,
                places,
            ))
        }
        Err(reason) => {
            vm.destroy();
            shared.host.discarded(&spec.name, &reason);
            Err(reason)
        }
    }
}

/// Sets up faults, files and the session, before the source hears of it.
fn prepare(
    shared: &Shared,
    token: SessionToken,
    offer: &Offer,
    (plan, places): (Option<DiskPlan>, &[PlacedDisk]),
    streams: u16,
    arrival: &Arrival,
    mode: Option<FaultMode>,
) -> Result<(Arc<Session>, Receiver<Input>), String> {
    let Arrival { vm, dir, .. } = arrival;
    let sink = Sink::new(vm.ram().clone());
    if let Some(mode) = mode {
        let faults = vm.page_faults(mode).map_err(|e| chain(&e))?;
        let states = SharedPageStates::create(&dir.page_states(), vm.ram().layout().pages() as usize);
        let pager = Pager::new(
            vm.ram().clone(),
            faults,
            mode,
            states.map_err(|e| chain(&e))?,
            offer.verify,
        );
        let _ = sink.pager.set(Arc::new(pager));
        let saved = SavedSession {
            session: token_text(token),
            strategy: offer.strategy.clone(),
            streams,
            epoch: arrival.epoch,
            mode,
        };
        store_json(&dir.session(), &saved).map_err(|e| chain(&e))?;
    }
    vm.prepare_load().map_err(|e| chain(&e))?;
    let disks = match plan {
        Some(plan) => Some(DisksIn::export(plan, places, vm, dir)?),
        None => None,
    };
    let name = vm.spec().name.clone();
    let entry = log_entry(token, arrival, Became::Admitted);
    shared.log.append(&entry).map_err(|e| chain(&e))?;
    let guest = Guest {
        name,
        strategy: offer.strategy.clone(),
        sink: Arc::new(sink),
        streams,
        paged: mode.is_some(),
        disks,
    };
    let (session, received) = new_session(token, guest);
    shared.sessions().insert(token, session.clone());
    Ok((session, received))
}

pub(super) fn log_entry(token: SessionToken, arrival: &Arrival, became: Became) -> Entry {
    Entry {
        session: token_text(token),
        vm: arrival.vm.spec().name.clone(),
        dir: arrival.dir.path().to_owned(),
        epoch: arrival.epoch.0,
        pages: arrival.vm.ram().layout().pages(),
        became,
    }
}

fn new_session(token: SessionToken, guest: Guest) -> (Arc<Session>, Receiver<Input>) {
    let (inputs, received) = unbounded();
    let session = Session {
        token,
        inputs,
        usage: Usage::start(),
        cpu_cap: CpuCap::new(format!(
            "vmferry-{}-in-{}",
            std::process::id(),
            &token_text(token)[..8]
        )),
        faults: faults::FaultLine::default(),
        guest: OnceLock::from(guest),
        streams: Mutex::default(),
        phase: Mutex::new("preparing"),
        connection: AtomicU64::new(0),
        loading: AtomicBool::new(false),
    };
    (Arc::new(session), received)
}
