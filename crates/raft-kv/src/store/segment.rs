//! The blobs of a snapshot: revision segments, leases, a head.
//!
//! A segment holds consecutive versions in the order of their revisions. All integers are LEB128 varints
//! unless drawn with a width; `bytes` is a length and that many bytes.
//!
//! ```text
//! segment:   "RKVS" | version u8 = 1 | entry …
//! entry:     main (first entry) or main - previous main | sub | flags u8 (bit 0: tombstone) | key bytes
//!            unless tombstone: mod main - create_revision | version | lease as u64 | value bytes
//! leases:    "RKVL" | version u8 = 1 | lease …, at most 65,536
//! lease:     id as u64 | seconds as u64 | renewals
//! head:      "RKVH" | version u8 = 5 | revision | compact_revision + 1 | logical size | segments | versions
//!            | lease blobs | leases | alarms | (type | member) … | target of a downgrade bytes, empty: none
//!            | auth blobs (version 3 ends before these) | quotas | (member | bytes) … (version 4 ends before these)
//! ```
//!
//! A snapshot is its segments, in order, its leases in order of id, its users and roles (drawn in `auth/encoding.rs`),
//! and the head. Which keys a lease has is said by
//! the keys. While no member has said how large the store may become, the head is of version 4, which every program reads:
//! only a cluster whose members all know version 5 gets there (decision 18). Blobs are named by their digest and checked by
//! whoever stores them, so there is no checksum here.

use std::collections::BTreeMap;

use bytes::BufMut;
use raft_core::SnapshotError;

use crate::proto::etcdserverpb::AlarmType;
use crate::store::lease::LeaseRecord;
use crate::store::notices::Notices;
use crate::store::version::{Key, Live, Revision, Version};

const SEGMENT_MAGIC: &[u8; 4] = b"RKVS";
const LEASES_MAGIC: &[u8; 4] = b"RKVL";
const HEAD_MAGIC: &[u8; 4] = b"RKVH";
const SEGMENT_VERSION: u8 = 1;
const LEASES_VERSION: u8 = 1;
const HEAD_VERSION: u8 = 5;
/// Of heads while no member has said how large the store may become.
const HEAD_VERSION_WITHOUT_QUOTAS: u8 = 4;
/// Of heads from before there were users.
const HEAD_VERSION_WITHOUT_AUTH: u8 = 3;
const TOMBSTONE: u8 = 1;

/// Where segments end: a function of their content, so that all members cut alike and a compaction changes
/// only the segments from which it takes something.
#[derive(Clone, Copy, Debug)]
pub(super) struct Cut {
    /// The bytes of a segment on average.
    pub(super) average: u64,
}

impl Cut {
    /// Whether a segment that holds `bytes`, its last version included, ends there.
    pub(super) fn is_after(self, version: &Version, bytes: u64) -> bool {
        if bytes < self.average / 4 {
            return false;
        }
        if bytes >= self.average / 4 * 7 {
            return true;
        }
        // A draw that the revision decides, with odds in proportion to the version's bytes.
        let Revision { main, sub } = version.revision();
        let mut seed = [0; 12];
        seed[..8].copy_from_slice(&main.to_le_bytes());
        seed[8..].copy_from_slice(&sub.to_le_bytes());
        xxhash_rust::xxh3::xxh3_64(&seed) % self.average < version.weight()
    }
}

/// Writes one segment.
#[derive(Debug, Default)]
pub(super) struct SegmentWriter {
    out: Vec<u8>,
    previous_main: i64,
    /// The weights of the versions inside.
    pub(super) bytes: u64,
    /// How many versions are inside.
    pub(super) versions: u64,
}

impl SegmentWriter {
    pub(super) fn push(&mut self, version: &Version) {
        if self.out.is_empty() {
            self.out.put_slice(SEGMENT_MAGIC);
            self.out.put_u8(SEGMENT_VERSION);
            self.previous_main = 0;
        }
        let Revision { main, sub } = version.revision();
        put_positive(&mut self.out, main - self.previous_main);
        self.previous_main = main;
        put_varint(&mut self.out, u64::from(sub));
        self.out.put_u8(if version.is_live() { 0 } else { TOMBSTONE });
        put_bytes(&mut self.out, version.key());
        if let Some(live) = version.live() {
            put_positive(&mut self.out, main - live.create_revision);
            put_positive(&mut self.out, live.version);
            put_varint(&mut self.out, live.lease.cast_unsigned());
            put_bytes(&mut self.out, live.value);
        }
        self.bytes += version.weight();
        self.versions += 1;
    }

    pub(super) fn content(&self) -> &[u8] {
        &self.out
    }

    /// Makes room for the next segment.
    pub(super) fn clear(&mut self) {
        self.out.clear();
        self.bytes = 0;
        self.versions = 0;
    }
}

/// Reads one segment: versions in strictly ascending order, each sound by itself.
pub(super) fn decode_segment(content: &[u8]) -> Result<Vec<Version>, SnapshotError> {
    let mut input = Input::new(content, SEGMENT_MAGIC, SEGMENT_VERSION, "segment")?;
    let mut versions = Vec::new();
    let mut previous = Revision::ZERO;
    while !input.rest.is_empty() {
        let version = decode_version(&mut input, previous.main)?;
        if version.revision() <= previous || version.revision().main == 0 {
            return Err(undecodable("a segment's revisions do not ascend"));
        }
        previous = version.revision();
        versions.push(version);
    }
    Ok(versions)
}

fn decode_version(input: &mut Input<'_>, previous_main: i64) -> Result<Version, SnapshotError> {
    let main = previous_main
        .checked_add(input.positive()?)
        .ok_or_else(|| undecodable("a revision is too large"))?;
    let sub =
        u32::try_from(input.varint()?).map_err(|_| undecodable("a sub-revision is too large"))?;
    let flags = input.byte()?;
    let key = input.bytes()?;
    if key.is_empty() {
        return Err(undecodable("a key is empty"));
    }
    let live = match flags {
        TOMBSTONE => None,
        0 => {
            let create_revision = main - input.positive()?;
            let version = input.positive()?;
            let lease = input.varint()?.cast_signed();
            let value = input.bytes()?;
            if create_revision < 1 || version < 1 {
                return Err(undecodable("a version has impossible numbers"));
            }
            Some(Live { value, create_revision, version, lease })
        }
        other => return Err(undecodable(&format!("unknown flags {other:#04x}"))),
    };
    Ok(Version::new(Revision { main, sub }, Key::new(key), live))
}

/// The most leases of one blob.
pub(super) const BLOB_LEASES_MAX: usize = 1 << 16;

/// Writes one blob of leases.
pub(super) fn encode_leases(leases: &[LeaseRecord]) -> Vec<u8> {
    let mut out = Vec::new();
    out.put_slice(LEASES_MAGIC);
    out.put_u8(LEASES_VERSION);
    for LeaseRecord { id, ttl, renewals } in leases {
        put_varint(&mut out, id.cast_unsigned());
        put_varint(&mut out, ttl.cast_unsigned());
        put_varint(&mut out, *renewals);
    }
    out
}

/// Reads one blob of leases.
pub(super) fn decode_leases(content: &[u8]) -> Result<Vec<LeaseRecord>, SnapshotError> {
    let mut input = Input::new(content, LEASES_MAGIC, LEASES_VERSION, "list of leases")?;
    let mut leases = Vec::new();
    while !input.rest.is_empty() {
        leases.push(LeaseRecord {
            id: input.varint()?.cast_signed(),
            ttl: input.varint()?.cast_signed(),
            renewals: input.varint()?,
        });
    }
    Ok(leases)
}

/// The last blob of a snapshot.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Head {
    pub(super) revision: i64,
    pub(super) compact_revision: i64,
    pub(super) logical_size: u64,
    /// How many segments come before.
    pub(super) segments: u64,
    /// How many versions they hold together.
    pub(super) versions: u64,
    /// How many blobs of leases come after them.
    pub(super) lease_blobs: u64,
    /// How many leases those hold together.
    pub(super) leases: u64,
    pub(super) notices: Notices,
    /// How many blobs of users and roles come after those of leases.
    pub(super) auth_blobs: u64,
}

impl Head {
    pub(super) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::new();
        out.put_slice(HEAD_MAGIC);
        let has_quotas = !self.notices.quotas.is_empty();
        out.put_u8(if has_quotas { HEAD_VERSION } else { HEAD_VERSION_WITHOUT_QUOTAS });
        put_positive(&mut out, self.revision);
        put_positive(&mut out, self.compact_revision + 1);
        put_varint(&mut out, self.logical_size);
        put_varint(&mut out, self.segments);
        put_varint(&mut out, self.versions);
        put_varint(&mut out, self.lease_blobs);
        put_varint(&mut out, self.leases);
        let Notices { alarms, downgrade, quotas } = &self.notices;
        put_varint(&mut out, u64::try_from(alarms.len()).unwrap_or(u64::MAX));
        for (kind, member) in alarms {
            put_positive(&mut out, i64::from(*kind));
            put_varint(&mut out, *member);
        }
        put_bytes(&mut out, downgrade.as_deref().unwrap_or_default().as_bytes());
        put_varint(&mut out, self.auth_blobs);
        if has_quotas {
            put_varint(&mut out, u64::try_from(quotas.len()).unwrap_or(u64::MAX));
            for (member, bytes) in quotas {
                put_varint(&mut out, *member);
                put_varint(&mut out, *bytes);
            }
        }
        out
    }

    pub(super) fn decode(content: &[u8]) -> Result<Self, SnapshotError> {
        let version = match content.get(HEAD_MAGIC.len()) {
            Some(&old @ (HEAD_VERSION_WITHOUT_AUTH | HEAD_VERSION_WITHOUT_QUOTAS)) => old,
            _ => HEAD_VERSION,
        };
        let mut input = Input::new(content, HEAD_MAGIC, version, "head")?;
        let mut head = Self {
            revision: input.positive()?,
            compact_revision: input.positive()? - 1,
            logical_size: input.varint()?,
            segments: input.varint()?,
            versions: input.varint()?,
            lease_blobs: input.varint()?,
            leases: input.varint()?,
            notices: decode_notices(&mut input)?,
            auth_blobs: if version > HEAD_VERSION_WITHOUT_AUTH { input.varint()? } else { 0 },
        };
        if version > HEAD_VERSION_WITHOUT_QUOTAS {
            head.notices.quotas = decode_quotas(&mut input)?;
        }
        if !input.rest.is_empty() {
            return Err(undecodable("the head is longer than it should be"));
        }
        if head.revision < 1 || head.compact_revision > head.revision {
            return Err(undecodable("the head has impossible revisions"));
        }
        Ok(head)
    }
}

fn decode_notices(input: &mut Input<'_>) -> Result<Notices, SnapshotError> {
    let mut notices = Notices::default();
    for _ in 0..input.varint()? {
        let kind = i32::try_from(input.varint()?).unwrap_or(0);
        if AlarmType::try_from(kind).is_ok_and(|kind| kind != AlarmType::None) {
            notices.alarms.insert((kind, input.varint()?));
        } else {
            return Err(undecodable("an alarm is of an unknown kind"));
        }
    }
    let target = String::from_utf8(input.bytes()?.to_vec())
        .map_err(|_| undecodable("the version of a downgrade is no text"))?;
    notices.downgrade = Some(target).filter(|target| !target.is_empty());
    Ok(notices)
}

fn decode_quotas(input: &mut Input<'_>) -> Result<BTreeMap<u64, u64>, SnapshotError> {
    let mut quotas = BTreeMap::new();
    for _ in 0..input.varint()? {
        let (member, bytes) = (input.varint()?, input.varint()?);
        if bytes == 0 || quotas.last_key_value().is_some_and(|(last, _)| *last >= member) {
            return Err(undecodable("the quotas are not in order"));
        }
        quotas.insert(member, bytes);
    }
    if quotas.is_empty() {
        return Err(undecodable("the head has a version without need"));
    }
    Ok(quotas)
}

pub(crate) fn undecodable(what: &str) -> SnapshotError {
    SnapshotError::Undecodable(format!("key-value store: {what}"))
}

fn put_varint(out: &mut Vec<u8>, value: u64) {
    prost::encoding::encode_varint(value, out);
}

/// Our own state has no negative number where this is used.
fn put_positive(out: &mut Vec<u8>, value: i64) {
    debug_assert!(value >= 0, "{value} is written as a positive number");
    put_varint(out, value.cast_unsigned());
}

fn put_bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    put_varint(out, u64::try_from(bytes.len()).unwrap_or(u64::MAX));
    out.put_slice(bytes);
}

/// What comes after the first bytes of a blob, which say what it is and in which version.
pub(crate) fn check_magic<'a>(
    content: &'a [u8],
    magic: &[u8; 4],
    known: u8,
    what: &str,
) -> Result<&'a [u8], SnapshotError> {
    let rest =
        content.strip_prefix(magic).ok_or_else(|| undecodable(&format!("a blob is no {what}")))?;
    match rest.split_first() {
        Some((&version, rest)) if version == known => Ok(rest),
        Some((version, _)) => Err(undecodable(&format!(
            "the {what} has format version {version}; this program knows {known}"
        ))),
        None => Err(undecodable(&format!("the {what} ends early"))),
    }
}

/// What is left of a blob to read. No read goes beyond it, and nothing is reserved for what is not there.
struct Input<'a> {
    rest: &'a [u8],
}

impl<'a> Input<'a> {
    fn new(
        content: &'a [u8],
        magic: &[u8; 4],
        known: u8,
        what: &str,
    ) -> Result<Self, SnapshotError> {
        Ok(Self { rest: check_magic(content, magic, known, what)? })
    }

    fn byte(&mut self) -> Result<u8, SnapshotError> {
        let (&byte, rest) =
            self.rest.split_first().ok_or_else(|| undecodable("a blob ends early"))?;
        self.rest = rest;
        Ok(byte)
    }

    fn varint(&mut self) -> Result<u64, SnapshotError> {
        prost::encoding::decode_varint(&mut self.rest)
            .map_err(|_| undecodable("a blob ends within a number"))
    }

    /// A revision or a count: none comes near what 62 bits hold, so that adding to it is safe.
    fn positive(&mut self) -> Result<i64, SnapshotError> {
        match i64::try_from(self.varint()?) {
            Ok(number) if number <= i64::MAX >> 1 => Ok(number),
            Ok(_) | Err(_) => Err(undecodable("a number is too large")),
        }
    }

    fn bytes(&mut self) -> Result<&'a [u8], SnapshotError> {
        let len = usize::try_from(self.varint()?).unwrap_or(usize::MAX);
        let (bytes, rest) =
            self.rest.split_at_checked(len).ok_or_else(|| undecodable("a blob ends early"))?;
        self.rest = rest;
        Ok(bytes)
    }
}
