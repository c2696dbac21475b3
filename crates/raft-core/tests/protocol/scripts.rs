//! Stories: each script in `tests/scripts` drives a few members by hand and shows every message they send.
//!
//! Clocks stand still unless a command moves them; disks and state machines work at once unless the member was
//! declared `slow`; messages wait in the network, in order, until a command delivers or drops them. After every
//! command the same oracle as in the random runs checks everything.
//!
//! `UPDATE_GOLDENFILES=1 cargo test -p rusty-raft-core --test protocol` writes the outputs anew; review the
//! difference like code.

use std::collections::{BTreeMap, BTreeSet};
use std::error::Error;
use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use goldenscript::{Argument, Command, Context, Runner};
use raft_core::{
    AppendOutcome, Config, Entry, EntryId, EntryKind, Envelope, Event, HardState, Index, Lease,
    Member, Membership, MembershipStep, Message, NodeId, ProgressState, Raft, RoleKind, Standing,
    Term,
};
use test_each_file::test_each_path;

use crate::cluster::{Cluster, IDENTITY};
use crate::disk::Cut;

test_each_path! { for ["script"] in "./crates/raft-core/tests/scripts" => script }

fn script([path]: [&Path; 1]) {
    #[cfg(mutants)]
    crate::random::mutants::activate();
    if let Err(error) = goldenscript::run(&mut Story::default(), path) {
        panic!("{}: {error}", path.display());
    }
}

type Outcome = Result<(), Box<dyn Error>>;

#[derive(Default)]
struct Story {
    cluster: Option<Cluster>,
    /// Settings for members that are created.
    settings: BTreeMap<String, u64>,
    network: Vec<Envelope>,
    saved: Vec<Envelope>,
    blocked: BTreeSet<(NodeId, NodeId)>,
    /// Members whose disk and state machine work only when told to.
    slow: BTreeSet<NodeId>,
    next_request: u64,
    out: String,
}

impl Runner for Story {
    type Command = Command;

    fn run(&mut self, command: &Command, _: &Context) -> Result<String, Box<dyn Error>> {
        self.out.clear();
        self.command(command)?;
        if let Some(Cluster { nodes, oracle, .. }) = &mut self.cluster {
            let running: Vec<&Raft> =
                nodes.values().filter_map(|node| node.raft.as_ref()).collect();
            oracle.checker.observe(running);
        }
        Ok(self.out.clone())
    }
}

/// The arguments of a command: nodes and numbers by position, the rest by name.
struct Arguments {
    nodes: Vec<NodeId>,
    words: Vec<String>,
    keys: BTreeMap<String, String>,
}

impl Arguments {
    fn parse(command: &Command) -> Result<Self, Box<dyn Error>> {
        let mut arguments = Self { nodes: Vec::new(), words: Vec::new(), keys: BTreeMap::new() };
        for argument in &command.args {
            match argument {
                Argument::Positional(word) => match node(word) {
                    Some(node) => arguments.nodes.push(node),
                    None => arguments.words.push(word.clone()),
                },
                Argument::KeyValue(key, value) => {
                    arguments.keys.insert(key.clone(), value.clone());
                }
                _ => return Err("an unknown kind of argument".into()),
            }
        }
        Ok(arguments)
    }

    fn first(&self) -> Result<NodeId, Box<dyn Error>> {
        self.nodes.first().copied().ok_or_else(|| "which member?".into())
    }

    fn peer(&self) -> Result<NodeId, Box<dyn Error>> {
        self.nodes.get(1).copied().ok_or_else(|| "which other member?".into())
    }

    fn has(&self, word: &str) -> bool {
        self.words.iter().any(|w| w == word)
    }

    fn number(&self, key: &str) -> Result<Option<u64>, Box<dyn Error>> {
        Ok(self.keys.get(key).map(|value| value.parse()).transpose()?)
    }

    fn numbers(&self) -> Result<Vec<u64>, Box<dyn Error>> {
        self.words.iter().map(|word| word.parse().map_err(Into::into)).collect()
    }

    fn node_of(&self, key: &str) -> Result<Option<NodeId>, Box<dyn Error>> {
        match self.keys.get(key) {
            None => Ok(None),
            Some(text) => Ok(Some(node(text).ok_or("not a member's name")?)),
        }
    }

    /// Whether a message is meant: `from=n1 to=n2 type=Heartbeat`, each optional.
    fn matches(&self, envelope: &Envelope) -> Result<bool, Box<dyn Error>> {
        let from = self.node_of("from")?.is_none_or(|from| from == envelope.from);
        let to = self.node_of("to")?.or_else(|| self.nodes.first().copied());
        let to = to.is_none_or(|to| to == envelope.to);
        let name = name(&envelope.message);
        Ok(from && to && self.keys.get("type").is_none_or(|kind| kind == name))
    }
}

fn node(word: &str) -> Option<NodeId> {
    Some(NodeId::new(word.strip_prefix('n')?.parse().ok()?, 0))
}

impl Story {
    fn cluster(&mut self) -> Result<&mut Cluster, Box<dyn Error>> {
        self.cluster.as_mut().ok_or_else(|| "no cluster yet".into())
    }

    fn command(&mut self, command: &Command) -> Outcome {
        let arguments = Arguments::parse(command)?;
        match command.name.as_str() {
            // The cast.
            "set" => self.set(&arguments)?,
            "cluster" => self.create(&arguments)?,
            "member" => self.member(&arguments)?,
            "start" => self.start(&arguments)?,
            // What members are told to do.
            "campaign" => self.input(&arguments, |cluster, id| cluster.campaign(id))?,
            "timeout" => self.timeout(&arguments)?,
            "run" => self.run_for(&arguments)?,
            "wait" => self.wait(&arguments)?,
            "elect" => {
                self.input(&arguments, |cluster, id| cluster.campaign(id))?;
                self.deliver_all()?;
            }
            "propose" => self.propose(&arguments)?,
            "read" => {
                for read in arguments.numbers()? {
                    self.input(&arguments, |cluster, id| cluster.read(id, read))?;
                }
            }
            "change" => self.change(command)?,
            "transfer" => self.transfer(&arguments)?,
            "connect" => {
                let peer = arguments.peer()?;
                self.input(&arguments, |cluster, id| cluster.connected(id, peer))?;
            }
            "disconnect" => {
                let (peer, hint) = (arguments.peer()?, arguments.has("hint"));
                self.input(&arguments, |cluster, id| cluster.disconnected(id, peer, hint))?;
            }
            "silence" => {
                self.input(&arguments, |cluster, id| cluster.set_standing(id, Standing::Silent))?
            }
            "trust" => {
                self.input(&arguments, |cluster, id| cluster.set_standing(id, Standing::Full))?;
            }
            // Disks and state machines.
            "slow" => self.slow.extend(&arguments.nodes),
            "fast" => {
                for id in &arguments.nodes {
                    self.slow.remove(id);
                }
                for id in arguments.nodes {
                    self.settle(id)?;
                }
            }
            "persist" => {
                let count = arguments.number("count")?.unwrap_or(1_000);
                let count = usize::try_from(count)?;
                self.input(&arguments, |cluster, id| cluster.persist(id, count, true))?;
            }
            "apply" => self.input(&arguments, |cluster, id| cluster.apply(id))?,
            "snapshot" => self.snapshot(&arguments)?,
            "stream" => self.input(&arguments, |cluster, id| cluster.send_snapshot(id))?,
            "fail-snapshot" => {
                let to = arguments.peer()?;
                self.input(&arguments, |cluster, id| cluster.snapshot_failed(id, to))?;
            }
            "fetch" => self.input(&arguments, |cluster, id| cluster.fetch(id))?,
            "crash" => self.crash(&arguments)?,
            "restart" => self.start(&arguments)?,
            // The network.
            "deliver" => self.deliver(&arguments)?,
            "stabilize" => self.deliver_all()?,
            "drop" => {
                let mut kept = Vec::new();
                for envelope in std::mem::take(&mut self.network) {
                    if arguments.matches(&envelope)? {
                        writeln!(self.out, "lost: {}", told(&envelope))?;
                    } else {
                        kept.push(envelope);
                    }
                }
                self.network = kept;
            }
            "save" => {
                for envelope in &self.network {
                    if arguments.matches(envelope)? {
                        self.saved.push(envelope.clone());
                    }
                }
            }
            "replay" => {
                for envelope in self.saved.clone() {
                    if arguments.matches(&envelope)? {
                        writeln!(self.out, "again: {}", told(&envelope))?;
                        self.network.push(envelope);
                    }
                }
            }
            "cut" => {
                let (a, b) = (arguments.first()?, arguments.peer()?);
                self.blocked.insert((a, b));
                if !arguments.has("one-way") {
                    self.blocked.insert((b, a));
                }
            }
            "isolate" => {
                let alone = arguments.first()?;
                let ids: Vec<NodeId> = self.cluster()?.nodes.keys().copied().collect();
                for id in ids.into_iter().filter(|id| *id != alone) {
                    self.blocked.insert((alone, id));
                    self.blocked.insert((id, alone));
                }
            }
            "heal" => self.blocked.clear(),
            // Looking.
            "status" => self.status(&arguments)?,
            "log" => self.log(&arguments)?,
            "deadline" => {
                for id in arguments.nodes {
                    let node = self.cluster()?.node(id);
                    let deadline = node.raft.as_ref().and_then(Raft::deadline);
                    match deadline.map(|at| at.since(node.now).as_millis()) {
                        Some(millis) => writeln!(self.out, "{id} acts in {millis} ms")?,
                        None => writeln!(self.out, "{id} waits for nothing")?,
                    }
                }
            }
            "network" => {
                for envelope in &self.network {
                    writeln!(self.out, "{}", told(envelope))?;
                }
            }
            other => return Err(format!("no such command: {other}").into()),
        }
        Ok(())
    }

    // The cast.

    fn set(&mut self, arguments: &Arguments) -> Outcome {
        for (key, value) in &arguments.keys {
            self.settings.insert(key.clone(), value.parse()?);
        }
        Ok(())
    }

    /// `cluster n1 n2 n3`: these vote and start. With `stopped` they wait for `member` and `start`.
    fn create(&mut self, arguments: &Arguments) -> Outcome {
        let mut first =
            Membership::from_voters(arguments.nodes.iter().map(|node| (*node, Bytes::new())));
        if let Some(length) = arguments.number("lease")? {
            let drift_ppm = u32::try_from(arguments.number("drift_ppm")?.unwrap_or(0))?;
            let lease = Lease { length: Duration::from_millis(length), drift_ppm };
            first = first
                .change(&[MembershipStep::SetLease(Some(lease))])
                .map_err(|error| error.to_string())?;
        }
        self.cluster = Some(Cluster::new(1, first));
        for id in &arguments.nodes {
            let config = self.config(*id);
            self.cluster()?.add(config);
        }
        if !arguments.has("stopped") {
            self.start(arguments)?;
        }
        Ok(())
    }

    fn config(&self, id: NodeId) -> Config {
        let millis = Duration::from_millis;
        let mut config = Config::new(id, millis(100), millis(200), millis(20));
        // A story is read best when everything is said as soon as it is known.
        config.commit_notice_delay =
            millis(self.settings.get("commit_notice_delay").copied().unwrap_or(0));
        let number = |key: &str| {
            self.settings.get(key).map(|value| usize::try_from(*value).expect("a 64-bit machine"))
        };
        let change = |key: &str, field: &mut usize| {
            if let Some(value) = number(key) {
                *field = value;
            }
        };
        change("append_entries_max", &mut config.append_entries_max);
        change("inflight_messages_max", &mut config.inflight_messages_max);
        change("cache_bytes_max", &mut config.cache_bytes_max);
        change("uncommitted_bytes_max", &mut config.uncommitted_bytes_max);
        if let Some(lag) = self.settings.get("promotion_lag_max") {
            config.promotion_lag_max = *lag;
        }
        config
    }

    /// `member n4`: a node with an empty log. `term=3 vote=n2 terms=1,1,3`: what its disk holds.
    fn member(&mut self, arguments: &Arguments) -> Outcome {
        let id = arguments.first()?;
        if !self.cluster()?.nodes.contains_key(&id) {
            let config = self.config(id);
            self.cluster()?.add(config);
        }
        let voted_for = arguments.node_of("vote")?;
        let term = arguments.number("term")?;
        let disk = &mut self.cluster()?.node_mut(id).disk;
        if let Some(term) = term {
            disk.hard_state = HardState { current_term: Term(term), voted_for };
        }
        let terms = arguments.keys.get("terms").map_or("", String::as_str);
        let mut previous = disk.log_start_digest;
        for (index, term) in (1..).zip(terms.split(',').filter(|term| !term.is_empty())) {
            let id = EntryId::new(index, term.parse()?);
            // Entries of one position and term are the same everywhere (Log Matching).
            let payload = Bytes::from((id.term.0 * 1000 + index).to_string());
            let digest = IDENTITY.chain(previous, id, EntryKind::Command, &payload);
            disk.entries.push(Entry { id, kind: EntryKind::Command, digest, payload });
            previous = digest;
        }
        Ok(())
    }

    fn start(&mut self, arguments: &Arguments) -> Outcome {
        for id in &arguments.nodes {
            let silent = arguments.has("silent");
            let standing = if silent { Standing::Silent } else { Standing::Full };
            self.cluster()?.start(*id, standing);
            self.settle(*id)?;
        }
        Ok(())
    }

    /// `crash n2 durable=1 torn`: one of the writes under way is durable, of the next one the hard state.
    fn crash(&mut self, arguments: &Arguments) -> Outcome {
        let whole = usize::try_from(arguments.number("durable")?.unwrap_or(0))?;
        for id in &arguments.nodes {
            let cut = arguments.has("torn").then_some(Cut::HardStateOnly);
            self.cluster()?.crash(*id, whole, cut);
            self.network.retain(|envelope| envelope.to != *id);
        }
        Ok(())
    }

    // Inputs.

    fn input(&mut self, arguments: &Arguments, act: impl Fn(&mut Cluster, NodeId)) -> Outcome {
        let id = arguments.first()?;
        act(self.cluster()?, id);
        self.settle(id)
    }

    /// Moves a member's clock to its next deadline.
    fn timeout(&mut self, arguments: &Arguments) -> Outcome {
        for id in &arguments.nodes {
            let deadline = self.cluster()?.raft(*id).and_then(Raft::deadline);
            let Some(deadline) = deadline else {
                writeln!(self.out, "{id} waits for nothing")?;
                continue;
            };
            let node = self.cluster()?.node_mut(*id);
            node.now = node.now.max(deadline);
            self.cluster()?.tick(*id);
            self.settle(*id)?;
        }
        Ok(())
    }

    /// Lets a member's timers fire for so many milliseconds.
    fn run_for(&mut self, arguments: &Arguments) -> Outcome {
        let id = arguments.first()?;
        let millis = arguments.numbers()?.into_iter().sum();
        let end = self.cluster()?.node(id).now.after(Duration::from_millis(millis));
        loop {
            let deadline = self.cluster()?.raft(id).and_then(Raft::deadline);
            let node = self.cluster()?.node_mut(id);
            node.now = deadline.unwrap_or(end).min(end).max(node.now);
            if deadline.is_none_or(|deadline| deadline > end) {
                return Ok(());
            }
            self.cluster()?.tick(id);
            self.settle(id)?;
        }
    }

    /// Moves clocks by milliseconds, of all members unless some are named; timers do not fire.
    fn wait(&mut self, arguments: &Arguments) -> Outcome {
        let millis = arguments.numbers()?.into_iter().sum();
        let cluster = self.cluster()?;
        for (id, node) in &mut cluster.nodes {
            if arguments.nodes.is_empty() || arguments.nodes.contains(id) {
                node.now = node.now.after(Duration::from_millis(millis));
            }
        }
        Ok(())
    }

    fn propose(&mut self, arguments: &Arguments) -> Outcome {
        let id = arguments.first()?;
        let commands = arguments.numbers()?;
        match self.cluster()?.propose(id, &commands, 1) {
            Some(Ok(_)) => {}
            Some(Err(error)) => writeln!(self.out, "{id} refuses: {error:?}")?,
            None => writeln!(self.out, "{id} is down")?,
        }
        self.settle(id)
    }

    /// `change n1 learn=n4 promote=n4 demote=n2 remove=n3 lease=100`, steps in the order written.
    fn change(&mut self, command: &Command) -> Outcome {
        let arguments = Arguments::parse(command)?;
        let id = arguments.first()?;
        let mut steps = Vec::new();
        for argument in &command.args {
            let Argument::KeyValue(key, value) = argument else {
                continue;
            };
            let target = node(value);
            let target = || target.ok_or("not a member's name");
            let learner = |auto_promote| -> Result<MembershipStep, Box<dyn Error>> {
                let member = Member { info: Bytes::new(), auto_promote };
                Ok(MembershipStep::AddLearner { node: target()?, member })
            };
            steps.push(match key.as_str() {
                "learn" => learner(false)?,
                "add" => learner(true)?,
                "promote" => MembershipStep::Promote(target()?),
                "demote" => MembershipStep::Demote(target()?),
                "remove" => MembershipStep::Remove(target()?),
                "lease" => MembershipStep::SetLease(Some(Lease {
                    length: Duration::from_millis(value.parse()?),
                    drift_ppm: 0,
                })),
                other => return Err(format!("no such step: {other}").into()),
            });
        }
        self.next_request += 1;
        let request = self.next_request;
        match self.cluster()?.change(id, request, steps) {
            Some(Ok(())) => {}
            Some(Err(error)) => writeln!(self.out, "{id} refuses: {error}")?,
            None => writeln!(self.out, "{id} is down")?,
        }
        self.settle(id)
    }

    fn transfer(&mut self, arguments: &Arguments) -> Outcome {
        let id = arguments.first()?;
        let target = arguments.nodes.get(1).copied();
        match self.cluster()?.transfer(id, target) {
            Some(Ok(target)) => writeln!(self.out, "{id} hands over to {target}")?,
            Some(Err(error)) => writeln!(self.out, "{id} refuses: {error}")?,
            None => writeln!(self.out, "{id} is down")?,
        }
        self.settle(id)
    }

    fn snapshot(&mut self, arguments: &Arguments) -> Outcome {
        let id = arguments.first()?;
        let keep = arguments.number("keep")?.unwrap_or(0);
        let Some(snapshot) = self.cluster()?.snapshot_meta(id) else {
            writeln!(self.out, "{id} cannot take a snapshot")?;
            return Ok(());
        };
        let (at, membership) = (snapshot.last_included, &snapshot.membership);
        writeln!(self.out, "{id} takes snapshot {at} with {membership:?}")?;
        self.cluster()?.snapshot_taken(id, snapshot, keep);
        self.settle(id)
    }

    // What follows from an input.

    /// Takes turns until nothing is left that happens by itself.
    fn settle(&mut self, id: NodeId) -> Outcome {
        loop {
            self.cluster()?.turn(id);
            self.tell()?;
            if self.slow.contains(&id) {
                return Ok(());
            }
            let cluster = self.cluster()?;
            if cluster.raft(id).is_none() {
                return Ok(());
            }
            if !cluster.node(id).writes.is_empty() {
                cluster.persist(id, usize::MAX, true);
            } else if !cluster.node(id).work.is_empty() {
                cluster.apply(id);
            } else if !cluster.node(id).fetches.is_empty() {
                cluster.fetch(id);
            } else if !cluster.node(id).sends.is_empty() {
                cluster.send_snapshot(id);
            } else {
                return Ok(());
            }
        }
    }

    /// Shows what members said and did since last time.
    fn tell(&mut self) -> Outcome {
        let cluster = self.cluster.as_mut().ok_or("no cluster yet")?;
        for (id, event) in std::mem::take(&mut cluster.events) {
            writeln!(self.out, "{id} {}", event_text(&event))?;
        }
        for (id, read) in std::mem::take(&mut cluster.answers) {
            match read.index {
                Some(index) => writeln!(self.out, "{id} read {} at {index}", read.id)?,
                None => writeln!(self.out, "{id} read {} must be asked again", read.id)?,
            }
        }
        for envelope in std::mem::take(&mut cluster.outbox) {
            writeln!(self.out, "{}", told(&envelope))?;
            self.network.push(envelope);
        }
        Ok(())
    }

    // The network.

    /// Delivers the messages that are meant and were sent before this command, in order.
    fn deliver(&mut self, arguments: &Arguments) -> Outcome {
        let limit = usize::try_from(arguments.number("count")?.unwrap_or(u64::MAX))?;
        let mut meant = Vec::new();
        let mut others = Vec::new();
        for envelope in std::mem::take(&mut self.network) {
            if meant.len() < limit && arguments.matches(&envelope)? {
                meant.push(envelope);
            } else {
                others.push(envelope);
            }
        }
        self.network = others;
        if arguments.has("reversed") {
            meant.reverse();
        }
        for envelope in meant {
            self.arrive(envelope)?;
        }
        Ok(())
    }

    fn arrive(&mut self, envelope: Envelope) -> Outcome {
        let to = envelope.to;
        if self.blocked.contains(&(envelope.from, to)) || self.cluster()?.raft(to).is_none() {
            writeln!(self.out, "lost: {}", told(&envelope))?;
            return Ok(());
        }
        self.cluster()?.step(envelope);
        self.settle(to)
    }

    /// Delivers until the network is empty.
    fn deliver_all(&mut self) -> Outcome {
        for _ in 0..1_000 {
            if self.network.is_empty() {
                return Ok(());
            }
            let envelope = self.network.remove(0);
            self.arrive(envelope)?;
        }
        Err("the network never empties".into())
    }

    // Looking.

    fn status(&mut self, arguments: &Arguments) -> Outcome {
        let cluster = self.cluster.as_ref().ok_or("no cluster yet")?;
        for (id, node) in &cluster.nodes {
            if !arguments.nodes.is_empty() && !arguments.nodes.contains(id) {
                continue;
            }
            let Some(raft) = &node.raft else {
                let state = node.disk.hard_state;
                write!(self.out, "{id} down t{} last {}", state.current_term, node.disk.last())?;
                writeln!(self.out)?;
                continue;
            };
            write!(self.out, "{id} {} t{}", role(raft.role()), raft.current_term())?;
            if let Some(vote) = raft.voted_for() {
                write!(self.out, " voted {vote}")?;
            }
            if let Some(leader) = raft.leader().filter(|leader| leader != id) {
                write!(self.out, " leader {leader}")?;
            }
            write!(self.out, " last {} commit {}", raft.last_log(), raft.commit_index())?;
            write!(self.out, " applied {}", node.applied)?;
            if raft.durable_index() != raft.last_log().index {
                write!(self.out, " durable {}", raft.durable_index())?;
            }
            if raft.log_start() != EntryId::ZERO {
                write!(self.out, " start {}", raft.log_start())?;
            }
            if raft.membership_index() != Index::ZERO {
                write!(self.out, " {:?}@{}", raft.membership(), raft.membership_index())?;
            }
            writeln!(self.out)?;
            for (peer, progress) in raft.progress() {
                let state = match progress.state() {
                    ProgressState::Probe { sent_at } => {
                        if sent_at.is_some() {
                            "probe, waiting".into()
                        } else {
                            "probe".into()
                        }
                    }
                    ProgressState::Replicate => "replicate".into(),
                    ProgressState::Snapshot { index_min } => format!("snapshot from {index_min}"),
                };
                let (matched, next) = (progress.match_index(), progress.next_index());
                writeln!(self.out, "  {peer} match {matched} next {next} {state}")?;
            }
        }
        Ok(())
    }

    /// The log of each member, as `index:term`.
    fn log(&mut self, arguments: &Arguments) -> Outcome {
        let cluster = self.cluster.as_ref().ok_or("no cluster yet")?;
        for (id, node) in &cluster.nodes {
            let Some(raft) = &node.raft else {
                continue;
            };
            if !arguments.nodes.is_empty() && !arguments.nodes.contains(id) {
                continue;
            }
            write!(self.out, "{id}")?;
            let mut index = raft.log_start().index.next();
            while let Some(term) = raft.term_at(index) {
                write!(self.out, " {index}:{term}")?;
                index = index.next();
            }
            writeln!(self.out)?;
        }
        Ok(())
    }
}

fn role(role: RoleKind) -> &'static str {
    match role {
        RoleKind::Follower => "follower",
        RoleKind::PreCandidate => "pre-candidate",
        RoleKind::Candidate => "candidate",
        RoleKind::Leader => "leader",
    }
}

fn name(message: &Message) -> &'static str {
    match message {
        Message::RequestVote(_) => "RequestVote",
        Message::RequestVoteReply(_) => "RequestVoteReply",
        Message::AppendEntries(_) => "AppendEntries",
        Message::AppendEntriesReply(_) => "AppendEntriesReply",
        Message::Heartbeat(_) => "Heartbeat",
        Message::HeartbeatReply(_) => "HeartbeatReply",
        Message::InstallSnapshot(_) => "InstallSnapshot",
        Message::InstallSnapshotReply(_) => "InstallSnapshotReply",
        Message::TimeoutNow(_) => "TimeoutNow",
        Message::ReadIndex(_) => "ReadIndex",
        Message::ReadIndexReply(_) => "ReadIndexReply",
    }
}

/// A message in one line.
fn told(envelope: &Envelope) -> String {
    let message = &envelope.message;
    let mut text =
        format!("{} → {} {} t{}", envelope.from, envelope.to, name(message), message.term());
    let more = match message {
        Message::RequestVote(m) => {
            let pre_vote = if m.pre_vote { " pre-vote" } else { "" };
            let transfer = if m.leader_transfer { " transfer" } else { "" };
            format!("{pre_vote}{transfer} last {}", m.last_log)
        }
        Message::RequestVoteReply(m) => {
            let pre_vote = if m.pre_vote { " pre-vote" } else { "" };
            format!("{pre_vote} {}", if m.vote_granted { "granted" } else { "refused" })
        }
        Message::AppendEntries(m) => {
            let entries: Vec<String> = m.entries.iter().map(|entry| entry.id.to_string()).collect();
            format!(" prev {} [{}] commit {}", m.prev_log, entries.join(" "), m.leader_commit)
        }
        Message::AppendEntriesReply(m) => match m.outcome {
            AppendOutcome::Accepted { match_index } => format!(" match {match_index}"),
            AppendOutcome::Rejected { prev_log_index, hint } => {
                format!(" rejected prev {prev_log_index} hint {hint}")
            }
        },
        Message::Heartbeat(m) => format!(" round {} commit {}", m.round, m.leader_commit),
        Message::HeartbeatReply(m) => format!(" round {} verified {}", m.round, m.verified),
        Message::InstallSnapshot(m) => {
            format!(" {} {:?}", m.snapshot.last_included, m.snapshot.membership)
        }
        Message::InstallSnapshotReply(m) => format!(" match {}", m.match_index),
        Message::TimeoutNow(_) => String::new(),
        Message::ReadIndex(m) => format!(" read {}", m.id),
        Message::ReadIndexReply(m) => match m.index {
            Some(index) => format!(" read {} at {index}", m.id),
            None => format!(" read {} refused", m.id),
        },
    };
    text.push_str(&more);
    text
}

fn event_text(event: &Event) -> String {
    match event {
        Event::BecamePreCandidate { term } => format!("asks for pre-votes for t{term}"),
        Event::BecameCandidate { term } => format!("campaigns in t{term}"),
        Event::BecameLeader { term } => format!("leads t{term}"),
        Event::LeadershipEstablished { term } => format!("knows what is committed in t{term}"),
        Event::BecameFollower { term, leader: Some(leader) } => {
            format!("follows {leader} in t{term}")
        }
        Event::BecameFollower { term, leader: None } => format!("follows nobody in t{term}"),
        Event::SteppedDown { term, reason } => format!("steps down in t{term}: {reason:?}"),
        Event::MembershipChanged { index, membership } => format!("{membership:?} from {index} on"),
        Event::MembershipCommitted { index } => format!("configuration {index} committed"),
        Event::MembershipDropped { request, reason } => {
            format!("drops membership request {request}: {reason}")
        }
        Event::Truncated { from } => format!("truncates from {from} on"),
        Event::TransferEnded { target, aborted } => {
            format!("transfer to {target} {}", if *aborted { "aborted" } else { "done" })
        }
        other @ (Event::Contradiction { .. } | Event::UnknownPeer { .. } | _) => {
            format!("{other:?}")
        }
    }
}
