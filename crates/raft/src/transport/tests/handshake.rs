use std::collections::{BTreeMap, BTreeSet};

use bytes::BytesMut;
use raft_core::{ClusterId, GroupId, Incarnation, MemberId, NodeId};

use super::samples::node;
use crate::io::Stream;
use crate::message::Hello;
use crate::transport::codec::{Sender, encode};
use crate::transport::first_byte_is_peer;
use crate::transport::handshake::{
    Established, Facts, Greeting, Initiator, MAGIC, PREAMBLE_BYTES, Refused, RefusedReason,
    Responder, Secret,
};

/// One end of a handshake and everything that it knows.
struct End {
    facts: Facts,
    secret: Option<Secret>,
    expects: Option<NodeId>,
    group: GroupId,
}

fn end(member: u64) -> End {
    let facts = Facts {
        node: node(member),
        cluster: Some(ClusterId(7)),
        members: [1, 2].map(node).into(),
        removed: BTreeSet::new(),
        epochs_seen: BTreeMap::new(),
    };
    End { facts, secret: None, expects: None, group: GroupId::FIRST }
}

fn secret(text: &str) -> Option<Secret> {
    Some(Secret::new(text.as_bytes()).expect("long enough"))
}

impl End {
    fn sender(&self) -> Sender {
        Sender { group: self.group, cluster: self.facts.cluster, epoch: 1 }
    }

    fn hello(&self, peer: Option<NodeId>) -> Hello {
        Hello {
            version_min: 1,
            version_max: 1,
            cluster: self.facts.cluster,
            node: self.facts.node,
            address: "127.0.0.1:1".to_owned(),
            epoch: 1,
            last_durable: raft_core::EntryId::ZERO,
            epoch_seen: peer.map_or(0, |peer| self.facts.epoch_seen(peer)),
        }
    }

    fn greeting(&self) -> Greeting {
        Greeting {
            hello: self.hello(self.expects),
            stream: Stream::Bulk,
            expects: self.expects,
            nonce: [1; 32],
            has_secret: false,
        }
    }
}

type Outcome = Result<Option<Established>, Refused>;

/// Both ends talk until neither has anything to say; every byte arrives alone, so that no split matters.
fn shake(initiator: &End, responder: &End) -> (Outcome, Outcome) {
    let mut to_responder = BytesMut::new();
    let mut to_initiator = BytesMut::new();
    let mut dialled = Initiator::new(
        initiator.secret.clone(),
        initiator.sender(),
        initiator.greeting(),
        &mut to_responder,
    )
    .expect("a short hello");
    let mut accepted = Responder::new(responder.secret.clone(), responder.sender(), [2; 32]);
    let (mut ours, mut theirs) = (Ok(None), Ok(None));
    let (mut input_i, mut input_r) = (BytesMut::new(), BytesMut::new());
    while !to_responder.is_empty() || !to_initiator.is_empty() {
        for byte in std::mem::take(&mut to_responder) {
            if matches!(theirs, Ok(None)) {
                input_r.extend_from_slice(&[byte]);
                let hello = |peer| responder.hello(Some(peer));
                theirs = accepted.receive(&responder.facts, hello, &mut input_r, &mut to_initiator);
            }
        }
        for byte in std::mem::take(&mut to_initiator) {
            if matches!(ours, Ok(None)) {
                input_i.extend_from_slice(&[byte]);
                ours = dialled.receive(&initiator.facts, &mut input_i, &mut to_responder);
            }
        }
    }
    (ours, theirs)
}

/// Both ends know the reason; `by_responder` tells who found it.
fn assert_refused(initiator: &End, responder: &End, reason: RefusedReason, by_responder: bool) {
    let (ours, theirs) = shake(initiator, responder);
    let ours = ours.expect_err("the initiator is refused or refuses");
    let theirs = theirs.expect_err("the responder is refused or refuses");
    assert_eq!((ours.reason, ours.by_peer), (reason, by_responder), "{ours}");
    assert_eq!((theirs.reason, theirs.by_peer), (reason, !by_responder), "{theirs}");
}

#[test]
fn two_members_learn_who_the_other_is() {
    let (mut one, mut two) = (end(1), end(2));
    one.expects = Some(node(2));
    one.facts.epochs_seen.insert(node(2), 20);
    two.facts.epochs_seen.insert(node(1), 10);
    let (ours, theirs) = shake(&one, &two);
    let ours = ours.expect("no refusal").expect("the end");
    let theirs = theirs.expect("no refusal").expect("the end");
    assert_eq!((ours.hello.node, theirs.hello.node), (node(2), node(1)));
    assert_eq!((ours.hello.epoch_seen, theirs.hello.epoch_seen), (10, 20));
    assert_eq!((ours.stream, theirs.stream), (Stream::Bulk, Stream::Bulk));
    assert_eq!((ours.version, theirs.version), (1, 1));
}

#[test]
fn before_formation_everyone_may_ask() {
    let (mut empty, formed) = (end(1), end(2));
    empty.facts.cluster = None;
    // A wiped member has a new data directory.
    empty.facts.node.incarnation = Incarnation(5);
    let (ours, theirs) = shake(&empty, &formed);
    assert!(matches!((ours, theirs), (Ok(Some(_)), Ok(Some(_)))));
}

#[test]
fn the_secret_is_proven_both_ways() {
    let (mut one, mut two) = (end(1), end(2));
    one.secret = secret("a secret of the cluster");
    assert_refused(&one, &two, RefusedReason::Secret, true);
    two.secret = secret("another secret than that");
    assert_refused(&one, &two, RefusedReason::Secret, false);
    two.secret = one.secret.clone();
    let (ours, theirs) = shake(&one, &two);
    assert!(matches!((ours, theirs), (Ok(Some(_)), Ok(Some(_)))));
    assert_eq!(Secret::new(b"short"), None);
    assert_eq!(format!("{:?}", two.secret), "Some(Secret(..))");
}

#[test]
fn every_reason_to_refuse() {
    let (one, mut two) = (end(1), end(2));
    two.facts.cluster = Some(ClusterId(8));
    assert_refused(&one, &two, RefusedReason::OtherCluster, false);

    let mut two = end(2);
    two.group = GroupId(2);
    assert_refused(&one, &two, RefusedReason::OtherCluster, true);

    // The one that was removed learns it.
    let mut two = end(2);
    two.facts.removed.insert(node(1));
    assert_refused(&one, &two, RefusedReason::Removed, true);

    let (mut one, two) = (end(1), end(2));
    one.expects = Some(NodeId { member: MemberId(2), incarnation: Incarnation(1) });
    assert_refused(&one, &two, RefusedReason::OtherNode, false);

    let (one, mut two) = (end(1), end(2));
    two.facts.members.remove(&node(1));
    two.facts.members.insert(NodeId::new(1, 1));
    assert_refused(&one, &two, RefusedReason::OtherIncarnation, true);

    assert_refused(&end(1), &end(1), RefusedReason::Myself, true);
}

#[test]
fn a_responder_that_is_not_the_expected_one_says_so_itself() {
    let (one, two) = (end(1), end(2));
    let (mut input, mut out) = (BytesMut::new(), BytesMut::new());
    let mut greeting = one.greeting();
    greeting.expects = Some(node(3));
    Initiator::new(None, one.sender(), greeting, &mut input).expect("a short hello");
    crate::transport::codec::encode_handshake(
        &mut input,
        one.sender(),
        &crate::transport::handshake::HandshakeFrame::Proof(None),
    )
    .expect("a short frame");
    let mut accepted = Responder::new(None, two.sender(), [2; 32]);
    let hello = |peer| two.hello(Some(peer));
    let refused = accepted
        .receive(&two.facts, hello, &mut input, &mut out)
        .expect_err("the initiator expects another");
    assert_eq!(refused.reason, RefusedReason::OtherNode);
}

#[test]
fn versions_that_do_not_meet() {
    let two = end(2);
    let (mut input, mut out) = (BytesMut::new(), BytesMut::new());
    input.extend_from_slice(&MAGIC);
    input.extend_from_slice(&[2, 0, 9, 0]);
    let mut accepted = Responder::new(None, two.sender(), [2; 32]);
    let hello = |peer| two.hello(Some(peer));
    let refused =
        accepted.receive(&two.facts, hello, &mut input, &mut out).expect_err("only newer versions");
    assert_eq!(refused.reason, RefusedReason::Version);
    // The other end can read which versions there are before anything else.
    assert_eq!(out[..PREAMBLE_BYTES], [MAGIC[0], b'R', b'R', b'P', 1, 0, 1, 0]);
}

/// The proofs are over the greetings: one from another conversation is worth nothing.
#[test]
fn a_replayed_conversation_is_refused() {
    let (mut one, mut two) = (end(1), end(2));
    one.secret = secret("a secret of the cluster");
    two.secret = one.secret.clone();
    let mut said = BytesMut::new();
    let mut initiator = Initiator::new(one.secret.clone(), one.sender(), one.greeting(), &mut said)
        .expect("a short hello");
    let mut reply = BytesMut::new();
    let hello = |peer| two.hello(Some(peer));
    let mut input = said.clone();
    let mut accepted = Responder::new(two.secret.clone(), two.sender(), [2; 32]);
    accepted.receive(&two.facts, hello, &mut input, &mut reply).expect("a good greeting");
    initiator.receive(&one.facts, &mut reply, &mut said).expect("a good reply");
    // All that the initiator ever said, to the same node with another nonce.
    let mut accepted = Responder::new(two.secret.clone(), two.sender(), [3; 32]);
    let refused = accepted
        .receive(&two.facts, hello, &mut said, &mut reply)
        .expect_err("the nonce is another");
    assert_eq!(refused.reason, RefusedReason::Secret);
}

#[test]
fn what_has_no_place_is_malformed() {
    let two = end(2);
    let mut message = BytesMut::new();
    message.extend_from_slice(&MAGIC);
    message.extend_from_slice(&[1, 0, 1, 0]);
    encode(&mut message, two.sender(), &crate::message::PeerMessage::Goodbye).expect("short");
    let mut too_long = BytesMut::new();
    too_long.extend_from_slice(&MAGIC);
    too_long.extend_from_slice(&[1, 0, 1, 0, 0, 0, 0, 1]);
    for mut input in [BytesMut::from("GET / HTTP/1.1\r\n"), message, too_long] {
        let mut accepted = Responder::new(None, two.sender(), [2; 32]);
        let hello = |peer| two.hello(Some(peer));
        let refused = accepted
            .receive(&two.facts, hello, &mut input, &mut BytesMut::new())
            .expect_err("not a handshake");
        assert_eq!(refused.reason, RefusedReason::Malformed);
    }
}

#[test]
fn the_first_byte_begins_nothing_else() {
    assert!(first_byte_is_peer(MAGIC[0]));
    // HTTP methods and the HTTP/2 preface are ASCII; TLS records are of types 20 to 24; SSL 2 begins with 128.
    for byte in (0..=127).chain([128]) {
        assert!(!first_byte_is_peer(byte), "{byte}");
    }
}

#[test]
fn a_peers_text_writes_no_lines_into_the_log() {
    let refused =
        Refused { reason: RefusedReason::Removed, text: "x\nERROR y".to_owned(), by_peer: true };
    assert_eq!(refused.to_string(), "the peer refuses: x\\nERROR y");
}
