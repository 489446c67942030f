//! What runs: clocks, loops, and everything else that is not a pure decision.
//!
//! - [`supervisor`]: puts one member together and takes it apart again.
//! - [`node`]: the loop that looks after the local Postgres; [`leader`]: the Raft leader's loop.
//! - `witness`: a member without Postgres.
//! - [`lease`] and [`voter`]: the two halves of the lease.
//! - [`local`] and [`effects`]: what is done to Postgres.
//! - [`recorder`]: writes changed decisions with what they were taken from.

pub(crate) mod aside;
pub mod chores;
pub mod clock;
pub(crate) mod codec;
pub mod counts;
pub mod doctor;
pub mod effects;
mod events;
mod failover;
pub mod found;
pub mod generation;
mod handover;
mod hints;
mod hooks;
pub mod leader;
pub mod lease;
pub mod local;
pub mod node;
mod operator;
mod outlook;
pub mod peers;
mod publish;
pub mod recorder;
pub mod rehearse;
pub mod report;
mod restarts;
pub mod secret;
pub mod shared;
pub mod supervisor;
pub mod ticker;
mod tune;
pub mod voter;
pub mod witness;
