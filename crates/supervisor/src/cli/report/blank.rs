//! ✦ Takes secrets out of a text: those that are known by their value, and what stands where secrets stand.
//!
//! It errs on the side of blanking: a report that says less is no harm.

use crate::config::Config;
use crate::runtime::secret::FILE_NAME;

/// What stands in a secret's place.
pub(super) const BLANK: &str = "[blanked]";

/// A shorter value is no secret, and would blank half the report.
const SHORTEST: usize = 3;

/// What the name of a secret holds, in lower case.
const NAMES: [&str; 10] = [
    "password",
    "passwd",
    "passphrase",
    "pwd",
    "secret",
    "token",
    "credential",
    "access_key",
    "api_key",
    "private_key",
];

/// What ends the name of something that only says where a secret is.
const PLACES: [&str; 3] = ["file", "path", "command"];

/// The secrets that this member has, by value.
#[derive(Default)]
pub(super) struct Secrets(Vec<String>);

impl Secrets {
    /// Reads the files that the configuration names; what cannot be read is not known here.
    pub(super) fn of(config: &Config) -> Self {
        let postgres = config.postgres.as_ref();
        let given = postgres.and_then(|postgres| postgres.replication_password_file.clone());
        let replication = given.unwrap_or_else(|| config.node.state_dir.join(FILE_NAME));
        let owner = config.bootstrap.database.as_ref().and_then(|database| database.password_file.clone());
        let files = std::iter::once(replication).chain(owner);
        let mut found: Vec<String> = files.filter_map(|file| std::fs::read_to_string(file).ok()).collect();
        let users =
            config.pooler.as_ref().and_then(|pooler| std::fs::read_to_string(&pooler.users_file).ok());
        for line in users.iter().flat_map(|text| text.lines()) {
            // "user" "password", with quotes doubled.
            let password = line.split_once("\" \"").map(|(_, rest)| rest.trim_end().trim_end_matches('"'));
            found.extend(password.map(|password| password.replace("\"\"", "\"")));
        }
        Self::known(&found)
    }

    /// Takes values.
    pub(super) fn known(values: &[String]) -> Self {
        let mut values: Vec<String> = values
            .iter()
            .map(|value| value.trim().to_owned())
            .filter(|value| value.len() >= SHORTEST)
            .collect();
        // One may hold another.
        values.sort_by_key(|value| std::cmp::Reverse(value.len()));
        Self(values)
    }

    /// Takes them out of a text.
    pub(super) fn blank(&self, text: &str) -> String {
        let mut text = text.to_owned();
        for value in &self.0 {
            text = text.replace(value.as_str(), BLANK);
            let in_json = serde_json::Value::from(value.as_str()).to_string();
            text = text.replace(in_json.trim_matches('"'), BLANK);
        }
        let text = named(&text);
        let text = addresses(&text);
        verifiers(&text)
    }
}

/// Blanks what follows the name of a secret.
fn named(text: &str) -> String {
    // Of the same length in bytes.
    let lower = text.to_ascii_lowercase();
    let mut out = String::with_capacity(text.len());
    let mut at = 0;
    loop {
        let rest = lower.get(at..).unwrap_or_default();
        let first = NAMES.iter().filter_map(|name| rest.find(name).map(|found| (found, name.len()))).min();
        let Some((found, length)) = first else { break };
        let named = at + found;
        let after = named + length;
        let name_end = after + rest_of_name(lower.get(after..).unwrap_or_default());
        let name = lower.get(named..name_end).unwrap_or_default();
        let before = lower.get(..named).unwrap_or_default();
        let word = before.rsplit(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).next();
        let flag = word.is_some_and(|word| word.starts_with("--"));
        let value = if PLACES.iter().any(|place| name.ends_with(place)) {
            None
        } else {
            value_of(text.get(name_end..).unwrap_or_default(), flag)
        };
        if let Some((begin, end)) = value {
            out.push_str(text.get(at..name_end + begin).unwrap_or_default());
            out.push_str(BLANK);
            at = name_end + end;
        } else {
            out.push_str(text.get(at..name_end).unwrap_or_default());
            at = name_end;
        }
    }
    out.push_str(text.get(at..).unwrap_or_default());
    out
}

fn rest_of_name(text: &str) -> usize {
    text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_' || c == '-')).unwrap_or(text.len())
}

/// Where in the text behind a name its value begins and ends; none: no value follows.
fn value_of(text: &str, flag: bool) -> Option<(usize, usize)> {
    let spaces = |c: char| c == ' ' || c == '\t';
    // The end of a quoted name.
    let mut rest = text.trim_start_matches(['\\', '"', '\'']).trim_start_matches(spaces);
    let assigned = rest.strip_prefix([':', '=']);
    if let Some(after) = assigned {
        rest = after.trim_start_matches(['=', '>']).trim_start_matches(spaces);
    } else if flag {
        rest = rest.trim_start_matches([',', ' ', '\t']);
    } else if !rest.starts_with(['\'', '$']) && !rest.starts_with("e'") && !rest.starts_with("E'") {
        return None;
    }
    let begin = text.len() - rest.len();
    let sql = assigned.is_none() && !flag;
    let length = if sql {
        // A literal of SQL, in any of its forms.
        rest.find('\n').unwrap_or(rest.len())
    } else {
        value_length(rest)
    };
    (length > 0).then_some((begin, begin + length))
}

/// How long a value is, with its quotes.
fn value_length(text: &str) -> usize {
    for quote in ["\"\"\"", "'''", "\\\"", "\"", "'"] {
        let Some(inner) = text.strip_prefix(quote) else { continue };
        let mut from = 0;
        while let Some(found) = inner.get(from..).and_then(|rest| rest.find(quote)) {
            let close = from + found;
            let escaped = quote == "\"" && inner.get(..close).is_some_and(|before| before.ends_with('\\'));
            let after = close + quote.len();
            let doubled = quote.len() == 1 && inner.get(after..).is_some_and(|rest| rest.starts_with(quote));
            if !escaped && !doubled {
                return quote.len() + after;
            }
            from = if doubled { after + quote.len() } else { after };
        }
        return text.find('\n').unwrap_or(text.len());
    }
    text.find(|c: char| c.is_whitespace() || ",;\"'&\\]})".contains(c)).unwrap_or(text.len())
}

/// Blanks the password of `scheme://user:password@host`.
fn addresses(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some((before, after)) = rest.split_once("://") {
        out.push_str(before);
        out.push_str("://");
        let end = after.find(|c: char| c.is_whitespace() || "\"'<>".contains(c)).unwrap_or(after.len());
        let (address, later) = after.split_at(end);
        match address.rsplit_once('@').and_then(|(who, host)| Some((who.split_once(':')?.0, host))) {
            Some((user, host)) => {
                out.push_str(user);
                out.push(':');
                out.push_str(BLANK);
                out.push('@');
                out.push_str(host);
            }
            None => out.push_str(address),
        }
        rest = later;
    }
    out.push_str(rest);
    out
}

/// Blanks what Postgres keeps of a password.
fn verifiers(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    while let Some(at) = ["SCRAM-SHA-256$", "md5"].iter().filter_map(|mark| rest.find(mark)).min() {
        let (before, after) = rest.split_at(at);
        out.push_str(before);
        let (mark, after) = after.split_at(if after.starts_with("md5") { 3 } else { 13 });
        let verifier = |c: char| c.is_ascii_alphanumeric() || "$:+/=".contains(c);
        let length = after.find(|c: char| !verifier(c)).unwrap_or(after.len());
        out.push_str(mark);
        if length >= 32 {
            out.push_str(BLANK);
            rest = after.get(length..).unwrap_or_default();
        } else {
            rest = after;
        }
    }
    out.push_str(rest);
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(text: &str, expected: &str) {
        let secrets = Secrets::known(&["s3cr3t\n".to_owned(), "ab".to_owned(), "qu\"ote".to_owned()]);
        assert_eq!(secrets.blank(text), expected.replace('#', BLANK), "{text}");
    }

    #[test]
    fn what_is_known_or_stands_where_secrets_stand_is_blanked() {
        check("a line with s3cr3t in it, ab too", "a line with # in it, ab too");
        check(r#"{"x":"qu\"ote"} qu"ote"#, r##"{"x":"#"} #"##);
        check("host=a password=hunter2 port=1", "host=a password=# port=1");
        check("password = \"two words\"\nx = 1", "password = #\nx = 1");
        check("replication-password-file = \"/etc/pw\"", "replication-password-file = \"/etc/pw\"");
        check("ssl_passphrase_command = 'cat /x'", "ssl_passphrase_command = 'cat /x'");
        check("ldapbindpasswd=hunter2 ldapserver=a", "ldapbindpasswd=# ldapserver=a");
        check("radiussecrets=\"a b\" x", "radiussecrets=# x");
        check(r#"{"a":"PGPASSWORD=\"two words\" cp"}"#, r#"{"a":"PGPASSWORD=# cp"}"#);
        check("AWS_SECRET_ACCESS_KEY=abc/def pgbackrest", "AWS_SECRET_ACCESS_KEY=# pgbackrest");
        check("[\"/bin/hook\", \"--token\", \"abc\"]", "[\"/bin/hook\", \"--token\", #]");
        check("tool --secret-key abc --to x", "tool --secret-key # --to x");
        check("STATEMENT: ALTER ROLE app PASSWORD 'it''s'", "STATEMENT: ALTER ROLE app PASSWORD #");
        check("ALTER ROLE app PASSWORD E'x\\'y';", "ALTER ROLE app PASSWORD #");
        check(
            "password authentication failed for user \"a\"",
            "password authentication failed for user \"a\"",
        );
        check("postgresql://app:hunt@er2@pg-1/app x@y", "postgresql://app:#@pg-1/app x@y");
        check("https://pg-1:8008/ and http://a@b/", "https://pg-1:8008/ and http://a@b/");
        check(
            "SCRAM-SHA-256$4096:c2FsdHNhbHRzYWx0c2FsdA==$AAAA:BBBB, scram-sha-256",
            "SCRAM-SHA-256#, scram-sha-256",
        );
        check("md5d41d8cd98f00b204e9800998ecf8427e md5", "md5# md5");
        check("password = '''\nhunter2\nmore'''\nx", "password = #\nx");
        check("secret = \"open", "secret = #");
        check("größe password=ü", "größe password=#");
    }
}
