//! Architectures on which no system call can be injected yet.

use std::time::Duration;

use super::Syscall;
use crate::{Error, Result};

/// Cannot be had.
pub(super) enum Session {}

/// Nowhere.
#[derive(Clone, Copy, Debug)]
pub(super) enum CallCode {}

impl CallCode {
    pub(super) fn find(_pid: u32) -> Result<Self> {
        Err(Error::UnsupportedArchitecture)
    }
}

impl Session {
    pub(super) fn start(_pid: u32, _thread: u32, _code: CallCode, _patience: Duration) -> Result<Self> {
        Err(Error::UnsupportedArchitecture)
    }

    pub(super) fn syscall(&mut self, _call: Syscall) -> Result<i64> {
        match *self {}
    }
}
