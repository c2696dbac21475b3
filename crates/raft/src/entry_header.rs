//! What stands before every command in the log: who proposed it, under which number.
//!
//! ```text
//! offset  bytes  field
//!      0      1  version, 1
//!      1      1  flags; bit 0: a session follows
//!      2      8  proposer's member id
//!     10     16  proposer's incarnation
//!     26      8  request id, unique for this proposer for ever
//!     34      8  session id       (only with bit 0)
//!     42      8  session sequence (only with bit 0)
//! ```
//!
//! Little-endian. The command follows at once; its length is the payload's. A membership entry carries the same
//! header as its context. The member that proposed answers its client when it *applies* an entry with its own
//! name and number: no other answer exists (decision 17).

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_core::{DecodeError, NodeId, Session};

/// Version of the layout above.
const VERSION: u8 = 1;
/// A session and its sequence number follow.
const FLAG_SESSION: u8 = 1;
/// Bytes of a header without a session.
pub const HEADER_BYTES: usize = 34;

/// Who proposed an entry, and under which number.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct EntryHeader {
    /// The member whose client is to be answered.
    pub proposer: NodeId,
    /// The proposer's number for it: never used twice, not even across restarts.
    pub request: u64,
    /// The client's session, when it has one.
    pub session: Option<Session>,
}

impl EntryHeader {
    /// Appends the header to `out`.
    pub fn encode(&self, out: &mut BytesMut) {
        out.put_u8(VERSION);
        out.put_u8(if self.session.is_some() { FLAG_SESSION } else { 0 });
        out.put_u64_le(self.proposer.member.0);
        out.put_u128_le(self.proposer.incarnation.0);
        out.put_u64_le(self.request);
        if let Some(session) = self.session {
            out.put_u64_le(session.id);
            out.put_u64_le(session.sequence);
        }
    }

    /// The header alone, as the context of a membership entry.
    #[must_use]
    pub fn to_bytes(self) -> Bytes {
        let mut out = BytesMut::with_capacity(HEADER_BYTES);
        self.encode(&mut out);
        out.freeze()
    }

    /// Splits a payload into its header and the command, which shares the payload's memory.
    ///
    /// # Errors
    /// When the bytes are no header of this version.
    pub fn decode(payload: &Bytes) -> Result<(Self, Bytes), DecodeError> {
        let mut rest = payload.clone();
        let header = Self::read(&mut rest)?;
        Ok((header, rest))
    }

    fn read(input: &mut Bytes) -> Result<Self, DecodeError> {
        let short = |_| DecodeError(String::from("the entry ends inside its header"));
        let version = input.try_get_u8().map_err(short)?;
        if version != VERSION {
            return Err(DecodeError(format!(
                "entry header version {version}; this program knows {VERSION}"
            )));
        }
        let flags = input.try_get_u8().map_err(short)?;
        if flags & !FLAG_SESSION != 0 {
            return Err(DecodeError(format!("entry header flags {flags:#04x}")));
        }
        let member = input.try_get_u64_le().map_err(short)?;
        let incarnation = input.try_get_u128_le().map_err(short)?;
        let request = input.try_get_u64_le().map_err(short)?;
        let session = if flags & FLAG_SESSION == 0 {
            None
        } else {
            let id = input.try_get_u64_le().map_err(short)?;
            Some(Session { id, sequence: input.try_get_u64_le().map_err(short)? })
        };
        Ok(Self { proposer: NodeId::new(member, incarnation), request, session })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_header_comes_back_as_it_was_written_and_leaves_the_command() {
        for session in [None, Some(Session { id: 5, sequence: 9 })] {
            let header = EntryHeader { proposer: NodeId::new(3, 4), request: 77, session };
            let mut out = BytesMut::new();
            header.encode(&mut out);
            out.extend_from_slice(b"command");
            let (back, command) = EntryHeader::decode(&out.freeze()).unwrap();
            assert_eq!(back, header);
            assert_eq!(&command[..], b"command");
        }
    }

    /// Version 1 is in logs: these bytes never change.
    #[test]
    fn version_1_is_fixed() {
        let header =
            EntryHeader { proposer: NodeId::new(0x0102, 0x0304), request: 0x0506, session: None };
        let bytes = header.to_bytes();
        assert_eq!(bytes.len(), HEADER_BYTES);
        assert_eq!(&bytes[..4], &[1, 0, 2, 1]);
        assert_eq!(&bytes[10..12], &[4, 3]);
        assert_eq!(&bytes[26..28], &[6, 5]);
    }

    #[test]
    fn anything_else_is_refused() {
        for bytes in [&b""[..], &[2; 40], &[1, 2, 0, 0], &[1, 0, 1], &[1, 1, 0]] {
            assert!(EntryHeader::decode(&Bytes::copy_from_slice(bytes)).is_err());
        }
    }
}
