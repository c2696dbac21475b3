//! Locks and elections as services.

use raft_kv::proto::etcdserverpb::{LeaseGrantRequest, LeaseRevokeRequest};
use raft_kv::proto::v3electionpb::{
    CampaignRequest, LeaderRequest, ProclaimRequest, ResignRequest,
};
use raft_kv::proto::v3lockpb::{LockRequest, UnlockRequest};
use raft_server::proto::etcdserverpb::lease_client::LeaseClient;
use raft_server::proto::v3electionpb::election_client::ElectionClient;
use raft_server::proto::v3lockpb::lock_client::LockClient;
use tonic::Code;

use crate::kv::assert_refused;
use crate::support::{Members, channel_to, get, put, range};

async fn lease(address: &str, id: i64) -> i64 {
    let request = LeaseGrantRequest { ttl: 60, id };
    let answer = LeaseClient::new(channel_to(address)).lease_grant(request).await.unwrap();
    answer.into_inner().id
}

async fn revoke(address: &str, id: i64) {
    let request = LeaseRevokeRequest { id };
    LeaseClient::new(channel_to(address)).lease_revoke(request).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lock_has_one_holder_and_goes_to_whoever_waits_longest() {
    let members = Members::start(3);
    members.leader().await;
    let [first, second, third] = [0, 1, 2].map(|n| members.addresses[n].clone());
    let lock = |address: &str, lease| {
        let mut client = LockClient::new(channel_to(address));
        async move { client.lock(LockRequest { name: "l".into(), lease }).await }
    };
    lease(&first, 0x11).await;
    lease(&first, 0x22).await;
    lease(&first, 0x33).await;

    let held = lock(&first, 0x11).await.unwrap().into_inner();
    assert_eq!(held.key, "l/11");
    // The same lease has it already.
    let again = lock(&second, 0x11).await.unwrap().into_inner();
    assert_eq!(
        (again.key, again.header.unwrap().revision),
        (held.key.clone(), held.header.unwrap().revision)
    );

    let waiting = tokio::spawn(lock(&second, 0x22));
    until(&first, "l/22").await;
    // One who gives up leaves the queue.
    let impatient = tokio::spawn(lock(&third, 0x33));
    until(&first, "l/33").await;
    impatient.abort();
    until_gone(&first, "l/33").await;
    assert!(!waiting.is_finished());

    let mut client = LockClient::new(channel_to(&third));
    client.unlock(UnlockRequest { key: held.key }).await.unwrap();
    assert_eq!(waiting.await.unwrap().unwrap().into_inner().key, "l/22");

    // The end of the holder's lease is as good; whoever waits without a lease of its own is given one.
    let waiting = tokio::spawn(lock(&first, 0));
    while range(&first, "l/", "l0").await.unwrap().kvs.len() < 2 {}
    revoke(&third, 0x22).await;
    let given = waiting.await.unwrap().unwrap().into_inner();
    let kvs = range(&first, "l/", "l0").await.unwrap().kvs;
    assert_eq!((kvs.len(), &kvs[0].key), (1, &given.key));
    assert!(kvs[0].lease > 0);

    // A lease that ends while its owner waits.
    lease(&first, 0x44).await;
    let waiting = tokio::spawn(lock(&second, 0x44));
    until(&first, "l/44").await;
    revoke(&first, 0x44).await;
    client.unlock(UnlockRequest { key: given.key }).await.unwrap();
    assert_refused(waiting.await.unwrap(), Code::Unknown, "mutex: session is expired");
    let missing = lock(&first, 0x99).await;
    assert_refused(missing, Code::NotFound, "etcdserver: requested lease not found");
}

async fn until(address: &str, key: &str) {
    while get(address, key).await.unwrap().is_none() {}
}

async fn until_gone(address: &str, key: &str) {
    while get(address, key).await.unwrap().is_some() {}
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_election_has_one_leader_and_its_listeners_hear_everything() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    let mut client = ElectionClient::new(channel_to(address));
    let name = LeaderRequest { name: "e".into() };
    let campaign = |lease, value: &'static str| {
        let mut client = ElectionClient::new(channel_to(address));
        async move {
            client.campaign(CampaignRequest { name: "e".into(), lease, value: value.into() }).await
        }
    };

    assert_refused(client.leader(name.clone()).await, Code::Unknown, "election: no leader");
    let mut heard = client.observe(name.clone()).await.unwrap().into_inner();
    lease(address, 0x11).await;
    lease(address, 0x22).await;
    let won = campaign(0x11, "one").await.unwrap().into_inner().leader.unwrap();
    assert_eq!((&won.name, &won.key, won.lease), (&"e".into(), &"e/11".into(), 0x11));
    assert_eq!(heard.message().await.unwrap().unwrap().kv.unwrap().value, "one");

    let proclaim = ProclaimRequest { leader: Some(won.clone()), value: "more".into() };
    client.proclaim(proclaim.clone()).await.unwrap();
    assert_eq!(heard.message().await.unwrap().unwrap().kv.unwrap().value, "more");
    // Campaigning again says something new.
    let again = campaign(0x11, "again").await.unwrap().into_inner().leader.unwrap();
    assert_eq!(again, won);
    assert_eq!(heard.message().await.unwrap().unwrap().kv.unwrap().value, "again");

    let waiting = tokio::spawn(campaign(0x22, "two"));
    until(address, "e/22").await;
    // What happens to other keys is not about the leader.
    put(address, "e", "x").await.unwrap();
    let resign = ResignRequest { leader: Some(won) };
    client.resign(resign.clone()).await.unwrap();
    let second = waiting.await.unwrap().unwrap().into_inner().leader.unwrap();
    assert_eq!(heard.message().await.unwrap().unwrap().kv.unwrap().value, "two");
    let leads = client.leader(name).await.unwrap().into_inner().kv.unwrap();
    assert_eq!((leads.key, leads.create_revision), (second.key, second.rev));

    assert_refused(client.proclaim(proclaim).await, Code::Unknown, "election: not leader");
    client.resign(resign).await.unwrap();
    let missing = "\"leader\" field must be provided";
    assert_refused(client.resign(ResignRequest { leader: None }).await, Code::Unknown, missing);
    let nobody = ProclaimRequest { leader: None, value: "x".into() };
    assert_refused(client.proclaim(nobody).await, Code::Unknown, missing);
}
