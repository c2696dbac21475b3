//! Waiting awake, for a moment, where the next event is about to come.
//!
//! A thread that sleeps costs a wake-up: some 5 µs on a busy machine, 20 to 50 on a virtual one whose processor has gone
//! idle, and a write has eight of them on its way. While events come close together, a thread therefore looks again and
//! again before it sleeps. Each time it offers its processor to whoever else can use it. When events come rarely, when
//! others keep the processor for long, and on a machine with one processor, nobody waits awake.

use std::time::{Duration, Instant};

/// Waits longer than this count as this long.
const WAIT_COUNTED_MAX: Duration = Duration::from_millis(20);
/// Weight of the past in the averages, against one new wait.
const PAST: u32 = 7;
/// When a processor that was offered comes back later than this on average, it is busy: nobody then needs to be woken
/// from idling, and each look around takes a turn from those that work. Measured with three members on two processors:
/// at 40 µs a lone client waits a tenth longer, since the members that wait awake offer the processor to each other;
/// above 100 µs too much of it is spent on looking around.
const ABSENCE_MAX: Duration = Duration::from_micros(80);

/// Decides whether one thread waits awake.
#[derive(Clone, Debug)]
pub(super) struct BusyPoll {
    /// The longest time awake of one wait; zero: never.
    limit: Duration,
    /// How long this thread waited lately.
    average: Duration,
    /// How long others kept the processor lately when it was offered.
    absence: Duration,
    began: Instant,
}

impl BusyPoll {
    /// At most `limit` for each wait, and only while waits last half of that on average.
    pub(super) fn new(limit: Duration) -> Self {
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let limit = if processors > 1 { limit } else { Duration::ZERO };
        Self { limit, average: WAIT_COUNTED_MAX, absence: Duration::ZERO, began: Instant::now() }
    }

    /// A wait begins.
    pub(super) fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// Whether to look once more before sleeping. Lets other threads run first.
    pub(super) fn stays_awake(&mut self) -> bool {
        if !self.is_worth_it() {
            return false;
        }
        let offered = Instant::now();
        if offered.duration_since(self.began) >= self.limit {
            return false;
        }
        std::thread::yield_now();
        // Also where it sleeps after that: so it learns that the processor is free again.
        self.was_absent(offered.elapsed());
        !self.is_crowded()
    }

    /// What was waited for has come.
    pub(super) fn end(&mut self) {
        self.waited(self.began.elapsed());
    }

    fn waited(&mut self, wait: Duration) {
        self.average = (self.average * PAST + wait.min(WAIT_COUNTED_MAX)) / (PAST + 1);
    }

    fn was_absent(&mut self, absence: Duration) {
        self.absence = (self.absence * PAST + absence.min(WAIT_COUNTED_MAX)) / (PAST + 1);
    }

    fn is_crowded(&self) -> bool {
        self.absence > ABSENCE_MAX
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

    /// Whoever waits awake on a busy processor takes it from those that would bring the event.
    #[test]
    fn a_busy_processor_is_left_to_others_until_it_is_free() {
        let mut poll = BusyPoll::new(Duration::ZERO);
        assert!(!poll.is_crowded());
        poll.was_absent(Duration::from_secs(3600));
        assert!(poll.is_crowded(), "one long absence is enough");
        let looks = (1..100).find(|_| {
            poll.was_absent(Duration::from_micros(1));
            !poll.is_crowded()
        });
        assert!(
            looks.is_some_and(|looks| looks > 10),
            "but it takes several short ones: {looks:?}"
        );
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
