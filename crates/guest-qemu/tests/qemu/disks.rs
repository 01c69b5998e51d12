//! Disks: mirrored from one QEMU to another, and read as of a moment while they are written.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread;
use std::time::Duration;

use vmferry_core::disks::{DiskProgress, DiskWrites};
use vmferry_disk::NbdClient;
use vmferry_disk::nbd::client::ALLOCATION;
use vmferry_guest::disks::{Before, MirrorTo};
use vmferry_guest::{
    Backend, DiskInfo, Disks, Guest, GuestSpec, GuestState, MigrateIn, MigrateOut, PlacedDisk,
};
use vmferry_guest_qemu::{QemuBackend, QemuGuest};

use crate::bench_guest::{Host, MIB, Running};
use crate::moves::copy;

/// Size of the disks.
const BYTES: u64 = 32 * MIB;

/// A guest with its boot disk and an empty one of `format` called `d`.
fn with_disk(host: &Host, format: &str) -> Running {
    let path = host.dir.path().join(format!("d.{format}"));
    let drive = format!("file={},format={format},if=none,id=d", path.display());
    let args = ["-drive", &drive, "-device", "virtio-blk-pci,drive=d,addr=0x10"];
    let disk = DiskInfo {
        id: "d".into(),
        path: path.clone(),
        format: format.into(),
        bytes: BYTES,
        has_backing: false,
    };
    let spec = host.config(&args).into_spec("bench");
    QemuBackend.create_disk(&spec, &disk, &path).unwrap();
    let again = QemuBackend.create_disk(&spec, &disk, &path);
    assert!(again.is_err(), "a file that is there is not created");
    host.boot(&args)
}

/// Has QEMU use the disk as its device would; it prints what came of it into its log.
fn use_disk(guest: &QemuGuest, what: &str) -> String {
    let log = PathBuf::from(format!("/proc/{}/fd/1", guest.pid().unwrap()));
    let before = fs::read(&log).unwrap().len();
    guest.qmp().human(&format!("qemu-io d \"{what}\"")).unwrap();
    String::from_utf8_lossy(&fs::read(&log).unwrap()[before..]).into_owned()
}

fn write(guest: &QemuGuest, offset: u64, bytes: u64, pattern: u8) {
    let said = use_disk(guest, &format!("write -P {pattern} {offset} {bytes}"));
    assert!(said.starts_with("wrote "), "{said}");
}

fn holds(guest: &QemuGuest, offset: u64, bytes: u64, pattern: u8) -> bool {
    let said = use_disk(guest, &format!("read -P {pattern} {offset} {bytes}"));
    said.starts_with("read ") && !said.contains("failed")
}

/// The same guest elsewhere, with disks of its own.
fn elsewhere(host: &Host, guest: &QemuGuest) -> (GuestSpec, Vec<DiskInfo>) {
    let disks = guest.list().unwrap();
    let folder = host.folder("disks there");
    let places: Vec<_> = disks
        .iter()
        .map(|disk| PlacedDisk {
            id: disk.id.clone(),
            path: folder.join(disk.path.file_name().unwrap()),
            was: Before::Nothing,
        })
        .collect();
    let spec = QemuBackend.place_disks(guest.spec(), &disks, &places).unwrap();
    for (disk, place) in disks.iter().zip(&places) {
        QemuBackend.create_disk(&spec, disk, &place.path).unwrap();
    }
    (spec, disks)
}

fn arriving(host: &Host, spec: &GuestSpec, source: &QemuGuest, name: &str) -> Running {
    let folder = host.folder(name);
    Running::new(
        QemuBackend
            .start_incoming(spec, source.ram().layout(), &folder)
            .unwrap(),
    )
}

fn mirror(guest: &QemuGuest, id: &str, socket: &Path, since: Option<String>) {
    let to = MirrorTo {
        socket: socket.to_owned(),
        export: id.into(),
        writes: DiskWrites::Background,
        bytes_per_s: None,
        since,
        keep: false,
    };
    guest.begin_mirror(id, &to).unwrap();
}

fn until_in_sync(guest: &QemuGuest, id: &str) -> DiskProgress {
    for _ in 0..3000 {
        let progress = guest.mirror_progress(id).unwrap();
        if progress.in_sync {
            return progress;
        }
        thread::sleep(Duration::from_millis(10));
    }
    panic!("disk {id} never came to be in sync");
}

fn same(one: &Path, other: &Path) -> bool {
    fs::read(one).unwrap() == fs::read(other).unwrap()
}

#[test]
fn disks_are_listed_as_the_configuration_names_them() {
    let Some(host) = Host::new() else { return };
    let guest = with_disk(&host, "qcow2");
    let disks = guest.list().unwrap();
    let seen: Vec<_> = disks
        .iter()
        .map(|disk| (disk.id.as_str(), disk.format.as_str(), disk.bytes))
        .collect();
    assert_eq!(seen, [("virtio0", "raw", MIB), ("d", "qcow2", BYTES)]);
    let named = QemuBackend.disk_files(guest.spec());
    assert_eq!(
        named,
        disks
            .iter()
            .map(|disk| disk.path.clone())
            .collect::<Vec<PathBuf>>()
    );
}

/// A whole mirror there, and only the changes back.
#[test]
fn mirrors_settle_equal_and_what_changes_afterwards_is_known() {
    let Some(host) = Host::new() else { return };
    let source = with_disk(&host, "raw");
    write(&source, 0, 3 * MIB, 7);
    let (spec, disks) = elsewhere(&host, &source);
    let destination = arriving(&host, &spec, &source, "destination");
    let socket = host.dir.path().join("nbd.sock");
    destination.export(&disks, &socket).unwrap();
    disks
        .iter()
        .for_each(|disk| mirror(&source, &disk.id, &socket, None));
    for disk in &disks {
        let progress = until_in_sync(&source, &disk.id);
        assert!(progress.done_bytes >= disk.bytes.min(3 * MIB), "{progress:?}");
    }
    write(&source, 20 * MIB, MIB, 9);
    assert!(source.settle_mirrors().is_err(), "it runs");
    source.prepare_out().unwrap();
    source.before_stop().unwrap();
    source.pause().unwrap();
    source.settle_mirrors().unwrap();
    destination.end_export(Some("s1")).unwrap();
    copy(&source, &destination, &source.ram().data_pages().unwrap());
    let state = source.save_device_state().unwrap();
    destination.load_device_state(&state).unwrap();
    let there = QemuBackend.disk_files(&spec);
    for (disk, copy) in disks.iter().zip(&there) {
        assert!(same(&disk.path, copy), "{}", disk.id);
    }
    assert_eq!(destination.recorded_since("d").unwrap().as_deref(), Some("s1"));
    // Blocks that hold nothing are holes at the destination too.
    assert!(fs::metadata(&there[1]).unwrap().blocks() * 512 <= 5 * MIB);

    // It runs there, and only what it changes crosses on its way back.
    destination.resume().unwrap();
    write(&destination, 8 * MIB, 2 * MIB, 5);
    source.destroy();
    let home = arriving(&host, source.spec(), &destination, "home again");
    let back = host.dir.path().join("back.sock");
    home.export(&disks, &back).unwrap();
    for disk in &disks {
        let state = destination.recorded_since(&disk.id).unwrap();
        mirror(&destination, &disk.id, &back, state);
    }
    let first = until_in_sync(&destination, "d");
    assert_eq!(first.done_bytes, 2 * MIB, "nothing but the changes");
    write(&destination, 9 * MIB, MIB, 6);
    destination.pause().unwrap();
    destination.settle_mirrors().unwrap();
    home.end_export(None).unwrap();
    assert!(same(&disks[1].path, &there[1]));
    assert!(holds(&home, 8 * MIB, MIB, 5) && holds(&home, 9 * MIB, MIB, 6));
}

/// Whatever happens to the copy, the guest goes on and its disk can be written.
#[test]
fn a_copy_that_breaks_off_is_told_and_harms_nobody() {
    let Some(host) = Host::new() else { return };
    let source = with_disk(&host, "qcow2");
    write(&source, 0, 3 * MIB, 7);
    let unknown = MirrorTo {
        socket: host.dir.path().join("nobody.sock"),
        export: "d".into(),
        writes: DiskWrites::Blocking,
        bytes_per_s: None,
        since: Some("s1".into()),
        keep: false,
    };
    let error = source.begin_mirror("d", &unknown).unwrap_err().to_string();
    assert!(error.contains("was not recorded"), "{error}");
    let nobody = MirrorTo {
        since: None,
        ..unknown
    };
    assert!(source.begin_mirror("d", &nobody).is_err());
    for abandon in [true, false] {
        let (spec, disks) = elsewhere(&host, &source);
        let destination = arriving(&host, &spec, &source, "destination");
        let socket = host.dir.path().join("nbd.sock");
        destination.export(&disks, &socket).unwrap();
        mirror(&source, "d", &socket, None);
        until_in_sync(&source, "d");
        match abandon {
            true => source.abandon_mirrors(),
            false => {
                destination.destroy();
                write(&source, 5 * MIB, MIB, 3);
                let mut looks = 0;
                while source.mirror_progress("d").is_ok() {
                    looks += 1;
                    assert!(looks < 3000, "the loss of the copy is never told");
                    thread::sleep(Duration::from_millis(10));
                }
                source.abandon_mirrors();
            }
        }
        assert!(source.mirror_progress("d").is_err());
        write(&source, 5 * MIB, MIB, 4);
        assert!(holds(&source, 5 * MIB, MIB, 4));
        source.wait_for_progress();
        drop(destination);
        fs::remove_dir_all(host.dir.path().join("disks there")).unwrap();
    }
}

#[test]
fn an_export_of_another_size_is_refused() {
    let Some(host) = Host::new() else { return };
    let source = with_disk(&host, "raw");
    let (spec, mut disks) = elsewhere(&host, &source);
    let destination = arriving(&host, &spec, &source, "destination");
    disks[1].bytes += 512;
    let socket = host.dir.path().join("nbd.sock");
    let error = destination.export(&disks, &socket).unwrap_err().to_string();
    assert!(error.contains("bytes here"), "{error}");
    disks[1].bytes -= 512;
    destination.export(&disks, &socket).unwrap();
}

/// A snapshot is what the disk was, whatever is written meanwhile; and what was written between two of them is known.
#[test]
fn a_snapshot_holds_while_the_guest_writes() {
    let Some(host) = Host::new() else { return };
    for format in ["raw", "qcow2"] {
        let guest = with_disk(&host, format);
        write(&guest, 0, 4 * MIB, 1);
        let folder = host.folder("snapshot");
        let snapshot = || {
            guest.prepare_snapshot(&folder).unwrap();
            assert!(guest.begin_snapshot().is_err(), "it runs");
            guest.pause().unwrap();
            guest.begin_snapshot().unwrap();
            guest.resume().unwrap();
            guest.open_snapshot().unwrap().remove(1)
        };
        let first = snapshot();
        assert_eq!(first.written, None, "nothing is known of the time before");
        write(&guest, MIB, MIB, 2);
        write(&guest, 10 * MIB, MIB, 2);
        let mut disk = NbdClient::connect(&first.socket, &first.export, Some(ALLOCATION)).unwrap();
        assert_eq!((disk.bytes(), disk.is_read_only()), (BYTES, true));
        let mut data = vec![0; BYTES as usize];
        disk.read(0, &mut data).unwrap();
        let (head, rest) = data.split_at(4 * MIB as usize);
        assert!(
            head.iter().all(|&byte| byte == 1) && rest.iter().all(|&byte| byte == 0),
            "{format}"
        );
        let extents = disk.extents(0, BYTES).unwrap();
        assert!(
            !extents[0].is_zero() && extents[0].bytes >= 4 * MIB,
            "{extents:?}"
        );
        assert!(extents.last().unwrap().is_zero(), "{extents:?}");
        guest.check_snapshot().unwrap();
        drop(disk);
        guest.end_snapshot(true);
        assert!(guest.check_snapshot().is_err());
        assert!(holds(&guest, MIB, MIB, 2) && holds(&guest, 0, MIB, 1));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "nothing is left of it");

        // One that is not stored forgets nothing of what the next one has to tell.
        for stored in [false, true] {
            let next = snapshot();
            let (export, context) = next.written.unwrap();
            let mut written = NbdClient::connect(&next.socket, &export, Some(&context)).unwrap();
            let dirty: u64 = written
                .extents(0, BYTES)
                .unwrap()
                .iter()
                .filter(|extent| extent.is_dirty())
                .map(|extent| extent.bytes)
                .sum();
            assert_eq!(dirty, 2 * MIB, "{format}");
            drop(written);
            guest.end_snapshot(stored);
        }
        guest.wait_for_progress();
        guest.destroy();
    }
}

/// As a checkpoint does it: QEMU has saved its devices, and so has let go of its disks, when the snapshot begins; then it runs
/// on. Again and again.
#[test]
fn a_snapshot_begins_after_the_device_state_was_saved() {
    let Some(host) = Host::new() else { return };
    for format in ["raw", "qcow2"] {
        let guest = with_disk(&host, format);
        let folder = host.folder("snapshot");
        for round in 1..4 {
            write(&guest, 0, MIB, round);
            guest.prepare_out().unwrap();
            guest.prepare_snapshot(&folder).unwrap();
            guest.before_stop().unwrap();
            guest.pause().unwrap();
            guest.save_device_state().unwrap();
            guest.begin_snapshot().unwrap();
            guest.resume().unwrap();
            let snapshot = guest.open_snapshot().unwrap().remove(1);
            write(&guest, 0, MIB, 9);
            let mut disk = NbdClient::connect(&snapshot.socket, &snapshot.export, None).unwrap();
            let mut data = vec![0; MIB as usize];
            disk.read(0, &mut data).unwrap();
            assert!(data.iter().all(|&byte| byte == round), "{format}, round {round}");
            assert_eq!(snapshot.written.is_some(), round > 1);
            guest.check_snapshot().unwrap();
            drop(disk);
            guest.end_snapshot(true);
            assert!(
                holds(&guest, 0, MIB, 9),
                "{format}: the guest's own writes are its disk's"
            );
        }
    }
}

/// No room for what the guest overwrites: the snapshot is lost, the guest does not notice.
#[test]
fn a_snapshot_without_room_is_lost_and_the_guest_goes_on() {
    let Some(host) = Host::new() else { return };
    let folder = host.folder("small");
    let Some(_small) = Tmpfs::mount(&folder, "2m") else {
        return eprintln!("skipped: a file system cannot be mounted here");
    };
    let guest = with_disk(&host, "raw");
    write(&guest, 0, 8 * MIB, 1);
    guest.prepare_snapshot(&folder).unwrap();
    guest.pause().unwrap();
    guest.begin_snapshot().unwrap();
    guest.resume().unwrap();
    let snapshot = guest.open_snapshot().unwrap().remove(1);
    write(&guest, 0, 8 * MIB, 2);
    assert!(holds(&guest, 0, 8 * MIB, 2));
    let mut disk = NbdClient::connect(&snapshot.socket, &snapshot.export, None).unwrap();
    let read = disk.read(0, &mut vec![0; 8 * MIB as usize]);
    assert!(read.is_err(), "what is lost is not read as something else");
    drop(disk);
    guest.end_snapshot(false);
    assert_eq!(guest.state(), GuestState::Running);
    guest.wait_for_progress();
    write(&guest, 0, MIB, 3);
}

/// A daemon that ends in the middle leaves a filter: the next snapshot takes it out.
#[test]
fn what_a_daemon_left_of_a_snapshot_is_cleared_up() {
    let Some(host) = Host::new() else { return };
    let guest = with_disk(&host, "qcow2");
    let folder = host.folder("snapshot");
    guest.prepare_snapshot(&folder).unwrap();
    guest.pause().unwrap();
    guest.begin_snapshot().unwrap();
    guest.resume().unwrap();
    guest.open_snapshot().unwrap();
    let spec = guest.spec().clone();
    guest.leave();
    let found = Running::new(QemuBackend.find(&spec, &host.folder("source")).unwrap());
    fs::remove_dir_all(&folder).unwrap();
    fs::create_dir(&folder).unwrap();
    found.prepare_snapshot(&folder).unwrap();
    found.pause().unwrap();
    found.begin_snapshot().unwrap();
    found.resume().unwrap();
    let ids: Vec<_> = found
        .open_snapshot()
        .unwrap()
        .into_iter()
        .map(|disk| disk.disk.id)
        .collect();
    assert_eq!(ids, ["virtio0", "d"]);
    found.end_snapshot(false);
    write(&found, 0, MIB, 3);
    found.wait_for_progress();
}

/// A small file system, unmounted when it is dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(at: &Path, size: &str) -> Option<Self> {
        let options = format!("size={size}");
        let mounted = Command::new("mount")
            .args(["-t", "tmpfs", "-o", &options, "vmferry-test"])
            .arg(at)
            .status();
        mounted
            .is_ok_and(|status| status.success())
            .then(|| Self(at.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}
