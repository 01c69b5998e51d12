//! The mark of a checkpoint that was resumed.
//!
//! Two guests of one checkpoint would write to the same disks and speak with the same addresses. So who resumes one puts a mark
//! beside it, where none is, and takes it away when its guest is ended. Whoever wants a second guest all the same does not ask.

use serde::{Deserialize, Serialize};

use crate::error::{Result, StoreError};
use crate::id::CheckpointId;
use crate::keys;
use crate::runtime::wait;
use crate::store::Store;

/// The most bytes a mark takes.
const MAX_MARK_BYTES: u64 = 64 << 10;

/// Who resumed a checkpoint.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Resumed {
    /// The guest.
    pub vm: String,
    /// The host it was resumed on.
    pub host: String,
    /// When, in ms since 1970.
    pub at_ms: u64,
    /// Tells it from all other marks.
    pub token: String,
}

impl Store {
    /// Puts the mark `resumed` beside checkpoint `id`. Answers the mark that is there already, if one is.
    ///
    /// # Errors
    /// When the store does not answer or take it; when the mark that is there is damaged.
    pub fn mark_resumed(&self, id: &CheckpointId, resumed: &Resumed) -> Result<Option<Resumed>> {
        let (inner, object) = (self.inner.clone(), keys::resumed(id));
        let bytes = serde_json::to_vec(resumed).expect("a mark serializes");
        wait(async move {
            loop {
                if inner.backend.create(&object, bytes.clone()).await? {
                    return Ok(None);
                }
                // It may be taken away in between.
                if let Some(there) = inner.backend.get(&object, MAX_MARK_BYTES).await? {
                    let read = serde_json::from_slice(&there);
                    return read
                        .map(Some)
                        .map_err(|error| StoreError::damaged(object.as_ref(), error.to_string()));
                }
            }
        })
    }

    /// Takes the mark `resumed` away, if it is the one that is there.
    ///
    /// # Errors
    /// When the store does not answer.
    pub fn unmark_resumed(&self, id: &CheckpointId, resumed: &Resumed) -> Result<()> {
        let (inner, object) = (self.inner.clone(), keys::resumed(id));
        let bytes = serde_json::to_vec(resumed).expect("a mark serializes");
        wait(async move {
            match inner.backend.get(&object, MAX_MARK_BYTES).await? {
                Some(there) if there == bytes => inner.backend.delete(&object).await,
                _ => Ok(()),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::StoreOptions;

    #[test]
    fn one_mark_at_a_time_and_nobody_takes_away_anothers() {
        let store = Store::open("memory:", StoreOptions::default()).unwrap();
        let id: CheckpointId = "web/3".parse().unwrap();
        let mark = |token: &str| Resumed {
            vm: "web".into(),
            host: "a".into(),
            at_ms: 1,
            token: token.into(),
        };
        assert_eq!(store.mark_resumed(&id, &mark("first")).unwrap(), None);
        assert_eq!(
            store.mark_resumed(&id, &mark("second")).unwrap(),
            Some(mark("first"))
        );
        store.unmark_resumed(&id, &mark("second")).unwrap();
        assert_eq!(
            store.mark_resumed(&id, &mark("second")).unwrap(),
            Some(mark("first"))
        );
        store.unmark_resumed(&id, &mark("first")).unwrap();
        store.unmark_resumed(&id, &mark("first")).unwrap();
        assert_eq!(store.mark_resumed(&id, &mark("second")).unwrap(), None);
        assert_eq!(store.list(None).unwrap(), []);
    }
}
