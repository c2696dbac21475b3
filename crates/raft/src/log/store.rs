//! The log as its worker uses it.

use std::cell::RefCell;
use std::collections::{BTreeMap, VecDeque};
use std::path::PathBuf;

use bytes::Bytes;
use raft_core::{Digest, Entry, EntryId, Fetch, Index, NodeId, Persist, Ticket, mutant};

use super::body::{Body, Rolled};
use super::files::Files;
use super::hard_state::{Promises, SLOT_BYTES};
use super::identity::{
    CLUSTER_MAGIC, FORMATION_BYTES_MAX, FORMATION_COPY_BYTES, FORMATION_MAGIC, encode_cluster,
    formation_offset, seal, seal_twice,
};
use super::open::Recovery;
use super::record::{BatchSize, to_u64};
use super::recovery::Damage;
use super::{Formed, Identity, LatchError, LogStatus};
use crate::io::Disk;

/// The durable log, hard state and identity of one node.
pub struct Log<D: Disk> {
    pub(super) files: Files<D>,
    pub(super) identity: Identity,
    pub(super) options: super::LogOptions,
    /// The file `promises`.
    pub(super) slots: (PathBuf, D::File),
    /// What the slots hold.
    pub(super) promises: Promises,
    /// The file `formation`.
    pub(super) formation_file: (PathBuf, D::File),
    /// Version and text of its newest copy.
    pub(super) formation: (u64, Bytes),
    /// `None` until the node is a member of a cluster.
    pub(super) body: Option<Body<D>>,
    /// What recovery found, while payloads are missing.
    pub(super) broken: Option<Box<Recovery>>,
    /// Damaged batches that were found while the log is in use, and of which payloads are missing.
    pub(super) mending: Vec<Damage>,
    /// Writes that wait for space.
    pub(super) stalled: VecDeque<Persist>,
    /// The first damage that a read met.
    pub(super) damage: RefCell<Option<(PathBuf, u64)>>,
    /// Held, never looked at.
    pub(super) lock: D::Lock,
}

impl<D: Disk> Log<D> {
    /// Makes this node a member of a cluster; durable on return.
    ///
    /// # Errors
    /// The disk failed; the log is latched.
    ///
    /// # Panics
    /// When the node belongs to a cluster already.
    pub fn form(&mut self, formed: &Formed) -> Result<(), LatchError> {
        assert!(self.body.is_none(), "{} is a member of a cluster already", self.identity.node());
        self.files.check()?;
        let mut body = Body::empty(self.identity, formed.clone(), self.options);
        // The first segment comes before the record that says that there must be one.
        let epoch = self.promises.durable_epoch;
        if body.roll(&mut self.files, BatchSize::EMPTY, epoch)? == Rolled::NoSpace {
            let path = self.files.dir.clone();
            let full = Err(std::io::ErrorKind::StorageFull.into());
            return self.files.guard(&path, full);
        }
        let text = encode_cluster(self.identity, formed);
        self.files.create("cluster", &seal_twice(CLUSTER_MAGIC, &text))?;
        self.files.sync_dir()?;
        self.body = Some(body);
        Ok(())
    }

    /// Stores what the formation protocol must not forget, opaque here; durable on return.
    ///
    /// # Errors
    /// The disk failed; the log is latched.
    ///
    /// # Panics
    /// When it is longer than 65,508 bytes.
    pub fn set_formation_state(&mut self, bytes: &[u8]) -> Result<(), LatchError> {
        let len = bytes.len();
        assert!(len <= FORMATION_BYTES_MAX, "{len} bytes of formation state");
        self.formation = (self.formation.0 + 1, Bytes::copy_from_slice(bytes));
        self.write_formation()
    }

    /// Writes the copy whose turn it is; the other one holds the version before.
    pub(super) fn write_formation(&mut self) -> Result<(), LatchError> {
        let (version, text) = &self.formation;
        let (path, file) = &self.formation_file;
        let mut copy = seal(FORMATION_MAGIC, *version, text);
        copy.resize(copy.len().next_multiple_of(512).min(FORMATION_COPY_BYTES), 0);
        self.files.write(path, file, formation_offset(*version), &copy)?;
        self.files.sync(path, file)
    }

    /// What [`set_formation_state`](Self::set_formation_state) stored last; empty when nothing.
    #[must_use]
    pub fn formation_state(&self) -> Bytes {
        self.formation.1.clone()
    }

    /// Makes writes durable in the order given, with one sync for all their records. Returns the tickets of
    /// everything that is durable now; writes without space on disk wait and are tried again by the next call.
    ///
    /// # Errors
    /// The disk failed, now or earlier; the log is latched for good.
    ///
    /// # Panics
    /// When the node belongs to no cluster, or a write does not fit to the log: both are bugs of the caller.
    pub fn write(&mut self, batch: Vec<Persist>) -> Result<Vec<Ticket>, LatchError> {
        self.files.check()?;
        self.stalled.extend(batch);
        let mut tickets = Vec::with_capacity(self.stalled.len());
        while !self.stalled.is_empty() {
            let count = self.gather();
            if count == 0 {
                if self.roll()? == Rolled::NoSpace {
                    break;
                }
                continue;
            }
            let batch: Vec<Persist> = self.stalled.drain(..count).collect();
            // The term before its entries (B6): a promise of this batch may be durable early, because nothing
            // has left that depends on it.
            self.write_hard_state(&batch)?;
            let Some(body) = &mut self.body else { unreachable_body() };
            body.write(&mut self.files, &batch)?;
            tickets.extend(batch.into_iter().map(|persist| persist.ticket));
        }
        Ok(tickets)
    }

    /// How many of the waiting writes fit into the last segment as one batch.
    fn gather(&self) -> usize {
        let Some(body) = &self.body else { unreachable_body() };
        let mut size = BatchSize::EMPTY;
        let fitting = self.stalled.iter().take_while(|persist| {
            size = Body::<D>::measure(persist, size);
            size.is_empty() || body.fits(size)
        });
        fitting.count()
    }

    fn roll(&mut self) -> Result<Rolled, LatchError> {
        let Some(body) = &mut self.body else { unreachable_body() };
        let size = self
            .stalled
            .front()
            .map_or(BatchSize::EMPTY, |persist| Body::<D>::measure(persist, BatchSize::EMPTY));
        let epoch = self.promises.durable_epoch + 1;
        let rolled = body.roll(&mut self.files, size, epoch)?;
        if rolled == Rolled::Yes {
            // Durable in the new segment's header.
            self.promises.durable_epoch = epoch;
        }
        Ok(rolled)
    }

    fn write_hard_state(&mut self, batch: &[Persist]) -> Result<(), LatchError> {
        let Some(next) = batch.iter().filter_map(|persist| persist.hard_state).next_back() else {
            return Ok(());
        };
        let now = self.promises.hard_state;
        assert!(next.current_term >= now.current_term, "the term went from {now:?} to {next:?}");
        let same_term = next.current_term == now.current_term;
        assert!(
            !same_term
                || now.voted_for.is_none()
                || now.voted_for == next.voted_for
                || mutant::is_active(6),
            "the vote went from {now:?} to {next:?}"
        );
        let promises = Promises { hard_state: next, ..self.promises.clone() };
        self.write_promises(promises, false)
    }

    /// Writes two slots, syncs, writes the other two, syncs (decision 7).
    pub(super) fn write_promises(
        &mut self,
        mut promises: Promises,
        clean: bool,
    ) -> Result<(), LatchError> {
        promises.version += 1;
        promises.durable_epoch += 1;
        promises.clean = clean;
        if let Some(body) = &self.body {
            promises.sync_epoch = body.sync_epoch;
            promises.last = body.last.id;
        }
        let slot = promises.encode();
        let (path, file) = &self.slots;
        for slots in [[0, 1], [2, 3]] {
            for number in slots {
                self.files.write(path, file, to_u64(number * SLOT_BYTES), &slot)?;
            }
            self.files.sync(path, file)?;
        }
        // Known only now that it is durable: nothing that fails to be written is ever told.
        self.promises = promises;
        Ok(())
    }

    /// Remembers the highest durable epoch seen of a peer; written with the next hard state.
    pub fn note_peer_epoch(&mut self, node: NodeId, epoch: u64) {
        let known = self.promises.peer_epochs.entry(node).or_default();
        *known = (*known).max(epoch);
    }

    /// The highest durable epoch seen of every peer.
    #[must_use]
    pub const fn peer_epochs(&self) -> &BTreeMap<NodeId, u64> {
        &self.promises.peer_epochs
    }

    /// To be called after the tickets of a write were handed on: one bounded step of making the next segment
    /// ready, by recycling an old one or filling a part of a new one.
    ///
    /// # Errors
    /// The disk failed, now or earlier; the log is latched for good.
    pub fn housekeep(&mut self) -> Result<(), LatchError> {
        self.files.check()?;
        match &mut self.body {
            Some(body) => body.housekeep(&mut self.files),
            None => Ok(()),
        }
    }

    /// To be called when no write waits: proves durably that the last batch was synced (decision 9) and
    /// prepares the next segment. Costs nothing when there is nothing to do.
    ///
    /// # Errors
    /// The disk failed, now or earlier; the log is latched for good.
    pub fn seal_if_idle(&mut self) -> Result<(), LatchError> {
        self.files.check()?;
        if let Some(body) = &mut self.body {
            body.seal(&mut self.files)?;
            body.prepare(&mut self.files)?;
        }
        Ok(())
    }

    /// Reads entries back, every byte checked. `None` when the first one is no longer there or damaged.
    #[must_use]
    pub fn read(&self, fetch: &Fetch) -> Option<Vec<Entry>> {
        match self.body.as_ref()?.read(fetch) {
            Ok(entries) => entries,
            Err((path, offset)) => {
                tracing::error!(path = %path.display(), offset, "a record of the log is damaged");
                self.damage.borrow_mut().get_or_insert((path, offset));
                None
            }
        }
    }

    /// The digest of the durable log up to `index`; `None` when that is compacted away or not durable here.
    #[must_use]
    pub fn digest_at(&self, index: Index) -> Option<Digest> {
        let mark = match &self.broken {
            Some(recovery) => recovery.replay.mark_at(index),
            None => self.body.as_ref()?.mark_at(index),
        };
        mark.map(|mark| mark.digest)
    }

    /// Who this directory makes promises for.
    #[must_use]
    pub const fn identity(&self) -> Identity {
        self.identity
    }

    /// The durable epoch (decision 10), to travel in every promise.
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        self.promises.durable_epoch
    }

    /// The log's condition.
    #[must_use]
    pub fn status(&self) -> LogStatus {
        let body = self.body.as_ref();
        let broken = self.broken.as_ref().map(|recovery| &recovery.replay);
        let compacted = broken.map(|it| it.compacted).or_else(|| body.map(|it| it.compacted));
        let last = broken.map(|it| it.last).or_else(|| body.map(|it| it.last));
        LogStatus {
            compacted: compacted.map_or(EntryId::ZERO, |mark| mark.id),
            last: last.map_or(EntryId::ZERO, |mark| mark.id),
            hard_state: self.promises.hard_state,
            durable_epoch: self.promises.durable_epoch,
            sync_epoch: body.map_or(0, |body| body.sync_epoch),
            segments: body.map_or(0, |body| body.segments.len()),
            full: body.is_some_and(|body| body.full),
            stalled: self.stalled.len(),
            latched: self.files.latched().is_some(),
            damage: self.damage.borrow().clone(),
        }
    }

    /// Marks the directory as stopped cleanly and gives up its lock. Writes that wait for space are dropped;
    /// nobody was told that they are durable.
    ///
    /// # Errors
    /// The disk failed, now or earlier.
    pub fn close(mut self) -> Result<(), LatchError> {
        self.files.check()?;
        if let Some(body) = &mut self.body {
            body.seal(&mut self.files)?;
        }
        // What a damaged log holds was only read: it may be nowhere but in the page cache.
        let clean = self.broken.is_none();
        self.write_promises(self.promises.clone(), clean)?;
        drop(self.lock);
        Ok(())
    }
}

/// A write before formation is a bug of the driver.
fn unreachable_body() -> ! {
    panic!("a node that belongs to no cluster has no log to write to")
}
