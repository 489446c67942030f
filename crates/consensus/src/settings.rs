//! What all members must agree on besides who leads: timings and Postgres parameters.
//!
//! Pure. A setting lives either here or in a member's file, never in both.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// The timings of the lease (DESIGN 3), in milliseconds; the drift in parts per thousand.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
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
    /// A wired LAN of small boards (DESIGN 3).
    fn default() -> Self {
        Self { renewal_ms: 100, suspicion_ms: 500, lease_ms: 1500, drift_permille: 10, guard_ms: 150 }
    }
}

impl Timing {
    /// Returns for how long after its sending a renewal lets the primary serve, in nanoseconds.
    pub fn serve_ns(&self) -> u64 {
        let lease = u64::from(self.lease_ms) * 1_000_000;
        let drift = lease / 1000 * u64::from(self.drift_permille);
        lease.saturating_sub(drift).saturating_sub(u64::from(self.guard_ms) * 1_000_000)
    }

    /// Returns after how long a silence a voter counts as aged, in nanoseconds.
    pub fn aged_ns(&self) -> u64 {
        let lease = u64::from(self.lease_ms) * 1_000_000;
        lease + lease / 1000 * u64::from(self.drift_permille)
    }
}

/// How commits wait for standbys (DESIGN 6).
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
    /// How commits wait for standbys.
    pub sync: SyncMode,
    /// For how many; absent: half the data members, rounded down.
    pub sync_required: Option<u32>,
    /// Postgres parameters that the user set.
    pub postgres: BTreeMap<String, String>,
    /// Lines of pg_hba.conf, before the ones Rhone manages for clients.
    pub pg_hba: Vec<String>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            timing: Timing::default(),
            max_lag_on_failover: 1024 * 1024,
            sync: SyncMode::Off,
            sync_required: None,
            postgres: BTreeMap::new(),
            pg_hba: Vec::new(),
        }
    }
}
