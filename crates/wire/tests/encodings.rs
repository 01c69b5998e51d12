//! Encoded pages come back as they went; payloads that do not decode to just their pages are refused.

use proptest::collection::vec;
use proptest::prelude::*;
use vmferry_core::PageRun;
use vmferry_wire::{Coding, EncodedPages, PageDecoder, PageEncoder, WireError, ZSTD_LEVELS, crc32};

const PAGE: usize = 4096;
const CODINGS: [Coding; 3] = [Coding::Lz4, Coding::Zstd, Coding::Delta];

/// Pages as guests have them: text, words that count, a little noise, in shares that differ.
fn pages(count: usize, noise_percent: u64, seed: u64) -> Vec<u8> {
    let mut state = seed | 1;
    let mut next = move || {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        state
    };
    let mut bytes = Vec::with_capacity(count * PAGE);
    while bytes.len() < count * PAGE {
        let word = next();
        match word % 100 {
            share if share < noise_percent => bytes.extend(next().to_le_bytes()),
            share if share % 2 == 0 => bytes.extend(b"pointers"),
            _ => bytes.extend((word % 64).to_le_bytes()),
        }
    }
    bytes
}

fn noise(count: usize) -> Vec<u8> {
    pages(count, 100, 11)
}

fn encode(encoder: &mut PageEncoder, coding: Coding, level: i32, old: &[u8], new: &[u8]) -> Option<Vec<u8>> {
    let payload = match coding {
        Coding::Lz4 => encoder.lz4(new),
        Coding::Zstd => encoder.zstd(level, new),
        Coding::Delta => encoder.delta(old, new),
    };
    payload.map(<[u8]>::to_vec)
}

fn frame(coding: Coding, payload: &[u8], pages: &[u8]) -> EncodedPages {
    EncodedPages {
        run: PageRun::new(3, (pages.len() / PAGE) as u64),
        round: 2,
        coding,
        len: payload.len() as u32,
        crc: coding.checksum(payload, pages),
    }
}

/// The whole error, in one line.
fn chain(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(source) => format!("{error}: {}", chain(source)),
        None => error.to_string(),
    }
}

fn refused(decoder: &mut PageDecoder, frame: &EncodedPages, payload: &[u8], pages: &mut [u8]) -> String {
    chain(
        &decoder
            .read(&mut &*payload, frame, pages)
            .expect_err("this must be refused"),
    )
}

#[test]
fn noise_does_not_shrink_and_so_is_not_encoded() {
    let mut encoder = PageEncoder::default();
    for count in [1, 3, 64] {
        let (old, new) = (pages(count, 0, 5), noise(count));
        for coding in CODINGS {
            assert_eq!(encode(&mut encoder, coding, 3, &old, &new), None, "{coding}");
        }
    }
}

#[test]
fn a_small_change_of_noise_is_a_short_delta() {
    let mut encoder = PageEncoder::default();
    let old = noise(8);
    let mut new = old.clone();
    for at in [0, 4095, 4096, 20_000, 8 * PAGE - 8] {
        new[at] ^= 0x40;
    }
    let delta = encode(&mut encoder, Coding::Delta, 1, &old, &new).unwrap();
    assert!(
        delta.len() < 8 * PAGE / 50,
        "{} bytes for five changed ones",
        delta.len()
    );
    let same = encode(&mut encoder, Coding::Delta, 1, &old, &old).unwrap();
    assert!(same.len() < 8 * PAGE / 100, "{} bytes for no change", same.len());
}

#[test]
fn every_level_of_zstd_comes_back_and_others_are_brought_into_range() {
    let (mut encoder, mut decoder) = (PageEncoder::default(), PageDecoder::default());
    let new = pages(16, 20, 3);
    for level in ZSTD_LEVELS.chain([i32::MIN, i32::MAX]) {
        let payload = encode(&mut encoder, Coding::Zstd, level, &[], &new).unwrap();
        let mut came = vec![0; new.len()];
        let frame = frame(Coding::Zstd, &payload, &new);
        decoder.read(&mut payload.as_slice(), &frame, &mut came).unwrap();
        assert!(came == new, "level {level}");
    }
}

#[test]
fn a_delta_against_another_version_is_found_out() {
    let (mut encoder, mut decoder) = (PageEncoder::default(), PageDecoder::default());
    let (old, new) = (pages(2, 50, 1), pages(2, 50, 1));
    let mut held = old.clone();
    held[5000] ^= 1;
    let payload = encode(&mut encoder, Coding::Delta, 1, &old, &new).unwrap();
    let why = refused(
        &mut decoder,
        &frame(Coding::Delta, &payload, &new),
        &payload,
        &mut held,
    );
    assert!(
        why.contains("what a delta page frame makes of its pages came with checksum"),
        "{why}"
    );
}

#[test]
fn payloads_that_give_more_or_fewer_bytes_than_their_pages_are_refused() {
    let (mut encoder, mut decoder) = (PageEncoder::default(), PageDecoder::default());
    let (four, zeros) = (pages(4, 5, 9), vec![0; 4 * PAGE]);
    for coding in CODINGS {
        let payload = encode(&mut encoder, coding, 1, &zeros, &four).unwrap();
        for count in [1, 3, 5, 8] {
            let mut came = vec![0; count * PAGE];
            let whole = frame(coding, &payload, &four);
            let frame = EncodedPages {
                run: PageRun::new(3, count as u64),
                ..whole
            };
            let why = refused(&mut decoder, &frame, &payload, &mut came);
            assert!(
                why.contains("does not decode")
                    || why.contains("expected") && why.contains(&(count * PAGE).to_string()),
                "{coding}, {count} pages: {why}"
            );
        }
    }
}

#[test]
fn a_damaged_payload_and_a_cut_connection_are_told_apart() {
    let (mut encoder, mut decoder) = (PageEncoder::default(), PageDecoder::default());
    let new = pages(4, 5, 9);
    for coding in CODINGS {
        let zeros = vec![0; new.len()];
        let payload = encode(&mut encoder, coding, 1, &zeros, &new).unwrap();
        let frame = frame(coding, &payload, &new);
        let mut damaged = payload.clone();
        damaged[payload.len() / 2] ^= 4;
        let mut came = zeros.clone();
        let why = refused(&mut decoder, &frame, &damaged, &mut came);
        assert!(
            why.contains("checksum") || why.contains("does not decode"),
            "{coding}: {why}"
        );
        let cut = decoder.read(&mut &payload[..10], &frame, &mut came);
        assert!(
            matches!(cut, Err(WireError::Truncated { came: 10, .. })),
            "{coding}: {cut:?}"
        );
        let mut came = zeros;
        decoder.read(&mut payload.as_slice(), &frame, &mut came).unwrap();
        assert!(came == new, "{coding}: after refusals it goes on");
    }
}

/// A zstd frame may announce a window of gigabytes, or say that it holds as much: neither counts.
#[test]
fn what_a_zstd_frame_announces_does_not_count() {
    let mut decoder = PageDecoder::default();
    // Magic number, a single-segment frame of 2^40 bytes, a last block that repeats one byte 2 MiB times.
    let mut bomb = vec![0x28, 0xb5, 0x2f, 0xfd, 0xe0];
    bomb.extend((1u64 << 40).to_le_bytes());
    bomb.extend([0x03, 0x00, 0x00, 0x41]);
    // The same without a size, with the largest window.
    let window = [0x28, 0xb5, 0x2f, 0xfd, 0x00, 0xff, 0x03, 0x00, 0x00, 0x41];
    for payload in [bomb.as_slice(), &window] {
        let mut came = vec![0; PAGE];
        let frame = EncodedPages {
            run: PageRun::single(0),
            round: 1,
            coding: Coding::Zstd,
            len: payload.len() as u32,
            crc: crc32(payload),
        };
        let why = refused(&mut decoder, &frame, payload, &mut came);
        assert!(why.contains("zstd"), "{why}");
    }
}

proptest! {
    #[test]
    fn encoded_pages_come_back(
        count in 1usize..20, noise in 0u64..110, seeds in any::<(u64, u64)>(), level in ZSTD_LEVELS,
        changes in vec((any::<u16>(), any::<u8>()), 0..40), related in any::<bool>(),
    ) {
        let old = pages(count, noise, seeds.0);
        let mut new = if related { old.clone() } else { pages(count, noise, seeds.1) };
        for (at, bits) in changes {
            let at = usize::from(at) % new.len();
            new[at] ^= bits;
        }
        let (mut encoder, mut decoder) = (PageEncoder::default(), PageDecoder::default());
        for coding in CODINGS {
            let Some(payload) = encode(&mut encoder, coding, level, &old, &new) else { continue };
            prop_assert!(payload.len() < new.len());
            let mut came = old.clone();
            decoder.read(&mut payload.as_slice(), &frame(coding, &payload, &new), &mut came).unwrap();
            prop_assert!(came == new);
        }
    }

    /// Damage behind a checksum that is right, as a hostile peer would make it: decoded to something else or refused,
    /// never beyond the pages.
    #[test]
    fn harmful_payloads_stay_within_their_pages(
        count in 1usize..4, seed in any::<u64>(), which in 0usize..3,
        flips in vec((any::<u16>(), any::<u8>()), 1..8), garbage in proptest::option::of(vec(any::<u8>(), 1..200)),
    ) {
        let (zeros, new) = (vec![0; count * PAGE], pages(count, 10, seed));
        let (mut encoder, mut decoder) = (PageEncoder::default(), PageDecoder::default());
        let coding = CODINGS[which];
        let mut payload = encode(&mut encoder, coding, 1, &zeros, &new).unwrap();
        for (at, bits) in flips {
            let at = usize::from(at) % payload.len();
            payload[at] ^= bits;
        }
        let payload = garbage.unwrap_or(payload);
        let mut came = zeros;
        let frame = frame(coding, &payload, &new);
        let _ = decoder.read(&mut payload.as_slice(), &frame, &mut came);
        prop_assert_eq!(came.len(), count * PAGE);
    }
}
