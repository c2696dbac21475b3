//! Numbers, names and lists as bytes: what the bodies of frames are made of. Little-endian throughout.

use bytes::{Buf, BufMut, Bytes, BytesMut};
use raft_core::{
    BlobId, Digest, EntryId, Incarnation, Index, Lease, Member, MemberId, Membership,
    MembershipStep, NodeId, SnapshotMeta, Term,
};

use super::codec::{FrameError, Problem};

/// Reads a frame's body from front to back. Every read is checked and names what it was for.
#[derive(Debug)]
pub(super) struct Reader {
    rest: Bytes,
    frame_bytes: usize,
}

type Read<T> = Result<T, FrameError>;

impl Reader {
    /// Reads `body`, the end of a frame of `frame_bytes` bytes.
    pub(super) const fn new(body: Bytes, frame_bytes: usize) -> Self {
        Self { rest: body, frame_bytes }
    }

    /// An error at the present position.
    pub(super) fn error(&self, problem: Problem) -> FrameError {
        FrameError { at: self.frame_bytes - self.rest.len(), problem }
    }

    pub(super) fn finish(&self) -> Read<()> {
        if self.rest.is_empty() {
            Ok(())
        } else {
            Err(self.error(Problem::TrailingBytes { bytes: self.rest.len() }))
        }
    }

    fn need(&self, bytes: usize, what: &'static str) -> Read<()> {
        if self.rest.len() < bytes {
            return Err(self.error(Problem::Truncated { what }));
        }
        Ok(())
    }

    pub(super) fn u8(&mut self, what: &'static str) -> Read<u8> {
        self.need(1, what)?;
        Ok(self.rest.get_u8())
    }

    pub(super) fn u16(&mut self, what: &'static str) -> Read<u16> {
        self.need(2, what)?;
        Ok(self.rest.get_u16_le())
    }

    pub(super) fn u32(&mut self, what: &'static str) -> Read<u32> {
        self.need(4, what)?;
        Ok(self.rest.get_u32_le())
    }

    pub(super) fn u64(&mut self, what: &'static str) -> Read<u64> {
        self.need(8, what)?;
        Ok(self.rest.get_u64_le())
    }

    pub(super) fn u128(&mut self, what: &'static str) -> Read<u128> {
        self.need(16, what)?;
        Ok(self.rest.get_u128_le())
    }

    pub(super) fn array<const N: usize>(&mut self, what: &'static str) -> Read<[u8; N]> {
        self.need(N, what)?;
        let mut array = [0; N];
        self.rest.copy_to_slice(&mut array);
        Ok(array)
    }

    pub(super) fn bool(&mut self, what: &'static str) -> Read<bool> {
        match self.u8(what)? {
            0 => Ok(false),
            1 => Ok(true),
            other => Err(self.error(Problem::BadValue { what, value: u64::from(other) })),
        }
    }

    pub(super) fn option<T>(
        &mut self,
        what: &'static str,
        read: impl FnOnce(&mut Self) -> Read<T>,
    ) -> Read<Option<T>> {
        if self.bool(what)? { read(self).map(Some) } else { Ok(None) }
    }

    /// A list. The count is believed only as far as the bytes that are there can hold items of at least
    /// `item_bytes_min`, so that no count allocates more than the frame that it came in.
    pub(super) fn list<T>(
        &mut self,
        what: &'static str,
        item_bytes_min: usize,
        mut read: impl FnMut(&mut Self) -> Read<T>,
    ) -> Read<Vec<T>> {
        let count = self.u32(what)?;
        let items = usize::try_from(count).unwrap_or(usize::MAX);
        if items > self.rest.len() / item_bytes_min {
            return Err(self.error(Problem::TooMany { what, count }));
        }
        let mut list = Vec::with_capacity(items);
        for _ in 0..items {
            list.push(read(self)?);
        }
        Ok(list)
    }

    /// A slice of the frame; nothing is copied.
    pub(super) fn bytes(&mut self, what: &'static str) -> Read<Bytes> {
        let len = usize::try_from(self.u32(what)?).unwrap_or(usize::MAX);
        self.need(len, what)?;
        Ok(self.rest.split_to(len))
    }

    /// Everything that is left.
    pub(super) fn rest(&mut self) -> Bytes {
        std::mem::take(&mut self.rest)
    }

    pub(super) fn string(&mut self, what: &'static str) -> Read<String> {
        let bytes = self.bytes(what)?;
        match std::str::from_utf8(&bytes) {
            Ok(text) => Ok(text.to_owned()),
            Err(_) => Err(self.error(Problem::NotUtf8 { what })),
        }
    }

    pub(super) fn term(&mut self, what: &'static str) -> Read<Term> {
        self.u64(what).map(Term)
    }

    pub(super) fn index(&mut self, what: &'static str) -> Read<Index> {
        self.u64(what).map(Index)
    }

    pub(super) fn entry_id(&mut self, what: &'static str) -> Read<EntryId> {
        let index = self.index(what)?;
        let term = self.term(what)?;
        Ok(EntryId { index, term })
    }

    pub(super) fn digest(&mut self, what: &'static str) -> Read<Digest> {
        self.u128(what).map(Digest)
    }

    pub(super) fn node(&mut self, what: &'static str) -> Read<NodeId> {
        let member = MemberId(self.u64(what)?);
        let incarnation = Incarnation(self.u128(what)?);
        Ok(NodeId { member, incarnation })
    }

    pub(super) fn blob(&mut self) -> Read<BlobId> {
        let digest = self.digest("blob digest")?;
        let len = self.u64("blob length")?;
        Ok(BlobId { digest, len })
    }

    fn membership(&mut self) -> Read<Membership> {
        let bytes = self.bytes("membership")?;
        match Membership::decode(&bytes) {
            Some((membership, context)) if context.is_empty() => Ok(membership),
            Some(_) | None => Err(self.error(Problem::BadMembership)),
        }
    }

    pub(super) fn snapshot_meta(&mut self) -> Read<SnapshotMeta> {
        let last_included = self.entry_id("last_included")?;
        let digest = self.digest("snapshot digest")?;
        let membership = self.membership()?;
        Ok(SnapshotMeta { last_included, digest, membership })
    }

    fn member(&mut self) -> Read<Member> {
        let auto_promote = self.bool("auto_promote")?;
        // Copied: it lives as long as the configuration, and must not keep a whole frame alive.
        let info = Bytes::copy_from_slice(&self.bytes("member info")?);
        Ok(Member { info, auto_promote })
    }

    pub(super) fn membership_step(&mut self) -> Read<MembershipStep> {
        Ok(match self.u8("membership step")? {
            0 => MembershipStep::AddLearner { node: self.node("node")?, member: self.member()? },
            1 => MembershipStep::Promote(self.node("node")?),
            2 => MembershipStep::Demote(self.node("node")?),
            3 => MembershipStep::Remove(self.node("node")?),
            4 => MembershipStep::Update { node: self.node("node")?, member: self.member()? },
            5 => MembershipStep::SetLease(self.option("lease", |input| {
                let length = std::time::Duration::from_micros(input.u64("lease length")?);
                let drift_ppm = input.u32("lease drift")?;
                Ok(Lease { length, drift_ppm })
            })?),
            other => {
                let value = u64::from(other);
                return Err(self.error(Problem::BadValue { what: "membership step", value }));
            }
        })
    }
}

/// Writes what [`Reader`] reads. Lengths beyond `u32` cannot be reached: `codec::encode` refuses a frame long
/// before, so they are only capped here.
pub(super) trait Put: BufMut {
    fn bool(&mut self, value: bool) {
        self.put_u8(u8::from(value));
    }

    fn count(&mut self, len: usize) {
        self.put_u32_le(u32::try_from(len).unwrap_or(u32::MAX));
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.count(bytes.len());
        self.put_slice(bytes);
    }

    fn entry_id(&mut self, id: EntryId) {
        self.put_u64_le(id.index.0);
        self.put_u64_le(id.term.0);
    }

    fn digest(&mut self, digest: Digest) {
        self.put_u128_le(digest.0);
    }

    fn node(&mut self, node: NodeId) {
        self.put_u64_le(node.member.0);
        self.put_u128_le(node.incarnation.0);
    }

    fn blob(&mut self, blob: BlobId) {
        self.digest(blob.digest);
        self.put_u64_le(blob.len);
    }

    fn snapshot_meta(&mut self, meta: &SnapshotMeta) {
        self.entry_id(meta.last_included);
        self.digest(meta.digest);
        self.bytes(&meta.membership.encode(&[]));
    }

    fn member(&mut self, member: &Member) {
        self.bool(member.auto_promote);
        self.bytes(&member.info);
    }

    fn membership_step(&mut self, step: &MembershipStep) {
        match step {
            MembershipStep::AddLearner { node, member } => {
                self.put_u8(0);
                self.node(*node);
                self.member(member);
            }
            MembershipStep::Promote(node) => {
                self.put_u8(1);
                self.node(*node);
            }
            MembershipStep::Demote(node) => {
                self.put_u8(2);
                self.node(*node);
            }
            MembershipStep::Remove(node) => {
                self.put_u8(3);
                self.node(*node);
            }
            MembershipStep::Update { node, member } => {
                self.put_u8(4);
                self.node(*node);
                self.member(member);
            }
            MembershipStep::SetLease(lease) => {
                self.put_u8(5);
                self.bool(lease.is_some());
                if let Some(lease) = lease {
                    let micros = u64::try_from(lease.length.as_micros()).unwrap_or(u64::MAX);
                    self.put_u64_le(micros);
                    self.put_u32_le(lease.drift_ppm);
                }
            }
        }
    }
}

impl Put for BytesMut {}
