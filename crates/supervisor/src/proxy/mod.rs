//! The rw, ro and any ports: TCP-transparent, to where the primary, a standby, or any instance is now.
//!
//! - `route` ✦: what is known of the servers, the rule of each port, when an open connection is cut.
//! - `packet` ✦: the first packets of a session; everything after them passes unread, TLS and GSS whole.
//! - `context`: the facts from the rest of the supervisor; the open connections.
//! - `server`: listens, limits, cuts. `opening`: waits for a server, reaches it, tries another. `relay`: passes bytes.
//!   `lanes`: the threads. `cancel`: passes cancel requests on. `socket`: options. `counters`: for `/metrics`.
//!
//! On threads of its own, so that no load here holds up the lease or Raft. It never connects to a primary that this
//! member does not know to own the newest epoch, by word of a majority within a lease; and while nobody connects and
//! the epoch lasts it does not run at all.

mod cancel;
mod context;
pub mod counters;
#[cfg(test)]
mod fuzz_tests;
mod lanes;
mod opening;
mod packet;
mod relay;
mod route;
mod server;
mod socket;

pub use self::counters::Counters;
pub use self::route::Port;
pub use self::server::start;
