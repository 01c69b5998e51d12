//! Payloads of encoded pages: whatever comes, no more than the pages is written, and what was encoded comes back.
#![no_main]

use libfuzzer_sys::fuzz_target;
use vmferry_core::PageRun;
use vmferry_wire::{Coding, EncodedPages, PageDecoder, PageEncoder, crc32};

const PAGE: usize = 4096;

fuzz_target!(|data: &[u8]| {
    let Some((&[coding, count], payload)) = data.split_first_chunk::<2>() else {
        return;
    };
    let coding = [Coding::Lz4, Coding::Zstd, Coding::Delta][usize::from(coding) % 3];
    let run = PageRun::new(0, u64::from(count % 8) + 1);
    let mut pages = vec![0xa5; run.bytes() as usize];
    let mut decoder = PageDecoder::default();
    if !payload.is_empty() && payload.len() < pages.len() {
        let frame = EncodedPages {
            run,
            round: 1,
            coding,
            len: payload.len() as u32,
            crc: crc32(payload),
        };
        // The checksum of a delta is that of the pages it makes: mostly wrong here, after decoding.
        let _ = decoder.read(&mut &*payload, &frame, &mut pages);
    }
    come_back(coding, payload, &mut decoder);
});

/// A page that begins with `content` and repeats it.
fn come_back(coding: Coding, content: &[u8], decoder: &mut PageDecoder) {
    let old = [7; PAGE];
    let mut page = [7; PAGE];
    for (byte, &from) in page.iter_mut().zip(content.iter().cycle()) {
        *byte = from;
    }
    let mut encoder = PageEncoder::default();
    let encoded = match coding {
        Coding::Lz4 => encoder.lz4(&page),
        Coding::Zstd => encoder.zstd(1, &page),
        Coding::Delta => encoder.delta(&old, &page),
    };
    let Some(payload) = encoded else { return };
    let frame = EncodedPages {
        run: PageRun::single(0),
        round: 1,
        coding,
        len: payload.len() as u32,
        crc: coding.checksum(payload, &page),
    };
    let mut came = old;
    decoder.read(&mut &*payload, &frame, &mut came).unwrap();
    assert_eq!(came, page);
}
