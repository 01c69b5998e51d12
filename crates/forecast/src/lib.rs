//! Forecasts of migrations.
#![forbid(unsafe_code)]
