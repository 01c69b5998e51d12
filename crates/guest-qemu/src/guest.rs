//! A QEMU guest and its life.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, TryLockError};
use std::time::Duration;

use tracing::{debug, warn};
use vmferry_guest::{Guest, GuestError, GuestRam, GuestSpec, GuestState, Result};
use vmferry_memory::FileId;

use crate::agent::AgentState;
use crate::disks::DiskState;
use crate::launch::{self, Started};
use crate::migrate_in::Incoming;
use crate::migrate_out::Outgoing;
use crate::physical::GuestPhysicalMap;
use crate::process::QemuProcess;
use crate::qmp::commands::{Cont, QueryStatus, Quit, Stop};
use crate::qmp::{Command, Event, Qmp, QmpError};
use crate::record::{BlockRecord, Record, RecordFile, open_file_of};
use crate::spec::QemuConfig;
use crate::uffd::InQemu;

/// How long `stop` and `cont` may take: they wait for disks.
const SWITCH_TIMEOUT: Duration = Duration::from_secs(60);
/// How long QEMU may take to say what it is doing; it does not answer while it waits for a page.
const STATUS_TIMEOUT: Duration = Duration::from_secs(1);
/// How long QEMU may take to end by itself.
const QUIT_TIMEOUT: Duration = Duration::from_secs(3);

/// A guest in a QEMU of this host.
pub struct QemuGuest {
    pub(crate) spec: GuestSpec,
    pub(crate) config: QemuConfig,
    pub(crate) dir: PathBuf,
    pub(crate) process: QemuProcess,
    pub(crate) qmp: Qmp,
    pub(crate) ram: Arc<GuestRam>,
    pub(crate) uffd: InQemu,
    pub(crate) record: Arc<RecordFile>,
    pub(crate) agent: AgentState,
    pub(crate) disk_state: DiskState,
    pub(crate) outgoing: Mutex<Outgoing>,
    pub(crate) incoming: Mutex<Option<Incoming>>,
    phase: Mutex<Phase>,
    last_state: Mutex<GuestState>,
    /// RAM that goes with the device state, in bytes: no limit until it is known.
    pub(crate) foreign_ram_bytes: AtomicU64,
}

/// Where the guest is in its life, as far as that decides what may be asked of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Phase {
    /// Created for a migration in, nothing loaded.
    Incoming,
    /// It runs or is paused, and may do both.
    Live,
    /// Its device state was saved; it is paused and may be resumed if the migration is abandoned.
    Saved,
    /// Loading its device state failed: nothing can be done with it but to end it.
    Broken,
}

impl QemuGuest {
    /// A guest over a QEMU that was just started, or found.
    pub(crate) fn new(
        spec: GuestSpec,
        config: QemuConfig,
        dir: &Path,
        qemu: Started,
        phase: Phase,
    ) -> Result<Self> {
        let record = Record {
            process: qemu.process.id(),
            qmp: qemu.qmp.path().to_owned(),
            blocks: block_records(&qemu.ram),
            faults: None,
        };
        let record = RecordFile::create(dir, record).inspect_err(|_| qemu.process.kill())?;
        Ok(Self::with_record(spec, config, dir, qemu, record, phase))
    }

    /// A guest that an earlier daemon left, from the record in `dir`.
    pub(crate) fn of_record(spec: GuestSpec, config: QemuConfig, dir: &Path) -> Result<Self> {
        let (file, record) = RecordFile::open(dir)?;
        let gone = |why: String| GuestError::Gone {
            name: spec.name.clone(),
            why,
        };
        let process = QemuProcess::find(record.process)
            .map_err(|error| gone(format!("QEMU (pid {}) ended ({error})", record.process.pid)))?;
        let ram = reopen_ram(process.pid(), &record.blocks)?;
        let (qmp, answers) = match Qmp::connect(&record.qmp, STATUS_TIMEOUT * 10) {
            Ok(qmp) => (qmp, true),
            Err(_) if !process.is_alive() => return Err(gone(process.end())),
            // It was told to stop while a vCPU waits for a page: it answers nobody before that page is there, which is our business.
            Err(QmpError::NoGreeting { .. } | QmpError::TimedOut { .. }) if record.faults.is_some() => {
                (Qmp::connect_later(&record.qmp), false)
            }
            Err(error) => {
                let doing = format!("talking to QEMU (pid {}) again", process.pid());
                return Err(GuestError::operation(doing, error));
            }
        };
        let guest = Self::with_record(
            spec,
            config,
            dir,
            Started { process, qmp, ram },
            file,
            Phase::Live,
        );
        // A QEMU that waits for a page does not answer. That happens after its vCPUs have run: it is live.
        let status = answers.then(|| guest.qmp.run_within(&QueryStatus {}, STATUS_TIMEOUT));
        let status = status
            .and_then(std::result::Result::ok)
            .map(|status| status.status);
        *guest.phase() = match status.as_deref() {
            Some("inmigrate") => Phase::Incoming,
            Some("postmigrate") => Phase::Saved,
            _ => Phase::Live,
        };
        guest.end_tracking_of_predecessor();
        Ok(guest)
    }

    fn with_record(
        spec: GuestSpec,
        config: QemuConfig,
        dir: &Path,
        qemu: Started,
        record: RecordFile,
        phase: Phase,
    ) -> Self {
        let Started { process, qmp, ram } = qemu;
        let state = if phase == Phase::Incoming {
            GuestState::Incoming
        } else {
            GuestState::Running
        };
        Self {
            spec,
            config,
            dir: dir.to_owned(),
            uffd: InQemu::default(),
            agent: AgentState::default(),
            disk_state: DiskState::default(),
            outgoing: Mutex::default(),
            incoming: Mutex::default(),
            process,
            qmp,
            ram: Arc::new(ram),
            record: Arc::new(record),
            phase: Mutex::new(phase),
            last_state: Mutex::new(state),
            foreign_ram_bytes: AtomicU64::new(u64::MAX),
        }
    }

    /// QEMU's monitor, for what the traits do not offer.
    pub fn qmp(&self) -> &Qmp {
        &self.qmp
    }

    /// The configuration the guest was made from.
    pub fn config(&self) -> &QemuConfig {
        &self.config
    }

    /// Where guest-physical addresses lie in the guest's pages.
    ///
    /// # Errors
    /// When QEMU does not tell.
    pub fn physical_map(&self) -> Result<GuestPhysicalMap> {
        let mtree = self.asked(self.qmp.human("info mtree -f"), "asking QEMU for its memory map")?;
        Ok(GuestPhysicalMap::parse(&mtree, self.ram.layout()))
    }

    /// Lets the vCPUs run.
    ///
    /// QEMU says that it resumes, lets them go, and answers when it has the time: they keep it from that, and so do pages that
    /// are missing, however long they take. From its word on nothing but those pages holds the guest up.
    fn cont(&self) -> std::result::Result<(), QmpError> {
        let resumes = |event: &Event| event.name == "RESUME";
        self.qmp.run_until(&Cont {}, SWITCH_TIMEOUT, resumes)
    }

    /// Runs a QMP command; its failure says `doing` what.
    pub(crate) fn run<C: Command>(&self, command: &C, doing: &str) -> Result<C::Reply> {
        self.asked(self.qmp.run(command), doing)
    }

    /// The same for a result at hand. A lost connection to a QEMU that has ended means the guest is gone.
    pub(crate) fn asked<T>(&self, answer: std::result::Result<T, QmpError>, doing: &str) -> Result<T> {
        answer.map_err(|error| {
            if error.is_disconnect() && self.process.wait(Duration::from_millis(200)) {
                self.gone()
            } else {
                GuestError::operation(doing, error)
            }
        })
    }

    /// The error that says how QEMU ended.
    pub(crate) fn gone(&self) -> GuestError {
        let why = match launch::log_tail(&self.dir) {
            Some(tail) => format!("{}; it said: {tail}", self.process.end()),
            None => self.process.end(),
        };
        GuestError::Gone {
            name: self.spec.name.clone(),
            why,
        }
    }

    pub(crate) fn wrong_state(&self, found: impl Into<String>, expected: &'static str) -> GuestError {
        GuestError::WrongState {
            name: self.spec.name.clone(),
            found: found.into(),
            expected,
        }
    }

    /// Whether QEMU could put anything in order before it ends. While its device state is loaded, which may wait for a page for
    /// ever, there is nothing, and whoever loads holds on to the phase.
    fn can_quit(&self) -> bool {
        match self.phase.try_lock() {
            Ok(phase) => *phase != Phase::Incoming,
            Err(TryLockError::Poisoned(phase)) => **phase.get_ref() != Phase::Incoming,
            Err(TryLockError::WouldBlock) => false,
        }
    }

    pub(crate) fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What it did when it was last asked or told.
    pub(crate) fn known_state(&self) -> GuestState {
        *self.last_state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn set_state(&self, state: GuestState) {
        *self.last_state.lock().unwrap_or_else(PoisonError::into_inner) = state;
    }
}

impl Guest for QemuGuest {
    fn spec(&self) -> &GuestSpec {
        &self.spec
    }

    fn ram(&self) -> &Arc<GuestRam> {
        &self.ram
    }

    fn state(&self) -> GuestState {
        if !self.process.is_alive() {
            return GuestState::Gone;
        }
        // While QEMU waits for a page it does not answer: then the last state known is the best answer.
        if let Ok(status) = self.qmp.run_within(&QueryStatus {}, STATUS_TIMEOUT) {
            self.set_state(state_of(&status.status));
        }
        self.known_state()
    }

    fn pid(&self) -> Option<u32> {
        Some(self.process.pid())
    }

    fn pause(&self) -> Result<()> {
        match *self.phase() {
            Phase::Live => {}
            Phase::Incoming | Phase::Saved if !self.process.is_alive() => return Err(self.gone()),
            Phase::Incoming | Phase::Saved => return Ok(()),
            Phase::Broken => return Err(self.wrong_state("broken by a failed load", "live")),
        }
        self.hold_passes()?;
        self.asked(self.qmp.run_within(&Stop {}, SWITCH_TIMEOUT), "pausing the guest")?;
        self.set_state(GuestState::Paused);
        Ok(())
    }

    fn resume(&self) -> Result<()> {
        let mut phase = self.phase();
        match *phase {
            Phase::Live | Phase::Saved => {}
            // QEMU would take `cont` now as a wish to run as soon as anything is loaded.
            Phase::Incoming => return Err(self.wrong_state("incoming", "loaded")),
            Phase::Broken => return Err(self.wrong_state("broken by a failed load", "paused")),
        }
        self.asked(self.cont(), "resuming the guest")?;
        *phase = Phase::Live;
        self.set_state(GuestState::Running);
        self.release_passes();
        Ok(())
    }

    fn destroy(&self) {
        // Only a live guest has anything to put in order (its disks); one that waits for pages cannot answer.
        if self.process.is_alive() {
            let asked = self.can_quit() && self.qmp.run_within(&Quit {}, STATUS_TIMEOUT).is_ok();
            if !(asked && self.process.wait(QUIT_TIMEOUT)) {
                debug!(pid = self.process.pid(), "QEMU is killed");
                self.process.kill();
            }
            if !self.process.wait(QUIT_TIMEOUT) {
                warn!(pid = self.process.pid(), "QEMU does not end");
            }
        }
        if self.qmp.path() == launch::qmp_path(&self.dir) {
            let _ = fs::remove_file(self.qmp.path());
        }
        self.record.remove();
    }
}

/// The guest's state by QEMU's run state. Whatever else stops a guest (an I/O error, a shutdown), it stands still.
fn state_of(run_state: &str) -> GuestState {
    match run_state {
        "running" | "debug" => GuestState::Running,
        "inmigrate" => GuestState::Incoming,
        _ => GuestState::Paused,
    }
}

/// How to find the RAM files again.
pub(crate) fn block_records(ram: &GuestRam) -> Vec<BlockRecord> {
    let record = |(index, block): (usize, &vmferry_core::RamBlock)| {
        let memory = ram.block(index);
        let file = FileId::of(memory.fd()).expect("an open file tells its identity");
        BlockRecord {
            name: block.name.clone(),
            bytes: memory.len(),
            file_offset: memory.file_offset(),
            major: file.major,
            minor: file.minor,
            inode: file.inode,
        }
    };
    ram.layout().blocks().iter().enumerate().map(record).collect()
}

/// Maps the RAM of a QEMU that runs.
pub(crate) fn reopen_ram(pid: u32, blocks: &[BlockRecord]) -> Result<GuestRam> {
    let failed = |error: Box<dyn std::error::Error + Send + Sync>| {
        GuestError::operation(format!("mapping the RAM of QEMU (pid {pid})"), error)
    };
    let layout = vmferry_core::RamLayout::new(
        blocks
            .iter()
            .map(|block| vmferry_core::RamBlock {
                name: block.name.clone(),
                pages: block.bytes / vmferry_core::PAGE_SIZE,
            })
            .collect(),
    )
    .map_err(|error| failed(error.into()))?;
    let mut memory = Vec::with_capacity(blocks.len());
    for block in blocks {
        let file = open_file_of(pid, block.file()).map_err(|error| failed(error.into()))?;
        let mapped = vmferry_memory::SharedMemory::from_fd(file, block.file_offset, block.bytes)
            .map_err(|error| failed(error.into()))?;
        memory.push(Arc::new(mapped));
    }
    Ok(GuestRam::new(layout, memory))
}
