//! All that touches one local Postgres server; it has never heard of a cluster.
//!
//! A caller may assume: each function is idempotent; each that waits ends by the limit that it is given
//! (`rewind::rewind` alone has none), and dropping its future ends what it started; nothing is
//! deleted before its replacement is complete and on disk; files keep the owner that Postgres needs; the
//! error says what to do next. A `current_thread` runtime is enough.
//!
//! What it never does: decide, retry a failed write, read a clock, or start a server. The postmaster is
//! another process's child: [`process::start_command`] says how to start it, and all else works by its
//! pidfd, its files and its sockets.

pub mod apply;
pub mod clone;
pub mod connection;
pub mod conninfo;
pub mod control;
mod crc;
pub mod datadir;
pub mod end_of_wal;
pub mod error;
pub mod file;
pub mod forked;
#[cfg(test)]
mod fuzz_tests;
pub mod hba;
pub mod hba_line;
pub mod ident_line;
pub mod initdb;
pub mod install;
pub mod marker;
pub mod parameters;
pub mod probe;
pub mod process;
pub mod program;
pub mod refused;
pub mod rehearse;
pub mod replication;
pub mod rewind;
pub mod roles;
pub mod server;
pub mod settings;
pub mod slots;
pub mod standby;
pub mod sync;
pub mod timeline;
pub mod user;
pub mod wal;
mod walpages;
pub mod walwatch;

pub use connection::{LocalConnection, Session, Target};
pub use conninfo::ConnInfo;
pub use error::PgError;
pub use install::Installation;
pub use process::Postmaster;
pub use server::ServerState;
pub use user::OsUser;
pub use wal::{Lsn, SystemId, Timeline, TimelineHistory, WalPosition};
