//! The cluster's events: what each change of the replicated state means, for people and programs.
//!
//! Every member tells all of them, from what it applies. A bounded number is remembered in memory, and nothing is
//! written to a disk: of what happened before its start a member tells what the state remembers, which is each
//! change of primary and of the settings.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, PoisonError};

use rhone_consensus::command::Member;
use rhone_consensus::ids::{Epoch, NodeId};
use rhone_consensus::state::{ClusterState, HistoryEntry};
use tokio::sync::broadcast;

use crate::civil::WallTime;
use crate::runtime::clock::wall_time;
use crate::runtime::shared::Shared;
use crate::status::{Event, Subscription};

/// How many events are remembered.
const REMEMBERED: usize = 200;

/// How far a reader may fall behind before it misses the oldest.
const BEHIND: usize = 64;

/// What happened, and who wants to hear of it.
#[derive(Debug)]
pub(super) struct Events {
    recent: Mutex<VecDeque<Event>>,
    tell: broadcast::Sender<Event>,
}

impl Events {
    /// Begins to watch; ends with Raft.
    pub(super) fn start(shared: &Arc<Shared>) -> Arc<Self> {
        let events = Arc::new(Self { recent: Mutex::default(), tell: broadcast::Sender::new(BEHIND) });
        tokio::spawn(watch(Arc::clone(shared), Arc::clone(&events)));
        events
    }

    /// Returns what is remembered, and all that comes after it.
    pub(super) fn subscribe(&self) -> Subscription {
        let recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        Subscription { recent: recent.iter().cloned().collect(), next: self.tell.subscribe() }
    }

    fn add(&self, event: Event) {
        let mut recent = self.recent.lock().unwrap_or_else(PoisonError::into_inner);
        if recent.len() >= REMEMBERED {
            recent.pop_front();
        }
        recent.push_back(event.clone());
        // Nobody listening is fine.
        drop(self.tell.send(event));
    }
}

async fn watch(shared: Arc<Shared>, events: Arc<Events>) {
    let mut states = shared.consensus.state();
    let mut raft = shared.consensus.status_changes();
    // What is applied before a leader is heard happened before this start.
    let mut before = None;
    let mut led = None;
    loop {
        let now = Arc::clone(&states.borrow_and_update());
        raft.borrow_and_update();
        let view = shared.consensus.status();
        let tell = |found: Found| {
            let present = (now.state.epoch.0 > 0).then_some(now.state.epoch);
            events.add(Event {
                time: Some(found.at.unwrap_or_else(|| WallTime::from_ms(wall_time()))),
                node: found.about,
                epoch: found.epoch.or(present),
                reason: found.reason.to_owned(),
                message: found.message,
            });
        };
        match &before {
            Some(before) => changes(before, &now.state).into_iter().for_each(tell),
            None if view.leader.is_some() => remembered(&now.state).into_iter().for_each(tell),
            None => {}
        }
        let leader = view.leader.and_then(|leader| view.nodes.get(&leader)).map(|node| node.name.clone());
        if let Some(leader) = leader {
            if led.as_ref() != Some(&leader) {
                tell(Found::of(&leader, "raft_leader", format!("{leader} leads raft, term {}", view.term)));
                led = Some(leader);
            }
            before = Some(now.state.clone());
        } else if before.is_some() {
            before = Some(now.state.clone());
        }
        tokio::select! {
            changed = states.changed() => if changed.is_err() { return },
            changed = raft.changed() => if changed.is_err() { return },
        }
    }
}

/// Something that happened.
#[derive(Debug)]
struct Found {
    /// The member that it is about; none: the cluster.
    about: Option<String>,
    reason: &'static str,
    message: String,
    /// When, where the state says so.
    at: Option<WallTime>,
    /// In which epoch, where that is not the present one.
    epoch: Option<Epoch>,
}

impl Found {
    fn new(reason: &'static str, message: String) -> Self {
        Self { about: None, reason, message, at: None, epoch: None }
    }

    fn of(member: &str, reason: &'static str, message: String) -> Self {
        Self { about: Some(member.to_owned()), ..Self::new(reason, message) }
    }

    fn established(entry: &HistoryEntry) -> Self {
        let HistoryEntry { to, epoch, timeline, gap_ms, .. } = entry;
        let text = format!(
            "{to} is primary in epoch {epoch} on timeline {timeline}, after {}.{:02} s without one",
            gap_ms / 1000,
            gap_ms % 1000 / 10
        );
        let at = Some(WallTime::from_ms(entry.at.0));
        Self { at, epoch: Some(*epoch), ..Self::of(to, "established", text) }
    }
}

/// Says what the state remembers of the time before, oldest first.
fn remembered(state: &ClusterState) -> Vec<Found> {
    let settings = state.settings_log.iter().map(|change| {
        let keys: Vec<&str> = change.changes.iter().map(|diff| diff.key.as_str()).collect();
        let text =
            format!("version {} of the settings, by {}: {}", change.version, change.by, keys.join(", "));
        Found { at: Some(WallTime::from_ms(change.at.0)), ..Found::new("settings_changed", text) }
    });
    let mut found: Vec<Found> = state.history.iter().map(Found::established).chain(settings).collect();
    found.sort_by_key(|found| found.at.map(WallTime::as_ms));
    found
}

/// Says what lies between two states, in the order in which it was decided.
fn changes(before: &ClusterState, after: &ClusterState) -> Vec<Found> {
    let name = |node: NodeId| {
        let member = after.members.get(&node).or_else(|| before.members.get(&node));
        member.map_or_else(|| node.to_string(), |member| member.name.clone())
    };
    let mut found = Vec::new();
    if !before.is_founded() && after.is_founded() {
        found.push(Found::new("founded", format!("the cluster {} is founded", after.cluster)));
    }
    for Member { name, .. } in after.members.values().filter(|m| !before.members.contains_key(&m.node)) {
        found.push(match before.member_named(name) {
            Some(_) => Found::of(name, "member_replaced", format!("{name} has another store and rejoins")),
            None => Found::of(name, "member_added", format!("{name} is a member")),
        });
    }
    for Member { name, .. } in before.members.values().filter(|m| after.member_named(&m.name).is_none()) {
        found.push(Found::of(name, "member_removed", format!("{name} is no member any more")));
    }
    if !before.paused && after.paused {
        found.push(Found::new("paused", "automatic failover is off".to_owned()));
    } else if before.paused && !after.paused {
        found.push(Found::new("resumed", "automatic failover is on".to_owned()));
    }
    found.extend(schedule(before, after, &name).into_iter().map(|(reason, text)| Found::new(reason, text)));
    if let Some(handover) = after.handover.as_ref().filter(|now| before.handover.as_ref() != Some(now)) {
        let to = handover.to.map_or_else(|| "the best standby".to_owned(), name);
        let about = after.last_owner().map(name);
        found.push(Found { about, ..Found::new("handover", format!("the primary hands over to {to}")) });
    }
    if after.epoch > before.epoch {
        let reason = after.reason.as_ref().map_or_else(String::new, |reason| format!(": {reason}"));
        found.push(Found::new("epoch_opened", format!("epoch {} is opened{reason}", after.epoch)));
    }
    if let Some(grant) = after.grant.as_ref().filter(|now| before.grant.as_ref() != Some(now)) {
        let owner = name(grant.owner);
        let text = format!(
            "{owner} is granted epoch {} at {}, timeline {}",
            grant.epoch, grant.base, grant.timeline
        );
        found.push(Found::of(&owner, "granted", text));
    }
    let told = before.history.back().map(|entry| entry.epoch);
    found.extend(after.history.iter().filter(|entry| told < Some(entry.epoch)).map(Found::established));
    let held =
        |state: &ClusterState| -> BTreeSet<String> { state.fenced.iter().map(|node| name(*node)).collect() };
    let (held_before, held_after) = (held(before), held(after));
    for name in held_after.difference(&held_before) {
        found.push(Found::of(name, "fenced", format!("{name} is fenced by an operator")));
    }
    for name in held_before.difference(&held_after) {
        found.push(Found::of(name, "unfenced", format!("{name} is let go")));
    }
    if before.settings != after.settings && before.is_founded() {
        found.push(Found::new("settings_changed", "the settings have changed".to_owned()));
    }
    found
}

/// Says what became of the switchover that is put down for later.
fn schedule(
    before: &ClusterState,
    after: &ClusterState,
    name: &impl Fn(NodeId) -> String,
) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    if let Some(scheduled) = after.scheduled.as_ref().filter(|now| before.scheduled.as_ref() != Some(now)) {
        let to = scheduled.to.map_or_else(|| "the best standby".to_owned(), name);
        let (at, by) = (WallTime::from_ms(scheduled.at.0), &scheduled.by);
        found.push(("switchover_scheduled", format!("a switchover to {to} is scheduled for {at} by {by}")));
    }
    if let Some(was) = before.scheduled.as_ref().filter(|was| after.scheduled.as_ref() != Some(was)) {
        let at = WallTime::from_ms(was.at.0);
        match after.schedule_dropped.as_ref().filter(|now| before.schedule_dropped.as_ref() != Some(now)) {
            Some(dropped) => found.push((
                "switchover_dropped",
                format!("the switchover scheduled for {at} is dropped: {}", dropped.why),
            )),
            None if after.handover.is_none() => {
                found.push((
                    "switchover_cancelled",
                    format!("the switchover scheduled for {at} is cancelled"),
                ));
            }
            None => {}
        }
    }
    found.extend(restarts(before, after, name));
    found
}

/// Says what became of the restarts that are put down for later.
fn restarts(
    before: &ClusterState,
    after: &ClusterState,
    name: &impl Fn(NodeId) -> String,
) -> Vec<(&'static str, String)> {
    let mut found = Vec::new();
    for (node, scheduled) in &after.restarts {
        if before.restarts.get(node).is_none_or(|was| was.at != scheduled.at) {
            let (member, at, by) = (name(*node), WallTime::from_ms(scheduled.at.0), &scheduled.by);
            found.push(("restart_scheduled", format!("a restart of {member} is scheduled for {at} by {by}")));
        }
    }
    for (node, was) in before.restarts.iter().filter(|(node, _)| !after.restarts.contains_key(node)) {
        let (member, at) = (name(*node), WallTime::from_ms(was.at.0));
        let dropped =
            after.restart_dropped.as_ref().filter(|now| before.restart_dropped.as_ref() != Some(now));
        found.push(match dropped {
            Some((_, _, why)) => {
                ("restart_dropped", format!("the restart of {member} scheduled for {at} is dropped: {why}"))
            }
            None if was.server.is_some() => {
                ("restarted", format!("{member} is restarted, as scheduled for {at}"))
            }
            None => ("restart_cancelled", format!("the restart of {member} scheduled for {at} is cancelled")),
        });
    }
    found
}

#[cfg(test)]
mod tests {
    use rhone_consensus::command::{ClusterCommand, MemberKind, PrepareReason, WallTime as When};
    use rhone_consensus::ids::{Incarnation, LogIndex};
    use rhone_consensus::settings::{Settings, SettingsChange};
    use rhone_consensus::tags::Tags;

    use super::*;

    fn member(node: u64, name: &str) -> Member {
        Member {
            node: NodeId(node),
            name: name.to_owned(),
            kind: MemberKind::Data,
            incarnation: Incarnation(u128::from(node)),
            address: String::new(),
            postgres: String::new(),
            http: String::new(),
            priority: 1,
            tags: Tags::default(),
        }
    }

    #[test]
    fn each_change_of_the_state_is_told_once() {
        let mut state = ClusterState::default();
        let mut index = 0;
        let mut check = |command: ClusterCommand, expected: &[&str]| {
            let before = state.clone();
            index += 1;
            state.apply(LogIndex(index), &command);
            let told: Vec<String> = changes(&before, &state)
                .into_iter()
                .map(|found| {
                    let about = found.about.map_or_else(String::new, |name| format!("{name} "));
                    format!("{about}{}: {}", found.reason, found.message)
                })
                .collect();
            assert_eq!(told, expected);
        };
        let found = ClusterCommand::Found {
            cluster: "main".to_owned(),
            founder: NodeId(1),
            members: vec![member(1, "pg-1"), member(2, "pg-2")],
            settings: Settings::default(),
        };
        check(
            found,
            &[
                "founded: the cluster main is founded",
                "pg-1 member_added: pg-1 is a member",
                "pg-2 member_added: pg-2 is a member",
            ],
        );
        check(
            ClusterCommand::Prepare { reason: PrepareReason::Founding, at: When(0) },
            &["epoch_opened: epoch 2 is opened: founding"],
        );
        check(ClusterCommand::SetPaused(true), &["paused: automatic failover is off"]);
        check(ClusterCommand::SetPaused(true), &[]);
        check(ClusterCommand::SetPaused(false), &["resumed: automatic failover is on"]);
        check(
            ClusterCommand::SetFenced { node: NodeId(2), fenced: true },
            &["pg-2 fenced: pg-2 is fenced by an operator"],
        );
        check(
            ClusterCommand::Admit(member(3, "pg-2")),
            &["pg-2 member_replaced: pg-2 has another store and rejoins"], // and is still fenced
        );
        check(
            ClusterCommand::SetFenced { node: NodeId(3), fenced: false },
            &["pg-2 unfenced: pg-2 is let go"],
        );
        check(ClusterCommand::Remove(NodeId(3)), &["pg-2 member_removed: pg-2 is no member any more"]);
    }

    #[test]
    fn what_happened_before_the_start_is_told_from_the_state_with_its_time() {
        let mut state = ClusterState::default();
        for (epoch, at) in [(2, 5_000), (4, 9_000)] {
            state.history.push_back(HistoryEntry {
                at: When(at),
                from: None,
                to: format!("pg-{epoch}"),
                epoch: Epoch(epoch),
                timeline: rhone_pgctl::wal::Timeline::new(1),
                switch: "0/5A00F70".parse().expect("an LSN"),
                reason: PrepareReason::Founding,
                gap_ms: 1_870,
                lost: None,
                at_once: false,
                left: None,
                accepted: None,
            });
        }
        let changes = vec![rhone_consensus::settings::SettingDiff {
            key: "sync".to_owned(),
            before: None,
            after: Some("quorum".to_owned()),
        }];
        let (version, by) = (2, "ann@pc".to_owned());
        state.settings_log.push_back(SettingsChange { version, at: When(7_000), by, changes });
        let told: Vec<String> = remembered(&state)
            .into_iter()
            .map(|found| {
                let at = found.at.map(WallTime::as_ms);
                format!("{at:?} {:?} {}: {}", found.about, found.reason, found.message)
            })
            .collect();
        assert_eq!(
            told,
            [
                "Some(5000) Some(\"pg-2\") established: pg-2 is primary in epoch 2 on timeline 1, after 1.87 s without one",
                "Some(7000) None settings_changed: version 2 of the settings, by ann@pc: sync",
                "Some(9000) Some(\"pg-4\") established: pg-4 is primary in epoch 4 on timeline 1, after 1.87 s without one",
            ]
        );
    }
}
