//! Watches: what clients are promised about hearing of changes.

use std::collections::VecDeque;
use std::time::{Duration, Instant};

use raft_kv::proto::etcdserverpb::watch_request::RequestUnion;
use raft_kv::proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, PutRequest, RequestOp, TxnRequest, WatchCancelRequest,
    WatchCreateRequest, WatchProgressRequest, WatchRequest, WatchResponse, request_op,
};
use raft_kv::proto::mvccpb::{Event, event::EventType};
use raft_server::proto::etcdserverpb::watch_client::WatchClient;
use tokio::sync::mpsc;
use tokio_stream::wrappers::UnboundedReceiverStream;
use tonic::transport::Channel;
use tonic::{Code, Request, Status, Streaming};

use crate::support::{Members, PATIENCE, kv, put, until_serving};

fn client(address: &str) -> WatchClient<Channel> {
    // The channel of the others gives up on answers that take long; this one must not.
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    WatchClient::new(endpoint.connect_lazy()).max_decoding_message_size(usize::MAX)
}

/// One stream.
pub(crate) struct Watch {
    requests: mpsc::UnboundedSender<WatchRequest>,
    answers: Streaming<WatchResponse>,
}

impl Watch {
    pub(crate) async fn open(address: &str) -> Self {
        Self::open_with(address, false).await.unwrap()
    }

    async fn open_with(address: &str, needs_leader: bool) -> Result<Self, Status> {
        let (requests, stream) = mpsc::unbounded_channel();
        let mut request = Request::new(UnboundedReceiverStream::new(stream));
        if needs_leader {
            request.metadata_mut().insert("hasleader", "true".parse().unwrap());
        }
        let answers = client(address).watch(request).await?.into_inner();
        Ok(Self { requests, answers })
    }

    fn ask(&self, union: RequestUnion) {
        self.requests.send(WatchRequest { request_union: Some(union) }).unwrap();
    }

    pub(crate) async fn next(&mut self) -> WatchResponse {
        let answer = tokio::time::timeout(PATIENCE, self.answers.message()).await;
        answer.expect("no answer").unwrap().expect("the stream has ended")
    }

    pub(crate) async fn create(&mut self, request: WatchCreateRequest) -> WatchResponse {
        self.ask(RequestUnion::CreateRequest(request));
        let answer = self.next().await;
        assert!(answer.created, "{answer:?}");
        answer
    }

    /// The next `count` events.
    async fn events(&mut self, count: usize) -> Vec<Event> {
        let mut events = Vec::new();
        while events.len() < count {
            let answer = self.next().await;
            assert!(!answer.canceled && !answer.created, "{answer:?}");
            events.extend(answer.events);
        }
        assert_eq!(events.len(), count, "{events:?}");
        events
    }
}

fn key(key: &str) -> WatchCreateRequest {
    WatchCreateRequest { key: key.to_owned().into(), ..WatchCreateRequest::default() }
}

fn prefix(prefix: &str, end: &str, start_revision: i64) -> WatchCreateRequest {
    WatchCreateRequest { range_end: end.to_owned().into(), start_revision, ..key(prefix) }
}

async fn delete(address: &str, key: &str, range_end: &str) {
    let (key, range_end) = (key.to_owned().into(), range_end.to_owned().into());
    let request = DeleteRangeRequest { key, range_end, prev_kv: false };
    kv(address).delete_range(request).await.unwrap();
}

fn short(event: &Event) -> (EventType, String, i64) {
    let kv = event.kv.as_ref().unwrap();
    (event.r#type(), String::from_utf8(kv.key.to_vec()).unwrap(), kv.mod_revision)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_member_tells_the_same_story() {
    let members = Members::start(3);
    members.leader().await;
    let mut watches = Vec::new();
    for address in &members.addresses {
        let mut watch = Watch::open(address).await;
        let created = watch.create(prefix("a", "b", 2)).await;
        assert_eq!((created.watch_id, created.header.unwrap().revision), (0, 1));
        watches.push(watch);
    }
    for n in 0..30 {
        put(&members.addresses[n % 3], &format!("a{}", n % 7), &n.to_string()).await.unwrap();
        put(&members.addresses[n % 3], "b", "elsewhere").await.unwrap();
    }
    delete(&members.addresses[0], "a", "b").await;
    let mut stories = Vec::new();
    for watch in &mut watches {
        stories.push(watch.events(37).await);
    }
    assert_eq!(stories[0], stories[1]);
    assert_eq!(stories[0], stories[2]);
    let last: Vec<_> = stories[0][30..].iter().map(short).collect();
    let deleted = (0..7).map(|n| (EventType::Delete, format!("a{n}"), 62)).collect::<Vec<_>>();
    assert_eq!(last, deleted, "one revision, in the order of the keys");

    // From the past, on any member, after everything has happened.
    for address in &members.addresses {
        let mut watch = Watch::open(address).await;
        watch.create(prefix("a", "b", 2)).await;
        assert_eq!(watch.events(37).await, stories[0]);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watchers_of_one_stream_come_and_go_with_etcds_answers() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    let mut watch = Watch::open(address).await;

    // Ids from 0, or as asked; twice is refused.
    assert_eq!(watch.create(key("k")).await.watch_id, 0);
    assert_eq!(watch.create(key("k")).await.watch_id, 1);
    let nine = WatchCreateRequest { watch_id: 9, ..key("k") };
    assert_eq!(watch.create(nine.clone()).await.watch_id, 9);
    let twice = watch.create(nine).await;
    assert_eq!((twice.watch_id, twice.canceled), (-1, true));
    assert_eq!(twice.cancel_reason, "mvcc: duplicate watch ID provided on the WatchStream");
    let empty = watch.create(prefix("b", "a", 0)).await;
    assert_eq!((empty.watch_id, empty.canceled), (-1, true));
    assert_eq!(empty.cancel_reason, "mvcc: watcher range is empty");
    let negative = watch.create(prefix("b", "", -5)).await;
    assert_eq!((negative.watch_id, negative.canceled), (-1, true));
    assert_eq!(negative.cancel_reason, "mvcc: required revision has been compacted");

    // Everybody hears; who is cancelled hears no more. To cancel nobody is no event.
    watch.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 77 }));
    watch.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 1 }));
    let canceled = watch.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled, canceled.created), (1, true, false));
    assert_eq!((canceled.compact_revision, canceled.cancel_reason.as_str()), (0, ""));
    put(address, "k", "1").await.unwrap();
    let mut told = vec![watch.next().await.watch_id, watch.next().await.watch_id];
    told.sort_unstable();
    assert_eq!(told, [0, 9]);
    watch.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 0 }));
    assert!(watch.next().await.canceled);
    watch.ask(RequestUnion::CancelRequest(WatchCancelRequest { watch_id: 9 }));
    assert!(watch.next().await.canceled);

    // The version before, and what is not wanted.
    let with_prev = WatchCreateRequest { prev_kv: true, watch_id: 20, ..key("k") };
    let no_puts = WatchCreateRequest { filters: vec![0], watch_id: 21, ..key("k") };
    let no_deletes = WatchCreateRequest { filters: vec![1], watch_id: 22, ..key("k") };
    for request in [with_prev, no_puts, no_deletes] {
        watch.create(request).await;
    }
    put(address, "k", "2").await.unwrap();
    delete(address, "k", "").await;
    put(address, "k", "3").await.unwrap();
    let mut told = VecDeque::new();
    for _ in 0..3 + 1 + 2 {
        let answer = watch.next().await;
        told.push_back((answer.watch_id, answer.events));
        if told.iter().map(|(_, events)| events.len()).sum::<usize>() == 6 {
            break;
        }
    }
    let of = |id: i64| -> Vec<Event> {
        told.iter().filter(|told| told.0 == id).flat_map(|told| told.1.clone()).collect()
    };
    let kinds = |id: i64| of(id).iter().map(Event::r#type).collect::<Vec<_>>();
    assert_eq!(kinds(20), [EventType::Put, EventType::Delete, EventType::Put]);
    assert_eq!(kinds(21), [EventType::Delete]);
    assert_eq!(kinds(22), [EventType::Put, EventType::Put]);
    let before: Vec<_> =
        of(20).iter().map(|event| event.prev_kv.clone().map(|kv| kv.value)).collect();
    assert_eq!(before, [Some("1".into()), Some("2".into()), None]);
    let tombstone = of(21)[0].kv.clone().unwrap();
    assert_eq!((tombstone.create_revision, tombstone.version, tombstone.mod_revision), (0, 0, 4));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_compacted_cannot_be_watched_and_the_stream_lives_on() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    for n in 0..10 {
        put(address, "k", &n.to_string()).await.unwrap();
    }
    kv(address).compact(CompactionRequest { revision: 8, physical: true }).await.unwrap();
    let mut watch = Watch::open(address).await;
    let created = watch.create(prefix("k", "", 3)).await;
    assert!(!created.canceled);
    let canceled = watch.next().await;
    assert_eq!((canceled.watch_id, canceled.canceled), (created.watch_id, true));
    assert_eq!((canceled.compact_revision, canceled.cancel_reason.as_str()), (8, ""));
    // The compacted revision itself can be.
    watch.create(WatchCreateRequest { prev_kv: true, ..prefix("k", "", 8) }).await;
    let events = watch.events(4).await;
    assert_eq!(events.iter().map(|event| short(event).2).collect::<Vec<_>>(), [8, 9, 10, 11]);
    assert_eq!(events[0].prev_kv, None, "its version before is forgotten");
    assert!(events[1].prev_kv.is_some());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn progress_is_never_ahead_of_events() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    let mut watch = Watch::open(address).await;
    watch.create(prefix("\0", "\0", 2)).await;
    let writer = async {
        for n in 0..300 {
            put(address, &n.to_string(), "v").await.unwrap();
        }
    };
    let reader = async {
        let mut seen = 1;
        let mut progress = 0;
        watch.ask(RequestUnion::ProgressRequest(WatchProgressRequest {}));
        while seen < 301 {
            let answer = watch.next().await;
            if answer.watch_id == -1 {
                assert!(answer.events.is_empty());
                assert_eq!(answer.header.unwrap().revision, seen, "ahead of the events");
                progress += 1;
                watch.ask(RequestUnion::ProgressRequest(WatchProgressRequest {}));
            }
            for event in answer.events {
                seen += 1;
                assert_eq!(short(&event).2, seen, "in order, each once");
            }
        }
        progress
    };
    let ((), progress) = tokio::join!(writer, reader);
    assert!(progress > 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_watchers_hear_how_far_they_are_when_they_asked_for_it() {
    let mut members = Members::configure(1);
    let text = std::fs::read_to_string(members.config()).unwrap();
    let text =
        text.replace("heartbeat_interval", "watch_progress_interval: 200, heartbeat_interval");
    std::fs::write(members.config(), text).unwrap();
    members.start_one(0);
    members.leader().await;
    let address = &members.addresses[0];
    let mut watch = Watch::open(address).await;
    watch.create(WatchCreateRequest { progress_notify: true, ..key("k") }).await;
    watch.create(key("k")).await;
    put(address, "other", "v").await.unwrap();
    let answer = loop {
        let answer = watch.next().await;
        assert_eq!(answer.watch_id, 0);
        if answer.header.unwrap().revision == 2 {
            break answer;
        }
    };
    assert!(answer.events.is_empty() && !answer.canceled && !answer.created);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_large_revision_is_whole_or_in_fragments_as_asked() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    let mut watch = Watch::open(address).await;
    watch.create(prefix("a", "b", 0)).await;
    watch.create(WatchCreateRequest { fragment: true, ..prefix("a", "b", 0) }).await;
    // Two megabytes in one revision: more than a request may have, so what is there is deleted at once.
    for n in 0..5 {
        put(address, &format!("a{n}"), &"v".repeat(500_000)).await.unwrap();
    }
    let mut rest = watch.events(10).await;
    rest.clear();
    watch
        .create(WatchCreateRequest {
            prev_kv: true,
            fragment: true,
            watch_id: 5,
            ..prefix("a", "b", 0)
        })
        .await;
    delete(address, "a", "b").await;
    let mut fragments = Vec::new();
    let mut whole = 0;
    while fragments.iter().sum::<usize>() < 5 || whole < 2 {
        let answer = watch.next().await;
        if answer.watch_id == 5 {
            fragments.push(answer.events.len());
            assert_eq!(answer.fragment, fragments.iter().sum::<usize>() < 5, "{fragments:?}");
        } else {
            assert_eq!((answer.events.len(), answer.fragment), (5, false));
            whole += 1;
        }
    }
    assert!(fragments.len() > 1, "{fragments:?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_does_not_read_holds_up_nobody_and_misses_nothing() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    let mut lazy = Watch::open(address).await;
    lazy.create(key("k")).await;
    let mut eager = Watch::open(address).await;
    eager.create(key("k")).await;
    let value = "v".repeat(400_000);
    for n in 0..100 {
        put(address, "k", &value).await.unwrap();
        let events = eager.events(1).await;
        assert_eq!(short(&events[0]).2, 2 + n);
    }
    // 40 MB, far more than a queue holds: the lazy one is told from history now.
    let events = lazy.events(100).await;
    let revisions: Vec<i64> = events.iter().map(|event| short(event).2).collect();
    assert_eq!(revisions, (2..102).collect::<Vec<_>>());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watcher_goes_on_elsewhere_when_its_member_dies() {
    let mut members = Members::start(3);
    members.leader().await;
    let mut watch = Watch::open(&members.addresses[0]).await;
    watch.create(key("k")).await;
    let survivor = members.addresses[1].clone();
    put(&survivor, "k", "1").await.unwrap();
    assert_eq!(short(&watch.events(1).await[0]).2, 2);
    members.kill9(0);
    assert!(watch.answers.message().await.is_err(), "the stream breaks");
    until_serving(&survivor).await;
    let mut written = put(&survivor, "k", "2").await;
    let since = Instant::now();
    while written.is_err() && since.elapsed() < PATIENCE {
        written = put(&survivor, "k", "2").await;
    }
    let revision = written.unwrap();
    let mut watch = Watch::open(&survivor).await;
    watch.create(prefix("k", "", 3)).await;
    let events = watch.events(usize::try_from(revision).unwrap() - 2).await;
    assert_eq!(short(events.last().unwrap()).2, revision);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn streams_that_need_a_leader_end_without_one_and_all_end_with_the_member() {
    let mut members = Members::start(3);
    members.leader().await;
    let address = members.addresses[0].clone();
    let mut needy = Watch::open_with(&address, true).await.unwrap();
    needy.create(key("k")).await;
    let mut patient = Watch::open(&address).await;
    patient.create(key("k")).await;
    members.kill9(1);
    members.kill9(2);
    let ended = tokio::time::timeout(PATIENCE, needy.answers.message()).await.unwrap();
    let status = ended.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::Unavailable, "etcdserver: no leader"));
    let refused = Watch::open_with(&address, true).await.err().unwrap();
    assert_eq!((refused.code(), refused.message()), (Code::Unavailable, "etcdserver: no leader"));

    members.process(0).signal(rustix::process::Signal::TERM);
    let ended = tokio::time::timeout(PATIENCE, patient.answers.message()).await.unwrap();
    let status = ended.unwrap_err();
    assert_eq!(
        (status.code(), status.message()),
        (Code::Unavailable, "etcdserver: server stopped")
    );
    assert!(members.process(0).ended_within(Duration::from_secs(10)).success());
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_writes_of_a_transaction_arrive_together() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    let mut watch = Watch::open(address).await;
    watch.create(prefix("a", "b", 0)).await;
    for _ in 0..20 {
        let ops = (0..50).map(|n| RequestOp {
            request: Some(request_op::Request::RequestPut(PutRequest {
                key: format!("a{n:02}").into(),
                ..PutRequest::default()
            })),
        });
        let txn = TxnRequest { success: ops.collect(), ..TxnRequest::default() };
        kv(address).txn(txn).await.unwrap();
    }
    let mut seen = 0;
    while seen < 1000 {
        let answer = watch.next().await;
        seen += answer.events.len();
        assert_eq!(answer.events.len() % 50, 0, "a revision is split");
    }
}
