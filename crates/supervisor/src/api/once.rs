//! Carries a call that changes something out once for each key that its caller drew.
//!
//! A call that is repeated with its key gets the outcome of the first one, and waits for it while that is
//! under way. It goes on when its caller has gone away, so that there is an outcome to be told. What a member
//! remembers of it is in its memory: another member, or this one after a restart, knows no key, and there the
//! expected epoch or version refuses what came to pass already.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tonic::{Code, Response, Status};

use super::convert::refusal;
use super::proto::v1;
use crate::runtime::clock::{BootTime, Clock};
use crate::status::OperatorError;

/// How many calls are remembered: an operator's script makes a few a second at most.
const REMEMBERED: usize = 1024;

/// For how long an outcome is remembered: longer than any caller tries again.
const REMEMBERED_FOR: Duration = Duration::from_secs(600);

/// The longest key, in bytes.
const KEY_LIMIT: usize = 128;

/// An answer that tells how a change ended.
pub(super) trait Reply: prost::Message + Default {
    /// Returns how it ended.
    fn ended(&self) -> v1::Outcome;
}

impl Reply for v1::ChangeReply {
    fn ended(&self) -> v1::Outcome {
        self.outcome()
    }
}

impl Reply for v1::ChangeSettingsReply {
    fn ended(&self) -> v1::Outcome {
        self.outcome()
    }
}

/// Which call is meant: its key, and what it asks for.
#[derive(Clone, Debug)]
pub(super) struct Call {
    key: String,
    asks: u64,
}

impl Call {
    /// Describes a call of that method.
    pub(super) fn of(method: &str, key: &str, request: &impl prost::Message) -> Self {
        let mut hasher = DefaultHasher::new();
        (method, request.encode_to_vec()).hash(&mut hasher);
        Self { key: key.to_owned(), asks: hasher.finish() }
    }
}

/// How a call ended, and when.
#[derive(Clone, Debug)]
struct Ended {
    at: BootTime,
    answer: Result<Vec<u8>, Status>,
}

/// A call that was begun.
#[derive(Debug)]
struct Known {
    asks: u64,
    begun: BootTime,
    ended: watch::Receiver<Option<Ended>>,
}

impl Known {
    /// Returns when it ended; one that broke off has, when it began.
    fn ended(&self) -> Option<BootTime> {
        let at = self.ended.borrow().as_ref().map(|ended| ended.at);
        at.or_else(|| self.ended.has_changed().is_err().then_some(self.begun))
    }
}

/// What is to be done for a call.
enum Turn {
    /// To carry it out, and tell.
    First(watch::Sender<Option<Ended>>, watch::Receiver<Option<Ended>>),
    /// To wait for the outcome of the first one.
    Again(watch::Receiver<Option<Ended>>),
}

/// The calls of the last minutes by key.
#[derive(Debug, Default)]
pub(super) struct Once {
    calls: Mutex<BTreeMap<String, Known>>,
}

impl Once {
    /// Carries a call out, unless it was; without a key every call is one of its own.
    ///
    /// A call that was refused, or that this member could not carry out, has changed nothing: its key is free.
    ///
    /// # Errors
    /// What `work` ended with, or the key was another call's.
    pub(super) async fn carry_out<A: Reply + 'static>(
        self: &Arc<Self>,
        call: Call,
        work: impl Future<Output = Result<A, Status>> + Send + 'static,
    ) -> Result<Response<A>, Status> {
        if call.key.is_empty() {
            return work.await.map(Response::new);
        }
        let mut ended = match self.turn(&call, Clock.now())? {
            Turn::Again(ended) => ended,
            Turn::First(tell, ended) => {
                let once = Arc::clone(self);
                tokio::spawn(async move {
                    let answer = work.await;
                    if !changed(&answer) {
                        once.forget(&call.key);
                    }
                    let answer = answer.map(|reply| reply.encode_to_vec());
                    tell.send_replace(Some(Ended { at: Clock.now(), answer }));
                });
                ended
            }
        };
        let unknown = || Status::from(OperatorError::Unknown);
        let ended = ended.wait_for(Option::is_some).await.map_err(|_| unknown())?.clone();
        let bytes = ended.ok_or_else(unknown)?.answer?;
        A::decode(bytes.as_slice()).map(Response::new).map_err(|_| unknown())
    }

    fn turn(&self, call: &Call, now: BootTime) -> Result<Turn, Status> {
        let no = |reason: &str, hint: &str| refusal(Code::FailedPrecondition, reason, Some(hint));
        if call.key.len() > KEY_LIMIT {
            return Err(no(
                &format!("the idempotency key is longer than {KEY_LIMIT} bytes"),
                "draw 16 random digits",
            ));
        }
        let mut calls = self.calls.lock().unwrap_or_else(PoisonError::into_inner);
        calls.retain(|_, known| known.ended().is_none_or(|at| now.saturating_since(at) < REMEMBERED_FOR));
        if let Some(known) = calls.get(&call.key) {
            if known.asks != call.asks {
                return Err(no("the idempotency key is that of another call", "draw a key for each call"));
            }
            return Ok(Turn::Again(known.ended.clone()));
        }
        if calls.len() >= REMEMBERED {
            let oldest = calls.iter().filter_map(|(key, known)| Some((known.ended()?, key.clone()))).min();
            let (_, oldest) = oldest.ok_or_else(|| {
                no(&format!("{REMEMBERED} changes are under way"), "wait until some of them have ended")
            })?;
            calls.remove(&oldest);
        }
        let (tell, ended) = watch::channel(None);
        calls.insert(call.key.clone(), Known { asks: call.asks, begun: now, ended: ended.clone() });
        Ok(Turn::First(tell, ended))
    }

    fn forget(&self, key: &str) {
        self.calls.lock().unwrap_or_else(PoisonError::into_inner).remove(key);
    }
}

/// Whether something was changed, or may have been.
fn changed(answer: &Result<impl Reply, Status>) -> bool {
    match answer {
        Ok(reply) => reply.ended() != v1::Outcome::Refused,
        Err(status) => match OperatorError::from(status.clone()) {
            OperatorError::Refused { .. }
            | OperatorError::NotLeader { .. }
            | OperatorError::NoQuorum
            | OperatorError::NotImplemented { .. } => false,
            OperatorError::Unknown | OperatorError::Failed(_) => true,
        },
    }
}

#[cfg(test)]
#[path = "once_tests.rs"]
mod tests;
