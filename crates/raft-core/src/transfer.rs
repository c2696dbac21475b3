//! Handing leadership over (thesis §3.10).

use core::fmt;

use crate::membership::MembershipError;
use crate::message::{Message, TimeoutNow};
use crate::raft::{Raft, Role};
use crate::ready::Event;
use crate::types::{NodeId, Time};

/// A transfer under way. Proposals are refused until it ends.
#[derive(Debug)]
pub(crate) struct Transfer {
    target: NodeId,
    /// When it is given up.
    pub(crate) deadline: Time,
    /// The target was told to campaign.
    told: bool,
}

/// Why leadership is not handed over.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TransferError {
    /// Only a leader can hand leadership over.
    NotLeader,
    /// The target is no voter, or nobody else votes.
    NoTarget,
    /// The target leads already.
    AlreadyLeader,
    /// Another transfer is under way.
    InProgress,
}

impl fmt::Display for TransferError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotLeader => write!(f, "not leader"),
            Self::NoTarget => write!(f, "no such voter to hand leadership to"),
            Self::AlreadyLeader => write!(f, "that member is the leader already"),
            Self::InProgress => write!(f, "leadership is being handed over already"),
        }
    }
}

impl core::error::Error for TransferError {}

impl Raft {
    /// Hands leadership to `target`, or to the voter whose log reaches furthest. Ends within the longest
    /// election timeout: either this node sees a newer term or [`Event::TransferEnded`] says that it goes on.
    ///
    /// # Errors
    /// When there is nobody to hand it to.
    pub fn transfer_leadership(
        &mut self,
        now: Time,
        target: Option<NodeId>,
    ) -> Result<NodeId, TransferError> {
        self.observe(now);
        let Role::Leader(leader) = &self.role else {
            return Err(TransferError::NotLeader);
        };
        if leader.transfer.is_some() {
            return Err(TransferError::InProgress);
        }
        if target == Some(self.node()) {
            return Err(TransferError::AlreadyLeader);
        }
        let target = target.or_else(|| self.best_successor()).ok_or(TransferError::NoTarget)?;
        if !self.membership().voters().contains(&target) {
            return Err(TransferError::NoTarget);
        }
        let deadline = self.now().after(self.config.election_timeout_max);
        if let Some(leader) = self.leader_mut() {
            leader.transfer = Some(Transfer { target, deadline, told: false });
        }
        Ok(target)
    }

    /// Tells the target to campaign once its log is complete.
    pub(crate) fn hand_over_if_ready(&mut self) {
        let last = self.log.last().index;
        let Some(leader) = self.leader_mut() else {
            return;
        };
        let Some(transfer) = &mut leader.transfer else {
            return;
        };
        let target = transfer.target;
        let complete =
            leader.progress.get(&target).is_some_and(|progress| progress.match_index == last);
        if complete && !transfer.told {
            transfer.told = true;
            self.tell_to_campaign(target);
        }
    }

    fn tell_to_campaign(&mut self, target: NodeId) {
        let term = self.current_term();
        if let Some(leader) = self.leader_mut() {
            leader.timeout_now_sent = true;
        }
        self.send(target, Message::TimeoutNow(TimeoutNow { term }));
    }

    /// Before stepping down for a reason of its own: let the best voter not wait for its timeout.
    pub(crate) fn nominate_successor(&mut self) {
        if let Some(successor) = self.best_successor() {
            self.tell_to_campaign(successor);
        }
    }

    pub(crate) fn end_transfer(&mut self, aborted: bool) {
        if let Some(transfer) = self.leader_mut().and_then(|leader| leader.transfer.take()) {
            self.out.events.push(Event::TransferEnded { target: transfer.target, aborted });
        }
    }

    /// Leadership is over: everything that waits for it is told.
    pub(crate) fn abandon_leadership(&mut self) {
        #[cfg(mutants)]
        {
            let matched = self.progress().map(|(peer, known)| (peer, known.match_index()));
            self.matched_before = matched.collect();
        }
        self.end_transfer(false);
        self.refuse_reads();
        let changes = match self.leader_mut() {
            Some(leader) => core::mem::take(&mut leader.changes),
            None => return,
        };
        for change in changes {
            self.out.events.push(Event::MembershipDropped {
                request: change.request,
                reason: MembershipError::NotLeader,
            });
        }
    }
}
