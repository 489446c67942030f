//! `rhone restart` and `rhone reload`: one member after the other, the primary last and by a switchover.
//!
//! No step is stored anywhere: each is decided anew from what the cluster says, so that a failover in
//! between, or a run that was cut, changes nothing but what is left to do.

use std::collections::BTreeMap;
use std::time::Duration;

use super::args::Global;
use super::exit::{CliError, Exit};
use super::terminal::Terminal;
use super::{client, detached, print_changed, print_json, status};
use crate::api;
use crate::api::proto::v1;
use crate::civil::WallTime;
use crate::runtime::clock::{BootTime, Clock};
use crate::status::{
    ClusterStatus, Kind, MemberStatus, OperatorError, Role, State, SwitchoverReply, SyncMode,
};

/// How often is looked.
const LOOK_EVERY: Duration = Duration::from_millis(200);

/// After how long without a sign of it the same is asked for again; that is harmless.
const ASK_AGAIN: Duration = Duration::from_secs(15);

/// How long one step may take: a checkpoint and a recovery on a slow card.
const STEP_LIMIT: Duration = Duration::from_secs(300);

/// A member that does not start for so long is not waited for: it tries again each few seconds.
const GIVEN_UP: Duration = Duration::from_secs(5);

/// A standby that lags more is not relied on yet: one segment.
const CAUGHT_UP: u64 = 16 << 20;

/// What was typed.
#[derive(Clone, Debug)]
pub(super) struct Flags {
    pub(super) name: Option<String>,
    pub(super) if_pending: bool,
    pub(super) no_wait: bool,
}

/// The servers that are to be restarted, by their member, each named by its start.
type Meant = BTreeMap<String, WallTime>;

/// What comes next.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Next {
    /// To restart that standby.
    Restart(String),
    /// To hand over from that primary, which is restarted by it.
    HandOver(String),
    /// To restart the only data member in place.
    InPlace(String),
    /// To wait, and for what.
    Wait(String),
    /// Nothing.
    Done,
}

/// Decides what comes next: standbys first, one at a time, each only while all the others are well.
fn next(status: &ClusterStatus, meant: &Meant) -> Next {
    let left = |member: &&MemberStatus| {
        meant
            .get(&member.name)
            .is_some_and(|started| member.started.is_none() || member.started == Some(*started))
    };
    if meant.is_empty() {
        return Next::Done;
    }
    let data = || status.members.iter().filter(|member| member.kind == Kind::Data);
    let Some(primary) = status.primary.as_ref().filter(|_| status.writable) else {
        return Next::Wait("no primary serves just now".to_owned());
    };
    let unwell = data().filter(|member| meant.contains_key(&member.name)).find_map(|member| {
        let well = match member.role {
            Role::Primary => member.state == State::Running,
            Role::Standby => {
                member.state == State::Streaming && member.lag_bytes.is_some_and(|lag| lag <= CAUGHT_UP)
            }
            Role::Witness | Role::None => false,
        };
        (!well).then(|| format!("{} is {}", member.name, member.state))
    });
    if let Some(why) = unwell {
        return Next::Wait(why);
    }
    let standbys: Vec<&MemberStatus> = data().filter(left).filter(|member| member.name != *primary).collect();
    let primary_left = data().filter(left).any(|member| member.name == *primary);
    if standbys.is_empty() && !primary_left {
        return Next::Done;
    }
    // In a synchronous cluster the others acknowledge meanwhile: who was restarted has to be back among them.
    let synchronous = status.sync.mode != SyncMode::Off;
    if synchronous && !status.sync.settled {
        return Next::Wait("the policy of commits is being changed".to_owned());
    }
    let names: Vec<&str> = standbys.iter().map(|member| member.name.as_str()).collect();
    let acknowledges = |name: &str| status.sync.members.iter().any(|member| member == name);
    let back = data()
        .filter(|m| m.name != *primary && meant.contains_key(&m.name) && !names.contains(&m.name.as_str()));
    let usual = status.sync.required as usize * 2;
    if synchronous
        && status.sync.members.len() < usual
        && let Some(member) = back.into_iter().find(|member| !acknowledges(&member.name))
    {
        return Next::Wait(format!("{} acknowledges no commits yet", member.name));
    }
    match standbys.first() {
        Some(member) => Next::Restart(member.name.clone()),
        None if data().count() == 1 => Next::InPlace(primary.clone()),
        None => Next::HandOver(primary.clone()),
    }
}

/// One thing that was done, for `-o json`.
#[derive(Clone, Debug, serde::Serialize)]
struct Restarted {
    name: String,
    seconds: f64,
    handed_over_to: Option<String>,
    seconds_without_primary: Option<f64>,
}

/// Restarts one member, or all of them one after the other.
#[allow(clippy::too_many_lines, reason = "one loop: what is seen, what is told, what is asked for")]
pub(super) async fn restart(global: &Global, flags: Flags, terminal: &mut Terminal) -> Result<(), CliError> {
    let before = status::fetch(global).await?;
    let meant = choose(&before, &flags, terminal)?;
    let mut done: Vec<Restarted> = Vec::new();
    if flags.no_wait {
        return begin_only(global, &before, &meant, &flags, terminal).await;
    }
    let mut told = String::new();
    let mut since = BootTime::ZERO;
    let mut at_work: Option<(String, BootTime)> = None;
    let mut failing_since: Option<BootTime> = None;
    loop {
        let looked = status::fetch(global).await;
        let step = match &looked {
            Ok(status) => next(status, &meant),
            // A failover meanwhile is no reason to give up.
            Err(error) => Next::Wait(error.message.clone()),
        };
        if let (Ok(status), Some((name, begun))) = (&looked, &at_work)
            && back(status, &meant, name)
        {
            let seconds = Clock.now().saturating_since(*begun).as_secs_f64();
            let ready = meant.keys().filter(|name| back(status, &meant, name)).count();
            terminal
                .talk(&format!("{name}: restarted, back after {seconds:.1} s ({ready} of {})", meant.len()));
            let known = done.iter_mut().find(|known| known.name == *name);
            match known {
                Some(known) => known.seconds = seconds,
                None => done.push(Restarted {
                    name: name.clone(),
                    seconds,
                    handed_over_to: None,
                    seconds_without_primary: None,
                }),
            }
            at_work = None;
        }
        let now = Clock.now();
        let failing = match (&looked, &at_work) {
            (Ok(status), Some((name, _))) => does_not_start(status, name),
            (_, _) => None,
        };
        match failing {
            Some(why) if now.saturating_since(*failing_since.get_or_insert(now)) >= GIVEN_UP => {
                return Err(stopped(looked.ok().as_ref(), &meant, &why));
            }
            Some(_) => {}
            None => failing_since = None,
        }
        let key = format!("{step:?}");
        if key != told {
            (told, since) = (key, now);
        }
        if now.saturating_since(since) > STEP_LIMIT {
            return Err(cut(
                looked.ok().as_ref(),
                &meant,
                &format!("no progress for {} s", STEP_LIMIT.as_secs()),
            ));
        }
        let work = match step {
            Next::Done if at_work.is_none() => break,
            Next::Done | Next::Wait(_) => None,
            Next::Restart(name) | Next::InPlace(name) => Some((name, false)),
            Next::HandOver(name) => Some((name, true)),
        };
        // What was asked for a moment ago is not seen yet: a report takes half a second, a shutdown longer.
        let asked = |name: &str| {
            at_work.as_ref().is_some_and(|(known, begun)| {
                known == name && Clock.now().saturating_since(*begun) < ASK_AGAIN
            })
        };
        let work = work.filter(|(name, _)| !asked(name));
        if let (Some((name, hand_over)), Ok(status)) = (work, &looked) {
            let again = at_work.as_ref().is_some_and(|(known, _)| *known == name);
            terminal.talk(&if hand_over {
                format!("{name}: hands over, so that it is restarted")
            } else {
                format!("{name}: is restarted")
            });
            at_work = Some((name.clone(), now));
            match begin(global, status, &meant, &name, hand_over).await {
                Ok(reply) if hand_over => {
                    let to = reply.to.clone().unwrap_or_default();
                    let gap = reply.seconds_without_primary.unwrap_or_default();
                    let what = if to == name {
                        "is primary again".to_owned()
                    } else {
                        format!("handed over to {to}")
                    };
                    terminal.talk(&format!("{name}: {what}, {gap:.2} s without a primary"));
                    let (handed_over_to, seconds_without_primary) = (reply.to, reply.seconds_without_primary);
                    done.push(Restarted { name, seconds: 0.0, handed_over_to, seconds_without_primary });
                }
                Ok(_) => {}
                // What is so is looked at again: it may have come to pass, or the leader changed.
                Err(error)
                    if again || matches!(error.exit, Exit::Unknown | Exit::NoQuorum | Exit::Failed) =>
                {
                    terminal.talk(&format!("{name}: {}; looks again", error.message));
                }
                Err(error) => {
                    let rest = cut(Some(status), &meant, &error.message);
                    return Err(CliError {
                        exit: if done.is_empty() { error.exit } else { Exit::Failed },
                        ..rest
                    });
                }
            }
        }
        let pause = tokio::time::sleep(LOOK_EVERY);
        tokio::select! {
            () = pause => {}
            _ = tokio::signal::ctrl_c() => return Err(cut(looked.ok().as_ref(), &meant, "interrupted")),
        }
    }
    let after = status::fetch(global).await?;
    if global.json() {
        let told = serde_json::json!({ "restarted": done, "finished": true });
        return print_changed(terminal, &told, Some(&after));
    }
    terminal.data(&status::render(&after, terminal.colour()));
    Ok(())
}

/// Says why the Postgres of a member does not start, if it does not.
fn does_not_start(status: &ClusterStatus, name: &str) -> Option<String> {
    let member = status.members.iter().find(|member| member.name == name)?;
    let why = member.start_failure.as_ref().filter(|_| member.started.is_none())?;
    Some(format!("{name} does not start again: {why}"))
}

/// Stops where a member does not come back: the others are better left as they are.
fn stopped(status: Option<&ClusterStatus>, meant: &Meant, why: &str) -> CliError {
    let version = status.and_then(|status| status.settings_version).unwrap_or(1);
    cut(status, meant, why).hint(format!(
        "`rhone settings revert {}` takes the last change back, and it starts again by itself",
        version.saturating_sub(1).max(1)
    ))
}

/// Says what is left, so that the same command can go on with it.
fn cut(status: Option<&ClusterStatus>, meant: &Meant, why: &str) -> CliError {
    let left: Vec<&str> = match status {
        Some(status) => meant.keys().filter(|name| !back(status, meant, name)).map(String::as_str).collect(),
        None => meant.keys().map(String::as_str).collect(),
    };
    CliError::failed(format!("{why}; not restarted: {}", left.join(", ")))
        .hint("`rhone restart --rolling --if-pending` goes on with what waits for a restart")
}

/// Whether another server runs on that member by now, and is well.
fn back(status: &ClusterStatus, meant: &Meant, name: &str) -> bool {
    status.members.iter().any(|member| {
        member.name == name
            && member.started.is_some_and(|started| meant.get(name) != Some(&started))
            && matches!(member.state, State::Streaming | State::Running)
    })
}

/// Finds out which servers are meant.
fn choose(status: &ClusterStatus, flags: &Flags, terminal: &mut Terminal) -> Result<Meant, CliError> {
    let mut meant = Meant::new();
    if let Some(name) = &flags.name {
        let known = status.members.iter().find(|member| member.name == *name);
        let member = known.ok_or_else(|| {
            CliError::new(Exit::Refused, format!("refused, nothing was changed: no member is named {name}"))
                .hint("`rhone status` lists them")
        })?;
        let started = member.started.ok_or_else(|| {
            CliError::new(
                Exit::Refused,
                format!(
                    "refused, nothing was changed: {name} is {}, there is nothing to restart",
                    member.state
                ),
            )
            .hint("`rhone status` shows what it does")
        })?;
        if !flags.if_pending || member.pending_restart == Some(true) {
            meant.insert(name.clone(), started);
        }
        return Ok(meant);
    }
    for member in status.members.iter().filter(|member| member.kind == Kind::Data) {
        match member.started {
            Some(started) if !flags.if_pending || member.pending_restart == Some(true) => {
                meant.insert(member.name.clone(), started);
            }
            Some(_) => {}
            None => terminal.talk(&format!("{} is {}: left out", member.name, member.state)),
        }
    }
    Ok(meant)
}

/// Begins, and waits for nothing. A sequence is nobody's to remember (each step is decided from what is so), and
/// so goes on in a process of its own.
async fn begin_only(
    global: &Global,
    status: &ClusterStatus,
    meant: &Meant,
    flags: &Flags,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let words = match (meant.keys().next(), meant.len()) {
        (None, _) => "nothing is to be restarted".to_owned(),
        (Some(name), 1) => {
            let hand_over = status.primary.as_ref() == Some(name)
                && status.members.iter().filter(|m| m.kind == Kind::Data).count() > 1;
            begin(global, status, meant, name, hand_over).await?;
            format!("{name} is being restarted; `rhone status --watch` shows it")
        }
        (Some(_), _) => {
            let mut verb = vec!["restart", "--rolling"];
            verb.extend(flags.if_pending.then_some("--if-pending"));
            let log = detached::start(global, &verb)?;
            let names: Vec<&str> = meant.keys().map(String::as_str).collect();
            format!(
                "{} are being restarted one after the other; `rhone status --watch` shows it, and {} tells of it",
                names.join(", "),
                log.display()
            )
        }
    };
    if global.json() {
        let finished = meant.is_empty();
        return print_json(terminal, &serde_json::json!({ "restarted": [], "finished": finished }));
    }
    terminal.talk(&words);
    Ok(())
}

async fn begin(
    global: &Global,
    status: &ClusterStatus,
    meant: &Meant,
    name: &str,
    hand_over: bool,
) -> Result<SwitchoverReply, CliError> {
    let idempotency_key = client::idempotency_key()?;
    let expected_epoch = status.epoch.map(|epoch| epoch.0);
    if hand_over {
        let request =
            v1::SwitchoverRequest { idempotency_key, expected_epoch, ..v1::SwitchoverRequest::default() };
        return client::ask(global, true, async |mut client| {
            api::change_reply(client.switchover(request.clone()).await?.into_inner())
        })
        .await;
    }
    let started_ms = meant.get(name).map(|started| started.as_ms());
    let request = v1::RestartRequest {
        idempotency_key,
        expected_epoch,
        name: name.to_owned(),
        started_ms,
        ..v1::RestartRequest::default()
    };
    client::ask(global, true, async |mut client| {
        api::change_reply(client.restart(request.clone()).await?.into_inner())
    })
    .await
}

/// Has one member, or all of them, read the configuration again.
pub(super) async fn reload(
    global: &Global,
    name: Option<String>,
    no_wait: bool,
    terminal: &mut Terminal,
) -> Result<(), CliError> {
    let before = status::fetch(global).await?;
    let names: Vec<String> = match name {
        Some(name) => vec![name],
        None => before
            .members
            .iter()
            .filter(|member| member.kind == Kind::Data && member.started.is_some())
            .map(|member| member.name.clone())
            .collect(),
    };
    let mut failed: Option<CliError> = None;
    let mut done = Vec::new();
    for name in names {
        let request = v1::MemberRequest {
            idempotency_key: client::idempotency_key()?,
            expected_epoch: before.epoch.map(|epoch| epoch.0),
            name: name.clone(),
            ..v1::MemberRequest::default()
        };
        let outcome: Result<SwitchoverReply, CliError> = client::ask(global, true, async |mut client| {
            let reply: Result<_, OperatorError> = client.reload(request.clone()).await.map_err(Into::into);
            api::change_reply(reply?.into_inner())
        })
        .await;
        match outcome {
            Ok(_) => done.push(name),
            Err(error) => {
                terminal.talk(&format!("{name}: {}", error.message));
                failed.get_or_insert(error);
            }
        }
    }
    let change = serde_json::json!({ "reloaded": done });
    let said = format!("told to read the configuration again: {}", done.join(", "));
    if !done.is_empty() && !no_wait {
        status::shown(global, &change, &said, terminal).await?;
    } else if global.json() {
        print_json(terminal, &change)?;
    } else if !done.is_empty() {
        terminal.talk(&said);
    }
    failed.map_or(Ok(()), Err)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Members as `NAME STARTED STATE`, the first is the primary; which servers are meant as `NAME STARTED`.
    fn status_of(lines: &str, sync: &str) -> ClusterStatus {
        let members = lines.split(", ").enumerate().map(|(n, line)| {
            let words: Vec<&str> = line.split(' ').collect();
            let state = match words[2] {
                "running" => State::Running,
                "streaming" => State::Streaming,
                "starting" => State::Starting,
                other => panic!("no such state: {other}"),
            };
            let role = match (n, state) {
                (0, _) => Role::Primary,
                (_, State::Streaming) => Role::Standby,
                (_, _) => Role::None,
            };
            let started = words[1].parse().ok().map(WallTime::from_ms);
            let lag_bytes = (role == Role::Standby).then_some(0);
            MemberStatus {
                name: words[0].to_owned(),
                role,
                state,
                started,
                lag_bytes,
                ..MemberStatus::default()
            }
        });
        let members: Vec<MemberStatus> = members.collect();
        let mut status = ClusterStatus {
            primary: members.first().map(|member| member.name.clone()),
            writable: true,
            members,
            ..ClusterStatus::default()
        };
        if !sync.is_empty() {
            status.sync.mode = SyncMode::Quorum;
            status.sync.settled = true;
            status.sync.required = 1;
            status.sync.members = sync.split(' ').map(str::to_owned).collect();
        }
        status
    }

    #[track_caller]
    fn check(members: &str, sync: &str, meant: &str, expected: &str) {
        let meant: Meant = meant
            .split(", ")
            .filter_map(|pair| pair.split_once(' '))
            .map(|(name, started)| (name.to_owned(), WallTime::from_ms(started.parse().expect("a number"))))
            .collect();
        assert_eq!(format!("{:?}", next(&status_of(members, sync), &meant)), expected, "{members}");
    }

    #[test]
    fn standbys_first_one_at_a_time_and_the_primary_last_by_a_switchover() {
        let all = "a 1, b 1, c 1";
        check("a 1 running, b 1 streaming, c 1 streaming", "", all, "Restart(\"b\")");
        check("a 1 running, b - starting, c 1 streaming", "", all, "Wait(\"b is starting\")");
        check("a 1 running, b 2 starting, c 1 streaming", "", all, "Wait(\"b is starting\")");
        check("a 1 running, b 2 streaming, c 1 streaming", "", all, "Restart(\"c\")");
        check("a 1 running, b 2 streaming, c 2 streaming", "", all, "HandOver(\"a\")");
        // The former primary comes back as a standby with another server, or has to be restarted as one.
        check("b 2 running, a 2 streaming, c 2 streaming", "", all, "Done");
        check("b 2 running, a 1 streaming, c 2 streaming", "", all, "Restart(\"a\")");
        // Only what is meant.
        check("a 1 running, b 1 streaming, c 1 streaming", "", "c 1", "Restart(\"c\")");
        check("a 1 running, b 1 starting, c 1 streaming", "", "c 1", "Restart(\"c\")");
        check("a 1 running", "", "a 1", "InPlace(\"a\")");
        check("a 1 running, b 1 streaming", "", "", "Done");
    }

    #[test]
    fn in_a_synchronous_cluster_the_next_one_waits_until_the_last_acknowledges_again() {
        let all = "a 1, b 1, c 1";
        check("a 1 running, b 1 streaming, c 1 streaming", "b c", all, "Restart(\"b\")");
        check(
            "a 1 running, b 2 streaming, c 1 streaming",
            "c",
            all,
            "Wait(\"b acknowledges no commits yet\")",
        );
        check("a 1 running, b 2 streaming, c 1 streaming", "b c", all, "Restart(\"c\")");
        check(
            "a 1 running, b 2 streaming, c 2 streaming",
            "b",
            all,
            "Wait(\"c acknowledges no commits yet\")",
        );
        let mut status = status_of("a 1 running, b 1 streaming", "b");
        let meant = Meant::from([("b".to_owned(), WallTime::from_ms(1))]);
        assert_eq!(next(&status, &meant), Next::Restart("b".to_owned()));
        status.sync.settled = false;
        assert_eq!(next(&status, &meant), Next::Wait("the policy of commits is being changed".to_owned()));
        status.writable = false;
        assert_eq!(next(&status, &meant), Next::Wait("no primary serves just now".to_owned()));
    }

    #[test]
    fn what_is_left_is_said() {
        let status = status_of("a 1 running, b 2 streaming, c - starting", "");
        let meant: Meant = ["a", "b", "c"].map(|name| (name.to_owned(), WallTime::from_ms(1))).into();
        assert_eq!(cut(Some(&status), &meant, "interrupted").message, "interrupted; not restarted: a, c");
    }
}
