//! Tests of shared memory.
