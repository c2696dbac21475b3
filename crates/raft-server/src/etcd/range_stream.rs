//! RangeStream: a range in parts, so that a large one neither waits for all of it nor stands in memory at once.

use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use raft_kv::proto::etcdserverpb::range_request::{SortOrder, SortTarget};
use raft_kv::proto::etcdserverpb::{
    RangeRequest, RangeResponse, RangeStreamResponse, ResponseHeader,
};
use raft_kv::{KvError, PinnedReader, Stretch};
use tokio_stream::Stream;
use tonic::Status;

use super::{Etcd, errors};

/// About how many bytes of keys and values one part has.
const PART_BYTES: usize = 1 << 20;
/// How often a compaction may overtake the beginning.
const TRIES: usize = 16;

/// The parts of one range. All are read at one revision, whatever is written or compacted meanwhile.
pub(super) struct Parts {
    pinned: PinnedReader,
    request: RangeRequest,
    /// Complete but for the revision of the read.
    header: ResponseHeader,
    /// Where the next part begins; `None` after the last one.
    next: Option<Bytes>,
    /// How many more keys are wanted.
    left: usize,
    sent: usize,
    count: usize,
}

impl Etcd {
    /// Begins to read; the request has been checked, and this member has seen what it must have seen.
    pub(super) fn parts(&self, request: RangeRequest) -> Result<Parts, Status> {
        let by_key = request.sort_target() == SortTarget::Key
            && matches!(request.sort_order(), SortOrder::None | SortOrder::Ascend);
        let filtered = [
            request.min_mod_revision,
            request.max_mod_revision,
            request.min_create_revision,
            request.max_create_revision,
        ]
        .iter()
        .any(|bound| *bound != 0);
        if !by_key || filtered {
            // Clients that know this call fall back to Range.
            return Err(Status::unimplemented(
                "etcdserver: a range stream is neither sorted nor filtered by revision",
            ));
        }
        let pinned = self.pin(request.revision.max(0)).map_err(errors::of_kv)?;
        let left = match usize::try_from(request.limit) {
            _ if request.count_only => 0,
            Ok(0) | Err(_) => usize::MAX,
            Ok(limit) => limit,
        };
        let header = self.header(self.reader.revision());
        let next = Some(request.key.clone());
        Ok(Parts { pinned, request, header, next, left, sent: 0, count: 0 })
    }

    fn pin(&self, revision: i64) -> Result<PinnedReader, KvError> {
        for _ in 1..TRIES {
            match self.reader.pin(revision) {
                // Overtaken, unless it is about the revision that was asked for.
                Err(KvError::Compacted) if revision == 0 => {}
                pinned => return pinned,
            }
        }
        self.reader.pin(revision)
    }
}

impl Stream for Parts {
    type Item = Result<RangeStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        let Some(from) = this.next.take() else { return Poll::Ready(None) };
        let Stretch { kvs, seen, next } =
            this.pinned.stretch(&this.request, &from, this.left, PART_BYTES);
        this.count += seen;
        this.sent += kvs.len();
        this.left -= kvs.len();
        this.next = next;
        let mut part = RangeResponse { kvs, ..RangeResponse::default() };
        if this.next.is_none() {
            part.header = Some(this.header);
            part.count = i64::try_from(this.count).unwrap_or(i64::MAX);
            part.more = !this.request.count_only && this.sent < this.count;
        } else if part.kvs.is_empty() {
            // Only counting is left: others wait for this thread.
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        Poll::Ready(Some(Ok(RangeStreamResponse { range_response: Some(part) })))
    }
}
