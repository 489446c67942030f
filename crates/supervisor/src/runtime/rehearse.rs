//! Whether the members would start with other settings, before anybody has to restart to find out.

use std::time::Duration;

use futures_util::future::join_all;
use rhone_consensus::command::Member;
use rhone_consensus::settings::Settings;
use rhone_consensus::state::ClusterState;
use rhone_pgctl::Installation;
use rhone_pgctl::control::read_control;
use rhone_pgctl::rehearse::{Beside, rehearse};
use rhone_pgctl::settings::{ManagedSettings, synchronous_standby_names};

use super::operator::RuntimeOperator;
use super::supervisor::postgres_user;
use crate::api::proto::v1::{RehearseReply, RehearseRequest};
use crate::runtime::codec;
use crate::runtime::shared::Shared;
use crate::settings::Refusal;

/// How long a rehearsed start may take here: two programs of a few megabytes on a slow card.
const LIMIT: Duration = Duration::from_secs(20);

/// How long a member may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(45);

/// Rehearses a start of this member's Postgres with those settings.
pub async fn rehearse_here(shared: &Shared, settings: &Settings) -> RehearseReply {
    let reply = |refusal: Option<String>, unknown: Option<String>| RehearseReply {
        refusal: refusal.unwrap_or_default(),
        unknown: unknown.unwrap_or_default(),
    };
    match try_here(shared, settings).await {
        Ok(refusal) => reply(refusal, None),
        Err(unknown) => reply(None, Some(unknown)),
    }
}

async fn try_here(shared: &Shared, settings: &Settings) -> Result<Option<String>, String> {
    let config = shared.config.postgres.as_ref().ok_or("a witness runs no postgres")?;
    let words = |error: rhone_pgctl::PgError| super::node::chain(&error);
    let major = rhone_pgctl::datadir::major_of(&config.data_dir).map_err(words)?;
    let major = major.ok_or("it has no data directory yet")?;
    let install = Installation::find(config.bin_dir.as_deref(), Some(major)).await.map_err(words)?;
    let user = postgres_user(config).map_err(|error| error.to_string())?;
    let control = read_control(&install, &config.data_dir, &user, LIMIT).await.map_err(words)?;
    let managed = ManagedSettings {
        parameters: settings.postgres.clone(),
        minimums: control.minimums,
        synchronous_standby_names: synchronous_standby_names(1, [""; 0]),
        ..ManagedSettings::default()
    };
    rehearse(&install, &config.data_dir, &managed, &user, (Beside::Running, LIMIT)).await.map_err(words)
}

impl RuntimeOperator {
    /// Asks every data member whether it would start with those settings. One that is not there, or cannot say, is
    /// left out: should it not start with them, it says so then.
    pub(super) async fn would_start(&self, state: &ClusterState, settings: &Settings) -> Result<(), Refusal> {
        let asked =
            state.data_members().map(async |member| (member, self.ask_member(member, settings).await));
        for (member, answer) in join_all(asked).await {
            match answer {
                Ok(reply) if !reply.refusal.is_empty() => {
                    let reason = format!("{} would not start with that: {}", member.name, reply.refusal);
                    let hint = "each member is asked to rehearse a start; the running servers are untouched";
                    return Err(Refusal::new(reason, Some(hint)));
                }
                Ok(reply) if !reply.unknown.is_empty() => {
                    tracing::info!(member = %member.name, why = %reply.unknown, "cannot rehearse a start");
                }
                Ok(_) => {}
                Err(why) => tracing::info!(member = %member.name, %why, "is not asked to rehearse a start"),
            }
        }
        Ok(())
    }

    async fn ask_member(&self, member: &Member, settings: &Settings) -> Result<RehearseReply, String> {
        let shared = self.shared();
        if member.node == shared.me() {
            return Ok(rehearse_here(shared, settings).await);
        }
        if !self.is_there(member.node) {
            return Err("it is not there".to_owned());
        }
        let request = RehearseRequest { from: Some(shared.identity()), settings: codec::pack(settings) };
        let call = shared
            .peers
            .call(&member.address, ANSWER_LIMIT, |mut client| async move { client.rehearse(request).await });
        call.await.map_err(|error| error.to_string())
    }
}
