//! Connections to members: which one is asked, what happens when it does not answer, and as whom.
//!
//! A request goes to the endpoints in the order in which they were named. One that cannot be connected to was certainly
//! not sent anything: the next one is asked. What only reads goes on to the next one also when a member says that it
//! cannot serve, until the time is up. A write that was sent is never sent again: whoever asks learns that it is unknown
//! whether it took effect.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use hyper_util::rt::TokioIo;
use raft_kv::proto::etcdserverpb::AuthenticateRequest;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::OnceCell;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tonic::codegen::{Service, http::Uri};
use tonic::metadata::{Ascii, MetadataValue};
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Response, Status};

use super::to::{To, Wishes};
use super::{Failure, prompt};
use crate::cli::status;
use crate::proto::etcdserverpb::auth_client::AuthClient;
use crate::proto::etcdserverpb::cluster_client::ClusterClient;
use crate::proto::etcdserverpb::kv_client::KvClient;
use crate::proto::etcdserverpb::lease_client::LeaseClient;
use crate::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use crate::proto::etcdserverpb::watch_client::WatchClient;
use crate::proto::v3electionpb::election_client::ElectionClient;
use crate::proto::v3lockpb::lock_client::LockClient;
use crate::tls::{ClientFiles, client_config};

/// Where etcd serves.
const USUAL: &str = "127.0.0.1:2379";
/// A member on this machine answers sooner.
const LOCAL_TIMEOUT: Duration = Duration::from_millis(300);
/// Between attempts, when every member has been asked.
pub(super) const RETRY: Duration = Duration::from_millis(200);

/// A member as it was named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Target {
    /// As the user wrote it.
    pub(super) name: String,
    address: String,
    tls: bool,
}

impl Target {
    fn parse(text: &str, tls_by_default: bool) -> Result<Self, Failure> {
        let name = text.trim();
        let (tls, rest) = match name.split_once("://") {
            Some(("http", rest)) => (false, rest),
            Some(("https", rest)) => (true, rest),
            Some((scheme, _)) => {
                return Err(Failure::bad(format!(
                    "the endpoint {name:?} begins with {scheme}://\n\n  right  host:port, http://host:port or https://host:port"
                )));
            }
            None => (tls_by_default, name),
        };
        let address = rest.trim_end_matches('/');
        let port = address.rsplit_once(':').and_then(|(host, port)| {
            port.parse::<u16>().ok().filter(|port| *port > 0 && !host.is_empty())
        });
        if port.is_none() {
            return Err(Failure::bad(format!(
                "the endpoint {name:?} has no host and port\n\n  right  --endpoints=127.0.0.1:2379"
            )));
        }
        Ok(Self { name: name.to_owned(), address: address.to_owned(), tls })
    }

    fn host(&self) -> &str {
        let host = self.address.rsplit_once(':').map_or(&*self.address, |(host, _)| host);
        host.trim_start_matches('[').trim_end_matches(']')
    }
}

/// Whether a request may be sent to the next member after it was sent to one.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Again {
    Yes,
    No,
}

/// What all commands ask through.
#[derive(Debug)]
pub(super) struct Cluster {
    pub(super) wishes: Wishes,
    pub(super) targets: Vec<Target>,
    /// Whether anybody named them.
    named: bool,
    tls: Option<Arc<ClientConfig>>,
    /// Of `wishes.user`, once it was asked for.
    token: OnceCell<Option<MetadataValue<Ascii>>>,
}

impl Cluster {
    /// Finds out whom to ask; asks nobody yet.
    pub(super) async fn find(to: &To) -> Result<Self, Failure> {
        let wishes = to.wishes()?;
        let pair = match (&wishes.cert, &wishes.key) {
            (Some(cert), Some(key)) => Some((cert.clone(), key.clone())),
            (None, None) => None,
            (Some(_), None) => return Err(Failure::bad("--cert is of no use without --key")),
            (None, Some(_)) => return Err(Failure::bad("--key is of no use without --cert")),
        };
        let tls_by_default =
            pair.is_some() || wishes.cacert.is_some() || wishes.insecure_transport == Some(false);
        let targets = |endpoints: &[String]| {
            let parsed = endpoints.iter().map(|text| Target::parse(text, tls_by_default));
            parsed.collect::<Result<Vec<Target>, Failure>>()
        };
        let named = !wishes.endpoints.is_empty();
        let targets =
            if named { targets(&wishes.endpoints)? } else { targets(&local(&wishes).await)? };
        let tls = if targets.iter().any(|target| target.tls) {
            let files =
                ClientFiles { ca: wishes.cacert.clone(), pair, trust_anybody: wishes.skip_verify };
            let config = client_config(&files);
            Some(config.map_err(|error| Failure::bad(format!("TLS cannot begin: {error}")))?)
        } else {
            None
        };
        Ok(Self { wishes, targets, named, tls, token: OnceCell::new() })
    }

    /// The same with other members.
    pub(super) fn with(&self, names: &[String]) -> Result<Self, Failure> {
        let tls = self.tls.is_some();
        let targets =
            names.iter().map(|name| Target::parse(name, tls)).collect::<Result<_, _>>()?;
        Ok(Self {
            wishes: self.wishes.clone(),
            targets,
            named: self.named,
            tls: self.tls.clone(),
            token: self.token.clone(),
        })
    }

    /// Asks something that changes nothing.
    pub(super) async fn read<R: Clone, T>(
        &self,
        request: R,
        call: impl AsyncFn(Link, R) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        self.in_time(self.ask(Again::Yes, request, call), true).await
    }

    /// Asks for a change.
    pub(super) async fn write<R: Clone, T>(
        &self,
        request: R,
        call: impl AsyncFn(Link, R) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        self.in_time(self.ask(Again::No, request, call), false).await
    }

    /// Asks for something that may take as long as it likes, and may be asked for again.
    pub(super) async fn wait<R: Clone, T>(
        &self,
        request: R,
        call: impl AsyncFn(Link, R) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        self.ask(Again::Yes, request, call).await
    }

    async fn in_time<T>(
        &self,
        asking: impl Future<Output = Result<T, Failure>>,
        reads: bool,
    ) -> Result<T, Failure> {
        let limit = self.wishes.command_timeout;
        timeout(limit, asking).await.unwrap_or_else(|_| {
            let unknown = if reads { "" } else { "; whether the request took effect is not known" };
            Err(Failure::failed(format!(
                "context deadline exceeded: no answer within {} (--command-timeout){unknown}",
                super::go::duration(limit)
            )))
        })
    }

    async fn ask<R: Clone, T>(
        &self,
        again: Again,
        request: R,
        call: impl AsyncFn(Link, R) -> Result<Response<T>, Status>,
    ) -> Result<T, Failure> {
        loop {
            let mut reasons = Vec::new();
            let mut anybody = false;
            for target in &self.targets {
                let link = match self.link(target).await? {
                    Ok(link) => link,
                    Err(reason) => {
                        reasons.push(format!("{}: {reason}", target.name));
                        continue;
                    }
                };
                match call(link, request.clone()).await {
                    Ok(response) => return Ok(response.into_inner()),
                    Err(status) if again == Again::Yes && is_passing(&status) => anybody = true,
                    Err(status) if is_broken(&status) => {
                        return Err(Failure::failed(format!(
                            "{}: the connection broke after the request was sent ({}); whether it took effect is not known",
                            target.name,
                            status.message()
                        )));
                    }
                    Err(status) => return Err(status.into()),
                }
            }
            if !anybody {
                return Err(self.unreachable(&reasons));
            }
            sleep(RETRY).await;
        }
    }

    pub(super) fn unreachable(&self, reasons: &[String]) -> Failure {
        let hint = if self.named {
            ""
        } else {
            "\n\n  right  name the members: --endpoints=host:port[,host:port…]"
        };
        Failure::failed(format!("no endpoint can be reached\n\n  {}{hint}", reasons.join("\n  ")))
    }

    /// A connection to the first member that can be reached, with a token where a user was named.
    pub(super) async fn any_link(&self) -> Result<Link, Failure> {
        let mut reasons = Vec::new();
        for target in &self.targets {
            match self.link(target).await? {
                Ok(link) => return Ok(link),
                Err(reason) => reasons.push(format!("{}: {reason}", target.name)),
            }
        }
        Err(self.unreachable(&reasons))
    }

    /// A connection to this member, or why there is none.
    pub(super) async fn link(&self, target: &Target) -> Result<Result<Link, String>, Failure> {
        let channel = match self.connect(target).await {
            Ok(channel) => channel,
            Err(reason) => return Ok(Err(reason)),
        };
        let token = self.token.get_or_try_init(|| self.log_in(channel.clone())).await?;
        Ok(Ok(Link { channel, token: token.clone() }))
    }

    async fn log_in(&self, channel: Channel) -> Result<Option<MetadataValue<Ascii>>, Failure> {
        let Some(user) = &self.wishes.user else { return Ok(None) };
        let (name, password) = match (&self.wishes.password, user.split_once(':')) {
            (Some(password), _) => (user.clone(), password.clone()),
            (None, Some((name, password))) => (name.to_owned(), password.to_owned()),
            (None, None) => (user.clone(), prompt::password("Password: ")?),
        };
        match AuthClient::new(channel).authenticate(AuthenticateRequest { name, password }).await {
            Ok(answer) => answer
                .into_inner()
                .token
                .parse()
                .map(Some)
                .map_err(|_| Failure::failed("the token that the cluster gave is no text")),
            // Whoever says who they are where nobody asks may come in.
            Err(status) if status.message() == "etcdserver: authentication is not enabled" => {
                Ok(None)
            }
            Err(status) => Err(status.into()),
        }
    }

    async fn connect(&self, target: &Target) -> Result<Channel, String> {
        // Over TLS, too: what is below HTTP is the connector's business.
        let endpoint = Endpoint::from_shared(format!("http://{}", target.address));
        let (time, patience) = self.wishes.keepalive;
        let endpoint = endpoint
            .map_err(|_| format!("{:?} is no address", target.address))?
            .connect_timeout(self.wishes.dial_timeout)
            .tcp_nodelay(true)
            .http2_keep_alive_interval(time)
            .keep_alive_timeout(patience);
        let connected = match &self.tls {
            Some(config) if target.tls => {
                let dialler = Dialler {
                    config: Arc::clone(config),
                    address: target.address.clone(),
                    host: target.host().to_owned(),
                };
                endpoint.connect_with_connector(dialler).await
            }
            Some(_) | None => endpoint.connect().await,
        };
        connected.map_err(|error| {
            let mut innermost: &dyn std::error::Error = &error;
            while let Some(source) = innermost.source() {
                innermost = source;
            }
            innermost.to_string()
        })
    }
}

/// The members to ask when nobody named any.
async fn local(wishes: &Wishes) -> Vec<String> {
    let listens = timeout(LOCAL_TIMEOUT, TcpStream::connect(USUAL)).await;
    if !matches!(listens, Ok(Ok(_))) {
        let user = match (&wishes.user, &wishes.password) {
            (Some(name), Some(password)) => Some(format!("{name}:{password}")),
            (user, _) => user.clone().filter(|user| user.contains(':')),
        };
        let found = status::discover(user.as_deref()).await;
        if !found.is_empty() {
            return found;
        }
    }
    vec![USUAL.to_owned()]
}

/// The member, or what lies before it, cannot serve now; somebody else may.
pub(super) fn is_passing(status: &Status) -> bool {
    status.code() == Code::Unavailable || is_broken(status)
}

/// Nobody said this: the connection broke.
fn is_broken(status: &Status) -> bool {
    std::error::Error::source(status).is_some()
}

/// One connection, and who asks.
#[derive(Clone, Debug)]
pub(super) struct Link {
    channel: Channel,
    token: Option<MetadataValue<Ascii>>,
}

impl Link {
    /// A request of whoever asks.
    pub(super) fn by<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        if let Some(token) = &self.token {
            request.metadata_mut().insert("token", token.clone());
        }
        request
    }

    pub(super) fn kv(&self) -> KvClient<Channel> {
        KvClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    pub(super) fn watch(&self) -> WatchClient<Channel> {
        WatchClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    pub(super) fn lease(&self) -> LeaseClient<Channel> {
        LeaseClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    pub(super) fn members(&self) -> ClusterClient<Channel> {
        ClusterClient::new(self.channel.clone())
    }

    pub(super) fn maintenance(&self) -> MaintenanceClient<Channel> {
        MaintenanceClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    pub(super) fn auth(&self) -> AuthClient<Channel> {
        AuthClient::new(self.channel.clone()).max_decoding_message_size(usize::MAX)
    }

    pub(super) fn lock(&self) -> LockClient<Channel> {
        LockClient::new(self.channel.clone())
    }

    pub(super) fn election(&self) -> ElectionClient<Channel> {
        ElectionClient::new(self.channel.clone())
    }
}

/// Dials with TLS.
#[derive(Clone)]
struct Dialler {
    config: Arc<ClientConfig>,
    address: String,
    host: String,
}

impl Service<Uri> for Dialler {
    type Response = TokioIo<TlsStream<TcpStream>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let Self { config, address, host } = self.clone();
        Box::pin(async move {
            let tcp = TcpStream::connect(&*address).await?;
            tcp.set_nodelay(true)?;
            let name = ServerName::try_from(host).map_err(io::Error::other)?;
            Ok(TokioIo::new(TlsConnector::from(config).connect(name, tcp).await?))
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints_are_addresses_or_urls() {
        let parsed = |text: &str, tls| {
            Target::parse(text, tls).map(|it| (it.address, it.tls)).map_err(|it| it.words)
        };
        assert_eq!(parsed(" a:1 ", false), Ok(("a:1".to_owned(), false)));
        assert_eq!(parsed("a:1", true), Ok(("a:1".to_owned(), true)));
        assert_eq!(parsed("http://a:1/", true), Ok(("a:1".to_owned(), false)));
        assert_eq!(parsed("https://[::1]:1", false), Ok(("[::1]:1".to_owned(), true)));
        assert_eq!(Target::parse("[::1]:1", false).unwrap().host(), "::1");
        for bad in ["a", "a:", ":1", "a:0", "a:70000", "unix://x:1", ""] {
            assert!(parsed(bad, false).unwrap_err().contains("right"), "{bad}");
        }
    }
}
