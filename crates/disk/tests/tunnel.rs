//! Both ends of a tunnel against each other, over every delay, and against what no peer should send.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex};

use proptest::prelude::*;
use vmferry_disk::tunnel::frame::hash_of;
use vmferry_disk::tunnel::index::Place;
use vmferry_disk::tunnel::{
    BLOCK_BYTES, FromSource, Index, MAX_WRITE_BYTES, Receiver, Sender, Target, ToSource,
};
use vmferry_disk::{DiskError, error::Result};

const BLOCK: u64 = BLOCK_BYTES as u64;
const DISK: usize = 12 * BLOCK_BYTES + 1000;

/// Disks in memory, of which one is written.
#[derive(Clone)]
struct Disks {
    all: Arc<Mutex<Vec<Vec<u8>>>>,
    this: usize,
    flushes: Arc<Mutex<u32>>,
}

impl Disks {
    fn new(contents: Vec<Vec<u8>>) -> Self {
        Self {
            all: Arc::new(Mutex::new(contents)),
            this: 0,
            flushes: Arc::default(),
        }
    }
    fn content(&self) -> Vec<u8> {
        self.all.lock().unwrap()[self.this].clone()
    }
}

impl Target for Disks {
    fn bytes(&self) -> u64 {
        self.all.lock().unwrap()[self.this].len() as u64
    }
    fn write(&mut self, offset: u64, data: &[u8]) -> Result<()> {
        self.all.lock().unwrap()[self.this][offset as usize..][..data.len()].copy_from_slice(data);
        Ok(())
    }
    fn zero(&mut self, offset: u64, bytes: u64) -> Result<()> {
        self.all.lock().unwrap()[self.this][offset as usize..][..bytes as usize].fill(0);
        Ok(())
    }
    fn flush(&mut self) -> Result<()> {
        *self.flushes.lock().unwrap() += 1;
        Ok(())
    }
    fn read(&mut self, place: Place, block: &mut [u8]) -> Result<()> {
        let all = self.all.lock().unwrap();
        let range = place.offset as usize..place.offset as usize + block.len();
        let from = all.get(usize::from(place.disk)).and_then(|disk| disk.get(range));
        block.copy_from_slice(from.ok_or(DiskError::Ended("a block"))?);
        Ok(())
    }
}

/// The two ends, and the wire between them in both directions.
struct World {
    sender: Sender,
    receiver: Receiver<Disks>,
    there: VecDeque<Vec<u8>>,
    back: VecDeque<Vec<u8>>,
    wire_bytes: usize,
}

impl World {
    fn new(disks: Disks, had_content: bool) -> Self {
        let index = Arc::new(Mutex::new(Index::new(1000)));
        Self {
            sender: Sender::default(),
            receiver: Receiver::new(disks, 0, had_content, index),
            there: VecDeque::new(),
            back: VecDeque::new(),
            wire_bytes: 0,
        }
    }

    fn send(&mut self, frame: &FromSource) {
        let bytes = frame.encode().unwrap().bytes;
        self.wire_bytes += bytes.len();
        self.there.push_back(bytes);
    }

    /// One frame goes over one of the directions; whether there was one.
    fn step(&mut self, answers_first: bool) -> bool {
        for back in [answers_first, !answers_first] {
            if back && let Some(bytes) = self.back.pop_front() {
                match ToSource::read(&mut bytes.as_slice()).unwrap().unwrap() {
                    ToSource::Answer { number, has } => {
                        if let Some(frame) = self.sender.answered(number, has).unwrap() {
                            self.send(&frame);
                        }
                    }
                    other => assert!(matches!(other, ToSource::Flushed { .. }), "{other:?}"),
                }
                return true;
            }
            if !back && let Some(bytes) = self.there.pop_front() {
                let frame = FromSource::read(&mut bytes.as_slice()).unwrap().unwrap();
                if let Some(answer) = self.receiver.take(frame).unwrap() {
                    self.back.push_back(answer.encode());
                }
                return true;
            }
        }
        false
    }

    fn write(&mut self, offset: u64, data: &[u8], answers_first: bool) {
        for (index, part) in data.chunks(MAX_WRITE_BYTES).enumerate() {
            let offset = offset + (index * MAX_WRITE_BYTES) as u64;
            while self.sender.must_wait_to_write(offset, part.len() as u64) {
                assert!(self.step(answers_first), "it would wait for ever");
            }
            for frame in self.sender.write(offset, part) {
                self.send(&frame);
            }
        }
    }

    fn zero(&mut self, offset: u64, bytes: u64, answers_first: bool) {
        while self.sender.must_wait_to_zero(offset, bytes) {
            assert!(self.step(answers_first), "it would wait for ever");
        }
        let frame = self.sender.zero(offset, bytes);
        self.send(&frame);
    }

    fn settle(&mut self) {
        while self.step(true) {}
        assert!(self.sender.is_settled());
        let flush = self.sender.flush();
        self.send(&flush);
        while self.step(true) {}
    }
}

/// Data that does not shrink.
fn noise(seed: u64, bytes: usize) -> Vec<u8> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    (0..bytes)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            (state >> 32) as u8
        })
        .collect()
}

#[test]
fn a_block_crosses_once_and_zeros_not_at_all() {
    let disks = Disks::new(vec![vec![1; DISK]]);
    let mut world = World::new(disks.clone(), false);
    let block = noise(1, BLOCK_BYTES);
    let mut expected = vec![1; DISK];
    for at in [0, 5, 9] {
        world.write(at * BLOCK, &block, true);
        // The first one has to have arrived before it is known.
        while world.step(true) {}
        expected[at as usize * BLOCK_BYTES..][..BLOCK_BYTES].copy_from_slice(&block);
    }
    world.write(2 * BLOCK, &vec![0; 2 * BLOCK_BYTES], true);
    world.zero(7 * BLOCK, BLOCK, true);
    expected[2 * BLOCK_BYTES..4 * BLOCK_BYTES].fill(0);
    expected[7 * BLOCK_BYTES..8 * BLOCK_BYTES].fill(0);
    world.settle();
    assert!(disks.content() == expected);
    let sent = world.sender.sent();
    assert_eq!(
        (sent.data_bytes, sent.known_bytes, sent.zero_bytes),
        (BLOCK, 2 * BLOCK, 3 * BLOCK)
    );
    assert!(world.wire_bytes < BLOCK_BYTES + 1000, "{}", world.wire_bytes);
    assert_eq!(*disks.flushes.lock().unwrap(), 1);
}

#[test]
fn what_lies_in_place_already_does_not_cross() {
    let content = noise(2, DISK);
    let disks = Disks::new(vec![content.clone()]);
    let mut world = World::new(disks.clone(), true);
    let mut new = content;
    new[3 * BLOCK_BYTES + 7] ^= 1;
    world.write(0, &new, true);
    world.settle();
    assert!(disks.content() == new);
    let sent = world.sender.sent();
    // One block, and the end that is none.
    assert_eq!(sent.data_bytes, BLOCK + 1000);
    assert_eq!(sent.known_bytes, 11 * BLOCK);
}

#[test]
fn a_block_of_another_disk_is_used() {
    let block = noise(3, BLOCK_BYTES);
    let disks = Disks::new(vec![vec![0; DISK], block.clone()]);
    let index = Arc::new(Mutex::new(Index::new(10)));
    let other = Place { disk: 1, offset: 0 };
    index.lock().unwrap().seen(hash_of(&block), other);
    let mut receiver = Receiver::new(disks.clone(), 0, false, index);
    let ask = |number| FromSource::Ask {
        number,
        offset: BLOCK,
        hash: hash_of(&block),
    };
    let answer = receiver.take(ask(1)).unwrap();
    assert_eq!(answer, Some(ToSource::Answer { number: 1, has: true }));
    assert!(disks.content()[BLOCK_BYTES..2 * BLOCK_BYTES] == block);
    // It changed since: what is read is not what was asked for.
    disks.all.lock().unwrap()[1][0] ^= 1;
    disks.all.lock().unwrap()[0].fill(0);
    let answer = receiver.take(ask(2)).unwrap();
    assert_eq!(
        answer,
        Some(ToSource::Answer {
            number: 2,
            has: false
        })
    );
}

#[test]
fn frames_that_make_no_sense_end_the_tunnel() {
    let mut receiver = Receiver::new(
        Disks::new(vec![vec![0; DISK]]),
        0,
        false,
        Arc::new(Mutex::new(Index::new(10))),
    );
    let write = |offset, bytes| FromSource::Write {
        offset,
        data: vec![1; bytes],
    };
    assert!(receiver.take(write(DISK as u64 - 1, 2)).is_err());
    assert!(receiver.take(write(u64::MAX, 2)).is_err());
    let zero = FromSource::Zero {
        offset: 0,
        bytes: u64::MAX,
    };
    assert!(receiver.take(zero).is_err());
    let hash = [7; 32];
    let beyond = FromSource::Ask {
        number: 1,
        offset: 12 * BLOCK,
        hash,
    };
    assert!(receiver.take(beyond).is_err(), "a block over the end");
    let ask = FromSource::Ask {
        number: 2,
        offset: 0,
        hash,
    };
    receiver.take(ask).unwrap();
    let wrong = FromSource::Data {
        number: 2,
        data: vec![1; BLOCK_BYTES],
    };
    assert!(
        receiver
            .take(wrong.clone())
            .unwrap_err()
            .to_string()
            .contains("another hash")
    );
    assert!(receiver.take(wrong).is_err(), "of no question");
    assert!(Sender::default().answered(1, false).is_err());
    let too_long = FromSource::Write {
        offset: 0,
        data: vec![1; MAX_WRITE_BYTES + 1],
    };
    assert!(too_long.encode().is_err());
}

fn frames() -> impl Strategy<Value = FromSource> {
    prop_oneof![
        any::<(u64, u64, [u8; 32])>().prop_map(|(number, offset, hash)| FromSource::Ask {
            number,
            offset,
            hash
        }),
        (any::<u64>(), any::<u64>(), 0..=BLOCK_BYTES).prop_map(|(number, seed, len)| FromSource::Data {
            number,
            data: noise(seed, len)
        }),
        (any::<u64>(), any::<u8>(), 0..=BLOCK_BYTES).prop_map(|(offset, byte, len)| FromSource::Write {
            offset,
            data: vec![byte; len]
        }),
        any::<(u64, u64)>().prop_map(|(offset, bytes)| FromSource::Zero { offset, bytes }),
        any::<u64>().prop_map(|number| FromSource::Flush { number }),
    ]
}

#[derive(Clone, Debug)]
enum Act {
    Write { offset: usize, bytes: usize, seed: u64 },
    Zero { offset: usize, bytes: usize },
    Steps(u8),
    Flush,
}

fn acts() -> impl Strategy<Value = Act> {
    // Few contents, so that they repeat, and often at the borders of blocks.
    let offset = prop_oneof![(0..12usize).prop_map(|block| block * BLOCK_BYTES), 0..DISK];
    let bytes = prop_oneof![
        (1..4usize).prop_map(|blocks| blocks * BLOCK_BYTES),
        1..100_000usize
    ];
    prop_oneof![
        4 => (offset.clone(), bytes.clone(), 0..4u64)
            .prop_map(|(offset, bytes, seed)| Act::Write { offset, bytes, seed }),
        2 => (offset, bytes).prop_map(|(offset, bytes)| Act::Zero { offset, bytes }),
        3 => any::<u8>().prop_map(Act::Steps),
        1 => Just(Act::Flush),
    ]
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(64))]

    /// Whatever is written, and however late the answers are: the disk is as if it had been written in order.
    #[test]
    fn the_disk_is_as_it_was_written(
        acts in prop::collection::vec(acts(), 1..40),
        had_content in any::<bool>(),
        answers_first in any::<bool>(),
    ) {
        let start = if had_content { noise(1, DISK) } else { vec![0; DISK] };
        let disks = Disks::new(vec![start.clone()]);
        let mut world = World::new(disks.clone(), had_content);
        let mut expected = start;
        for act in acts {
            match act {
                Act::Write { offset, bytes, seed } => {
                    let bytes = bytes.min(DISK - offset);
                    let data = if seed == 0 { vec![0; bytes] } else { noise(seed, bytes) };
                    world.write(offset as u64, &data, answers_first);
                    expected[offset..][..bytes].copy_from_slice(&data);
                }
                Act::Zero { offset, bytes } => {
                    let bytes = bytes.min(DISK - offset);
                    world.zero(offset as u64, bytes as u64, answers_first);
                    expected[offset..][..bytes].fill(0);
                }
                Act::Steps(steps) => {
                    for _ in 0..steps % 16 {
                        world.step(answers_first);
                    }
                }
                Act::Flush => world.settle(),
            }
        }
        world.settle();
        prop_assert!(disks.content() == expected);
    }

    #[test]
    fn frames_come_as_they_went(frame in frames(), reason in "\\PC{0,100}") {
        let encoded = frame.encode().unwrap();
        let read = FromSource::read(&mut encoded.bytes.as_slice()).unwrap();
        prop_assert_eq!(read, Some(frame));
        let failed = ToSource::Failed { reason };
        prop_assert_eq!(ToSource::read(&mut failed.encode().as_slice()).unwrap(), Some(failed));
    }

    /// A frame that was damaged, or is none, is refused or read; it never panics.
    #[test]
    fn damaged_frames_harm_nobody(frame in frames(), at in any::<prop::sample::Index>(), bit in 0..8u8, cut in any::<bool>()) {
        let mut bytes = frame.encode().unwrap().bytes;
        let index = at.index(bytes.len());
        match cut {
            true => bytes.truncate(index),
            false => bytes[index] ^= 1 << bit,
        }
        let read = FromSource::read(&mut bytes.as_slice());
        prop_assert!(read.is_err() || bytes.is_empty(), "{:?}", read);
        let _ = ToSource::read(&mut bytes.as_slice());
    }
}
