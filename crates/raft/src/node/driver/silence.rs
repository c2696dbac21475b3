//! A member without a vote that hears nothing from a leader.
//!
//! Voters find out by campaigning that they were removed. A learner that missed its own removal, or its demotion and then
//! that, would wait for ever for a leader that has forgotten it: it asks.

use std::time::Duration;

use raft_core::{NodeId, Raft, StateMachine, Time};

use super::{Driver, send_formation};
use crate::io::Network;
use crate::node::formation_message::FormationMessage;

/// After so long without a word of a leader the others are asked, and again every so often.
const SILENCE: Duration = Duration::from_secs(2);

/// When a leader, or at least a question of this node, was heard of last.
#[derive(Debug, Default)]
pub(super) struct Silence {
    since: Time,
}

impl<S: StateMachine> Driver<S> {
    /// A message of the protocol.
    pub(super) fn heard_of(&mut self, now: Time, from: NodeId) {
        if self.raft.as_ref().and_then(Raft::leader) == Some(from) {
            self.silence.since = now;
        }
    }

    /// Whoever knows of this node's removal says so.
    pub(super) fn ask_in_silence(&mut self, now: Time, network: &mut impl Network) {
        if self.silence_deadline().is_some_and(|deadline| deadline <= now) {
            self.silence.since = now;
            let ask = FormationMessage::StandingAsk { epoch: self.epoch };
            for node in self.connected.keys() {
                send_formation(network, *node, &ask);
            }
        }
    }

    pub(super) fn silence_deadline(&self) -> Option<Time> {
        let raft = self.raft.as_ref().filter(|_| self.gate.is_none() && !self.ended)?;
        let votes = raft.membership().is_voter(self.node);
        (!votes).then(|| self.silence.since.after(SILENCE))
    }
}
