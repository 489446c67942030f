//! A PgBouncer beside this member: its configuration, where it points, and PAUSE and RESUME round a change of primary.
//!
//! - `render` ✦: PgBouncer's files; `want` ✦: where it should point and whether it should be paused.
//! - `console`: its admin console, over its Unix socket.
//! - `keeper`: brings it to what is wanted. `handover`: waits, before a handover, until every member's is paused.
//!
//! Rhone does not start or stop PgBouncer: a supervisor's restart costs no client its connection. A pause always
//! ends: with the next primary, or with its limit.

mod console;
mod handover;
mod keeper;
mod render;
mod want;

use rhone_consensus::ids::Epoch;
use tokio::sync::watch;

pub use self::handover::{pause_everywhere, pause_here};
pub use self::keeper::start;

/// How the rest of the supervisor talks to the keeper.
#[derive(Debug, Default)]
pub struct Handle {
    /// The epoch whose handover is about to stop the primary.
    asked: watch::Sender<Epoch>,
    /// The epoch at whose end PgBouncer is paused, with all its server connections closed.
    paused: watch::Sender<Option<Epoch>>,
}
