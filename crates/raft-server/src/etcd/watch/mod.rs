//! Watch: following changes.
//!
//! What is told to whom, and in which order, is decided in [`raft_kv::watch`]. Here are the tasks around it: one runs
//! the [`Hub`] of this member, one runs each client's [`WatchStream`]. A client that does not read stops its
//! own task, and nobody else's.

mod codec;

use std::hash::{BuildHasher as _, Hasher as _};
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::response::Response as HttpResponse;
use bytes::{Bytes, BytesMut};
use raft_kv::Publications;
use raft_kv::proto::etcdserverpb::WatchRequest;
use raft_kv::watch::{
    Deliveries, Frame, Hub, HubRequest, Mailbox, StreamLimits, WatchStream, mailbox,
};
use tokio::sync::mpsc;
use tokio::time::{Instant, MissedTickBehavior};
use tokio_stream::wrappers::ReceiverStream;
use tonic::codegen::BoxFuture;
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use self::codec::WatchCodec;
use super::{Etcd, MESSAGE_ROOM_BYTES, errors};

/// Encoded answers that wait for the client to take them.
const ANSWERS_MAX: usize = 4;
/// The watchers of one stream.
const WATCHERS_MAX: usize = 16_384;
/// The events and bytes that one look into history is for.
const STRETCH_EVENTS_MAX: usize = 1024;
const STRETCH_BYTES_MAX: usize = 1 << 20;

/// Runs the hub until nobody can ask it any more.
pub(super) async fn run_hub(
    mut hub: Hub,
    mut publications: Publications,
    mut requests: mpsc::UnboundedReceiver<HubRequest>,
) {
    loop {
        let (idle, next) = (hub.is_idle(), hub.next());
        tokio::select! {
            request = requests.recv() => match request {
                Some(request) => hub.handle(request),
                None => return,
            },
            () = std::future::poll_fn(|context| publications.poll(context, next)), if !idle => {
                hub.dispatch();
                // The streams that it woke come first.
                tokio::task::yield_now().await;
            }
        }
    }
}

/// The route of the service's one method.
pub(super) async fn route(State(etcd): State<Arc<Etcd>>, request: HttpRequest) -> HttpResponse {
    let method = request.uri().path().rsplit('/').next().unwrap_or_default();
    if method != "Watch" {
        let text = format!("unknown method {method} for service etcdserverpb.Watch");
        return Status::unimplemented(text).into_http();
    }
    let message_bytes_max = etcd.settings.request_bytes_max.saturating_add(MESSAGE_ROOM_BYTES);
    let mut grpc = Grpc::new(WatchCodec)
        .max_decoding_message_size(message_bytes_max)
        .max_encoding_message_size(usize::MAX);
    grpc.streaming(Service(etcd), request).await.map(Body::new)
}

struct Service(Arc<Etcd>);

impl StreamingService<WatchRequest> for Service {
    type Response = Bytes;
    type ResponseStream = ReceiverStream<Result<Bytes, Status>>;
    type Future = BoxFuture<Response<Self::ResponseStream>, Status>;

    fn call(&mut self, request: Request<Streaming<WatchRequest>>) -> Self::Future {
        let etcd = Arc::clone(&self.0);
        Box::pin(async move { etcd.watch(request) })
    }
}

impl Etcd {
    fn watch(
        self: Arc<Self>,
        request: Request<Streaming<WatchRequest>>,
    ) -> Result<Response<ReceiverStream<Result<Bytes, Status>>>, Status> {
        self.check_voter(&request)?;
        let cut = self.cut(&request);
        let (answers, stream) = mpsc::channel(ANSWERS_MAX);
        // Ends with the client's stream, or with the node.
        tokio::spawn(async move {
            let watcher = Watching::open(&self, request.into_inner(), answers.clone());
            let failed = tokio::select! {
                ended = watcher.run() => ended.err(),
                status = cut => Some(status),
                () = answers.closed() => None,
            };
            if let Some(status) = failed {
                // The client may be gone as well.
                answers.send(Err(status)).await.ok();
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

/// One client's stream at work.
struct Watching<'a> {
    etcd: &'a Etcd,
    number: u64,
    stream: WatchStream,
    requests: Streaming<WatchRequest>,
    deliveries: Deliveries,
    answers: mpsc::Sender<Result<Bytes, Status>>,
}

impl<'a> Watching<'a> {
    fn open(
        etcd: &'a Etcd,
        requests: Streaming<WatchRequest>,
        answers: mpsc::Sender<Result<Bytes, Status>>,
    ) -> Self {
        let number = etcd.next_stream();
        let (mailbox, deliveries): (Mailbox, Deliveries) = mailbox();
        let limits = StreamLimits {
            fragment_bytes_max: etcd.settings.request_bytes_max.saturating_add(MESSAGE_ROOM_BYTES),
            stretch_events_max: STRETCH_EVENTS_MAX,
            stretch_bytes_max: STRETCH_BYTES_MAX,
            watchers_max: WATCHERS_MAX,
        };
        let stream = WatchStream::new(number, etcd.reader.clone(), limits);
        let watching = Self { etcd, number, stream, requests, deliveries, answers };
        watching.ask_hub(HubRequest::Open { stream: number, mailbox });
        watching
    }

    /// A hub that is gone means that this member stops; the stream is cut for that reason.
    fn ask_hub(&self, request: HubRequest) {
        self.etcd.hub.send(request).ok();
    }

    /// Runs until the client ends the stream.
    async fn run(mut self) -> Result<(), Status> {
        let interval = progress_interval(self.etcd.settings.watch_progress_interval);
        let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            for request in self.stream.take_requests() {
                self.ask_hub(request);
            }
            while let Some(frame) = self.stream.take_frame() {
                if self.answers.send(Ok(self.encode(&frame))).await.is_err() {
                    return Ok(());
                }
            }
            let is_behind = self.stream.is_behind();
            let delivery = std::future::poll_fn(|context| self.deliveries.poll_take(context));
            tokio::select! {
                request = self.requests.message() => match request? {
                    Some(request) => self.stream.handle(request),
                    None => return Ok(()),
                },
                delivery = pin!(delivery) => match delivery {
                    Some(delivery) => self.stream.deliver(delivery),
                    // The hub has ended, as this member does.
                    None => return Err(Status::unavailable(errors::STOPPED)),
                },
                _ = ticks.tick() => self.stream.tick(),
                () = tokio::task::yield_now(), if is_behind => self.stream.catch_up(),
            }
        }
    }

    fn encode(&self, frame: &Frame) -> Bytes {
        let mut out = BytesMut::with_capacity(frame.encoded_len_max());
        frame.encode(self.etcd.header(0), &mut out);
        out.freeze()
    }
}

impl Drop for Watching<'_> {
    fn drop(&mut self) {
        self.ask_hub(HubRequest::Close { stream: self.number });
    }
}

/// The interval and up to a tenth, so that streams that began together do not all speak at once.
fn progress_interval(interval: Duration) -> Duration {
    let random = std::hash::RandomState::new().build_hasher().finish();
    let per_mille = u32::try_from(random % 100).unwrap_or(0);
    interval.saturating_add(interval / 1000 * per_mille)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn progress_comes_a_little_after_the_interval() {
        let interval = Duration::from_secs(600);
        for _ in 0..1000 {
            let drawn = progress_interval(interval);
            assert!(drawn >= interval && drawn < interval.mul_f64(1.1), "{drawn:?}");
        }
    }
}
