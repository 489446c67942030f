//! ✦ Changes of the settings: versions, who made them, and what they changed.

use super::{ClusterState, refused};
use crate::command::{Outcome, WallTime};
use crate::ids::LogIndex;
use crate::settings::{Settings, SettingsChange, SyncMode, differences};

/// How many changes of the settings are kept, each with what it changed: the way back.
const SETTINGS_LOG_LIMIT: usize = 50;

impl ClusterState {
    /// Replaces the settings by the next version.
    ///
    /// What commits wait for does not follow from the settings but from the policies: those stay, and the
    /// leader adds and drops them one step at a time as ever (docs/safety.md 6, decision 0027).
    pub(super) fn change_settings(
        &mut self,
        index: LogIndex,
        expected: u64,
        settings: &Settings,
        (by, at): (&str, WallTime),
    ) -> Outcome {
        if !self.is_founded() {
            return refused("the cluster is not founded yet");
        }
        if expected != self.settings_version {
            return Outcome::Refused(format!("the settings are at version {} by now", self.settings_version));
        }
        let timing = settings.timing != self.settings.timing;
        if timing && self.timing_change.before.is_some() {
            return refused(
                "the timings are being changed: the primary has not taken the last ones over yet",
            );
        }
        if let Some(reason) = self.unfit_sync(settings) {
            return Outcome::Refused(reason);
        }
        let changes = differences(&self.settings, settings);
        if changes.is_empty() {
            return refused("nothing would change");
        }
        if timing {
            self.begin_timing(index);
        }
        self.settings = settings.clone();
        self.settings_version = self.settings_version.saturating_add(1);
        let change = SettingsChange { version: self.settings_version, at, by: by.to_owned(), changes };
        self.settings_log.push_back(change);
        while self.settings_log.len() > SETTINGS_LOG_LIMIT {
            self.settings_log.pop_front();
        }
        Outcome::Done
    }

    /// Says why so many standbys cannot be waited for.
    fn unfit_sync(&self, settings: &Settings) -> Option<String> {
        let required = settings.sync_required?;
        let changed =
            (settings.sync, settings.sync_required) != (self.settings.sync, self.settings.sync_required);
        if settings.sync == SyncMode::Off {
            return changed.then(|| "sync-required means nothing with sync = off".to_owned());
        }
        let standbys = self.data_members().count().saturating_sub(1);
        let fits = (1..=standbys).contains(&(required as usize));
        (changed && !fits).then(|| {
            format!("sync-required = {required}, and there are {standbys} standbys: no commit would be acknowledged")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::command::{ClusterCommand, Member, MemberKind};
    use crate::ids::{Incarnation, NodeId};

    fn founded() -> ClusterState {
        let member = |node: u64| Member {
            node: NodeId(node),
            name: format!("pg-{node}"),
            kind: MemberKind::Data,
            incarnation: Incarnation(u128::from(node)),
            address: String::new(),
            postgres: String::new(),
            http: String::new(),
            priority: 1,
            tags: crate::tags::Tags::default(),
        };
        let mut state = ClusterState::default();
        let command = ClusterCommand::Found {
            cluster: "main".to_owned(),
            founder: NodeId(1),
            members: vec![member(1), member(2), member(3)],
            settings: Settings::default(),
        };
        assert_eq!(state.apply(LogIndex(1), &command), Outcome::Done);
        state
    }

    /// Applies a change to what is so; returns the outcome, the version, and the last change in words.
    #[track_caller]
    fn check(state: &mut ClusterState, expected: u64, change: impl FnOnce(&mut Settings), told: &str) {
        let mut settings = state.settings.clone();
        change(&mut settings);
        let settings = Box::new(settings);
        let command =
            ClusterCommand::ChangeSettings { expected, settings, by: "ann@pc".to_owned(), at: WallTime(7) };
        let before = state.clone();
        let text = match state.apply(LogIndex(9), &command) {
            Outcome::Done => state.settings_log.back().map_or_else(String::new, |last| {
                let diffs = last.changes.iter().map(|diff| {
                    let word = |text: &Option<String>| text.clone().unwrap_or_else(|| "-".to_owned());
                    format!(" {}: {} -> {}", diff.key, word(&diff.before), word(&diff.after))
                });
                format!("{} by {}{}", last.version, last.by, diffs.collect::<String>())
            }),
            Outcome::Refused(reason) => {
                assert_eq!(*state, before, "a refusal changes nothing");
                reason
            }
            Outcome::Prepared(_) => "prepared".to_owned(),
        };
        assert_eq!(text, told);
        assert_eq!(state.broken_invariant(), None);
    }

    #[test]
    fn each_version_says_what_it_changed_and_a_stale_one_is_refused() {
        let mut state = founded();
        let set = |name: &'static str, value: &'static str| {
            move |s: &mut Settings| drop(s.postgres.insert(name.to_owned(), value.to_owned()))
        };
        check(&mut state, 1, set("work_mem", "8MB"), "2 by ann@pc postgres.work_mem: - -> 8MB");
        check(&mut state, 1, set("work_mem", "9MB"), "the settings are at version 2 by now");
        check(&mut state, 2, |_| {}, "nothing would change");
        check(&mut state, 2, |s| s.sync = SyncMode::Quorum, "3 by ann@pc sync: off -> quorum");
        check(&mut state, 3, |s| s.sync_required = Some(2), "4 by ann@pc sync-required: - -> 2");
        check(
            &mut state,
            4,
            |s| s.sync_required = Some(3),
            "sync-required = 3, and there are 2 standbys: no commit would be acknowledged",
        );
        check(&mut state, 4, |s| s.sync = SyncMode::Off, "sync-required means nothing with sync = off");
        check(
            &mut state,
            4,
            |s| (s.sync, s.sync_required, s.max_lag_on_failover) = (SyncMode::Off, None, 64 << 20),
            "5 by ann@pc max-lag-on-failover: 1MB -> 64MB sync: quorum -> off sync-required: 2 -> -",
        );
        for version in 5..70 {
            check(
                &mut state,
                version,
                |s| s.max_lag_on_failover = version,
                &format!(
                    "{} by ann@pc max-lag-on-failover: {} -> {version}",
                    version + 1,
                    if version == 5 { "64MB".to_owned() } else { (version - 1).to_string() }
                ),
            );
        }
        assert_eq!(state.settings_log.len(), SETTINGS_LOG_LIMIT);
    }

    #[test]
    fn who_was_removed_does_not_come_back_with_its_store() {
        let mut state = founded();
        let third = state.members[&NodeId(3)].clone();
        let mut apply = |command| match state.apply(LogIndex(9), &command) {
            Outcome::Done => "done".to_owned(),
            Outcome::Refused(reason) => reason,
            Outcome::Prepared(_) => "prepared".to_owned(),
        };
        assert_eq!(apply(ClusterCommand::SetLearner { node: NodeId(3), learner: true }), "done");
        assert_eq!(
            apply(ClusterCommand::SetLearner { node: NodeId(3), learner: true }),
            "the member is kept from voting already"
        );
        // A wiped member under its old name still only learns.
        let other = |node| Member { node: NodeId(node), ..third.clone() };
        assert_eq!(apply(ClusterCommand::Admit(other(4))), "done");
        assert_eq!(apply(ClusterCommand::SetLearner { node: NodeId(4), learner: false }), "done");
        assert_eq!(apply(ClusterCommand::Remove(NodeId(4))), "done");
        assert_eq!(apply(ClusterCommand::Remove(NodeId(4))), "no such member");
        assert_eq!(
            apply(ClusterCommand::Admit(other(4))),
            "this store was removed from the cluster: empty its state directory to join anew"
        );
        assert_eq!(apply(ClusterCommand::Admit(other(5))), "done");
        assert_eq!(apply(ClusterCommand::Remove(NodeId(2))), "done");
        assert_eq!(apply(ClusterCommand::Remove(NodeId(5))), "done");
        assert_eq!(apply(ClusterCommand::Remove(NodeId(1))), "no other member could be primary");
    }
}
