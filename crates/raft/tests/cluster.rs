//! Whole nodes in one process: real threads, files and sockets.

#![expect(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use raft::core::{
    ApplyContext, BlobId, Command, DecodeError, Digest, Index, MemberId, MembershipError, Session,
    Snapshot, SnapshotError, SnapshotSink, SnapshotSource, StateMachine,
};
use raft::error::{AdminError, NodeError, ProposeError};
use raft::meters::Meters;
use raft::node::{Phase, Status};
use raft::sessions::{SessionCommand, SessionError, SessionResponse};
use raft::{MemberInfo, Node, SessionClient, Sessions};
use tempfile::TempDir;

/// Keeps every number that was added, in order.
#[derive(Debug, Default)]
struct Numbers(Vec<u64>);

#[derive(Clone, Debug)]
struct Add(u64);

impl Command for Add {
    fn encode(&self, out: &mut BytesMut) {
        out.extend_from_slice(&self.0.to_le_bytes());
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let bytes =
            bytes.as_ref().try_into().map_err(|_| DecodeError(String::from("not 8 bytes")))?;
        Ok(Self(u64::from_le_bytes(bytes)))
    }
}

#[derive(Debug)]
struct Picture(Vec<u64>);

impl Snapshot for Picture {
    fn write(self, sink: &mut dyn SnapshotSink) -> Result<(), SnapshotError> {
        let bytes: Vec<u8> = self.0.iter().flat_map(|number| number.to_le_bytes()).collect();
        sink.put(&bytes).map(|_: BlobId| ())
    }
}

impl StateMachine for Numbers {
    type Command = Add;
    type Response = u64;
    type Query = ();
    type Answer = Vec<u64>;
    type Snapshot = Picture;

    fn apply(&mut self, _: ApplyContext, command: Add) -> u64 {
        self.0.push(command.0);
        u64::try_from(self.0.len()).unwrap()
    }

    fn query(&self, (): ()) -> Vec<u64> {
        self.0.clone()
    }

    fn snapshot(&self) -> Picture {
        Picture(self.0.clone())
    }

    fn restore(&mut self, source: &dyn SnapshotSource) -> Result<(), SnapshotError> {
        let bytes = source.read(0)?;
        let numbers = bytes.chunks_exact(8).filter_map(|chunk| chunk.try_into().ok());
        self.0 = numbers.map(u64::from_le_bytes).collect();
        Ok(())
    }

    fn digest(&self) -> Digest {
        Digest(0)
    }
}

/// Addresses that were free a moment ago.
fn addresses(count: usize) -> Vec<String> {
    let listeners: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
    listeners.iter().map(|listener| listener.local_addr().unwrap().to_string()).collect()
}

/// On a real file system: a temporary one in memory makes every sync a lie.
fn folder() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

fn builder(dir: &Path, number: usize, addresses: &[String]) -> raft::node::Builder<Numbers> {
    builder_of(Numbers::default(), dir, number, addresses)
}

fn builder_of<S: StateMachine>(
    machine: S,
    dir: &Path,
    number: usize,
    addresses: &[String],
) -> raft::node::Builder<S> {
    Node::builder(machine)
        .data_dir(dir.join(format!("member_{number}")))
        .address(&addresses[number])
        .peers(addresses)
        .election_timeout(Duration::from_millis(150), Duration::from_millis(300))
        .heartbeat_interval(Duration::from_millis(50))
}

async fn start(dir: &Path, number: usize, addresses: &[String]) -> Node<Numbers> {
    builder(dir, number, addresses).start().await.unwrap()
}

async fn cluster(dir: &Path, addresses: &[String]) -> Vec<Node<Numbers>> {
    let mut nodes = Vec::new();
    for number in 0..addresses.len() {
        nodes.push(start(dir, number, addresses).await);
    }
    nodes
}

async fn until(node: &Node<Numbers>, what: &str, done: impl Fn(&Status) -> bool) -> Arc<Status> {
    let mut watch = node.watch_status();
    let found =
        tokio::time::timeout(Duration::from_secs(20), watch.wait_for(|status| done(status))).await;
    match found {
        Ok(Ok(status)) => Arc::clone(&status),
        Ok(Err(_)) | Err(_) => panic!("never: {what}; {:?}", node.status()),
    }
}

/// Where the leader is, once every node takes part.
async fn leader(nodes: &[Node<Numbers>]) -> usize {
    for node in nodes {
        until(node, "it takes part", |status| status.phase == Phase::Active).await;
    }
    let status = until(&nodes[0], "a leader", |status| status.leader.is_some()).await;
    let position = nodes.iter().position(|node| Some(node.status().node.member) == status.leader);
    position.unwrap()
}

async fn stop(nodes: Vec<Node<Numbers>>) {
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn one_member_keeps_what_it_answered_over_a_restart() {
    let (dir, addresses) = (folder(), addresses(1));
    for round in 1..=3 {
        let node = start(dir.path(), 0, &addresses).await;
        assert_eq!(node.propose(Add(7)).await, Ok(round));
        assert_eq!(node.read(()).await.unwrap(), vec![7; usize::try_from(round).unwrap()]);
        node.shutdown().await.unwrap();
        assert_eq!(
            node.propose(Add(8)).await,
            Err(ProposeError::Stopped { definitely_not_applied: true })
        );
    }
}

#[tokio::test]
async fn any_member_takes_proposals_and_reads() {
    let (dir, addresses) = (folder(), addresses(3));
    let nodes = cluster(dir.path(), &addresses).await;
    let mut expected = Vec::new();
    for count in 0..30 {
        let at = usize::try_from(count % 3).unwrap();
        expected.push(count);
        assert_eq!(nodes[at].propose(Add(count)).await, Ok(count + 1));
        assert_eq!(nodes[(at + 1) % 3].read(()).await.unwrap(), expected);
    }
    let clusters: BTreeSet<_> = nodes.iter().map(|node| node.status().cluster_id).collect();
    assert_eq!(clusters.len(), 1);
    stop(nodes).await;
}

#[tokio::test]
async fn all_members_restart_and_nothing_is_missing() {
    let (dir, addresses) = (folder(), addresses(3));
    let nodes = cluster(dir.path(), &addresses).await;
    for count in 0..20 {
        nodes[1].propose(Add(count)).await.unwrap();
    }
    let before = nodes[2].read(()).await.unwrap();
    stop(nodes).await;
    let nodes = cluster(dir.path(), &addresses).await;
    for node in &nodes {
        assert_eq!(node.read(()).await.unwrap(), before);
    }
    stop(nodes).await;
}

#[tokio::test]
async fn many_proposals_at_once_are_all_applied_once() {
    let (dir, addresses) = (folder(), addresses(3));
    let nodes = cluster(dir.path(), &addresses).await;
    leader(&nodes).await;
    let tasks: Vec<_> = (0..300u64)
        .map(|number| {
            let node = nodes[usize::try_from(number % 3).unwrap()].clone();
            tokio::spawn(async move { node.propose(Add(number)).await })
        })
        .collect();
    for task in tasks {
        task.await.unwrap().unwrap();
    }
    let mut numbers = nodes[0].read(()).await.unwrap();
    numbers.sort_unstable();
    assert_eq!(numbers, (0..300).collect::<Vec<_>>());
    stop(nodes).await;
}

/// Clients try each command until they are told, through whoever is there, while two of three members come and go.
#[tokio::test]
async fn what_is_tried_again_in_a_session_is_applied_once() {
    let (dir, addresses) = (folder(), addresses(3));
    let mut nodes = Vec::new();
    let start = async |number: usize| {
        let machine = Sessions::new(Numbers::default());
        builder_of(machine, dir.path(), number, &addresses).start().await.unwrap()
    };
    for number in 0..3 {
        nodes.push(start(number).await);
    }
    let (halfway, mut reached) = tokio::sync::mpsc::unbounded_channel();
    let clients: Vec<_> = (0..8u64)
        .map(|client| {
            let (nodes, halfway) = (nodes.clone(), halfway.clone());
            tokio::spawn(async move {
                let mut through = nodes.iter().cycle();
                let mut session = SessionClient::open(&nodes[0]).await.unwrap();
                for count in 0..30 {
                    if count == 15 {
                        halfway.send(()).unwrap();
                    }
                    let command = Add(client * 100 + count);
                    let node = through.next().unwrap();
                    let mut outcome = session.propose(node, command.clone()).await;
                    while let Err(SessionError::Propose(_) | SessionError::Unknown(_)) = outcome {
                        let node = through.next().unwrap();
                        outcome = session.retry(node, command.clone()).await;
                    }
                    outcome.unwrap();
                }
            })
        })
        .collect();
    reached.recv().await.unwrap();
    nodes[1].shutdown().await.unwrap();
    let again = start(1).await;
    nodes[2].shutdown().await.unwrap();
    for client in clients {
        client.await.unwrap();
    }
    let numbers = again.read(()).await.unwrap();
    for client in 0..8u64 {
        let own: Vec<u64> = numbers.iter().copied().filter(|n| n / 100 == client).collect();
        let expected: Vec<u64> = (0..30).map(|count| client * 100 + count).collect();
        assert_eq!(own, expected, "each once, in order");
    }
    for node in [&nodes[0], &again] {
        node.shutdown().await.unwrap();
    }
}

/// The same command three times: through two members, and after all have restarted from a snapshot.
#[tokio::test]
async fn a_command_of_a_session_counts_once_through_whomever_it_comes() {
    let (dir, addresses) = (folder(), addresses(3));
    let start = async || {
        let mut nodes = Vec::new();
        for number in 0..3 {
            let machine = Sessions::new(Numbers::default());
            let builder = builder_of(machine, dir.path(), number, &addresses)
                .settings(|settings| settings.checkpoint_entries = 5);
            nodes.push(builder.start().await.unwrap());
        }
        nodes
    };
    let nodes = start().await;
    let client = SessionClient::open(&nodes[0]).await.unwrap();
    let session = Session { id: client.id(), sequence: 1 };
    let again = || SessionCommand::Command(Add(7));
    for node in &nodes[..2] {
        let answer = node.propose_in_session(again(), session).await;
        assert_eq!(answer, Ok(SessionResponse::Applied(1)));
    }
    let mut count = 0;
    while nodes[0].status().snapshot.index < Index(10) {
        nodes[2].propose(SessionCommand::Command(Add(count))).await.unwrap();
        count += 1;
    }
    for node in nodes {
        node.shutdown().await.unwrap();
    }
    let nodes = start().await;
    let answer = nodes[1].propose_in_session(again(), session).await;
    assert_eq!(answer, Ok(SessionResponse::Applied(1)));
    let expected: Vec<u64> = std::iter::once(7).chain(0..count).collect();
    assert_eq!(nodes[2].read(()).await.unwrap(), expected);
    for node in nodes {
        node.shutdown().await.unwrap();
    }
}

#[tokio::test]
async fn a_shutdown_of_the_leader_hands_over_and_the_others_go_on() {
    let (dir, addresses) = (folder(), addresses(3));
    let mut nodes = cluster(dir.path(), &addresses).await;
    let old = nodes.remove(leader(&nodes).await);
    let member = old.status().node.member;
    nodes[0].propose(Add(1)).await.unwrap();
    old.shutdown().await.unwrap();
    until(&nodes[0], "another leader", |status| {
        status.leader.is_some_and(|leader| leader != member)
    })
    .await;
    nodes[0].propose(Add(2)).await.unwrap();
    assert_eq!(nodes[1].read(()).await.unwrap(), [1, 2]);
    stop(nodes).await;
}

#[tokio::test]
async fn a_member_is_added_and_another_one_removed() {
    let (dir, addresses) = (folder(), addresses(4));
    let mut nodes = cluster(dir.path(), &addresses[..3]).await;
    nodes[0].propose(Add(1)).await.unwrap();
    let joining = builder(dir.path(), 3, &addresses).peers([""; 0]).join(&addresses[..1]);
    let joined = joining.start().await.unwrap();
    let info = MemberInfo {
        name: String::from("new"),
        peer_address: addresses[3].clone(),
        ..MemberInfo::default()
    };
    nodes[1].members().add(info).await.unwrap();
    assert_eq!(joined.read(()).await.unwrap(), [1]);
    joined.propose(Add(2)).await.unwrap();

    let removed = nodes.remove(leader(&nodes).await);
    let member = removed.status().node.member;
    joined.members().remove(member).await.unwrap();
    let ended = removed.stopped().await.unwrap_err();
    assert!(matches!(*ended, NodeError::Removed), "{ended}");
    joined.propose(Add(3)).await.unwrap();
    assert_eq!(nodes[0].read(()).await.unwrap(), [1, 2, 3]);
    assert_eq!(joined.members().list().len(), 3);
    // The member that was added is found by its name, and knows the others after a restart.
    joined.shutdown().await.unwrap();
    let joined = builder(dir.path(), 3, &addresses).peers([""; 0]).join(&addresses[..1]);
    let joined = joined.start().await.unwrap();
    assert_eq!(joined.read(()).await.unwrap(), [1, 2, 3]);
    assert!(joined.members().list().iter().any(|member| member.info.name == "new"));
    nodes.push(joined);
    stop(nodes).await;
}

/// A member that lags knows an old list only: it must not say for certain that somebody is no member.
#[tokio::test]
async fn nobody_is_said_to_be_no_member_without_asking_the_others() {
    let (dir, addresses) = (folder(), addresses(2));
    let impatient = |settings: &mut raft::node::Settings| {
        settings.request_timeout = Some(Duration::from_secs(1))
    };
    let mut nodes = Vec::new();
    for number in 0..2 {
        nodes.push(
            builder(dir.path(), number, &addresses).settings(impatient).start().await.unwrap(),
        );
    }
    leader(&nodes).await;
    let stranger = MemberId(1);
    let certain = nodes[0].members().remove(stranger).await;
    assert!(
        matches!(certain, Err(AdminError::Refused(MembershipError::NotAMember(_)))),
        "{certain:?}"
    );
    nodes.remove(1).shutdown().await.unwrap();
    assert_eq!(nodes[0].members().remove(stranger).await, Err(AdminError::NoLeader));
    stop(nodes).await;
}

#[tokio::test]
async fn a_wiped_member_stays_idle_until_the_others_take_it_in_as_another() {
    let dir = folder();
    let addresses = addresses(3);
    let mut nodes = Vec::new();
    for number in 0..3 {
        let soon = |settings: &mut raft::node::Settings| {
            settings.readmit_after = Some(Duration::from_millis(500));
        };
        nodes.push(builder(dir.path(), number, &addresses).settings(soon).start().await.unwrap());
    }
    leader(&nodes).await;
    nodes[0].propose(Add(1)).await.unwrap();
    stop(vec![nodes.remove(1)]).await;
    std::fs::remove_dir_all(dir.path().join("member_1")).unwrap();
    // The others know a member at this address, with another data folder: having caught up would not undo a
    // forgotten vote (decision 3).
    let wiped = start(dir.path(), 1, &addresses).await;
    let idle = |status: &Status| matches!(status.phase, Phase::Amnesic(_));
    let status = until(&wiped, "the wiped member is idle", idle).await;
    assert!(status.term.0 == 0 && status.last_log.index.0 == 0, "{status:?}");
    // Without an operator, by the leader's own joint change: caught up, and with a vote.
    let back =
        |status: &Status| status.phase == Phase::Active && status.membership.is_voter(status.node);
    let status = until(&wiped, "it takes part again", back).await;
    assert_eq!((status.membership.voters().len(), status.membership.removed().len()), (3, 1));
    assert!(nodes[0].propose(Add(2)).await.is_ok());
    assert_eq!(wiped.read(()).await, nodes[0].read(()).await);
    nodes.push(wiped);
    stop(nodes).await;
}

/// Bits in the logs of all three, each in another place: none of them could lead, and all come back as who they were.
#[tokio::test]
async fn damaged_members_repair_each_other() {
    let (dir, addresses) = (folder(), addresses(3));
    let nodes = cluster(dir.path(), &addresses).await;
    leader(&nodes).await;
    for number in 0..60 {
        nodes[0].propose(Add(number)).await.unwrap();
    }
    let expected = nodes[0].read(()).await.unwrap();
    for node in &nodes {
        // A quorum is enough for an answer: one of them may still have nothing in its log that could be damaged.
        assert_eq!(node.read(()).await.unwrap(), expected);
    }
    stop(nodes).await;
    let first = |number: usize| dir.path().join(format!("member_{number}/0000000001.log"));
    let mut damaged = Vec::new();
    for number in 0..3 {
        let mut content = std::fs::read(first(number)).unwrap();
        let intact = content.clone();
        // In another part of each log. How many sectors it takes depends on how entries came together in batches.
        let used = content[4096..].chunks(512).take_while(|sector| sector.iter().any(|b| *b != 0));
        let place = 4096 + 512 * (used.count() * (number + 1) / 5);
        content[place + 130] ^= 1;
        std::fs::write(first(number), content).unwrap();
        damaged.push((place, intact));
    }
    let nodes = cluster(dir.path(), &addresses).await;
    for node in &nodes {
        let back = |status: &Status| status.phase == Phase::Active && status.leader.is_some();
        let status = until(node, "it takes part again", back).await;
        assert!(status.membership.removed().is_empty(), "as who it was");
        assert_eq!(node.read(()).await.unwrap(), expected);
    }
    assert_eq!(nodes[0].propose(Add(1)).await, Ok(61));
    stop(nodes).await;
    for (number, (place, intact)) in damaged.into_iter().enumerate() {
        let content = std::fs::read(first(number)).unwrap();
        assert_eq!(content[place..place + 512], intact[place..place + 512], "member {number}");
    }
}

/// Both copies of the header of a segment of one of three: what others cannot bring back entry by entry.
#[tokio::test]
async fn a_damaged_member_is_rebuilt_from_the_others_each_time() {
    let dir = folder();
    let addresses = addresses(3);
    let soon = |settings: &mut raft::node::Settings| {
        settings.readmit_after = Some(Duration::from_millis(500));
    };
    let mut nodes = Vec::new();
    for number in 0..3 {
        nodes.push(builder(dir.path(), number, &addresses).settings(soon).start().await.unwrap());
    }
    leader(&nodes).await;
    let numbers = 0x5eed_0000_0000_u64..0x5eed_0000_0014;
    for number in numbers {
        nodes[0].propose(Add(number)).await.unwrap();
    }
    let folder = dir.path().join("member_1");
    // The second time, what was set aside the first time still stands there.
    for (times, aside) in [(1, "member_1.damaged"), (2, "member_1.damaged-2")] {
        stop(vec![nodes.remove(1)]).await;
        let log = folder.join("0000000001.log");
        let mut content = std::fs::read(&log).unwrap();
        for copy in [0, 2048] {
            content[copy + 20] ^= 1;
        }
        std::fs::write(&log, content).unwrap();

        let meters = Arc::<Meters>::default();
        let rebuilt = builder(dir.path(), 1, &addresses).settings(|settings| {
            soon(settings);
            settings.meters = Arc::clone(&meters);
        });
        let rebuilt = rebuilt.start().await.unwrap();
        let back = |status: &Status| {
            status.phase == Phase::Active && status.membership.is_voter(status.node)
        };
        let status = until(&rebuilt, "it takes part again", back).await;
        assert_eq!(status.membership.removed().len(), times, "as another member");
        assert_eq!(rebuilt.read(()).await, nodes[0].read(()).await);
        assert!(dir.path().join(aside).join("0000000001.log").exists());
        assert_eq!(meters.damage.folders_set_aside(), u64::try_from(times).unwrap());
        nodes.insert(1, rebuilt);
    }
    stop(nodes).await;
}

/// While everything runs: what rots in the log is found by reading it again, and fetched from the others; a copy of the
/// identity comes from the other one.
#[tokio::test]
async fn damage_under_a_running_member_is_repaired() {
    let (dir, addresses) = (folder(), addresses(3));
    let meters = Arc::<Meters>::default();
    let mut nodes = Vec::new();
    for number in 0..3 {
        let node = builder(dir.path(), number, &addresses).settings(|settings| {
            settings.scrub_bytes_per_second = 256 << 20;
            if number == 1 {
                settings.meters = Arc::clone(&meters);
            }
        });
        nodes.push(node.start().await.unwrap());
    }
    leader(&nodes).await;
    for number in 0..50 {
        nodes[0].propose(Add(number)).await.unwrap();
    }
    assert_eq!(nodes[1].read(()).await.unwrap(), (0..50).collect::<Vec<_>>());
    let folder = dir.path().join("member_1");
    let log = folder.join("0000000001.log");
    // In the middle of what is written, so that it stays as it is.
    let intact = std::fs::read(&log).unwrap();
    let used = intact[4096..].chunks(512).take_while(|sector| sector.iter().any(|b| *b != 0));
    let place = 4096 + 512 * (used.count() / 2) + 130;
    let flip = |path: &Path, place: usize| {
        let file = std::fs::OpenOptions::new().read(true).write(true).open(path).unwrap();
        let mut byte = [0];
        std::os::unix::fs::FileExt::read_exact_at(&file, &mut byte, place as u64).unwrap();
        let flipped = [byte[0] ^ 1];
        std::os::unix::fs::FileExt::write_all_at(&file, &flipped, place as u64).unwrap();
    };
    for (path, place, repaired) in [(log, place, 1), (folder.join("identity"), 30, 2)] {
        let before = std::fs::read(&path).unwrap();
        flip(&path, place);
        let limit = std::time::Instant::now() + Duration::from_secs(30);
        while meters.damage.repaired_total() < repaired {
            assert!(std::time::Instant::now() < limit, "{path:?}: {:?}", meters.damage);
            tokio::task::yield_now().await;
        }
        let after = std::fs::read(&path).unwrap();
        assert_eq!(before[place], after[place]);
        assert_eq!(meters.damage.found_total(), meters.damage.repaired_total());
        assert!(meters.damage.open().is_empty());
    }
    assert_eq!(nodes[1].read(()).await.unwrap(), (0..50).collect::<Vec<_>>());
    stop(nodes).await;
}

#[tokio::test]
async fn leadership_moves_to_the_member_asked_for() {
    let (dir, addresses) = (folder(), addresses(3));
    let nodes = cluster(dir.path(), &addresses).await;
    let from = leader(&nodes).await;
    let to = (from + 1) % 3;
    nodes[0].propose(Add(1)).await.unwrap();
    let member: MemberId = nodes[to].status().node.member;
    nodes[(from + 2) % 3].transfer_leadership(Some(member)).await.unwrap();
    until(&nodes[from], "the new leader is known", |status| status.leader == Some(member)).await;
    nodes[from].propose(Add(2)).await.unwrap();
    stop(nodes).await;
}

#[tokio::test]
async fn a_member_that_was_away_for_long_gets_a_snapshot() {
    let (dir, addresses) = (folder(), addresses(3));
    let short = |number: usize| {
        builder(dir.path(), number, &addresses).settings(|settings| {
            settings.checkpoint_entries = 20;
            settings.trailing_entries = 5;
        })
    };
    let mut nodes = Vec::new();
    for number in 0..3 {
        nodes.push(short(number).start().await.unwrap());
    }
    nodes[0].propose(Add(0)).await.unwrap();
    nodes.pop().unwrap().shutdown().await.unwrap();
    for count in 1..100 {
        nodes[0].propose(Add(count)).await.unwrap();
    }
    let back = short(2).start().await.unwrap();
    assert_eq!(back.read(()).await.unwrap(), (0..100).collect::<Vec<_>>());
    nodes.push(back);
    stop(nodes).await;
    // And everything is still there when the snapshots are all there is.
    let mut nodes = Vec::new();
    for number in 0..3 {
        nodes.push(short(number).start().await.unwrap());
    }
    assert_eq!(nodes[2].read(()).await.unwrap(), (0..100).collect::<Vec<_>>());
    stop(nodes).await;
}

#[tokio::test]
async fn a_command_that_is_too_large_is_refused_for_certain() {
    let (dir, addresses) = (folder(), addresses(1));
    let node = builder(dir.path(), 0, &addresses)
        .settings(|settings| settings.command_bytes_max = 7)
        .start()
        .await
        .unwrap();
    assert_eq!(node.propose(Add(1)).await, Err(ProposeError::TooLarge { bytes: 8, bytes_max: 7 }));
    node.shutdown().await.unwrap();
}

#[tokio::test]
async fn a_folder_in_use_and_a_busy_address_are_told_at_start() {
    let (dir, addresses) = (folder(), addresses(2));
    let node = start(dir.path(), 0, &addresses[..1]).await;
    let again = builder(dir.path(), 0, &addresses[..1]).start().await;
    assert!(matches!(again, Err(NodeError::Data(_))), "{:?}", again.err());
    let other = builder(dir.path(), 1, &addresses).address(&addresses[0]).peers(&addresses[..1]);
    let other = other.start().await;
    assert!(matches!(other, Err(NodeError::Bind { .. })), "{:?}", other.err());
    node.shutdown().await.unwrap();
}

#[tokio::test]
async fn the_last_handle_gone_the_node_stops_in_good_order() {
    let (dir, addresses) = (folder(), addresses(1));
    let node = start(dir.path(), 0, &addresses).await;
    node.propose(Add(1)).await.unwrap();
    let mut watch = node.watch_status();
    drop(node);
    while watch.changed().await.is_ok() {}
    assert_eq!(watch.borrow().phase, Phase::Stopping);
    // The directory is free again as soon as the log is closed.
    let node = loop {
        match builder(dir.path(), 0, &addresses).start().await {
            Ok(node) => break node,
            Err(NodeError::Data(raft::error::DataError::Locked { .. })) => {
                tokio::task::yield_now().await
            }
            Err(error) => panic!("{error}"),
        }
    };
    assert_eq!(node.read(()).await.unwrap(), [1]);
    node.shutdown().await.unwrap();
}
