//! What clients saw: the evidence that the checkers judge.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::clock::Moment;

/// Names one insert for ever: a retry is another one.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Key {
    /// The client.
    pub client: u32,
    /// Its count of inserts.
    pub seq: u64,
}

/// What the client was told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Success, by a server on this timeline.
    Acknowledged {
        /// The server's WAL timeline at the insert.
        timeline: u32,
    },
    /// No answer, or one that leaves it open: the row may or may not be there.
    Unknown,
}

/// One insert, from the moment before it was sent to the moment after its answer.
#[derive(Clone, Copy, Debug)]
pub struct Operation {
    /// Which.
    pub key: Key,
    /// The member that was asked.
    pub server: usize,
    /// Just before it was sent.
    pub invoked: Moment,
    /// Just after the answer came, or it was given up.
    pub finished: Moment,
    /// What came.
    pub answer: Answer,
}

impl Operation {
    /// Whether the client was told of success.
    pub fn acknowledged(&self) -> bool {
        matches!(self.answer, Answer::Acknowledged { .. })
    }
}

/// What kind of client it was.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ClientKind {
    /// Stays with one member, and gives up early.
    Member,
    /// Stays with one member and waits long for an answer.
    Patient,
    /// Stays with one member, from inside that member's node.
    Inside,
    /// Knows all members and looks for the primary, as libpq does.
    MultiHost,
}

/// All that the clients of a run saw.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Inserts acknowledged or left open; those that certainly failed are only counted.
    pub operations: Vec<Operation>,
    /// The kind of each client.
    pub kinds: BTreeMap<u32, ClientKind>,
    /// Inserts that certainly did not happen.
    pub refused: u64,
    /// Connections that broke while in use, by client.
    pub broken: BTreeMap<u32, u64>,
}

impl History {
    /// The acknowledged operations, by the time of their acknowledgement.
    pub fn acknowledged(&self) -> Vec<Operation> {
        let mut found: Vec<Operation> =
            self.operations.iter().copied().filter(Operation::acknowledged).collect();
        found.sort_by_key(|operation| operation.finished);
        found
    }

    /// The same, of some kinds of clients only.
    pub fn acknowledged_to(&self, kinds: &[ClientKind]) -> Vec<Operation> {
        let wanted = |operation: &Operation| {
            self.kinds.get(&operation.key.client).is_some_and(|kind| kinds.contains(kind))
        };
        self.acknowledged().into_iter().filter(wanted).collect()
    }
}
