//! Marks: what happened at least once in some run. A fault that never happens proves nothing.

use std::collections::BTreeMap;

use raft::log::{LogRequest, LogStatus, RecoveryReport};
use raft::message::PeerMessage;
use raft_core::{AppendOutcome, Message};

/// How often what happened.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Marks(BTreeMap<&'static str, u64>);

impl Marks {
    /// Counts one more of this.
    pub fn hit(&mut self, name: &'static str) {
        *self.0.entry(name).or_default() += 1;
    }

    /// Counts so many more of this.
    pub(crate) fn hit_often(&mut self, name: &'static str, count: u64) {
        *self.0.entry(name).or_default() += count;
    }

    /// Adds what another run hit.
    pub fn add(&mut self, other: &Self) {
        for (name, count) in &other.0 {
            *self.0.entry(name).or_default() += count;
        }
    }

    /// How often this was hit.
    #[must_use]
    pub fn count(&self, name: &str) -> u64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// All that were hit, with how often.
    pub fn iter(&self) -> impl Iterator<Item = (&'static str, u64)> {
        self.0.iter().map(|(name, count)| (*name, *count))
    }

    pub(crate) fn recovered(&mut self, report: Option<&RecoveryReport>) {
        let Some(report) = report else { return self.hit("start: empty") };
        self.hit("start: recovered");
        if report.torn_epoch.is_some() {
            self.hit("recovery: a torn batch dropped");
        }
        if report.rewritten_bytes > 0 {
            self.hit("recovery: the last batch written again");
        }
        if !report.damaged_manifests.is_empty() {
            self.hit("recovery: a damaged manifest passed over");
        }
        if !report.repaired.is_empty() {
            self.hit("recovery: a damaged batch repaired from what is left");
        }
        if !report.superseded.is_empty() {
            self.hit("recovery: damage below a snapshot left alone");
        }
        if report.segments > 1 {
            self.hit("recovery: several segments");
        }
    }

    /// What the log is asked to do that conflicts with what it holds.
    pub(crate) fn log(&mut self, requests: &[LogRequest], log: &LogStatus) {
        for request in requests {
            let LogRequest::Write(persist) = request else { continue };
            if let Some(from) = persist.truncate_from {
                self.hit("log: truncated");
                if from == log.compacted.index.next() {
                    self.hit("log: truncated where it begins");
                }
            }
            if let Some(snapshot) = &persist.snapshot {
                self.hit("log: a snapshot takes its place");
                if snapshot.last_included.index < log.last.index {
                    self.hit("log: a snapshot takes the place of a longer one");
                }
            }
        }
    }

    pub(crate) fn message(&mut self, message: &PeerMessage) {
        self.hit(match message {
            PeerMessage::Raft(message) => match message {
                Message::RequestVote(m) if m.pre_vote => "message: pre-vote",
                Message::RequestVote(m) if m.leader_transfer => "message: vote for a transfer",
                Message::RequestVote(_) => "message: vote",
                Message::RequestVoteReply(m) if m.vote_granted => "message: vote granted",
                Message::RequestVoteReply(_) => "message: vote refused",
                Message::AppendEntries(_) => "message: append",
                Message::AppendEntriesReply(m) => match m.outcome {
                    AppendOutcome::Accepted { .. } => "message: append accepted",
                    AppendOutcome::Rejected { .. } => "message: append rejected",
                },
                Message::Heartbeat(_) => "message: heartbeat",
                Message::HeartbeatReply(_) => "message: heartbeat answered",
                Message::InstallSnapshot(_) => "message: snapshot",
                Message::InstallSnapshotReply(_) => "message: snapshot accepted",
                Message::TimeoutNow(_) => "message: timeout now",
                Message::ReadIndex(_) => "message: read",
                Message::ReadIndexReply(m) if m.index.is_none() => "message: read refused",
                Message::ReadIndexReply(_) => "message: read confirmed",
            },
            PeerMessage::Forward(_) => "message: forward",
            PeerMessage::ForwardRefused(_) => "message: forward refused",
            PeerMessage::ForwardAdmin(_) => "message: forwarded change",
            PeerMessage::ForwardAdminReply(_) => "message: forwarded change answered",
            PeerMessage::Formation(_) => "message: formation",
            PeerMessage::Snapshot(_) => "message: snapshot transfer",
            PeerMessage::Goodbye => "message: goodbye",
        });
    }
}
