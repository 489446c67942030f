//! Stops, continues and kills the processes of an instance by signals, one by one.
//!
//! Which ones there are is read from files that are held open: the cgroup's list where there is one, else
//! the kernel's lists of the postmaster's children and of the guardian's own. Nothing is opened or
//! allocated until every process has had its signal.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::fs::{Mode, OFlags};
use rustix::process::{Pid, Signal, WaitId, WaitIdOptions, kill_process, waitid};

use super::cgroup::for_each_number;
use super::proc;
use crate::runtime::clock::{BootTime, Clock};

/// How many processes are remembered; more than this are stopped all the same, but never verified.
const REMEMBERED: usize = 8192;
/// How often the lists are read again for new processes, at most, in one go.
const ROUNDS: usize = 64;

/// The processes that descend from one postmaster.
#[derive(Debug)]
pub(super) struct Family {
    postmaster: Pid,
    children: OwnedFd,
    own: OwnedFd,
    /// Stopped by us: sorted, and never grown beyond its first allocation.
    stopped: Vec<Pid>,
    buffer: Box<[u8; 16 * 1024]>,
}

/// Opens the kernel's list of the children of a process of one thread.
fn children_of(pid: Pid) -> io::Result<OwnedFd> {
    let number = pid.as_raw_pid();
    let path = format!("/proc/{number}/task/{number}/children");
    Ok(rustix::fs::open(path, OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())?)
}

impl Family {
    pub(super) fn of(postmaster: Pid) -> io::Result<Self> {
        Ok(Self {
            postmaster,
            children: children_of(postmaster)?,
            own: children_of(rustix::process::getpid())?,
            stopped: Vec::with_capacity(REMEMBERED),
            buffer: Box::new([0; 16 * 1024]),
        })
    }

    /// Stops the postmaster, then every other process, until no new one appears.
    pub(super) fn stop(&mut self, cgroup: Option<BorrowedFd<'_>>) {
        self.stopped.clear();
        self.stop_one(self.postmaster);
        // It forks and reaps no more once it has stopped: then the list of its children is complete, and
        // no number in it can come to mean another process. One that hangs in the kernel is not waited for.
        let soon = Clock.now().saturating_add(Duration::from_millis(5));
        while !self.postmaster_stopped() && Clock.now() < soon {
            // It needs the processor to stop, and there may be only one.
            std::thread::sleep(Duration::from_micros(50));
        }
        let end = Clock.now().saturating_add(Duration::from_millis(20));
        for _ in 0..ROUNDS {
            let settled = self.postmaster_stopped();
            let new = self.stop_listed(cgroup);
            if !new && (settled || Clock.now() >= end) {
                break;
            }
            if !new {
                std::thread::sleep(Duration::from_micros(500));
            }
        }
        self.stop_descendants();
    }

    /// Sends SIGSTOP to each listed process that had none yet. Returns whether there was one.
    fn stop_listed(&mut self, cgroup: Option<BorrowedFd<'_>>) -> bool {
        let mut new = false;
        let Self { children, own, stopped, buffer, .. } = self;
        let lists = [cgroup, Some(children.as_fd()), Some(own.as_fd())];
        for list in lists.into_iter().flatten() {
            for_each_number(list, buffer.as_mut_slice(), |pid| new |= stop_and_remember(pid, stopped));
        }
        new
    }

    fn stop_one(&mut self, pid: Pid) {
        stop_and_remember(pid, &mut self.stopped);
    }

    /// Stops the children's children too: an archive command, or what an extension started.
    fn stop_descendants(&mut self) {
        let mut next = 0;
        while let Some(&pid) = self.stopped.get(next) {
            next = next.saturating_add(1);
            let Ok(list) = children_of(pid) else { continue };
            let Self { stopped, buffer, .. } = self;
            let mut grew = false;
            for_each_number(list.as_fd(), buffer.as_mut_slice(), |child| {
                grew |= stop_and_remember(child, stopped);
            });
            if grew {
                // The list is sorted, so that a newcomer may be before this place.
                next = 0;
            }
        }
    }

    fn postmaster_stopped(&self) -> bool {
        let options = WaitIdOptions::STOPPED | WaitIdOptions::NOHANG | WaitIdOptions::NOWAIT;
        matches!(waitid(WaitId::Pid(self.postmaster), options), Ok(Some(_)) | Err(_))
    }

    /// Returns whether each process that was stopped has stopped, or is gone; waits until `end` for it.
    pub(super) fn verify(&self, end: BootTime) -> bool {
        let runs = |pid: &Pid| !matches!(proc::state(*pid), None | Some(b'T' | b't' | b'Z' | b'X'));
        if self.stopped.len() >= REMEMBERED {
            return false;
        }
        while self.stopped.iter().any(runs) {
            if Clock.now() >= end {
                return false;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        true
    }

    /// Continues what was stopped, the postmaster last.
    pub(super) fn resume(&mut self, cgroup: Option<BorrowedFd<'_>>) {
        let Self { postmaster, children, own, stopped, buffer } = self;
        let resume = |pid: Pid| {
            let _ = kill_process(pid, Signal::CONT);
        };
        for &pid in stopped.iter().rev().filter(|pid| *pid != postmaster) {
            resume(pid);
        }
        let lists = [cgroup, Some(children.as_fd()), Some(own.as_fd())];
        for list in lists.into_iter().flatten() {
            for_each_number(list, buffer.as_mut_slice(), |pid| {
                if pid != *postmaster {
                    resume(pid);
                }
            });
        }
        resume(*postmaster);
        stopped.clear();
    }

    /// Kills the postmaster's children, while it is there, and it, and what the guardian adopted.
    ///
    /// One round: to be repeated, with reaping in between, until [`Family::childless`].
    pub(super) fn kill_round(&mut self, postmaster_lives: bool) {
        let kill = |pid: Pid| {
            let _ = kill_process(pid, Signal::KILL);
        };
        if postmaster_lives {
            // Stopped first, so that it neither forks nor acts on the deaths of its children.
            self.stop_one(self.postmaster);
            let end = Clock.now().saturating_add(Duration::from_millis(5));
            while !self.postmaster_stopped() && Clock.now() < end {
                std::thread::sleep(Duration::from_micros(100));
            }
            for_each_number(self.children.as_fd(), self.buffer.as_mut_slice(), kill);
        }
        // The guardian has no other children than the instance: the postmaster, and its orphans.
        for_each_number(self.own.as_fd(), self.buffer.as_mut_slice(), kill);
    }

    /// Returns whether the guardian has no child left.
    pub(super) fn childless(&mut self) -> bool {
        let mut any = false;
        for_each_number(self.own.as_fd(), self.buffer.as_mut_slice(), |_| any = true);
        !any
    }
}

/// Stops `pid` if it is not among `stopped` yet, and then returns true.
fn stop_and_remember(pid: Pid, stopped: &mut Vec<Pid>) -> bool {
    let Err(place) = stopped.binary_search_by_key(&pid.as_raw_pid(), |known| known.as_raw_pid()) else {
        return false;
    };
    let _ = kill_process(pid, Signal::STOP);
    if stopped.len() < stopped.capacity() {
        stopped.insert(place, pid);
    }
    stopped.len() < REMEMBERED
}
