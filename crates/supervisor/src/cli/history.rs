//! `rhone history`: every change of primary.

use super::args::Global;
use super::exit::CliError;
use super::table::{self, Align, or_dash};
use super::terminal::Terminal;
use super::{client, print_json};
use crate::api;
use crate::api::proto::v1;
use crate::status::HistoryEntry;

/// Asks.
pub(super) async fn fetch(global: &Global, limit: u32) -> Result<Vec<HistoryEntry>, CliError> {
    client::ask(global, false, async |mut client| {
        let reply = client.history(v1::HistoryRequest { limit }).await?.into_inner();
        Ok(reply.entries.into_iter().map(api::history_entry).collect::<Vec<_>>())
    })
    .await
}

/// Asks and prints.
pub(super) async fn run(global: &Global, limit: u32, terminal: &mut Terminal) -> Result<(), CliError> {
    let entries = fetch(global, limit).await?;
    if global.json() {
        return print_json(terminal, &entries);
    }
    if entries.is_empty() {
        terminal.talk("no primary has been named yet");
        return Ok(());
    }
    terminal.data(&render(&entries));
    Ok(())
}

/// Renders the changes, oldest first, as they were decided.
pub(crate) fn render(entries: &[HistoryEntry]) -> String {
    let rows: Vec<[String; 9]> = entries
        .iter()
        .map(|entry| {
            [
                or_dash(entry.time.map(super::super::civil::WallTime::short)),
                or_dash(entry.from.as_ref()),
                or_dash(entry.to.as_ref()),
                entry.epoch.to_string(),
                or_dash(entry.timeline),
                or_dash(entry.switch_lsn),
                or_dash(entry.seconds_without_primary.map(|seconds| format!("{seconds:.2}s"))),
                or_dash(entry.lost.as_ref()),
                entry.reason.clone(),
            ]
        })
        .collect();
    let columns = [
        ("WHEN (UTC)", Align::Left),
        ("FROM", Align::Left),
        ("TO", Align::Left),
        ("EPOCH", Align::Right),
        ("TIMELINE", Align::Right),
        ("SWITCH LSN", Align::Left),
        ("WITHOUT", Align::Right),
        ("LOST", Align::Left),
        ("REASON", Align::Left),
    ];
    table::render(columns, &rows)
}
