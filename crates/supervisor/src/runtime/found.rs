//! Founding (docs/safety.md 11): all founding members agree on one founder before anything exists, and a
//! member whose store is empty never founds a second cluster beside one that is there.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use rhone_consensus::command::{ClusterCommand, Member, MemberKind};
use rhone_consensus::ids::{Epoch, Incarnation, NodeId};
use rhone_consensus::raft::PeerNode;
use rhone_consensus::settings::{Settings, SyncMode};
use rhone_consensus::store::hard::{Founder, HardState};
use rhone_consensus::tags::Tags;
use rhone_pgctl::wal::WalPosition;

use crate::api::proto::v1::{AcceptFounderRequest, HelloReply, HelloRequest, JoinRequest, StoreState};
use crate::config::Bootstrap;
use crate::decide::members::{heeded, voter_count};
use crate::runtime::shared::Shared;
use crate::runtime::{codec, generation};

/// How often the others are asked while there is no cluster.
const ASK_EVERY: Duration = Duration::from_millis(300);

/// How long one of them may take to answer.
const ASK_LIMIT: Duration = Duration::from_secs(2);

/// What the founding members' answers come to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// A cluster is there: ask this address to be admitted.
    Join(String),
    /// This member founds it.
    Found,
    /// Another one founds it.
    Follow(String),
    /// Nothing yet, and why.
    Wait(String),
    /// A person has to decide, and why.
    Stop(String),
}

/// Says what to do from the answers of all founding members, by address; nothing: no answer.
pub fn verdict(me: &str, answers: &BTreeMap<String, Option<HelloReply>>) -> Verdict {
    let generation = |a: &HelloReply| a.from.as_ref().map_or(0, |from| from.generation);
    let there = answers.iter().filter_map(|(address, answer)| Some((address, answer.as_ref()?)));
    // Members of an older generation are left over from before a recovery by force.
    let newest = there
        .filter(|(_, answer)| answer.name != me && answer.store() == StoreState::Member)
        .min_by_key(|(_, answer)| Reverse(generation(answer)));
    if let Some((address, _)) = newest {
        return Verdict::Join(address.clone());
    }
    let silent: Vec<&str> =
        answers.iter().filter(|(_, a)| a.is_none()).map(|(address, _)| address.as_str()).collect();
    if !silent.is_empty() {
        return Verdict::Wait(format!("no answer yet from {}", silent.join(", ")));
    }
    let answers: Vec<(&String, &HelloReply)> =
        answers.iter().filter_map(|(address, answer)| answer.as_ref().map(|a| (address, a))).collect();
    let names: BTreeSet<&str> = answers.iter().map(|(_, a)| a.name.as_str()).collect();
    if names.len() < answers.len() {
        return Verdict::Stop("two founding members have the same node.name".to_owned());
    }
    let peers: BTreeSet<&[String]> = answers.iter().map(|(_, a)| a.peers.as_slice()).collect();
    if peers.len() > 1 {
        return Verdict::Stop(
            "the founding members' node.peers differ: they must be the same everywhere".to_owned(),
        );
    }
    let with_data: Vec<&HelloReply> =
        answers.iter().map(|(_, a)| *a).filter(|a| a.data_system_identifier != 0).collect();
    let keeper = match keeper(&with_data) {
        Ok(keeper) => keeper,
        Err(reason) => return Verdict::Stop(reason),
    };
    let members = answers.iter().map(|(_, a)| *a);
    if members.clone().any(|a| a.kind == "data") && !members.clone().any(could_lead) {
        return Verdict::Stop(
            "no founding member could be primary: each has priority 0, or is tagged no-failover or delayed"
                .to_owned(),
        );
    }
    let founder = keeper
        .or_else(|| {
            let data = answers.iter().map(|(_, a)| *a).filter(|a| a.kind == "data");
            data.min_by_key(|a| (!could_lead(a), a.name.clone()))
        })
        .map(|a| a.name.clone());
    match founder {
        Some(founder) if founder == me => Verdict::Found,
        Some(founder) => Verdict::Follow(founder),
        None => Verdict::Stop("no founding member is a data member".to_owned()),
    }
}

/// Returns whose data the cluster begins with; nothing where nobody has any. Of several it is that of a primary all
/// of whose standbys the others are.
///
/// # Errors
/// A person has to choose.
fn keeper<'a>(with_data: &[&'a HelloReply]) -> Result<Option<&'a HelloReply>, String> {
    if let [] | [_] = with_data {
        return Ok(with_data.first().copied());
    }
    let refuse = |why: &str| {
        let found: Vec<String> = with_data
            .iter()
            .map(|a| {
                let role = if a.data_role.is_empty() { "data" } else { &a.data_role };
                let end = if a.data_position.is_empty() { "runs" } else { &a.data_position };
                format!("{}: {role} of system {}, {end}", a.name, a.data_system_identifier)
            })
            .collect();
        Err(format!(
            "more than one data directory holds data and no cluster is known ({}){why}: move aside all but the one to keep",
            found.join("; ")
        ))
    };
    let (primaries, others): (Vec<&HelloReply>, Vec<&HelloReply>) =
        with_data.iter().partition(|a| a.data_role == "primary");
    let [primary] = primaries.as_slice() else {
        return refuse(if primaries.is_empty() {
            ", and none is a primary's"
        } else {
            ", and more than one is a primary's"
        });
    };
    if others.iter().any(|a| a.data_role != "standby") {
        return refuse("");
    }
    if others.iter().any(|a| a.data_system_identifier != primary.data_system_identifier) {
        return refuse(", of different systems");
    }
    let end = |a: &HelloReply| a.data_position.parse::<WalPosition>().ok();
    let ahead = |a: &&HelloReply| {
        a.data_timeline > primary.data_timeline
            || end(a).zip(end(primary)).is_some_and(|(standby, primary)| {
                standby.timeline == primary.timeline && standby.lsn > primary.lsn
            })
    };
    if others.iter().any(ahead) {
        return refuse(", and a standby is ahead of the primary");
    }
    Ok(Some(primary))
}

/// Whether that founding member could be primary.
fn could_lead(hello: &HelloReply) -> bool {
    let tags: Tags = codec::unpack(&hello.tags).unwrap_or_default();
    hello.kind == "data" && hello.priority > 0 && !tags.no_failover && tags.delay_ms == 0
}

/// Chooses the voters, the founder among them. A witness is there to vote, so it comes before data
/// members, as long as it takes more than witnesses to decide anything.
pub fn voters(founder: NodeId, members: &[Member]) -> BTreeSet<NodeId> {
    let eligible = heeded(&members.iter().collect::<Vec<_>>());
    let count = voter_count(eligible.len());
    let mut others: Vec<&Member> = eligible.into_iter().filter(|member| member.node != founder).collect();
    others.sort_by(|one, other| one.name.cmp(&other.name));
    let of = |kind: MemberKind| others.iter().filter(move |member| member.kind == kind).map(|m| m.node);
    let witnesses = count / 2;
    std::iter::once(founder)
        .chain(of(MemberKind::Witness).take(witnesses))
        .chain(of(MemberKind::Data))
        .chain(of(MemberKind::Witness).skip(witnesses))
        .take(count)
        .collect()
}

/// Asks until this member is part of a cluster.
pub async fn until_member(shared: &Arc<Shared>, settings: Settings) {
    let (mut told, mut refused) = (String::new(), String::new());
    loop {
        if !shared.consensus.status().nodes.is_empty() {
            return;
        }
        let answers = ask_all(shared, &peer_addresses(shared)).await;
        let verdict = verdict(&shared.config.node.name, &answers);
        let news = format!("{verdict:?}");
        if news != told {
            tell(&verdict);
            told = news;
        }
        match verdict {
            Verdict::Join(address) => {
                let why = join(shared, &address).await.err().unwrap_or_default();
                if !why.is_empty() && why != refused {
                    tracing::info!(reason = %why, "not admitted yet: asks again");
                }
                refused = why;
            }
            Verdict::Found => {
                let answers: Vec<HelloReply> = answers.into_values().flatten().collect();
                found(shared, &answers, settings.clone()).await;
            }
            Verdict::Follow(_) | Verdict::Wait(_) | Verdict::Stop(_) => {}
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
}

fn tell(verdict: &Verdict) {
    match verdict {
        Verdict::Join(address) => tracing::info!(%address, "a cluster is there: asks to be admitted"),
        Verdict::Found => tracing::info!("founds the cluster"),
        Verdict::Follow(founder) => tracing::info!(%founder, "waits for the founder"),
        Verdict::Wait(reason) => tracing::info!(%reason, "waits for the other founding members"),
        Verdict::Stop(reason) => tracing::error!(%reason, "cannot found a cluster: a person has to decide"),
    }
}

fn peer_addresses(shared: &Shared) -> Vec<String> {
    shared.config.node.peers.iter().map(ToString::to_string).collect()
}

/// Asks every one of these addresses who is there.
pub async fn ask_all(shared: &Arc<Shared>, addresses: &[String]) -> BTreeMap<String, Option<HelloReply>> {
    let own = shared.config.node.advertise.to_string();
    let calls = addresses.iter().map(|address| {
        let own = own.clone();
        async move {
            if *address == own {
                return (address.clone(), Some(crate::api::agent::hello(shared)));
            }
            let request =
                HelloRequest { from: Some(shared.identity()), name: shared.config.node.name.clone() };
            let answer = shared
                .peers
                .call(address, ASK_LIMIT, |mut client| async move { client.hello(request).await })
                .await;
            if let Err(error) = &answer {
                tracing::debug!(%error, "no hello");
            }
            (address.clone(), answer.ok())
        }
    });
    futures_util::future::join_all(calls).await.into_iter().collect()
}

/// Asks to be admitted by the cluster that is there.
///
/// # Errors
/// Why it is not admitted yet.
pub async fn join(shared: &Arc<Shared>, address: &str) -> Result<(), String> {
    let mut address = address.to_owned();
    // One redirection: from the member asked to the Raft leader that it knows.
    for _ in 0..2 {
        let request = JoinRequest { from: Some(shared.identity()), member: codec::pack(&shared.member()) };
        let reply = shared
            .peers
            .call(&address, Duration::from_secs(10), |mut client| async move { client.join(request).await })
            .await;
        match reply {
            Ok(reply) if reply.admitted => {
                if let Err(error) = generation::adopt(shared, reply.generation).await {
                    tracing::error!(
                        error = format!("{error:#}"),
                        "could not take on the cluster's generation"
                    );
                }
                return Ok(());
            }
            Ok(reply) if !reply.leader_address.is_empty() && reply.leader_address != address => {
                address = reply.leader_address;
            }
            Ok(reply) => return Err(reply.reason),
            Err(error) => return Err(error.to_string()),
        }
    }
    Err("who leads raft is not known there".to_owned())
}

async fn found(shared: &Arc<Shared>, answers: &[HelloReply], settings: Settings) {
    let name = shared.config.node.name.clone();
    let hard = shared.hard.get();
    let mine = Founder { name: name.clone(), incarnation: hard.incarnation };
    if hard.accepted_founder.as_ref().is_some_and(|accepted| accepted.name != name) {
        tracing::warn!(founder = ?hard.accepted_founder, "another founder was accepted: waits for it");
        return;
    }
    let keeper = Arc::clone(&shared.hard);
    let kept =
        tokio::task::spawn_blocking(move || keeper.update(|state| accept(state, mine.clone())).map(|_| ()))
            .await;
    if !matches!(kept, Ok(Ok(()))) {
        tracing::error!("could not keep the founder's promise");
        return;
    }
    for answer in answers.iter().filter(|answer| answer.name != name) {
        let request = AcceptFounderRequest { from: Some(shared.identity()), founder: name.clone() };
        let accepted = shared
            .peers
            .call(&answer.address, ASK_LIMIT, |mut c| async move { c.accept_founder(request).await })
            .await;
        match accepted {
            Ok(reply) if reply.accepted => {}
            Ok(reply) => {
                tracing::warn!(member = %answer.name, reason = %reply.reason, "does not accept this founder");
                return;
            }
            Err(error) => {
                tracing::info!(%error, "could not ask a founding member");
                return;
            }
        }
    }
    if let Err(error) = shared.secret.make() {
        tracing::error!(%error, "could not make the replication password");
        return;
    }
    initialize(shared, answers, settings).await;
}

async fn initialize(shared: &Arc<Shared>, answers: &[HelloReply], settings: Settings) {
    let members: Vec<Member> = answers.iter().filter_map(member_of_hello).collect();
    let settings = match founding_settings(&shared.config.bootstrap, settings, &members) {
        Ok(settings) => settings,
        Err(reason) => {
            tracing::error!(%reason, "cannot found a cluster: a person has to decide");
            return;
        }
    };
    let chosen = voters(shared.me(), &members);
    let nodes: BTreeMap<NodeId, PeerNode> =
        members.iter().filter(|m| chosen.contains(&m.node)).map(|m| (m.node, peer_node(m))).collect();
    if let Err(error) = shared.consensus.initialize(nodes).await {
        tracing::error!(%error, "could not found the cluster");
        return;
    }
    propose_founding(shared, members, settings).await;
}

/// Completes the first settings by what only the founding members together know: how commits wait.
///
/// # Errors
/// Commits are to wait for more standbys than there are.
pub fn founding_settings(
    bootstrap: &Bootstrap,
    settings: Settings,
    members: &[Member],
) -> Result<Settings, String> {
    let data = members.iter().filter(|member| member.kind == MemberKind::Data).count();
    let sync = bootstrap.sync.unwrap_or_else(|| SyncMode::default_for(data, members.len() - data));
    let most = u32::try_from(data.saturating_sub(1)).unwrap_or(u32::MAX);
    if let Some(required) = bootstrap.sync_required.filter(|required| *required > most) {
        return Err(format!(
            "bootstrap.sync-required = {required} is more than the {most} standbys of {data} data members"
        ));
    }
    let chosen = if bootstrap.sync.is_some() { "as set" } else { "by default" };
    tracing::info!(
        sync = sync.name(),
        chosen,
        data_members = data,
        witnesses = members.len() - data,
        "how commits wait for standbys"
    );
    Ok(Settings { sync, sync_required: bootstrap.sync_required, ..settings })
}

/// Takes note of the founder of a new log. Epochs are indexes of the log, so that promises made in an
/// earlier one, whose stores are all gone, would stand in the way of every epoch of this one.
pub fn accept(state: &mut HardState, founder: Founder) {
    if state.accepted_founder.as_ref() != Some(&founder) {
        state.promise = Epoch(0);
        state.was_owner = None;
        state.floor = None;
    }
    state.accepted_founder = Some(founder);
}

/// Proposes the first entry until it is in the log, here or by another leader.
async fn propose_founding(shared: &Arc<Shared>, members: Vec<Member>, settings: Settings) {
    let command = ClusterCommand::Found {
        cluster: shared.config.cluster.clone(),
        founder: shared.me(),
        members: members.clone(),
        settings,
    };
    loop {
        if shared.consensus.state().borrow().state.is_founded() {
            break;
        }
        match shared.consensus.propose(command.clone(), Duration::from_secs(10)).await {
            Ok(applied) => {
                tracing::info!(index = %applied.index, "the cluster is founded");
                break;
            }
            Err(error) => {
                tracing::debug!(%error, "the founding entry is not in the log yet");
                tokio::time::sleep(ASK_EVERY).await;
            }
        }
    }
}

/// Reads a member out of its Hello.
pub fn member_of_hello(hello: &HelloReply) -> Option<Member> {
    let from = hello.from.as_ref()?;
    let incarnation = <[u8; 16]>::try_from(from.incarnation.as_slice()).ok()?;
    Some(Member {
        node: NodeId(from.node_id),
        name: hello.name.clone(),
        kind: if hello.kind == "witness" { MemberKind::Witness } else { MemberKind::Data },
        incarnation: Incarnation(u128::from_be_bytes(incarnation)),
        address: hello.address.clone(),
        postgres: hello.postgres.clone(),
        http: hello.http.clone(),
        priority: hello.priority,
        tags: codec::unpack(&hello.tags).unwrap_or_default(),
    })
}

/// Returns how Raft knows a member.
pub fn peer_node(member: &Member) -> PeerNode {
    PeerNode { name: member.name.clone(), addr: member.address.clone(), incarnation: member.incarnation }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn hello(name: &str, store: StoreState, data: u64, peers: &str) -> HelloReply {
        HelloReply {
            name: name.to_owned(),
            store: store.into(),
            data_system_identifier: data,
            data_position: "1:0/30".to_owned(),
            kind: "data".to_owned(),
            priority: 50,
            peers: peers.split(' ').map(str::to_owned).collect(),
            ..HelloReply::default()
        }
    }

    /// Each answer: `name store data peers`, or `-` for silence; the address is its place.
    #[track_caller]
    fn check(me: &str, answers: &[&str], expected: &str) {
        let answers = answers
            .iter()
            .enumerate()
            .map(|(place, text)| {
                let words: Vec<&str> = text.splitn(4, ' ').collect();
                let answer = (words.len() == 4).then(|| {
                    let store = if words[1] == "member" { StoreState::Member } else { StoreState::Empty };
                    hello(words[0], store, words[2].parse().expect("a number"), words[3])
                });
                (format!("a{}", place + 1), answer)
            })
            .collect();
        let found = format!("{:?}", verdict(me, &answers));
        assert!(found.starts_with(expected), "{found} does not start with {expected}");
    }

    #[test]
    fn exactly_one_founder_comes_out_of_the_same_answers() {
        let three = ["n1 empty 0 p", "n2 empty 0 p", "n3 empty 0 p"];
        check("n1", &three, "Found");
        check("n2", &three, "Follow(\"n1\")");
        check("n3", &three, "Follow(\"n1\")");
        let data = ["n1 empty 0 p", "n2 empty 77 p", "n3 empty 0 p"];
        check("n1", &data, "Follow(\"n2\")"); // the data directory that holds data comes first
        check("n2", &data, "Found");
    }

    #[test]
    fn nothing_is_founded_while_anybody_is_silent_or_a_cluster_is_there() {
        check("n1", &["n1 empty 0 p", "n2 empty 0 p", "-"], "Wait(\"no answer yet from a3\")");
        check("n1", &["n1 empty 0 p", "n2 member 0 p", "-"], "Join(\"a2\")"); // a wiped member joins
        check("n1", &["n1 empty 5 p", "n2 empty 5 p", "n3 empty 0 p"], "Stop(\"more than one data directory");
        check(
            "n1",
            &["n1 empty 0 p", "n2 empty 0 q", "n3 empty 0 p"],
            "Stop(\"the founding members' node.peers",
        );
        check("n1", &["n1 empty 0 p", "n1 empty 0 p", "n3 empty 0 p"], "Stop(\"two founding members");
    }

    /// Each member: `role system timeline position`, `-` for what it does not say; `n1` and so on by place.
    #[track_caller]
    fn keeps(members: &[&str], expected: &str) {
        let answers: BTreeMap<String, Option<HelloReply>> = members
            .iter()
            .zip(1..)
            .map(|(text, place)| {
                let words: Vec<String> =
                    text.split(' ').map(|word| word.trim_matches('-').to_owned()).collect();
                let reply = HelloReply {
                    data_role: words[0].clone(),
                    data_timeline: words[2].parse().expect("a number"),
                    data_position: words[3].clone(),
                    ..hello(&format!("n{place}"), StoreState::Empty, words[1].parse().expect("a number"), "p")
                };
                (format!("a{place}"), Some(reply))
            })
            .collect();
        let found = match verdict("n9", &answers) {
            Verdict::Follow(founder) => founder,
            other @ (Verdict::Join(_) | Verdict::Found | Verdict::Wait(_) | Verdict::Stop(_)) => {
                format!("{other:?}")
            }
        };
        assert!(found.contains(expected), "{found} does not say {expected}");
    }

    #[test]
    fn a_primary_and_its_standbys_found_from_the_primarys_data() {
        keeps(&["standby 7 3 -", "primary 7 3 -", "standby 7 3 -"], "n2"); // all run
        keeps(&["standby 7 3 3:0/30", "primary 7 3 3:0/30", "- 0 0 -"], "n2"); // all are stopped, one is empty
        keeps(&["standby 7 2 2:0/90", "primary 7 3 3:0/30"], "n2"); // it has not followed yet
        keeps(&["primary 7 3 -", "primary 7 3 -"], "more than one is a primary's");
        keeps(&["standby 7 3 -", "standby 7 3 -"], "none is a primary's");
        keeps(&["standby 8 3 -", "primary 7 3 -"], "of different systems");
        keeps(&["standby 7 4 -", "primary 7 3 -"], "a standby is ahead of the primary");
        keeps(&["standby 7 3 3:0/31", "primary 7 3 3:0/30"], "a standby is ahead of the primary");
        keeps(&["- 7 3 -", "primary 7 3 -"], "more than one data directory"); // one that does not say
    }

    #[test]
    fn the_newest_generation_is_joined() {
        let answer = |name: &str, generation| {
            let from = Some(rhone_consensus::proto::Identity { generation, ..Default::default() });
            (name.to_owned(), Some(HelloReply { from, ..hello(name, StoreState::Member, 0, "p") }))
        };
        let answers = [answer("a", 0), answer("b", 2), answer("c", 1)].into();
        assert_eq!(verdict("x", &answers), Verdict::Join("b".to_owned()));
    }

    #[test]
    fn voters_are_odd_at_most_five_and_the_witness_is_one() {
        // Each member: `d` data, `w` witness, by name; the founder is the last data member.
        for (kinds, expected) in [
            ("d", "0"),
            ("dd", "1"),
            ("ddd", "0 1 2"),
            ("dddd", "0 1 3"),
            ("ddddd", "0 1 2 3 4"),
            ("ddddddddddddd", "0 1 2 3 12"),
            ("ddw", "0 1 2"),
            ("wdd", "0 1 2"),
            ("dddw", "0 2 3"), // the witness is there to vote
            ("ddww", "0 1 2"), // two witnesses alone decide nothing
            ("ddwwww", "0 1 2 3 4"),
        ] {
            let member = |(n, kind): (usize, char)| Member {
                node: NodeId(n as u64),
                name: format!("n{n:02}"),
                kind: if kind == 'w' { MemberKind::Witness } else { MemberKind::Data },
                incarnation: Incarnation(0),
                address: String::new(),
                postgres: String::new(),
                http: String::new(),
                priority: 50,
                tags: Tags::default(),
            };
            let members: Vec<Member> = kinds.chars().enumerate().map(member).collect();
            let founder = kinds.rfind('d').expect("a data member") as u64;
            let chosen = voters(NodeId(founder), &members);
            let chosen: Vec<String> = chosen.iter().map(|node| node.0.to_string()).collect();
            assert_eq!(chosen.join(" "), expected, "{kinds}");
        }
    }

    #[test]
    fn who_could_be_primary_founds_and_somebody_has_to() {
        let answer = |name: &str, priority: u32, no_failover: bool| {
            let tags = codec::pack(&Tags { no_failover, ..Tags::default() });
            (name.to_owned(), Some(HelloReply { priority, tags, ..hello(name, StoreState::Empty, 0, "p") }))
        };
        let some: BTreeMap<_, _> =
            [answer("a", 50, true), answer("b", 0, false), answer("c", 1, false)].into();
        assert_eq!(verdict("a", &some), Verdict::Follow("c".to_owned()));
        let none: BTreeMap<_, _> = [answer("a", 50, true), answer("b", 0, false)].into();
        assert!(matches!(verdict("a", &none), Verdict::Stop(reason) if reason.contains("could be primary")));
    }

    #[test]
    fn a_witness_never_founds() {
        let answer = |name: &str, kind: &str| {
            Some(HelloReply { kind: kind.to_owned(), ..hello(name, StoreState::Empty, 0, "p") })
        };
        let answers: BTreeMap<String, Option<HelloReply>> = [
            ("a1".to_owned(), answer("a", "witness")),
            ("a2".to_owned(), answer("b", "data")),
            ("a3".to_owned(), answer("c", "data")),
        ]
        .into();
        assert_eq!(verdict("a", &answers), Verdict::Follow("b".to_owned()));
        assert_eq!(verdict("b", &answers), Verdict::Found);
        let alone = [("a1".to_owned(), answer("a", "witness"))].into();
        assert!(matches!(verdict("a", &alone), Verdict::Stop(_)));
    }
}
