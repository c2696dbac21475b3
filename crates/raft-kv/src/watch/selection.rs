//! Events that somebody watches, encoded once for all who do.

use std::sync::OnceLock;

use bytes::{BufMut, Bytes, BytesMut};
use prost::Message;

use crate::proto::etcdserverpb::{ResponseHeader, WatchResponse};
use crate::proto::mvccpb::Event;
use crate::reader::Reader;

/// The number of `events` in a `WatchResponse`.
const EVENTS_FIELD: u32 = 11;

/// What an event takes in a queue beside its key and value.
const EVENT_BYTES: usize = 128;

/// The events of one watched range in one stretch of history. Whole revisions.
#[derive(Debug)]
pub struct Selection {
    /// In order, at least one. Without `prev_kv`.
    pub events: Vec<Event>,
    /// Everything up to here that was watched is in this selection or in earlier ones.
    pub revision: i64,
    plain: OnceLock<Bytes>,
    with_prev: OnceLock<Bytes>,
}

impl Selection {
    pub(super) const fn new(events: Vec<Event>, revision: i64) -> Self {
        Self { events, revision, plain: OnceLock::new(), with_prev: OnceLock::new() }
    }

    /// What it takes in a queue, in bytes.
    pub(super) fn weight(&self) -> usize {
        self.events.iter().map(weight).sum()
    }

    /// The events as they stand in a `WatchResponse`.
    pub(super) fn encoded(&self, prev_kv: Option<&Reader>) -> Bytes {
        let (place, reader) = match prev_kv {
            None => (&self.plain, None),
            Some(reader) => (&self.with_prev, Some(reader)),
        };
        place.get_or_init(|| encode(&self.events, reader)).clone()
    }
}

/// What an event takes in a queue, in bytes.
pub(super) fn weight(event: &Event) -> usize {
    event.kv.as_ref().map_or(0, |kv| kv.key.len() + kv.value.len()) + EVENT_BYTES
}

/// Encodes events as they stand in a `WatchResponse`, with their previous versions when `prev_kv` can find them.
pub(super) fn encode(events: &[Event], prev_kv: Option<&Reader>) -> Bytes {
    let mut out = BytesMut::with_capacity(events.iter().map(weight).sum());
    for event in events {
        match prev_kv {
            None => prost::encoding::message::encode(EVENTS_FIELD, event, &mut out),
            Some(reader) => {
                let prev_kv = event.kv.as_ref().and_then(|kv| reader.previous(kv));
                let event = Event { prev_kv, ..event.clone() };
                prost::encoding::message::encode(EVENTS_FIELD, &event, &mut out);
            }
        }
    }
    out.freeze()
}

/// One answer on a watch stream. The events are encoded already.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Frame {
    /// Of the watcher, or -1 for the whole stream.
    pub watch_id: i64,
    /// The first answer of a watcher.
    pub created: bool,
    /// The last one.
    pub canceled: bool,
    /// Why it was cancelled: everything below this revision is forgotten.
    pub compact_revision: i64,
    /// Why it was cancelled, in words.
    pub cancel_reason: &'static str,
    /// More of the same revision follows.
    pub fragment: bool,
    /// For the header.
    pub revision: i64,
    /// `events` as they stand in a `WatchResponse`.
    pub events: Bytes,
}

impl Frame {
    /// Appends the encoded `WatchResponse`; `header` is completed with this frame's revision.
    pub fn encode(&self, header: ResponseHeader, out: &mut impl BufMut) {
        let head = WatchResponse {
            header: Some(ResponseHeader { revision: self.revision, ..header }),
            watch_id: self.watch_id,
            created: self.created,
            canceled: self.canceled,
            compact_revision: self.compact_revision,
            cancel_reason: self.cancel_reason.to_owned(),
            fragment: self.fragment,
            events: Vec::new(),
        };
        head.encode_raw(out);
        // The field with the highest number: appended, it stands where it belongs.
        out.put_slice(&self.events);
    }

    /// The bytes that [`encode`](Self::encode) appends, or a few more.
    #[must_use]
    pub fn encoded_len_max(&self) -> usize {
        self.events.len() + self.cancel_reason.len() + 96
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::proto::mvccpb::KeyValue;

    #[test]
    fn a_frame_is_encoded_as_the_message_that_it_stands_for() {
        let event = |key: &'static str| Event {
            kv: Some(KeyValue { key: key.into(), mod_revision: 7, ..KeyValue::default() }),
            ..Event::default()
        };
        let events = vec![event("a"), event("b")];
        let frame = Frame {
            watch_id: -1,
            created: true,
            canceled: true,
            compact_revision: 5,
            cancel_reason: "why",
            fragment: true,
            revision: 9,
            events: encode(&events, None),
        };
        let header = ResponseHeader { cluster_id: 1, member_id: 2, revision: 0, raft_term: 3 };
        let mut out = Vec::new();
        frame.encode(header, &mut out);
        assert!(out.len() <= frame.encoded_len_max());
        let message = WatchResponse {
            header: Some(ResponseHeader { revision: 9, ..header }),
            watch_id: -1,
            created: true,
            canceled: true,
            compact_revision: 5,
            cancel_reason: "why".to_owned(),
            fragment: true,
            events,
        };
        assert_eq!(out, message.encode_to_vec());
    }
}
