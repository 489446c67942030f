//! Carries out what was decided: the one place that changes the local Postgres.
//!
//! One effect at a time. Each compares the epoch once more just before it acts, is idempotent,
//! and reports by what the next look sees, not by what it returns.

use std::sync::Arc;

use rhone_consensus::ids::Epoch;

use crate::decide::Effect;
use crate::runtime::local::{Local, LocalError};
use crate::view::Revoked;

/// What an effect leaves behind besides the changed instance.
#[derive(Clone, Debug)]
pub enum Done {
    /// Nothing: look again.
    Look,
    /// The answer to a Revoke.
    Revoked(Revoked),
}

/// Carries out one effect.
///
/// # Errors
/// It was not done, or not wholly: what is so now is for the next look to see.
pub async fn carry_out(
    local: Arc<Local>,
    effect: Effect,
    epoch: Epoch,
    able: bool,
) -> Result<Done, LocalError> {
    match effect {
        // What ends a primary waits for no disk: a Revoke waits for it after that (decision 0062).
        Effect::Fence | Effect::Revoke => {}
        Effect::InitDb
        | Effect::Start(_)
        | Effect::Follow(_)
        | Effect::Promote
        | Effect::SetPolicy
        | Effect::OpenGate
        | Effect::HandOver
        | Effect::Stop
        | Effect::Rewind(_)
        | Effect::Clone(_) => local.files_at_rest().await,
    }
    match effect {
        Effect::InitDb => local.init_db().await?,
        Effect::Start(None) => local.start_as_owner(epoch).await?,
        Effect::Start(Some(node)) => {
            local.promise_epoch(epoch).await?;
            local.start(Some(node)).await?;
        }
        Effect::Follow(node) => {
            local.promise_epoch(epoch).await?;
            local.follow(node).await?;
        }
        Effect::Revoke => return local.revoke(epoch, able).await.map(Done::Revoked),
        Effect::Promote => {
            let applied = Arc::clone(&local.shared.consensus.state().borrow());
            let grant = applied.state.current_grant().filter(|grant| grant.epoch == epoch).cloned();
            let grant = grant.ok_or_else(|| LocalError::Stale("the grant is gone".to_owned()))?;
            local.promote(&grant).await?;
        }
        Effect::SetPolicy => local.set_policy(epoch).await?,
        Effect::OpenGate => local.open_gate(epoch).await?,
        Effect::Fence => local.fence().await?,
        Effect::HandOver => local.hand_over(epoch).await?,
        Effect::Stop => local.stop().await?,
        Effect::Rewind(node) => local.rewind_to(epoch, node).await?,
        Effect::Clone(node) => local.copy_from(epoch, node).await?,
    }
    Ok(Done::Look)
}
