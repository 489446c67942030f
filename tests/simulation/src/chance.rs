//! The chance that no seam reaches: the operating system's, for this process drawn from the seed.
//!
//! tokio draws in which order a `watch` wakes those who wait for it, and where a `select!` without
//! order begins, from a generator that it seeds by std's `RandomState`, and that by getrandom(2). The
//! function of that name is defined here, before libc's: in a process that links this crate it
//! gives the same bytes for the same seed. What tokio counts beside it is counted from the
//! process's start, so that a run replays in a process of its own and in no other (decision 0018).

#![allow(unsafe_code, reason = "a function in the place of libc's has a raw pointer and a plain name")]

use std::sync::atomic::{AtomicU64, Ordering};

static STATE: AtomicU64 = AtomicU64::new(0x9E37_79B9_7F4A_7C15);

/// Draws everything from `seed` from now on; to be called before the run's thread begins.
pub fn begin(seed: u64) {
    STATE.store(seed.wrapping_mul(0x9E37_79B9_7F4A_7C15), Ordering::Relaxed);
}

/// Gives the next eight bytes (splitmix64).
fn next() -> [u8; 8] {
    let step = 0x9E37_79B9_7F4A_7C15_u64;
    let mut word = STATE.fetch_add(step, Ordering::Relaxed).wrapping_add(step);
    word = (word ^ (word >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    word = (word ^ (word >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    (word ^ (word >> 31)).to_le_bytes()
}

/// In the place of libc's function, for std and all that links statically; never fails.
///
/// # Safety
/// `buffer` is the caller's, and `length` bytes long, as getrandom(2) asks.
#[unsafe(no_mangle)]
pub unsafe extern "C" fn getrandom(buffer: *mut u8, length: usize, _flags: u32) -> isize {
    let bytes = std::iter::repeat_with(next).flatten().take(length);
    for (offset, byte) in bytes.enumerate() {
        // SAFETY: `offset` is below `length`.
        unsafe { buffer.add(offset).write(byte) };
    }
    isize::try_from(length).unwrap_or(isize::MAX)
}
