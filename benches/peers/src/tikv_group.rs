//! raft-rs (TiKV's). It is a core: who uses it writes the loop, the log and the network. Here each member is one task
//! with a channel, its log the library's own `MemStorage`. All proposals that wait become one `MsgPropose`, which is the
//! library's fastest way.

use std::collections::VecDeque;
use std::time::Duration;

use bytes::Bytes;
use futures_util::future::join_all;
use slog::{Discard, Logger, o};
use tikv::eraftpb::{ConfState, Entry, EntryType, Message, MessageType};
use tikv::storage::MemStorage;
use tikv::{Config, RawNode, StateRole, Storage as _};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::oneshot;

use crate::Group;

/// Entries kept behind what is applied.
const TRAILING: u64 = 10_000;
/// The log is compacted every so many entries; both are our library's defaults.
const COMPACT_EVERY: u64 = 100_000;

enum In {
    Message(Message),
    Propose(Bytes, oneshot::Sender<u64>),
    Campaign(oneshot::Sender<()>),
}

struct Member {
    node: RawNode<MemStorage>,
    inputs: UnboundedReceiver<In>,
    peers: Vec<UnboundedSender<In>>,
    /// Who waits, in the order of the log.
    waiting: VecDeque<oneshot::Sender<u64>>,
    elected: Option<oneshot::Sender<()>>,
    counter: u64,
    compacted: u64,
}

impl Member {
    async fn run(mut self) {
        let mut ticks = tokio::time::interval(Duration::from_millis(100));
        loop {
            let first = tokio::select! {
                biased;
                input = self.inputs.recv() => input,
                _ = ticks.tick() => {
                    self.node.tick();
                    None
                }
            };
            let mut entries = Vec::new();
            let mut next = first;
            let mut taken = 0;
            while let Some(input) = next.take() {
                match input {
                    In::Message(message) => self.node.step(message).expect("a good message"),
                    In::Propose(payload, waiter) => {
                        let mut entry = Entry::default();
                        entry.data = payload;
                        // Tells it from the empty entry of a new leader.
                        entry.context = Bytes::from_static(b"c");
                        entries.push(entry);
                        self.waiting.push_back(waiter);
                    }
                    In::Campaign(elected) => {
                        self.elected = Some(elected);
                        self.node.campaign().expect("a lone candidate");
                    }
                }
                taken += 1;
                if taken < 4096 {
                    next = self.inputs.try_recv().ok();
                }
            }
            if !entries.is_empty() {
                let mut propose = Message::default();
                propose.set_msg_type(MessageType::MsgPropose);
                propose.from = self.node.raft.id;
                propose.entries = entries.into();
                self.node.step(propose).expect("the leader takes proposals");
            }
            while self.node.has_ready() {
                self.work_off();
            }
            if self.node.raft.state == StateRole::Leader
                && let Some(elected) = self.elected.take()
            {
                elected.send(()).ok();
            }
        }
    }

    fn work_off(&mut self) {
        let mut ready = self.node.ready();
        self.send(ready.take_messages());
        self.apply(ready.take_committed_entries());
        let store = self.node.store().clone();
        if !ready.entries().is_empty() {
            store.wl().append(ready.entries()).expect("memory does not fail");
        }
        if let Some(state) = ready.hs() {
            store.wl().set_hardstate(state.clone());
        }
        self.send(ready.take_persisted_messages());
        let mut light = self.node.advance(ready);
        if let Some(commit) = light.commit_index() {
            store.wl().mut_hard_state().set_commit(commit);
        }
        self.send(light.take_messages());
        self.apply(light.take_committed_entries());
        self.node.advance_apply();
        let applied = self.node.raft.raft_log.applied;
        if applied >= self.compacted + COMPACT_EVERY + TRAILING {
            self.compacted = applied - TRAILING;
            store.wl().compact(self.compacted).expect("these are applied");
        }
    }

    fn send(&self, messages: Vec<Message>) {
        for message in messages {
            let to = &self.peers[message.to as usize - 1];
            to.send(In::Message(message)).ok();
        }
    }

    fn apply(&mut self, entries: Vec<Entry>) {
        for entry in entries {
            if entry.get_entry_type() == EntryType::EntryNormal && !entry.context.is_empty() {
                self.counter += 1 + entry.data.len() as u64;
                if let Some(waiter) = self.waiting.pop_front() {
                    waiter.send(self.counter).ok();
                }
            }
        }
    }
}

#[derive(Clone)]
pub struct Leader(UnboundedSender<In>);

impl Leader {
    fn send(&self, payload: Bytes) -> oneshot::Receiver<u64> {
        let (waiter, answer) = oneshot::channel();
        self.0.send(In::Propose(payload, waiter)).ok();
        answer
    }
}

impl Group for Leader {
    async fn propose(&self, payload: Bytes) {
        self.send(payload).await.expect("members run");
    }

    async fn propose_many(&self, payloads: Vec<Bytes>) {
        let answers: Vec<_> = payloads.into_iter().map(|payload| self.send(payload)).collect();
        join_all(answers).await;
    }
}

/// Three members as tasks of this runtime.
pub async fn start() -> anyhow::Result<Leader> {
    let (senders, receivers): (Vec<_>, Vec<_>) = (0..3).map(|_| unbounded_channel()).unzip();
    let logger = Logger::root(Discard, o!());
    for (number, inputs) in receivers.into_iter().enumerate() {
        let config = Config {
            id: number as u64 + 1,
            election_tick: 10,
            heartbeat_tick: 1,
            // Ours: one message of at most 1 MiB, 256 of them in flight.
            max_size_per_msg: 1 << 20,
            max_inflight_msgs: 256,
            ..Config::default()
        };
        let storage = MemStorage::new_with_conf_state(ConfState::from((vec![1, 2, 3], vec![])));
        let compacted = storage.first_index()?;
        let node = RawNode::new(&config, storage, &logger)?;
        let member = Member {
            node,
            inputs,
            peers: senders.clone(),
            waiting: VecDeque::new(),
            elected: None,
            counter: 0,
            compacted,
        };
        tokio::spawn(member.run());
    }
    let (elected, is_elected) = oneshot::channel();
    senders[0].send(In::Campaign(elected)).ok();
    is_elected.await?;
    Ok(Leader(senders[0].clone()))
}
