//! Settings of a node, checked before anything is touched.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use raft_core::{ConfigError, MEMBERS_MAX, NodeId, StateMachine};

use crate::error::NodeError;
use crate::log::LogOptions;
use crate::meters::Meters;
use crate::node::formation_message::info_bytes_max;
use crate::node::{MemberInfo, Node, task};
use crate::transport::codec::FRAME_BYTES_MAX;

/// The longest command that can be allowed: alone, with what stands around it, it must fit into one frame.
const COMMAND_BYTES_MAX: usize = FRAME_BYTES_MAX - (64 << 10);

/// Every setting of a node, with its default and what it costs.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Where the node's state lives; created when missing. Required.
    pub data_dir: PathBuf,
    /// The address at which this member listens and is dialled. Required.
    pub address: String,
    /// For people; the address when empty.
    pub name: String,
    /// Where clients reach this member; empty when that is `address`.
    pub client_addresses: Vec<String>,
    /// The configured members, this one among them. Ignored when `join` is not empty.
    pub peers: Vec<String>,
    /// `peers` counts only while the node belongs to no cluster; once it does, a list that is neither the founding nor
    /// the present one is not refused (false). Data of a member to which `peers` gives another address is refused always.
    pub peers_form_only: bool,
    /// Addresses of a running cluster that this empty node waits to be added to.
    pub join: Vec<String>,
    /// Form only when *all* configured members have reported, however long that takes.
    pub form_requires_all: bool,
    /// How long an unreachable configured member is waited for before a majority forms without it (3 s).
    pub formation_grace: Duration,
    /// Members form a cluster only with those that have the same token here, whatever their addresses; empty for none.
    /// Once there is a cluster it means nothing.
    pub formation_token: String,
    /// A damaged data directory of one of three or more members is renamed to `<name>.damaged`, and the member starts
    /// empty and waits to be taken in anew (true). False, and with fewer members: it does not start.
    pub rebuild_damaged: bool,
    /// Bytes of the data directory that are read and checked again in a second, all the time, so that damage is found
    /// and repaired while others still have what is damaged (1 MiB); 0: only at a start, and when somebody needs them.
    pub scrub_bytes_per_second: u64,
    /// How long an empty node must have stood at the address of a member that is not heard of before the leader puts it
    /// in that member's place (5 s); `None`: never, an administrator removes the one and adds the other.
    pub readmit_after: Option<Duration>,
    /// Shortest election timeout (§5.2).
    pub election_timeout_min: Duration,
    /// Longest election timeout, inclusive.
    pub election_timeout_max: Duration,
    /// Interval of the leader's heartbeats.
    pub heartbeat_interval: Duration,
    /// How long a request may wait for its answer; `None`: 5 s and twice the longest election timeout.
    pub request_timeout: Option<Duration>,
    /// Encoded bytes of one command (1.5 MiB and some room for what surrounds a client's request).
    pub command_bytes_max: usize,
    /// Encoded bytes of all proposals that wait for their answer (128 MiB of memory at most).
    pub queue_bytes_max: usize,
    /// Entries that may be committed and not yet applied; beyond it proposals are refused.
    pub backlog_entries_max: u64,
    /// Bytes of one segment file of the log (16 MiB). A larger one is rolled less often and frees its space later.
    pub log_segment_bytes: u64,
    /// A checkpoint every so many entries.
    pub checkpoint_entries: u64,
    /// A checkpoint every so many payload bytes.
    pub checkpoint_bytes: u64,
    /// Entries kept in the log behind a checkpoint, so that a follower that lags a little needs no snapshot.
    pub trailing_entries: u64,
    /// Payload bytes kept in the log behind a checkpoint.
    pub trailing_bytes: u64,
    /// Payload bytes of one AppendEntries, as long as it holds more than one entry (1 MiB).
    pub append_bytes_max: usize,
    /// Entries of one AppendEntries (4096).
    pub append_entries_max: usize,
    /// AppendEntries in flight to one follower (256).
    pub inflight_messages_max: usize,
    /// Payload bytes in flight to one follower: memory that a slow peer can pin (16 MiB).
    pub inflight_bytes_max: usize,
    /// How long a shutdown waits for leadership to be handed over.
    pub handover_timeout: Duration,
    /// The embedder accepts connections and hands those of peers over with [`Node::accept`].
    pub external_listener: bool,
    /// Known to all members: with it both ends of a connection prove that they know it.
    pub cluster_secret: Option<crate::transport::Secret>,
    /// What secures the connections between members, the same for all of them; `None`: they are plain TCP.
    pub security: Option<Arc<dyn crate::transport::Security>>,
    /// How long the raft thread and the log's stay awake for the next event, while events come closer together than half
    /// of this; zero: never (1 ms). Takes a third off the latency of a lone writer, and processor time that nobody else
    /// wants. Has no effect where the process may use one processor only.
    pub busy_poll: Duration,
    /// The feature level that this member claims to know; `None`: the state machine's
    /// ([`StateMachine::FEATURE_LEVEL`]). A lower one holds an upgrade of the cluster back: new commands are refused
    /// until it is raised.
    pub feature_level: Option<u16>,
    /// Where the node counts what it measures: keep a clone to read it.
    pub meters: Arc<Meters>,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_dir: PathBuf::new(),
            address: String::new(),
            name: String::new(),
            client_addresses: Vec::new(),
            peers: Vec::new(),
            peers_form_only: false,
            join: Vec::new(),
            form_requires_all: false,
            formation_grace: Duration::from_secs(3),
            formation_token: String::new(),
            rebuild_damaged: true,
            scrub_bytes_per_second: 1 << 20,
            readmit_after: Some(Duration::from_secs(5)),
            election_timeout_min: Duration::from_millis(300),
            election_timeout_max: Duration::from_millis(500),
            heartbeat_interval: Duration::from_millis(100),
            request_timeout: None,
            command_bytes_max: (3 << 19) + (512 << 10),
            queue_bytes_max: 128 << 20,
            backlog_entries_max: 5000,
            log_segment_bytes: LogOptions::default().segment_bytes,
            checkpoint_entries: 100_000,
            checkpoint_bytes: 64 << 20,
            trailing_entries: 10_000,
            trailing_bytes: 16 << 20,
            append_bytes_max: 1 << 20,
            append_entries_max: 4096,
            inflight_messages_max: 256,
            inflight_bytes_max: 16 << 20,
            handover_timeout: Duration::from_secs(1),
            external_listener: false,
            cluster_secret: None,
            security: None,
            busy_poll: Duration::from_millis(1),
            feature_level: None,
            meters: Arc::default(),
        }
    }
}

impl Settings {
    /// How long a request waits for its answer.
    #[must_use]
    pub fn request_timeout(&self) -> Duration {
        self.request_timeout.unwrap_or(Duration::from_secs(5) + self.election_timeout_max * 2)
    }

    /// This member's attributes, as they stand in the configuration.
    #[must_use]
    pub(crate) fn member_info(&self, feature_level: u16) -> MemberInfo {
        let name = if self.name.is_empty() { &self.address } else { &self.name };
        MemberInfo {
            name: name.clone(),
            peer_address: self.address.clone(),
            client_addresses: self.client_addresses.clone(),
            feature_level: self.feature_level.unwrap_or(feature_level),
            known_as: None,
        }
    }

    /// Attributes that are too long for the configuration, or for what a forming cluster keeps on disk.
    fn check_attributes(&self) -> Result<(), ConfigError> {
        let count = self.peers.len();
        if count > MEMBERS_MAX {
            let problem = format!("lists {count} members; a cluster has at most {MEMBERS_MAX}");
            return Err(ConfigError { field: "peers", problem });
        }
        // Not yet encoded: that would cut texts of more than 64 KiB.
        let texts = [&self.name, &self.address].into_iter().chain(&self.client_addresses);
        let bytes = 7 + texts.map(|text| 2 + text.len()).sum::<usize>();
        let bytes = bytes + if self.name.is_empty() { self.address.len() } else { 0 };
        let bytes_max = info_bytes_max(if self.join.is_empty() { &self.peers } else { &[] });
        if bytes > bytes_max {
            let problem = format!(
                "take {bytes} bytes with the name and the address; {bytes_max} are possible with this many members \
                 and addresses of this length"
            );
            return Err(ConfigError { field: "client_addresses", problem });
        }
        Ok(())
    }

    /// The protocol's settings for `node`.
    #[must_use]
    pub fn core_config(&self, node: NodeId) -> raft_core::Config {
        let config = raft_core::Config::new(
            node,
            self.election_timeout_min,
            self.election_timeout_max,
            self.heartbeat_interval,
        );
        raft_core::Config {
            append_bytes_max: self.append_bytes_max,
            append_entries_max: self.append_entries_max,
            inflight_messages_max: self.inflight_messages_max,
            inflight_bytes_max: self.inflight_bytes_max,
            ..config
        }
    }

    /// Checks that the settings fit together. Touches nothing.
    ///
    /// # Errors
    /// The first setting that does not, with what would be right.
    pub fn validate(&self) -> Result<(), ConfigError> {
        let refuse = |field, problem: String| Err(ConfigError { field, problem });
        if self.data_dir.as_os_str().is_empty() {
            return refuse("data_dir", String::from("is required"));
        }
        if self.address.is_empty() {
            return refuse("address", String::from("is required"));
        }
        for (position, address) in self.peers.iter().enumerate() {
            if self.peers[..position].contains(address) {
                return refuse("peers", format!("{address} is listed twice"));
            }
        }
        if self.join.is_empty() && !self.peers.is_empty() && !self.peers.contains(&self.address) {
            let own = &self.address;
            return refuse("peers", format!("must list this member's own address {own} too"));
        }
        if self.join.contains(&self.address) {
            return refuse("join", String::from("must name other members, not this one"));
        }
        self.check_attributes()?;
        for (field, count) in [
            ("command_bytes_max", self.command_bytes_max),
            ("queue_bytes_max", self.queue_bytes_max),
        ] {
            if count == 0 {
                return refuse(field, String::from("must be at least 1"));
            }
        }
        if self.command_bytes_max > COMMAND_BYTES_MAX {
            return refuse("command_bytes_max", format!("must be at most {COMMAND_BYTES_MAX}"));
        }
        for (field, count) in [
            ("backlog_entries_max", self.backlog_entries_max),
            ("log_segment_bytes", self.log_segment_bytes),
            ("checkpoint_entries", self.checkpoint_entries),
            ("checkpoint_bytes", self.checkpoint_bytes),
        ] {
            if count == 0 {
                return refuse(field, String::from("must be at least 1"));
            }
        }
        // Any valid node will do: the identity is not known before the data directory is open.
        self.core_config(NodeId::new(1, 1)).validate()
    }
}

/// Collects the settings of a node; made by [`Node::builder`].
#[derive(Debug)]
pub struct Builder<S: StateMachine> {
    machine: S,
    settings: Settings,
}

impl<S: StateMachine> Builder<S> {
    pub(crate) fn new(machine: S) -> Self {
        Self { machine, settings: Settings::default() }
    }

    /// All settings at once, for those that have no method of their own.
    #[must_use]
    pub fn settings(mut self, change: impl FnOnce(&mut Settings)) -> Self {
        change(&mut self.settings);
        self
    }

    /// Where the node's state lives; created when missing.
    #[must_use]
    pub fn data_dir(mut self, path: impl AsRef<Path>) -> Self {
        path.as_ref().clone_into(&mut self.settings.data_dir);
        self
    }

    /// The address at which this member listens and is dialled.
    #[must_use]
    pub fn address(mut self, address: impl Into<String>) -> Self {
        self.settings.address = address.into();
        self
    }

    /// A name for people.
    #[must_use]
    pub fn name(mut self, name: impl Into<String>) -> Self {
        self.settings.name = name.into();
        self
    }

    /// Where clients reach this member, when that is not its address.
    #[must_use]
    pub fn client_addresses(
        mut self,
        addresses: impl IntoIterator<Item = impl Into<String>>,
    ) -> Self {
        self.settings.client_addresses = addresses.into_iter().map(Into::into).collect();
        self
    }

    /// The addresses of all configured members, this one among them. Without it the node is a cluster of one.
    #[must_use]
    pub fn peers(mut self, addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.settings.peers = addresses.into_iter().map(Into::into).collect();
        self
    }

    /// Addresses of a running cluster: an empty node then never forms one but waits to be added.
    #[must_use]
    pub fn join(mut self, addresses: impl IntoIterator<Item = impl Into<String>>) -> Self {
        self.settings.join = addresses.into_iter().map(Into::into).collect();
        self
    }

    /// Bounds of the election timeout (§5.2), both inclusive.
    #[must_use]
    pub const fn election_timeout(mut self, min: Duration, max: Duration) -> Self {
        self.settings.election_timeout_min = min;
        self.settings.election_timeout_max = max;
        self
    }

    /// Interval of the leader's heartbeats; shorter than the shortest election timeout.
    #[must_use]
    pub const fn heartbeat_interval(mut self, interval: Duration) -> Self {
        self.settings.heartbeat_interval = interval;
        self
    }

    /// True: the embedder accepts connections and hands those of peers over with [`Node::accept`].
    #[must_use]
    pub const fn external_listener(mut self, external: bool) -> Self {
        self.settings.external_listener = external;
        self
    }

    /// Opens the data directory and starts the node. Returns once its state is recovered and it listens; a
    /// cluster may still have to form and elect a leader, which requests wait for.
    ///
    /// # Errors
    /// When a setting cannot work, the directory cannot be used or the address cannot be bound.
    pub async fn start(self) -> Result<Node<S>, NodeError> {
        let mut settings = self.settings;
        if settings.peers.is_empty() && settings.join.is_empty() {
            settings.peers.push(settings.address.clone());
        }
        settings.validate().map_err(NodeError::Config)?;
        task::start(self.machine, settings).await
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_that_no_forming_cluster_could_keep_are_refused_before_anything_is_touched() {
        let settings = Settings {
            data_dir: PathBuf::from("d"),
            address: String::from("a:1"),
            peers: vec![String::from("a:1")],
            ..Settings::default()
        };
        assert_eq!(settings.validate(), Ok(()));
        let long = Settings { client_addresses: vec!["x".repeat(70_000)], ..settings.clone() };
        assert_eq!(long.validate().unwrap_err().field, "client_addresses");
        let name = Settings { name: "n".repeat(5000), ..settings.clone() };
        assert_eq!(name.validate().unwrap_err().field, "client_addresses");
        let mut peers: Vec<String> = (1..=64).map(|n| format!("a:{n}")).collect();
        let many = Settings { peers: peers.clone(), ..settings.clone() };
        assert_eq!(many.validate(), Ok(()));
        peers.push(String::from("b:1"));
        assert_eq!(Settings { peers, ..settings }.validate().unwrap_err().field, "peers");
    }

    /// A command that fits into no frame could never be replicated, and everything after it neither.
    #[test]
    fn a_command_must_fit_into_a_frame() {
        let mut settings = Settings {
            data_dir: PathBuf::from("data"),
            address: String::from("127.0.0.1:54000"),
            command_bytes_max: COMMAND_BYTES_MAX,
            ..Settings::default()
        };
        assert_eq!(settings.validate(), Ok(()));
        settings.command_bytes_max += 1;
        assert_eq!(settings.validate().map_err(|error| error.field), Err("command_bytes_max"));
    }
}
