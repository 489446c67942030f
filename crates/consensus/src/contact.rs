//! Who was heard when: what the election and the leader's own lease are judged by.
//!
//! The leader's side counts from *sending*, the follower's from answering, so that a leader
//! whose lease is counted here has no voter that would already vote for another.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use crate::host::{Host, Moment};
use crate::ids::NodeId;
use crate::raft::Vote;

#[derive(Debug, Default)]
struct Heard {
    /// The last message of a leader that was accepted here.
    leader: Option<Moment>,
    /// A vote for a leader was given before this start: treat the start as its message.
    quarantine: Option<Moment>,
    /// The sending time of the last message of mine, under this vote, that a peer accepted.
    acks: BTreeMap<NodeId, (Vote, Moment)>,
}

/// Shared between the transport, the election and the status.
#[derive(Debug)]
pub(crate) struct Contacts {
    host: Arc<dyn Host>,
    heard: Mutex<Heard>,
    /// Sends no leader's messages: gives leadership away.
    muted: AtomicBool,
    /// By how many longest election timeouts later than others this one campaigns.
    reluctance: AtomicU32,
}

impl Contacts {
    /// Begins; `bound` says that the stored vote belongs to a leader who may still count it.
    pub(crate) fn new(host: Arc<dyn Host>, bound: bool) -> Self {
        let heard = Heard { quarantine: bound.then(|| Moment::of(host.as_ref())), ..Heard::default() };
        let (muted, reluctance) = (AtomicBool::new(false), AtomicU32::new(0));
        Self { host, heard: Mutex::new(heard), muted, reluctance }
    }

    /// Reads the host's clock.
    pub(crate) fn now(&self) -> Moment {
        Moment::of(self.host.as_ref())
    }

    /// Draws a number, where the host has any.
    pub(crate) fn random(&self) -> Option<u64> {
        self.host.random().ok()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Heard> {
        self.heard.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn leader_heard(&self) {
        let now = self.now();
        self.lock().leader = Some(now);
    }

    /// Notes that `peer` accepted what was sent under `vote` at `sent`.
    pub(crate) fn acknowledged(&self, peer: NodeId, vote: Vote, sent: Moment) {
        let mut heard = self.lock();
        let entry = heard.acks.entry(peer).or_insert((vote, sent));
        if entry.0 != vote || entry.1 < sent {
            *entry = (vote, sent);
        }
    }

    /// Returns how long ago a leader was heard since the start.
    pub(crate) fn leader_age(&self) -> Option<Duration> {
        let now = self.now();
        self.lock().leader.map(|heard| now.since(heard))
    }

    /// Returns how long ago a leader was heard, or may have been before the start.
    pub(crate) fn binding_age(&self) -> Option<Duration> {
        let now = self.now();
        let heard = self.lock();
        heard.leader.max(heard.quarantine).map(|heard| now.since(heard))
    }

    /// Returns how long ago a majority of each configuration was last known to accept `vote`,
    /// `me` counting as now where it votes. None: never.
    pub(crate) fn quorum_age(
        &self,
        me: NodeId,
        vote: &Vote,
        configs: &[BTreeSet<NodeId>],
    ) -> Option<Duration> {
        let now = self.now();
        let heard = self.lock();
        let mut worst = Duration::ZERO;
        for voters in configs {
            let mut ages: Vec<Duration> = voters
                .iter()
                .filter_map(|id| {
                    if *id == me {
                        return Some(Duration::ZERO);
                    }
                    let (acked, sent) = heard.acks.get(id)?;
                    (acked == vote).then(|| now.since(*sent))
                })
                .collect();
            ages.sort_unstable();
            worst = worst.max(*ages.get(voters.len() / 2)?);
        }
        (!configs.is_empty()).then_some(worst)
    }

    pub(crate) fn mute(&self, muted: bool) {
        self.muted.store(muted, Ordering::Relaxed);
    }

    pub(crate) fn muted(&self) -> bool {
        self.muted.load(Ordering::Relaxed)
    }

    pub(crate) fn set_reluctance(&self, reluctance: u32) {
        self.reluctance.store(reluctance, Ordering::Relaxed);
    }

    pub(crate) fn reluctance(&self) -> u32 {
        self.reluctance.load(Ordering::Relaxed)
    }
}
