//! Memory mechanisms across processes: a puppet process is tracked, served, stopped and taken over.

mod faults;
mod injection;
mod puppet;
mod takeover;
mod tracking;

use vmferry_memory::{Capabilities, PAGE_SIZE, Permission};

/// Bytes in a page.
const PAGE: u64 = PAGE_SIZE as u64;

/// Where the puppet processes begin: they are this very program, run again (see `puppet`).
#[test]
fn puppet_entry() {
    if let Ok(strings) = std::env::var(puppet::STRINGS) {
        puppet::dance(&strings);
        std::process::exit(0);
    }
}

/// Whether this machine lets us do what these tests are about; says so when it does not.
fn permitted() -> bool {
    let found = Capabilities::probe();
    let strong = matches!(
        found.userfaultfd,
        Some(Permission::SystemCall | Permission::Device)
    );
    let attach = found
        .checks()
        .into_iter()
        .find(|check| check.name == "attaching")
        .is_some_and(|c| c.ok);
    if !(strong && attach && found.tracking) {
        println!("skipped: userfaultfd, PAGEMAP_SCAN or ptrace is missing here: {found:?}");
        return false;
    }
    true
}
