//! `rusty-raft cluster <cluster_config> <num_nodes>`: a whole cluster on this machine.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::ffi::OsString;
use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use raft::core::ClusterId;
use raft::disk::StdDisk;
use raft::log::inspect;
use raft::node::check_inspected;
use tokio::task::JoinSet;

use super::member::Refusal;
use super::{ClusterArgs, complain, say, signals::Signals};
use crate::config::{ClusterConfig, NodeConfig, Problem, Settings};
use crate::exit::Exit;
use crate::logging::{self, Color};
use crate::supervisor::{Event, Plan, Supervisor};
use crate::{client, front};

/// The members' common configuration in the data path (decision 5).
const NODE_CONFIG: &str = "config.ron";
/// What the members' data folders are named after.
const STATE_FILE: &str = "data.raft";
/// How often members are asked whether they have a leader.
const ASK_INTERVAL: Duration = Duration::from_millis(20);

/// What a cluster consists of.
pub(super) struct Layout {
    data_path: PathBuf,
    pub(super) addresses: Vec<String>,
}

impl Layout {
    pub(super) fn new(config: &ClusterConfig, num_nodes: usize) -> Self {
        let ports = config.port_range_start..=u16::MAX;
        Self {
            data_path: config.data_path.clone(),
            addresses: ports.take(num_nodes).map(|port| format!("127.0.0.1:{port}")).collect(),
        }
    }

    fn config_file(&self) -> PathBuf {
        self.data_path.join(NODE_CONFIG)
    }

    pub(super) fn data_dir(&self, index: usize) -> PathBuf {
        self.data_path.join(format!("node_{index}_{STATE_FILE}"))
    }

    /// Refuses to go on with data of a cluster of another size or at other addresses: the committed membership
    /// rules, and the configuration there must stay what it is (decision 4).
    pub(super) fn check_existing(&self, args: &ClusterArgs) -> Result<(), Box<Problem>> {
        let last = (0..=usize::from(u8::MAX)).rev().find(|index| self.data_dir(*index).exists());
        let folders = last.map_or(0, |last| last + 1);
        let known = if self.config_file().exists() {
            let config = NodeConfig::read(&self.config_file())?;
            config.members.into_iter().map(|member| member.peer).collect()
        } else {
            Vec::new()
        };
        let members = if known.is_empty() { folders } else { known.len() };
        if members != 0 && members != self.addresses.len() {
            return Err(self.other_size(args, members));
        }
        if folders != 0 && !known.is_empty() && known != self.addresses {
            return Err(self.other_addresses(args, &known));
        }
        Ok(())
    }

    /// Refuses data folders of different clusters, or of one whose members never had these addresses: half of the
    /// members would go on without the others.
    fn check_clusters(&self) -> Result<(), Refusal> {
        let refuse = |text: String| Refusal {
            exit: Exit::DataRefused,
            text: format!(
                "rusty-raft: {} cannot be used\n\n  {text}\n\nNothing was written.",
                self.data_path.display()
            ),
        };
        let mut folders = Vec::new();
        for index in 0..self.addresses.len() {
            // A folder that cannot be read is refused by its member, or by what comes next.
            let Ok(Some(found)) = inspect(&StdDisk, &self.data_dir(index)) else { continue };
            check_inspected(&found, &self.addresses).map_err(|error| refuse(error.to_string()))?;
            folders.push(found);
        }
        let mut members: BTreeMap<ClusterId, usize> = BTreeMap::new();
        for found in &folders {
            *members.entry(found.formed.cluster).or_default() += 1;
        }
        // Of two clusters with as many members each, the one of the first folder.
        let first = |cluster| folders.iter().position(|found| found.formed.cluster == cluster);
        let most =
            members.iter().max_by_key(|(cluster, count)| (**count, Reverse(first(**cluster))));
        let Some((expected, _)) = most else { return Ok(()) };
        match folders.iter().find(|found| found.formed.cluster != *expected) {
            None => Ok(()),
            Some(other) => Err(refuse(format!(
                "wrong  {} names cluster {}, the other members' folders name cluster {expected}\n  right  the folder \
                 that this member had in cluster {expected}; or move {} away: the member then starts empty, and says \
                 what is to be done",
                other.path.display(),
                other.formed.cluster,
                other.path.parent().unwrap_or(&other.path).display()
            ))),
        }
    }

    fn refuse(
        &self,
        args: &ClusterArgs,
        field: &str,
        wrong: String,
        right: String,
    ) -> Box<Problem> {
        let (file, field) = (args.config.clone(), Some(field.to_owned()));
        let wrong = format!("{} holds a cluster {wrong}", self.data_path.display());
        Box::new(Problem { file, place: None, field, wrong, right, also: Vec::new() })
    }

    fn other_size(&self, args: &ClusterArgs, members: usize) -> Box<Problem> {
        self.refuse(
            args,
            "data_path",
            format!("of {members}, not of {}", self.addresses.len()),
            format!(
                "rusty-raft cluster {} {members}; or another data_path for a new cluster. A running cluster grows with \
                 `rusty-raft node <config> <index> --join {}` and `etcdctl member add`",
                args.config.display(),
                self.addresses[0]
            ),
        )
    }

    fn other_addresses(&self, args: &ClusterArgs, known: &[String]) -> Box<Problem> {
        let port = known[0].rsplit(':').next().unwrap_or_default();
        self.refuse(
            args,
            "port_range_start",
            format!("at {}, not at {}", known.join(", "), self.addresses.join(", ")),
            format!("port_range_start: {port}; or another data_path for a new cluster"),
        )
    }
}

pub(super) async fn run(args: &ClusterArgs, color: Color) -> Exit {
    match prepare(args, color).await {
        Ok(cluster) => cluster.run().await,
        Err(refusal) => {
            complain(&refusal.text);
            refusal.exit
        }
    }
}

/// A running cluster.
struct Cluster {
    layout: Layout,
    supervisor: Supervisor,
    signals: Signals,
    started: Instant,
}

async fn prepare(args: &ClusterArgs, color: Color) -> Result<Cluster, Refusal> {
    let config = ClusterConfig::read(&args.config, args.num_nodes)?;
    let layout = Layout::new(&config, args.num_nodes);
    layout.check_existing(args)?;
    layout.check_clusters()?;
    logging::init(color);
    for warning in &config.warnings {
        tracing::warn!("{}: {}: {}", warning.place, warning.field, warning.advice);
    }
    for address in &layout.addresses {
        // Only a test: the members bind themselves, and wait as patiently.
        front::bind(address).await.map_err(|error| port_refused(address, &error, args))?;
    }
    let failed = |action: &str, error: &io::Error| Refusal {
        exit: Exit::BadConfiguration,
        text: format!(
            "rusty-raft: {} cannot be used\n\n  field  data_path\n  wrong  cannot {action} {}: {error}\n  right  a folder that this process may create and write",
            args.config.display(),
            layout.data_path.display()
        ),
    };
    fs::create_dir_all(&layout.data_path).map_err(|error| failed("create", &error))?;
    write_config(args, &layout, &config.settings).map_err(|error| failed("write to", &error))?;

    let signals = Signals::listen().map_err(|error| failed("listen for signals for", &error))?;
    let program =
        std::env::current_exe().map_err(|error| failed("find this program for", &error))?;
    let plan = Plan {
        program,
        arguments: (0..args.num_nodes).map(|index| arguments(&layout, index, color)).collect(),
        restart: !args.no_restart,
        color: color.on_stderr(),
    };
    let started = Instant::now();
    let supervisor = Supervisor::start(plan).map_err(|error| failed("print logs for", &error))?;
    Ok(Cluster { layout, supervisor, signals, started })
}

fn arguments(layout: &Layout, index: usize, color: Color) -> Vec<OsString> {
    let color = if color.on_stderr() { "always" } else { "never" };
    vec![
        "--color".into(),
        color.into(),
        "node".into(),
        layout.config_file().into(),
        index.to_string().into(),
        "--stop-with-stdin".into(),
    ]
}

fn port_refused(address: &str, error: &io::Error, args: &ClusterArgs) -> Refusal {
    let in_use = error.kind() == io::ErrorKind::AddrInUse;
    let exit = if in_use { Exit::PortInUse } else { Exit::BadConfiguration };
    Refusal {
        exit,
        text: format!(
            "rusty-raft: cannot listen on {address}\n\n  wrong  {error}\n  right  stop the process that listens there, or set \
             port_range_start in {}\n\nNothing was written.",
            args.config.display()
        ),
    }
}

/// Writes the members' common configuration: whole or not at all, and durable.
fn write_config(args: &ClusterArgs, layout: &Layout, settings: &Settings) -> io::Result<()> {
    let text = node_config(args, layout, settings)?;
    let path = layout.config_file();
    if fs::read_to_string(&path).is_ok_and(|present| present == text) {
        return Ok(());
    }
    let draft = layout.data_path.join(format!("{NODE_CONFIG}.tmp"));
    // For its owner only: it may hold the members' secret.
    let mut options = OpenOptions::new();
    let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&draft)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&draft, &path)?;
    File::open(&layout.data_path)?.sync_all()
}

fn node_config(args: &ClusterArgs, layout: &Layout, settings: &Settings) -> io::Result<String> {
    let state_file = std::path::absolute(&layout.data_path)?.join(STATE_FILE);
    let quoted = |text: &str| ron::to_string(text).map_err(io::Error::other);
    let millis = |duration: Duration| duration.as_secs_f64() * 1000.0;
    let mut addresses = Vec::new();
    for address in &layout.addresses {
        addresses.push(quoted(address)?);
    }
    Ok(format!(
        "// Written by `rusty-raft cluster` from {} at every start: change that file instead.\n\
         // One member without the others: rusty-raft node {} 0\n\
         (\n    \
             persistent_state_file: {},\n    \
             cluster_members: [{}],\n    \
             election_timeout_interval: RangeInclusive(start: {:?}, end: {:?}),\n    \
             heartbeat_interval: {:?},\n    \
             request_timeout: {:?},\n    \
             max_request_bytes: {},\n    \
             watch_progress_interval: {:?},\n    \
             max_learners: {},\n{}{}\
         )\n",
        one_line(&args.config),
        one_line(&layout.config_file()),
        quoted(&utf8(&state_file)?)?,
        addresses.join(", "),
        millis(settings.election_timeout_min),
        millis(settings.election_timeout_max),
        millis(settings.heartbeat_interval),
        millis(settings.request_timeout),
        settings.request_bytes_max,
        millis(settings.watch_progress_interval),
        settings.learners_max,
        settings
            .quota_bytes
            .map(|bytes| format!("    quota_backend_bytes: {bytes},\n"))
            .unwrap_or_default(),
        settings.tuning.lines(quoted)?,
    ))
}

fn one_line(path: &Path) -> String {
    path.display().to_string().replace(char::is_control, "?")
}

fn utf8(path: &Path) -> io::Result<String> {
    let text = path.to_str().map(str::to_owned);
    text.ok_or_else(|| io::Error::other(format!("the path {} is not UTF-8", path.display())))
}

impl Cluster {
    /// Watches over the members until they have all ended.
    async fn run(mut self) -> Exit {
        let members = self.layout.addresses.len();
        let mut pids: Vec<Option<u32>> = vec![None; members];
        let mut codes: Vec<i32> = Vec::new();
        let (mut introduced, mut announced, mut stopping) = (false, false, false);
        let mut leader = std::pin::pin!(first_leader(self.layout.addresses.clone()));
        loop {
            tokio::select! {
                event = self.supervisor.event() => match event {
                    None => break,
                    Some(Event::Started { index, pid }) => {
                        pids[index] = Some(pid);
                        if !introduced && pids.iter().all(Option::is_some) {
                            introduced = true;
                            say(&banner(&self.layout, &pids));
                        }
                    }
                    Some(Event::Ended { code, .. }) => codes.push(code),
                },
                (index, term) = leader.as_mut(), if introduced && !announced => {
                    announced = true;
                    say(&format!(
                        "  leader  n{index} at {} in term {term}, {} ms after the start\n",
                        self.layout.addresses[index],
                        self.started.elapsed().as_millis()
                    ));
                }
                signal = self.signals.next() => {
                    if stopping {
                        self.supervisor.kill();
                    } else {
                        stopping = true;
                        say(&format!("\n{signal}: stopping {members} members"));
                        self.supervisor.stop();
                    }
                }
            }
        }
        self.supervisor.finish().await;
        if stopping {
            return Exit::Success;
        }
        // They all ended by themselves: what the first one says.
        let failed = codes.into_iter().find(|code| *code != 0);
        failed.map_or(Exit::Success, Exit::of_code)
    }
}

fn banner(layout: &Layout, pids: &[Option<u32>]) -> String {
    let width = layout.addresses.iter().map(String::len).max().unwrap_or_default();
    let mut text = format!(
        "rusty-raft {}: a cluster of {}\n\n  member  {:width$}  process  data\n",
        env!("CARGO_PKG_VERSION"),
        layout.addresses.len(),
        "address",
    );
    for (index, (address, pid)) in layout.addresses.iter().zip(pids).enumerate() {
        let member = format!("n{index}");
        let pid = pid.map_or_else(String::new, |pid| pid.to_string());
        let data = layout.data_dir(index);
        text.push_str(&format!("  {member:6}  {address:width$}  {pid:7}  {}\n", data.display()));
    }
    text.push_str(&format!(
        "\n  try     etcdctl --endpoints={} put hello world\n  status  rusty-raft status {}\n  stop    Ctrl-C\n",
        layout.addresses.join(","),
        layout.addresses.join(","),
    ));
    text
}

/// Waits until some member knows a leader; returns the leader's index and term.
async fn first_leader(addresses: Vec<String>) -> (usize, u64) {
    loop {
        let mut asks = JoinSet::new();
        for (index, address) in addresses.iter().cloned().enumerate() {
            asks.spawn(async move { (index, client::leads(&address).await) });
        }
        while let Some(asked) = asks.join_next().await {
            if let Ok((index, Ok(Some(term)))) = asked {
                return (index, term);
            }
        }
        tokio::time::sleep(ASK_INTERVAL).await;
    }
}
