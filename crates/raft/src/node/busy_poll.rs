//! Waiting awake, for a moment, where the next event is about to come.
//!
//! A thread that sleeps costs a wake-up: some 5 µs on a busy machine, 20 to 50 on a virtual one whose processor has gone
//! idle, and a write has eight of them on its way. While events come close together, a thread therefore looks again and
//! again before it sleeps. Each time it offers its processor to whoever else can use it. When events come rarely, and on
//! a machine with one processor, nobody ever waits awake.

use std::time::{Duration, Instant};

/// Waits longer than this count as this long.
const WAIT_COUNTED_MAX: Duration = Duration::from_millis(20);
/// Weight of the past in the average, against one new wait.
const PAST: u32 = 7;

/// Decides whether one thread waits awake.
#[derive(Clone, Debug)]
pub(super) struct BusyPoll {
    /// The longest time awake of one wait; zero: never.
    limit: Duration,
    /// How long this thread waited lately.
    average: Duration,
    began: Instant,
}

impl BusyPoll {
    /// At most `limit` for each wait, and only while waits last half of that on average.
    pub(super) fn new(limit: Duration) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let limit = if processors > 1 { limit } else { Duration::ZERO };
        Self { limit, average: WAIT_COUNTED_MAX, began: Instant::now() }
    }

    /// A wait begins.
    pub(super) fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// Whether to look once more before sleeping. Lets other threads run first.
    pub(super) fn stays_awake(&self) -> bool {
        let stays = self.is_worth_it() && self.began.elapsed() < self.limit;
        if stays {
            std::thread::yield_now();
        }
        stays
    }

    /// What was waited for has come.
    pub(super) fn end(&mut self) {
        self.waited(self.began.elapsed());
    }

    fn waited(&mut self, wait: Duration) {
        self.average = (self.average * PAST + wait.min(WAIT_COUNTED_MAX)) / (PAST + 1);
    }

    fn is_worth_it(&self) -> bool {
        self.average <= self.limit / 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn millis(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// One event in ten heartbeats must not cost a processor; a stream of them may.
    #[test]
    fn only_a_stream_of_events_is_waited_for_awake() {
        let mut poll = BusyPoll { limit: millis(1), ..BusyPoll::new(Duration::ZERO) };
        assert!(!poll.is_worth_it(), "at first it sleeps");
        for _ in 0..40 {
            poll.waited(millis(1) / 5);
        }
        assert!(poll.is_worth_it());
        poll.waited(Duration::from_secs(3600));
        assert!(!poll.is_worth_it(), "after a long wait it sleeps at once");
        for _ in 0..40 {
            poll.waited(millis(1) / 5);
        }
        for _ in 0..10 {
            poll.waited(millis(1));
        }
        assert!(!poll.is_worth_it(), "too rare to stay awake for");
    }

    #[test]
    fn a_limit_of_zero_never_stays_awake() {
        let mut poll = BusyPoll::new(Duration::ZERO);
        for _ in 0..100 {
            poll.waited(Duration::ZERO);
        }
        poll.begin();
        assert!(!poll.stays_awake());
    }
}
