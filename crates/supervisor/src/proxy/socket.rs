//! Options of the proxy's sockets.

use std::io;
use std::time::Duration;

use rustix::net::sockopt;
use tokio::net::TcpStream;

/// A server whose kernel answers nothing for this long is gone: keepalives while idle, `TCP_USER_TIMEOUT` while
/// something is unacknowledged. Long enough for a cable that is plugged again; a lost primary is cut sooner, by the
/// epoch.
pub(super) const SERVER_GONE: Duration = Duration::from_secs(30);

/// Keepalives to clients begin after so long without traffic.
const CLIENT_IDLE: Duration = Duration::from_secs(60);

/// And are sent this often, so that a client that is gone is noticed after two minutes.
const CLIENT_INTERVAL: Duration = Duration::from_secs(10);

/// So many without an answer end the connection.
const CLIENT_PROBES: u32 = 6;

/// Makes a socket that is closed before [`in_order`] was called end in a reset, also when this process dies: its
/// peer learns at once that the connection is gone, and takes no cut for an end in order.
fn abrupt(socket: &TcpStream) -> io::Result<()> {
    sockopt::set_socket_linger(socket, Some(Duration::ZERO))?;
    socket.set_nodelay(true)
}

/// Prepares a client's socket.
///
/// No `TCP_USER_TIMEOUT`: it also ends a client that does not read for a while, as `less` under a long result.
pub(super) fn prepare_client(socket: &TcpStream) -> io::Result<()> {
    abrupt(socket)?;
    sockopt::set_tcp_keepidle(socket, CLIENT_IDLE)?;
    sockopt::set_tcp_keepintvl(socket, CLIENT_INTERVAL)?;
    sockopt::set_tcp_keepcnt(socket, CLIENT_PROBES)?;
    Ok(sockopt::set_socket_keepalive(socket, true)?)
}

/// Prepares a socket to a server.
pub(super) fn prepare_server(socket: &TcpStream) -> io::Result<()> {
    abrupt(socket)?;
    sockopt::set_tcp_keepidle(socket, SERVER_GONE / 3)?;
    sockopt::set_tcp_keepintvl(socket, SERVER_GONE / 6)?;
    sockopt::set_tcp_keepcnt(socket, 4)?;
    sockopt::set_socket_keepalive(socket, true)?;
    watch_unacknowledged(socket, true)
}

/// Lets unacknowledged bytes to a server end the connection, or not: a backend that reads nothing for a while, since
/// it waits for a lock under a COPY, must not.
pub(super) fn watch_unacknowledged(socket: &TcpStream, on: bool) -> io::Result<()> {
    let limit = if on { u32::try_from(SERVER_GONE.as_millis()).unwrap_or(u32::MAX) } else { 0 };
    Ok(sockopt::set_tcp_user_timeout(socket, limit)?)
}

/// Lets the socket end in order: what was written is delivered first.
pub(super) fn in_order(socket: &TcpStream) {
    // A socket that is gone already has no order left to keep.
    sockopt::set_socket_linger(socket, None).ok();
}

/// Ends one direction.
pub(super) fn shutdown_write(socket: &TcpStream) {
    // The other side may have reset it meanwhile: then there is nothing to end.
    rustix::net::shutdown(socket, rustix::net::Shutdown::Write).ok();
}

/// Raises the limit of open files as far as the system lets this process: two for each connection.
pub(super) fn raise_file_limit(connections: usize) {
    use rustix::process::{Resource, getrlimit, setrlimit};
    let mut limit = getrlimit(Resource::Nofile);
    let wanted = u64::try_from(connections).unwrap_or(u64::MAX).saturating_mul(2).saturating_add(512);
    let most = limit.maximum.unwrap_or(u64::MAX);
    if limit.current.is_some_and(|current| current < wanted) {
        limit.current = Some(wanted.min(most));
        setrlimit(Resource::Nofile, limit).ok();
    }
    if most < wanted {
        tracing::warn!(limit = most, wanted, "the limit of open files is below proxy.max-connections");
    }
}
