//! What lies in a store, byte for byte, and what is made of it when bytes are wrong.

mod support;

use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use support::{PAGE, checkpoint, increment, page, read_all};
use vmferry_core::{PageBitmap, PageRun, RamLayout};
use vmferry_store::table::{Place, Table};
use vmferry_store::{
    BlobRef, CheckpointId, DiskExtent, DiskState, Hash, Manifest, PageCounts, Scope, Store, StoreError,
    StoreOptions, chunk,
};

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unhex(text: &str) -> Vec<u8> {
    let digits: Vec<u8> = text.bytes().filter(u8::is_ascii_hexdigit).collect();
    let digit = |byte: u8| (byte as char).to_digit(16).unwrap() as u8;
    digits
        .chunks(2)
        .map(|pair| digit(pair[0]) << 4 | digit(pair[1]))
        .collect()
}

fn manifest() -> Manifest {
    let mut written = PageBitmap::new(40_000);
    written.insert_run(PageRun::new(3, 70));
    let mut accessed = written.clone();
    accessed.insert(39_999);
    Manifest {
        id: "web/17".parse().unwrap(),
        parent: Some("web/16".parse().unwrap()),
        created_ms: 1_764_400_000_000,
        spec: serde_json::json!({"machine": "q35"}),
        layout: RamLayout::single("ram", 40_000 * PAGE as u64).unwrap(),
        device_state: BlobRef {
            bytes: 5,
            pieces: vec![Hash([1; 32])],
        },
        disks: vec![DiskState {
            device: "root".into(),
            format: "raw".into(),
            bytes: 1 << 20,
            extents: vec![DiskExtent {
                offset: 65_536,
                blob: BlobRef {
                    bytes: (1 << 20) + 1,
                    pieces: vec![Hash([2; 32]), Hash([3; 32])],
                },
            }],
        }],
        written,
        accessed,
        interval_ms: Some(5_000),
        pause_ms: 12.5,
        pages: PageCounts {
            new: 60,
            deduplicated: 5,
            inherited: 39_930,
            uniform: 5,
            stored_bytes: 100_000,
        },
        tables: vec![Some(Hash([4; 32])), None],
    }
}

fn table() -> Table {
    let mut places = vec![Place::Hole; 3];
    places.extend((5..9).map(|index| Place::Stored { chunk: 1, index }));
    places.push(Place::Stored { chunk: 0, index: 255 });
    places.extend([Place::Uniform(0xab); 200]);
    Table {
        chunks: vec![Hash([5; 32]), Hash([6; 32])],
        places,
    }
}

/// A page of text, and one that does not compress.
fn pages() -> Vec<u8> {
    let mut plain = b"to be or not to be, ".repeat(300)[..PAGE].to_vec();
    plain.extend(page(1));
    plain
}

const GOLDEN_MANIFEST: &str = include_str!("golden/manifest-1.hex");
const GOLDEN_TABLE: &str = include_str!("golden/table-1.hex");
const GOLDEN_CHUNK: &str = include_str!("golden/chunk-1.hex");

/// Writes the golden bytes of a new format. Those of a released one never change.
#[test]
#[ignore = "writes files of the source tree"]
fn write_golden_bytes() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    fs::create_dir_all(&folder).unwrap();
    let write = |name: &str, bytes: &[u8]| {
        let lines: Vec<String> = bytes.chunks(48).map(hex).collect();
        fs::write(folder.join(name), lines.join("\n") + "\n").unwrap();
    };
    write("manifest-1.hex", &manifest().encode().unwrap());
    write("table-1.hex", &table().pack().object);
    let plain = pages();
    let hashes: Vec<Hash> = plain.chunks_exact(PAGE).map(Hash::of).collect();
    write("chunk-1.hex", &chunk::pack(&plain, &hashes).object);
}

#[test]
fn golden_bytes_mean_what_they_meant() {
    assert_eq!(
        Manifest::decode("it", &unhex(GOLDEN_MANIFEST)).unwrap(),
        manifest()
    );
    let packed = table().pack();
    let read = Table::unpack(
        packed.name,
        table().places.len() as u64,
        "it",
        &unhex(GOLDEN_TABLE),
    );
    assert_eq!(read.unwrap(), table());
    let golden = unhex(GOLDEN_CHUNK);
    assert_eq!(chunk::unpack(Hash::of(&pages()), "it", &golden).unwrap(), pages());
    let head = chunk::head("it", &golden[..24 + 3 * 32]).unwrap();
    let hashes: Vec<Hash> = pages().chunks_exact(PAGE).map(Hash::of).collect();
    assert_eq!(head.pages, hashes);
}

#[test]
fn what_is_encoded_decodes() {
    assert_eq!(
        Manifest::decode("it", &manifest().encode().unwrap()).unwrap(),
        manifest()
    );
    let packed = table().pack();
    assert_eq!(
        Table::unpack(packed.name, 208, "it", &packed.object).unwrap(),
        table()
    );
}

#[test]
fn every_flipped_bit_and_every_cut_is_noticed() {
    let manifest = manifest().encode().unwrap();
    let table = table().pack();
    let plain = pages();
    let hashes: Vec<Hash> = plain.chunks_exact(PAGE).map(Hash::of).collect();
    let chunk = chunk::pack(&plain, &hashes);
    let sound = |kind: usize, bytes: &[u8]| match kind {
        0 => Manifest::decode("it", bytes).is_ok(),
        1 => Table::unpack(table.name, 208, "it", bytes).is_ok(),
        _ => chunk::unpack(chunk.name, "it", bytes).is_ok(),
    };
    for (kind, bytes) in [&manifest, &table.object, &chunk.object].into_iter().enumerate() {
        assert!(sound(kind, bytes));
        for at in 0..bytes.len() {
            let mut wrong = bytes.clone();
            wrong[at] ^= 1 << (at % 8);
            // A bit of a Zstandard header may mean nothing; a table's content is what its name says.
            assert!(!sound(kind, &wrong) || kind != 0, "kind {kind}, byte {at}");
            assert!(!sound(kind, &bytes[..at]), "kind {kind}, cut at {at}");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    /// The contents themselves, past all checksums.
    #[test]
    fn no_content_makes_us_panic(
        bytes in prop::collection::vec(any::<u8>(), 0..300),
        pages in 0u64..400,
        changes in prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 0..4),
    ) {
        let _ = Manifest::parse(&bytes);
        let _ = Manifest::decode("it", &bytes);
        let _ = chunk::head("it", &bytes);
        let _ = chunk::unpack(Hash::of(&bytes), "it", &bytes);
        let object = manifest().encode().unwrap();
        let plain = zstd::bulk::decompress(&object[16..object.len() - 32], 1 << 20).unwrap();
        let mut changed = plain;
        for (at, byte) in &changes {
            let at = at.index(changed.len());
            changed[at] = *byte;
        }
        if let Ok(manifest) = Manifest::parse(&changed) {
            let again = Manifest::decode("it", &manifest.encode().unwrap()).unwrap();
            prop_assert!(again == manifest || manifest.pause_ms.is_nan());
        }
        for plain in [bytes, table_plain(&changes)] {
            if let Some(table) = Table::parse(&plain, pages) {
                prop_assert_eq!(table.places.len() as u64, pages);
                let packed = table.pack();
                prop_assert_eq!(Table::unpack(packed.name, pages, "it", &packed.object).unwrap(), table);
            }
        }
    }
}

/// The plain content of a table, with some bytes changed.
fn table_plain(changes: &[(prop::sample::Index, u8)]) -> Vec<u8> {
    let object = table().pack().object;
    let mut plain = zstd::bulk::decompress(&object[16..], 1 << 20).unwrap();
    for (at, byte) in changes {
        let at = at.index(plain.len());
        plain[at] = *byte;
    }
    plain
}

#[test]
fn a_later_format_is_named() {
    let mut bytes = manifest().encode().unwrap();
    bytes[8] = 2;
    let error = Manifest::decode("checkpoints/web/17.manifest", &bytes).unwrap_err();
    assert!(
        matches!(
            error,
            StoreError::Version {
                came: 2,
                known: 1,
                ..
            }
        ),
        "{error}"
    );
    let mut object = table().pack().object;
    object[8] = 9;
    let error = Table::unpack(table().pack().name, 208, "it", &object).unwrap_err();
    assert!(matches!(error, StoreError::Version { came: 9, .. }), "{error}");
}

struct Damaged {
    folder: tempfile::TempDir,
    store: Store,
    first: CheckpointId,
    second: CheckpointId,
    other: CheckpointId,
}

/// Two checkpoints of one VM that share chunks, and one of another VM that shares nothing.
fn damaged() -> Damaged {
    let folder = tempfile::tempdir().unwrap();
    let store = Store::open(folder.path().to_str().unwrap(), StoreOptions::default()).unwrap();
    let mut ram: Vec<u8> = (0..200).flat_map(page).collect();
    let first = checkpoint(&store, "web", &ram).unwrap();
    let mut written = PageBitmap::new(200);
    written.insert_run(PageRun::new(0, 64));
    ram[..64 * PAGE].copy_from_slice(&(1000..1064).flat_map(page).collect::<Vec<_>>());
    let second = increment(&store, &first, &ram, &written).unwrap();
    let other: Vec<u8> = (5000..5010).flat_map(page).collect();
    let other = checkpoint(&store, "db", &other).unwrap();
    Damaged {
        folder,
        store,
        first,
        second,
        other,
    }
}

impl Damaged {
    /// The file of the chunk that holds `page` of `id`, and its object's name.
    fn chunk_of(&self, id: &CheckpointId, page: u64) -> (PathBuf, String) {
        let source = self.store.reader(id).unwrap().page_source(page).unwrap();
        let vmferry_store::PageSource::Stored { chunk, .. } = source else {
            panic!("{source:?}");
        };
        let name = chunk.to_string();
        let object = format!("chunks/{}/{name}", &name[..2]);
        (self.folder.path().join(&object), object)
    }

    fn verify(&self) -> Vec<(String, Vec<CheckpointId>)> {
        let verified = self.store.verify(Scope::All, |_, _| ()).unwrap();
        assert_eq!(verified.checkpoints, 3);
        verified
            .damage
            .into_iter()
            .map(|damage| (damage.object, damage.checkpoints))
            .collect()
    }
}

#[test]
fn a_damaged_chunk_is_named_with_the_checkpoints_that_it_hurts() {
    let it = damaged();
    assert_eq!(it.verify(), []);
    // Of the first 64 pages each has its own; the rest they share.
    let (own, own_object) = it.chunk_of(&it.first, 0);
    let (shared, shared_object) = it.chunk_of(&it.second, 199);
    let mut bytes = fs::read(&own).unwrap();
    let at = bytes.len() - 100;
    bytes[at] ^= 1;
    fs::write(&own, bytes).unwrap();
    fs::remove_file(shared).unwrap();
    let mut expected = vec![
        (own_object.clone(), vec![it.first.clone()]),
        (shared_object.clone(), vec![it.first.clone(), it.second.clone()]),
    ];
    expected.sort();
    assert_eq!(it.verify(), expected);
    // Reading says the same, and only where it matters.
    let error = read_all(&it.store, &it.first).unwrap_err();
    assert!(error.is_damage(), "{error}");
    let reader = it.store.reader(&it.second).unwrap();
    let mut memory = vec![0; PAGE];
    reader.read(PageRun::single(0), &mut memory).unwrap();
    assert_eq!(memory, page(1000));
    let error = reader.read(PageRun::single(199), &mut memory).unwrap_err();
    assert!(error.to_string().contains(&shared_object), "{error}");
    assert!(read_all(&it.store, &it.other).is_ok());
}

#[test]
fn a_truncated_manifest_and_a_missing_table_are_named() {
    let it = damaged();
    let file = it.folder.path().join("checkpoints/web/1.manifest");
    let bytes = fs::read(&file).unwrap();
    fs::write(&file, &bytes[..bytes.len() - 7]).unwrap();
    let table = it.store.manifest(&it.other).unwrap().tables[0]
        .unwrap()
        .to_string();
    let object = format!("tables/{}/{table}", &table[..2]);
    fs::remove_file(it.folder.path().join(&object)).unwrap();
    let found = it.verify();
    assert!(
        found.contains(&("checkpoints/web/1.manifest".into(), vec![it.first.clone()])),
        "{found:?}"
    );
    assert!(found.contains(&(object, vec![it.other.clone()])), "{found:?}");
    assert_eq!(found.len(), 2);
    assert!(it.store.manifest(&it.first).unwrap_err().is_damage());
    // Nobody knows what they need: nothing is swept.
    let error = it.store.sweep().unwrap_err();
    assert!(error.is_damage(), "{error}");
    // They can be deleted, and then all is well.
    it.store.delete(&it.first).unwrap();
    it.store.delete(&it.other).unwrap();
    it.store.settle();
    it.store.sweep().unwrap();
    assert!(it.store.verify(Scope::All, |_, _| ()).unwrap().damage.is_empty());
    assert!(read_all(&it.store, &it.second).is_ok());
}
