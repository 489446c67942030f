//! The guardian's end of the control socket: who is connected, and how they are told.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::io::Errno;
use rustix::net::{
    AddressFamily, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags,
    SocketType, accept_with, bind, listen, send, sendmsg, socket_with,
};

use super::wire::{self, Event, Kind, Reply};

/// How many may be connected at once.
pub(super) const CONNECTIONS: usize = 8;
/// Larger than any reply: only a status has text in it.
const REPLY_MAX: usize = 16 * 1024;
const SOCKET: &str = "guardian.sock";

/// The socket's address by way of a descriptor of its directory: a path may be longer than 107 bytes.
pub(super) fn address(dir: BorrowedFd<'_>) -> String {
    format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd())
}

/// Makes the socket. The lock must be held: a socket of a former guardian is replaced.
pub(super) fn open(dir: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    use rustix::fs::{AtFlags, Mode, unlinkat};
    let _ = unlinkat(dir, SOCKET, AtFlags::empty());
    let kind = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
    let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, kind, None)?;
    let before = rustix::process::umask(Mode::RWXG | Mode::RWXO);
    let bound = bind(&socket, &SocketAddrUnix::new(address(dir))?);
    rustix::process::umask(before);
    bound?;
    listen(&socket, 16)?;
    Ok(socket)
}

pub(super) fn remove(dir: BorrowedFd<'_>) {
    let _ = rustix::fs::unlinkat(dir, SOCKET, rustix::fs::AtFlags::empty());
}

/// One connection, known by a number that is never used again.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) number: u64,
    pub(super) socket: OwnedFd,
    /// Number of the request that is answered when nothing of the instance is left.
    pub(super) awaits_kill: Option<u32>,
}

/// Everybody who is connected.
#[derive(Debug)]
pub(super) struct Connections {
    slots: [Option<Connection>; CONNECTIONS],
    last: u64,
    /// Whose commands are obeyed.
    pub(super) owner: Option<u64>,
    packet: Box<[u8; REPLY_MAX]>,
}

impl Connections {
    pub(super) fn new() -> Self {
        let packet = Box::new([0; REPLY_MAX]);
        Self { slots: Default::default(), last: 0, owner: None, packet }
    }

    /// The descriptors to wait for, a slot each.
    pub(super) fn sockets(&self) -> [Option<BorrowedFd<'_>>; CONNECTIONS] {
        std::array::from_fn(|slot| {
            self.slots.get(slot).and_then(Option::as_ref).map(|connection| connection.socket.as_fd())
        })
    }

    pub(super) fn get(&mut self, slot: usize) -> Option<&mut Connection> {
        self.slots.get_mut(slot)?.as_mut()
    }

    /// Takes on everybody who waits, if they are root or this user. `false`: some had to be left waiting.
    ///
    /// Where all slots are taken, the oldest connection that is not the owner's is closed.
    pub(super) fn accept(&mut self, listener: &OwnedFd) -> bool {
        loop {
            let socket = match accept_with(listener, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK) {
                Ok(socket) => socket,
                Err(Errno::AGAIN) => return true,
                Err(Errno::INTR | Errno::CONNABORTED) => continue,
                Err(_) => return false,
            };
            let peer = rustix::net::sockopt::socket_peercred(&socket);
            let welcome = peer.is_ok_and(|peer| peer.uid.is_root() || peer.uid == rustix::process::geteuid());
            if !welcome {
                continue;
            }
            let owner = self.owner;
            let age = |slot: &&mut Option<Connection>| slot.as_ref().map(|taken| taken.number);
            let replaceable = |slot: &&mut Option<Connection>| owner.is_none() || age(slot) != owner;
            let Some(slot) = self.slots.iter_mut().filter(replaceable).min_by_key(age) else { continue };
            self.last = self.last.saturating_add(1);
            *slot = Some(Connection { number: self.last, socket, awaits_kill: None });
        }
    }

    pub(super) fn close(&mut self, slot: usize) {
        if let Some(slot) = self.slots.get_mut(slot) {
            *slot = None;
        }
    }

    /// Answers a request. Whoever does not take the answer at once is hung, and is cut off.
    pub(super) fn reply(&mut self, to: u64, reply: &Reply, memfd: Option<BorrowedFd<'_>>) {
        let Some(slot) = self.slots.iter_mut().find(|slot| slot.as_ref().is_some_and(|c| c.number == to))
        else {
            return;
        };
        let Some(packet) = wire::pack(Kind::Reply, reply, self.packet.as_mut_slice()) else { return };
        if !slot.as_ref().is_some_and(|connection| sent(&connection.socket, packet, memfd)) {
            *slot = None;
        }
    }

    /// Tells the peer that it speaks another version of the protocol.
    pub(super) fn wrong_version(&mut self, slot: usize) {
        let Some(connection) = self.get(slot) else { return };
        let socket = &connection.socket;
        let mut header = [0; 8];
        if let Some(packet) = wire::pack(Kind::WrongVersion, &(), &mut header) {
            sent(socket, packet, None);
        }
        self.close(slot);
    }

    /// Tells everybody.
    pub(super) fn tell(&mut self, event: &Event) {
        let Some(packet) = wire::pack(Kind::Event, event, self.packet.as_mut_slice()) else { return };
        for slot in &mut self.slots {
            if slot.as_ref().is_some_and(|connection| !sent(&connection.socket, packet, None)) {
                *slot = None;
            }
        }
    }

    /// Tells the owner only.
    pub(super) fn tell_owner(&mut self, event: &Event) {
        let Some(packet) = wire::pack(Kind::Event, event, self.packet.as_mut_slice()) else { return };
        for connection in self.slots.iter().flatten() {
            if Some(connection.number) == self.owner {
                sent(&connection.socket, packet, None);
            }
        }
    }

    /// Keeps a request until nothing of the instance is left.
    pub(super) fn await_kill(&mut self, (from, id): (u64, u32)) {
        if let Some(connection) = self.slots.iter_mut().flatten().find(|c| c.number == from) {
            connection.awaits_kill = Some(id);
        }
    }

    /// Takes the requests that wait for the end of the instance: whose, and their numbers.
    pub(super) fn take_kill_waiters(&mut self) -> [Option<(u64, u32)>; CONNECTIONS] {
        std::array::from_fn(|slot| {
            let connection = self.get(slot)?;
            Some((connection.number, connection.awaits_kill.take()?))
        })
    }
}

/// Sends without ever waiting.
fn sent(socket: &OwnedFd, packet: &[u8], memfd: Option<BorrowedFd<'_>>) -> bool {
    let flags = SendFlags::DONTWAIT | SendFlags::NOSIGNAL;
    let Some(memfd) = memfd else { return send(socket, packet, flags).is_ok() };
    let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    let fds = [memfd];
    control.push(SendAncillaryMessage::ScmRights(&fds))
        && sendmsg(socket, &[io::IoSlice::new(packet)], &mut control, flags).is_ok()
}
