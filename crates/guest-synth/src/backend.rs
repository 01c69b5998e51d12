//! How synthetic guests come to be.

use std::collections::HashMap;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError, Weak};

use vmferry_core::RamLayout;
use vmferry_guest::{Backend, Guest, GuestError, GuestSpec, GuestState, Result, Vm};

use crate::config::SynthConfig;
use crate::guest::{Start, SynthGuest};

/// Name of the backend in specifications.
const NAME: &str = "synth";

/// Makes synthetic guests. They live in this process, and end with it. Clones share their guests.
#[derive(Clone, Default)]
pub struct SynthBackend {
    guests: Arc<Mutex<HashMap<String, Weak<SynthGuest>>>>,
}

impl SynthBackend {
    /// A backend that has made no guest yet.
    pub fn new() -> Self {
        Self::default()
    }

    /// The specification of a guest.
    pub fn spec(name: impl Into<String>, config: &SynthConfig) -> GuestSpec {
        GuestSpec {
            name: name.into(),
            backend: NAME.into(),
            config: config.to_json(),
        }
    }

    /// The guest of that name that this backend made, as long as somebody holds it: for its statistics.
    pub fn find(&self, name: &str) -> Option<Arc<SynthGuest>> {
        self.guests
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(name)?
            .upgrade()
    }

    /// As [`Backend::launch`].
    ///
    /// # Errors
    /// As there.
    pub fn launch_guest(&self, spec: &GuestSpec) -> Result<Arc<SynthGuest>> {
        let guest = self.create(spec, None, Start::Fresh)?;
        guest.resume()?;
        Ok(guest)
    }

    /// As [`Backend::launch_incoming`].
    ///
    /// # Errors
    /// As there.
    pub fn launch_incoming_guest(&self, spec: &GuestSpec, layout: &RamLayout) -> Result<Arc<SynthGuest>> {
        self.create(spec, Some(layout), Start::Incoming)
    }

    fn create(&self, spec: &GuestSpec, layout: Option<&RamLayout>, start: Start) -> Result<Arc<SynthGuest>> {
        let config = self.read_config(spec)?;
        check_layout(spec, &config, layout)?;
        check_memory(spec, &config)?;
        let guest = Arc::new(SynthGuest::create(spec, config, start)?);
        let mut guests = self.guests.lock().unwrap_or_else(PoisonError::into_inner);
        guests.retain(|_, guest| guest.strong_count() > 0);
        guests.insert(spec.name.clone(), Arc::downgrade(&guest));
        Ok(guest)
    }

    fn read_config(&self, spec: &GuestSpec) -> Result<SynthConfig> {
        if spec.backend != NAME {
            return Err(unsuitable(
                spec,
                format!("it is a guest of {:?}", spec.backend),
                "use that backend",
            ));
        }
        if let Some(guest) = self.find(&spec.name)
            && guest.state() != GuestState::Gone
        {
            return Err(unsuitable(
                spec,
                "a guest of this name is here already".into(),
                "choose another name",
            ));
        }
        SynthConfig::from_json(&spec.config)
            .map_err(|e| unsuitable(spec, e.to_string(), "correct its configuration"))
    }
}

impl Backend for SynthBackend {
    fn name(&self) -> &'static str {
        NAME
    }

    fn launch(&self, spec: &GuestSpec, _dir: &Path) -> Result<Arc<dyn Vm>> {
        Ok(self.launch_guest(spec)?)
    }

    fn launch_incoming(&self, spec: &GuestSpec, layout: &RamLayout, _dir: &Path) -> Result<Arc<dyn Vm>> {
        Ok(self.launch_incoming_guest(spec, layout)?)
    }

    fn reopen(&self, spec: &GuestSpec, _dir: &Path) -> Result<Arc<dyn Vm>> {
        Err(GuestError::Gone {
            name: spec.name.clone(),
            why: "synthetic guests live in the daemon's process and ended with it".into(),
        })
    }
}

fn check_layout(spec: &GuestSpec, config: &SynthConfig, layout: Option<&RamLayout>) -> Result<()> {
    let own = RamLayout::single("ram", config.memory_bytes)
        .map_err(|e| GuestError::operation("laying out RAM", e))?;
    match layout {
        Some(layout) if *layout != own => {
            let problem = format!(
                "its RAM would be one block of {} bytes, but {} blocks of {} bytes are announced",
                own.bytes(),
                layout.blocks().len(),
                layout.bytes()
            );
            Err(unsuitable(
                spec,
                problem,
                "start it with the configuration it has at the source",
            ))
        }
        _ => Ok(()),
    }
}

/// Refuses a guest whose data does not fit: what overcommits memory is killed later, with other things.
fn check_memory(spec: &GuestSpec, config: &SynthConfig) -> Result<()> {
    let Some(available_bytes) = available_memory_bytes() else {
        return Ok(());
    };
    let needed_bytes = config.configured_bytes();
    if needed_bytes <= available_bytes {
        return Ok(());
    }
    let problem = format!(
        "its data needs {} MiB of memory, {} MiB are available",
        needed_bytes.div_ceil(1 << 20),
        available_bytes >> 20
    );
    Err(unsuitable(spec, problem, "free memory or choose another host"))
}

fn available_memory_bytes() -> Option<u64> {
    let meminfo = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = meminfo
        .lines()
        .find_map(|line| line.strip_prefix("MemAvailable:"))?;
    let kib: u64 = line.trim().strip_suffix(" kB")?.trim().parse().ok()?;
    Some(kib << 10)
}

fn unsuitable(spec: &GuestSpec, problem: String, mend: &str) -> GuestError {
    GuestError::Unsuitable {
        name: spec.name.clone(),
        problem,
        mend: mend.into(),
    }
}
