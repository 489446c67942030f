//! What a supervisor may ask of the guardian, and how it is answered.

use super::{Server, saturating_nanos};
use crate::guardian::cgroup::Cgroup;
use crate::guardian::instance::Instance;
use crate::guardian::page::{GuardState, Lease, Word};
use crate::guardian::wire::{
    Answer, Backend, Cause, Command, Event, LeaseReport, PostmasterSignal, Refusal, Reply, Request,
    StartSpec, Status,
};
use crate::runtime::clock::{BootTime, Clock};

use std::os::fd::AsFd;

use rustix::process::{Signal, kill_process};

impl Server {
    /// Does what a request says. Those of whoever is not the supervisor may only look.
    pub(super) fn obey(&mut self, from: u64, Request { id, command }: Request) {
        let asked = (from, id);
        let owner = self.connections.owner == Some(from);
        let result = match command {
            Command::Hello { claim } => return self.hello(asked, claim),
            Command::Status => Ok(Answer::Status(Box::new(self.status()))),
            _ if !owner => Err(Refusal::Superseded),
            Command::Start(spec) => match self.start(&spec, asked) {
                // Answered when the program is executed.
                Ok(()) => return,
                Err(refusal) => Err(refusal),
            },
            Command::Freeze => self.freeze_by_command(),
            Command::Thaw { sent_ns, epoch } => self.thaw_by_command(BootTime::from_nanos(sent_ns), epoch),
            Command::Kill => {
                if self.instance.is_some() {
                    self.connections.await_kill(asked);
                    // Answers it too, at the end.
                    return self.kill(Cause::Command, None);
                }
                Ok(Answer::Killed)
            }
            Command::Signal(signal) => self.signal(signal),
            Command::Kick => Ok(self.kick()),
            Command::Release => {
                if let Some(instance) = &mut self.instance {
                    instance.epoch = None;
                }
                Ok(self.kick())
            }
            Command::Quit if self.instance.is_some() => Err(Refusal::InstanceExists(self.state())),
            Command::Quit => {
                self.ending = true;
                Ok(Answer::Done)
            }
        };
        self.answer(asked, result);
    }

    fn hello(&mut self, (from, id): (u64, u32), claim: bool) {
        if claim {
            if self.connections.owner != Some(from) {
                self.connections.tell_owner(&Event::Superseded);
            }
            // What the former owner wrote until now still counts; what it writes from now on does not.
            self.take_lease(Clock.now());
            self.connections.owner = Some(from);
            self.writer = self.writer.saturating_add(1);
        }
        let cgroup = self.instance.as_ref().and_then(|instance| instance.fence.cgroup_path());
        let result = Ok(Answer::Hello { writer: self.writer, cgroup });
        let memfd = claim.then(|| self.wakers.memfd.as_fd());
        self.connections.reply(from, &Reply { id, result }, memfd);
    }

    fn start(&mut self, spec: &StartSpec, asked: (u64, u32)) -> Result<(), Refusal> {
        let now = Clock.now();
        self.take_lease(now);
        if self.instance.is_some() {
            return Err(Refusal::InstanceExists(self.state()));
        }
        if self.lease.expired(now) {
            return Err(Refusal::LeaseExpired);
        }
        let cgroup = self.make_cgroup();
        let path = cgroup.as_ref().map(|cgroup| cgroup.path().to_owned());
        let mut instance = Instance::start(spec, cgroup, &self.outfit.unprotected, asked)
            .inspect_err(|_| drop(path.map(std::fs::remove_dir)))?;
        if let Lease::Until { epoch, .. } = self.lease {
            instance.epoch = Some(epoch);
        }
        self.page.set(Word::Postmaster, u64::from(instance.postmaster.as_raw_pid().unsigned_abs()));
        self.instance = Some(instance);
        self.stamp();
        self.outfit.watchdog.take_over(now);
        self.outfit.dead_man.take_over();
        Ok(())
    }

    /// Makes the instance's cgroup; without one it is fenced by signals.
    fn make_cgroup(&mut self) -> Option<Cgroup> {
        let parent = self.outfit.cgroup_parent.as_ref().ok()?;
        self.cgroups_made = self.cgroups_made.saturating_add(1);
        let pid = rustix::process::getpid().as_raw_pid();
        let name = format!("{}{pid}-{}", self.outfit.cgroup_prefix, self.cgroups_made);
        match Cgroup::create(parent, &name) {
            Ok(cgroup) => Some(cgroup),
            Err(error) => {
                self.outfit.cgroup_parent = Err(format!("{}: {error}", parent.display()));
                None
            }
        }
    }

    fn freeze_by_command(&mut self) -> Result<Answer, Refusal> {
        let instance = self.instance.as_mut().ok_or(Refusal::NoInstance)?;
        if instance.killing.is_some() {
            return Err(Refusal::InstanceExists(GuardState::Killing));
        }
        match &mut instance.frozen {
            // Frozen already; from now on renewals alone do not thaw it.
            Some(frozen) => frozen.report.cause = Cause::Command,
            None => self.freeze(Cause::Command),
        }
        let frozen = self.instance.as_ref().and_then(|instance| instance.frozen.as_ref());
        frozen.map(|frozen| Answer::Frozen(frozen.report)).ok_or(Refusal::NoInstance)
    }

    fn thaw_by_command(&mut self, sent: BootTime, epoch: u64) -> Result<Answer, Refusal> {
        let now = Clock.now();
        self.take_lease(now);
        let instance = self.instance.as_ref().ok_or(Refusal::NoInstance)?;
        if instance.killing.is_some() {
            return Err(Refusal::InstanceExists(GuardState::Killing));
        }
        let Some(frozen) = &instance.frozen else { return Ok(Answer::Thawed) };
        let same = frozen.epoch.is_none_or(|at_freeze| at_freeze == epoch);
        if !same || sent <= frozen.report.at() || !self.renewed(frozen, now) {
            return Err(Refusal::NotRenewed);
        }
        self.thaw();
        Ok(Answer::Thawed)
    }

    fn signal(&self, signal: PostmasterSignal) -> Result<Answer, Refusal> {
        let living = self.instance.as_ref().and_then(Instance::living_postmaster);
        let postmaster = living.ok_or(Refusal::NoInstance)?;
        let signal = match signal {
            PostmasterSignal::Reload => Signal::HUP,
            PostmasterSignal::SmartStop => Signal::TERM,
            PostmasterSignal::FastStop => Signal::INT,
            PostmasterSignal::ImmediateStop => Signal::QUIT,
            PostmasterSignal::LookForPromote => Signal::USR1,
        };
        // Its number is its own until this process reaps it.
        kill_process(postmaster, signal).map_err(|_| Refusal::NoInstance)?;
        Ok(Answer::Done)
    }

    fn kick(&mut self) -> Answer {
        self.tick();
        Answer::Lease(LeaseReport::new(self.lease, self.state()))
    }

    fn status(&self) -> Status {
        let instance = self.instance.as_ref();
        let living = instance.and_then(Instance::living_postmaster);
        let cgroup = instance.and_then(|instance| instance.fence.cgroup_path());
        let by_cgroup = cgroup.is_some() || instance.is_none() && self.outfit.cgroup_parent.is_ok();
        Status {
            name: self.outfit.name.clone(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: rustix::process::getpid().as_raw_pid().unsigned_abs(),
            lease: LeaseReport::new(self.lease, self.state()),
            postmaster: living.map(|pid| pid.as_raw_pid().unsigned_abs()),
            last_exit: self.last_exit,
            frozen: instance.and_then(|instance| instance.frozen.as_ref()).map(|frozen| frozen.report),
            backend: if by_cgroup { Backend::Cgroup } else { Backend::Signals },
            cgroup,
            cgroup_problem: self.outfit.cgroup_parent.as_ref().err().cloned(),
            fences: self.fences,
            late_fence_max_ns: saturating_nanos(self.late_fence_max),
            memory: self.outfit.memory,
            priority: self.outfit.priority,
            oom_score_adj: self.outfit.oom_score_adj,
        }
    }
}
