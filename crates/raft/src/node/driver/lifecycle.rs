//! The life of a node: it forms or recovers, proves its standing, takes part, stops.

use std::time::Duration;

use raft_core::{EntryId, Membership, Raft, SnapshotMeta, Standing, StateMachine, Time};
use tracing::{debug, error, info};

use super::{Driver, Stopping, send_formation};
use crate::error::{DataError, NodeError};
use crate::io::{Network, Stream};
use crate::log::{Formed, LogRequest};
use crate::message::PeerMessage;
use crate::node::formation::{Formation, FormationEffect, FormationSettings};
use crate::node::formation_message::{FormationMessage, FormationState, Founding};
use crate::node::rebuild;
use crate::node::standing::{Gate, Verdict};
use crate::node::status::Phase;

impl<S: StateMachine> Driver<S> {
    pub(super) fn begin_formation(&mut self, state: FormationState, now: Time) {
        let joining = !self.settings.join.is_empty();
        let addresses =
            if joining { self.settings.join.clone() } else { self.settings.peers.clone() };
        let settings = FormationSettings {
            node: self.node,
            info: self.info.clone(),
            addresses,
            joining,
            requires_all: self.settings.form_requires_all,
            grace: self.settings.formation_grace,
            token: self.settings.formation_token.clone(),
        };
        let rng = self.rng.split(2);
        self.formation = Some(Formation::new(settings, state, rng, now));
    }

    pub(super) fn begin_recovered(
        &mut self,
        founding: Founding,
        formed: &Formed,
        recovered: raft_core::Recovered,
        now: Time,
    ) -> Result<(), NodeError> {
        let applied = recovered.snapshot.last_included;
        let config = self.settings.core_config(self.node);
        let rng = self.rng.split(3);
        let raft = Raft::new(config, formed.log_identity(), recovered, rng, now)
            .map_err(NodeError::Config)?;
        self.check_configured(&founding, raft.membership(), now)?;
        self.recovered_to = raft.last_log().index;
        let membership = Membership::clone(raft.membership());
        let gate = Gate::new(self.node, self.epoch, raft.last_log().index, membership, now);
        self.begin_running(raft, founding, applied);
        self.gate = Some(gate);
        self.phase = Phase::Confirming;
        Ok(())
    }

    pub(super) fn begin_running(&mut self, raft: Raft, founding: Founding, applied: EntryId) {
        self.applied = applied.index;
        self.handed = applied.index;
        self.handed_term = applied.term;
        self.out.formed = Some(founding.cluster);
        self.founding = Some(founding);
        self.raft = Some(raft);
        self.formation = None;
    }

    pub(super) fn become_amnesic(&mut self, reason: String) {
        if matches!(self.phase, Phase::Amnesic(_)) {
            return;
        }
        error!("this node stays idle: {reason}");
        self.phase = Phase::Amnesic(reason);
        self.gate = None;
        if let Some(raft) = &mut self.raft {
            let now = raft.now();
            raft.set_standing(now, Standing::Silent);
        }
    }

    /// The log is formed: nothing was ever promised from this directory, so it may take part at once.
    pub(super) fn on_formed_stored(&mut self, now: Time) {
        let Some(founding) = self.founding.take() else { return };
        let formed = formed_by(&founding);
        let identity = formed.log_identity();
        let digest = identity.origin(&formed.members.encode(&[]));
        let snapshot =
            SnapshotMeta { last_included: EntryId::ZERO, digest, membership: formed.members };
        let recovered = raft_core::Recovered {
            hard_state: raft_core::HardState::default(),
            snapshot,
            log_start: EntryId::ZERO,
            log_start_digest: digest,
            entries: Vec::new(),
        };
        let rng = self.rng.split(3);
        match Raft::new(self.settings.core_config(self.node), identity, recovered, rng, now) {
            Ok(mut raft) => {
                raft.set_standing(now, Standing::Full);
                for node in self.connected.keys() {
                    raft.peer_connected(now, *node);
                }
                raft.seek_leader(now);
                self.begin_running(raft, founding, EntryId::ZERO);
                self.phase = Phase::Active;
            }
            Err(error) => self.end(Err(NodeError::Config(error))),
        }
    }

    pub(super) fn work_off_formation(&mut self, network: &mut impl Network) {
        let Some(formation) = &mut self.formation else { return };
        for effect in formation.take_effects() {
            match effect {
                FormationEffect::Send(to, message) => send_formation(network, to, &message),
                FormationEffect::Persist(bytes) => {
                    self.out.log.push(LogRequest::FormationState(bytes))
                }
                FormationEffect::Form(founding) => {
                    if self.founding.is_none() {
                        self.out.log.push(LogRequest::Form(Box::new(formed_by(&founding))));
                        self.founding = Some(founding);
                    }
                }
                FormationEffect::Removed => return self.end(Err(NodeError::Removed)),
            }
        }
        if !matches!(self.phase, Phase::Amnesic(_) | Phase::Stopping)
            && let Some(formation) = &self.formation
        {
            self.phase = formation.phase().clone();
        }
    }

    /// Asks a quorum about the own standing, and takes part once it is clear.
    pub(super) fn confirm_standing(&mut self, now: Time, network: &mut impl Network) {
        let Some(gate) = &mut self.gate else { return };
        gate.advance(self.epoch);
        match gate.verdict().clone() {
            Verdict::Open => {
                let epoch = gate.epoch();
                for node in gate.ask(now, self.connected.keys().copied()) {
                    send_formation(network, node, &FormationMessage::StandingAsk { epoch });
                }
            }
            Verdict::Confirmed => {
                debug!("a quorum confirms that nothing was lost");
                self.gate = None;
                self.phase = Phase::Active;
                if let Some(raft) = &mut self.raft {
                    raft.set_standing(now, Standing::Full);
                    raft.seek_leader(now);
                    if let Some(arrived) = self.arrived.take() {
                        raft.step(now, arrived);
                    }
                }
            }
            Verdict::Amnesic(reason) if rebuild::may_rebuild(&self.settings) => {
                // It begins anew: the others take it in as another node, which owes nobody a promise (decision 3).
                let error = DataError::Amnesic { node: self.node, reason };
                self.end(Err(NodeError::Data(error)));
            }
            Verdict::Amnesic(reason) => self.become_amnesic(reason),
        }
    }

    pub(super) fn begin_stopping(
        &mut self,
        now: Time,
        patience: Duration,
        outcome: Result<(), NodeError>,
    ) {
        if let Some(stopping) = &mut self.stopping {
            // The first failure is what the node ends of.
            if stopping.outcome.is_ok() {
                stopping.outcome = outcome;
            }
            return;
        }
        self.phase = Phase::Stopping;
        self.proposals.stop(true);
        self.reads.stop();
        self.admins.stop();
        if let Some(raft) = &mut self.raft
            && let Ok(target) = raft.transfer_leadership(now, None)
        {
            info!(%target, "hands leadership over before it stops");
        }
        self.stopping = Some(Stopping { until: now.after(patience), outcome });
    }

    pub(super) fn progress_shutdown(&mut self, now: Time, network: &mut impl Network) {
        let Some(stopping) = &self.stopping else { return };
        let alone =
            self.raft.as_ref().is_none_or(|raft| raft.membership().all_voters().count() < 2);
        let leads = self.raft.as_ref().is_some_and(|raft| raft.leader() == Some(self.node));
        let done = (alone || !leads) && !self.proposals.any_left();
        if !done && now < stopping.until {
            return;
        }
        let outcome = self.stopping.take().map_or(Ok(()), |stopping| stopping.outcome);
        for node in self.connected.keys() {
            network.send(*node, Stream::Control, PeerMessage::Goodbye);
        }
        self.end(outcome);
    }

    pub(super) fn end(&mut self, outcome: Result<(), NodeError>) {
        if self.ended {
            return;
        }
        match &outcome {
            Ok(()) => info!("stops"),
            Err(error) => error!("stops: {error}"),
        }
        self.ended = true;
        self.phase = Phase::Stopping;
        self.proposals.stop(false);
        self.reads.stop();
        self.admins.stop();
        self.out.end = Some(outcome);
    }
}

fn formed_by(founding: &Founding) -> Formed {
    Formed {
        cluster: founding.cluster,
        group: raft_core::GroupId::FIRST,
        members: founding.members.clone(),
    }
}
