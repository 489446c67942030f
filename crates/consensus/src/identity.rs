//! Who this member is, and the counters that tell a copy or an old image from it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Incarnation, NodeId};

/// The versions of the protocol between members that a build speaks, both included. While binaries are
/// replaced one after the other, two adjacent ones run side by side (decision 0070).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Protocol {
    /// The oldest.
    pub oldest: u32,
    /// The newest.
    pub newest: u32,
}

/// What this build speaks. Raise `newest` with a change that an older build would take for something else, and
/// `oldest` a release later, once nobody runs what came before.
pub const PROTOCOL: Protocol = Protocol { oldest: 1, newest: 1 };

impl Protocol {
    /// Returns what a caller speaks by its own word. One that says only one number speaks only that.
    pub fn of(from: &crate::proto::Identity) -> Self {
        let newest = from.protocol_version;
        let oldest = if from.protocol_oldest == 0 { newest } else { from.protocol_oldest.min(newest) };
        Self { oldest, newest }
    }

    /// Returns the newest version that both speak.
    pub fn common(self, other: Self) -> Option<u32> {
        let newest = self.newest.min(other.newest);
        (newest >= self.oldest.max(other.oldest)).then_some(newest)
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.oldest == self.newest {
            write!(f, "{}", self.newest)
        } else {
            write!(f, "{} to {}", self.oldest, self.newest)
        }
    }
}

/// Raised each time a cluster is recovered by force; members of another one are strangers.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Generation(pub u64);

impl Generation {
    /// The bits that tell apart what two members begin from the same generation: neither knows of the other.
    const WHO: u32 = 16;

    /// Returns the generation that `node` begins after this one.
    #[must_use]
    pub fn next(self, node: NodeId) -> Self {
        let who = node.0 & ((1 << Self::WHO) - 1);
        Self((((self.0 >> Self::WHO) + 1) << Self::WHO) | who)
    }
}

impl fmt::Display for Generation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (count, who) = (self.0 >> Self::WHO, self.0 & ((1 << Self::WHO) - 1));
        if count == 0 { write!(f, "{}", self.0) } else { write!(f, "{count}-{who:04x}") }
    }
}

/// Counts the starts of one store.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Session(pub u64);

impl fmt::Display for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Random for each start of a process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct Run(pub u64);

/// Who this member is, in each call that it makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// The cluster's generation.
    pub generation: Generation,
    /// This member's Raft node id.
    pub node: NodeId,
    /// Its store's incarnation.
    pub incarnation: Incarnation,
    /// Its session: raised at each start.
    pub session: Session,
}
