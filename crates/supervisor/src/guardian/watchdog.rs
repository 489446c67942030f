//! The machine's own watchdog (`/dev/watchdog`, Documentation/watchdog/watchdog-api.rst of the kernel): it resets a
//! machine on which nobody fences any more.
//!
//! Armed while the instance may be a primary, and written to while its lease holds or it is frozen for certain. When
//! this process is stopped too, or cannot freeze or kill, nobody writes, and the machine is reset.

use std::io;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::time::Duration;

use rustix::fs::{Mode, OFlags};

use super::page::LastResort;
use super::sys;
use crate::runtime::clock::BootTime;

/// How often it is written to at most: the loop comes by twice as often as that.
const PAT_EVERY: Duration = Duration::from_millis(100);
/// After a device that could not be opened it is tried again this much later.
const OPEN_AGAIN: Duration = Duration::from_secs(1);
/// Written before closing: without it a closed device counts on ("magic close").
const DISARM: &[u8] = b"V";
const PAT: &[u8] = b"p";

/// What it is to watch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Watched {
    /// Nothing that may be a primary.
    Nothing,
    /// An instance that has a lease, or is frozen for certain.
    Fenced,
    /// An instance whose lease is over, and that is not frozen or gone yet.
    Loose,
}

/// The device, and what became of it.
#[derive(Debug)]
pub(super) struct Watchdog {
    path: Option<PathBuf>,
    seconds: u32,
    device: Option<OwnedFd>,
    failed: bool,
    patted: BootTime,
    not_before: BootTime,
}

impl Watchdog {
    /// `path`: none, there is none. `seconds`: after so many without a word the machine is reset.
    pub(super) fn new(path: Option<PathBuf>, seconds: u32) -> Self {
        Self {
            path,
            seconds,
            device: None,
            failed: false,
            patted: BootTime::ZERO,
            not_before: BootTime::ZERO,
        }
    }

    /// What is shown of it.
    pub(super) fn state(&self) -> LastResort {
        match (&self.path, &self.device, self.failed) {
            (None, _, _) => LastResort::Off,
            (Some(_), _, true) => LastResort::Failed,
            (Some(_), Some(_), false) => LastResort::Armed,
            (Some(_), None, false) => LastResort::AtRest,
        }
    }

    /// An instance was started, so that nothing of an earlier one is left: the timer of a guardian that died is
    /// this one's now.
    pub(super) fn take_over(&mut self, now: BootTime) {
        if self.device.is_none() {
            self.open(now);
        }
    }

    /// Opens it when it is needed first, disarms it when it is not needed any more, and writes to it while what it
    /// watches is fenced.
    pub(super) fn tend(&mut self, watched: Watched, now: BootTime) {
        match (watched, self.device.is_some()) {
            (Watched::Nothing, true) => self.disarm(),
            (Watched::Fenced | Watched::Loose, false) => self.open(now),
            (Watched::Nothing, false) | (Watched::Fenced | Watched::Loose, true) => {}
        }
        let Some(device) = &self.device else { return };
        if watched == Watched::Fenced && now.saturating_since(self.patted) >= PAT_EVERY {
            self.failed = rustix::io::write(device, PAT).is_err();
            self.patted = now;
        }
    }

    fn open(&mut self, now: BootTime) {
        let Some(path) = self.path.as_ref().filter(|_| now >= self.not_before) else { return };
        let flags = OFlags::WRONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
        let opened = rustix::fs::open(path, flags, Mode::empty()).map_err(io::Error::from);
        let set = opened.and_then(|device| match sys::set_watchdog(&device, self.seconds) {
            // A device that knows no ioctl has a time of its own.
            Err(error) if error.raw_os_error() != Some(libc::ENOTTY) => {
                // Its timer runs since it was opened.
                let _ = rustix::io::write(&device, DISARM);
                Err(error)
            }
            Ok(()) | Err(_) => Ok(device),
        });
        self.failed = set.is_err();
        self.device = set.ok();
        if self.failed {
            self.not_before = now.saturating_add(OPEN_AGAIN);
        }
    }

    fn disarm(&mut self) {
        if let Some(device) = self.device.take() {
            self.failed = rustix::io::write(&device, DISARM).is_err();
        }
    }
}

impl Drop for Watchdog {
    /// A guardian that ends in order has nothing left to guard.
    fn drop(&mut self) {
        self.disarm();
    }
}
