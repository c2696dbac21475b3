//! Damaged entries: fetched from others before this node takes part, and handed to others that need them.
//!
//! The exchange knows no leader: what is asked for is named by index, term and digest, and whoever has an entry with
//! that digest has this one. So members with different damage repair each other although none of them could be
//! elected. Until nothing is missing there is no protocol instance: no vote, no acknowledgement, no campaign.

use std::collections::BTreeMap;
use std::time::Duration;

use raft_core::{
    Digest, EntryId, Membership, NodeId, SendSnapshot, SnapshotMeta, StateMachine, Term, Time,
};
use tracing::{debug, error, info, warn};

use super::{Deferred, Driver, SnapshotJob, send_formation};
use crate::error::{DataError, NodeError};
use crate::io::Network;
use crate::log::{DamagedState, DataState, LogRequest, Missing, Supply};
use crate::node::formation_message::{FormationMessage, Founding, Lack, is_gone};
use crate::node::status::Phase;
use crate::node::{Settings, rebuild};

/// How often the others are asked again.
const ASK_INTERVAL: Duration = Duration::from_millis(100);
/// Entries asked for at once.
pub(super) const WANTS_MAX: usize = 64;
/// After this time without any progress, while the others have a leader, nobody is expected to have what is missing.
const GIVE_UP_AFTER: Duration = Duration::from_secs(3);
/// A snapshot that did not help is followed by another one after this time at the earliest.
const USELESS_SNAPSHOT_PAUSE: Duration = Duration::from_secs(10);
/// How often it is said what is waited for.
const TELL_INTERVAL: Duration = Duration::from_secs(10);

/// What a member with damaged entries waits for.
#[derive(Debug)]
pub(super) struct Repair {
    members: Membership,
    /// What the state machine was restored from.
    restored: SnapshotMeta,
    missing: Vec<Missing>,
    /// Entries handed to the log whose fate is not known yet.
    filling: usize,
    next_ask: Time,
    /// When something was last repaired.
    progress_at: Time,
    told_at: Option<Time>,
    /// What the others said of the first missing entry, and whether they have a leader.
    lacks: BTreeMap<NodeId, (Lack, bool)>,
    /// The last snapshot did not help: none is asked for before.
    snapshot_after: Option<Time>,
}

impl Repair {
    pub(super) const fn deadline(&self) -> Time {
        self.next_ask
    }
}

/// Counts what is not missing any more.
pub(super) fn note_repaired(settings: &Settings, before: &[Missing], now: &[Missing]) {
    for gone in before.iter().filter(|missing| !now.contains(missing)) {
        settings.meters.damage.repaired(&gone.path, gone.offset);
    }
}

impl<S: StateMachine> Driver<S> {
    pub(super) fn begin_repair(&mut self, founding: Founding, damaged: DamagedState, now: Time) {
        let DamagedState { memberships, snapshot, missing, .. } = damaged;
        let committed = memberships.first().cloned().unwrap_or_default();
        let members = memberships.last().cloned().unwrap_or_default();
        for Missing { id, path, offset, .. } in &missing {
            warn!(entry = %id, path = %path.display(), offset, "an entry of the log is damaged");
            self.settings.meters.damage.found(path, *offset, &format!("entry {id}"));
        }
        self.applied = snapshot.last_included.index;
        self.out.formed = Some(founding.cluster);
        self.founding = Some(founding);
        self.show_members(&members, &committed);
        self.repair = Some(Repair {
            members,
            restored: snapshot,
            missing,
            filling: 0,
            next_ask: now,
            progress_at: now,
            told_at: None,
            lacks: BTreeMap::new(),
            snapshot_after: None,
        });
        self.show_repair();
    }

    fn show_repair(&mut self) {
        let Some(Repair { missing, lacks, .. }) = &self.repair else { return };
        let Some(Missing { id, path, offset, .. }) = missing.first() else { return };
        if matches!(self.phase, Phase::Stopping) {
            return;
        }
        let mut text = format!(
            "entry {id} in {} is damaged at byte {offset}, {} in all; the others are asked for it",
            path.display(),
            missing.len()
        );
        for (node, (lack, _)) in lacks {
            text += &format!("; {node}: {lack}");
        }
        self.phase = Phase::Repairing(text);
    }

    /// Asks for what is missing; gives up when the others go on without it and none of them has it.
    pub(super) fn progress_repair(&mut self, now: Time, network: &mut impl Network) {
        let Some(repair) = &mut self.repair else { return };
        let Some(first) = repair.missing.first() else { return };
        if now < repair.next_ask || repair.filling > 0 {
            return;
        }
        repair.next_ask = now.after(ASK_INTERVAL);
        // Also those of whom the own log does not know: they may have come since.
        let helpers: Vec<NodeId> = self.connected.keys().copied().collect();
        let stuck = now.since(repair.progress_at) >= GIVE_UP_AFTER;
        let all = helpers
            .iter()
            .filter(|node| repair.members.contains(**node))
            .all(|node| repair.lacks.contains_key(node));
        let is_led = |node: &NodeId| repair.lacks.get(node).is_some_and(|(_, led)| *led);
        let led = helpers.iter().any(is_led);
        if stuck && all && led && rebuild::may_rebuild(&self.settings) {
            let (path, offset) = (first.path.clone(), Some(first.offset));
            let problem = format!("entry {} is damaged, and no other member has it now", first.id);
            let error = DataError::Damaged { path, offset, problem };
            return self.end(Err(NodeError::Data(error)));
        }
        let ask = FormationMessage::RepairAsk {
            wants: repair.missing.iter().take(WANTS_MAX).map(|it| (it.id, it.digest)).collect(),
            snapshot: repair.snapshot_after.is_none_or(|after| now >= after),
        };
        let tell = stuck && repair.told_at.is_none_or(|told| now.since(told) >= TELL_INTERVAL);
        if tell {
            repair.told_at = Some(now);
        }
        for node in helpers {
            send_formation(network, node, &ask);
        }
        self.show_repair();
        if tell && let Phase::Repairing(text) = &self.phase {
            error!("this member waits: {text}");
        }
    }

    /// A peer has damaged entries.
    pub(super) fn on_repair_ask(
        &mut self,
        now: Time,
        from: NodeId,
        (wants, snapshot): (Vec<(EntryId, Digest)>, bool),
        network: &mut impl Network,
    ) {
        if self.raft.as_ref().is_some_and(|raft| is_gone(raft.committed_membership(), from)) {
            return self.tell_removed(now, from, network);
        }
        let known = match (&self.raft, &self.repair) {
            (Some(raft), _) => {
                raft.membership().contains(from) || raft.committed_membership().contains(from)
            }
            (None, Some(repair)) => repair.members.contains(from),
            (None, None) => false,
        };
        if !known || wants.len() > WANTS_MAX {
            return debug!(peer = %from, "asks for entries and is no member");
        }
        self.out.log.push(LogRequest::Supply(from, wants, snapshot));
    }

    /// What the own log has of what a peer asked for.
    pub(super) fn on_supplied(
        &mut self,
        now: Time,
        to: NodeId,
        supplies: Vec<(EntryId, Digest, Supply)>,
        snapshot: bool,
        network: &mut impl Network,
    ) {
        let led = self.raft.as_ref().is_some_and(|raft| raft.leader().is_some());
        for (id, digest, supply) in supplies {
            let lack = match supply {
                Supply::Have(entry) => {
                    send_formation(network, to, &FormationMessage::RepairHave(entry));
                    continue;
                }
                // On its way to the disk: that is not "never".
                Supply::NeverHad
                    if self
                        .raft
                        .as_ref()
                        .is_some_and(|raft| raft.digest_at(id.index) == Some(digest)) =>
                {
                    continue;
                }
                Supply::Compacted if snapshot => {
                    if !self.sending.contains_key(&to) {
                        // Of no term: nobody may take the sender for a leader by it.
                        let term = Term(0);
                        self.send_snapshot(now, SendSnapshot { to, term, index_min: id.index });
                    }
                    return;
                }
                Supply::Compacted => Lack::Compacted,
                Supply::NeverHad => Lack::NeverHad,
                Supply::Damaged => Lack::Damaged,
            };
            let message = FormationMessage::RepairLack { id, digest, lack, led };
            send_formation(network, to, &message);
        }
    }

    /// What a peer says while something is missing here.
    pub(super) fn on_repair_answer(&mut self, from: NodeId, message: FormationMessage) {
        let Some(repair) = &mut self.repair else {
            return self.on_mending_answer(message);
        };
        match message {
            FormationMessage::Formed { founding: theirs, committed } => {
                let own = self.founding.as_ref().map(|own| own.cluster);
                if own == Some(theirs.cluster) && is_gone(&committed, self.node) {
                    self.end(Err(NodeError::Removed));
                }
            }
            FormationMessage::RepairHave(entry) => {
                let wanted = |it: &&Missing| it.id == entry.id && it.digest == entry.digest;
                if repair.missing.iter().any(|it| wanted(&it)) {
                    repair.filling += 1;
                    self.out.log.push(LogRequest::Fill(entry));
                }
            }
            FormationMessage::RepairLack { id, digest, lack, led } => {
                let first = repair.missing.first();
                if first.is_some_and(|first| first.id == id && first.digest == digest) {
                    repair.lacks.insert(from, (lack, led));
                }
            }
            FormationMessage::Empty { .. }
            | FormationMessage::Prepare(_)
            | FormationMessage::Promise { .. }
            | FormationMessage::Accept(..)
            | FormationMessage::Accepted(_)
            | FormationMessage::Refused { .. }
            | FormationMessage::StandingAsk { .. }
            | FormationMessage::StandingReply { .. }
            | FormationMessage::RepairAsk { .. }
            | FormationMessage::Full(_)
            | FormationMessage::State { .. } => {}
        }
    }

    /// The log has looked at an entry, or at itself once more.
    pub(super) fn on_filled(&mut self, now: Time, missing: Vec<Missing>) {
        let Some(repair) = &mut self.repair else { return self.on_mending_filled(missing) };
        repair.filling = repair.filling.saturating_sub(1);
        if missing.first() != repair.missing.first() {
            repair.lacks.clear();
        }
        if missing.len() != repair.missing.len() {
            repair.progress_at = now;
        }
        note_repaired(&self.settings, &repair.missing, &missing);
        repair.missing = missing;
        if repair.filling == 0 {
            repair.next_ask = now;
        }
    }

    /// A snapshot has arrived: what it includes the log does not need, or, when the log ends before, nothing of the log.
    pub(super) fn on_repair_snapshot(&mut self, snapshot: &SnapshotMeta) {
        let Some(repair) = &mut self.repair else { return };
        info!(at = %snapshot.last_included, "a snapshot has arrived; the log is looked at again");
        repair.filling += 1;
        self.out.log.push(LogRequest::Reopen);
    }

    /// Recovery has looked at the log again.
    pub(super) fn on_reopened(&mut self, now: Time, state: DataState) {
        match state {
            DataState::Damaged(damaged) => {
                if let Some(repair) = &mut self.repair
                    && repair.missing == damaged.missing
                {
                    repair.snapshot_after = Some(now.after(USELESS_SNAPSHOT_PAUSE));
                }
                self.on_filled(now, damaged.missing);
            }
            DataState::Formed(formed) => {
                let (Some(repair), Some(founding)) = (self.repair.take(), self.founding.take())
                else {
                    return;
                };
                info!("nothing of the log is missing any more");
                note_repaired(&self.settings, &repair.missing, &[]);
                let snapshot = formed.recovered.snapshot.clone();
                let outcome = self.begin_recovered(founding, &formed.formed, formed.recovered, now);
                if let Err(error) = outcome {
                    return self.end(Err(error));
                }
                if snapshot.last_included != repair.restored.last_included {
                    // Not before the state machine has it.
                    self.applied = repair.restored.last_included.index;
                    self.out.snapshot.push(SnapshotJob::Open(snapshot.clone()));
                    self.deferred.push_back(Deferred::Restore(snapshot));
                }
                if let Some(raft) = &mut self.raft {
                    for node in self.connected.keys() {
                        raft.peer_connected(now, *node);
                    }
                }
            }
            DataState::Empty { .. } => error!("a member's folder is empty all of a sudden"),
        }
    }

    /// The damage is beyond what others can repair.
    pub(super) fn on_unrepairable(&mut self, error: DataError) {
        self.end(Err(NodeError::Data(error)));
    }
}
