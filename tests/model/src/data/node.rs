//! What a member's effects do, in the order of the product's `effects.rs`: a durable promise first, the
//! epoch compared once more before it acts, cut anywhere in between.

use rhone::decide::{Effect, NodeDecision};
use rhone_consensus::command::Grant;

use super::mutant::Mutant;
use super::state::{Answer, FIRST_EPOCH, Pg, State, Step, byte, id, index_of};
use super::wal::small;
use super::world::DataWorld;

impl<const N: usize> DataWorld<N> {
    /// Whether no newer epoch than this is known to the member (`Local::still`).
    fn still(&self, state: &State<N>, node: usize, epoch: u8) -> bool {
        let here = &state.nodes[node];
        let known = |entries| byte(self.logs.state(self.logs.cut(state.log, entries)).epoch.0);
        known(here.log).max(known(here.applied)).max(here.promise) <= epoch
    }

    /// The mutant that does not compare the epoch once more: a Follow that was decided before a Revoke
    /// acts after it.
    pub(super) fn follow_late(&self, state: &State<N>, node: usize, out: &mut Vec<(Step, State<N>)>) {
        let here = &state.nodes[node];
        let Some(delays) = state.delays.checked_sub(1) else { return };
        if here.pg != Pg::Standby(0) || here.told <= FIRST_EPOCH {
            return;
        }
        let mut next = State { delays, ..*state };
        next.nodes[node].pg = Pg::Standby(1);
        out.push((Step::Begin(node + 1, Effect::Follow(id(0)), u64::from(FIRST_EPOCH)), next));
    }

    fn applied_grant(&self, state: &State<N>, node: usize) -> Option<Grant> {
        self.logs.state(self.logs.cut(state.log, state.nodes[node].applied)).grant.clone()
    }

    fn start_effect(
        &mut self,
        state: &State<N>,
        node: usize,
        effect: Effect,
        epoch: u8,
        out: &mut Vec<(Step, State<N>)>,
    ) {
        let mut next = *state;
        if !self.still(state, node, epoch) && !matches!(effect, Effect::Fence) {
            return;
        }
        let here = &mut next.nodes[node];
        match effect {
            Effect::Start(None) => here.pg = Pg::Standby(0),
            Effect::Start(Some(to)) | Effect::Follow(to) => {
                here.promise = here.promise.max(epoch);
                here.pg = Pg::Standby(byte(to.0));
                let source = &mut next.nodes[index_of(to)];
                source.known[node] = (0, 0);
                source.sent[node] = (0, 0);
                source.senders[node] = source.policy;
            }
            Effect::Fence => here.stop(),
            Effect::Rewind(to) => {
                let Some(grant) = self.source(state, node, index_of(to)) else { return };
                here.stop();
                here.copied = false;
                if self.mutant != Mutant::RewindUnannounced {
                    here.promise = here.promise.max(epoch);
                    here.sentinel = epoch;
                    here.floor = (byte(u64::from(grant.timeline.get())), byte(grant.base.lsn.get()));
                }
                here.running = Some((effect, epoch));
            }
            Effect::Clone(to) => {
                if self.source(state, node, index_of(to)).is_none() {
                    return;
                }
                here.running = Some((effect, epoch));
            }
            Effect::SetPolicy => {
                let applied = self.logs.state(self.logs.cut(state.log, here.applied));
                let Some(policy) = applied.policy() else { return };
                here.policy = byte(policy.number.0);
                here.barrier = 0;
                here.running = Some((effect, epoch));
            }
            Effect::Promote | Effect::OpenGate => here.running = Some((effect, epoch)),
            Effect::InitDb | Effect::Revoke | Effect::HandOver | Effect::Stop => return,
        }
        out.push((Step::Begin(node + 1, effect, u64::from(epoch)), next));
    }

    /// Begins an effect, and ends it at once or, as a delay, later.
    pub(super) fn begin(
        &mut self,
        state: &State<N>,
        node: usize,
        effect: Effect,
        epoch: u8,
        out: &mut Vec<(Step, State<N>)>,
    ) {
        let mut begun = Vec::new();
        self.start_effect(state, node, effect, epoch, &mut begun);
        for (step, next) in begun {
            self.at_once_or_later(step, next, node, out);
        }
    }

    fn at_once_or_later(&mut self, step: Step, next: State<N>, node: usize, out: &mut Vec<(Step, State<N>)>) {
        let Some((effect, epoch)) = next.nodes[node].running else {
            out.push((step, next));
            return;
        };
        if effect == Effect::SetPolicy {
            // Its walsenders take the setting over one by one, so that it always takes a while.
            out.push((step, next));
            return;
        }
        let mut ended = Vec::new();
        self.end(&next, node, effect, epoch, &mut ended);
        out.extend(ended.into_iter().filter(|(step, _)| !matches!(step, Step::Fail(..))));
        if let Some(delays) = next.delays.checked_sub(1) {
            out.push((step, State { delays, ..next }));
        }
    }

    /// Returns the newest Grant, where its owner serves its timeline: what a copy is made from.
    fn source(&self, state: &State<N>, node: usize, source: usize) -> Option<Grant> {
        let grant = self.applied_grant(state, node)?;
        let there = &state.nodes[source];
        let serves = there.up && matches!(there.pg, Pg::Primary(..));
        let timeline = u32::from(self.wals.pos(there.wal).0) == grant.timeline.get();
        (serves && timeline && grant.owner == id(source)).then_some(grant)
    }

    pub(super) fn ask_revoke(
        &mut self,
        state: &State<N>,
        node: usize,
        epoch: u8,
        out: &mut Vec<(Step, State<N>)>,
    ) {
        let here = &state.nodes[node];
        let granted = self.applied_grant(state, node).map_or(0, |grant| byte(grant.epoch.0));
        let known = here.running == Some((Effect::Revoke, epoch));
        if epoch < here.promise || epoch <= granted || known {
            return;
        }
        let mut next = *state;
        let n = &mut next.nodes[node];
        if matches!(here.running, Some((Effect::Rewind(_), _))) {
            n.promise = n.promise.max(epoch);
            n.told = n.promise;
            let answer = Answer { epoch, pos: (0, 0), data: n.data, timeline: self.wals.pos(n.wal).0 };
            if next.answers[node] == answer {
                return;
            }
            next.answers[node] = answer;
            out.push((Step::End(node + 1, Effect::Revoke), next));
            return;
        }
        if let NodeDecision::Act(Effect::Revoke, asked, _) = self.decide_node(state, node, epoch) {
            n.promise = n.promise.max(byte(asked.0));
            n.running = Some((Effect::Revoke, byte(asked.0)));
            n.barrier = 0;
            self.at_once_or_later(Step::Begin(node + 1, Effect::Revoke, asked.0), next, node, out);
        }
    }

    pub(super) fn end(
        &mut self,
        state: &State<N>,
        node: usize,
        effect: Effect,
        epoch: u8,
        out: &mut Vec<(Step, State<N>)>,
    ) {
        let mut ended = *state;
        ended.nodes[node].running = None;
        let before = out.len();
        match effect {
            Effect::Revoke => self.end_revoke(&ended, node, epoch, out),
            Effect::Promote => self.end_promote(&ended, node, epoch, out),
            Effect::OpenGate => self.end_open_gate(&ended, node, epoch, out),
            Effect::SetPolicy => self.end_set_policy(state, node, out),
            Effect::Rewind(to) => self.end_rewind(&ended, node, index_of(to), out),
            Effect::Clone(to) => self.end_clone(&ended, node, (index_of(to), epoch), out),
            Effect::InitDb
            | Effect::Start(_)
            | Effect::Follow(_)
            | Effect::Fence
            | Effect::HandOver
            | Effect::Stop => {}
        }
        let newer = self.logs.state(self.logs.cut(state.log, state.nodes[node].applied));
        let newer = newer.policy().is_some_and(|policy| byte(policy.number.0) > state.nodes[node].policy);
        let waits = effect == Effect::SetPolicy && matches!(state.nodes[node].pg, Pg::Primary(..)) && !newer;
        let cut = effect == Effect::SetPolicy && newer;
        if (out.len() == before && !waits) || cut {
            ended.nodes[node].barrier = 0;
            out.push((Step::Fail(node + 1, effect), ended));
        }
    }

    fn end_revoke(&mut self, state: &State<N>, node: usize, epoch: u8, out: &mut Vec<(Step, State<N>)>) {
        let mut next = *state;
        let here = &mut next.nodes[node];
        if here.promise > epoch {
            return;
        }
        match here.pg {
            Pg::Primary(..) => here.stop(),
            Pg::Standby(_) if self.mutant != Mutant::StreamsOn => here.pg = Pg::Standby(0),
            Pg::Standby(_) | Pg::Absent | Pg::Stopped => {}
        }
        here.told = epoch;
        let here = *here;
        let pos = self.wals.pos(here.wal);
        let unfinished = here.sentinel > 0 && (!here.copied || here.pg == Pg::Stopped);
        let counts = here.pg != Pg::Absent && !unfinished && pos >= here.floor && !here.stranger;
        let mut answer = Answer { epoch, pos, data: here.data, timeline: pos.0 };
        if !counts {
            answer.pos = (0, 0);
        }
        next.answers[node] = answer;
        out.push((Step::End(node + 1, Effect::Revoke), next));
        if self.mutant == Mutant::UnderReported && counts {
            let len = self.wals.len(here.wal) - 1;
            next.answers[node].pos = self.wals.pos(self.wals.cut(here.wal, len));
            out.push((Step::End(node + 1, Effect::Revoke), next));
        }
    }

    fn end_promote(&mut self, state: &State<N>, node: usize, epoch: u8, out: &mut Vec<(Step, State<N>)>) {
        let here = state.nodes[node];
        let Some(grant) = self.applied_grant(state, node) else { return };
        let entitled = self.still(state, node, epoch) && here.promise == epoch;
        let mine = grant.owner == id(node) && byte(grant.epoch.0) == epoch;
        let leased = !self.is_async() || here.lease > 0;
        let ready = matches!(here.pg, Pg::Standby(_)) && self.wals.pos(here.wal) == small(grant.base);
        let applied = self.logs.state(self.logs.cut(state.log, here.applied));
        let policy = applied.policies.iter().find(|policy| policy.epoch == grant.epoch);
        let (true, Some(policy)) = (entitled && mine && leased && ready, policy) else { return };
        let mut next = *state;
        let n = &mut next.nodes[node];
        n.wal = self.wals.push(here.wal, byte(u64::from(grant.timeline.get())), state.next_record);
        next.next_record += 1;
        n.pg = Pg::Primary(epoch, false);
        n.policy = byte(policy.number.0);
        n.secured = n.policy;
        n.senders = [n.policy; N];
        n.known = [(0, 0); N];
        n.sent = [(0, 0); N];
        if here.promise > epoch {
            next.broken = Some("I7");
        }
        out.push((Step::End(node + 1, Effect::Promote), next));
    }

    fn end_open_gate(&mut self, state: &State<N>, node: usize, epoch: u8, out: &mut Vec<(Step, State<N>)>) {
        let here = state.nodes[node];
        let Pg::Primary(of, _) = here.pg else { return };
        let own = self.wals.of_timeline(here.wal, self.wals.pos(here.wal).0);
        let marker = (0..=self.wals.len(here.wal))
            .find(|len| self.wals.mask(self.wals.cut(here.wal, *len)) & own != 0)
            .unwrap_or(0);
        let durable = self.released(state, node) >= marker || self.mutant == Mutant::GateWithoutMarker;
        let leased = !self.is_async() || here.lease > 0;
        if !durable || !leased || of != epoch || !self.still(state, node, epoch) {
            return;
        }
        let mut next = *state;
        next.nodes[node].pg = Pg::Primary(epoch, true);
        // Clients read what is there; what was never acknowledged becomes visible with it.
        let read = self.wals.mask(self.wals.cut(here.wal, marker));
        self.check_late(&mut next, epoch, read & !state.read, "I11");
        next.read |= read;
        out.push((Step::End(node + 1, Effect::OpenGate), next));
    }

    /// Settles, then passes the barrier (docs/safety.md 6, steps 3 and 4).
    fn end_set_policy(&mut self, state: &State<N>, node: usize, out: &mut Vec<(Step, State<N>)>) {
        let here = state.nodes[node];
        if !matches!(here.pg, Pg::Primary(..)) {
            return;
        }
        let mut next = *state;
        let n = &mut next.nodes[node];
        if here.barrier == 0 {
            let settled = (0..N)
                .all(|other| here.senders[other] == here.policy || (other != node && !here.sends_to(other)));
            if !settled && self.mutant != Mutant::NoSettle {
                return;
            }
            n.barrier = self.wals.len(here.wal);
        }
        if self.flushed_under(state, node, here.policy) >= n.barrier || self.mutant == Mutant::NoBarrier {
            n.secured = here.policy;
            n.running = None;
            n.barrier = 0;
        } else if here.barrier > 0 {
            return;
        }
        out.push((Step::End(node + 1, Effect::SetPolicy), next));
    }

    fn end_rewind(&mut self, state: &State<N>, node: usize, source: usize, out: &mut Vec<(Step, State<N>)>) {
        if self.source(state, node, source).is_none() {
            return;
        }
        let wal = state.nodes[node].wal;
        let common = self.wals.common(wal, state.nodes[source].wal);
        // To the last checkpoint before the fork: one of two.
        for back in 0..=1 {
            let mut next = *state;
            let n = &mut next.nodes[node];
            n.wal = self.wals.cut(wal, common.saturating_sub(back).max(1));
            self.copied(&mut next, node, wal);
            out.push((Step::End(node + 1, Effect::Rewind(id(source))), next));
        }
    }

    fn end_clone(
        &mut self,
        state: &State<N>,
        node: usize,
        (source, epoch): (usize, u8),
        out: &mut Vec<(Step, State<N>)>,
    ) {
        if self.source(state, node, source).is_none() || !self.still(state, node, epoch) {
            return;
        }
        let (old, wal) = (state.nodes[node].wal, state.nodes[source].wal);
        // The copy may have begun a record earlier than it ended.
        for back in 0..=1 {
            let mut next = *state;
            let n = &mut next.nodes[node];
            n.promise = n.promise.max(epoch);
            n.sentinel = epoch;
            n.floor = self.wals.pos(wal);
            n.wal = self.wals.cut(wal, self.wals.len(wal) - back);
            n.stranger = false;
            n.stop();
            self.copied(&mut next, node, old);
            out.push((Step::End(node + 1, Effect::Clone(id(source))), next));
        }
    }

    /// A copy or rewind is done: the data directory is another one.
    fn copied(&self, next: &mut State<N>, node: usize, old: super::wal::WalId) {
        let n = &mut next.nodes[node];
        n.copied = true;
        match self.mutant {
            Mutant::NoFloor => {
                n.floor = (0, 0);
                n.sentinel = 0;
                n.copied = false;
            }
            Mutant::RewindUnannounced => {}
            _ => {
                n.data = next.next_data;
                next.next_data += 1;
            }
        }
        let left = (0..N).fold(0, |mask, other| mask | self.wals.mask(next.nodes[other].wal));
        if next.kept & self.wals.mask(old) & !left != 0 {
            next.broken = Some("I16");
        }
    }
}
