//! Raft (openraft, sled, gRPC) and the cluster state it replicates.
//!
//! ```text
//! Consensus ── propose ──▶ openraft ── append ──▶ storage thread: sled, fdatasync, guard,
//!     ▲                     ▲    │                LogObserver, and only then the answer
//!     │ watch               │    └── apply ──▶ ClusterState
//! AppliedState         election (pre-vote), Vote guard
//!                           ▲
//!                  gRPC: Append, Vote, Snapshot, PreVote; strangers are turned away
//! ```
//!
//! Nothing here knows Postgres beyond the types of `rhone_pgctl::wal`, and nothing here
//! decides: it orders what is proposed and remembers it.
mod ahead;
mod codec;
pub mod command;
mod contact;
mod election;
mod error;
#[cfg(test)]
mod fuzz_tests;
mod handle;
pub mod host;
pub mod identity;
pub mod ids;
pub mod ledger;
mod loss;
pub mod observer;
mod patience;
pub mod policy;
mod propose;
pub mod proto;
pub mod raft;
pub mod recover;
pub mod settings;
pub mod state;
mod status;
pub mod store;
pub mod tags;
pub mod transport;

pub use error::ConsensusError;
pub use handle::{Consensus, Options, StoreAt};
pub use propose::Applied;
pub use raft::{PeerNode, Timings};
pub use status::{RaftStatus, Role};
pub use store::disk::SyncCount;
pub use store::hard::HardStateFile;
pub use store::machine::AppliedState;
