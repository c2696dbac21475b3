//! Users, roles and permissions, as clients meet them: every refusal word for word, and every call refused to whoever may
//! not make it.

use std::collections::BTreeMap;

use bytes::Bytes;
use prost_reflect::DescriptorPool;
use raft_kv::proto::authpb::{Permission, UserAddOptions, permission::Type};
use raft_kv::proto::etcdserverpb::watch_request::RequestUnion;
use raft_kv::proto::etcdserverpb::*;
use raft_server::proto::etcdserverpb::auth_client::AuthClient;
use raft_server::proto::etcdserverpb::lease_client::LeaseClient;
use raft_server::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use raft_server::proto::etcdserverpb::watch_client::WatchClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::kv::assert_refused;
use crate::support::{Members, PATIENCE, channel_to, get, kv, program, put, until_serving};

const EMPTY: &str = "etcdserver: user name is empty";
const DENIED: &str = "etcdserver: permission denied";
const BAD_TOKEN: &str = "etcdserver: invalid auth token";

fn auth(address: &str) -> AuthClient<Channel> {
    AuthClient::new(channel_to(address))
}

/// A request of whoever has this token.
fn by<T>(token: &str, message: T) -> Request<T> {
    let mut request = Request::new(message);
    request.metadata_mut().insert("token", token.parse().unwrap());
    request
}

async fn log_in(address: &str, name: &str, password: &str) -> Result<String, Status> {
    let request = AuthenticateRequest { name: name.into(), password: password.into() };
    Ok(auth(address).authenticate(request).await?.into_inner().token)
}

fn user(name: &str, password: &str) -> AuthUserAddRequest {
    AuthUserAddRequest { name: name.into(), password: password.into(), ..Default::default() }
}

fn grant(role: &str, kind: Type, key: &str, range_end: &str) -> AuthRoleGrantPermissionRequest {
    let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
    let perm = Some(Permission { perm_type: kind.into(), key, range_end });
    AuthRoleGrantPermissionRequest { name: role.into(), perm }
}

fn grant_role(user: &str, role: &str) -> AuthUserGrantRoleRequest {
    AuthUserGrantRoleRequest { user: user.into(), role: role.into() }
}

/// Users root and alice, who may read and write `a/`; authentication is on. Their tokens.
async fn set_up(address: &str) -> (String, String) {
    let mut client = auth(address);
    for name in ["root", "alice"] {
        client.user_add(user(name, &format!("{name}'s"))).await.unwrap();
    }
    for name in ["root", "house"] {
        client.role_add(AuthRoleAddRequest { name: name.into() }).await.unwrap();
    }
    client.user_grant_role(grant_role("root", "root")).await.unwrap();
    client.user_grant_role(grant_role("alice", "house")).await.unwrap();
    client.role_grant_permission(grant("house", Type::Readwrite, "a/", "a0")).await.unwrap();
    client.auth_enable(AuthEnableRequest {}).await.unwrap();
    let root = log_in(address, "root", "root's").await.unwrap();
    (root, log_in(address, "alice", "alice's").await.unwrap())
}

fn put_of(key: &str) -> PutRequest {
    PutRequest { key: key.to_owned().into(), value: "v".into(), ..PutRequest::default() }
}

fn range_of(key: &str, range_end: &str) -> RangeRequest {
    let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
    RangeRequest { key, range_end, ..RangeRequest::default() }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn managing_is_refused_in_etcds_words() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    let mut client = auth(address);
    let precondition = Code::FailedPrecondition;
    let invalid = Code::InvalidArgument;

    let name = |name: &str| name.to_owned();
    let enable = client.auth_enable(AuthEnableRequest {}).await;
    assert_refused(enable, precondition, "etcdserver: root user does not exist");
    let root = AuthenticateRequest { name: name("root"), password: name("root's") };
    let early = client.authenticate(root.clone()).await;
    assert_refused(early, precondition, "etcdserver: authentication is not enabled");
    client.user_add(user("root", "root's")).await.unwrap();
    let enable = client.auth_enable(AuthEnableRequest {}).await;
    assert_refused(enable, precondition, "etcdserver: root user does not have root role");
    let again = client.user_add(user("root", "x")).await;
    assert_refused(again, precondition, "etcdserver: user name already exists");
    assert_refused(client.user_add(user("", "x")).await, invalid, EMPTY);
    let long = client.user_add(user("long", &"x".repeat(73))).await;
    assert_refused(long, Code::Unknown, "bcrypt: password length exceeds 72 bytes");

    let not_found = "etcdserver: user name not found";
    let get = client.user_get(AuthUserGetRequest { name: name("nobody") }).await;
    assert_refused(get, precondition, not_found);
    let delete = client.user_delete(AuthUserDeleteRequest { name: name("nobody") }).await;
    assert_refused(delete, precondition, not_found);
    let change = AuthUserChangePasswordRequest {
        name: name("nobody"),
        password: name("x"),
        ..Default::default()
    };
    assert_refused(client.user_change_password(change).await, precondition, not_found);
    let given = client.user_grant_role(grant_role("nobody", "root")).await;
    assert_refused(given, precondition, not_found);
    let revoke = AuthUserRevokeRoleRequest { name: name("root"), role: name("root") };
    let revoked = client.user_revoke_role(revoke.clone()).await;
    assert_refused(revoked, precondition, "etcdserver: role is not granted to the user");

    let not_found = "etcdserver: role name not found";
    let given = client.user_grant_role(grant_role("root", "nothing")).await;
    assert_refused(given, precondition, not_found);
    let get = client.role_get(AuthRoleGetRequest { role: name("nothing") }).await;
    assert_refused(get, precondition, not_found);
    let delete = client.role_delete(AuthRoleDeleteRequest { role: name("nothing") }).await;
    assert_refused(delete, precondition, not_found);
    let granted = client.role_grant_permission(grant("nothing", Type::Read, "k", "")).await;
    assert_refused(granted, precondition, not_found);
    let add = |name: &str| AuthRoleAddRequest { name: name.to_owned() };
    assert_refused(client.role_add(add("")).await, invalid, "etcdserver: role name is empty");
    client.role_add(add("r")).await.unwrap();
    let again = client.role_add(add("r")).await;
    assert_refused(again, precondition, "etcdserver: role name already exists");
    let nothing = AuthRoleGrantPermissionRequest { name: name("r"), perm: None };
    let granted = client.role_grant_permission(nothing).await;
    assert_refused(granted, invalid, "etcdserver: permission not given");
    let no_key = client.role_grant_permission(grant("r", Type::Read, "", "")).await;
    assert_refused(no_key, invalid, "etcdserver: invalid auth management");
    let revoke_permission = AuthRoleRevokePermissionRequest {
        role: name("r"),
        key: "k".into(),
        range_end: Bytes::new(),
    };
    let revoked = client.role_revoke_permission(revoke_permission).await;
    assert_refused(revoked, precondition, "etcdserver: permission is not granted to the role");

    // Once it is on.
    let no_password = AuthUserAddRequest {
        options: Some(UserAddOptions { no_password: true }),
        ..user("bare", "")
    };
    client.user_add(no_password).await.unwrap();
    client.user_grant_role(grant_role("root", "root")).await.unwrap();
    client.role_add(add("root")).await.unwrap();
    client.auth_enable(AuthEnableRequest {}).await.unwrap();
    let failed = "etcdserver: authentication failed, invalid user ID or password";
    assert_refused(log_in(address, "root", "wrong").await, invalid, failed);
    assert_refused(log_in(address, "nobody", "x").await, invalid, failed);
    let bare = log_in(address, "bare", "").await;
    let words = "auth: authentication failed, password was given for no password user";
    assert_refused(bare, Code::Unknown, words);
    let token = log_in(address, "root", "root's").await.unwrap();
    let management = "etcdserver: invalid auth management";
    let delete = AuthUserDeleteRequest { name: name("root") };
    assert_refused(client.user_delete(by(&token, delete)).await, invalid, management);
    assert_refused(client.user_revoke_role(by(&token, revoke)).await, invalid, management);
    let delete = AuthRoleDeleteRequest { role: name("root") };
    assert_refused(client.role_delete(by(&token, delete)).await, invalid, management);

    let role = client.role_get(by(&token, AuthRoleGetRequest { role: name("root") })).await;
    let everything =
        Permission { perm_type: Type::Readwrite.into(), key: Bytes::new(), range_end: "\0".into() };
    assert_eq!(role.unwrap().into_inner().perm, [everything]);
    let users = client.user_list(by(&token, AuthUserListRequest {})).await.unwrap().into_inner();
    assert_eq!(users.users, ["bare", "root"]);
    let roles = client.role_list(by(&token, AuthRoleListRequest {})).await.unwrap().into_inner();
    assert_eq!(roles.roles, ["r", "root"]);
    let status = client.auth_status(AuthStatusRequest {}).await.unwrap().into_inner();
    // Two users, two roles and one grant after revision 1; nothing that was refused counts.
    assert_eq!((status.enabled, status.auth_revision), (true, 6));
    let header = status.header.unwrap();
    assert!(header.revision == 1 && header.raft_term > 0 && header.member_id != 0, "{header:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_may_not_is_refused_and_who_may_is_not() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    put(address, "secret", "s").await.unwrap();
    let (root, alice) = set_up(address).await;
    let mut client = kv(address);

    // Without a token, with a bad one, with one that may not, with one that may.
    assert_refused(client.put(put_of("a/1")).await, Code::InvalidArgument, EMPTY);
    for token in ["x", "abcdefghijklmnop.17", &alice[1..]] {
        assert_refused(
            client.put(by(token, put_of("a/1"))).await,
            Code::Unauthenticated,
            BAD_TOKEN,
        );
    }
    let denied = client.put(by(&alice, put_of("secret"))).await;
    assert_refused(denied, Code::PermissionDenied, DENIED);
    client.put(by(&alice, put_of("a/1"))).await.unwrap();
    client.put(by(&root, put_of("secret"))).await.unwrap();
    // Some clients send it under the other name.
    let mut request = Request::new(range_of("a/1", ""));
    request.metadata_mut().insert("authorization", alice.parse().unwrap());
    assert_eq!(client.range(request).await.unwrap().into_inner().count, 1);

    for (key, end) in
        [("secret", ""), ("a/", "b"), ("a/", "\0"), ("\0", "\0"), ("", ""), ("a", "a/1")]
    {
        for serializable in [false, true] {
            let request = RangeRequest { serializable, ..range_of(key, end) };
            let refused = client.range(by(&alice, request)).await.unwrap_err();
            let expected = if key.is_empty() { "etcdserver: key is not provided" } else { DENIED };
            assert_eq!(refused.message(), expected, "{key:?} {end:?}");
        }
    }
    assert_eq!(client.range(by(&alice, range_of("a/", "a0"))).await.unwrap().into_inner().count, 1);
    // Read-only transactions do not go through the log.
    let op = |key: &str| RequestOp {
        request: Some(request_op::Request::RequestRange(range_of(key, ""))),
    };
    let look = |key: &str| TxnRequest { failure: vec![op(key)], ..TxnRequest::default() };
    let denied = client.txn(by(&alice, look("secret"))).await;
    assert_refused(denied, Code::PermissionDenied, DENIED);
    assert_refused(client.txn(look("a/1")).await, Code::InvalidArgument, EMPTY);
    client.txn(by(&alice, look("a/1"))).await.unwrap();

    // Leases: hers while all keys are.
    let mut leases = LeaseClient::new(channel_to(address));
    let lease = LeaseGrantRequest { ttl: 60, id: 7 };
    assert_refused(leases.lease_grant(lease).await, Code::InvalidArgument, EMPTY);
    leases.lease_grant(by(&alice, lease)).await.unwrap();
    let leased = |key: &str| PutRequest { lease: 7, ..put_of(key) };
    client.put(by(&alice, leased("a/2"))).await.unwrap();
    assert_eq!(keep_alive(address, &alice, 7).await.unwrap().ttl, 60);
    let ask = LeaseTimeToLiveRequest { id: 7, keys: true };
    let told = leases.lease_time_to_live(by(&alice, ask)).await.unwrap().into_inner();
    assert_eq!(told.keys, ["a/2"]);
    client.put(by(&root, leased("secret"))).await.unwrap();
    for refused in [
        leases.lease_time_to_live(by(&alice, ask)).await.unwrap_err(),
        leases.lease_leases(by(&alice, LeaseLeasesRequest {})).await.unwrap_err(),
        leases.lease_revoke(by(&alice, LeaseRevokeRequest { id: 7 })).await.unwrap_err(),
        client.put(by(&alice, leased("a/3"))).await.unwrap_err(),
        keep_alive(address, &alice, 7).await.unwrap_err(),
    ] {
        assert_eq!((refused.code(), refused.message()), (Code::PermissionDenied, DENIED));
    }
    assert_refused(keep_alive(address, "x", 7).await, Code::Unauthenticated, BAD_TOKEN);
    assert_eq!(keep_alive(address, &root, 7).await.unwrap().ttl, 60);
    let ask = LeaseTimeToLiveRequest { id: 7, keys: false };
    assert!(leases.lease_time_to_live(by(&alice, ask)).await.unwrap().into_inner().ttl > 0);

    // Of herself she may know.
    let mut users = auth(address);
    let get = |name: &str| AuthUserGetRequest { name: name.to_owned() };
    let herself = users.user_get(by(&alice, get("alice"))).await.unwrap().into_inner();
    assert_eq!(herself.roles, ["house"]);
    let other = users.user_get(by(&alice, get("root"))).await;
    assert_refused(other, Code::PermissionDenied, DENIED);
    let get = |role: &str| AuthRoleGetRequest { role: role.to_owned() };
    assert_eq!(users.role_get(by(&alice, get("house"))).await.unwrap().into_inner().perm.len(), 1);
    let other = users.role_get(by(&alice, get("root"))).await;
    assert_refused(other, Code::PermissionDenied, DENIED);

    // A new password ends what the old one proved; a hash that was made elsewhere will do.
    let hashed = "JDJhJDA1JENDQ0NDQ0NDQ0NDQ0NDQ0NDQ0NDQy5FNVlQTzlrbXl1Ukd5aDBYb3VRWWI0WU1KS3Z5T2VX";
    let change = AuthUserChangePasswordRequest {
        name: "alice".into(),
        hashed_password: hashed.into(),
        ..Default::default()
    };
    users.user_change_password(by(&root, change)).await.unwrap();
    let old = client.put(by(&alice, put_of("a/1"))).await;
    assert_refused(old, Code::Unauthenticated, BAD_TOKEN);
    let alice = log_in(address, "alice", "U*U").await.unwrap();
    client.put(by(&alice, put_of("a/1"))).await.unwrap();

    // Off: everybody may everything, and tokens are not looked at.
    users.auth_disable(by(&root, AuthDisableRequest {})).await.unwrap();
    put(address, "secret", "open").await.unwrap();
    client.put(by("x", put_of("secret"))).await.unwrap();
    // On again: tokens from before are void.
    users.auth_enable(AuthEnableRequest {}).await.unwrap();
    assert_refused(client.put(by(&root, put_of("k"))).await, Code::Unauthenticated, BAD_TOKEN);
    assert_refused(get_one(address).await, Code::InvalidArgument, EMPTY);
}

async fn get_one(address: &str) -> Result<Option<String>, Status> {
    get(address, "secret").await
}

async fn keep_alive(address: &str, token: &str, id: i64) -> Result<LeaseKeepAliveResponse, Status> {
    let request = tokio_stream::iter([LeaseKeepAliveRequest { id }]);
    let mut client = LeaseClient::new(channel_to(address));
    let mut answers = client.lease_keep_alive(by(token, request)).await?.into_inner();
    answers.message().await.map(|answer| answer.expect("an answer"))
}

/// CVE-2026-33413: calls that nobody asked who makes them. All calls of the interface, from its own description, so
/// that a new one is among them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_call_is_forgotten() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    let (_, alice) = set_up(address).await;
    let pool = DescriptorPool::decode(&include_bytes!("../../src/proto/api.descriptors")[..]);
    // What anybody may call, and what of the rest whoever has a token may, if nothing in it is theirs to see.
    let open = ["Auth.AuthStatus", "Auth.Authenticate", "Health.Check", "Health.Watch"];
    let known = [
        "KV.Txn",
        "Lease.LeaseGrant",
        "Lease.LeaseRevoke",
        "Lease.LeaseTimeToLive",
        "Lease.LeaseLeases",
        "Cluster.MemberList",
        "Maintenance.Status",
        "Maintenance.Alarm",
        // Without a key or a leader they say so.
        "Lock.Unlock",
        "Election.Proclaim",
        "Election.Resign",
    ];
    // Nothing is answered before something is asked in the stream; those have tests of their own.
    let streams = ["Watch.Watch", "Lease.LeaseKeepAlive"];
    let mut calls = 0;
    for service in pool.unwrap().services() {
        for method in service.methods() {
            let name = format!("{}.{}", service.name(), method.name());
            if streams.contains(&name.as_str()) {
                continue;
            }
            calls += 1;
            let path = format!("/{}/{}", service.full_name(), method.name());
            let with_key = ["KV.Range", "KV.RangeStream", "KV.Put", "KV.DeleteRange"];
            let key: &'static [u8] = if with_key.contains(&name.as_str()) { b"k" } else { b"" };
            // The first field of a message, or none.
            let message = Bytes::from_static(key);
            let nobody = raw(address, &path, None, message.clone()).await;
            let stranger = raw(address, &path, Some("x"), message.clone()).await;
            let she = raw(address, &path, Some(&alice), message).await;
            if open.contains(&name.as_str()) {
                for answer in [nobody, stranger, she] {
                    let code = answer.map_or_else(|status| status.code(), |()| Code::Ok);
                    let fine = [Code::Ok, Code::InvalidArgument];
                    assert!(fine.contains(&code), "{name}: {code:?}");
                }
                continue;
            }
            let words = |answer: Result<(), Status>| {
                answer.map_err(|status| (status.code(), status.message().to_owned()))
            };
            let refused = |code, words: &str| Err((code, words.to_owned()));
            assert_eq!(words(nobody), refused(Code::InvalidArgument, EMPTY), "{name}");
            assert_eq!(words(stranger), refused(Code::Unauthenticated, BAD_TOKEN), "{name}");
            let denied = refused(Code::PermissionDenied, DENIED);
            if known.contains(&name.as_str()) {
                assert_ne!(words(she), denied, "{name}");
            } else {
                assert_eq!(words(she), denied, "{name}");
            }
        }
    }
    assert!(calls >= 49, "only {calls} calls are known");
}

/// One call with a message of one field at most; what it answers is not looked into.
async fn raw(address: &str, path: &str, token: Option<&str>, message: Bytes) -> Result<(), Status> {
    let mut grpc = tonic::client::Grpc::new(channel_to(address));
    grpc.ready().await.unwrap();
    let codec = tonic_prost::ProstCodec::<Bytes, Bytes>::default();
    let mut request = Request::new(message);
    if let Some(token) = token {
        request.metadata_mut().insert("token", token.parse().unwrap());
    }
    let path = path.parse().unwrap();
    // A single answer is a stream of one.
    let mut answers = grpc.server_streaming(request, path, codec).await?.into_inner();
    match tokio::time::timeout(PATIENCE, answers.message()).await.unwrap() {
        // The messages are none that begin with bytes: a success all the same.
        Err(status) if status.code() == Code::Internal => Ok(()),
        answer => answer.map(drop),
    }
}

/// A stream of one watcher after the other.
struct Watch {
    requests: mpsc::UnboundedSender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

impl Watch {
    async fn open(address: &str, token: Option<&str>) -> Self {
        let (requests, stream) = mpsc::unbounded_channel();
        let mut request = Request::new(UnboundedReceiverStream::new(stream));
        if let Some(token) = token {
            request.metadata_mut().insert("token", token.parse().unwrap());
        }
        let mut client = WatchClient::new(channel_to(address));
        let answers = client.watch(request).await.unwrap().into_inner();
        Self { requests, answers }
    }

    async fn next(&mut self) -> WatchResponse {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await;
        answer.expect("no answer").unwrap().expect("the stream has ended")
    }

    async fn create(&mut self, key: &str, range_end: &str) -> WatchResponse {
        let create = WatchCreateRequest {
            key: key.to_owned().into(),
            range_end: range_end.to_owned().into(),
            ..WatchCreateRequest::default()
        };
        let union = RequestUnion::CreateRequest(create);
        self.requests.send(WatchRequest { request_union: Some(union) }).unwrap();
        self.next().await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_hear_what_they_may_and_no_more_once_they_may_not() {
    let members = Members::start(3);
    let leader = members.leader().await;
    // Changes are made at one member and watched at another.
    let address = &members.addresses[leader];
    let other = &members.addresses[(leader + 1) % 3];
    // Whoever began before there were permissions is asked, too, once there are.
    let mut early = Watch::open(other, None).await;
    assert!(early.create("secret", "").await.created);
    let (root, alice) = set_up(address).await;
    let canceled = early.next().await;
    let empty = format!("rpc error: code = InvalidArgument desc = {EMPTY}");
    assert_eq!((canceled.canceled, canceled.cancel_reason), (true, empty.clone()));

    let refused = |answer: &WatchResponse| {
        (answer.created && answer.canceled && answer.watch_id == -1)
            .then(|| answer.cancel_reason.clone())
    };
    assert_eq!(refused(&early.create("a/", "a0").await), Some(empty));
    let mut stranger = Watch::open(other, Some("x")).await;
    let bad = format!("rpc error: code = Unauthenticated desc = {BAD_TOKEN}");
    assert_eq!(refused(&stranger.create("a/", "a0").await), Some(bad));
    // CVE-2026-73499: the right to some keys is not the right to all that follow.
    let mut watch = Watch::open(other, Some(&alice)).await;
    let long = format!("rpc error: code = PermissionDenied desc = {DENIED}");
    for (key, end) in [("secret", ""), ("a/", "\0"), ("a/", "b"), ("", ""), ("\0", "\0")] {
        assert_eq!(refused(&watch.create(key, end).await), Some(long.clone()), "{key:?} {end:?}");
    }
    assert_eq!(watch.create("a/", "a0").await.watch_id, 0);
    assert_eq!(watch.create("a/1", "").await.watch_id, 1);
    kv(address).put(by(&alice, put_of("a/2"))).await.unwrap();
    let told = watch.next().await;
    assert_eq!((told.watch_id, told.events.len()), (0, 1));

    // The right to one key is left: one of the two goes on.
    let mut users = auth(address);
    let one = grant("house", Type::Readwrite, "a/1", "");
    users.role_grant_permission(by(&root, one)).await.unwrap();
    let revoke = AuthRoleRevokePermissionRequest {
        role: "house".into(),
        key: "a/".into(),
        range_end: "a0".into(),
    };
    users.role_revoke_permission(by(&root, revoke)).await.unwrap();
    // Written by root after the change: only the one that is left hears of it.
    for key in ["a/2", "a/1"] {
        kv(address).put(by(&root, put_of(key))).await.unwrap();
    }
    let canceled = watch.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled), (0, true));
    assert_eq!(canceled.cancel_reason, long);
    let told = watch.next().await;
    assert_eq!((told.watch_id, told.events.len()), (1, 1));
    assert_eq!(told.events[0].kv.as_ref().unwrap().key, "a/1");

    // What was granted at one member holds at once at every other.
    for n in 0..10 {
        let key = format!("new/{n}");
        users.role_grant_permission(by(&root, grant("house", Type::Read, &key, ""))).await.unwrap();
        let created = watch.create(&key, "").await;
        assert_eq!(created.cancel_reason, "", "{key}");
    }
    // With the user, everything.
    let delete = AuthUserDeleteRequest { name: "alice".into() };
    users.user_delete(by(&root, delete)).await.unwrap();
    for id in 1..12 {
        let canceled = watch.next().await;
        assert_eq!((canceled.watch_id, canceled.canceled), (id, true));
    }
    let bad = format!("rpc error: code = Unauthenticated desc = {BAD_TOKEN}");
    assert_eq!(refused(&watch.create("a/1", "").await), Some(bad));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_knows_the_tokens_and_the_users_of_all() {
    let mut members = Members::start(3);
    let leader = members.leader().await;
    let addresses = members.addresses.clone();
    let (root, alice) = set_up(&addresses[leader]).await;
    for (n, address) in addresses.iter().enumerate() {
        kv(address).put(by(&alice, put_of(&format!("a/{n}")))).await.unwrap();
        let token = log_in(address, "alice", "alice's").await.unwrap();
        for other in &addresses {
            let found = kv(other).range(by(&token, range_of("a/", "a0"))).await.unwrap();
            assert_eq!(found.into_inner().count, i64::try_from(n).unwrap() + 1);
        }
        // What one member agreed to, all others know at once.
        let mut users = auth(address);
        let name = format!("user-{n}");
        users.user_add(by(&root, user(&name, "p"))).await.unwrap();
        let next = &addresses[(n + 1) % 3];
        let found = auth(next).user_get(by(&root, AuthUserGetRequest { name })).await;
        assert!(found.is_ok(), "{found:?}");
    }
    // `rusty-raft status` comes in as somebody, too.
    let status = |user: Option<&str>| {
        let mut command = program();
        command.arg("status").arg(addresses.join(",")).arg("--json").env_remove("RUSTY_RAFT_USER");
        user.map(|user| command.env("RUSTY_RAFT_USER", user));
        command.output().unwrap().status.code()
    };
    assert_eq!((status(None), status(Some("alice:alice's"))), (Some(1), Some(0)));
    // Equal everywhere, users and roles included, and also after a restart, which forgets no token.
    let mut hashes = BTreeMap::new();
    for address in &addresses {
        hashes.insert(address, hash_of(address, &root).await);
    }
    let first = hashes[&addresses[0]];
    assert!(hashes.values().all(|hash| *hash == first), "{hashes:?}");
    let away = (leader + 1) % 3;
    members.kill9(away);
    members.start_one(away);
    until_serving(&addresses[away]).await;
    let found = kv(&addresses[away]).range(by(&alice, range_of("a/", "a0"))).await.unwrap();
    assert_eq!(found.into_inner().count, 3);
    assert_eq!(hash_of(&addresses[away], &root).await, first);
}

/// With everything that was agreed before.
async fn hash_of(address: &str, token: &str) -> u32 {
    kv(address).range(by(token, range_of("a/", "a0"))).await.unwrap();
    let mut client = MaintenanceClient::new(channel_to(address));
    client.hash(by(token, HashRequest {})).await.unwrap().into_inner().hash
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn tokens_are_json_web_tokens_that_end_in_their_time_if_the_configuration_says_so() {
    let mut members = Members::configure(1);
    let secret = members.folder.path().join("secret");
    let missing = format!("jwt,sign-method=HS256,ttl=2s,priv-key={}", secret.display());
    members.set(&format!("auth_token: {missing:?}"));
    // A key that cannot be had is found before anything is written.
    let before = crate::support::contents(members.folder.path());
    let mut refused = crate::support::Process::start(members.command(0));
    assert_eq!(refused.ended_within(PATIENCE).code(), Some(2));
    let text = refused.rest();
    assert!(text.contains("auth_token: ") && text.contains("secret: No such file"), "{text}");
    assert_eq!(crate::support::contents(members.folder.path()), before);

    std::fs::write(&secret, "nobody else knows this").unwrap();
    members.start_one(0);
    members.leader().await;
    let address = &members.addresses[0];
    let (root, alice) = set_up(address).await;
    assert_eq!(root.split('.').count(), 3, "{root}");
    let mut client = kv(address);
    client.put(by(&alice, put_of("a/k"))).await.unwrap();
    let denied = client.put(by(&alice, put_of("b"))).await;
    assert_refused(denied, Code::PermissionDenied, DENIED);
    // However often it is used, its time is over.
    let began = std::time::Instant::now();
    let mut beat = tokio::time::interval(std::time::Duration::from_millis(50));
    loop {
        beat.tick().await;
        match client.put(by(&alice, put_of("a/k"))).await {
            Ok(_) => assert!(began.elapsed() < PATIENCE, "it does not end"),
            refused => {
                assert_refused(refused, Code::Unauthenticated, BAD_TOKEN);
                break;
            }
        }
    }
    let alice = log_in(address, "alice", "alice's").await.unwrap();
    client.put(by(&alice, put_of("a/k"))).await.unwrap();
}
