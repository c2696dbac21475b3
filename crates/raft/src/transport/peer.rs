//! One address and stream to send to: dial, greet, send, and when it breaks, again.

use std::cell::Cell;
use std::fmt;
use std::io;
use std::rc::Rc;
use std::time::Duration;

use bytes::BytesMut;
use raft_core::NodeId;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::codec::{self, Content};
use super::connection::{self, FrameReader, ReadError, Writer};
use super::handshake::{Established, Greeting, Initiator, Refused, RefusedReason};
use super::hub::{Hub, Outbox};
use super::secure::Connected;
use super::{Event, FLUSH_TIMEOUT, HANDSHAKE_TIMEOUT, REDIAL_WAIT_MAX, REDIAL_WAIT_MIN};
use crate::io::Stream;
use crate::message::PeerMessage;

/// How often a peer whose connection just broke is redialled for the hint, and how long each try may take.
/// Several, because a dying process may close its connections before its listener.
const HINT_DIALS: u32 = 20;
const HINT_DIAL_TIMEOUT: Duration = Duration::from_millis(100);
const HINT_DIAL_WAIT: Duration = Duration::from_millis(5);
/// A connection that lived this long was a success: after it the back-off begins anew.
const SUCCESS: Duration = Duration::from_secs(1);

/// What a link's task shares with its owner.
#[derive(Debug)]
pub(super) struct Target {
    pub(super) address: String,
    pub(super) stream: Stream,
    /// Who must answer.
    pub(super) expects: Cell<Option<NodeId>>,
    /// Who answered, while connected.
    pub(super) connected: Cell<Option<NodeId>>,
}

/// Why there is no connection.
#[derive(Debug)]
enum DialError {
    /// The system says so.
    Io(io::Error),
    /// It could not be secured: mostly, who answers cannot prove who it is.
    Insecure(io::Error),
    /// It took too long.
    TimedOut,
    /// One of the two ends does not want to.
    Refused(Refused),
    /// The connection met itself.
    ToItself,
    /// Another address leads to the same node, and has the connection.
    Elsewhere(NodeId),
}

impl fmt::Display for DialError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Io(error) | Self::Insecure(error) => write!(f, "{error}"),
            Self::TimedOut => write!(f, "no answer in time"),
            Self::Refused(refused) => write!(f, "{refused}"),
            Self::ToItself => write!(f, "the connection met itself"),
            Self::Elsewhere(node) => write!(f, "another address leads to {node}"),
        }
    }
}

impl From<io::Error> for DialError {
    fn from(error: io::Error) -> Self {
        Self::Io(error)
    }
}

/// How a connection ended.
enum End {
    /// This end was told to stop.
    Stopped,
    /// The other end said goodbye.
    Goodbye,
    /// The other end did what it must not.
    Misbehaved,
    /// It broke.
    Broken(io::Error),
}

/// Keeps one connection to `target` until told to stop.
pub(super) async fn run(hub: Rc<Hub>, target: Rc<Target>, mut stop: watch::Receiver<bool>) {
    let mut link = Link {
        hub,
        target,
        failures: 0,
        elsewhere: None,
        reported: None,
        unreachable: false,
        insecure: None,
    };
    loop {
        let wait = link.wait();
        let dialled = tokio::select! {
            biased;
            () = stopped(&mut stop) => return,
            dialled = async { link.yield_to_other(wait).await; link.dial(HANDSHAKE_TIMEOUT).await } => dialled,
        };
        let mut next = Some(dialled);
        // The redial that looks for a hint may bring the next connection along.
        while let Some(dialled) = next.take() {
            match dialled {
                Ok(connection) => match link.serve(connection, &mut stop).await {
                    Some(dialled) => next = Some(dialled),
                    None if *stop.borrow() => return,
                    None => {}
                },
                Err(error) => link.failed(&error),
            }
        }
    }
}

/// Resolves when the owner wants the task to end. An owner that has gone without a word aborts it: then there is
/// no goodbye either.
pub(super) async fn stopped(stop: &mut watch::Receiver<bool>) {
    if stop.wait_for(|stop| *stop).await.is_err() {
        std::future::pending::<()>().await;
    }
}

type Dialled = Result<Connection, DialError>;

/// A connection after its handshake.
struct Connection {
    stream: Connected,
    established: Established,
    input: BytesMut,
}

struct Link {
    hub: Rc<Hub>,
    target: Rc<Target>,
    /// Dials and short-lived connections since the last success.
    failures: u32,
    /// The node that another address leads to as well.
    elsewhere: Option<NodeId>,
    /// The refusal reported last, until there is another or a success.
    reported: Option<(RefusedReason, bool)>,
    /// Whether the log already says that nobody answers.
    unreachable: bool,
    /// Why no secure connection came about, as the log says already.
    insecure: Option<String>,
}

impl Link {
    /// The wait before the next dial: none at first, then doubling, the second half of it random so that
    /// nodes that lost each other together do not come back together.
    fn wait(&self) -> Duration {
        let Some(doublings) = self.failures.checked_sub(1) else {
            return Duration::ZERO;
        };
        let wait = REDIAL_WAIT_MIN.saturating_mul(1 << doublings.min(16)).min(REDIAL_WAIT_MAX);
        let half = u64::try_from(wait.as_micros() / 2).unwrap_or(0);
        Duration::from_micros(half + self.hub.random_below(half + 1))
    }

    /// Waits, and goes on waiting while another address has the connection to the same node: every handshake to
    /// its end would replace that connection at the other end.
    async fn yield_to_other(&self, wait: Duration) {
        sleep(wait).await;
        while self.elsewhere.is_some_and(|node| self.hub.has_route(node, self.target.stream)) {
            sleep(REDIAL_WAIT_MAX).await;
        }
    }

    async fn dial(&self, limit: Duration) -> Dialled {
        timeout(limit, self.connect()).await.unwrap_or(Err(DialError::TimedOut))
    }

    async fn connect(&self) -> Dialled {
        let tcp = TcpStream::connect(&self.target.address).await?;
        if connection::is_to_itself(&tcp) {
            return Err(DialError::ToItself);
        }
        connection::set_options(&tcp)?;
        let mut stream = match &self.hub.settings.security {
            None => Connected::Plain(tcp),
            Some(security) => {
                let secured = security.dial(tcp, &self.target.address).await;
                Connected::Secured(secured.map_err(DialError::Insecure)?)
            }
        };
        let expects = self.target.expects.get();
        let ours = Greeting {
            hello: self.hub.hello(expects),
            stream: self.target.stream,
            expects,
            nonce: connection::random()?,
            has_secret: false,
        };
        let (mut input, mut out) = (BytesMut::new(), BytesMut::new());
        let secret = self.hub.settings.cluster_secret.clone();
        let mut initiator = Initiator::new(secret, self.hub.sender(), ours, &mut out)
            .map_err(DialError::Refused)?;
        loop {
            stream.write_all(&out).await?;
            stream.flush().await?;
            out.clear();
            if stream.read_buf(&mut input).await? == 0 {
                return Err(DialError::Io(io::ErrorKind::UnexpectedEof.into()));
            }
            match self.hub.with_facts(|facts| initiator.receive(facts, &mut input, &mut out)) {
                Ok(None) => {
                    let peer = initiator.peer();
                    if let Some(node) = peer
                        && self.hub.has_route(node, self.target.stream)
                    {
                        return Err(DialError::Elsewhere(node));
                    }
                }
                Ok(Some(established)) => return Ok(Connection { stream, established, input }),
                Err(refused) => {
                    // The refusal is a courtesy; the connection ends in any case.
                    stream.write_all(&out).await.ok();
                    stream.flush().await.ok();
                    return Err(DialError::Refused(refused));
                }
            }
        }
    }

    /// Reports a failed dial, each kind once.
    fn failed(&mut self, error: &DialError) {
        self.failures = self.failures.saturating_add(1);
        let Target { address, stream, .. } = &*self.target;
        if let DialError::Refused(refused) = error {
            self.failures = self.failures.max(8);
            let kind = (refused.reason, refused.by_peer);
            // The other stream to the same address is refused for the same reason.
            if *stream == Stream::Bulk || self.reported.replace(kind) == Some(kind) {
                return;
            }
            self.hub.count(|stats| stats.refused += 1);
            // Meeting oneself is how a list of all members' addresses looks from inside.
            if refused.reason == RefusedReason::Myself {
                tracing::debug!(%address, "this is our own address");
            } else {
                tracing::warn!(%address, %stream, %refused, "no connection");
            }
            self.hub.report(Event::Refused { address: address.clone(), refused: refused.clone() });
        } else if let DialError::Elsewhere(node) = error {
            tracing::debug!(%address, peer = %node, %stream, "connected already");
            self.elsewhere = Some(*node);
        } else if let DialError::Insecure(error) = error {
            let text = error.to_string();
            // As with refusals, the other stream fails for the same reason.
            if *stream == Stream::Control && self.insecure.as_ref() != Some(&text) {
                tracing::warn!(%address, error = text, "no secure connection");
            }
            self.insecure = Some(text);
        } else if !std::mem::replace(&mut self.unreachable, true) {
            tracing::info!(%address, %stream, %error, "peer unreachable");
        } else {
            tracing::trace!(%address, %stream, %error, "peer still unreachable");
        }
    }

    /// Sends until the connection ends. When it broke, gives what the redial brought that looked for a hint.
    async fn serve(
        &mut self,
        connection: Connection,
        stop: &mut watch::Receiver<bool>,
    ) -> Option<Dialled> {
        let Connection { stream: connected, established, input } = connection;
        let stream = self.target.stream;
        let node = established.hello.node;
        let (read, write) = connected.split();
        let outbox = Rc::new(Outbox::new(&self.hub, node, stream, Rc::clone(&write)));
        let (reader, writer) = (FrameReader::new(read, input), Writer::new(write));
        if !self.hub.open_route(node, stream, &outbox) {
            // Two addresses lead to one node; the first has it.
            tracing::debug!(address = %self.target.address, peer = %node, %stream, "connected already");
            self.failures = self.failures.saturating_add(8);
            self.elsewhere = Some(node);
            return None;
        }
        let began = Instant::now();
        self.elsewhere = None;
        self.reported = None;
        self.unreachable = false;
        self.insecure = None;
        self.target.connected.set(Some(node));
        tracing::info!(peer = %node, address = %self.target.address, %stream, "connected");
        let end = self.exchange(reader, writer, &established, &outbox, stop).await;
        self.target.connected.set(None);
        self.hub.close_route(node, stream);
        // The last half of the connection: while a hint is looked for, the other end may hear that it is closed.
        drop(outbox);
        self.failures = if began.elapsed() >= SUCCESS { 0 } else { self.failures + 1 };
        let address = &self.target.address;
        let mut redialled = None;
        let mut hint = false;
        match &end {
            End::Stopped => tracing::info!(peer = %node, %stream, "connection closed"),
            End::Goodbye => {
                tracing::info!(peer = %node, %address, %stream, "the peer said goodbye");
                self.failures = self.failures.max(1);
            }
            End::Misbehaved => self.failures = self.failures.max(1),
            End::Broken(error) => {
                tracing::info!(peer = %node, %address, %stream, %error, "connection broke");
                if stream == Stream::Control && !self.hub.said_goodbye(node) {
                    tokio::select! {
                        biased;
                        () = stopped(stop) => {}
                        dialled = self.redial() => {
                            hint = is_refused(&dialled);
                            redialled = Some(dialled);
                        }
                    }
                }
            }
        }
        // A connection that keeps breaking at once is not worth a redial at once each time.
        if self.failures > 2 && !hint && redialled.as_ref().is_some_and(Result::is_ok) {
            redialled = None;
        }
        self.hub.report(Event::Disconnected { node, stream, hint });
        redialled
    }

    /// Dials until the peer's host says clearly whether somebody listens there.
    async fn redial(&self) -> Dialled {
        let mut dialled = self.dial(HINT_DIAL_TIMEOUT).await;
        for _ in 1..HINT_DIALS {
            match &dialled {
                // Accepted by the kernel, not by the process: it may be going down.
                Err(DialError::Io(error)) if error.kind() != io::ErrorKind::ConnectionRefused => {}
                Ok(_) | Err(_) => break,
            }
            sleep(HINT_DIAL_WAIT).await;
            dialled = self.dial(HINT_DIAL_TIMEOUT).await;
        }
        dialled
    }

    async fn exchange(
        &self,
        mut reader: FrameReader,
        mut writer: Writer,
        established: &Established,
        outbox: &Outbox,
        stop: &mut watch::Receiver<bool>,
    ) -> End {
        let connected = || {
            self.hub.report(Event::Connected {
                hello: established.hello.clone(),
                address: self.target.address.clone(),
                stream: self.target.stream,
            });
        };
        connected();
        let end = {
            let write = async {
                loop {
                    if writer.buffer.is_empty() && !outbox.take(&mut writer.buffer).await {
                        // Everything up to the overflow is on its way; what is sent from now on follows it.
                        connected();
                    }
                    if let Err(error) = writer.write().await {
                        return End::Broken(error);
                    }
                }
            };
            tokio::select! {
                biased;
                () = stopped(stop) => End::Stopped,
                () = self.hub.told_to_close(established.hello.node) => End::Misbehaved,
                end = self.watch(established, &mut reader) => end,
                end = write => end,
            }
        };
        if matches!(end, End::Stopped) {
            // Whoever does not take it by then never does.
            timeout(FLUSH_TIMEOUT, flush(&self.hub, &mut writer, Some(outbox))).await.ok();
        }
        end
    }

    /// Reads the other direction, in which nothing comes but a goodbye or the end.
    async fn watch(&self, established: &Established, reader: &mut FrameReader) -> End {
        let node = established.hello.node;
        let error = match reader.next().await {
            Ok(frame) => match codec::decode(&frame, None) {
                Ok(frame) if frame.content == Content::Message(PeerMessage::Goodbye) => {
                    self.hub.note_goodbye(node);
                    return End::Goodbye;
                }
                Ok(_) => "a message in the wrong direction".to_owned(),
                Err(error) => error.to_string(),
            },
            Err(ReadError::Closed) => return End::Broken(io::ErrorKind::UnexpectedEof.into()),
            Err(ReadError::Broken(error)) => return End::Broken(error),
            Err(ReadError::Frame(error)) => error.to_string(),
        };
        self.hub.count(|stats| stats.bad_frames += 1);
        tracing::warn!(peer = %node, address = %self.target.address, %error, "connection closed");
        End::Misbehaved
    }
}

fn is_refused(dialled: &Dialled) -> bool {
    matches!(dialled, Err(DialError::Io(error)) if error.kind() == io::ErrorKind::ConnectionRefused)
}

/// Writes what is left and queued, then the goodbye, and closes.
pub(super) async fn flush(
    hub: &Hub,
    writer: &mut Writer,
    outbox: Option<&Outbox>,
) -> io::Result<()> {
    writer.write().await?;
    if let Some(outbox) = outbox {
        outbox.take_now(&mut writer.buffer);
        outbox.leave_to_writer();
    }
    // It has no content: it fits.
    codec::encode(&mut writer.buffer, hub.sender(), &PeerMessage::Goodbye).ok();
    writer.write().await?;
    writer.shutdown().await
}
