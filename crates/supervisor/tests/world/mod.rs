//! A small world: the real decision core over a model Postgres, a model log and a model lease.
//!
//! One tick is 100 ms. WAL is a list of records; a position is the timeline of the last one and
//! how many there are. The log is linear: an entry is in it when a majority took it, and members
//! apply it later. What a member may lose by a crash it loses: its memory as a voter, its
//! messages, how far it had applied; never its promise, its WAL, its log.
#![allow(dead_code, reason = "each test binary uses a part of it")]

mod checks;
mod effects;
mod leading;
mod wal;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rhone::decide::{self, ClusterDecision, Effect, NodeDecision};
use rhone::record::{self, ClusterSeen, Line, MemberSeen};
use rhone::view::{
    ClusterView, Heard, Instance, Moment, NodeView, Received, Report, Revoked, Stream, VoterReport,
};
use rhone_consensus::command::{
    ClusterCommand, Handover, Member, MemberKind, Outcome, PrepareReason, WallTime,
};
use rhone_consensus::ids::{DataId, Epoch, Incarnation, LogIndex, NodeId, Replica};
use rhone_consensus::policy::PolicyKind;
use rhone_consensus::settings::{Settings, SyncMode};
use rhone_consensus::state::{ClusterState, Phase};
use rhone_pgctl::wal::{Lsn, SystemId, Timeline, WalPosition};

pub(crate) const TICK_MS: u64 = 100;
/// The records that an asynchronous failover may leave behind.
pub(crate) const MAX_LAG: u64 = 3;

/// A rule that is left out, to see that the checks notice.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Mutant {
    None,
    /// A Grant without waiting for the lease.
    LeaseIgnored,
    /// A voter renews an old epoch although it holds a higher Prepare.
    RenewsAfterPrepare,
    /// A voter counts as aged right after its start.
    NoQuarantine,
    /// A Grant drops the open policies.
    PoliciesForgotten,
    /// A member promises and goes on streaming.
    StreamsOn,
    /// A member below its floor counts.
    NoFloor,
    /// Positions are compared without a cover.
    NoCover,
    /// Silence counts from the last owner's last renewal.
    NoGrace,
    /// A useless answer is never asked for again.
    AnswersStay,
    /// The lag gate is off.
    NoLagGate,
    /// A member that was wiped or restored counts under its old data directory.
    NoIncarnation,
    /// The older policies are dropped before the new one is settled and flushed.
    NarrowsEarly,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Record {
    timeline: u32,
    id: u64,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Postgres {
    Absent,
    Stopped { clean: bool, primary: bool },
    Standby { upstream: Option<NodeId>, streaming: bool },
    Primary { epoch: Epoch, gate: bool, switch: u64 },
}

#[derive(Clone, Debug)]
enum Message {
    Report(usize, Box<Report>),
    Revoke(usize, Epoch),
    Revoked(usize, Revoked),
}

pub(crate) struct Node {
    id: NodeId,
    pub up: bool,
    have: usize,
    applied: usize,
    pub state: ClusterState,
    grant_seen: Moment,
    promise: Epoch,
    wal: Vec<Record>,
    timeline: u32,
    postgres: Postgres,
    unfinished: Option<Epoch>,
    floor: usize,
    running: Option<(Effect, Epoch, u64)>,
    revoke: Option<Epoch>,
    pub leaving: bool,
    leave_now: bool,
    lease_until: u64,
    renewed_len: usize,
    started: u64,
    last_renewal: u64,
    heard: Option<Heard>,
    acks: BTreeMap<Replica, usize>,
    /// What processes of Postgres may be set to wait for, by policy number.
    using: Vec<(LogIndex, PolicyKind)>,
    secured: Option<LogIndex>,
    /// The data directory as its member knows it, and whether what is there is another one.
    data: DataId,
    stranger: bool,
    streamed: u64,
    last: String,
    /// What it decided last, as the recorder knows it.
    decided: Option<NodeDecision>,
}

impl Node {
    fn position(&self) -> WalPosition {
        WalPosition::new(Timeline::new(self.timeline), Lsn::new(self.wal.len() as u64))
    }

    fn replica(&self) -> Replica {
        Replica { node: self.id, data: self.data }
    }

    fn instance(&self, now: u64) -> Instance {
        match &self.postgres {
            Postgres::Absent => Instance::Absent,
            Postgres::Stopped { clean, primary } => {
                Instance::Stopped { position: Some(self.position()), clean: *clean, primary: *primary }
            }
            Postgres::Standby { upstream, streaming } => Instance::Standby {
                position: self.position(),
                upstream: *upstream,
                streaming: *streaming,
                idle_ms: now - self.streamed,
                wal_gone: false,
            },
            Postgres::Primary { epoch, gate, .. } => {
                Instance::Primary { epoch: *epoch, position: self.position(), gate_open: *gate }
            }
        }
    }

    fn view<'a>(&'a self, instance: &'a Instance) -> NodeView<'a> {
        NodeView {
            state: &self.state,
            me: self.id,
            instance,
            promise: self.promise,
            unfinished: self.unfinished,
            copied: false,
            stranger: self.stranger,
            policy: self.using.last().map(|(number, _)| *number),
            secured: self.secured,
            revoke: self.revoke,
            running: self.running.map(|(effect, epoch, _)| (effect, epoch)),
            leaving: self.leaving,
            leave_now: self.leave_now,
            behind: false,
            fenced_ahead: false,
            guardian: true,
            rewinds_failed: 0,
            start_failed: None,
            sources: rhone::view::Sources::default(),
            chores: rhone::view::Chores::default(),
        }
    }

    fn kill(&mut self) {
        let primary = matches!(self.postgres, Postgres::Primary { .. });
        if self.postgres != Postgres::Absent && !matches!(self.postgres, Postgres::Stopped { .. }) {
            self.postgres = Postgres::Stopped { clean: false, primary };
        }
        (self.using, self.secured) = (Vec::new(), None);
    }
}

pub(crate) struct World {
    pub now: u64,
    pub nodes: Vec<Node>,
    pub leader: Option<usize>,
    led_since: u64,
    log: Vec<ClusterCommand>,
    pub state: ClusterState,
    reports: BTreeMap<NodeId, Received>,
    revoked: BTreeMap<NodeId, (Moment, Revoked)>,
    revoked_for: Epoch,
    asked: BTreeMap<NodeId, u64>,
    messages: VecDeque<Message>,
    pub cut: BTreeSet<(usize, usize)>,
    pub sync: bool,
    /// Whether the mode has changed: then the policies say what may be lost.
    modal: bool,
    wiped: bool,
    pub mutant: Mutant,
    random: Option<u64>,
    next_id: u64,
    acked: Vec<(Epoch, u64)>,
    owners: BTreeMap<Epoch, NodeId>,
    pub trace: Vec<String>,
    pub violation: Option<String>,
    told: String,
    /// Whether each changed decision is recorded, and decided again from that.
    pub recording: bool,
    decided: Option<ClusterDecision>,
    pub replayed: usize,
}

impl World {
    pub(crate) fn new(sync: bool, mutant: Mutant, seed: Option<u64>) -> Self {
        Self::with(if sync { SyncMode::Quorum } else { SyncMode::Off }, mutant, seed)
    }

    pub(crate) fn with(mode: SyncMode, mutant: Mutant, seed: Option<u64>) -> Self {
        let nodes = (1..=3).map(|id| Node {
            id: NodeId(id),
            up: true,
            have: 0,
            applied: 0,
            state: ClusterState::default(),
            grant_seen: Moment(0),
            promise: Epoch(0),
            wal: Vec::new(),
            timeline: 1,
            postgres: Postgres::Absent,
            unfinished: None,
            floor: 0,
            running: None,
            revoke: None,
            leaving: false,
            leave_now: false,
            lease_until: 0,
            renewed_len: 0,
            started: 0,
            last_renewal: 0,
            heard: None,
            acks: BTreeMap::new(),
            using: Vec::new(),
            secured: None,
            data: DataId(0),
            stranger: false,
            streamed: 0,
            last: String::new(),
            decided: None,
        });
        let mut world = Self {
            now: 0,
            nodes: nodes.collect(),
            leader: Some(1),
            led_since: 0,
            log: Vec::new(),
            state: ClusterState::default(),
            reports: BTreeMap::new(),
            revoked: BTreeMap::new(),
            revoked_for: Epoch(0),
            asked: BTreeMap::new(),
            messages: VecDeque::new(),
            cut: BTreeSet::new(),
            sync: mode != SyncMode::Off,
            modal: false,
            wiped: false,
            mutant,
            random: seed.map(|seed| seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1),
            next_id: 0,
            acked: Vec::new(),
            owners: BTreeMap::new(),
            trace: Vec::new(),
            violation: None,
            told: String::new(),
            recording: false,
            decided: None,
            replayed: 0,
        };
        let members = (1..=3).map(|id| Member {
            node: NodeId(id),
            name: format!("n{id}"),
            kind: MemberKind::Data,
            incarnation: Incarnation(u128::from(id)),
            address: String::new(),
            postgres: String::new(),
            http: String::new(),
            priority: 1,
            tags: rhone_consensus::tags::Tags::default(),
        });
        let settings = Settings { max_lag_on_failover: MAX_LAG, sync: mode, ..Settings::default() };
        let found = ClusterCommand::Found {
            cluster: "main".to_owned(),
            founder: NodeId(1),
            members: members.collect(),
            settings,
        };
        world.propose(found);
        world
    }

    /// A number below `bound`; 0 where nothing is random.
    pub(crate) fn draw(&mut self, bound: u64) -> u64 {
        let Some(x) = &mut self.random else { return 0 };
        *x ^= *x << 13;
        *x ^= *x >> 7;
        *x ^= *x << 17;
        x.wrapping_mul(0x2545_F491_4F6C_DD1D) % bound.max(1)
    }

    pub(crate) fn calm(&mut self) {
        self.random = None;
    }

    fn at(&self) -> Moment {
        Moment(self.now * 1_000_000)
    }

    fn linked(&self, a: usize, b: usize) -> bool {
        self.nodes[a].up && self.nodes[b].up && !self.cut.contains(&(a.min(b), a.max(b)))
    }

    // ---- the log

    pub(crate) fn propose(&mut self, command: ClusterCommand) -> bool {
        let Some(leader) = self.leader else { return false };
        let mut takers: Vec<usize> =
            (0..3).filter(|node| *node == leader || self.linked(leader, *node)).collect();
        if takers.len() < 2 {
            return false;
        }
        if takers.len() == 3 && self.draw(3) == 1 {
            let slow = takers.iter().copied().filter(|node| *node != leader).nth(self.draw(2) as usize);
            takers.retain(|node| Some(*node) != slow);
        }
        self.log.push(command.clone());
        for node in takers {
            self.nodes[node].have = self.log.len();
        }
        let index = self.log.len() as u64;
        let outcome = self.state.apply(LogIndex(index), &command);
        if let Some(broken) = self.state.broken_invariant() {
            self.violated(broken);
        }
        self.note(index, &command, &outcome);
        true
    }

    // ---- one tick

    pub(crate) fn tick(&mut self) {
        self.now += TICK_MS;
        for node in 0..3 {
            if self.nodes[node].up {
                self.apply(node);
            }
        }
        for node in 0..3 {
            if self.nodes[node].up {
                self.renew(node);
                self.act(node);
            }
        }
        for node in 0..3 {
            self.stream(node);
            self.report(node);
        }
        self.deliver();
        self.lead();
        self.check_inclusion();
    }

    fn apply(&mut self, node: usize) {
        let behind =
            (0..3).any(|peer| self.linked(node, peer) && self.nodes[peer].have > self.nodes[node].have);
        if behind && self.draw(3) != 1 {
            self.nodes[node].have = self.log.len();
        }
        let at = self.at();
        while self.nodes[node].applied < self.nodes[node].have && self.draw(4) != 1 {
            let index = self.nodes[node].applied;
            let command = self.log[index].clone();
            let n = &mut self.nodes[node];
            n.state.apply(LogIndex(index as u64 + 1), &command);
            n.applied += 1;
            if matches!(command, ClusterCommand::Grant(_)) {
                n.grant_seen = at;
            }
        }
    }

    /// The highest Prepare in a voter's log.
    fn held(&self, voter: usize) -> Epoch {
        let log = self.log.iter().take(self.nodes[voter].have).enumerate();
        let prepares = log.filter(|(_, command)| command.opens_epoch());
        prepares.last().map_or(Epoch(0), |(index, _)| Epoch(index as u64 + 1))
    }

    fn quarantined(&self, voter: usize) -> bool {
        let n = &self.nodes[voter];
        self.mutant != Mutant::NoQuarantine
            && n.started > 0
            && self.now - n.started < self.state.settings.timing.aged_ns() / 1_000_000
    }

    fn renew(&mut self, node: usize) {
        let n = &self.nodes[node];
        let epoch = match (&n.postgres, n.state.current_grant()) {
            (Postgres::Primary { epoch, .. }, _) => *epoch,
            (_, Some(grant)) if grant.owner == n.id && n.promise == grant.epoch => {
                if n.state.phase == Phase::Established {
                    return;
                }
                grant.epoch
            }
            _ => return,
        };
        let len = n.wal.len();
        let mut count = 0;
        for voter in 0..3 {
            let reached = voter == node || self.linked(node, voter);
            if !reached || self.draw(10) == 1 {
                continue;
            }
            if self.held(voter) > epoch && self.mutant != Mutant::RenewsAfterPrepare {
                continue;
            }
            let now = self.now;
            let v = &mut self.nodes[voter];
            v.last_renewal = now;
            v.heard = Some(Heard { epoch, lsn: Lsn::new(len as u64) });
            count += 1;
        }
        let serve_ms = self.state.settings.timing.serve_ns() / 1_000_000;
        let now = self.now;
        let n = &mut self.nodes[node];
        if count >= 2 {
            n.lease_until = now + serve_ms;
            n.renewed_len = len;
        } else if now > n.lease_until + 1000 && matches!(n.postgres, Postgres::Primary { gate: true, .. }) {
            n.kill(); // the guardian, after a freeze
        }
    }

    /// A client writes at whoever takes it.
    pub(crate) fn write(&mut self, node: usize) {
        let open = matches!(self.nodes[node].postgres, Postgres::Primary { gate: true, .. });
        if self.nodes[node].up && open && (self.sync || self.now < self.nodes[node].lease_until) {
            let id = self.fresh();
            let timeline = self.nodes[node].timeline;
            self.nodes[node].wal.push(Record { timeline, id });
            self.acknowledge(node);
        }
    }

    // ---- the leader

    pub(crate) fn lead_by(&mut self, node: usize) {
        if self.leader != Some(node) && self.nodes[node].up && self.nodes[node].have == self.log.len() {
            self.leader = Some(node);
            self.led_since = self.now;
            self.reports.clear();
            self.revoked.clear();
            self.asked.clear();
            self.say(&format!("n{} leads the log", node + 1));
        }
    }

    /// Takes a line through its JSON and decides again.
    fn replay(&mut self, line: &Line) {
        let text = serde_json::to_string(line).expect("it is written");
        let read: Line = serde_json::from_str(&text).expect("what is written is read");
        assert_eq!(read, *line);
        let again = read.again().expect("a decision");
        assert_eq!(again.now, None, "{again:?}\n{text}");
        self.replayed += 1;
    }

    // ---- faults

    pub(crate) fn crash(&mut self, node: usize) {
        self.say(&format!("n{} loses power", node + 1));
        self.forget(node);
        let n = &mut self.nodes[node];
        n.up = false;
        n.kill();
    }

    /// The data directory of a member that is down is emptied, or replaced by an older copy; once, and
    /// while nothing but that member's word is lost with it.
    pub(crate) fn lose_data(&mut self, node: usize, keep: Option<u64>) {
        let calm = self.state.phase == Phase::Established && self.state.policies.len() == 1;
        let owner = self.state.last_owner() == Some(NodeId(node as u64 + 1));
        if self.nodes[node].up || self.wiped || !calm || owner || !self.sync {
            return;
        }
        self.wiped = true;
        self.say(&format!(
            "n{}'s data directory is {}",
            node + 1,
            if keep.is_some() { "restored" } else { "emptied" }
        ));
        let n = &mut self.nodes[node];
        match keep {
            Some(lost) if n.postgres != Postgres::Absent => {
                let len = n.wal.len().saturating_sub(lost as usize).max(1);
                n.wal.truncate(len);
                n.timeline = n.wal.last().map_or(1, |record| record.timeline);
                n.stranger = true;
            }
            _ => {
                n.wal.clear();
                n.postgres = Postgres::Absent;
            }
        }
    }

    pub(crate) fn start(&mut self, node: usize) {
        if !self.nodes[node].up {
            self.say(&format!("n{} starts", node + 1));
            self.forget(node);
            self.nodes[node].kill();
            self.nodes[node].started = self.now;
            self.nodes[node].up = true;
        }
    }

    /// The supervisor alone is killed and starts again; Postgres goes on.
    pub(crate) fn restart_supervisor(&mut self, node: usize) {
        if self.nodes[node].up {
            self.say(&format!("n{}'s supervisor restarts", node + 1));
            let lease = self.nodes[node].lease_until;
            self.forget(node);
            self.nodes[node].lease_until = lease;
            self.nodes[node].started = self.now;
        }
    }

    pub(crate) fn kill_postgres(&mut self, node: usize) {
        self.say(&format!("n{}'s postmaster dies", node + 1));
        self.nodes[node].kill();
    }

    pub(crate) fn leave(&mut self, node: usize, now: bool) {
        if !self.nodes[node].leaving || now {
            self.say(&format!("n{} gets SIGTERM{}", node + 1, if now { ", deadline" } else { "" }));
        }
        self.nodes[node].leaving = true;
        self.nodes[node].leave_now = now;
    }

    /// A person changes the synchronous mode.
    pub(crate) fn set_mode(&mut self, mode: SyncMode) {
        (self.modal, self.sync) = (true, true);
        let settings = Box::new(Settings { sync: mode, ..self.state.settings.clone() });
        let (expected, by) = (self.state.settings_version, String::new());
        self.propose(ClusterCommand::ChangeSettings { expected, settings, by, at: WallTime(0) });
    }

    pub(crate) fn fail_over(&mut self) {
        self.propose(ClusterCommand::Prepare { reason: PrepareReason::Operator, at: WallTime(0) });
    }

    pub(crate) fn switchover(&mut self, to: usize) {
        let handover = Handover { epoch: self.state.epoch, to: Some(NodeId(to as u64 + 1)), leaving: false };
        self.propose(ClusterCommand::SetHandover(Some(handover)));
    }

    pub(crate) fn primary(&self) -> Option<usize> {
        (0..3).find(|n| {
            self.nodes[*n].up && matches!(self.nodes[*n].postgres, Postgres::Primary { gate: true, .. })
        })
    }

    /// One open primary, and everybody else streams from it.
    pub(crate) fn converged(&self) -> bool {
        let Some(primary) = self.primary() else { return false };
        self.state.phase == Phase::Established
            && (0..3).all(|n| {
                let node = &self.nodes[n];
                n == primary
                    || matches!(&node.postgres, Postgres::Standby { streaming: true, upstream: Some(to) } if to.0 as usize == primary + 1)
                        && node.wal == self.nodes[primary].wal
            })
    }

    pub(crate) fn describe(&self) -> String {
        let nodes = self.nodes.iter().map(|n| {
            let instance = match &n.postgres {
                Postgres::Absent => "no data".to_owned(),
                Postgres::Stopped { clean, .. } => {
                    format!("stopped{}", if *clean { " in order" } else { "" })
                }
                Postgres::Standby { upstream: Some(to), streaming: true } => {
                    format!("streams from n{}", to.0)
                }
                Postgres::Standby { upstream, .. } => format!("standby of {upstream:?}"),
                Postgres::Primary { epoch, gate, .. } => {
                    format!("primary of {epoch}, gate {}", if *gate { "open" } else { "closed" })
                }
            };
            let up = if n.up { "" } else { " (down)" };
            format!("       n{}{up} {}: {instance}, promise {}", n.id.0, n.position(), n.promise)
        });
        nodes.collect::<Vec<_>>().join("\n")
    }
}
