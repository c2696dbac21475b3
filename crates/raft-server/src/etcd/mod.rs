//! Being etcd: the gRPC services, one file each, and what they share. Steps 1 and 9 in the life of a write.
//!
//! Any member takes any request. Writes are checked, encoded once and proposed through the node's handle, which
//! forwards them to the leader; reads wait for a read index and then look into the store on the handler's own
//! task. Deliberately absent here: anything about Raft, and anything about connections.

mod auth;
mod cluster;
mod compaction;
mod errors;
mod gateway;
pub(crate) mod hash;
mod health;
mod http;
mod kv;
mod lease;
mod long_reads;
mod maintenance;
mod polish;
mod range_stream;
mod recipes;
mod snapshot;
mod space;
mod watch;

use std::future::Future;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::time::Duration;

use axum::Router;
use axum::routing::post;
use prost::Message;
use raft::Node;
use raft::meters::Meters;
use raft::node::RoleName;
use raft_kv::auth::{AuthChanges, AuthView};
use raft_kv::proto::etcdserverpb::ResponseHeader;
use raft_kv::watch::{Hub, HubLimits, HubRequest};
use raft_kv::{LeaseChanges, Publications, Reader, Store};
use tokio::sync::{mpsc, watch as signal};
use tokio::task::JoinSet;
use tonic::{Request, Status};

pub use self::auth::Tokens;
pub use self::compaction::Compaction;
pub(crate) use self::polish::polish;
use crate::metrics::Metrics;
use crate::proto::etcdserverpb::auth_server::AuthServer;
use crate::proto::etcdserverpb::cluster_server::ClusterServer;
use crate::proto::etcdserverpb::kv_server::KvServer;
use crate::proto::etcdserverpb::lease_server::LeaseServer;
use crate::proto::etcdserverpb::maintenance_server::MaintenanceServer;
use crate::proto::health::health_server::HealthServer;
use crate::proto::v3electionpb::election_server::ElectionServer;
use crate::proto::v3lockpb::lock_server::LockServer;

/// The version of etcd whose interface this is. Digits only: clients split it at the dots.
pub const ETCD_VERSION: &str = "3.7.0";
/// What a message may exceed the limit on requests by: room for the refusal to be ours, as in etcd.
const MESSAGE_ROOM_BYTES: usize = 512 << 10;

/// After how many longest election timeouts without a leader a stream ends whose client asked for one.
const LEADERLESS_TIMEOUTS: u32 = 3;

/// What of the configuration the services need.
#[derive(Clone, Copy, Debug)]
pub struct Settings {
    /// Bytes of one encoded request.
    pub request_bytes_max: usize,
    /// The cluster's shortest election timeout.
    pub election_timeout_min: Duration,
    /// The cluster's longest election timeout.
    pub election_timeout_max: Duration,
    /// How often a watcher hears how far it is while nothing happens, if it asked for that.
    pub watch_progress_interval: Duration,
    /// Bytes that the store may take (`Store::logical_size`) before it accepts nothing that makes it larger, as far as
    /// this member is concerned: the least that any member says holds for all.
    pub quota_bytes: u64,
    /// Learners that there may be beside those that wait for their promotion.
    pub learners_max: usize,
    /// Operations of one transaction.
    pub txn_ops_max: usize,
    /// Requests of the JSON gateway in flight: it is one client, as in etcd. `None`: no limit of its own.
    pub streams_max: Option<u32>,
    /// When old revisions go by themselves; `None`: never.
    pub compaction: Option<Compaction>,
    /// Members speak TLS with each other.
    pub peers_secured: bool,
    /// A client without a token is the user whose name its certificate bears.
    pub certificates_name_users: bool,
}

/// The store as the services see it. To be made before the node takes the store.
#[derive(Debug)]
pub struct StoreView {
    reader: Reader,
    lease_changes: LeaseChanges,
    publications: Publications,
    auth: AuthView,
    auth_changes: AuthChanges,
}

impl StoreView {
    /// The view of `store`.
    #[must_use]
    pub fn of(store: &mut Store) -> Self {
        Self {
            reader: store.reader(),
            lease_changes: store.lease_changes(),
            publications: store.publications(),
            auth: store.auth(),
            auth_changes: store.auth_changes(),
        }
    }
}

/// What all services share.
pub struct Etcd {
    /// Itself, for tasks that outlive a call.
    itself: Weak<Self>,
    node: Node<Store>,
    reader: Reader,
    auth: auth::Auth,
    settings: Settings,
    metrics: Arc<Metrics>,
    renewals: lease::renewals::Renewals,
    /// To the task that runs the leases' clock.
    remaining: mpsc::UnboundedSender<lease::expiry::RemainingRequest>,
    /// To the task that runs the hub of all watchers.
    hub: mpsc::UnboundedSender<HubRequest>,
    long_reads: long_reads::LongReads,
    /// Of watch streams.
    next_stream: AtomicU64,
    /// True once this member is shutting down.
    stop: signal::Receiver<bool>,
}

impl Etcd {
    /// The services of `node`, whose store is the one that `store` sees, and the tasks behind them. The tasks end
    /// when `stop` is true.
    #[must_use]
    pub fn start(
        node: Node<Store>,
        store: StoreView,
        (settings, tokens, meters): (Settings, Tokens, Arc<Meters>),
        stop: signal::Receiver<bool>,
    ) -> (Arc<Self>, JoinSet<()>) {
        let mut tasks = JoinSet::new();
        let (renewals, batches) = lease::renewals::queue();
        let (remaining, questions) = mpsc::unbounded_channel();
        let timeout = settings.election_timeout_max;
        tasks.spawn(until(stop.clone(), batches.run(node.clone(), timeout)));
        let expiry = lease::expiry::run(node.clone(), store.lease_changes, questions, timeout);
        tasks.spawn(until(stop.clone(), expiry));
        let reader = store.reader;
        let (hub, requests) = mpsc::unbounded_channel();
        let hub_task = watch::run_hub(
            Hub::new(reader.clone(), HubLimits::default()),
            store.publications,
            requests,
        );
        tasks.spawn(until(stop.clone(), hub_task));
        let metrics = Metrics::new(meters)
            .unwrap_or_else(|error| unreachable!("two metrics of one name: {error}"));
        let leaders = Arc::clone(&metrics).watch_leaders(node.clone());
        tasks.spawn(until(stop.clone(), leaders));
        let (auth, epochs) = auth::Auth::new(store.auth, tokens);
        tasks.spawn(until(stop.clone(), auth::run_changes(store.auth_changes, epochs)));
        let space = space::watch(node.clone(), reader.clone(), settings.quota_bytes);
        tasks.spawn(until(stop.clone(), space));
        if let Some(compaction) = settings.compaction {
            let run = compaction::run(node.clone(), reader.clone(), compaction);
            tasks.spawn(until(stop.clone(), run));
        }
        let etcd = Arc::new_cyclic(|itself| Self {
            itself: Weak::clone(itself),
            node,
            reader,
            auth,
            settings,
            metrics,
            renewals,
            remaining,
            hub,
            long_reads: long_reads::LongReads::new(),
            next_stream: AtomicU64::new(0),
            stop,
        });
        (etcd, tasks)
    }

    /// A reference for a task that outlives the call.
    fn itself(&self) -> Arc<Self> {
        // Whoever calls this holds a reference.
        self.itself.upgrade().unwrap_or_else(|| unreachable!("used while it is dropped"))
    }

    /// A number that no other watch stream of this member has.
    fn next_stream(&self) -> u64 {
        self.next_stream.fetch_add(1, Ordering::Relaxed)
    }

    /// What this member counts.
    #[must_use]
    pub fn metrics(&self) -> Arc<Metrics> {
        Arc::clone(&self.metrics)
    }

    /// Every route of the port: gRPC by path, then plain HTTP.
    pub fn router(self: &Arc<Self>) -> Router {
        let message_bytes_max = self.settings.request_bytes_max.saturating_add(MESSAGE_ROOM_BYTES);
        let kv = KvServer::from_arc(Arc::clone(self))
            .max_decoding_message_size(message_bytes_max)
            .max_encoding_message_size(usize::MAX);
        let lease = LeaseServer::from_arc(Arc::clone(self))
            .max_decoding_message_size(message_bytes_max)
            .max_encoding_message_size(usize::MAX);
        let cluster = ClusterServer::from_arc(Arc::clone(self));
        let maintenance = MaintenanceServer::from_arc(Arc::clone(self));
        let auth = AuthServer::from_arc(Arc::clone(self));
        let health = HealthServer::from_arc(Arc::clone(self));
        let lock = LockServer::from_arc(Arc::clone(self));
        let election =
            ElectionServer::from_arc(Arc::clone(self)).max_decoding_message_size(message_bytes_max);
        let watch = Router::new()
            .route("/etcdserverpb.Watch/{method}", post(watch::route))
            .with_state(Arc::clone(self));
        Router::new()
            .route_service("/etcdserverpb.KV/{method}", kv)
            .merge(watch)
            .route_service("/etcdserverpb.Lease/{method}", lease)
            .route_service("/etcdserverpb.Cluster/{method}", cluster)
            .route_service("/etcdserverpb.Maintenance/{method}", maintenance)
            .route_service("/etcdserverpb.Auth/{method}", auth)
            .route_service("/v3lockpb.Lock/{method}", lock)
            .route_service("/v3electionpb.Election/{method}", election)
            .route_service("/grpc.health.v1.Health/{method}", health)
            .merge(gateway::router(Arc::clone(self)))
            .merge(http::router(Arc::clone(self)))
    }

    /// Metrics and health only.
    pub fn health_router(self: &Arc<Self>) -> Router {
        http::router(Arc::clone(self))
    }

    /// What every answer begins with.
    fn header(&self, revision: i64) -> ResponseHeader {
        let status = self.node.status();
        ResponseHeader {
            cluster_id: status.cluster_id.map_or(0, |cluster| cluster.0),
            member_id: status.known_as(status.node.member).0,
            revision,
            raft_term: status.term.0,
        }
    }

    /// Completes a header that came from the store: it knows only the revision.
    fn complete(&self, header: &mut Option<ResponseHeader>) {
        let revision = header.as_ref().map_or(0, |header| header.revision);
        *header = Some(self.header(revision));
    }

    /// Checks the metadata that etcd's clients send with any request.
    fn check_metadata<T>(&self, request: &Request<T>) -> Result<(), Status> {
        let metadata = request.metadata();
        if needs_leader(request) && self.node.status().leader.is_none() {
            return Err(Status::unavailable(errors::NO_LEADER));
        }
        if let Some(version) = metadata.get("client-api-version")
            && std::str::from_utf8(version.as_encoded_bytes()).is_err()
        {
            return Err(Status::invalid_argument("etcdserver: invalid client api version"));
        }
        Ok(())
    }

    /// Why a stream is to end from this side, once it is: this member stops, or its client asked for a leader and
    /// there has been none for a while.
    fn cut<T>(&self, request: &Request<T>) -> impl Future<Output = Status> + Send + use<T> {
        let needs_leader = needs_leader(request);
        let mut stop = self.stop.clone();
        let leaderless =
            leaderless(self.node.clone(), self.settings.election_timeout_max * LEADERLESS_TIMEOUTS);
        async move {
            tokio::select! {
                // A sender that is gone means the same.
                _ = stop.wait_for(|stop| *stop) => Status::unavailable(errors::STOPPED),
                () = leaderless, if needs_leader => Status::unavailable(errors::NO_LEADER),
            }
        }
    }

    /// As [`check_metadata`](Self::check_metadata), for what learners do not serve.
    fn check_voter<T>(&self, request: &Request<T>) -> Result<(), Status> {
        self.check_metadata(request)?;
        if self.is_learner() {
            return Err(Status::failed_precondition("etcdserver: rpc not supported for learner"));
        }
        Ok(())
    }

    fn is_learner(&self) -> bool {
        self.node.status().role == RoleName::Learner
    }

    /// Refuses a write that is over the limit, as it is encoded.
    fn check_size(&self, request: &impl Message) -> Result<(), Status> {
        if request.encoded_len() > self.settings.request_bytes_max {
            return Err(errors::too_large());
        }
        Ok(())
    }

    /// Waits until a read here sees every write that was acknowledged before.
    async fn linearize(&self) -> Result<(), Status> {
        self.node.read_index().await.map(drop).map_err(|error| errors::of_read(&error))
    }
}

/// Whether the client wants to hear when there is no leader.
fn needs_leader<T>(request: &Request<T>) -> bool {
    request.metadata().get("hasleader").is_some_and(|value| value == "true")
}

/// Returns when there has been no leader for `patience`.
async fn leaderless(node: Node<Store>, patience: Duration) {
    let mut statuses = node.watch_status();
    loop {
        // When the node is gone, streams end for that reason.
        let lost = statuses.wait_for(|status| status.leader.is_none()).await.is_ok();
        if !lost {
            std::future::pending::<()>().await;
        }
        let found = statuses.wait_for(|status| status.leader.is_some());
        if tokio::time::timeout(patience, found).await.is_err() {
            return;
        }
    }
}

/// Runs a task until it ends, or `stop` is true.
async fn until(mut stop: signal::Receiver<bool>, task: impl Future<Output = ()>) {
    tokio::select! {
        () = task => {}
        // A sender that is gone means the same.
        _ = stop.wait_for(|stop| *stop) => {}
    }
}
