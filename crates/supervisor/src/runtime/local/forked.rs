//! WAL outside the accepted history: kept before a rewind or a clone removes it, and reported.

use std::path::PathBuf;

use rhone_consensus::ids::{Epoch, NodeId};
use rhone_pgctl::control::read_control;
use rhone_pgctl::forked::{self, Forked, ForkedRange, KeepLimits, Kept};
use rhone_pgctl::wal::WalPosition;

use super::{Local, LocalError, PROGRAM_LIMIT};
use crate::civil::WallTime;
use crate::runtime::clock::wall_time;

/// The folder's name within the working directory.
const FOLDER: &str = "forked";

/// Five forks are more than a person looks into, and a failover leaves behind a few segments at the
/// most; the reserve is what Postgres needs to come back: segments that stream in meanwhile.
const LIMITS: KeepLimits = KeepLimits { ranges: 5, bytes: 256 << 20, reserve: 128 << 20 };

impl Local {
    fn forked_dir(&self) -> PathBuf {
        self.work_dir().join(FOLDER)
    }

    /// Looks which ranges are kept; the newest is also what this member left behind when it was
    /// replaced, as far as it is known after a restart.
    pub fn recall_forked(&self) {
        let kept = forked::kept(&self.forked_dir());
        let note = kept.last().map(|(newest, path)| {
            let more = match kept.len() {
                1 => String::new(),
                count => format!(" and {} older", count.saturating_sub(1)),
            };
            format!(
                "keeps wal that left the history, {}:{}..{}{more}, in {}",
                newest.timeline,
                newest.from,
                newest.to,
                path.parent().unwrap_or(path).display()
            )
        });
        let mut facts = self.facts();
        facts.kept = note;
        if facts.left.is_none() {
            facts.left = kept.last().map(|(newest, _)| newest.end());
        }
    }

    /// Takes note of where the WAL of a former primary ended that is about to follow another.
    pub(super) fn note_left(&self) {
        let mut facts = self.facts();
        if let Some((position, _, true)) = facts.stopped {
            facts.left = Some(position);
        }
    }

    /// Copies WAL that is outside the owner's history aside, before `what` removes it from the stopped
    /// data directory. Nothing waits for it but the copy itself: what could not be kept is said, and
    /// the member comes back all the same.
    pub(super) async fn keep_forked(&self, epoch: Epoch, source: NodeId, what: &'static str) {
        // Reads the end of the WAL, if that has not been read since the instance stopped.
        let Some(end) = self.observe().await.position() else { return };
        self.note_left();
        let parted = self.state(|state| {
            let tip = state.current_grant().map(|grant| grant.timeline)?;
            state.ledger.parted(end, tip)
        });
        let Some(from) = parted.filter(|from| from.lsn < end.lsn) else { return };
        let range = ForkedRange { timeline: end.timeline, from: from.lsn, to: end.lsn };
        match self.copy_forked(epoch, source, what, range, from).await {
            Ok(kept) => {
                tracing::warn!(from = %range.from, to = %range.to, timeline = %range.timeline, bytes = range.bytes(),
                    path = %kept.path.display(), "keeps wal that left the history");
                if let Some(cut) = kept.cut {
                    tracing::error!(from = %cut, to = %range.to, timeline = %range.timeline,
                        "wal beyond the limit is not kept");
                }
            }
            Err(error) => {
                tracing::error!(from = %range.from, to = %range.to, timeline = %range.timeline, bytes = range.bytes(),
                    error = %crate::runtime::node::chain(&error), "this wal is not kept, and is about to be removed");
            }
        }
        self.recall_forked();
    }

    async fn copy_forked(
        &self,
        epoch: Epoch,
        source: NodeId,
        what: &'static str,
        range: ForkedRange,
        from: WalPosition,
    ) -> Result<Kept, LocalError> {
        let control = read_control(&self.install, self.data_dir(), &self.user, PROGRAM_LIMIT).await?;
        let source = self.member(source)?.name;
        let me = &self.shared.config.node.name;
        let story = format!(
            "WAL of {me} that is in nobody else's history.\n\n\
             {source} became primary in epoch {epoch} without it. Kept {} before the {what} from {source}.\n\
             In asynchronous mode the commits in it were acknowledged and are lost; they can be read here.",
            WallTime::from_ms(wall_time())
        );
        let (data_dir, dir, user) = (self.data_dir().to_owned(), self.forked_dir(), self.user.clone());
        self.on_files(move || {
            let forked = Forked {
                data_dir: &data_dir,
                segment: control.wal_segment_size,
                range,
                first: from.timeline,
                story: &story,
            };
            forked::keep(&dir, &forked, &user, LIMITS)
        })
        .await
    }
}
