//! Connections to the other supervisors, and calls over them that always end.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use rhone_consensus::transport::Wire;

use crate::api::proto::v1::agent_client::AgentClient;
use crate::tls::Dialer;

/// After so many failures in a row the connection is made anew, and with it the name resolved.
const FAILURES_BEFORE_NEW: u32 = 3;

/// The largest message between supervisors.
const MESSAGE_MAX: usize = 4 << 20;

/// Why a call to another supervisor brought no answer.
#[derive(Debug, thiserror::Error)]
pub enum CallError {
    /// The address is none.
    #[error("`{address}` is no address")]
    Address {
        /// As it was given.
        address: String,
    },
    /// It did not answer in time.
    #[error("{address} did not answer within {limit:?}")]
    TimedOut {
        /// Who.
        address: String,
        /// How long was waited.
        limit: Duration,
    },
    /// It refused, or could not be reached.
    #[error("{address}: {message}")]
    Failed {
        /// Who.
        address: String,
        /// Its words, or the connection's.
        message: String,
        /// Whether it answered at all.
        refused: bool,
    },
}

#[derive(Debug)]
struct Peer {
    client: AgentClient<Wire>,
    failures: u32,
}

/// One connection for each address.
#[derive(Debug)]
pub struct Peers {
    dialer: Dialer,
    peers: Mutex<BTreeMap<String, Peer>>,
}

impl Peers {
    /// Takes the way to the others.
    pub fn new(dialer: Dialer) -> Self {
        Self { dialer, peers: Mutex::default() }
    }

    /// Calls the supervisor at `address` and waits at most `limit` for its answer.
    ///
    /// # Errors
    /// No address, no answer in time, a refusal, or no connection.
    pub async fn call<T, F, W>(&self, address: &str, limit: Duration, work: F) -> Result<T, CallError>
    where
        F: FnOnce(AgentClient<Wire>) -> W,
        W: Future<Output = Result<tonic::Response<T>, tonic::Status>>,
    {
        let client = self.client(address)?;
        let result = tokio::time::timeout(limit, work(client)).await;
        let result = match result {
            Ok(Ok(response)) => Ok(response.into_inner()),
            Ok(Err(status)) => Err(CallError::Failed {
                address: address.to_owned(),
                refused: matches!(
                    status.code(),
                    tonic::Code::FailedPrecondition | tonic::Code::PermissionDenied
                ),
                message: status.message().to_owned(),
            }),
            Err(_) => Err(CallError::TimedOut { address: address.to_owned(), limit }),
        };
        self.note(address, result.is_ok());
        result
    }

    fn client(&self, address: &str) -> Result<AgentClient<Wire>, CallError> {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(peer) = peers.get(address) {
            return Ok(peer.client.clone());
        }
        let channel =
            self.dialer.channel(address).map_err(|_| CallError::Address { address: address.to_owned() })?;
        let client = AgentClient::new(channel).max_decoding_message_size(MESSAGE_MAX);
        peers.insert(address.to_owned(), Peer { client: client.clone(), failures: 0 });
        Ok(client)
    }

    fn note(&self, address: &str, answered: bool) {
        let mut peers = self.peers.lock().unwrap_or_else(PoisonError::into_inner);
        let Some(peer) = peers.get_mut(address) else { return };
        peer.failures = if answered { 0 } else { peer.failures + 1 };
        if peer.failures >= FAILURES_BEFORE_NEW {
            peers.remove(address);
        }
    }
}
