//! What the node keeps in a member's `info`: its name and where it is reached.
//!
//! ```text
//! version u8 = 1, name, peer address, count u16, that many client addresses, feature level u16, known as u64;
//! the last two may be missing; a text is its length as u16 and its UTF-8 bytes. Little-endian.
//! ```

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_core::{Incarnation, MemberId, NodeId};

/// Version of the layout above.
const VERSION: u8 = 1;

/// The data folder of a member that is awaited: it has none. No folder is ever given this number.
const NO_FOLDER: Incarnation = Incarnation(0);

/// What stands in the configuration for a member that has been added and has yet to start: a learner that nobody can
/// be. The empty node that starts at its address takes its place, under an identity of its own.
#[must_use]
pub(crate) const fn awaited(member: MemberId) -> NodeId {
    NodeId { member, incarnation: NO_FOLDER }
}

/// Whether this is somebody who has yet to start.
#[must_use]
pub(crate) fn is_awaited(node: NodeId) -> bool {
    node.incarnation == NO_FOLDER
}

/// A member's attributes: they may change without changing who the member is.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct MemberInfo {
    /// For people.
    pub name: String,
    /// Where its peers dial it.
    pub peer_address: String,
    /// Where clients reach it; empty when that is the peer address.
    pub client_addresses: Vec<String>,
    /// The newest feature level that its program knows (decision 18); 0: it did not say, which counts as 1.
    pub feature_level: u16,
    /// The id by which administrators know it, where that is not its own: they were told it before the member started
    /// for the first time.
    pub known_as: Option<MemberId>,
}

impl MemberInfo {
    /// The bytes for [`Member::info`](raft_core::Member::info).
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        put_text(&mut out, &self.name);
        put_text(&mut out, &self.peer_address);
        let count = u16::try_from(self.client_addresses.len()).unwrap_or(u16::MAX);
        out.put_u16_le(count);
        for address in self.client_addresses.iter().take(usize::from(count)) {
            put_text(&mut out, address);
        }
        out.put_u16_le(self.feature_level);
        if let Some(MemberId(known_as)) = self.known_as {
            out.put_u64_le(known_as);
        }
        out.freeze()
    }

    /// What [`encode`](Self::encode) made; `None` when the bytes are anything else.
    #[must_use]
    pub fn decode(info: &Bytes) -> Option<Self> {
        let mut input = info.clone();
        if input.try_get_u8().ok()? != VERSION {
            return None;
        }
        let name = get_text(&mut input)?;
        let peer_address = get_text(&mut input)?;
        let count = input.try_get_u16_le().ok()?;
        let client_addresses =
            (0..count).map(|_| get_text(&mut input)).collect::<Option<Vec<_>>>()?;
        let feature_level = if input.has_remaining() { input.try_get_u16_le().ok()? } else { 0 };
        let known_as =
            if input.has_remaining() { Some(input.try_get_u64_le().ok()?) } else { None };
        let known_as = known_as.map(MemberId);
        Some(Self { name, peer_address, client_addresses, feature_level, known_as })
    }
}

/// Writes a text with its length; one over 64 KiB is cut at a character.
pub(crate) fn put_text(out: &mut BytesMut, text: &str) {
    let mut end = text.len().min(usize::from(u16::MAX));
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    out.put_u16_le(u16::try_from(end).unwrap_or(u16::MAX));
    out.put_slice(&text.as_bytes()[..end]);
}

/// Reads what [`put_text`] wrote.
pub(crate) fn get_text(input: &mut Bytes) -> Option<String> {
    let len = usize::from(input.try_get_u16_le().ok()?);
    if input.remaining() < len {
        return None;
    }
    String::from_utf8(input.split_to(len).to_vec()).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn comes_back_as_it_was_written() {
        let info = MemberInfo {
            name: String::from("north"),
            peer_address: String::from("127.0.0.1:54000"),
            client_addresses: vec![String::from("10.0.0.1:2379"), String::new()],
            feature_level: 0x0203,
            known_as: Some(MemberId(0x0405)),
        };
        let bytes = info.encode();
        assert_eq!(MemberInfo::decode(&bytes).as_ref(), Some(&info));
        let plain = MemberInfo { known_as: None, ..info };
        assert_eq!(MemberInfo::decode(&plain.encode()).as_ref(), Some(&plain));
        let (without, older) = (bytes.len() - 8, bytes.len() - 10);
        let silent = MemberInfo { feature_level: 0, ..plain.clone() };
        assert_eq!(MemberInfo::decode(&bytes.slice(..without)), Some(plain));
        assert_eq!(MemberInfo::decode(&bytes.slice(..older)), Some(silent));
        for len in (0..bytes.len()).filter(|len| *len != without && *len != older) {
            assert_eq!(MemberInfo::decode(&bytes.slice(..len)), None, "cut at {len}");
        }
    }
}
