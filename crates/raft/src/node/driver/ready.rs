//! What the protocol wants, and what the apply thread answers.

use raft_core::{
    Entry, EntryId, EntryKind, Envelope, Event, Membership, NodeId, Persist, Ready, SnapshotMeta,
    StateMachine, Time,
};
use tracing::{debug, error, info, trace, warn};

use super::{Deferred, Driver, SnapshotJob};
use crate::apply::{ApplyCompletion, ApplyRequest};
use crate::entry_header::EntryHeader;
use crate::error::{AdminError, NodeError};
use crate::io::{Network, Stream};
use crate::log::LogRequest;
use crate::message::PeerMessage;
use crate::waiter::ProposeWaiter;

impl<S: StateMachine> Driver<S> {
    pub(super) fn work_off_ready(&mut self, now: Time, network: &mut impl Network) {
        loop {
            let Some(raft) = &mut self.raft else { return };
            let ready = raft.ready();
            if ready.is_empty() {
                return;
            }
            trace!(node = %self.node, ?ready, "ready");
            self.work_off(now, ready, network);
            // What became possible by it leaves in the same turn.
            self.dispatch(now, network);
        }
    }

    fn work_off(&mut self, now: Time, ready: Ready, network: &mut impl Network) {
        let Ready { messages, persist, restore, committed, reads, fetches, snapshots, events } =
            ready;
        for Envelope { to, message, .. } in messages {
            network.send(to, Stream::Control, PeerMessage::Raft(message));
        }
        if let Some(persist) = persist {
            self.on_persist(persist);
        }
        for event in events {
            self.on_event(now, event, network);
        }
        if let Some(raft) = &self.raft {
            // After the events, which tell whoever asked an earlier term's leader for a change that was dropped.
            self.admins.term_began(raft.current_term());
        }
        if let Some(meta) = restore {
            self.on_restore(meta);
        }
        if !committed.is_empty() {
            self.on_committed(committed);
        }
        for read in reads {
            self.reads.finished(read.id, read.index);
            if read.index.is_none() {
                self.wait_before_forwarding(now);
            }
        }
        self.out.log.extend(fetches.into_iter().map(LogRequest::Fetch));
        for send in snapshots {
            self.send_snapshot(now, send);
        }
    }

    fn on_persist(&mut self, persist: Persist) {
        if let Some(to) = persist.compact_to
            && let Some(raft) = &self.raft
            && let Some(term) = raft.term_at(to)
        {
            self.compactions.push_back((persist.ticket.sequence(), EntryId { index: to, term }));
        }
        self.out.log.push(LogRequest::Write(persist));
    }

    /// The log begins anew after a snapshot: everything before it that waited here was never seen.
    fn on_restore(&mut self, meta: SnapshotMeta) {
        let at = meta.last_included;
        info!(%at, "restores a snapshot from the leader");
        self.proposals.skipped(at.term);
        self.handed = self.handed.max(at.index);
        self.handed_term = self.handed_term.max(at.term);
        self.checkpoints.restart();
        self.picture = None;
        self.checkpoints.busy = false;
        let membership = meta.membership.clone();
        self.admins.committed(at.index, &membership, None);
        self.admins.superseded(at.term);
        if self.deferred.is_empty() {
            self.out.snapshot.push(SnapshotJob::Open(meta.clone()));
        }
        self.deferred.push_back(Deferred::Restore(meta));
        self.leave_if_removed(&membership);
    }

    /// Work for the apply thread; behind a restore that is being prepared.
    pub(super) fn push_apply(&mut self, request: ApplyRequest<S>) {
        if self.deferred.is_empty() {
            self.out.apply.push(request);
        } else {
            self.deferred.push_back(Deferred::Request(request));
        }
    }

    fn on_committed(&mut self, committed: Vec<Entry>) {
        let mut batch: Vec<Entry> = Vec::with_capacity(committed.len());
        let mut waiters: Vec<(raft_core::Index, ProposeWaiter<S>)> = Vec::new();
        for entry in committed {
            let id = entry.id;
            self.handed = id.index;
            match entry.kind {
                EntryKind::Empty => {}
                EntryKind::Command => {
                    if let Ok((header, _)) = EntryHeader::decode(&entry.payload)
                        && header.proposer == self.node
                        && let Some(waiter) = self.proposals.committed(header.request)
                    {
                        waiters.push((id.index, waiter));
                    }
                }
                EntryKind::Membership => self.on_membership_committed(&entry),
            }
            if id.term > self.handed_term {
                self.handed_term = id.term;
                self.proposals.superseded(id.term);
                self.admins.superseded(id.term);
            }
            let point = self.checkpoints.count(id, entry.payload.len());
            batch.push(entry);
            if point && !self.checkpoints.busy {
                self.checkpoints.busy = true;
                let (entries, waiters) = (std::mem::take(&mut batch), std::mem::take(&mut waiters));
                self.push_apply(ApplyRequest::Entries { entries, waiters });
                self.push_apply(ApplyRequest::Picture(id));
            }
        }
        if !batch.is_empty() {
            self.push_apply(ApplyRequest::Entries { entries: batch, waiters });
        }
    }

    fn on_membership_committed(&mut self, entry: &Entry) {
        let Some((membership, context)) = Membership::decode(&entry.payload) else { return };
        let header = EntryHeader::decode(&context).ok().map(|(header, _)| header);
        if let Some(header) = &header {
            self.admins.appended(header.proposer, header.request, self.node);
        }
        let request =
            header.filter(|header| header.proposer == self.node).map(|header| header.request);
        info!(index = %entry.id.index, ?membership, "membership committed");
        self.admins.committed(entry.id.index, &membership, request);
        self.leave_if_removed(&membership);
    }

    fn leave_if_removed(&mut self, membership: &Membership) {
        if membership.removed().contains(&self.node) && !membership.contains(self.node) {
            // A shutdown's patience: followers learn the commit from the next message of this leader.
            let now = self.raft.as_ref().map_or(Time::ZERO, raft_core::Raft::now);
            self.begin_stopping(now, self.settings.heartbeat_interval, Err(NodeError::Removed));
        }
    }

    fn on_event(&mut self, now: Time, event: Event, network: &mut impl Network) {
        match event {
            Event::BecameLeader { term } => {
                info!(%term, "leads");
                self.leader_changed(self.node);
            }
            Event::LeadershipEstablished { term } => debug!(%term, "leadership established"),
            Event::BecameFollower { term, leader } => match leader {
                Some(leader) => {
                    if self.last_leader != Some(leader) {
                        info!(%term, %leader, "follows");
                    }
                    self.leader_changed(leader);
                }
                None => {
                    debug!(%term, "no leader");
                    self.last_leader = None;
                }
            },
            Event::SteppedDown { term, reason } => warn!(%term, ?reason, "gave up leadership"),
            Event::MembershipChanged { index, membership } => {
                debug!(%index, ?membership, "membership in force");
            }
            Event::MembershipDropped { request, reason } => {
                if let Some(origin) = self.admins.end_change(request) {
                    self.tell_admin(origin, Err(super::peers::membership_refused(reason)), network);
                }
            }
            Event::TransferEnded { target, aborted } => {
                for origin in self.admins.end_transfer() {
                    let outcome = if aborted {
                        Err(AdminError::RefusedByLeader(format!(
                            "{target} did not take over in time"
                        )))
                    } else {
                        Ok(raft_core::Index::ZERO)
                    };
                    self.tell_admin(origin, outcome, network);
                }
                if aborted
                    && self.stopping.is_some()
                    && let Some(raft) = &mut self.raft
                {
                    // Still stopping: try the next best voter for as long as there is time.
                    if let Err(error) = raft.transfer_leadership(now, None) {
                        debug!(%error, "nobody to hand leadership to");
                    }
                }
            }
            Event::Contradiction { from, what } => {
                self.out.disconnect.push(from);
                error!(peer = %from, ?what, "a peer says what cannot be; one of the two is damaged; the \
                     connection is closed");
            }
            Event::UnknownPeer { from, removed: true } => self.tell_removed(now, from, network),
            event @ (Event::BecamePreCandidate { .. }
            | Event::BecameCandidate { .. }
            | Event::MembershipCommitted { .. }
            | Event::Truncated { .. }
            | Event::UnknownPeer { .. }
            | _) => debug!(?event, "event"),
        }
    }

    fn leader_changed(&mut self, leader: NodeId) {
        if self.last_leader == Some(leader) {
            return;
        }
        self.last_leader = Some(leader);
        self.forward_after = None;
        self.admins.leader_changed(leader);
    }

    pub(super) fn on_apply(&mut self, now: Time, completion: ApplyCompletion<S>) {
        match completion {
            ApplyCompletion::Applied(index) => self.on_applied(now, index),
            ApplyCompletion::Restored(meta) => self.on_applied(now, meta.last_included.index),
            ApplyCompletion::Picture(id, picture) => {
                // A restore in between has made it obsolete.
                if self.checkpoints.busy {
                    self.picture = Some((id, picture));
                }
            }
            ApplyCompletion::Failed(error) => self.end(Err(error)),
        }
    }

    fn on_applied(&mut self, now: Time, index: raft_core::Index) {
        self.applied = self.applied.max(index);
        if let Some(raft) = &mut self.raft {
            raft.applied(now, index);
        }
    }
}
