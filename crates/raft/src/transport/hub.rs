//! What the tasks of the transport share: facts about this node, the routes to peers, the way to the driver.

use std::cell::{Cell, RefCell};
use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use bytes::{Buf as _, BytesMut};
use raft_core::{ClusterId, EntryId, LogIdentity, Membership, Message, NodeId, Rng, Time};
use tokio::sync::{Notify, broadcast, mpsc};
use tokio::time::Instant;

use super::codec::{self, Sender};
use super::handshake::{Facts, PROTOCOL_MAX, PROTOCOL_MIN};
use super::secure::WriteHalf;
use super::{BULK_QUEUE_BYTES_MAX, CONTROL_QUEUE_BYTES_MAX, Event, Local, Settings};
use crate::io::{Network, Stream};
use crate::message::{Hello, PeerMessage};
use crate::meters::PeerMeters;

/// Orders to close connections that a connection may not have heard yet; one that missed some closes as well.
const CLOSED_MAX: usize = 16;

/// Counters, monotonic since the start.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub struct Stats {
    /// Messages queued for a connected peer.
    pub sent: u64,
    /// Messages dropped because the peer was not connected.
    pub dropped_disconnected: u64,
    /// Messages dropped because the peer's queue was full.
    pub dropped_overflow: u64,
    /// Messages dropped because they exceed the largest frame.
    pub dropped_too_large: u64,
    /// Messages received and handed to the driver.
    pub received: u64,
    /// Connections closed because of what the peer sent.
    pub bad_frames: u64,
    /// Handshakes refused by either end.
    pub refused: u64,
    /// Accepted connections closed at once because of a limit.
    pub over_limit: u64,
}

/// What the tasks share. They all run on one thread: nothing is locked, no borrow outlives an await.
#[derive(Debug)]
pub(super) struct Hub {
    pub(super) settings: Settings,
    local: RefCell<Local>,
    facts: RefCell<Facts>,
    routes: RefCell<BTreeMap<(NodeId, Stream), Rc<Outbox>>>,
    /// Peers that closed on purpose and have not come back.
    goodbyes: RefCell<BTreeSet<NodeId>>,
    /// Nodes whose connections are to be closed.
    closed: broadcast::Sender<NodeId>,
    events: mpsc::UnboundedSender<Event>,
    stats: Cell<Stats>,
    rng: RefCell<Rng>,
    begun: Instant,
}

impl Hub {
    pub(super) fn new(
        settings: Settings,
        local: Local,
        events: mpsc::UnboundedSender<Event>,
        seed: u64,
    ) -> Self {
        let facts = Facts {
            node: settings.node,
            cluster: local.cluster,
            members: BTreeSet::new(),
            removed: BTreeSet::new(),
            epochs_seen: BTreeMap::new(),
        };
        Self {
            settings,
            local: RefCell::new(local),
            facts: RefCell::new(facts),
            routes: RefCell::default(),
            goodbyes: RefCell::default(),
            closed: broadcast::channel(CLOSED_MAX).0,
            events,
            stats: Cell::default(),
            begun: Instant::now(),
            rng: RefCell::new(Rng::new(seed)),
        }
    }

    /// Hands an event to the driver. After the driver has gone nobody needs it.
    pub(super) fn report(&self, event: Event) {
        self.events.send(event).ok();
    }

    pub(super) fn count(&self, change: impl FnOnce(&mut Stats)) {
        let mut stats = self.stats.get();
        change(&mut stats);
        self.stats.set(stats);
    }

    /// Time for measuring.
    pub(super) fn now(&self) -> Time {
        Time::ZERO.after(self.begun.elapsed())
    }

    pub(super) fn stats(&self) -> Stats {
        self.stats.get()
    }

    /// A number below `bound` for jitter.
    pub(super) fn random_below(&self, bound: u64) -> u64 {
        self.rng.borrow_mut().below(bound)
    }

    pub(super) fn with_facts<T>(&self, look: impl FnOnce(&Facts) -> T) -> T {
        look(&self.facts.borrow())
    }

    /// What this node says of itself to `peer`.
    pub(super) fn hello(&self, peer: Option<NodeId>) -> Hello {
        let local = self.local.borrow();
        let facts = self.facts.borrow();
        Hello {
            version_min: PROTOCOL_MIN,
            version_max: PROTOCOL_MAX,
            cluster: local.cluster,
            node: self.settings.node,
            address: self.settings.address.clone(),
            epoch: local.epoch,
            last_durable: local.last_durable,
            epoch_seen: peer.map_or(0, |peer| facts.epoch_seen(peer)),
        }
    }

    /// What every frame says of its sender.
    pub(super) fn sender(&self) -> Sender {
        let local = self.local.borrow();
        Sender { group: self.settings.group, cluster: local.cluster, epoch: local.epoch }
    }

    pub(super) fn cluster(&self) -> Option<ClusterId> {
        self.local.borrow().cluster
    }

    /// The log whose entries arrive here, once there is one.
    pub(super) fn log(&self) -> Option<LogIdentity> {
        self.cluster().map(|cluster| LogIdentity { cluster, group: self.settings.group })
    }

    /// Opens the way to a peer; false when another connection already is that way.
    pub(super) fn open_route(&self, node: NodeId, stream: Stream, outbox: &Rc<Outbox>) -> bool {
        let mut routes = self.routes.borrow_mut();
        if routes.contains_key(&(node, stream)) {
            return false;
        }
        self.goodbyes.borrow_mut().remove(&node);
        routes.insert((node, stream), Rc::clone(outbox));
        true
    }

    /// Resolves when the connections of `node` are to be closed.
    pub(super) fn told_to_close(&self, node: NodeId) -> impl Future<Output = ()> + use<> {
        let mut closed = self.closed.subscribe();
        async move { while closed.recv().await.is_ok_and(|closed| closed != node) {} }
    }

    /// Whether a connection already is the way to a peer.
    pub(super) fn has_route(&self, node: NodeId, stream: Stream) -> bool {
        self.routes.borrow().contains_key(&(node, stream))
    }

    /// Ends what [`open_route`](Self::open_route) began.
    pub(super) fn close_route(&self, node: NodeId, stream: Stream) {
        self.routes.borrow_mut().remove(&(node, stream));
    }

    pub(super) fn note_goodbye(&self, node: NodeId) {
        self.goodbyes.borrow_mut().insert(node);
    }

    pub(super) fn said_goodbye(&self, node: NodeId) -> bool {
        self.goodbyes.borrow().contains(&node)
    }
}

/// Frames that wait to be written to one connection, already encoded one after the other: the writer takes
/// them all at once and writes them with one call.
#[derive(Debug)]
pub(super) struct Outbox {
    frames: RefCell<BytesMut>,
    /// Bytes that the writer took last and may still be writing.
    writing: Cell<usize>,
    bytes_max: usize,
    /// Something did not fit: everything later is dropped until the writer has reported it.
    overflowed: Cell<bool>,
    /// Wakes the writer.
    wake: Notify,
    /// Whom the connection leads to, and for what.
    to: (NodeId, Stream),
    /// The connection.
    stream: Rc<WriteHalf>,
    meters: Arc<PeerMeters>,
}

/// A write buffer that grew beyond this is given back to the allocator.
const BUFFER_KEEP_BYTES: usize = 1 << 20;

impl Outbox {
    pub(super) fn new(hub: &Hub, node: NodeId, stream: Stream, connection: Rc<WriteHalf>) -> Self {
        let bytes_max = match stream {
            Stream::Control => CONTROL_QUEUE_BYTES_MAX,
            Stream::Bulk => BULK_QUEUE_BYTES_MAX,
        };
        Self {
            frames: RefCell::default(),
            writing: Cell::new(0),
            bytes_max,
            overflowed: Cell::new(false),
            wake: Notify::new(),
            to: (node, stream),
            stream: connection,
            meters: hub.settings.meters.peer(node),
        }
    }

    fn push(&self, hub: &Hub, message: &PeerMessage) {
        let (node, stream) = self.to;
        if self.overflowed.get() {
            hub.count(|stats| stats.dropped_overflow += 1);
            self.meters.sent_failures.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let mut frames = self.frames.borrow_mut();
        let before = frames.len();
        if let Err(error) = codec::encode(&mut frames, hub.sender(), message) {
            hub.count(|stats| stats.dropped_too_large += 1);
            tracing::error!(peer = %node, %error, "a message cannot be sent");
            // What follows must not arrive without it.
            self.overflowed.set(true);
            hub.report(Event::Disconnected { node, stream, hint: false });
            self.wake.notify_one();
            return;
        }
        // A frame that is alone in the queue always fits, however large.
        let waiting = before + self.writing.get();
        if waiting > 0 && frames.len() + self.writing.get() > self.bytes_max {
            frames.truncate(before);
            self.overflowed.set(true);
            hub.count(|stats| stats.dropped_overflow += 1);
            self.meters.sent_failures.fetch_add(1, Ordering::Relaxed);
            tracing::warn!(peer = %node, %stream, bytes = waiting, "queue full: the peer is too slow");
            hub.report(Event::Disconnected { node, stream, hint: false });
        } else {
            hub.count(|stats| stats.sent += 1);
            let bytes = u64::try_from(frames.len() - before).unwrap_or(0);
            self.meters.sent_bytes.fetch_add(bytes, Ordering::Relaxed);
            if let PeerMessage::Raft(Message::Heartbeat(heartbeat)) = message {
                self.meters.heartbeat_left(heartbeat.round, hub.now());
            }
        }
        self.wake.notify_one();
    }

    /// Writes what waits at once, as far as the connection takes it; the writer, which has been woken, does the rest
    /// and reports errors.
    fn flush(&self) {
        let mut frames = self.frames.borrow_mut();
        // What the writer has taken comes first.
        if self.writing.get() > 0 || frames.is_empty() {
            return;
        }
        match self.stream.try_write(&frames) {
            Ok(written) if written == frames.len() => {
                frames.clear();
                shrink(&mut frames);
            }
            Ok(written) => frames.advance(written),
            Err(error) => tracing::trace!(to = ?self.to, %error, "left to the writer"),
        }
    }

    /// From now on only the writer writes: it is about to say goodbye.
    pub(super) fn leave_to_writer(&self) {
        self.writing.set(self.writing.get().max(1));
    }

    /// Waits until there is something to write and swaps it into `buffer`, which must be empty. False: there
    /// is nothing to write, but messages were dropped and from now on are taken again.
    pub(super) async fn take(&self, buffer: &mut BytesMut) -> bool {
        loop {
            if self.take_now(buffer) {
                return true;
            }
            if self.overflowed.replace(false) {
                return false;
            }
            self.wake.notified().await;
        }
    }

    /// Swaps what waits into `buffer`, which must be empty; false when nothing waits.
    pub(super) fn take_now(&self, buffer: &mut BytesMut) -> bool {
        let mut frames = self.frames.borrow_mut();
        self.writing.set(frames.len());
        shrink(buffer);
        if frames.is_empty() {
            return false;
        }
        std::mem::swap(&mut *frames, buffer);
        true
    }
}

/// Gives back the memory of an empty buffer that one slow moment has made large.
fn shrink(buffer: &mut BytesMut) {
    if buffer.capacity() > BUFFER_KEEP_BYTES {
        *buffer = BytesMut::new();
    }
}

/// Sends to connected peers. Cheap to clone; stays on the raft thread.
#[derive(Clone, Debug)]
pub struct TcpNetwork {
    hub: Rc<Hub>,
}

impl TcpNetwork {
    pub(super) const fn new(hub: Rc<Hub>) -> Self {
        Self { hub }
    }

    /// The cluster has formed, or this node has joined it. Connections that exist go on.
    pub fn set_cluster(&self, cluster: ClusterId) {
        self.hub.local.borrow_mut().cluster = Some(cluster);
        self.hub.facts.borrow_mut().cluster = Some(cluster);
    }

    /// The durable epoch has advanced: it travels in every frame from now on (decision 10).
    pub fn set_epoch(&self, epoch: u64) {
        self.hub.local.borrow_mut().epoch = epoch;
    }

    /// The log is durable up to here: told in handshakes.
    pub fn set_last_durable(&self, last_durable: EntryId) {
        self.hub.local.borrow_mut().last_durable = last_durable;
    }

    /// The highest epoch that this node durably knows of `peer`: told to it in handshakes.
    pub fn set_epoch_seen(&self, peer: NodeId, epoch: u64) {
        self.hub.facts.borrow_mut().epochs_seen.insert(peer, epoch);
    }

    /// Who may connect as whom, and who never again ([`Facts::set_membership`]).
    pub fn set_membership(&self, in_force: &Membership, committed: &Membership) {
        self.hub.facts.borrow_mut().set_membership(in_force, committed);
    }

    /// Writes what [`send`](Network::send) has queued since the last turn of the connections' tasks, without waiting
    /// for their next one.
    pub fn flush(&self) {
        for outbox in self.hub.routes.borrow().values() {
            outbox.flush();
        }
    }

    /// Closes every connection from and to `node`, without a goodbye. They may come back.
    pub fn disconnect(&self, node: NodeId) {
        // Without any connection nobody listens.
        self.hub.closed.send(node).ok();
    }

    /// Whether what is sent to `node` on `stream` now would travel.
    #[must_use]
    pub fn is_connected(&self, node: NodeId, stream: Stream) -> bool {
        self.hub.routes.borrow().contains_key(&(node, stream))
    }

    /// Counters.
    #[must_use]
    pub fn stats(&self) -> Stats {
        self.hub.stats()
    }
}

impl Network for TcpNetwork {
    fn send(&mut self, to: NodeId, stream: Stream, message: PeerMessage) {
        match self.hub.routes.borrow().get(&(to, stream)) {
            Some(outbox) => outbox.push(&self.hub, &message),
            None => self.hub.count(|stats| stats.dropped_disconnected += 1),
        }
    }
}

/// How much of one accepted connection's input the driver has not processed.
#[derive(Debug, Default)]
pub(super) struct Inflight {
    bytes: Cell<usize>,
    freed: Notify,
}

impl Inflight {
    /// Accounts for a message of `bytes` until the credit is dropped.
    pub(super) fn charge(self: &Rc<Self>, bytes: usize) -> Credit {
        self.bytes.set(self.bytes.get() + bytes);
        Credit { inflight: Rc::clone(self), bytes }
    }

    /// Waits until no more than `bytes_max` bytes are unprocessed.
    pub(super) async fn below(&self, bytes_max: usize) {
        while self.bytes.get() > bytes_max {
            self.freed.notified().await;
        }
    }
}

/// A received message's share of its connection's budget, given back on drop.
#[derive(Debug)]
pub struct Credit {
    inflight: Rc<Inflight>,
    bytes: usize,
}

impl Drop for Credit {
    fn drop(&mut self) {
        self.inflight.bytes.set(self.inflight.bytes.get() - self.bytes);
        self.inflight.freed.notify_one();
    }
}
