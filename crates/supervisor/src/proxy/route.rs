//! ✦ Where a new connection goes: what is known of the servers, and the rule of each port.
//!
//! Pure: no clock, no socket. A server is the primary here only as the owner of the newest epoch, with its gate
//! open and, where this member can know it, a live lease.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use rhone_consensus::ids::{Epoch, NodeId};
use rhone_consensus::state::{ClusterState, Phase};
use rhone_pgctl::wal::Lsn;

use crate::view::{Instance, Moment, Received, Report};

/// A member that was not heard from for this long is taken for unreachable, as `rhone status` has it.
pub(super) const UNREACHABLE_MS: u64 = 3000;

/// A table whose newest row is older than this is itself out of date, and says nothing of a member's absence.
const TABLE_STALE_MS: u64 = 1500;

/// One of the three ports.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Port {
    /// To the primary.
    Rw,
    /// To a standby within the lag limit.
    Ro,
    /// To any running instance.
    Any,
}

impl Port {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Rw, Self::Ro, Self::Any];

    /// Returns its name in the configuration, in logs and in metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Rw => "rw",
            Self::Ro => "ro",
            Self::Any => "any",
        }
    }
}

impl fmt::Display for Port {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// What a server is good for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Use {
    /// It owns the newest epoch and serves.
    Primary,
    /// It answers queries as a standby.
    Standby {
        /// Whether WAL streams in.
        streaming: bool,
    },
    /// Nothing now.
    None,
}

/// One server as it is known here.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Server {
    pub(super) node: NodeId,
    /// Whether it is this member's own.
    pub(super) here: bool,
    pub(super) usable: Use,
    /// WAL behind the furthest position that is known, in bytes: of a standby what it has replayed, since that is
    /// what a reader sees; what it has received where its version does not tell more.
    pub(super) lag: Option<u64>,
}

/// All that a route is chosen by.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Survey {
    pub(super) epoch: Epoch,
    /// Whether this member knows what a majority knows; without that nothing goes to a primary.
    pub(super) informed: bool,
    /// Whether the primary is about to hand over.
    pub(super) handover: bool,
    pub(super) servers: Vec<Server>,
}

/// The facts that a survey is made of.
#[derive(Clone, Copy, Debug)]
pub(super) struct Facts<'a> {
    pub(super) state: &'a ClusterState,
    pub(super) reports: &'a BTreeMap<NodeId, Received>,
    pub(super) me: NodeId,
    /// This member's own report.
    pub(super) own: Option<&'a Report>,
    /// Whether the lease of the newest epoch is this member's, and live.
    pub(super) leased: bool,
    /// Whether the Raft leader was heard, or a majority as its leader, within a lease.
    pub(super) led: bool,
    pub(super) now: Moment,
}

/// Says what each server is good for.
pub(super) fn survey(facts: &Facts<'_>) -> Survey {
    let Facts { state, me, .. } = *facts;
    let owner = state.current_grant().map(|grant| grant.owner);
    let found: Vec<(NodeId, Use, Option<Ends>)> = state
        .data_members()
        .map(|member| {
            let report = report_of(facts, member.node);
            let usable = if owner == Some(member.node) {
                owner_use(facts, report, member.node == me)
            } else {
                standby_use(report)
            };
            (member.node, usable, report.filter(|_| usable != Use::None).and_then(ends))
        })
        .collect();
    let furthest = found.iter().filter_map(|(_, _, ends)| ends.map(|ends| ends.held)).max();
    let servers = found.into_iter().map(|(node, usable, ends)| Server {
        node,
        here: node == me,
        usable,
        lag: furthest.zip(ends).map(|(furthest, ends)| furthest.bytes_since(ends.seen)),
    });
    Survey {
        epoch: state.epoch,
        informed: facts.led || facts.leased,
        handover: state.handover.as_ref().is_some_and(|handover| handover.epoch == state.epoch),
        servers: servers.collect(),
    }
}

/// Where the WAL of a server ends.
#[derive(Clone, Copy)]
struct Ends {
    /// What it holds.
    held: Lsn,
    /// What its readers see.
    seen: Lsn,
}

fn ends(report: &Report) -> Option<Ends> {
    let held = report.instance.position()?.lsn;
    Some(Ends { held, seen: report.server.replayed.unwrap_or(held) })
}

/// Returns a member's report where it is young enough to count.
fn report_of<'a>(facts: &Facts<'a>, node: NodeId) -> Option<&'a Report> {
    if node == facts.me {
        return facts.own;
    }
    let received = facts.reports.get(&node)?;
    (facts.now.millis_since(received.at) < UNREACHABLE_MS).then_some(&received.report)
}

fn owner_use(facts: &Facts<'_>, report: Option<&Report>, here: bool) -> Use {
    let (epoch, phase) = (facts.state.epoch, &facts.state.phase);
    let serves = report.is_some_and(|report| {
        matches!(&report.instance,
            Instance::Primary { epoch: own, gate_open: true, .. } if *own == epoch)
    });
    if here {
        return if serves && facts.leased { Use::Primary } else { Use::None };
    }
    if serves {
        return Use::Primary;
    }
    if *phase != Phase::Established {
        return Use::None;
    }
    match report.map(|report| &report.instance) {
        // A report from before its promotion, or none: the log knows better than what came by the way.
        None | Some(Instance::Standby { .. } | Instance::Unknown) => Use::Primary,
        Some(Instance::Primary { epoch: own, .. }) if *own < epoch => Use::Primary,
        Some(
            Instance::Primary { .. }
            | Instance::Frozen { .. }
            | Instance::Hung { .. }
            | Instance::Stopped { .. }
            | Instance::Starting
            | Instance::Absent
            | Instance::Unusable(_),
        ) => Use::None,
    }
}

fn standby_use(report: Option<&Report>) -> Use {
    match report.map(|report| &report.instance) {
        Some(Instance::Standby { streaming, .. }) => Use::Standby { streaming: *streaming },
        None
        | Some(
            Instance::Unknown
            | Instance::Absent
            | Instance::Unusable(_)
            | Instance::Stopped { .. }
            | Instance::Starting
            // One of an epoch that is over, or of none: never served.
            | Instance::Primary { .. }
            | Instance::Frozen { .. }
            | Instance::Hung { .. },
        ) => Use::None,
    }
}

/// Why a connection waits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Why {
    /// This member has not heard from the Raft leader for as long as a lease.
    Uninformed,
    /// Nobody serves as primary now.
    NoPrimary,
    /// No standby within the lag limit answers, and no primary either.
    NoStandby,
    /// No instance answers.
    NothingRuns,
}

/// Where a new connection goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Route {
    /// To this server.
    To(NodeId),
    /// It waits for the next primary, and takes this one when none comes.
    Hold(NodeId),
    /// It waits.
    Wait(Why),
}

/// What a port's rule depends on beside the survey.
#[derive(Clone, Copy, Debug)]
pub(super) struct Choice<'a> {
    /// How many bytes of WAL a standby may be behind for `ro`.
    pub(super) max_lag: u64,
    /// Open connections through this member, by server.
    pub(super) load: &'a BTreeMap<NodeId, usize>,
    /// Servers that this connection has found not to answer.
    pub(super) failed: &'a BTreeSet<NodeId>,
}

/// Chooses a server for a new connection.
///
/// - `rw`: the primary.
/// - `ro`: of the standbys that stream and are within the lag limit the one with the fewest connections; else the
///   primary; else, while there is no primary, any standby that is not known to be too far behind.
/// - `any`: of all that run the one with the fewest connections.
///
/// Ties go to this member's own server. Without word from a majority nothing goes to a primary.
pub(super) fn route(port: Port, survey: &Survey, choice: &Choice<'_>) -> Route {
    let usable = || survey.servers.iter().filter(|server| !choice.failed.contains(&server.node));
    let best = |wanted: &dyn Fn(&Server) -> bool| {
        let load = |server: &Server| choice.load.get(&server.node).copied().unwrap_or(0);
        usable().filter(|server| wanted(server)).min_by_key(|s| (load(s), !s.here, s.node)).map(|s| s.node)
    };
    let primary = best(&|server| survey.informed && server.usable == Use::Primary);
    let to_primary = |node| if survey.handover { Route::Hold(node) } else { Route::To(node) };
    let near = |server: &Server| server.lag.is_some_and(|lag| lag <= choice.max_lag);
    match port {
        Port::Rw => match primary {
            Some(node) => to_primary(node),
            None if survey.informed => Route::Wait(Why::NoPrimary),
            None => Route::Wait(Why::Uninformed),
        },
        Port::Ro => {
            let streams = |server: &Server| server.usable == Use::Standby { streaming: true } && near(server);
            let stands = |server: &Server| {
                matches!(server.usable, Use::Standby { .. }) && (server.lag.is_none() || near(server))
            };
            match (best(&streams), primary) {
                (Some(node), _) => Route::To(node),
                (None, Some(node)) => to_primary(node),
                (None, None) => best(&stands).map_or(Route::Wait(Why::NoStandby), Route::To),
            }
        }
        Port::Any => {
            let runs = |server: &Server| match server.usable {
                Use::Primary => survey.informed && !survey.handover,
                Use::Standby { .. } => true,
                Use::None => false,
            };
            match (best(&runs), primary) {
                (Some(node), _) => Route::To(node),
                (None, Some(node)) => to_primary(node),
                (None, None) => Route::Wait(Why::NothingRuns),
            }
        }
    }
}

/// An open connection, as far as its end is decided by it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Open {
    pub(super) port: Port,
    pub(super) node: NodeId,
    /// The epoch that it was routed by.
    pub(super) epoch: Epoch,
}

/// Says whether an open connection has to be cut: its epoch is over, and it leads to the primary of an epoch that
/// is over, or to a server that is out of reach.
///
/// While the epoch lasts nothing is cut: a server that was frozen goes on with its sessions when it is thawed.
pub(super) fn must_cut(open: &Open, facts: &Facts<'_>) -> bool {
    let state = facts.state;
    if open.epoch >= state.epoch {
        return false;
    }
    let deposed = state
        .ledger
        .entries
        .values()
        .any(|entry| entry.owner == open.node && entry.epoch >= open.epoch && entry.epoch < state.epoch);
    let gone = !state.members.contains_key(&open.node);
    open.port == Port::Rw || deposed || gone || out_of_reach(open.node, facts)
}

fn out_of_reach(node: NodeId, facts: &Facts<'_>) -> bool {
    let age = |received: &Received| facts.now.millis_since(received.at);
    let newest = facts.reports.values().map(age).min();
    node != facts.me
        && newest.is_some_and(|newest| newest < TABLE_STALE_MS)
        && facts.reports.get(&node).is_none_or(|received| age(received) >= UNREACHABLE_MS)
}

#[cfg(test)]
#[path = "route_tests.rs"]
mod tests;
