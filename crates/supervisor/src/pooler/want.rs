//! ✦ Where PgBouncer should point, and whether it should be paused.

use rhone_consensus::ids::Epoch;
use rhone_consensus::state::{ClusterState, Phase};

/// What PgBouncer is to be brought to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Want {
    /// The primary's Postgres, `host:port`; none: it stays where it points.
    pub(super) server: Option<String>,
    /// The epoch at whose end it is to be paused; none: it is to run.
    pub(super) pause: Option<Epoch>,
}

/// Says what is wanted. `asked` is the last epoch whose handover a pause was asked for.
///
/// Paused while a new primary is being made, so that clients wait instead of being told that the old one is gone.
pub(super) fn want(state: &ClusterState, asked: Epoch) -> Want {
    let established = state.phase == Phase::Established;
    let grant = state.current_grant().filter(|_| established);
    let server = grant.and_then(|grant| state.members.get(&grant.owner)).map(|m| m.postgres.clone());
    let changing = matches!(state.phase, Phase::Preparing { .. } | Phase::Granted);
    // The epoch before is the one that ends; founding has none, and nobody to wait for.
    let ending = state.ledger.entries.values().map(|e| e.epoch).filter(|e| *e < state.epoch).max();
    let pause = if changing { ending } else { Some(asked).filter(|asked| *asked == state.epoch) };
    Want { server, pause: pause.filter(|epoch| epoch.0 > 0) }
}

#[cfg(test)]
mod tests {
    use rhone_consensus::command::{ClusterCommand, Grant, Member, MemberKind, PrepareReason, WallTime};
    use rhone_consensus::ids::{DataId, Incarnation, LogIndex, NodeId};
    use rhone_consensus::policy::PolicyKind;
    use rhone_consensus::settings::Settings;
    use rhone_pgctl::wal::{SystemId, Timeline};

    use super::*;

    /// Applies `prepare`, `grant OWNER TIMELINE`, `established TIMELINE` from index 3 on.
    fn state(commands: &str) -> ClusterState {
        let member = |n: u64| Member {
            node: NodeId(n),
            name: format!("n{n}"),
            kind: MemberKind::Data,
            incarnation: Incarnation(1),
            address: String::new(),
            postgres: format!("10.0.0.{n}:5432"),
            http: String::new(),
            priority: 1,
        };
        let mut state = ClusterState::default();
        let founding = ClusterCommand::Found {
            cluster: "main".to_owned(),
            founder: NodeId(1),
            members: vec![member(1), member(2)],
            settings: Settings::default(),
        };
        state.apply(LogIndex(1), &founding);
        state.apply(LogIndex(2), &ClusterCommand::SetSystemId(SystemId::new(7)));
        for (index, line) in (3..).zip(commands.split(" | ").filter(|line| !line.is_empty())) {
            let words: Vec<&str> = line.split(' ').collect();
            let number = |at: usize| words[at].parse::<u64>().expect("a number");
            let timeline = |at: usize| Timeline::new(words[at].parse().expect("a timeline"));
            let command = match words[0] {
                "prepare" => ClusterCommand::Prepare { reason: PrepareReason::Operator, at: WallTime(0) },
                "grant" => ClusterCommand::Grant(Grant {
                    epoch: state.epoch,
                    owner: NodeId(number(1)),
                    data: DataId(number(1)),
                    base: "1:0/10".parse().expect("a position"),
                    timeline: timeline(2),
                    policy: PolicyKind::Alone,
                    evidence: Vec::new(),
                    lost: None,
                }),
                "established" => ClusterCommand::Established {
                    epoch: state.epoch,
                    timeline: timeline(1),
                    switch: "0/10".parse().expect("an LSN"),
                    gap_ms: 0,
                    at: WallTime(0),
                },
                other => panic!("no such command: {other}"),
            };
            state.apply(LogIndex(index), &command);
        }
        state
    }

    #[track_caller]
    fn check(commands: &str, asked: u64, expected: &str) {
        let Want { server, pause } = want(&state(commands), Epoch(asked));
        let server = server.unwrap_or_else(|| "-".to_owned());
        let pause = pause.map_or_else(|| "runs".to_owned(), |epoch| format!("paused for {epoch}"));
        assert_eq!(format!("{server} {pause}"), expected, "{commands}");
    }

    #[test]
    fn it_points_at_the_established_primary_and_pauses_between_two() {
        check("", 0, "- runs");
        check("prepare", 0, "- runs"); // founding
        check("prepare | grant 1 2 | established 2", 0, "10.0.0.1:5432 runs");
        check("prepare | grant 1 2 | established 2", 3, "10.0.0.1:5432 paused for 3"); // a handover begins
        check("prepare | grant 1 2 | established 2 | prepare", 3, "- paused for 3");
        check("prepare | grant 1 2 | established 2 | prepare", 0, "- paused for 3"); // a failover
        check("prepare | grant 1 2 | established 2 | prepare | grant 2 3", 3, "- paused for 3");
        let after = "prepare | grant 1 2 | established 2 | prepare | grant 2 3 | established 3";
        check(after, 3, "10.0.0.2:5432 runs");
    }
}
