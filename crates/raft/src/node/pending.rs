//! Who waits for what: step 9 in the life of a write. Sans-IO.
//!
//! A proposal is answered in exactly one of these ways. It is *applied* here: by the apply thread, which gets the
//! waiter together with the entry. It is *refused* by the leader before it was appended: it goes back to the held
//! ones and may leave again. It is *superseded*: this node has handed an entry of a later term to the state machine,
//! and terms never decrease along the log, so no entry of the term in which the proposal left can be committed any
//! more. Otherwise its time ends: certainly without effect while it was still held, and with unknown fate once it
//! had left. Nothing that has left and was not refused is ever sent again (decision 17).

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::Bytes;
use raft_core::{Index, NodeId, StateMachine, Term, Time};

use crate::error::{ProposeError, ReadError};
use crate::message::Refusal;
use crate::node::request::{Permit, ReadWaiter};
use crate::waiter::{ProposeWaiter, QueryWaiter};

/// Payload bytes of proposals handed to a leader elsewhere and not answered yet; the others are held here.
const FORWARDED_BYTES_MAX: usize = 16 << 20;

/// Where a proposal is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Place {
    /// Here, waiting for a leader.
    Held,
    /// Appended here by this node as leader, or on its way to the leader of `term`.
    Left {
        /// Entries made of it have this term.
        term: Term,
        /// The leader; `None` when it is this node.
        to: Option<NodeId>,
        /// Which time it left: an answer to an earlier one says nothing about this one.
        attempt: u64,
    },
}

struct Proposal<S: StateMachine> {
    payload: Bytes,
    /// Memory accounted for until the proposal is answered or committed.
    _permit: Option<Permit>,
    waiter: ProposeWaiter<S>,
    place: Place,
}

/// Proposals that leave together.
#[derive(Debug)]
pub struct Leaving {
    /// Tells this time from every other time that one of them left or will.
    pub attempt: u64,
    /// Their numbers, in order of arrival.
    pub requests: Vec<u64>,
    /// Their payloads, in the same order.
    pub payloads: Vec<Bytes>,
}

/// Proposals of this node's clients.
pub struct Proposals<S: StateMachine> {
    waiting: BTreeMap<u64, Proposal<S>>,
    /// Those at [`Place::Held`], in order of arrival.
    held: VecDeque<u64>,
    /// Those at [`Place::Left`], by term.
    left: BTreeSet<(Term, u64)>,
    /// All of `waiting` and some that are answered, in order of their ends.
    ends: VecDeque<(Time, u64)>,
    /// Payload bytes of those that left for another node.
    forwarded_bytes: usize,
    /// Counts the times that some left.
    attempts: u64,
}

impl<S: StateMachine> std::fmt::Debug for Proposals<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} proposals wait, {} of them held", self.waiting.len(), self.held.len())
    }
}

impl<S: StateMachine> Default for Proposals<S> {
    fn default() -> Self {
        Self {
            waiting: BTreeMap::new(),
            held: VecDeque::new(),
            left: BTreeSet::new(),
            ends: VecDeque::new(),
            forwarded_bytes: 0,
            attempts: 0,
        }
    }
}

impl<S: StateMachine> Proposals<S> {
    /// Holds a new one until it can leave; answered at `end` at the latest.
    pub fn hold(
        &mut self,
        request: u64,
        payload: Bytes,
        permit: Option<Permit>,
        waiter: ProposeWaiter<S>,
        end: Time,
    ) {
        let proposal = Proposal { payload, _permit: permit, waiter, place: Place::Held };
        self.waiting.insert(request, proposal);
        self.held.push_back(request);
        self.ends.push_back((end, request));
    }

    /// Whether some are held.
    #[must_use]
    pub fn any_held(&self) -> bool {
        !self.held.is_empty()
    }

    /// Whether some have left and are not answered.
    #[must_use]
    pub fn any_left(&self) -> bool {
        !self.left.is_empty()
    }

    /// Lets held ones leave, for this node's own log or the leader's: all of them, or as many as may be on their
    /// way at once.
    pub fn leave(&mut self, term: Term, to: Option<NodeId>) -> Leaving {
        self.attempts += 1;
        let attempt = self.attempts;
        let mut requests = Vec::with_capacity(self.held.len());
        let mut payloads = Vec::with_capacity(self.held.len());
        while let Some(request) = self.held.front().copied() {
            let Some(proposal) = self.waiting.get_mut(&request) else {
                self.held.pop_front();
                continue;
            };
            if to.is_some() {
                let bytes = self.forwarded_bytes + proposal.payload.len();
                if bytes > FORWARDED_BYTES_MAX && self.forwarded_bytes > 0 {
                    break;
                }
                self.forwarded_bytes = bytes;
            }
            proposal.place = Place::Left { term, to, attempt };
            payloads.push(proposal.payload.clone());
            requests.push(request);
            self.left.insert((term, request));
            self.held.pop_front();
        }
        Leaving { attempt, requests, payloads }
    }

    /// The leader of `term` (`None`: this node) has not appended these and never will.
    pub fn refused(
        &mut self,
        from: Option<NodeId>,
        term: Term,
        attempt: u64,
        requests: &[u64],
        refusal: Refusal,
    ) {
        for request in requests.iter().rev() {
            let left = Place::Left { term, to: from, attempt };
            if self.waiting.get(request).is_none_or(|proposal| proposal.place != left) {
                // A late answer to an attempt that is not the present one.
                continue;
            }
            match refusal {
                Refusal::Overloaded => self.answer(*request, ProposeError::Overloaded),
                Refusal::NoSpace => self.answer(*request, ProposeError::NoSpace),
                Refusal::NotLeader | Refusal::Transferring => {
                    let Some(mut proposal) = self.remove(*request) else { continue };
                    proposal.place = Place::Held;
                    self.waiting.insert(*request, proposal);
                    self.held.push_front(*request);
                }
            }
        }
    }

    /// Refuses those that are held and for which `is_refused` holds.
    pub fn refuse_held(&mut self, error: ProposeError, is_refused: impl Fn(&Bytes) -> bool) {
        let refused = |request: &u64| {
            self.waiting.get(request).is_some_and(|proposal| is_refused(&proposal.payload))
        };
        let requests: Vec<u64> = self.held.iter().copied().filter(refused).collect();
        for request in &requests {
            self.answer(*request, error.clone());
        }
    }

    /// The entry with this number, proposed by this node, is committed: whoever waits for it, if anybody still
    /// does.
    pub fn committed(&mut self, request: u64) -> Option<ProposeWaiter<S>> {
        self.remove(request).map(|proposal| proposal.waiter)
    }

    /// Every entry up to one of `term` was seen committed: what left in an earlier term is certainly lost.
    pub fn superseded(&mut self, term: Term) {
        while let Some((left, request)) = self.left.first().copied() {
            if left >= term {
                break;
            }
            self.answer(request, ProposeError::Superseded);
        }
    }

    /// A snapshot that ends in `term` replaced entries that were never seen here: what left up to that term may
    /// be among them.
    pub fn skipped(&mut self, term: Term) {
        while let Some((left, request)) = self.left.first().copied() {
            if left > term {
                break;
            }
            self.answer(request, ProposeError::Unknown);
        }
    }

    /// Ends those whose time is over: without effect when still held, else with unknown fate.
    pub fn expire(&mut self, now: Time) {
        while let Some((end, request)) = self.ends.front().copied() {
            match self.waiting.get(&request) {
                None => {}
                Some(_) if end > now => break,
                Some(proposal) => {
                    let error = match proposal.place {
                        Place::Held => ProposeError::NoLeader,
                        Place::Left { .. } => ProposeError::TimedOut,
                    };
                    self.answer(request, error);
                }
            }
            self.ends.pop_front();
        }
    }

    /// When [`expire`](Self::expire) has something to do at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        if self.waiting.is_empty() { None } else { self.ends.front().map(|(end, _)| *end) }
    }

    /// The node stops: held ones are certainly not applied; the fate of the others is unknown.
    pub fn stop(&mut self, held_only: bool) {
        let requests: Vec<_> = self.waiting.keys().copied().collect();
        for request in requests {
            let held = self.waiting.get(&request).is_some_and(|p| p.place == Place::Held);
            if held || !held_only {
                self.answer(request, ProposeError::Stopped { definitely_not_applied: held });
            }
        }
        self.held.clear();
    }

    fn answer(&mut self, request: u64, error: ProposeError) {
        if let Some(proposal) = self.remove(request) {
            // Whoever waited may have gone.
            drop(proposal.waiter.send(Err(error)));
        }
    }

    fn remove(&mut self, request: u64) -> Option<Proposal<S>> {
        let proposal = self.waiting.remove(&request)?;
        if let Place::Left { term, to, .. } = proposal.place {
            self.left.remove(&(term, request));
            if to.is_some() {
                self.forwarded_bytes -= proposal.payload.len();
            }
        }
        Some(proposal)
    }
}

/// One linearizable read.
pub enum Read<S: StateMachine> {
    /// Wants to know the index, once it is applied here.
    Index(ReadWaiter),
    /// Wants an answer from a state at or after the index.
    Query(S::Query, QueryWaiter<S>),
}

impl<S: StateMachine> Read<S> {
    fn fail(self, error: ReadError) {
        // Whoever waited may have gone.
        match self {
            Self::Index(waiter) => drop(waiter.send(Err(error))),
            Self::Query(_, waiter) => drop(waiter.send(Err(error))),
        }
    }
}

/// Reads that share one round to the leader.
struct Round<S: StateMachine> {
    asked: Time,
    reads: Vec<(Time, Read<S>)>,
}

/// Linearizable reads of this node's clients. Reading again is always safe, so a read is asked for until its time
/// is over, whatever happens to leaders.
pub struct Reads<S: StateMachine> {
    /// Wait for the next round, with their ends.
    gathering: Vec<(Time, Read<S>)>,
    /// On their way, by the number of the round.
    rounds: BTreeMap<u64, Round<S>>,
    /// Confirmed; wait until this index is applied or on its way to be.
    confirmed: BTreeMap<Index, Vec<(Time, Read<S>)>>,
    /// Never used by an earlier life of this node: an answer that was meant for that one confirms nothing here.
    last_round: u64,
}

impl<S: StateMachine> std::fmt::Debug for Reads<S> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(
            f,
            "{} reads gather, {} rounds are under way",
            self.gathering.len(),
            self.rounds.len()
        )
    }
}

impl<S: StateMachine> Reads<S> {
    /// No reads. Rounds are numbered from `first_round` on, which is above every number of an earlier life of this
    /// node.
    #[must_use]
    pub const fn new(first_round: u64) -> Self {
        Self {
            gathering: Vec::new(),
            rounds: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            last_round: first_round,
        }
    }

    /// A new read; answered at `end` at the latest.
    pub fn gather(&mut self, read: Read<S>, end: Time) {
        self.gathering.push((end, read));
    }

    /// Whether some are confirmed and wait until enough is applied.
    #[must_use]
    pub fn any_confirmed(&self) -> bool {
        !self.confirmed.is_empty()
    }

    /// Whether some wait for a round.
    #[must_use]
    pub fn any_gathering(&self) -> bool {
        !self.gathering.is_empty()
    }

    /// Begins a round for all that wait: its number for `Raft::read_index`.
    pub fn begin_round(&mut self, now: Time) -> u64 {
        self.last_round += 1;
        let reads = std::mem::take(&mut self.gathering);
        self.rounds.insert(self.last_round, Round { asked: now, reads });
        self.last_round
    }

    /// A round came to an end: its reads are confirmed, or wait for another one.
    pub fn finished(&mut self, round: u64, index: Option<Index>) {
        // A round that was given up for another one is not there any more.
        let Some(round) = self.rounds.remove(&round) else { return };
        match index {
            Some(index) => self.confirmed.entry(index).or_default().extend(round.reads),
            None => self.gathering.extend(round.reads),
        }
    }

    /// Rounds that began before `since` are given up; their reads wait for another one.
    pub fn give_up(&mut self, since: Time) {
        while let Some(round) = self.rounds.first_entry() {
            if round.get().asked > since {
                break;
            }
            self.gathering.extend(round.remove().reads);
        }
    }

    /// When the oldest round began.
    #[must_use]
    pub fn oldest_round(&self) -> Option<Time> {
        self.rounds.first_key_value().map(|(_, round)| round.asked)
    }

    /// Answers those that wait for applied indexes; hands out queries that may be asked now because everything up
    /// to `handed` stands before them in the apply thread's queue.
    pub fn serve(&mut self, applied: Index, handed: Index) -> Vec<(S::Query, QueryWaiter<S>)> {
        let mut queries = Vec::new();
        let mut later = Vec::new();
        while let Some(entry) = self.confirmed.first_entry() {
            let index = *entry.key();
            if index > handed {
                break;
            }
            for (end, read) in entry.remove() {
                match read {
                    Read::Query(query, waiter) => queries.push((query, waiter)),
                    Read::Index(waiter) if index <= applied => drop(waiter.send(Ok(index))),
                    Read::Index(_) => later.push((index, (end, read))),
                }
            }
        }
        for (index, read) in later {
            self.confirmed.entry(index).or_default().push(read);
        }
        queries
    }

    /// Ends those whose time is over.
    pub fn expire(&mut self, now: Time) {
        if self.deadline().is_none_or(|deadline| deadline > now) {
            return;
        }
        let over = |reads: &mut Vec<(Time, Read<S>)>, error: &ReadError| {
            for (_, read) in reads.extract_if(.., |(end, _)| *end <= now) {
                read.fail(error.clone());
            }
        };
        over(&mut self.gathering, &ReadError::NoLeader);
        for round in self.rounds.values_mut() {
            over(&mut round.reads, &ReadError::TimedOut);
        }
        for reads in self.confirmed.values_mut() {
            over(reads, &ReadError::TimedOut);
        }
        self.rounds.retain(|_, round| !round.reads.is_empty());
        self.confirmed.retain(|_, reads| !reads.is_empty());
    }

    /// Ends those with an end up to `end` that are confirmed and wait until enough is applied.
    pub fn give_up_waiting(&mut self, end: Time, error: &ReadError) {
        for reads in self.confirmed.values_mut() {
            for (_, read) in reads.extract_if(.., |(its, _)| *its <= end) {
                read.fail(error.clone());
            }
        }
        self.confirmed.retain(|_, reads| !reads.is_empty());
    }

    /// The earliest end of those that are confirmed.
    #[must_use]
    pub fn first_confirmed_end(&self) -> Option<Time> {
        self.confirmed.values().filter_map(|reads| reads.first()).map(|(end, _)| *end).min()
    }

    /// When [`expire`](Self::expire) has something to do at the latest.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        // Reads of a list arrive in order of their ends, except for those of a failed round: the first of each
        // list is close enough, and a list is looked through when its time comes.
        let rounds = self.rounds.values().filter_map(|round| round.reads.first());
        let confirmed = self.confirmed.values().filter_map(|reads| reads.first());
        self.gathering.iter().chain(rounds).chain(confirmed).map(|(end, _)| *end).min()
    }

    /// The node stops.
    pub fn stop(&mut self) {
        let rounds = std::mem::take(&mut self.rounds).into_values().flat_map(|round| round.reads);
        let confirmed = std::mem::take(&mut self.confirmed).into_values().flatten();
        let gathering = std::mem::take(&mut self.gathering);
        for (_, read) in gathering.into_iter().chain(rounds).chain(confirmed) {
            read.fail(ReadError::Stopped);
        }
    }
}

#[cfg(test)]
mod tests {
    use raft_core::{
        ApplyContext, Command, DecodeError, Digest, MemorySnapshot, Snapshot, SnapshotError,
        SnapshotSink, SnapshotSource,
    };
    use tokio::sync::oneshot::{self, Receiver};

    use super::*;

    /// A state machine for the types alone.
    struct Nothing;

    impl Command for Nothing {
        fn encode(&self, _: &mut bytes::BytesMut) {}

        fn decode(_: Bytes) -> Result<Self, DecodeError> {
            Ok(Self)
        }
    }

    impl Snapshot for Nothing {
        fn write(self, sink: &mut dyn SnapshotSink) -> Result<(), SnapshotError> {
            MemorySnapshot::default().put(&[]).and_then(|id| sink.reuse(id)).map(|_| ())
        }
    }

    impl StateMachine for Nothing {
        type Command = Self;
        type Response = ();
        type Query = u8;
        type Answer = ();
        type Snapshot = Self;

        fn apply(&mut self, _: ApplyContext, _: Self) {}

        fn query(&self, _: u8) {}

        fn snapshot(&self) -> Self {
            Self
        }

        fn restore(&mut self, _: &dyn SnapshotSource) -> Result<(), SnapshotError> {
            Ok(())
        }

        fn digest(&self) -> Digest {
            Digest(0)
        }
    }

    type Answer = Receiver<Result<(), ProposeError>>;

    fn hold(proposals: &mut Proposals<Nothing>, request: u64, bytes: usize, end: u64) -> Answer {
        let (waiter, answer) = oneshot::channel();
        let payload = Bytes::from(vec![0; bytes]);
        proposals.hold(request, payload, None, waiter, Time::from_micros(end));
        answer
    }

    fn n(number: u64) -> NodeId {
        NodeId::new(number, 0)
    }

    #[test]
    fn what_a_leader_refused_leaves_again_in_its_old_order() {
        let mut proposals = Proposals::default();
        let _answers: Vec<_> =
            (1..=3).map(|request| hold(&mut proposals, request, 8, 100)).collect();
        assert_eq!(proposals.leave(Term(1), Some(n(2))).requests, [1, 2, 3]);
        proposals.refused(Some(n(2)), Term(1), 1, &[1, 2, 3], Refusal::NotLeader);
        assert_eq!(proposals.leave(Term(2), Some(n(3))).requests, [1, 2, 3]);
        // Neither a repeated refusal of the first attempt nor one by somebody else sets them free again.
        proposals.refused(Some(n(2)), Term(1), 1, &[1, 2, 3], Refusal::NotLeader);
        proposals.refused(Some(n(2)), Term(2), 2, &[1, 2, 3], Refusal::NotLeader);
        assert!(proposals.leave(Term(3), None).requests.is_empty());
    }

    #[test]
    fn a_refusal_that_arrives_twice_sets_nothing_free_that_has_left_again() {
        let mut proposals = Proposals::default();
        let _answer = hold(&mut proposals, 1, 8, 100);
        let first = proposals.leave(Term(1), Some(n(2)));
        proposals.refused(Some(n(2)), Term(1), first.attempt, &[1], Refusal::Transferring);
        // To the same leader of the same term; this time it is appended.
        let second = proposals.leave(Term(1), Some(n(2)));
        assert_eq!(second.requests, [1]);
        proposals.refused(Some(n(2)), Term(1), first.attempt, &[1], Refusal::Transferring);
        assert!(proposals.leave(Term(2), Some(n(3))).requests.is_empty());
    }

    #[test]
    fn a_round_of_an_earlier_life_confirms_nothing() {
        let mut earlier = Reads::<Nothing>::new(crate::node::first_request(3));
        let round = earlier.begin_round(Time::ZERO);
        let mut reads = Reads::<Nothing>::new(crate::node::first_request(4));
        let (waiter, mut index) = oneshot::channel();
        reads.gather(Read::Index(waiter), Time::from_micros(100));
        assert_ne!(reads.begin_round(Time::ZERO), round);
        reads.finished(round, Some(Index(1)));
        reads.serve(Index(9), Index(9));
        assert!(index.try_recv().is_err());
    }

    #[test]
    fn b19_only_what_was_not_seen_below_a_later_term_is_certainly_lost() {
        let mut proposals = Proposals::default();
        let mut answers: Vec<_> =
            (1..=3).map(|request| hold(&mut proposals, request, 8, 100)).collect();
        proposals.leave(Term(1), None);
        assert!(proposals.committed(1).is_some());
        proposals.superseded(Term(1));
        assert!(answers[1].try_recv().is_err(), "an entry of its own term says nothing");
        proposals.superseded(Term(2));
        assert_eq!(answers[1].try_recv(), Ok(Err(ProposeError::Superseded)));
        assert_eq!(answers[2].try_recv(), Ok(Err(ProposeError::Superseded)));
    }

    #[test]
    fn b45_what_a_snapshot_may_hold_is_unknown_and_what_left_later_is_not_touched() {
        let mut proposals = Proposals::default();
        let mut old = hold(&mut proposals, 1, 8, 100);
        proposals.leave(Term(1), None);
        let mut new = hold(&mut proposals, 2, 8, 100);
        proposals.leave(Term(3), Some(n(2)));
        let mut held = hold(&mut proposals, 3, 8, 100);
        proposals.skipped(Term(2));
        assert_eq!(old.try_recv(), Ok(Err(ProposeError::Unknown)));
        assert!(new.try_recv().is_err() && held.try_recv().is_err());
    }

    #[test]
    fn time_ends_what_is_held_without_effect_and_what_left_with_unknown_fate() {
        let mut proposals = Proposals::default();
        let mut left = hold(&mut proposals, 1, 8, 10);
        proposals.leave(Term(1), None);
        let mut held = hold(&mut proposals, 2, 8, 20);
        assert_eq!(proposals.deadline(), Some(Time::from_micros(10)));
        proposals.expire(Time::from_micros(10));
        assert_eq!(left.try_recv(), Ok(Err(ProposeError::TimedOut)));
        assert!(held.try_recv().is_err());
        proposals.expire(Time::from_micros(25));
        assert_eq!(held.try_recv(), Ok(Err(ProposeError::NoLeader)));
        assert_eq!(proposals.deadline(), None);
        assert!(proposals.leave(Term(2), None).requests.is_empty());
    }

    #[test]
    fn b59_no_more_bytes_than_the_limit_are_on_their_way_and_the_count_returns_to_zero() {
        let mut proposals = Proposals::default();
        let half = FORWARDED_BYTES_MAX / 2;
        let _answers: Vec<_> =
            (1..=3).map(|request| hold(&mut proposals, request, half, 100)).collect();
        assert_eq!(proposals.leave(Term(1), Some(n(2))).requests, [1, 2]);
        assert!(proposals.leave(Term(1), Some(n(2))).requests.is_empty());
        proposals.committed(1);
        assert_eq!(proposals.leave(Term(1), Some(n(2))).requests, [3]);
        proposals.refused(Some(n(2)), Term(1), 1, &[2], Refusal::Overloaded);
        proposals.superseded(Term(2));
        assert_eq!(proposals.forwarded_bytes, 0);
        assert!(proposals.waiting.is_empty() && proposals.left.is_empty());
    }

    #[test]
    fn a_stop_tells_what_is_certain() {
        let mut proposals = Proposals::default();
        let mut left = hold(&mut proposals, 1, 8, 10);
        proposals.leave(Term(1), None);
        let mut held = hold(&mut proposals, 2, 8, 20);
        proposals.stop(true);
        let stopped =
            |definitely_not_applied| Err(ProposeError::Stopped { definitely_not_applied });
        assert_eq!(held.try_recv(), Ok(stopped(true)));
        proposals.stop(false);
        assert_eq!(left.try_recv(), Ok(stopped(false)));
    }

    #[test]
    fn reads_that_gather_share_a_round_and_a_failed_round_is_repeated() {
        let mut reads = Reads::<Nothing>::new(0);
        let (waiter, mut index) = oneshot::channel();
        reads.gather(Read::Index(waiter), Time::from_micros(100));
        let (waiter, mut query) = oneshot::channel();
        reads.gather(Read::Query(7, waiter), Time::from_micros(100));
        let first = reads.begin_round(Time::ZERO);
        assert!(!reads.any_gathering());
        reads.finished(first, None);
        assert!(reads.any_gathering());
        let second = reads.begin_round(Time::ZERO);
        // A late answer to the round that failed confirms nothing.
        reads.finished(first, Some(Index(1)));
        assert!(reads.serve(Index(9), Index(9)).is_empty());
        reads.finished(second, Some(Index(5)));
        // The query may stand in the queue behind the entries; the index is told once they are applied.
        assert_eq!(reads.serve(Index(3), Index(4)).len(), 0);
        assert_eq!(reads.serve(Index(4), Index(5)).len(), 1);
        assert!(index.try_recv().is_err());
        assert_eq!(reads.serve(Index(5), Index(5)).len(), 0);
        assert_eq!(index.try_recv(), Ok(Ok(Index(5))));
        assert!(query.try_recv().is_err());
    }

    #[test]
    fn b61_a_read_that_nobody_confirms_ends_in_time() {
        let mut reads = Reads::<Nothing>::new(0);
        let mut answers = Vec::new();
        for end in [10, 20] {
            let (waiter, answer) = oneshot::channel();
            reads.gather(Read::Index(waiter), Time::from_micros(end));
            answers.push(answer);
        }
        assert_eq!(reads.deadline(), Some(Time::from_micros(10)));
        reads.expire(Time::from_micros(10));
        assert_eq!(answers[0].try_recv(), Ok(Err(ReadError::NoLeader)));
        reads.begin_round(Time::ZERO);
        reads.give_up(Time::ZERO);
        assert!(reads.any_gathering());
        reads.begin_round(Time::from_micros(15));
        reads.expire(Time::from_micros(20));
        assert_eq!(answers[1].try_recv(), Ok(Err(ReadError::TimedOut)));
    }
}
