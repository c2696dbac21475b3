//! Proposals that a follower hands to the leader: appended once, or refused for certain, or their fate is unknown.
//!
//! A network may deliver a frame twice, late, and after elections and restarts. "Refused" must stay true for ever:
//! the proposer lets the command leave again, or tells its client that nothing happened.

use std::collections::BTreeMap;

use raft_core::{NodeId, StateMachine, Term, Time};
use tracing::{debug, warn};

use super::Driver;
use crate::entry_header::EntryHeader;
use crate::io::{Network, Stream};
use crate::message::{Forward, ForwardRefused, PeerMessage, Refusal};

/// Numbers of forwarded proposals remembered for each follower in one term.
const REQUESTS_MAX: usize = 1 << 16;
/// Terms in which something was forwarded to this node that are remembered.
const TERMS_MAX: usize = 4;

/// What became of proposals forwarded to this node in its present life.
#[derive(Debug, Default)]
pub(super) struct Forwards {
    terms: BTreeMap<Term, BTreeMap<NodeId, Seen>>,
    /// What was forwarded in this term and before it is not remembered.
    forgotten: Term,
}

/// Those of one follower in one term.
#[derive(Debug, Default)]
struct Seen {
    /// By number: the attempt that was decided upon last, and whether it was appended.
    requests: BTreeMap<u64, (u64, bool)>,
    /// Everything up to this number is not remembered.
    forgotten: Option<u64>,
}

impl Forwards {
    /// Whether nothing has been decided about this attempt, so that it may be appended or refused. Of any other
    /// one nothing more may be said: it was appended, or refused already, or nobody remembers.
    fn is_open(&self, term: Term, from: NodeId, request: u64, attempt: u64) -> bool {
        if term <= self.forgotten {
            return false;
        }
        let Some(seen) = self.terms.get(&term).and_then(|nodes| nodes.get(&from)) else {
            return true;
        };
        match seen.requests.get(&request) {
            Some((_, true)) => false,
            Some((refused, false)) => attempt > *refused,
            None => seen.forgotten.is_none_or(|forgotten| request > forgotten),
        }
    }

    fn decided(
        &mut self,
        term: Term,
        from: NodeId,
        requests: &[u64],
        attempt: u64,
        appended: bool,
    ) {
        let seen = self.terms.entry(term).or_default().entry(from).or_default();
        seen.requests.extend(requests.iter().map(|request| (*request, (attempt, appended))));
        while seen.requests.len() > REQUESTS_MAX {
            seen.forgotten = seen.requests.pop_first().map(|(request, _)| request);
        }
        while self.terms.len() > TERMS_MAX {
            if let Some((oldest, _)) = self.terms.pop_first() {
                self.forgotten = oldest;
            }
        }
    }
}

impl<S: StateMachine> Driver<S> {
    /// A follower's proposals.
    pub(super) fn on_forward(
        &mut self,
        now: Time,
        from: NodeId,
        forward: Forward,
        network: &mut impl Network,
    ) {
        let without_space = self.leads_without_space(now);
        let Some(raft) = &mut self.raft else { return };
        let term = raft.current_term();
        // Sent to an earlier life of this node, which may have appended them. Nor is there a leader of a term that
        // has not begun here.
        if forward.epoch < self.began || forward.term > term {
            debug!(peer = %from, term = %forward.term, "a forward of which nothing is known; it is ignored");
            return;
        }
        let attempt = forward.attempt;
        let mut requests = Vec::with_capacity(forward.payloads.len());
        let mut payloads = Vec::with_capacity(forward.payloads.len());
        for payload in forward.payloads {
            // What cannot be answered must not be appended either.
            let Ok((header, _)) = EntryHeader::decode(&payload) else {
                warn!(peer = %from, "forwards something that is no proposal; it is ignored");
                continue;
            };
            if header.proposer == from
                && self.forwards.is_open(forward.term, from, header.request, attempt)
            {
                requests.push(header.request);
                payloads.push(payload);
            }
        }
        // What needs no space is taken although what came with it does.
        let mut parts = vec![(requests, payloads, None)];
        if without_space && forward.term == term {
            let (requests, payloads, _) = parts.remove(0);
            let pairs = requests.into_iter().zip(payloads);
            let (large, small): (Vec<_>, Vec<_>) =
                pairs.partition(|(_, payload)| Self::needs_space(payload));
            for (part, refusal) in [(small, None), (large, Some(Refusal::NoSpace))] {
                let (requests, payloads) = part.into_iter().unzip();
                parts.push((requests, payloads, refusal));
            }
        }
        for (requests, payloads, refusal) in parts {
            if requests.is_empty() {
                continue;
            }
            let outcome = if forward.term != term {
                Err(Refusal::NotLeader)
            } else if let Some(refusal) = refusal {
                Err(refusal)
            } else if self.stopping.is_some() {
                Err(Refusal::Transferring)
            } else {
                raft.propose(now, payloads).map(|_| ()).map_err(|error| match error {
                    raft_core::ProposeError::NotLeader { .. } => Refusal::NotLeader,
                    raft_core::ProposeError::Overloaded => Refusal::Overloaded,
                    raft_core::ProposeError::Transferring => Refusal::Transferring,
                })
            };
            if forward.term == term {
                // Of an earlier term nothing can be appended any more: there a refusal needs no memory.
                self.forwards.decided(term, from, &requests, attempt, outcome.is_ok());
            }
            match outcome {
                Ok(()) => raft.hasten_commit(from),
                Err(refusal) => {
                    let refused = ForwardRefused { term: forward.term, attempt, requests, refusal };
                    network.send(from, Stream::Control, PeerMessage::ForwardRefused(refused));
                }
            }
        }
    }

    pub(super) fn on_forward_refused(&mut self, now: Time, from: NodeId, refused: &ForwardRefused) {
        let ForwardRefused { term, attempt, requests, refusal } = refused;
        debug!(peer = %from, ?refusal, count = requests.len(), "forward refused");
        self.proposals.refused(Some(from), *term, *attempt, requests, *refusal);
        match refusal {
            Refusal::NotLeader => self.not_leader = Some((*term, from)),
            Refusal::Transferring => self.wait_before_forwarding(now),
            Refusal::Overloaded | Refusal::NoSpace => {}
        }
    }

    pub(super) fn wait_before_forwarding(&mut self, now: Time) {
        self.forward_after = Some(now.after(self.settings.heartbeat_interval / 4));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_is_decided_twice() {
        let (a, b) = (NodeId::new(1, 1), NodeId::new(2, 1));
        let mut forwards = Forwards::default();
        assert!(forwards.is_open(Term(1), a, 5, 1));
        forwards.decided(Term(1), a, &[5], 1, true);
        forwards.decided(Term(1), a, &[6], 1, false);
        // Appended: neither again nor ever refused, in whatever term the copy arrives.
        assert!(!forwards.is_open(Term(1), a, 5, 1) && !forwards.is_open(Term(1), a, 5, 2));
        // Refused: the copy is not appended, the next attempt may be.
        assert!(!forwards.is_open(Term(1), a, 6, 1) && forwards.is_open(Term(1), a, 6, 2));
        assert!(forwards.is_open(Term(1), b, 5, 1));
        forwards.decided(Term(2), b, &[1], 1, true);
        assert!(!forwards.is_open(Term(1), a, 5, 1), "remembered beyond its term");
    }

    #[test]
    fn of_what_is_forgotten_nothing_is_said() {
        let a = NodeId::new(1, 1);
        let mut forwards = Forwards::default();
        for term in 1..=5 {
            forwards.decided(Term(term), a, &[term], 1, true);
        }
        assert!(!forwards.is_open(Term(1), a, 9, 9));
        assert!(forwards.is_open(Term(2), a, 9, 9));
        let many: Vec<u64> = (0..=u64::try_from(REQUESTS_MAX).unwrap()).collect();
        forwards.decided(Term(6), a, &many, 1, true);
        assert!(!forwards.is_open(Term(6), a, 0, 2));
    }
}
