//! Everything that can come next.

use std::collections::BTreeSet;

use rhone::decide::{ClusterDecision, NodeDecision};
use rhone_consensus::command::{ClusterCommand, Grant, Member, MemberKind, PrepareReason, WallTime};
use rhone_consensus::ids::{DataId, Epoch, Incarnation};
use rhone_consensus::policy::PolicyKind;
use rhone_consensus::settings::{Settings, SyncMode};
use rhone_pgctl::wal::{Lsn, SystemId, Timeline, WalPosition};

use super::log::Logs;
use super::mutant::Mutant;
use super::state::{
    Answer, FIRST_EPOCH, Flushed, MAX_LAG, Mode, Node, Pg, ROGUE, Setup, State, Step, bit, byte, forget, id,
    index_of, replica,
};
use super::views::Memos;
use super::wal::{WalId, Wals};
use crate::search::{Broken, World};

/// The world of the data.
#[derive(Debug)]
pub struct DataWorld<const N: usize> {
    pub(super) setup: Setup,
    pub(super) mutant: Mutant,
    pub(super) wals: Wals,
    pub(super) logs: Logs,
    pub(super) memos: Memos,
    /// How many Grants and Established entries were reached, so that an empty search is noticed.
    pub grants_seen: usize,
    /// How many acknowledgements.
    pub acks_seen: usize,
}

impl<const N: usize> DataWorld<N> {
    /// Makes a world with one rule left out, or none.
    pub fn new(setup: Setup, mutant: Mutant) -> Self {
        Self {
            setup,
            mutant,
            wals: Wals::default(),
            logs: Logs::default(),
            memos: Memos::default(),
            grants_seen: 0,
            acks_seen: 0,
        }
    }

    pub(super) fn is_async(&self) -> bool {
        self.setup.mode == Mode::Async
    }

    /// The voters, as bits: every data member, and the witness.
    pub(super) fn voters(&self) -> u8 {
        let all = if self.setup.witness { N + 1 } else { N };
        byte((1 << all) - 1)
    }

    pub(super) fn majority(&self, of: u8) -> bool {
        (of & self.voters()).count_ones() > self.voters().count_ones() / 2
    }

    fn founding(&self) -> Vec<ClusterCommand> {
        let mut data: Vec<Member> = (0..N).map(|node| member(node, MemberKind::Data)).collect();
        if let Some(first) = data.first_mut().filter(|_| self.setup.unfit) {
            first.tags.no_failover = true;
        }
        let witness = self.setup.witness.then(|| member(N, MemberKind::Witness));
        let (sync, sync_required) = match self.setup.mode {
            Mode::Quorum => (SyncMode::Quorum, None),
            Mode::Two => (SyncMode::Quorum, Some(2)),
            Mode::Strict => (SyncMode::Strict, None),
            Mode::Async => (SyncMode::Off, None),
        };
        let settings = Settings { max_lag_on_failover: MAX_LAG, sync, sync_required, ..Settings::default() };
        let found = ClusterCommand::Found {
            cluster: "main".to_owned(),
            founder: id(0),
            members: data.into_iter().chain(witness).collect(),
            settings,
        };
        let policy = match self.setup.mode {
            Mode::Async => PolicyKind::Async { max_lag: MAX_LAG },
            mode => PolicyKind::Quorum {
                required: if mode == Mode::Two { 2 } else { u32::from(byte(N as u64 / 2)) },
                standbys: (1..N).map(|node| replica(node, byte(node as u64 + 1))).collect(),
            },
        };
        let epoch = Epoch(u64::from(FIRST_EPOCH));
        let (timeline, switch) = (Timeline::new(2), Lsn::new(1));
        let grant = Grant {
            epoch,
            owner: id(0),
            data: DataId(1),
            base: WalPosition::new(Timeline::new(1), switch),
            timeline,
            policy,
            evidence: Vec::new(),
            lost: None,
        };
        vec![
            found,
            ClusterCommand::SetSystemId(SystemId::new(7)),
            ClusterCommand::Prepare { reason: PrepareReason::Founding, at: WallTime(0) },
            ClusterCommand::Grant(grant),
            ClusterCommand::Established { epoch, timeline, switch, gap_ms: 0, at: WallTime(0) },
        ]
    }

    fn first_node(&self, node: usize, wal: WalId, log: u8) -> Node<N> {
        let owner = node == 0;
        let standbys: [Flushed; N] = std::array::from_fn(|other| {
            if owner && other > 0 { (byte(other as u64 + 1), self.wals.len(wal)) } else { (0, 0) }
        });
        Node {
            up: true,
            log,
            applied: log,
            promise: FIRST_EPOCH,
            told: FIRST_EPOCH,
            pg: if owner { Pg::Primary(FIRST_EPOCH, true) } else { Pg::Standby(1) },
            wal,
            data: byte(node as u64 + 1),
            stranger: false,
            floor: (0, 0),
            sentinel: 0,
            copied: false,
            running: None,
            policy: if owner { 4 } else { 0 },
            secured: if owner { 4 } else { 0 },
            barrier: 0,
            senders: if owner { [4; N] } else { [0; N] },
            known: standbys,
            sent: standbys,
            lease: if owner && self.is_async() { self.voters() } else { 0 },
            renewed: if owner { self.wals.len(wal) } else { 0 },
            heard: if self.is_async() { (FIRST_EPOCH, self.wals.len(wal)) } else { (0, 0) },
        }
    }

    // ---- the log

    /// Puts a command into the log.
    fn propose(&mut self, state: &State<N>, command: &ClusterCommand) -> Option<State<N>> {
        let mut command = command.clone();
        if let ClusterCommand::Grant(grant) = &mut command {
            self.mutate_grant(state, grant);
        }
        let number = self.logs.command(&command);
        let mutant = self.mutant;
        let log = self.logs.append(state.log, number, |state, command, applied| {
            mutant.edit(state, command, applied);
        })?;
        let mut next = State { log, ..*state };
        match &command {
            ClusterCommand::Prepare { .. } => {
                next.epochs = next.epochs.checked_sub(1)?;
                next.answers = [Answer::default(); N];
            }
            ClusterCommand::AddPolicy { kind, .. } => {
                next.changes = next.changes.checked_sub(1)?;
                if self.mutant == Mutant::AloneFirst && *kind == PolicyKind::Alone {
                    return None;
                }
            }
            ClusterCommand::Grant(grant) => {
                self.grants_seen += 1;
                self.check_grant(&mut next, grant);
                next.answers = [Answer::default(); N];
            }
            _ => {}
        }
        Some(next)
    }

    /// Everybody who is up to date hears of the new entry at once, or all but one do.
    fn tell(&self, step: &str, state: &State<N>, next: &State<N>, out: &mut Vec<(Step, State<N>)>) {
        let (before, end) = (self.logs.len(state.log), self.logs.len(next.log));
        let current = |node: &usize| state.nodes[*node].up && state.nodes[*node].applied == before;
        let told = |late: Option<usize>| {
            let mut told = *next;
            for node in (0..N).filter(current).filter(|node| Some(*node) != late) {
                (told.nodes[node].log, told.nodes[node].applied) = (end, end);
            }
            told
        };
        out.push((Step::Propose(step.to_owned()), told(None)));
        if next.delays > 0 {
            for late in (0..N).filter(current) {
                let delayed = State { delays: next.delays - 1, ..told(Some(late)) };
                out.push((Step::Propose(format!("{step} (late at {})", late + 1)), delayed));
            }
        }
    }

    fn leader_steps(&mut self, state: &State<N>, out: &mut Vec<(Step, State<N>)>) {
        let up = (0..N).filter(|node| state.nodes[*node].up).fold(0, |mask, node| mask | bit(node));
        let witness = if self.setup.witness { bit(N) } else { 0 };
        if !self.majority(up | witness) {
            return;
        }
        // Where the first may not lead again, every former owner is left as if somebody had asked for that.
        let silent = PrepareReason::OwnerSilent { silent_ms: 600 };
        let reason = if self.setup.unfit { PrepareReason::Operator } else { silent };
        let prepare = ClusterCommand::Prepare { reason, at: WallTime(0) };
        if state.epochs > 0
            && let Some(next) = self.propose(state, &prepare)
        {
            self.tell("Prepare", state, &next, out);
        }
        let real = self.logs.state(state.log);
        let preparing = matches!(real.phase, rhone_consensus::state::Phase::Preparing { .. });
        let owner = real.last_owner().map(index_of);
        let mut tried = BTreeSet::new();
        for heard in (0..1_u8 << N).rev() {
            let useless = heard & !up != 0
                || ((preparing || state.changes == 0) && heard != up)
                || (!preparing && owner.is_some_and(|owner| heard & bit(owner) == 0));
            if useless {
                continue;
            }
            match self.decide(state, heard) {
                ClusterDecision::Propose(command) => {
                    let number = self.logs.command(&command);
                    if tried.insert(number) {
                        self.rogue_steps(state, &command, out);
                        if let Some(next) = self.propose(state, &command) {
                            self.tell(&told(&command), state, &next, out);
                        }
                    }
                }
                ClusterDecision::Revoke { epoch, members, .. } => {
                    for member in members {
                        let node = index_of(member);
                        if node < N && state.nodes[node].up {
                            self.ask_revoke(state, node, byte(epoch.0), out);
                        }
                    }
                }
                ClusterDecision::Wait(_) => {}
            }
        }
    }

    /// The mutant that goes on alone at once, and tells Raft later or never.
    fn rogue_steps(&mut self, state: &State<N>, command: &ClusterCommand, out: &mut Vec<(Step, State<N>)>) {
        if let ClusterCommand::AddPolicy { kind: PolicyKind::Alone, .. } = command
            && self.mutant == Mutant::AloneFirst
            && let Some(owner) = self.logs.state(state.log).last_owner().map(index_of)
            && state.nodes[owner].senders[owner] != ROGUE
        {
            let mut next = *state;
            next.nodes[owner].senders = [ROGUE; N];
            out.push((Step::TakeOver(owner + 1, owner + 1), next));
        }
    }

    // ---- faults

    fn fault_steps(&mut self, state: &State<N>, out: &mut Vec<(Step, State<N>)>) {
        for node in 0..N {
            let here = &state.nodes[node];
            if !here.up {
                let mut next = *state;
                next.nodes[node].up = true;
                if self.mutant == Mutant::PromiseForgotten {
                    next.nodes[node].promise = FIRST_EPOCH;
                }
                out.push((Step::Start(node + 1), next));
                continue;
            }
            if state.faults > 0 {
                let mut next = State { faults: state.faults - 1, ..*state };
                let n = &mut next.nodes[node];
                forget(n);
                n.up = false;
                if n.pg != Pg::Absent {
                    n.stop();
                }
                n.heard = (0, 0);
                out.push((Step::Crash(node + 1), next));
                let mut next = State { faults: state.faults - 1, ..*state };
                forget(&mut next.nodes[node]);
                next.nodes[node].heard = (0, 0);
                out.push((Step::Restart(node + 1), next));
            }
            // What is told is told: a disk that changes between a word and a Grant is one more fault.
            let told = state.answers[node].epoch > 0;
            let rests = !matches!(here.pg, Pg::Primary(..) | Pg::Absent) && here.running.is_none();
            if state.restores > 0 && rests && !told {
                self.restore_steps(state, node, out);
            }
        }
        if state.faults > 0 && state.answers.iter().any(|answer| answer.epoch > 0) {
            let answers = [Answer::default(); N];
            out.push((Step::Lead, State { answers, faults: state.faults - 1, ..*state }));
        }
    }

    fn restore_steps(&mut self, state: &State<N>, node: usize, out: &mut Vec<(Step, State<N>)>) {
        let noticed = self.mutant != Mutant::IncarnationIgnored;
        let mut next = State { restores: state.restores - 1, ..*state };
        next.nodes[node].pg = Pg::Absent;
        next.nodes[node].wal = 0;
        next.nodes[node].running = None;
        out.push((Step::Wipe(node + 1), next));
        for short in 1..=2 {
            let mut next = State { restores: state.restores - 1, ..*state };
            let n = &mut next.nodes[node];
            let len = self.wals.len(n.wal);
            if len <= short {
                continue;
            }
            n.wal = self.wals.cut(n.wal, len - short);
            n.stop();
            n.stranger = noticed;
            n.running = None;
            out.push((Step::Restore(node + 1, short), next));
        }
    }

    fn member_steps(&mut self, state: &State<N>, node: usize, out: &mut Vec<(Step, State<N>)>) {
        let here = state.nodes[node];
        let end = self.logs.len(state.log);
        if here.applied < end {
            let mut next = *state;
            next.nodes[node].log = end;
            next.nodes[node].applied = end;
            out.push((Step::CatchUp(node + 1), next));
        }
        if self.mutant == Mutant::NoEpochRecheck {
            self.follow_late(state, node, out);
        }
        match here.running {
            Some((effect, epoch)) => self.end(state, node, effect, epoch, out),
            None => {
                if let NodeDecision::Act(effect, epoch, _) = self.decide_node(state, node, 0) {
                    self.begin(state, node, effect, byte(epoch.0), out);
                }
            }
        }
    }
}

fn member(node: usize, kind: MemberKind) -> Member {
    Member {
        node: id(node),
        name: format!("n{}", node + 1),
        kind,
        incarnation: Incarnation(node as u128),
        address: String::new(),
        postgres: String::new(),
        http: String::new(),
        priority: 1,
        tags: rhone_consensus::tags::Tags::default(),
    }
}

fn told(command: &ClusterCommand) -> String {
    match command {
        ClusterCommand::Grant(grant) => format!(
            "Grant {} to {} at {} as timeline {}, {}",
            grant.epoch, grant.owner.0, grant.base, grant.timeline, grant.policy
        ),
        ClusterCommand::Prepare { reason, .. } => format!("Prepare: {reason}"),
        other => format!("{other:?}"),
    }
}

impl<const N: usize> World for DataWorld<N> {
    type State = State<N>;
    type Step = Step;

    fn begin(&mut self) -> State<N> {
        let mut log = 0;
        for command in self.founding() {
            let number = self.logs.command(&command);
            log = self.logs.append(log, number, |_, _, _| {}).expect("the founding commands are in order");
        }
        let base = self.wals.push(0, 1, 0);
        let wal = self.wals.push(base, 2, 1);
        let entries = self.logs.len(log);
        State {
            nodes: std::array::from_fn(|node| self.first_node(node, wal, entries)),
            log,
            answers: [Answer::default(); N],
            kept: self.wals.mask(wal),
            read: self.wals.mask(wal),
            base,
            next_record: 2,
            next_data: byte(N as u64 + 1),
            epochs: self.setup.epochs,
            writes: self.setup.writes,
            faults: self.setup.faults,
            changes: self.setup.changes,
            restores: self.setup.restores,
            delays: self.setup.delays,
            broken: None,
        }
    }

    fn next(&mut self, state: &State<N>, out: &mut Vec<(Step, State<N>)>) {
        self.leader_steps(state, out);
        for node in 0..N {
            if state.nodes[node].up {
                self.member_steps(state, node, out);
            }
        }
        self.postgres_steps(state, out);
        self.fault_steps(state, out);
        for (_, next) in out {
            self.acknowledge(next);
        }
    }

    fn broken(&mut self, state: &State<N>) -> Option<Broken> {
        self.check(state)
    }
}
