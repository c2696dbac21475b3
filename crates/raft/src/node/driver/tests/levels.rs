//! Programs of different ages in one cluster (decision 18).

use super::*;

/// Stops the member and starts it with a program that knows `level`.
fn restart(world: &mut World, number: usize, level: u16) {
    world.kill(number);
    // Its connections break.
    world.run(Duration::from_millis(5));
    world.nodes.get_mut(&address(number)).unwrap().settings.feature_level = Some(level);
    world.start(number);
}

fn levels(world: &World) -> Vec<u16> {
    (1..=3).map(|number| world.status(number).feature_level).collect()
}

fn cluster(level: u16) -> World {
    let mut world = World::new();
    let list: Vec<String> = (1..=3).map(address).collect();
    for number in 1..=3 {
        world.add(number, |settings| {
            settings.peers.clone_from(&list);
            settings.feature_level = Some(level);
        });
        world.start(number);
    }
    world.until_leader();
    world
}

#[test]
fn a_rolling_upgrade_ends_when_the_last_member_is_replaced() {
    let mut world = cluster(1);
    for number in 1..=3 {
        world.run(Duration::from_secs(5));
        assert_eq!(levels(&world), [1; 3], "before {number} is replaced");
        restart(&mut world, number, 2);
    }
    world.until("everybody knows", |world| levels(world) == [2; 3]);
    // Restarting changes nothing, and the old program ends instead of meeting what it cannot apply.
    restart(&mut world, 1, 3);
    world.run(Duration::from_secs(5));
    assert_eq!(levels(&world), [2; 3]);
    restart(&mut world, 2, 1);
    world.until("the old program ends", |world| {
        let up = world.nodes[&address(2)].up.as_ref().unwrap();
        matches!(up.end, Some(Err(NodeError::FeatureLevel { cluster: 2, known: 1 })))
    });
    let answer = world.propose(1, 4);
    assert_eq!(world.answer(answer), Ok(4));
}

#[test]
fn a_new_member_with_an_old_program_is_refused() {
    let mut world = cluster(2);
    world.add(4, |settings| {
        settings.join = vec![address(1)];
        settings.feature_level = Some(1);
    });
    world.start(4);
    let follower = world.follower();
    let (waiter, answer) = oneshot::channel();
    let info = MemberInfo { peer_address: address(4), ..MemberInfo::default() };
    world.request(follower, Request::Add { request: 1 << 30, info, voter: true, waiter });
    let Err(AdminError::RefusedByLeader(text)) = world.answer(answer) else {
        panic!("it must be refused");
    };
    assert!(text.contains("feature level 2"), "{text}");
    restart(&mut world, 4, 2);
    let (waiter, answer) = oneshot::channel();
    let info = MemberInfo { peer_address: address(4), ..MemberInfo::default() };
    world.request(follower, Request::Add { request: 1 << 31, info, voter: true, waiter });
    assert_eq!(world.answer(answer).map(|_| ()), Ok(()));
}
