//! Messages that arrive twice, late, or after a restart; and what a restart must not be taken for.

use super::*;
use crate::message::Forward;
use crate::node::formation_message::FormationMessage;
use crate::node::request::first_request;
use raft_core::Membership;

/// Runs until a forward is on the wire, and returns a copy of it.
fn forward_of(world: &mut World, from: usize) -> (String, String, PeerMessage) {
    let (_, copy) = forward_and_answer(world, from);
    copy
}

fn forward_and_answer(
    world: &mut World,
    from: usize,
) -> (oneshot::Receiver<Result<u64, ProposeError>>, (String, String, PeerMessage)) {
    let answer = world.propose(from, 1);
    loop {
        let found = world.wire.iter().find(|(_, _, m)| matches!(m, PeerMessage::Forward(_)));
        if let Some(found) = found.cloned() {
            return (answer, found);
        }
        world.step();
    }
}

/// Makes `number` campaign and lead a later term.
fn lead_again(world: &mut World, number: usize) {
    let term = world.status(number).term;
    world.until("no leader", |world| world.leader() == Some(number));
    let now = world.now;
    let other = (1..=3).find(|other| *other != number).unwrap();
    let node = world.status(other).node;
    let answer = world.admin(number, Admin::Transfer(Some(node)));
    assert_eq!(world.answer(answer), Ok(Index::ZERO));
    world.until("the other leads", |world| world.leader() == Some(other));
    let node = world.status(number).node;
    let answer = world.admin(other, Admin::Transfer(Some(node)));
    assert_eq!(world.answer(answer), Ok(Index::ZERO));
    world.until("it leads again", |world| world.leader() == Some(number));
    assert!(world.status(number).term > term && world.now >= now);
}

#[test]
fn a_copy_of_a_forward_from_an_earlier_term_is_neither_appended_nor_refused() {
    let mut world = World::cluster(3);
    let follower = world.follower();
    let leader = world.leader().unwrap();
    let (answer, copy) = forward_and_answer(&mut world, follower);
    assert_eq!(world.answer(answer), Ok(1));
    lead_again(&mut world, leader);
    world.wire.push_front(copy);
    // Were it refused, it would leave again: the answer has been given, so look at the wire itself.
    for _ in 0..50 {
        world.step();
        assert!(!world.wire.iter().any(|(_, _, m)| matches!(m, PeerMessage::ForwardRefused(_))));
    }
    assert_eq!(world.sum(leader), 1);
}

#[test]
fn a_restarted_leader_says_nothing_of_what_its_earlier_life_was_sent() {
    let mut world = World::cluster(3);
    let follower = world.follower();
    let leader = world.leader().unwrap();
    let copy = forward_of(&mut world, follower);
    world.until("applied", |world| world.sum(leader) == 1);
    world.kill(leader);
    world.start(leader);
    world.until("it is back", |world| world.status(leader).phase == Phase::Active);
    world.until_leader();
    world.wire.push_front(copy);
    for _ in 0..50 {
        world.step();
        assert!(!world.wire.iter().any(|(_, _, m)| matches!(m, PeerMessage::ForwardRefused(_))));
    }
    world.run(Duration::from_secs(1));
    assert_eq!(world.sum(leader), 1);
}

#[test]
fn what_was_refused_is_not_appended_when_a_copy_of_it_arrives_later() {
    let mut world = World::cluster(3);
    let follower = world.follower();
    let leader = world.leader().unwrap();
    world.up(leader).driver.space.is_full = true;
    let (answer, copy) = forward_and_answer(&mut world, follower);
    assert_eq!(world.answer(answer), Err(ProposeError::NoSpace));
    world.up(leader).driver.space.is_full = false;
    world.wire.push_front(copy);
    world.run(Duration::from_secs(1));
    assert_eq!(world.sum(leader), 0);
}

#[test]
fn a_forward_of_a_term_that_has_not_begun_is_ignored() {
    let mut world = World::cluster(3);
    let leader = world.until_leader();
    let follower = world.follower();
    let (_, (_, _, message)) = forward_and_answer(&mut world, follower);
    let PeerMessage::Forward(forward) = message else { panic!("no forward") };
    let forward = Forward { term: Term(forward.term.0 + 5), ..forward };
    let from = world.status(follower).node;
    let message = PeerMessage::Forward(forward);
    let input = Input::Message { from, epoch: 1, message };
    let mut network = Sent::default();
    let now = world.now;
    world.up(leader).driver.turn(now, [input], &mut network);
    assert!(!network.0.iter().any(|(_, m)| matches!(m, PeerMessage::ForwardRefused(_))));
}

#[test]
fn rounds_of_reads_have_other_numbers_in_every_life() {
    let mut world = World::cluster(3);
    let follower = world.follower();
    let mut numbers = BTreeSet::new();
    for _ in 0..3 {
        world.kill(follower);
        world.start(follower);
        world.until("it is back", |world| world.status(follower).phase == Phase::Active);
        world.until_leader();
        let _answer = world.read(follower);
        let number = loop {
            let asked = world.wire.iter().find_map(|(_, _, message)| {
                if let PeerMessage::Raft(raft_core::Message::ReadIndex(read)) = message {
                    return Some(read.id);
                }
                None
            });
            if let Some(number) = asked {
                break number;
            }
            world.step();
        };
        let began = world.up(follower).driver.began;
        assert!(number > first_request(began));
        assert!(numbers.insert(number), "{number} again");
    }
}

#[test]
fn the_answer_to_a_question_of_an_earlier_life_confirms_no_standing() {
    let mut world = World::cluster(3);
    world.until_leader();
    let number = world.follower();
    let peers: Vec<NodeId> =
        (1..=3).filter(|n| *n != number).map(|n| world.status(n).node).collect();
    let committed = Membership::clone(&world.status(number).membership);
    world.kill(number);
    let earlier = world.nodes[&address(number)].stored.epoch;
    world.cut.insert(address(number));
    world.start(number);
    for from in peers {
        let reply = FormationMessage::StandingReply {
            asked: earlier,
            epoch_seen: 0,
            acknowledged: Index::ZERO,
            leader: None,
            commit_index: Index(1),
            committed: committed.clone(),
        };
        let message = PeerMessage::Formation(reply.encode());
        world.up(number).inbox.push_back(Input::Message { from, epoch: 1, message });
    }
    world.run(Duration::from_millis(100));
    assert_eq!(world.status(number).phase, Phase::Confirming);
}

#[test]
fn replaying_a_long_log_is_no_backlog() {
    let mut world = World::new();
    world.add(1, |settings| {
        settings.peers = vec![address(1)];
        settings.backlog_entries_max = 10;
    });
    world.start(1);
    for count in 1..=50 {
        let answer = world.propose(1, 1);
        assert_eq!(world.answer(answer), Ok(count));
    }
    world.kill(1);
    world.start(1);
    world.up(1).unapplied = Some(Vec::new());
    world.until_leader();
    let mut answers = Vec::new();
    for _ in 0..20 {
        answers.push(world.propose(1, 1));
        world.step();
        world.step();
    }
    assert_eq!(answers[0].try_recv(), Err(TryRecvError::Empty), "it was taken");
    assert_eq!(answers[19].try_recv(), Ok(Err(ProposeError::Overloaded)), "what is new counts");
    let up = world.up(1);
    let waiting = up.unapplied.take().unwrap();
    up.inbox.extend(up.apply.handle(waiting).into_iter().map(Input::Apply));
    let first = answers.remove(0);
    assert_eq!(world.answer(first), Ok(51));
}
