//! What the log keeps in files, against whatever a disk may hold instead: nothing panics, nothing reserves memory for
//! what is not there, what is encoded is decoded, and no flipped bit passes.

use bytes::Bytes;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use raft_core::{
    ClusterId, Digest, EntryId, GroupId, HardState, Incarnation, MemberId, Membership, NodeId, Term,
};

use super::hard_state::{Promises, SLOT_BYTES, SLOTS, SlotsFound, choose};
use super::identity::{
    CLUSTER_MAGIC, FORMATION_COPY_BYTES, FORMATION_MAGIC, IDENTITY_MAGIC, SealProblem,
    decode_cluster, encode_cluster, formation_offset, newest_formation, seal, seal_twice, unseal,
    unseal_either,
};
use super::record::{SECTOR_BYTES, to_usize};
use super::segment::{HeaderProblem, Mark, SegmentHeader};
use super::{Formed, Identity};

fn node() -> impl Strategy<Value = NodeId> {
    (any::<u64>(), any::<u128>()).prop_map(|(member, incarnation)| NodeId::new(member, incarnation))
}

fn identity() -> impl Strategy<Value = Identity> {
    node().prop_map(|node| Identity { member: node.member, incarnation: node.incarnation })
}

fn formed() -> impl Strategy<Value = Formed> {
    (any::<u64>(), any::<u32>(), btree_map(node(), vec(any::<u8>(), 0..40), 0..5)).prop_map(
        |(cluster, group, voters)| {
            let voters = voters.into_iter().map(|(node, info)| (node, Bytes::from(info)));
            let members = Membership::from_voters(voters);
            Formed { cluster: ClusterId(cluster), group: GroupId(group), members }
        },
    )
}

fn entry_id() -> impl Strategy<Value = EntryId> {
    (any::<u64>(), any::<u64>()).prop_map(|(index, term)| EntryId::new(index, term))
}

fn mark() -> impl Strategy<Value = Mark> {
    (entry_id(), any::<u128>()).prop_map(|(id, digest)| Mark { id, digest: Digest(digest) })
}

fn header() -> impl Strategy<Value = SegmentHeader> {
    (formed(), identity(), any::<[u32; 2]>(), any::<[u64; 3]>(), mark(), mark()).prop_map(
        |(
            formed,
            node,
            [segment, batch_alignment],
            [file_bytes, durable, sync],
            previous,
            compacted,
        )| {
            SegmentHeader {
                segment,
                group: formed.group,
                cluster: formed.cluster,
                node,
                file_bytes,
                batch_alignment,
                durable_epoch: durable,
                sync_epoch: sync,
                previous,
                compacted,
            }
        },
    )
}

fn promises() -> impl Strategy<Value = Promises> {
    let hard_state = (any::<u64>(), proptest::option::of(node()))
        .prop_map(|(term, voted_for)| HardState { current_term: Term(term), voted_for });
    // As many peers as fit, and no more: of more the lowest epochs are dropped.
    let peers = btree_map(node(), any::<u64>(), 0..100);
    (any::<[u64; 3]>(), hard_state, entry_id(), any::<bool>(), peers).prop_map(
        |([version, durable_epoch, sync_epoch], hard_state, last, clean, peer_epochs)| Promises {
            version,
            hard_state,
            durable_epoch,
            sync_epoch,
            last,
            clean,
            peer_epochs,
        },
    )
}

/// Noise of this many bytes that begins as the structure does and whose checksum fits: what only a bug can have
/// written, or somebody who means harm.
fn with_checksum(mut bytes: Vec<u8>, begin: &[u8], len: usize) -> Vec<u8> {
    bytes.resize(len, 0);
    bytes[..begin.len()].copy_from_slice(begin);
    let checksum = crc32c::crc32c(&bytes[..len - 4]);
    bytes[len - 4..].copy_from_slice(&checksum.to_le_bytes());
    bytes
}

fn noise() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![Just(0u8), Just(1), Just(255), any::<u8>()], 0..600)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn identity_and_cluster_are_decoded_as_they_were_encoded(identity in identity(), formed in formed()) {
        let text = Bytes::from(identity.encode());
        prop_assert_eq!(Identity::decode(&text), Some(identity));
        let text = Bytes::from(encode_cluster(identity, &formed));
        prop_assert_eq!(decode_cluster(&text), Some((identity, formed)));
        for len in 0..text.len() {
            prop_assert_eq!(decode_cluster(&text.slice(..len)), None);
        }
    }

    #[test]
    fn any_text_may_stand_in_those_files(text in noise()) {
        let text = Bytes::from(text);
        if let Some(identity) = Identity::decode(&text) {
            prop_assert_eq!(&identity.encode()[..], &text[..24]);
        }
        if let Some((identity, formed)) = decode_cluster(&text) {
            let again = Bytes::from(encode_cluster(identity, &formed));
            prop_assert!(again.len() <= text.len());
            prop_assert_eq!(decode_cluster(&again), Some((identity, formed)));
        }
    }

    /// One copy: whatever bit flips, it is refused.
    #[test]
    fn no_flipped_bit_passes_a_seal(text in noise(), version: u64, at: proptest::sample::Index, bit in 0u8..8) {
        let sealed = seal(CLUSTER_MAGIC, version, &text);
        prop_assert_eq!(unseal(CLUSTER_MAGIC, &sealed), Ok((version, Bytes::from(text))));
        prop_assert_eq!(unseal(IDENTITY_MAGIC, &sealed), Err(SealProblem::Damaged));
        let mut flipped = sealed;
        let at = at.index(flipped.len());
        flipped[at] ^= 1 << bit;
        prop_assert_eq!(unseal(CLUSTER_MAGIC, &flipped), Err(SealProblem::Damaged));
    }

    /// Two copies: whatever bit flips in one, the other one stands for both.
    #[test]
    fn a_flipped_bit_in_one_of_two_copies_costs_nothing(
        text in noise(),
        at: proptest::sample::Index,
        bit in 0u8..8,
    ) {
        let mut file = seal_twice(IDENTITY_MAGIC, &text);
        let at = at.index(file.len());
        file[at] ^= 1 << bit;
        prop_assert_eq!(unseal_either(IDENTITY_MAGIC, &file), Ok(Bytes::from(text)));
    }

    #[test]
    fn noise_is_no_sealed_text(noise in noise(), len: u32) {
        unseal_either(IDENTITY_MAGIC, &noise).ok();
        // Right in all but the length and what follows.
        let mut bytes = seal(IDENTITY_MAGIC, 1, &noise);
        bytes[12..16].copy_from_slice(&len.to_le_bytes());
        let whole = to_usize(u64::from(len)) == noise.len();
        prop_assert_eq!(unseal(IDENTITY_MAGIC, &bytes).is_ok(), whole);
    }

    /// The newer of two intact copies; the other one when a bit of that has flipped.
    #[test]
    fn the_newest_intact_state_of_the_formation_is_found(
        first in noise(),
        second in noise(),
        version in 1..u64::MAX,
        at: proptest::sample::Index,
        bit in 0u8..8,
    ) {
        let mut file = vec![0; 2 * FORMATION_COPY_BYTES];
        for (version, text) in [(version, &first), (version + 1, &second)] {
            let at = to_usize(formation_offset(version));
            let copy = seal(FORMATION_MAGIC, version, text);
            file[at..at + copy.len()].copy_from_slice(&copy);
        }
        let second = Bytes::from(second);
        prop_assert_eq!(newest_formation(&file), Some((version + 1, second.clone())));
        let copy_bytes = second.len() + 28;
        file[to_usize(formation_offset(version + 1)) + at.index(copy_bytes)] ^= 1 << bit;
        prop_assert_eq!(newest_formation(&file), Some((version, Bytes::from(first))));
    }

    #[test]
    fn a_segment_header_is_decoded_as_it_was_encoded(header in header(), at in 0..SECTOR_BYTES, bit in 0u8..8) {
        let bytes = header.encode();
        prop_assert_eq!(SegmentHeader::decode(&bytes), Ok(header));
        let mut flipped = bytes;
        flipped[at] ^= 1 << bit;
        prop_assert_eq!(SegmentHeader::decode(&flipped), Err(HeaderProblem::Damaged));
    }

    #[test]
    fn a_segment_header_may_say_anything(noise in noise(), version in prop_oneof![Just(1u32), any::<u32>()]) {
        prop_assert_eq!(SegmentHeader::decode(&noise), Err(HeaderProblem::Damaged));
        let begin = [&b"RRAFTSEG"[..], &version.to_le_bytes()].concat();
        match SegmentHeader::decode(&with_checksum(noise, &begin, SECTOR_BYTES)) {
            Ok(header) => prop_assert_eq!(SegmentHeader::decode(&header.encode()), Ok(header)),
            Err(HeaderProblem::Newer(found)) => prop_assert_eq!(found, version),
            Err(HeaderProblem::Damaged) => prop_assert_eq!(version, 1),
        }
    }

    #[test]
    fn slots_are_decoded_as_they_were_encoded(
        promises in promises(),
        at in 0..SLOT_BYTES,
        bit in 0u8..8,
    ) {
        let slot = promises.encode();
        prop_assert_eq!(slot.len(), SLOT_BYTES);
        prop_assert_eq!(Promises::decode(&slot), Ok(promises.clone()));
        let mut flipped = slot.clone();
        flipped[at] ^= 1 << bit;
        prop_assert_eq!(Promises::decode(&flipped), Err(None));
        // Two of four are enough, wherever they stand.
        let file = [flipped.clone(), slot.clone(), flipped, slot].concat();
        prop_assert_eq!(choose(&file), SlotsFound::Agree(promises));
    }

    #[test]
    fn slots_may_say_anything(noise in vec(noise(), SLOTS), version in prop_oneof![Just(1u32), any::<u32>()]) {
        let begin = [&b"RRAFTHST"[..], &version.to_le_bytes()].concat();
        let mut file = Vec::new();
        for noise in noise {
            prop_assert_eq!(Promises::decode(&noise), Err(None));
            let slot = with_checksum(noise, &begin, SLOT_BYTES);
            if let Ok(promises) = Promises::decode(&slot) {
                prop_assert_eq!(Promises::decode(&promises.encode()), Ok(promises));
            }
            file.extend(slot);
        }
        choose(&file);
        choose(&file[..file.len() - 1]);
    }
}

#[test]
fn ids_are_what_their_texts_say() {
    let identity = Identity { member: MemberId(1), incarnation: Incarnation(2) };
    assert_eq!(identity.node(), NodeId::new(1, 2));
}
