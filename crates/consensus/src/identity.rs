//! Who this member is, and the counters that tell a copy or an old image from it.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::ids::{Incarnation, NodeId};

/// The version of the protocol between members; another one is refused.
pub const PROTOCOL_VERSION: u32 = 1;

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
