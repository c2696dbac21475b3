//! Whether a data directory and a configuration belong together (decision 4).
//!
//! What a directory knows may be older than the configuration, so a list that differs is no proof. Refused before
//! anything is written is only what cannot be right: a member's data under another member's address, and a list
//! without one address that the data has ever known. Everything else is decided when the others are heard.

use std::collections::BTreeSet;
use std::path::PathBuf;

use bytes::Bytes;
use raft_core::{ConfigError, Membership, NodeId};

use crate::error::DataError;
use crate::log::{Belongs, Formed, Inspected};
use crate::node::builder::Settings;
use crate::node::formation_message::{FormationState, Founding};
use crate::node::member_info::MemberInfo;

/// What [`Log::open_if`](crate::log::Log::open_if) asks before it changes anything.
///
/// # Errors
/// When the data cannot be this member's.
pub(super) fn check(settings: &Settings, data: &Belongs<'_>) -> Result<(), DataError> {
    let Some(newest) = data.memberships.last() else { return Ok(()) };
    check_owner(settings, data.node, newest)?;
    // Whoever is alone may have moved: then nothing of its list is known.
    let alone = newest.members().all(|(node, _)| node == data.node);
    if alone || !list_counts(settings) {
        return Ok(());
    }
    let mut known = founding_addresses(data.formed, data.formation);
    known.extend(data.memberships.iter().flat_map(addresses));
    if settings.peers.iter().any(|address| known.contains(address)) {
        return Ok(());
    }
    Err(other_cluster(data.path.clone(), data.formed, &known, &settings.peers))
}

/// Whether the configured list says anything about data that belongs to a cluster.
const fn list_counts(settings: &Settings) -> bool {
    !settings.peers.is_empty() && settings.join.is_empty() && !settings.peers_form_only
}

/// Refuses a data directory, looked at from outside, that knows none of `configured`. One that says nothing of its
/// members' addresses is not refused.
///
/// # Errors
/// [`DataError::OtherMembers`].
pub fn check_inspected(data: &Inspected, configured: &[String]) -> Result<(), DataError> {
    let known = founding_addresses(&data.formed, &data.formation);
    let alone = data.formed.members.members().count() == 1;
    if alone || known.is_empty() || configured.iter().any(|address| known.contains(address)) {
        return Ok(());
    }
    Err(other_cluster(data.path.clone(), &data.formed, &known, configured))
}

fn other_cluster(
    path: PathBuf,
    formed: &Formed,
    known: &BTreeSet<String>,
    configured: &[String],
) -> DataError {
    let known = known.iter().cloned().collect();
    DataError::OtherMembers {
        path,
        cluster: formed.cluster,
        known,
        configured: configured.to_vec(),
    }
}

fn addresses(membership: &Membership) -> impl Iterator<Item = String> + '_ {
    let infos = membership.members().filter_map(|(_, member)| MemberInfo::decode(&member.info));
    infos.map(|info| info.peer_address)
}

/// The addresses that the cluster was configured with when it formed.
fn founding_addresses(formed: &Formed, formation: &Bytes) -> BTreeSet<String> {
    let chosen = FormationState::decode(formation).and_then(|state| state.chosen);
    let configured = chosen.map(|founding| founding.configured).unwrap_or_default();
    configured.into_iter().chain(addresses(&formed.members)).collect()
}

/// Refuses data of a member to which the configuration gives another address than this one: a folder that was copied,
/// or an index that was mixed up. Two nodes of one identity would vote twice.
pub(super) fn check_owner(
    settings: &Settings,
    node: NodeId,
    membership: &Membership,
) -> Result<(), DataError> {
    let info = membership.member(node).and_then(|member| MemberInfo::decode(&member.info));
    let Some(info) = info else { return Ok(()) };
    if info.peer_address == settings.address || !settings.peers.contains(&info.peer_address) {
        return Ok(());
    }
    Err(DataError::OtherMember {
        path: settings.data_dir.clone(),
        expected: settings.address.clone(),
        found: info.peer_address,
        member: node.member,
    })
}

/// Refuses a configured list that is neither the one by which the cluster formed nor the present membership.
pub(super) fn check_configured(
    settings: &Settings,
    node: NodeId,
    founding: &Founding,
    membership: &Membership,
) -> Result<(), ConfigError> {
    if !list_counts(settings) {
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
