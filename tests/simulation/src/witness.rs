//! A witness: plays `runtime/witness.rs`. It votes, and has no Postgres.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use rhone::runtime::shared::Shared;
use rhone::view::{Instance, Report, ServerFacts, VoterReport};
use rhone_consensus::ids::Epoch;
use rhone_pgctl::wal::Timeline;
use tokio::sync::watch;

use crate::node::Ended;

const FAREWELL: Duration = Duration::from_secs(3);

/// Runs until it is told to stop.
pub async fn run(
    shared: &Arc<Shared>,
    fatal: &mut watch::Receiver<Option<String>>,
    mut leave: watch::Receiver<bool>,
) -> Result<Ended, String> {
    shared.own.send_replace(Some(report(false)));
    tokio::select! {
        biased;
        reason = fatal.wait_for(Option::is_some) => {
            return Err(reason.map_or_else(|_| "raft is gone".to_owned(), |r| r.clone().unwrap_or_default()));
        }
        () = remember_epochs(shared) => return Err("raft is gone".to_owned()),
        _ = leave.changed() => {}
    }
    shared.own.send_replace(Some(report(true)));
    if shared.consensus.status().leading {
        drop(tokio::time::timeout(FAREWELL, shared.consensus.yield_leadership()).await);
    }
    Ok(Ended::Left)
}

async fn remember_epochs(shared: &Shared) {
    let mut states = shared.consensus.state();
    loop {
        {
            let applied = Arc::clone(&states.borrow_and_update());
            if applied.state.is_founded() {
                shared.voter.applied(applied.state.epoch, applied.state.ageing());
            }
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

fn report(leaving: bool) -> Report {
    Report {
        instance: Instance::Absent,
        activity: None,
        voter: VoterReport::default(),
        promise: Epoch(0),
        leaving,
        down: None,
        system_id: None,
        data: None,
        streams: BTreeMap::new(),
        secured: None,
        highest_timeline: Timeline::new(0),
        lease_left_ms: None,
        counts_by: None,
        version: None,
        left: None,
        note: None,
        server: ServerFacts::default(),
    }
}
