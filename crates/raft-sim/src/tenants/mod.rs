//! The fourth workload: tenants keep keys by leases and others watch what happens to them, through the services that stand
//! beside the store on every member: the production [`LeaseKeeper`](raft_kv::LeaseKeeper) and its clock, the production
//! [`Hub`](raft_kv::watch::Hub) and streams, at paces of their own.
//!
//! Whatever is committed goes through a [`model`], which says what each answer must be, what every revision holds (I24),
//! and what each [`watch`] must be told, in which order (I23). When leases end is decided by members from their clocks:
//! never before what any client was told ([`promises`]), and all of them once nobody renews them any more.

mod keeping;
mod listeners;
mod model;
mod promises;
mod requests;
mod watch;

use std::collections::{BTreeMap, BTreeSet};

use bytes::Bytes;
use raft_core::{EntryId, Index, NodeId, Rng};
use raft_kv::proto::etcdserverpb::RangeResponse;
use raft_kv::{Answer, Command, KvError, Query, Response, Store};

use crate::marks::Marks;
use crate::profile::Profile;
use crate::run::virtual_time;
use crate::workload::{Ask, Attendant, Attention, Call, Workload};
use keeping::{Keeping, Wish};
use listeners::{Listeners, Station};
use model::{Done, Model, Op};
use promises::Promises;

/// What a client has asked without changing anything, and what was known when it did.
#[derive(Debug)]
enum Question {
    /// All keys at a revision, 0 for the present; what was compacted for certain.
    All(i64, i64),
    /// All leases: those that had ended by then.
    Leases(BTreeSet<i64>),
}

/// What a member has beside its store.
#[derive(Debug)]
struct Services {
    keeping: Keeping,
    station: Station,
}

/// Tenants, watchers and what they know.
#[derive(Debug)]
pub(crate) struct Tenants {
    keys: u64,
    value_bytes: u64,
    store_segment_bytes: u64,
    /// Clocks do not jump: leases can be judged by the time.
    timed: bool,
    next_value: u64,
    /// After everything that is applied anywhere.
    model: Model,
    /// The model's revision after each command.
    revisions: BTreeMap<Index, i64>,
    asked: BTreeMap<u64, Op>,
    questions: BTreeMap<u64, Question>,
    /// What clients must be told of their committed commands.
    expected: BTreeMap<u64, Result<Done, KvError>>,
    /// Which lease a committed renewal was of.
    renewed: BTreeMap<u64, i64>,
    /// What members asked themselves and is answered.
    answered: BTreeSet<u64>,
    promises: Promises,
    /// Leases that were granted, and those of them that are gone for certain.
    ended: BTreeSet<i64>,
    /// The lease that each client has.
    leases: BTreeMap<usize, i64>,
    /// The highest revision whose compaction was acknowledged.
    compacted: i64,
    /// What was asked to be compacted, and is committed.
    compactions: BTreeMap<u64, i64>,
    members: BTreeMap<NodeId, Services>,
    listeners: Listeners,
    /// What each member has shown: its revision, and what it has compacted.
    shown: BTreeMap<NodeId, (i64, i64)>,
    tally: BTreeMap<&'static str, u64>,
}

impl Tenants {
    pub(crate) fn new(profile: &Profile) -> Self {
        Self {
            keys: profile.keys,
            value_bytes: profile.value_bytes,
            store_segment_bytes: profile.store_segment_bytes,
            timed: profile.clock == 0,
            next_value: 0,
            model: Model::new(),
            revisions: BTreeMap::new(),
            asked: BTreeMap::new(),
            questions: BTreeMap::new(),
            expected: BTreeMap::new(),
            renewed: BTreeMap::new(),
            answered: BTreeSet::new(),
            promises: Promises::default(),
            ended: BTreeSet::new(),
            leases: BTreeMap::new(),
            compacted: -1,
            compactions: BTreeMap::new(),
            members: BTreeMap::new(),
            listeners: Listeners::default(),
            shown: BTreeMap::new(),
            tally: BTreeMap::new(),
        }
    }

    fn count(&mut self, what: &'static str) {
        *self.tally.entry(what).or_default() += 1;
    }

    fn value(&mut self, rng: &mut Rng) -> Bytes {
        self.next_value += 1;
        let len = usize::try_from(rng.below(self.value_bytes + 1)).unwrap_or(0);
        let mut text = self.next_value.to_string();
        while text.len() < len {
            text.push('.');
        }
        Bytes::from(text)
    }

    /// What a client changes.
    fn wants(&mut self, call: &Call, rng: &mut Rng) -> Op {
        let key = rng.below(self.keys);
        match rng.below(70) {
            0..=19 => {
                let own = self.leases.get(&call.client).copied().filter(|_| rng.chance(1, 2));
                Op::Put { key, value: self.value(rng), lease: own.unwrap_or(0) }
            }
            20..=27 => {
                let keys: BTreeSet<u64> = (0..3).map(|_| rng.below(self.keys)).collect();
                Op::Several { keys: keys.into_iter().collect(), value: self.value(rng) }
            }
            28..=37 => Op::Delete { from: key, to: key + 1 + rng.below(self.keys) },
            38..=42 => {
                let back = i64::try_from(rng.below(30)).unwrap_or(0);
                let some_time_ago = (self.model.revision() - back).max(1);
                // What is deleted right there must still be told.
                let last = self.model.events().iter().rev().take(20);
                let deletion =
                    last.filter(|event| event.r#type == 1).map(model::revision_of).next();
                let deletion = deletion.filter(|_| rng.chance(1, 2));
                let revision = deletion.unwrap_or(some_time_ago);
                Op::Compact { revision, physical: rng.chance(1, 4) }
            }
            _ => self.wants_lease(call, rng),
        }
    }

    fn wants_lease(&mut self, call: &Call, rng: &mut Rng) -> Op {
        let Some(id) = self.leases.get(&call.client).copied() else {
            let id = i64::try_from(call.number).unwrap_or(0) + 1;
            self.leases.insert(call.client, id);
            return Op::Grant { id, ttl: 1 + i64::try_from(rng.below(2)).unwrap_or(0) };
        };
        match rng.below(10) {
            0..=6 => Op::Renew { id },
            7 => {
                self.leases.remove(&call.client);
                Op::Revoke { id }
            }
            // It runs out, unless somebody renews it.
            8 => {
                self.leases.remove(&call.client);
                self.wants_lease(call, rng)
            }
            _ => {
                let others: Vec<i64> = self.leases.values().copied().collect();
                Op::Renew { id: others[crate::profile::pick(rng, others.len())] }
            }
        }
    }

    fn propose(&mut self, call: &Call, op: Op) -> Command {
        let command = requests::command(&op);
        self.asked.insert(call.number, op);
        command
    }

    /// All keys at a revision are what they were.
    fn judge_keys(&self, call: &Call, at: i64, compacted: i64, response: &RangeResponse) -> i64 {
        let revision = requests::revision(response.header.as_ref());
        assert!(revision <= self.model.revision(), "{call:?} sees {revision} of the future");
        let at = if at == 0 { revision } else { at };
        assert!(at >= compacted, "I24: {call:?} reads {at}, and {compacted} was compacted before");
        let expected = self.model.at(at);
        assert!(
            response.kvs == expected,
            "I24: {call:?} sees {:?} at revision {at}, and there is {expected:?}",
            response.kvs
        );
        revision
    }

    fn judge(&mut self, call: &Call, answer: Result<Answer, KvError>, linearizable: bool) {
        let question = self.questions.remove(&call.number);
        match (question, answer) {
            (Some(Question::All(at, compacted)), Ok(Answer::Range(response))) => {
                let compacted = if linearizable { compacted } else { -1 };
                let revision = self.judge_keys(call, at, compacted, &response);
                let floor = self.revisions.range(..=call.floor).next_back();
                let floor = floor.map_or(1, |(_, revision)| *revision);
                assert!(
                    revision >= floor || !linearizable,
                    "I13: {call:?} sees revision {revision}, and {floor} had been answered before"
                );
                self.count(if at > 0 { "tenants: the past" } else { "tenants: the present" });
            }
            (Some(Question::All(at, _)), Err(KvError::Compacted)) => {
                assert!(
                    at > 0 && at < self.model.compacted(),
                    "I24: {call:?} cannot see {at}, and {} is compacted",
                    self.model.compacted()
                );
            }
            // A member that is behind, or was, does not know it yet.
            (Some(Question::All(at, _)), Err(KvError::FutureRevision)) if !linearizable => {
                assert!(at > 1, "{call:?} is told that {at} is still to come");
            }
            (Some(Question::Leases(ended)), Ok(Answer::Leases(found))) => {
                let dead = found.iter().find(|id| ended.contains(id));
                assert!(dead.is_none(), "{call:?} sees the lease {dead:?}, which had ended");
                self.count("tenants: all leases");
            }
            (question, answer) => panic!("{call:?}, {question:?}, is answered {answer:?}"),
        }
    }

    /// What a keeper wants, as it is asked of its node.
    fn ask_for(&mut self, call: &Call, wish: Wish) -> Ask<Store> {
        match wish {
            Wish::Confirm(_) => Ask::Barrier,
            Wish::End(term, leases) => {
                self.count("tenants: leases are over");
                Ask::Command(self.propose(call, Op::Expire { term, leases }))
            }
        }
    }
}

impl Workload for Tenants {
    type Machine = Store;

    fn machine(&self) -> Store {
        Store::with_segment_bytes(self.store_segment_bytes)
    }

    fn ask(&mut self, call: &Call, rng: &mut Rng) -> Ask<Store> {
        let (compacted, kind) = (self.compacted, rng.below(100));
        if kind < 70 {
            let op = self.wants(call, rng);
            return Ask::Command(self.propose(call, op));
        }
        let (question, query) = match kind {
            70..=79 => (Question::All(0, compacted), requests::all(0)),
            80..=89 => {
                let back = i64::try_from(rng.below(50)).unwrap_or(0);
                let at = (self.model.revision() - back).max(1);
                (Question::All(at, compacted), requests::all(at))
            }
            90..=94 => (Question::Leases(self.ended.clone()), Query::Leases),
            _ => (Question::All(0, compacted), requests::all(0)),
        };
        self.questions.insert(call.number, question);
        if kind >= 95 { Ask::Stale(query) } else { Ask::Query(query) }
    }

    fn command(&mut self, call: &Call, rng: &mut Rng) -> Command {
        let op = Op::Put { key: 0, value: self.value(rng), lease: 0 };
        self.propose(call, op)
    }

    fn applied(&mut self, call: &Call, at: EntryId, _: Command) {
        let op = self.asked.remove(&call.number).expect("what is applied was asked, once");
        let done = self.model.apply(&op, at.term);
        self.revisions.insert(at.index, self.model.revision());
        if let Ok(Done::Expired(ended)) = &done {
            let now = virtual_time().unwrap_or(0);
            for id in ended {
                if self.timed {
                    self.promises.expired(*id, now);
                }
                self.ended.insert(*id);
            }
            let what =
                if ended.is_empty() { "tenants: an end is void" } else { "tenants: leases end" };
            self.count(what);
        }
        match (&op, &done) {
            (Op::Revoke { id }, Ok(_)) => {
                self.ended.insert(*id);
            }
            (Op::Compact { revision, .. }, Ok(_)) => {
                self.compactions.insert(call.number, *revision);
            }
            (Op::Renew { id }, Ok(_)) => {
                self.renewed.insert(call.number, *id);
            }
            _ => {}
        }
        self.expected.insert(call.number, done);
    }

    fn responded(&mut self, call: &Call, now: u64, response: Result<Response, KvError>) {
        let expected = self.expected.remove(&call.number);
        let found = match &response {
            Ok(response) => requests::done(response).map(Ok),
            Err(error) => Some(Err(*error)),
        };
        assert!(found.is_some() && found == expected, "{call:?}: {response:?}, not {expected:?}");
        self.answered.insert(call.number);
        if let Some(compacted) = self.compactions.remove(&call.number) {
            self.compacted = self.compacted.max(compacted);
        }
        let renewed = self.renewed.remove(&call.number);
        let told = match found {
            Some(Ok(Done::Granted(id, ttl))) => Some((id, ttl)),
            Some(Ok(Done::Renewed(ttl))) if ttl > 0 => renewed.map(|id| (id, ttl)),
            _ => None,
        };
        let Some((id, ttl)) = told else { return };
        self.count("tenants: a lease is alive");
        if self.timed {
            self.promises.told(id, ttl, call.asked, now);
        }
    }

    fn refused(&mut self, call: &Call) {
        self.asked.remove(&call.number);
    }

    fn answered(&mut self, call: &Call, _: u64, answer: Result<Answer, KvError>) -> Index {
        self.judge(call, answer, true);
        Index::ZERO
    }

    fn answered_stale(&mut self, call: &Call, _: u64, answer: Result<Answer, KvError>) {
        self.judge(call, answer, false);
    }

    fn passed(&mut self, call: &Call, _: Index) {
        self.answered.insert(call.number);
    }

    fn starts(&mut self, node: NodeId, machine: &mut Store) {
        let tight = self.store_segment_bytes < 1 << 20;
        let keeping = Keeping::new(machine.lease_changes());
        let station = Station::new(machine.reader(), tight);
        self.members.insert(node, Services { keeping, station });
        self.shown.remove(&node);
    }

    fn stops(&mut self, node: NodeId) {
        self.members.remove(&node);
        self.listeners.lost(node);
    }

    fn attends(&self) -> bool {
        true
    }

    fn attend(&mut self, call: &Call, member: &Attendant, rng: &mut Rng) -> Attention<Store> {
        let Self { members, model, listeners, answered, keys, .. } = self;
        let Some(services) = members.get_mut(&member.node) else { return Attention::default() };
        let busy = listeners.attend(member.node, &mut services.station, (model, *keys), rng);
        let answered = |number| answered.remove(&number);
        let (wish, deadline) = services.keeping.attend(member, call.number, answered);
        let ask = wish.map(|wish| self.ask_for(call, wish));
        Attention { ask, busy, deadline }
    }

    fn unsettled(&self) -> Option<String> {
        let lease = self.model.leases().next().map(|id| format!("nobody ends lease {id}"));
        lease.or_else(|| self.listeners.unsettled(&self.model))
    }

    /// I24: what a member shows never goes back, as long as its process lives.
    fn look(&mut self, node: NodeId, _: Index, machine: &Store) {
        let reader = machine.reader();
        let shows = (reader.revision(), reader.compact_revision());
        let before = self.shown.insert(node, shows).unwrap_or((0, -1));
        assert!(
            shows.0 >= before.0 && shows.1 >= before.1,
            "I24: {node} shows {shows:?} after {before:?}"
        );
    }

    fn end(&mut self, marks: &mut Marks) {
        for (name, count) in std::mem::take(&mut self.tally) {
            marks.hit_often(name, count);
        }
        let Listeners { events, progress, compacted, resumed, .. } = self.listeners;
        for (name, count) in [
            ("tenants: events are told", events),
            ("tenants: progress is told", progress),
            ("tenants: a watcher is cancelled by compaction", compacted),
            ("tenants: a listener goes on elsewhere", resumed),
        ] {
            if count > 0 {
                marks.hit_often(name, count);
            }
        }
    }
}

#[cfg(test)]
mod tests;
