//! Members with their disks, and what their work is made of. Who does which piece of it when is for
//! `random` and the scripts to say.

use std::collections::{BTreeMap, VecDeque};

use bytes::Bytes;
use raft_core::{
    ClusterId, Config, Entry, EntryId, Envelope, Event, Fetch, GroupId, Index, LogIdentity,
    Membership, MembershipError, MembershipStep, Message, NodeId, Persist, ProposeError, Raft,
    ReadState, Rng, SendSnapshot, SnapshotMeta, Standing, Time, TransferError,
};

use crate::disk::{Cut, Disk};
use crate::oracle::Oracle;

pub(crate) const IDENTITY: LogIdentity =
    LogIdentity { cluster: ClusterId(7), group: GroupId::FIRST };

/// Work for a member's state machine.
#[derive(Debug)]
pub(crate) enum Work {
    Restore(SnapshotMeta),
    Entries(Vec<Entry>),
}

/// A member: its durable state, and while it runs its protocol and the work under way.
#[derive(Debug)]
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) disk: Disk,
    pub(crate) raft: Option<Raft>,
    /// Counts its starts; work of an earlier life is void.
    pub(crate) life: u64,
    /// Its own clock.
    pub(crate) now: Time,
    /// Asked for and not durable yet, in order.
    pub(crate) writes: VecDeque<Persist>,
    pub(crate) work: VecDeque<Work>,
    pub(crate) fetches: VecDeque<Fetch>,
    /// Snapshots that this leader was asked to send.
    pub(crate) sends: VecDeque<SendSnapshot>,
    /// The position of its state machine.
    pub(crate) applied: Index,
}

/// All members, and what they did.
#[derive(Debug)]
pub(crate) struct Cluster {
    pub(crate) nodes: BTreeMap<NodeId, Node>,
    pub(crate) oracle: Oracle,
    /// Messages that left their sender.
    pub(crate) outbox: Vec<Envelope>,
    /// What members said of themselves.
    pub(crate) events: Vec<(NodeId, Event)>,
    pub(crate) answers: Vec<(NodeId, ReadState)>,
    first_membership: Membership,
    rng: Rng,
}

impl Cluster {
    /// A formed cluster whose members have not started.
    pub(crate) fn new(seed: u64, first_membership: Membership) -> Self {
        Self {
            nodes: BTreeMap::new(),
            oracle: Oracle::default(),
            outbox: Vec::new(),
            events: Vec::new(),
            answers: Vec::new(),
            first_membership,
            rng: Rng::new(seed),
        }
    }

    /// A member with an empty log.
    pub(crate) fn add(&mut self, config: Config) {
        let disk = Disk::formed(IDENTITY, self.first_membership.clone());
        let node = Node {
            disk,
            raft: None,
            life: 0,
            now: Time::ZERO,
            writes: VecDeque::new(),
            work: VecDeque::new(),
            fetches: VecDeque::new(),
            sends: VecDeque::new(),
            applied: Index::ZERO,
            config,
        };
        self.nodes.insert(node.config.node, node);
    }

    pub(crate) fn node(&self, id: NodeId) -> &Node {
        &self.nodes[&id]
    }

    pub(crate) fn node_mut(&mut self, id: NodeId) -> &mut Node {
        self.nodes.get_mut(&id).expect("a known member")
    }

    pub(crate) fn raft(&self, id: NodeId) -> Option<&Raft> {
        self.nodes.get(&id)?.raft.as_ref()
    }

    /// The leader of the highest term.
    pub(crate) fn leader(&self) -> Option<NodeId> {
        self.nodes
            .values()
            .filter_map(|node| node.raft.as_ref())
            .filter(|raft| raft.leader() == Some(raft.node()))
            .max_by_key(|raft| raft.current_term())
            .map(Raft::node)
    }

    // Life and death.

    /// Starts a member from what its disk holds.
    pub(crate) fn start(&mut self, id: NodeId, standing: Standing) {
        let rng = Rng::new(self.rng.next_u64());
        let node = self.node_mut(id);
        assert!(node.raft.is_none(), "{id} runs already");
        node.life += 1;
        let mut raft =
            Raft::new(node.config.clone(), IDENTITY, node.disk.recovered(), rng, node.now)
                .expect("a valid configuration");
        raft.set_standing(node.now, standing);
        node.applied = node.disk.snapshot.last_included.index;
        node.raft = Some(raft);
        self.oracle.observe(&self.nodes, id);
    }

    pub(crate) fn set_standing(&mut self, id: NodeId, standing: Standing) {
        self.with(id, |raft, now| raft.set_standing(now, standing));
    }

    /// Kills a member: of its outstanding writes the first `whole` are durable, the next one as far as `cut`.
    pub(crate) fn crash(&mut self, id: NodeId, whole: usize, cut: Option<Cut>) {
        let node = self.node_mut(id);
        for (position, write) in node.writes.iter().enumerate() {
            if position < whole {
                node.disk.apply(write, Cut::Whole);
            } else if let (true, Some(cut)) = (position == whole, cut) {
                node.disk.apply(write, cut);
            }
        }
        node.raft = None;
        node.writes.clear();
        node.work.clear();
        node.fetches.clear();
        node.sends.clear();
        self.oracle.crashed(id);
    }

    // Inputs. Each changes the protocol's state; `turn` takes out what follows from it.

    fn with<T>(&mut self, id: NodeId, input: impl FnOnce(&mut Raft, Time) -> T) -> Option<T> {
        let node = self.node_mut(id);
        let now = node.now;
        let result = input(node.raft.as_mut()?, now);
        self.oracle.observe(&self.nodes, id);
        Some(result)
    }

    pub(crate) fn step(&mut self, envelope: Envelope) {
        let to = envelope.to;
        if self.nodes.contains_key(&to) {
            self.with(to, |raft, now| raft.step(now, envelope));
        }
    }

    pub(crate) fn tick(&mut self, id: NodeId) {
        self.with(id, Raft::tick);
    }

    pub(crate) fn campaign(&mut self, id: NodeId) {
        self.with(id, Raft::campaign);
    }

    /// Proposes commands; each is a number followed by whatever makes it long enough.
    pub(crate) fn propose(
        &mut self,
        id: NodeId,
        commands: &[u64],
        bytes: usize,
    ) -> Option<Result<EntryId, ProposeError>> {
        let payloads = commands.iter().map(|command| payload(*command, bytes)).collect();
        let result = self.with(id, |raft, now| raft.propose(now, payloads))?;
        for (offset, command) in (0..).zip(commands) {
            match result {
                Ok(first) => {
                    let at = EntryId { index: first.index.plus(offset), ..first };
                    self.oracle.proposed(id, at, *command);
                }
                Err(_) => self.oracle.refused(*command),
            }
        }
        Some(result)
    }

    pub(crate) fn read(&mut self, id: NodeId, read: u64) {
        if self.raft(id).is_some() {
            self.oracle.read_invoked(id, read);
            self.with(id, |raft, now| raft.read_index(now, read));
        }
    }

    pub(crate) fn change(
        &mut self,
        id: NodeId,
        request: u64,
        steps: Vec<MembershipStep>,
    ) -> Option<Result<(), MembershipError>> {
        let context = Bytes::copy_from_slice(&request.to_le_bytes());
        let result =
            self.with(id, |raft, now| raft.change_membership(now, request, steps, context))?;
        if result.is_err() {
            self.oracle.change_dropped(request);
        }
        Some(result)
    }

    pub(crate) fn transfer(
        &mut self,
        id: NodeId,
        target: Option<NodeId>,
    ) -> Option<Result<NodeId, TransferError>> {
        self.with(id, |raft, now| raft.transfer_leadership(now, target))
    }

    pub(crate) fn connected(&mut self, id: NodeId, peer: NodeId) {
        self.with(id, |raft, now| raft.peer_connected(now, peer));
    }

    pub(crate) fn disconnected(&mut self, id: NodeId, peer: NodeId, hint: bool) {
        self.with(id, |raft, now| raft.peer_disconnected(now, peer, hint));
    }

    // Work.

    /// Makes the oldest `count` writes durable. `report_all`: says so for each, not only for the last.
    pub(crate) fn persist(&mut self, id: NodeId, count: usize, report_all: bool) {
        let node = self.node_mut(id);
        let mut tickets = Vec::new();
        for _ in 0..count {
            let Some(write) = node.writes.pop_front() else {
                break;
            };
            node.disk.apply(&write, Cut::Whole);
            if !report_all {
                tickets.clear();
            }
            tickets.push(write.ticket);
        }
        for ticket in tickets {
            self.with(id, |raft, now| raft.persisted(now, ticket));
        }
    }

    /// Applies the oldest piece of work, if there is one.
    pub(crate) fn apply(&mut self, id: NodeId) {
        let Some(work) = self.node_mut(id).work.pop_front() else {
            return;
        };
        match work {
            Work::Restore(snapshot) => {
                let at = snapshot.last_included.index;
                assert!(at >= self.node(id).applied, "{id} restores an older state");
                self.node_mut(id).applied = at;
            }
            Work::Entries(entries) => {
                for entry in entries {
                    let applied = self.node(id).applied;
                    assert!(entry.id.index == applied.next(), "{id}: {} after {applied}", entry.id);
                    self.oracle.applied(id, &entry);
                    self.node_mut(id).applied = entry.id.index;
                }
            }
        }
        let applied = self.node(id).applied;
        self.with(id, |raft, now| raft.applied(now, applied));
    }

    /// Reads what a follower lacks from the disk.
    pub(crate) fn fetch(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        let Some(fetch) = node.fetches.pop_front() else {
            return;
        };
        let entries = node.disk.read(fetch.from_index, fetch.to_index, fetch.bytes_max);
        self.with(id, |raft, now| raft.entries_read(now, fetch, entries));
    }

    /// What a snapshot of the state as it is now would contain, if one may be taken.
    pub(crate) fn snapshot_meta(&self, id: NodeId) -> Option<SnapshotMeta> {
        let node = self.node(id);
        node.raft.as_ref()?.snapshot_meta(node.applied)
    }

    /// A member's snapshot became durable; its log keeps the last `keep` entries before it.
    pub(crate) fn snapshot_taken(&mut self, id: NodeId, snapshot: SnapshotMeta, keep: u64) {
        let compact_to = Index(snapshot.last_included.index.0.saturating_sub(keep));
        self.node_mut(id).disk.take_snapshot(&snapshot);
        self.with(id, |raft, now| raft.snapshot_taken(now, snapshot, compact_to));
    }

    /// Streams the newest snapshot as the leader asked; what arrives at the end is in the outbox.
    pub(crate) fn send_snapshot(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        let Some(send) = node.sends.pop_front() else {
            return;
        };
        let snapshot = node.disk.snapshot.clone();
        if snapshot.last_included.index < send.index_min {
            self.snapshot_failed(id, send.to);
            return;
        }
        let message =
            Message::InstallSnapshot(raft_core::InstallSnapshot { term: send.term, snapshot });
        self.outbox.push(Envelope { from: id, to: send.to, message });
    }

    pub(crate) fn snapshot_failed(&mut self, id: NodeId, to: NodeId) {
        self.with(id, |raft, now| raft.snapshot_failed(now, to));
    }

    /// Takes out everything that the protocol wants done.
    pub(crate) fn turn(&mut self, id: NodeId) {
        let node = self.node_mut(id);
        let Some(raft) = node.raft.as_mut() else {
            return;
        };
        let ready = raft.ready();
        node.writes.extend(ready.persist);
        node.work.extend(ready.restore.map(Work::Restore));
        if !ready.committed.is_empty() {
            node.work.push_back(Work::Entries(ready.committed));
        }
        node.fetches.extend(ready.fetches);
        node.sends.extend(ready.snapshots);
        for read in ready.reads {
            self.oracle.read_answered(id, read.id, read.index);
            self.answers.push((id, read));
        }
        for event in ready.events {
            if let Event::Contradiction { from, what } = &event {
                panic!("{id} finds that {from} contradicts itself: {what:?}");
            }
            if let Event::MembershipDropped { request, .. } = &event {
                self.oracle.change_dropped(*request);
            }
            self.events.push((id, event));
        }
        for envelope in ready.messages {
            let receiver = self.nodes.get(&envelope.to).and_then(|node| node.raft.as_ref());
            let leader = receiver.filter(|raft| raft.leader() == Some(envelope.to));
            let disk = &self.nodes[&id].disk;
            self.oracle.leaves(disk, leader, &envelope);
            self.outbox.push(envelope);
        }
        self.oracle.observe(&self.nodes, id);
    }
}

fn payload(command: u64, bytes: usize) -> Bytes {
    let mut text = command.to_string();
    if text.len() < bytes {
        text.push('-');
        while text.len() < bytes {
            text.push('x');
        }
    }
    Bytes::from(text)
}
