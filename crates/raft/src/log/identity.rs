//! Small files that are written once or rarely: `identity`, `cluster` and `formation`.
//!
//! Each holds two copies of one sealed text, a page or more apart, so that one rotted copy costs nothing.
//! `identity` and `cluster` appear by a rename and never change; `formation` is rewritten copy by copy.

use bytes::{Buf, BufMut, Bytes};
use raft_core::{ClusterId, GroupId, Incarnation, MemberId, Membership};

use super::record::{to_u32, to_u64, to_usize};
use super::segment::FORMAT_VERSION;
use super::{Formed, Identity};

/// What a sealed file is for; its first bytes.
pub(super) const IDENTITY_MAGIC: [u8; 8] = *b"RRAFTIDN";
pub(super) const CLUSTER_MAGIC: [u8; 8] = *b"RRAFTCLU";
pub(super) const FORMATION_MAGIC: [u8; 8] = *b"RRAFTFRM";
pub(super) const MANIFEST_MAGIC: [u8; 8] = *b"RRAFTMAN";
/// Bytes before the text: magic, format, length, version.
const HEAD_BYTES: usize = 24;
/// Copies begin at multiples of this.
const PAGE_BYTES: usize = 4096;
/// Bytes of one copy in `formation`.
pub(super) const FORMATION_COPY_BYTES: usize = 64 << 10;
/// What the formation protocol may store.
pub(super) const FORMATION_BYTES_MAX: usize = FORMATION_COPY_BYTES - HEAD_BYTES - 4;

/// Why a sealed text is not believed.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum SealProblem {
    /// No copy is intact.
    Damaged,
    /// Intact, of a newer format.
    Newer(u32),
}

/// Encodes one copy.
pub(super) fn seal(magic: [u8; 8], version: u64, text: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(HEAD_BYTES + text.len() + 4);
    out.put_slice(&magic);
    out.put_u32_le(FORMAT_VERSION);
    out.put_u32_le(to_u32(text.len()));
    out.put_u64_le(version);
    out.put_slice(text);
    out.put_u32_le(crc32c::crc32c(&out));
    out
}

/// Decodes one copy at the beginning of `bytes`: its version and text.
pub(super) fn unseal(magic: [u8; 8], bytes: &[u8]) -> Result<(u64, Bytes), SealProblem> {
    if bytes.len() < HEAD_BYTES + 4 || bytes[..8] != magic {
        return Err(SealProblem::Damaged);
    }
    let mut input = &bytes[8..HEAD_BYTES];
    let (format, len, version) = (input.get_u32_le(), input.get_u32_le(), input.get_u64_le());
    let len = to_usize(u64::from(len));
    let Some(mut checksum) = bytes.get(HEAD_BYTES + len..HEAD_BYTES + len + 4) else {
        return Err(SealProblem::Damaged);
    };
    if checksum.get_u32_le() != crc32c::crc32c(&bytes[..HEAD_BYTES + len]) {
        return Err(SealProblem::Damaged);
    }
    if format != FORMAT_VERSION {
        return Err(SealProblem::Newer(format));
    }
    Ok((version, Bytes::copy_from_slice(&bytes[HEAD_BYTES..HEAD_BYTES + len])))
}

/// Two copies, the second at the next page behind the first.
pub(super) fn seal_twice(magic: [u8; 8], text: &[u8]) -> Vec<u8> {
    let copy = seal(magic, 1, text);
    let mut out = copy.clone();
    out.resize(copy.len().next_multiple_of(PAGE_BYTES), 0);
    out.extend_from_slice(&copy);
    out
}

/// Whether these bytes are what [`seal_twice`] makes of a text: both copies are intact, and equal.
pub(super) fn are_both_intact(magic: [u8; 8], bytes: &[u8]) -> bool {
    unseal_either(magic, bytes).is_ok_and(|text| seal_twice(magic, &text) == bytes)
}

/// The text of either copy made by [`seal_twice`].
pub(super) fn unseal_either(magic: [u8; 8], bytes: &[u8]) -> Result<Bytes, SealProblem> {
    let mut newer = SealProblem::Damaged;
    for offset in (0..bytes.len()).step_by(PAGE_BYTES) {
        match unseal(magic, &bytes[offset..]) {
            Ok((_, text)) => return Ok(text),
            Err(SealProblem::Newer(version)) => newer = SealProblem::Newer(version),
            Err(SealProblem::Damaged) => {}
        }
    }
    Err(newer)
}

/// The newest intact copy in the file `formation`: which of the two, its version and text.
pub(super) fn newest_formation(bytes: &[u8]) -> Option<(u64, Bytes)> {
    let copies = bytes.chunks(FORMATION_COPY_BYTES).take(2);
    copies.filter_map(|copy| unseal(FORMATION_MAGIC, copy).ok()).max_by_key(|(version, _)| *version)
}

/// Where in `formation` the copy of a version stands.
pub(super) fn formation_offset(version: u64) -> u64 {
    version % 2 * to_u64(FORMATION_COPY_BYTES)
}

impl Identity {
    /// The text of the file `identity`.
    pub(super) fn encode(self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_u64_le(self.member.0);
        out.put_u128_le(self.incarnation.0);
        out
    }

    /// Decodes the text of the file `identity`.
    pub(super) fn decode(text: &Bytes) -> Option<Self> {
        let mut input = text.clone();
        let member = MemberId(input.try_get_u64_le().ok()?);
        Some(Self { member, incarnation: Incarnation(input.try_get_u128_le().ok()?) })
    }
}

/// The text of the file `cluster`: the identity that joined, and what it joined.
pub(super) fn encode_cluster(identity: Identity, formed: &Formed) -> Vec<u8> {
    let mut out = identity.encode();
    out.put_u64_le(formed.cluster.0);
    out.put_u32_le(formed.group.0);
    out.extend_from_slice(&formed.members.encode(&[]));
    out
}

/// Decodes the text of the file `cluster`.
pub(super) fn decode_cluster(text: &Bytes) -> Option<(Identity, Formed)> {
    let identity = Identity::decode(text)?;
    let mut input = text.slice(24..);
    let cluster = ClusterId(input.try_get_u64_le().ok()?);
    let group = GroupId(input.try_get_u32_le().ok()?);
    let (members, _) = Membership::decode(&input)?;
    Some((identity, Formed { cluster, group, members }))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn either_copy_is_enough() {
        for len in [0, 10, 4096, 9000] {
            let text = vec![7; len];
            let bytes = seal_twice(IDENTITY_MAGIC, &text);
            for position in (0..bytes.len()).step_by(61) {
                let mut flipped = bytes.clone();
                flipped[position] ^= 4;
                assert_eq!(unseal_either(IDENTITY_MAGIC, &flipped).unwrap(), text);
            }
            let mut both = bytes.clone();
            both[30.min(24 + len)] ^= 1;
            let second = (24 + len + 4).next_multiple_of(PAGE_BYTES);
            both[second] ^= 1;
            assert_eq!(unseal_either(IDENTITY_MAGIC, &both), Err(SealProblem::Damaged));
            assert_eq!(unseal_either(CLUSTER_MAGIC, &bytes), Err(SealProblem::Damaged));
        }
    }
}
