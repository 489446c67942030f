//! ✦ Renewals, effects, changes of primary, slots and disks.

use super::{Page, label};
use crate::status::LocalView;
use crate::status::figures::{EffectFigures, ROUND_TRIPS, Renewals, Room};

/// Adds them to the page. `serves`: whether the local Postgres answers, so that what it said is so.
pub(super) fn render(page: &mut Page, view: &LocalView, serves: bool, rooms: &[Room]) {
    if let Some(renewals) = &view.figures.renewals {
        round_trips(page, renewals);
    }
    changes(page, view);
    effects(page, view);
    disks(page, rooms);
    if serves {
        server(page, view);
    }
}

fn round_trips(page: &mut Page, renewals: &Renewals) {
    let name = "rhone_lease_renewal_seconds";
    page.family("histogram", name, "From sending a lease renewal until a majority had granted it.");
    let mut so_far = 0_u64;
    let ends = ROUND_TRIPS.iter().map(|end| end.as_secs_f64().to_string());
    for (count, end) in renewals.buckets.iter().zip(ends.chain(["+Inf".to_owned()])) {
        so_far = so_far.saturating_add(*count);
        let labels = format!("{},le=\"{end}\"", page.labels);
        page.line(&format!("{name}_bucket"), &labels, so_far);
    }
    let labels = page.labels.clone();
    page.line(&format!("{name}_sum"), &labels, renewals.total.as_secs_f64());
    page.line(&format!("{name}_count"), &labels, so_far);
}

fn changes(page: &mut Page, view: &LocalView) {
    let changes = &view.figures.changes;
    let name = "rhone_primary_changes_total";
    page.family("counter", name, "Changes of primary in the cluster, by reason.");
    for (reason, count) in &changes.by_reason {
        let labels = format!("{},reason=\"{}\"", page.labels, label(reason));
        page.line(name, &labels, count);
    }
    page.sample(
        "counter",
        "rhone_without_primary_seconds_total",
        "For how long nobody could write, in all changes of primary.",
        changes.without_primary.as_secs_f64(),
    );
    if let Some(gap) = view.history.last().and_then(|change| change.seconds_without_primary) {
        let help = "For how long nobody could write at the last change of primary.";
        page.gauge("rhone_last_without_primary_seconds", help, gap);
    }
    if let Some(at) = view.history.last().and_then(|change| change.time) {
        let help = "When the last change of primary was, since 1970.";
        page.gauge("rhone_last_primary_change_seconds", help, at.as_seconds());
    }
}

fn effects(page: &mut Page, view: &LocalView) {
    let effects = &view.figures.effects;
    if effects.is_empty() {
        return;
    }
    let name = "rhone_effects_total";
    page.family("counter", name, "What was done to the local Postgres, by effect and outcome.");
    for (code, effect) in effects {
        let EffectFigures { done, failed, cut_short, .. } = *effect;
        for (outcome, count) in [("done", done), ("failed", failed), ("cut_short", cut_short)] {
            let labels = format!("{},effect=\"{code}\",outcome=\"{outcome}\"", page.labels);
            page.line(name, &labels, count);
        }
    }
    let name = "rhone_effect_seconds_total";
    page.family("counter", name, "How long that took, whatever its outcome.");
    for (code, effect) in effects {
        let labels = format!("{},effect=\"{code}\"", page.labels);
        page.line(name, &labels, effect.took.as_secs_f64());
    }
}

fn disks(page: &mut Page, rooms: &[Room]) {
    let families = [
        ("rhone_disk_free_bytes", "Room left on the disk of Postgres's data, its WAL, Rhone's state."),
        ("rhone_disk_size_bytes", "Size of that disk."),
    ];
    for (which, (name, help)) in families.into_iter().enumerate() {
        page.family("gauge", name, help);
        for room in rooms {
            let labels = format!("{},disk=\"{}\"", page.labels, room.what);
            page.line(name, &labels, if which == 0 { room.free } else { room.size });
        }
    }
}

/// What only a server that answers has.
fn server(page: &mut Page, view: &LocalView) {
    if let Some(lag) = view.figures.replay_lag {
        let help =
            "Age of the last commit that this standby has replayed; 0: it has replayed all that it received.";
        page.gauge("rhone_replay_lag_seconds", help, lag.as_secs_f64());
        let help = "By how much this standby is to replay later than it receives.";
        page.gauge("rhone_apply_delay_seconds", help, view.figures.apply_delay.as_secs_f64());
    }
    let slots = &view.figures.slots;
    let labels = |name: &str, rest: &str| format!("{rest},slot=\"{}\"", label(name));
    page.family("gauge", "rhone_slot_retained_bytes", "WAL that a replication slot of this server keeps.");
    for slot in slots {
        let labels = labels(&slot.name, &page.labels);
        page.line("rhone_slot_retained_bytes", &labels, slot.retained);
    }
    page.family("gauge", "rhone_slot_active", "Whether somebody streams from that slot.");
    for slot in slots {
        let labels = labels(&slot.name, &page.labels);
        page.line("rhone_slot_active", &labels, u8::from(slot.active));
    }
    let name = "rhone_walsender";
    page.family("gauge", name, "Always 1; who streams from this server, and how, are labels.");
    let mut shown = std::collections::BTreeSet::new();
    for row in &view.replication {
        let labels = format!(
            "{},standby=\"{}\",state=\"{}\",sync_state=\"{}\"",
            page.labels,
            label(&row.application_name),
            label(&row.state),
            label(&row.sync_state)
        );
        // Two base backups of one name would be one series twice.
        if shown.insert(labels.clone()) {
            page.line(name, &labels, 1);
        }
    }
}
