//! Failover and the data: the real decisions and the real replicated state over a model Postgres.
//!
//! Real code: `decide::cluster` (with `elect` and `quorum`), `decide::node`, `decide::down`,
//! `ClusterState::apply` (with policies and ledger). The world supplies the log's delivery, the
//! members' effects step by step, Postgres' WAL, streams, settings and acknowledgements, and faults.
//!
//! Everything that is not a step of its own happens when the adversary likes, or never: so messages
//! are lost, delayed and reordered, links are cut whole, in part or one way, and processes are
//! stopped and go on, without any step saying so. In synchronous mode no clock is in it at all; in
//! asynchronous mode the lease is what [`crate::lease`] proves of it: a voter ages only once no live
//! lease counts on it.

mod check;
mod log;
mod mutant;
mod node;
mod postgres;
mod state;
mod views;
mod wal;
mod world;

pub use mutant::Mutant;
pub use state::{Mode, Setup, State, Step};
pub use world::DataWorld;
