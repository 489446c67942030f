//! Explores Rhone's decision core exhaustively, in worlds small enough for that.
//!
//! - [`search`]: breadth first, one fingerprint a state, the shortest trace to a broken property.
//! - [`lease`]: voters, the owner's count and the guardian, on clocks of different rates.
//! - [`data`]: elections, policies, timelines and acknowledged commits over a model Postgres.
//! - [`suite`]: which worlds are searched and how far, and what each mutant must break.
//!
//! What decides here is the product's own code (`rhone::decide`, `ClusterState::apply`); the worlds
//! only supply what surrounds it. A [mutant](lease::Mutant) is a world in which one rule is left
//! out, and never a switch in the product.

pub mod data;
pub mod lease;
pub mod search;
pub mod suite;
