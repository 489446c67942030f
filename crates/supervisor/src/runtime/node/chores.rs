//! What is due here besides: newer settings, and what an operator asked for.

use rhone_consensus::state::ClusterState;

use super::NodeLoop;
use crate::decide::Effect;
use crate::runtime::local::started_ms;
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
            configure: older || asked.reload,
            restart: !leads && asked.restart.is_some() && asked.restart == started,
            reinit: !leads && asked.reinit.is_some() && asked.reinit == data,
        }
    }

    /// A reload is done by whatever made the instance read its files.
    pub(super) fn told_to_instance(&self, effect: Effect) {
        if !matches!(effect, Effect::Follow(_) | Effect::SetPolicy | Effect::Start(_)) {
            return;
        }
        self.shared.asked.send_if_modified(|asked| std::mem::take(&mut asked.reload));
    }
}
