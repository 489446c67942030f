//! Brings PgBouncer to what is wanted, again and again until it is there.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rhone_consensus::ids::Epoch;
use rhone_pgctl::user::OsUser;
use tokio::task::JoinHandle;

use super::console::{Console, ConsoleError};
use super::render;
use super::want::want;
use crate::config::{Address, Pooler};
use crate::runtime::clock::{BootTime, Clock};
use crate::runtime::shared::Shared;

/// How long a quick command may take.
const COMMAND_LIMIT: Duration = Duration::from_secs(2);

/// A pause ends after so long, whatever became of the change of primary: clients' own limits end it otherwise.
const PAUSE_MAX: Duration = Duration::from_secs(60);

/// A PgBouncer that does not answer is tried again this much later.
const AGAIN: Duration = Duration::from_secs(1);

/// How often the operator's list of users is looked at.
const USERS_EVERY: Duration = Duration::from_secs(10);

struct Keeper {
    shared: Arc<Shared>,
    pooler: Pooler,
    user: OsUser,
    console: Console,
    /// Where it points by the file, once it is known.
    server: Option<Address>,
    /// Whether the running PgBouncer may not have read the files yet.
    unread: bool,
    /// The epoch that it is paused for, as far as commands were given.
    paused: Option<Epoch>,
    /// A pause that ended before its epoch did.
    given_up: Option<Epoch>,
    pausing: Option<JoinHandle<Result<(), ConsoleError>>>,
    since: BootTime,
    complained: bool,
}

/// Writes PgBouncer's files and starts to look after it; without a `[pgbouncer]` table does nothing.
///
/// # Errors
/// The files cannot be written.
pub fn start(shared: &Arc<Shared>) -> anyhow::Result<()> {
    let Some(pooler) = shared.config.pooler.clone() else { return Ok(()) };
    let user = run_as(shared, &pooler)?;
    let password = prepare(&pooler, &user)?;
    let console = Console { dir: pooler.dir.clone(), port: pooler.listen.port, password };
    let keeper = Keeper {
        shared: Arc::clone(shared),
        pooler,
        user,
        console,
        server: None,
        unread: true,
        // A supervisor before this one may have left it paused.
        paused: Some(Epoch(0)),
        given_up: None,
        pausing: None,
        since: Clock.now(),
        complained: false,
    };
    tokio::spawn(keeper.run());
    Ok(())
}

/// Who runs PgBouncer: as configured, else who runs Postgres; without root always this user.
fn run_as(shared: &Shared, pooler: &Pooler) -> anyhow::Result<OsUser> {
    let me = OsUser::current();
    if me.uid != 0 {
        return Ok(me);
    }
    let postgres = shared.config.postgres.as_ref().and_then(|postgres| postgres.user.as_deref());
    let name = pooler.user.as_deref().or(postgres).unwrap_or("postgres");
    Ok(OsUser::by_name(name)?)
}

/// Makes the folder, PgBouncer's own, and the administrator's password, Rhone's own.
fn prepare(pooler: &Pooler, user: &OsUser) -> anyhow::Result<String> {
    use std::os::unix::fs::DirBuilderExt;
    let dir = &pooler.dir;
    if !dir.exists() {
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(dir)
            .and_then(|()| std::os::unix::fs::chown(dir, Some(user.uid), Some(user.gid)))
            .with_context(|| format!("create {} (pgbouncer.dir)", dir.display()))?;
    }
    let mut bytes = [0; 24];
    getrandom::fill(&mut bytes).map_err(|error| anyhow::anyhow!("draw a password: {error}"))?;
    let drawn = bytes.iter().fold(String::new(), |text, byte| text + &format!("{byte:02x}"));
    let path = dir.join("admin.pw");
    match std::fs::read_to_string(&path) {
        Ok(known) if !known.trim().is_empty() => return Ok(known.trim().to_owned()),
        Ok(_) | Err(_) => {}
    }
    rhone_pgctl::file::replace(&path, drawn.as_bytes(), &OsUser::current(), 0o600)?;
    Ok(drawn)
}

impl Keeper {
    async fn run(mut self) {
        let mut state = self.shared.consensus.state();
        let mut asked = self.shared.pooler.asked.subscribe();
        loop {
            let settled = match self.converge().await {
                Ok(()) => {
                    self.complained = false;
                    true
                }
                Err(error) => {
                    if !self.complained {
                        self.complained = true;
                        let error = format!("{error:#}");
                        tracing::warn!(error, "PgBouncer is not as it should be; tries again");
                    }
                    false
                }
            };
            let pause = if settled { USERS_EVERY } else { AGAIN };
            tokio::select! {
                changed = state.changed() => if changed.is_err() { return },
                changed = asked.changed() => if changed.is_err() { return },
                done = finished(&mut self.pausing) => self.pause_ended(done),
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    /// Does the next thing that is to be done.
    async fn converge(&mut self) -> anyhow::Result<()> {
        let asked = *self.shared.pooler.asked.borrow();
        let mut want = {
            let applied = Arc::clone(&self.shared.consensus.state().borrow());
            want(&applied.state, asked)
        };
        let overdue = Clock.now().saturating_since(self.since) > PAUSE_MAX;
        if self.paused.is_some() && self.paused == want.pause && overdue {
            tracing::warn!("no new primary in time: PgBouncer goes on without");
            self.given_up = self.paused;
        }
        want.pause = want.pause.filter(|epoch| self.given_up != Some(*epoch));
        if let Some(server) = want.server.as_ref().and_then(|server| server.parse().ok()) {
            self.server = Some(server);
        }
        self.write().await?;
        if let Some(epoch) = want.pause {
            return self.pause(epoch).await;
        }
        if self.unread {
            self.console.run("RELOAD", COMMAND_LIMIT).await?;
            self.unread = false;
            tracing::info!(server = ?self.server.as_ref().map(ToString::to_string), "PgBouncer reloaded");
        }
        if self.paused.is_some() {
            self.resume().await?;
        }
        Ok(())
    }

    /// Writes the files where they are not as they should be; off the runtime's thread, which must hear renewals
    /// meanwhile.
    async fn write(&mut self) -> anyhow::Result<()> {
        let own = self.shared.config.postgres.as_ref().map(|postgres| &postgres.advertise);
        // A witness has no server of its own to name until the primary is known.
        let Some(server) = self.server.as_ref().or(own) else { return Ok(()) };
        let text = render::config(&self.pooler, server);
        let (pooler, user) = (self.pooler.clone(), self.user.clone());
        let password = self.console.password.clone();
        let written = tokio::task::spawn_blocking(move || write(&pooler, &user, &password, &text));
        self.unread |= written.await??;
        Ok(())
    }

    /// Begins a pause: PgBouncer answers once its last server connection is closed.
    async fn pause(&mut self, epoch: Epoch) -> anyhow::Result<()> {
        if self.paused == Some(epoch) {
            return Ok(());
        }
        if self.paused.is_some() {
            self.resume().await?;
        }
        self.paused = Some(epoch);
        self.since = Clock.now();
        let console = self.console.clone();
        self.pausing = Some(tokio::spawn(async move { console.run("PAUSE", PAUSE_MAX).await }));
        Ok(())
    }

    fn pause_ended(&mut self, done: Result<(), ConsoleError>) {
        match done {
            Ok(()) => {
                let epoch = self.paused;
                tracing::info!(epoch = ?epoch.map(|epoch| epoch.0), "PgBouncer is paused");
                self.shared.pooler.paused.send_replace(epoch);
            }
            // One that does not run needs no pause: nobody is connected through it.
            Err(error @ ConsoleError::Unreachable(_)) => {
                tracing::debug!(%error, "no PgBouncer to pause");
                self.shared.pooler.paused.send_replace(self.paused);
            }
            Err(error) => tracing::warn!(error = %anyhow::Error::new(error), "PgBouncer is not paused"),
        }
    }

    async fn resume(&mut self) -> anyhow::Result<()> {
        if let Some(pausing) = self.pausing.take() {
            pausing.abort();
        }
        self.shared.pooler.paused.send_replace(None);
        match self.console.run("RESUME", COMMAND_LIMIT).await {
            Ok(()) => tracing::info!("PgBouncer resumed"),
            // It was not paused.
            Err(ConsoleError::Refused { source, .. }) => tracing::debug!(%source, "nothing to resume"),
            Err(error) => return Err(error.into()),
        }
        self.paused = None;
        Ok(())
    }
}

/// Writes PgBouncer's files, says whether one of them changed.
fn write(pooler: &Pooler, user: &OsUser, password: &str, config: &str) -> anyhow::Result<bool> {
    let theirs = std::fs::read_to_string(&pooler.users_file)
        .with_context(|| format!("read {} (pgbouncer.users-file)", pooler.users_file.display()))?;
    let users = render::users(&theirs, password);
    let put = |name: &str, text: &str| {
        rhone_pgctl::file::replace(&pooler.dir.join(name), text.as_bytes(), user, 0o600)
    };
    let changed = [put(render::USERS, &users)?, put(render::CONFIG, config)?];
    Ok(changed.contains(&true))
}

async fn finished(task: &mut Option<JoinHandle<Result<(), ConsoleError>>>) -> Result<(), ConsoleError> {
    match task {
        Some(running) => {
            let done = running.await;
            *task = None;
            done.unwrap_or(Ok(()))
        }
        None => std::future::pending().await,
    }
}
