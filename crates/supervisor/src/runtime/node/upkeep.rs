//! Slots, roles, checkpoints, logs: whatever is not a decision's business.

use std::sync::Arc;

use rhone_consensus::settings::SyncMode;

use super::{NodeLoop, UPKEEP_EVERY_MS, chain};
use crate::runtime::local::LocalError;
use crate::view::Instance;

impl NodeLoop {
    /// Slots, roles, checkpoints, what a finished clone left: whatever is not a decision's business.
    pub(super) fn begin_upkeep(&mut self) {
        if self.upkeep.as_ref().is_some_and(|task| !task.is_finished()) || self.running.is_some() {
            return;
        }
        let now = self.shared.now();
        let hard = self.shared.hard.get();
        // A copy that has reached its floor counts from then on: not a moment later than need be.
        let copied = hard.sentinel.is_some() || hard.floor.is_some();
        let due = now.millis_since(self.upkept) > if copied { UPKEEP_EVERY_MS / 5 } else { UPKEEP_EVERY_MS };
        // A disk that hangs would keep one thread for each of these.
        if due && !matches!(self.instance, Instance::Hung { .. }) {
            let local = Arc::clone(&self.local);
            tokio::spawn(async move {
                local.bound_log().await;
                // A person may have removed what was kept.
                let looked = tokio::task::spawn_blocking(move || local.recall_forked()).await;
                drop(looked);
            });
        }
        let roles = now.millis_since(self.upkept) > UPKEEP_EVERY_MS / 5 && self.local.facts().roles_due;
        let strict = self.shared.consensus.state().borrow().state.settings.sync == SyncMode::Strict;
        let local = Arc::clone(&self.local);
        let takes_over = matches!(self.instance, Instance::Unusable(_)) && {
            let applied = Arc::clone(&self.shared.consensus.state().borrow());
            self.leaving.is_none() && local.takes_over(&applied.state)
        };
        let work = match self.instance {
            Instance::Unusable(_) if takes_over => {
                tokio::spawn(async move { told(local.take_over().await, "take the running server over") })
            }
            Instance::Primary { epoch, gate_open: true, .. } if self.settled != epoch => {
                self.settled = epoch;
                tokio::spawn(async move { told(local.settle_in(epoch).await, "settle in") })
            }
            // The gate waits for standbys: who has to be copied first finds a checkpoint to begin with.
            Instance::Primary { epoch, gate_open: false, .. } if due && self.settled != epoch && strict => {
                self.settled = epoch;
                tokio::spawn(async move { told(local.settle_in(epoch).await, "settle in") })
            }
            Instance::Primary { epoch, gate_open: true, .. } if due || roles => tokio::spawn(async move {
                if roles {
                    told(local.renew_roles(epoch).await, "renew the roles");
                }
                told(local.keep_slots().await, "keep slots");
                told(local.remove_old().await, "remove the old data directory");
            }),
            Instance::Standby { streaming: true, position, .. } if due => tokio::spawn(async move {
                told(local.finish_copy(position).await, "finish the copy");
                told(local.keep_slots().await, "keep slots");
            }),
            Instance::Unknown
            | Instance::Absent
            | Instance::Unusable(_)
            | Instance::Stopped { .. }
            | Instance::Starting
            | Instance::Standby { .. }
            | Instance::Primary { .. }
            | Instance::Frozen { .. }
            | Instance::Hung { .. } => return,
        };
        self.upkept = now;
        self.upkeep = Some(work);
    }
}

fn told(result: Result<(), LocalError>, what: &'static str) {
    if let Err(error) = result {
        tracing::info!(error = %chain(&error), what, "upkeep is not done yet");
    }
}
