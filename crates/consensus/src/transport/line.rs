//! Calls of one kind to one peer over one stream, instead of an HTTP/2 exchange for each.
//!
//! Nothing is known here of what is called. A request is the peer's to judge when it arrives, as a call by
//! itself would be, and answers come in the order of the requests. Who gives a call up ends the stream, so that
//! no later call waits behind what nobody wants any more. A peer that has no such stream is called one by one
//! (decision 0060).

use std::collections::VecDeque;
use std::fmt::{self, Debug};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::mpsc::error::TrySendError;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Code, Response, Status, Streaming};

/// So many requests wait for the connection to take them at most; more are refused at once.
const WAITING_MAX: usize = 8;

/// A stream that nobody used for this long, to twice this, is closed: an open one makes its connection ask for signs of life.
const UNUSED: Duration = Duration::from_secs(10);

/// The requests of a stream, as they come.
pub type Requests<Q> = ReceiverStream<Q>;

type Answered<A> = oneshot::Sender<Result<A, Status>>;

/// One stream, as long as it lasts.
struct Stream<Q, A> {
    /// Where requests go; nothing once the stream has ended: dropped, it is closed.
    requests: Option<mpsc::Sender<Q>>,
    /// Who waits for answers, in the order of the requests.
    waiting: VecDeque<Answered<A>>,
    /// Used since it was last looked at.
    used: bool,
    /// The peer has answered: it has such a stream.
    proven: bool,
}

struct Shared<Q, A>(Mutex<Stream<Q, A>>);

impl<Q, A> Shared<Q, A> {
    fn lock(&self) -> MutexGuard<'_, Stream<Q, A>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn end(&self, status: &Status) {
        let (requests, waiting) = {
            let mut stream = self.lock();
            (stream.requests.take(), std::mem::take(&mut stream.waiting))
        };
        drop(requests);
        for answered in waiting {
            // Who has given up does not care.
            drop(answered.send(Err(status.clone())));
        }
    }
}

/// The caller's end of a stream.
struct Line<Q, A> {
    shared: Arc<Shared<Q, A>>,
    reader: tokio::task::AbortHandle,
}

impl<Q, A> Line<Q, A> {
    /// Ends the stream as a call by itself ends that is given up: what has not left does not leave, and the
    /// peer is told.
    fn cut(&self, status: &Status) {
        self.shared.end(status);
        self.reader.abort();
    }
}

impl<Q, A> Drop for Line<Q, A> {
    fn drop(&mut self) {
        self.reader.abort();
    }
}

/// A request that is on its way; dropped before its answer has come, it ends the stream.
struct Awaited<Q, A> {
    answer: oneshot::Receiver<Result<A, Status>>,
    /// As long as the peer has not shown that it has such a stream.
    copy: Option<Q>,
    /// Nothing once the answer has come.
    line: Option<Arc<Line<Q, A>>>,
}

impl<Q, A> Awaited<Q, A> {
    /// Waits for the answer; returns the request, too, where it may have to be sent by itself.
    async fn answered(mut self) -> (Result<A, Status>, Option<Q>) {
        let answer = (&mut self.answer).await;
        self.line = None;
        (answer.unwrap_or_else(|_| Err(Status::unavailable("the stream ended"))), self.copy.take())
    }
}

impl<Q, A> Drop for Awaited<Q, A> {
    fn drop(&mut self) {
        if let Some(line) = self.line.take() {
            line.cut(&Status::unavailable("a call before this one was given up"));
        }
    }
}

impl<Q: Send + 'static, A: Send + 'static> Line<Q, A> {
    fn open<W>(open: impl FnOnce(Requests<Q>) -> W) -> Self
    where
        W: Future<Output = Result<Response<Streaming<A>>, Status>> + Send + 'static,
    {
        let (requests, queue) = mpsc::channel(WAITING_MAX);
        let stream = Stream { requests: Some(requests), waiting: VecDeque::new(), used: true, proven: false };
        let shared = Arc::new(Shared(Mutex::new(stream)));
        let opening = open(ReceiverStream::new(queue));
        let context = Arc::clone(&shared);
        let reader = tokio::spawn(async move {
            let status = match opening.await {
                Ok(answers) => read(&context, answers.into_inner()).await,
                Err(status) => status,
            };
            context.end(&status);
        });
        Self { shared, reader: reader.abort_handle() }
    }
}

impl<Q: Clone, A> Line<Q, A> {
    /// Sends a request, or gives it back because the stream has ended.
    fn send(self: &Arc<Self>, request: Q) -> Result<Sent<Q, A>, Q> {
        // Under the lock, so that the order of the requests is that of those who wait.
        let mut stream = self.shared.lock();
        let copy = (!stream.proven).then(|| request.clone());
        let Some(requests) = stream.requests.as_ref() else { return Err(request) };
        match requests.try_send(request) {
            Ok(()) => {}
            Err(TrySendError::Closed(request)) => return Err(request),
            Err(TrySendError::Full(_)) => {
                return Ok(Sent::Refused(Status::unavailable("what was sent before has not left yet")));
            }
        }
        let (answered, answer) = oneshot::channel();
        stream.waiting.push_back(answered);
        stream.used = true;
        Ok(Sent::Away(Awaited { answer, copy, line: Some(Arc::clone(self)) }))
    }
}

/// Hands answers over until the stream ends, or nobody uses it; returns why.
async fn read<Q, A>(shared: &Shared<Q, A>, mut answers: Streaming<A>) -> Status {
    let unused = tokio::time::sleep(UNUSED);
    tokio::pin!(unused);
    loop {
        tokio::select! {
            biased;
            answer = answers.message() => match answer {
                Ok(Some(answer)) => {
                    let answered = {
                        let mut stream = shared.lock();
                        stream.proven = true;
                        stream.waiting.pop_front()
                    };
                    match answered {
                        // Who has given up does not care.
                        Some(answered) => drop(answered.send(Ok(answer))),
                        None => return Status::internal("an answer to nothing"),
                    }
                }
                Ok(None) => return Status::unavailable("the peer ended the stream"),
                Err(status) => return status,
            },
            () = &mut unused => {
                {
                    let mut stream = shared.lock();
                    if !stream.used && stream.waiting.is_empty() {
                        stream.requests = None;
                        return Status::unavailable("nobody used the stream");
                    }
                    stream.used = false;
                }
                unused.set(tokio::time::sleep(UNUSED));
            }
        }
    }
}

enum State<Q, A> {
    /// Whether the peer has such a stream is to be found out.
    Untried,
    Open(Arc<Line<Q, A>>),
    /// The peer knows single calls only.
    Single,
    /// The transport has no streams.
    Never,
}

/// How one peer is called.
pub struct Lane<Q, A>(Mutex<State<Q, A>>);

impl<Q, A> Debug for Lane<Q, A> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let state = match &*self.lock() {
            State::Untried => "untried",
            State::Open(_) => "open",
            State::Single => "single",
            State::Never => "never",
        };
        f.debug_tuple("Lane").field(&state).finish()
    }
}

impl<Q, A> Default for Lane<Q, A> {
    fn default() -> Self {
        Self(Mutex::new(State::Untried))
    }
}

/// What became of a request.
enum Sent<Q, A> {
    /// It is to be sent by itself.
    Alone(Q),
    /// It is on its way.
    Away(Awaited<Q, A>),
    /// It cannot leave now.
    Refused(Status),
}

impl<Q, A> Lane<Q, A> {
    /// Makes one to a peer that is called one by one whatever happens.
    pub fn without_streams() -> Self {
        Self(Mutex::new(State::Never))
    }

    fn lock(&self) -> MutexGuard<'_, State<Q, A>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// From now on the peer is called one by one.
    fn alone(&self) {
        *self.lock() = State::Single;
    }

    /// A peer that failed may be another program when it is back.
    fn try_again(&self) {
        let mut state = self.lock();
        if matches!(*state, State::Single) {
            *state = State::Untried;
        }
    }
}

impl<Q: Clone + Send + 'static, A: Send + 'static> Lane<Q, A> {
    fn send<W>(&self, request: Q, open: impl FnOnce(Requests<Q>) -> W) -> Sent<Q, A>
    where
        W: Future<Output = Result<Response<Streaming<A>>, Status>> + Send + 'static,
    {
        let mut state = self.lock();
        let request = match &*state {
            State::Single | State::Never => return Sent::Alone(request),
            State::Open(line) => match line.send(request) {
                Ok(sent) => return sent,
                Err(request) => request,
            },
            State::Untried => request,
        };
        let line = Arc::new(Line::open(open));
        let sent = line.send(request);
        *state = State::Open(line);
        sent.unwrap_or_else(|_| Sent::Refused(Status::unavailable("the stream ended at once")))
    }

    /// Calls the peer: by the stream, which `open` makes where there is none, or by `alone` where the peer
    /// has no such stream. Given up, it ends the stream for all that wait; its request may have arrived all the same.
    ///
    /// # Errors
    /// What the peer, or the connection, says. A refusal ends the stream for all that wait.
    pub async fn call<W, S>(
        &self,
        request: Q,
        open: impl FnOnce(Requests<Q>) -> W,
        alone: impl FnOnce(Q) -> S,
    ) -> Result<A, Status>
    where
        W: Future<Output = Result<Response<Streaming<A>>, Status>> + Send + 'static,
        S: Future<Output = Result<Response<A>, Status>>,
    {
        let request = match self.send(request, open) {
            Sent::Refused(status) => return Err(status),
            Sent::Alone(request) => request,
            Sent::Away(awaited) => match awaited.answered().await {
                (Err(status), Some(request)) if status.code() == Code::Unimplemented => {
                    self.alone();
                    request
                }
                (answer, _) => return answer,
            },
        };
        let called = alone(request).await;
        if called.is_err() {
            self.try_again();
        }
        called.map(Response::into_inner)
    }
}

#[cfg(test)]
#[path = "line_tests.rs"]
mod tests;
