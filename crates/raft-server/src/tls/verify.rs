//! Who may be at the other end: beyond its chain, the names that a certificate bears, and what it is for.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{verify_server_cert_signed_by_trust_anchor, verify_server_name};
use rustls::crypto::{
    CryptoProvider, WebPkiSupportedAlgorithms, verify_tls12_signature, verify_tls13_signature,
};
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::server::danger::{ClientCertVerified, ClientCertVerifier};
use rustls::{
    CertificateError, DigitallySignedStruct, DistinguishedName, Error, RootCertStore,
    SignatureScheme,
};

use super::files::common_name;

/// What a certificate must be beyond being signed.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub(super) struct Demands {
    /// One of these as its common name; empty: any.
    pub(super) common_names: Vec<String>,
    /// Valid for one of these host names; empty: any.
    pub(super) host_names: Vec<String>,
}

impl Demands {
    fn check(&self, certificate: &CertificateDer<'_>) -> Result<(), Error> {
        let refused =
            || Err(Error::InvalidCertificate(CertificateError::ApplicationVerificationFailure));
        if !self.common_names.is_empty() {
            let name = common_name(certificate);
            if !name.is_some_and(|name| self.common_names.contains(&name)) {
                return refused();
            }
        }
        if !self.host_names.is_empty() {
            let parsed = ParsedCertificate::try_from(certificate)?;
            let is_valid = |host: &String| {
                let name = ServerName::try_from(host.clone());
                name.is_ok_and(|name| verify_server_name(&parsed, &name).is_ok())
            };
            if !self.host_names.iter().any(is_valid) {
                return refused();
            }
        }
        Ok(())
    }
}

/// Verifies who dials: the chain and the revocation as `inner` does, then more.
#[derive(Debug)]
pub(super) struct Dialling {
    pub(super) inner: Arc<dyn ClientCertVerifier>,
    pub(super) demands: Demands,
    /// The certificate must also be good for serving, by one of these authorities: what members have, and clients have
    /// not.
    pub(super) serving: Option<(Arc<RootCertStore>, WebPkiSupportedAlgorithms)>,
}

impl ClientCertVerifier for Dialling {
    fn root_hint_subjects(&self) -> &[DistinguishedName] {
        self.inner.root_hint_subjects()
    }

    fn verify_client_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        now: UnixTime,
    ) -> Result<ClientCertVerified, Error> {
        let verified = self.inner.verify_client_cert(certificate, intermediates, now)?;
        self.demands.check(certificate)?;
        if let Some((roots, algorithms)) = &self.serving {
            let parsed = ParsedCertificate::try_from(certificate)?;
            verify_server_cert_signed_by_trust_anchor(
                &parsed,
                roots,
                intermediates,
                now,
                algorithms.all,
            )?;
        }
        Ok(verified)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls12_signature(message, certificate, signed)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        self.inner.verify_tls13_signature(message, certificate, signed)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.inner.supported_verify_schemes()
    }
}

/// Takes whoever answers for who it says: certificates that members made by themselves say nothing. What they are for is
/// that nobody reads along.
#[derive(Debug)]
pub(super) struct Anybody {
    pub(super) provider: Arc<CryptoProvider>,
}

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _certificate: &CertificateDer<'_>,
        _intermediates: &[CertificateDer<'_>],
        _name: &ServerName<'_>,
        _ocsp: &[u8],
        _now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, certificate, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, certificate, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider.signature_verification_algorithms.supported_schemes()
    }
}
