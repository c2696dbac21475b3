//! v3lock: one holder at a time, for as long as its lease lives or until it gives the lock back.

use raft_kv::proto::etcdserverpb::{DeleteRangeRequest, RangeRequest};
use raft_kv::proto::v3lockpb::{LockRequest, LockResponse, UnlockRequest, UnlockResponse};
use tonic::{Request, Response, Status, async_trait};

use super::{Caller, Waiting};
use crate::etcd::Etcd;
use crate::proto::etcdserverpb::kv_server::Kv;
use crate::proto::v3lockpb::lock_server::Lock;

/// The lease ended while its owner waited.
const EXPIRED: &str = "mutex: session is expired";

#[async_trait]
impl Lock for Etcd {
    async fn lock(&self, request: Request<LockRequest>) -> Result<Response<LockResponse>, Status> {
        let (caller, LockRequest { name, lease }) = Caller::of(self, request).await?;
        let prefix = [&name[..], b"/"].concat();
        let lease = caller.lease(lease).await?;
        let place = caller.enqueue(&prefix, lease, bytes::Bytes::new()).await?;
        let waiting = Waiting::new(&caller, &place);
        let first = caller.first(&prefix).await?;
        let is_first =
            first.kvs.first().is_none_or(|first| first.create_revision == place.revision);
        if is_first {
            waiting.keep();
            return Ok(Response::new(LockResponse { header: place.header, key: place.key }));
        }
        caller.wait_for_turn(&prefix, place.revision).await?;
        let own = RangeRequest { key: place.key.clone(), ..RangeRequest::default() };
        let own = caller.range(own).await?;
        if own.kvs.first().is_none_or(|kv| kv.create_revision != place.revision) {
            return Err(Status::unknown(EXPIRED));
        }
        waiting.keep();
        Ok(Response::new(LockResponse { header: own.header, key: place.key }))
    }

    async fn unlock(
        &self,
        request: Request<UnlockRequest>,
    ) -> Result<Response<UnlockResponse>, Status> {
        let (caller, UnlockRequest { key }) = Caller::of(self, request).await?;
        let delete = DeleteRangeRequest { key, ..DeleteRangeRequest::default() };
        let answer = Kv::delete_range(self, caller.request(delete)).await?.into_inner();
        Ok(Response::new(UnlockResponse { header: answer.header }))
    }
}
