//! What is committed is durable on a quorum (I6), and promises are kept (I8): what the members' logs say at every
//! commit, and now and then what the production recovery finds on copies of the disks as after a power loss.

use std::collections::BTreeSet;
use std::sync::Arc;

use raft::log::{DataState, Opened};
use raft_core::{Digest, Index, Membership, NodeId, Raft, RoleKind};

use crate::check::holds;
use crate::workload::Workload;
use crate::world::World;

impl<W: Workload> World<W> {
    /// I6 at a commit: every half of the leader's configuration has a quorum whose logs hold it, synced.
    pub(crate) fn check_durable(&mut self, leader: usize, before: Option<&Membership>) {
        let Some(raft) = self.raft(leader) else { return };
        let index = raft.commit_index();
        let (RoleKind::Leader, Some(digest)) = (raft.role(), raft.digest_at(index)) else { return };
        let mut holding = BTreeSet::new();
        let after = Arc::clone(raft.membership());
        for voter in all_voters(before, &after) {
            if self.log_holds(voter, index, digest) {
                holding.insert(voter);
            }
        }
        demand_quorum(index, digest, before, &after, &holding, "durable");
    }

    /// I10: what a leader believes of a follower is durable there, as long as both are in one term.
    pub(crate) fn check_progress(&self, leader: &Raft) {
        for (peer, progress) in leader.progress() {
            let index = progress.match_index();
            self.oracle.check_match(leader.node(), leader.current_term(), peer, index);
            let process = self.nodes.get(&peer).and_then(|n| self.machines[*n].process.as_ref());
            let (Some(process), Some(digest)) = (process, leader.digest_at(index)) else {
                continue;
            };
            let same_term = process
                .driver
                .raft()
                .is_some_and(|raft| raft.current_term() == leader.current_term());
            let log = process.log.log();
            let held = log
                .digest_at(index)
                .map_or_else(|| index <= log.status().compacted.index, |found| found == digest);
            assert!(
                held || !same_term,
                "I10: {} believes that {peer} has {index}, and it has not",
                leader.node()
            );
        }
    }

    /// I14: while a leader would answer a read by its lease, nobody leads a later term.
    pub(crate) fn check_leases(&self) {
        let leaders = || {
            self.machines.iter().filter_map(|machine| {
                let raft = machine.process.as_ref()?.driver.raft()?;
                (raft.role() == RoleKind::Leader).then_some((machine, raft))
            })
        };
        let newest = leaders().map(|(_, raft)| raft.current_term()).max();
        for (machine, raft) in leaders() {
            let deposed = newest.is_some_and(|newest| raft.current_term() < newest);
            assert!(
                !deposed || !raft.holds_lease(machine.clock.local(self.now)),
                "I14: {} holds a lease in term {}, and another leads term {newest:?}",
                raft.node(),
                raft.current_term()
            );
        }
    }

    /// Whether the log of a member, running or not, holds this entry durably.
    fn log_holds(&mut self, voter: NodeId, index: Index, digest: Digest) -> bool {
        let Some(machine) = self.nodes.get(&voter).copied() else {
            return match self.operator.lost.get(&voter) {
                Some(Some(state)) => holds(state, index, digest),
                Some(None) => true,
                None => false,
            };
        };
        if let Some(process) = &self.machines[machine].process {
            let log = process.log.log();
            return log
                .digest_at(index)
                .map_or_else(|| index < log.status().compacted.index, |found| found == digest);
        }
        if self.machines[machine].at_rest.is_none() {
            let seed = self.audits.next_u64();
            let found = self.machines[machine].audit(&self.profile, seed);
            match found {
                Ok(Opened { state, .. }) => self.machines[machine].at_rest = Some(state),
                // What it held is damaged; the others must have it.
                Err(_) if self.is_doomed(machine) => return true,
                Err(error) => panic!("{voter} could not recover from a power loss: {error}"),
            }
        }
        let state = self.machines[machine].at_rest.as_ref();
        state.is_some_and(|state| holds(state, index, digest))
    }

    /// I6, I8: a power loss of all machines at this moment would leave the last commit on a quorum, and every
    /// promise kept. Asked of the production recovery on copies of the disks.
    pub(crate) fn audit(&mut self, leader: usize, before: Option<&Membership>) {
        let Some(raft) = self.raft(leader) else { return };
        let index = raft.commit_index();
        let (RoleKind::Leader, Some(digest)) = (raft.role(), raft.digest_at(index)) else { return };
        let after = Arc::clone(raft.membership());
        let mut holding = BTreeSet::new();
        for voter in all_voters(before, &after) {
            let Some(machine) = self.nodes.get(&voter).copied() else {
                if self.log_holds(voter, index, digest) {
                    holding.insert(voter);
                }
                continue;
            };
            let seed = self.audits.next_u64();
            match self.machines[machine].audit(&self.profile, seed) {
                Ok(Opened { state, .. }) => {
                    self.oracle.recovered(&state);
                    if holds(&state, index, digest) {
                        holding.insert(voter);
                    }
                }
                Err(_) if self.is_doomed(machine) => {
                    holding.insert(voter);
                }
                Err(error) => panic!("{voter} could not recover from a power loss: {error}"),
            }
        }
        demand_quorum(index, digest, before, &after, &holding, "recovered");
    }
}

fn all_voters(before: Option<&Membership>, after: &Membership) -> BTreeSet<NodeId> {
    before.into_iter().chain([after]).flat_map(Membership::all_voters).collect()
}

/// The commit may have made the leader go on to the next configuration: it was counted by the one that was in force
/// before its turn, or by the one after.
fn demand_quorum(
    index: Index,
    digest: Digest,
    before: Option<&Membership>,
    after: &Membership,
    holding: &BTreeSet<NodeId>,
    what: &str,
) {
    let half = |half: &BTreeSet<NodeId>| {
        half.is_empty() || 2 * half.intersection(holding).count() > half.len()
    };
    let quorum = |membership: &Membership| half(membership.voters()) && half(membership.outgoing());
    assert!(
        before.is_some_and(quorum) || quorum(after),
        "I6: {index} with digest {digest:?} is committed by {after:?} and {what} on {} members",
        holding.len()
    );
}

/// What recovery found on a disk that nobody uses.
pub(crate) type AtRest = DataState;
