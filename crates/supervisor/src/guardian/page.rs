//! The page that the supervisor and the guardian share: the lease goes one way, the state the other.
//!
//! A memfd of one page, sealed so that nobody can shrink it: it is never on a disk, and an access cannot
//! fail. Each word has one writing side. The guardian trusts nothing here but a lease whose check word
//! fits: what it wrote itself it also keeps privately, and reads the private copy.
//!
//! # Why no lease is ever seen with another's numbers
//! A lease is five words: writer, deadline, sent, epoch, and a check word mixed of those four. A reader
//! copies all five and takes the lease only if the check fits. So the guarantee needs no order between
//! the stores, holds for any number of writers, and holds when a writer is killed or stopped half-way:
//! whatever is torn is refused, and the guardian goes on counting by the lease that it saw last, which
//! only ever ends sooner. Writers never wait: five stores. (Two different leases have the same check in
//! one of 2^64 cases.)
//!
//! The writer word is the claim number that the guardian gave to the supervisor at connect. A supervisor
//! that was superseded, and wakes up in the middle of a store, can thereby not end or prolong anything.

use std::fmt;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::sys::Mapping;
use crate::runtime::clock::BootTime;

/// Magic number and version of the layout; both sides refuse another one.
const LAYOUT: u64 = 0x5248_4f4e_4547_5001;

/// The guard of a supervisor that does not tell it: the default of the timings.
const GUARD: Duration = Duration::from_millis(150);

/// The words of the page. The lease has a cache line of its own.
#[derive(Clone, Copy)]
pub(super) enum Word {
    Layout = 0,
    Writer = 8,
    Deadline = 9,
    Sent = 10,
    Epoch = 11,
    Check = 12,
    Guard = 13,
    State = 16,
    FrozenAt = 17,
    Alive = 18,
    Postmaster = 19,
    Fences = 20,
    LateFenceMax = 21,
    Watchdog = 22,
    DeadMan = 23,
    Freezes = 24,
    LateFences = 25,
}

/// The lease that an instance runs under.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lease {
    /// None is needed: the instance is a standby, and runs whatever becomes of the supervisor.
    NotNeeded,
    /// The instance may be a primary until `deadline`.
    Until {
        /// When the instance is frozen, unless a later lease comes.
        deadline: BootTime,
        /// When the renewal that gave this deadline was sent to the voters.
        sent: BootTime,
        /// The epoch that the voters renewed.
        epoch: u64,
    },
}

impl Lease {
    /// A lease that has ended: what holds until a supervisor says otherwise.
    pub const EXPIRED: Self = Self::Until { deadline: BootTime::ZERO, sent: BootTime::ZERO, epoch: 0 };

    /// Returns whether this lease has ended at `now`.
    pub fn expired(self, now: BootTime) -> bool {
        match self {
            Self::NotNeeded => false,
            Self::Until { deadline, .. } => deadline <= now,
        }
    }

    /// Returns whether this lease lets an instance go on that was frozen at `frozen_at` under the
    /// lease of that epoch: only a live one that a majority renewed by a request *sent* since then,
    /// and of the same epoch (docs/safety.md 4).
    pub fn thaws(self, frozen_at: BootTime, frozen_epoch: Option<u64>, now: BootTime) -> bool {
        match self {
            Self::NotNeeded => frozen_epoch.is_none(),
            Self::Until { deadline, sent, epoch } => {
                deadline > now && sent > frozen_at && frozen_epoch == Some(epoch)
            }
        }
    }

    fn words(self) -> (u64, u64, u64) {
        match self {
            Self::NotNeeded => (u64::MAX, 0, 0),
            Self::Until { deadline, sent, epoch } => (deadline.as_nanos(), sent.as_nanos(), epoch),
        }
    }

    fn from_words(deadline: u64, sent: u64, epoch: u64) -> Self {
        if deadline == u64::MAX {
            return Self::NotNeeded;
        }
        let (deadline, sent) = (BootTime::from_nanos(deadline), BootTime::from_nanos(sent));
        Self::Until { deadline, sent, epoch }
    }
}

/// What the guardian is doing with the instance.
#[derive(Clone, Copy, Debug, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[repr(u64)]
pub enum GuardState {
    /// No instance was started yet.
    Idle = 0,
    /// The postmaster was forked and has not yet executed its program.
    Starting = 1,
    /// The instance runs.
    Running = 2,
    /// The instance was told to stop, and it is not yet sure that every process has.
    Freezing = 3,
    /// No process of the instance runs.
    Frozen = 4,
    /// The instance is being killed.
    Killing = 5,
    /// The last instance is gone, with every process of it.
    Dead = 6,
}

/// What became of a fence that holds without any process of Rhone's: the machine's watchdog, the dead-man.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[repr(u64)]
pub enum LastResort {
    /// None is configured.
    #[default]
    Off = 0,
    /// It is not needed: the instance is no primary.
    AtRest = 1,
    /// It acts if the guardian falls silent.
    Armed = 2,
    /// The system did not let it be used.
    Failed = 3,
}

impl LastResort {
    fn from_word(word: u64) -> Self {
        match word {
            1 => Self::AtRest,
            2 => Self::Armed,
            3 => Self::Failed,
            _ => Self::Off,
        }
    }
}

impl GuardState {
    fn from_word(word: u64) -> Self {
        match word {
            0 => Self::Idle,
            1 => Self::Starting,
            2 => Self::Running,
            3 => Self::Freezing,
            4 => Self::Frozen,
            5 => Self::Killing,
            _ => Self::Dead,
        }
    }

    /// Returns whether an instance, or a part of one, may be there.
    pub fn has_instance(self) -> bool {
        match self {
            Self::Idle | Self::Dead => false,
            Self::Starting | Self::Running | Self::Freezing | Self::Frozen | Self::Killing => true,
        }
    }
}

impl fmt::Display for GuardState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Starting => "starting",
            Self::Running => "running",
            Self::Freezing => "freezing",
            Self::Frozen => "frozen",
            Self::Killing => "killing",
            Self::Dead => "dead",
        })
    }
}

/// The supervisor's side of the page. Cloning it is cheap; every method is wait-free.
#[derive(Clone, Debug)]
pub struct SharedPage {
    map: Arc<Mapping>,
    writer: u64,
}

impl SharedPage {
    /// Maps the page that a guardian sent. `None`: its layout is another version's.
    pub(super) fn adopt(memfd: &OwnedFd, writer: u64) -> std::io::Result<Option<Self>> {
        let map = Mapping::shared(memfd)?;
        let known = map.word(Word::Layout as usize).load(Ordering::Acquire) == LAYOUT;
        Ok(known.then(|| Self { map: Arc::new(map), writer }))
    }

    /// Lets the instance be a primary until `deadline`, by a renewal of `epoch` sent at `sent`.
    ///
    /// For the lease thread: five stores, no lock, no system call. The guardian sees it within 200 ms
    /// where the deadline is moved forward, at the old deadline at the latest; after the first lease of
    /// an instance, and wherever a deadline is moved backward, call [`super::Guardian::kick`] and compare
    /// its answer. A deadline of [`BootTime::MAX`] would mean that none is needed, and is taken as one
    /// nanosecond less.
    pub fn set_lease(&self, epoch: u64, sent: BootTime, deadline: BootTime) {
        let deadline = deadline.min(BootTime::from_nanos(u64::MAX - 1));
        self.write(Lease::Until { deadline, sent, epoch });
    }

    /// Says that the instance is a standby and needs no lease.
    ///
    /// Has no effect on an instance that ever had one: see [`super::Guardian::release`]. Must not run at
    /// the same time as [`SharedPage::set_lease`] in another thread: the guardian would refuse both.
    pub fn clear_lease(&self) {
        self.write(Lease::NotNeeded);
    }

    /// Says how much later than the lease's end a freeze may be: what comes later is a late fence. Only for
    /// counting; it changes nothing that the guardian does.
    pub fn set_guard(&self, guard: Duration) {
        self.store(Word::Guard, u64::try_from(guard.as_nanos()).unwrap_or(u64::MAX));
    }

    fn write(&self, lease: Lease) {
        let (deadline, sent, epoch) = lease.words();
        self.store(Word::Writer, self.writer);
        self.store(Word::Deadline, deadline);
        self.store(Word::Sent, sent);
        self.store(Word::Epoch, epoch);
        self.store(Word::Check, check(self.writer, deadline, sent, epoch));
    }

    fn store(&self, word: Word, value: u64) {
        // Release, in program order, only so that a reader seldom sees a torn lease.
        self.map.word(word as usize).store(value, Ordering::Release);
    }

    fn load(&self, word: Word) -> u64 {
        self.map.word(word as usize).load(Ordering::Acquire)
    }

    /// Returns what the guardian is doing.
    pub fn state(&self) -> GuardState {
        GuardState::from_word(self.load(Word::State))
    }

    /// Returns when the instance was frozen, if it is.
    pub fn frozen_at(&self) -> Option<BootTime> {
        Some(self.load(Word::FrozenAt)).filter(|&at| at != 0).map(BootTime::from_nanos)
    }

    /// Returns how long ago the guardian last ran.
    ///
    /// At most about 200 ms while a lease is set, and 500 ms while an instance runs that needs none. Without a live guardian nobody may
    /// be primary: look before each renewal. [`Duration::MAX`] before its first stamp.
    pub fn alive_age(&self, now: BootTime) -> Duration {
        match self.load(Word::Alive) {
            0 => Duration::MAX,
            at => now.saturating_since(BootTime::from_nanos(at)),
        }
    }

    /// Returns the process number of the postmaster, if there is one.
    pub fn postmaster(&self) -> Option<u32> {
        u32::try_from(self.load(Word::Postmaster)).ok().filter(|&pid| pid != 0)
    }

    /// Returns how often this guardian froze an instance because a lease ended.
    pub fn fences(&self) -> u64 {
        self.load(Word::Fences)
    }

    /// Returns how often this guardian froze an instance, for whatever reason.
    pub fn freezes(&self) -> u64 {
        self.load(Word::Freezes)
    }

    /// Returns how often it froze one later than the guard of [`SharedPage::set_guard`] allows.
    pub fn late_fences(&self) -> u64 {
        self.load(Word::LateFences)
    }

    /// Returns what became of the machine's watchdog.
    pub fn watchdog(&self) -> LastResort {
        LastResort::from_word(self.load(Word::Watchdog))
    }

    /// Returns what became of the dead-man.
    pub fn dead_man(&self) -> LastResort {
        LastResort::from_word(self.load(Word::DeadMan))
    }

    /// Returns the longest time from the end of a lease until the instance was known to be frozen.
    pub fn late_fence_max(&self) -> Duration {
        Duration::from_nanos(self.load(Word::LateFenceMax))
    }
}

/// The guardian's side of the page.
#[derive(Debug)]
pub(super) struct GuardPage {
    map: Mapping,
}

impl GuardPage {
    pub(super) fn create(memfd: &OwnedFd) -> std::io::Result<Self> {
        let page = Self { map: Mapping::shared(memfd)? };
        page.map.word(Word::Layout as usize).store(LAYOUT, Ordering::Release);
        Ok(page)
    }

    /// Keeps the page in memory.
    pub(super) fn lock(&self) -> std::io::Result<()> {
        self.map.lock()
    }

    pub(super) fn set(&self, word: Word, value: u64) {
        self.map.word(word as usize).store(value, Ordering::Release);
    }

    /// Returns the lease in the page if it is whole and `writer`'s. Tries again a few times while a
    /// writer is in the middle of it; allocates nothing and never waits.
    pub(super) fn lease(&self, writer: u64) -> Option<Lease> {
        for _ in 0..64 {
            let [by, deadline, sent, epoch, sum] =
                [Word::Writer, Word::Deadline, Word::Sent, Word::Epoch, Word::Check].map(|w| self.get(w));
            if sum == check(by, deadline, sent, epoch) {
                return (by == writer).then(|| Lease::from_words(deadline, sent, epoch));
            }
            std::hint::spin_loop();
        }
        None
    }

    /// Returns by how much a freeze may be late. What no supervisor has said is the shortest that is usual.
    pub(super) fn guard(&self) -> Duration {
        match self.get(Word::Guard) {
            0 => GUARD,
            nanos => Duration::from_nanos(nanos),
        }
    }

    fn get(&self, word: Word) -> u64 {
        self.map.word(word as usize).load(Ordering::Acquire)
    }
}

/// Mixes the words of a lease into one. Never fits a page of zeroes.
fn check(writer: u64, deadline: u64, sent: u64, epoch: u64) -> u64 {
    [writer, deadline, sent, epoch].into_iter().fold(LAYOUT, |sum, word| mix(sum ^ word))
}

/// The finisher of `SplitMix64`: a permutation in which each bit depends on every bit.
const fn mix(word: u64) -> u64 {
    let word = word.wrapping_add(0x9e37_79b9_7f4a_7c15);
    let word = (word ^ (word >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let word = (word ^ (word >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    word ^ (word >> 31)
}

/// What the page is made of; kept so that a mapping of it cannot be anything else.
pub(super) const WORDS: usize = 512;
const _: () = assert!(WORDS * size_of::<AtomicU64>() == 4096);

#[cfg(test)]
mod tests {
    use super::super::sys;
    use super::*;

    fn pair() -> (GuardPage, SharedPage) {
        let memfd = sys::create_page().expect("create a memfd");
        let guard = GuardPage::create(&memfd).expect("map it");
        let shared = SharedPage::adopt(&memfd, 7).expect("map it").expect("the same layout");
        (guard, shared)
    }

    fn until(deadline: u64, sent: u64, epoch: u64) -> Lease {
        let (deadline, sent) = (BootTime::from_nanos(deadline), BootTime::from_nanos(sent));
        Lease::Until { deadline, sent, epoch }
    }

    #[test]
    fn a_lease_crosses_whole_or_not_at_all() {
        let (guard, shared) = pair();
        assert_eq!(guard.lease(7), None, "an empty page is no lease");
        shared.set_lease(3, BootTime::from_nanos(10), BootTime::from_nanos(20));
        assert_eq!(guard.lease(7), Some(until(20, 10, 3)));
        shared.store(Word::Deadline, 30);
        assert_eq!(guard.lease(7), None, "torn");
        shared.clear_lease();
        assert_eq!(guard.lease(7), Some(Lease::NotNeeded));
    }

    #[test]
    fn a_superseded_writer_is_not_heard() {
        let (guard, shared) = pair();
        shared.clear_lease();
        assert_eq!(guard.lease(8), None);
    }

    #[test]
    fn writers_and_a_reader_at_once_never_mix_two_leases() {
        let (guard, shared) = pair();
        let stop = Arc::new(AtomicU64::new(0));
        let writers: Vec<_> = (0..2_u64)
            .map(|offset| {
                let (shared, stop) = (shared.clone(), Arc::clone(&stop));
                std::thread::spawn(move || {
                    let mut n = offset;
                    while stop.load(Ordering::Relaxed) == 0 {
                        shared.set_lease(n, BootTime::from_nanos(n * 2), BootTime::from_nanos(n * 3));
                        n += 2;
                    }
                })
            })
            .collect();
        let mut seen = 0;
        while seen < 20_000 {
            if let Some(Lease::Until { deadline, sent, epoch }) = guard.lease(7) {
                assert_eq!((sent.as_nanos(), deadline.as_nanos()), (epoch * 2, epoch * 3));
                seen += 1;
            }
        }
        stop.store(1, Ordering::Relaxed);
        for writer in writers {
            writer.join().expect("a writer");
        }
    }
}
