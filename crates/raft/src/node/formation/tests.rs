//! Random interleavings with loss, duplication, crashes and broken connections: never two foundings, and always one
//! once everything is well.

use super::*;

/// One member with what its disk holds.
struct Peer {
    address: String,
    node: NodeId,
    durable: FormationState,
    /// Written and not yet synced, in order: lost by a crash.
    unsynced: VecDeque<Bytes>,
    formation: Option<Formation>,
    formed: Option<Founding>,
    connected: BTreeSet<usize>,
}

struct World {
    rng: Rng,
    now: Time,
    peers: Vec<Peer>,
    wire: Vec<(usize, usize, FormationMessage)>,
    /// Everything that was ever formed by.
    foundings: Vec<Founding>,
}

impl World {
    fn new(count: u64, seed: u64) -> Self {
        let peers = (1..=count).map(|number| Peer {
            address: format!("n{number}"),
            node: NodeId::new(number, 7),
            durable: FormationState::default(),
            unsynced: VecDeque::new(),
            formation: None,
            formed: None,
            connected: BTreeSet::new(),
        });
        let peers = peers.collect();
        Self {
            rng: Rng::new(seed),
            now: Time::ZERO,
            peers,
            wire: Vec::new(),
            foundings: Vec::new(),
        }
    }

    fn below(&mut self, bound: usize) -> usize {
        usize::try_from(self.rng.below(u64::try_from(bound).unwrap())).unwrap()
    }

    fn start(&mut self, at: usize) {
        if self.peers[at].formation.is_some() {
            return;
        }
        let addresses = self.peers.iter().map(|peer| peer.address.clone()).collect();
        let rng = self.rng.split(1);
        let peer = &mut self.peers[at];
        let info = MemberInfo { peer_address: peer.address.clone(), ..MemberInfo::default() };
        let settings = FormationSettings {
            node: peer.node,
            info,
            addresses,
            joining: false,
            requires_all: false,
            grace: Duration::from_secs(3),
            token: String::new(),
        };
        peer.formation = Some(Formation::new(settings, peer.durable.clone(), rng, self.now));
        self.effects(at);
    }

    fn crash(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        peer.formation = None;
        peer.unsynced.clear();
        for other in 0..self.peers.len() {
            self.disconnect(at, other);
            self.disconnect(other, at);
        }
    }

    fn disconnect(&mut self, from: usize, to: usize) {
        let node = self.peers[to].node;
        if self.peers[from].connected.remove(&to)
            && let Some(formation) = &mut self.peers[from].formation
        {
            formation.disconnected(self.now, node);
        }
        self.wire.retain(|(a, b, _)| (*a, *b) != (from, to));
    }

    fn connect(&mut self, from: usize, to: usize) {
        let (node, address) = (self.peers[to].node, self.peers[to].address.clone());
        if from == to || self.peers[to].formation.is_none() {
            return;
        }
        let Peer { formation, connected, .. } = &mut self.peers[from];
        if let Some(formation) = formation
            && connected.insert(to)
        {
            formation.connected(self.now, node, &address);
            self.effects(from);
        }
    }

    fn effects(&mut self, at: usize) {
        let Some(formation) = &mut self.peers[at].formation else { return };
        for effect in formation.take_effects() {
            match effect {
                FormationEffect::Send(to, message) => {
                    let to = self.peers.iter().position(|peer| peer.node == to).unwrap();
                    if self.peers[at].connected.contains(&to) {
                        self.wire.push((at, to, message));
                    }
                }
                FormationEffect::Persist(bytes) => self.peers[at].unsynced.push_back(bytes),
                FormationEffect::Form(founding) => {
                    let configured = self.peers.len();
                    assert!(
                        founding.members.voters().len() > configured / 2,
                        "formed by a minority"
                    );
                    assert_eq!(
                        self.peers[at].durable.chosen.as_ref(),
                        Some(&founding),
                        "formed before it was durable"
                    );
                    self.peers[at].formed = Some(founding.clone());
                    if !self.foundings.contains(&founding) {
                        self.foundings.push(founding);
                    }
                    assert!(self.foundings.len() < 2, "two clusters: {:?}", self.foundings);
                }
                FormationEffect::Removed => panic!("nobody was removed"),
            }
        }
    }

    fn sync(&mut self, at: usize) {
        let peer = &mut self.peers[at];
        let Some(bytes) = peer.unsynced.pop_front() else { return };
        peer.durable = FormationState::decode(&bytes).unwrap();
        if let Some(formation) = &mut peer.formation {
            formation.stored(self.now);
        }
        self.effects(at);
    }

    fn deliver(&mut self, position: usize, keep: bool) {
        let (from, to, message) = self.wire[position].clone();
        if !keep {
            self.wire.swap_remove(position);
        }
        let sender = self.peers[from].node;
        if let Some(founding) = self.peers[to].formed.clone() {
            // What the driver of a formed node answers.
            if !matches!(message, FormationMessage::Formed { .. })
                && self.peers[to].connected.contains(&from)
            {
                let committed = founding.members.clone();
                self.wire.push((to, from, FormationMessage::Formed { founding, committed }));
            }
        } else if let Some(formation) = &mut self.peers[to].formation {
            formation.step(self.now, sender, message);
            self.effects(to);
        }
    }

    fn tick(&mut self, micros: u64) {
        self.now = Time::from_micros(self.now.as_micros() + micros);
        for at in 0..self.peers.len() {
            if let Some(formation) = &mut self.peers[at].formation {
                formation.tick(self.now);
            }
            self.effects(at);
        }
    }

    fn anything(&mut self) {
        let (at, other) = (self.below(self.peers.len()), self.below(self.peers.len()));
        match self.below(100) {
            0 => self.crash(at),
            1..=4 => self.start(at),
            5..=14 => self.connect(at, other),
            15..=16 => self.disconnect(at, other),
            17..=40 => self.sync(at),
            41..=50 => {
                let micros = self.rng.below(1_500_000);
                self.tick(micros);
            }
            _ if self.wire.is_empty() => self.tick(10_000),
            51..=55 => {
                let position = self.below(self.wire.len());
                self.wire.swap_remove(position);
            }
            56..=60 => {
                let position = self.below(self.wire.len());
                self.deliver(position, true);
            }
            _ => {
                let position = self.below(self.wire.len());
                self.deliver(position, false);
            }
        }
    }

    /// Everybody up and connected, nothing lost: all are formed, or wait to be admitted.
    fn settle(&mut self) {
        for at in 0..self.peers.len() {
            self.start(at);
        }
        for _ in 0..2000 {
            for from in 0..self.peers.len() {
                for to in 0..self.peers.len() {
                    self.connect(from, to);
                }
                while !self.peers[from].unsynced.is_empty() {
                    self.sync(from);
                }
            }
            while !self.wire.is_empty() {
                self.deliver(0, false);
                for at in 0..self.peers.len() {
                    self.sync(at);
                }
            }
            if self.peers.iter().all(|peer| {
                peer.formed.is_some()
                    || matches!(peer.formation.as_ref().unwrap().phase(), Phase::Waiting(_))
            }) {
                assert_eq!(self.foundings.len(), 1);
                let founding = &self.foundings[0];
                for peer in &self.peers {
                    assert_eq!(peer.formed.is_some(), founding.members.contains(peer.node));
                }
                return;
            }
            self.tick(20_000);
        }
        let phases: Vec<_> = self
            .peers
            .iter()
            .map(|peer| (peer.formed.is_some(), peer.formation.as_ref().unwrap()))
            .collect();
        panic!("no cluster formed: {phases:#?}");
    }
}

#[test]
fn whatever_happens_one_cluster_forms() {
    for seed in 0..3000 {
        let mut world = World::new(1 + seed % 5, seed);
        for _ in 0..world.rng.below(600) {
            world.anything();
        }
        world.settle();
    }
}

/// The choice itself, without any luck: two proposers take turns at every step.
#[test]
fn a_founding_that_may_be_chosen_is_proposed_again() {
    let mut world = World::new(3, 1);
    for at in 0..2 {
        world.start(at);
    }
    world.connect(0, 1);
    world.connect(1, 0);
    // n1 and n2 wait for n3 until the grace period is over; n2 accepts what n1 proposes, and nobody hears of it.
    for _ in 0..400 {
        world.tick(10_000);
        while !world.wire.is_empty() && world.peers[1].durable.accepted.is_none() {
            world.deliver(0, false);
            world.sync(0);
            world.sync(1);
        }
        if world.peers[1].durable.accepted.is_some() {
            break;
        }
    }
    let accepted = world.peers[1].durable.accepted.clone().unwrap().1;
    world.crash(0);
    world.settle();
    assert_eq!(world.foundings, [accepted]);
}

#[test]
fn a_member_with_another_list_or_token_takes_no_part() {
    // What this member is configured with, what the other one says, and whether they form a cluster.
    let table: [(&str, &[&str], bool); 5] = [
        ("", &["n1", "n2"], true),
        ("", &["n1", "n2", "n3"], false),
        ("", &["n1", "n2", "token blue"], false),
        ("blue", &["n1", "n2", "token blue"], true),
        ("green", &["n1", "n2", "token blue"], false),
    ];
    for (token, said, forms) in table {
        let settings = FormationSettings {
            node: NodeId::new(1, 1),
            info: MemberInfo { peer_address: String::from("n1"), ..MemberInfo::default() },
            addresses: vec![String::from("n1"), String::from("n2")],
            joining: false,
            requires_all: false,
            grace: Duration::from_secs(3),
            token: token.to_owned(),
        };
        let state = FormationState::default();
        let mut formation = Formation::new(settings, state, Rng::new(1), Time::ZERO);
        formation.connected(Time::ZERO, NodeId::new(2, 1), "n2");
        formation.step(
            Time::ZERO,
            NodeId::new(2, 1),
            FormationMessage::Empty {
                info: MemberInfo::default().encode(),
                configured: said.iter().map(|text| (*text).to_owned()).collect(),
                answer: false,
            },
        );
        formation.tick(Time::from_micros(60_000_000));
        let effects = formation.take_effects();
        let began = effects.iter().any(|effect| matches!(effect, FormationEffect::Persist(_)));
        assert_eq!(began, forms, "{token:?} {said:?}: {effects:?}");
    }
}
