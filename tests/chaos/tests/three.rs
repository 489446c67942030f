//! Three members on real Postgres: each fault of the main job, under clients that write.
//!
//! After each: one primary, all others streaming, and nobody touched anything by hand.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use rhone_chaos::clock::Moment;
use rhone_chaos::cluster::{Cluster, LIMIT, PowerLoss, Spec};
use rhone_chaos::history::{ClientKind, History};
use rhone_chaos::lock::{take_machine, take_turn};
use rhone_chaos::namespace::{Means, Place};
use rhone_chaos::process::Signal;
use rhone_chaos::scenario::{Excuse, GAP_LIMIT, Verdict, check_gap, hold, report};
use rhone_chaos::stats::{Sample, seconds};
use rhone_chaos::workload::{Plan, Workload};

/// What a primary that nobody disturbs may stall on a loaded machine: less than what is stopped is stopped for.
const CALM: Duration = Duration::from_secs(8);

/// Says whether nodes can be cut off here; a scenario that needs it is skipped, and says so.
fn can_cut(cluster: &Cluster) -> bool {
    let means = cluster.network().means();
    if let Some(missing) = means.missing() {
        report(missing);
    }
    if means == Means::Loopback {
        report("SKIPPED: the part that needs a network cut");
    }
    means != Means::Loopback
}

fn begin(plan: &Plan) -> Result<(Cluster, Workload)> {
    let cluster = Cluster::start(&Spec::asynchronous(3))?;
    let workload = cluster.workload(plan);
    workload.wait_for(200, LIMIT)?;
    Ok((cluster, workload))
}

/// Writes go on, then the clients stop and the verdict falls.
fn finish(cluster: &Cluster, workload: Workload, excuses: &[Excuse]) -> Result<History> {
    cluster.wait_whole()?;
    workload.wait_for(100, LIMIT)?;
    let history = workload.stop()?;
    Verdict::of(cluster, &history, excuses)?.check(cluster)?;
    Ok(history)
}

#[test]
fn a_killed_postmaster_costs_a_moment_and_no_row() -> Result<()> {
    let _turn = take_turn()?;
    let (cluster, workload) = begin(&Plan::default())?;
    for round in 1..=3 {
        let primary = cluster.wait_whole()?;
        workload.wait_for(100, LIMIT)?;
        let at = Moment::now();
        cluster.node(primary)?.kill_postmaster()?;
        workload.wait_for(100, LIMIT)?;
        check_gap(&workload, at, GAP_LIMIT, &format!("postmaster killed, round {round}"))?;
    }
    finish(&cluster, workload, &[]).map(drop)
}

#[test]
fn power_loss_of_the_primary_fails_over_and_the_node_comes_back() -> Result<()> {
    let _turn = take_turn()?;
    let (mut cluster, workload) = begin(&Plan::default())?;
    let mut excuses = Vec::new();
    for kind in [PowerLoss::Resets, PowerLoss::BlackHole] {
        if kind == PowerLoss::BlackHole && !can_cut(&cluster) {
            continue;
        }
        let primary = cluster.wait_whole()?;
        workload.wait_for(100, LIMIT)?;
        let at = Moment::now();
        excuses.push(Excuse::power_loss(at));
        cluster.power_loss(primary, kind)?;
        workload.wait_elsewhere(primary, at, LIMIT).with_context(|| cluster.dump())?;
        check_gap(&workload, at, GAP_LIMIT, &format!("power loss, {kind:?}"))?;
        cluster.wait_whole_without(&[primary])?;
        cluster.network().heal()?;
        cluster.start_node(primary)?;
        cluster.wait_whole()?;
        report(&format!("whole again {:.1} s after the power loss", at.elapsed().as_secs_f64()));
    }
    finish(&cluster, workload, &excuses).map(drop)
}

#[test]
fn a_cut_off_primary_is_fenced_before_another_serves() -> Result<()> {
    let _turn = take_turn()?;
    let mut cluster = Cluster::start(&Spec::asynchronous(3))?;
    if !can_cut(&cluster) {
        return Ok(());
    }
    let primary = cluster.wait_whole()?;
    let workload = cluster.workload(&Plan { inside: vec![primary], ..Plan::default() });
    workload.wait_for(200, LIMIT)?;
    let at = Moment::now();
    cluster.network().cut(Place::Node(primary))?;
    workload.wait_elsewhere(primary, at, LIMIT).with_context(|| cluster.dump())?;
    // The client inside goes on trying; whatever it is still told counts.
    hold(Duration::from_secs(4));
    cluster.network().heal()?;
    cluster.wait_whole()?;
    check_gap(&workload, at, GAP_LIMIT, "primary cut off")?;
    let history = finish(&cluster, workload, &[Excuse::lease(at)])?;
    let inside = history.acknowledged_to(&[ClientKind::Inside]);
    ensure!(!inside.is_empty(), "the client inside never wrote: the scenario proves nothing");
    let late =
        inside.iter().filter(|op| op.invoked > at && op.server == primary && op.finished < at.after(LIMIT));
    report(&format!("the client inside was acknowledged {} rows after the cut began", late.count()));
    cluster.resume_all();
    Ok(())
}

/// The members are cut from each other, not from their clients, for longer than the lease: the
/// primary is frozen and, since nobody could be granted meanwhile, goes on where it was.
#[test]
fn a_blip_between_all_members_pauses_the_primary_and_closes_no_session() -> Result<()> {
    let _turn = take_machine()?;
    let cluster = Cluster::start(&Spec::asynchronous(3))?;
    if cluster.network().means() != Means::Filter {
        can_cut(&cluster);
        return Ok(());
    }
    let workload = cluster.workload(&Plan { member: false, multi_host: 0, ..Plan::default() });
    workload.wait_for(100, LIMIT)?;
    let primary = cluster.wait_whole()?;
    let (epoch, postmaster) = (cluster.epoch()?, cluster.node(primary)?.postmaster());
    let broken = workload.so_far().broken;
    let at = Moment::now();
    for (one, other) in [(0, 1), (0, 2), (1, 2)] {
        cluster.network().cut_between(Place::Node(one), Place::Node(other))?;
    }
    // The lease has to end (1.5 s), and the primary must not have been frozen for 10 s.
    hold(Duration::from_secs(5));
    let status = cluster.status(primary)?;
    let state = |index: usize| {
        let members = status.get("members")?.as_array()?;
        let member = members.iter().find(|member| member["name"] == format!("pg-{}", index + 1))?;
        member.get("state")?.as_str().map(ToOwned::to_owned)
    };
    let states = [state(primary), state((primary + 1) % 3), state((primary + 2) % 3)];
    let expected = ["frozen", "unreachable", "unreachable"].map(|word| Some(word.to_owned()));
    ensure!(states == expected && status["writable"] == false, "the primary alone says: {status}");
    cluster.network().heal()?;
    workload.wait_for(100, LIMIT).with_context(|| cluster.dump())?;
    ensure!(cluster.wait_whole()? == primary && cluster.epoch()? == epoch, "a blip moved the primary");
    ensure!(cluster.node(primary)?.postmaster() == postmaster, "a blip restarted Postgres");
    let after = workload.so_far().broken;
    ensure!(after == broken, "sessions were closed: {broken:?}, {after:?}; {}", cluster.dump());
    check_gap(&workload, at, GAP_LIMIT, "all members cut from each other for 5 s")?;
    finish(&cluster, workload, &[]).map(drop)
}

#[test]
fn ten_switchovers_there_and_back_lose_nothing() -> Result<()> {
    let _turn = take_turn()?;
    let (cluster, workload) = begin(&Plan::default())?;
    let mut gaps = Sample::default();
    for round in 1..=20 {
        let primary = cluster.wait_whole()?;
        let target = (primary + if round % 2 == 1 { 1 } else { 2 }) % 3;
        workload.wait_for(30, LIMIT)?;
        let at = Moment::now();
        cluster.switchover(target).with_context(|| format!("round {round}; {}", cluster.dump()))?;
        workload.wait_elsewhere(primary, at, LIMIT).with_context(|| cluster.dump())?;
        let now = cluster.wait_whole()?;
        ensure!(now == target, "round {round}: asked for pg-{}, primary is pg-{}", target + 1, now + 1);
        gaps.push(check_gap(&workload, at, GAP_LIMIT, &format!("switchover {round}"))?);
    }
    report(&format!(
        "20 switchovers: p50 {} s, worst {} s",
        seconds(gaps.percentile(50)),
        seconds(gaps.worst())
    ));
    finish(&cluster, workload, &[]).map(drop)
}

#[test]
fn a_stopped_supervisor_on_the_primary_never_makes_two_primaries() -> Result<()> {
    let _turn = take_turn()?;
    let (mut cluster, workload) = begin(&Plan::default())?;
    let primary = cluster.wait_whole()?;
    let at = Moment::now();
    cluster.node_mut(primary)?.signal_supervisor(Signal::STOP)?;
    let new = workload.wait_elsewhere(primary, at, LIMIT).with_context(|| cluster.dump())?;
    report(&format!(
        "member {} took over {:.3} s after the stop",
        new.server + 1,
        new.finished.since(at).as_secs_f64()
    ));
    hold(Duration::from_secs(30).saturating_sub(at.elapsed()));
    cluster.node_mut(primary)?.signal_supervisor(Signal::CONT)?;
    cluster.wait_whole()?;
    check_gap(&workload, at, GAP_LIMIT, "primary's supervisor stopped for 30 s")?;
    finish(&cluster, workload, &[Excuse::lease(at)]).map(drop)
}

#[test]
fn a_stopped_standby_or_raft_leader_disturbs_nobody() -> Result<()> {
    let _turn = take_machine()?;
    let (mut cluster, workload) = begin(&Plan::default())?;
    let primary = cluster.wait_whole()?;
    let epoch = cluster.epoch()?;
    let leader = cluster.wait_until("Raft's leader is not on the primary's node", || {
        let leader = cluster.raft_leader()?;
        ensure!(leader != primary, "it is");
        Ok(leader)
    })?;
    let standby = (0..3).find(|&index| index != primary && index != leader).context("another standby")?;
    // Longer than a frozen instance may wait, and than any timeout of a stream.
    let stop = Duration::from_secs(12);

    let at = Moment::now();
    cluster.node_mut(standby)?.signal_both(Signal::STOP)?;
    hold(stop);
    cluster.node_mut(standby)?.signal_both(Signal::CONT)?;
    cluster.wait_whole()?;
    check_gap(&workload, at, CALM, "a standby's supervisor and guardian stopped for 12 s")?;

    let at = Moment::now();
    cluster.node_mut(leader)?.signal_supervisor(Signal::STOP)?;
    hold(stop);
    cluster.node_mut(leader)?.signal_supervisor(Signal::CONT)?;
    cluster.wait_whole()?;
    check_gap(&workload, at, CALM, "the Raft leader's supervisor stopped for 12 s")?;

    ensure!(cluster.wait_whole()? == primary, "the primary moved");
    ensure!(cluster.epoch()? == epoch, "the epoch changed");
    finish(&cluster, workload, &[]).map(drop)
}

/// Restarts a member's supervisor and shows that Postgres and its clients noticed nothing.
fn restart(cluster: &mut Cluster, workload: &Workload, index: usize, what: &str) -> Result<()> {
    let primary = cluster.wait_whole()?;
    workload.wait_for(50, LIMIT)?;
    let postmaster = cluster.node(index)?.postmaster().context("a postmaster")?;
    let (epoch, broken) = (cluster.epoch()?, workload.so_far().broken);
    let at = Moment::now();
    let node = cluster.node_mut(index)?;
    node.signal_supervisor(Signal::KILL)?;
    node.wait_for_end(LIMIT).context("the supervisor ended")?;
    cluster.start_node(index)?;
    cluster.wait_until("the supervisor answers", || cluster.status(index).map(drop))?;
    // Twice the lease: had anybody lost it, it would show by now.
    hold(Duration::from_secs(3));
    ensure!(cluster.wait_whole()? == primary, "{what} of member {}: the primary moved", index + 1);
    let now = cluster.node(index)?.postmaster();
    ensure!(
        now == Some(postmaster),
        "{what} of member {}: postmaster {postmaster} became {now:?}",
        index + 1
    );
    ensure!(cluster.epoch()? == epoch, "{what} of member {}: the epoch changed", index + 1);
    let after = workload.so_far().broken;
    ensure!(after == broken, "{what} of member {}: sessions were closed: {broken:?}, {after:?}", index + 1);
    let role = if index == primary { "primary" } else { "standby" };
    check_gap(workload, at, GAP_LIMIT, &format!("{what} of the supervisor of a {role}")).map(drop)
}

#[test]
fn a_crash_or_upgrade_of_each_supervisor_leaves_postgres_alone() -> Result<()> {
    let _turn = take_machine()?;
    let (mut cluster, workload) = begin(&Plan::default())?;
    for index in 0..3 {
        restart(&mut cluster, &workload, index, "crash")?;
    }
    let next = cluster.folder().join("rhone-next");
    std::fs::copy(cluster.node(0)?.program(), &next).context("copy the binary")?;
    for index in 0..3 {
        cluster.node_mut(index)?.use_program(next.clone());
        restart(&mut cluster, &workload, index, "upgrade")?;
    }
    finish(&cluster, workload, &[]).map(drop)
}

#[test]
fn sigterm_hands_over_and_loses_nothing() -> Result<()> {
    let _turn = take_turn()?;
    let (mut cluster, workload) = begin(&Plan::default())?;
    let primary = cluster.wait_whole()?;
    let at = Moment::now();
    let node = cluster.node_mut(primary)?;
    node.signal_supervisor(Signal::TERM)?;
    let status = node.wait_for_end(LIMIT).context("the supervisor ended after SIGTERM")?;
    ensure!(status.success(), "the supervisor ended with {status}");
    ensure!(cluster.node(primary)?.postmaster().is_none(), "Postgres still runs after SIGTERM");
    workload.wait_elsewhere(primary, at, LIMIT).with_context(|| cluster.dump())?;
    cluster.wait_whole_without(&[primary])?;
    check_gap(&workload, at, GAP_LIMIT, "SIGTERM to the primary's supervisor")?;
    cluster.start_node(primary)?;
    finish(&cluster, workload, &[]).map(drop)
}

#[test]
fn all_come_back_after_a_power_cut_of_everything() -> Result<()> {
    let _turn = take_turn()?;
    let (mut cluster, workload) = begin(&Plan::default())?;
    cluster.wait_whole()?;
    let at = Moment::now();
    cluster.power_loss_of_all()?;
    for index in 0..3 {
        cluster.start_node(index)?;
    }
    cluster.wait_whole()?;
    workload.wait_for(50, LIMIT)?;
    check_gap(&workload, at, LIMIT, "all killed at once and started again")?;
    finish(&cluster, workload, &[]).map(drop)
}
