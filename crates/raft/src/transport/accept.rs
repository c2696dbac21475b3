//! Connections that others have dialled: greet, then receive.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::net::IpAddr;
use std::rc::Rc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::BytesMut;
use raft_core::{Message, NodeId};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::codec::{self, Content, FrameError, Problem};
use super::connection::{self, FrameReader, ReadError, Writer};
use super::handshake::{Established, Refused, RefusedReason, Responder, refuse_at_once};
use super::hub::{Hub, Inflight};
use super::peer::{flush, stopped};
use super::secure::Connected;
use super::{
    ACCEPTED_MAX, Event, FLUSH_TIMEOUT, HANDSHAKE_TIMEOUT, HANDSHAKES_MAX, HANDSHAKES_PER_IP_MAX,
    INBOUND_BYTES_MAX,
};
use crate::io::Stream;
use crate::message::PeerMessage;

/// The pause after the system could not give another socket (out of file descriptors, mostly).
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// Accepts from `listener` and `handed_in` until told to stop, and owns every task that comes of it.
pub(super) async fn run(
    hub: Rc<Hub>,
    listener: Option<TcpListener>,
    mut handed_in: mpsc::Receiver<std::net::TcpStream>,
    mut stop: watch::Receiver<bool>,
) {
    let doors = Rc::new(Doors::default());
    let mut tasks = JoinSet::new();
    loop {
        let tcp = tokio::select! {
            biased;
            () = stopped(&mut stop) => break,
            Some(_) = tasks.join_next(), if !tasks.is_empty() => continue,
            tcp = accept(listener.as_ref()) => tcp,
            Some(tcp) = handed_in.recv() => match adopt(tcp) {
                Ok(tcp) => tcp,
                Err(error) => {
                    tracing::warn!(%error, "a connection handed in cannot be used");
                    continue;
                }
            },
        };
        let Ok(address) = tcp.peer_addr() else { continue };
        let Some(waiting) = doors.enter(address.ip()) else {
            hub.count(|stats| stats.over_limit += 1);
            tracing::debug!(%address, "too many connections");
            let text = "too many connections";
            let refusal = refuse_at_once(hub.sender(), RefusedReason::TooManyConnections, text);
            // A courtesy: a fresh socket's buffer takes it, or nobody gets it.
            tcp.try_write(&refusal).ok();
            continue;
        };
        tasks.spawn_local(receive(Rc::clone(&hub), tcp, waiting, stop.clone()));
    }
    while tasks.join_next().await.is_some() {}
}

/// The next connection to the own listener, if there is one.
async fn accept(listener: Option<&TcpListener>) -> TcpStream {
    let Some(listener) = listener else {
        return std::future::pending().await;
    };
    loop {
        match listener.accept().await {
            Ok((tcp, _)) => return tcp,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a connection");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

fn adopt(tcp: std::net::TcpStream) -> std::io::Result<TcpStream> {
    tcp.set_nonblocking(true)?;
    TcpStream::from_std(tcp)
}

/// Who is inside, and who waits at the door.
#[derive(Debug, Default)]
struct Doors {
    waiting: Cell<usize>,
    waiting_by_ip: RefCell<BTreeMap<IpAddr, usize>>,
    /// The connection of each node and stream, and what tells it that a newer one has taken its place.
    accepted: RefCell<BTreeMap<(NodeId, Stream), Rc<Notify>>>,
}

impl Doors {
    /// Lets a connection into the handshake, within the limits.
    fn enter(self: &Rc<Self>, ip: IpAddr) -> Option<Waiting> {
        let mut by_ip = self.waiting_by_ip.borrow_mut();
        let same_ip = by_ip.get(&ip).copied().unwrap_or(0);
        if self.waiting.get() >= HANDSHAKES_MAX
            || same_ip >= HANDSHAKES_PER_IP_MAX
            || self.accepted.borrow().len() >= ACCEPTED_MAX
        {
            return None;
        }
        self.waiting.set(self.waiting.get() + 1);
        by_ip.insert(ip, same_ip + 1);
        Some(Waiting { doors: Rc::clone(self), ip })
    }

    /// Takes the place of an older connection of the same node, if there is one: the node has dialled again
    /// because the old one is broken, even if this end has not noticed.
    fn take_place(self: &Rc<Self>, node: NodeId, stream: Stream) -> Place {
        let replaced = Rc::new(Notify::new());
        let older = self.accepted.borrow_mut().insert((node, stream), Rc::clone(&replaced));
        if let Some(older) = older {
            older.notify_one();
        }
        Place { doors: Rc::clone(self), key: (node, stream), replaced }
    }
}

/// A connection before the end of its handshake.
struct Waiting {
    doors: Rc<Doors>,
    ip: IpAddr,
}

impl Drop for Waiting {
    fn drop(&mut self) {
        self.doors.waiting.set(self.doors.waiting.get() - 1);
        let mut by_ip = self.doors.waiting_by_ip.borrow_mut();
        match by_ip.get_mut(&self.ip) {
            Some(count) if *count > 1 => *count -= 1,
            Some(_) | None => {
                by_ip.remove(&self.ip);
            }
        }
    }
}

/// A connection after its handshake.
struct Place {
    doors: Rc<Doors>,
    key: (NodeId, Stream),
    replaced: Rc<Notify>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let mut accepted = self.doors.accepted.borrow_mut();
        if accepted.get(&self.key).is_some_and(|holder| Rc::ptr_eq(holder, &self.replaced)) {
            accepted.remove(&self.key);
        }
    }
}

/// How far an accepted connection gets without a handshake.
enum Greeted {
    Done(Established, BytesMut),
    Refused(Refused),
    Gone(std::io::Error),
}

async fn greet(hub: &Hub, stream: &mut Connected) -> Greeted {
    let nonce = match connection::random() {
        Ok(nonce) => nonce,
        Err(error) => return Greeted::Gone(error),
    };
    let secret = hub.settings.cluster_secret.clone();
    let mut responder = Responder::new(secret, hub.sender(), nonce);
    let (mut input, mut out) = (BytesMut::new(), BytesMut::new());
    loop {
        match stream.read_buf(&mut input).await {
            Ok(0) => return Greeted::Gone(std::io::ErrorKind::UnexpectedEof.into()),
            Ok(_) => {}
            Err(error) => return Greeted::Gone(error),
        }
        let hello = |peer| hub.hello(Some(peer));
        let result = hub.with_facts(|facts| responder.receive(facts, hello, &mut input, &mut out));
        let written = async {
            stream.write_all(&out).await?;
            stream.flush().await
        };
        let written = written.await;
        out.clear();
        match (result, written) {
            (Err(refused), _) => return Greeted::Refused(refused),
            (Ok(_), Err(error)) => return Greeted::Gone(error),
            (Ok(Some(established)), Ok(())) => return Greeted::Done(established, input),
            (Ok(None), Ok(())) => {}
        }
    }
}

/// One accepted connection, from its first byte to its end.
async fn receive(hub: Rc<Hub>, tcp: TcpStream, waiting: Waiting, mut stop: watch::Receiver<bool>) {
    let address = waiting.ip;
    if connection::is_to_itself(&tcp) || connection::set_options(&tcp).is_err() {
        return;
    }
    let greeting = async {
        let mut stream = match &hub.settings.security {
            None => Connected::Plain(tcp),
            Some(security) => match security.accept(tcp).await {
                Ok(stream) => Connected::Secured(stream),
                Err(error) => return Err(error),
            },
        };
        let greeted = greet(&hub, &mut stream).await;
        Ok((stream, greeted))
    };
    let greeted = tokio::select! {
        biased;
        () = stopped(&mut stop) => return,
        greeted = timeout(HANDSHAKE_TIMEOUT, greeting) => greeted,
    };
    let (connected, established, input) = match greeted {
        Ok(Ok((stream, Greeted::Done(established, input)))) => (stream, established, input),
        Ok(Err(error)) => {
            // The dialler tries again and again: here it is told in the log of who wants to know.
            hub.count(|stats| stats.refused += 1);
            tracing::debug!(%address, %error, "connection not secured");
            return;
        }
        Ok(Ok((_, Greeted::Refused(refused)))) => {
            hub.count(|stats| stats.refused += 1);
            // The dialler tries again and again, and says loudly why it fails: here it is a detail.
            tracing::debug!(%address, %refused, "connection refused");
            return;
        }
        Ok(Ok((_, Greeted::Gone(error)))) => {
            tracing::debug!(%address, %error, "connection lost before the handshake");
            return;
        }
        Err(_) => {
            tracing::debug!(%address, "no handshake in time");
            return;
        }
    };
    let Established { hello, stream, .. } = established;
    let node = hello.node;
    let place = waiting.doors.take_place(node, stream);
    drop(waiting);
    tracing::debug!(peer = %node, %address, %stream, "accepted");
    hub.report(Event::Accepted { hello, stream });
    let (read, write) = connected.split();
    let mut reader = FrameReader::new(read, input);
    tokio::select! {
        biased;
        () = stopped(&mut stop) => {
            let mut writer = Writer::new(write);
            // Whoever does not take it by then never does.
            timeout(FLUSH_TIMEOUT, flush(&hub, &mut writer, None)).await.ok();
        }
        () = place.replaced.notified() => {
            tracing::debug!(peer = %node, %stream, "a newer connection replaces this one");
        }
        () = hub.told_to_close(node) => {
            tracing::info!(peer = %node, %stream, "connection closed: the peer contradicted itself or others");
        }
        () = messages(&hub, node, stream, &mut reader) => {}
    }
}

/// Hands messages to the driver until the connection ends.
async fn messages(hub: &Hub, node: NodeId, stream: Stream, reader: &mut FrameReader) {
    let inflight = Rc::new(Inflight::default());
    let meters = hub.settings.meters.peer(node);
    loop {
        inflight.below(INBOUND_BYTES_MAX).await;
        let error = match reader.next().await {
            Ok(_) if hub.with_facts(|facts| facts.removed.contains(&node)) => {
                // It dials again, and the handshake tells it why.
                tracing::info!(peer = %node, %stream, "connection closed: the node was removed");
                return;
            }
            Ok(frame) => match message(hub, &frame) {
                Ok(Some((_, PeerMessage::Goodbye))) => {
                    hub.note_goodbye(node);
                    return;
                }
                Ok(Some((epoch, message))) => {
                    hub.count(|stats| stats.received += 1);
                    let bytes = u64::try_from(frame.len()).unwrap_or(0);
                    meters.received_bytes.fetch_add(bytes, Ordering::Relaxed);
                    if let PeerMessage::Raft(Message::HeartbeatReply(reply)) = &message {
                        meters.heartbeat_answered(reply.round, hub.now());
                    }
                    let credit = inflight.charge(frame.len());
                    hub.report(Event::Message { from: node, stream, epoch, message, credit });
                    continue;
                }
                Ok(None) => continue,
                Err(error) => error,
            },
            Err(ReadError::Frame(error)) => error,
            Err(ReadError::Closed) => return,
            Err(ReadError::Broken(error)) => {
                tracing::debug!(peer = %node, %stream, %error, "accepted connection broke");
                return;
            }
        };
        hub.count(|stats| stats.bad_frames += 1);
        tracing::warn!(peer = %node, %stream, %error, "bad frame: connection closed");
        return;
    }
}

/// What a frame says to this node, with the sender's epoch; nothing when it is about a cluster that this node
/// does not belong to yet, or the sender not yet.
fn message(hub: &Hub, frame: &bytes::Bytes) -> Result<Option<(u64, PeerMessage)>, FrameError> {
    let frame = match codec::decode(frame, hub.log()) {
        Ok(frame) => frame,
        Err(FrameError { problem: Problem::NoLog, .. }) => return Ok(None),
        Err(error) => return Err(error),
    };
    let Content::Message(message) = frame.content else {
        return Err(FrameError { at: 12, problem: Problem::OutOfPlace });
    };
    let sender = frame.sender;
    if sender.group != hub.settings.group {
        return Err(FrameError { at: 16, problem: Problem::OtherLog });
    }
    match (hub.cluster(), sender.cluster) {
        (Some(ours), Some(theirs)) if ours != theirs => {
            return Err(FrameError { at: 20, problem: Problem::OtherLog });
        }
        (Some(_), Some(_)) => {}
        (None, _) | (_, None) => {
            if !matches!(message, PeerMessage::Formation(_) | PeerMessage::Goodbye) {
                return Ok(None);
            }
        }
    }
    Ok(Some((sender.epoch, message)))
}
