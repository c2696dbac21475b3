//! The digest chain: one number that stands for a whole prefix of the log.

use core::fmt;

use xxhash_rust::xxh3::xxh3_128;

use crate::types::{ClusterId, EntryId, EntryKind, GroupId};

/// A 128-bit digest chained over (cluster id, group, index, term, kind, payload, previous digest).
///
/// Equal digests at an index mean equal logs up to it, so a misdirected, stale or rotted entry cannot
/// pass for another. XXH3-128: it detects accidents, not forgery; peers are trusted (docs/disk-format.md).
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(pub u128);

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:032x}", self.0)
    }
}

/// Which log a chain belongs to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LogIdentity {
    /// The cluster.
    pub cluster: ClusterId,
    /// The group within it.
    pub group: GroupId,
}

/// Bytes of one link: payload digest, previous digest, cluster, group, index, term, kind.
const LINK_BYTES: usize = 16 + 16 + 8 + 4 + 8 + 8 + 1;

impl LogIdentity {
    /// The digest at index 0: over the identity and the encoded first configuration.
    #[must_use]
    pub fn origin(&self, first_membership: &[u8]) -> Digest {
        self.chain(Digest(0), EntryId::ZERO, EntryKind::Membership, first_membership)
    }

    /// The digest at `id` when the one before it is `previous`.
    #[must_use]
    pub fn chain(&self, previous: Digest, id: EntryId, kind: EntryKind, payload: &[u8]) -> Digest {
        let mut link = [0u8; LINK_BYTES];
        link[0..16].copy_from_slice(&xxh3_128(payload).to_le_bytes());
        link[16..32].copy_from_slice(&previous.0.to_le_bytes());
        link[32..40].copy_from_slice(&self.cluster.0.to_le_bytes());
        link[40..44].copy_from_slice(&self.group.0.to_le_bytes());
        link[44..52].copy_from_slice(&id.index.0.to_le_bytes());
        link[52..60].copy_from_slice(&id.term.0.to_le_bytes());
        link[60] = kind.as_u8();
        Digest(xxh3_128(&link))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_field_changes_the_digest() {
        let log = LogIdentity { cluster: ClusterId(7), group: GroupId(1) };
        let base = log.chain(Digest(1), EntryId::new(3, 2), EntryKind::Command, b"x");
        let others = [
            LogIdentity { cluster: ClusterId(8), ..log }.chain(
                Digest(1),
                EntryId::new(3, 2),
                EntryKind::Command,
                b"x",
            ),
            LogIdentity { group: GroupId(2), ..log }.chain(
                Digest(1),
                EntryId::new(3, 2),
                EntryKind::Command,
                b"x",
            ),
            log.chain(Digest(2), EntryId::new(3, 2), EntryKind::Command, b"x"),
            log.chain(Digest(1), EntryId::new(4, 2), EntryKind::Command, b"x"),
            log.chain(Digest(1), EntryId::new(3, 3), EntryKind::Command, b"x"),
            log.chain(Digest(1), EntryId::new(3, 2), EntryKind::Empty, b"x"),
            log.chain(Digest(1), EntryId::new(3, 2), EntryKind::Command, b"y"),
        ];
        for other in others {
            assert_ne!(base, other);
        }
    }

    /// Version 1 of the chain is on disks: this value never changes.
    #[test]
    fn version_1_is_fixed() {
        let log = LogIdentity { cluster: ClusterId(7), group: GroupId(1) };
        let digest = log.chain(Digest(1), EntryId::new(3, 2), EntryKind::Command, b"x");
        assert_eq!(digest, Digest(0xeb3c_7fb8_c287_aaeb_a685_0b1a_c1eb_69ff));
    }
}
