//! Rules that are left out, to see that the simulation notices.

/// A rule that is left out.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub enum Mutant {
    /// None: the product.
    #[default]
    None,
    /// Revoke does not promise: what the log has applied says what was.
    NoPromise,
    /// Revoke leaves the standby streaming.
    StreamsOn,
    /// A Grant without waiting for the lease.
    LeaseIgnored,
    /// The deadline counts from when the last answer came.
    LeaseFromReply,
    /// A voter that has just started renews, and counts as aged, at once.
    NoQuarantine,
    /// A voter goes on renewing an epoch although its log holds a higher Prepare.
    RenewsAfterPrepare,
    /// The guardian does not freeze.
    NoFence,
    /// The gate opens without the marker, and without looking at the lease.
    GateWithoutMarker,
    /// No effect looks again whether its epoch is still the newest.
    NoRecheck,
    /// The Raft store answers before the disk has what it wrote.
    HastyStore,
    /// The loss is not compared with what the voters heard of.
    NoLagGate,
    /// A member whose store was lost comes back under its old id.
    OldId,
    /// A promotion takes the next free timeline instead of the planned one.
    OwnTimeline,
    /// Any silence is suspicious.
    Nervous,
    /// Clocks run 15 % apart, far over the allowance.
    Drift,
    /// An answer that was of no use is never asked for again.
    AnswersStay,
    /// A clone that has not streamed to its end counts.
    NoFloor,
    /// A policy is held to be in force as soon as it is written.
    NoSettle,
    /// What was acknowledged under the policy before need not be flushed under the new one.
    NoBarrier,
    /// Nobody waits for the checkpointer before commits are held to wait.
    NoCheckpoint,
    /// A primary is promoted with empty names.
    EmptyNames,
    /// A data directory counts for its member's, wherever it came from.
    StrangerCounts,
    /// Answers count although they do not cover every policy.
    NoCover,
}

impl Mutant {
    /// All that leave something out, with how many seeds may pass before it is noticed.
    pub const ALL: [(Self, u64); 17] = [
        (Self::NoPromise, 400),
        (Self::StreamsOn, 400),
        (Self::LeaseIgnored, 200),
        (Self::LeaseFromReply, 400),
        (Self::NoQuarantine, 400),
        (Self::RenewsAfterPrepare, 400),
        (Self::NoFence, 200),
        (Self::GateWithoutMarker, 200),
        (Self::NoRecheck, 400),
        (Self::HastyStore, 400),
        (Self::NoLagGate, 400),
        (Self::OldId, 400),
        (Self::OwnTimeline, 200),
        (Self::Nervous, 200),
        (Self::Drift, 200),
        (Self::AnswersStay, 400),
        (Self::NoFloor, 400),
    ];

    /// Returns the one of that name, as Debug prints it.
    pub fn named(name: &str) -> Option<Self> {
        Self::ALL.iter().map(|(mutant, _)| *mutant).find(|mutant| format!("{mutant:?}") == name)
    }
}
