//! Against real QEMU under TCG. Every guest boots in well under a second: firmware, then one sector of code that
//! writes and checks memory without end.

mod bench_guest;
mod conformance;
mod disks;
mod life;
mod moves;
mod taken_over;
