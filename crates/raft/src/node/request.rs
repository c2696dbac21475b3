//! What the handle asks of the driver, and the budget that keeps waiting requests within bounds.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use raft_core::{Index, StateMachine};
use tokio::sync::oneshot;

use crate::error::{AdminError, ReadError};
use crate::message::Admin;
use crate::node::member_info::MemberInfo;
use crate::waiter::{ProposeWaiter, QueryWaiter};

/// The one who waits for a read index.
pub type ReadWaiter = oneshot::Sender<Result<Index, ReadError>>;
/// The one who waits for an administrator's request: the log index of the change, zero for a transfer.
pub type AdminWaiter = oneshot::Sender<Result<Index, AdminError>>;

/// One request of a client of this node.
pub enum Request<S: StateMachine> {
    /// Replicate a command.
    Propose {
        /// The number in the payload's header.
        request: u64,
        /// Header and command, encoded once by the caller.
        payload: Bytes,
        /// Memory accounted for until the answer.
        permit: Option<Permit>,
        /// Who waits.
        waiter: ProposeWaiter<S>,
    },
    /// Wait until this member has applied a linearizable index.
    ReadIndex {
        /// Who waits.
        waiter: ReadWaiter,
    },
    /// Answer a question about the state.
    Query {
        /// The question.
        query: S::Query,
        /// From a state that reflects every write acknowledged before; else from the state as it is here.
        linearizable: bool,
        /// Who waits.
        waiter: QueryWaiter<S>,
    },
    /// Change the membership or hand over leadership.
    Admin {
        /// A number like a proposal's.
        request: u64,
        /// What.
        admin: Admin,
        /// Who waits.
        waiter: AdminWaiter,
    },
    /// Add the empty node that is reached at the address in `info`.
    Add {
        /// A number like a proposal's.
        request: u64,
        /// The new member's attributes.
        info: MemberInfo,
        /// Promote it once it has caught up; answered when it votes. Else answered when it is a learner.
        voter: bool,
        /// Who waits.
        waiter: AdminWaiter,
    },
    /// Hand over leadership, finish, stop.
    Shutdown,
}

/// The variant's name and number; commands and queries need not be printable.
impl<S: StateMachine> fmt::Debug for Request<S> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Propose { request, payload, .. } => {
                write!(f, "propose {request:x} of {} bytes", payload.len())
            }
            Self::ReadIndex { .. } => write!(f, "read index"),
            Self::Query { linearizable, .. } => write!(f, "query, linearizable: {linearizable}"),
            Self::Admin { request, admin, .. } => write!(f, "admin {request:x} {admin:?}"),
            Self::Add { request, info, .. } => write!(f, "add {request:x} {}", info.peer_address),
            Self::Shutdown => write!(f, "shutdown"),
        }
    }
}

/// Bytes that may wait at once, shared by all callers without a lock.
#[derive(Clone, Debug)]
pub(crate) struct Budget {
    used: Arc<AtomicUsize>,
    bytes_max: usize,
}

impl Budget {
    pub(crate) fn new(bytes_max: usize) -> Self {
        Self { used: Arc::new(AtomicUsize::new(0)), bytes_max }
    }

    /// Takes `bytes` until the permit is dropped; `None` when too much waits already.
    pub(crate) fn take(&self, bytes: usize) -> Option<Permit> {
        let taken = self.used.fetch_update(Ordering::AcqRel, Ordering::Acquire, |used| {
            used.checked_add(bytes).filter(|sum| *sum <= self.bytes_max)
        });
        taken.ok().map(|_| Permit { used: Arc::clone(&self.used), bytes })
    }
}

/// Bytes of a waiting request; given back when dropped.
#[derive(Debug)]
pub struct Permit {
    used: Arc<AtomicUsize>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.used.fetch_sub(self.bytes, Ordering::AcqRel);
    }
}

/// The numbers of one run's requests: the durable epoch of its start above, a counter below, so that no number
/// is ever used twice by one incarnation.
#[must_use]
pub fn first_request(epoch: u64) -> u64 {
    // 2^24 starts, segment rolls and terms; 2^40 requests between two of them.
    epoch << 40
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_budget_is_given_back_when_permits_are_dropped() {
        let budget = Budget::new(10);
        let first = budget.take(6).unwrap();
        assert!(budget.take(5).is_none());
        let second = budget.take(4).unwrap();
        drop(first);
        assert!(budget.take(6).is_some());
        drop(second);
        assert!(budget.take(10).is_some());
        assert!(budget.take(usize::MAX).is_none());
    }
}
