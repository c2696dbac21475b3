//! Certificates, keys and revocation lists as they lie in files.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, CertificateRevocationListDer, PrivateKeyDer, UnixTime};
use x509_cert::der::Decode as _;
use x509_cert::der::asn1::{ObjectIdentifier, PrintableStringRef, TeletexStringRef, Utf8StringRef};
use x509_cert::ext::pkix::ExtendedKeyUsage;

/// What is wrong with the files of a listener.
#[derive(Debug)]
pub struct TlsError {
    /// The file.
    pub file: PathBuf,
    /// What is wrong, in words.
    pub wrong: String,
}

impl TlsError {
    pub(super) fn of(file: &Path, wrong: impl Into<String>) -> Self {
        Self { file: file.to_owned(), wrong: wrong.into() }
    }
}

impl std::fmt::Display for TlsError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}: {}", self.file.display(), self.wrong)
    }
}

impl std::error::Error for TlsError {}

/// A certificate with those that lead to its authority, and its key.
#[derive(Debug)]
pub(super) struct Pair {
    pub(super) chain: Vec<CertificateDer<'static>>,
    pub(super) key: PrivateKeyDer<'static>,
}

/// Reads a certificate chain and its key, both PEM.
pub(super) fn pair(cert: &Path, key: &Path) -> Result<Pair, TlsError> {
    let chain = certificates(cert)?;
    let bytes = read(key)?;
    let key = PrivateKeyDer::from_pem_slice(&bytes)
        .map_err(|error| TlsError::of(key, format!("there is no key in it: {error}")))?;
    Ok(Pair { chain, key })
}

fn read(path: &Path) -> Result<Vec<u8>, TlsError> {
    fs::read(path).map_err(|error| {
        let wrong = if error.kind() == io::ErrorKind::NotFound {
            "there is no such file".to_owned()
        } else {
            format!("it cannot be read: {error}")
        };
        TlsError::of(path, wrong)
    })
}

/// The certificates of a PEM file, at least one.
pub(super) fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, TlsError> {
    let bytes = read(path)?;
    let found: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(TlsError::of(path, "there is no certificate in it")),
        Err(error) => Err(TlsError::of(path, format!("it is no PEM file: {error}"))),
    }
}

/// The authorities in a PEM file.
pub(super) fn authorities(path: &Path) -> Result<Arc<RootCertStore>, TlsError> {
    let mut roots = RootCertStore::empty();
    for certificate in certificates(path)? {
        roots
            .add(certificate)
            .map_err(|error| TlsError::of(path, format!("it is no authority: {error}")))?;
    }
    Ok(Arc::new(roots))
}

/// Where distributions keep the authorities that they trust.
const SYSTEM_AUTHORITIES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// The authorities that this system trusts: those of `SSL_CERT_FILE`, or of the distribution. One that cannot be used is
/// passed over.
pub(super) fn system_authorities() -> Result<Arc<RootCertStore>, TlsError> {
    let named = std::env::var_os("SSL_CERT_FILE").map(PathBuf::from);
    let usual = || SYSTEM_AUTHORITIES.iter().map(PathBuf::from).find(|path| path.exists());
    let Some(path) = named.or_else(usual) else {
        let nowhere = Path::new(SYSTEM_AUTHORITIES[0]);
        return Err(TlsError::of(nowhere, "this system has no list of trusted authorities"));
    };
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(certificates(&path)?);
    Ok(Arc::new(roots))
}

/// The revocation lists in a file, PEM or DER.
pub(super) fn revocations(
    path: &Path,
) -> Result<Vec<CertificateRevocationListDer<'static>>, TlsError> {
    let bytes = read(path)?;
    if !bytes.starts_with(b"-----BEGIN") {
        return Ok(vec![CertificateRevocationListDer::from(bytes)]);
    }
    let found: Result<Vec<_>, _> = CertificateRevocationListDer::pem_slice_iter(&bytes).collect();
    match found {
        Ok(found) if !found.is_empty() => Ok(found),
        Ok(_) => Err(TlsError::of(path, "there is no revocation list in it")),
        Err(error) => Err(TlsError::of(path, format!("it is no PEM file: {error}"))),
    }
}

/// The common name of a certificate's subject.
pub(super) fn common_name(certificate: &CertificateDer<'_>) -> Option<String> {
    /// 2.5.4.3 of X.520.
    const COMMON_NAME: &str = "2.5.4.3";
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    let attributes = parsed.tbs_certificate.subject.0.iter().flat_map(|part| part.0.iter());
    let mut names = attributes.filter(|attribute| attribute.oid.to_string() == COMMON_NAME);
    let value = &names.next_back()?.value;
    let text = value
        .decode_as::<Utf8StringRef<'_>>()
        .map(|text| text.as_str().to_owned())
        .or_else(|_| {
            value.decode_as::<PrintableStringRef<'_>>().map(|text| text.as_str().to_owned())
        })
        .or_else(|_| {
            value.decode_as::<TeletexStringRef<'_>>().map(|text| text.as_str().to_owned())
        });
    text.ok()
}

/// When a certificate expires, in seconds since 1970.
pub(super) fn expires(certificate: &CertificateDer<'_>) -> Option<u64> {
    let parsed = x509_cert::Certificate::from_der(certificate).ok()?;
    Some(parsed.tbs_certificate.validity.not_after.to_unix_duration().as_secs())
}

/// Whether a certificate is good at this time and, if it says what it is for, for this.
pub(super) fn is_good(
    certificate: &CertificateDer<'_>,
    purpose: ObjectIdentifier,
    now: UnixTime,
) -> bool {
    let Ok(parsed) = x509_cert::Certificate::from_der(certificate) else { return false };
    let validity = &parsed.tbs_certificate.validity;
    let from = validity.not_before.to_unix_duration().as_secs();
    let until = validity.not_after.to_unix_duration().as_secs();
    let is_for_it = match parsed.tbs_certificate.get::<ExtendedKeyUsage>() {
        Ok(Some((_, uses))) => uses.0.contains(&purpose),
        Ok(None) => true,
        Err(_) => false,
    };
    (from..=until).contains(&now.as_secs()) && is_for_it
}
