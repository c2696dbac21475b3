//! Watch: following changes.
//!
//! What is told to whom, and in which order, is decided in [`raft_kv::watch`]. Here is what runs it: one task runs
//! the [`Hub`] of this member, each client's connection runs its [`WatchStream`]s. A client that does not read stops its
//! own streams, and nobody else's.

mod codec;

use std::future::Future;
use std::hash::{BuildHasher as _, Hasher as _};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::Body;
use axum::extract::{Request as HttpRequest, State};
use axum::response::Response as HttpResponse;
use bytes::{Bytes, BytesMut};
use raft_kv::KvError;
use raft_kv::Publications;
use raft_kv::auth::Access;
use raft_kv::proto::etcdserverpb::watch_request::RequestUnion;
use raft_kv::proto::etcdserverpb::{WatchCreateRequest, WatchRequest};
use raft_kv::watch::{Deliveries, Frame, Hub, HubRequest, StreamLimits, WatchStream, mailbox};
use tokio::sync::mpsc;
use tokio::time::{Instant, Interval, MissedTickBehavior};
use tokio_stream::Stream;
use tokio_stream::wrappers::WatchStream as EpochStream;
use tonic::codegen::BoxFuture;
use tonic::server::{Grpc, StreamingService};
use tonic::{Request, Response, Status, Streaming};

use self::codec::WatchCodec;
use super::auth::Admission;
use super::{Etcd, MESSAGE_ROOM_BYTES, errors};

/// What a stream takes in before others get their turn.
const STEPS_MAX: usize = 32;
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
    type ResponseStream = Answers;
    type Future = BoxFuture<Response<Answers>, Status>;

    fn call(&mut self, request: Request<Streaming<WatchRequest>>) -> Self::Future {
        let etcd = Arc::clone(&self.0);
        #[expect(clippy::disallowed_methods, reason = "as it is, in a box")]
        let request = request.map(|requests| -> Requests { Box::pin(requests) });
        Box::pin(async move { etcd.watch(request).map(Response::new) })
    }
}

/// What a client asks, one after the other.
pub(super) type Requests = Pin<Box<dyn Stream<Item = Result<WatchRequest, Status>> + Send>>;

impl Etcd {
    /// Begins a stream.
    pub(super) fn watch(self: Arc<Self>, request: Request<Requests>) -> Result<Answers, Status> {
        let cut = Box::pin(self.cut(&request));
        let (requests, admission) = self.admit_stream(request)?;
        let number = self.next_stream();
        let (mailbox, deliveries) = mailbox();
        let limits = StreamLimits {
            fragment_bytes_max: self.settings.request_bytes_max.saturating_add(MESSAGE_ROOM_BYTES),
            stretch_events_max: STRETCH_EVENTS_MAX,
            stretch_bytes_max: STRETCH_BYTES_MAX,
            watchers_max: WATCHERS_MAX,
        };
        let interval = progress_interval(self.settings.watch_progress_interval);
        let mut ticks = tokio::time::interval_at(Instant::now() + interval, interval);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let answers = Answers {
            number,
            stream: WatchStream::new(number, self.reader.clone(), limits),
            requests: Some(requests),
            deliveries,
            ticks,
            cut,
            ended: false,
            deliveries_first: false,
            epoch: self.auth.epoch(),
            auth_changes: EpochStream::from_changes(self.auth.changes()),
            admission,
            client: None,
            doubted: None,
            etcd: self,
        };
        answers.ask_hub(HubRequest::Open { stream: number, mailbox });
        Ok(answers)
    }
}

/// A request that is refused with what this member knows, which may be old: decided about again once it knows
/// everything that was agreed.
struct Doubted {
    request: WatchRequest,
    known: Pin<Box<dyn Future<Output = ()> + Send>>,
}

/// One client's stream at work: its encoded answers, made when the connection has room for them.
pub(super) struct Answers {
    etcd: Arc<Etcd>,
    number: u64,
    stream: WatchStream,
    /// `None` when the client asks nothing any more; it may listen all the same.
    requests: Option<Requests>,
    deliveries: Deliveries,
    ticks: Interval,
    /// Why the stream is to end from this side.
    cut: Pin<Box<dyn Future<Output = Status> + Send>>,
    ended: bool,
    /// What the client shows of itself.
    admission: Admission,
    /// Who it proved to be, and for which [`User::since`](raft_kv::auth::User::since).
    client: Option<(String, u64)>,
    /// The users and permissions under which everything that is being told was decided about.
    epoch: u64,
    /// The request that comes next, if this member would refuse it.
    doubted: Option<Doubted>,
    /// Wakes the stream when there are others.
    auth_changes: EpochStream<u64>,
    /// Requests and deliveries take turns.
    deliveries_first: bool,
}

impl Answers {
    /// A hub that is gone means that this member stops; the stream is cut for that reason.
    fn ask_hub(&self, request: HubRequest) {
        self.etcd.hub.send(request).ok();
    }

    /// Takes in something that has happened; false when nothing has.
    fn step(&mut self, context: &mut Context<'_>) -> Result<bool, Status> {
        self.deliveries_first = !self.deliveries_first;
        let mut stepped = self.deliveries_first && self.step_delivery(context)?;
        stepped = stepped || self.step_request(context)?;
        stepped = stepped || !self.deliveries_first && self.step_delivery(context)?;
        if stepped {
            return Ok(true);
        }
        if let Poll::Ready(Some(_)) = Pin::new(&mut self.auth_changes).poll_next(context) {
            return Ok(true);
        }
        if self.ticks.poll_tick(context).is_ready() {
            self.stream.tick();
            return Ok(true);
        }
        match self.cut.as_mut().poll(context) {
            Poll::Ready(status) => Err(status),
            Poll::Pending => Ok(false),
        }
    }

    fn step_request(&mut self, context: &mut Context<'_>) -> Result<bool, Status> {
        if let Some(doubted) = &mut self.doubted {
            if doubted.known.as_mut().poll(context).is_pending() {
                return Ok(false);
            }
            if let Some(Doubted { request, .. }) = self.doubted.take() {
                self.take_in(request);
            }
            return Ok(true);
        }
        let Some(requests) = &mut self.requests else { return Ok(false) };
        match requests.as_mut().poll_next(context) {
            Poll::Ready(Some(request)) => {
                let request = request?;
                let refused = match &request.request_union {
                    Some(RequestUnion::CreateRequest(create)) => self.decide(create).is_err(),
                    _ => false,
                };
                if refused {
                    let etcd = Arc::clone(&self.etcd);
                    // Without a quorum, what this member knows has to do.
                    let known = Box::pin(async move { etcd.linearize().await.unwrap_or(()) });
                    self.doubted = Some(Doubted { request, known });
                } else {
                    self.take_in(request);
                }
            }
            Poll::Ready(None) => self.requests = None,
            Poll::Pending => return Ok(false),
        }
        Ok(true)
    }

    /// Whether the client may have this watcher, with what this member knows.
    fn decide(&mut self, create: &WatchCreateRequest) -> Result<(), KvError> {
        self.etcd.auth.decide(&mut self.admission, &Access::WatchCreate(create))?;
        if self.admission.caller().is_some() {
            self.client = self.etcd.auth.client(&self.admission, &self.etcd.auth.state())?;
        }
        Ok(())
    }

    fn take_in(&mut self, request: WatchRequest) {
        let allowed = match &request.request_union {
            Some(RequestUnion::CreateRequest(create)) => self.decide(create),
            _ => Ok(()),
        };
        self.stream.handle_if(request, |_| allowed);
    }

    fn step_delivery(&mut self, context: &Context<'_>) -> Result<bool, Status> {
        match self.deliveries.poll_take(context) {
            Poll::Ready(Some(delivery)) => self.stream.deliver(delivery),
            // The hub has ended, as this member does.
            Poll::Ready(None) => return Err(Status::unavailable(errors::STOPPED)),
            Poll::Pending => return Ok(false),
        }
        Ok(true)
    }

    /// Takes back what the client may not watch any more. Whatever was read after a change of permissions is told
    /// after this has seen the change: the store publishes permissions before the keys.
    fn check_permissions(&mut self) {
        let epoch = self.etcd.auth.epoch();
        if epoch == self.epoch {
            return;
        }
        let state = self.etcd.auth.state();
        self.epoch = epoch;
        if self.client.is_none() {
            // It may have begun before authentication was enabled, with or without something to show.
            self.client = self.etcd.auth.client(&self.admission, &state).unwrap_or(None);
        }
        let client = self.client.as_ref().map(|(user, since)| (user.as_str(), *since));
        self.stream.check_again(&state, client);
    }

    fn encode(&self, frame: &Frame) -> Bytes {
        let mut out = BytesMut::with_capacity(frame.encoded_len_max());
        frame.encode(self.etcd.header(0), &mut out);
        out.freeze()
    }
}

impl Stream for Answers {
    type Item = Result<Bytes, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if this.ended {
            return Poll::Ready(None);
        }
        for _ in 0..STEPS_MAX {
            this.check_permissions();
            for request in this.stream.take_requests() {
                this.ask_hub(request);
            }
            if let Some(frame) = this.stream.take_frame() {
                return Poll::Ready(Some(Ok(this.encode(&frame))));
            }
            match this.step(context) {
                Ok(true) => {}
                Ok(false) if this.stream.is_behind() => this.stream.catch_up(),
                Ok(false) => return Poll::Pending,
                Err(status) => {
                    this.ended = true;
                    return Poll::Ready(Some(Err(status)));
                }
            }
        }
        // Enough at once; others wait for this thread.
        context.waker().wake_by_ref();
        Poll::Pending
    }
}

impl Drop for Answers {
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
