//! Leases: what is replicated of them. Which exist, how often each was renewed, which keys belong to it.
//!
//! There is no clock here. The leader's [`LeaseClock`](crate::LeaseClock) proposes that a lease end, and names the
//! renewals that it knew; an expiry that a renewal overtook in the log, or that a deposed leader proposed, is
//! void. So all members agree about every lease, and a leader that wakes up after a pause ends none.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;
use bytes::Bytes;
use raft_core::Term;

use crate::check::check_lease_grant;
use crate::error::KvError;
use crate::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseRevokeRequest, LeaseRevokeResponse,
};
use crate::proto::raftkv::{Expiry, LeaseExpire};
use crate::store::Store;
use crate::store::read::header;
use crate::store::write::Writes;

/// One lease.
#[derive(Debug, Default)]
pub(crate) struct Lease {
    /// Seconds.
    pub(super) ttl: i64,
    /// How often it was renewed.
    pub(super) renewals: u64,
    /// Exactly the keys whose newest version carries the lease.
    pub(crate) keys: BTreeSet<Bytes>,
}

/// All leases, and who is told of changes.
#[derive(Debug, Default)]
pub(crate) struct Leases {
    pub(crate) table: BTreeMap<i64, Lease>,
    listener: Option<Listener>,
}

/// To the [`LeaseChanges`] of this store.
#[derive(Debug)]
struct Listener {
    changes: Sender<LeaseChange>,
    waker: Arc<AtomicWaker>,
    /// Something was sent since the last wake.
    news: bool,
}

/// Something about leases that applying a command, or a restore, has changed.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum LeaseChange {
    /// A lease was granted or renewed.
    Alive(LeaseRecord),
    /// This lease is gone.
    Ended(i64),
    /// The state was replaced; these are all leases now.
    Replaced(Vec<LeaseRecord>),
}

/// What is replicated of a lease beside its keys.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseRecord {
    /// Never 0.
    pub id: i64,
    /// Seconds.
    pub ttl: i64,
    /// How often it was renewed.
    pub renewals: u64,
}

/// What [`Query::Lease`](crate::Query::Lease) finds.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LeaseState {
    /// The seconds that were granted.
    pub ttl: i64,
    /// The keys that end with it, in order, if they were asked for.
    pub keys: Vec<Bytes>,
}

/// Every change of the leases in the order of the log, as this member applies it. Whoever holds this must keep
/// up: what was not taken waits in memory. Made by [`Store::lease_changes`].
#[derive(Debug)]
pub struct LeaseChanges {
    changes: Receiver<LeaseChange>,
    waker: Arc<AtomicWaker>,
}

impl LeaseChanges {
    /// The next change, if one waits.
    pub fn take(&mut self) -> Option<LeaseChange> {
        self.changes.try_recv().ok()
    }

    /// Ready once a change waits or waited a moment ago; false when the store is gone and none will come.
    pub fn poll_changed(
        &mut self,
        context: &Context<'_>,
        into: &mut Vec<LeaseChange>,
    ) -> Poll<bool> {
        // Registered before looking, so that no change slips between.
        self.waker.register(context.waker());
        loop {
            match self.changes.try_recv() {
                Ok(change) => into.push(change),
                Err(TryRecvError::Empty) if into.is_empty() => return Poll::Pending,
                Err(TryRecvError::Empty) => return Poll::Ready(true),
                Err(TryRecvError::Disconnected) => return Poll::Ready(!into.is_empty()),
            }
        }
    }
}

impl Leases {
    pub(super) fn contains(&self, id: i64) -> bool {
        self.table.contains_key(&id)
    }

    /// Moves a key from one lease to another; 0 is none.
    pub(super) fn reattach(&mut self, key: &[u8], from: i64, to: i64) {
        if from == to {
            return;
        }
        if let Some(lease) = self.table.get_mut(&from) {
            lease.keys.remove(key);
        }
        if let Some(lease) = self.table.get_mut(&to) {
            // A copy of its own: a slice of the log entry would keep all of the entry in memory.
            lease.keys.insert(Bytes::copy_from_slice(key));
        }
    }

    /// Everything that is replicated, in order of id.
    pub(super) fn records(&self) -> Vec<LeaseRecord> {
        let record = |(id, lease): (&i64, &Lease)| LeaseRecord {
            id: *id,
            ttl: lease.ttl,
            renewals: lease.renewals,
        };
        self.table.iter().map(record).collect()
    }

    /// Replaces everything.
    pub(super) fn replace(&mut self, table: BTreeMap<i64, Lease>) {
        self.table = table;
        if self.listener.is_some() {
            let all = self.records();
            self.tell(LeaseChange::Replaced(all));
        }
    }

    /// Wakes whoever listens, if there is news.
    pub(super) fn flush(&mut self) {
        if let Some(listener) = self.listener.as_mut().filter(|listener| listener.news) {
            listener.news = false;
            listener.waker.wake();
        }
    }

    fn tell(&mut self, change: LeaseChange) {
        if let Some(listener) = &mut self.listener {
            listener.news = true;
            if listener.changes.send(change).is_err() {
                // Nobody listens any more.
                self.listener = None;
            }
        }
    }
}

impl Store {
    /// Begins to tell what happens to leases. Only the newest listener is told; it hears first what is there.
    pub fn lease_changes(&mut self) -> LeaseChanges {
        let (sender, changes) = mpsc::channel();
        let waker = Arc::new(AtomicWaker::new());
        self.leases.listener =
            Some(Listener { changes: sender, waker: Arc::clone(&waker), news: false });
        let all = self.leases.records();
        self.leases.tell(LeaseChange::Replaced(all));
        LeaseChanges { changes, waker }
    }

    pub(super) fn lease_grant(
        &mut self,
        request: &LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, KvError> {
        check_lease_grant(request)?;
        let (id, ttl) = (request.id, request.ttl);
        if id == 0 {
            // The proposer chooses one for whoever does not.
            return Err(KvError::LeaseNotFound);
        }
        if self.leases.contains(id) {
            return Err(KvError::LeaseExists);
        }
        self.leases.table.insert(id, Lease { ttl, ..Lease::default() });
        self.leases.tell(LeaseChange::Alive(LeaseRecord { id, ttl, renewals: 0 }));
        Ok(LeaseGrantResponse { header: header(self.revision), id, ttl, error: String::new() })
    }

    pub(super) fn lease_revoke(
        &mut self,
        request: &LeaseRevokeRequest,
    ) -> Result<LeaseRevokeResponse, KvError> {
        if !self.end_lease(request.id) {
            return Err(KvError::LeaseNotFound);
        }
        Ok(LeaseRevokeResponse { header: header(self.revision) })
    }

    /// Renews what there is of `ids`. Answers the seconds of each, 0 for what is not there.
    pub(super) fn lease_renew(&mut self, ids: &[i64]) -> Vec<i64> {
        let mut ttls = Vec::with_capacity(ids.len());
        for id in ids {
            let Some(lease) = self.leases.table.get_mut(id) else {
                ttls.push(0);
                continue;
            };
            lease.renewals += 1;
            let record = LeaseRecord { id: *id, ttl: lease.ttl, renewals: lease.renewals };
            ttls.push(record.ttl);
            self.leases.tell(LeaseChange::Alive(record));
        }
        ttls
    }

    /// Ends leases whose time is over. `term` is that of the entry. Answers which ended.
    pub(super) fn lease_expire(&mut self, term: Term, request: &LeaseExpire) -> Vec<i64> {
        if term != Term(request.term) {
            return Vec::new();
        }
        let mut ended = Vec::new();
        for Expiry { id, renewals } in &request.leases {
            let same = self.leases.table.get(id).is_some_and(|lease| lease.renewals == *renewals);
            if same && self.end_lease(*id) {
                ended.push(*id);
            }
        }
        ended
    }

    /// Removes a lease and its keys, all of them at one revision.
    fn end_lease(&mut self, id: i64) -> bool {
        let Some(lease) = self.leases.table.remove(&id) else { return false };
        let mut writes = Writes::begin(self);
        for key in &lease.keys {
            writes.delete(key);
        }
        writes.commit();
        self.leases.tell(LeaseChange::Ended(id));
        true
    }

    pub(super) fn lease_state(&self, id: i64, keys: bool) -> Option<LeaseState> {
        let lease = self.leases.table.get(&id)?;
        let keys = if keys { lease.keys.iter().cloned().collect() } else { Vec::new() };
        Some(LeaseState { ttl: lease.ttl, keys })
    }
}
