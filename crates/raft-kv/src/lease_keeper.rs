//! One member's part in ending leases: hears what its store says, and decides what is asked of the node and when.
//! Sans-IO, as its [`LeaseClock`]: time and the node's standing are arguments, what is to be asked is an answer.
//!
//! ```text
//! store ── changes ──► keeper ── over ──► the node proposes that leases end ──► settled
//! node ── standing ─────►  └── look ──► the node confirms that it leads ──► confirmed
//! ```

use std::task::{Context, Poll};
use std::time::Duration;

use raft_core::{MemberId, Term, Time};

use crate::lease_clock::LeaseClock;
use crate::proto::raftkv::Expiry;
use crate::store::lease::LeaseChanges;

/// What the node knows of its place among the members.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Standing {
    /// Its term.
    pub term: Term,
    /// Who leads in that term, if it knows.
    pub leader: Option<MemberId>,
    /// It believes that it leads itself.
    pub leads: bool,
}

/// Ends leases while its member leads. Whoever runs it calls [`look`](Self::look) after whatever may have changed the
/// node's standing.
#[derive(Debug)]
pub struct LeaseKeeper {
    clock: LeaseClock,
    changes: LeaseChanges,
    /// The term in which this member was seen to lead.
    led: Option<Term>,
    /// Who was seen to lead, and in which term.
    known: Option<(Term, MemberId)>,
    /// The term that is being confirmed.
    confirming: Option<Term>,
    /// One command at a time; what ends meanwhile goes into the next.
    busy: bool,
}

impl LeaseKeeper {
    /// A keeper on a member that does not lead. `election_timeout_max` is the cluster's.
    #[must_use]
    pub fn new(changes: LeaseChanges, election_timeout_max: Duration) -> Self {
        Self {
            clock: LeaseClock::new(election_timeout_max),
            changes,
            led: None,
            known: None,
            confirming: None,
            busy: false,
        }
    }

    /// Hears everything that the store has said, so that nothing is decided on what has changed since.
    pub fn hear(&mut self, now: Time) {
        while let Some(change) = self.changes.take() {
            self.clock.hear(now, change);
        }
    }

    /// Ready once something was heard; false when the store is gone and nothing will be. `now` is asked once there is
    /// something.
    pub fn poll_heard(&mut self, context: &Context<'_>, now: impl FnOnce() -> Time) -> Poll<bool> {
        let mut heard = Vec::new();
        let ready = self.changes.poll_changed(context, &mut heard);
        if !heard.is_empty() {
            let now = now();
            for change in heard {
                self.clock.hear(now, change);
            }
        }
        ready
    }

    /// Takes in the node's standing. The term for which a read index is to be asked for, if any: it is given out only
    /// after an own-term commit, and [`confirmed`](Self::confirmed) is to be called with what came of it.
    pub fn look(&mut self, now: Time, standing: Standing) -> Option<Term> {
        let Standing { term, leader, leads } = standing;
        let reign = leader.map(|leader| (term, leader));
        if reign.is_some() && reign != self.known {
            self.known = reign;
            self.hear(now);
            self.clock.follow(now);
            self.led = None;
        }
        let leads = leads.then_some(term);
        if leads == self.led {
            return None;
        }
        self.led = leads;
        if leads.is_none() {
            self.clock.follow(now);
        }
        self.confirming = leads;
        leads
    }

    /// A read index in this term was given out or not; `holds` when the node still leads in it. If not,
    /// [`look`](Self::look) asks again while the node leads: whoever runs the keeper waits a while before.
    pub fn confirmed(&mut self, now: Time, term: Term, holds: bool) {
        if self.confirming != Some(term) {
            return;
        }
        self.confirming = None;
        self.hear(now);
        if holds {
            self.clock.lead(now, term);
        } else {
            self.led = None;
        }
    }

    /// What is to be proposed now, if anything ([`Command::lease_expire`](crate::Command::lease_expire)). Nothing
    /// more until [`settled`](Self::settled) is called with these leases.
    pub fn over(&mut self, now: Time) -> Option<(Term, Vec<Expiry>)> {
        let term = self.clock.leading().filter(|_| !self.busy)?;
        self.hear(now);
        let over = self.clock.over(now);
        if over.is_empty() {
            return None;
        }
        self.busy = true;
        Some((term, over))
    }

    /// What was to be proposed has been answered, or never will be.
    pub fn settled(&mut self, now: Time, leases: &[Expiry]) {
        self.busy = false;
        self.hear(now);
        self.clock.settle(leases);
    }

    /// When [`over`](Self::over) is to be called, at the latest; `None` until something else happens.
    pub fn deadline(&mut self, now: Time) -> Option<Time> {
        if self.busy || self.clock.leading().is_none() {
            return None;
        }
        self.clock.deadline(now)
    }

    /// The term in which this member ends leases.
    #[must_use]
    pub const fn leading(&self) -> Option<Term> {
        self.clock.leading()
    }

    /// See [`LeaseClock::remaining`]; of everything that the store has said.
    pub fn remaining(&mut self, now: Time, id: i64) -> Option<Duration> {
        self.hear(now);
        self.clock.remaining(now, id)
    }
}

#[cfg(test)]
mod tests {
    use raft_core::{ApplyContext, EntryId, StateMachine as _};

    use super::*;
    use crate::proto::etcdserverpb::LeaseGrantRequest;
    use crate::{Command, Store};

    const SLACK: Duration = Duration::from_millis(500);

    fn at(millis: u64) -> Time {
        Time::from_micros(millis * 1000)
    }

    fn leads(term: u64) -> Standing {
        Standing { term: Term(term), leader: Some(MemberId(1)), leads: true }
    }

    fn grant(store: &mut Store, id: i64, ttl: i64) {
        let grant = Command::lease_grant(LeaseGrantRequest { id, ttl });
        let answer = store.apply(ApplyContext::at(EntryId::new(1, 1)), grant);
        assert!(answer.is_ok());
        store.flush();
    }

    #[test]
    fn a_keeper_hears_everything_before_it_decides() {
        let mut store = Store::new();
        let mut keeper = LeaseKeeper::new(store.lease_changes(), SLACK);
        grant(&mut store, 1, 60);
        assert_eq!(keeper.look(at(0), leads(1)), Some(Term(1)));
        assert_eq!(keeper.deadline(at(0)), None, "not confirmed yet");
        keeper.confirmed(at(10), Term(1), true);
        assert_eq!(keeper.deadline(at(10)), Some(at(60_510)));
        assert_eq!(keeper.remaining(at(10), 1), Some(Duration::from_secs(60)));
        // It was never called since, and hears of the new lease first.
        grant(&mut store, 2, 60);
        assert_eq!(keeper.over(at(60_510)), Some((Term(1), vec![Expiry { id: 1, renewals: 0 }])));
        assert_eq!((keeper.over(at(70_000)), keeper.deadline(at(70_000))), (None, None), "busy");
    }

    #[test]
    fn a_reign_that_is_not_confirmed_is_asked_about_again_and_an_old_answer_is_void() {
        let mut store = Store::new();
        let mut keeper = LeaseKeeper::new(store.lease_changes(), SLACK);
        assert_eq!(keeper.look(at(0), leads(1)), Some(Term(1)));
        assert_eq!(keeper.look(at(1), leads(1)), None, "asked once");
        keeper.confirmed(at(2), Term(1), false);
        assert_eq!(keeper.look(at(3), leads(1)), Some(Term(1)));
        let follows = Standing { term: Term(2), leader: None, leads: false };
        assert_eq!(keeper.look(at(4), follows), None);
        keeper.confirmed(at(5), Term(1), true);
        assert_eq!(keeper.leading(), None, "of a term that is over");
        assert_eq!(keeper.look(at(6), leads(3)), Some(Term(3)));
        keeper.confirmed(at(7), Term(3), true);
        assert_eq!(keeper.leading(), Some(Term(3)));
    }
}
