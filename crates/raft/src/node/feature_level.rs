//! What may stand in the log: only what every member understands (decision 18).
//!
//! Every member says in its attributes which level its program knows, in the configuration and so in the log. The
//! cluster's level is the lowest of them, as of the last *committed* configuration. It never falls: the leader refuses
//! a change that would lower it. A new command is proposed only where the level allows it, so that members can be
//! replaced one by one while the others go on, and until the last one it is possible to go back.

use bytes::Bytes;
use raft_core::{Membership, MembershipStep};

use crate::node::member_info::{MemberInfo, is_awaited};

/// What a member without a level knows: programs before there were any.
const FIRST: u16 = 1;

fn of_member(info: &Bytes) -> u16 {
    MemberInfo::decode(info).map_or(FIRST, |info| info.feature_level.max(FIRST))
}

/// The level of a cluster with this configuration. Whoever has yet to start does not count: what that one knows is asked
/// when it comes.
pub(crate) fn of_cluster(membership: &Membership) -> u16 {
    let started = membership.members().filter(|(node, _)| !is_awaited(*node));
    started.map(|(_, member)| of_member(&member.info)).min().unwrap_or(FIRST)
}

/// Refuses steps that would lower the level of a cluster with the configuration `in_force`.
///
/// # Errors
/// In words, when one would.
pub(crate) fn check(in_force: &Membership, steps: &[MembershipStep]) -> Result<(), String> {
    let level = of_cluster(in_force);
    for step in steps {
        let (MembershipStep::AddLearner { node, member } | MembershipStep::Update { node, member }) =
            step
        else {
            continue;
        };
        let knows = of_member(&member.info);
        if knows < level && !is_awaited(*node) {
            return Err(format!(
                "the cluster is at feature level {level}, and the program of {node} knows {knows}; it needs a newer one"
            ));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use raft_core::{Member, NodeId};

    use super::*;

    fn member(feature_level: u16) -> Member {
        let info = MemberInfo { feature_level, ..MemberInfo::default() };
        Member { info: info.encode(), auto_promote: false }
    }

    fn cluster(levels: &[u16]) -> Membership {
        let nodes = (1..).map(|number| NodeId::new(number, 1));
        Membership::from_voters(nodes.zip(levels.iter().map(|level| member(*level).info)))
    }

    #[test]
    fn the_cluster_knows_what_its_oldest_member_knows() {
        assert_eq!(of_cluster(&cluster(&[3, 2, 4])), 2);
        assert_eq!(of_cluster(&cluster(&[3, 0])), 1, "one that says nothing knows the first");
        assert_eq!(of_cluster(&Membership::default()), 1);
    }

    #[test]
    fn nobody_comes_in_or_goes_back_below_the_level() {
        let three = cluster(&[3, 3, 4]);
        let node = NodeId::new(9, 1);
        let add = |level| [MembershipStep::AddLearner { node, member: member(level) }];
        let update = |level| [MembershipStep::Update { node, member: member(level) }];
        assert_eq!(check(&three, &add(3)), Ok(()));
        assert!(check(&three, &add(2)).is_err());
        assert_eq!(check(&three, &update(3)), Ok(()), "above the level everybody may go back");
        assert!(check(&three, &update(0)).is_err());
        assert_eq!(check(&three, &[MembershipStep::Remove(node)]), Ok(()));
    }
}
