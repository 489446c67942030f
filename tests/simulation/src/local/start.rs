//! Starting, following and stopping: plays `runtime/local/start.rs`.

use std::time::Duration;

use rhone::runtime::lease::LeaseTarget;
use rhone_consensus::ids::{Epoch, NodeId};

use super::{LEASE_LIMIT, Local};
use crate::machine::{Data, Record, Run};

impl Local {
    pub(super) async fn init_db(&self) -> Result<(), String> {
        tokio::time::sleep(self.plant.some(200, 800)).await;
        let record = Record { timeline: 1, id: self.plant.row() };
        let data = Data {
            wal: vec![record],
            flushed: 1,
            needs: 0,
            clean: true,
            primary: true,
            timeline: 1,
            ident: None,
        };
        self.machine().data = Some(data);
        Ok(())
    }

    async fn clear_the_way(&self) {
        if self.machine().runs() {
            self.machine().kill();
            tokio::time::sleep(self.plant.some(5, 30)).await;
        }
    }

    /// Waits until a majority renews.
    pub(super) async fn lease_live(&self, epoch: Epoch) -> Result<(), String> {
        let mut changes = self.lease.changes();
        let clock = self.shared.clock;
        let live = changes.wait_for(|status| status.live(epoch, clock.now()));
        match tokio::time::timeout(LEASE_LIMIT, live).await {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => Err("the lease has ended".to_owned()),
            Err(_) => Err("no majority renews".to_owned()),
        }
    }

    /// Returns what is to be renewed.
    pub fn lease_target(&self, epoch: Epoch) -> Option<LeaseTarget> {
        let status = self.shared.consensus.status();
        let (timing, timing_version) = self.shared.counted(epoch)?;
        Some(LeaseTarget {
            epoch,
            timing,
            timing_version,
            voters: status.configs.clone(),
            membership: status.membership_index,
            addresses: status.nodes.iter().map(|(node, peer)| (*node, peer.addr.clone())).collect(),
            me: self.shared.me(),
            identity: self.shared.identity(),
        })
    }

    pub(super) async fn start_as_owner(&self, epoch: Epoch) -> Result<(), String> {
        self.still(epoch)?;
        self.clear_the_way().await;
        self.lease.set_target(self.lease_target(epoch));
        {
            let live = self.lease_live(epoch);
            tokio::pin!(live);
            loop {
                // The lease is renewed only beside a guardian that lives.
                self.machine().kick(self.boot());
                if let Ok(result) = tokio::time::timeout(Duration::from_millis(250), &mut live).await {
                    result?;
                    break;
                }
            }
        }
        self.machine().kick(self.boot());
        self.still(epoch)?;
        self.facts().lease_epoch = epoch;
        self.start_server(None).await
    }

    pub(super) async fn start(&self, upstream: Option<NodeId>) -> Result<(), String> {
        self.lease.set_target(None);
        self.clear_the_way().await;
        self.lease.quiet().await;
        self.page.clear_lease();
        self.facts().lease_epoch = Epoch(0);
        self.start_server(upstream).await
    }

    async fn start_server(&self, upstream: Option<NodeId>) -> Result<(), String> {
        self.claim_again().await?;
        {
            let mut facts = self.facts();
            facts.primary_epoch = Epoch(0);
            facts.gate_open = upstream.is_some();
            facts.empty_names = false;
            facts.upstream = upstream;
        }
        let name = self.own_standby_name();
        let recovery = self.plant.some(30, 600);
        let now = self.plant.now();
        let ready = now + u64::try_from(recovery.as_nanos()).unwrap_or(0);
        {
            let mut machine = self.machine();
            if machine.data.is_none() || !machine.guard.alive {
                return Err("there is nothing to start".to_owned());
            }
            let boot = self.boot();
            machine.start(upstream, now, ready, boot);
            machine.gate = false;
            machine.standby_name = name;
        }
        for _ in 0..3000 {
            tokio::time::sleep(Duration::from_millis(20)).await;
            match self.machine().run {
                Run::Starting(_) => {}
                Run::Stopped => return Err("the postmaster ended".to_owned()),
                Run::Standby | Run::Primary => {
                    let mut facts = self.facts();
                    (facts.starts_failed, facts.start_failed) = (0, None);
                    return Ok(());
                }
            }
        }
        Err("it does not accept connections".to_owned())
    }

    pub(super) async fn follow(&self, node: NodeId) -> Result<(), String> {
        tokio::time::sleep(self.plant.some(1, 20)).await;
        let now = self.plant.now();
        let wait = self.plant.draw(100_000_000);
        let name = self.own_standby_name();
        {
            let mut machine = self.machine();
            machine.upstream = Some(node);
            machine.streaming = false;
            machine.heard = now;
            machine.connect_at = now + wait;
            machine.standby_name = name;
        }
        let mut facts = self.facts();
        facts.upstream = Some(node);
        facts.gate_open = true;
        Ok(())
    }

    /// Kills the instance.
    pub(super) async fn fence(&self) {
        self.lease.set_target(None);
        tokio::time::sleep(self.plant.some(2, 30)).await;
        self.machine().kill();
        self.forget();
    }

    pub(super) async fn stop(&self) {
        if self.machine().runs() {
            tokio::time::sleep(self.plant.some(20, 200)).await;
            let mut machine = self.machine();
            if machine.moves() {
                machine.shut_down()
            } else {
                machine.kill()
            }
            drop(machine);
            self.forget();
        }
    }
}
