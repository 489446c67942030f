//! `rhone recover --force-new-cluster`: what is known, a person's word, and the new beginning.
//!
//! The one verb that asks no running member: nobody is left to agree, and Raft must not run meanwhile.

use std::fmt::Write;

use serde::Serialize;

use super::args::Global;
use super::exit::{CliError, Exit};
use super::table::{self, Align};
use super::terminal::Terminal;
use super::{client, operate, print_json};
use crate::recover::{self, Knowledge};

/// What `-o json` prints.
#[derive(Serialize)]
struct Told<'a> {
    #[serde(flatten)]
    knowledge: &'a Knowledge,
    recovered: bool,
    new_generation: u64,
    new_epoch: u64,
}

/// Carries the command out.
pub(super) async fn run(global: &Global, yes: bool, terminal: &mut Terminal) -> Result<(), CliError> {
    if !global.hosts.is_empty() {
        return Err(CliError::new(Exit::Usage, "this works on the files of a member on this machine only")
            .hint("run it on the machine of the data member that has the most, without `--host`"));
    }
    let config = client::load_config(global)?;
    let (knowledge, stopped) = recover::look(&config).await?;
    if !global.json() {
        terminal.data(&render(&knowledge));
    }
    let what = format!(
        "{} goes on alone as a new cluster named {}; {} can never come back into it with the stores they have",
        knowledge.member,
        knowledge.cluster,
        names(&knowledge)
    );
    terminal.confirm_by_name(&what, &knowledge.cluster, yes)?;
    let recovered = stopped.begin_anew(&config, operate::who())?;
    if global.json() {
        return print_json(
            terminal,
            &Told {
                knowledge: &knowledge,
                recovered: true,
                new_generation: recovered.generation.0,
                new_epoch: recovered.epoch.0,
            },
        );
    }
    terminal.talk(&format!(
        "{} is the only member of generation {}; start rhone here: it becomes primary in epoch {} or later",
        knowledge.member, recovered.generation, recovered.epoch
    ));
    terminal.talk(
        "hint: before any of the others is started, empty its node.state-dir; then it joins by itself, and is copied anew",
    );
    Ok(())
}

fn names(knowledge: &Knowledge) -> String {
    let names: Vec<&str> = knowledge.others.iter().map(|other| other.name.as_str()).collect();
    if names.is_empty() { "nobody".to_owned() } else { names.join(", ") }
}

/// Shows what is known, and what may be lost.
fn render(knowledge: &Knowledge) -> String {
    let unknown = || "unknown".to_owned();
    let mut text = format!(
        "cluster {}, generation {}: {} of {} voters there; the last primary known here is {}, in epoch {}\n\
         {} has wal up to {}; commits waited: {}\n\n",
        knowledge.cluster,
        knowledge.generation,
        knowledge.voters_there,
        knowledge.voters,
        knowledge.primary.clone().unwrap_or_else(unknown),
        knowledge.epoch,
        knowledge.member,
        knowledge.position.clone().unwrap_or_else(unknown),
        knowledge.sync,
    );
    let rows: Vec<[String; 5]> = knowledge
        .others
        .iter()
        .map(|other| {
            [
                other.name.clone(),
                other.kind.to_owned(),
                if other.votes { "votes" } else { "learns" }.to_owned(),
                other.address.clone(),
                other.says.clone(),
            ]
        })
        .collect();
    let columns = [
        ("NODE", Align::Left),
        ("KIND", Align::Left),
        ("RAFT", Align::Left),
        ("ADDRESS", Align::Left),
        ("SAYS", Align::Left),
    ];
    text.push_str(&table::render(columns, &rows));
    text.push('\n');
    if knowledge.may_be_lost.is_empty() {
        text.push_str("nothing that this member knows was acknowledged is missing here\n");
    }
    for sentence in &knowledge.may_be_lost {
        // Writing to a String cannot fail.
        let _ok = writeln!(text, "may be lost: {sentence}");
    }
    text
}

#[cfg(test)]
#[allow(clippy::needless_raw_string_hashes, reason = "expect-test writes them so")]
mod tests {
    use expect_test::expect;

    use super::*;
    use crate::recover::Other;

    fn known() -> Knowledge {
        let other = |name: &str, kind, says: &str| Other {
            name: name.to_owned(),
            kind,
            address: format!("{name}.lan:7400"),
            votes: true,
            there: false,
            says: says.to_owned(),
        };
        Knowledge {
            cluster: "main".to_owned(),
            member: "pg-3".to_owned(),
            generation: 0,
            epoch: 7,
            primary: Some("pg-1".to_owned()),
            position: Some("5:0/5A3F2C8".to_owned()),
            others: vec![
                other("pg-1", "data", "no answer within 2 s"),
                other("wit-1", "witness", "its store is empty: it waits for a cluster to join"),
            ],
            voters_there: 1,
            voters: 3,
            sync: "quorum",
            may_be_lost: vec!["in epoch 7 something".to_owned()],
        }
    }

    #[test]
    fn tells_a_person_what_is_known_and_what_may_be_lost() {
        expect![[r#"
            cluster main, generation 0: 1 of 3 voters there; the last primary known here is pg-1, in epoch 7
            pg-3 has wal up to 5:0/5A3F2C8; commits waited: quorum

            NODE   KIND     RAFT   ADDRESS         SAYS
            pg-1   data     votes  pg-1.lan:7400   no answer within 2 s
            wit-1  witness  votes  wit-1.lan:7400  its store is empty: it waits for a cluster to join

            may be lost: in epoch 7 something
        "#]]
        .assert_eq(&render(&known()));
        let nothing = Knowledge { may_be_lost: Vec::new(), ..known() };
        assert!(
            render(&nothing).ends_with("nothing that this member knows was acknowledged is missing here\n")
        );
    }

    #[test]
    fn json_is_of_the_same_struct() {
        let told = Told { knowledge: &known(), recovered: true, new_generation: 1, new_epoch: 1 << 32 };
        let value = serde_json::to_value(&told).expect("JSON");
        assert_eq!((&value["recovered"], &value["new_generation"]), (&true.into(), &1.into()));
        assert_eq!(value["others"][1]["says"], "its store is empty: it waits for a cluster to join");
        assert_eq!((&value["primary"], &value["voters_there"]), (&"pg-1".into(), &1.into()));
    }
}
