//! Who else than the primary this member receives from: tags, and what the others report.

use rhone_consensus::ids::NodeId;
use rhone_consensus::state::ClusterState;

use super::NodeLoop;
use crate::decide::Effect;
use crate::view::{Instance, Sources};

/// A standby that was not heard from for longer is not received from.
const HEARD_MS: u64 = 3000;

impl NodeLoop {
    /// Looks for the standbys that this member is tagged to receive from, and that can give: they
    /// stream from the owner of the newest epoch itself, so that no two wait for each other.
    pub(super) fn sources(&self, state: &ClusterState) -> Sources {
        let me = self.shared.me();
        let Some(owner) = state.current_grant().map(|grant| grant.owner) else { return Sources::default() };
        let now = self.shared.now();
        let table = self.shared.table.borrow();
        let streams = |node: NodeId| {
            node != me
                && table.get(&node).is_some_and(|received| {
                    now.millis_since(received.at) < HEARD_MS
                        && matches!(&received.report.instance,
                            Instance::Standby { streaming: true, upstream, .. } if *upstream == Some(owner))
                })
        };
        // While the Raft leader changes nobody's report is fresh: a stream that flows, from where it was
        // right to follow by the last word heard, is left alone.
        let flows = |node: NodeId| {
            matches!(&self.instance, Instance::Standby { streaming: true, upstream, .. } if *upstream == Some(node))
                && table.get(&node).is_some_and(|received| {
                    now.millis_since(received.at) >= HEARD_MS
                        && matches!(&received.report.instance,
                            Instance::Standby { upstream, .. } if *upstream == Some(owner))
                })
        };
        let wanted = self.shared.config.node.tags.replicate_from.as_ref();
        let upstream = wanted.and_then(|name| state.member_named(name)).map(|member| member.node);
        let tagged =
            state.data_members().filter(|member| member.tags.clone_from && member.tags.delay_ms == 0);
        // One that could not be cloned from is passed over once: the primary is tried in between.
        let failed = |node: NodeId| self.failures.was(Effect::Clone(node));
        Sources {
            upstream: upstream.filter(|node| streams(*node) || flows(*node)),
            clone: tagged.map(|member| member.node).find(|node| streams(*node) && !failed(*node)),
        }
    }
}
