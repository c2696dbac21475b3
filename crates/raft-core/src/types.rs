//! The words everything else is made of: identities, positions, time, entries.

use alloc::vec::Vec;
use core::fmt;
use core::time::Duration;

use bytes::Bytes;

use crate::digest::Digest;
use crate::mutant;

/// A member's permanent number: random, never reused, zero never valid.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct MemberId(pub u64);

impl MemberId {
    /// A new member's number from random bits; see [`ClusterId::drawn`].
    #[must_use]
    pub const fn drawn(random: u64) -> Self {
        Self(random | DIGIT)
    }
}

/// A data directory's random number, minted when the directory is created.
///
/// A wiped member that comes back under its old [`MemberId`] has a new incarnation, so that it is
/// never taken for the one whose promises were lost.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Incarnation(pub u128);

/// Who makes promises: a member together with its data directory.
///
/// Votes, progress, acknowledgements and configurations are keyed by this pair.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct NodeId {
    /// The member.
    pub member: MemberId,
    /// The data directory that it runs on.
    pub incarnation: Incarnation,
}

impl NodeId {
    /// A node from its two numbers.
    #[must_use]
    pub const fn new(member: u64, incarnation: u128) -> Self {
        Self { member: MemberId(member), incarnation: Incarnation(incarnation) }
    }
}

impl fmt::Display for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl fmt::Debug for MemberId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl fmt::Display for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl fmt::Debug for Incarnation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// `n<member>` alone when the incarnation is zero (scripts), else with the incarnation's first digits.
impl fmt::Display for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "n{:x}", self.member.0)?;
        if self.incarnation.0 != 0 {
            write!(f, ".{:04x}", self.incarnation.0 >> 112)?;
        }
        Ok(())
    }
}

impl fmt::Debug for NodeId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A random number minted when a cluster forms; members of different clusters never talk.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ClusterId(pub u64);

/// Sees to it that the first of sixteen hexadecimal digits is not zero.
const DIGIT: u64 = 1 << 60;

impl ClusterId {
    /// A new cluster's number from random bits. All sixteen hexadecimal digits of it are there, because programs that
    /// show such numbers disagree on whether a shorter one is padded (`etcdctl member remove` does, with a space), and
    /// scripts that read what these show do not know.
    #[must_use]
    pub const fn drawn(random: u64) -> Self {
        Self(random | DIGIT)
    }
}

impl fmt::Display for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

impl fmt::Debug for ClusterId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:x}", self.0)
    }
}

/// One Raft group among those that share a log and connections. One group today: [`GroupId::FIRST`].
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct GroupId(pub u32);

impl GroupId {
    /// The only group of version 1.
    pub const FIRST: Self = Self(1);
}

/// A period with at most one leader (§5.1). Zero before the first election.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Term(pub u64);

impl Term {
    /// The following term.
    ///
    /// # Panics
    /// When 2^64 - 1 terms have passed.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }
}

impl fmt::Display for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Term {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "t{}", self.0)
    }
}

/// A position in the log. The first entry has index 1; zero is the position before it.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Index(pub u64);

impl Index {
    /// The position before the first entry.
    pub const ZERO: Self = Self(0);

    /// The following position.
    #[must_use]
    pub const fn next(self) -> Self {
        Self(self.0 + 1)
    }

    /// The preceding position; zero stays zero.
    #[must_use]
    pub const fn prev(self) -> Self {
        Self(self.0.saturating_sub(1))
    }

    /// The position `count` entries further.
    #[must_use]
    pub const fn plus(self, count: u64) -> Self {
        Self(self.0 + count)
    }

    /// How many entries lie after `other` up to here; zero when there are none.
    #[must_use]
    pub const fn since(self, other: Self) -> u64 {
        self.0.saturating_sub(other.0)
    }
}

impl fmt::Display for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

impl fmt::Debug for Index {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.0)
    }
}

/// Names an entry for ever: two logs that hold an entry with this id are equal up to it
/// (Log Matching, §5.3). Written `index:term`.
///
/// The *derived* order compares terms first, as the up-to-date check of §5.4.1 does.
#[derive(Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct EntryId {
    /// Position in the log.
    pub index: Index,
    /// Term of the leader that created the entry.
    pub term: Term,
}

impl EntryId {
    /// The position before the first entry.
    pub const ZERO: Self = Self { index: Index::ZERO, term: Term(0) };

    /// An id from its two numbers.
    #[must_use]
    pub const fn new(index: u64, term: u64) -> Self {
        Self { index: Index(index), term: Term(term) }
    }

    /// Whether a log that ends here is at least as up-to-date as one that ends at `other`: the later
    /// last term wins, and the longer log among equals (§5.4.1).
    #[must_use]
    pub fn is_up_to_date_with(self, other: Self) -> bool {
        if mutant::is_active(7) {
            return (self.index, self.term) >= (other.index, other.term);
        }
        (self.term, self.index) >= (other.term, other.index)
    }
}

impl fmt::Display for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.index, self.term)
    }
}

impl fmt::Debug for EntryId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

/// A point on a member's own monotonic clock, in microseconds since an origin of its own.
///
/// Never compared between members. The production clock is `CLOCK_BOOTTIME`, which goes on while the
/// machine sleeps.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Time(u64);

impl Time {
    /// The clock's origin.
    pub const ZERO: Self = Self(0);
    /// Later than every reachable point.
    pub const MAX: Self = Self(u64::MAX);

    /// The point `micros` microseconds after the origin.
    #[must_use]
    pub const fn from_micros(micros: u64) -> Self {
        Self(micros)
    }

    /// Microseconds since the origin.
    #[must_use]
    pub const fn as_micros(self) -> u64 {
        self.0
    }

    /// The point `duration` later, capped at [`Time::MAX`].
    #[must_use]
    pub fn after(self, duration: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(duration.as_micros()).unwrap_or(u64::MAX)))
    }

    /// The time passed since `earlier`; zero when `earlier` lies in the future.
    #[must_use]
    pub const fn since(self, earlier: Self) -> Duration {
        Duration::from_micros(self.0.saturating_sub(earlier.0))
    }
}

impl fmt::Debug for Time {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}us", self.0)
    }
}

/// What an entry is for. The numbers are the ones on disk and on the wire.
///
/// A kind that a node does not know stops it with a message; it is never skipped.
#[derive(Clone, Copy, PartialEq, Eq, Debug, PartialOrd, Ord, Hash)]
#[repr(u8)]
pub enum EntryKind {
    /// The no-op that a new leader appends so that it can commit (§8).
    Empty = 0,
    /// A command for the state machine; opaque to the protocol.
    Command = 1,
    /// A new configuration of the cluster (§6), encoded by [`Membership`](crate::Membership).
    Membership = 2,
}

impl EntryKind {
    /// The kind with this number, if this version knows it.
    #[must_use]
    pub const fn from_u8(kind: u8) -> Option<Self> {
        match kind {
            0 => Some(Self::Empty),
            1 => Some(Self::Command),
            2 => Some(Self::Membership),
            _ => None,
        }
    }

    /// The kind's number on disk and on the wire.
    #[must_use]
    pub const fn as_u8(self) -> u8 {
        match self {
            Self::Empty => 0,
            Self::Command => 1,
            Self::Membership => 2,
        }
    }
}

/// One entry of the log (§5.3). Cloning shares the payload.
#[derive(Clone, PartialEq, Eq)]
pub struct Entry {
    /// Position and term.
    pub id: EntryId,
    /// What the payload is.
    pub kind: EntryKind,
    /// The chain over this entry and everything before it: see [`Digest`].
    pub digest: Digest,
    /// The bytes as encoded once by the proposer: log record, message to peers and input of apply.
    pub payload: Bytes,
}

impl fmt::Debug for Entry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.kind {
            EntryKind::Empty => write!(f, "{} empty", self.id),
            EntryKind::Membership => write!(f, "{} membership", self.id),
            EntryKind::Command => match core::str::from_utf8(&self.payload) {
                Ok(text) if text.len() <= 32 => write!(f, "{} {text}", self.id),
                Ok(_) | Err(_) => write!(f, "{} {} bytes", self.id, self.payload.len()),
            },
        }
    }
}

/// What Figure 2 calls "persistent state on all servers", without the log.
#[derive(Clone, Copy, Default, PartialEq, Eq, Debug)]
pub struct HardState {
    /// Latest term this node has seen. Increases monotonically.
    pub current_term: Term,
    /// The candidate that received this node's vote in `current_term`, if any. Set at most once a term.
    pub voted_for: Option<NodeId>,
}

/// The position, digest and configuration that a snapshot stands for (§7).
///
/// The snapshot replaces the log up to and including `last_included`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SnapshotMeta {
    /// `last_included_index` and `last_included_term` of Figure 13. Zero for the formed, empty log.
    pub last_included: EntryId,
    /// Digest of the log up to `last_included`.
    pub digest: Digest,
    /// The configuration in force at `last_included`: never a newer one.
    pub membership: crate::Membership,
}

/// What a node knows when it starts: the durable state as recovery found it.
#[derive(Clone, Debug)]
pub struct Recovered {
    /// Term and vote.
    pub hard_state: HardState,
    /// The newest durable snapshot, from which the state machine starts; not before `log_start` and not after
    /// the last entry. A freshly formed cluster has the one at index 0 with its first membership.
    pub snapshot: SnapshotMeta,
    /// The entry before the first one that is still in the log: everything up to it was compacted away.
    pub log_start: EntryId,
    /// Digest of the log up to `log_start`.
    pub log_start_digest: Digest,
    /// Every entry after `log_start`, contiguous, all durable.
    pub entries: Vec<Entry>,
}

#[cfg(test)]
mod tests {
    use alloc::format;

    use super::*;

    #[test]
    fn drawn_numbers_show_all_their_digits() {
        for random in [0, 1, u64::MAX >> 8, u64::MAX] {
            let (member, cluster) = (MemberId::drawn(random), ClusterId::drawn(random));
            assert_eq!(format!("{member}{cluster}").len(), 32, "{random:x}");
        }
    }
}
