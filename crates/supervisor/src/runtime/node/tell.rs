//! What this member reports of itself.

use rhone_consensus::state::ClusterState;

use super::{Facts, NodeLoop};
use crate::decide::{self, Effect};
use crate::view::{Activity, Instance, Report, VoterReport};

impl NodeLoop {
    pub(super) fn report(&self, state: &ClusterState) {
        if self.instance == Instance::Unknown {
            return;
        }
        let hard = self.shared.hard.get();
        let remembered = self.local.facts().clone();
        let start_failed = self.local.start_failed();
        let (data, stranger) = self.local.data_facts();
        let facts = Facts {
            instance: &self.instance,
            promise: hard.promise,
            unfinished: hard.unfinished(),
            copied: hard.copied(),
            stranger,
            policy: remembered.policy,
            secured: remembered.secured,
            rewinds_failed: remembered.rewinds_failed,
            start_failed: start_failed.as_deref(),
            behind: self.behind(),
        };
        // A look that is under way may change the facts: nothing is said to be down on stale ones.
        let settled = self.looking.is_none() && self.fresh;
        let down = if settled { decide::down(&self.view(state, &facts)) } else { None };
        let kept = self.shared.own.borrow().as_ref().and_then(|report| report.down.clone());
        let down = if settled { down } else { kept.filter(|(epoch, _)| *epoch == state.epoch) };
        let lease = self.local.lease.status();
        let now = self.shared.clock.now();
        let report = Report {
            instance: self.instance.clone(),
            activity: self.activity(),
            voter: VoterReport::default(),
            promise: hard.promise,
            leaving: self.leaving.is_some(),
            down,
            system_id: remembered.system_id,
            data,
            streams: remembered.streams.told(),
            secured: remembered.secured,
            highest_timeline: remembered.highest_timeline,
            lease_left_ms: (lease.until > now).then(|| {
                // Coarse, so that an idle report does not change ten times a second.
                u64::try_from(lease.until.saturating_since(now).as_millis()).unwrap_or(0) / 500 * 500
            }),
            counts_by: (lease.until > now)
                .then(|| lease.timing_version.map(|version| (lease.epoch, version)))
                .flatten(),
            version: remembered.probe.as_ref().map(|probe| version_text(probe.version)),
            left: remembered.left,
            note: self
                .note(remembered.start_failure.map(|why| format!("does not start: {why}")).or(start_failed))
                .or(remembered.unreadable)
                .or_else(|| remembered.refused_lines.first().map(|line| format!("not taken: {line}")))
                .or(remembered.kept),
            server: self.local.server_facts(),
        };
        self.shared.own.send_if_modified(|known| {
            let changed = known.as_ref() != Some(&report);
            if changed {
                *known = Some(report);
            }
            changed
        });
    }

    fn note(&self, trouble: Option<String>) -> Option<String> {
        match &self.instance {
            Instance::Unusable(reason) => Some(reason.clone()),
            Instance::Unknown
            | Instance::Absent
            | Instance::Stopped { .. }
            | Instance::Starting
            | Instance::Standby { .. }
            | Instance::Primary { .. }
            | Instance::Frozen { .. }
            | Instance::Hung { .. } => trouble,
        }
    }

    fn activity(&self) -> Option<Activity> {
        match self.running.as_ref().map(|running| running.effect) {
            Some(Effect::InitDb | Effect::Clone(_)) => Some(Activity::Cloning),
            Some(Effect::Rewind(_)) => Some(Activity::Rewinding),
            Some(Effect::Promote | Effect::OpenGate) => Some(Activity::Promoting),
            Some(
                Effect::Start(_)
                | Effect::Follow(_)
                | Effect::Revoke
                | Effect::SetPolicy
                | Effect::Fence
                | Effect::HandOver
                | Effect::Stop,
            )
            | None => None,
        }
    }
}

/// Prints `server_version_num` as people write it.
fn version_text(number: u32) -> String {
    format!("{}.{}", number / 10_000, number % 10_000)
}
