//! The state that a stopped member would have after a start, if all of its log were committed.

use raft_core::{EntryId, StateMachine};

use crate::apply::{ApplyCompletion, ApplyRequest, ApplyWorker};
use crate::disk::StdDisk;
use crate::error::NodeError;
use crate::log::Survivor;

/// Restores the newest snapshot and applies every entry behind it. Which of them were committed is not kept on disk:
/// alone in its cluster a member has committed them all, among others the newest may be unknown to them.
///
/// # Errors
/// When something is damaged or not understood.
pub fn replay<S: StateMachine>(survivor: &Survivor<StdDisk>, machine: S) -> Result<S, NodeError> {
    let source = survivor.snapshot_source().map_err(NodeError::Data)?;
    let mut worker = match source {
        Some(source) => ApplyWorker::restored(machine, &survivor.snapshot_meta(), &source)?,
        None => ApplyWorker::new(machine),
    };
    let EntryId { index, .. } = survivor.snapshot();
    let entries = survivor.entries().filter(|entry| entry.id.index > index).cloned().collect();
    for completion in worker.handle(vec![ApplyRequest::Entries { entries, waiters: Vec::new() }]) {
        if let ApplyCompletion::Failed(error) = completion {
            return Err(error);
        }
    }
    Ok(worker.into_machine())
}
