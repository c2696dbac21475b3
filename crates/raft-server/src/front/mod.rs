//! A member's one port: peers, gRPC and HTTP clients, told apart by their first bytes.

mod admission;
mod authority;
mod budget;
mod connection;
mod deadline;
mod gone;
mod wire;

use std::io;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use tokio::net::{TcpListener, TcpSocket, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinSet;

use self::admission::{Admission, Ticket};
use self::budget::Tokens;
use self::connection::{Introduced, STREAMS_MAX};
use crate::config;
use crate::metrics::Metrics;
use crate::tls::Tls;

/// How long a port that is in use is waited for: another process may be about to leave it, and in the
/// ephemeral range a passing connection may hold it (decision 24).
pub const BIND_RETRY: Duration = Duration::from_secs(2);
/// The wait between two tries.
const BIND_RETRY_WAIT: Duration = Duration::from_millis(50);
/// Connections that the system may hold for us.
const BACKLOG: u32 = 4096;
/// The wait after an accept that failed for want of files or memory.
const ACCEPT_RETRY_WAIT: Duration = Duration::from_millis(50);
/// Connections that are accepted at once …
const ACCEPTS_MAX: u32 = 1000;
/// … and the time for one more: 4,000 a second.
const ACCEPT_INTERVAL: Duration = Duration::from_micros(250);
/// How long more than that wait: the system holds them for us.
const ACCEPT_WAIT: Duration = Duration::from_millis(20);
/// How often the same trouble is logged.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

/// Who may enter at a listener.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Doors {
    /// Other members.
    pub peers: bool,
    /// gRPC and HTTP clients.
    pub clients: bool,
    /// Clients speak TLS.
    pub secured: bool,
}

/// What is spoken at the doors.
#[derive(Clone, Default, Debug)]
pub struct Security {
    /// For clients, where a door is secured.
    pub clients: Option<Arc<Tls>>,
    /// Members speak TLS with each other, which is the transport's: here they are only told apart.
    pub peers: bool,
}

/// Listens on everything that `address` resolves to.
///
/// # Errors
/// When none of it can be bound; a port in use is retried for [`BIND_RETRY`].
pub async fn bind(address: &str) -> io::Result<Vec<TcpListener>> {
    let deadline = Instant::now() + BIND_RETRY;
    let sockets = config::resolve_with_any_port(address).map_err(io::Error::other)?;
    loop {
        match bind_all(&sockets) {
            Err(error) if error.kind() == io::ErrorKind::AddrInUse && Instant::now() < deadline => {
                tokio::time::sleep(BIND_RETRY_WAIT).await;
            }
            result => return result,
        }
    }
}

/// Listens on those of `sockets` that belong to this machine; an address in use is an error all the same.
fn bind_all(sockets: &[SocketAddr]) -> io::Result<Vec<TcpListener>> {
    let mut listeners = Vec::new();
    let mut refused = None;
    for socket in sockets {
        match bind_one(*socket) {
            Ok(listener) => listeners.push(listener),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => return Err(error),
            Err(error) => refused = Some(error),
        }
    }
    match refused {
        Some(error) if listeners.is_empty() => Err(error),
        _ => Ok(listeners),
    }
}

fn bind_one(address: SocketAddr) -> io::Result<TcpListener> {
    let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
    // Connections of the process before, still in TIME_WAIT, do not keep the port.
    socket.set_reuseaddr(true)?;
    socket.bind(address)?;
    socket.listen(BACKLOG)
}

/// What every connection needs.
#[derive(Clone)]
pub struct Front<P> {
    router: Router,
    metrics: Arc<Metrics>,
    /// Takes peers' connections.
    accept_peer: P,
    stop: watch::Receiver<bool>,
    admission: Admission,
    security: Security,
    /// Requests in flight on one HTTP/2 connection.
    streams_max: u32,
}

impl<P: Fn(std::net::TcpStream) + Clone + Send + Sync + 'static> Front<P> {
    /// A front that serves clients with a router and counts their calls, hands peers to `accept_peer` and, once `stop` is true, takes
    /// no more clients' requests. One HTTP/2 connection may have `streams_max` of them in flight.
    pub fn new(
        (router, metrics): (Router, Arc<Metrics>),
        accept_peer: P,
        stop: watch::Receiver<bool>,
        security: Security,
        streams_max: Option<u32>,
    ) -> Self {
        let admission = Admission::default();
        let streams_max = streams_max.unwrap_or(STREAMS_MAX).min(STREAMS_MAX);
        Self { router, metrics, accept_peer, stop, admission, security, streams_max }
    }

    /// Accepts until `stop` is true and every client's connection has ended.
    /// No error of a single connection, nor a want of file descriptors, ends it.
    ///
    /// The listener stays with the caller: while the process lives, the port says so to the next one.
    pub async fn run(self, listener: Arc<TcpListener>, doors: Doors) {
        let mut connections = JoinSet::new();
        let mut stop = self.stop.clone();
        let mut trouble = Occasionally::default();
        let mut accepts = Tokens::new(ACCEPTS_MAX, ACCEPT_INTERVAL);
        let mut resume = None;
        loop {
            let stopping = *stop.borrow();
            let accept = async {
                if let Some(resume) = resume {
                    tokio::time::sleep_until(resume).await;
                }
                listener.accept().await
            };
            tokio::select! {
                accepted = accept => match accepted {
                    Ok((stream, from)) => {
                        // Whoever is connected comes before those who would like to be.
                        let is_flood = !accepts.take(Instant::now);
                        resume = is_flood.then(|| tokio::time::Instant::now() + ACCEPT_WAIT);
                        self.welcome(stream, from, doors, &mut connections, &mut trouble);
                    }
                    Err(error) if is_of_one_connection(&error) => {
                        tracing::debug!("a connection broke before it was accepted: {error}");
                    }
                    Err(error) => {
                        trouble.warn(&format!("cannot accept connections: {error}"));
                        tokio::time::sleep(ACCEPT_RETRY_WAIT).await;
                    }
                },
                Some(ended) = connections.join_next() => {
                    if let Err(error) = ended {
                        tracing::error!("a connection's task died: {error}");
                    }
                }
                changed = stop.changed(), if !stopping => {
                    if changed.is_err() {
                        return;
                    }
                }
                () = std::future::ready(()), if stopping && connections.is_empty() => return,
            }
        }
    }

    fn welcome(
        &self,
        stream: TcpStream,
        from: SocketAddr,
        doors: Doors,
        connections: &mut JoinSet<()>,
        trouble: &mut Occasionally,
    ) {
        // A dial to a free port of the ephemeral range may connect to itself (decision 24).
        if stream.local_addr().is_ok_and(|local| local == from) {
            tracing::debug!("dropped a connection from {from} to itself");
            return;
        }
        let Some(ticket) = self.admission.enter(from.ip()) else {
            trouble.warn(&format!(
                "too many connections that say nothing; one from {} was closed",
                from.ip()
            ));
            return;
        };
        if let Err(error) = stream.set_nodelay(true) {
            tracing::debug!("TCP_NODELAY for {from}: {error}");
        }
        connections.spawn(self.clone().serve(stream, from, doors, ticket));
    }

    async fn serve(self, stream: TcpStream, from: SocketAddr, doors: Doors, ticket: Ticket) {
        let introduced = tokio::select! {
            introduced = connection::introduce(stream, doors, &self.security) => introduced,
            () = connection::stopped(self.stop.clone()) => None,
        };
        match introduced {
            None => {}
            Some(Introduced::Peer(stream)) => {
                if let Some(stream) = connection::into_std(stream, from) {
                    (self.accept_peer)(stream);
                }
            }
            Some(Introduced::Http2(io, name)) => {
                drop(ticket);
                let serving = (self.router, self.metrics);
                let streams_max = self.streams_max;
                connection::serve_http2((io, name), serving, streams_max, self.stop).await;
            }
            Some(Introduced::Http1(io, name)) => {
                let serving = (self.router, self.metrics);
                connection::serve_http1((io, name), serving, self.stop, ticket).await;
            }
        }
    }
}

/// Errors of `accept` that are about the connection that was to be accepted.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted
            | io::ErrorKind::ConnectionReset
            | io::ErrorKind::ConnectionRefused
            | io::ErrorKind::Interrupted
    )
}

/// Logs the same kind of trouble once in a while.
#[derive(Debug, Default)]
struct Occasionally {
    last: Option<Instant>,
    silent: u64,
}

impl Occasionally {
    fn warn(&mut self, text: &str) {
        if self.last.is_some_and(|last| last.elapsed() < LOG_INTERVAL) {
            self.silent += 1;
            return;
        }
        tracing::warn!(more = self.silent, "{text}");
        self.last = Some(Instant::now());
        self.silent = 0;
    }
}
