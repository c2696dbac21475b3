//! What a picture of a run is made of: the last messages, and what became of the machines and links.

use std::collections::{BTreeSet, VecDeque};

use raft::message::PeerMessage;
use raft_core::{AppendOutcome, Index, Message, RoleKind, Term};

use crate::disk::Crash;

/// Messages that are kept: what was sent before the oldest of them is not drawn.
const MESSAGES_MAX: usize = 700;

/// A message between two machines.
#[derive(Clone, Debug)]
pub(crate) struct Sent {
    pub(crate) at: u64,
    /// When it comes out at the other end; `None` when it is lost at once.
    pub(crate) arrives: Option<u64>,
    pub(crate) from: usize,
    pub(crate) to: usize,
    pub(crate) what: Speech,
    /// It came out of a connection that reached nobody any more.
    pub(crate) void: bool,
    connection: u64,
}

/// What a message is about.
#[derive(Clone, Debug)]
pub(crate) struct Speech {
    pub(crate) topic: Topic,
    /// A few words more.
    pub(crate) text: String,
}

/// What a message is about, by colour.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Topic {
    Vote,
    Append,
    Heartbeat,
    Snapshot,
    Read,
    Other,
}

/// What a machine does.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum State {
    Up,
    Paused,
    Down(Crash),
}

/// What a member was after a turn that changed it.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) struct Role {
    pub(crate) at: u64,
    pub(crate) role: RoleKind,
    pub(crate) term: Term,
}

/// Everything that is kept. Machines are numbered from zero, times are microseconds of virtual time.
#[derive(Debug)]
pub(crate) struct Tape {
    pub(crate) messages: VecDeque<Sent>,
    /// Messages were dropped: what is kept is the last part of the run.
    pub(crate) is_cut: bool,
    /// Of each machine, when it became what.
    pub(crate) states: Vec<Vec<(u64, State)>>,
    pub(crate) roles: Vec<Vec<Role>>,
    /// When which links stopped carrying anything.
    pub(crate) links: Vec<(u64, BTreeSet<(usize, usize)>)>,
    pub(crate) faults: Vec<(u64, u64, String)>,
    /// When each member's commit index came to what.
    pub(crate) commits: Vec<VecDeque<(u64, Index)>>,
}

impl Tape {
    pub(crate) fn new(machines: usize) -> Self {
        Self {
            messages: VecDeque::new(),
            is_cut: false,
            states: vec![Vec::new(); machines],
            roles: vec![Vec::new(); machines],
            links: Vec::new(),
            faults: Vec::new(),
            commits: vec![VecDeque::new(); machines],
        }
    }

    /// When the first thing that is drawn happened.
    pub(crate) fn begins(&self) -> u64 {
        match self.messages.front() {
            Some(first) if self.is_cut => first.at,
            Some(_) | None => 0,
        }
    }

    fn keep(&mut self, message: Sent) {
        if self.messages.len() >= MESSAGES_MAX {
            self.messages.pop_front();
            self.is_cut = true;
        }
        self.messages.push_back(message);
    }

    pub(crate) fn lost(&mut self, at: u64, from: usize, to: usize, message: &PeerMessage) {
        let what = speech(message);
        self.keep(Sent { at, arrives: None, from, to, what, void: false, connection: 0 });
    }

    pub(crate) fn sent(
        &mut self,
        at: u64,
        arrives: u64,
        connection: u64,
        (from, to): (usize, usize),
        message: &PeerMessage,
    ) {
        let (what, arrives) = (speech(message), Some(arrives));
        self.keep(Sent { at, arrives, from, to, what, void: false, connection });
    }

    /// What came out of this connection at this moment reached nobody.
    pub(crate) fn void(&mut self, now: u64, connection: u64) {
        for message in &mut self.messages {
            message.void |= message.connection == connection && message.arrives == Some(now);
        }
    }

    pub(crate) fn state(&mut self, now: u64, machine: usize, state: State) {
        self.states[machine].push((now, state));
        if matches!(state, State::Down(_)) {
            // What it is when it runs again is news.
            self.roles[machine].push(Role { at: now, role: RoleKind::Follower, term: Term(0) });
        }
    }

    pub(crate) fn role(
        &mut self,
        now: u64,
        machine: usize,
        role: RoleKind,
        term: Term,
        commit: Index,
    ) {
        let last = self.roles[machine].last();
        if last.is_none_or(|last| (last.role, last.term) != (role, term)) {
            self.roles[machine].push(Role { at: now, role, term });
        }
        let commits = &mut self.commits[machine];
        if commits.back().is_none_or(|(_, last)| *last < commit) {
            if commits.len() >= MESSAGES_MAX {
                commits.pop_front();
            }
            commits.push_back((now, commit));
        }
    }

    pub(crate) fn links(&mut self, now: u64, blocked: &BTreeSet<(usize, usize)>) {
        if self.links.last().map(|(_, last)| last) != Some(blocked) {
            self.links.push((now, blocked.clone()));
        }
    }

    pub(crate) fn fault(&mut self, now: u64, number: u64, what: &str) {
        self.faults.push((now, number, what.to_owned()));
    }
}

fn speech(message: &PeerMessage) -> Speech {
    let raft = match message {
        PeerMessage::Raft(raft) => raft,
        PeerMessage::Snapshot(_) => {
            return Speech { topic: Topic::Snapshot, text: "snapshot transfer".to_owned() };
        }
        PeerMessage::Forward(_)
        | PeerMessage::ForwardRefused(_)
        | PeerMessage::ForwardAdmin(_)
        | PeerMessage::ForwardAdminReply(_)
        | PeerMessage::Formation(_)
        | PeerMessage::Goodbye => {
            let text = format!("{message:?}");
            let name = text.split(['(', ' ', '{']).next().unwrap_or_default();
            return Speech { topic: Topic::Other, text: name.to_owned() };
        }
    };
    let term = raft.term();
    let (topic, text) = match raft {
        Message::RequestVote(m) if m.pre_vote => (Topic::Vote, "would you vote?".to_owned()),
        Message::RequestVote(_) => (Topic::Vote, "vote for me".to_owned()),
        Message::RequestVoteReply(m) => {
            let which = if m.pre_vote { "would vote" } else { "votes" };
            let says = if m.vote_granted { "" } else { "no: " };
            (Topic::Vote, format!("{says}{which}"))
        }
        Message::AppendEntries(m) => {
            let text = match (m.entries.first(), m.entries.last()) {
                (Some(first), Some(last)) => format!("entries {} to {}", first.id, last.id),
                _ => "no entries".to_owned(),
            };
            (Topic::Append, text)
        }
        Message::AppendEntriesReply(m) => {
            let text = match &m.outcome {
                AppendOutcome::Accepted { match_index } => format!("has {match_index}"),
                outcome @ AppendOutcome::Rejected { .. } => format!("refuses: {outcome:?}"),
            };
            (Topic::Append, text)
        }
        Message::Heartbeat(_) => (Topic::Heartbeat, "heartbeat".to_owned()),
        Message::HeartbeatReply(_) => (Topic::Heartbeat, "heartbeat answered".to_owned()),
        Message::InstallSnapshot(_) => (Topic::Snapshot, "snapshot".to_owned()),
        Message::InstallSnapshotReply(_) => (Topic::Snapshot, "snapshot accepted".to_owned()),
        Message::TimeoutNow(_) => (Topic::Vote, "campaign now".to_owned()),
        Message::ReadIndex(_) => (Topic::Read, "asks for a read index".to_owned()),
        Message::ReadIndexReply(m) => (Topic::Read, format!("read index {:?}", m.index)),
    };
    Speech { topic, text: format!("{text}, term {term}") }
}
