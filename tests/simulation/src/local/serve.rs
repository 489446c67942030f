//! Revoke, promotion, the gate, the handover: plays `runtime/local/serve.rs`.

use std::time::Duration;

use rhone::view::Revoked;
use rhone_consensus::command::Grant;
use rhone_consensus::ids::Epoch;
use rhone_pgctl::wal::WalPosition;

use super::Local;
use super::identity::Seen;
use crate::machine::Run;
use crate::mutant::Mutant;
use crate::node::page_live;

impl Local {
    pub(super) async fn revoke(&self, epoch: Epoch, able: bool) -> Result<Revoked, String> {
        let promise = self.promise();
        if promise > epoch {
            return Err(format!("epoch {promise} was promised"));
        }
        self.lease.set_target(None);
        if promise < epoch {
            self.promise_only(epoch).await?;
        }
        self.claim_first().await?;
        let position = self.frozen_position().await?;
        let hard = self.shared.hard.get();
        let unfinished = hard.unfinished().is_some();
        let no_floor = self.mutant() == Mutant::NoFloor;
        let data = match self.look_at_identity() {
            Seen::Ours(data) => Some(data),
            Seen::Nothing | Seen::Unclaimed | Seen::Stranger => None,
        };
        let whole = (!unfinished && self.above_floor(hard.floor, position)) || no_floor;
        let counts = whole && data.is_some();
        let shown = position.filter(|_| counts);
        let words = shown.map_or_else(|| "nothing".to_owned(), |position| position.to_string());
        self.say(&format!("is revoked for {epoch} at {words}"));
        Ok(Revoked {
            epoch,
            position: shown,
            data: data.unwrap_or_default(),
            able: able && self.start_failed().is_none(),
            highest_timeline: self.highest_timeline(),
        })
    }

    fn above_floor(&self, floor: Option<WalPosition>, position: Option<WalPosition>) -> bool {
        let (Some(floor), Some(position)) = (floor, position) else { return true };
        self.state(|state| match (state.ledger.rank(position), state.ledger.rank(floor)) {
            (Some(position), Some(floor)) => position >= floor,
            (None, _) | (_, None) => false,
        })
    }

    async fn frozen_position(&self) -> Result<Option<WalPosition>, String> {
        let (run, moves) = {
            let machine = self.machine();
            (machine.run, machine.moves())
        };
        if run == Run::Standby && moves && self.facts().primary_epoch == Epoch(0) {
            match self.cut().await {
                Ok(position) => return Ok(Some(position)),
                Err(error) => self.say(&format!("does not let go, and is killed: {error}")),
            }
        }
        if run != Run::Stopped {
            self.fence().await;
        }
        tokio::time::sleep(self.plant.some(1, 40)).await;
        let mut machine = self.machine();
        if machine.runs() {
            return Err("the instance runs".to_owned());
        }
        machine.sync_stopped();
        let Some(data) = &machine.data else { return Ok(None) };
        Ok((data.wal.len() >= data.needs).then(|| data.position(data.wal.len())))
    }

    async fn cut(&self) -> Result<WalPosition, String> {
        let streams_on = self.mutant() == Mutant::StreamsOn;
        tokio::time::sleep(self.plant.some(5, 40)).await;
        if !streams_on {
            let mut machine = self.machine();
            machine.upstream = None;
            machine.streaming = false;
            // The walreceiver flushes what it has before it is gone.
            if let Some(data) = &mut machine.data {
                data.flushed = data.wal.len();
            }
        }
        tokio::time::sleep(self.plant.some(1, 10)).await;
        self.lease.quiet().await;
        self.page.clear_lease();
        let boot = self.boot();
        let mut machine = self.machine();
        machine.release(boot);
        if machine.run != Run::Standby {
            return Err("it is no standby any more".to_owned());
        }
        let position = machine.data.as_ref().map(|data| data.position(data.flushed));
        drop(machine);
        if !streams_on {
            self.facts().upstream = None;
        }
        position.ok_or_else(|| "no data".to_owned())
    }

    fn entitled(&self, grant: &Grant) -> Result<(), String> {
        self.still(grant.epoch)?;
        if self.promise() != grant.epoch {
            return Err("this member did not promise the epoch".to_owned());
        }
        if self.mutant() != Mutant::NoRecheck && self.state(|state| state.current_grant() != Some(grant)) {
            return Err("the grant is not the newest".to_owned());
        }
        Ok(())
    }

    pub(super) async fn promote(&self, grant: &Grant) -> Result<(), String> {
        let epoch = grant.epoch;
        self.entitled(grant)?;
        if self.machine().run != Run::Standby {
            return Err("the postmaster is gone".to_owned());
        }
        self.lease.set_target(self.lease_target(epoch));
        self.machine().gate = false;
        self.facts().gate_open = false;
        tokio::time::sleep(self.plant.some(2, 30)).await;
        let policy = self.policy(epoch)?;
        self.may_be_empty(&policy);
        self.write_names(&mut self.machine(), &policy);
        self.answers().await?;
        self.checkpointer_is_up().await?;
        self.commits_will_wait(&policy).await?;
        let here = self.machine().data.as_ref().map(|data| data.position(data.wal.len()));
        if here != Some(grant.base) {
            self.lease.set_target(None);
            return Err(format!("the wal ends at {here:?}, not at {}", grant.base));
        }
        self.lease_live(epoch).await?;
        self.entitled(grant)?;
        if self.shared.hard.get().unfinished().is_some() {
            self.lease.set_target(None);
            return Err("a rewind or clone is not finished".to_owned());
        }
        self.update_hard(|hard| {
            hard.was_owner = Some(epoch);
            hard.sentinel = None;
            hard.floor = None;
        })
        .await?;
        self.facts().primary_epoch = epoch;
        {
            let boot = self.boot();
            let mut machine = self.machine();
            machine.kick(boot);
            if !page_live(machine.guard.lease, epoch, boot) {
                return Err("the guardian does not hold the lease".to_owned());
            }
        }
        {
            let now = self.boot();
            let mut facts = self.facts();
            facts.policy = Some(policy.number);
            facts.policy_since = now;
            facts.secured = Some(policy.number);
        }
        tokio::time::sleep(self.plant.some(15, 150)).await;
        let planned = if self.mutant() == Mutant::OwnTimeline {
            self.highest_timeline().get() + 1
        } else {
            grant.timeline.get()
        };
        let row = self.plant.row();
        let mut machine = self.machine();
        if machine.run != Run::Standby || !machine.moves() {
            return Err("the promotion did not end".to_owned());
        }
        machine.run = Run::Primary;
        machine.upstream = None;
        machine.streaming = false;
        machine.epoch = epoch;
        machine.marker = None;
        if let Some(data) = &mut machine.data {
            data.timeline = planned;
        }
        machine.write(row);
        Ok(())
    }

    pub(super) async fn open_gate(&self, epoch: Epoch) -> Result<(), String> {
        self.still(epoch)?;
        let hasty = self.mutant() == Mutant::GateWithoutMarker;
        if !hasty {
            let known = self.facts().marker.filter(|(of, _)| *of == epoch).map(|(_, end)| end);
            let end = if let Some(end) = known {
                end
            } else {
                self.answers().await?;
                let row = self.plant.row();
                let mut machine = self.machine();
                if machine.run != Run::Primary {
                    return Err("it is no primary".to_owned());
                }
                let end = machine.write(row);
                drop(machine);
                self.facts().marker = Some((epoch, end));
                end
            };
            if !self.marker_is_durable(epoch, end).await? {
                return Ok(());
            }
            self.machine().marker = Some(end);
            self.lease_live(epoch).await?;
        }
        self.still(epoch)?;
        let mut machine = self.machine();
        if machine.run != Run::Primary {
            return Err("it is no primary any more".to_owned());
        }
        machine.gate = true;
        drop(machine);
        self.facts().gate_open = true;
        Ok(())
    }

    pub(super) async fn hand_over(&self, epoch: Epoch) -> Result<(), String> {
        self.still(epoch)?;
        tokio::time::sleep(self.plant.some(10, 100)).await;
        self.still(epoch)?;
        self.machine().gate = false;
        let me = self.shared.me();
        // A shutdown in order waits until every walsender has sent all, and ends those that hang.
        for _ in 0..150 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            let (end, flushed) = {
                let machine = self.machine();
                if machine.run != Run::Primary {
                    return Err("it ended otherwise".to_owned());
                }
                machine.data.as_ref().map_or((0, 0), |data| (data.wal.len(), data.flushed))
            };
            let behind = (0..self.plant.count()).filter(|other| *other != self.index).any(|other| {
                let machine = self.plant.machine(other);
                machine.streaming
                    && machine.upstream == Some(me)
                    && machine.data.as_ref().is_some_and(|data| data.wal.len() < end)
            });
            if flushed == end && !behind {
                break;
            }
        }
        {
            let mut machine = self.machine();
            if machine.run != Run::Primary || !machine.moves() {
                return Err("it could not be shut down".to_owned());
            }
            machine.shut_down();
        }
        self.forget();
        self.lease.set_target(None);
        Ok(())
    }
}
