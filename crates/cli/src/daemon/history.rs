//! The history of a host: what each migration away from it leaves for the models.
//!
//! A history that cannot be used stops no migration: it is said when the daemon starts and when somebody asks for it.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::{Mutex, MutexGuard, PoisonError};

use vmferry_core::report::Report;
use vmferry_forecast::history::{History, Kept, Record};

use super::refusal::Refusal;
use super::reports::unix_ms;
use crate::api::MigrateRequest;
use crate::failure;

/// The history, and the migrations that will become part of it.
pub(super) struct Histories {
    /// Or why there is none.
    history: Result<History, String>,
    /// By id.
    under_way: Mutex<BTreeMap<String, UnderWay>>,
}

struct UnderWay {
    request: MigrateRequest,
    /// Migrations that went on at the same time at most, itself included.
    together: u32,
}

impl Histories {
    pub(super) fn open(path: &Path) -> Self {
        let history = History::open(path).map_err(|error| failure::chain(&error.into()));
        if let Err(why) = &history {
            tracing::warn!("migrations leave nothing for the models: {why}");
        }
        Self {
            history,
            under_way: Mutex::default(),
        }
    }

    /// What the operator should know of it.
    pub(super) fn problem(&self) -> Option<String> {
        self.history.as_ref().err().cloned()
    }

    /// A migration begins.
    pub(super) fn begins(&self, id: &str, request: &MigrateRequest) {
        let mut under_way = self.under_way();
        let together = under_way.len() as u32 + 1;
        for other in under_way.values_mut() {
            other.together = other.together.max(together);
        }
        let request = request.clone();
        under_way.insert(id.to_owned(), UnderWay { request, together });
    }

    /// It ended, or never began where there is no report. One that an earlier daemon began is not known here.
    pub(super) fn ends(&self, id: &str, report: Option<&Report>) {
        let ended = self.under_way().remove(id);
        let (Some(UnderWay { request, together }), Some(report)) = (ended, report) else {
            return;
        };
        let Ok(history) = &self.history else { return };
        let record = Record::new(id, &request, report, unix_ms(), together);
        if let Err(error) = history.append(&record) {
            let why = failure::chain(&error.into());
            tracing::warn!("the migration {id} leaves nothing for the models: {why}");
        }
    }

    /// Everything that is known.
    pub(super) fn all(&self) -> Result<Kept, Refusal> {
        match &self.history {
            Ok(history) => history.all().map_err(Refusal::failed),
            Err(why) => Err(Refusal::conflict(why)),
        }
    }

    fn under_way(&self) -> MutexGuard<'_, BTreeMap<String, UnderWay>> {
        self.under_way.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
