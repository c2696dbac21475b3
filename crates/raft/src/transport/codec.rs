//! Frames: what travels on a connection after the preamble, as bytes. Pure functions, no IO.
//!
//! Decoding is total: any bytes give a frame or a [`FrameError`] that says what is wrong and where, and allocate
//! no more than in proportion to the frame. Payloads are slices of the received buffer. docs/wire-format.md
//! draws every byte; the golden frames in tests/golden/frames are decoded for ever.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_core::{
    AppendEntries, AppendEntriesReply, AppendOutcome, ClusterId, Digest, Entry, EntryId, EntryKind,
    GroupId, Heartbeat, HeartbeatReply, Index, InstallSnapshot, InstallSnapshotReply, LogIdentity,
    Message, ReadIndex, ReadIndexReply, RequestVote, RequestVoteReply, Term, TimeoutNow,
};

use super::handshake::{Greeting, HandshakeFrame, Refused, RefusedReason};
use super::wire::{Put, Reader};
use crate::io::Stream;
use crate::message::{
    Admin, Forward, ForwardAdmin, ForwardAdminReply, ForwardRefused, Hello, PeerMessage, Refusal,
    SnapshotMessage,
};

/// The largest frame, header included. Above every batch limit of the node: 16 MiB.
pub const FRAME_BYTES_MAX: usize = 16 << 20;
/// The largest frame before the end of the handshake, when nobody is trusted.
pub const HANDSHAKE_FRAME_BYTES_MAX: usize = 4 << 10;
/// Version of the frame's layout.
pub const FRAME_VERSION: u8 = 1;
/// Bytes of the header in version 1. Later versions may be longer; what is added is skipped here.
pub const HEADER_BYTES: usize = HEADER_BYTES_FIELD as usize;
/// The same, as the header says it.
const HEADER_BYTES_FIELD: u16 = 36;
/// The longest header that this version accepts.
const HEADER_BYTES_MAX: usize = 256;

/// Flag: the header's cluster id is valid. All other bits are reserved (one of them for compression) and zero.
const FLAG_CLUSTER: u8 = 1;

/// What every frame says of its sender.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Sender {
    /// The group that the frame concerns.
    pub group: GroupId,
    /// The sender's cluster; `None` before formation.
    pub cluster: Option<ClusterId>,
    /// The sender's durable epoch (decision 10).
    pub epoch: u64,
}

/// A decoded frame.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Frame {
    /// What its header says of the sender.
    pub sender: Sender,
    /// What it carries.
    pub content: Content,
}

/// What a frame carries.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Content {
    /// Before the end of the handshake.
    Handshake(HandshakeFrame),
    /// After it.
    Message(PeerMessage),
}

/// Bytes that are not a frame: the connection that they came on is closed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct FrameError {
    /// Where in the frame, in bytes from its beginning.
    pub at: usize,
    /// What is wrong there.
    pub problem: Problem,
}

/// What is wrong with a frame.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum Problem {
    /// The frame ends before this field does.
    Truncated {
        /// The field.
        what: &'static str,
    },
    /// The frame goes on after its content.
    TrailingBytes {
        /// How long.
        bytes: usize,
    },
    /// The length field is below the header's size or above the limit.
    BadLength {
        /// Its value.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// The bytes are not the ones that were sent.
    BadChecksum {
        /// What the frame says.
        expected: u32,
        /// What its bytes give.
        found: u32,
    },
    /// A layout that this version does not know.
    UnknownVersion(u8),
    /// Flags that this version does not know.
    UnknownFlags(u8),
    /// A kind of content that this version does not know.
    UnknownKind(u16),
    /// A field has a value that means nothing.
    BadValue {
        /// The field.
        what: &'static str,
        /// Its value.
        value: u64,
    },
    /// A list claims more items than the frame has bytes for.
    TooMany {
        /// The list.
        what: &'static str,
        /// Its count.
        count: u32,
    },
    /// A text is not UTF-8.
    NotUtf8 {
        /// The text.
        what: &'static str,
    },
    /// The membership's encoding is broken.
    BadMembership,
    /// The entries do not continue the chain that they claim to continue.
    BadDigest {
        /// What the frame says of its last entry.
        expected: Digest,
        /// What the entries give.
        found: Digest,
    },
    /// Entries, and this node has no log yet.
    NoLog,
    /// A frame of the handshake after it, or another one before its end.
    OutOfPlace,
    /// For a group, or from a cluster, that this connection is not about.
    OtherLog,
}

impl fmt::Display for FrameError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "byte {} of the frame: ", self.at)?;
        match &self.problem {
            Problem::Truncated { what } => write!(f, "the frame ends within {what}"),
            Problem::TrailingBytes { bytes } => write!(f, "{bytes} bytes after the content"),
            Problem::BadLength { bytes, bytes_max } => {
                write!(f, "length {bytes} is out of range, the limit is {bytes_max}")
            }
            Problem::BadChecksum { expected, found } => {
                write!(f, "checksum {found:08x} instead of {expected:08x}")
            }
            Problem::UnknownVersion(version) => write!(f, "unknown frame version {version}"),
            Problem::UnknownFlags(flags) => write!(f, "unknown flags {flags:#04x}"),
            Problem::UnknownKind(kind) => write!(f, "unknown kind of content {kind}"),
            Problem::BadValue { what, value } => write!(f, "{what} cannot be {value}"),
            Problem::TooMany { what, count } => {
                write!(f, "{count} items of {what} do not fit into the frame")
            }
            Problem::NotUtf8 { what } => write!(f, "{what} is not UTF-8"),
            Problem::BadMembership => write!(f, "a membership that cannot be decoded"),
            Problem::BadDigest { expected, found } => {
                write!(f, "the entries' digest is {found} instead of {expected}")
            }
            Problem::NoLog => write!(f, "entries for a node that belongs to no cluster"),
            Problem::OutOfPlace => write!(f, "this frame has no place here"),
            Problem::OtherLog => write!(f, "for another group or from another cluster"),
        }
    }
}

impl std::error::Error for FrameError {}

/// The message does not fit into a frame.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct TooLarge {
    /// Bytes that the frame would have; the limit is [`FRAME_BYTES_MAX`].
    pub bytes: usize,
}

impl fmt::Display for TooLarge {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "the frame would have {} bytes, at most {FRAME_BYTES_MAX} are allowed",
            self.bytes
        )
    }
}

impl std::error::Error for TooLarge {}

/// The kinds of content. The numbers are on the wire: they are never reused.
mod kind {
    pub(super) const GREETING: u16 = 1;
    pub(super) const GREETING_REPLY: u16 = 2;
    pub(super) const PROOF: u16 = 3;
    pub(super) const WELCOME: u16 = 4;
    pub(super) const REFUSED: u16 = 5;
    pub(super) const GOODBYE: u16 = 6;

    pub(super) const REQUEST_VOTE: u16 = 16;
    pub(super) const REQUEST_VOTE_REPLY: u16 = 17;
    pub(super) const APPEND_ENTRIES: u16 = 18;
    pub(super) const APPEND_ENTRIES_REPLY: u16 = 19;
    pub(super) const HEARTBEAT: u16 = 20;
    pub(super) const HEARTBEAT_REPLY: u16 = 21;
    pub(super) const INSTALL_SNAPSHOT: u16 = 22;
    pub(super) const INSTALL_SNAPSHOT_REPLY: u16 = 23;
    pub(super) const TIMEOUT_NOW: u16 = 24;
    pub(super) const READ_INDEX: u16 = 25;
    pub(super) const READ_INDEX_REPLY: u16 = 26;

    pub(super) const FORWARD: u16 = 32;
    pub(super) const FORWARD_REFUSED: u16 = 33;
    pub(super) const FORWARD_ADMIN: u16 = 34;
    pub(super) const FORWARD_ADMIN_REPLY: u16 = 35;
    pub(super) const FORMATION: u16 = 36;

    pub(super) const SNAPSHOT_OFFER: u16 = 48;
    pub(super) const SNAPSHOT_HAVE: u16 = 49;
    pub(super) const SNAPSHOT_CHUNK: u16 = 50;
    pub(super) const SNAPSHOT_ACK: u16 = 51;
    pub(super) const SNAPSHOT_ABORT: u16 = 52;
}

/// Appends `message` as one frame to `out`. Payloads are copied once, into `out`.
///
/// # Errors
/// When the frame would exceed [`FRAME_BYTES_MAX`]; `out` is as it was.
pub fn encode(out: &mut BytesMut, sender: Sender, message: &PeerMessage) -> Result<(), TooLarge> {
    frame(out, sender, message_kind(message), |out| put_message(out, message))
}

/// As [`encode`], for the frames of the handshake.
///
/// # Errors
/// As [`encode`].
pub fn encode_handshake(
    out: &mut BytesMut,
    sender: Sender,
    content: &HandshakeFrame,
) -> Result<(), TooLarge> {
    let kind = match content {
        HandshakeFrame::Greeting(_) => kind::GREETING,
        HandshakeFrame::GreetingReply { .. } => kind::GREETING_REPLY,
        HandshakeFrame::Proof(_) => kind::PROOF,
        HandshakeFrame::Welcome => kind::WELCOME,
        HandshakeFrame::Refused(_) => kind::REFUSED,
    };
    frame(out, sender, kind, |out| put_handshake(out, content))
}

fn frame(
    out: &mut BytesMut,
    sender: Sender,
    kind: u16,
    put_body: impl FnOnce(&mut BytesMut),
) -> Result<(), TooLarge> {
    let start = out.len();
    // Length and checksum are filled in once the body stands.
    out.put_u32_le(0);
    out.put_u32_le(0);
    out.put_u16_le(HEADER_BYTES_FIELD);
    out.put_u8(FRAME_VERSION);
    out.put_u8(if sender.cluster.is_some() { FLAG_CLUSTER } else { 0 });
    out.put_u16_le(kind);
    out.put_u16_le(0);
    out.put_u32_le(sender.group.0);
    out.put_u64_le(sender.cluster.unwrap_or_default().0);
    out.put_u64_le(sender.epoch);
    put_body(out);
    let bytes = out.len() - start;
    let length = match u32::try_from(bytes) {
        Ok(length) if bytes <= FRAME_BYTES_MAX => length,
        Ok(_) | Err(_) => {
            out.truncate(start);
            return Err(TooLarge { bytes });
        }
    };
    let frame = &mut out[start..];
    frame[0..4].copy_from_slice(&length.to_le_bytes());
    let checksum = checksum(frame);
    frame[4..8].copy_from_slice(&checksum.to_le_bytes());
    Ok(())
}

/// CRC-32C of everything but the checksum itself.
fn checksum(frame: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c(&frame[0..4]), &frame[8..])
}

/// How long the frame is that begins with `start`; `None` when the length has not arrived yet.
///
/// # Errors
/// When no frame of at most `bytes_max` bytes begins so.
pub fn frame_len(start: &[u8], bytes_max: usize) -> Result<Option<usize>, FrameError> {
    let Some(mut length) = start.get(0..4) else {
        return Ok(None);
    };
    let bytes = usize::try_from(length.get_u32_le()).unwrap_or(usize::MAX);
    if !(HEADER_BYTES..=bytes_max).contains(&bytes) {
        return Err(FrameError { at: 0, problem: Problem::BadLength { bytes, bytes_max } });
    }
    Ok(Some(bytes))
}

/// What the header of a checked frame says.
struct Header {
    sender: Sender,
    kind: u16,
    header_bytes: usize,
}

fn decode_header(frame: &[u8]) -> Result<Header, FrameError> {
    let error = |at, problem| Err(FrameError { at, problem });
    let Some(mut header) = frame.get(0..HEADER_BYTES) else {
        return error(frame.len(), Problem::Truncated { what: "the header" });
    };
    let length = usize::try_from(header.get_u32_le()).unwrap_or(usize::MAX);
    if length != frame.len() {
        return error(0, Problem::BadLength { bytes: length, bytes_max: frame.len() });
    }
    let expected = header.get_u32_le();
    let found = checksum(frame);
    if found != expected {
        return error(4, Problem::BadChecksum { expected, found });
    }
    let header_bytes = usize::from(header.get_u16_le());
    let version = header.get_u8();
    if version != FRAME_VERSION {
        return error(10, Problem::UnknownVersion(version));
    }
    if !(HEADER_BYTES..=HEADER_BYTES_MAX).contains(&header_bytes) || header_bytes > frame.len() {
        let bytes_max = HEADER_BYTES_MAX.min(frame.len());
        return error(8, Problem::BadLength { bytes: header_bytes, bytes_max });
    }
    let flags = header.get_u8();
    if flags & !FLAG_CLUSTER != 0 {
        return error(11, Problem::UnknownFlags(flags));
    }
    let kind = header.get_u16_le();
    let reserved = header.get_u16_le();
    if reserved != 0 {
        let value = u64::from(reserved);
        return error(14, Problem::BadValue { what: "the reserved field", value });
    }
    let group = GroupId(header.get_u32_le());
    let cluster = header.get_u64_le();
    let epoch = header.get_u64_le();
    let cluster = (flags & FLAG_CLUSTER != 0).then_some(ClusterId(cluster));
    Ok(Header { sender: Sender { group, cluster, epoch }, kind, header_bytes })
}

/// Decodes one whole frame. `log` is the receiver's, over which entries are chained; `None` before formation,
/// when entries are an error.
///
/// # Errors
/// When the bytes are anything but a frame of this version.
pub fn decode(frame: &Bytes, log: Option<LogIdentity>) -> Result<Frame, FrameError> {
    let header = decode_header(frame)?;
    let mut input = Reader::new(frame.slice(header.header_bytes..), frame.len());
    let content = get_content(&mut input, header.kind, log)?;
    input.finish()?;
    Ok(Frame { sender: header.sender, content })
}

const fn message_kind(message: &PeerMessage) -> u16 {
    match message {
        PeerMessage::Raft(message) => match message {
            Message::RequestVote(_) => kind::REQUEST_VOTE,
            Message::RequestVoteReply(_) => kind::REQUEST_VOTE_REPLY,
            Message::AppendEntries(_) => kind::APPEND_ENTRIES,
            Message::AppendEntriesReply(_) => kind::APPEND_ENTRIES_REPLY,
            Message::Heartbeat(_) => kind::HEARTBEAT,
            Message::HeartbeatReply(_) => kind::HEARTBEAT_REPLY,
            Message::InstallSnapshot(_) => kind::INSTALL_SNAPSHOT,
            Message::InstallSnapshotReply(_) => kind::INSTALL_SNAPSHOT_REPLY,
            Message::TimeoutNow(_) => kind::TIMEOUT_NOW,
            Message::ReadIndex(_) => kind::READ_INDEX,
            Message::ReadIndexReply(_) => kind::READ_INDEX_REPLY,
        },
        PeerMessage::Forward(_) => kind::FORWARD,
        PeerMessage::ForwardRefused(_) => kind::FORWARD_REFUSED,
        PeerMessage::ForwardAdmin(_) => kind::FORWARD_ADMIN,
        PeerMessage::ForwardAdminReply(_) => kind::FORWARD_ADMIN_REPLY,
        PeerMessage::Formation(_) => kind::FORMATION,
        PeerMessage::Snapshot(message) => match message {
            SnapshotMessage::Offer { .. } => kind::SNAPSHOT_OFFER,
            SnapshotMessage::Have { .. } => kind::SNAPSHOT_HAVE,
            SnapshotMessage::Chunk { .. } => kind::SNAPSHOT_CHUNK,
            SnapshotMessage::Ack { .. } => kind::SNAPSHOT_ACK,
            SnapshotMessage::Abort { .. } => kind::SNAPSHOT_ABORT,
        },
        PeerMessage::Goodbye => kind::GOODBYE,
    }
}

fn put_message(out: &mut BytesMut, message: &PeerMessage) {
    match message {
        PeerMessage::Raft(message) => put_raft(out, message),
        PeerMessage::Forward(Forward { term, payloads }) => {
            out.put_u64_le(term.0);
            out.count(payloads.len());
            for payload in payloads {
                out.bytes(payload);
            }
        }
        PeerMessage::ForwardRefused(ForwardRefused { term, requests, refusal }) => {
            out.put_u64_le(term.0);
            out.put_u8(match refusal {
                Refusal::NotLeader => 0,
                Refusal::Overloaded => 1,
                Refusal::Transferring => 2,
            });
            out.count(requests.len());
            for request in requests {
                out.put_u64_le(*request);
            }
        }
        PeerMessage::ForwardAdmin(ForwardAdmin { request, admin }) => {
            out.put_u64_le(*request);
            match admin {
                Admin::Membership(steps) => {
                    out.put_u8(0);
                    out.count(steps.len());
                    for step in steps {
                        out.membership_step(step);
                    }
                }
                Admin::Transfer(target) => {
                    out.put_u8(1);
                    out.bool(target.is_some());
                    if let Some(target) = target {
                        out.node(*target);
                    }
                }
            }
        }
        PeerMessage::ForwardAdminReply(ForwardAdminReply { request, outcome }) => {
            out.put_u64_le(*request);
            out.bool(outcome.is_ok());
            match outcome {
                Ok(index) => out.put_u64_le(index.0),
                Err(text) => Put::bytes(out, text.as_bytes()),
            }
        }
        PeerMessage::Formation(bytes) => out.put_slice(bytes),
        PeerMessage::Snapshot(message) => put_snapshot(out, message),
        PeerMessage::Goodbye => {}
    }
}

fn put_raft(out: &mut BytesMut, message: &Message) {
    out.put_u64_le(message.term().0);
    match message {
        Message::RequestVote(m) => {
            out.entry_id(m.last_log);
            out.bool(m.pre_vote);
            out.bool(m.leader_transfer);
        }
        Message::RequestVoteReply(m) => {
            out.bool(m.vote_granted);
            out.bool(m.pre_vote);
        }
        Message::AppendEntries(m) => {
            out.entry_id(m.prev_log);
            out.digest(m.prev_digest);
            out.put_u64_le(m.leader_commit.0);
            // The receiver chains the entries itself and must arrive here.
            out.digest(m.entries.last().map_or(m.prev_digest, |entry| entry.digest));
            out.count(m.entries.len());
            for entry in &m.entries {
                out.put_u64_le(entry.id.term.0);
                out.put_u8(entry.kind.as_u8());
                out.bytes(&entry.payload);
            }
        }
        Message::AppendEntriesReply(m) => match &m.outcome {
            AppendOutcome::Accepted { match_index } => {
                out.put_u8(0);
                out.put_u64_le(match_index.0);
            }
            AppendOutcome::Rejected { prev_log_index, hint } => {
                out.put_u8(1);
                out.put_u64_le(prev_log_index.0);
                out.entry_id(*hint);
            }
        },
        Message::Heartbeat(m) => {
            out.put_u64_le(m.leader_commit.0);
            out.put_u64_le(m.round);
        }
        Message::HeartbeatReply(m) => {
            out.put_u64_le(m.round);
            out.put_u64_le(m.verified.0);
        }
        Message::InstallSnapshot(m) => out.snapshot_meta(&m.snapshot),
        Message::InstallSnapshotReply(m) => out.put_u64_le(m.match_index.0),
        Message::TimeoutNow(_) => {}
        Message::ReadIndex(m) => out.put_u64_le(m.id),
        Message::ReadIndexReply(m) => {
            out.put_u64_le(m.id);
            out.bool(m.index.is_some());
            if let Some(index) = m.index {
                out.put_u64_le(index.0);
            }
        }
    }
}

fn put_snapshot(out: &mut BytesMut, message: &SnapshotMessage) {
    match message {
        SnapshotMessage::Offer { term, snapshot, blobs } => {
            out.put_u64_le(term.0);
            out.snapshot_meta(snapshot);
            out.count(blobs.len());
            for blob in blobs {
                out.blob(*blob);
            }
        }
        SnapshotMessage::Have { snapshot, bytes } => {
            out.entry_id(*snapshot);
            out.count(bytes.len());
            for bytes in bytes {
                out.put_u64_le(*bytes);
            }
        }
        SnapshotMessage::Chunk { snapshot, blob, offset, bytes } => {
            out.entry_id(*snapshot);
            out.put_u32_le(*blob);
            out.put_u64_le(*offset);
            out.bytes(bytes);
        }
        SnapshotMessage::Ack { snapshot, blob, offset } => {
            out.entry_id(*snapshot);
            out.put_u32_le(*blob);
            out.put_u64_le(*offset);
        }
        SnapshotMessage::Abort { snapshot, reason } => {
            out.entry_id(*snapshot);
            Put::bytes(out, reason.as_bytes());
        }
    }
}

fn put_handshake(out: &mut BytesMut, content: &HandshakeFrame) {
    match content {
        HandshakeFrame::Greeting(greeting) => put_greeting(out, greeting),
        HandshakeFrame::GreetingReply { greeting, proof } => {
            put_greeting(out, greeting);
            put_proof(out, proof.as_ref());
        }
        HandshakeFrame::Proof(proof) => put_proof(out, proof.as_ref()),
        HandshakeFrame::Welcome => {}
        HandshakeFrame::Refused(refused) => {
            out.put_u16_le(refused.reason.code());
            Put::bytes(out, refused.text.as_bytes());
        }
    }
}

/// A greeting's canonical bytes: also what the proofs are over.
pub(super) fn put_greeting(out: &mut BytesMut, greeting: &Greeting) {
    let Greeting { hello, stream, expects, nonce, has_secret } = greeting;
    out.put_u16_le(hello.version_min);
    out.put_u16_le(hello.version_max);
    out.bool(hello.cluster.is_some());
    out.put_u64_le(hello.cluster.unwrap_or_default().0);
    out.node(hello.node);
    Put::bytes(out, hello.address.as_bytes());
    out.put_u64_le(hello.epoch);
    out.entry_id(hello.last_durable);
    out.put_u64_le(hello.epoch_seen);
    out.put_u8(match stream {
        Stream::Control => 0,
        Stream::Bulk => 1,
    });
    out.bool(expects.is_some());
    out.node(expects.unwrap_or_default());
    out.put_slice(nonce);
    out.bool(*has_secret);
}

fn put_proof(out: &mut BytesMut, proof: Option<&[u8; 32]>) {
    out.bool(proof.is_some());
    out.put_slice(proof.unwrap_or(&[0; 32]));
}

type Decoded<T> = Result<T, FrameError>;

fn get_content(input: &mut Reader, kind: u16, log: Option<LogIdentity>) -> Decoded<Content> {
    let message = match kind {
        kind::GREETING..=kind::REFUSED => {
            return get_handshake(input, kind).map(Content::Handshake);
        }
        kind::GOODBYE => PeerMessage::Goodbye,
        kind::APPEND_ENTRIES => {
            PeerMessage::Raft(Message::AppendEntries(get_append_entries(input, log)?))
        }
        kind::REQUEST_VOTE..=kind::READ_INDEX_REPLY => PeerMessage::Raft(get_raft(input, kind)?),
        kind::SNAPSHOT_OFFER..=kind::SNAPSHOT_ABORT => {
            PeerMessage::Snapshot(get_snapshot(input, kind)?)
        }
        kind => get_node_message(input, kind)?,
    };
    Ok(Content::Message(message))
}

fn get_node_message(input: &mut Reader, kind: u16) -> Decoded<PeerMessage> {
    Ok(match kind {
        kind::FORWARD => {
            let term = input.term("term")?;
            let payloads = input.list("payloads", 4, |input| input.bytes("payload"))?;
            PeerMessage::Forward(Forward { term, payloads })
        }
        kind::FORWARD_REFUSED => {
            let term = input.term("term")?;
            let refusal = match input.u8("refusal")? {
                0 => Refusal::NotLeader,
                1 => Refusal::Overloaded,
                2 => Refusal::Transferring,
                other => return Err(bad_value(input, "refusal", other)),
            };
            let requests = input.list("requests", 8, |input| input.u64("request"))?;
            PeerMessage::ForwardRefused(ForwardRefused { term, requests, refusal })
        }
        kind::FORWARD_ADMIN => {
            let request = input.u64("request")?;
            let admin = match input.u8("admin")? {
                0 => Admin::Membership(input.list("steps", 2, Reader::membership_step)?),
                1 => Admin::Transfer(input.option("target", |input| input.node("target"))?),
                other => return Err(bad_value(input, "admin", other)),
            };
            PeerMessage::ForwardAdmin(ForwardAdmin { request, admin })
        }
        kind::FORWARD_ADMIN_REPLY => {
            let request = input.u64("request")?;
            let outcome = if input.bool("outcome")? {
                Ok(input.index("index")?)
            } else {
                Err(input.string("error")?)
            };
            PeerMessage::ForwardAdminReply(ForwardAdminReply { request, outcome })
        }
        kind::FORMATION => PeerMessage::Formation(input.rest()),
        unknown => return Err(FrameError { at: 12, problem: Problem::UnknownKind(unknown) }),
    })
}

fn bad_value(input: &Reader, what: &'static str, value: u8) -> FrameError {
    input.error(Problem::BadValue { what, value: u64::from(value) })
}

fn get_raft(input: &mut Reader, kind: u16) -> Decoded<Message> {
    let term = input.term("term")?;
    Ok(match kind {
        kind::REQUEST_VOTE => Message::RequestVote(RequestVote {
            term,
            last_log: input.entry_id("last_log")?,
            pre_vote: input.bool("pre_vote")?,
            leader_transfer: input.bool("leader_transfer")?,
        }),
        kind::REQUEST_VOTE_REPLY => Message::RequestVoteReply(RequestVoteReply {
            term,
            vote_granted: input.bool("vote_granted")?,
            pre_vote: input.bool("pre_vote")?,
        }),
        kind::APPEND_ENTRIES_REPLY => {
            let outcome = match input.u8("outcome")? {
                0 => AppendOutcome::Accepted { match_index: input.index("match_index")? },
                1 => AppendOutcome::Rejected {
                    prev_log_index: input.index("prev_log_index")?,
                    hint: input.entry_id("hint")?,
                },
                other => return Err(bad_value(input, "outcome", other)),
            };
            Message::AppendEntriesReply(AppendEntriesReply { term, outcome })
        }
        kind::HEARTBEAT => Message::Heartbeat(Heartbeat {
            term,
            leader_commit: input.index("leader_commit")?,
            round: input.u64("round")?,
        }),
        kind::HEARTBEAT_REPLY => Message::HeartbeatReply(HeartbeatReply {
            term,
            round: input.u64("round")?,
            verified: input.index("verified")?,
        }),
        kind::INSTALL_SNAPSHOT => {
            Message::InstallSnapshot(InstallSnapshot { term, snapshot: input.snapshot_meta()? })
        }
        kind::INSTALL_SNAPSHOT_REPLY => Message::InstallSnapshotReply(InstallSnapshotReply {
            term,
            match_index: input.index("match_index")?,
        }),
        kind::TIMEOUT_NOW => Message::TimeoutNow(TimeoutNow { term }),
        kind::READ_INDEX => Message::ReadIndex(ReadIndex { term, id: input.u64("id")? }),
        kind::READ_INDEX_REPLY => Message::ReadIndexReply(ReadIndexReply {
            term,
            id: input.u64("id")?,
            index: input.option("index", |input| input.index("index"))?,
        }),
        unknown => return Err(FrameError { at: 12, problem: Problem::UnknownKind(unknown) }),
    })
}

/// Term, kind and the length of the payload.
const ENTRY_BYTES_MIN: usize = 8 + 1 + 4;

fn get_append_entries(input: &mut Reader, log: Option<LogIdentity>) -> Decoded<AppendEntries> {
    let Some(log) = log else {
        return Err(input.error(Problem::NoLog));
    };
    let term = input.term("term")?;
    let prev_log = input.entry_id("prev_log")?;
    let prev_digest = input.digest("prev_digest")?;
    let leader_commit = input.index("leader_commit")?;
    let expected = input.digest("last digest")?;
    let mut index = prev_log.index;
    let mut digest = prev_digest;
    let entries = input.list("entries", ENTRY_BYTES_MIN, |input| {
        index = match index.0.checked_add(1) {
            Some(next) => Index(next),
            None => {
                let problem = Problem::BadValue { what: "prev_log index", value: index.0 };
                return Err(input.error(problem));
            }
        };
        let id = EntryId { index, term: Term(input.u64("entry term")?) };
        let kind = input.u8("entry kind")?;
        let Some(kind) = EntryKind::from_u8(kind) else {
            return Err(bad_value(input, "entry kind", kind));
        };
        let payload = input.bytes("entry payload")?;
        digest = log.chain(digest, id, kind, &payload);
        Ok(Entry { id, kind, digest, payload })
    })?;
    if digest != expected {
        return Err(input.error(Problem::BadDigest { expected, found: digest }));
    }
    Ok(AppendEntries { term, prev_log, prev_digest, entries, leader_commit })
}

fn get_snapshot(input: &mut Reader, kind: u16) -> Decoded<SnapshotMessage> {
    if kind == kind::SNAPSHOT_OFFER {
        return Ok(SnapshotMessage::Offer {
            term: input.term("term")?,
            snapshot: input.snapshot_meta()?,
            blobs: input.list("blobs", 24, Reader::blob)?,
        });
    }
    let snapshot = input.entry_id("snapshot")?;
    Ok(match kind {
        kind::SNAPSHOT_HAVE => {
            let bytes = input.list("blob positions", 8, |input| input.u64("blob position"))?;
            SnapshotMessage::Have { snapshot, bytes }
        }
        kind::SNAPSHOT_CHUNK => SnapshotMessage::Chunk {
            snapshot,
            blob: input.u32("blob")?,
            offset: input.u64("offset")?,
            bytes: input.bytes("chunk")?,
        },
        kind::SNAPSHOT_ACK => SnapshotMessage::Ack {
            snapshot,
            blob: input.u32("blob")?,
            offset: input.u64("offset")?,
        },
        kind::SNAPSHOT_ABORT => {
            SnapshotMessage::Abort { snapshot, reason: input.string("reason")? }
        }
        unknown => return Err(FrameError { at: 12, problem: Problem::UnknownKind(unknown) }),
    })
}

fn get_handshake(input: &mut Reader, kind: u16) -> Decoded<HandshakeFrame> {
    Ok(match kind {
        kind::GREETING => HandshakeFrame::Greeting(get_greeting(input)?),
        kind::GREETING_REPLY => {
            let greeting = get_greeting(input)?;
            HandshakeFrame::GreetingReply { greeting, proof: get_proof(input)? }
        }
        kind::PROOF => HandshakeFrame::Proof(get_proof(input)?),
        kind::WELCOME => HandshakeFrame::Welcome,
        kind::REFUSED => {
            let reason = RefusedReason::from_code(input.u16("reason")?);
            HandshakeFrame::Refused(Refused { reason, text: input.string("text")?, by_peer: true })
        }
        unknown => return Err(FrameError { at: 12, problem: Problem::UnknownKind(unknown) }),
    })
}

fn get_greeting(input: &mut Reader) -> Decoded<Greeting> {
    let version_min = input.u16("version_min")?;
    let version_max = input.u16("version_max")?;
    let has_cluster = input.bool("cluster")?;
    let cluster = ClusterId(input.u64("cluster")?);
    let hello = Hello {
        version_min,
        version_max,
        cluster: has_cluster.then_some(cluster),
        node: input.node("node")?,
        address: input.string("address")?,
        epoch: input.u64("epoch")?,
        last_durable: input.entry_id("last_durable")?,
        epoch_seen: input.u64("epoch_seen")?,
    };
    let stream = match input.u8("stream")? {
        0 => Stream::Control,
        1 => Stream::Bulk,
        other => return Err(bad_value(input, "stream", other)),
    };
    let has_expected = input.bool("expects")?;
    let expects = input.node("expects")?;
    Ok(Greeting {
        hello,
        stream,
        expects: has_expected.then_some(expects),
        nonce: input.array("nonce")?,
        has_secret: input.bool("has_secret")?,
    })
}

fn get_proof(input: &mut Reader) -> Decoded<Option<[u8; 32]>> {
    let present = input.bool("proof")?;
    let proof = input.array("proof")?;
    Ok(present.then_some(proof))
}
