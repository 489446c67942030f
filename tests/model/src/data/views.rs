//! What the real decisions get to see, and their answers, remembered: they are pure.

use std::collections::{BTreeMap, BTreeSet};
use std::rc::Rc;

use rhone::decide::{self, ClusterDecision, NodeDecision};
use rhone::view::{
    ClusterView, Heard, Instance, Moment, NodeView, Received, Report, Revoked, Stream, VoterReport,
};
use rhone_consensus::ids::{DataId, Epoch, LogIndex, NodeId};
use rhone_consensus::policy::PolicyKind;
use rhone_consensus::state::{ClusterState, Phase};
use rhone_pgctl::wal::{Lsn, SystemId, Timeline, WalPosition};

use super::mutant::Mutant;
use super::state::{Answer, Pg, State, bit, id, index_of};
use super::wal::position;
use super::world::DataWorld;
use crate::search::{Memo, fingerprint};

/// Long after everything that is remembered: windows have passed.
const NOW: Moment = Moment(1_000_000_000_000_000);

/// The answers of the real decisions.
#[derive(Debug, Default)]
pub(super) struct Memos {
    nodes: Memo<u64, NodeDecision>,
    cluster: Memo<u64, ClusterDecision>,
}

impl<const N: usize> DataWorld<N> {
    fn instance(&self, state: &State<N>, node: usize) -> Instance {
        let here = &state.nodes[node];
        let pos = self.wals.pos(here.wal);
        match here.pg {
            Pg::Absent => Instance::Absent,
            Pg::Stopped => Instance::Stopped {
                position: if here.copied { None } else { position(pos) },
                clean: false,
                primary: false,
            },
            Pg::Standby(upstream) => {
                let source = usize::from(upstream).checked_sub(1);
                let streaming = source.is_some_and(|source| {
                    let there = &state.nodes[source];
                    matches!(there.pg, Pg::Primary(..)) && self.wals.streams_to(there.wal, pos)
                });
                Instance::Standby {
                    position: position(pos).unwrap_or_default(),
                    upstream: source.map(id),
                    streaming,
                    idle_ms: if streaming { 0 } else { 5_000 },
                    wal_gone: false,
                }
            }
            Pg::Primary(epoch, gate_open) => Instance::Primary {
                epoch: Epoch(u64::from(epoch)),
                position: position(pos).unwrap_or_default(),
                gate_open,
            },
        }
    }

    /// Calls `f` with the member's view.
    fn with_view<T>(
        &self,
        state: &State<N>,
        node: usize,
        revoke: u8,
        f: impl FnOnce(&NodeView<'_>) -> T,
    ) -> T {
        let here = &state.nodes[node];
        let mut applied = self.logs.state(self.logs.cut(state.log, here.applied));
        if self.mutant == Mutant::RewindUnannounced && applied.phase == Phase::Granted {
            let mut early = ClusterState::clone(&applied);
            if early.grant.as_ref().is_some_and(|grant| grant.owner != id(node)) {
                early.phase = Phase::Established;
            }
            applied = Rc::new(early);
        }
        let instance = self.instance(state, node);
        let epoch = |number: u8| (number > 0).then_some(Epoch(u64::from(number)));
        let number = |number: u8| (number > 0).then_some(LogIndex(u64::from(number)));
        let serves = matches!(here.pg, Pg::Primary(..));
        f(&NodeView {
            state: &applied,
            me: id(node),
            instance: &instance,
            promise: Epoch(u64::from(here.promise)),
            unfinished: epoch(if here.copied { 0 } else { here.sentinel }),
            copied: here.copied,
            revoke: epoch(revoke),
            running: here.running.map(|(effect, epoch)| (effect, Epoch(u64::from(epoch)))),
            leaving: false,
            leave_now: false,
            behind: here.applied < here.log,
            fenced_ahead: false,
            guardian: true,
            rewinds_failed: 0,
            start_failed: None,
            stranger: here.stranger,
            policy: number(if serves { here.policy } else { 0 }),
            secured: number(if serves { here.secured } else { 0 }),
            sources: rhone::view::Sources::default(),
            chores: rhone::view::Chores::default(),
        })
    }

    /// Asks the real `decide::node`.
    pub(super) fn decide_node(&mut self, state: &State<N>, node: usize, revoke: u8) -> NodeDecision {
        let here = &state.nodes[node];
        let log = self.logs.cut(state.log, here.applied);
        let known =
            (here.pg, self.wals.pos(here.wal), here.promise, here.sentinel, here.copied, here.stranger);
        let doing = (here.running, revoke, here.applied < here.log, here.policy, here.secured);
        let streaming = matches!(self.instance(state, node), Instance::Standby { streaming: true, .. });
        let key = fingerprint(&(log, node, known, doing, streaming));
        if let Some(known) = self.memos.nodes.get(&key) {
            return *known;
        }
        let decision = self.with_view(state, node, revoke, |view| decide::node(view, NOW));
        self.memos.nodes.insert(key, decision);
        decision
    }

    /// The epoch for which a voter can vouch that the lease before it has aged.
    fn aged_for(&self, state: &State<N>, voter: usize) -> Option<Epoch> {
        let counted = state.nodes.iter().any(|node| node.lease & bit(voter) != 0);
        let applied = match state.nodes.get(voter) {
            Some(node) => self.logs.cut(state.log, node.applied),
            None => state.log,
        };
        if self.mutant == Mutant::FenceIgnored {
            return Some(self.logs.state(state.log).epoch);
        }
        (!counted).then(|| self.logs.state(applied).epoch)
    }

    fn report(&self, state: &State<N>, node: usize, heard: u8) -> Report {
        let here = &state.nodes[node];
        let serves = matches!(here.pg, Pg::Primary(..));
        let streams = (0..N).filter(|other| serves && here.known[*other].0 > 0).map(|other| {
            let stream = Stream { live: heard & bit(other) != 0, caught_up: true };
            (DataId(u64::from(here.known[other].0)), stream)
        });
        let complete = here.sentinel == 0 && !here.stranger && here.pg != Pg::Absent;
        Report {
            instance: self.instance(state, node),
            activity: None,
            voter: VoterReport {
                held: self.logs.state(state.log).epoch,
                aged_for: if self.is_async() { self.aged_for(state, node) } else { None },
                heard: (here.heard.0 > 0).then(|| Heard {
                    epoch: Epoch(u64::from(here.heard.0)),
                    lsn: Lsn::new(u64::from(here.heard.1)),
                }),
                ..VoterReport::default()
            },
            promise: Epoch(u64::from(here.promise)),
            leaving: false,
            down: self.with_view(state, node, 0, decide::down),
            system_id: (here.pg != Pg::Absent).then(|| SystemId::new(7)),
            highest_timeline: Timeline::new(u32::from(self.wals.pos(here.wal).0)),
            lease_left_ms: None,
            counts_by: None,
            version: None,
            note: None,
            server: rhone::view::ServerFacts::default(),
            data: complete.then(|| DataId(u64::from(here.data))),
            streams: streams.collect(),
            secured: (serves && here.secured > 0).then(|| LogIndex(u64::from(here.secured))),
            left: None,
        }
    }

    fn cluster_key(&self, state: &State<N>, heard: u8, preparing: bool) -> u64 {
        if preparing {
            let answers: [(Answer, Option<Epoch>, (u8, u8)); N] = std::array::from_fn(|node| {
                let aged = if self.is_async() { self.aged_for(state, node) } else { None };
                (state.answers[node], aged, state.nodes[node].heard)
            });
            let timelines: [u8; N] = std::array::from_fn(|node| self.wals.pos(state.nodes[node].wal).0);
            return fingerprint(&(state.log, heard, answers, timelines, self.owner_stopped(state)));
        }
        let facts: [_; N] = std::array::from_fn(|node| {
            let here = &state.nodes[node];
            let data = (here.data, here.stranger, here.sentinel, here.copied, here.floor);
            let policy = (here.policy, here.secured, here.known.map(|known| known.0));
            (here.pg, self.wals.pos(here.wal), here.promise, data, policy, (here.running, here.applied))
        });
        fingerprint(&(state.log, heard, facts))
    }

    fn owner_stopped(&self, state: &State<N>) -> bool {
        let owner = self.logs.state(state.log).last_owner();
        owner.is_some_and(|owner| {
            let pg = state.nodes[index_of(owner)].pg;
            matches!(pg, Pg::Absent | Pg::Stopped)
        })
    }

    /// Asks the real `decide::cluster`, the leader having heard of these members lately.
    pub(super) fn decide(&mut self, state: &State<N>, heard: u8) -> ClusterDecision {
        let real = self.logs.state(state.log);
        let preparing = matches!(real.phase, Phase::Preparing { .. });
        let key = self.cluster_key(state, heard, preparing);
        if let Some(known) = self.memos.cluster.get(&key) {
            return known.clone();
        }
        let mut seen = ClusterState::clone(&real);
        let mut revoked = self.answers(state, &real);
        self.mutate_view(&mut seen, &mut revoked);
        let all = if self.setup.witness { N + 1 } else { N };
        let voters = [(0..all).map(id).collect::<BTreeSet<_>>()];
        let reports = (0..N).filter(|node| heard & bit(*node) != 0);
        let reports =
            reports.map(|node| (id(node), Received { at: NOW, report: self.report(state, node, heard) }));
        let reports = reports.collect();
        let view = ClusterView {
            state: &seen,
            voters: &voters,
            reports: &reports,
            revoked: &revoked,
            granted_since: real.current_grant().map(|_| NOW),
        };
        let decision = decide::cluster(&view, NOW);
        self.memos.cluster.insert(key, decision.clone());
        decision
    }

    fn answers(&self, state: &State<N>, real: &ClusterState) -> BTreeMap<NodeId, (Moment, Revoked)> {
        let valid = |node: &usize| u64::from(state.answers[*node].epoch) == real.epoch.0;
        let answer = |node: usize| {
            let answer = state.answers[node];
            let revoked = Revoked {
                epoch: Epoch(u64::from(answer.epoch)),
                position: position(answer.pos),
                able: true,
                highest_timeline: Timeline::new(u32::from(answer.timeline)),
                data: DataId(u64::from(answer.data)),
            };
            (id(node), (Moment(0), revoked))
        };
        (0..N).filter(valid).map(answer).collect()
    }

    fn mutate_view(&self, seen: &mut ClusterState, revoked: &mut BTreeMap<NodeId, (Moment, Revoked)>) {
        match self.mutant {
            Mutant::CoverTooSmall => {
                for policy in &mut seen.policies {
                    if let PolicyKind::Quorum { required, standbys } = &mut policy.kind {
                        *required = u32::try_from(standbys.len()).unwrap_or(u32::MAX);
                    }
                }
            }
            Mutant::PostgresFirst if matches!(seen.phase, Phase::Preparing { .. }) => {
                // Raft hears of a new policy only when the old one goes.
                let mut epochs = BTreeSet::new();
                seen.policies.retain(|policy| epochs.insert(policy.epoch));
            }
            Mutant::MixtureForgotten if matches!(seen.phase, Phase::Preparing { .. }) => {
                // As if what is between the oldest and the newest had never been added.
                let first = seen.policies.first().map(|policy| policy.number);
                let last = seen.policies.last().map(|policy| policy.number);
                seen.policies.retain(|policy| Some(policy.number) == first || Some(policy.number) == last);
            }
            Mutant::NotTheMost => {
                let least = revoked.values().filter_map(|(_, answer)| answer.position);
                let least = least.min_by_key(|position| (position.timeline, position.lsn));
                for (_, answer) in revoked.values_mut() {
                    answer.position = answer.position.and(least);
                }
            }
            Mutant::EnoughIgnored => {
                // As if the unfit one had no more than the best of the others.
                let position = |node: &NodeId| revoked.get(node).and_then(|(_, answer)| answer.position);
                let others = revoked.keys().filter(|node| **node != id(0)).filter_map(position);
                let most = others.max_by_key(|position| (position.timeline, position.lsn));
                if let Some((_, answer)) = revoked.get_mut(&id(0)) {
                    let more = |(one, most): (&WalPosition, &WalPosition)| {
                        (one.timeline, one.lsn) > (most.timeline, most.lsn)
                    };
                    if answer.position.as_ref().zip(most.as_ref()).is_some_and(more) {
                        answer.position = most;
                    }
                }
            }
            Mutant::NoLagGate => {
                for policy in &mut seen.policies {
                    if let PolicyKind::Async { max_lag } = &mut policy.kind {
                        *max_lag = u64::MAX;
                    }
                }
            }
            _ => {}
        }
    }
}
