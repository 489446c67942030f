//! Changing the replicated settings: checked by the primary's word, then proposed against their version.

use std::time::Duration;

use rhone_consensus::command::{ClusterCommand, WallTime as When};
use rhone_consensus::settings::differences;

use super::operator::{RuntimeOperator, refused};
use crate::civil::WallTime;
use crate::runtime::clock::wall_time;
use crate::settings::{self, Refusal, SettingsVersion, SettingsView};
use crate::status::{OperatorError, SettingsChanged, SettingsRequest};

/// How long the name of who asks may be.
const BY_LIMIT: usize = 128;

/// How long the leader looks for its own change in the state.
const APPLIED_LIMIT: Duration = Duration::from_secs(5);

impl From<Refusal> for OperatorError {
    fn from(refusal: Refusal) -> Self {
        let hint = refusal.hint.unwrap_or_else(|| {
            "`rhone settings` shows the present values; `rhone settings set --dry-run` tries a change"
                .to_owned()
        });
        Self::Refused { reason: refusal.reason, hint: Some(hint) }
    }
}

impl RuntimeOperator {
    pub(super) fn settings_view(&self) -> SettingsView {
        let applied = self.applied();
        let last = applied.state.settings_log.back();
        SettingsView {
            version: applied.state.settings_version,
            time: last.map(|change| WallTime::from_ms(change.at.0)),
            by: last.map(|change| change.by.clone()),
            values: applied.state.settings.flat(),
        }
    }

    pub(super) fn settings_versions(&self) -> Vec<SettingsVersion> {
        self.applied().state.settings_log.iter().map(Into::into).collect()
    }

    pub(super) async fn tune(&self, request: SettingsRequest) -> Result<SettingsChanged, OperatorError> {
        let applied = self.applied();
        let state = &applied.state;
        let version = state.settings_version;
        if !state.is_founded() {
            return Err(refused("the cluster is not founded yet", "rhone status"));
        }
        if request.expected_version.is_some_and(|expected| expected != version) {
            return Err(refused(
                format!("the settings are at version {version} by now"),
                "rhone settings history",
            ));
        }
        let before = &state.settings;
        let mut after = match request.revert_to {
            Some(wanted) => {
                let log: Vec<_> = state.settings_log.iter().cloned().collect();
                settings::at_version(before, version, &log, wanted)?
            }
            None => before.clone(),
        };
        for (key, value) in &request.changes {
            settings::change(&mut after, key, value.as_deref())?;
        }
        // What is taken away needs no server to check it: a value that keeps every Postgres from starting must not
        // stay for want of a primary.
        let added = after.postgres.iter().any(|(name, value)| before.postgres.get(name) != Some(value));
        let catalogue = if before.postgres == after.postgres {
            Vec::new()
        } else {
            match self.parameters_of_primary().await {
                Ok(catalogue) => catalogue,
                Err(_) if !added => Vec::new(),
                Err(error) => return Err(error),
            }
        };
        let restart = settings::check(before, &mut after, &catalogue, state.data_members().count())?;
        if added && !restart.is_empty() {
            self.would_start(state, &after).await?;
        }
        let changes = differences(before, &after).iter().map(Into::into).collect::<Vec<_>>();
        if changes.is_empty() || request.dry_run {
            return Ok(SettingsChanged { version, changes, restart });
        }
        let by: String = request.by.chars().filter(|char| !char.is_control()).take(BY_LIMIT).collect();
        tracing::info!(version, %by, ?changes, "an operator changes the settings");
        let command = ClusterCommand::ChangeSettings {
            expected: version,
            settings: Box::new(after),
            by,
            at: When(wall_time()),
        };
        self.propose(command).await?;
        let mut states = self.shared().consensus.state();
        let applied = states.wait_for(|applied| applied.state.settings_version > version);
        drop(tokio::time::timeout(APPLIED_LIMIT, applied).await);
        Ok(SettingsChanged { version: version.saturating_add(1), changes, restart })
    }
}
