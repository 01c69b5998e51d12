//! Downtime of an idle QEMU guest over loopback, against the same QEMU's bare stop, device state, load and resume
//! by hand, in turn.

use std::fs::File;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::{Context, Result};
use vmferry_benches::{Figures, Output, completed, plain, runs};
use vmferry_core::Strategy;
use vmferry_core::report::Report;
use vmferry_guest::{Backend as _, Vm};
use vmferry_guest_qemu::QemuBackend;
use vmferry_tests::{Ends, Pair, TestGuest, need};

fn main() {
    need!(Qemu, Root, Userfaultfd);
    measure().unwrap_or_else(|error| panic!("{error:#}"));
}

fn measure() -> Result<()> {
    let mut output = Output::from_args()?;
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
    let disk = dir.path().join("disk.img");
    File::create(&disk)?.set_len(32 << 20)?;
    let drive = format!("file={},format=raw,if=none,id=d", disk.display());
    let q35 = [
        "-drive",
        &drive,
        "-device",
        "virtio-blk-pci,drive=d",
        "-netdev",
        "user,id=n,restrict=on",
        "-device",
        "virtio-net-pci,netdev=n",
        "-device",
        "virtio-serial-pci",
    ];
    machine(
        &mut output,
        dir.path(),
        "q35 with disk, net, serial",
        &q35,
        "at most 1.5; at most 12 ms",
    )?;
    machine(&mut output, dir.path(), "microvm", &[], "at most 1.5")?;
    output.finish()
}

fn machine(output: &mut Output, dir: &Path, machine: &str, args: &[&str], wanted: &str) -> Result<()> {
    let runs = runs(10)?;
    let name = machine.split(' ').next().unwrap_or(machine);
    let mut guest = TestGuest::new(name, dir, 256, "idle", args);
    guest.spec.config["machine"] = name.into();
    let mut pair = Pair::new();
    pair.launch(&guest.spec);
    guest.console.wait_for("vmferry-guest: ready");
    // Idle also means that what booting left behind is done.
    std::thread::sleep(std::time::Duration::from_secs(5));
    let strategies = [Strategy::PreCopy, Strategy::PostCopyPush];
    let mut bare = Figures::default();
    let mut parts = [(); 4].map(|()| Figures::default());
    let mut ours = strategies.map(|_| Figures::default());
    let mut phases = strategies.map(|_| Vec::new());
    for _ in 0..runs {
        let by_hand = bare_move(&pair.source.guest(name), dir)?;
        bare.push(by_hand.iter().sum());
        parts.iter_mut().zip(by_hand).for_each(|(part, ms)| part.push(ms));
        for ((strategy, ours), phases) in strategies.into_iter().zip(&mut ours).zip(&mut phases) {
            let vm = pair.source.guest(name);
            let report = completed(pair.migrate(&vm, plain(pair.request(strategy))))?;
            ours.push(report.downtime_ms);
            pair.turn_round(name);
            note_phases(phases, &report);
        }
    }
    output.figures(&format!("{machine}: bare"), "ms", &bare);
    for (part, figures) in ["stop", "save", "load", "resume"].iter().zip(&parts) {
        output.figures(&format!("{machine}: bare: {part}"), "ms", figures);
    }
    for ((strategy, ours), phases) in strategies.iter().zip(&ours).zip(&phases) {
        output.figures(&format!("{machine}: {strategy}: downtime"), "ms", ours);
        output.ratio(
            &format!("{machine}: {strategy}: downtime / bare"),
            ours.median() / bare.median(),
            wanted,
        );
        for (phase, figures) in phases {
            output.figures(&format!("{machine}: {strategy}: phase {phase}"), "ms", figures);
        }
    }
    Ok(())
}

/// Where the time went: the phases of a migration by name, in order.
fn note_phases(phases: &mut Vec<(String, Figures)>, report: &Report) {
    for phase in &report.phases {
        let ms = phase.end_ms - phase.start_ms;
        match phases.iter_mut().find(|(name, _)| *name == phase.name) {
            Some((_, figures)) => figures.push(ms),
            None => {
                let mut figures = Figures::default();
                figures.push(ms);
                phases.push((phase.name.clone(), figures));
            }
        }
    }
}

/// Stops, saves, loads and resumes with all memory in place, and goes back to where it was: milliseconds of each.
fn bare_move(vm: &Arc<dyn Vm>, dir: &Path) -> Result<[f64; 4]> {
    let dir = tempfile::tempdir_in(dir)?;
    vm.prepare_out()?;
    // It ends also where a step fails.
    let there = QemuBackend
        .launch_incoming(vm.spec(), vm.ram().layout(), dir.path())
        .context("start the destination")?;
    let there = Ends(there);
    let copy = || -> Result<()> {
        for run in vm.ram().data_pages()?.runs() {
            let mut data = vec![0; run.bytes() as usize];
            vm.ram().read(run, &mut data);
            there.0.ram().write(run, &data);
        }
        Ok(())
    };
    copy()?;
    vm.before_stop()?;
    let mut at = Instant::now();
    let mut lap = || std::mem::replace(&mut at, Instant::now()).elapsed().as_secs_f64() * 1e3;
    vm.pause()?;
    let stop = lap();
    let state = vm.save_device_state()?;
    let save = lap();
    copy()?;
    lap();
    there.0.load_device_state(&state)?;
    let load = lap();
    there.0.resume()?;
    let resume = lap();
    drop(there);
    vm.resume()?;
    Ok([stop, save, load, resume])
}
