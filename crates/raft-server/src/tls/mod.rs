//! TLS for clients and between members: what is presented, whom is trusted, and that both may change while connections
//! go on.
//!
//! A [`Tls`] holds what new connections begin with. [`watch`] reads the files again every second; connections that exist
//! keep what they began with. TLS 1.2 and 1.3, by rustls.

mod auto;
mod client;
mod files;
mod told;
mod verify;

use std::fmt;
use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use arc_swap::{ArcSwap, ArcSwapOption};
use raft::transport::{SecureStream, Securing, Security};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::ServerName;
use rustls::server::{NoClientAuth, WebPkiClientVerifier, danger::ClientCertVerifier};
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};
use sha2::{Digest as _, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector, server::TlsStream};

pub use self::auto::self_signed;
pub use self::client::{ClientFiles, client_config};
pub use self::files::TlsError;
use self::files::{Pair, authorities, common_name, expires, pair, revocations};
use self::told::Told;
use self::verify::{Answering, Anybody, Demands, Dialling, Themselves};

/// What members say they speak, so that one port can tell them from clients.
pub const PEER_PROTOCOL: &[u8] = b"rusty-raft/1";
/// How often the files are looked at.
const RELOAD_INTERVAL: Duration = Duration::from_secs(1);
/// A certificate that expires within this time is warned about, at every start and reload, and daily.
const EXPIRY_WARNING: Duration = Duration::from_secs(30 * 24 * 3600);
const DAY: Duration = Duration::from_secs(24 * 3600);

/// Where everything lies, and what is demanded of the other end.
#[derive(Clone, PartialEq, Eq, Default, Debug)]
pub struct TlsFiles {
    /// The certificate presented, with those that lead to its authority (PEM).
    pub cert: PathBuf,
    /// Its key (PEM).
    pub key: PathBuf,
    /// The certificate with which this member dials others; `None`: `cert`.
    pub client_cert: Option<PathBuf>,
    /// Its key; `None`: `key`.
    pub client_key: Option<PathBuf>,
    /// The authorities of those who dial, and of the members dialled (PEM). With it everybody must present a certificate.
    pub trusted_ca: Option<PathBuf>,
    /// Certificates that are not good any more (PEM or DER).
    pub crl: Option<PathBuf>,
    /// The common names that those who dial may have; empty: any.
    pub allowed_common_names: Vec<String>,
    /// Those who dial must present a certificate for one of these hosts; empty: any.
    pub allowed_host_names: Vec<String>,
    /// Only TLS 1.3 (`Some(true)`) or only 1.2 (`Some(false)`).
    pub only_1_3: Option<bool>,
}

/// Who is at the other end.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Role {
    /// Clients.
    Clients,
    /// Other members: dialled, too, and not to be mistaken for clients.
    Peers,
}

impl fmt::Display for Role {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Clients => "clients",
            Self::Peers => "peers",
        })
    }
}

/// What new connections begin with.
struct Current {
    server: Arc<ServerConfig>,
    client: Arc<ClientConfig>,
    /// Seconds since 1970.
    expires: u64,
    /// Of everything that was read.
    digest: [u8; 32],
}

/// TLS of one kind of connections. Shared; what it holds is swapped.
pub struct Tls {
    files: TlsFiles,
    role: Role,
    current: ArcSwap<Current>,
    /// Why a member was last turned away: what the log has said already.
    turned_away: Arc<ArcSwapOption<String>>,
}

impl fmt::Debug for Tls {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tls").field("role", &self.role).field("files", &self.files).finish()
    }
}

impl Tls {
    /// Reads the files.
    ///
    /// # Errors
    /// What is wrong with them.
    pub fn load(files: TlsFiles, role: Role) -> Result<Arc<Self>, TlsError> {
        let digest = digest(&files);
        let current = Current::load(&files, role, digest)?;
        let current = ArcSwap::from_pointee(current);
        Ok(Arc::new(Self { files, role, current, turned_away: Arc::default() }))
    }

    /// Whose connections these are.
    #[must_use]
    pub const fn role(&self) -> Role {
        self.role
    }

    /// When the certificate that is presented expires, in seconds since 1970.
    #[must_use]
    pub fn expires(&self) -> u64 {
        self.current.load().expires
    }

    /// Begins TLS on a connection that a client has dialled; with the common name in its certificate.
    ///
    /// # Errors
    /// What the handshake failed with.
    pub async fn welcome(
        &self,
        tcp: TcpStream,
    ) -> io::Result<(TlsStream<TcpStream>, Option<Arc<str>>)> {
        let config = Arc::clone(&self.current.load().server);
        let stream = TlsAcceptor::from(config).accept(tcp).await?;
        let certificates = stream.get_ref().1.peer_certificates();
        let first = certificates.and_then(|certificates| certificates.first());
        let name = first.and_then(|certificate| common_name(certificate)).map(Arc::from);
        Ok((stream, name))
    }

    /// Reads the files again if they have changed; whether they had.
    fn reload(&self) -> Result<bool, TlsError> {
        let digest = digest(&self.files);
        if digest == self.current.load().digest {
            return Ok(false);
        }
        self.current.store(Arc::new(Current::load(&self.files, self.role, digest)?));
        self.warn_of_expiry();
        Ok(true)
    }

    /// A warning in the log when the certificate that is presented has expired or soon will.
    pub fn warn_of_expiry(&self) {
        let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let (role, cert) = (self.role, self.files.cert.display());
        let left = Duration::from_secs(self.expires()).checked_sub(now);
        match left {
            None => tracing::warn!("the certificate for {role}, {cert}, has expired"),
            Some(left) if left < EXPIRY_WARNING => {
                let days = left.as_secs() / DAY.as_secs();
                tracing::warn!("the certificate for {role}, {cert}, expires in {days} days");
            }
            Some(_) => {}
        }
    }
}

/// Reads changed files until it is dropped.
pub async fn watch(all: Vec<Arc<Tls>>) {
    let mut complaints: Vec<Option<String>> = vec![None; all.len()];
    let mut ticks = tokio::time::interval(RELOAD_INTERVAL);
    let mut warned = tokio::time::Instant::now();
    loop {
        ticks.tick().await;
        for (tls, complaint) in all.iter().zip(&mut complaints) {
            let reloading = Arc::clone(tls);
            // Files may lie on a disk that is slow.
            let reloaded = tokio::task::spawn_blocking(move || reloading.reload()).await;
            let role = tls.role;
            match reloaded {
                Ok(Ok(true)) => {
                    *complaint = None;
                    tracing::info!("new certificates for {role} are in use");
                }
                Ok(Ok(false)) => *complaint = None,
                Ok(Err(error)) => {
                    let text = error.to_string();
                    // While files are being replaced they may not fit together.
                    if complaint.as_ref() != Some(&text) {
                        tracing::warn!("the certificates for {role} stay as they are: {text}");
                    }
                    *complaint = Some(text);
                }
                Err(error) => tracing::error!("reading certificates failed: {error}"),
            }
        }
        if warned.elapsed() >= DAY {
            warned = tokio::time::Instant::now();
            for tls in &all {
                tls.warn_of_expiry();
            }
        }
    }
}

/// A digest of everything that lies in the files.
fn digest(files: &TlsFiles) -> [u8; 32] {
    let mut hasher = Sha256::new();
    let optional = [&files.client_cert, &files.client_key, &files.trusted_ca, &files.crl];
    for path in [&files.cert, &files.key].into_iter().chain(optional.into_iter().flatten()) {
        let bytes = std::fs::read(path).unwrap_or_default();
        hasher.update(bytes.len().to_le_bytes());
        hasher.update(bytes);
    }
    hasher.finalize().into()
}

impl Current {
    fn load(files: &TlsFiles, role: Role, digest: [u8; 32]) -> Result<Self, TlsError> {
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let versions: &[&SupportedProtocolVersion] = match files.only_1_3 {
            Some(true) => &[&rustls::version::TLS13],
            Some(false) => &[&rustls::version::TLS12],
            None => &[&rustls::version::TLS13, &rustls::version::TLS12],
        };
        let unfit = |error: rustls::Error| TlsError::of(&files.cert, format!("{error}"));
        let own = pair(&files.cert, &files.key)?;
        let expires = own.chain.first().and_then(|it| expires(it)).unwrap_or(u64::MAX);
        let Pair { chain, key } = own;
        let mut server = ServerConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(unfit)?
            .with_client_cert_verifier(verifier(files, role, &provider)?)
            .with_single_cert(chain, key)
            .map_err(unfit)?;
        server.alpn_protocols = match role {
            Role::Clients => vec![b"h2".to_vec(), b"http/1.1".to_vec()],
            Role::Peers => vec![PEER_PROTOCOL.to_vec()],
        };
        let builder = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(versions)
            .map_err(unfit)?;
        let builder = match &files.trusted_ca {
            Some(ca) => {
                let answering = Answering::read(ca, &provider)?;
                builder.dangerous().with_custom_certificate_verifier(answering)
            }
            None => {
                builder.dangerous().with_custom_certificate_verifier(Arc::new(Anybody { provider }))
            }
        };
        let Pair { chain, key } = pair(
            files.client_cert.as_ref().unwrap_or(&files.cert),
            files.client_key.as_ref().unwrap_or(&files.key),
        )?;
        let mut client = builder.with_client_auth_cert(chain, key).map_err(unfit)?;
        client.alpn_protocols = vec![PEER_PROTOCOL.to_vec()];
        Ok(Self { server: Arc::new(server), client: Arc::new(client), expires, digest })
    }
}

/// Who may dial.
fn verifier(
    files: &TlsFiles,
    role: Role,
    provider: &Arc<CryptoProvider>,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let Some(ca) = &files.trusted_ca else { return Ok(Arc::new(NoClientAuth)) };
    let roots = authorities(ca)?;
    let mut builder =
        WebPkiClientVerifier::builder_with_provider(Arc::clone(&roots), Arc::clone(provider));
    if let Some(path) = &files.crl {
        // What no list speaks of is good, as in etcd.
        builder = builder.with_crls(revocations(path)?).allow_unknown_revocation_status();
    }
    let inner = builder.build().map_err(|error| {
        let file = files.crl.as_ref().unwrap_or(ca);
        TlsError::of(file, format!("it cannot be used: {error}"))
    })?;
    let demands = Demands {
        common_names: files.allowed_common_names.clone(),
        host_names: files.allowed_host_names.clone(),
    };
    let serving =
        (role == Role::Peers).then(|| (roots, provider.signature_verification_algorithms));
    let themselves = Themselves::read(ca, files.crl.is_some())?;
    Ok(Arc::new(Dialling { inner, themselves, demands, serving }))
}

impl Security for Tls {
    fn authenticates(&self) -> bool {
        self.files.trusted_ca.is_some()
    }

    fn dial(&self, tcp: TcpStream, address: &str) -> Securing {
        let config = Arc::clone(&self.current.load().client);
        let host = address.rsplit_once(':').map_or(address, |(host, _)| host);
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Box::pin(async move {
            let name = ServerName::try_from(host).map_err(io::Error::other)?;
            let stream =
                TlsConnector::from(config).connect(name, tcp).await.map_err(told::explained)?;
            Ok(Box::new(Told::new(stream)) as Box<dyn SecureStream>)
        })
    }

    fn accept(&self, tcp: TcpStream) -> Securing {
        let config = Arc::clone(&self.current.load().server);
        let turned_away = Arc::clone(&self.turned_away);
        Box::pin(async move {
            let from = tcp.peer_addr();
            let accepted = TlsAcceptor::from(config).accept(tcp).await.map_err(told::explained);
            let stream = accepted.inspect_err(|error| {
                let text = error.to_string();
                // Whoever is turned away comes again: said once.
                if turned_away.load().as_deref() != Some(&text)
                    && let Ok(from) = from
                {
                    tracing::warn!(%from, error = text, "a member is turned away");
                    turned_away.store(Some(Arc::new(text)));
                }
            })?;
            // A client of something else could have dialled here.
            if stream.get_ref().1.alpn_protocol() != Some(PEER_PROTOCOL) {
                return Err(io::Error::other("the other end is no member"));
            }
            Ok(Box::new(stream) as Box<dyn SecureStream>)
        })
    }
}

/// The common name in the certificate with which a client's connection began: who asks, where certificates count.
#[derive(Clone, Debug)]
pub struct CommonName(pub Arc<str>);
