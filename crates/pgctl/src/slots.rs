//! Physical replication slots: makes what is wanted, drops what is not, lets go of WAL on standbys.

use std::collections::BTreeSet;
use std::time::Duration;

use tokio_postgres::types::Type;

use crate::connection::Session;
use crate::error::PgError;
use crate::probe::Slot;
use crate::wal::Lsn;

/// What the names of all slots of ours begin with; others are never touched.
pub const PREFIX: &str = "rhone_";
/// `NAMEDATALEN - 1`.
const NAME_LIMIT: usize = 63;

/// Makes a slot name of a member name: lower case, `[a-z0-9_]`, at most 63 bytes, and different for
/// different members.
pub fn slot_name(member: &str) -> String {
    let plain: String = member
        .chars()
        .map(|char| if char.is_ascii_lowercase() || char.is_ascii_digit() { char } else { '_' })
        .collect();
    if plain == member && PREFIX.len() + plain.len() <= NAME_LIMIT - 9 {
        return format!("{PREFIX}{plain}");
    }
    // Something was replaced or would be cut: the sum of the real name keeps it apart.
    let mut crc = crate::crc::Crc32c::new();
    crc.update(member.as_bytes());
    let short: String = plain.chars().take(NAME_LIMIT - 9 - PREFIX.len()).collect();
    format!("{PREFIX}{short}_{:08x}", crc.finish())
}

/// What has to be done about slots.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SlotPlan {
    /// To be made.
    pub create: Vec<String>,
    /// To be dropped.
    pub drop: Vec<String>,
}

/// Plans how to get from the present slots to the wanted ones; a slot in use is not dropped.
pub fn plan_slots(present: &[Slot], wanted: &BTreeSet<String>) -> SlotPlan {
    let ours = |slot: &&Slot| slot.physical && slot.name.starts_with(PREFIX);
    let create = wanted.iter().filter(|name| !present.iter().any(|slot| slot.name == **name));
    let unwanted = present.iter().filter(ours).filter(|slot| !slot.active && !wanted.contains(&slot.name));
    SlotPlan { create: create.cloned().collect(), drop: unwanted.map(|slot| slot.name.clone()).collect() }
}

/// Does what was planned; a slot that somebody else made or dropped meanwhile is no error.
///
/// # Errors
/// Those of [`Session::query`].
pub async fn apply_slots(session: &Session, plan: &SlotPlan, limit: Duration) -> Result<(), PgError> {
    for name in &plan.create {
        let sql = "SELECT pg_create_physical_replication_slot($1, true) WHERE NOT EXISTS \
                   (SELECT 1 FROM pg_replication_slots WHERE slot_name = $1)";
        session.query("make a replication slot", sql, &[(name, Type::NAME)], limit).await?;
    }
    for name in &plan.drop {
        let sql = "SELECT pg_drop_replication_slot(slot_name) FROM pg_replication_slots \
                   WHERE slot_name = $1 AND NOT active";
        session.query("drop a replication slot", sql, &[(name, Type::NAME)], limit).await?;
    }
    Ok(())
}

/// Moves slots of ours on a standby up to `replayed`, where they are a segment or more behind.
///
/// # Errors
/// Those of [`Session::query`].
pub async fn advance_slots(
    session: &Session,
    slots: &[Slot],
    replayed: Lsn,
    segment_size: u64,
    limit: Duration,
) -> Result<usize, PgError> {
    let mut moved = 0;
    for slot in slots.iter().filter(|slot| slot.physical && !slot.active && slot.name.starts_with(PREFIX)) {
        if slot.restart.is_none_or(|restart| replayed.bytes_since(restart) < segment_size) {
            continue;
        }
        let sql = "SELECT pg_replication_slot_advance($1, $2::text::pg_lsn)";
        let parameters: [(&(dyn tokio_postgres::types::ToSql + Sync), Type); 2] =
            [(&slot.name, Type::NAME), (&replayed.to_string(), Type::TEXT)];
        session.query("advance a replication slot", sql, &parameters, limit).await?;
        moved += 1;
    }
    Ok(moved)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_valid_and_differ() {
        assert_eq!(slot_name("pg2"), "rhone_pg2");
        assert_ne!(slot_name("pg-2"), slot_name("pg.2"));
        assert_ne!(slot_name("PG2"), slot_name("pg2"));
        let long = "a".repeat(80);
        assert_ne!(slot_name(&long), slot_name(&format!("{long}b")));
        for member in ["pg-2", "Zürich", "", long.as_str()] {
            let name = slot_name(member);
            let valid = |char: char| char.is_ascii_lowercase() || char.is_ascii_digit() || char == '_';
            assert!(name.len() <= NAME_LIMIT && name.chars().all(valid), "{name}");
        }
    }

    #[test]
    fn plans_only_for_slots_of_its_own() {
        let slot = |name: &str, physical: bool, active: bool| Slot {
            name: name.into(),
            physical,
            active,
            restart: None,
            wal_status: None,
        };
        let present = [
            slot("rhone_a", true, true),
            slot("rhone_b", true, false),
            slot("rhone_c", true, true), // unwanted, but in use
            slot("rhone_l", false, false),
            slot("mine", true, false),
        ];
        let wanted = BTreeSet::from(["rhone_a".to_owned(), "rhone_d".to_owned()]);
        let plan = plan_slots(&present, &wanted);
        assert_eq!((plan.create, plan.drop), (vec!["rhone_d".to_owned()], vec!["rhone_b".to_owned()]));
    }
}
