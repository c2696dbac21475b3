//! A machine's clock: it has an offset, runs a little too fast or too slow, and may stop or jump.

use raft_core::Time;

/// When a stopped clock is looked at again, in the world's microseconds.
const LOOK_AGAIN: u64 = 20_000;

/// A clock, in microseconds.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Clock {
    /// Rate in millionths of the world's; zero while it stands still.
    rate: u64,
    /// What it showed...
    local: u64,
    /// ... at this moment of the world.
    at: u64,
    /// The latest that it has ever shown before it jumped back.
    latest: u64,
}

impl Clock {
    pub(crate) const fn new(rate: u64, origin: u64) -> Self {
        Self { rate, local: origin, at: 0, latest: 0 }
    }

    const fn shows(&self, at: u64) -> u64 {
        self.local + at.saturating_sub(self.at) * self.rate / 1_000_000
    }

    /// Its time when the world's is `at`.
    pub(crate) const fn local(&self, at: u64) -> Time {
        Time::from_micros(self.shows(at))
    }

    /// The world's time at which it shows `time`, or soon after; some time after `now` when it stands still.
    pub(crate) const fn global(&self, now: u64, time: Time) -> u64 {
        if self.rate == 0 {
            return now + LOOK_AGAIN;
        }
        let passes = time.as_micros().saturating_sub(self.local);
        self.at + (passes.saturating_mul(1_000_000) / self.rate).saturating_add(2)
    }

    /// Runs at this rate from now on.
    pub(crate) const fn set_rate(&mut self, now: u64, rate: u64) {
        *self = Self { rate, local: self.shows(now), at: now, ..*self };
    }

    pub(crate) const fn rate(&self) -> u64 {
        self.rate
    }

    /// Jumps, forward or back.
    pub(crate) fn jump(&mut self, now: u64, micros: i64) {
        let shown = self.shows(now);
        self.latest = self.latest.max(shown);
        (self.local, self.at) = (shown.saturating_add_signed(micros), now);
    }

    /// Runs, and shows what it would if it had never jumped back.
    pub(crate) fn repair(&mut self, now: u64) {
        let local = self.shows(now).max(self.latest);
        let rate = if self.rate == 0 { 1_000_000 } else { self.rate };
        *self = Self { rate, local, at: now, ..*self };
    }
}
