//! The owner's half of a policy change: sets Postgres, settles, passes the barrier (docs/safety.md 6, steps 2
//! to 4, decision 0011). Idempotent, and cut anywhere it is begun again.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use rhone_consensus::command::Member;
use rhone_consensus::ids::{DataId, Epoch, LogIndex, NodeId};
use rhone_consensus::policy::{Policy, PolicyKind};
use rhone_pgctl::connection::Session;
use rhone_pgctl::hba::Gate;
use rhone_pgctl::marker;
use rhone_pgctl::probe::{Probe, RoleFacts, WalSender};
use rhone_pgctl::process::Postmaster;
use rhone_pgctl::settings::{ManagedSettings, synchronous_standby_names};
use rhone_pgctl::sync::{self, Sender};
use rhone_pgctl::wal::Lsn;

use super::streams::Word;
use super::{Local, LocalError};
use crate::mutant::{Rule, left_out};
use crate::runtime::clock::BootTime;

/// How long a quick statement may take.
const SQL_LIMIT: Duration = Duration::from_secs(5);

/// For how long one attempt waits for walsenders; then there may be a newer policy.
const ATTEMPT: Duration = Duration::from_secs(1);

/// A walsender of a standby that is not among those of the new policy is ended after this long.
const END_LEFT_OUT: Duration = Duration::from_millis(200);

/// Any other one that has not taken over the new policy is ended after this long: its standby connects
/// again within 0.2 s, under the new one.
const END_STUCK: Duration = Duration::from_secs(5);

/// How long the checkpoint may take that proves the checkpointer's part.
const CHECKPOINT_LIMIT: Duration = Duration::from_secs(300);

/// Between two looks at the walsenders.
const POLL: Duration = Duration::from_millis(5);

/// A standby that lacks more has not caught up: one segment.
const CAUGHT_UP: u64 = 16 << 20;

/// The longest part of a member's name within its name as a standby; Postgres cuts at 63 bytes.
const NAME_LIMIT: usize = 46;

/// Returns what a member calls itself as a standby: its name and its data directory's id.
///
/// Postgres keeps only printable ASCII of it, and compares without regard to case.
pub(super) fn standby_name(name: &str, data: DataId) -> String {
    let plain = |char: char| if char.is_ascii_graphic() { char } else { '?' };
    let name: String = name.chars().map(plain).take(NAME_LIMIT).collect();
    format!("{name}_{data}")
}

/// Returns the data directory that a standby's name ends in.
fn data_of(name: &str) -> Option<DataId> {
    let (_, data) = name.rsplit_once('_')?;
    if data.len() == 16 { data.parse().ok() } else { None }
}

/// Returns the value of `synchronous_standby_names` under which every acknowledged commit is
/// acknowledged under this policy; empty where the policy allows to go on alone.
pub(super) fn names_of(kind: &PolicyKind, members: &BTreeMap<NodeId, Member>) -> String {
    match kind {
        PolicyKind::Quorum { .. } if left_out(Rule::Names) => String::new(),
        PolicyKind::Alone | PolicyKind::Async { .. } => String::new(),
        // A member that was removed has no name any more: to wait for one fewer of the others is safe.
        PolicyKind::Quorum { required, standbys } => synchronous_standby_names(
            *required as usize,
            standbys
                .iter()
                .filter_map(|r| members.get(&r.node).map(|member| standby_name(&member.name, r.data))),
        ),
    }
}

/// Returns whether enough of the policy's standbys have flushed up to there.
fn flushed_by_policy(kind: &PolicyKind, senders: &[Sender], lsn: Lsn) -> bool {
    match kind {
        PolicyKind::Alone | PolicyKind::Async { .. } => true,
        PolicyKind::Quorum { required, standbys } => {
            let has = |data: DataId| {
                senders
                    .iter()
                    .any(|s| s.flushed >= Some(lsn) && s.streaming && data_of(&s.name) == Some(data))
            };
            standbys.iter().filter(|replica| has(replica.data)).count() >= *required as usize
        }
    }
}

impl Local {
    /// Returns what a standby calls itself now.
    pub(super) fn own_standby_name(&self) -> String {
        let data = self.shared.hard.get().data.map_or(DataId(0), |record| record.id);
        standby_name(&self.shared.config.node.name, data)
    }

    /// Returns the newest policy of that epoch, as it stands in the log here.
    fn policy(&self, epoch: Epoch) -> Result<Policy, LocalError> {
        self.state(|state| state.policy().filter(|policy| policy.epoch == epoch).cloned())
            .ok_or_else(|| LocalError::Stale("the epoch is over".to_owned()))
    }

    /// Returns the settings of a primary under the newest policy of its epoch.
    pub(super) async fn primary_settings(
        &self,
        epoch: Epoch,
    ) -> Result<(Policy, ManagedSettings), LocalError> {
        let policy = self.policy(epoch)?;
        let names = self.state(|state| names_of(&policy.kind, &state.members));
        let settings = self.settings(None, self.minimums().await?)?;
        let settings =
            ManagedSettings { synchronous_standby_names: names, policy: policy.number.0, ..settings };
        Ok((policy, settings))
    }

    /// Reads which policy the settings of a running primary name: what a former supervisor wrote.
    pub(super) fn policy_on_disk(&self) -> Option<LogIndex> {
        let path = self.data_dir().join(rhone_pgctl::settings::MANAGED_FILE);
        let text = std::fs::read_to_string(path).ok()?;
        rhone_pgctl::settings::policy_of(&text).map(LogIndex)
    }

    /// Takes over a primary that a former supervisor left running: its policy and its gate are what its
    /// files say. The gate is closed before each promotion, so that an open one was opened for this epoch.
    pub fn adopt_primary(&self, epoch: Epoch) {
        let policy = self.policy_on_disk();
        let hba = std::fs::read_to_string(self.data_dir().join("pg_hba.conf")).unwrap_or_default();
        let managed = std::fs::read_to_string(self.data_dir().join(rhone_pgctl::settings::MANAGED_FILE));
        let now = self.shared.clock.now();
        let mut facts = self.facts();
        facts.primary_epoch = epoch;
        facts.gate_open = Gate::of(&hba) == Gate::Open;
        facts.policy = policy;
        facts.configured = managed.ok().as_deref().and_then(rhone_pgctl::settings::version_of);
        facts.policy_since = now;
        // Whether commits ever went on alone is not known any more.
        facts.empty_names = true;
    }

    /// Takes note of the policy that a primary was promoted under. On the way there from the
    /// placeholder of a standby nothing was acknowledged, so that it is in force as it is.
    pub(super) fn promoted_under(&self, policy: &Policy) {
        let now = self.shared.clock.now();
        let mut facts = self.facts();
        facts.policy = Some(policy.number);
        facts.policy_since = now;
        facts.secured = Some(policy.number);
    }

    /// Sees to it that commits wait under this value, which has been reloaded: whether they wait at all is the checkpointer's to tell the sessions, after it
    /// has read the value, and a checkpoint is begun only after that.
    ///
    /// # Errors
    /// Postgres does not answer.
    pub(super) async fn commits_will_wait(
        &self,
        policy: &Policy,
        session: &Session,
    ) -> Result<(), LocalError> {
        if matches!(policy.kind, PolicyKind::Quorum { .. }) && self.facts().empty_names {
            marker::checkpoint(session, CHECKPOINT_LIMIT).await?;
            self.facts().empty_names = false;
        }
        Ok(())
    }

    /// Takes note, before it is written, of a value under which commits wait for nobody.
    pub(super) fn may_be_empty(&self, policy: &Policy) {
        if !matches!(policy.kind, PolicyKind::Quorum { .. }) {
            self.facts().empty_names = true;
        }
    }

    /// Sets the newest policy, and sees to it that no process uses an older one and that everything
    /// acknowledged before is flushed under it. Comes back after a while when that is not so yet.
    ///
    /// # Errors
    /// The epoch is over, or Postgres does not answer.
    pub async fn set_policy(&self, epoch: Epoch) -> Result<(), LocalError> {
        self.still(epoch)?;
        if self.reread_secret().await {
            self.facts().roles_due = true;
        }
        let version = self.settings_version();
        let (policy, settings) = self.primary_settings(epoch).await?;
        let set = self.facts().policy.max(self.policy_on_disk());
        if set > Some(policy.number) {
            return Err(LocalError::Stale("postgres is set to a newer policy".to_owned()));
        }
        self.may_be_empty(&policy);
        let Some(postmaster) = Postmaster::find(self.data_dir())? else {
            return Err(LocalError::Stale("the postmaster is gone".to_owned()));
        };
        self.still(epoch)?;
        let before = self.facts().policy;
        let written = self.write_settings(settings).await?;
        // The user's lines may have changed with the settings; an open gate stays open.
        let gate = if self.facts().gate_open { Gate::Open } else { Gate::Closed };
        self.write_gate(gate).await?;
        if written && before != Some(policy.number) {
            tracing::info!(%epoch, policy = %policy.number, "sets the policy: acknowledges a commit {}", policy.kind);
        }
        {
            let now = self.shared.clock.now();
            let mut facts = self.facts();
            if facts.policy != Some(policy.number) {
                facts.policy = Some(policy.number);
                facts.policy_since = now;
            }
        }
        postmaster.reload()?;
        let known = self.facts().configured;
        if known.is_some_and(|known| known != version) || self.shared.asked.borrow().reload() {
            self.note_refused_lines().await;
        }
        self.configured(version);
        let session = sync::session_under(&self.target(), policy.number.0, SQL_LIMIT).await?;
        self.commits_will_wait(&policy, &session).await?;
        self.settle(epoch, &policy, &session).await
    }

    async fn settle(&self, epoch: Epoch, policy: &Policy, session: &Session) -> Result<(), LocalError> {
        // Only whose name stands in a list releases commits: backups and clones are left alone.
        let concerned = self.state(|state| {
            let of_epoch = state.policies.iter().filter(|policy| policy.epoch == epoch);
            of_epoch.flat_map(|policy| standbys_of(&policy.kind)).collect::<BTreeSet<DataId>>()
        });
        let mut before = sync::senders(session, SQL_LIMIT).await?;
        before.retain(|sender| data_of(&sender.name).is_some_and(|data| concerned.contains(&data)));
        let mark = marker::write_marker(session, &format!("policy {}", policy.number), SQL_LIMIT).await?;
        let begun = self.shared.clock.now();
        loop {
            let now = self.shared.clock.now();
            let senders = sync::senders(session, SQL_LIMIT).await?;
            let waits_for: Vec<&Sender> = senders
                .iter()
                .filter(|s| before.iter().any(|old| old.is(s)) && s.flushed < Some(mark))
                .collect();
            let settled = waits_for.is_empty() && flushed_by_policy(&policy.kind, &senders, mark);
            if settled || left_out(Rule::Settle) {
                tracing::info!(%epoch, policy = %policy.number, %mark, "the policy is in force");
                self.facts().secured = Some(policy.number);
                return Ok(());
            }
            let since = now.saturating_since(self.facts().policy_since);
            for sender in waits_for {
                let left_out =
                    data_of(&sender.name).is_none_or(|data| !standbys_of(&policy.kind).contains(&data));
                if since > if left_out { END_LEFT_OUT } else { END_STUCK } {
                    tracing::debug!(pid = sender.pid, standby = %sender.name, "ends a walsender");
                    sync::end(sender)?;
                }
            }
            if now.saturating_since(begun) > ATTEMPT {
                return Ok(());
            }
            tokio::time::sleep(POLL).await;
        }
    }

    /// Waits for a while until the epoch's marker is durable under one of its policies, by Postgres's
    /// own word; says whether it is.
    ///
    /// Under any of them: whoever is granted next has to cover all.
    pub(super) async fn marker_is_durable(
        &self,
        epoch: Epoch,
        session: &Session,
    ) -> Result<bool, LocalError> {
        let known = self.facts().marker.filter(|(of, _)| *of == epoch).map(|(_, lsn)| lsn);
        let lsn = if let Some(lsn) = known {
            lsn
        } else {
            let lsn = marker::write_marker(session, &format!("epoch {epoch}"), SQL_LIMIT).await?;
            self.facts().marker = Some((epoch, lsn));
            lsn
        };
        let begun = self.shared.clock.now();
        loop {
            let (policies, first) = self.state(|state| {
                let of_epoch = state.policies.iter().filter(|policy| policy.epoch == epoch);
                (of_epoch.cloned().collect::<Vec<Policy>>(), state.history.is_empty())
            });
            let senders = sync::senders(session, SQL_LIMIT).await?;
            // Before the first epoch nothing was acknowledged, and standbys are made from its primary.
            if first
                || left_out(Rule::Marker)
                || policies.iter().any(|policy| flushed_by_policy(&policy.kind, &senders, lsn))
            {
                return Ok(true);
            }
            if self.shared.clock.now().saturating_since(begun) > ATTEMPT {
                return Ok(false);
            }
            self.still(epoch)?;
            tokio::time::sleep(POLL).await;
        }
    }

    /// Takes note of what a probe of a primary says of its standbys.
    pub(super) fn note_streams(&self, probe: &Probe, now: BootTime) {
        let RoleFacts::Primary(primary) = &probe.role else { return };
        let word = |sender: &WalSender| {
            let data = data_of(&sender.application_name).filter(|_| serves(sender))?;
            let lacks = primary.flushed.lsn.bytes_since(sender.flushed.unwrap_or_default());
            Some(Word { data, said: sender.replied_at.unwrap_or(0.0), caught_up: lacks <= CAUGHT_UP })
        };
        let words: Vec<Word> = probe.walsenders.iter().filter_map(word).collect();
        self.facts().streams.note(&words, now);
    }
}

fn serves(sender: &WalSender) -> bool {
    matches!(sender.state.as_str(), "streaming" | "catchup")
}

/// Returns the data directories that may acknowledge under a policy.
fn standbys_of(kind: &PolicyKind) -> BTreeSet<DataId> {
    match kind {
        PolicyKind::Alone | PolicyKind::Async { .. } => BTreeSet::new(),
        PolicyKind::Quorum { standbys, .. } => standbys.iter().map(|replica| replica.data).collect(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(name: &str, expected: &str) {
        let made = standby_name(name, DataId(0x1f3a));
        assert_eq!(made, expected);
        assert!(made.len() < 64, "{made} is cut by postgres");
        assert_eq!(data_of(&made), Some(DataId(0x1f3a)));
    }

    #[test]
    fn a_standby_is_named_by_its_member_and_its_data() {
        check("pg-2", "pg-2_0000000000001f3a");
        check("PG 2\"x", "PG?2\"x_0000000000001f3a");
        check("zürich", "z?rich_0000000000001f3a");
        check(&"n".repeat(80), &format!("{}_0000000000001f3a", "n".repeat(46)));
        assert_eq!(data_of("pg_basebackup"), None);
        assert_eq!(data_of("walreceiver"), None);
    }
}
