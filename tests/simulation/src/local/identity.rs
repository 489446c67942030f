//! Whether a data directory is the one that its member is known to have: plays
//! `runtime/local/identity.rs`. A nonce that each start draws anew, and which file it is written in.

use rhone_consensus::ids::DataId;
use rhone_consensus::store::hard::{DataRecord, HardState};

use super::Local;
use crate::mutant::Mutant;

/// What `rhone.id` says, and which file that is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ident {
    /// The directory's id.
    pub id: DataId,
    /// Drawn anew at each start.
    pub nonce: u64,
    /// The file's inode.
    pub file: u64,
}

/// What the data directory is to its member.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Seen {
    /// There is none.
    Nothing,
    /// One without a record.
    Unclaimed,
    /// The one that it has.
    Ours(DataId),
    /// Another one.
    Stranger,
}

impl Local {
    /// Looks at the data directory.
    pub fn look_at_identity(&self) -> Seen {
        let machine = self.machine();
        let Some(data) = &machine.data else { return Seen::Nothing };
        let Some(record) = self.shared.hard.get().data else { return Seen::Unclaimed };
        if self.plant.mutant == Mutant::StrangerCounts {
            return Seen::Ours(record.id);
        }
        let Some(ident) = data.ident else { return Seen::Stranger };
        let same_file = record.file.is_none() || record.file == Some((ident.file, 0));
        let known = record.next == Some(ident.nonce) || (record.nonce == ident.nonce && same_file);
        if ident.id == record.id && known { Seen::Ours(record.id) } else { Seen::Stranger }
    }

    fn may_claim(&self) -> bool {
        let me = self.shared.me();
        self.state(|state| state.grant.is_none() && state.founder == Some(me))
    }

    /// Returns the id under which the data directory counts now, and whether it must not be used.
    pub fn data_facts(&self) -> (Option<DataId>, bool) {
        let seen = self.look_at_identity();
        let hard = self.shared.hard.get();
        let strange = match seen {
            Seen::Nothing | Seen::Ours(_) => false,
            Seen::Unclaimed => !self.may_claim(),
            Seen::Stranger => true,
        };
        (counts(seen, &hard), strange)
    }

    /// Writes `rhone.id`; returns the record that belongs to it.
    pub fn write_ident(&self, id: DataId, nonce: u64) -> DataRecord {
        let file = self.plant.draw(u64::MAX) | 1;
        if let Some(data) = &mut self.machine().data {
            data.ident = Some(Ident { id, nonce, file });
        }
        DataRecord { id, nonce, next: None, file: Some((file, 0)) }
    }

    /// Returns a new id for a data directory.
    pub fn draw_ident(&self) -> (Ident, DataRecord) {
        let draw = || self.plant.draw(u64::MAX) | 1;
        let ident = Ident { id: DataId(draw()), nonce: draw(), file: draw() };
        (ident, DataRecord { id: ident.id, nonce: ident.nonce, next: None, file: Some((ident.file, 0)) })
    }

    /// Takes the founding data directory for this member's own.
    pub async fn claim_first(&self) -> Result<(), String> {
        if self.look_at_identity() != Seen::Unclaimed || !self.may_claim() {
            return Ok(());
        }
        let (ident, record) = self.draw_ident();
        if let Some(data) = &mut self.machine().data {
            data.ident = Some(ident);
        }
        self.update_hard(|hard| hard.data = Some(record)).await
    }

    /// Draws another nonce before the data directory is changed.
    pub async fn claim_again(&self) -> Result<(), String> {
        let (Seen::Ours(id), Some(record)) = (self.look_at_identity(), self.shared.hard.get().data) else {
            return Err("this is not the data directory that this member is known to have".to_owned());
        };
        let nonce = self.plant.draw(u64::MAX) | 1;
        self.update_hard(|hard| hard.data = Some(DataRecord { next: Some(nonce), ..record })).await?;
        let record = self.write_ident(id, nonce);
        self.update_hard(|hard| hard.data = Some(record)).await
    }
}

fn counts(seen: Seen, hard: &HardState) -> Option<DataId> {
    match seen {
        Seen::Ours(id) if hard.sentinel.is_none() && hard.floor.is_none() => Some(id),
        Seen::Ours(_) | Seen::Nothing | Seen::Unclaimed | Seen::Stranger => None,
    }
}
