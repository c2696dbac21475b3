//! Members killed at any moment: nothing acknowledged is lost, nothing that was definitely refused appears.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use raft_kv::proto::etcdserverpb::RangeRequest;
use rustix::process::Signal;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tonic::{Code, Status};

use crate::support::{Members, get, kv, put, range};

/// What one client knows of its key: values are counted up.
#[derive(Debug, Default)]
struct Known {
    /// The last value that was acknowledged.
    acknowledged: u64,
    /// Values after it whose fate is unknown.
    unknown: BTreeSet<u64>,
    /// Values that were definitely refused.
    refused: BTreeSet<u64>,
}

/// Clients that each write their own key without a pause.
struct Load {
    clients: JoinSet<(String, Known)>,
    stop: Arc<AtomicBool>,
    acknowledged: watch::Receiver<u64>,
}

/// Texts after which a write was certainly not applied; everything else may have been.
fn is_definite(status: &Status) -> bool {
    let definite =
        ["etcdserver: no leader", "etcdserver: leader changed", "etcdserver: server stopped"];
    definite.contains(&status.message()) || status.code() == Code::ResourceExhausted
}

impl Load {
    fn start(addresses: &[String], clients: usize) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (report, acknowledged) = watch::channel(0);
        let total = Arc::new(AtomicU64::new(0));
        let mut set = JoinSet::new();
        for n in 0..clients {
            let (stop, report, total) = (Arc::clone(&stop), report.clone(), Arc::clone(&total));
            // Each client has a favourite and goes on to the next member when that one fails.
            let addresses: Vec<String> = (0..addresses.len())
                .map(|i| addresses[(n + i) % addresses.len()].clone())
                .collect();
            set.spawn(async move {
                let key = format!("client-{n}");
                let mut known = Known::default();
                let mut clients: Vec<_> = addresses.iter().map(|address| kv(address)).collect();
                let (mut value, mut at) = (0u64, 0usize);
                while !stop.load(Ordering::Relaxed) {
                    value += 1;
                    let request = raft_kv::proto::etcdserverpb::PutRequest {
                        key: key.clone().into(),
                        value: value.to_string().into(),
                        ..Default::default()
                    };
                    match clients[at].put(request).await {
                        Ok(_) => {
                            known.acknowledged = value;
                            known.unknown.clear();
                            report.send_replace(total.fetch_add(1, Ordering::Relaxed) + 1);
                        }
                        Err(status) => {
                            if is_definite(&status) {
                                known.refused.insert(value);
                            } else {
                                known.unknown.insert(value);
                            }
                            at = (at + 1) % clients.len();
                            // A refused connection answers at once; let others run.
                            tokio::task::yield_now().await;
                        }
                    }
                }
                (key, known)
            });
        }
        Self { clients: set, stop, acknowledged }
    }

    /// Waits until `count` more writes were acknowledged.
    async fn more(&mut self, count: u64) {
        let target = *self.acknowledged.borrow() + count;
        let reached = self.acknowledged.wait_for(|total| *total >= target);
        tokio::time::timeout(Duration::from_secs(20), reached)
            .await
            .expect("writes go on")
            .unwrap();
    }

    async fn finish(self) -> BTreeMap<String, Known> {
        self.stop.store(true, Ordering::Relaxed);
        self.clients.join_all().await.into_iter().collect()
    }
}

/// Through every member: each key holds its last acknowledged value, or a later one of unknown fate.
async fn check(members: &Members, known: &BTreeMap<String, Known>) {
    assert!(known.values().all(|known| known.acknowledged > 0), "every client wrote: {known:?}");
    for address in &members.addresses {
        for (key, known) in known {
            let found = get(address, key).await.unwrap().unwrap_or_else(|| panic!("{key} is gone"));
            let found: u64 = found.parse().unwrap();
            assert!(!known.refused.contains(&found), "{key} holds {found}, which was refused");
            assert!(
                found == known.acknowledged || known.unknown.contains(&found),
                "{key} holds {found} through {address}: {known:?}"
            );
        }
    }
    // All histories are one: the same revision and keys everywhere.
    let mut states = Vec::new();
    for address in &members.addresses {
        let all = range(address, "client", "cliens").await.unwrap();
        states.push((all.header.unwrap().revision, all.kvs));
    }
    assert!(states.windows(2).all(|pair| pair[0] == pair[1]), "members differ");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_leader_is_killed_under_load_and_nothing_is_lost() {
    let mut members = Members::start(3);
    members.leader().await;
    let mut load = Load::start(&members.addresses, 8);
    for _ in 0..3 {
        load.more(100).await;
        let leader = members.leader().await;
        members.kill9(leader);
        load.more(100).await;
        members.start_one(leader);
    }
    load.more(100).await;
    let known = load.finish().await;
    members.leader().await;
    check(&members, &known).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn all_members_are_killed_at_once_and_nothing_is_lost() {
    let mut members = Members::start(3);
    members.leader().await;
    for _ in 0..2 {
        let mut load = Load::start(&members.addresses, 8);
        load.more(200).await;
        for index in 0..3 {
            members.process(index).signal(Signal::KILL);
        }
        let known = load.finish().await;
        for index in 0..3 {
            members.kill9(index);
            members.start_one(index);
        }
        members.leader().await;
        check(&members, &known).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_follower_that_was_away_catches_up() {
    let mut members = Members::start(3);
    let leader = members.leader().await;
    let away = (leader + 1) % 3;
    members.kill9(away);
    let mut load = Load::start(&members.addresses, 8);
    load.more(2000).await;
    members.start_one(away);
    load.more(200).await;
    let known = load.finish().await;
    members.leader().await;
    check(&members, &known).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_quorum_nothing_is_answered_and_stale_reads_still_are() {
    let mut members = Members::configure(3);
    // Both requests below are answered only after this.
    let text = std::fs::read_to_string(members.config()).unwrap();
    let text = text.replace("heartbeat_interval", "request_timeout: 1500, heartbeat_interval");
    std::fs::write(members.config(), text).unwrap();
    for index in 0..3 {
        members.start_one(index);
    }
    let leader = members.leader().await;
    put(&members.addresses[0], "k", "v").await.unwrap();
    for index in (0..3).filter(|index| *index != leader) {
        // A read through it, so that it has what it is asked for below.
        get(&members.addresses[index], "k").await.unwrap();
    }
    let left = (leader + 1) % 3;
    members.kill9(leader);
    members.kill9((leader + 2) % 3);

    let stale = RangeRequest { key: "k".into(), serializable: true, ..RangeRequest::default() };
    let answer = kv(&members.addresses[left]).range(stale).await.unwrap().into_inner();
    assert_eq!(answer.kvs[0].value, "v");
    let address = &members.addresses[left];
    let (put_lost, got) = tokio::join!(put(address, "k", "lost"), get(address, "k"));
    for refused in [put_lost.unwrap_err(), got.unwrap_err()] {
        assert_eq!(refused.code(), Code::Unavailable, "{refused:?}");
    }

    members.start_one(leader);
    members.leader().await;
    put(&members.addresses[left], "k", "again").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_that_is_told_to_stop_hands_over_and_exits_well() {
    let mut members = Members::start(3);
    let leader = members.leader().await;
    let mut load = Load::start(&members.addresses, 4);
    load.more(50).await;
    members.process(leader).signal(Signal::TERM);
    let status = members.process(leader).ended_within(Duration::from_secs(2));
    assert_eq!(status.code(), Some(0));
    load.more(50).await;
    members.start_one(leader);
    let known = load.finish().await;
    members.leader().await;
    check(&members, &known).await;
}
