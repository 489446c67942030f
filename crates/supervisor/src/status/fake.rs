//! A cluster of the style guide's example, for tests.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};

use rhone_consensus::ids::Epoch;

use super::{
    ClusterStatus, Event, Explanation, FenceRequest, HistoryEntry, Kind, MemberDecision, MemberStatus,
    Operator, OperatorError, Role, State, Subscription, SwitchoverReply, SwitchoverRequest, SyncMode,
    SyncStatus, TimingStatus,
};
use crate::civil::WallTime;

/// Answers like a healthy member, or with `refusal` to each change.
#[derive(Debug, Default)]
pub(crate) struct FakeOperator {
    pub(crate) refusal: Option<OperatorError>,
    pub(crate) seen: Mutex<Vec<SwitchoverRequest>>,
    pub(crate) paused: AtomicBool,
    pub(crate) fenced: Mutex<Vec<String>>,
    pub(crate) fences: Mutex<Vec<FenceRequest>>,
    pub(crate) settings: Mutex<rhone_consensus::settings::Settings>,
    pub(crate) versions: Mutex<Vec<crate::settings::SettingsVersion>>,
    pub(crate) work: Mutex<Vec<super::MemberRequest>>,
    pub(crate) scheduled: Mutex<Option<super::ScheduledSwitchover>>,
}

fn member(name: &str, role: Role, state: State, position: Option<&str>) -> MemberStatus {
    let position = position.and_then(|text| text.split_once(':'));
    MemberStatus {
        name: name.to_owned(),
        voter: true,
        role,
        state,
        host: Some(format!("{name}.lan")),
        port: Some(5432),
        timeline: position
            .and_then(|(timeline, _)| timeline.parse().ok())
            .map(rhone_pgctl::wal::Timeline::new),
        lsn: position.and_then(|(_, lsn)| lsn.parse().ok()),
        version: Some("15.18".to_owned()),
        pending_restart: Some(false),
        ..MemberStatus::default()
    }
}

/// The status of STYLE E4.
pub(crate) fn status() -> ClusterStatus {
    let pg1 = MemberStatus {
        note: Some("lease 1.4s left".to_owned()),
        lag_bytes: Some(0),
        seen_ms: Some(0),
        ..member("pg-1", Role::Primary, State::Running, Some("5:0/5A3F2C8"))
    };
    let pg2 = MemberStatus {
        note: Some("next in line".to_owned()),
        lag_bytes: Some(0),
        seen_ms: Some(140),
        ..member("pg-2", Role::Standby, State::Streaming, Some("5:0/5A3F2C8"))
    };
    let pg3 = MemberStatus {
        note: Some("forked at 4:0/5A00F70".to_owned()),
        seen_ms: Some(400),
        ..member("pg-3", Role::Standby, State::Rewinding, Some("4:0/5A01100"))
    };
    let wit = MemberStatus {
        kind: Kind::Witness,
        seen_ms: Some(200),
        host: None,
        port: None,
        version: None,
        pending_restart: None,
        ..member("wit-1", Role::Witness, State::Voting, None)
    };
    ClusterStatus {
        cluster: "main".to_owned(),
        system_identifier: "7423474350493388827".parse().ok(),
        primary: Some("pg-1".to_owned()),
        raft_leader: Some("pg-2".to_owned()),
        term: Some(12),
        epoch: Some(Epoch(7)),
        timeline: Some(rhone_pgctl::wal::Timeline::new(5)),
        paused: false,
        writable: true,
        sync: SyncStatus {
            mode: SyncMode::Quorum,
            required: 1,
            members: vec!["pg-2".to_owned(), "pg-3".to_owned()],
            settled: true,
        },
        failover_would_lose: Some("nothing".to_owned()),
        members: vec![pg1, pg2, pg3, wit],
        warnings: vec!["only pg-2 can take over until pg-3 has rejoined".to_owned()],
        settings_version: Some(1),
        scheduled_switchover: None,
        timing: Some(TimingStatus {
            preset: Some("default".to_owned()),
            counted_ms: 1500,
            aged_ms: 1500,
            settled: true,
        }),
        scheduled_restarts: Vec::new(),
    }
}

/// Two changes of primary.
pub(crate) fn history() -> Vec<HistoryEntry> {
    vec![
        HistoryEntry {
            time: Some(WallTime::from_ms(1_795_245_180_123)),
            to: Some("pg-3".to_owned()),
            epoch: Epoch(2),
            timeline: Some(rhone_pgctl::wal::Timeline::new(1)),
            reason: "founded".to_owned(),
            ..HistoryEntry::default()
        },
        HistoryEntry {
            time: Some(WallTime::from_ms(1_795_245_480_000)),
            from: Some("pg-3".to_owned()),
            to: Some("pg-1".to_owned()),
            epoch: Epoch(7),
            timeline: Some(rhone_pgctl::wal::Timeline::new(5)),
            switch_lsn: "0/5A00F70".parse().ok(),
            reason: "primary_silent".to_owned(),
            seconds_without_primary: Some(1.87),
            lost: Some("nothing".to_owned()),
            lost_bytes: Some(0),
            lost_exact: Some(true),
        },
    ]
}

/// The time that is meant, by a clock that stands still.
fn later(when: super::When) -> WallTime {
    match when {
        super::When::At(at) => at,
        super::When::After(after) => {
            WallTime::from_ms(1_795_245_180_000 + u64::try_from(after.as_millis()).unwrap_or(u64::MAX))
        }
    }
}

impl Operator for FakeOperator {
    async fn status(&self) -> Result<ClusterStatus, OperatorError> {
        let mut status = status();
        status.scheduled_switchover = self.scheduled.lock().expect("unpoisoned").clone();
        status.paused = self.paused.load(Ordering::Relaxed);
        let version = 1 + self.versions.lock().expect("unpoisoned").len() as u64;
        status.settings_version = Some(version);
        for member in status.members.iter_mut().filter(|member| member.kind == Kind::Data) {
            member.settings_version = Some(version);
            member.started = Some(WallTime::from_ms(1_795_245_000_000));
        }
        for request in self.work.lock().expect("unpoisoned").iter() {
            use super::MemberWork::{
                CancelRestart, Demote, Keep, Promote, Reinit, Reload, Remove, Restart, RestartAt,
            };
            match request.work {
                Remove => status.members.retain(|member| member.name != request.name),
                RestartAt(when) => status.scheduled_restarts.push(super::ScheduledRestart {
                    at: later(when),
                    name: request.name.clone(),
                    by: request.by.clone(),
                }),
                CancelRestart => status.scheduled_restarts.retain(|known| known.name != request.name),
                work @ (Demote | Keep | Promote | Reinit { .. } | Reload | Restart { .. }) => {
                    for member in status.members.iter_mut().filter(|member| member.name == request.name) {
                        match work {
                            Demote => member.voter = false,
                            Promote => member.voter = true,
                            Reinit { .. } | Restart { .. } => {
                                if matches!(work, Reinit { .. }) {
                                    member.data_id = Some("000000000000002a".to_owned());
                                }
                                member.started = Some(WallTime::from_ms(1_795_245_100_000));
                                member.state = State::Streaming;
                                member.role = Role::Standby;
                            }
                            Keep | Reload | Remove | RestartAt(_) | CancelRestart => {}
                        }
                    }
                }
            }
        }
        for name in self.fenced.lock().expect("unpoisoned").iter() {
            for member in status.members.iter_mut().filter(|member| member.name == *name) {
                member.state = State::Fenced;
            }
        }
        Ok(status)
    }

    async fn explain(&self) -> Result<Explanation, OperatorError> {
        Ok(Explanation {
            decided_by: Some("pg-2".to_owned()),
            decision: "nothing to do".to_owned(),
            reason: "primary_healthy".to_owned(),
            details: vec!["pg-1 was renewed 0.1 s ago".to_owned()],
            members: vec![MemberDecision {
                name: "pg-3".to_owned(),
                decision: "rewind from pg-1".to_owned(),
                reason: Some("forked".to_owned()),
            }],
        })
    }

    async fn history(&self) -> Result<Vec<HistoryEntry>, OperatorError> {
        Ok(history())
    }

    async fn switchover(&self, request: SwitchoverRequest) -> Result<SwitchoverReply, OperatorError> {
        let to = request.to.clone();
        self.seen.lock().expect("no test panics while holding it").push(request);
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        Ok(SwitchoverReply {
            from: Some("pg-1".to_owned()),
            to: to.or(Some("pg-2".to_owned())),
            epoch: Some(Epoch(8)),
            seconds_without_primary: Some(0.34),
            finished: true,
            scheduled: None,
        })
    }

    async fn failover(&self, request: super::FailoverRequest) -> Result<SwitchoverReply, OperatorError> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        let to = request.to.or(Some("pg-2".to_owned()));
        let (from, epoch) = (Some("pg-1".to_owned()), Some(Epoch(8)));
        Ok(SwitchoverReply { from, to, epoch, finished: !request.no_wait, ..SwitchoverReply::default() })
    }

    async fn schedule(
        &self,
        request: SwitchoverRequest,
        when: super::When,
    ) -> Result<SwitchoverReply, OperatorError> {
        if let Some(refusal) = &self.refusal {
            return Err(refusal.clone());
        }
        let at = later(when);
        let (from, to, by) = (Some("pg-1".to_owned()), request.to, request.by);
        *self.scheduled.lock().expect("unpoisoned") =
            Some(super::ScheduledSwitchover { at, from: from.clone(), to: to.clone(), by });
        let epoch = Some(Epoch(7));
        Ok(SwitchoverReply { from, to, epoch, scheduled: Some(at), ..SwitchoverReply::default() })
    }

    async fn cancel_scheduled(&self) -> Result<(), OperatorError> {
        let taken = self.scheduled.lock().expect("unpoisoned").take();
        let reason = "no switchover is scheduled".to_owned();
        let hint = Some("`rhone switchover --at TIME` schedules one".to_owned());
        taken.map(drop).ok_or(OperatorError::Refused { reason, hint })
    }

    fn events(&self) -> Option<Subscription> {
        let recent = Event {
            time: Some(WallTime::from_ms(1_795_245_180_000)),
            node: Some("pg-1".to_owned()),
            epoch: Some(Epoch(7)),
            reason: "paused".to_owned(),
            message: "automatic failover is off".to_owned(),
        };
        Some(Subscription { recent: vec![recent], next: tokio::sync::broadcast::Sender::new(1).subscribe() })
    }

    async fn fence(&self, request: FenceRequest) -> Result<SwitchoverReply, OperatorError> {
        if let Some(refusal) = self.refusal.clone() {
            return Err(refusal);
        }
        self.fences.lock().expect("unpoisoned").push(request.clone());
        let mut fenced = self.fenced.lock().expect("unpoisoned");
        fenced.retain(|name| *name != request.name);
        if request.fenced {
            fenced.push(request.name);
        }
        Ok(SwitchoverReply { epoch: Some(Epoch(7)), finished: true, ..SwitchoverReply::default() })
    }

    async fn settings(&self) -> Result<crate::settings::SettingsView, OperatorError> {
        let versions = self.versions.lock().expect("unpoisoned");
        Ok(crate::settings::SettingsView {
            version: 1 + versions.len() as u64,
            time: versions.last().and_then(|version| version.time),
            by: versions.last().and_then(|version| version.by.clone()),
            values: self.settings.lock().expect("unpoisoned").flat(),
        })
    }

    async fn settings_history(&self) -> Result<Vec<crate::settings::SettingsVersion>, OperatorError> {
        Ok(self.versions.lock().expect("unpoisoned").clone())
    }

    async fn change_settings(
        &self,
        request: super::SettingsRequest,
    ) -> Result<super::SettingsChanged, OperatorError> {
        if let Some(refusal) = self.refusal.clone() {
            return Err(refusal);
        }
        let mut versions = self.versions.lock().expect("unpoisoned");
        let mut settings = self.settings.lock().expect("unpoisoned");
        let version = 1 + versions.len() as u64;
        if request.expected_version.is_some_and(|expected| expected != version) {
            let reason = format!("the settings are at version {version} by now");
            let hint = Some("`rhone settings history` shows why".to_owned());
            return Err(OperatorError::Refused { reason, hint });
        }
        let mut after = settings.clone();
        for (key, value) in &request.changes {
            crate::settings::change(&mut after, key, value.as_deref())
                .map_err(|refusal| OperatorError::Refused { reason: refusal.reason, hint: refusal.hint })?;
        }
        let changes: Vec<crate::settings::SettingDiff> =
            rhone_consensus::settings::differences(&settings, &after).iter().map(Into::into).collect();
        let restart =
            after.postgres.keys().filter(|name| name.as_str() == "max_connections").cloned().collect();
        if request.dry_run || changes.is_empty() {
            return Ok(super::SettingsChanged { version, changes, restart });
        }
        *settings = after;
        let time = Some(WallTime::from_ms(1_795_245_180_000));
        versions.push(crate::settings::SettingsVersion {
            version: version + 1,
            time,
            by: Some("ann@pc".to_owned()),
            changes: changes.clone(),
        });
        Ok(super::SettingsChanged { version: version + 1, changes, restart })
    }

    async fn doctor(&self) -> Result<Vec<crate::doctor::Finding>, OperatorError> {
        use crate::doctor::Severity::{Error, Warning};
        let finding =
            |severity, code: &str, member: Option<&str>, message: &str, hint: &str| crate::doctor::Finding {
                severity,
                code: code.to_owned(),
                member: member.map(str::to_owned),
                message: message.to_owned(),
                hint: hint.to_owned(),
            };
        Ok(vec![
            finding(Error, "postgres", Some("pg-3"), "its postgres does not answer", "look at its log"),
            finding(Warning, "rhone", None, "the versions of rhone differ", "finish the upgrade"),
        ])
    }

    async fn perform(&self, request: super::MemberRequest) -> Result<SwitchoverReply, OperatorError> {
        if let Some(refusal) = self.refusal.clone() {
            return Err(refusal);
        }
        let scheduled =
            if let super::MemberWork::RestartAt(when) = request.work { Some(later(when)) } else { None };
        self.work.lock().expect("unpoisoned").push(request);
        let (epoch, finished) = (Some(Epoch(7)), scheduled.is_none());
        Ok(SwitchoverReply { epoch, finished, scheduled, ..SwitchoverReply::default() })
    }

    async fn pause(&self, paused: bool) -> Result<(), OperatorError> {
        if let Some(refusal) = self.refusal.clone() {
            return Err(refusal);
        }
        self.paused.store(paused, Ordering::Relaxed);
        Ok(())
    }
}
