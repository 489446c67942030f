//! ✦ What the recorder writes, a JSON object a line, and deciding again from it.
//!
//! A line holds all that one decision was taken from, and what was decided: [`Line::again`] decides anew, by the
//! very functions of [`crate::decide`]. What no decision looks at is left out, above all Postgres
//! parameters and lines of pg_hba.conf: people put passwords there (decision 0048).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rhone_consensus::command::{ClusterCommand, PrepareReason};
use rhone_consensus::ids::{Epoch, LogIndex, NodeId};
use rhone_consensus::state::{ClusterState, HistoryEntry};
use serde::{Deserialize, Serialize};

use crate::civil::WallTime;
use crate::decide::{self, ClusterDecision, Effect, NodeDecision};
use crate::view::{Chores, ClusterView, Instance, Moment, NodeView, Received, Revoked, ServerFacts, Sources};

/// The format that this version writes. A reader skips fields that it does not know; one that it misses and
/// that has no default makes a line unreadable, and the next format's number tells why.
pub const FORMAT: u32 = 1;

/// One line of a record.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Line {
    /// Who writes what follows: the first line of a file, and of each start of a supervisor.
    Begin(Begin),
    /// A decision of the Raft leader's.
    Cluster(Record<ClusterSeen, ClusterDecision>),
    /// A decision of a member's on its own Postgres.
    Member(Record<MemberSeen, NodeDecision>),
    /// So many decisions could not be written before the next line.
    Dropped(u64),
}

/// Who writes.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Begin {
    /// [`FORMAT`] of the writer.
    pub format: u32,
    /// The writer's version.
    pub rhone: String,
    /// Its cluster.
    pub cluster: String,
    /// Its member.
    pub member: String,
}

/// One decision and what it was taken from.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Record<V, D> {
    /// When, by the member's wall clock: for people.
    pub at: WallTime,
    /// When, by the clock that decisions are taken by.
    pub now: Moment,
    /// All that was seen.
    pub seen: V,
    /// What was decided.
    pub decided: D,
}

/// A [`ClusterView`] that can be kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ClusterSeen {
    state: ClusterState,
    voters: Vec<BTreeSet<NodeId>>,
    reports: BTreeMap<NodeId, Received>,
    revoked: BTreeMap<NodeId, (Moment, Revoked)>,
    granted_since: Option<Moment>,
}

impl ClusterSeen {
    /// Keeps a view, without what no decision looks at.
    pub fn of(view: &ClusterView<'_>) -> Self {
        let mut reports = view.reports.clone();
        for received in reports.values_mut() {
            received.report.server = ServerFacts::default();
            received.report.note = None;
            if let Some((_, words)) = &mut received.report.down {
                NOT_RECORDED.clone_into(words);
            }
            without_words(&mut received.report.instance);
        }
        Self {
            state: without_secrets(view.state),
            voters: view.voters.to_vec(),
            reports,
            revoked: view.revoked.clone(),
            granted_since: view.granted_since,
        }
    }

    fn view(&self) -> ClusterView<'_> {
        ClusterView {
            state: &self.state,
            voters: &self.voters,
            reports: &self.reports,
            revoked: &self.revoked,
            granted_since: self.granted_since,
        }
    }
}

/// A [`NodeView`] that can be kept.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[expect(clippy::struct_excessive_bools, reason = "each is a fact of its own")]
pub struct MemberSeen {
    state: ClusterState,
    me: NodeId,
    instance: Instance,
    promise: Epoch,
    unfinished: Option<Epoch>,
    copied: bool,
    stranger: bool,
    policy: Option<LogIndex>,
    secured: Option<LogIndex>,
    revoke: Option<Epoch>,
    running: Option<(Effect, Epoch)>,
    leaving: bool,
    leave_now: bool,
    behind: bool,
    #[serde(default)]
    fenced_ahead: bool,
    guardian: bool,
    rewinds_failed: u32,
    start_failed: Option<String>,
    sources: Sources,
    chores: Chores,
}

impl MemberSeen {
    /// Keeps a view, without what no decision looks at.
    pub fn of(view: &NodeView<'_>) -> Self {
        Self {
            state: without_secrets(view.state),
            me: view.me,
            instance: {
                let mut instance = view.instance.clone();
                without_words(&mut instance);
                instance
            },
            promise: view.promise,
            unfinished: view.unfinished,
            copied: view.copied,
            stranger: view.stranger,
            policy: view.policy,
            secured: view.secured,
            revoke: view.revoke,
            running: view.running,
            leaving: view.leaving,
            leave_now: view.leave_now,
            behind: view.behind,
            fenced_ahead: view.fenced_ahead,
            guardian: view.guardian,
            rewinds_failed: view.rewinds_failed,
            start_failed: view.start_failed.map(|_| NOT_RECORDED.to_owned()),
            sources: view.sources,
            chores: view.chores,
        }
    }

    fn view(&self) -> NodeView<'_> {
        NodeView {
            state: &self.state,
            me: self.me,
            instance: &self.instance,
            promise: self.promise,
            unfinished: self.unfinished,
            copied: self.copied,
            stranger: self.stranger,
            policy: self.policy,
            secured: self.secured,
            revoke: self.revoke,
            running: self.running,
            leaving: self.leaving,
            leave_now: self.leave_now,
            behind: self.behind,
            fenced_ahead: self.fenced_ahead,
            guardian: self.guardian,
            rewinds_failed: self.rewinds_failed,
            start_failed: self.start_failed.as_deref(),
            sources: self.sources,
            chores: self.chores,
        }
    }
}

/// In the place of what Postgres, or a program of the operator's, said: they quote the line that they do not like.
const NOT_RECORDED: &str = "not recorded";

/// Of the history only the newest changes are looked at, for what a former primary left behind.
const HISTORY: usize = 16;

fn without_words(instance: &mut Instance) {
    if let Instance::Unusable(words) = instance {
        NOT_RECORDED.clone_into(words);
    }
}

fn without_detail(reason: &mut PrepareReason) {
    if let PrepareReason::OwnerDown { detail } = reason {
        NOT_RECORDED.clone_into(detail);
    }
}

/// A decision as it is recorded.
pub fn recorded(decision: &ClusterDecision) -> ClusterDecision {
    let mut decision = decision.clone();
    if let ClusterDecision::Propose(ClusterCommand::Prepare { reason, .. }) = &mut decision {
        without_detail(reason);
    }
    decision
}

/// Leaves out what no decision looks at: older history for its size, settings of Postgres for what people put there.
fn without_secrets(state: &ClusterState) -> ClusterState {
    let entry = |entry: &HistoryEntry| {
        let mut entry = entry.clone();
        without_detail(&mut entry.reason);
        entry
    };
    let older = state.history.len().saturating_sub(HISTORY);
    let mut reason = state.reason.clone();
    if let Some(reason) = &mut reason {
        without_detail(reason);
    }
    let mut settings = state.settings.clone();
    settings.postgres.clear();
    settings.pg_hba.clear();
    settings.pg_ident.clear();
    ClusterState {
        cluster: state.cluster.clone(),
        founder: state.founder,
        system_id: state.system_id,
        members: state.members.clone(),
        settings,
        epoch: state.epoch,
        phase: state.phase.clone(),
        reason,
        prepared_at: state.prepared_at,
        grant: state.grant.clone(),
        policies: state.policies.clone(),
        ledger: state.ledger.clone(),
        accepted: state.accepted.clone(),
        handover: state.handover.clone(),
        paused: state.paused,
        history: state.history.iter().skip(older).map(entry).collect(),
        fenced: state.fenced.clone(),
        settings_version: state.settings_version,
        settings_log: std::collections::VecDeque::new(),
        learners: state.learners.clone(),
        removed: state.removed.clone(),
        scheduled: state.scheduled.clone(),
        schedule_dropped: state.schedule_dropped.clone(),
        restarts: state.restarts.clone(),
        restart_dropped: state.restart_dropped.clone(),
        timing_change: state.timing_change,
    }
}

/// Says whether two decisions of the leader's are the same to a record: one line for one that is taken again and
/// again while only a number in it grows.
pub fn same(one: &ClusterDecision, other: &ClusterDecision) -> bool {
    match (one, other) {
        (ClusterDecision::Wait(one), ClusterDecision::Wait(other)) => one.code() == other.code(),
        (
            ClusterDecision::Revoke { epoch, members, wait },
            ClusterDecision::Revoke { epoch: other_epoch, members: other_members, wait: other_wait },
        ) => epoch == other_epoch && members == other_members && wait.code() == other_wait.code(),
        (
            ClusterDecision::Propose(ClusterCommand::Prepare { reason: one, .. }),
            ClusterDecision::Propose(ClusterCommand::Prepare { reason: other, .. }),
        ) => std::mem::discriminant(one) == std::mem::discriminant(other),
        (ClusterDecision::Propose(one), ClusterDecision::Propose(other)) => one == other,
        (
            ClusterDecision::Wait(_) | ClusterDecision::Revoke { .. } | ClusterDecision::Propose(_),
            ClusterDecision::Wait(_) | ClusterDecision::Revoke { .. } | ClusterDecision::Propose(_),
        ) => false,
    }
}

/// A decision in words, with what was decided on second thought.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Again {
    /// When it was recorded.
    pub at: WallTime,
    /// Who decided.
    pub by: By,
    /// What was decided then.
    pub decided: String,
    /// Its code in logs and metrics.
    pub reason: &'static str,
    /// What is decided now, where that differs.
    pub now: Option<String>,
}

/// Who decides.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum By {
    /// The Raft leader, for the cluster.
    Leader,
    /// A member, for its own Postgres.
    Member,
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Leader => "leader",
            Self::Member => "member",
        })
    }
}

impl Line {
    /// Decides again; nothing for a line that holds no decision.
    pub fn again(&self) -> Option<Again> {
        match self {
            Self::Begin(_) | Self::Dropped(_) => None,
            Self::Cluster(record) => {
                let now = recorded(&decide::cluster(&record.seen.view(), record.now));
                let named = |decision: &ClusterDecision| {
                    (decision.code(), with_names(&record.seen.state, &decision.to_string()))
                };
                Some(again(record, By::Leader, &now, named))
            }
            Self::Member(record) => {
                let now = decide::node(&record.seen.view(), record.now);
                let named = |decision: &NodeDecision| {
                    (decision.code(), with_names(&record.seen.state, &decision.to_string()))
                };
                Some(again(record, By::Member, &now, named))
            }
        }
    }
}

fn again<V, D: PartialEq + fmt::Debug>(
    record: &Record<V, D>,
    by: By,
    now: &D,
    named: impl Fn(&D) -> (&'static str, String),
) -> Again {
    let (reason, decided) = named(&record.decided);
    let differs = (*now != record.decided).then(|| {
        let (code, words) = named(now);
        // Two that differ may read the same to a person.
        if (code, &words) == (reason, &decided) { format!("{now:?}") } else { format!("{words} ({code})") }
    });
    Again { at: record.at, by, decided, reason, now: differs }
}

/// Names members by their names instead of their stores.
fn with_names(state: &ClusterState, words: &str) -> String {
    state
        .members
        .values()
        .fold(words.to_owned(), |words, member| words.replace(&member.node.to_string(), &member.name))
}
