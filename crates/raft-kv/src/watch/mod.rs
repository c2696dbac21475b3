//! Following changes: who watches what, and in which order they hear of it. Sans-IO; nothing here sends anything.
//!
//! One [`Hub`] for each member reads history once for all, right behind the apply thread, and hands every watched stretch
//! ([`Selection`]) to the streams whose watchers asked for it. A [`WatchStream`] for each client's stream turns that
//! into answers. History itself is the shared ring, a revision the cursor.
//!
//! A stream whose queue grows beyond its bounds is behind: the hub forgets its watchers and tells it where
//! they were. The stream then reads history by itself, at the speed of its client, and joins the hub again when it
//! has caught up. That is also how a watcher that starts in the past begins. Nobody waits for anybody.
//!
//! ```text
//! store ── published revision ──► hub ── selections ──► queue ──► stream ── frames ──► client
//!                                  ▲ join, leave, progress ──────────┘
//!                                                                 └─ behind: reads history itself
//! ```

mod hub;
mod interest;
mod queue;
mod selection;
mod stream;

use std::fmt;

pub use hub::{Hub, HubLimits, HubRequest};
pub use interest::Interest;
pub use queue::{Deliveries, Delivery, Mailbox, mailbox};
pub use selection::{Frame, Selection};
pub use stream::{StreamLimits, WatchStream};

use crate::proto::etcdserverpb::watch_create_request::FilterType;
use crate::proto::mvccpb::{Event, event::EventType};

/// Which kinds of events a watcher does not want.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Default)]
pub struct Filters {
    no_put: bool,
    no_delete: bool,
}

impl Filters {
    /// The filters of a request; unknown ones mean nothing.
    #[must_use]
    pub fn new(filters: &[i32]) -> Self {
        let has = |filter: FilterType| filters.contains(&i32::from(filter));
        Self { no_put: has(FilterType::Noput), no_delete: has(FilterType::Nodelete) }
    }

    /// Whether an event passes.
    #[must_use]
    pub fn pass(self, event: &Event) -> bool {
        match event.r#type() {
            EventType::Put => !self.no_put,
            EventType::Delete => !self.no_delete,
        }
    }
}

impl fmt::Debug for Filters {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (self.no_put, self.no_delete) {
            (false, false) => f.write_str("everything"),
            (true, false) => f.write_str("no puts"),
            (false, true) => f.write_str("no deletions"),
            (true, true) => f.write_str("nothing"),
        }
    }
}

/// The revision that an event belongs to.
fn revision_of(event: &Event) -> i64 {
    event.kv.as_ref().map_or(0, |kv| kv.mod_revision)
}
