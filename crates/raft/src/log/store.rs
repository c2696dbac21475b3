//! The log itself.

use std::path::Path;

use bytes::Bytes;
use raft_core::{Entry, Fetch, NodeId, Persist, Ticket};

use super::{Formed, Identity, LatchError, LogOptions, LogStatus, Opened};
use crate::error::DataError;
use crate::io::Disk;

/// The durable log, hard state and identity of one node.
#[derive(Debug)]
pub struct Log<D: Disk> {
    disk: D,
}

impl<D: Disk> Log<D> {
    /// Opens or creates a data directory, recovers it and makes what was recovered durable. `fresh` becomes
    /// the identity of a directory that has none.
    ///
    /// # Errors
    /// When the directory cannot be used; nothing was changed then.
    pub fn open(
        disk: D,
        dir: &Path,
        options: LogOptions,
        fresh: Identity,
    ) -> Result<Opened<D>, DataError> {
        let (_, _, _) = (options, fresh, Self { disk });
        let source = std::io::Error::from(std::io::ErrorKind::Unsupported);
        Err(DataError::Io { path: dir.to_path_buf(), action: "open", source })
    }

    /// Makes this node a member of a cluster; durable on return.
    ///
    /// # Errors
    /// The disk failed; the log is latched.
    ///
    /// # Panics
    /// When the node belongs to a cluster already.
    pub fn form(&mut self, formed: &Formed) -> Result<(), LatchError> {
        assert!(formed.cluster.0 != 0);
        let _ = &mut self.disk;
        Ok(())
    }

    /// Stores what the formation protocol must not forget, opaque here; durable on return.
    ///
    /// # Errors
    /// The disk failed; the log is latched.
    pub fn set_formation_state(&mut self, bytes: &[u8]) -> Result<(), LatchError> {
        let _ = (&mut self.disk, bytes);
        Ok(())
    }

    /// What [`set_formation_state`](Self::set_formation_state) stored last; empty when nothing.
    #[must_use]
    pub fn formation_state(&self) -> Bytes {
        Bytes::new()
    }

    /// Makes writes durable in the order given, with one sync for all their records. Returns the tickets of
    /// everything that is durable now; writes without space on disk wait and are tried again by the next call.
    ///
    /// # Errors
    /// The disk failed, now or earlier; the log is latched for good.
    pub fn write(&mut self, batch: Vec<Persist>) -> Result<Vec<Ticket>, LatchError> {
        let _ = &mut self.disk;
        Ok(batch.into_iter().map(|persist| persist.ticket).collect())
    }

    /// Remembers the highest durable epoch seen of a peer; written with the next hard state.
    pub fn note_peer_epoch(&mut self, node: NodeId, epoch: u64) {
        let _ = (&mut self.disk, node, epoch);
    }

    /// To be called when no write waits: proves durably that the last batch was synced (decision 9) and
    /// prepares the next segment. Costs nothing when there is nothing to do.
    ///
    /// # Errors
    /// The disk failed, now or earlier; the log is latched for good.
    pub fn seal_if_idle(&mut self) -> Result<(), LatchError> {
        let _ = &mut self.disk;
        Ok(())
    }

    /// Reads entries back, every byte checked. `None` when the first one is no longer there or damaged.
    #[must_use]
    pub fn read(&self, fetch: &Fetch) -> Option<Vec<Entry>> {
        let _ = (fetch, &self.disk);
        None
    }

    /// The durable epoch (decision 10), to travel in every promise.
    #[must_use]
    pub fn epoch(&self) -> u64 {
        0
    }

    /// The log's condition.
    #[must_use]
    pub fn status(&self) -> LogStatus {
        LogStatus {
            compacted: raft_core::EntryId::ZERO,
            last: raft_core::EntryId::ZERO,
            durable_epoch: 0,
            sync_epoch: 0,
            segments: 0,
            full: false,
            stalled: 0,
            latched: false,
            damage: None,
        }
    }

    /// Marks the directory as stopped cleanly and gives up its lock.
    ///
    /// # Errors
    /// The disk failed, now or earlier.
    pub fn close(self) -> Result<(), LatchError> {
        Ok(())
    }
}
