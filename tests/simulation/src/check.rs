//! What must hold, judged by what clients were told and by the WAL; never by what Rhone says of
//! itself. The names are those of docs/safety.md 13.

use std::collections::{BTreeMap, BTreeSet};

use rhone_consensus::ids::{Epoch, NodeId, Replica};
use rhone_consensus::policy::PolicyKind;
use rhone_consensus::state::ClusterState;
use rhone_pgctl::wal::Timeline;

use crate::machine::{Data, Machine};

/// An acknowledged row.
#[derive(Clone, Copy, Debug)]
pub struct Ack {
    /// When, in truth.
    pub at: u64,
    /// By which machine.
    pub machine: usize,
    /// In which epoch.
    pub epoch: Epoch,
    /// The row.
    pub id: u64,
}

/// The judge.
#[derive(Debug, Default)]
pub struct Checker {
    /// The first thing that went wrong.
    pub violation: Option<String>,
    /// The rows that clients were told are safe, and that nobody gave up yet.
    pub acks: Vec<Ack>,
    /// How many rows were acknowledged.
    pub acknowledged: u64,
    /// How many acknowledged rows an asynchronous failover gave up.
    pub given_up: u64,
    /// Whether commits wait for standbys: then nothing acknowledged may ever be missing.
    pub sync: bool,
    owners: BTreeMap<Epoch, NodeId>,
    timelines: BTreeMap<Timeline, Epoch>,
    states: BTreeMap<u64, u64>,
    last: BTreeMap<Epoch, (u64, usize)>,
    opened: BTreeSet<Epoch>,
    /// Machines on which both guardians of the lease were stopped since they were promoted.
    unfenced: BTreeSet<(usize, Epoch)>,
}

impl Checker {
    /// Says that something must not have happened.
    pub fn violated(&mut self, what: impl Into<String>) {
        if self.violation.is_none() {
            self.violation = Some(what.into());
        }
    }

    /// Nothing that could fence runs on that machine: a stated limit of asynchronous mode.
    pub fn unfenced(&mut self, machine: usize, epoch: Epoch) {
        self.unfenced.insert((machine, epoch));
    }

    /// A client was told that its row is safe (I2, I12).
    pub fn acknowledged(&mut self, at: u64, index: usize, machine: &Machine, id: u64, late_ns: u64) {
        let epoch = machine.epoch;
        self.acknowledged += 1;
        let exempt = self.unfenced.contains(&(index, epoch));
        if !exempt && late_ns > 0 {
            self.violated(format!(
                "I12: n{} acknowledges in epoch {epoch} {} ms after its lease",
                index + 1,
                late_ns / 1_000_000
            ));
        }
        let newer = self.last.range((std::ops::Bound::Excluded(epoch), std::ops::Bound::Unbounded)).next();
        if let Some((newer, (then, _))) = newer
            && (!exempt || self.sync)
        {
            let text = format!(
                "I2: epoch {epoch} acknowledges {} ms after epoch {newer} did",
                (at - then) / 1_000_000
            );
            self.violated(text);
        }
        self.last.insert(epoch, (at, index));
        if exempt && !self.sync && self.opened.iter().any(|opened| *opened > epoch) {
            // Part of the same limit: its successor serves without this row.
            self.given_up += 1;
            return;
        }
        self.acks.push(Ack { at, machine: index, epoch, id });
    }

    /// A client was let in (I1, I10).
    pub fn let_in(&mut self, index: usize, node: NodeId, machine: &Machine) {
        let epoch = machine.epoch;
        let flushed = machine.data.as_ref().map_or(0, |data| data.flushed);
        if machine.marker.is_none_or(|marker| marker > flushed) {
            self.violated(format!("I10: n{} lets clients in before the marker of {epoch}", index + 1));
        }
        match self.owners.get(&epoch) {
            Some(owner) if *owner == node => {}
            owner => {
                let text = format!("I1: n{} is open in epoch {epoch}, owner {owner:?}", index + 1);
                self.violated(text);
            }
        }
    }

    /// A member applied more of the log: the states of all members are one sequence.
    pub fn applied(&mut self, index: u64, state: &ClusterState, fingerprint: u64) {
        if let Some(broken) = state.broken_invariant() {
            self.violated(format!("the state: {broken}"));
        }
        if let Some(known) = self.states.insert(index, fingerprint)
            && known != fingerprint
        {
            self.violated(format!("two states at index {index}: the log is not one"));
        }
        for (timeline, entry) in &state.ledger.entries {
            if let Some(other) = self.owners.insert(entry.epoch, entry.owner)
                && other != entry.owner
            {
                self.violated(format!("I1: epoch {} was granted to two members", entry.epoch));
            }
            if let Some(other) = self.timelines.insert(*timeline, entry.epoch)
                && other != entry.epoch
            {
                self.violated(format!("I9: timeline {timeline} belongs to two epochs"));
            }
        }
        if let Some(grant) = &state.grant {
            let best = grant.evidence.iter().filter_map(|e| Some((state.ledger.rank(e.position)?, e.node)));
            let mine = state.ledger.rank(grant.base);
            let seen: BTreeSet<Replica> =
                grant.evidence.iter().map(|e| Replica { node: e.node, data: e.data }).collect();
            let older = state.policies.iter().filter(|policy| policy.epoch < grant.epoch);
            if let Some(policy) = older.clone().find(|policy| !policy.covered(&seen, true)) {
                self.violated(format!("I5: the grant of {} does not cover {policy:?}", grant.epoch));
            }
            if grant.lost.is_none()
                && let Some((best, node)) = best.max()
                && let Some(mine) = mine.filter(|mine| *mine < best)
            {
                // Who has enough need not have the most (decision 0037).
                let within = grant
                    .evidence
                    .iter()
                    .filter(|e| state.ledger.rank(e.position).is_some_and(|rank| rank <= mine));
                let within: BTreeSet<Replica> =
                    within.map(|e| Replica { node: e.node, data: e.data }).collect();
                let enough = older.clone().all(|policy| {
                    !matches!(policy.kind, PolicyKind::Async { .. }) && policy.covered(&within, true)
                });
                if !enough {
                    self.violated(format!(
                        "I5: {} was granted behind {node}, and nothing is said of a loss",
                        grant.owner
                    ));
                }
            }
        }
    }

    /// A gate opened: what was acknowledged earlier and is missing is lost (I3, I4).
    ///
    /// In asynchronous mode the setting bounds it, and what was acknowledged since the last
    /// renewal that a voter can have remembered: `window` before the old owner's last word.
    pub fn opened(&mut self, epoch: Epoch, index: usize, data: &Data, max_lag: u64, window: u64) {
        if !self.opened.insert(epoch) {
            return;
        }
        let held: BTreeSet<u64> = data.wal.iter().map(|record| record.id).collect();
        let missing: Vec<Ack> =
            self.acks.iter().copied().filter(|ack| ack.epoch < epoch && !held.contains(&ack.id)).collect();
        if self.sync
            && let Some(ack) = missing.first()
        {
            self.violated(format!(
                "I3: n{} opens epoch {epoch} without {} acknowledged rows, the first of epoch {} by n{}",
                index + 1,
                missing.len(),
                ack.epoch,
                ack.machine + 1
            ));
        }
        let last_word = missing.iter().map(|ack| ack.at).max().unwrap_or(0);
        let exempt = missing.iter().any(|ack| self.unfenced.contains(&(ack.machine, ack.epoch)));
        let bound = missing.iter().filter(|ack| ack.at + window < last_word).count() as u64;
        if bound > max_lag && !exempt {
            self.violated(format!(
                "I4: n{} opens epoch {epoch} without {} acknowledged rows, {bound} of them older than the last renewal; {max_lag} are allowed",
                index + 1,
                missing.len()
            ));
        }
        self.given_up += missing.len() as u64;
        let gone: BTreeSet<u64> = missing.iter().map(|ack| ack.id).collect();
        self.acks.retain(|ack| !gone.contains(&ack.id));
    }

    /// Everything that was promised and not given up is there (I11).
    pub fn all_there(&mut self, index: usize, data: &Data) {
        let held: BTreeSet<u64> = data.wal.iter().map(|record| record.id).collect();
        if let Some(ack) = self.acks.iter().find(|ack| !held.contains(&ack.id)) {
            let text = format!(
                "I11: row {} of epoch {} was acknowledged by n{} and is not on n{}",
                ack.id,
                ack.epoch,
                ack.machine + 1,
                index + 1
            );
            self.violated(text);
        }
    }

    /// A standby takes WAL: the rows before it are the same as its source's (I9).
    pub fn streams(&mut self, standby: usize, source: usize, mine: &Data, theirs: &Data) {
        let length = mine.wal.len().min(theirs.wal.len());
        // Only the end can differ unnoticed: what lies before it was compared earlier.
        let from = length.saturating_sub(8);
        if mine.wal.get(from..length) != theirs.wal.get(from..length) {
            self.violated(format!(
                "I9: n{} streams from n{} with other rows below {length}",
                standby + 1,
                source + 1
            ));
        }
    }

    /// A data directory is about to be replaced or rewound (I16).
    pub fn gives_up(&mut self, index: usize, data: &Data, others: &[&Data]) {
        let mine: BTreeSet<u64> = data.wal.iter().map(|record| record.id).collect();
        let elsewhere: BTreeSet<u64> =
            others.iter().flat_map(|data| data.wal.iter().map(|record| record.id)).collect();
        let only = self.acks.iter().find(|ack| mine.contains(&ack.id) && !elsewhere.contains(&ack.id));
        if let Some(ack) = only {
            let text = format!("I16: n{} gives up the only copy of row {}", index + 1, ack.id);
            self.violated(text);
        }
    }
}
