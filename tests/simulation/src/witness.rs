//! A witness: the product's, but for its ports and signals. It votes, and has no Postgres.

use std::sync::Arc;

use rhone::runtime::shared::Shared;
use rhone::runtime::witness::{remember_epochs, report, take_leave};
use tokio::sync::watch;

use crate::node::Ended;

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
    take_leave(shared).await;
    Ok(Ended::Left)
}
