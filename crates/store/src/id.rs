//! Names of checkpoints.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Result, StoreError};

/// A checkpoint of a VM: `web/17`. The numbers of a VM's checkpoints grow with time, and none is used twice.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct CheckpointId {
    vm: String,
    number: u64,
}

impl CheckpointId {
    /// Checkpoint `number` of `vm`.
    ///
    /// # Errors
    /// [`StoreError::BadVm`] for a name that cannot be part of an object's name.
    pub fn new(vm: impl Into<String>, number: u64) -> Result<Self> {
        let vm = vm.into();
        check_vm(&vm)?;
        Ok(Self { vm, number })
    }

    /// The VM.
    pub fn vm(&self) -> &str {
        &self.vm
    }

    /// Which of its checkpoints.
    pub fn number(&self) -> u64 {
        self.number
    }
}

/// Names of VMs are what the daemon allows: they become part of the names of objects.
pub(crate) fn check_vm(vm: &str) -> Result<()> {
    let plain = |letter: char| letter.is_ascii_alphanumeric() || "._-".contains(letter);
    let good = vm.len() <= 64
        && vm.starts_with(|first: char| first.is_ascii_alphanumeric())
        && vm.chars().all(plain);
    match good {
        true => Ok(()),
        false => Err(StoreError::BadVm(vm.chars().take(65).collect())),
    }
}

impl fmt::Display for CheckpointId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.vm, self.number)
    }
}

impl FromStr for CheckpointId {
    type Err = StoreError;

    fn from_str(text: &str) -> Result<Self> {
        let parts = text.split_once('/');
        let id = parts.and_then(|(vm, number)| Self::new(vm, number.parse().ok()?).ok());
        id.filter(|id| id.to_string() == text)
            .ok_or_else(|| StoreError::BadId(text.chars().take(100).collect()))
    }
}

impl TryFrom<String> for CheckpointId {
    type Error = StoreError;

    fn try_from(text: String) -> Result<Self> {
        text.parse()
    }
}

impl From<CheckpointId> for String {
    fn from(id: CheckpointId) -> Self {
        id.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ids_read_as_they_are_written_and_nothing_else_does() {
        let id = CheckpointId::new("web-1", 17).unwrap();
        assert_eq!(id.to_string(), "web-1/17");
        assert_eq!("web-1/17".parse::<CheckpointId>().unwrap(), id);
        for text in [
            "web", "web/", "/1", "web/-1", "web/+1", "web/01", "../1", "a/b/1", "web/1/",
        ] {
            assert!(text.parse::<CheckpointId>().is_err(), "{text}");
        }
    }
}
