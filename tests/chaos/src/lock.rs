//! Few tests at a time on this machine, whatever runs the tests.

use std::fs::{File, OpenOptions};
use std::time::Duration;

use anyhow::{Context, Result, bail};
use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;

/// Tests with a cluster of their own at a time; `CHAOS_TURNS` says another number.
const TURNS: usize = 2;

/// How long a test that waits for its turn sleeps between looks.
const LOOK: Duration = Duration::from_millis(100);

/// Holds a place, or all of them, until dropped.
#[derive(Debug)]
pub struct Turn {
    _places: Vec<File>,
}

/// A further cluster begins only while the machine's load is below this, for each core.
const BUSY: f64 = 2.0;

/// Waits for one of the machine's places (per user): clusters of many test processes would starve each other
/// of CPU and make every time limit meaningless. The first is free for whoever comes; the others only while
/// the machine is not busy.
pub fn take_turn() -> Result<Turn> {
    let places = places()?;
    loop {
        for (index, place) in places.iter().enumerate() {
            if (index == 0 || !busy()) && try_lock(place)? {
                let place = place.try_clone().with_context(|| format!("keep place {index}"))?;
                return Ok(Turn { _places: vec![place] });
            }
        }
        std::thread::sleep(LOOK);
    }
}

/// Waits until nobody else has a place: for what shows that nothing happens, or measures time.
pub fn take_machine() -> Result<Turn> {
    let places = places()?;
    // In their order, so that two who want all of them never wait for each other.
    for place in &places {
        flock(place, FlockOperation::LockExclusive).context("wait for the machine")?;
    }
    Ok(Turn { _places: places })
}

fn busy() -> bool {
    let text = std::fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = text.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
    let cores = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    u32::try_from(cores).is_ok_and(|cores| load > BUSY * f64::from(cores))
}

fn places() -> Result<Vec<File>> {
    let turns = match std::env::var("CHAOS_TURNS") {
        Ok(text) => text.parse().with_context(|| format!("CHAOS_TURNS is {text:?}: a number of tests"))?,
        Err(_) => TURNS,
    };
    if turns == 0 {
        bail!("CHAOS_TURNS is 0: nothing would ever run");
    }
    let user = rustix::process::geteuid().as_raw();
    let place = |index: usize| {
        let path = std::env::temp_dir().join(format!("rhone-chaos-{user}-{index}.lock"));
        let mut options = OpenOptions::new();
        options.create(true).truncate(false).write(true);
        options.open(&path).with_context(|| format!("open {}", path.display()))
    };
    (0..turns).map(place).collect()
}

fn try_lock(file: &File) -> Result<bool> {
    match flock(file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => Ok(true),
        Err(Errno::WOULDBLOCK | Errno::INTR) => Ok(false),
        Err(error) => Err(error).context("lock a place"),
    }
}
