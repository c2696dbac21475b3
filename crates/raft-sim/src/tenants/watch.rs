//! What a client knows of one of its watchers, and what must hold of everything that it is told (I23). The names are those
//! of etcd's validators.

use raft_kv::proto::etcdserverpb::watch_request::RequestUnion;
use raft_kv::proto::etcdserverpb::{WatchCreateRequest, WatchRequest, WatchResponse};
use raft_kv::proto::mvccpb::Event;

use super::model::{Model, revision_of};

/// How far a watcher is on its present stream.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum State {
    /// Nobody tells it anything.
    Off,
    /// It has been asked for.
    Asked,
    On,
}

/// A watcher that outlives the streams that it is on: a client takes up on another member where it was.
#[derive(Debug)]
pub(super) struct Watch {
    /// What is asked for, apart from where to begin.
    request: WatchCreateRequest,
    state: State,
    /// The first revision of which it was told nothing yet; 0 when it is to begin with whatever comes.
    next: i64,
    /// Events of the model before this place were told, or are of no interest; the second one counts fragments of which
    /// the last is still to come.
    told: usize,
    told_in_part: usize,
    in_fragments: bool,
}

impl Watch {
    /// A watcher of what `request` says, which begins with the revision that it names.
    pub(super) fn new(request: WatchCreateRequest) -> Self {
        let next = request.start_revision;
        Self { request, state: State::Off, next, told: 0, told_in_part: 0, in_fragments: false }
    }

    /// Its stream is gone.
    pub(super) fn lost(&mut self) {
        (self.state, self.in_fragments) = (State::Off, false);
    }

    pub(super) fn is_off(&self) -> bool {
        self.state == State::Off
    }

    pub(super) fn is_on(&self) -> bool {
        self.state == State::On
    }

    /// Asks for it, on a new stream or after it was cancelled: everything from where it is.
    pub(super) fn ask(&mut self) -> WatchRequest {
        self.state = State::Asked;
        self.told_in_part = self.told;
        let request = WatchCreateRequest { start_revision: self.next, ..self.request.clone() };
        WatchRequest { request_union: Some(RequestUnion::CreateRequest(request)) }
    }

    fn wants(&self, event: &Event) -> bool {
        let Some(kv) = &event.kv else { return false };
        let WatchCreateRequest { key, range_end, filters, .. } = &self.request;
        let in_range =
            if range_end.is_empty() { kv.key == key } else { kv.key >= key && kv.key < range_end };
        in_range && kv.mod_revision >= self.next && !filters.contains(&event.r#type)
    }

    /// The next event that it is to be told.
    fn expected<'a>(&mut self, model: &'a Model) -> Option<&'a Event> {
        loop {
            let event = model.events().get(self.told_in_part)?;
            if self.wants(event) {
                return Some(event);
            }
            self.told_in_part += 1;
        }
    }

    /// Whether it was told everything that there is.
    pub(super) fn is_up_to_date(&self, model: &Model) -> bool {
        let rest = model.events().get(self.told_in_part..).unwrap_or_default();
        self.is_on() && !self.in_fragments && !rest.iter().any(|event| self.wants(event))
    }

    /// An answer about this watcher.
    ///
    /// # Panics
    /// When it is not what must come next.
    pub(super) fn hear(&mut self, response: &WatchResponse, model: &Model) {
        let revision = response.header.as_ref().map_or(0, |header| header.revision);
        assert!(
            revision <= model.revision(),
            "{self:?} hears of revision {revision} of the future"
        );
        if response.created {
            assert!(!response.canceled && self.state == State::Asked, "{self:?}: {response:?}");
            self.state = State::On;
            if self.next == 0 {
                self.next = revision + 1;
            }
            return;
        }
        assert!(self.state == State::On, "{self:?} is not there, and hears {response:?}");
        if response.canceled {
            return self.canceled(response, model);
        }
        let last = response.events.iter().map(revision_of).max();
        for event in &response.events {
            self.hear_event(event, model);
        }
        if response.events.is_empty() {
            assert!(self.request.progress_notify, "{self:?} did not ask how far it is");
        }
        self.in_fragments = response.fragment;
        assert!(!response.fragment || self.request.fragment, "{self:?} wants no fragments");
        if response.fragment {
            return;
        }
        if let (Some(last), Some(rest)) = (last, self.expected(model)) {
            assert!(
                revision_of(rest) != last,
                "I23 atomic: {self:?} is told revision {last}, and not {rest:?}"
            );
        }
        self.hear_progress(revision, model);
    }

    /// Everything up to this revision was told.
    pub(super) fn hear_progress(&mut self, revision: i64, model: &Model) {
        assert!(!self.in_fragments, "{self:?} hears of progress between fragments");
        if let Some(rest) = self.expected(model) {
            assert!(
                revision_of(rest) > revision,
                "I23 bookmarkable: {self:?} is told everything up to {revision}, but not {rest:?}"
            );
        }
        self.told = self.told_in_part;
        self.next = self.next.max(revision + 1);
    }

    fn hear_event(&mut self, event: &Event, model: &Model) {
        let kv = event.kv.clone().unwrap_or_default();
        let before = self.told_in_part.checked_sub(1).and_then(|at| model.events().get(at));
        let Some(expected) = self.expected(model) else {
            panic!("I23 unique: {self:?} has heard everything that is left, and hears {event:?}");
        };
        let same = expected.kv.as_ref() == Some(&kv) && expected.r#type == event.r#type;
        if !same {
            let wanted = Self { next: 0, ..self.shape() };
            assert!(wanted.wants(event), "I23 filter: {self:?} hears {event:?}");
            assert!(
                before.is_none_or(|before| revision_of(before) <= kv.mod_revision),
                "I23 ordered, unique: {self:?} hears {event:?} after {before:?}"
            );
            let created = kv.create_revision == kv.mod_revision;
            assert!(
                kv.mod_revision != revision_of(expected) || created == expected.prev_kv.is_none(),
                "I23 isCreate: {self:?} hears {event:?}, and there is {:?}",
                expected.prev_kv
            );
            panic!("I23 ordered, reliable: {self:?} hears {event:?}, not {expected:?}");
        }
        match &event.prev_kv {
            Some(found) => assert!(
                self.request.prev_kv && expected.prev_kv.as_ref() == Some(found),
                "I23 prevKV: {self:?} hears of {found:?} before {kv:?}"
            ),
            None => assert!(
                !self.request.prev_kv
                    || expected.prev_kv.is_none()
                    || kv.mod_revision - 1 < model.compacted(),
                "I23 prevKV: {self:?} hears nothing of what was before {kv:?}"
            ),
        }
        self.told_in_part += 1;
    }

    /// What it watches, without what it knows.
    fn shape(&self) -> Self {
        Self::new(self.request.clone())
    }

    fn canceled(&mut self, response: &WatchResponse, model: &Model) {
        let compacted = response.compact_revision;
        if compacted != 0 {
            assert!(
                compacted <= model.compacted() && self.next < compacted,
                "I23 resumable: {self:?} is cancelled because {compacted} is compacted"
            );
            // It goes on with what there still is.
            (self.next, self.told) = (compacted, 0);
        }
        self.lost();
    }
}
