//! The faults that there are: what each needs, and what it may cost in asynchronous mode.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::namespace::Means;
use crate::node::Extras;
use crate::scenario::{GAP_LIMIT, HUNG, LEASE};
use crate::{binary, disk, latency, limits, walltime};

/// One kind of fault, done to one member.
#[derive(
    Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, clap::ValueEnum,
)]
#[serde(rename_all = "snake_case")]
#[clap(rename_all = "snake_case")]
pub enum Fault {
    /// All processes of the node end at once; connections are reset; what was written stays.
    PowerLoss,
    /// The same, and nobody is told: the link is cut first.
    BlackHole,
    /// Power lost with the disks: what was not fsynced is gone.
    PowerCut,
    /// SIGKILL of the postmaster.
    KillPostmaster,
    /// SIGKILL of one client's backend.
    KillBackend,
    /// SIGKILL of the checkpointer.
    KillCheckpointer,
    /// SIGKILL of the walreceiver; of the walsenders on a primary.
    KillReplication,
    /// SIGKILL of the supervisor, started again when it heals.
    KillSupervisor,
    /// SIGKILL of the supervisor, started again at once.
    CrashSupervisor,
    /// SIGKILL of the guardian.
    KillGuardian,
    /// SIGKILL of supervisor and guardian.
    KillBoth,
    /// SIGSTOP of the supervisor.
    StopSupervisor,
    /// SIGSTOP of the guardian.
    StopGuardian,
    /// SIGSTOP of both.
    StopBoth,
    /// SIGSTOP of all of Postgres.
    StopPostgres,
    /// SIGSTOP of the postmaster alone.
    StopPostmaster,
    /// SIGSTOP of one client's backend.
    StopBackend,
    /// SIGSTOP of the checkpointer.
    StopCheckpointer,
    /// SIGSTOP of the walreceiver; of the walsenders on a primary.
    StopReplication,
    /// SIGSTOP of every process of the node.
    StopEverything,
    /// The whole node frozen at once, as by a hypervisor that stalls.
    FreezeNode,
    /// SIGTERM to the supervisor (a hand-over on the primary), started again when it heals.
    Terminate,
    /// `rhone switchover` to another member that streams.
    Switchover,
    /// `rhone failover --to` another member.
    Failover,
    /// `rhone restart --rolling`: every Postgres anew, the primary's by a switchover.
    RollingRestart,
    /// `rhone reinit` of a standby: its data copied anew.
    Reinit,
    /// The supervisor replaced by another copy of the program, without a word to the others.
    Upgrade,
    /// The same, every member one after the other.
    RollingUpgrade,
    /// `rhone member demote`: it votes no more, until it heals.
    Demote,
    /// Cut off from everybody.
    Cut,
    /// It hears the other members and is not heard by them.
    Unheard,
    /// It is heard by the other members and does not hear them.
    Deaf,
    /// Cut off from the other members only: clients see it.
    Island,
    /// Cut off from one of the other members.
    LinkDown,
    /// Cut off from the member that leads Raft, nobody else.
    LeaderLink,
    /// No traffic of the supervisors from and to it.
    RaftPort,
    /// No traffic of Postgres from and to it.
    PostgresPort,
    /// The members form a ring, whoever it is done to: each reaches its two neighbours, which with itself are a
    /// majority of five, and no two members reach the same ones.
    Ring,
    /// Cut off and back, again and again.
    Flap,
    /// A third of its frames is lost.
    Loss,
    /// One of a hundred of its frames is lost.
    LightLoss,
    /// Its link carries 60 kB/s.
    Narrow,
    /// Its link takes 5 to 300 ms longer in each direction, give or take a third.
    Latency,
    /// Its wall clock jumps ten minutes ahead.
    ClockAhead,
    /// Its wall clock jumps ten minutes back.
    ClockBack,
    /// Its wall clock steps to and fro by a second.
    ClockSteps,
    /// The disk of its data directory and WAL is full.
    FullData,
    /// The disk of its Raft store is full.
    FullState,
    /// Writes to the disk of its data directory hang.
    HungData,
    /// Writes to the disk of its Raft store hang.
    HungState,
    /// The disk of its data directory turns read-only.
    ReadOnlyData,
    /// The disk of its Raft store turns read-only.
    ReadOnlyState,
    /// Each fsync of Postgres takes half a second longer.
    SlowSync,
    /// Each fsync of Postgres takes a minute: none comes back while the fault lasts.
    StalledSync,
    /// Power lost, and the Raft store is gone.
    WipedState,
    /// Power lost, and the data directory is gone.
    WipedData,
    /// A tenth of one core is left to the node.
    Starved,
    /// Almost no memory is left to the node: the kernel kills what grows.
    OutOfMemory,
}

/// What clients may lose in asynchronous mode by a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Harm {
    /// Nothing.
    Nothing,
    /// What was not streamed yet when it began.
    Tail,
    /// That, and what is acknowledged until the lease ends.
    Lease,
}

impl Fault {
    /// Why it cannot be done here, `None` when it can.
    pub fn impossible(self, means: Means) -> Option<&'static str> {
        let network = |able: bool| if able { None } else { means.missing() };
        match self {
            Self::BlackHole | Self::Cut | Self::Flap => network(means != Means::Loopback),
            Self::Unheard
            | Self::Deaf
            | Self::Island
            | Self::LinkDown
            | Self::LeaderLink
            | Self::Ring
            | Self::RaftPort
            | Self::PostgresPort
            | Self::Loss
            | Self::LightLoss
            | Self::Narrow => network(means == Means::Filter),
            Self::Latency if means == Means::Filter => latency::impossible(),
            Self::Latency => means.missing(),
            Self::FreezeNode if crate::cgroup::root().is_none() => Some("no cgroup v2 here"),
            Self::SlowSync | Self::StalledSync if binary::program("strace").is_none() => {
                Some("no strace here")
            }
            _ => {
                let extras = self.extras();
                let missing = |wanted: bool, why: Option<&'static str>| why.filter(|_| wanted);
                missing(extras.disks, disk::impossible())
                    .or_else(|| missing(extras.limits, limits::impossible()))
                    .or_else(|| missing(extras.clock, walltime::impossible()))
            }
        }
    }

    /// Why it cannot be done to a cluster of so many members, `None` when it can.
    pub fn too_few(self, members: usize) -> Option<&'static str> {
        (self == Self::Ring && members < 5).then_some("a ring of which nobody reaches all takes five members")
    }

    /// What a node must have been given for it.
    pub fn extras(self) -> Extras {
        let disks = matches!(
            self,
            Self::PowerCut
                | Self::FullData
                | Self::FullState
                | Self::HungData
                | Self::HungState
                | Self::ReadOnlyData
                | Self::ReadOnlyState
        );
        Extras {
            disks,
            limits: matches!(self, Self::Starved | Self::OutOfMemory),
            clock: matches!(self, Self::ClockAhead | Self::ClockBack | Self::ClockSteps),
            dead_man: false,
        }
    }

    /// What it may cost in asynchronous mode when the primary has it.
    pub fn harm(self) -> Harm {
        match self {
            Self::PowerLoss
            | Self::BlackHole
            | Self::PowerCut
            | Self::WipedData
            | Self::WipedState
            | Self::OutOfMemory => Harm::Tail,
            Self::KillBoth
            | Self::StopSupervisor
            | Self::StopGuardian
            | Self::StopBoth
            | Self::StopPostgres
            | Self::StopPostmaster
            | Self::StopEverything
            | Self::FreezeNode
            | Self::Cut
            | Self::Unheard
            | Self::Deaf
            | Self::Island
            | Self::RaftPort
            | Self::PostgresPort
            | Self::Flap
            | Self::Loss
            | Self::Narrow
            | Self::Latency
            | Self::FullData
            | Self::FullState
            | Self::HungData
            | Self::HungState
            | Self::ReadOnlyData
            | Self::ReadOnlyState
            | Self::KillSupervisor
            | Self::Starved
            | Self::StopReplication
            | Self::Ring
            | Self::SlowSync
            | Self::StalledSync
            | Self::Failover => Harm::Lease,
            Self::KillPostmaster
            | Self::KillBackend
            | Self::KillCheckpointer
            | Self::KillReplication
            | Self::CrashSupervisor
            | Self::KillGuardian
            | Self::StopBackend
            | Self::StopCheckpointer
            | Self::Terminate
            | Self::Switchover
            | Self::LightLoss
            | Self::RollingRestart
            | Self::Reinit
            | Self::Upgrade
            | Self::RollingUpgrade
            | Self::Demote
            | Self::LinkDown
            | Self::LeaderLink
            | Self::ClockAhead
            | Self::ClockBack
            | Self::ClockSteps => Harm::Nothing,
        }
    }

    /// Longest time without writes of a round whose faults, with whether each strikes the primary, leave standbys that
    /// can take over however long it lasts: what the product promises (decision 0062), and more for a loaded
    /// machine. `None`: not judged.
    pub fn replaced_within(faults: &[(Self, bool)]) -> Option<Duration> {
        let hangs = faults.contains(&(Self::HungData, true));
        let known =
            faults.iter().all(|fault| matches!(fault, (Self::HungData, true) | (Self::Switchover, _)));
        (hangs && known).then_some(HUNG + GAP_LIMIT * 2)
    }

    /// Whether it can leave a primary that serves and nobody to fence it: supervisor and guardian are
    /// both stopped, or the machine is paused. The stated limit of asynchronous mode; synchronous mode
    /// has no such limit, since nothing is acknowledged without a standby.
    pub fn unfenced(self) -> bool {
        matches!(self, Self::StopBoth | Self::StopEverything | Self::FreezeNode | Self::StopGuardian)
    }

    /// For how long after its beginning rows may be lost in asynchronous mode, when it took `doing` to
    /// do and lasts `held` in all.
    ///
    /// A fault that comes and goes (frames lost, a link that flaps) may begin to matter at any moment
    /// while it lasts; so may two that are harmless alone (two links down are a cut).
    pub fn excused_for(self, alone: bool, doing: Duration, held: Duration) -> Option<Duration> {
        match self.harm() {
            _ if !alone => Some(held + LEASE),
            Harm::Nothing => None,
            Harm::Tail => Some(doing + Duration::from_millis(500)),
            Harm::Lease => Some(held + LEASE),
        }
    }
}
