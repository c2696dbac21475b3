//! The two configuration files, in RON: one for `node`, one for `cluster`.
//!
//! Whatever is wrong is found here, before anything is written: a [`Problem`] names file, line, column,
//! field, what is wrong and what would be right. A field that nobody knows is only a [`Warning`], so that a
//! file for a newer version still works.

mod compaction;
pub mod etcd;
mod problem;
mod scan;
mod text;
mod tokens;
mod tuning;

use std::collections::HashMap;
use std::net::{SocketAddr, ToSocketAddrs as _};
use std::path::{Path, PathBuf};
use std::time::Duration;

pub use self::problem::{Place, Problem};
use self::text::{Kind, Text, TlsFields};
pub use self::tokens::{JwtConfig, TOKEN_TTL, TokenConfig};
pub use self::tuning::{SecretText, Tuning};
use crate::tls::TlsFiles;

/// The first member of `cluster` listens here unless the file says otherwise.
pub const PORT_RANGE_START: u16 = 54000;
/// Members that `cluster` starts at most.
pub const CLUSTER_MEMBERS_MAX: usize = 9;
/// Members that one configuration file may list.
pub const MEMBERS_MAX: usize = raft::core::MEMBERS_MAX;
/// Bytes of one encoded request, as in etcd (1.5 MiB).
pub const REQUEST_BYTES_MAX: usize = 1536 << 10;
/// `max_request_bytes` at most.
const REQUEST_BYTES_LIMIT: u64 = 64 << 20;
/// What `watch_progress_interval` is when the file does not say.
const WATCH_PROGRESS_MILLIS: f64 = 600_000.0;
/// What `max_learners` is when the file does not say, as in etcd.
const LEARNERS_MAX: u64 = 1;
/// Durations in a configuration at most, in milliseconds: an hour.
const MILLIS_MAX: f64 = 3_600_000.0;

/// Something that works and is probably not meant.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Warning {
    /// `file:line:column`.
    pub place: String,
    /// The field.
    pub field: String,
    /// What about it.
    pub advice: String,
}

/// What both files can say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Settings {
    /// Shortest time without a leader after which an election starts.
    pub election_timeout_min: Duration,
    /// Longest such time, inclusive.
    pub election_timeout_max: Duration,
    /// How often an idle leader says that it lives.
    pub heartbeat_interval: Duration,
    /// How long a client waits for an answer at most. etcd: 5 s and two election timeouts.
    pub request_timeout: Duration,
    /// Bytes of one encoded request.
    pub request_bytes_max: usize,
    /// How often a watcher that asked for it hears how far it is while nothing happens. etcd: 10 minutes.
    pub watch_progress_interval: Duration,
    /// Bytes that the store may take; `None`: a part of the machine's memory.
    pub quota_bytes: Option<u64>,
    /// Learners that there may be. etcd: 1.
    pub learners_max: usize,
    /// What few need to change.
    pub tuning: Tuning,
}

/// One line of `cluster_members`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MemberAddress {
    /// Where the other members find it.
    pub peer: String,
    /// Where clients find it; mostly the same.
    pub client: String,
}

/// A file for `node`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NodeConfig {
    /// The file itself.
    pub file: PathBuf,
    /// What the members' data folders are named after.
    pub persistent_state_file: PathBuf,
    /// In the order of the file; the index on the command line picks one.
    pub members: Vec<MemberAddress>,
    /// TLS with clients; `None`: plain text.
    pub client_tls: Option<TlsFiles>,
    /// TLS among members, the same for all; `None`: plain text.
    pub peer_tls: Option<TlsFiles>,
    /// Everything else.
    pub settings: Settings,
    /// What should be looked at.
    pub warnings: Vec<Warning>,
}

/// A file for `cluster`.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClusterConfig {
    /// The file itself.
    pub file: PathBuf,
    /// Holds the members' data folders.
    pub data_path: PathBuf,
    /// Member `i` listens on this port + `i`.
    pub port_range_start: u16,
    /// Everything else.
    pub settings: Settings,
    /// What should be looked at.
    pub warnings: Vec<Warning>,
}

impl NodeConfig {
    /// Reads and checks `path`.
    ///
    /// # Errors
    /// The first problem found.
    pub fn read(path: &Path) -> Result<Self, Box<Problem>> {
        let text = Text::read(path, Kind::Node)?;
        let mut warnings = text.unknown();

        let state_file =
            text.required(text.fields.persistent_state_file.as_deref(), "persistent_state_file")?;
        let state_file = PathBuf::from(state_file);
        if state_file.file_name().is_none() {
            return Err(text.wrong("persistent_state_file", "the path does not end in a name"));
        }
        let listed = text.required(text.fields.cluster_members.as_deref(), "cluster_members")?;
        check_addresses(&text, "cluster_members", listed)?;
        let apart = |field: &str, addresses: Option<&Vec<String>>| {
            let Some(addresses) = addresses else { return Ok(listed.to_vec()) };
            check_addresses(&text, field, addresses)?;
            if addresses.len() == listed.len() {
                return Ok(addresses.clone());
            }
            let wrong = format!("{} addresses for {} members", addresses.len(), listed.len());
            Err(text.wrong(field, wrong))
        };
        let clients = apart("client_addresses", text.fields.client_addresses.as_ref())?;
        let peers = apart("peer_addresses", text.fields.peer_addresses.as_ref())?;
        if text.fields.client_addresses.is_some() && text.fields.peer_addresses.is_some() {
            return Err(text.wrong_because(
                "peer_addresses",
                "client_addresses is given, too: cluster_members would mean nothing",
                "one of the two: the other addresses are those in cluster_members",
            ));
        }
        let settings = settings(&text, &mut warnings)?;
        let members = peers
            .into_iter()
            .zip(clients)
            .map(|(peer, client)| MemberAddress { peer, client })
            .collect();
        Ok(Self {
            file: path.to_owned(),
            persistent_state_file: state_file,
            members,
            client_tls: tls(&text, "client_tls", text.fields.client_tls.as_ref())?,
            peer_tls: tls(&text, "peer_tls", text.fields.peer_tls.as_ref())?,
            settings,
            warnings,
        })
    }

    /// The addresses of member `index`.
    ///
    /// # Errors
    /// When there is no such member.
    pub fn member(&self, index: usize) -> Result<&MemberAddress, Box<Problem>> {
        self.members.get(index).ok_or_else(|| {
            let count = self.members.len();
            let mut problem = Problem::of_file(
                &self.file,
                format!("there is no member {index}: the file lists {count}"),
                format!(
                    "an index from 0 to {}: rusty-raft node {} 0",
                    count.saturating_sub(1),
                    self.file.display()
                ),
            );
            problem.field = Some("cluster_members".to_owned());
            problem
        })
    }

    /// The data folder of member `index`: `node_<index>_<name>` beside the configured path.
    #[must_use]
    pub fn data_dir(&self, index: usize) -> PathBuf {
        let name = self.persistent_state_file.file_name().unwrap_or_default().to_string_lossy();
        self.persistent_state_file.with_file_name(format!("node_{index}_{name}"))
    }
}

impl ClusterConfig {
    /// Reads and checks `path` for a cluster of `num_nodes` members.
    ///
    /// # Errors
    /// The first problem found.
    pub fn read(path: &Path, num_nodes: usize) -> Result<Self, Box<Problem>> {
        let text = Text::read(path, Kind::Cluster)?;
        let mut warnings = text.unknown();

        let data_path = text.required(text.fields.data_path.as_deref(), "data_path")?;
        if data_path.is_empty() {
            return Err(text.wrong("data_path", "the path is empty"));
        }
        let port = text.fields.port_range_start.unwrap_or_else(|| u64::from(PORT_RANGE_START));
        let last_port = port.saturating_add(num_nodes as u64).saturating_sub(1);
        let port_range_start = match u16::try_from(port) {
            Ok(port) if port > 0 && last_port <= u64::from(u16::MAX) => port,
            _ => {
                return Err(text.wrong_because(
                    "port_range_start",
                    format!("the members would listen on the ports {port} to {last_port}"),
                    format!("ports from 1 to {}: port_range_start: {PORT_RANGE_START}", u16::MAX),
                ));
            }
        };
        let settings = settings(&text, &mut warnings)?;
        Ok(Self {
            file: path.to_owned(),
            data_path: PathBuf::from(data_path),
            port_range_start,
            settings,
            warnings,
        })
    }
}

fn tls(
    text: &Text,
    field: &str,
    fields: Option<&TlsFields>,
) -> Result<Option<TlsFiles>, Box<Problem>> {
    let Some(fields) = fields else { return Ok(None) };
    let files = fields.files().ok_or_else(|| {
        text.wrong_because(
            field,
            "it demands something of certificates, but without trusted_ca_file nobody has to present one",
            r#"the authority that signs: trusted_ca_file: "ca.pem""#,
        )
    });
    files.map(Some)
}

fn settings(text: &Text, warnings: &mut Vec<Warning>) -> Result<Settings, Box<Problem>> {
    let interval =
        text.required(text.fields.election_timeout_interval.clone(), "election_timeout_interval")?;
    let (start, end) = (*interval.start(), *interval.end());
    for (name, millis) in [("start", start), ("end", end)] {
        if !millis.is_finite() || millis <= 0.0 || millis > MILLIS_MAX {
            return Err(text.wrong(
                "election_timeout_interval",
                format!(
                    "its {name} is {millis}, but must be more than 0 and at most {MILLIS_MAX} ms"
                ),
            ));
        }
    }
    if start > end {
        return Err(text.wrong_because(
            "election_timeout_interval",
            format!("it is reversed: the start {start} lies after the end {end}"),
            format!("election_timeout_interval: RangeInclusive(start: {end:?}, end: {start:?})"),
        ));
    }
    if start >= end {
        return Err(text.wrong_because(
            "election_timeout_interval",
            format!("it is empty: with {start} for both ends, members would always stand for election together"),
            format!("election_timeout_interval: RangeInclusive(start: {start:?}, end: {:?})", start * 2.0),
        ));
    }

    let heartbeat = text.required(text.fields.heartbeat_interval, "heartbeat_interval")?;
    if !heartbeat.is_finite() || heartbeat <= 0.0 {
        return Err(
            text.wrong("heartbeat_interval", format!("it is {heartbeat}, but must be more than 0"))
        );
    }
    if heartbeat >= start {
        return Err(text.wrong_because(
            "heartbeat_interval",
            format!(
                "{heartbeat} ms is not below the shortest election timeout of {start} ms: followers would stand for \
                 election between two heartbeats"
            ),
            format!("at most half of it: heartbeat_interval: {}", start / 2.0),
        ));
    }
    if heartbeat * 2.0 > start {
        warnings.push(text.warning(
            "heartbeat_interval",
            format!(
                "{heartbeat} ms is not well below the shortest election timeout of {start} ms: one late heartbeat \
                 starts an election; at most {} is better",
                start / 2.0
            ),
        ));
    }

    let request_timeout = text.fields.request_timeout.unwrap_or(5000.0 + 2.0 * end);
    if !request_timeout.is_finite() || request_timeout <= 0.0 || request_timeout > MILLIS_MAX {
        return Err(text.wrong(
            "request_timeout",
            format!("it is {request_timeout}, but must be more than 0 and at most {MILLIS_MAX} ms"),
        ));
    }
    let progress = text.fields.watch_progress_interval.unwrap_or(WATCH_PROGRESS_MILLIS);
    if !progress.is_finite() || progress <= 0.0 || progress > MILLIS_MAX {
        return Err(text.wrong(
            "watch_progress_interval",
            format!("it is {progress}, but must be more than 0 and at most {MILLIS_MAX} ms"),
        ));
    }
    let request_bytes = text.fields.max_request_bytes.unwrap_or(REQUEST_BYTES_MAX as u64);
    let request_bytes_max = match usize::try_from(request_bytes) {
        Ok(bytes) if request_bytes > 0 && request_bytes <= REQUEST_BYTES_LIMIT => bytes,
        _ => {
            return Err(text.wrong(
                "max_request_bytes",
                format!("it is {request_bytes}, but must be from 1 to {REQUEST_BYTES_LIMIT}"),
            ));
        }
    };
    let quota_bytes = text.fields.quota_backend_bytes;
    if quota_bytes == Some(0) {
        return Err(text.wrong("quota_backend_bytes", "it is 0, but must be more than 0"));
    }
    let learners_max = text.fields.max_learners.unwrap_or(LEARNERS_MAX);
    Ok(Settings {
        election_timeout_min: millis(start),
        election_timeout_max: millis(end),
        heartbeat_interval: millis(heartbeat),
        request_timeout: millis(request_timeout),
        request_bytes_max,
        watch_progress_interval: millis(progress),
        quota_bytes,
        learners_max: usize::try_from(learners_max).unwrap_or(usize::MAX),
        tuning: Tuning::of(text, heartbeat)?,
    })
}

/// A duration of checked milliseconds, never zero.
fn millis(millis: f64) -> Duration {
    Duration::try_from_secs_f64(millis / 1000.0)
        .unwrap_or(Duration::MAX)
        .max(Duration::from_micros(1))
}

/// Refuses an empty list, an address that is none or resolves to nothing, and two members on one address.
fn check_addresses(text: &Text, field: &str, addresses: &[String]) -> Result<(), Box<Problem>> {
    if addresses.is_empty() || addresses.len() > MEMBERS_MAX {
        return Err(text.wrong(
            field,
            format!("it has {} addresses, but must have from 1 to {MEMBERS_MAX}", addresses.len()),
        ));
    }
    let mut seen: HashMap<SocketAddr, &str> = HashMap::new();
    for address in addresses {
        let resolved =
            resolve(address).map_err(|reason| text.wrong_item(field, address, false, reason))?;
        for socket in resolved {
            match seen.insert(socket, address) {
                Some(other) if other == address => {
                    return Err(text.wrong_item(
                        field,
                        address,
                        true,
                        format!("the address {address} is given to two members"),
                    ));
                }
                Some(other) => {
                    return Err(text.wrong_item(
                        field,
                        address,
                        true,
                        format!("the addresses {other} and {address} are the same ({socket})"),
                    ));
                }
                None => {}
            }
        }
    }
    Ok(())
}

/// Whether `address` reads as `host:port`.
///
/// # Errors
/// In words: what is wrong with it.
pub fn check_syntax(address: &str) -> Result<(), String> {
    check_syntax_with_any_port(address)?;
    let port = address.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
    if port == Some(0) { Err(without_port(address)) } else { Ok(()) }
}

fn without_port(address: &str) -> String {
    format!("the address {address:?} does not end in a port from 1 to 65535")
}

/// The same, where port 0 stands for any that is free.
///
/// # Errors
/// In words: what is wrong with it.
pub fn check_syntax_with_any_port(address: &str) -> Result<(), String> {
    match address.rsplit_once(':').map(|(host, port)| (host, port.parse::<u16>())) {
        None => Err(format!("the address {address:?} has no port")),
        Some(("", _)) => Err(format!("the address {address:?} has no host")),
        Some((_, Err(_))) => Err(without_port(address)),
        Some((host, Ok(_))) if host.contains(['/', ' ', '@', '?', '#', '\n']) => {
            Err(format!("the address {address:?} is not of the form host:port"))
        }
        Some((_, Ok(_))) => Ok(()),
    }
}

/// The socket addresses behind `host:port`, each once.
///
/// # Errors
/// In words: what is wrong with it.
pub fn resolve(address: &str) -> Result<Vec<SocketAddr>, String> {
    check_syntax(address)?;
    resolve_with_any_port(address)
}

/// The same, where port 0 stands for any that is free.
///
/// # Errors
/// In words: what is wrong with it.
pub fn resolve_with_any_port(address: &str) -> Result<Vec<SocketAddr>, String> {
    check_syntax_with_any_port(address)?;
    let found = address
        .to_socket_addrs()
        .map_err(|error| format!("the address {address:?} does not resolve: {error}"))?;
    let mut resolved: Vec<SocketAddr> = found.collect();
    resolved.sort_unstable();
    resolved.dedup();
    if resolved.is_empty() {
        return Err(format!("the address {address:?} resolves to nothing"));
    }
    Ok(resolved)
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: &str = include_str!("../../../../config.ron");
    const CLUSTER: &str = include_str!("../../../../cluster_config.ron");

    fn node(text: &str) -> Result<NodeConfig, Box<Problem>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.ron");
        std::fs::write(&path, text).unwrap();
        NodeConfig::read(&path)
    }

    fn cluster(text: &str, num_nodes: usize) -> Result<ClusterConfig, Box<Problem>> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("cluster_config.ron");
        std::fs::write(&path, text).unwrap();
        ClusterConfig::read(&path, num_nodes)
    }

    #[test]
    fn the_sample_for_a_node_means_what_it_says() {
        let config = node(NODE).unwrap();
        assert_eq!(config.warnings, []);
        assert_eq!(config.data_dir(0), Path::new("node_0_data.raft"));
        let peers: Vec<&str> = config.members.iter().map(|member| member.peer.as_str()).collect();
        assert_eq!(peers, ["127.0.0.1:47812", "127.0.0.1:38419", "127.0.0.1:29123"]);
        assert_eq!(config.members[2].client, "127.0.0.1:29123");
        assert_eq!(
            config.settings,
            Settings {
                election_timeout_min: Duration::from_millis(200),
                election_timeout_max: Duration::from_millis(400),
                heartbeat_interval: Duration::from_millis(100),
                request_timeout: Duration::from_millis(5800),
                request_bytes_max: 1_572_864,
                watch_progress_interval: Duration::from_secs(600),
                quota_bytes: None,
                learners_max: 1,
                tuning: Tuning::default(),
            }
        );
    }

    #[test]
    fn certificates_are_named_by_their_files() {
        let with =
            |fields: &str| node(&NODE.replacen('(', &format!("(\n    peer_tls: ({fields}),"), 1));
        let files = r#"cert_file: "c", key_file: "k""#;
        let config =
            with(&format!(r#"{files}, trusted_ca_file: "a", allowed_common_names: ["x"]"#))
                .unwrap();
        let expected = TlsFiles {
            cert: PathBuf::from("c"),
            key: PathBuf::from("k"),
            trusted_ca: Some(PathBuf::from("a")),
            allowed_common_names: vec!["x".to_owned()],
            ..TlsFiles::default()
        };
        assert_eq!((config.peer_tls, config.client_tls), (Some(expected), None));
        assert_eq!(config.warnings, []);
        // (the fields, a part of the message)
        for (fields, part) in [
            (r#"cert_file: "c""#, "key_file"),
            (r#"cert_file: "c", key_file: "k", trusted_ca: "a""#, "trusted_ca"),
            (r#"cert_file: "c", key_file: "k", crl_file: "r""#, "without trusted_ca_file"),
        ] {
            let problem = with(fields).unwrap_err();
            assert_eq!(problem.field.as_deref(), Some("peer_tls"), "{problem}");
            assert!(problem.to_string().contains(part), "{problem}");
            assert_eq!(problem.place.as_ref().map(|place| place.line), Some(2), "{problem}");
        }
    }

    #[test]
    fn the_sample_for_a_cluster_means_what_it_says() {
        let config = cluster(CLUSTER, 3).unwrap();
        assert_eq!(config.warnings, []);
        assert_eq!(config.data_path, Path::new("raft_data/"));
        assert_eq!(config.port_range_start, 54000);
        assert_eq!(config.settings.election_timeout_min, Duration::from_millis(300));
        assert_eq!(config.settings.election_timeout_max, Duration::from_millis(500));
    }

    #[test]
    fn other_spellings_of_the_same_values_work() {
        for interval in
            ["(start: 300, end: 500.0)", "300.0..=500.0", "RangeInclusive(start:300,end:500,)"]
        {
            let text = CLUSTER.replace("RangeInclusive(start: 300.0, end: 500.0)", interval);
            let (other, sample) = (cluster(&text, 3).unwrap(), cluster(CLUSTER, 3).unwrap());
            assert_eq!(other.settings, sample.settings, "{interval}");
        }
        let fraction =
            cluster(&CLUSTER.replace("heartbeat_interval: 100", "heartbeat_interval: 0.5"), 3);
        assert_eq!(fraction.unwrap().settings.heartbeat_interval, Duration::from_micros(500));
    }

    #[test]
    fn the_data_folder_lies_beside_the_configured_path() {
        let config = node(&NODE.replace("data.raft", "/var/lib/x/data.raft")).unwrap();
        assert_eq!(config.data_dir(2), Path::new("/var/lib/x/node_2_data.raft"));
    }

    #[test]
    fn unknown_fields_warn_once_and_name_the_nearest() {
        let text = NODE.replace("(\n", "(\n    hartbeat_interval: 5,\n    data_path: Some(\"x\"),\n    zz: Foo(a: [1, (2)]),\n");
        let config = node(&text).unwrap();
        let warnings: Vec<(&str, &str)> =
            config.warnings.iter().map(|w| (w.field.as_str(), w.advice.as_str())).collect();
        assert_eq!(warnings[0].0, "hartbeat_interval");
        assert!(warnings[0].1.contains("did you mean `heartbeat_interval`?"), "{warnings:?}");
        assert!(config.warnings[0].place.ends_with("config.ron:2:5"), "{warnings:?}");
        assert_eq!(
            warnings.iter().map(|w| w.0).collect::<Vec<_>>(),
            ["hartbeat_interval", "data_path", "zz"]
        );
        // A field of the other kind of file is as unknown as any.
        assert_eq!(
            cluster(&CLUSTER.replace("(\n", "(\n cluster_members: [],\n"), 3)
                .unwrap()
                .warnings
                .len(),
            1
        );
    }

    #[test]
    fn a_heartbeat_that_is_barely_shorter_warns() {
        let config =
            node(&NODE.replace("heartbeat_interval: 100", "heartbeat_interval: 150")).unwrap();
        assert_eq!(config.warnings.len(), 1);
        assert!(config.warnings[0].advice.contains("not well below"), "{:?}", config.warnings);
    }

    /// (what is changed in the sample, into what, the field named, line:column, a part of what is wrong)
    const BAD_NODE: [(&str, &str, &str, &str, &str); 20] = [
        (
            "heartbeat_interval: 100",
            "heartbeat_interval: \"100\"",
            "heartbeat_interval",
            "5:25",
            "expected",
        ),
        (
            "heartbeat_interval: 100",
            "heartbeat_interval: 200",
            "heartbeat_interval",
            "5:25",
            "not below",
        ),
        (
            "heartbeat_interval: 100",
            "heartbeat_interval: 0",
            "heartbeat_interval",
            "5:25",
            "more than 0",
        ),
        (
            "heartbeat_interval: 100",
            "heartbeat_interval: -1",
            "heartbeat_interval",
            "5:25",
            "more than 0",
        ),
        (
            "heartbeat_interval: 100",
            "heartbeat_interval: NaN",
            "heartbeat_interval",
            "5:25",
            "more than 0",
        ),
        ("    heartbeat_interval: 100", "    //", "heartbeat_interval", "", "missing"),
        (
            "start: 200.0, end: 400.0",
            "start: 400.0, end: 200.0",
            "election_timeout_interval",
            "4:32",
            "reversed",
        ),
        (
            "start: 200.0, end: 400.0",
            "start: 200.0, end: 200.0",
            "election_timeout_interval",
            "4:32",
            "empty",
        ),
        (
            "start: 200.0, end: 400.0",
            "start: 0, end: 400.0",
            "election_timeout_interval",
            "4:32",
            "more than 0",
        ),
        (
            "start: 200.0, end: 400.0",
            "start: 200.0, end: inf",
            "election_timeout_interval",
            "4:32",
            "at most",
        ),
        ("start: 200.0, end: 400.0", "start: 200.0", "election_timeout_interval", "4:", "end"),
        (
            "\"127.0.0.1:38419\"",
            "\"127.0.0.1:47812\"",
            "cluster_members",
            "3:42",
            "given to two members",
        ),
        ("\"127.0.0.1:38419\"", "\"127.0.0.1\"", "cluster_members", "3:42", "has no port"),
        ("\"127.0.0.1:38419\"", "\":38419\"", "cluster_members", "3:42", "has no host"),
        (
            "\"127.0.0.1:38419\"",
            "\"127.0.0.1:0\"",
            "cluster_members",
            "3:42",
            "port from 1 to 65535",
        ),
        (
            "\"127.0.0.1:38419\"",
            "\"127.0.0.1:65536\"",
            "cluster_members",
            "3:42",
            "port from 1 to 65535",
        ),
        (
            "\"127.0.0.1:38419\"",
            "\"no-such-host.invalid:38419\"",
            "cluster_members",
            "3:42",
            "does not resolve",
        ),
        ("\"127.0.0.1:38419\"", "7", "cluster_members", "3:42", "expected"),
        ("\"data.raft\"", "\"..\"", "persistent_state_file", "2:28", "name"),
        (
            "\"data.raft\"",
            "\"a\", persistent_state_file: \"b\"",
            "persistent_state_file",
            "2:",
            "twice",
        ),
    ];

    #[test]
    fn every_bad_value_is_named_with_its_place() {
        for (from, to, field, place, wrong) in BAD_NODE {
            assert!(NODE.contains(from), "{from}");
            let problem = node(&NODE.replace(from, to)).expect_err(to);
            let text = problem.to_string();
            assert_eq!(problem.field.as_deref(), Some(field), "{text}");
            assert!(
                text.contains(&format!("config.ron:{place}")) || place.is_empty(),
                "{place} in {text}"
            );
            assert!(problem.wrong.contains(wrong), "{wrong} in {text}");
            assert!(text.lines().count() < 15 && text.ends_with("Nothing was written."), "{text}");
        }
    }

    #[test]
    fn every_bad_value_of_a_field_that_few_need_is_named_with_its_place() {
        for (added, place, wrong) in [
            ("busy_poll: 26", "5:41", "a quarter of heartbeat_interval"),
            ("busy_poll: -1", "5:41", "from 0 to a quarter"),
            ("busy_poll: NaN", "5:41", "from 0 to a quarter"),
            ("log_segment_bytes: 1048575", "5:49", "from 1048576 to"),
            ("log_segment_bytes: 1073741825", "5:49", "from 1048576 to"),
            ("checkpoint_entries: 0", "5:50", "from 1 to"),
            ("checkpoint_bytes: 0", "5:48", "from 1 to"),
            ("trailing_entries: 99999999999999", "5:48", "from 0 to"),
            ("trailing_bytes: \"x\"", "5:46", "xpected"),
            ("cluster_secret: \"fifteen bytes..\"", "", "only 15 bytes"),
            ("peer_addresses: [\"127.0.0.1:1\"]", "5:46", "1 addresses for 3 members"),
            ("client_addresses: [\"127.0.0.1\", \"b:1\", \"c:1\"]", "5:49", "has no port"),
        ] {
            let field = added.split_once(':').unwrap().0;
            let text = NODE
                .replace("heartbeat_interval: 100", &format!("heartbeat_interval: 100, {added}"));
            let problem = node(&text).expect_err(added);
            let text = problem.to_string();
            assert_eq!(problem.field.as_deref(), Some(field), "{text}");
            assert!(
                place.is_empty() || text.contains(&format!("config.ron:{place}")),
                "{place} in {text}"
            );
            assert!(problem.wrong.contains(wrong), "{wrong} in {text}");
            assert!(!text.contains("fifteen"), "a secret is never shown: {text}");
        }
    }

    #[test]
    fn fields_that_few_need_reach_the_node_and_the_file_for_the_members() {
        let added = "cluster_secret: \"sixteen bytes or \\\"more\", log_segment_bytes: 1048576, \
            checkpoint_entries: 7, checkpoint_bytes: 8, trailing_entries: 0, trailing_bytes: 9, scrub_bytes_per_second: 10, \
            auto_compaction_mode: \"revision\", auto_compaction_retention: \"1000\", busy_poll: 0.25,";
        let text = CLUSTER
            .replace("heartbeat_interval: 100,", &format!("heartbeat_interval: 100, {added}"));
        let tuning = cluster(&text, 3).unwrap().settings.tuning;
        let lines = tuning.lines(ron::to_string::<str>).unwrap();
        let again =
            NODE.replace("heartbeat_interval: 100,", &format!("heartbeat_interval: 100, {lines}"));
        assert_eq!(node(&again).unwrap().settings.tuning, tuning);
        assert!(!format!("{tuning:?}").contains("sixteen"));
        assert_eq!(
            tuning.auto_compaction,
            Some(crate::etcd::Compaction::Revision { retention: 1000 })
        );
        let half_an_hour =
            again.replace("\"revision\"", "\"periodic\"").replace("\"1000\"", "\"30m\"");
        let tuning = node(&half_an_hour).unwrap().settings.tuning;
        let lines = tuning.lines(ron::to_string::<str>).unwrap();
        assert!(lines.contains("auto_compaction_retention: \"1800000ms\""), "{lines}");
        for wrong in ["\"sometimes\"", "\"periodic\", auto_compaction_retention: \"soon\""] {
            let text = NODE.replace(
                "heartbeat_interval: 100,",
                &format!("heartbeat_interval: 100, auto_compaction_mode: {wrong},"),
            );
            assert!(node(&text).unwrap_err().to_string().contains("auto_compaction"), "{wrong}");
        }
        let mut settings = raft::node::Settings::default();
        tuning.apply(&mut settings);
        assert!(settings.cluster_secret.is_some());
        assert_eq!(settings.log_segment_bytes, 1 << 20);
        assert_eq!((settings.checkpoint_entries, settings.checkpoint_bytes), (7, 8));
        assert_eq!((settings.trailing_entries, settings.trailing_bytes), (0, 9));
        assert_eq!(settings.scrub_bytes_per_second, 10);
        assert_eq!(settings.busy_poll, Duration::from_micros(250));
        Tuning::default().apply(&mut settings);
        assert_eq!(settings.checkpoint_entries, 7, "what is not given stays");
    }

    #[test]
    fn peers_may_have_addresses_of_their_own() {
        let apart = |field: &str| {
            NODE.replace(
                "heartbeat_interval: 100,",
                &format!("heartbeat_interval: 100, {field}: [\"127.0.0.1:1\", \"127.0.0.1:2\", \"127.0.0.1:3\"],"),
            )
        };
        let member = |text: &str| node(text).unwrap().members[1].clone();
        let (peer, client) = ("127.0.0.1:2".to_owned(), "127.0.0.1:38419".to_owned());
        let expected = MemberAddress { peer: peer.clone(), client: client.clone() };
        assert_eq!(member(&apart("peer_addresses")), expected);
        assert_eq!(
            member(&apart("client_addresses")),
            MemberAddress { peer: client, client: peer }
        );
        let both = apart("peer_addresses").replace("heartbeat_interval: 100,", "heartbeat_interval: 100, client_addresses: [\"127.0.0.1:4\", \"127.0.0.1:5\", \"127.0.0.1:6\"],");
        assert!(node(&both).unwrap_err().wrong.contains("client_addresses is given, too"));
    }

    /// The name of what is missing may stand there misspelled.
    #[test]
    fn a_misspelled_field_is_named_also_when_another_problem_ends_the_reading() {
        for (from, to) in [
            ("heartbeat_interval: 100", "hartbeat_interval: 100"),
            ("heartbeat_interval: 100", "heartbeat_interval: 0, hartbeat_interval: 100"),
        ] {
            let text = node(&NODE.replace(from, to)).unwrap_err().to_string();
            assert!(
                text.contains("also") && text.contains("did you mean `heartbeat_interval`?"),
                "{text}"
            );
        }
    }

    #[test]
    fn two_names_of_one_address_are_a_duplicate() {
        let problem = node(&NODE.replace("127.0.0.1:38419", "localhost:47812")).unwrap_err();
        assert!(problem.wrong.contains("are the same"), "{problem}");
    }

    #[test]
    fn texts_that_are_no_configuration_say_so() {
        for (text, wrong) in [
            ("", "expected opening"),
            ("(", "expected"),
            ("hello", "expected"),
            ("()", "missing"),
            ("(a: \"", "expected"),
            ("() trailing", "trailing"),
        ] {
            let problem = node(text).unwrap_err();
            assert!(problem.wrong.to_lowercase().contains(wrong), "{text}: {problem}");
        }
        let missing = NodeConfig::read(Path::new("no/such/file.ron")).unwrap_err();
        assert!(missing.to_string().contains("there is no such file"), "{missing}");
        let folder = NodeConfig::read(Path::new("src")).unwrap_err();
        assert!(folder.to_string().contains("cannot be read"), "{folder}");
        let dir = tempfile::tempdir().unwrap();
        let binary = dir.path().join("config.ron");
        std::fs::write(&binary, b"(a: \xff)").unwrap();
        assert!(NodeConfig::read(&binary).unwrap_err().wrong.contains("byte 4"));
    }

    #[test]
    fn indices_and_ports_out_of_range_are_refused() {
        let config = node(NODE).unwrap();
        assert!(config.member(2).is_ok());
        let problem = config.member(3).unwrap_err();
        assert!(problem.right.contains("an index from 0 to 2"), "{problem}");

        let start =
            |port: &str| CLUSTER.replace("(\n", &format!("(\n port_range_start: {port},\n"));
        assert!(cluster(&start("65533"), 3).is_ok());
        for port in ["65534", "0", "99999999999"] {
            let problem = cluster(&start(port), 3).unwrap_err();
            assert_eq!(problem.field.as_deref(), Some("port_range_start"), "{problem}");
        }
        assert!(cluster(&start("-5"), 3).is_err());
    }
}
