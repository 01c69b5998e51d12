//! Resuming a Linux guest that serves memcached from a checkpoint: eager, lazy and predictive, in turn, over the memory that is in
//! use. How long until it runs, until its service answers, and how often it waits for a page in its first 10 s.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use vmferry_benches::{Figures, Output, runs};
use vmferry_checkpoint::resume::{Request, Resuming, Survey};
use vmferry_checkpoint::take::{Session, TakeControl, TakeOptions};
use vmferry_core::resume::{ResumeMode, ResumeReport, Service};
use vmferry_guest::Backend as _;
use vmferry_guest_qemu::QemuBackend;
use vmferry_runtime::GuestDir;
use vmferry_store::{CheckpointId, Store, StoreOptions};
use vmferry_tests::{TestGuest, need};

/// Memory in use.
const SIZES_MIB: [u64; 3] = [256, 512, 1024];
/// RAM beyond that: for the kernel, and never touched.
const FREE_MIB: u64 = 256;
/// The last interval before the checkpoint.
const INTERVAL: Duration = Duration::from_secs(5);
/// How long a resumed guest is watched.
const WATCHED: Duration = Duration::from_secs(10);
const VALUES: usize = 500;
const VALUE_BYTES: usize = 4096;

fn main() {
    need!(Qemu, Root, Userfaultfd);
    measure().unwrap_or_else(|error| panic!("{error:#}"));
}

/// What was measured in one mode at one size.
#[derive(Default)]
struct Measured {
    start: Figures,
    answer: Figures,
    faults: Figures,
    operations: Figures,
}

fn measure() -> Result<()> {
    let runs = runs(2)?;
    let mut output = Output::from_args()?;
    let mut starts = ResumeMode::ALL.map(|_| Vec::new());
    for size_mib in SIZES_MIB {
        let scene = Scene::new(size_mib)?;
        let mut measured = ResumeMode::ALL.map(|_| Measured::default());
        for _ in 0..runs {
            for (mode, measured) in ResumeMode::ALL.into_iter().zip(&mut measured) {
                let (report, operations) = scene.resume(mode)?;
                measured.start.push(report.start_ms.context("it ran")?);
                measured
                    .answer
                    .push(report.first_answer_ms.context("it answered")?);
                measured.faults.push(report.faults.store_first_10s as f64);
                measured.operations.push(operations);
            }
        }
        for ((mode, measured), starts) in ResumeMode::ALL.into_iter().zip(&measured).zip(&mut starts) {
            let name = format!("{size_mib} MiB in use, {mode}");
            output.figures(&format!("{name}: time to start"), "ms", &measured.start);
            output.figures(&format!("{name}: time to first answer"), "ms", &measured.answer);
            output.figures(&format!("{name}: faults in the first 10 s"), "", &measured.faults);
            output.figures(
                &format!("{name}: operations in the first 10 s"),
                "/s",
                &measured.operations,
            );
            starts.push(measured.start.median());
        }
        let [_, lazy, predictive] = &measured;
        let ratio = predictive.faults.median() / lazy.faults.median();
        let name = format!("{size_mib} MiB in use: faults predictive / lazy");
        output.ratio(&name, ratio, "at most 0.2");
    }
    for (mode, starts) in ResumeMode::ALL.into_iter().zip(&starts) {
        let (first, last) = (starts[0], starts[starts.len() - 1]);
        let wanted = match mode {
            ResumeMode::Eager => "grows",
            _ => "0.8 to 1.2",
        };
        let name = format!(
            "{mode}: time to start, {} MiB / {} MiB",
            SIZES_MIB[SIZES_MIB.len() - 1],
            SIZES_MIB[0]
        );
        output.ratio(&name, last / first, wanted);
    }
    output.finish()
}

/// A checkpoint of a guest that serves memcached and holds much memory besides.
struct Scene {
    dir: tempfile::TempDir,
    store: Store,
    checkpoint: CheckpointId,
    port: u16,
}

impl Scene {
    fn new(size_mib: u64) -> Result<Self> {
        let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR"))?;
        let port = free_port()?;
        let forward = format!("user,id=n,restrict=off,hostfwd=tcp:127.0.0.1:{port}-:11211");
        let load = format!("used:{size_mib},write:8:10 vmferry.ip=10.0.2.15/24 vmferry.memcached=64");
        let args = ["-netdev", &forward, "-device", "virtio-net-pci,netdev=n"];
        let guest = TestGuest::new("vm", dir.path(), size_mib + FREE_MIB, &load, &args);
        let folder = dir.path().join("qemu");
        std::fs::create_dir(&folder)?;
        let vm = QemuBackend.launch(&guest.spec, &folder)?;
        guest.console.wait_for("vmferry-guest: ready");
        guest.console.wait_for("guest-load: ok used");
        let mut client = Client::connect(port)?;
        client.fill()?;
        let store = Store::open(
            &dir.path().join("store").to_string_lossy(),
            StoreOptions::default(),
        )?;
        let options = TakeOptions::for_guest(vm.ram().layout().bytes());
        let mut session = Session::begin(vm.clone(), store.clone(), options)?;
        let served = serve_beside(port, || {
            session.watch()?;
            thread::sleep(INTERVAL);
            anyhow::Ok(session.take(&TakeControl::default()))
        });
        let (report, _) = served?;
        let report = report?;
        ensure!(report.error.is_none(), "the checkpoint failed: {report:?}");
        drop(session);
        vm.destroy();
        let checkpoint = report.id.context("a checkpoint has a name")?.parse()?;
        println!(
            "{size_mib} MiB in use: {} pages hold data, {} written and {} accessed in the last interval",
            report.data_pages, report.written_pages, report.accessed_pages
        );
        Ok(Self {
            dir,
            store,
            checkpoint,
            port,
        })
    }

    /// Resumes it, serves its clients for a while, and ends it. Answers what was measured, with operations a second.
    fn resume(&self, mode: ResumeMode) -> Result<(ResumeReport, f64)> {
        let dir = tempfile::tempdir_in(self.dir.path())?;
        let since = Instant::now();
        let reader = self.store.reader(&self.checkpoint)?;
        let manifest = reader.manifest();
        let spec = serde_json::from_value(manifest.spec.clone())?;
        let layout = manifest.layout.clone();
        let survey = Survey::begin(reader);
        let vm = QemuBackend.launch_incoming(&spec, &layout, dir.path())?;
        let request = Request {
            store: self.store.name().to_owned(),
            checkpoint: self.checkpoint.clone(),
            mode,
            drain_after: None,
            paused: false,
            put_disks_back: false,
            patience: Duration::from_secs(30),
            readers: 0,
            service: Some(Service {
                address: format!("127.0.0.1:{}", self.port),
                send: Some("version\r\n".into()),
            }),
        };
        let guest_dir = GuestDir::new(dir.path().to_owned());
        let resuming = Resuming::start(vm.clone(), guest_dir, survey, request, since, Box::new(|| Ok(())))?;
        let until = Instant::now() + Duration::from_secs(120);
        while resuming.report().first_answer_ms.is_none() {
            let report = resuming.report();
            ensure!(
                report.error.is_none() && Instant::now() < until,
                "{mode}: {report:?}"
            );
            thread::sleep(Duration::from_millis(5));
        }
        let watched = serve_beside(self.port, || thread::sleep(WATCHED));
        let report = resuming.report();
        resuming.release();
        vm.destroy();
        let ((), operations) = watched?;
        Ok((report, operations as f64 / WATCHED.as_secs_f64()))
    }
}

/// Has a client at work while `work` is done; answers what it came to and how many operations there were.
fn serve_beside<T>(port: u16, work: impl FnOnce() -> T) -> Result<(T, u64)> {
    let over = Arc::new(AtomicBool::new(false));
    let mut client = Client::connect(port)?;
    let client_over = over.clone();
    let client = thread::spawn(move || client.serve(&client_over));
    let done = work();
    over.store(true, Ordering::Release);
    let operations = client.join().expect("the client does not panic")?;
    Ok((done, operations))
}

/// A port that nobody listens at now.
fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A client of memcached that knows what every value has to be.
struct Client {
    stream: TcpStream,
}

impl Client {
    fn connect(port: u16) -> Result<Self> {
        let stream = TcpStream::connect(("127.0.0.1", port))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_nodelay(true)?;
        Ok(Self { stream })
    }

    fn value(key: usize) -> Vec<u8> {
        (0..VALUE_BYTES)
            .map(|at| b'a' + ((key * 31 + at * 7) % 26) as u8)
            .collect()
    }

    fn fill(&mut self) -> Result<()> {
        (0..VALUES).try_for_each(|key| self.set(key))
    }

    fn set(&mut self, key: usize) -> Result<()> {
        let mut request = format!("set k{key} 0 0 {VALUE_BYTES}\r\n").into_bytes();
        request.extend(Self::value(key));
        request.extend(b"\r\n");
        self.exchange(&request, b"STORED\r\n")
    }

    fn get(&mut self, key: usize) -> Result<()> {
        let mut answer = format!("VALUE k{key} 0 {VALUE_BYTES}\r\n").into_bytes();
        answer.extend(Self::value(key));
        answer.extend(b"\r\nEND\r\n");
        self.exchange(format!("get k{key}\r\n").as_bytes(), &answer)
    }

    fn exchange(&mut self, request: &[u8], expected: &[u8]) -> Result<()> {
        self.stream.write_all(request)?;
        let mut answer = vec![0; expected.len()];
        self.stream.read_exact(&mut answer)?;
        if answer != expected {
            bail!(
                "memcached answered {:?}",
                String::from_utf8_lossy(&answer[..answer.len().min(80)])
            );
        }
        Ok(())
    }

    /// Reads and writes values until it is over, and answers how many.
    fn serve(&mut self, over: &AtomicBool) -> Result<u64> {
        let mut operations = 0;
        while !over.load(Ordering::Acquire) {
            let key = operations as usize * 17 % VALUES;
            match operations % 5 {
                0 => self.set(key)?,
                _ => self.get(key)?,
            }
            operations += 1;
        }
        Ok(operations)
    }
}
