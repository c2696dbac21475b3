//! Whoever runs the cluster: adds and removes members, hands leadership over, replaces machines whose disks are lost.
//!
//! The operator is prudent in one thing only: never is more than one member without its disk, and nobody shrinks the
//! cluster in a world where disks are lost. Everything else is asked for at any time, of anybody, back to back.

use std::collections::BTreeMap;
use std::time::Duration;

use raft::error::AdminError;
use raft::message::Admin;
use raft::node::driver::Input;
use raft::node::{MemberInfo, NodeRequest};
use raft_core::{Index, Lease, Member, Membership, MembershipStep, NodeId};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use crate::audit::AtRest;
use crate::disk::Crash;
use crate::profile::{DRIFT_MAX_PPM, pick};
use crate::story::Kind;
use crate::workload::Workload;
use crate::world::{Happening, World};

type Answer = oneshot::Receiver<Result<Index, AdminError>>;

/// What the operator waits for and knows.
#[derive(Debug, Default)]
pub(crate) struct Operator {
    /// Answers to what was asked for, and whether a member gives up on it within the time of a request.
    waits: Vec<(bool, Answer)>,
    /// The one machine whose disk may be damaged or is lost, and the member that it was.
    doomed: Option<(usize, NodeId)>,
    /// It does not start with what it has.
    pub(crate) refuses: bool,
    /// What lost disks held; `None` where that was damaged.
    pub(crate) lost: BTreeMap<NodeId, Option<AtRest>>,
}

impl Operator {
    /// A disk is lost or damaged, and its member not replaced yet.
    pub(crate) const fn is_busy(&self) -> bool {
        self.doomed.is_some()
    }

    /// A change or a transfer of leadership may yet be carried out. (That a member is added may take as long as it copies
    /// what there is; it changes no term.)
    pub(crate) fn waits(&self) -> bool {
        self.waits.iter().any(|(soon, _)| *soon)
    }
}

/// What leases are switched on with.
fn lease() -> Lease {
    let drift_ppm = u32::try_from(DRIFT_MAX_PPM).unwrap_or(u32::MAX);
    Lease { length: Duration::from_millis(150), drift_ppm }
}

impl<W: Workload> World<W> {
    /// Whether this machine's disk is the one that may be damaged.
    pub(crate) fn is_doomed(&self, machine: usize) -> bool {
        self.operator.doomed.is_some_and(|(doomed, _)| doomed == machine)
    }

    /// Whether this machine's disk may be lost: every other one is sound, they are a quorum, and nothing is about to
    /// change that.
    pub(crate) fn may_doom(&self, machine: usize) -> bool {
        if let Some((doomed, _)) = self.operator.doomed {
            return doomed == machine;
        }
        let Some(raft) = self.leader().and_then(|leader| self.raft(leader)) else { return false };
        let membership = raft.membership();
        !membership.is_joint()
            && raft.membership_index() <= raft.commit_index()
            && membership.voters().len() >= 3
    }

    /// Whether this machine's disk may be damaged: as above, and it is not already the one that takes a lost one's
    /// place. When that is done, nothing would be known of the damage any more.
    pub(crate) fn may_damage(&self, machine: usize) -> bool {
        let node = self.machines[machine].node();
        self.may_doom(machine) && self.operator.doomed.is_none_or(|(_, doomed)| doomed == node)
    }

    pub(crate) fn doom(&mut self, machine: usize) {
        let node = self.machines[machine].node();
        self.operator.doomed.get_or_insert((machine, node));
    }

    /// The disk of a machine is lost.
    pub(crate) fn wipe(&mut self, machine: usize) {
        self.doom(machine);
        if self.machines[machine].process.is_some() {
            let power = Crash::Power(self.faults.next_u64());
            self.crash(machine, power, u64::MAX);
        }
        // What it had acknowledged may still be counted when its last messages arrive.
        let seed = self.audits.next_u64();
        let found = self.machines[machine].audit(&self.profile, seed);
        let node = self.machines[machine].node();
        self.operator.lost.insert(node, found.ok().map(|opened| opened.state));
        self.renew(machine);
        self.marks.hit("disk lost");
        self.operator.refuses = false;
    }

    /// An empty disk, and with it a new identity.
    fn renew(&mut self, machine: usize) {
        // Where all founders may go, those that are configured as such would found another cluster.
        let joins = self.profile.shrink || self.faults.chance(1, 2);
        self.nodes.remove(&self.machines[machine].node());
        self.machines[machine].wipe(joins);
        self.nodes.insert(self.machines[machine].node(), machine);
        let delay = self.faults.below(300_000);
        self.later(delay, Happening::Start(machine));
    }

    /// The cluster has removed the node on this machine: it is started once more as it is, or anew with an empty
    /// folder.
    pub(crate) fn removed(&mut self, machine: usize) {
        self.marks.hit("ended: removed");
        self.draw_for(Kind::Consequence(machine));
        let again = self.faults.chance(1, 3) && !self.healed;
        let down = if again { self.faults.below(300_000) } else { u64::MAX };
        self.crash(machine, Crash::Process, down);
        if !again && !self.healed {
            self.renew(machine);
        }
    }

    /// Who should be up and equal in the end: the members that have their disks.
    pub(crate) fn sound_members(&self) -> Vec<usize> {
        let Some(leader) = self.leader().and_then(|leader| self.raft(leader)) else {
            return Vec::new();
        };
        let members = leader.membership().members();
        let machines = members.filter_map(|(node, _)| self.nodes.get(&node).copied());
        machines
            .filter(|machine| !(self.is_doomed(*machine) && self.operator.refuses))
            .filter(|machine| !self.absent.contains(machine))
            .collect()
    }

    /// No more replacements: a machine whose disk may be damaged stays down.
    pub(crate) fn give_up_doomed(&mut self) {
        self.forget_replaced();
        if let Some((machine, node)) = self.operator.doomed
            && self.machines[machine].node() == node
        {
            self.operator.refuses = true;
            if self.machines[machine].process.is_some() {
                self.crash(machine, Crash::Process, u64::MAX);
            }
        }
    }

    /// The one without its disk is out of the committed configuration: the next one may be lost.
    fn forget_replaced(&mut self) {
        let Some((machine, node)) = self.operator.doomed else { return };
        let Some(raft) = self.leader().and_then(|leader| self.raft(leader)) else { return };
        let gone = !raft.committed_membership().contains(node) && !raft.membership().contains(node);
        if gone && self.machines[machine].node() != node {
            self.marks.hit("a lost member was replaced");
            self.operator.doomed = None;
        }
    }

    pub(crate) fn operate(&mut self) {
        self.poll_operator();
        self.forget_replaced();
        if self.strikes(Kind::Transfer, self.profile.transfer) {
            let target = self.any_member();
            let whom = target.map_or_else(|| "anybody".to_owned(), |node| self.name(node));
            self.tell(Kind::Transfer, format!("leadership is to go to {whom}"));
            self.ask_admin(Admin::Transfer(target));
        }
        self.draw_for(Kind::Consequence(0));
        if let Some((machine, node)) = self.operator.doomed {
            // Somebody looks after it sooner or later.
            if self.operator.refuses && self.faults.chance(1, 20) {
                self.wipe(machine);
            } else if self.machines[machine].node() != node && self.faults.chance(1, 10) {
                self.replace(machine, node);
            }
        }
        if self.strikes(Kind::Change, self.profile.change) {
            let times = if self.faults.chance(1, 3) { 1 + self.faults.below(3) } else { 1 };
            for _ in 0..times {
                self.change();
            }
        }
    }

    fn membership(&self) -> Option<Membership> {
        let raft = self.leader().and_then(|leader| self.raft(leader))?;
        Some(Membership::clone(raft.membership()))
    }

    fn any_member(&mut self) -> Option<NodeId> {
        let voters: Vec<NodeId> = self.membership()?.voters().iter().copied().collect();
        match pick(&mut self.faults, voters.len() + 1) {
            0 => None,
            n => voters.get(n - 1).copied(),
        }
    }

    /// The member `old` lost its disk: out with it, in with the empty node on its machine.
    fn replace(&mut self, machine: usize, old: NodeId) {
        let Some(membership) = self.membership() else { return };
        let new = self.machines[machine].node();
        if membership.contains(old) {
            let mut steps = vec![MembershipStep::Remove(old)];
            if self.faults.chance(1, 2) && self.machines[machine].process.is_some() {
                steps.push(self.admission(machine, true));
            }
            self.ask_admin(Admin::Membership(steps));
        } else if !membership.contains(new) {
            self.ask_add(machine, true);
        }
    }

    fn admission(&self, machine: usize, auto_promote: bool) -> MembershipStep {
        let node = self.machines[machine].node();
        MembershipStep::AddLearner {
            node,
            member: Member { info: self.info(machine).encode(), auto_promote },
        }
    }

    fn info(&self, machine: usize) -> MemberInfo {
        let address = self.machines[machine].address.clone();
        MemberInfo { name: address.clone(), peer_address: address, ..MemberInfo::default() }
    }

    /// One change, drawn from all that make sense of what the leader knows, and some that do not.
    fn change(&mut self) {
        let Some(membership) = self.membership() else { return };
        let voters: Vec<NodeId> = membership.voters().iter().copied().collect();
        let learners: Vec<NodeId> = membership.learners().iter().copied().collect();
        let outside: Vec<usize> = (0..self.machines.len())
            .filter(|machine| !membership.contains(self.machines[*machine].node()))
            .filter(|machine| self.machines[*machine].process.is_some())
            .filter(|machine| !self.is_doomed(*machine))
            .collect();
        let mut any = |nodes: &[NodeId]| -> Option<NodeId> {
            (!nodes.is_empty()).then(|| nodes[pick(&mut self.faults, nodes.len())])
        };
        let (voter, learner) = (any(&voters), any(&learners));
        let shrinks = self.profile.shrink && voters.len() > 1;
        let kind = self.faults.below(10);
        match (kind, voter, learner) {
            (0..=2, ..) if !outside.is_empty() => {
                let machine = outside[pick(&mut self.faults, outside.len())];
                let voter = self.faults.chance(2, 3);
                let what = if voter { "voter" } else { "learner" };
                self.tell(Kind::Change, format!("n{} is to be added as a {what}", machine + 1));
                self.ask_add(machine, voter);
            }
            (3, _, Some(learner)) => self.ask_steps(vec![MembershipStep::Promote(learner)]),
            (4, Some(voter), _) if shrinks => {
                self.ask_steps(vec![MembershipStep::Demote(voter)]);
            }
            (5, Some(voter), _) if shrinks => {
                self.ask_steps(vec![MembershipStep::Remove(voter)]);
            }
            // Two at once: only a joint configuration makes that safe.
            (6..=7, Some(voter), Some(learner)) if shrinks => {
                let leaves = if kind == 6 {
                    MembershipStep::Remove(voter)
                } else {
                    MembershipStep::Demote(voter)
                };
                self.ask_steps(vec![MembershipStep::Promote(learner), leaves]);
            }
            (8, _, Some(learner)) if self.profile.shrink => {
                self.ask_steps(vec![MembershipStep::Remove(learner)]);
            }
            _ if self.profile.lease => {
                let on = self.faults.chance(3, 4);
                self.ask_steps(vec![MembershipStep::SetLease(on.then(lease))]);
            }
            _ => {}
        }
    }

    fn ask_steps(&mut self, steps: Vec<MembershipStep>) {
        let what: Vec<String> = steps
            .iter()
            .map(|step| match step {
                MembershipStep::Promote(node) => format!("{} is to be promoted", self.name(*node)),
                MembershipStep::Demote(node) => format!("{} is to be demoted", self.name(*node)),
                MembershipStep::Remove(node) => format!("{} is to be removed", self.name(*node)),
                MembershipStep::SetLease(Some(_)) => "leases are to be on".to_owned(),
                MembershipStep::SetLease(None) => "leases are to be off".to_owned(),
                MembershipStep::AddLearner { node, .. } => {
                    format!("{} is to be added", self.name(*node))
                }
                MembershipStep::Update { node, .. } => {
                    format!("{} is to be known otherwise", self.name(*node))
                }
            })
            .collect();
        self.tell(Kind::Change, what.join(", "));
        self.ask_admin(Admin::Membership(steps));
    }

    /// The machine of a node, for people.
    fn name(&self, node: NodeId) -> String {
        let machine = self.nodes.get(&node);
        machine.map_or_else(|| node.to_string(), |machine| format!("n{}", machine + 1))
    }

    fn ask_admin(&mut self, admin: Admin) {
        let (waiter, answer) = oneshot::channel();
        self.ask_through(true, answer, |request| NodeRequest::Admin { request, admin, waiter });
    }

    fn ask_add(&mut self, machine: usize, voter: bool) {
        let info = self.info(machine);
        let (waiter, answer) = oneshot::channel();
        self.ask_through(false, answer, |request| NodeRequest::Add {
            request,
            info,
            voter,
            waiter,
        });
    }

    /// Asks any running process.
    fn ask_through(
        &mut self,
        soon: bool,
        answer: Answer,
        request: impl FnOnce(u64) -> NodeRequest<W::Machine>,
    ) {
        let running: Vec<usize> =
            (0..self.machines.len()).filter(|m| self.machines[*m].process.is_some()).collect();
        if running.is_empty() {
            return;
        }
        let via = running[pick(&mut self.faults, running.len())];
        let Some(process) = self.process(via) else { return };
        let number = process.next_request;
        process.next_request += 1;
        self.operator.waits.push((soon, answer));
        self.wake(via, Input::Request(request(number)));
    }

    /// A change that was answered is committed.
    pub(crate) fn poll_operator(&mut self) {
        let committed = self.oracle.committed();
        let mut waits = std::mem::take(&mut self.operator.waits);
        waits.retain_mut(|(_, answer)| match answer.try_recv() {
            Ok(Ok(index)) => {
                assert!(index <= committed, "a change at {index} is answered and not committed");
                let transfer = index == Index::ZERO;
                self.marks.hit(if transfer { "transfer: done" } else { "change: done" });
                false
            }
            Ok(Err(error)) => {
                self.marks.hit(match error {
                    AdminError::Refused(_) | AdminError::RefusedByLeader(_) => "change: refused",
                    AdminError::NoLeader => "change: no leader",
                    AdminError::Unknown => "change: unknown",
                    AdminError::Stopped => "change: stopped",
                    error => panic!("an unknown outcome of a change: {error}"),
                });
                false
            }
            // Whom it asked has died.
            Err(TryRecvError::Closed) => false,
            Err(TryRecvError::Empty) => true,
        });
        self.operator.waits = waits;
    }
}
