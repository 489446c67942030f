//! ✦ The member's state in the words of Patroni's REST API, for tools that read those.
//!
//! Patroni calls the primary `leader` in `/cluster` and `primary` elsewhere; so does this file,
//! and no other.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::tags;
use crate::civil::WallTime;
use crate::status::local::{PeerView, ReplicationRow, Synchronous};
use crate::status::{Kind, LocalView, PendingSetting, Role, State};

/// The version of Patroni whose answers these are. Tools compare it; ours is in `rhone.version`.
const PATRONI_VERSION: &str = "4.1.0";

/// Gives `/patroni` and the body of each check.
pub(super) fn state(view: &LocalView, now: Duration) -> Value {
    let mut body = Map::new();
    let mut put = |key: &str, value: Value| {
        body.insert(key.to_owned(), value);
    };
    put("state", json!(own_state(view)));
    put("role", json!(role(view)));
    if let Some(started) = view.postmaster_started {
        put("postmaster_start_time", json!(started.patroni()));
    }
    if let Some(version) = view.server_version {
        put("server_version", json!(version));
    }
    if let Some(xlog) = xlog(view) {
        put("xlog", xlog);
    }
    if let Some(timeline) = view.timeline {
        put("timeline", json!(timeline.get()));
    }
    if let Some(state) = replication_state(view) {
        put("replication_state", json!(state));
    }
    if !view.replication.is_empty() {
        put("replication", view.replication.iter().map(replication_row).collect());
    }
    match view.synchronous() {
        Synchronous::Each => put("sync_standby", json!(true)),
        Synchronous::Some => put("quorum_standby", json!(true)),
        Synchronous::None => {}
    }
    if view.cluster_unlocked {
        put("cluster_unlocked", json!(true));
    }
    if view.paused {
        put("pause", json!(true));
    }
    if !view.pending_restart.is_empty() {
        put("pending_restart", json!(true));
        put("pending_restart_reason", reasons(&view.pending_restart));
    }
    if let Some(tags) = tags_of(&view.tags) {
        put("tags", tags);
    }
    put("dcs_last_seen", json!(view.majority_last_seen.map_or(0, |at| at.as_ms() / 1000)));
    put("database_system_identifier", json!(view.system_id.map(|id| id.to_string()).unwrap_or_default()));
    put("patroni", json!({"version": PATRONI_VERSION, "scope": view.scope, "name": view.name}));
    put(
        "rhone",
        json!({
            "version": env!("CARGO_PKG_VERSION"), "epoch": view.epoch.0, "term": view.term,
            "writable": view.is_writable_primary(now), "state": view.state,
        }),
    );
    Value::Object(body)
}

/// What waits for a restart: the value that runs, and the one that is set; `null` for Postgres' own default, and where
/// nothing is told.
fn reasons(pending: &[PendingSetting]) -> Value {
    let reason = |setting: &PendingSetting| {
        let told = Some(setting).filter(|setting| !may_hold_a_secret(&setting.name));
        let values = json!({
            "old_value": told.map(|setting| &setting.running),
            "new_value": told.and_then(|setting| setting.wanted.as_ref()),
        });
        (setting.name.clone(), values)
    };
    Value::Object(pending.iter().map(reason).collect())
}

/// Patroni's word for the local Postgres' state.
fn own_state(view: &LocalView) -> &'static str {
    match view.state {
        State::Running | State::Streaming | State::ArchiveRecovery | State::Promoting | State::Voting => {
            "running"
        }
        State::Starting | State::CrashRecovery => "starting",
        State::Rewinding | State::Cloning => "creating replica",
        State::Frozen | State::Stopped | State::Fenced => "stopped",
        State::Crashed => "crashed",
        State::Unreachable => "unknown",
    }
}

/// Patroni's fixed number for the local Postgres' state: that of the word above, and -1 for one it has no number for.
pub(super) fn state_number(view: &LocalView) -> i8 {
    match view.state {
        State::Rewinding | State::Cloning => 4,
        State::Running | State::Streaming | State::ArchiveRecovery | State::Promoting => 5,
        State::Starting | State::CrashRecovery => 6,
        State::Frozen | State::Stopped | State::Fenced => 12,
        State::Crashed => 14,
        // A witness runs no Postgres.
        State::Voting | State::Unreachable => -1,
    }
}

/// Patroni's word for the role in health checks.
fn role(view: &LocalView) -> &'static str {
    match view.role {
        Role::Primary => "primary",
        Role::Standby | Role::None => "replica",
        Role::Witness => "witness",
    }
}

/// `streaming` or `in archive recovery` on a standby that replays.
pub(super) fn replication_state(view: &LocalView) -> Option<&'static str> {
    match (view.role, view.state) {
        (Role::Standby, State::Streaming) => Some("streaming"),
        (Role::Standby, State::ArchiveRecovery) => Some("in archive recovery"),
        (_, _) => None,
    }
}

/// WAL positions as decimal bytes: what is written on a primary, received and replayed else.
fn xlog(view: &LocalView) -> Option<Value> {
    if let Some(lsn) = view.lsn {
        return Some(json!({"location": lsn.get()}));
    }
    let recovery = view.recovery.as_ref()?;
    Some(json!({
        "received_location": recovery.received.map_or(0, rhone_pgctl::wal::Lsn::get),
        "replayed_location": recovery.replayed.map_or(0, rhone_pgctl::wal::Lsn::get),
        "replayed_timestamp": recovery.replayed_at.map(WallTime::patroni),
        "paused": recovery.paused,
    }))
}

fn replication_row(row: &ReplicationRow) -> Value {
    json!({
        "usename": row.usename,
        "application_name": row.application_name,
        "client_addr": row.client_addr,
        "state": row.state,
        "sync_state": row.sync_state,
        "sync_priority": row.sync_priority,
    })
}

/// Gives `/cluster`.
pub(super) fn cluster(view: &LocalView, now: Duration) -> Value {
    let data = view.members.iter().filter(|m| m.status.kind == Kind::Data);
    let mut body = json!({
        "members": data.map(|peer| member(view, peer, now)).collect::<Vec<_>>(),
        "scope": view.scope,
    });
    if let (true, Some(object)) = (view.paused, body.as_object_mut()) {
        object.insert("pause".to_owned(), json!(true));
    }
    if let (Some(scheduled), Some(object)) = (&view.scheduled, body.as_object_mut()) {
        let mut known = json!({ "at": scheduled.at.patroni() });
        if let (Some(known), Some(from)) = (known.as_object_mut(), &scheduled.from) {
            known.insert("from".to_owned(), json!(from));
        }
        if let (Some(known), Some(to)) = (known.as_object_mut(), &scheduled.to) {
            known.insert("to".to_owned(), json!(to));
        }
        object.insert("scheduled_switchover".to_owned(), known);
    }
    body
}

fn member(view: &LocalView, peer: &PeerView, now: Duration) -> Value {
    let status = &peer.status;
    let is_self = status.name == view.name;
    // Only this member's own lease is known here; of others the replicated role must do.
    let leads = status.role == Role::Primary && (!is_self || view.is_writable_primary(now));
    let role = match (leads, view.sync.synchronous(&status.name)) {
        (true, _) => "leader",
        (false, Synchronous::Each) => "sync_standby",
        (false, Synchronous::Some) => "quorum_standby",
        (false, Synchronous::None) => "replica",
    };
    let mut body = json!({
        "name": status.name,
        "role": role,
        "state": member_state(status.state),
        "api_url": peer.api_url,
        "host": status.host,
        "port": status.port,
        "timeline": status.timeline.map(rhone_pgctl::wal::Timeline::get),
    });
    let Some(object) = body.as_object_mut() else { return body };
    if !leads {
        // Patroni's `lag` is that of whichever is further, received or replayed: our position.
        let (held, seen) = ((status.lsn, status.lag_bytes), (peer.replayed, peer.replay_lag));
        for (prefix, (lsn, lag)) in [("", held), ("receive_", held), ("replay_", seen)] {
            let lsn = lsn.map_or_else(|| "unknown".to_owned(), |lsn| lsn.to_string());
            object.insert(format!("{prefix}lsn"), json!(lsn));
            object.insert(format!("{prefix}lag"), lag.map_or_else(|| json!("unknown"), |lag| json!(lag)));
        }
    }
    if status.pending_restart == Some(true) {
        object.insert("pending_restart".to_owned(), json!(true));
        object.insert("pending_restart_reason".to_owned(), reasons(&status.pending));
    }
    if let Some(tags) = tags_of(&status.tags) {
        object.insert("tags".to_owned(), tags);
    }
    body
}

/// Gives a member's tags, where it has any.
fn tags_of(labels: &BTreeMap<String, String>) -> Option<Value> {
    let tags = tags::as_patronis(labels);
    tags.as_object().is_some_and(|tags| !tags.is_empty()).then_some(tags)
}

/// Patroni's word for a member's state in `/cluster`.
fn member_state(state: State) -> &'static str {
    match state {
        State::Running | State::Promoting | State::Voting => "running",
        State::Streaming => "streaming",
        State::ArchiveRecovery => "in archive recovery",
        State::Starting | State::CrashRecovery => "starting",
        State::Rewinding | State::Cloning => "creating replica",
        State::Frozen | State::Stopped | State::Fenced => "stopped",
        State::Crashed => "crashed",
        State::Unreachable => "unknown",
    }
}

/// Gives `/history`: `[timeline it left, LSN, reason, time, the new primary]`, oldest first.
pub(super) fn history(view: &LocalView) -> Value {
    let known = view.history.iter().filter_map(|entry| {
        let ended = entry.timeline?.get().checked_sub(1).filter(|timeline| *timeline > 0)?;
        let time = entry.time.map(|t| t.to_string().replace('Z', "+00:00"));
        let lost = entry.lost.as_ref().filter(|_| entry.lost_bytes != Some(0));
        let reason =
            lost.map_or_else(|| entry.reason.clone(), |lost| format!("{}; lost {lost}", entry.reason));
        Some(json!([ended, entry.switch_lsn.map(rhone_pgctl::wal::Lsn::get), reason, time, entry.to]))
    });
    Value::Array(known.collect())
}

/// Gives `/config`: what of the replicated settings Patroni has a name for.
pub(super) fn config(view: &LocalView) -> Value {
    let mode: Value = match view.sync.mode {
        crate::status::SyncMode::Off => json!(false),
        crate::status::SyncMode::Quorum | crate::status::SyncMode::Strict => json!("quorum"),
    };
    let mut body = json!({
        "pause": view.paused,
        "synchronous_mode": mode,
        "synchronous_mode_strict": view.sync.mode == crate::status::SyncMode::Strict,
        "synchronous_node_count": view.sync.required,
    });
    if let (Some(settings), Some(object)) = (&view.settings, body.as_object_mut()) {
        let told = settings.postgres.iter().filter(|(name, _)| !may_hold_a_secret(name));
        let parameters: Map<String, Value> = told.map(|(name, value)| (name.clone(), json!(value))).collect();
        // Patroni counts in whole seconds: each is the shortest that is not too short.
        let timing = settings.timing;
        for (key, ms) in [
            ("ttl", timing.lease_ms),
            ("loop_wait", timing.renewal_ms),
            ("retry_timeout", timing.suspicion_ms),
        ] {
            object.insert(key.to_owned(), json!(ms.div_ceil(1000)));
        }
        object.insert("maximum_lag_on_failover".to_owned(), json!(settings.max_lag_on_failover));
        object.insert(
            "postgresql".to_owned(),
            json!({"parameters": parameters, "use_pg_rewind": true, "use_slots": true}),
        );
    }
    body
}

/// Whoever reaches the port may read this: what people put passwords into is told only to those with a certificate
/// (`rhone settings`). Commands, connection strings, and whatever an extension takes.
fn may_hold_a_secret(parameter: &str) -> bool {
    parameter.contains('.') || parameter.ends_with("_command") || parameter.ends_with("conninfo")
}
