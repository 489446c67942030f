//! `--at TIME` and `--cancel` of `rhone switchover` and `rhone restart`: for later.

use super::args::Global;
use super::exit::{CliError, Exit};
use super::terminal::Terminal;
use super::{client, operate, status};
use crate::api;
use crate::api::proto::v1;
use crate::civil::WallTime;
use crate::config::units;

/// Puts a switchover down for `at`.
pub(super) async fn at(
    global: &Global,
    to: Option<String>,
    at: &str,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let (at_ms, after_ms) = time(at)?;
    let before = status::fetch(global).await?;
    let request = v1::SwitchoverRequest {
        idempotency_key: client::idempotency_key()?,
        expected_epoch: before.epoch.map(|epoch| epoch.0),
        to,
        no_wait: true,
        at_ms,
        after_ms,
        by: operate::who(),
    };
    let reply = client::ask(global, true, async |mut client| {
        api::change_reply(client.switchover(request.clone()).await?.into_inner())
    })
    .await?;
    let from = reply.from.as_ref().map_or_else(String::new, |from| format!(" from {from}"));
    let to = reply.to.clone().unwrap_or_else(|| "the best standby".to_owned());
    let when = reply.scheduled.map_or_else(String::new, |at| format!(" for {at}"));
    let said =
        format!("a switchover{from} to {to} is scheduled{when}; `rhone switchover --cancel` takes it off");
    status::shown(global, &reply, &said, terminal).await
}

/// Takes the scheduled switchover off.
pub(super) async fn cancel(global: &Global, terminal: &mut Terminal) -> Result<(), CliError> {
    let request =
        v1::CancelSwitchoverRequest { idempotency_key: client::idempotency_key()?, expected_epoch: None };
    client::ask(global, true, async |mut client| {
        api::change_reply(client.cancel_switchover(request.clone()).await?.into_inner())
    })
    .await?;
    let change = serde_json::json!({ "cancelled": true });
    status::shown(global, &change, "the scheduled switchover is cancelled", terminal).await
}

/// Puts a restart of one member down for `at`.
pub(super) async fn restart_at(
    global: &Global,
    name: &str,
    at: &str,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let (at_ms, after_ms) = time(at)?;
    let request = v1::RestartRequest { at_ms, after_ms, by: operate::who(), ..restart_of(name)? };
    let reply = client::ask(global, true, async |mut client| {
        api::change_reply(client.restart(request.clone()).await?.into_inner())
    })
    .await?;
    let when = reply.scheduled.map_or_else(String::new, |at| format!(" for {at}"));
    let said =
        format!("a restart of {name} is scheduled{when}; `rhone restart {name} --cancel` takes it off");
    let change = serde_json::json!({ "name": name, "scheduled": reply.scheduled });
    status::shown(global, &change, &said, terminal).await
}

/// Takes the scheduled restart of one member off.
pub(super) async fn cancel_restart(
    global: &Global,
    name: &str,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let request = v1::RestartRequest { cancel: true, ..restart_of(name)? };
    client::ask(global, true, async |mut client| {
        api::change_reply(client.restart(request.clone()).await?.into_inner())
    })
    .await?;
    let said = format!("the scheduled restart of {name} is cancelled");
    status::shown(global, &serde_json::json!({ "cancelled": true }), &said, terminal).await
}

fn restart_of(name: &str) -> Result<v1::RestartRequest, CliError> {
    let idempotency_key = client::idempotency_key()?;
    Ok(v1::RestartRequest { idempotency_key, name: name.to_owned(), ..v1::RestartRequest::default() })
}

/// Reads a time: milliseconds since 1970, or from now on.
fn time(text: &str) -> Result<(Option<u64>, Option<u64>), CliError> {
    let wrong = || {
        CliError::new(Exit::Usage, format!("`{text}` is no time"))
            .hint("2026-11-21T20:00:00Z is one, 2026-11-21T21:00:00+01:00 too, and +10m is in ten minutes")
    };
    if let Some(later) = text.strip_prefix('+') {
        // Minutes are what people mean by `m` here.
        let minutes = later.strip_suffix('m').filter(|number| number.ends_with(|c: char| c.is_ascii_digit()));
        let later = minutes.map_or_else(|| later.to_owned(), |number| format!("{number}min"));
        let later = units::parse_duration(&later).map_err(|_| wrong())?;
        return Ok((None, Some(u64::try_from(later.as_millis()).map_err(|_| wrong())?)));
    }
    WallTime::from_rfc3339(text).map(|at| (Some(at.as_ms()), None)).map_err(|_| wrong())
}
