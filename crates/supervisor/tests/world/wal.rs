//! Postgres in miniature: acknowledgements and streaming.

use super::*;

impl World {
    /// How much of a primary's WAL is acknowledged to clients as it stands: by whatever process of it
    /// is set to the least.
    pub(super) fn acknowledged(&self, node: usize) -> usize {
        let using = self.nodes[node].using.iter();
        using.map(|(_, kind)| self.acknowledged_under(node, kind)).max().unwrap_or(0)
    }

    pub(super) fn acknowledged_under(&self, node: usize, kind: &PolicyKind) -> usize {
        let n = &self.nodes[node];
        match kind {
            PolicyKind::Quorum { required, standbys } => {
                let mut flushed: Vec<usize> =
                    standbys.iter().map(|s| n.acks.get(s).copied().unwrap_or(0)).collect();
                flushed.sort_unstable();
                flushed.into_iter().rev().nth(*required as usize - 1).unwrap_or(0)
            }
            PolicyKind::Alone => n.wal.len(),
            PolicyKind::Async { .. } if self.now < n.lease_until => n.wal.len(),
            PolicyKind::Async { .. } => 0,
        }
    }

    pub(super) fn acknowledge(&mut self, node: usize) {
        let Postgres::Primary { epoch, gate: true, switch } = self.nodes[node].postgres else { return };
        let until = self.acknowledged(node);
        let from = switch as usize + 1;
        let new: Vec<u64> = self.nodes[node].wal.iter().take(until).skip(from).map(|r| r.id).collect();
        for id in new {
            if self.acked.contains(&(epoch, id)) {
                continue;
            }
            if let Some((other, _)) = self.acked.iter().find(|(other, _)| *other > epoch) {
                self.violated(format!("epoch {epoch} acknowledges after epoch {other} did"));
            }
            self.acked.push((epoch, id));
        }
    }

    pub(super) fn stream(&mut self, node: usize) {
        let Postgres::Standby { upstream: Some(to), .. } = self.nodes[node].postgres else { return };
        let source = to.0 as usize - 1;
        let flows =
            self.linked(node, source) && matches!(self.nodes[source].postgres, Postgres::Primary { .. });
        let theirs = self.nodes[source].wal.clone();
        let mine = &self.nodes[node].wal;
        let prefix = mine.len() <= theirs.len() && mine.iter().zip(&theirs).all(|(a, b)| a == b);
        let streaming = flows && prefix;
        if let Postgres::Standby { streaming: now, .. } = &mut self.nodes[node].postgres {
            *now = streaming;
        }
        if streaming {
            self.nodes[node].streamed = self.now;
        }
        if !streaming || self.draw(4) == 1 {
            return;
        }
        let step = if self.random.is_some() { 1 + self.draw(3) as usize } else { theirs.len() };
        let n = &mut self.nodes[node];
        let until = theirs.len().min(n.wal.len() + step);
        n.wal.extend_from_slice(&theirs[n.wal.len()..until]);
        n.timeline = n.wal.last().map_or(1, |record| record.timeline);
        let (replica, len) = (n.replica(), n.wal.len());
        self.nodes[source].acks.insert(replica, len);
        self.acknowledge(source);
    }

    pub(super) fn streams(&self, node: usize) -> BTreeMap<DataId, Stream> {
        let n = &self.nodes[node];
        let ours = |p: &Node| p.postgres == Postgres::Standby { upstream: Some(n.id), streaming: true };
        let lacks = |p: &Node| n.wal.len().saturating_sub(p.wal.len());
        let all = self.nodes.iter().filter(|p| ours(p));
        all.map(|p| (p.data, Stream { live: true, caught_up: lacks(p) < 4 })).collect()
    }
}
