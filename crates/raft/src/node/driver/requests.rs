//! What clients of this node want, and how it leaves for the leader.

use std::sync::Arc;
use std::time::Duration;

use raft_core::{Index, Member, MembershipStep, StateMachine, Time};
use tracing::{debug, info};

use super::Driver;
use crate::apply::ApplyRequest;
use crate::error::{AdminError, ProposeError, ReadError};
use crate::io::{Network, Stream};
use crate::message::{Admin, Forward, ForwardAdmin, PeerMessage, Refusal};
use crate::node::admin::Origin;
use crate::node::member_info::MemberInfo;
use crate::node::pending::{Leaving, Read};
use crate::node::request::{Request, first_request};

/// Adding a member includes that it copies all data: it may take this long.
const ADD_TIMEOUT: Duration = Duration::from_secs(300);
/// Changed attributes of this member are announced again after this long.
const ANNOUNCE_INTERVAL: Duration = Duration::from_secs(5);
/// Payload bytes of one forward, as long as it holds more than one proposal.
const FORWARD_BYTES_MAX: usize = 1 << 20;

impl<S: StateMachine> Driver<S> {
    pub(super) fn on_request(&mut self, now: Time, request: Request<S>) {
        let end = now.after(self.settings.request_timeout());
        let stopped = self.stopping.is_some() || self.ended;
        // Whoever waits may have gone: that is no affair of the answer's.
        match request {
            Request::Propose { waiter, .. } if stopped => {
                drop(waiter.send(Err(ProposeError::Stopped { definitely_not_applied: true })));
            }
            Request::Propose { waiter, .. } if self.backlog_is_full() => {
                drop(waiter.send(Err(ProposeError::Overloaded)));
            }
            Request::Propose { payload, waiter, .. }
                if self.leads_without_space(now) && Self::needs_space(&payload) =>
            {
                drop(waiter.send(Err(ProposeError::NoSpace)));
            }
            Request::Propose { request, payload, permit, waiter } => {
                self.proposals.hold(request, payload, permit, waiter, end);
            }
            Request::ReadIndex { waiter } if stopped => drop(waiter.send(Err(ReadError::Stopped))),
            Request::ReadIndex { waiter } => self.reads.gather(Read::Index(waiter), end),
            Request::Query { waiter, .. } if stopped => drop(waiter.send(Err(ReadError::Stopped))),
            Request::Query { query, linearizable: true, waiter } => {
                self.reads.gather(Read::Query(query, waiter), end);
            }
            Request::Query { query, linearizable: false, waiter } => {
                self.push_apply(ApplyRequest::Query(query, waiter));
            }
            Request::Admin { waiter, .. } | Request::Add { waiter, .. } if stopped => {
                drop(waiter.send(Err(AdminError::Stopped)));
            }
            Request::Admin { request, admin, waiter } => {
                self.admins.hold(request, admin, Some(waiter), end);
            }
            Request::Add { request, info, voter, waiter } => {
                match self.member_at(&info.peer_address) {
                    Some(node) => {
                        let error = raft_core::MembershipError::AlreadyAMember(node);
                        drop(waiter.send(Err(AdminError::Refused(error))));
                    }
                    None => {
                        let end = now.after(ADD_TIMEOUT);
                        self.admins.hold_add(request, info, voter, waiter, end);
                    }
                }
            }
            Request::Shutdown => {
                info!("shuts down");
                self.begin_stopping(now, self.settings.handover_timeout, Ok(()));
            }
        }
    }

    fn backlog_is_full(&self) -> bool {
        let committed = self.raft.as_ref().map_or(Index::ZERO, raft_core::Raft::commit_index);
        // What a restart applies again was acknowledged before it: refusing writes would not make it less.
        committed.since(self.applied.max(self.recovered_to)) > self.settings.backlog_entries_max
    }

    fn member_at(&self, address: &str) -> Option<raft_core::NodeId> {
        let membership = self.raft.as_ref()?.membership();
        let at = |member: &Member| {
            MemberInfo::decode(&member.info).is_some_and(|info| info.peer_address == address)
        };
        membership.members().find(|(_, member)| at(member)).map(|(node, _)| node)
    }

    /// Everything that waited leaves as one batch: into the own log, or to the leader.
    pub(super) fn dispatch(&mut self, now: Time, network: &mut impl Network) {
        if self.proposals.any_held() && self.leads_without_space(now) {
            self.proposals.refuse_held(ProposeError::NoSpace, Self::needs_space);
        }
        let Some(raft) = &mut self.raft else { return };
        let Some(leader) = raft.leader() else { return };
        let term = raft.current_term();
        if self.reads.any_gathering() && self.forward_after.is_none() {
            let round = self.reads.begin_round(now);
            raft.read_index(now, round);
        }
        if self.forward_after.is_some() || self.not_leader == Some((term, leader)) {
            return;
        }
        if leader == self.node {
            if self.proposals.any_held() && self.stopping.is_none() {
                let Leaving { attempt, requests, payloads } = self.proposals.leave(term, None);
                if let Err(error) = raft.propose(now, payloads) {
                    let refusal = match error {
                        raft_core::ProposeError::NotLeader { .. } => Refusal::NotLeader,
                        raft_core::ProposeError::Overloaded => Refusal::Overloaded,
                        raft_core::ProposeError::Transferring => Refusal::Transferring,
                    };
                    self.proposals.refused(None, term, attempt, &requests, refusal);
                    if refusal != Refusal::Overloaded {
                        self.wait_before_forwarding(now);
                    }
                }
            }
            for (request, admin) in self.admins.leave(term) {
                self.perform_admin(now, Origin::Local(request), admin, network);
            }
            return;
        }
        if !self.connected.contains_key(&leader) {
            // What is sent now would be lost, and its fate unknown for ever.
            return;
        }
        if self.proposals.any_held() {
            let epoch = self.peer_epochs.get(&leader).copied().unwrap_or(0);
            let Leaving { attempt, payloads, .. } = self.proposals.leave(term, Some(leader));
            let mut batch = Vec::new();
            let mut bytes = 0;
            for payload in payloads {
                if bytes + payload.len() > FORWARD_BYTES_MAX && !batch.is_empty() {
                    let payloads = std::mem::take(&mut batch);
                    let forward = Forward { term, attempt, epoch, payloads };
                    network.send(leader, Stream::Control, PeerMessage::Forward(forward));
                    bytes = 0;
                }
                bytes += payload.len();
                batch.push(payload);
            }
            if !batch.is_empty() {
                let forward = Forward { term, attempt, epoch, payloads: batch };
                network.send(leader, Stream::Control, PeerMessage::Forward(forward));
            }
        }
        for (request, admin) in self.admins.leave(term) {
            let forward = ForwardAdmin { request, admin };
            network.send(leader, Stream::Control, PeerMessage::ForwardAdmin(forward));
        }
    }

    /// Delivers confirmed reads.
    pub(super) fn answer_reads(&mut self) {
        for (query, waiter) in self.reads.serve(self.applied, self.handed) {
            self.push_apply(ApplyRequest::Query(query, waiter));
        }
    }

    /// This member's attributes as they should be, when `known` is what the cluster has: those that are not configured
    /// stay as they are, so that what an administrator said at the addition is not undone.
    fn attributes_beside(&self, known: &MemberInfo) -> MemberInfo {
        let mut info = self.info.clone();
        // Without a name it is the address that stands for it, and moves with it.
        if self.settings.name.is_empty() && known.name != known.peer_address {
            info.name.clone_from(&known.name);
        }
        if info.client_addresses.is_empty() {
            info.client_addresses.clone_from(&known.client_addresses);
        }
        info.feature_level = info.feature_level.max(1);
        // By what it was told, it is known for ever.
        info.known_as = known.known_as;
        info
    }

    /// What is configured of this member, or what its program knows, is not what is committed: commit it (decisions 4
    /// and 18).
    pub(super) fn announce_attributes(&mut self, now: Time) {
        let Some(raft) = &self.raft else { return };
        if self.stopping.is_some() || raft.leader().is_none() {
            return;
        }
        let committed = raft.committed_membership();
        if self.attributes_in.as_ref().is_some_and(|known| Arc::ptr_eq(known, committed)) {
            return;
        }
        let Some(member) = committed.member(self.node) else { return };
        let Some(known) = MemberInfo::decode(&member.info) else { return };
        let known = MemberInfo { feature_level: known.feature_level.max(1), ..known };
        let info = self.attributes_beside(&known);
        if info == known {
            self.attributes_in = Some(Arc::clone(committed));
            return;
        }
        if self.announced.is_some_and(|at| now.since(at) < ANNOUNCE_INTERVAL) {
            return;
        }
        info!(
            from = known.peer_address,
            to = info.peer_address,
            name = info.name,
            client_addresses = info.client_addresses.join(","),
            feature_level = info.feature_level,
            "announces its changed attributes"
        );
        self.announced = Some(now);
        let member = Member { info: info.encode(), auto_promote: member.auto_promote };
        let steps = vec![MembershipStep::Update { node: self.node, member }];
        // The upper half of a start's numbers is the driver's own.
        let request = first_request(self.epoch) | (1 << 39) | (now.as_micros() & ((1 << 39) - 1));
        debug!(request, "own membership change");
        self.admins.hold(request, Admin::Membership(steps), None, now.after(ANNOUNCE_INTERVAL));
    }
}
