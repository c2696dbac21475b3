//! Who may be at the other end: beyond its chain, the names that a certificate bears, and what it is for.

use std::path::Path;
use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{
    WebPkiServerVerifier, verify_server_cert_signed_by_trust_anchor, verify_server_name,
};
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

use x509_cert::der::asn1::ObjectIdentifier;

use super::TlsError;
use super::files::{authorities, certificates, common_name, is_good};

/// For proving who serves (RFC 5280, 4.2.1.12).
const SERVER_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.1");
/// For proving who dials.
const CLIENT_AUTH: ObjectIdentifier = ObjectIdentifier::new_unwrap("1.3.6.1.5.5.7.3.2");

/// What is in a list of authorities is trusted when it is presented itself, too, as in etcd: one certificate that has
/// signed itself may be everything that a cluster has. rustls looks only for what an authority has signed, and refuses
/// one that presents itself.
#[derive(Debug)]
pub(super) struct Themselves(Vec<CertificateDer<'static>>);

impl Themselves {
    /// The certificates in a file; none when there are `revocations`, because who would have revoked them?
    pub(super) fn read(ca: &Path, revocations: bool) -> Result<Self, TlsError> {
        Ok(Self(if revocations { Vec::new() } else { certificates(ca)? }))
    }

    fn include(
        &self,
        certificate: &CertificateDer<'_>,
        purpose: ObjectIdentifier,
        now: UnixTime,
    ) -> bool {
        self.0.iter().any(|it| it == certificate) && is_good(certificate, purpose, now)
    }
}

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
        // The other end hears `bad certificate`, as from etcd.
        let refused = || Err(Error::InvalidCertificate(CertificateError::NotValidForName));
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
    pub(super) themselves: Themselves,
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
        let verified = if self.themselves.include(certificate, CLIENT_AUTH, now) {
            ClientCertVerified::assertion()
        } else {
            self.inner.verify_client_cert(certificate, intermediates, now)?
        };
        self.demands.check(certificate)?;
        if let Some((roots, algorithms)) = &self.serving
            && !self.themselves.include(certificate, SERVER_AUTH, now)
        {
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

/// Verifies who answers.
#[derive(Debug)]
pub(super) struct Answering {
    inner: Arc<WebPkiServerVerifier>,
    themselves: Themselves,
}

impl Answering {
    /// By the authorities in a file.
    pub(super) fn read(ca: &Path, provider: &Arc<CryptoProvider>) -> Result<Arc<Self>, TlsError> {
        let builder =
            WebPkiServerVerifier::builder_with_provider(authorities(ca)?, Arc::clone(provider));
        let inner = builder
            .build()
            .map_err(|error| TlsError::of(ca, format!("it cannot be used: {error}")))?;
        Ok(Arc::new(Self { inner, themselves: Themselves::read(ca, false)? }))
    }
}

impl ServerCertVerifier for Answering {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, Error> {
        if self.themselves.include(certificate, SERVER_AUTH, now) {
            verify_server_name(&ParsedCertificate::try_from(certificate)?, name)?;
            return Ok(ServerCertVerified::assertion());
        }
        self.inner.verify_server_cert(certificate, intermediates, name, ocsp, now)
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

#[cfg(test)]
mod tests {
    use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};
    use time::{Duration, OffsetDateTime};

    use super::*;

    #[test]
    fn one_that_is_trusted_itself_must_be_good_for_what_it_is_presented_for() {
        let certificate = |uses: &[ExtendedKeyUsagePurpose], days: i64| {
            let mut params = CertificateParams::new(vec!["a".to_owned()]).unwrap();
            params.not_before = OffsetDateTime::now_utc() - Duration::days(10);
            params.not_after = OffsetDateTime::now_utc() + Duration::days(days);
            params.extended_key_usages = uses.to_vec();
            params.self_signed(&KeyPair::generate().unwrap()).unwrap().der().clone()
        };
        let any = certificate(&[], 1);
        let for_clients = certificate(&[ExtendedKeyUsagePurpose::ClientAuth], 1);
        let expired = certificate(&[], -1);
        let stranger = certificate(&[], 1);
        let all = Themselves(vec![any.clone(), for_clients.clone(), expired.clone()]);
        let now = UnixTime::now();
        assert!(all.include(&any, CLIENT_AUTH, now) && all.include(&any, SERVER_AUTH, now));
        assert!(all.include(&for_clients, CLIENT_AUTH, now));
        assert!(!all.include(&for_clients, SERVER_AUTH, now));
        assert!(!all.include(&expired, CLIENT_AUTH, now));
        assert!(!all.include(&stranger, CLIENT_AUTH, now));
    }
}
