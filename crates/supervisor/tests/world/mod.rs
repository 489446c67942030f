//! A small world: the real decision core over a model Postgres, a model log and a model lease.
//!
//! One tick is 100 ms. WAL is a list of records; a position is the timeline of the last one and
//! how many there are. The log is linear: an entry is in it when a majority took it, and members
//! apply it later. What a member may lose by a crash it loses: its memory as a voter, its
//! messages, how far it had applied; never its promise, its WAL, its log.
#![allow(dead_code, reason = "each test binary uses a part of it")]

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

    fn violated(&mut self, what: String) {
        if self.violation.is_none() {
            self.trace.push(format!("{:>6} VIOLATION {what}", self.now));
            self.violation = Some(what);
        }
    }

    fn say(&mut self, text: &str) {
        self.trace.push(format!("{:>6} {text}", self.now));
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

    fn note(&mut self, index: u64, command: &ClusterCommand, outcome: &Outcome) {
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

    fn check_grant(&mut self, grant: &rhone_consensus::command::Grant) {
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

    /// Whatever releases a waiting commit is in P, until a newer epoch has secured everything.
    fn check_inclusion(&mut self) {
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
            if !reached || self.draw(10) == 1 || self.quarantined(voter) {
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

    fn act(&mut self, node: usize) {
        if let Some((effect, epoch, until)) = self.nodes[node].running
            && self.now >= until
        {
            self.nodes[node].running = None;
            self.finish(node, effect, epoch);
        }
        let instance = self.nodes[node].instance(self.now);
        let decision = decide::node(&self.nodes[node].view(&instance), self.at());
        if self.recording && self.nodes[node].decided != Some(decision) {
            self.nodes[node].decided = Some(decision);
            let (at, now) = (rhone::civil::WallTime::from_ms(0), self.at());
            let seen = MemberSeen::of(&self.nodes[node].view(&instance));
            self.replay(&Line::Member(record::Record { at, now, seen, decided: decision }));
        }
        let text = match decision {
            NodeDecision::Act(effect, epoch, reason) => {
                let takes = self.draw(4) * TICK_MS;
                self.begin(node, effect, epoch);
                self.nodes[node].running = Some((effect, epoch, self.now + TICK_MS + takes));
                let to = match effect {
                    Effect::Start(Some(to)) | Effect::Follow(to) | Effect::Rewind(to) | Effect::Clone(to) => {
                        format!(" n{}", to.0)
                    }
                    _ => String::new(),
                };
                format!("n{}: {}{to} in {epoch} ({reason})", node + 1, effect.code())
            }
            NodeDecision::Rest(_) => String::new(),
        };
        if !text.is_empty() && self.nodes[node].last != text {
            self.say(&text);
        }
        if !text.is_empty() {
            self.nodes[node].last = text;
        }
        let n = &mut self.nodes[node];
        if n.leaving && matches!(n.postgres, Postgres::Stopped { .. }) && n.leave_now {
            n.up = false;
        }
        if n.revoke.is_some_and(|asked| {
            asked < n.promise || n.state.grant.as_ref().is_some_and(|g| g.epoch >= asked)
        }) {
            n.revoke = None;
        }
    }

    /// What an effect does as soon as it begins.
    fn begin(&mut self, node: usize, effect: Effect, epoch: Epoch) {
        let n = &mut self.nodes[node];
        match effect {
            Effect::Start(Some(_)) | Effect::Follow(_) | Effect::Clone(_) => n.promise = n.promise.max(epoch),
            Effect::Rewind(_) => {
                n.promise = n.promise.max(epoch);
                n.unfinished = Some(epoch);
                n.kill();
            }
            Effect::Fence => n.kill(),
            Effect::SetPolicy => {
                if let Some(policy) = n.state.policy().filter(|policy| policy.epoch == epoch) {
                    let new = (policy.number, policy.kind.clone());
                    // From the reload on some processes use the new one and some the old.
                    if n.using.last().is_none_or(|(number, _)| *number < new.0) {
                        n.using.push(new);
                    }
                }
            }
            Effect::Revoke => {
                n.promise = n.promise.max(epoch);
                if matches!(n.postgres, Postgres::Primary { .. }) {
                    n.kill();
                }
            }
            _ => {}
        }
    }

    fn finish(&mut self, node: usize, effect: Effect, epoch: Epoch) {
        if self.nodes[node].promise > epoch {
            return; // a promise that was given meanwhile
        }
        let source = |to: NodeId| to.0 as usize - 1;
        match effect {
            Effect::InitDb => {
                let n = &mut self.nodes[node];
                n.wal = vec![Record { timeline: 1, id: 0 }];
                n.data = DataId(1000 + node as u64);
                n.postgres = Postgres::Stopped { clean: true, primary: true };
            }
            Effect::Start(upstream) => {
                if matches!(self.nodes[node].postgres, Postgres::Stopped { .. }) {
                    self.nodes[node].postgres = Postgres::Standby { upstream, streaming: false };
                }
            }
            Effect::Follow(to) => {
                if matches!(self.nodes[node].postgres, Postgres::Standby { .. }) {
                    self.nodes[node].postgres = Postgres::Standby { upstream: Some(to), streaming: false };
                }
            }
            Effect::Revoke => self.answer(node, epoch),
            Effect::Promote => self.promote(node, epoch),
            Effect::SetPolicy => self.settle(node),
            Effect::OpenGate => {
                let first = self.nodes[node].state.history.is_empty();
                let durable = first || self.acknowledged(node) >= self.nodes[node].wal.len();
                if let Postgres::Primary { gate, .. } = &mut self.nodes[node].postgres {
                    *gate |= durable;
                }
            }
            Effect::Fence => {}
            Effect::HandOver => {
                let id = self.nodes[node].id;
                for peer in 0..3 {
                    if self.linked(node, peer)
                        && self.nodes[peer].postgres
                            == (Postgres::Standby { upstream: Some(id), streaming: true })
                    {
                        self.nodes[peer].streamed = self.now;
                        self.nodes[peer].wal = self.nodes[node].wal.clone();
                        self.nodes[peer].timeline = self.nodes[node].timeline;
                    }
                }
                if matches!(self.nodes[node].postgres, Postgres::Primary { .. }) {
                    self.nodes[node].postgres = Postgres::Stopped { clean: true, primary: true };
                }
            }
            Effect::Stop => {
                let n = &mut self.nodes[node];
                if matches!(n.postgres, Postgres::Standby { .. }) {
                    n.postgres = Postgres::Stopped { clean: true, primary: false };
                }
            }
            Effect::Rewind(to) | Effect::Clone(to) => self.copy(node, source(to), effect),
        }
    }

    fn copy(&mut self, node: usize, source: usize, effect: Effect) {
        if !self.linked(node, source) || !matches!(self.nodes[source].postgres, Postgres::Primary { .. }) {
            return;
        }
        let theirs = self.nodes[source].wal.clone();
        let timeline = self.nodes[source].timeline;
        let back = self.draw(3) as usize;
        let data = DataId(1000 + self.fresh() * 10 + node as u64);
        let n = &mut self.nodes[node];
        (n.data, n.stranger, n.streamed) = (data, false, self.now);
        if matches!(effect, Effect::Clone(_)) {
            n.floor = theirs.len();
            n.wal = theirs;
            n.timeline = timeline;
        } else {
            let common = n.wal.iter().zip(&theirs).take_while(|(a, b)| a == b).count();
            n.floor = common;
            n.wal.truncate(common.saturating_sub(back).max(1));
            n.timeline = n.wal.last().map_or(1, |record| record.timeline);
        }
        n.unfinished = None;
        n.postgres = Postgres::Stopped { clean: true, primary: false };
    }

    fn answer(&mut self, node: usize, epoch: Epoch) {
        let streams_on = self.mutant == Mutant::StreamsOn;
        let no_floor = self.mutant == Mutant::NoFloor;
        let no_incarnation = self.mutant == Mutant::NoIncarnation;
        let n = &mut self.nodes[node];
        if let Postgres::Standby { upstream, streaming } = &mut n.postgres
            && !streams_on
        {
            (*upstream, *streaming) = (None, false);
        }
        let counts =
            n.postgres != Postgres::Absent && n.unfinished.is_none() && (n.wal.len() >= n.floor || no_floor);
        let counts = counts && (!n.stranger || no_incarnation);
        let revoked = Revoked {
            epoch,
            position: counts.then(|| n.position()),
            data: n.data,
            able: !n.leaving,
            highest_timeline: Timeline::new(n.timeline),
        };
        n.revoke = n.revoke.filter(|asked| *asked > epoch);
        self.messages.push_back(Message::Revoked(node, revoked));
    }

    fn promote(&mut self, node: usize, epoch: Epoch) {
        let n = &self.nodes[node];
        let Some(grant) = n.state.current_grant().cloned() else { return };
        let ready = grant.epoch == epoch && n.promise == epoch && n.position() == grant.base;
        if !ready || self.now >= n.lease_until || !matches!(n.postgres, Postgres::Standby { .. }) {
            return;
        }
        let id = self.fresh();
        let n = &mut self.nodes[node];
        n.timeline = grant.timeline.get();
        n.postgres = Postgres::Primary { epoch, gate: false, switch: n.wal.len() as u64 };
        n.wal.push(Record { timeline: n.timeline, id });
        n.acks.clear();
        let policy = n.state.policy().expect("a grant has one").clone();
        n.using = vec![(policy.number, policy.kind)];
        n.secured = Some(policy.number);
    }

    /// All processes have taken the newest policy over; older ones go once it has everything.
    fn settle(&mut self, node: usize) {
        if !matches!(self.nodes[node].postgres, Postgres::Primary { .. }) {
            return;
        }
        let Some((number, kind)) = self.nodes[node].using.last().cloned() else { return };
        let until = self.acknowledged_under(node, &kind);
        let n = &mut self.nodes[node];
        n.using = vec![(number, kind)];
        if until >= n.wal.len() || self.mutant == Mutant::NarrowsEarly {
            n.secured = Some(number);
        }
    }

    fn fresh(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    /// How much of a primary's WAL is acknowledged to clients as it stands: by whatever process of it
    /// is set to the least.
    fn acknowledged(&self, node: usize) -> usize {
        let using = self.nodes[node].using.iter();
        using.map(|(_, kind)| self.acknowledged_under(node, kind)).max().unwrap_or(0)
    }

    fn acknowledged_under(&self, node: usize, kind: &PolicyKind) -> usize {
        let n = &self.nodes[node];
        match kind {
            PolicyKind::Quorum { required, standbys } => {
                let mut flushed: Vec<usize> =
                    standbys.iter().map(|s| n.acks.get(s).copied().unwrap_or(0)).collect();
                flushed.sort_unstable();
                flushed.into_iter().rev().nth(*required as usize - 1).unwrap_or(0)
            }
            PolicyKind::Alone => n.wal.len(),
            PolicyKind::Async { .. } if self.now < n.lease_until => n.wal.len(),
            PolicyKind::Async { .. } => 0,
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

    fn acknowledge(&mut self, node: usize) {
        let Postgres::Primary { epoch, gate: true, switch } = self.nodes[node].postgres else { return };
        let until = self.acknowledged(node);
        let from = switch as usize + 1;
        let new: Vec<u64> = self.nodes[node].wal.iter().take(until).skip(from).map(|r| r.id).collect();
        for id in new {
            if self.acked.contains(&(epoch, id)) {
                continue;
            }
            if let Some((other, _)) = self.acked.iter().find(|(other, _)| *other > epoch) {
                self.violated(format!("epoch {epoch} acknowledges after epoch {other} did"));
            }
            self.acked.push((epoch, id));
        }
    }

    fn stream(&mut self, node: usize) {
        let Postgres::Standby { upstream: Some(to), .. } = self.nodes[node].postgres else { return };
        let source = to.0 as usize - 1;
        let flows =
            self.linked(node, source) && matches!(self.nodes[source].postgres, Postgres::Primary { .. });
        let theirs = self.nodes[source].wal.clone();
        let mine = &self.nodes[node].wal;
        let prefix = mine.len() <= theirs.len() && mine.iter().zip(&theirs).all(|(a, b)| a == b);
        let streaming = flows && prefix;
        if let Postgres::Standby { streaming: now, .. } = &mut self.nodes[node].postgres {
            *now = streaming;
        }
        if streaming {
            self.nodes[node].streamed = self.now;
        }
        if !streaming || self.draw(4) == 1 {
            return;
        }
        let step = if self.random.is_some() { 1 + self.draw(3) as usize } else { theirs.len() };
        let n = &mut self.nodes[node];
        let until = theirs.len().min(n.wal.len() + step);
        n.wal.extend_from_slice(&theirs[n.wal.len()..until]);
        n.timeline = n.wal.last().map_or(1, |record| record.timeline);
        let (replica, len) = (n.replica(), n.wal.len());
        self.nodes[source].acks.insert(replica, len);
        self.acknowledge(source);
    }

    // ---- messages

    fn report(&mut self, node: usize) {
        let n = &self.nodes[node];
        if !n.up || (self.random.is_some() && (self.now / TICK_MS + node as u64) % 3 != 0) {
            return;
        }
        let instance = n.instance(self.now);
        let streams = self.streams(node);
        let whole = !n.stranger && n.unfinished.is_none() && n.wal.len() >= n.floor;
        let held = self.held(node);
        let quarantined = self.quarantined(node);
        let silent = self.now - n.last_renewal.max(n.started);
        let aged = silent >= self.state.settings.timing.aged_ns() / 1_000_000;
        let no_quarantine = self.mutant == Mutant::NoQuarantine && n.last_renewal < n.started;
        let report = Report {
            activity: None,
            voter: VoterReport {
                held,
                silent_ms: (!quarantined).then_some(silent),
                aged_for: ((aged && !quarantined) || no_quarantine).then_some(held),
                heard: n.heard,
                ..VoterReport::default()
            },
            promise: n.promise,
            leaving: n.leaving,
            down: decide::down(&n.view(&instance)),
            system_id: (n.postgres != Postgres::Absent).then(|| SystemId::new(7)),
            data: (whole && n.postgres != Postgres::Absent).then_some(n.data),
            streams,
            secured: n.secured,
            highest_timeline: Timeline::new(n.timeline),
            lease_left_ms: None,
            counts_by: None,
            version: None,
            left: None,
            note: None,
            server: rhone::view::ServerFacts::default(),
            instance,
        };
        self.messages.push_back(Message::Report(node, Box::new(report)));
    }

    fn streams(&self, node: usize) -> BTreeMap<DataId, Stream> {
        let n = &self.nodes[node];
        let ours = |p: &Node| p.postgres == Postgres::Standby { upstream: Some(n.id), streaming: true };
        let lacks = |p: &Node| n.wal.len().saturating_sub(p.wal.len());
        let all = self.nodes.iter().filter(|p| ours(p));
        all.map(|p| (p.data, Stream { live: true, caught_up: lacks(p) < 4 })).collect()
    }

    fn deliver(&mut self) {
        let mut left = VecDeque::new();
        while let Some(message) = self.messages.pop_front() {
            let Some(leader) = self.leader else { continue };
            let peer = match &message {
                Message::Report(node, _) | Message::Revoke(node, _) | Message::Revoked(node, _) => *node,
            };
            match self.draw(12) {
                1 => continue,
                2..4 => {
                    left.push_back(message);
                    continue;
                }
                _ => {}
            }
            if peer != leader && !self.linked(peer, leader) || !self.nodes[peer].up {
                continue;
            }
            let at = self.at();
            let id = NodeId(peer as u64 + 1);
            match message {
                Message::Report(_, report) => {
                    self.reports.insert(id, Received { at, report: *report });
                }
                Message::Revoke(_, epoch) => {
                    let n = &mut self.nodes[peer];
                    n.revoke = n.revoke.max(Some(epoch));
                }
                Message::Revoked(_, answer) => {
                    if answer.epoch == self.state.epoch {
                        self.revoked.insert(id, (at, answer));
                    }
                }
            }
        }
        self.messages = left;
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

    fn lead(&mut self) {
        let usable = |world: &Self, node: usize| {
            world.nodes[node].up && (0..3).filter(|peer| world.linked(node, *peer)).count() >= 2
        };
        if self.leader.is_none_or(|leader| !usable(self, leader)) {
            let next = (0..3).find(|node| usable(self, *node) && self.nodes[*node].have == self.log.len());
            match next {
                Some(next) => self.lead_by(next),
                None => return,
            }
        }
        let Some(leader) = self.leader else { return };
        if self.nodes[leader].applied < self.log.len() {
            return;
        }
        if self.revoked_for != self.state.epoch {
            self.revoked_for = self.state.epoch;
            self.revoked.clear();
            self.asked.clear();
        }
        let decision = self.decide(leader);
        let wait = match &decision {
            ClusterDecision::Propose(_) => String::new(),
            ClusterDecision::Revoke { wait, .. } | ClusterDecision::Wait(wait) => wait.code().to_owned(),
        };
        if self.told != wait && !wait.is_empty() {
            self.say(&format!("leader waits: {wait}"));
        }
        self.told = wait;
        match decision {
            ClusterDecision::Propose(command) => {
                self.propose(command);
            }
            ClusterDecision::Revoke { epoch, members, .. } => {
                for member in members {
                    let again = self.asked.get(&member).is_none_or(|at| self.now - at >= 500);
                    if again {
                        self.asked.insert(member, self.now);
                        self.messages.push_back(Message::Revoke(member.0 as usize - 1, epoch));
                    }
                }
            }
            ClusterDecision::Wait(_) => {}
        }
    }

    fn decide(&mut self, leader: usize) -> ClusterDecision {
        let voters = [(1..=3).map(NodeId).collect::<BTreeSet<_>>()];
        let mut state = self.nodes[leader].state.clone();
        let mut reports = self.reports.clone();
        let since = self.nodes[leader].grant_seen.max(Moment(self.led_since * 1_000_000));
        let mut granted_since = state.current_grant().is_some().then_some(since);
        match self.mutant {
            Mutant::LeaseIgnored => {
                reports.values_mut().for_each(|r| r.report.voter.aged_for = Some(r.report.voter.held));
            }
            Mutant::PoliciesForgotten => {
                let newest = state.policies.last().map(|policy| policy.epoch);
                state.policies.retain(|policy| Some(policy.epoch) == newest);
            }
            Mutant::NoCover => {
                state.policies.iter_mut().for_each(|p| p.kind = PolicyKind::Async { max_lag: u64::MAX });
                reports.values_mut().for_each(|r| r.report.voter.aged_for = Some(r.report.voter.held));
            }
            Mutant::NoIncarnation => {
                // Whatever directory a member has, it counts as the one that a policy names.
                let named: Vec<Replica> = state
                    .policies
                    .iter()
                    .flat_map(|policy| match &policy.kind {
                        PolicyKind::Quorum { standbys, .. } => standbys.iter().copied().collect(),
                        _ => Vec::new(),
                    })
                    .collect();
                for (node, (_, answer)) in &mut self.revoked {
                    if let Some(replica) = named.iter().find(|replica| replica.node == *node) {
                        answer.data = replica.data;
                    }
                }
            }
            Mutant::NoGrace => granted_since = granted_since.map(|_| Moment(0)),
            Mutant::AnswersStay => {
                self.revoked.values_mut().for_each(|(at, _)| *at = Moment(self.now * 1_000_000))
            }
            Mutant::NoLagGate => {
                state.policies.iter_mut().for_each(|p| p.kind = PolicyKind::Async { max_lag: u64::MAX });
            }
            _ => {}
        }
        let view = ClusterView {
            state: &state,
            voters: &voters,
            reports: &reports,
            revoked: &self.revoked,
            granted_since,
        };
        let decided = decide::cluster(&view, self.at());
        if self.recording && !self.decided.as_ref().is_some_and(|known| record::same(known, &decided)) {
            let (at, now) = (rhone::civil::WallTime::from_ms(0), self.at());
            let seen = ClusterSeen::of(&view);
            self.decided = Some(decided.clone());
            self.replay(&Line::Cluster(record::Record { at, now, seen, decided: record::recorded(&decided) }));
        }
        decided
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

    fn forget(&mut self, node: usize) {
        let applied = self.nodes[node].applied;
        let keep = if self.random.is_some() { self.draw(applied as u64 + 1) as usize } else { applied };
        let mut state = ClusterState::default();
        for (index, command) in self.log.iter().take(keep).enumerate() {
            state.apply(LogIndex(index as u64 + 1), command);
        }
        let n = &mut self.nodes[node];
        (n.state, n.applied) = (state, keep);
        (n.running, n.revoke, n.heard, n.lease_until, n.last_renewal) = (None, None, None, 0, 0);
        (n.leaving, n.leave_now) = (false, false);
        if self.leader == Some(node) {
            self.leader = None;
        }
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
