//! The owner's half of a policy change: plays `runtime/local/policy.rs`, step by step.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rhone::view::Stream;
use rhone_consensus::ids::{DataId, Epoch};
use rhone_consensus::policy::{Policy, PolicyKind};

use super::Local;
use crate::machine::{Machine, Run};
use crate::mutant::Mutant;
use crate::sync::Names;

const SQL_LIMIT: Duration = Duration::from_secs(5);
const ATTEMPT: Duration = Duration::from_secs(1);
const END_LEFT_OUT: Duration = Duration::from_millis(200);
const END_STUCK: Duration = Duration::from_secs(5);
const POLL: Duration = Duration::from_millis(5);
const LIVE: u64 = 2_000_000_000;
const RECONNECT: u64 = 1_000_000_000;
/// How many records a standby may lack that has caught up.
const CAUGHT_UP: usize = 60;

fn standbys_of(kind: &PolicyKind) -> BTreeSet<DataId> {
    match kind {
        PolicyKind::Alone | PolicyKind::Async { .. } => BTreeSet::new(),
        PolicyKind::Quorum { standbys, .. } => standbys.iter().map(|replica| replica.data).collect(),
    }
}

impl Local {
    /// Returns the newest policy of that epoch, as it stands in the log here.
    pub fn policy(&self, epoch: Epoch) -> Result<Policy, String> {
        self.state(|state| state.policy().filter(|policy| policy.epoch == epoch).cloned())
            .ok_or_else(|| "the epoch is over".to_owned())
    }

    /// Waits until the server answers a statement.
    pub async fn answers(&self) -> Result<(), String> {
        let until = self.shared.clock.now().saturating_add(SQL_LIMIT);
        loop {
            tokio::time::sleep(self.plant.some(1, 3)).await;
            let machine = self.machine();
            if !matches!(machine.run, Run::Primary | Run::Standby) {
                return Err("it does not answer".to_owned());
            }
            if machine.moves() {
                return Ok(());
            }
            drop(machine);
            if self.shared.clock.now() > until {
                return Err("it does not answer in time".to_owned());
            }
        }
    }

    /// Takes note, before it is written, of a value under which commits wait for nobody.
    pub fn may_be_empty(&self, policy: &Policy) {
        if !matches!(policy.kind, PolicyKind::Quorum { .. }) {
            self.facts().empty_names = true;
        }
    }

    /// Writes the policy's names into the settings, and reloads.
    pub fn write_names(&self, machine: &mut Machine, policy: &Policy) {
        let names = if self.plant.mutant == Mutant::EmptyNames {
            Names::Nobody
        } else {
            self.state(|state| Names::of(&policy.kind, &state.members))
        };
        machine.policy = Some(policy.number);
        if machine.sync.names == names {
            return;
        }
        let now = self.plant.now();
        let length = machine.data.as_ref().map_or(0, |data| data.wal.len());
        // The checkpointer reads it between two pages that it writes, or while it syncs a file: seconds later.
        let busy = self.plant.draw(4) == 0;
        let soon = now + self.plant.draw(if busy { 3000 } else { 40 }) * 1_000_000;
        let takes = || {
            // One in ten is stopped between two loops.
            let stuck = self.plant.draw(10) == 0;
            now + self.plant.draw(if stuck { 7000 } else { 60 }) * 1_000_000
        };
        machine.sync.reload(names, soon, length, takes);
    }

    /// Waits until the checkpointer has read the setting.
    pub async fn checkpointer_is_up(&self) -> Result<(), String> {
        if self.plant.mutant == Mutant::NoCheckpoint {
            return Ok(());
        }
        loop {
            self.answers().await?;
            if self.machine().sync.turns.is_none() {
                return Ok(());
            }
        }
    }

    /// Sees to it that commits wait under this value, which has been reloaded.
    pub async fn commits_will_wait(&self, policy: &Policy) -> Result<(), String> {
        if matches!(policy.kind, PolicyKind::Quorum { .. }) && self.facts().empty_names {
            self.checkpointer_is_up().await?;
            self.facts().empty_names = false;
        }
        Ok(())
    }

    /// Sets the newest policy, settles, passes the barrier.
    pub async fn set_policy(&self, epoch: Epoch) -> Result<(), String> {
        self.still(epoch)?;
        let policy = self.policy(epoch)?;
        let on_disk = self.machine().policy;
        if self.facts().policy.max(on_disk) > Some(policy.number) {
            return Err("postgres is set to a newer policy".to_owned());
        }
        self.may_be_empty(&policy);
        tokio::time::sleep(self.plant.some(1, 15)).await;
        self.still(epoch)?;
        {
            let mut machine = self.machine();
            if machine.run != Run::Primary {
                return Err("the postmaster is gone".to_owned());
            }
            self.write_names(&mut machine, &policy);
        }
        {
            let now = self.shared.clock.now();
            let mut facts = self.facts();
            if facts.policy != Some(policy.number) {
                facts.policy = Some(policy.number);
                facts.policy_since = now;
            }
        }
        if self.plant.mutant == Mutant::NoSettle {
            self.facts().secured = Some(policy.number);
            return Ok(());
        }
        self.answers().await?;
        self.commits_will_wait(&policy).await?;
        self.settle(epoch, &policy).await
    }

    async fn settle(&self, epoch: Epoch, policy: &Policy) -> Result<(), String> {
        let concerned = self.state(|state| {
            let of_epoch = state.policies.iter().filter(|policy| policy.epoch == epoch);
            of_epoch.flat_map(|policy| standbys_of(&policy.kind)).collect::<BTreeSet<DataId>>()
        });
        let row = self.plant.row();
        let (before, mark) = {
            let mut machine = self.machine();
            let senders = machine.sync.senders.values().filter(|s| concerned.contains(&s.data));
            let before: BTreeSet<u64> = senders.map(|sender| sender.pid).collect();
            (before, machine.write(row))
        };
        let begun = self.shared.clock.now();
        loop {
            self.answers().await?;
            if self.settled(policy, &before, mark) {
                self.facts().secured = Some(policy.number);
                self.say(&format!("policy {} is in force: {}", policy.number, policy.kind));
                return Ok(());
            }
            if self.shared.clock.now().saturating_since(begun) > ATTEMPT {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// One look at the walsenders; those that take too long are ended.
    fn settled(&self, policy: &Policy, before: &BTreeSet<u64>, mark: usize) -> bool {
        let since = self.shared.clock.now().saturating_since(self.facts().policy_since);
        let wanted = standbys_of(&policy.kind);
        let mut machine = self.machine();
        let waits_for: Vec<(usize, DataId)> = machine
            .sync
            .senders
            .iter()
            .filter(|(_, s)| before.contains(&s.pid) && s.flushed < mark)
            .map(|(index, s)| (*index, s.data))
            .collect();
        let barrier = machine.sync.flushed_by_policy(&policy.kind, mark);
        if waits_for.is_empty() && (barrier || self.plant.mutant == Mutant::NoBarrier) {
            return true;
        }
        for (index, data) in waits_for {
            let limit = if wanted.contains(&data) { END_STUCK } else { END_LEFT_OUT };
            if since > limit {
                machine.sync.senders.remove(&index);
            }
        }
        false
    }

    /// Waits for a while until the marker is durable under one of the epoch's policies.
    pub async fn marker_is_durable(&self, epoch: Epoch, end: usize) -> Result<bool, String> {
        let begun = self.shared.clock.now();
        loop {
            let (policies, first) = self.state(|state| {
                let of_epoch = state.policies.iter().filter(|policy| policy.epoch == epoch);
                (of_epoch.cloned().collect::<Vec<Policy>>(), state.history.is_empty())
            });
            {
                let machine = self.machine();
                if machine.run != Run::Primary {
                    return Err("it is no primary any more".to_owned());
                }
                let here = machine.data.as_ref().is_some_and(|data| data.flushed >= end);
                let there = first || policies.iter().any(|p| machine.sync.flushed_by_policy(&p.kind, end));
                if here && there {
                    return Ok(true);
                }
            }
            if self.shared.clock.now().saturating_since(begun) > ATTEMPT {
                return Ok(false);
            }
            self.still(epoch)?;
            tokio::time::sleep(POLL).await;
        }
    }

    /// Takes note of who streams from this primary.
    pub fn note_streams(&self) {
        let now = self.plant.now();
        let machine = self.machine();
        let flushed = machine.data.as_ref().map_or(0, |data| data.flushed);
        let mut streams = BTreeMap::new();
        let mut replies = BTreeMap::new();
        for sender in machine.sync.senders.values() {
            let live = now.saturating_sub(sender.heard) < LIVE;
            streams.insert(sender.data, Stream { live, caught_up: sender.flushed + CAUGHT_UP >= flushed });
            replies.insert(sender.data, sender.heard);
        }
        drop(machine);
        let mut facts = self.facts();
        for (data, heard) in &facts.replies {
            if !replies.contains_key(data) && now.saturating_sub(*heard) < RECONNECT {
                replies.insert(*data, *heard);
                streams.insert(*data, Stream { live: true, caught_up: false });
            }
        }
        facts.replies = replies;
        facts.streams = streams;
    }
}
