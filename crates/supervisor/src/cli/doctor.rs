//! `rhone doctor`: what an operator should fix.

use super::args::Global;
use super::exit::{CliError, Exit};
use super::terminal::Terminal;
use super::{client, print_json};
use crate::api;
use crate::api::proto::v1;
use crate::doctor::{Finding, Severity};

/// Asks.
pub(super) async fn fetch(global: &Global) -> Result<Vec<Finding>, CliError> {
    client::ask(global, false, async |mut client| {
        let reply = client.doctor(v1::DoctorRequest {}).await?.into_inner();
        Ok(reply.findings.into_iter().map(api::finding).collect())
    })
    .await
}

/// Asks and prints. Ends with status 1 where something is an error.
pub(super) async fn run(global: &Global, terminal: &mut Terminal) -> Result<(), CliError> {
    let findings = fetch(global).await?;
    if global.json() {
        print_json(terminal, &findings)?;
    } else {
        for finding in &findings {
            terminal.data(&line(finding));
        }
    }
    let errors = findings.iter().filter(|finding| finding.severity == Severity::Error).count();
    match (findings.len(), errors) {
        (0, _) => terminal.talk("nothing to fix"),
        (_, 0) => {}
        (_, errors) => {
            let what = if errors == 1 {
                "one of these is an error".to_owned()
            } else {
                format!("{errors} of these are errors")
            };
            return Err(CliError::new(Exit::Failed, what));
        }
    }
    Ok(())
}

/// Renders a finding.
pub(super) fn line(finding: &Finding) -> String {
    let severity = match finding.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    };
    let member = finding.member.as_deref().unwrap_or("cluster");
    format!("{severity}: {member}: {} ({})\n  hint: {}\n", finding.message, finding.code, finding.hint)
}
