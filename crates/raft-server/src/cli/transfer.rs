//! `import`, `export` and `snapshot restore`: from etcd to here, and back.
//!
//! What is imported becomes the checkpoint with which every member of a new cluster begins. All identities follow from the
//! content, the members' addresses and a token: the members may be made on different machines, from the same file.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::{Args, Subcommand};
use raft::MemberInfo;
use raft::core::StateMachine as _;
use raft::disk::StdDisk;
use raft::error::NodeError;
use raft::log::Survivor;
use raft::node::Seed;
use raft_kv::Store;

use super::client::{Part, Restore, To, fetch};
use super::cluster::Layout;
use super::member::Refusal;
use super::progress::{Bar, refuse};
use super::{ClusterArgs, EtcdArgs, complain, etcd, num_nodes, say};
use crate::config::etcd::EtcdConfig;
use crate::config::{ClusterConfig, NodeConfig};
use crate::db::{Database, DbError, Source, Totals, Wishes, export, import};
use crate::exit::Exit;

/// Begin a cluster with everything that an etcd holds: keys with their history, leases, users and roles.
#[derive(Debug, Args)]
#[command(
    version,
    after_help = "What follows the source is how the member will be started. Examples:
  rusty-raft import backup.db node config.ron 0
  rusty-raft import backup.db cluster cluster_config.ron 3
  rusty-raft import /var/lib/etcd etcd --name n0 --data-dir n0.etcd
  rusty-raft import http://10.0.0.9:2379 node config.ron 0

Every member of a cluster begins with the same file: import it on each machine, then start them. Revisions stay what they
are; the cluster gets an id of its own. Nothing that is there already is written over."
)]
pub(super) struct ImportArgs {
    /// A file of `etcdctl snapshot save`, the --data-dir of an etcd that is stopped, or the URL of one that runs.
    source: PathBuf,
    #[command(flatten)]
    how: How,
    /// Tells this cluster from others that begin with the same file.
    #[arg(long, value_name = "TEXT", default_value = "", hide_default_value = true)]
    token: String,
    #[command(flatten)]
    to: To,
    #[command(subcommand)]
    start: Start,
}

/// What is looked at, and what is changed on the way.
#[derive(Clone, Copy, Debug, Default, Args)]
pub(super) struct How {
    /// Take a file whose checksum is missing or does not hold.
    #[arg(long)]
    skip_hash_check: bool,
    /// Add so much to the newest revision, so that nobody takes what they remember for newer; needs --mark-compacted.
    #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true, value_parser = clap::value_parser!(i64).range(0..1 << 60))]
    bump_revision: i64,
    /// Compact at the newest revision, so that watchers that remember others begin again; needs --bump-revision.
    #[arg(long)]
    mark_compacted: bool,
}

/// How members are started.
#[derive(Debug, Subcommand)]
enum Start {
    /// One member of a configuration in RON.
    Node {
        /// The configuration of all members.
        config: PathBuf,
        /// Which of its cluster_members this is, counted from 0.
        index: usize,
    },
    /// All members of a cluster on this machine.
    Cluster {
        /// The configuration.
        config: PathBuf,
        /// How many members, 1 to 9.
        #[arg(value_parser = num_nodes)]
        num_nodes: usize,
    },
    Etcd(EtcdArgs),
}

/// Write everything that a member holds to a file from which etcd starts.
#[derive(Debug, Args)]
#[command(
    version,
    after_help = "Examples:
  rusty-raft export http://127.0.0.1:2379 backup.db
  rusty-raft export raft_data/node_0_data.raft backup.db
  etcdctl snapshot restore backup.db --data-dir old.etcd

The folder of a stopped member holds everything that its log has: alone in its cluster that is all that was committed; of
several members, the newest writes may be unknown to the others."
)]
pub(super) struct ExportArgs {
    /// The URL of a member that runs, or the state folder of one that is stopped.
    source: PathBuf,
    /// The file; it appears once it is complete and durable.
    file: PathBuf,
    #[command(flatten)]
    to: To,
}

/// Which folders are written.
struct Plan {
    members: Vec<MemberInfo>,
    places: Vec<import::Place>,
    /// How the first of them is started.
    start: String,
}

impl From<DbError> for Refusal {
    fn from(error: DbError) -> Self {
        Self {
            exit: Exit::DataRefused,
            text: format!("rusty-raft: {error}\n\nNothing was written."),
        }
    }
}

/// The source is a URL.
pub(super) fn url(source: &Path) -> Option<&str> {
    source.to_str().filter(|text| text.starts_with("http://") || text.starts_with("https://"))
}

fn done(outcome: Result<(), Refusal>) -> Exit {
    match outcome {
        Ok(()) => Exit::Success,
        Err(refusal) => {
            if !refusal.text.is_empty() {
                complain(&refusal.text);
            }
            refusal.exit
        }
    }
}

fn refused(exit: Exit, wrong: &str, right: &str) -> Refusal {
    Refusal {
        exit,
        text: format!(
            "rusty-raft: not done\n\n  wrong  {wrong}\n  right  {right}\n\nNothing was written."
        ),
    }
}

pub(super) async fn import(args: &ImportArgs) -> Exit {
    done(import_from(args).await)
}

async fn import_from(args: &ImportArgs) -> Result<(), Refusal> {
    let (plan, of_flags) = args.start.plan()?;
    let token = if args.token.is_empty() { &of_flags } else { &args.token };
    let Some(endpoint) = url(&args.source) else {
        return carry_out(&args.source, args.how, token, &plan);
    };
    if plan.members.len() > plan.places.len() {
        return Err(refused(
            Exit::BadConfiguration,
            "the other members would begin with what this etcd holds at another moment",
            "a file for all of them: rusty-raft snapshot save backup.db --endpoints …, then import backup.db on each machine",
        ));
    }
    let near = plan.places.first().map_or_else(PathBuf::new, |place| place.folder.clone());
    let (_held, file) = fetched(&args.to, endpoint, &near).await?;
    carry_out(&file, args.how, token, &plan)
}

/// A file that is removed when this is dropped.
pub(super) struct Temporary(PathBuf);

impl Drop for Temporary {
    fn drop(&mut self) {
        // Gone already when nothing was received.
        std::fs::remove_file(&self.0).ok();
    }
}

/// What a running member holds, in a file beside `near`.
pub(super) async fn fetched(
    to: &To,
    endpoint: &str,
    near: &Path,
) -> Result<(Temporary, PathBuf), Refusal> {
    let mut file = OsString::from(near.components().collect::<PathBuf>());
    file.push(format!(".received-{}", std::process::id()));
    let file = PathBuf::from(file);
    if let Some(parent) = file.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        std::fs::create_dir_all(parent).map_err(|error| {
            let wrong = format!("{} cannot be created: {error}", parent.display());
            refused(Exit::BadConfiguration, &wrong, "a folder that this process may write")
        })?;
    }
    let held = Temporary(file.clone());
    fetch(to, endpoint, &file).await.map_err(|(exit, words)| Refusal {
        exit,
        text: format!("rusty-raft: {endpoint} gives no snapshot: {words}\n\nNothing was written."),
    })?;
    Ok((held, file))
}

/// `snapshot restore`, which is an import into the folder of a member that is started by etcd's flags.
pub(super) fn restore(restore: &Restore) -> Exit {
    // Certificates are a matter of the start: only addresses are of interest here.
    let plain = |text: &str| text.replace("https://", "http://");
    let mut words = vec![
        format!("--name={}", restore.name),
        format!("--initial-cluster={}", plain(&restore.initial_cluster)),
        format!("--initial-cluster-token={}", restore.initial_cluster_token),
        format!("--initial-advertise-peer-urls={}", plain(&restore.initial_advertise_peer_urls)),
    ];
    if let Some(folder) = &restore.data_dir {
        words.push(format!("--data-dir={}", folder.display()));
    }
    let plan = of_etcd(&words, std::iter::empty());
    done(plan.and_then(|(plan, token)| carry_out(&restore.file, restore.how, &token, &plan)))
}

/// Reads the database once and writes the folders, each of them whole or not at all.
fn carry_out(source: &Path, how: How, token: &str, plan: &Plan) -> Result<(), Refusal> {
    if (how.bump_revision > 0) != how.mark_compacted {
        return Err(refused(
            Exit::BadConfiguration,
            "--bump-revision and --mark-compacted are of no use without each other",
            "both: --bump-revision 1000000000 --mark-compacted",
        ));
    }
    for place in &plan.places {
        let is_empty = std::fs::read_dir(&place.folder).map_or(true, |mut it| it.next().is_none());
        if place.folder.exists() && !is_empty {
            let wrong = format!("{} is not empty", place.folder.display());
            let right = "another folder; or move this one away, if nobody needs what is in it";
            return Err(refused(Exit::DataRefused, &wrong, right));
        }
    }
    let database = {
        let mut bar = Bar::new("reading");
        open(source, how.skip_hash_check, Wishes { bump_revision: how.bump_revision }, &mut bar)?
    };
    let totals = database.totals();
    say(&format!("read     {}\n         {}", source.display(), shown(&totals)));
    if let Some(revision) = database.whole_from() {
        say(&format!(
            "         history before revision {revision} has holes: it counts as compacted there"
        ));
    }
    if database.alarms() > 0 {
        say(
            "         alarms are raised: `rusty-raft alarm list` shows them, `alarm disarm` takes them back",
        );
    }
    let addresses: Vec<String> =
        plan.members.iter().map(|member| member.peer_address.clone()).collect();
    let seed = Seed {
        number: import::number(&database, &addresses, token),
        members: plan.members.clone(),
    };
    for place in &plan.places {
        let mut bar = Bar::new("writing");
        let member = import::import(&database, &seed, place, &mut |at, of| bar.at(at, of))
            .map_err(|error| Refusal {
                exit: Exit::of_node(&error),
                text: format!("rusty-raft: {} was not written: {error}", place.folder.display()),
            })?;
        drop(bar);
        let address = addresses.get(place.index).map_or("", String::as_str);
        say(&format!("wrote    {}\n         member {member} at {address}", place.folder.display()));
    }
    say(&format!(
        "cluster  {} of {}; read back and equal\nnext     {}",
        seed.cluster(),
        if addresses.len() == 1 {
            "1 member".to_owned()
        } else {
            format!("{} members", addresses.len())
        },
        plan.start
    ));
    Ok(())
}

/// Opens a database and looks through it.
pub(super) fn open(
    source: &Path,
    skip_hash_check: bool,
    wishes: Wishes,
    bar: &mut Bar,
) -> Result<Database, DbError> {
    let opened = Source::open(source, skip_hash_check, &mut |at, of| bar.at(at / 2, of))?;
    Database::read(opened, wishes, &mut |at, of| bar.at(of / 2 + at / 2, of))
}

/// In words.
pub(super) fn shown(totals: &Totals) -> String {
    let Totals { revision, compact_revision, keys, hash, leases, users, roles, auth_enabled } =
        totals;
    let compacted = if *compact_revision > 0 {
        format!("compacted at {compact_revision}")
    } else {
        "never compacted".to_owned()
    };
    let auth = if *auth_enabled { "on" } else { "off" };
    format!(
        "revision {revision}, {compacted}, {keys} keys, hash {hash:08x}, {leases} leases, {users} users, {roles} roles, \
         authentication {auth}"
    )
}

fn info(name: String, peer_address: String) -> MemberInfo {
    MemberInfo {
        name,
        peer_address,
        // The member says where clients reach it when it starts.
        client_addresses: Vec::new(),
        feature_level: Store::FEATURE_LEVEL,
        known_as: None,
    }
}

impl Start {
    /// Which folders, and the token of the cluster where the words name one.
    fn plan(&self) -> Result<(Plan, String), Refusal> {
        let member =
            |(index, address): (usize, &str)| info(format!("n{index}"), address.to_owned());
        match self {
            Self::Node { config: file, index } => {
                let config = NodeConfig::read(file)?;
                config.member(*index)?;
                let members = config.members.iter().map(|member| member.peer.as_str());
                let plan = Plan {
                    members: members.enumerate().map(member).collect(),
                    places: vec![import::Place { index: *index, folder: config.data_dir(*index) }],
                    start: format!("rusty-raft node {} {index}", file.display()),
                };
                Ok((plan, String::new()))
            }
            Self::Cluster { config: file, num_nodes } => {
                let config = ClusterConfig::read(file, *num_nodes)?;
                let layout = Layout::new(&config, *num_nodes);
                let (config, num_nodes) = (file.clone(), *num_nodes);
                layout.check_existing(&ClusterArgs { config, num_nodes, no_restart: false })?;
                let members = layout.addresses.iter().map(String::as_str);
                let place = |index| import::Place { index, folder: layout.data_dir(index) };
                let plan = Plan {
                    members: members.enumerate().map(member).collect(),
                    places: (0..num_nodes).map(place).collect(),
                    start: format!("rusty-raft cluster {} {num_nodes}", file.display()),
                };
                Ok((plan, String::new()))
            }
            Self::Etcd(args) => {
                let words = etcd::words(args.flags.iter().cloned());
                of_etcd(&words, etcd::variables())
            }
        }
    }
}

/// The member that etcd's flags describe, and the token of its cluster.
fn of_etcd(
    words: &[String],
    variables: impl Iterator<Item = (String, String)>,
) -> Result<(Plan, String), Refusal> {
    let config = EtcdConfig::read(words, variables, |_| false)?;
    if config.existing {
        return Err(refused(
            Exit::BadConfiguration,
            "--initial-cluster-state is existing: a member that joins a cluster gets everything from it",
            "--initial-cluster-state new",
        ));
    }
    let own = &config.advertise_peer.address;
    let index = config.members.iter().position(|address| address == own).unwrap_or_default();
    // Names are known of the own member only; all members must begin with the same.
    let members = config.members.iter().map(|address| info(address.clone(), address.clone()));
    let plan = Plan {
        members: members.collect(),
        places: vec![import::Place { index, folder: etcd::member_folder(&config.data_dir) }],
        start: format!("rusty-raft etcd --data-dir {} …", config.data_dir.display()),
    };
    Ok((plan, config.token))
}

pub(super) async fn export(args: &ExportArgs) -> Exit {
    done(export_to(args).await)
}

async fn export_to(args: &ExportArgs) -> Result<(), Refusal> {
    if let Some(endpoint) = url(&args.source) {
        fetch(&args.to, endpoint, &args.file).await.map_err(|(exit, words)| Refusal {
            exit,
            text: format!("rusty-raft: {endpoint} gives no snapshot: {words}"),
        })?;
        say(&format!("wrote    {}", args.file.display()));
        return Ok(());
    }
    let stopped = stopped(&args.source)?;
    let unwritable = |error: io::Error| {
        let wrong = format!("{} cannot be written: {error}", args.file.display());
        refused(Exit::Failure, &wrong, "a file in a folder with enough space")
    };
    let mut bar = Bar::new("writing");
    let part = Part::create(&args.file).map_err(unwritable)?;
    let out = io::BufWriter::with_capacity(1 << 20, &part.file);
    let written = export::write(&stopped.contents, out, &mut |at, of| bar.at(at, of));
    written.and_then(|out| out.into_inner().map_err(io::Error::from)).map_err(unwritable)?;
    part.complete(&args.file).map_err(unwritable)?;
    say(&format!("wrote    {}\n         {}", args.file.display(), shown(&stopped.totals)));
    Ok(())
}

/// What the folder of a stopped member holds.
pub(super) fn stopped(folder: &Path) -> Result<export::Stopped, Refusal> {
    // As `etcd --data-dir` names it.
    let inner = etcd::member_folder(folder);
    let folder = if inner.join("identity").is_file() { &inner } else { folder };
    let unreadable = |error: &NodeError| Refusal {
        exit: Exit::of_node(error),
        text: format!("rusty-raft: {} cannot be replayed: {error}", folder.display()),
    };
    let survivor = Survivor::open(StdDisk, folder)
        .map_err(|error| Refusal { exit: refuse(&error), text: String::new() })?;
    export::open(&survivor).map_err(|error| unreadable(&error))
}
