//! What the instances do by themselves in a tick: recover, flush, stream, acknowledge.

use rhone::guardian::Lease as PageLease;
use rhone_consensus::settings::Timing;

use crate::machine::{Commit, Data, Fenced, Run};
use crate::mutant::Mutant;
use crate::plant::Plant;

/// After how long without a word a walreceiver gives its upstream up.
const RECEIVER_TIMEOUT_NS: u64 = 3_000_000_000;

/// The pause between two tries to connect.
const RETRY_NS: u64 = 200_000_000;

/// The guardian's look, and whatever Postgres does meanwhile.
pub fn step(plant: &Plant, index: usize, timing: Timing) {
    guardian(plant, index);
    recover(plant, index);
    if plant.machine(index).moves() {
        reap(plant, index);
    }
    stream(plant, index);
    flush(plant, index, timing);
}

fn guardian(plant: &Plant, index: usize) {
    let boot = plant.clocks[index].moment();
    if plant.mutant == Mutant::NoFence {
        plant.machine(index).kick(boot);
        return;
    }
    let fenced = plant.machine(index).guard(boot, plant.mutant == Mutant::LeaseFromReply);
    let words = match fenced {
        Fenced::No => return,
        Fenced::Froze => "guardian freezes",
        Fenced::Thawed => "guardian lets go on",
        Fenced::Killed => "guardian kills",
    };
    plant.say(format!("n{} {words}", index + 1));
}

/// Ends the walsenders whose standbys are gone.
fn reap(plant: &Plant, index: usize) {
    let now = plant.now();
    let me = |node| plant.index_of(node) == Some(index);
    let senders: Vec<(usize, u64)> =
        plant.machine(index).sync.senders.iter().map(|(standby, s)| (*standby, s.heard)).collect();
    for (standby, heard) in senders {
        let other = plant.machine(standby);
        let there = other.streaming && other.upstream.is_some_and(me);
        // Whose machine is gone or cut off says nothing, not even goodbye.
        let told = plant.net.linked(index, standby) && other.power;
        drop(other);
        if (told && !there) || now.saturating_sub(heard) > RECEIVER_TIMEOUT_NS {
            plant.machine(index).sync.senders.remove(&standby);
        }
    }
}

fn recover(plant: &Plant, index: usize) {
    let now = plant.now();
    let mut machine = plant.machine(index);
    if let Run::Starting(ready) = machine.run
        && machine.moves()
        && now >= ready
        && machine.data.as_ref().is_some_and(|data| data.wal.len() >= data.needs)
    {
        machine.run = Run::Standby;
    }
}

/// Receives WAL from the upstream, where there is one and it can be reached.
fn stream(plant: &Plant, index: usize) {
    let now = plant.now();
    let upstream = {
        let mut machine = plant.machine(index);
        let receives = match machine.run {
            Run::Standby => true,
            Run::Starting(ready) => now >= ready,
            Run::Stopped | Run::Primary => false,
        };
        let Some(upstream) = machine.upstream.filter(|_| receives && machine.power) else {
            machine.streaming = false;
            return;
        };
        if !machine.moves() {
            return;
        }
        upstream
    };
    let Some(source) = plant.index_of(upstream).filter(|source| *source != index) else { return };
    let linked = plant.net.linked(index, source);
    // One thread holds all locks there are: none of the two is waited for.
    let mut from = {
        let machine = plant.machine(source);
        // Positions do not move while it is frozen; what it sent before is on its way or lost.
        let serves = machine.run == Run::Primary && machine.moves();
        let gone = !machine.power || !machine.runs();
        if !linked || !serves {
            let ended = linked && gone && machine.power;
            drop(machine);
            let mut mine = plant.machine(index);
            if ended || now.saturating_sub(mine.heard) > RECEIVER_TIMEOUT_NS {
                mine.streaming = false;
                mine.connect_at = mine.connect_at.max(now + RETRY_NS);
            }
            return;
        }
        machine
    };
    let from = &mut *from;
    let Some(theirs) = &from.data else { return };
    let luck = plant.draw(10);
    let step = usize::try_from(plant.draw(24)).unwrap_or(0);
    let mut machine = plant.machine(index);
    if machine.streaming && !from.sync.senders.contains_key(&index) {
        // The walsender was ended.
        machine.streaming = false;
        machine.connect_at = now + RETRY_NS;
        return;
    }
    if !machine.streaming {
        if now < machine.connect_at {
            return;
        }
        let fits = machine.data.as_ref().is_some_and(|mine| continues(mine, theirs));
        if !fits {
            machine.connect_at = now + 1_000_000_000;
            return;
        }
        machine.streaming = true;
        from.sync.connect(index, machine.standby_name, now);
    }
    machine.heard = now;
    let Some(mine) = &mut machine.data else { return };
    if luck < 3 {
        return;
    }
    from.sync.hear(index, mine.flushed, now);
    let behind = from.sync.senders.get(&index).and_then(|sender| sender.behind);
    let sent = behind.map_or(theirs.flushed, |(_, limit)| limit.min(theirs.flushed));
    if mine.wal.len() >= sent {
        return;
    }
    let until = sent.min(mine.wal.len() + 1 + step);
    plant.check().streams(index, source, mine, theirs);
    mine.wal.extend_from_slice(&theirs.wal[mine.wal.len()..until]);
    mine.timeline = mine.wal.last().map_or(mine.timeline, |record| record.timeline);
}

/// Whether a walsender takes that request: by timeline and LSN, not by content.
fn continues(mine: &Data, theirs: &Data) -> bool {
    let timeline = mine.wal.last().map_or(1, |record| record.timeline);
    if timeline == theirs.timeline {
        return mine.wal.len() <= theirs.wal.len();
    }
    theirs.end_of(timeline).is_some_and(|end| mine.wal.len() <= end)
}

/// Flushes, and tells clients what is safe.
fn flush(plant: &Plant, index: usize, timing: Timing) {
    let now = plant.now();
    let boot = plant.clocks[index].moment();
    let time = u64::try_from(plant.disks[index].fsync_time().as_nanos()).unwrap_or(0);
    let mut safe: Vec<Commit> = Vec::new();
    let mut machine = plant.machine(index);
    if !machine.moves() || !machine.runs() {
        return;
    }
    if let Some((upto, due)) = machine.flush
        && now >= due
    {
        machine.flush = None;
        if let Some(data) = &mut machine.data {
            data.flushed = data.flushed.max(upto.min(data.wal.len()));
        }
    }
    let Some((length, flushed)) = machine.data.as_ref().map(|data| (data.wal.len(), data.flushed)) else {
        return;
    };
    if machine.flush.is_none() && flushed < length {
        machine.flush = Some((length, now + time));
    }
    let freed = machine.sync.turn(now);
    if machine.run != Run::Primary {
        return;
    }
    while let Some(commit) = machine.commits.front().copied().filter(|commit| commit.end <= flushed) {
        machine.commits.pop_front();
        if machine.sync.waits(commit.end) {
            machine.sync.waiting.push(commit);
        } else {
            safe.push(commit);
        }
    }
    safe.extend(freed);
    if safe.is_empty() {
        return;
    }
    // Where the guardian is stopped the supervisor fences, and has until another can be granted.
    let guard = if machine.guard.stopped {
        timing.aged_ns() - timing.serve_ns()
    } else {
        u64::from(timing.guard_ms) * 1_000_000
    };
    let late = match machine.lease() {
        Some(PageLease::Until { deadline, .. }) => {
            boot.as_nanos().saturating_sub(deadline.as_nanos().saturating_add(guard))
        }
        Some(PageLease::NotNeeded) | None => boot.as_nanos(),
    };
    let mut check = plant.check();
    for commit in safe {
        check.acknowledged(now, index, &machine, commit.id, late);
    }
}
