//! The layer with PostgreSQL: the server as it is installed, and a cluster with the tables of the database load, made here so that
//! the guest, which is slow, has none to make.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail, ensure};

use crate::cpio::Tree;
use crate::{command, image, setup};

const TABLES: &str = include_str!("tpcc.sql");
/// Where Debian and Ubuntu have every version's programs.
const VERSIONS: &str = "/usr/lib/postgresql";
/// The cluster's folder in the guest.
const DATA: &str = "var/lib/postgresql";
/// PostgreSQL does not run as root: a user of every system.
const NOBODY: u32 = 65534;

/// The guest serves whoever is on its network, keeps everything in memory, and has no shared memory file system, no time zones and no
/// compiler at run time.
const CONFIGURATION: &str = "
listen_addresses = '*'
unix_socket_directories = ''
max_connections = 40
dynamic_shared_memory_type = mmap
huge_pages = off
jit = off
max_parallel_workers_per_gather = 0
wal_level = minimal
max_wal_senders = 0
min_wal_size = 8MB
max_wal_size = 32MB
timezone = GMT
log_timezone = GMT
";
const ACCESS: &str = "host all all 0.0.0.0/0 trust\n";

/// The files of the layer.
pub(crate) fn tree() -> Result<Tree> {
    let mut tree = Tree::new();
    let programs = programs()?;
    let server = programs.join("postgres");
    let below_root = |path: &Path| path.to_string_lossy().trim_start_matches('/').to_owned();
    image::add_program(&mut tree, &below_root(&server), &server)?;
    tree.symlink("bin/postgres", &server.to_string_lossy())?;
    // It finds both from its own path.
    let version = programs.parent().and_then(Path::file_name).unwrap_or_default();
    let language = Path::new(VERSIONS).join(version).join("lib/plpgsql.so");
    let zones = Path::new("/usr/share/postgresql")
        .join(version)
        .join("timezonesets/Default");
    for file in [language, zones] {
        let content = fs::read(&file).with_context(|| format!("cannot read {}", file.display()))?;
        tree.file(&below_root(&file), 0o644, content)?;
    }
    let staging = std::env::temp_dir().join(format!("vmferry-database-{}", std::process::id()));
    let added = make_cluster(&programs, &staging).and_then(|()| add_folder(&mut tree, DATA, &staging));
    // Also when it failed half-way.
    let _ = fs::remove_dir_all(&staging);
    added.map(|()| tree)
}

/// The folder with the newest version's programs.
fn programs() -> Result<PathBuf> {
    let newest = || {
        let versions = fs::read_dir(VERSIONS).ok()?.flatten();
        let number = |path: &Path| path.file_name()?.to_str()?.parse::<u32>().ok();
        let folders = versions.map(|entry| entry.path());
        let found =
            folders.filter(|folder| folder.join("bin/postgres").is_file() && number(folder).is_some());
        found
            .max_by_key(|folder| number(folder))
            .map(|folder| folder.join("bin"))
    };
    if newest().is_none() {
        setup::install_program("postgres", "postgresql")?;
    }
    newest().with_context(|| format!("{VERSIONS} holds no server: run `apt-get install postgresql`"))
}

fn make_cluster(programs: &Path, folder: &Path) -> Result<()> {
    fs::create_dir_all(folder).with_context(|| format!("cannot make {}", folder.display()))?;
    if setup::is_root() {
        std::os::unix::fs::chown(folder, Some(NOBODY), Some(NOBODY)).context("cannot give a folder away")?;
    }
    let run = |program: &str| {
        let program = programs.join(program);
        let mut command = match setup::is_root() {
            false => Command::new(&program),
            true => {
                let mut command = Command::new("setpriv");
                let (user, group) = (format!("--reuid={NOBODY}"), format!("--regid={NOBODY}"));
                command.args([&user, &group, "--clear-groups"]).arg(&program);
                command
            }
        };
        command
            .current_dir(folder)
            .env("LC_ALL", "C")
            .env("TZ", "GMT")
            .stdin(Stdio::null());
        command
    };
    let options = [
        "-U",
        "postgres",
        "--auth=trust",
        "--locale=C",
        "--encoding=UTF8",
        "--no-sync",
    ];
    let checked = ["--data-checksums", "--wal-segsize=1", "-D"];
    command::output(run("initdb").args(options).args(checked).arg(folder))?;
    append(&folder.join("postgresql.conf"), CONFIGURATION)?;
    append(&folder.join("pg_hba.conf"), ACCESS)?;
    fill(
        run("postgres")
            .args(["--single", "-j", "-D"])
            .arg(folder)
            .arg("postgres"),
    )
}

/// Has a server make the tables. It goes on after an error, and says so.
fn fill(server: &mut Command) -> Result<()> {
    let script = std::env::temp_dir().join(format!("vmferry-tables-{}.sql", std::process::id()));
    fs::write(&script, TABLES).context("cannot write the script of the tables")?;
    let input = fs::File::open(&script);
    // It is open, or the error comes below.
    let _ = fs::remove_file(&script);
    let output = server
        .stdin(input.context("cannot open the script of the tables")?)
        .output()
        .context("cannot start `postgres`")?;
    let said = String::from_utf8_lossy(&output.stderr);
    if let Some(error) = said
        .lines()
        .find(|line| line.contains("ERROR:") || line.contains("FATAL:"))
    {
        bail!("the tables cannot be made: {error}");
    }
    ensure!(
        output.status.success(),
        "`postgres --single` failed: {}",
        command::last_words(&output)
    );
    Ok(())
}

fn append(file: &Path, text: &str) -> Result<()> {
    let read = fs::read_to_string(file);
    read.and_then(|content| fs::write(file, content + text))
        .with_context(|| format!("cannot change {}", file.display()))
}

fn add_folder(tree: &mut Tree, destination: &str, folder: &Path) -> Result<()> {
    tree.directory(destination)?;
    for entry in fs::read_dir(folder).with_context(|| format!("cannot list {}", folder.display()))? {
        let entry = entry.with_context(|| format!("cannot list {}", folder.display()))?;
        let (path, name) = (entry.path(), entry.file_name());
        let destination = format!("{destination}/{}", name.to_string_lossy());
        if entry.file_type()?.is_dir() {
            add_folder(tree, &destination, &path)?;
        } else {
            let content = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
            tree.file(&destination, 0o600, content)?;
        }
    }
    Ok(())
}
