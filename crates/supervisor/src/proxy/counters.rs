//! What the proxy counts, for `/metrics`.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::route::Port;

/// Counters of one port. All are of this process; totals begin at 0 with it.
#[derive(Debug, Default)]
pub struct PortCounters {
    /// Connections that lead to a server now.
    pub open: AtomicU64,
    /// Connections that have no server yet.
    pub waiting: AtomicU64,
    /// Connections accepted.
    pub accepted: AtomicU64,
    /// Connections that got a server.
    pub established: AtomicU64,
    /// Of these, those that had to wait for one.
    pub waited: AtomicU64,
    /// How long they waited, in microseconds.
    pub waited_us: AtomicU64,
    /// Turned away: too many connections.
    pub refused_limit: AtomicU64,
    /// Turned away: no server within the wait.
    pub refused_wait: AtomicU64,
    /// Ended before their first packet was complete.
    pub mute: AtomicU64,
    /// Cut because the epoch changed.
    pub cut: AtomicU64,
    /// Ended by the proxy: idle, or half closed for too long.
    pub idled: AtomicU64,
    /// Attempts to reach a server that failed.
    pub failed: AtomicU64,
    /// Cancel requests passed on.
    pub cancels: AtomicU64,
    /// Bytes from clients.
    pub bytes_in: AtomicU64,
    /// Bytes to clients.
    pub bytes_out: AtomicU64,
}

/// All ports' counters.
#[derive(Debug, Default)]
pub struct Counters {
    ports: [PortCounters; 3],
}

impl Counters {
    pub(super) fn of(&self, port: Port) -> &PortCounters {
        let [rw, ro, any] = &self.ports;
        match port {
            Port::Rw => rw,
            Port::Ro => ro,
            Port::Any => any,
        }
    }

    /// Returns the counters as they are now.
    pub fn snapshot(&self, open: [bool; 3]) -> Vec<PortFigures> {
        let ports = Port::ALL.into_iter().zip(open).filter(|(_, open)| *open);
        ports.map(|(port, _)| PortFigures::of(port, self.of(port))).collect()
    }
}

/// A moment's copy of a port's counters.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortFigures {
    /// The port's name.
    pub port: &'static str,
    /// Connections that lead to a server now, and those that wait for one.
    pub open: [u64; 2],
    /// `(metric, help, value)`.
    pub totals: Vec<(&'static str, &'static str, u64)>,
    /// `(reason, value)` of connections turned away or ended by the proxy.
    pub ended: Vec<(&'static str, u64)>,
    /// How long those waited that got a server.
    pub waited: Duration,
}

impl PortFigures {
    fn of(port: Port, counters: &PortCounters) -> Self {
        let get = |counter: &AtomicU64| counter.load(Ordering::Relaxed);
        Self {
            port: port.name(),
            open: [get(&counters.open), get(&counters.waiting)],
            totals: vec![
                ("rhone_proxy_accepted_total", "Connections accepted.", get(&counters.accepted)),
                (
                    "rhone_proxy_established_total",
                    "Connections that got a server.",
                    get(&counters.established),
                ),
                ("rhone_proxy_waited_total", "Connections that waited for one.", get(&counters.waited)),
                ("rhone_proxy_cut_total", "Connections cut by a change of epoch.", get(&counters.cut)),
                (
                    "rhone_proxy_failed_attempts_total",
                    "Attempts to reach a server that failed.",
                    get(&counters.failed),
                ),
                ("rhone_proxy_cancels_total", "Cancel requests passed on.", get(&counters.cancels)),
                ("rhone_proxy_bytes_in_total", "Bytes from clients.", get(&counters.bytes_in)),
                ("rhone_proxy_bytes_out_total", "Bytes to clients.", get(&counters.bytes_out)),
            ],
            ended: vec![
                ("limit", get(&counters.refused_limit)),
                ("wait", get(&counters.refused_wait)),
                ("mute", get(&counters.mute)),
                ("idle", get(&counters.idled)),
            ],
            waited: Duration::from_micros(get(&counters.waited_us)),
        }
    }
}

pub(super) fn add(counter: &AtomicU64, count: u64) {
    counter.fetch_add(count, Ordering::Relaxed);
}

/// Counts one up while it lives.
#[derive(Debug)]
pub(super) struct Gauge<'a>(&'a AtomicU64);

impl<'a> Gauge<'a> {
    pub(super) fn up(gauge: &'a AtomicU64) -> Self {
        gauge.fetch_add(1, Ordering::Relaxed);
        Self(gauge)
    }
}

impl Drop for Gauge<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
