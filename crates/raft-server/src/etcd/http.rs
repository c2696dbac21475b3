//! Plain HTTP: health and version for probes and people, and an answer for everything else.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{RawQuery, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use serde_json::json;

use super::{ETCD_VERSION, Etcd};

/// The routes beside gRPC.
pub(super) fn router(etcd: Arc<Etcd>) -> Router {
    Router::new()
        .route("/health", get(health).fallback(method_not_allowed))
        .route("/version", get(version).fallback(method_not_allowed))
        .route("/livez", get(livez).fallback(method_not_allowed))
        .route("/readyz", get(readyz).fallback(method_not_allowed))
        .fallback(not_found)
        .with_state(etcd)
}

impl Etcd {
    /// Why this member cannot serve, in etcd's words.
    async fn unwell(&self, serializable: bool) -> Option<String> {
        if self.node.status().leader.is_none() {
            return Some("RAFT NO LEADER".to_owned());
        }
        if serializable {
            return None;
        }
        if self.is_learner() {
            return Some("LEARNER".to_owned());
        }
        let read = self.linearize().await;
        read.err().map(|status| format!("QGET ERROR:{}", status.message()))
    }
}

/// etcd's `/health`: 200 or 503, `{"health":"true","reason":""}`.
async fn health(State(etcd): State<Arc<Etcd>>, RawQuery(query): RawQuery) -> Response {
    let query = query.unwrap_or_default();
    let serializable = query.split('&').any(|pair| pair == "serializable=true");
    match etcd.unwell(serializable).await {
        None => Json(json!({"health": "true", "reason": ""})).into_response(),
        Some(reason) => {
            let body = Json(json!({"health": "false", "reason": reason}));
            (StatusCode::SERVICE_UNAVAILABLE, body).into_response()
        }
    }
}

async fn version() -> Response {
    Json(json!({
        "etcdserver": ETCD_VERSION,
        "etcdcluster": ETCD_VERSION,
        "storage": ETCD_VERSION,
    }))
    .into_response()
}

/// Whether the process is worth keeping: it answers, so it is.
async fn livez() -> Response {
    "ok\n".into_response()
}

/// Whether requests are worth sending here.
async fn readyz(State(etcd): State<Arc<Etcd>>) -> Response {
    if *etcd.stop.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    match etcd.unwell(false).await {
        None => "ok\n".into_response(),
        Some(reason) => (StatusCode::SERVICE_UNAVAILABLE, format!("{reason}\n")).into_response(),
    }
}

pub(super) async fn method_not_allowed() -> Response {
    let body = Json(
        json!({"error": "Method Not Allowed", "code": 12, "message": "Method Not Allowed", "details": []}),
    );
    (StatusCode::METHOD_NOT_ALLOWED, body).into_response()
}

/// gRPC clients hear UNIMPLEMENTED, all others 404 with a body in the gateway's form.
async fn not_found(request: Request) -> Response {
    let is_grpc = request
        .headers()
        .get(header::CONTENT_TYPE)
        .is_some_and(|kind| kind.as_bytes().starts_with(b"application/grpc"));
    if is_grpc {
        let path = request.uri().path().trim_start_matches('/');
        let service = path.split('/').next().unwrap_or_default();
        return tonic::Status::unimplemented(format!("unknown service {service}")).into_http();
    }
    let body =
        Json(json!({"error": "Not Found", "code": 5, "message": "Not Found", "details": []}));
    (StatusCode::NOT_FOUND, body).into_response()
}
