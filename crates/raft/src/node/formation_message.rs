//! The bytes of `PeerMessage::Formation`, and of what formation keeps on disk.
//!
//! ```text
//! message: version u8 = 1, kind u8, fields
//! state:   version u8 = 1, promised, option(ballot, founding), option(founding)
//! ballot:  round u64, member u64, incarnation u128
//! founding: cluster u64, count u16, that many texts, length u32, encoded membership
//! bytes:   length u32 and the bytes; text: length u16 and UTF-8; option: 0, or 1 and the value
//! ```
//!
//! Little-endian. Nothing that a peer sends can do more than fail to decode.

use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_core::{
    ClusterId, Digest, Entry, EntryId, EntryKind, INFO_BYTES_MAX, Index, Membership, NodeId, Term,
};

use crate::node::member_info::{get_text, put_text};

/// Version of the layouts above.
const VERSION: u8 = 1;

/// Bytes of an encoded founding. What formation keeps on disk holds two of them, and has 65,508 bytes for everything.
pub(crate) const FOUNDING_BYTES_MAX: usize = 32_000;
/// Bytes of an encoded founding beside its addresses and members.
const FOUNDING_HEAD_BYTES: usize = 22;
/// Bytes of a member in an encoded configuration beside its attributes.
const MEMBER_HEAD_BYTES: usize = 28;

/// Bytes of attributes that each member may have, so that a founding of all the configured ones fits. All of them
/// are configured with the same list, and come to the same number.
pub(crate) fn info_bytes_max(configured: &[String]) -> usize {
    let addresses: usize = configured.iter().map(|address| 2 + address.len()).sum();
    let for_members = FOUNDING_BYTES_MAX.saturating_sub(FOUNDING_HEAD_BYTES + addresses);
    let each = for_members / configured.len().max(1);
    each.saturating_sub(MEMBER_HEAD_BYTES).min(INFO_BYTES_MAX)
}

/// An attempt to choose how the cluster begins; higher ones win.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Ballot {
    /// Counts attempts.
    pub round: u64,
    /// Who attempts; makes ballots of one round different.
    pub node: NodeId,
}

/// How a cluster begins: what is chosen once and for ever.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Founding {
    /// The cluster's random number.
    pub cluster: ClusterId,
    /// The addresses that were configured, sorted. One that no founder has is *vacant*: its member has never
    /// been seen, and the leader admits it when it comes.
    pub configured: Vec<String>,
    /// The first configuration: the members that had reported empty.
    pub members: Membership,
}

/// Whether `node` has left the cluster for good. While a joint configuration is in force a node on its way out is
/// among the removed already, and still votes.
pub(crate) fn is_gone(membership: &Membership, node: NodeId) -> bool {
    membership.removed().contains(&node) && !membership.contains(node)
}

impl Founding {
    /// Whether a durable state has room for it.
    pub(crate) fn fits(&self) -> bool {
        let mut out = BytesMut::new();
        put_founding(&mut out, self);
        out.len() <= FOUNDING_BYTES_MAX
    }
}

/// What nodes say to each other before (and beside) the protocol.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FormationMessage {
    /// The sender has no data.
    Empty {
        /// Its attributes, as they will stand in the configuration.
        info: Bytes,
        /// The addresses it was configured with, sorted; empty when it waits to be added.
        configured: Vec<String>,
        /// It wants to know the same of the receiver.
        answer: bool,
    },
    /// The sender's cluster exists.
    Formed {
        /// How it began.
        founding: Founding,
        /// Its committed configuration, as far as the sender knows.
        committed: Membership,
    },
    /// Phase 1 of the choice: promise nothing lower.
    Prepare(Ballot),
    /// The promise, once durable, with what was accepted before.
    Promise {
        /// Of which attempt.
        ballot: Ballot,
        /// The founding accepted under the highest earlier ballot.
        accepted: Option<(Ballot, Founding)>,
    },
    /// Phase 2: accept this founding.
    Accept(Ballot, Founding),
    /// Accepted, durably.
    Accepted(Ballot),
    /// Refused: a higher ballot was promised.
    Refused {
        /// The attempt refused.
        ballot: Ballot,
        /// The ballot promised.
        promised: Ballot,
    },
    /// A restarted node asks whether its data is what it was (decision 10).
    StandingAsk {
        /// The epoch that it has durably reached.
        epoch: u64,
    },
    /// The answer.
    StandingReply {
        /// The epoch in the question: an answer to an earlier life of the asker says nothing about this one.
        asked: u64,
        /// The highest epoch of the asker that the sender has ever seen.
        epoch_seen: u64,
        /// The highest position that the asker has acknowledged to the sender, when it leads.
        acknowledged: Index,
        /// Whom the sender follows; itself when it leads. Member 0 in the message: nobody.
        leader: Option<NodeId>,
        /// The sender's commit index.
        commit_index: Index,
        /// The configuration committed there.
        committed: Membership,
    },
    /// Payloads of these entries are damaged at the sender.
    RepairAsk {
        /// Index, term and digest of each.
        wants: Vec<(EntryId, Digest)>,
        /// A snapshot that includes them would do.
        snapshot: bool,
    },
    /// One of them, intact.
    RepairHave(Entry),
    /// The sender does not have it intact.
    RepairLack {
        /// The entry.
        id: EntryId,
        /// Its digest.
        digest: Digest,
        /// Why.
        lack: Lack,
        /// The sender has, or is, a leader: the cluster goes on.
        led: bool,
    },
    /// The sender's disk has no space for more of the log, or has some again.
    Full(bool),
    /// What the sender's checkpoint at this position consists of.
    State {
        /// The checkpoint's position.
        at: Index,
        /// The feature level of the sender's program.
        level: u16,
        /// Stands for the names of the blobs, in order.
        state: Digest,
    },
}

/// Why a member does not hand out an entry that another one asks for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Lack {
    /// It never had it, or has another one in its place.
    NeverHad,
    /// It has it, damaged.
    Damaged,
    /// A snapshot includes it.
    Compacted,
}

impl fmt::Display for Lack {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NeverHad => "never had it",
            Self::Damaged => "has it damaged, too",
            Self::Compacted => "has it in a snapshot only",
        })
    }
}

impl FormationMessage {
    /// The bytes on the wire.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        match self {
            Self::Empty { info, configured, answer } => {
                out.put_u8(1);
                put_bytes(&mut out, info);
                put_texts(&mut out, configured);
                out.put_u8(u8::from(*answer));
            }
            Self::Formed { founding, committed } => {
                out.put_u8(2);
                put_founding(&mut out, founding);
                put_bytes(&mut out, &committed.encode(&[]));
            }
            Self::Prepare(ballot) => {
                out.put_u8(3);
                put_ballot(&mut out, *ballot);
            }
            Self::Promise { ballot, accepted } => {
                out.put_u8(4);
                put_ballot(&mut out, *ballot);
                put_accepted(&mut out, accepted.as_ref());
            }
            Self::Accept(ballot, founding) => {
                out.put_u8(5);
                put_ballot(&mut out, *ballot);
                put_founding(&mut out, founding);
            }
            Self::Accepted(ballot) => {
                out.put_u8(6);
                put_ballot(&mut out, *ballot);
            }
            Self::Refused { ballot, promised } => {
                out.put_u8(7);
                put_ballot(&mut out, *ballot);
                put_ballot(&mut out, *promised);
            }
            Self::StandingAsk { epoch } => {
                out.put_u8(8);
                out.put_u64_le(*epoch);
            }
            Self::StandingReply {
                asked,
                epoch_seen,
                acknowledged,
                leader,
                commit_index,
                committed,
            } => {
                out.put_u8(9);
                out.put_u64_le(*asked);
                out.put_u64_le(*epoch_seen);
                out.put_u64_le(acknowledged.0);
                put_leader(&mut out, *leader);
                out.put_u64_le(commit_index.0);
                put_bytes(&mut out, &committed.encode(&[]));
            }
            Self::RepairAsk { wants, snapshot } => {
                out.put_u8(10);
                out.put_u16_le(u16::try_from(wants.len()).unwrap_or(u16::MAX));
                for (id, digest) in wants.iter().take(usize::from(u16::MAX)) {
                    put_entry_id(&mut out, *id);
                    out.put_u128_le(digest.0);
                }
                out.put_u8(u8::from(*snapshot));
            }
            Self::RepairHave(entry) => {
                out.put_u8(11);
                put_entry_id(&mut out, entry.id);
                out.put_u128_le(entry.digest.0);
                out.put_u8(entry.kind.as_u8());
                put_bytes(&mut out, &entry.payload);
            }
            Self::RepairLack { id, digest, lack, led } => {
                out.put_u8(12);
                put_entry_id(&mut out, *id);
                out.put_u128_le(digest.0);
                out.put_u8(match lack {
                    Lack::NeverHad => 0,
                    Lack::Damaged => 1,
                    Lack::Compacted => 2,
                });
                out.put_u8(u8::from(*led));
            }
            Self::Full(is_full) => {
                out.put_u8(13);
                out.put_u8(u8::from(*is_full));
            }
            Self::State { at, level, state } => {
                out.put_u8(14);
                out.put_u64_le(at.0);
                out.put_u16_le(*level);
                out.put_u128_le(state.0);
            }
        }
        out.freeze()
    }

    /// What [`encode`](Self::encode) made; `None` when the bytes are anything else.
    #[must_use]
    pub fn decode(bytes: &Bytes) -> Option<Self> {
        let mut input = bytes.clone();
        if input.try_get_u8().ok()? != VERSION {
            return None;
        }
        let message = match input.try_get_u8().ok()? {
            1 => Self::Empty {
                info: get_bytes(&mut input)?,
                configured: get_texts(&mut input)?,
                answer: get_bool(&mut input)?,
            },
            2 => Self::Formed {
                founding: get_founding(&mut input)?,
                committed: get_membership(&mut input)?,
            },
            3 => Self::Prepare(get_ballot(&mut input)?),
            4 => Self::Promise {
                ballot: get_ballot(&mut input)?,
                accepted: get_accepted(&mut input)?,
            },
            5 => Self::Accept(get_ballot(&mut input)?, get_founding(&mut input)?),
            6 => Self::Accepted(get_ballot(&mut input)?),
            7 => {
                Self::Refused { ballot: get_ballot(&mut input)?, promised: get_ballot(&mut input)? }
            }
            8 => Self::StandingAsk { epoch: input.try_get_u64_le().ok()? },
            9 => Self::StandingReply {
                asked: input.try_get_u64_le().ok()?,
                epoch_seen: input.try_get_u64_le().ok()?,
                acknowledged: Index(input.try_get_u64_le().ok()?),
                leader: get_leader(&mut input)?,
                commit_index: Index(input.try_get_u64_le().ok()?),
                committed: get_membership(&mut input)?,
            },
            10 => {
                let count = input.try_get_u16_le().ok()?;
                let mut wants = Vec::new();
                for _ in 0..count {
                    let id = get_entry_id(&mut input)?;
                    wants.push((id, Digest(input.try_get_u128_le().ok()?)));
                }
                Self::RepairAsk { wants, snapshot: get_bool(&mut input)? }
            }
            11 => Self::RepairHave(Entry {
                id: get_entry_id(&mut input)?,
                digest: Digest(input.try_get_u128_le().ok()?),
                kind: EntryKind::from_u8(input.try_get_u8().ok()?)?,
                payload: get_bytes(&mut input)?,
            }),
            12 => Self::RepairLack {
                id: get_entry_id(&mut input)?,
                digest: Digest(input.try_get_u128_le().ok()?),
                lack: match input.try_get_u8().ok()? {
                    0 => Lack::NeverHad,
                    1 => Lack::Damaged,
                    2 => Lack::Compacted,
                    _ => return None,
                },
                led: get_bool(&mut input)?,
            },
            13 => Self::Full(get_bool(&mut input)?),
            14 => Self::State {
                at: Index(input.try_get_u64_le().ok()?),
                level: input.try_get_u16_le().ok()?,
                state: Digest(input.try_get_u128_le().ok()?),
            },
            _ => return None,
        };
        input.is_empty().then_some(message)
    }
}

/// What a member must not forget while a cluster forms, and what it keeps of it afterwards.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct FormationState {
    /// No lower ballot is answered.
    pub promised: Ballot,
    /// The founding accepted last.
    pub accepted: Option<(Ballot, Founding)>,
    /// The founding chosen: written before the log is formed by it, and kept for those who come later.
    pub chosen: Option<Founding>,
}

impl FormationState {
    /// The bytes on disk.
    #[must_use]
    pub fn encode(&self) -> Bytes {
        let mut out = BytesMut::new();
        out.put_u8(VERSION);
        put_ballot(&mut out, self.promised);
        put_accepted(&mut out, self.accepted.as_ref());
        match &self.chosen {
            None => out.put_u8(0),
            Some(founding) => {
                out.put_u8(1);
                put_founding(&mut out, founding);
            }
        }
        out.freeze()
    }

    /// What [`encode`](Self::encode) made; `None` when the bytes are anything else.
    #[must_use]
    pub fn decode(bytes: &[u8]) -> Option<Self> {
        let mut input = Bytes::copy_from_slice(bytes);
        if input.try_get_u8().ok()? != VERSION {
            return None;
        }
        let promised = get_ballot(&mut input)?;
        let accepted = get_accepted(&mut input)?;
        let chosen = if get_bool(&mut input)? { Some(get_founding(&mut input)?) } else { None };
        input.is_empty().then_some(Self { promised, accepted, chosen })
    }
}

fn put_bytes(out: &mut BytesMut, bytes: &[u8]) {
    out.put_u32_le(u32::try_from(bytes.len()).unwrap_or(u32::MAX));
    out.put_slice(bytes);
}

fn get_bytes(input: &mut Bytes) -> Option<Bytes> {
    let len = usize::try_from(input.try_get_u32_le().ok()?).ok()?;
    (input.remaining() >= len).then(|| input.split_to(len))
}

fn get_bool(input: &mut Bytes) -> Option<bool> {
    match input.try_get_u8().ok()? {
        0 => Some(false),
        1 => Some(true),
        _ => None,
    }
}

fn put_texts(out: &mut BytesMut, texts: &[String]) {
    let count = u16::try_from(texts.len()).unwrap_or(u16::MAX);
    out.put_u16_le(count);
    for text in texts.iter().take(usize::from(count)) {
        put_text(out, text);
    }
}

fn get_texts(input: &mut Bytes) -> Option<Vec<String>> {
    let count = input.try_get_u16_le().ok()?;
    (0..count).map(|_| get_text(input)).collect()
}

fn put_entry_id(out: &mut BytesMut, id: EntryId) {
    out.put_u64_le(id.index.0);
    out.put_u64_le(id.term.0);
}

fn get_entry_id(input: &mut Bytes) -> Option<EntryId> {
    let index = Index(input.try_get_u64_le().ok()?);
    Some(EntryId { index, term: Term(input.try_get_u64_le().ok()?) })
}

fn put_leader(out: &mut BytesMut, leader: Option<NodeId>) {
    let leader = leader.unwrap_or_default();
    out.put_u64_le(leader.member.0);
    out.put_u128_le(leader.incarnation.0);
}

fn get_leader(input: &mut Bytes) -> Option<Option<NodeId>> {
    let leader = NodeId::new(input.try_get_u64_le().ok()?, input.try_get_u128_le().ok()?);
    Some((leader.member.0 != 0).then_some(leader))
}

fn put_ballot(out: &mut BytesMut, ballot: Ballot) {
    out.put_u64_le(ballot.round);
    out.put_u64_le(ballot.node.member.0);
    out.put_u128_le(ballot.node.incarnation.0);
}

fn get_ballot(input: &mut Bytes) -> Option<Ballot> {
    let round = input.try_get_u64_le().ok()?;
    let member = input.try_get_u64_le().ok()?;
    let incarnation = input.try_get_u128_le().ok()?;
    Some(Ballot { round, node: NodeId::new(member, incarnation) })
}

fn put_founding(out: &mut BytesMut, founding: &Founding) {
    out.put_u64_le(founding.cluster.0);
    put_texts(out, &founding.configured);
    put_bytes(out, &founding.members.encode(&[]));
}

fn get_founding(input: &mut Bytes) -> Option<Founding> {
    let cluster = ClusterId(input.try_get_u64_le().ok()?);
    let configured = get_texts(input)?;
    let members = get_membership(input)?;
    // A configuration without voters could never decide anything, not even to get some.
    (!members.voters().is_empty()).then_some(Founding { cluster, configured, members })
}

fn get_membership(input: &mut Bytes) -> Option<Membership> {
    let (membership, rest) = Membership::decode(&get_bytes(input)?)?;
    rest.is_empty().then_some(membership)
}

fn put_accepted(out: &mut BytesMut, accepted: Option<&(Ballot, Founding)>) {
    match accepted {
        None => out.put_u8(0),
        Some((ballot, founding)) => {
            out.put_u8(1);
            put_ballot(out, *ballot);
            put_founding(out, founding);
        }
    }
}

#[expect(clippy::option_option, reason = "outer: does it decode; inner: was anything accepted")]
fn get_accepted(input: &mut Bytes) -> Option<Option<(Ballot, Founding)>> {
    if get_bool(input)? {
        Some(Some((get_ballot(input)?, get_founding(input)?)))
    } else {
        Some(None)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn founding() -> Founding {
        let voters =
            [(NodeId::new(1, 2), Bytes::from_static(b"a")), (NodeId::new(3, 4), Bytes::new())];
        Founding {
            cluster: ClusterId(9),
            configured: vec![String::from("a:1"), String::from("b:2")],
            members: Membership::from_voters(voters),
        }
    }

    #[test]
    fn every_message_comes_back_as_it_was_written_and_nothing_shorter_does() {
        let ballot = Ballot { round: 3, node: NodeId::new(1, 2) };
        let messages = [
            FormationMessage::Empty {
                info: Bytes::from_static(b"i"),
                configured: founding().configured,
                answer: true,
            },
            FormationMessage::Formed { founding: founding(), committed: founding().members },
            FormationMessage::Prepare(ballot),
            FormationMessage::Promise { ballot, accepted: None },
            FormationMessage::Promise { ballot, accepted: Some((ballot, founding())) },
            FormationMessage::Accept(ballot, founding()),
            FormationMessage::Accepted(ballot),
            FormationMessage::Refused { ballot, promised: ballot },
            FormationMessage::StandingAsk { epoch: 4 },
            FormationMessage::StandingReply {
                asked: 4,
                epoch_seen: 5,
                acknowledged: Index(3),
                leader: Some(NodeId::new(7, 8)),
                commit_index: Index(6),
                committed: founding().members,
            },
            FormationMessage::RepairAsk {
                wants: vec![(EntryId::new(7, 2), Digest(8)), (EntryId::new(9, 2), Digest(10))],
                snapshot: true,
            },
            FormationMessage::RepairHave(Entry {
                id: EntryId::new(7, 2),
                kind: EntryKind::Command,
                digest: Digest(8),
                payload: Bytes::from_static(b"what stood there"),
            }),
            FormationMessage::RepairLack {
                id: EntryId::new(9, 2),
                digest: Digest(10),
                lack: Lack::Damaged,
                led: true,
            },
        ];
        for message in messages {
            let bytes = message.encode();
            assert_eq!(FormationMessage::decode(&bytes), Some(message));
            for len in 0..bytes.len() {
                assert_eq!(FormationMessage::decode(&bytes.slice(..len)), None);
            }
        }
    }

    #[test]
    fn the_largest_founding_that_the_settings_allow_fits_twice_into_the_state() {
        for count in [1, 3, 7, 64] {
            let configured: Vec<String> =
                (0..count).map(|number| format!("{number:03}{}", "x".repeat(252))).collect();
            let info = Bytes::from(vec![0; info_bytes_max(&configured)]);
            let voters = (1u64..).take(configured.len()).map(|n| (NodeId::new(n, 1), info.clone()));
            let members = Membership::from_voters(voters);
            let founding = Founding { cluster: ClusterId(1), configured, members };
            assert!(founding.fits());
            let accepted = Some((Ballot::default(), founding.clone()));
            let state =
                FormationState { promised: Ballot::default(), accepted, chosen: Some(founding) };
            assert!(state.encode().len() <= 65_508);
        }
        assert!(info_bytes_max(&vec!["y".repeat(1000); 64]) == 0);
    }

    #[test]
    fn the_state_comes_back_as_it_was_written() {
        let ballot = Ballot { round: 3, node: NodeId::new(1, 2) };
        let state = FormationState {
            promised: ballot,
            accepted: Some((ballot, founding())),
            chosen: Some(founding()),
        };
        for state in [FormationState::default(), state] {
            assert_eq!(FormationState::decode(&state.encode()), Some(state));
        }
        assert_eq!(FormationState::decode(b"\x02"), None);
    }
}
