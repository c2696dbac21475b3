//! What other nodes say.

use raft_core::{Envelope, Membership, Message, NodeId, StateMachine, Time};
use tracing::{debug, info, warn};

use super::{Driver, send_formation};
use crate::entry_header::EntryHeader;
use crate::error::{AdminError, NodeError};
use crate::io::{Network, Stream};
use crate::log::LogRequest;
use crate::message::{Admin, ForwardAdmin, ForwardAdminReply, PeerMessage};
use crate::node::admin::Origin;
use crate::node::feature_level;
use crate::node::formation_message::{FormationMessage, is_gone};
use crate::node::member_info::MemberInfo;
use crate::node::standing::Answer;

/// What a node answers to an administrator's request that only the leader can take.
const NOT_LEADER: &str = "not leader";
/// A removed node is told so no more often than this.
const REMOVED_INTERVAL: std::time::Duration = std::time::Duration::from_secs(1);

/// A change that was not appended: the leader's word, unless it is none.
pub(super) fn membership_refused(error: raft_core::MembershipError) -> AdminError {
    if error == raft_core::MembershipError::NotLeader {
        AdminError::NoLeader
    } else {
        AdminError::Refused(error)
    }
}

impl<S: StateMachine> Driver<S> {
    /// Remembers the highest epoch of a peer, for when its disk forgets.
    pub(super) fn note_epoch(&mut self, from: NodeId, epoch: u64) {
        if epoch == 0 || self.peer_epochs.get(&from).is_some_and(|known| *known >= epoch) {
            return;
        }
        self.peer_epochs.insert(from, epoch);
        self.out.peer_epochs.push((from, epoch));
        if self.raft.is_some() || self.repair.is_some() {
            self.out.log.push(LogRequest::PeerEpoch(from, epoch));
        }
    }

    pub(super) fn on_message(
        &mut self,
        now: Time,
        from: NodeId,
        message: PeerMessage,
        network: &mut impl Network,
    ) {
        match message {
            PeerMessage::Raft(message) => self.on_raft(now, from, message),
            PeerMessage::Forward(forward) => self.on_forward(now, from, forward, network),
            PeerMessage::ForwardRefused(refused) => self.on_forward_refused(now, from, &refused),
            PeerMessage::ForwardAdmin(admin) => self.on_forward_admin(now, from, admin, network),
            PeerMessage::ForwardAdminReply(reply) => self.on_forward_admin_reply(now, reply),
            PeerMessage::Formation(bytes) => match FormationMessage::decode(&bytes) {
                Some(message) => self.on_formation(now, from, message, network),
                None => warn!(peer = %from, "a formation message does not decode; it is ignored"),
            },
            PeerMessage::Snapshot(message) => self.on_snapshot_message(now, from, message),
            PeerMessage::Goodbye => debug!(peer = %from, "says goodbye"),
        }
    }

    fn on_raft(&mut self, now: Time, from: NodeId, message: Message) {
        // The end of a snapshot is said by the own snapshot thread, never by a peer.
        if matches!(message, Message::InstallSnapshot(_)) {
            warn!(peer = %from, "sends the end of a snapshot outside of a snapshot; it is ignored");
            return;
        }
        if let Some(raft) = &mut self.raft {
            raft.step(now, Envelope { from, to: self.node, message });
        }
        self.heard_of(now, from);
    }

    fn on_formation(
        &mut self,
        now: Time,
        from: NodeId,
        message: FormationMessage,
        network: &mut impl Network,
    ) {
        if let Some(formation) = &mut self.formation {
            formation.step(now, from, message);
            self.work_off_formation(network);
            return;
        }
        if let FormationMessage::RepairAsk { wants, snapshot } = message {
            return self.on_repair_ask(now, from, (wants, snapshot), network);
        }
        if self.repair.is_some() {
            return self.on_repair_answer(from, message);
        }
        let (Some(raft), Some(founding)) = (&self.raft, &self.founding) else { return };
        let committed = raft.committed_membership();
        let formed = || FormationMessage::Formed {
            founding: founding.clone(),
            committed: Membership::clone(committed),
        };
        match message {
            FormationMessage::Empty { info, .. } => {
                send_formation(network, from, &formed());
                if let Some(info) = MemberInfo::decode(&info) {
                    self.on_empty_node(now, from, info);
                }
            }
            FormationMessage::Prepare(_) | FormationMessage::Accept(..) => {
                send_formation(network, from, &formed());
            }
            FormationMessage::Formed { founding: theirs, committed } => {
                if theirs.cluster == founding.cluster && is_gone(&committed, self.node) {
                    self.end(Err(NodeError::Removed));
                }
            }
            FormationMessage::StandingAsk { .. } if is_gone(committed, from) => {
                send_formation(network, from, &formed());
            }
            FormationMessage::StandingAsk { epoch: asked } => {
                let acknowledged = raft
                    .progress()
                    .find(|(node, _)| *node == from)
                    .map_or(raft_core::Index::ZERO, |(_, progress)| progress.match_index());
                let reply = FormationMessage::StandingReply {
                    asked,
                    epoch_seen: self.peer_epochs.get(&from).copied().unwrap_or(0),
                    acknowledged,
                    // Only who would campaign notices that its leader is gone.
                    leader: raft
                        .leader()
                        .filter(|_| self.gate.is_none() && raft.membership().is_voter(self.node)),
                    commit_index: raft.commit_index(),
                    committed: Membership::clone(committed),
                };
                send_formation(network, from, &reply);
            }
            FormationMessage::StandingReply {
                asked,
                epoch_seen,
                acknowledged,
                leader,
                commit_index,
                committed,
            } => {
                if let Some(gate) = &mut self.gate {
                    let committed = &committed;
                    let answer =
                        Answer { asked, epoch_seen, acknowledged, leader, commit_index, committed };
                    gate.answer(from, &answer);
                }
            }
            FormationMessage::Promise { .. }
            | FormationMessage::Accepted(_)
            | FormationMessage::Refused { .. }
            | FormationMessage::RepairAsk { .. }
            | FormationMessage::RepairLack { .. } => {}
            FormationMessage::State { at, level, state } => {
                self.on_peer_state(from, at, level, state);
            }
            FormationMessage::Full(is_full) => self.on_peer_full(now, from, is_full),
            answer @ FormationMessage::RepairHave(_) => self.on_repair_answer(from, answer),
        }
    }

    fn on_forward_admin(
        &mut self,
        now: Time,
        from: NodeId,
        forward: ForwardAdmin,
        network: &mut impl Network,
    ) {
        let origin = Origin::Remote(from, forward.request);
        let leads = self.raft.as_ref().is_some_and(|raft| raft.leader() == Some(self.node));
        if !leads || self.stopping.is_some() {
            return self.tell_admin(origin, Err(AdminError::NoLeader), network);
        }
        self.perform_admin(now, origin, forward.admin, network);
    }

    fn on_forward_admin_reply(&mut self, now: Time, reply: ForwardAdminReply) {
        match reply.outcome {
            Ok(index) => self.admins.finish(reply.request, Ok(index)),
            Err(text) if text == NOT_LEADER => {
                self.admins.not_leader(reply.request);
                self.wait_before_forwarding(now);
            }
            Err(text) => self.admins.finish(reply.request, Err(AdminError::RefusedByLeader(text))),
        }
    }

    /// The leader carries out an administrator's request.
    pub(super) fn perform_admin(
        &mut self,
        now: Time,
        origin: Origin,
        admin: Admin,
        network: &mut impl Network,
    ) {
        let Some(raft) = &mut self.raft else { return };
        match admin {
            Admin::Membership(steps) => {
                let (proposer, request) = match origin {
                    Origin::Local(request) => (self.node, request),
                    Origin::Remote(node, request) => (node, request),
                    Origin::Own(_) => return,
                };
                if let Err(refusal) = feature_level::check(raft.membership(), &steps) {
                    return self.tell_admin(
                        origin,
                        Err(AdminError::RefusedByLeader(refusal)),
                        network,
                    );
                }
                info!(?steps, "membership change");
                let header = EntryHeader { proposer, request, session: None };
                let change = self.admins.begin_change(raft.current_term(), origin);
                if let Err(error) = raft.change_membership(now, change, steps, header.to_bytes()) {
                    self.admins.end_change(change);
                    self.tell_admin(origin, Err(membership_refused(error)), network);
                }
            }
            Admin::Transfer(target) => match raft.transfer_leadership(now, target) {
                Ok(target) => {
                    info!(%target, "hands leadership over");
                    self.admins.begin_transfer(origin);
                }
                Err(raft_core::TransferError::AlreadyLeader) => {
                    self.tell_admin(origin, Ok(raft_core::Index::ZERO), network);
                }
                Err(raft_core::TransferError::NotLeader) => {
                    self.tell_admin(origin, Err(AdminError::NoLeader), network);
                }
                Err(
                    error @ (raft_core::TransferError::NoTarget
                    | raft_core::TransferError::InProgress),
                ) => {
                    let error = AdminError::RefusedByLeader(error.to_string());
                    self.tell_admin(origin, Err(error), network);
                }
            },
        }
    }

    /// The outcome of an administrator's request, to whoever asked.
    pub(super) fn tell_admin(
        &mut self,
        origin: Origin,
        outcome: Result<raft_core::Index, AdminError>,
        network: &mut impl Network,
    ) {
        match origin {
            Origin::Local(request) => match outcome {
                Err(AdminError::NoLeader) => self.admins.not_leader(request),
                outcome => self.admins.finish(request, outcome),
            },
            Origin::Remote(node, request) => {
                let outcome = outcome.map_err(|error| {
                    if error == AdminError::NoLeader {
                        String::from(NOT_LEADER)
                    } else {
                        error.to_string()
                    }
                });
                let reply = ForwardAdminReply { request, outcome };
                network.send(node, Stream::Control, PeerMessage::ForwardAdminReply(reply));
            }
            Origin::Own(node) => debug!(%node, ?outcome, "admission"),
        }
    }

    /// A node that the cluster has removed goes on campaigning: tell it.
    pub(super) fn tell_removed(&mut self, now: Time, node: NodeId, network: &mut impl Network) {
        let (Some(raft), Some(founding)) = (&self.raft, &self.founding) else { return };
        if self.removed_told.get(&node).is_some_and(|told| now.since(*told) < REMOVED_INTERVAL) {
            return;
        }
        let committed = Membership::clone(raft.committed_membership());
        self.removed_told.retain(|node, _| is_gone(&committed, *node));
        self.removed_told.insert(node, now);
        let formed = FormationMessage::Formed { founding: founding.clone(), committed };
        send_formation(network, node, &formed);
    }
}
