//! Before a handover stops the primary: every member's PgBouncer is paused, or the limit is over.

use std::time::Duration;

use futures_util::future::join_all;
use rhone_consensus::ids::Epoch;

use super::Handle;
use crate::api::proto::v1::PausePoolerRequest;
use crate::config::Pooler;
use crate::runtime::shared::Shared;

/// How much longer than the pause itself a member's answer may take.
const ANSWER_EXTRA: Duration = Duration::from_millis(500);

/// How long the whole may take where this member has no PgBouncer of its own.
const LIMIT: Duration = Duration::from_secs(5);

/// A member that was not heard from for this long is not asked.
const HEARD_MS: u64 = 10_000;

/// One that was not heard from for this long has little time to answer: it is most likely gone.
const LATE_MS: u64 = 3000;

/// So much.
const LATE_LIMIT: Duration = Duration::from_secs(1);

/// Asks the keeper to pause for the end of an epoch, and returns whether it has: at once where there is no PgBouncer.
pub async fn pause_here(handle: &Handle, pooler: Option<&Pooler>, epoch: Epoch) -> bool {
    let Some(pooler) = pooler else { return true };
    handle.asked.send_modify(|asked| *asked = epoch.max(*asked));
    let mut paused = handle.paused.subscribe();
    let done = paused.wait_for(|paused| *paused == Some(epoch));
    matches!(tokio::time::timeout(pooler.pause_timeout, done).await, Ok(Ok(_)))
}

/// Has every member's PgBouncer paused for the end of an epoch. What is not paused within the limit is cut by the
/// shutdown, as it would be without PgBouncer.
pub async fn pause_everywhere(shared: &Shared, epoch: Epoch) {
    let own = shared.config.pooler.as_ref();
    let limit = own.map_or(LIMIT, |pooler| pooler.pause_timeout) + ANSWER_EXTRA;
    let (me, now) = (shared.me(), shared.now());
    let others: Vec<(String, Duration)> = {
        let applied = std::sync::Arc::clone(&shared.consensus.state().borrow());
        let table = shared.table.borrow();
        let others = applied.state.members.values().filter(|member| member.node != me);
        let asked = others.filter_map(|member| {
            let age = now.millis_since(table.get(&member.node)?.at);
            let limit = if age < LATE_MS { limit } else { limit.min(LATE_LIMIT) };
            (age < HEARD_MS).then(|| (member.address.clone(), limit))
        });
        asked.collect()
    };
    let asked = others.iter().map(|(address, limit)| async move {
        let request = PausePoolerRequest { from: Some(shared.identity()), epoch: epoch.0 };
        let call = shared
            .peers
            .call(address, *limit, |mut client| async move { client.pause_pooler(request).await });
        match call.await {
            Ok(reply) => reply.paused,
            Err(error) => {
                tracing::debug!(%error, "no word of a PgBouncer");
                false
            }
        }
    });
    let (own, others) = tokio::join!(pause_here(&shared.pooler, own, epoch), join_all(asked));
    if !own || others.contains(&false) {
        tracing::warn!(%epoch, "not every PgBouncer is paused: transactions that are open will be cut");
    }
}
