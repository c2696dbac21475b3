//! When leases end: the only part of them that knows time. Sans-IO, time is an argument.
//!
//! Every member runs one of these beside its store and feeds it what the store says about leases
//! ([`LeaseChange`]). It notes when it heard of each grant and renewal. On the leader it says which leases are over; the
//! leader then proposes that they end ([`Command::lease_expire`](crate::Command::lease_expire)).
//!
//! A renewal is heard of here only after it was committed. A lease is over when its seconds and the [`LeaseSlack`]
//! have passed since then, so an acknowledgement that left within the slack of the request never promised more than is
//! kept; a later one promises less ([`LeaseSlack::promise`]). A new leader heard of earlier renewals at times of which it
//! cannot be sure: it gives every lease its full time once more, from its first own commit on (decision 16).

use std::cmp::Reverse;
use std::collections::{BTreeMap, BinaryHeap};
use std::time::Duration;

use raft_core::{Term, Time, mutant};

use crate::proto::raftkv::Expiry;
use crate::store::lease::{LeaseChange, LeaseRecord};

/// The most leases that end with one command.
const EXPIRE_MAX: usize = 512;

/// What a lease lives beyond its seconds: one longest election timeout, and [`MAX`](Self::MAX) at most.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct LeaseSlack(Duration);

impl LeaseSlack {
    /// How late etcd's leader may be, which looks for leases that are over twice a second: whoever counts on a lease's
    /// end need not wait longer here.
    pub const MAX: Duration = Duration::from_millis(500);

    /// That of a cluster with this longest election timeout.
    #[must_use]
    pub fn of(election_timeout_max: Duration) -> Self {
        Self(election_timeout_max.min(Self::MAX))
    }

    /// The seconds that may be promised to a client `elapsed` after it asked that a lease of `ttl` seconds be granted
    /// or renewed, which was done meanwhile: what it took beyond the slack is taken off. 0 seconds, of a lease that does
    /// not exist, stay as they are. `None`: nothing is left to promise, so that it must be renewed again.
    #[must_use]
    pub fn promise(self, ttl: i64, elapsed: Duration) -> Option<i64> {
        let late = elapsed.saturating_sub(self.0).as_millis().div_ceil(1000);
        let late = i64::try_from(late).unwrap_or(i64::MAX);
        if late == 0 || ttl == 0 { Some(ttl) } else { Some(ttl - late).filter(|left| *left > 0) }
    }
}

/// The leases' clock.
#[derive(Debug)]
pub struct LeaseClock {
    /// What a lease lives beyond its seconds.
    slack: Duration,
    /// Whoever is called so much later than was asked for has not run for a while, and for so long hears what it has
    /// missed: half of a longest election timeout.
    absence: Duration,
    leases: BTreeMap<i64, Tracked>,
    /// The term in which this member leads and ends leases.
    leading: Option<Term>,
    /// On a leader: when to look at each lease again. A renewal does not move its entry; the look does.
    due: BinaryHeap<Reverse<(Time, i64)>>,
    /// Nothing ends before: this process has not run for a while, and renewals may wait to be heard.
    hold_until: Time,
    /// What [`deadline`](Self::deadline) was when it was last asked.
    promised: Option<Time>,
}

/// One lease.
#[derive(Debug)]
struct Tracked {
    /// Seconds.
    ttl: Duration,
    renewals: u64,
    /// Since when its seconds count.
    base: Time,
    /// Its entry in `due`; any other one for it is void.
    queued: Option<Time>,
}

impl LeaseClock {
    /// A clock without leases on a member that does not lead. `election_timeout_max` is the cluster's.
    #[must_use]
    pub fn new(election_timeout_max: Duration) -> Self {
        Self {
            slack: LeaseSlack::of(election_timeout_max).0,
            absence: election_timeout_max / 2,
            leases: BTreeMap::new(),
            leading: None,
            due: BinaryHeap::new(),
            hold_until: Time::ZERO,
            promised: None,
        }
    }

    /// The store has changed.
    pub fn hear(&mut self, now: Time, change: LeaseChange) {
        match change {
            LeaseChange::Alive(record) => self.alive(now, record),
            LeaseChange::Ended(id) => {
                self.leases.remove(&id);
            }
            LeaseChange::Replaced(records) => {
                self.leases.clear();
                self.due.clear();
                for record in records {
                    self.alive(now, record);
                }
            }
        }
    }

    fn alive(&mut self, now: Time, record: LeaseRecord) {
        let LeaseRecord { id, ttl, renewals } = record;
        let ttl = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
        let mut lease = Tracked { ttl, renewals, base: now, queued: None };
        let queued = self.leases.get(&id).and_then(|lease| lease.queued);
        lease.queued = queued.filter(|at| *at <= lease.end(self.slack));
        let is_queued = lease.queued.is_some();
        self.leases.insert(id, lease);
        if !is_queued {
            self.queue(id);
        }
    }

    /// This member leads in `term`, and has committed something of its own in it. Every lease begins anew.
    pub fn lead(&mut self, now: Time, term: Term) {
        self.leading = Some(term);
        self.begin_anew(now);
        let ids: Vec<i64> = self.leases.keys().copied().collect();
        for id in ids {
            self.queue(id);
        }
    }

    /// Another member leads, or nobody is known to; every lease begins anew with a new leader.
    pub fn follow(&mut self, now: Time) {
        self.leading = None;
        self.begin_anew(now);
    }

    /// The term in which this clock ends leases.
    #[must_use]
    pub const fn leading(&self) -> Option<Term> {
        self.leading
    }

    fn begin_anew(&mut self, now: Time) {
        self.due.clear();
        for lease in self.leases.values_mut() {
            lease.base = now;
            lease.queued = None;
        }
    }

    /// Sees to it that a leader looks at the lease when it may be over.
    fn queue(&mut self, id: i64) {
        if self.leading.is_none() {
            return;
        }
        if let Some(lease) = self.leases.get_mut(&id) {
            let end = lease.end(self.slack);
            lease.queued = Some(end);
            self.due.push(Reverse((end, id)));
        }
    }

    /// The leases that are over, oldest first, as many as go into one command; nothing unless this member leads.
    /// They are not named again until [`settle`](Self::settle) is called with them.
    pub fn over(&mut self, now: Time) -> Vec<Expiry> {
        let late = self.promised.take().map_or(Duration::ZERO, |promised| now.since(promised));
        if late > self.absence && !mutant::is_active(39) {
            self.hold_until = now.after(self.absence);
        }
        let mut over = Vec::new();
        while now >= self.hold_until && over.len() < EXPIRE_MAX {
            let Some(&Reverse((at, id))) = self.due.peek().filter(|next| next.0.0 <= now) else {
                break;
            };
            self.due.pop();
            let Some(lease) = self.leases.get_mut(&id).filter(|lease| lease.queued == Some(at))
            else {
                continue;
            };
            lease.queued = None;
            if lease.end(self.slack) > now {
                // Renewed since.
                self.queue(id);
            } else {
                over.push(Expiry { id, renewals: lease.renewals });
            }
        }
        over
    }

    /// The command that named these leases has been answered, or never will be: those that are still there are
    /// looked at again.
    pub fn settle(&mut self, leases: &[Expiry]) {
        for Expiry { id, .. } in leases {
            if self.leases.get(id).is_some_and(|lease| lease.queued.is_none()) {
                self.queue(*id);
            }
        }
    }

    /// When [`over`](Self::over) is to be called, at the latest; not before `now`.
    pub fn deadline(&mut self, now: Time) -> Option<Time> {
        let next = self.due.peek().map(|next| next.0.0);
        self.promised = next.map(|next| next.max(self.hold_until).max(now));
        self.promised
    }

    /// What is left of the lease's seconds, as far as this member knows; `None` when there is no such lease. After
    /// a restart or a change of leader a member may say too much until the next renewal, never more than was
    /// granted.
    #[must_use]
    pub fn remaining(&self, now: Time, id: i64) -> Option<Duration> {
        let lease = self.leases.get(&id)?;
        Some(lease.base.after(lease.ttl).since(now))
    }
}

impl Tracked {
    fn end(&self, slack: Duration) -> Time {
        self.base.after(self.ttl).after(slack)
    }
}

#[cfg(test)]
mod tests {
    use proptest::collection::vec;
    use proptest::prelude::*;

    use super::*;

    const SLACK: Duration = Duration::from_millis(500);

    fn at(millis: u64) -> Time {
        Time::from_micros(millis * 1000)
    }

    fn alive(id: i64, ttl: i64, renewals: u64) -> LeaseChange {
        LeaseChange::Alive(LeaseRecord { id, ttl, renewals })
    }

    fn leader() -> LeaseClock {
        let mut clock = LeaseClock::new(SLACK);
        clock.lead(at(0), Term(1));
        clock
    }

    #[test]
    fn a_lease_is_over_after_its_seconds_and_the_slack() {
        let mut clock = leader();
        clock.hear(at(100), alive(1, 2, 0));
        assert_eq!(clock.deadline(at(0)), Some(at(2600)));
        assert_eq!(clock.over(at(2599)), []);
        assert_eq!(clock.remaining(at(1100), 1), Some(Duration::from_secs(1)));
        let over = clock.over(at(2600));
        assert_eq!(over, [Expiry { id: 1, renewals: 0 }]);
        assert_eq!(clock.over(at(9000)), [], "named once");
        clock.settle(&over);
        assert_eq!(clock.over(at(9000)), over, "and again if nothing came of it");
        clock.hear(at(9000), LeaseChange::Ended(1));
        clock.settle(&over);
        assert_eq!((clock.deadline(at(0)), clock.remaining(at(9000), 1)), (None, None));
    }

    #[test]
    fn slow_elections_do_not_keep_leases_longer_than_etcd_does() {
        let mut clock = LeaseClock::new(Duration::from_secs(2));
        clock.lead(at(0), Term(1));
        clock.hear(at(0), alive(1, 3, 0));
        assert_eq!(clock.deadline(at(0)), Some(at(3500)));
        assert_eq!(clock.over(at(3500)), [Expiry { id: 1, renewals: 0 }]);
    }

    #[test]
    fn no_more_is_promised_than_is_kept() {
        let slack = LeaseSlack::of(Duration::from_secs(2));
        let promise = |ttl, millis| slack.promise(ttl, Duration::from_millis(millis));
        assert_eq!(promise(3, 500), Some(3));
        assert_eq!((promise(3, 501), promise(3, 1500)), (Some(2), Some(2)));
        assert_eq!((promise(3, 2500), promise(3, 2501)), (Some(1), None));
        assert_eq!(promise(0, 9000), Some(0), "there is no such lease");
        assert_eq!(
            LeaseSlack::of(Duration::from_millis(300)).promise(3, Duration::from_millis(301)),
            Some(2)
        );
    }

    #[test]
    fn only_a_leader_ends_leases_and_a_new_one_gives_the_full_time_again() {
        let mut clock = LeaseClock::new(SLACK);
        clock.hear(at(0), alive(1, 2, 0));
        assert_eq!(clock.deadline(at(0)), None);
        assert_eq!(clock.over(at(50_000)), []);
        clock.lead(at(50_000), Term(7));
        assert_eq!(clock.deadline(at(0)), Some(at(52_500)));
        clock.follow(at(52_400));
        assert_eq!((clock.deadline(at(0)), clock.over(at(60_000))), (None, vec![]));
        assert_eq!(clock.remaining(at(53_400), 1), Some(Duration::from_secs(1)));
    }

    #[test]
    fn a_process_that_slept_hears_renewals_before_it_ends_anything() {
        let mut clock = leader();
        clock.hear(at(0), alive(1, 2, 0));
        clock.hear(at(0), alive(2, 2, 0));
        assert_eq!(clock.deadline(at(0)), Some(at(2500)));
        assert_eq!(clock.over(at(30_000)), []);
        assert_eq!(clock.deadline(at(0)), Some(at(30_250)));
        clock.hear(at(30_100), alive(1, 2, 1));
        assert_eq!(clock.over(at(30_250)), [Expiry { id: 2, renewals: 0 }]);
        assert_eq!(clock.deadline(at(0)), Some(at(32_600)));
    }

    #[test]
    fn a_restored_state_replaces_what_was_known() {
        let mut clock = leader();
        clock.hear(at(0), alive(1, 2, 0));
        let record = LeaseRecord { id: 2, ttl: 5, renewals: 3 };
        clock.hear(at(1000), LeaseChange::Replaced(vec![record]));
        assert_eq!(clock.deadline(at(0)), Some(at(6500)));
        assert_eq!(clock.over(at(6500)), [Expiry { id: 2, renewals: 3 }]);
    }

    #[derive(Clone, Debug)]
    enum Step {
        Alive(i64, i64),
        Ended(i64),
        Lead,
        Follow,
        Wait(u64),
        Settle,
    }

    fn step() -> impl Strategy<Value = Step> {
        prop_oneof![
            4 => (1..5_i64, 0..4_i64).prop_map(|(id, ttl)| Step::Alive(id, ttl)),
            1 => (1..5_i64).prop_map(Step::Ended),
            1 => Just(Step::Lead),
            1 => Just(Step::Follow),
            4 => (1..3000_u64).prop_map(Step::Wait),
            2 => Just(Step::Settle),
        ]
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 2000, failure_persistence: None, ..ProptestConfig::default() })]

        /// Against a list that is searched at every step: never early, at the deadline never late.
        #[test]
        fn leases_end_exactly_when_they_are_over(steps in vec(step(), 1..60)) {
            let mut clock = LeaseClock::new(SLACK);
            let mut naive: BTreeMap<i64, (u64, i64, u64)> = BTreeMap::new();
            let (mut now, mut leads, mut renewals) = (0, false, 0);
            let mut named: Vec<Expiry> = Vec::new();
            for step in steps {
                let mut end = now;
                match step {
                    Step::Alive(id, ttl) => {
                        renewals += 1;
                        clock.hear(at(now), alive(id, ttl, renewals));
                        naive.insert(id, (now, ttl, renewals));
                        named.retain(|expiry| expiry.id != id);
                    }
                    Step::Ended(id) => {
                        clock.hear(at(now), LeaseChange::Ended(id));
                        naive.remove(&id);
                        named.retain(|expiry| expiry.id != id);
                    }
                    Step::Lead | Step::Follow => {
                        leads = matches!(step, Step::Lead);
                        if leads { clock.lead(at(now), Term(1)) } else { clock.follow(at(now)) }
                        for lease in naive.values_mut() {
                            lease.0 = now;
                        }
                        named.clear();
                    }
                    Step::Wait(millis) => end = now + millis,
                    Step::Settle => {
                        clock.settle(&named);
                        named.clear();
                    }
                }
                // Call it whenever it asks to be called, and at the end.
                loop {
                    let next = clock.deadline(at(now)).filter(|next| *next <= at(end));
                    now = next.map_or(end, |next| next.as_micros() / 1000).max(now);
                    let over = clock.over(at(now));
                    for expiry in &over {
                        let (base, ttl, renewals) = naive[&expiry.id];
                        prop_assert!(leads && base + ttl.unsigned_abs() * 1000 + 500 <= now);
                        prop_assert_eq!(expiry.renewals, renewals);
                        prop_assert!(!named.contains(expiry), "named twice");
                    }
                    named.extend(over);
                    if next.is_none() {
                        break;
                    }
                }
                for (id, (base, ttl, _)) in &naive {
                    let over = base + ttl.unsigned_abs() * 1000 + 500 <= now;
                    let was_named = named.iter().any(|expiry| expiry.id == *id);
                    prop_assert_eq!(leads && over, was_named, "lease {} at {}", id, now);
                }
            }
        }
    }
}
