//! How long leases must live: whoever is told that a lease has so many seconds finds it there for as long, whatever
//! becomes of leaders (decision 16).

use std::collections::BTreeMap;

use crate::profile::DRIFT_MAX_PPM;

/// The members' longest election timeout, in microseconds.
pub(super) const ELECTION_TIMEOUT_MAX: u64 = 300_000;

/// One lease, in microseconds of the world's time.
#[derive(Debug, Default)]
struct Promise {
    /// It lives at least until then.
    until: u64,
    /// It ran out, and when that was committed at the latest.
    expired: Option<u64>,
}

/// What was promised to anybody.
#[derive(Debug, Default)]
pub(super) struct Promises(BTreeMap<i64, Promise>);

impl Promises {
    /// A client that asked at `asked` is told at `now` that the lease has `ttl` seconds.
    ///
    /// # Panics
    /// When it had run out before that.
    pub(super) fn told(&mut self, id: i64, ttl: i64, asked: u64, now: u64) {
        // What takes longer is asked again by the service, before its client is told anything.
        let from = if now - asked <= ELECTION_TIMEOUT_MAX { now } else { asked };
        let ttl = u64::try_from(ttl).unwrap_or(0) * 1_000_000;
        let drift = (ttl + ELECTION_TIMEOUT_MAX) * DRIFT_MAX_PPM / 1_000_000;
        let promise = self.0.entry(id).or_default();
        promise.until = promise.until.max((from + ttl).saturating_sub(drift));
        promise.judge(id);
    }

    /// The lease has run out.
    ///
    /// # Panics
    /// When more was promised.
    pub(super) fn expired(&mut self, id: i64, now: u64) {
        let promise = self.0.entry(id).or_default();
        promise.expired = Some(now);
        promise.judge(id);
    }
}

impl Promise {
    fn judge(&self, id: i64) {
        let early = self.expired.filter(|at| *at < self.until);
        assert!(
            early.is_none(),
            "lease {id} ran out at {early:?}, and a client was told that it lives until {}",
            self.until
        );
    }
}
