//! The Linux guest of the guest image, as QEMU has to be told.

use std::io::{Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

use rand_xoshiro::SplitMix64;
use rand_xoshiro::rand_core::{Rng as _, SeedableRng as _};
use vmferry_guest::GuestState;

use crate::bench::scenario::Disk;
use crate::error::{LabError, Result};
use crate::guards::Interrupt;
use crate::hosts::Host;
use crate::load::memcached::Connection;
use crate::namespace::Namespace;
use crate::requirements::{KERNEL, initramfs};
use crate::topology::{PREFIX_BITS, Seat};
use crate::workload::{MEMCACHED_PORT, Workload};

/// How long the guest may take to boot: tens of times what it takes.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// How long memcached in the guest may take to answer when it is asked whether it is there.
const PATIENCE: Duration = Duration::from_secs(1);
/// Name of its disk in the run's folder.
const DISK: &str = "disk.raw";
/// The same of one that it may write.
const OWN_DISK: &str = "own.raw";

/// Where memcached in the guest listens.
pub fn memcached() -> std::net::SocketAddr {
    std::net::SocketAddr::from((Seat::MOVED.address, MEMCACHED_PORT))
}

/// What the guest does.
#[derive(Clone, Debug, Default)]
pub struct LinuxGuest {
    /// Where it is connected.
    pub seat: Seat,
    /// What clients see it do. Where it has clients, the guest has a network card on the host's tap, and the lab's address
    /// for guests.
    pub workload: Workload,
    /// Loads that nobody outside sees, as the guest image understands them: `write:64:200`, `idle`.
    pub load: Option<String>,
    /// Whether the agent runs in it.
    pub agent: bool,
    /// A disk that it may write.
    pub disk: Option<Disk>,
}

impl LinuxGuest {
    /// QEMU's arguments for it, the same on both hosts. `image` is the folder that `cargo xtask image` makes. In `folder`, that
    /// of the run, its disk is made where it has one, and its console's file, which one QEMU after the other appends to.
    ///
    /// # Errors
    /// When the image is none, or has not what the workload needs; when the disk cannot be made.
    pub fn args(&self, image: &Path, folder: &Path) -> Result<Vec<String>> {
        let initramfs = image.join(initramfs(self.workload.layer()));
        if let Some(layer) = self.workload.layer()
            && !initramfs.is_file()
        {
            return Err(LabError::Layer {
                path: initramfs,
                layer,
            });
        }
        let mut args: Vec<String> = [
            "-kernel",
            &image.join(KERNEL).display().to_string(),
            "-initrd",
            &initramfs.display().to_string(),
            "-append",
            &format!("{}{}", kernel_parameters(image)?, self.parameters()),
            "-device",
            "virtio-rng-pci",
            // Where it dies it shall not begin again.
            "-no-reboot",
            "-chardev",
            &format!("file,id=console,path={},append=on", console(folder).display()),
            "-serial",
            "chardev:console",
        ]
        .map(str::to_owned)
        .into();
        if self.workload.has_client() {
            args.extend([
                "-netdev".to_owned(),
                format!("tap,id=net0,ifname={},script=no,downscript=no", self.seat.tap),
                "-device".to_owned(),
                format!("virtio-net-pci,netdev=net0,mac={},romfile=", self.seat.mac),
            ]);
        }
        if let Some(mib) = self.workload.disk_mib() {
            let disk = make_disk(folder, mib)?;
            args.extend([
                "-drive".to_owned(),
                // Both QEMUs have it open at once, which is safe in every cache mode because nobody writes.
                format!("file={},format=raw,if=none,id=disk,readonly=on", disk.display()),
                "-device".to_owned(),
                "virtio-blk-pci,drive=disk".to_owned(),
            ]);
        }
        if let Some(disk) = self.disk {
            let path = make_own_disk(folder, disk)?;
            args.extend([
                "-drive".to_owned(),
                format!("file={},format=raw,if=none,id=disk,discard=unmap", path.display()),
                "-device".to_owned(),
                "virtio-blk-pci,drive=disk".to_owned(),
            ]);
        }
        Ok(args)
    }

    /// What its init script reads from the kernel's command line.
    fn parameters(&self) -> String {
        let mut parameters = String::new();
        if self.workload.has_client() {
            parameters += &format!(" vmferry.ip={}/{PREFIX_BITS}", self.seat.address);
        }
        if let Some(parameter) = self.workload.parameter() {
            parameters += &format!(" {parameter}");
        }
        if let Some(load) = &self.load {
            parameters += &format!(" vmferry.load={load}");
        }
        if self.agent {
            parameters += " vmferry.agent";
        }
        parameters
    }
}

/// What the guest of a run prints, in the run's folder.
pub fn console(folder: &Path) -> PathBuf {
    folder.join("console.log")
}

/// A disk that the guest may write, with data at its end: by turns a MiB of noise and one of which a half is zeros, as files are on
/// average.
fn make_own_disk(folder: &Path, disk: Disk) -> Result<PathBuf> {
    let path = folder.join(OWN_DISK);
    let mut noise = SplitMix64::seed_from_u64(disk.mib);
    let mut piece = vec![0; 1 << 20];
    let mut make = || {
        let mut file = std::fs::File::create(&path)?;
        file.set_len(disk.mib << 20)?;
        file.seek(SeekFrom::Start((disk.mib - disk.filled_mib) << 20))?;
        for mib in 0..disk.filled_mib {
            noise.fill_bytes(&mut piece);
            if mib % 2 == 1 {
                piece.chunks_exact_mut(64).for_each(|part| part[32..].fill(0));
            }
            file.write_all(&piece)?;
        }
        Ok(())
    };
    make().map_err(LabError::system(format!("make the disk {}", path.display())))?;
    Ok(path)
}

/// A disk of noise, of which no two parts are alike.
fn make_disk(folder: &Path, mib: u64) -> Result<PathBuf> {
    let path = folder.join(DISK);
    let mut noise = SplitMix64::seed_from_u64(mib);
    let mut piece = vec![0; 1 << 20];
    let mut write = || {
        let mut file = std::fs::File::create(&path)?;
        for _ in 0..mib {
            noise.fill_bytes(&mut piece);
            file.write_all(&piece)?;
        }
        Ok(())
    };
    write().map_err(LabError::system(format!("make the disk {}", path.display())))?;
    Ok(path)
}

/// Waits until memcached in the guest `name` answers somebody in `client`, and returns its version.
///
/// # Errors
/// When the guest ends, or takes far too long.
pub fn wait_for_memcached(
    place: &impl Place,
    name: &str,
    client: &Namespace,
    interrupt: &Interrupt,
) -> Result<String> {
    interrupt.wait_for("memcached in the guest", BOOT_LIMIT, || {
        place.check_alive(name)?;
        let ask = || Connection::open(memcached(), PATIENCE)?.version();
        Ok(client.enter(ask)?.ok())
    })
}

/// Waits until the guest `name`, whose run has this folder, printed `text` on its console.
///
/// # Errors
/// See [`wait_for_memcached`].
pub fn wait_for_text(
    place: &impl Place,
    name: &str,
    folder: &Path,
    text: &str,
    interrupt: &Interrupt,
) -> Result<()> {
    let what = format!("{text:?} on the guest's console");
    interrupt.wait_for(&what, BOOT_LIMIT, || {
        place.check_alive(name)?;
        let printed = std::fs::read(console(folder)).unwrap_or_default();
        Ok(String::from_utf8_lossy(&printed).contains(text).then_some(()))
    })
}

/// Where a guest boots.
pub trait Place {
    /// Whether the guest `name` is still there.
    ///
    /// # Errors
    /// When it ended, or that is not known.
    fn check_alive(&self, name: &str) -> Result<()>;
}

impl Place for Host {
    fn check_alive(&self, name: &str) -> Result<()> {
        match self.guest(name)?.state {
            None | Some(GuestState::Gone) => Err(LabError::Guest("ended while it booted".into())),
            Some(_) => Ok(()),
        }
    }
}

/// What `cargo xtask image` says the kernel has to be told.
fn kernel_parameters(image: &Path) -> Result<String> {
    let path = image.join("image.json");
    let wrong = |why: String| LabError::Image {
        path: path.clone(),
        why,
    };
    let text = std::fs::read(&path).map_err(|error| wrong(format!("cannot be read ({error})")))?;
    let about: serde_json::Value =
        serde_json::from_slice(&text).map_err(|error| wrong(format!("is not understood ({error})")))?;
    let parameters = about["kernel_parameters"].as_str();
    Ok(parameters
        .ok_or_else(|| wrong("has no kernel_parameters".into()))?
        .to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(layers: &[&str]) -> tempfile::TempDir {
        let image = tempfile::tempdir().unwrap();
        let write = |name: &str, text: &str| std::fs::write(image.path().join(name), text).unwrap();
        write("image.json", r#"{"kernel_parameters": "quiet"}"#);
        for layer in layers {
            write(&initramfs(Some(layer)), "");
        }
        image
    }

    fn append(guest: &LinuxGuest, layers: &[&str]) -> (String, Vec<String>) {
        let image = image(layers);
        let args = guest.args(image.path(), image.path()).unwrap();
        let at = args.iter().position(|arg| arg == "-append").unwrap();
        (args[at + 1].clone(), args)
    }

    #[test]
    fn the_guest_is_told_what_to_do() {
        let idle = LinuxGuest {
            agent: true,
            load: Some("idle".into()),
            ..LinuxGuest::default()
        };
        let (parameters, args) = append(&idle, &[]);
        assert_eq!(parameters, "quiet vmferry.load=idle vmferry.agent");
        assert!(!args.iter().any(|arg| arg.contains("tap")), "{args:?}");

        let worker = LinuxGuest {
            workload: Workload::Cpu { percent: 40 },
            ..LinuxGuest::default()
        };
        let (parameters, args) = append(&worker, &[]);
        assert_eq!(parameters, "quiet vmferry.ip=10.77.0.10/24 vmferry.work=cpu:40");
        assert!(args.iter().any(|arg| arg.contains("ifname=guest0")), "{args:?}");
    }

    #[test]
    fn a_layer_is_given_to_the_guest_that_needs_it_and_missed_where_it_is_not() {
        let guest = LinuxGuest {
            workload: Workload::Compile {},
            ..LinuxGuest::default()
        };
        let (_, args) = append(&guest, &["compile"]);
        assert!(
            args.iter().any(|arg| arg.ends_with("/initramfs-compile.cpio")),
            "{args:?}"
        );
        let image = image(&["redis"]);
        let error = guest.args(image.path(), image.path()).unwrap_err().to_string();
        assert!(error.contains("`cargo xtask image --layers compile`"), "{error}");
    }

    #[test]
    fn the_disk_that_is_read_is_noise() {
        let image = image(&[]);
        let guest = LinuxGuest {
            workload: Workload::DiskRead { mib: 2 },
            ..LinuxGuest::default()
        };
        let args = guest.args(image.path(), image.path()).unwrap();
        assert!(args.iter().any(|arg| arg.contains("readonly=on")), "{args:?}");
        let disk = std::fs::read(image.path().join(DISK)).unwrap();
        assert_eq!(disk.len(), 2 << 20);
        assert_ne!(disk[..1 << 20], disk[1 << 20..]);
    }

    #[test]
    fn a_disk_of_its_own_is_a_hole_with_data_behind_it() {
        use std::os::unix::fs::MetadataExt as _;
        let image = image(&[]);
        let guest = LinuxGuest {
            disk: Some(Disk {
                mib: 16,
                filled_mib: 2,
            }),
            ..LinuxGuest::default()
        };
        guest.args(image.path(), image.path()).unwrap();
        let path = image.path().join(OWN_DISK);
        let (disk, about) = (std::fs::read(&path).unwrap(), std::fs::metadata(&path).unwrap());
        assert_eq!(disk.len(), 16 << 20);
        assert!(
            disk[..14 << 20].iter().all(|byte| *byte == 0) && disk[14 << 20..].iter().any(|byte| *byte != 0)
        );
        assert!(about.blocks() * 512 < 4 << 20, "the rest takes no room");
    }

    #[test]
    fn an_image_that_is_none_is_named() {
        let image = tempfile::tempdir().unwrap();
        let refused = |content: Option<&str>| {
            if let Some(content) = content {
                std::fs::write(image.path().join("image.json"), content).unwrap();
            }
            let error = LinuxGuest::default().args(image.path(), image.path());
            error.unwrap_err().to_string()
        };
        for (content, why) in [
            (None, "cannot be read"),
            (Some("{"), "is not understood"),
            (Some("{}"), "no kernel_parameters"),
        ] {
            let error = refused(content);
            assert!(error.contains(why) && error.contains("image.json"), "{error}");
        }
    }
}
