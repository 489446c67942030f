//! The threads that pass bytes: a first one that also accepts, and others that start when they are needed.
//!
//! One thread is one core's worth of queries, and on a busy machine one share of the scheduler's among many backends:
//! every query would wait for it in both directions. Connections stay where they are put, so that nothing is
//! handed from core to core.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use tokio::net::TcpStream;
use tokio::runtime::{Builder, Handle, Runtime};
use tokio::task::AbortHandle;

/// There are as many threads as cores, and no more than this: each keeps some memory for good.
const MOST: usize = 8;

/// The name of each thread.
pub(super) const NAME: &str = "proxy";

/// One thread.
#[derive(Debug)]
struct Lane {
    runtime: Handle,
    /// Connections that it serves.
    load: Arc<AtomicUsize>,
}

/// All threads.
#[derive(Debug)]
pub(super) struct Lanes {
    lanes: Vec<Lane>,
    most: usize,
}

/// A connection's place on its thread.
#[derive(Debug)]
struct Place(Arc<AtomicUsize>);

impl Drop for Place {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Lanes {
    /// To be called on the first thread, whose runtime accepts.
    pub(super) fn new() -> Self {
        let cores = thread::available_parallelism().map_or(1, usize::from);
        Self { lanes: vec![Lane::on(Handle::current())], most: cores.min(MOST) }
    }

    /// Serves a connection on the thread that has the fewest, or on a new one where all have some.
    ///
    /// # Errors
    /// The socket could not be given to another thread.
    pub(super) fn serve<F>(
        &mut self,
        client: TcpStream,
        session: impl FnOnce(TcpStream) -> F + Send + 'static,
    ) -> io::Result<AbortHandle>
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let chosen = self.choose();
        let Some(lane) = self.lanes.get(chosen) else { return Err(io::ErrorKind::NotFound.into()) };
        lane.load.fetch_add(1, Ordering::Relaxed);
        let place = Place(Arc::clone(&lane.load));
        if chosen == 0 {
            let session = session(client);
            let task = tokio::spawn(async move {
                session.await;
                drop(place);
            });
            return Ok(task.abort_handle());
        }
        // Its readiness is to be told to the thread that serves it.
        let client = client.into_std()?;
        let task = lane.runtime.spawn(async move {
            match TcpStream::from_std(client) {
                Ok(client) => session(client).await,
                Err(error) => {
                    tracing::warn!(%error, "a connection could not be given to a thread of the proxy");
                }
            }
            drop(place);
        });
        Ok(task.abort_handle())
    }

    fn choose(&mut self) -> usize {
        let loads = self.lanes.iter().map(|lane| lane.load.load(Ordering::Relaxed));
        let (chosen, load) = loads.enumerate().min_by_key(|(_, load)| *load).unwrap_or_default();
        if load > 0 && self.lanes.len() < self.most {
            match Lane::start() {
                Ok(lane) => {
                    self.lanes.push(lane);
                    return self.lanes.len().saturating_sub(1);
                }
                // Those that there are serve it, and none is tried again.
                Err(error) => {
                    tracing::warn!(%error, threads = self.lanes.len(), "no further thread for the proxy");
                    self.most = self.lanes.len();
                }
            }
        }
        chosen
    }
}

impl Lane {
    fn on(runtime: Handle) -> Self {
        Self { runtime, load: Arc::default() }
    }

    fn start() -> io::Result<Self> {
        let runtime = runtime()?;
        let lane = Self::on(runtime.handle().clone());
        thread::Builder::new()
            .name(NAME.to_owned())
            .spawn(move || runtime.block_on(std::future::pending::<()>()))?;
        Ok(lane)
    }
}

/// What each thread runs.
///
/// # Errors
/// The system has no descriptors left for it.
pub(super) fn runtime() -> io::Result<Runtime> {
    Builder::new_current_thread().enable_all().max_blocking_threads(4).build()
}

#[cfg(test)]
#[path = "lanes_tests.rs"]
mod tests;
