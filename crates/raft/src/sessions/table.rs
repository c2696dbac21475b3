//! What is remembered of sessions.
//!
//! In a snapshot, as the first blobs:
//!
//! ```text
//! blob 0      version, 1 (1 byte) · how many blobs follow (u32) · bytes in them (u64)
//! blob 1..=n  the sessions, by id, cut every mebibyte; each: id (u64) · index of its last entry (u64) ·
//!             number of its last command (u64) · has a response (1 byte: 0 or 1) ·
//!             with one: its length (u32) and its bytes
//! ```
//!
//! Little-endian.

use std::collections::BTreeMap;

use bytes::{Buf as _, BufMut as _, Bytes, BytesMut};
use raft_core::{Index, Session, SnapshotError, SnapshotSink, SnapshotSource};

use super::{CachedResponse, SessionResponse};

/// Version of the format above.
const VERSION: u8 = 1;
/// The table is cut into blobs of so many bytes.
const CHUNK_BYTES: usize = 1 << 20;
/// What all remembered responses together may take; beyond it the sessions that have been silent longest end. Members
/// must agree on it: a program with another limit needs another feature level.
pub(super) const RESPONSES_BYTES_MAX: usize = 64 << 20;

/// The open sessions.
#[derive(Clone, Debug)]
pub(super) struct Table {
    sessions: BTreeMap<u64, Held>,
    /// Sessions by the index of their last entry: each entry belongs to one session at most.
    by_use: BTreeMap<Index, u64>,
    /// Of all remembered responses.
    bytes: usize,
}

/// One session.
#[derive(Clone, Debug)]
struct Held {
    used: Index,
    /// The last applied command's number, and its response as encoded; none before the first.
    last: Option<(u64, Bytes)>,
}

impl Held {
    fn bytes(&self) -> usize {
        self.last.as_ref().map_or(0, |(_, response)| response.len())
    }
}

impl Table {
    pub(super) const fn new() -> Self {
        Self { sessions: BTreeMap::new(), by_use: BTreeMap::new(), bytes: 0 }
    }

    /// Opens the session named like its entry; at most `sessions_max`, and at least this one, remain.
    pub(super) fn open(&mut self, index: Index, sessions_max: u32) {
        let others = usize::try_from(sessions_max).unwrap_or(usize::MAX).saturating_sub(1);
        while self.sessions.len() > others && self.end_silent().is_some() {}
        self.insert(index.0, Held { used: index, last: None });
    }

    /// Ends the session that has been silent longest.
    fn end_silent(&mut self) -> Option<u64> {
        let (_, silent) = self.by_use.pop_first()?;
        let held = self.sessions.remove(&silent)?;
        self.bytes -= held.bytes();
        Some(silent)
    }

    /// Ends a session; how many ended.
    pub(super) fn close(&mut self, session: u64) -> u64 {
        let Some(held) = self.sessions.remove(&session) else { return 0 };
        self.by_use.remove(&held.used);
        self.bytes -= held.bytes();
        1
    }

    /// Ends those that were last used before `silent_since`; how many.
    pub(super) fn expire(&mut self, silent_since: Index) -> u64 {
        let mut ended = 0;
        while self.by_use.first_key_value().is_some_and(|(used, _)| *used < silent_since)
            && self.end_silent().is_some()
        {
            ended += 1;
        }
        ended
    }

    fn insert(&mut self, session: u64, held: Held) {
        self.bytes += held.bytes();
        self.by_use.insert(held.used, session);
        self.sessions.insert(session, held);
    }

    /// Applies a command unless the session has applied it, or a later one, already.
    pub(super) fn once<R: CachedResponse>(
        &mut self,
        index: Index,
        session: Session,
        apply: impl FnOnce() -> R,
    ) -> SessionResponse<R> {
        let Some(held) = self.sessions.get_mut(&session.id) else {
            return SessionResponse::NoSession;
        };
        // A retry shows as much as a new command that the client is alive.
        self.by_use.remove(&held.used);
        self.by_use.insert(index, session.id);
        held.used = index;
        match &held.last {
            Some((newest, response)) if session.sequence == *newest => {
                match R::decode(response.clone()) {
                    Ok(response) => SessionResponse::Applied(response),
                    Err(_) => SessionResponse::Forgotten,
                }
            }
            Some((newest, _)) if session.sequence < *newest => {
                SessionResponse::Outdated { newest: *newest }
            }
            _ => {
                let response = apply();
                let mut encoded = BytesMut::new();
                response.encode(&mut encoded);
                self.bytes -= held.bytes();
                self.bytes += encoded.len();
                held.last = Some((session.sequence, encoded.freeze()));
                while self.bytes > RESPONSES_BYTES_MAX && self.sessions.len() > 1 {
                    self.end_silent();
                }
                SessionResponse::Applied(response)
            }
        }
    }

    /// The sessions as the module's head draws them, uncut.
    pub(super) fn encode(&self) -> BytesMut {
        let mut out = BytesMut::new();
        for (session, held) in &self.sessions {
            out.put_u64_le(*session);
            out.put_u64_le(held.used.0);
            out.put_u64_le(held.last.as_ref().map_or(0, |(sequence, _)| *sequence));
            out.put_u8(u8::from(held.last.is_some()));
            if let Some((_, response)) = &held.last {
                // Of a response that is longer, nothing is left to answer with: its session then is of no use, and
                // no state machine answers with four gibibytes.
                out.put_u32_le(u32::try_from(response.len()).unwrap_or(u32::MAX));
                out.put_slice(response);
            }
        }
        out
    }

    pub(super) fn write(&self, sink: &mut dyn SnapshotSink) -> Result<(), SnapshotError> {
        let all = self.encode();
        let chunks = all.len().div_ceil(CHUNK_BYTES);
        let too_many =
            |_| SnapshotError::Undecodable(String::from("the table of sessions is too large"));
        let mut head = BytesMut::new();
        head.put_u8(VERSION);
        head.put_u32_le(u32::try_from(chunks).map_err(too_many)?);
        head.put_u64_le(u64::try_from(all.len()).map_err(too_many)?);
        sink.put(&head)?;
        for chunk in all.chunks(CHUNK_BYTES) {
            sink.put(chunk)?;
        }
        Ok(())
    }

    /// The table in a snapshot, and how many blobs it takes there.
    pub(super) fn read(source: &dyn SnapshotSource) -> Result<(Self, usize), SnapshotError> {
        let wrong = |what: &str| SnapshotError::Undecodable(format!("table of sessions: {what}"));
        if source.blobs().is_empty() {
            return Err(wrong("the snapshot was taken without sessions"));
        }
        let mut head = source.read(0)?;
        let (Ok(version), Ok(chunks), Ok(bytes)) =
            (head.try_get_u8(), head.try_get_u32_le(), head.try_get_u64_le())
        else {
            return Err(wrong("its head is too short"));
        };
        if version != VERSION || head.has_remaining() {
            return Err(wrong(&format!("version {version}; this program knows {VERSION}")));
        }
        let blobs = usize::try_from(chunks).map_or(usize::MAX, |chunks| chunks.saturating_add(1));
        if blobs > source.blobs().len() {
            return Err(wrong("blobs are missing"));
        }
        let mut all = BytesMut::new();
        for position in 1..blobs {
            all.extend_from_slice(&source.read(position)?);
        }
        if u64::try_from(all.len()).ok() != Some(bytes) {
            return Err(wrong("its length is not what its head says"));
        }
        let table = Self::decode(all.freeze()).ok_or_else(|| wrong("a session does not decode"))?;
        Ok((table, blobs))
    }

    fn decode(mut input: Bytes) -> Option<Self> {
        let mut table = Self::new();
        while input.has_remaining() {
            let session = input.try_get_u64_le().ok()?;
            let used = Index(input.try_get_u64_le().ok()?);
            let sequence = input.try_get_u64_le().ok()?;
            let last = match input.try_get_u8().ok()? {
                0 => None,
                1 => {
                    let len = usize::try_from(input.try_get_u32_le().ok()?).ok()?;
                    if len > input.remaining() {
                        return None;
                    }
                    Some((sequence, input.split_to(len)))
                }
                _ => return None,
            };
            if table.sessions.contains_key(&session) || table.by_use.contains_key(&used) {
                return None;
            }
            table.insert(session, Held { used, last });
        }
        Some(table)
    }
}
