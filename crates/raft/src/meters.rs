//! What a node measures of itself: atomics that its threads count in and anybody may read.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use arc_swap::ArcSwap;
use raft_core::{NodeId, Time};

/// How many bounds a [`Timings`] has.
pub const TIMINGS_BOUNDS: usize = 14;

/// A heartbeat whose answer has not come for this long is not waited for any more.
const PROBE_PATIENCE: Duration = Duration::from_secs(1);

/// All measurements of one node.
#[derive(Debug)]
pub struct Meters {
    /// How long it took to write a batch to the log and make it durable.
    pub log_writes: Timings,
    /// Changed by the raft thread only, when a peer is met for the first time.
    peers: ArcSwap<BTreeMap<NodeId, Arc<PeerMeters>>>,
}

impl Default for Meters {
    fn default() -> Self {
        Self { log_writes: Timings::new(Duration::from_millis(1)), peers: ArcSwap::default() }
    }
}

impl Meters {
    /// The measurements about a peer; made when there are none.
    #[must_use]
    pub fn peer(&self, node: NodeId) -> Arc<PeerMeters> {
        if let Some(found) = self.peers.load().get(&node) {
            return Arc::clone(found);
        }
        let new = Arc::new(PeerMeters::default());
        self.peers.rcu(|peers| {
            let mut peers = BTreeMap::clone(peers);
            peers.entry(node).or_insert_with(|| Arc::clone(&new));
            peers
        });
        self.peers.load().get(&node).cloned().unwrap_or(new)
    }

    /// All peers that were ever met.
    #[must_use]
    pub fn peers(&self) -> Arc<BTreeMap<NodeId, Arc<PeerMeters>>> {
        self.peers.load_full()
    }
}

/// What is measured about one peer.
#[derive(Debug)]
pub struct PeerMeters {
    /// Bytes of messages queued for it.
    pub sent_bytes: AtomicU64,
    /// Bytes of messages that came from it.
    pub received_bytes: AtomicU64,
    /// Messages to it that were dropped because the connection was too slow for them.
    pub sent_failures: AtomicU64,
    /// From a heartbeat to its answer.
    pub round_trips: Timings,
    /// The round of the heartbeat whose answer is awaited; 0: none.
    probe_round: AtomicU64,
    /// When it left, in microseconds.
    probe_left: AtomicU64,
}

impl Default for PeerMeters {
    fn default() -> Self {
        Self {
            sent_bytes: AtomicU64::new(0),
            received_bytes: AtomicU64::new(0),
            sent_failures: AtomicU64::new(0),
            round_trips: Timings::new(Duration::from_micros(100)),
            probe_round: AtomicU64::new(0),
            probe_left: AtomicU64::new(0),
        }
    }
}

impl PeerMeters {
    /// A heartbeat leaves. One at a time is measured.
    pub(crate) fn heartbeat_left(&self, round: u64, now: Time) {
        let left = Time::from_micros(self.probe_left.load(Ordering::Relaxed));
        let awaited = self.probe_round.load(Ordering::Relaxed) != 0;
        if !awaited || now.since(left) > PROBE_PATIENCE {
            self.probe_round.store(round, Ordering::Relaxed);
            self.probe_left.store(now.as_micros(), Ordering::Relaxed);
        }
    }

    /// An answer to a heartbeat of this round has come.
    pub(crate) fn heartbeat_answered(&self, round: u64, now: Time) {
        let awaited = self.probe_round.load(Ordering::Relaxed);
        if awaited != 0 && round >= awaited {
            self.probe_round.store(0, Ordering::Relaxed);
            let left = Time::from_micros(self.probe_left.load(Ordering::Relaxed));
            self.round_trips.observe(now.since(left));
        }
    }
}

/// How often something took how long: counts below bounds that double.
#[derive(Debug)]
pub struct Timings {
    first: Duration,
    /// How many were at most the bound of this place and more than the one before; the last one: more than all bounds.
    counts: [AtomicU64; TIMINGS_BOUNDS + 1],
    sum_micros: AtomicU64,
}

impl Timings {
    fn new(first: Duration) -> Self {
        Self {
            first,
            counts: std::array::from_fn(|_| AtomicU64::new(0)),
            sum_micros: AtomicU64::new(0),
        }
    }

    /// Counts one.
    pub(crate) fn observe(&self, took: Duration) {
        let mut bound = self.first;
        let mut place = 0;
        while took > bound && place < TIMINGS_BOUNDS {
            bound *= 2;
            place += 1;
        }
        if let Some(count) = self.counts.get(place) {
            count.fetch_add(1, Ordering::Relaxed);
        }
        let micros = u64::try_from(took.as_micros()).unwrap_or(u64::MAX);
        self.sum_micros.fetch_add(micros, Ordering::Relaxed);
    }

    /// The bounds, with how many were at most each.
    #[must_use]
    pub fn cumulative(&self) -> Vec<(Duration, u64)> {
        let mut bound = self.first;
        let mut sum = 0;
        let mut all = Vec::with_capacity(TIMINGS_BOUNDS);
        for count in self.counts.iter().take(TIMINGS_BOUNDS) {
            sum += count.load(Ordering::Relaxed);
            all.push((bound, sum));
            bound *= 2;
        }
        all
    }

    /// How many there were.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.counts.iter().map(|count| count.load(Ordering::Relaxed)).sum()
    }

    /// How long all took together.
    #[must_use]
    pub fn sum(&self) -> Duration {
        Duration::from_micros(self.sum_micros.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timings_are_counted_below_their_bounds() {
        let timings = Timings::new(Duration::from_millis(1));
        for micros in [1, 1000, 1001, 5000, 100_000_000] {
            timings.observe(Duration::from_micros(micros));
        }
        let cumulative = timings.cumulative();
        assert_eq!(cumulative.len(), TIMINGS_BOUNDS);
        assert_eq!(cumulative[0], (Duration::from_millis(1), 2));
        assert_eq!(cumulative[1], (Duration::from_millis(2), 3));
        assert_eq!(cumulative[3], (Duration::from_millis(8), 4));
        assert_eq!(cumulative[13], (Duration::from_millis(8192), 4));
        assert_eq!((timings.count(), timings.sum()), (5, Duration::from_micros(100_007_002)));
    }

    #[test]
    fn a_round_trip_is_from_a_heartbeat_to_the_first_answer_that_is_no_older() {
        let meters = Meters::default();
        let peer = meters.peer(NodeId::new(2, 1));
        peer.heartbeat_left(5, Time::from_micros(1000));
        peer.heartbeat_left(6, Time::from_micros(1400));
        peer.heartbeat_answered(4, Time::from_micros(1450));
        assert_eq!(peer.round_trips.count(), 0);
        peer.heartbeat_answered(6, Time::from_micros(1500));
        peer.heartbeat_answered(6, Time::from_micros(1600));
        assert_eq!(meters.peer(NodeId::new(2, 1)).round_trips.sum(), Duration::from_micros(500));
        // One that was never answered is given up.
        peer.heartbeat_left(7, Time::from_micros(2000));
        peer.heartbeat_left(8, Time::from_micros(2_000_000));
        peer.heartbeat_answered(7, Time::from_micros(2_000_001));
        peer.heartbeat_answered(8, Time::from_micros(2_000_100));
        assert_eq!((peer.round_trips.count(), meters.peers().len()), (2, 1));
    }
}
