//! The rules that can be left out, and where that shows.

use super::state::{Mode, Setup};

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// None.
    None,
    /// A promise does not survive a crash.
    PromiseForgotten,
    /// One standby of S is enough to cover a policy.
    CoverTooSmall,
    /// A Grant drops the policies that were open, and what a failed epoch began with is forgotten, as
    /// if it had been established. (An election asks for both: the model finds no loss of two epochs
    /// with one write where only the first is left out.)
    PoliciesForgotten,
    /// A copy counts at once, wherever it ends, as the data directory that it replaces: it gets neither
    /// a floor nor another id.
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
    /// A policy change goes straight to the new policy, though walsenders mix it with the old one.
    MixtureForgotten,
    /// An effect does not compare its epoch once more before it acts: one that was decided before a
    /// Revoke acts after it.
    NoEpochRecheck,
    /// Timelines are planned without the ledger.
    LedgerIgnored,
    /// A revoked member reports less than it has.
    UnderReported,
    /// A member promises and goes on receiving.
    StreamsOn,
    /// The gate opens before the epoch's marker is durable.
    GateWithoutMarker,
    /// A rewind leaves no trace before it begins, no promise, sentinel, floor or other data id, and
    /// does not wait until its source is established; and what a failed epoch began with is forgotten.
    /// (Where only the promise is left out, the model finds no loss of two epochs with one write.)
    RewindUnannounced,
    /// A member is granted that has less than another.
    NotTheMost,
    /// A member is granted that has less than one that cannot be promoted, though those who have no more
    /// than it do not cover every policy.
    EnoughIgnored,
    /// A Grant does not wait for the last owner's lease.
    FenceIgnored,
    /// A Grant takes no note of how much would be lost.
    NoLagGate,
}

impl Mutant {
    /// Every rule that can be left out.
    pub const ALL: [Self; 20] = [
        Self::PromiseForgotten,
        Self::CoverTooSmall,
        Self::PoliciesForgotten,
        Self::NoFloor,
        Self::IncarnationIgnored,
        Self::PostgresFirst,
        Self::AloneFirst,
        Self::NoSettle,
        Self::NoBarrier,
        Self::MixtureForgotten,
        Self::NoEpochRecheck,
        Self::LedgerIgnored,
        Self::UnderReported,
        Self::StreamsOn,
        Self::GateWithoutMarker,
        Self::RewindUnannounced,
        Self::NotTheMost,
        Self::EnoughIgnored,
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
            Self::RewindUnannounced => Setup { epochs: 2, writes: 2, ..sync },
            Self::PoliciesForgotten | Self::GateWithoutMarker => Setup { epochs: 2, ..sync },
            Self::LedgerIgnored => Setup { epochs: 2, ..sync },
            Self::NoEpochRecheck => Setup { delays: 1, ..sync },
            Self::PostgresFirst | Self::AloneFirst | Self::NoSettle | Self::NoBarrier => {
                Setup { changes: 1, ..sync }
            }
            Self::MixtureForgotten => Setup { mode: Mode::Two, changes: 2, ..sync },
            Self::FenceIgnored => Setup { mode: Mode::Async, ..sync },
            Self::EnoughIgnored => Setup { unfit: true, ..sync },
            Self::NoLagGate => Setup { mode: Mode::Async, writes: 3, ..sync },
            Self::CoverTooSmall | Self::UnderReported | Self::StreamsOn | Self::NotTheMost => sync,
        }
    }

    /// Returns the property that is broken without it.
    pub fn breaks(self) -> &'static str {
        match self {
            Self::None => "none",
            Self::PromiseForgotten | Self::StreamsOn | Self::NoEpochRecheck => "I7",
            Self::AloneFirst | Self::NoSettle => "I6",
            Self::LedgerIgnored => "I9",
            Self::GateWithoutMarker => "I11",
            Self::FenceIgnored => "I2",
            Self::NoLagGate => "I4",
            Self::CoverTooSmall
            | Self::PoliciesForgotten
            | Self::NoFloor
            | Self::IncarnationIgnored
            | Self::PostgresFirst
            | Self::NoBarrier
            | Self::MixtureForgotten
            | Self::UnderReported
            | Self::RewindUnannounced
            | Self::EnoughIgnored
            | Self::NotTheMost => "I3",
        }
    }
}
