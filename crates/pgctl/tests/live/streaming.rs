//! What needs two servers or three.

use std::fs;
use std::time::Duration;

use rhone_pgctl::apply::{after_copy, set_standby_signal};
use rhone_pgctl::clone::{CloneSource, clone_aside, recover_swap, remove_old, swap_in};
use rhone_pgctl::end_of_wal::end_of_wal;
use rhone_pgctl::error::PgError;
use rhone_pgctl::marker::checkpoint;
use rhone_pgctl::probe::probe;
use rhone_pgctl::rewind::{RewindOutcome, rewind};
use rhone_pgctl::standby::{calm_down, cut_upstream, wait_end_of_local_wal};
use rhone_pgctl::timeline::{read_history, remove_leading_tombstones, reserve_timelines, seen_timelines};
use rhone_pgctl::wal::Timeline;

use crate::harness::{LIMIT, Rig, Server, until};

/// Makes `name` a standby of `upstream` by a clone.
pub(crate) async fn clone_of(rig: &Rig, name: &str, upstream: &Server) -> Server {
    let mut server = rig.server(name);
    let source = CloneSource { conninfo: upstream.conninfo(name), slot: None };
    clone_aside(&server.install, &server.data, &server.user, &source, LIMIT, |_| {}).await.expect("clone");
    swap_in(&server.data).expect("swap in");
    assert!(!recover_swap(&server.data).expect("nothing to recover"));
    after_copy(&server.data).expect("clean the copy");
    server.follow(upstream);
    server.start().await;
    server
}

pub(crate) async fn caught_up(standby: &Server, primary: &Server) {
    let end = primary.sql("SELECT pg_current_wal_flush_lsn()").await;
    let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{end}'");
    until("the standby has replayed", async || standby.sql(&sql).await == "t").await;
}

#[tokio::test]
async fn a_clone_streams_and_its_swap_keeps_the_old_directory() {
    let Some(rig) = Rig::new().await else { return };
    let primary = rig.primary("a").await;
    primary.sql("CREATE TABLE t AS SELECT 1 AS n").await;
    let mut standby = clone_of(&rig, "b", &primary).await;
    caught_up(&standby, &primary).await;
    let found = probe(&mut standby.connection(), LIMIT).await.unwrap();
    let rhone_pgctl::probe::RoleFacts::Standby(facts) = &found.role else { panic!("{found:?}") };
    assert!(facts.has_upstream && facts.timeline.get() == 1, "{facts:?}");
    until("streaming", async || {
        let found = probe(&mut primary.connection(), LIMIT).await.unwrap();
        found.walsenders.iter().any(|sender| sender.state == "streaming" && sender.flushed.is_some())
    })
    .await;
    standby.stop().await;
    let source = CloneSource { conninfo: primary.conninfo("b"), slot: None };
    let mut seen = 0;
    clone_aside(&standby.install, &standby.data, &standby.user, &source, LIMIT, |bytes| seen = bytes)
        .await
        .unwrap();
    let old = swap_in(&standby.data).unwrap().unwrap();
    assert!(old.join("PG_VERSION").exists());
    after_copy(&standby.data).unwrap();
    standby.follow(&primary);
    standby.start().await;
    caught_up(&standby, &primary).await;
    assert_eq!(remove_old(&standby.data, 0).await.unwrap(), 1);
    assert!(!old.exists());
}

#[tokio::test]
async fn a_revoked_standby_reports_all_that_it_received() {
    let Some(rig) = Rig::new().await else { return };
    let mut primary = rig.primary("a").await;
    primary.pgbench_init().await;
    let standby = clone_of(&rig, "b", &primary).await;
    caught_up(&standby, &primary).await;
    for round in 0..6 {
        let load = primary.pgbench();
        let before = primary.sql("SELECT pg_current_wal_flush_lsn() + 300000").await;
        let sql = format!("SELECT pg_last_wal_replay_lsn() >= '{before}'");
        until("load", async || standby.sql(&sql).await == "t").await;
        if round == 2 {
            standby.sql("SELECT pg_wal_replay_pause()").await;
        }
        let begin = tokio::time::Instant::now();
        let session = standby.cut().await;
        let cut_after = begin.elapsed();
        wait_end_of_local_wal(&session, LIMIT).await.unwrap();
        let end_after = begin.elapsed();
        let position = standby.identify().await.position;
        eprintln!(
            "round {round}: cut {cut_after:?}, end of WAL {end_after:?}, position {position} after {:?}",
            begin.elapsed()
        );
        // Nothing may come after the report, and what the receiver flushed must be in it.
        let received: rhone_pgctl::wal::Lsn =
            standby.sql("SELECT pg_last_wal_receive_lsn()").await.parse().unwrap();
        assert!(position.lsn >= received, "{position} {received}");
        tokio::time::sleep(Duration::from_millis(50)).await;
        assert_eq!(standby.identify().await.position, position);
        assert_eq!(standby.revoke().await, position);
        calm_down(&standby.postmaster(), &standby.data, &standby.settings, &standby.user).await.unwrap();
        primary.end_child(load);
        standby.configure();
        standby.postmaster().reload_and_settle(&standby.target, LIMIT).await.unwrap();
        caught_up(&standby, &primary).await;
    }
}

#[tokio::test]
async fn a_promotion_takes_the_planned_timeline_and_others_follow() {
    let Some(rig) = Rig::new().await else { return };
    let mut primary = rig.primary("a").await;
    primary.sql("CREATE TABLE t (n int)").await;
    let mut heir = clone_of(&rig, "b", &primary).await;
    let mut other = clone_of(&rig, "c", &primary).await;
    caught_up(&heir, &primary).await;
    caught_up(&other, &primary).await;
    primary.crash().await;
    let position = heir.revoke().await;
    reserve_timelines(&heir.data, position.timeline, Timeline::new(5), &heir.user).unwrap();
    // A standby that crashes between reserving and promoting must start again.
    heir.crash().await;
    assert_eq!(remove_leading_tombstones(&heir.data).unwrap(), 3);
    heir.start().await;
    reserve_timelines(&heir.data, position.timeline, Timeline::new(5), &heir.user).unwrap();
    let begin = tokio::time::Instant::now();
    heir.postmaster().promote(&heir.data, &heir.target, &heir.user, LIMIT).await.unwrap();
    eprintln!("promoted after {:?}", begin.elapsed());
    assert_eq!(heir.identify().await.position.timeline.get(), 5);
    other.follow(&heir);
    other.postmaster().reload().unwrap();
    heir.sql("INSERT INTO t VALUES (42)").await;
    caught_up(&other, &heir).await;
    assert_eq!(other.sql("SELECT n FROM t").await, "42");
    let history = read_history(&other.data, Timeline::new(5)).unwrap().unwrap();
    assert!(history.contains(position), "{history:?} {position}");
    let seen: Vec<u32> = seen_timelines(&other.data).unwrap().into_iter().map(Timeline::get).collect();
    assert_eq!(seen, [1, 2, 3, 4, 5]);
    other.stop().await;
    let control = other.control().await;
    let end = end_of_wal(&other.data, &control).await.unwrap();
    other.start().await;
    assert_eq!(end.timeline.get(), 5);
    caught_up(&other, &heir).await;
}

#[tokio::test]
async fn a_diverged_primary_that_crashed_is_rewound_and_follows() {
    let Some(rig) = Rig::new().await else { return };
    let mut primary = rig.primary("a").await;
    primary.sql("CREATE TABLE t (n int)").await;
    let heir = clone_of(&rig, "b", &primary).await;
    // Their last common checkpoint lies segments back when they part.
    for _ in 0..3 {
        primary.sql("INSERT INTO t VALUES (42)").await;
        primary.sql("SELECT pg_switch_wal()").await;
    }
    caught_up(&heir, &primary).await;
    heir.revoke().await;
    // The old primary goes on alone, under load, and dies.
    primary.pgbench_init().await;
    primary.sql("INSERT INTO t VALUES (13)").await;
    heir.postmaster().promote(&heir.data, &heir.target, &heir.user, LIMIT).await.unwrap();
    heir.sql("INSERT INTO t VALUES (42)").await;
    checkpoint(&heir.session().await, LIMIT).await.unwrap();
    primary.crash().await;
    let control = primary.control().await;
    let end = end_of_wal(&primary.data, &control).await.unwrap();
    let history = read_history(&heir.data, Timeline::new(2)).unwrap().unwrap();
    assert!(!history.contains(end), "it left the history: {end} {history:?}");
    let source = {
        let mut source = heir.conninfo("rewind");
        source.dbname = Some("postgres".into());
        source
    };
    // Its crash recovery would remove the segment with that checkpoint.
    primary.settings.parameters.insert("wal_keep_size".into(), "0".into());
    primary.settings.keep_all_wal = true;
    primary.configure();
    let outcome = rewind(&primary.install, &primary.data, &primary.user, &source, &control).await.unwrap();
    assert_eq!(outcome, RewindOutcome::Rewound);
    primary.settings.keep_all_wal = false;
    after_copy(&primary.data).unwrap();
    set_standby_signal(&primary.data, true, &primary.user).unwrap();
    primary.follow(&heir);
    primary.start().await;
    caught_up(&primary, &heir).await;
    assert_eq!(primary.sql("SELECT string_agg(n::text, ',') FROM t").await, "42,42,42,42");
    primary.stop().await;
    let control = primary.control().await;
    let outcome = rewind(&primary.install, &primary.data, &primary.user, &source, &control).await.unwrap();
    assert_eq!(outcome, RewindOutcome::NotNeeded);
    assert!(!fs::exists(primary.data.join("standby.signal")).unwrap());
}

#[tokio::test]
async fn a_stuck_walreceiver_is_named_and_a_restart_gets_its_position() {
    let Some(rig) = Rig::new().await else { return };
    let primary = rig.primary("a").await;
    let mut standby = clone_of(&rig, "b", &primary).await;
    caught_up(&standby, &primary).await;
    let pid = standby.sql("SELECT pid FROM pg_stat_activity WHERE backend_type = 'walreceiver'").await;
    let raw = rustix::process::Pid::from_raw(pid.parse().unwrap()).unwrap();
    rustix::process::kill_process(raw, rustix::process::Signal::STOP).unwrap();
    let postmaster = standby.postmaster();
    let limit = Duration::from_secs(3);
    let cut =
        cut_upstream(&postmaster, &standby.data, &standby.target, &standby.settings, &standby.user, limit);
    let stuck = cut.await.unwrap_err();
    assert!(matches!(stuck, PgError::StuckReceiver { .. }), "{stuck}");
    standby.crash().await;
    let control = standby.control().await;
    let end = end_of_wal(&standby.data, &control).await.unwrap();
    standby.start().await;
    assert_eq!(standby.revoke().await, end);
}

#[tokio::test]
async fn a_query_in_the_way_of_replay_does_not_hold_up_a_revocation() {
    let Some(rig) = Rig::new().await else { return };
    let primary = rig.primary("a").await;
    primary.sql("CREATE TABLE t AS SELECT generate_series(1, 1000) AS n").await;
    let mut standby = clone_of(&rig, "b", &primary).await;
    standby.settings.parameters.insert("max_standby_streaming_delay".into(), "-1".into());
    standby.configure();
    standby.postmaster().reload_and_settle(&standby.target, LIMIT).await.unwrap();
    caught_up(&standby, &primary).await;
    let reader = standby.session().await;
    let begin = "BEGIN ISOLATION LEVEL REPEATABLE READ; SELECT count(*) FROM public.t";
    reader.simple("read", begin, LIMIT).await.unwrap();
    primary.sql("DELETE FROM t").await;
    primary.sql("VACUUM t").await;
    let end = primary.sql("SELECT pg_current_wal_flush_lsn()").await;
    let sql = format!("SELECT pg_last_wal_receive_lsn() >= '{end}' AND pg_last_wal_replay_lsn() < '{end}'");
    until("replay waits for the reader", async || standby.sql(&sql).await == "t").await;
    let begin = tokio::time::Instant::now();
    let position = standby.revoke().await;
    eprintln!("revoked past a conflict after {:?}", begin.elapsed());
    assert!(position.lsn >= end.parse().unwrap(), "{position} {end}");
}

#[tokio::test]
async fn sessions_outlast_replay_conflicts() {
    let Some(rig) = Rig::new().await else { return };
    let mut primary = rig.primary("a").await;
    primary.pgbench_init().await;
    let mut standby = clone_of(&rig, "b", &primary).await;
    standby.settings.hurry = true;
    standby.configure();
    standby.postmaster().reload_and_settle(&standby.target, LIMIT).await.expect("reload");
    let load = primary.pgbench();
    // Each opening looks up catalogs under a snapshot that the pruning of the load cancels; the statement
    // holds one for longer.
    let conflicts = "SELECT sum(confl_snapshot) >= 2 FROM pg_stat_database_conflicts, pg_sleep(0.03)";
    until("snapshots cancelled by replay", async || standby.sql(conflicts).await == "t").await;
    primary.end_child(load);
}
