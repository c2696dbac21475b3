//! Calls that answer more than once: a line of JSON for each answer.

use std::convert::Infallible;
use std::sync::Arc;

use axum::body::{Body, Bytes};
use axum::extract::{Request as HttpRequest, State};
use axum::http::{HeaderMap, header};
use axum::response::{IntoResponse, Response as HttpResponse};
use bytes::BytesMut;
use prost::Message as _;
use raft_kv::proto::etcdserverpb::{LeaseKeepAliveRequest, WatchRequest};
use raft_kv::proto::v3electionpb::LeaderRequest;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::Status;

use super::{http_status, json, refusal, with_metadata};
use crate::etcd::watch::Requests;
use crate::etcd::{Etcd, MESSAGE_ROOM_BYTES};
use crate::proto::v3electionpb::election_server::Election;

/// Requests that were read and wait.
pub(super) const REQUESTS_MAX: usize = 16;

/// One line.
pub(super) fn line(name: &str, message: &[u8]) -> String {
    match json::encode_encoded(name, message) {
        Ok(text) => format!("{{\"result\":{text}}}\n"),
        Err(status) => error_line(&status),
    }
}

/// The last line of a stream that broke.
pub(super) fn error_line(status: &Status) -> String {
    let http = http_status(status.code());
    let error = json!({"error": {
        "grpc_code": i32::from(status.code()),
        "http_code": http.as_u16(),
        "message": status.message(),
        "http_status": http.canonical_reason().unwrap_or_default(),
    }});
    format!("{error}\n")
}

/// Renews one lease: one line.
pub(super) async fn keep_alive(
    State(etcd): State<Arc<Etcd>>,
    headers: HeaderMap,
    body: Bytes,
) -> HttpResponse {
    let answer = async {
        let request: LeaseKeepAliveRequest = json::decode("LeaseKeepAliveRequest", &body)?;
        let request = with_metadata(&headers, request);
        let (request, mut admission) = etcd.admit(request).await?;
        let response = etcd.keep_alive_once(&mut admission, request.id).await?;
        Ok(response.encode_to_vec())
    };
    match answer.await {
        Ok(response) => {
            let text = line("LeaseKeepAliveResponse", &response);
            ([(header::CONTENT_TYPE, "application/json")], text).into_response()
        }
        Err(status) => refusal(&status),
    }
}

/// Tells who leads for as long as the client listens.
pub(super) async fn observe(
    State(etcd): State<Arc<Etcd>>,
    headers: HeaderMap,
    body: Bytes,
) -> HttpResponse {
    let answers = async {
        let request: LeaderRequest = json::decode("LeaderRequest", &body)?;
        Election::observe(&*etcd, with_metadata(&headers, request)).await
    };
    match answers.await {
        Ok(answers) => {
            let lines = answers.into_inner().map(|answer| {
                Ok::<_, Infallible>(match answer {
                    Ok(answer) => line("LeaderResponse", &answer.encode_to_vec()),
                    Err(status) => error_line(&status),
                })
            });
            let content_type = [(header::CONTENT_TYPE, "application/json")];
            (content_type, Body::from_stream(lines)).into_response()
        }
        Err(status) => refusal(&status),
    }
}

/// Watches for as long as the client listens. Requests may follow each other in the body.
pub(super) async fn watch(State(etcd): State<Arc<Etcd>>, request: HttpRequest) -> HttpResponse {
    let (parts, body) = request.into_parts();
    let bytes_max = etcd.settings.request_bytes_max.saturating_add(MESSAGE_ROOM_BYTES) * 4 / 3;
    let requests: Requests = Box::pin(requests(body, bytes_max));
    match etcd.watch(with_metadata(&parts.headers, requests)) {
        Ok(answers) => {
            let lines = answers.map(|answer| {
                Ok::<_, Infallible>(match answer {
                    Ok(message) => line("WatchResponse", &message),
                    Err(status) => error_line(&status),
                })
            });
            let content_type = [(header::CONTENT_TYPE, "application/json")];
            (content_type, Body::from_stream(lines)).into_response()
        }
        Err(status) => refusal(&status),
    }
}

/// The requests of a body, each as soon as it is complete.
fn requests(
    body: Body,
    bytes_max: usize,
) -> impl Stream<Item = Result<WatchRequest, Status>> + Send + 'static {
    let (sender, requests) = mpsc::channel(REQUESTS_MAX);
    // Ends with the body, or when nobody listens.
    tokio::spawn(async move {
        if let Err(status) = read_requests(body, bytes_max, &sender).await {
            // Nobody may listen any more.
            sender.send(Err(status)).await.ok();
        }
    });
    ReceiverStream::new(requests)
}

async fn read_requests(
    body: Body,
    bytes_max: usize,
    sender: &mpsc::Sender<Result<WatchRequest, Status>>,
) -> Result<(), Status> {
    let mut data = body.into_data_stream();
    let mut waiting = BytesMut::new();
    loop {
        let part = tokio::select! {
            part = data.next() => part,
            () = sender.closed() => return Ok(()),
        };
        let Some(part) = part else {
            let rest = waiting.iter().any(|byte| !byte.is_ascii_whitespace());
            return if rest { Err(Status::invalid_argument("unexpected EOF")) } else { Ok(()) };
        };
        let part = part.map_err(|error| Status::cancelled(error.to_string()))?;
        if waiting.len() + part.len() > bytes_max {
            return Err(crate::etcd::errors::too_large());
        }
        waiting.extend_from_slice(&part);
        let (values, taken) = json::complete_values(&waiting)?;
        let _done = waiting.split_to(taken);
        for value in values {
            let request = json::decode_value("WatchRequest", value)?;
            if sender.send(Ok(request)).await.is_err() {
                return Ok(());
            }
        }
    }
}
