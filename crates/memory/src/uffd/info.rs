//! What `/proc` tells about an open userfaultfd.

use std::os::fd::AsRawFd;

use super::{Features, Userfaultfd};
use crate::{Error, Result};

/// Set in the kernel's feature word once `UFFDIO_API` was called.
const INITIALIZED: u64 = 1 << 31;

/// A userfaultfd's state: how a daemon that takes over tells which one it found, and what is waiting.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct UffdInfo {
    /// The features that are on; `None` before the handshake.
    pub features: Option<Features>,
    /// Faults that nobody has read yet.
    pub pending: u64,
    /// Faults that are waiting, read or not.
    pub waiting: u64,
}

impl Userfaultfd {
    /// The state of this userfaultfd, whoever set it up.
    ///
    /// # Errors
    /// The descriptor is not a userfaultfd, or `/proc` is not there.
    pub fn info(&self) -> Result<UffdInfo> {
        let path = format!("/proc/self/fdinfo/{}", self.fd.as_raw_fd());
        let text = std::fs::read_to_string(&path).map_err(|e| Error::system(format!("read {path}"), e))?;
        parse(&text).ok_or_else(|| {
            let source = std::io::Error::other("it is not a userfaultfd");
            Error::system("use the descriptor as a userfaultfd", source)
        })
    }
}

/// Parses the lines `pending:`, `total:` and `API:` (version, features and requests, in hexadecimal).
fn parse(fdinfo: &str) -> Option<UffdInfo> {
    let field = |name: &str| {
        fdinfo
            .lines()
            .find_map(|line| line.strip_prefix(name))
            .map(str::trim)
    };
    let features = u64::from_str_radix(field("API:")?.split(':').nth(1)?, 16).ok()?;
    Some(UffdInfo {
        features: (features & INITIALIZED != 0).then(|| Features::from_bits_retain(features & !INITIALIZED)),
        pending: field("pending:")?.parse().ok()?,
        waiting: field("total:")?.parse().ok()?,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fdinfo_is_parsed() {
        let set_up = "pos:\t0\nflags:\t02004002\npending:\t2\ntotal:\t5\nAPI:\taa:8000a000:1ff\n";
        let features = Some(Features::WP_ASYNC | Features::WP_UNPOPULATED);
        assert_eq!(
            parse(set_up),
            Some(UffdInfo {
                features,
                pending: 2,
                waiting: 5
            })
        );
        let fresh = "pending:\t0\ntotal:\t0\nAPI:\taa:0:1ff\n";
        assert_eq!(
            parse(fresh),
            Some(UffdInfo {
                features: None,
                pending: 0,
                waiting: 0
            })
        );
        assert_eq!(parse("pos:\t0\nflags:\t02\neventfd-count: 0\n"), None);
    }
}
