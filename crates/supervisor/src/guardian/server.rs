//! The guardian's loop: it waits, looks at the lease, and does what its supervisor says.

mod obey;

use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::PathBuf;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::net::{RecvFlags, recv};
use rustix::process::{WaitOptions, WaitStatus, wait};
use rustix::time::{Itimerspec, TimerfdTimerFlags, Timespec, timerfd_settime};

use super::FROZEN_LIMIT;
use super::control::{CONNECTIONS, Connections};
use super::deadman::DeadMan;
use super::instance::{Frozen, Instance, Killing, Unprotected};
use super::page::{GuardPage, GuardState, Lease, Word};
use super::sys;
use super::watchdog::{Watchdog, Watched};
use super::wire::{
    self, Answer, Cause, Event, ExitReport, FrozenReport, Kind, MemoryLock, Priority, Refusal, Reply,
    Request, StartStage, Unreadable,
};
use crate::mutant::{Rule, left_out};
use crate::runtime::clock::{BootTime, Clock};

/// How often the guardian says that it is alive, and looks at the page even if no deadline is near.
const ALIVE_EVERY: Duration = Duration::from_millis(200);
/// How often while the instance needs no lease: then its supervisor tells it of the first one (a kick), and
/// takes a guardian for dead that did not run for twice as long.
const ALIVE_WITHOUT_LEASE: Duration = Duration::from_millis(500);
/// How often it looks for the renewal that thaws.
const THAW_LOOK_EVERY: Duration = Duration::from_millis(20);
/// How often it kills again what is not gone yet.
const KILL_EVERY: Duration = Duration::from_millis(5);
/// Descriptors to wait for beside the connections.
const OWN: usize = 5;

/// What the guardian got from the system at its start, for its status.
#[derive(Debug)]
pub(super) struct Outfit {
    pub(super) name: String,
    pub(super) cgroup_parent: Result<PathBuf, String>,
    pub(super) cgroup_prefix: String,
    pub(super) memory: MemoryLock,
    pub(super) priority: Priority,
    pub(super) oom_score_adj: i32,
    pub(super) unprotected: Unprotected,
    pub(super) watchdog: Watchdog,
    pub(super) dead_man: DeadMan,
}

/// What the loop waits for.
#[derive(Debug)]
pub(super) struct Wakers {
    pub(super) timer: OwnedFd,
    pub(super) signals: OwnedFd,
    pub(super) listener: OwnedFd,
    pub(super) memfd: OwnedFd,
}

/// The whole state of a guardian.
#[derive(Debug)]
pub(super) struct Server {
    outfit: Outfit,
    wakers: Wakers,
    page: GuardPage,
    connections: Connections,
    /// The claim whose leases count.
    writer: u64,
    /// The lease in force: the last whole one that was taken.
    lease: Lease,
    /// When the end of that lease was, or became known.
    due: BootTime,
    instance: Option<Instance>,
    idle: GuardState,
    last_exit: Option<ExitReport>,
    freezes: u64,
    fences: u64,
    late_fences: u64,
    late_fence_max: Duration,
    cgroups_made: u64,
    /// Nobody is taken on before this: the system has no descriptor left.
    deaf_until: Option<BootTime>,
    ending: bool,
}

impl Server {
    pub(super) fn new(outfit: Outfit, wakers: Wakers, page: GuardPage) -> Self {
        Self {
            outfit,
            wakers,
            page,
            connections: Connections::new(),
            writer: 0,
            lease: Lease::EXPIRED,
            due: BootTime::ZERO,
            instance: None,
            idle: GuardState::Idle,
            last_exit: None,
            freezes: 0,
            fences: 0,
            late_fences: 0,
            late_fence_max: Duration::ZERO,
            cgroups_made: 0,
            deaf_until: None,
            ending: false,
        }
    }

    /// Runs until it is told to end, which is only obeyed without an instance.
    pub(super) fn run(mut self) {
        let mut buffer = vec![0_u8; wire::MESSAGE_MAX];
        while !self.ending {
            self.tick();
            self.arm();
            let ready = self.wait();
            // The lease comes first: nobody who is connected can delay it by asking much.
            self.tick();
            self.take_signals();
            self.reap();
            self.started();
            if ready.listener {
                let served = self.connections.accept(&self.wakers.listener);
                self.deaf_until = (!served).then(|| Clock.now().saturating_add(ALIVE_EVERY));
            }
            for (slot, ready) in ready.connections.into_iter().enumerate() {
                if ready {
                    self.read(slot, &mut buffer);
                }
            }
        }
    }

    fn wait(&self) -> Ready {
        let instance = self.instance.as_ref();
        let pidfd =
            instance.filter(|instance| instance.exit.is_none()).map(|instance| instance.pidfd.as_fd());
        let starting = instance.filter(|instance| instance.killing.is_none());
        let starting = starting.and_then(|instance| instance.starting.as_ref());
        let sockets = self.connections.sockets();
        let timer = self.wakers.timer.as_fd();
        let own = [
            Some(timer),
            Some(self.wakers.signals.as_fd()),
            self.deaf_until.is_none_or(|until| until <= Clock.now()).then(|| self.wakers.listener.as_fd()),
            pidfd,
            starting.map(|starting| starting.errors.as_fd()),
        ];
        let at = |slot: usize| match slot.checked_sub(OWN) {
            None => own.get(slot).copied().flatten(),
            Some(connection) => sockets.get(connection).copied().flatten(),
        };
        // Where there is nothing to wait for, the timer is waited for twice.
        let mut fds: [PollFd<'_>; OWN + CONNECTIONS] =
            std::array::from_fn(|slot| PollFd::from_borrowed_fd(at(slot).unwrap_or(timer), PollFlags::IN));
        // An interrupted wait is a wake-up like any other.
        let _ = poll(&mut fds, None);
        let woke = |slot: usize| fds.get(slot).is_some_and(|fd| !fd.revents().is_empty());
        Ready {
            listener: own.get(2).is_some_and(Option::is_some) && woke(2),
            connections: std::array::from_fn(|slot| {
                sockets.get(slot).is_some_and(Option::is_some) && woke(slot.saturating_add(OWN))
            }),
        }
    }

    /// Looks at the lease and at the instance, and does what is due.
    fn tick(&mut self) {
        let now = Clock.now();
        self.take_lease(now);
        self.look(now);
        self.stamp();
        self.tend_watchdog();
        self.tend_dead_man();
    }

    fn look(&mut self, now: BootTime) {
        let Some(instance) = &self.instance else { return };
        if instance.killing.is_some() {
            self.go_on_killing();
        } else if let Some(frozen) = &instance.frozen {
            let at = frozen.report.at();
            if frozen.report.cause == Cause::LeaseEnded && self.renewed(frozen, now) {
                self.thaw();
            } else if now.saturating_since(at) >= FROZEN_LIMIT {
                self.kill(Cause::FrozenTooLong, None);
            } else {
                self.verify();
            }
        } else if self.lease.expired(now) && !left_out(Rule::Freeze) {
            self.freeze(Cause::LeaseEnded);
        }
    }

    /// After the fence had its turn: what comes here is a word that somebody fences.
    fn tend_watchdog(&mut self) {
        let now = Clock.now();
        let needed = self.instance.as_ref().is_some_and(|instance| instance.epoch.is_some());
        let fenced = !self.lease.expired(now) || self.state() == GuardState::Frozen;
        let watched = match (needed, fenced) {
            (false, _) => Watched::Nothing,
            (true, true) => Watched::Fenced,
            (true, false) => Watched::Loose,
        };
        self.outfit.watchdog.tend(watched, now);
        self.page.set(Word::Watchdog, self.outfit.watchdog.state() as u64);
    }

    /// After the fence had its turn, too: nothing that this waits for may hold up a freeze that is due.
    fn tend_dead_man(&mut self) {
        let needed = self.instance.as_ref().and_then(|instance| instance.epoch).is_some();
        let lease = match self.lease {
            _ if !needed => None,
            Lease::Until { deadline, .. } => Some(deadline),
            // Not with an epoch: whoever had a lease needs one.
            Lease::NotNeeded => Some(BootTime::ZERO),
        };
        self.outfit.dead_man.tend(lease, Clock.now());
        self.page.set(Word::DeadMan, self.outfit.dead_man.state() as u64);
    }

    /// Takes the lease from the page, if it is a new one that may count.
    fn take_lease(&mut self, now: BootTime) {
        let Some(new) = self.page.lease(self.writer) else { return };
        if new == self.lease {
            return;
        }
        let frozen_or_none = self.instance.as_ref().is_none_or(|instance| instance.frozen.is_some());
        if let Some(instance) = &mut self.instance {
            match (new, instance.epoch) {
                // It may be a primary: it needs a lease until it is gone.
                (Lease::NotNeeded, Some(_)) => return,
                (Lease::Until { epoch, .. }, Some(highest)) if epoch < highest => return,
                (Lease::Until { epoch, .. }, _) => instance.epoch = Some(epoch),
                (Lease::NotNeeded, None) => {}
            }
        }
        if let (Lease::Until { deadline: old, .. }, Lease::Until { sent, .. }) = (self.lease, new)
            && !frozen_or_none
            && sent > old
        {
            // This guardian did not run while the lease was over: a fence that never came is the latest.
            self.note_late(sent.saturating_since(old));
        }
        self.due = match (self.lease, new) {
            (Lease::Until { deadline: old, .. }, Lease::Until { deadline, .. }) if deadline >= old => {
                deadline
            }
            (_, Lease::Until { deadline, .. }) => deadline.max(now),
            (_, Lease::NotNeeded) => BootTime::MAX,
        };
        self.lease = new;
    }

    /// Returns whether the lease allows what is frozen to go on.
    fn renewed(&self, frozen: &Frozen, now: BootTime) -> bool {
        self.lease.thaws(frozen.report.at(), frozen.epoch, now)
    }

    fn note_late(&mut self, late: Duration) {
        self.late_fence_max = self.late_fence_max.max(late);
        self.page.set(Word::LateFenceMax, saturating_nanos(self.late_fence_max));
        if late > self.page.guard() {
            self.late_fences = self.late_fences.saturating_add(1);
            self.page.set(Word::LateFences, self.late_fences);
        }
    }

    /// Freezes the instance. Nothing here opens or allocates before it is done.
    fn freeze(&mut self, cause: Cause) {
        let Some(instance) = &mut self.instance else { return };
        self.page.set(Word::State, GuardState::Freezing as u64);
        let begun = Clock.now();
        let verified = instance.fence.freeze();
        let at = Clock.now();
        let mut report = FrozenReport::new(at, saturating_nanos(at.saturating_since(begun)), cause);
        report.verified = verified;
        report.by_signals = instance.fence.stopped_by_signals();
        let epoch = match self.lease {
            Lease::Until { epoch, .. } => Some(epoch),
            Lease::NotNeeded => None,
        };
        instance.frozen = Some(Frozen { report, epoch });
        self.page.set(Word::FrozenAt, at.as_nanos());
        self.freezes = self.freezes.saturating_add(1);
        self.page.set(Word::Freezes, self.freezes);
        if cause == Cause::LeaseEnded {
            self.fences = self.fences.saturating_add(1);
            self.page.set(Word::Fences, self.fences);
            if verified {
                self.note_late(at.saturating_since(self.due));
            }
        }
        self.stamp();
        self.connections.tell(&Event::Frozen(report));
    }

    /// Looks again at a freeze of which it was not sure.
    fn verify(&mut self) {
        let Some(instance) = &mut self.instance else { return };
        let Some(frozen) = instance.frozen.as_mut().filter(|frozen| !frozen.report.verified) else { return };
        if !instance.fence.verify() {
            return;
        }
        frozen.report.verified = true;
        let report = frozen.report;
        if report.cause == Cause::LeaseEnded {
            self.note_late(Clock.now().saturating_since(self.due));
        }
        self.connections.tell(&Event::Frozen(report));
    }

    fn thaw(&mut self) {
        let Some(instance) = &mut self.instance else { return };
        instance.frozen = None;
        instance.fence.thaw();
        self.page.set(Word::FrozenAt, 0);
        self.stamp();
        self.connections.tell(&Event::Thawed);
    }

    fn kill(&mut self, cause: Cause, failed: Option<(StartStage, i32)>) {
        let Some(instance) = &mut self.instance else { return };
        if instance.killing.is_none() {
            instance.killing = Some(Killing { cause, failed });
        }
        self.page.set(Word::State, GuardState::Killing as u64);
        self.go_on_killing();
    }

    /// Kills what is left, and buries the instance if that is nothing.
    fn go_on_killing(&mut self) {
        let Some(instance) = &mut self.instance else { return };
        instance.fence.kill_round(instance.living_postmaster().is_some());
        self.reap();
        let Some(instance) = &mut self.instance else { return };
        if instance.exit.is_some() && instance.fence.empty() {
            self.bury();
        }
    }

    /// Nothing of the instance is left: says so.
    fn bury(&mut self) {
        let Some(instance) = self.instance.take() else { return };
        let exit = instance.exit.unwrap_or(ExitReport::Unknown);
        instance.fence.dismantle();
        self.idle = GuardState::Dead;
        self.last_exit = Some(exit);
        self.page.set(Word::Postmaster, 0);
        self.page.set(Word::FrozenAt, 0);
        self.stamp();
        let killing = instance.killing.unwrap_or(Killing { cause: Cause::Command, failed: None });
        let event = match (killing.cause, killing.failed) {
            (Cause::StartFailed, Some((stage, errno))) => Event::StartFailed { stage, errno },
            (Cause::PostmasterExited, _) => Event::Exited(exit),
            (cause, _) => Event::Killed { cause, postmaster: exit },
        };
        if let Some(starting) = instance.starting {
            let (stage, errno) = killing.failed.unwrap_or((StartStage::Ended, 0));
            self.answer(starting.asked, Err(Refusal::StartFailed { stage, errno }));
        }
        self.connections.tell(&event);
        for waiter in self.connections.take_kill_waiters().into_iter().flatten() {
            self.answer(waiter, Ok(Answer::Killed));
        }
    }

    /// Collects every child that has ended: the postmaster, and what it left to this process.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            let Some(instance) = self.instance.as_mut().filter(|instance| instance.postmaster == pid) else {
                continue;
            };
            instance.exit.get_or_insert(exit_report(status));
        }
        let ended = |instance: &Instance| instance.exit.is_some() && instance.killing.is_none();
        if self.instance.as_ref().is_some_and(ended) {
            // Whether it was executed at all is in the pipe.
            self.started();
            self.kill(Cause::PostmasterExited, None);
        }
    }

    /// Looks whether a child that was forked has become a postmaster.
    fn started(&mut self) {
        let Some(instance) = self.instance.as_mut().filter(|instance| instance.killing.is_none()) else {
            return;
        };
        let Some(starting) = &mut instance.starting else { return };
        let mut ready = [PollFd::new(&starting.errors, PollFlags::IN)];
        if !matches!(poll(&mut ready, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })), Ok(1)) {
            return;
        }
        let mut told = [0_u8; 5];
        let failed = starting.errors.read_exact(&mut told).is_ok();
        let [stage, errno @ ..] = told;
        if failed {
            let failure = (StartStage::from_byte(stage), i32::from_ne_bytes(errno));
            if failure.0 == StartStage::Cgroup {
                // The next one is fenced by signals.
                self.outfit.cgroup_parent = Err("a process could not enter a cgroup".to_owned());
            }
            return self.kill(Cause::StartFailed, Some(failure));
        }
        let asked = starting.asked;
        instance.starting = None;
        let postmaster = instance.postmaster.as_raw_pid().unsigned_abs();
        let cgroup = instance.fence.cgroup_path();
        self.stamp();
        self.answer(asked, Ok(Answer::Started { postmaster, cgroup }));
        self.connections.tell(&Event::Started { postmaster });
    }

    fn take_signals(&mut self) {
        while let Some(signal) = sys::next_signal(&self.wakers.signals) {
            if signal == sys::TERMINATE && self.instance.is_none() {
                self.ending = true;
            }
        }
    }

    /// Says in the page what is going on, and that this process runs.
    fn stamp(&self) {
        self.page.set(Word::State, self.state() as u64);
        self.page.set(Word::Alive, Clock.now().as_nanos());
    }

    fn state(&self) -> GuardState {
        self.instance.as_ref().map_or(self.idle, Instance::state)
    }

    /// Sets the timer to the next moment at which there is something to do.
    fn arm(&self) {
        let now = Clock.now();
        let next = match (&self.instance, self.lease) {
            (None, Lease::Until { deadline, .. }) if deadline > now => Some(now.saturating_add(ALIVE_EVERY)),
            (None, _) => self.deaf_until,
            (Some(instance), lease) => Some(match (instance.state(), lease) {
                (GuardState::Killing, _) => now.saturating_add(KILL_EVERY),
                (GuardState::Freezing | GuardState::Frozen, _) => now.saturating_add(THAW_LOOK_EVERY),
                (_, Lease::Until { deadline, .. }) => deadline.min(now.saturating_add(ALIVE_EVERY)),
                (_, Lease::NotNeeded) => now.saturating_add(ALIVE_WITHOUT_LEASE),
            }),
        };
        // All zero disarms; a moment that has passed fires at once.
        let nanos = next.map_or(0, |next| next.as_nanos().max(1));
        let zero = Timespec { tv_sec: 0, tv_nsec: 0 };
        let value = Timespec {
            tv_sec: i64::try_from(nanos / 1_000_000_000).unwrap_or(i64::MAX),
            tv_nsec: i64::try_from(nanos % 1_000_000_000).unwrap_or(0),
        };
        let spec = Itimerspec { it_interval: zero, it_value: value };
        // Fails only for a descriptor that is no timer.
        drop(timerfd_settime(&self.wakers.timer, TimerfdTimerFlags::ABSTIME, &spec));
    }

    fn read(&mut self, slot: usize, buffer: &mut [u8]) {
        let Some(connection) = self.connections.get(slot) else { return };
        let number = connection.number;
        let packet = match recv(&connection.socket, &mut *buffer, RecvFlags::DONTWAIT) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => return,
            Ok((used, _)) if used > 0 => buffer.get(..used).unwrap_or_default(),
            Ok(_) | Err(_) => return self.connections.close(slot),
        };
        match wire::open(packet) {
            Ok((Kind::Request, body)) => match wire::unpack::<Request>(body) {
                Ok(request) => self.obey(number, request),
                Err(_) => self.connections.close(slot),
            },
            Err(Unreadable::Version(_)) => self.connections.wrong_version(slot),
            Ok((Kind::Reply | Kind::Event | Kind::WrongVersion, _)) | Err(Unreadable::Garbage) => {
                self.connections.close(slot);
            }
        }
    }

    fn answer(&mut self, (connection, id): (u64, u32), result: Result<Answer, Refusal>) {
        self.connections.reply(connection, &Reply { id, result }, None);
    }
}

/// What there is to do after a wait.
struct Ready {
    listener: bool,
    connections: [bool; CONNECTIONS],
}

fn exit_report(status: WaitStatus) -> ExitReport {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => ExitReport::Exited(code),
        (None, Some(signal)) => ExitReport::Signaled(signal),
        (None, None) => ExitReport::Unknown,
    }
}

fn saturating_nanos(duration: Duration) -> u64 {
    u64::try_from(duration.as_nanos()).unwrap_or(u64::MAX)
}
