//! Gives back the memory that only the start of a process needed.
//!
//! Reading arguments and configuration, relocating, founding a cluster: code that runs once stays mapped,
//! and the heap keeps the room that it took. What is dropped here is either free in the allocator, or
//! read-only and unchanged in a file: used again, it comes back from the page cache (decisions 0047, 0061).

use std::collections::BTreeSet;
use std::io::{self, BufRead};
use std::ops::Range;
use std::time::Duration;

use crate::guardian::sys;

/// After so long a member has been founded, or has joined, and runs as it will go on to.
const STARTED: Duration = Duration::from_secs(30);

/// For so long each page that is used is mapped by itself: what an idle member does all comes round in this time.
const LOOKED_AT: Duration = Duration::from_secs(30);

/// The most parts that the mappings are split into meanwhile; the kernel allows 65530 mappings, and each costs it some 200 bytes.
const PARTS_MAX: usize = 8192;

/// Sets how the allocator behaves; to be called before there is a second thread.
pub fn begin() {
    sys::limit_arenas();
}

/// Gives back what the start took, once it is over.
pub async fn after_the_start() {
    tokio::time::sleep(STARTED).await;
    let dropped = match tokio::task::spawn_blocking(give_back).await {
        Ok(Ok(dropped)) => dropped,
        Ok(Err(error)) => {
            tracing::debug!(%error, "could not give memory back");
            return;
        }
        Err(_) => return,
    };
    tokio::time::sleep(LOOKED_AT).await;
    sys::join_program_pages(&dropped);
}

/// Gives back free heap, and pages that are as their files have them. Returns the mappings of those, in which each
/// page is mapped by itself until they are joined again.
///
/// # Errors
/// `/proc/self/smaps` could not be read; the heap is given back all the same.
pub fn give_back() -> io::Result<Vec<Range<usize>>> {
    let dropped = sys::drop_program_pages();
    sys::trim_heap();
    dropped
}

/// Returns the length of the parts, in bytes, that mappings of so many bytes are split into.
pub(crate) fn part(bytes: usize, page: usize) -> usize {
    bytes.div_ceil(PARTS_MAX).next_multiple_of(page)
}

/// What `smaps` says of one mapping.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Pages {
    /// Nothing yet.
    Unknown,
    /// None is a private copy in memory.
    NoneInMemory,
    /// Some are private copies.
    Copies,
}

/// A mapping of a file that cannot be written to.
struct Mapping {
    range: Range<usize>,
    /// Device and inode.
    file: (String, String),
    code: bool,
    pages: Pages,
    /// No page of it is a private copy, in memory or swapped out.
    unchanged: bool,
}

/// Returns what of programs and libraries, their code and their constants, has no page that is a private copy. Other files are
/// left alone, since another thread may be about to unmap one.
pub(crate) fn unchanged(smaps: impl BufRead) -> io::Result<Vec<Range<usize>>> {
    let (mut found, mut current) = (Vec::<Mapping>::new(), false);
    for line in smaps.lines() {
        let line = line?;
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some(field), Some(value)) if field.ends_with(':') => {
                let Some(mapping) = found.last_mut().filter(|_| current) else { continue };
                match (field, value) {
                    ("Anonymous:", "0") => mapping.pages = Pages::NoneInMemory,
                    ("Anonymous:", _) => mapping.pages = Pages::Copies,
                    // A relocated page that is swapped out is a copy all the same. This line comes later.
                    ("Swap:", "0") => mapping.unchanged = mapping.pages == Pages::NoneInMemory,
                    _ => {}
                }
            }
            (Some(range), Some(rights @ ("r-xp" | "r--p"))) => {
                let file = (words.nth(1).unwrap_or("0").to_owned(), words.next().unwrap_or("0").to_owned());
                let range = addresses(range).filter(|_| file.1 != "0");
                current = range.is_some();
                let code = rights == "r-xp";
                found.extend(range.map(|range| Mapping {
                    range,
                    file,
                    code,
                    pages: Pages::Unknown,
                    unchanged: false,
                }));
            }
            (Some(_), Some(_) | None) | (None, _) => current = false,
        }
    }
    let programs: BTreeSet<(String, String)> =
        found.iter().filter(|mapping| mapping.code).map(|mapping| mapping.file.clone()).collect();
    let of_programs =
        found.into_iter().filter(|mapping| mapping.unchanged && programs.contains(&mapping.file));
    Ok(of_programs.map(|mapping| mapping.range).collect())
}

fn addresses(range: &str) -> Option<Range<usize>> {
    let (from, to) = range.split_once('-')?;
    Some(usize::from_str_radix(from, 16).ok()?..usize::from_str_radix(to, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(smaps: &str, expected: &[Range<usize>]) {
        assert_eq!(unchanged(smaps.as_bytes()).expect("text"), expected, "{smaps}");
    }

    #[test]
    fn only_unchanged_pages_of_programs_are_given_back() {
        check("", &[]);
        let code = "1000-3000 r-xp 00001000 fe:00 42  /usr/bin/rhone\nRss: 8 kB\nAnonymous: 0 kB\nSwap: 0 kB\nLocked: 0 kB\n";
        check(code, std::slice::from_ref(&(0x1000..0x3000)));
        let constants = "0-1000 r--p 00000000 fe:00 42  /usr/bin/rhone\nAnonymous: 0 kB\nSwap: 0 kB\n";
        check(&[constants, code].concat(), &[0..0x1000, 0x1000..0x3000]);
        // Relocated, then made read-only: its file has other contents, also while a page is swapped out.
        let relocated = "3000-4000 r--p 00003000 fe:00 42  /usr/bin/rhone\nAnonymous: 4 kB\nSwap: 0 kB\n";
        let swapped = "9000-a000 r--p 00003000 fe:00 42  /usr/bin/rhone\nAnonymous: 0 kB\nSwap: 4 kB\n";
        let data = "4000-5000 rw-p 00004000 fe:00 42  /usr/bin/rhone\nAnonymous: 0 kB\nSwap: 0 kB\n";
        let heap = "5000-6000 rw-p 00000000 00:00 0  [heap]\nAnonymous: 0 kB\nSwap: 0 kB\n";
        let vdso = "7000-8000 r-xp 00000000 00:00 0  [vdso]\nAnonymous: 0 kB\nSwap: 0 kB\n";
        let shared = "8000-9000 r--s 00000000 fe:00 43  /tmp/shared\nAnonymous: 0 kB\nSwap: 0 kB\n";
        let cache = "a000-b000 r--p 00000000 fe:00 44  /etc/ld.so.cache\nAnonymous: 0 kB\nSwap: 0 kB\n";
        let all = [relocated, swapped, code, data, heap, vdso, shared, cache].concat();
        check(&all, std::slice::from_ref(&(0x1000..0x3000)));
    }

    #[test]
    fn parts_are_pages_unless_there_were_too_many() {
        assert_eq!(part(12 << 20, 4096), 4096);
        assert_eq!(part(12 << 20, 16384), 16384);
        assert_eq!(part(100 << 20, 4096), 16384);
        assert_eq!(part(0, 4096), 0, "nothing is split");
    }

    #[test]
    fn a_process_goes_on_after_it() {
        let before: Vec<String> = (0..1000).map(|n| format!("{n}")).collect();
        let dropped = give_back().expect("this process's mappings");
        assert!(dropped.len() > 1, "program and libraries");
        sys::join_program_pages(&dropped);
        assert_eq!(before.last().map(String::as_str), Some("999"));
        let smaps = std::fs::read("/proc/self/smaps").expect("this process's mappings");
        let again = unchanged(smaps.as_slice()).expect("text");
        assert!(again.len() <= dropped.len() + 2, "they are joined: {} after {}", again.len(), dropped.len());
    }
}
