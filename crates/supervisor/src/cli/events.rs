//! `rhone events`: what happened in the cluster, and what happens.

use super::args::Global;
use super::exit::{CliError, Exit};
use super::terminal::Terminal;
use super::{client, print_json};
use crate::api;
use crate::api::proto::v1;
use crate::status::{Event, OperatorError};

/// Prints the events that a member remembers, then with `follow` each one as it happens.
pub(super) async fn run(global: &Global, follow: bool, terminal: &mut Terminal) -> Result<(), CliError> {
    let mut stream = client::ask(global, false, async |mut client| {
        Ok(client.events(v1::EventsRequest { follow }).await?.into_inner())
    })
    .await?;
    loop {
        match stream.message().await {
            Ok(Some(event)) => print(global, &api::event(event), terminal)?,
            Ok(None) if follow => {
                return Err(CliError::new(Exit::NoQuorum, "the member has ended the stream")
                    .hint("ask another one with `--host HOST`"));
            }
            Ok(None) => return Ok(()),
            Err(status) => return Err(OperatorError::from(status).into()),
        }
    }
}

/// Asks for the events that a member remembers.
pub(super) async fn remembered(global: &Global) -> Result<Vec<Event>, CliError> {
    client::ask(global, false, async |mut client| {
        let mut stream = client.events(v1::EventsRequest { follow: false }).await?.into_inner();
        let mut found = Vec::new();
        while let Some(event) = stream.message().await? {
            found.push(api::event(event));
        }
        Ok(found)
    })
    .await
}

fn print(global: &Global, event: &Event, terminal: &mut Terminal) -> Result<(), CliError> {
    if global.json() {
        return print_json(terminal, event);
    }
    terminal.data(&line(event));
    Ok(())
}

/// Renders an event; one of the whole cluster is nobody's.
pub(super) fn line(event: &Event) -> String {
    let when = event.time.map_or_else(|| "-".to_owned(), super::super::civil::WallTime::short);
    let node = event.node.as_deref().unwrap_or("-");
    format!("{when}  {node}  {}: {}\n", event.reason, event.message)
}
