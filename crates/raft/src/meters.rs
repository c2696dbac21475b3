//! What a node measures of itself: atomics that its threads count in and anybody may read.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
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
    /// What was found damaged, and what became of it.
    pub damage: DamageMeters,
    /// Changed by the raft thread only, when a peer is met for the first time.
    peers: ArcSwap<BTreeMap<NodeId, Arc<PeerMeters>>>,
}

impl Default for Meters {
    fn default() -> Self {
        Self {
            log_writes: Timings::new(Duration::from_millis(1)),
            damage: DamageMeters::default(),
            peers: ArcSwap::default(),
        }
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

/// Damages that are named at once; the others are only counted.
const DAMAGES_NAMED_MAX: usize = 16;

/// Bytes on disk that are not what was written, and are not repaired yet.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct OpenDamage {
    /// The file.
    pub path: PathBuf,
    /// Where in it, in bytes.
    pub offset: u64,
    /// What is wrong.
    pub problem: String,
}

/// What was found damaged on this node's disk since the process began. Counts only grow.
#[derive(Debug, Default)]
pub struct DamageMeters {
    found: AtomicU64,
    repaired: AtomicU64,
    folders_set_aside: AtomicU64,
    /// Oldest first.
    open: ArcSwap<Vec<OpenDamage>>,
}

impl DamageMeters {
    /// Damage was found. The same place counts once for as long as it is not repaired.
    pub(crate) fn found(&self, path: &Path, offset: u64, problem: &str) {
        let is_new = !self.open.load().iter().any(|it| it.path == path && it.offset == offset);
        if !is_new {
            return;
        }
        self.found.fetch_add(1, Ordering::Relaxed);
        self.open.rcu(|open| {
            let mut open = Vec::clone(open);
            if open.len() < DAMAGES_NAMED_MAX {
                let (path, problem) = (path.to_path_buf(), problem.to_owned());
                open.push(OpenDamage { path, offset, problem });
            }
            open
        });
    }

    /// What was damaged there is again what was written.
    pub(crate) fn repaired(&self, path: &Path, offset: u64) {
        self.repaired.fetch_add(1, Ordering::Relaxed);
        self.close(|it| it.path == path && it.offset == offset);
    }

    /// Damage that was found and needs no repair: nothing depends on it any more.
    pub(crate) fn close(&self, is_closed: impl Fn(&OpenDamage) -> bool) {
        self.open.rcu(|open| open.iter().filter(|it| !is_closed(it)).cloned().collect::<Vec<_>>());
    }

    /// So many folders of this node stand aside, because they were damaged.
    pub(crate) fn set_folders_aside(&self, count: usize) {
        let count = u64::try_from(count).unwrap_or(u64::MAX);
        self.folders_set_aside.store(count, Ordering::Relaxed);
    }

    /// Damages found.
    #[must_use]
    pub fn found_total(&self) -> u64 {
        self.found.load(Ordering::Relaxed)
    }

    /// Damages repaired: what was damaged was written again.
    #[must_use]
    pub fn repaired_total(&self) -> u64 {
        self.repaired.load(Ordering::Relaxed)
    }

    /// Folders of this node that were set aside and still stand there: each time, it was taken in as a new member.
    #[must_use]
    pub fn folders_set_aside(&self) -> u64 {
        self.folders_set_aside.load(Ordering::Relaxed)
    }

    /// Damage that is not repaired yet, oldest first; at most 16.
    #[must_use]
    pub fn open(&self) -> Arc<Vec<OpenDamage>> {
        self.open.load_full()
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
    fn damage_counts_once_and_is_named_until_it_is_repaired() {
        let damage = DamageMeters::default();
        let log = Path::new("1.log");
        for offset in [512, 512, 1024] {
            damage.found(log, offset, "rotten");
        }
        assert_eq!((damage.found_total(), damage.open().len()), (2, 2));
        damage.repaired(log, 512);
        assert_eq!((damage.repaired_total(), damage.open().len()), (1, 1));
        assert_eq!(damage.open()[0].offset, 1024);
        damage.close(|it| it.path == log);
        damage.found(log, 512, "again");
        assert_eq!((damage.found_total(), damage.open().len()), (3, 1));
        (0..100).for_each(|offset| damage.found(log, offset * 4096, "everywhere"));
        assert_eq!((damage.found_total(), damage.open().len()), (103, DAMAGES_NAMED_MAX));
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
