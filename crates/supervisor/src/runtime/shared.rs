//! What the tasks of one supervisor share.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;

use rhone_consensus::Consensus;
use rhone_consensus::command::{ClusterCommand, Member, Outcome};
use rhone_consensus::ids::{DataId, Epoch, LogIndex, NodeId};
use rhone_consensus::proto::Identity;
use rhone_consensus::settings::Timing;
use rhone_consensus::store::hard::HardStateFile;
use serde::{Deserialize, Serialize};
use tokio::sync::{mpsc, oneshot, watch};

use crate::config::Config;
use crate::decide::lease;
use crate::runtime::clock::{BootTime, Timepiece};
use crate::runtime::local::takeover::Found;
use crate::runtime::peers::Peers;
use crate::runtime::recorder::Recorder;
use crate::runtime::secret::Secret;
use crate::runtime::voter::VoterLease;
use crate::tls::Security;
use crate::view::{Moment, Received, Report, Revoked};

/// The members' reports as they are known here.
pub type Table = BTreeMap<NodeId, Received>;

/// A Revoke that waits for the node's loop.
#[derive(Debug)]
pub struct RevokeAsk {
    /// The epoch to promise.
    pub epoch: Epoch,
    /// Where the answer goes.
    pub answer: oneshot::Sender<Result<Revoked, String>>,
}

/// What an operator asked of the instance here, through the Raft leader. Each names what it means, so
/// that it is done once, and nothing when that is gone already.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// To restart the server that started then, in milliseconds since 1970.
    pub restart: Option<u64>,
    /// How often to write and read the configuration again.
    pub reloads: u64,
    /// How many of these are done: by what was begun after they were asked for.
    pub reloaded: u64,
    /// To make that data directory anew.
    pub reinit: Option<DataId>,
}

impl Asked {
    /// Returns whether the configuration is to be written and read again.
    pub fn reload(&self) -> bool {
        self.reloads > self.reloaded
    }

    /// Takes note that what was begun when so many reloads had been asked for has had the instance read its
    /// files; says whether that was news. One that was asked for since is still due.
    pub fn reload_done(&mut self, reloads: u64) -> bool {
        let news = reloads > self.reloaded;
        self.reloaded = self.reloaded.max(reloads);
        news
    }
}

/// What the tasks of one supervisor share. No task waits while it holds anything of it locked.
#[derive(Debug)]
pub struct Shared {
    /// The member's own configuration.
    pub config: Config,
    /// The clock.
    pub clock: Timepiece,
    /// The hard state.
    pub hard: Arc<HardStateFile>,
    /// The voter's half of the lease.
    pub voter: Arc<VoterLease>,
    /// Raft.
    pub consensus: Consensus,
    /// Connections to the others.
    pub peers: Peers,
    /// The certificates; none without TLS.
    pub security: Option<Arc<Security>>,
    /// What this member would report, but for the voter's part.
    pub own: watch::Sender<Option<Report>>,
    /// All members' reports as known here.
    pub table: watch::Sender<Table>,
    /// Where Revoke goes.
    pub revokes: mpsc::Sender<RevokeAsk>,
    /// The replication password.
    pub secret: Secret,
    /// Calls refused because they came from a stranger.
    pub strangers: Arc<AtomicU64>,
    /// What the proxy counts.
    pub proxy: crate::proxy::Counters,
    /// What the local PgBouncer is asked, where there is one.
    pub pooler: crate::pooler::Handle,
    /// The server that somebody else started here, while it may be taken over.
    pub takeover: watch::Sender<Option<Found>>,
    /// What an operator asked of the instance here.
    pub asked: watch::Sender<Asked>,
    /// What the leader's loop decided last, in words, with its code.
    pub decided: watch::Sender<(String, String)>,
    /// Where changed decisions are written with what they were taken from.
    pub recorder: Recorder,
}

impl Shared {
    /// Returns this member's Raft node.
    pub fn me(&self) -> NodeId {
        self.hard.get().node_id
    }

    /// Returns who is calling, for a call to another supervisor.
    pub fn identity(&self) -> Identity {
        self.consensus.identity()
    }

    /// Returns this member as it asks to be recorded.
    pub fn member(&self) -> Member {
        let hard = self.hard.get();
        let config = &self.config;
        Member {
            node: hard.node_id,
            name: config.node.name.clone(),
            kind: config.kind(),
            incarnation: hard.incarnation,
            address: config.node.advertise.to_string(),
            postgres: config.postgres_advertise(),
            http: config.http_advertise(),
            priority: config.priority(),
            tags: config.node.tags.clone(),
        }
    }

    /// Returns the timings that an owner goes by.
    pub fn timing(&self) -> Timing {
        self.consensus.state().borrow().state.counting()
    }

    /// Returns what the owner of an epoch counts its lease by ([`lease::counted`]); nothing when a higher epoch
    /// is applied: the timings of a state that knows it are not for this one's renewals.
    pub fn counted(&self, epoch: Epoch) -> Option<(Timing, Option<LogIndex>)> {
        let log = self.voter.log_timing();
        let applied = Arc::clone(&self.consensus.state().borrow());
        (applied.state.epoch <= epoch).then(|| lease::counted(applied.index, &applied.state, log))
    }

    /// Returns why a command would be refused by the state as it is now: a refusal in the log would
    /// cost every member an fsync and change nothing.
    pub fn would_refuse(&self, command: &ClusterCommand) -> Option<String> {
        let applied = Arc::clone(&self.consensus.state().borrow());
        let mut state = applied.state.clone();
        match state.apply(LogIndex(applied.index.0 + 1), command) {
            Outcome::Done | Outcome::Prepared(_) => None,
            Outcome::Refused(reason) => Some(reason),
        }
    }

    /// Returns the moment by this node's clock.
    pub fn now(&self) -> Moment {
        moment(self.clock.now())
    }
}

/// Turns a moment of the clock into the decision core's.
pub fn moment(time: BootTime) -> Moment {
    Moment(time.as_nanos())
}

/// One row of the table on its way to another member: ages, because clocks differ.
#[derive(Debug, Serialize, Deserialize)]
pub struct TableRow {
    /// Whose report.
    pub node: NodeId,
    /// How old it is, in milliseconds.
    pub age_ms: u64,
    /// The report.
    pub report: Report,
}

/// Packs the table for another member.
pub fn table_rows(table: &Table, now: Moment) -> Vec<TableRow> {
    table
        .iter()
        .map(|(node, received)| TableRow {
            node: *node,
            age_ms: now.millis_since(received.at),
            report: received.report.clone(),
        })
        .collect()
}

/// Unpacks another member's table.
pub fn table_of_rows(rows: Vec<TableRow>, now: Moment) -> Table {
    rows.into_iter()
        .map(|row| {
            let at = Moment(now.0.saturating_sub(row.age_ms.saturating_mul(1_000_000)));
            (row.node, Received { at, report: row.report })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::Asked;

    #[test]
    fn a_reload_that_is_asked_for_while_one_goes_on_is_done_after_it() {
        let mut asked = Asked { reloads: 1, ..Asked::default() };
        let begun = asked.reloads;
        asked.reloads += 1; // while that goes on
        assert!(asked.reload_done(begun) && asked.reload());
        assert!(asked.reload_done(asked.reloads) && !asked.reload());
        assert!(!asked.reload_done(1) && !asked.reload());
    }
}
