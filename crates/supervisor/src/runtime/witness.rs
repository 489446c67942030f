//! A witness: votes, remembers the lease, leads Raft where it can, and never runs Postgres.
//!
//! It has no guardian, no lease thread and no data directory: nobody can ever be primary here.

use std::sync::Arc;
use std::time::Duration;

use anyhow::bail;
use rhone_consensus::ids::Epoch;
use rhone_pgctl::user::OsUser;
use rhone_pgctl::wal::Timeline;

use crate::runtime::publish;
use crate::runtime::shared::Shared;
use crate::runtime::supervisor::{After, all, leave_on_signal, serving, shut_down};
use crate::view::{Instance, Report, VoterReport};

/// For how long a witness that stops offers leadership to another: twice the longest election
/// timeout, and as much for the vote.
const FAREWELL: Duration = Duration::from_secs(3);

/// Runs a witness until it is told to stop.
///
/// # Errors
/// A port that cannot be listened on, or Raft's store failed.
pub(super) async fn run(shared: Arc<Shared>) -> anyhow::Result<After> {
    shared.own.send_replace(Some(report(false)));
    let view = publish::start(&shared, None);
    let tasks = serving(&shared, &OsUser::current(), view).await?;
    crate::proxy::start(&shared, None).await?;
    let mut leave = leave_on_signal()?;
    tracing::info!(reason = %crate::decide::Reason::Witness, "rests");
    tokio::select! {
        result = all(tasks) => {
            result?;
            bail!("a task of the supervisor ended")
        }
        () = remember_epochs(&shared) => bail!("raft ended"),
        told = leave.changed() => told?,
    }
    tracing::info!("is to stop");
    shared.own.send_replace(Some(report(true)));
    if shared.consensus.status().leading
        && tokio::time::timeout(FAREWELL, shared.consensus.yield_leadership()).await.is_err()
    {
        tracing::info!("nobody took over raft leadership");
    }
    shut_down(&shared).await;
    Ok(After::Exit)
}

/// Tells the voter's memory each epoch and timing that is applied. Ends only with Raft.
async fn remember_epochs(shared: &Shared) {
    let mut states = shared.consensus.state();
    loop {
        {
            let applied = Arc::clone(&states.borrow_and_update());
            let state = &applied.state;
            // Until the timings are known the voter stays in quarantine.
            if state.is_founded() {
                shared.voter.applied(state.epoch, state.ageing());
            }
        }
        if states.changed().await.is_err() {
            return;
        }
    }
}

/// What a witness says of itself: it has no instance, and its voter's half is added when it is sent.
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
        streams: std::collections::BTreeMap::new(),
        secured: None,
        highest_timeline: Timeline::new(0),
        lease_left_ms: None,
        counts_by: None,
        version: None,
        left: None,
        note: None,
        server: crate::view::ServerFacts::default(),
    }
}
