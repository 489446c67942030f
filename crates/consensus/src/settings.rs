//! What all members must agree on besides who leads: timings and Postgres parameters.
//!
//! Pure. A setting lives either here or in a member's file, never in both.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::command::WallTime;

/// The timings of the lease (docs/safety.md 3), in milliseconds; the drift in parts per thousand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Timing {
    /// How often the primary renews its lease.
    pub renewal_ms: u32,
    /// After how long a silence the primary is suspected, where evidence replaces the lease.
    pub suspicion_ms: u32,
    /// How long a renewal lasts, counted from its sending.
    pub lease_ms: u32,
    /// By how much two clocks may differ in rate.
    pub drift_permille: u32,
    /// By how much the primary ends its own lease early: more than a freeze takes.
    pub guard_ms: u32,
}

impl Default for Timing {
    /// A wired LAN of small boards (docs/safety.md 3).
    fn default() -> Self {
        Self { renewal_ms: 100, suspicion_ms: 500, lease_ms: 1500, drift_permille: 10, guard_ms: 150 }
    }
}

impl Timing {
    /// Returns for how long after its sending a renewal lets the primary serve, in nanoseconds.
    pub fn serve_ns(&self) -> u64 {
        let lease = u64::from(self.lease_ms) * 1_000_000;
        let drift = (lease / 1000).saturating_mul(u64::from(self.drift_permille));
        lease.saturating_sub(drift).saturating_sub(u64::from(self.guard_ms) * 1_000_000)
    }

    /// Returns after how long a silence a voter counts as aged, in nanoseconds.
    pub fn aged_ns(&self) -> u64 {
        let lease = u64::from(self.lease_ms) * 1_000_000;
        lease.saturating_add((lease / 1000).saturating_mul(u64::from(self.drift_permille)))
    }

    /// Returns what an owner goes by that must be safe under both: the one that serves for less, renewed as
    /// often as either asks (decision 0036).
    #[must_use]
    pub fn or_shorter(self, other: Self) -> Self {
        let shorter = if other.serve_ns() < self.serve_ns() { other } else { self };
        Self { renewal_ms: self.renewal_ms.min(other.renewal_ms), ..shorter }
    }

    /// Returns what voters and the leader go by who must be safe under both: the one that ages for longer,
    /// suspecting as late as either does (decision 0036).
    #[must_use]
    pub fn or_longer(self, other: Self) -> Self {
        let longer = if other.aged_ns() > self.aged_ns() { other } else { self };
        Self { suspicion_ms: self.suspicion_ms.max(other.suspicion_ms), ..longer }
    }
}

/// How commits wait for standbys (docs/safety.md 6).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SyncMode {
    /// For none.
    #[default]
    Off,
    /// For some, and the primary goes on alone when none is there.
    Quorum,
    /// For some, whatever happens.
    Strict,
}

impl SyncMode {
    /// Returns the mode of a new cluster where nobody says otherwise: zero loss wherever one member
    /// may fail without stopping the writes.
    pub fn default_for(data_members: usize, witnesses: usize) -> Self {
        if data_members >= 3 || (data_members == 2 && witnesses > 0) { Self::Quorum } else { Self::Off }
    }

    /// Returns its name in settings and files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::Quorum => "quorum",
            Self::Strict => "strict",
        }
    }
}

/// The replicated settings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// The lease's timings.
    pub timing: Timing,
    /// How many bytes of WAL an automatic failover may leave behind in asynchronous mode.
    pub max_lag_on_failover: u64,
    /// After how long a silence a voter is dead and another member votes in its place, in milliseconds; 0: never.
    #[serde(default = "dead_member_timeout")]
    pub dead_member_timeout_ms: u64,
    /// How commits wait for standbys.
    pub sync: SyncMode,
    /// For how many; absent: half the data members, rounded down.
    pub sync_required: Option<u32>,
    /// Postgres parameters that the user set.
    pub postgres: BTreeMap<String, String>,
    /// Lines of pg_hba.conf, before the ones Rhone manages for clients.
    pub pg_hba: Vec<String>,
    /// Lines of pg_ident.conf, after Rhone's own map.
    pub pg_ident: Vec<String>,
}

impl Settings {
    /// Returns all settings as text, by the keys that operators use. What is not set is not in it.
    pub fn flat(&self) -> BTreeMap<String, String> {
        let timing = &self.timing;
        let permille = timing.drift_permille;
        let drift = if permille.is_multiple_of(10) {
            format!("{}%", permille / 10)
        } else {
            format!("{}.{}%", permille / 10, permille % 10)
        };
        let mut flat = BTreeMap::from([
            ("sync".to_owned(), self.sync.name().to_owned()),
            ("max-lag-on-failover".to_owned(), size_text(self.max_lag_on_failover)),
            ("dead-member-timeout".to_owned(), duration_text(self.dead_member_timeout_ms)),
            ("timing.renewal".to_owned(), format!("{}ms", timing.renewal_ms)),
            ("timing.suspicion".to_owned(), format!("{}ms", timing.suspicion_ms)),
            ("timing.lease".to_owned(), format!("{}ms", timing.lease_ms)),
            ("timing.drift".to_owned(), drift),
            ("timing.guard".to_owned(), format!("{}ms", timing.guard_ms)),
        ]);
        if let Some(required) = self.sync_required {
            flat.insert("sync-required".to_owned(), required.to_string());
        }
        if !self.pg_hba.is_empty() {
            flat.insert("pg-hba".to_owned(), self.pg_hba.join("\n"));
        }
        if !self.pg_ident.is_empty() {
            flat.insert("pg-ident".to_owned(), self.pg_ident.join("\n"));
        }
        for (name, value) in &self.postgres {
            flat.insert(format!("postgres.{name}"), value.clone());
        }
        flat
    }
}

/// Five minutes: longer than a reboot, an upgrade or a switch that is exchanged.
fn dead_member_timeout() -> u64 {
    300_000
}

/// Prints milliseconds in the largest unit that they are a whole number of; none: `off`.
fn duration_text(ms: u64) -> String {
    let units = [("d", 86_400_000), ("h", 3_600_000), ("min", 60_000), ("s", 1000), ("ms", 1)];
    let whole = units.iter().find(|(_, of)| ms > 0 && ms.is_multiple_of(*of));
    whole.map_or_else(|| "off".to_owned(), |(unit, of)| format!("{}{unit}", ms / of))
}

/// Prints bytes in the largest unit that they are a whole number of, as Postgres does.
fn size_text(bytes: u64) -> String {
    let units = [("TB", 40), ("GB", 30), ("MB", 20), ("kB", 10)];
    let whole = units.iter().find(|(_, shift)| bytes > 0 && bytes.trailing_zeros() >= *shift);
    whole.map_or_else(|| bytes.to_string(), |(unit, shift)| format!("{}{unit}", bytes >> shift))
}

/// What became of one setting in a change.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingDiff {
    /// Its key, as in [`Settings::flat`].
    pub key: String,
    /// Its value before; none: it was not set.
    pub before: Option<String>,
    /// Its value after; none: it is not set any more.
    pub after: Option<String>,
}

/// Returns what differs between two settings, by key.
pub fn differences(before: &Settings, after: &Settings) -> Vec<SettingDiff> {
    let (before, after) = (before.flat(), after.flat());
    let keys: std::collections::BTreeSet<&String> = before.keys().chain(after.keys()).collect();
    let diff = |key: &String| SettingDiff {
        key: key.clone(),
        before: before.get(key).cloned(),
        after: after.get(key).cloned(),
    };
    keys.into_iter().map(diff).filter(|diff| diff.before != diff.after).collect()
}

/// One version of the settings: what was changed, by whom and when.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct SettingsChange {
    /// The version that it made; the first settings are version 1.
    pub version: u64,
    /// When, for people.
    pub at: WallTime,
    /// Who, and from where, for people.
    pub by: String,
    /// What.
    pub changes: Vec<SettingDiff>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timing: Timing::default(),
            max_lag_on_failover: 1024 * 1024,
            dead_member_timeout_ms: dead_member_timeout(),
            sync: SyncMode::Off,
            sync_required: None,
            postgres: BTreeMap::new(),
            pg_hba: Vec::new(),
            pg_ident: Vec::new(),
        }
    }
}
