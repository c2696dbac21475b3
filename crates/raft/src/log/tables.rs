//! What recovery decides, as tables: one row per case, and exactly one row for every combination of facts.
//!
//! docs/disk-format.md prints the same rows with the reasons. Facts are established elsewhere; nothing is
//! decided elsewhere.

/// One row: the facts that it asks for (`None`: does not matter) and what is then the case.
pub(super) struct Row<C, const N: usize> {
    pub(super) case: C,
    pub(super) when: [Option<bool>; N],
}

const Y: Option<bool> = Some(true);
const N: Option<bool> = Some(false);
const X: Option<bool> = None;

fn matches<C, const M: usize>(row: &Row<C, M>, facts: [bool; M]) -> bool {
    row.when.iter().zip(facts).all(|(want, fact)| want.is_none_or(|want| want == fact))
}

/// The case of the one row that matches. The tables are complete, which a test proves; `default` is for
/// the compiler.
pub(super) fn decide<C: Copy, const M: usize>(
    rows: &[Row<C, M>],
    facts: [bool; M],
    default: C,
) -> C {
    rows.iter().find(|row| matches(row, facts)).map_or(default, |row| row.case)
}

/// What a data directory as a whole is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum StartCase {
    /// A file is of a newer format: refuse.
    Newer,
    /// Nothing here, or a first open that was interrupted: mint an identity.
    Fresh,
    /// Files of a node without the file that says which: refuse.
    IdentityLost,
    /// No two slots agree: amnesic.
    Amnesic,
    /// A node that belongs to no cluster.
    Empty,
    /// Records of a cluster without the file that says which: refuse.
    ClusterLost,
    /// The cluster record names another node: refuse.
    OtherNode,
    /// A member whose log is gone: refuse.
    LogLost,
    /// A member: recover its log.
    Formed,
}

/// Facts: newer format somewhere, identity intact, promises agree, promises unused (no cluster yet, or no
/// such file), cluster record present and intact, it names this node, segments exist, they hold records.
/// A damaged file is one that is present and not intact: it counts as *used*.
pub(super) const START: &[Row<StartCase, 8>] = &[
    Row { case: StartCase::Newer, when: [Y, X, X, X, X, X, X, X] },
    Row { case: StartCase::IdentityLost, when: [N, N, X, N, X, X, X, X] },
    Row { case: StartCase::IdentityLost, when: [N, N, X, Y, Y, X, X, X] },
    Row { case: StartCase::IdentityLost, when: [N, N, X, Y, N, X, Y, X] },
    Row { case: StartCase::IdentityLost, when: [N, N, X, Y, N, X, N, Y] },
    Row { case: StartCase::Fresh, when: [N, N, X, Y, N, X, N, N] },
    Row { case: StartCase::Amnesic, when: [N, Y, N, X, X, X, X, X] },
    Row { case: StartCase::ClusterLost, when: [N, Y, Y, X, N, X, X, Y] },
    Row { case: StartCase::ClusterLost, when: [N, Y, Y, N, N, X, X, N] },
    Row { case: StartCase::Empty, when: [N, Y, Y, Y, N, X, X, N] },
    Row { case: StartCase::OtherNode, when: [N, Y, Y, X, Y, N, X, X] },
    Row { case: StartCase::LogLost, when: [N, Y, Y, X, Y, Y, N, X] },
    Row { case: StartCase::Formed, when: [N, Y, Y, X, Y, Y, Y, X] },
];

/// What a segment's header says about the file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum HeaderCase {
    /// Neither copy is intact: refuse.
    Damaged,
    /// Of a newer format: refuse.
    Newer,
    /// Of another cluster: refuse.
    OtherCluster,
    /// Of another group: refuse.
    OtherGroup,
    /// Of another node: refuse.
    OtherNode,
    /// Its name or length is not the header's: a stale or misplaced file; refuse.
    Misplaced,
    /// It belongs here.
    Good,
}

/// Facts: a copy is of a newer format, a copy is intact, same cluster, same group, same node, right place.
pub(super) const HEADER: &[Row<HeaderCase, 6>] = &[
    Row { case: HeaderCase::Newer, when: [Y, X, X, X, X, X] },
    Row { case: HeaderCase::Damaged, when: [N, N, X, X, X, X] },
    Row { case: HeaderCase::OtherCluster, when: [N, Y, N, X, X, X] },
    Row { case: HeaderCase::OtherGroup, when: [N, Y, Y, N, X, X] },
    Row { case: HeaderCase::OtherNode, when: [N, Y, Y, Y, N, X] },
    Row { case: HeaderCase::Misplaced, when: [N, Y, Y, Y, Y, N] },
    Row { case: HeaderCase::Good, when: [N, Y, Y, Y, Y, Y] },
];

/// What stands where the next batch would begin.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum TailCase {
    /// A batch with every sector intact: accept.
    Complete,
    /// Nothing, or rot of which a clean stop says that nothing is stored there: the log ends here.
    End,
    /// A batch that was never synced, every bad sector of it unwritten: drop.
    Torn,
    /// A batch that may have been synced has a rotted sector, and no peer could tell: drop.
    AmbiguousAlone,
    /// The same in a cluster, and not even its records are known: refuse.
    Ambiguous,
    /// A batch that was synced has a bad sector, and not all its records are known: refuse.
    Damaged,
    /// A batch that was, or may have been, synced has a bad sector, and every record of it is known by name: accept, and
    /// put it together again; what payloads are missing, peers have.
    Salvaged,
    /// A batch that was synced is gone: refuse.
    Lost,
}

/// Facts: a sector of a later batch than the last accepted one exists, all sectors of that batch are
/// intact, one is rotted, something proves that it was synced, this is the only voter, every record of it is known, the
/// process before has stopped cleanly right after the last accepted batch.
pub(super) const TAIL: &[Row<TailCase, 7>] = &[
    Row { case: TailCase::Complete, when: [X, Y, X, X, X, X, X] },
    Row { case: TailCase::End, when: [N, N, N, N, X, X, X] },
    Row { case: TailCase::End, when: [N, N, Y, N, X, X, Y] },
    Row { case: TailCase::Torn, when: [Y, N, N, N, X, X, X] },
    Row { case: TailCase::AmbiguousAlone, when: [N, N, Y, N, Y, X, N] },
    Row { case: TailCase::AmbiguousAlone, when: [Y, N, Y, N, Y, X, X] },
    Row { case: TailCase::Ambiguous, when: [N, N, Y, N, N, N, N] },
    Row { case: TailCase::Ambiguous, when: [Y, N, Y, N, N, N, X] },
    Row { case: TailCase::Salvaged, when: [N, N, Y, N, N, Y, N] },
    Row { case: TailCase::Salvaged, when: [Y, N, Y, N, N, Y, X] },
    Row { case: TailCase::Salvaged, when: [X, N, X, Y, X, Y, X] },
    Row { case: TailCase::Damaged, when: [Y, N, X, Y, X, N, X] },
    Row { case: TailCase::Lost, when: [N, N, X, Y, X, N, X] },
];

#[cfg(test)]
mod tests {
    use super::*;

    fn exactly_one<C: Copy + PartialEq + std::fmt::Debug, const M: usize>(rows: &[Row<C, M>]) {
        let mut used = vec![false; rows.len()];
        for bits in 0..1u32 << M {
            let facts: [bool; M] = std::array::from_fn(|fact| bits & (1 << fact) != 0);
            let matching: Vec<usize> =
                (0..rows.len()).filter(|row| matches(&rows[*row], facts)).collect();
            assert_eq!(matching.len(), 1, "{facts:?} matches rows {matching:?}");
            used[matching[0]] = true;
            assert_eq!(decide(rows, facts, rows[0].case), rows[matching[0]].case);
        }
        assert!(used.iter().all(|used| *used), "a row that nothing matches");
    }

    #[test]
    fn exactly_one_row_matches_every_combination_of_facts() {
        exactly_one(START);
        exactly_one(HEADER);
        exactly_one(TAIL);
    }
}
