//! A member's machine below the supervisor: the guardian and Postgres, as models.
//!
//! WAL is a list of records; an LSN is how many there are. What a client inserted is a record with
//! the row's number. A primary sends what it flushed; a standby asks by timeline and LSN, and the
//! primary compares those two with its history and nothing else, as Postgres does: streams that
//! agree in numbers and differ in rows are for the checker to find.

use std::collections::VecDeque;

use rhone::guardian::{FROZEN_LIMIT, GuardState, Lease, SharedPage, StandIn};
use rhone::runtime::clock::BootTime;
use rhone_consensus::ids::{DataId, Epoch, LogIndex, NodeId};
use rhone_pgctl::wal::{Lsn, Timeline, WalPosition};

use crate::local::Ident;
use crate::sync::Sync;

/// Who writes the guardian's page: always the one supervisor.
const WRITER: u64 = 1;

/// One record of WAL.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Record {
    /// On which timeline it was written.
    pub timeline: u32,
    /// Unlike any other's.
    pub id: u64,
}

/// A data directory.
#[derive(Clone, Debug)]
pub struct Data {
    /// All its WAL, written.
    pub wal: Vec<Record>,
    /// How much of it survives a power cut.
    pub flushed: usize,
    /// How much it takes before it can be used: the end of a copy.
    pub needs: usize,
    /// Whether it was shut down in order.
    pub clean: bool,
    /// Whether it last ran as a primary.
    pub primary: bool,
    /// Its newest timeline, when that is newer than its last record's.
    pub timeline: u32,
    /// What its `rhone.id` says.
    pub ident: Option<Ident>,
}

impl Data {
    /// Returns the end of the first `length` records.
    pub fn position(&self, length: usize) -> WalPosition {
        let last = length.checked_sub(1).and_then(|at| self.wal.get(at));
        let timeline = last.map_or(self.timeline, |record| record.timeline);
        WalPosition::new(Timeline::new(timeline), Lsn::new(length as u64))
    }

    /// Returns where its history leaves `timeline`; nothing when it was never on it.
    pub fn end_of(&self, timeline: u32) -> Option<usize> {
        self.wal.iter().rposition(|record| record.timeline == timeline).map(|at| at + 1)
    }
}

/// What the postmaster does.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Run {
    /// Nothing.
    Stopped,
    /// It recovers, until that moment of true time at the least.
    Starting(u64),
    /// Recovery goes on and on.
    Standby,
    /// It takes writes.
    Primary,
}

/// A commit that waits for its flush.
#[derive(Clone, Copy, Debug)]
pub struct Commit {
    /// Where its record ends.
    pub end: usize,
    /// The row.
    pub id: u64,
}

/// The guardian's memory.
#[derive(Debug)]
pub struct Guard {
    /// Whether the process is there.
    pub alive: bool,
    /// Whether it was stopped by a signal.
    pub stopped: bool,
    /// The lease that it goes by.
    pub lease: Lease,
    /// The highest epoch that its instance had a lease for.
    pub epoch: Option<u64>,
    /// When the instance was frozen, and in which epoch.
    pub frozen: Option<(BootTime, Option<u64>)>,
}

impl Default for Guard {
    fn default() -> Self {
        Self { alive: true, stopped: false, lease: Lease::EXPIRED, epoch: None, frozen: None }
    }
}

/// What the guardian did in a tick.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fenced {
    /// Nothing.
    No,
    /// It froze the instance.
    Froze,
    /// It let the instance go on.
    Thawed,
    /// It killed the instance.
    Killed,
}

/// The machine.
#[derive(Debug)]
pub struct Machine {
    /// Whether it has power.
    pub power: bool,
    /// Whether every process of Postgres was stopped by a signal.
    pub postgres_stopped: bool,
    /// The data directory, if there is one.
    pub data: Option<Data>,
    /// The postmaster.
    pub run: Run,
    /// `primary_conninfo`.
    pub upstream: Option<NodeId>,
    /// Whether a walreceiver streams, as far as it knows.
    pub streaming: bool,
    /// When it last heard of its upstream.
    pub heard: u64,
    /// When it may try to connect again.
    pub connect_at: u64,
    /// Whether clients are let in.
    pub gate: bool,
    /// The epoch that it was promoted for.
    pub epoch: Epoch,
    /// Where that epoch's marker ends.
    pub marker: Option<usize>,
    /// The flush that is under way: how far, and until when.
    pub flush: Option<(usize, u64)>,
    /// What it calls itself as a standby.
    pub standby_name: DataId,
    /// The policy that its settings name.
    pub policy: Option<LogIndex>,
    /// Synchronous replication.
    pub sync: Sync,
    /// The commits that wait for their flush.
    pub commits: VecDeque<Commit>,
    /// The guardian.
    pub guard: Guard,
    /// Raised whenever something ended, froze or went on by itself.
    pub events: u64,
    page: StandIn,
}

impl Machine {
    /// Makes an empty machine.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            power: true,
            postgres_stopped: false,
            data: None,
            run: Run::Stopped,
            upstream: None,
            streaming: false,
            heard: 0,
            connect_at: 0,
            gate: false,
            epoch: Epoch(0),
            marker: None,
            flush: None,
            standby_name: DataId(0),
            policy: None,
            sync: Sync::default(),
            commits: VecDeque::new(),
            guard: Guard::default(),
            events: 0,
            page: StandIn::new()?,
        })
    }

    /// Returns the supervisor's side of the guardian's page.
    pub fn page(&self) -> std::io::Result<SharedPage> {
        self.page.supervisors(WRITER)
    }

    /// Returns whether the postmaster runs.
    pub fn runs(&self) -> bool {
        self.run != Run::Stopped
    }

    /// Returns whether its processes get anything done.
    pub fn moves(&self) -> bool {
        self.power && self.guard.frozen.is_none() && !self.postgres_stopped
    }

    /// Returns whether a client that reaches it can write.
    pub fn open(&self) -> bool {
        self.moves() && self.run == Run::Primary && self.gate
    }

    /// Ends every process of the instance. Whether what it wrote is durable is another question.
    pub fn kill(&mut self) {
        if self.runs()
            && let Some(data) = &mut self.data
        {
            data.clean = false;
            data.primary = self.run == Run::Primary;
        }
        self.end();
    }

    fn end(&mut self) {
        self.run = Run::Stopped;
        self.streaming = false;
        self.gate = false;
        self.marker = None;
        self.flush = None;
        self.commits.clear();
        self.sync.end();
        self.epoch = Epoch(0);
        self.guard.frozen = None;
        self.guard.epoch = None;
        self.postgres_stopped = false;
        self.events += 1;
    }

    /// Syncs what a stopped instance has written, before anybody is told where it ends.
    pub fn sync_stopped(&mut self) {
        if let Some(data) = &mut self.data {
            data.flushed = data.wal.len();
        }
    }

    /// Shuts it down in order: all is flushed.
    pub fn shut_down(&mut self) {
        let primary = self.run == Run::Primary;
        if let Some(data) = &mut self.data {
            data.clean = true;
            data.primary = primary;
            data.flushed = data.wal.len();
        }
        self.end();
    }

    /// Loses the power: what was not flushed is gone.
    pub fn lose_power(&mut self) {
        self.kill();
        self.power = false;
        self.guard = Guard { alive: false, ..Guard::default() };
        if let Some(data) = &mut self.data {
            data.wal.truncate(data.flushed);
        }
    }

    /// Starts the postmaster in recovery; what is on the disk is synced first.
    pub fn start(&mut self, upstream: Option<NodeId>, now: u64, ready: u64, boot: BootTime) {
        self.take_lease(boot);
        self.guard.epoch = match self.guard.lease {
            Lease::Until { epoch, .. } => Some(epoch),
            Lease::NotNeeded => None,
        };
        if let Some(data) = &mut self.data {
            data.flushed = data.wal.len();
        }
        self.run = Run::Starting(ready);
        self.policy = None;
        self.sync.start(ready + 150_000_000);
        self.upstream = upstream;
        self.streaming = false;
        self.heard = now;
        self.connect_at = ready;
        self.stamp(boot);
    }

    /// Writes a record; returns where it ends.
    pub fn write(&mut self, id: u64) -> usize {
        let Some(data) = &mut self.data else { return 0 };
        data.wal.push(Record { timeline: data.timeline, id });
        data.wal.len()
    }

    /// Looks again at the page at once, as the real one does when it is kicked.
    pub fn kick(&mut self, boot: BootTime) {
        if self.guard.alive && !self.guard.stopped {
            self.take_lease(boot);
            self.stamp(boot);
        }
    }

    /// Lets an instance that ever had a lease go on without one: it is a standby.
    pub fn release(&mut self, boot: BootTime) {
        self.guard.epoch = None;
        self.kick(boot);
    }

    /// Returns the lease as the page has it, whether or not the guardian has seen it.
    pub fn lease(&self) -> Option<Lease> {
        self.page.lease(WRITER)
    }

    fn stamp(&self, boot: BootTime) {
        let state = match (self.run, self.guard.frozen) {
            (Run::Stopped, _) => GuardState::Idle,
            (_, Some(_)) => GuardState::Frozen,
            (_, None) => GuardState::Running,
        };
        self.page.stamp(boot, state);
    }

    fn take_lease(&mut self, _boot: BootTime) {
        let Some(new) = self.page.lease(WRITER) else { return };
        if new == self.guard.lease {
            return;
        }
        if self.runs() {
            match (new, self.guard.epoch) {
                (Lease::NotNeeded, Some(_)) => return,
                (Lease::Until { epoch, .. }, Some(highest)) if epoch < highest => return,
                (Lease::Until { epoch, .. }, _) => self.guard.epoch = Some(epoch),
                (Lease::NotNeeded, None) => {}
            }
        }
        self.guard.lease = new;
    }

    /// One look of the guardian at the page and its instance. `late` is by how much the mutant
    /// counts a deadline from the reply.
    pub fn guard(&mut self, boot: BootTime, late: bool) -> Fenced {
        if !self.power || !self.guard.alive || self.guard.stopped {
            return Fenced::No;
        }
        let known = self.guard.lease;
        self.take_lease(boot);
        if late
            && self.guard.lease != known
            && let Lease::Until { deadline, sent, epoch } = self.guard.lease
        {
            let deadline = deadline.saturating_add(boot.saturating_since(sent));
            self.guard.lease = Lease::Until { deadline, sent, epoch };
        }
        let fenced = self.fence(boot);
        self.stamp(boot);
        fenced
    }

    fn fence(&mut self, boot: BootTime) -> Fenced {
        if !self.runs() {
            return Fenced::No;
        }
        if let Some((at, frozen_epoch)) = self.guard.frozen {
            let renewed = match self.guard.lease {
                Lease::Until { deadline, sent, epoch } => {
                    deadline > boot && sent > at && frozen_epoch == Some(epoch)
                }
                Lease::NotNeeded => frozen_epoch.is_none(),
            };
            if renewed {
                self.guard.frozen = None;
                self.events += 1;
                return Fenced::Thawed;
            }
            if boot.saturating_since(at) >= FROZEN_LIMIT {
                self.kill();
                return Fenced::Killed;
            }
            return Fenced::No;
        }
        if self.guard.lease.expired(boot) {
            let epoch = match self.guard.lease {
                Lease::Until { epoch, .. } => Some(epoch),
                Lease::NotNeeded => None,
            };
            self.guard.frozen = Some((boot, epoch));
            self.events += 1;
            return Fenced::Froze;
        }
        Fenced::No
    }
}
