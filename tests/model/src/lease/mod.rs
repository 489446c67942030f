//! The lease: voters on clocks of different rates, the owner's count, the guardian, and a Prepare and
//! a change of voters making their way through the log.
//!
//! Real code: `decide::lease::{Voter, Rounds}`, `guardian::Lease::thaws`, `decide::cluster` (which
//! says when another owner may be granted). The world supplies time, messages, the log and restarts.
//!
//! Times are kept as ages in real ticks, clamped where nothing can depend on them any more: so the
//! space is finite with no horizon, and is searched wholly. A host's own clock goes `rate` units a
//! tick, between 1 and 3 round a nominal 2: the drift allowance is 500 ‰, met exactly at both ends.
//!
//! A message is delivered at any later tick, in any order, or never; so a cut, whole, partial or one
//! way, needs no step of its own. A process that is stopped and goes on does nothing for a while,
//! which every process may do at every step; the guardian alone has to freeze within the guard.

mod setup;

use std::collections::{BTreeMap, BTreeSet};

use rhone::decide::lease::{Rounds, Voter, counted, counted_by};
use rhone::decide::{self, ClusterDecision};
use rhone::guardian;
use rhone::runtime::clock::BootTime;
use rhone::view::{ClusterView, Heard, Instance, Moment, Received, Report, Revoked, VoterReport};
use rhone_consensus::command::{ClusterCommand, Grant, Member, MemberKind, Outcome, PrepareReason, WallTime};
use rhone_consensus::ids::{DataId, Incarnation, LogIndex, NodeId};
use rhone_consensus::observer::{LogCause, LogHeld};
use rhone_consensus::policy::PolicyKind;
use rhone_consensus::settings::{Settings, Timing};
use rhone_consensus::state::ClusterState;
use rhone_pgctl::wal::{Lsn, SystemId, Timeline, WalPosition};

pub use self::setup::{Entry, Mutant, Setup, State, Step};
use self::setup::{
    FAR, Instance_, NEVER, NOW, OWNED, ROUNDS, Round, TIMING, UNIT, UNUSED, VOTERS, VoterState, majority,
};
use crate::search::{Broken, Memo, World};

/// The world of the lease.
#[derive(Debug)]
pub struct LeaseWorld {
    setup: Setup,
    mutant: Mutant,
    timings: [Timing; 2],
    /// The real decision, for each set of vouchers and each configuration.
    grants: Memo<([u8; VOTERS], u8), bool>,
    /// The real count, for each age, set of answers and configuration.
    counts: Memo<(u8, u8, u8, u8), bool>,
    /// What the real voter does, for each memory and log that it can have.
    renewals: Memo<(usize, VoterState, u8), (bool, VoterState)>,
    changes: Memo<(usize, VoterState, u8), VoterState>,
    vouchers: Memo<(usize, VoterState), bool>,
    /// The replicated state after each entry of the log.
    states: Vec<ClusterState>,
    /// How many Grants were reached, so that an empty search is noticed.
    pub grants_seen: usize,
}

fn bit(voter: usize) -> u8 {
    1 << voter
}

fn node(voter: usize) -> NodeId {
    NodeId(voter as u64 + 1)
}

fn set(mask: u8) -> BTreeSet<NodeId> {
    (0..VOTERS).filter(|voter| mask & bit(*voter) != 0).map(node).collect()
}

impl LeaseWorld {
    /// Makes a world with one rule left out, or none.
    pub fn new(setup: Setup, mutant: Mutant) -> Self {
        let mut timings = setup.timings;
        if mutant == Mutant::NoDrift {
            timings.iter_mut().for_each(|timing| timing.drift_permille = 0);
        }
        Self {
            setup,
            mutant,
            timings,
            grants: Memo::default(),
            counts: Memo::default(),
            renewals: Memo::default(),
            changes: Memo::default(),
            vouchers: Memo::default(),
            states: history(&setup, timings),
            grants_seen: 0,
        }
    }

    fn rate(&self, voter: usize) -> u64 {
        u64::from(self.setup.rates[voter])
    }

    /// Returns when, by that host's clock, something happened so many ticks ago.
    fn moment(&self, host: usize, age: u8) -> Moment {
        Moment((NOW - u64::from(age) * self.rate(host)) * UNIT)
    }

    /// Returns the age from which on nothing depends on it.
    fn clamp(&self, host: usize) -> u8 {
        let aged = self.timings.iter().map(Timing::aged_ns).max().unwrap_or(0) / UNIT;
        u8::try_from(aged.div_ceil(self.rate(host)) + 1).unwrap_or(NEVER - 1)
    }

    /// Returns the real voter.
    fn voter(&self, at: usize, v: &VoterState) -> Voter {
        let mut voter = Voter::new(self.moment(at, v.started));
        voter.log_changed(self.moment(at, v.last), self.held(v), LogCause::Start);
        if v.applied {
            let state = &self.states[usize::from(self.setup.prepare_at())];
            let ageing = if self.mutant == Mutant::AgesByShorter { state.counting() } else { state.ageing() };
            voter.applied(self.setup.epoch(), ageing);
        } else {
            // It may have applied anything before: the shortest quarantine lets it vouch most.
            let all = self.states.iter().map(ClusterState::ageing);
            voter.applied(OWNED, all.min_by_key(Timing::aged_ns).unwrap_or(TIMING));
        }
        voter
    }

    /// Returns what the owner counts by, and whether it says that this is safe under both timings: the real rule.
    fn counting(&self, owner_have: u8, log: u8) -> (Timing, bool) {
        // One that has applied the Prepare renews no more.
        let applied = owner_have.min(self.setup.prepare_at() - 1);
        let state = &self.states[usize::from(applied)];
        let set = self.setup.timing_at();
        let held = set.filter(|at| *at < log && self.mutant != Mutant::LogIgnored);
        let held = held.map(|at| (Setup::index(at + 1), self.timings[1]));
        let (timing, version) = counted(Setup::index(applied), state, held);
        let told = version.is_some() && version == set.map(|at| Setup::index(at + 1));
        match self.mutant {
            Mutant::CountsByLonger => (state.ageing(), told),
            Mutant::CountsUncommitted => (Timing { lease_ms: 12, ..timing }, told),
            Mutant::NoGuard => (Timing { guard_ms: 0, ..timing }, told),
            _ => (timing, told),
        }
    }

    /// Returns what the owner counts by now.
    fn owner_timing(&self, state: &State) -> Timing {
        self.counting(state.owner_have, state.voters[0].have).0
    }

    fn held(&self, v: &VoterState) -> LogHeld {
        let prepare = v.tail || v.have >= self.setup.prepare_at();
        let prepare = if prepare { self.setup.epoch() } else { OWNED };
        LogHeld { prepare, membership: self.setup.membership(v.have), timing: None }
    }

    /// Takes the real voter's memory back into the state.
    fn remember(&self, at: usize, v: &VoterState, voter: &Voter) -> VoterState {
        let silent = voter.report(Moment(FAR * UNIT)).silent_ms.unwrap_or(0);
        let ticks = (silent - (FAR - NOW)) / self.rate(at);
        VoterState { last: u8::try_from(ticks).unwrap_or(NEVER - 1).min(self.clamp(at)), ..*v }
    }

    /// Tells the real voter that its log is now as the state has it.
    fn change_log(&mut self, state: &mut State, at: usize, cause: LogCause) {
        let v = state.voters[at];
        let key = (at, v, cause as u8);
        if let Some(known) = self.changes.get(&key) {
            state.voters[at] = *known;
            return;
        }
        let mut voter = self.voter(at, &v);
        let cause = match cause {
            LogCause::MembershipAppend if self.mutant == Mutant::AppendIsNoRenewal => LogCause::Append,
            other => other,
        };
        voter.log_changed(Moment(NOW * UNIT), self.held(&v), cause);
        let after = self.remember(at, &v, &voter);
        self.changes.insert(key, after);
        state.voters[at] = after;
    }

    /// A renewal reaches a voter. Returns whether it is granted.
    fn renew(&mut self, state: &mut State, at: usize) -> bool {
        let v = state.voters[at];
        let key = (at, v, state.owner_have);
        let (renewed, after) = match self.renewals.get(&key) {
            Some(known) => *known,
            None => {
                let known = self.really_renew(at, v, state.owner_have);
                self.renewals.insert(key, known);
                known
            }
        };
        state.voters[at] = after;
        renewed
    }

    fn really_renew(&self, at: usize, v: VoterState, owner_have: u8) -> (bool, VoterState) {
        let mut asked = v;
        if self.mutant == Mutant::RenewsAfterPrepare {
            asked.tail = false;
            asked.applied = false;
            asked.have = asked.have.min(self.setup.prepare_at() - 1);
        }
        let membership = match self.mutant {
            Mutant::MembershipIgnored => LogIndex(u64::MAX),
            _ => self.setup.membership(owner_have),
        };
        let mut voter = self.voter(at, &asked);
        let renewed = voter.renew(Moment(NOW * UNIT), OWNED, Lsn::new(1), membership).is_ok();
        (renewed, self.remember(at, &v, &voter))
    }

    /// Returns whether the answers make a majority, by the owner's real count.
    fn counts(&mut self, round: Round, state: &State) -> bool {
        let owner_have = state.owner_have;
        let timing = self.owner_timing(state);
        let key = (round.age, round.granted, owner_have, state.voters[0].have);
        if let Some(known) = self.counts.get(&key) {
            return *known;
        }
        let configs = self.setup.configs(owner_have);
        let voters: Vec<BTreeSet<NodeId>> = match self.mutant {
            Mutant::JointRenewedByOld => vec![set(self.setup.mask(configs[0]))],
            Mutant::RenewedByOne => vec![BTreeSet::from([node(0)])],
            _ => configs.iter().map(|which| set(self.setup.mask(*which))).collect(),
        };
        let mut rounds = Rounds::default();
        rounds.begin(1, self.moment(0, round.age));
        let mut counted = None;
        for voter in set(round.granted) {
            counted = rounds.granted(1, voter, &voters, timing);
        }
        if let Some((sent, until)) = counted {
            assert_eq!(sent, self.moment(0, round.age), "the count starts when the renewal was sent");
            assert_eq!(until.0 - sent.0, timing.serve_ns(), "and lasts as long as the timing says");
        }
        self.counts.insert(key, counted.is_some());
        counted.is_some()
    }

    /// Returns what the present lease lasts by.
    fn lease_timing(&self, state: &State) -> Timing {
        match self.mutant {
            Mutant::NoGuard | Mutant::CountsUncommitted => self.owner_timing(state),
            _ => self.timings[usize::from(state.lease_new)],
        }
    }

    /// Returns the guardian's page: the lease by the renewal sent so many ticks ago.
    fn page(&self, lease: u8, timing: Timing) -> guardian::Lease {
        if lease == NEVER {
            return guardian::Lease::EXPIRED;
        }
        let sent = self.moment(0, lease).0;
        let deadline = BootTime::from_nanos(sent + timing.serve_ns());
        guardian::Lease::Until { deadline, sent: BootTime::from_nanos(sent), epoch: OWNED.0 }
    }

    /// The answers to a renewal come in. Which of them come in is no matter beyond the majority.
    fn answer(&mut self, state: &mut State, at: usize) {
        let round = std::mem::replace(&mut state.rounds[at], UNUSED);
        let sent = if self.mutant == Mutant::CountsFromAnswer { 0 } else { round.age };
        // Only a later renewal prolongs (`Renewer::hear`).
        if state.lease == NEVER || sent < state.lease {
            let (timing, told) = self.counting(state.owner_have, state.voters[0].have);
            state.lease = sent;
            state.lease_new = timing.lease_ms == self.timings[1].lease_ms && self.setup.timing_at().is_some();
            state.told |= told;
        }
        if self.mutant == Mutant::ThawsByOldRenewal && matches!(state.instance, Instance_::Frozen(_)) {
            state.instance = Instance_::Runs;
        }
    }

    /// Whether an answer may be late to some purpose: it only counts from its sending, so that an
    /// early one is never worse for the owner.
    fn answers_matter(&self) -> bool {
        matches!(self.mutant, Mutant::CountsFromAnswer | Mutant::ThawsByOldRenewal)
    }

    /// Takes the steps that can only bring two owners nearer, at once: so none of their delays has to
    /// be searched. An answer that makes a majority comes in, what may thaw thaws, a committed Prepare
    /// is applied, an aged voter vouches (and its word stays with the leader, however old it gets), and
    /// the leader grants.
    fn hurry(&mut self, state: &mut State) {
        if !self.answers_matter() {
            for at in 0..ROUNDS {
                let round = state.rounds[at];
                if round.age != NEVER && self.counts(round, state) {
                    self.answer(state, at);
                }
            }
        }
        state.rounds.sort_unstable_by_key(|round| (round.age, round.granted));
        if let Instance_::Frozen(age) = state.instance {
            let at = BootTime::from_nanos(self.moment(0, age).0);
            let page = self.page(state.lease, self.lease_timing(state));
            if page.thaws(at, Some(OWNED.0), BootTime::from_nanos(NOW * UNIT)) {
                state.instance = Instance_::Runs;
            }
        }
        let prepare = self.setup.prepare_at();
        let prepared = state.written >= prepare && self.committed(state, prepare);
        for voter in 0..self.setup.voters() {
            let here = &mut state.voters[voter];
            here.applied |= prepared && here.have >= prepare;
            let here = *here;
            let changes = self.setup.changes(here.have) + 1;
            if state.vouched[voter] < changes && self.vouches(voter, here) {
                state.vouched[voter] = changes;
            }
        }
        if !state.granted && prepared && self.may_grant(state) {
            self.grants_seen += 1;
            state.granted = true;
        }
    }

    fn committed(&self, state: &State, have: u8) -> bool {
        let holders =
            (0..self.setup.voters()).filter(|v| state.voters[*v].have >= have && !state.voters[*v].tail);
        let holders = holders.fold(0, |mask, voter| mask | bit(voter));
        self.setup.configs(have).iter().all(|which| majority(holders, self.setup.mask(*which)))
    }

    /// Asks the real decision whether the next epoch may be granted.
    fn may_grant(&mut self, state: &State) -> bool {
        let key = (state.vouched, state.written);
        if let Some(known) = self.grants.get(&key) {
            return *known;
        }
        let epoch = self.setup.epoch();
        let configs = self.setup.configs(state.written);
        let mut voters: Vec<BTreeSet<NodeId>> =
            configs.iter().map(|which| set(self.setup.mask(*which))).collect();
        if self.mutant == Mutant::JointAgedByNew {
            voters.drain(..voters.len() - 1);
        }
        let position = WalPosition::new(Timeline::new(2), Lsn::new(5));
        let mut reports = BTreeMap::new();
        for voter in 0..self.setup.voters() {
            let anybody = state.vouched.iter().any(|vouched| *vouched > 0);
            let aged = state.vouched[voter] > 0
                || self.mutant == Mutant::AgeIgnored
                || (self.mutant == Mutant::AgedByOne && anybody);
            let membership = match self.mutant {
                Mutant::VouchesUnderOld | Mutant::AgeIgnored | Mutant::AgedByOne => LogIndex(u64::MAX),
                _ => self.setup.after(state.vouched[voter]),
            };
            let word = VoterReport {
                held: epoch,
                aged_for: aged.then_some(epoch),
                heard: Some(Heard { epoch: OWNED, lsn: position.lsn }),
                membership,
                ..VoterReport::default()
            };
            let report = Report {
                instance: Instance::Unknown,
                activity: None,
                voter: counted_by(self.setup.membership(state.written), word),
                promise: OWNED,
                leaving: false,
                down: None,
                system_id: None,
                data: None,
                streams: BTreeMap::new(),
                secured: None,
                left: None,
                highest_timeline: Timeline::new(2),
                lease_left_ms: None,
                counts_by: None,
                version: None,
                note: None,
                server: rhone::view::ServerFacts::default(),
            };
            reports.insert(node(voter), Received { at: Moment(NOW * UNIT), report });
        }
        // Every standby has promised and told its position, long enough ago for every window.
        let answer = Revoked {
            epoch,
            position: Some(position),
            data: DataId(2),
            able: true,
            highest_timeline: Timeline::new(2),
        };
        let revoked =
            (1..self.setup.voters()).map(|voter| (node(voter), (Moment(0), answer.clone()))).collect();
        let view = ClusterView {
            state: self.states.last().expect("a log"),
            voters: &voters,
            reports: &reports,
            revoked: &revoked,
            granted_since: None,
        };
        let decision = decide::cluster(&view, Moment(NOW * UNIT));
        let grants = matches!(decision, ClusterDecision::Propose(ClusterCommand::Grant(_)));
        self.grants.insert(key, grants);
        grants
    }

    fn tick(&self, state: &State) -> State {
        let mut next = *state;
        let older = |age: u8, limit: u8| if age == NEVER { age } else { (age + 1).min(limit) };
        for (at, voter) in next.voters.iter_mut().enumerate().take(self.setup.voters()) {
            voter.last = older(voter.last, self.clamp(at));
            voter.started = older(voter.started, self.clamp(at));
        }
        let owner = self.clamp(0);
        let timing = self.owner_timing(state);
        for round in &mut next.rounds {
            round.age = older(round.age, owner);
            // What is over can only make a voter count as younger.
            let over = self.page(round.age, timing).expired(BootTime::from_nanos(NOW * UNIT))
                && !self.answers_matter();
            if round.age != NEVER && (over || round.age >= owner) {
                *round = UNUSED;
            }
        }
        next.lease = older(next.lease, owner);
        if let Instance_::Frozen(age) = &mut next.instance {
            *age = older(*age, owner);
        }
        if let (Instance_::Runs, guardian::Lease::Until { deadline, .. }) =
            (next.instance, self.page(next.lease, self.lease_timing(&next)))
        {
            // The guardian freezes as late as it may: it has frozen before the guard is over.
            let latest = deadline.as_nanos() + u64::from(TIMING.guard_ms) * UNIT;
            if NOW * UNIT >= latest {
                next.instance = Instance_::Frozen(0);
            }
        }
        next
    }

    fn owner_steps(&mut self, state: &State, out: &mut Vec<(Step, State)>) {
        // A second renewal in one tick would only repeat the first.
        let last = state.rounds.iter().map(|round| round.age).chain([state.lease]).min();
        if let Some(free) = state.rounds.iter().take(self.setup.rounds).position(|round| *round == UNUSED)
            && last != Some(0)
        {
            let mut next = *state;
            next.rounds[free] = Round { age: 0, ..UNUSED };
            out.push((Step::Send, next));
        }
        for round in 0..ROUNDS {
            let here = state.rounds[round];
            if here.age == NEVER {
                continue;
            }
            for voter in 0..self.setup.voters() {
                if here.granted & bit(voter) == 0 {
                    let mut next = *state;
                    if self.renew(&mut next, voter) {
                        next.rounds[round].granted |= bit(voter);
                        out.push((Step::Reach(round, voter), next));
                    }
                }
            }
            if self.answers_matter() && self.counts(here, state) {
                let mut next = *state;
                self.answer(&mut next, round);
                out.push((Step::Answer(round), next));
            }
        }
        let mut known = state.voters[0].have;
        if self.setup.timing_at().is_some() {
            // It counts by the voters in its log, and by the timings that it has applied, one entry after the other.
            known = known.min(state.owner_have + 1);
            if !self.committed(state, known) {
                known = state.owner_have;
            }
        }
        if state.owner_have < known {
            // Another set of voters: what was granted does not add up (`Renewer::run`).
            let rounds = [UNUSED; ROUNDS];
            out.push((Step::Notice, State { owner_have: known, rounds, ..*state }));
        }
    }

    fn log_steps(&mut self, state: &State, out: &mut Vec<(Step, State)>) {
        let all = u8::try_from(self.setup.log.len()).unwrap_or(u8::MAX);
        let leader = self.setup.leader;
        let settles = self.setup.log.get(usize::from(state.written)) == Some(&Entry::Settle);
        let may = !settles || state.told || self.mutant == Mutant::SettledUnasked;
        if state.written < all && may && self.committed(state, state.written) {
            let mut next = *state;
            next.written += 1;
            self.append(&mut next, leader);
            out.push((Step::Write, next));
        }
        for voter in 0..self.setup.voters() {
            let here = state.voters[voter];
            if here.have < state.written && !here.tail {
                let mut next = *state;
                self.append(&mut next, voter);
                out.push((Step::Append(voter), next));
            }
            let prepare = self.setup.prepare_at();
            if here.tail {
                let mut next = *state;
                next.voters[voter].tail = false;
                self.change_log(&mut next, voter, LogCause::Truncate);
                out.push((Step::Truncate(voter), next));
            }
            if state.tails > 0 && voter != leader && here.have < prepare && !here.tail {
                let mut next = *state;
                next.tails -= 1;
                next.voters[voter].tail = true;
                self.change_log(&mut next, voter, LogCause::Append);
                out.push((Step::Tail(voter), next));
            }
        }
    }

    fn append(&mut self, state: &mut State, voter: usize) {
        let entry = self.setup.log[usize::from(state.voters[voter].have)];
        state.voters[voter].have += 1;
        let cause = match entry {
            Entry::Joint | Entry::New => LogCause::MembershipAppend,
            Entry::Prepare | Entry::Timing | Entry::Settle => LogCause::Append,
        };
        self.change_log(state, voter, cause);
    }

    fn restart(&mut self, state: &State, voter: usize) -> State {
        let mut next = *state;
        next.restarts -= 1;
        let v = &mut next.voters[voter];
        v.started = 0;
        if self.mutant == Mutant::PrepareLost {
            v.tail = false;
            v.applied = false;
            v.have = v.have.min(self.setup.prepare_at() - 1);
        }
        self.change_log(&mut next, voter, LogCause::Start);
        if self.mutant == Mutant::NoQuarantine {
            let clamp = self.clamp(voter);
            next.voters[voter].started = clamp;
            next.voters[voter].last = clamp;
        }
        next
    }

    fn vouches(&mut self, voter: usize, v: VoterState) -> bool {
        if let Some(known) = self.vouchers.get(&(voter, v)) {
            return *known;
        }
        let report = self.voter(voter, &v).report(Moment(NOW * UNIT));
        let vouches = match self.mutant {
            Mutant::AgedWithoutPrepare => report.aged_for.is_some(),
            Mutant::VouchesUncommitted => report.aged_for.is_some() && report.held == self.setup.epoch(),
            _ => report.aged_for == Some(self.setup.epoch()),
        };
        self.vouchers.insert((voter, v), vouches);
        vouches
    }
}

/// Returns the replicated state after each entry of the log, by real commands; before them the owner is
/// established.
fn history(setup: &Setup, timings: [Timing; 2]) -> Vec<ClusterState> {
    let members = (0..setup.voters()).map(|voter| Member {
        node: node(voter),
        name: format!("n{}", voter + 1),
        kind: MemberKind::Data,
        incarnation: Incarnation(voter as u128),
        address: String::new(),
        postgres: String::new(),
        http: String::new(),
        priority: 1,
        tags: rhone_consensus::tags::Tags::default(),
    });
    let settings = Settings { timing: timings[0], ..Settings::default() };
    let found = ClusterCommand::Found {
        cluster: "main".to_owned(),
        founder: node(0),
        members: members.collect(),
        settings,
    };
    let prepare = || ClusterCommand::Prepare { reason: PrepareReason::Operator, at: WallTime(0) };
    let grant = Grant {
        epoch: OWNED,
        owner: node(0),
        base: WalPosition::new(Timeline::new(1), Lsn::new(1)),
        timeline: Timeline::new(2),
        data: DataId(1),
        policy: PolicyKind::Async { max_lag: 1_000 },
        evidence: Vec::new(),
        lost: None,
    };
    let (epoch, timeline, switch) = (OWNED, Timeline::new(2), Lsn::new(1));
    let established = ClusterCommand::Established { epoch, timeline, switch, gap_ms: 0, at: WallTime(0) };
    let mut state = ClusterState::default();
    state.apply(LogIndex(1), &found);
    state.apply(LogIndex(2), &ClusterCommand::SetSystemId(SystemId::new(7)));
    state.apply(LogIndex(OWNED.0), &prepare());
    state.apply(LogIndex(4), &ClusterCommand::Grant(grant));
    state.apply(LogIndex(5), &established);
    let mut states = vec![state];
    for (at, entry) in (1..).zip(setup.log) {
        let mut state = states.last().expect("the first").clone();
        let index = Setup::index(at);
        let outcome = match entry {
            Entry::Joint | Entry::New => Outcome::Done,
            Entry::Prepare => state.apply(index, &prepare()),
            Entry::Settle => {
                let version = state.timing_change.version;
                state.apply(index, &ClusterCommand::SettleTiming { epoch: OWNED, version })
            }
            Entry::Timing => {
                let settings = Box::new(Settings { timing: timings[1], ..state.settings.clone() });
                let (by, at) = (String::new(), WallTime(0));
                state.apply(index, &ClusterCommand::ChangeSettings { expected: 1, settings, by, at })
            }
        };
        assert!(!matches!(outcome, Outcome::Refused(_)), "{entry:?}: {outcome:?}");
        states.push(state);
    }
    states
}

impl World for LeaseWorld {
    type State = State;
    type Step = Step;

    fn begin(&mut self) -> State {
        let mut voters = [VoterState { last: 0, started: 0, have: 0, applied: false, tail: false }; VOTERS];
        for (at, voter) in voters.iter_mut().enumerate().take(self.setup.voters()) {
            voter.last = self.clamp(at);
            voter.started = self.clamp(at);
        }
        State {
            voters,
            rounds: [UNUSED; ROUNDS],
            lease: NEVER,
            lease_new: false,
            told: false,
            instance: Instance_::Frozen(self.clamp(0)),
            owner_have: 0,
            written: 0,
            vouched: [0; VOTERS],
            granted: false,
            restarts: self.setup.restarts,
            tails: self.setup.tails,
        }
    }

    fn next(&mut self, state: &State, out: &mut Vec<(Step, State)>) {
        out.push((Step::Tick, self.tick(state)));
        self.owner_steps(state, out);
        self.log_steps(state, out);
        if state.restarts > 0 {
            for voter in 0..self.setup.voters() {
                out.push((Step::Restart(voter), self.restart(state, voter)));
            }
            if self.setup.timing_at().is_some() {
                // The owner's supervisor has applied nothing yet of what its log holds.
                let next = self.restart(state, 0);
                out.push((Step::Forget, State { owner_have: 0, rounds: [UNUSED; ROUNDS], ..next }));
            }
        }
        for (_, next) in out {
            self.hurry(next);
        }
    }

    fn broken(&mut self, state: &State) -> Option<Broken> {
        let acknowledges = state.instance == Instance_::Runs;
        (state.granted && acknowledges).then(|| Broken {
            property: "I2",
            what: "the former owner may still acknowledge, and another is granted".to_owned(),
        })
    }
}
