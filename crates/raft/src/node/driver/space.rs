//! Full disks, here and at others: what the leader takes, and where leadership goes.
//!
//! A member's log is full when its next segment has no space; what the last one has left is kept for entries that make
//! the state no larger. Only the leader can spare it for the others: a quorum of full disks would have to store
//! whatever it takes, and then nothing would be committed any more, the first entry of a new term included. So every
//! member tells its leader, again and again while it lasts, and the leader refuses what needs space unless a quorum of
//! members that it hears has some.

use std::collections::BTreeMap;
use std::time::Duration;

use bytes::Bytes;
use raft_core::{Command as _, NodeId, Raft, StateMachine, Time};
use tracing::{debug, info, warn};

use super::{Driver, send_formation};
use crate::entry_header::EntryHeader;
use crate::error::ReadError;
use crate::io::Network;
use crate::node::formation_message::FormationMessage;

/// How often a leader is told that a disk is full.
const TELL_INTERVAL: Duration = Duration::from_millis(500);
/// For how long a read waits at a member that may be behind because its disk is full.
const WAIT_FOR_SPACE: Duration = Duration::from_secs(1);
/// For how long the leader believes it: longer than a few of these may be lost.
const BELIEVED_FOR: Duration = Duration::from_secs(5);

/// Whose disk is full.
#[derive(Debug, Default)]
pub(super) struct Space {
    /// The own log has no space for further segments.
    pub(super) is_full: bool,
    /// Others that have said so, and until when that is believed.
    full_peers: BTreeMap<NodeId, Time>,
    /// The leader that was told, and when it is told again.
    told: Option<(NodeId, Time)>,
}

impl Space {
    fn is_known_full(&self, now: Time, node: NodeId) -> bool {
        self.full_peers.get(&node).is_some_and(|until| now < *until)
    }

    pub(super) fn deadline(&self) -> Option<Time> {
        self.told.filter(|_| self.is_full).map(|(_, again)| again)
    }
}

impl<S: StateMachine> Driver<S> {
    /// What a member without space could not store it cannot apply either: whoever reads here and waits for it is sent
    /// elsewhere, instead of waiting until the time for an answer is over.
    pub(super) fn give_up_reads_behind(&mut self, now: Time) {
        if self.space.is_full {
            let waited = self.settings.request_timeout().saturating_sub(WAIT_FOR_SPACE);
            self.reads.give_up_waiting(now.after(waited), &ReadError::NoSpace);
        }
    }

    pub(super) fn reads_behind_deadline(&self) -> Option<Time> {
        let end = self.reads.first_confirmed_end().filter(|_| self.space.is_full)?;
        let asked = end.since(Time::ZERO).saturating_sub(self.settings.request_timeout());
        Some(Time::ZERO.after(asked).after(WAIT_FOR_SPACE))
    }

    /// Whether an entry makes the state larger.
    pub(super) fn needs_space(payload: &Bytes) -> bool {
        EntryHeader::decode(payload)
            .ok()
            .and_then(|(_, command)| S::Command::decode(command).ok())
            .is_none_or(|command| command.needs_space())
    }

    /// Whether this node leads and refuses whatever needs space.
    pub(super) fn leads_without_space(&self, now: Time) -> bool {
        let Some(raft) = &self.raft else { return false };
        if raft.leader() != Some(self.node) {
            return false;
        }
        if self.space.is_full {
            return true;
        }
        if self.space.full_peers.is_empty() {
            return false;
        }
        let has_space = |node| node == self.node || self.is_heard_with_space(raft, now, node);
        // Without a quorum that is heard it is not the space that is missing.
        let is_any_full =
            raft.membership().all_voters().any(|node| self.space.is_known_full(now, node));
        is_any_full && !raft.membership().is_quorum(has_space)
    }

    fn is_heard_with_space(&self, raft: &Raft, now: Time, node: NodeId) -> bool {
        let contact = raft.progress().find(|(peer, _)| *peer == node);
        let is_heard = contact.is_some_and(|(_, progress)| {
            now.since(progress.last_contact()) <= self.settings.election_timeout_max
        });
        is_heard && !self.space.is_known_full(now, node)
    }

    /// The own disk has become full, or is no longer.
    pub(super) fn on_full(&mut self, now: Time, is_full: bool) {
        self.space.is_full = is_full;
        if is_full {
            warn!("the disk is full: what makes the state larger is refused until there is space");
            self.leave_to_one_with_space(now);
        } else {
            info!("the disk has space again");
        }
    }

    /// A peer's disk is full, or is no longer.
    pub(super) fn on_peer_full(&mut self, now: Time, from: NodeId, is_full: bool) {
        if is_full {
            let known = self.space.full_peers.insert(from, now.after(BELIEVED_FOR));
            if known.is_none() {
                warn!(peer = %from, "a member's disk is full");
            }
        } else if self.space.full_peers.remove(&from).is_some() {
            info!(peer = %from, "a member's disk has space again");
            if self.space.is_full {
                self.leave_to_one_with_space(now);
            }
        }
    }

    /// A leader without space refuses everybody's writes: another voter may have some. Tried whenever a disk becomes
    /// full or has space again, so that leadership does not go round when they are full everywhere.
    fn leave_to_one_with_space(&mut self, now: Time) {
        let Some(raft) = &self.raft else { return };
        if raft.leader() != Some(self.node) {
            return;
        }
        let voters = raft.membership().voters().iter().copied();
        let able = voters.filter(|node| self.is_heard_with_space(raft, now, *node));
        let reached = |node: &NodeId| {
            raft.progress().find(|(peer, _)| peer == node).map(|(_, known)| known.match_index())
        };
        let Some(target) = able.max_by_key(reached) else {
            info!("leads on: no other member is known to have space");
            return;
        };
        let Some(raft) = &mut self.raft else { return };
        match raft.transfer_leadership(now, Some(target)) {
            Ok(target) => info!(%target, "hands leadership over: its own disk is full"),
            Err(error) => debug!(%error, "leadership is not handed over"),
        }
    }

    /// Tells the leader, again and again while the own disk is full, and once when it no longer is.
    pub(super) fn tell_space(&mut self, now: Time, network: &mut impl Network) {
        self.space.full_peers.retain(|_, until| now < *until);
        if !self.space.is_full && self.space.told.is_none() {
            return;
        }
        let leader = self.raft.as_ref().and_then(Raft::leader);
        let Some(leader) = leader.filter(|leader| *leader != self.node) else {
            self.space.told = None;
            return;
        };
        let is_full = self.space.is_full;
        let is_due = self.space.told.is_none_or(|(told, again)| told != leader || again <= now);
        if is_due || !is_full {
            send_formation(network, leader, &FormationMessage::Full(is_full));
            self.space.told = is_full.then(|| (leader, now.after(TELL_INTERVAL)));
        }
    }
}
