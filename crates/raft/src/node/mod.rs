//! The node: what people embed. Steps 2, 3 and 9 in the life of a write.
//!
//! [`Node`] is a handle: it encodes a command once, queues it and awaits one answer. [`driver`] takes everything
//! that waited as one batch into the protocol; [`pending`] knows who waits for what; [`formation`] how a cluster
//! forms and a node joins it. These three are sans-IO. `task` is the shell: threads, channels, timers.
//!
//! Deliberately absent here: bytes on disk ([`log`](crate::log)), sockets ([`transport`](crate::transport)) and
//! the state machine's thread ([`apply`](crate::apply)).

use std::net::TcpStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use arc_swap::ArcSwap;
use bytes::BytesMut;
use raft_core::{
    Command as _, Index, Member, MemberId, MembershipStep, NodeId, Rng, Session, StateMachine,
};
use tokio::sync::{mpsc, oneshot, watch};

use crate::entry_header::{EntryHeader, HEADER_BYTES};
use crate::error::{AdminError, NodeError, ProposeError, ReadError};
use crate::message::Admin;
use crate::node::member_info::awaited;
use crate::node::request::{Budget, Request};

pub mod admin;
mod applied;
mod belonging;
mod builder;
mod busy_poll;
pub mod checkpoint;
#[cfg(test)]
mod decoders;
pub mod driver;
mod feature_level;
pub mod formation;
pub mod formation_message;
mod member_info;
pub mod pending;
mod rebuild;
pub mod recover;
mod replay;
mod request;
mod seed;
pub mod standing;
mod status;
mod task;
mod workers;

pub use crate::entry_header;
pub use crate::waiter::{ProposeWaiter, QueryWaiter};
pub use belonging::check_inspected;
pub use builder::{Builder, Settings};
pub use member_info::MemberInfo;
pub use rebuild::set_aside_folders;
pub use replay::replay;
pub use request::{AdminWaiter, Permit, ReadWaiter, Request as NodeRequest, first_request};
pub use seed::Seed;
pub use status::{MemberStatus, Phase, RoleName, Status};
pub use task::BootClock;

/// How a node ended: well, or of what. Shared because several may ask.
pub type Ended = Result<(), Arc<NodeError>>;

/// A handle to a running node. Cloning is cheap; the node shuts down gracefully when the last one is dropped.
#[derive(Debug)]
pub struct Node<S: StateMachine> {
    shared: Arc<Shared<S>>,
}

impl<S: StateMachine> Clone for Node<S> {
    fn clone(&self) -> Self {
        Self { shared: Arc::clone(&self.shared) }
    }
}

/// What the handle and the raft thread share: queues and atomics, no lock.
#[derive(Debug)]
pub(crate) struct Shared<S: StateMachine> {
    /// To the raft thread. Unbounded in count; proposals are bounded in bytes by `budget`.
    pub(crate) requests: mpsc::UnboundedSender<Request<S>>,
    /// For accepted sockets of peers, with an external listener.
    pub(crate) acceptor: crate::transport::Acceptor,
    /// Bytes of proposals that wait for their answer.
    pub(crate) budget: Budget,
    /// Longest command with its header.
    pub(crate) payload_bytes_max: usize,
    /// This node.
    pub(crate) node: NodeId,
    /// The next request's number; see [`first_request`].
    pub(crate) next_request: AtomicU64,
    /// Published by the raft thread after every turn.
    pub(crate) status: Arc<ArcSwap<Status>>,
    /// The same, but woken only when more than positions changed.
    pub(crate) watch: watch::Receiver<Arc<Status>>,
    /// Set once, when the node has ended.
    pub(crate) ended: watch::Receiver<Option<Ended>>,
}

impl<S: StateMachine> Node<S> {
    /// Begins the settings of a node that replicates `machine`.
    #[must_use]
    pub fn builder(machine: S) -> Builder<S> {
        Builder::new(machine)
    }

    pub(crate) fn from_shared(shared: Shared<S>) -> Self {
        Self { shared: Arc::new(shared) }
    }

    /// Replicates a command and returns what applying it answered *on this member*. Any member takes it;
    /// followers hand it to the leader. Dropping the future neither stops nor harms the command.
    ///
    /// # Errors
    /// [`ProposeError::is_definite`] tells "certainly not applied" from "unknown".
    pub async fn propose(&self, command: S::Command) -> Result<S::Response, ProposeError> {
        self.propose_encoded(command, None).await
    }

    /// As [`propose`](Self::propose), with a client's session for the state machine to recognise retries by
    /// ([`Sessions`](crate::Sessions) does, and [`SessionClient`](crate::SessionClient) counts).
    ///
    /// # Errors
    /// As [`propose`](Self::propose).
    pub async fn propose_in_session(
        &self,
        command: S::Command,
        session: Session,
    ) -> Result<S::Response, ProposeError> {
        self.propose_encoded(command, Some(session)).await
    }

    async fn propose_encoded(
        &self,
        command: S::Command,
        session: Option<Session>,
    ) -> Result<S::Response, ProposeError> {
        let shared = &self.shared;
        let (needed, cluster) = (command.feature_level(), shared.status.load().feature_level);
        if needed > cluster {
            return Err(ProposeError::FeatureLevel { needed, cluster });
        }
        let request = self.next_request();
        let mut payload = BytesMut::with_capacity(HEADER_BYTES + 256);
        EntryHeader { proposer: shared.node, request, session }.encode(&mut payload);
        command.encode(&mut payload);
        let payload = payload.freeze();
        if payload.len() > shared.payload_bytes_max {
            let (bytes, bytes_max) =
                (payload.len() - HEADER_BYTES, shared.payload_bytes_max - HEADER_BYTES);
            return Err(ProposeError::TooLarge { bytes, bytes_max });
        }
        let Some(permit) = shared.budget.take(payload.len()) else {
            return Err(ProposeError::Overloaded);
        };
        let (waiter, answer) = oneshot::channel();
        shared
            .requests
            .send(Request::Propose { request, payload, permit: Some(permit), waiter })
            .map_err(|_| ProposeError::Stopped { definitely_not_applied: true })?;
        match answer.await {
            Ok(answer) => answer,
            Err(_) => Err(ProposeError::Stopped { definitely_not_applied: false }),
        }
    }

    /// Waits until this member has applied an index at which every write acknowledged before the call is
    /// visible, and returns that index (thesis §6.4). Any member serves it.
    ///
    /// # Errors
    /// When no leader confirmed it in time. Reading again is always safe.
    pub async fn read_index(&self) -> Result<Index, ReadError> {
        let (waiter, answer) = oneshot::channel();
        self.send(Request::ReadIndex { waiter }).map_err(|()| ReadError::Stopped)?;
        answer.await.unwrap_or(Err(ReadError::Stopped))
    }

    /// Answers a question from a state in which every write acknowledged before the call is visible.
    ///
    /// # Errors
    /// As [`read_index`](Self::read_index).
    pub async fn read(&self, query: S::Query) -> Result<S::Answer, ReadError> {
        self.query(query, true).await
    }

    /// Answers a question from this member's state as it is, which may lag. Never waits for the cluster.
    ///
    /// # Errors
    /// When the node has stopped.
    pub async fn read_local(&self, query: S::Query) -> Result<S::Answer, ReadError> {
        self.query(query, false).await
    }

    async fn query(&self, query: S::Query, linearizable: bool) -> Result<S::Answer, ReadError> {
        let (waiter, answer) = oneshot::channel();
        self.send(Request::Query { query, linearizable, waiter })
            .map_err(|()| ReadError::Stopped)?;
        answer.await.unwrap_or(Err(ReadError::Stopped))
    }

    /// Changes to who belongs to the cluster.
    #[must_use]
    pub const fn members(&self) -> Members<'_, S> {
        Members { node: self }
    }

    /// Hands leadership to this voter, or to the one that lags least. Returns when it has moved.
    ///
    /// # Errors
    /// When the target is no voter, or it did not take over in time.
    pub async fn transfer_leadership(&self, target: Option<MemberId>) -> Result<(), AdminError> {
        let target = match target {
            None => None,
            Some(member) => Some(self.find(member).await?),
        };
        self.admin(Admin::Transfer(target)).await.map(|_| ())
    }

    async fn admin(&self, admin: Admin) -> Result<Index, AdminError> {
        let (waiter, answer) = oneshot::channel();
        let request = self.next_request();
        self.send(Request::Admin { request, admin, waiter }).map_err(|()| AdminError::Stopped)?;
        answer.await.unwrap_or(Err(AdminError::Unknown))
    }

    /// The member with this id, or known by it. Who is not known here may be one all the same, when this node lags or has not
    /// formed yet: "not a member" is definite, so it is said only of everything committed before the call.
    async fn find(&self, member: MemberId) -> Result<NodeId, AdminError> {
        // The status shows the end of the last turn: that in which the first read was answered has ended
        // when the second is.
        for _ in 0..2 {
            if let Some(node) = self.status().find(member) {
                return Ok(node);
            }
            self.read_index().await.map_err(|error| match error {
                ReadError::Stopped => AdminError::Stopped,
                ReadError::NoLeader
                | ReadError::TimedOut
                | ReadError::Overloaded
                | ReadError::NoSpace => AdminError::NoLeader,
            })?;
        }
        self.status().find(member).ok_or_else(|| {
            let node = NodeId { member, ..NodeId::default() };
            AdminError::Refused(raft_core::MembershipError::NotAMember(node))
        })
    }

    /// The node's state at the end of its last turn. No lock, no waiting.
    #[must_use]
    pub fn status(&self) -> Arc<Status> {
        self.shared.status.load_full()
    }

    /// Wakes when the phase, role, term, leader or membership changed; positions are as of that moment.
    #[must_use]
    pub fn watch_status(&self) -> watch::Receiver<Arc<Status>> {
        self.shared.watch.clone()
    }

    /// Hands over an accepted connection whose first byte (peeked, not consumed) begins the peer protocol.
    /// Only with [`Builder::external_listener`].
    pub fn accept(&self, socket: TcpStream) {
        self.shared.acceptor.accept(socket);
    }

    /// Hands leadership over, refuses what is new, finishes what can be, makes everything durable, says goodbye
    /// and stops. Returns when all threads have ended.
    ///
    /// # Errors
    /// What the node died of, when it did not end well.
    pub async fn shutdown(&self) -> Ended {
        if self.send(Request::Shutdown).is_err() {
            tracing::debug!("shutdown of a node that has stopped already");
        }
        self.stopped().await
    }

    /// Returns when the node has ended, for whatever reason.
    ///
    /// # Errors
    /// What the node died of.
    pub async fn stopped(&self) -> Ended {
        let mut ended = self.shared.ended.clone();
        match ended.wait_for(Option::is_some).await {
            Ok(value) => value.clone().unwrap_or(Ok(())),
            Err(_) => Err(Arc::new(NodeError::Panicked("the raft thread"))),
        }
    }

    fn next_request(&self) -> u64 {
        self.shared.next_request.fetch_add(1, Ordering::Relaxed)
    }

    fn send(&self, request: Request<S>) -> Result<(), ()> {
        self.shared.requests.send(request).map_err(|_| ())
    }
}

/// Who belongs to the cluster, and how that is changed. Made by [`Node::members`].
#[derive(Debug)]
pub struct Members<'a, S: StateMachine> {
    node: &'a Node<S>,
}

impl<S: StateMachine> Members<'_, S> {
    /// The members as this node sees them: of the last configuration that it knows to be committed.
    #[must_use]
    pub fn list(&self) -> Arc<Vec<MemberStatus>> {
        Arc::clone(&self.node.status().members)
    }

    /// Adds the empty node that runs (or is about to) at `info.peer_address` as a voter: first as a learner, then,
    /// once it has caught up, with a vote. Returns when it votes.
    ///
    /// # Errors
    /// When it cannot be reached or the leader refuses.
    pub async fn add(&self, info: MemberInfo) -> Result<(), AdminError> {
        self.add_as(info, true).await
    }

    /// Adds the empty node at `info.peer_address` as a learner, which receives everything and does not count.
    ///
    /// # Errors
    /// As [`add`](Self::add).
    pub async fn add_learner(&self, info: MemberInfo) -> Result<(), AdminError> {
        self.add_as(info, false).await
    }

    /// Adds a member that has yet to start at `info.peer_address`, and returns at once, with the id by which it is to be
    /// known. Until an empty node starts there, it is a learner that nobody is; then that node takes its place, and gets
    /// a vote once it has caught up if `voter`. So it never counts before it is there.
    ///
    /// # Errors
    /// When the leader refuses, or there is none.
    pub async fn invite(&self, info: MemberInfo, voter: bool) -> Result<MemberId, AdminError> {
        // Random, since this node's id is, and another one for each request.
        let own = self.node.status().node.member.0;
        let mut rng = Rng::new(own ^ self.node.next_request().rotate_left(24));
        let member = MemberId::drawn(rng.next_u64());
        let info = MemberInfo { known_as: None, ..info };
        let node = awaited(member);
        let member = Member { info: info.encode(), auto_promote: voter };
        self.change(vec![MembershipStep::AddLearner { node, member }]).await?;
        Ok(node.member)
    }

    async fn add_as(&self, info: MemberInfo, voter: bool) -> Result<(), AdminError> {
        let (waiter, answer) = oneshot::channel();
        let request = self.node.next_request();
        self.node
            .send(Request::Add { request, info, voter, waiter })
            .map_err(|()| AdminError::Stopped)?;
        answer.await.unwrap_or(Err(AdminError::Unknown)).map(|_| ())
    }

    /// Makes a learner a voter.
    ///
    /// # Errors
    /// When it is not one, or has not caught up.
    pub async fn promote(&self, member: MemberId) -> Result<(), AdminError> {
        self.change(vec![MembershipStep::Promote(self.node.find(member).await?)]).await
    }

    /// Makes a voter a learner.
    ///
    /// # Errors
    /// When it is not one, or no voter would be left.
    pub async fn demote(&self, member: MemberId) -> Result<(), AdminError> {
        self.change(vec![MembershipStep::Demote(self.node.find(member).await?)]).await
    }

    /// Removes a member for ever.
    ///
    /// # Errors
    /// When it is not one, or no voter would be left.
    pub async fn remove(&self, member: MemberId) -> Result<(), AdminError> {
        self.change(vec![MembershipStep::Remove(self.node.find(member).await?)]).await
    }

    /// Replaces a member's name and addresses.
    ///
    /// # Errors
    /// When there is no such member.
    pub async fn update(&self, member: MemberId, info: &MemberInfo) -> Result<(), AdminError> {
        let node = self.node.find(member).await?;
        let status = self.node.status();
        let known = status.membership.member(node);
        let auto_promote = known.is_some_and(|member| member.auto_promote);
        let known = known.and_then(|member| MemberInfo::decode(&member.info)).unwrap_or_default();
        // What its program knows is for the member to say, and its ids stay.
        let MemberInfo { feature_level, known_as, .. } = known;
        let info = MemberInfo { feature_level, known_as, ..info.clone() };
        let member = Member { info: info.encode(), auto_promote };
        self.change(vec![MembershipStep::Update { node, member }]).await
    }

    /// Several steps as one change, through one joint configuration. Returns when it is committed and complete.
    ///
    /// # Errors
    /// When a step makes no sense.
    pub async fn change(&self, steps: Vec<MembershipStep>) -> Result<(), AdminError> {
        self.node.admin(Admin::Membership(steps)).await?;
        // The status shows the end of the last turn: that in which the change was answered has ended when this is. So
        // whoever has changed something finds it in the list. That the change is made stays true if this fails.
        self.node.read_index().await.ok();
        Ok(())
    }
}
