//! `rhone status`: the cluster at a glance.

use std::fmt::Write;
use std::time::Duration;

use super::args::Global;
use super::exit::{CliError, Exit};
use super::table::{self, Align, or_dash};
use super::terminal::Terminal;
use super::watch::Outage;
use super::{client, print_changed, print_json};
use crate::api;
use crate::api::proto::v1;
use crate::config::units;
use crate::status::{ClusterStatus, MemberStatus, OperatorError, PendingSetting, Role, State, SyncMode};

/// How often `--watch` asks.
const WATCH_INTERVAL: Duration = Duration::from_secs(1);

/// Asks a member for the status.
pub(crate) async fn fetch(global: &Global) -> Result<ClusterStatus, CliError> {
    client::ask(global, false, async |mut client| {
        let reply = client.status(v1::StatusRequest {}).await?.into_inner();
        let status =
            reply.status.ok_or_else(|| OperatorError::Failed("the member sent no status".to_owned()))?;
        Ok(api::cluster_status(status))
    })
    .await
}

/// Tells what was changed, and prints the cluster after it; with JSON both in one object. That the cluster cannot be
/// looked at afterwards undoes nothing.
pub(super) async fn shown<T: serde::Serialize>(
    global: &Global,
    change: &T,
    said: &str,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let after = fetch(global).await.ok();
    if global.json() {
        return print_changed(terminal, change, after.as_ref());
    }
    terminal.talk(said);
    if let Some(after) = after {
        terminal.data(&render(&after, terminal.colour()));
    }
    Ok(())
}

/// Prints the status, once or again and again.
pub(super) async fn run(global: &Global, watch: bool, terminal: &mut Terminal) -> Result<(), CliError> {
    let mut outage = Outage::default();
    loop {
        match fetch(global).await {
            Ok(status) => {
                outage.answered(terminal);
                if global.json() {
                    print_json(terminal, &status)?;
                } else {
                    print(&status, watch, terminal);
                }
            }
            // A watch outlives a failover, and a member's restart.
            Err(error) if watch && error.exit != Exit::Usage => outage.failed(&error, terminal),
            Err(error) => return Err(error),
        }
        if !watch {
            return Ok(());
        }
        tokio::time::sleep(WATCH_INTERVAL).await;
    }
}

fn print(status: &ClusterStatus, watch: bool, terminal: &mut Terminal) {
    let clear = if watch && terminal.interactive() { "\x1b[H\x1b[J" } else { "" };
    let text = render(status, terminal.colour());
    let gap = if watch && !terminal.interactive() { "\n" } else { "" };
    terminal.data(&format!("{clear}{text}{gap}"));
    for warning in &status.warnings {
        terminal.talk(&format!("warning: {warning}"));
    }
    if !status.warnings.is_empty() || !status.writable {
        terminal.talk("hint: `rhone explain` shows what would be decided now, and why");
    }
}

/// Renders the head and the table of members.
pub(crate) fn render(status: &ClusterStatus, colour: bool) -> String {
    let mut text = head(status);
    let rows: Vec<[String; 7]> = status.members.iter().map(|member| row(status, member)).collect();
    let columns = [
        ("NODE", Align::Left),
        ("ROLE", Align::Left),
        ("STATE", Align::Left),
        ("FLUSHED", Align::Left),
        ("LAG", Align::Right),
        ("SEEN", Align::Right),
        ("NOTE", Align::Left),
    ];
    let table = table::render(columns, &rows);
    text.push('\n');
    for (n, line) in table.lines().enumerate() {
        let state = n.checked_sub(1).and_then(|n| status.members.get(n)).map(|m| m.state);
        text.push_str(&paint(line, state, colour));
        text.push('\n');
    }
    text
}

fn head(status: &ClusterStatus) -> String {
    let system = status.system_identifier.map_or_else(String::new, |id| format!(", system {id}"));
    let mut text = format!("cluster {}{system}: ", status.cluster);
    // Writing to a String cannot fail.
    let _ok = match &status.primary {
        Some(primary) => write!(text, "primary {primary}"),
        None => write!(text, "no primary"),
    };
    if let Some(epoch) = status.epoch {
        let _ok = write!(text, ", epoch {epoch}");
    }
    if let Some(timeline) = status.timeline {
        let _ok = write!(text, ", timeline {timeline}");
    }
    if status.primary.is_some() && !status.writable {
        text.push_str(", not writable now");
    }
    if status.paused {
        text.push_str(", automatic failover is off (paused)");
    }
    let lose = status.failover_would_lose.as_deref();
    let lose = lose.map_or_else(String::new, |lose| format!("; a failover now would lose {lose}"));
    let _ok = writeln!(text, "\n{}{lose}", waits(status));
    if let Some(scheduled) = &status.scheduled_switchover {
        let _ok = writeln!(text, "{scheduled}; `rhone switchover --cancel` takes it off");
    }
    for scheduled in &status.scheduled_restarts {
        let _ok = writeln!(text, "{scheduled}; `rhone restart {} --cancel` takes it off", scheduled.name);
    }
    text
}

/// Says in words whom commits wait for.
fn waits(status: &ClusterStatus) -> String {
    let sync = &status.sync;
    match (sync.mode, sync.required, sync.members.len()) {
        (SyncMode::Off, _, _) => "commits wait for no standby".to_owned(),
        (SyncMode::Quorum | SyncMode::Strict, _, 0) => "no standby can acknowledge commits now".to_owned(),
        (SyncMode::Quorum | SyncMode::Strict, 1, 1) => {
            format!("each commit waits for {}", sync.members.join(", "))
        }
        (SyncMode::Quorum | SyncMode::Strict, required, _) => {
            let number = if required == 1 { "one".to_owned() } else { required.to_string() };
            format!("each commit waits for {number} of {}", sync.members.join(", "))
        }
    }
}

fn row(status: &ClusterStatus, member: &MemberStatus) -> [String; 7] {
    let flushed = match (member.timeline, member.lsn) {
        (Some(timeline), Some(lsn)) => format!("{timeline}:{lsn}"),
        (_, _) => "-".to_owned(),
    };
    let lag = member.lag_bytes.filter(|_| member.role == Role::Standby).map(units::print_size);
    let mut notes: Vec<String> = member.note.iter().cloned().collect();
    if status.raft_leader.as_deref() == Some(member.name.as_str()) {
        notes.push(
            status.term.map_or_else(|| "raft leader".to_owned(), |term| format!("raft leader, term {term}")),
        );
    }
    if !member.voter {
        notes.push("learner".to_owned());
    }
    if member.pending_restart == Some(true) {
        let value = |value: &Option<String>| value.clone().unwrap_or_else(|| "default".to_owned());
        let each = |p: &PendingSetting| format!("{} {} -> {}", p.name, p.running, value(&p.wanted));
        let pending: Vec<String> = member.pending.iter().map(each).collect();
        notes.push(format!("restart pending: {}", pending.join(", ")));
    }
    [
        member.name.clone(),
        if member.role == Role::None { "-".to_owned() } else { member.role.to_string() },
        member.state.to_string(),
        flushed,
        or_dash(lag),
        or_dash(member.seen_ms.map(|ms| format!("{}.{}s", ms / 1000, ms % 1000 / 100))),
        notes.join("; "),
    ]
}

/// Colours a line by its member's state: red is away, yellow on its way, nothing is well.
fn paint(line: &str, state: Option<State>, colour: bool) -> String {
    let code = match state {
        Some(State::Crashed | State::Fenced | State::Unreachable) => 31,
        Some(
            State::Starting
            | State::CrashRecovery
            | State::Promoting
            | State::Frozen
            | State::ArchiveRecovery
            | State::Rewinding
            | State::Cloning
            | State::Stopped,
        ) => 33,
        None => 1,
        Some(State::Running | State::Streaming | State::Voting) => 0,
    };
    if colour && code != 0 { format!("\x1b[{code}m{line}\x1b[0m") } else { line.to_owned() }
}
