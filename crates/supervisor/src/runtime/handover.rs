//! Whether the primary can be handed over, and doing so at a time that a person set.

use std::sync::Arc;
use std::time::Duration;

use rhone_consensus::command::{ClusterCommand, Handover, Scheduled, WallTime};
use rhone_consensus::ids::Epoch;
use rhone_consensus::state::{ClusterState, Phase};

use super::operator::{advised, refused};
use super::publish;
use crate::decide::schedule::{Due, Look, due};
use crate::runtime::shared::Shared;
use crate::status::{OperatorError, State, When};

/// A standby that lags more than this is not handed over to: the shutdown would wait for it.
const SWITCHOVER_LAG: u64 = 64 << 20;

/// How long beginning or dropping one may take.
const PROPOSE_LIMIT: Duration = Duration::from_secs(10);

/// Finds out to whom, and whether it is ready; nothing is changed.
///
/// # Errors
/// Why not, in words for an operator.
pub(super) fn handover(
    shared: &Shared,
    state: &ClusterState,
    to: Option<&str>,
    expected: Option<Epoch>,
) -> Result<Handover, OperatorError> {
    let grant = state
        .current_grant()
        .filter(|_| state.phase == Phase::Established)
        .ok_or_else(|| refused("there is no primary to hand over from now", "rhone status"))?;
    if expected.is_some_and(|expected| expected != grant.epoch) {
        return Err(refused(format!("the epoch is {} by now", grant.epoch), "rhone status"));
    }
    let status = publish::cluster_status(shared);
    let owner = state.members.get(&grant.owner).map(|m| m.name.clone()).unwrap_or_default();
    let ready = |name: &str| -> Result<(), String> {
        let member = status.members.iter().find(|m| m.name == name);
        let Some(member) = member else { return Err(format!("no member is named {name}")) };
        may_take_over(state, name)?;
        if member.state != State::Streaming {
            return Err(format!("{name} is {}, not streaming", member.state));
        }
        match member.lag_bytes {
            Some(lag) if lag <= SWITCHOVER_LAG => Ok(()),
            Some(lag) => Err(format!("{name} lags {lag} bytes")),
            None => Err(format!("the lag of {name} is not known")),
        }
    };
    let to = match to {
        Some(name) if *name == owner => {
            return Err(is_primary(name));
        }
        Some(name) => {
            ready(name).map_err(|reason| refused(reason, "rhone status"))?;
            state.member_named(name).map(|member| member.node)
        }
        None => {
            let any = status.members.iter().any(|m| m.name != owner && ready(&m.name).is_ok());
            if !any {
                return Err(refused("no standby is ready to take over", "rhone status"));
            }
            None
        }
    };
    Ok(Handover { epoch: grant.epoch, to, leaving: false })
}

/// Refuses to make the primary of the primary.
pub(super) fn is_primary(name: &str) -> OperatorError {
    advised(
        format!("{name} is the primary already"),
        "name a standby, or leave `--to` out: the best one is taken",
    )
}

fn may_take_over(state: &ClusterState, name: &str) -> Result<(), String> {
    if state.member_named(name).is_none_or(|m| !m.may_lead()) {
        return Err(format!(
            "{name} is never promoted: it has priority 0, or is tagged no-failover or delayed"
        ));
    }
    Ok(())
}

/// Puts a switchover together for later: who leads now, and who is to lead then, must be members; whether
/// they are ready is asked when the time comes.
///
/// # Errors
/// Why not, in words for an operator.
pub(super) fn scheduled(
    state: &ClusterState,
    to: Option<&str>,
    at: WallTime,
    now: WallTime,
    by: String,
) -> Result<Scheduled, OperatorError> {
    let hint = "`rhone switchover` begins one now";
    if at <= now {
        let (at, now) = (shown(at), shown(now));
        let reason = format!("{at} is in the past: by the raft leader's clock it is {now}");
        return Err(OperatorError::Refused { reason, hint: Some(hint.to_owned()) });
    }
    if let Some(known) = &state.scheduled {
        return Err(OperatorError::Refused {
            reason: format!("another switchover is scheduled for {}", shown(known.at)),
            hint: Some("`rhone switchover --cancel` takes it off".to_owned()),
        });
    }
    let grant = state
        .current_grant()
        .filter(|_| state.phase == Phase::Established)
        .ok_or_else(|| refused("there is no primary to hand over from now", "rhone status"))?;
    let to = match to {
        None => None,
        Some(name) => {
            let member = state.member_named(name);
            let member =
                member.ok_or_else(|| refused(format!("no member is named {name}"), "rhone status"))?;
            may_take_over(state, name).map_err(|reason| refused(reason, "rhone status"))?;
            if member.node == grant.owner {
                return Err(is_primary(name));
            }
            Some(member.node)
        }
    };
    Ok(Scheduled { from: grant.owner, to, at, by })
}

/// Returns the time that is meant, and what time it is, by the clock here.
pub(super) fn time(shared: &Shared, when: When) -> (WallTime, WallTime) {
    let now = shared.clock.wall_time();
    let at = match when {
        When::At(at) => at.as_ms(),
        When::After(after) => now.saturating_add(u64::try_from(after.as_millis()).unwrap_or(u64::MAX)),
    };
    (WallTime(at), WallTime(now))
}

/// Prints a time as it is shown everywhere.
pub(super) fn shown(at: WallTime) -> String {
    crate::civil::WallTime::from_ms(at.0).to_string()
}

/// Begins a switchover when its time has come; kept by the Raft leader's loop.
#[derive(Debug, Default)]
pub(super) struct Clockwork {
    before: Option<Look>,
    /// Why it has not begun since its time.
    why: Option<String>,
}

impl Clockwork {
    /// Forgets what an earlier leadership saw.
    pub(super) fn reset(&mut self) {
        *self = Self::default();
    }

    /// Looks at the clocks and at what is scheduled, and begins or drops it.
    pub(super) async fn turn(&mut self, shared: &Arc<Shared>, state: &ClusterState) {
        let Some(scheduled) = &state.scheduled else {
            self.reset();
            return;
        };
        let now = Look { wall: WallTime(shared.clock.wall_time()), boot: shared.now() };
        let before = self.before.replace(now);
        let command = match due(scheduled.at, before, now) {
            Due::NotYet => return,
            Due::Never(why) => {
                let why = self.why.take().map_or(why.clone(), |last| format!("{why}: {last}"));
                ClusterCommand::DropScheduled { at: scheduled.at, why }
            }
            Due::Now => match Self::ready(shared, state, scheduled) {
                Ok(()) => ClusterCommand::BeginScheduled { at: scheduled.at },
                Err(Unready::Later(why)) => {
                    self.why = Some(why);
                    return;
                }
                Err(Unready::Never(why)) => ClusterCommand::DropScheduled { at: scheduled.at, why },
            },
        };
        if let Some(reason) = shared.would_refuse(&command) {
            self.why = Some(reason);
            return;
        }
        match shared.consensus.propose(command, PROPOSE_LIMIT).await {
            Ok(applied) => {
                tracing::info!(at = %shown(scheduled.at), outcome = ?applied.outcome, "a scheduled switchover's time has come");
            }
            Err(error) => tracing::warn!(%error, "a scheduled switchover could not be put into the log"),
        }
    }

    fn ready(shared: &Shared, state: &ClusterState, scheduled: &Scheduled) -> Result<(), Unready> {
        if state.phase == Phase::Established && state.last_owner() != Some(scheduled.from) {
            return Err(Unready::Never("the primary changed meanwhile".to_owned()));
        }
        let to = match scheduled.to {
            None => None,
            Some(to) => {
                let member = state.members.get(&to);
                let name = member.map(|member| member.name.clone());
                Some(name.ok_or_else(|| Unready::Never("its target is no member any more".to_owned()))?)
            }
        };
        match handover(shared, state, to.as_deref(), None) {
            Ok(_) => Ok(()),
            Err(OperatorError::Refused { reason, .. }) => Err(Unready::Later(reason)),
            Err(other) => Err(Unready::Later(other.to_string())),
        }
    }
}

/// Why a switchover does not begin.
enum Unready {
    /// Not now.
    Later(String),
    /// Not any more.
    Never(String),
}
