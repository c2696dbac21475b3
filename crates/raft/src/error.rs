//! Errors that tell "definitely not applied" from "unknown".

use std::fmt;
use std::io;
use std::path::PathBuf;

use raft_core::{ClusterId, ConfigError, MemberId, MembershipError, NodeId, SnapshotError};

/// Why a proposal was not answered with a response.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ProposeError {
    /// Definitely not applied: there is no leader that could take it.
    NoLeader,
    /// Definitely not applied: too much is waiting already; try again later.
    Overloaded,
    /// Definitely not applied: the disk has no space for the log's next segment. Commands that need none are taken
    /// ([`Command::needs_space`](raft_core::Command::needs_space)).
    NoSpace,
    /// Definitely not applied, now or later: larger than the limit.
    TooLarge {
        /// The encoded size.
        bytes: usize,
        /// The limit.
        bytes_max: usize,
    },
    /// Definitely not applied: some member's program does not know this command yet (decision 18).
    FeatureLevel {
        /// What the command needs.
        needed: u16,
        /// What every member knows.
        cluster: u16,
    },
    /// Definitely not applied: the leader lost its place before it could commit, and another entry took the
    /// proposal's position.
    Superseded,
    /// Unknown: it may be applied now, later or never. Leadership was lost or the connection to the leader
    /// broke while it was on its way.
    Unknown,
    /// Unknown: the time for an answer is over.
    TimedOut,
    /// This node is shutting down or has stopped; if the proposal had left already, its fate is unknown.
    Stopped {
        /// Whether it is certain that it was not applied.
        definitely_not_applied: bool,
    },
}

impl ProposeError {
    /// Whether it is certain that the command was not and will never be applied.
    #[must_use]
    pub const fn is_definite(&self) -> bool {
        match self {
            Self::NoLeader
            | Self::Overloaded
            | Self::NoSpace
            | Self::TooLarge { .. }
            | Self::FeatureLevel { .. }
            | Self::Superseded => true,
            Self::Unknown | Self::TimedOut => false,
            Self::Stopped { definitely_not_applied } => *definitely_not_applied,
        }
    }
}

impl fmt::Display for ProposeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLeader => write!(f, "no leader; not applied"),
            Self::Overloaded => {
                write!(f, "too many requests are waiting; not applied, try again later")
            }
            Self::NoSpace => write!(f, "the disk is full; not applied"),
            Self::TooLarge { bytes, bytes_max } => {
                write!(
                    f,
                    "the command has {bytes} bytes, at most {bytes_max} are allowed; not applied"
                )
            }
            Self::FeatureLevel { needed, cluster } => write!(
                f,
                "needs feature level {needed}, and some member of the cluster knows only {cluster}: upgrade it first; \
                 not applied"
            ),
            Self::Superseded => write!(f, "leadership was lost before the commit; not applied"),
            Self::Unknown => write!(f, "leadership lost: outcome unknown"),
            Self::TimedOut => write!(f, "timed out: outcome unknown"),
            Self::Stopped { definitely_not_applied: true } => write!(f, "stopped; not applied"),
            Self::Stopped { definitely_not_applied: false } => {
                write!(f, "stopped: outcome unknown")
            }
        }
    }
}

impl std::error::Error for ProposeError {}

/// Why a read could not be served. Reading again is always safe.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum ReadError {
    /// No leader confirmed the read in time.
    NoLeader,
    /// The time for an answer is over.
    TimedOut,
    /// Too much is waiting already.
    Overloaded,
    /// The disk of this node is full, and it has fallen behind: it cannot take what the others have stored. Another
    /// node may answer.
    NoSpace,
    /// This node is shutting down or has stopped.
    Stopped,
}

impl fmt::Display for ReadError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoLeader => write!(f, "no leader"),
            Self::TimedOut => write!(f, "timed out"),
            Self::Overloaded => write!(f, "too many requests are waiting; try again later"),
            Self::NoSpace => write!(f, "the disk is full, and this member is behind; ask another"),
            Self::Stopped => write!(f, "stopped"),
        }
    }
}

impl std::error::Error for ReadError {}

/// Why an administrator's request failed.
#[derive(Clone, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum AdminError {
    /// The change makes no sense; nothing happened.
    Refused(MembershipError),
    /// The leader refused, in its words; nothing happened.
    RefusedByLeader(String),
    /// No leader could take it; nothing happened.
    NoLeader,
    /// It may have happened: leadership changed or time ran out.
    Unknown,
    /// This node is shutting down or has stopped.
    Stopped,
}

impl fmt::Display for AdminError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Refused(error) => write!(f, "{error}"),
            Self::RefusedByLeader(text) => write!(f, "{text}"),
            Self::NoLeader => write!(f, "no leader"),
            Self::Unknown => write!(f, "outcome unknown: leadership changed or time ran out"),
            Self::Stopped => write!(f, "stopped"),
        }
    }
}

impl std::error::Error for AdminError {}

/// Why a node cannot start, or had to stop.
#[derive(Debug)]
#[non_exhaustive]
pub enum NodeError {
    /// A setting cannot work. Nothing was written.
    Config(ConfigError),
    /// The data directory cannot be used. Nothing was changed.
    Data(DataError),
    /// The listen address cannot be bound.
    Bind {
        /// The address.
        address: String,
        /// What the system says.
        source: io::Error,
    },
    /// Writing or syncing failed: the node stopped voting and acknowledging for good (exit "disk latched").
    DiskLatched {
        /// The file.
        path: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// The cluster removed this node; it may not return with this data directory.
    Removed,
    /// Something damaged was set aside while the node ran: started again, it goes on without that. The text says what, and
    /// where it is now.
    SetAside(String),
    /// The state machine's snapshot cannot be restored.
    Snapshot(SnapshotError),
    /// An entry that this version does not understand.
    UnknownEntry(String),
    /// The cluster has gone beyond what this program knows (decision 18).
    FeatureLevel {
        /// The cluster's level.
        cluster: u16,
        /// This program's.
        known: u16,
    },
    /// A part of the node died of a bug.
    Panicked(&'static str),
}

impl fmt::Display for NodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Config(error) => write!(f, "configuration: {error}"),
            Self::Data(error) => write!(f, "{error}"),
            Self::Bind { address, source } => write!(f, "cannot listen on {address}: {source}"),
            Self::DiskLatched { path, source } => write!(
                f,
                "writing {} failed: {source}. Nothing that was not acknowledged is lost, but this node stops \
                 voting and acknowledging; check the disk, then start it again",
                path.display()
            ),
            Self::Removed => write!(
                f,
                "this node was removed from the cluster and may not return; start it with an empty data folder \
                 to join as a new member"
            ),
            Self::SetAside(what) => write!(f, "{what}"),
            Self::Snapshot(error) => write!(f, "the snapshot cannot be restored: {error}"),
            Self::UnknownEntry(what) => write!(
                f,
                "the log holds an entry that this version does not understand ({what}); use a newer version"
            ),
            Self::FeatureLevel { cluster, known } => write!(
                f,
                "the cluster is at feature level {cluster}, and this program knows {known}: start this member with a \
                 newer version; its data is unchanged"
            ),
            Self::Panicked(part) => write!(f, "{part} died of a bug; please report it"),
        }
    }
}

impl std::error::Error for NodeError {}

/// Why a data directory is refused. Nothing was changed.
#[derive(Debug)]
#[non_exhaustive]
pub enum DataError {
    /// There is no data of a node: the folder is missing, empty, or somebody else's.
    NoData {
        /// The directory.
        path: PathBuf,
    },
    /// Another process has it open.
    Locked {
        /// The directory.
        path: PathBuf,
    },
    /// The system refuses.
    Io {
        /// The file or directory.
        path: PathBuf,
        /// What was tried.
        action: &'static str,
        /// What the system says.
        source: io::Error,
    },
    /// Written by a newer version.
    NewerFormat {
        /// The file.
        path: PathBuf,
        /// Its version.
        found: u32,
        /// The newest version understood here.
        supported: u32,
    },
    /// Belongs to another cluster.
    OtherCluster {
        /// The directory.
        path: PathBuf,
        /// The cluster expected.
        expected: ClusterId,
        /// The cluster found.
        found: ClusterId,
    },
    /// Belongs to a cluster none of whose members, as far as the data knows, is configured.
    OtherMembers {
        /// The file that names the cluster.
        path: PathBuf,
        /// That cluster.
        cluster: ClusterId,
        /// Its members' addresses, as far as they are known there.
        known: Vec<String>,
        /// The configured addresses.
        configured: Vec<String>,
    },
    /// Belongs to another cluster than most of the configured members say that they belong to.
    Outvoted {
        /// The directory.
        path: PathBuf,
        /// The cluster found.
        found: ClusterId,
        /// What the configured members say, by address.
        said: Vec<(String, String)>,
    },
    /// Belongs to another member.
    OtherMember {
        /// The directory.
        path: PathBuf,
        /// What was expected, in words (name or address).
        expected: String,
        /// What was found, in words.
        found: String,
        /// The member whose data it is.
        member: MemberId,
    },
    /// Something is damaged that this version cannot repair by itself.
    Damaged {
        /// The file.
        path: PathBuf,
        /// Where in it, in bytes, if that is known.
        offset: Option<u64>,
        /// What is wrong and what to do.
        problem: String,
    },
    /// The node's own promises cannot be proven: see docs/disk-format.md.
    Amnesic {
        /// Who.
        node: NodeId,
        /// Why.
        reason: String,
    },
}

impl fmt::Display for DataError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoData { path } => {
                write!(
                    f,
                    "{} is no state folder of a member: nothing of one is there",
                    path.display()
                )
            }
            Self::Locked { path } => write!(
                f,
                "{} is in use by another process; stop that one first, or use another folder",
                path.display()
            ),
            Self::Io { path, action, source } => {
                write!(f, "cannot {action} {}: {source}", path.display())
            }
            Self::NewerFormat { path, found, supported } => write!(
                f,
                "{} has format version {found}, this program understands up to {supported}; use a newer \
                 program. Nothing was changed",
                path.display()
            ),
            Self::OtherCluster { path, expected, found } => write!(
                f,
                "{} belongs to cluster {found}, not to {expected}; nothing was changed",
                path.display()
            ),
            Self::OtherMembers { path, cluster, known, configured } => write!(
                f,
                "{} says that this data belongs to cluster {cluster} of {}; the configuration lists only others ({}). \
                 Nothing was changed. Use the folder that belongs here, an empty one for a new member, or the \
                 configuration of that cluster; members that move change their addresses one after the other",
                path.display(),
                known.join(", "),
                configured.join(", ")
            ),
            Self::Outvoted { path, found, said } => {
                let said: Vec<String> =
                    said.iter().map(|(address, text)| format!("{address}: {text}")).collect();
                write!(
                    f,
                    "{} belongs to cluster {found}, and most of the configured members to another one ({}). Nothing in \
                     the log was changed. Use the folder that belongs here, or remove this member from their cluster \
                     and start it in an empty folder",
                    path.display(),
                    said.join("; ")
                )
            }
            Self::OtherMember { path, expected, found, member } => write!(
                f,
                "{} belongs to member {member} ({found}), not to {expected}; nothing was changed",
                path.display()
            ),
            Self::Damaged { path, offset: Some(offset), problem } => {
                write!(f, "{} is damaged at byte {offset}: {problem}", path.display())
            }
            Self::Damaged { path, offset: None, problem } => {
                write!(f, "{} is damaged: {problem}", path.display())
            }
            Self::Amnesic { node, reason } => write!(
                f,
                "{node} cannot prove what it has promised ({reason}); it neither votes nor acknowledges until \
                 the cluster has re-admitted it"
            ),
        }
    }
}

impl std::error::Error for DataError {}
