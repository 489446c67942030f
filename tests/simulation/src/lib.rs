//! Whole clusters in one thread and virtual time: the product's decisions, Raft, lease and reports
//! over a simulated network, disk, clock, guardian and Postgres. One seed, one run, one process.

mod apart;
mod chance;
mod check;
mod clock;
mod disk;
mod faults;
mod local;
mod machine;
mod mutant;
mod net;
mod node;
mod plant;
mod postgres;
mod process;
mod random;
mod stage;
mod sync;
mod witness;
mod world;
mod wrong;

pub use apart::{Asked, run_apart};
pub use mutant::Mutant;

use world::World;

/// What a run came to.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// What went wrong, if anything did.
    pub violation: Option<String>,
    /// The story, line by line.
    pub lines: Vec<String>,
    /// The hash of the story and of every message: equal where a replay went the same way (decision 0018).
    pub hash: u64,
    /// How many rows clients were told are safe.
    pub acknowledged: u64,
    /// How many of them failovers gave up, within the bound.
    pub given_up: u64,
    /// How long the run took in its own time, in milliseconds.
    pub virtual_ms: u64,
}

/// Runs what is asked for in this process, once in its life: what a second run in the same process
/// meets is not what the first met (decision 0018). `aloud` prints each line as it comes.
pub fn run(asked: Asked, aloud: bool) -> Outcome {
    chance::begin(asked.chance.unwrap_or(asked.seed));
    // std draws a thread's keys when they are first used: those of this one may be drawn.
    let ran = std::thread::spawn(move || story(asked, aloud)).join();
    ran.unwrap_or_else(|_| Outcome::failed("the simulation itself: a panic"))
}

impl Outcome {
    fn failed(why: impl Into<String>) -> Self {
        Self {
            violation: Some(why.into()),
            lines: Vec::new(),
            hash: 0,
            acknowledged: 0,
            given_up: 0,
            virtual_ms: 0,
        }
    }
}

fn story(asked: Asked, aloud: bool) -> Outcome {
    let mut world = match World::new(asked, aloud) {
        Ok(world) => world,
        Err(error) => return Outcome::failed(format!("the simulation itself: {error}")),
    };
    world.run();
    let (violation, acknowledged, given_up) = {
        let check = world.plant.check();
        (check.violation.clone(), check.acknowledged, check.given_up)
    };
    if let Some(violation) = &violation {
        world.plant.say(format!("VIOLATION {violation}"));
    }
    let (lines, hash) = world.plant.trace();
    let hash = hash.rotate_left(1) ^ world.plant.net.hash();
    let virtual_ms = world.plant.now() / 1_000_000;
    Outcome { violation, lines, hash, acknowledged, given_up, virtual_ms }
}
