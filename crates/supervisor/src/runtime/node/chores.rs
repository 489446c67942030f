//! What is due here besides: newer settings, and what an operator asked for.

use rhone_consensus::state::ClusterState;

use std::sync::Arc;

use super::{NodeLoop, chain};
use crate::decide::Effect;
use crate::runtime::local::{LocalError, started_ms};
use crate::view::Chores;

impl NodeLoop {
    /// Returns what is due. What was asked of a server or a data directory that is gone is done.
    pub(super) fn chores(&self, state: &ClusterState) -> Chores {
        let asked = *self.shared.asked.borrow();
        let leads = state.last_owner() == Some(self.shared.me());
        let facts = self.local.facts();
        let started = facts.probe.as_ref().filter(|_| facts.ready).map(started_ms);
        // A log that is behind does not know the newest settings, which the files may have.
        let older = facts.configured != Some(state.settings_version) && !self.behind();
        drop(facts);
        let data = self.shared.hard.get().data.map(|record| record.id);
        Chores {
            configure: older || asked.reload(),
            restart: !leads && asked.restart.is_some() && asked.restart == started,
            reinit: !leads && asked.reinit.is_some() && asked.reinit == data,
            // Who was asked not to promote is as it was: nothing is wrong with its data.
            unfit: self.local.facts().unfit || self.local.disagrees(),
        }
    }

    /// A copy that nobody wants any more is cut short; one that is complete takes its place all the same.
    pub(super) fn give_up_copy(&mut self) {
        let wanted = self.shared.asked.borrow().reinit.is_some();
        let Some(running) = self.running.as_ref().filter(|running| running.asked && !wanted) else { return };
        if !self.local.facts().swapping {
            running.task.abort();
        }
    }

    /// A copy did not come to an end: it is tried again, unless nobody wants it any more.
    pub(super) fn copy_failed(&self, error: &LocalError) {
        let wanted = self.shared.asked.borrow().reinit.is_some();
        self.local.note_copied(wanted.then(|| chain(error)));
        if !wanted {
            let local = Arc::clone(&self.local);
            tokio::spawn(async move { local.discard_copy().await });
        }
    }

    /// A reload is done by whatever made the instance read its files, and was begun when it was asked for.
    pub(super) fn told_to_instance(&self, effect: Effect, reloads: u64) {
        if !matches!(effect, Effect::Follow(_) | Effect::SetPolicy | Effect::Start(_)) {
            return;
        }
        self.shared.asked.send_if_modified(|asked| asked.reload_done(reloads));
    }
}
