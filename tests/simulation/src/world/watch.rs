//! What the world sees of its members, and hands to the judge.

use std::hash::{DefaultHasher, Hash, Hasher};

use rhone_consensus::ids::NodeId;
use rhone_consensus::policy::PolicyKind;
use rhone_consensus::settings::SyncMode;
use rhone_consensus::state::{ClusterState, Phase};
use rhone_consensus::store::hard::HardState;

use super::{MAX_LAG, TICK_NS, World};
use crate::machine::{Data, Run};
use crate::process::Process;

impl World {
    pub(super) fn watch(&mut self) {
        for index in 0..self.plant.count() {
            let Some(up) = self.processes[index].as_ref().and_then(Process::up) else { continue };
            let hard = up.shared.hard.get();
            self.promises_rise(index, &hard);
            let applied = up.shared.consensus.state().borrow().clone();
            let seen = (hard.node_id, applied.index.0);
            if self.seen[index] == seen {
                continue;
            }
            self.seen[index] = seen;
            let fingerprint = fingerprint(&applied.state);
            self.plant.check().applied(applied.index.0, &applied.state, fingerprint);
            self.tell(&applied.state);
        }
        self.opened();
        if (self.plant.now() / TICK_NS).is_multiple_of(12) {
            self.leaders();
        }
    }

    /// Says what the cluster comes to, once.
    fn tell(&mut self, state: &ClusterState) {
        let phase = match state.phase {
            Phase::None => return,
            Phase::Preparing { .. } => 0,
            Phase::Granted => 1,
            Phase::Established => 2,
        };
        if !self.phases.insert((state.epoch, phase, state.policies.len())) {
            return;
        }
        self.news |= self.random.permille(600);
        if !self.told.insert((state.epoch, phase)) {
            return;
        }
        let name = |node: NodeId| {
            self.plant.index_of(node).map_or_else(|| "nobody".to_owned(), |index| format!("n{}", index + 1))
        };
        let text = match (&state.phase, state.current_grant()) {
            (Phase::Preparing { reason, .. }, _) => {
                format!("LOG epoch {} is prepared: {reason}", state.epoch)
            }
            (Phase::Granted, Some(grant)) => format!(
                "LOG epoch {} is granted to {} at {}, timeline {}, lost {:?}",
                grant.epoch,
                name(grant.owner),
                grant.base,
                grant.timeline,
                grant.lost
            ),
            (Phase::Established, Some(grant)) => {
                format!("LOG epoch {} of {} is established", grant.epoch, name(grant.owner))
            }
            (Phase::None | Phase::Granted | Phase::Established, _) => return,
        };
        self.plant.say(text);
    }

    /// I7: a promise is never taken back by the same store.
    fn promises_rise(&mut self, index: usize, hard: &HardState) {
        let (node, before) = self.promises[index];
        if node == hard.node_id && hard.promise < before {
            let text = format!("I7: n{} promised {before} and now {}", index + 1, hard.promise);
            self.plant.check().violated(text);
        }
        self.promises[index] = (hard.node_id, hard.promise);
    }

    /// A gate that opens: what was acknowledged before is there, or was bounded.
    fn opened(&mut self) {
        for index in 0..self.plant.count() {
            let machine = self.plant.machine(index);
            if machine.run != Run::Primary || !machine.gate {
                continue;
            }
            let epoch = machine.epoch;
            let Some(data) = &machine.data else { continue };
            let timing = self.settings.timing;
            let window = (u64::from(timing.renewal_ms) + u64::from(timing.lease_ms) + 1000) * 1_000_000;
            self.plant.check().opened(epoch, index, data, MAX_LAG, window);
        }
    }

    fn leaders(&mut self) {
        for index in 0..self.plant.count() {
            let Some(up) = self.processes[index].as_ref().and_then(Process::up) else { continue };
            if !up.shared.consensus.status().leading {
                continue;
            }
            let (code, words) = up.shared.decided.borrow().clone();
            if self.decided[index] != code && !code.is_empty() {
                self.plant.say(format!("n{} leads: {words}", index + 1));
                self.decided[index] = code;
            }
        }
    }

    /// Returns who is open.
    pub fn primary(&self) -> Option<usize> {
        (0..self.plant.count()).find(|index| self.plant.machine(*index).open())
    }

    /// Returns the Raft leader.
    pub fn leader(&self) -> Option<usize> {
        (0..self.plant.count()).find(|index| {
            let up = self.processes[*index].as_ref().and_then(Process::up);
            up.is_some_and(|up| up.shared.consensus.status().leading)
        })
    }

    /// Returns whether one owner is open and every other data member streams from it (I14), with
    /// all of them voting, but for one where they are an even number.
    pub fn converged(&self) -> bool {
        let Some(primary) = self.primary() else { return false };
        let count = self.plant.count();
        let voters = count - usize::from(count.is_multiple_of(2));
        let Some(mine) = self.plant.machine(primary).data.clone() else { return false };
        let follows = |index: usize| {
            let machine = self.plant.machine(index);
            let upstream = machine.upstream.and_then(|node| self.plant.index_of(node));
            let close = |data: &Data| data.wal.len() + 20 >= mine.wal.len();
            machine.run == Run::Standby
                && machine.streaming
                && upstream == Some(primary)
                && machine.data.as_ref().is_some_and(close)
        };
        let agrees = |index: usize| {
            let up = self.processes[index].as_ref().and_then(Process::up);
            up.is_some_and(|up| {
                let status = up.shared.consensus.status();
                let state = up.shared.consensus.state().borrow().clone();
                status.configs.len() == 1
                    && status.voters.len() == voters
                    && state.state.members.len() == count
                    && state.state.phase == Phase::Established
                    && state.state.members.contains_key(&up.shared.me())
                    && up.shared.hard.get().sentinel.is_none()
            })
        };
        let data = |index: usize| index == primary || !self.plant.has_data(index) || follows(index);
        (0..count).all(|index| data(index) && agrees(index)) && self.policy_is_full(primary)
    }

    /// Whether commits wait as the settings ask, for every standby that can acknowledge.
    fn policy_is_full(&self, primary: usize) -> bool {
        let Some(up) = self.processes[primary].as_ref().and_then(Process::up) else { return false };
        let applied = up.shared.consensus.state().borrow().clone();
        let standbys = self.plant.data - 1;
        match (self.settings.sync, applied.state.policies.as_slice()) {
            (SyncMode::Off, [one]) => matches!(one.kind, PolicyKind::Async { .. }),
            (SyncMode::Quorum | SyncMode::Strict, [one]) => match &one.kind {
                PolicyKind::Quorum { standbys: named, .. } => named.len() == standbys,
                PolicyKind::Alone | PolicyKind::Async { .. } => false,
            },
            (_, _) => false,
        }
    }

    pub(super) fn broken(&self) -> bool {
        self.plant.check().violation.is_some()
    }

    pub(super) fn until(&mut self, limit_ms: u64, done: impl Fn(&Self) -> bool) -> bool {
        let end = self.plant.now() + limit_ms * 1_000_000;
        let mut next = 0;
        while self.plant.now() < end && !self.broken() {
            self.tick();
            if self.plant.now() >= next {
                next = self.plant.now() + 100_000_000;
                if done(self) {
                    return true;
                }
            }
        }
        false
    }
}

fn fingerprint(state: &ClusterState) -> u64 {
    let mut hasher = DefaultHasher::new();
    format!("{state:?}").hash(&mut hasher);
    hasher.finish()
}
