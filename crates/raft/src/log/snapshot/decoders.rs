//! Manifests and blobs, against whatever a disk may hold instead.

use bytes::Bytes;
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use raft_core::{BlobId, Digest, EntryId, Membership, NodeId, SnapshotMeta};

use super::blob::{self, BLOCK_BYTES, read_prefix};
use super::store::{decode_manifest, encode_manifest};
use crate::disk::StdDisk;
use crate::log::identity::{MANIFEST_MAGIC, seal_twice};

fn manifest() -> impl Strategy<Value = (SnapshotMeta, Vec<BlobId>)> {
    let voters = btree_map(any::<u64>(), vec(any::<u8>(), 0..40), 0..5);
    let blobs = vec((any::<u128>(), any::<u64>()), 0..200);
    (any::<[u64; 2]>(), any::<u128>(), voters, blobs).prop_map(
        |([index, term], digest, voters, blobs)| {
            let voters = voters.into_iter().map(|(n, info)| (NodeId::new(n, 1), Bytes::from(info)));
            let meta = SnapshotMeta {
                last_included: EntryId::new(index, term),
                digest: Digest(digest),
                membership: Membership::from_voters(voters),
            };
            let blob = |(digest, len)| BlobId { digest: Digest(digest), len };
            (meta, blobs.into_iter().map(blob).collect())
        },
    )
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

    /// And one flipped bit costs nothing: there are two copies.
    #[test]
    fn a_manifest_is_decoded_as_it_was_encoded(
        (meta, blobs) in manifest(),
        at: proptest::sample::Index,
        second: proptest::sample::Index,
        bit in 0u8..8,
    ) {
        let mut file = encode_manifest(&meta, &blobs);
        prop_assert_eq!(decode_manifest(&file), Some((meta.clone(), blobs.clone())));
        let at = at.index(file.len());
        file[at] ^= 1 << bit;
        prop_assert_eq!(decode_manifest(&file), Some((meta.clone(), blobs.clone())));
        // A second one may hit the other copy; what then decodes is still what was written.
        let second = second.index(file.len());
        file[second] ^= 1 << bit;
        if let Some(found) = decode_manifest(&file) {
            prop_assert_eq!(found, (meta, blobs));
        }
    }

    /// What only a bug can have sealed.
    #[test]
    fn a_manifest_may_say_anything(
        text in vec(prop_oneof![Just(0u8), Just(1), Just(255), any::<u8>()], 0..300),
        membership_bytes in prop_oneof![Just(8u32), any::<u32>()],
    ) {
        decode_manifest(&text);
        let mut text = text;
        if text.len() > 50 {
            text[32..36].copy_from_slice(&membership_bytes.to_le_bytes());
            // An empty configuration.
            text[36..44].copy_from_slice(&[1, 0, 0, 0, 0, 0, 0, 0]);
        }
        if let Some((meta, blobs)) = decode_manifest(&seal_twice(MANIFEST_MAGIC, &text)) {
            prop_assert!(blobs.len() * 24 <= text.len());
            let again = encode_manifest(&meta, &blobs);
            prop_assert_eq!(decode_manifest(&again), Some((meta, blobs)));
        }
    }

    /// A blob's file is read up to the block in which a bit flipped, and never beyond, and never wrong.
    #[test]
    fn no_flipped_bit_in_a_blob_is_read(
        blocks in 0usize..3,
        rest in 0usize..2000,
        at: proptest::sample::Index,
        bit in 0u8..8,
    ) {
        let len = blocks * BLOCK_BYTES + rest;
        let content: Vec<u8> = (0u32..).take(len).map(|n| (n % 251) as u8).collect();
        let id = BlobId::of(&content);
        let folder = tempfile::tempdir().expect("a folder");
        let path = folder.path().join("blob");
        let file = blob::create(&StdDisk, &path, id).expect("a file can be made");
        blob::write(&file, id, 0, &content).expect("it can be written");
        prop_assert_eq!(&read_prefix(&StdDisk, &path, id).expect("it can be read"), &content);
        let mut bytes = std::fs::read(&path).expect("it can be read");
        let at = at.index(bytes.len());
        bytes[at] ^= 1 << bit;
        std::fs::write(&path, bytes).expect("it can be written");
        let found = read_prefix(&StdDisk, &path, id).expect("it can be read");
        prop_assert!(found.len() < content.len() || content.is_empty());
        prop_assert_eq!(&content[..found.len()], &found[..]);
    }
}
