//! The commands of QEMU's migration that only a comparison needs.

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use vmferry_guest_qemu::qmp::Command;
use vmferry_guest_qemu::qmp::commands::Nothing;

/// What this QEMU can do in a migration.
#[derive(Debug, Serialize)]
pub(super) struct QueryCapabilities {}

impl Command for QueryCapabilities {
    const NAME: &'static str = "query-migrate-capabilities";
    type Reply = Vec<KnownCapability>;
}

/// A capability that there is.
#[derive(Debug, Deserialize)]
pub(super) struct KnownCapability {
    pub(super) capability: String,
}

/// The migration parameters in force.
#[derive(Debug, Serialize)]
pub(super) struct QueryParameters {}

impl Command for QueryParameters {
    const NAME: &'static str = "query-migrate-parameters";
    type Reply = Map<String, Value>;
}

/// Any migration parameters, under QEMU's names.
#[derive(Debug, Serialize)]
#[serde(transparent)]
pub(super) struct SetParameters<'a>(pub(super) &'a Map<String, Value>);

impl Command for SetParameters<'_> {
    const NAME: &'static str = "migrate-set-parameters";
    type Reply = Nothing;
}

/// Lets post-copy begin.
#[derive(Debug, Serialize)]
pub(super) struct StartPostcopy {}

impl Command for StartPostcopy {
    const NAME: &'static str = "migrate-start-postcopy";
    type Reply = Nothing;
}

/// How the migration goes, with everything that QEMU says of it.
#[derive(Debug, Serialize)]
pub(super) struct QueryFigures {}

impl Command for QueryFigures {
    const NAME: &'static str = "query-migrate";
    type Reply = Value;
}
