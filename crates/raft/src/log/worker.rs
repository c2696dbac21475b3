//! The log's thread as a function: requests in order in, completions out.

use std::path::PathBuf;

use bytes::Bytes;
use raft_core::{Digest, Entry, EntryId, Fetch, NodeId, Persist, Ticket};

use super::{DataState, Formed, LatchError, Log, Mend, Missing, Supply};
use crate::error::DataError;
use crate::io::Disk;

/// Payload bytes handed to a peer at once, unless one entry has more.
const SUPPLY_BYTES_MAX: usize = 1 << 20;

/// What the log's thread can be asked for.
#[derive(Debug)]
#[expect(clippy::large_enum_variant, reason = "one a turn and moved twice; a box would cost more")]
pub enum LogRequest {
    /// Make this durable.
    Write(Persist),
    /// Read old entries.
    Fetch(Fetch),
    /// Remember a peer's durable epoch.
    PeerEpoch(NodeId, u64),
    /// Store the formation protocol's state.
    FormationState(Bytes),
    /// Become a member of a cluster.
    Form(Box<Formed>),
    /// A peer wants these entries, or a snapshot that includes them if the last is true.
    Supply(NodeId, Vec<(EntryId, Digest)>, bool),
    /// An entry that is damaged here.
    Fill(Entry),
    /// Something has changed beside the damaged log: look at it again.
    Reopen,
    /// This file looks damaged at this offset: look, and repair what can be repaired.
    Mend(PathBuf, u64),
}

/// What the log's thread answers.
#[derive(Debug)]
pub enum LogCompletion {
    /// These writes are durable.
    Persisted(Vec<Ticket>),
    /// The entries asked for, if they are still there.
    Fetched(Fetch, Option<Vec<Entry>>),
    /// The formation protocol's state is durable.
    FormationStateStored,
    /// The cluster record is durable.
    FormedStored,
    /// Whether there is space for further segments; sent when it changes.
    Full(bool),
    /// What the log has of what a peer wants.
    Supplied(NodeId, Vec<(EntryId, Digest, Supply)>, bool),
    /// An entry was looked at: this is still missing.
    Filled(Vec<Missing>),
    /// The damaged log was looked at again.
    Reopened(DataState),
    /// A file that looked damaged, where, and what became of it.
    Mended(PathBuf, u64, Mend),
    /// The log is damaged beyond what others can repair.
    Unrepairable(DataError),
    /// The disk failed: nothing more will become durable.
    Latched(LatchError),
}

/// Owns the [`Log`] on its thread.
pub struct LogWorker<D: Disk> {
    log: Log<D>,
    full: bool,
    /// Durable epoch handed out last.
    latched: bool,
}

impl<D: Disk> LogWorker<D> {
    /// A worker for an open log.
    #[must_use]
    pub fn new(log: Log<D>) -> Self {
        Self { full: log.status().full, latched: false, log }
    }

    /// Handles everything that waited, in order: consecutive writes become one batch with one sync.
    pub fn handle(&mut self, requests: Vec<LogRequest>) -> Vec<LogCompletion> {
        let mut completions = Vec::new();
        let mut batch = Vec::new();
        for request in requests {
            if let LogRequest::Write(persist) = request {
                batch.push(persist);
                continue;
            }
            self.flush(&mut batch, &mut completions);
            let outcome = match request {
                LogRequest::Write(_) => continue,
                LogRequest::Fetch(fetch) => {
                    completions.push(LogCompletion::Fetched(fetch, self.log.read(&fetch)));
                    Ok(())
                }
                LogRequest::PeerEpoch(node, epoch) => {
                    self.log.note_peer_epoch(node, epoch);
                    Ok(())
                }
                LogRequest::FormationState(bytes) => self
                    .log
                    .set_formation_state(&bytes)
                    .map(|()| completions.push(LogCompletion::FormationStateStored)),
                LogRequest::Supply(to, wants, snapshot) => {
                    let supplies = self.supply(wants);
                    completions.push(LogCompletion::Supplied(to, supplies, snapshot));
                    Ok(())
                }
                LogRequest::Fill(entry) => {
                    let outcome = self.log.fill(&entry);
                    self.reopened(outcome, &mut completions)
                }
                LogRequest::Reopen => {
                    let outcome = self.log.look_again();
                    self.reopened(outcome, &mut completions)
                }
                LogRequest::Mend(path, offset) => self.log.mend(&path).map(|mend| {
                    completions.push(LogCompletion::Mended(path, offset, mend));
                }),
                LogRequest::Form(formed) => {
                    self.log.form(&formed).map(|()| completions.push(LogCompletion::FormedStored))
                }
            };
            self.latch(outcome, &mut completions);
        }
        self.flush(&mut batch, &mut completions);
        self.report_space(&mut completions);
        completions
    }

    /// To be called after the completions were delivered, also when more waits: a bounded step of making the next
    /// segment ready, so that no write has to wait for it.
    pub fn housekeep(&mut self) -> Vec<LogCompletion> {
        let mut completions = Vec::new();
        let outcome = self.log.housekeep();
        self.latch(outcome, &mut completions);
        self.report_space(&mut completions);
        completions
    }

    /// To be called when nothing waits, after the completions were delivered.
    pub fn idle(&mut self) -> Vec<LogCompletion> {
        let mut completions = Vec::new();
        if self.log.status().stalled > 0 {
            let outcome = self.log.write(Vec::new());
            self.persisted(outcome, &mut completions);
        }
        let outcome = self.log.seal_if_idle();
        self.latch(outcome, &mut completions);
        self.report_space(&mut completions);
        completions
    }

    /// Whether [`idle`](Self::idle) is to be called again and again: the disk is full, or writes wait for space.
    #[must_use]
    pub fn waits_for_space(&self) -> bool {
        let status = self.log.status();
        !self.latched && (status.full || status.stalled > 0)
    }

    /// As much as fits into a few messages.
    fn supply(&self, wants: Vec<(EntryId, Digest)>) -> Vec<(EntryId, Digest, Supply)> {
        let mut bytes = 0;
        let mut supplies = Vec::new();
        for (id, digest) in wants {
            if bytes >= SUPPLY_BYTES_MAX {
                break;
            }
            let supply = self.log.supply(id, digest);
            if let Supply::Have(entry) = &supply {
                bytes += entry.payload.len();
            }
            supplies.push((id, digest, supply));
        }
        supplies
    }

    /// Tells what a damaged log is after something of it came back.
    fn reopened(
        &self,
        outcome: Result<Option<DataState>, DataError>,
        completions: &mut Vec<LogCompletion>,
    ) -> Result<(), LatchError> {
        completions.push(match outcome {
            Ok(Some(state)) => LogCompletion::Reopened(state),
            Ok(None) => LogCompletion::Filled(self.log.missing()),
            Err(error) => {
                // A disk that failed is told as such.
                self.log.check()?;
                LogCompletion::Unrepairable(error)
            }
        });
        Ok(())
    }

    /// The log, for views.
    #[must_use]
    pub const fn log(&self) -> &Log<D> {
        &self.log
    }

    /// Stops cleanly.
    ///
    /// # Errors
    /// The disk failed, now or earlier.
    pub fn close(self) -> Result<(), LatchError> {
        self.log.close()
    }

    fn flush(&mut self, batch: &mut Vec<Persist>, completions: &mut Vec<LogCompletion>) {
        if !batch.is_empty() {
            let outcome = self.log.write(std::mem::take(batch));
            self.persisted(outcome, completions);
        }
    }

    fn persisted(
        &mut self,
        outcome: Result<Vec<Ticket>, LatchError>,
        completions: &mut Vec<LogCompletion>,
    ) {
        let outcome = outcome.map(|tickets| {
            if !tickets.is_empty() {
                completions.push(LogCompletion::Persisted(tickets));
            }
        });
        self.latch(outcome, completions);
    }

    /// Reports the first failure, once.
    fn latch(&mut self, outcome: Result<(), LatchError>, completions: &mut Vec<LogCompletion>) {
        if let Err(error) = outcome
            && !self.latched
        {
            self.latched = true;
            completions.push(LogCompletion::Latched(error));
        }
    }

    fn report_space(&mut self, completions: &mut Vec<LogCompletion>) {
        let full = self.log.status().full;
        if full != self.full {
            self.full = full;
            completions.push(LogCompletion::Full(full));
        }
    }
}
