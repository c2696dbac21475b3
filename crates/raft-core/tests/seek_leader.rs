//! After a restart nobody waits a whole election timeout to find out that nobody leads.

#![expect(clippy::unwrap_used, reason = "a test fails on what it does not expect")]

use std::time::Duration;

use bytes::Bytes;
use raft_core::{
    ClusterId, Config, EntryId, Envelope, GroupId, HardState, Heartbeat, Index, LogIdentity,
    Membership, Message, NodeId, Raft, Recovered, RequestVoteReply, Rng, RoleKind, SnapshotMeta,
    Standing, Term, Time,
};

const FIRST: NodeId = NodeId::new(1, 0);
const SECOND: NodeId = NodeId::new(2, 0);
const THIRD: NodeId = NodeId::new(3, 0);

const fn ms(ms: u64) -> Time {
    Time::from_micros(ms * 1000)
}

/// A member of three in term 5 that has just been confirmed: election timeouts 200 to 400 ms, heartbeats every 100.
fn member(node: NodeId, seed: u64) -> Raft {
    let config = Config::new(
        node,
        Duration::from_millis(200),
        Duration::from_millis(400),
        Duration::from_millis(100),
    );
    let identity = LogIdentity { cluster: ClusterId(1), group: GroupId::FIRST };
    let membership =
        Membership::from_voters([FIRST, SECOND, THIRD].map(|node| (node, Bytes::new())));
    let digest = identity.origin(&membership.encode(b""));
    let snapshot = SnapshotMeta { last_included: EntryId::ZERO, digest, membership };
    let recovered = Recovered {
        hard_state: HardState { current_term: Term(5), voted_for: None },
        log_start: EntryId::ZERO,
        log_start_digest: digest,
        snapshot,
        entries: Vec::new(),
    };
    let mut raft = Raft::new(config, identity, recovered, Rng::new(seed), Time::ZERO).unwrap();
    raft.set_standing(ms(0), Standing::Full);
    raft.seek_leader(ms(0));
    raft
}

fn step(raft: &mut Raft, now: Time, from: NodeId, message: Message) {
    raft.step(now, Envelope { from, to: raft.node(), message });
    raft.check();
}

/// How many voters this turn asks beforehand, and how many for their votes.
fn asked(raft: &mut Raft) -> (usize, usize) {
    let (mut beforehand, mut votes) = (0, 0);
    loop {
        let ready = raft.ready();
        for envelope in &ready.messages {
            if let Message::RequestVote(request) = &envelope.message {
                *if request.pre_vote { &mut beforehand } else { &mut votes } += 1;
            }
        }
        match ready.persist {
            Some(persist) => raft.persisted(raft.now(), persist.ticket),
            None => return (beforehand, votes),
        }
    }
}

fn heartbeat() -> Message {
    Message::Heartbeat(Heartbeat { term: Term(5), leader_commit: Index::ZERO, round: 1 })
}

fn refusal() -> Message {
    let reply = RequestVoteReply { term: Term(5), vote_granted: false, pre_vote: true };
    Message::RequestVoteReply(reply)
}

/// Members that begin at the same moment ask one after the other.
#[test]
fn the_first_question_comes_soon_and_in_turn() {
    for seed in 0..50 {
        let mut deadlines = Vec::new();
        for node in [FIRST, SECOND, THIRD] {
            let mut raft = member(node, seed);
            deadlines.push(raft.deadline().unwrap());
            raft.tick(raft.deadline().unwrap());
            assert_eq!(asked(&mut raft), (2, 0), "only asks");
            assert_eq!(raft.current_term(), Term(5));
        }
        assert!(deadlines.is_sorted(), "{deadlines:?}");
        assert!(deadlines[2] <= ms(38), "{deadlines:?}");
    }
}

/// The others may not take part yet when they are asked first, or refuse because another one's log is longer.
#[test]
fn who_is_not_answered_or_refused_asks_again_soon_but_not_for_ever() {
    for refused in [false, true] {
        let mut raft = member(SECOND, 1);
        let mut questions = 0;
        let mut now = ms(0);
        loop {
            let deadline = raft.deadline().unwrap();
            let wait = deadline.since(now);
            if now > ms(400) {
                assert!(wait >= Duration::from_millis(100), "the haste has an end");
                break;
            }
            assert!(now > ms(300) || wait < Duration::from_millis(100), "{wait:?} at {now:?}");
            now = deadline;
            raft.tick(now);
            if asked(&mut raft).0 == 2 {
                questions += 1;
            }
            if refused {
                step(&mut raft, now, FIRST, refusal());
                step(&mut raft, now, THIRD, refusal());
            }
        }
        assert!((4..=8).contains(&questions), "{questions}");
    }
}

/// A leader that lives is heard before long, and then everything is as ever.
#[test]
fn a_leader_that_is_heard_ends_the_haste() {
    let mut raft = member(FIRST, 1);
    step(&mut raft, ms(1), SECOND, heartbeat());
    assert!(raft.deadline().unwrap() >= ms(201));
    raft.tick(raft.deadline().unwrap());
    assert_eq!(raft.role(), RoleKind::PreCandidate);
    let again = raft.deadline().unwrap().since(raft.now());
    assert!(again >= Duration::from_millis(200), "{again:?}");
    // Nor does it begin to hurry while it follows.
    let now = raft.now();
    step(&mut raft, now, SECOND, heartbeat());
    raft.seek_leader(now);
    assert!(raft.deadline().unwrap().since(now) >= Duration::from_millis(200));
}

/// Two that campaign at once would only split the votes again: an election, once begun, has its full time.
#[test]
fn an_election_that_has_begun_is_not_hurried() {
    let mut raft = member(FIRST, 1);
    raft.tick(raft.deadline().unwrap());
    let granted = RequestVoteReply { term: Term(6), vote_granted: true, pre_vote: true };
    let now = raft.now();
    step(&mut raft, now, SECOND, Message::RequestVoteReply(granted));
    assert_eq!((raft.role(), raft.current_term()), (RoleKind::Candidate, Term(6)));
    let time = raft.deadline().unwrap().since(raft.now());
    assert!(time >= Duration::from_millis(200), "{time:?}");
}
