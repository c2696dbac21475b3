//! The queue between the hub and one stream: without a lock, and its bytes are counted.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::{self, Receiver, Sender, TryRecvError};
use std::task::{Context, Poll};

use atomic_waker::AtomicWaker;

use super::Selection;

/// What the hub tells a stream.
#[derive(Clone, Debug)]
pub enum Delivery {
    /// Events of one watcher.
    Events {
        /// The watcher's number within the stream.
        watcher: u64,
        /// What happened.
        selection: Arc<Selection>,
    },
    /// Everything up to this revision was delivered to every watcher that had joined.
    Progress {
        /// That revision.
        revision: i64,
        /// Asked for by the stream's timer, not by its client.
        notify: bool,
        /// It says nothing about watchers that joined later than this many joins.
        joins: u64,
    },
    /// These watchers have left the hub: they did not keep up, or asked for too much of the past.
    Behind {
        /// They have everything before this revision that they had asked for when they joined.
        from: i64,
        /// Their numbers.
        watchers: Vec<u64>,
    },
}

impl Delivery {
    /// What counts against the queue's bounds.
    fn weight(&self) -> usize {
        match self {
            Self::Events { selection, .. } => selection.weight(),
            Self::Progress { .. } | Self::Behind { .. } => 0,
        }
    }
}

#[derive(Debug, Default)]
struct Shared {
    bytes: AtomicUsize,
    waker: AtomicWaker,
}

/// The hub's end.
#[derive(Clone, Debug)]
pub struct Mailbox {
    sender: Sender<Delivery>,
    shared: Arc<Shared>,
}

/// The stream's end.
#[derive(Debug)]
pub struct Deliveries {
    receiver: Receiver<Delivery>,
    shared: Arc<Shared>,
}

/// An empty queue.
#[must_use]
pub fn mailbox() -> (Mailbox, Deliveries) {
    let (sender, receiver) = mpsc::channel();
    let shared = Arc::new(Shared::default());
    (Mailbox { sender, shared: Arc::clone(&shared) }, Deliveries { receiver, shared })
}

impl Mailbox {
    /// Appends. A stream that is gone will be taken out of the hub by whoever ran it.
    pub(super) fn push(&self, delivery: Delivery) {
        self.shared.bytes.fetch_add(delivery.weight(), Ordering::Relaxed);
        if self.sender.send(delivery).is_ok() {
            self.shared.waker.wake();
        }
    }

    /// The bytes that wait.
    pub(super) fn bytes(&self) -> usize {
        self.shared.bytes.load(Ordering::Relaxed)
    }
}

impl Deliveries {
    /// The next delivery, if one waits.
    pub fn take(&mut self) -> Option<Delivery> {
        self.try_take().ok()
    }

    fn try_take(&self) -> Result<Delivery, TryRecvError> {
        let delivery = self.receiver.try_recv()?;
        self.shared.bytes.fetch_sub(delivery.weight(), Ordering::Relaxed);
        Ok(delivery)
    }

    /// The next delivery; `None` when the hub has let go of the stream.
    pub fn poll_take(&mut self, context: &Context<'_>) -> Poll<Option<Delivery>> {
        if let Some(delivery) = self.take() {
            return Poll::Ready(Some(delivery));
        }
        // Registered before looking again, so that nothing slips between.
        self.shared.waker.register(context.waker());
        match self.try_take() {
            Ok(delivery) => Poll::Ready(Some(delivery)),
            Err(TryRecvError::Empty) => Poll::Pending,
            Err(TryRecvError::Disconnected) => Poll::Ready(None),
        }
    }
}
