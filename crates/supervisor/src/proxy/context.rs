//! What the proxy knows of the cluster, and its open connections.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rhone_consensus::ids::{Epoch, NodeId};
use tokio::task::AbortHandle;

use super::counters::{Counters, PortCounters, add};
use super::route::{Choice, Facts, Open, Port, Route, Survey, must_cut, route, survey};
use crate::config::{Address, Proxy};
use crate::runtime::local::Local;
use crate::runtime::shared::Shared;

/// All that the proxy's tasks share.
#[derive(Debug)]
pub(super) struct Context {
    pub(super) shared: Arc<Shared>,
    /// The local instance, whose lease counts at once; none on a witness.
    local: Option<Arc<Local>>,
    pub(super) settings: Proxy,
    connections: Mutex<Connections>,
    next: AtomicU64,
}

#[derive(Debug, Default)]
struct Connections {
    open: BTreeMap<u64, (Open, AbortHandle)>,
    /// Connections by server, those that are being opened too.
    load: BTreeMap<NodeId, usize>,
}

/// A server that was chosen for a connection.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Target {
    pub(super) node: NodeId,
    pub(super) epoch: Epoch,
    pub(super) address: Address,
}

impl Context {
    pub(super) fn new(shared: Arc<Shared>, local: Option<Arc<Local>>, settings: Proxy) -> Self {
        Self { shared, local, settings, connections: Mutex::default(), next: AtomicU64::new(0) }
    }

    pub(super) fn counters(&self, port: Port) -> &PortCounters {
        self.all_counters().of(port)
    }

    fn all_counters(&self) -> &Counters {
        &self.shared.proxy
    }

    /// Returns how many connections have no server yet.
    pub(super) fn waiting(&self) -> u64 {
        let counters = Port::ALL.into_iter().map(|port| self.counters(port));
        counters.map(|counters| counters.waiting.load(Ordering::Relaxed)).sum()
    }

    fn connections(&self) -> MutexGuard<'_, Connections> {
        self.connections.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes something of the facts as they are now.
    fn with_facts<T>(&self, work: impl FnOnce(&Facts<'_>) -> T) -> T {
        let applied = Arc::clone(&self.shared.consensus.state().borrow());
        let state = &applied.state;
        let reports = self.shared.table.borrow();
        let own = self.shared.own.borrow();
        let lease = Duration::from_millis(u64::from(state.counting().lease_ms));
        let heard = self.shared.consensus.last_leader_contact();
        let leased = self.local.as_ref().is_some_and(|local| {
            local.lease.status().live(state.epoch, self.shared.clock.now()) && !local.frozen()
        });
        work(&Facts {
            state,
            reports: &reports,
            me: self.shared.me(),
            own: own.as_ref(),
            leased,
            led: heard.is_some_and(|age| age < lease) || self.shared.consensus.status().leading,
            now: self.shared.now(),
        })
    }

    pub(super) fn survey(&self) -> Survey {
        self.with_facts(survey)
    }

    /// Chooses a server, leaving out those that failed.
    pub(super) fn route(
        &self,
        port: Port,
        failed: &std::collections::BTreeSet<NodeId>,
    ) -> (Route, Option<Target>) {
        let survey = self.survey();
        let connections = self.connections();
        let choice = Choice { max_lag: self.settings.ro_max_lag, load: &connections.load, failed };
        let chosen = route(port, &survey, &choice);
        drop(connections);
        let node = match chosen {
            Route::To(node) | Route::Hold(node) => Some(node),
            Route::Wait(_) => None,
        };
        (chosen, node.and_then(|node| self.target(node, survey.epoch)))
    }

    /// Returns how to reach a member's Postgres: by the address that everybody uses, also for the one here, so that
    /// pg_hba sees a member's address and no line for 127.0.0.1 lets strangers in.
    pub(super) fn target(&self, node: NodeId, epoch: Epoch) -> Option<Target> {
        let applied = Arc::clone(&self.shared.consensus.state().borrow());
        let address = applied.state.members.get(&node)?.postgres.parse().ok()?;
        Some(Target { node, epoch, address })
    }

    /// Says whether the newest epoch is still the one that a target was chosen by.
    pub(super) fn current(&self, target: &Target) -> bool {
        self.shared.consensus.state().borrow().state.epoch == target.epoch
    }

    /// Counts a connection to a server until the answer is dropped.
    pub(super) fn occupy(self: &Arc<Self>, node: NodeId) -> Occupied {
        *self.connections().load.entry(node).or_default() += 1;
        Occupied { context: Arc::clone(self), node }
    }

    /// Makes an open connection known, so that it is cut in time; nothing when its epoch is over by now.
    pub(super) fn register(self: &Arc<Self>, open: Open, abort: AbortHandle) -> Option<Registered> {
        let id = self.next.fetch_add(1, Ordering::Relaxed);
        self.connections().open.insert(id, (open, abort));
        let registered = Registered { context: Arc::clone(self), id };
        // Looked at after it was made known: a change of epoch is seen by one of the two.
        let over = self.with_facts(|facts| must_cut(&open, facts));
        (!over).then_some(registered)
    }

    /// Cuts all connections whose epoch is over, returns how many.
    pub(super) fn cut(&self) -> usize {
        let doomed: Vec<(Open, AbortHandle)> = self.with_facts(|facts| {
            let connections = self.connections();
            let doomed = connections.open.values().filter(|(open, _)| must_cut(open, facts));
            doomed.map(|(open, abort)| (*open, abort.clone())).collect()
        });
        for (open, abort) in &doomed {
            add(&self.counters(open.port).cut, 1);
            // The task's sockets are dropped unprepared for an end in order: a reset to both sides.
            abort.abort();
        }
        doomed.len()
    }
}

/// A connection's place at a server.
#[derive(Debug)]
pub(super) struct Occupied {
    context: Arc<Context>,
    node: NodeId,
}

impl Drop for Occupied {
    fn drop(&mut self) {
        let mut connections = self.context.connections();
        if let Some(count) = connections.load.get_mut(&self.node) {
            *count = count.saturating_sub(1);
            if *count == 0 {
                connections.load.remove(&self.node);
            }
        }
    }
}

/// An open connection's entry.
#[derive(Debug)]
pub(super) struct Registered {
    context: Arc<Context>,
    id: u64,
}

impl Drop for Registered {
    fn drop(&mut self) {
        self.context.connections().open.remove(&self.id);
    }
}
