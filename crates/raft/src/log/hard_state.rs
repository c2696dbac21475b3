//! Term, vote and epochs: four slots in the file `promises` (decision 7).
//!
//! A write goes to two slots, is synced, goes to the other two, is synced; only then is it a promise. What
//! is read is the highest version on which two slots agree: a torn write leaves the other pair, and a
//! rotted slot leaves three. When no two agree, the node may have forgotten a promise and is *amnesic*.

use std::collections::BTreeMap;

use bytes::{Buf, BufMut};
use raft_core::{EntryId, HardState, Incarnation, Index, MemberId, NodeId, Term};

use super::segment::FORMAT_VERSION;

/// Bytes of a slot: a page of its own.
pub(super) const SLOT_BYTES: usize = 4096;
/// Slots of the file.
pub(super) const SLOTS: usize = 4;
/// Peers whose epochs fit; those with the lowest epochs are dropped first.
const PEERS_MAX: usize = 100;
const MAGIC: [u8; 8] = *b"RRAFTHST";

/// Everything a slot holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Promises {
    /// Counts the writes; higher is newer.
    pub(super) version: u64,
    pub(super) hard_state: HardState,
    /// Decision 10. Monotonic; advances at every start, segment roll and hard-state write.
    pub(super) durable_epoch: u64,
    /// The last sync epoch of the log known to be durable when this was written: a witness for recovery.
    pub(super) sync_epoch: u64,
    /// The last durable entry when this was written; for people.
    pub(super) last: EntryId,
    /// Nothing was written after this.
    pub(super) clean: bool,
    /// The highest durable epoch seen of every peer.
    pub(super) peer_epochs: BTreeMap<NodeId, u64>,
}

impl Promises {
    /// One slot's bytes.
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(SLOT_BYTES);
        out.put_slice(&MAGIC);
        out.put_u32_le(FORMAT_VERSION);
        out.put_u32_le(0);
        out.put_u64_le(self.version);
        out.put_u64_le(self.hard_state.current_term.0);
        let vote = self.hard_state.voted_for;
        out.put_u8(u8::from(vote.is_some()));
        put_node(&mut out, vote.unwrap_or_default());
        out.put_u64_le(self.durable_epoch);
        out.put_u64_le(self.sync_epoch);
        out.put_u64_le(self.last.index.0);
        out.put_u64_le(self.last.term.0);
        out.put_u8(u8::from(self.clean));
        let mut peers: Vec<_> = self.peer_epochs.iter().collect();
        peers.sort_by_key(|(node, epoch)| (u64::MAX - **epoch, **node));
        peers.truncate(PEERS_MAX);
        out.put_u16_le(u16::try_from(peers.len()).unwrap_or(0));
        for (node, epoch) in peers {
            put_node(&mut out, *node);
            out.put_u64_le(*epoch);
        }
        out.resize(SLOT_BYTES - 4, 0);
        out.put_u32_le(crc32c::crc32c(&out));
        out
    }

    /// Decodes a slot. `Err` holds the version of a newer format, or nothing when it is damaged.
    pub(super) fn decode(slot: &[u8]) -> Result<Self, Option<u32>> {
        let Some(slot) = slot.get(..SLOT_BYTES) else { return Err(None) };
        let checksum = (&slot[SLOT_BYTES - 4..]).get_u32_le();
        if slot[..8] != MAGIC || checksum != crc32c::crc32c(&slot[..SLOT_BYTES - 4]) {
            return Err(None);
        }
        let mut input = &slot[8..];
        let format = input.get_u32_le();
        if format != FORMAT_VERSION {
            return Err(Some(format));
        }
        input.advance(4);
        let version = input.get_u64_le();
        let current_term = Term(input.get_u64_le());
        let voted = input.get_u8() == 1;
        let vote = get_node(&mut input);
        let durable_epoch = input.get_u64_le();
        let sync_epoch = input.get_u64_le();
        let last = EntryId { index: Index(input.get_u64_le()), term: Term(input.get_u64_le()) };
        let clean = input.get_u8() == 1;
        let peers = usize::from(input.get_u16_le());
        if peers > PEERS_MAX {
            return Err(None);
        }
        let peer_epochs = (0..peers).map(|_| (get_node(&mut input), input.get_u64_le())).collect();
        let hard_state = HardState { current_term, voted_for: voted.then_some(vote) };
        Ok(Self { version, hard_state, durable_epoch, sync_epoch, last, clean, peer_epochs })
    }
}

fn put_node(out: &mut Vec<u8>, node: NodeId) {
    out.put_u64_le(node.member.0);
    out.put_u128_le(node.incarnation.0);
}

fn get_node(input: &mut &[u8]) -> NodeId {
    let member = MemberId(input.get_u64_le());
    NodeId { member, incarnation: Incarnation(input.get_u128_le()) }
}

/// What the four slots say together.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum SlotsFound {
    /// At least two slots agree on this, and no two on anything newer.
    Agree(Promises),
    /// No two slots agree.
    Disagree,
    /// A slot is of a newer format.
    Newer(u32),
}

/// Reads all slots from the file's bytes.
pub(super) fn choose(bytes: &[u8]) -> SlotsFound {
    let mut found: Vec<Promises> = Vec::new();
    for slot in bytes.chunks(SLOT_BYTES).take(SLOTS) {
        match Promises::decode(slot) {
            Ok(promises) => found.push(promises),
            Err(Some(version)) => return SlotsFound::Newer(version),
            Err(None) => {}
        }
    }
    found.sort_by_key(|promises| promises.version);
    let agreed = found.windows(2).rev().find(|pair| pair[0] == pair[1]).map(|pair| &pair[0]);
    agreed.map_or(SlotsFound::Disagree, |promises| SlotsFound::Agree(promises.clone()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn promises(version: u64) -> Promises {
        Promises {
            version,
            hard_state: HardState {
                current_term: Term(version * 2),
                voted_for: version.is_multiple_of(2).then(|| NodeId::new(version, 9)),
            },
            durable_epoch: version + 5,
            sync_epoch: version + 6,
            last: EntryId::new(version, 1),
            clean: version.is_multiple_of(3),
            peer_epochs: BTreeMap::from([(NodeId::new(2, 3), version)]),
        }
    }

    fn file(slots: [Option<u64>; SLOTS]) -> Vec<u8> {
        slots
            .iter()
            .flat_map(|slot| slot.map_or(vec![1; SLOT_BYTES], |v| promises(v).encode()))
            .collect()
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn a_slot_decodes_to_what_was_encoded(version: u32, position in 0..SLOT_BYTES, bit in 0u8..8) {
            let expected = promises(u64::from(version));
            let mut slot = expected.encode();
            prop_assert_eq!(Promises::decode(&slot), Ok(expected));
            slot[position] ^= 1 << bit;
            prop_assert_eq!(Promises::decode(&slot), Err(None));
        }
    }

    /// Every step of a write from version 4 to 5, each with any one slot torn or rotted.
    #[test]
    fn the_highest_version_of_which_two_agree_is_read() {
        let cases = [
            ([Some(4), Some(4), Some(4), Some(4)], Some(4)),
            ([None, Some(4), Some(4), Some(4)], Some(4)),
            ([Some(5), None, Some(4), Some(4)], Some(4)),
            ([None, None, Some(4), Some(4)], Some(4)),
            ([Some(5), Some(5), Some(4), Some(4)], Some(5)),
            ([Some(5), Some(5), None, Some(4)], Some(5)),
            ([Some(5), Some(5), Some(5), None], Some(5)),
            ([Some(5), Some(5), None, None], Some(5)),
            ([Some(5), None, None, Some(4)], None),
            ([Some(5), None, None, None], None),
            ([None, None, None, None], None),
        ];
        for (slots, expected) in cases {
            let expected =
                expected.map_or(SlotsFound::Disagree, |v| SlotsFound::Agree(promises(v)));
            assert_eq!(choose(&file(slots)), expected, "{slots:?}");
        }
    }

    #[test]
    fn more_peers_than_fit_keep_the_highest_epochs() {
        let mut many = promises(1);
        many.peer_epochs = (1..=150).map(|n| (NodeId::new(n, 1), n)).collect();
        let kept = Promises::decode(&many.encode()).unwrap().peer_epochs;
        assert_eq!(kept.len(), PEERS_MAX);
        assert!(kept.values().all(|epoch| *epoch > 50));
    }
}
