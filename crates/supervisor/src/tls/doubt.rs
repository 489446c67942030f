//! Ends connections whose other end is no longer believed.
//!
//! A connection lives for weeks, and streams on it as long, so that a CA that was dropped would be believed until
//! the next restart (decision 0063). Nothing here looks at the end of a certificate: it stops new connections only.

use std::fmt;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use rustls_pki_types::CertificateDer;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_rustls::client::TlsStream;

use super::security::Security;

/// Watches over one connection.
pub(super) struct Doubt(Option<Pin<Box<dyn Future<Output = ()> + Send>>>);

impl fmt::Debug for Doubt {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Doubt").field(&self.0.is_some()).finish()
    }
}

impl Doubt {
    /// Begins to watch over a connection whose other end showed `chain`; `changes` are those since before the handshake.
    pub(super) fn about(
        security: &Arc<Security>,
        mut changes: watch::Receiver<()>,
        chain: Option<&[CertificateDer<'static>]>,
    ) -> Self {
        // Who showed nothing was believed nothing.
        let Some(chain) = chain.map(<[_]>::to_vec) else { return Self(None) };
        let security = Arc::clone(security);
        Self(Some(Box::pin(async move {
            while changes.changed().await.is_ok() {
                // From the last change on, where several come one after the other.
                while let Ok(Ok(())) = tokio::time::timeout(security.patience(), changes.changed()).await {}
                if !security.believes(&chain) {
                    return;
                }
            }
            std::future::pending::<()>().await;
        })))
    }

    /// Fails, once, when the other end is no longer believed; to be asked whenever the connection is read.
    pub(super) fn poll(&mut self, context: &mut Context<'_>) -> io::Result<()> {
        if self.0.as_mut().is_some_and(|doubt| doubt.as_mut().poll(context).is_ready()) {
            self.0 = None;
            tracing::info!("ends a connection: the CA of the other end's certificate is believed no more");
            return Err(io::Error::new(io::ErrorKind::ConnectionAborted, "its CA is believed no more"));
        }
        Ok(())
    }
}

/// A connection that we made, as long as the other end is believed.
#[derive(Debug)]
pub(super) struct Believed {
    pub(super) tls: TlsStream<TcpStream>,
    pub(super) doubt: Doubt,
}

impl AsyncRead for Believed {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        self.doubt.poll(context)?;
        Pin::new(&mut self.tls).poll_read(context, buf)
    }
}

impl AsyncWrite for Believed {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.tls).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.tls).poll_shutdown(context)
    }
}
