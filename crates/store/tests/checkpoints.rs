//! What is written comes back.

mod support;

use support::{PAGE, checkpoint, draft, increment, memory, page, read_all, taken};
use vmferry_core::{PageBitmap, PageRun};
use vmferry_store::{PageSource, Retention, Store, StoreError, StoreOptions};

fn ram(pages: u64) -> Vec<u8> {
    (0..pages)
        .flat_map(|number| match number % 5 {
            0 => vec![0; PAGE],
            1 => vec![7; PAGE],
            _ => page(number),
        })
        .collect()
}

#[test]
fn memory_and_device_state_come_back() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), StoreOptions::default()).unwrap();
    // More than one table, and a last one that is not full.
    let ram = ram(33_000);
    let id = checkpoint(&store, "web", &ram).unwrap();
    assert_eq!(id.to_string(), "web/1");
    // As another process sees it.
    let store = Store::open(folder.path().to_str().unwrap(), StoreOptions::default()).unwrap();
    assert_eq!(store.list(None).unwrap(), std::slice::from_ref(&id));
    assert_eq!(read_all(&store, &id).unwrap(), ram);
    let reader = store.reader(&id).unwrap();
    assert_eq!(
        reader.blob(&reader.manifest().device_state).unwrap(),
        b"device state"
    );
    assert_eq!(reader.page_source(0).unwrap(), PageSource::Hole);
    assert_eq!(reader.page_source(1).unwrap(), PageSource::Uniform(7));
    assert!(matches!(
        reader.page_source(2).unwrap(),
        PageSource::Stored { .. }
    ));
    assert!(reader.page_source(33_000).is_err());
}

#[test]
fn an_increment_stores_only_what_is_new() {
    let store = memory();
    let mut ram = ram(40_000);
    let first = checkpoint(&store, "web", &ram).unwrap();
    let mut written = PageBitmap::new(40_000);
    for number in [5, 6, 7, 100, 39_999] {
        written.insert(number);
        let at = number as usize * PAGE;
        ram[at..at + PAGE].copy_from_slice(&page(1_000_000 + number));
    }
    let second = increment(&store, &first, &ram, &written).unwrap();
    assert_eq!(second.to_string(), "web/2");
    let manifest = store.manifest(&second).unwrap();
    assert_eq!(manifest.pages.new, 5);
    assert_eq!(manifest.pages.inherited, 40_000 - 5);
    assert_eq!(manifest.parent, Some(first));
    assert_eq!(manifest.written, written);
    assert_eq!(read_all(&store, &second).unwrap(), ram);
}

#[test]
fn equal_pages_are_stored_once_across_machines() {
    let store = memory();
    let ram = ram(1000);
    checkpoint(&store, "web", &ram).unwrap();
    let id = checkpoint(&store, "db", &ram).unwrap();
    let counts = store.manifest(&id).unwrap().pages;
    assert_eq!((counts.new, counts.deduplicated), (0, 600));
    assert_eq!(read_all(&store, &id).unwrap(), ram);
}

#[test]
fn a_writer_that_is_dropped_leaves_no_checkpoint() {
    let store = memory();
    let ram = ram(1000);
    let writer = store.begin(draft("web", 1000, None)).unwrap();
    writer.pages(PageRun::new(0, 1000), &ram).unwrap();
    drop(writer);
    assert_eq!(store.list(None).unwrap(), []);
}

#[test]
fn a_second_writer_is_refused_and_told_who_the_first_is() {
    let store = memory();
    let first = store.begin(draft("web", 10, None)).unwrap();
    let error = store.begin(draft("web", 10, None)).err().unwrap();
    assert!(matches!(error, StoreError::Busy { .. }), "{error}");
    assert!(
        error
            .to_string()
            .contains(&format!("process {}", std::process::id())),
        "{error}"
    );
    store.begin(draft("db", 10, None)).unwrap();
    let state = first.blob(b"x").unwrap();
    first.commit(taken(10, state)).unwrap();
    store.begin(draft("web", 10, None)).unwrap();
}

#[test]
fn what_is_deleted_goes_with_a_sweep_and_what_is_shared_stays() {
    let store = memory();
    let mut first = ram(1000);
    let one = checkpoint(&store, "web", &first).unwrap();
    let reader = store.reader(&one).unwrap();
    first[..PAGE].copy_from_slice(&page(77_777));
    let mut written = PageBitmap::new(1000);
    written.insert(0);
    let two = increment(&store, &one, &first, &written).unwrap();
    store.delete(&one).unwrap();
    assert_eq!(store.list(None).unwrap(), std::slice::from_ref(&two));
    assert!(matches!(store.manifest(&one), Err(StoreError::NoCheckpoint(_))));
    assert!(matches!(store.delete(&one), Err(StoreError::NoCheckpoint(_))));
    // Who reads it goes on.
    store.sweep().unwrap();
    let mut page_2 = vec![0; PAGE];
    reader.read(PageRun::single(2), &mut page_2).unwrap();
    assert_eq!(page_2, page(2));
    drop(reader);
    assert_eq!(read_all(&store, &two).unwrap(), first);
    // Numbers are not used again.
    store.delete(&two).unwrap();
    assert_eq!(checkpoint(&store, "web", &first).unwrap().to_string(), "web/3");
}

#[test]
fn retention_keeps_the_newest() {
    let store = memory();
    let ram = ram(10);
    for vm in ["web", "web", "web", "db"] {
        checkpoint(&store, vm, &ram).unwrap();
    }
    let by_count = Retention {
        count: Some(2),
        age: None,
    };
    let gone = store.prune(None, by_count).unwrap();
    assert_eq!(
        gone.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["web/1"]
    );
    // They were taken in 2023.
    let by_age = Retention {
        count: None,
        age: Some(std::time::Duration::from_secs(3600)),
    };
    let gone = store.prune(Some("web"), by_age).unwrap();
    assert_eq!(
        gone.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["web/2"]
    );
    let left = store.list(None).unwrap();
    assert_eq!(
        left.iter().map(ToString::to_string).collect::<Vec<_>>(),
        ["db/1", "web/3"]
    );
}

/// Files below `folder`.
fn files(folder: &std::path::Path) -> usize {
    let Ok(entries) = std::fs::read_dir(folder) else {
        return 0;
    };
    let count = |entry: std::io::Result<std::fs::DirEntry>| match entry.unwrap().path() {
        path if path.is_dir() => files(&path),
        _ => 1,
    };
    entries.map(count).sum()
}

#[test]
fn a_sweep_frees_what_nobody_needs_and_a_merge_makes_more_of_it() {
    let folder = tempfile::tempdir().unwrap();
    let options = StoreOptions {
        clock_slack: std::time::Duration::ZERO,
        ..StoreOptions::default()
    };
    let store = Store::open(folder.path().to_str().unwrap(), options).unwrap();
    let chunks = || files(&folder.path().join("chunks"));
    // Ten checkpoints; each replaces a page of each of the sixteen chunks of the first one.
    let mut ram: Vec<u8> = (0..1024).flat_map(page).collect();
    let mut last = checkpoint(&store, "web", &ram).unwrap();
    assert_eq!(chunks(), 16 + 1);
    for round in 0..40 {
        let mut written = PageBitmap::new(1024);
        for chunk in 0..16 {
            let number = chunk * 64 + round;
            written.insert(number);
            let at = number as usize * PAGE;
            ram[at..at + PAGE].copy_from_slice(&page(100_000 + number));
        }
        last = increment(&store, &last, &ram, &written).unwrap();
    }
    assert_eq!(chunks(), 16 + 1 + 40);
    let keep_one = Retention {
        count: Some(1),
        age: None,
    };
    assert_eq!(store.prune(None, keep_one).unwrap().len(), 40);
    store.settle();
    // Each chunk is still needed for some page of it.
    assert_eq!(store.sweep().unwrap().manifests, 40);
    assert_eq!(chunks(), 16 + 1 + 40);
    let reader = store.reader(&last).unwrap();
    let merged = store.merge().unwrap();
    assert_eq!(
        (merged.chunks_before, merged.chunks_after, merged.pages),
        (56, 16, 1024)
    );
    assert_eq!(store.merge().unwrap(), vmferry_store::Merged::default());
    // Who reads goes on with the old ones.
    let swept = store.sweep().unwrap();
    assert_eq!(swept.chunks, 0);
    let mut all = vec![0; ram.len()];
    reader.read(PageRun::new(0, 1024), &mut all).unwrap();
    assert!(all == ram);
    drop(reader);
    // The lease is given back in the background.
    while files(&folder.path().join("leases")) > 0 {
        std::thread::sleep(std::time::Duration::from_millis(5));
    }
    assert_eq!(store.sweep().unwrap().chunks, 56);
    assert_eq!(chunks(), 16 + 1);
    assert!(read_all(&store, &last).unwrap() == ram);
}

#[test]
fn a_process_that_died_holds_no_lease() {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), StoreOptions::default()).unwrap();
    let writer = store.begin(draft("web", 10, None)).unwrap();
    let lease = folder.path().join("leases/writer/web");
    let text = std::fs::read_to_string(&lease).unwrap();
    let mut body: serde_json::Value = serde_json::from_str(&text).unwrap();
    // The same number, of a process that started before.
    body["process"]["started"] = 1.into();
    std::fs::write(&lease, body.to_string()).unwrap();
    let state = writer.blob(b"x").unwrap();
    let second = store.begin(draft("web", 10, None)).unwrap();
    assert!(writer.commit(taken(10, state)).is_err());
    let state = second.blob(b"x").unwrap();
    second.commit(taken(10, state)).unwrap();
}
