//! The guardian's side of a page without a guardian: for the simulation, which plays that process
//! itself and must be read and written by the same code as the real one.

use std::os::fd::OwnedFd;

use super::page::{GuardPage, GuardState, Lease, SharedPage, Word};
use super::sys;
use crate::runtime::clock::BootTime;

/// A page and the guardian's hand on it.
#[derive(Debug)]
pub struct StandIn {
    page: GuardPage,
    memfd: OwnedFd,
}

impl StandIn {
    /// Makes the page.
    ///
    /// # Errors
    /// There is no memory for it.
    pub fn new() -> std::io::Result<Self> {
        let memfd = sys::create_page()?;
        Ok(Self { page: GuardPage::create(&memfd)?, memfd })
    }

    /// Returns the supervisor's side, for that writer.
    ///
    /// # Errors
    /// It cannot be mapped.
    pub fn supervisors(&self, writer: u64) -> std::io::Result<SharedPage> {
        SharedPage::adopt(&self.memfd, writer)?.ok_or_else(|| std::io::Error::other("another layout"))
    }

    /// Returns the lease that this writer set.
    pub fn lease(&self, writer: u64) -> Option<Lease> {
        self.page.lease(writer)
    }

    /// Says that the guardian ran at `now`, and what it does.
    pub fn stamp(&self, now: BootTime, state: GuardState) {
        self.page.set(Word::State, state as u64);
        self.page.set(Word::Alive, now.as_nanos().max(1));
    }
}
