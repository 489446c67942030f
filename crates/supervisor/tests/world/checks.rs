//! What must hold, looked at at each step.

use super::*;

impl World {
    pub(super) fn violated(&mut self, what: String) {
        if self.violation.is_none() {
            self.trace.push(format!("{:>6} VIOLATION {what}", self.now));
            self.violation = Some(what);
        }
    }

    pub(super) fn say(&mut self, text: &str) {
        self.trace.push(format!("{:>6} {text}", self.now));
    }

    pub(super) fn note(&mut self, index: u64, command: &ClusterCommand, outcome: &Outcome) {
        let text = match command {
            ClusterCommand::Found { .. } => "found".to_owned(),
            ClusterCommand::SetSystemId(_) => "set system id".to_owned(),
            ClusterCommand::Prepare { reason, .. } => format!("prepare {index}: {reason}"),
            ClusterCommand::Grant(g) => {
                let lost = g.lost.map(|(from, to)| format!(", lost {from} to {to}")).unwrap_or_default();
                format!("grant {}: n{} at {}, timeline {}{lost}", g.epoch, g.owner.0, g.base, g.timeline)
            }
            ClusterCommand::Established { epoch, .. } => format!("established {epoch}"),
            ClusterCommand::SetHandover(Some(h)) => {
                format!("hand over {} to {:?}", h.epoch, h.to.map(|to| format!("n{}", to.0)))
            }
            other => format!("{other:?}"),
        };
        let refused = matches!(outcome, Outcome::Refused(_));
        self.say(&format!("log: {text}{}", if refused { " (refused)" } else { "" }));
        if refused {
            return;
        }
        match command {
            ClusterCommand::Grant(grant) => self.check_grant(grant),
            ClusterCommand::Established { .. } => {
                // What is given up is given up from here on.
                let owner = self.state.last_owner().map_or(0, |owner| owner.0 as usize - 1);
                let held: BTreeSet<u64> = self.nodes[owner].wal.iter().map(|r| r.id).collect();
                self.acked.retain(|(_, id)| held.contains(id));
            }
            _ => {}
        }
    }

    pub(super) fn check_grant(&mut self, grant: &rhone_consensus::command::Grant) {
        if let Some(other) = self.owners.insert(grant.epoch, grant.owner)
            && other != grant.owner
        {
            self.violated(format!("two owners of epoch {}", grant.epoch));
        }
        let owner = grant.owner.0 as usize - 1;
        // Where the mode changes, it is the policies that say what may not be lost.
        let older = |policy: &&rhone_consensus::policy::Policy| policy.epoch < grant.epoch;
        let loses = |kind: &PolicyKind| matches!(kind, PolicyKind::Async { .. });
        let keeps = !self.state.policies.iter().filter(older).any(|policy| loses(&policy.kind));
        let sync = if self.modal { keeps } else { self.sync };
        let held: BTreeSet<u64> =
            self.nodes[owner].wal.iter().take(grant.base.lsn.get() as usize).map(|r| r.id).collect();
        let lost: Vec<(Epoch, u64)> =
            self.acked.iter().copied().filter(|(_, id)| !held.contains(id)).collect();
        if sync && !lost.is_empty() {
            self.violated(format!("acknowledged commits {lost:?} are lost by {}", grant.epoch));
        }
        if !sync {
            // The bound: the setting, and what was acknowledged after the last renewal that counted.
            let late: usize =
                self.nodes.iter().map(|n| n.wal.len().saturating_sub(n.renewed_len)).max().unwrap_or(0);
            if !self.modal && lost.len() as u64 > MAX_LAG + late as u64 {
                let memory: Vec<String> = self
                    .reports
                    .iter()
                    .map(|(n, r)| format!("n{} {:?}", n.0, r.report.voter.heard.map(|h| h.lsn)))
                    .collect();
                self.violated(format!(
                    "{} commits lost by {}, {late} were late; heard {memory:?}\n{}",
                    lost.len(),
                    grant.epoch,
                    self.describe()
                ));
            }
            for node in 0..3 {
                let n = &self.nodes[node];
                let serves = matches!(n.postgres, Postgres::Primary { .. }) && self.now < n.lease_until;
                if node != owner && serves {
                    self.violated(format!("n{} may still serve when {} is granted", node + 1, grant.epoch));
                }
            }
        }
    }

    /// Whatever releases a waiting commit is in P, until a newer epoch has secured everything.
    pub(super) fn check_inclusion(&mut self) {
        for node in 0..3 {
            let Postgres::Primary { epoch, .. } = self.nodes[node].postgres else { continue };
            if self.state.history.back().is_some_and(|entry| entry.epoch > epoch) {
                continue;
            }
            let known = |kind: &PolicyKind| self.state.policies.iter().any(|policy| policy.kind == *kind);
            if let Some((_, kind)) = self.nodes[node].using.iter().find(|(_, kind)| !known(kind)) {
                let what = format!("n{} acknowledges {kind}, which is not in P", node + 1);
                self.violated(what);
            }
        }
    }
}
