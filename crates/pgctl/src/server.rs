//! What a local server is, as callers see it: one variant for each state, with just the facts it can have.

use std::path::Path;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::connection::LocalConnection;
use crate::control::ControlData;
use crate::datadir::{DataDir, PostmasterPid, inspect, processes_in, running_postmaster};
use crate::error::PgError;
use crate::install::Installation;
use crate::probe::{PrimaryFacts, Probe, RoleFacts, StandbyFacts, probe};
use crate::user::OsUser;

/// What the local server is.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub enum ServerState {
    /// There is no data directory.
    Missing,
    /// There is an empty one.
    Empty,
    /// There is something that cannot be used; a person must look.
    Unusable(String),
    /// Nothing runs.
    Stopped {
        /// What its control file says.
        control: Box<ControlData>,
        /// It did not end in an orderly way.
        crashed: bool,
        /// It would start as a standby.
        standby_signal: bool,
    },
    /// Processes of it are there, but no postmaster: kill them before anything else.
    Strays(Vec<u32>),
    /// A postmaster runs and does not accept connections yet, or no longer.
    Starting {
        /// The postmaster.
        pid: u32,
    },
    /// It takes writes.
    Primary {
        /// The postmaster.
        pid: u32,
        /// What it says.
        probe: Box<Probe>,
    },
    /// It replays WAL.
    Standby {
        /// The postmaster.
        pid: u32,
        /// What it says.
        probe: Box<Probe>,
    },
    /// A postmaster runs and does not answer.
    NotAnswering {
        /// The postmaster.
        pid: u32,
        /// What went wrong.
        reason: String,
    },
}

impl ServerState {
    /// Makes the state of a running server of its postmaster and what the probe found.
    pub fn of_probe(pid: u32, found: Result<Probe, PgError>) -> Self {
        match found {
            Ok(probe) if matches!(probe.role, RoleFacts::Primary(_)) => {
                Self::Primary { pid, probe: Box::new(probe) }
            }
            Ok(probe) => Self::Standby { pid, probe: Box::new(probe) },
            Err(PgError::Unreachable { .. }) => Self::Starting { pid },
            Err(error) => Self::NotAnswering { pid, reason: error.to_string() },
        }
    }

    /// Returns what a running primary has.
    pub fn primary(&self) -> Option<&PrimaryFacts> {
        match self.probe()?.role {
            RoleFacts::Primary(ref facts) => Some(facts),
            RoleFacts::Standby(_) => None,
        }
    }

    /// Returns what a running standby has.
    pub fn standby(&self) -> Option<&StandbyFacts> {
        match self.probe()?.role {
            RoleFacts::Standby(ref facts) => Some(facts),
            RoleFacts::Primary(_) => None,
        }
    }

    /// Returns what the probe of an answering server found.
    pub fn probe(&self) -> Option<&Probe> {
        match self {
            Self::Primary { probe, .. } | Self::Standby { probe, .. } => Some(probe),
            Self::Missing
            | Self::Empty
            | Self::Unusable(_)
            | Self::Stopped { .. }
            | Self::Strays(_)
            | Self::Starting { .. }
            | Self::NotAnswering { .. } => None,
        }
    }
}

/// Looks at the local server: its processes, its answer to a probe, else its files.
///
/// # Errors
/// Those of [`inspect`] other than an unusable data directory, which is a state.
pub async fn observe(
    data_dir: &Path,
    install: &Installation,
    user: &OsUser,
    connection: &mut LocalConnection,
    limit: Duration,
) -> Result<ServerState, PgError> {
    if let Some(PostmasterPid { pid, .. }) = running_postmaster(data_dir)? {
        return Ok(ServerState::of_probe(pid, probe(connection, limit).await));
    }
    connection.close();
    match inspect(data_dir, install, user, limit).await {
        Ok(DataDir::Missing) => Ok(ServerState::Missing),
        Ok(DataDir::Empty) => Ok(ServerState::Empty),
        Ok(DataDir::NotPostgres(reason)) => Ok(ServerState::Unusable(reason)),
        Ok(DataDir::Present(facts)) => {
            let strays = processes_in(data_dir);
            if !strays.is_empty() {
                return Ok(ServerState::Strays(strays));
            }
            let crashed = facts.control.crashed();
            let standby_signal = facts.standby_signal;
            Ok(ServerState::Stopped { control: Box::new(facts.control), crashed, standby_signal })
        }
        Err(error @ PgError::DataDirUnusable { .. }) => Ok(ServerState::Unusable(error.to_string())),
        Err(error) => Err(error),
    }
}
