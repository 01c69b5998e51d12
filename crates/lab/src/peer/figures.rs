//! What `query-migrate` says, read as far as it is needed.

use serde_json::Value;
use vmferry_core::PAGE_SIZE;
use vmferry_core::report::Progress;

/// An answer of `query-migrate`; what it does not have is 0.
pub(super) struct Figures<'a>(pub(super) &'a Value);

impl Figures<'_> {
    pub(super) fn text(&self, path: &str) -> &str {
        self.0.pointer(path).and_then(Value::as_str).unwrap_or_default()
    }

    pub(super) fn number(&self, path: &str) -> u64 {
        self.0.pointer(path).and_then(Value::as_u64).unwrap_or(0)
    }

    fn rate(&self, path: &str) -> f64 {
        self.0.pointer(path).and_then(Value::as_f64).unwrap_or(0.0)
    }

    /// Bytes that the source sent.
    pub(super) fn bytes_sent(&self) -> u64 {
        self.number("/ram/transferred")
    }

    /// Pages that crossed: whole, as one byte, or as a difference.
    pub(super) fn pages_sent(&self) -> u64 {
        self.number("/ram/normal") + self.number("/ram/duplicate") + self.number("/xbzrle-cache/pages")
    }

    /// Pages that the destination asked for.
    pub(super) fn pages_fetched(&self) -> u64 {
        self.number("/ram/postcopy-requests")
    }

    /// For whoever watches.
    pub(super) fn progress(&self, elapsed_ms: f64) -> Progress {
        Progress {
            phase: self.text("/status").to_owned(),
            round: u32::try_from(self.number("/ram/dirty-sync-count")).unwrap_or(u32::MAX),
            elapsed_ms,
            remaining_pages: self.number("/ram/remaining") / PAGE_SIZE,
            sent_pages: self.pages_sent(),
            bytes_on_wire: self.bytes_sent(),
            rate_bytes_per_s: self.rate("/ram/mbps") * 1e6 / 8.0,
            dirty_bytes_per_s: self.rate("/ram/dirty-pages-rate") * PAGE_SIZE as f64,
            faults: self.pages_fetched(),
            ..Progress::default()
        }
    }

    /// How far it is, for whoever asks why it did not end.
    pub(super) fn standing(&self) -> String {
        let look = self.progress(0.0);
        let mib = |bytes: f64| bytes / f64::from(1 << 20);
        format!(
            "{} after {} passes over memory, {:.0} MiB left; it sends {:.0} MiB/s, the guest writes {:.0} MiB/s",
            look.phase,
            look.round,
            mib(look.remaining_pages as f64 * PAGE_SIZE as f64),
            mib(look.rate_bytes_per_s),
            mib(look.dirty_bytes_per_s),
        )
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn figures_are_found_and_missing_ones_are_nothing() {
        let answer = json!({
            "status": "active",
            "ram": {"transferred": 5000, "normal": 7, "duplicate": 3, "remaining": 40_960, "mbps": 8.0,
                    "dirty-sync-count": 4, "dirty-pages-rate": 512, "postcopy-requests": 2},
            "xbzrle-cache": {"pages": 5}
        });
        let figures = Figures(&answer);
        assert_eq!(
            (
                figures.bytes_sent(),
                figures.pages_sent(),
                figures.pages_fetched()
            ),
            (5000, 15, 2)
        );
        let look = figures.progress(1.0);
        assert_eq!((look.round, look.remaining_pages), (4, 10));
        assert_eq!(
            (look.rate_bytes_per_s, look.dirty_bytes_per_s),
            (1e6, 2_097_152.0)
        );
        let standing = figures.standing();
        assert!(
            standing.starts_with("active after 4 passes") && standing.ends_with("writes 2 MiB/s"),
            "{standing}"
        );
        assert_eq!(Figures(&json!({})).bytes_sent(), 0);
    }
}
