//! `make bench PEERS=1`: Rhone and its peers, on the same nodes, under the same clients and faults.
//!
//! A [`System`] is one product in one configuration. A [`Bed`] is three nodes of it: the nodes are the harness's own
//! ([`crate::cluster::Cluster`]), and a peer comes in as the program that a node starts, so that network, power, clients and
//! the question who streams from whom are the same for all. Each run of a fault becomes a [`Record`] in a
//! file, and the page is written from the file: nothing in it is typed.

pub mod autofailover;
pub mod cost;
pub mod fault;
pub mod launch;
pub mod order;
pub mod page;
pub mod patroni;
pub mod record;
pub mod system;

pub use order::{Order, run};
pub use record::Record;
pub use system::{Bed, System};
