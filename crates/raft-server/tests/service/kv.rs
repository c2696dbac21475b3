//! Every operation through every member, with etcd's answers.

use raft_kv::proto::etcdserverpb::compare::{CompareResult, CompareTarget, TargetUnion};
use raft_kv::proto::etcdserverpb::request_op::Request as Op;
use raft_kv::proto::etcdserverpb::response_op::Response as OpAnswer;
use raft_kv::proto::etcdserverpb::{
    AlarmRequest, CompactionRequest, Compare, DefragmentRequest, DeleteRangeRequest,
    MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
    MoveLeaderRequest, PutRequest, RangeRequest, RequestOp, TxnRequest,
};
use raft_server::proto::etcdserverpb::cluster_client::ClusterClient;
use raft_server::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tonic::{Code, Request, Status};

use crate::support::{Members, channel_to, get, kv, put, range};

fn op(request: Op) -> RequestOp {
    RequestOp { request: Some(request) }
}

pub(crate) fn put_op(key: &str, value: &str) -> RequestOp {
    op(Op::RequestPut(PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..PutRequest::default()
    }))
}

#[track_caller]
pub(crate) fn assert_refused<T: std::fmt::Debug>(
    result: Result<T, Status>,
    code: Code,
    message: &str,
) {
    let status = result.unwrap_err();
    assert_eq!((status.code(), status.message()), (code, message));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_takes_every_operation() {
    let members = Members::start(3);
    members.leader().await;
    let mut revision = 1;
    for (n, address) in members.addresses.iter().enumerate() {
        let mut client = kv(address);
        let key = format!("key-{n}");

        // Put, with the previous value.
        revision += 1;
        assert_eq!(put(address, &key, "one").await.unwrap(), revision);
        let request = PutRequest {
            key: key.clone().into(),
            value: "two".into(),
            prev_kv: true,
            ..PutRequest::default()
        };
        let answer = client.put(request).await.unwrap().into_inner();
        revision += 1;
        assert_eq!(answer.header.unwrap().revision, revision);
        assert_eq!(answer.prev_kv.unwrap().value, "one");

        // Every member reads it at once.
        for other in &members.addresses {
            assert_eq!(get(other, &key).await.unwrap().as_deref(), Some("two"));
        }

        // A transaction that finds what it expects, and one that does not.
        let compare = Compare {
            result: CompareResult::Equal.into(),
            target: CompareTarget::Value.into(),
            key: key.clone().into(),
            range_end: "".into(),
            target_union: Some(TargetUnion::Value("two".into())),
        };
        let txn = TxnRequest {
            compare: vec![compare],
            success: vec![put_op(&key, "three"), put_op("other", "x")],
            failure: vec![op(Op::RequestRange(RangeRequest {
                key: key.clone().into(),
                ..RangeRequest::default()
            }))],
        };
        let answer = client.txn(txn.clone()).await.unwrap().into_inner();
        revision += 1;
        assert!(answer.succeeded);
        assert_eq!(answer.header.unwrap().revision, revision);
        let answer = client.txn(txn).await.unwrap().into_inner();
        assert!(!answer.succeeded);
        assert_eq!(answer.header.unwrap().revision, revision, "reading makes no revision");
        let Some(OpAnswer::ResponseRange(found)) = &answer.responses[0].response else {
            panic!("{answer:?}")
        };
        assert_eq!(found.kvs[0].value, "three");

        // Delete, also of nothing.
        let delete = DeleteRangeRequest { key: key.into(), ..DeleteRangeRequest::default() };
        let answer = client.delete_range(delete.clone()).await.unwrap().into_inner();
        revision += 1;
        assert_eq!((answer.deleted, answer.header.unwrap().revision), (1, revision));
        let answer = client.delete_range(delete).await.unwrap().into_inner();
        assert_eq!((answer.deleted, answer.header.unwrap().revision), (0, revision));
    }

    // Compaction, seen by every member.
    let compact = CompactionRequest { revision: 5, physical: true };
    kv(&members.addresses[1]).compact(compact).await.unwrap();
    for address in &members.addresses {
        let mut client = kv(address);
        assert_refused(
            client.compact(compact).await,
            Code::OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
        );
        let future = CompactionRequest { revision: 1000, physical: false };
        assert_refused(
            client.compact(future).await,
            Code::OutOfRange,
            "etcdserver: mvcc: required revision is a future revision",
        );
        let old =
            |revision| RangeRequest { key: "other".into(), revision, ..RangeRequest::default() };
        assert_refused(
            client.range(old(4)).await,
            Code::OutOfRange,
            "etcdserver: mvcc: required revision has been compacted",
        );
        assert!(client.range(old(5)).await.is_ok(), "the compacted revision itself stays readable");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_that_make_no_sense_get_etcds_words() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    let mut client = kv(address);

    let invalid = Code::InvalidArgument;
    assert_refused(
        client.put(PutRequest::default()).await,
        invalid,
        "etcdserver: key is not provided",
    );
    assert_refused(
        client.range(RangeRequest::default()).await,
        invalid,
        "etcdserver: key is not provided",
    );
    assert_refused(
        client.delete_range(DeleteRangeRequest::default()).await,
        invalid,
        "etcdserver: key is not provided",
    );
    let missing = PutRequest { key: "k".into(), ignore_value: true, ..PutRequest::default() };
    assert_refused(client.put(missing).await, invalid, "etcdserver: key not found");
    let leased = PutRequest { key: "k".into(), lease: 7, ..PutRequest::default() };
    assert_refused(
        client.put(leased).await,
        Code::NotFound,
        "etcdserver: requested lease not found",
    );
    let sorted = RangeRequest { key: "k".into(), sort_order: 9, ..RangeRequest::default() };
    assert_refused(client.range(sorted).await, invalid, "etcdserver: invalid sort option");
    let future = RangeRequest { key: "k".into(), revision: 99, ..RangeRequest::default() };
    assert_refused(
        client.range(future).await,
        Code::OutOfRange,
        "etcdserver: mvcc: required revision is a future revision",
    );
    let twice =
        TxnRequest { success: vec![put_op("k", "1"), put_op("k", "2")], ..TxnRequest::default() };
    assert_refused(
        client.txn(twice).await,
        invalid,
        "etcdserver: duplicate key given in txn request",
    );
    let many = (0..129).map(|n| put_op(&n.to_string(), "")).collect();
    let many = TxnRequest { success: many, ..TxnRequest::default() };
    assert_refused(
        client.txn(many).await,
        invalid,
        "etcdserver: too many operations in txn request",
    );

    // Just over the limit is ours to refuse, far over it the transport's; just below is fine.
    let sized = |bytes: usize| PutRequest {
        key: "big".into(),
        value: vec![7; bytes].into(),
        ..PutRequest::default()
    };
    client.put(sized((3 << 19) - 100)).await.unwrap();
    assert_refused(client.put(sized(3 << 19)).await, invalid, "etcdserver: request is too large");
    let far = client.put(sized(3 << 20)).await.unwrap_err();
    assert_eq!(far.code(), Code::ResourceExhausted, "{far:?}");
    assert!(far.message().contains("received message larger than max"), "{far:?}");

    let mut strange = Request::new(RangeRequest { key: "k".into(), ..RangeRequest::default() });
    strange.metadata_mut().insert(
        "client-api-version",
        tonic::metadata::MetadataValue::try_from(&b"\xff\xfe"[..]).unwrap(),
    );
    assert_refused(client.range(strange).await, invalid, "etcdserver: invalid client api version");

    assert_eq!(
        range(address, "big", "").await.unwrap().count,
        1,
        "nothing of all this changed anything"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn headers_status_and_members_agree() {
    let members = Members::start(3);
    let leader = members.leader().await;
    put(&members.addresses[0], "k", "v").await.unwrap();
    let mut ids = Vec::new();
    let mut clusters = Vec::new();
    for (n, address) in members.addresses.iter().enumerate() {
        let header = range(address, "k", "").await.unwrap().header.unwrap();
        let status = raft_server::client::status(address).await.unwrap();
        let inner = status.header.unwrap();
        assert_eq!((header.cluster_id, header.member_id), (inner.cluster_id, inner.member_id));
        assert_eq!((header.revision, inner.revision), (2, 2));
        assert_eq!(status.version, "3.7.0");
        assert!(status.errors.is_empty() && !status.is_learner && status.db_size > 0, "{status:?}");
        assert_eq!(n == leader, status.leader == header.member_id);
        assert!(
            status.raft_applied_index <= status.raft_index && status.raft_term == header.raft_term
        );
        ids.push(header.member_id);
        clusters.push(header.cluster_id);

        let list = ClusterClient::new(channel_to(address))
            .member_list(MemberListRequest { linearizable: true })
            .await
            .unwrap()
            .into_inner();
        assert_eq!(
            list.header.unwrap().revision,
            0,
            "headers of the Cluster service have no revision"
        );
        let mut urls: Vec<String> =
            list.members.iter().flat_map(|member| member.client_ur_ls.clone()).collect();
        urls.sort();
        let expected: Vec<String> =
            members.addresses.iter().map(|address| format!("http://{address}")).collect();
        assert_eq!(urls, expected);
        let mut names: Vec<&str> = list.members.iter().map(|member| member.name.as_str()).collect();
        names.sort_unstable();
        assert_eq!(names, ["n0", "n1", "n2"]);

        let mut maintenance = MaintenanceClient::new(channel_to(address));
        let alarms = maintenance.alarm(AlarmRequest::default()).await.unwrap().into_inner();
        assert!(alarms.alarms.is_empty());
        let defragmented = maintenance.defragment(DefragmentRequest {}).await.unwrap().into_inner();
        assert!(
            defragmented.header.is_none(),
            "etcd answers without a header, and clients check it"
        );
    }
    clusters.dedup();
    assert!(clusters.len() == 1 && clusters[0] != 0, "{clusters:x?}");
    ids.sort_unstable();
    ids.dedup();
    assert!(ids.len() == 3 && !ids.contains(&0), "{ids:x?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leadership_moves_on_request() {
    let members = Members::start(3);
    let leader = members.leader().await;
    let follower = (leader + 1) % 3;
    let address = |index: usize| members.addresses[index].clone();
    let target =
        raft_server::client::status(&address(follower)).await.unwrap().header.unwrap().member_id;

    let request = MoveLeaderRequest { target_id: target };
    let mut elsewhere = MaintenanceClient::new(channel_to(&address(follower)));
    assert_refused(
        elsewhere.move_leader(request).await,
        Code::FailedPrecondition,
        "etcdserver: not leader",
    );
    let mut here = MaintenanceClient::new(channel_to(&address(leader)));
    assert_refused(
        here.move_leader(MoveLeaderRequest { target_id: 1 }).await,
        Code::FailedPrecondition,
        "etcdserver: bad leader transferee",
    );
    assert!(here.move_leader(request).await.unwrap().into_inner().header.is_none());
    assert_eq!(members.leader().await, follower);
    put(&address(leader), "k", "after the move").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn changes_of_the_membership_that_make_no_sense_get_etcds_words() {
    let members = Members::start(1);
    members.leader().await;
    let mut client = ClusterClient::new(channel_to(&members.addresses[0]));
    assert_refused(
        client.member_remove(MemberRemoveRequest { id: 5 }).await,
        Code::NotFound,
        "etcdserver: member not found",
    );
    assert_refused(
        client.member_promote(MemberPromoteRequest { id: 5 }).await,
        Code::NotFound,
        "etcdserver: member not found",
    );
    let add = |url: &str| MemberAddRequest { peer_ur_ls: vec![url.to_owned()], is_learner: false };
    assert_refused(
        client.member_add(add("nonsense")).await,
        Code::InvalidArgument,
        "etcdserver: given member URLs are invalid",
    );
    assert_refused(
        client.member_add(add(&format!("http://{}", members.addresses[0]))).await,
        Code::FailedPrecondition,
        "etcdserver: Peer URLs already exists",
    );
}
