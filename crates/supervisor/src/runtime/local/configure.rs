//! What the running instance was told of the replicated settings, and what of it waits for a restart.

use rhone_pgctl::probe::{Probe, RoleFacts};
use rhone_pgctl::settings::{MANAGED_FILE, value_in};
use rhone_pgctl::wal::Lsn;

use super::Local;
use crate::view::{Copying, Pending, ServerFacts};

impl Local {
    /// Returns the version of the settings as they are here now: to be asked for before they are read.
    pub(super) fn settings_version(&self) -> u64 {
        self.state(|state| state.settings_version)
    }

    /// Takes note that the running instance was told the settings of that version.
    pub(super) fn configured(&self, version: u64) {
        self.facts().configured = Some(version);
    }

    /// Returns what waits for a restart, each with the value that the managed file has.
    pub(super) fn pending_of(&self, probe: &Probe) -> Vec<Pending> {
        if probe.pending.is_empty() {
            return Vec::new();
        }
        let file = std::fs::read_to_string(self.data_dir().join(MANAGED_FILE)).unwrap_or_default();
        let pending = |(name, running): &(String, String)| Pending {
            name: name.clone(),
            running: running.clone(),
            wanted: value_in(&file, name),
        };
        probe.pending.iter().map(pending).collect()
    }

    /// Returns what the running server says of itself.
    pub fn server_facts(&self) -> ServerFacts {
        let asked = self.shared.asked.borrow().reinit;
        let copying = asked.is_some() && asked == self.shared.hard.get().data.map(|record| record.id);
        let facts = self.facts();
        ServerFacts {
            started_ms: facts.probe.as_ref().filter(|_| facts.ready).map(started_ms),
            settings: facts.configured.unwrap_or(0),
            pending: if facts.ready { facts.pending.clone() } else { Vec::new() },
            start_failure: facts.start_failure.clone(),
            copying: copying.then(|| Copying {
                bytes: facts.clone_bytes >> 20 << 20,
                failed: facts.copies_failed.0,
                error: facts.copies_failed.1.clone(),
            }),
            refused_lines: if facts.ready { facts.refused_lines.clone() } else { Vec::new() },
            replayed: facts.probe.as_ref().filter(|_| facts.ready).and_then(replayed),
            crash_recovery: facts.crash_recovery,
        }
    }
}

/// Returns the end of the WAL that a standby has replayed; nothing of a primary.
fn replayed(probe: &Probe) -> Option<Lsn> {
    match &probe.role {
        RoleFacts::Standby(standby) => standby.replayed,
        RoleFacts::Primary(_) => None,
    }
}

/// Returns when a server started, in milliseconds since 1970: the same number at each look.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a moment after 1970")]
pub fn started_ms(probe: &Probe) -> u64 {
    (probe.started.max(0.0) * 1000.0).round() as u64
}
