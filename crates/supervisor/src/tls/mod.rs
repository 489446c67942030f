//! Mutual TLS between members, and with operators: who is at the other end, and whether we believe it.
//!
//! Certificates come from files that may change at any time: [`Security`] reads them again, and a new
//! file that is broken never replaces one that works. Connections that are open stay as they are, as long as
//! the CA of who is at the other end is believed.
//! Nothing here decides what a role may do (`api::access`), and nothing here writes to a disk but
//! [`authority`], which only the command line calls.

mod accept;
pub mod authority;
mod certificate;
mod connect;
mod doubt;
mod files;
mod security;

pub use accept::{Peer, Presented, ServerIo, incoming};
pub use certificate::{Certificate, Identity, Role};
pub use connect::{DialError, Dialer, trouble};
pub use files::{TlsError, TlsFiles, certificates_of};
pub use security::{Security, watch};

#[cfg(test)]
mod tests;
