//! Makes an instance unable to do anything, reversibly or for good.
//!
//! By its cgroup where it has one, and by signals where not, or where the cgroup's freezer takes too
//! long. The freezing path opens nothing and allocates nothing before every process was told to stop.

use std::path::PathBuf;
use std::time::Duration;

use super::cgroup::Cgroup;
use super::family::Family;
use super::proc::{DataDir, instance_processes};
use crate::runtime::clock::Clock;

/// How long the cgroup's freezer may take before signals are sent too (3 ms were measured).
const FREEZER_LIMIT: Duration = Duration::from_millis(100);
/// How long it is watched whether stopped processes stop, before the guardian goes on with its work.
const VERIFY_LIMIT: Duration = Duration::from_millis(50);

/// The means of stopping one instance.
#[derive(Debug)]
pub(super) struct Fence {
    cgroup: Option<Cgroup>,
    family: Family,
    data: DataDir,
    program: String,
    stopped_by_signals: bool,
}

impl Fence {
    pub(super) fn new(cgroup: Option<Cgroup>, family: Family, data: DataDir, program: String) -> Self {
        Self { cgroup, family, data, program, stopped_by_signals: false }
    }

    pub(super) fn cgroup_path(&self) -> Option<PathBuf> {
        self.cgroup.as_ref().map(|cgroup| cgroup.path().to_owned())
    }

    pub(super) fn stopped_by_signals(&self) -> bool {
        self.stopped_by_signals
    }

    /// Freezes the instance. Returns whether every process is known to have stopped.
    pub(super) fn freeze(&mut self) -> bool {
        if let Some(cgroup) = &self.cgroup {
            let end = Clock.now().saturating_add(FREEZER_LIMIT);
            if cgroup.set_frozen(true).is_ok() && cgroup.wait_frozen(true, end) {
                return true;
            }
        }
        self.stopped_by_signals = true;
        self.family.stop(self.cgroup.as_ref().map(Cgroup::procs));
        self.verify_within(VERIFY_LIMIT)
    }

    /// Returns whether every process is known to have stopped by now.
    pub(super) fn verify(&self) -> bool {
        self.verify_within(Duration::ZERO)
    }

    fn verify_within(&self, limit: Duration) -> bool {
        let frozen = self.cgroup.as_ref().is_some_and(Cgroup::is_frozen);
        // Within a freezing cgroup a stopped process is not shown as such: the cgroup's word counts there.
        let signals = self.cgroup.is_none();
        frozen || signals && self.family.verify(Clock.now().saturating_add(limit))
    }

    /// Lets the instance go on.
    pub(super) fn thaw(&mut self) {
        if std::mem::take(&mut self.stopped_by_signals) {
            self.family.resume(self.cgroup.as_ref().map(Cgroup::procs));
        }
        if let Some(cgroup) = &self.cgroup {
            // Cannot fail where freezing did not; and an instance that stays frozen is killed.
            drop(cgroup.set_frozen(false));
            cgroup.wait_frozen(false, Clock.now().saturating_add(FREEZER_LIMIT));
        }
    }

    /// Kills whatever is left. To be repeated, with reaping in between, until [`Fence::empty`].
    pub(super) fn kill_round(&mut self, postmaster_lives: bool) {
        match &self.cgroup {
            Some(cgroup) => cgroup.kill(),
            None => self.family.kill_round(postmaster_lives),
        }
    }

    /// Returns whether nothing of the instance is left; kills what it finds outside of the known lists.
    pub(super) fn empty(&mut self) -> bool {
        if self.cgroup.as_ref().is_some_and(Cgroup::populated) {
            return false;
        }
        if !self.family.childless() {
            self.family.kill_round(false);
            return false;
        }
        let Ok(strays) = instance_processes(self.data, &self.program) else { return false };
        for stray in &strays {
            drop(stray.signal(rustix::process::Signal::KILL));
        }
        strays.is_empty()
    }

    /// Removes the cgroup of an instance that is gone.
    pub(super) fn dismantle(self) {
        if let Some(cgroup) = self.cgroup {
            cgroup.remove();
        }
    }
}
