//! One test for each rule of the Raft paper's Figure 2, named for it (docs/paper-map.md cites them).

#![expect(
    clippy::unwrap_used,
    clippy::wildcard_enum_match_arm,
    clippy::or_fun_call,
    reason = "a test names what it expects and fails on everything else"
)]

use std::time::Duration;

use bytes::Bytes;
use raft_core::{
    AppendEntries, AppendEntriesReply, AppendOutcome, ClusterId, Config, Contradiction, Digest,
    Entry, EntryId, EntryKind, Envelope, Event, GroupId, HardState, Heartbeat, HeartbeatReply,
    Index, LogIdentity, Membership, Message, NodeId, Raft, Ready, Recovered, RequestVote,
    RequestVoteReply, Rng, RoleKind, SnapshotMeta, Standing, Term, Time,
};

const ME: NodeId = NodeId::new(1, 0);
const LEADER: NodeId = NodeId::new(2, 0);
const OTHER: NodeId = NodeId::new(3, 0);

fn identity() -> LogIdentity {
    LogIdentity { cluster: ClusterId(1), group: GroupId::FIRST }
}

fn origin() -> SnapshotMeta {
    let membership = Membership::from_voters([1, 2, 3].map(|n| (NodeId::new(n, 0), Bytes::new())));
    let digest = identity().origin(&membership.encode(b""));
    SnapshotMeta { last_included: EntryId::ZERO, digest, membership }
}

/// Entries with the given terms, from index 1 on, chained.
fn entries(terms: &[u64]) -> Vec<Entry> {
    let mut digest = origin().digest;
    let mut entries = Vec::new();
    for (index, term) in (1..).zip(terms) {
        let id = EntryId::new(index, *term);
        let payload = Bytes::from(format!("{index}:{term}"));
        digest = identity().chain(digest, id, EntryKind::Command, &payload);
        entries.push(Entry { id, kind: EntryKind::Command, digest, payload });
    }
    entries
}

/// The digest of a log with these terms.
fn digest(terms: &[u64]) -> Digest {
    entries(terms).last().map_or(origin().digest, |entry| entry.digest)
}

/// A member of three in `term`, with entries of the given terms in its durable log.
fn member(term: u64, terms: &[u64]) -> Raft {
    let config = Config::new(
        ME,
        Duration::from_millis(200),
        Duration::from_millis(400),
        Duration::from_millis(100),
    );
    let snapshot = origin();
    let recovered = Recovered {
        hard_state: HardState { current_term: Term(term), voted_for: None },
        log_start: EntryId::ZERO,
        log_start_digest: snapshot.digest,
        snapshot,
        entries: entries(terms),
    };
    let mut raft = Raft::new(config, identity(), recovered, Rng::new(1), Time::ZERO).unwrap();
    raft.set_standing(Time::ZERO, Standing::Full);
    raft
}

fn step(raft: &mut Raft, from: NodeId, message: Message) {
    raft.step(raft.now(), Envelope { from, to: ME, message });
    raft.check();
}

/// Everything the member says until nothing is left to write, all writes durable at once; with the
/// entries handed out to be applied.
fn settle(raft: &mut Raft) -> (Vec<Message>, Vec<EntryId>) {
    let mut said = Vec::new();
    let mut applied = Vec::new();
    loop {
        let Ready { messages, persist, committed, .. } = raft.ready();
        said.extend(messages.into_iter().map(|envelope| envelope.message));
        applied.extend(committed.iter().map(|entry| entry.id));
        raft.check();
        match persist {
            Some(persist) => raft.persisted(raft.now(), persist.ticket),
            None => return (said, applied),
        }
    }
}

fn said(raft: &mut Raft) -> Vec<Message> {
    settle(raft).0
}

fn vote(term: u64, last_log: EntryId) -> Message {
    Message::RequestVote(RequestVote {
        term: Term(term),
        last_log,
        pre_vote: false,
        leader_transfer: false,
    })
}

fn granted(raft: &mut Raft) -> Option<bool> {
    said(raft).iter().find_map(|message| match message {
        Message::RequestVoteReply(reply) if !reply.pre_vote => Some(reply.vote_granted),
        _ => None,
    })
}

/// AppendEntries of a leader whose log has `terms`, with the entries after `prev`.
fn append(term: u64, terms: &[u64], prev: usize, commit: u64) -> Message {
    let prev_log = entries(terms)[..prev].last().map_or(EntryId::ZERO, |entry| entry.id);
    Message::AppendEntries(AppendEntries {
        term: Term(term),
        prev_log,
        prev_digest: digest(&terms[..prev]),
        entries: entries(terms)[prev..].to_vec(),
        leader_commit: Index(commit),
    })
}

fn outcome(messages: &[Message]) -> Option<&AppendOutcome> {
    messages.iter().find_map(|message| match message {
        Message::AppendEntriesReply(AppendEntriesReply { outcome, .. }) => Some(outcome),
        _ => None,
    })
}

fn terms(raft: &Raft) -> Vec<u64> {
    (1..=raft.last_log().index.0).map(|n| raft.term_at(Index(n)).unwrap().0).collect()
}

/// Lets time pass until the member acts, `times` times.
fn time_out(raft: &mut Raft, times: usize) {
    for _ in 0..times {
        raft.tick(raft.deadline().unwrap());
    }
}

/// A leader in term 2, elected with the vote of `LEADER`, with the given log before its no-op.
fn leader_of(terms: &[u64]) -> Raft {
    let mut raft = member(1, terms);
    time_out(&mut raft, 1);
    let reply = |pre_vote| {
        let reply = RequestVoteReply { term: Term(2), vote_granted: true, pre_vote };
        Message::RequestVoteReply(reply)
    };
    said(&mut raft);
    step(&mut raft, LEADER, reply(true));
    said(&mut raft);
    step(&mut raft, LEADER, reply(false));
    assert_eq!(raft.role(), RoleKind::Leader);
    raft
}

fn ack(raft: &mut Raft, from: NodeId, index: u64) {
    let outcome = AppendOutcome::Accepted { match_index: Index(index) };
    let term = raft.current_term();
    step(raft, from, Message::AppendEntriesReply(AppendEntriesReply { term, outcome }));
}

// Persistent state.

/// "Updated on stable storage before responding to RPCs": nothing is said before the ticket is back.
#[test]
fn persistent_state_is_durable_before_an_rpc_is_answered() {
    let mut raft = member(1, &[1]);
    step(&mut raft, LEADER, vote(2, EntryId::new(1, 1)));
    let ready = raft.ready();
    assert!(ready.messages.is_empty(), "a vote left before it was durable");
    let persist = ready.persist.expect("term and vote are to be written");
    let expected = HardState { current_term: Term(2), voted_for: Some(LEADER) };
    assert_eq!(persist.hard_state, Some(expected));
    raft.persisted(Time::ZERO, persist.ticket);
    assert_eq!(granted(&mut raft), Some(true));
}

// RequestVote RPC, receiver implementation.

/// Rule 1: "Reply false if term < currentTerm."
#[test]
fn request_vote_1_an_older_term_is_refused() {
    let mut raft = member(5, &[1]);
    step(&mut raft, LEADER, vote(4, EntryId::new(9, 4)));
    assert_eq!(granted(&mut raft), Some(false));
    assert_eq!(raft.current_term(), Term(5));
}

/// Rule 2: "If votedFor is null or candidateId ... grant vote": once a term, and again to the same candidate.
#[test]
fn request_vote_2_one_vote_a_term() {
    let mut raft = member(1, &[1]);
    step(&mut raft, LEADER, vote(2, EntryId::new(1, 1)));
    assert_eq!(granted(&mut raft), Some(true));
    step(&mut raft, OTHER, vote(2, EntryId::new(1, 1)));
    assert_eq!(granted(&mut raft), Some(false));
    step(&mut raft, LEADER, vote(2, EntryId::new(1, 1)));
    assert_eq!(granted(&mut raft), Some(true));
}

/// Rule 2: "... and candidate's log is at least as up-to-date as receiver's log": the later last term wins, then
/// the longer log (§5.4.1; hashicorp#94 compared the index alone, B9).
#[test]
fn request_vote_2_the_log_must_be_up_to_date() {
    let cases = [
        (EntryId::new(2, 3), true),
        (EntryId::new(3, 3), true),
        (EntryId::new(1, 4), true),
        (EntryId::new(1, 3), false),
        (EntryId::new(9, 2), false),
    ];
    for (candidate, expected) in cases {
        let mut raft = member(3, &[1, 3]);
        step(&mut raft, LEADER, vote(5, candidate));
        assert_eq!(
            granted(&mut raft),
            Some(expected),
            "candidate with {candidate}, voter with 2:3"
        );
    }
}

// AppendEntries RPC, receiver implementation.

/// Rule 1: "Reply false if term < currentTerm": the deposed leader learns the newer term.
#[test]
fn append_entries_1_an_older_term_is_refused() {
    let mut raft = member(5, &[1]);
    step(&mut raft, LEADER, append(4, &[1, 4], 1, 0));
    let replies = said(&mut raft);
    let newer = HeartbeatReply { term: Term(5), round: 0, verified: Index::ZERO };
    assert_eq!(replies, [Message::HeartbeatReply(newer)]);
    assert_eq!(terms(&raft), [1]);
}

/// Rule 2: "Reply false if log doesn't contain an entry at prevLogIndex whose term matches prevLogTerm."
#[test]
fn append_entries_2_the_previous_entry_must_match() {
    let mut raft = member(4, &[1, 1, 2]);
    step(&mut raft, LEADER, append(4, &[1, 1, 4, 4], 3, 0));
    let expected = AppendOutcome::Rejected { prev_log_index: Index(3), hint: EntryId::new(3, 2) };
    assert_eq!(outcome(&said(&mut raft)), Some(&expected));
    assert_eq!(terms(&raft), [1, 1, 2]);
}

/// Rule 3: "If an existing entry conflicts with a new one, delete the existing entry and all that follow it."
#[test]
fn append_entries_3_conflicting_entries_are_deleted() {
    let mut raft = member(4, &[1, 2, 2, 2]);
    step(&mut raft, LEADER, append(4, &[1, 4], 1, 0));
    let expected = AppendOutcome::Accepted { match_index: Index(2) };
    assert_eq!(outcome(&said(&mut raft)), Some(&expected));
    assert_eq!(terms(&raft), [1, 4]);
}

/// Rule 3, the other half: what matches is never deleted, however short or late the message (B2, the seed's
/// third bug).
#[test]
fn append_entries_3_matching_entries_are_kept() {
    let mut raft = member(4, &[1, 4, 4, 4]);
    step(&mut raft, LEADER, append(4, &[1, 4], 1, 0));
    let expected = AppendOutcome::Accepted { match_index: Index(2) };
    assert_eq!(outcome(&said(&mut raft)), Some(&expected));
    assert_eq!(terms(&raft), [1, 4, 4, 4]);
}

/// Rule 4: "Append any new entries not already in the log", and acknowledge them once they are durable.
#[test]
fn append_entries_4_new_entries_are_appended() {
    let mut raft = member(4, &[1]);
    step(&mut raft, LEADER, append(4, &[1, 4, 4], 1, 0));
    let ready = raft.ready();
    assert!(ready.messages.is_empty(), "an acknowledgement left before the entries were durable");
    let persist = ready.persist.expect("entries are to be written");
    assert_eq!(persist.entries.len(), 2);
    raft.persisted(Time::ZERO, persist.ticket);
    let expected = AppendOutcome::Accepted { match_index: Index(3) };
    assert_eq!(outcome(&said(&mut raft)), Some(&expected));
}

/// Rule 5: "If leaderCommit > commitIndex, set commitIndex = min(leaderCommit, index of last new entry)": not of
/// the last entry, which may be an older one of our own (B3).
#[test]
fn append_entries_5_commit_stops_at_the_last_new_entry() {
    let mut raft = member(4, &[1, 2, 2]);
    step(&mut raft, LEADER, append(4, &[1], 0, 3));
    let (_, applied) = settle(&mut raft);
    assert_eq!(raft.commit_index(), Index(1));
    assert_eq!(applied, [EntryId::new(1, 1)]);
}

// Rules for all servers.

/// "If commitIndex > lastApplied: increment lastApplied, apply log[lastApplied]": in order, each once.
#[test]
fn all_servers_apply_what_is_committed_in_order_and_once() {
    let mut raft = member(4, &[1]);
    step(&mut raft, LEADER, append(4, &[1, 4, 4], 1, 2));
    assert_eq!(settle(&mut raft).1, [EntryId::new(1, 1), EntryId::new(2, 4)]);
    step(&mut raft, LEADER, append(4, &[1, 4, 4], 1, 3));
    assert_eq!(settle(&mut raft).1, [EntryId::new(3, 4)]);
    raft.applied(Time::ZERO, Index(3));
    assert_eq!(raft.last_applied(), Index(3));
}

/// "If RPC request or response contains term T > currentTerm: set currentTerm = T, convert to follower."
/// The seed's second and fourth bugs forgot the one or the other.
#[test]
fn all_servers_adopt_a_newer_term_and_follow() {
    let mut raft = leader_of(&[1]);
    step(&mut raft, OTHER, append(9, &[1, 9], 1, 0));
    assert_eq!((raft.role(), raft.current_term()), (RoleKind::Follower, Term(9)));
    assert_eq!(raft.leader(), Some(OTHER));
    let mut raft = leader_of(&[1]);
    let reply = HeartbeatReply { term: Term(7), round: 1, verified: Index::ZERO };
    step(&mut raft, OTHER, Message::HeartbeatReply(reply));
    assert_eq!((raft.role(), raft.current_term()), (RoleKind::Follower, Term(7)));
    assert_eq!(raft.leader(), None);
}

/// Not in the paper: what nobody can have reached is reported, and neither believed nor stumbled over.
#[test]
fn all_servers_report_absurd_terms_and_indexes() {
    let mut raft = member(4, &[1]);
    step(&mut raft, LEADER, vote(u64::MAX, EntryId::new(9, 9)));
    let mut entry = entries(&[1]);
    entry[0].id = EntryId::new(1, 4);
    let append = AppendEntries {
        term: Term(4),
        prev_log: EntryId::new(u64::MAX, 4),
        prev_digest: Digest::default(),
        entries: entry,
        leader_commit: Index(u64::MAX),
    };
    step(&mut raft, LEADER, Message::AppendEntries(append));
    let events = raft.ready().events;
    let absurd = Event::Contradiction { from: LEADER, what: Contradiction::Absurd };
    assert_eq!(events.iter().filter(|event| **event == absurd).count(), 2, "{events:?}");
    assert_eq!((raft.current_term(), raft.commit_index()), (Term(4), Index::ZERO));
}

// Rules for followers.

/// "Respond to RPCs from candidates and leaders."
#[test]
fn followers_answer_leaders() {
    let mut raft = member(4, &[1]);
    let heartbeat = Heartbeat { term: Term(4), leader_commit: Index::ZERO, round: 7 };
    step(&mut raft, LEADER, Message::Heartbeat(heartbeat));
    let expected = HeartbeatReply { term: Term(4), round: 7, verified: Index::ZERO };
    assert_eq!(said(&mut raft), [Message::HeartbeatReply(expected)]);
    assert_eq!(raft.leader(), Some(LEADER));
}

/// "If election timeout elapses without receiving AppendEntries from current leader or granting vote to
/// candidate: convert to candidate", after asking whether it could win (thesis §9.6).
#[test]
fn followers_campaign_when_nobody_is_heard() {
    let mut raft = member(1, &[1]);
    let first = raft.deadline().unwrap();
    raft.tick(first);
    assert_eq!((raft.role(), raft.current_term()), (RoleKind::PreCandidate, Term(1)));
    let requests = said(&mut raft);
    assert_eq!(requests.len(), 2);
    assert!(requests.iter().all(|message| matches!(
        message,
        Message::RequestVote(RequestVote { pre_vote: true, term: Term(2), .. })
    )));
    let mut raft = member(1, &[1]);
    raft.step(first, Envelope { from: LEADER, to: ME, message: append(1, &[1], 1, 0) });
    assert!(raft.deadline().unwrap() > first, "hearing the leader puts the election off");
}

// Rules for candidates.

/// "On conversion to candidate, start election: increment currentTerm, vote for self, reset election timer,
/// send RequestVote RPCs to all other servers": the requests only once the vote is durable (B22).
#[test]
fn candidates_start_an_election() {
    let mut raft = member(1, &[1]);
    raft.campaign(Time::ZERO);
    assert_eq!((raft.role(), raft.current_term()), (RoleKind::Candidate, Term(2)));
    assert_eq!(raft.voted_for(), Some(ME));
    let ready = raft.ready();
    assert!(ready.messages.is_empty(), "votes were asked for before the own vote was durable");
    raft.persisted(Time::ZERO, ready.persist.unwrap().ticket);
    assert_eq!(said(&mut raft).len(), 2);
}

/// "If votes received from majority of servers: become leader": the own vote and one of two others. The
/// seed's first bug needed all three.
#[test]
fn candidates_win_with_a_majority() {
    let raft = leader_of(&[1]);
    assert_eq!((raft.current_term(), raft.last_log()), (Term(2), EntryId::new(2, 2)));
}

/// "If AppendEntries RPC received from new leader: convert to follower", in the same term and without
/// giving the vote away again (B21).
#[test]
fn candidates_follow_a_new_leader() {
    let mut raft = member(1, &[1]);
    raft.campaign(Time::ZERO);
    said(&mut raft);
    step(&mut raft, LEADER, append(2, &[1, 2], 1, 0));
    assert_eq!((raft.role(), raft.leader()), (RoleKind::Follower, Some(LEADER)));
    assert_eq!(raft.voted_for(), Some(ME));
    step(&mut raft, OTHER, vote(2, EntryId::new(9, 2)));
    assert_eq!(granted(&mut raft), Some(false));
}

/// "If election timeout elapses: start new election", with a new random timeout (the seed's sixth bug drew
/// it once).
#[test]
fn candidates_try_again() {
    let mut raft = member(1, &[1]);
    raft.campaign(Time::ZERO);
    let mut timeouts = std::collections::BTreeSet::new();
    for _ in 0..8 {
        let deadline = raft.deadline().unwrap();
        raft.tick(deadline);
        timeouts.insert(raft.deadline().unwrap().since(deadline));
        assert_eq!(raft.role(), RoleKind::PreCandidate);
    }
    assert!(timeouts.len() > 4, "timeouts are drawn anew: {timeouts:?}");
    let range = Duration::from_millis(200)..=Duration::from_millis(400);
    assert!(timeouts.iter().all(|timeout| range.contains(timeout)));
}

// Rules for leaders.

/// "Upon election: send initial empty AppendEntries RPCs to each server; repeat during idle periods."
#[test]
fn leaders_assert_themselves() {
    let mut raft = leader_of(&[1]);
    let first = said(&mut raft);
    assert_eq!(first.iter().filter(|m| matches!(m, Message::AppendEntries(_))).count(), 2);
    time_out(&mut raft, 1);
    let heartbeats = said(&mut raft);
    assert_eq!(heartbeats.iter().filter(|m| matches!(m, Message::Heartbeat(_))).count(), 2);
}

/// "If command received from client: append entry to local log, respond after entry applied."
#[test]
fn leaders_append_commands_and_answer_after_the_commit() {
    let mut raft = leader_of(&[1]);
    said(&mut raft);
    let id = raft.propose(Time::ZERO, vec![Bytes::from_static(b"x")]).unwrap();
    assert_eq!(id, EntryId::new(3, 2));
    assert_eq!(settle(&mut raft).1, [], "applied before a majority has it");
    ack(&mut raft, OTHER, 3);
    assert_eq!(settle(&mut raft).1, [EntryId::new(1, 1), EntryId::new(2, 2), id]);
}

/// "If last log index >= nextIndex for a follower: send AppendEntries RPC with log entries starting at
/// nextIndex. If successful: update nextIndex and matchIndex."
#[test]
fn leaders_replicate_from_next_index() {
    let mut raft = leader_of(&[1]);
    said(&mut raft);
    ack(&mut raft, OTHER, 2);
    said(&mut raft);
    raft.propose(Time::ZERO, vec![Bytes::from_static(b"x")]).unwrap();
    let sent = said(&mut raft);
    let prev: Vec<EntryId> = sent
        .iter()
        .filter_map(|message| match message {
            Message::AppendEntries(m) => Some(m.prev_log),
            _ => None,
        })
        .collect();
    assert_eq!(prev, [EntryId::new(2, 2)], "to the one whose match is known, from there on");
    let (_, progress) = raft.progress().find(|(node, _)| *node == OTHER).unwrap();
    assert_eq!((progress.match_index(), progress.next_index()), (Index(2), Index(4)));
}

/// "If AppendEntries fails because of log inconsistency: decrement nextIndex and retry": by whole terms.
#[test]
fn leaders_back_off_after_a_conflict() {
    let mut raft = leader_of(&[1, 1, 1, 1, 1]);
    said(&mut raft);
    let outcome = AppendOutcome::Rejected { prev_log_index: Index(5), hint: EntryId::new(2, 1) };
    let reply = AppendEntriesReply { term: Term(2), outcome };
    step(&mut raft, OTHER, Message::AppendEntriesReply(reply));
    let retry = said(&mut raft).into_iter().find_map(|message| match message {
        Message::AppendEntries(m) => Some((m.prev_log, m.entries.len())),
        _ => None,
    });
    assert_eq!(retry, Some((EntryId::new(2, 1), 4)));
}

/// "If there exists an N such that N > commitIndex, a majority of matchIndex[i] >= N, and log[N].term ==
/// currentTerm: set commitIndex = N": entries of older terms are not counted (Figure 8, B7).
#[test]
fn leaders_commit_only_entries_of_their_own_term_by_counting() {
    let mut raft = leader_of(&[1, 1]);
    said(&mut raft);
    ack(&mut raft, OTHER, 2);
    assert_eq!(raft.commit_index(), Index::ZERO);
    ack(&mut raft, OTHER, 3);
    assert_eq!(raft.commit_index(), Index(3));
}

/// The same rule with the leader's own disk in parallel (thesis §10.2.1): it counts only what is durable
/// (B4), and a majority of others suffices without it.
#[test]
fn leaders_count_their_own_disk_like_any_other() {
    let mut raft = leader_of(&[1]);
    let ready = raft.ready();
    let appends = ready.messages.iter().filter(|m| matches!(m.message, Message::AppendEntries(_)));
    assert_eq!(appends.count(), 2, "entries leave while the own disk is still writing");
    ack(&mut raft, OTHER, 2);
    assert_eq!(raft.commit_index(), Index::ZERO, "one of three has it durably");
    ack(&mut raft, LEADER, 2);
    assert_eq!(raft.commit_index(), Index(2), "two of three have it durably");
    assert_eq!(raft.durable_index(), Index(1));
}
