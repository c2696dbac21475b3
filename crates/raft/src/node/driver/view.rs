//! What the driver shows: its status, whom it wants dialled; and whether the configuration fits the data.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use raft_core::{ConfigError, Index, Membership, NodeId, RoleKind, StateMachine};

use super::Driver;
use crate::node::builder::Settings;
use crate::node::formation_message::Founding;
use crate::node::member_info::MemberInfo;
use crate::node::status::{MemberStatus, RoleName, Status};
use crate::transport::PeerAddress;

/// Addresses of unknown nodes that have connected and are dialled in return.
const CALLERS_MAX: usize = 64;

/// What was shown last, so that an unchanged part costs nothing.
#[derive(Debug, Default)]
pub(super) struct View {
    membership: Option<Arc<Membership>>,
    infos: BTreeMap<NodeId, Arc<MemberInfo>>,
    /// The list of members is as it was shown last.
    members_shown: bool,
    /// What the list of addresses to dial was made of last, as far as counting tells.
    dial_made_of: Option<(u64, usize, bool)>,
}

impl View {
    pub(super) const fn connections_changed(&mut self) {
        self.members_shown = false;
    }

    /// True when the configuration is another one than before.
    fn update(&mut self, membership: &Arc<Membership>) -> bool {
        if self.membership.as_ref().is_some_and(|shown| Arc::ptr_eq(shown, membership)) {
            return false;
        }
        self.infos = membership
            .members()
            .map(|(node, member)| {
                (node, Arc::new(MemberInfo::decode(&member.info).unwrap_or_default()))
            })
            .collect();
        self.membership = Some(Arc::clone(membership));
        self.members_shown = false;
        self.dial_made_of = None;
        true
    }
}

impl<S: StateMachine> Driver<S> {
    /// Compares everything that others see with what they saw last.
    pub(super) fn publish(&mut self) {
        let status = match &self.raft {
            None => Status {
                phase: self.phase.clone(),
                cluster_id: self.founding.as_ref().map(|founding| founding.cluster),
                ..Status::empty(self.node)
            },
            Some(raft) => {
                let membership = raft.membership();
                if self.view.update(membership) {
                    self.out.membership = Some(Arc::clone(membership));
                }
                let role = match raft.role() {
                    RoleKind::Follower if !membership.is_voter(self.node) => RoleName::Learner,
                    RoleKind::Follower => RoleName::Follower,
                    RoleKind::PreCandidate | RoleKind::Candidate => RoleName::Candidate,
                    RoleKind::Leader => RoleName::Leader,
                };
                let leads = role == RoleName::Leader;
                let members = if self.view.members_shown && !leads && !self.status.is_leader() {
                    Arc::clone(&self.status.members)
                } else {
                    self.view.members_shown = true;
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
                    membership: Arc::clone(membership),
                    members,
                }
            }
        };
        if status != *self.status {
            self.status = Arc::new(status);
            self.out.status = Some(Arc::clone(&self.status));
        }
        let made_of = Some((self.callers_changed, self.admins.unseen().count(), self.ended));
        if made_of != self.view.dial_made_of {
            self.view.dial_made_of = made_of;
            let dial = self.dial_list();
            if dial != self.dialled {
                self.dialled.clone_from(&dial);
                self.out.dial = Some(dial);
            }
        }
    }

    /// An unknown node wants to talk: it is dialled in return.
    pub(super) fn add_caller(&mut self, address: String) {
        if self.callers.len() < CALLERS_MAX && self.callers.insert(address) {
            self.callers_changed += 1;
        }
    }

    pub(super) fn remove_caller(&mut self, address: &str) {
        if self.callers.remove(address) {
            self.callers_changed += 1;
        }
    }

    fn members(&self, raft: &raft_core::Raft) -> Arc<Vec<MemberStatus>> {
        let matches: BTreeMap<NodeId, Index> =
            raft.progress().map(|(node, progress)| (node, progress.match_index())).collect();
        let leads = raft.role() == RoleKind::Leader;
        let membership = raft.membership();
        let members = membership.members().map(|(node, member)| {
            let own = node == self.node;
            let match_index =
                if own && leads { Some(raft.durable_index()) } else { matches.get(&node).copied() };
            MemberStatus {
                node,
                info: self.view.infos.get(&node).cloned().unwrap_or_default(),
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
        let configured = self.settings.peers.iter().chain(&self.settings.join);
        for address in configured.chain(&self.callers) {
            dial.insert(address, None);
        }
        for address in self.admins.unseen() {
            dial.insert(address, None);
        }
        if let Some(membership) = &self.view.membership {
            for (node, _) in membership.members() {
                if let Some(info) = self.view.infos.get(&node) {
                    dial.insert(&info.peer_address, Some(node));
                }
            }
        }
        dial.remove(self.info.peer_address.as_str());
        dial.into_iter()
            .filter(|(address, node)| !address.is_empty() && *node != Some(self.node))
            .map(|(address, node)| PeerAddress { node, address: address.to_owned() })
            .collect()
    }
}

/// The member whose data this is, when the configuration gives that member another address than this one: a folder
/// that was copied, or an index that was mixed up. Two nodes of one identity would vote twice.
pub(super) fn owner_elsewhere(
    settings: &Settings,
    node: NodeId,
    membership: &Membership,
) -> Option<String> {
    let info = MemberInfo::decode(&membership.member(node)?.info)?;
    let elsewhere =
        info.peer_address != settings.address && settings.peers.contains(&info.peer_address);
    elsewhere.then_some(info.peer_address)
}

/// Refuses a configured list that is neither the one by which the cluster formed nor the present membership.
pub(super) fn check_configured(
    settings: &Settings,
    node: NodeId,
    founding: &Founding,
    membership: &Membership,
) -> Result<(), ConfigError> {
    if settings.peers.is_empty() || !settings.join.is_empty() {
        return Ok(());
    }
    let configured: BTreeSet<&str> = settings.peers.iter().map(String::as_str).collect();
    if founding.configured.iter().map(String::as_str).collect::<BTreeSet<_>>() == configured {
        return Ok(());
    }
    let infos: Vec<(NodeId, MemberInfo)> = membership
        .members()
        .map(|(member, known)| (member, MemberInfo::decode(&known.info).unwrap_or_default()))
        .collect();
    // The own address may have changed: the present one counts for it.
    let present: BTreeSet<&str> =
        infos
            .iter()
            .map(|(member, info)| {
                if *member == node { settings.address.as_str() } else { info.peer_address.as_str() }
            })
            .collect();
    if present == configured {
        return Ok(());
    }
    let list =
        |addresses: &BTreeSet<&str>| addresses.iter().copied().collect::<Vec<_>>().join(", ");
    Err(ConfigError {
        field: "cluster_members",
        problem: format!(
            "lists {}, but the cluster that this data belongs to has {}. The committed membership rules: change it \
             with `member add` and `member remove`, then write the same list here; or start in an empty folder",
            list(&configured),
            list(&present)
        ),
    })
}
