//! Members come and go while the others serve.

use raft_kv::proto::etcdserverpb::{
    MemberAddRequest, MemberListRequest, MemberRemoveRequest, PutRequest,
};
use raft_server::proto::etcdserverpb::cluster_client::ClusterClient;
use tonic::{Code, Request};

use crate::support::{Members, Process, channel_to, free_ports, get, kv, put, until_serving};
use std::time::Duration;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_joins_serves_and_is_removed() {
    let members = Members::start(3);
    members.leader().await;
    put(&members.addresses[0], "k", "v").await.unwrap();

    // The fourth waits, empty, until it is added; it knows the others only from the command line.
    let address = format!("127.0.0.1:{}", free_ports(1));
    let mut fourth = Process::start(members.joining(&address));
    fourth.line_with("serves clients at");

    // Until then it says so to those who ask for a leader.
    let mut request = Request::new(PutRequest { key: "k".into(), ..PutRequest::default() });
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    let refused = kv(&address).put(request).await.unwrap_err();
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "etcdserver: no leader"));

    let mut client = ClusterClient::new(channel_to(&members.addresses[1]));
    let add = MemberAddRequest { peer_ur_ls: vec![format!("http://{address}")], is_learner: false };
    let added = client.member_add(add).await.unwrap().into_inner();
    let id = added.member.unwrap().id;
    until_serving(&address).await;
    assert_eq!(get(&address, "k").await.unwrap().as_deref(), Some("v"));
    put(&address, "k", "through the fourth").await.unwrap();
    let list =
        client.member_list(MemberListRequest { linearizable: true }).await.unwrap().into_inner();
    assert_eq!(list.members.len(), 4, "{list:?}");

    client.member_remove(MemberRemoveRequest { id }).await.unwrap();
    assert_eq!(fourth.ended_within(Duration::from_secs(20)).code(), Some(77));
    for address in &members.addresses {
        assert_eq!(get(address, "k").await.unwrap().as_deref(), Some("through the fourth"));
    }

    // It may not come back with what it has.
    let mut fourth = Process::start(members.joining(&address));
    assert_eq!(fourth.ended_within(Duration::from_secs(20)).code(), Some(77));
}
