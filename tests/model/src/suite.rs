//! Which worlds are searched, how far, and what each mutant must break.

use std::fmt::Write as _;

use crate::data::{self, DataWorld, Mode};
use crate::lease::{self, LeaseWorld};
use crate::search::{Found, Limit, search};

/// One search.
#[derive(Clone, Copy, Debug)]
pub enum Case {
    /// The lease.
    Lease(lease::Setup, lease::Mutant),
    /// The data.
    Data(data::Setup, data::Mutant),
}

/// What a search came to, with what it must have met.
#[derive(Debug)]
pub struct Outcome {
    /// The search.
    pub found: Found,
    /// How many Grants it met: with none it showed nothing.
    pub grants: usize,
    /// How many acknowledgements it met; of the data alone.
    pub acks: Option<usize>,
}

impl Case {
    /// Searches.
    pub fn run(&self, limit: Limit) -> Outcome {
        match *self {
            Self::Lease(setup, mutant) => {
                let mut world = LeaseWorld::new(setup, mutant);
                let found = search(&mut world, limit);
                Outcome { found, grants: world.grants_seen, acks: None }
            }
            Self::Data(setup, mutant) => match setup.members {
                2 => data::<2>(setup, mutant, limit),
                5 => data::<5>(setup, mutant, limit),
                _ => data::<3>(setup, mutant, limit),
            },
        }
    }

    /// Returns the world in a few words.
    pub fn world(&self) -> String {
        match self {
            Self::Lease(setup, _) => {
                let mut text = format!("lease: {}", setup.name);
                let log = setup.log.len();
                let _ =
                    write!(text, ", {} restarts, {} uncommitted, {log} entries", setup.restarts, setup.tails);
                text
            }
            Self::Data(setup, _) => format!("data: {setup}"),
        }
    }

    /// Returns the rule that is left out, and the property that this must break.
    pub fn mutant(&self) -> Option<(String, &'static str)> {
        match self {
            Self::Lease(_, lease::Mutant::None) | Self::Data(_, data::Mutant::None) => None,
            Self::Lease(_, mutant) => Some((format!("{mutant:?}"), "I2")),
            Self::Data(_, mutant) => Some((format!("{mutant:?}"), mutant.breaks())),
        }
    }
}

fn data<const N: usize>(setup: data::Setup, mutant: data::Mutant, limit: Limit) -> Outcome {
    let mut world = DataWorld::<N>::new(setup, mutant);
    let found = search(&mut world, limit);
    Outcome { found, grants: world.grants_seen, acks: Some(world.acks_seen) }
}

/// The mutants of both worlds, each in a world that shows it.
pub fn mutants() -> Vec<Case> {
    let lease = lease::Mutant::ALL.into_iter().map(|mutant| Case::Lease(mutant.shown_in(), mutant));
    let data = data::Mutant::ALL.into_iter().map(|mutant| Case::Data(mutant.shown_in(), mutant));
    lease.chain(data).collect()
}

/// The worlds of the lease in `make test`.
pub fn lease_worlds() -> Vec<Case> {
    let restart = lease::Setup { tails: 0, ..lease::Setup::SLOW_OWNER };
    let tail = lease::Setup { restarts: 0, ..lease::Setup::SLOW_OWNER };
    let worlds = [restart, tail, lease::Setup::CHANGE, lease::Setup::JOINT, lease::Setup::LATE];
    worlds
        .into_iter()
        .chain(lease::Setup::TIMINGS)
        .map(|setup| Case::Lease(setup, lease::Mutant::None))
        .collect()
}

/// The worlds of the data in `make test`: two epochs with one kind of trouble each, in every mode.
pub fn data_worlds() -> Vec<Case> {
    let calm = data::Setup { epochs: 2, writes: 1, faults: 0, changes: 0, delays: 0, ..data::Setup::SYNC };
    let worlds = [
        data::Setup { writes: 2, ..calm },
        data::Setup { epochs: 1, faults: 1, ..calm },
        data::Setup { epochs: 1, writes: 2, delays: 1, ..calm },
        data::Setup { changes: 1, ..calm },
        data::Setup { unfit: true, writes: 2, changes: 1, ..calm },
        data::Setup { epochs: 1, restores: 1, ..calm },
        data::Setup { mode: Mode::Two, epochs: 1, changes: 2, ..calm },
        data::Setup { mode: Mode::Strict, epochs: 1, changes: 1, restores: 1, ..calm },
        data::Setup { mode: Mode::Async, epochs: 1, writes: 2, ..calm },
        data::Setup { members: 2, witness: true, changes: 1, ..calm },
        data::Setup { members: 5, epochs: 1, ..calm },
    ];
    worlds.into_iter().map(|setup| Case::Data(setup, data::Mutant::None)).collect()
}

/// What `make model` adds: more trouble at once, and everything wholly where that is possible.
pub fn deep() -> Vec<Case> {
    let all = data::Setup { epochs: 2, writes: 2, faults: 1, changes: 1, delays: 1, ..data::Setup::SYNC };
    let worlds = [
        all,
        data::Setup { unfit: true, ..all },
        data::Setup { faults: 0, changes: 0, delays: 2, ..all },
        data::Setup { faults: 1, changes: 0, delays: 0, ..all },
        data::Setup { faults: 0, changes: 2, delays: 0, ..all },
        data::Setup { epochs: 3, writes: 1, faults: 0, changes: 0, delays: 1, ..all },
        data::Setup { restores: 1, faults: 0, delays: 0, ..all },
        data::Setup { mode: Mode::Two, changes: 2, faults: 0, delays: 0, ..all },
        data::Setup { mode: Mode::Strict, ..all },
        data::Setup { mode: Mode::Strict, faults: 0, restores: 1, ..all },
        data::Setup { mode: Mode::Async, writes: 3, ..all },
        data::Setup { members: 2, witness: true, changes: 2, ..all },
        data::Setup { members: 5, changes: 1, faults: 0, ..all },
    ];
    let data = worlds.into_iter().map(|setup| Case::Data(setup, data::Mutant::None));
    let lease = lease::Setup::ALL.into_iter().map(|setup| Case::Lease(setup, lease::Mutant::None));
    lease.chain(data).collect()
}
