//! What goes wrong, drawn from the seed; and how it ends.

use std::ops::Range;

use rhone_consensus::command::{ClusterCommand, Handover};
use rhone_consensus::state::Phase;

use crate::disk::Speed;
use crate::machine::Run;
use crate::net::Link;
use crate::world::World;

/// Something that is due later.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Due {
    /// The machine gets power again.
    Power(usize),
    /// The supervisor is started again.
    Start(usize),
    /// Whatever was stopped there goes on.
    Continue(usize),
    /// Every link works again.
    Join,
    /// Every link is quick again.
    Quick,
    /// The disk is quick again.
    Fast(usize),
    /// A store is lost, and the leader cut off from who remembers.
    Wipe {
        /// Whose store.
        wiped: usize,
        /// Who leads.
        leader: usize,
    },
    /// The primary is struck.
    Pounce,
}

/// What goes wrong, as a number: what is drawn more often has more of them.
pub type Kind = u64;

/// Cuts, delay and loss.
pub const NETWORK: Range<Kind> = 0..30;
/// A member is cut off from all others.
pub const CUT_OFF: Range<Kind> = 0..7;
/// Processes that end, stop and go on; people who ask for a switchover.
pub const PROCESS: Range<Kind> = 30..70;
/// Power, disks, lost stores.
pub const DISK: Range<Kind> = 70..112;
/// A machine loses its power.
pub const POWER: Range<Kind> = 70..82;
/// A disk is slow.
pub const SLOW_DISK: Range<Kind> = 84..90;
/// A standby comes back with an older image of its data, and the primary is gone.
pub const OLD_IMAGE: Range<Kind> = 100..104;
/// What was written last is on the Raft leader and on one store, which is lost.
pub const BARE_MAJORITY: Range<Kind> = 104..108;
/// Every standby's disk is slow.
pub const LAGGING: Range<Kind> = 108..112;
/// All of it.
pub const ALL: Range<Kind> = 0..112;

/// Something drawn goes wrong.
pub fn strike(world: &mut World) {
    let many: u64 = world.stage.kinds.iter().map(|kinds| kinds.end - kinds.start).sum();
    let mut drawn = world.random.below(many);
    let kind = world.stage.kinds.iter().find_map(|kinds| {
        let length = kinds.end - kinds.start;
        let here = (drawn < length).then_some(kinds.start + drawn);
        drawn = drawn.saturating_sub(length);
        here
    });
    let Some(kind) = kind else { return };
    // The one that matters most is met most often.
    let count = world.plant.count();
    let drawn = world.random.index(count);
    let index = world.primary().filter(|_| world.random.permille(450)).unwrap_or(drawn);
    match kind {
        0..22 => network(world, index, kind),
        22..30 => slow_links(world),
        30..70 => process(world, index, kind),
        70..100 => disk(world, index, kind),
        100..104 => restored_behind(world),
        104..108 => bare_majority(world),
        _ => lagging(world),
    }
}

/// Something was decided just now: the primary is struck at that moment, or soon after.
pub fn pounce(world: &mut World) {
    let kind = match world.random.below(10) {
        0..4 => 0,
        4..8 => 70,
        _ => 30,
    };
    let Some(primary) = world.primary() else { return };
    match kind {
        0 => network(world, primary, kind),
        30 => process(world, primary, kind),
        _ => disk(world, primary, kind),
    }
}

/// A backup of the standby's data directory takes the directory's place, and the primary is gone before
/// the standby streams again: it says how far it is, and that is not how far it was.
fn restored_behind(world: &mut World) {
    let Some(primary) = world.primary() else { return };
    let standby = (primary + 1 + world.random.index(world.plant.data - 1)) % world.plant.data;
    if standby == primary {
        return;
    }
    if !world.has_image(standby) {
        world.take_image(standby);
        return;
    }
    if !world.may_lose(standby) {
        return;
    }
    world.plant.say(format!(
        "FAULT n{} loses power, and an older image of its data is restored; n{} loses power",
        standby + 1,
        primary + 1
    ));
    world.power_off(standby);
    world.restore_image(standby);
    world.data_lost = true;
    world.power_off(primary);
    world.later(300, 1000, Due::Power(standby));
    world.later(4000, 9000, Due::Power(primary));
}

/// One follower is cut off, something is decided without it, the other one loses its store, and then
/// the Raft leader is cut off instead of the first.
fn bare_majority(world: &mut World) {
    let count = world.plant.count();
    let Some(leader) = world.leader().filter(|_| world.plant.data == 3) else { return };
    let (away, wiped) = ((leader + 1) % count, (leader + 2) % count);
    if !world.may_lose(wiped) {
        return;
    }
    world.plant.say(format!(
        "FAULT n{} is cut off; then n{} loses its raft store, and n{} is cut off instead",
        away + 1,
        wiped + 1,
        leader + 1
    ));
    world.is_losing(10_000);
    world.cut_off(away);
    world.later(1500, 4000, Due::Wipe { wiped, leader });
}

/// The second half of that.
pub fn wipe(world: &mut World, wiped: usize, leader: usize) {
    let count = world.plant.count();
    for from in 0..count {
        (0..count).for_each(|to| world.plant.net.join(from, to));
    }
    let all = (0..count).all(|index| world.processes[index].as_ref().is_some_and(|process| !process.stopped));
    // Where the owner's store is lost its word is, and what it alone has is a person's to give up.
    let owner = (0..count).any(|index| index == wiped && world.plant.machine(index).run == Run::Primary);
    if !all || owner {
        return;
    }
    world.power_off(wiped);
    world.plant.disks[wiped].wipe_store();
    world.data_lost = true;
    world.cut_off(leader);
    world.later(50, 300, Due::Power(wiped));
    world.later(4000, 9000, Due::Join);
}

/// The disks of all standbys are slow: what the primary has they have late.
fn lagging(world: &mut World) {
    let Some(primary) = world.primary() else { return };
    let most_us = world.random.between(100_000, 600_000);
    world.plant.say(format!("FAULT the standbys' disks take up to {} ms", most_us / 1000));
    for index in (0..world.plant.data).filter(|index| *index != primary) {
        world.plant.disks[index].set_speed(Speed { least_us: 20_000, most_us });
        world.later(1000, 6000, Due::Fast(index));
    }
}

fn network(world: &mut World, index: usize, kind: u64) {
    let count = world.plant.count();
    let others = (0..count).filter(|other| *other != index);
    let net = &world.plant.net;
    let words = match kind {
        0..7 => {
            world.cut_off(index);
            "is cut off"
        }
        7..11 => {
            for other in others {
                net.cut(index, other);
            }
            "can send nothing"
        }
        11..14 => {
            for other in others {
                net.cut(other, index);
            }
            "hears nothing"
        }
        14..17 => {
            let other = (index + 1) % count;
            net.cut(index, other);
            net.cut(other, index);
            "is cut from the next one"
        }
        17..19 => {
            // A ring: everybody reaches its two neighbours only.
            for a in 0..count {
                for b in 0..count {
                    let apart = (a + count - b) % count;
                    if a != b && apart != 1 && apart != count - 1 {
                        net.cut(a, b);
                    }
                }
            }
            net.cut(index, (index + 1) % count);
            "and the others are in a broken ring"
        }
        _ => {
            let leader = world.leader().filter(|leader| *leader != index);
            let leader = leader.unwrap_or((index + 1) % count);
            net.cut(index, leader);
            net.cut(leader, index);
            "is cut from the raft leader"
        }
    };
    world.plant.say(format!("FAULT n{} {words}", index + 1));
    world.later(300, 9000, Due::Join);
}

fn slow_links(world: &mut World) {
    let loss = world.random.below(150);
    let most_us = world.random.between(2_000, 60_000);
    world.plant.say(format!("FAULT links take up to {} ms, {loss} of 1000 packets are lost", most_us / 1000));
    world.plant.net.set_link(Link { least_us: 100, most_us, loss });
    world.later(1000, 8000, Due::Quick);
}

fn process(world: &mut World, index: usize, kind: u64) {
    let number = index + 1;
    match kind {
        30..38 => {
            if world.processes[index].is_some() {
                world.plant.say(format!("FAULT n{number}'s supervisor is killed"));
                world.processes[index] = None;
                let long = if world.random.permille(300) { 8000 } else { 900 };
                world.later(100, long, Due::Start(index));
            }
        }
        38..44 => stop(world, index, true, false, false),
        44..48 => stop(world, index, false, true, false),
        48..50 => stop(world, index, true, true, false),
        50..56 => stop(world, index, true, true, true),
        56..60 => {
            world.plant.say(format!("FAULT n{number}'s postmaster dies"));
            world.plant.machine(index).kill();
        }
        60..62 => {
            world.plant.say(format!("FAULT n{number}'s guardian dies"));
            let mut machine = world.plant.machine(index);
            machine.kill();
            machine.guard.alive = false;
        }
        62..65 => {
            if let Some(process) = &world.processes[index] {
                world.plant.say(format!("FAULT n{number} gets SIGTERM"));
                process.terminate();
            }
        }
        _ => switchover(world, index),
    }
}

/// Stops processes of a member by a signal, for a while.
fn stop(world: &mut World, index: usize, supervisor: bool, guardian: bool, postgres: bool) {
    if world.processes[index].is_none() {
        return;
    }
    let mut what = Vec::new();
    if supervisor {
        what.push("supervisor");
        if let Some(process) = &mut world.processes[index] {
            process.stopped = true;
        }
    }
    let mut machine = world.plant.machine(index);
    if guardian {
        what.push("guardian");
        machine.guard.stopped = true;
    }
    if postgres {
        what.push("postgres");
        machine.postgres_stopped = machine.runs();
    }
    drop(machine);
    world.plant.say(format!("FAULT n{}: {} stopped", index + 1, what.join(", ")));
    let long = if world.random.permille(250) { 15_000 } else { 3500 };
    world.later(200, long, Due::Continue(index));
}

fn switchover(world: &mut World, index: usize) {
    let Some(leader) = world.leader() else { return };
    let Some(up) = world.processes[leader].as_ref().and_then(|process| process.up()) else { return };
    let applied = up.shared.consensus.state().borrow().clone();
    let to = applied.state.member_named(&format!("n{}", index + 1)).map(|member| member.node);
    if applied.state.phase != Phase::Established {
        return;
    }
    world.plant.say(format!("FAULT a person asks for a switchover to n{}", index + 1));
    let handover = Handover { epoch: applied.state.epoch, to, leaving: false };
    let command = ClusterCommand::SetHandover(Some(handover));
    if let Some(process) = &world.processes[leader]
        && up.shared.would_refuse(&command).is_none()
    {
        world.commanded = world.plant.now();
        process.spawn(async move {
            drop(up.shared.consensus.propose(command, std::time::Duration::from_secs(5)).await);
        });
    }
}

fn disk(world: &mut World, index: usize, kind: u64) {
    let index = if kind >= 95 { index % world.plant.data } else { index };
    let number = index + 1;
    match kind {
        70..82 if world.plant.machine(index).power => {
            world.plant.say(format!("FAULT n{number} loses power"));
            world.power_off(index);
            let long = if world.random.permille(300) { 12_000 } else { 2500 };
            world.later(300, long, Due::Power(index));
        }
        82..84 => {
            world.plant.say("FAULT all lose power");
            for index in 0..world.plant.count() {
                world.power_off(index);
                world.later(300, 4000, Due::Power(index));
            }
        }
        84..90 => {
            let most_us = world.random.between(20_000, 600_000);
            world.plant.say(format!("FAULT n{number}'s disk takes up to {} ms", most_us / 1000));
            world.plant.disks[index].set_speed(Speed { least_us: 5_000, most_us });
            world.later(1000, 8000, Due::Fast(index));
        }
        92..95 if world.may_lose(index) => {
            world.plant.say(format!("FAULT n{number} loses power and its raft store"));
            world.power_off(index);
            world.plant.disks[index].wipe_store();
            // Its word as a former owner is gone with its id, though its data directory is there.
            world.data_lost = true;
            world.later(300, 3000, Due::Power(index));
        }
        90..92 => (0..world.plant.data).for_each(|index| world.take_image(index)),
        97 if world.has_image(index) && world.may_lose(index) => {
            world
                .plant
                .say(format!("FAULT n{number} loses power, and an older image of its data is restored"));
            world.power_off(index);
            world.restore_image(index);
            world.data_lost = true;
            world.later(300, 3000, Due::Power(index));
        }
        95..97 if world.may_lose(index) => {
            world.plant.say(format!("FAULT n{number} loses power and its data directory"));
            world.power_off(index);
            world.plant.machine(index).data = None;
            world.data_lost = true;
            world.later(300, 3000, Due::Power(index));
        }
        98.. if world.may_lose(index) => {
            world.plant.say(format!("FAULT n{number} is replaced by an empty machine"));
            world.power_off(index);
            world.plant.machine(index).data = None;
            world.data_lost = true;
            if let Err(error) = world.plant.wipe_state(index) {
                world.plant.check().violated(format!("the simulation itself: {error}"));
            }
            world.later(300, 3000, Due::Power(index));
        }
        _ => {}
    }
}
