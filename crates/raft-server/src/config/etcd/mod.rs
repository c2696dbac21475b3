//! etcd's own configuration: its flags, its variables, its YAML file.
//!
//! [`EtcdConfig::read`] gathers what they say and turns it into what a member needs. What etcd refuses is refused here
//! too; what it knows and this program does not need is accepted with a warning that says why.

mod flags;
mod sources;
mod tls;
pub(crate) mod values;
mod yaml;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use self::flags::{FLAGS, Fate};
use self::sources::Sources;
pub use self::sources::{Origin, Request, Row};
pub use self::tls::TlsPlan;
pub use self::values::Url;
use super::{
    LEARNERS_MAX, MEMBERS_MAX, MILLIS_MAX, Problem, REQUEST_BYTES_LIMIT, Settings, TOKEN_TTL,
    TokenConfig, Tuning, compaction,
};
use crate::etcd::Compaction;
use crate::logging::{Format, LogSettings, Output};

/// etcd's default token: members with this one form clusters with those started by `rusty-raft node`.
const DEFAULT_TOKEN: &str = "etcd-cluster";
/// The longest election timeout that etcd takes.
const ELECTION_MILLIS_MAX: u64 = 50_000;

/// A member as etcd's flags describe it.
#[derive(Clone, PartialEq, Debug)]
pub struct EtcdConfig {
    /// For people, and in `initial-cluster`.
    pub name: String,
    /// Holds everything of this member.
    pub data_dir: PathBuf,
    /// Where other members come to.
    pub listen_peers: Vec<Url>,
    /// Where clients come to.
    pub listen_clients: Vec<Url>,
    /// Where only metrics and health are served.
    pub listen_metrics: Vec<Url>,
    /// Where the other members dial this one.
    pub advertise_peer: Url,
    /// Where clients are told to go.
    pub advertise_clients: Vec<Url>,
    /// The addresses of all members that are to form a cluster, this one's among them, or of the others in one that
    /// exists.
    pub members: Vec<String>,
    /// The data belongs to a cluster: what was said of its beginning does not count any more.
    pub formed: bool,
    /// The cluster exists: an empty member waits to be added to it.
    pub existing: bool,
    /// What this member's folder holds becomes a cluster of its own.
    pub force_new_cluster: bool,
    /// Members with different tokens form no cluster together; empty for etcd's default.
    pub token: String,
    /// What every member has.
    pub settings: Settings,
    /// Operations of one transaction.
    pub txn_ops_max: usize,
    /// Requests in flight of one client, all those of the JSON gateway being one; `None`: as many as there may be on one
    /// connection anyway.
    pub streams_max: Option<u32>,
    /// When old revisions go.
    pub compaction: Option<Compaction>,
    /// TLS with clients; `None` when no URL of theirs is `https`.
    pub client_tls: Option<TlsPlan>,
    /// TLS among members.
    pub peer_tls: Option<TlsPlan>,
    /// A client without a token is the user that its certificate names.
    pub certificates_name_users: bool,
    /// What is logged, how and where.
    pub log: LogSettings,
    /// What should be looked at, a line each.
    pub warnings: Vec<String>,
}

/// What etcd's flags, variables and file say together, for people.
///
/// # Errors
/// What cannot be read.
pub fn table(
    words: &[String],
    variables: impl Iterator<Item = (String, String)>,
) -> Result<Vec<Row>, Box<Problem>> {
    let (_, words) = sources::command_line(words)?;
    Ok(Sources::gather(words, variables)?.table())
}

/// What the command line asks for.
///
/// # Errors
/// Words that are no flags of etcd.
pub fn request(words: &[String]) -> Result<Request, Box<Problem>> {
    sources::command_line(words).map(|(request, _)| request)
}

/// Every flag with its default and what becomes of it here, for `--help`.
#[must_use]
pub fn help() -> String {
    let mut text = String::new();
    for flag in FLAGS {
        text.push_str(&format!("  --{} '{}'\n", flag.name, flag.default));
        match flag.fate {
            Fate::Used => {}
            Fate::Idle(why) => text.push_str(&format!("      Accepted, without effect: {why}.\n")),
            Fate::Refused(why) => text.push_str(&format!("      Refused: {why}.\n")),
        }
    }
    text
}

impl EtcdConfig {
    /// Reads etcd's flags (`words`, without the program's name), variables, and the file that they name. `is_formed`
    /// says of a `--data-dir` whether its member belongs to a cluster: then `--initial-cluster` need not list it.
    ///
    /// # Errors
    /// The first problem found. Nothing was written.
    pub fn read(
        words: &[String],
        variables: impl Iterator<Item = (String, String)>,
        is_formed: impl FnOnce(&Path) -> bool,
    ) -> Result<Self, Box<Problem>> {
        let (_, words) = sources::command_line(words)?;
        let sources = Sources::gather(words, variables)?;
        let warnings = warnings(&sources)?;
        Reading { sources, warnings }.config(is_formed)
    }
}

/// What is accepted without effect; refuses what cannot be.
fn warnings(sources: &Sources) -> Result<Vec<String>, Box<Problem>> {
    let mut warnings = sources.warnings.clone();
    for flag in FLAGS {
        let Some((value, origin)) = sources.given(flag.name) else { continue };
        if value == flag.default || value.is_empty() || same_switch(value, flag.default) {
            continue;
        }
        match flag.fate {
            Fate::Used => {}
            Fate::Idle(why) => {
                warnings.push(format!("--{} ({origin}) has no effect here: {why}", flag.name));
            }
            Fate::Refused(why) => {
                return Err(sources.wrong(
                    flag.name,
                    format!("it is {value:?}: {why}"),
                    "without it",
                ));
            }
        }
    }
    Ok(warnings)
}

fn same_switch(a: &str, b: &str) -> bool {
    values::switch(a).is_some_and(|a| values::switch(b) == Some(a))
}

/// On the way from texts to a configuration.
struct Reading {
    sources: Sources,
    warnings: Vec<String>,
}

impl Reading {
    fn config(mut self, is_formed: impl FnOnce(&Path) -> bool) -> Result<EtcdConfig, Box<Problem>> {
        let name = self.sources.value("name").to_owned();
        if name.is_empty() || name.contains([',', '=']) {
            let wrong =
                format!("it is {name:?}, but must be a name without commas and equal signs");
            return Err(self.sources.wrong("name", wrong, "--name n0"));
        }
        let data_dir = match self.sources.given("data-dir") {
            Some((path, _)) if !path.is_empty() => PathBuf::from(path),
            _ => PathBuf::from(format!("{name}.etcd")),
        };
        let listen_peers = self.urls("listen-peer-urls")?;
        let mut listen_clients = self.client_urls("listen-client-urls")?;
        if self.sources.given("listen-client-http-urls").is_some() {
            let mut more = self.client_urls("listen-client-http-urls")?;
            more.retain(|url| !listen_clients.contains(url));
            listen_clients.extend(more);
        }
        let listen_metrics = match self.sources.value("listen-metrics-urls") {
            "" => Vec::new(),
            _ => self.client_urls("listen-metrics-urls")?,
        };
        if self.sources.given("listen-client-urls").is_some()
            && self.sources.given("advertise-client-urls").is_none()
        {
            return Err(self.sources.wrong(
                "advertise-client-urls",
                "it is missing, though --listen-client-urls is given",
                "where clients are told to go: --advertise-client-urls http://10.0.0.1:2379",
            ));
        }
        let advertise_clients = self.client_urls("advertise-client-urls")?;
        let mut advertise_peers = self.urls("initial-advertise-peer-urls")?;
        if advertise_peers.len() > 1 {
            let first = &advertise_peers[0];
            self.warnings.push(format!(
                "--initial-advertise-peer-urls names several; members dial one another at one address: {first}"
            ));
        }
        self.check_schemes(
            (&listen_peers, &advertise_peers),
            (&listen_clients, &advertise_clients),
        )?;
        let advertise_peer = advertise_peers.swap_remove(0);
        let existing = self.existing()?;
        let formed = is_formed(&data_dir);
        let members = self.members(&name, &advertise_peer, existing, formed)?;
        let token = match self.sources.value("initial-cluster-token") {
            DEFAULT_TOKEN => String::new(),
            token => token.to_owned(),
        };
        let (client_tls, peer_tls) = self.tls(
            &[&listen_clients[..], &listen_metrics].concat(),
            &[&listen_peers[..], std::slice::from_ref(&advertise_peer)].concat(),
        )?;
        let certificates_name_users =
            client_tls.is_some() && self.sources.is_on("client-cert-auth");
        let settings = self.settings()?;
        let txn_ops_max = self.number("max-txn-ops", 1, i64::MAX.unsigned_abs())?;
        // As in etcd: no number is none.
        let streams = self.number("max-concurrent-streams", 0, u64::from(u32::MAX))?;
        let streams_max =
            u32::try_from(streams).ok().filter(|streams| (1..u32::MAX).contains(streams));
        let compaction = self.compaction()?;
        let log = self.log()?;
        Ok(EtcdConfig {
            name,
            data_dir,
            listen_peers,
            listen_clients,
            listen_metrics,
            advertise_peer,
            advertise_clients,
            members,
            formed,
            existing,
            force_new_cluster: self.sources.is_on("force-new-cluster"),
            token,
            settings,
            txn_ops_max: usize::try_from(txn_ops_max).unwrap_or(usize::MAX),
            streams_max,
            compaction,
            client_tls,
            peer_tls,
            certificates_name_users,
            log,
            warnings: self.warnings,
        })
    }

    /// The URLs of a flag, at least one.
    fn urls(&self, name: &str) -> Result<Vec<Url>, Box<Problem>> {
        self.urls_by(name, Url::parse)
    }

    /// The same of a flag where the port may be 0: any that is free.
    fn client_urls(&self, name: &str) -> Result<Vec<Url>, Box<Problem>> {
        self.urls_by(name, Url::parse_with_any_port)
    }

    fn urls_by(
        &self,
        name: &str,
        parse: impl Fn(&str) -> Result<Url, String>,
    ) -> Result<Vec<Url>, Box<Problem>> {
        let right = "URLs separated by commas: http://10.0.0.1:2379,http://127.0.0.1:2379";
        let mut urls = Vec::new();
        for text in self.sources.value(name).split(',') {
            let url = parse(text).map_err(|wrong| self.sources.wrong(name, wrong, right))?;
            // As in etcd: said twice is said once.
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        Ok(urls)
    }

    /// Refuses `https://` in an address that others are told when nothing listens there with TLS: they would be told to
    /// expect what is not there, or be answered without it.
    fn check_schemes(
        &self,
        (listen_peers, advertise_peers): (&[Url], &[Url]),
        (listen_clients, advertise_clients): (&[Url], &[Url]),
    ) -> Result<(), Box<Problem>> {
        for (advertised, listened, name, listen) in [
            (advertise_peers, listen_peers, "initial-advertise-peer-urls", "listen-peer-urls"),
            (advertise_clients, listen_clients, "advertise-client-urls", "listen-client-urls"),
        ] {
            let Some(url) = advertised.iter().find(|url| url.tls) else { continue };
            if !listened.iter().any(|url| url.tls) {
                let wrong = format!("it is {url}, but no URL in --{listen} begins with https://");
                let right =
                    format!("https:// in --{listen} too, with a certificate; or http:// here");
                return Err(self.sources.wrong(name, wrong, right));
            }
        }
        Ok(())
    }

    fn existing(&self) -> Result<bool, Box<Problem>> {
        match self.sources.value("initial-cluster-state") {
            "new" => Ok(false),
            "existing" => Ok(true),
            other => Err(self.sources.wrong(
                "initial-cluster-state",
                format!("it is {other:?}"),
                "new for a cluster that is to form, existing for one that this member joins",
            )),
        }
    }

    /// The addresses in `initial-cluster`, in its order; without the own one when the cluster exists. Whether it lists
    /// this member matters only until that is `formed`.
    fn members(
        &mut self,
        name: &str,
        own: &Url,
        existing: bool,
        formed: bool,
    ) -> Result<Vec<String>, Box<Problem>> {
        let text = self.sources.value("initial-cluster").to_owned();
        let text = if text.is_empty() { format!("{name}={own}") } else { text };
        let right = "name=URL for each member: n0=http://10.0.0.1:2380,n1=http://10.0.0.2:2380";
        let wrong =
            |reading: &Self, wrong: String| reading.sources.wrong("initial-cluster", wrong, right);
        let mut listed: BTreeMap<String, Vec<Url>> = BTreeMap::new();
        let mut order = Vec::new();
        for item in text.split(',').map(str::trim).filter(|item| !item.is_empty()) {
            let Some((member, url)) = item.split_once('=').filter(|(member, _)| !member.is_empty())
            else {
                return Err(wrong(self, format!("{item:?} is not of the form name=URL")));
            };
            let url = Url::parse(url).map_err(|reason| wrong(self, reason))?;
            if url.tls != own.tls {
                let ours = if own.tls { "https" } else { "http" };
                return Err(wrong(self, format!("{url} differs from this member's own {ours}://")));
            }
            if let Some((other, _)) =
                listed.iter().find(|(other, urls)| *other != member && urls.contains(&url))
            {
                return Err(wrong(self, format!("{url} is given to {other} and to {member}")));
            }
            if !listed.contains_key(member) {
                order.push(member.to_owned());
            }
            let urls = listed.entry(member.to_owned()).or_default();
            if !urls.contains(&url) {
                urls.push(url);
            }
        }
        if !formed {
            let Some(ours) = listed.get(name) else {
                let listed = order.join(", ");
                return Err(wrong(
                    self,
                    format!("it lists {listed}, but not this member, {name:?}"),
                ));
            };
            if !ours.contains(own) {
                let ours = ours.iter().map(Url::to_string).collect::<Vec<_>>().join(", ");
                let wrong = format!("it is {own}, but --initial-cluster says {name}={ours}");
                let right = "the same URL in both";
                return Err(self.sources.wrong("initial-advertise-peer-urls", wrong, right));
            }
        }
        if listed.len() > MEMBERS_MAX {
            return Err(wrong(
                self,
                format!("it lists {} members, of {MEMBERS_MAX} at most", listed.len()),
            ));
        }
        let mut members = Vec::new();
        for member in &order {
            let Some(urls) = listed.get(member) else { continue };
            if let Some(second) = urls.get(1) {
                self.warnings.push(format!(
                    "--initial-cluster: {member} has several URLs; members dial one another at one address: {second} \
                     and what follows is ignored"
                ));
            }
            let address = if member == name { Some(own) } else { urls.first() };
            members.extend(address.map(|url| url.address.clone()));
        }
        if existing {
            members.retain(|address| *address != own.address);
        } else if !members.contains(&own.address) {
            members.push(own.address.clone());
        }
        Ok(members)
    }

    /// A number from `min` to `max`.
    fn number(&self, name: &str, min: u64, max: u64) -> Result<u64, Box<Problem>> {
        let text = self.sources.value(name);
        match text.parse::<u64>() {
            Ok(number) if (min..=max).contains(&number) => Ok(number),
            _ => {
                let right = if max == i64::MAX.unsigned_abs() {
                    format!("a whole number of at least {min}")
                } else {
                    format!("a whole number from {min} to {max}")
                };
                Err(self.sources.wrong(name, format!("it is {text}"), right))
            }
        }
    }

    fn settings(&self) -> Result<Settings, Box<Problem>> {
        let heartbeat = self.number("heartbeat-interval", 1, ELECTION_MILLIS_MAX)?;
        let election = self.number("election-timeout", 1, ELECTION_MILLIS_MAX)?;
        if heartbeat.saturating_mul(5) > election {
            return Err(self.sources.wrong(
                "election-timeout",
                format!("it is {election} ms, with a heartbeat every {heartbeat} ms"),
                format!(
                    "at least five times the heartbeat-interval: --election-timeout {}",
                    heartbeat * 5
                ),
            ));
        }
        let request_bytes = self.number("max-request-bytes", 1, REQUEST_BYTES_LIMIT)?;
        let quota = self.sources.value("quota-backend-bytes").parse::<i64>().unwrap_or(0);
        let quota_bytes = match quota {
            0 => None,
            // Negative in etcd: no limit.
            _ => Some(u64::try_from(quota).unwrap_or(u64::MAX)),
        };
        let mut tuning = Tuning::default();
        if self.sources.given("snapshot-count").is_some() {
            tuning.checkpoint_entries =
                Some(self.number("snapshot-count", 1, i64::MAX.unsigned_abs())?);
        }
        if self.sources.given("snapshot-catchup-entries").is_some() {
            let entries = self.number("snapshot-catchup-entries", 0, i64::MAX.unsigned_abs())?;
            tuning.trailing_entries = Some(entries);
        }
        let token = self.sources.value("auth-token");
        if self.sources.given("auth-token").is_some() && !token.is_empty() {
            let right = "simple, or jwt,sign-method=RS256,pub-key=…,priv-key=…,ttl=5m";
            TokenConfig::parse(token, TOKEN_TTL)
                .map_err(|wrong| self.sources.wrong("auth-token", wrong, right))?;
            tuning.auth_token = Some(token.to_owned());
        }
        if self.sources.given("auth-token-ttl").is_some() {
            let seconds = self.number("auth-token-ttl", 1, 365 * 24 * 3600)?;
            tuning.auth_token_ttl = Some(Duration::from_secs(seconds));
        }
        let learners = self.number("max-learners", 1, MEMBERS_MAX as u64)?;
        let progress = self.duration("watch-progress-notify-interval")?;
        if progress.is_zero() || progress.as_secs_f64() * 1000.0 > MILLIS_MAX {
            let right = "a duration of at most an hour: 10m";
            let wrong = format!("it is {progress:?}");
            return Err(self.sources.wrong("watch-progress-notify-interval", wrong, right));
        }
        let election = Duration::from_millis(election);
        Ok(Settings {
            // As etcd's Raft does: a random time from one to two election timeouts.
            election_timeout_min: election,
            election_timeout_max: election * 2,
            heartbeat_interval: Duration::from_millis(heartbeat),
            request_timeout: Duration::from_secs(5) + election * 2,
            request_bytes_max: usize::try_from(request_bytes).unwrap_or(usize::MAX),
            watch_progress_interval: progress,
            quota_bytes,
            learners_max: usize::try_from(learners.max(LEARNERS_MAX)).unwrap_or(usize::MAX),
            tuning,
        })
    }

    /// A duration; in the file it may be a number of nanoseconds.
    fn duration(&self, name: &str) -> Result<Duration, Box<Problem>> {
        let text = self.sources.value(name);
        let nanoseconds = || text.parse().ok().map(Duration::from_nanos);
        values::duration(text).or_else(nanoseconds).ok_or_else(|| {
            self.sources.wrong(
                name,
                format!("it is {text:?}"),
                "a duration such as 5s, 1m30s or 1h",
            )
        })
    }

    fn compaction(&self) -> Result<Option<Compaction>, Box<Problem>> {
        let mode = self.sources.value("auto-compaction-mode");
        let retention = self.sources.value("auto-compaction-retention");
        compaction::parse(mode, retention).map_err(|wrong| match wrong {
            compaction::Wrong::Mode => self.sources.wrong(
                "auto-compaction-mode",
                format!("it is {mode:?}"),
                compaction::MODES,
            ),
            compaction::Wrong::Retention(right) => self.sources.wrong(
                "auto-compaction-retention",
                format!("it is {retention:?}"),
                right,
            ),
        })
    }

    fn log(&self) -> Result<LogSettings, Box<Problem>> {
        let level =
            if self.sources.is_on("debug") { "debug" } else { self.sources.value("log-level") };
        let Some(level) = crate::logging::level(level) else {
            let right = "debug, info, warn, error, dpanic, panic or fatal";
            return Err(self.sources.wrong("log-level", format!("it is {level:?}"), right));
        };
        let format = match self.sources.value("log-format") {
            "json" => Format::Json,
            "console" => Format::Text,
            other => {
                let wrong = format!("it is {other:?}");
                return Err(self.sources.wrong("log-format", wrong, "json or console"));
            }
        };
        let format = match self.sources.value("logger") {
            "zap" => format,
            // The form of etcd up to 3.4: lines for people.
            "capnslog" => Format::Text,
            other => {
                let wrong = format!("it is {other:?}");
                return Err(self.sources.wrong("logger", wrong, "zap or capnslog"));
            }
        };
        let outputs = self.sources.value("log-outputs").split(',').map(str::trim);
        let outputs = outputs.filter(|output| !output.is_empty()).map(|output| match output {
            "default" | "stderr" | "systemd/journal" => Output::Stderr,
            "stdout" => Output::Stdout,
            "/dev/null" => Output::Nowhere,
            path => Output::File(PathBuf::from(path)),
        });
        Ok(LogSettings { level, format, outputs: outputs.collect() })
    }
}

#[cfg(test)]
mod tests;
