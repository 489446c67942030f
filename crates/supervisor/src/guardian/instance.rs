//! One instance under guard: how it is started, and what is known of it.

use std::ffi::{CString, OsStr};
use std::io::{self, PipeReader};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::process::{Pid, PidfdFlags, pidfd_open};

use super::cgroup::Cgroup;
use super::family::Family;
use super::fence::Fence;
use super::page::GuardState;
use super::proc::{DataDir, instance_processes};
use super::sys::{self, SpawnPlan};
use super::wire::{Cause, ExitReport, FrozenReport, Refusal, StartSpec, StartStage};

/// What a child gets back that the guardian has taken for itself.
#[derive(Clone, Debug)]
pub(super) struct Unprotected {
    pub(super) nice: i32,
    pub(super) oom_score_adj: CString,
}

/// Whose start is waited for.
#[derive(Debug)]
pub(super) struct Starting {
    /// Tells of a failure, and is closed by the exec.
    pub(super) errors: PipeReader,
    /// The connection and the request to answer.
    pub(super) asked: (u64, u32),
}

/// A freeze that holds.
#[derive(Debug)]
pub(super) struct Frozen {
    pub(super) report: FrozenReport,
    /// The epoch of the lease then: only the same one thaws. `None`: no lease was needed.
    pub(super) epoch: Option<u64>,
}

/// A kill that goes on.
#[derive(Debug)]
pub(super) struct Killing {
    pub(super) cause: Cause,
    pub(super) failed: Option<(StartStage, i32)>,
}

/// An instance, from the fork until nothing of it is left.
#[derive(Debug)]
pub(super) struct Instance {
    pub(super) postmaster: Pid,
    pub(super) pidfd: OwnedFd,
    pub(super) fence: Fence,
    pub(super) starting: Option<Starting>,
    pub(super) frozen: Option<Frozen>,
    pub(super) killing: Option<Killing>,
    /// How the postmaster ended, once it is reaped.
    pub(super) exit: Option<ExitReport>,
    /// The highest epoch of its leases, once it had one: it may then be a primary.
    pub(super) epoch: Option<u64>,
}

impl Instance {
    /// Starts a postmaster. It is in its cgroup, and has a fence, before it executes anything.
    pub(super) fn start(
        spec: &StartSpec,
        cgroup: Option<Cgroup>,
        unprotected: &Unprotected,
        asked: (u64, u32),
    ) -> Result<Self, Refusal> {
        let failed = |stage, error: &io::Error| {
            let errno = error.raw_os_error().unwrap_or(0);
            Refusal::StartFailed { stage, errno }
        };
        let plan = plan(spec, unprotected).ok_or(Refusal::BadRequest)?;
        let data = DataDir::of(&spec.cwd).map_err(|error| failed(StartStage::DataDirectory, &error))?;
        let program = spec.program.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        if let Some(stray) = instance_processes(data, &program).unwrap_or_default().first() {
            return Err(Refusal::LeftOver { pid: stray.pid.as_raw_pid().unsigned_abs() });
        }
        let forked = |error: io::Error| failed(StartStage::Fork, &error);
        let (errors, tell) = io::pipe().map_err(forked)?;
        let tell = OwnedFd::from(tell);
        let postmaster = sys::spawn(&plan, cgroup.as_ref().map(Cgroup::procs), &tell).map_err(forked)?;
        let held = pidfd_open(postmaster, PidfdFlags::NONBLOCK).map_err(io::Error::from);
        match held.and_then(|pidfd| Ok((pidfd, Family::of(postmaster)?))) {
            Ok((pidfd, family)) => Ok(Self {
                postmaster,
                pidfd,
                fence: Fence::new(cgroup, family, data, program),
                starting: Some(Starting { errors, asked }),
                frozen: None,
                killing: None,
                exit: None,
                epoch: None,
            }),
            Err(error) => {
                // What cannot be fenced must not run.
                let _ = rustix::process::kill_process(postmaster, rustix::process::Signal::KILL);
                let _ = rustix::process::waitpid(Some(postmaster), rustix::process::WaitOptions::empty());
                Err(failed(StartStage::Fork, &error))
            }
        }
    }

    pub(super) fn state(&self) -> GuardState {
        match (&self.killing, &self.frozen, &self.starting) {
            (Some(_), _, _) => GuardState::Killing,
            (None, Some(frozen), _) if frozen.report.verified => GuardState::Frozen,
            (None, Some(_), _) => GuardState::Freezing,
            (None, None, Some(_)) => GuardState::Starting,
            (None, None, None) => GuardState::Running,
        }
    }

    /// The postmaster, unless it was reaped: then its number may be another process's.
    pub(super) fn living_postmaster(&self) -> Option<Pid> {
        self.exit.is_none().then_some(self.postmaster)
    }
}

/// Turns a request into what a child can use without allocating. `None`: some text has a zero byte in it.
fn plan(spec: &StartSpec, unprotected: &Unprotected) -> Option<SpawnPlan> {
    let path = |path: &PathBuf| text(path.as_os_str());
    let mut env = Vec::with_capacity(spec.env.len());
    for (name, value) in &spec.env {
        let mut variable = name.as_bytes().to_vec();
        variable.push(b'=');
        variable.extend_from_slice(value.as_bytes());
        env.push(CString::new(variable).ok()?);
    }
    Some(SpawnPlan {
        program: path(&spec.program)?,
        args: spec.args.iter().map(|arg| text(arg)).collect::<Option<_>>()?,
        env,
        cwd: path(&spec.cwd)?,
        log_file: path(&spec.log_file)?,
        user: spec.user.as_ref().map(|user| (user.uid, user.gid, user.groups.clone())),
        oom_score_adj: unprotected.oom_score_adj.clone(),
        nice: unprotected.nice,
    })
}

fn text(text: &OsStr) -> Option<CString> {
    CString::new(text.as_bytes()).ok()
}
