//! Changing the store: one command, one revision.

use bytes::Bytes;

use crate::check::{check_delete, check_put, check_txn};
use crate::error::KvError;
use crate::key_range::KeyRange;
use crate::proto::etcdserverpb::request_op::Request;
use crate::proto::etcdserverpb::response_op::Response as OpResponse;
use crate::proto::etcdserverpb::{
    DeleteRangeRequest, DeleteRangeResponse, PutRequest, PutResponse, ResponseHeader, ResponseOp,
    TxnRequest, TxnResponse,
};
use crate::proto::mvccpb::KeyValue;
use crate::store::Store;
use crate::store::read::{View, header};
use crate::store::version::{Key, Live, Revision, Version};

impl Store {
    pub(super) fn put(&mut self, request: &PutRequest) -> Result<PutResponse, KvError> {
        check_put(request)?;
        self.check_put_state(request)?;
        let mut writes = Writes::begin(self);
        let response = writes.put(request);
        writes.commit();
        Ok(response)
    }

    pub(super) fn delete_range(
        &mut self,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, KvError> {
        check_delete(request)?;
        let mut writes = Writes::begin(self);
        let response = writes.delete_range(request);
        writes.commit();
        Ok(response)
    }

    pub(super) fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, KvError> {
        // The number of operations is the proposer's setting, checked before it proposed.
        check_txn(request, usize::MAX)?;
        let branches = Branches::choose(&self.view(), request);
        self.check_txn_state(request, &branches)?;
        let mut writes = Writes::begin(self);
        let mut response = writes.txn(request, &branches)?;
        response.header = header(writes.seen_revision());
        writes.commit();
        Ok(response)
    }

    /// What a put needs of the state as it is before the whole command.
    fn check_put_state(&self, request: &PutRequest) -> Result<(), KvError> {
        if request.lease != 0 && !self.leases.contains(request.lease) {
            return Err(KvError::LeaseNotFound);
        }
        if request.ignore_value || request.ignore_lease {
            let newest = self.data.newest(&request.key, self.revision);
            if newest.is_none_or(|version| !version.is_live()) {
                return Err(KvError::KeyNotFound);
            }
        }
        Ok(())
    }

    /// Checks the operations that will run, so that running them cannot fail half-way.
    fn check_txn_state(&self, request: &TxnRequest, branches: &Branches) -> Result<(), KvError> {
        let mut nested = branches.nested.iter();
        for op in branches.ops(request) {
            match &op.request {
                Some(Request::RequestRange(range)) => self.view().check_range_op(range)?,
                Some(Request::RequestPut(put)) => self.check_put_state(put)?,
                Some(Request::RequestTxn(txn)) => {
                    if let Some(branches) = nested.next() {
                        self.check_txn_state(txn, branches)?;
                    }
                }
                Some(Request::RequestDeleteRange(_)) | None => {}
            }
        }
        Ok(())
    }
}

/// Which branch each transaction takes, decided before the first write.
struct Branches {
    succeeded: bool,
    /// Of the transactions in the chosen branch, in order.
    nested: Vec<Self>,
}

impl Branches {
    fn choose(view: &View<'_>, request: &TxnRequest) -> Self {
        let succeeded = request.compare.iter().all(|compare| view.compare(compare));
        let mut branches = Self { succeeded, nested: Vec::new() };
        for op in branches.ops(request) {
            if let Some(Request::RequestTxn(txn)) = &op.request {
                branches.nested.push(Self::choose(view, txn));
            }
        }
        branches
    }

    /// The operations of the chosen branch.
    fn ops<'a>(&self, request: &'a TxnRequest) -> &'a [crate::proto::etcdserverpb::RequestOp] {
        if self.succeeded { &request.success } else { &request.failure }
    }
}

/// The writes of one command: all at the revision after the present one.
pub(super) struct Writes<'a> {
    store: &'a mut Store,
    /// The sub-revision of the next write.
    next_sub: u32,
}

impl<'a> Writes<'a> {
    pub(super) const fn begin(store: &'a mut Store) -> Self {
        Self { store, next_sub: 0 }
    }

    /// The revision exists only if something was written.
    pub(super) fn commit(self) {
        if self.next_sub > 0 {
            self.store.revision += 1;
        }
    }

    const fn write_revision(&self) -> i64 {
        self.store.revision + 1
    }

    /// What a read among the operations sees: everything written so far.
    const fn seen_revision(&self) -> i64 {
        if self.next_sub > 0 { self.write_revision() } else { self.store.revision }
    }

    fn take_revision(&mut self) -> Revision {
        let revision = Revision { main: self.write_revision(), sub: self.next_sub };
        self.next_sub += 1;
        revision
    }

    fn put(&mut self, request: &PutRequest) -> PutResponse {
        let before = self.store.data.newest(&request.key, self.write_revision());
        let live_before = before.as_ref().and_then(Version::live);
        // The key is there when it is to be kept, unless the same command deleted it; then it is empty.
        let value = if request.ignore_value {
            live_before.map_or(&[][..], |live| live.value)
        } else {
            &request.value
        };
        let lease = if request.ignore_lease {
            live_before.map_or(0, |live| live.lease)
        } else {
            request.lease
        };
        let live = Live {
            value,
            create_revision: live_before
                .map_or_else(|| self.write_revision(), |live| live.create_revision),
            version: live_before.map_or(1, |live| live.version + 1),
            lease,
        };
        self.store.leases.reattach(&request.key, live_before.map_or(0, |live| live.lease), lease);
        let prev_kv = match &before {
            Some(version) if request.prev_kv && version.is_live() => Some(version.key_value()),
            _ => None,
        };
        let key = before.as_ref().map_or_else(|| Key::new(&request.key), |it| it.key().clone());
        let version = Version::new(self.take_revision(), key, Some(live));
        self.store.append(before.as_ref(), version);
        PutResponse { header: header(self.seen_revision()), prev_kv }
    }

    fn delete_range(&mut self, request: &DeleteRangeRequest) -> DeleteRangeResponse {
        let range = KeyRange::new(&request.key, &request.range_end);
        let mut found = Vec::new();
        self.store.data.walk(&range, self.write_revision(), |version, _| {
            found.push(version.clone());
            std::ops::ControlFlow::Continue(())
        });
        #[cfg(mutants)]
        if raft_core::mutant::is_active(32) {
            let order = std::hash::RandomState::new();
            found.sort_by_key(|version| std::hash::BuildHasher::hash_one(&order, &**version.key()));
        }
        for version in &found {
            self.bury(version);
        }
        let prev_kvs: Vec<KeyValue> = if request.prev_kv {
            found.iter().map(|version| version.key_value()).collect()
        } else {
            Vec::new()
        };
        DeleteRangeResponse {
            header: header(self.seen_revision()),
            deleted: i64::try_from(found.len()).unwrap_or(i64::MAX),
            prev_kvs,
        }
    }

    /// Deletes one key, if it is there.
    pub(super) fn delete(&mut self, key: &Bytes) {
        let newest = self.store.data.newest(key, self.write_revision());
        if let Some(version) = newest.filter(Version::is_live) {
            self.bury(&version);
        }
    }

    /// Ends the life of a key whose newest version this is.
    fn bury(&mut self, version: &Version) {
        self.store.leases.reattach(version.key(), version.lease(), 0);
        let tombstone = Version::new(self.take_revision(), version.key().clone(), None);
        self.store.append(Some(version), tombstone);
    }

    fn txn(&mut self, request: &TxnRequest, branches: &Branches) -> Result<TxnResponse, KvError> {
        let mut nested = branches.nested.iter();
        let mut responses = Vec::new();
        for op in branches.ops(request) {
            let response = match &op.request {
                Some(Request::RequestRange(range)) => {
                    let revision = self.seen_revision();
                    let compact_revision = self.store.compact_revision;
                    let view = View { data: &self.store.data, revision, compact_revision };
                    Some(OpResponse::ResponseRange(view.range(range)?))
                }
                Some(Request::RequestPut(put)) => Some(OpResponse::ResponsePut(self.put(put))),
                Some(Request::RequestDeleteRange(delete)) => {
                    Some(OpResponse::ResponseDeleteRange(self.delete_range(delete)))
                }
                Some(Request::RequestTxn(txn)) => match nested.next() {
                    Some(branches) => Some(OpResponse::ResponseTxn(self.txn(txn, branches)?)),
                    None => None,
                },
                None => None,
            };
            responses.push(ResponseOp { response });
        }
        // The header of an inner transaction is there and empty, as etcd's is.
        let header = Some(ResponseHeader::default());
        Ok(TxnResponse { header, succeeded: branches.succeeded, responses })
    }
}

impl Store {
    /// Adds a version to the unpublished end of history, after `before` of the same key.
    fn append(&mut self, before: Option<&Version>, version: Version) {
        // A tombstone that is replaced was counted when it was written.
        if let Some(before) = before.filter(|before| before.is_live()) {
            self.garbage.add_version(before, Some(&version));
        }
        self.garbage.add_version(&version, None);
        self.logical_size += version.weight();
        self.data.insert(version);
    }
}
