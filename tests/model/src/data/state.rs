//! What a world is made of, and one situation of it.

use std::fmt;

use rhone::decide::Effect;
use rhone_consensus::ids::{DataId, NodeId, Replica};

use super::log::LogId;
use super::wal::{Pos, WalId};

/// The bytes, here records, that an asynchronous failover may leave behind.
pub(super) const MAX_LAG: u64 = 1;

/// The epoch in which the world begins.
pub(super) const FIRST_EPOCH: u8 = 3;

/// The policy number of a Postgres that goes on alone without asking Raft (a mutant).
pub(super) const ROGUE: u8 = u8::MAX;

/// How commits wait.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// For one standby or, when none is there, for none.
    Quorum,
    /// For two, or for whoever is there.
    Two,
    /// For one standby, whatever happens.
    Strict,
    /// For none.
    Async,
}

/// What a world is made of, and how much may happen in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// How many data members there are: 2, 3 or 5.
    pub members: usize,
    /// How commits wait.
    pub mode: Mode,
    /// Whether there is a witness besides the data members.
    pub witness: bool,
    /// Whether the first primary may not be promoted again, as one whose instance cannot be started, and a
    /// standby that has enough goes before the last owner (decision 0037).
    pub unfit: bool,
    /// How many new epochs may be opened.
    pub epochs: u8,
    /// How many rows clients may write.
    pub writes: u8,
    /// How many crashes, restarts of a supervisor, and changes of the Raft leader there may be.
    pub faults: u8,
    /// How many changes of the policy the leader may begin.
    pub changes: u8,
    /// How many data directories may be emptied, or replaced by an older copy.
    pub restores: u8,
    /// How many delays there may be: a member that hears of an entry late, a reply on its way, an effect
    /// between its beginning and its end.
    pub delays: u8,
}

impl Setup {
    /// Three data members in synchronous mode.
    pub const SYNC: Self = Self {
        members: 3,
        mode: Mode::Quorum,
        witness: false,
        unfit: false,
        epochs: 2,
        writes: 1,
        faults: 1,
        changes: 1,
        restores: 0,
        delays: 1,
    };
}

impl fmt::Display for Setup {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mode = match self.mode {
            Mode::Quorum => "quorum",
            Mode::Two => "quorum of 2",
            Mode::Strict => "strict",
            Mode::Async => "async",
        };
        let witness = if self.witness { "+witness" } else { "" };
        let mode = if self.unfit { format!("{mode}, the first unfit") } else { mode.to_owned() };
        write!(f, "{}{witness} {mode}; {} epochs, {} writes", self.members, self.epochs, self.writes)?;
        for (count, what) in [
            (self.faults, "faults"),
            (self.changes, "changes"),
            (self.restores, "restores"),
            (self.delays, "delays"),
        ] {
            if count > 0 {
                write!(f, ", {count} {what}")?;
            }
        }
        Ok(())
    }
}

/// What an instance is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Pg {
    /// There is no data directory.
    Absent,
    /// Nothing runs.
    Stopped,
    /// It receives from that node, counted from 1; 0 is nobody.
    Standby(u8),
    /// Promoted for that epoch; whether clients are let in.
    Primary(u8, bool),
}

/// How far a standby flushed, and under which data directory it says so.
pub(super) type Flushed = (u8, u8);

/// One data member.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Node<const N: usize> {
    pub(super) up: bool,
    /// How many entries its log has.
    pub(super) log: u8,
    /// How many of them it has applied.
    pub(super) applied: u8,
    pub(super) promise: u8,
    /// The highest epoch for which it answered a Revoke.
    pub(super) told: u8,
    pub(super) pg: Pg,
    pub(super) wal: WalId,
    /// Its data directory's id, as its durable record has it.
    pub(super) data: u8,
    pub(super) stranger: bool,
    pub(super) floor: Pos,
    pub(super) sentinel: u8,
    pub(super) copied: bool,
    pub(super) running: Option<(Effect, u8)>,
    /// The policy that its Postgres is set to.
    pub(super) policy: u8,
    pub(super) secured: u8,
    /// The end of the WAL when every walsender had taken the policy over.
    pub(super) barrier: u8,
    /// The policy that each walsender goes by; at its own place, the backends and the checkpointer.
    pub(super) senders: [u8; N],
    /// What each standby is known to have flushed.
    pub(super) known: [Flushed; N],
    /// What it has sent of that, on its way.
    pub(super) sent: [Flushed; N],
    /// The voters that its live lease counts on, as bits; none is no lease.
    pub(super) lease: u8,
    /// The end of its WAL at its last renewal.
    pub(super) renewed: u8,
    /// As a voter: the last renewal's epoch and LSN.
    pub(super) heard: (u8, u8),
}

/// A member's answer to Revoke, as the leader has it.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub(super) struct Answer {
    pub(super) epoch: u8,
    pub(super) pos: Pos,
    pub(super) data: u8,
    pub(super) timeline: u8,
}

/// One situation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State<const N: usize> {
    pub(super) nodes: [Node<N>; N],
    pub(super) log: LogId,
    pub(super) answers: [Answer; N],
    /// The records that were acknowledged to clients, as bits.
    pub(super) kept: u16,
    /// The records that clients could read.
    pub(super) read: u16,
    /// What the newest Grant begins with.
    pub(super) base: WalId,
    pub(super) next_record: u8,
    pub(super) next_data: u8,
    pub(super) epochs: u8,
    pub(super) writes: u8,
    pub(super) faults: u8,
    pub(super) changes: u8,
    pub(super) restores: u8,
    pub(super) delays: u8,
    /// The property that the last step broke.
    pub(super) broken: Option<&'static str>,
}

/// One thing that happens; nodes count from 1.
#[derive(Clone, Debug)]
pub enum Step {
    /// A member's log and state come up to date.
    CatchUp(usize),
    /// A member begins an effect in an epoch.
    Begin(usize, Effect, u64),
    /// It comes to its end.
    End(usize, Effect),
    /// It fails.
    Fail(usize, Effect),
    /// The leader puts a command into the log.
    Propose(String),
    /// A client writes a row.
    Write(usize),
    /// A standby receives and flushes a record, and says so.
    Receive(usize),
    /// A standby receives and flushes a record; its word of that is on its way.
    ReceiveOnly(usize),
    /// Its word of that reaches the primary.
    Reply(usize),
    /// A walsender of the first takes over the new setting; where both are one, its backends do.
    TakeOver(usize, usize),
    /// A majority renews the primary's lease, these voters as bits.
    Renew(usize, u8),
    /// The primary's lease ends.
    Lapse(usize),
    /// A member loses power.
    Crash(usize),
    /// It is there again, its state as old as its log allows.
    Start(usize),
    /// A member's supervisor alone restarts.
    Restart(usize),
    /// Another member leads the log and has heard nobody's answer.
    Lead,
    /// A member's data directory is emptied.
    Wipe(usize),
    /// A member's data directory is replaced by an older copy, so many records short.
    Restore(usize, u8),
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{self:?}")
    }
}

pub(super) fn id(node: usize) -> NodeId {
    NodeId(node as u64 + 1)
}

pub(super) fn bit(node: usize) -> u8 {
    1 << node
}

pub(super) fn replica(node: usize, data: u8) -> Replica {
    Replica { node: id(node), data: DataId(u64::from(data)) }
}

pub(super) fn index_of(node: NodeId) -> usize {
    usize::try_from(node.0).expect("a small number") - 1
}

pub(super) fn byte(number: u64) -> u8 {
    u8::try_from(number).expect("a small number")
}

impl<const N: usize> Node<N> {
    /// Whether it has a walsender for that standby, heard of or not.
    pub(super) fn sends_to(&self, standby: usize) -> bool {
        self.known[standby].0 > 0 || self.sent[standby].0 > 0
    }

    /// Nothing runs any more, and what was so of it is of no matter.
    pub(super) fn stop(&mut self) {
        self.pg = Pg::Stopped;
        (self.lease, self.policy, self.secured, self.barrier) = (0, 0, 0, 0);
        self.senders = [0; N];
        self.known = [(0, 0); N];
        self.sent = [(0, 0); N];
    }
}

/// A process forgets what it had in memory; its log stays, its state is applied anew.
pub(super) fn forget<const N: usize>(node: &mut Node<N>) {
    node.applied = FIRST_EPOCH + 2;
    node.running = None;
    node.copied = false;
    (node.secured, node.barrier) = (0, 0);
}
