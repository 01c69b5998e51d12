//! What the tests of the store share: memory of a guest that has no hypervisor, and a checkpoint of it.
#![allow(dead_code)]

pub(crate) mod faulty;

use vmferry_core::{PAGE_SIZE, PageBitmap, PageRun, RamLayout};
use vmferry_store::{CheckpointId, Draft, Result, Store, StoreOptions, Taken};

pub(crate) const PAGE: usize = PAGE_SIZE as usize;

/// RAM of `pages` pages.
pub(crate) fn layout(pages: u64) -> RamLayout {
    RamLayout::single("ram", pages * PAGE_SIZE).unwrap()
}

/// A page that no other number gives.
pub(crate) fn page(number: u64) -> Vec<u8> {
    let mut bytes = vec![0; PAGE];
    for (index, word) in bytes.chunks_exact_mut(8).enumerate() {
        let value = (number << 16 | index as u64).wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 20;
        word.copy_from_slice(&value.to_le_bytes());
    }
    bytes
}

/// A store that nobody else sees.
pub(crate) fn memory() -> Store {
    Store::open("memory:", StoreOptions::default()).unwrap()
}

/// What a checkpoint is told at its end.
pub(crate) fn taken(pages: u64, device_state: vmferry_store::BlobRef) -> Taken {
    Taken {
        created_ms: 1_700_000_000_000,
        device_state,
        disks: Vec::new(),
        written: PageBitmap::full(pages),
        accessed: PageBitmap::new(pages),
        interval_ms: None,
        pause_ms: 1.5,
    }
}

/// A draft of a checkpoint of `vm`.
pub(crate) fn draft(vm: &str, pages: u64, parent: Option<CheckpointId>) -> Draft {
    Draft {
        vm: vm.to_owned(),
        spec: serde_json::json!({ "machine": "none", "name": vm }),
        layout: layout(pages),
        parent,
    }
}

/// A full checkpoint of `memory`.
pub(crate) fn checkpoint(store: &Store, vm: &str, memory: &[u8]) -> Result<CheckpointId> {
    let pages = (memory.len() / PAGE) as u64;
    let writer = store.begin(draft(vm, pages, None))?;
    writer.pages(PageRun::new(0, pages), memory)?;
    let state = writer.blob(b"device state")?;
    Ok(writer.commit(taken(pages, state))?.id)
}

/// A checkpoint of `memory`, of which only `written` is other than in `parent`.
pub(crate) fn increment(
    store: &Store,
    parent: &CheckpointId,
    memory: &[u8],
    written: &PageBitmap,
) -> Result<CheckpointId> {
    let pages = (memory.len() / PAGE) as u64;
    let writer = store.begin(draft(parent.vm(), pages, Some(parent.clone())))?;
    for run in written.runs() {
        writer.pages(run, &memory[run.first as usize * PAGE..run.end() as usize * PAGE])?;
    }
    let mut rest = written.clone();
    rest.invert();
    writer.inherit(&rest)?;
    let state = writer.blob(b"device state")?;
    let taken = Taken {
        written: written.clone(),
        ..taken(pages, state)
    };
    Ok(writer.commit(taken)?.id)
}

/// All memory of a checkpoint.
pub(crate) fn read_all(store: &Store, id: &CheckpointId) -> Result<Vec<u8>> {
    let reader = store.reader(id)?;
    let pages = reader.manifest().layout.pages();
    let mut memory = vec![0xee; pages as usize * PAGE];
    reader.read(PageRun::new(0, pages), &mut memory)?;
    Ok(memory)
}
