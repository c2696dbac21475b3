//! A member that has computed another state than the others.

use super::*;

const CHECKPOINT: u64 = 10;

fn cluster(members: usize) -> World {
    let mut world = World::new();
    let list: Vec<String> = (1..=members).map(address).collect();
    for number in 1..=members {
        world.add(number, |settings| {
            settings.peers.clone_from(&list);
            settings.checkpoint_entries = CHECKPOINT;
        });
        world.start(number);
    }
    world
}

fn go_wrong(world: &mut World, number: usize, off: u128) {
    world.nodes.get_mut(&address(number)).unwrap().stored.state_is_off = off;
}

fn write(world: &mut World, through: usize, count: u64) {
    for _ in 0..count {
        let answer = world.propose(through, 1);
        assert!(world.answer(answer).is_ok());
    }
}

fn ended(world: &World, number: usize) -> bool {
    world.nodes[&address(number)].up.as_ref().is_some_and(|up| up.end.is_some())
}

#[test]
fn the_odd_one_out_stops_to_be_rebuilt() {
    for leads in [false, true] {
        let mut world = cluster(3);
        let leader = world.until_leader();
        let odd = if leads { leader } else { world.follower() };
        go_wrong(&mut world, odd, 1);
        let other = (1..=3).find(|number| *number != odd).unwrap();
        write(&mut world, other, CHECKPOINT);
        world.until("it has ended", |world| ended(world, odd));
        let end = world.up(odd).end.take().unwrap();
        let Err(NodeError::Data(error @ DataError::Damaged { .. })) = end else {
            panic!("{end:?}");
        };
        assert!(error.to_string().contains("is not that of a quorum"), "{error}");
        world.kill(odd);
        write(&mut world, other, 5 * CHECKPOINT);
        assert!((1..=3).filter(|number| *number != odd).all(|number| !ended(&world, number)));
    }
}

/// Two against each other, and three of which each says something else: whoever is right must not stop.
#[test]
fn nobody_stops_while_no_quorum_agrees() {
    for members in [2, 3] {
        let mut world = cluster(members);
        for number in 1..=members {
            go_wrong(&mut world, number, u128::try_from(number).unwrap());
        }
        let leader = world.until_leader();
        write(&mut world, leader, 3 * CHECKPOINT);
        world.run(Duration::from_secs(1));
        assert!((1..=members).all(|number| !ended(&world, number)));
    }
}

#[test]
fn members_that_agree_go_on() {
    let mut world = cluster(5);
    let leader = world.until_leader();
    write(&mut world, leader, 4 * CHECKPOINT);
    let restarted = world.follower();
    world.kill(restarted);
    world.start(restarted);
    write(&mut world, leader, 4 * CHECKPOINT);
    world.run(Duration::from_secs(1));
    assert!((1..=5).all(|number| !ended(&world, number)));
}
