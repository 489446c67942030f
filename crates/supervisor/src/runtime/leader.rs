//! The Raft leader's loop: looks at the reports, decides, proposes, asks for promises.
//!
//! Runs on every member and does nothing unless this one leads. What it remembers between two
//! rounds is only what others answered; every round decides anew from the state.

mod membership;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rhone_consensus::RaftStatus;
use rhone_consensus::command::{ClusterCommand, MemberKind, WallTime};
use rhone_consensus::ids::{Epoch, NodeId};
use rhone_consensus::settings::Settings;
use rhone_consensus::state::{ClusterState, Phase};
use rhone_pgctl::wal::Lsn;
use tokio::sync::mpsc;

use crate::api::proto::v1::RevokeRequest;
use crate::decide::deafness::Deafness;
use crate::decide::presence::Presence;
use crate::decide::{ClusterDecision, command_in_words, lease, members};
use crate::runtime::handover::Clockwork;
use crate::runtime::restarts::Restarts;
use crate::runtime::shared::{RevokeAsk, Shared};
use crate::runtime::ticker::about;
use crate::runtime::{codec, found};
use crate::view::{ClusterView, Moment, Received, Revoked, VoterReport};

/// How often the leader looks when nothing happens.
const ROUND: Duration = Duration::from_millis(500);

/// How often a member that does not lead looks: what it watches tells when it does.
const FOLLOWER_ROUND: Duration = Duration::from_secs(10);

/// How often it looks while an election is going on: windows and ages pass by time alone.
const ELECTION_ROUND: Duration = Duration::from_millis(20);

/// How long a proposal may take: a slow disk's fsync on a majority, several times over.
const PROPOSE_LIMIT: Duration = Duration::from_secs(10);

/// How long one Revoke may take: a stuck walreceiver is frozen and killed within it.
const REVOKE_LIMIT: Duration = Duration::from_secs(20);

/// After a Revoke that failed, the same member is asked again this much later.
const REVOKE_AGAIN: Duration = Duration::from_millis(200);

/// How often leadership is offered to another member than the primary's.
const YIELD_EVERY_MS: u64 = 10_000;

/// The longest pause between two offers is so many doublings of that.
const YIELD_DOUBLED: u32 = 6;

/// A member that is silent for longer is not offered leadership.
const ALIVE_MS: u64 = 1500;

type Answer = (NodeId, Epoch, Result<Revoked, String>);

/// What the loop remembers.
struct Leader {
    shared: Arc<Shared>,
    decide: Decide,
    settings: Settings,
    leading: bool,
    /// The term in which this node led last.
    led_term: u64,
    led_since: Moment,
    /// When no majority heard it in that term.
    deafness: Deafness,
    /// The longest silence that a voter told last, all of it.
    silent_ms: u64,
    revoked: BTreeMap<NodeId, (Moment, Revoked)>,
    asked: BTreeSet<NodeId>,
    /// Why each member was not revoked at the last try, to be told once.
    unrevoked: BTreeMap<NodeId, String>,
    asked_epoch: Epoch,
    asked_since: Moment,
    answers: mpsc::Receiver<Answer>,
    answer_to: mpsc::Sender<Answer>,
    granted_seen: (Epoch, Moment),
    prepared: Option<(Epoch, Moment, u64)>,
    yielded: Moment,
    /// How often leadership was offered lately.
    offers: u32,
    clockwork: Clockwork,
    presence: Presence,
    restarts: Restarts,
}

/// The decision: [`crate::decide::cluster`], or a mutant of it in the simulation.
pub type Decide = fn(&ClusterView<'_>, Moment) -> ClusterDecision;

/// Runs the loop until the process ends.
pub async fn run(shared: Arc<Shared>, settings: Settings, decide: Decide) {
    let (answer_to, answers) = mpsc::channel(64);
    let now = shared.now();
    let mut leader = Leader {
        decide,
        settings,
        leading: false,
        led_term: 0,
        led_since: now,
        deafness: Deafness::default(),
        silent_ms: 0,
        revoked: BTreeMap::new(),
        asked: BTreeSet::new(),
        unrevoked: BTreeMap::new(),
        asked_epoch: Epoch(0),
        asked_since: now,
        answers,
        answer_to,
        granted_seen: (Epoch(0), now),
        prepared: None,
        yielded: now,
        offers: 0,
        clockwork: Clockwork::default(),
        presence: Presence::default(),
        restarts: Restarts::default(),
        shared,
    };
    let mut state = leader.shared.consensus.state();
    let mut raft = leader.shared.consensus.status_changes();
    let mut table = leader.shared.table.subscribe();
    loop {
        let busy = leader.round().await;
        let pause = match (busy, leader.leading) {
            (true, _) => ELECTION_ROUND,
            (false, true) => ROUND,
            (false, false) => FOLLOWER_ROUND,
        };
        // What there is to hear is heard before the next look.
        tokio::select! {
            biased;
            Some(answer) = leader.answers.recv() => leader.note(answer),
            changed = state.changed() => if changed.is_err() { return },
            changed = raft.changed() => if changed.is_err() { return },
            changed = table.changed(), if leader.leading => if changed.is_err() { return },
            () = tokio::time::sleep(pause), if busy => {}
            () = about(pause), if !busy => {}
        }
    }
}

impl Leader {
    /// Looks once. Returns whether time alone may change the decision soon.
    async fn round(&mut self) -> bool {
        let status = self.shared.consensus.status();
        let now = self.shared.now();
        self.be_reluctant();
        self.notice_leadership(&status, now);
        if !self.leading {
            return false;
        }
        let applied = Arc::clone(&self.shared.consensus.state().borrow());
        let state = &applied.state;
        if !state.is_founded() {
            self.found_again().await;
            return false;
        }
        if self.asked_epoch != state.epoch {
            self.asked_epoch = state.epoch;
            self.asked_since = now;
            self.asked.clear();
            self.revoked.clear();
            self.unrevoked.clear();
        }
        self.look_at_members(state, now);
        let granted = state.current_grant().map_or(Epoch(0), |grant| grant.epoch);
        if self.granted_seen.0 != granted {
            self.granted_seen = (granted, now);
        }
        let decision = {
            let reports = self.reports(&status);
            let view = ClusterView {
                state,
                voters: &status.configs,
                reports: &reports,
                revoked: &self.revoked,
                granted_since: (granted > Epoch(0)).then_some(self.granted_seen.1.max(self.led_since)),
            };
            let decision = (self.decide)(&view, now);
            self.shared.recorder.cluster(&view, now, &decision);
            decision
        };
        self.tell(&decision);
        let cared = members::are_cared_for(&decision, now.millis_since(self.asked_since));
        match decision {
            ClusterDecision::Propose(command) => self.propose(state, command, now).await,
            ClusterDecision::Revoke { epoch, members, .. } => {
                self.revoke(state, epoch, &members);
                if cared {
                    self.keep_members(state).await;
                }
                true
            }
            ClusterDecision::Wait(_) => {
                if cared {
                    self.keep_members(state).await;
                }
                self.offer_leadership(state, now);
                self.clockwork.turn(&self.shared, state).await;
                self.restarts.turn(&self.shared, state).await;
                matches!(state.phase, Phase::Preparing { .. })
            }
        }
    }

    /// Notes that this node leads now, or is heard by no majority any more.
    fn notice_leadership(&mut self, status: &RaftStatus, now: Moment) {
        if status.leading == self.leading {
            return;
        }
        self.leading = status.leading;
        // A leader that a majority has not heard in time stops deciding, and goes on where it was when
        // they hear it again in the same term: nobody led in between, and answers are an epoch's.
        if status.leading && status.term != self.led_term {
            self.led_term = status.term;
            self.led_since = now;
            self.deafness = Deafness::default();
            self.revoked.clear();
            self.asked.clear();
            self.prepared = None;
            self.clockwork.reset();
            self.presence.forget();
            self.restarts.reset();
        }
        if self.leading {
            self.deafness.end(now);
        } else {
            let age = status.quorum_ack_age.unwrap_or_default();
            let age = u64::try_from(age.as_nanos()).unwrap_or(u64::MAX);
            self.deafness.begin(Moment(now.0.saturating_sub(age)));
        }
        tracing::info!(leading = self.leading, term = status.term, "raft leadership changed");
    }

    /// Returns what the members told this leader, with what counts here of it.
    fn reports(&mut self, status: &RaftStatus) -> BTreeMap<NodeId, Received> {
        // What an earlier leader passed on is for people; it is no member's word to this one.
        let mut reports = self.shared.table.borrow().clone();
        let me = self.shared.me();
        reports.retain(|node, received| *node == me || received.at >= self.led_since);
        self.silent_ms = 0;
        for received in reports.values_mut() {
            let voter = lease::counted_by(status.membership_index, received.report.voter);
            self.silent_ms = self.silent_ms.max(voter.silent_ms.unwrap_or_default());
            let silent_ms = voter.silent_ms.map(|silent| self.deafness.counted_ms(received.at, silent));
            received.report.voter = VoterReport { silent_ms, ..voter };
        }
        reports
    }

    /// Publishes the decision, and logs it when it changed.
    fn tell(&self, decision: &ClusterDecision) {
        let (code, words) = (decision.code().to_owned(), decision.to_string());
        let changed = self.shared.decided.send_if_modified(|known| {
            let changed = known.0 != code;
            *known = (code.clone(), words.clone());
            changed
        });
        if changed {
            tracing::info!(reason = %code, decision = %words, "the cluster's decision changed");
        }
    }

    async fn propose(&mut self, state: &ClusterState, mut command: ClusterCommand, now: Moment) -> bool {
        let mut silent = 0;
        match &mut command {
            ClusterCommand::Prepare { at, reason } => {
                *at = WallTime(self.shared.clock.wall_time());
                if let rhone_consensus::command::PrepareReason::OwnerSilent { silent_ms } = reason {
                    // Nobody could write either while the leader heard nobody.
                    let granted_ms = now.millis_since(self.granted_seen.1);
                    silent = self.silent_ms.min(granted_ms).max(*silent_ms);
                }
            }
            ClusterCommand::Established { at, gap_ms, epoch, .. } => {
                *at = WallTime(self.shared.clock.wall_time());
                *gap_ms = self.gap(state, *epoch, *at, now);
            }
            ClusterCommand::Found { .. }
            | ClusterCommand::Admit(_)
            | ClusterCommand::Remove(_)
            | ClusterCommand::SetSystemId(_)
            | ClusterCommand::Grant(_)
            | ClusterCommand::AddPolicy { .. }
            | ClusterCommand::NarrowPolicies { .. }
            | ClusterCommand::AcceptLoss(_)
            | ClusterCommand::SetHandover(_)
            | ClusterCommand::SetPaused(_)
            | ClusterCommand::SetFenced { .. }
            | ClusterCommand::ChangeSettings { .. }
            | ClusterCommand::SetLearner { .. }
            | ClusterCommand::RecordLeft { .. }
            | ClusterCommand::Schedule(_)
            | ClusterCommand::BeginScheduled { .. }
            | ClusterCommand::DropScheduled { .. }
            | ClusterCommand::StepRestart { .. }
            | ClusterCommand::SettleTiming { .. } => {}
        }
        let words = command_in_words(&command);
        if let Some(reason) = self.shared.would_refuse(&command) {
            tracing::warn!(%reason, decision = %words, "would be refused");
            tokio::time::sleep(ROUND).await;
            return false;
        }
        let left = tell_left(state, &command);
        match self.shared.consensus.propose(command, PROPOSE_LIMIT).await {
            Ok(applied) => {
                if let Some((name, from, to)) = left.filter(|(_, from, to)| from < to) {
                    tracing::warn!(member = %name, %from, %to, bytes = to.bytes_since(from),
                        "a former primary left wal behind that no other member has");
                }
                tracing::info!(index = %applied.index, outcome = ?applied.outcome, decision = %words, "decided");
                if let rhone_consensus::command::Outcome::Prepared(epoch) = applied.outcome {
                    self.prepared = Some((epoch, now, silent));
                }
                false
            }
            Err(error) => {
                tracing::warn!(%error, decision = %words, "could not be put into the log");
                // Not in a tight loop: the next change or the next round tries again.
                tokio::time::sleep(ELECTION_ROUND).await;
                false
            }
        }
    }

    /// Returns for how long nobody could write: since the last renewal that was heard, by this
    /// node's clock where it opened the epoch itself, else by the wall clocks of two leaders.
    fn gap(&self, state: &ClusterState, epoch: Epoch, at: WallTime, now: Moment) -> u64 {
        match (self.prepared, &state.reason) {
            (Some((prepared, since, silent)), _) if prepared == epoch => now.millis_since(since) + silent,
            (_, Some(rhone_consensus::command::PrepareReason::OwnerSilent { silent_ms })) => {
                at.0.saturating_sub(state.prepared_at.0) + silent_ms
            }
            (_, Some(_) | None) => at.0.saturating_sub(state.prepared_at.0),
        }
    }

    /// Asks each of these members that is not being asked already.
    fn revoke(&mut self, state: &ClusterState, epoch: Epoch, members: &BTreeSet<NodeId>) {
        for node in members {
            let Some(member) = state.members.get(node) else { continue };
            if !self.asked.insert(*node) {
                continue;
            }
            let (shared, answer_to) = (Arc::clone(&self.shared), self.answer_to.clone());
            let (node, address) = (*node, member.address.clone());
            tokio::spawn(async move {
                let answer = ask_revoke(&shared, node, &address, epoch).await;
                if answer.is_err() {
                    tokio::time::sleep(REVOKE_AGAIN).await;
                }
                // The loop ends only with the process.
                drop(answer_to.send((node, epoch, answer)).await);
            });
        }
    }

    fn note(&mut self, (node, epoch, answer): Answer) {
        if epoch != self.asked_epoch {
            return;
        }
        self.asked.remove(&node);
        match answer {
            Ok(revoked) => {
                let position = revoked.position.map_or_else(|| "-".to_owned(), |p| p.to_string());
                tracing::info!(member = %node, %epoch, %position, able = revoked.able, "revoked");
                self.revoked.insert(node, (self.shared.now(), revoked));
            }
            Err(error) if self.unrevoked.get(&node) == Some(&error) => {}
            Err(error) => {
                tracing::info!(member = %node, %epoch, %error, "not revoked yet");
                self.unrevoked.insert(node, error);
            }
        }
    }

    /// The primary's node campaigns later than the others, whether it leads or not, and a witness
    /// before all of them.
    fn be_reluctant(&self) {
        let applied = Arc::clone(&self.shared.consensus.state().borrow());
        let (me, state) = (self.shared.me(), &applied.state);
        let owner = state.current_grant().map(|grant| grant.owner);
        let voters = self.shared.consensus.status().voters;
        let witness = |node: &NodeId| is_witness(state, *node);
        let waits = u32::from(voters.iter().any(witness) && !witness(&me)) + u32::from(owner == Some(me));
        self.shared.consensus.set_reluctance(waits);
    }

    /// Keeps leadership off the primary's node, so that losing that node needs no election; where a
    /// witness votes it is the one to lead.
    fn offer_leadership(&mut self, state: &ClusterState, now: Moment) {
        let me = self.shared.me();
        let status = self.shared.consensus.status();
        let alive = self.alive(state);
        let owner = state.current_grant().map(|grant| grant.owner);
        let witness = |node: &NodeId| is_witness(state, *node) && alive.contains(node);
        let better = status.voters.iter().any(witness) && !is_witness(state, me);
        if now.millis_since(self.yielded) > YIELD_EVERY_MS << YIELD_DOUBLED {
            self.offers = 0;
        }
        // A witness that never takes over is asked more and more rarely.
        let pause = match (owner == Some(me), self.yielded > self.led_since, self.offers) {
            (true, false, _) | (false, _, 0) => 0,
            (true, true, _) => YIELD_EVERY_MS,
            (false, _, offers) => YIELD_EVERY_MS << offers.min(YIELD_DOUBLED),
        };
        if (owner != Some(me) && !better)
            || state.phase != Phase::Established
            || state.handover.is_some()
            || now.millis_since(self.yielded.max(self.led_since)) < YIELD_EVERY_MS / 5
            || now.millis_since(self.yielded) < pause
        {
            return;
        }
        let others = status.voters.iter().filter(|node| **node != me && alive.contains(node)).count();
        if others > status.voters.len() / 2 {
            tracing::info!(witness = better, "offers raft leadership to another member");
            self.yielded = now;
            self.offers = self.offers.saturating_add(1);
            let shared = Arc::clone(&self.shared);
            tokio::spawn(async move { shared.consensus.yield_leadership().await });
        }
    }

    /// The founder fell between making the Raft group and its first entry: any leader finishes it,
    /// once every founding member has said again who it is.
    async fn found_again(&self) {
        if self.shared.config.kind() == MemberKind::Witness {
            // The first settings are a data member's to propose.
            self.shared.consensus.yield_leadership().await;
            return;
        }
        let status = self.shared.consensus.status();
        let addresses: Vec<String> = self.shared.config.node.peers.iter().map(ToString::to_string).collect();
        let Some(founder) = self.shared.hard.get().accepted_founder else { return };
        let answers = found::ask_all(&self.shared, &addresses).await;
        if answers.values().any(Option::is_none) {
            return;
        }
        let members: Vec<_> = answers.values().flatten().filter_map(found::member_of_hello).collect();
        let Some(first) = members.iter().find(|member| member.name == founder.name) else { return };
        if !status.nodes.contains_key(&first.node) {
            return;
        }
        let bootstrap = &self.shared.config.bootstrap;
        let settings = match found::founding_settings(bootstrap, self.settings.clone(), &members) {
            Ok(settings) => settings,
            Err(reason) => {
                tracing::error!(%reason, "cannot found a cluster: a person has to decide");
                return;
            }
        };
        let command = ClusterCommand::Found {
            cluster: self.shared.config.cluster.clone(),
            founder: first.node,
            members: members.clone(),
            settings,
        };
        if let Err(error) = self.shared.consensus.propose(command, PROPOSE_LIMIT).await {
            tracing::debug!(%error, "the founding entry is not in the log yet");
        }
    }
}

fn is_witness(state: &ClusterState, node: NodeId) -> bool {
    state.members.get(&node).is_some_and(|member| member.kind == MemberKind::Witness)
}

async fn ask_revoke(
    shared: &Arc<Shared>,
    node: NodeId,
    address: &str,
    epoch: Epoch,
) -> Result<Revoked, String> {
    if node == shared.me() {
        let (answer, told) = tokio::sync::oneshot::channel();
        shared.revokes.send(RevokeAsk { epoch, answer }).await.map_err(|_| "stopping".to_owned())?;
        return match tokio::time::timeout(REVOKE_LIMIT, told).await {
            Ok(Ok(result)) => result,
            Ok(Err(_)) => Err("dropped".to_owned()),
            Err(_) => Err("took too long".to_owned()),
        };
    }
    let request = RevokeRequest { from: Some(shared.identity()), epoch: epoch.0 };
    let reply = shared
        .peers
        .call(address, REVOKE_LIMIT, |mut client| async move { client.revoke(request).await })
        .await
        .map_err(|error| error.to_string())?;
    codec::unpack(&reply.revoked).ok_or(reply.reason)
}

/// Returns who left which range behind, if that is what the command records.
fn tell_left(state: &ClusterState, command: &ClusterCommand) -> Option<(String, Lsn, Lsn)> {
    let ClusterCommand::RecordLeft { node, end } = command else { return None };
    let (_, (from, to)) = state.waits_for_left(*node, *end)?;
    Some((state.members.get(node)?.name.clone(), from, to))
}
