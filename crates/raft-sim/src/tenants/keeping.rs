//! A member's keeper of leases at work: what it wants of its own node, one thing at a time, as the server's task does.

use std::time::Duration;

use raft_core::{Term, Time};
use raft_kv::{Expiry, LeaseChanges, LeaseKeeper, Standing};

use super::promises::ELECTION_TIMEOUT_MAX;
use crate::workload::Attendant;

/// The wait before something is tried again after it failed.
const RETRY_WAIT: Duration = Duration::from_millis(100);

/// What a keeper wants.
#[derive(Clone, Debug)]
pub(super) enum Wish {
    /// That its node confirm that it leads in this term.
    Confirm(Term),
    /// That these leases end, as a leader of this term says.
    End(Term, Vec<Expiry>),
}

/// A keeper and what it waits for.
#[derive(Debug)]
pub(super) struct Keeping {
    keeper: LeaseKeeper,
    /// Wanted and not asked for yet.
    wish: Option<Wish>,
    /// Asked for, by the number of the request.
    waits: Option<(u64, Wish)>,
    /// It came to nothing; at this time it is over.
    failed: Option<(Time, Wish)>,
}

impl Keeping {
    pub(super) fn new(changes: LeaseChanges) -> Self {
        let timeout = Duration::from_micros(ELECTION_TIMEOUT_MAX);
        let keeper = LeaseKeeper::new(changes, timeout);
        Self { keeper, wish: None, waits: None, failed: None }
    }

    /// Looks at everything; `answered` says whether a request was. What is to be asked now, with this number, and
    /// when to look again.
    pub(super) fn attend(
        &mut self,
        member: &Attendant,
        number: u64,
        answered: impl FnOnce(u64) -> bool,
    ) -> (Option<Wish>, Option<Time>) {
        let now = member.now;
        self.keeper.hear(now);
        if let Some((number, wish)) = self.waits.take_if(|_| member.is_idle) {
            if answered(number) {
                self.settle(member, &wish, true);
            } else {
                self.failed = Some((now.after(RETRY_WAIT), wish));
            }
        }
        if let Some((_, wish)) = self.failed.take_if(|(at, _)| *at <= now) {
            self.settle(member, &wish, false);
        }
        let leader = member.leader.map(|leader| leader.member);
        let standing = Standing { term: member.term, leader, leads: member.leads() };
        if let Some(term) = self.keeper.look(now, standing) {
            self.wish = Some(Wish::Confirm(term));
        }
        if self.wish.is_none() && member.is_idle {
            self.wish = self.keeper.over(now).map(|(term, over)| Wish::End(term, over));
        }
        let ask = self.wish.take_if(|_| member.is_idle);
        if let Some(wish) = &ask {
            self.waits = Some((number, wish.clone()));
        }
        let retry = self.failed.as_ref().map(|(at, _)| *at);
        // Whatever comes of what it waits for, it looks again then.
        let deadline = if self.waits.is_none() { self.keeper.deadline(now) } else { None };
        (ask, retry.into_iter().chain(deadline).min())
    }

    fn settle(&mut self, member: &Attendant, wish: &Wish, done: bool) {
        match wish {
            Wish::Confirm(term) => {
                let holds = done && member.leads() && member.term == *term;
                self.keeper.confirmed(member.now, *term, holds);
            }
            Wish::End(_, leases) => self.keeper.settled(member.now, leases),
        }
    }
}
