//! ✦ Minor versions of Postgres that a cluster should not stay on: what they do to replication, to a rewind or to data,
//! and which version mends it.
//!
//! Only what the release notes say; each entry names those it is from (`https://www.postgresql.org/docs/release/15.10/`).
//! Fixes reach all supported major versions on the same day.

use super::Severity;

/// What is wrong with some minor versions.
struct Defect {
    /// Of a major version the first minor version that has it, and the first one that does not any more.
    versions: &'static [(u32, u32, u32)],
    /// What it does.
    what: &'static str,
}

/// All that are known, by the version that mends them.
const DEFECTS: [Defect; 6] = [
    // Release notes 15.4: "Fix confusion between empty (no rows) ranges and all-NULL ranges in BRIN indexes".
    Defect {
        versions: &[(15, 0, 4)],
        what: "searches for NULL by a BRIN index may miss rows (reindex it then)",
    },
    // Release notes 15.6 and 16.2, migration: "could have resulted in corruption of GIN indexes during concurrent updates".
    Defect {
        versions: &[(15, 0, 6), (16, 0, 2)],
        what: "concurrent updates may corrupt GIN indexes (reindex them then)",
    },
    // Release notes 15.10 and 17.2: "Avoid deleting still-needed WAL files during pg_rewind".
    Defect {
        versions: &[(15, 0, 10), (16, 0, 6), (17, 0, 2)],
        what: "pg_rewind may remove wal that a former primary needs to come back",
    },
    // Release notes 15.10 and 17.2: "Repair ABI break for extensions that work with struct ResultRelInfo", "Restore
    // functionality of ALTER {ROLE|DATABASE} SET role".
    Defect {
        versions: &[(15, 9, 10), (16, 5, 6), (17, 1, 2)],
        what: "ALTER ROLE … SET role is ignored, and extensions built for another minor version may crash",
    },
    // Release notes 15.13 and 17.5: "Fix race condition in handling of synchronous_standby_names immediately after
    // startup", "Avoid data loss when DDL operations that don't take a strong lock affect tables that are being
    // logically replicated".
    Defect {
        versions: &[(15, 0, 13), (16, 0, 9), (17, 0, 5)],
        what: "commits just after a start may not wait for standbys, and logical replication may lose changes beside DDL",
    },
    // Release notes 15.17, 17.9, 18.3: "Fix failure after replaying a multixid truncation record from WAL that was generated
    // by an older minor version"; 15.18, 17.10: "Fix race condition between WAL replay of checkpoints and multixact ID
    // creations" (on REL_18_STABLE commit 0852643e1, in 18.4).
    Defect {
        versions: &[(15, 16, 18), (16, 12, 14), (17, 8, 10), (18, 2, 4)],
        what: "a standby of a primary of an older minor version may crash again and again in replay",
    },
];

/// Says what is known to be wrong with a version (`server_version_num`): how bad, in words, and what to do.
pub(super) fn known(version: u32) -> Option<(Severity, String, String)> {
    let (major, minor) = (version / 10_000, version % 10_000);
    let mended = |defect: &Defect| {
        let mut of_major = defect.versions.iter().filter(|(of, _, _)| *of == major);
        of_major.find(|(_, first, mended)| (*first..*mended).contains(&minor)).map(|(_, _, mended)| *mended)
    };
    let here = || DEFECTS.iter().filter_map(|defect| Some((defect.what, mended(defect)?)));
    let whats: Vec<&str> = here().map(|(what, _)| what).collect();
    let newest = here().map(|(_, mended)| mended).max()?;
    Some((
        Severity::Warning,
        format!("it runs postgres {major}.{minor}: {}", whats.join("; ")),
        format!(
            "upgrade to {major}.{newest} or later, the standbys first: https://www.postgresql.org/docs/release/{major}.{newest}/"
        ),
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(version: u32, parts: &[&str], upgrade: &str) {
        let (_, message, hint) = known(version).expect("something is known");
        let found: Vec<&str> = message.split_once(": ").expect("a colon").1.split("; ").collect();
        assert_eq!(found.len(), parts.len(), "{message}");
        for (found, part) in found.iter().zip(parts) {
            assert!(found.contains(part), "{found} does not say {part}");
        }
        assert!(hint.contains(&format!("upgrade to {upgrade} or later")), "{hint}");
    }

    #[test]
    fn each_version_is_told_what_it_has() {
        check(150_000, &["BRIN", "GIN", "pg_rewind", "just after a start"], "15.13");
        check(150_009, &["pg_rewind", "SET role", "just after a start"], "15.13");
        check(150_010, &["just after a start"], "15.13");
        check(150_016, &["older minor version"], "15.18");
        check(160_001, &["GIN", "pg_rewind", "just after a start"], "16.9");
        check(170_001, &["pg_rewind", "SET role", "just after a start"], "17.5");
        check(180_003, &["older minor version"], "18.4");
        for well in
            [0, 150_013, 150_015, 150_018, 160_009, 160_014, 170_005, 170_010, 180_000, 180_004, 190_000]
        {
            assert_eq!(known(well), None, "{well}");
        }
    }

    #[test]
    fn the_message_names_the_version() {
        let (severity, message, hint) = known(180_002).expect("something is known");
        assert_eq!(severity, Severity::Warning);
        assert_eq!(
            message,
            "it runs postgres 18.2: a standby of a primary of an older minor version may crash again and again in replay"
        );
        assert!(hint.ends_with("https://www.postgresql.org/docs/release/18.4/"), "{hint}");
    }

    #[test]
    fn each_entry_can_be_true_of_some_version() {
        for defect in &DEFECTS {
            assert!(defect.versions.iter().all(|(major, first, mended)| *major >= 15 && first < mended));
        }
    }
}
