//! What the scenarios have in common: excuses for loss, and the verdict at the end.

use std::fmt;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, bail};

use crate::checker::{self, Gap, Loss, TwoPrimaries};
use crate::clock::Moment;
use crate::cluster::Cluster;
use crate::history::{ClientKind, History, Operation};
use crate::workload::Workload;

/// Longest time without writes that a scenario lets pass. The figures that matter are the
/// benchmark's; here a loaded machine must not fail a run that is right.
pub const GAP_LIMIT: Duration = Duration::from_secs(15);

/// A Postgres without progress, and a disk without, are given ten seconds before they count as hung (docs/safety.md 9).
pub const HUNG: Duration = Duration::from_secs(10);

/// The default lease (docs/safety.md 3) and as much again for a loaded machine's late timers.
pub const LEASE: Duration = Duration::from_millis(3000);

/// Acknowledged on the old primary and not yet streamed: a standby is rarely further behind.
pub const TAIL: Duration = Duration::from_millis(1000);

/// A fault that may cost rows in asynchronous mode, and which.
#[derive(Clone, Copy, Debug)]
pub struct Excuse {
    /// When the fault began.
    pub at: Moment,
    /// For so long after it the old primary may go on acknowledging.
    pub lease: Duration,
    /// Whether a second primary within that time is a stated limit.
    pub unfenced: bool,
}

impl Excuse {
    /// A node that lost its power: nothing is acknowledged after it.
    pub fn power_loss(at: Moment) -> Self {
        Self { at, lease: Duration::from_millis(500), unfenced: false }
    }

    /// Whether it covers the loss of what was sent and acknowledged at these moments.
    pub fn covers(&self, invoked: Moment, finished: Moment) -> bool {
        finished >= self.at.before(TAIL) && invoked <= self.at.after(self.lease)
    }

    /// Whether a proof of two primaries is the stated limit: the old one was asked while nobody fenced it.
    pub fn limits(&self, proof: &TwoPrimaries) -> bool {
        match proof {
            TwoPrimaries::OldStillServed { old, .. } => {
                self.unfenced && self.covers(old.invoked, old.finished)
            }
            TwoPrimaries::SharedTimeline { .. } => false,
        }
    }

    /// A primary that was cut off or stopped: it serves until its lease ends.
    pub fn lease(at: Moment) -> Self {
        Self { at, lease: LEASE, unfenced: false }
    }
}

/// The end of a scenario.
#[derive(Debug)]
pub struct Verdict {
    /// Rows acknowledged, lost, phantom.
    pub loss: Loss,
    /// Lost rows that no excuse covers.
    pub beyond: Vec<Operation>,
    /// Proofs of two primaries.
    pub two_primaries: Vec<TwoPrimaries>,
    /// Proofs of two primaries that are a stated limit of asynchronous mode.
    pub limited: Vec<TwoPrimaries>,
    /// Members with other rows than the primary.
    pub differing: Vec<String>,
}

impl Verdict {
    /// Judges a run whose clients have stopped: waits until the cluster is whole, and reads.
    pub fn of(cluster: &Cluster, history: &History, excuses: &[Excuse]) -> Result<Self> {
        Self::without(cluster, history, excuses, &[])
    }

    /// The same, when some members are away for good.
    pub fn without(
        cluster: &Cluster,
        history: &History,
        excuses: &[Excuse],
        absent: &[usize],
    ) -> Result<Self> {
        let primary = cluster.wait_whole_without(absent)?;
        let rows = cluster.rows(absent)?;
        let present = rows.get(&primary).context("the primary's rows")?;
        let loss = checker::loss(history, present);
        let beyond = excuses.iter().fold(loss.lost.clone(), |left, excuse| {
            let covered = Loss { lost: left, ..Loss::default() };
            covered.beyond(&[excuse.at], TAIL, excuse.lease)
        });
        let (limited, two_primaries) = checker::two_primaries(history)
            .into_iter()
            .partition(|proof| excuses.iter().any(|excuse| excuse.limits(proof)));
        Ok(Self { loss, beyond, two_primaries, limited, differing: checker::differing(&rows) })
    }

    /// Whether nothing was violated.
    pub fn passed(&self) -> bool {
        self.beyond.is_empty()
            && self.loss.phantom.is_empty()
            && self.two_primaries.is_empty()
            && self.differing.is_empty()
    }

    /// Fails unless nothing was violated.
    pub fn check(&self, cluster: &Cluster) -> Result<()> {
        report(&format!("{self}"));
        if self.passed() {
            return Ok(());
        }
        bail!("{self}\n{}", cluster.dump())
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}; {} beyond the bound", self.loss, self.beyond.len())?;
        if let (Some(first), Some(last)) = (self.beyond.first(), self.beyond.last()) {
            write!(
                f,
                " (first {:?} on member {}, last {:?} {:.3} s later)",
                first.key,
                first.server + 1,
                last.key,
                last.finished.since(first.finished).as_secs_f64()
            )?;
        }
        write!(f, "; {} proofs of two primaries", self.two_primaries.len())?;
        if !self.limited.is_empty() {
            write!(f, " and {} within the stated limit", self.limited.len())?;
        }
        for proof in self.two_primaries.iter().take(3) {
            write!(f, "; {proof}")?;
        }
        for difference in &self.differing {
            write!(f, "; {difference}")?;
        }
        Ok(())
    }
}

/// Says something a person wants to see in a test's output.
#[expect(clippy::print_stderr, reason = "a scenario reports its figures to whoever runs it")]
pub fn report(text: &str) {
    eprintln!("  {text}");
}

/// Lets time pass during which something must *not* happen; for what must happen, wait for it.
pub fn hold(time: Duration) {
    thread::sleep(time);
}

/// The longest write gap after `from` that the members' clients saw.
pub fn member_gap(history: &History, from: Moment) -> Result<Gap> {
    let kinds = [ClientKind::Member, ClientKind::Patient];
    checker::write_gap(&history.acknowledged_to(&kinds), from, Moment::now())
        .context("no write was ever acknowledged")
}

/// Fails when writes were away for longer than `limit` after `from`.
pub fn check_gap(workload: &Workload, from: Moment, limit: Duration, what: &str) -> Result<Duration> {
    let gap = member_gap(&workload.so_far(), from)?;
    report(&format!("{what}: {:.3} s without writes", gap.length.as_secs_f64()));
    if gap.length > limit {
        bail!("{what}: {:?} without writes, more than {limit:?}: {gap:?}", gap.length);
    }
    Ok(gap.length)
}
