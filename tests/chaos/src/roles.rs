//! The roles over time, by the members' logs: who was promoted, revoked, frozen, and when. For whoever looks into a
//! violation; nothing is judged by it.

use std::time::Duration;

use crate::steps::time_of;

/// Effects on Postgres that change who serves. What only changes settings is left out.
const EFFECTS: [&str; 9] =
    ["promote", "revoke", "fence", "hand_over", "open_gate", "start", "stop", "rewind", "clone"];

/// How a member begins to tell of what became of its Postgres, or of who leads Raft.
const SAYINGS: [&str; 11] = [
    "postgres is frozen",
    "postgres runs again",
    "postgres was killed",
    "postgres ended by itself",
    "postgres makes no progress",
    "raft leadership changed leading=true",
    "is to stop",
    "starts over with a new guardian",
    "the guardian is gone",
    "the guardian does not",
    "another supervisor has taken over",
];

/// What the Raft leader tells of epochs.
const DECISIONS: [&str; 3] = ["decision=open an epoch", "decision=grant epoch", "is established on timeline"];

/// More lines than this nobody reads: the newest are told.
const LINES: usize = 300;

fn matters(what: &str) -> bool {
    let effect = what.split_once("effect=\"").and_then(|(_, rest)| rest.split_once('"'));
    effect.is_some_and(|(effect, _)| EFFECTS.contains(&effect))
        || SAYINGS.iter().any(|saying| what.starts_with(saying))
        || what.starts_with("decided ") && DECISIONS.iter().any(|decision| what.contains(decision))
}

/// The time of day of a moment since the Unix epoch, UTC, as the logs have it.
fn time_of_day(at: Duration) -> String {
    let second = at.as_secs() % 86_400;
    let (hour, minute) = (second / 3600, second / 60 % 60);
    format!("{hour:02}:{minute:02}:{:02}.{:03}", second % 60, at.subsec_millis())
}

/// Tells what members' logs, each with the member's name, say of roles since `from`, sorted by time with what else
/// happened; each line is `TIME MEMBER WHAT`, without a member for the rest. Times are since the Unix epoch; a member
/// whose wall clock was moved by a fault says its own.
pub fn timeline(logs: &[(String, String)], rest: &[(Duration, String)], from: Duration) -> Vec<String> {
    let said = logs.iter().flat_map(|(member, text)| {
        text.lines().filter_map(move |line| {
            // The level stands before what is said.
            let (_, what) = line.split_once("Z ")?.1.trim_start().split_once(' ')?;
            let at = time_of(line).filter(|at| *at >= from && matters(what))?;
            Some((at, member.as_str(), what))
        })
    });
    let rest = rest.iter().map(|(at, what)| (*at, "-", what.as_str()));
    let mut all: Vec<(Duration, &str, &str)> = rest.chain(said).collect();
    all.sort_by_key(|(at, ..)| *at);
    let newest = all.split_off(all.len().saturating_sub(LINES));
    newest.iter().map(|(at, member, what)| format!("{} {member:<5} {what}", time_of_day(*at))).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const FIRST: &str =
        "2026-11-22T03:28:40.000000Z  INFO acts reason=owner_promotes effect=\"promote\" epoch=9
2026-11-22T03:28:52.284290Z  WARN postgres is frozen cause=LeaseEnded took_us=812
2026-11-22T03:28:52.300000Z  INFO rests reason=frozen
LOG:  database system is ready
2026-11-22 03:28:53.000 UTC [1] LOG:  effect=\"promote\"
2026-11-22T03:28:54.100000Z  INFO acts reason=not_granted effect=\"fence\" epoch=9
2026-11-22T03:28:54.200000Z  INFO acts reason=settings_changed effect=\"set_policy\" epoch=9
";
    const SECOND: &str = "2026-11-22T03:28:53.000000Z  INFO decided index=12 outcome=Done decision=grant epoch 11 to 5fd4 at 2:0/3, timeline 3
2026-11-22T03:28:53.100000Z  INFO decided index=13 outcome=Done decision=epoch 11 acknowledges by policy 13 only
2026-11-22T03:28:53.900000Z  INFO done effect=\"promote\" epoch=11
";

    fn logs() -> Vec<(String, String)> {
        vec![("pg-1".to_owned(), FIRST.to_owned()), ("pg-2".to_owned(), SECOND.to_owned())]
    }

    #[test]
    fn the_roles_of_all_members_are_one_story_by_time() {
        let from = time_of("2026-11-22T03:28:52.000000Z").expect("a time");
        let rest = [(from, "round 3: Cut pg-1 +0.0".to_owned())];
        assert_eq!(
            timeline(&logs(), &rest, from),
            [
                "03:28:52.000 -     round 3: Cut pg-1 +0.0",
                "03:28:52.284 pg-1  postgres is frozen cause=LeaseEnded took_us=812",
                "03:28:53.000 pg-2  decided index=12 outcome=Done decision=grant epoch 11 to 5fd4 at 2:0/3, timeline 3",
                "03:28:53.900 pg-2  done effect=\"promote\" epoch=11",
                "03:28:54.100 pg-1  acts reason=not_granted effect=\"fence\" epoch=9",
            ]
        );
    }

    #[test]
    fn the_newest_lines_are_told_where_there_are_too_many() {
        let many = SECOND.repeat(LINES);
        let told = timeline(&[("pg-2".to_owned(), many)], &[], Duration::ZERO);
        assert_eq!(told.len(), LINES);
        assert!(told.iter().all(|line| line.contains("promote")), "{told:?}");
        assert!(timeline(&[], &[], Duration::ZERO).is_empty());
    }
}
