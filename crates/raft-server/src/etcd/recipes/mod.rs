//! Locks and elections: what etcd's own clients also do by themselves, for clients that would rather ask for it.
//!
//! Both stand on the same queue: keys below a prefix, each held by a lease, in the order of their creation. Whoever is
//! first has the lock or leads; everybody else waits for the one just before. All of it goes through the services for
//! keys, leases and watches, with the client's own metadata, so that whatever is refused there is refused here.

mod election;
mod lock;

use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use raft_kv::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use raft_kv::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use raft_kv::proto::etcdserverpb::request_op::Request as Op;
use raft_kv::proto::etcdserverpb::response_op::Response as OpResponse;
use raft_kv::proto::etcdserverpb::watch_request::RequestUnion;
use raft_kv::proto::etcdserverpb::{
    Compare, DeleteRangeRequest, LeaseGrantRequest, PutRequest, RangeRequest, RangeResponse,
    RequestOp, ResponseHeader, TxnRequest, TxnResponse, WatchCreateRequest, WatchRequest,
    WatchResponse,
};
use raft_kv::proto::mvccpb::event::EventType;
use raft_kv::proto::mvccpb::{Event, KeyValue};
use tokio_stream::StreamExt as _;
use tonic::metadata::MetadataMap;
use tonic::{Extensions, Request, Response, Status};

use super::auth::Governed;
use super::watch::Answers;
use super::{Etcd, errors};
use crate::proto::etcdserverpb::kv_server::Kv;
use crate::proto::etcdserverpb::lease_server::Lease;

/// The seconds of a lease that is made for whoever brings none, as in etcd.
const LEASE_SECONDS: i64 = 60;

/// On whose behalf the services are used.
#[derive(Clone)]
struct Caller {
    etcd: Arc<Etcd>,
    metadata: MetadataMap,
    extensions: Extensions,
}

/// A key in a queue.
struct Place {
    key: Bytes,
    /// The revision that created the key.
    revision: i64,
    /// What was there already.
    found: Option<KeyValue>,
    header: Option<ResponseHeader>,
}

impl Caller {
    /// Lets a request in and takes it apart.
    async fn of<T: Governed>(etcd: &Etcd, request: Request<T>) -> Result<(Self, T), Status> {
        etcd.inspect(&request).await?;
        #[expect(clippy::disallowed_methods, reason = "it was let in just now")]
        let (metadata, extensions, message) = request.into_parts();
        Ok((Self { etcd: etcd.itself(), metadata, extensions }, message))
    }

    fn request<T>(&self, message: T) -> Request<T> {
        Request::from_parts(self.metadata.clone(), self.extensions.clone(), message)
    }

    /// The given lease, or a new one for 0.
    async fn lease(&self, lease: i64) -> Result<i64, Status> {
        if lease != 0 {
            return Ok(lease);
        }
        let request = LeaseGrantRequest { ttl: LEASE_SECONDS, id: 0 };
        Ok(Lease::lease_grant(&*self.etcd, self.request(request)).await?.into_inner().id)
    }

    async fn range(&self, request: RangeRequest) -> Result<RangeResponse, Status> {
        Kv::range(&*self.etcd, self.request(request)).await.map(Response::into_inner)
    }

    /// One operation if the key was created by this revision, 0 for "is not there"; another one if not.
    async fn if_created(
        &self,
        (key, revision): (&Bytes, i64),
        then: Op,
        otherwise: Option<Op>,
    ) -> Result<TxnResponse, Status> {
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Create.into(),
            key: key.clone(),
            range_end: Bytes::new(),
            target_union: Some(TargetUnion::CreateRevision(revision)),
        };
        let op = |op| RequestOp { request: Some(op) };
        let txn = TxnRequest {
            compare: vec![compare],
            success: vec![op(then)],
            failure: otherwise.into_iter().map(op).collect(),
        };
        Kv::txn(&*self.etcd, self.request(txn)).await.map(Response::into_inner)
    }

    /// Takes the lease's place in the queue below `prefix`, which it may have already.
    async fn enqueue(&self, prefix: &[u8], lease: i64, value: Bytes) -> Result<Place, Status> {
        let key = Bytes::from([prefix, format!("{lease:x}").as_bytes()].concat());
        let put = PutRequest { key: key.clone(), value, lease, ..PutRequest::default() };
        let get = RangeRequest { key: key.clone(), ..RangeRequest::default() };
        let answer =
            self.if_created((&key, 0), Op::RequestPut(put), Some(Op::RequestRange(get))).await?;
        let header = answer.header;
        if answer.succeeded {
            let revision = header.map_or(0, |header| header.revision);
            return Ok(Place { key, revision, found: None, header });
        }
        let found = answer.responses.into_iter().find_map(|op| match op.response {
            Some(OpResponse::ResponseRange(range)) => range.kvs.into_iter().next(),
            _ => None,
        });
        let revision = found.as_ref().map_or(0, |kv| kv.create_revision);
        Ok(Place { key, revision, found, header })
    }

    /// Deletes a key, if it is still the one that this revision created.
    async fn leave(&self, key: &Bytes, revision: i64) -> Result<TxnResponse, Status> {
        let delete = DeleteRangeRequest { key: key.clone(), ..DeleteRangeRequest::default() };
        self.if_created((key, revision), Op::RequestDeleteRange(delete), None).await
    }

    /// Returns when no key below `prefix` is older than `revision`; with the header of the read that showed it.
    async fn wait_for_turn(
        &self,
        prefix: &[u8],
        revision: i64,
    ) -> Result<Option<ResponseHeader>, Status> {
        loop {
            let before = self
                .range(RangeRequest {
                    key: Bytes::copy_from_slice(prefix),
                    range_end: end_of(prefix),
                    limit: 1,
                    sort_order: SortOrder::Descend.into(),
                    sort_target: SortTarget::Create.into(),
                    max_create_revision: revision - 1,
                    ..RangeRequest::default()
                })
                .await?;
            let Some(last) = before.kvs.into_iter().next() else { return Ok(before.header) };
            let from = before.header.map_or(0, |header| header.revision) + 1;
            let mut changes = self.follow(last.key, Bytes::new(), from)?;
            loop {
                let (_, events) = changes.next().await?;
                if events.iter().any(|event| event.r#type() == EventType::Delete) {
                    break;
                }
            }
        }
    }

    /// The oldest key below `prefix`.
    async fn first(&self, prefix: &[u8]) -> Result<RangeResponse, Status> {
        self.range(RangeRequest {
            key: Bytes::copy_from_slice(prefix),
            range_end: end_of(prefix),
            limit: 1,
            sort_order: SortOrder::Ascend.into(),
            sort_target: SortTarget::Create.into(),
            ..RangeRequest::default()
        })
        .await
    }

    /// What happens to a key or a range from a revision on.
    fn follow(&self, key: Bytes, range_end: Bytes, from: i64) -> Result<Changes, Status> {
        let create = WatchCreateRequest {
            key,
            range_end,
            start_revision: from,
            ..WatchCreateRequest::default()
        };
        let request = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
        let requests: super::watch::Requests = Box::pin(tokio_stream::iter([Ok(request)]));
        Ok(Changes(Arc::clone(&self.etcd).watch(self.request(requests))?))
    }
}

/// A watch for this member's own use.
struct Changes(Answers);

impl Changes {
    /// The next events, with their header.
    async fn next(&mut self) -> Result<(Option<ResponseHeader>, Vec<Event>), Status> {
        loop {
            let answer = self.0.next().await;
            let bytes = answer.unwrap_or_else(|| Err(Status::unavailable(errors::STOPPED)))?;
            let response = WatchResponse::decode(bytes)
                .map_err(|error| Status::internal(error.to_string()))?;
            if response.canceled {
                let reason = if response.cancel_reason.is_empty() {
                    "etcdserver: mvcc: required revision has been compacted"
                } else {
                    &response.cancel_reason
                };
                return Err(Status::out_of_range(reason));
            }
            if !response.events.is_empty() {
                return Ok((response.header, response.events));
            }
        }
    }
}

/// Leaves a queue when whoever waits there gives up: its client is gone, or something failed.
struct Waiting {
    caller: Caller,
    place: Option<(Bytes, i64)>,
}

impl Waiting {
    fn new(caller: &Caller, place: &Place) -> Self {
        Self { caller: caller.clone(), place: Some((place.key.clone(), place.revision)) }
    }

    /// The place is kept.
    fn keep(mut self) {
        self.place = None;
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let Some((key, revision)) = self.place.take() else { return };
        let caller = self.caller.clone();
        // If this fails, the lease's end does the same.
        tokio::spawn(async move { caller.leave(&key, revision).await.map(drop) });
    }
}

/// The range end that means "everything with this prefix".
fn end_of(prefix: &[u8]) -> Bytes {
    let kept = prefix.iter().rposition(|byte| *byte < u8::MAX);
    kept.map_or_else(
        || Bytes::from_static(b"\0"),
        |last| {
            let mut end = prefix[..=last].to_vec();
            end[last] += 1;
            end.into()
        },
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_ends_before_the_next_one() {
        assert_eq!(end_of(b"a/"), "a0");
        assert_eq!(end_of(b"a\xff\xff"), "b");
        assert_eq!(end_of(b"\xff"), "\0");
        assert_eq!(end_of(b""), "\0");
    }
}
