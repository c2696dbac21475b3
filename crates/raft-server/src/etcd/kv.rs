//! KV: reading and writing keys.

use std::pin::Pin;

use raft_kv::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
};
use raft_kv::{Answer, Command, KvError, Query, Reader, is_read_only};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, async_trait};

use super::auth::{Admission, Governed};
use super::{Etcd, errors};
use crate::proto::etcdserverpb::kv_server::Kv;

/// Below this size any read of the store takes less than handing it to another thread is worth.
const SMALL_STORE_BYTES: u64 = 256 << 10;

impl Etcd {
    /// Replicates a command of whoever was let in, and returns what applying it answered.
    pub(super) async fn propose(
        &self,
        admission: &Admission,
        command: Command,
    ) -> Result<raft_kv::Response, Status> {
        self.propose_raw(admission, command).await?.map_err(errors::of_kv)
    }

    /// As [`propose`](Self::propose), with the store's own words when it refuses.
    pub(super) async fn propose_raw(
        &self,
        admission: &Admission,
        command: Command,
    ) -> Result<Result<raft_kv::Response, KvError>, Status> {
        if !self.has_space(&command).await {
            return Ok(Err(KvError::NoSpace));
        }
        let command = command.by(admission.caller());
        self.metrics.proposals_pending.inc();
        let answer = self.node.propose(command).await;
        self.metrics.proposals_pending.dec();
        if matches!(answer, Ok(Err(KvError::NoSpace))) {
            // Others wrote meanwhile.
            self.report_no_space().await;
        }
        answer.map_err(|error| {
            self.metrics.proposals_failed.inc();
            errors::of_propose(&error)
        })
    }

    /// Checks a request to read, and waits until reading here gives what it asks for.
    async fn admit_range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<(RangeRequest, Admission), Status> {
        let (request, admission) = self.admit(request).await?;
        if !request.serializable {
            self.linearize().await?;
        }
        Ok((request, admission))
    }

    /// Reads the store beside the apply thread, under permissions that hold all the while.
    async fn look_as<M, T>(
        &self,
        admission: &mut Admission,
        request: M,
        is_short: bool,
        read: fn(&Reader, &M) -> Result<T, KvError>,
    ) -> Result<T, Status>
    where
        M: Governed + Clone + Sync + 'static,
        T: Send + 'static,
    {
        loop {
            self.auth.decide_again(admission, &request.access())?;
            let asked = request.clone();
            let answer = self.look(is_short, move |reader| read(reader, &asked)).await;
            if self.auth.is_current(admission) {
                return answer;
            }
        }
    }

    /// Reads the store beside the apply thread.
    async fn look<T: Send + 'static>(
        &self,
        is_short: bool,
        read: impl FnOnce(&Reader) -> Result<T, KvError> + Send + 'static,
    ) -> Result<T, Status> {
        if is_short || self.reader.logical_size() < SMALL_STORE_BYTES {
            return read(&self.reader).map_err(errors::of_kv);
        }
        let reader = self.reader.clone();
        match self.long_reads.run(move || read(&reader)).await {
            Ok(answer) => answer.map_err(errors::of_kv),
            Err(error) => Err(Status::internal(format!("etcdserver: the read failed: {error}"))),
        }
    }

    /// Asks the store, linearizably, for whoever was let in.
    pub(super) async fn ask(&self, admission: &Admission, query: Query) -> Result<Answer, Status> {
        let query = query.by(admission.caller());
        let answer = self.node.read(query).await.map_err(|error| errors::of_read(&error))?;
        answer.map_err(errors::of_kv)
    }
}

/// The store answered another question than was asked.
pub(super) fn mismatch() -> Status {
    tracing::error!("the store answered a command with the response of another kind");
    Status::internal("etcdserver: response of another kind")
}

#[async_trait]
impl Kv for Etcd {
    async fn range(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<RangeResponse>, Status> {
        let (request, mut admission) = self.admit_range(request).await?;
        let one_key = request.range_end.is_empty();
        let mut response = self.look_as(&mut admission, request, one_key, Reader::range).await?;
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }

    type RangeStreamStream =
        Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let (request, mut admission) = self.admit_range(request).await?;
        // All parts are of one revision: that is read under permissions that hold while it is pinned.
        loop {
            self.auth.decide_again(&mut admission, &request.access())?;
            let parts = self.parts(request.clone())?;
            if self.auth.is_current(&admission) {
                return Ok(Response::new(Box::pin(parts)));
            }
        }
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        self.check_size(&request)?;
        let command = Command::put(request);
        let raft_kv::Response::Put(mut response) = self.propose(&admission, command).await? else {
            return Err(mismatch());
        };
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        self.check_size(&request)?;
        let raft_kv::Response::DeleteRange(mut response) =
            self.propose(&admission, Command::delete_range(request)).await?
        else {
            return Err(mismatch());
        };
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        let (request, mut admission) = self.admit(request).await?;
        if is_read_only(&request) {
            // A read like any other: no entry in the log.
            self.linearize().await?;
            let mut response = self.look_as(&mut admission, request, false, Reader::txn).await?;
            self.complete(&mut response.header);
            return Ok(Response::new(response));
        }
        self.check_size(&request)?;
        let command = Command::txn(request);
        let raft_kv::Response::Txn(mut response) = self.propose(&admission, command).await? else {
            return Err(mismatch());
        };
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let raft_kv::Response::Compact(mut response) =
            self.propose(&admission, Command::compact(request)).await?
        else {
            return Err(mismatch());
        };
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }
}
