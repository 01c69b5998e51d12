//! How long each part of the stop takes on this machine, with no memory to move: stop, save the device state,
//! load it, run. The guest is made from QEMU arguments on the command line and is best idle by then:
//!
//! ```text
//! cargo run --release -p vmferry-guest-qemu --example downtime -- \
//!     -kernel vmlinuz -initrd initramfs.cpio -append console=ttyS0 -serial file:/tmp/serial.log \
//!     -drive file=disk.img,format=raw,if=virtio -nic user,model=virtio-net-pci
//! ```

use std::time::{Duration, Instant};

use vmferry_guest::{FaultMode, Guest, MigrateIn, MigrateOut};
use vmferry_guest_qemu::{QemuBackend, QemuConfig};

const ROUNDS: usize = 12;
const RAM_BYTES: u64 = 512 << 20;
const BOOT_TIME: Duration = Duration::from_secs(25);

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let spec = QemuConfig::new(RAM_BYTES, std::env::args().skip(1)).into_spec("downtime");
    let folder = tempfile::tempdir()?;
    let source_dir = folder.path().join("source");
    std::fs::create_dir(&source_dir)?;
    let source = QemuBackend.start(&spec, &source_dir)?;
    let result = measure(&source, folder.path());
    source.destroy();
    result
}

fn measure(
    source: &vmferry_guest_qemu::QemuGuest,
    folder: &std::path::Path,
) -> Result<(), Box<dyn std::error::Error>> {
    eprintln!("{BOOT_TIME:?} for the guest to boot ...");
    std::thread::sleep(BOOT_TIME);
    let names = ["stop", "save", "load", "cont", "all"];
    let mut times: [Vec<f64>; 5] = Default::default();
    let mut state_bytes = 0;
    for round in 0..ROUNDS {
        let dir = folder.join(format!("destination-{round}"));
        std::fs::create_dir(&dir)?;
        let destination = QemuBackend.start_incoming(source.spec(), source.ram().layout(), &dir)?;
        source.prepare_out()?;
        // A first copy while the source runs, and faults armed as a hybrid does; the rest within the stop.
        let copy = || -> Result<(), Box<dyn std::error::Error>> {
            for run in source.ram().data_pages()?.runs() {
                let mut data = vec![0; run.bytes() as usize];
                source.ram().read(run, &mut data);
                destination.ram().write(run, &data);
            }
            Ok(())
        };
        copy()?;
        let faults = destination.page_faults(FaultMode::Missing)?;
        source.before_stop()?;
        std::thread::sleep(Duration::from_millis(300));

        let stop = Instant::now();
        source.pause()?;
        let stop_ms = ms(stop);
        let save = Instant::now();
        let state = source.save_device_state()?;
        let save_ms = ms(save);
        state_bytes = state.len();
        copy()?;
        faults.release()?;
        let load = Instant::now();
        destination.load_device_state(&state)?;
        let load_ms = ms(load);
        let cont = Instant::now();
        destination.resume()?;
        let cont_ms = ms(cont);
        let all = stop_ms + save_ms + load_ms + cont_ms;
        for (list, value) in times.iter_mut().zip([stop_ms, save_ms, load_ms, cont_ms, all]) {
            list.push(value);
        }
        std::thread::sleep(Duration::from_millis(200));
        destination.destroy();
        source.resume()?;
    }
    println!("device state: {state_bytes} bytes; median (minimum, maximum) of {ROUNDS} in ms:");
    for (name, list) in names.iter().zip(&mut times) {
        list.sort_by(f64::total_cmp);
        println!(
            "{name:>5} {:6.2} ({:.2}, {:.2})",
            list[ROUNDS / 2],
            list[0],
            list[ROUNDS - 1]
        );
    }
    Ok(())
}

fn ms(since: Instant) -> f64 {
    since.elapsed().as_secs_f64() * 1e3
}
