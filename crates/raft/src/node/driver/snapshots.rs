//! Checkpoints and snapshots on their way: between the protocol, the snapshot thread and the bulk stream.

use std::time::Duration;

use raft_core::{
    Envelope, InstallSnapshot, Message, NodeId, ProgressState, SendSnapshot, SnapshotMeta,
    StateMachine, Time,
};
use tracing::{debug, info, warn};

use super::{Deferred, Driver, SnapshotDone, SnapshotJob};
use crate::apply::ApplyRequest;
use crate::error::NodeError;
use crate::io::{Network, Stream};
use crate::log::Mend;
use crate::log::snapshot::{SnapshotEffect, SnapshotRequest};
use crate::message::{PeerMessage, SnapshotMessage};

/// A transfer in which nothing moves for this long is broken off, and begins again where it stopped.
const STALL_TIMEOUT: Duration = Duration::from_secs(3);
/// Snapshot messages that wait for one bulk connection.
const WAITING_MAX: usize = 256;

impl<S: StateMachine> Driver<S> {
    pub(super) fn send_snapshot(&mut self, now: Time, send: SendSnapshot) {
        debug!(to = %send.to, "offers a snapshot");
        self.sending.insert(send.to, now);
        self.out.snapshot.push(SnapshotJob::Work(SnapshotRequest::Send(send)));
    }

    /// What a peer says of a snapshot, in either direction.
    pub(super) fn on_snapshot_message(
        &mut self,
        now: Time,
        from: NodeId,
        message: SnapshotMessage,
    ) {
        if self.raft.is_none() && self.repair.is_none() {
            return;
        }
        if let Some(moved) = self.sending.get_mut(&from) {
            *moved = now;
        }
        self.out.snapshot.push(SnapshotJob::Work(SnapshotRequest::Message(from, message)));
    }

    /// The bulk stream to a peer exists later than the control stream: until then its messages wait, or the
    /// transfer would stand still.
    fn send_bulk(
        &mut self,
        now: Time,
        to: NodeId,
        message: SnapshotMessage,
        network: &mut impl Network,
    ) {
        if let Some(moved) = self.sending.get_mut(&to) {
            *moved = now;
        }
        if self.bulk.contains(&to) {
            network.send(to, Stream::Bulk, PeerMessage::Snapshot(message));
            return;
        }
        let waiting = self.bulk_waiting.entry(to).or_default();
        // One transfer at a time: what waits of those before has come to nothing.
        if matches!(message, SnapshotMessage::Offer { .. }) {
            waiting.retain(|it| {
                !matches!(it, SnapshotMessage::Offer { .. } | SnapshotMessage::Chunk { .. })
            });
        }
        if waiting.len() < WAITING_MAX {
            waiting.push(message);
        }
    }

    pub(super) fn bulk_connected(&mut self, node: NodeId, network: &mut impl Network) {
        self.bulk.insert(node);
        for message in self.bulk_waiting.remove(&node).unwrap_or_default() {
            network.send(node, Stream::Bulk, PeerMessage::Snapshot(message));
        }
    }

    pub(super) fn bulk_disconnected(&mut self, node: NodeId) {
        self.bulk.remove(&node);
        self.bulk_waiting.remove(&node);
        self.out.snapshot.push(SnapshotJob::Work(SnapshotRequest::Disconnected(node)));
    }

    /// Breaks off transfers in which nothing moves: an answer may have been lost with its connection (B47).
    pub(super) fn break_stalled_transfers(&mut self, now: Time) {
        let stalled: Vec<NodeId> = self
            .sending
            .iter()
            .filter(|(_, moved)| now.since(**moved) >= STALL_TIMEOUT)
            .map(|(node, _)| *node)
            .collect();
        for node in stalled {
            if !self.waits_for_snapshot(node) {
                self.sending.remove(&node);
                continue;
            }
            info!(to = %node, "a snapshot transfer stands still; it begins again where it stopped");
            self.sending.remove(&node);
            self.bulk_waiting.remove(&node);
            self.out.snapshot.push(SnapshotJob::Work(SnapshotRequest::Disconnected(node)));
            if let Some(raft) = &mut self.raft {
                raft.snapshot_failed(now, node);
            }
        }
    }

    /// Whether the protocol sends nothing to this peer until it has a snapshot.
    fn waits_for_snapshot(&self, node: NodeId) -> bool {
        self.raft.as_ref().is_some_and(|raft| {
            raft.progress().any(|(peer, progress)| {
                peer == node && matches!(progress.state(), ProgressState::Snapshot { .. })
            })
        })
    }

    pub(super) fn transfer_deadline(&self) -> Option<Time> {
        self.sending.values().min().map(|moved| moved.after(STALL_TIMEOUT))
    }

    /// Hands a picture to the snapshot thread once the log is durable up to it.
    pub(super) fn write_checkpoint(&mut self) {
        let (Some(raft), Some((id, picture))) = (&self.raft, self.picture.take()) else { return };
        if raft.durable_index() < id.index && !raft_core::mutant::is_active(23) {
            self.picture = Some((id, picture));
            return;
        }
        match raft.snapshot_meta(id.index) {
            Some(meta) if meta.last_included == id => {
                debug!(at = %id, "writes a checkpoint");
                self.out.snapshot.push(SnapshotJob::Work(SnapshotRequest::Write(meta, picture)));
            }
            // The log begins after it already.
            Some(_) | None => self.checkpoints.busy = false,
        }
    }

    pub(super) fn on_snapshot(
        &mut self,
        now: Time,
        done: SnapshotDone,
        network: &mut impl Network,
    ) {
        match done {
            SnapshotDone::Effect(effect) => self.on_snapshot_effect(now, effect, network),
            SnapshotDone::Opened(meta, source) => self.on_opened(&meta, source),
        }
    }

    fn on_opened(
        &mut self,
        meta: &SnapshotMeta,
        source: Option<Box<dyn raft_core::SnapshotSource + Send>>,
    ) {
        if !matches!(self.deferred.front(), Some(Deferred::Restore(front)) if front == meta) {
            return;
        }
        let Some(source) = source else {
            let text = format!("snapshot {} is not there", meta.last_included);
            let error = raft_core::SnapshotError::Undecodable(text);
            return self.end(Err(NodeError::Snapshot(error)));
        };
        self.deferred.pop_front();
        self.out.apply.push(ApplyRequest::Restore(meta.clone(), source));
        while let Some(deferred) = self.deferred.pop_front() {
            match deferred {
                Deferred::Request(request) => self.out.apply.push(request),
                Deferred::Restore(meta) => {
                    self.out.snapshot.push(SnapshotJob::Open(meta.clone()));
                    self.deferred.push_front(Deferred::Restore(meta));
                    return;
                }
            }
        }
    }

    fn on_snapshot_effect(
        &mut self,
        now: Time,
        effect: SnapshotEffect,
        network: &mut impl Network,
    ) {
        let Some(raft) = &mut self.raft else {
            match effect {
                SnapshotEffect::Send(to, message) => self.send_bulk(now, to, message, network),
                SnapshotEffect::Received { snapshot, .. } => self.on_repair_snapshot(&snapshot),
                SnapshotEffect::SendFailed(to, _) => drop(self.sending.remove(&to)),
                SnapshotEffect::Mended(path, offset, mend) => {
                    self.on_mended(now, &path, offset, mend)
                }
                SnapshotEffect::Sent(..)
                | SnapshotEffect::Written(..)
                | SnapshotEffect::WriteFailed(..) => {}
            }
            return;
        };
        match effect {
            SnapshotEffect::Send(to, message) => self.send_bulk(now, to, message, network),
            SnapshotEffect::Written(meta, state) => {
                let at = meta.last_included;
                info!(%at, "checkpoint written");
                self.checkpoints.busy = false;
                // A snapshot from the leader may have taken its place meanwhile.
                if raft.term_at(at.index) == Some(at.term) {
                    let compact_to = self.checkpoints.compact_to(at.index);
                    raft.snapshot_taken(now, meta, compact_to);
                }
                self.on_own_state(at.index, state, network);
            }
            SnapshotEffect::WriteFailed(meta, error) => {
                warn!(at = %meta.last_included, %error, "no checkpoint; the older one stays");
                self.checkpoints.busy = false;
            }
            SnapshotEffect::Received { from, term, snapshot, bytes } => {
                info!(%from, at = %snapshot.last_included, bytes, "a snapshot has arrived");
                let message = Message::InstallSnapshot(InstallSnapshot { term, snapshot });
                let arrived = Envelope { from, to: self.node, message };
                if self.gate.is_some() {
                    // A silent protocol would drop it, and the leader wait for the answer (B47).
                    self.arrived = Some(arrived);
                } else {
                    raft.step(now, arrived);
                }
            }
            SnapshotEffect::Sent(to, at) => {
                info!(%to, %at, "snapshot sent");
                // Watched until the protocol knows it from the follower: that answer may be lost too (B47).
                if let Some(moved) = self.sending.get_mut(&to) {
                    *moved = now;
                }
            }
            SnapshotEffect::Mended(path, offset, mend) => {
                if matches!(mend, Mend::Beyond(_)) {
                    self.checkpoints.hasten();
                }
                self.on_mended(now, &path, offset, mend);
            }
            SnapshotEffect::SendFailed(to, reason) => {
                self.sending.remove(&to);
                info!(%to, reason, "a snapshot transfer broke");
                raft.snapshot_failed(now, to);
            }
        }
    }
}
