//! Clusters of real processes, faults, and the checkers that judge them.
//!
//! The harness knows only the binary `rhone`, its configuration, its CLI and SQL. What it
//! believes about safety comes from clients ([`workload`]) and from rows ([`checker`]), never
//! from what the product says about itself. Each member lives in a network namespace and a
//! cgroup of its own where root is available ([`namespace`]), else on 127.0.0.x with fewer
//! faults, and the report says so.

pub mod bench;
pub mod bench_clients;
pub mod bench_proxy;
pub mod binary;
pub mod campaign;
pub mod cgroup;
pub mod checker;
pub mod cleanup;
pub mod clock;
pub mod cluster;
pub mod disk;
pub mod fault;
pub mod history;
pub mod idle;
pub mod latency;
pub mod leak;
pub mod limits;
pub mod lock;
pub mod namespace;
pub mod node;
pub mod noise;
pub mod outcome;
pub mod peers;
pub mod pki;
pub mod pooler;
pub mod ports;
pub mod process;
pub mod random;
pub mod resume;
pub mod roles;
pub mod scale;
pub mod scenario;
pub mod script;
pub mod spec;
pub mod sql;
pub mod stats;
pub mod steps;
pub mod strike;
pub mod transactions;
pub mod transcript;
pub mod walltime;
pub mod workload;
