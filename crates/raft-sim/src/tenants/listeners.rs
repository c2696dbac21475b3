//! Clients that watch: each has a stream on some member, at its own pace, and goes on elsewhere when that is gone.

use std::collections::{BTreeMap, VecDeque};

use prost::Message as _;
use raft_core::{NodeId, Rng};
use raft_kv::Reader;
use raft_kv::proto::etcdserverpb::watch_create_request::FilterType;
use raft_kv::proto::etcdserverpb::watch_request::RequestUnion;
use raft_kv::proto::etcdserverpb::{
    ResponseHeader, WatchCancelRequest, WatchCreateRequest, WatchProgressRequest, WatchRequest,
    WatchResponse,
};
use raft_kv::watch::{
    Deliveries, Frame, Hub, HubLimits, HubRequest, StreamLimits, WatchStream, mailbox,
};

use super::model::{Model, name};
use super::watch::Watch;

/// Clients that watch.
const LISTENERS: u64 = 4;
/// Watchers of one of them, at most.
const WATCHES_MAX: u64 = 3;

/// A client with one stream at a time.
#[derive(Debug)]
pub(super) struct Listener {
    watches: Vec<Watch>,
    /// The member that it listens to.
    at: Option<NodeId>,
    /// How seldom it takes what is there: the higher, the slower.
    pace: u64,
}

/// What a member has for one listener.
#[derive(Debug)]
struct Served {
    stream: WatchStream,
    deliveries: Deliveries,
}

/// A member's hub and the streams that it serves.
#[derive(Debug)]
pub(super) struct Station {
    reader: Reader,
    hub: Hub,
    /// To the hub, in order.
    requests: VecDeque<HubRequest>,
    /// By listener.
    served: BTreeMap<usize, (u64, Served)>,
    next_stream: u64,
    limits: StreamLimits,
}

/// Little room everywhere, so that everything overflows, or as much as the server has.
fn limits(tight: bool) -> (HubLimits, StreamLimits) {
    if tight {
        let hub = HubLimits {
            queue_bytes_max: 900,
            stretch_events_max: 4,
            stretch_bytes_max: 40,
            join_revisions_max: 3,
        };
        let stream = StreamLimits {
            fragment_bytes_max: 200,
            stretch_events_max: 3,
            stretch_bytes_max: 30,
            watchers_max: 5,
        };
        return (hub, stream);
    }
    let stream = StreamLimits {
        fragment_bytes_max: 2 << 20,
        stretch_events_max: 1024,
        stretch_bytes_max: 1 << 20,
        watchers_max: 16_384,
    };
    (HubLimits::default(), stream)
}

impl Station {
    pub(super) fn new(reader: Reader, tight: bool) -> Self {
        let (hub, limits) = limits(tight);
        Self {
            hub: Hub::new(reader.clone(), hub),
            reader,
            requests: VecDeque::new(),
            served: BTreeMap::new(),
            next_stream: 0,
            limits,
        }
    }

    fn open(&mut self, listener: usize) {
        let number = self.next_stream;
        self.next_stream += 1;
        let (sender, deliveries) = mailbox();
        self.requests.push_back(HubRequest::Open { stream: number, mailbox: sender });
        let stream = WatchStream::new(number, self.reader.clone(), self.limits);
        self.served.insert(listener, (number, Served { stream, deliveries }));
    }

    fn close(&mut self, listener: usize) {
        if let Some((stream, _)) = self.served.remove(&listener) {
            self.requests.push_back(HubRequest::Close { stream });
        }
    }

    /// A request of the listener whose stream this is.
    fn take_in(&mut self, listener: usize, request: WatchRequest) {
        if let Some((_, served)) = self.served.get_mut(&listener) {
            served.stream.handle(request);
            self.requests.extend(served.stream.take_requests());
        }
    }

    fn tick(&mut self, listener: usize) {
        if let Some((_, served)) = self.served.get_mut(&listener) {
            served.stream.tick();
            self.requests.extend(served.stream.take_requests());
        }
    }

    /// The hub does some of what it has to do.
    fn work(&mut self, rng: &mut Rng) {
        for _ in 0..1 + rng.below(4) {
            let Some(request) = self.requests.pop_front() else { break };
            self.hub.handle(request);
        }
        if self.lags() && rng.chance(2, 3) {
            self.hub.dispatch();
        }
    }

    fn lags(&self) -> bool {
        !self.hub.is_idle() && self.hub.next() <= self.reader.revision()
    }

    /// Whether the hub has something to do.
    fn has_work(&self) -> bool {
        !self.requests.is_empty() || self.lags()
    }

    /// A stream does one thing: what its client is told, if anything; `None` when there is nothing to do.
    fn step(&mut self, listener: usize) -> Option<Option<Frame>> {
        let (_, served) = self.served.get_mut(&listener)?;
        if let Some(frame) = served.stream.take_frame() {
            return Some(Some(frame));
        }
        if let Some(delivery) = served.deliveries.take() {
            served.stream.deliver(delivery);
        } else if served.stream.is_behind() {
            served.stream.catch_up();
        } else {
            return None;
        }
        self.requests.extend(served.stream.take_requests());
        Some(None)
    }
}

/// All clients that watch.
#[derive(Debug, Default)]
pub(super) struct Listeners {
    all: Vec<Listener>,
    /// What they heard and what they were told of themselves, for the marks.
    pub(super) events: u64,
    pub(super) progress: u64,
    pub(super) compacted: u64,
    pub(super) resumed: u64,
}

impl Listeners {
    /// Draws who watches what of so many keys.
    fn draw(&mut self, keys: u64, rng: &mut Rng) {
        for _ in 0..LISTENERS {
            let watches =
                (1..=1 + rng.below(WATCHES_MAX)).map(|id| Watch::new(draw(id, keys, rng)));
            let watches = watches.collect();
            self.all.push(Listener { watches, at: None, pace: [1, 1, 2, 8][below(rng, 4)] });
        }
    }

    /// Nobody is there any more who spoke to those who listened to this member.
    pub(super) fn lost(&mut self, node: NodeId) {
        for listener in self.all.iter_mut().filter(|listener| listener.at == Some(node)) {
            listener.at = None;
            listener.watches.iter_mut().for_each(Watch::lost);
        }
    }

    /// A member serves those who listen to it, and those who look for somebody. True when there is more to do.
    pub(super) fn attend(
        &mut self,
        node: NodeId,
        station: &mut Station,
        (model, keys): (&Model, u64),
        rng: &mut Rng,
    ) -> bool {
        if self.all.is_empty() {
            self.draw(keys, rng);
        }
        station.work(rng);
        let mut busy = false;
        for number in 0..self.all.len() {
            match self.all[number].at {
                None => {
                    if rng.chance(1, 4) {
                        self.connect(number, node, station);
                    }
                    busy = true;
                }
                Some(at) if at == node => busy |= self.serve(number, station, model, rng),
                Some(_) => {}
            }
        }
        busy || station.has_work()
    }

    fn connect(&mut self, number: usize, node: NodeId, station: &mut Station) {
        let listener = &mut self.all[number];
        listener.at = Some(node);
        station.open(number);
        for watch in &mut listener.watches {
            station.take_in(number, watch.ask());
        }
        self.resumed += 1;
    }

    fn serve(
        &mut self,
        number: usize,
        station: &mut Station,
        model: &Model,
        rng: &mut Rng,
    ) -> bool {
        let listener = &mut self.all[number];
        let watch = below(rng, listener.watches.len());
        match rng.below(120) {
            0..=3 => {
                let progress = RequestUnion::ProgressRequest(WatchProgressRequest {});
                station.take_in(number, WatchRequest { request_union: Some(progress) });
            }
            4..=5 => station.tick(number),
            6 if listener.watches[watch].is_on() => {
                let cancel = WatchCancelRequest { watch_id: watch_id(watch) };
                let cancel = RequestUnion::CancelRequest(cancel);
                station.take_in(number, WatchRequest { request_union: Some(cancel) });
            }
            7 => {
                station.close(number);
                listener.at = None;
                listener.watches.iter_mut().for_each(Watch::lost);
                return true;
            }
            _ => {}
        }
        if !rng.chance(1, listener.pace) {
            return true;
        }
        for _ in 0..rng.below(12) {
            match station.step(number) {
                Some(Some(frame)) => self.hear(number, station, &frame, model),
                Some(None) => {}
                None => return false,
            }
        }
        true
    }

    /// A client is told something.
    fn hear(&mut self, number: usize, station: &mut Station, frame: &Frame, model: &Model) {
        let mut bytes = Vec::new();
        frame.encode(ResponseHeader::default(), &mut bytes);
        let response = WatchResponse::decode(&bytes[..]).expect("what is encoded decodes");
        let listener = &mut self.all[number];
        if response.watch_id == -1 {
            let revision = response.header.as_ref().map_or(0, |header| header.revision);
            assert!(!response.created && !response.canceled, "a watcher is refused: {response:?}");
            for watch in listener.watches.iter_mut().filter(|watch| watch.is_on()) {
                watch.hear_progress(revision, model);
            }
            self.progress += 1;
            return;
        }
        let place = usize::try_from(response.watch_id - 1).ok();
        let Some(watch) = place.and_then(|place| listener.watches.get_mut(place)) else {
            panic!("nobody asked for {response:?}");
        };
        watch.hear(&response, model);
        self.events += u64::try_from(response.events.len()).unwrap_or(0);
        self.compacted += u64::from(response.compact_revision != 0);
        if watch.is_off() {
            let again = watch.ask();
            station.take_in(number, again);
        }
    }

    /// A watcher that has not heard everything, if there is one.
    pub(super) fn unsettled(&self, model: &Model) -> Option<String> {
        let mut all = self
            .all
            .iter()
            .flat_map(|listener| listener.watches.iter().map(|watch| (listener.at, watch)));
        let (at, watch) = all.find(|(_, watch)| !watch.is_up_to_date(model))?;
        Some(format!("at {at:?}, {watch:?} has not heard everything up to {}", model.revision()))
    }
}

fn below(rng: &mut Rng, bound: usize) -> usize {
    crate::profile::pick(rng, bound)
}

/// What a listener calls its watcher at this place.
fn watch_id(place: usize) -> i64 {
    i64::try_from(place).unwrap_or(0) + 1
}

/// A watcher that its client calls `id`.
fn draw(id: u64, keys: u64, rng: &mut Rng) -> WatchCreateRequest {
    let from = rng.below(keys);
    let (key, range_end) = match rng.below(3) {
        0 => (name(from), bytes::Bytes::new()),
        1 => (name(from), name(from + 1 + rng.below(keys))),
        _ => (bytes::Bytes::from_static(b"k"), bytes::Bytes::from_static(b"l")),
    };
    let filters = match rng.below(6) {
        0 => vec![i32::from(FilterType::Noput)],
        1 => vec![i32::from(FilterType::Nodelete)],
        _ => Vec::new(),
    };
    WatchCreateRequest {
        key,
        range_end,
        // From the beginning, if that is still known; from a while later; from when it is there.
        start_revision: [0, 0, 1, 20][below(rng, 4)],
        progress_notify: rng.chance(1, 2),
        filters,
        prev_kv: rng.chance(1, 2),
        watch_id: i64::try_from(id).unwrap_or(0),
        fragment: rng.chance(1, 2),
    }
}
