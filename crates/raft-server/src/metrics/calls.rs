//! Counters of gRPC calls: how many began, how they ended, how long they took, how many bytes they moved.
//!
//! A call is counted around everything else, where its HTTP request comes in and its answer leaves, so that no service
//! can forget it. The answer's code is in its last frame.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Instant;

use axum::http::HeaderMap;
use bytes::Bytes;
use http_body::{Body, Frame, SizeHint};
use prometheus::{
    Histogram, HistogramOpts, HistogramVec, IntCounter, IntCounterVec, Opts, Registry,
};

use super::{Metrics, counter, register};

/// Every code of gRPC, at the place of its number.
const CODES: [&str; 17] = [
    "OK",
    "Canceled",
    "Unknown",
    "InvalidArgument",
    "DeadlineExceeded",
    "NotFound",
    "AlreadyExists",
    "PermissionDenied",
    "ResourceExhausted",
    "FailedPrecondition",
    "Aborted",
    "OutOfRange",
    "Unimplemented",
    "Internal",
    "Unavailable",
    "DataLoss",
    "Unauthenticated",
];
/// The client left before the answer was complete.
const CANCELED: usize = 1;
/// The answer says nothing that gRPC knows.
const UNKNOWN: usize = 2;

const UNARY: &str = "unary";
const SERVER_STREAM: &str = "server_stream";
const BIDI_STREAM: &str = "bidi_stream";

/// Every method of every service; those that are not named are unary.
const METHODS: [(&str, &[&str]); 9] = [
    ("etcdserverpb.KV", &["Range", "RangeStream", "Put", "DeleteRange", "Txn", "Compact"]),
    ("etcdserverpb.Watch", &["Watch"]),
    (
        "etcdserverpb.Lease",
        &["LeaseGrant", "LeaseRevoke", "LeaseKeepAlive", "LeaseTimeToLive", "LeaseLeases"],
    ),
    (
        "etcdserverpb.Cluster",
        &["MemberAdd", "MemberRemove", "MemberUpdate", "MemberList", "MemberPromote"],
    ),
    (
        "etcdserverpb.Maintenance",
        &["Alarm", "Status", "Defragment", "Hash", "HashKV", "Snapshot", "MoveLeader", "Downgrade"],
    ),
    (
        "etcdserverpb.Auth",
        &[
            "AuthEnable",
            "AuthDisable",
            "AuthStatus",
            "Authenticate",
            "UserAdd",
            "UserGet",
            "UserList",
            "UserDelete",
            "UserChangePassword",
            "UserGrantRole",
            "UserRevokeRole",
            "RoleAdd",
            "RoleGet",
            "RoleList",
            "RoleDelete",
            "RoleGrantPermission",
            "RoleRevokePermission",
        ],
    ),
    ("v3lockpb.Lock", &["Lock", "Unlock"]),
    ("v3electionpb.Election", &["Campaign", "Proclaim", "Leader", "Observe", "Resign"]),
    ("grpc.health.v1.Health", &["Check", "Watch"]),
];

fn kind(service: &str, method: &str) -> &'static str {
    match (service, method) {
        ("etcdserverpb.Watch", _) | (_, "LeaseKeepAlive") => BIDI_STREAM,
        (_, "RangeStream" | "Snapshot" | "Observe") | ("grpc.health.v1.Health", "Watch") => {
            SERVER_STREAM
        }
        _ => UNARY,
    }
}

/// One method's counters.
struct Method {
    started: IntCounter,
    handled: Vec<IntCounter>,
    seconds: Histogram,
}

/// All methods' counters.
pub(crate) struct Calls {
    methods: Vec<Method>,
    /// The place in `methods` by the path of a request.
    by_path: HashMap<String, usize>,
    sent_bytes: IntCounter,
    received_bytes: IntCounter,
}

impl Calls {
    pub(super) fn new(registry: &Registry) -> prometheus::Result<Self> {
        let labels = ["grpc_type", "grpc_service", "grpc_method"];
        let started = IntCounterVec::new(
            Opts::new("grpc_server_started_total", "Total number of RPCs started on the server."),
            &labels,
        )?;
        let handled = IntCounterVec::new(
            Opts::new(
                "grpc_server_handled_total",
                "Total number of RPCs completed on the server, regardless of success or failure.",
            ),
            &["grpc_type", "grpc_service", "grpc_method", "grpc_code"],
        )?;
        let seconds = HistogramVec::new(
            HistogramOpts::new(
                "grpc_server_handling_seconds",
                "Histogram of response latency (seconds) of gRPC that had been application-level \
                 handled by the server.",
            ),
            &labels,
        )?;
        let mut methods = Vec::new();
        let mut by_path = HashMap::new();
        for (service, names) in METHODS {
            for name in names {
                let labels = [kind(service, name), service, name];
                let code = |code: &&str| {
                    handled.with_label_values(&[labels[0], labels[1], labels[2], code])
                };
                by_path.insert(format!("/{service}/{name}"), methods.len());
                methods.push(Method {
                    started: started.with_label_values(&labels),
                    handled: CODES.iter().map(code).collect(),
                    seconds: seconds.with_label_values(&labels),
                });
            }
        }
        register(registry, started)?;
        register(registry, handled)?;
        register(registry, seconds)?;
        Ok(Self {
            methods,
            by_path,
            sent_bytes: counter(
                registry,
                "etcd_network_client_grpc_sent_bytes_total",
                "The total number of bytes sent to grpc clients.",
            )?,
            received_bytes: counter(
                registry,
                "etcd_network_client_grpc_received_bytes_total",
                "The total number of bytes received from grpc clients.",
            )?,
        })
    }
}

impl Metrics {
    /// A call begins, if the path is one of a method.
    pub(crate) fn begin(self: &Arc<Self>, path: &str) -> Option<Call> {
        let place = *self.calls.by_path.get(path)?;
        let method = self.calls.methods.get(place)?;
        method.started.inc();
        Some(Call { metrics: Arc::clone(self), place, begun: Instant::now(), code: CANCELED })
    }
}

/// A call under way; counted as handled when it is dropped.
pub(crate) struct Call {
    metrics: Arc<Metrics>,
    place: usize,
    begun: Instant,
    code: usize,
}

impl Call {
    /// What the headers, or the trailers, say about the end.
    fn note(&mut self, headers: &HeaderMap) {
        if let Some(status) = headers.get("grpc-status") {
            let number = status.to_str().ok().and_then(|text| text.parse().ok());
            self.code = number.filter(|code| *code < CODES.len()).unwrap_or(UNKNOWN);
        }
    }
}

impl Drop for Call {
    fn drop(&mut self) {
        let Some(method) = self.metrics.calls.methods.get(self.place) else { return };
        method.seconds.observe(self.begun.elapsed().as_secs_f64());
        if let Some(handled) = method.handled.get(self.code) {
            handled.inc();
        }
    }
}

/// A request's body whose bytes are counted.
pub(crate) struct Received<B> {
    body: B,
    metrics: Option<Arc<Metrics>>,
}

impl<B> Received<B> {
    pub(crate) fn new(body: B, call: Option<&Call>) -> Self {
        Self { body, metrics: call.map(|call| Arc::clone(&call.metrics)) }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Received<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(context);
        if let (Some(metrics), Poll::Ready(Some(Ok(frame)))) = (&self.metrics, &polled)
            && let Some(data) = frame.data_ref()
        {
            metrics.calls.received_bytes.inc_by(u64::try_from(data.len()).unwrap_or(0));
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

/// An answer's body that counts its bytes, and the call when it ends.
pub(crate) struct Measured<B> {
    body: B,
    call: Option<Call>,
}

impl<B> Measured<B> {
    pub(crate) fn new(body: B, headers: &HeaderMap, mut call: Option<Call>) -> Self {
        if let Some(call) = &mut call {
            call.note(headers);
        }
        Self { body, call }
    }
}

impl<B: Body<Data = Bytes> + Unpin> Body for Measured<B> {
    type Data = Bytes;
    type Error = B::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, B::Error>>> {
        let this = &mut *self;
        let polled = Pin::new(&mut this.body).poll_frame(context);
        if let (Some(call), Poll::Ready(Some(Ok(frame)))) = (&mut this.call, &polled) {
            if let Some(data) = frame.data_ref() {
                let sent = u64::try_from(data.len()).unwrap_or(0);
                call.metrics.calls.sent_bytes.inc_by(sent);
            } else if let Some(trailers) = frame.trailers_ref() {
                call.note(trailers);
            }
        }
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_method_of_the_interface_is_counted() {
        let metrics = Metrics::new(Arc::default()).unwrap();
        let descriptors = include_bytes!("../proto/api.descriptors");
        let pool = prost_reflect::DescriptorPool::decode(&descriptors[..]).unwrap();
        let mut count = 0;
        for service in pool.services() {
            for method in service.methods() {
                let path = format!("/{}/{}", service.full_name(), method.name());
                assert!(metrics.calls.by_path.contains_key(&path), "{path} is not counted");
                let expected = match (method.is_client_streaming(), method.is_server_streaming()) {
                    (false, false) => UNARY,
                    (false, true) => SERVER_STREAM,
                    (_, _) => BIDI_STREAM,
                };
                assert_eq!(kind(service.full_name(), method.name()), expected, "{path}");
                count += 1;
            }
        }
        assert_eq!(count, metrics.calls.by_path.len());
    }

    #[test]
    fn a_call_is_counted_with_its_code_when_it_ends() {
        let metrics = Metrics::new(Arc::default()).unwrap();
        let place = metrics.calls.by_path["/etcdserverpb.KV/Put"];
        let method = &metrics.calls.methods[place];
        let call = metrics.begin("/etcdserverpb.KV/Put");
        assert_eq!((method.started.get(), method.seconds.get_sample_count()), (1, 0));
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", "9".parse().unwrap());
        drop(Measured::new(axum::body::Body::empty(), &headers, call));
        assert_eq!((method.handled[9].get(), method.seconds.get_sample_count()), (1, 1));
        // Who left before the end was not served.
        drop(metrics.begin("/etcdserverpb.KV/Put"));
        assert_eq!(method.handled[CANCELED].get(), 1);
        assert!(metrics.begin("/health").is_none());
    }
}
