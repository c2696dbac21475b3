//! A disk without space for the log's next segment.

use super::*;

fn full(world: &mut World, number: usize, full: bool) {
    world.up(number).inbox.push_back(Input::Log(0, LogCompletion::Full(full)));
}

#[test]
fn without_space_only_what_needs_none_is_taken() {
    let mut world = World::cluster(3);
    let follower = world.follower();
    for number in 1..=3 {
        full(&mut world, number, true);
    }
    world.until("all know", |world| (1..=3).all(|number| world.status(number).disk_full));
    let leader = world.until_leader();
    for number in [leader, follower] {
        let answer = world.propose(number, 5);
        assert_eq!(world.answer(answer), Err(ProposeError::NoSpace));
        let answer = world.propose(number, 0);
        assert_eq!(world.answer(answer), Ok(0), "through {number}");
    }
    for number in 1..=3 {
        full(&mut world, number, false);
    }
    // The leader hears of it.
    world.run(Duration::from_secs(1));
    let answer = world.propose(follower, 5);
    assert_eq!(world.answer(answer), Ok(5));
}

/// One that makes room comes with one that takes some.
#[test]
fn of_what_a_follower_hands_over_together_only_what_needs_space_is_refused() {
    let mut world = World::cluster(3);
    let follower = world.follower();
    for number in 1..=3 {
        full(&mut world, number, true);
    }
    world.run(Duration::from_secs(1));
    let (large, small) = (world.propose(follower, 5), world.propose(follower, 0));
    assert_eq!(world.answer(large), Err(ProposeError::NoSpace));
    assert_eq!(world.answer(small), Ok(0));
}

/// Two full disks are all it takes, whatever the third one has.
#[test]
fn a_leader_with_space_takes_nothing_that_a_quorum_could_not_store() {
    let mut world = World::cluster(3);
    let leader = world.until_leader();
    let term = world.status(leader).term;
    let others: Vec<usize> = (1..=3).filter(|number| *number != leader).collect();
    full(&mut world, others[0], true);
    let answer = world.propose(others[0], 3);
    assert_eq!(world.answer(answer), Ok(3), "a quorum has space");

    full(&mut world, others[1], true);
    world.run(Duration::from_secs(1));
    for number in 1..=3 {
        let answer = world.propose(number, 5);
        assert_eq!(world.answer(answer), Err(ProposeError::NoSpace), "through {number}");
        let answer = world.propose(number, 0);
        assert_eq!(world.answer(answer), Ok(3), "through {number}");
    }
    // It is believed for as long as it is true, and no longer.
    world.run(Duration::from_secs(20));
    let answer = world.propose(leader, 5);
    assert_eq!(world.answer(answer), Err(ProposeError::NoSpace));
    full(&mut world, others[0], false);
    world.run(Duration::from_secs(1));
    let answer = world.propose(others[1], 5);
    assert_eq!(world.answer(answer), Ok(8));
    assert_eq!((world.leader(), world.status(leader).term), (Some(leader), term));
}

/// Who waits for space is asked to take leadership as soon as there is some.
#[test]
fn leadership_goes_to_whoever_has_space_again() {
    let mut world = World::cluster(3);
    let leader = world.until_leader();
    let others: Vec<usize> = (1..=3).filter(|number| *number != leader).collect();
    for number in [others[0], others[1], leader] {
        full(&mut world, number, true);
        world.run(Duration::from_secs(1));
    }
    assert_eq!(world.leader(), Some(leader), "nobody else had space");
    full(&mut world, others[1], false);
    world.until("it leads", |world| world.leader() == Some(others[1]));
    let answer = world.propose(leader, 5);
    assert_eq!(world.answer(answer), Err(ProposeError::NoSpace), "one of three has space");
    full(&mut world, leader, false);
    world.run(Duration::from_secs(1));
    let answer = world.propose(leader, 5);
    assert_eq!(world.answer(answer), Ok(5));
}

/// Once, and not in turn when all disks are full.
#[test]
fn a_leader_without_space_leaves_to_one_that_has_some() {
    let mut world = World::cluster(3);
    let leader = world.until_leader();
    full(&mut world, leader, true);
    world.until("another leads", |world| world.leader().is_some_and(|other| other != leader));
    let next = world.until_leader();
    let answer = world.propose(next, 5);
    assert_eq!(world.answer(answer), Ok(5));
    let term = world.status(next).term;
    full(&mut world, leader, true);
    world.run(Duration::from_secs(3));
    assert_eq!((world.leader(), world.status(next).term), (Some(next), term));
}
