//! Answers who measures the way to this host. It costs this host a thread and the link, so few may at a time, and none for long.

use std::io::Read as _;
use std::time::{Duration, Instant};

use vmferry_transport::BoxedStream;
use vmferry_wire::Probe;

use crate::costs::HostCosts;

/// How long a prober may be silent.
const PATIENCE: Duration = Duration::from_secs(10);
/// How long one may go on.
const MOST_TIME: Duration = Duration::from_secs(120);
/// Bytes read at once.
const STEP: usize = 256 << 10;

/// Answers until the prober is done, silent, or nonsensical.
pub(super) fn serve(mut stream: BoxedStream) {
    if stream.set_read_timeout(Some(PATIENCE)).is_err() {
        return;
    }
    let began = Instant::now();
    let mut buffer = Vec::new();
    while began.elapsed() < MOST_TIME {
        // Whatever is wrong: the prober notices, and nobody here depends on it.
        let Ok(probe) = Probe::read(&mut stream) else {
            return;
        };
        let answered = match probe {
            Probe::Ping(_) => probe.write(&mut stream),
            Probe::Load(bytes) => match swallow(&mut stream, bytes, &mut buffer) {
                Ok(()) => probe.write(&mut stream),
                Err(_) => return,
            },
            Probe::Costs(_) => say_costs(&mut stream),
        };
        if answered.is_err() {
            return;
        }
    }
}

fn swallow(stream: &mut BoxedStream, bytes: u64, buffer: &mut Vec<u8>) -> std::io::Result<()> {
    buffer.resize(STEP, 0);
    let mut left = bytes;
    while left > 0 {
        let part = (left as usize).min(STEP);
        match stream.read(&mut buffer[..part])? {
            0 => return Err(std::io::ErrorKind::UnexpectedEof.into()),
            came => left -= came as u64,
        }
    }
    Ok(())
}

fn say_costs(stream: &mut BoxedStream) -> vmferry_wire::Result<()> {
    let costs = HostCosts::measure(None);
    let text = serde_json::to_vec(&costs).unwrap_or_default();
    Probe::Costs(text.len() as u64).write(stream)?;
    std::io::Write::write_all(stream, &text).map_err(|source| vmferry_wire::WireError::Write {
        what: "the costs of a host",
        source,
    })
}
