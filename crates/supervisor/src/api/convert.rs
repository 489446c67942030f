//! The only place that knows both the protocol's types and ours.
//!
//! To the wire everything has a value; from the wire an unknown enum value becomes the type's
//! "not known", so that an older client can read a newer member.

use rhone_consensus::ids::Epoch;
use rhone_pgctl::wal::{Lsn, Timeline};
use tonic::{Code, Status};

use super::proto::v1;
use crate::civil::WallTime;
use crate::status::{
    ClusterStatus, CopyStatus, DsnRole, Event, Explanation, HistoryEntry, Kind, MemberDecision, MemberStatus,
    OperatorError, PendingSetting, Role, ScheduledRestart, ScheduledSwitchover, State, SwitchoverReply,
    SyncMode, SyncStatus, TimingStatus,
};

/// What answers knows no such call.
const NO_RHONE: &str = "what answers there is no rhone, or an older one: a member listens for operators at its `node.listen`, \
                        port 7400 by default";

/// Metadata key with the leader's address, on "this member does not lead".
const LEADER_KEY: &str = "rhone-leader";
/// Metadata key with a hint, on a refusal.
const HINT_KEY: &str = "rhone-hint";
/// Metadata key that marks a refusal or "does not lead", apart from gRPC's own uses of the code.
const KIND_KEY: &str = "rhone-kind";

impl From<Role> for v1::Role {
    fn from(role: Role) -> Self {
        match role {
            Role::Primary => Self::Primary,
            Role::Standby => Self::Standby,
            Role::Witness => Self::Witness,
            Role::None => Self::None,
        }
    }
}

impl From<v1::Role> for Role {
    fn from(role: v1::Role) -> Self {
        match role {
            v1::Role::Primary => Self::Primary,
            v1::Role::Standby => Self::Standby,
            v1::Role::Witness => Self::Witness,
            v1::Role::None | v1::Role::Unspecified => Self::None,
        }
    }
}

impl From<State> for v1::State {
    fn from(state: State) -> Self {
        match state {
            State::Starting => Self::Starting,
            State::CrashRecovery => Self::CrashRecovery,
            State::Running => Self::Running,
            State::Promoting => Self::Promoting,
            State::Frozen => Self::Frozen,
            State::Streaming => Self::Streaming,
            State::ArchiveRecovery => Self::ArchiveRecovery,
            State::Rewinding => Self::Rewinding,
            State::Cloning => Self::Cloning,
            State::Stopped => Self::Stopped,
            State::Fenced => Self::Fenced,
            State::Crashed => Self::Crashed,
            State::Voting => Self::Voting,
            State::Unreachable => Self::Unreachable,
        }
    }
}

impl From<v1::State> for State {
    fn from(state: v1::State) -> Self {
        match state {
            v1::State::Starting => Self::Starting,
            v1::State::CrashRecovery => Self::CrashRecovery,
            v1::State::Running => Self::Running,
            v1::State::Promoting => Self::Promoting,
            v1::State::Frozen => Self::Frozen,
            v1::State::Streaming => Self::Streaming,
            v1::State::ArchiveRecovery => Self::ArchiveRecovery,
            v1::State::Rewinding => Self::Rewinding,
            v1::State::Cloning => Self::Cloning,
            v1::State::Stopped => Self::Stopped,
            v1::State::Fenced => Self::Fenced,
            v1::State::Crashed => Self::Crashed,
            v1::State::Voting => Self::Voting,
            v1::State::Unreachable | v1::State::Unspecified => Self::Unreachable,
        }
    }
}

impl From<Kind> for v1::Kind {
    fn from(kind: Kind) -> Self {
        match kind {
            Kind::Data => Self::Data,
            Kind::Witness => Self::Witness,
        }
    }
}

impl From<v1::Kind> for Kind {
    fn from(kind: v1::Kind) -> Self {
        match kind {
            v1::Kind::Data | v1::Kind::Unspecified => Self::Data,
            v1::Kind::Witness => Self::Witness,
        }
    }
}

impl From<SyncMode> for v1::SyncMode {
    fn from(mode: SyncMode) -> Self {
        match mode {
            SyncMode::Off => Self::Off,
            SyncMode::Quorum => Self::Quorum,
            SyncMode::Strict => Self::Strict,
        }
    }
}

impl From<v1::SyncMode> for SyncMode {
    fn from(mode: v1::SyncMode) -> Self {
        match mode {
            v1::SyncMode::Off | v1::SyncMode::Unspecified => Self::Off,
            v1::SyncMode::Quorum => Self::Quorum,
            v1::SyncMode::Strict => Self::Strict,
        }
    }
}

impl From<v1::DsnRole> for DsnRole {
    fn from(role: v1::DsnRole) -> Self {
        match role {
            v1::DsnRole::Rw | v1::DsnRole::Unspecified => Self::Rw,
            v1::DsnRole::Ro => Self::Ro,
            v1::DsnRole::Any => Self::Any,
        }
    }
}

/// Gives the wire's number for a role of clients.
pub(crate) fn to_dsn_role(role: DsnRole) -> i32 {
    let role = match role {
        DsnRole::Rw => v1::DsnRole::Rw,
        DsnRole::Ro => v1::DsnRole::Ro,
        DsnRole::Any => v1::DsnRole::Any,
    };
    role.into()
}

impl From<MemberStatus> for v1::Member {
    fn from(m: MemberStatus) -> Self {
        Self {
            kind: v1::Kind::from(m.kind).into(),
            role: v1::Role::from(m.role).into(),
            state: v1::State::from(m.state).into(),
            name: m.name,
            voter: m.voter,
            host: m.host,
            port: m.port.map(u32::from),
            timeline: m.timeline.map(Timeline::get),
            lsn: m.lsn.map(Lsn::get),
            lag_bytes: m.lag_bytes,
            seen_ms: m.seen_ms,
            version: m.version,
            pending_restart: m.pending_restart,
            tags: m.tags.into_iter().collect(),
            note: m.note,
            started_ms: m.started.map(WallTime::as_ms),
            pending: m.pending.into_iter().map(pending_to_wire).collect(),
            settings_version: m.settings_version,
            start_failure: m.start_failure,
            refused_lines: m.refused_lines,
            data_id: m.data_id,
            copying: m.copying.map(|c| v1::Copying { bytes: c.bytes, failed: c.failed, error: c.error }),
        }
    }
}

impl From<v1::Member> for MemberStatus {
    fn from(m: v1::Member) -> Self {
        Self {
            kind: m.kind().into(),
            role: m.role().into(),
            state: m.state().into(),
            name: m.name,
            voter: m.voter,
            host: m.host,
            port: m.port.and_then(|port| u16::try_from(port).ok()),
            timeline: m.timeline.map(Timeline::new),
            lsn: m.lsn.map(Lsn::new),
            lag_bytes: m.lag_bytes,
            seen_ms: m.seen_ms,
            version: m.version,
            pending_restart: m.pending_restart,
            tags: m.tags.into_iter().collect(),
            note: m.note,
            started: m.started_ms.map(WallTime::from_ms),
            pending: m.pending.into_iter().map(pending_from_wire).collect(),
            settings_version: m.settings_version,
            start_failure: m.start_failure,
            refused_lines: m.refused_lines,
            data_id: m.data_id,
            copying: m.copying.map(|c| CopyStatus { bytes: c.bytes, failed: c.failed, error: c.error }),
        }
    }
}

fn pending_to_wire(p: PendingSetting) -> v1::PendingSetting {
    v1::PendingSetting { name: p.name, running: p.running, wanted: p.wanted }
}

fn pending_from_wire(p: v1::PendingSetting) -> PendingSetting {
    PendingSetting { name: p.name, running: p.running, wanted: p.wanted }
}

impl From<ClusterStatus> for v1::ClusterStatus {
    fn from(s: ClusterStatus) -> Self {
        Self {
            cluster: s.cluster,
            system_identifier: s.system_identifier.map(|id| id.to_string()),
            primary: s.primary,
            raft_leader: s.raft_leader,
            term: s.term,
            epoch: s.epoch.map(|e| e.0),
            timeline: s.timeline.map(Timeline::get),
            paused: s.paused,
            writable: s.writable,
            sync: Some(v1::Sync {
                mode: v1::SyncMode::from(s.sync.mode).into(),
                required: s.sync.required,
                members: s.sync.members,
                settled: s.sync.settled,
            }),
            failover_would_lose: s.failover_would_lose,
            members: s.members.into_iter().map(Into::into).collect(),
            warnings: s.warnings,
            settings_version: s.settings_version,
            scheduled_switchover: s.scheduled_switchover.map(|scheduled| v1::ScheduledSwitchover {
                time_ms: scheduled.at.as_ms(),
                from: scheduled.from,
                to: scheduled.to,
                by: scheduled.by,
            }),
            timing: s.timing.map(|t| v1::Timing {
                preset: t.preset,
                counted_ms: t.counted_ms,
                aged_ms: t.aged_ms,
                settled: t.settled,
            }),
            scheduled_restarts: s
                .scheduled_restarts
                .into_iter()
                .map(|r| v1::ScheduledRestart { time_ms: r.at.as_ms(), name: r.name, by: r.by })
                .collect(),
        }
    }
}

/// Reads a status from the wire.
pub(crate) fn cluster_status(s: v1::ClusterStatus) -> ClusterStatus {
    let sync = s.sync.map(|sync| SyncStatus {
        mode: sync.mode().into(),
        required: sync.required,
        members: sync.members,
        settled: sync.settled,
    });
    ClusterStatus {
        cluster: s.cluster,
        system_identifier: s.system_identifier.and_then(|id| id.parse().ok()),
        primary: s.primary,
        raft_leader: s.raft_leader,
        term: s.term,
        epoch: s.epoch.map(Epoch),
        timeline: s.timeline.map(Timeline::new),
        paused: s.paused,
        writable: s.writable,
        sync: sync.unwrap_or_default(),
        failover_would_lose: s.failover_would_lose,
        members: s.members.into_iter().map(Into::into).collect(),
        warnings: s.warnings,
        settings_version: s.settings_version,
        scheduled_switchover: s.scheduled_switchover.map(|scheduled| ScheduledSwitchover {
            at: WallTime::from_ms(scheduled.time_ms),
            from: scheduled.from,
            to: scheduled.to,
            by: scheduled.by,
        }),
        timing: s.timing.map(|t| TimingStatus {
            preset: t.preset,
            counted_ms: t.counted_ms,
            aged_ms: t.aged_ms,
            settled: t.settled,
        }),
        scheduled_restarts: s
            .scheduled_restarts
            .into_iter()
            .map(|r| ScheduledRestart { at: WallTime::from_ms(r.time_ms), name: r.name, by: r.by })
            .collect(),
    }
}

impl From<Explanation> for v1::ExplainReply {
    fn from(e: Explanation) -> Self {
        let member =
            |m: MemberDecision| v1::MemberDecision { name: m.name, decision: m.decision, reason: m.reason };
        Self {
            decided_by: e.decided_by,
            decision: e.decision,
            reason: e.reason,
            details: e.details,
            members: e.members.into_iter().map(member).collect(),
        }
    }
}

/// Reads an explanation from the wire.
pub(crate) fn explanation(e: v1::ExplainReply) -> Explanation {
    let member =
        |m: v1::MemberDecision| MemberDecision { name: m.name, decision: m.decision, reason: m.reason };
    Explanation {
        decided_by: e.decided_by,
        decision: e.decision,
        reason: e.reason,
        details: e.details,
        members: e.members.into_iter().map(member).collect(),
    }
}

impl From<HistoryEntry> for v1::HistoryEntry {
    fn from(h: HistoryEntry) -> Self {
        Self {
            time_ms: h.time.map(WallTime::as_ms),
            from: h.from,
            to: h.to,
            epoch: h.epoch.0,
            timeline: h.timeline.map(Timeline::get),
            switch_lsn: h.switch_lsn.map(Lsn::get),
            reason: h.reason,
            seconds_without_primary: h.seconds_without_primary,
            lost: h.lost,
            lost_bytes: h.lost_bytes,
            lost_exact: h.lost_exact,
        }
    }
}

/// Reads a line of history from the wire.
pub(crate) fn history_entry(h: v1::HistoryEntry) -> HistoryEntry {
    HistoryEntry {
        time: h.time_ms.map(WallTime::from_ms),
        from: h.from,
        to: h.to,
        epoch: Epoch(h.epoch),
        timeline: h.timeline.map(Timeline::new),
        switch_lsn: h.switch_lsn.map(Lsn::new),
        reason: h.reason,
        seconds_without_primary: h.seconds_without_primary,
        lost: h.lost,
        lost_bytes: h.lost_bytes,
        lost_exact: h.lost_exact,
    }
}

impl From<Event> for v1::Event {
    fn from(e: Event) -> Self {
        Self {
            time_ms: e.time.map(WallTime::as_ms),
            node: e.node,
            epoch: e.epoch.map(|epoch| epoch.0),
            reason: e.reason,
            message: e.message,
        }
    }
}

/// Takes an event off the wire.
pub(crate) fn event(e: v1::Event) -> Event {
    Event {
        time: e.time_ms.map(WallTime::from_ms),
        node: e.node,
        epoch: e.epoch.map(Epoch),
        reason: e.reason,
        message: e.message,
    }
}

/// Puts the outcome of a change on the wire: a refusal and "unknown" are answers, the rest fails
/// the call.
pub(super) fn to_change_reply(
    outcome: Result<SwitchoverReply, OperatorError>,
) -> Result<v1::ChangeReply, Status> {
    match outcome {
        Ok(reply) => Ok(v1::ChangeReply {
            outcome: v1::Outcome::Done.into(),
            finished: reply.finished,
            from: reply.from,
            to: reply.to,
            epoch: reply.epoch.map(|e| e.0),
            seconds_without_primary: reply.seconds_without_primary,
            scheduled_ms: reply.scheduled.map(WallTime::as_ms),
            ..v1::ChangeReply::default()
        }),
        Err(OperatorError::Refused { reason, hint }) => Ok(v1::ChangeReply {
            outcome: v1::Outcome::Refused.into(),
            reason: Some(reason),
            hint,
            ..v1::ChangeReply::default()
        }),
        Err(OperatorError::NotImplemented { what }) => Ok(v1::ChangeReply {
            outcome: v1::Outcome::Refused.into(),
            reason: Some(format!("{what} is not implemented in this version")),
            ..v1::ChangeReply::default()
        }),
        Err(OperatorError::Unknown) => {
            Ok(v1::ChangeReply { outcome: v1::Outcome::Unknown.into(), ..v1::ChangeReply::default() })
        }
        Err(
            error @ (OperatorError::NotLeader { .. } | OperatorError::NoQuorum | OperatorError::Failed(_)),
        ) => Err(error.into()),
    }
}

/// Reads the outcome of a change from the wire.
pub(crate) fn change_reply(reply: v1::ChangeReply) -> Result<SwitchoverReply, OperatorError> {
    match reply.outcome() {
        v1::Outcome::Done => Ok(SwitchoverReply {
            from: reply.from,
            to: reply.to,
            epoch: reply.epoch.map(Epoch),
            seconds_without_primary: reply.seconds_without_primary,
            finished: reply.finished,
            scheduled: reply.scheduled_ms.map(WallTime::from_ms),
        }),
        v1::Outcome::Refused => Err(OperatorError::Refused {
            reason: reply.reason.unwrap_or_else(|| "no reason given".to_owned()),
            hint: reply.hint,
        }),
        v1::Outcome::Unknown | v1::Outcome::Unspecified => Err(OperatorError::Unknown),
    }
}

impl From<OperatorError> for Status {
    fn from(error: OperatorError) -> Self {
        match error {
            OperatorError::Refused { reason, hint } => {
                refusal(Code::FailedPrecondition, &reason, hint.as_deref())
            }
            OperatorError::NotLeader { leader } => {
                let mut status = Self::failed_precondition("this member does not lead");
                annotate(&mut status, KIND_KEY, "not-leader");
                if let Some(leader) = leader {
                    annotate(&mut status, LEADER_KEY, &leader);
                }
                status
            }
            OperatorError::NoQuorum => {
                let mut status = Self::unavailable("no quorum: a majority of voters cannot be reached");
                annotate(&mut status, KIND_KEY, "no-quorum");
                status
            }
            OperatorError::Unknown => Self::unknown("the outcome is unknown"),
            OperatorError::NotImplemented { what } => Self::unimplemented(what),
            OperatorError::Failed(text) => Self::internal(text),
        }
    }
}

/// Says no, with a hint, so that the command line knows that nothing was changed.
pub(super) fn refusal(code: Code, reason: &str, hint: Option<&str>) -> Status {
    let mut status = Status::new(code, reason);
    annotate(&mut status, KIND_KEY, "refused");
    if let Some(hint) = hint {
        annotate(&mut status, HINT_KEY, hint);
    }
    status
}

/// Adds a value to a status' metadata; a text that gRPC cannot carry there is left out.
fn annotate(status: &mut Status, key: &'static str, value: &str) {
    if let Ok(value) = value.parse() {
        status.metadata_mut().insert(key, value);
    }
}

impl From<Status> for OperatorError {
    fn from(status: Status) -> Self {
        if let Some(alert) = crate::tls::trouble(&status) {
            let hint =
                "`rhone certs show` shows for whom and until when the certificate is, and who signed it";
            let reason = format!("the member does not accept this certificate: {alert}");
            return Self::Refused { reason, hint: Some(hint.to_owned()) };
        }
        let field = |key| status.metadata().get(key).and_then(|v| v.to_str().ok()).map(str::to_owned);
        match (status.code(), field(KIND_KEY).as_deref()) {
            (Code::FailedPrecondition, Some("not-leader")) => Self::NotLeader { leader: field(LEADER_KEY) },
            (Code::FailedPrecondition | Code::PermissionDenied | Code::Unauthenticated, _) => {
                Self::Refused { reason: status.message().to_owned(), hint: field(HINT_KEY) }
            }
            (Code::Unavailable, Some("no-quorum")) => Self::NoQuorum,
            // Without our mark it is the connection that broke: the call may have been heard.
            (Code::Unavailable | Code::Unknown | Code::DeadlineExceeded | Code::Cancelled, _) => {
                Self::Unknown
            }
            (Code::Unimplemented, _)
                if status.message().is_empty() || status.message().contains("grpc-status header missing") =>
            {
                Self::Failed(NO_RHONE.to_owned())
            }
            (Code::Unimplemented, _) => Self::NotImplemented { what: status.message().to_owned() },
            (_, _) => Self::Failed(status.message().to_owned()),
        }
    }
}
