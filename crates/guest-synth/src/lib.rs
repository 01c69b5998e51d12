//! A synthetic guest: real memory, real faults, real load, no hypervisor needed.
