//! ✦ A switchover that is to begin later: kept here, begun once, or dropped with a reason.

use super::{ClusterState, Phase, refused};
use crate::command::{Dropped, Handover, Member, Outcome, Scheduled, WallTime};

impl ClusterState {
    /// Puts a switchover down for later, or takes it off.
    pub(super) fn schedule(&mut self, scheduled: Option<&Scheduled>) -> Outcome {
        let Some(scheduled) = scheduled else {
            return if self.scheduled.take().is_some() {
                Outcome::Done
            } else {
                refused("no switchover is scheduled")
            };
        };
        if self.scheduled.is_some() {
            return refused("another switchover is scheduled");
        }
        if self.phase != Phase::Established || !self.leads(scheduled.from) {
            return refused("the primary is another one by now");
        }
        let able = |to| self.members.get(&to).is_some_and(Member::may_lead) && to != scheduled.from;
        if scheduled.to.is_some_and(|to| !able(to)) {
            return refused("that member cannot take over");
        }
        self.scheduled = Some(scheduled.clone());
        self.schedule_dropped = None;
        Outcome::Done
    }

    /// Begins the switchover that is scheduled for `at`; the same entry takes it off, so that it begins once.
    pub(super) fn begin_scheduled(&mut self, at: WallTime) -> Outcome {
        let Some(scheduled) = self.scheduled.clone().filter(|scheduled| scheduled.at == at) else {
            return refused("no switchover is scheduled for that time");
        };
        if !self.leads(scheduled.from) {
            return refused("the primary is another one by now");
        }
        let handover = Handover { epoch: self.epoch, to: scheduled.to, leaving: false };
        match self.set_handover(Some(&handover)) {
            Outcome::Done | Outcome::Prepared(_) => {}
            outcome @ Outcome::Refused(_) => return outcome,
        }
        self.scheduled = None;
        Outcome::Done
    }

    /// Takes off the switchover that is scheduled for `at`, because it could not begin.
    pub(super) fn drop_scheduled(&mut self, at: WallTime, why: &str) -> Outcome {
        match self.scheduled.take_if(|scheduled| scheduled.at == at) {
            Some(scheduled) => {
                self.schedule_dropped = Some(Dropped { scheduled, why: why.to_owned() });
                Outcome::Done
            }
            None => refused("no switchover is scheduled for that time"),
        }
    }
}
