//! The rules that can be left out, and where that shows.

use super::world::{Mode, Setup};

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// None.
    None,
    /// A promise does not survive a crash.
    PromiseForgotten,
    /// One standby of S is enough to cover a policy.
    CoverTooSmall,
    /// A Grant drops the policies that were open, and what its epoch begins with, as if it were
    /// established: the two hold the same commits, each alone is enough.
    PoliciesForgotten,
    /// A copy counts at once, wherever it ends, as the data directory that it replaces: it gets neither
    /// a floor nor another id. Each alone is enough.
    NoFloor,
    /// A data directory that was replaced by an older copy counts as the one before.
    IncarnationIgnored,
    /// Postgres takes a new policy before it is in Raft.
    PostgresFirst,
    /// Postgres goes on alone before that is in Raft.
    AloneFirst,
    /// A policy change does not wait for every walsender to have taken it over.
    NoSettle,
    /// A policy change does not wait for the new standbys to have what was acknowledged.
    NoBarrier,
    /// An effect does not compare its epoch once more before it acts.
    NoEpochRecheck,
    /// Timelines are planned without the ledger.
    LedgerIgnored,
    /// A revoked member reports less than it has.
    UnderReported,
    /// A member promises and goes on receiving.
    StreamsOn,
    /// The gate opens before the epoch's marker is durable.
    GateWithoutMarker,
    /// A rewind leaves no trace before it begins, neither a promise nor a sentinel, and does not wait
    /// until its source is established; and what a failed epoch began with is forgotten. Any one of
    /// these is enough.
    RewindUnannounced,
    /// A member is granted that has less than another.
    NotTheMost,
    /// A Grant does not wait for the last owner's lease.
    FenceIgnored,
    /// A Grant takes no note of how much would be lost.
    NoLagGate,
}

impl Mutant {
    /// Every rule that can be left out.
    pub const ALL: [Self; 18] = [
        Self::PromiseForgotten,
        Self::CoverTooSmall,
        Self::PoliciesForgotten,
        Self::NoFloor,
        Self::IncarnationIgnored,
        Self::PostgresFirst,
        Self::AloneFirst,
        Self::NoSettle,
        Self::NoBarrier,
        Self::NoEpochRecheck,
        Self::LedgerIgnored,
        Self::UnderReported,
        Self::StreamsOn,
        Self::GateWithoutMarker,
        Self::RewindUnannounced,
        Self::NotTheMost,
        Self::FenceIgnored,
        Self::NoLagGate,
    ];

    /// Returns a small world that shows it.
    pub fn shown_in(self) -> Setup {
        let sync = Setup { epochs: 1, writes: 1, faults: 0, changes: 0, delays: 0, ..Setup::SYNC };
        match self {
            Self::None => Setup::SYNC,
            Self::PromiseForgotten => Setup { faults: 1, delays: 1, ..sync },
            Self::IncarnationIgnored | Self::NoFloor => Setup { restores: 1, ..sync },
            Self::RewindUnannounced => Setup { epochs: 2, writes: 2, faults: 1, delays: 1, ..sync },
            Self::PoliciesForgotten | Self::GateWithoutMarker => Setup { epochs: 2, ..sync },
            Self::LedgerIgnored => Setup { epochs: 2, ..sync },
            Self::NoEpochRecheck => Setup { epochs: 2, delays: 1, ..sync },
            Self::PostgresFirst | Self::AloneFirst | Self::NoSettle | Self::NoBarrier => {
                Setup { changes: 1, ..sync }
            }
            Self::FenceIgnored => Setup { mode: Mode::Async, ..sync },
            Self::NoLagGate => Setup { mode: Mode::Async, writes: 3, ..sync },
            Self::CoverTooSmall | Self::UnderReported | Self::StreamsOn | Self::NotTheMost => sync,
        }
    }
}
