//! Tells systemd how this process is: readiness, the watchdog's signs of life, the beginning of the end.
//!
//! One datagram each to the socket that `NOTIFY_SOCKET` names, as sd_notify(3) describes. Without it nothing is
//! done. What is told decides nothing here: a service manager that does not listen changes nothing.

use std::io;
use std::os::linux::net::SocketAddrExt;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;

use crate::config::Environment;
use crate::runtime::clock::Clock;
use crate::status::LocalView;

/// The variables of the protocol. Children must not inherit them: Postgres would speak for this process.
pub const VARIABLES: [&str; 3] = ["NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID"];

/// Where to tell, and how often to show a sign of life.
#[derive(Debug)]
pub struct Manager {
    socket: UnixDatagram,
    watchdog: Option<Duration>,
}

impl Manager {
    /// Finds the service manager that started process `pid`; none: there is none that listens.
    ///
    /// # Errors
    ///
    /// It is named and cannot be reached.
    pub fn find(env: &Environment, pid: u32) -> io::Result<Option<Self>> {
        let Some(name) = env.get("NOTIFY_SOCKET").filter(|name| !name.is_empty()) else { return Ok(None) };
        let address = match name.strip_prefix('@') {
            Some(name) => SocketAddr::from_abstract_name(name)?,
            None => SocketAddr::from_pathname(name)?,
        };
        let socket = UnixDatagram::unbound()?;
        socket.set_nonblocking(true)?;
        socket.connect_addr(&address)?;
        Ok(Some(Self { socket, watchdog: watchdog(env, pid) }))
    }

    fn tell(&self, text: &str) {
        if let Err(error) = self.socket.send(text.as_bytes()) {
            tracing::debug!(%error, text, "the service manager does not listen");
        }
    }
}

/// The watchdog's time; none where it is off, or meant for another process.
fn watchdog(env: &Environment, pid: u32) -> Option<Duration> {
    let number = |name: &str| env.get(name).and_then(|text| text.parse::<u64>().ok());
    let mine = !env.contains_key("WATCHDOG_PID") || number("WATCHDOG_PID") == Some(u64::from(pid));
    number("WATCHDOG_USEC").filter(|micros| mine && *micros > 0).map(Duration::from_micros)
}

/// Tells systemd that the doors are open, and from then on that the loop behind `view` goes round.
///
/// Ready means that operators, peers and checks are answered, not that there is a primary: three machines that
/// boot one after the other must not wait for each other's `systemctl start`.
pub fn ready(view: watch::Receiver<Arc<LocalView>>) {
    let Some(manager) = manager() else { return };
    manager.tell("READY=1\nSTATUS=answers peers, operators and checks");
    let Some(limit) = manager.watchdog else { return };
    tokio::spawn(async move {
        loop {
            if goes_round(&view.borrow(), Duration::from_nanos(Clock.now().as_nanos()), limit) {
                manager.tell("WATCHDOG=1");
            }
            // Three signs may be missed: a disk that hangs for a while is not this process's fault.
            tokio::time::sleep(limit / 4).await;
        }
    });
}

/// Tells systemd that the hand-over has begun.
pub fn stopping() {
    if let Some(manager) = manager() {
        manager.tell("STOPPING=1\nSTATUS=hands over, then stops postgres");
    }
}

/// Whether the loop showed something within half the watchdog's time.
fn goes_round(view: &LocalView, now: Duration, limit: Duration) -> bool {
    view.loop_at.is_none_or(|at| now.saturating_sub(at) < limit / 2)
}

fn manager() -> Option<Manager> {
    match Manager::find(&crate::config::environment(), std::process::id()) {
        Ok(manager) => manager,
        Err(error) => {
            tracing::warn!(%error, "cannot reach the service manager (NOTIFY_SOCKET)");
            None
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn env(pairs: &[(&str, &str)]) -> Environment {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn speaks_to_a_socket_in_the_file_system_and_to_an_abstract_one() {
        let folder = tempfile::tempdir().expect("make a folder");
        let path = folder.path().join("notify").display().to_string();
        let name = format!("rhone-notify-{}", std::process::id());
        let abstract_address = SocketAddr::from_abstract_name(&name).expect("name a socket");
        let sockets = [
            (path.clone(), UnixDatagram::bind(&path).expect("bind")),
            (format!("@{name}"), UnixDatagram::bind_addr(&abstract_address).expect("bind")),
        ];
        for (name, socket) in sockets {
            let manager =
                Manager::find(&env(&[("NOTIFY_SOCKET", &name)]), 7).expect("connect").expect("found");
            manager.tell("READY=1");
            let mut buffer = [0; 64];
            let length = socket.recv(&mut buffer).expect("receive");
            assert_eq!(buffer.get(..length), Some(b"READY=1".as_slice()));
            assert_eq!(manager.watchdog, None);
        }
        assert!(Manager::find(&env(&[]), 7).expect("nothing to reach").is_none());
        assert!(Manager::find(&env(&[("NOTIFY_SOCKET", "/nonexistent/notify")]), 7).is_err());
    }

    #[test]
    fn the_watchdog_is_the_one_of_this_process() {
        let check = |pairs: &[(&str, &str)], expected: Option<u64>| {
            assert_eq!(watchdog(&env(pairs), 7), expected.map(Duration::from_micros), "{pairs:?}");
        };
        check(&[], None);
        check(&[("WATCHDOG_USEC", "30000000")], Some(30_000_000));
        check(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "7")], Some(30_000_000));
        check(&[("WATCHDOG_USEC", "30000000"), ("WATCHDOG_PID", "8")], None);
        check(&[("WATCHDOG_USEC", "0")], None);
    }
}
