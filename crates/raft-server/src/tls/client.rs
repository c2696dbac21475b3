//! What a client of a cluster begins TLS with.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::ClientConfig;

use super::TlsError;
use super::files::{pair, system_authorities};
use super::verify::{Answering, Anybody};

/// Where a client's certificates lie, and whom it trusts.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct ClientFiles {
    /// The authorities of those who serve (PEM); `None`: those that the system trusts.
    pub ca: Option<PathBuf>,
    /// The certificate presented and its key (PEM); `None`: none is.
    pub pair: Option<(PathBuf, PathBuf)>,
    /// Take whoever answers for who it says: nobody who listens on the wire understands, but anybody in between does.
    pub trust_anybody: bool,
}

/// TLS 1.2 or 1.3 with HTTP/2, for connections that a client dials.
///
/// # Errors
/// What is wrong with the files.
pub fn client_config(files: &ClientFiles) -> Result<Arc<ClientConfig>, TlsError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let unfit = |path: &Path| {
        let path = path.to_owned();
        move |error: rustls::Error| TlsError::of(&path, error.to_string())
    };
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
        .with_safe_default_protocol_versions()
        .map_err(unfit(Path::new("TLS")))?;
    let builder = if files.trust_anybody {
        builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody { provider }))
    } else if let Some(ca) = &files.ca {
        let answering = Answering::read(ca, &provider)?;
        builder.dangerous().with_custom_certificate_verifier(answering)
    } else {
        builder.with_root_certificates(system_authorities()?)
    };
    let mut config = match &files.pair {
        Some((cert, key)) => {
            let own = pair(cert, key)?;
            builder.with_client_auth_cert(own.chain, own.key).map_err(unfit(cert))?
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    Ok(Arc::new(config))
}
