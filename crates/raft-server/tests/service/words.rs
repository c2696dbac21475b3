//! The texts by which clients tell errors apart, letter for letter. Those about keys, leases and watches that are not here
//! are in the tests of these.

use std::time::{Duration, Instant};

use prost::Message as _;
use raft_kv::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseRevokeRequest, MemberAddRequest, MemberListRequest,
    MemberPromoteRequest, MemberRemoveRequest, MemberUpdateRequest, MoveLeaderRequest, PutRequest,
    RangeRequest, TxnRequest,
};
use raft_kv::proto::v3lockpb::{LockRequest, UnlockRequest};
use raft_server::proto::etcdserverpb::cluster_client::ClusterClient;
use raft_server::proto::etcdserverpb::lease_client::LeaseClient;
use raft_server::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use raft_server::proto::etcdserverpb::watch_client::WatchClient;
use raft_server::proto::v3lockpb::lock_client::LockClient;
use tokio::net::TcpStream;
use tonic::metadata::MetadataValue;
use tonic::{Code, Request};

use crate::kv::assert_refused;
use crate::support::{Members, PATIENCE, Process, channel_to, free_ports, kv, put, until_serving};

fn put_of(key: &str, value: &str) -> PutRequest {
    PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..PutRequest::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_make_no_sense() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    let mut client = kv(address);
    let invalid = Code::InvalidArgument;
    for (request, message) in [
        (PutRequest::default(), "key is not provided"),
        (PutRequest { ignore_value: true, ..put_of("missing", "") }, "key not found"),
        (PutRequest { ignore_lease: true, ..put_of("missing", "") }, "key not found"),
        (PutRequest { ignore_value: true, ..put_of("k", "v") }, "value is provided"),
        (PutRequest { ignore_lease: true, lease: 1, ..put_of("k", "v") }, "lease is provided"),
        (put_of("k", &"v".repeat(1_572_864)), "request is too large"),
    ] {
        assert_refused(client.put(request).await, invalid, &format!("etcdserver: {message}"));
    }
    let many = vec![crate::kv::put_op("k", "v"); 129];
    let txn = TxnRequest { success: many, ..TxnRequest::default() };
    let words = "etcdserver: too many operations in txn request";
    assert_refused(client.txn(txn).await, invalid, words);
    let twice = vec![crate::kv::put_op("k", "v"), crate::kv::put_op("k", "w")];
    let txn = TxnRequest { failure: twice, ..TxnRequest::default() };
    let words = "etcdserver: duplicate key given in txn request";
    assert_refused(client.txn(txn).await, invalid, words);
    let unsorted = RangeRequest { key: "k".into(), sort_order: 9, ..RangeRequest::default() };
    let words = "etcdserver: invalid sort option";
    assert_refused(client.range(unsorted).await, invalid, words);

    let mut request = Request::new(put_of("k", "v"));
    let version = MetadataValue::try_from(&b"3.\xff"[..]).unwrap();
    request.metadata_mut().insert("client-api-version", version);
    let words = "etcdserver: invalid client api version";
    assert_refused(client.put(request).await, invalid, words);

    let mut leases = LeaseClient::new(channel_to(address));
    let long = LeaseGrantRequest { ttl: 9_000_000_001, id: 0 };
    assert_refused(
        leases.lease_grant(long).await,
        Code::OutOfRange,
        "etcdserver: too large lease TTL",
    );
    leases.lease_grant(LeaseGrantRequest { ttl: 60, id: 7 }).await.unwrap();
    let again = leases.lease_grant(LeaseGrantRequest { ttl: 60, id: 7 }).await;
    assert_refused(again, Code::FailedPrecondition, "etcdserver: lease already exists");
    let missing = leases.lease_revoke(LeaseRevokeRequest { id: 8 }).await;
    assert_refused(missing, Code::NotFound, "etcdserver: requested lease not found");

    // A message over the limit of the transport.
    let huge = client.put(put_of("k", &"v".repeat(2 << 20))).await.unwrap_err();
    assert_eq!(huge.code(), Code::ResourceExhausted);
    assert_eq!(huge.message(), "grpc: received message larger than max (2097160 vs. 2097152)");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_that_cannot_come_go_or_lead() {
    let members = Members::start(3);
    let leader = members.leader().await;
    let address = members.addresses[leader].clone();
    let follower = members.addresses[(leader + 1) % 3].clone();
    let mut cluster = ClusterClient::new(channel_to(&address));
    let mut maintenance = MaintenanceClient::new(channel_to(&address));
    let list = cluster.member_list(MemberListRequest { linearizable: true }).await.unwrap();
    let list = list.into_inner();
    // Headers of these answers have everything but a revision.
    let header = list.header.unwrap();
    assert!(header.cluster_id != 0 && header.member_id != 0 && header.raft_term > 0);
    assert_eq!(header.revision, 0);
    let known = list.members[0].clone();
    let failed = Code::FailedPrecondition;
    let add =
        |url: &str, is_learner| MemberAddRequest { peer_ur_ls: vec![url.to_owned()], is_learner };

    let words = "etcdserver: given member URLs are invalid";
    for url in ["", "127.0.0.1:1", "http://127.0.0.1", "unix://x"] {
        let refused = cluster.member_add(add(url, false)).await;
        assert_refused(refused, Code::InvalidArgument, words);
    }
    let words = "etcdserver: Peer URLs already exists";
    assert_refused(cluster.member_add(add(&known.peer_ur_ls[0], true)).await, failed, words);
    let other = list.members[1].id;
    let taken = MemberUpdateRequest { id: other, peer_ur_ls: known.peer_ur_ls.clone() };
    assert_refused(cluster.member_update(taken).await, failed, words);
    let words = "etcdserver: member not found";
    let missing = MemberUpdateRequest { id: 1, peer_ur_ls: vec!["http://127.0.0.1:1".to_owned()] };
    assert_refused(cluster.member_update(missing).await, Code::NotFound, words);
    let removed = cluster.member_remove(MemberRemoveRequest { id: 1 }).await;
    assert_refused(removed, Code::NotFound, words);
    let promoted = cluster.member_promote(MemberPromoteRequest { id: 1 }).await;
    assert_refused(promoted, Code::NotFound, words);
    let promoted = cluster.member_promote(MemberPromoteRequest { id: known.id }).await;
    assert_refused(promoted, failed, "etcdserver: can only promote a learner member");

    let mut elsewhere = MaintenanceClient::new(channel_to(&follower));
    let moved = elsewhere.move_leader(MoveLeaderRequest { target_id: known.id }).await;
    assert_refused(moved, failed, "etcdserver: not leader");
    let moved = maintenance.move_leader(MoveLeaderRequest { target_id: 1 }).await;
    assert_refused(moved, failed, "etcdserver: bad leader transferee");
    // To itself there is nothing to move.
    maintenance.move_leader(MoveLeaderRequest { target_id: header.member_id }).await.unwrap();

    // One learner, and what it does not serve.
    let learner = format!("127.0.0.1:{}", free_ports(1));
    let mut process = Process::start(members.joining(&learner));
    process.line_with("serves clients at");
    let added = cluster.member_add(add(&format!("http://{learner}"), true)).await.unwrap();
    let added = added.into_inner();
    assert_eq!(added.header.unwrap().revision, 0);
    let id = added.member.unwrap().id;
    let words = "etcdserver: too many learner members in cluster";
    let second = cluster.member_add(add("http://127.0.0.1:9", true)).await;
    assert_refused(second, failed, words);
    until_known_to(&learner).await;
    let words = "etcdserver: rpc not supported for learner";
    assert_refused(put(&learner, "k", "v").await, failed, words);
    assert_refused(
        kv(&learner).range(RangeRequest { key: "k".into(), ..RangeRequest::default() }).await,
        failed,
        words,
    );
    let local = RangeRequest { key: "k".into(), serializable: true, ..RangeRequest::default() };
    kv(&learner).range(local).await.unwrap();
    let mut leases = LeaseClient::new(channel_to(&learner));
    let grant = leases.lease_grant(LeaseGrantRequest { ttl: 60, id: 1 }).await;
    assert_refused(grant, failed, words);
    let watch = WatchClient::new(channel_to(&learner)).watch(tokio_stream::iter([])).await;
    assert_refused(watch, failed, words);
    let moved = maintenance.move_leader(MoveLeaderRequest { target_id: id }).await;
    assert_refused(moved, failed, "etcdserver: bad leader transferee");

    process.kill9();
    // It counts as in sync while it was heard an election timeout ago.
    let mut beat = tokio::time::interval(Duration::from_millis(50));
    let killed = Instant::now();
    while killed.elapsed() < Duration::from_secs(1) {
        beat.tick().await;
        put(&address, "k", "v").await.unwrap();
    }
    let promoted = cluster.member_promote(MemberPromoteRequest { id }).await;
    let words = "etcdserver: can only promote a learner member which is in sync with leader";
    assert_refused(promoted, failed, words);
    cluster.member_remove(MemberRemoveRequest { id }).await.unwrap();
    let again = cluster.member_remove(MemberRemoveRequest { id }).await;
    assert_refused(again, Code::NotFound, "etcdserver: member not found");
}

/// Waits until a learner has heard of a leader.
async fn until_known_to(address: &str) {
    loop {
        let status = raft_server::client::status(address).await;
        if status.is_ok_and(|status| status.leader != 0 && status.is_learner) {
            return;
        }
    }
}

/// The client's library would give up by itself: this is what the member says.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn whoever_said_how_long_it_waits_hears_when_that_is_over() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    let mut leases = LeaseClient::new(channel_to(address));
    leases.lease_grant(LeaseGrantRequest { ttl: 600, id: 7 }).await.unwrap();
    let mut locks = LockClient::new(channel_to(address));
    locks.lock(LockRequest { name: "held".into(), lease: 7 }).await.unwrap();

    let stream = TcpStream::connect(address).await.unwrap();
    let (client, connection) = h2::client::handshake(stream).await.unwrap();
    let connection = tokio::spawn(connection);
    let mut client = client.ready().await.unwrap();
    let request = axum::http::Request::post(format!("http://{address}/v3lockpb.Lock/Lock"))
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .header("grpc-timeout", "200m");
    let asked = Instant::now();
    let (answer, mut body) = client.send_request(request.body(()).unwrap(), false).unwrap();
    let message = LockRequest { name: "held".into(), lease: 0 }.encode_to_vec();
    let length = u32::try_from(message.len()).unwrap().to_be_bytes();
    let framed = [&[0], &length[..], &message].concat();
    body.send_data(framed.into(), true).unwrap();
    let answer = tokio::time::timeout(PATIENCE, answer).await.unwrap().unwrap();
    assert!(asked.elapsed() >= Duration::from_millis(200), "{:?}", asked.elapsed());
    assert_eq!(answer.headers()["grpc-status"], "4");
    let words = answer.headers()["grpc-message"].to_str().unwrap().replace("%20", " ");
    assert_eq!(words, "context deadline exceeded");
    connection.abort();
    // It waits for the lock no more: whoever comes next gets it.
    locks.unlock(UnlockRequest { key: "held/7".into() }).await.unwrap();
    leases.lease_grant(LeaseGrantRequest { ttl: 600, id: 8 }).await.unwrap();
    locks.lock(LockRequest { name: "held".into(), lease: 8 }).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_last_member_stays() {
    let members = Members::start(1);
    members.leader().await;
    until_serving(&members.addresses[0]).await;
    let mut cluster = ClusterClient::new(channel_to(&members.addresses[0]));
    let list = cluster.member_list(MemberListRequest::default()).await.unwrap().into_inner();
    let removed = cluster.member_remove(MemberRemoveRequest { id: list.members[0].id }).await;
    let words = "etcdserver: re-configuration failed due to not enough started members";
    assert_refused(removed, Code::FailedPrecondition, words);
}
