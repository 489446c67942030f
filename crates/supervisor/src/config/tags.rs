//! `[node.tags]`: the tags that mean something, in Rhone's spelling or Patroni's, and the operator's own.

use std::collections::BTreeMap;

use rhone_consensus::tags::Tags;

use super::file::Entries;
use super::units;

/// The longest delay, in milliseconds: Postgres takes it as a signed number of 32 bits.
const DELAY_MAX: u128 = i32::MAX as u128;

/// The table that they are in.
pub(super) const TABLE: &str = "node.tags.";

/// The tags that mean something, in Rhone's spelling.
const KNOWN: [&str; 7] =
    ["no-failover", "no-sync", "no-load-balance", "no-vote", "clone-from", "replicate-from", "delay"];

/// Finds the tag that a spelling stands for: Rhone's, Patroni's (`nofailover`), or a variable's, which has `_` where
/// the key has `-`.
pub(super) fn known(spelled: &str) -> Option<&'static str> {
    let plain = |text: &str| text.to_lowercase().replace(['-', '_'], "");
    KNOWN.into_iter().find(|tag| plain(tag) == plain(spelled))
}

/// Takes the tags of this member, whose name is `name`.
pub(super) fn tags(entries: &mut Entries, name: Option<&str>) -> Tags {
    let mut labels = entries.free(TABLE);
    let mut tags = Tags::default();
    let mut votes = None;
    for (key, value) in &labels {
        let result = match known(key).unwrap_or(key) {
            "no-failover" => flag(value).map(|on| tags.no_failover = on),
            "no-sync" => flag(value).map(|on| tags.no_sync = on),
            "no-load-balance" => flag(value).map(|on| tags.no_load_balance = on),
            "clone-from" => flag(value).map(|on| tags.clone_from = on),
            "replicate-from" if name == Some(value.as_str()) => {
                Err("a member cannot follow itself".to_owned())
            }
            "replicate-from" => {
                tags.replicate_from = Some(value.clone());
                Ok(())
            }
            "no-vote" => flag(value).map(|on| votes = Some(on)),
            "delay" => delay(value).map(|delay| tags.delay_ms = delay),
            _ => Ok(()),
        };
        if let Err(why) = result {
            entries.complain(&format!("node.tags.{key}"), format!("`node.tags.{key}`: {why}"), None);
        }
    }
    if let Some(no_vote) = votes {
        // `Tags::no_vote` knows one spelling.
        labels.insert("no-vote".to_owned(), no_vote.to_string());
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
