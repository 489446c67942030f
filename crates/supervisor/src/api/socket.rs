//! The member's local socket, `<state-dir>/rhone.sock`: gRPC for operators on the same machine.
//!
//! The kernel takes at most 107 bytes of path, so a longer one is reached through
//! `/proc/self/fd/N` of its folder.

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use rhone_pgctl::user::OsUser;
use rustix::fs::{Mode, OFlags};
use tokio::net::{UnixListener, UnixStream};
use tokio_stream::wrappers::UnixListenerStream;

/// The socket's name in the state directory.
pub const SOCKET_NAME: &str = "rhone.sock";

/// `sun_path` holds 108 bytes with its end (unix(7)).
const MAX_PATH: usize = 107;

/// A path short enough for the kernel, and what keeps it alive.
struct ShortPath {
    path: PathBuf,
    _folder: Option<OwnedFd>,
}

fn short_path(state_dir: &Path) -> io::Result<ShortPath> {
    let path = state_dir.join(SOCKET_NAME);
    if path.as_os_str().len() <= MAX_PATH {
        return Ok(ShortPath { path, _folder: None });
    }
    let folder =
        rustix::fs::open(state_dir, OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC, Mode::empty())?;
    let path = PathBuf::from(format!("/proc/self/fd/{}", folder.as_raw_fd())).join(SOCKET_NAME);
    Ok(ShortPath { path, _folder: Some(folder) })
}

/// Listens on the local socket, which belongs to `owner`, the owner of the data directory (mode 0600);
/// root may use it as well.
///
/// A socket that a dead supervisor left behind is replaced; the caller makes sure, by its lock
/// on the state directory, that no other supervisor lives.
///
/// # Errors
///
/// When the folder is missing or cannot be written.
pub fn bind(state_dir: &Path, owner: &OsUser) -> io::Result<UnixListenerStream> {
    let short = short_path(state_dir)?;
    match std::fs::remove_file(&short.path) {
        Ok(()) => {}
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let listener = UnixListener::bind(&short.path)?;
    std::fs::set_permissions(&short.path, Permissions::from_mode(0o600))?;
    let me = OsUser::current();
    if me.uid == 0 && owner.uid != 0 {
        std::os::unix::fs::chown(&short.path, Some(owner.uid), Some(owner.gid))?;
    }
    Ok(UnixListenerStream::new(listener))
}

/// Connects to the local socket of the member whose state directory this is.
///
/// # Errors
///
/// When nobody listens there or the caller may not connect.
pub async fn connect(state_dir: &Path) -> io::Result<UnixStream> {
    let short = short_path(state_dir)?;
    UnixStream::connect(&short.path).await
}
