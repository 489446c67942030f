//! Sends what belongs together in one piece.
//!
//! An HTTP/2 client writes a request's header and then, once the connection has made room for it, its
//! body: two segments, each of which wakes the peer. Held back for one turn of the runtime, the first
//! leaves with the second (decision 0046).

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// So much is held back at most; more of it is written as it comes.
const HELD: usize = 16 * 1024;

/// A connection that puts each flush off until the other tasks that are ready have run.
#[derive(Debug)]
pub struct Batched<T> {
    inner: T,
    held: Vec<u8>,
    /// What of `held` is written already.
    written: usize,
    /// Whether the flush under way was put off already.
    put_off: bool,
}

impl<T> Batched<T> {
    /// Wraps a connection.
    pub fn new(inner: T) -> Self {
        Self { inner, held: Vec::new(), written: 0, put_off: false }
    }
}

impl<T: AsyncWrite + Unpin> Batched<T> {
    /// Writes what is held back.
    fn poll_drain(&mut self, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        while let Some(rest) = self.held.get(self.written..).filter(|rest| !rest.is_empty()) {
            let written = ready!(Pin::new(&mut self.inner).poll_write(context, rest))?;
            if written == 0 {
                return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
            }
            self.written = self.written.saturating_add(written);
        }
        self.held.clear();
        self.written = 0;
        Poll::Ready(Ok(()))
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Batched<T> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        data: &[u8],
    ) -> Poll<io::Result<usize>> {
        if self.held.len() >= HELD {
            ready!(self.poll_drain(context))?;
        }
        let room = HELD.saturating_sub(self.held.len());
        let (taken, _) = data.split_at(room.min(data.len()));
        self.held.extend_from_slice(taken);
        Poll::Ready(Ok(taken.len()))
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        if !self.held.is_empty() && !self.put_off {
            self.put_off = true;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        ready!(self.poll_drain(context))?;
        self.put_off = false;
        Pin::new(&mut self.inner).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        ready!(self.poll_drain(context))?;
        Pin::new(&mut self.inner).poll_shutdown(context)
    }
}

impl<T: AsyncRead + Unpin> AsyncRead for Batched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(context, buffer)
    }
}

#[cfg(test)]
mod tests {
    use tokio::io::{AsyncReadExt, AsyncWriteExt, duplex};

    use super::*;

    #[tokio::test]
    async fn what_is_written_before_a_flush_comes_in_one_piece() {
        let (near, mut far) = duplex(1024);
        let mut near = Batched::new(near);
        near.write_all(b"header").await.unwrap();
        near.write_all(b" and body").await.unwrap();
        near.flush().await.unwrap();
        let mut read = [0; 100];
        let count = far.read(&mut read).await.unwrap();
        assert_eq!(&read[..count], b"header and body");
    }

    #[tokio::test]
    async fn more_than_is_held_back_and_than_the_other_side_takes_arrives_whole() {
        let (near, mut far) = duplex(1000);
        let sent: Vec<u8> = (0..100_000_u32).flat_map(u32::to_be_bytes).collect();
        let expected = sent.clone();
        let writer = tokio::spawn(async move {
            let mut near = Batched::new(near);
            near.write_all(&sent).await.unwrap();
            near.shutdown().await.unwrap();
        });
        let mut read = Vec::new();
        far.read_to_end(&mut read).await.unwrap();
        writer.await.unwrap();
        assert!(read == expected, "{} bytes", read.len());
    }
}
