//! What watchers on each member would hear: every revision in order, without a gap, and on all members the same.

use std::collections::BTreeMap;

use raft_core::NodeId;
use raft_kv::Reader;
use raft_kv::proto::mvccpb::Event;

/// Events that are read at once.
const EVENTS_MAX: usize = 1000;

/// What happened at each revision, as whoever heard of it first.
#[derive(Debug, Default)]
pub(super) struct Story {
    revisions: BTreeMap<i64, u64>,
    /// Where each member's watchers go on.
    next: BTreeMap<NodeId, i64>,
}

fn digest(digest: u64, bytes: &[u8]) -> u64 {
    let fold = |hash: u64, byte: &u8| (hash ^ u64::from(*byte)).wrapping_mul(0x0000_0100_0000_01B3);
    bytes.iter().fold(digest.rotate_left(5) ^ 0xCBF2_9CE4_8422_2325, fold)
}

fn event_digest(before: u64, event: &Event) -> u64 {
    let Some(pair) = &event.kv else { return before };
    let numbers = [pair.mod_revision, pair.create_revision, pair.version, pair.lease];
    let numbers = numbers.map(i64::to_le_bytes).concat();
    let all = digest(digest(before, &event.r#type.to_le_bytes()), &pair.key);
    digest(digest(all, &pair.value), &numbers)
}

impl Story {
    /// A member has applied a batch: its watchers hear what is new.
    pub(super) fn hear(&mut self, node: NodeId, reader: &Reader) {
        let next = self.next.entry(node).or_insert(2);
        while *next <= reader.revision() {
            // Compacted before anybody could hear of it: a snapshot, or a batch with the compaction in it. What is left
            // of the compacted revision itself may not be all of it.
            let compacted = *next <= reader.compact_revision();
            let heard = reader.events(*next, EVENTS_MAX, usize::MAX);
            let Some(heard) = heard.ok().filter(|_| !compacted) else {
                assert!(compacted, "{node} cannot tell of {next}, which is not compacted");
                *next = reader.compact_revision() + 1;
                continue;
            };
            let mut stretch: BTreeMap<i64, u64> = BTreeMap::new();
            for event in &heard.events {
                let revision = event.kv.as_ref().map_or(0, |pair| pair.mod_revision);
                let last = stretch.last_key_value().map_or(0, |(last, _)| *last);
                assert!(revision >= last, "{node} tells {revision} after {last}");
                let whole = stretch.entry(revision).or_default();
                *whole = event_digest(*whole, event);
            }
            for (expected, (revision, digest)) in (*next..).zip(&stretch) {
                assert!(*revision == expected, "{node} tells {revision} after {}", expected - 1);
                let first = *self.revisions.entry(*revision).or_insert(*digest);
                assert!(first == *digest, "{node} tells another story of revision {revision}");
            }
            let told = i64::try_from(stretch.len()).unwrap_or(i64::MAX);
            assert!(heard.next == *next + told, "{node} tells {told} of {next} to {}", heard.next);
            assert!(told > 0, "{node} has nothing to tell of {next}");
            *next = heard.next;
        }
    }
}
