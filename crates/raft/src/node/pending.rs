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
use crate::node::request::{Permit, ProposeWaiter, QueryWaiter, ReadWaiter};

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
    },
}

struct Proposal<S: StateMachine> {
    payload: Bytes,
    /// Memory accounted for until the proposal is answered or committed.
    _permit: Option<Permit>,
    waiter: ProposeWaiter<S>,
    place: Place,
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
    /// way at once. Their numbers and payloads, in order of arrival.
    pub fn leave(&mut self, term: Term, to: Option<NodeId>) -> (Vec<u64>, Vec<Bytes>) {
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
            proposal.place = Place::Left { term, to };
            payloads.push(proposal.payload.clone());
            requests.push(request);
            self.left.insert((term, request));
            self.held.pop_front();
        }
        (requests, payloads)
    }

    /// The leader of `term` (`None`: this node) has not appended these and never will.
    pub fn refused(
        &mut self,
        from: Option<NodeId>,
        term: Term,
        requests: &[u64],
        refusal: Refusal,
    ) {
        for request in requests.iter().rev() {
            let left = Place::Left { term, to: from };
            if self.waiting.get(request).is_none_or(|proposal| proposal.place != left) {
                // A late answer to an attempt that is not the present one.
                continue;
            }
            match refusal {
                Refusal::Overloaded => self.answer(*request, ProposeError::Overloaded),
                Refusal::NotLeader | Refusal::Transferring => {
                    let Some(mut proposal) = self.remove(*request) else { continue };
                    proposal.place = Place::Held;
                    self.waiting.insert(*request, proposal);
                    self.held.push_front(*request);
                }
            }
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
        if let Place::Left { term, to } = proposal.place {
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

impl<S: StateMachine> Default for Reads<S> {
    fn default() -> Self {
        Self {
            gathering: Vec::new(),
            rounds: BTreeMap::new(),
            confirmed: BTreeMap::new(),
            last_round: 0,
        }
    }
}

impl<S: StateMachine> Reads<S> {
    /// A new read; answered at `end` at the latest.
    pub fn gather(&mut self, read: Read<S>, end: Time) {
        self.gathering.push((end, read));
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
