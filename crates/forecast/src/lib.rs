//! Forecasts of migrations: what earlier ones teach about the next one.
//!
//! Source: the performance-model paper (Sakhare and Vishwakarma), sections 3 to 5. [`model`] holds its regression models of
//! migration time against the CPU that a migration may use, [`history`] the migrations that they learn from. A model knows only
//! what it was fitted to: where it is asked beyond that, it says so and is less sure.
//!
//! [`simulated`] replays a guest's trace by every strategy, [`recommend`](mod@recommend) says which suits a goal, [`score`] what such
//! forecasts were worth, and [`experience`] brings that to the next one.
//!
//! Only [`history`] touches a file; everything else is arithmetic.
#![forbid(unsafe_code)]

pub mod experience;
pub mod history;
pub mod model;
pub mod recommend;
pub mod score;
pub mod simulated;

pub use vmferry_core::workload::{Class, UnknownClass, Workload};
