//! The guardian: a second process, parent of the postmaster, that stops it when the lease ends.
//!
//! It holds whatever becomes of the supervisor: hung, stopped, killed, swapped out, upgraded. It is one
//! thread without a runtime, decides nothing, writes nothing to any disk, and must never wait for
//! anything that another process or a disk could withhold.
//!
//! - [`client`]: the supervisor's side; [`Guardian`] is all that it needs.
//! - [`main()`]: the guardian's process.
//! - [`emergency`]: what the supervisor does when the guardian itself is gone.
//!
//! # What is certain, and what is not
//! - An instance that has a lease is frozen at its end, and thawed only by a renewal that was sent after
//!   the freeze, in the same epoch. After [`FROZEN_LIMIT`] it is killed.
//! - The supervisor's death changes nothing by itself; an instance without need of a lease goes on.
//! - An instance that ever had a lease keeps needing one until it is gone (or [`Guardian::release`]).
//! - If the guardian dies, the kernel kills the postmaster. A busy backend may go on for seconds: the
//!   supervisor sees [`Guardian::died`] and calls [`emergency::kill_instance`]. If both die at the same
//!   moment nothing stops that backend, and if both are stopped nothing stops the instance, but the dead-man keeps its
//!   packets in ([`GuardianOptions::dead_man`]), or the machine's watchdog resets the machine ([`GuardianOptions::watchdog`]),
//!   where there is one.
//!
//! # What it asks of its surroundings
//! It stays in the cgroup of the supervisor that started it, so that whoever kills or freezes that one
//! means the instance too; a systemd unit therefore needs `KillMode=process`, or stopping the supervisor
//! kills Postgres. Root, or `CAP_SYS_NICE`, `CAP_IPC_LOCK` and `CAP_SYS_RESOURCE`, and a delegated cgroup
//! make it stronger; what it got is in its [`Status`].
//!
//! A guardian stays while its instance runs; an upgrade of the binary reaches it when the instance is
//! next stopped ([`Guardian::quit`], then a new one). It needs its own file only to be started.

mod cgroup;
pub mod client;
mod control;
mod daemon;
mod deadman;
pub mod emergency;
mod family;
mod fence;
#[cfg(test)]
mod fuzz_tests;
mod instance;
mod nftables;
mod page;
mod proc;
mod server;
mod stand_in;
pub(crate) mod sys;
mod watchdog;
mod wire;

pub(crate) use cgroup::of_process;
pub use client::{FenceChoice, Guardian, GuardianError, GuardianOptions};
pub use daemon::main;
pub(crate) use nftables::rehearse as rehearse_dead_man;
pub use page::{GuardState, LastResort, Lease, SharedPage};
pub use stand_in::StandIn;
pub use wire::{
    Backend, Cause, Event, ExitReport, FrozenReport, LeaseReport, MemoryLock, PostmasterSignal, Priority,
    Refusal, RunAs, StartSpec, StartStage, Status,
};

use std::time::Duration;

/// How long an instance may stay frozen before it is killed (docs/safety.md 4).
pub const FROZEN_LIMIT: Duration = Duration::from_secs(10);
