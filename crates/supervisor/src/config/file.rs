//! Reads TOML into entries that know their line, and collects what is wrong with them.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use toml::de::{DeTable, DeValue};

use super::nearest::nearest;
use super::problem::Problem;
use super::{Environment, keys, tags, units};

/// A value as it was written.
#[derive(Clone, Debug)]
enum Value {
    Text(String),
    Integer(String),
    Float(String),
    Boolean(bool),
    List(Vec<Value>),
    /// Something no key takes: a date, a table in a list.
    Other(&'static str),
}

impl Value {
    fn of(value: &DeValue<'_>) -> Self {
        match value {
            DeValue::String(text) => Self::Text(text.to_string()),
            DeValue::Integer(number) => {
                let decimal = i64::from_str_radix(number.as_str(), number.radix());
                Self::Integer(decimal.map_or_else(|_| number.as_str().to_owned(), |n| n.to_string()))
            }
            DeValue::Float(number) => Self::Float(number.as_str().to_owned()),
            DeValue::Boolean(value) => Self::Boolean(*value),
            DeValue::Array(items) => Self::List(items.iter().map(|item| Self::of(item.get_ref())).collect()),
            DeValue::Datetime(_) => Self::Other("a date"),
            DeValue::Table(_) => Self::Other("a table"),
        }
    }

    fn kind(&self) -> &'static str {
        match self {
            Self::Text(_) => "a string",
            Self::Integer(_) => "an integer",
            Self::Float(_) => "a number",
            Self::Boolean(_) => "true or false",
            Self::List(_) => "a list",
            Self::Other(kind) => kind,
        }
    }
}

/// Where a value was set.
#[derive(Clone, Debug, Default)]
struct Origin {
    line: Option<usize>,
    variable: Option<String>,
}

/// All values of a file and the environment, and the problems found so far.
pub(super) struct Entries {
    values: BTreeMap<String, Value>,
    origins: BTreeMap<String, Origin>,
    problems: Vec<Problem>,
}

impl Entries {
    /// Reads a text; what is not TOML or not a known key becomes a problem.
    pub(super) fn read(text: &str, env: &Environment) -> Self {
        let mut entries = Self { values: BTreeMap::new(), origins: BTreeMap::new(), problems: Vec::new() };
        let (table, errors) = DeTable::parse_recoverable(text);
        for error in &errors {
            let line = error.span().map(|span| line_of(text, &span));
            entries.problems.push(Problem {
                line,
                variable: None,
                message: error.message().to_owned(),
                hint: Some(
                    "strings and sizes need quotes: name = \"pg-1\"; a table is [node] on a line of its own"
                        .to_owned(),
                ),
            });
        }
        entries.flatten(text, "", table.get_ref());
        entries.override_from(env);
        entries
    }

    /// Says whether the text was TOML at all.
    pub(super) fn into_problems(self) -> Vec<Problem> {
        self.problems
    }

    fn flatten(&mut self, text: &str, prefix: &str, table: &DeTable<'_>) {
        for (name, value) in table {
            let key = format!("{prefix}{}", name.get_ref());
            let line = Some(line_of(text, &name.span()));
            let origin = Origin { line, variable: None };
            match value.get_ref() {
                // An extension's parameter without quotes, `pg_stat_statements.max = 5`, is a table in TOML.
                DeValue::Table(inner) if keys::is_table(&key) || prefix.starts_with(keys::PARAMETERS) => {
                    self.flatten(text, &format!("{key}."), inner);
                }
                _ if keys::is_value(&key) => {
                    self.origins.insert(key.clone(), origin);
                    self.values.insert(key, Value::of(value.get_ref()));
                }
                _ if keys::is_table(&key) => {
                    let message = format!("`{key}` is a table: write [{key}] on a line of its own");
                    self.problems.push(Problem { line, variable: None, message, hint: None });
                }
                DeValue::Table(_)
                | DeValue::String(_)
                | DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_)
                | DeValue::Array(_) => self.unknown(prefix, name.get_ref(), line),
            }
        }
    }

    fn unknown(&mut self, prefix: &str, name: &str, line: Option<usize>) {
        let table = prefix.trim_end_matches('.');
        let siblings: BTreeSet<&str> = keys::KEYS
            .iter()
            .chain(&keys::FREE)
            .filter_map(|known| {
                known
                    .trim_end_matches('.')
                    .strip_prefix(prefix)
                    .filter(|rest| !rest.is_empty() && !rest.contains('.'))
            })
            .collect();
        let elsewhere = keys::KEYS.iter().find(|known| known.rsplit('.').next() == Some(name));
        let hint = match (nearest(name, siblings.iter().copied()), elsewhere) {
            (Some(known), _) => Some(format!("did you mean `{known}`?")),
            (None, Some(known)) => {
                known.rsplit_once('.').map(|(table, name)| format!("`{name}` belongs in [{table}]"))
            }
            (None, None) => {
                let known = siblings.into_iter().collect::<Vec<_>>().join(", ");
                let place = if table.is_empty() { "outside of the tables" } else { "there" };
                Some(format!("known {place}: {known}; deploy/rhone.example.toml shows every key"))
            }
        };
        let place = if table.is_empty() { String::new() } else { format!(" in [{table}]") };
        let message = format!("unknown key `{name}`{place}");
        self.problems.push(Problem { line, variable: None, message, hint });
    }

    /// Lets `RHONE_…` variables override the file; an empty one counts as unset.
    fn override_from(&mut self, env: &Environment) {
        for key in keys::KEYS.iter().filter(|key| keys::is_value(key)) {
            if let Some(value) = env.get(&keys::variable(key)) {
                self.set_from_env(key, &keys::variable(key), value);
            }
        }
        for (variable, value) in env {
            for table in keys::FREE {
                if let Some(name) =
                    variable.strip_prefix(&keys::variable(table)).filter(|name| !name.is_empty())
                {
                    let name = name.to_lowercase();
                    let known = if table == tags::TABLE { tags::known(&name) } else { None };
                    if known.is_some() && !value.is_empty() {
                        // The file may spell it in another way.
                        self.values.retain(|key, _| {
                            key.strip_prefix(table).is_none_or(|tag| tags::known(tag) != known)
                        });
                    }
                    self.set_from_env(&format!("{table}{}", known.unwrap_or(&name)), variable, value);
                }
            }
        }
    }

    fn set_from_env(&mut self, key: &str, variable: &str, value: &str) {
        if !value.is_empty() {
            self.values.insert(key.to_owned(), Value::Text(value.to_owned()));
            self.origins.insert(key.to_owned(), Origin { line: None, variable: Some(variable.to_owned()) });
        }
    }

    /// Says whether a variable set the key.
    pub(super) fn is_from_environment(&self, key: &str) -> bool {
        self.origins.get(key).is_some_and(|origin| origin.variable.is_some())
    }

    /// Says whether the key was set at all, well or not.
    pub(super) fn is_set(&self, key: &str) -> bool {
        self.origins.contains_key(key)
    }

    /// Records a problem with a key's value, at the place where it was set.
    pub(super) fn complain(&mut self, key: &str, message: impl Into<String>, hint: Option<&str>) {
        let origin = self.origins.get(key).cloned().unwrap_or_default();
        self.problems.push(Problem {
            line: origin.line,
            variable: origin.variable,
            message: message.into(),
            hint: hint.map(str::to_owned),
        });
    }

    /// Adds to a problem where the key that its message names first was set.
    pub(super) fn located(&self, problem: Problem) -> Problem {
        let key = problem.message.split('`').nth(1).unwrap_or_default();
        let Some(origin) = self.origins.get(key).filter(|_| problem.line.is_none()) else { return problem };
        Problem { line: origin.line, variable: origin.variable.clone(), ..problem }
    }

    /// Records that a key must be set; silent when it was set badly, which is known already.
    pub(super) fn missing(&mut self, key: &str, example: &str) {
        if !self.is_set(key) {
            let place = key.rsplit_once('.').map_or_else(String::new, |(table, _)| format!(" in [{table}]"));
            let name = key.rsplit('.').next().unwrap_or(key);
            let hint = format!("write {name} = {example}{place}, or set {}", keys::variable(key));
            self.complain(key, format!("`{key}` is missing"), Some(&hint));
        }
    }

    fn wrong_kind(&mut self, key: &str, value: &Value, wanted: &str) {
        self.complain(key, format!("`{key}` must be {wanted}, not {}", value.kind()), None);
    }

    /// Takes a string; an empty one is refused.
    pub(super) fn text(&mut self, key: &str) -> Option<String> {
        self.parsed(key, |text| Ok(text.to_owned()))
    }

    /// Takes a string and parses it; the error text is completed with the key.
    pub(super) fn parsed<T>(&mut self, key: &str, parse: impl Fn(&str) -> Result<T, String>) -> Option<T> {
        match self.values.remove(key)? {
            Value::Text(text) if text.trim().is_empty() => {
                self.complain(key, format!("`{key}` is empty"), Some("write a value, or remove the line"));
                None
            }
            Value::Text(text) => match parse(text.trim()) {
                Ok(value) => Some(value),
                Err(why) => {
                    self.complain(key, format!("`{key}`: {why}"), None);
                    None
                }
            },
            // A bare number where a unit is wanted: the parser explains the units.
            Value::Integer(number) => {
                if let Err(why) = parse(&number) {
                    self.complain(key, format!("`{key}`: {why}"), None);
                    None
                } else {
                    self.wrong_kind(key, &Value::Integer(number), "a string");
                    None
                }
            }
            other @ (Value::Float(_) | Value::Boolean(_) | Value::List(_) | Value::Other(_)) => {
                self.wrong_kind(key, &other, "a string");
                None
            }
        }
    }

    /// Takes a size; a number without a unit is told what it would be with one.
    pub(super) fn size(&mut self, key: &str) -> Option<u64> {
        let given = match self.values.get(key) {
            Some(Value::Text(text) | Value::Integer(text)) => units::with_unit(text),
            Some(Value::Float(_) | Value::Boolean(_) | Value::List(_) | Value::Other(_)) | None => None,
        };
        let Some(unit) = given else { return self.parsed(key, units::parse_size) };
        let _seen = self.values.remove(key);
        let message = format!("`{key}`: a size has a unit: 512kB, 10MB, 1GB");
        self.complain(key, message, Some(&format!("that many bytes are \"{unit}\", with the quotes")));
        None
    }

    /// Takes an integer within a range.
    pub(super) fn integer(&mut self, key: &str, range: Range<u32>) -> Option<u32> {
        let value = self.values.remove(key)?;
        let (Value::Integer(text) | Value::Text(text)) = &value else {
            self.wrong_kind(key, &value, "an integer");
            return None;
        };
        let from_env = self.origins.get(key).is_some_and(|origin| origin.variable.is_some());
        if matches!(value, Value::Text(_)) && !from_env {
            self.wrong_kind(key, &value, "an integer");
            return None;
        }
        match text.trim().parse::<u32>() {
            Ok(number) if range.contains(&number) => Some(number),
            Ok(_) | Err(_) => {
                let last = range.end.saturating_sub(1);
                self.complain(key, format!("`{key}` is {text}; it must be {} to {last}", range.start), None);
                None
            }
        }
    }

    /// Takes a boolean.
    pub(super) fn boolean(&mut self, key: &str) -> Option<bool> {
        match self.values.remove(key)? {
            Value::Boolean(value) => Some(value),
            Value::Text(text) if text == "true" => Some(true),
            Value::Text(text) if text == "false" => Some(false),
            other @ (Value::Text(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::List(_)
            | Value::Other(_)) => {
                self.wrong_kind(key, &other, "true or false");
                None
            }
        }
    }

    /// Takes a list of strings; from the environment as [`listed`] reads it.
    pub(super) fn list(&mut self, key: &str) -> Option<Vec<String>> {
        let from_env = self.origins.get(key).is_some_and(|origin| origin.variable.is_some());
        match self.values.remove(key)? {
            Value::List(items) => {
                let mut texts = Vec::with_capacity(items.len());
                for item in items {
                    match item {
                        Value::Text(text) => texts.push(text),
                        other @ (Value::Integer(_)
                        | Value::Float(_)
                        | Value::Boolean(_)
                        | Value::List(_)
                        | Value::Other(_)) => {
                            self.wrong_kind(key, &other, "a list of strings");
                            return None;
                        }
                    }
                }
                Some(texts)
            }
            Value::Text(text) if from_env => match listed(&text, keys::parts_at_commas(key)) {
                Ok(items) => Some(items),
                Err(why) => {
                    let hint = "[\"…\", \"…\"] as in the file, or one on each line";
                    self.complain(key, format!("`{key}`: {why}"), Some(hint));
                    None
                }
            },
            other @ (Value::Text(_)
            | Value::Integer(_)
            | Value::Float(_)
            | Value::Boolean(_)
            | Value::Other(_)) => {
                self.wrong_kind(key, &other, "a list: [\"…\", \"…\"]");
                None
            }
        }
    }

    /// Takes all keys of one of the operator's own tables, each as text.
    pub(super) fn free(&mut self, table: &str) -> BTreeMap<String, String> {
        let keys: Vec<String> = self.values.keys().filter(|key| key.starts_with(table)).cloned().collect();
        let mut found = BTreeMap::new();
        for key in keys {
            let name = key.strip_prefix(table).unwrap_or(&key).to_owned();
            match self.values.remove(&key) {
                Some(Value::Text(text) | Value::Integer(text) | Value::Float(text)) => {
                    found.insert(name, text);
                }
                Some(Value::Boolean(value)) => {
                    found.insert(name, value.to_string());
                }
                Some(other @ (Value::List(_) | Value::Other(_))) => {
                    self.wrong_kind(&key, &other, "a string, a number or a boolean");
                }
                None => {}
            }
        }
        found
    }
}

/// Reads a list from a variable: as TOML writes one (`["…", "…"]`), else an element a line, else parted at
/// commas where no element can hold one.
fn listed(text: &str, at_commas: bool) -> Result<Vec<String>, String> {
    let quoted = text.trim().strip_prefix('[').map(str::trim_start);
    // An address may begin with a bracket: [fd00::11]:7400.
    if quoted.is_some_and(|rest| rest.starts_with(['"', '\'', ']'])) {
        let parsed = DeValue::parse(text.trim()).map_err(|error| error.message().to_owned())?;
        let DeValue::Array(items) = parsed.get_ref() else { return Err("that is no list".to_owned()) };
        return items
            .iter()
            .map(|item| match item.get_ref() {
                DeValue::String(text) => Ok(text.to_string()),
                DeValue::Integer(_)
                | DeValue::Float(_)
                | DeValue::Boolean(_)
                | DeValue::Datetime(_)
                | DeValue::Array(_)
                | DeValue::Table(_) => Err("a list of strings has each of them in quotes".to_owned()),
            })
            .collect();
    }
    let parts = |at: fn(char) -> bool| {
        text.split(at).map(str::trim).filter(|part| !part.is_empty()).map(str::to_owned).collect()
    };
    Ok(if at_commas { parts(|c| c == ',' || c == '\n') } else { parts(|c| c == '\n') })
}

/// Counts lines up to the start of a span, from 1.
fn line_of(text: &str, span: &Range<usize>) -> usize {
    let before = text.as_bytes().get(..span.start).unwrap_or_default();
    before.split(|byte| *byte == b'\n').count()
}
