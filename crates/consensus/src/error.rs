//! What can go wrong, one variant for each thing a caller can do about it.

use std::io;
use std::path::{Path, PathBuf};

use crate::ids::NodeId;

/// Why a consensus operation failed.
#[derive(Debug, thiserror::Error)]
pub enum ConsensusError {
    /// Ask the leader, if one is known.
    #[error("this member does not lead{}", leader.map(|id| format!("; {id} does")).unwrap_or_default())]
    NotLeader {
        /// Who leads, as far as is known here.
        leader: Option<NodeId>,
    },
    /// Wait: no majority answers. Nothing was proposed.
    #[error("no majority of the voters answers")]
    NoQuorum,
    /// Look at the state: it may or may not come to be applied.
    #[error("no answer within the deadline; it may or may not be applied")]
    Unknown,
    /// Propose something smaller.
    #[error("the command takes {bytes} bytes; at most {limit} are possible")]
    TooLarge {
        /// Its encoded size.
        bytes: usize,
        /// The limit.
        limit: usize,
    },
    /// Try again when the change of members under way is done.
    #[error("a change of members is still under way")]
    MembersChanging,
    /// Ask for something else: nothing was changed.
    #[error("refused: {reason}")]
    Refused {
        /// Why.
        reason: String,
    },
    /// End the process: Raft has stopped and will not come back in this one.
    #[error("raft has stopped: {reason}")]
    Fatal {
        /// What stopped it.
        reason: String,
    },
    /// Move the store aside; the member then rejoins as a new one.
    #[error(
        "the raft store in {} is damaged: {reason}; it is not used, and was not repaired\n\
         hint: `mv {} {}.damaged` and start again: this member then rejoins as a new one",
        store.display(), store.display(), store.display()
    )]
    StoreDamaged {
        /// The directory.
        store: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// Look at the disk, and try again: nothing says that the store is damaged.
    #[error(
        "the raft store in {} cannot be opened now: {reason}; it is kept as it is\n\
         hint: make room, or look at the disk; if the disk is well and this goes on, \
         `mv {} {}.damaged` and start again: this member then rejoins as a new one",
        store.display(), store.display(), store.display()
    )]
    StoreUnavailable {
        /// The directory.
        store: PathBuf,
        /// What the disk said.
        reason: String,
    },
    /// Rejoin as a new member (see [`HardStateFile::renew`](crate::store::hard::HardStateFile::renew)).
    #[error(
        "{} is missing, but this member has voted: its raft store is lost\n\
         hint: put the directory back, or let this member rejoin as a new one",
        store.display()
    )]
    StoreLost {
        /// Where it should be.
        store: PathBuf,
    },
    /// Stop the other process.
    #[error("{} is in use by another process", path.display())]
    InUse {
        /// The locked file.
        path: PathBuf,
    },
    /// The small file beside the store is unreadable: a person must look.
    #[error("the hard state file {} is damaged: {reason}", path.display())]
    HardStateDamaged {
        /// The file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// The disk refused; treat as fatal, and do not try again in this process.
    #[error("cannot {operation} {}", path.display())]
    Io {
        /// A verb.
        operation: &'static str,
        /// On what.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
}

impl ConsensusError {
    pub(crate) fn io(operation: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        Self::Io { operation, path: path.into(), source }
    }

    pub(crate) fn torn(store: &Path, error: &io::Error) -> Self {
        Self::StoreDamaged { store: store.to_owned(), reason: format!("its snapshot: {error}") }
    }

    pub(crate) fn refused(reason: impl Into<String>) -> Self {
        Self::Refused { reason: reason.into() }
    }
}
