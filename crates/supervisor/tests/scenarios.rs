//! Transcripts: what is done, `----`, what happened. `UPDATE_EXPECT=1` writes them anew.
#![allow(
    clippy::pedantic,
    clippy::panic,
    clippy::double_ended_iterator_last,
    clippy::manual_is_multiple_of,
    clippy::indexing_slicing,
    clippy::wildcard_enum_match_arm,
    reason = "a test over fixed small sets: what is out of range should panic"
)]

mod world;

use std::path::PathBuf;

use world::{Mutant, World};

fn run(steps: &str) -> String {
    let mut world = World::new(false, Mutant::None, None);
    for step in steps.lines().filter(|line| !line.starts_with('#') && !line.is_empty()) {
        world.trace.push(format!("> {step}"));
        let mut words = step.split_whitespace();
        let verb = words.next().unwrap_or_default();
        let number =
            words.next().map_or(0, |word| word.trim_start_matches('n').parse::<u64>().expect("a number"));
        let node = (number as usize).saturating_sub(1);
        match verb {
            "run" => (0..number * 10).for_each(|_| world.tick()),
            "ticks" => (0..number).for_each(|_| world.tick()),
            "write" => world.write(node),
            "power-off" => world.crash(node),
            "power-on" => world.start(node),
            "kill-postgres" => world.kill_postgres(node),
            "restart-supervisor" => world.restart_supervisor(node),
            "sigterm" => world.leave(node, false),
            "cut-off" => {
                for other in (0..3).filter(|other| *other != node) {
                    world.cut.insert((node.min(other), node.max(other)));
                }
            }
            "heal" => world.cut.clear(),
            "switchover" => world.switchover(node),
            "failover" => world.fail_over(),
            "lead" => world.lead_by(node),
            other => panic!("no such step: {other}"),
        }
    }
    assert_eq!(world.violation, None);
    let end = world.describe();
    world.trace.push(end);
    world.trace.join("\n") + "\n"
}

#[test]
fn each_story_goes_as_it_is_told() {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/scenarios");
    let update = std::env::var_os("UPDATE_EXPECT").is_some();
    let mut stories: Vec<PathBuf> =
        std::fs::read_dir(folder).expect("the folder").map(|entry| entry.expect("an entry").path()).collect();
    stories.sort();
    for path in stories {
        let text = std::fs::read_to_string(&path).expect("a story");
        let (steps, told) = text.split_once("----\n").expect("steps, ----, what happened");
        let happened = run(steps);
        if update {
            std::fs::write(&path, format!("{steps}----\n{happened}")).expect("write the story");
        } else {
            assert_eq!(happened, told, "{}", path.display());
        }
    }
}
