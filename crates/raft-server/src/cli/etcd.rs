//! `rusty-raft etcd …`, or the program called as `etcd`: a member by etcd's flags, variables and file.

use std::env;
use std::ffi::OsString;
use std::io;
use std::os::linux::net::SocketAddrExt as _;
use std::os::unix::net::{SocketAddr, UnixDatagram};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use raft::disk::StdDisk;
use raft::error::NodeError;
use raft::log::{Survivor, inspect};
use raft::node::recover::recover;

use super::member::{Plan, PlannedTls, Refusal};
use super::{complain, say};
use crate::config::etcd::{self, EtcdConfig, Request, TlsPlan, Url};
use crate::etcd::ETCD_VERSION;
use crate::exit::Exit;
use crate::front::Doors;
use crate::logging::{self, Color};
use crate::tls::{self, Role, Tls, TlsError};

/// What `etcd --help` says before the flags.
const USAGE: &str = "\
Usage:
  etcd [flags]          run a member (rusty-raft in etcd's place)
  etcd --version        the version of etcd whose interface this is

Flags are given as -flag or --flag, with the value after = or as the next word. A variable ETCD_FLAG_NAME does the same,
and so does a line `flag-name: value` in the file of --config-file. The file yields to variables, variables to flags;
`rusty-raft config show etcd [flags]` says where each value comes from.

";

/// The words of the command line as text.
pub(super) fn words(words: impl IntoIterator<Item = OsString>) -> Vec<String> {
    words.into_iter().map(|word| word.to_string_lossy().into_owned()).collect()
}

/// Everything in the environment that is text.
pub(super) fn variables() -> impl Iterator<Item = (String, String)> {
    env::vars_os().filter_map(|(name, value)| {
        Some((name.into_string().ok()?, value.to_string_lossy().into_owned()))
    })
}

/// Does what etcd would do for these words.
pub(super) async fn run(words: &[String], color: Color) -> Exit {
    let started = match etcd::request(words) {
        Ok(Request::Serve) => serve(words, color).await,
        Ok(Request::Version) => {
            say(&version());
            return Exit::Success;
        }
        Ok(Request::Help) => {
            say(&format!("{USAGE}{}", etcd::help().trim_end()));
            return Exit::Success;
        }
        Err(problem) => Err(problem.into()),
    };
    match started {
        Ok(exit) => exit,
        Err(refusal) => {
            complain(&refusal.text);
            refusal.exit
        }
    }
}

/// In the form that scripts take apart.
fn version() -> String {
    format!(
        "etcd Version: {ETCD_VERSION}\nGit SHA: rusty-raft-{}\nGo Version: none, this is Rust\nGo OS/Arch: {}/{}",
        env!("CARGO_PKG_VERSION"),
        env::consts::OS,
        match env::consts::ARCH {
            "x86_64" => "amd64",
            "aarch64" => "arm64",
            other => other,
        }
    )
}

/// Where the state lives, in the folder of `--data-dir`.
pub(super) fn member_folder(data_dir: &Path) -> PathBuf {
    data_dir.join("member")
}

/// Whether the member of this `--data-dir` belongs to a cluster. What cannot be read is refused when it is opened.
pub(super) fn is_formed(data_dir: &Path) -> bool {
    matches!(inspect(&StdDisk, &member_folder(data_dir)), Ok(Some(_)))
}

async fn serve(words: &[String], color: Color) -> Result<Exit, Refusal> {
    let config = EtcdConfig::read(words, variables(), is_formed)?;
    let data_dir = member_folder(&config.data_dir);
    check_data(&config, &data_dir)?;
    logging::init_as_etcd(&config.log, color).map_err(|(path, error)| Refusal {
        exit: Exit::BadConfiguration,
        text: format!(
            "rusty-raft: the log cannot be written to {}: {error}\n\nNothing was written.",
            path.display()
        ),
    })?;
    for warning in &config.warnings {
        tracing::warn!("{warning}");
    }
    if config.force_new_cluster && config.formed {
        force_new_cluster(&data_dir)?;
    }
    let refuse = |error: TlsError| Refusal {
        exit: Exit::BadConfiguration,
        text: format!("rusty-raft: TLS cannot begin\n\n  {error}"),
    };
    let load = |plan: Option<&TlsPlan>, role: Role| {
        plan.map(|plan| load(plan, role, &config.data_dir)).transpose().map_err(refuse)
    };
    let tls = PlannedTls {
        clients: load(config.client_tls.as_ref(), Role::Clients)?,
        peers: load(config.peer_tls.as_ref(), Role::Peers)?,
        names_users: config.certificates_name_users,
    };
    tls.warn();
    let label = format!("etcd member {}", config.name);
    let clients: Vec<String> = config.advertise_clients.iter().map(Url::to_string).collect();
    let (peers, join) = match (config.existing, config.members) {
        // It is formed, or `check_data` would have refused it: nothing depends on what is listed.
        (true, others) if others.is_empty() => {
            (vec![config.advertise_peer.address.clone()], Vec::new())
        }
        (true, others) => (Vec::new(), others),
        (false, all) => (all, Vec::new()),
    };
    let plan = Plan {
        label,
        name: config.name.clone(),
        data_dir,
        peer: config.advertise_peer.address,
        clients: config.advertise_clients.iter().map(advertised).collect(),
        listen: listen(&config.listen_peers, &config.listen_clients),
        listen_metrics: config.listen_metrics.iter().map(for_clients).collect(),
        peers,
        // In etcd what begins with `initial-` is ignored once there is a cluster.
        peers_form_only: true,
        join,
        token: config.token,
        settings: config.settings,
        txn_ops_max: config.txn_ops_max,
        streams_max: config.streams_max,
        compaction: config.compaction,
        tls,
    };
    let mut member = plan.start().await?;
    member.when_ready(move || {
        // What supervisors and tests wait for, of several versions of etcd.
        tracing::info!(
            "local-member-name" = config.name,
            "client-urls" = clients.join(","),
            "published local member to cluster through raft"
        );
        tracing::info!("cluster-version" = ETCD_VERSION, "enabled capabilities for version");
        tracing::info!("ready to serve client requests");
        notify_ready();
    });
    let exit = member.run(false).await;
    // As etcd, which its supervisors count on: who is removed has done what was asked for.
    Ok(if exit == Exit::Removed { Exit::Success } else { exit })
}

/// Makes a cluster of its own of what this member holds, as `rusty-raft recover` does, but without asking; one that is
/// alone stays what it is. Once only: the old folder is kept, and while it is there, this is refused.
fn force_new_cluster(data_dir: &Path) -> Result<(), Refusal> {
    let refuse = |error: NodeError| Refusal {
        exit: Exit::of_node(&error),
        text: format!("rusty-raft: --force-new-cluster: nothing was changed\n\n  {error}"),
    };
    let survivor = Survivor::open(StdDisk, data_dir).map_err(|it| refuse(NodeError::Data(it)))?;
    if survivor.membership().members().count() == 1 {
        return Ok(());
    }
    let done = recover(&survivor).map_err(refuse)?;
    tracing::warn!(
        "--force-new-cluster: everything up to {} is now cluster {} of this member alone; what the others had beyond \
         that is given up. The old folder is {}; leave the flag out from now on",
        survivor.last(),
        done.cluster,
        done.kept.display()
    );
    Ok(())
}

/// Refuses what etcd has written, and to form a cluster anew where one is to be joined.
fn check_data(config: &EtcdConfig, data_dir: &Path) -> Result<(), Refusal> {
    let refuse = |wrong: String, right: String| {
        let folder = config.data_dir.display();
        Err(Refusal {
            exit: Exit::DataRefused,
            text: format!(
                "rusty-raft: the data folder {folder} cannot be used\n\n  wrong  {wrong}\n  right  {right}\n\nNothing was written."
            ),
        })
    };
    if data_dir.join("snap").is_dir() || data_dir.join("wal").is_dir() {
        return refuse(
            "etcd itself has written it".to_owned(),
            "an empty folder for this member, or another one: --data-dir".to_owned(),
        );
    }
    if config.existing && config.members.is_empty() && !config.formed {
        return refuse(
            "it belongs to no cluster, --initial-cluster-state says that the cluster exists, and --initial-cluster lists no other member"
                .to_owned(),
            "all members in --initial-cluster, or --initial-cluster-state new".to_owned(),
        );
    }
    let own = &config.advertise_peer.address;
    let alone = !config.formed && config.members.iter().all(|address| address == own);
    let set_aside = raft::node::set_aside_folders(&config.data_dir.join("member"));
    if let Some(damaged) = set_aside.last().filter(|_| alone) {
        // What is missing is with the others: a cluster of its own would hide that.
        let wrong = format!(
            "its member was set aside as {}, and --initial-cluster lists no other member to fetch everything from",
            damaged.display()
        );
        return refuse(
            wrong,
            "all members in --initial-cluster; or move that folder away".to_owned(),
        );
    }
    Ok(())
}

/// Reads the certificates, or makes them, where etcd would.
fn load(plan: &TlsPlan, role: Role, data_dir: &Path) -> Result<Arc<Tls>, TlsError> {
    let files = match plan {
        TlsPlan::Files(files) => files.clone(),
        TlsPlan::Auto { hosts, years } => {
            let folder = match role {
                Role::Clients => "fixtures/client",
                Role::Peers => "fixtures/peer",
            };
            tls::self_signed(&data_dir.join(folder), hosts, *years)?
        }
    };
    Tls::load(files, role)
}

/// As clients are told: an address, or a URL when it is not the usual one.
fn advertised(url: &Url) -> String {
    if url.tls { url.to_string() } else { url.address.clone() }
}

fn for_clients(url: &Url) -> (String, Doors) {
    (url.address.clone(), Doors { peers: false, clients: true, secured: url.tls })
}

/// Where to listen, and for whom: the same address may serve both.
fn listen(peers: &[Url], clients: &[Url]) -> Vec<(String, Doors)> {
    let of_peers = peers.iter().map(|url| {
        let client = clients.iter().find(|client| client.address == url.address);
        let secured = client.is_some_and(|client| client.tls);
        (url.address.clone(), Doors { peers: true, clients: client.is_some(), secured })
    });
    let is_new = |url: &&Url| !peers.iter().any(|peer| peer.address == url.address);
    of_peers.chain(clients.iter().filter(is_new).map(for_clients)).collect()
}

/// Tells systemd, if it waits for that, that this member serves.
fn notify_ready() {
    let Some(path) = env::var_os("NOTIFY_SOCKET") else { return };
    if let Err(error) = send_ready(&path.to_string_lossy()) {
        tracing::warn!("systemd cannot be told that this member is ready: {error}");
    }
}

fn send_ready(socket: &str) -> io::Result<()> {
    let address = match socket.strip_prefix('@') {
        Some(name) => SocketAddr::from_abstract_name(name)?,
        None => SocketAddr::from_pathname(socket)?,
    };
    UnixDatagram::unbound()?.send_to_addr(b"READY=1\n", &address).map(drop)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_address_may_serve_peers_and_clients() {
        let url = |text: &str| Url::parse(text).unwrap();
        let (a, b, c) = (url("http://a:1"), url("http://b:1"), url("https://c:1"));
        let doors = |peers, clients, secured| Doors { peers, clients, secured };
        assert_eq!(
            listen(&[a, b.clone()], &[b, c]),
            [
                ("a:1".to_owned(), doors(true, false, false)),
                ("b:1".to_owned(), doors(true, true, false)),
                ("c:1".to_owned(), doors(false, true, true)),
            ]
        );
    }

    #[test]
    fn systemd_hears_that_the_member_is_ready() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("notify");
        let socket = UnixDatagram::bind(&path).unwrap();
        send_ready(path.to_str().unwrap()).unwrap();
        let mut heard = [0u8; 32];
        let length = socket.recv(&mut heard).unwrap();
        assert_eq!(&heard[..length], b"READY=1\n");
        assert!(send_ready("/no/such/socket").is_err());
    }
}
