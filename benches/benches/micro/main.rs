//! Single functions of the page path, one at a time, on one core: what a forecast of a migration can be made of.
//!
//! `cargo bench -p vmferry-benches --bench micro -- [--quick] [NAME]`. Comparisons of two things are benches of their own,
//! also the push beside `iperf3` (`push`) and a fault over the network (`faults`).

mod encodings;
mod forecast;
mod installing;
mod policies;
mod tracking;

use std::time::Duration;

use criterion::Criterion;
use vmferry_tests::need;

/// Pages of a GiB.
const GIB_PAGES: u64 = 1 << 18;

fn main() {
    let mut criterion = Criterion::default()
        .sample_size(10)
        .warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(500))
        .configure_from_args();
    encodings::bench(&mut criterion);
    forecast::bench(&mut criterion);
    policies::bench(&mut criterion);
    with_userfaultfd(&mut criterion);
    criterion.final_summary();
}

/// What only the kernel's userfaultfd can do; says so where that is not permitted.
fn with_userfaultfd(criterion: &mut Criterion) {
    need!(Userfaultfd);
    let done = tracking::bench(criterion).and_then(|()| installing::bench(criterion));
    done.unwrap_or_else(|error| panic!("{error:#}"));
}

/// Whether everything runs once, to see that it works, and nothing is measured.
fn is_trial() -> bool {
    !std::env::args().any(|argument| argument == "--bench")
}
