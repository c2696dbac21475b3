//! Looking after a cluster: alarms, the quota, downgrades, ranges in parts.

use std::time::Instant;

use raft_kv::proto::etcdserverpb::alarm_request::AlarmAction;
use raft_kv::proto::etcdserverpb::downgrade_request::DowngradeAction;
use raft_kv::proto::etcdserverpb::{
    AlarmMember, AlarmRequest, AlarmType, CompactionRequest, DeleteRangeRequest, DowngradeRequest,
    LeaseGrantRequest, MemberRemoveRequest, PutRequest, RangeRequest, RangeResponse, StatusRequest,
};
use raft_server::proto::etcdserverpb::cluster_client::ClusterClient;
use raft_server::proto::etcdserverpb::lease_client::LeaseClient;
use raft_server::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tonic::{Code, Status};

use crate::kv::assert_refused;
use crate::support::{Members, PATIENCE, channel_to, kv, put};

const NO_SPACE: &str = "etcdserver: mvcc: database space exceeded";

async fn alarm(
    address: &str,
    action: AlarmAction,
    member_id: u64,
    kind: AlarmType,
) -> Vec<AlarmMember> {
    let request = AlarmRequest { action: action.into(), member_id, alarm: kind.into() };
    let answer = MaintenanceClient::new(channel_to(address)).alarm(request).await.unwrap();
    answer.into_inner().alarms
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_full_store_refuses_to_grow_until_there_is_space_and_the_alarm_is_disarmed() {
    let mut members = Members::configure(3);
    members.set("quota_backend_bytes: 200000");
    for index in 0..3 {
        members.start_one(index);
    }
    members.leader().await;
    let [first, second, third] = [0, 1, 2].map(|n| members.addresses[n].clone());
    let value = "v".repeat(60_000);
    for key in ["a", "b", "c"] {
        put(&first, key, &value).await.unwrap();
    }
    // Who wrote has seen how much there is.
    assert_refused(put(&first, "d", &value).await, Code::ResourceExhausted, NO_SPACE);
    // From now on everywhere, however small.
    assert_refused(put(&second, "d", "1").await, Code::ResourceExhausted, NO_SPACE);
    assert_refused(put(&third, "d", "1").await, Code::ResourceExhausted, NO_SPACE);
    let mut leases = LeaseClient::new(channel_to(&first));
    let lease = leases.lease_grant(LeaseGrantRequest { ttl: 9, id: 0 }).await;
    assert_refused(lease, Code::ResourceExhausted, NO_SPACE);
    let raised = alarm(&first, AlarmAction::Get, 0, AlarmType::None).await;
    let status = MaintenanceClient::new(channel_to(&first)).status(StatusRequest {}).await;
    let status = status.unwrap().into_inner();
    let member_id = status.header.unwrap().member_id;
    assert_eq!(raised, [AlarmMember { member_id, alarm: AlarmType::Nospace.into() }]);
    assert_eq!(status.errors, [format!("memberID:{member_id} alarm:NOSPACE ")]);
    assert_eq!(status.db_size_quota, 200_000);

    // Reading, deleting and compacting goes on; a member that starts again knows.
    let delete = DeleteRangeRequest { key: "a".into(), range_end: "c".into(), prev_kv: false };
    let deleted = kv(&third).delete_range(delete).await.unwrap().into_inner();
    assert_eq!(deleted.deleted, 2);
    let revision = deleted.header.unwrap().revision;
    kv(&first).compact(CompactionRequest { revision, physical: true }).await.unwrap();
    members.kill9(2);
    members.start_one(2);
    members.leader().await;
    assert_refused(put(&third, "d", "1").await, Code::ResourceExhausted, NO_SPACE);
    let cleared = alarm(&third, AlarmAction::Deactivate, member_id, AlarmType::Nospace).await;
    assert_eq!(cleared, raised);
    for address in [&first, &second, &third] {
        put(address, "d", "1").await.unwrap();
    }
    assert_eq!(alarm(&first, AlarmAction::Get, 0, AlarmType::None).await, []);
}

/// What a member says about how large the store may become.
async fn quota(address: &str) -> i64 {
    let status = MaintenanceClient::new(channel_to(address)).status(StatusRequest {}).await;
    status.unwrap().into_inner().db_size_quota
}

/// Returns once the member says so.
async fn until_quota(address: &str, wanted: i64) {
    let deadline = Instant::now() + PATIENCE;
    while quota(address).await != wanted {
        assert!(Instant::now() < deadline, "{} at {address}", quota(address).await);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_least_of_the_members_quotas_holds_for_all() {
    let mut members = Members::configure(3);
    let plain = std::fs::read_to_string(members.config()).unwrap();
    let start = |members: &mut Members, index: usize, bytes: i64| {
        std::fs::write(members.config(), &plain).unwrap();
        members.set(&format!("quota_backend_bytes: {bytes}"));
        members.start_one(index);
    };
    for (index, bytes) in [(0, 10_000_000), (1, 100_000), (2, 1_000_000)] {
        start(&mut members, index, bytes);
    }
    members.leader().await;
    let [first, second, third] = [0, 1, 2].map(|n| members.addresses[n].clone());
    for address in [&first, &second, &third] {
        until_quota(address, 100_000).await;
    }
    let value = "v".repeat(60_000);
    put(&third, "a", &value).await.unwrap();
    assert_refused(put(&first, "b", &value).await, Code::ResourceExhausted, NO_SPACE);
    // One alarm, whoever raised it.
    let raised = alarm(&second, AlarmAction::Get, 0, AlarmType::None).await;
    assert_eq!(raised.len(), 1, "{raised:?}");

    // A member that comes back with more says so, and it is the next one's word that counts.
    members.kill9(1);
    start(&mut members, 1, 50_000_000);
    for address in [&first, &second, &third] {
        until_quota(address, 1_000_000).await;
    }
    alarm(&first, AlarmAction::Deactivate, 0, AlarmType::Nospace).await;
    put(&second, "b", &value).await.unwrap();

    // And one that left says nothing any more.
    let mut cluster = ClusterClient::new(channel_to(&first));
    let status = MaintenanceClient::new(channel_to(&third)).status(StatusRequest {}).await;
    let id = status.unwrap().into_inner().header.unwrap().member_id;
    cluster.member_remove(MemberRemoveRequest { id }).await.unwrap();
    until_quota(&first, 10_000_000).await;
    until_quota(&second, 10_000_000).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_corrupt_cluster_and_downgrades_are_told_in_etcds_words() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    let corrupt = alarm(address, AlarmAction::Activate, 7, AlarmType::Corrupt).await;
    assert_eq!(corrupt, [AlarmMember { member_id: 7, alarm: AlarmType::Corrupt.into() }]);
    assert_refused(put(address, "k", "v").await, Code::DataLoss, "etcdserver: corrupt cluster");
    assert_eq!(alarm(address, AlarmAction::Deactivate, 7, AlarmType::Corrupt).await, corrupt);
    put(address, "k", "v").await.unwrap();

    let downgrade = |action: DowngradeAction, version: &str| {
        let request = DowngradeRequest { action: action.into(), version: version.to_owned() };
        let mut client = MaintenanceClient::new(channel_to(address));
        async move { client.downgrade(request).await.map(|answer| answer.into_inner().version) }
    };
    use DowngradeAction::{Cancel, Enable, Validate};
    for (action, version, code, message) in [
        (Validate, "x", Code::InvalidArgument, "wrong downgrade target version format"),
        (Enable, "3.6.0.0", Code::InvalidArgument, "wrong downgrade target version format"),
        (Validate, "3.5.0", Code::InvalidArgument, "invalid downgrade target version"),
        (Enable, "3.7.0", Code::InvalidArgument, "invalid downgrade target version"),
        (Cancel, "", Code::FailedPrecondition, "no inflight downgrade job"),
    ] {
        let refused = downgrade(action, version).await;
        assert_refused(refused, code, &format!("etcdserver: {message}"));
    }
    let version = "3.7.0".to_owned();
    assert_eq!(downgrade(Validate, "3.6").await.unwrap(), version);
    assert_eq!(downgrade(Enable, "3.6.0").await.unwrap(), version);
    let busy = "etcdserver: cluster has a downgrade job in progress";
    for action in [Validate, Enable] {
        assert_refused(downgrade(action, "3.6").await, Code::FailedPrecondition, busy);
    }
    let status = MaintenanceClient::new(channel_to(address)).status(StatusRequest {}).await;
    let info = status.unwrap().into_inner().downgrade_info.unwrap();
    assert_eq!((info.enabled, info.target_version.as_str()), (true, "3.6.0"));
    assert_eq!(downgrade(Cancel, "").await.unwrap(), version);
}

async fn parts(address: &str, request: RangeRequest) -> Result<Vec<RangeResponse>, Status> {
    let mut stream = kv(address).range_stream(request).await?.into_inner();
    let mut parts = Vec::new();
    while let Some(part) = stream.message().await? {
        parts.push(part.range_response.unwrap());
    }
    Ok(parts)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_range_in_parts_is_the_same_range() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    let value = "v".repeat(300_000);
    for n in 0..10 {
        put(address, &format!("key-{n}"), &value).await.unwrap();
    }
    let at = put(address, "other", "x").await.unwrap();
    let all =
        RangeRequest { key: "key-".into(), range_end: "key.".into(), ..RangeRequest::default() };
    for request in [
        all.clone(),
        RangeRequest { limit: 7, ..all.clone() },
        RangeRequest { limit: 10, ..all.clone() },
        RangeRequest { keys_only: true, ..all.clone() },
        RangeRequest { count_only: true, ..all.clone() },
        RangeRequest { revision: 4, ..all.clone() },
        RangeRequest { key: "key-3".into(), range_end: "".into(), ..all.clone() },
        RangeRequest { key: "nothing".into(), range_end: "".into(), ..all.clone() },
    ] {
        let whole = kv(address).range(request.clone()).await.unwrap().into_inner();
        let mut parts = parts(address, request.clone()).await.unwrap();
        let last = parts.last_mut().unwrap();
        let (header, more, count) = (last.header.take().unwrap(), last.more, last.count);
        (last.more, last.count) = (false, 0);
        assert!(parts.iter().all(|part| (part.header, part.more, part.count) == (None, false, 0)));
        let kvs: Vec<_> = parts.iter().flat_map(|part| part.kvs.clone()).collect();
        assert_eq!(header.revision, at);
        assert_eq!(
            (Some(header), kvs, more, count),
            (whole.header, whole.kvs, whole.more, whole.count)
        );
        let large = request == all;
        assert!(!large || parts.len() > 2, "{} parts", parts.len());
    }
    for request in [
        RangeRequest { sort_order: 2, ..all.clone() },
        RangeRequest { sort_target: 3, ..all.clone() },
        RangeRequest { min_mod_revision: 3, ..all.clone() },
    ] {
        assert_eq!(parts(address, request).await.unwrap_err().code(), Code::Unimplemented);
    }
    let empty = parts(address, RangeRequest::default()).await;
    assert_refused(empty, Code::InvalidArgument, "etcdserver: key is not provided");
    let future = parts(address, RangeRequest { revision: 99, ..all.clone() }).await;
    let words = "etcdserver: mvcc: required revision is a future revision";
    assert_refused(future, Code::OutOfRange, words);
    kv(address).put(PutRequest { key: "key-0".into(), ..PutRequest::default() }).await.unwrap();
}
