//! The certificates in force, and their successors.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use rustls::{ClientConfig, ServerConfig};
use rustls_pki_types::CertificateDer;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::watch;

use super::certificate::Certificate;
use super::files::{Fingerprint, Loaded, TlsError, TlsFiles, signed_by_us};
use crate::civil::WallTime;
use crate::runtime::clock::wall_time;

/// How often the files are looked at: three calls of stat(2), which read no disk.
const LOOK_EVERY: Duration = Duration::from_secs(5);

/// From when on an end that comes near is said, once a day: time enough to notice.
const NEAR: i64 = 30 * DAY;

/// So long after a change of the files connections stay whose other end is believed no more: where all members get a new CA
/// and new certificates at once, each has read them by then, and what is cut is made anew.
const PATIENCE: Duration = Duration::from_secs(30);

/// Seconds.
const DAY: i64 = 86_400;

/// The certificates in force. Cheap to clone the [`Arc`] of; no lock is held while anything waits.
#[derive(Debug)]
pub struct Security {
    cluster: String,
    files: TlsFiles,
    /// The files as they were when they were read first.
    read: Fingerprint,
    loaded: RwLock<Loaded>,
    stale: AtomicBool,
    handshakes: AtomicU64,
    changed: watch::Sender<()>,
    patience: Duration,
}

impl Security {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with which of them.
    pub fn load(cluster: &str, files: &TlsFiles) -> Result<Self, TlsError> {
        let read = files.fingerprint();
        let loaded = RwLock::new(files.load()?);
        let (cluster, files) = (cluster.to_owned(), files.clone());
        let (stale, handshakes) = (AtomicBool::new(false), AtomicU64::new(0));
        let (changed, patience) = (watch::Sender::new(()), PATIENCE);
        Ok(Self { cluster, files, read, loaded, stale, handshakes, changed, patience })
    }

    /// Reads an operator's files; the cluster is the one that the certificate is for.
    ///
    /// # Errors
    /// What is wrong with which of them; one that is for nobody in particular is.
    pub fn of_operator(files: &TlsFiles) -> Result<Self, TlsError> {
        let mut security = Self::load("", files)?;
        let own = security.own().identity.ok_or_else(|| TlsError {
            file: files.cert.clone(),
            reason: "names no role: it needs one URI of the form rhone://CLUSTER/ROLE/NAME".to_owned(),
        })?;
        security.cluster = own.cluster;
        Ok(security)
    }

    /// Returns the cluster whose members are believed.
    pub fn cluster(&self) -> &str {
        &self.cluster
    }

    fn now<T>(&self, take: impl FnOnce(&Loaded) -> T) -> T {
        take(&self.loaded.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Returns what connections that we make now use.
    pub(super) fn client(&self) -> Arc<ClientConfig> {
        self.now(|loaded| Arc::clone(&loaded.client))
    }

    /// Returns what connections that are made to us now use.
    pub(super) fn server(&self) -> Arc<ServerConfig> {
        self.now(|loaded| Arc::clone(&loaded.server))
    }

    /// Returns our own certificate.
    pub fn own(&self) -> Certificate {
        self.now(|loaded| loaded.own.clone())
    }

    /// Returns the CAs that are believed.
    pub fn authorities(&self) -> Vec<Certificate> {
        self.now(|loaded| loaded.authorities.clone())
    }

    #[cfg(test)]
    pub(super) fn authority_file(&self) -> &std::path::Path {
        &self.files.ca
    }

    /// Returns whether the files on the disk cannot be used, so that older ones stay in force.
    pub fn stale(&self) -> bool {
        self.stale.load(Ordering::Relaxed)
    }

    /// Counts a handshake.
    pub(super) fn shook_hands(&self) {
        self.handshakes.fetch_add(1, Ordering::Relaxed);
    }

    /// Returns how many handshakes there were, of either side: few, since connections live long.
    pub fn handshakes(&self) -> u64 {
        self.handshakes.load(Ordering::Relaxed)
    }

    /// Reads the files again. Ones that are broken change nothing but [`Security::stale`].
    ///
    /// # Errors
    /// What is wrong with which of them.
    pub fn reload(&self) -> Result<(), TlsError> {
        let loaded = self.files.load().and_then(|loaded| self.same_holder(loaded));
        self.stale.store(loaded.is_err(), Ordering::Relaxed);
        *self.loaded.write().unwrap_or_else(PoisonError::into_inner) = loaded?;
        self.changed.send_replace(());
        Ok(())
    }

    /// Returns a receiver that fires when other files are in force.
    pub(super) fn changes(&self) -> watch::Receiver<()> {
        self.changed.subscribe()
    }

    /// Returns how long after such a change who is believed no more may stay.
    pub(super) fn patience(&self) -> Duration {
        self.patience
    }

    /// Returns whether a CA that is believed now vouches for a certificate that a connection was made with, expired or not.
    pub(super) fn believes(&self, chain: &[CertificateDer<'static>]) -> bool {
        let Some(Ok(holder)) = chain.first().map(Certificate::read) else { return false };
        // A time at which it is valid: an end that has come would be found before a CA that is not believed.
        let (from, to) = (holder.not_before.as_ms(), holder.not_after.as_ms());
        let at = wall_time().min(to).max(from);
        let verifier = self.now(|loaded| Arc::clone(&loaded.verifier));
        signed_by_us(verifier.as_ref(), chain, at).is_ok()
    }

    #[cfg(test)]
    pub(super) fn without_patience(mut self) -> Self {
        self.patience = Duration::ZERO;
        self
    }

    /// A certificate for somebody else is a mistake, never a renewal.
    fn same_holder(&self, loaded: Loaded) -> Result<Loaded, TlsError> {
        let (before, after) = (self.own().identity, &loaded.own.identity);
        if before == *after {
            return Ok(loaded);
        }
        let named = |who: Option<String>| who.unwrap_or_else(|| "nobody".to_owned());
        let before = named(before.map(|who| who.to_string()));
        let after = named(after.as_ref().map(ToString::to_string));
        Err(TlsError { file: self.files.cert.clone(), reason: format!("it is for {after}, not {before}") })
    }

    fn tell_expiry(&self) {
        let now = WallTime::from_ms(wall_time());
        for certificate in std::iter::once(self.own()).chain(self.authorities()) {
            let left = certificate.seconds_left(now);
            let days = certificate.days_left(now);
            let subject = certificate.subject;
            if left <= 0 {
                tracing::error!(%subject, "a certificate has expired: `rhone certs issue` makes another");
            } else if left < NEAR {
                tracing::warn!(%subject, days, "a certificate expires soon: `rhone certs issue` makes another");
            }
        }
    }
}

/// Reads changed files again, as soon as they stopped changing or at SIGHUP, and tells of ends that
/// come near. Never returns.
pub async fn watch(security: Arc<Security>) {
    let mut hangup = signal(SignalKind::hangup()).ok();
    let mut state = Watch { in_force: security.read, last: Fingerprint::default(), told: 0 };
    loop {
        state.tell(&security);
        let asked = async {
            match hangup.as_mut() {
                Some(hangup) => drop(hangup.recv().await),
                None => std::future::pending().await,
            }
        };
        let at_once = tokio::select! {
            () = asked => true,
            () = tokio::time::sleep(LOOK_EVERY) => false,
        };
        state.look(&security, at_once);
    }
}

struct Watch {
    in_force: Fingerprint,
    last: Fingerprint,
    told: u64,
}

impl Watch {
    /// Tells of ends that come near, once a day.
    fn tell(&mut self, security: &Security) {
        let today = wall_time() / 1000 / DAY.unsigned_abs();
        if self.told != today {
            self.told = today;
            security.tell_expiry();
        }
    }

    /// Three files are never replaced in one step: they are read once they look the same twice.
    fn look(&mut self, security: &Security, at_once: bool) {
        let found = security.files.fingerprint();
        let rests = found == self.last;
        self.last = found;
        if !at_once && (found == self.in_force || !rests) {
            return;
        }
        self.in_force = found;
        self.told = 0;
        match security.reload() {
            Ok(()) => {
                let own = security.own();
                tracing::info!(subject = %own.subject, serial = %own.serial, "certificates read again");
            }
            Err(error) => {
                tracing::error!(%error, "the new certificates cannot be used: the former ones stay in force");
            }
        }
    }
}
