//! What Postgres may go by while a policy changes, besides the old one and the new one.
//!
//! Each walsender parses the setting for itself. One that was told that commits are acknowledged
//! releases waiters by *its* count, over every walsender that takes *itself* for synchronous
//! (`SyncRepGetCandidateStandbys`, syncrep.c). So for a while commits may be acknowledged by the
//! smaller count over the standbys of both settings, which neither of the two covers (decision 0016).

use std::collections::BTreeSet;

use rhone_consensus::policy::PolicyKind;

/// Returns the policy to be added next on the way to `wanted`, where these are open in its epoch: itself,
/// or first the one that stands for whatever mixture of all of them is in force meanwhile.
///
/// Where every count is one, a mixture releases by one standby of one of them: it needs none.
pub(super) fn on_the_way(open: &[&PolicyKind], wanted: PolicyKind) -> PolicyKind {
    let PolicyKind::Quorum { required, standbys } = &wanted else { return wanted };
    let (mut least, mut most, mut all) = (*required, *required, standbys.clone());
    let mut quorums: Vec<(u32, &BTreeSet<_>)> = vec![(*required, standbys)];
    for kind in open {
        if let PolicyKind::Quorum { required, standbys } = kind {
            (least, most) = (least.min(*required), most.max(*required));
            all.extend(standbys);
            quorums.push((*required, standbys));
        }
    }
    if most <= 1 || quorums.iter().any(|(required, standbys)| *required == least && **standbys == all) {
        return wanted;
    }
    PolicyKind::Quorum { required: least, standbys: all }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rhone_consensus::ids::{DataId, NodeId, Replica};

    /// `2: 3 4` waits for two of the members 3 and 4.
    fn kind(text: &str) -> PolicyKind {
        let Some((required, standbys)) = text.split_once(':') else { return PolicyKind::Alone };
        let replica = |text: &str| {
            let number = text.parse().expect("a number");
            Replica { node: NodeId(number), data: DataId(number) }
        };
        PolicyKind::Quorum {
            required: required.parse().expect("a number"),
            standbys: standbys.split_whitespace().map(replica).collect(),
        }
    }

    #[track_caller]
    fn check(open: &str, wanted: &str, expected: &str) {
        let open: Vec<PolicyKind> = open.split('|').map(kind).collect();
        let open: Vec<&PolicyKind> = open.iter().collect();
        assert_eq!(on_the_way(&open, kind(wanted)), kind(expected));
    }

    #[test]
    fn a_mixture_of_settings_is_open_before_postgres_can_come_by_it() {
        check("1: 2 3", "1: 2", "1: 2"); // one is enough in both
        check("1: 2", "1: 3", "1: 3");
        check("2: 2 3", "2: 2 3 4", "2: 2 3 4"); // the larger set stands for both
        check("2: 2 3 4", "2: 2 3", "2: 2 3");
        check("2: 2 3", "1: 2 3 4", "1: 2 3 4");
        check("2: 2 3", "1: 2", "1: 2 3"); // one of 2 and 3 may be enough meanwhile
        check("2: 2 3|1: 2 3", "1: 2", "1: 2"); // and then it is open
        check("1: 2", "2: 2 3", "1: 2 3");
        check("2: 2 3", "2: 4 5", "2: 2 3 4 5");
        check("2: 2 3", "alone", "alone"); // who goes on alone releases by no walsender
        check("alone|1: 2", "2: 2 3", "1: 2 3");
    }
}
