//! Step 6 in the life of a write: messages between nodes, over TCP.
//!
//! [`codec`] (with `body` and `wire`) and [`handshake`] are pure: bytes in, decisions and bytes out. `tcp` owns the listener and the
//! tasks, `peer` dials and sends, `accept` receives, `hub` is what they share. Everything runs on the raft
//! thread's current-thread runtime, so nothing here is locked.
//!
//! Each node dials each other node, once for [`Stream::Control`] and once for [`Stream::Bulk`], and sends only
//! on what it dialled; accepted connections are for receiving. A stream delivers in order or, after
//! [`Event::Disconnected`], not at all until [`Event::Connected`].
//!
//! Deliberately absent: what messages mean, who is a leader, when a snapshot is due, and TLS, which the embedder may put
//! below ([`Security`]).
//! docs/wire-format.md draws every byte.

mod accept;
mod body;
pub mod codec;
mod connection;
pub mod handshake;
mod hub;
mod peer;
mod secure;
mod tcp;
#[cfg(test)]
mod tests;
mod wire;

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use raft_core::{ClusterId, EntryId, GroupId, NodeId};

use crate::io::Stream;
use crate::message::{Hello, PeerMessage};
use crate::meters::Meters;

pub use handshake::{Facts, Refused, RefusedReason, SECRET_BYTES_MIN, Secret};
pub use hub::{Credit, Stats, TcpNetwork};
pub use secure::{SecureStream, Securing, Security};
pub use tcp::{Acceptor, Transport};

/// Bytes that wait to be sent to one peer on [`Stream::Control`]. What comes on top is dropped and breaks the
/// stream. Above the core's window of unacknowledged entries, so that only a stalled peer gets there.
pub const CONTROL_QUEUE_BYTES_MAX: usize = 64 << 20;
/// Bytes that wait to be sent to one peer on [`Stream::Bulk`].
pub const BULK_QUEUE_BYTES_MAX: usize = 16 << 20;
/// Bytes of one accepted connection's messages that the driver has not processed yet. Beyond it the socket is
/// not read, so that the peer's TCP stops it. One frame may overshoot.
pub const INBOUND_BYTES_MAX: usize = 16 << 20;
/// A connection that has not finished its handshake by then is closed.
pub const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(5);
/// Accepted connections before the end of their handshake, altogether.
pub const HANDSHAKES_MAX: usize = 1000;
/// Accepted connections before the end of their handshake, from one IP address.
pub const HANDSHAKES_PER_IP_MAX: usize = 64;
/// Accepted connections after their handshake: two for each of as many nodes as a cluster can have, and room
/// for those that join.
pub const ACCEPTED_MAX: usize = 256;
/// The first wait before an address is dialled again; doubles with every failure.
pub const REDIAL_WAIT_MIN: Duration = Duration::from_millis(50);
/// The longest wait before an address is dialled again.
pub const REDIAL_WAIT_MAX: Duration = Duration::from_secs(1);
/// How long binding a busy listen address is tried: the sample ports are ephemeral ones (decision 24).
pub const BIND_RETRY: Duration = Duration::from_secs(2);
/// How long a shutdown waits for a peer to take what is queued for it.
pub const FLUSH_TIMEOUT: Duration = Duration::from_secs(1);

/// What does not change while the transport runs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// This node.
    pub node: NodeId,
    /// The group whose messages travel here.
    pub group: GroupId,
    /// Where others dial this node: told to them in the handshake.
    pub address: String,
    /// Where to listen, `host:port`; `None` when the embedder listens and hands sockets to an [`Acceptor`].
    pub listen: Option<String>,
    /// Known to all members: with it both ends of a connection prove that they know it.
    pub cluster_secret: Option<Secret>,
    /// What secures connections; `None`: they are plain TCP.
    pub security: Option<Arc<dyn Security>>,
    /// Where traffic is counted.
    pub meters: Arc<Meters>,
}

/// What the node says of itself in every handshake and frame, as it is at the start. [`TcpNetwork`] has
/// setters for later.
#[derive(Clone, Debug, Default)]
pub struct Local {
    /// The cluster; `None` before formation.
    pub cluster: Option<ClusterId>,
    /// The durable epoch (decision 10).
    pub epoch: u64,
    /// The last position known to be durable.
    pub last_durable: EntryId,
}

/// An address to dial.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct PeerAddress {
    /// Who must answer there; `None` before formation, when only addresses are known. [`Stream::Bulk`] is
    /// dialled only when it is known.
    pub node: Option<NodeId>,
    /// `host:port`.
    pub address: String,
}

/// What the transport tells the driver.
#[derive(Debug)]
pub enum Event {
    /// What is sent to `hello.node` on `stream` from now on travels: the dialled connection stands. Also
    /// after an overflow of the queue, with the hello of the handshake.
    Connected {
        /// What the peer said of itself.
        hello: Hello,
        /// The address dialled, as given to [`Transport::set_peers`].
        address: String,
        /// Which of the two streams.
        stream: Stream,
    },
    /// What was sent to `node` on `stream` since some moment before is lost.
    Disconnected {
        /// The peer.
        node: NodeId,
        /// Which of the two streams.
        stream: Stream,
        /// The connection broke without a goodbye and an immediate redial was refused: the process is
        /// probably dead (decision 15). Only ever set for [`Stream::Control`].
        hint: bool,
    },
    /// A peer has dialled this node and passed the handshake; its messages follow.
    Accepted {
        /// What the peer said of itself.
        hello: Hello,
        /// Which of the two streams.
        stream: Stream,
    },
    /// A peer's message. `from` was bound by the handshake.
    Message {
        /// Who sent it.
        from: NodeId,
        /// Which of the two streams it came on.
        stream: Stream,
        /// The sender's durable epoch when it sent this.
        epoch: u64,
        /// What it said.
        message: PeerMessage,
        /// To be dropped when the message has been processed: then more is read.
        credit: Credit,
    },
    /// A connection did not come about. Reported once until the reason changes or a connection succeeds.
    Refused {
        /// The address dialled.
        address: String,
        /// Why, and which end refused.
        refused: Refused,
    },
}

impl fmt::Display for Stream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control => write!(f, "control"),
            Self::Bulk => write!(f, "bulk"),
        }
    }
}

/// Whether a connection that begins with this byte speaks the peer protocol. No HTTP method, HTTP/2 preface or
/// TLS record begins with it (decision 23).
#[must_use]
pub const fn first_byte_is_peer(byte: u8) -> bool {
    byte == handshake::MAGIC[0]
}
