//! The files of disks that come and go with their guests.
//!
//! Beside the file of a disk that is not just that of a guest of this host lies a *mark*, `FILE.vmferry`:
//!
//! | mark | meaning |
//! |---|---|
//! | arriving | a migration writes to it; the guest is another host's |
//! | incomplete | a migration that wrote to it ended early: its content is neither the old one nor the guest's |
//! | left | its guest moved on; it is as of the stop, and the name of that state is known |
//!
//! What a guest's directory has to know of its disks while they arrive is in `disks.json`, so that a daemon that is restarted
//! clears up what its predecessor began.

use std::ffi::OsString;
use std::fs::{self, Metadata};
use std::io::{self, ErrorKind};
use std::os::unix::fs::MetadataExt as _;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use vmferry_core::disks::DisksReport;
use vmferry_guest::disks::{Before, PlannedDisk};
use vmferry_guest::{Backend, DiskPlan, GuestSpec, PlacedDisk};

use super::host::of_guest;
use super::refusal::Refusal;
use super::state_dir;

/// The mark of a disk.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "is", rename_all = "kebab-case")]
enum Mark {
    Arriving {
        vm: String,
        /// The file was made for it.
        created: bool,
    },
    Incomplete {
        vm: String,
        why: String,
    },
    Left {
        vm: String,
        /// Name of the state.
        state: String,
        /// The file as it was left: who changed it since shows here.
        bytes: u64,
        modified_ns: i64,
    },
}

/// A disk on its way here.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Arriving {
    pub(super) place: PlacedDisk,
    /// What was there before, by size and time of change: nothing was written while it is the same.
    before: Option<(u64, i64)>,
    /// And how that was marked.
    mark: Option<Mark>,
}

/// Finds and makes the places of all disks of a plan. On an error nothing is left.
pub(super) fn make_room(
    backend: &dyn Backend,
    spec: &GuestSpec,
    plan: &DiskPlan,
) -> Result<Vec<Arriving>, Refusal> {
    let mut arriving: Vec<Arriving> = Vec::new();
    for planned in &plan.disks {
        let made = place_of(plan, planned, &arriving).and_then(|place| begin(backend, spec, planned, place));
        match made {
            Ok(disk) => arriving.push(disk),
            Err(refusal) => {
                give_up(&spec.name, &arriving, "its guest was refused");
                return Err(refusal);
            }
        }
    }
    Ok(arriving)
}

/// Creates the disk at its place where nothing is there, and marks it.
fn begin(
    backend: &dyn Backend,
    spec: &GuestSpec,
    planned: &PlannedDisk,
    place: PlacedDisk,
) -> Result<Arriving, Refusal> {
    let path = place.path.clone();
    let created = place.was == Before::Nothing;
    let disk = Arriving {
        before: fs::metadata(&path)
            .ok()
            .filter(|_| !created)
            .map(|found| stamp(&found)),
        mark: read_mark(&path).filter(|_| !created),
        place,
    };
    if created {
        backend
            .create_disk(spec, &planned.disk, &path)
            .map_err(of_guest)?;
    }
    let vm = spec.name.clone();
    mark(&path, &Mark::Arriving { vm, created })
        .map_err(|error| cannot_write(&path, &error))
        .inspect_err(|_| remove_created(&disk.place))?;
    Ok(disk)
}

/// Where a disk goes, and what is there.
fn place_of(plan: &DiskPlan, planned: &PlannedDisk, others: &[Arriving]) -> Result<PlacedDisk, Refusal> {
    let disk = &planned.disk;
    let path = match &plan.folder {
        Some(folder) => {
            let file = disk.path.file_name().ok_or_else(|| {
                Refusal::bad_request(format!("the disk {} has no file name", disk.path.display()))
            })?;
            folder.join(file)
        }
        None => disk.path.clone(),
    };
    if others.iter().any(|other| other.place.path == path) {
        return Err(
            Refusal::bad_request(format!("two disks would lie at {}", path.display()))
                .mend("give their files different names"),
        );
    }
    let found = match fs::metadata(&path) {
        Ok(found) => Some(found),
        Err(error) if error.kind() == ErrorKind::NotFound => None,
        Err(error) => return Err(cannot_look(&path, &error)),
    };
    let was = match (&planned.since, found) {
        (None, None) => Before::Nothing,
        // Left by a migration that did not get far, for which it had been made: nobody's.
        (None, Some(_)) if matches!(read_mark(&path), Some(Mark::Arriving { created: true, .. })) => {
            fs::remove_file(&path).map_err(|error| cannot_write(&path, &error))?;
            Before::Nothing
        }
        (None, Some(_)) if plan.overwrite => Before::Other,
        (None, Some(_)) => {
            return Err(
                Refusal::conflict(format!("the disk {} is there already", path.display()))
                    .mend("remove it, choose another folder with --disk-dir, or use --overwrite-disks"),
            );
        }
        (Some(state), found) => {
            check_state(&path, state, found.as_ref())?;
            Before::Earlier
        }
    };
    Ok(PlacedDisk {
        id: disk.id.clone(),
        path,
        was,
    })
}

/// Whether the file is the disk in this state.
fn check_state(path: &Path, state: &str, found: Option<&Metadata>) -> Result<(), Refusal> {
    let refuse = |why: &str| {
        Err(Refusal::conflict(format!(
            "the disk {} {why}, so what changed since is not enough",
            path.display()
        ))
        .mend("migrate it without --incremental, and where it is there with --overwrite-disks"))
    };
    match (read_mark(path), found) {
        (_, None) => refuse("is not there"),
        (Some(Mark::Left { state: left, .. }), _) if left != state => {
            refuse("was left behind in another state")
        }
        (
            Some(Mark::Left {
                bytes, modified_ns, ..
            }),
            Some(found),
        ) if (bytes, modified_ns) != stamp(found) => refuse("was changed since its guest left"),
        (Some(Mark::Left { .. }), _) => Ok(()),
        (Some(Mark::Arriving { .. } | Mark::Incomplete { .. }), _) => refuse("is incomplete"),
        (None, _) => refuse("was not left behind by this guest"),
    }
}

/// The disks are their guest's from now on.
pub(super) fn arrived(dir: &Path) {
    for disk in load(dir) {
        clear(&disk.place.path);
    }
    let _ = fs::remove_file(list(dir));
}

/// The guest did not come: what was made for it goes, what was overwritten is marked. None is no error.
pub(super) fn discarded(vm: &str, dir: &Path, why: &str) {
    give_up(vm, &load(dir), why);
    let _ = fs::remove_file(list(dir));
}

/// A guest moved on with its disks: marks their files with the state they are in.
pub(super) fn left(vm: &str, report: &DisksReport) {
    for disk in &report.disks {
        let path = Path::new(&disk.source);
        let marked = fs::metadata(path).and_then(|found| {
            let (bytes, modified_ns) = stamp(&found);
            let mark_it = Mark::Left {
                vm: vm.to_owned(),
                state: report.state.clone(),
                bytes,
                modified_ns,
            };
            mark(path, &mark_it)
        });
        if let Err(error) = marked {
            tracing::warn!("{} is not marked as left behind: {error}", path.display());
        }
    }
}

/// The guest runs here: whatever its disks were marked as, they are its own.
pub(super) fn in_use(paths: &[PathBuf]) {
    paths.iter().for_each(|path| clear(path));
}

/// Whether a disk is of no use to anybody.
pub(super) fn check_usable(path: &Path) -> Result<(), Refusal> {
    let why = match read_mark(path) {
        Some(Mark::Arriving { vm, .. }) => format!("a migration of {vm} writes to it, or ended while it did"),
        Some(Mark::Incomplete { vm, why }) => format!("a migration of {vm} ended early: {why}"),
        Some(Mark::Left { .. }) | None => return Ok(()),
    };
    Err(
        Refusal::conflict(format!("the disk {} is incomplete: {why}", path.display()))
            .mend(format!("remove {}, if you know better", mark_of(path).display())),
    )
}

/// Remembers the places in the directory of their guest.
pub(super) fn store(dir: &Path, arriving: &[Arriving]) -> io::Result<()> {
    state_dir::store(&list(dir), &serde_json::to_vec_pretty(arriving)?)
}

/// The disks do not arrive: what was made for them goes, and what was written to is marked.
pub(super) fn give_up(vm: &str, arriving: &[Arriving], why: &str) {
    for Arriving {
        place,
        before,
        mark: old,
    } in arriving
    {
        if place.was == Before::Nothing {
            remove_created(place);
            clear(&place.path);
            continue;
        }
        if fs::metadata(&place.path).ok().map(|found| stamp(&found)) == *before {
            let restored = old.as_ref().map(|old| mark(&place.path, old));
            if !matches!(restored, Some(Ok(()))) {
                clear(&place.path);
            }
            continue;
        }
        let incomplete = Mark::Incomplete {
            vm: vm.to_owned(),
            why: why.to_owned(),
        };
        match mark(&place.path, &incomplete) {
            Ok(()) => tracing::warn!("{} is incomplete now: {why}", place.path.display()),
            Err(error) => tracing::error!(
                "{} is incomplete and cannot be marked: {error}",
                place.path.display()
            ),
        }
    }
}

fn remove_created(place: &PlacedDisk) {
    if place.was != Before::Nothing {
        return;
    }
    if let Err(error) = fs::remove_file(&place.path)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!("cannot remove {}: {error}", place.path.display());
    }
}

fn load(dir: &Path) -> Vec<Arriving> {
    let Ok(bytes) = fs::read(list(dir)) else {
        return Vec::new();
    };
    serde_json::from_slice(&bytes).unwrap_or_else(|error| {
        tracing::error!("{} is damaged: {error}", list(dir).display());
        Vec::new()
    })
}

fn list(dir: &Path) -> PathBuf {
    dir.join("disks.json")
}

fn mark_of(path: &Path) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(".vmferry");
    name.into()
}

fn mark(path: &Path, mark: &Mark) -> io::Result<()> {
    state_dir::store(&mark_of(path), &serde_json::to_vec_pretty(mark)?)
}

fn read_mark(path: &Path) -> Option<Mark> {
    serde_json::from_slice(&fs::read(mark_of(path)).ok()?).ok()
}

fn clear(path: &Path) {
    let mark = mark_of(path);
    if let Err(error) = fs::remove_file(&mark)
        && error.kind() != ErrorKind::NotFound
    {
        tracing::warn!("cannot remove {}: {error}", mark.display());
    }
}

fn stamp(found: &Metadata) -> (u64, i64) {
    let modified_ns = found.mtime() * 1_000_000_000 + found.mtime_nsec();
    (found.len(), modified_ns)
}

fn cannot_write(path: &Path, error: &io::Error) -> Refusal {
    Refusal::bad_request(format!("cannot write {} here: {error}", path.display()))
        .mend("make its folder writable, or choose another one with --disk-dir")
}

fn cannot_look(path: &Path, error: &io::Error) -> Refusal {
    Refusal::bad_request(format!("cannot look at {} here: {error}", path.display()))
        .mend("choose another folder with --disk-dir")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use vmferry_core::RamLayout;
    use vmferry_guest::{DiskInfo, Result as GuestResult, Vm};

    use super::*;

    /// Creates raw files and nothing else.
    struct Files;

    impl Backend for Files {
        fn name(&self) -> &'static str {
            "files"
        }
        fn launch(&self, spec: &GuestSpec, _: &Path) -> GuestResult<Arc<dyn Vm>> {
            panic!("{} is not started", spec.name)
        }
        fn launch_incoming(&self, spec: &GuestSpec, _: &RamLayout, _: &Path) -> GuestResult<Arc<dyn Vm>> {
            panic!("{} is not started", spec.name)
        }
        fn reopen(&self, spec: &GuestSpec, _: &Path) -> GuestResult<Arc<dyn Vm>> {
            panic!("{} is not started", spec.name)
        }
        fn create_disk(&self, _: &GuestSpec, disk: &DiskInfo, path: &Path) -> GuestResult<()> {
            fs::write(path, vec![0; disk.bytes as usize])
                .map_err(|error| vmferry_guest::GuestError::operation("creating a disk", error))
        }
    }

    fn spec() -> GuestSpec {
        GuestSpec {
            name: "web".into(),
            backend: "files".into(),
            config: serde_json::Value::Null,
        }
    }

    fn plan(paths: &[&Path]) -> DiskPlan {
        let planned = |(index, path): (usize, &&Path)| PlannedDisk {
            disk: DiskInfo {
                id: format!("d{index}"),
                path: path.to_path_buf(),
                format: "raw".into(),
                bytes: 512,
                has_backing: false,
            },
            since: None,
        };
        DiskPlan {
            disks: paths.iter().enumerate().map(planned).collect(),
            state: "s1".into(),
            ..DiskPlan::default()
        }
    }

    fn refused(plan: &DiskPlan) -> String {
        make_room(&Files, &spec(), plan).unwrap_err().line()
    }

    #[test]
    fn what_is_missing_is_made_and_goes_with_its_guest() {
        let temp = tempfile::tempdir().unwrap();
        let (folder, elsewhere) = (temp.path().join("here"), temp.path().join("there"));
        fs::create_dir(&folder).unwrap();
        let plan = DiskPlan {
            folder: Some(folder.clone()),
            ..plan(&[&elsewhere.join("a.img"), &elsewhere.join("b.img")])
        };
        let places = make_room(&Files, &spec(), &plan).unwrap();
        assert_eq!(places[1].place.path, folder.join("b.img"));
        let made = |disk: &Arriving| disk.place.was == Before::Nothing && disk.place.path.exists();
        assert!(places.iter().all(made));
        assert!(
            check_usable(&places[0].place.path)
                .unwrap_err()
                .line()
                .contains("incomplete")
        );
        let dir = temp.path();
        store(dir, &places).unwrap();
        discarded("web", dir, "the link broke");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 0, "nothing is left");
        // And it arrives the next time.
        store(dir, &make_room(&Files, &spec(), &plan).unwrap()).unwrap();
        arrived(dir);
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2, "two disks, no mark");
        discarded("web", dir, "too late to matter");
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 2);
    }

    #[test]
    fn what_is_there_is_overwritten_only_when_allowed_and_marked_when_that_failed() {
        let temp = tempfile::tempdir().unwrap();
        let (free, taken) = (temp.path().join("a.img"), temp.path().join("b.img"));
        fs::write(&taken, "data").unwrap();
        let mut plan = plan(&[&free, &taken]);
        assert!(refused(&plan).contains("there already"));
        assert!(
            !free.exists() && !mark_of(&free).exists(),
            "what was made before goes too"
        );
        plan.overwrite = true;
        let places = make_room(&Files, &spec(), &plan).unwrap();
        assert_eq!(places[1].place.was, Before::Other);
        store(temp.path(), &places).unwrap();
        discarded("web", temp.path(), "nothing was written");
        check_usable(&taken).unwrap();
        let places = make_room(&Files, &spec(), &plan).unwrap();
        store(temp.path(), &places).unwrap();
        fs::write(&taken, "other data").unwrap();
        discarded("web", temp.path(), "the link broke");
        assert!(!free.exists() && taken.exists());
        assert!(
            check_usable(&taken)
                .unwrap_err()
                .line()
                .contains("the link broke")
        );
        in_use(std::slice::from_ref(&taken));
        check_usable(&taken).unwrap();
    }

    #[test]
    fn changes_are_taken_only_by_the_very_state_they_are_of() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.img");
        let mut plan = plan(&[&path]);
        plan.disks[0].since = Some("s0".into());
        assert!(refused(&plan).contains("is not there"));
        fs::write(&path, "data").unwrap();
        assert!(refused(&plan).contains("not left behind"));
        let report = |state: &str| DisksReport {
            state: state.into(),
            disks: vec![vmferry_core::disks::DiskReport {
                source: path.display().to_string(),
                ..Default::default()
            }],
            ..DisksReport::default()
        };
        left("web", &report("other"));
        assert!(refused(&plan).contains("another state"));
        left("web", &report("s0"));
        fs::write(&path, "longer data").unwrap();
        assert!(refused(&plan).contains("changed since"));
        left("web", &report("s0"));
        let places = make_room(&Files, &spec(), &plan).unwrap();
        assert_eq!(places[0].place.was, Before::Earlier);
        assert!(refused(&plan).contains("incomplete"), "not twice at a time");
        give_up("web", &places, "nothing was written");
        let places = make_room(&Files, &spec(), &plan).unwrap();
        fs::write(&path, "some of the changes").unwrap();
        give_up("web", &places, "the link broke");
        assert!(
            refused(&plan).contains("incomplete"),
            "it is not that state any more"
        );
    }

    #[test]
    fn a_file_that_was_made_for_a_guest_that_never_came_is_nobodys() {
        let temp = tempfile::tempdir().unwrap();
        let path = temp.path().join("a.img");
        let plan = plan(&[&path]);
        make_room(&Files, &spec(), &plan).unwrap();
        // The daemon ends here, and its state directory is lost.
        assert_eq!(
            make_room(&Files, &spec(), &plan).unwrap()[0].place.was,
            Before::Nothing
        );
    }
}
