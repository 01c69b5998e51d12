//! Page frames and fault requests.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_core::{RamBlock, RamLayout};
use vmferry_wire::{
    FAULT_REQUEST_BYTES, FaultRequest, MAX_RUN_PAGES, PAGE_HEADER_BYTES, PageFrame, PageHeader, crc32,
};

fuzz_target!(|data: &[u8]| {
    let block = |name: &str, pages| RamBlock {
        name: name.into(),
        pages,
    };
    let layout = RamLayout::new(vec![block("low", 700), block("high", 60_000)]).unwrap();
    let _ = PageFrame::read(&mut &*data, &layout);
    let _ = FaultRequest::read(&mut &*data, &layout);

    if let Some(mut bytes) = data.first_chunk::<PAGE_HEADER_BYTES>().copied() {
        let crc = crc32(&bytes[..PAGE_HEADER_BYTES - 4]);
        bytes[PAGE_HEADER_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        if let Ok(frame) = PageHeader::decode(&bytes, &layout) {
            assert_eq!(frame.header().encode(), bytes);
            assert!(frame.payload_bytes() <= MAX_RUN_PAGES * 4096);
            if let Some(run) = frame.run() {
                assert!(run.count <= MAX_RUN_PAGES);
                layout.check(run).unwrap();
            }
        }
    }
    if let Some(mut bytes) = data.first_chunk::<FAULT_REQUEST_BYTES>().copied() {
        let crc = crc32(&bytes[..FAULT_REQUEST_BYTES - 4]);
        bytes[FAULT_REQUEST_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        if let Ok(request) = FaultRequest::decode(&bytes, &layout) {
            assert!(request.page < layout.pages());
        }
    }
});
