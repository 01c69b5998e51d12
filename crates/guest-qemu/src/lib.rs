//! Stock QEMU as a vmferry guest, driven over QMP.
