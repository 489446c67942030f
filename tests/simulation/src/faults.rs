//! What goes wrong, drawn from the seed; and how it ends.

use rhone_consensus::command::{ClusterCommand, Handover};
use rhone_consensus::state::Phase;

use crate::disk::Speed;
use crate::net::Link;
use crate::random::Random;
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
}

/// What a run may meet.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mix {
    /// Nothing at all.
    Calm,
    /// Cuts, delay and loss.
    Network,
    /// Processes that end, stop and go on.
    Process,
    /// Power, disks, lost stores.
    Disk,
    /// All of it.
    All,
}

impl Mix {
    /// Draws one: most runs meet everything.
    pub fn draw(random: &mut Random) -> Self {
        match random.below(20) {
            0 => Self::Calm,
            1..4 => Self::Network,
            4..7 => Self::Process,
            7..10 => Self::Disk,
            _ => Self::All,
        }
    }
}

/// Something drawn goes wrong.
pub fn strike(world: &mut World) {
    let kind = match world.mix {
        Mix::Calm => return,
        Mix::Network => world.random.below(30),
        Mix::Process => 30 + world.random.below(40),
        Mix::Disk => 70 + world.random.below(30),
        Mix::All => world.random.below(100),
    };
    // The one that matters most is met most often.
    let count = world.plant.count();
    let drawn = world.random.index(count);
    let index = world.primary().filter(|_| world.random.permille(450)).unwrap_or(drawn);
    match kind {
        0..22 => network(world, index, kind),
        22..30 => slow_links(world),
        30..70 => process(world, index, kind),
        _ => disk(world, index, kind),
    }
}

fn network(world: &mut World, index: usize, kind: u64) {
    let count = world.plant.count();
    let others = (0..count).filter(|other| *other != index);
    let net = &world.plant.net;
    let words = match kind {
        0..7 => {
            for other in others {
                net.cut(index, other);
                net.cut(other, index);
            }
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
        97 if world.may_lose(index) => {
            world
                .plant
                .say(format!("FAULT n{number} loses power, and an older image of its data is restored"));
            world.power_off(index);
            if world.restore_image(index) {
                world.data_lost = true;
            }
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
