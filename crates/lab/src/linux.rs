//! The Linux guest of the guest image, as QEMU has to be told.

use std::net::SocketAddr;
use std::path::Path;
use std::time::Duration;

use vmferry_guest::GuestState;

use crate::error::{LabError, Result};
use crate::guards::Interrupt;
use crate::hosts::Host;
use crate::memcached::Connection;
use crate::namespace::Namespace;
use crate::requirements::{INITRAMFS, KERNEL};
use crate::topology::{GUEST, PREFIX_BITS, TAP};

const MEMCACHED_PORT: u16 = 11211;
const MAC: &str = "52:54:00:0a:4d:0a";
/// How long the guest may take to boot: tens of times what it takes.
const BOOT_LIMIT: Duration = Duration::from_secs(180);
/// How long memcached in the guest may take to answer when it is asked whether it is there.
const PATIENCE: Duration = Duration::from_secs(1);

/// Where memcached in the guest listens.
pub fn memcached() -> SocketAddr {
    SocketAddr::from((GUEST, MEMCACHED_PORT))
}

/// What the guest does.
#[derive(Clone, Debug, Default)]
pub struct LinuxGuest {
    /// Whether it has a network card on the host's tap, and the lab's address for guests.
    pub network: bool,
    /// MiB of items that its memcached keeps; none runs where absent.
    pub memcached_mib: Option<u64>,
    /// Its load, as the guest image understands it: `write:64:200`, `idle`.
    pub load: Option<String>,
    /// Whether the agent runs in it.
    pub agent: bool,
}

impl LinuxGuest {
    /// QEMU's arguments for it, the same on both hosts. `image` is the folder that `cargo xtask image` makes; the file
    /// `console` is appended to by one QEMU after the other.
    ///
    /// # Errors
    /// When the image is none.
    pub fn args(&self, image: &Path, console: &Path) -> Result<Vec<String>> {
        let file = |name: &str| image.join(name).display().to_string();
        let mut args: Vec<String> = [
            "-kernel",
            &file(KERNEL),
            "-initrd",
            &file(INITRAMFS),
            "-append",
            &format!("{}{}", kernel_parameters(image)?, self.parameters()),
            "-device",
            "virtio-rng-pci",
            // Where it dies it shall not begin again.
            "-no-reboot",
            "-chardev",
            &format!("file,id=console,path={},append=on", console.display()),
            "-serial",
            "chardev:console",
        ]
        .map(str::to_owned)
        .into();
        if self.network {
            args.extend([
                "-netdev".to_owned(),
                format!("tap,id=net0,ifname={TAP},script=no,downscript=no"),
                "-device".to_owned(),
                format!("virtio-net-pci,netdev=net0,mac={MAC},romfile="),
            ]);
        }
        Ok(args)
    }

    /// What its init script reads from the kernel's command line.
    fn parameters(&self) -> String {
        let mut parameters = String::new();
        if self.network {
            parameters += &format!(" vmferry.ip={GUEST}/{PREFIX_BITS}");
        }
        if let Some(mib) = self.memcached_mib {
            parameters += &format!(" vmferry.memcached={mib}");
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

/// Waits until the guest `name` printed `text` on its console.
///
/// # Errors
/// See [`wait_for_memcached`].
pub fn wait_for_text(
    place: &impl Place,
    name: &str,
    console: &Path,
    text: &str,
    interrupt: &Interrupt,
) -> Result<()> {
    let what = format!("{text:?} on the guest's console");
    interrupt.wait_for(&what, BOOT_LIMIT, || {
        place.check_alive(name)?;
        let printed = std::fs::read(console).unwrap_or_default();
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

    fn append(guest: &LinuxGuest) -> (String, Vec<String>) {
        let image = tempfile::tempdir().unwrap();
        std::fs::write(
            image.path().join("image.json"),
            r#"{"kernel_parameters": "quiet"}"#,
        )
        .unwrap();
        let args = guest.args(image.path(), Path::new("/console")).unwrap();
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
        let (parameters, args) = append(&idle);
        assert_eq!(parameters, "quiet vmferry.load=idle vmferry.agent");
        assert!(!args.iter().any(|arg| arg.contains("tap")), "{args:?}");

        let server = LinuxGuest {
            network: true,
            memcached_mib: Some(64),
            ..LinuxGuest::default()
        };
        let (parameters, args) = append(&server);
        assert_eq!(parameters, "quiet vmferry.ip=10.77.0.10/24 vmferry.memcached=64");
        assert!(args.iter().any(|arg| arg.contains("ifname=guest0")), "{args:?}");
    }

    #[test]
    fn an_image_that_is_none_is_named() {
        let image = tempfile::tempdir().unwrap();
        let refused = |content: Option<&str>| {
            if let Some(content) = content {
                std::fs::write(image.path().join("image.json"), content).unwrap();
            }
            let error = LinuxGuest::default().args(image.path(), Path::new("/c"));
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
