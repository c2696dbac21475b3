//! Certificates that a member makes for itself: nobody can read along, but nobody proves who it is either.

use std::fs::{self, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::Path;

use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair};
use time::OffsetDateTime;

use super::TlsFiles;
use super::files::TlsError;

/// The files of a self-signed certificate for `hosts` in `folder`, made when there are none. As in etcd it is good for
/// `years`, and one that has expired is replaced by removing the folder.
///
/// # Errors
/// What cannot be written.
pub fn self_signed(folder: &Path, hosts: &[String], years: u64) -> Result<TlsFiles, TlsError> {
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    if !cert.exists() || !key.exists() {
        let (cert_pem, key_pem) = make(hosts, years).map_err(|wrong| TlsError::of(&cert, wrong))?;
        fs::create_dir_all(folder)
            .and_then(|()| write(&key, &key_pem, 0o600))
            .and_then(|()| write(&cert, &cert_pem, 0o644))
            .map_err(|error| TlsError::of(folder, format!("it cannot be written: {error}")))?;
    }
    Ok(TlsFiles { cert, key, ..TlsFiles::default() })
}

fn make(hosts: &[String], years: u64) -> Result<(String, String), String> {
    let failed = |error: rcgen::Error| error.to_string();
    let mut params = CertificateParams::new(hosts).map_err(failed)?;
    params.not_before = OffsetDateTime::now_utc();
    let days = i64::try_from(years.saturating_mul(365)).unwrap_or(i64::MAX);
    params.not_after = days
        .checked_mul(24 * 3600)
        .and_then(|seconds| params.not_before.checked_add(time::Duration::seconds(seconds)))
        .ok_or_else(|| format!("{years} years are too long"))?;
    params.extended_key_usages =
        vec![ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
    let key = KeyPair::generate().map_err(failed)?;
    let cert = params.self_signed(&key).map_err(failed)?;
    Ok((cert.pem(), key.serialize_pem()))
}

fn write(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let mut file =
        OpenOptions::new().create(true).write(true).truncate(true).mode(mode).open(path)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()
}
