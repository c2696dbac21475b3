//! Damaged entries come back from others, whoever leads, and when nobody can.

use super::*;

/// Three members with twenty entries, all of them down.
fn twenty_entries() -> World {
    let mut world = World::cluster(3);
    for _ in 0..20 {
        let answer = world.propose(1, 1);
        world.answer(answer).unwrap();
    }
    world.until("everybody has everything", |world| (1..=3).all(|number| world.sum(number) == 20));
    for number in 1..=3 {
        world.kill(number);
    }
    world
}

impl World {
    fn damage(&mut self, number: usize, indexes: impl IntoIterator<Item = u64>) {
        let stored = &mut self.nodes.get_mut(&address(number)).unwrap().stored;
        stored.damaged.extend(indexes.into_iter().map(Index));
    }

    fn is_repairing(&self, number: usize) -> bool {
        matches!(self.status(number).phase, Phase::Repairing(_))
    }
}

#[test]
fn a_member_with_damaged_entries_gets_them_and_takes_part_again() {
    let mut world = twenty_entries();
    world.damage(2, 3..=12);
    world.start(1);
    world.start(2);
    let answer = world.propose(1, 1);
    assert_eq!(world.answer(answer), Ok(21));
    world.until("it takes part", |world| world.status(2).phase == Phase::Active);
    world.until("it has everything", |world| world.sum(2) == 21);
}

/// None of them could be elected: they repair each other without a leader.
#[test]
fn members_with_different_damage_repair_each_other() {
    let mut world = twenty_entries();
    world.damage(1, 2..=8);
    world.damage(2, 9..=15);
    world.damage(3, 16..=20);
    for number in 1..=3 {
        world.start(number);
    }
    let answer = world.propose(1, 1);
    assert_eq!(world.answer(answer), Ok(21));
    for number in 1..=3 {
        world.until("it takes part", |world| world.status(number).phase == Phase::Active);
    }
}

/// Two of three have the same entry damaged, and the third is away: nothing is guessed.
#[test]
fn an_entry_that_nobody_has_intact_is_waited_for_and_named() {
    let mut world = twenty_entries();
    world.damage(1, [7]);
    world.damage(2, [7]);
    world.start(1);
    world.start(2);
    world.run(Duration::from_secs(20));
    for number in 1..=2 {
        let phase = world.status(number).phase.clone();
        let Phase::Repairing(text) = phase else { panic!("{phase:?}") };
        assert!(text.contains("entry 7") && text.contains("has it damaged, too"), "{text}");
    }
    world.start(3);
    let answer = world.propose(3, 1);
    assert_eq!(world.answer(answer), Ok(21));
    world.until("all are whole", |world| (1..=2).all(|number| !world.is_repairing(number)));
}

/// The same entry everywhere: a halt that names it.
#[test]
fn an_entry_damaged_everywhere_halts_the_cluster_and_is_named() {
    let mut world = twenty_entries();
    for number in 1..=3 {
        world.damage(number, [7]);
        world.start(number);
    }
    world.run(Duration::from_secs(20));
    for number in 1..=3 {
        assert!(world.up(number).end.is_none());
        let phase = world.status(number).phase.clone();
        let Phase::Repairing(text) = phase else { panic!("{phase:?}") };
        assert!(text.contains("entry 7"), "{text}");
    }
}

/// An entry that was never replicated is gone with its only copy: once the others go on without this member, it says so
/// and ends, so that it is rebuilt.
#[test]
fn what_nobody_else_ever_had_is_given_up_only_when_the_others_have_a_leader() {
    let mut world = twenty_entries();
    let lost = {
        let stored = &mut world.nodes.get_mut(&address(1)).unwrap().stored;
        let last = stored.entries.last().unwrap().clone();
        let id = EntryId { index: last.id.index.next(), term: last.id.term };
        let entry = Entry { id, digest: Digest(99), ..last };
        stored.entries.push(entry);
        id.index.0
    };
    world.damage(1, [lost]);
    world.start(1);
    world.start(2);
    world.run(Duration::from_secs(20));
    assert!(world.up(1).end.is_none(), "two of three do not go on without it");
    world.start(3);
    world.until("it gives up", |world| {
        world.nodes[&address(1)].up.as_ref().is_some_and(|up| up.end.is_some())
    });
    let end = world.up(1).end.take().unwrap();
    assert!(matches!(end, Err(NodeError::Data(DataError::Damaged { .. }))), "{end:?}");
}
