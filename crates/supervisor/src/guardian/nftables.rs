//! The kernel's packet filter, as far as the dead-man needs it: one table, as bytes on a netlink socket
//! (uapi/linux/netfilter/nf_tables.h, man nft). It never names another table.
//!
//! The table has two sets of one element each, both with a timeout. While `open` holds the port, packets of Postgres
//! pass; else they are dropped, except on the loopback interface. The *ticket* is what makes a batch that came too late
//! fail as a whole: a batch that is to open also deletes the ticket, and the kernel refuses to delete what has expired.

use std::io;
use std::os::fd::OwnedFd;
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::netlink::{self, SocketAddrNetlink};
use rustix::net::{
    AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, bind, recv, send, socket_with,
};

/// `NFNL_SUBSYS_NFTABLES`, linux/netfilter/nfnetlink.h; so are the batch messages.
const SUBSYSTEM: u16 = 10;
const BATCH_BEGIN: u16 = 16;
const BATCH_END: u16 = 17;
/// `NFPROTO_INET`: IPv4 and IPv6.
const INET: u8 = 1;

/// `nf_tables_msg_types`.
#[derive(Clone, Copy)]
enum Verb {
    NewTable = 0,
    DeleteTable = 2,
    NewChain = 3,
    NewRule = 6,
    NewSet = 9,
    NewElement = 12,
    DeleteElement = 14,
}

/// `NLM_F_REQUEST`, `NLM_F_ACK`, `NLM_F_CREATE`, `NLM_F_APPEND`, linux/netlink.h.
const REQUEST: u16 = 0x1;
const ACK: u16 = 0x4;
const CREATE: u16 = 0x400;
const APPEND: u16 = 0x800;
/// `NLMSG_ERROR`; zero inside is an acknowledgement.
const ERROR: u16 = 2;
/// `NLA_F_NESTED`.
const NESTED: u16 = 0x8000;
/// `NFTA_LIST_ELEM`.
const ITEM: u16 = 1;

/// `NFT_SET_TIMEOUT`.
const WITH_TIMEOUT: u32 = 0x10;
/// What `nft` calls `inet_service`: only so that it can print the sets.
const PORT_TYPE: u32 = 13;
/// `ARPHRD_LOOPBACK`, linux/if_arp.h.
const LOOPBACK: u16 = 772;
/// `NFT_REG_1`: where each expression leaves its value for the next.
const REGISTER: u32 = 1;

/// The longest batch has some 1,500 bytes; a refusal repeats the message that it is about.
const ROOM: usize = 4096;

const OPEN: &str = "open";
const TICKET: &str = "ticket";

/// What a rule looks at.
#[derive(Clone, Copy)]
struct Direction {
    chain: &'static str,
    /// `NF_INET_LOCAL_IN`, `NF_INET_LOCAL_OUT`.
    hook: u32,
    /// `NFT_META_IIFTYPE`, `NFT_META_OIFTYPE`.
    interface_type: u32,
    /// Where Postgres's port is in a TCP header.
    port_at: u32,
}

const IN: Direction = Direction { chain: "in", hook: 1, interface_type: 8, port_at: 2 };
const OUT: Direction = Direction { chain: "out", hook: 3, interface_type: 9, port_at: 0 };

/// Whether a batch that needed the ticket was carried out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Opened {
    Done,
    /// The ticket had expired: nothing has changed.
    TooLate,
}

/// The table of one Postgres port, `inet rhone_<port>`, in this process's network namespace.
#[derive(Debug)]
pub(super) struct Filter {
    socket: OwnedFd,
    port: u16,
    batch: Batch,
}

impl Filter {
    /// Opens the socket. Changes nothing, and needs no privilege yet.
    pub(super) fn open(port: u16) -> io::Result<Self> {
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let socket = socket_with(AddressFamily::NETLINK, SocketType::RAW, flags, Some(netlink::NETFILTER))?;
        bind(&socket, &SocketAddrNetlink::new(0, 0))?;
        Ok(Self { socket, port, batch: Batch::new(format!("rhone_{port}")) })
    }

    /// Makes the table anew, without a rule, and puts a ticket into it.
    pub(super) fn lay(&mut self, ticket: Duration) -> io::Result<()> {
        self.batch.begin();
        self.batch.lay(self.port, ticket);
        self.exchange(true)
    }

    /// Adds the rules to what [`Filter::lay`] made; with `open`, and the ticket, open for so long from now on.
    pub(super) fn shut(&mut self, open: Option<Duration>) -> io::Result<Opened> {
        self.batch.begin();
        self.batch.rules(self.port);
        match open {
            Some(time) => self.open_by_ticket(time),
            None => self.exchange(true).map(|()| Opened::Done),
        }
    }

    /// Replaces the ticket by one that lasts so long.
    pub(super) fn put_ticket(&mut self, ticket: Duration) -> io::Result<()> {
        self.batch.begin();
        self.batch.flush(TICKET);
        self.batch.element(Verb::NewElement, TICKET, self.port, Some(ticket));
        self.exchange(true)
    }

    /// Opens for so long from now on, if the ticket is still good, whatever was before.
    pub(super) fn reopen(&mut self, time: Duration) -> io::Result<Opened> {
        self.batch.begin();
        self.batch.flush(OPEN);
        self.open_by_ticket(time)
    }

    fn open_by_ticket(&mut self, time: Duration) -> io::Result<Opened> {
        self.batch.element(Verb::NewElement, OPEN, self.port, Some(time));
        let ticket = self.batch.element(Verb::DeleteElement, TICKET, self.port, None);
        match self.send_and_hear(true)? {
            Heard::Done => Ok(Opened::Done),
            // The first refusal counts: without the table, the first message finds nothing.
            Heard::Refused { sequence, errno: Errno::NOENT } if sequence == ticket => Ok(Opened::TooLate),
            Heard::Refused { errno, .. } => Err(errno.into()),
        }
    }

    /// Closes at once.
    pub(super) fn close(&mut self) -> io::Result<()> {
        self.batch.begin();
        self.batch.flush(OPEN);
        self.exchange(true)
    }

    /// Removes the table, if it is there.
    pub(super) fn remove(&mut self) -> io::Result<()> {
        self.batch.begin();
        self.batch.remove();
        self.exchange(true)
    }

    fn exchange(&mut self, commit: bool) -> io::Result<()> {
        match self.send_and_hear(commit)? {
            Heard::Done => Ok(()),
            Heard::Refused { errno, .. } => Err(errno.into()),
        }
    }

    /// Sends the batch, which the kernel handles before the call returns, and reads what it said. Without `commit` it
    /// checks everything and changes nothing.
    fn send_and_hear(&mut self, commit: bool) -> io::Result<Heard> {
        let mut answers = [0_u8; ROOM];
        // What is left of an earlier batch is nobody's answer.
        while recv(&self.socket, &mut answers[..], RecvFlags::DONTWAIT).is_ok() {}
        let last = self.batch.finish(commit);
        send(&self.socket, &self.batch.bytes, SendFlags::empty())?;
        loop {
            let (read, _) = match recv(&self.socket, &mut answers[..], RecvFlags::DONTWAIT) {
                Err(Errno::INTR) => continue,
                // It acknowledges what it has done, before the sending returns.
                Err(Errno::AGAIN) => return Err(io::Error::from(io::ErrorKind::UnexpectedEof)),
                other => other?,
            };
            if let Some(heard) = hear(answers.get(..read).unwrap_or_default(), last) {
                return Ok(heard);
            }
        }
    }
}

/// Tries all of it without changing anything.
///
/// # Errors
/// `PermissionDenied`: this process has no `CAP_NET_ADMIN`. Others: the kernel has no nf_tables, or lacks a part.
pub(crate) fn rehearse() -> io::Result<()> {
    let mut filter = Filter::open(1)?;
    filter.batch = Batch::new("rhone_rehearsal".to_owned());
    let time = Duration::from_secs(1);
    filter.batch.begin();
    filter.batch.lay(filter.port, time);
    filter.batch.rules(filter.port);
    filter.batch.flush(OPEN);
    filter.batch.element(Verb::NewElement, OPEN, filter.port, Some(time));
    filter.batch.element(Verb::DeleteElement, TICKET, filter.port, None);
    filter.exchange(false)
}

/// What the kernel said of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Done,
    Refused { sequence: u32, errno: Errno },
}

/// Reads one answer; nothing when it says nothing about the batch that ends with `last`.
fn hear(mut bytes: &[u8], last: u32) -> Option<Heard> {
    while let Some((header, rest)) = bytes.split_first_chunk::<16>() {
        let [l0, l1, l2, l3, t0, t1, ..] = *header;
        let length = usize::try_from(u32::from_ne_bytes([l0, l1, l2, l3])).ok()?;
        let body = rest.get(..length.checked_sub(header.len())?)?;
        if u16::from_ne_bytes([t0, t1]) == ERROR
            && let Some((code, about)) = body.split_first_chunk::<4>()
            && let Some(&[.., s0, s1, s2, s3, _, _, _, _]) = about.first_chunk::<16>()
        {
            let sequence = u32::from_ne_bytes([s0, s1, s2, s3]);
            match i32::from_ne_bytes(*code) {
                0 if sequence == last => return Some(Heard::Done),
                0 => {}
                code => {
                    let errno =
                        Errno::from_raw_os_error(code.checked_neg().unwrap_or(i32::MAX).clamp(1, 4095));
                    return Some(Heard::Refused { sequence, errno });
                }
            }
        }
        bytes = bytes.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    None
}

/// A transaction, as it is built. Its room is allocated once.
#[derive(Debug)]
struct Batch {
    table: String,
    bytes: Vec<u8>,
    sequence: u32,
    /// Where the last message begins.
    last: usize,
}

impl Batch {
    fn new(table: String) -> Self {
        Self { table, bytes: Vec::with_capacity(ROOM), sequence: 0, last: 0 }
    }

    fn begin(&mut self) {
        self.bytes.clear();
        self.frame(BATCH_BEGIN);
    }

    /// Asks for an acknowledgement of the last message, and with `commit` for the whole to be done. Returns the number of
    /// that message.
    fn finish(&mut self, commit: bool) -> u32 {
        let last = self.sequence;
        if let Some(flags) =
            self.bytes.get_mut(self.last.saturating_add(6)..).and_then(|b| b.first_chunk_mut())
        {
            *flags = (u16::from_ne_bytes(*flags) | ACK).to_ne_bytes();
        }
        if commit {
            self.frame(BATCH_END);
        }
        last
    }

    fn frame(&mut self, kind: u16) {
        self.message(kind, REQUEST, (0, SUBSYSTEM), |_| {});
    }

    /// Returns the message's number.
    fn verb(&mut self, verb: Verb, flags: u16, body: impl FnOnce(&mut Vec<u8>, &str)) -> u32 {
        let table = std::mem::take(&mut self.table);
        self.message(SUBSYSTEM << 8 | verb as u16, REQUEST | flags, (INET, 0), |bytes| body(bytes, &table));
        self.table = table;
        self.sequence
    }

    fn message(&mut self, kind: u16, flags: u16, (family, id): (u8, u16), body: impl FnOnce(&mut Vec<u8>)) {
        self.sequence = self.sequence.wrapping_add(1);
        self.last = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&self.sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&[family, 0]);
        self.bytes.extend_from_slice(&id.to_be_bytes());
        body(&mut self.bytes);
        let length = u32::try_from(self.bytes.len() - self.last).unwrap_or(u32::MAX);
        if let Some(place) = self.bytes.get_mut(self.last..).and_then(|bytes| bytes.first_chunk_mut()) {
            *place = length.to_ne_bytes();
        }
    }

    fn lay(&mut self, port: u16, ticket: Duration) {
        self.remove();
        self.verb(Verb::NewTable, CREATE, |to, table| text(to, 1, table));
        for (id, name) in [(1, OPEN), (2, TICKET)] {
            self.verb(Verb::NewSet, CREATE, |to, table| {
                text(to, 1, table);
                text(to, 2, name);
                number(to, 3, WITH_TIMEOUT);
                number(to, 4, PORT_TYPE);
                number(to, 5, 2);
                number(to, 10, id);
            });
        }
        self.element(Verb::NewElement, TICKET, port, Some(ticket));
    }

    /// Removes the table: made first, so that it is there.
    fn remove(&mut self) {
        self.verb(Verb::NewTable, CREATE, |to, table| text(to, 1, table));
        self.verb(Verb::DeleteTable, 0, |to, table| text(to, 1, table));
    }

    fn rules(&mut self, port: u16) {
        for direction in [IN, OUT] {
            self.verb(Verb::NewChain, CREATE, |to, table| {
                text(to, 1, table);
                text(to, 3, direction.chain);
                nested(to, 4, |to| {
                    number(to, 1, direction.hook);
                    number(to, 2, 0);
                });
                text(to, 7, "filter");
            });
            self.verb(Verb::NewRule, CREATE | APPEND, |to, table| {
                text(to, 1, table);
                text(to, 2, direction.chain);
                nested(to, 4, |to| expressions(to, direction, port));
            });
        }
    }

    fn flush(&mut self, set: &str) {
        self.verb(Verb::DeleteElement, 0, |to, table| {
            text(to, 1, table);
            text(to, 2, set);
        });
    }

    /// Adds or deletes the one element of a set. Returns the message's number.
    fn element(&mut self, verb: Verb, set: &str, port: u16, timeout: Option<Duration>) -> u32 {
        self.verb(verb, CREATE, |to, table| {
            text(to, 1, table);
            text(to, 2, set);
            nested(to, 3, |to| {
                nested(to, ITEM, |to| {
                    nested(to, 1, |to| attribute(to, 1, &port.to_be_bytes()));
                    if let Some(timeout) = timeout {
                        let ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX);
                        attribute(to, 4, &ms.to_be_bytes());
                    }
                });
            });
        })
    }
}

/// `iiftype != loopback tcp dport 5432 tcp dport != @open drop`, and its like.
fn expressions(to: &mut Vec<u8>, direction: Direction, port: u16) {
    let (equal, differs) = (0, 1);
    meta(to, direction.interface_type);
    compare(to, differs, &LOOPBACK.to_ne_bytes());
    // NFT_META_L4PROTO; 6 is TCP.
    meta(to, 16);
    compare(to, equal, &[6]);
    expression(to, "payload", |to| {
        number(to, 1, REGISTER);
        // From the transport header.
        number(to, 2, 2);
        number(to, 3, direction.port_at);
        number(to, 4, 2);
    });
    compare(to, equal, &port.to_be_bytes());
    expression(to, "lookup", |to| {
        text(to, 1, OPEN);
        number(to, 2, REGISTER);
        // NFT_LOOKUP_F_INV
        number(to, 5, 1);
    });
    expression(to, "immediate", |to| {
        // NFT_REG_VERDICT, and in it NF_DROP.
        number(to, 1, 0);
        nested(to, 2, |to| nested(to, 2, |to| number(to, 1, 0)));
    });
}

fn meta(to: &mut Vec<u8>, key: u32) {
    expression(to, "meta", |to| {
        number(to, 1, REGISTER);
        number(to, 2, key);
    });
}

fn compare(to: &mut Vec<u8>, operator: u32, value: &[u8]) {
    expression(to, "cmp", |to| {
        number(to, 1, REGISTER);
        number(to, 2, operator);
        nested(to, 3, |to| attribute(to, 1, value));
    });
}

fn expression(to: &mut Vec<u8>, name: &str, body: impl FnOnce(&mut Vec<u8>)) {
    nested(to, ITEM, |to| {
        text(to, 1, name);
        nested(to, 2, body);
    });
}

fn text(to: &mut Vec<u8>, kind: u16, text: &str) {
    let start = to.len();
    head(to, kind);
    to.extend_from_slice(text.as_bytes());
    to.push(0);
    close(to, start);
}

/// Numbers of netfilter's are in network order.
fn number(to: &mut Vec<u8>, kind: u16, number: u32) {
    attribute(to, kind, &number.to_be_bytes());
}

fn attribute(to: &mut Vec<u8>, kind: u16, value: &[u8]) {
    let start = to.len();
    head(to, kind);
    to.extend_from_slice(value);
    close(to, start);
}

fn nested(to: &mut Vec<u8>, kind: u16, body: impl FnOnce(&mut Vec<u8>)) {
    let start = to.len();
    head(to, kind | NESTED);
    body(to);
    close(to, start);
}

fn head(to: &mut Vec<u8>, kind: u16) {
    to.extend_from_slice(&[0; 2]);
    to.extend_from_slice(&kind.to_ne_bytes());
}

/// Writes the length of the attribute that begins at `start`, and fills up to the next one.
fn close(to: &mut Vec<u8>, start: usize) {
    let length = u16::try_from(to.len().saturating_sub(start)).unwrap_or(u16::MAX);
    if let Some(place) = to.get_mut(start..).and_then(|bytes| bytes.first_chunk_mut()) {
        *place = length.to_ne_bytes();
    }
    to.resize(to.len().next_multiple_of(4), 0);
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    /// Runs `work` in a network namespace of its own; not without the right to make one, which it says.
    fn apart(work: impl FnOnce() + Send) {
        std::thread::scope(|scope| {
            let done = scope.spawn(|| match crate::guardian::sys::own_network() {
                Err(error) => eprintln!("SKIPPED: no network namespace can be made here: {error}"),
                Ok(()) => match rehearse() {
                    Err(error) => eprintln!("SKIPPED: the kernel has no nf_tables: {error}"),
                    Ok(()) => work(),
                },
            });
            done.join().expect("no panic");
        });
    }

    /// What `nft` shows of this thread's network; none where it is not installed.
    fn listed() -> Option<String> {
        let shown = std::process::Command::new("nft").args(["list", "ruleset"]).output().ok()?;
        Some(String::from_utf8_lossy(&shown.stdout).split_whitespace().collect::<Vec<_>>().join(" "))
    }

    /// Whether `open` holds the port: the kernel deletes only what is there, and this does not commit.
    fn is_open(filter: &mut Filter) -> bool {
        filter.batch.begin();
        filter.batch.element(Verb::DeleteElement, OPEN, filter.port, None);
        match filter.exchange(false) {
            Ok(()) => true,
            Err(error) if error.raw_os_error() == Some(Errno::NOENT.raw_os_error()) => false,
            Err(error) => panic!("{error}"),
        }
    }

    fn until(what: &str, mut holds: impl FnMut() -> bool) {
        for _ in 0..6000 {
            if holds() {
                return;
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        panic!("not within 30 s: {what}");
    }

    #[test]
    fn the_kernel_reads_the_table_as_it_is_meant() {
        apart(|| {
            let mut filter = Filter::open(5432).expect("a socket");
            filter.lay(60 * SECOND).expect("lay");
            assert_eq!(filter.shut(Some(60 * SECOND)).expect("shut"), Opened::Done);
            let Some(shown) = listed() else { return eprintln!("SKIPPED: nft is not installed") };
            for part in [
                "table inet rhone_5432 {",
                "set open { type inet_service flags timeout elements = { 5432 timeout 1m",
                "set ticket { type inet_service flags timeout }",
                "type filter hook input",
                "iiftype != loopback tcp dport 5432 tcp dport != @open drop",
                "type filter hook output",
                "oiftype != loopback tcp sport 5432 tcp sport != @open drop",
            ] {
                assert!(shown.contains(part), "no `{part}` in {shown}");
            }
            // What an earlier guardian left is replaced, and what is not there is removed without an error.
            filter.lay(60 * SECOND).expect("lay again");
            assert!(!is_open(&mut filter));
            for _ in 0..2 {
                filter.remove().expect("remove");
                assert_eq!(listed().as_deref(), Some(""));
            }
            // Somebody else flushed everything.
            let gone = filter.put_ticket(SECOND).expect_err("no table");
            assert_eq!(gone.kind(), io::ErrorKind::NotFound);
            assert!(filter.reopen(SECOND).is_err(), "no table is not `too late`");
        });
    }

    #[test]
    fn whoever_comes_too_late_changes_nothing() {
        apart(|| {
            let mut filter = Filter::open(5432).expect("a socket");
            // A sender that is stopped here, for longer than its ticket lasts.
            filter.lay(Duration::from_millis(1)).expect("lay");
            until("the first ticket expires", || {
                filter.shut(Some(600 * SECOND)).expect("shut") == Opened::TooLate || {
                    filter.lay(Duration::from_millis(1)).expect("lay anew");
                    false
                }
            });
            assert!(
                listed().is_none_or(|shown| !shown.contains("chain")),
                "a rule of a batch that was refused"
            );
            filter.lay(600 * SECOND).expect("lay");
            assert_eq!(filter.shut(Some(600 * SECOND)).expect("shut"), Opened::Done);
            assert!(is_open(&mut filter));
            assert_eq!(filter.reopen(600 * SECOND).expect("reopen"), Opened::TooLate, "a ticket serves once");
            assert!(is_open(&mut filter), "what was refused closed it");
            // Opens anew for less than before.
            filter.put_ticket(600 * SECOND).expect("a ticket");
            assert_eq!(filter.reopen(Duration::from_millis(50)).expect("reopen"), Opened::Done);
            until("it closes by itself", || !is_open(&mut filter));
            filter.put_ticket(600 * SECOND).expect("a ticket");
            assert_eq!(filter.reopen(600 * SECOND).expect("reopen"), Opened::Done);
            filter.close().expect("close");
            assert!(!is_open(&mut filter));
            filter.remove().expect("remove");
        });
    }

    #[test]
    fn a_shut_table_is_closed_from_the_first_moment() {
        apart(|| {
            let mut filter = Filter::open(6432).expect("a socket");
            filter.lay(SECOND).expect("lay");
            assert_eq!(filter.shut(None).expect("shut"), Opened::Done);
            assert!(!is_open(&mut filter));
            let shown = listed().unwrap_or_else(|| "tcp sport 6432".to_owned());
            assert!(shown.contains("tcp sport 6432"), "{shown}");
        });
    }

    #[test]
    fn a_rehearsal_changes_nothing() {
        apart(|| assert_eq!(listed().unwrap_or_default(), ""));
    }

    /// An answer: code, number of the message that it is about, `+` and the next one.
    #[track_caller]
    fn check(answers: &[(u16, i32, u32)], expected: Option<Heard>) {
        let mut bytes = Vec::new();
        for &(kind, code, sequence) in answers {
            let about = [20_u32.to_ne_bytes(), [0; 4], sequence.to_ne_bytes(), [0; 4]].concat();
            let length = 16 + 4 + u32::try_from(about.len()).expect("short");
            bytes.extend_from_slice(&length.to_ne_bytes());
            bytes.extend_from_slice(&kind.to_ne_bytes());
            bytes.extend_from_slice(&[0; 10]);
            bytes.extend_from_slice(&code.to_ne_bytes());
            bytes.extend_from_slice(&about);
        }
        assert_eq!(hear(&bytes, 9), expected, "{answers:?}");
        for end in 0..bytes.len() {
            // Cut anywhere it is no other answer than one of those that are whole.
            let cut = hear(bytes.get(..end).expect("shorter"), 9);
            assert!(cut.is_none() || cut == expected, "{answers:?} cut at {end}");
        }
    }

    #[test]
    fn answers_are_read() {
        let refused = |sequence, errno| Some(Heard::Refused { sequence, errno });
        check(&[], None);
        check(&[(ERROR, 0, 9)], Some(Heard::Done));
        check(&[(ERROR, 0, 8)], None);
        check(&[(ERROR, 0, 8), (ERROR, 0, 9)], Some(Heard::Done));
        check(&[(ERROR, -1, 1)], refused(1, Errno::PERM));
        // The first refusal counts.
        check(&[(ERROR, -2, 3), (ERROR, -2, 9)], refused(3, Errno::NOENT));
        check(&[(ERROR, i32::MIN, 3)], refused(3, Errno::from_raw_os_error(4095)));
        check(&[(3, -1, 9)], None);
    }
}
