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
    let answer = world.propose(follower, 5);
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
