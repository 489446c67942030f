//! ✦ The new file as text.

use std::fmt::Write;

use super::rules::Lines;

/// The tables in the order in which people read them, and the keys that come first in each.
const TABLES: [(&str, &[&str]); 8] = [
    ("", &["cluster"]),
    ("node", &["name", "state-dir", "listen", "advertise", "http", "peers"]),
    ("node.tags", &[]),
    ("postgres", &["bin-dir", "data-dir", "listen", "advertise", "socket-dir", "superuser", "priority"]),
    ("hooks", &[]),
    ("tls", &["ca", "cert", "key", "insecure"]),
    ("bootstrap", &["sync", "sync-required", "max-lag-on-failover", "pg-hba", "pg-ident"]),
    ("bootstrap.postgres", &[]),
];

/// Renders all lines.
pub(super) fn file(lines: &Lines) -> String {
    let mut text =
        "# Translated from a configuration of Patroni's; `rhone check -c FILE` says whether it is sound.\n"
            .to_owned();
    for (table, first) in TABLES {
        let Some(values) = lines.get(table) else { continue };
        if !table.is_empty() {
            // Writing to a String cannot fail.
            let _ok = writeln!(text, "\n[{table}]");
        }
        let ordered = first.iter().filter_map(|key| values.get_key_value(*key));
        let rest = values.iter().filter(|(key, _)| !first.contains(&key.as_str()));
        for (key, value) in ordered.chain(rest) {
            let _ok = writeln!(text, "{key} = {value}");
        }
    }
    text
}

/// Quotes a text as TOML's basic string.
pub(super) fn quoted(text: &str) -> String {
    let mut quoted = String::from("\"");
    for char in text.chars() {
        match char {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            char if char.is_control() => {
                let _ok = write!(quoted, "\\u{:04X}", u32::from(char));
            }
            char => quoted.push(char),
        }
    }
    quoted.push('"');
    quoted
}

/// Writes a key bare where TOML takes it so.
pub(super) fn key(text: &str) -> String {
    let bare = |c: char| c.is_ascii_alphanumeric() || c == '_' || c == '-';
    if !text.is_empty() && text.chars().all(bare) { text.to_owned() } else { quoted(text) }
}

/// Prints bytes in the largest unit that loses nothing.
pub(super) fn size(bytes: u64) -> String {
    for (unit, scale) in [("GB", 1 << 30), ("MB", 1 << 20), ("kB", 1 << 10)] {
        if bytes >= scale && bytes.is_multiple_of(scale) {
            return format!("{}{unit}", bytes / scale);
        }
    }
    format!("{bytes}B")
}
