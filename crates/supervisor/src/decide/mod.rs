//! What is to be done, as two functions of data: [`cluster()`] on the Raft leader and [`node()`] on
//! each member.
//!
//! Facts and time go in; a proposal, an effect, or a wait with its reason comes out. Nothing here
//! reads a clock, waits, logs, fails or does I/O, so that every decision can be tested as a table,
//! replayed from a record, and explored by a model. Doing nothing is a value with a reason, too.

mod cluster;
pub mod deafness;
mod decision;
mod elect;
pub mod lease;
pub mod members;
mod mixture;
mod node;
pub mod presence;
pub mod quorum;
pub mod schedule;
mod words;

pub use cluster::cluster;
pub use decision::{ClusterDecision, Effect, NodeDecision, Reason, Wait};
pub use elect::{ELECTION_WINDOW_MS, Election, elect};
pub use node::{down, node};
pub use words::command_in_words;
