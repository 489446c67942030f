//! Rhone: a high-availability supervisor for `PostgreSQL` with Raft built in.
//!
//! The binary is a thin shell round [`cli::main`]. What operators see (configuration,
//! command line, HTTP, gRPC) lives here beside what decides ([`decide`], pure) and what carries it
//! out ([`runtime`]); the fence is a process of its own ([`guardian`]).
pub mod api;
pub mod civil;
pub mod cli;
pub mod config;
pub mod decide;
pub mod demo;
pub mod doctor;
pub mod footprint;
#[cfg(test)]
mod fuzz_tests;
pub mod guardian;
pub mod import;
pub mod init;
#[cfg(feature = "mutants")]
pub mod mutant;
#[cfg(not(feature = "mutants"))]
mod mutant;
pub mod notify;
pub mod pooler;
pub mod proxy;
pub mod record;
pub mod recover;
pub mod run;
pub mod runtime;
pub mod settings;
pub mod status;
pub mod telemetry;
pub mod tls;
pub mod view;
