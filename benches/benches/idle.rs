//! What an idle guest with much untouched RAM costs: 4 GiB under QEMU, by pre-copy and by post-copy.

use anyhow::Result;
use vmferry_benches::{Figures, Output, completed, plain, runs};
use vmferry_core::Strategy;
use vmferry_tests::{Pair, TestGuest, need};

const RAM_MIB: u64 = 4096;
const MIB: f64 = (1 << 20) as f64;

fn main() {
    need!(Qemu, Root, Userfaultfd);
    measure().unwrap_or_else(|error| panic!("{error:#}"));
}

fn measure() -> Result<()> {
    let runs = runs(4)?;
    let mut output = Output::from_args()?;
    let dir = tempfile::tempdir()?;
    let guest = TestGuest::new("vm", dir.path(), RAM_MIB, "idle", &[]);
    let mut pair = Pair::new();
    pair.launch(&guest.spec);
    guest.console.wait_for("vmferry-guest: ready");
    println!("idle QEMU guest of {RAM_MIB} MiB, there and back");
    for strategy in [Strategy::PreCopy, Strategy::PostCopyPush] {
        let [mut data, mut wire, mut share, mut total, mut time] = [(); 5].map(|()| Figures::default());
        for _ in 0..runs {
            let vm = pair.source.guest("vm");
            let report = completed(pair.migrate(&vm, plain(pair.request(strategy))))?;
            let (bytes, used) = (report.bytes_on_wire as f64, report.data_bytes as f64);
            data.push(used / MIB);
            wire.push(bytes / MIB);
            share.push(bytes / used);
            total.push(report.total_ms);
            time.push(report.total_ms / (used / MIB));
            pair.turn_round("vm");
        }
        output.figures(&format!("{strategy}: RAM that holds data"), "MiB", &data);
        output.figures(&format!("{strategy}: bytes sent"), "MiB", &wire);
        output.figures(&format!("{strategy}: total time"), "ms", &total);
        output.figures(&format!("{strategy}: total time by used RAM"), "ms/MiB", &time);
        output.ratio(
            &format!("{strategy}: bytes sent / used"),
            share.median(),
            "about 1 or less",
        );
    }
    output.finish()
}
