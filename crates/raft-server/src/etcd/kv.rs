//! KV: reading and writing keys.

use std::pin::Pin;

use raft_kv::proto::etcdserverpb::{
    CompactionRequest, CompactionResponse, DeleteRangeRequest, DeleteRangeResponse, PutRequest,
    PutResponse, RangeRequest, RangeResponse, RangeStreamResponse, TxnRequest, TxnResponse,
};
use raft_kv::{
    Answer, Command, KvError, Query, Reader, TXN_OPS_MAX, check_compact, check_delete, check_put,
    check_range, check_txn, is_read_only,
};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, async_trait};

use super::{Etcd, errors};
use crate::proto::etcdserverpb::kv_server::Kv;

/// Below this size any read of the store takes less than handing it to another thread is worth.
const SMALL_STORE_BYTES: u64 = 256 << 10;

impl Etcd {
    /// Replicates a command and returns what applying it answered.
    pub(super) async fn propose(&self, command: Command) -> Result<raft_kv::Response, Status> {
        self.propose_raw(command).await?.map_err(errors::of_kv)
    }

    /// As [`propose`](Self::propose), with the store's own words when it refuses.
    pub(super) async fn propose_raw(
        &self,
        command: Command,
    ) -> Result<Result<raft_kv::Response, KvError>, Status> {
        if !self.has_space(&command).await {
            return Ok(Err(KvError::NoSpace));
        }
        self.node.propose(command).await.map_err(|error| errors::of_propose(&error))
    }

    /// Checks a request to read, and waits until reading here gives what it asks for.
    async fn admit_range(&self, request: Request<RangeRequest>) -> Result<RangeRequest, Status> {
        if request.get_ref().serializable {
            self.check_metadata(&request)?;
        } else {
            self.check_voter(&request)?;
        }
        let request = request.into_inner();
        check_range(&request).map_err(errors::of_kv)?;
        if !request.serializable {
            self.linearize().await?;
        }
        Ok(request)
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

    /// Asks the store, linearizably.
    pub(super) async fn ask(&self, query: Query) -> Result<Answer, Status> {
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
        let request = self.admit_range(request).await?;
        let one_key = request.range_end.is_empty();
        let mut response = self.look(one_key, move |reader| reader.range(&request)).await?;
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }

    type RangeStreamStream =
        Pin<Box<dyn Stream<Item = Result<RangeStreamResponse, Status>> + Send>>;

    async fn range_stream(
        &self,
        request: Request<RangeRequest>,
    ) -> Result<Response<Self::RangeStreamStream>, Status> {
        let request = self.admit_range(request).await?;
        Ok(Response::new(Box::pin(self.parts(request)?)))
    }

    async fn put(&self, request: Request<PutRequest>) -> Result<Response<PutResponse>, Status> {
        self.check_voter(&request)?;
        let request = request.into_inner();
        check_put(&request).map_err(errors::of_kv)?;
        self.check_size(&request)?;
        let raft_kv::Response::Put(mut response) = self.propose(Command::put(request)).await?
        else {
            return Err(mismatch());
        };
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }

    async fn delete_range(
        &self,
        request: Request<DeleteRangeRequest>,
    ) -> Result<Response<DeleteRangeResponse>, Status> {
        self.check_voter(&request)?;
        let request = request.into_inner();
        check_delete(&request).map_err(errors::of_kv)?;
        self.check_size(&request)?;
        let raft_kv::Response::DeleteRange(mut response) =
            self.propose(Command::delete_range(request)).await?
        else {
            return Err(mismatch());
        };
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }

    async fn txn(&self, request: Request<TxnRequest>) -> Result<Response<TxnResponse>, Status> {
        self.check_voter(&request)?;
        let request = request.into_inner();
        check_txn(&request, TXN_OPS_MAX).map_err(errors::of_kv)?;
        if is_read_only(&request) {
            // A read like any other: no entry in the log.
            self.linearize().await?;
            let mut response = self.look(false, move |reader| reader.txn(&request)).await?;
            self.complete(&mut response.header);
            return Ok(Response::new(response));
        }
        self.check_size(&request)?;
        let raft_kv::Response::Txn(mut response) = self.propose(Command::txn(request)).await?
        else {
            return Err(mismatch());
        };
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }

    async fn compact(
        &self,
        request: Request<CompactionRequest>,
    ) -> Result<Response<CompactionResponse>, Status> {
        self.check_voter(&request)?;
        let request = request.into_inner();
        check_compact(&request).map_err(errors::of_kv)?;
        let raft_kv::Response::Compact(mut response) =
            self.propose(Command::compact(request)).await?
        else {
            return Err(mismatch());
        };
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }
}
