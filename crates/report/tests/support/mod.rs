//! What several tests of the report make and look at.
#![allow(dead_code, reason = "each test file uses a part")]
#![allow(unreachable_pub, reason = "a module of several test crates")]

use serde_json::{Value, json};

/// The text between two words.
pub fn between<'a>(page: &'a str, from: &str, to: &str) -> &'a str {
    let (_, rest) = page
        .split_once(from)
        .unwrap_or_else(|| panic!("{from} is not there"));
    rest.split_once(to)
        .unwrap_or_else(|| panic!("{to} is not there"))
        .0
}

/// The report of a pre-copy that took `total_ms` with a share of a core.
pub fn report(total_ms: f64, share: u32) -> Value {
    json!({
        "vm": "bench", "strategy": "pre-copy", "backend": "synth", "outcome": "completed", "total_ms": total_ms,
        "execution_transfer_ms": total_ms, "downtime_ms": 5.0, "perceived_downtime_ms": null, "micro_stops_ms": 0.0,
        "ram_bytes": 64 << 20, "data_bytes": 32 << 20, "bytes_on_wire": 33 << 20, "device_state_bytes": 100,
        "pages": {"sent": 8192, "resent": 0, "raw": 8192, "uniform": 0, "hole": 0, "free": 0, "filtered": 0, "compressed": 0,
            "delta": 0, "deduplicated": 0},
        "rounds": [], "phases": [],
        "faults": {"count": 0, "network": 0, "local": 0, "p50_us": 0.0, "p99_us": 0.0, "max_us": 0.0},
        "cpu_seconds": {"source": 1.0, "destination": 1.0}, "memory_bytes": {"source": 0, "destination": 0},
        "limits": {"downtime_ms": 300.0, "timeout_ms": null, "bandwidth_bytes_per_s": null, "bandwidth_waited_ms": 0.0,
            "cpu_percent": share, "cpu_waited_ms": 0.0},
    })
}
