//! What clients hear while nobody can agree on anything, character for character.

use std::time::{Duration, Instant};

use raft_kv::proto::etcdserverpb::{
    LeaseGrantRequest, MemberListRequest, PutRequest, RangeRequest,
};
use raft_server::proto::etcdserverpb::cluster_client::ClusterClient;
use raft_server::proto::etcdserverpb::lease_client::LeaseClient;
use rustix::process::Signal;
use tonic::{Code, Request, Status};

use crate::support::{Members, PATIENCE, channel_to, get, kv, put, until_serving};

const NO_LEADER: &str = "etcdserver: no leader";
const TIMED_OUT: &str = "etcdserver: request timed out";
/// Together with the next one more than may wait at a member.
const WAITING: usize = 110;
const CONNECTIONS: usize = 5;
const VALUE_BYTES: usize = 5 << 18;

fn refused<T>(answer: Result<T, Status>) -> (Code, String) {
    let Err(status) = answer else { panic!("it must be refused") };
    (status.code(), status.message().to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_everybody_hears_what_etcd_says() {
    let mut members = Members::configure(3);
    members.set("request_timeout: 1500.0");
    for index in 0..3 {
        members.start_one(index);
    }
    let leader = members.leader().await;
    let address = members.addresses[leader].clone();
    put(&address, "k", "v").await.unwrap();
    let others = [(leader + 1) % 3, (leader + 2) % 3];
    for other in others {
        members.process(other).pause();
    }

    // It stands in the leader's log, and nobody knows what will become of it.
    let asked = Instant::now();
    let unknown = refused(put(&address, "k", "unknown").await);
    assert_eq!(unknown, (Code::Unavailable, TIMED_OUT.to_owned()));
    assert!(asked.elapsed() >= Duration::from_millis(1500), "{:?}", asked.elapsed());

    // The leader has stepped down: what is asked for now is certainly not done.
    let no_leader = (Code::Unavailable, NO_LEADER.to_owned());
    let deadline = Instant::now() + PATIENCE;
    loop {
        let status = raft_server::client::status(&address).await.unwrap();
        if status.leader == 0 {
            assert_eq!(status.errors, [NO_LEADER]);
            break;
        }
        assert!(Instant::now() < deadline, "{status:?}");
    }
    let mut leases = LeaseClient::new(channel_to(&address));
    let mut cluster = ClusterClient::new(channel_to(&address));
    let (put_never, got, granted, listed) = tokio::join!(
        put(&address, "k", "never"),
        get(&address, "k"),
        leases.lease_grant(LeaseGrantRequest { ttl: 60, id: 1 }),
        cluster.member_list(MemberListRequest { linearizable: true }),
    );
    let all = [refused(put_never), refused(got), refused(granted), refused(listed)];
    assert_eq!(all, [(); 4].map(|()| no_leader.clone()));
    // Whoever asks for a leader need not wait.
    let asked = Instant::now();
    let mut request = Request::new(RangeRequest { key: "k".into(), ..RangeRequest::default() });
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    assert_eq!(refused(kv(&address).range(request).await), no_leader);
    assert!(asked.elapsed() < Duration::from_millis(1400), "{:?}", asked.elapsed());
    // What is known here is still told.
    let local = RangeRequest { key: "k".into(), serializable: true, ..RangeRequest::default() };
    let found = kv(&address).range(local).await.unwrap().into_inner().kvs;
    assert_eq!(found[0].value, "v");
    cluster.member_list(MemberListRequest { linearizable: false }).await.unwrap();

    // More than may wait: the rest is turned away at once.
    let value = bytes::Bytes::from(vec![7; VALUE_BYTES]);
    let mut waiting = tokio::task::JoinSet::new();
    // On a few connections: those that have said nothing yet are limited.
    let clients: Vec<_> = (0..CONNECTIONS).map(|_| kv(&address)).collect();
    for client in clients.iter().cycle().take(WAITING) {
        let (mut client, value) = (client.clone(), value.clone());
        waiting.spawn(async move {
            client.put(PutRequest { key: "k".into(), value, ..PutRequest::default() }).await
        });
    }
    let mut turned_away = 0;
    while let Some(answer) = waiting.join_next().await {
        match refused(answer.unwrap()) {
            (Code::ResourceExhausted, message) => {
                assert_eq!(message, "etcdserver: too many requests");
                turned_away += 1;
            }
            other => assert_eq!(other, no_leader),
        }
    }
    assert!(turned_away > 0 && turned_away < WAITING, "{turned_away} were turned away");

    for other in others {
        members.process(other).signal(Signal::CONT);
    }
    for address in &members.addresses {
        until_serving(address).await;
    }
    // One of the two that can be; and what was refused for certain never comes.
    let found = get(&address, "k").await.unwrap().unwrap();
    assert!(["v", "unknown"].contains(&found.as_str()), "{}", found.len());
    put(&address, "k", "again").await.unwrap();
}
