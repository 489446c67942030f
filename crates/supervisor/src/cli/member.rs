//! `rhone member`: who is a member, and who votes.

use std::time::Duration;

use super::args::{Global, MemberVerb};
use super::exit::{CliError, Exit};
use super::hold::{Whose, wait};
use super::newcomer::add;
use super::table::{self, Align, or_dash};
use super::terminal::Terminal;
use super::{client, print_changed, print_json, status};
use crate::api;
use crate::api::proto::v1;
use crate::status::{ClusterStatus, Kind, MemberStatus, State, SwitchoverReply};

/// How long the change of who votes may take.
const VOTE_LIMIT: Duration = Duration::from_secs(30);

/// What takes longer is told what it waits for.
const LATE: Duration = Duration::from_secs(2);

/// Carries out one of the verbs.
pub(super) async fn run(
    global: &Global,
    verb: Option<MemberVerb>,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    match verb {
        None | Some(MemberVerb::List) => list(global, terminal).await,
        Some(MemberVerb::Add { name, address }) => add(global, name, address, terminal).await,
        Some(MemberVerb::Remove { name, yes, no_wait }) => {
            remove(global, Whose { name, no_wait }, yes, terminal).await
        }
        Some(MemberVerb::Promote { name, no_wait }) => {
            vote(global, Whose { name, no_wait }, true, terminal).await
        }
        Some(MemberVerb::Demote { name, no_wait }) => {
            vote(global, Whose { name, no_wait }, false, terminal).await
        }
    }
}

pub(super) fn member<'a>(status: &'a ClusterStatus, name: &str) -> Result<&'a MemberStatus, CliError> {
    status.members.iter().find(|member| member.name == name).ok_or_else(|| {
        CliError::new(Exit::Refused, format!("refused, nothing was changed: no member is named {name}"))
            .hint("`rhone member list` lists them")
    })
}

async fn list(global: &Global, terminal: &mut Terminal) -> Result<(), CliError> {
    let status = status::fetch(global).await?;
    if global.json() {
        return print_json(terminal, &status.members);
    }
    let rows: Vec<[String; 6]> = status
        .members
        .iter()
        .map(|member| {
            let place = member.host.as_ref().zip(member.port).map(|(host, port)| format!("{host}:{port}"));
            [
                member.name.clone(),
                if member.kind == Kind::Witness { "witness" } else { "data" }.to_owned(),
                if member.voter { "votes" } else { "learns" }.to_owned(),
                member.role.to_string(),
                member.state.to_string(),
                or_dash(place),
            ]
        })
        .collect();
    let columns = [
        ("NODE", Align::Left),
        ("KIND", Align::Left),
        ("RAFT", Align::Left),
        ("ROLE", Align::Left),
        ("STATE", Align::Left),
        ("POSTGRES", Align::Left),
    ];
    terminal.data(&table::render(columns, &rows));
    Ok(())
}

async fn remove(global: &Global, whose: Whose, yes: bool, terminal: &mut Terminal) -> Result<(), CliError> {
    let Whose { name, no_wait } = whose;
    let name = name.as_str();
    let before = status::fetch(global).await?;
    let there = member(&before, name)?.state != State::Unreachable;
    let what = format!("{name} leaves the cluster for good; its data stays where it is");
    terminal.ask(&what, yes)?;
    told_when_late(terminal, call(global, &before, name, Call::Remove)).await?;
    if no_wait {
        if global.json() {
            return print_json(
                terminal,
                &serde_json::json!({ "name": name, "removed": true, "finished": false }),
            );
        }
        terminal.talk(&format!("{name} is being removed; `rhone status --watch` shows it"));
        return Ok(());
    }
    let after =
        wait(global, VOTE_LIMIT, |status| status.members.iter().all(|member| member.name != name)).await?;
    if global.json() {
        let told = serde_json::json!({ "name": name, "removed": true });
        return print_changed(terminal, &told, Some(&after));
    }
    terminal.talk(&format!("{name} is no member any more"));
    if there {
        terminal.talk(&format!("hint: stop rhone on {name}; to let it join anew, empty its state directory"));
    }
    terminal.data(&status::render(&after, terminal.colour()));
    Ok(())
}

async fn vote(global: &Global, whose: Whose, votes: bool, terminal: &mut Terminal) -> Result<(), CliError> {
    let Whose { name, no_wait } = whose;
    let name = name.as_str();
    let before = status::fetch(global).await?;
    member(&before, name)?;
    let change = call(global, &before, name, if votes { Call::Promote } else { Call::Demote });
    let reply = told_when_late(terminal, change).await?;
    if no_wait {
        if global.json() {
            return print_json(
                terminal,
                &serde_json::json!({ "name": name, "may_vote": votes, "finished": false }),
            );
        }
        let what = if votes { "may vote" } else { "is kept from voting" };
        terminal.talk(&format!("{name} {what}; `rhone status --watch` shows it"));
        return Ok(());
    }
    // A member that may vote does so only where there is room for it: voters are odd.
    let done = |status: &ClusterStatus| status.members.iter().any(|m| m.name == name && m.voter == votes);
    let after = match wait(global, if votes { VOTE_LIMIT / 6 } else { VOTE_LIMIT }, done).await {
        Ok(after) => after,
        Err(_) if votes => status::fetch(global).await?,
        Err(error) => return Err(error),
    };
    let is = member(&after, name)?.voter;
    if global.json() {
        let epoch = reply.epoch.map(|epoch| epoch.0);
        let told = serde_json::json!({ "name": name, "votes": is, "may_vote": votes, "epoch": epoch });
        return print_changed(terminal, &told, Some(&after));
    }
    terminal.talk(&match (votes, is) {
        (true, false) => format!(
            "{name} may vote, and takes the place of the next voter that is missing: there are 3 or 5 of them"
        ),
        (_, true) => format!("{name} votes"),
        (false, false) => format!("{name} only learns"),
    });
    terminal.data(&status::render(&after, terminal.colour()));
    Ok(())
}

/// Waits for a change of who votes, and tells a person who looks on where it is not done at once: a voter that is late is
/// waited for, and a busy one takes its time to agree.
async fn told_when_late<T>(terminal: &mut Terminal, change: impl Future<Output = T>) -> T {
    let mut change = std::pin::pin!(change);
    if let Ok(done) = tokio::time::timeout(LATE, &mut change).await {
        return done;
    }
    if terminal.interactive() {
        terminal.talk("waits until the voters that stay are heard and have agreed");
    }
    change.await
}

#[derive(Clone, Copy)]
pub(super) enum Call {
    Reinit,
    Keep,
    Remove,
    Promote,
    Demote,
}

pub(super) async fn call(
    global: &Global,
    before: &ClusterStatus,
    name: &str,
    what: Call,
) -> Result<SwitchoverReply, CliError> {
    let request = v1::MemberRequest {
        idempotency_key: client::idempotency_key()?,
        expected_epoch: before.epoch.map(|epoch| epoch.0),
        name: name.to_owned(),
        // A copy that is there by then is not made again.
        data_id: before
            .members
            .iter()
            .find(|member| member.name == name && matches!(what, Call::Reinit))
            .and_then(|member| member.data_id.clone()),
        cancel: matches!(what, Call::Keep),
    };
    client::ask(global, true, async |mut client| {
        let request = request.clone();
        let reply = match what {
            Call::Reinit | Call::Keep => client.reinit(request).await?,
            Call::Remove => client.remove_member(request).await?,
            Call::Promote => client.promote_member(request).await?,
            Call::Demote => client.demote_member(request).await?,
        };
        api::change_reply(reply.into_inner())
    })
    .await
}
