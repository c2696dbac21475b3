//! One member, however it was configured: from its plan to its end.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use raft::Node;
use raft::error::NodeError;
use raft::meters::Meters;
use raft::node::Phase;
use raft_kv::Store;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::signals::Signals;
use crate::config::{self, Settings};
use crate::etcd::{self, Compaction, Etcd, StoreView, Tokens};
use crate::exit::Exit;
use crate::front::{self, Doors, Front, Security};
use crate::tls::{self, Tls};

/// How long clients' requests under way may take to finish when this member stops.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(300);
/// How long handing leadership over may take.
const HANDOVER_TIMEOUT: Duration = Duration::from_millis(700);
/// How long the node may take to stop, hand-over included. With the drain below the supervisor's patience.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(1300);
/// Bytes that an encoded command may have beyond the client's request: its kind and lengths.
const COMMAND_ROOM_BYTES: usize = 64 << 10;

/// Why a member does not start, for people, and for whoever started it.
pub(super) struct Refusal {
    pub(super) exit: Exit,
    pub(super) text: String,
}

impl From<Box<config::Problem>> for Refusal {
    fn from(problem: Box<config::Problem>) -> Self {
        Self { exit: Exit::BadConfiguration, text: problem.to_string() }
    }
}

/// What a member is told, wherever it was written.
pub(super) struct Plan {
    /// What people call it in messages.
    pub(super) label: String,
    /// Its name in the cluster.
    pub(super) name: String,
    /// Holds its state.
    pub(super) data_dir: PathBuf,
    /// Where the other members dial it.
    pub(super) peer: String,
    /// Where clients reach it, when that is not `peer`.
    pub(super) clients: Vec<String>,
    /// Where it listens, and for whom.
    pub(super) listen: Vec<(String, Doors)>,
    /// Where only metrics and health are served.
    pub(super) listen_metrics: Vec<(String, Doors)>,
    /// All members of a cluster that is to form, this one among them.
    pub(super) peers: Vec<String>,
    /// See [`raft::node::Settings::peers_form_only`].
    pub(super) peers_form_only: bool,
    /// Members of a cluster that exists, for one that joins.
    pub(super) join: Vec<String>,
    /// See [`raft::node::Settings::formation_token`].
    pub(super) token: String,
    pub(super) settings: Settings,
    pub(super) txn_ops_max: usize,
    /// Requests in flight of one client; `None`: as many as there may be anyway.
    pub(super) streams_max: Option<u32>,
    pub(super) compaction: Option<Compaction>,
    pub(super) tls: PlannedTls,
}

/// Where TLS is spoken.
pub(super) struct PlannedTls {
    /// With clients, at the doors that are secured.
    pub(super) clients: Option<Arc<Tls>>,
    /// Among members.
    pub(super) peers: Option<Arc<Tls>>,
    /// Who a client is may be said by its certificate.
    pub(super) names_users: bool,
}

impl PlannedTls {
    /// Says what should be looked at; once logs go somewhere.
    pub(super) fn warn(&self) {
        for tls in self.clients.iter().chain(&self.peers) {
            tls.warn_of_expiry();
        }
    }
}

impl Plan {
    /// Starts the member. Everything on paper has been checked: first the ports, then the data, so that whoever is
    /// refused has changed nothing.
    pub(super) async fn start(self) -> Result<Member, Refusal> {
        let tokens = Tokens::load(&self.settings.tuning.tokens()).map_err(|wrong| Refusal {
            exit: Exit::BadConfiguration,
            text: format!("rusty-raft: auth_token: {wrong}\n\nNothing was written."),
        })?;
        let mut signals = Signals::listen().map_err(|error| Refusal {
            exit: Exit::RestartMe,
            text: format!("rusty-raft: cannot listen for signals: {error}"),
        })?;
        crate::limits::raise_open_files();

        let meters = Arc::<Meters>::default();
        let mut store = Store::new();
        let view = StoreView::of(&mut store);
        let starting = async {
            let doors = listen(&self.listen).await?;
            let metrics = listen(&self.listen_metrics).await?;
            let node = self.start_node(store, &meters).await?;
            Ok::<_, Refusal>((doors, metrics, node))
        };
        let (doors, metrics_doors, node) = tokio::select! {
            started = starting => started?,
            // Recovery may take a while, and has promised nothing yet.
            signal = signals.next() => {
                return Err(Refusal {
                    exit: Exit::Success,
                    text: format!("rusty-raft: {} stopped before it had started: {signal}", self.label),
                });
            }
        };

        let (stop, stopping) = watch::channel(false);
        let quota_bytes = self.settings.quota_bytes.unwrap_or_else(crate::limits::quota_bytes);
        tracing::info!("the store may take {quota_bytes} bytes (quota_backend_bytes)");
        let settings = etcd::Settings {
            request_bytes_max: self.settings.request_bytes_max,
            election_timeout_min: self.settings.election_timeout_min,
            election_timeout_max: self.settings.election_timeout_max,
            watch_progress_interval: self.settings.watch_progress_interval,
            quota_bytes,
            learners_max: self.settings.learners_max,
            txn_ops_max: self.txn_ops_max,
            streams_max: self.streams_max,
            compaction: self.compaction,
            peers_secured: self.tls.peers.is_some(),
            certificates_name_users: self.tls.names_users,
        };
        let (etcd, mut tasks) =
            Etcd::start(node.clone(), view, (settings, tokens, meters), stopping.clone());
        let certificates: Vec<Arc<Tls>> =
            self.tls.clients.iter().chain(&self.tls.peers).map(Arc::clone).collect();
        if !certificates.is_empty() {
            etcd.metrics().show_certificates(&certificates);
            let mut stop = stopping.clone();
            tasks.spawn(async move {
                tokio::select! {
                    () = tls::watch(certificates) => {}
                    // A sender that is gone means the same.
                    _ = stop.wait_for(|stop| *stop) => {}
                }
            });
        }
        let security =
            Security { clients: self.tls.clients.clone(), peers: self.tls.peers.is_some() };
        let peers = node.clone();
        let accept = move |socket| peers.accept(socket);
        let front = Front::new(
            (etcd.router(), etcd.metrics()),
            accept.clone(),
            stopping.clone(),
            security.clone(),
            self.streams_max,
        );
        let health =
            Front::new((etcd.health_router(), etcd.metrics()), accept, stopping, security, None);
        let mut fronts = JoinSet::new();
        let mut listeners = Vec::new();
        let doors = doors.into_iter().map(|(listener, doors)| (front.clone(), listener, doors));
        let metrics_doors =
            metrics_doors.into_iter().map(|(listener, doors)| (health.clone(), listener, doors));
        for (front, listener, doors) in doors.chain(metrics_doors) {
            let listener = Arc::new(listener);
            listeners.push(Arc::clone(&listener));
            fronts.spawn(front.run(listener, doors));
        }
        let status = node.status();
        tracing::info!(
            "{} (id {}) serves clients at {} and keeps its state in {}",
            self.label,
            status.node.member,
            if self.clients.is_empty() { self.peer.clone() } else { self.clients.join(", ") },
            self.data_dir.display()
        );
        Ok(Member { node, fronts, tasks, listeners, stop, signals })
    }

    async fn start_node(&self, store: Store, meters: &Arc<Meters>) -> Result<Node<Store>, Refusal> {
        let settings = &self.settings;
        let mut builder = Node::builder(store)
            .data_dir(&self.data_dir)
            .name(&self.name)
            .address(&self.peer)
            .election_timeout(settings.election_timeout_min, settings.election_timeout_max)
            .heartbeat_interval(settings.heartbeat_interval)
            .external_listener(true)
            .client_addresses(self.clients.iter().cloned())
            .settings(|node| {
                node.request_timeout = Some(settings.request_timeout);
                node.command_bytes_max =
                    settings.request_bytes_max.saturating_add(COMMAND_ROOM_BYTES);
                node.handover_timeout = HANDOVER_TIMEOUT;
                node.formation_token.clone_from(&self.token);
                node.peers_form_only = self.peers_form_only;
                node.security =
                    self.tls.peers.clone().map(|tls| tls as Arc<dyn raft::transport::Security>);
                settings.tuning.apply(node);
                node.meters = Arc::clone(meters);
            });
        builder = if self.join.is_empty() {
            builder.peers(self.peers.iter().cloned())
        } else {
            builder.join(self.join.iter().cloned())
        };
        builder.start().await.map_err(|error| {
            if matches!(error, NodeError::SetAside(_)) {
                tracing::error!("{}: {error}", self.label);
                begin_anew();
            }
            Refusal {
                exit: Exit::of_node(&error),
                text: format!("rusty-raft: {} cannot start\n\n  {error}", self.label),
            }
        })
    }
}

/// Listens at addresses.
async fn listen(wanted: &[(String, Doors)]) -> Result<Vec<(TcpListener, Doors)>, Refusal> {
    let mut listeners = Vec::new();
    for (address, doors) in wanted {
        let bound = front::bind(address).await.map_err(|error| cannot_listen(address, &error))?;
        if address.ends_with(":0") {
            for at in bound.iter().filter_map(|listener| listener.local_addr().ok()) {
                tracing::info!("listens at {at}, which was free");
            }
        }
        listeners.extend(bound.into_iter().map(|listener| (listener, *doors)));
    }
    Ok(listeners)
}

/// A running member.
pub(super) struct Member {
    node: Node<Store>,
    fronts: JoinSet<()>,
    /// What the services run beside their calls.
    tasks: JoinSet<()>,
    /// Held to the end: while this process lives, its port says so.
    listeners: Vec<Arc<TcpListener>>,
    stop: watch::Sender<bool>,
    signals: Signals,
}

/// The message for an address that cannot be listened on.
fn cannot_listen(address: &str, error: &io::Error) -> Refusal {
    let (exit, wrong, right) = if error.kind() == io::ErrorKind::AddrInUse {
        let wrong = "another process listens there already".to_owned();
        (Exit::PortInUse, wrong, "stop that process, or give this member another address")
    } else if error.kind() == io::ErrorKind::AddrNotAvailable {
        let wrong = "the address does not belong to this machine".to_owned();
        (Exit::BadConfiguration, wrong, "an address of this machine; is it the right member's?")
    } else {
        (Exit::BadConfiguration, error.to_string(), "an address that this process may use")
    };
    Refusal {
        exit,
        text: format!(
            "rusty-raft: cannot listen on {address}\n\n  wrong  {wrong}\n  right  {right}\n\nNothing was written."
        ),
    }
}

impl Member {
    /// Calls `ready` once this member takes part in a cluster that has a leader.
    pub(super) fn when_ready(&mut self, ready: impl FnOnce() + Send + 'static) {
        let mut statuses = self.node.watch_status();
        let mut stop = self.stop.subscribe();
        self.tasks.spawn(async move {
            let takes_part =
                statuses.wait_for(|it| it.leader.is_some() && matches!(it.phase, Phase::Active));
            tokio::select! {
                found = takes_part => if found.is_ok() { ready() },
                // A sender that is gone means the same.
                _ = stop.wait_for(|stop| *stop) => {}
            }
        });
    }

    /// Serves until a signal, the end of standard input (when `stop_with_stdin`) or the end of the node.
    pub(super) async fn run(mut self, stop_with_stdin: bool) -> Exit {
        tokio::select! {
            ended = self.node.stopped() => return ended_by_itself(ended),
            signal = self.signals.next() => tracing::info!("stopping: {signal}"),
            () = stdin_closed(), if stop_with_stdin => tracing::info!("stopping: the supervisor says so"),
        }
        self.stop.send_replace(true);
        tokio::select! {
            () = async { drain(&mut self.fronts).await; drain(&mut self.tasks).await } => {}
            () = tokio::time::sleep(DRAIN_TIMEOUT) => {
                tracing::debug!("some clients' requests are still under way");
            }
            _ = self.signals.next() => {}
        }
        let shutdown = tokio::time::timeout(SHUTDOWN_TIMEOUT, self.node.shutdown());
        let exit = tokio::select! {
            ended = shutdown => match ended {
                Ok(Ok(())) => Exit::Success,
                Ok(Err(error)) => ended_by_itself(Err(error)),
                Err(_) => {
                    // Whatever was acknowledged is durable long since.
                    tracing::warn!("the node takes longer than {SHUTDOWN_TIMEOUT:?} to stop; leaving it");
                    Exit::Success
                }
            },
            signal = self.signals.next() => {
                tracing::info!("stopping at once: {signal}");
                Exit::Success
            }
        };
        drop(self.listeners);
        exit
    }
}

async fn drain(fronts: &mut JoinSet<()>) {
    while let Some(ended) = fronts.join_next().await {
        if let Err(error) = ended {
            tracing::error!("a task of the server died: {error}");
        }
    }
}

fn ended_by_itself(ended: Result<(), Arc<NodeError>>) -> Exit {
    match ended {
        Ok(()) => Exit::Success,
        Err(error) => {
            tracing::error!("this member stops: {error}");
            if matches!(*error, NodeError::SetAside(_)) {
                begin_anew();
            }
            Exit::of_node(&error)
        }
    }
}

/// Counts, for its successors, how often a process has begun anew.
const BEGUN_ANEW: &str = "RUSTY_RAFT_BEGUN_ANEW";
/// Something may be set aside so often before a person is to look at the disk: every checkpoint and the folder.
const BEGIN_ANEW_MAX: u32 = 8;

/// Something damaged was set aside: the same process begins again without it. Returns when that cannot be.
fn begin_anew() {
    let times = std::env::var(BEGUN_ANEW).ok().and_then(|times| times.parse().ok()).unwrap_or(0u32);
    if times >= BEGIN_ANEW_MAX {
        return tracing::error!("damage was set aside {times} times: look at the disk");
    }
    let Ok(program) = std::env::current_exe() else { return };
    tracing::warn!("begins anew without what was damaged");
    let error = std::process::Command::new(program)
        .args(std::env::args_os().skip(1))
        .env(BEGUN_ANEW, (times + 1).to_string())
        .exec();
    tracing::error!("cannot begin anew: {error}");
}

/// Returns when standard input is at its end.
async fn stdin_closed() {
    let mut stdin = tokio::io::stdin();
    let mut ignored = [0u8; 64];
    // An input that cannot be read is as good as one that is closed.
    while stdin.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
}
