//! Which generation of the cluster this member belongs to: a recovery by force begins another one, and
//! members of two generations are strangers (decision 0042).

use std::collections::BTreeSet;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use rhone_consensus::identity::Generation;
use rhone_pgctl::user::OsUser;

use crate::api::proto::v1::{HelloReply, StoreState};
use crate::runtime::found;
use crate::runtime::shared::Shared;

/// The file in the state directory of a member whose cluster went on without it. Nothing removes it: a
/// person does, with the directory.
const FILE: &str = "superseded";

/// A member that starts waits so long for its leader before it asks whether there still is a cluster of
/// its generation: some heartbeats, and less than any election takes.
const ASK_AFTER: Duration = Duration::from_millis(300);

/// How often it asks from then on, until a leader is heard.
const ASK_EVERY: Duration = Duration::from_secs(2);

/// One that has heard a leader asks only after so long without any: a cluster that lives elects one
/// sooner, and is not stopped by somebody's claim that it is dead.
const LEADERLESS_MS: u64 = 10_000;

/// Takes on the generation of the cluster that admitted this member, whose store is new.
///
/// # Errors
/// The disk refused.
pub async fn adopt(shared: &Arc<Shared>, generation: u64) -> anyhow::Result<()> {
    let theirs = Generation(generation);
    let own = shared.hard.get().generation;
    if !shared.consensus.status().nodes.is_empty() || theirs <= own {
        return Ok(());
    }
    let hard = Arc::clone(&shared.hard);
    tokio::task::spawn_blocking(move || hard.update(|state| state.generation = theirs).map(drop))
        .await
        .context("keep the generation")??;
    // What the members of an older generation know opens nothing in this one.
    shared.secret.forget().context("forget the replication password")?;
    shared.consensus.set_generation(theirs);
    tracing::info!(generation = %theirs, "takes on the cluster's generation");
    Ok(())
}

/// Returns the newest generation among these answers that this member's own came before.
pub fn newer<'a>(
    own: Generation,
    system: Option<u64>,
    answers: impl Iterator<Item = &'a HelloReply>,
) -> Option<(Generation, &'a str)> {
    let of_ours = |from: &rhone_consensus::proto::Identity| {
        system.is_none_or(|system| from.system_identifier == 0 || from.system_identifier == system)
    };
    answers
        .filter(|answer| answer.store() == StoreState::Member)
        .filter_map(|answer| Some((answer.from.as_ref().filter(|from| of_ours(from))?, answer)))
        .map(|(from, answer)| (Generation(from.generation), answer.name.as_str()))
        .filter(|(generation, _)| *generation > own)
        .max()
}

/// Ends with an error when no leader of its own generation is heard and another member says that the
/// cluster goes on in a newer one; notes that for every later start. Else never ends.
///
/// # Errors
/// The cluster goes on without this member.
pub async fn watch(shared: Arc<Shared>) -> anyhow::Result<()> {
    let mut raft = shared.consensus.status_changes();
    tokio::time::sleep(ASK_AFTER).await;
    let mut led = None;
    loop {
        raft.borrow_and_update();
        let status = shared.consensus.status();
        if status.leader.is_some() {
            // Nothing to wake for while somebody leads.
            raft.changed().await.context("raft ended")?;
            led = Some(shared.now());
            continue;
        }
        let leaderless = led.is_none_or(|led| shared.now().millis_since(led) >= LEADERLESS_MS);
        if leaderless && !status.nodes.is_empty() {
            let recorded = status.nodes.values().map(|node| node.addr.clone());
            let configured = shared.config.node.peers.iter().map(ToString::to_string);
            let addresses: BTreeSet<String> = recorded.chain(configured).collect();
            let answers = found::ask_all(&shared, &addresses.into_iter().collect::<Vec<_>>()).await;
            let hard = shared.hard.get();
            let system = hard.system_id.map(rhone_pgctl::wal::SystemId::get);
            if let Some((generation, name)) = newer(hard.generation, system, answers.values().flatten()) {
                let text = superseded(hard.generation, generation, name);
                note(&shared.config.node.state_dir, &text).context("keep that it is superseded")?;
                return Err(Superseded(text).into());
            }
        }
        tokio::select! {
            changed = raft.changed() => changed.context("raft ended")?,
            () = tokio::time::sleep(ASK_EVERY) => {}
        }
    }
}

/// The cluster went on without this member: a person has to look, and starting it again changes nothing.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct Superseded(String);

fn superseded(own: Generation, newer: Generation, name: &str) -> String {
    format!(
        "the cluster was begun anew without this member: {name} is in generation {newer}, this member in {own}, \
         and nothing that it would acknowledge would count\n\
         hint: keep a copy of its data directory if it may hold what was lost, empty node.state-dir, and start \
         rhone again: it joins as a new member"
    )
}

fn note(state_dir: &Path, text: &str) -> anyhow::Result<()> {
    rhone_pgctl::file::replace(&state_dir.join(FILE), text.as_bytes(), &OsUser::current(), 0o644)?;
    Ok(())
}

/// Refuses to start a member that knows that its cluster went on without it.
///
/// # Errors
/// It does, in the words that it noted.
pub fn still_counts(state_dir: &Path) -> anyhow::Result<()> {
    match std::fs::read_to_string(state_dir.join(FILE)) {
        Ok(text) => Err(Superseded(text).into()),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error).with_context(|| format!("read {}", state_dir.join(FILE).display())),
    }
}

#[cfg(test)]
mod tests {
    use rhone_consensus::proto::Identity;

    use super::*;

    #[test]
    fn a_newer_generation_of_the_same_system_supersedes_and_nothing_else() {
        let answer = |name: &str, generation, system, store: StoreState| HelloReply {
            from: Some(Identity { generation, system_identifier: system, ..Identity::default() }),
            name: name.to_owned(),
            store: store.into(),
            ..HelloReply::default()
        };
        let check = |answers: &[HelloReply], expected: Option<(u64, &str)>| {
            let found = newer(Generation(1), Some(7), answers.iter());
            assert_eq!(
                found,
                expected.map(|(generation, name)| (Generation(generation), name)),
                "{answers:?}"
            );
        };
        let member = StoreState::Member;
        check(&[answer("b", 1, 7, member)], None);
        check(&[answer("b", 2, 7, member)], Some((2, "b")));
        check(&[answer("b", 2, 7, member), answer("c", 3, 0, member)], Some((3, "c")));
        check(&[answer("b", 0, 7, member)], None); // one that has to go itself
        check(&[answer("b", 2, 8, member)], None); // another system
        check(&[answer("b", 2, 7, StoreState::Empty)], None); // no word of a cluster
    }

    #[test]
    fn what_was_noted_keeps_a_member_from_starting() {
        let folder = tempfile::tempdir().expect("a folder");
        still_counts(folder.path()).expect("nothing noted");
        note(folder.path(), &superseded(Generation(0), Generation(1), "pg-3")).expect("noted");
        let refusal = still_counts(folder.path()).expect_err("noted").to_string();
        assert!(refusal.contains("pg-3 is in generation 1") && refusal.contains("\nhint: "), "{refusal}");
    }
}
