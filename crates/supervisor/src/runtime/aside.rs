//! What travels beside a report: a field that readers and people want and no decision looks at.
//!
//! A report is packed by position ([`super::codec`]), and members of two versions have to read each other's while
//! one after the other is upgraded. So what is told since goes beside it, and is simply not there where a
//! member does not know of it.

use rhone_consensus::ids::NodeId;
use rhone_pgctl::wal::Lsn;

use crate::api::proto::v1::Aside;
use crate::runtime::shared::Table;
use crate::view::Report;

/// Returns what goes beside a report; nothing when there is nothing to tell.
pub(crate) fn of(node: NodeId, report: &Report) -> Option<Aside> {
    let (replayed, crash_recovery) = (report.server.replayed, report.server.crash_recovery);
    (replayed.is_some() || crash_recovery).then(|| Aside {
        node: node.0,
        replayed_lsn: replayed.map(Lsn::get),
        crash_recovery,
    })
}

/// Puts it where it belongs.
pub(crate) fn put(report: &mut Report, aside: &Aside) {
    report.server.replayed = aside.replayed_lsn.map(Lsn::new);
    report.server.crash_recovery = aside.crash_recovery;
}

/// Returns what goes beside the reports of a table.
pub(crate) fn of_table(table: &Table) -> Vec<Aside> {
    table.iter().filter_map(|(node, received)| of(*node, &received.report)).collect()
}

/// Puts each where it belongs; what is of nobody in the table is left out.
pub(crate) fn put_into(table: &mut Table, asides: &[Aside]) {
    for aside in asides {
        if let Some(received) = table.get_mut(&NodeId(aside.node)) {
            put(&mut received.report, aside);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::runtime::codec;
    use crate::runtime::witness;
    use crate::view::{Moment, Received};

    fn report() -> Report {
        let mut report = witness::report(false);
        report.server.replayed = Some(Lsn::new(0x30));
        report.server.crash_recovery = true;
        report
    }

    #[test]
    fn the_report_itself_is_the_same_to_every_version() {
        assert_eq!(codec::pack(&report()), codec::pack(&witness::report(false)));
        let mut read: Report = codec::unpack(&codec::pack(&report())).expect("a report");
        // As an older member sends it, and an older leader passes it on.
        assert_eq!(read, witness::report(false));
        put(&mut read, &of(NodeId(2), &report()).expect("something to tell"));
        assert_eq!(read, report());
        assert_eq!(of(NodeId(2), &witness::report(false)), None);
    }

    #[test]
    fn each_is_put_beside_its_own_members_report() {
        let at = Moment(0);
        let full = Table::from([
            (NodeId(1), Received { at, report: witness::report(false) }),
            (NodeId(2), Received { at, report: report() }),
        ]);
        let mut bare = full.clone();
        for received in bare.values_mut() {
            received.report = witness::report(false);
        }
        let mut asides = of_table(&full);
        assert_eq!(asides.len(), 1);
        asides.push(Aside { node: 9, ..Aside::default() });
        put_into(&mut bare, &asides);
        assert_eq!(bare, full);
    }
}
