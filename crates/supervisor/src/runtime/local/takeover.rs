//! Taking over a server that somebody else started (decision 0059).
//!
//! It is stopped in order, so that all it acknowledged is on its disk and with its standbys, and started again as
//! every other: in recovery, with the guardian as its parent, under a lease before it takes writes.

use std::time::Duration;

use rhone_consensus::settings::SyncMode;
use rhone_consensus::state::{ClusterState, Phase};
use rhone_pgctl::datadir::{self, DataDir, PostmasterPid};
use rhone_pgctl::process::Postmaster;
use rhone_pgctl::settings::MANAGED_FILE;
use rhone_pgctl::timeline::seen_timelines;
use rhone_pgctl::wal::Timeline;

use super::{Local, LocalError, PROGRAM_LIMIT, Seen};
use crate::config::foreign_configuration;

/// How long the shutdown may take before it is asked for again: its checkpoint, and the last WAL to standbys.
const STOP_LIMIT: Duration = Duration::from_secs(60);

/// A server that runs in the data directory and that no Rhone ever started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    /// Whether it takes writes.
    pub primary: bool,
    /// The timeline of its control file, which may lag behind.
    pub timeline: Timeline,
}

/// When a server that runs may be stopped to be taken over.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Turn {
    /// This member gives the cluster its data, and the cluster waits for nothing else.
    gives_data: bool,
    /// Another member serves this cluster's data, of which this is a standby.
    follows: bool,
}

impl Turn {
    /// A primary goes down only to be the first; a standby answers reads until there is somebody to follow.
    const fn is_due(self, found: Found) -> bool {
        self.gives_data || (self.follows && !found.primary)
    }
}

impl Local {
    /// Looks at a server that somebody else started; nothing where it must be left to a person: one that a Rhone has
    /// had, other data than this member's, or one that does not accept sessions.
    pub(super) async fn found_running(&self) -> Option<Found> {
        let known = *self.shared.takeover.borrow();
        if known.is_some() {
            return known;
        }
        let hard = self.shared.hard.get();
        let ours = match self.facts().identity {
            Seen::Unclaimed | Seen::Ours(_) => hard.sentinel.is_none() && hard.floor.is_none(),
            Seen::Nothing | Seen::Stranger => false,
        };
        if !ours || self.data_dir().join(MANAGED_FILE).exists() {
            return None;
        }
        datadir::running_postmaster(self.data_dir()).ok().flatten().filter(PostmasterPid::accepts)?;
        let inspected = datadir::inspect(self.data_dir(), &self.install, &self.user, PROGRAM_LIMIT).await;
        let Ok(DataDir::Present(present)) = inspected else { return None };
        let control = &present.control;
        if hard.system_id.is_some_and(|expected| expected != control.system_id) {
            return None;
        }
        let found = Found { primary: !present.standby_signal, timeline: control.timeline };
        let seen =
            seen_timelines(self.data_dir()).ok().and_then(|seen| seen.last().copied()).unwrap_or_default();
        {
            let mut facts = self.facts();
            facts.system_id = Some(control.system_id);
            facts.highest_timeline = facts.highest_timeline.max(seen).max(control.timeline);
        }
        tracing::info!(primary = found.primary, "a server runs here that this rhone did not start");
        self.shared.takeover.send_replace(Some(found));
        Some(found)
    }

    /// Whether the server that runs here is to be taken over now.
    pub fn takes_over(&self, state: &ClusterState) -> bool {
        let Some(found) = *self.shared.takeover.borrow() else { return false };
        let me = self.shared.me();
        let same = state.system_id.is_some() && state.system_id == self.facts().system_id;
        let owned = state.current_grant().is_some_and(|grant| grant.owner != me);
        let turn = Turn {
            gives_data: same && state.is_founded() && self.may_claim(),
            // In strict mode the gate stays closed until a standby acknowledges: it has to come first.
            follows: same
                && owned
                && (state.phase == Phase::Established
                    || (state.phase == Phase::Granted && state.settings.sync == SyncMode::Strict)),
        };
        turn.is_due(found) && self.lacks_configuration().is_none()
    }

    /// Says why a data directory that this member would begin the cluster with is not adopted.
    pub(super) fn not_adopted(&self, seen: Seen) -> Option<String> {
        if seen == Seen::Unclaimed && self.may_claim() { self.lacks_configuration() } else { None }
    }

    /// Says, and logs when it is news, which configuration a server that is not Rhone's yet would lose when Rhone
    /// starts it.
    pub(super) fn lacks_configuration(&self) -> Option<String> {
        let foreign = foreign_configuration(self.data_dir());
        let told = foreign.as_ref().map(|foreign| format!("{foreign} (hint: {})", foreign.hint()));
        let known = std::mem::replace(&mut self.facts().foreign, told.clone());
        if let Some(foreign) = foreign.filter(|_| known != told) {
            tracing::error!(error = %foreign, hint = foreign.hint(),
                "this data directory is not taken over: a person has to bring its configuration");
        }
        told
    }

    /// Stops the server that runs here, in order. A standby's data is this member's own from before that on: it was
    /// seen to be consistent, and what it lacks or has too much is found as of any other that was away.
    ///
    /// # Errors
    /// It has not stopped yet, or the claim could not be kept: ask again.
    pub async fn take_over(&self) -> Result<(), LocalError> {
        let Some(found) = *self.shared.takeover.borrow() else { return Ok(()) };
        if let Some(why) = self.lacks_configuration() {
            return Err(LocalError::Stale(why));
        }
        if !found.primary && !self.may_claim() && self.look_at_identity()? == Seen::Unclaimed {
            let record = self.new_identity(self.data_dir().to_owned()).await?;
            self.update_hard(move |hard| hard.data = Some(record)).await?;
            self.look_at_identity()?;
        }
        if let Some(postmaster) = Postmaster::find(self.data_dir())? {
            tracing::info!(
                pid = postmaster.pid(),
                primary = found.primary,
                "takes over the server: stops it in order"
            );
            postmaster.stop_fast(STOP_LIMIT).await?;
        }
        self.facts().stopped = None;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_is_stopped_only_when_it_is_its_turn() {
        let check = |primary, gives_data, follows, expected| {
            let found = Found { primary, timeline: Timeline::new(3) };
            assert_eq!(
                Turn { gives_data, follows }.is_due(found),
                expected,
                "{found:?} {gives_data} {follows}"
            );
        };
        check(true, false, false, false); // nothing is founded yet
        check(true, true, false, true);
        check(false, true, false, true); // a standby alone may be all there is
        check(false, false, false, false);
        check(false, false, true, true);
        check(true, false, true, false); // two that take writes: a person decides
    }
}
