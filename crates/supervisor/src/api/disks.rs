//! How much room the disks have, measured when somebody asks for it.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Semaphore;

use crate::status::figures::Room;

/// A disk that does not answer for so long is left out of the page.
const LIMIT: Duration = Duration::from_secs(1);

/// Measures disks, one asker at a time: those of a disk that hangs do not pile up.
#[derive(Debug)]
pub(super) struct Disks(Arc<Semaphore>);

impl Default for Disks {
    fn default() -> Self {
        Self(Arc::new(Semaphore::new(1)))
    }
}

impl Disks {
    /// Measures these; what cannot be measured now is left out.
    pub(super) async fn measure(&self, disks: &[(&'static str, PathBuf)]) -> Vec<Room> {
        let Ok(turn) = Arc::clone(&self.0).try_acquire_owned() else { return Vec::new() };
        let disks = disks.to_vec();
        let measured = tokio::task::spawn_blocking(move || {
            let rooms = disks.iter().filter_map(|(what, path)| room(what, path)).collect();
            // Only now may the next ask, also when this one has given up.
            drop(turn);
            rooms
        });
        tokio::time::timeout(LIMIT, measured).await.ok().and_then(Result::ok).unwrap_or_default()
    }
}

fn room(what: &'static str, path: &Path) -> Option<Room> {
    let found = rustix::fs::statvfs(path).ok()?;
    let bytes = |blocks: u64| blocks.saturating_mul(found.f_frsize);
    Some(Room { what, free: bytes(found.f_bavail), size: bytes(found.f_blocks) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn a_disk_has_room_and_a_path_that_is_not_there_none() {
        let asked = [("data", std::env::temp_dir()), ("wal", PathBuf::from("/nonexistent/pg_wal"))];
        let rooms = Disks::default().measure(&asked).await;
        let [room] = rooms.as_slice() else { panic!("{rooms:?}") };
        assert!(room.what == "data" && room.size > 0 && room.free <= room.size, "{room:?}");
    }
}
