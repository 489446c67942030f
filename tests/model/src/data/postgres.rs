//! Postgres: writes, streams, acknowledgements. A waiter is released as its source has it: any
//! walsender of a synchronous standby does so, by its own setting's count, over every walsender that
//! counts as synchronous by *its* own setting (`SyncRepGetCandidateStandbys`).

use rhone_consensus::policy::PolicyKind;

use super::state::{Flushed, Pg, ROGUE, State, Step, bit, byte, id, replica};
use super::wal::WalId;
use super::world::DataWorld;

impl<const N: usize> DataWorld<N> {
    fn kind(&self, state: &State<N>, number: u8) -> Option<&PolicyKind> {
        if number == ROGUE { Some(&PolicyKind::Alone) } else { self.logs.policy(state.log, number) }
    }

    /// Whether that standby counts by that policy.
    fn is_sync(&self, kind: &PolicyKind, node: usize, (data, _): Flushed) -> bool {
        match kind {
            PolicyKind::Quorum { standbys, .. } => standbys.contains(&replica(node, data)),
            PolicyKind::Alone | PolicyKind::Async { .. } => false,
        }
    }

    /// Returns how much of a primary's WAL is released to waiting clients.
    pub(super) fn released(&self, state: &State<N>, node: usize) -> u8 {
        let here = &state.nodes[node];
        let len = self.wals.len(here.wal);
        match self.kind(state, here.senders[node]) {
            Some(PolicyKind::Alone) => return len,
            Some(PolicyKind::Async { .. }) => return if here.lease > 0 { len } else { 0 },
            Some(PolicyKind::Quorum { .. }) | None => {}
        }
        let sync = |other: usize| {
            let kind = self.kind(state, here.senders[other]);
            other != node && kind.is_some_and(|kind| self.is_sync(kind, other, here.known[other]))
        };
        let mut flushed: Vec<u8> =
            (0..N).filter(|other| sync(*other)).map(|other| here.known[other].1).collect();
        flushed.sort_unstable_by(|one, other| other.cmp(one));
        let by = |other: usize| match self.kind(state, here.senders[other]) {
            Some(PolicyKind::Quorum { required, .. }) => {
                flushed.get((*required as usize).saturating_sub(1)).copied().unwrap_or(0)
            }
            Some(PolicyKind::Alone | PolicyKind::Async { .. }) | None => 0,
        };
        (0..N).filter(|other| sync(*other)).map(by).max().unwrap_or(0).min(len)
    }

    /// Returns how much is flushed as one policy asks.
    pub(super) fn flushed_under(&self, state: &State<N>, node: usize, number: u8) -> u8 {
        let here = &state.nodes[node];
        match self.kind(state, number) {
            Some(kind @ PolicyKind::Quorum { required, .. }) => {
                let mut flushed: Vec<u8> = (0..N)
                    .filter(|other| *other != node && self.is_sync(kind, *other, here.known[*other]))
                    .map(|other| here.known[other].1)
                    .collect();
                flushed.sort_unstable_by(|one, other| other.cmp(one));
                flushed.get((*required as usize).saturating_sub(1)).copied().unwrap_or(0)
            }
            Some(PolicyKind::Alone | PolicyKind::Async { .. }) | None => self.wals.len(here.wal),
        }
    }

    /// Acknowledges what can be, at once: no delay of it is of use to anybody but the client.
    pub(super) fn acknowledge(&mut self, state: &mut State<N>) {
        for node in 0..N {
            let here = state.nodes[node];
            let Pg::Primary(epoch, true) = here.pg else { continue };
            let released = self.released(state, node);
            let wal = self.wals.cut(here.wal, released);
            let own = self.wals.of_timeline(wal, self.wals.pos(here.wal).0);
            let new = own & !state.kept;
            if new != 0 {
                self.acks_seen += 1;
                state.kept |= new;
                state.read |= new;
                self.check_late(state, epoch, new, "I3");
            }
        }
    }

    pub(super) fn postgres_steps(&mut self, state: &State<N>, out: &mut Vec<(Step, State<N>)>) {
        for node in 0..N {
            let here = &state.nodes[node];
            match here.pg {
                Pg::Primary(epoch, gate) => {
                    let leased = !self.is_async() || here.lease > 0;
                    if gate && leased && state.writes > 0 {
                        let mut next = State { writes: state.writes - 1, ..*state };
                        let timeline = self.wals.pos(here.wal).0;
                        next.nodes[node].wal = self.wals.push(here.wal, timeline, state.next_record);
                        next.next_record += 1;
                        out.push((Step::Write(node + 1), next));
                    }
                    self.sender_steps(state, node, out);
                    self.lease_steps(state, node, epoch, out);
                }
                Pg::Standby(upstream) if upstream > 0 => self.receive(state, node, upstream, out),
                Pg::Standby(_) => {
                    let epoch = here.promise;
                    self.lease_steps(state, node, epoch, out);
                }
                Pg::Absent | Pg::Stopped => {}
            }
        }
    }

    fn sender_steps(&mut self, state: &State<N>, node: usize, out: &mut Vec<(Step, State<N>)>) {
        let here = &state.nodes[node];
        for other in 0..N {
            if here.sent[other] != here.known[other] {
                let mut next = *state;
                next.nodes[node].known[other] = here.sent[other];
                out.push((Step::Reply(other + 1), next));
            }
            let taken = here.senders[other] == here.policy || here.senders[other] == ROGUE;
            if !taken && (other == node || here.sends_to(other)) {
                let mut next = *state;
                next.nodes[node].senders[other] = here.policy;
                out.push((Step::TakeOver(node + 1, other + 1), next));
            }
        }
    }

    /// What a standby says it flushed, and under which data directory: nothing while its copy is not
    /// known to be complete.
    fn says(&self, state: &State<N>, node: usize, wal: WalId) -> Flushed {
        let here = &state.nodes[node];
        let complete = here.sentinel == 0 && !here.stranger;
        (if complete { here.data } else { 0 }, self.wals.len(wal))
    }

    fn receive(&mut self, state: &State<N>, node: usize, upstream: u8, out: &mut Vec<(Step, State<N>)>) {
        let source = usize::from(upstream) - 1;
        let (here, there) = (state.nodes[node], state.nodes[source]);
        let Pg::Primary(epoch, _) = there.pg else { return };
        if !self.wals.streams_to(there.wal, self.wals.pos(here.wal)) {
            return;
        }
        let mut next = *state;
        if !self.wals.is_prefix(here.wal, there.wal) {
            next.broken = Some("I9");
            out.push((Step::Receive(node + 1), next));
            return;
        }
        let len = self.wals.len(here.wal);
        let wal = if len < self.wals.len(there.wal) { self.wals.cut(there.wal, len + 1) } else { here.wal };
        let n = &mut next.nodes[node];
        n.wal = wal;
        if n.sentinel > 0 && self.wals.pos(wal) >= n.floor {
            (n.sentinel, n.floor, n.copied) = (0, (0, 0), false);
        }
        let says = self.says(&next, node, wal);
        if wal == here.wal && there.sent[node] == says {
            return;
        }
        if there.sent[node].0 == 0 {
            // A new walsender: it begins with the present setting.
            next.nodes[source].senders[node] = there.policy;
        }
        next.nodes[source].sent[node] = says;
        if here.told > epoch {
            next.broken = Some("I7");
        }
        if let Some(delays) = next.delays.checked_sub(1) {
            out.push((Step::ReceiveOnly(node + 1), State { delays, ..next }));
        }
        next.nodes[source].known[node] = says;
        out.push((Step::Receive(node + 1), next));
    }

    /// The lease, as far as [`crate::lease`] proves it: a majority that holds no higher Prepare renews;
    /// it may end at any time.
    fn lease_steps(&mut self, state: &State<N>, node: usize, epoch: u8, out: &mut Vec<(Step, State<N>)>) {
        if !self.is_async() {
            return;
        }
        let here = &state.nodes[node];
        if here.lease > 0 {
            let mut next = *state;
            next.nodes[node].lease = 0;
            out.push((Step::Lapse(node + 1), next));
        }
        let grant = self.logs.state(state.log).grant.clone();
        if here.promise > epoch || grant.is_none_or(|grant| grant.owner != id(node)) {
            return;
        }
        let len = self.wals.len(here.wal);
        let renews = |voter: &usize| {
            let v = &state.nodes[*voter];
            v.up && byte(self.logs.state(self.logs.cut(state.log, v.log)).epoch.0) == epoch
        };
        let able = (0..N).filter(renews).fold(0, |mask, voter| mask | bit(voter));
        for mask in 1..1_u8 << N {
            let least = mask.count_ones() == self.voters().count_ones() / 2 + 1;
            if mask & !able != 0 || !least || (here.lease == mask && here.renewed == len) {
                continue;
            }
            let mut next = *state;
            next.nodes[node].lease = mask;
            next.nodes[node].renewed = len;
            for voter in (0..N).filter(|voter| mask & bit(*voter) != 0) {
                let heard = &mut next.nodes[voter].heard;
                *heard = (*heard).max((epoch, len));
            }
            out.push((Step::Renew(node + 1, mask), next));
        }
    }
}
