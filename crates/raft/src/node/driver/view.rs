//! What the driver shows: its status, whom it wants dialled; and whether the configuration fits the data.

use std::collections::BTreeMap;
use std::sync::Arc;

use raft_core::{Index, Membership, NodeId, RoleKind, StateMachine, Time};
use tokio::sync::oneshot::{self, Receiver};
use tracing::{info, warn};

use super::{Configurations, Driver};
use crate::error::{NodeError, ReadError};
use crate::node::belonging::{check_configured, check_owner};
use crate::node::feature_level;
use crate::node::formation_message::Founding;
use crate::node::member_info::{MemberInfo, is_awaited};
use crate::node::pending::Read;
use crate::node::status::{MemberStatus, RoleName, Status};
use crate::transport::PeerAddress;

/// Addresses of unknown nodes that have connected and are dialled in return.
const CALLERS_MAX: usize = 64;

/// A configured list that this node's own data does not confirm.
#[derive(Debug)]
pub(super) struct DoubtfulList {
    /// Answered when this node knows the present membership.
    known: Receiver<Result<Index, ReadError>>,
}

/// What was shown last, so that an unchanged part costs nothing.
#[derive(Debug, Default)]
pub(super) struct View {
    configurations: Option<Configurations>,
    feature_level: u16,
    /// Of the configuration in force.
    infos: BTreeMap<NodeId, Arc<MemberInfo>>,
    /// Of the committed one.
    committed_infos: BTreeMap<NodeId, Arc<MemberInfo>>,
    /// Since when the list of members is as it was shown last; `None`: something of it has changed since.
    members_shown: Option<Time>,
    /// What the list of addresses to dial was made of last.
    dial_made_of: Option<(u64, u64, bool)>,
}

impl View {
    pub(super) const fn connections_changed(&mut self) {
        self.members_shown = None;
    }

    /// True when a configuration is another one than before.
    fn update(&mut self, membership: &Arc<Membership>, committed: &Arc<Membership>) -> bool {
        let (same_in_force, same_committed) =
            self.configurations.as_ref().map_or((false, false), |shown| {
                (Arc::ptr_eq(&shown.in_force, membership), Arc::ptr_eq(&shown.committed, committed))
            });
        if same_in_force && same_committed {
            return false;
        }
        if !same_in_force {
            self.infos = infos_of(membership);
            self.dial_made_of = None;
        }
        if !same_committed {
            self.committed_infos = infos_of(committed);
        }
        let (in_force, committed) = (Arc::clone(membership), Arc::clone(committed));
        self.configurations = Some(Configurations { in_force, committed });
        self.members_shown = None;
        true
    }
}

fn infos_of(membership: &Membership) -> BTreeMap<NodeId, Arc<MemberInfo>> {
    let infos = membership.members().map(|(node, member)| {
        (node, Arc::new(MemberInfo::decode(&member.info).unwrap_or_default()))
    });
    infos.collect()
}

impl<S: StateMachine> Driver<S> {
    /// Compares everything that others see with what they saw last.
    pub(super) fn publish(&mut self, now: Time) {
        let mut reconfigured = false;
        let status = match &self.raft {
            None => Status {
                phase: self.phase.clone(),
                cluster_id: self.founding.as_ref().map(|founding| founding.cluster),
                ..Status::empty(self.node)
            },
            Some(raft) => {
                let membership = raft.membership();
                if self.view.update(membership, raft.committed_membership()) {
                    self.view.feature_level =
                        feature_level::of_cluster(raft.committed_membership());
                    self.out.membership.clone_from(&self.view.configurations);
                    reconfigured = true;
                }
                let role = match raft.role() {
                    RoleKind::Follower if !membership.is_voter(self.node) => RoleName::Learner,
                    RoleKind::Follower => RoleName::Follower,
                    RoleKind::PreCandidate | RoleKind::Candidate => RoleName::Candidate,
                    RoleKind::Leader => RoleName::Leader,
                };
                let leads = role == RoleName::Leader;
                // Followers' positions change all the time: a leader shows them once a heartbeat.
                let interval = self.settings.heartbeat_interval;
                let fresh = self.view.members_shown.is_some_and(|shown| {
                    leads == self.status.is_leader() && (!leads || now.since(shown) < interval)
                });
                let members = if fresh {
                    Arc::clone(&self.status.members)
                } else {
                    self.view.members_shown = Some(now);
                    self.members(raft)
                };
                Status {
                    phase: self.phase.clone(),
                    cluster_id: Some(raft.identity().cluster),
                    node: self.node,
                    role,
                    term: raft.current_term(),
                    leader: raft.leader().map(|leader| leader.member),
                    commit_index: raft.commit_index(),
                    last_applied: self.applied,
                    last_log: raft.last_log(),
                    durable_index: raft.durable_index(),
                    first_index: raft.log_start().index.next(),
                    snapshot: raft.snapshot().last_included,
                    feature_level: self.view.feature_level,
                    disk_full: self.space.is_full,
                    membership: Arc::clone(membership),
                    members,
                }
            }
        };
        if status != *self.status {
            self.status = Arc::new(status);
            self.out.status = Some(Arc::clone(&self.status));
        }
        if reconfigured {
            let (cluster, known) = (self.view.feature_level, self.info.feature_level.max(1));
            if cluster > known {
                self.end(Err(NodeError::FeatureLevel { cluster, known }));
            }
            self.forget_known_callers();
        }
        let made_of = Some((self.callers_changed, self.admins.unseen_changes(), self.ended));
        if made_of != self.view.dial_made_of {
            self.view.dial_made_of = made_of;
            let dial = self.dial_list();
            if dial != self.dialled {
                self.dialled.clone_from(&dial);
                self.out.dial = Some(dial);
            }
        }
    }

    /// Shows a configuration before there is a protocol that knows of any.
    pub(super) fn show_members(&mut self, in_force: &Membership, committed: &Membership) {
        self.view.update(&Arc::new(in_force.clone()), &Arc::new(committed.clone()));
        self.out.membership.clone_from(&self.view.configurations);
    }

    /// Refuses data that cannot be this member's, and a configured list that is neither the one by which the cluster
    /// formed nor the present membership (decision 4). A list that only disagrees with what this node knows may be
    /// newer than its data: then its peers tell.
    pub(super) fn check_configured(
        &mut self,
        founding: &Founding,
        membership: &Membership,
        now: Time,
    ) -> Result<(), NodeError> {
        check_owner(&self.settings, self.node, membership).map_err(NodeError::Data)?;
        let checked = check_configured(&self.settings, self.node, founding, membership);
        if let Err(error) = checked {
            if membership.members().all(|(node, _)| node == self.node) {
                return Err(NodeError::Config(error));
            }
            warn!(
                "{error}. This member may have missed the change: it starts, and asks the others"
            );
            self.doubtful_list = Some(DoubtfulList { known: self.ask_for_list(now) });
        }
        Ok(())
    }

    /// A linearizable read: once it is answered, every configuration committed before is known here.
    fn ask_for_list(&mut self, now: Time) -> Receiver<Result<Index, ReadError>> {
        let (waiter, known) = oneshot::channel();
        self.reads.gather(Read::Index(waiter), now.after(self.settings.request_timeout()));
        known
    }

    /// Decides about a doubtful list once this node knows what the cluster knows.
    pub(super) fn check_list(&mut self, now: Time) {
        let Some(doubtful) = &mut self.doubtful_list else { return };
        let Ok(answer) = doubtful.known.try_recv() else { return };
        if answer.is_err() {
            if self.stopping.is_none() && !self.ended {
                self.doubtful_list = Some(DoubtfulList { known: self.ask_for_list(now) });
            }
            return;
        }
        self.doubtful_list = None;
        let (Some(raft), Some(founding)) = (&self.raft, &self.founding) else { return };
        let committed = raft.committed_membership();
        match check_configured(&self.settings, self.node, founding, committed) {
            Ok(()) => info!("the configured list is the cluster's present membership"),
            Err(error) => self.end(Err(NodeError::Config(error))),
        }
    }

    /// An unknown node wants to talk: it is dialled in return, also again when that connection breaks, because it says
    /// so only once.
    pub(super) fn add_caller(&mut self, address: String, node: NodeId) {
        if self.callers.len() >= CALLERS_MAX && !self.callers.contains_key(&address) {
            let gone = |node: &NodeId| !self.connected.contains_key(node);
            let Some(victim) = self.callers.iter().find(|(_, node)| gone(node)) else { return };
            let victim = victim.0.clone();
            self.callers.remove(&victim);
        }
        if self.callers.insert(address, node) != Some(node) {
            self.callers_changed += 1;
        }
    }

    /// Who is reached there is known by now.
    pub(super) fn forget_caller(&mut self, address: &str) {
        if self.callers.remove(address).is_some() {
            self.callers_changed += 1;
        }
    }

    /// Members at their addresses are dialled as such, and removed nodes not at all.
    fn forget_known_callers(&mut self) {
        let Some(Configurations { in_force, committed }) = &self.view.configurations else {
            return;
        };
        let infos = &self.view.infos;
        self.callers.retain(|address, node| {
            let removed = committed.removed().contains(node) && !in_force.contains(*node);
            !removed && infos.get(node).is_none_or(|info| info.peer_address != *address)
        });
        self.callers_changed += 1;
    }

    fn members(&self, raft: &raft_core::Raft) -> Arc<Vec<MemberStatus>> {
        let matches: BTreeMap<NodeId, Index> =
            raft.progress().map(|(node, progress)| (node, progress.match_index())).collect();
        let leads = raft.role() == RoleKind::Leader;
        // One that is not committed may yet be taken back: nobody is told of it as if it were so.
        let membership = raft.committed_membership();
        let members = membership.members().map(|(node, member)| {
            let own = node == self.node;
            let match_index =
                if own && leads { Some(raft.durable_index()) } else { matches.get(&node).copied() };
            MemberStatus {
                node,
                info: self.view.committed_infos.get(&node).cloned().unwrap_or_default(),
                voter: membership.is_voter(node),
                auto_promote: member.auto_promote,
                connected: own || self.connected.contains_key(&node),
                match_index,
            }
        });
        Arc::new(members.collect())
    }

    /// Everyone in the configuration; those it was formed with or told about; those that want to come in.
    fn dial_list(&self) -> Vec<PeerAddress> {
        let mut dial: BTreeMap<&str, Option<NodeId>> = BTreeMap::new();
        if self.ended {
            return Vec::new();
        }
        for address in self.settings.peers.iter().chain(&self.settings.join) {
            dial.insert(address, None);
        }
        for address in self.admins.unseen() {
            dial.insert(address, None);
        }
        if let Some(Configurations { in_force, .. }) = &self.view.configurations {
            dial.extend(members_at(in_force, &self.view.infos));
        }
        // Whoever waits for an answer there may be another node than the member that is known at that address: a
        // wiped one must hear that it is. But a member that is reached there stays: a stranger only says so. And once
        // the caller itself is reached there it is dialled as who it is: it may have replaced that member while this
        // node was away, lead by now, and want its snapshot answered.
        for (address, node) in &self.callers {
            let answers = |node: &NodeId| self.connected.get(node) == Some(address);
            let expected = match dial.get(address.as_str()).copied().flatten() {
                Some(member) if answers(&member) => Some(member),
                Some(member) if member != *node && !answers(node) => None,
                _ => Some(*node),
            };
            dial.insert(address, expected);
        }
        dial.remove(self.info.peer_address.as_str());
        dial.into_iter()
            .filter(|(address, node)| !address.is_empty() && *node != Some(self.node))
            .map(|(address, node)| PeerAddress { node, address: address.to_owned() })
            .collect()
    }
}

/// Who is to be found at which address. Of two at one address it is the one that stays: it has replaced the other, and
/// whoever knows no more than the joint configuration that says so would else call the one that left for ever. Whoever is
/// awaited comes under an identity that nobody knows yet.
fn members_at<'a>(
    in_force: &Membership,
    infos: &'a BTreeMap<NodeId, Arc<MemberInfo>>,
) -> BTreeMap<&'a str, Option<NodeId>> {
    let stays = |node: &NodeId| {
        [in_force.voters(), in_force.learners(), in_force.learners_next()]
            .iter()
            .any(|group| group.contains(node))
    };
    let members = || in_force.members().map(|(node, _)| node);
    let leaving = members().filter(|node| !stays(node));
    leaving
        .chain(members().filter(stays))
        .filter_map(|node| {
            let address = infos.get(&node)?.peer_address.as_str();
            Some((address, (!is_awaited(node)).then_some(node)))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use raft_core::{Incarnation, Member, MemberId, MembershipStep};

    use super::*;
    use crate::node::member_info::awaited;

    fn node(number: u64) -> NodeId {
        NodeId { member: MemberId(number), incarnation: Incarnation(1) }
    }

    /// Found by the simulator: a member that was cut off while another's machine was replaced kept calling the one that
    /// was gone, and never answered its successor, which led by then.
    #[test]
    fn a_member_that_replaces_another_is_the_one_at_its_address() {
        for successor in [node(1), node(9)] {
            let infos = [(node(3), "n3"), (node(4), "n4"), (node(5), "n5"), (successor, "n3")];
            let infos: BTreeMap<NodeId, Arc<MemberInfo>> = infos
                .into_iter()
                .map(|(node, address)| {
                    let info =
                        MemberInfo { peer_address: address.to_owned(), ..MemberInfo::default() };
                    (node, Arc::new(info))
                })
                .collect();
            let info = |node: NodeId| infos[&node].encode();
            let founders = [3, 4, 5].map(|number| (node(number), info(node(number))));
            let member = Member { info: info(successor), auto_promote: true };
            let joint = Membership::from_voters(founders)
                .change(&[
                    MembershipStep::Remove(node(3)),
                    MembershipStep::AddLearner { node: successor, member },
                ])
                .unwrap();
            assert!(joint.is_joint() && joint.contains(node(3)));
            assert_eq!(members_at(&joint, &infos)["n3"], Some(successor));
        }
    }

    #[test]
    fn whoever_answers_where_a_member_is_awaited_may_be_anybody() {
        let expected = awaited(MemberId(7));
        let info = MemberInfo { peer_address: String::from("n7"), ..MemberInfo::default() };
        let member = Member { info: info.encode(), auto_promote: true };
        let membership = Membership::from_voters([(node(3), bytes::Bytes::new())])
            .change(&[MembershipStep::AddLearner { node: expected, member }])
            .unwrap();
        let infos = BTreeMap::from([(expected, Arc::new(info))]);
        assert_eq!(members_at(&membership, &infos), BTreeMap::from([("n7", None)]));
    }
}
