//! Serde forms of byte strings: one length and a copy, rather than byte by byte.

/// `#[serde(with = "bytes::plain")]` for a `Vec<u8>`.
pub(crate) mod plain {
    use serde::{Deserialize, Deserializer, Serializer};

    pub(crate) fn serialize<S: Serializer>(bytes: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(bytes)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        <&[u8]>::deserialize(deserializer).map(<[u8]>::to_vec)
    }
}

/// `#[serde(with = "bytes::hashes")]` for 128-bit hashes: 16 bytes each, little-endian, as one byte string.
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
