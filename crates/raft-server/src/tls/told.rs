//! What a connection broke with, in the words of etcd, which its operators look for.
//!
//! In TLS 1.3 a client hears only with its first read that its certificate was refused, long after its handshake.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use rustls::{AlertDescription, CertificateError, Error};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};

/// What Go's library calls the alerts that are about certificates.
const ALERTS: [(AlertDescription, &str); 7] = [
    (AlertDescription::BadCertificate, "bad certificate"),
    (AlertDescription::UnsupportedCertificate, "unsupported certificate"),
    (AlertDescription::CertificateRevoked, "revoked certificate"),
    (AlertDescription::CertificateExpired, "expired certificate"),
    (AlertDescription::CertificateUnknown, "unknown certificate"),
    (AlertDescription::UnknownCA, "unknown certificate authority"),
    (AlertDescription::CertificateRequired, "certificate required"),
];

/// An error of TLS in etcd's words, where there are any.
pub(super) fn explained(error: io::Error) -> io::Error {
    let inner = error.get_ref().and_then(|inner| inner.downcast_ref::<Error>());
    let text = match inner {
        Some(Error::AlertReceived(alert)) => {
            let known = ALERTS.iter().find(|(known, _)| known == alert);
            let words =
                known.map_or_else(|| format!("{alert:?}"), |(_, words)| (*words).to_owned());
            format!("remote error: tls: {words}")
        }
        Some(Error::InvalidCertificate(CertificateError::NotValidForName)) => {
            "client certificate authentication failed: none of its names is allowed".to_owned()
        }
        Some(_) | None => return error,
    };
    io::Error::new(error.kind(), text)
}

/// A connection that was dialled.
#[derive(Debug)]
pub(super) struct Told<S>(S);

impl<S> Told<S> {
    pub(super) const fn new(stream: S) -> Self {
        Self(stream)
    }
}

impl<S: AsyncRead + Unpin> AsyncRead for Told<S> {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_read(context, buffer).map_err(explained)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Told<S> {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write(context, bytes)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
        slices: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().0).poll_write_vectored(context, slices)
    }

    fn is_write_vectored(&self) -> bool {
        self.0.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_flush(context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_have_etcds_words() {
        let said = |error: Error| explained(io::Error::other(error)).to_string();
        let refused = Error::AlertReceived(AlertDescription::BadCertificate);
        assert_eq!(said(refused), "remote error: tls: bad certificate");
        let other = Error::AlertReceived(AlertDescription::NoRenegotiation);
        assert_eq!(said(other), "remote error: tls: NoRenegotiation");
        let name = Error::InvalidCertificate(CertificateError::NotValidForName);
        assert!(said(name).starts_with("client certificate authentication failed"));
        let kept = explained(io::Error::from(io::ErrorKind::ConnectionReset));
        assert_eq!(kept.kind(), io::ErrorKind::ConnectionReset);
    }
}
