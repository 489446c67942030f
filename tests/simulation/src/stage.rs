//! The world of a run: how many members, how commits wait, what may go wrong.

use std::ops::Range;

use rhone_consensus::settings::SyncMode;

use crate::faults::{self, Kind};
use crate::mutant::Mutant;
use crate::random::Random;

/// The world.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Stage {
    /// How many members have data.
    pub data: usize,
    /// How many only vote.
    pub witnesses: usize,
    /// How commits wait.
    pub sync: SyncMode,
    /// What may go wrong.
    pub kinds: Vec<Range<Kind>>,
    /// Whether something goes wrong right when something was decided, too.
    pub hunts: bool,
}

impl Stage {
    /// Draws the world of a seed: any, or the one in which it would show that `shows` is left out.
    pub fn draw(random: &mut Random, shows: Mutant) -> Self {
        let (data, witnesses) = match random.below(100) {
            0..45 => (3, 0),
            // Three vote and one learns, which takes the vote of one that is away for longer.
            45..50 => (4, 0),
            50..80 => (2, 1),
            _ => (5, 0),
        };
        let sync = match random.below(100) {
            0..35 => SyncMode::Off,
            35..75 => SyncMode::Quorum,
            _ => SyncMode::Strict,
        };
        let kinds = match random.below(20) {
            0 => vec![],
            1..4 => vec![faults::NETWORK],
            4..7 => vec![faults::PROCESS],
            7..10 => vec![faults::DISK],
            _ => vec![faults::ALL],
        };
        let hunts = random.permille(300);
        Self { data, witnesses, sync, kinds, hunts }.showing(shows)
    }

    fn showing(self, rule: Mutant) -> Self {
        let with =
            |sync: SyncMode, kinds: &[Range<Kind>]| Self { sync, kinds: kinds.to_vec(), ..self.clone() };
        let quorum = |kinds: &[Range<Kind>]| Self { hunts: true, ..with(SyncMode::Quorum, kinds) };
        let cuts = [faults::CUT_OFF];
        match rule {
            Mutant::None | Mutant::GateWithoutMarker | Mutant::Nervous => self,
            Mutant::NoFence
            | Mutant::LeaseIgnored
            | Mutant::LeaseFromReply
            | Mutant::RenewsAfterPrepare
            | Mutant::NoQuarantine
            | Mutant::Drift
            | Mutant::NoLagGate => with(SyncMode::Off, &[faults::NETWORK, faults::PROCESS]),
            Mutant::EmptyNames => quorum(&cuts),
            Mutant::NoSettle | Mutant::NoBarrier | Mutant::NoCheckpoint => {
                quorum(&[faults::CUT_OFF, faults::SLOW_DISK, faults::LAGGING, faults::POWER])
            }
            Mutant::StrangerCounts => {
                Self { data: 2, witnesses: 1, hunts: false, ..quorum(&[faults::OLD_IMAGE]) }
            }
            Mutant::OldId => Self { data: 3, witnesses: 0, hunts: false, ..quorum(&[faults::BARE_MAJORITY]) },
            Mutant::NoCover => quorum(&[faults::CUT_OFF, faults::POWER, faults::PROCESS]),
            Mutant::NoPromise
            | Mutant::StreamsOn
            | Mutant::NoRecheck
            | Mutant::HastyStore
            | Mutant::OwnTimeline
            | Mutant::AnswersStay
            | Mutant::NoFloor => Self { kinds: vec![faults::ALL], hunts: true, ..self },
        }
    }
}

impl std::fmt::Display for Stage {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self { data, witnesses, sync, kinds, hunts } = self;
        write!(f, "{data} data members, {witnesses} witnesses, sync {}, faults {kinds:?}", sync.name())?;
        if *hunts { f.write_str(" and whenever something is decided") } else { Ok(()) }
    }
}
