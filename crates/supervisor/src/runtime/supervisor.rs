//! Puts one member together, runs it, and takes it apart again.

use std::collections::{BTreeMap, BTreeSet};
use std::os::unix::fs::DirBuilderExt;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::AtomicU64;
use std::time::Duration;

use anyhow::{Context, bail};
use rhone_consensus::host::ThisHost;
use rhone_consensus::identity::Identity;
use rhone_consensus::settings::Settings;
use rhone_consensus::store::hard::HardStateFile;
use rhone_consensus::transport::AddressBook;
use rhone_consensus::{Consensus, ConsensusError, Options, StoreAt, Timings};
use rhone_pgctl::connection::LocalConnection;
use rhone_pgctl::install::Installation;
use rhone_pgctl::user::OsUser;
use rhone_pgctl::walwatch::WalWatch;
use tokio::net::TcpListener;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::{mpsc, watch};
use tonic::service::Routes;

use crate::api::access::Access;
use crate::api::admin::AdminService;
use crate::api::agent::AgentService;
use crate::api::proto::v1::admin_server::AdminServer;
use crate::api::proto::v1::agent_server::AgentServer;
use crate::api::{admin_service, discovery, health, socket};
use crate::config::{Config, DeadMan, Postgres, Tls};
use crate::guardian::{Guardian, GuardianError, GuardianOptions, Lease as PageLease, emergency};
use crate::runtime::clock::Clock;
use crate::runtime::lease::Lease;
use crate::runtime::local::Local;
use crate::runtime::node::Ended;
use crate::runtime::operator::RuntimeOperator;
use crate::runtime::peers::Peers;
use crate::runtime::recorder::Recorder;
use crate::runtime::secret::Secret;
use crate::runtime::shared::{RevokeAsk, Shared};
use crate::runtime::ticker::Ticker;
use crate::runtime::voter::VoterLease;
use crate::runtime::{found, generation, hooks, leader, node, publish, report, witness};
use crate::status::LocalView;
use crate::tls::{self, Dialer, Security};

/// How long Raft may take to end in order.
const SHUTDOWN_LIMIT: Duration = Duration::from_secs(5);

/// How often a member whose kind was changed says so.
const KIND_TOLD_EVERY: Duration = Duration::from_secs(60);

/// How long killing everything may take.
const KILL_LIMIT: Duration = Duration::from_secs(30);

/// How long a statement that only reads the flushed position may take.
const FLUSH_LIMIT: Duration = Duration::from_millis(500);

/// What a member does once it has ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum After {
    /// The process ends.
    Exit,
    /// The process starts over: its guardian is gone, and Postgres with it.
    StartOver,
}

/// The Raft store failed, and Raft with it. Another process may open it again: an fsync that failed is
/// never tried again in this one.
#[derive(Debug, thiserror::Error)]
#[error("raft stopped: {reason}")]
pub struct RaftStopped {
    /// What stopped it.
    pub reason: String,
}

/// Runs a member until it is told to stop.
///
/// # Errors
/// It could not be put together, or [`RaftStopped`].
pub async fn run(config: Config) -> anyhow::Result<After> {
    let postgres = config.postgres.clone();
    let (shared, asked) = assemble(config).await?;
    match postgres {
        Some(postgres) => run_postgres(shared, postgres, asked).await,
        None => witness::run(shared).await,
    }
}

/// Opens what every member has: directory, hard state, store and Raft, and the voter's memory.
async fn assemble(config: Config) -> anyhow::Result<(Arc<Shared>, mpsc::Receiver<RevokeAsk>)> {
    prepare_directory(&config)?;
    generation::still_counts(&config.node.state_dir)?;
    let (hard, opened) = HardStateFile::open_or_create(&config.node.state_dir)?;
    let hard = Arc::new(hard);
    tracing::info!(?opened, node = %hard.get().node_id, session = %hard.get().session, "hard state");
    std::fs::write(config.node.state_dir.join("supervisor.pid"), std::process::id().to_string())
        .context("write supervisor.pid")?;
    let clock = Clock;
    let voter = Arc::new(VoterLease::new(clock));
    let security = load_certificates(&config)?;
    let dialer = security.clone().map_or(Dialer::Plain, Dialer::Tls);
    // The store first: a member that cannot start leaves no guardian behind.
    let consensus = start_consensus(&config, &hard, &voter, &dialer).await?;
    {
        // A snapshot may stand for entries that the log lost: known before anybody is answered.
        let states = consensus.state();
        let applied = states.borrow();
        if applied.state.is_founded() {
            voter.applied(applied.state.epoch, applied.state.ageing());
        }
    }
    let password_file = config.postgres.as_ref().and_then(|p| p.replication_password_file.clone());
    let secret =
        Secret::open(password_file, &config.node.state_dir).context("read the replication password")?;
    let (revokes, asked) = mpsc::channel(16);
    let shared = Arc::new(Shared {
        clock: clock.into(),
        hard,
        voter,
        consensus,
        peers: Peers::new(dialer),
        security,
        own: watch::Sender::new(None),
        table: watch::Sender::new(BTreeMap::new()),
        revokes,
        secret,
        strangers: Arc::new(AtomicU64::new(0)),
        proxy: crate::proxy::Counters::default(),
        pooler: crate::pooler::Handle::default(),
        takeover: watch::Sender::new(None),
        asked: watch::Sender::new(crate::runtime::shared::Asked::default()),
        decided: watch::Sender::new((String::new(), String::new())),
        recorder: Recorder::start(&config, clock.into()),
        config,
    });
    Ok((shared, asked))
}

/// Runs a data member.
async fn run_postgres(
    shared: Arc<Shared>,
    postgres: Postgres,
    asked: mpsc::Receiver<RevokeAsk>,
) -> anyhow::Result<After> {
    let guardian = adopt_guardian(&shared.config, &postgres).await?;
    let dialer = shared.security.clone().map_or(Dialer::Plain, Dialer::Tls);
    let lease = Lease::start(guardian.page().clone(), Arc::clone(&shared.voter), shared.clock, dialer)
        .context("start the lease thread")?;
    let local = make_local(&shared, postgres, guardian, lease).await?;
    local.recall_forked();
    adopt_instance(&local).await?;
    let ended = live(&shared, &local, asked).await?;
    shut_down(&shared).await;
    if ended == Ended::Left
        && let Err(error) = local.guardian.quit().await
    {
        tracing::warn!(%error, "the guardian did not end");
    }
    Ok(if ended == Ended::GuardianLost { After::StartOver } else { After::Exit })
}

/// Ends Raft in order.
pub(super) async fn shut_down(shared: &Shared) {
    tracing::info!("ends");
    if tokio::time::timeout(SHUTDOWN_LIMIT, shared.consensus.shutdown()).await.is_err() {
        tracing::warn!("raft did not end in time");
    }
}

fn prepare_directory(config: &Config) -> anyhow::Result<()> {
    let dir = &config.node.state_dir;
    if !dir.exists() {
        // Postgres's user must get through to its password file; each secret has its own mode.
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)
            .with_context(|| format!("create {}", dir.display()))?;
    }
    Ok(())
}

fn load_certificates(config: &Config) -> anyhow::Result<Option<Arc<Security>>> {
    match &config.tls {
        Tls::LoopbackOnly | Tls::Insecure => Ok(None),
        Tls::Mutual(files) => {
            Ok(Some(Arc::new(Security::load(&config.cluster, files).context("read [tls]")?)))
        }
    }
}

async fn adopt_guardian(config: &Config, postgres: &Postgres) -> anyhow::Result<Guardian> {
    let exe = std::env::current_exe().context("find the rhone binary")?;
    let options = GuardianOptions {
        exe,
        state_dir: config.node.state_dir.clone(),
        name: config.node.name.clone(),
        fence: crate::guardian::FenceChoice::default(),
        watchdog: watchdog(postgres),
        dead_man: dead_man(postgres),
    };
    let guardian = match Guardian::connect_or_spawn(options.clone()).await {
        Err(GuardianError::Hung { pid, .. }) => {
            replace_hung_guardian(config, postgres, pid).await?;
            Guardian::connect_or_spawn(options).await.context("start another guardian")?
        }
        started => started.context("start the guardian")?,
    };
    tracing::info!(pid = guardian.pid(), adopted = guardian.adopted(), "guardian");
    if let Ok(status) = guardian.status().await {
        tracing::info!(backend = ?status.backend, memory = ?status.memory, priority = ?status.priority,
            oom_score_adj = status.oom_score_adj, "how the guardian fences");
    }
    Ok(guardian)
}

/// The device that is configured, and a warning when it cannot be used.
fn watchdog(postgres: &Postgres) -> Option<(PathBuf, u32)> {
    let device = postgres.watchdog.clone()?;
    if let Err(error) = rustix::fs::access(&device, rustix::fs::Access::WRITE_OK) {
        tracing::warn!(device = %device.display(), %error,
            "the watchdog cannot be written to: give the device to the user that runs rhone, or remove postgres.watchdog");
    }
    Some((device, u32::try_from(postgres.watchdog_timeout.as_secs()).unwrap_or(u32::MAX)))
}

/// The port that the dead-man is to watch, and a warning when it cannot.
fn dead_man(postgres: &Postgres) -> Option<u16> {
    if postgres.dead_man == DeadMan::Off {
        return None;
    }
    if let Err(error) = crate::guardian::rehearse_dead_man() {
        tracing::warn!(%error, "the dead-man cannot be set up: give CAP_NET_ADMIN to rhone, or remove postgres.dead-man");
    }
    Some(postgres.listen.port)
}

/// A guardian that does not run fences nobody: what it guards is killed, then it is replaced.
async fn replace_hung_guardian(config: &Config, postgres: &Postgres, pid: Option<u32>) -> anyhow::Result<()> {
    let lock = config.node.state_dir.join("guardian.lock");
    let noted = || std::fs::read_to_string(&lock).ok().and_then(|text| text.trim().parse().ok());
    let pid: u32 = pid.or_else(noted).context("find the guardian that does not answer")?;
    tracing::error!(pid, "the guardian does not answer: kills what it guards, and it");
    let data_dir = postgres.data_dir.clone();
    tokio::task::spawn_blocking(move || emergency::kill_instance(&data_dir, None, KILL_LIMIT))
        .await?
        .context("kill the instance")?;
    let pid = i32::try_from(pid).ok().and_then(rustix::process::Pid::from_raw).context("its pid")?;
    let fd = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty())?;
    rustix::process::pidfd_send_signal(&fd, rustix::process::Signal::KILL)?;
    // Its lock and its socket are free only once it is gone.
    let limit = rustix::event::Timespec { tv_sec: 5, tv_nsec: 0 };
    let ended = tokio::task::spawn_blocking(move || {
        let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, Some(&limit))
    })
    .await??;
    anyhow::ensure!(ended > 0, "the guardian, process {}, does not end", pid.as_raw_pid());
    Ok(())
}

async fn start_consensus(
    config: &Config,
    hard: &Arc<HardStateFile>,
    voter: &Arc<VoterLease>,
    dialer: &Dialer,
) -> anyhow::Result<Consensus> {
    let known = hard.get();
    let identity = Identity {
        cluster: config.cluster.clone(),
        generation: known.generation,
        node: known.node_id,
        incarnation: known.incarnation,
        session: known.session,
    };
    let options = |identity: Identity| Options {
        store: StoreAt::Dir(config.node.state_dir.clone()),
        host: Arc::new(ThisHost),
        identity,
        hard: Arc::clone(hard),
        observer: Arc::clone(voter) as Arc<dyn rhone_consensus::observer::LogObserver>,
        timings: Timings::default(),
        address_book: AddressBook::default(),
        connector: Arc::new(dialer.clone()),
    };
    let mut again = identity.clone();
    match Consensus::start(options(identity)).await {
        Err(ConsensusError::StoreLost { store }) => {
            // Its votes are forgotten: it joins as another voter, and never under the old id (docs/safety.md 11).
            let renewed = hard.renew()?;
            tracing::warn!(store = %store.display(), node = %renewed.node_id,
                "the raft store is gone: this member rejoins under a new id");
            again.node = renewed.node_id;
            again.incarnation = renewed.incarnation;
            Ok(Consensus::start(options(again)).await?)
        }
        started => Ok(started?),
    }
}

async fn make_local(
    shared: &Arc<Shared>,
    config: Postgres,
    guardian: Guardian,
    lease: Lease,
) -> anyhow::Result<Arc<Local>> {
    let major = rhone_pgctl::datadir::major_of(&config.data_dir).ok().flatten();
    let install = Installation::find(config.bin_dir.as_deref(), major).await?;
    let user = postgres_user(&config)?;
    make_postgres_directories(&config, &user)?;
    if rhone_pgctl::clone::recover_swap(&config.data_dir)? {
        tracing::info!("finished a swap of the data directory that was interrupted");
    }
    Ok(Arc::new(Local::new(Arc::clone(shared), guardian, lease, config, install, user)))
}

/// Who runs Postgres: as configured, else the data directory's owner, else `postgres`; without root
/// always this user.
pub(super) fn postgres_user(config: &Postgres) -> anyhow::Result<OsUser> {
    let me = OsUser::current();
    if me.uid != 0 {
        return Ok(me);
    }
    if let Some(name) = &config.user {
        return Ok(OsUser::by_name(name)?);
    }
    match OsUser::owner_of(&config.data_dir) {
        Ok(owner) if owner.uid != 0 => Ok(owner),
        Ok(_) | Err(_) => Ok(OsUser::by_name("postgres")?),
    }
}

/// Makes the directories that Postgres needs where they are missing, its user's.
fn make_postgres_directories(config: &Postgres, user: &OsUser) -> anyhow::Result<()> {
    let parent = config.data_dir.parent();
    let work = crate::runtime::local::work_dir(&config.data_dir);
    for (dir, mode) in
        [(Some(config.socket_dir.as_path()), 0o755), (parent, 0o755), (Some(work.as_path()), 0o700)]
    {
        let Some(dir) = dir.filter(|dir| !dir.exists()) else { continue };
        std::fs::DirBuilder::new()
            .recursive(true)
            .mode(mode)
            .create(dir)
            .and_then(|()| std::os::unix::fs::chown(dir, Some(user.uid), Some(user.gid)))
            .with_context(|| format!("create {}", dir.display()))?;
    }
    Ok(())
}

/// Takes over what a former supervisor left to the guardian: a primary goes on under its own epoch,
/// renewed from the first moment on.
async fn adopt_instance(local: &Arc<Local>) -> anyhow::Result<()> {
    if !local.guardian.page().state().has_instance() {
        return end_leftovers(local).await;
    }
    // Without its word a healthy primary would look like one that nobody granted.
    let status = local.guardian.status().await.context("ask the guardian what it runs")?;
    match status.lease.lease() {
        PageLease::Until { epoch, .. } if epoch > 0 => {
            let epoch = rhone_consensus::ids::Epoch(epoch);
            local.adopt_primary(epoch);
            let promise = local.shared.hard.get().promise;
            tracing::info!(%epoch, %promise, "adopts a running primary");
            if promise <= epoch {
                local.lease.set_target(local.lease_target(epoch));
            }
        }
        PageLease::NotNeeded | PageLease::Until { .. } => tracing::info!("adopts a running instance"),
    }
    Ok(())
}

/// A guardian that died takes the postmaster with it, and a busy backend may go on for a while: what is
/// left of an instance of ours is killed. Another's is left alone, and refused by the first look.
async fn end_leftovers(local: &Arc<Local>) -> anyhow::Result<()> {
    let data_dir = &local.config.data_dir;
    let ours = data_dir.join(rhone_pgctl::settings::MANAGED_FILE).exists();
    // A pg_rewind that outlived its supervisor is left to finish.
    let rewinding = local.shared.hard.get().sentinel.is_some();
    if !ours || rewinding || rhone_pgctl::process::stray_processes(data_dir).is_empty() {
        return Ok(());
    }
    let killed = rhone_pgctl::process::kill_everything(data_dir, KILL_LIMIT).await?;
    tracing::warn!(killed, "killed what was left of an instance without a guardian");
    Ok(())
}

pub(super) type Task = Pin<Box<dyn Future<Output = anyhow::Result<()>> + Send>>;

/// Runs every loop of the member until the node's loop ends or one of them fails.
async fn live(
    shared: &Arc<Shared>,
    local: &Arc<Local>,
    asked: mpsc::Receiver<RevokeAsk>,
) -> anyhow::Result<Ended> {
    let view = publish::start(shared, Some(local));
    let tasks = serving(shared, &local.user, view).await?;
    crate::proxy::start(shared, Some(local)).await?;
    tokio::spawn(flushed(Arc::clone(local)));
    hooks::start(shared, &local.user);
    let leave = leave_on_signal()?;
    let node = tokio::spawn(node::run(Arc::clone(local), asked, leave));
    tokio::select! {
        ended = node => ended.context("the node's loop"),
        result = all(tasks) => {
            result?;
            bail!("a task of the supervisor ended")
        }
    }
}

/// Begins what every member does: answers peers, operators and checks, reports, leads when it is to.
/// Each of these tasks goes on until it fails.
pub(super) async fn serving(
    shared: &Arc<Shared>,
    owner: &OsUser,
    view: watch::Receiver<Arc<LocalView>>,
) -> anyhow::Result<Vec<Task>> {
    let settings = first_settings(&shared.config);
    let operator = Arc::new(RuntimeOperator::new(Arc::clone(shared)));
    let admin = admin_service(Arc::clone(&operator));
    crate::pooler::start(shared)?;
    let http = listen(&shared.config.node.http.to_string(), "node.http").await?;
    let reflection = discovery::reflection()?;
    let shown = view.clone();
    let events = Arc::new(move || operator.recent_events());
    let mut tasks: Vec<Task> = vec![
        Box::pin(serve_grpc(Arc::clone(shared), admin.clone(), reflection.clone()).await?),
        Box::pin(serve_socket(shared, owner, admin, reflection).await?),
        Box::pin(async move {
            health::serve(http, view, events, || Duration::from_nanos(Clock.now().as_nanos())).await;
            Ok(())
        }),
        Box::pin(fatal(Arc::clone(shared))),
        Box::pin(generation::watch(Arc::clone(shared))),
    ];
    let context = Arc::clone(shared);
    tasks.push(Box::pin(async move {
        report::run(context).await;
        Ok(())
    }));
    let (context, first) = (Arc::clone(shared), settings.clone());
    tasks.push(Box::pin(async move {
        leader::run(context, first, crate::decide::cluster).await;
        Ok(())
    }));
    tokio::spawn(membership(Arc::clone(shared), settings));
    tokio::spawn(crate::footprint::after_the_start());
    crate::notify::ready(shown);
    if let Some(security) = &shared.security {
        tokio::spawn(tls::watch(Arc::clone(security)));
    }
    Ok(tasks)
}

/// Runs tasks until one of them ends, which is the member's end.
pub(super) async fn all(tasks: Vec<Task>) -> anyhow::Result<()> {
    futures_util::future::try_join_all(tasks.into_iter().map(run_task)).await.map(drop)
}

/// Runs a task as one of its own; its end, good or bad, is the member's.
async fn run_task(task: Task) -> anyhow::Result<()> {
    tokio::spawn(task).await??;
    bail!("a task of the supervisor ended")
}

async fn fatal(shared: Arc<Shared>) -> anyhow::Result<()> {
    let mut fatal = shared.consensus.fatal();
    let reason = fatal.wait_for(Option::is_some).await?.clone().unwrap_or_default();
    Err(RaftStopped { reason }.into())
}

async fn listen(address: &str, key: &str) -> anyhow::Result<TcpListener> {
    TcpListener::bind(address).await.with_context(|| format!("listen on {address} ({key})"))
}

async fn serve_grpc(
    shared: Arc<Shared>,
    admin: AdminServer<AdminService<RuntimeOperator>>,
    reflection: Routes,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send> {
    let listener = listen(&shared.config.node.listen.to_string(), "node.listen").await?;
    let services = [discovery::ADMIN, discovery::AGENT, discovery::RAFT];
    let found = discovery::with_health(reflection, &services).await;
    let router = tonic::transport::Server::builder()
        // Idle connections are the kernel's keepalive's to end (`tls::incoming`); this one finds what it cannot.
        .http2_keepalive_interval(Some(Duration::from_secs(60)))
        .http2_keepalive_timeout(Some(Duration::from_secs(5)))
        .max_concurrent_streams(64)
        .layer(Access::new(&shared.config.cluster, &[], Arc::clone(&shared.strangers)))
        .add_routes(found)
        .add_service(shared.consensus.service())
        .add_service(
            AgentServer::new(AgentService::new(Arc::clone(&shared))).max_decoding_message_size(1 << 20),
        )
        .add_service(admin);
    let incoming = tls::incoming(listener, shared.security.clone());
    Ok(async move { Ok(router.serve_with_incoming(incoming).await?) })
}

async fn serve_socket(
    shared: &Shared,
    owner: &OsUser,
    admin: AdminServer<AdminService<RuntimeOperator>>,
    reflection: Routes,
) -> anyhow::Result<impl Future<Output = anyhow::Result<()>> + Send + use<>> {
    let incoming = socket::bind(&shared.config.node.state_dir, owner).context("listen on rhone.sock")?;
    let found = discovery::with_health(reflection, &[discovery::ADMIN]).await;
    let uids = [0, OsUser::current().uid, owner.uid];
    let router = tonic::transport::Server::builder()
        .layer(Access::new(&shared.config.cluster, &uids, Arc::clone(&shared.strangers)))
        .add_routes(found)
        .add_service(admin);
    Ok(async move { Ok(router.serve_with_incoming(incoming).await?) })
}

/// Becomes a member, and keeps the state's record of this member right.
async fn membership(shared: Arc<Shared>, settings: Settings) {
    found::until_member(&shared, settings).await;
    let mut state = shared.consensus.state();
    loop {
        let applied = Arc::clone(&state.borrow_and_update());
        let me = shared.member();
        if applied.state.members.get(&me.node).is_some_and(|known| known.kind != me.kind) {
            tracing::error!(
                "node.kind was changed, and a member stays what it is: change it back, or empty state-dir"
            );
            tokio::time::sleep(KIND_TOLD_EVERY).await;
            continue;
        }
        if let Some(system_id) = applied.state.system_id
            && shared.hard.get().system_id != Some(system_id)
        {
            shared.consensus.set_system_id(system_id);
            let hard = Arc::clone(&shared.hard);
            let kept = tokio::task::spawn_blocking(move || {
                hard.update(|h| h.system_id = Some(system_id)).map(|_| ())
            });
            if !matches!(kept.await, Ok(Ok(()))) {
                tracing::error!("could not keep the system identifier");
            }
        }
        let founded = applied.state.is_founded();
        if founded && applied.state.members.get(&me.node) != Some(&me) {
            if let Err(why) = introduce(&shared).await {
                tracing::debug!(reason = %why, "not admitted yet: asks again");
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
            continue;
        }
        if state.changed().await.is_err() {
            return;
        }
    }
}

/// Says who this member is, to the Raft leader, or to any member that answers and knows it: nobody can reach a member
/// that has moved, so that it hears of no leader before it has said where it is.
async fn introduce(shared: &Arc<Shared>) -> Result<(), String> {
    let status = shared.consensus.status();
    let own = shared.config.node.advertise.to_string();
    if let Some(node) = status.leader.and_then(|leader| status.nodes.get(&leader))
        && node.addr != own
    {
        return found::join(shared, &node.addr).await;
    }
    let peers = shared.config.node.peers.iter().map(ToString::to_string);
    let known: BTreeSet<String> = status.nodes.values().map(|node| node.addr.clone()).chain(peers).collect();
    let known: Vec<String> = known.into_iter().filter(|address| *address != own).collect();
    let mut why = "no other member answers".to_owned();
    for (address, answer) in found::ask_all(shared, &known).await {
        if answer.is_none() {
            continue;
        }
        match found::join(shared, &address).await {
            Ok(()) => return Ok(()),
            Err(reason) => why = format!("{address}: {reason}"),
        }
    }
    Err(why)
}

/// Reads the primary's flushed position each renewal, for the lease to carry. Where nothing is renewed it
/// is not woken.
async fn flushed(local: Arc<Local>) {
    let mut connection = LocalConnection::new(local.target());
    let mut wal = WalWatch::new(&local.config.data_dir);
    let renewal = || {
        let every = local.shared.consensus.state().borrow().state.counting().renewal_ms;
        Duration::from_millis(u64::from(every.max(10)))
    };
    loop {
        local.lease.wanted().await;
        let every = renewal();
        let mut ticker = Ticker::every(every, local.shared.clock);
        // The first comes at once, and two looks are a renewal apart.
        ticker.tick().await;
        while local.lease.target_epoch().is_some() && every == renewal() {
            ticker.tick().await;
            if local.lease.target_epoch().is_none() || local.frozen() || !local.has_instance() {
                connection.close();
                wal.forget();
            } else if let Ok(lsn) = wal.flushed(&mut connection, FLUSH_LIMIT).await {
                local.lease.set_flushed(lsn);
            }
        }
        connection.close();
        wal.forget();
    }
}

pub(super) fn leave_on_signal() -> anyhow::Result<watch::Receiver<bool>> {
    let (tell, told) = watch::channel(false);
    let mut terminate = signal(SignalKind::terminate()).context("listen for SIGTERM")?;
    let mut interrupt = signal(SignalKind::interrupt()).context("listen for SIGINT")?;
    tokio::spawn(async move {
        loop {
            tokio::select! {
                _ = terminate.recv() => {}
                _ = interrupt.recv() => {}
            }
            crate::notify::stopping();
            if tell.send(true).is_err() {
                return;
            }
        }
    });
    Ok(told)
}

/// The first values of the replicated settings, as this member's file has them.
fn first_settings(config: &Config) -> Settings {
    let bootstrap = &config.bootstrap;
    Settings {
        timing: bootstrap.timing,
        max_lag_on_failover: bootstrap.max_lag_on_failover,
        dead_member_timeout_ms: bootstrap.dead_member_timeout_ms,
        sync: bootstrap.sync.unwrap_or_default(),
        sync_required: bootstrap.sync_required,
        postgres: bootstrap.postgres.clone(),
        pg_hba: bootstrap.pg_hba.clone(),
        pg_ident: bootstrap.pg_ident.clone(),
    }
}

impl Config {
    /// Returns where clients and standbys reach this member's Postgres; empty for a witness.
    pub fn postgres_advertise(&self) -> String {
        self.postgres.as_ref().map(|postgres| postgres.advertise.to_string()).unwrap_or_default()
    }

    /// Returns where health checks reach this member: the host that peers use, with HTTP's port.
    pub fn http_advertise(&self) -> String {
        let host =
            if self.node.http.is_wildcard() { &self.node.advertise.host } else { &self.node.http.host };
        crate::config::Address { host: host.clone(), port: self.node.http.port }.to_string()
    }

    /// Returns the member's priority; 0 for a witness, which is never promoted.
    pub fn priority(&self) -> u32 {
        self.postgres.as_ref().map_or(0, |postgres| postgres.priority)
    }
}
