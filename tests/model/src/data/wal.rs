//! Write-ahead logs, each one a number: the same records in the same order have the same number.

use rhone_pgctl::wal::{Lsn, Timeline, WalPosition};

use crate::search::Memo;

/// The number of a log.
pub(super) type WalId = u16;

/// A position, small: timeline and length; 0 is none.
pub(super) type Pos = (u8, u8);

#[derive(Clone, Copy, Debug)]
struct Record {
    parent: WalId,
    len: u8,
    timeline: u8,
    /// The records in it, as bits.
    mask: u16,
}

/// Every log that was ever seen.
#[derive(Debug)]
pub(super) struct Wals {
    records: Vec<Record>,
    known: Memo<(WalId, u8, u8), WalId>,
}

impl Default for Wals {
    fn default() -> Self {
        Self { records: vec![Record { parent: 0, len: 0, timeline: 1, mask: 0 }], known: Memo::default() }
    }
}

impl Wals {
    fn at(&self, wal: WalId) -> Record {
        self.records[usize::from(wal)]
    }

    /// Appends a record of that timeline.
    pub(super) fn push(&mut self, wal: WalId, timeline: u8, record: u8) -> WalId {
        if let Some(known) = self.known.get(&(wal, timeline, record)) {
            return *known;
        }
        let here = self.at(wal);
        let id = WalId::try_from(self.records.len()).expect("few enough logs");
        self.records.push(Record {
            parent: wal,
            len: here.len + 1,
            timeline,
            mask: here.mask | (1 << record),
        });
        self.known.insert((wal, timeline, record), id);
        id
    }

    pub(super) fn len(&self, wal: WalId) -> u8 {
        self.at(wal).len
    }

    /// Returns the timeline and length; nothing for no WAL at all.
    pub(super) fn pos(&self, wal: WalId) -> Pos {
        if wal == 0 { (0, 0) } else { (self.at(wal).timeline, self.at(wal).len) }
    }

    pub(super) fn mask(&self, wal: WalId) -> u16 {
        self.at(wal).mask
    }

    /// Returns the first `len` records.
    pub(super) fn cut(&self, mut wal: WalId, len: u8) -> WalId {
        while self.len(wal) > len {
            wal = self.at(wal).parent;
        }
        wal
    }

    pub(super) fn is_prefix(&self, of: WalId, wal: WalId) -> bool {
        self.cut(wal, self.len(of)) == of
    }

    /// Returns how many records two logs have in common.
    pub(super) fn common(&self, one: WalId, other: WalId) -> u8 {
        let mut len = self.len(one).min(self.len(other));
        while self.cut(one, len) != self.cut(other, len) {
            len -= 1;
        }
        len
    }

    /// Says whether Postgres would stream `wal` to a standby at that position: by the numbers of the
    /// timelines alone, as its history files have them.
    pub(super) fn streams_to(&self, wal: WalId, (timeline, len): Pos) -> bool {
        if self.len(wal) < len {
            return false;
        }
        // The last record of that timeline ends its part of the history.
        let mut here = wal;
        let mut newer = None;
        loop {
            let record = self.at(here);
            if record.timeline == timeline || here == 0 {
                break;
            }
            newer = Some(record);
            here = record.parent;
        }
        here != 0 && (newer.is_none() || len <= self.len(here))
    }

    /// Returns the bits of the records that carry that timeline.
    pub(super) fn of_timeline(&self, mut wal: WalId, timeline: u8) -> u16 {
        let mut mask = 0;
        while wal != 0 {
            let record = self.at(wal);
            if record.timeline == timeline {
                mask |= record.mask & !self.at(record.parent).mask;
            }
            wal = record.parent;
        }
        mask
    }
}

/// Returns a small position as the product has it.
pub(super) fn position((timeline, len): Pos) -> Option<WalPosition> {
    (timeline > 0).then(|| WalPosition::new(Timeline::new(u32::from(timeline)), Lsn::new(u64::from(len))))
}

/// Returns a position of the product's as a small one.
pub(super) fn small(position: WalPosition) -> Pos {
    let timeline = u8::try_from(position.timeline.get()).expect("a small timeline");
    (timeline, u8::try_from(position.lsn.get()).expect("a small position"))
}
