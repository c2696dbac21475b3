//! Members that come, go and move, and what may be concluded from that.

use super::*;
use crate::node::formation_message::FormationMessage;
use crate::node::member_info::awaited;
use raft_core::{Member, Membership};

fn add(
    world: &mut World,
    asker: usize,
    number: usize,
) -> oneshot::Receiver<Result<Index, AdminError>> {
    let (waiter, answer) = oneshot::channel();
    let info = MemberInfo { peer_address: address(number), ..MemberInfo::default() };
    let request = world.up(asker).next_request;
    world.up(asker).next_request += 1;
    world.request(asker, Request::Add { request, info, voter: true, waiter });
    answer
}

fn ended(world: &World, number: usize) -> bool {
    world.nodes[&address(number)].up.as_ref().unwrap().end.is_some()
}

#[test]
fn a_removal_that_is_not_committed_turns_nobody_away() {
    let mut world = World::cluster(4);
    let leader = world.until_leader();
    let others: Vec<usize> = (1..=4).filter(|number| *number != leader).collect();
    let victim = world.status(others[0]).node;
    // Two of four are no quorum: the joint configuration stays uncommitted.
    world.kill(others[1]);
    world.kill(others[2]);
    let steps = vec![raft_core::MembershipStep::Remove(victim)];
    let _answer = world.admin(leader, Admin::Membership(steps));
    world.until("appended", |world| world.status(leader).membership.is_joint());
    world.run(Duration::from_millis(50));
    let configurations = world.up(leader).configurations.clone().unwrap();
    assert!(configurations.in_force.removed().contains(&victim));
    assert!(configurations.committed.removed().is_empty(), "it is not committed");
    // The one that is to go restarts meanwhile: it is told nothing of a removal.
    world.kill(others[0]);
    world.start(others[0]);
    world.start(others[1]);
    world.until("committed", |world| {
        let removed = |number| world.status(number).membership.removed().contains(&victim);
        world.leader().is_some_and(removed) || ended(world, others[0])
    });
}

/// Seed 853: it votes no longer, so it never campaigns, and the leader has forgotten it.
#[test]
fn a_learner_that_missed_its_removal_asks_and_ends() {
    let mut world = World::cluster(3);
    let leader = world.until_leader();
    let victim = world.follower();
    let node = world.status(victim).node;
    let demote = Admin::Membership(vec![raft_core::MembershipStep::Demote(node)]);
    let answer = world.admin(leader, demote);
    assert!(world.answer(answer).is_ok());
    world.until("it knows", |world| !world.status(victim).membership.is_voter(node));
    world.cut.insert(address(victim));
    let remove = Admin::Membership(vec![raft_core::MembershipStep::Remove(node)]);
    let answer = world.admin(leader, remove);
    assert!(world.answer(answer).is_ok());
    world.run(Duration::from_secs(1));
    world.cut.remove(&address(victim));
    world.until("it ends", |world| ended(world, victim));
    assert!(matches!(world.up(victim).end, Some(Err(NodeError::Removed))));
}

/// Found by killing processes: it was added, died before it heard so, and was removed meanwhile.
#[test]
fn a_member_that_was_removed_before_it_knew_that_it_was_one_ends() {
    let mut world = World::cluster(3);
    world.until_leader();
    world.add(4, |settings| settings.join = vec![address(1)]);
    world.start(4);
    world.run(Duration::from_millis(50));
    let reason = RefusedReason::Removed;
    let refused = |by_peer| {
        let refused = Refused { reason, text: String::from("removed"), by_peer };
        Input::Refused(address(1), refused)
    };
    world.up(4).inbox.push_back(refused(false));
    world.run(Duration::from_millis(50));
    assert!(!ended(&world, 4), "nobody else said so");
    world.up(4).inbox.push_back(refused(true));
    world.run(Duration::from_millis(50));
    assert!(matches!(world.up(4).end, Some(Err(NodeError::Removed))));
}

/// One of the two has a wrong folder: whoever is alone with its cluster.
#[test]
fn most_of_the_configured_members_say_whose_data_is_of_another_cluster() {
    let mut world = World::cluster(3);
    world.until_leader();
    let stranger = |number| {
        let reason = RefusedReason::OtherCluster;
        let refused = Refused { reason, text: String::from("of another"), by_peer: true };
        Input::Refused(address(number), refused)
    };
    // A member that serves is not talked out of it.
    for other in [2, 3] {
        world.up(1).inbox.push_back(stranger(other));
    }
    world.run(Duration::from_millis(50));
    assert!(!ended(&world, 1));
    for number in 1..=3 {
        world.kill(number);
    }
    world.start(1);
    for (address, expected) in
        [(address(2), false), (String::from("elsewhere"), false), (address(3), true)]
    {
        let Input::Refused(_, refused) = stranger(0) else { unreachable!() };
        world.up(1).inbox.push_back(Input::Refused(address, refused));
        world.run(Duration::from_millis(50));
        assert_eq!(ended(&world, 1), expected);
    }
    let said = world.up(1).end.take();
    assert!(
        matches!(said, Some(Err(NodeError::Data(DataError::Outvoted { said, .. }))) if said.len() == 2)
    );
}

#[test]
fn a_member_on_its_way_out_of_a_joint_configuration_still_belongs_to_it() {
    let mut world = World::cluster(3);
    let leader = world.until_leader();
    let leaving = world.follower();
    let (from, node) = (world.status(leader).node, world.status(leaving).node);
    let membership = Membership::clone(&world.status(leader).membership);
    let joint = membership.change(&[raft_core::MembershipStep::Remove(node)]).unwrap();
    let founding = world.up(leader).driver.founding.clone().unwrap();
    let tell = |committed: Membership| {
        let formed = FormationMessage::Formed { founding: founding.clone(), committed };
        let message = PeerMessage::Formation(formed.encode());
        Input::Message { from, epoch: 1, message }
    };
    let gone = joint.leave_joint();
    world.up(leaving).inbox.push_back(tell(joint));
    world.run(Duration::from_millis(50));
    assert!(!ended(&world, leaving), "it still votes");
    world.up(leaving).inbox.push_back(tell(gone));
    world.run(Duration::from_millis(50));
    assert!(matches!(world.up(leaving).end, Some(Err(NodeError::Removed))));
}

#[test]
fn the_address_that_a_member_moved_from_is_not_vacant() {
    let mut world = World::cluster(3);
    world.until_leader();
    let moved = world.follower();
    world.kill(moved);
    world.run(Duration::from_millis(50));
    // The same data at another address.
    let mut node = world.nodes.remove(&address(moved)).unwrap();
    node.settings.address = address(7);
    node.settings.peers = (1..=3).filter(|n| *n != moved).chain([7]).map(address).collect();
    world.nodes.insert(address(7), node);
    world.start(7);
    let leader = world.leader().unwrap();
    let knows = |world: &World| {
        let status = world.status(leader);
        status.members.iter().any(|member| member.info.peer_address == address(7))
    };
    world.until("the new address is committed", knows);
    // Somebody else appears at the old one, with the old list.
    let list: Vec<String> = (1..=3).map(address).collect();
    world.add(moved, |settings| settings.peers = list);
    world.start(moved);
    world.run(Duration::from_secs(10));
    assert_eq!(world.status(leader).membership.members().count(), 3);
}

#[test]
fn a_changed_name_and_changed_client_addresses_are_announced_and_unset_ones_stay() {
    let mut world = World::cluster(3);
    world.until_leader();
    let renamed = world.follower();
    let known = |world: &World, name: &str, clients: &[&str]| {
        (1..=3).all(|number| {
            world.status(number).members.iter().any(|member| {
                member.info.peer_address == address(renamed)
                    && member.info.name == name
                    && member.info.client_addresses == clients
            })
        })
    };
    let restart = |world: &mut World, name: &str, clients: &[&str]| {
        world.kill(renamed);
        let node = world.nodes.get_mut(&address(renamed)).unwrap();
        name.clone_into(&mut node.settings.name);
        node.settings.client_addresses = clients.iter().map(|text| (*text).to_owned()).collect();
        world.start(renamed);
    };
    restart(&mut world, "north", &["c:1", "c:2"]);
    world.until("all know it", |world| known(world, "north", &["c:1", "c:2"]));
    restart(&mut world, "", &[]);
    world.run(Duration::from_secs(10));
    assert!(known(&world, "north", &["c:1", "c:2"]));
    restart(&mut world, "south", &["c:3"]);
    world.until("all know it", |world| known(world, "south", &["c:3"]));
}

#[test]
fn a_member_that_missed_a_change_starts_with_the_new_list() {
    let mut world = World::cluster(3);
    world.until_leader();
    let away = world.follower();
    world.kill(away);
    world.add(4, |settings| settings.join = (1..=3).map(address).collect());
    world.start(4);
    let asker = world.until_leader();
    let answer = add(&mut world, asker, 4);
    assert!(world.answer(answer).is_ok());
    // Its data knows three members; the list that is right now has four.
    world.nodes.get_mut(&address(away)).unwrap().settings.peers = (1..=4).map(address).collect();
    world.start(away);
    world.until("it is back", |world| world.status(away).membership.voters().len() == 4);
    world.run(Duration::from_secs(1));
    assert!(!ended(&world, away));
    assert!(world.up(away).driver.doubtful_list.is_none(), "the question is settled");
}

#[test]
fn a_peer_that_contradicts_is_disconnected() {
    let mut world = World::cluster(3);
    let leader = world.until_leader();
    let follower = world.follower();
    let from = world.status(follower).node;
    let term = world.status(leader).term;
    let reply = raft_core::AppendEntriesReply {
        term,
        outcome: raft_core::AppendOutcome::Accepted { match_index: Index(999) },
    };
    let message = PeerMessage::Raft(raft_core::Message::AppendEntriesReply(reply));
    world.up(leader).inbox.push_back(Input::Message { from, epoch: 1, message });
    world.step();
    assert_eq!(world.up(leader).disconnected, [from]);
}

#[test]
fn no_write_is_lost_while_members_come_and_go_and_one_dies() {
    let mut world = World::cluster(3);
    world.until_leader();
    world.add(4, |settings| settings.join = vec![address(1)]);
    world.start(4);
    let mut written = 0;
    let mut unknown = 0;
    let mut load = |world: &mut World, at: &[usize]| {
        for _ in 0..20 {
            let answers: Vec<_> = at.iter().map(|number| world.propose(*number, 1)).collect();
            for answer in answers {
                match world.answer(answer) {
                    Ok(_) => written += 1,
                    Err(error) if error.is_definite() => {}
                    Err(_) => unknown += 1,
                }
            }
        }
    };
    let leader = world.until_leader();
    let dying = world.follower();
    let alive: Vec<usize> = (1..=3).filter(|number| *number != dying).collect();
    load(&mut world, &[1, 2, 3]);
    let added = add(&mut world, alive[0], 4);
    load(&mut world, &[1, 2, 3]);
    // It dies without a word, in the middle of everything.
    let _lost = world.propose(dying, 0);
    let dead = world.status(dying).node;
    world.kill(dying);
    load(&mut world, &alive);
    assert!(world.answer(added).is_ok());
    assert_eq!(world.status(leader).membership.voters().len(), 4);
    let steps = vec![raft_core::MembershipStep::Remove(dead)];
    let removed = world.admin(alive[1], Admin::Membership(steps));
    load(&mut world, &[alive[0], 4]);
    assert!(world.answer(removed).is_ok());
    // One more may die now: the quorum is that of the three which are there.
    world.kill(leader);
    let rest: Vec<usize> = alive.iter().copied().filter(|n| *n != leader).chain([4]).collect();
    load(&mut world, &rest);
    let at = rest[0];
    let read = world.read(at);
    let sum = world.answer(read).unwrap();
    assert!((written..=written + unknown).contains(&sum), "{written} + {unknown}, {sum}");
}

/// Whom a node dials, and as whom.
fn dialled(world: &mut World, number: usize) -> BTreeMap<String, Option<NodeId>> {
    let list = &world.up(number).driver.dialled;
    list.iter().map(|peer| (peer.address.clone(), peer.node)).collect()
}

/// Found by the simulator: the founders had called each other while they were empty, were dialled as callers for
/// as long as those connections held, and what is for members only (snapshots) never travelled.
#[test]
fn founders_are_dialled_as_members_once_they_are() {
    let mut world = World::cluster(3);
    world.until_leader();
    world.run(Duration::from_millis(50));
    for number in 1..=3 {
        for other in (1..=3).filter(|other| *other != number) {
            let node = world.status(other).node;
            assert_eq!(dialled(&mut world, number)[&address(other)], Some(node));
        }
    }
}

/// Found by the simulator: a member that was away while another was added never answered that one, which led by then,
/// and stayed behind for ever. The new member says only once that it is there: its address is kept when the
/// connection to it breaks.
#[test]
fn a_member_that_lags_answers_a_leader_it_has_never_heard_of() {
    let mut world = World::cluster(3);
    world.until_leader();
    let away = world.follower();
    world.cut.insert(address(away));
    world.run(Duration::from_millis(50));
    world.add(4, |settings| settings.join = vec![address(1), address(2), address(3)]);
    let mut hello = world.hello(&address(4));
    hello.cluster = world.status(away).cluster_id;
    let node = hello.node;
    world.up(away).inbox.push_back(Input::Accepted(hello));
    world.run(Duration::from_millis(50));
    assert_eq!(dialled(&mut world, away).get("n4"), Some(&Some(node)));
    let broken = Input::Disconnected { node, stream: Stream::Control, hint: false };
    world.up(away).inbox.push_back(broken);
    world.run(Duration::from_millis(50));
    assert_eq!(dialled(&mut world, away).get("n4"), Some(&Some(node)));
}

/// Found by the simulator: a founder's machine had been replaced, and its successor led. A member that was added with
/// nothing but the founding configuration dialled that address as nobody's in particular, so that its answers to the
/// successor's snapshots, which are for members only, never travelled.
#[test]
fn a_leader_that_replaced_a_founder_gets_its_snapshots_answered() {
    let mut world = World::cluster(3);
    world.until_leader();
    let away = world.follower();
    let other = (1..=3).find(|number| *number != away).unwrap();
    world.run(Duration::from_millis(50));
    let founder = world.status(other).node;
    assert_eq!(dialled(&mut world, away).get(&address(other)), Some(&Some(founder)));
    // The founder is gone; whoever is there now calls.
    world.kill(other);
    world.run(Duration::from_millis(50));
    world.add(4, |settings| settings.join = vec![address(1), address(2), address(3)]);
    let mut hello = world.hello(&address(4));
    hello.cluster = world.status(away).cluster_id;
    hello.address = address(other);
    let successor = hello.node;
    world.up(away).inbox.push_back(Input::Accepted(hello.clone()));
    world.run(Duration::from_millis(50));
    assert_eq!(dialled(&mut world, away).get(&address(other)), Some(&None), "whoever is there");
    let connected = Input::Connected { hello, address: address(other), stream: Stream::Control };
    world.up(away).inbox.push_back(connected);
    world.run(Duration::from_millis(50));
    assert_eq!(dialled(&mut world, away).get(&address(other)), Some(&Some(successor)));
}

/// Found by the simulator: a member that was added and restarted before it had stored anything asked only the
/// founders whether it had lost something. They were gone, and it stayed silent for ever.
#[test]
fn a_new_member_that_restarts_at_once_confirms_with_whoever_is_there() {
    let mut world = World::cluster(1);
    world.until_leader();
    world.add(2, |settings| settings.join = vec![address(1)]);
    world.start(2);
    let answer = add(&mut world, 1, 2);
    world.until("added", |world| world.status(1).membership.voters().len() == 2);
    world.run(Duration::from_millis(50));
    drop(answer);
    let founder = world.status(1).node;
    let steps = vec![raft_core::MembershipStep::Remove(founder)];
    let _answer = world.admin(1, Admin::Membership(steps));
    world.until("alone", |world| ended(world, 1) && world.status(2).role == RoleName::Leader);
    world.kill(1);
    // A third one, of which the second founder's data say nothing, begins with the founding configuration only.
    world.add(3, |settings| settings.join = vec![address(2)]);
    world.start(3);
    let _answer = add(&mut world, 2, 3);
    world.until("formed", |world| world.nodes[&address(3)].stored.formed.is_some());
    world.kill(3);
    let stored = &mut world.nodes.get_mut(&address(3)).unwrap().stored;
    stored.entries.clear();
    stored.hard_state = HardState::default();
    (stored.log_start, stored.snapshot) = (EntryId::ZERO, None);
    world.start(3);
    world.until("takes part", |world| world.status(3).phase == Phase::Active);
}

/// Asks for a member that has yet to start at the address of `number`.
fn invite(
    world: &mut World,
    asker: usize,
    number: usize,
    known_as: u64,
) -> oneshot::Receiver<Result<Index, AdminError>> {
    let info = MemberInfo { peer_address: address(number), ..MemberInfo::default() };
    let (node, member) =
        (awaited(MemberId(known_as)), Member { info: info.encode(), auto_promote: true });
    world.admin(
        asker,
        Admin::Membership(vec![raft_core::MembershipStep::AddLearner { node, member }]),
    )
}

/// Whether the member that was told the id `known_as` votes.
fn votes(world: &World, at: usize, known_as: u64) -> bool {
    let status = world.status(at);
    status.members.iter().any(|m| m.known_as() == MemberId(known_as) && m.voter && !m.is_awaited())
}

#[test]
fn a_member_is_added_at_once_and_starts_whenever_it_likes() {
    let mut world = World::cluster(3);
    world.until_leader();
    let follower = world.follower();
    // Number 5 waits already, and knows one of the members only.
    world.add(5, |settings| settings.join = vec![address(follower)]);
    world.start(5);
    world.run(Duration::from_secs(1));
    assert!(matches!(world.status(5).phase, Phase::Waiting(_)), "nobody wants it yet");
    for (number, known_as) in [(4, 77), (5, 78)] {
        let answer = invite(&mut world, follower, number, known_as);
        assert!(world.answer(answer).is_ok());
    }
    world.until("the one that was there votes", |world| votes(world, follower, 78));
    // Nobody waits for the one that is not there: neither a quorum nor the level of the cluster.
    let leader = world.until_leader();
    let known = world.status(leader);
    assert_eq!(known.find(MemberId(77)), Some(awaited(MemberId(77))));
    assert!(
        !votes(&world, leader, 77) && !known.members.iter().any(|m| m.is_awaited() && m.connected)
    );
    world.add(4, |settings| settings.join = vec![address(5)]);
    // The leader changes while it comes.
    world.start(4);
    world.kill(leader);
    world.run(Duration::from_secs(2));
    world.start(leader);
    world.until("it votes", |world| {
        votes(world, 5, 77) && world.status(4).role != RoleName::Learner
    });
    let status = world.status(4);
    assert_eq!(status.known_as(status.node.member), MemberId(77));
    assert_eq!(status.find(MemberId(77)), Some(status.node));
    assert_eq!(status.find(status.node.member), Some(status.node), "its own id names it, too");
    assert_eq!(status.members.len(), 5);
    let answer = world.propose(4, 5);
    assert_eq!(world.answer(answer), Ok(5));
    // Under its own identity it is as any other: a wiped disk is not taken for one that is awaited.
    world.wipe(4);
    world.until("told", |world| matches!(world.status(4).phase, Phase::Amnesic(_)));
}

/// It may yet be taken back, as it is here.
#[test]
fn a_change_that_is_not_committed_is_in_nobodys_list() {
    let mut world = World::cluster(3);
    let leader = world.until_leader();
    world.cut.insert(address(leader));
    let _lost = invite(&mut world, leader, 4, 77);
    let in_force = |status: &Status| status.membership.contains(awaited(MemberId(77)));
    world.until("it stands in the log", |world| in_force(&world.status(leader)));
    assert_eq!(world.status(leader).members.len(), 3);
    assert_eq!(world.status(leader).find(MemberId(77)), None);
    let other = world.until_leader();
    let made = invite(&mut world, other, 5, 78);
    assert!(world.answer(made).is_ok());
    assert_eq!(world.status(other).members.len(), 4);
    world.cut.clear();
    world.until("it hears of the change that was made", |world| {
        world.status(leader).find(MemberId(78)).is_some()
    });
    assert!(!in_force(&world.status(leader)));
    assert_eq!(world.status(leader).members.len(), 4);
}

#[test]
fn a_member_that_is_awaited_no_more_waits_in_vain() {
    let mut world = World::cluster(3);
    let leader = world.until_leader();
    let answer = invite(&mut world, leader, 4, 77);
    assert!(world.answer(answer).is_ok());
    let remove = vec![raft_core::MembershipStep::Remove(awaited(MemberId(77)))];
    let answer = world.admin(leader, Admin::Membership(remove));
    assert!(world.answer(answer).is_ok());
    world.add(4, |settings| settings.join = vec![address(1)]);
    world.start(4);
    world.run(Duration::from_secs(5));
    assert!(matches!(world.status(4).phase, Phase::Waiting(_)));
    assert_eq!(world.status(leader).members.len(), 3);
}

/// Found on paper: the place of a configured member stayed vacant for ever once somebody else had been added.
#[test]
fn who_never_started_leaves_no_address_vacant_on_purpose() {
    let mut world = World::new();
    let list: Vec<String> = (1..=3).map(address).collect();
    for number in 1..=3 {
        world.add(number, |settings| settings.peers.clone_from(&list));
    }
    world.start(1);
    world.start(2);
    let leader = world.until_leader();
    let answer = invite(&mut world, leader, 4, 77);
    assert!(world.answer(answer).is_ok());
    world.add(4, |settings| settings.join = vec![address(1)]);
    world.start(4);
    world.until("it votes", |world| votes(world, leader, 77));
    world.start(3);
    world.until("admitted", |world| world.status(leader).membership.voters().len() == 4);
}
