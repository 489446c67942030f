//! Passes bytes between a client and a server until both have ended, nothing passes for too long, or
//! the task is aborted.
//!
//! One buffer for all connections of the thread: an idle connection has none. What the other side does not take at
//! once is kept, and nothing more is read until it is gone.

use std::cell::RefCell;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::atomic::AtomicU64;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use super::counters::add;
use super::socket;
use crate::runtime::clock::{BootTime, Clock};

/// The buffer's size: as much as is passed on in one step.
const BUFFER: usize = 64 * 1024;

/// A connection of which one side has ended ends itself after so long without a byte.
const HALF_CLOSED: Duration = Duration::from_secs(60);

thread_local! {
    static BUFFER_OF_THREAD: RefCell<Vec<u8>> = RefCell::new(vec![0; BUFFER]);
}

/// How a connection ended.
#[derive(Debug)]
pub(super) enum End {
    /// Both sides ended in order.
    Closed,
    /// The server's side failed.
    Server(io::Error),
    /// The client's side failed.
    Client(io::Error),
    /// Nothing passed for too long.
    Idle,
}

/// Which side an error is of.
enum Fault {
    From(io::Error),
    To(io::Error),
}

/// One direction.
struct Half<'a> {
    /// Whether `to` is the server, whose unacknowledged bytes are watched.
    to_server: bool,
    /// Read, and not yet taken by the other side.
    pending: Vec<u8>,
    taken: usize,
    ended: bool,
    done: bool,
    bytes: &'a AtomicU64,
}

impl<'a> Half<'a> {
    fn new(to_server: bool, bytes: &'a AtomicU64) -> Self {
        Self { to_server, pending: Vec::new(), taken: 0, ended: false, done: false, bytes }
    }

    /// Passes on what there is; ready when this direction has ended.
    fn poll(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &TcpStream,
        moved: &mut bool,
    ) -> Poll<Result<(), Fault>> {
        while !self.done {
            ready!(self.flush(cx, to)).map_err(Fault::To)?;
            if self.ended {
                socket::shutdown_write(to);
                self.done = true;
                break;
            }
            ready!(self.step(cx, from, to))?;
            *moved = true;
        }
        Poll::Ready(Ok(()))
    }

    /// Writes what is pending.
    fn flush(&mut self, cx: &mut Context<'_>, to: &TcpStream) -> Poll<io::Result<()>> {
        while let Some(rest) = self.pending.get(self.taken..).filter(|rest| !rest.is_empty()) {
            ready!(to.poll_write_ready(cx))?;
            match to.try_write(rest) {
                Ok(count) => self.taken += count,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        if !self.pending.is_empty() {
            self.pending = Vec::new();
            self.taken = 0;
            if self.to_server {
                socket::watch_unacknowledged(to, true)?;
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Reads once and writes what was read: two system calls, since a read that did not fill the buffer says that
    /// there is no more.
    fn step(
        &mut self,
        cx: &mut Context<'_>,
        from: &mut TcpStream,
        to: &TcpStream,
    ) -> Poll<Result<(), Fault>> {
        BUFFER_OF_THREAD.with_borrow_mut(|buffer| {
            let mut buffer = ReadBuf::new(buffer);
            ready!(Pin::new(from).poll_read(cx, &mut buffer)).map_err(Fault::From)?;
            let read = buffer.filled();
            if read.is_empty() {
                self.ended = true;
                return Poll::Ready(Ok(()));
            }
            add(self.bytes, u64::try_from(read.len()).unwrap_or(0));
            let written = match to.try_write(read) {
                Ok(written) => written,
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => 0,
                Err(error) => return Poll::Ready(Err(Fault::To(error))),
            };
            let rest = read.get(written..).unwrap_or_default();
            if !rest.is_empty() {
                self.pending.extend_from_slice(rest);
                if self.to_server {
                    socket::watch_unacknowledged(to, false).map_err(Fault::To)?;
                }
            }
            Poll::Ready(Ok(()))
        })
    }
}

/// Ends a connection that passes nothing for too long. No timer exists while none is needed.
struct Quiet<'a> {
    timer: Pin<&'a mut Option<Sleep>>,
    /// What the timer was set for.
    armed: Option<Duration>,
    last: BootTime,
}

impl Quiet<'_> {
    fn poll(&mut self, cx: &mut Context<'_>, limit: Option<Duration>, moved: bool) -> Poll<()> {
        let Some(limit) = limit else { return Poll::Pending };
        if self.armed != Some(limit) {
            self.armed = Some(limit);
            self.timer.set(None);
        }
        if moved || self.timer.is_none() {
            self.last = Clock.now();
        }
        loop {
            if self.timer.is_none() {
                self.timer.set(Some(tokio::time::sleep(limit)));
            }
            let Some(timer) = self.timer.as_mut().as_pin_mut() else { return Poll::Pending };
            ready!(timer.poll(cx));
            let quiet = Clock.now().saturating_since(self.last);
            if quiet >= limit {
                return Poll::Ready(());
            }
            self.timer.set(Some(tokio::time::sleep(limit.saturating_sub(quiet))));
        }
    }
}

/// What is counted, and after how long an idle connection ends.
#[derive(Clone, Copy, Debug)]
pub(super) struct Terms<'a> {
    pub(super) bytes_in: &'a AtomicU64,
    pub(super) bytes_out: &'a AtomicU64,
    pub(super) idle: Option<Duration>,
}

/// Passes bytes both ways until the connection has ended.
pub(super) async fn relay(client: &mut TcpStream, server: &mut TcpStream, terms: Terms<'_>) -> End {
    let mut up = Half::new(true, terms.bytes_in);
    let mut down = Half::new(false, terms.bytes_out);
    let timer = pin!(None);
    let mut quiet = Quiet { timer, armed: None, last: BootTime::ZERO };
    poll_fn(|cx| {
        let mut moved = false;
        match up.poll(cx, client, server, &mut moved) {
            Poll::Ready(Err(Fault::From(error))) => return Poll::Ready(End::Client(error)),
            Poll::Ready(Err(Fault::To(error))) => {
                // Its last words may still be there to be read: the other direction finds its end.
                up.done = true;
                tracing::trace!(%error, "the server takes nothing any more");
            }
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        match down.poll(cx, server, client, &mut moved) {
            Poll::Ready(Err(Fault::From(error))) => return Poll::Ready(End::Server(error)),
            Poll::Ready(Err(Fault::To(error))) => return Poll::Ready(End::Client(error)),
            Poll::Ready(Ok(())) | Poll::Pending => {}
        }
        if up.done && down.done {
            return Poll::Ready(End::Closed);
        }
        let limit = if up.done || down.done { Some(HALF_CLOSED) } else { terms.idle };
        quiet.poll(cx, limit, moved).map(|()| End::Idle)
    })
    .await
}

#[cfg(test)]
#[path = "relay_tests.rs"]
mod tests;
