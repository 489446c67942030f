//! Reports, and the Raft leader's rounds.

use super::*;

impl World {
    // ---- messages

    pub(super) fn report(&mut self, node: usize) {
        let n = &self.nodes[node];
        if !n.up || (self.random.is_some() && (self.now / TICK_MS + node as u64) % 3 != 0) {
            return;
        }
        let instance = n.instance(self.now);
        let streams = self.streams(node);
        let whole = !n.stranger && n.unfinished.is_none() && n.wal.len() >= n.floor;
        let held = self.held(node);
        let quarantined = self.quarantined(node);
        let silent = self.now - n.last_renewal.max(n.started);
        let aged = silent >= self.state.settings.timing.aged_ns() / 1_000_000;
        let no_quarantine = self.mutant == Mutant::NoQuarantine && n.last_renewal < n.started;
        let report = Report {
            activity: None,
            voter: VoterReport {
                held,
                silent_ms: (!quarantined).then_some(silent),
                aged_for: ((aged && !quarantined) || no_quarantine).then_some(held),
                heard: n.heard,
                ..VoterReport::default()
            },
            promise: n.promise,
            leaving: n.leaving,
            down: decide::down(&n.view(&instance)),
            system_id: (n.postgres != Postgres::Absent).then(|| SystemId::new(7)),
            data: (whole && n.postgres != Postgres::Absent).then_some(n.data),
            streams,
            secured: n.secured,
            highest_timeline: Timeline::new(n.timeline),
            lease_left_ms: None,
            counts_by: None,
            version: None,
            left: None,
            note: None,
            server: rhone::view::ServerFacts::default(),
            instance,
        };
        self.messages.push_back(Message::Report(node, Box::new(report)));
    }

    pub(super) fn deliver(&mut self) {
        let mut left = VecDeque::new();
        while let Some(message) = self.messages.pop_front() {
            let Some(leader) = self.leader else { continue };
            let peer = match &message {
                Message::Report(node, _) | Message::Revoke(node, _) | Message::Revoked(node, _) => *node,
            };
            match self.draw(12) {
                1 => continue,
                2..4 => {
                    left.push_back(message);
                    continue;
                }
                _ => {}
            }
            if peer != leader && !self.linked(peer, leader) || !self.nodes[peer].up {
                continue;
            }
            let at = self.at();
            let id = NodeId(peer as u64 + 1);
            match message {
                Message::Report(_, report) => {
                    self.reports.insert(id, Received { at, report: *report });
                }
                Message::Revoke(_, epoch) => {
                    let n = &mut self.nodes[peer];
                    n.revoke = n.revoke.max(Some(epoch));
                }
                Message::Revoked(_, answer) => {
                    if answer.epoch == self.state.epoch {
                        self.revoked.insert(id, (at, answer));
                    }
                }
            }
        }
        self.messages = left;
    }

    pub(super) fn lead(&mut self) {
        let usable = |world: &Self, node: usize| {
            world.nodes[node].up && (0..3).filter(|peer| world.linked(node, *peer)).count() >= 2
        };
        if self.leader.is_none_or(|leader| !usable(self, leader)) {
            let next = (0..3).find(|node| usable(self, *node) && self.nodes[*node].have == self.log.len());
            match next {
                Some(next) => self.lead_by(next),
                None => return,
            }
        }
        let Some(leader) = self.leader else { return };
        if self.nodes[leader].applied < self.log.len() {
            return;
        }
        if self.revoked_for != self.state.epoch {
            self.revoked_for = self.state.epoch;
            self.revoked.clear();
            self.asked.clear();
        }
        let decision = self.decide(leader);
        let wait = match &decision {
            ClusterDecision::Propose(_) => String::new(),
            ClusterDecision::Revoke { wait, .. } | ClusterDecision::Wait(wait) => wait.code().to_owned(),
        };
        if self.told != wait && !wait.is_empty() {
            self.say(&format!("leader waits: {wait}"));
        }
        self.told = wait;
        match decision {
            ClusterDecision::Propose(command) => {
                self.propose(command);
            }
            ClusterDecision::Revoke { epoch, members, .. } => {
                for member in members {
                    let again = self.asked.get(&member).is_none_or(|at| self.now - at >= 500);
                    if again {
                        self.asked.insert(member, self.now);
                        self.messages.push_back(Message::Revoke(member.0 as usize - 1, epoch));
                    }
                }
            }
            ClusterDecision::Wait(_) => {}
        }
    }

    pub(super) fn decide(&mut self, leader: usize) -> ClusterDecision {
        let voters = [(1..=3).map(NodeId).collect::<BTreeSet<_>>()];
        let mut state = self.nodes[leader].state.clone();
        let mut reports = self.reports.clone();
        let since = self.nodes[leader].grant_seen.max(Moment(self.led_since * 1_000_000));
        let mut granted_since = state.current_grant().is_some().then_some(since);
        match self.mutant {
            Mutant::LeaseIgnored => {
                reports.values_mut().for_each(|r| r.report.voter.aged_for = Some(r.report.voter.held));
            }
            Mutant::PoliciesForgotten => {
                let newest = state.policies.last().map(|policy| policy.epoch);
                state.policies.retain(|policy| Some(policy.epoch) == newest);
            }
            Mutant::NoCover => {
                state.policies.iter_mut().for_each(|p| p.kind = PolicyKind::Async { max_lag: u64::MAX });
                reports.values_mut().for_each(|r| r.report.voter.aged_for = Some(r.report.voter.held));
            }
            Mutant::NoIncarnation => {
                // Whatever directory a member has, it counts as the one that a policy names.
                let named: Vec<Replica> = state
                    .policies
                    .iter()
                    .flat_map(|policy| match &policy.kind {
                        PolicyKind::Quorum { standbys, .. } => standbys.iter().copied().collect(),
                        _ => Vec::new(),
                    })
                    .collect();
                for (node, (_, answer)) in &mut self.revoked {
                    if let Some(replica) = named.iter().find(|replica| replica.node == *node) {
                        answer.data = replica.data;
                    }
                }
            }
            Mutant::NoGrace => granted_since = granted_since.map(|_| Moment(0)),
            Mutant::AnswersStay => {
                self.revoked.values_mut().for_each(|(at, _)| *at = Moment(self.now * 1_000_000))
            }
            Mutant::NoLagGate => {
                state.policies.iter_mut().for_each(|p| p.kind = PolicyKind::Async { max_lag: u64::MAX });
            }
            _ => {}
        }
        let view = ClusterView {
            state: &state,
            voters: &voters,
            reports: &reports,
            revoked: &self.revoked,
            granted_since,
        };
        let decided = decide::cluster(&view, self.at());
        if self.recording && !self.decided.as_ref().is_some_and(|known| record::same(known, &decided)) {
            let (at, now) = (rhone::civil::WallTime::from_ms(0), self.at());
            let seen = ClusterSeen::of(&view);
            self.decided = Some(decided.clone());
            self.replay(&Line::Cluster(record::Record {
                at,
                now,
                seen,
                decided: record::recorded(&decided),
            }));
        }
        decided
    }

    pub(super) fn forget(&mut self, node: usize) {
        let applied = self.nodes[node].applied;
        let keep = if self.random.is_some() { self.draw(applied as u64 + 1) as usize } else { applied };
        let mut state = ClusterState::default();
        for (index, command) in self.log.iter().take(keep).enumerate() {
            state.apply(LogIndex(index as u64 + 1), command);
        }
        let n = &mut self.nodes[node];
        (n.state, n.applied) = (state, keep);
        (n.running, n.revoke, n.heard, n.lease_until, n.last_renewal) = (None, None, None, 0, 0);
        (n.leaving, n.leave_now) = (false, false);
        if self.leader == Some(node) {
            self.leader = None;
        }
    }
}
