//! One client's stream: its watchers, and what they are told.

use std::collections::{BTreeMap, VecDeque};

use bytes::BytesMut;

use super::hub::{HubRequest, in_range};
use super::selection::{Selection, encode, weight};
use super::{Delivery, Filters, Frame, Interest, revision_of};
use crate::auth::{AuthState, watched};
use crate::error::KvError;
use crate::key_range::{KeyRange, RangeEnd};
use crate::proto::etcdserverpb::{WatchCreateRequest, WatchRequest, watch_request::RequestUnion};
use crate::proto::mvccpb::Event;
use crate::reader::Reader;

/// The watcher id of answers that are about no watcher.
const NO_WATCHER: i64 = -1;
/// Refusals, in etcd's words.
const DUPLICATE: &str = "mvcc: duplicate watch ID provided on the WatchStream";
const EMPTY_RANGE: &str = "mvcc: watcher range is empty";
const COMPACTED: &str = "mvcc: required revision has been compacted";
const TOO_MANY: &str = "etcdserver: too many requests";

/// Why a watcher is not permitted, in the long form that clients find here: code and text.
fn reason(refusal: KvError) -> &'static str {
    if refusal == KvError::UserEmpty {
        "rpc error: code = InvalidArgument desc = etcdserver: user name is empty"
    } else if refusal == KvError::InvalidAuthToken {
        "rpc error: code = Unauthenticated desc = etcdserver: invalid auth token"
    } else if refusal == KvError::OldAuthRevision {
        "rpc error: code = InvalidArgument desc = etcdserver: revision of auth store is old"
    } else {
        "rpc error: code = PermissionDenied desc = etcdserver: permission denied"
    }
}

/// Bounds of a stream.
#[derive(Clone, Copy, Debug)]
pub struct StreamLimits {
    /// Answers of watchers that asked for fragments are cut to about this many bytes.
    pub fragment_bytes_max: usize,
    /// The events that are read at once for those who are behind, unless a revision has more.
    pub stretch_events_max: usize,
    /// Their bytes, unless a revision has more.
    pub stretch_bytes_max: usize,
    /// The watchers of one stream.
    pub watchers_max: usize,
}

/// A watcher.
#[derive(Debug)]
struct Watcher {
    /// What its client calls it.
    id: i64,
    range: KeyRange,
    filters: Filters,
    prev_kv: bool,
    fragment: bool,
    progress_notify: bool,
    /// What it asked for; 0 for everything from its creation on.
    start: i64,
    /// The first revision that it has not been told: of one that has joined, the one that it joined at.
    next: i64,
    /// The hub tells it what happens; else it is to catch up.
    joined: bool,
    /// How often the stream had watchers join when this one last did.
    joined_with: u64,
    /// Something was told since the last [`WatchStream::tick`].
    active: bool,
    /// Nothing was told between the last two, and nothing since.
    silent: bool,
}

/// The state of one stream. Whoever runs it passes on [`requests`](Self::take_requests) to the hub and
/// [`frames`](Self::take_frame) to the client, and stops calling while the client does not take any.
#[derive(Debug)]
pub struct WatchStream {
    stream: u64,
    reader: Reader,
    limits: StreamLimits,
    /// By number: never used twice, so that a delivery for a watcher that is gone finds nobody.
    watchers: BTreeMap<u64, Watcher>,
    ids: BTreeMap<i64, u64>,
    /// How many are to catch up.
    behind: usize,
    next_watcher: u64,
    next_id: i64,
    /// How often watchers were sent to join the hub.
    joins: u64,
    /// The client wants to know how far it is, and there was no moment at which everybody had joined.
    progress_wanted: bool,
    requests: Vec<HubRequest>,
    frames: VecDeque<Frame>,
}

impl WatchStream {
    /// A stream without watchers. `stream` is its number at the hub.
    #[must_use]
    pub const fn new(stream: u64, reader: Reader, limits: StreamLimits) -> Self {
        Self {
            stream,
            reader,
            limits,
            watchers: BTreeMap::new(),
            ids: BTreeMap::new(),
            behind: 0,
            next_watcher: 0,
            next_id: 0,
            joins: 0,
            progress_wanted: false,
            requests: Vec::new(),
            frames: VecDeque::new(),
        }
    }

    /// What the hub is to be asked, in order.
    pub fn take_requests(&mut self) -> Vec<HubRequest> {
        std::mem::take(&mut self.requests)
    }

    /// The next answer for the client.
    pub fn take_frame(&mut self) -> Option<Frame> {
        self.frames.pop_front()
    }

    /// Whether [`catch_up`](Self::catch_up) has something to do.
    #[must_use]
    pub const fn is_behind(&self) -> bool {
        self.behind > 0
    }

    /// A request of a client that may watch everything.
    pub fn handle(&mut self, request: WatchRequest) {
        self.handle_if(request, |_| Ok(()));
    }

    /// A request of a client that may watch what `may` says.
    pub fn handle_if(
        &mut self,
        request: WatchRequest,
        may: impl FnOnce(&WatchCreateRequest) -> Result<(), KvError>,
    ) {
        match request.request_union {
            Some(RequestUnion::CreateRequest(request)) => {
                let allowed = may(&request);
                self.create(request, allowed);
            }
            Some(RequestUnion::CancelRequest(request)) => self.cancel(request.watch_id),
            Some(RequestUnion::ProgressRequest(_)) => self.ask_progress(),
            None => {}
        }
    }

    fn create(&mut self, request: WatchCreateRequest, allowed: Result<(), KvError>) {
        // The revision first: whatever happens after it will be told.
        let revision = self.reader.revision();
        let range = watched(&request);
        let is_empty = matches!(&range.end, RangeEnd::Before(end) if *end <= range.start);
        let refusal = if is_empty {
            Some(EMPTY_RANGE)
        } else if request.start_revision < 0 {
            Some(COMPACTED)
        } else if let Err(refusal) = allowed {
            Some(reason(refusal))
        } else if request.watch_id != 0 && self.ids.contains_key(&request.watch_id) {
            Some(DUPLICATE)
        } else if self.watchers.len() >= self.limits.watchers_max {
            Some(TOO_MANY)
        } else {
            None
        };
        if let Some(cancel_reason) = refusal {
            self.frames.push_back(Frame {
                watch_id: NO_WATCHER,
                created: true,
                canceled: true,
                cancel_reason,
                revision,
                ..Frame::default()
            });
            return;
        }
        let id = self.choose_id(request.watch_id);
        let start = request.start_revision;
        let watcher = Watcher {
            id,
            range,
            filters: Filters::new(&request.filters),
            prev_kv: request.prev_kv,
            fragment: request.fragment,
            progress_notify: request.progress_notify,
            start,
            next: if start > 0 { start } else { revision + 1 },
            joined: false,
            joined_with: 0,
            active: false,
            silent: false,
        };
        self.frames.push_back(Frame { watch_id: id, created: true, revision, ..Frame::default() });
        let number = self.next_watcher;
        self.next_watcher += 1;
        self.ids.insert(id, number);
        let is_present = watcher.next > revision;
        self.watchers.insert(number, watcher);
        self.behind += 1;
        if is_present {
            self.join([number]);
        } else {
            self.cancel_compacted();
        }
    }

    /// Users, roles or permissions have changed: cancels the watchers that their client may not have any more, and
    /// drops what they were still to be told. `client` is who it is, with what [`User::since`](crate::auth::User::since)
    /// was when it proved that.
    pub fn check_again(&mut self, auth: &AuthState, client: Option<(&str, u64)>) {
        let refused = self.watchers.iter().filter_map(|(number, watcher)| {
            let refusal = auth.may_watch_on(client, &watcher.range).err()?;
            Some((*number, watcher.id, reason(refusal)))
        });
        let refused: Vec<_> = refused.collect();
        let revision = self.reader.revision();
        for (number, watch_id, cancel_reason) in refused {
            self.remove(number);
            self.frames.retain(|frame| frame.watch_id != watch_id || frame.events.is_empty());
            self.frames.push_back(Frame {
                watch_id,
                canceled: true,
                cancel_reason,
                revision,
                ..Frame::default()
            });
        }
    }

    fn choose_id(&mut self, wanted: i64) -> i64 {
        if wanted != 0 {
            return wanted;
        }
        while self.ids.contains_key(&self.next_id) {
            self.next_id += 1;
        }
        self.next_id += 1;
        self.next_id - 1
    }

    /// Has the hub tell these watchers, which are behind, what happens from where they are.
    fn join(&mut self, numbers: impl IntoIterator<Item = u64>) {
        let mut interests = Vec::new();
        self.joins += 1;
        for number in numbers {
            let Some(watcher) = self.watchers.get_mut(&number) else { continue };
            watcher.joined = true;
            watcher.joined_with = self.joins;
            self.behind -= 1;
            interests.push(Interest {
                watcher: number,
                range: watcher.range.clone(),
                filters: watcher.filters,
                from: watcher.next,
            });
        }
        self.requests.push(HubRequest::Join { stream: self.stream, interests });
        if self.progress_wanted && self.behind == 0 {
            self.ask_progress();
        }
    }

    fn cancel(&mut self, id: i64) {
        let Some(&number) = self.ids.get(&id) else { return };
        self.remove(number);
        let revision = self.reader.revision();
        self.frames.push_back(Frame { watch_id: id, canceled: true, revision, ..Frame::default() });
    }

    fn remove(&mut self, number: u64) {
        let Some(watcher) = self.watchers.remove(&number) else { return };
        self.ids.remove(&watcher.id);
        if watcher.joined {
            self.requests.push(HubRequest::Leave { stream: self.stream, watchers: vec![number] });
        } else {
            self.behind -= 1;
        }
    }

    /// Time to tell watchers that asked for it how far they are, unless they heard something lately.
    pub fn tick(&mut self) {
        let mut any = false;
        for watcher in self.watchers.values_mut() {
            watcher.silent = watcher.progress_notify && !watcher.active;
            watcher.active = false;
            any |= watcher.silent;
        }
        if any {
            let request = self.progress_request(true);
            self.requests.push(request);
        }
    }

    fn ask_progress(&mut self) {
        self.progress_wanted = self.behind > 0;
        if !self.progress_wanted {
            let request = self.progress_request(false);
            self.requests.push(request);
        }
    }

    const fn progress_request(&self, notify: bool) -> HubRequest {
        HubRequest::Progress { stream: self.stream, notify, joins: self.joins }
    }

    /// Something from the hub.
    pub fn deliver(&mut self, delivery: Delivery) {
        match delivery {
            Delivery::Events { watcher, selection } => {
                if let Some(watcher) = self.watchers.get_mut(&watcher) {
                    (watcher.active, watcher.silent) = (true, false);
                    tell(&self.reader, &self.limits, watcher, &selection, &mut self.frames);
                }
            }
            Delivery::Progress { revision, notify: true, joins } => {
                for watcher in self.watchers.values_mut() {
                    if watcher.silent && watcher.is_told(joins) && watcher.start <= revision + 1 {
                        watcher.silent = false;
                        let watch_id = watcher.id;
                        self.frames.push_back(Frame { watch_id, revision, ..Frame::default() });
                    }
                }
            }
            Delivery::Progress { revision, notify: false, joins } => {
                if !self.watchers.values().all(|watcher| watcher.is_told(joins)) {
                    // Somebody fell behind or came since it was asked.
                    self.ask_progress();
                } else if self.watchers.values().all(|watcher| watcher.start <= revision + 1) {
                    let watch_id = NO_WATCHER;
                    self.frames.push_back(Frame { watch_id, revision, ..Frame::default() });
                }
            }
            Delivery::Behind { from, watchers } => {
                for number in watchers {
                    let Some(watcher) = self.watchers.get_mut(&number) else { continue };
                    watcher.joined = false;
                    watcher.next = watcher.next.max(from);
                    self.behind += 1;
                }
            }
        }
    }

    /// Reads the next stretch of history for those who are furthest behind, or has those who have caught up join the
    /// hub.
    pub fn catch_up(&mut self) {
        let behind = self.watchers.values().filter(|watcher| !watcher.joined);
        let Some(first) = behind.map(|watcher| watcher.next).min() else { return };
        if first > self.reader.revision() {
            let all: Vec<u64> = self
                .watchers
                .iter()
                .filter(|(_, w)| !w.joined)
                .map(|(number, _)| *number)
                .collect();
            self.join(all);
            return;
        }
        let StreamLimits { stretch_events_max, stretch_bytes_max, .. } = self.limits;
        let Ok(stretch) = self.reader.events(first, stretch_events_max, stretch_bytes_max) else {
            self.cancel_compacted();
            return;
        };
        let mut bytes = 0;
        for watcher in self.watchers.values_mut() {
            if watcher.joined || watcher.next >= stretch.next {
                continue;
            }
            // The others read the stretch again.
            if bytes > self.limits.stretch_bytes_max {
                break;
            }
            let (range, filters, next) = (&watcher.range, watcher.filters, watcher.next);
            let wanted = |event: &&Event| {
                revision_of(event) >= next && in_range(range, event) && filters.pass(event)
            };
            let events: Vec<Event> = stretch.events.iter().filter(wanted).cloned().collect();
            watcher.next = stretch.next;
            if !events.is_empty() {
                bytes += events.iter().map(weight).sum::<usize>();
                (watcher.active, watcher.silent) = (true, false);
                let selection = Selection::new(events, stretch.next - 1);
                tell(&self.reader, &self.limits, watcher, &selection, &mut self.frames);
            }
        }
    }

    /// Ends watchers that want what is forgotten.
    fn cancel_compacted(&mut self) {
        let compact_revision = self.reader.compact_revision();
        let lost = |watcher: &Watcher| !watcher.joined && watcher.next < compact_revision;
        let lost: Vec<u64> =
            self.watchers.iter().filter(|(_, w)| lost(w)).map(|(n, _)| *n).collect();
        let revision = self.reader.revision();
        for number in lost {
            let watch_id = self.watchers.get(&number).map_or(NO_WATCHER, |watcher| watcher.id);
            self.remove(number);
            self.frames.push_back(Frame {
                watch_id,
                canceled: true,
                compact_revision,
                revision,
                ..Frame::default()
            });
        }
    }
}

impl Watcher {
    /// Whether what the hub said when the stream had had `joins` joins is about this watcher, too.
    const fn is_told(&self, joins: u64) -> bool {
        self.joined && self.joined_with <= joins
    }
}

/// Turns a selection into answers for one watcher.
fn tell(
    reader: &Reader,
    limits: &StreamLimits,
    watcher: &Watcher,
    selection: &Selection,
    frames: &mut VecDeque<Frame>,
) {
    let prev_kv = watcher.prev_kv.then_some(reader);
    let frame = Frame { watch_id: watcher.id, revision: selection.revision, ..Frame::default() };
    let events = selection.encoded(prev_kv);
    if !watcher.fragment || events.len() <= limits.fragment_bytes_max {
        frames.push_back(Frame { events, ..frame });
        return;
    }
    let mut part = BytesMut::new();
    for event in &selection.events {
        let event = encode(std::slice::from_ref(event), prev_kv);
        if !part.is_empty() && part.len() + event.len() > limits.fragment_bytes_max {
            let events = part.split().freeze();
            frames.push_back(Frame { events, fragment: true, ..frame.clone() });
        }
        part.extend_from_slice(&event);
    }
    frames.push_back(Frame { events: part.freeze(), ..frame });
}
