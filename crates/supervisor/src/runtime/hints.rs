//! ✦ What a person does after the replicated state refused a command: it knows the reason, and none of the commands that
//! are typed.

use rhone_consensus::command::{ClusterCommand, RestartStep};

/// For whoever asked for what an operator does not ask for.
const LOOK: &str = "`rhone status` and `rhone explain` show what the cluster does";

/// Returns what to type after `command` was refused.
pub(super) fn after(command: &ClusterCommand) -> &'static str {
    match command {
        ClusterCommand::SetHandover(_) => {
            "try again once `rhone status` shows an established primary and a standby that streams; `rhone explain` says \
             what goes on"
        }
        ClusterCommand::Schedule(Some(_)) => {
            "`rhone status` shows the primary and what is scheduled; `rhone switchover --cancel` takes that off"
        }
        ClusterCommand::Schedule(None) => {
            "`rhone switchover --at TIME` schedules one; `rhone status` shows it from then on"
        }
        ClusterCommand::SetFenced { fenced: true, .. } => {
            "`rhone status` shows who leads and who is fenced; `rhone switchover` makes another member primary first"
        }
        ClusterCommand::SetFenced { fenced: false, .. } => "`rhone status` shows who is fenced",
        ClusterCommand::StepRestart { step: RestartStep::Cancel, .. } => {
            "`rhone status` shows what is scheduled; `rhone restart NAME --at TIME` schedules one"
        }
        ClusterCommand::StepRestart { .. } => {
            "`rhone status` shows what is scheduled; `rhone restart NAME --cancel` takes it off"
        }
        ClusterCommand::Remove(_) => {
            "`rhone switchover` makes another member primary first: one with a priority above 0, and not tagged \
             no-failover or delayed"
        }
        ClusterCommand::SetLearner { .. } => "`rhone member list` shows who votes",
        ClusterCommand::ChangeSettings { .. } => {
            "`rhone settings` shows the present ones, `rhone settings history` their versions"
        }
        ClusterCommand::Prepare { .. } | ClusterCommand::AcceptLoss(_) => {
            "`rhone explain` says what the election waits for; look, and ask again"
        }
        ClusterCommand::SetPaused(_)
        | ClusterCommand::Found { .. }
        | ClusterCommand::Admit(_)
        | ClusterCommand::SetSystemId(_)
        | ClusterCommand::Grant(_)
        | ClusterCommand::Established { .. }
        | ClusterCommand::AddPolicy { .. }
        | ClusterCommand::NarrowPolicies { .. }
        | ClusterCommand::RecordLeft { .. }
        | ClusterCommand::BeginScheduled { .. }
        | ClusterCommand::DropScheduled { .. }
        | ClusterCommand::SettleTiming { .. } => LOOK,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rhone_consensus::ids::NodeId;

    #[test]
    fn each_refusal_says_what_to_type() {
        let node = NodeId(1);
        for (command, expected) in [
            (ClusterCommand::Schedule(None), "`rhone switchover --at TIME`"),
            (ClusterCommand::SetFenced { node, fenced: true }, "`rhone switchover`"),
            (ClusterCommand::SetFenced { node, fenced: false }, "`rhone status`"),
            (
                ClusterCommand::StepRestart { node, step: RestartStep::Cancel },
                "`rhone restart NAME --at TIME`",
            ),
            (ClusterCommand::Remove(node), "`rhone switchover`"),
            (ClusterCommand::SetLearner { node, learner: true }, "`rhone member list`"),
            (ClusterCommand::SetHandover(None), "`rhone explain`"),
            (ClusterCommand::SetPaused(true), "`rhone status`"),
        ] {
            let hint = after(&command);
            assert!(hint.contains(expected), "{command:?}: {hint}");
        }
    }
}
