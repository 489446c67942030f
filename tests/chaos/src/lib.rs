//! Clusters of real processes, faults, and the checkers that judge them.
//!
//! The harness knows only the binary `rhone`, its configuration, its CLI and SQL. What it
//! believes about safety comes from clients ([`workload`]) and from rows ([`checker`]), never
//! from what the product says about itself. Each member lives in a network namespace and a
//! cgroup of its own where root is available ([`namespace`]), else on 127.0.0.x with fewer
//! faults, and the report says so.

pub mod bench;
pub mod bench_proxy;
pub mod binary;
pub mod cgroup;
pub mod checker;
pub mod cleanup;
pub mod clock;
pub mod cluster;
pub mod history;
pub mod lock;
pub mod namespace;
pub mod nemesis;
pub mod node;
pub mod ports;
pub mod process;
pub mod random;
pub mod scenario;
pub mod sql;
pub mod stats;
pub mod workload;
