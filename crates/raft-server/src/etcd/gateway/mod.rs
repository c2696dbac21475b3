//! The JSON gateway: etcd's interface for whoever speaks plain HTTP, on the same port and by the same functions.
//!
//! One route for each call, by the table in [`routes`]. What is refused is told in both of the shapes that clients of
//! different versions of etcd look for.

mod json;
mod places;
mod socket;
mod streams;

use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::Bytes;
use axum::extract::{DefaultBodyLimit, FromRequest, Request as HttpRequest, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response as HttpResponse};
use axum::routing::{MethodRouter, get, post};
use prost::Message;
use serde_json::json;
use tonic::codegen::BoxFuture;
use tonic::metadata::MetadataMap;
use tonic::{Code, Request, Response, Status};

use self::places::Places;
use super::http::method_not_allowed;
use super::{Etcd, MESSAGE_ROOM_BYTES};
use crate::proto::etcdserverpb::auth_server::Auth;
use crate::proto::etcdserverpb::cluster_server::Cluster;
use crate::proto::etcdserverpb::kv_server::Kv;
use crate::proto::etcdserverpb::lease_server::Lease;
use crate::proto::etcdserverpb::maintenance_server::Maintenance;
use crate::proto::v3electionpb::election_server::Election;
use crate::proto::v3lockpb::lock_server::Lock;

/// How long a client may take to send a request's body after its head.
const BODY_TIMEOUT: Duration = Duration::from_secs(30);

/// A call that takes one message and answers one.
macro_rules! unary {
    ($input:literal, $output:literal, $service:ident :: $method:ident) => {
        unary($input, $output, |etcd, request| {
            Box::pin(async move { $service::$method(&*etcd, request).await })
        })
    };
}

/// Every route of the gateway.
pub(super) fn router(etcd: Arc<Etcd>) -> Router {
    // Bytes travel as base64.
    let body_bytes_max = etcd.settings.request_bytes_max.saturating_add(MESSAGE_ROOM_BYTES) * 4 / 3;
    let routes = routes();
    let places = Places::new(etcd.settings.streams_max);
    Router::new()
        .nest("/v3", routes.clone())
        // etcd 3.3 called it so, and later ones still answer.
        .nest("/v3beta", routes)
        .layer(DefaultBodyLimit::max(body_bytes_max))
        .layer(middleware::from_fn(move |request, next| {
            refuse_large(body_bytes_max, request, next)
        }))
        .layer(middleware::from_fn(move |request, next| places.clone().take(request, next)))
        .layer(middleware::from_fn(cross_origin))
        .with_state(etcd)
}

fn routes() -> Router<Arc<Etcd>> {
    let revoke = || unary!("LeaseRevokeRequest", "LeaseRevokeResponse", Lease::lease_revoke);
    let time_to_live =
        || unary!("LeaseTimeToLiveRequest", "LeaseTimeToLiveResponse", Lease::lease_time_to_live);
    let leases = || unary!("LeaseLeasesRequest", "LeaseLeasesResponse", Lease::lease_leases);
    Router::new()
        .nest("/auth", auth_routes())
        .route("/kv/range", unary!("RangeRequest", "RangeResponse", Kv::range))
        .route("/kv/put", unary!("PutRequest", "PutResponse", Kv::put))
        .route(
            "/kv/deleterange",
            unary!("DeleteRangeRequest", "DeleteRangeResponse", Kv::delete_range),
        )
        .route("/kv/txn", unary!("TxnRequest", "TxnResponse", Kv::txn))
        .route("/kv/compaction", unary!("CompactionRequest", "CompactionResponse", Kv::compact))
        .route("/watch", get(socket::watch).post(streams::watch).fallback(method_not_allowed))
        .route(
            "/lease/grant",
            unary!("LeaseGrantRequest", "LeaseGrantResponse", Lease::lease_grant),
        )
        .route("/lease/revoke", revoke())
        .route("/kv/lease/revoke", revoke())
        .route("/lease/keepalive", post(streams::keep_alive).fallback(method_not_allowed))
        .route("/lease/timetolive", time_to_live())
        .route("/kv/lease/timetolive", time_to_live())
        .route("/lease/leases", leases())
        .route("/kv/lease/leases", leases())
        .route(
            "/cluster/member/add",
            unary!("MemberAddRequest", "MemberAddResponse", Cluster::member_add),
        )
        .route(
            "/cluster/member/remove",
            unary!("MemberRemoveRequest", "MemberRemoveResponse", Cluster::member_remove),
        )
        .route(
            "/cluster/member/update",
            unary!("MemberUpdateRequest", "MemberUpdateResponse", Cluster::member_update),
        )
        .route(
            "/cluster/member/list",
            unary!("MemberListRequest", "MemberListResponse", Cluster::member_list),
        )
        .route(
            "/cluster/member/promote",
            unary!("MemberPromoteRequest", "MemberPromoteResponse", Cluster::member_promote),
        )
        .route("/maintenance/alarm", unary!("AlarmRequest", "AlarmResponse", Maintenance::alarm))
        .route(
            "/maintenance/status",
            unary!("StatusRequest", "StatusResponse", Maintenance::status),
        )
        .route(
            "/maintenance/defragment",
            unary!("DefragmentRequest", "DefragmentResponse", Maintenance::defragment),
        )
        .route("/maintenance/hash", unary!("HashRequest", "HashResponse", Maintenance::hash))
        .route(
            "/maintenance/hashkv",
            unary!("HashKVRequest", "HashKVResponse", Maintenance::hash_kv),
        )
        .route(
            "/maintenance/transfer-leadership",
            unary!("MoveLeaderRequest", "MoveLeaderResponse", Maintenance::move_leader),
        )
        .route(
            "/maintenance/downgrade",
            unary!("DowngradeRequest", "DowngradeResponse", Maintenance::downgrade),
        )
        .route("/lock/lock", unary!("LockRequest", "LockResponse", Lock::lock))
        .route("/lock/unlock", unary!("UnlockRequest", "UnlockResponse", Lock::unlock))
        .route(
            "/election/campaign",
            unary!("CampaignRequest", "CampaignResponse", Election::campaign),
        )
        .route(
            "/election/proclaim",
            unary!("ProclaimRequest", "ProclaimResponse", Election::proclaim),
        )
        .route("/election/leader", unary!("LeaderRequest", "LeaderResponse", Election::leader))
        .route("/election/observe", post(streams::observe).fallback(method_not_allowed))
        .route("/election/resign", unary!("ResignRequest", "ResignResponse", Election::resign))
}

/// Below `/auth`.
fn auth_routes() -> Router<Arc<Etcd>> {
    Router::new()
        .route("/enable", unary!("AuthEnableRequest", "AuthEnableResponse", Auth::auth_enable))
        .route("/disable", unary!("AuthDisableRequest", "AuthDisableResponse", Auth::auth_disable))
        .route("/status", unary!("AuthStatusRequest", "AuthStatusResponse", Auth::auth_status))
        .route(
            "/authenticate",
            unary!("AuthenticateRequest", "AuthenticateResponse", Auth::authenticate),
        )
        .route("/user/add", unary!("AuthUserAddRequest", "AuthUserAddResponse", Auth::user_add))
        .route("/user/get", unary!("AuthUserGetRequest", "AuthUserGetResponse", Auth::user_get))
        .route("/user/list", unary!("AuthUserListRequest", "AuthUserListResponse", Auth::user_list))
        .route(
            "/user/delete",
            unary!("AuthUserDeleteRequest", "AuthUserDeleteResponse", Auth::user_delete),
        )
        .route(
            "/user/changepw",
            unary!(
                "AuthUserChangePasswordRequest",
                "AuthUserChangePasswordResponse",
                Auth::user_change_password
            ),
        )
        .route(
            "/user/grant",
            unary!("AuthUserGrantRoleRequest", "AuthUserGrantRoleResponse", Auth::user_grant_role),
        )
        .route(
            "/user/revoke",
            unary!(
                "AuthUserRevokeRoleRequest",
                "AuthUserRevokeRoleResponse",
                Auth::user_revoke_role
            ),
        )
        .route("/role/add", unary!("AuthRoleAddRequest", "AuthRoleAddResponse", Auth::role_add))
        .route("/role/get", unary!("AuthRoleGetRequest", "AuthRoleGetResponse", Auth::role_get))
        .route("/role/list", unary!("AuthRoleListRequest", "AuthRoleListResponse", Auth::role_list))
        .route(
            "/role/delete",
            unary!("AuthRoleDeleteRequest", "AuthRoleDeleteResponse", Auth::role_delete),
        )
        .route(
            "/role/grant",
            unary!(
                "AuthRoleGrantPermissionRequest",
                "AuthRoleGrantPermissionResponse",
                Auth::role_grant_permission
            ),
        )
        .route(
            "/role/revoke",
            unary!(
                "AuthRoleRevokePermissionRequest",
                "AuthRoleRevokePermissionResponse",
                Auth::role_revoke_permission
            ),
        )
}

/// One of the services' functions.
type Call<Req, Resp> = fn(Arc<Etcd>, Request<Req>) -> BoxFuture<Response<Resp>, Status>;

/// A route for a call that takes one message and answers one.
fn unary<Req, Resp>(
    input: &'static str,
    output: &'static str,
    call: Call<Req, Resp>,
) -> MethodRouter<Arc<Etcd>>
where
    Req: Message + Default + 'static,
    Resp: Message + 'static,
{
    let handler = move |State(etcd): State<Arc<Etcd>>, headers: HeaderMap, Whole(body): Whole| async move {
        let answer = async {
            let request = with_metadata(&headers, json::decode::<Req>(input, &body)?);
            let response = call(etcd, request).await?;
            json::encode(output, response.get_ref())
        };
        match answer.await {
            Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text).into_response(),
            Err(status) => refusal(&status),
        }
    };
    post(handler).fallback(method_not_allowed)
}

/// A body that has come to its end in time.
struct Whole(Bytes);

impl<S: Send + Sync> FromRequest<S> for Whole {
    type Rejection = HttpResponse;

    async fn from_request(request: HttpRequest, state: &S) -> Result<Self, HttpResponse> {
        match tokio::time::timeout(BODY_TIMEOUT, Bytes::from_request(request, state)).await {
            Ok(Ok(body)) => Ok(Self(body)),
            Ok(Err(rejection)) => Err(rejection.into_response()),
            Err(_) => Err(StatusCode::REQUEST_TIMEOUT.into_response()),
        }
    }
}

/// A request with what of its HTTP headers means something to gRPC.
fn with_metadata<T>(headers: &HeaderMap, message: T) -> Request<T> {
    let mut chosen = HeaderMap::new();
    for (name, value) in headers {
        if name == header::AUTHORIZATION {
            chosen.insert("token", value.clone());
        } else if let Some(name) = name.as_str().strip_prefix("grpc-metadata-")
            && let Ok(name) = header::HeaderName::from_bytes(name.as_bytes())
        {
            chosen.append(name, value.clone());
        }
    }
    let mut request = Request::new(message);
    *request.metadata_mut() = MetadataMap::from_headers(chosen);
    request
}

/// What HTTP calls a status.
const fn http_status(code: Code) -> StatusCode {
    match code {
        Code::Ok => StatusCode::OK,
        Code::InvalidArgument | Code::OutOfRange | Code::FailedPrecondition => {
            StatusCode::BAD_REQUEST
        }
        Code::NotFound => StatusCode::NOT_FOUND,
        Code::AlreadyExists | Code::Aborted => StatusCode::CONFLICT,
        Code::PermissionDenied => StatusCode::FORBIDDEN,
        Code::Unauthenticated => StatusCode::UNAUTHORIZED,
        Code::ResourceExhausted => StatusCode::TOO_MANY_REQUESTS,
        Code::Unavailable => StatusCode::SERVICE_UNAVAILABLE,
        Code::DeadlineExceeded => StatusCode::GATEWAY_TIMEOUT,
        Code::Unimplemented => StatusCode::NOT_IMPLEMENTED,
        Code::Cancelled | Code::Unknown | Code::Internal | Code::DataLoss => {
            StatusCode::INTERNAL_SERVER_ERROR
        }
    }
}

/// Both shapes in one: etcd up to 3.5 says `error`, later ones `details`.
fn refusal(status: &Status) -> HttpResponse {
    let message = status.message();
    let code = i32::from(status.code());
    let body = json!({"error": message, "code": code, "message": message, "details": []});
    let content_type = [(header::CONTENT_TYPE, "application/json")];
    (http_status(status.code()), content_type, body.to_string()).into_response()
}

/// Refuses what says that it is too large, before anybody waits for it: in the words of etcd, whose gateway hands it on
/// over gRPC.
async fn refuse_large(bytes_max: usize, request: HttpRequest, next: Next) -> HttpResponse {
    let length = request.headers().get(header::CONTENT_LENGTH);
    let length = length.and_then(|length| length.to_str().ok()?.parse::<u64>().ok()).unwrap_or(0);
    if usize::try_from(length).is_ok_and(|length| length <= bytes_max) {
        return next.run(request).await;
    }
    refusal(&Status::resource_exhausted(format!(
        "grpc: received message larger than max ({length} vs. {bytes_max})"
    )))
}

/// Pages of any origin may ask, as etcd lets them by default.
async fn cross_origin(request: HttpRequest, next: Next) -> HttpResponse {
    let mut response = if request.method() == axum::http::Method::OPTIONS {
        StatusCode::OK.into_response()
    } else {
        next.run(request).await
    };
    let headers = response.headers_mut();
    for (name, value) in [
        (header::ACCESS_CONTROL_ALLOW_ORIGIN, "*"),
        (header::ACCESS_CONTROL_ALLOW_METHODS, "POST, GET, OPTIONS, PUT, DELETE"),
        (header::ACCESS_CONTROL_ALLOW_HEADERS, "accept, content-type, authorization"),
    ] {
        headers.insert(name, HeaderValue::from_static(value));
    }
    response
}
