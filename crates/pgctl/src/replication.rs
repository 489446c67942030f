//! A small client of the replication protocol, for the one answer that SQL cannot give: how far
//! this server's WAL really goes (`IDENTIFY_SYSTEM`).
//!
//! `pg_last_wal_receive_lsn()` says less than the server has after a restart; this does not.

use std::io;
use std::path::PathBuf;
use std::time::Duration;

use bytes::BytesMut;
use fallible_iterator::FallibleIterator as _;
use postgres_protocol::authentication::sasl::{ChannelBinding, SCRAM_SHA_256, ScramSha256};
use postgres_protocol::message::backend::{DataRowBody, ErrorResponseBody, Message};
use postgres_protocol::message::frontend;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::{TcpStream, UnixStream};

use crate::connection::Target;
use crate::error::PgError;
use crate::wal::{SystemId, Timeline, WalPosition};

/// A server's answer is never longer than this here.
const ANSWER_LIMIT: usize = 1 << 20;

/// Where a server listens for replication connections.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ReplicationAddress {
    /// A Unix socket in this directory, named by the port.
    Unix(PathBuf, u16),
    /// A host and a port.
    Tcp(String, u16),
}

/// How to open a replication connection.
#[derive(Clone, PartialEq, Eq)]
pub struct ReplicationTarget {
    /// Where the server listens.
    pub address: ReplicationAddress,
    /// The role.
    pub user: String,
    /// The password, where the server asks for one.
    pub password: Option<String>,
}

impl std::fmt::Debug for ReplicationTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("ReplicationTarget")
            .field("address", &self.address)
            .field("user", &self.user)
            .finish_non_exhaustive()
    }
}

impl From<&Target> for ReplicationTarget {
    fn from(target: &Target) -> Self {
        Self {
            address: ReplicationAddress::Unix(target.socket_dir.clone(), target.port),
            user: target.user.clone(),
            password: None,
        }
    }
}

/// What `IDENTIFY_SYSTEM` says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SystemIdentity {
    /// The number that initdb gave the data.
    pub system_id: SystemId,
    /// The end of the WAL that is on its disk: flushed on a primary; on a standby the larger of
    /// replayed and received.
    pub position: WalPosition,
}

/// Asks a server who it is and how far its WAL goes.
///
/// On a standby this is the truth only once replay has reached the end of local WAL:
/// see [`crate::standby::wait_end_of_local_wal`].
///
/// # Errors
/// [`PgError::TimedOut`], [`PgError::Unreachable`], or [`PgError::Unexpected`] with what the server said.
pub async fn identify_system(target: &ReplicationTarget, limit: Duration) -> Result<SystemIdentity, PgError> {
    let operation = "identify the system";
    let ask = async {
        match &target.address {
            ReplicationAddress::Unix(directory, port) => {
                let path = directory.join(format!(".s.PGSQL.{port}"));
                converse(UnixStream::connect(path).await?, target).await
            }
            ReplicationAddress::Tcp(host, port) => {
                converse(TcpStream::connect((host.as_str(), *port)).await?, target).await
            }
        }
    };
    match tokio::time::timeout(limit, ask).await {
        Err(_) => Err(PgError::TimedOut { operation: operation.into(), limit }),
        Ok(Ok(identity)) => Ok(identity),
        Ok(Err(error)) if error.kind() == io::ErrorKind::InvalidData => {
            Err(PgError::unexpected(operation, error.to_string()))
        }
        Ok(Err(error)) => Err(PgError::Unreachable { operation: operation.into(), source: Box::new(error) }),
    }
}

struct Wire<S> {
    stream: S,
    buffer: BytesMut,
}

impl<S: AsyncRead + AsyncWrite + Unpin> Wire<S> {
    async fn send(&mut self, build: impl FnOnce(&mut BytesMut) -> io::Result<()>) -> io::Result<()> {
        let mut out = BytesMut::new();
        build(&mut out)?;
        self.stream.write_all(&out).await
    }

    /// Reads the next message that matters; an error message ends the conversation.
    async fn next(&mut self) -> io::Result<Message> {
        loop {
            match Message::parse(&mut self.buffer)? {
                Some(Message::ErrorResponse(body)) => return Err(server_error(&body)),
                Some(
                    Message::NoticeResponse(_) | Message::ParameterStatus(_) | Message::BackendKeyData(_),
                ) => {}
                Some(message) => return Ok(message),
                None if self.buffer.len() > ANSWER_LIMIT => return Err(bad("the answer is too long")),
                None => {
                    if self.stream.read_buf(&mut self.buffer).await? == 0 {
                        return Err(io::ErrorKind::UnexpectedEof.into());
                    }
                }
            }
        }
    }
}

async fn converse<S>(stream: S, target: &ReplicationTarget) -> io::Result<SystemIdentity>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut wire = Wire { stream, buffer: BytesMut::with_capacity(4096) };
    let parameters = [("user", target.user.as_str()), ("replication", "true"), ("application_name", "rhone")];
    wire.send(|out| frontend::startup_message(parameters, out)).await?;
    authenticate(&mut wire, target).await?;
    wire.send(|out| frontend::query("IDENTIFY_SYSTEM", out)).await?;
    let mut identity = None;
    loop {
        let message = wire.next().await?;
        if let Message::DataRow(row) = &message {
            identity = Some(parse_identity(row)?);
        } else if matches!(message, Message::ReadyForQuery(_)) {
            break;
        }
    }
    wire.send(|out| {
        frontend::terminate(out);
        Ok(())
    })
    .await
    .ok();
    identity.ok_or_else(|| bad("no row"))
}

async fn authenticate<S>(wire: &mut Wire<S>, target: &ReplicationTarget) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let password = || target.password.as_deref().ok_or_else(|| bad("the server asks for a password"));
    loop {
        let message = wire.next().await?;
        if let Message::AuthenticationSasl(offer) = &message {
            let mechanisms: Vec<&str> = offer.mechanisms().collect()?;
            if !mechanisms.contains(&SCRAM_SHA_256) {
                return Err(bad("the server offers no SCRAM-SHA-256"));
            }
            scram(wire, password()?).await?;
        } else if matches!(message, Message::AuthenticationCleartextPassword) {
            return Err(bad("the server asks for the password in clear text"));
        } else if matches!(message, Message::AuthenticationMd5Password(_)) {
            return Err(bad("the server asks for an MD5 password; use scram-sha-256"));
        } else if matches!(message, Message::ReadyForQuery(_)) {
            return Ok(());
        } else if !matches!(message, Message::AuthenticationOk) {
            return Err(bad("the server asks for an authentication that is not supported"));
        }
    }
}

async fn scram<S>(wire: &mut Wire<S>, password: &str) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    let mut scram = ScramSha256::new(password.as_bytes(), ChannelBinding::unsupported());
    wire.send(|out| frontend::sasl_initial_response(SCRAM_SHA_256, scram.message(), out)).await?;
    let Message::AuthenticationSaslContinue(body) = wire.next().await? else {
        return Err(bad("SCRAM was broken off"));
    };
    scram.update(body.data())?;
    wire.send(|out| frontend::sasl_response(scram.message(), out)).await?;
    let Message::AuthenticationSaslFinal(body) = wire.next().await? else {
        return Err(bad("SCRAM was broken off"));
    };
    scram.finish(body.data())
}

fn parse_identity(row: &DataRowBody) -> io::Result<SystemIdentity> {
    let ranges: Vec<_> = row.ranges().collect()?;
    let field = |index: usize| -> io::Result<&str> {
        let range = ranges.get(index).cloned().flatten().ok_or_else(|| bad("a column is missing"))?;
        let bytes = row.buffer().get(range).ok_or_else(|| bad("a column is cut off"))?;
        std::str::from_utf8(bytes).map_err(|_| bad("a column is no text"))
    };
    let timeline = field(1)?.parse().map_err(|_| bad("the timeline is no number"))?;
    Ok(SystemIdentity {
        system_id: field(0)?.parse().map_err(|_| bad("the system identifier is no number"))?,
        position: WalPosition::new(
            Timeline::new(timeline),
            field(2)?.parse().map_err(|_| bad("the position is no LSN"))?,
        ),
    })
}

fn server_error(body: &ErrorResponseBody) -> io::Error {
    let (mut code, mut text) = (String::new(), String::from("the server reported an error"));
    let mut fields = body.fields();
    while let Ok(Some(field)) = fields.next() {
        match field.type_() {
            b'C' => code = String::from_utf8_lossy(field.value_bytes()).into_owned(),
            b'M' => text = String::from_utf8_lossy(field.value_bytes()).into_owned(),
            _ => {}
        }
    }
    // Class 57: the server is starting up, or going down. Class 53: too many connections.
    let kind = if code.starts_with("57") || code.starts_with("53") {
        io::ErrorKind::ConnectionRefused
    } else {
        io::ErrorKind::InvalidData
    };
    io::Error::new(kind, text)
}

fn bad(reason: &str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason)
}
