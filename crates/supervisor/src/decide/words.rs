//! ✦ Decisions in words for people: the same in `explain`, in the log and in `replay`.

use std::fmt;

use rhone_consensus::command::{ClusterCommand, RestartStep, WallTime};

use super::{ClusterDecision, Effect, NodeDecision};

impl ClusterDecision {
    /// Returns the decision's name in logs, metrics and status: that of what it waits for, or `propose`.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Propose(_) => "propose",
            Self::Revoke { wait, .. } | Self::Wait(wait) => wait.code(),
        }
    }
}

impl fmt::Display for ClusterDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Propose(command) => f.write_str(&command_in_words(command)),
            Self::Revoke { epoch, members, wait } => {
                write!(f, "asks {} members to promise epoch {epoch}; {wait}", members.len())
            }
            Self::Wait(wait) => write!(f, "{wait}"),
        }
    }
}

impl NodeDecision {
    /// Returns the name of the decision's reason in logs, metrics and status.
    pub fn code(&self) -> &'static str {
        match self {
            Self::Act(_, _, reason) | Self::Rest(reason) => reason.code(),
        }
    }
}

impl fmt::Display for NodeDecision {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Act(effect, epoch, _) => write!(f, "{effect} in epoch {epoch}"),
            Self::Rest(_) => f.write_str("rests"),
        }
    }
}

impl fmt::Display for Effect {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Start(Some(node)) => write!(f, "start, receiving from {node}"),
            Self::Start(None) => f.write_str("start, receiving from nobody"),
            Self::Follow(node) => write!(f, "follow {node}"),
            Self::Rewind(node) => write!(f, "rewind from {node}"),
            Self::Clone(node) => write!(f, "clone from {node}"),
            Self::InitDb
            | Self::Revoke
            | Self::Promote
            | Self::SetPolicy
            | Self::OpenGate
            | Self::Fence
            | Self::HandOver
            | Self::Stop => f.write_str(&self.code().replace('_', " ")),
        }
    }
}

/// Prints a time as it is shown everywhere.
fn shown(at: WallTime) -> String {
    crate::civil::WallTime::from_ms(at.0).to_string()
}

/// Says what a command would do.
pub fn command_in_words(command: &ClusterCommand) -> String {
    match command {
        ClusterCommand::Found { .. } => "found the cluster".to_owned(),
        ClusterCommand::Admit(member) => format!("admit {}", member.name),
        ClusterCommand::Remove(node) => format!("remove {node}"),
        ClusterCommand::SetSystemId(system_id) => format!("this is system {system_id}"),
        ClusterCommand::Prepare { reason, .. } => format!("open an epoch: {reason}"),
        ClusterCommand::Grant(grant) => {
            format!(
                "grant epoch {} to {} at {}, timeline {}",
                grant.epoch, grant.owner, grant.base, grant.timeline
            )
        }
        ClusterCommand::Established { epoch, timeline, .. } => {
            format!("epoch {epoch} is established on timeline {timeline}")
        }
        ClusterCommand::AddPolicy { epoch, kind } => {
            format!("epoch {epoch} may also acknowledge a commit {kind}")
        }
        ClusterCommand::NarrowPolicies { epoch, number } => {
            format!("epoch {epoch} acknowledges by policy {number} only")
        }
        ClusterCommand::AcceptLoss(accepted) => {
            format!("epoch {} may lose acknowledged commits, says {}", accepted.epoch, accepted.by)
        }
        ClusterCommand::SetHandover(Some(_)) => "hand over".to_owned(),
        ClusterCommand::SetHandover(None) => "end the handover".to_owned(),
        ClusterCommand::RecordLeft { node, end } => format!("{node} left behind what it held up to {end}"),
        ClusterCommand::Schedule(Some(scheduled)) => {
            format!("hand over at {}, says {}", shown(scheduled.at), scheduled.by)
        }
        ClusterCommand::Schedule(None) => "take the scheduled switchover off".to_owned(),
        ClusterCommand::BeginScheduled { at } => {
            format!("hand over, as scheduled for {}", shown(*at))
        }
        ClusterCommand::DropScheduled { why, .. } => format!("drop the scheduled switchover: {why}"),
        ClusterCommand::StepRestart { node, step } => match step {
            RestartStep::Schedule { at, by } => format!("restart {node} at {}, says {by}", shown(*at)),
            RestartStep::Cancel => format!("take the scheduled restart of {node} off"),
            RestartStep::Begin { at, .. } => format!("restart {node}, as scheduled for {}", shown(*at)),
            RestartStep::End { why: None, .. } => format!("{node} is restarted, as scheduled"),
            RestartStep::End { why: Some(why), .. } => format!("drop the scheduled restart of {node}: {why}"),
        },
        ClusterCommand::SettleTiming { epoch, .. } => {
            format!("the owner of epoch {epoch} counts by the timings that were set")
        }
        ClusterCommand::SetPaused(true) => "pause".to_owned(),
        ClusterCommand::SetPaused(false) => "resume".to_owned(),
        ClusterCommand::SetFenced { node, fenced: true } => format!("fence {node}"),
        ClusterCommand::SetFenced { node, fenced: false } => format!("unfence {node}"),
        ClusterCommand::ChangeSettings { expected, by, .. } => {
            format!("change version {expected} of the settings, says {by}")
        }
        ClusterCommand::SetLearner { node, learner: true } => format!("keep {node} from voting"),
        ClusterCommand::SetLearner { node, learner: false } => format!("let {node} vote"),
    }
}
