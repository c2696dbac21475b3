//! Random runs: each seed draws a cluster, its settings and which faults it suffers how often, lets them
//! happen for some virtual seconds, then heals everything and demands progress.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::time::Duration;

use raft_core::{
    Config, Envelope, Lease, Member, Membership, MembershipStep, Message, NodeId, Rng,
    SnapshotMeta, Standing, Time,
};

use crate::cluster::Cluster;
use crate::disk::Cut;

/// What one seed draws. Rates are per thousand, delays in microseconds.
#[derive(Debug)]
struct Profile {
    voters: u64,
    loss: u64,
    duplication: u64,
    replay: u64,
    delay_max: u64,
    disk_max: u64,
    disk_stall: u64,
    crash: u64,
    partition: u64,
    pause: u64,
    membership: u64,
    transfer: u64,
    campaign: u64,
    connection: u64,
    hints: bool,
    silent: bool,
    batch: u64,
    snapshot_every: u64,
    keep: u64,
    lease: bool,
    drift: bool,
    payload_bytes: u64,
    clients: u64,
}

impl Profile {
    fn draw(rng: &mut Rng) -> Self {
        let mut rate = |max: u64| if rng.chance(1, 2) { 1 + rng.below(max) } else { 0 };
        let (loss, duplication, replay) = (rate(200), rate(100), rate(50));
        let (crash, partition, pause) = (rate(60), rate(60), rate(30));
        let (membership, transfer, campaign) = (rate(150), rate(60), rate(30));
        let (connection, disk_stall) = (rate(60), rate(10));
        let mut long = |short: u64, long: u64| {
            if rng.chance(1, 3) { short + rng.below(long) } else { short }
        };
        Self {
            loss,
            duplication,
            replay,
            crash,
            partition,
            pause,
            membership,
            transfer,
            campaign,
            connection,
            disk_stall,
            delay_max: long(2_000, 60_000),
            disk_max: long(2_000, 80_000),
            voters: [1, 2, 3, 3, 3, 3, 4, 5, 5, 7][index(rng.below(10))],
            hints: rng.chance(1, 2),
            silent: rng.chance(1, 3),
            batch: [0, 300, 800][index(rng.below(3))],
            snapshot_every: [1, 5, 20, 1_000_000][index(rng.below(4))],
            keep: [0, 3, 50][index(rng.below(3))],
            lease: rng.chance(1, 5),
            drift: rng.chance(1, 3),
            payload_bytes: [1, 40, 400][index(rng.below(3))],
            clients: 100 + rng.below(400),
        }
    }
}

fn index(number: u64) -> usize {
    usize::try_from(number).expect("small")
}

/// What happens at some moment.
#[derive(Debug)]
enum Happening {
    Arrive(Envelope),
    Tick(NodeId),
    Turn(NodeId),
    Disk(NodeId, u64),
    Apply(NodeId, u64),
    Fetch(NodeId, u64),
    SendSnapshot(NodeId, u64),
    SnapshotFailed(NodeId, u64, NodeId),
    SnapshotTaken(NodeId, u64, SnapshotMeta),
    Stand(NodeId, u64),
    Restart(NodeId),
    Resume(NodeId),
    Heal,
    Chaos,
    Client,
}

const MIN: u64 = 150_000;
const MAX: u64 = 300_000;
const HEARTBEAT: u64 = 50_000;
/// Virtual time under faults.
const FAULTY: u64 = 2_500_000;
const LEASE: Lease = Lease { length: Duration::from_millis(150), drift_ppm: 20_000 };

struct World {
    cluster: Cluster,
    profile: Profile,
    now: u64,
    agenda: BTreeMap<(u64, u64), Happening>,
    sequence: u64,
    network: Rng,
    disks: Rng,
    faults: Rng,
    workload: Rng,
    /// Messages that do not get through, from and to.
    blocked: BTreeSet<(NodeId, NodeId)>,
    paused: BTreeSet<NodeId>,
    /// When the next tick of each member is on the agenda.
    ticks: BTreeMap<NodeId, u64>,
    snapshotting: BTreeSet<NodeId>,
    /// Clock rates in millionths, and offsets.
    clocks: BTreeMap<NodeId, (u64, u64)>,
    recorded: VecDeque<Envelope>,
    healed: bool,
    next_command: u64,
    next_member: u64,
    steps: u64,
}

impl World {
    fn new(seed: u64) -> Self {
        let mut rng = Rng::new(seed);
        let profile = Profile::draw(&mut rng.split(1));
        let voters: Vec<NodeId> = (1..=profile.voters).map(|n| NodeId::new(n, 0)).collect();
        let mut first =
            Membership::from_voters(voters.iter().map(|voter| (*voter, bytes::Bytes::new())));
        if profile.lease {
            first = first.change(&[MembershipStep::SetLease(Some(LEASE))]).expect("a lease");
        }
        let next_member = profile.voters + 1;
        let mut world = Self {
            cluster: Cluster::new(rng.next_u64(), first),
            profile,
            now: 0,
            agenda: BTreeMap::new(),
            sequence: 0,
            network: rng.split(2),
            disks: rng.split(3),
            faults: rng.split(4),
            workload: rng.split(5),
            blocked: BTreeSet::new(),
            paused: BTreeSet::new(),
            ticks: BTreeMap::new(),
            snapshotting: BTreeSet::new(),
            clocks: BTreeMap::new(),
            recorded: VecDeque::new(),
            healed: false,
            next_command: 1,
            next_member,
            steps: 0,
        };
        for voter in voters {
            world.add_member(voter);
        }
        world.later(10_000, Happening::Chaos);
        world.later(10_000, Happening::Client);
        world
    }

    fn add_member(&mut self, id: NodeId) {
        let micros = Duration::from_micros;
        let mut config = Config::new(id, micros(MIN), micros(MAX), micros(HEARTBEAT));
        config.commit_notice_delay = micros([0, HEARTBEAT / 4, HEARTBEAT][index(id.member.0 % 3)]);
        let rng = &mut self.workload;
        config.append_bytes_max = [1, 100, 1 << 20][index(rng.below(3))];
        config.append_entries_max = [1, 3, 4096][index(rng.below(3))];
        config.inflight_messages_max = [1, 2, 256][index(rng.below(3))];
        config.inflight_bytes_max = [1, 1000, 1 << 20][index(rng.below(3))];
        config.uncommitted_bytes_max = [200, 1 << 20][index(rng.below(2))];
        config.cache_bytes_max = [0, 200, 1 << 20][index(rng.below(3))];
        config.membership_queue_max = [1, 8][index(rng.below(2))];
        let drift = if self.profile.drift { self.faults.below(10_000) } else { 0 };
        self.clocks.insert(id, (990_000 + drift, self.faults.below(1 << 40)));
        self.cluster.add(config);
        self.start(id);
    }

    fn later(&mut self, delay: u64, happening: Happening) {
        self.sequence += 1;
        self.agenda.insert((self.now + delay, self.sequence), happening);
    }

    fn local(&self, id: NodeId, at: u64) -> Time {
        let (rate, offset) = self.clocks[&id];
        Time::from_micros(offset + at * rate / 1_000_000)
    }

    /// The members' clocks move on.
    fn set_clock(&mut self, id: NodeId) {
        let now = self.local(id, self.now);
        self.cluster.node_mut(id).now = now;
    }

    fn life(&self, id: NodeId) -> u64 {
        self.cluster.node(id).life
    }

    /// Whether a piece of work still belongs to the running process.
    fn lives(&self, id: NodeId, life: u64) -> bool {
        let node = self.cluster.node(id);
        node.raft.is_some() && node.life == life
    }

    // One happening.

    fn run_until(&mut self, end: u64) {
        while let Some(next) = self.agenda.first_entry() {
            if next.key().0 > end {
                break;
            }
            let ((at, _), happening) = next.remove_entry();
            self.now = self.now.max(at);
            self.steps += 1;
            self.happen(happening);
        }
        self.now = end;
    }

    fn happen(&mut self, happening: Happening) {
        match happening {
            Happening::Arrive(envelope) => self.arrive(envelope),
            Happening::Tick(id) => {
                self.ticks.remove(&id);
                if self.awake(id) {
                    self.set_clock(id);
                    self.cluster.tick(id);
                    self.turn(id);
                }
            }
            Happening::Turn(id) => {
                if self.awake(id) {
                    self.set_clock(id);
                    self.turn(id);
                }
            }
            Happening::Disk(id, life) => {
                if self.lives(id, life) {
                    self.set_clock(id);
                    let waiting = self.cluster.node(id).writes.len();
                    let count = 1 + index(self.disks.below(waiting.max(1) as u64));
                    let report_all = self.disks.chance(1, 2);
                    self.cluster.persist(id, count, report_all);
                    self.turn_soon(id);
                    self.schedule_disk(id);
                }
            }
            Happening::Apply(id, life) => {
                if self.lives(id, life) {
                    self.set_clock(id);
                    self.cluster.apply(id);
                    self.maybe_snapshot(id);
                    self.turn_soon(id);
                    self.schedule_apply(id);
                }
            }
            Happening::Fetch(id, life) => {
                if self.lives(id, life) {
                    self.set_clock(id);
                    self.cluster.fetch(id);
                    self.turn_soon(id);
                }
            }
            Happening::SendSnapshot(id, life) => {
                if self.lives(id, life) {
                    self.set_clock(id);
                    self.cluster.send_snapshot(id);
                    self.post();
                    self.turn_soon(id);
                }
            }
            Happening::SnapshotFailed(id, life, to) => {
                if self.lives(id, life) {
                    self.set_clock(id);
                    self.cluster.snapshot_failed(id, to);
                    self.turn_soon(id);
                }
            }
            Happening::SnapshotTaken(id, life, snapshot) => {
                self.snapshotting.remove(&id);
                if self.lives(id, life) {
                    self.set_clock(id);
                    let keep = self.profile.keep;
                    self.cluster.snapshot_taken(id, snapshot, keep);
                    self.turn_soon(id);
                }
            }
            Happening::Stand(id, life) => {
                if self.lives(id, life) {
                    self.set_clock(id);
                    self.cluster.set_standing(id, Standing::Full);
                    self.turn_soon(id);
                }
            }
            Happening::Restart(id) => {
                if self.cluster.raft(id).is_none() {
                    self.start(id);
                }
            }
            Happening::Resume(id) => {
                if self.paused.remove(&id) {
                    self.turn_soon(id);
                    self.schedule_tick(id);
                }
            }
            Happening::Heal => self.blocked.clear(),
            Happening::Chaos => self.chaos(),
            Happening::Client => self.client(),
        }
    }

    fn awake(&self, id: NodeId) -> bool {
        self.cluster.raft(id).is_some() && !self.paused.contains(&id)
    }

    /// Some inputs are taken in before the next turn, as a busy driver does.
    fn turn_soon(&mut self, id: NodeId) {
        if self.workload.chance(self.profile.batch, 1000) {
            let delay = self.workload.below(2_000);
            self.later(delay, Happening::Turn(id));
        } else if self.awake(id) {
            self.turn(id);
        }
    }

    fn turn(&mut self, id: NodeId) {
        let writes = self.cluster.node(id).writes.len();
        let work = self.cluster.node(id).work.len();
        self.cluster.turn(id);
        self.post();
        let life = self.life(id);
        if writes == 0 {
            self.schedule_disk(id);
        }
        if work == 0 {
            self.schedule_apply(id);
        }
        for _ in 0..self.cluster.node(id).fetches.len() {
            let delay = self.disk_delay();
            self.later(delay, Happening::Fetch(id, life));
        }
        for _ in 0..self.cluster.node(id).sends.len() {
            let delay = self.disk_delay() * 4;
            self.later(delay, Happening::SendSnapshot(id, life));
        }
        self.schedule_tick(id);
    }

    fn schedule_tick(&mut self, id: NodeId) {
        let Some(deadline) = self.cluster.raft(id).and_then(raft_core::Raft::deadline) else {
            return;
        };
        let (rate, offset) = self.clocks[&id];
        let local = deadline.as_micros().saturating_sub(offset);
        let at = (local.saturating_mul(1_000_000) / rate).saturating_add(2).max(self.now + 1);
        if at > self.now + 60_000_000 {
            return;
        }
        if self.ticks.get(&id).is_none_or(|scheduled| at < *scheduled) {
            self.ticks.insert(id, at);
            self.later(at - self.now, Happening::Tick(id));
        }
    }

    fn disk_delay(&mut self) -> u64 {
        if !self.healed && self.disks.chance(self.profile.disk_stall, 1000) {
            return self.disks.below(3_000_000);
        }
        let max = if self.healed { 2_000 } else { self.profile.disk_max };
        20 + self.disks.below(max)
    }

    fn schedule_disk(&mut self, id: NodeId) {
        if !self.cluster.node(id).writes.is_empty() {
            let delay = self.disk_delay();
            let life = self.life(id);
            self.later(delay, Happening::Disk(id, life));
        }
    }

    fn schedule_apply(&mut self, id: NodeId) {
        if !self.cluster.node(id).work.is_empty() {
            let delay = 1 + self.workload.below(500);
            let life = self.life(id);
            self.later(delay, Happening::Apply(id, life));
        }
    }

    fn maybe_snapshot(&mut self, id: NodeId) {
        let node = self.cluster.node(id);
        let behind = node.applied.since(node.disk.snapshot.last_included.index);
        if behind < self.profile.snapshot_every || self.snapshotting.contains(&id) {
            return;
        }
        if let Some(snapshot) = self.cluster.snapshot_meta(id) {
            self.snapshotting.insert(id);
            let delay = self.disk_delay() * 2;
            let life = self.life(id);
            self.later(delay, Happening::SnapshotTaken(id, life, snapshot));
        }
    }

    // The network.

    /// Puts what left into the network.
    fn post(&mut self) {
        for envelope in std::mem::take(&mut self.cluster.outbox) {
            if self.healed {
                let delay = 50 + self.network.below(1_000);
                self.later(delay, Happening::Arrive(envelope));
                continue;
            }
            self.recorded.push_back(envelope.clone());
            if self.recorded.len() > 200 {
                self.recorded.pop_front();
            }
            if self.network.chance(self.profile.duplication, 1000) {
                let delay = self.network.below(self.profile.delay_max * 3);
                self.later(delay, Happening::Arrive(envelope.clone()));
            }
            if self.network.chance(self.profile.replay, 1000) {
                let old = index(self.network.below(self.recorded.len() as u64));
                let old = self.recorded[old].clone();
                self.later(0, Happening::Arrive(old));
            }
            if self.network.chance(self.profile.loss, 1000) {
                self.lose(&envelope);
                continue;
            }
            let delay = 50 + self.network.below(self.profile.delay_max);
            self.later(delay, Happening::Arrive(envelope));
        }
    }

    /// A snapshot's stream notices that it broke or was refused; nothing else does.
    fn lose(&mut self, envelope: &Envelope) {
        if let Message::InstallSnapshot(_) = envelope.message
            && self.cluster.raft(envelope.from).is_some()
        {
            let life = self.life(envelope.from);
            let failed = Happening::SnapshotFailed(envelope.from, life, envelope.to);
            self.later(20_000, failed);
        }
    }

    fn arrive(&mut self, envelope: Envelope) {
        let to = envelope.to;
        if !self.cluster.nodes.contains_key(&to) {
            return;
        }
        if self.cluster.raft(to).is_none() || self.blocked.contains(&(envelope.from, to)) {
            self.lose(&envelope);
            return;
        }
        if self.paused.contains(&to) {
            self.later(50_000, Happening::Arrive(envelope));
            return;
        }
        if self.cluster.raft(to).is_some_and(|raft| raft.standing() == Standing::Silent) {
            self.lose(&envelope);
        }
        self.set_clock(to);
        self.cluster.step(envelope);
        self.turn_soon(to);
    }

    // Faults.

    fn start(&mut self, id: NodeId) {
        self.set_clock(id);
        let silent = self.profile.silent && self.faults.chance(1, 2);
        self.cluster.start(id, if silent { Standing::Silent } else { Standing::Full });
        self.snapshotting.remove(&id);
        if silent {
            let delay = self.faults.below(200_000);
            let life = self.life(id);
            self.later(delay, Happening::Stand(id, life));
        }
        self.turn(id);
        // Whoever has a connection to it notices.
        for peer in self.ids() {
            if peer != id && self.awake(peer) {
                self.set_clock(peer);
                self.cluster.connected(peer, id);
                self.turn_soon(peer);
            }
        }
    }

    fn ids(&self) -> Vec<NodeId> {
        self.cluster.nodes.keys().copied().collect()
    }

    fn any(&mut self) -> NodeId {
        let ids = self.ids();
        ids[index(self.faults.below(ids.len() as u64))]
    }

    fn chaos(&mut self) {
        if self.healed {
            return;
        }
        self.later(10_000, Happening::Chaos);
        let id = self.any();
        if self.faults.chance(self.profile.crash, 1000) {
            if self.faults.chance(1, 8) {
                for id in self.ids() {
                    self.crash(id);
                }
            } else {
                self.crash(id);
            }
        }
        if self.faults.chance(self.profile.partition, 1000) {
            self.partition();
        }
        if self.faults.chance(self.profile.pause, 1000) && self.paused.insert(id) {
            let delay = self.faults.below(600_000);
            self.later(delay, Happening::Resume(id));
        }
        if self.faults.chance(self.profile.connection, 1000) && self.awake(id) {
            let peer = self.any();
            let hint = self.profile.hints && self.faults.chance(1, 2);
            self.set_clock(id);
            if self.faults.chance(1, 2) {
                self.cluster.connected(id, peer);
            } else {
                self.cluster.disconnected(id, peer, hint);
            }
            self.turn_soon(id);
        }
        if self.faults.chance(self.profile.campaign, 1000) && self.awake(id) {
            self.set_clock(id);
            self.cluster.campaign(id);
            self.turn_soon(id);
        }
    }

    fn crash(&mut self, id: NodeId) {
        if self.cluster.raft(id).is_none() {
            return;
        }
        let whole = index(self.disks.below(self.cluster.node(id).writes.len() as u64 + 1));
        let cut = match self.disks.below(3) {
            0 => None,
            1 => Some(Cut::HardStateOnly),
            _ => Some(Cut::Entries(index(self.disks.below(3)))),
        };
        self.cluster.crash(id, whole, cut);
        self.paused.remove(&id);
        let delay = self.faults.below(800_000);
        self.later(delay, Happening::Restart(id));
        if self.profile.hints && self.faults.chance(1, 2) {
            for peer in self.ids() {
                if self.awake(peer) {
                    self.set_clock(peer);
                    self.cluster.disconnected(peer, id, true);
                    self.turn_soon(peer);
                }
            }
        }
    }

    fn partition(&mut self) {
        self.blocked.clear();
        let one = self.any();
        let ids = self.ids();
        let kind = self.faults.below(6);
        let side: BTreeSet<NodeId> =
            ids.iter().copied().filter(|_| self.faults.chance(1, 2)).collect();
        for from in &ids {
            for to in &ids {
                let cut = match kind {
                    // One member alone; deaf; mute.
                    0 => (*from == one) != (*to == one),
                    1 => *to == one && from != to,
                    2 => *from == one && from != to,
                    // Two sides.
                    3 => side.contains(from) != side.contains(to),
                    // Only through one member.
                    4 => *from != one && *to != one && from != to,
                    // Any link, in any direction.
                    _ => from != to && self.faults.chance(1, 3),
                };
                if cut {
                    self.blocked.insert((*from, *to));
                }
            }
        }
        let delay = self.faults.below(1_500_000);
        self.later(delay, Happening::Heal);
    }

    // Clients and operators.

    fn client(&mut self) {
        if self.healed {
            return;
        }
        let pace = 2_000_000 / self.profile.clients;
        let delay = 1 + self.workload.below(2 * pace);
        self.later(delay, Happening::Client);
        let ids = self.ids();
        let mut id = ids[index(self.workload.below(ids.len() as u64))];
        if self.workload.chance(3, 4) {
            id = self.cluster.leader().unwrap_or(id);
        }
        if !self.awake(id) {
            return;
        }
        self.set_clock(id);
        if self.workload.chance(2, 3) {
            let count = 1 + self.workload.below(3);
            let commands: Vec<u64> = (self.next_command..self.next_command + count).collect();
            self.next_command += count;
            let bytes = index(1 + self.workload.below(self.profile.payload_bytes));
            self.cluster.propose(id, &commands, bytes);
        } else {
            self.next_command += 1;
            self.cluster.read(id, self.next_command);
        }
        if self.workload.chance(self.profile.transfer, 1000) {
            let target = self.workload.chance(1, 2).then(|| self.any());
            self.cluster.transfer(id, target);
        }
        if self.workload.chance(self.profile.membership, 1000) {
            self.change(id);
        }
        self.turn_soon(id);
    }

    fn change(&mut self, id: NodeId) {
        let mut steps = Vec::new();
        let mut added = None;
        for _ in 0..=self.workload.below(2) {
            let target = self.any();
            steps.push(match self.workload.below(8) {
                0..=2 if self.next_member <= 9 && added.is_none() => {
                    let node = NodeId::new(self.next_member, 0);
                    added = Some(node);
                    self.next_member += 1;
                    let auto_promote = self.workload.chance(2, 3);
                    let member = Member { info: bytes::Bytes::new(), auto_promote };
                    MembershipStep::AddLearner { node, member }
                }
                3 => MembershipStep::Promote(target),
                4 => MembershipStep::Demote(target),
                5 if !self.profile.lease => MembershipStep::SetLease(None),
                5 => MembershipStep::SetLease(self.workload.chance(1, 2).then_some(LEASE)),
                _ => MembershipStep::Remove(target),
            });
        }
        self.next_command += 1;
        self.cluster.change(id, self.next_command, steps);
        if let Some(node) = added {
            self.add_member(node);
        }
    }

    // Liveness.

    fn heal(&mut self) {
        self.healed = true;
        self.blocked.clear();
        self.paused.clear();
        // The disks are fast again, also for the writes under way.
        self.agenda.retain(|_, happening| !matches!(happening, Happening::Disk(..)));
        for id in self.ids() {
            if self.cluster.raft(id).is_none() {
                self.start(id);
            }
        }
        for id in self.ids() {
            self.set_clock(id);
            // A connection that lost something was closed, and is dialled again.
            for peer in self.ids() {
                if id != peer {
                    self.cluster.connected(id, peer);
                }
            }
            self.turn(id);
            self.schedule_disk(id);
        }
    }

    fn established(&self) -> Option<NodeId> {
        self.cluster
            .leader()
            .filter(|id| self.cluster.raft(*id).is_some_and(raft_core::Raft::is_established))
    }

    /// Runs in small steps until `done`; panics with `what` after `limit`.
    fn await_that(&mut self, limit: u64, what: &str, done: impl Fn(&Self) -> bool) {
        let end = self.now + limit;
        while !done(self) {
            assert!(self.now < end, "no progress: {what}\n{}", self.picture());
            self.run_until(self.now + 10_000);
        }
    }

    fn picture(&self) -> String {
        let mut text = String::new();
        for (id, node) in &self.cluster.nodes {
            let Some(raft) = &node.raft else {
                text += &format!("{id} down\n");
                continue;
            };
            text += &format!(
                "{id} {:?} {:?} t{} leader {:?} last {} commit {} applied {} start {} {:?}\n",
                raft.standing(),
                raft.role(),
                raft.current_term(),
                raft.leader(),
                raft.last_log(),
                raft.commit_index(),
                node.applied,
                raft.log_start(),
                raft.membership()
            );
            for (peer, progress) in raft.progress() {
                text += &format!(
                    "    {peer} match {} next {} {:?}\n",
                    progress.match_index(),
                    progress.next_index(),
                    progress.state()
                );
            }
        }
        text
    }

    fn liveness(&mut self) {
        self.heal();
        // Slow disks and pauses of the faulty phase may still be under way for a moment.
        self.await_that(3_000_000 + 4 * MAX, "no leader", |world| world.established().is_some());
        let mut proposed = false;
        while !proposed {
            self.await_that(8 * MAX, "no leader", |world| world.established().is_some());
            let leader = self.established().expect("just seen");
            self.next_command += 1;
            let command = self.next_command;
            self.set_clock(leader);
            proposed = self.cluster.propose(leader, &[command], 1).is_some_and(|r| r.is_ok());
            self.turn(leader);
            if !proposed {
                self.run_until(self.now + 10_000);
            }
        }
        self.await_that(20 * MAX, "members do not converge", Self::converged);
        let term =
            self.cluster.raft(self.established().expect("converged")).expect("up").current_term();
        let before = self.now;
        self.run_until(before + 8 * MAX);
        let leader = self.established().expect("still there");
        assert!(
            self.cluster.raft(leader).expect("up").current_term() == term,
            "L4: the term changes though nothing fails\n{}",
            self.picture()
        );
        assert!(Self::converged(self), "converged before and not now\n{}", self.picture());
    }

    fn converged(&self) -> bool {
        let Some(leader) = self.established().and_then(|id| self.cluster.raft(id)) else {
            return false;
        };
        let membership = leader.membership();
        let last = leader.last_log();
        let settled = leader.commit_index() == last.index
            && !membership.is_joint()
            && membership.members().all(|(_, member)| !member.auto_promote);
        settled
            && membership.members().all(|(id, _)| {
                let node = self.cluster.node(id);
                node.raft.as_ref().is_some_and(|raft| {
                    raft.last_log() == last
                        && raft.commit_index() == last.index
                        && raft.digest_at(last.index) == leader.digest_at(last.index)
                        && node.applied == last.index
                })
            })
    }

    fn finish(&mut self) {
        // Log Matching among all, at least once a run.
        let members: Vec<&raft_core::Raft> =
            self.cluster.nodes.values().filter_map(|node| node.raft.as_ref()).collect();
        self.cluster.oracle.checker.observe(members);
        let committed = self.cluster.oracle.committed;
        for (command, at) in &self.cluster.oracle.acked {
            assert!(at.index <= committed, "I18: command {command} was acknowledged and is gone");
        }
    }
}

/// What a run did, so that a profile that does nothing is noticed.
#[derive(Debug, Default)]
struct Tally {
    steps: u64,
    acked: u64,
    reads: u64,
    terms: u64,
}

impl Tally {
    fn add(&mut self, other: &Self) {
        self.steps += other.steps;
        self.acked += other.acked;
        self.reads += other.reads;
        self.terms += other.terms;
    }
}

fn run(seed: u64) -> Tally {
    let mut world = World::new(seed);
    let mut at = 0;
    while at < FAULTY {
        at += 250_000;
        world.run_until(at);
        let members: Vec<&raft_core::Raft> =
            world.cluster.nodes.values().filter_map(|node| node.raft.as_ref()).collect();
        world.cluster.oracle.checker.observe(members);
    }
    world.liveness();
    world.finish();
    let term = world.established().and_then(|id| world.cluster.raft(id));
    Tally {
        steps: world.steps,
        acked: world.cluster.oracle.acked.len() as u64,
        reads: world.cluster.oracle.reads_answered,
        terms: term.map_or(0, |raft| raft.current_term().0),
    }
}

/// Runs a seed; the error says how to run it again.
fn run_reporting(seed: u64) -> Result<Tally, String> {
    std::panic::catch_unwind(|| run(seed)).map_err(|panic| {
        let text = panic
            .downcast_ref::<String>()
            .map(String::as_str)
            .or_else(|| panic.downcast_ref::<&str>().copied())
            .unwrap_or("a panic without text");
        let profile = Profile::draw(&mut Rng::new(seed).split(1));
        format!(
            "seed {seed} fails: {text}\n    {profile:?}\n    again with: SEEDS={seed} \
             cargo test -p rusty-raft-core --test protocol random_runs"
        )
    })
}

/// `SEEDS=17` or `SEEDS=0..100000` in the environment chooses others than the usual ones.
fn seeds() -> std::ops::Range<u64> {
    let Ok(text) = std::env::var("SEEDS") else {
        // With deliberate bugs as many as the rarest takes.
        return if cfg!(mutants) { 0..2_000 } else { 0..300 };
    };
    let parse = |text: &str| text.parse().expect("SEEDS is a number or A..B");
    match text.split_once("..") {
        Some((from, to)) => parse(from)..parse(to),
        None => parse(&text)..parse(&text) + 1,
    }
}

/// Each worker gives up after this many failures: they are mostly the same one.
const FAILURES_MAX: usize = 10;

#[test]
fn random_runs() {
    #[cfg(mutants)]
    mutants::activate();
    let seeds = seeds();
    let workers = std::thread::available_parallelism().map_or(1, std::num::NonZero::get) as u64;
    let work = &|worker: u64| {
        let mut total = Tally::default();
        let mut failures = Vec::new();
        for seed in seeds.clone().filter(|seed| seed % workers == worker) {
            match run_reporting(seed) {
                Ok(tally) => total.add(&tally),
                Err(failure) => failures.push(failure),
            }
            if failures.len() >= FAILURES_MAX {
                break;
            }
        }
        (total, failures)
    };
    let mut total = Tally::default();
    let mut failures = Vec::new();
    std::thread::scope(|scope| {
        let running: Vec<_> =
            (0..workers).map(|worker| scope.spawn(move || work(worker))).collect();
        for worker in running {
            let (tally, failed) = worker.join().expect("workers catch panics");
            total.add(&tally);
            failures.extend(failed);
        }
    });
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    assert!(
        seeds.is_empty() || (total.acked > 0 && total.reads > 0 && total.terms > 0),
        "nothing happened: {total:?}"
    );
}

/// B3, with a message that no leader of ours sends: it verifies 1 and says that 2 is committed. The old 2:1 behind it is
/// not what the leader means.
#[test]
fn an_unverified_suffix_is_not_committed() {
    #[cfg(mutants)]
    mutants::activate();
    let [leader, follower, third] = [1, 2, 3].map(|n| NodeId::new(n, 0));
    let members =
        Membership::from_voters([leader, follower, third].map(|id| (id, bytes::Bytes::new())));
    let disk = crate::disk::Disk::formed(crate::cluster::IDENTITY, members);
    let micros = Duration::from_micros;
    let config = Config::new(follower, micros(MIN), micros(MAX), micros(HEARTBEAT));
    let identity = crate::cluster::IDENTITY;
    let mut raft =
        raft_core::Raft::new(config, identity, disk.recovered(), Rng::new(1), Time::ZERO)
            .expect("a valid configuration");
    raft.set_standing(Time::ZERO, Standing::Full);
    let mut log = Vec::new();
    let mut digest = disk.log_start_digest;
    let origin = digest;
    for index in 1..=2 {
        let id = raft_core::EntryId::new(index, 1);
        let kind = raft_core::EntryKind::Empty;
        digest = identity.chain(digest, id, kind, &[]);
        log.push(raft_core::Entry { id, kind, digest, payload: bytes::Bytes::new() });
    }
    let mut append = |term, prev_log, prev_digest, entries, leader_commit| {
        let message = Message::AppendEntries(raft_core::AppendEntries {
            term: raft_core::Term(term),
            prev_log,
            prev_digest,
            entries,
            leader_commit: raft_core::Index(leader_commit),
        });
        raft.step(Time::ZERO, Envelope { from: leader, to: follower, message });
        raft.commit_index()
    };
    let first = log[0].clone();
    append(1, raft_core::EntryId::ZERO, origin, log, 0);
    let commit = append(2, first.id, first.digest, Vec::new(), 2);
    assert!(commit == raft_core::Index(1), "{commit} is committed, only 1 is verified");
}

/// `RUSTFLAGS="--cfg mutants" cargo test -p rusty-raft-core --test protocol mutants --target-dir target/mutants`
#[cfg(mutants)]
pub(crate) mod mutants {
    use std::collections::BTreeSet;
    use std::process::Command;

    /// The numbers of docs/testing.md, and the test that fails with each. Figure 8 and a change before an own-term commit
    /// are too rare for random runs, and no correct leader sends what bug 9 needs: those have tests of their own.
    const KILLS: [(u32, &str); 10] = [
        (1, "scripts::figures::figure_8"),
        (2, "random::random_runs"),
        (3, "random::random_runs"),
        (4, "random::random_runs"),
        (8, "random::random_runs"),
        (9, "random::an_unverified_suffix_is_not_committed"),
        (13, "random::random_runs"),
        (14, "random::random_runs"),
        (15, "random::random_runs"),
        (18, "scripts::membership::b26_no_change_before_an_own_commit"),
    ];

    /// Each run of a deliberate bug has a process of its own.
    pub(crate) fn activate() {
        if let Ok(number) = std::env::var("MUTANT") {
            raft_core::mutant::activate(number.parse().expect("MUTANT is a number"));
        }
    }

    #[test]
    fn every_deliberate_bug_is_found() {
        let mut survivors = Vec::new();
        // Without a bug every one of these tests passes: a test that always fails finds nothing.
        let tests: BTreeSet<&str> = KILLS.iter().map(|(_, test)| *test).collect();
        let sound = tests.into_iter().map(|test| (0, test));
        for (number, test) in sound.chain(KILLS) {
            let program = std::env::current_exe().expect("this test runs");
            let outcome = Command::new(program)
                .args(["--exact", test])
                .env("MUTANT", number.to_string())
                .env("RUST_BACKTRACE", "0")
                .output()
                .expect("this test can be run");
            let text = String::from_utf8_lossy(&outcome.stdout).into_owned();
            let killed = text.lines().find(|line| line.contains(" fails: ")).unwrap_or(test);
            #[expect(clippy::print_stdout, reason = "the table of docs/testing.md is made of this")]
            {
                println!("mutant {number}: {killed}");
            }
            if number == 0 {
                assert!(outcome.status.success(), "{test} fails without any bug");
            } else if outcome.status.success() {
                survivors.push(number);
            }
        }
        assert!(survivors.is_empty(), "not found: {survivors:?}");
    }
}
