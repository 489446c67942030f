//! A member's loop: looks at the instance, lets `decide::node` decide, carries out one effect at a
//! time. Plays `runtime/node`, whose loop is tied to real processes; the shape is the same.

use std::sync::Arc;
use std::time::Duration;

use rhone::decide::{self, Effect, NodeDecision, Reason};
use rhone::guardian::{GuardState, Lease as PageLease, SharedPage};
use rhone::runtime::clock::BootTime;
use rhone::runtime::lease::Lease;
use rhone::runtime::node::retry::{Failures, refusal};
use rhone::runtime::node::{guardian_is_silent, has_waited, is_patient, overdue_at, watch_in};
use rhone::runtime::shared::{RevokeAsk, Shared};
use rhone::view::{
    Activity, Chores, Instance, Moment, NodeView, Report, Revoked, ServerFacts, Sources, VoterReport,
};
use rhone_consensus::ids::{DataId, Epoch};
use rhone_consensus::state::ClusterState;
use rhone_pgctl::wal::SystemId;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;

use crate::local::{Done, Local, carry_out};
use crate::machine::Run;
use crate::mutant::Mutant;
use crate::plant::Plant;

/// The system identifier of the one cluster there is.
pub const SYSTEM: u64 = 7;

const UPKEEP_EVERY_MS: u64 = 5_000;
/// How often it looks for what ended by itself; the real one is told by a pidfd.
const LOOK: Duration = Duration::from_millis(50);

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to, and Postgres is stopped.
    Left,
    /// The guardian is gone, and Postgres with it.
    GuardianLost,
}

type Answer = oneshot::Sender<Result<Revoked, String>>;

struct Running {
    effect: Effect,
    epoch: Epoch,
    task: JoinHandle<Result<Done, String>>,
}

struct NodeLoop {
    local: Arc<Local>,
    shared: Arc<Shared>,
    instance: Instance,
    running: Option<Running>,
    revoke: Option<(Epoch, Vec<Answer>)>,
    guardian: bool,
    leaving: Option<Moment>,
    stopped_since: Option<Moment>,
    failures: Failures,
    upkept: Moment,
    said: String,
    events: u64,
}

/// Runs the loop until this member is to stop or its guardian is gone.
pub async fn run(
    plant: Arc<Plant>,
    index: usize,
    shared: Arc<Shared>,
    lease: Lease,
    page: SharedPage,
    mut revokes: mpsc::Receiver<RevokeAsk>,
    mut leave: watch::Receiver<bool>,
) -> Ended {
    let now = shared.now();
    let local = Arc::new(Local::new(plant, index, Arc::clone(&shared), lease, page));
    local.adopt();
    let mut state = shared.consensus.state();
    let mut raft = shared.consensus.status_changes();
    let mut node = NodeLoop {
        shared,
        instance: Instance::Unknown,
        running: None,
        revoke: None,
        guardian: true,
        leaving: None,
        stopped_since: None,
        failures: Failures::default(),
        upkept: now,
        said: String::new(),
        events: 0,
        local: Arc::clone(&local),
    };
    let flushed = tokio::spawn(flushed(Arc::clone(&local)));
    let ended = loop {
        if let Some(ended) = node.turn() {
            break ended;
        }
        let pause = LOOK.min(node.watch_in());
        tokio::select! {
            biased;
            done = finished(&mut node.running) => node.effect_ended(done),
            Some(ask) = revokes.recv() => node.asked(ask),
            changed = state.changed() => if changed.is_err() { break Ended::Left },
            changed = raft.changed() => if changed.is_err() { break Ended::Left },
            changed = leave.changed() => if changed.is_ok() { node.leave() },
            () = tokio::time::sleep(pause) => {}
        }
    };
    flushed.abort();
    ended
}

async fn finished(running: &mut Option<Running>) -> (Effect, Epoch, Result<Done, String>) {
    match running {
        Some(work) => {
            let result = (&mut work.task).await;
            let (effect, epoch) = (work.effect, work.epoch);
            *running = None;
            (effect, epoch, result.unwrap_or_else(|error| Err(error.to_string())))
        }
        None => std::future::pending().await,
    }
}

/// Reads the primary's flushed position each renewal, for the lease to carry.
async fn flushed(local: Arc<Local>) {
    loop {
        let every = local.shared.timing().renewal_ms;
        tokio::time::sleep(Duration::from_millis(u64::from(every.max(10)))).await;
        if local.lease.target_epoch().is_none() {
            continue;
        }
        let flushed = {
            let machine = local.machine();
            let moves = machine.moves() && machine.run == Run::Primary;
            machine.data.as_ref().filter(|_| moves).map(|data| data.flushed)
        };
        if let Some(flushed) = flushed {
            local.lease.set_flushed(rhone_pgctl::wal::Lsn::new(flushed as u64));
        }
    }
}

impl NodeLoop {
    fn turn(&mut self) -> Option<Ended> {
        let applied = Arc::clone(&self.shared.consensus.state().borrow());
        let state = &applied.state;
        if state.is_founded() {
            let deaf = self.local.plant.mutant == Mutant::RenewsAfterPrepare;
            let granted = state.grant.as_ref().map_or(Epoch(0), |grant| grant.epoch);
            let epoch = if deaf { granted } else { state.epoch };
            self.shared.voter.applied(epoch, state.ageing());
        }
        self.local.lease.loop_lives(self.shared.clock.now());
        self.hear();
        self.watch_guardian(state);
        self.instance = self.local.observe();
        if matches!(self.instance, Instance::Primary { .. }) {
            self.local.note_streams();
        }
        self.keep_lease(state);
        self.decide(state);
        self.report(state);
        self.upkeep();
        self.end(state)
    }

    /// Takes note of what the machine did by itself.
    fn hear(&mut self) {
        let (events, runs, alive) = {
            let machine = self.local.machine();
            (machine.events, machine.runs(), machine.guard.alive)
        };
        if events != self.events {
            self.events = events;
            if !runs && self.running.is_none() {
                self.local.forget();
            }
        }
        if !alive {
            self.guardian = false;
        }
    }

    fn watch_in(&self) -> Duration {
        watch_in(self.local.lease.status().until, self.shared.timing(), self.shared.clock.now()).time()
    }

    fn watch_guardian(&mut self, state: &ClusterState) {
        let (primary, leased) = {
            let facts = self.local.facts();
            (facts.primary_epoch, facts.lease_epoch)
        };
        if !self.guardian || primary.max(leased) == Epoch(0) || !self.local.machine().runs() {
            return;
        }
        let serve = Duration::from_nanos(state.counting().serve_ns());
        let lease = self.local.lease.status();
        let due = overdue_at(lease.until, state.counting());
        let overdue = lease.epoch == primary
            && due.is_some_and(|at| at < self.shared.clock.now())
            && self.local.page.state() == GuardState::Running;
        if overdue || guardian_is_silent(self.local.page.alive_age(self.shared.clock.now()), serve) {
            self.local.say("takes its guardian for dead");
            self.guardian = false;
        }
    }

    fn behind(&self) -> bool {
        let status = self.shared.consensus.status();
        status.applied < status.last_log
    }

    fn with_view<T>(&self, state: &ClusterState, look: impl FnOnce(&NodeView<'_>) -> T) -> T {
        let hard = self.shared.hard.get();
        let facts = self.local.facts().clone();
        let start_failed = self.local.start_failed();
        let view = NodeView {
            state,
            me: self.shared.me(),
            instance: &self.instance,
            promise: self.local.promise(),
            unfinished: hard.unfinished(),
            copied: hard.copied(),
            revoke: self.revoke.as_ref().map(|(epoch, _)| *epoch),
            running: self.running.as_ref().map(|running| (running.effect, running.epoch)),
            leaving: self.leaving.is_some(),
            leave_now: self.leaving.is_some_and(|since| has_waited(&self.shared, state, since)),
            behind: self.behind(),
            fenced_ahead: self
                .shared
                .consensus
                .ahead()
                .is_some_and(|ahead| ahead.state.is_fenced(self.shared.me())),
            guardian: self.guardian,
            rewinds_failed: facts.rewinds_failed,
            start_failed: start_failed.as_deref(),
            stranger: self.local.data_facts().1,
            policy: facts.policy,
            secured: facts.secured,
            sources: Sources::default(),
            chores: Chores::default(),
        };
        look(&view)
    }

    fn decide(&mut self, state: &ClusterState) {
        let now = self.shared.now();
        match self.with_view(state, |view| decide::node(view, now)) {
            NodeDecision::Rest(reason) => {
                let quiet = matches!(reason, Reason::EffectRunning | Reason::NotProbed);
                let text = format!("rests: {reason}");
                if !quiet && self.said != text {
                    self.local.say(&text);
                    self.said = text;
                }
            }
            NodeDecision::Act(effect, epoch, reason) => {
                if self.failures.hold_up(effect, now) {
                    return;
                }
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
            running.task.abort();
            before = Some(running.task);
        }
        let text = format!("{} in {epoch}: {reason}", effect.code());
        self.local.say(&text);
        self.said = text;
        let able = self.leaving.is_none();
        let local = Arc::clone(&self.local);
        let task = tokio::spawn(async move {
            if let Some(before) = before {
                drop(before.await);
            }
            carry_out(&local, effect, epoch, able).await
        });
        self.running = Some(Running { effect, epoch, task });
    }

    fn effect_ended(&mut self, (effect, epoch, result): (Effect, Epoch, Result<Done, String>)) {
        let now = self.shared.now();
        match result {
            Ok(done) => {
                self.failures.end();
                if let Done::Revoked(revoked) = done {
                    self.answer(epoch, &Ok(revoked));
                }
            }
            Err(error) => {
                self.local.say(&format!("{} in {epoch} is not done: {error}", effect.code()));
                if self.failures.note(effect, now) {
                    self.local.note_start_failed(&error);
                }
                if effect == Effect::Revoke {
                    self.answer(epoch, &Err(error));
                }
            }
        }
    }

    fn answer(&mut self, epoch: Epoch, result: &Result<Revoked, String>) {
        match self.revoke.take() {
            Some((asked, answers)) if asked <= epoch => {
                for answer in answers {
                    drop(answer.send(result.clone()));
                }
            }
            later => self.revoke = later,
        }
    }

    fn asked(&mut self, ask: RevokeAsk) {
        let promise = self.local.promise();
        let granted = self.local.state(|state| state.grant.as_ref().map_or(Epoch(0), |grant| grant.epoch));
        if let Some(reason) = refusal(ask.epoch, promise, granted) {
            drop(ask.answer.send(Err(reason)));
            return;
        }
        if matches!(&self.running, Some(Running { effect: Effect::Rewind(_), .. })) {
            let local = Arc::clone(&self.local);
            tokio::spawn(async move {
                let epoch = ask.epoch;
                let answer = local.promise_only(epoch).await.map(|()| Revoked {
                    epoch,
                    position: None,
                    data: DataId(0),
                    able: false,
                    highest_timeline: local.highest_timeline(),
                });
                drop(ask.answer.send(answer));
            });
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

    fn keep_lease(&self, state: &ClusterState) {
        let epoch = match self.instance {
            Instance::Primary { epoch, .. } | Instance::Frozen { epoch } => epoch,
            Instance::Absent | Instance::Unusable(_) | Instance::Stopped { .. } if self.running.is_none() => {
                self.local.lease.set_target(None);
                return;
            }
            Instance::Unknown
            | Instance::Absent
            | Instance::Unusable(_)
            | Instance::Stopped { .. }
            | Instance::Starting
            | Instance::Standby { .. }
            | Instance::Hung { .. } => return,
        };
        if epoch == Epoch(0) || !self.guardian || !self.local.machine().runs() {
            return;
        }
        if self.local.promise() > epoch || state.epoch > epoch {
            self.local.lease.set_target(None);
        } else {
            self.local.lease.set_target(self.local.lease_target(epoch));
        }
    }

    fn leave(&mut self) {
        let now = self.shared.now();
        if self.leaving.is_none() {
            self.local.say("is to stop");
            self.leaving = Some(now);
            if let Some(running) = self.running.take_if(|running| matches!(running.effect, Effect::Clone(_)))
            {
                running.task.abort();
            }
        }
    }

    fn end(&mut self, state: &ClusterState) -> Option<Ended> {
        let nothing_runs = !self.local.machine().runs() && self.running.is_none();
        let lost = !self.guardian && self.local.facts().primary_epoch == Epoch(0);
        if lost && self.running.is_none() {
            return Some(Ended::GuardianLost);
        }
        let since = self.leaving?;
        if !nothing_runs {
            self.stopped_since = None;
            return None;
        }
        let now = self.shared.now();
        let stopped = *self.stopped_since.get_or_insert(now);
        let me = self.shared.me();
        let others = state.data_members().any(|member| member.node != me);
        let owner = state.last_owner() == Some(me) && others;
        (!owner || !is_patient(now, stopped, since)).then_some(Ended::Left)
    }

    fn upkeep(&mut self) {
        let now = self.shared.now();
        if self.running.is_some() || now.millis_since(self.upkept) < UPKEEP_EVERY_MS {
            return;
        }
        self.upkept = now;
        if let Instance::Standby { streaming: true, position, .. } = self.instance {
            let local = Arc::clone(&self.local);
            tokio::spawn(async move { local.finish_copy(position).await });
        }
    }

    fn report(&self, state: &ClusterState) {
        let down = self.with_view(state, decide::down);
        let lease = self.local.lease.status();
        let now = self.shared.clock.now();
        let activity = match self.running.as_ref().map(|running| running.effect) {
            Some(Effect::InitDb | Effect::Clone(_)) => Some(Activity::Cloning),
            Some(Effect::Rewind(_)) => Some(Activity::Rewinding),
            Some(Effect::Promote | Effect::OpenGate) => Some(Activity::Promoting),
            Some(_) | None => None,
        };
        let has_data = self.local.machine().data.is_some();
        let (streams, secured) = {
            let facts = self.local.facts();
            (facts.streams.clone(), facts.secured)
        };
        let report = Report {
            instance: self.instance.clone(),
            activity,
            voter: VoterReport::default(),
            promise: self.local.promise(),
            leaving: self.leaving.is_some(),
            down,
            system_id: has_data.then(|| SystemId::new(SYSTEM)),
            highest_timeline: self.local.highest_timeline(),
            data: self.local.data_facts().0,
            streams,
            secured,
            left: None,
            lease_left_ms: (lease.until > now).then_some(500),
            counts_by: (lease.until > now)
                .then(|| lease.timing_version.map(|version| (lease.epoch, version)))
                .flatten(),
            version: None,
            note: None,
            server: ServerFacts::default(),
        };
        let ready = state.is_founded() || self.shared.own.borrow().is_none();
        self.shared.own.send_if_modified(|known| {
            let changed = ready && known.as_ref().is_none_or(|known| tells_more(known, &report));
            if changed {
                *known = Some(report);
            }
            changed
        });
    }
}

/// Whether a report differs in more than a position that moved on: those go out twice a second.
fn tells_more(known: &Report, new: &Report) -> bool {
    let still = |report: &Report| {
        let mut report = report.clone();
        match &mut report.instance {
            Instance::Standby { position, idle_ms, .. } => {
                position.lsn = rhone_pgctl::wal::Lsn::new(position.lsn.get() / 16);
                *idle_ms /= 1000;
            }
            Instance::Primary { position, .. } => {
                position.lsn = rhone_pgctl::wal::Lsn::new(position.lsn.get() / 16);
            }
            _ => {}
        }
        report
    };
    still(known) != still(new)
}

/// Says whether a lease on the page is live.
pub fn page_live(lease: PageLease, epoch: Epoch, now: BootTime) -> bool {
    matches!(lease, PageLease::Until { epoch: leased, .. } if leased == epoch.0) && !lease.expired(now)
}
