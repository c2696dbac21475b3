//! The properties of the Raft paper's Figure 3: for each one a cluster that breaks it, which the checker must
//! name. That clusters of this implementation never break them is what `random.rs`, the scripts and the
//! simulator show, all with this same checker.

#![expect(clippy::unwrap_used, reason = "a test fails on what it does not expect")]

use std::time::Duration;

use bytes::Bytes;
use raft_core::invariants::Checker;
use raft_core::{
    AppendEntries, ClusterId, Config, Entry, EntryId, EntryKind, Envelope, GroupId, HardState,
    Index, LogIdentity, Membership, Message, NodeId, Raft, Recovered, Rng, RoleKind, SnapshotMeta,
    Standing, Term, Time,
};

const IDENTITY: LogIdentity = LogIdentity { cluster: ClusterId(1), group: GroupId::FIRST };

const fn node(n: u64) -> NodeId {
    NodeId::new(n, 0)
}

/// `(term, payload)` for each entry from index 1 on.
type Log<'a> = &'a [(u64, &'static str)];

fn chained(origin: &SnapshotMeta, log: Log<'_>) -> Vec<Entry> {
    let mut digest = origin.digest;
    let mut entries = Vec::new();
    for (index, (term, payload)) in (1..).zip(log) {
        let id = EntryId::new(index, *term);
        let payload = Bytes::from_static(payload.as_bytes());
        digest = IDENTITY.chain(digest, id, EntryKind::Command, &payload);
        entries.push(Entry { id, kind: EntryKind::Command, digest, payload });
    }
    entries
}

/// A member `n` of a cluster of `size`, whose origin does not depend on `size` (so that a member can believe
/// to be alone: the way to make it lead without asking anyone).
fn member(n: u64, alone: bool, term: u64, log: Log<'_>) -> Raft {
    let config = Config::new(
        node(n),
        Duration::from_millis(200),
        Duration::from_millis(400),
        Duration::from_millis(100),
    );
    let voters = if alone { vec![n] } else { vec![1, 2, 3] };
    let membership = Membership::from_voters(voters.into_iter().map(|n| (node(n), Bytes::new())));
    let digest = IDENTITY.origin(b"one origin for all");
    let snapshot = SnapshotMeta { last_included: EntryId::ZERO, digest, membership };
    let entries = chained(&snapshot, log);
    let recovered = Recovered {
        hard_state: HardState { current_term: Term(term), voted_for: None },
        log_start: EntryId::ZERO,
        log_start_digest: digest,
        snapshot,
        entries,
    };
    Raft::new(config, IDENTITY, recovered, Rng::new(n), Time::ZERO).unwrap()
}

/// Member `n`, leading the term after `term` because it believes to be alone; its log is committed.
fn leader(n: u64, term: u64, log: Log<'_>) -> Raft {
    let mut raft = member(n, true, term, log);
    raft.set_standing(Time::ZERO, Standing::Full);
    while let Some(persist) = raft.ready().persist {
        raft.persisted(Time::ZERO, persist.ticket);
    }
    assert_eq!((raft.role(), raft.current_term()), (RoleKind::Leader, Term(term + 1)));
    raft
}

/// Member `n`, which has heard of the commit of its whole log.
fn committed(n: u64, term: u64, log: Log<'_>) -> Raft {
    let mut raft = member(n, false, term, log);
    raft.set_standing(Time::ZERO, Standing::Full);
    let last = raft.last_log();
    let message = AppendEntries {
        term: Term(term),
        prev_log: last,
        prev_digest: raft.digest_at(last.index).unwrap(),
        entries: Vec::new(),
        leader_commit: last.index,
    };
    let message = Message::AppendEntries(message);
    raft.step(Time::ZERO, Envelope { from: node(9), to: node(n), message });
    assert_eq!(raft.commit_index(), last.index);
    raft
}

#[test]
#[should_panic(expected = "Election Safety: n1 and n2 both lead in term 2")]
fn election_safety() {
    let mut checker = Checker::default();
    checker.observe_one(&leader(1, 1, &[]));
    checker.observe_one(&leader(2, 1, &[]));
}

#[test]
#[should_panic(expected = "Leader Append-Only: n1 removed or changed 2:2")]
fn leader_append_only() {
    let mut checker = Checker::default();
    checker.observe_one(&leader(1, 1, &[(1, "a")]));
    // The same leader in the same term, with another first entry before its own.
    let mut other = leader(1, 1, &[(1, "b")]);
    assert!(other.propose(Time::ZERO, vec![Bytes::new()]).is_ok());
    checker.observe_one(&other);
}

#[test]
#[should_panic(expected = "Log Matching: n1 and n2 have different entries 1 of one term")]
fn log_matching_equal_ids_are_equal_entries() {
    let mut checker = Checker::default();
    checker.observe(&[member(1, false, 1, &[(1, "a")]), member(2, false, 1, &[(1, "b")])]);
}

#[test]
#[should_panic(expected = "Log Matching")]
fn log_matching_equal_ids_mean_equal_predecessors() {
    let mut checker = Checker::default();
    let logs: [Log<'_>; 2] = [&[(1, "a"), (3, "c")], &[(2, "a"), (3, "c")]];
    checker.observe(&[member(1, false, 3, logs[0]), member(2, false, 3, logs[1])]);
}

#[test]
#[should_panic(expected = "Leader Completeness: n2 leads term 3 without the committed 1:1")]
fn leader_completeness() {
    let mut checker = Checker::default();
    checker.observe_one(&committed(1, 1, &[(1, "a")]));
    let mut usurper = member(2, true, 2, &[(2, "b")]);
    usurper.set_standing(Time::ZERO, Standing::Full);
    let ticket = usurper.ready().persist.unwrap().ticket;
    usurper.persisted(Time::ZERO, ticket);
    assert_eq!((usurper.role(), usurper.commit_index()), (RoleKind::Leader, Index::ZERO));
    checker.observe_one(&usurper);
}

#[test]
#[should_panic(expected = "State Machine Safety: n2 committed 1:2 where 1:1 had been committed")]
fn state_machine_safety() {
    let mut checker = Checker::default();
    checker.observe_one(&committed(1, 2, &[(1, "a")]));
    checker.observe_one(&committed(2, 2, &[(2, "b")]));
}

/// And none of them where nothing is wrong.
#[test]
fn a_sound_cluster_passes() {
    let mut checker = Checker::default();
    let log: Log<'_> = &[(1, "a"), (1, "b")];
    checker.observe(&[committed(1, 2, log), committed(2, 2, &log[..1]), member(3, false, 2, log)]);
    assert_eq!(checker.committed_index(), Index(2));
}
