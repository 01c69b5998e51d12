//! What a migration does beside moving memory.

use std::fmt;

use serde::{Deserialize, Serialize};
use vmferry_core::MigrationRequest;
use vmferry_core::report::Report;

/// What a migration does beside moving memory as it is. It takes time and spares or takes bytes that neither models of memory nor
/// simulations know of: such a migration teaches them nothing, and a forecast of it is without that.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct Beside {
    /// Disks move with the guest: their bytes and the time until they are copied count.
    pub disks: bool,
    /// Pages that the destination has cross as their hashes.
    pub reuse: bool,
    /// All pages are compared: during the stop, or at the end of a post-copy.
    pub verify: bool,
}

impl Beside {
    /// What was asked for.
    pub fn asked<To>(request: &MigrationRequest<To>) -> Self {
        Self {
            disks: request.disks.is_some(),
            reuse: request.reuse,
            verify: request.verify,
        }
    }

    /// What a report says was done.
    pub fn reported(report: &Report) -> Self {
        Self {
            disks: report.disks.is_some(),
            reuse: report.reuse.is_some(),
            verify: report.verified.is_some(),
        }
    }

    /// Whether it moved memory and did nothing else.
    pub fn is_nothing(&self) -> bool {
        *self == Self::default()
    }
}

/// What a forecast is without; nothing where there is nothing.
impl fmt::Display for Beside {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            (self.disks, "memory only; disks are not included"),
            (
                self.reuse,
                "pages that the destination has already are not taken off",
            ),
            (self.verify, "comparing all pages is not included"),
        ];
        let mut between = "";
        for (_, words) in parts.iter().filter(|(done, _)| *done) {
            write!(f, "{between}{words}")?;
            between = "; ";
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_forecast_is_without_is_said_in_words() {
        let disks = Beside {
            disks: true,
            ..Beside::default()
        };
        assert_eq!(disks.to_string(), "memory only; disks are not included");
        let all = Beside {
            reuse: true,
            verify: true,
            ..disks
        };
        assert_eq!(all.to_string().matches("; ").count(), 3);
        assert!(Beside::default().is_nothing() && Beside::default().to_string().is_empty());
    }
}
