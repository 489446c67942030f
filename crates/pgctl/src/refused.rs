//! What a running server does not take of its configuration files: it says so in views, and goes on with what it
//! had.

use std::time::Duration;

use tokio_postgres::SimpleQueryMessage;

use crate::connection::Session;
use crate::error::PgError;

/// How many lines are told.
const LIMIT: usize = 10;

/// Lines of the access rules, from version 10 on. The views read the files as they are now.
const HBA: &str = "SELECT 'pg_hba.conf line ' || line_number || ': ' || error FROM pg_hba_file_rules \
                   WHERE error IS NOT NULL ORDER BY line_number";

/// Lines of the user names, from version 15 on.
const IDENT: &str = "SELECT 'pg_ident.conf line ' || line_number || ': ' || error FROM pg_ident_file_mappings \
                     WHERE error IS NOT NULL ORDER BY line_number";

/// Settings; those that wait for a restart are told elsewhere.
const FILES: &str = "SELECT regexp_replace(sourcefile, '^.*/', '') || ' line ' || sourceline || ': ' || \
                     coalesce(name || ': ', '') || error FROM pg_file_settings WHERE error IS NOT NULL AND \
                     (name IS NULL OR lower(name) NOT IN (SELECT lower(name) FROM pg_settings WHERE context = 'postmaster')) \
                     ORDER BY seqno";

/// Returns the lines of its files that the server does not take, with its reasons.
///
/// # Errors
/// Those of [`Session::simple`].
pub async fn refused_lines(session: &Session, major: u32, limit: Duration) -> Result<Vec<String>, PgError> {
    let mut found = Vec::new();
    for (sql, since) in [(HBA, 10), (IDENT, 15), (FILES, 10)] {
        if major < since {
            continue;
        }
        let rows = session.simple("look for lines that the server does not take", sql, limit).await?;
        found.extend(rows.iter().filter_map(first_column));
    }
    found.truncate(LIMIT);
    Ok(found)
}

#[allow(clippy::wildcard_enum_match_arm, reason = "the library's enum is open")]
fn first_column(message: &SimpleQueryMessage) -> Option<String> {
    match message {
        SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
        _ => None,
    }
}
