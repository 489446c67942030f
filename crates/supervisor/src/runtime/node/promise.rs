//! Revoke, as the node's loop hears and answers it.

use std::sync::Arc;

use rhone_consensus::ids::{DataId, Epoch};

use super::retry::refusal;
use super::{NodeLoop, Running, chain};
use crate::decide::Effect;
use crate::runtime::shared::RevokeAsk;
use crate::view::Revoked;

impl NodeLoop {
    pub(super) fn answer(&mut self, epoch: Epoch, result: &Result<Revoked, String>) {
        match self.revoke.take() {
            Some((asked, answers)) if asked <= epoch => {
                for answer in answers {
                    // Whoever asked may have given up.
                    drop(answer.send(result.clone()));
                }
            }
            later => self.revoke = later,
        }
    }

    pub(super) fn asked(&mut self, ask: RevokeAsk) {
        let promise = self.shared.hard.get().promise;
        let applied = Arc::clone(&self.shared.consensus.state().borrow());
        let granted = applied.state.grant.as_ref().map_or(Epoch(0), |grant| grant.epoch);
        if let Some(reason) = refusal(ask.epoch, promise, granted) {
            drop(ask.answer.send(Err(reason)));
            return;
        }
        if matches!(&self.running, Some(Running { effect: Effect::Rewind(_), .. })) {
            self.promise_beside_rewind(ask);
            return;
        }
        match &mut self.revoke {
            Some((epoch, answers)) if *epoch == ask.epoch => answers.push(ask.answer),
            Some((epoch, _)) if *epoch > ask.epoch => {
                drop(ask.answer.send(Err("a higher epoch is asked for".to_owned())));
            }
            Some(_) | None => self.revoke = Some((ask.epoch, vec![ask.answer])),
        }
    }

    /// pg_rewind is never cut short: the promise is given beside it, and the data does not count.
    fn promise_beside_rewind(&self, ask: RevokeAsk) {
        let local = Arc::clone(&self.local);
        tokio::spawn(async move {
            let epoch = ask.epoch;
            let promised = local.update_hard(move |hard| hard.promise = hard.promise.max(epoch)).await;
            let highest_timeline = local.identity_facts().1;
            let answer = promised
                .map(|()| Revoked { epoch, position: None, data: DataId(0), able: false, highest_timeline })
                .map_err(|error| chain(&error));
            // Whoever asked may have given up.
            drop(ask.answer.send(answer));
        });
    }
}
