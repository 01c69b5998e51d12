//! A Linux guest of the test image.

use std::path::Path;

use vmferry_guest::GuestSpec;
use vmferry_guest_qemu::QemuConfig;

use crate::console::Console;
use crate::require::image_dir;

/// The rate of the processor's clock under TCG, so that the kernel need not measure it: on a busy machine that fails, and a microvm,
/// which has no other clock, never boots then.
const TCG_CLOCK: &str = "tsc_early_khz=1000000";

/// What a test guest consists of.
pub struct TestGuest {
    /// Its specification.
    pub spec: GuestSpec,
    /// What it prints.
    pub console: Console,
}

impl TestGuest {
    /// A guest of `memory_mib` MiB that runs `load` (see the init script of the guest image) under TCG, with
    /// its console in `dir` and these further QEMU arguments.
    pub fn new(name: &str, dir: &Path, memory_mib: u64, load: &str, args: &[&str]) -> Self {
        let console = dir.join(format!("{name}.console"));
        let image = image_dir();
        let parameters = std::fs::read(image.join("image.json"))
            .ok()
            .and_then(|json| serde_json::from_slice::<serde_json::Value>(&json).ok())
            .and_then(|image| image["kernel_parameters"].as_str().map(str::to_owned))
            .unwrap_or_else(|| "console=ttyS0 panic=-1".into());
        let mut all = vec![
            "-kernel".to_owned(),
            image.join("vmlinuz").display().to_string(),
            "-initrd".into(),
            image.join("initramfs.cpio").display().to_string(),
            "-append".into(),
            format!("{parameters} {TCG_CLOCK} vmferry.load={load}"),
            "-chardev".into(),
            format!("file,id=console,path={},append=on", console.display()),
            "-serial".into(),
            "chardev:console".into(),
        ];
        all.extend(args.iter().map(|&arg| arg.to_owned()));
        let config = QemuConfig::new(memory_mib << 20, all);
        Self {
            spec: config.into_spec(name),
            console: Console::new(&console),
        }
    }

    /// The same with a port for the agent.
    ///
    /// # Panics
    /// Never: the specification was made here.
    #[must_use]
    pub fn with_agent(self) -> Self {
        let config = QemuConfig {
            agent: true,
            ..QemuConfig::from_spec(&self.spec).expect("it was made here")
        };
        Self {
            spec: config.into_spec(self.spec.name),
            ..self
        }
    }
}
