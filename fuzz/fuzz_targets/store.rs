//! What may lie in a store of checkpoints: manifests, tables and chunks, also with their checksums made right.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_store::table::{Place, TABLE_PAGES, Table};
use vmferry_store::{Hash, Manifest, chunk};

fuzz_target!(|data: &[u8]| {
    let _ = Manifest::decode("it", data);
    let _ = chunk::head("it", data);
    let _ = chunk::unpack(Hash::of(data), "it", data);
    if let Ok(manifest) = Manifest::parse(data) {
        let object = manifest.encode().expect("it was no larger");
        let again = Manifest::decode("it", &object).expect("what was encoded decodes");
        // A number that is none equals nothing, itself included.
        assert!(again == manifest || manifest.pause_ms.is_nan());
    }
    let Some((pages, plain)) = data.split_first_chunk::<2>() else {
        return;
    };
    let pages = u64::from(u16::from_le_bytes(*pages)) % (TABLE_PAGES + 2);
    if let Some(table) = Table::parse(plain, pages) {
        assert_eq!(table.places.len() as u64, pages);
        for place in &table.places {
            if let Place::Stored { chunk, index } = place {
                assert!(
                    (*chunk as usize) < table.chunks.len() && usize::from(*index) < chunk::MAX_CHUNK_PAGES
                );
            }
        }
        let packed = table.pack();
        let again = Table::unpack(packed.name, pages, "it", &packed.object).expect("what was packed unpacks");
        assert_eq!(again, table);
    }
});
