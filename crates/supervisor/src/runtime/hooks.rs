//! The operator's programs: callbacks with Patroni's arguments, and what is asked before a promotion and
//! a stop (decision 0045).
//!
//! Callbacks are told what was seen and change nothing: they run on a task of their own, one after the
//! other. None is run by a shell; each runs as Postgres' user, in a process group that is killed at its limit.

use std::sync::Arc;
use std::time::Duration;

use rhone_pgctl::error::PgError;
use rhone_pgctl::program::Program;
use rhone_pgctl::user::OsUser;
use tokio::sync::mpsc;

use crate::config::{Hook, Hooks};
use crate::runtime::local::Local;
use crate::runtime::node::chain;
use crate::runtime::shared::Shared;
use crate::view::{Instance, ServerFacts};

/// Callbacks that wait for their turn; what happened before is not told any more.
const WAITING: usize = 32;

/// How much of what a program printed is logged, in bytes.
const SHOWN: usize = 2000;

/// What happened to the local Postgres, by Patroni's names.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Action {
    /// It was started.
    Start,
    /// It was stopped.
    Stop,
    /// It was restarted.
    Restart,
    /// It read its configuration again.
    Reload,
    /// It became a primary, or a standby.
    RoleChange,
}

impl Action {
    const fn name(self) -> &'static str {
        match self {
            Self::Start => "on_start",
            Self::Stop => "on_stop",
            Self::Restart => "on_restart",
            Self::Reload => "on_reload",
            Self::RoleChange => "on_role_change",
        }
    }

    const fn of(self, hooks: &Hooks) -> Option<&Hook> {
        match self {
            Self::Start => hooks.on_start.as_ref(),
            Self::Stop => hooks.on_stop.as_ref(),
            Self::Restart => hooks.on_restart.as_ref(),
            Self::Reload => hooks.on_reload.as_ref(),
            Self::RoleChange => hooks.on_role_change.as_ref(),
        }
    }
}

/// What Postgres is, by Patroni's words.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Role {
    /// It serves writes.
    Primary,
    /// It follows.
    Replica,
}

impl Role {
    const fn name(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Replica => "replica",
        }
    }
}

/// What was last seen of the local Postgres.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Seen {
    /// Whether anything was seen yet.
    known: bool,
    /// The role that it has, or had last.
    role: Option<Role>,
    /// Which server runs, by its start; none: none does.
    started: Option<u64>,
    /// The version of the settings that it was told.
    settings: u64,
}

impl Seen {
    /// Takes a look, and returns what happened since the last one, with the role that goes with it.
    ///
    /// What is in between (starting, frozen, hung, a closed gate) is not told: it ends as one of the others.
    pub(super) fn next(&mut self, instance: &Instance, server: &ServerFacts) -> Option<(Action, Role)> {
        let (role, started) = match instance {
            Instance::Primary { gate_open: true, .. } => (Some(Role::Primary), server.started_ms),
            Instance::Standby { .. } => (Some(Role::Replica), server.started_ms),
            Instance::Stopped { .. } | Instance::Absent | Instance::Unusable(_) => (None, None),
            Instance::Primary { gate_open: false, .. }
            | Instance::Unknown
            | Instance::Starting
            | Instance::Frozen { .. }
            | Instance::Hung { .. } => return None,
        };
        if role.is_some() && started.is_none() {
            return None;
        }
        let before = *self;
        *self = Self {
            known: true,
            role: role.or(before.role),
            started,
            settings: if server.settings > 0 { server.settings } else { before.settings },
        };
        if !before.known {
            // What ran before this supervisor did is not news.
            return None;
        }
        match (before.started, role) {
            (Some(_), None) => before.role.map(|role| (Action::Stop, role)),
            (_, Some(role)) if before.role.is_some_and(|before| before != role) => {
                Some((Action::RoleChange, role))
            }
            (None, Some(role)) => Some((Action::Start, role)),
            (Some(_), Some(role)) if before.started != started => Some((Action::Restart, role)),
            (Some(_), Some(role)) if before.settings > 0 && before.settings != self.settings => {
                Some((Action::Reload, role))
            }
            (None, None) | (Some(_), Some(_)) => None,
        }
    }
}

/// Begins to watch the local Postgres, where there are callbacks; ends with the process.
pub(super) fn start(shared: &Arc<Shared>, user: &OsUser) {
    let hooks = shared.config.hooks.clone();
    let actions = [Action::Start, Action::Stop, Action::Restart, Action::Reload, Action::RoleChange];
    if actions.iter().all(|action| action.of(&hooks).is_none()) {
        return;
    }
    let (tell, mut told) = mpsc::channel::<(Action, Role)>(WAITING);
    let (cluster, user) = (shared.config.cluster.clone(), user.clone());
    let limit = hooks.limit;
    tokio::spawn(async move {
        while let Some((action, role)) = told.recv().await {
            let Some(hook) = action.of(&hooks) else { continue };
            let arguments = [action.name(), role.name(), &cluster];
            if let Err(error) = run(hook, &arguments, &[], &user, limit).await {
                tracing::warn!(hook = action.name(), error = %chain(&error), "a callback failed");
            }
        }
    });
    let shared = Arc::clone(shared);
    tokio::spawn(async move {
        let (mut reports, mut asked) = (shared.own.subscribe(), shared.asked.subscribe());
        let (mut seen, mut reloading) = (Seen::default(), false);
        loop {
            let report = reports.borrow_and_update().clone();
            let happened = report.as_ref().and_then(|report| seen.next(&report.instance, &report.server));
            let reload = asked.borrow_and_update().reload();
            let reloaded = seen.role.filter(|_| reloading && !reload && happened.is_none());
            reloading = reload;
            let happened = happened.or(reloaded.map(|role| (Action::Reload, role)));
            if let Some((action, role)) = happened
                && tell.try_send((action, role)).is_err()
            {
                tracing::warn!(hook = action.name(), "callbacks take too long: this one is left out");
            }
            tokio::select! {
                changed = reports.changed() => if changed.is_err() { return },
                changed = asked.changed() => if changed.is_err() { return },
            }
        }
    });
}

/// Runs one program to its end, and logs what it printed.
async fn run(
    hook: &Hook,
    arguments: &[&str],
    environment: &[(&str, String)],
    user: &OsUser,
    limit: Duration,
) -> Result<(), PgError> {
    let mut program = Program::new(&hook.program, user).args(&hook.arguments).args(arguments).limit(limit);
    for (name, value) in environment {
        program = program.env(name, value);
    }
    let output = program.run().await?;
    let (stdout, stderr) = (shown(&output.stdout), shown(&output.stderr));
    tracing::info!(hook = %hook.program.display(), arguments = arguments.join(" "), stdout, stderr, "a hook ran");
    Ok(())
}

fn shown(text: &str) -> &str {
    let text = text.trim_end();
    let from = text.len().saturating_sub(SHOWN);
    let from = (from..=text.len()).find(|at| text.is_char_boundary(*at)).unwrap_or(text.len());
    text.get(from..).unwrap_or_default()
}

impl Local {
    /// Asks the operator's program whether this member may be promoted.
    ///
    /// # Errors
    /// It says no, or nothing in time.
    pub(super) async fn may_promote(&self, epoch: rhone_consensus::ids::Epoch) -> Result<(), String> {
        let hooks = &self.shared.config.hooks;
        let Some(hook) = &hooks.pre_promote else { return Ok(()) };
        let environment = self.about(epoch);
        run(hook, &[], &environment, &self.user, hooks.limit)
            .await
            .map_err(|error| format!("the pre-promote hook refuses: {}", chain(&error)))
    }

    /// Runs the operator's program before Postgres is stopped in order; what it says changes nothing.
    pub(super) async fn before_stop(&self) {
        let hooks = &self.shared.config.hooks;
        let Some(hook) = &hooks.before_stop else { return };
        let epoch = self.shared.consensus.state().borrow().state.epoch;
        if let Err(error) = run(hook, &[], &self.about(epoch), &self.user, hooks.limit).await {
            tracing::warn!(error = %chain(&error), "the before-stop hook failed");
        }
    }

    fn about(&self, epoch: rhone_consensus::ids::Epoch) -> [(&'static str, String); 4] {
        let config = &self.shared.config;
        [
            ("RHONE_CLUSTER", config.cluster.clone()),
            ("RHONE_MEMBER", config.node.name.clone()),
            ("RHONE_EPOCH", epoch.to_string()),
            ("PGDATA", self.config.data_dir.display().to_string()),
        ]
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks, each `primary START [VERSION]`, `gate START`, `standby START [VERSION]`, `stopped` or `starting`.
    #[track_caller]
    fn check(looks: &str, expected: &str) {
        let mut seen = Seen::default();
        let mut told = Vec::new();
        for look in looks.split(", ") {
            let words: Vec<&str> = look.split(' ').collect();
            let position = "2:0/30".parse().expect("a position");
            let epoch = rhone_consensus::ids::Epoch(3);
            let instance = match words[0] {
                "primary" => Instance::Primary { epoch, position, gate_open: true },
                "gate" => Instance::Primary { epoch, position, gate_open: false },
                "standby" => Instance::Standby {
                    position,
                    upstream: None,
                    streaming: true,
                    idle_ms: 0,
                    wal_gone: false,
                },
                "stopped" => Instance::Absent,
                "starting" => Instance::Starting,
                other => panic!("no such look: {other}"),
            };
            let number = |at: usize| words.get(at).map(|word| word.parse::<u64>().expect("a number"));
            let server = ServerFacts {
                started_ms: number(1),
                settings: number(2).unwrap_or(0),
                ..ServerFacts::default()
            };
            if let Some((action, role)) = seen.next(&instance, &server) {
                told.push(format!("{} {}", action.name(), role.name()));
            }
        }
        assert_eq!(told.join(", "), expected, "{looks}");
    }

    #[test]
    fn what_happens_is_told_once_by_patronis_names() {
        check("standby 1, standby 1", ""); // what ran before is not news
        check("starting, standby 1", "");
        check(
            "stopped, standby 1, stopped, standby 2",
            "on_start replica, on_stop replica, on_start replica",
        );
        check("standby 1, starting, standby 2", "on_restart replica");
        check("standby 1, gate 1, primary 1, primary 1", "on_role_change primary");
        check("primary 1, stopped, standby 2", "on_stop primary, on_role_change replica");
        check("standby 1 4, standby 1 5, standby 1 5", "on_reload replica");
        check("standby 1 4, standby 2 5", "on_restart replica"); // which read them too
    }

    #[test]
    fn long_output_is_cut_at_its_end() {
        let text = format!("{}é", "x".repeat(SHOWN));
        assert!(shown(&text).ends_with("xé") && shown(&text).len() <= SHOWN);
        assert_eq!(shown("done\n"), "done");
    }

    #[tokio::test]
    async fn a_program_that_hangs_is_killed_with_its_children() {
        let folder = tempfile::tempdir().expect("a folder");
        let mark = folder.path().join("pid");
        let script = format!("sleep 1000 & echo $! > {}; wait", mark.display());
        let hook = Hook { program: "/bin/sh".into(), arguments: vec!["-c".to_owned(), script] };
        let user = OsUser::current();
        let error = run(&hook, &[], &[], &user, Duration::from_secs(2)).await.expect_err("too long");
        assert!(matches!(error, PgError::TimedOut { .. }), "{error}");
        let child = std::fs::read_to_string(&mark).expect("the child's pid");
        let gone = || {
            let stat = std::fs::read_to_string(format!("/proc/{}/stat", child.trim()));
            stat.map_or(true, |stat| stat.contains(") Z "))
        };
        tokio::time::timeout(Duration::from_secs(30), async {
            while !gone() {
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
        .await
        .expect("the child is killed");
    }

    #[tokio::test]
    async fn arguments_reach_a_program_as_they_are() {
        let folder = tempfile::tempdir().expect("a folder");
        let out = folder.path().join("out");
        let hook = Hook {
            program: "/bin/sh".into(),
            arguments: vec![
                "-c".to_owned(),
                format!("printf '%s|' \"$@\" > {}", out.display()),
                "hook".to_owned(),
            ],
        };
        let user = OsUser::current();
        let arguments = ["on_start", "primary", "a $(b) 'c'"];
        run(&hook, &arguments, &[], &user, Duration::from_secs(30)).await.expect("it runs");
        assert_eq!(std::fs::read_to_string(out).expect("its output"), "on_start|primary|a $(b) 'c'|");
        let no = Hook { program: "/bin/false".into(), arguments: Vec::new() };
        assert!(run(&no, &[], &[], &user, Duration::from_secs(30)).await.is_err());
    }
}
