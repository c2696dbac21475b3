//! Whether all members have computed the same state.
//!
//! Members write their checkpoints at the same positions of the log, and of equal states the same blobs (decision 20). So
//! each tells the others what its checkpoint consists of, as one number, and whoever differs from a quorum of voters has
//! a state that nobody agreed to: a broken memory, or a program that computes something else. It stops, is set aside
//! and rebuilt from the others, like one with a damaged disk. Its log is not at fault and it has promised nothing
//! wrong; what it answered since the last checkpoint was.

use std::collections::BTreeMap;

use raft_core::{Digest, Index, NodeId, StateMachine};
use tracing::{error, warn};

use super::{Driver, send_formation};
use crate::error::{DataError, NodeError};
use crate::io::Network;
use crate::node::formation_message::FormationMessage;

/// Positions that are remembered: members do not reach them at the same time.
const POSITIONS_MAX: usize = 8;

/// States by the position of the checkpoint.
#[derive(Debug, Default)]
pub(super) struct Agreement {
    states: BTreeMap<Index, BTreeMap<NodeId, Digest>>,
    /// The newest position at which nobody could tell who is right, or another member was wrong: said once.
    said: Index,
}

impl Agreement {
    fn note(&mut self, at: Index, node: NodeId, state: Digest) {
        self.states.entry(at).or_default().insert(node, state);
        while self.states.len() > POSITIONS_MAX {
            self.states.pop_first();
        }
    }
}

impl<S: StateMachine> Driver<S> {
    /// The own checkpoint is written.
    pub(super) fn on_own_state(&mut self, at: Index, state: Digest, network: &mut impl Network) {
        let Some(raft) = &self.raft else { return };
        let level = self.info.feature_level.max(1);
        for (node, _) in raft.membership().members().filter(|(node, _)| *node != self.node) {
            send_formation(network, node, &FormationMessage::State { at, level, state });
        }
        self.agreement.note(at, self.node, state);
        self.compare_states(at);
    }

    /// What another member's checkpoint consists of. A program of another level may write it differently.
    pub(super) fn on_peer_state(&mut self, from: NodeId, at: Index, level: u16, state: Digest) {
        if level == self.info.feature_level.max(1) {
            self.agreement.note(at, from, state);
            self.compare_states(at);
        }
    }

    fn compare_states(&mut self, at: Index) {
        let Some(raft) = &self.raft else { return };
        let Some(states) = self.agreement.states.get(&at) else { return };
        let Some(own) = states.get(&self.node).copied() else { return };
        if states.values().all(|state| *state == own) {
            return;
        }
        let have = |state: Digest| move |node| states.get(&node) == Some(&state);
        let of_quorum =
            states.values().copied().find(|state| raft.membership().is_quorum(have(*state)));
        match of_quorum {
            Some(state) if state == own => {
                let odd: Vec<&NodeId> = states
                    .iter()
                    .filter(|(_, state)| **state != own)
                    .map(|(node, _)| node)
                    .collect();
                if self.agreement.said < at {
                    warn!(%at, ?odd, "the state of other members differs from that of a quorum");
                }
            }
            Some(state) => {
                let problem = format!(
                    "its state at {at} ({own}) is not that of a quorum of members ({state}): a broken memory, or a \
                     program that is not the others'"
                );
                let path = self.settings.data_dir.clone();
                let damaged = DataError::Damaged { path, offset: None, problem };
                return self.end(Err(NodeError::Data(damaged)));
            }
            // The others have yet to say, or are gone; or there are two, and either may be right.
            None if self.agreement.said < at => error!(
                %at,
                ?states,
                "members have computed different states; no quorum of them agrees yet, so none is set aside"
            ),
            None => {}
        }
        self.agreement.said = self.agreement.said.max(at);
    }
}
