//! What a world of the lease is made of, the rules that can be left out, and one situation.

use std::fmt;

use rhone_consensus::ids::{Epoch, LogIndex};
use rhone_consensus::settings::Timing;

/// The most voters of a world; the primary's own is the first.
pub(super) const VOTERS: usize = 4;

/// How many renewals may be under way at once.
pub(super) const ROUNDS: usize = 2;

/// The present moment of every clock: all others lie before it.
pub(super) const NOW: u64 = 1_000_000_000;

/// A moment at which everything has long been over.
pub(super) const FAR: u64 = 4_000_000_000;

/// One unit of a clock, in nanoseconds.
pub(super) const UNIT: u64 = 1_000_000;

/// No age: it has not happened.
pub(super) const NEVER: u8 = u8::MAX;

/// The epoch of the primary that is to be followed.
pub(super) const OWNED: Epoch = Epoch(3);

/// The log index of the entry that comes first in the worlds' logs.
pub(super) const FIRST: u64 = 10;

/// The index of the membership before any change.
pub(super) const MEMBERSHIP: LogIndex = LogIndex(1);

/// Nominal units: serves for 2 after sending, ages for 9; two of a slow clock are two ticks, nine of a fast
/// one are three, and one tick may pass before the guardian has frozen (`guard`).
pub(super) const TIMING: Timing =
    Timing { renewal_ms: 1, suspicion_ms: 2, lease_ms: 6, drift_permille: 500, guard_ms: 1 };

/// A shorter lease: serves for 1, ages for 6.
pub(super) const SHORT: Timing = Timing { lease_ms: 4, ..TIMING };

/// A rule that is left out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Mutant {
    /// None.
    None,
    /// A voter that has just started neither refuses renewals nor waits before it counts as aged.
    NoQuarantine,
    /// A voter renews an epoch below the Prepare that its log holds.
    RenewsAfterPrepare,
    /// A Prepare in a voter's log does not survive its restart.
    PrepareLost,
    /// The lease counts from the answer that makes the majority.
    CountsFromAnswer,
    /// A minority's answers count.
    RenewedByOne,
    /// A Grant does not wait for the lease to age.
    AgeIgnored,
    /// One aged voter is enough for a Grant.
    AgedByOne,
    /// A voter vouches for its age without holding the Prepare.
    AgedWithoutPrepare,
    /// A voter vouches for a Prepare that it does not know to be committed.
    VouchesUncommitted,
    /// Nothing is allowed for clocks of different rates.
    NoDrift,
    /// The owner does not end its lease early, though freezing takes a while.
    NoGuard,
    /// A voter renews for an owner that counts by an older membership.
    MembershipIgnored,
    /// A membership append does not count as a renewal.
    AppendIsNoRenewal,
    /// In a joint configuration the owner counts the old voters alone.
    JointRenewedByOld,
    /// In a joint configuration the leader counts the new voters' age alone.
    JointAgedByNew,
    /// A voter's word on its age counts under a newer membership than it was given under.
    VouchesUnderOld,
    /// What is frozen is thawed by an answer to a renewal whose time is over.
    ThawsByOldRenewal,
    /// While the timings are changed the owner counts by the longer lease.
    CountsByLonger,
    /// While the timings are changed a voter ages by the shorter lease.
    AgesByShorter,
    /// A change of the timings is over without the owner's word.
    SettledUnasked,
    /// An owner's supervisor that has just started counts by what it has applied, whatever its log holds.
    LogIgnored,
    /// The owner counts by a longer lease that was written and never committed.
    CountsUncommitted,
}

impl Mutant {
    /// Every rule that can be left out.
    pub const ALL: [Self; 22] = [
        Self::NoQuarantine,
        Self::RenewsAfterPrepare,
        Self::PrepareLost,
        Self::CountsFromAnswer,
        Self::RenewedByOne,
        Self::AgeIgnored,
        Self::AgedByOne,
        Self::AgedWithoutPrepare,
        Self::VouchesUncommitted,
        Self::NoDrift,
        Self::NoGuard,
        Self::MembershipIgnored,
        Self::AppendIsNoRenewal,
        Self::JointRenewedByOld,
        Self::JointAgedByNew,
        Self::VouchesUnderOld,
        Self::ThawsByOldRenewal,
        Self::CountsByLonger,
        Self::AgesByShorter,
        Self::SettledUnasked,
        Self::LogIgnored,
        Self::CountsUncommitted,
    ];

    /// Returns the smallest world that shows it.
    pub fn shown_in(self) -> Setup {
        match self {
            Self::MembershipIgnored | Self::AppendIsNoRenewal | Self::JointRenewedByOld => Setup::CHANGE,
            Self::JointAgedByNew => Setup::JOINT,
            Self::VouchesUnderOld => Setup::LATE,
            Self::CountsByLonger | Self::SettledUnasked | Self::LogIgnored => Setup::SHORTER,
            Self::AgesByShorter => Setup::SHORTER_JOINT,
            Self::VouchesUncommitted => Setup { tails: 1, restarts: 0, ..Setup::SLOW_OWNER },
            _ => Setup::SLOW_OWNER,
        }
    }
}

/// One entry of the log that is written while the world is watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Entry {
    /// Both sets of voters.
    Joint,
    /// The new set alone.
    New,
    /// Other timings.
    Timing,
    /// The end of the old ones.
    Settle,
    /// The Prepare of the next epoch.
    Prepare,
}

impl Entry {
    fn names_voters(&self) -> bool {
        matches!(self, Self::Joint | Self::New)
    }
}

/// What a world is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Setup {
    /// What it is called.
    pub name: &'static str,
    /// The units that each host's clock goes in a tick, 1 to 3; the first is the primary's.
    pub rates: &'static [u8],
    /// The old voters, as bits.
    pub old: u8,
    /// The new voters, as bits.
    pub new: u8,
    /// Who leads the log; in both sets.
    pub leader: usize,
    /// What it writes, in this order.
    pub log: &'static [Entry],
    /// How many voters may restart.
    pub restarts: u8,
    /// How many voters may hold a Prepare of a deposed leader, never committed.
    pub tails: u8,
    /// How many renewals may be under way at once, at most two.
    pub rounds: usize,
    /// The timings to begin with, and those that are set.
    pub timings: [Timing; 2],
}

impl Setup {
    /// The worst case for safety: the owner's clock is slow and the voters' are fast.
    pub const SLOW_OWNER: Self = Self {
        name: "3 voters, slow owner",
        rates: &[1, 3, 3],
        old: 0b111,
        new: 0b111,
        leader: 1,
        log: &[Entry::Prepare],
        restarts: 1,
        tails: 1,
        rounds: 2,
        timings: [TIMING; 2],
    };
    /// Clocks of every rate.
    pub const MIXED: Self = Self { name: "3 voters, mixed clocks", rates: &[2, 1, 3], ..Self::SLOW_OWNER };
    /// Two of the three old voters are replaced by another, then the primary is to be followed.
    pub const CHANGE: Self = Self {
        name: "voters replaced, then Prepare",
        rates: &[1, 3, 3, 3],
        old: 0b0111,
        new: 0b1100,
        leader: 2,
        log: &[Entry::Joint, Entry::New, Entry::Prepare],
        restarts: 0,
        tails: 0,
        rounds: 1,
        timings: [TIMING; 2],
    };
    /// The Prepare comes while both sets count.
    pub const JOINT: Self =
        Self { name: "Prepare in a joint set", log: &[Entry::Joint, Entry::Prepare], ..Self::CHANGE };
    /// The voters are replaced while the election goes on.
    pub const LATE: Self = Self {
        name: "Prepare, then voters replaced",
        log: &[Entry::Prepare, Entry::Joint, Entry::New],
        ..Self::CHANGE
    };
    /// The lease becomes shorter, then the primary is to be followed.
    pub const SHORTER: Self = Self {
        name: "shorter timings, then Prepare",
        log: &[Entry::Timing, Entry::Settle, Entry::Prepare],
        tails: 0,
        rounds: 1,
        timings: [TIMING, SHORT],
        ..Self::SLOW_OWNER
    };
    /// The Prepare comes while the old timings hold too.
    pub const SHORTER_JOINT: Self = Self {
        name: "Prepare while timings shorten",
        log: &[Entry::Timing, Entry::Prepare],
        ..Self::SHORTER
    };
    /// The lease becomes longer, then the primary is to be followed.
    pub const LONGER: Self =
        Self { name: "longer timings, then Prepare", timings: [SHORT, TIMING], ..Self::SHORTER };
    /// The same, with the Prepare in between.
    pub const LONGER_JOINT: Self =
        Self { name: "Prepare while timings lengthen", timings: [SHORT, TIMING], ..Self::SHORTER_JOINT };
    /// The worlds in which the timings change.
    pub const TIMINGS: [Self; 4] = [Self::SHORTER, Self::SHORTER_JOINT, Self::LONGER, Self::LONGER_JOINT];
    /// Every world of `make test`.
    pub const ALL: [Self; 9] = [
        Self::SLOW_OWNER,
        Self::MIXED,
        Self::CHANGE,
        Self::JOINT,
        Self::LATE,
        Self::SHORTER,
        Self::SHORTER_JOINT,
        Self::LONGER,
        Self::LONGER_JOINT,
    ];

    pub(super) fn voters(&self) -> usize {
        self.rates.len()
    }

    /// Returns the sets that count where so many entries are in the log.
    pub(super) fn configs(&self, have: u8) -> &'static [Which] {
        let last = self.log.iter().take(usize::from(have)).rfind(|entry| entry.names_voters());
        match last {
            None => &[Which::Old],
            Some(Entry::Joint) => &[Which::Old, Which::New],
            Some(Entry::New | Entry::Prepare | Entry::Timing | Entry::Settle) => &[Which::New],
        }
    }

    pub(super) fn mask(&self, which: Which) -> u8 {
        match which {
            Which::Old => self.old,
            Which::New => self.new,
        }
    }

    pub(super) fn membership(&self, have: u8) -> LogIndex {
        let at = self.log.iter().take(usize::from(have)).rposition(Entry::names_voters);
        at.map_or(MEMBERSHIP, |at| LogIndex(FIRST + at as u64))
    }

    /// Returns how many changes of the membership so many entries hold.
    pub(super) fn changes(&self, have: u8) -> u8 {
        let entries = self.log.iter().take(usize::from(have));
        u8::try_from(entries.filter(|entry| entry.names_voters()).count()).unwrap_or(u8::MAX)
    }

    /// Returns the membership under which a voter vouched, as [`State::vouched`] has it.
    pub(super) fn after(&self, vouched: u8) -> LogIndex {
        let all = u8::try_from(self.log.len()).unwrap_or(u8::MAX);
        let have = (0..=all).find(|have| self.changes(*have) + 1 >= vouched);
        self.membership(have.unwrap_or(all))
    }

    /// Returns how many entries a log has that holds the Prepare.
    pub(super) fn prepare_at(&self) -> u8 {
        let at = self.log.iter().position(|entry| *entry == Entry::Prepare).unwrap_or(0);
        u8::try_from(at + 1).unwrap_or(u8::MAX)
    }

    /// Returns where the log changes the timings.
    pub(super) fn timing_at(&self) -> Option<u8> {
        self.log.iter().position(|entry| *entry == Entry::Timing).and_then(|at| u8::try_from(at).ok())
    }

    /// Returns the index of the last of so many entries.
    pub(super) fn index(have: u8) -> LogIndex {
        LogIndex(FIRST + u64::from(have) - 1)
    }

    /// Returns the epoch that the Prepare opens.
    pub(super) fn epoch(&self) -> Epoch {
        Epoch(FIRST + u64::from(self.prepare_at()) - 1)
    }
}

/// One of the two sets of voters.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Which {
    Old,
    New,
}

pub(super) fn majority(of: u8, set: u8) -> bool {
    (of & set).count_ones() > set.count_ones() / 2
}

/// A voter, as its host's storage and memory have it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct VoterState {
    /// Ticks since its last renewal, or what counts as one.
    pub(super) last: u8,
    /// Ticks since it started.
    pub(super) started: u8,
    /// How many entries its log has.
    pub(super) have: u8,
    /// Whether it has applied the Prepare.
    pub(super) applied: bool,
    /// Whether it holds a deposed leader's Prepare of the same index.
    pub(super) tail: bool,
}

/// A renewal on its way.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Round {
    /// Ticks since it was sent.
    pub(super) age: u8,
    /// Who granted it. Whom it reached in vain it may as well reach later.
    pub(super) granted: u8,
}

pub(super) const UNUSED: Round = Round { age: NEVER, granted: 0 };

/// The instance, as the guardian has it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) enum Instance_ {
    /// It may acknowledge.
    Runs,
    /// Frozen so many ticks ago.
    Frozen(u8),
}

/// One situation.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct State {
    pub(super) voters: [VoterState; VOTERS],
    pub(super) rounds: [Round; ROUNDS],
    /// Ticks since the renewal was sent that the guardian's page counts by, and when its answer came
    /// (for the mutant that counts by it).
    pub(super) lease: u8,
    /// Whether that lease lasts by the new timings.
    pub(super) lease_new: bool,
    /// Whether the owner has told the leader that its lease lasts by what is safe under both timings.
    pub(super) told: bool,
    pub(super) instance: Instance_,
    /// How many entries the owner's node knows of: what it counts by.
    pub(super) owner_have: u8,
    /// How many entries the leader has written.
    pub(super) written: u8,
    /// Under which membership each voter last vouched to the leader for its age: 0 for never, else how
    /// many changes of it were in its log, plus 1.
    pub(super) vouched: [u8; VOTERS],
    pub(super) granted: bool,
    pub(super) restarts: u8,
    pub(super) tails: u8,
}

/// One thing that happens.
#[derive(Clone, Copy, Debug)]
pub enum Step {
    /// Time goes on by a tick.
    Tick,
    /// The owner sends a renewal.
    Send,
    /// A renewal reaches a voter.
    Reach(usize, usize),
    /// The answers of those who granted it come in.
    Answer(usize),
    /// The leader writes the next entry.
    Write,
    /// A voter appends it.
    Append(usize),
    /// The owner's node takes note of the voters that its log names.
    Notice,
    /// A deposed leader's Prepare, never to be committed, gets into a voter's log.
    Tail(usize),
    /// It is removed again.
    Truncate(usize),
    /// A voter restarts.
    Restart(usize),
    /// The owner's supervisor restarts, and has applied nothing yet.
    Forget,
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tick => f.write_str("a tick passes"),
            Self::Send => f.write_str("the owner sends a renewal"),
            Self::Reach(round, voter) => write!(f, "renewal {round} reaches voter {voter}"),
            Self::Answer(round) => write!(f, "the answers to renewal {round} come in"),
            Self::Write => f.write_str("the leader writes the next entry"),
            Self::Append(voter) => write!(f, "voter {voter} appends an entry"),
            Self::Notice => f.write_str("the owner counts by the voters in its log"),
            Self::Tail(voter) => write!(f, "voter {voter} holds a deposed leader's Prepare"),
            Self::Truncate(voter) => write!(f, "voter {voter} removes it"),
            Self::Restart(voter) => write!(f, "voter {voter} restarts"),
            Self::Forget => f.write_str("the owner's supervisor restarts, and has applied nothing yet"),
        }
    }
}
