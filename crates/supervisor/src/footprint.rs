//! Gives back the memory that only the start of a process needed.
//!
//! Reading arguments and configuration, relocating, founding a cluster: code that runs once stays mapped,
//! and the heap keeps the room that it took. What is dropped here is either free in the allocator, or
//! read-only and unchanged in a file: used again, it comes back from the page cache (decision 0047).

use std::io::{self, BufRead};
use std::ops::Range;
use std::time::Duration;

use crate::guardian::sys;

/// After so long a member has been founded, or has joined, and runs as it will go on to.
const STARTED: Duration = Duration::from_secs(30);

/// Sets how the allocator behaves; to be called before there is a second thread.
pub fn begin() {
    sys::limit_arenas();
}

/// Gives back what the start took, once it is over.
pub async fn after_the_start() {
    tokio::time::sleep(STARTED).await;
    if let Err(error) = give_back() {
        tracing::debug!(%error, "could not give memory back");
    }
}

/// Gives back free heap, and pages that are as their files have them.
///
/// # Errors
/// `/proc/self/smaps` could not be read; the heap is given back all the same.
pub fn give_back() -> io::Result<()> {
    let dropped = sys::drop_program_pages();
    sys::trim_heap();
    dropped
}

/// Returns the code of programs and libraries of which no page is a private copy. Their other mappings are left alone: a
/// relocated page may be swapped out, and does not count as a copy then. So are other files, since another thread may be about
/// to unmap one.
pub(crate) fn unchanged(smaps: impl BufRead) -> io::Result<Vec<Range<usize>>> {
    let (mut found, mut mapping) = (Vec::new(), None);
    for line in smaps.lines() {
        let line = line?;
        let mut words = line.split_ascii_whitespace();
        match (words.next(), words.next()) {
            (Some("Anonymous:"), Some("0")) => found.extend(mapping.take()),
            (Some(first), Some(_)) if first.ends_with(':') => {}
            (Some(range), Some("r-xp")) => {
                let inode = words.nth(2);
                mapping = addresses(range).filter(|_| inode != Some("0"));
            }
            (Some(_), Some(_) | None) | (None, _) => mapping = None,
        }
    }
    Ok(found)
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
    fn only_unchanged_pages_of_files_are_given_back() {
        check("", &[]);
        let code =
            "1000-3000 r-xp 00001000 fe:00 42  /usr/bin/rhone\nRss: 8 kB\nAnonymous: 0 kB\nLocked: 0 kB\n";
        check(code, std::slice::from_ref(&(0x1000..0x3000)));
        // Relocated, then made read-only: its file has other contents, and no page counts while it is swapped out.
        let relocated = "3000-4000 r--p 00003000 fe:00 42  /usr/bin/rhone\nAnonymous: 4 kB\n";
        check(relocated, &[]);
        let data = "4000-5000 rw-p 00004000 fe:00 42  /usr/bin/rhone\nAnonymous: 0 kB\n";
        check(data, &[]);
        let heap = "5000-6000 rw-p 00000000 00:00 0  [heap]\nAnonymous: 0 kB\n";
        let vdso = "7000-8000 r-xp 00000000 00:00 0  [vdso]\nAnonymous: 0 kB\n";
        let shared = "8000-9000 r--s 00000000 fe:00 43  /tmp/shared\nAnonymous: 0 kB\n";
        let table = "9000-a000 r--p 00000000 fe:00 42  /usr/bin/rhone\nAnonymous: 0 kB\n";
        let cache = "a000-b000 r--p 00000000 fe:00 44  /etc/ld.so.cache\nAnonymous: 0 kB\n";
        let all = [table, relocated, code, data, heap, vdso, shared, cache].concat();
        check(&all, std::slice::from_ref(&(0x1000..0x3000)));
    }

    #[test]
    fn a_process_goes_on_after_it() {
        let before: Vec<String> = (0..1000).map(|n| format!("{n}")).collect();
        give_back().expect("this process's mappings");
        assert_eq!(before.last().map(String::as_str), Some("999"));
        let smaps = std::fs::read("/proc/self/smaps").expect("this process's mappings");
        assert!(unchanged(smaps.as_slice()).expect("text").len() > 1, "program and libraries");
    }
}
