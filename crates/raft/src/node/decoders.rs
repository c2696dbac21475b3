//! What formation, members and entries are encoded as, against whatever a peer or a disk may hold instead: nothing
//! panics, nothing reserves memory for what is not there, and what decodes is what was encoded.

use std::time::Duration;

use bytes::{Bytes, BytesMut};
use proptest::collection::{btree_map, vec};
use proptest::prelude::*;
use raft_core::{
    ClusterId, Digest, Entry, EntryId, EntryKind, Index, Lease, Member, MemberId, Membership,
    MembershipStep, NodeId, Session,
};

use super::MemberInfo;
use super::formation_message::{Ballot, FormationMessage, FormationState, Founding, Lack};
use crate::entry_header::EntryHeader;

fn node() -> impl Strategy<Value = NodeId> {
    (any::<u64>(), any::<u128>()).prop_map(|(member, incarnation)| NodeId::new(member, incarnation))
}

fn bytes(len: usize) -> impl Strategy<Value = Bytes> {
    vec(any::<u8>(), 0..len).prop_map(Bytes::from)
}

/// Texts of one, two and three bytes a character.
fn text() -> impl Strategy<Value = String> {
    "[a-z0-9:.é‿]{0,20}"
}

/// Configurations of every shape that changes lead to: joint ones, learners, the removed, leases.
fn membership() -> impl Strategy<Value = Membership> {
    let step = (0u8..6, any::<proptest::sample::Index>(), node(), bytes(40), any::<bool>());
    let voters = btree_map(node(), bytes(60), 1..6);
    (voters, vec(step, 0..4), any::<bool>()).prop_map(|(voters, steps, leave)| {
        let known: Vec<NodeId> = voters.keys().copied().collect();
        let mut membership = Membership::from_voters(voters);
        for (kind, nth, new, info, flag) in steps {
            let one = known[nth.index(known.len())];
            let lease = Lease { length: Duration::from_micros(new.member.0), drift_ppm: 7 };
            let member = Member { info, auto_promote: flag };
            let step = match kind {
                0 => MembershipStep::AddLearner { node: new, member },
                1 => MembershipStep::Promote(one),
                2 => MembershipStep::Demote(one),
                3 => MembershipStep::Remove(one),
                4 => MembershipStep::Update { node: one, member },
                _ => MembershipStep::SetLease(flag.then_some(lease)),
            };
            if membership.is_joint() {
                membership = membership.leave_joint();
            }
            // Not every step fits every configuration.
            membership = membership.change(&[step]).unwrap_or(membership);
        }
        if leave && membership.is_joint() { membership.leave_joint() } else { membership }
    })
}

fn ballot() -> impl Strategy<Value = Ballot> {
    (any::<u64>(), node()).prop_map(|(round, node)| Ballot { round, node })
}

fn founding() -> impl Strategy<Value = Founding> {
    (any::<u64>(), vec(text(), 0..5), membership()).prop_map(|(cluster, configured, members)| {
        Founding { cluster: ClusterId(cluster), configured, members }
    })
}

fn accepted() -> impl Strategy<Value = Option<(Ballot, Founding)>> {
    proptest::option::of((ballot(), founding()))
}

fn message() -> impl Strategy<Value = FormationMessage> {
    prop_oneof![
        (bytes(60), vec(text(), 0..5), any::<bool>()).prop_map(|(info, configured, answer)| {
            FormationMessage::Empty { info, configured, answer }
        }),
        (founding(), membership())
            .prop_map(|(founding, committed)| FormationMessage::Formed { founding, committed }),
        ballot().prop_map(FormationMessage::Prepare),
        (ballot(), accepted())
            .prop_map(|(ballot, accepted)| FormationMessage::Promise { ballot, accepted }),
        (ballot(), founding())
            .prop_map(|(ballot, founding)| FormationMessage::Accept(ballot, founding)),
        ballot().prop_map(FormationMessage::Accepted),
        (ballot(), ballot())
            .prop_map(|(ballot, promised)| FormationMessage::Refused { ballot, promised }),
        any::<u64>().prop_map(|epoch| FormationMessage::StandingAsk { epoch }),
        (any::<[u64; 5]>(), membership()).prop_map(|([asked, epoch_seen, a, l, c], committed)| {
            FormationMessage::StandingReply {
                asked,
                epoch_seen,
                acknowledged: Index(a),
                leader: (l % 3 != 0).then(|| NodeId::new(l, u128::from(a))),
                commit_index: Index(c),
                committed,
            }
        }),
        (vec(named(), 0..5), any::<bool>())
            .prop_map(|(wants, snapshot)| FormationMessage::RepairAsk { wants, snapshot }),
        (named(), 0u8..3, bytes(60)).prop_map(|((id, digest), kind, payload)| {
            let kind =
                [EntryKind::Empty, EntryKind::Command, EntryKind::Membership][usize::from(kind)];
            FormationMessage::RepairHave(Entry { id, kind, digest, payload })
        }),
        (named(), 0u8..3, any::<bool>()).prop_map(|((id, digest), lack, led)| {
            let lack = [Lack::NeverHad, Lack::Damaged, Lack::Compacted][usize::from(lack)];
            FormationMessage::RepairLack { id, digest, lack, led }
        }),
        any::<bool>().prop_map(FormationMessage::Full),
        (any::<u64>(), any::<u16>(), any::<u128>()).prop_map(|(at, level, state)| {
            FormationMessage::State { at: Index(at), level, state: Digest(state) }
        }),
    ]
}

/// What names an entry.
fn named() -> impl Strategy<Value = (EntryId, Digest)> {
    (any::<u64>(), any::<u64>(), any::<u128>())
        .prop_map(|(index, term, digest)| (EntryId::new(index, term), Digest(digest)))
}

/// Bytes that are likely to be taken for versions, flags, counts and lengths, small and as large as they get.
fn noise() -> impl Strategy<Value = Vec<u8>> {
    vec(prop_oneof![Just(0u8), Just(1), Just(2), Just(255), any::<u8>()], 0..200)
}

/// Some bytes of `good` are others, and some at its end may be missing.
fn spoil(good: &Bytes, changes: &[(proptest::sample::Index, u8)], cut: usize) -> Bytes {
    let mut bytes = good.to_vec();
    for (at, byte) in changes {
        if !bytes.is_empty() {
            let at = at.index(bytes.len());
            bytes[at] = *byte;
        }
    }
    bytes.truncate(bytes.len().saturating_sub(cut));
    Bytes::from(bytes)
}

fn changes() -> impl Strategy<Value = Vec<(proptest::sample::Index, u8)>> {
    vec((any::<proptest::sample::Index>(), prop_oneof![Just(0u8), Just(255), any::<u8>()]), 0..5)
}

/// Whatever these bytes are: what decodes from them is encoded to something that decodes to the same, and is no larger
/// than what was read.
fn decode_all(bytes: &Bytes) -> Result<(), TestCaseError> {
    if let Some(message) = FormationMessage::decode(bytes) {
        let again = message.encode();
        prop_assert!(again.len() <= bytes.len());
        prop_assert_eq!(FormationMessage::decode(&again), Some(message));
    }
    if let Some(state) = FormationState::decode(bytes) {
        let again = state.encode();
        prop_assert!(again.len() <= bytes.len());
        prop_assert_eq!(FormationState::decode(&again), Some(state));
    }
    if let Some(info) = MemberInfo::decode(bytes) {
        let again = info.encode();
        prop_assert!(again.len() <= bytes.len() + 2, "a missing feature level is written as 0");
        prop_assert_eq!(MemberInfo::decode(&again), Some(info));
    }
    if let Some((membership, context)) = Membership::decode(bytes) {
        let again = membership.encode(&context);
        prop_assert!(again.len() <= bytes.len());
        prop_assert_eq!(Membership::decode(&again), Some((membership, context)));
    }
    if let Ok((header, command)) = EntryHeader::decode(bytes) {
        let mut again = BytesMut::new();
        header.encode(&mut again);
        again.extend_from_slice(&command);
        prop_assert_eq!(again.freeze(), bytes);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 600, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_encoded_is_decoded(
        message in message(),
        promised in ballot(),
        accepted in accepted(),
        chosen in proptest::option::of(founding()),
        membership in membership(),
        context in bytes(50),
    ) {
        prop_assert_eq!(FormationMessage::decode(&message.encode()), Some(message));
        let state = FormationState { promised, accepted, chosen };
        prop_assert_eq!(FormationState::decode(&state.encode()), Some(state));
        let encoded = membership.encode(&context);
        prop_assert_eq!(Membership::decode(&encoded), Some((membership, context)));
    }

    #[test]
    fn members_and_headers_are_decoded_as_they_were_encoded(
        name in text(),
        peer_address in text(),
        client_addresses in vec(text(), 0..5),
        feature_level: u16,
        known_as in proptest::option::of(any::<u64>().prop_map(MemberId)),
        proposer in node(),
        request: u64,
        session in proptest::option::of(any::<(u64, u64)>()),
        command in bytes(60),
    ) {
        let info = MemberInfo { name, peer_address, client_addresses, feature_level, known_as };
        prop_assert_eq!(MemberInfo::decode(&info.encode()), Some(info));
        let session = session.map(|(id, sequence)| Session { id, sequence });
        let header = EntryHeader { proposer, request, session };
        let mut out = BytesMut::new();
        header.encode(&mut out);
        out.extend_from_slice(&command);
        prop_assert_eq!(EntryHeader::decode(&out.freeze()), Ok((header, command)));
    }

    /// What was encoded, changed in a few places and cut.
    #[test]
    fn spoiled_bytes_decode_to_something_whole_or_to_nothing(
        message in message(),
        membership in membership(),
        accepted in accepted(),
        changes in changes(),
        cut in prop_oneof![Just(0usize), 0..40usize],
    ) {
        decode_all(&spoil(&message.encode(), &changes, cut))?;
        decode_all(&spoil(&membership.encode(&[]), &changes, cut))?;
        let state = FormationState { accepted, ..FormationState::default() };
        decode_all(&spoil(&state.encode(), &changes, cut))?;
    }

    #[test]
    fn noise_decodes_to_something_whole_or_to_nothing(noise in noise()) {
        decode_all(&Bytes::from(noise))?;
    }
}

/// A count or a length that nothing stands behind costs nothing.
#[test]
fn counts_of_what_is_not_there_are_refused() {
    let membership = [&[1u8][..], &[255; 2]].concat();
    assert_eq!(Membership::decode(&Bytes::from(membership)), None);
    let removed = [&[1u8, 0, 0][..], &[255; 4]].concat();
    assert_eq!(Membership::decode(&Bytes::from(removed)), None);
    // An Empty whose attributes, and whose addresses, are said to be as many as can be.
    let info = [&[1u8, 1][..], &[255; 4]].concat();
    assert_eq!(FormationMessage::decode(&Bytes::from(info)), None);
    let texts = [&[1u8, 1, 0, 0, 0, 0][..], &[255; 2]].concat();
    assert_eq!(FormationMessage::decode(&Bytes::from(texts)), None);
    let addresses = [&[1u8, 0, 0, 0, 0][..], &[255; 2]].concat();
    assert_eq!(MemberInfo::decode(&Bytes::from(addresses)), None);
}
