//! Serde forms that allocate no more than their content is worth, for `#[serde(with = "...")]`.

/// A byte string: one length and a copy, rather than byte by byte.
pub(crate) mod bytes {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        <&[u8]>::deserialize(deserializer).map(<[u8]>::to_vec)
    }
}

/// 128-bit hashes: 16 bytes each, little-endian, as one byte string.
pub(crate) mod hashes {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    const HASH_BYTES: usize = size_of::<u128>();

    pub(crate) fn serialize<S: Serializer>(hashes: &[u128], serializer: S) -> Result<S::Ok, S::Error> {
        let flat: Vec<u8> = hashes.iter().flat_map(|hash| hash.to_le_bytes()).collect();
        serializer.serialize_bytes(&flat)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u128>, D::Error> {
        let flat = <&[u8]>::deserialize(deserializer)?;
        let (hashes, rest) = flat.as_chunks::<HASH_BYTES>();
        if !rest.is_empty() {
            return Err(D::Error::invalid_length(flat.len(), &"a multiple of 16 bytes"));
        }
        Ok(hashes.iter().map(|&hash| u128::from_le_bytes(hash)).collect())
    }
}

/// The beginnings of hashes: 8 bytes each, little-endian, as one byte string.
pub(crate) mod fingerprints {
    use serde::de::Error as _;
    use serde::{Deserialize, Deserializer, Serializer};

    const BYTES: usize = size_of::<u64>();

    pub(crate) fn serialize<S: Serializer>(all: &[u64], serializer: S) -> Result<S::Ok, S::Error> {
        let flat: Vec<u8> = all.iter().flat_map(|one| one.to_le_bytes()).collect();
        serializer.serialize_bytes(&flat)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u64>, D::Error> {
        let flat = <&[u8]>::deserialize(deserializer)?;
        let (all, rest) = flat.as_chunks::<BYTES>();
        if !rest.is_empty() {
            return Err(D::Error::invalid_length(flat.len(), &"a multiple of 8 bytes"));
        }
        Ok(all.iter().map(|&one| u64::from_le_bytes(one)).collect())
    }
}

/// The blocks of a layout: no more of them are taken than a layout may have. (A vector would grow to many
/// times the bytes of the message before its length is looked at.)
pub(crate) mod blocks {
    use std::fmt;

    use serde::de::{Error as _, SeqAccess, Visitor};
    use serde::{Deserializer, Serialize as _, Serializer};
    use vmferry_core::layout::MAX_BLOCKS;
    use vmferry_core::{RamBlock, RamLayout};

    pub(crate) fn serialize<S: Serializer>(layout: &RamLayout, serializer: S) -> Result<S::Ok, S::Error> {
        layout.blocks().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<RamLayout, D::Error> {
        deserializer.deserialize_seq(Blocks)
    }

    struct Blocks;

    impl<'de> Visitor<'de> for Blocks {
        type Value = RamLayout;

        fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
            write!(f, "1 to {MAX_BLOCKS} RAM blocks")
        }

        fn visit_seq<A: SeqAccess<'de>>(self, mut sequence: A) -> Result<RamLayout, A::Error> {
            let mut blocks = Vec::new();
            while let Some(block) = sequence.next_element::<RamBlock>()? {
                if blocks.len() == MAX_BLOCKS {
                    return Err(A::Error::invalid_length(MAX_BLOCKS + 1, &self));
                }
                blocks.push(block);
            }
            RamLayout::new(blocks).map_err(A::Error::custom)
        }
    }
}

/// A peer's text for the operator: without control characters, so that it cannot play with the terminal.
pub(crate) mod one_line {
    use serde::{Deserialize, Deserializer};

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<String, D::Error> {
        <&str>::deserialize(deserializer).map(of)
    }

    /// `text` with a space for each control character.
    pub(crate) fn of(text: &str) -> String {
        text.chars()
            .map(|c| if c.is_control() { ' ' } else { c })
            .collect()
    }

    /// The longest beginning of `text` of at most `limit` bytes that is whole characters.
    pub(crate) fn cut(text: &str, limit: usize) -> &str {
        let mut end = limit.min(text.len());
        while !text.is_char_boundary(end) {
            end -= 1;
        }
        &text[..end]
    }
}
