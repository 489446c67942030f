//! The properties, and the mutants that change a Grant or the state.

use rhone_consensus::command::{ClusterCommand, Grant};
use rhone_consensus::state::ClusterState;

use super::mutant::Mutant;
use super::state::{MAX_LAG, Node, Pg, ROGUE, State, byte, index_of};
use super::wal::{position, small};
use super::world::DataWorld;
use crate::search::Broken;

impl Mutant {
    /// Changes what a command does to the replicated state, before (`false`) or after it is applied.
    pub(super) fn edit(self, state: &mut ClusterState, command: &mut ClusterCommand, applied: bool) {
        let ClusterCommand::Grant(grant) = command else { return };
        match (self, applied) {
            (Self::PoliciesForgotten, true) => {
                state.policies.retain(|policy| policy.epoch == grant.epoch);
                no_failure(state);
            }
            (Self::RewindUnannounced, true) => no_failure(state),
            (Self::LedgerIgnored, false) => {
                state.ledger.entries.retain(|timeline, _| *timeline < grant.timeline);
            }
            _ => {}
        }
    }
}

/// Forgets that the newest epoch may never come to a promotion, and with it what it began with.
fn no_failure(state: &mut ClusterState) {
    for entry in state.ledger.entries.values_mut() {
        entry.promoted = true;
    }
}

impl<const N: usize> DataWorld<N> {
    pub(super) fn mutate_grant(&self, state: &State<N>, grant: &mut Grant) {
        let owner = index_of(grant.owner);
        match self.mutant {
            Mutant::NotTheMost => {
                let here = position(self.wals.pos(state.nodes[owner].wal));
                grant.base = here.unwrap_or(grant.base);
            }
            Mutant::LedgerIgnored => grant.timeline = grant.base.timeline.next(),
            _ => {}
        }
    }

    /// Checks a Grant at the moment it is in the log, and notes what it begins with.
    pub(super) fn check_grant(&mut self, next: &mut State<N>, grant: &Grant) {
        let owner = index_of(grant.owner);
        let base = small(grant.base);
        let wal = self.wals.cut(next.nodes[owner].wal, base.1);
        let held = self.wals.mask(wal);
        if self.wals.pos(wal) != base {
            next.broken = Some("I5");
        }
        let best = grant.evidence.iter().map(|evidence| small(evidence.position)).max();
        // An unfit one may have more that was never acknowledged.
        if best > Some(base) && (self.is_async() || !self.setup.unfit) {
            next.broken = Some("I5");
        }
        for evidence in &grant.evidence {
            if small(evidence.position) < next.nodes[index_of(evidence.node)].floor {
                next.broken = Some("I8");
            }
        }
        let timeline = byte(u64::from(grant.timeline.get()));
        if (0..N).any(|node| self.wals.pos(next.nodes[node].wal).0 >= timeline) {
            next.broken = Some("I9");
        }
        if self.is_async() {
            self.check_loss(next, held, byte(grant.epoch.0));
            next.kept &= held;
            next.read &= held;
        } else if next.kept & !held != 0 {
            next.broken = Some("I3");
        } else if next.read & !held != 0 {
            next.broken = Some("I11");
        }
        next.base = wal;
    }

    /// What is lost is within the setting, besides what was written after the last renewal.
    fn check_loss(&self, next: &mut State<N>, held: u16, epoch: u8) {
        let late = next.nodes.iter().fold(0, |mask, node| {
            mask | self.wals.mask(node.wal) & !self.wals.mask(self.wals.cut(node.wal, node.renewed))
        });
        let lost = next.kept & !held & !late;
        if u64::from(lost.count_ones()) > MAX_LAG {
            next.broken = Some("I4");
        }
        let acknowledges = |pg| matches!(pg, Pg::Primary(of, _) if of < epoch);
        if next.nodes.iter().any(|node| acknowledges(node.pg) && node.lease > 0) {
            next.broken = Some("I2");
        }
    }

    /// What is acknowledged or read in an epoch that another has followed must be in what that one
    /// began with.
    pub(super) fn check_late(&self, state: &mut State<N>, epoch: u8, new: u16, property: &'static str) {
        let newest = self.logs.state(state.log).grant.as_ref().map_or(0, |grant| byte(grant.epoch.0));
        if epoch < newest && new & !self.wals.mask(state.base) != 0 {
            state.broken = Some(if self.is_async() { "I2" } else { property });
        }
    }

    /// Returns the property that a situation breaks.
    pub(super) fn check(&self, state: &State<N>) -> Option<Broken> {
        let real = self.logs.state(state.log);
        if let Some(property) = state.broken {
            return Some(Broken { property, what: self.describe(state) });
        }
        if let Some(what) = real.broken_invariant() {
            return Some(Broken { property: "state", what });
        }
        let mut epochs = [0; 64];
        for node in &state.nodes {
            if let Pg::Primary(epoch, _) = node.pg {
                epochs[usize::from(epoch)] += 1;
                if epochs[usize::from(epoch)] > 1 {
                    return Some(Broken { property: "I1", what: self.describe(state) });
                }
            }
        }
        self.unknown_setting(state, &real).then(|| Broken { property: "I6", what: self.describe(state) })
    }

    /// Whether the present primary's Postgres goes by a setting that is not open in Raft.
    fn unknown_setting(&self, state: &State<N>, real: &ClusterState) -> bool {
        let Some(grant) = real.current_grant() else { return false };
        let owner = index_of(grant.owner);
        let here = &state.nodes[owner];
        let serves = matches!(here.pg, Pg::Primary(epoch, _) if u64::from(epoch) == grant.epoch.0);
        let open = |number: u8| {
            let kind = self.logs.policy(state.log, number);
            real.policies.iter().any(|policy| policy.owner.node == grant.owner && Some(&policy.kind) == kind)
        };
        let connected = |other: &usize| *other == owner || here.sends_to(*other);
        let rogue = |other: usize| here.senders[other] == ROGUE || !open(here.senders[other]);
        serves && (0..N).filter(connected).any(rogue)
    }

    fn describe(&self, state: &State<N>) -> String {
        let node = |node: &Node<N>| {
            let (timeline, len) = self.wals.pos(node.wal);
            format!(
                "{:?} {timeline}:{len} {:016b} promise {} data {} senders {:?} known {:?}",
                node.pg,
                self.wals.mask(node.wal),
                node.promise,
                node.data,
                node.senders,
                node.known
            )
        };
        let nodes: Vec<String> = state.nodes.iter().map(node).collect();
        format!("kept {:016b} read {:016b}; {}", state.kept, state.read, nodes.join("; "))
    }
}
