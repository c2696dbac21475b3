//! `rusty-raft node <config> <index>`: one member, until it is told to stop.

use std::io;
use std::os::unix::process::CommandExt as _;
use std::sync::Arc;
use std::time::Duration;

use raft::Node;
use raft::error::NodeError;
use raft::meters::Meters;
use raft_kv::Store;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::{NodeArgs, complain, signals::Signals};
use crate::config::{self, MemberAddress, NodeConfig};
use crate::etcd::{self, Etcd, StoreView};
use crate::exit::Exit;
use crate::front::{self, Doors, Front};
use crate::logging::{self, Color};

/// How long clients' requests under way may take to finish when this member stops.
const DRAIN_TIMEOUT: Duration = Duration::from_millis(300);
/// How long handing leadership over may take.
const HANDOVER_TIMEOUT: Duration = Duration::from_millis(700);
/// How long the node may take to stop, hand-over included. With the drain below the supervisor's patience.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_millis(1300);
/// Bytes that an encoded command may have beyond the client's request: its kind and lengths.
const COMMAND_ROOM_BYTES: usize = 64 << 10;

/// Why a member does not start, for people, and for whoever started it.
struct Refusal {
    exit: Exit,
    text: String,
    /// Something damaged was set aside: the next attempt goes on without it.
    again: bool,
}

impl From<Box<config::Problem>> for Refusal {
    fn from(problem: Box<config::Problem>) -> Self {
        Self { exit: Exit::BadConfiguration, text: problem.to_string(), again: false }
    }
}

pub(super) async fn run(args: &NodeArgs, color: Color) -> Exit {
    let (exit, again) = match start(args, color).await {
        Ok(member) => member.run(args.stop_with_stdin).await,
        Err(refusal) => {
            complain(&refusal.text);
            (refusal.exit, refusal.again)
        }
    };
    if again {
        begin_anew();
    }
    exit
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

/// A running member.
struct Member {
    node: Node<Store>,
    fronts: JoinSet<()>,
    /// What the services run beside their calls.
    tasks: JoinSet<()>,
    /// Held to the end: while this process lives, its port says so.
    listeners: Vec<Arc<TcpListener>>,
    stop: watch::Sender<bool>,
    signals: Signals,
}

async fn start(args: &NodeArgs, color: Color) -> Result<Member, Refusal> {
    // Everything that can be wrong on paper first, then the port, then the data: whoever is refused has
    // changed nothing.
    let config = NodeConfig::read(&args.config)?;
    let own = config.member(args.index)?.clone();
    for address in &args.join {
        config::resolve(address).map_err(|reason| Refusal {
            exit: Exit::BadConfiguration,
            text: format!("rusty-raft: --join: {reason}\n\nNothing was written."),
            again: false,
        })?;
    }
    logging::init(color);
    for warning in &config.warnings {
        tracing::warn!("{}: {}: {}", warning.place, warning.field, warning.advice);
    }
    let mut signals = Signals::listen().map_err(|error| Refusal {
        exit: Exit::RestartMe,
        text: format!("rusty-raft: cannot listen for signals: {error}"),
        again: false,
    })?;
    crate::limits::raise_open_files();

    let meters = Arc::<Meters>::default();
    let mut store = Store::new();
    let view = StoreView::of(&mut store);
    let starting = async {
        let doors = listen(&own).await?;
        let node = start_node(store, &config, args, (&own, &meters)).await?;
        Ok::<_, Refusal>((doors, node))
    };
    let (doors, node) = tokio::select! {
        started = starting => started?,
        // Recovery may take a while, and has promised nothing yet.
        signal = signals.next() => {
            return Err(Refusal {
                exit: Exit::Success,
                text: format!("rusty-raft: member {} stopped before it had started: {signal}", args.index),
                again: false,
            });
        }
    };

    let (stop, stopping) = watch::channel(false);
    let quota_bytes = config.settings.quota_bytes.unwrap_or_else(crate::limits::quota_bytes);
    tracing::info!("the store may take {quota_bytes} bytes (quota_backend_bytes)");
    let settings = etcd::Settings {
        request_bytes_max: config.settings.request_bytes_max,
        election_timeout_max: config.settings.election_timeout_max,
        watch_progress_interval: config.settings.watch_progress_interval,
        quota_bytes,
        learners_max: config.settings.learners_max,
    };
    let (etcd, tasks) = Etcd::start(node.clone(), view, (settings, meters), stopping.clone());
    let peers = node.clone();
    let front =
        Front::new((etcd.router(), etcd.metrics()), move |socket| peers.accept(socket), stopping);
    let mut fronts = JoinSet::new();
    let mut listeners = Vec::new();
    for (listener, doors) in doors {
        let listener = Arc::new(listener);
        listeners.push(Arc::clone(&listener));
        fronts.spawn(front.clone().run(listener, doors));
    }
    let status = node.status();
    tracing::info!(
        "member {} (id {}) serves clients at {} and keeps its state in {}",
        args.index,
        status.node.member,
        own.client,
        config.data_dir(args.index).display()
    );
    Ok(Member { node, fronts, tasks, listeners, stop, signals })
}

/// Listens where peers and clients are to come: one address mostly.
async fn listen(own: &MemberAddress) -> Result<Vec<(TcpListener, Doors)>, Refusal> {
    let mut wanted = vec![(&own.peer, Doors { peers: true, clients: own.peer == own.client })];
    if own.peer != own.client {
        wanted.push((&own.client, Doors { peers: false, clients: true }));
    }
    let mut listeners = Vec::new();
    for (address, doors) in wanted {
        let bound = front::bind(address).await.map_err(|error| cannot_listen(address, &error))?;
        listeners.extend(bound.into_iter().map(|listener| (listener, doors)));
    }
    Ok(listeners)
}

/// The message for an address that cannot be listened on.
fn cannot_listen(address: &str, error: &io::Error) -> Refusal {
    let (exit, wrong, right) = if error.kind() == io::ErrorKind::AddrInUse {
        let wrong = "another process listens there already".to_owned();
        (Exit::PortInUse, wrong, "stop that process, or give this member another address")
    } else if error.kind() == io::ErrorKind::AddrNotAvailable {
        let wrong = "the address does not belong to this machine".to_owned();
        (Exit::BadConfiguration, wrong, "an address of this machine; is the index the right one?")
    } else {
        (Exit::BadConfiguration, error.to_string(), "an address that this process may use")
    };
    Refusal {
        exit,
        text: format!(
            "rusty-raft: cannot listen on {address}\n\n  wrong  {wrong}\n  right  {right}\n\nNothing was written."
        ),
        again: false,
    }
}

async fn start_node(
    store: Store,
    config: &NodeConfig,
    args: &NodeArgs,
    (own, meters): (&MemberAddress, &Arc<Meters>),
) -> Result<Node<Store>, Refusal> {
    let settings = &config.settings;
    let mut builder = Node::builder(store)
        .data_dir(config.data_dir(args.index))
        .name(format!("n{}", args.index))
        .address(&own.peer)
        .election_timeout(settings.election_timeout_min, settings.election_timeout_max)
        .heartbeat_interval(settings.heartbeat_interval)
        .external_listener(true)
        .settings(|node| {
            node.request_timeout = Some(settings.request_timeout);
            node.command_bytes_max = settings.request_bytes_max.saturating_add(COMMAND_ROOM_BYTES);
            node.handover_timeout = HANDOVER_TIMEOUT;
            settings.tuning.apply(node);
            node.meters = Arc::clone(meters);
        });
    builder = if args.join.is_empty() {
        builder.peers(config.members.iter().map(|member| member.peer.clone()))
    } else {
        builder.join(args.join.iter().cloned())
    };
    if own.client != own.peer {
        builder = builder.client_addresses([own.client.clone()]);
    }
    builder.start().await.map_err(|error| Refusal {
        exit: Exit::of_node(&error),
        again: matches!(error, NodeError::SetAside(_)),
        text: format!("rusty-raft: member {} cannot start\n\n  {error}", args.index),
    })
}

impl Member {
    /// Serves until a signal, the end of standard input (when `stop_with_stdin`) or the end of the node.
    /// True with the exit code: something damaged was set aside, and it can go on without that.
    async fn run(mut self, stop_with_stdin: bool) -> (Exit, bool) {
        tokio::select! {
            ended = self.node.stopped() => {
                let again = matches!(&ended, Err(error) if matches!(**error, NodeError::SetAside(_)));
                return (ended_by_itself(ended), again);
            }
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
        (exit, false)
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
            Exit::of_node(&error)
        }
    }
}

/// Returns when standard input is at its end.
async fn stdin_closed() {
    let mut stdin = tokio::io::stdin();
    let mut ignored = [0u8; 64];
    // An input that cannot be read is as good as one that is closed.
    while stdin.read(&mut ignored).await.is_ok_and(|count| count > 0) {}
}
