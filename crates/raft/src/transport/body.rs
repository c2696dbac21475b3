//! What frames carry: every message of the node and of the handshake, as the end of a frame.
//!
//! The tables of docs/wire-format.md in code; [`codec`](super::codec) puts the header in front.

use bytes::{BufMut, BytesMut};
use raft_core::{
    AppendEntries, AppendEntriesReply, AppendOutcome, ClusterId, Entry, EntryId, EntryKind,
    Heartbeat, HeartbeatReply, Index, InstallSnapshot, InstallSnapshotReply, LogIdentity, Message,
    ReadIndex, ReadIndexReply, RequestVote, RequestVoteReply, Term, TimeoutNow,
};

use super::codec::{Content, FrameError, Problem};
use super::handshake::{Greeting, HandshakeFrame, Refused, RefusedReason};
use super::wire::{Put, Reader};
use crate::io::Stream;
use crate::message::{
    Admin, Forward, ForwardAdmin, ForwardAdminReply, ForwardRefused, Hello, PeerMessage, Refusal,
    SnapshotMessage,
};

/// The kinds of content. The numbers are on the wire: they are never reused.
mod kind {
    pub(super) const GREETING: u16 = 1;
    pub(super) const GREETING_REPLY: u16 = 2;
    pub(super) const PROOF: u16 = 3;
    pub(super) const WELCOME: u16 = 4;
    pub(super) const REFUSED: u16 = 5;
    pub(super) const GOODBYE: u16 = 6;

    pub(super) const REQUEST_VOTE: u16 = 16;
    pub(super) const REQUEST_VOTE_REPLY: u16 = 17;
    pub(super) const APPEND_ENTRIES: u16 = 18;
    pub(super) const APPEND_ENTRIES_REPLY: u16 = 19;
    pub(super) const HEARTBEAT: u16 = 20;
    pub(super) const HEARTBEAT_REPLY: u16 = 21;
    pub(super) const INSTALL_SNAPSHOT: u16 = 22;
    pub(super) const INSTALL_SNAPSHOT_REPLY: u16 = 23;
    pub(super) const TIMEOUT_NOW: u16 = 24;
    pub(super) const READ_INDEX: u16 = 25;
    pub(super) const READ_INDEX_REPLY: u16 = 26;

    pub(super) const FORWARD: u16 = 32;
    pub(super) const FORWARD_REFUSED: u16 = 33;
    pub(super) const FORWARD_ADMIN: u16 = 34;
    pub(super) const FORWARD_ADMIN_REPLY: u16 = 35;
    pub(super) const FORMATION: u16 = 36;

    pub(super) const SNAPSHOT_OFFER: u16 = 48;
    pub(super) const SNAPSHOT_HAVE: u16 = 49;
    pub(super) const SNAPSHOT_CHUNK: u16 = 50;
    pub(super) const SNAPSHOT_ACK: u16 = 51;
    pub(super) const SNAPSHOT_ABORT: u16 = 52;
}

pub(super) const fn handshake_kind(content: &HandshakeFrame) -> u16 {
    match content {
        HandshakeFrame::Greeting(_) => kind::GREETING,
        HandshakeFrame::GreetingReply { .. } => kind::GREETING_REPLY,
        HandshakeFrame::Proof(_) => kind::PROOF,
        HandshakeFrame::Welcome => kind::WELCOME,
        HandshakeFrame::Refused(_) => kind::REFUSED,
    }
}

pub(super) const fn message_kind(message: &PeerMessage) -> u16 {
    match message {
        PeerMessage::Raft(message) => match message {
            Message::RequestVote(_) => kind::REQUEST_VOTE,
            Message::RequestVoteReply(_) => kind::REQUEST_VOTE_REPLY,
            Message::AppendEntries(_) => kind::APPEND_ENTRIES,
            Message::AppendEntriesReply(_) => kind::APPEND_ENTRIES_REPLY,
            Message::Heartbeat(_) => kind::HEARTBEAT,
            Message::HeartbeatReply(_) => kind::HEARTBEAT_REPLY,
            Message::InstallSnapshot(_) => kind::INSTALL_SNAPSHOT,
            Message::InstallSnapshotReply(_) => kind::INSTALL_SNAPSHOT_REPLY,
            Message::TimeoutNow(_) => kind::TIMEOUT_NOW,
            Message::ReadIndex(_) => kind::READ_INDEX,
            Message::ReadIndexReply(_) => kind::READ_INDEX_REPLY,
        },
        PeerMessage::Forward(_) => kind::FORWARD,
        PeerMessage::ForwardRefused(_) => kind::FORWARD_REFUSED,
        PeerMessage::ForwardAdmin(_) => kind::FORWARD_ADMIN,
        PeerMessage::ForwardAdminReply(_) => kind::FORWARD_ADMIN_REPLY,
        PeerMessage::Formation(_) => kind::FORMATION,
        PeerMessage::Snapshot(message) => match message {
            SnapshotMessage::Offer { .. } => kind::SNAPSHOT_OFFER,
            SnapshotMessage::Have { .. } => kind::SNAPSHOT_HAVE,
            SnapshotMessage::Chunk { .. } => kind::SNAPSHOT_CHUNK,
            SnapshotMessage::Ack { .. } => kind::SNAPSHOT_ACK,
            SnapshotMessage::Abort { .. } => kind::SNAPSHOT_ABORT,
        },
        PeerMessage::Goodbye => kind::GOODBYE,
    }
}

pub(super) fn put_message(out: &mut BytesMut, message: &PeerMessage) {
    match message {
        PeerMessage::Raft(message) => put_raft(out, message),
        PeerMessage::Forward(Forward { term, attempt, epoch, payloads }) => {
            out.put_u64_le(term.0);
            out.put_u64_le(*attempt);
            out.put_u64_le(*epoch);
            out.count(payloads.len());
            for payload in payloads {
                out.bytes(payload);
            }
        }
        PeerMessage::ForwardRefused(ForwardRefused { term, attempt, requests, refusal }) => {
            out.put_u64_le(term.0);
            out.put_u64_le(*attempt);
            out.put_u8(match refusal {
                Refusal::NotLeader => 0,
                Refusal::Overloaded => 1,
                Refusal::Transferring => 2,
                Refusal::NoSpace => 3,
            });
            out.count(requests.len());
            for request in requests {
                out.put_u64_le(*request);
            }
        }
        PeerMessage::ForwardAdmin(ForwardAdmin { request, admin }) => {
            out.put_u64_le(*request);
            match admin {
                Admin::Membership(steps) => {
                    out.put_u8(0);
                    out.count(steps.len());
                    for step in steps {
                        out.membership_step(step);
                    }
                }
                Admin::Transfer(target) => {
                    out.put_u8(1);
                    out.bool(target.is_some());
                    if let Some(target) = target {
                        out.node(*target);
                    }
                }
            }
        }
        PeerMessage::ForwardAdminReply(ForwardAdminReply { request, outcome }) => {
            out.put_u64_le(*request);
            out.bool(outcome.is_ok());
            match outcome {
                Ok(index) => out.put_u64_le(index.0),
                Err(text) => Put::bytes(out, text.as_bytes()),
            }
        }
        PeerMessage::Formation(bytes) => out.put_slice(bytes),
        PeerMessage::Snapshot(message) => put_snapshot(out, message),
        PeerMessage::Goodbye => {}
    }
}

fn put_raft(out: &mut BytesMut, message: &Message) {
    out.put_u64_le(message.term().0);
    match message {
        Message::RequestVote(m) => {
            out.entry_id(m.last_log);
            out.bool(m.pre_vote);
            out.bool(m.leader_transfer);
        }
        Message::RequestVoteReply(m) => {
            out.bool(m.vote_granted);
            out.bool(m.pre_vote);
        }
        Message::AppendEntries(m) => {
            out.entry_id(m.prev_log);
            out.digest(m.prev_digest);
            out.put_u64_le(m.leader_commit.0);
            // The receiver chains the entries itself and must arrive here.
            out.digest(m.entries.last().map_or(m.prev_digest, |entry| entry.digest));
            out.count(m.entries.len());
            for entry in &m.entries {
                out.put_u64_le(entry.id.term.0);
                out.put_u8(entry.kind.as_u8());
                out.bytes(&entry.payload);
            }
        }
        Message::AppendEntriesReply(m) => match &m.outcome {
            AppendOutcome::Accepted { match_index } => {
                out.put_u8(0);
                out.put_u64_le(match_index.0);
            }
            AppendOutcome::Rejected { prev_log_index, hint } => {
                out.put_u8(1);
                out.put_u64_le(prev_log_index.0);
                out.entry_id(*hint);
            }
        },
        Message::Heartbeat(m) => {
            out.put_u64_le(m.leader_commit.0);
            out.put_u64_le(m.round);
        }
        Message::HeartbeatReply(m) => {
            out.put_u64_le(m.round);
            out.put_u64_le(m.verified.0);
        }
        Message::InstallSnapshot(m) => out.snapshot_meta(&m.snapshot),
        Message::InstallSnapshotReply(m) => out.put_u64_le(m.match_index.0),
        Message::TimeoutNow(_) => {}
        Message::ReadIndex(m) => out.put_u64_le(m.id),
        Message::ReadIndexReply(m) => {
            out.put_u64_le(m.id);
            out.bool(m.index.is_some());
            if let Some(index) = m.index {
                out.put_u64_le(index.0);
            }
        }
    }
}

fn put_snapshot(out: &mut BytesMut, message: &SnapshotMessage) {
    match message {
        SnapshotMessage::Offer { transfer, term, snapshot, blobs } => {
            out.put_u64_le(*transfer);
            out.put_u64_le(term.0);
            out.snapshot_meta(snapshot);
            out.count(blobs.len());
            for blob in blobs {
                out.blob(*blob);
            }
        }
        SnapshotMessage::Have { transfer, bytes } => {
            out.put_u64_le(*transfer);
            out.count(bytes.len());
            for bytes in bytes {
                out.put_u64_le(*bytes);
            }
        }
        SnapshotMessage::Chunk { transfer, blob, offset, bytes } => {
            out.put_u64_le(*transfer);
            out.put_u32_le(*blob);
            out.put_u64_le(*offset);
            out.bytes(bytes);
        }
        SnapshotMessage::Ack { transfer, blob, offset } => {
            out.put_u64_le(*transfer);
            out.put_u32_le(*blob);
            out.put_u64_le(*offset);
        }
        SnapshotMessage::Abort { transfer, reason } => {
            out.put_u64_le(*transfer);
            Put::bytes(out, reason.as_bytes());
        }
    }
}

pub(super) fn put_handshake(out: &mut BytesMut, content: &HandshakeFrame) {
    match content {
        HandshakeFrame::Greeting(greeting) => put_greeting(out, greeting),
        HandshakeFrame::GreetingReply { greeting, proof } => {
            put_greeting(out, greeting);
            put_proof(out, proof.as_ref());
        }
        HandshakeFrame::Proof(proof) => put_proof(out, proof.as_ref()),
        HandshakeFrame::Welcome => {}
        HandshakeFrame::Refused(refused) => {
            out.put_u16_le(refused.reason.code());
            Put::bytes(out, refused.text.as_bytes());
        }
    }
}

/// A greeting's canonical bytes: also what the proofs are over.
pub(super) fn put_greeting(out: &mut BytesMut, greeting: &Greeting) {
    let Greeting { hello, stream, expects, nonce, has_secret } = greeting;
    out.put_u16_le(hello.version_min);
    out.put_u16_le(hello.version_max);
    out.bool(hello.cluster.is_some());
    out.put_u64_le(hello.cluster.unwrap_or_default().0);
    out.node(hello.node);
    Put::bytes(out, hello.address.as_bytes());
    out.put_u64_le(hello.epoch);
    out.entry_id(hello.last_durable);
    out.put_u64_le(hello.epoch_seen);
    out.put_u8(match stream {
        Stream::Control => 0,
        Stream::Bulk => 1,
    });
    out.bool(expects.is_some());
    out.node(expects.unwrap_or_default());
    out.put_slice(nonce);
    out.bool(*has_secret);
}

fn put_proof(out: &mut BytesMut, proof: Option<&[u8; 32]>) {
    out.bool(proof.is_some());
    out.put_slice(proof.unwrap_or(&[0; 32]));
}

type Decoded<T> = Result<T, FrameError>;

pub(super) fn get_content(
    input: &mut Reader,
    kind: u16,
    log: Option<LogIdentity>,
) -> Decoded<Content> {
    let message = match kind {
        kind::GREETING..=kind::REFUSED => {
            return get_handshake(input, kind).map(Content::Handshake);
        }
        kind::GOODBYE => PeerMessage::Goodbye,
        kind::APPEND_ENTRIES => {
            PeerMessage::Raft(Message::AppendEntries(get_append_entries(input, log)?))
        }
        kind::REQUEST_VOTE..=kind::READ_INDEX_REPLY => PeerMessage::Raft(get_raft(input, kind)?),
        kind::SNAPSHOT_OFFER..=kind::SNAPSHOT_ABORT => {
            PeerMessage::Snapshot(get_snapshot(input, kind)?)
        }
        kind => get_node_message(input, kind)?,
    };
    Ok(Content::Message(message))
}

fn get_node_message(input: &mut Reader, kind: u16) -> Decoded<PeerMessage> {
    Ok(match kind {
        kind::FORWARD => {
            let term = input.term("term")?;
            let attempt = input.u64("attempt")?;
            let epoch = input.u64("epoch")?;
            let payloads = input.list("payloads", 4, |input| input.bytes("payload"))?;
            PeerMessage::Forward(Forward { term, attempt, epoch, payloads })
        }
        kind::FORWARD_REFUSED => {
            let term = input.term("term")?;
            let attempt = input.u64("attempt")?;
            let refusal = match input.u8("refusal")? {
                0 => Refusal::NotLeader,
                1 => Refusal::Overloaded,
                2 => Refusal::Transferring,
                3 => Refusal::NoSpace,
                other => return Err(bad_value(input, "refusal", other)),
            };
            let requests = input.list("requests", 8, |input| input.u64("request"))?;
            PeerMessage::ForwardRefused(ForwardRefused { term, attempt, requests, refusal })
        }
        kind::FORWARD_ADMIN => {
            let request = input.u64("request")?;
            let admin = match input.u8("admin")? {
                0 => Admin::Membership(input.list("steps", 2, Reader::membership_step)?),
                1 => Admin::Transfer(input.option("target", |input| input.node("target"))?),
                other => return Err(bad_value(input, "admin", other)),
            };
            PeerMessage::ForwardAdmin(ForwardAdmin { request, admin })
        }
        kind::FORWARD_ADMIN_REPLY => {
            let request = input.u64("request")?;
            let outcome = if input.bool("outcome")? {
                Ok(input.index("index")?)
            } else {
                Err(input.string("error")?)
            };
            PeerMessage::ForwardAdminReply(ForwardAdminReply { request, outcome })
        }
        kind::FORMATION => PeerMessage::Formation(input.rest()),
        unknown => return Err(FrameError { at: 12, problem: Problem::UnknownKind(unknown) }),
    })
}

fn bad_value(input: &Reader, what: &'static str, value: u8) -> FrameError {
    input.error(Problem::BadValue { what, value: u64::from(value) })
}

fn get_raft(input: &mut Reader, kind: u16) -> Decoded<Message> {
    let term = input.term("term")?;
    Ok(match kind {
        kind::REQUEST_VOTE => Message::RequestVote(RequestVote {
            term,
            last_log: input.entry_id("last_log")?,
            pre_vote: input.bool("pre_vote")?,
            leader_transfer: input.bool("leader_transfer")?,
        }),
        kind::REQUEST_VOTE_REPLY => Message::RequestVoteReply(RequestVoteReply {
            term,
            vote_granted: input.bool("vote_granted")?,
            pre_vote: input.bool("pre_vote")?,
        }),
        kind::APPEND_ENTRIES_REPLY => {
            let outcome = match input.u8("outcome")? {
                0 => AppendOutcome::Accepted { match_index: input.index("match_index")? },
                1 => AppendOutcome::Rejected {
                    prev_log_index: input.index("prev_log_index")?,
                    hint: input.entry_id("hint")?,
                },
                other => return Err(bad_value(input, "outcome", other)),
            };
            Message::AppendEntriesReply(AppendEntriesReply { term, outcome })
        }
        kind::HEARTBEAT => Message::Heartbeat(Heartbeat {
            term,
            leader_commit: input.index("leader_commit")?,
            round: input.u64("round")?,
        }),
        kind::HEARTBEAT_REPLY => Message::HeartbeatReply(HeartbeatReply {
            term,
            round: input.u64("round")?,
            verified: input.index("verified")?,
        }),
        kind::INSTALL_SNAPSHOT => {
            Message::InstallSnapshot(InstallSnapshot { term, snapshot: input.snapshot_meta()? })
        }
        kind::INSTALL_SNAPSHOT_REPLY => Message::InstallSnapshotReply(InstallSnapshotReply {
            term,
            match_index: input.index("match_index")?,
        }),
        kind::TIMEOUT_NOW => Message::TimeoutNow(TimeoutNow { term }),
        kind::READ_INDEX => Message::ReadIndex(ReadIndex { term, id: input.u64("id")? }),
        kind::READ_INDEX_REPLY => Message::ReadIndexReply(ReadIndexReply {
            term,
            id: input.u64("id")?,
            index: input.option("index", |input| input.index("index"))?,
        }),
        unknown => return Err(FrameError { at: 12, problem: Problem::UnknownKind(unknown) }),
    })
}

/// Term, kind and the length of the payload.
const ENTRY_BYTES_MIN: usize = 8 + 1 + 4;

fn get_append_entries(input: &mut Reader, log: Option<LogIdentity>) -> Decoded<AppendEntries> {
    let Some(log) = log else {
        return Err(input.error(Problem::NoLog));
    };
    let term = input.term("term")?;
    let prev_log = input.entry_id("prev_log")?;
    let prev_digest = input.digest("prev_digest")?;
    let leader_commit = input.index("leader_commit")?;
    let expected = input.digest("last digest")?;
    let mut index = prev_log.index;
    let mut digest = prev_digest;
    let entries = input.list("entries", ENTRY_BYTES_MIN, |input| {
        index = match index.0.checked_add(1) {
            Some(next) => Index(next),
            None => {
                let problem = Problem::BadValue { what: "prev_log index", value: index.0 };
                return Err(input.error(problem));
            }
        };
        let id = EntryId { index, term: Term(input.u64("entry term")?) };
        let kind = input.u8("entry kind")?;
        let Some(kind) = EntryKind::from_u8(kind) else {
            return Err(bad_value(input, "entry kind", kind));
        };
        let payload = input.bytes("entry payload")?;
        digest = log.chain(digest, id, kind, &payload);
        Ok(Entry { id, kind, digest, payload })
    })?;
    if digest != expected {
        return Err(input.error(Problem::BadDigest { expected, found: digest }));
    }
    Ok(AppendEntries { term, prev_log, prev_digest, entries, leader_commit })
}

fn get_snapshot(input: &mut Reader, kind: u16) -> Decoded<SnapshotMessage> {
    let transfer = input.u64("transfer")?;
    Ok(match kind {
        kind::SNAPSHOT_OFFER => SnapshotMessage::Offer {
            transfer,
            term: input.term("term")?,
            snapshot: input.snapshot_meta()?,
            blobs: input.list("blobs", 24, Reader::blob)?,
        },
        kind::SNAPSHOT_HAVE => {
            let bytes = input.list("blob positions", 8, |input| input.u64("blob position"))?;
            SnapshotMessage::Have { transfer, bytes }
        }
        kind::SNAPSHOT_CHUNK => SnapshotMessage::Chunk {
            transfer,
            blob: input.u32("blob")?,
            offset: input.u64("offset")?,
            bytes: input.bytes("chunk")?,
        },
        kind::SNAPSHOT_ACK => SnapshotMessage::Ack {
            transfer,
            blob: input.u32("blob")?,
            offset: input.u64("offset")?,
        },
        kind::SNAPSHOT_ABORT => {
            SnapshotMessage::Abort { transfer, reason: input.string("reason")? }
        }
        unknown => return Err(FrameError { at: 12, problem: Problem::UnknownKind(unknown) }),
    })
}

fn get_handshake(input: &mut Reader, kind: u16) -> Decoded<HandshakeFrame> {
    Ok(match kind {
        kind::GREETING => HandshakeFrame::Greeting(get_greeting(input)?),
        kind::GREETING_REPLY => {
            let greeting = get_greeting(input)?;
            HandshakeFrame::GreetingReply { greeting, proof: get_proof(input)? }
        }
        kind::PROOF => HandshakeFrame::Proof(get_proof(input)?),
        kind::WELCOME => HandshakeFrame::Welcome,
        kind::REFUSED => {
            let reason = RefusedReason::from_code(input.u16("reason")?);
            HandshakeFrame::Refused(Refused { reason, text: input.string("text")?, by_peer: true })
        }
        unknown => return Err(FrameError { at: 12, problem: Problem::UnknownKind(unknown) }),
    })
}

fn get_greeting(input: &mut Reader) -> Decoded<Greeting> {
    let version_min = input.u16("version_min")?;
    let version_max = input.u16("version_max")?;
    let has_cluster = input.bool("cluster")?;
    let cluster = ClusterId(input.u64("cluster")?);
    let hello = Hello {
        version_min,
        version_max,
        cluster: has_cluster.then_some(cluster),
        node: input.node("node")?,
        address: input.string("address")?,
        epoch: input.u64("epoch")?,
        last_durable: input.entry_id("last_durable")?,
        epoch_seen: input.u64("epoch_seen")?,
    };
    let stream = match input.u8("stream")? {
        0 => Stream::Control,
        1 => Stream::Bulk,
        other => return Err(bad_value(input, "stream", other)),
    };
    let has_expected = input.bool("expects")?;
    let expects = input.node("expects")?;
    Ok(Greeting {
        hello,
        stream,
        expects: has_expected.then_some(expects),
        nonce: input.array("nonce")?,
        has_secret: input.bool("has_secret")?,
    })
}

fn get_proof(input: &mut Reader) -> Decoded<Option<[u8; 32]>> {
    let present = input.bool("proof")?;
    let proof = input.array("proof")?;
    Ok(present.then_some(proof))
}
