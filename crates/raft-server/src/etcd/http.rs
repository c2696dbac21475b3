//! Plain HTTP: health and version for probes and people, metrics, and an answer for everything else.

use std::sync::Arc;

use axum::Json;
use axum::Router;
use axum::extract::{Path, RawQuery, Request, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use axum::routing::get;
use raft::node::RoleName;
use raft_kv::proto::etcdserverpb::AlarmType;
use serde_json::json;

use super::{ETCD_VERSION, Etcd};
use crate::metrics::Facts;

/// What `/livez` looks at.
const LIVE_CHECKS: [&str; 1] = [SERIALIZABLE_READ];
/// What `/readyz` looks at.
const READY_CHECKS: [&str; 4] =
    [DATA_CORRUPTION, SERIALIZABLE_READ, LINEARIZABLE_READ, NON_LEARNER];
const DATA_CORRUPTION: &str = "data_corruption";
const SERIALIZABLE_READ: &str = "serializable_read";
const LINEARIZABLE_READ: &str = "linearizable_read";
const NON_LEARNER: &str = "non_learner";

/// The routes beside gRPC.
pub(super) fn router(etcd: Arc<Etcd>) -> Router {
    Router::new()
        .route("/health", get(health).fallback(method_not_allowed))
        .route("/version", get(version).fallback(method_not_allowed))
        .route("/metrics", get(metrics).fallback(method_not_allowed))
        .route("/debug/vars", get(variables).fallback(method_not_allowed))
        .route("/livez", get(livez).fallback(method_not_allowed))
        .route("/livez/{check}", get(live_check).fallback(method_not_allowed))
        .route("/readyz", get(readyz).fallback(method_not_allowed))
        .route("/readyz/{check}", get(ready_check).fallback(method_not_allowed))
        .fallback(not_found)
        .with_state(etcd)
}

/// The values of a parameter in a query; `Some("")` for one without a value.
fn values<'a>(query: &'a str, name: &'a str) -> impl Iterator<Item = &'a str> {
    query.split('&').filter_map(move |pair| {
        let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
        (key == name).then_some(value)
    })
}

impl Etcd {
    /// Why this member cannot serve, in etcd's words.
    async fn unwell(&self, query: &str) -> Option<String> {
        let alarms = self.reader.notices();
        for (kind, name) in [(AlarmType::Nospace, "NOSPACE"), (AlarmType::Corrupt, "CORRUPT")] {
            if alarms.has(kind) && !values(query, "exclude").any(|excluded| excluded == name) {
                return Some(format!("ALARM {name}"));
            }
        }
        if values(query, "serializable").any(|value| value == "true") {
            return None;
        }
        if self.node.status().leader.is_none() {
            return Some("RAFT NO LEADER".to_owned());
        }
        if self.is_learner() {
            return Some("RANGE ERROR:etcdserver: rpc not supported for learner".to_owned());
        }
        let read = self.linearize().await;
        read.err().map(|status| format!("RANGE ERROR:{}", status.message()))
    }

    /// One of the checks of `/livez` and `/readyz`: why it fails.
    async fn check(&self, name: &str) -> Result<(), String> {
        match name {
            DATA_CORRUPTION if self.reader.notices().has(AlarmType::Corrupt) => {
                Err("alarm activated: CORRUPT".to_owned())
            }
            LINEARIZABLE_READ => self
                .linearize()
                .await
                .map_err(|status| format!("range error: {}", status.message())),
            NON_LEARNER if self.is_learner() => Err("not supported for learner".to_owned()),
            // The store is in memory: reading it without asking anybody cannot fail.
            _ => Ok(()),
        }
    }

    /// Runs checks: a line for each where one fails or `verbose` asks for it.
    async fn run_checks(&self, checks: &[&str], query: Option<String>) -> Response {
        let query = query.unwrap_or_default();
        let mut lines = String::new();
        let mut well = true;
        let excluded = |name: &str| values(&query, "exclude").any(|excluded| excluded == name);
        for name in checks.iter().filter(|name| !excluded(name)) {
            match self.check(name).await {
                Ok(()) => lines.push_str(&format!("[+]{name} ok\n")),
                Err(reason) => {
                    well = false;
                    lines.push_str(&format!("[-]{name} failed: {reason}\n"));
                }
            }
        }
        let headers = [
            (header::CONTENT_TYPE, "text/plain; charset=utf-8"),
            (header::X_CONTENT_TYPE_OPTIONS, "nosniff"),
        ];
        if !well {
            return (StatusCode::SERVICE_UNAVAILABLE, headers, lines).into_response();
        }
        if values(&query, "verbose").next().is_none() {
            lines.clear();
        }
        lines.push_str("ok\n");
        (headers, lines).into_response()
    }
}

/// etcd's `/health`: 200 or 503, `{"health":"true","reason":""}`.
async fn health(State(etcd): State<Arc<Etcd>>, RawQuery(query): RawQuery) -> Response {
    match etcd.unwell(&query.unwrap_or_default()).await {
        None => {
            etcd.metrics.health_success.inc();
            Json(json!({"health": "true", "reason": ""})).into_response()
        }
        Some(reason) => {
            etcd.metrics.health_failures.inc();
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

async fn metrics(State(etcd): State<Arc<Etcd>>) -> Response {
    let facts = Facts {
        size: etcd.reader.logical_size(),
        quota: etcd.quota_bytes(),
        revision: etcd.reader.revision(),
        compact_revision: etcd.reader.compact_revision(),
        version: ETCD_VERSION,
    };
    match etcd.metrics.text(&etcd.node, &facts) {
        Ok(text) => ([(header::CONTENT_TYPE, "text/plain; version=0.0.4; charset=utf-8")], text)
            .into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, error.to_string()).into_response(),
    }
}

/// What etcd shows of itself to whoever debugs it, as far as it means something here.
async fn variables(State(etcd): State<Arc<Etcd>>) -> Response {
    let status = etcd.node.status();
    let id = |member| format!("{:x}", status.known_as(member).0);
    let progress: serde_json::Map<_, _> = status
        .members
        .iter()
        .filter_map(|member| {
            let matched = json!({"match": member.match_index?.0, "learner": !member.voter});
            Some((format!("{:x}", member.known_as().0), matched))
        })
        .collect();
    Json(json!({
        "cmdline": std::env::args().collect::<Vec<_>>(),
        "file_descriptor_limit": crate::limits::open_files(),
        "raft.status": {
            "id": id(status.node.member),
            "term": status.term.0,
            "commit": status.commit_index.0,
            "applied": status.last_applied.0,
            "lead": status.leader.map_or_else(|| "0".to_owned(), id),
            "raftState": match status.role {
                RoleName::Leader => "StateLeader",
                RoleName::Candidate => "StateCandidate",
                RoleName::Follower | RoleName::Learner => "StateFollower",
            },
            "progress": progress,
        },
    }))
    .into_response()
}

/// Whether the process is worth keeping.
async fn livez(State(etcd): State<Arc<Etcd>>, RawQuery(query): RawQuery) -> Response {
    etcd.run_checks(&LIVE_CHECKS, query).await
}

async fn live_check(
    State(etcd): State<Arc<Etcd>>,
    Path(check): Path<String>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Response {
    one_check(&etcd, &LIVE_CHECKS, &check, query, request).await
}

/// Whether requests are worth sending here.
async fn readyz(State(etcd): State<Arc<Etcd>>, RawQuery(query): RawQuery) -> Response {
    if *etcd.stop.borrow() {
        return (StatusCode::SERVICE_UNAVAILABLE, "stopping\n").into_response();
    }
    etcd.run_checks(&READY_CHECKS, query).await
}

async fn ready_check(
    State(etcd): State<Arc<Etcd>>,
    Path(check): Path<String>,
    RawQuery(query): RawQuery,
    request: Request,
) -> Response {
    one_check(&etcd, &READY_CHECKS, &check, query, request).await
}

async fn one_check(
    etcd: &Etcd,
    known: &[&str],
    name: &str,
    query: Option<String>,
    request: Request,
) -> Response {
    if known.contains(&name) {
        etcd.run_checks(&[name], query).await
    } else {
        not_found(request).await
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_may_come_often_and_without_a_value() {
        let query = "exclude=NOSPACE&verbose&exclude=CORRUPT&x";
        assert_eq!(values(query, "exclude").collect::<Vec<_>>(), ["NOSPACE", "CORRUPT"]);
        assert_eq!(values(query, "verbose").collect::<Vec<_>>(), [""]);
        assert_eq!(values("", "verbose").next(), None);
    }
}
