//! ✦ Changes of the timings: both the old and the new ones hold until nothing lasts by the old ones (decision 0036).

use serde::{Deserialize, Serialize};

use super::{ClusterState, Phase, refused};
use crate::command::Outcome;
use crate::ids::{Epoch, LogIndex};
use crate::settings::Timing;

/// Which timings hold beside those of the settings.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct TimingChange {
    /// The entry that set the newest timings; 0: the founding.
    pub version: LogIndex,
    /// Those before, while they hold too.
    pub before: Option<Timing>,
}

impl ClusterState {
    /// Returns what the owner counts its lease by: the shorter one while the timings are changed.
    pub fn counting(&self) -> Timing {
        self.timing_change.before.map_or(self.settings.timing, |old| self.settings.timing.or_shorter(old))
    }

    /// Returns what voters age by, and the leader suspects by: the longer one while the timings are changed.
    pub fn ageing(&self) -> Timing {
        self.timing_change.before.map_or(self.settings.timing, |old| self.settings.timing.or_longer(old))
    }

    /// The timings of the settings are about to be replaced.
    pub(super) fn begin_timing(&mut self, index: LogIndex) {
        // Before any epoch nobody can count by the old ones.
        let before = (self.phase != Phase::None).then_some(self.settings.timing);
        self.timing_change = TimingChange { version: index, before };
    }

    pub(super) fn settle_timing(&mut self, epoch: Epoch, version: LogIndex) -> Outcome {
        if self.current_grant().is_none_or(|grant| grant.epoch != epoch) {
            return refused("the epoch has no owner now");
        }
        if self.timing_change.version != version || self.timing_change.before.is_none() {
            return refused("that change of the timings is not under way");
        }
        self.timing_change.before = None;
        Outcome::Done
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{ClusterCommand, Grant, Member, MemberKind, PrepareReason, WallTime};
    use crate::ids::{DataId, Incarnation, NodeId};
    use crate::policy::PolicyKind;
    use crate::settings::Settings;
    use rhone_pgctl::wal::{Lsn, Timeline, WalPosition};

    fn founded() -> ClusterState {
        let member = Member {
            node: NodeId(1),
            name: "pg-1".to_owned(),
            kind: MemberKind::Data,
            incarnation: Incarnation(1),
            address: String::new(),
            postgres: String::new(),
            http: String::new(),
            priority: 1,
            tags: crate::tags::Tags::default(),
        };
        let found = ClusterCommand::Found {
            cluster: "main".to_owned(),
            founder: NodeId(1),
            members: vec![member],
            settings: Settings::default(),
        };
        let mut state = ClusterState::default();
        assert_eq!(state.apply(LogIndex(1), &found), Outcome::Done);
        state
    }

    /// Steps: `prepare`, `grant`, `lease MS`, `settle EPOCH VERSION`, each at the next log index from 2 on. The
    /// answer: for each `COUNTED/AGED` in ms of lease, or why it was refused.
    #[track_caller]
    fn check(steps: &str, expected: &str) {
        let mut state = founded();
        let mut told = Vec::new();
        for (at, step) in (2..).zip(steps.split(", ")) {
            let words: Vec<&str> = step.split(' ').collect();
            let number = |at: usize| words[at].parse::<u64>().expect("a number");
            let command = match words[0] {
                "prepare" => ClusterCommand::Prepare { reason: PrepareReason::Operator, at: WallTime(0) },
                "grant" => ClusterCommand::Grant(Grant {
                    epoch: state.epoch,
                    owner: NodeId(1),
                    base: WalPosition::new(Timeline::new(1), Lsn::new(1)),
                    timeline: Timeline::new(u32::try_from(at).expect("small")),
                    data: DataId(1),
                    policy: PolicyKind::Async { max_lag: 1 },
                    evidence: Vec::new(),
                    lost: None,
                }),
                "lease" => {
                    let mut settings = Box::new(state.settings.clone());
                    settings.timing.lease_ms = u32::try_from(number(1)).expect("small");
                    let expected = state.settings_version;
                    ClusterCommand::ChangeSettings { expected, settings, by: String::new(), at: WallTime(0) }
                }
                _ => ClusterCommand::SettleTiming { epoch: Epoch(number(1)), version: LogIndex(number(2)) },
            };
            told.push(match state.apply(LogIndex(at), &command) {
                Outcome::Refused(why) => why,
                Outcome::Done | Outcome::Prepared(_) => {
                    format!("{}/{}", state.counting().lease_ms, state.ageing().lease_ms)
                }
            });
        }
        assert_eq!(told.join(", "), expected, "{steps}");
    }

    #[test]
    fn while_timings_change_the_owner_counts_by_the_shorter_and_voters_age_by_the_longer() {
        // A shorter lease, then a longer one.
        check(
            "prepare, grant, lease 600, settle 2 4, lease 1500, settle 2 6",
            "1500/1500, 1500/1500, 600/1500, 600/600, 600/1500, 1500/1500",
        );
        // One at a time; other settings go on.
        check(
            "prepare, grant, lease 600, lease 700",
            "1500/1500, 1500/1500, 600/1500, \
             the timings are being changed: the primary has not taken the last ones over yet",
        );
        // Before the first epoch nobody counts by anything.
        check("lease 600, prepare, grant", "600/600, 600/600, 600/600");
        // Settled only by the word of the present epoch's owner, and about that very change.
        check(
            "prepare, grant, lease 600, settle 2 3, prepare, settle 2 4, grant, settle 2 4, settle 6 4, settle 6 4",
            "1500/1500, 1500/1500, 600/1500, that change of the timings is not under way, 600/1500, \
             the epoch has no owner now, 600/1500, the epoch has no owner now, 600/600, \
             that change of the timings is not under way",
        );
    }
}
