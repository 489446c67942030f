//! The replicated state: who is a member, who leads Postgres in which epoch, and how it came to that.
//!
//! Pure and deterministic: the same commands at the same log indexes give the same state on
//! every member.

mod hold;
mod membership;
mod recover;
mod schedule;
mod settings;
mod timing;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rhone_pgctl::wal::{Lsn, SystemId, Timeline};
use serde::{Deserialize, Serialize};

pub use self::timing::TimingChange;
use crate::command::{
    Acceptance, ClusterCommand, Dropped, Grant, Handover, Member, MemberKind, Outcome, PrepareReason,
    Scheduled, WallTime,
};
use crate::ids::{Epoch, LogIndex, NodeId, Replica};
use crate::ledger::{Ledger, LedgerEntry};
use crate::policy::{Policy, PolicyKind};
use crate::settings::{Settings, SettingsChange};

/// How many changes of primary the history keeps.
pub const HISTORY_LIMIT: usize = 200;

/// How many policies may be open at once: far more than there are members and conditions.
pub const POLICY_LIMIT: usize = 256;

/// How many timelines the ledger remembers. A member on an older one has to be cloned.
pub const LEDGER_LIMIT: usize = 1024;

/// Why a combination of tags and priorities is refused.
const NO_CANDIDATE: &str =
    "no member could ever be primary: each is a witness, has priority 0, or is tagged no-failover or delayed";

/// Where the newest epoch stands.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Phase {
    /// No epoch was ever opened.
    #[default]
    None,
    /// Opened; its owner is being elected.
    Preparing {
        /// Why it was opened.
        reason: PrepareReason,
        /// When, for people.
        at: WallTime,
    },
    /// Its owner is named and promotes.
    Granted,
    /// Its marker is durable and clients are let in.
    Established,
}

/// One change of primary.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HistoryEntry {
    /// When it was established.
    pub at: WallTime,
    /// Who was primary before.
    pub from: Option<String>,
    /// Who is primary from then on.
    pub to: String,
    /// The epoch.
    pub epoch: Epoch,
    /// The timeline.
    pub timeline: Timeline,
    /// Where it left the one before.
    pub switch: Lsn,
    /// Why.
    pub reason: PrepareReason,
    /// For how long nobody could write, in milliseconds.
    pub gap_ms: u64,
    /// WAL that voters had heard of and nobody revoked held, `(from, to)`: an estimate.
    pub lost: Option<(Lsn, Lsn)>,
    /// Whether the primary before acknowledged at once, so that what it left behind counts as lost.
    pub at_once: bool,
    /// What the primary before turned out to have left behind, `(from, to)`; equal: nothing.
    pub left: Option<(Lsn, Lsn)>,
    /// Who accepted that acknowledged commits are lost, where somebody had to.
    pub accepted: Option<Acceptance>,
}

/// What all members agree on.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ClusterState {
    /// The cluster's name; empty until it is founded.
    pub cluster: String,
    /// Who founded it.
    pub founder: Option<NodeId>,
    /// The system identifier that every data directory has to have.
    pub system_id: Option<SystemId>,
    /// The members.
    pub members: BTreeMap<NodeId, Member>,
    /// The settings.
    pub settings: Settings,
    /// The newest epoch that a Prepare opened.
    pub epoch: Epoch,
    /// Where that epoch stands.
    pub phase: Phase,
    /// Why the newest epoch was opened.
    pub reason: Option<PrepareReason>,
    /// When it was, for people.
    pub prepared_at: WallTime,
    /// The newest Grant; of an older epoch while a new one is being prepared.
    pub grant: Option<Grant>,
    /// Conditions under which an acknowledged commit may exist that the owner has not yet secured.
    pub policies: Vec<Policy>,
    /// Every timeline ever planned.
    pub ledger: Ledger,
    /// A person's word that the newest epoch may lose acknowledged commits.
    pub accepted: Option<Acceptance>,
    /// The planned handover that is going on.
    pub handover: Option<Handover>,
    /// Whether automatic failover is off.
    pub paused: bool,
    /// The last changes of primary, oldest first.
    pub history: VecDeque<HistoryEntry>,
    /// Members whose Postgres is stopped until an operator lets it go.
    pub fenced: BTreeSet<NodeId>,
    /// Which version of the settings these are: 1 at founding, one more with each change.
    pub settings_version: u64,
    /// The last changes of the settings, oldest first.
    pub settings_log: VecDeque<SettingsChange>,
    /// Members that an operator keeps from voting.
    pub learners: BTreeSet<NodeId>,
    /// The last stores that were removed: none of them is admitted again.
    pub removed: VecDeque<NodeId>,
    /// The switchover that is to begin later.
    pub scheduled: Option<Scheduled>,
    /// The last one that could not begin, until another one is scheduled.
    pub schedule_dropped: Option<Dropped>,
    /// Which timings hold beside those of the settings.
    pub timing_change: TimingChange,
}

impl ClusterState {
    /// Applies the entry at `index`; a refused command changes nothing.
    pub fn apply(&mut self, index: LogIndex, command: &ClusterCommand) -> Outcome {
        match command {
            ClusterCommand::Found { cluster, founder, members, settings } => {
                if self.is_founded() {
                    return refused("the cluster is already founded");
                }
                if !members.iter().any(|m| m.node == *founder && m.kind == MemberKind::Data) {
                    return refused("the founder is no data member");
                }
                if !members.iter().any(Member::may_lead) {
                    return refused(NO_CANDIDATE);
                }
                self.cluster.clone_from(cluster);
                self.founder = Some(*founder);
                self.members = members.iter().map(|member| (member.node, member.clone())).collect();
                self.settings = settings.clone();
                self.settings_version = 1;
                Outcome::Done
            }
            ClusterCommand::Admit(member) => self.admit(member),
            ClusterCommand::Remove(node) => self.remove(*node),
            ClusterCommand::SetSystemId(system_id) => match self.system_id {
                Some(known) if known != *system_id => refused("the system identifier is already known"),
                Some(_) | None => {
                    self.system_id = Some(*system_id);
                    Outcome::Done
                }
            },
            ClusterCommand::Prepare { reason, at } => {
                self.epoch = Epoch(index.0);
                self.phase = Phase::Preparing { reason: reason.clone(), at: *at };
                self.reason = Some(reason.clone());
                self.prepared_at = *at;
                self.accepted = None;
                Outcome::Prepared(self.epoch)
            }
            ClusterCommand::Grant(grant) => self.apply_grant(index, grant),
            ClusterCommand::AddPolicy { epoch, kind } => self.add_policy(index, *epoch, kind),
            ClusterCommand::NarrowPolicies { epoch, number } => self.narrow_policies(*epoch, *number),
            ClusterCommand::AcceptLoss(acceptance) => self.accept_loss(acceptance),
            ClusterCommand::Established { epoch, timeline, switch, gap_ms, at } => {
                self.establish(*epoch, *timeline, *switch, *gap_ms, *at)
            }
            ClusterCommand::SetHandover(handover) => self.set_handover(handover.as_ref()),
            ClusterCommand::SetPaused(paused) => {
                self.paused = *paused;
                Outcome::Done
            }
            ClusterCommand::SetFenced { node, fenced } => self.set_fenced(*node, *fenced),
            ClusterCommand::ChangeSettings { expected, settings, by, at } => {
                self.change_settings(index, *expected, settings, (by, *at))
            }
            ClusterCommand::SetLearner { node, learner } => self.set_learner(*node, *learner),
            ClusterCommand::RecordLeft { node, end } => self.record_left(*node, *end),
            ClusterCommand::Schedule(scheduled) => self.schedule(scheduled.as_ref()),
            ClusterCommand::BeginScheduled { at } => self.begin_scheduled(*at),
            ClusterCommand::DropScheduled { at, why } => self.drop_scheduled(*at, why),
            ClusterCommand::SettleTiming { epoch, version } => self.settle_timing(*epoch, *version),
        }
    }

    fn admit(&mut self, member: &Member) -> Outcome {
        if !self.is_founded() {
            return refused("the cluster is not founded yet");
        }
        if self.members.get(&member.node).is_some_and(|m| m.kind != member.kind) {
            return refused("a member stays what it is: data or witness");
        }
        if self.removed.contains(&member.node) {
            return refused(
                "this store was removed from the cluster: empty its state directory to join anew",
            );
        }
        let mut members = self.members.clone();
        let older = self.members.values().find(|m| m.name == member.name && m.node != member.node);
        let older = older.map(|m| m.node);
        if let Some(older) = older {
            // Only one that is gone may be replaced: a copied card must not evict the primary.
            if self.leads(older) {
                return refused("the member of that name leads");
            }
            members.remove(&older);
        }
        members.insert(member.node, member.clone());
        if !members.values().any(Member::may_lead) && self.members.values().any(Member::may_lead) {
            return refused(NO_CANDIDATE);
        }
        if let Some(older) = older {
            self.replace_fenced(older, member.node);
            self.replace_learner(older, member.node);
        }
        self.members = members;
        Outcome::Done
    }

    fn apply_grant(&mut self, index: LogIndex, grant: &Grant) -> Outcome {
        if grant.epoch != self.epoch || !matches!(self.phase, Phase::Preparing { .. }) {
            return refused("the epoch is no longer being prepared");
        }
        if !self.members.get(&grant.owner).is_some_and(|m| m.kind == MemberKind::Data) {
            return refused("the owner is no data member");
        }
        if self.is_fenced(grant.owner) {
            return refused("the owner is fenced");
        }
        if grant.timeline <= self.ledger.highest() || grant.timeline <= grant.base.timeline {
            return refused("the timeline's number was planned before");
        }
        let owner = Replica { node: grant.owner, data: grant.data };
        let policy = Policy { number: index, epoch: grant.epoch, owner, kind: grant.policy.clone() };
        if !self.push_policy(policy) {
            return refused("too many promotions failed in a row");
        }
        if self.ledger.root.is_none() {
            self.ledger.root = Some(grant.base.timeline);
        }
        self.ledger.entries.insert(
            grant.timeline,
            LedgerEntry {
                epoch: grant.epoch,
                parent: grant.base.timeline,
                switch: grant.base.lsn,
                owner: grant.owner,
                promoted: false,
            },
        );
        self.ledger.forget_beyond(LEDGER_LIMIT);
        self.grant = Some(grant.clone());
        self.phase = Phase::Granted;
        Outcome::Done
    }

    /// Opens a policy; says whether there is room for it.
    ///
    /// The same owner and condition are covered by the same members, so the newer policy stands for
    /// both: however often promotions fail in a row, the list stays short.
    fn push_policy(&mut self, policy: Policy) -> bool {
        let same = |old: &Policy| old.owner == policy.owner && old.kind == policy.kind;
        if self.policies.iter().filter(|old| !same(old)).count() >= POLICY_LIMIT {
            return false;
        }
        self.policies.retain(|old| !same(old));
        self.policies.push(policy);
        true
    }

    fn add_policy(&mut self, index: LogIndex, epoch: Epoch, kind: &PolicyKind) -> Outcome {
        let Some(grant) = self.current_grant().filter(|grant| grant.epoch == epoch) else {
            return refused("the epoch has no owner now");
        };
        let owner = Replica { node: grant.owner, data: grant.data };
        if let PolicyKind::Quorum { required, standbys } = kind
            && (*required == 0 || standbys.contains(&owner))
        {
            return refused("a commit has to wait for somebody else than the primary");
        }
        if self.policy().is_some_and(|newest| newest.kind == *kind) {
            return refused("this is the newest policy already");
        }
        if self.push_policy(Policy { number: index, epoch, owner, kind: kind.clone() }) {
            Outcome::Done
        } else {
            refused("too many policies are open")
        }
    }

    fn narrow_policies(&mut self, epoch: Epoch, number: LogIndex) -> Outcome {
        if self.current_grant().is_none_or(|grant| grant.epoch != epoch) {
            return refused("the epoch has no owner now");
        }
        if !self.policies.iter().any(|policy| policy.epoch == epoch && policy.number == number) {
            return refused("that policy is not open");
        }
        let before = self.policies.len();
        self.policies.retain(|policy| policy.epoch != epoch || policy.number >= number);
        if self.policies.len() < before { Outcome::Done } else { refused("no older policy is open") }
    }

    fn accept_loss(&mut self, acceptance: &Acceptance) -> Outcome {
        if acceptance.epoch != self.epoch || !matches!(self.phase, Phase::Preparing { .. }) {
            return refused("that epoch is no longer being prepared");
        }
        if acceptance.to.is_some_and(|to| !self.data_members().any(|member| member.node == to)) {
            return refused("no such data member");
        }
        self.accepted = Some(acceptance.clone());
        Outcome::Done
    }

    fn establish(
        &mut self,
        epoch: Epoch,
        timeline: Timeline,
        switch: Lsn,
        gap_ms: u64,
        at: WallTime,
    ) -> Outcome {
        let Some(grant) = self.grant.clone().filter(|g| g.epoch == epoch && self.epoch == epoch) else {
            return refused("the epoch is over");
        };
        if self.phase != Phase::Granted {
            return refused("the epoch is already established");
        }
        if grant.timeline != timeline {
            return refused("the timeline is not the planned one");
        }
        if grant.base.lsn != switch {
            return refused("the timeline does not begin where the grant says");
        }
        if let Some(entry) = self.ledger.entries.get_mut(&timeline) {
            entry.switch = switch;
            entry.promoted = true;
        }
        let at_once = self
            .policies
            .iter()
            .any(|policy| policy.epoch < epoch && matches!(policy.kind, PolicyKind::Async { .. }));
        self.policies.retain(|policy| policy.epoch == epoch);
        self.phase = Phase::Established;
        self.handover = None;
        let from = self.history.back().map(|entry| entry.to.clone());
        let to = self.members.get(&grant.owner).map(|m| m.name.clone()).unwrap_or_default();
        self.history.push_back(HistoryEntry {
            at,
            from,
            to,
            epoch,
            timeline,
            switch,
            reason: self.reason.clone().unwrap_or(PrepareReason::Operator),
            gap_ms,
            lost: grant.lost,
            at_once,
            left: None,
            accepted: self.accepted.take(),
        });
        // A former primary that answered to the Revoke has said all that it holds.
        for evidence in &grant.evidence {
            self.record_left(evidence.node, evidence.position);
        }
        while self.history.len() > HISTORY_LIMIT {
            self.history.pop_front();
        }
        Outcome::Done
    }

    fn set_handover(&mut self, handover: Option<&Handover>) -> Outcome {
        if let Some(handover) = handover {
            if handover.epoch != self.epoch || self.phase != Phase::Established {
                return refused("the epoch that it would end is not established");
            }
            let able = |to| self.members.get(&to).is_some_and(Member::may_lead) && !self.is_fenced(to);
            if handover.to.is_some_and(|to| self.leads(to) || !able(to)) {
                return refused("that member cannot take over");
            }
            if self.handover.as_ref().is_some_and(|going| going != handover && !handover.leaving) {
                return refused("another handover is going on");
            }
        }
        self.handover = handover.cloned();
        Outcome::Done
    }

    /// Returns whether that member owns the newest epoch.
    fn leads(&self, node: NodeId) -> bool {
        self.current_grant().is_some_and(|grant| grant.owner == node)
    }

    /// Returns whether the cluster was founded.
    pub fn is_founded(&self) -> bool {
        self.founder.is_some()
    }

    /// Returns the Grant of the newest epoch, or nothing while its owner is being elected.
    pub fn current_grant(&self) -> Option<&Grant> {
        self.grant.as_ref().filter(|grant| grant.epoch == self.epoch)
    }

    /// Returns the owner of the newest epoch that has one: the one to be fenced before another may be granted.
    pub fn last_owner(&self) -> Option<NodeId> {
        self.grant.as_ref().map(|grant| grant.owner)
    }

    /// Returns the member of that name.
    pub fn member_named(&self, name: &str) -> Option<&Member> {
        self.members.values().find(|member| member.name == name)
    }

    /// Returns the data members.
    pub fn data_members(&self) -> impl Iterator<Item = &Member> {
        self.members.values().filter(|member| member.kind == MemberKind::Data)
    }

    /// Returns the newest policy of the newest epoch's owner: the one that its Postgres is to use.
    pub fn policy(&self) -> Option<&Policy> {
        let epoch = self.current_grant()?.epoch;
        self.policies.iter().rfind(|policy| policy.epoch == epoch)
    }

    /// Returns whether the newest epoch has more than one policy: a change is going on.
    pub fn policy_changes(&self) -> bool {
        let epoch = self.current_grant().map(|grant| grant.epoch);
        self.policies.iter().filter(|policy| Some(policy.epoch) == epoch).count() > 1
    }

    /// Returns a person's word that the epoch that is being prepared may lose acknowledged commits.
    pub fn accepted_loss(&self) -> Option<&Acceptance> {
        self.accepted.as_ref().filter(|accepted| accepted.epoch == self.epoch)
    }

    /// Returns the first broken invariant, for tests and the simulation.
    pub fn broken_invariant(&self) -> Option<String> {
        if let Some(grant) = &self.grant {
            if grant.epoch > self.epoch {
                return Some(format!("grant of epoch {} above epoch {}", grant.epoch, self.epoch));
            }
            if !self.policies.iter().any(|p| p.epoch == grant.epoch && p.owner.node == grant.owner) {
                return Some(format!("no policy for the granted epoch {}", grant.epoch));
            }
        }
        let mut last = (LogIndex(0), Epoch(0));
        for policy in &self.policies {
            if policy.number <= last.0 || policy.epoch < last.1 {
                return Some(format!("policies out of order at epoch {}", policy.epoch));
            }
            last = (policy.number, policy.epoch);
        }
        let mut made = Epoch(0);
        for (timeline, entry) in &self.ledger.entries {
            if entry.parent >= *timeline {
                return Some(format!("timeline {timeline} is not above its parent"));
            }
            if entry.epoch <= made {
                return Some(format!("timeline {timeline} does not rise with its epoch"));
            }
            made = entry.epoch;
        }
        self.fenced_beyond_members()
    }
}

pub(crate) fn refused(reason: &str) -> Outcome {
    Outcome::Refused(reason.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ids::{DataId, Incarnation};

    fn member(node: u64, name: &str, kind: MemberKind) -> Member {
        Member {
            node: NodeId(node),
            name: name.to_owned(),
            kind,
            incarnation: Incarnation(u128::from(node)),
            address: String::new(),
            postgres: String::new(),
            http: String::new(),
            priority: 1,
            tags: crate::tags::Tags::default(),
        }
    }

    /// `alone`, `async`, or `any 1 of MEMBER ...`.
    fn kind(words: &[&str]) -> PolicyKind {
        let replica = |text: &&str| {
            let number = text.parse().expect("a number");
            Replica { node: NodeId(number), data: DataId(number) }
        };
        match words {
            ["alone"] => PolicyKind::Alone,
            ["any", required, "of", standbys @ ..] => PolicyKind::Quorum {
                required: required.parse().expect("a number"),
                standbys: standbys.iter().map(replica).collect(),
            },
            _ => PolicyKind::Async { max_lag: 0 },
        }
    }

    /// A command as a line: `found`, `prepare`, `grant EPOCH OWNER BASE TIMELINE`, ...
    fn command(line: &str) -> ClusterCommand {
        let words: Vec<&str> = line.split(' ').collect();
        let number = |at: usize| words[at].parse::<u64>().expect("a number");
        let timeline = |at: usize| Timeline::new(u32::try_from(number(at)).expect("a timeline"));
        match words[0] {
            "found" => ClusterCommand::Found {
                cluster: "main".to_owned(),
                founder: NodeId(number(1)),
                members: vec![
                    member(1, "a", MemberKind::Data),
                    member(2, "b", MemberKind::Data),
                    member(3, "w", MemberKind::Witness),
                ],
                settings: Settings::default(),
            },
            "admit" => ClusterCommand::Admit(member(number(1), words[2], MemberKind::Data)),
            "remove" => ClusterCommand::Remove(NodeId(number(1))),
            "system" => ClusterCommand::SetSystemId(SystemId::new(number(1))),
            "prepare" => ClusterCommand::Prepare { reason: PrepareReason::Operator, at: WallTime(0) },
            "grant" => ClusterCommand::Grant(Grant {
                epoch: Epoch(number(1)),
                owner: NodeId(number(2)),
                data: DataId(number(2)),
                base: words[3].parse().expect("a position"),
                timeline: timeline(4),
                policy: PolicyKind::Async { max_lag: 0 },
                evidence: Vec::new(),
                lost: None,
            }),
            "established" => ClusterCommand::Established {
                epoch: Epoch(number(1)),
                timeline: timeline(2),
                switch: words.get(3).map_or(Lsn::new(0x10), |lsn| lsn.parse().expect("an lsn")),
                gap_ms: 0,
                at: WallTime(0),
            },
            "handover" => ClusterCommand::SetHandover(Some(Handover {
                epoch: Epoch(number(1)),
                to: words.get(2).map(|_| NodeId(number(2))),
                leaving: words.len() < 3,
            })),
            "policy" => ClusterCommand::AddPolicy { epoch: Epoch(number(1)), kind: kind(&words[2..]) },
            "narrow" => {
                ClusterCommand::NarrowPolicies { epoch: Epoch(number(1)), number: LogIndex(number(2)) }
            }
            "accept" => ClusterCommand::AcceptLoss(Acceptance {
                epoch: Epoch(number(1)),
                to: None,
                by: "somebody".to_owned(),
                at: WallTime(0),
            }),
            "schedule" => ClusterCommand::Schedule(Some(Scheduled {
                from: NodeId(number(1)),
                to: words.get(3).map(|_| NodeId(number(3))),
                at: WallTime(number(2)),
                by: "somebody".to_owned(),
            })),
            "unschedule" => ClusterCommand::Schedule(None),
            "begin" => ClusterCommand::BeginScheduled { at: WallTime(number(1)) },
            "drop" => ClusterCommand::DropScheduled { at: WallTime(number(1)), why: words[2].to_owned() },
            "paused" => ClusterCommand::SetPaused(true),
            "fence" => ClusterCommand::SetFenced { node: NodeId(number(1)), fenced: true },
            "unfence" => ClusterCommand::SetFenced { node: NodeId(number(1)), fenced: false },
            "left" => ClusterCommand::RecordLeft {
                node: NodeId(number(1)),
                end: words[2].parse().expect("a position"),
            },
            other => panic!("no such command: {other}"),
        }
    }

    /// Applies one line after the other, from index 1 on; the last one's outcome is looked at.
    #[track_caller]
    fn check(lines: &str, expected: &str) -> ClusterState {
        let mut state = ClusterState::default();
        let mut again = ClusterState::default();
        let mut outcome = Outcome::Done;
        for (index, line) in lines.split(" | ").enumerate() {
            let before = state.clone();
            let index = LogIndex(index as u64 + 1);
            outcome = state.apply(index, &command(line));
            assert_eq!(state.broken_invariant(), None, "after {line}");
            assert_eq!(again.apply(index, &command(line)), outcome, "the same everywhere");
            if matches!(outcome, Outcome::Refused(_)) {
                assert_eq!(state, before, "a refused command changes nothing: {line}");
            }
        }
        assert_eq!(state, again);
        let found = match outcome {
            Outcome::Done => "done".to_owned(),
            Outcome::Refused(reason) => reason,
            Outcome::Prepared(epoch) => format!("epoch {epoch}"),
        };
        assert_eq!(found, expected, "{lines}");
        state
    }

    const GRANTED: &str = "found 1 | system 7 | prepare | grant 3 1 1:0/10 2";
    const ESTABLISHED: &str = "found 1 | system 7 | prepare | grant 3 1 1:0/10 2 | established 3 2";

    #[test]
    fn a_cluster_is_founded_once_and_by_a_data_member() {
        check("found 1", "done");
        check("found 1 | found 1", "the cluster is already founded");
        check("found 3", "the founder is no data member");
        check("found 9", "the founder is no data member");
        check("admit 4 d", "the cluster is not founded yet");
        check("found 1 | system 7 | system 7", "done");
        check("found 1 | system 7 | system 8", "the system identifier is already known");
    }

    #[test]
    fn who_leads_is_neither_removed_nor_replaced() {
        let after = |more: &str, expected: &str| check(&format!("{ESTABLISHED} | {more}"), expected);
        after("remove 2", "done");
        after("remove 9", "no such member");
        after("remove 1", "the member leads: hand over first");
        after("admit 4 a", "the member of that name leads"); // a copied card
        after("admit 3 w", "a member stays what it is: data or witness");
        let state = after("prepare | admit 4 a", "done"); // seen to be gone
        assert_eq!(state.member_named("a").map(|m| m.node), Some(NodeId(4)));
    }

    #[test]
    fn an_epoch_is_granted_once_and_only_the_newest() {
        check("found 1 | prepare", "epoch 2");
        check("found 1 | grant 0 1 1:0/10 2", "the epoch is no longer being prepared");
        check(GRANTED, "done");
        check(&format!("{GRANTED} | grant 3 2 1:0/10 3"), "the epoch is no longer being prepared");
        check("found 1 | prepare | prepare | grant 2 1 1:0/10 2", "the epoch is no longer being prepared");
        check("found 1 | prepare | grant 2 3 1:0/10 2", "the owner is no data member");
        check("found 1 | prepare | grant 2 1 5:0/10 5", "the timeline's number was planned before");
        let again = format!("{ESTABLISHED} | prepare | grant 6 2 2:0/20 2");
        check(&again, "the timeline's number was planned before");
    }

    #[test]
    fn establishing_drops_the_older_policies_and_only_then() {
        let state = check(&format!("{ESTABLISHED} | prepare | grant 6 2 2:0/20 3"), "done");
        assert_eq!(state.policies.iter().map(|p| p.epoch.0).collect::<Vec<_>>(), [3, 6]);
        let state = check(&format!("{ESTABLISHED} | prepare | grant 6 2 2:0/10 3 | established 6 3"), "done");
        check(
            &format!("{ESTABLISHED} | prepare | grant 6 2 2:0/20 3 | established 6 3"),
            "the timeline does not begin where the grant says",
        );
        assert_eq!(state.policies.iter().map(|p| p.epoch.0).collect::<Vec<_>>(), [6]);
        check(&format!("{ESTABLISHED} | established 3 2"), "the epoch is already established");
        check(&format!("{GRANTED} | established 3 9"), "the timeline is not the planned one");
        check(&format!("{GRANTED} | prepare | established 3 2"), "the epoch is over"); // a Prepare came first
    }

    #[test]
    fn policies_widen_and_narrow_within_the_granted_epoch_only() {
        let after = |more: &str, expected: &str| {
            let state = check(&format!("{ESTABLISHED} | {more}"), expected);
            state.policies.iter().map(|policy| policy.number.0).collect::<Vec<_>>()
        };
        assert_eq!(after("policy 3 any 1 of 2", "done"), [4, 6]);
        assert_eq!(after("policy 3 any 1 of 2 | policy 3 alone", "done"), [4, 6, 7]);
        assert_eq!(after("policy 3 any 1 of 2 | narrow 3 6", "done"), [6]);
        // Back to the first one while the change goes on: it stands for both, under the newer number.
        assert_eq!(after("policy 3 any 1 of 2 | policy 3 async", "done"), [6, 7]);
        after("policy 3 async", "this is the newest policy already");
        after("policy 3 any 1 of 1", "a commit has to wait for somebody else than the primary");
        after("policy 3 any 0 of 2", "a commit has to wait for somebody else than the primary");
        after("policy 2 alone", "the epoch has no owner now");
        after("prepare | policy 3 alone", "the epoch has no owner now"); // a Prepare came first
        after("policy 3 alone | prepare | narrow 3 6", "the epoch has no owner now");
        after("narrow 3 9", "that policy is not open");
        after("narrow 3 4", "no older policy is open");
        // What an older epoch left open goes only when the newer one is established.
        let next = "policy 3 alone | prepare | grant 7 2 2:0/10 3 | policy 7 any 1 of 1";
        assert_eq!(after(&format!("{next} | narrow 7 9"), "done"), [4, 6, 9]);
        assert_eq!(after(&format!("{next} | established 7 3"), "done"), [8, 9]);
    }

    #[test]
    fn an_accepted_loss_is_for_one_epoch_that_is_being_prepared() {
        let after = |more: &str, expected: &str| check(&format!("{ESTABLISHED} | {more}"), expected);
        after("accept 3", "that epoch is no longer being prepared");
        after("prepare | accept 3", "that epoch is no longer being prepared");
        assert!(after("prepare | accept 6", "done").accepted_loss().is_some());
        assert!(after("prepare | accept 6 | prepare", "epoch 8").accepted_loss().is_none());
        let state = after("prepare | accept 6 | grant 6 2 2:0/10 3 | established 6 3", "done");
        assert!(state.history.back().is_some_and(|entry| entry.accepted.is_some()));
        assert_eq!(state.accepted, None);
    }

    #[test]
    fn a_handover_ends_the_established_epoch_and_no_other() {
        let after = |more: &str, expected: &str| check(&format!("{ESTABLISHED} | {more}"), expected);
        after("handover 3 2", "done");
        after("handover 3 1", "that member cannot take over"); // leads already
        after("handover 3 3", "that member cannot take over"); // a witness
        after("handover 2 2", "the epoch that it would end is not established");
        after("handover 3 | handover 3 2", "another handover is going on");
        after("handover 3 2 | handover 3", "done"); // the host goes down meanwhile
        check(&format!("{GRANTED} | handover 3 2"), "the epoch that it would end is not established");
    }

    #[test]
    fn a_scheduled_switchover_begins_once_or_is_dropped() {
        let after = |more: &str, expected: &str| check(&format!("{ESTABLISHED} | {more}"), expected);
        let state = after("schedule 1 99 2 | begin 99", "done");
        assert_eq!((state.scheduled, state.handover.and_then(|h| h.to)), (None, Some(NodeId(2))));
        after("schedule 1 99 2 | begin 99 | begin 99", "no switchover is scheduled for that time");
        after("schedule 1 99 2 | schedule 1 98", "another switchover is scheduled");
        after("schedule 1 99 2 | unschedule | begin 99", "no switchover is scheduled for that time");
        after("unschedule", "no switchover is scheduled");
        after(
            "schedule 1 99 2 | unschedule | schedule 1 98 | begin 99",
            "no switchover is scheduled for that time",
        );
        after("schedule 2 99", "the primary is another one by now");
        after("schedule 1 99 1", "that member cannot take over");
        after("schedule 1 99 3", "that member cannot take over"); // a witness
        after("prepare | schedule 1 99", "the primary is another one by now");
        // After a failover the same member may lead again, another one may not.
        let moved = "schedule 1 99 | prepare | grant 7 2 2:0/20 3 | established 7 3 0/20";
        after(&format!("{moved} | begin 99"), "the primary is another one by now");
        let state = after(&format!("{moved} | drop 99 moved"), "done");
        assert_eq!(state.scheduled, None);
        assert_eq!(state.schedule_dropped.map(|dropped| dropped.why).as_deref(), Some("moved"));
        after("schedule 1 99 | drop 98 why", "no switchover is scheduled for that time");
    }

    #[test]
    fn only_a_standby_is_fenced_and_it_does_not_take_over() {
        let after = |more: &str, expected: &str| check(&format!("{ESTABLISHED} | {more}"), expected);
        after("fence 2", "done");
        after("fence 1", "the member leads, or led last: hand over first");
        after("fence 3", "a witness runs no postgres");
        after("fence 9", "no such member");
        after("fence 2 | fence 2", "the member is fenced already");
        after("unfence 2", "the member is not fenced");
        after("fence 2 | unfence 2 | handover 3 2", "done");
        after("fence 2 | handover 3 2", "that member cannot take over");
        after("handover 3 2 | fence 2", "the primary is being handed over to this member");
        after("fence 2 | prepare | grant 7 2 2:0/20 3", "the owner is fenced");
        // The last owner is not fenced while the next one is sought: it may be the only one left.
        after("prepare | fence 1", "the member leads, or led last: hand over first");
        assert!(after("fence 2 | admit 4 b", "done").is_fenced(NodeId(4))); // its store was lost
        assert!(after("fence 2 | remove 2", "done").fenced.is_empty());
    }

    #[test]
    fn what_a_former_primary_left_behind_is_recorded_once() {
        // Member 1 served timeline 2 from 0/10 on; member 2 took over at 0/20.
        let moved = format!("{ESTABLISHED} | prepare | grant 6 2 2:0/20 3 | established 6 3 0/20");
        let left = |lines: &str| {
            let entry = check(lines, "done").history.back().cloned().expect("an entry");
            entry.left.map(|(from, to)| format!("{from} to {to}"))
        };
        assert_eq!(left(&format!("{moved} | left 1 2:0/28")).as_deref(), Some("0/20 to 0/28"));
        assert_eq!(left(&format!("{moved} | left 1 2:0/20")).as_deref(), Some("0/20 to 0/20")); // nothing
        let refused = "no change of primary waits for that";
        check(&format!("{moved} | left 1 2:0/28 | left 1 2:0/30"), refused); // known already
        check(&format!("{moved} | left 2 2:0/28"), refused); // was not the primary before
        check(&format!("{moved} | left 1 1:0/28"), refused); // another timeline
        check(&format!("{ESTABLISHED} | left 1 2:0/28"), refused); // leads still
    }

    #[test]
    fn promotions_that_fail_for_a_night_leave_short_lists() {
        let mut state = check(ESTABLISHED, "done");
        for round in 0..2000_u64 {
            let (index, timeline) = (10 + 2 * round, 3 + round);
            state.apply(LogIndex(index), &command("prepare"));
            let grant = command(&format!("grant {index} {} 2:0/20 {timeline}", 1 + round % 2));
            assert_eq!(state.apply(LogIndex(index + 1), &grant), Outcome::Done, "round {round}");
            assert_eq!(state.broken_invariant(), None);
        }
        assert_eq!(state.policies.len(), 2);
        assert_eq!(state.ledger.entries.len(), LEDGER_LIMIT);
        // Where the cluster last stood is not forgotten.
        assert!(state.ledger.rank("2:0/20".parse().expect("a position")).is_some());
    }
}
