//! Whole nodes without threads: drivers, apply workers, a log that is durable at once, a network in order, virtual
//! time. The simulator does the same with a lying disk and a lossy network; these are the stories of one rule each.

use std::collections::{BTreeMap, BTreeSet, VecDeque};

use bytes::BytesMut;
use raft_core::{
    ApplyContext, BlobId, ClusterId, Command, DecodeError, Digest, Entry, Fetch, HardState,
    Incarnation, MemberId, MemorySnapshot, Recovered, SnapshotError, SnapshotSink, SnapshotSource,
};
use tokio::sync::oneshot;
use tokio::sync::oneshot::error::TryRecvError;

use super::*;
use crate::apply::{ApplyCompletion, ApplyWorker};
use crate::entry_header::EntryHeader;
use crate::error::{AdminError, ProposeError, ReadError};
use crate::log::snapshot::{SnapshotEffect, SnapshotRequest};
use crate::log::{
    DamagedState, Formed, FormedState, Identity, LogRequest, Missing, RecoveryReport, Supply,
};
use crate::message::{Admin, SnapshotMessage};
use crate::node::request::{Request, first_request};
use crate::node::status::RoleName;
use crate::transport::PeerAddress;

mod agreement;
mod changes;
mod full_disk;
mod levels;
mod repair;
mod repeated;

/// Adds numbers.
#[derive(Debug, Default)]
struct Sum(u64);

#[derive(Debug)]
struct Add(u64);

impl Command for Add {
    fn encode(&self, out: &mut BytesMut) {
        out.extend_from_slice(&self.0.to_le_bytes());
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        let bytes =
            bytes.as_ref().try_into().map_err(|_| DecodeError(String::from("not 8 bytes")))?;
        Ok(Self(u64::from_le_bytes(bytes)))
    }

    fn needs_space(&self) -> bool {
        self.0 > 0
    }
}

#[derive(Debug)]
struct Picture(u64);

impl raft_core::Snapshot for Picture {
    fn write(self, sink: &mut dyn SnapshotSink) -> Result<(), SnapshotError> {
        sink.put(&self.0.to_le_bytes()).map(|_: BlobId| ())
    }
}

impl StateMachine for Sum {
    type Command = Add;
    type Response = u64;
    type Query = ();
    type Answer = u64;
    type Snapshot = Picture;

    fn apply(&mut self, _: ApplyContext, command: Add) -> u64 {
        self.0 += command.0;
        self.0
    }

    fn query(&self, (): ()) -> u64 {
        self.0
    }

    fn snapshot(&self) -> Picture {
        Picture(self.0)
    }

    fn restore(&mut self, source: &dyn SnapshotSource) -> Result<(), SnapshotError> {
        let bytes = source.read(0)?;
        self.0 = Add::decode(bytes).map_err(|error| SnapshotError::Undecodable(error.0))?.0;
        Ok(())
    }

    fn digest(&self) -> Digest {
        Digest(u128::from(self.0))
    }
}

/// What is durable of one node. Everything is, at once.
#[derive(Clone, Debug)]
struct Stored {
    identity: Identity,
    formation: Bytes,
    formed: Option<Formed>,
    hard_state: HardState,
    log_start: EntryId,
    log_start_digest: Digest,
    entries: Vec<Entry>,
    epoch: u64,
    snapshot: Option<(SnapshotMeta, MemorySnapshot)>,
    peer_epochs: BTreeMap<NodeId, u64>,
    /// Entries whose payload is damaged.
    damaged: BTreeSet<Index>,
    /// Not 0: the state in memory is not what the log says.
    state_is_off: u128,
}

impl Stored {
    fn new(number: u64) -> Self {
        let identity = Identity {
            member: MemberId(number),
            incarnation: Incarnation(u128::from(number) << 112),
        };
        Self {
            identity,
            formation: Bytes::new(),
            formed: None,
            hard_state: HardState::default(),
            log_start: EntryId::ZERO,
            log_start_digest: Digest(0),
            entries: Vec::new(),
            epoch: 0,
            snapshot: None,
            peer_epochs: BTreeMap::new(),
            damaged: BTreeSet::new(),
            state_is_off: 0,
        }
    }

    fn start(&mut self) -> Start {
        self.epoch += 1;
        let state = self.state();
        Start { state, formation: self.formation.clone(), epoch: self.epoch }
    }

    /// What recovery says.
    fn state(&mut self) -> DataState {
        match &self.formed {
            None => DataState::Empty { identity: self.identity, formation: self.formation.clone() },
            Some(formed) => {
                let origin = SnapshotMeta {
                    last_included: EntryId::ZERO,
                    digest: formed.log_identity().origin(&formed.members.encode(&[])),
                    membership: formed.members.clone(),
                };
                if self.log_start == EntryId::ZERO {
                    self.log_start_digest = origin.digest;
                }
                let snapshot = self.snapshot.as_ref().map_or(origin, |(meta, _)| meta.clone());
                let needed = |entry: &&Entry| {
                    self.damaged.contains(&entry.id.index)
                        && entry.id.index > snapshot.last_included.index
                };
                let missing: Vec<Missing> = self
                    .entries
                    .iter()
                    .filter(needed)
                    .map(|entry| Missing {
                        id: entry.id,
                        digest: entry.digest,
                        path: "segment".into(),
                        offset: 0,
                    })
                    .collect();
                if !missing.is_empty() {
                    return DataState::Damaged(Box::new(DamagedState {
                        identity: self.identity,
                        formed: formed.clone(),
                        memberships: vec![formed.members.clone()],
                        epoch: self.epoch,
                        peer_epochs: self.peer_epochs.clone(),
                        last: self.entries.last().map_or(self.log_start, |entry| entry.id),
                        snapshot,
                        missing,
                    }));
                }
                DataState::Formed(Box::new(FormedState {
                    identity: self.identity,
                    formed: formed.clone(),
                    recovered: Recovered {
                        hard_state: self.hard_state,
                        snapshot,
                        log_start: self.log_start,
                        log_start_digest: self.log_start_digest,
                        entries: self.entries.clone(),
                    },
                    epoch: self.epoch,
                    peer_epochs: self.peer_epochs.clone(),
                    unclean: false,
                    report: RecoveryReport::default(),
                }))
            }
        }
    }

    fn handle(&mut self, request: LogRequest) -> Option<LogCompletion> {
        match request {
            LogRequest::Write(persist) => {
                if let Some(hard_state) = persist.hard_state {
                    self.hard_state = hard_state;
                    self.epoch += 1;
                }
                if let Some(snapshot) = persist.snapshot {
                    self.log_start = snapshot.last_included;
                    self.log_start_digest = snapshot.digest;
                    self.entries.clear();
                }
                if let Some(from) = persist.truncate_from {
                    self.entries.retain(|entry| entry.id.index < from);
                }
                self.entries.extend(persist.entries);
                if let Some(to) = persist.compact_to {
                    if let Some(last) = self.entries.iter().rfind(|entry| entry.id.index <= to) {
                        self.log_start = last.id;
                        self.log_start_digest = last.digest;
                    }
                    self.entries.retain(|entry| entry.id.index > to);
                }
                Some(LogCompletion::Persisted(vec![persist.ticket]))
            }
            LogRequest::Fetch(fetch) => Some(LogCompletion::Fetched(fetch, self.fetch(&fetch))),
            LogRequest::PeerEpoch(node, epoch) => {
                self.peer_epochs.insert(node, epoch);
                None
            }
            LogRequest::FormationState(bytes) => {
                self.formation = bytes;
                Some(LogCompletion::FormationStateStored)
            }
            LogRequest::Supply(to, wants, snapshot) => {
                let supplies = wants.into_iter().map(|(id, digest)| {
                    let found = self.entries.iter().find(|it| it.id == id && it.digest == digest);
                    let supply = match found {
                        _ if id.index <= self.log_start.index => Supply::Compacted,
                        Some(_) if self.damaged.contains(&id.index) => Supply::Damaged,
                        Some(entry) => Supply::Have(entry.clone()),
                        None => Supply::NeverHad,
                    };
                    (id, digest, supply)
                });
                Some(LogCompletion::Supplied(to, supplies.collect(), snapshot))
            }
            LogRequest::Fill(entry) => {
                assert!(self.entries.contains(&entry), "not what stood there");
                self.damaged.remove(&entry.id.index);
                Some(match self.state() {
                    DataState::Damaged(state) => LogCompletion::Filled(state.missing),
                    state @ (DataState::Empty { .. } | DataState::Formed(_)) => {
                        LogCompletion::Reopened(state)
                    }
                })
            }
            LogRequest::Reopen => Some(LogCompletion::Reopened(self.state())),
            LogRequest::Mend(path, offset) => {
                Some(LogCompletion::Mended(path, offset, crate::log::Mend::Intact))
            }
            LogRequest::Form(formed) => {
                assert!(self.formed.is_none(), "formed twice");
                self.formed = Some(*formed);
                Some(LogCompletion::FormedStored)
            }
        }
    }

    fn fetch(&self, fetch: &Fetch) -> Option<Vec<Entry>> {
        let range = fetch.from_index..=fetch.to_index;
        let found: Vec<_> =
            self.entries.iter().filter(|entry| range.contains(&entry.id.index)).cloned().collect();
        found.first().is_some_and(|first| first.id.index == fetch.from_index).then_some(found)
    }
}

struct Node {
    settings: Settings,
    stored: Stored,
    up: Option<Up>,
}

struct Up {
    driver: Driver<Sum>,
    apply: ApplyWorker<Sum>,
    inbox: VecDeque<Input<Sum>>,
    deadline: Option<Time>,
    /// How far the state machine is, while the driver does not want to be woken for that.
    unheard: Option<Input<Sum>>,
    waits_for_apply: bool,
    dial: Vec<String>,
    connected: BTreeSet<String>,
    next_request: u64,
    end: Option<Result<(), NodeError>>,
    /// Writes are taken and never finished.
    disk_hangs: bool,
    /// Nothing is applied while this is `Some`: what waits.
    unapplied: Option<Vec<ApplyRequest<Sum>>>,
    /// Who may connect, as the transport knows it.
    configurations: Option<Configurations>,
    /// Whom the transport was told to disconnect.
    disconnected: Vec<NodeId>,
}

#[derive(Default)]
struct Sent(Vec<(NodeId, PeerMessage)>);

impl Network for Sent {
    fn send(&mut self, to: NodeId, _: Stream, message: PeerMessage) {
        self.0.push((to, message));
    }
}

struct World {
    now: Time,
    nodes: BTreeMap<String, Node>,
    wire: VecDeque<(String, String, PeerMessage)>,
    /// Addresses that reach nobody and are reached by nobody.
    cut: BTreeSet<String>,
    minted: u64,
}

fn address(number: usize) -> String {
    format!("n{number}")
}

impl World {
    fn new() -> Self {
        Self {
            now: Time::from_micros(1_000_000),
            nodes: BTreeMap::new(),
            wire: VecDeque::new(),
            cut: BTreeSet::new(),
            minted: 0,
        }
    }

    /// Members 1..=count with one list, all started.
    fn cluster(count: usize) -> Self {
        let mut world = Self::new();
        let list: Vec<String> = (1..=count).map(address).collect();
        for number in 1..=count {
            world.add(number, |settings| settings.peers.clone_from(&list));
            world.start(number);
        }
        world
    }

    fn add(&mut self, number: usize, change: impl FnOnce(&mut Settings)) {
        self.minted += 1;
        let mut settings = Settings { address: address(number), ..Settings::default() };
        change(&mut settings);
        let node = Node { settings, stored: Stored::new(self.minted), up: None };
        self.nodes.insert(address(number), node);
    }

    fn start(&mut self, number: usize) {
        self.try_start(number).unwrap();
    }

    fn try_start(&mut self, number: usize) -> Result<(), NodeError> {
        let now = self.now;
        let node = self.nodes.get_mut(&address(number)).unwrap();
        let start = node.stored.start();
        let epoch = start.epoch;
        let rng = Rng::new(epoch * 1000 + node.stored.identity.member.0);
        let driver = Driver::new(node.settings.clone(), start, rng, now)?;
        let apply = match &node.stored.snapshot {
            Some((meta, picture)) => ApplyWorker::restored(Sum(0), meta, picture)?,
            None => ApplyWorker::new(Sum(0)),
        };
        node.up = Some(Up {
            driver,
            apply,
            inbox: VecDeque::new(),
            deadline: Some(now),
            unheard: None,
            waits_for_apply: false,
            dial: Vec::new(),
            connected: BTreeSet::new(),
            next_request: first_request(epoch),
            end: None,
            disk_hangs: false,
            unapplied: None,
            configurations: None,
            disconnected: Vec::new(),
        });
        Ok(())
    }

    fn kill(&mut self, number: usize) {
        self.nodes.get_mut(&address(number)).unwrap().up = None;
    }

    /// Starts the member with an empty disk.
    fn wipe(&mut self, number: usize) {
        self.kill(number);
        // Its connections break.
        self.run(Duration::from_millis(5));
        let settings = self.nodes[&address(number)].settings.clone();
        self.add(number, |fresh| *fresh = settings);
        self.start(number);
    }

    fn up(&mut self, number: usize) -> &mut Up {
        self.nodes.get_mut(&address(number)).unwrap().up.as_mut().unwrap()
    }

    fn status(&self, number: usize) -> Arc<Status> {
        Arc::clone(&self.nodes[&address(number)].up.as_ref().unwrap().driver.status)
    }

    fn sum(&self, number: usize) -> u64 {
        self.nodes[&address(number)].up.as_ref().unwrap().apply.machine().0
    }

    fn reachable(&self, from: &str, to: &str) -> bool {
        let is_up = |address: &str| self.nodes.get(address).is_some_and(|node| node.up.is_some());
        is_up(from) && is_up(to) && !self.cut.contains(from) && !self.cut.contains(to)
    }

    fn hello(&self, address: &str) -> Hello {
        let node = &self.nodes[address];
        Hello {
            version_min: 1,
            version_max: 1,
            cluster: node.stored.formed.as_ref().map(|formed| formed.cluster),
            node: node.stored.identity.node(),
            address: address.to_owned(),
            epoch: node.stored.epoch,
            last_durable: EntryId::ZERO,
            epoch_seen: 0,
        }
    }

    /// Makes and breaks connections as the dial lists, crashes and cuts say.
    fn connect(&mut self) {
        let addresses: Vec<String> = self.nodes.keys().cloned().collect();
        for from in &addresses {
            let Some(up) = &self.nodes[from].up else { continue };
            let (dial, connected) = (up.dial.clone(), up.connected.clone());
            let gone: Vec<_> = connected
                .iter()
                .filter(|to| !dial.contains(to) || !self.reachable(from, to))
                .collect();
            for to in gone {
                let (node, hint) =
                    (self.nodes[to].stored.identity.node(), self.nodes[to].up.is_none());
                let up = self.nodes.get_mut(from).unwrap().up.as_mut().unwrap();
                up.connected.remove(to);
                up.inbox.push_back(Input::Disconnected { node, stream: Stream::Control, hint });
                self.wire.retain(|(a, b, _)| a != from || b != to);
            }
            let new: Vec<_> = dial
                .iter()
                .filter(|to| !connected.contains(*to) && self.reachable(from, to))
                .collect();
            for to in new {
                let (caller, called) = (self.hello(from), self.hello(to));
                if let (Some(a), Some(b)) = (caller.cluster, called.cluster)
                    && a != b
                {
                    continue;
                }
                let up = self.nodes.get_mut(from).unwrap().up.as_mut().unwrap();
                up.connected.insert(to.clone());
                for stream in [Stream::Control, Stream::Bulk] {
                    let (hello, address) = (called.clone(), to.clone());
                    up.inbox.push_back(Input::Connected { hello, address, stream });
                }
                let up = self.nodes.get_mut(to).unwrap().up.as_mut().unwrap();
                up.inbox.push_back(Input::Accepted(caller));
            }
        }
    }

    /// One turn of everybody who has something to do; else time passes.
    fn step(&mut self) {
        self.connect();
        if let Some((from, to, message)) = self.wire.pop_front() {
            let sender = &self.nodes[&from];
            let (node, epoch) = (sender.stored.identity.node(), sender.stored.epoch);
            if self.reachable(&from, &to) {
                let input = Input::Message { from: node, epoch, message };
                self.nodes.get_mut(&to).unwrap().up.as_mut().unwrap().inbox.push_back(input);
            }
        }
        let now = self.now;
        let mut sent = Vec::new();
        let mut worked = !self.wire.is_empty();
        for (address, node) in &mut self.nodes {
            let Node { stored, up, .. } = node;
            let Some(up) = up else { continue };
            if up.end.is_some()
                || (up.inbox.is_empty() && up.deadline.is_none_or(|deadline| deadline > now))
            {
                continue;
            }
            worked = true;
            let mut network = Sent::default();
            let inputs: Vec<_> = up.unheard.take().into_iter().chain(up.inbox.drain(..)).collect();
            let out = up.driver.turn(now, inputs, &mut network);
            up.deadline = out.deadline;
            up.waits_for_apply = out.waits_for_apply;
            if let Some(dial) = out.dial {
                up.dial = dial.into_iter().map(|peer| peer.address).collect();
            }
            up.end = out.end;
            for request in out.log {
                if up.disk_hangs {
                    continue;
                }
                if let Some(completion) = stored.handle(request) {
                    up.inbox.push_back(Input::Log(stored.epoch, completion));
                }
            }
            if out.membership.is_some() {
                up.configurations = out.membership;
            }
            up.disconnected.extend(out.disconnect);
            match &mut up.unapplied {
                Some(waiting) => waiting.extend(out.apply),
                None => {
                    for completion in up.apply.handle(out.apply) {
                        let quiet = matches!(completion, ApplyCompletion::Applied(_));
                        if quiet && !up.waits_for_apply {
                            up.unheard = Some(Input::Apply(completion));
                        } else {
                            up.inbox.push_back(Input::Apply(completion));
                        }
                    }
                }
            }
            for job in out.snapshot {
                up.inbox.extend(snapshot_job(stored, job));
            }
            sent.extend(network.0.into_iter().map(|(to, message)| (address.clone(), to, message)));
        }
        for (from, to, message) in sent {
            let to = self.nodes.iter().find(|(_, node)| node.stored.identity.node() == to);
            let Some((to, _)) = to else { continue };
            let connected = |up: &Up| up.connected.contains(to);
            if self.nodes[&from].up.as_ref().is_some_and(connected) {
                self.deliver(from, to.clone(), message);
            }
        }
        if !worked {
            let deadlines = self.nodes.values().filter_map(|node| node.up.as_ref()?.deadline);
            self.now =
                deadlines.min().unwrap_or(self.now).max(self.now.after(Duration::from_millis(1)));
        }
    }

    fn deliver(&mut self, from: String, to: String, message: PeerMessage) {
        // The content of a snapshot travels by itself in these tests.
        if let PeerMessage::Snapshot(SnapshotMessage::Offer { term, snapshot, .. }) = message {
            let picture = self.nodes[&from].stored.snapshot.clone();
            let sender = self.nodes[&from].stored.identity.node();
            let node = self.nodes.get_mut(&to).unwrap();
            node.stored.snapshot = picture;
            if let Some(up) = &mut node.up {
                let effect = SnapshotEffect::Received { from: sender, term, snapshot, bytes: 0 };
                up.inbox.push_back(Input::Snapshot(SnapshotDone::Effect(effect)));
            }
            return;
        }
        self.wire.push_back((from, to, message));
    }

    /// Runs until `done`, which must come within a minute of virtual time.
    fn until(&mut self, what: &str, done: impl Fn(&Self) -> bool) {
        let end = self.now.after(Duration::from_secs(60));
        while !done(self) {
            assert!(self.now < end, "never: {what}; {:?}", self.phases());
            self.step();
        }
    }

    fn run(&mut self, duration: Duration) {
        let end = self.now.after(duration);
        while self.now < end {
            self.step();
        }
    }

    fn phases(&self) -> Vec<(String, Phase, RoleName)> {
        let up = |node: &Node| Some(Arc::clone(&node.up.as_ref()?.driver.status));
        let nodes =
            self.nodes.iter().filter_map(|(address, node)| Some((address.clone(), up(node)?)));
        nodes.map(|(address, status)| (address, status.phase.clone(), status.role)).collect()
    }

    fn leader(&self) -> Option<usize> {
        let leads = |node: &Node| {
            node.up.as_ref().is_some_and(|up| {
                up.driver.raft.as_ref().is_some_and(Raft::is_established) && up.end.is_none()
            })
        };
        let found =
            self.nodes.iter().find(|(address, node)| leads(node) && !self.cut.contains(*address));
        found.and_then(|(address, _)| address.trim_start_matches('n').parse().ok())
    }

    fn until_leader(&mut self) -> usize {
        self.until("a leader", |world| world.leader().is_some());
        self.leader().unwrap()
    }

    fn follower(&mut self) -> usize {
        let leader = self.until_leader();
        (1..=self.nodes.len()).find(|number| *number != leader).unwrap()
    }

    fn request(&mut self, number: usize, request: Request<Sum>) {
        self.up(number).inbox.push_back(Input::Request(request));
    }

    fn propose(&mut self, number: usize, add: u64) -> oneshot::Receiver<Result<u64, ProposeError>> {
        let (waiter, answer) = oneshot::channel();
        let up = self.up(number);
        let request = up.next_request;
        up.next_request += 1;
        let mut payload = BytesMut::new();
        EntryHeader { proposer: up.driver.node, request, session: None }.encode(&mut payload);
        Add(add).encode(&mut payload);
        self.request(
            number,
            Request::Propose { request, payload: payload.freeze(), permit: None, waiter },
        );
        answer
    }

    fn read(&mut self, number: usize) -> oneshot::Receiver<Result<u64, ReadError>> {
        let (waiter, answer) = oneshot::channel();
        self.request(number, Request::Query { query: (), linearizable: true, waiter });
        answer
    }

    fn admin(
        &mut self,
        number: usize,
        admin: Admin,
    ) -> oneshot::Receiver<Result<Index, AdminError>> {
        let (waiter, answer) = oneshot::channel();
        let up = self.up(number);
        let request = up.next_request;
        up.next_request += 1;
        self.request(number, Request::Admin { request, admin, waiter });
        answer
    }

    fn answer<T>(&mut self, mut receiver: oneshot::Receiver<T>) -> T {
        let end = self.now.after(Duration::from_secs(60));
        loop {
            match receiver.try_recv() {
                Ok(answer) => return answer,
                Err(TryRecvError::Closed) => panic!("a waiter was dropped"),
                Err(TryRecvError::Empty) => {
                    assert!(self.now < end, "no answer; {:?}", self.phases());
                    self.step();
                }
            }
        }
    }
}

fn snapshot_job(stored: &mut Stored, job: SnapshotJob<Picture>) -> Option<Input<Sum>> {
    let effect = match job {
        SnapshotJob::Open(meta) => {
            let source = stored.snapshot.clone().filter(|(stored, _)| *stored == meta);
            let source =
                source.map(|(_, picture)| Box::new(picture) as Box<dyn SnapshotSource + Send>);
            return Some(Input::Snapshot(SnapshotDone::Opened(meta, source)));
        }
        SnapshotJob::Work(SnapshotRequest::Write(meta, picture)) => {
            let mut written = MemorySnapshot::default();
            raft_core::Snapshot::write(picture, &mut written).unwrap();
            let state = BlobId::digest_of(written.blobs());
            stored.snapshot = Some((meta.clone(), written));
            SnapshotEffect::Written(meta, Digest(state.0 ^ stored.state_is_off))
        }
        SnapshotJob::Work(SnapshotRequest::Send(send)) => {
            let (snapshot, _) = stored.snapshot.clone()?;
            let (term, blobs) = (send.term, Vec::new());
            let offer = SnapshotMessage::Offer { transfer: 1, term, snapshot, blobs };
            SnapshotEffect::Send(send.to, offer)
        }
        SnapshotJob::Work(
            SnapshotRequest::Message(..)
            | SnapshotRequest::Disconnected(_)
            | SnapshotRequest::Prune(_)
            | SnapshotRequest::Mend(..),
        ) => return None,
    };
    Some(Input::Snapshot(SnapshotDone::Effect(effect)))
}

#[test]
fn one_member_forms_alone_and_answers() {
    let mut world = World::cluster(1);
    let answer = world.propose(1, 5);
    assert_eq!(world.answer(answer), Ok(5));
    let read = world.read(1);
    assert_eq!(world.answer(read), Ok(5));
}

/// Nothing else happens in an idle cluster of one, not even a heartbeat.
#[test]
fn an_idle_member_shows_that_its_last_entry_is_applied() {
    let mut world = World::cluster(1);
    world.until_leader();
    let answer = world.propose(1, 5);
    assert_eq!(world.answer(answer).unwrap(), 5);
    let begin = world.now;
    world.until("everything is shown as applied", |world| {
        let status = world.status(1);
        status.last_applied == status.commit_index
    });
    assert!(world.now <= begin.after(APPLIED_HEARD_AFTER * 2));
}

#[test]
fn b10_one_member_answers_nothing_that_its_disk_does_not_hold() {
    let mut world = World::cluster(1);
    world.until_leader();
    world.up(1).disk_hangs = true;
    let mut answer = world.propose(1, 5);
    world.run(Duration::from_secs(1));
    assert_eq!(answer.try_recv(), Err(TryRecvError::Empty));
}

#[test]
fn three_members_form_one_cluster_and_any_of_them_takes_proposals_and_reads() {
    let mut world = World::cluster(3);
    world.until_leader();
    for number in 1..=3 {
        let answer = world.propose(number, 1);
        assert_eq!(world.answer(answer), Ok(u64::try_from(number).unwrap()));
        for reader in 1..=3 {
            let read = world.read(reader);
            assert_eq!(world.answer(read), Ok(u64::try_from(number).unwrap()));
        }
    }
    let clusters: BTreeSet<Option<ClusterId>> =
        (1..=3).map(|number| world.status(number).cluster_id).collect();
    assert_eq!(clusters.len(), 1);
}

#[test]
fn a_restarted_member_keeps_everything_and_takes_part_once_a_quorum_confirms() {
    let mut world = World::cluster(3);
    let answer = world.propose(1, 7);
    assert_eq!(world.answer(answer), Ok(7));
    for number in 1..=3 {
        world.kill(number);
    }
    world.start(1);
    world.run(Duration::from_secs(2));
    assert_eq!(world.status(1).phase, Phase::Confirming);
    world.start(2);
    let answer = world.propose(2, 1);
    assert_eq!(world.answer(answer), Ok(8));
    assert_eq!(world.status(1).phase, Phase::Active);
}

/// Service had to come back within a second of killing all processes; proving the standing took 200 ms of it and waiting
/// out an election timeout another 400.
#[test]
fn members_that_were_killed_together_have_a_leader_long_before_an_election_timeout() {
    let mut world = World::cluster(3);
    for _ in 0..20 {
        world.until_leader();
        for number in 1..=3 {
            world.kill(number);
        }
        for number in 1..=3 {
            world.start(number);
        }
        let began = world.now;
        world.until_leader();
        let took = world.now.since(began);
        assert!(took < Duration::from_millis(150), "{took:?}");
    }
}

/// Yesterday's copy under a member in the place of its folder: found out, and rebuilt as another node.
#[test]
fn an_older_image_of_a_data_folder_is_found_out_and_taken_in_anew() {
    let mut world = World::cluster(3);
    let number = older_image(&mut world);
    world.until("found out", |world| {
        world.nodes[&address(number)].up.as_ref().is_some_and(|up| up.end.is_some())
    });
    let end = world.up(number).end.take().unwrap();
    assert!(matches!(end, Err(NodeError::Data(DataError::Amnesic { .. }))), "{end:?}");
    // What the shell does: the folder is set aside.
    world.wipe(number);
    world.until("it votes again", |world| {
        let status = world.status(number);
        status.phase == Phase::Active && status.membership.is_voter(status.node)
    });
    let answer = world.propose(number, 1);
    assert_eq!(world.answer(answer), Ok(1));
}

#[test]
fn an_older_image_of_a_data_folder_stays_idle_where_that_is_wanted() {
    let mut world = World::new();
    let list: Vec<String> = (1..=3).map(address).collect();
    for number in 1..=3 {
        world.add(number, |settings| {
            settings.peers.clone_from(&list);
            settings.rebuild_damaged = false;
        });
        world.start(number);
    }
    let number = older_image(&mut world);
    world.until("found out", |world| matches!(world.status(number).phase, Phase::Amnesic(_)));
    let answer = world.propose(world.leader().unwrap(), 1);
    assert_eq!(world.answer(answer), Ok(1));
}

/// A follower starts on its folder as it was three starts ago.
fn older_image(world: &mut World) -> usize {
    world.until_leader();
    let number = world.follower();
    let image = world.nodes[&address(number)].stored.clone();
    for _ in 0..3 {
        world.kill(number);
        world.start(number);
        world.until("it is back", |world| world.status(number).phase == Phase::Active);
    }
    world.kill(number);
    world.nodes.get_mut(&address(number)).unwrap().stored = image;
    world.start(number);
    number
}

#[test]
fn two_of_three_form_after_the_grace_period_and_the_third_is_admitted_when_it_comes() {
    let mut world = World::new();
    let list: Vec<String> = (1..=3).map(address).collect();
    for number in 1..=3 {
        world.add(number, |settings| settings.peers.clone_from(&list));
    }
    let began = world.now;
    world.start(1);
    world.start(2);
    let answer = world.propose(1, 3);
    assert_eq!(world.answer(answer), Ok(3));
    assert!(world.now.since(began) >= Duration::from_secs(3));
    assert_eq!(world.status(1).membership.voters().len(), 2);
    world.start(3);
    world.until("three voters", |world| world.status(1).membership.voters().len() == 3);
    let answer = world.propose(3, 4);
    assert_eq!(world.answer(answer), Ok(7));
    // Its log began as theirs did: it survives a restart.
    world.kill(3);
    world.start(3);
    world.until("it is back", |world| world.status(3).phase == Phase::Active && world.sum(3) == 7);
}

#[test]
fn with_the_setting_nobody_forms_without_everyone() {
    let mut world = World::new();
    let list: Vec<String> = (1..=3).map(address).collect();
    for number in 1..=3 {
        world.add(number, |settings| {
            settings.peers.clone_from(&list);
            settings.form_requires_all = true;
        });
    }
    world.start(1);
    world.start(2);
    world.run(Duration::from_secs(20));
    assert_eq!(world.status(1).phase, Phase::Forming);
    world.start(3);
    world.until_leader();
    assert_eq!(world.status(1).membership.voters().len(), 3);
}

/// An empty node with the address of a member that works: a copied configuration, an address used twice.
#[test]
fn a_stranger_that_claims_a_members_address_cuts_nobody_off() {
    let mut world = World::cluster(3);
    let leader = world.until_leader();
    let other = world.follower();
    let member = world.nodes[&address(other)].stored.identity.node();
    let expected = |world: &World| {
        let up = world.nodes[&address(leader)].up.as_ref().unwrap();
        let list = &up.driver.dialled;
        list.iter().find(|peer| peer.address == address(other)).cloned()
    };
    let dialled = PeerAddress { node: Some(member), address: address(other) };
    world.until("members are dialled as such", |world| expected(world).as_ref() == Some(&dialled));
    let stranger = NodeId { member: MemberId(77), ..member };
    let hello = Hello { cluster: None, node: stranger, ..world.hello(&address(other)) };
    world.up(leader).inbox.push_back(Input::Accepted(hello));
    world.run(Duration::from_millis(50));
    assert_eq!(expected(&world), Some(dialled.clone()), "while the member is reached");
    world.kill(other);
    world.run(Duration::from_millis(50));
    let anybody = PeerAddress { node: None, address: address(other) };
    assert_eq!(expected(&world), Some(anybody), "whoever answers there then");
    world.start(other);
    world.until("the member is reached again", |world| expected(world).as_ref() == Some(&dialled));
    // An empty node that does answer there is dialled as who it is: what it asks for travels on the bulk stream.
    world.wipe(other);
    let empty = world.nodes[&address(other)].stored.identity.node();
    let dialled = PeerAddress { node: Some(empty), address: address(other) };
    world.until("the empty node is reached", |world| expected(world).as_ref() == Some(&dialled));
}

#[test]
fn b24_a_wiped_member_stays_idle() {
    let mut world = World::cluster(3);
    world.until_leader();
    let number = world.follower();
    world.wipe(number);
    world.until("amnesic", |world| matches!(world.status(number).phase, Phase::Amnesic(_)));
    // It helps nobody to a quorum.
    let other = (1..=3).find(|n| *n != number && Some(*n) != world.leader()).unwrap();
    world.kill(other);
    let leader = world.leader().unwrap();
    let answer = world.propose(leader, 1);
    assert!(matches!(world.answer(answer), Err(ProposeError::TimedOut | ProposeError::NoLeader)));
    assert!(matches!(world.status(number).phase, Phase::Amnesic(_)));
    // Once the others are a quorum, it takes part again: as another member.
    world.start(other);
    world.until("re-admitted", |world| {
        let status = world.status(number);
        status.phase == Phase::Active && status.membership.is_voter(status.node)
    });
    let leader = world.until_leader();
    assert_eq!(world.status(leader).membership.voters().len(), 3);
    assert_eq!(world.status(leader).membership.removed().len(), 1);
    let answer = world.propose(number, 1);
    assert!(world.answer(answer).is_ok());
}

/// What could not be committed would only stand in the way of everything else.
#[test]
fn a_wiped_member_of_two_is_not_replaced() {
    let mut world = World::cluster(2);
    world.until_leader();
    let number = world.follower();
    let leader = 3 - number;
    world.wipe(number);
    world.run(Duration::from_secs(20));
    assert!(matches!(world.status(number).phase, Phase::Amnesic(_)));
    assert!(!world.status(leader).membership.is_joint());
}

#[test]
fn a_wiped_member_is_left_to_an_administrator_who_wants_that() {
    let mut world = World::new();
    let list: Vec<String> = (1..=3).map(address).collect();
    for number in 1..=3 {
        world.add(number, |settings| {
            settings.peers.clone_from(&list);
            settings.readmit_after = None;
        });
        world.start(number);
    }
    world.until_leader();
    let number = world.follower();
    world.wipe(number);
    world.run(Duration::from_secs(30));
    assert!(matches!(world.status(number).phase, Phase::Amnesic(_)));
}

#[test]
fn a_new_member_joins_by_being_added_and_a_removed_one_stops() {
    let mut world = World::cluster(3);
    let answer = world.propose(1, 9);
    assert_eq!(world.answer(answer), Ok(9));
    world.add(4, |settings| settings.join = vec![address(1)]);
    world.start(4);
    world.run(Duration::from_secs(1));
    assert!(matches!(world.status(4).phase, Phase::Waiting(_)));
    // Through a follower, by address alone.
    let follower = world.follower();
    let (waiter, answer) = oneshot::channel();
    let info = MemberInfo { peer_address: address(4), ..MemberInfo::default() };
    let request = world.up(follower).next_request;
    world.up(follower).next_request += 1;
    world.request(follower, Request::Add { request, info, voter: true, waiter });
    assert!(world.answer(answer).is_ok());
    assert_eq!(world.status(follower).membership.voters().len(), 4);
    world.until("the new one knows", |world| world.sum(4) == 9);
    let answer = world.propose(4, 1);
    assert_eq!(world.answer(answer), Ok(10));

    let leader = world.until_leader();
    let removed = (1..=3).find(|number| *number != leader).unwrap();
    let node = world.status(removed).node;
    let steps = vec![raft_core::MembershipStep::Remove(node)];
    let answer = world.admin(4, Admin::Membership(steps));
    assert!(world.answer(answer).is_ok());
    world.until("it stops", |world| {
        let up = world.nodes[&address(removed)].up.as_ref().unwrap();
        matches!(up.end, Some(Err(NodeError::Removed)))
    });
    let answer = world.propose(4, 1);
    assert_eq!(world.answer(answer), Ok(11));
}

#[test]
fn a_removed_leader_stops_and_the_others_go_on() {
    let mut world = World::cluster(3);
    let leader = world.until_leader();
    let node = world.status(leader).node;
    let steps = vec![raft_core::MembershipStep::Remove(node)];
    let answer = world.admin(leader, Admin::Membership(steps));
    assert!(matches!(world.answer(answer), Ok(_) | Err(AdminError::Stopped)));
    world.until("it stops", |world| {
        world.nodes[&address(leader)].up.as_ref().unwrap().end.is_some()
    });
    world.kill(leader);
    let other = world.until_leader();
    assert_eq!(world.status(other).membership.voters().len(), 2);
    let answer = world.propose(other, 1);
    assert_eq!(world.answer(answer), Ok(1));
}

#[test]
fn leadership_is_handed_over_on_request_from_anywhere() {
    let mut world = World::cluster(3);
    let leader = world.until_leader();
    let target = world.follower();
    let node = world.status(target).node;
    let asker = (1..=3).find(|number| *number != leader && *number != target).unwrap();
    let answer = world.admin(asker, Admin::Transfer(Some(node)));
    assert_eq!(world.answer(answer), Ok(Index::ZERO));
    world.until("the target leads", |world| world.leader() == Some(target));
}

#[test]
fn a_shutdown_hands_leadership_over_and_refuses_what_is_new() {
    let mut world = World::cluster(3);
    let leader = world.until_leader();
    let before = world.propose(leader, 2);
    world.request(leader, Request::Shutdown);
    let after = world.propose(leader, 2);
    assert_eq!(world.answer(after), Err(ProposeError::Stopped { definitely_not_applied: true }));
    assert!(matches!(
        world.answer(before),
        Ok(2) | Err(ProposeError::Stopped { definitely_not_applied: true })
    ));
    let asked = world.now;
    world.until("it ended", |world| {
        world.nodes[&address(leader)].up.as_ref().unwrap().end.is_some()
    });
    assert!(world.now.since(asked) < Duration::from_secs(1));
    assert!(matches!(world.up(leader).end, Some(Ok(()))));
    world.kill(leader);
    let successor = world.until_leader();
    assert!(world.now.since(asked) < Duration::from_secs(1), "no timeout was waited for");
    assert_ne!(successor, leader);
}

#[test]
fn a_proposal_at_a_deposed_leader_is_certainly_lost_once_a_later_term_commits() {
    let mut world = World::cluster(3);
    let leader = world.until_leader();
    world.cut.insert(address(leader));
    let answer = world.propose(leader, 100);
    // Let it be appended before the leader notices that it is alone.
    world.step();
    let successor = world.until_leader();
    let other = world.propose(successor, 1);
    assert_eq!(world.answer(other), Ok(1));
    world.cut.clear();
    assert_eq!(world.answer(answer), Err(ProposeError::Superseded));
    assert_eq!(world.sum(successor), 1);
}

#[test]
fn without_a_quorum_a_held_proposal_ends_definitely_and_a_read_too() {
    let mut world = World::cluster(3);
    let follower = world.follower();
    for number in (1..=3).filter(|number| *number != follower) {
        world.kill(number);
    }
    world.until("no leader", |world| world.status(follower).leader.is_none());
    let (answer, read) = (world.propose(follower, 1), world.read(follower));
    assert_eq!(world.answer(answer), Err(ProposeError::NoLeader));
    assert_eq!(world.answer(read), Err(ReadError::NoLeader));
}

#[test]
fn a_lagging_member_gets_a_snapshot_and_answers_reads_from_it() {
    let mut world = World::new();
    let list: Vec<String> = (1..=3).map(address).collect();
    for number in 1..=3 {
        world.add(number, |settings| {
            settings.peers.clone_from(&list);
            settings.checkpoint_entries = 10;
            settings.trailing_entries = 2;
        });
        world.start(number);
    }
    let lagging = world.follower();
    world.kill(lagging);
    let leader = world.until_leader();
    for count in 1..=50 {
        let answer = world.propose(leader, 1);
        assert_eq!(world.answer(answer), Ok(count));
    }
    let snapshots: BTreeSet<u64> =
        (1..=3).filter(|n| *n != lagging).map(|n| world.status(n).snapshot.index.0 / 10).collect();
    assert_eq!(snapshots, BTreeSet::from([5]), "checkpoints stand at the same points");
    assert!(world.status(leader).first_index > Index(40));
    world.start(lagging);
    world.until("it is back", |world| world.sum(lagging) == 50);
    let read = world.read(lagging);
    assert_eq!(world.answer(read), Ok(50));
    for number in 1..=3 {
        world.kill(number);
        world.start(number);
    }
    let read = world.read(lagging);
    assert_eq!(world.answer(read), Ok(50));
}

#[test]
fn a_list_that_is_neither_the_founding_nor_the_present_one_is_refused() {
    let mut world = World::cluster(3);
    world.until_leader();
    world.kill(1);
    let node = world.nodes.get_mut(&address(1)).unwrap();
    node.settings.peers = vec![address(1), address(2)];
    // It may have missed a change; the others tell it that there was none.
    world.start(1);
    world.until("it ended", |world| world.nodes[&address(1)].up.as_ref().unwrap().end.is_some());
    let Some(Err(error)) = world.up(1).end.take() else { panic!("it ended well") };
    let error = error.to_string();
    assert!(error.contains("n1, n2") && error.contains("n1, n2, n3"), "{error}");
    world.kill(1);
    world.nodes.get_mut(&address(1)).unwrap().settings.peers =
        vec![address(3), address(2), address(1)];
    world.start(1);
}

#[test]
fn a_list_for_formation_only_is_not_looked_at_again() {
    let mut world = World::cluster(3);
    world.until_leader();
    for list in [vec![address(1)], vec![address(1), address(8), address(9)]] {
        world.kill(1);
        let node = world.nodes.get_mut(&address(1)).unwrap();
        node.settings.peers = list;
        node.settings.peers_form_only = true;
        world.start(1);
        world.until("it is back", |world| world.status(1).phase == Phase::Active);
        world.run(Duration::from_secs(1));
        assert!(world.up(1).end.is_none());
        assert!(world.up(1).driver.doubtful_list.is_none());
        assert_eq!(world.status(1).membership.voters().len(), 3);
    }
}

#[test]
fn a_latched_disk_ends_the_node_with_its_error() {
    let mut world = World::cluster(3);
    let leader = world.until_leader();
    let source = std::io::Error::other("boom");
    let latch = crate::log::LatchError { path: "log".into(), source: Arc::new(source) };
    let up = world.up(leader);
    up.disk_hangs = true;
    up.inbox.push_back(Input::Log(0, LogCompletion::Latched(latch)));
    world.until("it ended", |world| {
        world.nodes[&address(leader)].up.as_ref().unwrap().end.is_some()
    });
    assert!(matches!(world.up(leader).end, Some(Err(NodeError::DiskLatched { .. }))));
    world.kill(leader);
    world.until_leader();
}

#[test]
fn a_forward_that_the_network_delivers_twice_is_appended_once() {
    let mut world = World::cluster(3);
    let follower = world.follower();
    let leader = world.leader().unwrap();
    let answer = world.propose(follower, 1);
    let mut repeated = false;
    while !repeated {
        world.step();
        let forward = world.wire.iter().find(|(_, _, m)| matches!(m, PeerMessage::Forward(_)));
        if let Some(forward) = forward.cloned() {
            world.wire.push_front(forward.clone());
            repeated = true;
        }
    }
    assert_eq!(world.answer(answer), Ok(1));
    world.run(Duration::from_secs(1));
    assert_eq!(world.sum(leader), 1);
}
