//! Each verb on a real Postgres. Runs when `RHONE_PG_BIN` is set, or one is in `/usr/lib/postgresql`.
#![allow(
    clippy::print_stderr,
    clippy::indexing_slicing,
    reason = "tests talk, and panic where they are wrong"
)]

#[path = "live/harness.rs"]
mod harness;
#[path = "live/single.rs"]
mod single;
#[path = "live/streaming.rs"]
mod streaming;
#[path = "live/walend.rs"]
mod walend;
