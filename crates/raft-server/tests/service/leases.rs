//! Leases: what clients are promised about keys that end by themselves.

use std::time::{Duration, Instant};

use raft_kv::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse, PutRequest,
    WatchCreateRequest,
};
use raft_server::proto::etcdserverpb::lease_client::LeaseClient;
use rustix::process::Signal;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Streaming};

use crate::kv::assert_refused;
use crate::support::{Members, channel_to, get, kv, put, range};
use crate::watches::Watch;

/// The longest election timeout of the members here.
const ELECTION_TIMEOUT: Duration = Duration::from_millis(500);
/// How far apart keep-alives come: often, but not so that the members do nothing else.
const CADENCE: Duration = Duration::from_millis(100);

fn lease(address: &str) -> LeaseClient<Channel> {
    LeaseClient::new(channel_to(address))
}

async fn grant(address: &str, id: i64, ttl: i64) -> i64 {
    let granted = lease(address).lease_grant(LeaseGrantRequest { ttl, id }).await.unwrap();
    granted.into_inner().id
}

async fn put_with(address: &str, key: &str, lease: i64) {
    let request = PutRequest {
        key: key.to_owned().into(),
        value: "v".into(),
        lease,
        ..PutRequest::default()
    };
    kv(address).put(request).await.unwrap();
}

async fn time_to_live(address: &str, id: i64) -> LeaseTimeToLiveResponse {
    let request = LeaseTimeToLiveRequest { id, keys: true };
    lease(address).lease_time_to_live(request).await.unwrap().into_inner()
}

/// Hears every change from `key` up to `end` since `revision`.
async fn watch(address: &str, key: &str, end: &str, revision: i64) -> Watch {
    let mut watcher = Watch::open(address).await;
    let (key, range_end) = (key.to_owned().into(), end.to_owned().into());
    let start_revision = revision;
    let request =
        WatchCreateRequest { key, range_end, start_revision, ..WatchCreateRequest::default() };
    watcher.create(request).await;
    watcher
}

/// One keep-alive stream, a question at a time.
struct KeepAlive {
    requests: mpsc::UnboundedSender<LeaseKeepAliveRequest>,
    answers: Streaming<LeaseKeepAliveResponse>,
}

impl KeepAlive {
    async fn open(address: &str) -> Self {
        let (requests, stream) = mpsc::unbounded_channel();
        let stream = UnboundedReceiverStream::new(stream);
        let answers = lease(address).lease_keep_alive(stream).await.unwrap().into_inner();
        Self { requests, answers }
    }

    /// The answer's seconds.
    async fn renew(&mut self, id: i64) -> i64 {
        self.requests.send(LeaseKeepAliveRequest { id }).unwrap();
        let answer = self.answers.message().await.unwrap().unwrap();
        assert_eq!(answer.id, id);
        assert!(answer.header.unwrap().revision > 0);
        answer.ttl
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_live_through_every_member_with_etcds_answers() {
    let members = Members::start(3);
    members.leader().await;
    for (n, address) in members.addresses.iter().enumerate() {
        let mut client = lease(address);
        let other = &members.addresses[(n + 1) % 3];

        // An id of the server's choice; too few seconds are raised to one and a half election timeouts.
        let request = LeaseGrantRequest { ttl: 0, id: 0 };
        let short = client.lease_grant(request).await.unwrap().into_inner();
        assert!(short.id > 0 && short.ttl == 1 && short.error.is_empty(), "{short:?}");
        let id = grant(address, 0, 600).await;
        let twice = client.lease_grant(LeaseGrantRequest { ttl: 5, id }).await;
        assert_refused(twice, Code::FailedPrecondition, "etcdserver: lease already exists");
        let long = LeaseGrantRequest { ttl: 9_000_000_001, id: 0 };
        assert_refused(
            client.lease_grant(long).await,
            Code::OutOfRange,
            "etcdserver: too large lease TTL",
        );

        // Keys: two attached, one detached again by a plain put.
        for key in ["a", "b", "c"] {
            put_with(address, key, id).await;
        }
        put(address, "b", "stays").await.unwrap();
        let found = time_to_live(other, id).await;
        assert_eq!(found.keys, ["a", "c"]);
        assert!(found.granted_ttl == 600 && (590..=600).contains(&found.ttl), "{found:?}");
        let leases = lease(other).lease_leases(LeaseLeasesRequest {}).await.unwrap().into_inner();
        assert!(leases.leases.iter().any(|lease| lease.id == id));

        // A keep-alive of a lease that is not there says so and goes on.
        let mut alive = KeepAlive::open(other).await;
        assert_eq!(alive.renew(12345).await, 0);
        assert_eq!(alive.renew(id).await, 600);

        // Its end takes its keys in one revision.
        let before = range(address, "a", "").await.unwrap().header.unwrap().revision;
        let ended = client.lease_revoke(LeaseRevokeRequest { id }).await.unwrap().into_inner();
        assert_eq!(ended.header.unwrap().revision, before + 1);
        let left = range(other, "a", "z").await.unwrap();
        assert_eq!((left.count, left.kvs[0].value.as_ref()), (1, &b"stays"[..]));
        let again = client.lease_revoke(LeaseRevokeRequest { id }).await;
        assert_refused(again, Code::NotFound, "etcdserver: requested lease not found");
        let gone = time_to_live(other, id).await;
        assert_eq!((gone.id, gone.ttl, gone.granted_ttl), (id, -1, 0));
        assert_eq!(alive.renew(id).await, 0);
        let orphan = PutRequest { key: "k".into(), lease: id, ..PutRequest::default() };
        assert_refused(
            kv(other).put(orphan).await,
            Code::NotFound,
            "etcdserver: requested lease not found",
        );
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_lease_ends_in_its_time_after_the_last_keep_alive() {
    let members = Members::start(3);
    let leader = members.leader().await;
    let follower = &members.addresses[(leader + 1) % 3];
    let id = grant(follower, 7, 1).await;
    put_with(follower, "a", id).await;
    put_with(follower, "b", id).await;

    // Kept alive for twice its seconds.
    let mut watcher = watch(follower, "a", "c", 4).await;
    let mut alive = KeepAlive::open(follower).await;
    let mut beat = tokio::time::interval(CADENCE);
    let since = Instant::now();
    let mut acknowledged = since;
    while since.elapsed() < Duration::from_secs(2) {
        beat.tick().await;
        assert_eq!(alive.renew(id).await, 1);
        acknowledged = Instant::now();
    }
    let ended = watcher.next().await;
    let lived = acknowledged.elapsed();
    assert_eq!(ended.events.len(), 2, "its keys end together: {ended:?}");
    let revision = ended.header.unwrap().revision;
    let ttl = Duration::from_secs(1);
    assert!(lived >= ttl, "ended after {lived:?}");
    // Two election timeouts, and what a busy machine adds.
    assert!(lived < ttl + 2 * ELECTION_TIMEOUT + Duration::from_secs(1), "ended after {lived:?}");
    assert_eq!(revision, 4, "one revision");
    assert_eq!(time_to_live(follower, id).await.ttl, -1);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn with_etcds_timing_a_lease_ends_as_soon_as_in_etcd_and_what_has_ended_stays_so() {
    let mut members = Members::configure(1);
    let text = std::fs::read_to_string(members.config()).unwrap();
    let text = text.replace("start: 300.0, end: 500.0", "start: 1000.0, end: 2000.0");
    std::fs::write(members.config(), text).unwrap();
    members.start_one(0);
    members.leader().await;
    let address = &members.addresses[0];
    let request = LeaseGrantRequest { ttl: 0, id: 0 };
    let shortest = lease(address).lease_grant(request).await.unwrap().into_inner().ttl;
    assert_eq!(shortest, 2, "one and a half of etcd's election timeouts");

    // A busy machine adds to one of them, hardly to all.
    let mut took = Vec::new();
    for id in 1..=4 {
        grant(address, id, 2).await;
        let since = Instant::now();
        put_with(address, "k", id).await;
        let mut alive = KeepAlive::open(address).await;
        let mut beat = tokio::time::interval(CADENCE / 4);
        while time_to_live(address, id).await.ttl >= 0 {
            beat.tick().await;
        }
        let lived = since.elapsed();
        assert_eq!(alive.renew(id).await, 0, "it was said to be gone");
        assert_eq!(get(address, "k").await.unwrap(), None);
        assert!(lived >= Duration::from_secs(2), "ended after {lived:?}");
        took.push(lived);
        // etcd ends it within half a second, and its own tests give it a whole one.
        if lived < Duration::from_secs(3) {
            return;
        }
    }
    panic!("leases of two seconds lived {took:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_leader_that_slept_ends_no_lease_and_a_new_one_keeps_them() {
    let mut members = Members::start(3);
    let sleeper = members.leader().await;
    let id = grant(&members.addresses[sleeper], 7, 2).await;
    put_with(&members.addresses[sleeper], "k", id).await;
    // The sleeper's clock runs for this one alone: nobody renews it.
    let other = members.addresses[(sleeper + 1) % 3].clone();

    members.process(sleeper).pause();
    let mut beat = tokio::time::interval(CADENCE);
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(3) {
        // While there is no leader a stream may end; clients open another.
        let mut alive = KeepAlive::open(&other).await;
        let renewed = async {
            loop {
                beat.tick().await;
                alive.requests.send(LeaseKeepAliveRequest { id }).ok()?;
                let answer = alive.answers.message().await.ok()??;
                assert_eq!(answer.ttl, 2, "the lease lives on");
                if since.elapsed() > Duration::from_secs(3) {
                    return Some(());
                }
            }
        };
        renewed.await;
    }
    members.process(sleeper).signal(Signal::CONT);
    let mut alive = KeepAlive::open(&other).await;
    let since = Instant::now();
    while since.elapsed() < Duration::from_secs(1) {
        beat.tick().await;
        assert_eq!(alive.renew(id).await, 2);
    }
    assert_eq!(get(&other, "k").await.unwrap().as_deref(), Some("v"));
    assert_eq!(get(&members.addresses[sleeper], "k").await.unwrap().as_deref(), Some("v"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn leases_survive_the_death_of_every_process() {
    let mut members = Members::start(1);
    members.leader().await;
    let address = members.addresses[0].clone();
    let id = grant(&address, -5, 2).await;
    put_with(&address, "k", id).await;
    members.kill9(0);
    members.start_one(0);
    members.leader().await;
    let found = time_to_live(&address, id).await;
    assert_eq!((found.granted_ttl, found.keys), (2, vec!["k".into()]));
    // Nobody renews it: the new leader ends it after its full time.
    let ended = watch(&address, "k", "", 3).await.next().await;
    assert_eq!(ended.events.len(), 1, "{ended:?}");
    assert_eq!(get(&address, "k").await.unwrap(), None);
    assert_eq!(time_to_live(&address, id).await.ttl, -1);
}
