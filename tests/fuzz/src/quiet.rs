//! Keeps a parser's panic from being printed each time: it is told once, with what it was shown.

use std::cell::Cell;
use std::panic;
use std::sync::Once;

thread_local! {
    static QUIET: Cell<bool> = const { Cell::new(false) };
}

static INSTALLED: Once = Once::new();

/// Puts the hook in front of the one that is there.
pub(crate) fn install() {
    INSTALLED.call_once(|| {
        let before = panic::take_hook();
        panic::set_hook(Box::new(move |info| {
            if !QUIET.get() {
                before(info);
            }
        }));
    });
}

/// Runs something whose panics are caught, on this thread.
pub(crate) fn quietly<R>(work: impl FnOnce() -> R) -> R {
    QUIET.set(true);
    let done = work();
    QUIET.set(false);
    done
}
