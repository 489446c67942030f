//! The arithmetic of the lease, both halves: what a voter may grant and vouch for, and until when
//! the owner may serve (docs/safety.md 3).
//!
//! Pure: moments go in. The thread, the sockets and the lock are in `runtime/lease.rs` and
//! `runtime/voter.rs`; the model checker drives this very code.

use std::collections::{BTreeMap, BTreeSet};

use rhone_consensus::ids::{Epoch, LogIndex, NodeId};
use rhone_consensus::observer::{LogCause, LogHeld};
use rhone_consensus::settings::Timing;
use rhone_consensus::state::ClusterState;
use rhone_pgctl::wal::Lsn;

use crate::mutant::{Rule, left_out};
use crate::view::{Heard, Moment, VoterReport};

/// How many renewals are remembered for late answers.
const REMEMBERED: usize = 64;

/// Why a voter does not renew.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RenewRefusal {
    /// Its log holds the Prepare of a higher epoch.
    HigherEpoch(Epoch),
    /// Its log does not hold the Prepare of that epoch yet.
    UnknownEpoch,
    /// Its log holds a newer membership than the one the primary counts by.
    NewerMembership(LogIndex),
}

/// A voter's memory of the lease.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Voter {
    /// Known once the state is: until then the voter stays in quarantine.
    timing: Option<Timing>,
    log_prepare: Epoch,
    applied_epoch: Epoch,
    membership: LogIndex,
    log_timing: Option<(LogIndex, Timing)>,
    started: Moment,
    /// The last renewal, or what counts as one.
    last: Moment,
    heard: Option<Heard>,
}

impl Voter {
    /// Begins the voter's life, in quarantine.
    pub fn new(now: Moment) -> Self {
        Self {
            timing: None,
            log_prepare: Epoch(0),
            applied_epoch: Epoch(0),
            membership: LogIndex(0),
            log_timing: None,
            started: now,
            last: now,
            heard: None,
        }
    }

    /// Returns the highest epoch whose Prepare the log holds, committed or not.
    pub fn held(&self) -> Epoch {
        self.log_prepare.max(self.applied_epoch)
    }

    /// Returns the newest membership that the log holds.
    pub fn membership(&self) -> LogIndex {
        self.membership
    }

    /// Returns for how much longer the voter vouches for no silence, in nanoseconds: after a start it has forgotten
    /// whom it renewed, so that it is a whole lease until it vouches for an age, too. It renews all the same, which
    /// only makes it younger (decision 0003).
    fn quarantine(&self, now: Moment) -> u64 {
        let Some(timing) = self.timing else { return Timing::default().aged_ns() };
        self.started.0.saturating_add(timing.aged_ns()).saturating_sub(now.0)
    }

    /// Returns the newest entry of the log that sets the timings, and what is safe under all such.
    pub fn log_timing(&self) -> Option<(LogIndex, Timing)> {
        self.log_timing
    }

    /// Takes note of the applied state: its epoch, and the timings that voters age by
    /// ([`ClusterState::ageing`](rhone_consensus::state::ClusterState::ageing)).
    pub fn applied(&mut self, epoch: Epoch, timing: Timing) {
        self.applied_epoch = self.applied_epoch.max(epoch);
        self.timing = Some(timing);
    }

    /// Takes note of what the log holds after a change of it.
    pub fn log_changed(&mut self, now: Moment, held: LogHeld, cause: LogCause) {
        self.log_prepare = held.prepare;
        self.membership = held.membership;
        self.log_timing = held.timing;
        match cause {
            LogCause::Start if left_out(Rule::Quarantine) => {
                (self.started, self.last) = (Moment(0), Moment(0));
            }
            // Counts as a renewal of whoever owns: this voter may not have been asked before,
            // or has lost its memory of it (decision 0003).
            LogCause::Start | LogCause::MembershipAppend | LogCause::SnapshotInstall => self.last = now,
            LogCause::Append | LogCause::Truncate => {}
        }
    }

    /// Renews the primary's lease, or says why not.
    ///
    /// # Errors
    /// A higher Prepare or a newer membership in the log, or not yet the Prepare of that epoch.
    pub fn renew(
        &mut self,
        now: Moment,
        epoch: Epoch,
        lsn: Lsn,
        membership: LogIndex,
    ) -> Result<(), RenewRefusal> {
        if self.held() > epoch && !left_out(Rule::RefusesOlder) {
            return Err(RenewRefusal::HigherEpoch(self.held()));
        }
        if self.held() < epoch {
            return Err(RenewRefusal::UnknownEpoch);
        }
        if self.membership > membership {
            return Err(RenewRefusal::NewerMembership(self.membership));
        }
        self.heard = Some(furthest(self.heard, Heard { epoch, lsn }));
        self.last = now;
        Ok(())
    }

    /// Returns what this voter can say of the lease now.
    pub fn report(&self, now: Moment) -> VoterReport {
        let quarantined = self.quarantine(now) > 0;
        let silence = now.since(self.last);
        let aged = self.timing.is_some_and(|timing| silence >= timing.aged_ns());
        VoterReport {
            held: self.held(),
            silent_ms: (!quarantined).then_some(silence / 1_000_000),
            // Only for a Prepare that is known to be committed: one of a deposed leader may still be
            // removed, and another take its index, while this word is on its way (decision 0016).
            aged_for: (aged && !quarantined).then_some(self.applied_epoch),
            heard: self.heard,
            membership: self.membership,
        }
    }

    /// Returns how long until the report changes by the passing of time alone, in nanoseconds.
    pub fn next_change(&self, now: Moment) -> Option<u64> {
        let timing = self.timing?;
        let quarantine = self.quarantine(now);
        let silence = now.since(self.last);
        [u64::from(timing.suspicion_ms) * 1_000_000, timing.aged_ns()]
            .into_iter()
            .filter(|limit| *limit > silence)
            .map(|limit| limit - silence)
            .chain((quarantine > 0).then_some(quarantine))
            .min()
    }
}

/// Returns what an owner counts by that has applied the log up to `applied`, and the change of the timings that
/// it has taken over with it; none while it may have forgotten one.
///
/// A member that has just started has applied less than it had before, and may have told that it counts by
/// shorter timings since: what its log holds counts until it is applied again (decision 0036).
pub fn counted(
    applied: LogIndex,
    state: &ClusterState,
    log: Option<(LogIndex, Timing)>,
) -> (Timing, Option<LogIndex>) {
    match log {
        Some((newest, timing)) if newest > applied => (state.counting().or_shorter(timing), None),
        Some(_) | None => (state.counting(), Some(state.timing_change.version)),
    }
}

/// Returns a voter's word as far as it counts for a leader that goes by that membership.
///
/// A word on the age that was given under an older membership does not: it may be older than renewals
/// that voters of that older one gave since (decision 0016). A membership append begins a new age.
pub fn counted_by(membership: LogIndex, report: VoterReport) -> VoterReport {
    VoterReport { aged_for: report.aged_for.filter(|_| report.membership >= membership), ..report }
}

/// Keeps the furthest of two renewals.
fn furthest(known: Option<Heard>, other: Heard) -> Heard {
    match known {
        Some(known) if (known.epoch, known.lsn) > (other.epoch, other.lsn) => known,
        Some(_) | None => other,
    }
}

/// The owner's count: when each of its last renewals was sent, and who granted it.
#[derive(Clone, Debug, Default)]
pub struct Rounds {
    sent: BTreeMap<u64, (Moment, BTreeSet<NodeId>)>,
}

impl Rounds {
    /// Forgets everything: grants for another epoch or another set of voters do not add up with new ones.
    pub fn clear(&mut self) {
        self.sent.clear();
    }

    /// Takes note that a renewal is being sent.
    pub fn begin(&mut self, seq: u64, now: Moment) {
        self.sent.insert(seq, (now, BTreeSet::new()));
        while self.sent.len() > REMEMBERED {
            self.sent.pop_first();
        }
    }

    /// Takes note of a voter's grant. With a majority of every set of voters for that very renewal
    /// it returns when it was sent and until when it lets the owner serve: counted from its sending.
    pub fn granted(
        &mut self,
        seq: u64,
        by: NodeId,
        voters: &[BTreeSet<NodeId>],
        timing: Timing,
    ) -> Option<(Moment, Moment)> {
        let (sent, granted) = self.sent.get_mut(&seq)?;
        granted.insert(by);
        let majority =
            !voters.is_empty() && voters.iter().all(|set| granted.intersection(set).count() > set.len() / 2);
        majority.then(|| (*sent, Moment(sent.0.saturating_add(timing.serve_ns()))))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use rhone_consensus::settings::Settings;

    #[track_caller]
    fn check(state: &ClusterState, log: Option<(u64, Timing)>, expected: (u32, Option<u64>)) {
        let log = log.map(|(at, timing)| (LogIndex(at), timing));
        let (timing, version) = counted(LogIndex(20), state, log);
        assert_eq!((timing.lease_ms, version.map(|version| version.0)), expected);
    }

    #[test]
    fn a_voter_that_has_just_started_renews_and_vouches_for_nothing_for_a_whole_lease() {
        let timing = |lease_ms| Timing { lease_ms, ..Timing::default() };
        let at = |ms: u64| Moment(ms * 1_000_000);
        let renew = |voter: &mut Voter, ms| voter.renew(at(ms), Epoch(0), Lsn::new(1), LogIndex(0));
        let word = |voter: &Voter, ms| (voter.report(at(ms)).silent_ms, voter.report(at(ms)).aged_for);
        let mut voter = Voter::new(at(0));
        assert_eq!(renew(&mut voter, 10), Ok(()), "before it knows the timings");
        assert_eq!(word(&voter, 60_000), (None, None), "how long is a lease?");
        voter.applied(Epoch(0), timing(1500));
        assert_eq!(word(&voter, 1500), (None, None));
        assert_eq!(
            word(&voter, 1520),
            (Some(1510), None),
            "1 % more than a lease since the start, not since the renewal"
        );
        assert_eq!(word(&voter, 1530), (Some(1520), Some(Epoch(0))));
        assert_eq!(renew(&mut voter, 2000), Ok(()));
        // A lease that becomes longer lengthens what is left of it, and the renewing goes on.
        voter.applied(Epoch(0), timing(12_000));
        assert_eq!(renew(&mut voter, 3000), Ok(()));
        assert_eq!(word(&voter, 9000), (None, None), "its word waits for the longer one");
        assert_eq!(word(&voter, 13_000), (Some(10_000), None), "silent for ten seconds");
        assert_eq!(word(&voter, 15_500), (Some(12_500), Some(Epoch(0))));
        // Restarted with a higher Prepare in its log, it renews nobody of before.
        let mut later = Voter::new(at(0));
        let held = LogHeld { prepare: Epoch(7), ..LogHeld::default() };
        later.log_changed(at(0), held, LogCause::Start);
        assert_eq!(renew(&mut later, 10), Err(RenewRefusal::HigherEpoch(Epoch(7))));
    }

    #[test]
    fn an_owner_that_has_just_started_counts_by_the_least_that_its_log_sets() {
        let timing = |lease_ms| Timing { lease_ms, ..Timing::default() };
        // What was applied up to entry 20 says 1500 ms, set by entry 12.
        let mut state = ClusterState {
            settings: Settings { timing: timing(1500), ..Settings::default() },
            ..ClusterState::default()
        };
        state.timing_change.version = LogIndex(12);
        check(&state, None, (1500, Some(12)));
        check(&state, Some((12, timing(600))), (1500, Some(12))); // applied long ago
        check(&state, Some((21, timing(600))), (600, None)); // not applied yet, or not again
        check(&state, Some((21, timing(3000))), (1500, None));
        state.timing_change.before = Some(timing(900));
        check(&state, None, (900, Some(12)));
        check(&state, Some((21, timing(3000))), (900, None));
    }
}
