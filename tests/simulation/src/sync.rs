//! Synchronous replication within one primary, as Postgres has it: each walsender goes by its own
//! reading of `synchronous_standby_names`, releases waiters by its own count, over every walsender
//! that takes itself for synchronous; whether commits wait at all is the checkpointer's to say.

use std::collections::{BTreeMap, BTreeSet};

use rhone_consensus::command::Member;
use rhone_consensus::ids::{DataId, NodeId};
use rhone_consensus::policy::PolicyKind;

use crate::machine::Commit;

/// A value of `synchronous_standby_names`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Names {
    /// Empty: a commit waits for nobody.
    Nobody,
    /// `ANY required (standbys)`.
    Any {
        /// For how many.
        required: usize,
        /// By the data directory that their names end in.
        standbys: BTreeSet<DataId>,
    },
}

impl Names {
    /// Returns the one that a standby has: nobody can satisfy it.
    pub fn placeholder() -> Self {
        Self::Any { required: 1, standbys: BTreeSet::new() }
    }

    /// Returns the value for a policy.
    pub fn of(kind: &PolicyKind, members: &BTreeMap<NodeId, Member>) -> Self {
        match kind {
            PolicyKind::Alone | PolicyKind::Async { .. } => Self::Nobody,
            PolicyKind::Quorum { required, standbys } => Self::Any {
                required: *required as usize,
                standbys: standbys.iter().filter(|r| members.contains_key(&r.node)).map(|r| r.data).collect(),
            },
        }
    }

    fn names(&self, data: DataId) -> bool {
        matches!(self, Self::Any { standbys, .. } if standbys.contains(&data))
    }
}

/// A walsender.
#[derive(Clone, Debug)]
pub struct Sender {
    /// Unlike any other's of this instance.
    pub pid: u64,
    /// What its standby calls itself.
    pub data: DataId,
    /// The setting that it goes by.
    pub names: Names,
    /// Until when it goes by that although another was reloaded, and how much it sends meanwhile: it
    /// reads the setting before it sends what was written after the reload.
    pub behind: Option<(u64, usize)>,
    /// How much its standby said that it has flushed.
    pub flushed: usize,
    /// When it said so.
    pub heard: u64,
}

/// What a primary's processes know of it.
#[derive(Debug)]
pub struct Sync {
    /// The setting in the file.
    pub names: Names,
    /// The walsenders, by their standby's machine.
    pub senders: BTreeMap<usize, Sender>,
    /// Whether commits wait at all.
    pub defined: bool,
    /// When the checkpointer says otherwise.
    pub turns: Option<(u64, bool)>,
    /// Up to where waiters were released.
    pub released: usize,
    /// The commits that are flushed here and wait for standbys.
    pub waiting: Vec<Commit>,
    pids: u64,
}

impl Default for Sync {
    fn default() -> Self {
        Self {
            names: Names::placeholder(),
            senders: BTreeMap::new(),
            defined: false,
            turns: None,
            released: 0,
            waiting: Vec::new(),
            pids: 0,
        }
    }
}

impl Sync {
    /// A server starts, whose checkpointer reads the setting at `at`.
    pub fn start(&mut self, at: u64) {
        let pids = self.pids;
        *self = Self { turns: Some((at, true)), pids, ..Self::default() };
    }

    /// Everything ends.
    pub fn end(&mut self) {
        let (names, pids) = (self.names.clone(), self.pids);
        *self = Self { names, pids, ..Self::default() };
    }

    /// The setting is changed and reloaded: the checkpointer reads it at `at`, each walsender when
    /// `takes` says. `length` is how much WAL there is now.
    pub fn reload(&mut self, names: Names, at: u64, length: usize, mut takes: impl FnMut() -> u64) {
        self.turns = Some((at, names != Names::Nobody));
        self.names = names;
        for sender in self.senders.values_mut().filter(|sender| sender.behind.is_none()) {
            sender.behind = Some((takes(), length));
        }
    }

    /// A standby connects.
    pub fn connect(&mut self, machine: usize, data: DataId, now: u64) {
        self.pids += 1;
        let sender =
            Sender { pid: self.pids, data, names: self.names.clone(), behind: None, flushed: 0, heard: now };
        self.senders.insert(machine, sender);
    }

    /// A standby says how far it is: releases who waited for that.
    pub fn hear(&mut self, machine: usize, flushed: usize, now: u64) {
        let Some(sender) = self.senders.get_mut(&machine) else { return };
        (sender.flushed, sender.heard) = (flushed, now);
        let Some(Sender { names: Names::Any { required, standbys }, data, .. }) = self.senders.get(&machine)
        else {
            return;
        };
        if !standbys.contains(data) {
            return;
        }
        let mut all: Vec<usize> =
            self.senders.values().filter(|s| s.names.names(s.data)).map(|s| s.flushed).collect();
        all.sort_unstable_by(|one, other| other.cmp(one));
        if let Some(upto) = required.checked_sub(1).and_then(|at| all.get(at)) {
            self.released = self.released.max(*upto);
        }
    }

    /// Time goes by: processes take the setting over. Returns the commits that wait no more.
    pub fn turn(&mut self, now: u64) -> Vec<Commit> {
        for sender in self.senders.values_mut() {
            if sender.behind.is_some_and(|(until, _)| until <= now) {
                sender.behind = None;
                sender.names = self.names.clone();
            }
        }
        if let Some((at, defined)) = self.turns
            && at <= now
        {
            self.turns = None;
            self.defined = defined;
        }
        let (defined, released) = (self.defined, self.released);
        let (free, wait) =
            std::mem::take(&mut self.waiting).into_iter().partition(|c| !defined || c.end <= released);
        self.waiting = wait;
        free
    }

    /// Returns whether a commit that is flushed here is to wait.
    pub fn waits(&self, end: usize) -> bool {
        self.defined && end > self.released
    }

    /// Returns whether enough of the policy's standbys have said that they flushed that.
    pub fn flushed_by_policy(&self, kind: &PolicyKind, end: usize) -> bool {
        match kind {
            PolicyKind::Alone | PolicyKind::Async { .. } => true,
            PolicyKind::Quorum { required, standbys } => {
                let has = |data: DataId| self.senders.values().any(|s| s.data == data && s.flushed >= end);
                standbys.iter().filter(|replica| has(replica.data)).count() >= *required as usize
            }
        }
    }
}
