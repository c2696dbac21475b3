//! Members come and go while the others serve.

use raft_kv::proto::etcdserverpb::{
    Member, MemberAddRequest, MemberListRequest, MemberPromoteRequest, MemberRemoveRequest,
    MemberUpdateRequest, PutRequest,
};
use raft_server::proto::etcdserverpb::cluster_client::ClusterClient;
use tonic::transport::Channel;
use tonic::{Code, Request, Status};

use crate::support::{
    Members, PATIENCE, Process, channel_to, free_ports, get, kv, program, put, until_serving,
};
use std::time::{Duration, Instant};

fn cluster(address: &str) -> ClusterClient<Channel> {
    ClusterClient::new(channel_to(address))
}

async fn add(address: &str, new: &str, is_learner: bool) -> Result<Member, Status> {
    let add = MemberAddRequest { peer_ur_ls: vec![format!("http://{new}")], is_learner };
    let added = cluster(address).member_add(add).await?.into_inner();
    let member = added.member.unwrap();
    assert_eq!(added.header.unwrap().revision, 0);
    assert!(added.members.contains(&member), "{:?}", added.members);
    // Whoever has yet to start has neither: etcdctl calls it unstarted.
    assert_eq!((member.name.as_str(), member.client_ur_ls.len()), ("", 0));
    assert_eq!(member.is_learner, is_learner);
    Ok(member)
}

async fn remove(address: &str, id: u64) -> Result<(), Status> {
    cluster(address).member_remove(MemberRemoveRequest { id }).await.map(drop)
}

async fn promote(address: &str, id: u64) -> Result<(), Status> {
    cluster(address).member_promote(MemberPromoteRequest { id }).await.map(drop)
}

async fn list(address: &str) -> Vec<Member> {
    let list = MemberListRequest { linearizable: true };
    cluster(address).member_list(list).await.unwrap().into_inner().members
}

fn said(refused: Result<impl Sized, Status>) -> (Code, String) {
    let Err(status) = refused else { panic!("it must be refused") };
    (status.code(), status.message().to_owned())
}

fn refusal(code: Code, message: &str) -> (Code, String) {
    (code, format!("etcdserver: {message}"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_joins_serves_and_is_removed() {
    let members = Members::start(3);
    let leader = members.leader().await;
    let [one, two, _] = members.addresses.clone().try_into().unwrap();
    put(&one, "k", "v").await.unwrap();

    // It is added before it is there, by whom it is told its id.
    let address = format!("127.0.0.1:{}", free_ports(1));
    let began = Instant::now();
    let id = add(&two, &address, false).await.unwrap().id;
    assert!(began.elapsed() < Duration::from_secs(2), "took {:?}", began.elapsed());
    let exists = refusal(Code::FailedPrecondition, "Peer URLs already exists");
    assert_eq!(said(add(&one, &address, true).await), exists);
    // Not in sync, and whoever was not added as one is none for whoever asks.
    let (code, message) = said(promote(&one, id).await);
    assert_eq!(code, Code::FailedPrecondition);
    assert!(message.starts_with("etcdserver: can only promote a learner member"), "{message}");
    // Nobody waits for it: one of three may still go.
    put(&one, "k", "without it").await.unwrap();

    // One command and an address of the running cluster.
    let mut fourth = Process::start(joining(&members, &address, &one));
    until_serving(&address).await;
    assert_eq!(get(&address, "k").await.unwrap().as_deref(), Some("without it"));
    put(&address, "k", "through the fourth").await.unwrap();
    let known = list(&two).await;
    assert_eq!(known.len(), 4, "{known:?}");
    let fourth_known = known.iter().find(|member| member.id == id).unwrap();
    assert_eq!(fourth_known.client_ur_ls, [format!("http://{address}")]);
    // It calls itself by what it was told.
    let header = crate::support::range(&address, "k", "").await.unwrap().header.unwrap();
    assert_eq!(header.member_id, id);
    let status = raft_server::client::status(&members.addresses[leader]).await.unwrap();
    assert!(known.iter().any(|member| member.id == status.leader), "{status:?}");

    remove(&one, id).await.unwrap();
    assert_eq!(fourth.ended_within(PATIENCE).code(), Some(77));
    for address in &members.addresses {
        assert_eq!(get(address, "k").await.unwrap().as_deref(), Some("through the fourth"));
    }
    // It may not come back with what it has.
    let mut fourth = Process::start(joining(&members, &address, &two));
    assert_eq!(fourth.ended_within(PATIENCE).code(), Some(77));
    assert_eq!(said(remove(&one, id).await), refusal(Code::NotFound, "member not found"));
}

/// The command of a member with nothing but its own address in its configuration, and one of the cluster's.
fn joining(members: &Members, address: &str, contact: &str) -> std::process::Command {
    let config = members.folder.path().join(format!("{}.ron", address.replace(':', "-")));
    let text = std::fs::read_to_string(members.config()).unwrap();
    let own = format!("[{address:?}]");
    let text = text.replace(&format!("{:?}", members.addresses), &own);
    assert!(text.contains(&own), "{text}");
    std::fs::write(&config, text.replace("data.raft", &format!("{}.raft", &address[10..])))
        .unwrap();
    let mut command = program();
    command.arg("node").arg(&config).args(["0", "--join", contact]);
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_learner_waits_is_moved_caught_up_and_promoted() {
    let members = Members::start(3);
    members.leader().await;
    let [one, two, three] = members.addresses.clone().try_into().unwrap();
    put(&one, "k", "v").await.unwrap();

    // This one waits, empty, until it is added; it says so to those who ask for a leader.
    let ports = free_ports(3);
    let address = format!("127.0.0.1:{ports}");
    let mut fourth = Process::start(joining(&members, &address, &two));
    fourth.line_with("serves clients at");
    let mut request = Request::new(PutRequest { key: "k".into(), ..PutRequest::default() });
    request.metadata_mut().insert("hasleader", "true".parse().unwrap());
    let refused = kv(&address).put(request).await;
    assert_eq!(said(refused), refusal(Code::Unavailable, "no leader"));

    // It was added with a wrong address; as for every member, that can be changed.
    let learner = add(&two, &format!("127.0.0.1:{}", ports + 1), true).await.unwrap();
    let too_many = refusal(Code::FailedPrecondition, "too many learner members in cluster");
    let another = format!("127.0.0.1:{}", ports + 2);
    assert_eq!(said(add(&one, &another, true).await), too_many);
    let in_sync = "can only promote a learner member which is in sync with leader";
    let behind = refusal(Code::FailedPrecondition, in_sync);
    assert_eq!(said(promote(&one, learner.id).await), behind);
    let update = |id, to: &str| {
        let update = MemberUpdateRequest { id, peer_ur_ls: vec![format!("http://{to}")] };
        let mut client = cluster(&three);
        async move { client.member_update(update).await.map(drop) }
    };
    let exists = refusal(Code::FailedPrecondition, "Peer URLs already exists");
    assert_eq!(said(update(learner.id, &one).await), exists);
    assert_eq!(said(update(7, &another).await), refusal(Code::NotFound, "member not found"));
    update(learner.id, &address).await.unwrap();

    let deadline = Instant::now() + PATIENCE;
    while promote(&two, learner.id).await.is_err() {
        assert!(Instant::now() < deadline, "it does not catch up");
    }
    let not_one = refusal(Code::FailedPrecondition, "can only promote a learner member");
    assert_eq!(said(promote(&two, learner.id).await), not_one);
    assert_eq!(said(promote(&two, 7).await), refusal(Code::NotFound, "member not found"));
    put(&address, "k", "through the fourth").await.unwrap();

    // By etcd's arithmetic: with 4 that have started 3 more may be awaited.
    for port in 0..3 {
        add(&one, &format!("127.0.0.2:{}", ports + port), false).await.unwrap();
    }
    let not_enough = "re-configuration failed due to not enough started members";
    let not_enough = refusal(Code::FailedPrecondition, not_enough);
    assert_eq!(said(add(&one, "127.0.0.2:1", false).await), not_enough);
    for awaited in list(&one).await.into_iter().filter(|member| member.client_ur_ls.is_empty()) {
        remove(&three, awaited.id).await.unwrap();
    }
}

/// Of three members two are left, and one of them shall go: nobody would be a quorum of the rest.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_needed_is_not_removed() {
    let mut members = Members::start(3);
    let leader = members.leader().await;
    let [dead, kept] = [(leader + 1) % 3, (leader + 2) % 3];
    let mut ids = Vec::new();
    for address in &members.addresses {
        let status = raft_server::client::status(address).await.unwrap();
        ids.push(status.header.unwrap().member_id);
    }
    members.kill9(dead);
    let address = members.addresses[leader].clone();
    let unhealthy = refusal(Code::Unavailable, "unhealthy cluster");
    until_gone(&address, ids[dead]).await;
    assert_eq!(said(remove(&address, ids[kept]).await), unhealthy);
    members.process(leader).line_with("of the 2 voters that would be left, 1 are connected");
    // The dead one may go, and then nobody else.
    remove(&address, ids[dead]).await.unwrap();
    put(&address, "k", "v").await.unwrap();
    // Down to the last, which stays.
    remove(&address, ids[kept]).await.unwrap();
    let not_enough = "re-configuration failed due to not enough started members";
    let last = said(remove(&address, ids[leader]).await);
    assert_eq!(last, refusal(Code::FailedPrecondition, not_enough));
    put(&address, "k", "alone").await.unwrap();
}

/// Waits until the member at `address` has noticed that another one is gone.
async fn until_gone(address: &str, id: u64) {
    let deadline = Instant::now() + PATIENCE;
    let line = "etcd_network_active_peers{";
    while Instant::now() < deadline {
        let page = crate::http::get(address, "/metrics").1;
        let gone =
            |l: &str| l.starts_with(line) && l.contains(&format!("{id:x}")) && l.ends_with(" 0");
        if page.lines().any(gone) {
            return;
        }
    }
    panic!("nobody noticed");
}
