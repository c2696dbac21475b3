//! The network: dialled connections with two streams each, which keep order and lose their tail when they break,
//! and below that (optionally) a network that loses, repeats and reorders the protocol's own messages.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use raft::io::Stream;
use raft::message::PeerMessage;
use raft::node::driver::Input;
use raft::transport::{PeerAddress, Refused, RefusedReason};
use raft_core::NodeId;

use crate::process::Machine;
use crate::profile::pick;
use crate::workload::Workload;
use crate::world::{Happening, World};

/// How often a process dials whomever it is not connected to.
const DIAL: u64 = 60_000;
/// Longest way of a message that is very late.
const VERY_LATE: u64 = 1_500_000;
/// Messages on their way on one connection. Beyond it the connection breaks, as the transport's do when their queue is
/// full: without order every refusal may be answered with a whole window, and each of its messages with a refusal.
const ON_THE_WAY_MAX: u64 = 2000;
/// Messages that are kept for being replayed.
const RECORDED_MAX: usize = 1000;

/// A dialled connection; messages travel from the caller to the called.
#[derive(Debug)]
pub(crate) struct Connection {
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) stream: Stream,
    /// The processes at both ends.
    pub(crate) lives: (u64, u64),
    /// Who the called one was: its machine may be another member by the time that the caller hears of the end.
    called: NodeId,
    /// When the last message arrives: the next one comes later.
    pub(crate) last_arrival: u64,
    /// Messages that have left and not arrived.
    pub(crate) on_the_way: u64,
    /// It carries nothing any more, which the caller has not noticed yet.
    pub(crate) dead: bool,
}

/// All connections and what is in their way.
#[derive(Debug, Default)]
pub(crate) struct Wires {
    connections: BTreeMap<u64, Connection>,
    /// The one that leads from a machine to another and carries this stream.
    by_ends: BTreeMap<(usize, usize, Stream), u64>,
    next: u64,
    /// Links that carry nothing, from and to.
    pub(crate) blocked: BTreeSet<(usize, usize)>,
    /// Messages that may be replayed, with their connections and epochs.
    recorded: VecDeque<(u64, u64, PeerMessage)>,
}

impl Wires {
    pub(crate) fn open(
        &mut self,
        from: usize,
        to: usize,
        stream: Stream,
        lives: (u64, u64),
        called: NodeId,
        now: u64,
    ) -> u64 {
        self.next += 1;
        let (last_arrival, on_the_way, dead) = (now, 0, false);
        let connection =
            Connection { from, to, stream, lives, called, last_arrival, on_the_way, dead };
        self.connections.insert(self.next, connection);
        self.by_ends.insert((from, to, stream), self.next);
        self.next
    }

    pub(crate) fn close(&mut self, id: u64) -> Option<Connection> {
        let closed = self.connections.remove(&id)?;
        self.by_ends.remove(&(closed.from, closed.to, closed.stream));
        Some(closed)
    }

    pub(crate) fn get_mut(&mut self, id: u64) -> Option<&mut Connection> {
        self.connections.get_mut(&id)
    }

    /// The connection that carries `stream` from one machine to another.
    pub(crate) fn find(&self, from: usize, to: usize, stream: Stream) -> Option<u64> {
        self.by_ends.get(&(from, to, stream)).copied()
    }

    /// Every connection with this machine at either end.
    pub(crate) fn of(&self, machine: usize) -> Vec<u64> {
        let all = self.connections.iter();
        all.filter(|(_, c)| c.from == machine || c.to == machine).map(|(id, _)| *id).collect()
    }

    pub(crate) fn is_blocked(&self, from: usize, to: usize) -> bool {
        self.blocked.contains(&(from, to))
    }
}

impl<W: Workload> World<W> {
    /// It is time to dial those again who could not be reached.
    pub(crate) fn dial_again(&mut self, from: usize) {
        if let Some(process) = self.process(from) {
            process.dial_planned = false;
        }
        self.dial(from);
    }

    /// Connects a process to those on its list whom it is not connected to, now and until it is.
    fn dial(&mut self, from: usize) {
        let Some(process) = &self.machines[from].process else { return };
        let mut wanted = Vec::new();
        for peer in &process.dial {
            let at = |machine: &Machine<_>| machine.address == peer.address;
            match self.machines.iter().position(at) {
                Some(to) if to != from => wanted.push((to, peer.node)),
                Some(_) | None => {}
            }
        }
        let mut missing = false;
        for (to, expects) in wanted {
            let reachable = !self.wires.is_blocked(from, to) && !self.wires.is_blocked(to, from);
            if reachable && !self.machines[to].paused {
                self.connect(from, to, expects);
            }
            missing |= self.missing(from, to, expects).next().is_some();
        }
        if missing {
            self.dial_later(from, DIAL);
        }
    }

    fn dial_later(&mut self, from: usize, delay: u64) {
        let life = self.machines[from].life;
        let Some(process) = self.process(from) else { return };
        if !std::mem::replace(&mut process.dial_planned, true) {
            self.later(delay, Happening::Dial(from, life));
        }
    }

    /// The streams to another machine that no connection carries. What is sent in bulk is for members only.
    fn missing(
        &self,
        from: usize,
        to: usize,
        expects: Option<NodeId>,
    ) -> impl Iterator<Item = Stream> {
        let streams = [Stream::Control, Stream::Bulk].into_iter();
        streams
            .filter(move |stream| *stream == Stream::Control || expects.is_some())
            .filter(move |stream| self.wires.find(from, to, *stream).is_none())
    }

    /// As the transport: what is not on the new list, or leads to another node than the one on it, is closed.
    pub(crate) fn set_peers(&mut self, from: usize, peers: Vec<PeerAddress>) {
        for id in self.wires.of(from) {
            let Some(connection) = self.wires.get_mut(id) else { continue };
            let (to, stream) = (connection.to, connection.stream);
            if connection.from != from {
                continue;
            }
            let called = &self.machines[to];
            let kept = peers.iter().any(|peer| {
                peer.address == called.address
                    && peer.node.is_none_or(|node| node == called.node())
                    && (stream == Stream::Control || peer.node.is_some())
            });
            if !kept && let Some(connection) = self.wires.get_mut(id) {
                connection.dead = true;
                self.later(1, Happening::Broken(id));
            }
        }
        if let Some(process) = self.process(from) {
            process.dial = peers;
        }
        self.dial(from);
    }

    fn connect(&mut self, from: usize, to: usize, expects: Option<NodeId>) {
        let missing: Vec<Stream> = self.missing(from, to, expects).collect();
        if missing.is_empty() {
            return;
        }
        let (caller, called) = (&self.machines[from], &self.machines[to]);
        let (Some(calling), Some(answering)) = (&caller.process, &called.process) else { return };
        let said = calling.hello(&caller.address, expects);
        let answer = answering.hello(&called.address, Some(caller.node()));
        let address = called.address.clone();
        let lives = (caller.life, called.life);
        // The handshake: first the caller decides, then the called.
        let by_caller = calling.facts.admit(&answer, None, expects);
        let admitted = by_caller.and_then(|()| {
            answering
                .facts
                .admit(&said, expects, None)
                .map_err(|refused| Refused { by_peer: true, ..refused })
        });
        if let Err(refused) = admitted {
            return self.refused(from, address, refused);
        }
        if let Some(process) = self.process(from) {
            process.refused.remove(&address);
        }
        for stream in missing {
            self.wires.open(from, to, stream, lives, answer.node, self.now);
            let (hello, address) = (answer.clone(), address.clone());
            self.wake(from, Input::Connected { hello, address, stream });
            if stream == Stream::Control {
                self.wake(to, Input::Accepted(said.clone()));
            }
        }
    }

    /// As the transport: told once, and again when the reason changes.
    fn refused(&mut self, from: usize, address: String, refused: Refused) {
        let Some(process) = self.process(from) else { return };
        let reason = (refused.reason, refused.by_peer);
        if process.refused.insert(address.clone(), reason) != Some(reason) {
            self.marks.hit(match refused.reason {
                RefusedReason::Removed => "connection refused: removed",
                RefusedReason::OtherNode => "connection refused: another node at that address",
                RefusedReason::OtherIncarnation => "connection refused: another data directory",
                RefusedReason::OtherCluster
                | RefusedReason::Version
                | RefusedReason::Secret
                | RefusedReason::Myself
                | RefusedReason::TooManyConnections
                | RefusedReason::Malformed
                | RefusedReason::Other(_) => {
                    panic!("n{} is refused: {refused}", from + 1)
                }
                _ => "connection refused: for a new reason",
            });
            self.wake(from, Input::Refused(address, refused));
        }
    }

    /// A message leaves a process.
    pub(crate) fn send(
        &mut self,
        from: usize,
        to: NodeId,
        stream: Stream,
        epoch: u64,
        message: PeerMessage,
    ) {
        self.marks.message(&message);
        if let Some(process) = &self.machines[from].process
            && let Some(raft) = process.driver.raft()
        {
            let durable = process.log.log().status().hard_state;
            self.oracle.leaves(self.machines[from].node(), to, &message, raft, durable);
        }
        let Some(to) = self.nodes.get(&to).copied() else { return };
        let Some(id) = self.wires.find(from, to, stream) else { return };
        if self.wires.get_mut(id).is_some_and(|wire| wire.on_the_way >= ON_THE_WAY_MAX) {
            self.marks.hit("connection broken: too much on the way");
            return self.cut(id);
        }
        let link = self.link(from, to);
        let delay_max = self.delay_max();
        let delay = 30 + self.links[link].below(delay_max);
        let protocol = matches!(message, PeerMessage::Raft(_)) && !self.healed;
        if protocol {
            // Drawn whether it is on or not: what is left out shifts nothing.
            let (network, profile) = (&mut self.links[link], &self.profile);
            let lost = network.chance(profile.loss, 1000) && self.noise.loss;
            let twice = network.chance(profile.duplication, 1000) && self.noise.duplication;
            let overtakes = network.chance(profile.reordering, 1000) && self.noise.reordering;
            if lost {
                if let Some(tape) = &mut self.tape {
                    tape.lost(self.now, from, to, &message);
                }
                return;
            }
            if self.profile.replay > 0 {
                self.replay(link, id, epoch, &message);
            }
            if twice {
                let late = self.late(link, 10);
                self.set_out(id, epoch, message.clone(), late);
            }
            if overtakes {
                let late = self.late(link, 4);
                return self.set_out(id, epoch, message, late);
            }
        }
        let now = self.now;
        let Some(connection) = self.wires.get_mut(id) else { return };
        connection.last_arrival = (connection.last_arrival + 1).max(now + delay);
        let delay = connection.last_arrival - now;
        self.set_out(id, epoch, message, delay);
    }

    fn set_out(&mut self, id: u64, epoch: u64, message: PeerMessage, delay: u64) {
        if let Some(connection) = self.wires.get_mut(id) {
            connection.on_the_way += 1;
            if let Some(tape) = &mut self.tape {
                tape.sent(
                    self.now,
                    self.now + delay,
                    id,
                    (connection.from, connection.to),
                    &message,
                );
            }
        }
        self.later(delay, Happening::Arrive(id, epoch, Box::new(message)));
    }

    /// How late a message comes that keeps no order: seldom so late that terms have passed.
    fn late(&mut self, link: usize, times: u64) -> u64 {
        let network = &mut self.links[link];
        let long = network.chance(self.profile.very_late, 1000);
        network.below(if long { VERY_LATE } else { times * self.profile.delay_max })
    }

    /// A message of long ago arrives once more, as long as its connection lasts.
    fn replay(&mut self, link: usize, id: u64, epoch: u64, message: &PeerMessage) {
        let replays = self.links[link].chance(self.profile.replay, 1000) && self.noise.replay;
        if replays && !self.wires.recorded.is_empty() {
            let nth = pick(&mut self.links[link], self.wires.recorded.len());
            if let Some((id, epoch, message)) = self.wires.recorded.get(nth).cloned() {
                self.marks.hit("a message replayed");
                let late = self.links[link].below(self.profile.delay_max);
                self.set_out(id, epoch, message, late);
            }
        }
        if self.wires.recorded.len() >= RECORDED_MAX {
            self.wires.recorded.pop_front();
        }
        self.wires.recorded.push_back((id, epoch, message.clone()));
    }

    /// Where the generator of what happens on the way from one machine to another is.
    pub(crate) const fn link(&self, from: usize, to: usize) -> usize {
        from * self.machines.len() + to
    }

    const fn delay_max(&self) -> u64 {
        if self.healed { 1_000 } else { self.profile.delay_max }
    }

    pub(crate) fn arrive(&mut self, id: u64, epoch: u64, message: PeerMessage) {
        let Some(connection) = self.wires.get_mut(id) else {
            return self.voided(id);
        };
        connection.on_the_way = connection.on_the_way.saturating_sub(1);
        if connection.dead {
            return self.voided(id);
        }
        let (from, to) = (connection.from, connection.to);
        let alive =
            self.machines[to].life == connection.lives.1 && self.machines[to].process.is_some();
        if !alive || self.wires.is_blocked(from, to) {
            self.voided(id);
            return self.cut(id);
        }
        let from = self.machines[from].node();
        let Some(process) = self.process(to) else { return };
        if process.facts.removed.contains(&from) {
            // It dials again, and the handshake tells it why.
            return self.cut(id);
        }
        // What is about a cluster that this node does not belong to yet says nothing to it.
        let formation = matches!(message, PeerMessage::Formation(_) | PeerMessage::Goodbye);
        if process.facts.cluster.is_none() && !formation {
            return;
        }
        self.wake(to, Input::Message { from, epoch, message });
    }

    /// A message that came out of this connection now reaches nobody.
    fn voided(&mut self, id: u64) {
        if let Some(tape) = &mut self.tape {
            tape.void(self.now, id);
        }
    }

    /// Nothing more comes through; the caller notices after a while.
    pub(crate) fn cut(&mut self, id: u64) {
        if let Some(connection) = self.wires.get_mut(id)
            && !connection.dead
        {
            connection.dead = true;
            let (from, to) = (connection.from, connection.to);
            let link = self.link(from, to);
            let delay = 1_000 + self.links[link].below(300_000);
            self.later(delay, Happening::Broken(id));
        }
    }

    pub(crate) fn broken(&mut self, id: u64) {
        let Some(connection) = self.wires.close(id) else { return };
        let Connection { from, to, stream, lives, called: node, .. } = connection;
        if !self.lives(from, lives.0) {
            return;
        }
        // A reset and a refused reconnect: the process is gone.
        let refused = self.machines[to].process.is_none() && !self.wires.is_blocked(from, to);
        let link = self.link(from, to);
        let hint = refused && stream == Stream::Control && self.links[link].chance(1, 2);
        self.wake(from, Input::Disconnected { node, stream, hint });
        let delay = 1 + self.links[link].below(DIAL);
        self.dial_later(from, delay);
    }
}
