//! Reports: out to the Raft leader at each change and twice a second, back with the whole table.

use std::sync::Arc;
use std::time::Duration;

use rhone_consensus::ids::NodeId;

use crate::api::proto::v1::ReportRequest;
use crate::runtime::shared::{Shared, TableRow, table_of_rows};
use crate::runtime::ticker::about;
use crate::runtime::{aside, codec};
use crate::view::{Received, Report};

/// How often a report goes out when nothing changes.
const REPORT_EVERY: Duration = Duration::from_millis(500);

/// How long the leader may take to answer one.
const REPORT_LIMIT: Duration = Duration::from_secs(1);

/// Sends reports until the process ends.
pub async fn run(shared: Arc<Shared>) {
    let mut own = shared.own.subscribe();
    let mut voter = shared.voter.changes();
    let mut raft = shared.consensus.status_changes();
    loop {
        send(&shared).await;
        // What the passing of time alone changes is told to the millisecond: an election waits for it.
        let soon = shared.voter.next_change().filter(|soon| *soon < REPORT_EVERY);
        tokio::select! {
            biased;
            changed = own.changed() => if changed.is_err() { return },
            changed = voter.changed() => if changed.is_err() { return },
            changed = raft.changed() => if changed.is_err() { return },
            () = tokio::time::sleep(soon.unwrap_or_default() + Duration::from_millis(1)), if soon.is_some() => {}
            () = about(REPORT_EVERY), if soon.is_none() => {}
        }
    }
}

async fn send(shared: &Arc<Shared>) {
    let Some(mut report) = shared.own.borrow().clone() else { return };
    report.voter = shared.voter.report();
    let status = shared.consensus.status();
    let me = shared.me();
    if status.leading {
        keep(shared, me, report);
        return;
    }
    let Some(leader) = status.leader.filter(|leader| *leader != me) else { return };
    let Some(address) = status.nodes.get(&leader).map(|node| node.addr.clone()) else { return };
    let request = ReportRequest {
        from: Some(shared.identity()),
        report: codec::pack(&report),
        replication_secret: shared.secret.get().unwrap_or_default().into_bytes(),
        aside: aside::of(NodeId(0), &report),
    };
    let reply = shared
        .peers
        .call(&address, REPORT_LIMIT, |mut client| async move { client.report(request).await })
        .await;
    let reply = match reply {
        Ok(reply) => reply,
        Err(error) => {
            tracing::debug!(%error, "the report did not reach the leader");
            return;
        }
    };
    // This member may have begun to lead meanwhile: then what it hears itself is newer.
    let follows = !shared.consensus.status().leading;
    if let Some(rows) = codec::unpack::<Vec<TableRow>>(&reply.table).filter(|_| reply.leader && follows) {
        let mut table = table_of_rows(rows, shared.now());
        aside::put_into(&mut table, &reply.asides);
        shared.table.send_replace(table);
    }
    if let Ok(secret) = String::from_utf8(reply.replication_secret)
        && let Err(error) = shared.secret.keep(&secret)
    {
        tracing::warn!(%error, "could not keep the replication password");
    }
}

fn keep(shared: &Shared, me: NodeId, report: Report) {
    let received = Received { at: shared.now(), report };
    // Waking the leader's loop twice a second for an unchanged report of its own is not worth it.
    shared.table.send_if_modified(|table| {
        let changed = table.get(&me).is_none_or(|known| changed(&known.report, &received.report));
        table.insert(me, received.clone());
        changed
    });
}

fn changed(known: &Report, new: &Report) -> bool {
    known.instance != new.instance
        || known.down != new.down
        || known.leaving != new.leaving
        || (known.secured, known.data) != (new.secured, new.data)
        || known.streams != new.streams
        || known.voter.aged_for != new.voter.aged_for
        || known.voter.held != new.voter.held
        || new.voter.silent_ms.is_none_or(|silent| silent > 300)
}
