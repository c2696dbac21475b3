//! What the threads of one run share: its clock and a few counters.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::{Extent, Load, Plan};

/// What everybody does at the moment.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Connecting, writing the keys that will be read, beginning to watch.
    Preparing,
    /// Sending.
    Running,
    /// Watchers stop listening: everything has come, or nothing comes any more.
    Over,
}

/// How far a run has come.
#[derive(Clone, Copy, Debug)]
pub struct Shown {
    /// 0 to 1.
    pub part: f64,
    /// Requests that succeeded so far, the warm-up's included.
    pub done: u64,
    /// Requests that failed so far.
    pub failed: u64,
    /// Since the first request.
    pub elapsed: Duration,
}

/// Clock and counters of one run. Times are nanoseconds since the first request was due.
#[derive(Debug)]
pub struct Board {
    began: OnceLock<Instant>,
    /// Requests that are due before do not count.
    counts_from: u64,
    /// No request is due at or after this time; `u64::MAX` where the number of requests says when it is over.
    end: u64,
    total: u64,
    watchers: u64,
    timeout: Duration,
    stopped: AtomicBool,
    stopped_at: AtomicU64,
    claimed: AtomicU64,
    /// The number of the next key, where they are written in order.
    next_key: AtomicU64,
    done: AtomicU64,
    failed: AtomicU64,
    /// Clients who have had the answer to their last request.
    finished: AtomicU64,
    clients: u64,
    last_success: AtomicU64,
    /// When the last request ended, well or not.
    last_outcome: AtomicU64,
    longest_gap: AtomicU64,
    delivered: AtomicU64,
    last_delivery: AtomicU64,
}

fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

impl Board {
    pub(super) fn new(plan: &Plan) -> Self {
        let warmup = nanos(plan.warmup);
        let (end, total) = match plan.extent {
            Extent::Time(time) => (warmup.saturating_add(nanos(time)), u64::MAX),
            Extent::Total(total) => (u64::MAX, total),
        };
        let watchers = if let Load::Watch { watchers, .. } = plan.load { watchers } else { 0 };
        Self {
            began: OnceLock::new(),
            counts_from: if total == u64::MAX { warmup } else { 0 },
            end,
            total,
            watchers: u64::try_from(watchers).unwrap_or(u64::MAX),
            timeout: plan.timeout,
            stopped: AtomicBool::new(false),
            stopped_at: AtomicU64::new(u64::MAX),
            claimed: AtomicU64::new(0),
            next_key: AtomicU64::new(0),
            done: AtomicU64::new(0),
            failed: AtomicU64::new(0),
            finished: AtomicU64::new(0),
            // With a rate, each thread's dispatcher is one.
            clients: u64::try_from(if plan.rate.is_some() { plan.threads } else { plan.clients })
                .unwrap_or(u64::MAX),
            last_success: AtomicU64::new(0),
            last_outcome: AtomicU64::new(0),
            longest_gap: AtomicU64::new(0),
            delivered: AtomicU64::new(0),
            last_delivery: AtomicU64::new(0),
        }
    }

    /// The clock begins.
    pub(super) fn start(&self) {
        self.began.get_or_init(Instant::now);
    }

    /// Nanoseconds since the clock began; 0 before.
    pub(super) fn now(&self) -> u64 {
        self.began.get().map_or(0, |began| nanos(began.elapsed()))
    }

    /// When a time of the board is.
    pub(super) fn instant(&self, time: u64) -> Option<Instant> {
        self.began.get()?.checked_add(Duration::from_nanos(time))
    }

    /// Whether a request that is due then may still be sent; claims its place among the total.
    pub(super) fn claim(&self, due: u64) -> bool {
        due < self.end
            && !self.stopped.load(Ordering::Relaxed)
            && (self.total == u64::MAX || self.claimed.fetch_add(1, Ordering::Relaxed) < self.total)
    }

    /// The number of the key that is written next.
    pub(super) fn next_key(&self) -> u64 {
        self.next_key.fetch_add(1, Ordering::Relaxed)
    }

    /// Nobody sends anything any more. Does nothing where all that was asked for is already on its way.
    pub(super) fn stop(&self) {
        if !self.is_over() && !self.stopped.swap(true, Ordering::Relaxed) {
            self.stopped_at.store(self.now(), Ordering::Relaxed);
        }
    }

    /// Whether it was stopped before all that was asked for had been sent.
    pub(super) fn was_stopped(&self) -> bool {
        self.stopped.load(Ordering::Relaxed)
    }

    /// When it ended: for a number of requests with the last of them, even if that failed. A cluster that dies under the
    /// last requests has not been fast.
    fn ended(&self) -> u64 {
        let end = self.end.min(self.stopped_at.load(Ordering::Relaxed));
        if end == u64::MAX { self.last_outcome.load(Ordering::Relaxed) } else { end }
    }

    /// Whether no more requests are due.
    pub(super) fn is_over(&self) -> bool {
        self.now() >= self.end
            || self.stopped.load(Ordering::Relaxed)
            || self.claimed.load(Ordering::Relaxed) >= self.total
    }

    /// Whether a request that was due then counts.
    pub(super) const fn counts(&self, due: u64) -> bool {
        due >= self.counts_from
    }

    /// Whether an answer at this time counts for the throughput.
    pub(super) fn in_window(&self, time: u64) -> bool {
        time >= self.counts_from && time < self.end.min(self.stopped_at.load(Ordering::Relaxed))
    }

    pub(super) fn succeeded(&self, now: u64) {
        self.done.fetch_add(1, Ordering::Relaxed);
        self.last_outcome.fetch_max(now, Ordering::Relaxed);
        // The clock begins when everything is connected: a wait for the first success is a gap like any other.
        let last = self.last_success.fetch_max(now, Ordering::Relaxed);
        if self.counts(now) {
            let gap = now.saturating_sub(last.max(self.counts_from));
            self.longest_gap.fetch_max(gap, Ordering::Relaxed);
        }
    }

    pub(super) fn failed(&self, now: u64) {
        self.failed.fetch_add(1, Ordering::Relaxed);
        self.last_outcome.fetch_max(now, Ordering::Relaxed);
    }

    pub(super) fn delivered(&self, events: u64) {
        self.delivered.fetch_add(events, Ordering::Relaxed);
        self.last_delivery.fetch_max(self.now(), Ordering::Relaxed);
    }

    /// A client has had the answer to its last request.
    pub(super) fn finished(&self) {
        self.finished.fetch_add(1, Ordering::Relaxed);
    }

    /// Whether all clients are done, and the watchers have heard of everything, or of nothing for a while.
    pub(super) fn nothing_is_to_come(&self) -> bool {
        if self.finished.load(Ordering::Relaxed) < self.clients {
            return false;
        }
        let heard = self.delivered.load(Ordering::Relaxed);
        let last = self.last_delivery.load(Ordering::Relaxed);
        let last = last.max(self.last_success.load(Ordering::Relaxed));
        heard >= self.expected() || self.now().saturating_sub(last) > nanos(self.timeout)
    }

    /// Deliveries to all watchers of everything that was written.
    fn expected(&self) -> u64 {
        self.done.load(Ordering::Relaxed).saturating_mul(self.watchers)
    }

    /// Deliveries that have not come. A failed write may have been delivered nevertheless and hide one.
    pub(super) fn missing(&self) -> u64 {
        self.expected().saturating_sub(self.delivered.load(Ordering::Relaxed))
    }

    /// The longest time without any success: from the beginning, between successes or up to the end.
    pub(super) fn longest_gap(&self) -> Duration {
        let last = self.last_success.load(Ordering::Relaxed);
        let open = self.ended().saturating_sub(last.max(self.counts_from));
        Duration::from_nanos(open.max(self.longest_gap.load(Ordering::Relaxed)))
    }

    /// How long requests counted.
    pub(super) fn window(&self) -> Duration {
        Duration::from_nanos(self.ended().saturating_sub(self.counts_from))
    }

    /// How far it has come.
    pub(super) fn shown(&self) -> Shown {
        let now = self.now();
        let done = self.done.load(Ordering::Relaxed);
        let part = if self.total == u64::MAX {
            ratio(now, self.end)
        } else {
            ratio(done.saturating_add(self.failed.load(Ordering::Relaxed)), self.total)
        };
        Shown {
            part: part.min(1.0),
            done,
            failed: self.failed.load(Ordering::Relaxed),
            elapsed: Duration::from_nanos(now),
        }
    }
}

/// A part of a whole; good for display, not for counting.
pub(super) fn ratio(part: u64, whole: u64) -> f64 {
    let seconds = |count| Duration::from_nanos(count).as_secs_f64();
    if whole == 0 { 0.0 } else { seconds(part) / seconds(whole) }
}

#[cfg(test)]
mod tests {
    use super::super::tests::plan;
    use super::*;

    #[test]
    fn a_total_is_claimed_exactly() {
        let board = Board::new(&Plan { extent: Extent::Total(3), ..plan() });
        board.start();
        let claimed = (0..10).filter(|_| board.claim(board.now())).count();
        assert_eq!(claimed, 3);
        assert!(board.is_over());
    }

    #[test]
    fn nothing_is_due_at_the_end_and_the_warm_up_does_not_count() {
        let second = Duration::from_secs(1);
        let board = Board::new(&Plan { extent: Extent::Time(second), warmup: second, ..plan() });
        assert!(board.claim(1_999_999_999) && !board.claim(2_000_000_000));
        assert!(!board.counts(999_999_999) && board.counts(1_000_000_000));
        assert!(board.in_window(1_999_999_999) && !board.in_window(2_000_000_000));
        assert_eq!(board.window(), second);
    }

    #[test]
    fn the_longest_gap_reaches_to_the_end() {
        let board = Board::new(&Plan {
            extent: Extent::Time(Duration::from_secs(1)),
            warmup: Duration::ZERO,
            ..plan()
        });
        for time in [100, 300, 250] {
            board.succeeded(time * 1_000_000);
        }
        assert_eq!(board.longest_gap(), Duration::from_millis(700));
        board.succeeded(950_000_000);
        assert_eq!(board.longest_gap(), Duration::from_millis(650));
    }

    #[test]
    fn a_wait_for_the_first_success_is_a_gap() {
        let second = Duration::from_secs(1);
        let plan = Plan { extent: Extent::Time(second * 10), warmup: second, ..plan() };
        let board = Board::new(&plan);
        board.succeeded(6_000_000_000);
        board.succeeded(10_000_000_000);
        assert_eq!(board.longest_gap(), second * 5, "the warm-up does not count");
    }

    #[test]
    fn a_total_that_ends_in_failures_lasts_until_the_last_of_them() {
        let board = Board::new(&Plan { extent: Extent::Total(3), ..plan() });
        board.succeeded(100_000_000);
        board.failed(5_100_000_000);
        board.failed(5_000_000_000);
        assert_eq!(board.window(), Duration::from_millis(5100));
        assert_eq!(board.longest_gap(), Duration::from_secs(5));
    }

    #[test]
    fn a_stop_after_the_end_stops_nothing() {
        let board = Board::new(&Plan { extent: Extent::Total(1), ..plan() });
        board.start();
        assert!(board.claim(0));
        board.stop();
        assert!(!board.was_stopped());
        let board = Board::new(&Plan { extent: Extent::Total(2), ..plan() });
        board.start();
        assert!(board.claim(0));
        board.stop();
        assert!(board.was_stopped());
    }

    #[test]
    fn who_stops_early_shortens_the_window() {
        let board = Board::new(&Plan { warmup: Duration::ZERO, ..plan() });
        board.start();
        board.stop();
        assert!(!board.claim(0) && board.window() < Duration::from_secs(1));
    }
}
