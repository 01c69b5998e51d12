//! The guest image: a distribution's kernel, and an initramfs with busybox, memcached, its libraries, the virtio modules,
//! a self-checking load and the script that starts them; and layers of further programs.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};

use crate::cache::{self, Cache};
use crate::cpio::Tree;
use crate::kernel::Kernel;
use crate::layer::Layer;
use crate::modules::{self, Module};
use crate::{command, libraries};

const INIT: &str = include_str!("guest-init.sh");

/// The commands of busybox that the guest's script uses, and some to look around with.
pub(crate) const APPLETS: [&str; 34] = [
    "bzip2", "cat", "chmod", "chown", "cp", "dd", "df", "dmesg", "echo", "free", "grep", "gzip", "insmod",
    "ip", "kill", "ls", "lsmod", "mkdir", "mount", "nc", "ping", "poweroff", "ps", "sh", "sleep", "su",
    "sync", "top", "tr", "true", "umount", "uname", "usleep", "wc",
];

/// What the kernel should be told so that its console is the serial port and it boots fast: self-tests and parts that the
/// guest has no use for take 0.7 s of 3 s under TCG.
const KERNEL_PARAMETERS: &str =
    "console=ttyS0 quiet panic=-1 random.trust_cpu=on cryptomgr.notests apparmor=0 audit=0";

/// A guest image in the cache.
pub(crate) struct Image {
    /// Holds `vmlinuz`, `initramfs.cpio` and `image.json`; of each layer `layer-NAME.cpio`, and `initramfs-NAME.cpio`, which is
    /// the base and that layer.
    pub(crate) folder: PathBuf,
    /// One line about what is in it.
    pub(crate) summary: String,
}

/// Builds the image from what is installed and in the cache, with these layers and those that are there already; fetches a kernel
/// when there is none. Files are written only when they differ, each by a rename, so that whoever boots the image meanwhile is
/// not disturbed.
pub(crate) fn build(cache: &Cache, layers: &[Layer]) -> Result<Image> {
    let kernel = Kernel::get(cache)?;
    let modules = modules::in_load_order(&kernel.modules())?;
    let tree = file_tree(&modules)?;
    let initramfs = tree.to_newc();
    let vmlinuz_path = kernel.vmlinuz();
    let vmlinuz =
        fs::read(&vmlinuz_path).with_context(|| format!("cannot read {}", vmlinuz_path.display()))?;
    let folder = cache.guest();
    fs::create_dir_all(&folder).with_context(|| format!("cannot make {}", folder.display()))?;
    let mut built = Vec::new();
    for layer in Layer::ALL {
        built.extend(build_layer(layer, layers.contains(&layer), &folder, &initramfs)?);
    }
    let about = serde_json::json!({
        "kernel_release": kernel.release,
        "kernel_package": kernel.package,
        "kernel_parameters": KERNEL_PARAMETERS,
        "modules": modules.iter().map(|module| module.name.as_str()).collect::<Vec<_>>(),
        "contents": tree.paths().collect::<Vec<_>>(),
        "vmlinuz_bytes": vmlinuz.len(),
        "initramfs_bytes": initramfs.len(),
        "layers": built.iter().map(|layer| (layer.name, layer.bytes)).collect::<BTreeMap<_, _>>(),
    });

    let mut written = built.iter().any(|layer| layer.written);
    written |= cache::replace(&folder.join("vmlinuz"), &vmlinuz)?;
    written |= cache::replace(&folder.join("initramfs.cpio"), &initramfs)?;
    written |= cache::replace(&folder.join("image.json"), format!("{about:#}\n").as_bytes())?;
    let mib = |bytes: usize| bytes as f64 / f64::from(1 << 20);
    let with = built
        .iter()
        .map(|layer| format!(", layer {} of {:.1} MiB", layer.name, mib(layer.bytes)));
    let summary = format!(
        "{}: Linux {}, initramfs of {:.1} MiB{}, {}",
        folder.display(),
        kernel.release,
        mib(initramfs.len()),
        with.collect::<String>(),
        if written { "built" } else { "up to date" },
    );
    Ok(Image { folder, summary })
}

/// A layer of the image.
struct Built {
    name: &'static str,
    bytes: usize,
    written: bool,
}

/// Builds a layer where it is wanted, and joins it with the base, which may have changed, where it is there.
fn build_layer(layer: Layer, wanted: bool, folder: &Path, base: &[u8]) -> Result<Option<Built>> {
    let name = layer.name();
    let path = folder.join(format!("layer-{name}.cpio"));
    let mut written = false;
    if wanted {
        written = cache::replace(&path, &layer.tree()?.to_newc())?;
    } else if !path.exists() {
        return Ok(None);
    }
    let archive = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let joined = [base, &archive].concat();
    written |= cache::replace(&folder.join(format!("initramfs-{name}.cpio")), &joined)?;
    Ok(Some(Built {
        name,
        bytes: archive.len(),
        written,
    }))
}

fn file_tree(modules: &[Module]) -> Result<Tree> {
    let mut tree = Tree::new();
    tree.file("init", 0o755, INIT.as_bytes().to_vec())?;
    for folder in ["proc", "sys", "tmp", "run"] {
        tree.directory(folder)?;
    }
    // The kernel opens the console before anything can mount a devtmpfs.
    tree.char_device("dev/console", 0o600, 5, 1)?;
    tree.char_device("dev/null", 0o666, 1, 3)?;
    // Servers look up the user they are to run as.
    let users = "root:x:0:0:root:/:/bin/sh\npostgres:x:70:70:postgres:/:/bin/sh\n";
    tree.file("etc/passwd", 0o644, users.into())?;
    tree.file("etc/group", 0o644, b"root:x:0:\npostgres:x:70:\n".to_vec())?;
    tree.file(
        "etc/nsswitch.conf",
        0o644,
        b"passwd: files\ngroup: files\n".to_vec(),
    )?;

    let busybox = libraries::program("busybox", "busybox-static")?;
    add_program(&mut tree, "bin/busybox", &busybox)?;
    for applet in APPLETS {
        tree.symlink(&format!("bin/{applet}"), "busybox")?;
    }
    add_program(
        &mut tree,
        "bin/memcached",
        &libraries::program("memcached", "memcached")?,
    )?;
    let [load, agent] = build_static(["guest-load", "vmferry-agent"])?;
    add_program(&mut tree, "bin/guest-load", &load)?;
    add_program(&mut tree, "bin/vmferry-agent", &agent)?;

    let order: String = modules
        .iter()
        .map(|module| format!("{}\n", module.name))
        .collect();
    tree.file("lib/modules/order", 0o644, order.into_bytes())?;
    for Module { name, content } in modules {
        tree.file(&format!("lib/modules/{name}.ko"), 0o644, content.clone())?;
    }
    Ok(tree)
}

/// Adds the program and its libraries, these under the paths at which the host's dynamic linker found them.
pub(crate) fn add_program(tree: &mut Tree, destination: &str, program: &Path) -> Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("cannot read {}", path.display()));
    tree.file(destination, 0o755, read(program)?)?;
    for library in libraries::needed_by(program)? {
        let name = library.to_string_lossy();
        tree.file(name.trim_start_matches('/'), 0o755, read(&library)?)?;
    }
    Ok(())
}

/// Builds programs for the guest as static binaries. They have a target folder of their own, so that their flags do not make
/// cargo rebuild everything else.
fn build_static<const N: usize>(programs: [&str; N]) -> Result<[PathBuf; N]> {
    const TARGET: &str = "x86_64-unknown-linux-gnu";
    let target_folder = crate::repository().join("target/guest");
    let mut cargo = command::cargo();
    cargo.args(["build", "--quiet", "--release", "--target", TARGET]);
    cargo.args(["--package", "vmferry-guest-load", "--package", "vmferry-agent"]);
    cargo.arg("--target-dir").arg(&target_folder);
    cargo.env(
        "CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUSTFLAGS",
        "-C target-feature=+crt-static -C strip=symbols",
    );
    cargo.env_remove("RUSTFLAGS");
    command::run(&mut cargo).context("cannot build the guest's programs")?;
    let folder = target_folder.join(TARGET).join("release");
    Ok(programs.map(|program| folder.join(program)))
}
