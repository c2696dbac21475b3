//! How a cluster forms, once, and how an empty node finds its place in one that has (decision 2). Sans-IO.
//!
//! An empty member first asks everyone it was configured with. Is none of them part of a cluster, then the members
//! choose *one* [`Founding`] by single-decree Paxos among the configured addresses: promises and acceptances are
//! durable before they are answered, so whatever crashes and however messages interleave, two different foundings
//! are never both chosen. The founding's voters are the members that had reported empty; each forms its log by it
//! before it takes part in anything. A configured address that did not take part is vacant, and its member is
//! admitted by the leader when it appears.
//!
//! An empty member that learns of an existing cluster takes no part in forming another. Named by the cluster's
//! configuration it adopts the founding; standing there under another incarnation it was wiped, and is *amnesic*:
//! idle until re-admitted (decision 3); otherwise it waits to be admitted.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use bytes::Bytes;
use raft_core::{ClusterId, Membership, NodeId, Rng, Time};
use tracing::{debug, info, trace, warn};

use crate::node::formation_message::{
    Ballot, FormationMessage, FormationState, Founding, info_bytes_max, is_gone,
};
use crate::node::member_info::{MemberInfo, is_awaited};
use crate::node::status::Phase;

/// How often an empty member repeats what it has to say.
const ASK_INTERVAL: Duration = Duration::from_millis(200);
/// An attempt that is not decided after this long is followed by another one.
const ATTEMPT_TIMEOUT: Duration = Duration::from_millis(500);

/// What formation wants done.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum FormationEffect {
    /// Send this.
    Send(NodeId, FormationMessage),
    /// Make this durable, then call [`Formation::stored`].
    Persist(Bytes),
    /// Form the log by this founding. Nothing more comes from here.
    Form(Founding),
    /// The cluster has removed this node.
    Removed,
}

/// What a forming member was told.
#[derive(Clone, Debug)]
pub struct FormationSettings {
    /// This node.
    pub node: NodeId,
    /// Its attributes.
    pub info: MemberInfo,
    /// The configured addresses, or those of a running cluster when `joining`.
    pub addresses: Vec<String>,
    /// Never form a cluster, wait to be added to one.
    pub joining: bool,
    /// Form only with everyone.
    pub requires_all: bool,
    /// How long unreachable members are waited for.
    pub grace: Duration,
    /// Members with another one form no cluster with this one; may be empty.
    pub token: String,
}

/// One attempt of this member to get a founding chosen.
#[derive(Debug)]
struct Attempt {
    ballot: Ballot,
    /// Addresses that promised, each once.
    promised: BTreeSet<String>,
    /// The founding accepted under the highest ballot among the promises.
    accepted: Option<(Ballot, Founding)>,
    /// Set in phase 2.
    proposed: Option<Founding>,
    /// Addresses that accepted.
    accepted_by: BTreeSet<String>,
}

/// The state of an empty member.
#[derive(Debug)]
pub struct Formation {
    settings: FormationSettings,
    /// `settings.addresses` sorted; empty when joining.
    configured: Vec<String>,
    /// What others must be configured with, too: the same addresses and, behind them, the same token if there is one.
    declared: Vec<String>,
    rng: Rng,
    /// As it will be on disk once everything handed out is.
    state: FormationState,
    /// Connected peers and their addresses.
    connected: BTreeMap<NodeId, String>,
    /// Configured addresses whose member has reported empty with the same list, this one among them.
    reported: BTreeMap<String, (NodeId, Bytes)>,
    /// Since when a configured address has not been reachable.
    absent_since: BTreeMap<String, Time>,
    attempt: Option<Attempt>,
    next_attempt: Option<Time>,
    next_ask: Time,
    /// What waits for each write, in order.
    unsynced: VecDeque<Vec<FormationEffect>>,
    effects: Vec<FormationEffect>,
    phase: Phase,
    /// A founding without this member, of which its founders may not have heard yet.
    elsewhere: Option<Founding>,
    /// A founding was handed out; everything is over.
    finished: bool,
}

impl Formation {
    /// An empty member. `state` is what was durable when it started.
    #[must_use]
    pub fn new(settings: FormationSettings, state: FormationState, rng: Rng, now: Time) -> Self {
        let mut configured = if settings.joining { Vec::new() } else { settings.addresses.clone() };
        configured.sort();
        configured.dedup();
        let mut declared = configured.clone();
        if !settings.token.is_empty() {
            declared.push(format!("token {}", settings.token));
        }
        let phase = if settings.joining {
            Phase::Waiting(format!(
                "empty; waits to be added to the cluster at {}",
                settings.addresses.join(", ")
            ))
        } else {
            Phase::Forming
        };
        let own = settings.info.peer_address.clone();
        let absent_since =
            configured.iter().filter(|a| **a != own).map(|a| (a.clone(), now)).collect();
        let reported = BTreeMap::from([(own, (settings.node, settings.info.encode()))]);
        let mut formation = Self {
            settings,
            configured,
            declared,
            rng,
            state,
            connected: BTreeMap::new(),
            reported,
            absent_since,
            attempt: None,
            next_attempt: None,
            next_ask: now,
            unsynced: VecDeque::new(),
            effects: Vec::new(),
            phase,
            elsewhere: None,
            finished: false,
        };
        if let Some(founding) = formation.state.chosen.clone() {
            // Chosen, but the crash came before the log was formed by it.
            formation.finished = true;
            formation.effects.push(FormationEffect::Form(founding));
        }
        formation
    }

    /// How far it is.
    #[must_use]
    pub const fn phase(&self) -> &Phase {
        &self.phase
    }

    /// What is to be done since the last call.
    pub fn take_effects(&mut self) -> Vec<FormationEffect> {
        std::mem::take(&mut self.effects)
    }

    /// When [`tick`](Self::tick) wants to be called.
    #[must_use]
    pub fn deadline(&self) -> Option<Time> {
        if self.finished {
            return None;
        }
        let mut deadline = self.next_ask;
        if let Some(attempt) = self.next_attempt {
            deadline = deadline.min(attempt);
        }
        Some(deadline)
    }

    /// A peer is connected.
    pub fn connected(&mut self, now: Time, node: NodeId, address: &str) {
        self.absent_since.remove(address);
        if self.reported.get(address).is_some_and(|(known, _)| *known != node) {
            // Another process, another directory: what its predecessor said counts no more.
            self.reported.remove(address);
        }
        self.connected.insert(node, address.to_owned());
        self.say_empty(node, true);
        self.consider(now);
    }

    /// A peer's connection ended.
    pub fn disconnected(&mut self, now: Time, node: NodeId) {
        if let Some(address) = self.connected.remove(&node)
            && self.configured.contains(&address)
            && !self.connected.values().any(|other| *other == address)
        {
            self.absent_since.insert(address.clone(), now);
            if address != self.settings.info.peer_address {
                // It must report again: its disk may be another one when it is back.
                self.reported.remove(&address);
            }
        }
    }

    /// The oldest write that is not durable yet has become so: what waited for it may go on.
    pub fn stored(&mut self, now: Time) {
        for effect in self.unsynced.pop_front().unwrap_or_default() {
            match effect {
                FormationEffect::Send(to, message) if to == self.settings.node => {
                    self.step(now, to, message);
                }
                FormationEffect::Send(..)
                | FormationEffect::Persist(_)
                | FormationEffect::Form(_)
                | FormationEffect::Removed => self.effects.push(effect),
            }
        }
    }

    /// Time has passed.
    pub fn tick(&mut self, now: Time) {
        if self.finished {
            return;
        }
        if now >= self.next_ask {
            self.next_ask = now.after(ASK_INTERVAL);
            let peers: Vec<_> = self.connected.keys().copied().collect();
            for node in peers {
                self.say_empty(node, true);
            }
        }
        self.consider(now);
        if self.next_attempt.is_some_and(|at| now >= at) {
            self.begin_attempt(now);
        }
    }

    /// A peer said something. Total: any message, any time.
    pub fn step(&mut self, now: Time, from: NodeId, message: FormationMessage) {
        if self.finished {
            return;
        }
        trace!(%from, ?message, "formation");
        if !matches!(message, FormationMessage::Formed { .. }) {
            self.tell_elsewhere(from);
        }
        match message {
            FormationMessage::Empty { info, configured, answer } => {
                self.on_empty(from, info, &configured, answer);
                self.consider(now);
            }
            FormationMessage::Formed { founding, committed } => {
                self.on_formed(from, founding, &committed)
            }
            FormationMessage::Prepare(ballot) => self.on_prepare(from, ballot),
            FormationMessage::Promise { ballot, accepted } => {
                self.on_promise(now, from, ballot, accepted)
            }
            FormationMessage::Accept(ballot, founding) => self.on_accept(from, ballot, founding),
            FormationMessage::Accepted(ballot) => self.on_accepted(from, ballot),
            FormationMessage::Refused { ballot, promised } => {
                self.on_refused(now, ballot, promised)
            }
            // An empty member knows nobody's epochs, and has none to ask about.
            FormationMessage::StandingAsk { .. } | FormationMessage::StandingReply { .. } => {}
            // Nor does it have any entries.
            FormationMessage::RepairAsk { .. }
            | FormationMessage::RepairHave(_)
            | FormationMessage::RepairLack { .. } => {}
            // It leads nobody, and has no state.
            FormationMessage::Full(_) | FormationMessage::State { .. } => {}
        }
    }

    /// A founder that has not heard of it must: this member's answer may have completed the choice.
    fn tell_elsewhere(&mut self, to: NodeId) {
        if let Some(founding) = self.elsewhere.clone()
            && founding.members.contains(to)
        {
            let committed = founding.members.clone();
            let told = FormationMessage::Formed { founding, committed };
            self.effects.push(FormationEffect::Send(to, told));
        }
    }

    fn say_empty(&mut self, to: NodeId, answer: bool) {
        if self.finished {
            return;
        }
        let info = self.settings.info.encode();
        // One that has found a cluster takes no part in forming another: it asks with no list.
        let configured =
            if matches!(self.phase, Phase::Forming) { self.declared.clone() } else { Vec::new() };
        self.effects
            .push(FormationEffect::Send(to, FormationMessage::Empty { info, configured, answer }));
    }

    fn on_empty(&mut self, from: NodeId, info: Bytes, configured: &[String], answer: bool) {
        if answer {
            self.say_empty(from, false);
        }
        let Some(address) = self.connected.get(&from).cloned() else { return };
        if !self.configured.contains(&address) {
            return;
        }
        if configured == self.declared && info.len() > info_bytes_max(&self.configured) {
            warn!(
                address,
                bytes = info.len(),
                "a configured member has too many attributes; it is ignored"
            );
        } else if configured == self.declared {
            let known = self.reported.insert(address.clone(), (from, info));
            if known.is_none() {
                debug!(%from, address, "a configured member has reported empty");
            }
        } else {
            self.reported.remove(&address);
            if !configured.is_empty() {
                warn!(
                    "{address} is configured with other members ({}) than this one ({}); no cluster forms with it",
                    configured.join(", "),
                    self.declared.join(", ")
                );
            }
        }
    }

    /// What an existing cluster's answer means for this empty member.
    fn on_formed(&mut self, from: NodeId, founding: Founding, committed: &Membership) {
        let node = self.settings.node;
        if !founding.fits() {
            warn!(%from, "a founding that no cluster can have; it is ignored");
            return;
        }
        if is_gone(committed, node) {
            self.finished = true;
            self.effects.push(FormationEffect::Removed);
        } else if committed.contains(node) || founding.members.contains(node) {
            self.choose(founding);
        } else {
            self.attempt = None;
            self.next_attempt = None;
            let phase = self.place_in(&founding, committed);
            if phase != self.phase {
                match &phase {
                    Phase::Amnesic(why) | Phase::Waiting(why) => warn!(%from, "{why}"),
                    Phase::Forming
                    | Phase::Confirming
                    | Phase::Repairing(_)
                    | Phase::Active
                    | Phase::Stopping => {}
                }
                self.phase = phase;
            }
        }
    }

    fn place_in(&self, founding: &Founding, committed: &Membership) -> Phase {
        let node = self.settings.node;
        let address = &self.settings.info.peer_address;
        let cluster = founding.cluster;
        let namesake = committed.members().find(|(known, member)| {
            known.member == node.member
                || MemberInfo::decode(&member.info)
                    .is_some_and(|info| info.peer_address == *address)
        });
        if let Some((known, _)) = namesake.filter(|(known, _)| is_awaited(*known)) {
            Phase::Waiting(format!(
                "empty; cluster {cluster} awaits {address} as member {}: waits until its leader takes it in",
                known.member
            ))
        } else if let Some((known, _)) = namesake {
            Phase::Amnesic(format!(
                "the data folder of {address} is empty, but cluster {cluster} knows this member with data \
                 ({known}): it was wiped, or another folder was mounted. It neither votes nor acknowledges, so \
                 that nothing it once promised is broken. Restore the folder, or leave it: when the others are a \
                 quorum, they remove member {} after a few seconds and take this one in as a new member",
                known.member
            ))
        } else if founding.configured.contains(address) {
            Phase::Waiting(format!(
                "empty; waits until the leader of cluster {cluster} admits {address}"
            ))
        } else {
            Phase::Waiting(format!(
                "empty; cluster {cluster} does not know {address} yet: add it there as a member"
            ))
        }
    }

    /// Whether a new founding may be proposed now; schedules the first attempt.
    fn consider(&mut self, now: Time) {
        if self.finished || !matches!(self.phase, Phase::Forming) || !self.may_form(now) {
            return;
        }
        if self.attempt.is_none() && self.next_attempt.is_none() {
            // The first by address begins at once; the others wait for it before they try themselves.
            let rank = self.reported.keys().position(|a| *a == self.settings.info.peer_address);
            let rank = u32::try_from(rank.unwrap_or(0)).unwrap_or(0);
            self.next_attempt = Some(now.after(Duration::from_millis(100) * rank));
        }
        if self.next_attempt.is_some_and(|at| now >= at) {
            self.begin_attempt(now);
        }
    }

    fn may_form(&self, now: Time) -> bool {
        if self.reported.len() < self.quorum() {
            return false;
        }
        self.configured.iter().all(|address| {
            self.reported.contains_key(address)
                || (!self.settings.requires_all
                    && self
                        .absent_since
                        .get(address)
                        .is_some_and(|since| now.since(*since) >= self.settings.grace))
        })
    }

    fn quorum(&self) -> usize {
        self.configured.len() / 2 + 1
    }

    fn begin_attempt(&mut self, now: Time) {
        let jitter = self.rng.below(400);
        self.next_attempt = Some(now.after(ATTEMPT_TIMEOUT + Duration::from_millis(jitter)));
        if !matches!(self.phase, Phase::Forming) || !self.may_form(now) {
            self.next_attempt = None;
            self.attempt = None;
            return;
        }
        let round = self.attempt.as_ref().map_or(0, |attempt| attempt.ballot.round);
        let round = round.max(self.state.promised.round) + 1;
        let ballot = Ballot { round, node: self.settings.node };
        debug!(round, "tries to form the cluster");
        self.attempt = Some(Attempt {
            ballot,
            promised: BTreeSet::new(),
            accepted: None,
            proposed: None,
            accepted_by: BTreeSet::new(),
        });
        // The own promise is durable before anyone hears of the ballot: a crash must not let it be used twice.
        self.state.promised = ballot;
        let accepted = self.state.accepted.clone();
        let mut effects = self.to_configured(&FormationMessage::Prepare(ballot));
        let promise = FormationMessage::Promise { ballot, accepted };
        effects.push(FormationEffect::Send(self.settings.node, promise));
        self.persist_then(effects);
    }

    fn to_configured(&self, message: &FormationMessage) -> Vec<FormationEffect> {
        let peers = self.connected.iter().filter(|(_, address)| self.configured.contains(address));
        peers.map(|(node, _)| FormationEffect::Send(*node, message.clone())).collect()
    }

    /// The configured address that `node`'s answers count for.
    fn slot(&self, node: NodeId) -> Option<String> {
        let address = if node == self.settings.node {
            Some(&self.settings.info.peer_address)
        } else {
            self.connected.get(&node)
        };
        address.filter(|address| self.configured.contains(address)).cloned()
    }

    /// Whether this member still takes part in forming, together with `from`.
    fn forms_with(&self, from: NodeId) -> bool {
        matches!(self.phase, Phase::Forming)
            && self.slot(from).is_some_and(|slot| {
                self.reported.get(&slot).is_some_and(|(reported, _)| *reported == from)
            })
    }

    fn on_prepare(&mut self, from: NodeId, ballot: Ballot) {
        if !self.forms_with(from) || ballot.node != from {
            return;
        }
        if ballot < self.state.promised {
            return self.refuse(from, ballot);
        }
        self.state.promised = ballot;
        let accepted = self.state.accepted.clone();
        self.persist_then(vec![FormationEffect::Send(
            from,
            FormationMessage::Promise { ballot, accepted },
        )]);
    }

    fn refuse(&mut self, from: NodeId, ballot: Ballot) {
        let promised = self.state.promised;
        // To itself there is nothing to say: the attempt times out and the next one is higher.
        if from != self.settings.node {
            self.effects
                .push(FormationEffect::Send(from, FormationMessage::Refused { ballot, promised }));
        }
    }

    fn persist_then(&mut self, effects: Vec<FormationEffect>) {
        self.unsynced.push_back(effects);
        self.effects.push(FormationEffect::Persist(self.state.encode()));
    }

    fn on_promise(
        &mut self,
        now: Time,
        from: NodeId,
        ballot: Ballot,
        accepted: Option<(Ballot, Founding)>,
    ) {
        let (Some(slot), quorum) = (self.slot(from), self.quorum()) else { return };
        let Some(attempt) = &mut self.attempt else { return };
        if attempt.ballot != ballot || attempt.proposed.is_some() {
            return;
        }
        attempt.promised.insert(slot);
        if accepted.as_ref().map(|(b, _)| *b) > attempt.accepted.as_ref().map(|(b, _)| *b) {
            attempt.accepted = accepted;
        }
        if attempt.promised.len() < quorum {
            return;
        }
        // What may have been chosen already must be proposed again; only otherwise is there a free choice.
        let founding = match attempt.accepted.clone() {
            Some((_, founding)) => founding,
            None if self.may_form(now) => self.found(),
            None => return,
        };
        if let Some(attempt) = &mut self.attempt {
            attempt.proposed = Some(founding.clone());
        }
        let accepts = self.to_configured(&FormationMessage::Accept(ballot, founding.clone()));
        self.effects.extend(accepts);
        self.on_accept(self.settings.node, ballot, founding);
    }

    fn found(&mut self) -> Founding {
        let missing: Vec<_> =
            self.configured.iter().filter(|a| !self.reported.contains_key(*a)).cloned().collect();
        if !missing.is_empty() {
            warn!(
                "the cluster forms without {}: unreachable for {:?}; they are admitted when they appear",
                missing.join(", "),
                self.settings.grace
            );
        }
        let cluster = ClusterId::drawn(self.rng.next_u64());
        let members = Membership::from_voters(self.reported.values().cloned());
        Founding { cluster, configured: self.configured.clone(), members }
    }

    fn on_accept(&mut self, from: NodeId, ballot: Ballot, founding: Founding) {
        if !self.forms_with(from)
            || ballot.node != from
            || founding.configured != self.configured
            || !founding.fits()
        {
            return;
        }
        if ballot < self.state.promised {
            return self.refuse(from, ballot);
        }
        self.state.promised = ballot;
        self.state.accepted = Some((ballot, founding));
        self.persist_then(vec![FormationEffect::Send(from, FormationMessage::Accepted(ballot))]);
    }

    fn on_accepted(&mut self, from: NodeId, ballot: Ballot) {
        let (Some(slot), quorum) = (self.slot(from), self.quorum()) else { return };
        let Some(attempt) = &mut self.attempt else { return };
        if attempt.ballot != ballot {
            return;
        }
        let Some(founding) = attempt.proposed.clone() else { return };
        attempt.accepted_by.insert(slot);
        if attempt.accepted_by.len() < quorum {
            return;
        }
        if founding.members.contains(self.settings.node) {
            self.choose(founding);
        } else {
            // An earlier attempt was completed in which this member did not take part: it is admitted later.
            let committed = founding.members.clone();
            self.on_formed(self.settings.node, founding.clone(), &committed);
            self.elsewhere = Some(founding);
            let peers: Vec<_> = self.connected.keys().copied().collect();
            for node in peers {
                self.tell_elsewhere(node);
            }
        }
    }

    fn on_refused(&mut self, now: Time, ballot: Ballot, promised: Ballot) {
        let Some(attempt) = &mut self.attempt else { return };
        if attempt.ballot == ballot && promised > ballot {
            // The next attempt starts above what stood in the way.
            attempt.ballot.round = promised.round;
            attempt.proposed = None;
            attempt.promised.clear();
            attempt.accepted = None;
            let delay = 50 + self.rng.below(300);
            self.next_attempt = Some(now.after(Duration::from_millis(delay)));
        }
    }

    /// The founding is chosen: make that durable, tell everyone, form the log by it.
    fn choose(&mut self, founding: Founding) {
        info!(
            cluster = %founding.cluster,
            voters = founding.members.voters().len(),
            "the cluster is formed"
        );
        self.finished = true;
        self.state.chosen = Some(founding.clone());
        let told = FormationMessage::Formed {
            founding: founding.clone(),
            committed: founding.members.clone(),
        };
        let mut effects: Vec<_> =
            self.connected.keys().map(|node| FormationEffect::Send(*node, told.clone())).collect();
        effects.push(FormationEffect::Form(founding));
        self.persist_then(effects);
    }
}

#[cfg(test)]
mod tests;
