//! The dead-man in the kernel: when the lease ends, no packet of Postgres passes this machine's network any more, whatever has
//! become of every process here (decision 0056).
//!
//! A table of the packet filter's, [`Filter`], while the instance may be a primary. It is open for as long as the lease
//! lasts, counted by the kernel; each renewal opens it anew. Standbys never have it, and the loopback interface and Unix
//! sockets are beyond it.
//!
//! # Why it is never open past the lease
//! The kernel counts from when it handles a request, and this process may be stopped between looking at the clock and that.
//! So first a *ticket* is put into the table, which dies [`TICKET`] later at most, as seen on the clock afterwards. What
//! opens also takes the ticket, or is refused as a whole: it is handled while the ticket lives or never. So from the end of
//! the ticket until the end of the lease is what it asks for, less [`MARGIN`] for the kernel's own counting.

use std::io;
use std::time::Duration;

use super::nftables::{Filter, Opened};
use super::page::LastResort;
use crate::runtime::clock::{BootTime, Clock};

/// How long a ticket lasts. A batch takes some 10 µs (measured); one that waits longer for its turn is refused, and
/// tried again at the next look, while what was open before goes on.
const TICKET: Duration = Duration::from_millis(50);

/// The kernel counts in ticks, of 10 ms at most, and may be one behind.
const MARGIN: Duration = Duration::from_millis(20);

/// After a kernel that refused it is tried again this much later.
const AGAIN: Duration = Duration::from_secs(1);

/// The table, and what became of it.
#[derive(Debug)]
pub(super) struct DeadMan {
    port: Option<u16>,
    filter: Option<Filter>,
    /// The rules are in the kernel.
    shut: bool,
    /// The end of the lease that it was opened for.
    open_until: BootTime,
    failed: bool,
    not_before: BootTime,
}

impl DeadMan {
    /// `port`: Postgres's; none: there is no dead-man.
    pub(super) fn new(port: Option<u16>) -> Self {
        let filter = port.and_then(|port| Filter::open(port).ok());
        let failed = port.is_some() && filter.is_none();
        let (open_until, not_before) = (BootTime::ZERO, BootTime::ZERO);
        Self { port, filter, shut: false, open_until, failed, not_before }
    }

    /// What is shown of it.
    pub(super) fn state(&self) -> LastResort {
        match (self.port, self.failed, self.shut) {
            (None, _, _) => LastResort::Off,
            (Some(_), true, _) => LastResort::Failed,
            (Some(_), false, true) => LastResort::Armed,
            (Some(_), false, false) => LastResort::AtRest,
        }
    }

    /// An instance was started, so that nothing of an earlier one is left: what a guardian that died has shut is
    /// this one's now.
    pub(super) fn take_over(&mut self) {
        if !self.shut {
            self.remove();
        }
    }

    /// Keeps it as the lease is. `lease`: when it ends; none: the instance is no primary.
    ///
    /// Takes some 20 µs where there is a renewal, and longer where somebody else's change of the packet filter is under way.
    pub(super) fn tend(&mut self, lease: Option<BootTime>, now: BootTime) {
        match lease {
            None if self.shut => self.remove(),
            None => {}
            Some(end) if !self.shut => self.set_up(end, now),
            // One that is over closes by itself.
            Some(end) if end == self.open_until || end <= now => {}
            Some(end) => self.renew(end, now),
        }
    }

    fn set_up(&mut self, end: BootTime, now: BootTime) {
        let Some(filter) = self.filter.as_mut().filter(|_| now >= self.not_before) else { return };
        let laid = filter.lay(TICKET).and_then(|()| {
            let opened = match time_left(end, Clock.now()) {
                Some(time) => filter.shut(Some(time))?,
                None => Opened::TooLate,
            };
            // The rules come in any case.
            match opened {
                Opened::Done => Ok(end),
                Opened::TooLate => filter.shut(None).map(|_| BootTime::ZERO),
            }
        });
        self.take_note(laid, now);
    }

    fn renew(&mut self, end: BootTime, now: BootTime) {
        let Some(filter) = self.filter.as_mut() else { return };
        // A lease that was cut short counts at once.
        let shorter = if end < self.open_until { filter.close() } else { Ok(()) };
        let renewed = shorter.and_then(|()| filter.put_ticket(TICKET)).and_then(|()| {
            let Some(time) = time_left(end, Clock.now()) else { return Ok(Opened::TooLate) };
            filter.reopen(time)
        });
        match renewed {
            Ok(Opened::Done) => (self.open_until, self.failed) = (end, false),
            Ok(Opened::TooLate) => {}
            // Somebody has flushed all tables: it is open already.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {
                self.shut = false;
                self.set_up(end, now);
            }
            // It closes by itself. To make it anew would open it for a moment, in which this process may be stopped.
            Err(_) => self.failed = true,
        }
    }

    fn take_note(&mut self, laid: io::Result<BootTime>, now: BootTime) {
        self.failed = laid.is_err();
        self.shut = laid.is_ok();
        self.open_until = laid.unwrap_or(BootTime::ZERO);
        if self.failed {
            self.not_before = now.saturating_add(AGAIN);
        }
    }

    /// Nothing is there to be cut off.
    fn remove(&mut self) {
        let Some(filter) = self.filter.as_mut() else { return };
        self.failed = filter.remove().is_err();
        self.shut = false;
        self.open_until = BootTime::ZERO;
    }
}

impl Drop for DeadMan {
    /// A guardian that ends in order has nothing left to guard.
    fn drop(&mut self) {
        if self.shut {
            self.remove();
        }
    }
}

/// For how long it may be opened when a ticket was there before `now` and the lease lasts until `end`; nothing when that is
/// not worth a call.
fn time_left(end: BootTime, now: BootTime) -> Option<Duration> {
    let ticket_dead = now.saturating_add(TICKET);
    let left = end.saturating_since(ticket_dead.saturating_add(MARGIN));
    (left >= MARGIN).then_some(left)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[track_caller]
    fn check(end_ms: u64, now_ms: u64, expected_ms: Option<u64>) {
        let at = |ms: u64| BootTime::from_nanos(ms * 1_000_000);
        assert_eq!(time_left(at(end_ms), at(now_ms)), expected_ms.map(Duration::from_millis));
    }

    #[test]
    fn it_is_opened_from_the_end_of_the_ticket_to_the_end_of_the_lease() {
        check(11_335, 10_000, Some(1265));
        check(10_091, 10_000, Some(21));
        check(10_089, 10_000, None);
        check(10_000, 10_000, None);
        // Stopped meanwhile, for longer than the lease.
        check(10_000, 70_000, None);
    }

    #[test]
    fn without_a_port_there_is_none() {
        let mut none = DeadMan::new(None);
        none.tend(Some(BootTime::MAX), BootTime::ZERO);
        none.take_over();
        assert_eq!(none.state(), LastResort::Off);
    }
}
