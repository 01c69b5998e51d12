//! What is written comes back.

mod support;

use support::{PAGE, checkpoint, draft, increment, memory, page, read_all, taken};
use vmferry_core::{PageBitmap, PageRun};
use vmferry_store::{PageSource, Store, StoreError, StoreOptions};

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
    assert_eq!(store.list(None).unwrap(), [id.clone()]);
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
