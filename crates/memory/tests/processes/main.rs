//! Memory mechanisms across processes: a puppet process is tracked, served, stopped and taken over.

mod faults;
mod holding;
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

/// Whether this machine lets us attach to processes; says so when it does not.
fn can_attach() -> bool {
    let found = Capabilities::probe();
    let attaching = found.checks().into_iter().find(|check| check.name == "attaching");
    told(
        attaching.is_some_and(|check| check.ok),
        "attaching to processes",
        &found,
    )
}

/// Whether it lets us track writes, too, if only with a userfaultfd for user mode.
fn can_track() -> bool {
    let found = Capabilities::probe();
    can_attach() && told(found.tracking, "tracking of writes", &found)
}

/// Whether it lets us answer all faults, too.
fn permitted() -> bool {
    let found = Capabilities::probe();
    let strong = matches!(
        found.userfaultfd,
        Some(Permission::SystemCall | Permission::Device)
    );
    can_track() && told(strong, "userfaultfd for all faults", &found)
}

fn told(ok: bool, what: &str, found: &Capabilities) -> bool {
    if !ok {
        println!("skipped: no {what} here: {found:?}");
    }
    ok
}
