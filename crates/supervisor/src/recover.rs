//! What a member that is not running knows of a cluster whose majority is gone, and going on from it
//! alone (decision 0042).

use std::collections::BTreeSet;
use std::os::unix::fs::MetadataExt;
use std::sync::Arc;
use std::time::Duration;

use rhone_consensus::ConsensusError;
use rhone_consensus::command::{MemberKind, WallTime};
use rhone_consensus::identity::PROTOCOL;
use rhone_consensus::ids::{NodeId, Replica};
use rhone_consensus::proto::Identity;
use rhone_consensus::recover::{Recovered, Survivor};
use rhone_consensus::settings::SyncMode;
use rhone_consensus::state::ClusterState;
use rhone_consensus::store::hard::{HardState, HardStateFile};
use rhone_pgctl::install::Installation;
use rhone_pgctl::user::OsUser;
use serde::Serialize;

use crate::api::proto::v1::{HelloReply, HelloRequest, StoreState};
use crate::cli::{CliError, Exit};
use crate::config::{Config, Postgres, Tls};
use crate::runtime::clock::wall_time;
use crate::runtime::local::data_here;
use crate::runtime::peers::{CallError, Peers};
use crate::runtime::secret::Secret;
use crate::tls::{Dialer, Security};

/// How long a member may take to say that it is there.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// How often one that does not is asked.
const ASK_TIMES: u32 = 3;

/// Between two times.
const ASK_AGAIN: Duration = Duration::from_millis(500);

/// How long `pg_controldata` may take.
const CONTROL_LIMIT: Duration = Duration::from_secs(10);

/// What this member knows, as it is told to a person before anything is changed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Knowledge {
    /// The cluster's name.
    pub cluster: String,
    /// This member's.
    pub member: String,
    /// The generation that ends.
    pub generation: u64,
    /// The newest epoch that this member knows.
    pub epoch: u64,
    /// Who owned the last epoch that had an owner, as far as this member knows.
    pub primary: Option<String>,
    /// The end of the WAL here; absent where it cannot be read.
    pub position: Option<String>,
    /// The others.
    pub others: Vec<Other>,
    /// How many voters answer, this one among them.
    pub voters_there: usize,
    /// How many there are.
    pub voters: usize,
    /// How commits waited for standbys.
    pub sync: &'static str,
    /// What may be lost, a sentence each; none: this member has every commit that it knows was acknowledged.
    pub may_be_lost: Vec<String>,
}

/// Another member.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Other {
    /// Its name.
    pub name: String,
    /// `data` or `witness`.
    pub kind: &'static str,
    /// Where its peers reach it.
    pub address: String,
    /// Whether it votes.
    pub votes: bool,
    /// Whether it answers as a member of this generation.
    pub there: bool,
    /// What it says, or why it says nothing.
    pub says: String,
}

/// A stopped member's files, open.
#[derive(Debug)]
pub struct Stopped {
    hard: HardStateFile,
    survivor: Survivor,
    secret: Option<std::path::PathBuf>,
}

fn refused(message: impl Into<String>, hint: impl Into<String>) -> CliError {
    let message = format!("refused, nothing was changed: {}", message.into());
    CliError::new(Exit::Refused, message).hint(hint)
}

/// Opens the stopped member's files and asks the others who is there; changes nothing that anybody sees.
///
/// # Errors
/// It cannot go on alone, or need not, in words for a person.
pub async fn look(config: &Config) -> Result<(Knowledge, Stopped), CliError> {
    let dir = &config.node.state_dir;
    let Some(postgres) = &config.postgres else {
        return Err(refused(
            format!("{} is a witness and has no data", config.node.name),
            "run this on the data member that has the most; if none is left, restore a backup",
        ));
    };
    let known = HardStateFile::peek(dir).map_err(of_consensus)?.ok_or_else(|| {
        refused(
            format!("there is no member's state in {}", dir.display()),
            "`-c FILE` names the configuration of the member on this machine",
        )
    })?;
    owned_by_us(config)?;
    let data = whole(postgres, &known)?;
    let hard = HardStateFile::open_or_create(dir).map_err(of_consensus)?.0;
    let survivor = Survivor::open(dir, &hard).map_err(of_consensus)?;
    let me = Replica { node: known.node_id, data };
    let answers = ask(config, &known, survivor.state()).await?;
    let position = position(postgres).await;
    let knowledge = knowledge(&known, &survivor, me, position, &answers);
    need(&knowledge, &survivor, &answers, known.node_id)?;
    let secret = postgres.replication_password_file.clone();
    Ok((knowledge, Stopped { hard, survivor, secret }))
}

/// What is written as somebody else could not be read by the supervisor any more.
fn owned_by_us(config: &Config) -> Result<(), CliError> {
    let file = config.node.state_dir.join("hard-state");
    let owner = std::fs::metadata(&file)
        .map_err(|error| CliError::failed(format!("look at {}: {error}", file.display())))?
        .uid();
    if owner == OsUser::current().uid {
        return Ok(());
    }
    let user = OsUser::by_uid(owner).name;
    Err(CliError::new(Exit::Usage, format!("{} belongs to {user}", file.display()))
        .hint(format!("run this as that user: `sudo -u {user} rhone recover --force-new-cluster`")))
}

/// Only a data directory that is whole can be gone on from.
fn whole(postgres: &Postgres, known: &HardState) -> Result<rhone_consensus::ids::DataId, CliError> {
    let dir = postgres.data_dir.display();
    let found = data_here(&postgres.data_dir, known)
        .map_err(|error| CliError::failed(format!("look at {dir}: {error}")))?;
    found.ok_or_else(|| {
        let why = match &known.sentinel {
            Some(sentinel) => {
                format!("a {:?} of it was begun and is not finished", sentinel.kind).to_lowercase()
            }
            None if known.floor.is_some() => "it has not reached the point where it is consistent".to_owned(),
            None => "it is empty, or not the one that this member has had".to_owned(),
        };
        refused(
            format!("the data directory {dir} does not count: {why}"),
            "run this on another data member; if none is left, restore a backup",
        )
    })
}

fn of_consensus(error: ConsensusError) -> CliError {
    match error {
        ConsensusError::InUse { path } => refused(
            format!("rhone runs here: {} is in use", path.display()),
            "stop it first: `systemctl stop rhone`",
        ),
        ConsensusError::Refused { reason } => refused(reason, "`rhone status` on another member shows more"),
        ConsensusError::StoreUnavailable { .. } => refused(
            error.to_string(),
            "the disk of node.state-dir has to be well: make room on it, or mend it, and run this again",
        ),
        ConsensusError::StoreDamaged { .. } | ConsensusError::StoreLost { .. } => {
            refused(error.to_string(), "run this on another member whose store is whole")
        }
        error @ (ConsensusError::NotLeader { .. }
        | ConsensusError::NoQuorum
        | ConsensusError::Unknown
        | ConsensusError::TooLarge { .. }
        | ConsensusError::MembersChanging
        | ConsensusError::Fatal { .. }
        | ConsensusError::HardStateDamaged { .. }
        | ConsensusError::Io { .. }) => CliError::from(anyhow::Error::from(error)),
    }
}

async fn position(postgres: &Postgres) -> Option<String> {
    let dir = &postgres.data_dir;
    let major = rhone_pgctl::datadir::major_of(dir).ok().flatten();
    let install = Installation::find(postgres.bin_dir.as_deref(), major).await.ok()?;
    let user = OsUser::owner_of(dir).ok()?;
    let control = rhone_pgctl::control::read_control(&install, dir, &user, CONTROL_LIMIT).await.ok()?;
    let end = rhone_pgctl::end_of_wal::end_of_wal(dir, &control).await.ok()?;
    Some(end.to_string())
}

type Answer = (NodeId, Result<HelloReply, String>);

/// Asks the members that this one knows, at the addresses that are recorded.
async fn ask(config: &Config, known: &HardState, state: &ClusterState) -> Result<Vec<Answer>, CliError> {
    let dialer = match &config.tls {
        Tls::LoopbackOnly | Tls::Insecure => Dialer::Plain,
        Tls::Mutual(files) => {
            let security = Security::load(&config.cluster, files);
            Dialer::Tls(Arc::new(security.map_err(|error| CliError::new(Exit::Usage, error.to_string()))?))
        }
    };
    let peers = Peers::new(dialer);
    let from = Identity {
        cluster: config.cluster.clone(),
        generation: known.generation.0,
        system_identifier: known.system_id.map_or(0, rhone_pgctl::wal::SystemId::get),
        node_id: known.node_id.0,
        incarnation: known.incarnation.0.to_be_bytes().to_vec(),
        session: known.session.0,
        protocol_version: PROTOCOL.newest,
        run: 0,
        protocol_oldest: PROTOCOL.oldest,
    };
    let request = HelloRequest { from: Some(from), name: config.node.name.clone() };
    let others = state.members.values().filter(|member| member.node != known.node_id);
    let calls = others.map(|member| {
        let (peers, request) = (&peers, &request);
        async move {
            let mut answer = Err(String::new());
            for _ in 0..ASK_TIMES {
                let request = request.clone();
                let call = peers.call(&member.address, ASK_LIMIT, |mut client| async move {
                    client.hello(request).await
                });
                answer = call.await.map_err(|error| match error {
                    CallError::TimedOut { limit, .. } => format!("no answer within {} s", limit.as_secs()),
                    CallError::Failed { message, .. } => format!("no answer: {message}"),
                    CallError::Address { address } => format!("`{address}` is no address"),
                });
                if answer.is_ok() {
                    break;
                }
                tokio::time::sleep(ASK_AGAIN).await;
            }
            (member.node, answer)
        }
    });
    Ok(futures_util::future::join_all(calls).await)
}

/// Whether that is the word of the member that the state means.
fn is_there(node: NodeId, known: &HardState, answer: &HelloReply) -> bool {
    let same = |from: &Identity| from.node_id == node.0 && from.generation == known.generation.0;
    answer.store() == StoreState::Member && answer.from.as_ref().is_some_and(same)
}

fn knowledge(
    known: &HardState,
    survivor: &Survivor,
    me: Replica,
    position: Option<String>,
    answers: &[Answer],
) -> Knowledge {
    let state = survivor.state();
    let voters: BTreeSet<NodeId> = survivor.voters().into_iter().flatten().collect();
    let name = |node: NodeId| state.members.get(&node).map_or_else(|| node.to_string(), |m| m.name.clone());
    let mut others: Vec<Other> = answers
        .iter()
        .filter_map(|(node, answer)| Some((state.members.get(node)?, answer)))
        .map(|(member, answer)| Other {
            name: member.name.clone(),
            kind: if member.kind == MemberKind::Witness { "witness" } else { "data" },
            address: member.address.clone(),
            votes: voters.contains(&member.node),
            there: answer.as_ref().is_ok_and(|answer| is_there(member.node, known, answer)),
            says: says(member.node, known, answer),
        })
        .collect();
    others.sort_by(|one, other| one.name.cmp(&other.name));
    let covered = |policy: &&rhone_consensus::policy::Policy| !policy.covered(&BTreeSet::from([me]), false);
    let mut may_be_lost: Vec<String> = state
        .policies
        .iter()
        .filter(covered)
        .map(|policy| {
            format!(
                "in epoch {} {} acknowledged a commit {}: such commits may be missing here",
                policy.epoch,
                name(policy.owner.node),
                policy.kind
            )
        })
        .collect();
    if state.grant.as_ref().is_some_and(|grant| grant.owner != me.node) {
        may_be_lost.push(
            "what others decided after this member heard of them last is not known here: a later epoch, and \
             commits acknowledged in it, may exist"
                .to_owned(),
        );
    }
    let there = answers.iter().filter(|(node, answer)| {
        voters.contains(node) && answer.as_ref().is_ok_and(|answer| is_there(*node, known, answer))
    });
    Knowledge {
        cluster: state.cluster.clone(),
        member: name(me.node),
        generation: known.generation.0,
        epoch: state.epoch.0,
        primary: state.last_owner().map(name),
        position,
        others,
        voters_there: there.count() + usize::from(voters.contains(&me.node)),
        voters: voters.len(),
        sync: SyncMode::name(state.settings.sync),
        may_be_lost,
    }
}

fn says(node: NodeId, known: &HardState, answer: &Result<HelloReply, String>) -> String {
    match answer {
        Err(why) => why.clone(),
        Ok(answer) if is_there(node, known, answer) && answer.data_position.is_empty() => {
            "is there".to_owned()
        }
        Ok(answer) if is_there(node, known, answer) => format!("is there, at {}", answer.data_position),
        Ok(answer) if answer.from.as_ref().is_some_and(|from| from.generation > known.generation.0) => {
            let generation = answer.from.as_ref().map_or(0, |from| from.generation);
            format!("is a member of generation {generation}: the cluster was begun anew already")
        }
        Ok(_) => "its store is empty: it waits for a cluster to join".to_owned(),
    }
}

/// Refuses what would make a second cluster beside one that lives, or can.
fn need(knowledge: &Knowledge, survivor: &Survivor, answers: &[Answer], me: NodeId) -> Result<(), CliError> {
    if let Some(newer) = answers
        .iter()
        .filter_map(|(_, answer)| answer.as_ref().ok())
        .filter(|answer| answer.store() == StoreState::Member)
        .find(|answer| answer.from.as_ref().is_some_and(|from| from.generation > knowledge.generation))
    {
        return Err(refused(
            format!("{} says that the cluster was begun anew already, without this member", newer.name),
            "empty node.state-dir here and start rhone: it joins as a new member",
        ));
    }
    let there: BTreeSet<&str> =
        knowledge.others.iter().filter(|o| o.there).map(|o| o.name.as_str()).collect();
    let members = &survivor.state().members;
    let is = |node: &NodeId| {
        *node == me || members.get(node).is_some_and(|member| there.contains(member.name.as_str()))
    };
    let configs = survivor.voters();
    let majority =
        |voters: &BTreeSet<NodeId>| voters.iter().filter(|node| is(node)).count() > voters.len() / 2;
    if !configs.is_empty() && configs.iter().all(majority) {
        let names: Vec<&str> = there.into_iter().collect();
        let with = if names.is_empty() { String::new() } else { format!(" with {}", names.join(", ")) };
        return Err(refused(
            format!("this member{with} is a majority of the voters: nothing is lost for good"),
            "start rhone here: `systemctl start rhone`",
        ));
    }
    Ok(())
}

impl Stopped {
    /// Makes this member the only one of a new generation.
    ///
    /// # Errors
    /// Nothing was changed, or it is to be done again; the words say which.
    pub fn begin_anew(self, config: &Config, by: String) -> Result<Recovered, CliError> {
        let recovered = self.survivor.begin_anew(&self.hard, by, WallTime(wall_time())).map_err(|error| {
            let again = matches!(error, ConsensusError::Io { .. } | ConsensusError::Fatal { .. });
            let error = of_consensus(error);
            if again {
                error.hint("it may be done in part: run this again, before rhone is started here")
            } else {
                error
            }
        })?;
        // An old primary that comes back must not get a standby, nor an old standby a primary.
        Secret::open(self.secret, &config.node.state_dir)
            .and_then(|secret| {
                secret.forget()?;
                secret.make()
            })
            .map_err(|error| {
                CliError::failed(format!(
                    "it is done; the replication password could not be changed: {error}"
                ))
            })?;
        Ok(recovered)
    }
}
