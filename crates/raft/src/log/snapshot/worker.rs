//! Sender and receiver of snapshots: requests in, effects out.

use std::collections::BTreeMap;
use std::path::PathBuf;

use bytes::Bytes;
use raft_core::{
    BLOB_BYTES_MAX, BlobId, Digest, EntryId, NodeId, SendSnapshot, Snapshot, SnapshotError,
    SnapshotMeta, SnapshotSource, Term,
};

use super::SnapshotStore;
use super::blob;
use super::store::StoredSnapshot;
use crate::io::Disk;
use crate::log::Mend;
use crate::log::record::{to_u32, to_u64, to_usize};
use crate::message::{CHUNK_BYTES_MAX, SnapshotMessage};

/// Chunks that are on their way to one follower at once.
const WINDOW: usize = 4;
/// Blobs of one snapshot that a receiver accepts.
const BLOBS_MAX: usize = 1 << 20;

/// What the snapshot thread can be asked for.
#[derive(Debug)]
pub enum SnapshotRequest<S> {
    /// Write the picture of the own state at `meta`.
    Write(SnapshotMeta, S),
    /// Stream the newest snapshot to a follower.
    Send(SendSnapshot),
    /// A peer said this on the bulk stream.
    Message(NodeId, SnapshotMessage),
    /// The bulk connection to a peer broke: its transfers end; what has arrived is kept.
    Disconnected(NodeId),
    /// The log now durably begins at or after this position: forget older snapshots.
    Prune(EntryId),
    /// This file looks damaged at this offset: look, and repair what can be repaired.
    Mend(PathBuf, u64),
}

/// What the snapshot thread wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum SnapshotEffect {
    /// Send this on the bulk stream.
    Send(NodeId, SnapshotMessage),
    /// The own snapshot is durable: `Raft::snapshot_taken`. With it what it consists of ([`BlobId::digest_of`]).
    Written(SnapshotMeta, Digest),
    /// The own snapshot could not be written; the older one stays.
    WriteFailed(SnapshotMeta, SnapshotError),
    /// A peer's snapshot is complete and durable here: step `InstallSnapshot { term, snapshot }`.
    Received {
        /// The sender.
        from: NodeId,
        /// The term of its offer.
        term: Term,
        /// What it stands for.
        snapshot: SnapshotMeta,
        /// Bytes of content that came with the last transfer; the others were here.
        bytes: u64,
    },
    /// The follower has everything.
    Sent(NodeId, EntryId),
    /// The transfer broke: `Raft::snapshot_failed`. The text is for the operator.
    SendFailed(NodeId, String),
    /// A file that looked damaged, where, and what became of it.
    Mended(PathBuf, u64, Mend),
}

/// What travelled, in bytes of blob content.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct SnapshotCounters {
    /// Sent in chunks.
    pub sent_bytes: u64,
    /// Received in chunks and written.
    pub received_bytes: u64,
    /// Not sent because the receiver had it.
    pub skipped_bytes: u64,
}

/// A snapshot on its way to a follower.
struct Outgoing<D: Disk> {
    /// Its number: what the follower says of another one is ignored.
    transfer: u64,
    /// Bytes that have left.
    sent: u64,
    source: StoredSnapshot<D>,
    /// What the receiver has of each blob; `None` until it said so.
    have: Option<Vec<u64>>,
    /// The blob being sent, its content, and how much of it has left.
    position: usize,
    content: Option<Bytes>,
    offset: u64,
    /// Chunks that are not acknowledged: blob and end of each, in order.
    unacknowledged: Vec<(u32, u64)>,
}

/// A snapshot on its way here.
struct Incoming<D: Disk> {
    /// The sender's number.
    transfer: u64,
    /// Bytes that have arrived.
    received: u64,
    term: Term,
    meta: SnapshotMeta,
    blobs: Vec<BlobId>,
    /// The blob that is arriving: position, file, bytes written.
    open: Option<(usize, D::File, u64)>,
}

/// Owns the [`SnapshotStore`] on its thread.
pub struct SnapshotWorker<D: Disk> {
    store: SnapshotStore<D>,
    outgoing: BTreeMap<NodeId, Outgoing<D>>,
    /// One at a time: the newest offer wins.
    incoming: Option<(NodeId, Incoming<D>)>,
    /// The number of the last transfer that this node began.
    transfer: u64,
    counters: SnapshotCounters,
}

impl<D: Disk> SnapshotWorker<D> {
    /// A worker for an open store. Its transfers are numbered from after `transfer` on, which must lie above every
    /// number that an earlier life of this node has given.
    #[must_use]
    pub fn new(store: SnapshotStore<D>, transfer: u64) -> Self {
        let counters = SnapshotCounters::default();
        Self { store, outgoing: BTreeMap::new(), incoming: None, transfer, counters }
    }

    /// What travelled so far.
    #[must_use]
    pub const fn counters(&self) -> SnapshotCounters {
        self.counters
    }

    /// The files, for restoring.
    #[must_use]
    pub const fn store(&self) -> &SnapshotStore<D> {
        &self.store
    }

    /// Handles one request.
    pub fn handle<S: Snapshot>(&mut self, request: SnapshotRequest<S>) -> Vec<SnapshotEffect> {
        match request {
            SnapshotRequest::Write(meta, picture) => vec![self.write(meta, picture)],
            SnapshotRequest::Send(send) => self.offer(&send),
            SnapshotRequest::Message(from, message) => self.message(from, message),
            SnapshotRequest::Disconnected(node) => self.disconnected(node),
            SnapshotRequest::Prune(base) => {
                // What is arriving has no manifest yet and must stay.
                let arriving = self.incoming.as_ref();
                let arriving = arriving.map_or(&[][..], |(_, incoming)| &incoming.blobs);
                if let Err(error) = self.store.prune(base, arriving) {
                    tracing::warn!(%error, "old snapshots could not be removed");
                }
                Vec::new()
            }
            SnapshotRequest::Mend(path, offset) => {
                let mend = self.store.mend(&path);
                vec![SnapshotEffect::Mended(path, offset, mend)]
            }
        }
    }

    fn write<S: Snapshot>(&mut self, meta: SnapshotMeta, picture: S) -> SnapshotEffect {
        let mut writer = self.store.begin(meta.clone());
        let outcome = picture.write(&mut writer).and_then(|()| {
            let state = writer.state();
            writer.commit().map(|meta| (meta, state))
        });
        match outcome {
            Ok((meta, state)) => SnapshotEffect::Written(meta, state),
            Err(error) => SnapshotEffect::WriteFailed(meta, error),
        }
    }

    fn disconnected(&mut self, node: NodeId) -> Vec<SnapshotEffect> {
        if self.incoming.as_ref().is_some_and(|(from, _)| *from == node) {
            self.incoming = None;
        }
        match self.outgoing.remove(&node) {
            Some(outgoing) => {
                let reason = format!("the connection broke after {} bytes", outgoing.sent);
                vec![SnapshotEffect::SendFailed(node, reason)]
            }
            None => Vec::new(),
        }
    }

    fn message(&mut self, from: NodeId, message: SnapshotMessage) -> Vec<SnapshotEffect> {
        match message {
            SnapshotMessage::Offer { transfer, term, snapshot, blobs } => {
                let outcome = self.offered(from, transfer, term, snapshot, blobs);
                self.received(from, transfer, outcome)
            }
            SnapshotMessage::Have { transfer, bytes } => {
                let Some(outgoing) = self.outgoing_mut(from, transfer) else { return Vec::new() };
                if outgoing.have.is_none() {
                    outgoing.begin(from, bytes);
                }
                self.stream(from)
            }
            SnapshotMessage::Chunk { transfer, blob, offset, bytes } => {
                // The transfer that is under way, if any, has nothing to do with this one.
                if !self.is_arriving(from, transfer) {
                    let reason = "no such transfer".to_owned();
                    let abort = SnapshotMessage::Abort { transfer, reason };
                    return vec![SnapshotEffect::Send(from, abort)];
                }
                let outcome = self.chunk(from, transfer, blob, offset, &bytes);
                self.received(from, transfer, outcome)
            }
            SnapshotMessage::Ack { transfer, blob, offset } => {
                let Some(outgoing) = self.outgoing_mut(from, transfer) else { return Vec::new() };
                outgoing.unacknowledged.retain(|chunk| *chunk > (blob, offset));
                self.stream(from)
            }
            SnapshotMessage::Abort { transfer, reason } => {
                // Both sides give numbers: those of one say nothing about the other's.
                let mut effects = Vec::new();
                if self.outgoing_mut(from, transfer).is_some() {
                    self.outgoing.remove(&from);
                    effects.push(SnapshotEffect::SendFailed(from, reason));
                } else if self.is_arriving(from, transfer) {
                    self.incoming = None;
                }
                effects
            }
        }
    }
}

/// Sending.
impl<D: Disk> SnapshotWorker<D> {
    fn outgoing_mut(&mut self, to: NodeId, transfer: u64) -> Option<&mut Outgoing<D>> {
        self.outgoing.get_mut(&to).filter(|outgoing| outgoing.transfer == transfer)
    }

    fn offer(&mut self, send: &SendSnapshot) -> Vec<SnapshotEffect> {
        let newest =
            self.store.newest().filter(|(meta, _)| meta.last_included.index >= send.index_min);
        let source = newest.and_then(|(meta, _)| self.store.source(meta.last_included));
        let Some(source) = source else {
            let reason = format!("there is no snapshot at or after {}", send.index_min);
            return vec![SnapshotEffect::SendFailed(send.to, reason)];
        };
        self.transfer += 1;
        let transfer = self.transfer;
        let message = SnapshotMessage::Offer {
            transfer,
            term: send.term,
            snapshot: source.meta().clone(),
            blobs: source.blobs().to_vec(),
        };
        let outgoing = Outgoing {
            transfer,
            sent: 0,
            source,
            have: None,
            position: 0,
            content: None,
            offset: 0,
            unacknowledged: Vec::new(),
        };
        self.outgoing.insert(send.to, outgoing);
        vec![SnapshotEffect::Send(send.to, message)]
    }

    /// Fills the window; the end of everything is the last acknowledgement.
    fn stream(&mut self, to: NodeId) -> Vec<SnapshotEffect> {
        let mut effects = Vec::new();
        let Some(outgoing) = self.outgoing.get_mut(&to) else { return effects };
        let (transfer, id) = (outgoing.transfer, outgoing.source.meta().last_included);
        loop {
            if outgoing.unacknowledged.len() >= WINDOW {
                return effects;
            }
            match outgoing.next_chunk(&mut self.counters) {
                Ok(Some((blob, offset, bytes))) => {
                    let end = offset + to_u64(bytes.len());
                    outgoing.unacknowledged.push((blob, end));
                    let chunk = SnapshotMessage::Chunk { transfer, blob, offset, bytes };
                    effects.push(SnapshotEffect::Send(to, chunk));
                }
                Ok(None) if outgoing.have.is_some() && outgoing.unacknowledged.is_empty() => {
                    self.outgoing.remove(&to);
                    effects.push(SnapshotEffect::Sent(to, id));
                    return effects;
                }
                Ok(None) => return effects,
                Err(error) => {
                    self.outgoing.remove(&to);
                    let reason = error.to_string();
                    let abort = SnapshotMessage::Abort { transfer, reason: reason.clone() };
                    effects.push(SnapshotEffect::Send(to, abort));
                    effects.push(SnapshotEffect::SendFailed(to, reason));
                    return effects;
                }
            }
        }
    }
}

impl<D: Disk> Outgoing<D> {
    /// The receiver has said what it has of each blob.
    fn begin(&mut self, to: NodeId, have: Vec<u64>) {
        let blobs = self.source.blobs();
        let bytes: u64 = blobs.iter().map(|blob| blob.len).sum();
        let there: u64 = blobs.iter().zip(&have).map(|(blob, have)| blob.len.min(*have)).sum();
        let (transfer, at) = (self.transfer, self.source.meta().last_included);
        tracing::info!(%to, %at, transfer, bytes, there, "sends what is not there of a snapshot");
        self.have = Some(have);
    }

    /// The next bytes that the receiver lacks.
    fn next_chunk(
        &mut self,
        counters: &mut SnapshotCounters,
    ) -> Result<Option<(u32, u64, Bytes)>, SnapshotError> {
        let Some(have) = &self.have else { return Ok(None) };
        loop {
            let Some(blob) = self.source.blobs().get(self.position) else { return Ok(None) };
            let content = match &self.content {
                Some(content) => content,
                None => {
                    let known = have.get(self.position).copied().unwrap_or(0).min(blob.len);
                    counters.skipped_bytes += known;
                    self.offset = known;
                    if known == blob.len && blob.len > 0 {
                        self.position += 1;
                        continue;
                    }
                    self.content.insert(self.source.read(self.position)?)
                }
            };
            let from = to_usize(self.offset);
            let to = content.len().min(from + CHUNK_BYTES_MAX);
            // An empty blob is one empty chunk, so that it is created at the receiver.
            if from < to || content.is_empty() {
                let bytes = content.slice(from..to);
                let chunk = (to_u32(self.position), self.offset, bytes);
                self.offset = to_u64(to);
                self.sent += to_u64(to - from);
                counters.sent_bytes += to_u64(to - from);
                if to == content.len() {
                    self.content = None;
                    self.position += 1;
                }
                return Ok(Some(chunk));
            }
            self.content = None;
            self.position += 1;
        }
    }
}

/// Receiving.
impl<D: Disk> SnapshotWorker<D> {
    fn offered(
        &mut self,
        from: NodeId,
        transfer: u64,
        term: Term,
        meta: SnapshotMeta,
        blobs: Vec<BlobId>,
    ) -> Result<Vec<SnapshotEffect>, String> {
        let too_long = blobs.iter().any(|id| id.len > to_u64(BLOB_BYTES_MAX));
        if too_long || blobs.len() > BLOBS_MAX {
            return Err("the offer exceeds a limit".to_owned());
        }
        let mut bytes = Vec::with_capacity(blobs.len());
        for id in &blobs {
            let known = if self.store.has_intact(*id).map_err(|error| error.to_string())? {
                id.len
            } else {
                let path = self.store.dir.join(blob::partial_name(*id));
                let content = blob::read_prefix(&self.store.disk, &path, *id);
                let block = blob::BLOCK_BYTES;
                let content = content.map_err(|error| error.to_string())?.len();
                // A blob that is complete but not named yet ends with its last block again.
                to_u64(
                    if to_u64(content) == id.len { content.saturating_sub(1) } else { content }
                        / block
                        * block,
                )
            };
            bytes.push(known);
        }
        let at = meta.last_included;
        let here: u64 = bytes.iter().sum();
        let all: u64 = blobs.iter().map(|id| id.len).sum();
        tracing::info!(%from, %at, transfer, bytes = all, here, "a snapshot arrives");
        self.incoming =
            Some((from, Incoming { transfer, received: 0, term, meta, blobs, open: None }));
        let mut effects =
            vec![SnapshotEffect::Send(from, SnapshotMessage::Have { transfer, bytes })];
        effects.extend(self.finish_if_complete()?);
        Ok(effects)
    }

    /// Whether this is the transfer that is under way to here.
    fn is_arriving(&self, from: NodeId, transfer: u64) -> bool {
        let incoming = self.incoming.as_ref();
        incoming.is_some_and(|(sender, it)| *sender == from && it.transfer == transfer)
    }

    /// The next bytes of the transfer that is under way.
    fn chunk(
        &mut self,
        from: NodeId,
        transfer: u64,
        position: u32,
        offset: u64,
        bytes: &Bytes,
    ) -> Result<Vec<SnapshotEffect>, String> {
        let Some((_, incoming)) = self.incoming.as_mut() else { return Ok(Vec::new()) };
        let nth = to_usize(u64::from(position));
        let Some(id) = incoming.blobs.get(nth).copied() else {
            return Err(format!("the offer has no blob {position}"));
        };
        let ack = |offset| {
            let ack = SnapshotMessage::Ack { transfer, blob: position, offset };
            vec![SnapshotEffect::Send(from, ack)]
        };
        let end = offset.saturating_add(to_u64(bytes.len()));
        let (file, written) = match incoming.open.take() {
            Some((open, file, written)) if open == nth => (file, written),
            Some(_) | None => {
                // The same blob may stand in the list twice.
                if self.store.has(id).map_err(|error| error.to_string())? {
                    return Ok(ack(end));
                }
                self.store.resume(id).map_err(|error| error.to_string())?
            }
        };
        let written = if written == id.len && id.len > 0 { offset } else { written };
        let whole = end == id.len || bytes.len().is_multiple_of(blob::BLOCK_BYTES);
        if offset != written || end > id.len || !whole {
            return Err(format!("blob {position} went on at {offset} instead of {written}"));
        }
        blob::write(&file, id, offset, bytes).map_err(|error| error.to_string())?;
        self.counters.received_bytes += to_u64(bytes.len());
        incoming.received += to_u64(bytes.len());
        if end == id.len {
            let intact = self.store.complete(id, &file).map_err(|error| error.to_string())?;
            if !intact {
                return Err(format!("blob {position} is not what its name says"));
            }
        } else {
            incoming.open = Some((nth, file, end));
        }
        let mut effects = ack(end);
        if end == id.len {
            effects.extend(self.finish_if_complete()?);
        }
        Ok(effects)
    }

    /// Publishes the snapshot when its last blob is here.
    fn finish_if_complete(&mut self) -> Result<Option<SnapshotEffect>, String> {
        let Some((_, incoming)) = &self.incoming else { return Ok(None) };
        for id in &incoming.blobs {
            if !self.store.has(*id).map_err(|error| error.to_string())? {
                return Ok(None);
            }
        }
        let Some((from, incoming)) = self.incoming.take() else { return Ok(None) };
        let Incoming { received: bytes, term, meta, blobs, .. } = incoming;
        self.store.publish(meta.clone(), blobs).map_err(|error| error.to_string())?;
        Ok(Some(SnapshotEffect::Received { from, term, snapshot: meta, bytes }))
    }

    /// Tells the sender when a step failed; what has arrived is kept.
    fn received(
        &mut self,
        from: NodeId,
        transfer: u64,
        outcome: Result<Vec<SnapshotEffect>, String>,
    ) -> Vec<SnapshotEffect> {
        outcome.unwrap_or_else(|reason| {
            self.incoming = None;
            vec![SnapshotEffect::Send(from, SnapshotMessage::Abort { transfer, reason })]
        })
    }
}
