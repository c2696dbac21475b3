//! How a connection begins: who speaks which versions, who is who, and whether both know the secret. No IO.
//!
//! ```text
//! initiator (dials)                        responder (accepts)
//!   preamble, Greeting            ───▶
//!                                 ◀───      preamble, GreetingReply + proof
//!   Proof                         ───▶
//!                                 ◀───      Welcome
//! ```
//!
//! Either may send Refused instead and close. Who may connect is decided only after the proofs, so that nobody
//! is told that it was removed by someone who does not know the secret. A proof is an HMAC-SHA-256 under the
//! secret over a label of the role and both greetings, which hold the versions, identities and fresh nonces.
//! It proves who was there at the beginning; it does not protect the frames that follow (docs/wire-format.md).

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use bytes::{Buf, BufMut, Bytes, BytesMut};
use hmac::{Hmac, KeyInit, Mac};
use raft_core::{ClusterId, GroupId, Membership, NodeId};
use sha2::Sha256;

use super::body;
use super::codec::{self, Content, FrameError, HANDSHAKE_FRAME_BYTES_MAX, Problem, Sender};
use crate::io::Stream;
use crate::message::Hello;

/// The first bytes of a connection in either direction. The first is neither ASCII nor the type of a TLS record.
pub const MAGIC: [u8; 4] = [0xB7, b'R', b'R', b'P'];
/// Magic, oldest and newest version.
pub const PREAMBLE_BYTES: usize = 8;
/// The oldest protocol version spoken here.
pub const PROTOCOL_MIN: u16 = 1;
/// The newest protocol version spoken here.
pub const PROTOCOL_MAX: u16 = 1;
/// Bytes of a [`Secret`] at least.
pub const SECRET_BYTES_MIN: usize = 16;
/// Bytes of a refusal's text at most.
const TEXT_BYTES_MAX: usize = 1024;

/// What all members know and nobody else.
#[derive(Clone, PartialEq, Eq)]
pub struct Secret(Vec<u8>);

impl Secret {
    /// A secret of at least [`SECRET_BYTES_MIN`] bytes; `None` when it is shorter.
    #[must_use]
    pub fn new(bytes: &[u8]) -> Option<Self> {
        (bytes.len() >= SECRET_BYTES_MIN).then(|| Self(bytes.to_vec()))
    }

    fn mac(&self, label: &[u8], transcript: &[u8]) -> Option<Hmac<Sha256>> {
        // HMAC takes keys of every length.
        let mut mac = Hmac::<Sha256>::new_from_slice(&self.0).ok()?;
        mac.update(label);
        mac.update(transcript);
        Some(mac)
    }

    fn prove(&self, label: &[u8], transcript: &[u8]) -> Option<Proof> {
        Some(self.mac(label, transcript)?.finalize().into_bytes().into())
    }

    fn verify(&self, label: &[u8], transcript: &[u8], proof: &Proof) -> bool {
        self.mac(label, transcript).is_some_and(|mac| mac.verify_slice(proof).is_ok())
    }
}

impl fmt::Debug for Secret {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Secret(..)")
    }
}

type Proof = [u8; 32];

const LABEL_INITIATOR: &[u8] = b"rusty-raft/1 initiator";
const LABEL_RESPONDER: &[u8] = b"rusty-raft/1 responder";

/// What both ends say first.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Greeting {
    /// Who speaks.
    pub hello: Hello,
    /// What the connection is for; the responder repeats it.
    pub stream: Stream,
    /// Whom the speaker takes the other for, if it knows.
    pub expects: Option<NodeId>,
    /// Fresh random bytes.
    pub nonce: [u8; 32],
    /// Whether the speaker has a secret and demands that the other proves to know it.
    pub has_secret: bool,
}

/// The frames of the handshake.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum HandshakeFrame {
    /// The initiator's first.
    Greeting(Greeting),
    /// The responder's first.
    GreetingReply {
        /// Who answers.
        greeting: Greeting,
        /// That the responder knows the secret, if it has one.
        proof: Option<[u8; 32]>,
    },
    /// That the initiator knows the secret, if it has one.
    Proof(Option<[u8; 32]>),
    /// The responder takes messages from now on.
    Welcome,
    /// The speaker closes the connection.
    Refused(Refused),
}

/// Why a connection does not come about. The codes are on the wire.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum RefusedReason {
    /// No common version.
    Version,
    /// The two belong to different clusters or groups.
    OtherCluster,
    /// The responder is not the node that the initiator expects.
    OtherNode,
    /// The member is known with another data directory.
    OtherIncarnation,
    /// The node was removed from the cluster and may not return.
    Removed,
    /// One of the two has no secret, or not the same one.
    Secret,
    /// The two are one node.
    Myself,
    /// The responder has too many connections.
    TooManyConnections,
    /// The bytes do not follow the protocol.
    Malformed,
    /// A reason that a newer version has.
    Other(u16),
}

impl RefusedReason {
    /// The number on the wire.
    #[must_use]
    pub const fn code(self) -> u16 {
        match self {
            Self::Version => 1,
            Self::OtherCluster => 2,
            Self::OtherNode => 3,
            Self::OtherIncarnation => 4,
            Self::Removed => 5,
            Self::Secret => 6,
            Self::Myself => 7,
            Self::TooManyConnections => 8,
            Self::Malformed => 9,
            Self::Other(code) => code,
        }
    }

    /// The reason with this number.
    #[must_use]
    pub const fn from_code(code: u16) -> Self {
        match code {
            1 => Self::Version,
            2 => Self::OtherCluster,
            3 => Self::OtherNode,
            4 => Self::OtherIncarnation,
            5 => Self::Removed,
            6 => Self::Secret,
            7 => Self::Myself,
            8 => Self::TooManyConnections,
            9 => Self::Malformed,
            other => Self::Other(other),
        }
    }
}

/// A refusal, by either end.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Refused {
    /// The reason.
    pub reason: RefusedReason,
    /// The reason in words.
    pub text: String,
    /// Whether the other end refused this one; else this one refused the other.
    pub by_peer: bool,
}

impl Refused {
    pub(super) fn new(reason: RefusedReason, mut text: String) -> Self {
        while text.len() > TEXT_BYTES_MAX {
            text.pop();
        }
        Self { reason, text, by_peer: false }
    }
}

impl fmt::Display for Refused {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.by_peer {
            // Somebody else's text: it must not write lines of its own into the log.
            write!(f, "the peer refuses: {}", self.text.escape_debug())
        } else {
            write!(f, "{}", self.text)
        }
    }
}

impl std::error::Error for Refused {}

impl From<FrameError> for Refused {
    fn from(error: FrameError) -> Self {
        Self::new(RefusedReason::Malformed, format!("malformed handshake: {error}"))
    }
}

/// What a node knows when somebody connects.
#[derive(Clone, Debug)]
pub struct Facts {
    /// Who it is itself.
    pub node: NodeId,
    /// Its cluster; `None` before formation.
    pub cluster: Option<ClusterId>,
    /// The members' data directories.
    pub members: BTreeSet<NodeId>,
    /// Nodes that may never come back.
    pub removed: BTreeSet<NodeId>,
    /// The highest epochs known of others.
    pub epochs_seen: BTreeMap<NodeId, u64>,
}

impl Facts {
    pub(super) fn epoch_seen(&self, peer: NodeId) -> u64 {
        self.epochs_seen.get(&peer).copied().unwrap_or(0)
    }

    /// Takes in who belongs to the cluster: the members of the configuration in force and of the *committed* one.
    /// Who never again: those that the committed one has removed and neither contains. What is not committed may
    /// still be undone, and a node on its way out of a joint configuration still belongs to it.
    pub fn set_membership(&mut self, in_force: &Membership, committed: &Membership) {
        let members = in_force.members().chain(committed.members());
        self.members = members.map(|(node, _)| node).collect();
        let removed = committed
            .removed()
            .iter()
            .filter(|node| !committed.contains(**node) && !in_force.contains(**node));
        self.removed = removed.copied().collect();
    }

    /// Whether messages may be exchanged with the node that says `hello`; `taken_for` is what that one takes this
    /// node for, `expects` what this one takes it for.
    ///
    /// # Errors
    /// Why not.
    pub fn admit(
        &self,
        hello: &Hello,
        taken_for: Option<NodeId>,
        expects: Option<NodeId>,
    ) -> Result<(), Refused> {
        if let (Some(ours), Some(theirs)) = (self.cluster, hello.cluster)
            && ours != theirs
        {
            return Err(Refused::new(
                RefusedReason::OtherCluster,
                format!(
                    "{} belongs to cluster {theirs}, {} to cluster {ours}",
                    hello.node, self.node
                ),
            ));
        }
        if self.removed.contains(&hello.node) {
            return Err(Refused::new(
                RefusedReason::Removed,
                format!("{} was removed from the cluster and may not return", hello.node),
            ));
        }
        for (found, expected) in [(self.node, taken_for), (hello.node, expects)] {
            if let Some(expected) = expected
                && found != expected
            {
                return Err(Refused::new(
                    RefusedReason::OtherNode,
                    format!(
                        "member {} with data directory {} answers at an address of member {} with data \
                         directory {}",
                        found.member, found.incarnation, expected.member, expected.incarnation
                    ),
                ));
            }
        }
        // Before formation an empty data directory asks who is there: then it may be any.
        if hello.cluster.is_some()
            && !self.members.contains(&hello.node)
            && let Some(known) = self.members.iter().find(|known| known.member == hello.node.member)
        {
            let known = known.incarnation;
            return Err(Refused::new(
                RefusedReason::OtherIncarnation,
                format!(
                    "member {} has data directory {known} in this cluster, not {}",
                    hello.node.member, hello.node.incarnation
                ),
            ));
        }
        Ok(())
    }
}

/// The handshake is over: messages may follow.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Established {
    /// What the other said of itself.
    pub hello: Hello,
    /// What the connection is for.
    pub stream: Stream,
    /// The version that both speak.
    pub version: u16,
}

fn put_preamble(out: &mut BytesMut) {
    out.put_slice(&MAGIC);
    out.put_u16_le(PROTOCOL_MIN);
    out.put_u16_le(PROTOCOL_MAX);
}

/// Takes the other's preamble off `input`; `None` until all of it is there.
fn get_preamble(input: &mut BytesMut) -> Result<Option<(u16, u16)>, Refused> {
    let magic = input.len().min(MAGIC.len());
    if input[..magic] != MAGIC[..magic] {
        let text = "the other end does not speak the peer protocol".to_owned();
        return Err(Refused::new(RefusedReason::Malformed, text));
    }
    if input.len() < PREAMBLE_BYTES {
        return Ok(None);
    }
    input.advance(MAGIC.len());
    Ok(Some((input.get_u16_le(), input.get_u16_le())))
}

/// The newest version that both ends speak.
fn negotiate((min, max): (u16, u16)) -> Result<u16, Refused> {
    let version = max.min(PROTOCOL_MAX);
    if version < min.max(PROTOCOL_MIN) {
        let text = format!(
            "one end speaks versions {PROTOCOL_MIN} to {PROTOCOL_MAX} of the peer protocol, the other {min} \
             to {max}"
        );
        return Err(Refused::new(RefusedReason::Version, text));
    }
    Ok(version)
}

/// Takes one frame of the handshake off `input`; `None` until all of it is there.
fn get_frame(input: &mut BytesMut, group: GroupId) -> Result<Option<HandshakeFrame>, Refused> {
    let Some(bytes) = codec::frame_len(input, HANDSHAKE_FRAME_BYTES_MAX)? else {
        return Ok(None);
    };
    if input.len() < bytes {
        return Ok(None);
    }
    let frame: Bytes = input.split_to(bytes).freeze();
    let frame = codec::decode(&frame, None)?;
    match frame.content {
        Content::Handshake(HandshakeFrame::Refused(refused)) => Err(refused),
        Content::Handshake(_) if frame.sender.group != group => Err(Refused::new(
            RefusedReason::OtherCluster,
            format!("group {} instead of {}", frame.sender.group.0, group.0),
        )),
        Content::Handshake(content) => Ok(Some(content)),
        Content::Message(_) => Err(out_of_place()),
    }
}

fn out_of_place() -> Refused {
    Refused::from(FrameError { at: 12, problem: Problem::OutOfPlace })
}

fn put_frame(out: &mut BytesMut, sender: Sender, content: &HandshakeFrame) -> Result<(), Refused> {
    codec::encode_handshake(out, sender, content)
        .map_err(|error| Refused::new(RefusedReason::Malformed, error.to_string()))
}

/// What both proofs are over.
fn transcript(initiator: &Greeting, responder: &Greeting) -> BytesMut {
    let mut transcript = BytesMut::new();
    body::put_greeting(&mut transcript, initiator);
    body::put_greeting(&mut transcript, responder);
    transcript
}

/// Checks what can be checked before any proof.
fn check_greeting(
    facts: &Facts,
    peer: &Greeting,
    versions: (u16, u16),
    secret: Option<&Secret>,
) -> Result<(), Refused> {
    if (peer.hello.version_min, peer.hello.version_max) != versions {
        let text = "the greeting's versions are not the preamble's".to_owned();
        return Err(Refused::new(RefusedReason::Malformed, text));
    }
    if peer.hello.node == facts.node {
        let text = format!("{} has connected to itself", facts.node);
        return Err(Refused::new(RefusedReason::Myself, text));
    }
    match (secret.is_some(), peer.has_secret) {
        (true, true) | (false, false) => Ok(()),
        (true, false) | (false, true) => Err(Refused::new(
            RefusedReason::Secret,
            "one end has a cluster_secret and the other has none".to_owned(),
        )),
    }
}

fn check_proof(
    secret: Option<&Secret>,
    label: &[u8],
    transcript: &[u8],
    proof: Option<&Proof>,
) -> Result<(), Refused> {
    let Some(secret) = secret else { return Ok(()) };
    if proof.is_some_and(|proof| secret.verify(label, transcript, proof)) {
        return Ok(());
    }
    Err(Refused::new(
        RefusedReason::Secret,
        "the two ends have different cluster_secrets".to_owned(),
    ))
}

/// The end that dialled.
#[derive(Debug)]
pub struct Initiator {
    secret: Option<Secret>,
    sender: Sender,
    ours: Greeting,
    versions: Option<(u16, u16)>,
    /// The responder's greeting, once its proof was right and ours is on its way.
    theirs: Option<Greeting>,
}

impl Initiator {
    /// Begins: `out` gets what is to be sent first.
    ///
    /// # Errors
    /// When the hello does not fit into a frame.
    pub fn new(
        secret: Option<Secret>,
        sender: Sender,
        mut ours: Greeting,
        out: &mut BytesMut,
    ) -> Result<Self, Refused> {
        ours.has_secret = secret.is_some();
        put_preamble(out);
        put_frame(out, sender, &HandshakeFrame::Greeting(ours.clone()))?;
        Ok(Self { secret, sender, ours, versions: None, theirs: None })
    }

    /// Who answers, once that is known and nothing after the greeting was sent.
    #[must_use]
    pub fn peer(&self) -> Option<NodeId> {
        self.theirs.as_ref().map(|theirs| theirs.hello.node)
    }

    /// Takes what has arrived off `input` and appends answers to `out`, which are to be sent in any case, also
    /// after an error. What is left in `input` after the end are the first messages.
    ///
    /// # Errors
    /// When either end refuses: the connection is to be closed.
    pub fn receive(
        &mut self,
        facts: &Facts,
        input: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Option<Established>, Refused> {
        let result = self.advance(facts, input, out);
        tell_refusal(self.sender, &result, out);
        result
    }

    fn advance(
        &mut self,
        facts: &Facts,
        input: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Option<Established>, Refused> {
        loop {
            let Some(versions) = self.versions else {
                self.versions = get_preamble(input)?;
                if self.versions.is_none() {
                    return Ok(None);
                }
                continue;
            };
            let version = negotiate(versions)?;
            let Some(frame) = get_frame(input, self.sender.group)? else {
                return Ok(None);
            };
            match (frame, self.theirs.take()) {
                (HandshakeFrame::GreetingReply { greeting, proof }, None) => {
                    check_greeting(facts, &greeting, versions, self.secret.as_ref())?;
                    let transcript = transcript(&self.ours, &greeting);
                    let secret = self.secret.as_ref();
                    check_proof(secret, LABEL_RESPONDER, &transcript, proof.as_ref())?;
                    facts.admit(&greeting.hello, greeting.expects, self.ours.expects)?;
                    let proof = secret.and_then(|it| it.prove(LABEL_INITIATOR, &transcript));
                    put_frame(out, self.sender, &HandshakeFrame::Proof(proof))?;
                    self.theirs = Some(greeting);
                }
                (HandshakeFrame::Welcome, Some(greeting)) => {
                    let hello = greeting.hello;
                    return Ok(Some(Established { hello, stream: self.ours.stream, version }));
                }
                (_, _) => return Err(out_of_place()),
            }
        }
    }
}

/// The end that accepted.
#[derive(Debug)]
pub struct Responder {
    secret: Option<Secret>,
    sender: Sender,
    nonce: [u8; 32],
    versions: Option<(u16, u16)>,
    /// The initiator's greeting and what both proofs are over, once ours is on its way.
    theirs: Option<(Greeting, BytesMut)>,
}

impl Responder {
    /// Waits for the initiator to begin.
    #[must_use]
    pub const fn new(secret: Option<Secret>, sender: Sender, nonce: [u8; 32]) -> Self {
        Self { secret, sender, nonce, versions: None, theirs: None }
    }

    /// As [`Initiator::receive`]; `hello` is what this node says of itself to the given one.
    ///
    /// # Errors
    /// As [`Initiator::receive`].
    pub fn receive(
        &mut self,
        facts: &Facts,
        hello: impl Fn(NodeId) -> Hello,
        input: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Option<Established>, Refused> {
        let result = self.advance(facts, hello, input, out);
        tell_refusal(self.sender, &result, out);
        result
    }

    fn advance(
        &mut self,
        facts: &Facts,
        hello: impl Fn(NodeId) -> Hello,
        input: &mut BytesMut,
        out: &mut BytesMut,
    ) -> Result<Option<Established>, Refused> {
        loop {
            let Some(versions) = self.versions else {
                self.versions = get_preamble(input)?;
                if self.versions.is_none() {
                    return Ok(None);
                }
                // Before any refusal, so that the other end can read it.
                put_preamble(out);
                continue;
            };
            let version = negotiate(versions)?;
            let Some(frame) = get_frame(input, self.sender.group)? else {
                return Ok(None);
            };
            match (frame, self.theirs.take()) {
                (HandshakeFrame::Greeting(theirs), None) => {
                    check_greeting(facts, &theirs, versions, self.secret.as_ref())?;
                    let ours = Greeting {
                        hello: hello(theirs.hello.node),
                        stream: theirs.stream,
                        expects: None,
                        nonce: self.nonce,
                        has_secret: self.secret.is_some(),
                    };
                    let transcript = transcript(&theirs, &ours);
                    let secret = self.secret.as_ref();
                    let proof = secret.and_then(|it| it.prove(LABEL_RESPONDER, &transcript));
                    let reply = HandshakeFrame::GreetingReply { greeting: ours, proof };
                    put_frame(out, self.sender, &reply)?;
                    self.theirs = Some((theirs, transcript));
                }
                (HandshakeFrame::Proof(proof), Some((theirs, transcript))) => {
                    let secret = self.secret.as_ref();
                    check_proof(secret, LABEL_INITIATOR, &transcript, proof.as_ref())?;
                    facts.admit(&theirs.hello, theirs.expects, None)?;
                    put_frame(out, self.sender, &HandshakeFrame::Welcome)?;
                    let Greeting { hello, stream, .. } = theirs;
                    return Ok(Some(Established { hello, stream, version }));
                }
                (_, _) => return Err(out_of_place()),
            }
        }
    }
}

/// Tells the other end why this one refuses.
fn tell_refusal(sender: Sender, result: &Result<Option<Established>, Refused>, out: &mut BytesMut) {
    if let Err(refused) = result
        && !refused.by_peer
    {
        // Its text is short: it fits.
        put_frame(out, sender, &HandshakeFrame::Refused(refused.clone())).ok();
    }
}

/// What to send to somebody whose connection is not even looked at.
pub(super) fn refuse_at_once(sender: Sender, reason: RefusedReason, text: &str) -> BytesMut {
    let mut out = BytesMut::new();
    put_preamble(&mut out);
    let refused = Refused::new(reason, text.to_owned());
    tell_refusal(sender, &Err(refused), &mut out);
    out
}
