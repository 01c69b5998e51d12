//! Forecasts of migrations: what earlier ones teach about the next one.
//!
//! Source: the performance-model paper (Sakhare and Vishwakarma), sections 3 to 5. [`model`] holds its regression models of
//! migration time against the CPU that a migration may use, [`history`] the migrations that they learn from. A model knows only
//! what it was fitted to: where it is asked beyond that, it says so and is less sure.
//!
//! Only [`history`] touches a file; everything else is arithmetic.
#![forbid(unsafe_code)]

pub mod history;
pub mod model;

pub use vmferry_core::workload::{Class, UnknownClass, Workload};
