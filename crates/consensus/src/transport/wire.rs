//! What a call goes over: a gRPC channel, or the simulation's network.

use std::fmt::Debug;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use tonic::body::Body;
use tonic::codegen::{Service, StdError, http};
use tonic::transport::Channel;

use super::line::Lane;

/// An answer that is under way.
pub type Answer = Pin<Box<dyn Future<Output = Result<http::Response<Body>, StdError>> + Send>>;

/// Carries calls to one member without gRPC's transport.
pub trait Calls: Send + Sync + Debug {
    /// Carries one call there, and its answer back.
    fn call(&self, request: http::Request<Body>) -> Answer;
}

/// The way to one member.
#[derive(Clone, Debug)]
pub enum Wire {
    /// HTTP/2, with or without TLS.
    Channel(Channel),
    /// Anything else.
    Calls(Arc<dyn Calls>),
}

impl Wire {
    /// Makes the way of one kind of call to that member: over a stream, where this can carry streams.
    pub fn lane<Q, A>(&self) -> Lane<Q, A> {
        match self {
            Self::Channel(_) => Lane::default(),
            Self::Calls(_) => Lane::without_streams(),
        }
    }
}

impl Service<http::Request<Body>> for Wire {
    type Response = http::Response<Body>;
    type Error = StdError;
    type Future = Answer;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), StdError>> {
        match self {
            Self::Channel(channel) => channel.poll_ready(context).map_err(Into::into),
            Self::Calls(_) => Poll::Ready(Ok(())),
        }
    }

    fn call(&mut self, request: http::Request<Body>) -> Answer {
        match self {
            Self::Channel(channel) => {
                let answer = channel.call(request);
                Box::pin(async move { answer.await.map_err(Into::into) })
            }
            Self::Calls(calls) => calls.call(request),
        }
    }
}
