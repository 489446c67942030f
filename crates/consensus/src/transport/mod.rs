//! Raft's messages over gRPC: opaque payloads, and on each call who asks whom.

mod batched;
pub(crate) mod client;
pub(crate) mod guard;
mod limit;
mod line;
pub(crate) mod pool;
pub(crate) mod server;
mod wire;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};

use rhone_pgctl::wal::SystemId;
use serde::{Deserialize, Serialize};

use crate::identity::{Generation, Identity, PROTOCOL, Protocol, Run};
use crate::ids::NodeId;
use crate::proto;
use crate::raft::LogId;

pub use batched::Batched;
pub use line::{Lane, Requests};
pub use pool::{Connector, Plaintext, connect_lazily, prepare};
pub use server::RaftService;
pub use wire::{Answer, Calls, Wire};

/// The most bytes of one message.
pub const MESSAGE_LIMIT: usize = 4 << 20;

/// Whom the certificate of a call's connection names, as an extension of the request: put there by
/// the listener, for members only. Absent where there is no TLS.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Certified {
    /// The member's name.
    pub name: String,
}

impl Certified {
    /// Refuses a call in another member's name; `recorded` is the name that the membership has for the
    /// node that the call says it comes from, where it is known.
    ///
    /// # Errors
    /// A status with a clear text.
    pub fn speaks_for(caller: Option<&Self>, recorded: Option<&str>) -> Result<(), tonic::Status> {
        match (caller, recorded) {
            (Some(caller), Some(recorded)) if caller.name != recorded => {
                Err(tonic::Status::permission_denied(format!(
                    "the certificate is for {}, which may not speak for {recorded}",
                    caller.name
                )))
            }
            (Some(_) | None, _) => Ok(()),
        }
    }
}

/// Where members listen, where that differs from what the membership records.
#[derive(Clone, Debug, Default)]
pub struct AddressBook(Arc<RwLock<BTreeMap<NodeId, String>>>);

impl AddressBook {
    /// Sends to `addr` (`host:port`) what is for `node`.
    pub fn set(&self, node: NodeId, addr: impl Into<String>) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).insert(node, addr.into());
    }

    /// Goes back to what the membership records.
    pub fn unset(&self, node: NodeId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).remove(&node);
    }

    /// Returns the override for `node`.
    pub fn get(&self, node: NodeId) -> Option<String> {
        self.0.read().unwrap_or_else(PoisonError::into_inner).get(&node).cloned()
    }
}

/// Who this member is, with what it learns while running.
#[derive(Debug)]
pub(crate) struct Me {
    pub(crate) identity: Identity,
    pub(crate) run: Run,
    pub(crate) protocol: Protocol,
    system_id: AtomicU64,
    generation: AtomicU64,
}

impl Me {
    pub(crate) fn new(identity: Identity, run: Run, system_id: Option<SystemId>) -> Self {
        let generation = AtomicU64::new(identity.generation.0);
        let system_id = AtomicU64::new(system_id.map_or(0, SystemId::get));
        Self { identity, run, protocol: PROTOCOL, system_id, generation }
    }

    pub(crate) fn set_generation(&self, generation: Generation) {
        self.generation.store(generation.0, Ordering::Relaxed);
    }

    /// Returns the generation that this member belongs to, or takes itself to belong to.
    pub(crate) fn generation(&self) -> Generation {
        Generation(self.generation.load(Ordering::Relaxed))
    }

    pub(crate) fn set_system_id(&self, id: SystemId) {
        self.system_id.store(id.get(), Ordering::Relaxed);
    }

    /// Returns the system identifier, or 0 while unknown.
    pub(crate) fn system_id(&self) -> u64 {
        self.system_id.load(Ordering::Relaxed)
    }

    pub(crate) fn message(&self) -> proto::Identity {
        proto::Identity {
            cluster: self.identity.cluster.clone(),
            generation: self.generation().0,
            system_identifier: self.system_id(),
            node_id: self.identity.node.0,
            incarnation: self.identity.incarnation.0.to_be_bytes().to_vec(),
            session: self.identity.session.0,
            protocol_version: self.protocol.newest,
            run: self.run.0,
            protocol_oldest: self.protocol.oldest,
        }
    }
}

/// Asks whether the callee would vote for the caller.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PreVoteRequest {
    pub(crate) last_log: Option<LogId>,
}

/// Says whether it would.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(crate) struct PreVoteResponse {
    pub(crate) granted: bool,
}
