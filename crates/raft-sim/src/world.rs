//! One run: machines, wires and clients in virtual time, one happening after the other.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use raft::apply::{ApplyCompletion, ApplyRequest};
use raft::error::{DataError, NodeError};
use raft::log::LogCompletion;
use raft::log::snapshot::SnapshotRequest;
use raft::message::PeerMessage;
use raft::node::Phase;
use raft::node::driver::{Configurations, Input, Outputs, SnapshotJob, run_snapshot_job};
use raft_core::{Index, NodeId, Raft, Rng};

use crate::agenda::Agenda;
use crate::check::Oracle;
use crate::client::Client;
use crate::disk::Crash;
use crate::marks::Marks;
use crate::network::Wires;
use crate::operator::Operator;
use crate::process::{Machine, Process, Sent};
use crate::profile::{Options, Profile, pick};
use crate::run::NOW;
use crate::story::{Fault, Kind, Noise};
use crate::tape::{State, Tape};
use crate::workload::Workload;

/// What happens at some moment. The number of a machine comes with the life of the process that is meant.
#[derive(Debug)]
pub(crate) enum Happening {
    /// The driver takes in what waits, or its deadline has come.
    Turn(usize, u64),
    /// The log's worker does what waits.
    Log(usize, u64),
    /// The log's worker may have had nothing to do for a while.
    LogIdle(usize, u64),
    /// The apply worker does what waits.
    Apply(usize, u64),
    /// The snapshot worker does one job.
    Snapshot(usize, u64),
    /// A process does something beside its state machine.
    Attend(usize, u64),
    /// A message comes out of a connection.
    Arrive(u64, u64, Box<PeerMessage>),
    /// The caller notices that its connection is gone.
    Broken(u64),
    /// A process dials those again whom it is not connected to.
    Dial(usize, u64),
    /// Somebody restarts a process.
    Restart(usize),
    /// A machine loses power.
    PowerLoss(usize),
    /// A machine starts its process.
    Start(usize),
    /// A paused process goes on.
    Resume(usize),
    /// The links carry everything again.
    Heal,
    /// A full disk has space again.
    Space(usize),
    /// A clock runs as it did.
    ClockRuns(usize, u64),
    /// Faults are drawn.
    Chaos,
    /// It is drawn anew what disturbs single messages and pieces of work.
    Noise,
    /// A client asks, or looks for its answer.
    Client(usize),
}

/// How the log's worker waits before it seals the log.
const LOG_IDLE: u64 = 20_000;
/// How often the log's worker looks whether a full disk has space again.
const SPACE_RETRY: u64 = 200_000;

pub(crate) struct World<W: Workload> {
    pub(crate) options: Options,
    pub(crate) profile: Profile,
    pub(crate) now: u64,
    agenda: Agenda,
    pub(crate) machines: Vec<Machine<W::Machine>>,
    pub(crate) nodes: BTreeMap<NodeId, usize>,
    pub(crate) wires: Wires,
    pub(crate) clients: Vec<Client<W::Machine>>,
    /// What members ask themselves, by machine: clients like the others, numbered behind them.
    pub(crate) errands: Vec<Client<W::Machine>>,
    /// What they ask, and what must be answered.
    pub(crate) load: W,
    pub(crate) oracle: Oracle,
    /// What happens to messages, of each pair of machines.
    pub(crate) links: Vec<Rng>,
    /// How long work takes, on each machine.
    pub(crate) paces: Vec<Rng>,
    /// Of the fault that is being drawn, made of `fault_seed` and its number.
    pub(crate) faults: Rng,
    pub(crate) fault_seed: u64,
    pub(crate) noise: Noise,
    pub(crate) audits: Rng,
    /// The faults that befell this run so far.
    pub(crate) story: Vec<Fault>,
    /// What a picture is made of, when one is wanted.
    pub(crate) tape: Option<Box<Tape>>,
    /// No faults from now on.
    pub(crate) healed: bool,
    /// Machines that have ever belonged to the cluster.
    pub(crate) formed: BTreeSet<usize>,
    /// Machines that are not there although the faults are over: the others must do.
    pub(crate) absent: BTreeSet<usize>,
    /// What a blown fuse means on each machine.
    pub(crate) fuses: BTreeMap<usize, Crash>,
    /// Machines whose next stop by a failed disk is the world's doing, and when that was still to come.
    pub(crate) failing: BTreeMap<usize, u64>,
    pub(crate) operator: Operator,
    pub(crate) marks: Marks,
    /// Digest of everything that happened.
    trace: u64,
    pub(crate) events: u64,
    pub(crate) next_call: u64,
    pub(crate) crashes: u64,
}

impl<W: Workload> World<W> {
    pub(crate) fn new(seed: u64, options: &Options, load: impl FnOnce(&Profile) -> W) -> Self {
        let mut rng = Rng::new(seed);
        let profile = Profile::of(seed, options);
        let load = load(&profile);
        let mut machines = Vec::new();
        let mut nodes = BTreeMap::new();
        for number in 1..=profile.members + profile.spares {
            let machine = Machine::new(number, &profile, &mut rng.split(100 + number));
            nodes.insert(machine.node(), machines.len());
            machines.push(machine);
        }
        let (mut network, mut paces, mut workload) = (rng.split(2), rng.split(3), rng.split(5));
        let count = profile.members + profile.spares;
        let mut world = Self {
            options: options.clone(),
            now: 0,
            agenda: Agenda::default(),
            nodes,
            wires: Wires::default(),
            clients: (0..profile.clients).map(|nth| Client::new(workload.split(nth))).collect(),
            errands: (0..count).map(|_| Client::new(Rng::new(0))).collect(),
            load,
            oracle: Oracle::default(),
            links: (0..count * count).map(|nth| network.split(nth)).collect(),
            paces: (0..count).map(|nth| paces.split(nth)).collect(),
            faults: Rng::new(0),
            fault_seed: rng.split(4).next_u64(),
            noise: Noise::default(),
            audits: rng.split(6),
            story: Vec::new(),
            tape: options.record.then(|| Box::new(Tape::new(machines.len()))),
            machines,
            healed: false,
            formed: BTreeSet::new(),
            absent: BTreeSet::new(),
            fuses: BTreeMap::new(),
            failing: BTreeMap::new(),
            operator: Operator::default(),
            marks: Marks::default(),
            trace: 0,
            events: 0,
            next_call: 0,
            crashes: 0,
            profile,
        };
        for machine in 0..world.machines.len() {
            let delay = world.paces[machine].below(100_000);
            world.later(delay, Happening::Start(machine));
        }
        world.draw_noise();
        for client in 0..world.clients.len() {
            world.later(100_000, Happening::Client(client));
        }
        world.later(500_000, Happening::Chaos);
        world
    }

    pub(crate) fn later(&mut self, delay: u64, happening: Happening) {
        self.agenda.plan(self.now + delay, happening);
    }

    pub(crate) fn note(&mut self, number: u64) {
        self.trace = (self.trace ^ number).wrapping_mul(0x0000_0100_0000_01B3).rotate_left(7);
    }

    /// The digest of the run: everything that happened, and every byte that any disk was given.
    pub(crate) fn digest(&self) -> u64 {
        let disks = self.machines.iter().map(Machine::trace);
        disks.fold(self.trace, |all, disk| (all ^ disk).wrapping_mul(0x0000_0100_0000_01B3))
    }

    pub(crate) fn run_until(&mut self, end: u64) {
        while let Some((at, happening)) = self.agenda.next_until(end) {
            self.now = self.now.max(at);
            NOW.set(Some(self.now));
            self.events += 1;
            self.happen(happening);
        }
        self.now = self.now.max(end);
    }

    fn happen(&mut self, happening: Happening) {
        self.note(self.now);
        let meant = match &happening {
            Happening::Turn(machine, life)
            | Happening::Log(machine, life)
            | Happening::LogIdle(machine, life)
            | Happening::Apply(machine, life)
            | Happening::Snapshot(machine, life)
            | Happening::Attend(machine, life)
            | Happening::Dial(machine, life) => Some((*machine, *life)),
            Happening::Arrive(..)
            | Happening::Broken(_)
            | Happening::Restart(_)
            | Happening::PowerLoss(_)
            | Happening::Start(_)
            | Happening::Resume(_)
            | Happening::Heal
            | Happening::Space(_)
            | Happening::ClockRuns(..)
            | Happening::Chaos
            | Happening::Noise
            | Happening::Client(_) => None,
        };
        if let Some((machine, life)) = meant {
            self.note(machine as u64 + 1);
            if !self.lives(machine, life) {
                return;
            }
            if self.machines[machine].paused {
                self.later(10_000, happening);
                return;
            }
        }
        match happening {
            Happening::Turn(machine, _) => self.turn(machine),
            Happening::Log(machine, _) => self.work_log(machine),
            Happening::LogIdle(machine, _) => self.idle_log(machine),
            Happening::Apply(machine, _) => self.work_apply(machine),
            Happening::Snapshot(machine, _) => self.work_snapshot(machine),
            Happening::Attend(machine, _) => self.attend(machine),
            Happening::Arrive(connection, epoch, message) => {
                self.arrive(connection, epoch, *message);
            }
            Happening::Broken(connection) => self.broken(connection),
            Happening::Dial(machine, _) => self.dial_again(machine),
            Happening::Restart(machine) => self.restart(machine),
            Happening::PowerLoss(machine) => self.lose_power(machine),
            Happening::Start(machine) => self.start(machine),
            Happening::Resume(machine) => self.resume(machine),
            Happening::Heal => self.partition_ends(),
            Happening::Space(machine) => self.machines[machine].disk.set_capacity(None),
            Happening::ClockRuns(machine, rate) => {
                self.machines[machine].clock.set_rate(self.now, rate);
                let life = self.machines[machine].life;
                self.later(0, Happening::Turn(machine, life));
            }
            Happening::Chaos => self.chaos(),
            Happening::Noise => self.draw_noise(),
            Happening::Client(client) => self.client(client),
        }
    }

    pub(crate) fn lives(&self, machine: usize, life: u64) -> bool {
        let machine = &self.machines[machine];
        machine.process.is_some() && machine.life == life
    }

    pub(crate) fn process(&mut self, machine: usize) -> Option<&mut Process<W::Machine>> {
        self.machines[machine].process.as_mut()
    }

    pub(crate) fn raft(&self, machine: usize) -> Option<&Raft> {
        self.machines[machine].process.as_ref()?.driver.raft()
    }

    // Starting and stopping.

    fn start(&mut self, machine: usize) {
        if self.machines[machine].process.is_some() || self.absent.contains(&machine) {
            return;
        }
        // Sometimes the machine stops again in the middle of its recovery.
        let again = Kind::Recovery(machine);
        if !self.healed && self.strikes(again, self.profile.crash + self.profile.power) {
            let crash = self.draw_crash();
            let operations = self.faults.below(30);
            self.machines[machine].disk.set_fuse(Some(operations));
            self.fuses.insert(machine, crash);
            let stops = stops(crash);
            self.tell(
                again,
                format!(
                    "n{} starts and {stops} after {operations} operations of its disk",
                    machine + 1
                ),
            );
        }
        let (profile, now) = (self.profile.clone(), self.now);
        let mut state = self.load.machine();
        let node = self.machines[machine].node();
        self.load.starts(node, &mut state);
        let outcome = self.machines[machine].start(&profile, now, state);
        if self.machines[machine].disk.is_blown() {
            self.blown(machine);
            return;
        }
        match outcome {
            Ok(report) => self.marks.recovered(report.as_ref()),
            Err(error) => return self.did_not_start(machine, &error),
        }
        if let Some(raft) = self.machines[machine].process.as_ref().and_then(|p| p.driver.raft()) {
            if raft.membership().is_joint() {
                self.marks.hit("restart in a joint configuration");
            }
            self.oracle.started(raft);
        }
        if let Some(tape) = &mut self.tape {
            tape.state(self.now, machine, State::Up);
        }
        self.turn(machine);
    }

    fn did_not_start(&mut self, machine: usize, error: &str) {
        let disk = &self.machines[machine].disk;
        let full = self.is_full(machine);
        if disk.is_read_only() {
            // Somebody cycles power.
            self.marks.hit("start refused: read-only file system");
            self.failing.remove(&machine);
            self.draw_for(Kind::Consequence(machine));
            let (crash, down) = (Crash::Power(self.faults.next_u64()), self.faults.below(300_000));
            return self.crash(machine, crash, down);
        }
        if self.is_doomed(machine) {
            // Its disk is damaged, and recovery says so.
            self.marks.hit("start refused: damage");
            self.crash(machine, Crash::Process, u64::MAX);
            self.operator.refuses = true;
            return;
        }
        // A sync that fails during recovery, or a lack of space, is reason enough not to start.
        assert!(
            self.failing.contains_key(&machine) || full,
            "n{} cannot start on its own data: {error}",
            machine + 1
        );
        self.marks.hit(if full { "start refused: full disk" } else { "start refused: sync" });
        self.failing.remove(&machine);
        self.crash_by_itself(machine);
    }

    /// A process that ended by itself is started again soon.
    fn crash_by_itself(&mut self, machine: usize) {
        self.draw_for(Kind::Consequence(machine));
        let down = self.faults.below(300_000);
        self.crash(machine, Crash::Process, down);
    }

    pub(crate) fn pause(&mut self, machine: usize) {
        self.machines[machine].paused = true;
        if let Some(tape) = &mut self.tape {
            tape.state(self.now, machine, State::Paused);
        }
    }

    pub(crate) fn resume(&mut self, machine: usize) {
        let paused = std::mem::take(&mut self.machines[machine].paused);
        if let Some(tape) = self.tape.as_mut().filter(|_| paused) {
            tape.state(self.now, machine, State::Up);
        }
    }

    pub(crate) fn is_full(&self, machine: usize) -> bool {
        self.machines[machine].disk.capacity().is_some()
    }

    /// The process is gone, and of what its disk had not synced whatever `crash` says. It starts again after `down`;
    /// the largest number: never by itself.
    pub(crate) fn crash(&mut self, machine: usize, crash: Crash, down: u64) {
        self.crashes += 1;
        self.clients_lost(machine);
        self.fuses.remove(&machine);
        let node = self.machines[machine].node();
        if let Some(raft) = self.raft(machine)
            && raft.membership().is_joint()
        {
            self.marks.hit("crash in a joint configuration");
        }
        self.machines[machine].process = None;
        self.load.stops(node);
        self.machines[machine].paused = false;
        if let Some(tape) = &mut self.tape {
            tape.state(self.now, machine, State::Down(crash));
        }
        if matches!(crash, Crash::Power(_)) && self.profile.page_tears && !self.healed {
            // A batch of which nobody can say whether it was synced ends a member: no more of them than may go.
            let tears = self.may_damage(machine);
            if tears {
                self.doom(machine);
            }
            self.machines[machine].disk.set_power_safe_overwrite(!tears);
        }
        self.machines[machine].disk.crash(crash);
        self.machines[machine].at_rest = None;
        self.oracle.crashed(node);
        for id in self.wires.of(machine) {
            let Some(connection) = self.wires.get_mut(id) else { continue };
            connection.dead = true;
            let (from, to) = (connection.from, connection.to);
            if from == machine {
                self.wires.close(id);
                continue;
            }
            // A dead process answers with a reset at once; a dead machine not at all.
            let link = self.link(from, to);
            let delay = match crash {
                Crash::Process => 100 + self.links[link].below(3_000),
                Crash::Power(_) => 200_000 + self.links[link].below(500_000),
            };
            self.later(delay, Happening::Broken(id));
        }
        if down < u64::MAX {
            self.later(down, Happening::Start(machine));
        }
    }

    /// The fuse of a machine has blown: its process died at that operation.
    fn blown(&mut self, machine: usize) {
        let crash = self.fuses.remove(&machine).unwrap_or(Crash::Process);
        self.draw_for(Kind::Consequence(machine));
        let down = self.faults.below(500_000);
        self.crash(machine, crash, down);
    }

    // Work.

    /// Something waits for the driver: it will have a turn soon, with whatever else comes until then.
    pub(crate) fn wake(&mut self, machine: usize, input: Input<W::Machine>) {
        let Self { machines, paces, .. } = self;
        let life = machines[machine].life;
        let Some(process) = machines[machine].process.as_mut() else { return };
        if matches!(input, Input::Apply(ApplyCompletion::Applied(_))) && !process.waits_for_apply {
            process.unheard = Some(input);
            return;
        }
        process.inbox.push(input);
        if process.inbox.len() == 1 {
            let delay = 1 + paces[machine].below(30);
            self.later(delay, Happening::Turn(machine, life));
        }
    }

    fn turn(&mut self, machine: usize) {
        let now = self.machines[machine].clock.local(self.now);
        let Some(process) = self.process(machine) else { return };
        let due = process.deadline.is_none_or(|deadline| deadline <= now);
        if process.inbox.is_empty() && !due {
            self.plan_deadline(machine);
            return;
        }
        let mut sent = Sent::default();
        let repairing = matches!(process.driver.phase(), Phase::Repairing(_));
        let inputs = process.unheard.take().into_iter().chain(process.inbox.drain(..));
        let out = process.driver.turn(now, inputs, &mut sent);
        process.deadline = out.deadline;
        process.waits_for_apply = out.waits_for_apply;
        if let (true, Some(raft)) = (repairing, self.raft(machine)) {
            self.oracle.started(raft);
            self.marks.hit("a damaged member was repaired by others");
        }
        let epoch = out.epoch;
        self.carry_out(machine, out);
        for (to, stream, message) in sent.0 {
            self.send(machine, to, stream, epoch, message);
        }
        self.check(machine);
        self.poll_clients(machine);
        self.notice_standing(machine);
        self.plan_deadline(machine);
    }

    fn plan_deadline(&mut self, machine: usize) {
        let life = self.machines[machine].life;
        let Some(deadline) = self.process(machine).and_then(|process| process.deadline) else {
            return;
        };
        let at = self.machines[machine].clock.global(self.now, deadline).max(self.now + 1);
        let now = self.now;
        let Some(process) = self.process(machine) else { return };
        // Many turns plan the same deadline; an earlier plan that still lies ahead will do: it plans anew.
        if process.planned.is_none_or(|planned| planned <= now || at < planned) {
            process.planned = Some(at);
            self.later(at - now, Happening::Turn(machine, life));
        }
    }

    fn carry_out(&mut self, machine: usize, out: Outputs<W::Machine>) {
        let node = self.machines[machine].node();
        if let Some(peer) = out.disconnect.first() {
            panic!("I22: n{} finds that {peer} contradicts itself or others", machine + 1);
        }
        if let Some(raft) = self.machines[machine].process.as_ref().and_then(|p| p.driver.raft()) {
            for job in &out.snapshot {
                if let SnapshotJob::Work(SnapshotRequest::Write(meta, _)) = job {
                    self.marks.hit("checkpoint");
                    self.oracle.checkpoint(raft, meta);
                }
            }
        }
        for request in &out.apply {
            if let ApplyRequest::Entries { entries, .. } = request {
                self.oracle.applies(node, entries, &mut self.load);
            }
        }
        if let Some(cluster) = out.formed {
            self.oracle.formed(cluster);
        }
        let life = self.machines[machine].life;
        let Some(process) = self.process(machine) else { return };
        process.log_queue.extend(out.log);
        process.apply_queue.extend(out.apply);
        process.snapshot_queue.extend(out.snapshot);
        process.facts.cluster = out.formed.or(process.facts.cluster);
        if out.formed.is_some() {
            self.formed.insert(machine);
        }
        let Some(process) = self.process(machine) else { return };
        process.epoch = out.epoch;
        process.last_durable = out.last_durable;
        process.facts.epochs_seen.extend(out.peer_epochs);
        if let Some(Configurations { in_force, committed }) = &out.membership {
            process.facts.set_membership(in_force, committed);
        }
        if let Some(peers) = out.dial {
            self.set_peers(machine, peers);
        }
        if let Some(end) = out.end {
            self.ended(machine, end);
            return;
        }
        self.plan_work(machine, life);
    }

    fn ended(&mut self, machine: usize, end: Result<(), NodeError>) {
        let failing = self.failing.contains_key(&machine);
        match end {
            Err(NodeError::DiskLatched { .. }) if failing => {
                self.marks.hit("ended: disk latched");
                self.failing.remove(&machine);
                self.crash_by_itself(machine);
            }
            // Without space for its first segment a node cannot become a member.
            Err(NodeError::DiskLatched { .. })
                if self.is_full(machine) && !self.is_formed(machine) =>
            {
                self.marks.hit("ended: no space for the first segment");
                self.crash_by_itself(machine);
            }
            Err(NodeError::Removed) => self.removed(machine),
            // Nobody has what is damaged: it is replaced.
            Err(NodeError::Data(DataError::Damaged { .. } | DataError::Amnesic { .. }))
                if self.is_doomed(machine) =>
            {
                self.marks.hit("ended: damage that nobody can repair");
                self.crash(machine, Crash::Process, u64::MAX);
                self.operator.refuses = true;
            }
            // Whoever starts it again finds out whether it can do without.
            Err(NodeError::Snapshot(_) | NodeError::SetAside(_)) if self.is_doomed(machine) => {
                self.marks.hit("ended: a snapshot is damaged");
                self.crash_by_itself(machine);
            }
            // What begins a log anew has to be written.
            Err(NodeError::Data(DataError::Io { .. }))
                if self.is_full(machine) && self.profile.rot_entries > 0 =>
            {
                self.marks.hit("ended: no space to begin the log anew");
                self.crash_by_itself(machine);
            }
            // The others have it in a snapshot only by now: it is replaced, once no other one is.
            Err(NodeError::Data(DataError::Damaged { .. })) if self.profile.rot_entries > 0 => {
                self.marks.hit("ended: the others have gone on without what is damaged");
                if self.may_doom(machine) {
                    self.doom(machine);
                    self.crash(machine, Crash::Process, u64::MAX);
                    self.operator.refuses = true;
                } else {
                    let down = 200_000 + self.faults.below(300_000);
                    self.crash(machine, Crash::Process, down);
                }
            }
            Err(error) => panic!("n{} ended: {error}", machine + 1),
            Ok(()) => panic!("n{} ended though nobody asked it to", machine + 1),
        }
    }

    fn is_formed(&self, machine: usize) -> bool {
        let process = self.machines[machine].process.as_ref();
        process.is_some_and(|process| process.facts.cluster.is_some())
    }

    /// Sends the workers to work that have something to do.
    fn plan_work(&mut self, machine: usize, life: u64) {
        let disk = self.disk_delay(machine);
        let slow = self.disk_delay(machine);
        let apply = 1 + self.paces[machine].below(200);
        let Some(process) = self.process(machine) else { return };
        let mut planned = Vec::new();
        if !process.log_busy && !process.log_queue.is_empty() {
            process.log_busy = true;
            planned.push((disk, Happening::Log(machine, life)));
        }
        if !process.apply_busy && !process.apply_queue.is_empty() {
            process.apply_busy = true;
            planned.push((apply, Happening::Apply(machine, life)));
        }
        if !process.snapshot_busy && !process.snapshot_queue.is_empty() {
            process.snapshot_busy = true;
            planned.push((slow, Happening::Snapshot(machine, life)));
        }
        for (delay, happening) in planned {
            self.later(delay, happening);
        }
    }

    fn disk_delay(&mut self, machine: usize) -> u64 {
        let pace = &mut self.paces[machine];
        if self.healed {
            return 50 + pace.below(500);
        }
        if pace.chance(self.profile.disk_stall, 1000) && self.noise.stall {
            return pace.below(2_000_000);
        }
        20 + pace.below(self.profile.disk_max)
    }

    fn work_log(&mut self, machine: usize) {
        let life = self.machines[machine].life;
        let Some(process) = self.process(machine) else { return };
        let requests = std::mem::take(&mut process.log_queue);
        process.log_busy = false;
        let begins = process.log.log().status();
        self.marks.log(&requests, &begins);
        let Some(process) = self.process(machine) else { return };
        let completions = process.log.handle(requests);
        self.log_done(machine, completions);
        // As the log's thread: what is durable is told before the next segment is made ready.
        if self.lives(machine, life)
            && let Some(process) = self.process(machine)
        {
            let completions = process.log.housekeep();
            self.log_done(machine, completions);
        }
        if self.lives(machine, life) {
            self.plan_work(machine, life);
            self.log_idles(machine, LOG_IDLE);
        }
    }

    /// Unless something comes, the log's worker looks after the log this long from now.
    fn log_idles(&mut self, machine: usize, pause: u64) {
        let (now, life) = (self.now, self.machines[machine].life);
        let Some(process) = self.process(machine) else { return };
        process.log_idle_from = now + pause;
        if !std::mem::replace(&mut process.log_idle_planned, true) {
            self.later(pause, Happening::LogIdle(machine, life));
        }
    }

    fn idle_log(&mut self, machine: usize) {
        let now = self.now;
        let life = self.machines[machine].life;
        let Some(process) = self.process(machine) else { return };
        process.log_idle_planned = false;
        if process.log_busy || !process.log_queue.is_empty() {
            return;
        }
        let from = process.log_idle_from;
        if now < from {
            return self.log_idles(machine, from - now);
        }
        let completions = process.log.idle();
        let waits = process.log.waits_for_space();
        self.log_done(machine, completions);
        if waits && self.lives(machine, life) {
            self.log_idles(machine, SPACE_RETRY);
        }
    }

    fn log_done(&mut self, machine: usize, completions: Vec<LogCompletion>) {
        if self.machines[machine].disk.is_blown() {
            self.blown(machine);
            return;
        }
        let Some(process) = self.process(machine) else { return };
        let epoch = process.log.log().epoch();
        for completion in completions {
            self.wake(machine, Input::Log(epoch, completion));
        }
    }

    fn work_apply(&mut self, machine: usize) {
        let life = self.machines[machine].life;
        let Some(process) = self.process(machine) else { return };
        let requests = std::mem::take(&mut process.apply_queue);
        process.apply_busy = false;
        let completions = process.apply.handle(requests);
        let applied = process.apply.applied();
        let state = is_compared(applied).then(|| (applied, process.digest()));
        for completion in completions {
            self.wake(machine, Input::Apply(completion));
        }
        let node = self.machines[machine].node();
        if let Some((index, digest)) = state {
            self.oracle.state(node, index, digest);
        }
        if let Some(process) = &self.machines[machine].process {
            self.load.look(node, process.apply.applied(), process.apply.machine());
        }
        self.poll_clients(machine);
        self.attend_soon(machine);
        self.plan_work(machine, life);
    }

    fn work_snapshot(&mut self, machine: usize) {
        let life = self.machines[machine].life;
        let Some(process) = self.process(machine) else { return };
        process.snapshot_busy = false;
        let Some(job) = process.snapshot_queue.pop_front() else { return };
        let done = run_snapshot_job(&mut process.snapshots, job);
        if self.machines[machine].disk.is_blown() {
            self.blown(machine);
            return;
        }
        for done in done {
            self.wake(machine, Input::Snapshot(done));
        }
        self.plan_work(machine, life);
    }

    // Checks.

    fn check(&mut self, machine: usize) {
        let Some(raft) = self.machines[machine].process.as_ref().and_then(|p| p.driver.raft())
        else {
            return;
        };
        if let Some(tape) = &mut self.tape {
            tape.role(self.now, machine, raft.role(), raft.current_term(), raft.commit_index());
        }
        self.check_progress(raft);
        if self.profile.lease {
            self.check_leases();
        }
        let before = self.oracle.committed();
        self.oracle.observe(raft);
        let after = self.oracle.committed();
        let membership = Arc::clone(raft.membership());
        let previous = self.machines[machine].membership.replace(membership);
        if after <= before {
            return;
        }
        self.note(after.0);
        self.check_durable(machine, previous.as_deref());
        let every = self.options.audit_every;
        if every > 0 && self.audits.chance(1, every) {
            self.audit(machine, previous.as_deref());
        }
    }

    /// Log Matching among all.
    pub(crate) fn match_logs(&mut self) {
        let Self { machines, oracle, .. } = self;
        let rafts = machines.iter().filter_map(|machine| machine.process.as_ref()?.driver.raft());
        oracle.observe_all(rafts);
    }

    /// The established leader of the highest term.
    pub(crate) fn leader(&self) -> Option<usize> {
        let leaders = (0..self.machines.len()).filter_map(|machine| {
            let raft = self.raft(machine)?;
            raft.is_established().then_some((raft.current_term(), machine))
        });
        leaders.max().map(|(_, machine)| machine)
    }

    /// Every member for a person to read.
    pub(crate) fn picture(&self) -> String {
        let mut text = String::new();
        for machine in &self.machines {
            text += &format!("{} {} ", machine.address, machine.node());
            let Some(process) = &machine.process else {
                text += "down\n";
                continue;
            };
            text += &format!("{:?}", process.driver.phase());
            if let Some(raft) = process.driver.raft() {
                text += &format!(
                    " {:?} {} last {} commit {} applied {} start {}",
                    raft.role(),
                    raft.current_term(),
                    raft.last_log(),
                    raft.commit_index(),
                    process.apply.applied(),
                    raft.log_start()
                );
                text += &format!("\n    {:?}", raft.membership());
                for (peer, progress) in raft.progress() {
                    let (matched, next) = (progress.match_index(), progress.next_index());
                    let state = progress.state();
                    text += &format!("\n    {peer} match {matched} next {next} {state:?}");
                }
            }
            text += "\n";
        }
        text
    }

    /// How a machine stops.
    pub(crate) fn draw_crash(&mut self) -> Crash {
        let (crash, power) = (self.profile.crash, self.profile.power);
        if power > 0 && self.faults.below(crash + power) >= crash {
            Crash::Power(self.faults.next_u64())
        } else {
            Crash::Process
        }
    }

    pub(crate) fn any_machine(&mut self) -> usize {
        pick(&mut self.faults, self.machines.len())
    }
}

/// Whether the states of all members after this entry are compared (I19). All look at the same ones, and the more seldom
/// the longer the log is: a look costs what the whole state does.
fn is_compared(applied: Index) -> bool {
    applied.0.is_multiple_of(32.max(applied.0.next_power_of_two() / 32))
}

/// How it stops, in a few words.
pub(crate) const fn stops(crash: Crash) -> &'static str {
    match crash {
        Crash::Process => "dies",
        Crash::Power(_) => "loses power",
    }
}
