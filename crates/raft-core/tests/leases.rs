//! Lease reads (thesis §6.4.1): what a voter promises, and what a leader may rely on.

#![expect(clippy::unwrap_used, reason = "a test fails on what it does not expect")]

use std::time::Duration;

use bytes::Bytes;
use raft_core::{
    AppendEntriesReply, AppendOutcome, ClusterId, Config, EntryId, Envelope, GroupId, HardState,
    Heartbeat, HeartbeatReply, Index, Lease, LogIdentity, Membership, MembershipStep, Message,
    NodeId, Raft, ReadState, Recovered, RequestVote, RequestVoteReply, Rng, RoleKind, SnapshotMeta,
    Standing, Term, Time,
};

const ME: NodeId = NodeId::new(1, 0);
const LEADER: NodeId = NodeId::new(2, 0);
const OTHER: NodeId = NodeId::new(3, 0);
const LEASE: Lease = Lease { length: Duration::from_millis(500), drift_ppm: 1000 };

const fn ms(ms: u64) -> Time {
    Time::from_micros(ms * 1000)
}

/// A member of three, shortest election timeout 200 ms, started long ago; with or without lease reads.
fn member(lease: Option<Lease>) -> Raft {
    let config = Config::new(
        ME,
        Duration::from_millis(200),
        Duration::from_millis(400),
        Duration::from_millis(100),
    );
    let identity = LogIdentity { cluster: ClusterId(1), group: GroupId::FIRST };
    let voters = [ME, LEADER, OTHER].map(|node| (node, Bytes::new()));
    let membership =
        Membership::from_voters(voters).change(&[MembershipStep::SetLease(lease)]).unwrap();
    let digest = identity.origin(&membership.encode(b""));
    let snapshot = SnapshotMeta { last_included: EntryId::ZERO, digest, membership };
    let recovered = Recovered {
        hard_state: HardState { current_term: Term(5), voted_for: None },
        log_start: EntryId::ZERO,
        log_start_digest: digest,
        snapshot,
        entries: Vec::new(),
    };
    let mut raft = Raft::new(config, identity, recovered, Rng::new(1), Time::ZERO).unwrap();
    raft.set_standing(ms(1000), Standing::Full);
    raft
}

fn step(raft: &mut Raft, now: Time, from: NodeId, message: Message) -> Vec<Message> {
    raft.step(now, Envelope { from, to: ME, message });
    said(raft, now)
}

fn said(raft: &mut Raft, now: Time) -> Vec<Message> {
    let mut said = Vec::new();
    loop {
        let ready = raft.ready();
        said.extend(ready.messages.into_iter().map(|envelope| envelope.message));
        match ready.persist {
            Some(persist) => raft.persisted(now, persist.ticket),
            None => return said,
        }
    }
}

fn heartbeat(term: u64) -> Message {
    Message::Heartbeat(Heartbeat { term: Term(term), leader_commit: Index::ZERO, round: 1 })
}

fn vote(term: u64) -> Message {
    let last_log = EntryId::ZERO;
    Message::RequestVote(RequestVote {
        term: Term(term),
        last_log,
        pre_vote: false,
        leader_transfer: false,
    })
}

fn granted(said: &[Message]) -> bool {
    said.iter().any(|message| {
        matches!(message, Message::RequestVoteReply(reply) if reply.vote_granted && !reply.pre_vote)
    })
}

/// The promise outlives the term and the role in which it was made: a late message of a newer term does not
/// free the voter.
#[test]
fn a_promise_outlives_terms_and_roles() {
    let mut raft = member(Some(LEASE));
    step(&mut raft, ms(1000), LEADER, heartbeat(5));
    let refusal = RequestVoteReply { term: Term(7), vote_granted: false, pre_vote: true };
    step(&mut raft, ms(1001), OTHER, Message::RequestVoteReply(refusal));
    assert_eq!((raft.current_term(), raft.leader()), (Term(7), None));
    assert!(!granted(&step(&mut raft, ms(1499), OTHER, vote(8))), "within the lease");
    assert!(granted(&step(&mut raft, ms(1501), OTHER, vote(8))), "after it");
}

/// A voter does not break its promise for its own sake either, however short its election timeout is.
#[test]
fn a_promise_binds_the_voter_itself() {
    let mut raft = member(Some(LEASE));
    step(&mut raft, ms(1000), LEADER, heartbeat(5));
    let mut now = ms(1000);
    while now < ms(1500) {
        assert_eq!(raft.role(), RoleKind::Follower, "campaigns at {now:?} within the lease");
        now = raft.deadline().unwrap();
        raft.tick(now);
    }
    assert_eq!(raft.role(), RoleKind::PreCandidate);
}

/// The leader to which the promise was made may come back for the vote: its old lease died with its process.
#[test]
fn the_leader_itself_is_not_refused() {
    let mut raft = member(Some(LEASE));
    step(&mut raft, ms(1000), LEADER, heartbeat(5));
    assert!(granted(&step(&mut raft, ms(1001), LEADER, vote(6))));
}

fn elect(raft: &mut Raft, now: Time) {
    raft.campaign(now);
    said(raft, now);
    let term = raft.current_term();
    let reply = RequestVoteReply { term, vote_granted: true, pre_vote: false };
    step(raft, now, LEADER, Message::RequestVoteReply(reply));
    assert_eq!(raft.role(), RoleKind::Leader);
    accept(raft, now);
}

/// One follower has everything.
fn accept(raft: &mut Raft, now: Time) {
    let (term, match_index) = (raft.current_term(), raft.last_log().index);
    let outcome = AppendOutcome::Accepted { match_index };
    let reply = AppendEntriesReply { term, outcome };
    step(raft, now, LEADER, Message::AppendEntriesReply(reply));
    assert_eq!(raft.commit_index(), match_index);
}

/// One follower answers everything that it was asked in a new round.
fn answer_round(raft: &mut Raft, now: Time) {
    raft.tick(raft.deadline().unwrap().max(now));
    let round = said(raft, now).iter().find_map(|message| match message {
        Message::Heartbeat(heartbeat) if heartbeat.round > 0 => Some(heartbeat.round),
        Message::Heartbeat(_)
        | Message::RequestVote(_)
        | Message::RequestVoteReply(_)
        | Message::AppendEntries(_)
        | Message::AppendEntriesReply(_)
        | Message::HeartbeatReply(_)
        | Message::InstallSnapshot(_)
        | Message::InstallSnapshotReply(_)
        | Message::TimeoutNow(_)
        | Message::ReadIndex(_)
        | Message::ReadIndexReply(_) => None,
    });
    let reply = HeartbeatReply {
        term: raft.current_term(),
        round: round.unwrap(),
        verified: raft.last_log().index,
    };
    step(raft, now, LEADER, Message::HeartbeatReply(reply));
}

/// Whether a read is answered at once.
fn reads_by_lease(raft: &mut Raft, now: Time) -> bool {
    raft.read_index(now, 1);
    let index = Some(raft.commit_index());
    raft.ready().reads.contains(&ReadState { id: 1, index })
}

#[test]
fn a_leader_reads_by_its_lease_until_it_ends() {
    let mut raft = member(Some(LEASE));
    elect(&mut raft, ms(1000));
    assert!(!reads_by_lease(&mut raft, ms(1000)), "nobody has promised anything yet");
    answer_round(&mut raft, ms(1100));
    let began = raft.now();
    assert!(reads_by_lease(&mut raft, began.after(Duration::from_millis(499))));
    assert!(!reads_by_lease(&mut raft, began.after(Duration::from_millis(500))), "less the drift");
}

/// A lease that was only just agreed to rests on nothing: the answers of rounds that began before say nothing
/// of it.
#[test]
fn a_new_lease_counts_from_the_next_round() {
    let mut raft = member(None);
    elect(&mut raft, ms(1000));
    answer_round(&mut raft, ms(1100));
    let steps = vec![MembershipStep::SetLease(Some(LEASE))];
    raft.change_membership(raft.now(), 1, steps, Bytes::new()).unwrap();
    let now = raft.now();
    said(&mut raft, now);
    assert!(!reads_by_lease(&mut raft, now), "not even committed");
    accept(&mut raft, now);
    assert!(!reads_by_lease(&mut raft, now), "committed, and nobody has promised it yet");
    answer_round(&mut raft, now);
    let now = raft.now();
    assert!(reads_by_lease(&mut raft, now));
}

/// openraft#1747 (B40): handing leadership over ends the lease for the rest of the term.
#[test]
fn a_transfer_ends_the_lease() {
    let mut raft = member(Some(LEASE));
    elect(&mut raft, ms(1000));
    answer_round(&mut raft, ms(1100));
    let now = raft.now();
    assert!(reads_by_lease(&mut raft, now));
    raft.transfer_leadership(now, Some(LEADER)).unwrap();
    assert!(!reads_by_lease(&mut raft, now));
}
