//! Stock QEMU as a vmferry guest, driven over QMP.
#![forbid(unsafe_code)]

pub mod qmp;
