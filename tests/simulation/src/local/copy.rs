//! Clone and rewind: plays `runtime/local/copy.rs`.

use rhone_consensus::ids::{Epoch, NodeId};
use rhone_consensus::store::hard::{DataRecord, Sentinel, SentinelKind};
use rhone_pgctl::wal::{Timeline, WalPosition};

use super::Local;
use crate::machine::Run;
use crate::mutant::Mutant;

impl Local {
    /// Returns the machine of a source that serves this epoch's timeline, and how far it is.
    fn source(&self, node: NodeId) -> Result<(usize, WalPosition), String> {
        let other = self.plant.index_of(node).ok_or("no such member")?;
        if !self.plant.net.linked(self.index, other) {
            return Err("the source cannot be reached".to_owned());
        }
        let machine = self.plant.machine(other);
        if machine.run != Run::Primary || !machine.moves() {
            return Err("the source serves nobody".to_owned());
        }
        let Some(data) = &machine.data else { return Err("the source has no data".to_owned()) };
        let granted = self.state(|state| state.current_grant().map(|grant| grant.timeline));
        if granted != Some(Timeline::new(data.timeline)) {
            return Err(format!("the source is on timeline {}", data.timeline));
        }
        Ok((other, data.position(data.flushed)))
    }

    async fn begin_copy(
        &self,
        epoch: Epoch,
        kind: SentinelKind,
        floor: Option<WalPosition>,
        data: DataRecord,
    ) -> Result<(), String> {
        let promise = self.mutant() != Mutant::NoPromise;
        self.update_hard(|hard| {
            if promise {
                hard.promise = hard.promise.max(epoch);
            }
            hard.sentinel = Some(Sentinel { epoch, kind, source: String::new() });
            hard.floor = floor;
            hard.data = Some(data);
        })
        .await
    }

    pub(super) async fn copy_from(&self, epoch: Epoch, node: NodeId) -> Result<(), String> {
        self.still(epoch)?;
        self.source(node)?;
        tokio::time::sleep(self.plant.some(300, 3000)).await;
        let (other, _) = self.source(node)?;
        let mut copy = self.plant.machine(other).data.clone().ok_or("the source has no data")?;
        copy.wal.truncate(copy.flushed);
        copy.needs = copy.wal.len();
        (copy.clean, copy.primary) = (false, false);
        tokio::time::sleep(self.plant.some(1, 50)).await;
        let owner = self.state(|state| state.current_grant().map_or(node, |grant| grant.owner));
        let (_, floor) = self.source(owner)?;
        self.still(epoch)?;
        let (ident, record) = self.draw_ident();
        copy.ident = Some(ident);
        self.begin_copy(epoch, SentinelKind::Clone, Some(floor), record).await?;
        self.stop().await;
        self.plant.gives_up(self.index);
        tokio::time::sleep(self.plant.some(1, 30)).await;
        self.machine().data = Some(copy);
        self.finished_copying().await?;
        let mut facts = self.facts();
        facts.rewinds_failed = 0;
        facts.start_failed = None;
        Ok(())
    }

    pub(super) async fn rewind_to(&self, epoch: Epoch, node: NodeId) -> Result<(), String> {
        self.still(epoch)?;
        self.source(node)?;
        self.stop().await;
        let kind = self.shared.hard.get().sentinel.map(|sentinel| sentinel.kind);
        let crashed = self.machine().data.as_ref().is_some_and(|data| !data.clean && !data.primary);
        if crashed && matches!(kind, Some(SentinelKind::Rewind | SentinelKind::Rewound)) {
            self.facts().rewinds_failed = u32::MAX;
            return Err("an earlier rewind was cut short: it must be cloned".to_owned());
        }
        let floor = self.state(|state| {
            let timeline = state.current_grant().map(|grant| grant.timeline);
            timeline.and_then(|timeline| state.ledger.floor_after_rewind(timeline))
        });
        self.still(epoch)?;
        let (ident, record) = self.draw_ident();
        if let Some(data) = &mut self.machine().data {
            data.ident = Some(ident);
        }
        self.begin_copy(epoch, SentinelKind::Rewind, floor, record).await?;
        self.plant.gives_up(self.index);
        tokio::time::sleep(self.plant.some(200, 3000)).await;
        let (other, _) = self.source(node).inspect_err(|_| {
            let mut facts = self.facts();
            facts.rewinds_failed = facts.rewinds_failed.saturating_add(1);
        })?;
        let theirs = self.plant.machine(other).data.clone().ok_or("the source has no data")?;
        let back = usize::try_from(self.plant.draw(4)).unwrap_or(0);
        {
            let mut machine = self.machine();
            let Some(data) = &mut machine.data else { return Err("the data directory is gone".to_owned()) };
            // By numbers, as pg_rewind: where the last common timeline ends on either side.
            let common =
                data.wal.iter().zip(&theirs.wal).take_while(|(a, b)| a.timeline == b.timeline).count();
            data.wal.truncate(common.saturating_sub(back).max(1));
            data.flushed = data.wal.len();
            data.timeline = data.wal.last().map_or(1, |record| record.timeline);
            data.needs = theirs.flushed;
            (data.clean, data.primary) = (true, false);
        }
        self.finished_copying().await?;
        let mut facts = self.facts();
        if facts.start_failed.take().is_some() {
            facts.rewinds_failed = facts.rewinds_failed.saturating_add(1);
        }
        Ok(())
    }

    /// Notes durably that what was begun is done.
    async fn finished_copying(&self) -> Result<(), String> {
        self.update_hard(|hard| {
            if let Some(sentinel) = &mut hard.sentinel {
                sentinel.kind = sentinel.kind.done();
            }
        })
        .await
    }

    /// Once the standby streams past its floor, what was begun is finished.
    pub async fn finish_copy(&self, position: WalPosition) {
        let hard = self.shared.hard.get();
        if hard.sentinel.is_none() && hard.floor.is_none() {
            return;
        }
        let reached = hard
            .floor
            .is_none_or(|floor| self.state(|state| state.ledger.rank(position) >= state.ledger.rank(floor)));
        if !reached {
            return;
        }
        let seen = hard.clone();
        let done = self.update_hard(|now| {
            if now.sentinel == seen.sentinel && now.floor == seen.floor {
                now.sentinel = None;
                now.floor = None;
            }
        });
        if done.await.is_ok() && self.shared.hard.get().sentinel.is_none() {
            self.facts().rewinds_failed = 0;
        }
    }
}
