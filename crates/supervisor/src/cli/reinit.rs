//! `rhone reinit`: a new copy for a standby, which goes on streaming until that is complete.

use std::time::Duration;

use super::args::Global;
use super::exit::{CliError, Exit};
use super::hold::{Whose, wait};
use super::member::{Call, call, member};
use super::terminal::Terminal;
use super::{print_changed, print_json, status};
use crate::config::units::print_size;
use crate::status::{ClusterStatus, MemberStatus, State};

/// How long a copy may take to begin, or to be given up: what is under way is finished first.
const BEGIN_LIMIT: Duration = Duration::from_secs(60);

/// How long a copy may take: a large database over a slow line. It goes on when this ends.
const COPY_LIMIT: Duration = Duration::from_secs(24 * 3600);

/// How often is looked while a copy goes on.
const LOOK_EVERY: Duration = Duration::from_millis(500);

/// What is so of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Seen {
    /// It goes on; what a person is told of it.
    Goes(String),
    /// It streams, and is another data directory than before.
    Done,
    /// Nobody wants it any more, and the old data directory is what there is.
    GivenUp,
}

/// Judges by the data directory alone: that a server was restarted says nothing.
fn see(before: &MemberStatus, now: &MemberStatus) -> Seen {
    let another = now.data_id.is_some() && now.data_id != before.data_id;
    match &now.copying {
        Some(copy) => Seen::Goes(match &copy.error {
            Some(error) => format!("attempt {} failed, tries again: {error}", copy.failed),
            None => format!("{} copied", print_size(copy.bytes)),
        }),
        None if another && now.state == State::Streaming => Seen::Done,
        None if !another && now.data_id.is_some() => Seen::GivenUp,
        None => Seen::Goes(now.state.to_string()),
    }
}

/// Copies a standby anew.
pub(super) async fn reinit(
    global: &Global,
    whose: Whose,
    yes: bool,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let Whose { name, no_wait } = whose;
    let name = name.as_str();
    let before = status::fetch(global).await?;
    let known = member(&before, name)?.clone();
    let what =
        format!("{name} is copied anew from the primary; what it has is removed once the copy streams");
    terminal.ask(&what, yes)?;
    call(global, &before, name, Call::Reinit).await?;
    if no_wait {
        terminal.talk(&format!("{name} is being copied; `rhone status --watch` shows it"));
        return if global.json() {
            print_json(terminal, &serde_json::json!({ "name": name, "finished": false }))
        } else {
            Ok(())
        };
    }
    // Until its next report the member says nothing of it.
    let begun = |status: &ClusterStatus| {
        member(status, name).is_ok_and(|now| now.copying.is_some() || now.data_id != known.data_id)
    };
    wait(global, BEGIN_LIMIT, begun).await?;
    let looking = async {
        let mut told = String::new();
        loop {
            if let Ok(status) = status::fetch(global).await
                && let Ok(now) = member(&status, name)
            {
                match see(&known, now) {
                    Seen::Done => return Ok(status),
                    Seen::GivenUp => return Err(given_up(name)),
                    Seen::Goes(words) if words != told => {
                        terminal.talk(&format!("{name}: {words}"));
                        told = words;
                    }
                    Seen::Goes(_) => {}
                }
            }
            tokio::time::sleep(LOOK_EVERY).await;
        }
    };
    let after = tokio::time::timeout(COPY_LIMIT, looking).await.map_err(|_| {
        CliError::new(Exit::Unknown, format!("{name} is still being copied"))
            .hint("`rhone status` shows how far it is")
    })??;
    if global.json() {
        let told = serde_json::json!({ "name": name, "finished": true });
        return print_changed(terminal, &told, Some(&after));
    }
    terminal.data(&status::render(&after, terminal.colour()));
    Ok(())
}

fn given_up(name: &str) -> CliError {
    CliError::failed(format!("the new copy of {name} was given up; it goes on with what it had"))
        .hint("somebody cancelled it, or its supervisor was restarted: ask again")
}

/// Gives a copy up that was asked for and is not complete.
pub(super) async fn cancel(global: &Global, name: &str, terminal: &mut Terminal) -> Result<(), CliError> {
    let before = status::fetch(global).await?;
    let known = member(&before, name)?.clone();
    call(global, &before, name, Call::Keep).await?;
    let settled = |status: &ClusterStatus| {
        member(status, name).is_ok_and(|now| now.copying.is_none() && now.data_id.is_some())
    };
    let after = wait(global, BEGIN_LIMIT, settled).await?;
    let kept = member(&after, name)?.data_id == known.data_id;
    if global.json() {
        return print_changed(terminal, &serde_json::json!({ "name": name, "kept": kept }), Some(&after));
    }
    terminal.talk(&if kept {
        format!("{name} keeps what it has")
    } else {
        format!("the copy was complete already: {name} goes on with it")
    });
    terminal.data(&status::render(&after, terminal.colour()));
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::CopyStatus;

    /// `DATA STATE`, with `-` for none; behind it the copy as `BYTES FAILED ERROR`.
    #[track_caller]
    fn check(now: &str, copy: Option<(u64, u32, &str)>, expected: &Seen) {
        let words: Vec<&str> = now.split(' ').collect();
        let known = |data: &str| (data != "-").then(|| data.to_owned());
        let before = MemberStatus { data_id: known("1"), ..MemberStatus::default() };
        let copying = copy.map(|(bytes, failed, error)| CopyStatus {
            bytes,
            failed,
            error: (!error.is_empty()).then(|| error.to_owned()),
        });
        let state = if words[1] == "streaming" { State::Streaming } else { State::Stopped };
        let now = MemberStatus { data_id: known(words[0]), state, copying, ..MemberStatus::default() };
        assert_eq!(&see(&before, &now), expected);
    }

    #[test]
    fn only_another_data_directory_that_streams_is_a_new_copy() {
        check("1 streaming", Some((5 << 20, 0, "")), &Seen::Goes("5.0 MiB copied".to_owned()));
        check(
            "1 streaming",
            Some((0, 2, "no space")),
            &Seen::Goes("attempt 2 failed, tries again: no space".to_owned()),
        );
        check("- stopped", None, &Seen::Goes("stopped".to_owned()));
        check("2 stopped", None, &Seen::Goes("stopped".to_owned()));
        check("2 streaming", None, &Seen::Done);
        check("1 streaming", None, &Seen::GivenUp); // also when its server is another one
    }
}
