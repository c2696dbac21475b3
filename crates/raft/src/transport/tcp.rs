//! The transport as its owner sees it: start, say whom to dial, shut down.

use std::cell::Cell;
use std::collections::BTreeMap;
use std::io;
use std::net::SocketAddr;
use std::rc::Rc;
use std::time::Duration;

use raft_core::NodeId;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};

use super::hub::{Hub, TcpNetwork};
use super::peer::Target;
use super::{
    BIND_RETRY, Event, HANDSHAKES_MAX, Local, PeerAddress, Settings, accept, connection, peer,
};
use crate::error::NodeError;
use crate::io::Stream;

/// Time between two attempts to bind.
const BIND_WAIT: Duration = Duration::from_millis(50);

/// All connections of one node. Dropping it closes them without a goodbye.
#[derive(Debug)]
pub struct Transport {
    hub: Rc<Hub>,
    links: BTreeMap<(String, Stream), Link>,
    stop_accepting: watch::Sender<bool>,
    handed_in: mpsc::Sender<std::net::TcpStream>,
    local_address: Option<SocketAddr>,
    /// Every task; accepted connections' tasks are owned by the one that accepts.
    tasks: JoinSet<()>,
}

/// One address and stream that is dialled.
#[derive(Debug)]
struct Link {
    target: Rc<Target>,
    stop: watch::Sender<bool>,
}

/// Hands over connections that somebody else has accepted: [`first_byte_is_peer`](super::first_byte_is_peer)
/// tells which. Can be sent to other threads.
#[derive(Clone, Debug)]
pub struct Acceptor {
    handed_in: mpsc::Sender<std::net::TcpStream>,
}

impl Acceptor {
    /// Hands over a connection of which nothing has been consumed. When too many wait already, or the
    /// transport has stopped, it is closed.
    pub fn accept(&self, stream: std::net::TcpStream) {
        if self.handed_in.try_send(stream).is_err() {
            tracing::debug!(
                "a peer's connection is dropped: too many wait, or the node has stopped"
            );
        }
    }
}

impl Transport {
    /// Starts to listen, and gives the way to send and the events. Nobody is dialled before
    /// [`set_peers`](Self::set_peers). Must run where tasks of one thread can be
    /// spawned (a `LocalRuntime` or a `LocalSet`).
    ///
    /// # Errors
    /// [`NodeError::Bind`] when the listen address stays busy for [`BIND_RETRY`] or cannot be used.
    pub async fn start(
        settings: Settings,
        local: Local,
    ) -> Result<(Self, TcpNetwork, mpsc::UnboundedReceiver<Event>), NodeError> {
        let listen = settings.listen.clone();
        let bind_error = |source| NodeError::Bind {
            address: listen.clone().unwrap_or_else(|| settings.address.clone()),
            source,
        };
        let seed = u64::from_le_bytes(connection::random().map_err(bind_error)?);
        let listener = match &settings.listen {
            Some(address) => Some(bind(address).await.map_err(bind_error)?),
            None => None,
        };
        let local_address = listener.as_ref().and_then(|listener| listener.local_addr().ok());
        warn_if_open(&settings, local_address);
        let (events, receiver) = mpsc::unbounded_channel();
        let hub = Rc::new(Hub::new(settings, local, events, seed));
        let (handed_in, sockets) = mpsc::channel(HANDSHAKES_MAX);
        let (stop_accepting, stop) = watch::channel(false);
        let mut tasks = JoinSet::new();
        tasks.spawn_local(accept::run(Rc::clone(&hub), listener, sockets, stop));
        let network = TcpNetwork::new(Rc::clone(&hub));
        let transport =
            Self { hub, links: BTreeMap::new(), stop_accepting, handed_in, local_address, tasks };
        Ok((transport, network, receiver))
    }

    /// Where the own listener listens.
    #[must_use]
    pub const fn local_address(&self) -> Option<SocketAddr> {
        self.local_address
    }

    /// A handle to hand connections in.
    #[must_use]
    pub fn acceptor(&self) -> Acceptor {
        Acceptor { handed_in: self.handed_in.clone() }
    }

    /// Dials these from now on and nobody else. Connections to addresses that stay are kept, unless
    /// somebody else than the node now expected answers there; others are closed with a goodbye.
    pub fn set_peers(&mut self, peers: Vec<PeerAddress>) {
        while self.tasks.try_join_next().is_some() {}
        let mut wanted = BTreeMap::new();
        for PeerAddress { node, address } in peers {
            if node.is_some() {
                wanted.insert((address.clone(), Stream::Bulk), node);
            }
            wanted.insert((address, Stream::Control), node);
        }
        self.links.retain(|key, link| {
            let keep = wanted.get(key).is_some_and(|node| link.may_serve(*node));
            if !keep {
                link.stop.send_replace(true);
            }
            keep
        });
        for ((address, stream), expects) in wanted {
            if let Some(link) = self.links.get(&(address.clone(), stream)) {
                link.target.expects.set(expects);
                continue;
            }
            let target = Rc::new(Target {
                address: address.clone(),
                stream,
                expects: Cell::new(expects),
                connected: Cell::new(None),
            });
            let (stop, stopped) = watch::channel(false);
            self.tasks.spawn_local(peer::run(Rc::clone(&self.hub), Rc::clone(&target), stopped));
            self.links.insert((address, stream), Link { target, stop });
        }
    }

    /// Ends everything, in this order: nobody is dialled or accepted any more; every dialled connection sends
    /// what is queued and a goodbye, every accepted one a goodbye, within
    /// [`FLUSH_TIMEOUT`](super::FLUSH_TIMEOUT); all are closed; every task is joined. Peers take no hint.
    pub async fn shutdown(mut self) {
        self.stop_accepting.send_replace(true);
        for link in self.links.values() {
            link.stop.send_replace(true);
        }
        while let Some(joined) = self.tasks.join_next().await {
            if let Err(error) = joined {
                tracing::error!(%error, "a task of the transport died of a bug");
            }
        }
    }
}

impl Link {
    /// Whether the connection that there is, or will be, may be the one to `node`.
    fn may_serve(&self, node: Option<NodeId>) -> bool {
        match (self.target.connected.get(), node) {
            (Some(connected), Some(node)) => connected == node,
            (None, _) | (_, None) => true,
        }
    }
}

/// Binds, and waits a little for an address that an outgoing connection happens to occupy (decision 24).
async fn bind(address: &str) -> io::Result<TcpListener> {
    let began = Instant::now();
    loop {
        match TcpListener::bind(address).await {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
                if began.elapsed() >= BIND_RETRY {
                    return Err(error);
                }
                sleep(BIND_WAIT).await;
            }
            result => return result,
        }
    }
}

/// Peers are trusted: whoever reaches the port and needs no secret is one (decision 23).
fn warn_if_open(settings: &Settings, local_address: Option<SocketAddr>) {
    let is_proven = settings.security.as_ref().is_some_and(|security| security.authenticates());
    if settings.cluster_secret.is_some() || is_proven {
        return;
    }
    let is_loopback = match local_address {
        Some(address) => address.ip().is_loopback(),
        None => {
            let host = settings.address.rsplit_once(':').map_or("", |(host, _)| host);
            let host = host.trim_start_matches('[').trim_end_matches(']');
            let ip = host.parse::<std::net::IpAddr>();
            host == "localhost" || ip.is_ok_and(|ip| ip.is_loopback())
        }
    };
    if !is_loopback {
        tracing::warn!(
            address = %settings.address,
            "peers are accepted from other machines and no cluster_secret is set: anyone who reaches this \
             port can act as a member"
        );
    }
}
