//! What a member does to its own Postgres: the one effect that moves it toward the state.
//!
//! The order of the rules is the argument: first nobody may serve who is not entitled to, then a
//! promise that was asked for is given, and only then anything is started, followed or promoted.

use rhone_consensus::command::{Grant, MemberKind};
use rhone_consensus::ids::{Epoch, NodeId};
use rhone_consensus::ledger::Lineage;
use rhone_consensus::settings::SyncMode;
use rhone_consensus::state::Phase;

use super::decision::{Effect, NodeDecision, Reason};
use crate::view::{Instance, Moment, NodeView};

/// After how long without a stream a standby that should have one is looked into.
const STREAM_STALLED_MS: u64 = 15_000;

/// How often pg_rewind may fail before the data directory is cloned anew.
const REWINDS_BEFORE_CLONE: u32 = 2;

/// Decides what this member does to its instance now.
pub fn node(view: &NodeView<'_>, _now: Moment) -> NodeDecision {
    let granted = view.state.grant.as_ref().map_or(Epoch(0), |grant| grant.epoch);
    let asked = view.revoke.filter(|asked| *asked >= view.promise && *asked > granted);
    if let Some(decision) = entitlement(view, asked) {
        return decision;
    }
    if view.state.members.get(&view.me).is_some_and(|m| m.kind == MemberKind::Witness) {
        return NodeDecision::Rest(Reason::Witness);
    }
    if let Some((effect, epoch)) = view.running {
        // A promise outranks what is under way for an older epoch; a rewind alone is never cut
        // short, and answers for itself that its data does not count.
        return match asked {
            Some(asked) if asked > epoch && !matches!(effect, Effect::Rewind(_) | Effect::Revoke) => {
                NodeDecision::Act(Effect::Revoke, asked, Reason::RevokeAsked)
            }
            Some(_) | None => NodeDecision::Rest(Reason::EffectRunning),
        };
    }
    if let Some(asked) = asked {
        return NodeDecision::Act(Effect::Revoke, asked, Reason::RevokeAsked);
    }
    match view.instance {
        Instance::Unknown => return NodeDecision::Rest(Reason::NotProbed),
        // One that a rewind left behind is rewound again, or cloned.
        Instance::Unusable(_) if view.unfinished.is_none() => return NodeDecision::Rest(Reason::Unusable),
        Instance::Unusable(_)
        | Instance::Absent
        | Instance::Stopped { .. }
        | Instance::Starting
        | Instance::Standby { .. }
        | Instance::Primary { .. }
        | Instance::Frozen { .. }
        | Instance::Hung { .. } => {}
    }
    if !view.state.is_founded() {
        return NodeDecision::Rest(Reason::NotFounded);
    }
    if let Some(decision) = held(view) {
        return decision;
    }
    match view.state.current_grant() {
        Some(grant) if grant.epoch < view.promise => {
            resting(view).unwrap_or(NodeDecision::Rest(Reason::PromisedHigher))
        }
        Some(grant) if grant.owner == view.me => owner(view, grant),
        Some(grant) => standby(view, grant),
        None => unowned(view),
    }
}

/// Whether what runs here may go on running: a primary serves only the newest epoch, which it owns.
///
/// Comes before everything, also before what kind of member this is.
fn entitlement(view: &NodeView<'_>, asked: Option<Epoch>) -> Option<NodeDecision> {
    let epoch = match view.instance {
        Instance::Primary { epoch, .. } | Instance::Frozen { epoch } => *epoch,
        Instance::Hung { epoch } if *epoch > Epoch(0) => *epoch,
        Instance::Unknown
        | Instance::Absent
        | Instance::Unusable(_)
        | Instance::Stopped { .. }
        | Instance::Starting
        | Instance::Standby { .. }
        | Instance::Hung { .. } => return None,
    };
    let fence = |reason| {
        let fencing = matches!(view.running, Some((Effect::Fence | Effect::Revoke, _)));
        Some(if fencing {
            NodeDecision::Rest(Reason::EffectRunning)
        } else {
            NodeDecision::Act(Effect::Fence, epoch, reason)
        })
    };
    if view.promise > epoch {
        return fence(Reason::PromisedHigher);
    }
    if !view.guardian {
        return fence(Reason::GuardianGone);
    }
    if epoch > view.state.epoch {
        // A restarted supervisor whose log is behind: the voters judge the lease meanwhile. A
        // promise that is asked for needs no log.
        let promises = asked.is_some_and(|asked| asked > epoch);
        return if promises { None } else { Some(NodeDecision::Rest(Reason::CatchingUp)) };
    }
    let granted = view.state.current_grant().is_some_and(|g| g.owner == view.me && g.epoch == epoch);
    if granted {
        return None;
    }
    if view.behind && epoch == view.state.epoch && view.promise == epoch {
        // A restarted supervisor that has the Prepare and not yet the Grant: the rest of its log tells.
        return if asked.is_some_and(|asked| asked > epoch) {
            None
        } else {
            Some(NodeDecision::Rest(Reason::CatchingUp))
        };
    }
    fence(Reason::NotGranted)
}

/// This member owns the newest epoch.
fn owner(view: &NodeView<'_>, grant: &Grant) -> NodeDecision {
    let epoch = grant.epoch;
    if view.promise != epoch {
        // It was never revoked for this epoch: its word is not part of the evidence.
        return NodeDecision::Rest(Reason::OwnerDown);
    }
    if down(view).is_some() {
        return match view.instance {
            // On a timeline that nobody planned: it must not serve for a moment.
            Instance::Primary { .. } => NodeDecision::Act(Effect::Fence, epoch, Reason::OwnerDown),
            Instance::Unknown
            | Instance::Absent
            | Instance::Unusable(_)
            | Instance::Stopped { .. }
            | Instance::Starting
            | Instance::Standby { .. }
            | Instance::Frozen { .. }
            | Instance::Hung { .. } => resting(view).unwrap_or(NodeDecision::Rest(Reason::OwnerDown)),
        };
    }
    if !view.guardian {
        return NodeDecision::Rest(Reason::GuardianGone);
    }
    match view.instance {
        Instance::Stopped { position: None, .. } => NodeDecision::Rest(Reason::PositionUnknown),
        // It handed over: the next epoch decides who starts, and from where.
        Instance::Stopped { .. } if view.state.phase == Phase::Established => {
            NodeDecision::Rest(Reason::Handover)
        }
        Instance::Stopped { .. } => NodeDecision::Act(Effect::Start(None), epoch, Reason::OwnerStarts),
        Instance::Starting => NodeDecision::Rest(Reason::Starting),
        Instance::Standby { .. } => NodeDecision::Act(Effect::Promote, epoch, Reason::OwnerPromotes),
        Instance::Primary { .. } if hands_over(view) => {
            NodeDecision::Act(Effect::HandOver, epoch, Reason::Handover)
        }
        // Also while the gate is closed: it may stay closed for want of a standby.
        Instance::Primary { .. } if view.leave_now => {
            NodeDecision::Act(Effect::HandOver, epoch, Reason::Leaving)
        }
        Instance::Primary { .. } if policy_is_due(view) => {
            NodeDecision::Act(Effect::SetPolicy, epoch, Reason::PolicyChanges)
        }
        Instance::Primary { gate_open: false, .. } => {
            NodeDecision::Act(Effect::OpenGate, epoch, Reason::GateClosed)
        }
        // The same effect writes all settings, and proves the policy once more.
        Instance::Primary { .. } if view.chores.configure => {
            NodeDecision::Act(Effect::SetPolicy, epoch, Reason::SettingsChanged)
        }
        Instance::Primary { .. } => NodeDecision::Rest(Reason::Serving),
        Instance::Frozen { .. } => NodeDecision::Rest(Reason::Frozen),
        Instance::Hung { .. } => NodeDecision::Rest(Reason::Hung),
        Instance::Unknown | Instance::Absent | Instance::Unusable(_) => NodeDecision::Rest(Reason::OwnerDown),
    }
}

/// Whether the newest policy is not in force yet, and that matters: Postgres is set to another one,
/// or the older ones can go once it is. A log that is behind never takes Postgres back.
fn policy_is_due(view: &NodeView<'_>) -> bool {
    let Some(newest) = view.state.policy().map(|policy| policy.number) else { return false };
    view.policy.is_none_or(|set| set < newest)
        || (view.policy == Some(newest) && view.state.policy_changes() && view.secured != Some(newest))
}

fn hands_over(view: &NodeView<'_>) -> bool {
    view.state.handover.as_ref().is_some_and(|handover| handover.epoch == view.state.epoch)
}

/// Returns why the owner of the newest epoch cannot serve it, for its report; the Raft leader
/// then opens another epoch.
pub fn down(view: &NodeView<'_>) -> Option<(Epoch, String)> {
    let grant = view.state.current_grant().filter(|grant| grant.owner == view.me)?;
    if view.running.is_some_and(|(effect, _)| !may_wait_for_what_hangs(effect, view.instance)) {
        return None;
    }
    let why = |detail: &str| Some((grant.epoch, detail.to_owned()));
    if view.promise > grant.epoch {
        return why("a higher epoch was promised");
    }
    if view.promise < grant.epoch {
        return why("this epoch was never promised here");
    }
    if view.unfinished.is_some() {
        return why("a rewind or clone was never finished");
    }
    let promoting = view.state.phase == Phase::Granted;
    if let Some(detail) = view.start_failed.filter(|_| promoting) {
        return why(detail);
    }
    if view.stranger && !matches!(view.instance, Instance::Primary { .. } | Instance::Absent) {
        return why("the data directory is not the one that this member is known to have");
    }
    match view.instance {
        Instance::Absent => why("the data directory is gone"),
        Instance::Unusable(reason) => why(reason),
        Instance::Stopped { .. } | Instance::Starting | Instance::Standby { .. }
            if promoting && view.leaving =>
        {
            why("it is about to stop")
        }
        Instance::Stopped { position, clean, .. } => {
            if !promoting {
                // A handover that came to a clean stop is told by the instance itself.
                return if hands_over(view) && *clean { None } else { why("postgres is not running") };
            }
            match position {
                Some(position) if position.timeline >= grant.timeline => why("postgres died after promotion"),
                Some(position) if *position != grant.base => why("the end of the wal is not where it was"),
                Some(_) | None => None,
            }
        }
        Instance::Standby { position, .. } => {
            if !promoting {
                why("postgres is a standby again")
            } else if *position == grant.base {
                None
            } else {
                why("the end of the wal is not where it was")
            }
        }
        Instance::Primary { epoch, position, .. }
            if *epoch == grant.epoch && position.timeline != grant.timeline =>
        {
            why("the promotion made another timeline than planned")
        }
        Instance::Hung { epoch } if *epoch == grant.epoch || *epoch == Epoch(0) => {
            why("postgres makes no progress")
        }
        Instance::Unknown
        | Instance::Starting
        | Instance::Primary { .. }
        | Instance::Frozen { .. }
        | Instance::Hung { .. } => None,
    }
}

/// Whether an effect on a primary that hangs may be waiting for the very disk or server that does: it keeps nobody
/// from saying so (decision 0062).
fn may_wait_for_what_hangs(effect: Effect, instance: &Instance) -> bool {
    let serves = match effect {
        Effect::SetPolicy | Effect::OpenGate | Effect::HandOver => true,
        Effect::InitDb
        | Effect::Start(_)
        | Effect::Follow(_)
        | Effect::Revoke
        | Effect::Promote
        | Effect::Fence
        | Effect::Stop
        | Effect::Rewind(_)
        | Effect::Clone(_) => false,
    };
    serves && matches!(instance, Instance::Hung { .. })
}

/// Nobody owns the newest epoch yet.
fn unowned(view: &NodeView<'_>) -> NodeDecision {
    match view.instance {
        // A promise given earlier says that the log here is behind: there was data once.
        Instance::Absent
            if view.state.system_id.is_none()
                && view.state.founder == Some(view.me)
                && view.promise == Epoch(0) =>
        {
            NodeDecision::Act(Effect::InitDb, view.state.epoch, Reason::FirstDataDirectory)
        }
        Instance::Absent => NodeDecision::Rest(Reason::NoPrimaryYet),
        Instance::Unknown
        | Instance::Unusable(_)
        | Instance::Stopped { .. }
        | Instance::Starting
        | Instance::Standby { .. }
        | Instance::Primary { .. }
        | Instance::Frozen { .. }
        | Instance::Hung { .. } => resting(view).unwrap_or(NodeDecision::Rest(Reason::ElectionRunning)),
    }
}

/// An operator fenced this member: its instance is stopped in order and stays so. Never the newest owner's,
/// whom the state does not let be fenced. A member that has just started, and whose log holds the fence beyond
/// what is applied, does not start its instance first (decision 0065).
fn held(view: &NodeView<'_>) -> Option<NodeDecision> {
    let owns = view.state.current_grant().is_some_and(|grant| grant.owner == view.me);
    if owns || !(view.fenced_ahead || view.state.is_fenced(view.me)) {
        return None;
    }
    let epoch = view.state.epoch.max(view.promise);
    Some(if runs_as_standby(view.instance) {
        NodeDecision::Act(Effect::Stop, epoch, Reason::Fenced)
    } else {
        NodeDecision::Rest(Reason::Fenced)
    })
}

fn runs_as_standby(instance: &Instance) -> bool {
    match instance {
        Instance::Standby { .. } | Instance::Starting => true,
        Instance::Hung { epoch } => *epoch == Epoch(0),
        Instance::Unknown
        | Instance::Absent
        | Instance::Unusable(_)
        | Instance::Stopped { .. }
        | Instance::Primary { .. }
        | Instance::Frozen { .. } => false,
    }
}

/// What may be done even while nothing else may: to stop a standby whose supervisor is to end.
fn resting(view: &NodeView<'_>) -> Option<NodeDecision> {
    let runs = runs_as_standby(view.instance);
    let epoch = view.state.epoch.max(view.promise);
    (runs && view.leaving).then_some(NodeDecision::Act(Effect::Stop, epoch, Reason::Leaving))
}

/// Where a new copy is asked for, the standby is stopped first: what streams holds the slot that the copy uses.
fn toward_a_new_copy(instance: &Instance, from: NodeId) -> Option<Effect> {
    match instance {
        // It goes on streaming until the copy is complete.
        Instance::Standby { .. } | Instance::Stopped { .. } => Some(Effect::Clone(from)),
        Instance::Unknown
        | Instance::Absent
        | Instance::Unusable(_)
        | Instance::Starting
        | Instance::Primary { .. }
        | Instance::Frozen { .. }
        | Instance::Hung { .. } => None,
    }
}

/// Another member owns the newest epoch: this one follows, rewinds or clones.
#[allow(clippy::too_many_lines, reason = "the order of the rules is the argument")]
fn standby(view: &NodeView<'_>, grant: &Grant) -> NodeDecision {
    let epoch = grant.epoch;
    if view.leaving {
        return resting(view).unwrap_or(NodeDecision::Rest(Reason::Leaving));
    }
    let upstream = view.sources.upstream.unwrap_or(grant.owner);
    let clone_from = view.sources.clone.unwrap_or(grant.owner);
    // Copying needs a primary that serves; following does not. In strict mode the gate may stay closed
    // until the copy is there to acknowledge, so that the copy comes first.
    let strict = view.state.settings.sync == SyncMode::Strict;
    let source = view.state.phase == Phase::Established || (strict && view.state.phase == Phase::Granted);
    let copy = |effect, reason| {
        if source {
            NodeDecision::Act(effect, epoch, reason)
        } else {
            NodeDecision::Rest(Reason::NoPrimaryYet)
        }
    };
    let rewind_or_clone = |reason| {
        if view.rewinds_failed >= REWINDS_BEFORE_CLONE {
            copy(Effect::Clone(clone_from), Reason::RewindFailed)
        } else {
            copy(Effect::Rewind(grant.owner), reason)
        }
    };
    if view.stranger && !matches!(view.instance, Instance::Absent) {
        return copy(Effect::Clone(grant.owner), Reason::StrangeData);
    }
    if view.unfinished.is_some() && !matches!(view.instance, Instance::Absent) {
        return rewind_or_clone(Reason::Unfinished);
    }
    if view.chores.reinit
        && source
        && let Some(effect) = toward_a_new_copy(view.instance, clone_from)
    {
        return NodeDecision::Act(effect, epoch, Reason::ReinitAsked);
    }
    match view.instance {
        Instance::Absent => copy(Effect::Clone(clone_from), Reason::NoData),
        // A copy of this very history, whose last WAL only the source has. Where it is of another
        // one after all, Postgres itself refuses to start.
        Instance::Stopped { position: None, .. }
            if view.copied && (view.start_failed.is_none() || view.chores.unfit) =>
        {
            NodeDecision::Act(Effect::Start(Some(upstream)), epoch, Reason::WithinHistory)
        }
        Instance::Stopped { position: None, .. } if view.copied => rewind_or_clone(Reason::RewindFailed),
        Instance::Stopped { position: None, .. } => NodeDecision::Rest(Reason::PositionUnknown),
        Instance::Stopped { position: Some(position), .. } => {
            match view.state.ledger.lineage(*position, grant.timeline) {
                Lineage::Within if view.start_failed.is_some() && source && !view.chores.unfit => {
                    rewind_or_clone(Reason::RewindFailed)
                }
                Lineage::Within => {
                    NodeDecision::Act(Effect::Start(Some(upstream)), epoch, Reason::WithinHistory)
                }
                Lineage::Forked(_) => rewind_or_clone(Reason::Forked),
                Lineage::Foreign => copy(Effect::Clone(clone_from), Reason::ForeignTimeline),
            }
        }
        Instance::Starting => NodeDecision::Rest(Reason::Starting),
        Instance::Standby { position, upstream: upstream_now, streaming, idle_ms, wal_gone } => {
            match view.state.ledger.lineage(*position, grant.timeline) {
                Lineage::Forked(_) => rewind_or_clone(Reason::Forked),
                Lineage::Foreign => copy(Effect::Clone(clone_from), Reason::ForeignTimeline),
                // Stopped in order it is started again like any other that is stopped.
                Lineage::Within if view.chores.restart => {
                    NodeDecision::Act(Effect::Stop, epoch, Reason::RestartAsked)
                }
                // Also where the owner of two epochs is the same: until the newer one is promised, what this
                // member flushes counts for nobody.
                Lineage::Within if *upstream_now != Some(upstream) || view.promise < epoch => {
                    NodeDecision::Act(Effect::Follow(upstream), epoch, Reason::WithinHistory)
                }
                Lineage::Within if view.chores.configure && (*streaming || !*wal_gone) => {
                    NodeDecision::Act(Effect::Follow(upstream), epoch, Reason::SettingsChanged)
                }
                Lineage::Within if *streaming => NodeDecision::Rest(Reason::Streaming),
                Lineage::Within if *wal_gone && *idle_ms >= STREAM_STALLED_MS => {
                    copy(Effect::Clone(clone_from), Reason::WalGone)
                }
                Lineage::Within => NodeDecision::Rest(Reason::Connecting),
            }
        }
        // A standby that makes no progress is killed and started again: it acknowledges nothing.
        Instance::Hung { .. } => NodeDecision::Act(Effect::Fence, epoch, Reason::Hung),
        Instance::Unknown | Instance::Unusable(_) | Instance::Primary { .. } | Instance::Frozen { .. } => {
            NodeDecision::Rest(Reason::NotProbed)
        }
    }
}
