//! TLS of the listener: certificate and key come from two files, and each connection shakes hands in its own task, so that a
//! slow or silent client keeps nobody waiting.

use std::future::Future;
use std::io::{self, ErrorKind, IoSlice};
use std::path::Path;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::TlsAcceptor;
use tokio_rustls::rustls::crypto::aws_lc_rs;
use tokio_rustls::rustls::pki_types::pem::{self, PemObject};
use tokio_rustls::rustls::pki_types::{CertificateDer, PrivateKeyDer};
use tokio_rustls::rustls::{self, ServerConfig};
use tokio_rustls::server::TlsStream;

use crate::config::TlsFiles;

/// How long a client may take to shake hands.
const HANDSHAKE: Duration = Duration::from_secs(10);

/// Reads both files.
///
/// # Errors
/// A file cannot be read, does not hold what it should, or the two do not belong together; the message names the file.
pub fn load(files: &TlsFiles) -> Result<Arc<ServerConfig>, String> {
    let (cert, key) = (files.cert.display(), files.key.display());
    let chain = certificates(&files.cert).map_err(|why| format!("tls.cert: {cert}: {why}"))?;
    let secret = PrivateKeyDer::from_pem_file(&files.key)
        .map_err(|error| format!("tls.key: {key}: {}", wrong(error, "PRIVATE KEY")))?;
    let config = ServerConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_no_client_auth()
        .with_single_cert(chain, secret);
    let mut config = config.map_err(|error| match error {
        rustls::Error::InconsistentKeys(_) => {
            format!("tls.key: {key} does not belong to the certificate in {cert}")
        }
        rustls::Error::InvalidCertificate(_) => format!("tls.cert: {cert}: {error}"),
        _ => format!("tls.key: {key}: {error}"),
    })?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}

/// The certificates in a file, at least one.
pub(crate) fn certificates(file: &Path) -> Result<Vec<CertificateDer<'static>>, String> {
    let found = CertificateDer::pem_file_iter(file).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    match found {
        Ok(chain) if chain.is_empty() => Err(wrong(pem::Error::NoItemsFound, "CERTIFICATE")),
        found => found.map_err(|error| wrong(error, "CERTIFICATE")),
    }
}

fn wrong(error: pem::Error, wanted: &str) -> String {
    match error {
        pem::Error::Io(error) => error.to_string(),
        pem::Error::NoItemsFound => format!("there is no `-----BEGIN {wanted}-----` in it"),
        _ => format!("it is not PEM: {error}"),
    }
}

type Handshake = Pin<Box<dyn Future<Output = io::Result<TlsStream<TcpStream>>> + Send>>;

/// A connection with a client, with or without TLS.
pub(crate) enum Connection {
    Plain(TcpStream),
    /// The first read ends the handshake.
    Shaking(Handshake),
    Tls(Box<TlsStream<TcpStream>>),
    /// The handshake failed.
    Broken,
}

impl Connection {
    pub(crate) fn new(stream: TcpStream, tls: Option<Arc<ServerConfig>>) -> Self {
        match tls {
            None => Self::Plain(stream),
            Some(config) => Self::Shaking(Box::pin(async {
                let shaken = TlsAcceptor::from(config).accept(stream);
                tokio::time::timeout(HANDSHAKE, shaken).await.map_err(|_| ErrorKind::TimedOut)?
            })),
        }
    }

    /// Goes on with the handshake, if it is not over.
    fn poll_shaken(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        if let Self::Shaking(handshake) = self {
            let shaken = ready!(handshake.as_mut().poll(cx));
            *self = Self::Broken;
            *self = Self::Tls(Box::new(shaken.inspect_err(|error| tracing::debug!("no TLS: {error}"))?));
        }
        Poll::Ready(Ok(()))
    }
}

/// Hands a call on to the stream, once there is one.
macro_rules! on_stream {
    ($connection:ident, $cx:ident, $method:ident $(, $argument:expr)*) => {{
        ready!($connection.poll_shaken($cx))?;
        match &mut *$connection {
            Self::Plain(stream) => Pin::new(stream).$method($cx $(, $argument)*),
            Self::Tls(stream) => Pin::new(stream).$method($cx $(, $argument)*),
            Self::Shaking(_) | Self::Broken => Poll::Ready(Err(ErrorKind::NotConnected.into())),
        }
    }};
}

impl AsyncRead for Connection {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        on_stream!(self, cx, poll_read, buffer)
    }
}

impl AsyncWrite for Connection {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        on_stream!(self, cx, poll_write, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        on_stream!(self, cx, poll_flush)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match &mut *self {
            Self::Plain(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream).poll_shutdown(cx),
            // There is nothing to say good-bye to.
            Self::Shaking(_) | Self::Broken => Poll::Ready(Ok(())),
        }
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        parts: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        on_stream!(self, cx, poll_write_vectored, parts)
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Plain(stream) => stream.is_write_vectored(),
            Self::Shaking(_) | Self::Tls(_) | Self::Broken => true,
        }
    }
}
