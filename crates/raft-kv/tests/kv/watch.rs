//! Watchers on random histories, under random schedules of everybody who takes part: each hears exactly what it
//! asked for, in order, each revision whole, and never of progress before the events.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use proptest::collection::vec;
use proptest::prelude::*;
use prost::Message as _;
use raft_core::{ApplyContext, EntryId, StateMachine};
use raft_kv::proto::etcdserverpb::watch_request::RequestUnion;
use raft_kv::proto::etcdserverpb::*;
use raft_kv::proto::mvccpb::{Event, KeyValue};
use raft_kv::watch::{
    Deliveries, Frame, Hub, HubLimits, HubRequest, StreamLimits, WatchStream, mailbox,
};
use raft_kv::{Command, Store};

use crate::common::{delete, put, restored};
use crate::model::Model;

/// Little room everywhere, so that everything overflows.
const HUB: HubLimits = HubLimits {
    queue_bytes_max: 900,
    stretch_events_max: 4,
    stretch_bytes_max: 40,
    join_revisions_max: 3,
};
const STREAM: StreamLimits = StreamLimits {
    fragment_bytes_max: 200,
    stretch_events_max: 3,
    stretch_bytes_max: 30,
    watchers_max: 5,
};
const STREAMS: usize = 3;

#[derive(Clone, Debug)]
enum Step {
    Put(&'static str, String),
    Delete(&'static str),
    /// Everything in one revision.
    DeleteAll,
    /// Several keys in one revision.
    PutAll,
    Compact(i64),
    Publish,
    Restore,
    Create(usize, WatchCreateRequest),
    Cancel(usize, i64),
    Progress(usize),
    Tick(usize),
    Hub,
    Dispatch,
    Run(usize),
}

const KEYS: [&str; 4] = ["a", "ab", "b", "c"];

fn create() -> impl Strategy<Value = WatchCreateRequest> {
    let range = prop_oneof![
        3 => Just(("a", "")),
        2 => Just(("a", "b")),
        1 => Just(("ab", "c")),
        2 => Just(("\0", "\0")),
        1 => Just(("", "")),
        1 => Just(("b", "a")),
    ];
    let start = prop_oneof![4 => Just(0), 6 => 1..30_i64, 1 => Just(-1)];
    let id = prop_oneof![3 => Just(0), 1 => 1..4_i64];
    let filters = vec(0..2_i32, 0..2);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>());
    (range, start, id, filters, flags).prop_map(|(range, start, id, filters, flags)| {
        WatchCreateRequest {
            key: range.0.into(),
            range_end: range.1.into(),
            start_revision: start,
            progress_notify: flags.0,
            filters,
            prev_kv: flags.1,
            watch_id: id,
            fragment: flags.2,
        }
    })
}

fn step() -> impl Strategy<Value = Step> {
    let key = || prop::sample::select(&KEYS[..]);
    let stream = || 0..STREAMS;
    prop_oneof![
        12 => (key(), "[x-z]{0,30}").prop_map(|(key, value)| Step::Put(key, value)),
        4 => key().prop_map(Step::Delete),
        1 => Just(Step::DeleteAll),
        2 => Just(Step::PutAll),
        1 => (1..30_i64).prop_map(Step::Compact),
        8 => Just(Step::Publish),
        1 => Just(Step::Restore),
        6 => (stream(), create()).prop_map(|(stream, create)| Step::Create(stream, create)),
        2 => (stream(), 0..4_i64).prop_map(|(stream, id)| Step::Cancel(stream, id)),
        3 => stream().prop_map(Step::Progress),
        1 => stream().prop_map(Step::Tick),
        12 => Just(Step::Hub),
        4 => Just(Step::Dispatch),
        20 => stream().prop_map(Step::Run),
    ]
}

/// Every event that ever happened, with the version before it.
#[derive(Default)]
struct Truth {
    events: Vec<Event>,
    compact_revision: i64,
}

/// What a client knows of one of its watchers.
#[derive(Debug)]
struct Seen {
    request: WatchCreateRequest,
    /// The first revision that it asked for.
    first: i64,
    received: Vec<Event>,
    in_fragments: bool,
}

impl Seen {
    fn wants(&self, event: &Event) -> bool {
        let kv = event.kv.as_ref().unwrap();
        let key: &[u8] = if self.request.key.is_empty() { b"\0" } else { &self.request.key };
        let in_range = match self.request.range_end.as_ref() {
            b"" => kv.key == key,
            b"\0" => kv.key >= key,
            end => kv.key >= key && kv.key < end,
        };
        in_range && kv.mod_revision >= self.first && !self.request.filters.contains(&event.r#type)
    }

    /// Everything that it wants up to `revision` was received, and nothing else.
    fn check(&self, truth: &Truth, revision: i64) {
        let expected: Vec<&Event> = truth
            .events
            .iter()
            .filter(|event| {
                event.kv.as_ref().unwrap().mod_revision <= revision && self.wants(event)
            })
            .collect();
        assert_eq!(self.received.len(), expected.len(), "{self:?} up to {revision}: {expected:?}");
        for (received, expected) in self.received.iter().zip(expected) {
            assert_eq!((&received.kv, received.r#type), (&expected.kv, expected.r#type));
            let at = received.kv.as_ref().unwrap().mod_revision - 1;
            match &received.prev_kv {
                Some(_) => assert!(self.request.prev_kv && received.prev_kv == expected.prev_kv),
                None => assert!(
                    !self.request.prev_kv
                        || expected.prev_kv.is_none()
                        || at < truth.compact_revision,
                    "no previous version in {received:?}"
                ),
            }
        }
    }
}

struct Client {
    stream: WatchStream,
    deliveries: Deliveries,
    /// Requests whose first answer has not come, in order.
    asked: VecDeque<WatchCreateRequest>,
    seen: BTreeMap<i64, Seen>,
}

struct World {
    store: Store,
    model: Model,
    truth: Truth,
    hub: Hub,
    /// To the hub.
    requests: VecDeque<HubRequest>,
    clients: Vec<Client>,
}

impl World {
    fn new() -> Self {
        let store = Store::new();
        let mut requests = VecDeque::new();
        let client = |stream: u64| {
            let (sender, deliveries) = mailbox();
            requests.push_back(HubRequest::Open { stream, mailbox: sender });
            Client {
                stream: WatchStream::new(stream, store.reader(), STREAM),
                deliveries,
                asked: VecDeque::new(),
                seen: BTreeMap::new(),
            }
        };
        let clients = (0..STREAMS as u64).map(client).collect();
        let hub = Hub::new(store.reader(), HUB);
        let truth = Truth { events: Vec::new(), compact_revision: -1 };
        Self { store, model: Model::new(), truth, hub, requests, clients }
    }

    fn write(&mut self, txn: TxnRequest) {
        let before = self.model.revision;
        self.model.txn(&txn).unwrap();
        let answer = self.store.apply(ApplyContext::at(EntryId::new(1, 1)), Command::txn(txn));
        answer.unwrap();
        for mut event in self.model.events(before + 1).unwrap() {
            let key = event.kv.as_ref().unwrap().key.clone();
            let request = RangeRequest { key, revision: before, ..RangeRequest::default() };
            event.prev_kv = self.model.range(&request).unwrap().kvs.pop();
            self.truth.events.push(event);
        }
    }

    fn compact(&mut self, revision: i64) {
        let request = CompactionRequest { revision, physical: true };
        let answer =
            self.store.apply(ApplyContext::at(EntryId::new(1, 1)), Command::compact(request));
        if answer.is_ok() {
            // The model forgets nothing: what was deleted is compared with what is received.
            self.truth.compact_revision = revision;
        }
    }

    fn ask(&mut self, client: usize, union: RequestUnion) {
        self.clients[client].stream.handle(WatchRequest { request_union: Some(union) });
        self.pass_on(client);
    }

    fn pass_on(&mut self, client: usize) {
        self.requests.extend(self.clients[client].stream.take_requests());
    }

    /// One thing that a stream has to do. False when there is nothing.
    fn run(&mut self, client: usize) -> bool {
        let this = &mut self.clients[client];
        if let Some(frame) = this.stream.take_frame() {
            this.receive(&frame, &self.truth);
            return true;
        }
        if let Some(delivery) = this.deliveries.take() {
            this.stream.deliver(delivery);
        } else if this.stream.is_behind() {
            this.stream.catch_up();
        } else {
            return false;
        }
        self.pass_on(client);
        true
    }

    /// Until nobody has anything to do.
    fn settle(&mut self) {
        self.store.flush();
        for _ in 0..10_000 {
            let mut busy = false;
            while let Some(request) = self.requests.pop_front() {
                self.hub.handle(request);
                busy = true;
            }
            self.hub.dispatch();
            for client in 0..STREAMS {
                busy |= self.run(client);
            }
            if !busy {
                return;
            }
        }
        panic!("it never ends");
    }
}

impl Client {
    fn receive(&mut self, frame: &Frame, truth: &Truth) {
        let mut bytes = Vec::new();
        frame.encode(ResponseHeader::default(), &mut bytes);
        let response = WatchResponse::decode(&bytes[..]).unwrap();
        let revision = response.header.unwrap().revision;
        let id = response.watch_id;
        if response.created {
            let request = self.asked.pop_front().unwrap();
            let first = match request.start_revision {
                0 => revision + 1,
                start => start,
            };
            if response.canceled {
                assert_eq!(id, -1);
                let reason = response.cancel_reason.as_str();
                let expected = if request.key == "b" && request.range_end == "a" {
                    "mvcc: watcher range is empty"
                } else if request.start_revision < 0 {
                    "mvcc: required revision has been compacted"
                } else if request.watch_id != 0 && self.seen.contains_key(&request.watch_id) {
                    "mvcc: duplicate watch ID provided on the WatchStream"
                } else {
                    "etcdserver: too many requests"
                };
                assert_eq!(reason, expected);
                return;
            }
            assert!(request.watch_id == 0 || request.watch_id == id);
            let seen = Seen { request, first, received: Vec::new(), in_fragments: false };
            assert!(self.seen.insert(id, seen).is_none(), "{id} is used twice");
            return;
        }
        if response.canceled {
            let seen = self.seen.remove(&id).unwrap();
            assert!(!seen.in_fragments);
            if response.compact_revision != 0 {
                assert!(response.compact_revision <= truth.compact_revision);
                let last = seen.received.last().map_or(0, mod_revision);
                assert!(seen.first.max(last) < response.compact_revision, "{seen:?}");
            }
            return;
        }
        if id == -1 {
            for seen in self.seen.values() {
                if seen.first <= revision {
                    seen.check(truth, revision);
                }
                assert!(!seen.in_fragments);
            }
            return;
        }
        let seen = self.seen.get_mut(&id).unwrap();
        if let (Some(first), Some(last)) = (response.events.first(), seen.received.last()) {
            let (first, last) = (mod_revision(first), mod_revision(last));
            assert!(first > last || seen.in_fragments && first == last, "a revision is split");
        }
        if response.events.is_empty() {
            assert!(seen.request.progress_notify, "an empty answer that nobody asked for");
        }
        assert!(!response.fragment || seen.request.fragment);
        seen.in_fragments = response.fragment;
        seen.received.extend(response.events);
        if !response.fragment && seen.first <= revision {
            seen.check(truth, revision);
        }
    }
}

fn mod_revision(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv: &KeyValue| kv.mod_revision)
}

fn op(request: request_op::Request) -> RequestOp {
    RequestOp { request: Some(request) }
}

fn txn(ops: Vec<RequestOp>) -> TxnRequest {
    TxnRequest { success: ops, ..TxnRequest::default() }
}

fn put_op(key: &'static str, value: String) -> RequestOp {
    op(request_op::Request::RequestPut(PutRequest {
        key: key.into(),
        value: value.into(),
        ..PutRequest::default()
    }))
}

fn delete_op(key: &'static str, range_end: &'static str) -> RequestOp {
    op(request_op::Request::RequestDeleteRange(DeleteRangeRequest {
        key: key.into(),
        range_end: range_end.into(),
        prev_kv: false,
    }))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1500, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn everybody_hears_exactly_what_was_asked_for(steps in vec(step(), 1..150)) {
        let mut world = World::new();
        for step in steps {
            match step {
                Step::Put(key, value) => world.write(txn(vec![put_op(key, value)])),
                Step::Delete(key) => world.write(txn(vec![delete_op(key, "")])),
                Step::DeleteAll => world.write(txn(vec![delete_op("a", "z")])),
                Step::PutAll => {
                    world.write(txn(KEYS.iter().map(|key| put_op(key, "long".repeat(9))).collect()));
                }
                Step::Compact(revision) => world.compact(revision),
                Step::Publish => world.store.flush(),
                Step::Restore => {
                    let other = restored(&world.store, 256);
                    let mut snapshot = raft_core::MemorySnapshot::default();
                    raft_core::Snapshot::write(other.snapshot(), &mut snapshot).unwrap();
                    world.store.restore(&snapshot).unwrap();
                }
                Step::Create(client, request) => {
                    world.clients[client].asked.push_back(request.clone());
                    world.ask(client, RequestUnion::CreateRequest(request));
                }
                Step::Cancel(client, watch_id) => {
                    world.ask(client, RequestUnion::CancelRequest(WatchCancelRequest { watch_id }));
                }
                Step::Progress(client) => {
                    world.ask(client, RequestUnion::ProgressRequest(WatchProgressRequest {}));
                }
                Step::Tick(client) => {
                    world.clients[client].stream.tick();
                    world.pass_on(client);
                }
                Step::Hub => {
                    if let Some(request) = world.requests.pop_front() {
                        world.hub.handle(request);
                    }
                }
                Step::Dispatch => world.hub.dispatch(),
                Step::Run(client) => {
                    world.run(client);
                }
            }
        }
        world.settle();
        let revision = world.store.revision();
        for client in &world.clients {
            prop_assert!(client.asked.is_empty(), "every watcher is answered");
            for seen in client.seen.values() {
                seen.check(&world.truth, revision);
            }
        }
    }
}

/// A stream whose client takes everything at once, at a hub that is always at work.
fn one_client(store: &Store) -> World {
    let mut world = World::new();
    let (sender, deliveries) = mailbox();
    world.requests.clear();
    world.requests.push_back(HubRequest::Open { stream: 9, mailbox: sender });
    world.hub = Hub::new(store.reader(), HubLimits::default());
    world.clients.truncate(1);
    world.clients[0].stream = WatchStream::new(9, store.reader(), STREAM);
    world.clients[0].deliveries = deliveries;
    world
}

#[test]
fn a_queue_that_is_full_makes_a_stream_read_history_and_bounds_its_memory() {
    let mut store = Store::new();
    let mut world = one_client(&store);
    let watch = WatchCreateRequest { key: "k".into(), ..WatchCreateRequest::default() };
    world.clients[0]
        .stream
        .handle(WatchRequest { request_union: Some(RequestUnion::CreateRequest(watch)) });
    assert!(world.clients[0].stream.take_frame().unwrap().created);
    world.requests.extend(world.clients[0].stream.take_requests());
    while let Some(request) = world.requests.pop_front() {
        world.hub.handle(request);
    }
    // 64 MiB, of which the client takes nothing: the hub lets go of it after 4 MiB.
    let value = "v".repeat(1 << 20);
    for _ in 0..64 {
        crate::common::apply(&mut store, put("k", &value)).unwrap();
        world.hub.dispatch();
    }
    assert!(world.hub.is_idle());
    let mut waiting = 0;
    let mut behind = false;
    while let Some(delivery) = world.clients[0].deliveries.take() {
        waiting += 1;
        behind = matches!(delivery, raft_kv::watch::Delivery::Behind { .. });
        world.clients[0].stream.deliver(delivery);
    }
    assert!(behind && waiting < 8, "{waiting} deliveries wait");
    let mut received = 0;
    while world.clients[0].stream.is_behind() {
        world.clients[0].stream.catch_up();
        while world.clients[0].stream.take_frame().is_some() {
            received += 1;
        }
    }
    assert!(received >= 64 - 8, "{received}");
}

#[test]
fn progress_waits_until_everybody_has_caught_up() {
    let mut store = Store::new();
    for i in 0..50 {
        crate::common::apply(&mut store, put("k", &i.to_string())).unwrap();
        crate::common::apply(&mut store, delete("k")).unwrap();
    }
    let mut world = one_client(&store);
    let stream = &mut world.clients[0].stream;
    for union in [
        RequestUnion::CreateRequest(WatchCreateRequest {
            key: Bytes::from("k"),
            start_revision: 2,
            ..WatchCreateRequest::default()
        }),
        RequestUnion::ProgressRequest(WatchProgressRequest {}),
    ] {
        stream.handle(WatchRequest { request_union: Some(union) });
    }
    let mut events = 0;
    for _ in 0..1000 {
        let this = &mut world.clients[0];
        if this.stream.is_behind() {
            this.stream.catch_up();
        }
        world.requests.extend(this.stream.take_requests());
        while let Some(request) = world.requests.pop_front() {
            world.hub.handle(request);
        }
        while let Some(delivery) = world.clients[0].deliveries.take() {
            world.clients[0].stream.deliver(delivery);
        }
        while let Some(frame) = world.clients[0].stream.take_frame() {
            if frame.watch_id == -1 {
                assert_eq!((events, frame.revision), (100, 101));
                return;
            }
            let mut bytes = Vec::new();
            frame.encode(ResponseHeader::default(), &mut bytes);
            events += WatchResponse::decode(&bytes[..]).unwrap().events.len();
        }
    }
    panic!("no progress");
}
