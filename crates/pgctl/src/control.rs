//! What `pg_control` says, as `pg_controldata` prints it; works on a server that is stopped or running.

use std::fmt;
use std::path::Path;
use std::str::FromStr;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::error::PgError;
use crate::install::Installation;
use crate::program::Program;
use crate::user::OsUser;
use crate::wal::{Lsn, SystemId, Timeline};

/// What the control file says the server was doing when it last wrote it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum DbState {
    /// Just made by initdb, or starting up.
    Starting,
    /// Cleanly stopped as a primary.
    ShutDown,
    /// Cleanly stopped as a standby.
    ShutDownInRecovery,
    /// Stopping; when nothing runs, it crashed then.
    ShuttingDown,
    /// Recovering from a crash.
    InCrashRecovery,
    /// Following as a standby; when nothing runs, it crashed then.
    InArchiveRecovery,
    /// Running as a primary; when nothing runs, it crashed then.
    InProduction,
    /// Words that this version does not know.
    Unknown,
}

impl DbState {
    /// Reads the number at the end of the file's head (`DBState`, pg_control.h).
    fn of_head(head: &[u8; STATE_ENDS]) -> Self {
        match head.last_chunk().map(|number| u32::from_ne_bytes(*number)) {
            Some(0) => Self::Starting,
            Some(1) => Self::ShutDown,
            Some(2) => Self::ShutDownInRecovery,
            Some(3) => Self::ShuttingDown,
            Some(4) => Self::InCrashRecovery,
            Some(5) => Self::InArchiveRecovery,
            Some(6) => Self::InProduction,
            Some(_) | None => Self::Unknown,
        }
    }

    /// Says whether the server ended in an orderly way.
    pub const fn is_clean(self) -> bool {
        matches!(self, Self::ShutDown | Self::ShutDownInRecovery)
    }

    fn of_words(words: &str) -> Self {
        match words {
            "starting up" => Self::Starting,
            "shut down" => Self::ShutDown,
            "shut down in recovery" => Self::ShutDownInRecovery,
            "shutting down" => Self::ShuttingDown,
            "in crash recovery" => Self::InCrashRecovery,
            "in archive recovery" => Self::InArchiveRecovery,
            "in production" => Self::InProduction,
            _ => Self::Unknown,
        }
    }
}

impl fmt::Display for DbState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Starting => "starting up",
            Self::ShutDown => "shut down",
            Self::ShutDownInRecovery => "shut down in recovery",
            Self::ShuttingDown => "shutting down",
            Self::InCrashRecovery => "in crash recovery",
            Self::InArchiveRecovery => "in archive recovery",
            Self::InProduction => "in production",
            Self::Unknown => "in an unknown state",
        })
    }
}

/// Reads from the file itself what the server is doing: for looks at one that does not answer yet, which a program
/// each time would cost too much. Nothing when the file cannot be read.
pub fn state_now(data_dir: &Path) -> Option<DbState> {
    let mut head = [0; STATE_ENDS];
    let mut file = std::fs::File::open(data_dir.join("global/pg_control")).ok()?;
    std::io::Read::read_exact(&mut file, &mut head).ok()?;
    Some(DbState::of_head(&head))
}

/// The file begins with the system identifier (8 bytes), the versions of the format and of the catalog (4 each) and
/// the state (4), in the machine's own order, from Postgres 9.4 to 18 (`ControlFileData`, pg_control.h).
const STATE_ENDS: usize = 20;

/// Settings of the primary that a standby must not go below.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct StandbyMinimums {
    /// `max_connections`.
    pub max_connections: u32,
    /// `max_worker_processes`.
    pub max_worker_processes: u32,
    /// `max_wal_senders`.
    pub max_wal_senders: u32,
    /// `max_prepared_transactions`.
    pub max_prepared_transactions: u32,
    /// `max_locks_per_transaction`.
    pub max_locks_per_transaction: u32,
}

/// What the control file of a data directory says.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ControlData {
    /// The version of the control file's format, such as 1300.
    pub format: u32,
    /// The number that initdb gave the data directory.
    pub system_id: SystemId,
    /// What the server was doing.
    pub state: DbState,
    /// Where the latest checkpoint record begins.
    pub checkpoint: Lsn,
    /// Where replay after that checkpoint begins.
    pub redo: Lsn,
    /// The timeline of the latest checkpoint.
    pub timeline: Timeline,
    /// The timeline before that.
    pub previous_timeline: Timeline,
    /// How far a standby must replay before it may be used; 0/0 on a primary.
    pub min_recovery: Lsn,
    /// The timeline of `min_recovery`; 0 on a primary.
    pub min_recovery_timeline: Timeline,
    /// The size of a WAL segment in bytes.
    pub wal_segment_size: u64,
    /// Whether data pages carry checksums.
    pub checksums: bool,
    /// Whether hint bits are logged.
    pub wal_log_hints: bool,
    /// `wal_level` at the last start, such as `replica`.
    pub wal_level: String,
    /// What a standby of this data must not go below.
    pub minimums: StandbyMinimums,
}

impl ControlData {
    /// Parses what `pg_controldata` prints with `LC_ALL=C`, of Postgres 13 to 18.
    ///
    /// # Errors
    /// [`PgError::Unexpected`] naming the line that is missing or unreadable.
    pub fn parse(text: &str) -> Result<Self, PgError> {
        let lines = Lines(text);
        Ok(Self {
            format: lines.get("pg_control version number")?,
            system_id: lines.get("Database system identifier")?,
            state: DbState::of_words(lines.text("Database cluster state")?),
            checkpoint: lines.get("Latest checkpoint location")?,
            redo: lines.get("Latest checkpoint's REDO location")?,
            timeline: Timeline::new(lines.get("Latest checkpoint's TimeLineID")?),
            previous_timeline: Timeline::new(lines.get("Latest checkpoint's PrevTimeLineID")?),
            min_recovery: lines.get("Minimum recovery ending location")?,
            min_recovery_timeline: Timeline::new(lines.get("Min recovery ending loc's timeline")?),
            wal_segment_size: lines.get("Bytes per WAL segment")?,
            checksums: lines.get::<u32>("Data page checksum version")? != 0,
            wal_log_hints: lines.text("wal_log_hints setting")? == "on",
            wal_level: lines.text("wal_level setting")?.to_owned(),
            minimums: StandbyMinimums {
                max_connections: lines.get("max_connections setting")?,
                max_worker_processes: lines.get("max_worker_processes setting")?,
                max_wal_senders: lines.get("max_wal_senders setting")?,
                max_prepared_transactions: lines.get("max_prepared_xacts setting")?,
                max_locks_per_transaction: lines.get("max_locks_per_xact setting")?,
            },
        })
    }

    /// Says whether a stopped server with this control file did not end in an orderly way.
    pub const fn crashed(&self) -> bool {
        !self.state.is_clean()
    }

    /// Says whether `pg_rewind` may work on this data.
    pub const fn can_rewind(&self) -> bool {
        self.checksums || self.wal_log_hints
    }
}

struct Lines<'a>(&'a str);

impl<'a> Lines<'a> {
    fn text(&self, label: &str) -> Result<&'a str, PgError> {
        self.0
            .lines()
            .find_map(|line| line.strip_prefix(label)?.strip_prefix(':'))
            .map(str::trim)
            .ok_or_else(|| PgError::unexpected("read the control file", format!("no line `{label}`")))
    }

    fn get<T: FromStr>(&self, label: &str) -> Result<T, PgError> {
        let value = self.text(label)?;
        let bad = |_| PgError::unexpected("read the control file", format!("`{label}` is `{value}`"));
        value.parse().map_err(bad)
    }
}

/// Runs `pg_controldata` on a data directory.
///
/// # Errors
/// Those of [`Program::run`], and [`PgError::Unexpected`] when its output is not understood.
pub async fn read_control(
    install: &Installation,
    data_dir: &Path,
    user: &OsUser,
    limit: Duration,
) -> Result<ControlData, PgError> {
    let program = Program::new(install.program("pg_controldata"), user).arg("-D").arg(data_dir).limit(limit);
    ControlData::parse(&program.run().await?.stdout)
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    #[test]
    fn reads_the_state_from_the_head_of_the_file() {
        let check = |number: u32, words: &str| {
            let mut head = [7; STATE_ENDS];
            head[16..].copy_from_slice(&number.to_ne_bytes());
            assert_eq!(DbState::of_head(&head), DbState::of_words(words), "{number}");
        };
        // The order of `dbState()` in pg_controldata.c.
        check(0, "starting up");
        check(1, "shut down");
        check(2, "shut down in recovery");
        check(3, "shutting down");
        check(4, "in crash recovery");
        check(5, "in archive recovery");
        check(6, "in production");
        check(7, "unrecognized status code");
    }

    /// As Postgres 15 prints it; the lines that are read are the same from 13 to 18.
    pub(crate) const FIFTEEN: &str = "\
pg_control version number:            1300
Catalog version number:               202209061
Database system identifier:           7423474350493388827
Database cluster state:               in archive recovery
pg_control last modified:             Sat Nov 21 07:00:00 2026
Latest checkpoint location:           0/3000060
Latest checkpoint's REDO location:    0/3000028
Latest checkpoint's REDO WAL file:    000000020000000000000003
Latest checkpoint's TimeLineID:       2
Latest checkpoint's PrevTimeLineID:   1
Latest checkpoint's full_page_writes: on
Time of latest checkpoint:            Sat Nov 21 07:00:00 2026
Minimum recovery ending location:     0/3000138
Min recovery ending loc's timeline:   2
Backup start location:                0/0
wal_level setting:                    replica
wal_log_hints setting:                on
max_connections setting:              100
max_worker_processes setting:         8
max_wal_senders setting:              10
max_prepared_xacts setting:           0
max_locks_per_xact setting:           64
Database block size:                  8192
WAL block size:                       8192
Bytes per WAL segment:                16777216
Data page checksum version:           1
";

    #[test]
    fn parses_what_pg_controldata_prints() {
        let control = ControlData::parse(FIFTEEN).unwrap();
        assert_eq!(control.system_id, SystemId::new(7_423_474_350_493_388_827));
        assert_eq!(control.state, DbState::InArchiveRecovery);
        assert!(control.crashed() && control.can_rewind() && control.checksums);
        assert_eq!(control.redo, "0/3000028".parse().unwrap());
        assert_eq!((control.timeline.get(), control.previous_timeline.get()), (2, 1));
        assert_eq!(control.min_recovery, "0/3000138".parse().unwrap());
        assert_eq!(control.minimums.max_locks_per_transaction, 64);
    }

    #[test]
    fn parses_the_other_versions() {
        // 17 has a new format number; 18 pads locations and adds a line.
        let seventeen = FIFTEEN.replace("1300\n", "1700\n");
        assert_eq!(ControlData::parse(&seventeen).unwrap().format, 1700);
        let eighteen = FIFTEEN.replace("1300\n", "1800\n").replace("0/3000060", "0/03000060")
            + "Default char data signedness:         signed\n";
        assert_eq!(ControlData::parse(&eighteen).unwrap().checkpoint, "0/3000060".parse().unwrap());
    }

    #[test]
    fn names_the_line_that_it_misses() {
        let text = FIFTEEN.replace("Bytes per WAL segment", "Segment bytes");
        let error = ControlData::parse(&text).unwrap_err().to_string();
        assert_eq!(error, "read the control file: no line `Bytes per WAL segment`");
    }

    #[test]
    fn knows_each_state() {
        for words in ["starting up", "shut down", "shut down in recovery", "shutting down", "in production"] {
            assert_eq!(DbState::of_words(words).to_string(), words);
        }
        assert!(!DbState::of_words("unrecognized status code").is_clean());
    }
}
