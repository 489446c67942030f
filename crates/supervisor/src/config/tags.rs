//! `[node.tags]`: the tags that mean something, in Rhone's spelling or Patroni's, and the operator's own.

use std::collections::BTreeMap;

use rhone_consensus::tags::Tags;

use super::file::Entries;
use super::units;

/// The longest delay, in milliseconds: Postgres takes it as a signed number of 32 bits.
const DELAY_MAX: u128 = i32::MAX as u128;

/// Takes the tags of this member, whose name is `name`.
pub(super) fn tags(entries: &mut Entries, name: Option<&str>) -> Tags {
    let labels = entries.free("node.tags.");
    let mut tags = Tags::default();
    for (key, value) in &labels {
        let result = match key.as_str() {
            "no-failover" | "nofailover" => flag(value).map(|on| tags.no_failover = on),
            "no-sync" | "nosync" => flag(value).map(|on| tags.no_sync = on),
            "no-load-balance" | "noloadbalance" => flag(value).map(|on| tags.no_load_balance = on),
            "clone-from" | "clonefrom" => flag(value).map(|on| tags.clone_from = on),
            "replicate-from" | "replicatefrom" if name == Some(value.as_str()) => {
                Err("a member cannot follow itself".to_owned())
            }
            "replicate-from" | "replicatefrom" => {
                tags.replicate_from = Some(value.clone());
                Ok(())
            }
            "delay" => delay(value).map(|delay| tags.delay_ms = delay),
            _ => Ok(()),
        };
        if let Err(why) = result {
            entries.complain(&format!("node.tags.{key}"), format!("`node.tags.{key}`: {why}"), None);
        }
    }
    Tags { labels: labels.into_iter().collect::<BTreeMap<_, _>>(), ..tags }
}

fn flag(text: &str) -> Result<bool, String> {
    match text {
        "true" => Ok(true),
        "false" => Ok(false),
        other => Err(format!("\"{other}\" is neither true nor false")),
    }
}

fn delay(text: &str) -> Result<u64, String> {
    match units::parse_duration(text)?.as_millis() {
        0 => Err("a delay of nothing is none: remove it".to_owned()),
        ms if ms > DELAY_MAX => Err(format!("\"{text}\" is more than Postgres can wait (24 days)")),
        ms => u64::try_from(ms).map_err(|error| error.to_string()),
    }
}
