//! The settings on the wire: what `convert` is for the rest.

use rhone_consensus::ids::Epoch;
use tonic::Status;

use super::proto::v1;
use crate::civil::WallTime;
use crate::doctor::{Finding, Severity};
use crate::settings::{SettingDiff, SettingsVersion, SettingsView};
use crate::status::{MemberRequest, MemberWork, OperatorError, SettingsChanged, SettingsRequest};

fn diff_to_wire(diff: SettingDiff) -> v1::SettingDiff {
    v1::SettingDiff { key: diff.key, before: diff.before, after: diff.after }
}

fn diff_from_wire(diff: v1::SettingDiff) -> SettingDiff {
    SettingDiff { key: diff.key, before: diff.before, after: diff.after }
}

impl From<SettingsView> for v1::SettingsReply {
    fn from(view: SettingsView) -> Self {
        Self {
            version: view.version,
            time_ms: view.time.map(WallTime::as_ms),
            by: view.by,
            values: view.values.into_iter().collect(),
        }
    }
}

/// Reads the settings from the wire.
pub(crate) fn settings_view(reply: v1::SettingsReply) -> SettingsView {
    SettingsView {
        version: reply.version,
        time: reply.time_ms.map(WallTime::from_ms),
        by: reply.by,
        values: reply.values.into_iter().collect(),
    }
}

impl From<SettingsVersion> for v1::SettingsVersion {
    fn from(version: SettingsVersion) -> Self {
        Self {
            version: version.version,
            time_ms: version.time.map(WallTime::as_ms),
            by: version.by,
            changes: version.changes.into_iter().map(diff_to_wire).collect(),
        }
    }
}

/// Reads a version of the settings from the wire.
pub(crate) fn settings_version(version: v1::SettingsVersion) -> SettingsVersion {
    SettingsVersion {
        version: version.version,
        time: version.time_ms.map(WallTime::from_ms),
        by: version.by,
        changes: version.changes.into_iter().map(diff_from_wire).collect(),
    }
}

/// Reads a change of the settings from the wire.
pub(super) fn settings_request(request: v1::ChangeSettingsRequest) -> SettingsRequest {
    SettingsRequest {
        changes: request.changes.into_iter().map(|diff| (diff.key, diff.after)).collect(),
        revert_to: request.revert_to,
        expected_version: request.expected_version,
        by: request.by,
        dry_run: request.dry_run,
    }
}

/// Puts the outcome of a change of the settings on the wire.
pub(super) fn to_settings_reply(
    outcome: Result<SettingsChanged, OperatorError>,
) -> Result<v1::ChangeSettingsReply, Status> {
    match outcome {
        Ok(done) => Ok(v1::ChangeSettingsReply {
            outcome: v1::Outcome::Done.into(),
            version: done.version,
            changes: done.changes.into_iter().map(diff_to_wire).collect(),
            restart: done.restart,
            ..v1::ChangeSettingsReply::default()
        }),
        Err(OperatorError::Refused { reason, hint }) => Ok(v1::ChangeSettingsReply {
            outcome: v1::Outcome::Refused.into(),
            reason: Some(reason),
            hint,
            ..v1::ChangeSettingsReply::default()
        }),
        Err(OperatorError::Unknown) => Ok(v1::ChangeSettingsReply {
            outcome: v1::Outcome::Unknown.into(),
            ..v1::ChangeSettingsReply::default()
        }),
        Err(
            error @ (OperatorError::NotLeader { .. }
            | OperatorError::NoQuorum
            | OperatorError::NotImplemented { .. }
            | OperatorError::Failed(_)),
        ) => Err(error.into()),
    }
}

/// Reads the outcome of a change of the settings from the wire.
pub(crate) fn settings_changed(reply: v1::ChangeSettingsReply) -> Result<SettingsChanged, OperatorError> {
    match reply.outcome() {
        v1::Outcome::Done => Ok(SettingsChanged {
            version: reply.version,
            changes: reply.changes.into_iter().map(diff_from_wire).collect(),
            restart: reply.restart,
        }),
        v1::Outcome::Refused => Err(OperatorError::Refused {
            reason: reply.reason.unwrap_or_else(|| "no reason given".to_owned()),
            hint: reply.hint,
        }),
        v1::Outcome::Unknown | v1::Outcome::Unspecified => Err(OperatorError::Unknown),
    }
}

/// Reads what is to be done to a member.
pub(super) fn member_request(request: v1::MemberRequest, work: MemberWork) -> MemberRequest {
    let expected_epoch = request.expected_epoch.map(Epoch);
    MemberRequest { name: request.name, work, by: String::new(), expected_epoch }
}

impl From<Finding> for v1::Finding {
    fn from(finding: Finding) -> Self {
        let severity = match finding.severity {
            Severity::Error => v1::Severity::Error,
            Severity::Warning => v1::Severity::Warning,
        };
        Self {
            severity: severity.into(),
            code: finding.code,
            member: finding.member,
            message: finding.message,
            hint: finding.hint,
        }
    }
}

/// Reads a finding from the wire.
pub(crate) fn finding(finding: v1::Finding) -> Finding {
    let severity = match finding.severity() {
        v1::Severity::Error | v1::Severity::Unspecified => Severity::Error,
        v1::Severity::Warning => Severity::Warning,
    };
    Finding {
        severity,
        code: finding.code,
        member: finding.member,
        message: finding.message,
        hint: finding.hint,
    }
}
