//! What was learned, in a file: a daemon that is restarted goes on with it.

use std::fs;
use std::io;
use std::path::Path;

use vmferry_core::sampling::Learned;
use vmferry_wire::crc32;

use crate::dir::{read, remove};
use crate::error::RuntimeError;

/// What the file begins with; another layout gets another number, and the old file is not read any more.
const MAGIC: &[u8] = b"vmferry learned 1\n";

/// Writes it. A crash may leave half a file, which is found out when it is read.
///
/// # Errors
/// When the file cannot be written.
pub fn keep(path: &Path, learned: &Learned) -> Result<(), RuntimeError> {
    let failed = |source| RuntimeError::File {
        what: "write",
        path: path.to_owned(),
        source,
    };
    let encoded = postcard::to_stdvec(learned).map_err(|e| failed(io::Error::other(e)))?;
    let bytes = [MAGIC, &crc32(&encoded).to_le_bytes(), &encoded].concat();
    fs::write(path, bytes).map_err(failed)
}

/// Reads and removes it: from then on whoever reads it knows it better. None where there is no file, or one of another
/// version. It comes from an earlier time, so it has to prove itself once more.
///
/// # Errors
/// When the file cannot be read, or is damaged.
pub fn load(path: &Path) -> Result<Option<Learned>, RuntimeError> {
    let Some(bytes) = read(path)? else {
        return Ok(None);
    };
    remove(path);
    let Some(rest) = bytes.strip_prefix(MAGIC) else {
        return Ok(None);
    };
    let damaged = || RuntimeError::Damaged {
        path: path.to_owned(),
        why: "its checksum is wrong".into(),
    };
    let (sum, encoded) = rest.split_first_chunk::<4>().ok_or_else(damaged)?;
    if u32::from_le_bytes(*sum) != crc32(encoded) {
        return Err(damaged());
    }
    let learned: Learned = postcard::from_bytes(encoded).map_err(|_| damaged())?;
    Ok(Some(learned.on_trial()))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use vmferry_core::Tuning;

    use super::*;

    #[test]
    fn what_was_learned_is_read_once_and_damage_is_found() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("learned");
        assert!(load(&path).unwrap().is_none());
        let learned = Learned::new(1 << 14, &Tuning::default(), Duration::from_secs(7));
        keep(&path, &learned).unwrap();
        assert!(load(&path).unwrap() == Some(learned.clone()));
        assert!(load(&path).unwrap().is_none(), "it was removed");
        for cut in [MAGIC.len(), MAGIC.len() + 5, 500] {
            keep(&path, &learned).unwrap();
            let bytes = fs::read(&path).unwrap();
            fs::write(&path, &bytes[..cut]).unwrap();
            assert!(load(&path).is_err(), "cut to {cut} bytes");
        }
        fs::write(&path, "of another version").unwrap();
        assert!(load(&path).unwrap().is_none());
    }
}
