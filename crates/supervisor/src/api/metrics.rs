//! ✦ `/metrics` in Prometheus' text format: Rhone's own names, then Patroni's as aliases.

mod figures;

use std::fmt::{Display, Write};
use std::time::Duration;

use crate::guardian::LastResort;
use crate::status::figures::Room;
use crate::status::local::Synchronous;
use crate::status::{LocalView, Role, State};

/// Collects samples as text.
struct Page {
    text: String,
    labels: String,
}

impl Page {
    fn sample(&mut self, kind: &str, name: &str, help: &str, value: impl Display) {
        self.family(kind, name, help);
        let labels = self.labels.clone();
        self.line(name, &labels, value);
    }

    fn family(&mut self, kind: &str, name: &str, help: &str) {
        // Writing to a String cannot fail.
        let _ok = writeln!(self.text, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    fn line(&mut self, name: &str, labels: &str, value: impl Display) {
        let _ok = writeln!(self.text, "{name}{{{labels}}} {value}");
    }

    fn gauge(&mut self, name: &str, help: &str, value: impl Display) {
        self.sample("gauge", name, help, value);
    }

    fn flag(&mut self, name: &str, help: &str, value: bool) {
        self.gauge(name, help, u8::from(value));
    }

    fn counter(&mut self, name: &str, help: &str, value: u64) {
        self.sample("counter", name, help, value);
    }
}

/// Escapes a label's value.
fn label(value: &str) -> String {
    value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n")
}

/// Renders the page.
pub(super) fn render(view: &LocalView, now: Duration, rooms: &[Room]) -> String {
    let labels = format!("cluster=\"{}\",member=\"{}\"", label(&view.scope), label(&view.name));
    let mut page = Page { text: String::new(), labels };
    own(&mut page, view, now);
    counters(&mut page, view);
    loss(&mut page, view);
    members(&mut page, view);
    figures::render(&mut page, view, serves(view), rooms);
    proxy(&mut page, view);
    page.labels = format!("scope=\"{}\",name=\"{}\"", label(&view.scope), label(&view.name));
    patroni(&mut page, view, now);
    patroni_wal(&mut page, view);
    page.text
}

fn serves(view: &LocalView) -> bool {
    matches!(view.state, State::Running | State::Streaming | State::ArchiveRecovery)
}

fn own(page: &mut Page, view: &LocalView, now: Duration) {
    let info = format!("{},version=\"{}\"", page.labels, env!("CARGO_PKG_VERSION"));
    page.family("gauge", "rhone_build_info", "Always 1; the version is a label.");
    page.line("rhone_build_info", &info, 1);
    page.flag(
        "rhone_writable",
        "Whether this member accepts writes: live lease and open gate.",
        view.is_writable_primary(now),
    );
    page.flag("rhone_primary", "Whether the local Postgres is the primary.", view.role == Role::Primary);
    page.flag("rhone_standby", "Whether the local Postgres is a standby.", view.role == Role::Standby);
    page.flag("rhone_postgres_running", "Whether the local Postgres answers queries.", serves(view));
    let state = format!("{},state=\"{}\"", page.labels, view.state);
    page.family("gauge", "rhone_state", "Always 1; what the member is doing is a label.");
    page.line("rhone_state", &state, 1);
    page.gauge("rhone_epoch", "Number of the present primaryship.", view.epoch);
    page.gauge("rhone_raft_term", "Term of Raft.", view.term);
    page.flag("rhone_raft_leader", "Whether this member leads Raft.", view.leads_raft);
    page.flag("rhone_paused", "Whether automatic failover is off.", view.paused);
    page.flag(
        "rhone_cluster_without_primary",
        "Whether nobody owns the newest epoch.",
        view.cluster_unlocked,
    );
    if let Some(end) = view.lease_until {
        let left = end.saturating_sub(now).as_secs_f64();
        page.gauge("rhone_lease_left_seconds", "Seconds until the primary's lease ends.", left);
    }
    if let Some(at) = view.majority_last_seen {
        page.gauge(
            "rhone_majority_last_seen_seconds",
            "When a majority was last heard, since 1970.",
            at.as_seconds(),
        );
    }
    if let Some(timeline) = view.timeline {
        page.gauge("rhone_timeline", "Timeline of the local WAL.", timeline);
    }
    if let Some(lag) = view.lag_bytes {
        page.gauge("rhone_lag_bytes", "WAL held behind the primary.", lag);
    }
    if let Some(lag) = view.replay_lag_bytes {
        page.gauge("rhone_replay_lag_bytes", "WAL replayed behind the primary: what readers see.", lag);
    }
    if let Some(certificates) = view.certificates {
        let name = "rhone_certificate_expiry_seconds";
        page.family("gauge", name, "Seconds until a certificate expires; negative afterwards.");
        for (which, left) in [("member", certificates.own_left), ("ca", certificates.authority_left)] {
            let labels = format!("{},certificate=\"{which}\"", page.labels);
            page.line(name, &labels, left);
        }
        page.flag(
            "rhone_certificate_files_broken",
            "Whether newer certificate files are there that cannot be used.",
            certificates.stale,
        );
        page.counter(
            "rhone_tls_handshakes_total",
            "TLS handshakes, of either side.",
            certificates.handshakes,
        );
    }
    page.gauge("rhone_sync_required", "Standbys that each commit waits for.", view.sync.required);
}

fn counters(page: &mut Page, view: &LocalView) {
    let c = view.counters;
    if view.watchdog != LastResort::Off {
        let armed = view.watchdog == LastResort::Armed;
        page.flag("rhone_watchdog_armed", "The machine is reset if the guardian falls silent.", armed);
        let failed = view.watchdog == LastResort::Failed;
        page.flag("rhone_watchdog_failed", "The device cannot be opened, set or written to.", failed);
    }
    if view.dead_man != LastResort::Off {
        let armed = view.dead_man == LastResort::Armed;
        let name = "rhone_dead_man_armed";
        page.flag(name, "The kernel keeps in what Postgres sends when the lease has ended.", armed);
        let failed = view.dead_man == LastResort::Failed;
        page.flag("rhone_dead_man_failed", "The kernel does not let the dead-man be set up.", failed);
    }
    page.counter("rhone_lease_renewals_total", "Lease renewals that got a majority.", c.renewals);
    page.counter("rhone_lease_renewals_failed_total", "Lease renewals that did not.", c.renewals_failed);
    page.counter("rhone_freezes_total", "Freezes of the local instance.", c.freezes);
    page.counter("rhone_fences_total", "Fences of the local instance.", c.fences);
    page.counter("rhone_late_fences_total", "Fences later than the guard allows.", c.late_fences);
    page.counter("rhone_promotions_total", "Promotions of the local instance.", c.promotions);
    page.counter("rhone_rewinds_total", "Rewinds of the local data directory.", c.rewinds);
    page.counter("rhone_clones_total", "Clones into the local data directory.", c.clones);
    page.counter(
        "rhone_strangers_refused_total",
        "Connections refused as foreign or garbage.",
        c.strangers_refused,
    );
}

fn loss(page: &mut Page, view: &LocalView) {
    page.counter(
        "rhone_lost_wal_bytes_total",
        "WAL of former primaries that no other member has, counted once they are back.",
        view.figures.changes.lost_bytes,
    );
    if let Some((bytes, exact)) = view.history.last().and_then(|e| Some((e.lost_bytes?, e.lost_exact?))) {
        page.gauge("rhone_last_lost_wal_bytes", "WAL that the last change of primary lost.", bytes);
        page.flag("rhone_last_lost_wal_exact", "Whether that is exact, not what voters had heard of.", exact);
    }
}

fn members(page: &mut Page, view: &LocalView) {
    let labelled: Vec<_> = view
        .members
        .iter()
        .map(|m| (format!("{},peer=\"{}\"", page.labels, label(&m.status.name)), &m.status))
        .collect();
    page.family("gauge", "rhone_member_reachable", "Whether a member is heard from.");
    for (labels, status) in &labelled {
        page.line("rhone_member_reachable", labels, u8::from(status.state != State::Unreachable));
    }
    page.family("gauge", "rhone_member_lag_bytes", "Flushed WAL of a member behind the primary.");
    for (labels, status) in &labelled {
        if let Some(lag) = status.lag_bytes {
            page.line("rhone_member_lag_bytes", labels, lag);
        }
    }
    page.family("gauge", "rhone_member_replay_lag_bytes", "Replayed WAL of a member behind the primary.");
    for ((labels, _), peer) in labelled.iter().zip(&view.members) {
        if let Some(lag) = peer.replay_lag {
            page.line("rhone_member_replay_lag_bytes", labels, lag);
        }
    }
    page.family("gauge", "rhone_member_synchronous", "Whether commits may wait for this standby.");
    for (labels, status) in labelled.iter().filter(|(_, status)| status.role == Role::Standby) {
        let synchronous = view.sync.members.contains(&status.name);
        page.line("rhone_member_synchronous", labels, u8::from(synchronous));
    }
}

/// What the proxy ports count.
fn proxy(page: &mut Page, view: &LocalView) {
    let Some(first) = view.proxy.first() else { return };
    let labels = |port: &str| format!("{},port=\"{port}\"", page.labels);
    let lines: Vec<_> = view.proxy.iter().map(|figures| (labels(figures.port), figures)).collect();
    page.family("gauge", "rhone_proxy_connections", "Connections through this member that have a server.");
    for (labels, figures) in &lines {
        page.line("rhone_proxy_connections", labels, figures.open[0]);
    }
    page.family("gauge", "rhone_proxy_waiting", "Connections through this member that have no server yet.");
    for (labels, figures) in &lines {
        page.line("rhone_proxy_waiting", labels, figures.open[1]);
    }
    for (index, (name, help, _)) in first.totals.iter().enumerate() {
        page.family("counter", name, help);
        for (labels, figures) in &lines {
            if let Some((_, _, value)) = figures.totals.get(index) {
                page.line(name, labels, value);
            }
        }
    }
    page.family("counter", "rhone_proxy_ended_total", "Connections turned away or ended by the proxy.");
    for (labels, figures) in &lines {
        for (reason, value) in &figures.ended {
            page.line("rhone_proxy_ended_total", &format!("{labels},reason=\"{reason}\""), value);
        }
    }
    page.family("counter", "rhone_proxy_wait_seconds_total", "How long those waited that got a server.");
    for (labels, figures) in &lines {
        page.line("rhone_proxy_wait_seconds_total", labels, figures.waited.as_secs_f64());
    }
}

fn patroni(page: &mut Page, view: &LocalView, now: Duration) {
    let standby = view.role == Role::Standby;
    let sync = view.synchronous();
    page.gauge("patroni_version", "Patroni whose answers these are, without periods.", "040100");
    page.flag("patroni_postgres_running", "Value is 1 if Postgres is running, 0 otherwise.", serves(view));
    let started = view.postmaster_started.map_or(0.0, super::super::civil::WallTime::as_seconds);
    page.gauge("patroni_postmaster_start_time", "Epoch seconds since Postgres started.", started);
    let primary = view.is_writable_primary(now);
    page.flag("patroni_primary", "Value is 1 if this node is the leader, 0 otherwise.", primary);
    page.flag("patroni_standby_leader", "Value is 1 if this node is the standby_leader, 0 otherwise.", false);
    page.flag("patroni_replica", "Value is 1 if this node is a replica, 0 otherwise.", standby);
    page.flag(
        "patroni_sync_standby",
        "Value is 1 if this node is a sync standby, 0 otherwise.",
        sync == Synchronous::Each,
    );
    page.flag(
        "patroni_quorum_standby",
        "Value is 1 if this node is a quorum standby, 0 otherwise.",
        sync == Synchronous::Some,
    );
    page.flag(
        "patroni_postgres_streaming",
        "Value is 1 if Postgres is streaming, 0 otherwise.",
        standby && view.state == State::Streaming,
    );
    let archive = standby && view.state == State::ArchiveRecovery;
    page.flag(
        "patroni_postgres_in_archive_recovery",
        "Value is 1 if replicating from an archive, 0 otherwise.",
        archive,
    );
    page.gauge(
        "patroni_postgres_server_version",
        "Version of Postgres, 0 if not running.",
        view.server_version.unwrap_or(0),
    );
    page.flag(
        "patroni_cluster_unlocked",
        "Value is 1 if the cluster is unlocked, 0 if locked.",
        view.cluster_unlocked,
    );
    let timeline = view.timeline.map_or(0, rhone_pgctl::wal::Timeline::get);
    page.counter(
        "patroni_postgres_timeline",
        "Postgres timeline of this node, 0 if not running.",
        timeline.into(),
    );
    let seen = view.majority_last_seen.map_or(0, |at| at.as_ms() / 1000);
    page.gauge("patroni_dcs_last_seen", "Epoch seconds when a majority was last heard.", seen);
    page.flag(
        "patroni_pending_restart",
        "Value is 1 if the node needs a restart, 0 otherwise.",
        !view.pending_restart.is_empty(),
    );
    page.flag("patroni_is_paused", "Value is 1 if automatic failover is off, 0 otherwise.", view.paused);
    // Patroni's way of serving without its store; a lease has no such thing.
    page.flag(
        "patroni_failsafe_mode_is_active",
        "Always 0: a primary never serves without a majority.",
        false,
    );
    page.gauge(
        "patroni_postgres_state",
        "State of Postgres: 4=creating_replica, 5=running, 6=starting, 12=stopped, 14=crashed, -1=unknown.",
        super::patroni::state_number(view),
    );
}

/// Patroni's figures of WAL positions.
fn patroni_wal(page: &mut Page, view: &LocalView) {
    let recovery = view.recovery.clone().unwrap_or_default();
    let location = view.lsn.map_or(0, rhone_pgctl::wal::Lsn::get);
    page.counter(
        "patroni_xlog_location",
        "Current location of the transaction log, 0 on a replica.",
        location,
    );
    let received = recovery.received.map_or(0, rhone_pgctl::wal::Lsn::get);
    page.counter(
        "patroni_xlog_received_location",
        "Received location of the transaction log, 0 on the primary.",
        received,
    );
    let replayed = recovery.replayed.map_or(0, rhone_pgctl::wal::Lsn::get);
    page.counter(
        "patroni_xlog_replayed_location",
        "Replayed location of the transaction log, 0 on the primary.",
        replayed,
    );
    let replayed_at = recovery.replayed_at.map_or(0.0, super::super::civil::WallTime::as_seconds);
    page.gauge(
        "patroni_xlog_replayed_timestamp",
        "Timestamp of the last replayed transaction, 0 if none.",
        replayed_at,
    );
    page.flag("patroni_xlog_paused", "Value is 1 if replay is paused, 0 otherwise.", recovery.paused);
}
