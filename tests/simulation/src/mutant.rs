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
    /// All that leave something out.
    pub const ALL: [Self; 23] = [
        Self::NoPromise,
        Self::StreamsOn,
        Self::LeaseIgnored,
        Self::LeaseFromReply,
        Self::NoQuarantine,
        Self::RenewsAfterPrepare,
        Self::NoFence,
        Self::GateWithoutMarker,
        Self::NoRecheck,
        Self::HastyStore,
        Self::NoLagGate,
        Self::OldId,
        Self::OwnTimeline,
        Self::Nervous,
        Self::Drift,
        Self::AnswersStay,
        Self::NoFloor,
        Self::NoSettle,
        Self::NoBarrier,
        Self::NoCheckpoint,
        Self::EmptyNames,
        Self::StrangerCounts,
        Self::NoCover,
    ];

    /// Returns the one of that name, as Debug prints it.
    pub fn named(name: &str) -> Option<Self> {
        let all = Self::ALL.iter().copied().chain([Self::None]);
        all.into_iter().find(|mutant| format!("{mutant:?}") == name)
    }
}
