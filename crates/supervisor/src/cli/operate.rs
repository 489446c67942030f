//! Commands that change something: they wait for the outcome, then print the new state.

use super::args::Global;
use super::exit::CliError;
use super::terminal::Terminal;
use super::{client, print_changed, status};
use crate::api;
use crate::api::proto::v1;
use crate::status::SwitchoverReply;

/// Hands the primary's role over.
///
/// The epoch that was seen before is sent along, so that a failover in between refuses this
/// instead of moving a primary that nobody meant.
pub(super) async fn switchover(
    global: &Global,
    to: Option<String>,
    no_wait: bool,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let before = status::fetch(global).await?;
    let request = v1::SwitchoverRequest {
        idempotency_key: client::idempotency_key()?,
        expected_epoch: before.epoch.map(|epoch| epoch.0),
        to,
        no_wait,
        by: who(),
        ..v1::SwitchoverRequest::default()
    };
    let reply = client::ask(global, true, async |mut client| {
        api::change_reply(client.switchover(request.clone()).await?.into_inner())
    })
    .await?;
    show(global, &reply, &told(&reply), terminal).await
}

/// What was typed for a failover by hand.
pub(super) struct FailoverFlags {
    pub(super) to: Option<String>,
    pub(super) accept_data_loss: bool,
    pub(super) no_wait: bool,
}

/// Fails over by hand.
pub(super) async fn failover(
    global: &Global,
    flags: FailoverFlags,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let before = status::fetch(global).await?;
    let request = v1::FailoverRequest {
        idempotency_key: client::idempotency_key()?,
        expected_epoch: before.epoch.map(|epoch| epoch.0),
        to: flags.to,
        accept_data_loss: flags.accept_data_loss,
        no_wait: flags.no_wait,
        by: who(),
    };
    let reply = client::ask(global, true, async |mut client| {
        api::change_reply(client.failover(request.clone()).await?.into_inner())
    })
    .await?;
    let primary = reply.to.clone().unwrap_or_else(|| "the best standby".to_owned());
    let words = if reply.finished {
        format!("{primary} is primary; `rhone history` says what was lost")
    } else {
        "the failover has begun; `rhone status --watch` shows it".to_owned()
    };
    show(global, &reply, &words, terminal).await
}

/// Returns who types, as `user@host`: for people who read the history.
pub(super) fn who() -> String {
    let user = ["SUDO_USER", "USER", "LOGNAME"].into_iter().find_map(|name| std::env::var(name).ok());
    let host = rustix::system::uname().nodename().to_string_lossy().into_owned();
    format!("{}@{host}", user.unwrap_or_else(|| format!("uid {}", rustix::process::getuid().as_raw())))
}

async fn show(
    global: &Global,
    reply: &SwitchoverReply,
    words: &str,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let after = if reply.finished { status::fetch(global).await.ok() } else { None };
    if global.json() {
        return print_changed(terminal, reply, after.as_ref());
    }
    terminal.talk(words);
    if let Some(after) = &after {
        terminal.data(&status::render(after, terminal.colour()));
    }
    Ok(())
}

/// Tells in a sentence what happened.
fn told(reply: &SwitchoverReply) -> String {
    let name = |name: &Option<String>| name.clone().unwrap_or_else(|| "the best standby".to_owned());
    if !reply.finished {
        return format!("the switchover to {} has begun; `rhone status --watch` shows it", name(&reply.to));
    }
    let from = reply.from.as_ref().map_or_else(String::new, |from| format!(" from {from}"));
    let gap =
        reply.seconds_without_primary.map_or_else(String::new, |s| format!(", {s:.2} s without a primary"));
    format!("switched over{from} to {}{gap}; nothing was lost", name(&reply.to))
}
