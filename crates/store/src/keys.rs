//! Names of objects.

use object_store::path::Path;

use crate::hash::Hash;
use crate::id::CheckpointId;

pub(crate) const MANIFEST: &str = "manifest";
pub(crate) const DELETED: &str = "deleted";

/// All checkpoints, or those of a VM.
pub(crate) fn checkpoints(vm: Option<&str>) -> Path {
    let all = Path::from("checkpoints");
    vm.map_or(all.clone(), |vm| all.join(vm))
}

pub(crate) fn manifest(id: &CheckpointId) -> Path {
    checkpoints(Some(id.vm())).join(format!("{}.{MANIFEST}", id.number()))
}

/// The mark of a deleted checkpoint.
pub(crate) fn deleted(id: &CheckpointId) -> Path {
    checkpoints(Some(id.vm())).join(format!("{}.{DELETED}", id.number()))
}

/// The mark of a checkpoint that was resumed.
pub(crate) fn resumed(id: &CheckpointId) -> Path {
    checkpoints(Some(id.vm())).join(format!("{}.resumed", id.number()))
}

/// The checkpoint that an object below [`checkpoints`] belongs to, and its kind.
pub(crate) fn read_checkpoint(object: &Path) -> Option<(CheckpointId, String)> {
    let mut parts = object.parts().skip(1);
    let (vm, file) = (parts.next()?, parts.next()?);
    let (number, kind) = file.as_ref().split_once('.')?;
    let id = format!("{}/{number}", vm.as_ref()).parse().ok()?;
    parts.next().is_none().then(|| (id, kind.to_owned()))
}

pub(crate) fn chunks() -> Path {
    Path::from("chunks")
}

pub(crate) fn tables() -> Path {
    Path::from("tables")
}

pub(crate) fn chunk(name: Hash) -> Path {
    by_hash(&chunks(), name)
}

pub(crate) fn table(name: Hash) -> Path {
    by_hash(&tables(), name)
}

/// The hash that an object below [`chunks`] or [`tables`] is named by.
pub(crate) fn read_hash(object: &Path) -> Option<Hash> {
    Hash::parse(object.filename()?)
}

/// In 256 folders: a file system's folder of a million files is slow.
fn by_hash(folder: &Path, name: Hash) -> Path {
    let name = name.to_string();
    folder.clone().join(&name[..2]).join(name.as_str())
}

/// Manifests that a merge replaced, for who still reads by them.
pub(crate) fn replaced() -> Path {
    Path::from("replaced")
}

pub(crate) fn replaced_manifest(id: &CheckpointId, content: Hash) -> Path {
    replaced()
        .join(id.vm())
        .join(format!("{}-{content}.{MANIFEST}", id.number()))
}

pub(crate) fn writers() -> Path {
    Path::from("leases/writer")
}

pub(crate) fn writer(vm: &str) -> Path {
    writers().join(vm)
}

pub(crate) fn readers() -> Path {
    Path::from("leases/reader")
}

pub(crate) fn reader(nonce: &str) -> Path {
    readers().join(nonce)
}

pub(crate) fn sweep() -> Path {
    Path::from("leases/sweep")
}

pub(crate) fn clock(nonce: &str) -> Path {
    Path::from("leases/clock").join(nonce)
}
