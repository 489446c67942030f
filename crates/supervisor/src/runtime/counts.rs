//! What the runtime counts for `/metrics`: renewals by the lease's thread, effects by the node's loop.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rhone_pgctl::probe::{Probe, RoleFacts};

use crate::civil::WallTime;
use crate::runtime::local::Local;
use crate::status::figures::{self, EffectFigures, Figures, ROUND_TRIPS, SlotFigures};
use crate::status::local::Counters;

/// Slots shown of one server: each is a line of every scrape.
const SLOTS_SHOWN: usize = 64;

/// Renewals, counted without a lock: the lease's thread waits for nobody.
#[derive(Debug, Default)]
pub struct Renewals {
    buckets: [AtomicU64; ROUND_TRIPS.len() + 1],
    nanos: AtomicU64,
    failed: AtomicU64,
}

impl Renewals {
    /// A majority has granted one, so long after it was sent.
    pub fn granted(&self, after: Duration) {
        let bucket = ROUND_TRIPS.iter().position(|end| after <= *end).unwrap_or(ROUND_TRIPS.len());
        if let Some(count) = self.buckets.get(bucket) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        self.nanos.fetch_add(u64::try_from(after.as_nanos()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// No majority has granted one for as long as it would have counted.
    pub fn failed(&self) {
        self.failed.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns the counts.
    pub fn figures(&self) -> figures::Renewals {
        figures::Renewals {
            buckets: std::array::from_fn(|n| self.buckets.get(n).map_or(0, |c| c.load(Ordering::Relaxed))),
            total: Duration::from_nanos(self.nanos.load(Ordering::Relaxed)),
            failed: self.failed.load(Ordering::Relaxed),
        }
    }
}

/// How an effect ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ending {
    /// It was done.
    Done,
    /// It was not.
    Failed,
    /// It made room for a newer decision.
    CutShort,
}

/// Effects, by their code.
#[derive(Debug, Default)]
pub struct Effects(Mutex<BTreeMap<&'static str, EffectFigures>>);

impl Effects {
    /// One has ended, so long after it was begun.
    pub fn ended(&self, code: &'static str, ending: Ending, took: Duration) {
        let mut effects = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let figures = effects.entry(code).or_default();
        let count = match ending {
            Ending::Done => &mut figures.done,
            Ending::Failed => &mut figures.failed,
            Ending::CutShort => &mut figures.cut_short,
        };
        *count = count.saturating_add(1);
        figures.took = figures.took.saturating_add(took);
    }

    /// Returns the counts.
    pub fn figures(&self) -> BTreeMap<&'static str, EffectFigures> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

/// Returns what was counted on a member with a Postgres, but for what the cluster's history says.
pub(super) fn counters(local: &Local, figures: &Figures) -> Counters {
    let page = local.guardian.page();
    let done = |code| figures.effects.get(code).map_or(0, |effect| effect.done);
    Counters {
        renewals: figures.renewals.map_or(0, |renewals| renewals.granted()),
        renewals_failed: figures.renewals.map_or(0, |renewals| renewals.failed),
        freezes: page.freezes(),
        fences: page.fences(),
        late_fences: page.late_fences(),
        rewinds: done("rewind"),
        clones: done("clone"),
        ..Counters::default()
    }
}

/// Returns what was measured here, from what the last probe said at `now`.
pub(super) fn figures(local: &Local, probe: Option<&Probe>, now: WallTime) -> Figures {
    let data_dir = &local.config.data_dir;
    let mut disks = disks(local.shared.config.node.state_dir.clone());
    disks.extend([("data", data_dir.clone()), ("wal", data_dir.join("pg_wal"))]);
    Figures {
        renewals: Some(local.lease.renewals()),
        effects: local.effects.figures(),
        slots: probe.map(slots).unwrap_or_default(),
        replay_lag: probe.and_then(|probe| replay_lag(probe, now)),
        apply_delay: Duration::from_millis(local.shared.config.node.tags.delay_ms),
        disks,
        ..Figures::default()
    }
}

/// Returns the disks of a member without a Postgres.
pub(super) fn disks(state_dir: std::path::PathBuf) -> Vec<(&'static str, std::path::PathBuf)> {
    vec![("state", state_dir)]
}

/// How old the last replayed commit is, unless everything is replayed that there is.
fn replay_lag(probe: &Probe, now: WallTime) -> Option<Duration> {
    let RoleFacts::Standby(standby) = &probe.role else { return None };
    let streams = standby.receiver.as_ref().filter(|receiver| receiver.status == "streaming");
    let flushed = streams.and_then(|receiver| receiver.flushed);
    if flushed.is_some() && standby.replayed >= flushed {
        return Some(Duration::ZERO);
    }
    let at = Duration::try_from_secs_f64(standby.replayed_at?).ok()?;
    Some(Duration::from_millis(now.as_ms()).saturating_sub(at))
}

fn slots(probe: &Probe) -> Vec<SlotFigures> {
    let end = match &probe.role {
        RoleFacts::Primary(primary) => Some(primary.flushed.lsn),
        RoleFacts::Standby(standby) => standby.replayed,
    };
    let retained = |slot: &rhone_pgctl::probe::Slot| Some(end?.bytes_since(slot.restart?));
    let slots = probe.slots.iter().filter_map(|slot| {
        Some(SlotFigures { name: slot.name.clone(), active: slot.active, retained: retained(slot)? })
    });
    slots.take(SLOTS_SHOWN).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn round_trips_fall_into_their_buckets() {
        let renewals = Renewals::default();
        for after in [Duration::ZERO, ROUND_TRIPS[3], Duration::from_secs(9)] {
            renewals.granted(after);
        }
        renewals.failed();
        let figures = renewals.figures();
        let filled: Vec<usize> = (0..figures.buckets.len()).filter(|n| figures.buckets[*n] > 0).collect();
        assert_eq!(filled, [0, 3, ROUND_TRIPS.len()]);
        assert_eq!((figures.granted(), figures.failed), (3, 1));
        assert_eq!(figures.total, ROUND_TRIPS[3] + Duration::from_secs(9));
    }

    #[test]
    fn each_end_of_an_effect_is_counted_apart() {
        let effects = Effects::default();
        for ending in [Ending::Done, Ending::Failed, Ending::CutShort, Ending::Done] {
            effects.ended("rewind", ending, Duration::from_secs(2));
        }
        let rewinds = effects.figures()["rewind"];
        assert_eq!((rewinds.done, rewinds.failed, rewinds.cut_short), (2, 1, 1));
        assert_eq!(rewinds.took, Duration::from_secs(8));
    }
}
