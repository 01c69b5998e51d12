use std::sync::atomic::AtomicU32;
use std::thread;

use vmferry_core::PageBitmap;
use vmferry_guest::GuestError;
use vmferry_guest_synth::{SynthBackend, SynthConfig};

use super::*;

const PAGES: u64 = 256;
const ALL: PageRun = PageRun {
    first: 0,
    count: PAGES,
};

/// Holds of a kernel that refuses now and then.
#[derive(Default)]
struct Refusing {
    protects: AtomicU32,
    releases: AtomicU32,
    ends: AtomicU32,
}

/// Refuses so many times.
fn refuse(left: &AtomicU32) -> vmferry_guest::Result<()> {
    match left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1)) {
        Ok(_) => Err(GuestError::operation(
            "holding up writes",
            "no page table to be had",
        )),
        Err(_) => Ok(()),
    }
}

impl WriteHolds for Refusing {
    fn protect(&self, _: PageRun) -> vmferry_guest::Result<()> {
        refuse(&self.protects)
    }

    fn release(&self, _: PageRun) -> vmferry_guest::Result<()> {
        refuse(&self.releases)
    }

    fn wait(&self, _: Duration, _: &mut Vec<HeldEvent>) -> vmferry_guest::Result<()> {
        Ok(())
    }

    fn forget_touches(&self) -> vmferry_guest::Result<()> {
        Ok(())
    }

    fn touched(&self, _: &mut PageBitmap) -> vmferry_guest::Result<()> {
        Ok(())
    }

    fn end(&self) -> vmferry_guest::Result<()> {
        self.ends.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }
}

/// A session of a guest all of whose pages hold data.
fn session() -> (Arc<Refusing>, Shared) {
    let config = SynthConfig::new(PAGES * vmferry_core::PAGE_SIZE);
    let vm = SynthBackend::new().launch_guest(&SynthBackend::spec("web", &config));
    let holds = Arc::new(Refusing::default());
    let options = TakeOptions::for_guest(1 << 20);
    let shared = Shared::new(vm.unwrap(), Arc::clone(&holds) as Arc<dyn WriteHolds>, options);
    shared.lock().taker.look(PageBitmap::full(PAGES));
    (holds, shared)
}

fn cut(shared: &Shared) {
    shared.begin();
    shared.protect(ALL).unwrap();
    shared.lock().taker.cut();
}

/// Or the guest would write it unseen from then on, and checkpoints would inherit what it was.
#[test]
fn what_could_not_be_protected_counts_as_open() {
    let (holds, shared) = session();
    holds.protects.store(1, Ordering::Relaxed);
    assert!(shared.protect(ALL).is_err());
    assert_eq!(shared.lock().taker.unprotected().count(), PAGES);
    shared.protect(ALL).unwrap();
    assert!(shared.lock().taker.unprotected().is_empty());
}

/// Nobody takes a cut that is given up for one that is complete, at whatever moment they look.
#[test]
fn a_cut_that_is_given_up_is_never_complete() {
    let (_, shared) = session();
    for _ in 0..300 {
        cut(&shared);
        let copy = vec![0; ALL.bytes() as usize];
        shared.copies.push(ALL, &copy);
        thread::scope(|scope| {
            scope.spawn(|| shared.fail(TakeError::Cancelled));
            while !shared.is_copied() {}
            assert!(shared.has_failed());
            assert!(matches!(shared.check(), Err(TakeError::Cancelled)));
        });
    }
}

/// The writer that should have gone on waits for nothing any more.
#[test]
fn a_writer_that_cannot_be_released_ends_the_session() {
    let (holds, shared) = session();
    cut(&shared);
    let run = shared.claim(8).unwrap();
    let heard = Instant::now();
    shared.on_write(run.first, heard).unwrap();
    assert!(shared.lock().taker.has_waiting_writers());
    holds.releases.store(1, Ordering::Relaxed);
    assert!(shared.copied(run).is_err());
    assert!(shared.is_broken());
    // Before anybody has said why: what is copied from here on is not the cut.
    assert!(matches!(shared.check(), Err(TakeError::LetGo)));
    assert_eq!(holds.ends.load(Ordering::Relaxed), 1);
}
