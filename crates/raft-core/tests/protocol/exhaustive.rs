//! Every order in which a few things can happen to three members: breadth first, each state once.
//!
//! Elections, deliveries, completed writes, one proposal, one crash and one change of the configuration are taken in
//! all orders within the bounds; messages that are never delivered are lost. The protocol cannot be copied (its tickets
//! must not be), so a state is known by the actions that lead to it and is reached by doing them again. What a member
//! shows in full, without the state of its generator of timeouts, tells states apart. Time stands still.
//!
//! `STATES=1000000 cargo test --release -p rusty-raft-core --test protocol exhaustive` goes further.

use std::collections::{BTreeSet, VecDeque};
use std::hash::{DefaultHasher, Hasher as _};
use std::io::Write as _;
use std::time::Duration;

use bytes::Bytes;
use raft_core::{
    Config, Envelope, Incarnation, MemberId, Membership, MembershipStep, NodeId, RoleKind, Standing,
};

use crate::cluster::Cluster;

/// States of the short form.
const STATES: usize = 1_500;

/// What may happen at most.
#[derive(Clone, Copy, Debug)]
struct Bounds {
    terms: u64,
    proposals: usize,
    crashes: usize,
    changes: usize,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Action {
    /// A member's patience is over.
    Campaign(NodeId),
    /// The message at this place in the sorted list of those under way arrives.
    Deliver(usize),
    /// A member's oldest write is durable.
    Persist(NodeId),
    Propose(NodeId),
    /// A member dies, with all writes that are not durable, and starts again.
    Crash(NodeId),
    /// The leader removes another voter.
    Change(NodeId, NodeId),
}

fn node(number: u64) -> NodeId {
    NodeId { member: MemberId(number), incarnation: Incarnation(1) }
}

fn members() -> [NodeId; 3] {
    [node(1), node(2), node(3)]
}

/// A cluster after some actions.
struct State {
    cluster: Cluster,
    /// Messages under way, sorted, so that the order in which they left makes no other state.
    messages: Vec<(String, Envelope)>,
}

impl State {
    fn new() -> Self {
        let voters = members().map(|voter| (voter, Bytes::new()));
        let mut cluster = Cluster::new(1, Membership::from_voters(voters));
        let timeout = Duration::from_millis(100);
        for member in members() {
            // One length for all: drawing it changes nothing.
            cluster.add(Config::new(member, timeout, timeout, timeout / 10));
            cluster.start(member, Standing::Full);
        }
        Self { cluster, messages: Vec::new() }
    }

    fn after(path: &[Action]) -> Self {
        let mut state = Self::new();
        for action in path {
            state.act(*action);
        }
        state
    }

    fn act(&mut self, action: Action) {
        let who = match action {
            Action::Campaign(member) => {
                self.cluster.campaign(member);
                member
            }
            Action::Deliver(place) => {
                let (_, envelope) = self.messages.remove(place);
                let to = envelope.to;
                self.cluster.step(envelope);
                to
            }
            Action::Persist(member) => {
                self.cluster.persist(member, 1, true);
                member
            }
            Action::Propose(member) => {
                assert!(self.cluster.propose(member, &[1], 1).is_some(), "{member} runs");
                member
            }
            Action::Crash(member) => {
                self.cluster.crash(member, 0, None);
                self.cluster.start(member, Standing::Full);
                member
            }
            Action::Change(member, victim) => {
                let steps = vec![MembershipStep::Remove(victim)];
                assert!(self.cluster.change(member, 1, steps).is_some(), "{member} runs");
                member
            }
        };
        self.cluster.turn(who);
        // The state machine is at once where it can be: it decides nothing.
        while !self.cluster.node(who).work.is_empty() {
            self.cluster.apply(who);
            self.cluster.turn(who);
        }
        for envelope in std::mem::take(&mut self.cluster.outbox) {
            self.messages.push((format!("{envelope:?}"), envelope));
        }
        self.messages.sort_by(|a, b| a.0.cmp(&b.0));
    }

    /// Everything that may happen next.
    fn actions(&self, path: &[Action], bounds: Bounds) -> Vec<Action> {
        let [proposals, crashes, changes] = spent(path);
        let mut actions = Vec::new();
        for place in 0..self.messages.len() {
            // Equal messages do the same.
            if place == 0 || self.messages[place].0 != self.messages[place - 1].0 {
                actions.push(Action::Deliver(place));
            }
        }
        for member in members() {
            let Some(raft) = self.cluster.raft(member) else { continue };
            if !self.cluster.node(member).writes.is_empty() {
                actions.push(Action::Persist(member));
            }
            let leads = raft.role() == RoleKind::Leader;
            // Before anything has happened the members differ in their names only.
            let first = path.is_empty() && member != node(1);
            if !leads && !first && raft.current_term().0 < bounds.terms {
                actions.push(Action::Campaign(member));
            }
            if leads && proposals < bounds.proposals {
                actions.push(Action::Propose(member));
            }
            if crashes < bounds.crashes && !path.is_empty() {
                actions.push(Action::Crash(member));
            }
            if raft.is_established() && changes < bounds.changes {
                let others = members().into_iter().filter(|other| *other != member);
                actions.extend(others.map(|other| Action::Change(member, other)));
            }
        }
        actions
    }

    /// Tells states apart; what may still happen belongs to them.
    fn fingerprint(&self, path: &[Action]) -> u64 {
        let mut hasher = DefaultHasher::new();
        for count in spent(path) {
            hasher.write_usize(count);
        }
        for member in members() {
            let node = self.cluster.node(member);
            let raft = format!("{:?}", node.raft);
            // The generator of timeouts, of which there is one length only.
            let (before, after) = raft.split_once("rng: Rng(").unwrap_or((&raft, ""));
            let after = after.split_once(')').map_or("", |(_, after)| after);
            hasher.write(before.as_bytes());
            hasher.write(after.as_bytes());
            hasher.write(format!("{:?} {:?} {}", node.disk, node.writes, node.applied).as_bytes());
        }
        for (text, _) in &self.messages {
            hasher.write(text.as_bytes());
        }
        hasher.finish()
    }
}

/// How many proposals, crashes and changes there have been.
fn spent(path: &[Action]) -> [usize; 3] {
    let count = |kind: fn(&Action) -> bool| path.iter().filter(|action| kind(action)).count();
    [
        count(|action| matches!(action, Action::Propose(_))),
        count(|action| matches!(action, Action::Crash(_))),
        count(|action| matches!(action, Action::Change(..))),
    ]
}

/// What a search came to.
#[derive(Debug)]
struct Outcome {
    states: usize,
    transitions: usize,
    depth: usize,
    /// There is nothing more within the bounds.
    complete: bool,
}

/// Goes through all states within the bounds, or `states_max` of them. The checks panic.
fn search(bounds: Bounds, states_max: usize) -> Outcome {
    let mut seen = BTreeSet::from([State::new().fingerprint(&[])]);
    let mut waiting: VecDeque<Vec<Action>> = VecDeque::from([Vec::new()]);
    let (mut transitions, mut depth) = (0, 0);
    while let Some(path) = waiting.pop_front() {
        depth = depth.max(path.len());
        for action in State::after(&path).actions(&path, bounds) {
            let mut next = path.clone();
            next.push(action);
            transitions += 1;
            if seen.insert(State::after(&next).fingerprint(&next)) {
                waiting.push_back(next);
            }
            if seen.len() >= states_max {
                return Outcome { states: seen.len(), transitions, depth, complete: false };
            }
        }
    }
    Outcome { states: seen.len(), transitions, depth, complete: true }
}

fn states_max() -> usize {
    let asked = std::env::var("STATES").ok();
    asked.and_then(|text| text.parse().ok()).unwrap_or(STATES)
}

/// For whoever asked for more: how far it went.
fn tell(bounds: Bounds, outcome: &Outcome) {
    if std::env::var_os("STATES").is_some() {
        drop(writeln!(std::io::stdout(), "{bounds:?}: {outcome:?}"));
    }
}

/// One election without faults is small enough to be gone through to its end.
#[test]
fn exhaustive_one_election_is_complete() {
    let bounds = Bounds { terms: 1, proposals: 0, crashes: 0, changes: 0 };
    let outcome = search(bounds, 200_000);
    tell(bounds, &outcome);
    assert!(outcome.complete && outcome.states > 5_000, "{outcome:?}");
    assert!(outcome.transitions > outcome.states && outcome.depth >= 18, "{outcome:?}");
}

#[test]
fn exhaustive_two_terms_with_a_crash_and_a_change() {
    let bounds = Bounds { terms: 2, proposals: 1, crashes: 1, changes: 1 };
    let outcome = search(bounds, states_max());
    tell(bounds, &outcome);
    assert!(outcome.complete || outcome.states == states_max(), "{outcome:?}");
}
