//! The same store, written as naively as possible: a list of everything that was ever written, read from
//! the beginning for every question.

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft_kv::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use raft_kv::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use raft_kv::proto::etcdserverpb::request_op::Request;
use raft_kv::proto::etcdserverpb::response_op::Response as OpResponse;
use raft_kv::proto::etcdserverpb::*;
use raft_kv::proto::mvccpb::{Event, KeyValue, event::EventType};
use raft_kv::{
    Expiry, KvError, LeaseState, check_delete, check_lease_grant, check_put, check_range, check_txn,
};

#[derive(Clone, Debug)]
pub(crate) struct Model {
    /// Every write with its revision; `None` is a deletion.
    history: Vec<(i64, Bytes, Option<KeyValue>)>,
    pub(crate) revision: i64,
    pub(crate) compact_revision: i64,
    /// Seconds and number of renewals. Which keys a lease has, the keys say.
    leases: BTreeMap<i64, (i64, u64)>,
}

fn header(revision: i64) -> Option<ResponseHeader> {
    Some(ResponseHeader { revision, ..ResponseHeader::default() })
}

fn in_range(key: &[u8], start: &[u8], end: &[u8]) -> bool {
    match end {
        b"" => key == start,
        b"\0" => key >= start,
        _ => key >= start && key < end,
    }
}

impl Model {
    pub(crate) fn new() -> Self {
        Self { history: Vec::new(), revision: 1, compact_revision: -1, leases: BTreeMap::new() }
    }

    /// Everything present at a revision.
    fn present(&self, at: i64) -> BTreeMap<Bytes, KeyValue> {
        let mut present = BTreeMap::new();
        for (_, key, kv) in self.history.iter().filter(|write| write.0 <= at) {
            match kv {
                Some(kv) => present.insert(key.clone(), kv.clone()),
                None => present.remove(key),
            };
        }
        present
    }

    fn matching(&self, at: i64, key: &[u8], end: &[u8]) -> Vec<KeyValue> {
        self.present(at).into_values().filter(|kv| in_range(&kv.key, key, end)).collect()
    }

    pub(crate) fn range(&self, request: &RangeRequest) -> Result<RangeResponse, KvError> {
        check_range(request)?;
        let at = match request.revision {
            revision if revision > self.revision => return Err(KvError::FutureRevision),
            revision if revision <= 0 => self.revision,
            revision if revision < self.compact_revision => return Err(KvError::Compacted),
            revision => revision,
        };
        let mut kvs = self.matching(at, &request.key, &request.range_end);
        let count = i64::try_from(kvs.len()).unwrap();
        let filters = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ];
        // etcd's odd case: no order, but something to sort by; the limit (and one more) comes first.
        if request.sort_order() == SortOrder::None && request.limit > 0 && filters == [0; 4] {
            kvs.truncate(usize::try_from(request.limit).unwrap() + 1);
        }
        let [min_mod, max_mod, min_create, max_create] = filters;
        kvs.retain(|kv| {
            (min_mod == 0 || kv.mod_revision >= min_mod)
                && (max_mod == 0 || kv.mod_revision <= max_mod)
                && (min_create == 0 || kv.create_revision >= min_create)
                && (max_create == 0 || kv.create_revision <= max_create)
        });
        match request.sort_target() {
            SortTarget::Key => {}
            SortTarget::Version => kvs.sort_by_key(|kv| kv.version),
            SortTarget::Create => kvs.sort_by_key(|kv| kv.create_revision),
            SortTarget::Mod => kvs.sort_by_key(|kv| kv.mod_revision),
            SortTarget::Value => kvs.sort_by_key(|kv| kv.value.clone()),
        }
        if request.sort_order() == SortOrder::Descend {
            kvs.reverse();
        }
        if request.count_only {
            kvs.clear();
        }
        let mut more = false;
        if request.limit > 0 {
            let limit = usize::try_from(request.limit).unwrap();
            more = kvs.len() > limit;
            kvs.truncate(limit);
        }
        if request.keys_only {
            for kv in &mut kvs {
                kv.value.clear();
            }
        }
        Ok(RangeResponse { header: header(self.revision), kvs, more, count })
    }

    pub(crate) fn put(&mut self, request: &PutRequest) -> Result<PutResponse, KvError> {
        check_put(request)?;
        self.check_put(request)?;
        self.whole(|model, revision| Ok(model.put_at(request, revision)))
    }

    pub(crate) fn delete(
        &mut self,
        request: &DeleteRangeRequest,
    ) -> Result<DeleteRangeResponse, KvError> {
        self.whole(|model, revision| model.delete_at(request, revision))
    }

    pub(crate) fn txn(&mut self, request: &TxnRequest) -> Result<TxnResponse, KvError> {
        check_txn(request, usize::MAX)?;
        let before = self.clone();
        self.whole(|model, revision| {
            let mut response = model.txn_at(request, revision, &before)?;
            response.header = header(model.seen(revision));
            Ok(response)
        })
    }

    pub(crate) fn compact(
        &mut self,
        request: &CompactionRequest,
    ) -> Result<CompactionResponse, KvError> {
        if request.revision <= self.compact_revision {
            return Err(KvError::Compacted);
        }
        if request.revision > self.revision {
            return Err(KvError::FutureRevision);
        }
        self.compact_revision = request.revision;
        Ok(CompactionResponse { header: header(self.revision) })
    }

    pub(crate) fn grant(
        &mut self,
        request: &LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, KvError> {
        check_lease_grant(request)?;
        if request.id == 0 {
            return Err(KvError::LeaseNotFound);
        }
        if self.leases.contains_key(&request.id) {
            return Err(KvError::LeaseExists);
        }
        self.leases.insert(request.id, (request.ttl, 0));
        Ok(LeaseGrantResponse {
            header: header(self.revision),
            id: request.id,
            ttl: request.ttl,
            error: String::new(),
        })
    }

    pub(crate) fn revoke(&mut self, id: i64) -> Result<LeaseRevokeResponse, KvError> {
        let keys = self.lease_keys(id);
        self.leases.remove(&id).ok_or(KvError::LeaseNotFound)?;
        for key in &keys {
            self.history.push((self.revision + 1, key.clone(), None));
        }
        self.revision += i64::from(!keys.is_empty());
        Ok(LeaseRevokeResponse { header: header(self.revision) })
    }

    pub(crate) fn renew(&mut self, ids: &[i64]) -> Vec<i64> {
        let mut renew = |id| match self.leases.get_mut(id) {
            Some((ttl, renewals)) => {
                *renewals += 1;
                *ttl
            }
            None => 0,
        };
        ids.iter().map(&mut renew).collect()
    }

    pub(crate) fn expire(&mut self, in_its_term: bool, leases: &[Expiry]) -> Vec<i64> {
        let mut ended = Vec::new();
        for Expiry { id, renewals } in leases.iter().filter(|_| in_its_term) {
            if self.leases.get(id).is_some_and(|lease| lease.1 == *renewals) {
                self.revoke(*id).unwrap();
                ended.push(*id);
            }
        }
        ended
    }

    pub(crate) fn lease(&self, id: i64) -> Option<LeaseState> {
        let (ttl, _) = self.leases.get(&id)?;
        Some(LeaseState { ttl: *ttl, keys: self.lease_keys(id).into_iter().collect() })
    }

    pub(crate) fn leases(&self) -> Vec<i64> {
        self.leases.keys().copied().collect()
    }

    pub(crate) fn renewals(&self, id: i64) -> u64 {
        self.leases.get(&id).map_or(0, |lease| lease.1)
    }

    fn lease_keys(&self, id: i64) -> BTreeSet<Bytes> {
        let present = self.present(self.revision).into_values();
        present.filter(|kv| kv.lease == id).map(|kv| kv.key).collect()
    }

    pub(crate) fn events(&self, from: i64) -> Result<Vec<Event>, KvError> {
        if from < self.compact_revision {
            return Err(KvError::Compacted);
        }
        let writes = self.history.iter().filter(|write| write.0 >= from);
        let events = writes.map(|(revision, key, kv)| match kv {
            Some(kv) => {
                Event { r#type: EventType::Put.into(), kv: Some(kv.clone()), prev_kv: None }
            }
            None => Event {
                r#type: EventType::Delete.into(),
                kv: Some(KeyValue {
                    key: key.clone(),
                    mod_revision: *revision,
                    ..KeyValue::default()
                }),
                prev_kv: None,
            },
        });
        Ok(events.collect())
    }

    /// All or nothing, and a new revision only for a write.
    fn whole<T>(
        &mut self,
        run: impl FnOnce(&mut Self, i64) -> Result<T, KvError>,
    ) -> Result<T, KvError> {
        let mut copy = self.clone();
        let revision = self.revision + 1;
        let response = run(&mut copy, revision)?;
        copy.revision = copy.seen(revision);
        *self = copy;
        Ok(response)
    }

    /// The revision that is visible while `revision` is being written.
    fn seen(&self, revision: i64) -> i64 {
        if self.history.last().is_some_and(|write| write.0 == revision) {
            revision
        } else {
            self.revision
        }
    }

    fn check_put(&self, request: &PutRequest) -> Result<(), KvError> {
        if request.lease != 0 && !self.leases.contains_key(&request.lease) {
            return Err(KvError::LeaseNotFound);
        }
        let there = self.present(self.revision).contains_key(&request.key);
        if (request.ignore_value || request.ignore_lease) && !there {
            return Err(KvError::KeyNotFound);
        }
        Ok(())
    }

    fn put_at(&mut self, request: &PutRequest, revision: i64) -> PutResponse {
        let before = self.present(revision).remove(&request.key);
        let mut kv = before.clone().unwrap_or(KeyValue {
            key: request.key.clone(),
            create_revision: revision,
            ..KeyValue::default()
        });
        kv.version += 1;
        kv.mod_revision = revision;
        if !request.ignore_value {
            kv.value = request.value.clone();
        }
        if !request.ignore_lease {
            kv.lease = request.lease;
        }
        self.history.push((revision, kv.key.clone(), Some(kv)));
        let prev_kv = before.filter(|_| request.prev_kv);
        PutResponse { header: header(revision), prev_kv }
    }

    fn delete_at(
        &mut self,
        request: &DeleteRangeRequest,
        revision: i64,
    ) -> Result<DeleteRangeResponse, KvError> {
        check_delete(request)?;
        let found = self.matching(revision, &request.key, &request.range_end);
        for kv in &found {
            self.history.push((revision, kv.key.clone(), None));
        }
        Ok(DeleteRangeResponse {
            header: header(self.seen(revision)),
            deleted: i64::try_from(found.len()).unwrap(),
            prev_kvs: if request.prev_kv { found } else { Vec::new() },
        })
    }

    /// Comparisons and checks of revisions look at the store as it was before the whole transaction.
    fn txn_at(
        &mut self,
        request: &TxnRequest,
        revision: i64,
        before: &Self,
    ) -> Result<TxnResponse, KvError> {
        let succeeded = request.compare.iter().all(|compare| before.compare(compare));
        let ops = if succeeded { &request.success } else { &request.failure };
        let mut responses = Vec::new();
        for op in ops {
            let response = match op.request.as_ref().unwrap() {
                Request::RequestRange(range) => {
                    if range.revision > 0 {
                        before.range(range)?;
                    } else if range.revision != 0 && range.revision < before.compact_revision {
                        return Err(KvError::Compacted);
                    }
                    let now = Self { revision: self.seen(revision), ..self.clone() };
                    OpResponse::ResponseRange(now.range(range)?)
                }
                Request::RequestPut(put) => {
                    before.check_put(put)?;
                    OpResponse::ResponsePut(self.put_at(put, revision))
                }
                Request::RequestDeleteRange(delete) => {
                    OpResponse::ResponseDeleteRange(self.delete_at(delete, revision)?)
                }
                Request::RequestTxn(txn) => {
                    OpResponse::ResponseTxn(self.txn_at(txn, revision, before)?)
                }
            };
            responses.push(ResponseOp { response: Some(response) });
        }
        Ok(TxnResponse { header: Some(ResponseHeader::default()), succeeded, responses })
    }

    fn compare(&self, compare: &Compare) -> bool {
        let mut found = self.matching(self.revision, &compare.key, &compare.range_end);
        if found.is_empty() {
            if compare.target() == CompareTarget::Value {
                return false;
            }
            found.push(KeyValue::default());
        }
        found.iter().all(|kv| {
            let ordering = match compare.target_union.as_ref().unwrap() {
                TargetUnion::Version(version) => kv.version.cmp(version),
                TargetUnion::CreateRevision(revision) => kv.create_revision.cmp(revision),
                TargetUnion::ModRevision(revision) => kv.mod_revision.cmp(revision),
                TargetUnion::Value(value) => kv.value.cmp(value),
                TargetUnion::Lease(lease) => kv.lease.cmp(lease),
            };
            match compare.result() {
                CompareResult::Equal => ordering.is_eq(),
                CompareResult::NotEqual => ordering.is_ne(),
                CompareResult::Greater => ordering.is_gt(),
                CompareResult::Less => ordering.is_lt(),
            }
        })
    }
}
