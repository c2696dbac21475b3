//! Majorities, of one configuration or of both halves of a joint one (§6).

use alloc::collections::BTreeSet;
use alloc::vec::Vec;

use crate::membership::Membership;
use crate::mutant;
use crate::types::NodeId;

/// The verdict of an election so far.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum VoteResult {
    /// A quorum of every half granted.
    Won,
    /// Some half can no longer reach a quorum.
    Lost,
    /// Still open.
    Pending,
}

/// The highest value that a quorum of every half has reached.
///
/// `value` tells what a voter has reached; a voter that has reached nothing is `T::default()`.
pub(crate) fn reached<T: Ord + Copy + Default>(
    membership: &Membership,
    value: impl Fn(NodeId) -> T,
) -> T {
    if mutant::is_active(19) && !membership.learners().is_empty() {
        let mut values: Vec<T> =
            membership.voters().iter().chain(membership.learners()).map(|n| value(*n)).collect();
        values.sort_unstable();
        return values[values.len() - (membership.voters().len() / 2 + 1)];
    }
    let new = reached_by_majority(membership.voters(), &value);
    if membership.is_joint() {
        new.min(reached_by_majority(membership.outgoing(), &value))
    } else {
        new
    }
}

fn reached_by_majority<T: Ord + Copy + Default>(
    voters: &BTreeSet<NodeId>,
    value: &impl Fn(NodeId) -> T,
) -> T {
    let mut values: Vec<T> = voters.iter().map(|node| value(*node)).collect();
    // Sorted anew each time: keeping an order up to date by hand is how openraft#1802 (B1) committed with
    // a minority. Nine voters cost nothing.
    if !mutant::is_active(10) {
        values.sort_unstable();
    }
    // With n voters the majority is n/2 + 1; the value that so many have reached stands at (n - 1) / 2 of the
    // ascending order (hashicorp 163a55f, B8, took n/2 and committed with 2 of 4).
    match values.len().checked_sub(1) {
        Some(last) => values[last / 2],
        None => T::default(),
    }
}

/// Counts votes. `vote` tells what a voter said, if it did.
pub(crate) fn vote_result(
    membership: &Membership,
    vote: impl Fn(NodeId) -> Option<bool>,
) -> VoteResult {
    let new = majority_vote(membership.voters(), &vote);
    if !membership.is_joint() {
        return new;
    }
    match (new, majority_vote(membership.outgoing(), &vote)) {
        (VoteResult::Won, VoteResult::Won) => VoteResult::Won,
        (VoteResult::Lost, _) | (_, VoteResult::Lost) => VoteResult::Lost,
        _ => VoteResult::Pending,
    }
}

fn majority_vote(voters: &BTreeSet<NodeId>, vote: &impl Fn(NodeId) -> Option<bool>) -> VoteResult {
    let majority = voters.len() / 2 + 1;
    let granted = voters.iter().filter(|node| vote(**node) == Some(true)).count();
    let refused = voters.iter().filter(|node| vote(**node) == Some(false)).count();
    if granted >= majority {
        VoteResult::Won
    } else if voters.len() - refused < majority {
        VoteResult::Lost
    } else {
        VoteResult::Pending
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::membership::{Member, MembershipStep};
    use bytes::Bytes;
    use proptest::prelude::*;

    fn node(n: u64) -> NodeId {
        NodeId::new(n, 0)
    }

    fn of(voters: &BTreeSet<u64>) -> Membership {
        Membership::from_voters(voters.iter().map(|n| (node(*n), Bytes::new())))
    }

    /// A joint configuration from one set of voters to another, made with the public steps.
    fn joint(from: &BTreeSet<u64>, to: &BTreeSet<u64>) -> Membership {
        let mut steps = Vec::new();
        for n in to.difference(from) {
            steps.push(MembershipStep::AddLearner { node: node(*n), member: Member::default() });
            steps.push(MembershipStep::Promote(node(*n)));
        }
        for n in from.difference(to) {
            steps.push(MembershipStep::Remove(node(*n)));
        }
        if steps.is_empty() {
            return of(from);
        }
        of(from).change(&steps).unwrap()
    }

    /// The definition: the largest value such that more than half of the voters have reached it.
    fn oracle(voters: &BTreeSet<u64>, values: &[u64]) -> u64 {
        (0..=20)
            .rev()
            .find(|value| {
                2 * voters
                    .iter()
                    .filter(|n| values[usize::try_from(**n).unwrap()] >= *value)
                    .count()
                    > voters.len()
            })
            .unwrap_or(0)
    }

    proptest! {
        #[test]
        fn reached_equals_brute_force(
            from in prop::collection::btree_set(1u64..8, 1..7),
            to in prop::collection::btree_set(1u64..8, 1..7),
            values in prop::collection::vec(0u64..20, 8),
        ) {
            let membership = joint(&from, &to);
            let value = |id: NodeId| values[usize::try_from(id.member.0).unwrap()];
            let expected = if from == to { oracle(&from, &values) }
                else { oracle(&from, &values).min(oracle(&to, &values)) };
            prop_assert_eq!(reached(&membership, value), expected);
        }

        #[test]
        fn votes_equal_brute_force(
            from in prop::collection::btree_set(1u64..8, 1..7),
            to in prop::collection::btree_set(1u64..8, 1..7),
            votes in prop::collection::vec(prop::option::of(any::<bool>()), 8),
        ) {
            let membership = joint(&from, &to);
            let says = |n: u64| votes[usize::try_from(n).unwrap()];
            let wins = |voters: &BTreeSet<u64>, missing: bool| {
                2 * voters.iter().filter(|n| says(**n).unwrap_or(missing)).count() > voters.len()
            };
            let expected = if wins(&from, false) && wins(&to, false) { VoteResult::Won }
                else if !wins(&from, true) || !wins(&to, true) { VoteResult::Lost }
                else { VoteResult::Pending };
            prop_assert_eq!(vote_result(&membership, |id| says(id.member.0)), expected);
        }
    }

    /// hashicorp 163a55f (B8): two of four are no majority.
    #[test]
    fn two_of_four_do_not_commit() {
        let membership = of(&BTreeSet::from([1, 2, 3, 4]));
        let value = |id: NodeId| if id.member.0 <= 2 { 5u64 } else { 1 };
        assert_eq!(reached(&membership, value), 1);
    }

    /// openraft beb0302b (B28): a joint configuration counts both halves from its first moment.
    #[test]
    fn a_joint_configuration_needs_both_halves() {
        let membership = joint(&BTreeSet::from([1]), &BTreeSet::from([1, 2, 3]));
        let value = |id: NodeId| u64::from(id.member.0 == 1);
        assert_eq!(reached(&membership, value), 0);
    }
}
