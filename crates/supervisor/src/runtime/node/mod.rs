//! The node's loop: looks at the instance, decides, carries out one effect at a time.
//!
//! The loop itself never waits for Postgres, a disk or another member: looks and effects are tasks
//! of their own, so that a Revoke is always heard.

mod chores;
mod promise;
pub mod retry;
mod sources;
mod tell;
mod upkeep;

use std::future::pending;
use std::sync::Arc;
use std::time::Duration;

use rhone_consensus::ids::{Epoch, LogIndex};
use rhone_consensus::settings::Timing;
use rhone_consensus::state::ClusterState;
use tokio::sync::{broadcast, mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::decide::{self, Effect, NodeDecision, Reason};
use crate::guardian::{Event, GuardState};
use crate::runtime::clock::BootTime;
use crate::runtime::counts::Ending;
use crate::runtime::effects::{Done, carry_out};
use crate::runtime::lease::GUARDIAN_SILENT;
use crate::runtime::local::{Local, LocalError};
use crate::runtime::shared::{RevokeAsk, Shared};
use crate::runtime::ticker::about;
use crate::view::{Instance, Moment, NodeView, Revoked};

use self::retry::Failures;

/// How often the instance is looked at when nothing happens.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// How often a primary is looked at, in milliseconds.
const LOOK_PRIMARY_MS: u64 = 900;

/// How often a primary's guardian is watched.
const WATCH_EVERY: Duration = Duration::from_millis(250);

/// How often while it starts, connects, or is frozen.
const LOOK_OFTEN: Duration = Duration::from_millis(50);

/// A standby that does not stream after this long is not about to.
const CONNECTING_MS: u64 = 10_000;

/// For how long a leaving owner waits for somebody to take over before it stops all the same.
const HANDOVER_PATIENCE_MS: u64 = 20_000;

/// For how long a member that has stopped its Postgres still answers a Revoke, so that the next
/// primary can be elected by its word.
const FAREWELL_MS: u64 = 5_000;

/// How often slots and the like are looked after.
const UPKEEP_EVERY_MS: u64 = 5_000;

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to, and Postgres is stopped.
    Left,
    /// The guardian is gone and Postgres with it: start over.
    GuardianLost,
}

/// Where the answer to a Revoke goes.
type Answer = oneshot::Sender<Result<Revoked, String>>;

struct Running {
    effect: Effect,
    epoch: Epoch,
    /// How many reloads had been asked for when it was begun.
    reloads: u64,
    /// Whether it is a copy that an operator asked for.
    asked: bool,
    /// When it was begun.
    since: BootTime,
    task: JoinHandle<Result<Done, LocalError>>,
}

/// An effect that has ended.
struct Finished {
    effect: Effect,
    epoch: Epoch,
    reloads: u64,
    since: BootTime,
    result: Result<Done, LocalError>,
}

#[expect(clippy::struct_excessive_bools, reason = "each is another fact")]
struct NodeLoop {
    local: Arc<Local>,
    shared: Arc<Shared>,
    instance: Instance,
    /// Whether `instance` was seen after the last change.
    fresh: bool,
    /// Postgres was killed by a Fence, and not looked at since: what is known of it is older.
    killed: bool,
    looked_at: Moment,
    looking: Option<JoinHandle<Instance>>,
    running: Option<Running>,
    revoke: Option<(Epoch, Vec<Answer>)>,
    guardian: bool,
    /// Whether the connection to a guardian that may live is gone.
    lost: bool,
    leaving: Option<Moment>,
    stopped_since: Option<Moment>,
    /// Whether the log here fences this member in what it holds since before the start and is not applied yet.
    fenced_ahead: bool,
    said: Option<Reason>,
    failures: Failures,
    upkeep: Option<JoinHandle<()>>,
    upkept: Moment,
    settled: Epoch,
    /// The epoch whose instance hung when it last ran.
    hung: Epoch,
}

/// Runs the loop until this member is to stop or its guardian is gone.
pub async fn run(
    local: Arc<Local>,
    mut revokes: mpsc::Receiver<RevokeAsk>,
    mut leave: watch::Receiver<bool>,
) -> Ended {
    let shared = Arc::clone(&local.shared);
    let now = shared.now();
    let mut events = local.guardian.events();
    let mut state = shared.consensus.state();
    let mut raft = shared.consensus.status_changes();
    let mut asked = shared.asked.subscribe();
    let mut node = NodeLoop {
        shared,
        instance: Instance::Unknown,
        fresh: false,
        killed: false,
        looked_at: now,
        looking: None,
        running: None,
        revoke: None,
        guardian: true,
        lost: false,
        leaving: None,
        stopped_since: None,
        fenced_ahead: false,
        said: None,
        failures: Failures::default(),
        upkeep: None,
        upkept: now,
        settled: Epoch(0),
        hung: Epoch(0),
        local: Arc::clone(&local),
    };
    loop {
        if let Some(ended) = node.turn() {
            return ended;
        }
        let pause = node.pause();
        tokio::select! {
            instance = finished(&mut node.looking) => node.looked(instance),
            done = finished_effect(&mut node.running) => node.effect_ended(done),
            Some(ask) = revokes.recv() => node.asked(ask),
            event = events.recv() => node.heard(&event),
            () = local.guardian.died(), if node.guardian => {
                tracing::error!("the guardian is gone: nobody may be primary without one");
                node.guardian = false;
                node.fresh = false;
            }
            changed = state.changed() => if changed.is_err() { return Ended::Left },
            changed = raft.changed() => if changed.is_err() { return Ended::Left },
            changed = asked.changed() => if changed.is_err() { return Ended::Left },
            changed = leave.changed() => if changed.is_ok() { node.leave() },
            () = pause_for(pause) => node.tick(),
        }
    }
}

/// What ends a lease is looked at when it comes; the rest wakes with other timers.
async fn pause_for(pause: Pause) {
    match pause {
        Pause::Exact(time) => tokio::time::sleep(time).await,
        Pause::About(time) => about(time).await,
    }
}

/// Whether a guardian that has not run for `age` counts as gone, where a lease lasts `serve`.
pub fn guardian_is_silent(age: Duration, serve: Duration) -> bool {
    age > GUARDIAN_SILENT + serve * 3 / 4
}

/// Returns when an instance that still runs under a lease until then has no guardian that fences, nothing
/// without a lease: a little before the guard is over, so that there is time to kill it before anybody else
/// can be granted (decision 0041).
pub fn overdue_at(until: BootTime, timing: Timing) -> Option<BootTime> {
    let patience = Duration::from_millis(u64::from(timing.guard_ms) * 4 / 5);
    (until > BootTime::ZERO).then(|| until.saturating_add(patience))
}

/// How long the loop pauses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Pause {
    /// So long, to the millisecond.
    Exact(Duration),
    /// About so long.
    About(Duration),
}

impl Pause {
    /// Returns the time.
    pub fn time(self) -> Duration {
        match self {
            Self::Exact(time) | Self::About(time) => time,
        }
    }
}

/// Returns when a primary's guardian is to be watched next, where a lease ends then.
pub fn watch_in(until: BootTime, timing: Timing, now: BootTime) -> Pause {
    let left = overdue_at(until, timing).filter(|at| *at >= now).map(|at| at.saturating_since(now));
    match left.filter(|left| *left < WATCH_EVERY * 2) {
        Some(left) => Pause::Exact(left + Duration::from_millis(1)),
        None => Pause::About(WATCH_EVERY),
    }
}

/// Whether a member that leaves since then has waited long enough, or nobody is there to wait for.
pub fn has_waited(shared: &Shared, state: &ClusterState, since: Moment) -> bool {
    let (now, me) = (shared.now(), shared.me());
    let table = shared.table.borrow();
    let alone = !state.data_members().any(|member| {
        member.node != me && table.get(&member.node).is_some_and(|r| now.millis_since(r.at) < 3000)
    });
    alone || now.millis_since(since) > HANDOVER_PATIENCE_MS
}

/// Whether a member that stopped its Postgres then, and began to leave at `since`, still answers a Revoke.
pub fn is_patient(now: Moment, stopped: Moment, since: Moment) -> bool {
    now.millis_since(stopped) < FAREWELL_MS && now.millis_since(since) < HANDOVER_PATIENCE_MS
}

async fn finished(task: &mut Option<JoinHandle<Instance>>) -> Instance {
    match task {
        Some(running) => {
            let result = running.await;
            *task = None;
            result.unwrap_or(Instance::Unknown)
        }
        None => pending().await,
    }
}

async fn finished_effect(running: &mut Option<Running>) -> Finished {
    match running {
        Some(work) => {
            let result = (&mut work.task).await;
            let Running { effect, epoch, reloads, since, .. } = *work;
            *running = None;
            let result = result.unwrap_or_else(|error| Err(LocalError::Stale(error.to_string())));
            Finished { effect, epoch, reloads, since, result }
        }
        None => pending().await,
    }
}

impl NodeLoop {
    /// Looks where that is due, decides, begins what was decided. Returns when to end.
    fn turn(&mut self) -> Option<Ended> {
        // Before the state is taken: what is not ahead of it any more is in it.
        let ahead = self.shared.consensus.ahead();
        self.fenced_ahead = ahead.is_some_and(|ahead| ahead.state.is_fenced(self.shared.me()));
        let applied = Arc::clone(&self.shared.consensus.state().borrow());
        let state = &applied.state;
        if state.is_founded() {
            // Until the timings are known the voter stays in quarantine.
            self.shared.voter.applied(state.epoch, state.ageing());
        }
        self.local.lease.loop_lives(self.shared.clock.now());
        self.watch_guardian(state);
        if !self.fresh && self.looking.is_none() {
            let local = Arc::clone(&self.local);
            self.looking = Some(tokio::spawn(async move { local.observe().await }));
            self.fresh = true;
        }
        self.keep_lease(state);
        // Before anything else is begun: a rewind or clone may take hours, and has to have a guardian.
        if self.guardian_lost() {
            return Some(Ended::GuardianLost);
        }
        self.give_up_copy();
        if self.looking.is_none() || self.revoke.is_some() || !self.guardian {
            self.decide(state);
        }
        self.report(state);
        self.begin_upkeep();
        self.end(state)
    }

    /// Whether the log here holds entries that are not applied yet.
    fn behind(&self) -> bool {
        let status = self.shared.consensus.status();
        status.applied < status.last_log
    }

    /// A guardian that is stopped fences nobody: where this member may be primary it counts as gone
    /// before another member can be granted (docs/safety.md 4: the two watch each other).
    ///
    /// The lease thread stops renewing at [`GUARDIAN_SILENT`]; the lease before it ends at most
    /// `serve` later, and another grant comes no earlier than `aged` after that renewal.
    fn watch_guardian(&mut self, state: &ClusterState) {
        let (primary, leased) = {
            let facts = self.local.facts();
            (facts.primary_epoch, facts.lease_epoch)
        };
        if !self.guardian || primary.max(leased) == Epoch(0) || !self.local.has_instance() {
            return;
        }
        let now = self.shared.clock.now();
        let timing = state.counting();
        let serve = Duration::from_nanos(timing.serve_ns());
        let silent = guardian_is_silent(self.local.guardian.page().alive_age(now), serve);
        let lease = self.local.lease.status();
        let overdue = lease.epoch == primary
            && overdue_at(lease.until, timing).is_some_and(|at| at < now)
            && self.local.guardian.page().state() == GuardState::Running;
        if silent || overdue {
            tracing::error!(silent, overdue, "the guardian does not fence: the supervisor does it");
            self.guardian = false;
            self.fresh = false;
        }
    }

    fn pause(&self) -> Pause {
        let about = match self.instance {
            Instance::Unknown | Instance::Starting | Instance::Frozen { .. } => LOOK_OFTEN,
            // One that is being taken over is about to be gone, and clients wait.
            Instance::Unusable(_) if self.upkeep.as_ref().is_some_and(|task| !task.is_finished()) => {
                LOOK_OFTEN
            }
            // One that connects is about to stream: whoever waits for that is told at once.
            Instance::Standby { streaming: false, idle_ms, .. } if idle_ms < CONNECTING_MS => LOOK_OFTEN * 2,
            Instance::Absent
            | Instance::Unusable(_)
            | Instance::Stopped { .. }
            | Instance::Standby { .. } => LOOK_EVERY,
            // Where no renewal comes, the lease's end is looked at when it comes, not up to a quarter second later.
            Instance::Primary { .. } | Instance::Hung { .. } => {
                let until = self.local.lease.status().until;
                return watch_in(until, self.shared.timing(), self.shared.clock.now());
            }
        };
        Pause::About(about)
    }

    fn view<'a>(&self, state: &'a ClusterState, facts: &'a Facts<'a>) -> NodeView<'a> {
        NodeView {
            state,
            me: self.shared.me(),
            instance: facts.instance,
            promise: facts.promise,
            unfinished: facts.unfinished,
            copied: facts.copied,
            stranger: facts.stranger,
            policy: facts.policy,
            secured: facts.secured,
            revoke: self.revoke.as_ref().map(|(epoch, _)| *epoch),
            running: self.running.as_ref().map(|running| (running.effect, running.epoch)),
            leaving: self.leaving.is_some(),
            leave_now: self.leave_now(state),
            behind: facts.behind,
            fenced_ahead: self.fenced_ahead,
            guardian: self.guardian,
            rewinds_failed: facts.rewinds_failed,
            start_failed: facts.start_failed,
            sources: self.sources(state),
            chores: self.chores(state),
        }
    }

    /// Whether a leaving member has waited long enough, or nobody is there to wait for.
    fn leave_now(&self, state: &ClusterState) -> bool {
        self.leaving.is_some_and(|since| has_waited(&self.shared, state, since))
    }

    fn decide(&mut self, state: &ClusterState) {
        let now = self.shared.now();
        let hard = self.shared.hard.get();
        let remembered = self.local.facts().clone();
        let start_failed = self.local.start_failed();
        let instance = self.instance.clone();
        let facts = Facts {
            instance: &instance,
            promise: hard.promise,
            unfinished: hard.unfinished(),
            copied: hard.copied(),
            stranger: self.local.data_facts().1,
            policy: remembered.policy,
            secured: remembered.secured,
            rewinds_failed: remembered.rewinds_failed,
            start_failed: start_failed.as_deref(),
            behind: self.behind(),
        };
        let view = self.view(state, &facts);
        let decision = decide::node(&view, now);
        self.shared.recorder.member(&view, now, decision);
        match decision {
            NodeDecision::Rest(reason) => self.say(reason, None),
            NodeDecision::Act(effect, epoch, reason) => {
                // Done already, however often the view of before asks for it: the look at what is left is under way.
                let done = effect == Effect::Fence && self.killed;
                if done || self.failures.hold_up(effect, now) {
                    return;
                }
                self.say(reason, Some((effect, epoch)));
                self.begin(effect, epoch, reason);
            }
        }
    }

    fn begin(&mut self, effect: Effect, epoch: Epoch, reason: Reason) {
        let mut before = None;
        if let Some(running) = self.running.take() {
            if running.effect == effect && running.epoch == epoch {
                self.running = Some(running);
                return;
            }
            tracing::info!(effect = running.effect.code(), epoch = %running.epoch, "cut short");
            self.count(running.effect, Ending::CutShort, running.since);
            running.task.abort();
            before = Some(running.task);
        }
        let fenced = self.shared.consensus.state().borrow().state.is_fenced(self.shared.me());
        let able = self.leaving.is_none() && !fenced && !self.fenced_ahead;
        let reloads = self.shared.asked.borrow().reloads;
        let local = Arc::clone(&self.local);
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                // What was cut short has let go of everything before the next begins.
                drop(before.await);
            }
            carry_out(local, effect, epoch, able).await
        });
        let (asked, since) = (reason == Reason::ReinitAsked, self.shared.clock.now());
        self.running = Some(Running { effect, epoch, reloads, asked, since, task });
    }

    /// Logs a decision when it changed.
    fn say(&mut self, reason: Reason, act: Option<(Effect, Epoch)>) {
        if self.said == Some(reason) && act.is_none() {
            return;
        }
        self.said = Some(reason);
        match act {
            Some((effect, epoch)) => {
                tracing::info!(reason = %reason, effect = effect.code(), %epoch, "acts");
            }
            None if matches!(reason, Reason::EffectRunning | Reason::NotProbed) => {}
            None => tracing::info!(reason = %reason, "rests"),
        }
    }

    /// Time has passed: another look is due, unless one is under way. A primary's guardian is watched
    /// more often than its Postgres is looked at.
    fn tick(&mut self) {
        let now = self.shared.now();
        let due = match self.instance {
            Instance::Primary { .. } | Instance::Hung { .. } => {
                now.millis_since(self.looked_at) >= LOOK_PRIMARY_MS
            }
            Instance::Unknown
            | Instance::Absent
            | Instance::Unusable(_)
            | Instance::Stopped { .. }
            | Instance::Starting
            | Instance::Standby { .. }
            | Instance::Frozen { .. } => true,
        };
        if due && self.looking.is_none() {
            self.fresh = false;
        }
    }

    fn looked(&mut self, instance: Instance) {
        self.looked_at = self.shared.now();
        self.killed = false;
        match instance {
            Instance::Hung { epoch } => {
                if !matches!(self.instance, Instance::Hung { .. }) {
                    tracing::warn!(%epoch, stall = ?self.local.facts().stall, "postgres makes no progress");
                }
                self.hung = epoch;
            }
            // What is frozen shows nothing of its progress.
            Instance::Frozen { .. } => {}
            Instance::Unknown
            | Instance::Absent
            | Instance::Unusable(_)
            | Instance::Stopped { .. }
            | Instance::Starting
            | Instance::Standby { .. }
            | Instance::Primary { .. } => self.hung = Epoch(0),
        }
        self.instance = instance;
    }

    fn count(&self, effect: Effect, ending: Ending, since: BootTime) {
        self.local.effects.ended(effect.code(), ending, self.shared.clock.now().saturating_since(since));
    }

    fn effect_ended(&mut self, Finished { effect, epoch, reloads, since, result }: Finished) {
        self.fresh = false;
        self.count(effect, if result.is_ok() { Ending::Done } else { Ending::Failed }, since);
        let now = self.shared.now();
        match result {
            Ok(done) => {
                tracing::info!(effect = effect.code(), %epoch, "done");
                self.failures.end();
                self.killed = effect == Effect::Fence;
                self.told_to_instance(effect, reloads);
                if matches!(effect, Effect::Clone(_)) {
                    self.local.note_copied(None);
                }
                if let Done::Revoked(revoked) = done {
                    self.answer(epoch, &Ok(revoked));
                }
            }
            Err(error) => {
                tracing::warn!(effect = effect.code(), %epoch, error = %chain(&error), "not done");
                if self.failures.note(effect, now) {
                    self.local.note_start_failed(chain(&error));
                }
                if matches!(effect, Effect::Clone(_)) {
                    self.copy_failed(&error);
                }
                if effect == Effect::Revoke {
                    self.answer(epoch, &Err(chain(&error)));
                }
            }
        }
    }

    fn heard(&mut self, event: &Result<Event, broadcast::error::RecvError>) {
        self.fresh = false;
        match event {
            Ok(Event::Exited(how)) => {
                tracing::warn!(%how, "postgres ended by itself");
                self.local.ended();
            }
            Ok(Event::Killed { cause, .. }) => {
                tracing::warn!(?cause, "postgres was killed");
                self.local.ended();
            }
            Ok(Event::Frozen(report)) => {
                tracing::warn!(cause = ?report.cause, took_us = report.took().as_micros(), "postgres is frozen");
            }
            Ok(Event::Thawed) => tracing::info!("postgres runs again"),
            Ok(Event::Superseded) => {
                tracing::error!("another supervisor has taken over this member's guardian");
                self.guardian = false;
            }
            Ok(Event::Lost) => self.lost = true,
            Ok(_) | Err(_) => {}
        }
    }

    /// Keeps the lease's target in step with the voters while this member runs a primary.
    fn keep_lease(&self, state: &ClusterState) {
        let epoch = match self.instance {
            Instance::Primary { epoch, .. } | Instance::Frozen { epoch } | Instance::Hung { epoch } => epoch,
            // Nothing runs: an explicit end of the lease lets another take over at once (docs/safety.md 9).
            Instance::Absent | Instance::Unusable(_) | Instance::Stopped { .. } if self.running.is_none() => {
                self.local.lease.set_target(None);
                return;
            }
            // The effects that start and promote an owner's instance set the target themselves.
            Instance::Unknown
            | Instance::Absent
            | Instance::Unusable(_)
            | Instance::Stopped { .. }
            | Instance::Starting
            | Instance::Standby { .. } => return,
        };
        if epoch == Epoch(0) || !self.guardian || !self.local.has_instance() {
            return;
        }
        // What ends it ends the renewing first, and its promise may wait for a disk that hangs.
        let ends = |running: &Running| matches!(running.effect, Effect::Fence | Effect::Revoke);
        if self.running.as_ref().is_some_and(ends) {
            return;
        }
        // Its word that it hangs may reach no leader, its Raft store being on the same disk: silence is heard. While
        // failovers are paused nobody would take over.
        if self.hung == epoch && !state.paused {
            self.local.lease.set_target(None);
            return;
        }
        if self.shared.hard.get().promise > epoch || state.epoch > epoch {
            self.local.lease.set_target(None);
        } else {
            self.local.lease.set_target(self.local.lease_target(epoch));
        }
    }

    fn leave(&mut self) {
        let now = self.shared.now();
        if self.leaving.is_none() {
            tracing::info!("is to stop: hands over, then stops postgres");
            self.leaving = Some(now);
            if let Some(running) = self.running.take_if(|running| matches!(running.effect, Effect::Clone(_)))
            {
                self.count(running.effect, Ending::CutShort, running.since);
                running.task.abort();
            }
        } else {
            // Asked a second time: no more waiting.
            self.leaving = Some(Moment(now.0.saturating_sub(HANDOVER_PATIENCE_MS * 2_000_000)));
        }
        self.fresh = false;
    }

    /// Says whether this member is done.
    fn end(&mut self, state: &ClusterState) -> Option<Ended> {
        if self.guardian_lost() {
            return Some(Ended::GuardianLost);
        }
        let nothing_runs = !self.local.has_instance() && self.running.is_none();
        let since = self.leaving?;
        if !nothing_runs {
            self.stopped_since = None;
            return None;
        }
        let now = self.shared.now();
        let stopped = *self.stopped_since.get_or_insert(now);
        let me = self.shared.me();
        let owner = state.last_owner() == Some(me) && self.leave_waits(state);
        (!owner || !is_patient(now, stopped, since)).then_some(Ended::Left)
    }

    /// Whether this member has to start over with another guardian, and can: nothing here may serve.
    fn guardian_lost(&self) -> bool {
        let lost = !self.guardian && !self.may_serve();
        (lost || self.lost) && self.running.is_none()
    }

    /// Whether something runs here that could still serve as a primary.
    fn may_serve(&self) -> bool {
        self.local.facts().primary_epoch > Epoch(0)
    }

    /// Whether another member may still need this one's word to take over.
    fn leave_waits(&self, state: &ClusterState) -> bool {
        let me = self.shared.me();
        state.data_members().any(|member| member.node != me)
    }
}

/// The borrowed half of a view.
struct Facts<'a> {
    instance: &'a Instance,
    promise: Epoch,
    unfinished: Option<Epoch>,
    copied: bool,
    stranger: bool,
    policy: Option<LogIndex>,
    secured: Option<LogIndex>,
    rewinds_failed: u32,
    start_failed: Option<&'a str>,
    behind: bool,
}

/// Joins an error's causes as people read them.
pub fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        let more = source.to_string();
        if !text.ends_with(&more) {
            text.push_str(": ");
            text.push_str(&more);
        }
        cause = source.source();
    }
    text
}
