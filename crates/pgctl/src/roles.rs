//! Makes the roles that Rhone needs, and an application's database; changes nothing that is right.
//!
//! Passwords are hashed here, so that none reaches the server's log. Everything is named with its
//! schema or runs with `search_path = pg_catalog`, so that no planted function is called.

use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hmac::{Hmac, KeyInit as _, Mac as _};
use sha2::{Digest as _, Sha256};
use tokio_postgres::types::Type;

use crate::connection::{Session, Target};
use crate::error::PgError;
use crate::settings::quote_identifier;

/// The functions that `pg_rewind` calls on its source (documentation of `pg_rewind`).
const REWIND_FUNCTIONS: [&str; 4] = [
    "pg_catalog.pg_ls_dir(text, boolean, boolean)",
    "pg_catalog.pg_stat_file(text, boolean)",
    "pg_catalog.pg_read_binary_file(text)",
    "pg_catalog.pg_read_binary_file(text, bigint, bigint, boolean)",
];

/// A role that may log in.
#[derive(Clone, PartialEq, Eq)]
pub struct Login {
    /// Its name.
    pub name: String,
    /// Its password.
    pub password: String,
}

impl std::fmt::Debug for Login {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Login").field("name", &self.name).finish_non_exhaustive()
    }
}

/// Makes the replication role and the rewind role right; says whether anything had to be changed.
///
/// # Errors
/// Those of [`Session::query`].
pub async fn ensure_roles(
    session: &Session,
    replicator: &Login,
    rewinder: &Login,
    limit: Duration,
) -> Result<bool, PgError> {
    let mut changed = ensure_login(session, replicator, true, limit).await?;
    changed |= ensure_login(session, rewinder, false, limit).await?;
    for function in REWIND_FUNCTIONS {
        let operation = "grant what pg_rewind needs";
        let sql = "SELECT has_function_privilege($1::name, $2::text, 'EXECUTE')";
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&rewinder.name, Type::NAME), (&function, Type::TEXT)];
        let row = session.query_one(operation, sql, &parameters, limit).await?;
        if row.try_get::<_, bool>(0).map_err(|error| PgError::sql(operation, error))? {
            continue;
        }
        let grant = format!("GRANT EXECUTE ON FUNCTION {function} TO {}", quote_identifier(&rewinder.name));
        session.simple(operation, &grant, limit).await?;
        changed = true;
    }
    Ok(changed)
}

/// Makes one role right: it may log in, it may replicate or not, and it has this password.
///
/// # Errors
/// Those of [`Session::query`]; [`PgError::Refused`] for a superuser of that name.
pub async fn ensure_login(
    session: &Session,
    login: &Login,
    replication: bool,
    limit: Duration,
) -> Result<bool, PgError> {
    let operation = format!("make the role `{}`", login.name);
    let sql = "SELECT rolcanlogin, rolreplication, rolsuper, rolpassword FROM pg_authid WHERE rolname = $1";
    let rows = session.query(&operation, sql, &[(&login.name, Type::NAME)], limit).await?;
    let failed = |error| PgError::sql(&operation, error);
    let verb = match rows.first() {
        None => "CREATE",
        Some(row) => {
            let (can_login, replicates): (bool, bool) =
                (row.try_get(0).map_err(failed)?, row.try_get(1).map_err(failed)?);
            if row.try_get(2).map_err(failed)? {
                return Err(PgError::Refused {
                    what: format!("role `{}`", login.name),
                    reason: "it is a superuser, and its password would be changed".into(),
                });
            }
            let stored: Option<String> = row.try_get(3).map_err(failed)?;
            let known = stored.is_some_and(|stored| is_hash_of(&stored, &login.password));
            if can_login && replicates == replication && known {
                return Ok(false);
            }
            "ALTER"
        }
    };
    let hash = postgres_protocol::password::scram_sha_256(login.password.as_bytes());
    let may = if replication { "REPLICATION" } else { "NOREPLICATION" };
    // The hash is of letters, digits and `$:+/=` only.
    let sql = format!("{verb} ROLE {} LOGIN {may} PASSWORD '{hash}'", quote_identifier(&login.name));
    session.simple(&operation, &sql, limit).await?;
    Ok(true)
}

/// Makes a role that may log in and has no password, unless there is one of that name.
async fn ensure_role(session: &Session, name: &str, limit: Duration) -> Result<bool, PgError> {
    let operation = format!("make the role `{name}`");
    let sql = "SELECT 1 FROM pg_roles WHERE rolname = $1";
    let missing = session.query(&operation, sql, &[(&name, Type::NAME)], limit).await?.is_empty();
    if missing {
        session.simple(&operation, &format!("CREATE ROLE {} LOGIN", quote_identifier(name)), limit).await?;
    }
    Ok(missing)
}

/// Makes an application's role and the database that it owns; says whether anything had to be changed.
///
/// An owner whose `password` is empty is made without one; one that exists is left as it is, with the
/// password that somebody gave it: Postgres takes an empty one for an order to clear it.
///
/// # Errors
/// Those of [`ensure_login`].
pub async fn ensure_database(
    session: &Session,
    database: &str,
    owner: &Login,
    limit: Duration,
) -> Result<bool, PgError> {
    let mut changed = if owner.password.is_empty() {
        ensure_role(session, &owner.name, limit).await?
    } else {
        ensure_login(session, owner, false, limit).await?
    };
    let operation = format!("make the database `{database}`");
    let sql = "SELECT 1 FROM pg_database WHERE datname = $1";
    if session.query(&operation, sql, &[(&database, Type::NAME)], limit).await?.is_empty() {
        let (database, owner) = (quote_identifier(database), quote_identifier(&owner.name));
        session.simple(&operation, &format!("CREATE DATABASE {database} OWNER {owner}"), limit).await?;
        changed = true;
    }
    Ok(changed)
}

/// Opens a session that works on roles: its commits wait for nobody, since they come before the gate opens.
///
/// # Errors
/// Those of [`Session::open`].
pub async fn open_session(target: &Target, limit: Duration) -> Result<Session, PgError> {
    let session = Session::open(target, limit).await?;
    session.simple("prepare the session", "SET synchronous_commit = local", limit).await?;
    Ok(session)
}

/// Says whether `stored`, as in `pg_authid.rolpassword`, is a SCRAM-SHA-256 hash of this password
/// (RFC 5802; an ASCII password is its own normal form).
fn is_hash_of(stored: &str, password: &str) -> bool {
    let parse = || {
        let (head, keys) = stored.strip_prefix("SCRAM-SHA-256$")?.split_once('$')?;
        let (rounds, salt) = head.split_once(':')?;
        let (stored_key, _) = keys.split_once(':')?;
        let rounds: u32 = rounds.parse().ok().filter(|rounds| (1..=100_000).contains(rounds))?;
        let salted = salted_password(password.as_bytes(), &STANDARD.decode(salt).ok()?, rounds)?;
        let client_key = mac(&salted, &[b"Client Key"])?;
        Some(Sha256::digest(client_key).as_slice() == STANDARD.decode(stored_key).ok()?)
    };
    parse().unwrap_or(false)
}

fn salted_password(password: &[u8], salt: &[u8], rounds: u32) -> Option<[u8; 32]> {
    let mut round = mac(password, &[salt, &1_u32.to_be_bytes()])?;
    let mut sum = round;
    for _ in 1..rounds {
        round = mac(password, &[&round])?;
        for (left, right) in sum.iter_mut().zip(round) {
            *left ^= right;
        }
    }
    Some(sum)
}

fn mac(key: &[u8], parts: &[&[u8]]) -> Option<[u8; 32]> {
    let mut mac = Hmac::<Sha256>::new_from_slice(key).ok()?;
    for part in parts {
        mac.update(part);
    }
    Some(mac.finalize().into_bytes().into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn knows_the_hash_of_a_password() {
        let stored = postgres_protocol::password::scram_sha_256(b"pass'word");
        assert!(is_hash_of(&stored, "pass'word"));
        assert!(!is_hash_of(&stored, "password"));
        assert!(!is_hash_of("md5aabbcc", "password"));
        assert!(!is_hash_of("SCRAM-SHA-256$4096:x$y:z", "password"));
    }

    #[test]
    fn passwords_are_not_printed() {
        let login = Login { name: "a".into(), password: "secret".into() };
        assert!(!format!("{login:?}").contains("secret"));
    }
}
