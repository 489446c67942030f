//! Tells the owner of the voter's lease duties what the log holds, before anybody may count on it.

use std::fmt::Debug;

use crate::ids::{Epoch, LogIndex};
use crate::settings::Timing;

/// What the durable log holds, committed or not.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct LogHeld {
    /// The newest entry that opens an epoch, or 0. Compaction may forget applied ones: take
    /// the maximum with the applied state.
    pub prepare: Epoch,
    /// The newest membership entry, in the log or in the snapshot below it.
    pub membership: LogIndex,
    /// The newest entry of the log that sets the timings, and what is safe under all that such entries set.
    /// None: the log holds none, and the state has been made from a snapshot that does.
    pub timing: Option<(LogIndex, Timing)>,
}

/// Why the observer is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LogCause {
    /// The store was opened.
    Start,
    /// Entries were appended, none of them a membership.
    Append,
    /// Entries were appended, at least one of them a membership.
    MembershipAppend,
    /// Entries of a deposed leader were removed.
    Truncate,
    /// A leader's snapshot replaced the state.
    SnapshotInstall,
}

/// Hears of each change of the durable log.
///
/// Called on the storage thread after the data survives a power cut and *before* it is
/// acknowledged to anybody: what the observer does is in force when the leader counts this
/// voter (docs/safety.md 3: no renewal after Prepare is held). Must not block for long.
pub trait LogObserver: Send + Sync + Debug {
    /// Hears that the log changed.
    fn log_changed(&self, held: LogHeld, cause: LogCause);
}

/// An observer that does nothing.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoObserver;

impl LogObserver for NoObserver {
    fn log_changed(&self, _held: LogHeld, _cause: LogCause) {}
}
