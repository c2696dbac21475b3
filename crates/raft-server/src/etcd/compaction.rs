//! Old revisions that go by themselves, as etcd's `auto-compaction-*` says.
//!
//! Every member keeps its own notes; the leader proposes. A change of leaders costs nothing, since whoever becomes one has
//! been taking notes all along.

use std::collections::VecDeque;
use std::time::Duration;

use raft::Node;
use raft_kv::proto::etcdserverpb::CompactionRequest;
use raft_kv::{Command, Reader, Store};
use tokio::time::{Instant, MissedTickBehavior};

/// What is kept.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Compaction {
    /// Whatever was current within this time. Never zero.
    Periodic {
        /// How long.
        retention: Duration,
    },
    /// This many of the last revisions, looked at every five minutes. Never zero.
    Revision {
        /// How many.
        retention: i64,
    },
}

/// How often revisions are counted.
const REVISION_INTERVAL: Duration = Duration::from_secs(300);
/// A period is noted this many times.
const NOTES: u32 = 10;
/// Longer periods are looked at as if they were this long.
const PERIOD_MAX: Duration = Duration::from_secs(3600);
/// Nothing is looked at more often.
const INTERVAL_MIN: Duration = Duration::from_millis(10);

impl Compaction {
    /// How often to look.
    fn interval(self) -> Duration {
        match self {
            Self::Periodic { retention } => (retention.min(PERIOD_MAX) / NOTES).max(INTERVAL_MIN),
            Self::Revision { .. } => REVISION_INTERVAL,
        }
    }
}

/// Decides when to compact and up to where. Sans-IO: time is handed in.
#[derive(Debug)]
struct Keeper {
    compaction: Compaction,
    /// When which revision was current, oldest first; the first is older than the retention, or nothing is.
    notes: VecDeque<(Instant, i64)>,
    compacted_at: Option<Instant>,
    /// Up to where, last time.
    compacted: i64,
}

impl Keeper {
    const fn new(compaction: Compaction) -> Self {
        Self { compaction, notes: VecDeque::new(), compacted_at: None, compacted: 0 }
    }

    /// Takes note of the revision that is current at `now`; the revision to compact to, if that is due.
    fn look(&mut self, now: Instant, revision: i64) -> Option<i64> {
        let target = match self.compaction {
            Compaction::Revision { retention } => revision.saturating_sub(retention),
            Compaction::Periodic { retention } => {
                self.notes.push_back((now, revision));
                let old = |at: &Instant| now.saturating_duration_since(*at) >= retention;
                while self.notes.get(1).is_some_and(|(at, _)| old(at)) {
                    self.notes.pop_front();
                }
                let pause = retention.min(PERIOD_MAX);
                let is_early = |at: Instant| now.saturating_duration_since(at) < pause;
                if self.compacted_at.is_some_and(is_early) {
                    return None;
                }
                self.notes.front().filter(|(at, _)| old(at)).map_or(0, |(_, revision)| *revision)
            }
        };
        (target > self.compacted && target > 0).then_some(target)
    }

    /// What [`look`](Self::look) asked for is done.
    fn done(&mut self, now: Instant, revision: i64) {
        self.compacted_at = Some(now);
        self.compacted = revision;
    }
}

/// Compacts whenever it is due and this member leads.
pub(super) async fn run(node: Node<Store>, reader: Reader, compaction: Compaction) {
    let mut keeper = Keeper::new(compaction);
    let mut ticks = tokio::time::interval(compaction.interval());
    ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
    loop {
        ticks.tick().await;
        let Some(revision) = keeper.look(Instant::now(), reader.revision()) else { continue };
        if !node.status().is_leader() {
            continue;
        }
        if revision > reader.compact_revision() {
            let request = CompactionRequest { revision, physical: false };
            match node.propose(Command::compact(request)).await {
                Ok(_) => tracing::info!(revision, "compacted automatically"),
                Err(error) => {
                    // The next look tries again.
                    tracing::warn!(revision, %error, "automatic compaction failed");
                    continue;
                }
            }
        }
        keeper.done(Instant::now(), revision);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Looks every `interval`, while revisions grow by one each second; when what is compacted.
    fn compactions(compaction: Compaction, interval: Duration, looks: u32) -> Vec<(u64, i64)> {
        let mut keeper = Keeper::new(compaction);
        let start = Instant::now();
        let mut found = Vec::new();
        for look in 0..looks {
            let elapsed = interval * look;
            let now = start + elapsed;
            let seconds = elapsed.as_secs();
            if let Some(revision) = keeper.look(now, 1 + i64::try_from(seconds).unwrap()) {
                keeper.done(now, revision);
                found.push((seconds, revision));
            }
        }
        found
    }

    #[test]
    fn a_short_period_is_kept_and_looked_at_once_each() {
        let period = Compaction::Periodic { retention: Duration::from_secs(100) };
        assert_eq!(period.interval(), Duration::from_secs(10));
        let found = compactions(period, period.interval(), 41);
        // At 100 s nothing was done at second 0; revision 1 is the empty store's, and may go.
        assert_eq!(found, [(100, 1), (200, 101), (300, 201), (400, 301)]);
    }

    #[test]
    fn a_long_period_is_kept_whole_and_looked_at_every_hour() {
        let period = Compaction::Periodic { retention: Duration::from_secs(3 * 3600) };
        assert_eq!(period.interval(), Duration::from_secs(360));
        let found = compactions(period, period.interval(), 61);
        assert_eq!(found, [(10_800, 1), (14_400, 3601), (18_000, 7201), (21_600, 10_801)]);
    }

    #[test]
    fn the_last_revisions_are_kept() {
        let revisions = Compaction::Revision { retention: 500 };
        let found = compactions(revisions, revisions.interval(), 4);
        assert_eq!(found, [(600, 101), (900, 401)]);
    }

    #[test]
    fn nothing_is_compacted_twice() {
        let mut keeper = Keeper::new(Compaction::Revision { retention: 10 });
        let now = Instant::now();
        assert_eq!(keeper.look(now, 5), None);
        assert_eq!(keeper.look(now, 100), Some(90));
        // Not done: another member leads.
        assert_eq!(keeper.look(now, 100), Some(90));
        keeper.done(now, 90);
        assert_eq!(keeper.look(now, 100), None);
    }
}
