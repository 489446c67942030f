//! The end of WAL read from disk is what `IDENTIFY_SYSTEM` says after a start as a standby.

use rhone_pgctl::apply::set_standby_signal;
use rhone_pgctl::end_of_wal::end_of_wal;
use rhone_pgctl::standby::wait_end_of_local_wal;

use crate::harness::{LIMIT, Rig, Server, until};
use crate::streaming::{caught_up, clone_of};

/// Reads the end of a stopped server's WAL, starts it as a standby and compares.
async fn check(server: &mut Server, what: &str) {
    let control = server.control().await;
    let begin = tokio::time::Instant::now();
    let read = end_of_wal(&server.data, &control).await.expect(what);
    let after = begin.elapsed();
    server.settings.primary_conninfo = None;
    server.settings.hurry = true;
    set_standby_signal(&server.data, true, &server.user).expect("standby.signal");
    server.configure();
    server.start().await;
    wait_end_of_local_wal(&server.session().await, LIMIT).await.expect("end of local WAL");
    let identity = server.identify().await;
    eprintln!("{what}: {read} from {} in {after:?}", control.redo);
    assert_eq!(read, identity.position, "{what}");
    assert_eq!(control.system_id, identity.system_id);
}

#[tokio::test]
async fn of_a_fresh_directory() {
    let Some(rig) = Rig::new().await else { return };
    let mut server = rig.server("a");
    server.init(16).await;
    check(&mut server, "fresh").await;
}

#[tokio::test]
async fn of_a_primary_that_stopped_or_crashed() {
    let Some(rig) = Rig::new().await else { return };
    for round in 0..4 {
        let mut server = rig.primary(&format!("p{round}")).await;
        server.pgbench_init().await;
        server.pgbench();
        let before = server.sql("SELECT pg_current_wal_flush_lsn() + 1500000").await;
        let sql = format!("SELECT pg_current_wal_flush_lsn() >= '{before}'");
        until("load", async || server.sql(&sql).await == "t").await;
        if round == 1 {
            server.sql("SELECT pg_switch_wal()").await;
        }
        if round == 3 {
            server.stop().await;
            check(&mut server, "stopped").await;
        } else {
            server.crash().await;
            check(&mut server, "crashed").await;
        }
    }
}

#[tokio::test]
async fn of_a_primary_that_crashed_right_after_a_switch() {
    let Some(rig) = Rig::new().await else { return };
    let mut server = rig.primary("a").await;
    server.sql("CREATE TABLE t (n int)").await;
    server.sql("SELECT pg_switch_wal()").await;
    server.crash().await;
    check(&mut server, "switched").await;
}

#[tokio::test]
async fn of_a_standby_that_crashed_and_of_one_on_a_newer_timeline() {
    let Some(rig) = Rig::new().await else { return };
    let mut primary = rig.primary("a").await;
    primary.pgbench_init().await;
    let mut standby = clone_of(&rig, "b", &primary).await;
    let mut heir = clone_of(&rig, "c", &primary).await;
    caught_up(&standby, &primary).await;
    let load = primary.pgbench();
    let before = primary.sql("SELECT pg_current_wal_flush_lsn() + 1500000").await;
    let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{before}'");
    until("load", async || standby.sql(&sql).await == "t").await;
    standby.crash().await;
    primary.crash().await;
    primary.end_child(load);
    check(&mut standby, "standby").await;
    standby.stop().await;
    check(&mut standby, "standby stopped").await;
    // Both may lack what the other has: the one that is ahead is promoted, the other follows it.
    heir.settings.primary_conninfo = None;
    heir.configure();
    heir.postmaster().reload_and_settle(&heir.target, LIMIT).await.expect("reload");
    wait_end_of_local_wal(&heir.session().await, LIMIT).await.expect("end");
    if heir.identify().await.position.lsn < standby.identify().await.position.lsn {
        std::mem::swap(&mut heir, &mut standby);
    }
    heir.postmaster().promote(&heir.data, &heir.target, &heir.user, LIMIT).await.expect("promote");
    standby.settings.hurry = false;
    standby.follow(&heir);
    standby.postmaster().reload().expect("reload");
    heir.sql("CREATE TABLE after AS SELECT 1 AS n").await;
    caught_up(&standby, &heir).await;
    standby.crash().await;
    check(&mut standby, "newer timeline").await;
    assert_eq!(standby.identify().await.position.timeline.get(), 2);
}
