//! Renders the managed part of `pg_hba.conf` and `pg_ident.conf`.
//!
//! The managed lines come first, so that nothing a user writes can lock Rhone or the replication out,
//! or let clients in while the gate is closed. What was there before is kept after them.

use crate::error::PgError;

/// Begins the managed part of a file.
const BEGIN: &str = "# --- managed by rhone: begin (do not edit) ---";
/// Ends it.
const END: &str = "# --- managed by rhone: end ---";
/// The map from operating system users to the superuser's role.
const MAP: &str = crate::ident_line::OWN_MAP;
/// What applies when the user gives no lines and the file had none.
const DEFAULT_LINES: &str = "\
local all all peer
host all all 127.0.0.1/32 scram-sha-256
host all all ::1/128 scram-sha-256";

/// Whether clients may connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Gate {
    /// The user's own lines apply.
    Open,
    /// Everybody but Rhone and the replication is rejected.
    Closed,
}

impl Gate {
    /// Reads from a `pg_hba.conf` whether clients are let in: closed unless its managed part is there and
    /// rejects nobody.
    pub fn of(text: &str) -> Self {
        let managed = text.split_once(BEGIN).and_then(|(_, rest)| rest.split_once(END));
        match managed {
            Some((managed, _)) if !managed.lines().any(|line| line.ends_with(" reject")) => Self::Open,
            Some(_) | None => Self::Closed,
        }
    }
}

/// Who may connect to the server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct AccessRules {
    /// The superuser's role.
    pub superuser: String,
    /// The operating system users that may be the superuser over the Unix socket.
    pub os_users: Vec<String>,
    /// The replication role.
    pub replicator: String,
    /// The role that `pg_rewind` connects as.
    pub rewinder: String,
    /// The user's lines; none keeps what the file has.
    pub lines: Option<Vec<String>>,
    /// The user's lines of `pg_ident.conf`; none keeps what the file has.
    pub ident_lines: Option<Vec<String>>,
}

impl AccessRules {
    /// Renders `pg_hba.conf` over its present content.
    ///
    /// # Errors
    /// [`PgError::Refused`] when a name or line has a line break or quote in it.
    pub fn render_hba(&self, gate: Gate, present: &str) -> Result<String, PgError> {
        let superuser = quote(&self.superuser)?;
        let (replicator, rewinder) = (quote(&self.replicator)?, quote(&self.rewinder)?);
        let mut managed = vec![
            format!("local all {superuser} peer map={MAP}"),
            format!("local replication {superuser} peer map={MAP}"),
            format!("host replication {replicator} all scram-sha-256"),
            format!("host postgres {rewinder} all scram-sha-256"),
        ];
        if gate == Gate::Closed {
            managed.push("local all all reject".into());
            managed.push("host all all all reject".into());
        }
        let kept = match &self.lines {
            Some(lines) => one_line_each(lines, "a pg_hba line must be one line")?,
            None => outside(present),
        };
        let rest = if kept.trim().is_empty() { DEFAULT_LINES } else { kept.trim_end() };
        Ok(assemble(&managed, rest))
    }

    /// Renders `pg_ident.conf` over its present content.
    ///
    /// # Errors
    /// [`PgError::Refused`] when a name or line has a line break or quote in it.
    pub fn render_ident(&self, present: &str) -> Result<String, PgError> {
        let superuser = quote(&self.superuser)?;
        let mut managed = Vec::new();
        for user in &self.os_users {
            let line = format!("{MAP} {} {superuser}", quote(user)?);
            if !managed.contains(&line) {
                managed.push(line);
            }
        }
        let kept = match &self.ident_lines {
            Some(lines) => one_line_each(lines, "a pg_ident line must be one line")?,
            None => outside(present),
        };
        Ok(assemble(&managed, kept.trim_end()))
    }
}

fn one_line_each(lines: &[String], reason: &str) -> Result<String, PgError> {
    match lines.iter().find(|line| line.contains(['\n', '\r', '\0'])) {
        Some(line) => Err(refused(line, reason)),
        None => Ok(lines.join("\n")),
    }
}

fn assemble(managed: &[String], rest: &str) -> String {
    let mut text = format!("{BEGIN}\n{}\n{END}\n", managed.join("\n"));
    if !rest.is_empty() {
        text.push_str(rest.trim_start_matches('\n'));
        text.push('\n');
    }
    text
}

/// Returns what a file has outside of the managed part.
fn outside(present: &str) -> String {
    let mut kept = Vec::new();
    let mut managed = false;
    for line in present.lines() {
        match line.trim() {
            BEGIN => managed = true,
            END => managed = false,
            _ if !managed => kept.push(line),
            _ => {}
        }
    }
    kept.join("\n")
}

/// Quotes a name, so that `all`, `replication`, `+x` and `@x` mean nothing but a name.
fn quote(name: &str) -> Result<String, PgError> {
    if name.is_empty() || name.contains(['"', '\n', '\r', '\0']) {
        return Err(refused(name, "it cannot be written in pg_hba.conf"));
    }
    Ok(format!("\"{name}\""))
}

fn refused(what: &str, reason: &str) -> PgError {
    PgError::Refused { what: format!("`{}`", what.escape_debug()), reason: reason.into() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use expect_test::expect;

    fn rules(lines: Option<&[&str]>) -> AccessRules {
        AccessRules {
            superuser: "postgres".into(),
            os_users: ["root", "postgres", "root"].map(Into::into).into(),
            replicator: "rhone_replicator".into(),
            rewinder: "rhone_rewind".into(),
            lines: lines.map(|lines| lines.iter().map(ToString::to_string).collect()),
            ident_lines: None,
        }
    }

    #[test]
    fn a_closed_gate_rejects_everybody_else_first() {
        let text =
            rules(Some(&["host all app 10.0.0.0/8 scram-sha-256"])).render_hba(Gate::Closed, "").unwrap();
        expect![[r#"
            # --- managed by rhone: begin (do not edit) ---
            local all "postgres" peer map=rhone
            local replication "postgres" peer map=rhone
            host replication "rhone_replicator" all scram-sha-256
            host postgres "rhone_rewind" all scram-sha-256
            local all all reject
            host all all all reject
            # --- managed by rhone: end ---
            host all app 10.0.0.0/8 scram-sha-256
        "#]]
        .assert_eq(&text);
    }

    #[test]
    fn keeps_what_an_adopted_server_had() {
        let old = "# mine\nhost all all 10.0.0.0/8 md5\n";
        let first = rules(None).render_hba(Gate::Open, old).unwrap();
        assert!(first.ends_with("# --- managed by rhone: end ---\n# mine\nhost all all 10.0.0.0/8 md5\n"));
        // Again and through the gate, the user's part stays as it is.
        let closed = rules(None).render_hba(Gate::Closed, &first).unwrap();
        assert_eq!(rules(None).render_hba(Gate::Open, &closed).unwrap(), first);
        let fresh = rules(None).render_hba(Gate::Open, "").unwrap();
        assert!(fresh.contains("local all all peer\n"));
    }

    #[test]
    fn maps_each_user_once() {
        let text = rules(None).render_ident("# MAPNAME\nold a b\n").unwrap();
        assert_eq!(text.matches("rhone \"root\" \"postgres\"").count(), 1);
        assert!(text.ends_with("# MAPNAME\nold a b\n"));
        let mut given = rules(None);
        given.ident_lines = Some(vec!["office ann app".to_owned()]);
        let replaced = given.render_ident(&text).unwrap();
        assert!(replaced.ends_with("end ---\noffice ann app\n"), "{replaced}");
        given.ident_lines = Some(vec!["office ann app\nrhone x postgres".to_owned()]);
        assert!(given.render_ident("").is_err());
        let mut nasty = rules(None);
        nasty.superuser = "a\"\nlocal all all trust".into();
        assert!(nasty.render_hba(Gate::Open, "").is_err() && nasty.render_ident("").is_err());
    }
}
