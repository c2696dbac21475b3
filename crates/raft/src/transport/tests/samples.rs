//! One message of every kind for the golden files, and arbitrary ones for the properties.

use std::time::Duration;

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use raft_core::{
    AppendEntries, AppendEntriesReply, AppendOutcome, BlobId, ClusterId, Digest, Entry, EntryId,
    EntryKind, GroupId, Heartbeat, HeartbeatReply, Index, InstallSnapshot, InstallSnapshotReply,
    Lease, LogIdentity, Member, Membership, MembershipStep, Message, NodeId, ReadIndex,
    ReadIndexReply, RequestVote, RequestVoteReply, SnapshotMeta, Term, TimeoutNow,
};

use crate::io::Stream;
use crate::message::{
    Admin, Forward, ForwardAdmin, ForwardAdminReply, ForwardRefused, Hello, PeerMessage, Refusal,
    SnapshotMessage,
};
use crate::transport::codec::Sender;
use crate::transport::handshake::{Greeting, HandshakeFrame, Refused, RefusedReason};

pub(super) const LOG: LogIdentity = LogIdentity { cluster: ClusterId(7), group: GroupId(1) };
pub(super) const SENDER: Sender =
    Sender { group: GroupId(1), cluster: Some(ClusterId(7)), epoch: 42 };

pub(super) const fn node(member: u64) -> NodeId {
    NodeId::new(member, member as u128 * 100)
}

/// Entries after `prev`, chained as a leader's are.
pub(super) fn append_entries(
    term: u64,
    prev: EntryId,
    prev_digest: Digest,
    entries: &[(u64, EntryKind, Bytes)],
    commit: u64,
) -> Message {
    let (mut id, mut digest) = (prev, prev_digest);
    let entries = entries.iter().map(|(term, kind, payload)| {
        id = EntryId { index: id.index.next(), term: Term(*term) };
        digest = LOG.chain(digest, id, *kind, payload);
        Entry { id, kind: *kind, digest, payload: payload.clone() }
    });
    Message::AppendEntries(AppendEntries {
        term: Term(term),
        prev_log: prev,
        prev_digest,
        entries: entries.collect(),
        leader_commit: Index(commit),
    })
}

pub(super) fn greeting(from: u64) -> Greeting {
    Greeting {
        hello: Hello {
            version_min: 1,
            version_max: 1,
            cluster: Some(ClusterId(7)),
            node: node(from),
            address: format!("127.0.0.1:{}", 54_000 + from),
            epoch: 9,
            last_durable: EntryId::new(12, 3),
            epoch_seen: 8,
        },
        stream: Stream::Control,
        expects: Some(node(2)),
        nonce: [0x5A; 32],
        has_secret: true,
    }
}

pub(super) fn handshake_frames() -> Vec<(&'static str, HandshakeFrame)> {
    let refused = Refused {
        reason: RefusedReason::Removed,
        text: "n1 was removed".to_owned(),
        by_peer: true,
    };
    let reply = Greeting { stream: Stream::Bulk, expects: None, ..greeting(2) };
    vec![
        ("greeting", HandshakeFrame::Greeting(greeting(1))),
        (
            "greeting_reply",
            HandshakeFrame::GreetingReply { greeting: reply, proof: Some([0xA5; 32]) },
        ),
        ("proof", HandshakeFrame::Proof(None)),
        ("welcome", HandshakeFrame::Welcome),
        ("refused", HandshakeFrame::Refused(refused)),
    ]
}

fn snapshot_meta() -> SnapshotMeta {
    let member = Member { info: Bytes::from_static(b"info"), auto_promote: true };
    let steps = [
        MembershipStep::AddLearner { node: node(4), member },
        MembershipStep::Remove(node(3)),
        MembershipStep::SetLease(Some(Lease {
            length: Duration::from_millis(250),
            drift_ppm: 500,
        })),
    ];
    let first = Membership::from_voters([1, 2, 3].map(|n| (node(n), Bytes::new())));
    let membership = first.change(&steps).expect("the steps fit");
    SnapshotMeta { last_included: EntryId::new(100, 7), digest: Digest(77), membership }
}

/// One message of every kind and variant.
pub(super) fn messages() -> Vec<(&'static str, PeerMessage)> {
    let term = Term(5);
    let raft = |message| PeerMessage::Raft(message);
    let transfer = 5 << 40;
    let member = Member { info: Bytes::from_static(b"n4"), auto_promote: false };
    vec![
        ("goodbye", PeerMessage::Goodbye),
        (
            "request_vote",
            raft(Message::RequestVote(RequestVote {
                term,
                last_log: EntryId::new(9, 4),
                pre_vote: true,
                leader_transfer: false,
            })),
        ),
        (
            "request_vote_reply",
            raft(Message::RequestVoteReply(RequestVoteReply {
                term,
                vote_granted: true,
                pre_vote: false,
            })),
        ),
        (
            "append_entries",
            raft(append_entries(
                5,
                EntryId::new(9, 4),
                Digest(99),
                &[
                    (5, EntryKind::Empty, Bytes::new()),
                    (5, EntryKind::Command, Bytes::from_static(b"put k v")),
                    (5, EntryKind::Membership, Bytes::from_static(b"members")),
                ],
                8,
            )),
        ),
        ("append_entries_empty", raft(append_entries(5, EntryId::new(9, 4), Digest(99), &[], 8))),
        (
            "append_entries_reply_accepted",
            raft(Message::AppendEntriesReply(AppendEntriesReply {
                term,
                outcome: AppendOutcome::Accepted { match_index: Index(11) },
            })),
        ),
        (
            "append_entries_reply_rejected",
            raft(Message::AppendEntriesReply(AppendEntriesReply {
                term,
                outcome: AppendOutcome::Rejected {
                    prev_log_index: Index(9),
                    hint: EntryId::new(6, 2),
                },
            })),
        ),
        (
            "heartbeat",
            raft(Message::Heartbeat(Heartbeat { term, leader_commit: Index(8), round: 3 })),
        ),
        (
            "heartbeat_reply",
            raft(Message::HeartbeatReply(HeartbeatReply { term, round: 3, verified: Index(11) })),
        ),
        (
            "install_snapshot",
            raft(Message::InstallSnapshot(InstallSnapshot { term, snapshot: snapshot_meta() })),
        ),
        (
            "install_snapshot_reply",
            raft(Message::InstallSnapshotReply(InstallSnapshotReply {
                term,
                match_index: Index(100),
            })),
        ),
        ("timeout_now", raft(Message::TimeoutNow(TimeoutNow { term }))),
        ("read_index", raft(Message::ReadIndex(ReadIndex { term, id: 17 }))),
        (
            "read_index_reply",
            raft(Message::ReadIndexReply(ReadIndexReply { term, id: 17, index: Some(Index(8)) })),
        ),
        (
            "read_index_reply_none",
            raft(Message::ReadIndexReply(ReadIndexReply { term, id: 17, index: None })),
        ),
        (
            "forward",
            PeerMessage::Forward(Forward {
                term,
                attempt: 3,
                epoch: 12,
                payloads: vec![Bytes::from_static(b"one"), Bytes::new()],
            }),
        ),
        (
            "forward_refused",
            PeerMessage::ForwardRefused(ForwardRefused {
                term,
                attempt: 3,
                requests: vec![1, 2, 3],
                refusal: Refusal::Overloaded,
            }),
        ),
        (
            "forward_admin_membership",
            PeerMessage::ForwardAdmin(ForwardAdmin {
                request: 6,
                admin: Admin::Membership(vec![
                    MembershipStep::AddLearner { node: node(4), member: member.clone() },
                    MembershipStep::Promote(node(4)),
                    MembershipStep::Demote(node(1)),
                    MembershipStep::Remove(node(2)),
                    MembershipStep::Update { node: node(3), member },
                    MembershipStep::SetLease(None),
                ]),
            }),
        ),
        (
            "forward_admin_transfer",
            PeerMessage::ForwardAdmin(ForwardAdmin {
                request: 6,
                admin: Admin::Transfer(Some(node(2))),
            }),
        ),
        (
            "forward_admin_reply_ok",
            PeerMessage::ForwardAdminReply(ForwardAdminReply { request: 6, outcome: Ok(Index(4)) }),
        ),
        (
            "forward_admin_reply_error",
            PeerMessage::ForwardAdminReply(ForwardAdminReply {
                request: 6,
                outcome: Err("n9 is not a member".to_owned()),
            }),
        ),
        ("formation", PeerMessage::Formation(Bytes::from_static(b"formation"))),
        (
            "snapshot_offer",
            PeerMessage::Snapshot(SnapshotMessage::Offer {
                transfer,
                term,
                snapshot: snapshot_meta(),
                blobs: vec![BlobId { digest: Digest(3), len: 1000 }],
            }),
        ),
        (
            "snapshot_have",
            PeerMessage::Snapshot(SnapshotMessage::Have { transfer, bytes: vec![512, 0] }),
        ),
        (
            "snapshot_chunk",
            PeerMessage::Snapshot(SnapshotMessage::Chunk {
                transfer,
                blob: 1,
                offset: 512,
                bytes: Bytes::from_static(b"chunk"),
            }),
        ),
        (
            "snapshot_ack",
            PeerMessage::Snapshot(SnapshotMessage::Ack { transfer, blob: 1, offset: 517 }),
        ),
        (
            "snapshot_abort",
            PeerMessage::Snapshot(SnapshotMessage::Abort {
                transfer,
                reason: "disk full".to_owned(),
            }),
        ),
    ]
}

fn any_bytes() -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..200).prop_map(Bytes::from)
}

fn any_id() -> impl Strategy<Value = EntryId> {
    (0..u64::MAX / 2, any::<u64>()).prop_map(|(index, term)| EntryId::new(index, term))
}

fn any_append_entries() -> impl Strategy<Value = PeerMessage> {
    let kind =
        prop_oneof![Just(EntryKind::Empty), Just(EntryKind::Command), Just(EntryKind::Membership)];
    let entries = vec((any::<u64>(), kind, any_bytes()), 0..20);
    (any::<u64>(), any_id(), any::<u128>(), entries, any::<u64>()).prop_map(
        |(term, prev, digest, entries, commit)| {
            PeerMessage::Raft(append_entries(term, prev, Digest(digest), &entries, commit))
        },
    )
}

/// Any message: those with lists and payloads at random, the others from [`messages`].
pub(super) fn any_message() -> impl Strategy<Value = PeerMessage> {
    let samples: Vec<_> = messages().into_iter().map(|(_, message)| message).collect();
    prop_oneof![
        3 => proptest::sample::select(samples),
        4 => any_append_entries(),
        1 => (any::<u64>(), vec(any_bytes(), 0..20)).prop_map(|(term, payloads)| {
            PeerMessage::Forward(Forward { term: Term(term), attempt: term, epoch: !term, payloads })
        }),
        1 => (any::<u64>(), vec(any::<u64>(), 0..50)).prop_map(|(term, requests)| {
            let refusal = Refusal::NotLeader;
            PeerMessage::ForwardRefused(ForwardRefused {
                term: Term(term),
                attempt: !term,
                requests,
                refusal,
            })
        }),
        1 => (any::<u64>(), any::<u32>(), any::<u64>(), any_bytes()).prop_map(
            |(transfer, blob, offset, bytes)| {
                PeerMessage::Snapshot(SnapshotMessage::Chunk { transfer, blob, offset, bytes })
            }
        ),
        1 => (any::<u64>(), vec(any::<u64>(), 0..50)).prop_map(|(transfer, bytes)| {
            PeerMessage::Snapshot(SnapshotMessage::Have { transfer, bytes })
        }),
        1 => (any::<u64>(), ".{0,40}").prop_map(|(request, text)| {
            PeerMessage::ForwardAdminReply(ForwardAdminReply { request, outcome: Err(text) })
        }),
        1 => any_bytes().prop_map(PeerMessage::Formation),
    ]
}
