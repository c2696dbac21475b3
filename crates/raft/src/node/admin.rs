//! Administrators' requests: who waits for which change of the membership or transfer of leadership. Sans-IO.
//!
//! A membership change is answered when this node sees its entry committed and the configuration simple again,
//! whoever leads by then. A refusal by the leader is certain; anything else that goes wrong is unknown.

use std::collections::BTreeMap;

use raft_core::{Index, Member, Membership, MembershipStep, NodeId, Term, Time};

use crate::error::AdminError;
use crate::message::Admin;
use crate::node::member_info::MemberInfo;
use crate::node::request::AdminWaiter;

/// Empty nodes that are remembered at once.
const EMPTIES_MAX: usize = 64;

/// On whose behalf a leader acts.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Origin {
    /// A client of this node.
    Local(u64),
    /// A client of that node.
    Remote(NodeId, u64),
    /// Nobody's: the leader admits a member that had been configured from the beginning.
    Own(NodeId),
}

#[derive(Debug)]
enum State {
    /// Waits for a leader.
    Held(Admin),
    /// With the leader of this term.
    Left(Admin, Term),
    /// The node to add has not shown up.
    Unseen(MemberInfo),
    /// The change's first entry stands at this index; the configuration is still joint.
    Committed(Index),
    /// A learner that will be promoted; it was added at this index.
    Learner(Index),
}

#[derive(Debug)]
struct Waiting {
    waiter: Option<AdminWaiter>,
    end: Time,
    state: State,
    /// Answered only when this node votes.
    until_voter: Option<NodeId>,
    /// Of an addition: with a vote.
    voter: bool,
}

/// All administrators' requests of this node's clients, and the leader's book of those it acts upon.
#[derive(Debug, Default)]
pub struct Admins {
    waiting: BTreeMap<u64, Waiting>,
    /// Changes handed to the protocol and not known to be appended, by the number given with them: in which term,
    /// and on whose behalf.
    changes: BTreeMap<u64, (Term, Origin)>,
    last_change: u64,
    /// Who waits for the end of the transfer under way.
    transfers: Vec<Origin>,
    /// Empty nodes that have shown up: their addresses and attributes.
    empties: BTreeMap<NodeId, (String, MemberInfo)>,
    /// Counts the changes of [`unseen`](Self::unseen).
    unseen_changes: u64,
}

impl Admins {
    /// A new request; answered at `end` at the latest.
    pub fn hold(&mut self, request: u64, admin: Admin, waiter: Option<AdminWaiter>, end: Time) {
        let state = State::Held(admin);
        self.waiting
            .insert(request, Waiting { waiter, end, state, until_voter: None, voter: false });
    }

    /// A new request to add the node at an address.
    pub fn hold_add(
        &mut self,
        request: u64,
        info: MemberInfo,
        voter: bool,
        waiter: AdminWaiter,
        end: Time,
    ) {
        let state = State::Unseen(info);
        let waiting = Waiting { waiter: Some(waiter), end, state, until_voter: None, voter };
        self.waiting.insert(request, waiting);
        self.unseen_changes += 1;
        self.match_empties();
    }

    /// A node without data, or one that belongs to no configuration yet, is reached at `info.peer_address`.
    pub fn seen_empty(&mut self, node: NodeId, info: MemberInfo) {
        if self.empties.len() < EMPTIES_MAX || self.empties.contains_key(&node) {
            self.empties.retain(|_, (address, _)| *address != info.peer_address);
            self.empties.insert(node, (info.peer_address.clone(), info));
        }
        self.match_empties();
    }

    /// It is gone, or empty no more.
    pub fn forget_empty(&mut self, node: NodeId) {
        self.empties.remove(&node);
    }

    fn match_empties(&mut self) {
        for waiting in self.waiting.values_mut() {
            let State::Unseen(wanted) = &waiting.state else { continue };
            let found =
                self.empties.iter().find(|(_, (address, _))| *address == wanted.peer_address);
            let Some((node, (_, own))) = found else { continue };
            let mut info = MemberInfo { feature_level: own.feature_level, ..wanted.clone() };
            if info.name.is_empty() {
                info.name.clone_from(&own.name);
            }
            if info.client_addresses.is_empty() {
                info.client_addresses.clone_from(&own.client_addresses);
            }
            let member = Member { info: info.encode(), auto_promote: waiting.voter };
            self.unseen_changes += 1;
            waiting.until_voter = waiting.voter.then_some(*node);
            waiting.state = State::Held(Admin::Membership(vec![MembershipStep::AddLearner {
                node: *node,
                member,
            }]));
        }
    }

    /// Addresses of nodes that are to be added and have not shown up.
    pub fn unseen(&self) -> impl Iterator<Item = &str> {
        self.waiting.values().filter_map(|waiting| match &waiting.state {
            State::Unseen(info) => Some(info.peer_address.as_str()),
            State::Held(_) | State::Left(..) | State::Committed(_) | State::Learner(_) => None,
        })
    }

    /// Another number whenever [`unseen`](Self::unseen) may differ from before.
    #[must_use]
    pub const fn unseen_changes(&self) -> u64 {
        self.unseen_changes
    }

    /// Whether some wait for a leader.
    #[must_use]
    pub fn any_held(&self) -> bool {
        self.waiting.values().any(|waiting| matches!(waiting.state, State::Held(_)))
    }

    /// Lets the held ones leave for the leader of `term`.
    pub fn leave(&mut self, term: Term) -> Vec<(u64, Admin)> {
        let mut leaving = Vec::new();
        for (request, waiting) in &mut self.waiting {
            if let State::Held(admin) = &waiting.state {
                let admin = admin.clone();
                leaving.push((*request, admin.clone()));
                waiting.state = State::Left(admin, term);
            }
        }
        leaving
    }

    /// The node asked does not lead: certainly nothing happened, so another one may be asked.
    pub fn not_leader(&mut self, request: u64) {
        if let Some(waiting) = self.waiting.get_mut(&request)
            && let State::Left(admin, _) = &waiting.state
        {
            waiting.state = State::Held(admin.clone());
        }
    }

    /// An answer.
    pub fn finish(&mut self, request: u64, outcome: Result<Index, AdminError>) {
        let Some(waiting) = self.waiting.remove(&request) else { return };
        if matches!(waiting.state, State::Unseen(_)) {
            self.unseen_changes += 1;
        }
        if let Some(waiter) = waiting.waiter {
            // Whoever waited may have gone.
            drop(waiter.send(outcome));
        }
    }

    /// A number for a change that the protocol is asked for.
    pub fn begin_change(&mut self, term: Term, origin: Origin) -> u64 {
        self.last_change += 1;
        self.changes.insert(self.last_change, (term, origin));
        self.last_change
    }

    /// The change with this number came to nothing.
    pub fn end_change(&mut self, change: u64) -> Option<Origin> {
        self.changes.remove(&change).map(|(_, origin)| origin)
    }

    /// The change that `node`'s request asked for stands in the log, committed.
    pub fn appended(&mut self, node: NodeId, request: u64, own: NodeId) {
        self.changes.retain(|_, (_, origin)| match origin {
            Origin::Local(known) => (own, *known) != (node, request),
            Origin::Remote(from, known) => (*from, *known) != (node, request),
            Origin::Own(_) => true,
        });
    }

    /// The term is this one: what a leader of an earlier term was asked for and did not append comes to nothing,
    /// and what it appended may have been truncated.
    pub fn term_began(&mut self, term: Term) {
        self.changes.retain(|_, (asked, _)| *asked >= term);
    }

    /// Whether the leader is about to admit `node` by itself.
    #[must_use]
    pub fn is_admitting(&self, node: NodeId) -> bool {
        self.changes.values().any(|(_, origin)| *origin == Origin::Own(node))
    }

    /// A transfer has begun.
    pub fn begin_transfer(&mut self, origin: Origin) {
        self.transfers.push(origin);
    }

    /// The transfer has ended.
    pub fn end_transfer(&mut self) -> Vec<Origin> {
        std::mem::take(&mut self.transfers)
    }

    /// Another node leads now: a transfer to it that was asked for elsewhere has succeeded.
    pub fn leader_changed(&mut self, leader: NodeId) {
        let arrived = |waiting: &Waiting| match &waiting.state {
            State::Left(Admin::Transfer(target), _) => target.is_none_or(|target| target == leader),
            State::Left(Admin::Membership(_), _)
            | State::Held(_)
            | State::Unseen(_)
            | State::Committed(_)
            | State::Learner(_) => false,
        };
        let done: Vec<_> =
            self.waiting.iter().filter(|(_, waiting)| arrived(waiting)).map(|(r, _)| *r).collect();
        for request in done {
            self.finish(request, Ok(Index::ZERO));
        }
    }

    /// An entry of `term` is committed: what went to the leader of an earlier one and stands in no entry before it
    /// died with that leader, or is still on its way to it.
    pub fn superseded(&mut self, term: Term) {
        let lost = |waiting: &Waiting| matches!(waiting.state, State::Left(_, left) if left < term);
        let over: Vec<_> =
            self.waiting.iter().filter(|(_, waiting)| lost(waiting)).map(|(r, _)| *r).collect();
        for request in over {
            self.finish(request, Err(AdminError::Unknown));
        }
    }

    /// Those that wait for a node which became a member otherwise, by an earlier request whose answer was lost.
    fn finish_known(&mut self, membership: &Membership) {
        let known: BTreeMap<String, NodeId> = membership
            .members()
            .filter_map(|(node, member)| Some((MemberInfo::decode(&member.info)?, node)))
            .map(|(info, node)| (info.peer_address, node))
            .collect();
        let over: Vec<_> = self
            .waiting
            .iter()
            .filter_map(|(request, waiting)| match &waiting.state {
                State::Unseen(info) => Some((*request, *known.get(&info.peer_address)?)),
                State::Held(_) | State::Left(..) | State::Committed(_) | State::Learner(_) => None,
            })
            .collect();
        for (request, node) in over {
            let error = raft_core::MembershipError::AlreadyAMember(node);
            self.finish(request, Err(AdminError::Refused(error)));
        }
    }

    /// A configuration is committed at `index`; `request`: one of this node's clients asked for it.
    pub fn committed(&mut self, index: Index, membership: &Membership, request: Option<u64>) {
        if let Some(waiting) = request.and_then(|request| self.waiting.get_mut(&request)) {
            waiting.state = State::Committed(index);
        }
        self.finish_known(membership);
        if membership.is_joint() {
            return;
        }
        self.changes.retain(|_, (_, origin)| match origin {
            Origin::Own(node) => !membership.contains(*node),
            Origin::Local(_) | Origin::Remote(..) => true,
        });
        let mut done = Vec::new();
        for (request, waiting) in &mut self.waiting {
            let at = match waiting.state {
                State::Committed(at) | State::Learner(at) => at,
                State::Held(_) | State::Left(..) | State::Unseen(_) => continue,
            };
            match waiting.until_voter {
                Some(node) if !membership.voters().contains(&node) => {
                    waiting.state = State::Learner(at)
                }
                Some(_) | None => done.push((*request, at)),
            }
        }
        for (request, at) in done {
            self.finish(request, Ok(at));
        }
    }

    /// Ends those whose time is over.
    pub fn expire(&mut self, now: Time) {
        let over: Vec<_> = self
            .waiting
            .iter()
            .filter(|(_, waiting)| waiting.end <= now)
            .map(|(r, _)| *r)
            .collect();
        for request in over {
            let error = match self.waiting.get(&request).map(|waiting| &waiting.state) {
                Some(State::Held(_)) => AdminError::NoLeader,
                Some(State::Unseen(info)) => AdminError::RefusedByLeader(format!(
                    "no empty node was reached at {}; start one there that joins this cluster. Nothing happened",
                    info.peer_address
                )),
                Some(State::Left(..) | State::Committed(_) | State::Learner(_)) | None => {
                    AdminError::Unknown
                }
            };
            self.finish(request, Err(error));
        }
    }

    /// When [`expire`](Self::expire) has something to do.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        self.waiting.values().map(|waiting| waiting.end).min()
    }

    /// The node stops.
    pub fn stop(&mut self) {
        for (_, waiting) in std::mem::take(&mut self.waiting) {
            if let Some(waiter) = waiting.waiter {
                // Whoever waited may have gone.
                drop(waiter.send(Err(AdminError::Stopped)));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn n(number: u64) -> NodeId {
        NodeId::new(number, 1)
    }

    #[test]
    fn an_admission_that_was_truncated_can_be_tried_again() {
        let mut admins = Admins::default();
        admins.begin_change(Term(1), Origin::Own(n(4)));
        assert!(admins.is_admitting(n(4)));
        admins.term_began(Term(1));
        assert!(admins.is_admitting(n(4)));
        admins.term_began(Term(2));
        assert!(!admins.is_admitting(n(4)));
    }

    #[test]
    fn changes_are_forgotten_once_they_are_committed() {
        let mut admins = Admins::default();
        admins.begin_change(Term(1), Origin::Local(5));
        admins.begin_change(Term(1), Origin::Remote(n(2), 5));
        let dropped = admins.begin_change(Term(1), Origin::Remote(n(3), 5));
        admins.appended(n(1), 5, n(1));
        admins.appended(n(2), 5, n(1));
        assert_eq!(admins.end_change(dropped), Some(Origin::Remote(n(3), 5)));
        assert!(admins.changes.is_empty());
    }

    fn waits(admins: &mut Admins, request: u64) -> tokio::sync::oneshot::Receiver<Outcome> {
        let (waiter, answer) = tokio::sync::oneshot::channel();
        let admin = Admin::Membership(vec![MembershipStep::Remove(n(3))]);
        admins.hold(request, admin, Some(waiter), Time::from_micros(9));
        answer
    }

    type Outcome = Result<Index, AdminError>;

    /// Found by killing leaders while members came and went: the answer was awaited to the end of the long time
    /// that an addition may take.
    #[test]
    fn what_died_with_its_leader_is_unknown_at_once() {
        let mut admins = Admins::default();
        let mut lost = waits(&mut admins, 1);
        assert_eq!(admins.leave(Term(3)).len(), 1);
        let mut asked = waits(&mut admins, 2);
        admins.superseded(Term(3));
        assert!(lost.try_recv().is_err(), "its own term says nothing");
        admins.superseded(Term(4));
        assert_eq!(lost.try_recv(), Ok(Err(AdminError::Unknown)));
        assert!(asked.try_recv().is_err(), "it has not left");
        assert_eq!(admins.leave(Term(4)).len(), 1);
    }

    /// The same: the addition had succeeded, and a second request for it waited for an empty node.
    #[test]
    fn an_addition_ends_when_the_node_turns_out_to_be_a_member() {
        let mut admins = Admins::default();
        let (waiter, mut answer) = tokio::sync::oneshot::channel();
        let info = MemberInfo { peer_address: String::from("a"), ..MemberInfo::default() };
        admins.hold_add(1, info.clone(), true, waiter, Time::from_micros(9));
        let members = |info: &MemberInfo| Membership::from_voters([(n(4), info.encode())]);
        admins.committed(Index(5), &members(&MemberInfo::default()), None);
        assert!(answer.try_recv().is_err());
        admins.committed(Index(6), &members(&info), None);
        let error = raft_core::MembershipError::AlreadyAMember(n(4));
        assert_eq!(answer.try_recv(), Ok(Err(AdminError::Refused(error))));
    }

    #[test]
    fn one_unseen_address_in_place_of_another_is_a_change() {
        let mut admins = Admins::default();
        let add = |admins: &mut Admins, request, address: &str| {
            let (waiter, _) = tokio::sync::oneshot::channel();
            let info = MemberInfo { peer_address: String::from(address), ..MemberInfo::default() };
            admins.hold_add(request, info, true, waiter, Time::from_micros(9));
        };
        add(&mut admins, 1, "a");
        let before = admins.unseen_changes();
        admins.finish(1, Err(AdminError::Unknown));
        add(&mut admins, 2, "b");
        assert_eq!(admins.unseen().collect::<Vec<_>>(), ["b"]);
        assert_ne!(admins.unseen_changes(), before);
    }
}
