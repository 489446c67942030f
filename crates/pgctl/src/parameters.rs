//! Checks values against what a server says of its own parameters (`pg_settings`).
//!
//! Pure, but for [`catalogue`], which asks. What passes here is what the server's own parser takes: a
//! value that it does not take is ignored at a reload and keeps the server from starting.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::connection::Session;
use crate::error::PgError;
use crate::probe::{field, rows};

/// One parameter, as `pg_settings` describes it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Parameter {
    /// Its name.
    pub name: String,
    /// The unit of a bare number: `8kB`, `ms`.
    pub unit: Option<String>,
    /// When it can be changed: `internal`, `postmaster`, `sighup`, `user` and the like.
    pub context: String,
    /// `bool`, `integer`, `real`, `enum` or `string`.
    pub kind: String,
    /// The least number.
    pub least: Option<String>,
    /// The greatest number.
    pub greatest: Option<String>,
    /// The words of an enum.
    pub words: Vec<String>,
    /// The value that runs, in `unit`.
    pub setting: String,
}

/// What a value means to the server.
#[derive(Clone, Debug, PartialEq)]
pub struct Checked {
    /// The value as it is to be written.
    pub value: String,
    /// The number in the parameter's unit, if it is one.
    pub number: Option<f64>,
    /// Whether it counts from the next start on only.
    pub restart: bool,
}

/// Between the words of an enum, as they are asked for.
const SEPARATOR: char = '\u{1f}';

/// Asks a server for its parameters.
///
/// # Errors
/// Those of [`Session::simple`].
pub async fn catalogue(session: &Session, limit: Duration) -> Result<Vec<Parameter>, PgError> {
    const SQL: &str = "SELECT name, unit, context, vartype, min_val, max_val, \
                       array_to_string(enumvals, E'\\x1f'), setting FROM pg_settings ORDER BY name";
    let messages = session.simple("read pg_settings", SQL, limit).await?;
    let found = rows(&messages).next().unwrap_or_default();
    Ok(found
        .iter()
        .filter_map(|row| {
            let words: String = field(row, 6).unwrap_or_default();
            Some(Parameter {
                name: field(row, 0)?,
                unit: field(row, 1),
                context: field(row, 2)?,
                kind: field(row, 3)?,
                least: field(row, 4),
                greatest: field(row, 5),
                words: words.split(SEPARATOR).filter(|word| !word.is_empty()).map(str::to_owned).collect(),
                setting: field(row, 7).unwrap_or_default(),
            })
        })
        .collect())
}

impl Parameter {
    /// Checks a value as the server would.
    ///
    /// # Errors
    /// Why not, in words that follow the parameter's name.
    pub fn check(&self, value: &str) -> Result<Checked, String> {
        let value = if self.kind == "string" { value } else { value.trim() };
        let restart = match self.context.as_str() {
            "internal" => {
                return Err("cannot be set: it is a property of the build or of the data".to_owned());
            }
            "postmaster" => true,
            _ => false,
        };
        if value.contains(['\n', '\r', '\0']) {
            return Err("must be one line".to_owned());
        }
        let plain = |number| Checked { value: value.to_owned(), number, restart };
        match self.kind.as_str() {
            "bool" => {
                truth(value).map(|_| plain(None)).ok_or_else(|| format!("is on or off, not \"{value}\""))
            }
            "enum" => {
                let known = self.words.iter().any(|word| word.eq_ignore_ascii_case(value));
                // Enums that were booleans once take those words too.
                let was_bool = truth(value)
                    .is_some_and(|on| self.words.iter().any(|w| w == if on { "on" } else { "off" }));
                if known || was_bool {
                    return Ok(plain(None));
                }
                Err(format!("is one of {}, not \"{value}\"", self.words.join(", ")))
            }
            "integer" | "real" => {
                let number = self.number(value)?;
                // A bare number is written as the server would print it.
                let bare = self.unit.is_none() && self.kind == "integer";
                let text = if bare { format!("{number}") } else { value.to_owned() };
                Ok(Checked { value: text, number: Some(number), restart })
            }
            _ => Ok(plain(None)),
        }
    }

    /// Returns the value that runs as a number in the parameter's unit.
    pub fn running(&self) -> Option<f64> {
        self.setting.parse().ok()
    }

    fn number(&self, value: &str) -> Result<f64, String> {
        let shape = || match &self.unit {
            Some(unit) => format!("is a number with a unit ({}), not \"{value}\"", units_like(unit)),
            None => format!("is a number, not \"{value}\""),
        };
        let (number, unit) = split_number(value).ok_or_else(shape)?;
        let mut number = match (&self.unit, unit) {
            (_, "") => number,
            (None, _) => return Err(format!("is a number without a unit, not \"{value}\"")),
            (Some(base), unit) => {
                let (from, to) = (scale(unit), scale(base));
                match (from, to) {
                    (Some((kind, from)), Some((same, to))) if kind == same => number * from / to,
                    _ => return Err(shape()),
                }
            }
        };
        if self.kind == "integer" {
            number = number.round_ties_even();
        }
        let bound = |text: &Option<String>| text.as_ref().and_then(|text| text.parse::<f64>().ok());
        let below = bound(&self.least).is_some_and(|least| number < least);
        let above = bound(&self.greatest).is_some_and(|greatest| number > greatest);
        if below || above || !number.is_finite() {
            let unit = self.unit.as_ref().map_or_else(String::new, |unit| format!(" (in {unit})"));
            let or = |text: &Option<String>| text.clone().unwrap_or_else(|| "?".to_owned());
            return Err(format!(
                "is between {} and {}{unit}; {value} is {number}",
                or(&self.least),
                or(&self.greatest)
            ));
        }
        Ok(number)
    }
}

/// Reads a boolean as the server does: any unambiguous beginning of its words.
fn truth(text: &str) -> Option<bool> {
    let text = text.to_ascii_lowercase();
    let begins = |word: &str, least: usize| text.len() >= least && word.starts_with(&text);
    if text == "1" || begins("true", 1) || begins("yes", 1) || text == "on" {
        Some(true)
    } else if text == "0" || begins("false", 1) || begins("no", 1) || begins("off", 2) {
        Some(false)
    } else {
        None
    }
}

/// Takes the number off the front of a value; what is left is its unit.
fn split_number(text: &str) -> Option<(f64, &str)> {
    if let Some(digits) = text.strip_prefix("0x").or_else(|| text.strip_prefix("0X")) {
        let end = digits.find(|char: char| !char.is_ascii_hexdigit()).unwrap_or(digits.len());
        let (number, unit) = digits.split_at(end);
        let number = u32::from_str_radix(number, 16).ok()?;
        return Some((f64::from(number), unit.trim()));
    }
    let end = text
        .char_indices()
        .find(|(at, char)| {
            !(char.is_ascii_digit() || *char == '.' || (*at == 0 && matches!(char, '-' | '+')))
        })
        .map_or(text.len(), |(at, _)| at);
    let (number, unit) = text.split_at(end);
    Some((number.parse().ok()?, unit.trim()))
}

/// What a unit measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Measure {
    Bytes,
    Time,
}

/// Returns what a unit measures, and how much of it: bytes, or microseconds. `8kB` is a unit too.
fn scale(unit: &str) -> Option<(Measure, f64)> {
    let digits = unit.find(|char: char| !char.is_ascii_digit()).unwrap_or(0);
    let (times, name) = unit.split_at(digits);
    let times: f64 = if times.is_empty() { 1.0 } else { times.parse().ok()? };
    let (measure, size) = match name {
        "B" => (Measure::Bytes, 1.0),
        "kB" => (Measure::Bytes, 1024.0),
        "MB" => (Measure::Bytes, 1_048_576.0),
        "GB" => (Measure::Bytes, 1_073_741_824.0),
        "TB" => (Measure::Bytes, 1_099_511_627_776.0),
        "us" => (Measure::Time, 1.0),
        "ms" => (Measure::Time, 1e3),
        "s" => (Measure::Time, 1e6),
        "min" => (Measure::Time, 6e7),
        "h" => (Measure::Time, 3.6e9),
        "d" => (Measure::Time, 8.64e10),
        _ => return None,
    };
    Some((measure, times * size))
}

fn units_like(unit: &str) -> &'static str {
    match scale(unit) {
        Some((Measure::Bytes, _)) => "B, kB, MB, GB, TB",
        Some((Measure::Time, _)) => "us, ms, s, min, h, d",
        None => "none",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `NAME KIND CONTEXT UNIT LEAST GREATEST`, `-` for nothing; a value; what comes of it.
    #[track_caller]
    fn check(parameter: &str, value: &str, expected: &str) {
        let words: Vec<&str> = parameter.split(' ').collect();
        let some = |text: &str| (text != "-").then(|| text.to_owned());
        let parameter = Parameter {
            name: words[0].to_owned(),
            kind: words[1].to_owned(),
            context: words[2].to_owned(),
            unit: some(words[3]),
            least: some(words[4]),
            greatest: some(words[5]),
            words: words[6..].iter().map(|word| (*word).to_owned()).collect(),
            setting: String::new(),
        };
        let text = match parameter.check(value) {
            Ok(checked) => {
                let number = checked.number.map_or_else(String::new, |number| format!(" = {number}"));
                format!("{}{number}{}", checked.value, if checked.restart { ", restart" } else { "" })
            }
            Err(why) => why,
        };
        assert_eq!(text, expected, "{value}");
    }

    #[test]
    fn numbers_have_ranges_and_units() {
        let connections = "max_connections integer postmaster - 1 262143";
        check(connections, "200", "200 = 200, restart");
        check(connections, " 0x64 ", "100 = 100, restart");
        check(connections, "0", "is between 1 and 262143; 0 is 0");
        check(connections, "many", "is a number, not \"many\"");
        check(connections, "", "is a number, not \"\"");
        check(connections, "5GB", "is a number without a unit, not \"5GB\"");
        let memory = "work_mem integer user kB 64 2147483647";
        check(memory, "64MB", "64MB = 65536");
        check(memory, "1.5 MB", "1.5 MB = 1536");
        check(memory, "8kB", "is between 64 and 2147483647 (in kB); 8kB is 8");
        check(memory, "64mb", "is a number with a unit (B, kB, MB, GB, TB), not \"64mb\""); // as the server has it
        check(memory, "5min", "is a number with a unit (B, kB, MB, GB, TB), not \"5min\"");
        check("shared_buffers integer postmaster 8kB 16 1073741823", "128MB", "128MB = 16384, restart");
        check("deadlock_timeout integer superuser ms 1 2147483647", "2s", "2s = 2000");
        check("checkpoint_timeout integer sighup s 30 86400", "1min", "1min = 60");
        check(
            "autovacuum_naptime integer sighup s 1 2147483",
            "500ms",
            "is between 1 and 2147483 (in s); 500ms is 0",
        );
        check("random_page_cost real user - 0 1.79769e+308", "1.1", "1.1 = 1.1");
        check("seq_page_cost real user - 0 1.79769e+308", "-1", "is between 0 and 1.79769e+308; -1 is -1");
    }

    #[test]
    fn words_are_those_that_the_server_knows() {
        check("jit bool user - - -", "of", "of");
        check("jit bool user - - -", "o", "is on or off, not \"o\"");
        let level = "wal_level enum postmaster - - - minimal replica logical";
        check(level, "Logical", "Logical, restart");
        check(level, "archive", "is one of minimal, replica, logical, not \"archive\"");
        check("synchronous_commit enum user - - - local remote_write remote_apply on off", "true", "true");
        check(
            "block_size integer internal - 8192 8192",
            "8192",
            "cannot be set: it is a property of the build or of the data",
        );
        check("log_line_prefix string sighup - - -", "%m [%p] ", "%m [%p] ");
        check("log_line_prefix string sighup - - -", "a\nb", "must be one line");
    }
}
