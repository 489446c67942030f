//! WAL as crashes, cards and strangers leave it: pages and records, changed by seed (`rhone_fuzz`).

use std::fs;

use rhone_fuzz::Fuzz;

use super::*;
use crate::control::{DbState, StandbyMinimums};
use crate::wal::SystemId;

const SYSTEM: u64 = 7_423_474_350_493_388_827;
const PAGE_BYTES: usize = 8192;
const SEGMENT: u64 = 4 * PAGE;

/// A segment of WAL as a server writes it.
struct Writer {
    bytes: Vec<u8>,
    begin: u64,
    previous: u64,
}

impl Writer {
    fn new(begin: u64) -> Self {
        Self { bytes: Vec::new(), begin, previous: 0 }
    }

    fn header(&mut self, remaining: usize, flags: u16) {
        let at = self.begin + self.bytes.len() as u64;
        let long = at.is_multiple_of(SEGMENT);
        let flags = flags | u16::from(remaining > 0) | if long { 2 } else { 0 };
        self.bytes.extend(0xD110u16.to_ne_bytes());
        self.bytes.extend(flags.to_ne_bytes());
        self.bytes.extend(1u32.to_ne_bytes());
        self.bytes.extend(at.to_ne_bytes());
        self.bytes.extend((remaining as u32).to_ne_bytes());
        self.bytes.extend([0; 4]);
        if long {
            self.bytes.extend(SYSTEM.to_ne_bytes());
            self.bytes.extend((SEGMENT as u32).to_ne_bytes());
            self.bytes.extend((PAGE as u32).to_ne_bytes());
        }
    }

    fn record(&mut self, info: u8, data: &[u8]) {
        if self.bytes.len().is_multiple_of(PAGE_BYTES) {
            self.header(0, 0);
        }
        let start = self.begin + self.bytes.len() as u64;
        let mut head = Vec::new();
        head.extend((24 + data.len() as u32).to_ne_bytes());
        head.extend([0; 4]);
        head.extend(self.previous.to_ne_bytes());
        head.extend([info, 0, 0, 0]);
        let mut crc = Crc32c::new();
        crc.update(data);
        crc.update(&head);
        head.extend(crc.finish().to_ne_bytes());
        self.previous = start;
        let mut rest: &[u8] = &[head.as_slice(), data].concat();
        while !rest.is_empty() {
            if self.bytes.len().is_multiple_of(PAGE_BYTES) {
                self.header(rest.len(), 0);
            }
            let room = PAGE_BYTES - self.bytes.len() % PAGE_BYTES;
            let (here, later) = rest.split_at(room.min(rest.len()));
            self.bytes.extend(here);
            rest = later;
        }
        while !self.bytes.len().is_multiple_of(8) {
            self.bytes.push(0);
        }
    }

    fn end(&self) -> u64 {
        self.begin + self.bytes.len() as u64
    }
}

fn control(redo: u64, segment: u64) -> ControlData {
    ControlData {
        format: 1300,
        system_id: SystemId::new(SYSTEM),
        state: DbState::InProduction,
        checkpoint: Lsn::new(redo),
        redo: Lsn::new(redo),
        timeline: Timeline::new(1),
        previous_timeline: Timeline::new(1),
        min_recovery: Lsn::new(0),
        min_recovery_timeline: Timeline::new(0),
        wal_segment_size: segment,
        checksums: true,
        wal_log_hints: true,
        wal_level: "replica".to_owned(),
        minimums: StandbyMinimums::default(),
    }
}

/// Reads WAL that begins with the third segment, in files of that size.
fn read(folder: &Path, wal: &[u8], control: &ControlData) -> Result<WalPosition, PgError> {
    let names = ["000000010000000000000002", "000000010000000000000003"];
    let (first, second) = wal.split_at(wal.len().min(SEGMENT as usize));
    for (name, content) in names.iter().zip([first, second]) {
        // A server writes whole pages.
        let mut content = content.to_vec();
        content.resize(content.len().next_multiple_of(PAGE_BYTES), 0);
        fs::write(folder.join(name), content).expect("write a segment");
    }
    let history = TimelineHistory::root(Timeline::new(1));
    Reader::new(folder.to_path_buf(), history, control).run()
}

fn written() -> Vec<Writer> {
    let mut small = Writer::new(2 * SEGMENT);
    small.record(0x10, &[255, 8, 1, 2, 3, 4, 5, 6, 7, 8]);
    small.record(0x30, &[7; 3000]);
    small.record(0x30, &[9; 9000]);
    let mut long = Writer::new(2 * SEGMENT);
    long.record(0x30, &vec![3; 20_000]);
    long.record(0x30, &[4; 14_000]);
    long.record(END_OF_RECOVERY, &[255, 12, 0, 0, 0, 0, 0, 0, 0, 0, 2, 0, 0, 0]);
    let mut switch = Writer::new(2 * SEGMENT);
    switch.record(0x30, &[5; 100]);
    switch.record(SWITCH, &[]);
    vec![small, long, switch]
}

#[test]
fn what_the_writer_writes_is_read_to_its_end() {
    let folder = tempfile::tempdir().expect("a folder");
    let ends = written().into_iter().map(|wal| {
        let end = read(folder.path(), &wal.bytes, &control(2 * SEGMENT, SEGMENT)).expect("read");
        (end.lsn.get() - wal.end(), end.timeline.get())
    });
    // A switch leaves the rest of its segment empty.
    let rest = SEGMENT - written().pop().expect("the last").bytes.len() as u64;
    assert_eq!(ends.collect::<Vec<_>>(), [(0, 1), (0, 2), (rest, 1)]);
}

#[test]
fn a_control_file_that_cannot_be_right_is_an_end_and_no_panic() {
    let folder = tempfile::tempdir().expect("a folder");
    let wal = written().remove(0).bytes;
    for segment in [0, 1, 8192, 10_000, SEGMENT, 1 << 31, 1 << 32, (1 << 32) + 1, u64::MAX] {
        for redo in [0, 1, 2 * SEGMENT, 2 * SEGMENT + 40, u64::MAX - 8191, u64::MAX - 8, u64::MAX] {
            let end = read(folder.path(), &wal, &control(redo, segment));
            assert!(end.is_ok_and(|end| end.lsn.get() >= redo), "{segment} {redo}");
        }
    }
}

#[test]
fn fuzz_wal() {
    let folder = tempfile::tempdir().expect("a folder");
    let corpus = written()
        .into_iter()
        .map(|wal| [&(2 * SEGMENT).to_le_bytes(), &SEGMENT.to_le_bytes(), wal.bytes.as_slice()].concat());
    Fuzz::new("WAL", corpus).cases(1500).run(|bytes| {
        let number = |at: usize| word64(bytes, at).unwrap_or(0);
        let control = control(number(0), number(8));
        let end =
            read(folder.path(), bytes.get(16..).unwrap_or_default(), &control).expect("files can be read");
        assert!(end.lsn >= control.redo, "{end}");
        end.lsn.bytes_since(control.redo) / PAGE
    });
}
