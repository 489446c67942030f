//! ✦ Patroni's configuration as Rhone's: what each key becomes, or why it becomes nothing (decision 0044).
//!
//! No password and no other secret gets from the one into the other. Whatever is not known here is told.

mod render;
mod rules;

use serde::Serialize;
use yaml_rust2::{Yaml, YamlLoader};

/// A larger file is none of Patroni's; aliases could make far more of it than there is.
pub const SIZE_LIMIT: usize = 256 * 1024;

/// What becomes of a key.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    /// It is in the new file.
    Translated,
    /// It means nothing here.
    NoMeaning,
    /// A person has to decide.
    Decide,
}

/// What becomes of one key, and why.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Note {
    /// Patroni's key, with dots; `-` for what Patroni does not have.
    pub key: String,
    /// What becomes of it.
    pub verdict: Verdict,
    /// In words.
    pub what: String,
}

/// What Patroni's file does not say.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Choices {
    /// The members' hosts or addresses, this one's too.
    pub peers: Vec<String>,
    /// The network is trusted: no TLS.
    pub insecure: bool,
}

/// The new file, and what became of the old one.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Translation {
    /// `rhone.toml`.
    pub config: String,
    /// Each key of the old file, in its order, then what that one does not have.
    pub notes: Vec<Note>,
}

/// Translates the text of a Patroni configuration.
///
/// # Errors
/// It is no YAML, or no configuration of Patroni's, in words.
pub fn translate(text: &str, choices: &Choices) -> Result<Translation, String> {
    if text.len() > SIZE_LIMIT {
        return Err(format!("it has {} bytes, more than {SIZE_LIMIT}", text.len()));
    }
    let documents = YamlLoader::load_from_str(text).map_err(|error| format!("it is no YAML: {error}"))?;
    let [document] = documents.as_slice() else {
        return Err(format!("it holds {} YAML documents, not one", documents.len()));
    };
    if document.as_hash().is_none() {
        return Err("it is no table of keys".to_owned());
    }
    let mut rules = rules::Rules::default();
    for (key, value) in leaves(document) {
        rules.take(&key, value);
    }
    rules.finish(choices)
}

/// Tables that are looked at as a whole: their keys are names, not settings.
const WHOLE: [&str; 8] = [
    "bootstrap.initdb",
    "bootstrap.users",
    "bootstrap.dcs.slots",
    "bootstrap.dcs.ignore_slots",
    "bootstrap.dcs.standby_cluster",
    "slots",
    "postgresql.basebackup",
    "citus",
];

/// Flattens tables into keys with dots, in their order.
fn leaves(document: &Yaml) -> Vec<(String, &Yaml)> {
    let mut found = Vec::new();
    let mut open = vec![(String::new(), document)];
    while let Some((prefix, value)) = open.pop() {
        match value.as_hash().filter(|table| !table.is_empty() && !WHOLE.contains(&prefix.as_str())) {
            Some(table) => {
                let inner = table.iter().map(|(key, value)| {
                    let key = rules::scalar(key).unwrap_or_else(|| "?".to_owned());
                    (if prefix.is_empty() { key } else { format!("{prefix}.{key}") }, value)
                });
                let mut inner: Vec<_> = inner.collect();
                inner.reverse();
                open.append(&mut inner);
            }
            None => found.push((prefix, value)),
        }
    }
    found
}

#[cfg(test)]
#[allow(clippy::needless_raw_string_hashes, reason = "expect-test writes them so")]
#[path = "import/tests.rs"]
mod tests;
