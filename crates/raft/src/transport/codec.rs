//! Frames: what travels on a connection after the preamble, as bytes. Pure functions, no IO.
//!
//! Decoding is total: any bytes give a frame or a [`FrameError`] that says what is wrong and where, and allocate
//! no more than in proportion to the frame. Payloads are slices of the received buffer. docs/wire-format.md
//! draws every byte; the golden frames in tests/golden/frames are decoded for ever.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_core::{ClusterId, Digest, GroupId, LogIdentity};

use super::body;
use super::handshake::HandshakeFrame;
use super::wire::Reader;
use crate::message::PeerMessage;

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

/// Appends `message` as one frame to `out`. Payloads are copied once, into `out`.
///
/// # Errors
/// When the frame would exceed [`FRAME_BYTES_MAX`]; `out` is as it was.
pub fn encode(out: &mut BytesMut, sender: Sender, message: &PeerMessage) -> Result<(), TooLarge> {
    frame(out, sender, body::message_kind(message), |out| body::put_message(out, message))
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
    frame(out, sender, body::handshake_kind(content), |out| body::put_handshake(out, content))
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
    let content = body::get_content(&mut input, header.kind, log)?;
    input.finish()?;
    Ok(Frame { sender: header.sender, content })
}
