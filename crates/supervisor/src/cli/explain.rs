//! `rhone explain`: what would be decided now, by whom, and why.

use std::fmt::Write;

use super::args::Global;
use super::exit::CliError;
use super::table::{self, Align, or_dash};
use super::terminal::Terminal;
use super::{client, print_json};
use crate::api;
use crate::api::proto::v1;
use crate::status::Explanation;

/// Asks.
pub(super) async fn fetch(global: &Global) -> Result<Explanation, CliError> {
    client::ask(global, false, async |mut client| {
        Ok(api::explanation(client.explain(v1::ExplainRequest {}).await?.into_inner()))
    })
    .await
}

/// Asks and prints.
pub(super) async fn run(global: &Global, terminal: &mut Terminal) -> Result<(), CliError> {
    let explanation = fetch(global).await?;
    if global.json() {
        return print_json(terminal, &explanation);
    }
    terminal.data(&render(&explanation));
    Ok(())
}

/// Renders an explanation: the decision, what it rests on, then each member's.
pub(crate) fn render(explanation: &Explanation) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    let _ok = match &explanation.decided_by {
        Some(name) => writeln!(text, "{name} decides: {} ({})", explanation.decision, explanation.reason),
        None => writeln!(text, "nobody can decide: {} ({})", explanation.decision, explanation.reason),
    };
    for detail in &explanation.details {
        let _ok = writeln!(text, "- {detail}");
    }
    if !explanation.members.is_empty() {
        let rows: Vec<[String; 3]> = explanation
            .members
            .iter()
            .map(|m| [m.name.clone(), m.decision.clone(), or_dash(m.reason.as_ref())])
            .collect();
        let columns = [("NODE", Align::Left), ("IS", Align::Left), ("REASON", Align::Left)];
        text.push('\n');
        text.push_str(&table::render(columns, &rows));
    }
    text
}
