//! Reads history once for all, right behind the apply thread.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use raft_core::mutant;

use super::interest::{Group, Interests, RangeName};
use super::{Delivery, Filters, Interest, Mailbox, Selection, revision_of};
use crate::key_range::KeyRange;
use crate::proto::mvccpb::Event;
use crate::reader::Reader;

/// Bounds of a hub.
#[derive(Clone, Copy, Debug)]
pub struct HubLimits {
    /// The bytes that may wait for one stream; with more it is behind. A single stretch may exceed it.
    pub queue_bytes_max: usize,
    /// The events of one stretch, unless a revision has more.
    pub stretch_events_max: usize,
    /// The bytes of one stretch, unless a revision has more.
    pub stretch_bytes_max: usize,
    /// How many revisions in the past a watcher may be that joins.
    pub join_revisions_max: i64,
}

impl Default for HubLimits {
    fn default() -> Self {
        Self {
            queue_bytes_max: 4 << 20,
            stretch_events_max: 1024,
            stretch_bytes_max: 1 << 20,
            join_revisions_max: 1024,
        }
    }
}

/// What a stream asks of the hub. Requests of one stream arrive in order.
#[derive(Debug)]
pub enum HubRequest {
    /// The first one of a stream.
    Open {
        /// The stream's number; nobody else's.
        stream: u64,
        /// Where it wants its deliveries.
        mailbox: Mailbox,
    },
    /// These watchers want everything from their revisions on.
    Join {
        /// The stream's number.
        stream: u64,
        /// The watchers.
        interests: Vec<Interest>,
    },
    /// These watchers want nothing any more.
    Leave {
        /// The stream's number.
        stream: u64,
        /// The watchers' numbers.
        watchers: Vec<u64>,
    },
    /// Say how far everything was delivered.
    Progress {
        /// The stream's number.
        stream: u64,
        /// For the stream's timer.
        notify: bool,
        /// How often the stream has had watchers join before.
        joins: u64,
    },
    /// The last one of a stream.
    Close {
        /// The stream's number.
        stream: u64,
    },
}

/// A stream that has opened.
#[derive(Debug)]
struct Stream {
    mailbox: Mailbox,
    /// Those that have joined.
    watchers: BTreeMap<u64, (KeyRange, Filters)>,
}

/// Hands what happens to all who watch it.
#[derive(Debug)]
pub struct Hub {
    reader: Reader,
    limits: HubLimits,
    /// Everything before this revision was handed out.
    next: i64,
    interests: Interests,
    streams: BTreeMap<u64, Stream>,
}

impl Hub {
    /// A hub without watchers.
    #[must_use]
    pub fn new(reader: Reader, limits: HubLimits) -> Self {
        let next = reader.revision() + 1;
        Self { reader, limits, next, interests: Interests::default(), streams: BTreeMap::new() }
    }

    /// Whether anybody watches: if not, nobody need call [`dispatch`](Self::dispatch).
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.interests.is_empty()
    }

    /// Everything before this revision was handed out.
    #[must_use]
    pub const fn next(&self) -> i64 {
        self.next
    }

    /// Handles one request.
    pub fn handle(&mut self, request: HubRequest) {
        match request {
            HubRequest::Open { stream, mailbox } => {
                self.streams.insert(stream, Stream { mailbox, watchers: BTreeMap::new() });
            }
            HubRequest::Join { stream, interests } => self.join(stream, interests),
            HubRequest::Leave { stream, watchers } => {
                let Some(known) = self.streams.get_mut(&stream) else { return };
                for watcher in watchers {
                    if let Some((range, filters)) = known.watchers.remove(&watcher) {
                        self.interests.remove(stream, watcher, &range, filters);
                    }
                }
            }
            HubRequest::Progress { stream, notify, joins } => {
                let revision = if mutant::is_active(40) {
                    self.reader.revision()
                } else {
                    self.dispatch();
                    self.next - 1
                };
                if let Some(known) = self.streams.get(&stream) {
                    known.mailbox.push(Delivery::Progress { revision, notify, joins });
                }
            }
            HubRequest::Close { stream } => {
                self.evict(stream);
                self.streams.remove(&stream);
            }
        }
    }

    /// Hands out everything that is published when it is called.
    pub fn dispatch(&mut self) {
        let published = self.reader.revision();
        while self.next <= published {
            if self.interests.is_empty() {
                self.next = published + 1;
                return;
            }
            let HubLimits { stretch_events_max, stretch_bytes_max, .. } = self.limits;
            if let Ok(stretch) =
                self.reader.events(self.next, stretch_events_max, stretch_bytes_max)
            {
                self.next = stretch.next;
                let full = hand_out(
                    &self.interests,
                    &stretch.events,
                    self.next - 1,
                    self.limits.queue_bytes_max,
                );
                for stream in full {
                    self.fall_behind(stream);
                }
            } else {
                // The state was replaced by one that has forgotten what comes next: everybody finds out alone.
                let streams: Vec<u64> = self.streams.keys().copied().collect();
                for stream in streams {
                    self.fall_behind(stream);
                }
            }
        }
    }

    /// Takes a stream's watchers out and tells it so.
    fn fall_behind(&mut self, stream: u64) {
        let watchers = self.evict(stream);
        if let Some(known) = self.streams.get(&stream)
            && !watchers.is_empty()
        {
            known.mailbox.push(Delivery::Behind { from: self.next, watchers });
        }
    }

    /// Takes a stream's watchers out.
    fn evict(&mut self, stream: u64) -> Vec<u64> {
        let Some(known) = self.streams.get_mut(&stream) else { return Vec::new() };
        let watchers = std::mem::take(&mut known.watchers);
        for (watcher, (range, filters)) in &watchers {
            self.interests.remove(stream, *watcher, range, *filters);
        }
        watchers.into_keys().collect()
    }

    fn join(&mut self, stream: u64, interests: Vec<Interest>) {
        self.dispatch();
        let Some(known) = self.streams.get_mut(&stream) else { return };
        let first = interests.iter().map(|interest| interest.from).min().unwrap_or(self.next);
        let Some(missed) = missed(&self.reader, first, self.next, self.limits.join_revisions_max)
        else {
            let watchers = interests.iter().map(|interest| interest.watcher).collect();
            // They know themselves from where on they miss something.
            known.mailbox.push(Delivery::Behind { from: 0, watchers });
            return;
        };
        for interest in interests {
            let events: Vec<Event> =
                missed.iter().filter(|event| interest.wants(event)).cloned().collect();
            if !events.is_empty() {
                let selection = Arc::new(Selection::new(events, self.next - 1));
                let watcher = interest.watcher;
                known.mailbox.push(Delivery::Events { watcher, selection });
            }
            self.interests.insert(stream, &interest, known.mailbox.clone());
            known.watchers.insert(interest.watcher, (interest.range, interest.filters));
        }
    }
}

impl Interest {
    /// Whether an event is one that the watcher asked for.
    pub(super) fn wants(&self, event: &Event) -> bool {
        revision_of(event) >= self.from && in_range(&self.range, event) && self.filters.pass(event)
    }
}

pub(super) fn in_range(range: &KeyRange, event: &Event) -> bool {
    let key = event.kv.as_ref().map_or(&[][..], |kv| kv.key.as_ref());
    range.start.as_ref() <= key && range.is_before_end(key)
}

/// What happened from `first` to before `next`, if that is not too much and still known.
fn missed(reader: &Reader, first: i64, next: i64, revisions_max: i64) -> Option<Vec<Event>> {
    if first >= next {
        return Some(Vec::new());
    }
    if next - first > revisions_max {
        return None;
    }
    let stretch = reader.events(first, usize::MAX, usize::MAX).ok()?;
    let mut events = stretch.events;
    events.retain(|event| revision_of(event) < next);
    Some(events)
}

/// Hands a stretch, which ends with `revision`, to everybody who watches some of it. Answers whose queues are full.
fn hand_out(
    interests: &Interests,
    events: &[Event],
    revision: i64,
    queue_bytes_max: usize,
) -> BTreeSet<u64> {
    let mut hits: BTreeMap<(RangeName<'_>, Filters), (&Group, Vec<usize>)> = BTreeMap::new();
    for (place, event) in events.iter().enumerate() {
        let Some(kv) = &event.kv else { continue };
        interests.visit(&kv.key, |name, watchers| {
            for (filters, group) in watchers {
                if filters.pass(event) {
                    let hit = hits.entry((name, *filters)).or_insert_with(|| (group, Vec::new()));
                    hit.1.push(place);
                }
            }
        });
    }
    let mut full = BTreeSet::new();
    for (group, places) in hits.into_values() {
        let select = |from: i64| {
            let wanted = places.iter().filter_map(|place| events.get(*place));
            let wanted: Vec<Event> =
                wanted.filter(|event| revision_of(event) >= from).cloned().collect();
            (!wanted.is_empty()).then(|| Arc::new(Selection::new(wanted, revision)))
        };
        let all = select(0);
        let first = places.first().and_then(|place| events.get(*place)).map_or(0, revision_of);
        for ((stream, watcher), member) in group {
            // Nearly all want all of it and share it; a watcher of the future wants its end or nothing.
            let selection = if member.from <= first { all.clone() } else { select(member.from) };
            let Some(selection) = selection else { continue };
            member.mailbox.push(Delivery::Events { watcher: *watcher, selection });
            if member.mailbox.bytes() > queue_bytes_max {
                full.insert(*stream);
            }
        }
    }
    full
}
