//! Looks at the local Postgres; changes nothing.

use std::time::Duration;

use rhone_consensus::ids::Epoch;
use rhone_pgctl::control::{self, DbState};
use rhone_pgctl::datadir::{self, DataDir};
use rhone_pgctl::error::PgError;
use rhone_pgctl::probe::{Probe, RoleFacts, StandbyFacts, probe};
use rhone_pgctl::replication::identify_system;
use rhone_pgctl::wal::{Timeline, WalPosition};

use super::stall::{HUNG_LOOKS, hung_after};
use super::{Local, PROGRAM_LIMIT, Seen};
use crate::guardian::GuardState;
use crate::runtime::clock::BootTime;
use crate::view::Instance;

/// How long one probe may take.
const PROBE_LIMIT: Duration = Duration::from_secs(2);

impl Local {
    /// Looks at the instance.
    pub async fn observe(&self) -> Instance {
        let identity = self.look_at_identity();
        let epoch = {
            let facts = self.facts();
            facts.primary_epoch.max(facts.lease_epoch)
        };
        let instance = match self.guardian.page().state() {
            GuardState::Frozen | GuardState::Freezing => Instance::Frozen { epoch },
            GuardState::Starting | GuardState::Running | GuardState::Killing => self.running().await,
            GuardState::Idle | GuardState::Dead => match identity {
                Ok(seen) => self.stopped(seen).await,
                Err(error) => Instance::Unusable(crate::runtime::node::chain(&error)),
            },
        };
        let crash_recovery = instance == Instance::Starting
            && control::state_now(self.data_dir()) == Some(DbState::InCrashRecovery);
        self.facts().crash_recovery = crash_recovery;
        instance
    }

    async fn running(&self) -> Instance {
        // Until it has answered once its own file is asked: each refused connection would cost the
        // recovery a fork and the log a line.
        if !self.facts().ready
            && datadir::running_postmaster(self.data_dir()).ok().flatten().is_some_and(|file| !file.accepts())
        {
            return Instance::Starting;
        }
        let answer = {
            let mut connection = self.connection.lock().await;
            probe(&mut connection, PROBE_LIMIT).await
        };
        let now = self.shared.clock.now();
        self.facts().stall.works(self.disk_work.oldest(), now);
        match answer {
            Ok(probe) => self.answered(probe, now).await,
            Err(error) => {
                tracing::debug!(%error, "the probe got no answer");
                self.unanswered(now)
            }
        }
    }

    fn unanswered(&self, now: BootTime) -> Instance {
        let limit = hung_after(self.shared.timing());
        if self.facts().stopping {
            self.test_disk(now);
        }
        // The guardian may have ended it meanwhile: then the next look sees it.
        let mut facts = self.facts();
        if !facts.ready {
            return Instance::Starting;
        }
        // Counted from the first probe that got no answer: a host that slept is not hung.
        let (count, since) = facts.unanswered;
        facts.unanswered = (count.saturating_add(1), if count == 0 { now } else { since });
        // One that shuts down answers nobody, however long its checkpoint takes: only its disk may hang.
        let silent = !facts.stopping && count >= HUNG_LOOKS && now.saturating_since(since) > limit;
        if silent || (facts.primary_epoch > Epoch(0) && facts.stall.is_hung(limit)) {
            return Instance::Hung { epoch: facts.primary_epoch };
        }
        match &facts.probe {
            Some(Probe { role: RoleFacts::Primary(primary), .. }) => Instance::Primary {
                epoch: facts.primary_epoch,
                position: primary.flushed,
                gate_open: facts.gate_open,
            },
            Some(_) | None => Instance::Starting,
        }
    }

    /// Finds out whether the data directory's disk takes writes, off this thread; the answer is that it ends. To be
    /// asked only of an instance that is being stopped: an idle one's disk is left alone.
    fn test_disk(&self, now: BootTime) {
        if self.disk_work.oldest().is_some() {
            return;
        }
        let working = self.disk_work.begin(now);
        let data_dir = self.data_dir().to_owned();
        drop(tokio::task::spawn_blocking(move || {
            // An error is an answer, too.
            drop(rhone_pgctl::file::try_writing(&data_dir));
            drop(working);
        }));
    }

    async fn answered(&self, probe: Probe, now: BootTime) -> Instance {
        let pending = self.pending_of(&probe);
        {
            let mut facts = self.facts();
            if !facts.ready {
                facts.streamed = now;
                facts.streams.forget();
            }
            facts.ready = true;
            facts.unanswered = (0, now);
            facts.system_id = Some(probe.system_id);
            facts.start_failed = None;
            facts.starts_failed = 0;
            facts.start_failure = None;
            facts.unfit = false;
            facts.stopped = None;
            facts.unreadable = None;
            facts.probe = Some(probe.clone());
            facts.pending = pending;
        }
        self.note_streams(&probe, now);
        match &probe.role {
            RoleFacts::Primary(primary) => {
                let limit = hung_after(self.shared.timing());
                let mut facts = self.facts();
                facts.stall.flushes(primary.flushing.then_some(primary.flushed.lsn), now);
                if facts.stall.is_hung(limit) {
                    return Instance::Hung { epoch: facts.primary_epoch };
                }
                facts.highest_timeline = facts.highest_timeline.max(primary.flushed.timeline);
                Instance::Primary {
                    epoch: facts.primary_epoch,
                    position: primary.flushed,
                    gate_open: facts.gate_open,
                }
            }
            RoleFacts::Standby(standby) => self.standby(standby, now).await,
        }
    }

    async fn standby(&self, standby: &StandbyFacts, now: BootTime) -> Instance {
        let streaming = standby.receiver.as_ref().is_some_and(|receiver| receiver.status == "streaming");
        let known = self.standby_position(standby, streaming).await;
        let mut facts = self.facts();
        if streaming {
            facts.streamed = now;
        }
        let Some(position) = known else { return Instance::Starting };
        facts.highest_timeline = facts.highest_timeline.max(position.timeline);
        let idle = now.saturating_since(facts.streamed);
        Instance::Standby {
            position,
            upstream: facts.upstream,
            streaming,
            idle_ms: u64::try_from(idle.as_millis()).unwrap_or(u64::MAX),
            wal_gone: !streaming && idle > Duration::from_secs(5) && self.log_says_wal_gone(),
        }
    }

    /// Returns the end of a standby's WAL. While it streams the walreceiver's own figure is right;
    /// else only `IDENTIFY_SYSTEM` is (`pg_last_wal_receive_lsn()` may be too low).
    async fn standby_position(&self, standby: &StandbyFacts, streaming: bool) -> Option<WalPosition> {
        if streaming && let Some(receiver) = &standby.receiver {
            let lsn = receiver.flushed.max(standby.replayed)?;
            return Some(WalPosition::new(receiver.timeline, lsn));
        }
        match identify_system(&(&self.target()).into(), PROBE_LIMIT).await {
            Ok(identity) => Some(identity.position),
            Err(error) => {
                tracing::debug!(%error, "no position");
                None
            }
        }
    }

    /// Returns whether the last lines of Postgres's log say that the upstream no longer has the WAL.
    fn log_says_wal_gone(&self) -> bool {
        let path = self.work_dir().join(super::LOG_FILE);
        let tail = rhone_pgctl::file::tail(&path, 4096).unwrap_or_default();
        tail.contains("has already been removed")
    }

    async fn stopped(&self, seen: Seen) -> Instance {
        let not_adopted = self.not_adopted(seen);
        if let Some((position, clean, primary)) = self.facts().stopped.filter(|_| not_adopted.is_none()) {
            return Instance::Stopped { position: Some(position), clean, primary };
        }
        if let Some(pid) = datadir::processes_in(self.data_dir()).first() {
            let what = if self.found_running().await.is_none() {
                "stop it first".to_owned()
            } else if let Some(why) = self.lacks_configuration() {
                why
            } else {
                "it is stopped, and started by this rhone, once that is due".to_owned()
            };
            return Instance::Unusable(format!(
                "process {pid}, which this rhone did not start, runs in {}: {what}",
                self.data_dir().display()
            ));
        }
        self.shared.takeover.send_if_modified(|found| found.take().is_some());
        if let Some(why) = not_adopted {
            return Instance::Unusable(why);
        }
        match datadir::inspect(self.data_dir(), &self.install, &self.user, PROGRAM_LIMIT).await {
            Ok(DataDir::Missing | DataDir::Empty) => {
                self.facts().system_id = None;
                Instance::Absent
            }
            Ok(DataDir::NotPostgres(reason)) => Instance::Unusable(reason),
            Ok(DataDir::Present(found)) => self.read_stopped(&found).await,
            Err(error) => Instance::Unusable(with_hint(&error)),
        }
    }

    async fn read_stopped(&self, found: &datadir::DataDirFacts) -> Instance {
        let control = &found.control;
        let expected = self.shared.hard.get().system_id;
        if let Some(expected) = expected.filter(|expected| *expected != control.system_id) {
            let error = PgError::ForeignDataDir {
                data_dir: self.data_dir().to_owned(),
                found: control.system_id,
                expected,
            };
            return Instance::Unusable(with_hint(&error));
        }
        let clean = !control.crashed();
        let primary = !found.standby_signal
            && !matches!(control.state, DbState::InArchiveRecovery | DbState::ShutDownInRecovery);
        let seen = rhone_pgctl::timeline::seen_timelines(self.data_dir())
            .ok()
            .and_then(|seen| seen.last().copied())
            .unwrap_or(Timeline::new(0));
        match rhone_pgctl::end_of_wal::end_of_wal(self.data_dir(), control).await {
            Ok(position) => {
                let mut facts = self.facts();
                facts.system_id = Some(control.system_id);
                facts.highest_timeline = facts.highest_timeline.max(seen).max(position.timeline);
                facts.stopped = Some((position, clean, primary));
                facts.unreadable = None;
                Instance::Stopped { position: Some(position), clean, primary }
            }
            Err(error) => {
                self.note_unreadable(error.to_string());
                Instance::Stopped { position: None, clean, primary }
            }
        }
    }
}

impl Local {
    /// Keeps why the end of the WAL could not be read, and says it when it is news. After a rewind it
    /// is no news: the copy's WAL reaches its end only by streaming.
    fn note_unreadable(&self, why: String) {
        let copied = self.shared.hard.get().copied();
        let mut facts = self.facts();
        if facts.unreadable.as_ref() != Some(&why) && !copied {
            tracing::warn!(error = %why, "the end of the wal on disk could not be read");
        }
        facts.unreadable = Some(why);
    }
}

fn with_hint(error: &PgError) -> String {
    match error.hint() {
        Some(hint) => format!("{error} (hint: {hint})"),
        None => error.to_string(),
    }
}
