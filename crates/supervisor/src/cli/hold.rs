//! `rhone pause`, `resume`, `fence` and `unfence`: what an operator holds back.

use std::time::Duration;

use super::args::Global;
use super::exit::{CliError, Exit};
use super::terminal::Terminal;
use super::{client, print_changed, print_json, status};
use crate::api;
use crate::api::proto::v1;
use crate::status::{ClusterStatus, State, SwitchoverReply};

/// How long the member that is asked may take to hear of a change: it may be a follower.
const HEARD_LIMIT: Duration = Duration::from_secs(10);

/// How long Postgres may take to stop or to stream again: a checkpoint on a slow card.
const STOP_LIMIT: Duration = Duration::from_secs(120);

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// Whose Postgres, and whether the command waits for it.
#[derive(Clone, Debug)]
pub(super) struct Whose {
    pub(super) name: String,
    pub(super) no_wait: bool,
}

/// What `-o json` prints of a fence.
#[derive(serde::Serialize)]
struct Told<'a> {
    name: &'a str,
    fenced: bool,
    finished: bool,
    handed_over_to: Option<&'a str>,
    epoch: Option<u64>,
}

/// What automatic failover is to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Automatic {
    /// Nobody takes over by itself.
    Off,
    /// As ever.
    On,
}

/// Turns automatic failover off or on.
pub(super) async fn pause(
    global: &Global,
    failover: Automatic,
    no_wait: bool,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let paused = failover == Automatic::Off;
    let key = client::idempotency_key()?;
    client::ask(global, true, async |mut client| {
        let (idempotency_key, expected_epoch) = (key.clone(), None);
        let reply = if paused {
            client.pause(v1::PauseRequest { idempotency_key, expected_epoch }).await?
        } else {
            client.resume(v1::ResumeRequest { idempotency_key, expected_epoch }).await?
        };
        api::change_reply(reply.into_inner())
    })
    .await?;
    if no_wait {
        if global.json() {
            return print_json(terminal, &serde_json::json!({ "paused": paused, "finished": false }));
        }
        let what = if paused { "off" } else { "on" };
        terminal.talk(&format!("automatic failover is turned {what}; `rhone status --watch` shows it"));
        return Ok(());
    }
    let after = wait(global, HEARD_LIMIT, |status| status.paused == paused).await?;
    if global.json() {
        return print_changed(terminal, &serde_json::json!({ "paused": paused }), Some(&after));
    }
    terminal.talk(if paused {
        "automatic failover is off; a primary that loses its lease is fenced all the same"
    } else {
        "automatic failover is on"
    });
    terminal.data(&status::render(&after, terminal.colour()));
    Ok(())
}

/// Stops a member's Postgres and keeps it stopped.
///
/// The primary hands over first, which loses nothing; that it is the primary is what was seen at the epoch that
/// is sent along.
pub(super) async fn fence(
    global: &Global,
    whose: Whose,
    yes: bool,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let Whose { name, no_wait } = whose;
    let before = status::fetch(global).await?;
    let expected_epoch = before.epoch.map(|epoch| epoch.0);
    let leads = before.primary.as_ref() == Some(&name);
    if leads {
        terminal
            .ask(&format!("{name} is the primary: it hands over to a standby, then it is stopped"), yes)?;
    }
    let hand_over = leads || yes;
    let idempotency_key = client::idempotency_key()?;
    let request = v1::FenceRequest { idempotency_key, expected_epoch, name: name.clone(), hand_over };
    let reply = client::ask(global, true, async |mut client| {
        api::change_reply(client.fence(request.clone()).await?.into_inner())
    })
    .await?;
    let fenced = |status: &ClusterStatus| state(status, &name) == Some(State::Fenced);
    let after = if no_wait { None } else { Some(wait(global, STOP_LIMIT, fenced).await?) };
    tell(global, &name, true, &reply, after.as_ref(), terminal)
}

/// Lets a fenced member's Postgres go.
pub(super) async fn unfence(global: &Global, whose: Whose, terminal: &mut Terminal) -> Result<(), CliError> {
    let Whose { name, no_wait } = whose;
    let expected_epoch = status::fetch(global).await?.epoch.map(|epoch| epoch.0);
    let idempotency_key = client::idempotency_key()?;
    let request = v1::UnfenceRequest { idempotency_key, expected_epoch, name: name.clone() };
    let reply = client::ask(global, true, async |mut client| {
        api::change_reply(client.unfence(request.clone()).await?.into_inner())
    })
    .await?;
    let back =
        |status: &ClusterStatus| matches!(state(status, &name), Some(State::Streaming | State::Running));
    let after = if no_wait { None } else { Some(wait(global, STOP_LIMIT, back).await?) };
    tell(global, &name, false, &reply, after.as_ref(), terminal)
}

fn state(status: &ClusterStatus, name: &str) -> Option<State> {
    status.members.iter().find(|member| member.name == name).map(|member| member.state)
}

fn tell(
    global: &Global,
    name: &str,
    fenced: bool,
    reply: &SwitchoverReply,
    after: Option<&ClusterStatus>,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    if global.json() {
        let finished = after.is_some();
        let told = Told {
            name,
            fenced,
            finished,
            handed_over_to: reply.to.as_deref(),
            epoch: reply.epoch.map(|e| e.0),
        };
        return print_changed(terminal, &told, after);
    }
    if let Some(to) = &reply.to {
        terminal.talk(&format!("handed over to {to}"));
    }
    match (fenced, after.is_some()) {
        (true, true) => terminal.talk(&format!("{name} is fenced; `rhone unfence {name}` lets it go")),
        (true, false) => terminal.talk(&format!("{name} is being fenced; `rhone status --watch` shows it")),
        (false, true) => terminal.talk(&format!("{name} is let go")),
        (false, false) => terminal.talk(&format!("{name} is being started; `rhone status --watch` shows it")),
    }
    if let Some(after) = after {
        terminal.data(&status::render(after, terminal.colour()));
    }
    Ok(())
}

/// Waits until the cluster is as asked for.
pub(super) async fn wait(
    global: &Global,
    limit: Duration,
    done: impl Fn(&ClusterStatus) -> bool,
) -> Result<ClusterStatus, CliError> {
    let looking = async {
        loop {
            // A failover meanwhile is no reason to give up.
            if let Ok(status) = status::fetch(global).await
                && done(&status)
            {
                return status;
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    tokio::time::timeout(limit, looking).await.map_err(|_| {
        CliError::new(Exit::Unknown, format!("it is decided, and not done within {} s", limit.as_secs()))
            .hint("`rhone status` shows how far it is")
    })
}
