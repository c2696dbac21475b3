//! The second workload of the store: a bank, written apart from the first one, and judged without a model.
//!
//! Clients move money between a few accounts by transactions that compare what they have read, so that the sum of all
//! never changes; they look at all accounts at once, as they are, as some member has them, and as they were; they
//! compact what is read; they keep sessions by leases and leave trails that they delete as ranges; and an administrator
//! switches authentication on and gives and takes what a guest may see. What is known for certain when a request is
//! asked, from answers alone, is what its answer is judged by:
//!
//! - the sum is right in every state that anybody is shown, a revision shows the same for ever, and no two writes made
//!   the same one;
//! - whoever asks linearizably sees no revision older than one that was answered to anybody before, and every account
//!   changed at least as often as was acknowledged, at most as often as was asked, never by what was refused;
//! - what is compacted stays so, and nothing else is;
//! - a session's key is there while nobody ended it, and gone once somebody has; a range that is deleted has as many
//!   keys as its only writer knows;
//! - a guest sees what is granted and nothing else ([`auth`]);
//! - all members tell the same [`story`], without a gap.

mod auth;
mod requests;
mod story;

use std::collections::{BTreeMap, BTreeSet};

use raft_core::{EntryId, Index, NodeId, Rng};
use raft_kv::proto::etcdserverpb::RangeResponse;
use raft_kv::proto::etcdserverpb::response_op::Response as Outcome;
use raft_kv::{Answer, Command, KvError, Response, Store};

use crate::marks::Marks;
use crate::profile::{Profile, pick};
use crate::workload::{Ask, Call, Workload};
use auth::{Administrator, Guest};
use requests::Picture;
use story::Story;

/// What every account begins with.
const DEPOSIT: u64 = 100;
/// Revisions whose accounts are remembered.
const PAST_MAX: usize = 200;

/// What a client has asked and has no answer to.
#[derive(Debug)]
enum Asked {
    /// All accounts are opened, unless they are.
    Open,
    /// From one account to the other.
    Transfer(u64, u64),
    /// All accounts, linearizably.
    Total(Certain),
    /// All accounts, as some member has them.
    Stale,
    /// All accounts, as they were at this revision; what was compacted for certain.
    Past(i64, i64),
    Compact(i64),
    Grant(i64),
    Attach(i64),
    Revoke(i64),
    /// All sessions: those that must be there, and those that must not.
    Sessions(BTreeSet<i64>, BTreeSet<i64>),
    Append,
    Sweep,
    Administer,
    Guest(Guest),
}

/// What is known for certain when somebody asks for all accounts.
#[derive(Debug)]
struct Certain {
    opened: bool,
    /// How often each account was changed.
    changes: Vec<i64>,
}

#[derive(Debug, Default)]
struct Session {
    granted: bool,
    attached: bool,
    revoke_asked: bool,
    revoked: bool,
}

/// What the only writer of a range of keys knows of it.
#[derive(Debug, Default)]
struct Trail {
    /// Keys that are there for certain, and those of which nobody knows.
    sure: i64,
    maybe: i64,
    /// A sweep may still come.
    swept_some_day: bool,
}

/// What one client remembers.
#[derive(Debug, Default)]
struct Memory {
    last: Option<u64>,
    accounts: Option<Picture>,
    session: Option<i64>,
    trail: Trail,
}

/// The bank and everybody's knowledge of it.
#[derive(Debug)]
pub(crate) struct Bank {
    store_segment_bytes: u64,
    accounts: u64,
    /// What waits for an answer, with the revision that it must reach.
    asked: BTreeMap<u64, (Asked, i64)>,
    memories: BTreeMap<usize, Memory>,
    opened: bool,
    /// The highest revision in any answer.
    highest: i64,
    /// Changes of each account that were acknowledged, and that were asked for and may have been or be done.
    acknowledged: Vec<i64>,
    possible: Vec<i64>,
    /// Transfers that may have happened.
    transfers: BTreeSet<u64>,
    /// Who made which revision, of the writes that are acknowledged.
    made: BTreeMap<i64, u64>,
    /// What revisions showed.
    past: BTreeMap<i64, Picture>,
    /// By request: compactions that were asked for and may have been or be done.
    compactions: BTreeMap<u64, i64>,
    compacted: i64,
    sessions: BTreeMap<i64, Session>,
    administrator: Administrator,
    story: Story,
    tally: BTreeMap<&'static str, u64>,
}

impl Bank {
    pub(crate) fn new(profile: &Profile) -> Self {
        let accounts = profile.keys.clamp(2, 8);
        let none = vec![0; usize::try_from(accounts).unwrap_or(0)];
        Self {
            store_segment_bytes: profile.store_segment_bytes,
            accounts,
            asked: BTreeMap::new(),
            memories: BTreeMap::new(),
            opened: false,
            highest: 1,
            acknowledged: none.clone(),
            possible: none,
            transfers: BTreeSet::new(),
            made: BTreeMap::new(),
            past: BTreeMap::new(),
            compactions: BTreeMap::new(),
            compacted: 0,
            sessions: BTreeMap::new(),
            administrator: Administrator::default(),
            story: Story::default(),
            tally: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    fn memory(&mut self, client: usize) -> &mut Memory {
        self.memories.entry(client).or_default()
    }

    // Asking.

    fn wants(&mut self, call: &Call, rng: &mut Rng) -> (Asked, Ask<Store>) {
        if call.client == 0 && self.administrator.is_busy(rng) {
            return (Asked::Administer, Ask::Command(self.administrator.command()));
        }
        match rng.below(100) {
            0..=34 => self.wants_transfer(call, rng),
            35..=54 => self.wants_total(),
            55..=62 => (Asked::Stale, Ask::Stale(requests::accounts(0))),
            63..=69 => self.wants_past(rng),
            70..=74 => {
                let back = i64::try_from(rng.below(100)).unwrap_or(0);
                let revision = (self.highest - back).max(1);
                self.compactions.insert(call.number, revision);
                (Asked::Compact(revision), Ask::Command(requests::compact(revision)))
            }
            75..=84 => self.wants_session(call, rng),
            85..=92 if rng.chance(1, 4) => {
                (Asked::Sweep, Ask::Command(requests::sweep(call.client)))
            }
            85..=92 => (Asked::Append, Ask::Command(requests::append(call.client, call.number))),
            _ => {
                let (guest, query) = self.administrator.guest(rng);
                (Asked::Guest(guest), Ask::Query(query))
            }
        }
    }

    fn wants_transfer(&mut self, call: &Call, rng: &mut Rng) -> (Asked, Ask<Store>) {
        if !self.opened {
            self.possible.iter_mut().for_each(|possible| *possible += 1);
            return (Asked::Open, Ask::Command(requests::open(self.accounts, call.number)));
        }
        let from = rng.below(self.accounts);
        let to = (from + 1 + rng.below(self.accounts - 1)) % self.accounts;
        let known = self.memory(call.client).accounts.clone();
        let Some(known) = known.filter(|known| !known.is_empty()) else {
            return self.wants_total();
        };
        let amount = rng.below(known[&from].balance + 1);
        self.transfers.insert(call.number);
        for account in [from, to] {
            self.possible[place(account)] += 1;
        }
        let command = requests::transfer(&known, from, to, amount, call.number);
        (Asked::Transfer(from, to), Ask::Command(command))
    }

    fn wants_total(&self) -> (Asked, Ask<Store>) {
        let certain = Certain { opened: self.opened, changes: self.acknowledged.clone() };
        (Asked::Total(certain), Ask::Query(requests::accounts(0)))
    }

    fn wants_past(&self, rng: &mut Rng) -> (Asked, Ask<Store>) {
        if self.past.is_empty() {
            return self.wants_total();
        }
        let nth = pick(rng, self.past.len());
        let revision = self.past.keys().nth(nth).copied().unwrap_or(self.highest);
        (Asked::Past(revision, self.compacted), Ask::Query(requests::accounts(revision)))
    }

    fn wants_session(&mut self, call: &Call, rng: &mut Rng) -> (Asked, Ask<Store>) {
        let Some(id) = self.memory(call.client).session else {
            let id = i64::try_from(call.number).unwrap_or(0) + 1;
            self.memory(call.client).session = Some(id);
            self.sessions.insert(id, Session::default());
            return (Asked::Grant(id), Ask::Command(requests::grant(id)));
        };
        let session = self.sessions.entry(id).or_default();
        if session.granted && !session.attached && !session.revoke_asked {
            return (Asked::Attach(id), Ask::Command(requests::attach(id)));
        }
        if rng.chance(1, 3) {
            session.revoke_asked = true;
            return (Asked::Revoke(id), Ask::Command(requests::revoke(id)));
        }
        let those = |which: fn(&Session) -> bool| {
            self.sessions.iter().filter(|(_, session)| which(session)).map(|(id, _)| *id).collect()
        };
        let there = those(|session| session.attached && !session.revoke_asked);
        let gone = those(|session| session.revoked);
        (Asked::Sessions(there, gone), Ask::Query(requests::sessions()))
    }

    // What becomes of it.

    /// Nobody will ever tell this client what became of what it asked before.
    fn gives_up(&mut self, client: usize) {
        let Some((asked, _)) = self.memory(client).last.take().and_then(|n| self.asked.remove(&n))
        else {
            return;
        };
        match asked {
            Asked::Grant(_) | Asked::Revoke(_) => self.memory(client).session = None,
            // It may come yet: only the end of the lease is certain.
            Asked::Attach(id) => {
                self.sessions.entry(id).or_default().revoke_asked = true;
            }
            Asked::Append => self.memory(client).trail.maybe += 1,
            Asked::Sweep => {
                let trail = &mut self.memory(client).trail;
                (trail.maybe, trail.sure) = (trail.maybe + trail.sure, 0);
                trail.swept_some_day = true;
            }
            Asked::Administer => self.administrator.gave_up(),
            Asked::Open
            | Asked::Transfer(..)
            | Asked::Total(_)
            | Asked::Stale
            | Asked::Past(..)
            | Asked::Compact(_)
            | Asked::Sessions(..)
            | Asked::Guest(_) => {}
        }
    }

    /// It did not happen and never will.
    fn did_not_happen(&mut self, call: &Call, asked: &Asked) {
        match asked {
            Asked::Open => self.possible.iter_mut().for_each(|possible| *possible -= 1),
            Asked::Transfer(from, to) => {
                self.transfers.remove(&call.number);
                for account in [from, to] {
                    self.possible[place(*account)] -= 1;
                }
            }
            Asked::Compact(_) => {
                self.compactions.remove(&call.number);
            }
            Asked::Grant(_) => self.memory(call.client).session = None,
            // It is asked for again.
            Asked::Administer
            | Asked::Total(_)
            | Asked::Stale
            | Asked::Past(..)
            | Asked::Attach(_)
            | Asked::Revoke(_)
            | Asked::Sessions(..)
            | Asked::Append
            | Asked::Sweep
            | Asked::Guest(_) => {}
        }
    }

    fn take(&mut self, call: &Call) -> (Asked, i64) {
        self.memory(call.client).last = None;
        self.asked.remove(&call.number).unwrap_or_else(|| panic!("{call:?} was never asked"))
    }

    /// An answer carries this revision, and `floor` had been answered when it was asked.
    fn shows(&mut self, call: &Call, revision: i64, floor: i64) {
        assert!(
            revision >= floor,
            "{call:?} is answered at revision {revision}, and {floor} had been answered before"
        );
        self.highest = self.highest.max(revision);
    }

    /// A write made this revision: nobody else has.
    fn made(&mut self, call: &Call, revision: i64, floor: i64) {
        assert!(
            revision > floor,
            "{call:?} made revision {revision}, and {floor} was there before"
        );
        if let Some(other) = self.made.insert(revision, call.number) {
            panic!("the requests {other} and {} both made revision {revision}", call.number);
        }
    }

    // What accounts show.

    /// All accounts at this revision: the sum is right, and whoever looked there before saw the same.
    fn look_at(&mut self, revision: i64, response: &RangeResponse) -> Picture {
        let picture = requests::picture(response);
        if !picture.is_empty() {
            let sum: u64 = picture.values().map(|account| account.balance).sum();
            let count = u64::try_from(picture.len()).unwrap_or(0);
            assert!(
                count == self.accounts && sum == self.accounts * DEPOSIT,
                "{count} accounts hold {sum} at revision {revision}: {picture:?}"
            );
        }
        for (number, account) in &picture {
            let known = account.opened() || self.transfers.contains(&account.by);
            assert!(known, "account {number} was changed by {}, which never happened", account.by);
            let possible = self.possible[place(*number)];
            assert!(
                account.version <= possible,
                "account {number} has changed {} times, and {possible} were asked for",
                account.version
            );
        }
        let before = self.past.entry(revision).or_insert_with(|| picture.clone());
        assert!(*before == picture, "revision {revision} showed {before:?}, and now {picture:?}");
        if self.past.len() > PAST_MAX {
            self.past.pop_first();
        }
        picture
    }

    fn judge_total(&mut self, call: &Call, certain: &Certain, picture: Picture) {
        assert!(!certain.opened || !picture.is_empty(), "{call:?} sees no accounts");
        for (number, account) in &picture {
            let changes = certain.changes[place(*number)];
            assert!(
                account.version >= changes,
                "{call:?} sees {} changes of account {number}, of {changes} that were acknowledged",
                account.version
            );
        }
        self.memory(call.client).accounts = Some(picture);
    }

    fn judge_transfer(&mut self, call: &Call, from: u64, to: u64, floor: i64, response: Response) {
        let Response::Txn(response) = response else {
            panic!("{call:?}, a transfer, is answered {response:?}");
        };
        let revision = requests::revision(response.header.as_ref());
        self.shows(call, revision, floor);
        if response.succeeded {
            self.made(call, revision, floor);
            for account in [from, to] {
                self.acknowledged[place(account)] += 1;
            }
            // What it left there is not what it knew: the next one looks first.
            self.memory(call.client).accounts = None;
            self.count("bank: transfer");
            return;
        }
        self.did_not_happen(call, &Asked::Transfer(from, to));
        self.count("bank: transfer overtaken");
        let found = response.responses.first().and_then(|one| one.response.as_ref());
        let Some(Outcome::ResponseRange(found)) = found else {
            panic!("{call:?} is answered {response:?}");
        };
        let picture = self.look_at(revision, found);
        self.memory(call.client).accounts = Some(picture);
    }

    fn judge_command(&mut self, call: &Call, asked: Asked, floor: i64, response: Response) {
        let revision = requests::revision_of(&response);
        if let Some(revision) = revision {
            self.shows(call, revision, floor);
        }
        let revision = revision.unwrap_or(floor);
        match (asked, response) {
            (Asked::Transfer(from, to), response) => {
                self.judge_transfer(call, from, to, floor, response);
            }
            (Asked::Open, Response::Txn(response)) => {
                self.opened = true;
                if response.succeeded {
                    self.made(call, revision, floor);
                    self.acknowledged.iter_mut().for_each(|changes| *changes += 1);
                } else {
                    self.did_not_happen(call, &Asked::Open);
                }
            }
            (Asked::Compact(at), Response::Compact(_)) => {
                self.compacted = self.compacted.max(at);
                self.count("bank: compaction");
            }
            (Asked::Grant(id), Response::LeaseGrant(granted)) => {
                assert_eq!(granted.id, id, "another lease was granted");
                self.sessions.entry(id).or_default().granted = true;
            }
            (Asked::Attach(id), Response::Put(_)) => {
                self.made(call, revision, floor);
                self.sessions.entry(id).or_default().attached = true;
            }
            (Asked::Revoke(id), Response::LeaseRevoke(_)) => {
                self.sessions.entry(id).or_default().revoked = true;
                self.memory(call.client).session = None;
                self.count("bank: session ended");
            }
            (Asked::Append, Response::Put(_)) => {
                self.made(call, revision, floor);
                self.memory(call.client).trail.sure += 1;
            }
            (Asked::Sweep, Response::DeleteRange(response)) => {
                if response.deleted > 0 {
                    self.made(call, revision, floor);
                }
                let Trail { sure, maybe, swept_some_day } = self.memory(call.client).trail;
                let least = if swept_some_day { 0 } else { sure };
                let found = response.deleted;
                assert!(
                    (least..=sure + maybe).contains(&found)
                        && requests::length(&response.prev_kvs) == found,
                    "{call:?} deletes {found} keys, of {least} to {}",
                    sure + maybe
                );
                self.memory(call.client).trail.sure = 0;
                self.count("bank: range deleted");
            }
            (Asked::Administer, Response::Auth(_)) => self.administrator.done(),
            (asked, response) => panic!("{call:?}, {asked:?}, is answered {response:?}"),
        }
    }

    fn judge_error(&mut self, call: &Call, asked: Asked, error: KvError) {
        let expected = match (&asked, error) {
            (Asked::Administer, error) if self.administrator.has_it(error) => {
                return self.administrator.done();
            }
            (Asked::Compact(at), KvError::Compacted) => {
                self.compactions.iter().any(|(other, r)| *other != call.number && r >= at)
            }
            (Asked::Past(revision, compacted), KvError::Compacted) => {
                revision < compacted || self.compactions.values().any(|at| revision < at)
            }
            _ => false,
        };
        let refused = auth::is_refusal(error) && self.administrator.may_refuse();
        assert!(expected || refused, "{call:?}, {asked:?}, fails: {error}");
        self.count(if refused { "bank: refused by permission" } else { "bank: compacted" });
        self.did_not_happen(call, &asked);
        if let Asked::Revoke(_) = asked {
            self.memory(call.client).session = None;
        }
    }
}

impl Workload for Bank {
    type Machine = Store;

    fn machine(&self) -> Store {
        Store::with_segment_bytes(self.store_segment_bytes)
    }

    fn ask(&mut self, call: &Call, rng: &mut Rng) -> Ask<Store> {
        self.gives_up(call.client);
        let (asked, ask) = self.wants(call, rng);
        self.asked.insert(call.number, (asked, self.highest));
        self.memory(call.client).last = Some(call.number);
        match ask {
            Ask::Command(command) => Ask::Command(command.by(Some(self.administrator.root()))),
            Ask::InSession(command, session) => {
                Ask::InSession(command.by(Some(self.administrator.root())), session)
            }
            Ask::Query(query) => Ask::Query(self.administrator.as_root(query)),
            Ask::Stale(query) => Ask::Stale(self.administrator.as_root(query)),
            Ask::Barrier => Ask::Barrier,
        }
    }

    fn command(&mut self, call: &Call, _: &mut Rng) -> Command {
        self.gives_up(call.client);
        self.asked.insert(call.number, (Asked::Append, self.highest));
        self.memory(call.client).last = Some(call.number);
        requests::append(call.client, call.number).by(Some(self.administrator.root()))
    }

    fn applied(&mut self, _: &Call, _: EntryId, _: Command) {}

    fn responded(&mut self, call: &Call, _: u64, response: Result<Response, KvError>) {
        let (asked, floor) = self.take(call);
        match response {
            Ok(response) => self.judge_command(call, asked, floor, response),
            Err(error) => self.judge_error(call, asked, error),
        }
    }

    fn refused(&mut self, call: &Call) {
        let (asked, _) = self.take(call);
        self.did_not_happen(call, &asked);
    }

    fn answered(&mut self, call: &Call, _: u64, answer: Result<Answer, KvError>) -> Index {
        let (asked, floor) = self.take(call);
        if let Asked::Guest(guest) = &asked {
            self.count(self.administrator.judge(call, guest, &answer));
        }
        let response = match (answer, &asked) {
            (Ok(Answer::Range(response)), _) => response,
            (Err(_), Asked::Guest(_)) => return Index::ZERO,
            (Err(error), _) => {
                self.judge_error(call, asked, error);
                return Index::ZERO;
            }
            (Ok(answer), asked) => panic!("{call:?}, {asked:?}, is answered {answer:?}"),
        };
        let revision = requests::revision(response.header.as_ref());
        self.shows(call, revision, floor);
        match &asked {
            Asked::Total(certain) => {
                let picture = self.look_at(revision, &response);
                self.judge_total(call, certain, picture);
                self.count("bank: all accounts");
            }
            Asked::Past(at, compacted) => {
                assert!(at >= compacted, "{call:?} reads {at}, and {compacted} is compacted");
                self.look_at(*at, &response);
                self.count("bank: all accounts in the past");
            }
            Asked::Sessions(there, gone) => {
                let mut there = there.clone();
                // Some may have been ended meanwhile.
                there.retain(|id| self.sessions.get(id).is_some_and(|it| !it.revoke_asked));
                let found = requests::found_sessions(&response);
                assert!(
                    there.is_subset(&found),
                    "{call:?} finds {found:?}, and not all of {there:?}"
                );
                assert!(gone.is_disjoint(&found), "{call:?} finds {found:?}; ended are {gone:?}");
                self.count("bank: all sessions");
            }
            Asked::Guest(guest) if guest.looks_at_accounts() => {
                self.look_at(revision, &response);
            }
            Asked::Guest(_) => {}
            Asked::Open
            | Asked::Transfer(..)
            | Asked::Stale
            | Asked::Compact(_)
            | Asked::Grant(_)
            | Asked::Attach(_)
            | Asked::Revoke(_)
            | Asked::Append
            | Asked::Sweep
            | Asked::Administer => panic!("{call:?}, {asked:?}, is answered as a question"),
        }
        Index::ZERO
    }

    fn answered_stale(&mut self, call: &Call, _: u64, answer: Result<Answer, KvError>) {
        let (asked, _) = self.take(call);
        match answer {
            Ok(Answer::Range(response)) => {
                let revision = requests::revision(response.header.as_ref());
                self.look_at(revision, &response);
                self.count("bank: all accounts as one member has them");
            }
            Err(error) => self.judge_error(call, asked, error),
            Ok(answer) => panic!("{call:?}, {asked:?}, is answered {answer:?}"),
        }
    }

    fn look(&mut self, node: NodeId, _: Index, machine: &Store) {
        self.administrator.sees(machine.auth().epoch());
        self.story.hear(node, &machine.reader());
    }

    fn end(&mut self, marks: &mut Marks) {
        for (name, count) in std::mem::take(&mut self.tally) {
            marks.hit_often(name, count);
        }
        if self.administrator.may_refuse() {
            marks.hit("bank: authentication on");
        }
    }
}

/// Where an account stands in lists of all.
fn place(account: u64) -> usize {
    usize::try_from(account).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests;
