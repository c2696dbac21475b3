//! What one thread measured, and the sum of several.

use std::collections::BTreeMap;

use hdrhistogram::Histogram;

/// Latencies beyond it are counted as this long: ten minutes, in nanoseconds.
const LATENCY_MAX: u64 = 600_000_000_000;

/// Latencies in nanoseconds, exact to one in a thousand.
fn histogram() -> Histogram<u64> {
    Histogram::new_with_bounds(1, LATENCY_MAX, 3).expect("constants that the library takes")
}

/// What was measured.
#[derive(Clone, Debug)]
pub struct Tally {
    /// Of successful requests, nanoseconds from when they were due.
    pub latency: Histogram<u64>,
    /// Those of them that read, where both are sent.
    pub reads: Histogram<u64>,
    /// Those of them that wrote, where both are sent.
    pub writes: Histogram<u64>,
    /// From when a write was due until a watcher heard of it.
    pub deliveries: Histogram<u64>,
    /// Requests that succeeded within the measured time.
    pub in_window: u64,
    /// Deliveries within the measured time.
    pub deliveries_in_window: u64,
    /// Failed requests by what went wrong.
    pub errors: BTreeMap<String, u64>,
    /// Reads that were answered without the key.
    pub empty: u64,
    /// Bytes of answers.
    pub received: u64,
    /// Requests that were due and not sent, because all clients still waited when it was over.
    pub unsent: u64,
}

impl Tally {
    /// Nothing yet.
    #[must_use]
    pub fn new() -> Self {
        Self {
            latency: histogram(),
            reads: histogram(),
            writes: histogram(),
            deliveries: histogram(),
            in_window: 0,
            deliveries_in_window: 0,
            errors: BTreeMap::new(),
            empty: 0,
            received: 0,
            unsent: 0,
        }
    }

    /// Counts a failure.
    pub(super) fn fail(&mut self, reason: String) {
        *self.errors.entry(reason).or_default() += 1;
    }

    /// Failed requests.
    #[must_use]
    pub fn failed(&self) -> u64 {
        self.errors.values().sum()
    }

    /// Adds what another one measured.
    pub(super) fn add(&mut self, other: &Self) {
        for (mine, theirs) in [
            (&mut self.latency, &other.latency),
            (&mut self.reads, &other.reads),
            (&mut self.writes, &other.writes),
            (&mut self.deliveries, &other.deliveries),
        ] {
            // Their bounds are the same.
            mine.add(theirs).ok();
        }
        self.in_window += other.in_window;
        self.deliveries_in_window += other.deliveries_in_window;
        for (reason, count) in &other.errors {
            *self.errors.entry(reason.clone()).or_default() += count;
        }
        self.empty += other.empty;
        self.received += other.received;
        self.unsent += other.unsent;
    }
}

impl Default for Tally {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sums_are_what_one_would_have_counted() {
        let (mut a, mut b) = (Tally::new(), Tally::new());
        a.latency.saturating_record(1000);
        b.latency.saturating_record(LATENCY_MAX * 2);
        a.fail(String::from("x"));
        b.fail(String::from("x"));
        b.fail(String::from("y"));
        b.in_window = 1;
        a.add(&b);
        assert_eq!((a.latency.len(), a.failed(), a.in_window), (2, 3, 1));
        assert_eq!(a.errors["x"], 2);
        // Nothing is lost at the upper end.
        assert!(a.latency.max() >= LATENCY_MAX);
    }
}
