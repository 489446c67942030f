//! What this member's log came to when it was opened, before it is applied that far.
//!
//! How far the log is committed is written with the next write only (an idle cluster writes nothing), so that a
//! member that starts applies less than it had applied before, until a leader tells it the rest. What it had
//! acknowledged may have been committed (decision 0065).

use std::io;
use std::sync::{Arc, Mutex, PoisonError};

use crate::ids::LogIndex;
use crate::store::machine::{self, AppliedState};
use crate::store::open::Opened;

/// The state with all entries of the log applied, committed or not, as it was at the start.
#[derive(Debug)]
pub(crate) struct Ahead(Mutex<Option<Arc<AppliedState>>>);

impl Ahead {
    /// Applies all that the store holds.
    pub(crate) fn of_store(opened: &Opened) -> io::Result<Self> {
        let (last, _, state) = machine::replay(opened.snapshot.as_ref(), opened.mirror.range(..))?;
        Ok(Self::new(AppliedState { index: LogIndex(last.map_or(0, |last| last.index)), state }))
    }

    fn new(stored: AppliedState) -> Self {
        Self(Mutex::new(Some(Arc::new(stored))))
    }

    /// Returns it until `applied` has come as far, or a leader has cut the log below it (`last`); from then on nothing.
    pub(crate) fn of(&self, applied: LogIndex, last: LogIndex) -> Option<Arc<AppliedState>> {
        let mut stored = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        drop(stored.take_if(|stored| applied >= stored.index || last < stored.index));
        stored.clone()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn is_told_until_it_is_applied_or_gone() {
        // What is applied and where the log ends, one look after the other; whether it is told.
        #[track_caller]
        fn check(looks: &[(u64, u64, bool)]) {
            let ahead = Ahead::new(AppliedState { index: LogIndex(9), ..AppliedState::default() });
            for (applied, last, told) in looks {
                let found = ahead.of(LogIndex(*applied), LogIndex(*last));
                assert_eq!(
                    found.map(|stored| stored.index),
                    told.then_some(LogIndex(9)),
                    "{applied} of {last}"
                );
            }
        }
        check(&[(0, 9, true), (7, 9, true), (9, 9, false), (9, 9, false)]);
        check(&[(7, 12, true), (10, 12, false)]);
        check(&[(7, 8, false), (7, 9, false)]); // a leader had other entries there
        check(&[(9, 9, false)]); // all of it was known to be committed
    }
}
