//! The replicated state: who is a member, who leads Postgres in which epoch, and how it came to that.
//!
//! Pure and deterministic: the same commands at the same log indexes give the same state on
//! every member.

mod hold;
mod membership;
mod recover;
mod restart;
mod schedule;
mod settings;
mod timing;

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use rhone_pgctl::wal::{Lsn, SystemId, Timeline};
use serde::{Deserialize, Serialize};

pub use self::timing::TimingChange;
use crate::command::{
    Acceptance, ClusterCommand, Dropped, Grant, Handover, Member, MemberKind, Outcome, PrepareReason,
    Scheduled, ScheduledRestart, WallTime,
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
    /// The restarts that are to begin later, by member.
    pub restarts: BTreeMap<NodeId, ScheduledRestart>,
    /// The last one of which nothing came: whose, its time, and why; until another one is scheduled.
    pub restart_dropped: Option<(NodeId, WallTime, String)>,
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
            ClusterCommand::StepRestart { node, step } => self.step_restart(*node, step),
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
            self.restarts.remove(&older);
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
mod tests;
