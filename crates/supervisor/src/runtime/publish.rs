//! What this member shows of itself and the cluster: for `status`, HTTP and metrics.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use rhone_consensus::command::{Member, MemberKind, PrepareReason};
use rhone_consensus::ids::{Epoch, NodeId};
use rhone_consensus::state::{ClusterState, HistoryEntry as StateHistory, Phase};
use rhone_pgctl::probe::{Probe, RoleFacts};
use rhone_pgctl::wal::Lsn;
use tokio::sync::watch;

use crate::civil::WallTime;
use crate::guardian::LastResort;
use crate::runtime::clock::{BootTime, wall_time};
use crate::runtime::counts;
use crate::runtime::lease::LeaseStatus;
use crate::runtime::local::{Facts, Local};
use crate::runtime::outlook;
use crate::runtime::shared::{Shared, Table};
use crate::runtime::ticker::about;
use crate::status::figures::{Figures, Tally};
use crate::status::local::{Certificates, Counters, LocalView, PeerView, Recovery, ReplicationRow};
use crate::status::{
    ClusterStatus, CopyStatus, HistoryEntry, Kind, MemberStatus, PendingSetting, Role, ScheduledRestart,
    ScheduledSwitchover, State,
};
use crate::tls::Security;
use crate::view::{Activity, Instance, Moment, Pending, Received, Report};

/// A member that was not heard from for this long is shown as unreachable.
pub(super) const UNREACHABLE_MS: u64 = 3000;

/// How often the view is made anew when nothing changes.
const PUBLISH_EVERY: Duration = Duration::from_secs(1);

/// Returns what Postgres is and does on a member, as its report has it.
///
/// Who was primary of an epoch that is over by now is none any more, whatever its last report said:
/// until the next one nothing else is known of it.
fn role_and_state(received: Option<&Received>, epoch: Epoch, now: Moment) -> (Role, State) {
    let Some(received) = received.filter(|r| now.millis_since(r.at) < UNREACHABLE_MS) else {
        return (Role::None, State::Unreachable);
    };
    let report = &received.report;
    if let Instance::Primary { epoch: own, .. } | Instance::Frozen { epoch: own } = &report.instance
        && *own < epoch
    {
        return (Role::None, State::Unreachable);
    }
    let role = match &report.instance {
        Instance::Primary { .. } | Instance::Frozen { .. } => Role::Primary,
        Instance::Standby { .. } => Role::Standby,
        Instance::Unknown
        | Instance::Absent
        | Instance::Unusable(_)
        | Instance::Stopped { .. }
        | Instance::Starting
        | Instance::Hung { .. } => Role::None,
    };
    let state = match (report.activity, &report.instance) {
        (Some(Activity::Cloning), _) => State::Cloning,
        (Some(Activity::Rewinding), _) => State::Rewinding,
        (Some(Activity::Promoting), _) | (None, Instance::Primary { gate_open: false, .. }) => {
            State::Promoting
        }
        (None, Instance::Primary { .. }) => State::Running,
        (None, Instance::Standby { streaming: true, .. }) => State::Streaming,
        (None, Instance::Standby { .. }) => State::ArchiveRecovery,
        (None, Instance::Frozen { .. }) => State::Frozen,
        (None, Instance::Starting) if report.server.crash_recovery => State::CrashRecovery,
        (None, Instance::Starting) => State::Starting,
        (None, Instance::Stopped { clean: false, .. } | Instance::Hung { .. }) => State::Crashed,
        (None, Instance::Unknown | Instance::Absent | Instance::Unusable(_) | Instance::Stopped { .. }) => {
            State::Stopped
        }
    };
    (role, state)
}

/// Returns what a member is and does, by its kind and report.
pub(super) fn what_it_does(
    member: &Member,
    voter: bool,
    received: Option<&Received>,
    epoch: Epoch,
    now: Moment,
) -> (Role, State) {
    match member.kind {
        MemberKind::Data => role_and_state(received, epoch, now),
        MemberKind::Witness => {
            let heard = received.is_some_and(|r| now.millis_since(r.at) < UNREACHABLE_MS);
            let state = match (heard, voter) {
                (true, true) => State::Voting,
                (true, false) => State::Starting,
                (false, _) => State::Unreachable,
            };
            (Role::Witness, state)
        }
    }
}

/// Returns the cluster at a glance, as this member knows it.
pub(super) fn cluster_status(shared: &Shared) -> ClusterStatus {
    let now = shared.now();
    status_of(shared, &whole_table(shared, now), now)
}

fn status_of(shared: &Shared, table: &Table, now: Moment) -> ClusterStatus {
    let applied = Arc::clone(&shared.consensus.state().borrow());
    let state = &applied.state;
    let raft = shared.consensus.status();
    let owner = state.current_grant().map(|grant| grant.owner);
    let primary_lsn = owner.and_then(|node| lsn_of(table, node));
    let name = |node: NodeId| state.members.get(&node).map(|member| member.name.clone());
    let mut members: Vec<MemberStatus> = state
        .members
        .values()
        .map(|member| {
            let voter = raft.voters.contains(&member.node);
            member_status(member, table, voter, primary_lsn, state.epoch, now)
        })
        .collect();
    show_fenced(state, &mut members);
    members.sort_by(|a, b| a.name.cmp(&b.name));
    let writable = owner.is_some_and(|node| {
        state.phase == Phase::Established
            && table.get(&node).is_some_and(|received| {
                now.millis_since(received.at) < UNREACHABLE_MS
                    && matches!(&received.report.instance,
                        Instance::Primary { gate_open: true, epoch, .. } if *epoch == state.epoch)
            })
    });
    ClusterStatus {
        cluster: shared.config.cluster.clone(),
        system_identifier: state.system_id,
        primary: owner.and_then(name),
        raft_leader: raft.leader.and_then(|leader| raft.nodes.get(&leader).map(|node| node.name.clone())),
        term: Some(raft.term),
        epoch: (state.epoch.0 > 0).then_some(state.epoch),
        timeline: state.current_grant().map(|grant| grant.timeline),
        paused: state.paused,
        writable,
        sync: outlook::sync_status(state),
        failover_would_lose: outlook::failover_would_lose(state, table, now),
        warnings: warnings(state, raft.leader.is_some(), &members),
        members,
        settings_version: (state.settings_version > 0).then_some(state.settings_version),
        scheduled_switchover: scheduled(state),
        timing: state.is_founded().then(|| outlook::timing_status(state)),
        scheduled_restarts: scheduled_restarts(state),
    }
}

/// Returns the restarts that are to begin later.
fn scheduled_restarts(state: &ClusterState) -> Vec<ScheduledRestart> {
    let shown =
        |(node, scheduled): (&NodeId, &rhone_consensus::command::ScheduledRestart)| ScheduledRestart {
            at: WallTime::from_ms(scheduled.at.0),
            name: state.members.get(node).map_or_else(|| node.to_string(), |member| member.name.clone()),
            by: scheduled.by.clone(),
        };
    state.restarts.iter().map(shown).collect()
}

/// Returns the switchover that is to begin later.
pub(super) fn scheduled(state: &ClusterState) -> Option<ScheduledSwitchover> {
    let name = |node: NodeId| state.members.get(&node).map(|member| member.name.clone());
    state.scheduled.as_ref().map(|scheduled| ScheduledSwitchover {
        at: WallTime::from_ms(scheduled.at.0),
        from: name(scheduled.from),
        to: scheduled.to.and_then(name),
        by: scheduled.by.clone(),
    })
}

/// An instance that an operator holds is fenced once it is stopped.
fn show_fenced(state: &ClusterState, members: &mut [MemberStatus]) {
    for member in members {
        let held = state.member_named(&member.name).is_some_and(|known| state.is_fenced(known.node));
        if !held {
            continue;
        }
        match member.state {
            State::Stopped | State::Crashed => member.state = State::Fenced,
            State::Unreachable
            | State::Starting
            | State::CrashRecovery
            | State::Running
            | State::Promoting
            | State::Frozen
            | State::Streaming
            | State::ArchiveRecovery
            | State::Rewinding
            | State::Cloning
            | State::Fenced
            | State::Voting => {}
        }
        member.note = Some("fenced by an operator".to_owned());
    }
}

/// Returns all reports as they are known here, this member's own too.
fn whole_table(shared: &Shared, now: Moment) -> Table {
    let mut table = shared.table.borrow().clone();
    if let Some(report) = shared.own.borrow().clone() {
        table.insert(shared.me(), Received { at: now, report });
    }
    table
}

fn lsn_of(table: &Table, node: NodeId) -> Option<Lsn> {
    table.get(&node).and_then(|r| r.report.instance.position()).map(|position| position.lsn)
}

fn member_status(
    member: &Member,
    table: &Table,
    voter: bool,
    primary_lsn: Option<Lsn>,
    epoch: Epoch,
    now: Moment,
) -> MemberStatus {
    let received = table.get(&member.node);
    let (role, state) = what_it_does(member, voter, received, epoch, now);
    let address = member.postgres.parse::<crate::config::Address>().ok();
    let position = received.and_then(|r| r.report.instance.position());
    let lag = match (role, primary_lsn, position) {
        // What it has by now is not known: its last word against the primary's present one would be invented.
        (_, _, _) if state == State::Unreachable => None,
        (Role::Primary, Some(_), _) => Some(0),
        (_, Some(primary), Some(position)) => Some(primary.bytes_since(position.lsn)),
        (_, None, _) | (_, _, None) => None,
    };
    MemberStatus {
        name: member.name.clone(),
        kind: match member.kind {
            MemberKind::Data => Kind::Data,
            MemberKind::Witness => Kind::Witness,
        },
        voter,
        role,
        state,
        host: address.as_ref().map(|address| address.host.clone()),
        port: address.map(|address| address.port),
        timeline: position.map(|position| position.timeline),
        lsn: position.map(|position| position.lsn),
        lag_bytes: lag,
        seen_ms: received.map(|received| now.millis_since(received.at)),
        version: received.and_then(|received| received.report.version.clone()),
        pending_restart: received
            .filter(|_| state != State::Unreachable)
            .map(|received| !received.report.server.pending.is_empty()),
        tags: member.tags.labels.clone(),
        note: received.and_then(|received| received.report.note.clone()),
        started: received.and_then(|r| r.report.server.started_ms).map(WallTime::from_ms),
        pending: received.map(|received| pending(&received.report)).unwrap_or_default(),
        settings_version: received.map(|r| r.report.server.settings).filter(|version| *version > 0),
        start_failure: received.and_then(|r| r.report.server.start_failure.clone()),
        data_id: received.and_then(|r| r.report.data).map(|data| data.to_string()),
        copying: received.and_then(|r| r.report.server.copying.clone()).map(|copy| CopyStatus {
            bytes: copy.bytes,
            failed: copy.failed,
            error: copy.error,
        }),
        refused_lines: received.map(|r| r.report.server.refused_lines.clone()).unwrap_or_default(),
    }
}

fn pending(report: &Report) -> Vec<PendingSetting> {
    let pending = report.server.pending.iter().cloned();
    pending.map(|Pending { name, running, wanted }| PendingSetting { name, running, wanted }).collect()
}

fn warnings(state: &ClusterState, led: bool, members: &[MemberStatus]) -> Vec<String> {
    let standbys: Vec<&MemberStatus> =
        members.iter().filter(|m| m.kind == Kind::Data && m.role != Role::Primary).collect();
    let healthy = standbys.iter().filter(|m| m.state == State::Streaming).count();
    let mut warnings = Vec::new();
    if !led {
        warnings.push(
            "no raft leader is heard here: without a majority of the voters nobody is promoted, and what is shown \
             of other members is old"
                .to_owned(),
        );
    }
    if state.paused {
        warnings.push("automatic failover is off (`rhone resume` turns it on)".to_owned());
    }
    if let Some(dropped) = &state.schedule_dropped {
        let at = WallTime::from_ms(dropped.scheduled.at.0);
        warnings.push(format!("the switchover scheduled for {at} was dropped: {}", dropped.why));
    }
    if let Some((node, at, why)) = &state.restart_dropped
        && let Some(member) = state.members.get(node)
    {
        let at = WallTime::from_ms(at.0);
        warnings.push(format!("the restart of {} scheduled for {at} was dropped: {why}", member.name));
    }
    for name in state.members.values().filter(|m| state.is_fenced(m.node)).map(|m| &m.name) {
        warnings.push(format!("{name} is fenced (`rhone unfence {name}` lets it go)"));
    }
    for member in members.iter().filter(|member| !member.pending.is_empty()) {
        let names: Vec<&str> = member.pending.iter().map(|pending| pending.name.as_str()).collect();
        warnings.push(format!(
            "{} runs with older settings until it is restarted: {} (`rhone restart --rolling --if-pending`)",
            member.name,
            names.join(", ")
        ));
    }
    if !standbys.is_empty() && healthy == 0 && state.phase == Phase::Established {
        warnings.push("no standby could take over now".to_owned());
    } else if healthy == 1 && standbys.len() > 1 {
        let name = standbys.iter().find(|m| m.state == State::Streaming).map(|m| m.name.as_str());
        warnings.push(format!("only {} could take over now", name.unwrap_or("one member")));
    }
    warnings
}

/// Returns the changes of primary as people read them.
pub(super) fn history(state: &ClusterState) -> Vec<HistoryEntry> {
    state.history.iter().map(history_entry).collect()
}

#[allow(clippy::cast_precision_loss, reason = "milliseconds of an outage")]
fn history_entry(entry: &StateHistory) -> HistoryEntry {
    let accepted = entry.accepted.as_ref();
    let by = accepted.map_or("", |accepted| accepted.by.as_str());
    HistoryEntry {
        time: Some(WallTime::from_ms(entry.at.0)),
        from: entry.from.clone(),
        to: Some(entry.to.clone()),
        epoch: entry.epoch,
        timeline: Some(entry.timeline),
        switch_lsn: Some(entry.switch),
        reason: entry.reason.code().to_owned(),
        seconds_without_primary: entry.from.as_ref().map(|_| entry.gap_ms as f64 / 1000.0),
        lost: entry.from.as_ref().map(|_| {
            let by = accepted.map_or_else(String::new, |_| format!(", accepted by {by}"));
            format!("{}{by}", lost_in_words(entry))
        }),
        lost_bytes: entry.from.as_ref().and(loss(entry)).map(|((from, to), _)| to.bytes_since(from)),
        lost_exact: entry.from.as_ref().and(loss(entry)).map(|(_, exact)| exact),
    }
}

fn loss(entry: &StateHistory) -> Option<((Lsn, Lsn), bool)> {
    // A planned handover and the first primary leave nothing behind.
    let planned = matches!(entry.reason, PrepareReason::Switchover | PrepareReason::Founding);
    entry.loss().or_else(|| planned.then_some(((entry.switch, entry.switch), true)))
}

fn lost_in_words(entry: &StateHistory) -> String {
    let former = entry.from.as_deref().unwrap_or("the former primary");
    match (loss(entry), entry.left) {
        (Some(((from, to), true)), _) if from < to => format!("{from} to {to}"),
        (Some((_, true)), Some((from, to))) if from < to => {
            format!("nothing acknowledged ({former} left {from} to {to} behind)")
        }
        (Some((_, true)), _) => "nothing".to_owned(),
        (Some(((from, to), false)), _) => {
            format!("{from} to {to} as last heard, exact once {former} is back")
        }
        (None, _) => format!("nothing known, exact once {former} is back"),
    }
}

/// Publishes this member's view whenever it changes.
///
/// Without a local Postgres (a witness) there is nothing but the cluster to show.
pub(super) fn start(shared: &Arc<Shared>, local: Option<&Arc<Local>>) -> watch::Receiver<Arc<LocalView>> {
    let mut tally = Tally::new(WallTime::from_ms(wall_time()));
    let first = shown_view(shared, Here::of(shared, local), &mut tally);
    let (tell, told) = watch::channel(Arc::new(first));
    let (shared, local) = (Arc::clone(shared), local.map(Arc::clone));
    tokio::spawn(async move {
        let mut own = shared.own.subscribe();
        let mut state = shared.consensus.state();
        // A witness has no lease: for it that branch never comes.
        let (never, unchanged) = watch::channel(LeaseStatus::default());
        let mut lease = local.as_ref().map_or(unchanged, |local| local.lease.changes());
        let mut shown = BootTime::ZERO;
        loop {
            tokio::select! {
                changed = own.changed() => if changed.is_err() { return },
                changed = state.changed() => if changed.is_err() { return },
                changed = lease.changed() => {
                    if changed.is_err() { return }
                    // Renewed ten times a second; shown again when a quarter of what was shown is over, or it ended.
                    let status = *lease.borrow_and_update();
                    let serve = Duration::from_nanos(shared.timing().serve_ns());
                    let shown = Duration::from_nanos(shown.as_nanos());
                    let left = shown.saturating_sub(Duration::from_nanos(shared.clock.now().as_nanos()));
                    if status.until.as_nanos() > 0 && left > serve * 3 / 4 { continue }
                }
                () = about(PUBLISH_EVERY) => {}
            }
            let here = Here::of(&shared, local.as_ref());
            shown = here.lease.until;
            if tell.send(Arc::new(shown_view(&shared, here, &mut tally))).is_err() {
                drop(never);
                return;
            }
        }
    });
    told
}

/// What is so of the local Postgres; nothing on a witness.
#[derive(Default)]
struct Here {
    facts: Facts,
    lease: LeaseStatus,
    frozen: bool,
    counters: Counters,
    figures: Figures,
    watchdog: LastResort,
    dead_man: LastResort,
}

impl Here {
    fn of(shared: &Shared, local: Option<&Arc<Local>>) -> Self {
        let Some(local) = local else {
            let disks = counts::disks(shared.config.node.state_dir.clone());
            return Self { figures: Figures { disks, ..Figures::default() }, ..Self::default() };
        };
        let facts = local.facts().clone();
        let figures = counts::figures(local, facts.probe.as_ref(), WallTime::from_ms(wall_time()));
        Self {
            facts,
            lease: local.lease.status(),
            frozen: local.frozen(),
            counters: counts::counters(local, &figures),
            figures,
            watchdog: local.guardian.page().watchdog(),
            dead_man: local.guardian.page().dead_man(),
        }
    }
}

/// The view with what is counted from the cluster's history.
fn shown_view(shared: &Shared, here: Here, tally: &mut Tally) -> LocalView {
    let mut view = local_view(shared, &here);
    let raft = shared.consensus.status();
    let caught_up = raft.leader.is_some() && raft.applied == raft.last_log && raft.applied.0 > 0;
    let changes = tally.see(&view.name, &view.history, caught_up).clone();
    view.counters.promotions = changes.to_here;
    view.figures = Figures { changes, ..here.figures };
    view
}

fn local_view(shared: &Shared, here: &Here) -> LocalView {
    let applied = Arc::clone(&shared.consensus.state().borrow());
    let state = &applied.state;
    let raft = shared.consensus.status();
    let now = shared.now();
    let table = whole_table(shared, now);
    let status = status_of(shared, &table, now);
    let own = shared.own.borrow().clone();
    let received = own.as_ref().map(|report| Received { at: now, report: report.clone() });
    let voter = raft.voters.contains(&shared.me());
    let (role, own_state) = what_it_does(&shared.member(), voter, received.as_ref(), Epoch(0), now);
    let Here { facts, lease, .. } = here;
    let open = matches!(own.as_ref().map(|report| &report.instance),
        Some(Instance::Primary { gate_open: true, epoch, .. }) if *epoch == lease.epoch);
    let position = own.as_ref().and_then(|report| report.instance.position());
    let members: Vec<PeerView> =
        status.members.iter().map(|member| peer_view(state, &table, member)).collect();
    let mine = members.iter().find(|peer| peer.status.name == shared.config.node.name);
    let own_state =
        mine.filter(|peer| peer.status.state == State::Fenced).map_or(own_state, |_| State::Fenced);
    LocalView {
        scope: shared.config.cluster.clone(),
        name: shared.config.node.name.clone(),
        role,
        state: own_state,
        writable_primary: open && !here.frozen,
        lease_until: Some(Duration::from_nanos(lease.until.as_nanos())),
        loop_at: Some(Duration::from_nanos(now.0)),
        epoch: state.epoch,
        term: raft.term,
        raft_leader: status.raft_leader.clone(),
        leads_raft: raft.leading,
        timeline: position.map(|p| p.timeline),
        lsn: position.filter(|_| role == Role::Primary).map(|p| p.lsn),
        recovery: facts.probe.as_ref().and_then(recovery),
        lag_bytes: mine.and_then(|peer| peer.status.lag_bytes),
        replay_lag_bytes: mine.and_then(|peer| peer.replay_lag),
        replication: facts.probe.as_ref().map(replication).unwrap_or_default(),
        members,
        sync: status.sync.clone(),
        paused: state.paused,
        scheduled: scheduled(state),
        cluster_unlocked: state.current_grant().is_none(),
        majority_last_seen: majority_last_seen(shared, raft.leading),
        tags: shared.config.node.tags.labels.clone(),
        no_load_balance: shared.config.node.tags.no_load_balance,
        system_id: state.system_id,
        pending_restart: own.as_ref().map(pending).unwrap_or_default(),
        settings: state.is_founded().then(|| state.settings.clone()),
        server_version: facts.probe.as_ref().map(|probe| probe.version),
        postmaster_started: facts.probe.as_ref().map(|probe| wall_of_seconds(probe.started)),
        history: history(state),
        certificates: shared.security.as_deref().map(certificates),
        proxy: shared
            .proxy
            .snapshot(crate::proxy::Port::ALL.map(|p| shared.config.proxy.address(p).is_some())),
        watchdog: here.watchdog,
        dead_man: here.dead_man,
        counters: Counters { strangers_refused: shared.strangers.load(Ordering::Relaxed), ..here.counters },
        figures: Figures::default(),
    }
}

fn certificates(security: &Security) -> Certificates {
    let now = WallTime::from_ms(wall_time());
    Certificates {
        own_left: security.own().seconds_left(now),
        authority_left: security.authorities().iter().map(|ca| ca.seconds_left(now)).min().unwrap_or(0),
        stale: security.stale(),
        handshakes: security.handshakes(),
    }
}

fn majority_last_seen(shared: &Shared, leading: bool) -> Option<WallTime> {
    let age = if leading { Duration::ZERO } else { shared.consensus.last_leader_contact()? };
    let age = u64::try_from(age.as_millis()).unwrap_or(u64::MAX);
    Some(WallTime::from_ms(wall_time().saturating_sub(age)))
}

fn peer_view(state: &ClusterState, table: &Table, status: &MemberStatus) -> PeerView {
    let member = state.member_named(&status.name);
    let replayed = member.and_then(|m| table.get(&m.node)).and_then(|r| r.report.server.replayed);
    let primary = state.current_grant().and_then(|grant| lsn_of(table, grant.owner));
    PeerView {
        status: status.clone(),
        api_url: member.map(|m| format!("http://{}/patroni", m.http)),
        replayed,
        replay_lag: replay_lag(status, primary, replayed),
    }
}

/// Returns how far replay is behind the primary, or behind what has been received where that is newer than the
/// primary's last report.
fn replay_lag(status: &MemberStatus, primary: Option<Lsn>, replayed: Option<Lsn>) -> Option<u64> {
    match status.role {
        Role::Primary => status.lag_bytes,
        Role::Standby | Role::None => Some(primary?.max(status.lsn?).bytes_since(replayed?)),
        Role::Witness => None,
    }
}

fn recovery(probe: &Probe) -> Option<Recovery> {
    match &probe.role {
        RoleFacts::Primary(_) => None,
        RoleFacts::Standby(standby) => Some(Recovery {
            received: standby.receiver.as_ref().and_then(|r| r.flushed).or(standby.received),
            replayed: standby.replayed,
            replayed_at: standby.replayed_at.map(wall_of_seconds),
            paused: standby.replay_paused,
        }),
    }
}

fn replication(probe: &Probe) -> Vec<ReplicationRow> {
    probe
        .walsenders
        .iter()
        .map(|sender| ReplicationRow {
            usename: sender.user.clone(),
            application_name: sender.application_name.clone(),
            client_addr: sender.client_addr.clone(),
            state: sender.state.clone(),
            sync_state: sender.sync_state.clone(),
            sync_priority: sender.sync_priority,
        })
        .collect()
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "seconds since 1970 from Postgres are positive and small"
)]
fn wall_of_seconds(seconds: f64) -> WallTime {
    WallTime::from_ms((seconds.max(0.0) * 1000.0) as u64)
}

#[cfg(test)]
#[path = "publish_tests.rs"]
mod tests;
