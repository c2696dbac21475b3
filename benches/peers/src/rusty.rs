//! rusty-raft, twice.
//!
//! [`start_nodes`] is the library as people embed it: three whole nodes that speak TCP with each other, their data
//! folders in a file system in memory. That pays for sockets, frames and checksums, which the other libraries leave to
//! their users.
//!
//! [`start`] leaves out what they leave out too: the production driver, log and state machine worker of each member, as
//! one task, with channels in place of the sockets and [`MemDisk`] in place of files. Records are framed, chained and
//! checksummed all the same: that is the log.

use std::collections::{BTreeSet, HashMap};
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use futures_util::future::join_all;
use raft::apply::{ApplyCompletion, ApplyWorker};
use raft::core::{
    ApplyContext, BlobId, ClusterId, Command, DecodeError, Digest, EntryId, Incarnation, MemberId,
    NodeId, Rng, Snapshot, SnapshotError, SnapshotSink, SnapshotSource, StateMachine, Time,
};
use raft::entry_header::{EntryHeader, HEADER_BYTES};
use raft::io::{Clock as _, Disk, DiskFile, Network, OpenMode, Stream};
use raft::log::snapshot::{SnapshotStore, SnapshotWorker};
use raft::log::{Identity, Log, LogOptions, LogWorker, Opened};
use raft::message::{Hello, PeerMessage};
use raft::node::driver::{Driver, Input, Outputs, Start, run_snapshot_job};
use raft::node::{BootClock, NodeRequest, Settings, first_request};
use raft::{Node, Status};
use tokio::sync::mpsc::{UnboundedReceiver, UnboundedSender, unbounded_channel};
use tokio::sync::{oneshot, watch};

use crate::Group;

/// Counts.
#[derive(Default)]
pub struct Counter(u64);

pub struct Payload(Bytes);

impl Command for Payload {
    fn encode(&self, out: &mut BytesMut) {
        out.extend_from_slice(&self.0);
    }

    fn decode(bytes: Bytes) -> Result<Self, DecodeError> {
        Ok(Self(bytes))
    }
}

impl StateMachine for Counter {
    type Command = Payload;
    type Response = u64;
    type Query = ();
    type Answer = u64;
    type Snapshot = Picture;

    fn apply(&mut self, _: ApplyContext, command: Payload) -> u64 {
        self.0 += 1 + command.0.len() as u64;
        self.0
    }

    fn query(&self, (): ()) -> u64 {
        self.0
    }

    fn snapshot(&self) -> Picture {
        Picture(self.0)
    }

    fn restore(&mut self, source: &dyn SnapshotSource) -> Result<(), SnapshotError> {
        let content = source.read(0)?;
        let bytes = content[..].try_into().unwrap_or_default();
        self.0 = u64::from_le_bytes(bytes);
        Ok(())
    }

    fn digest(&self) -> Digest {
        BlobId::of(&self.0.to_le_bytes()).digest
    }
}

pub struct Picture(u64);

impl Snapshot for Picture {
    fn write(self, sink: &mut dyn SnapshotSink) -> Result<(), SnapshotError> {
        sink.put(&self.0.to_le_bytes()).map(|_| ())
    }
}

// --- whole nodes

#[derive(Clone)]
pub struct Nodes(Node<Counter>);

impl Group for Nodes {
    async fn propose(&self, payload: Bytes) {
        self.0.propose(Payload(payload)).await.expect("a proposal is applied");
    }

    async fn propose_many(&self, payloads: Vec<Bytes>) {
        join_all(payloads.into_iter().map(|payload| self.propose(payload))).await;
    }
}

/// Three nodes on loopback; their folders lie in memory.
pub async fn start_nodes() -> anyhow::Result<Nodes> {
    let folder = PathBuf::from(format!("/dev/shm/rusty-raft-peers-{}", std::process::id()));
    let ports: Vec<u16> = (0..3)
        .map(|_| Ok(std::net::TcpListener::bind("127.0.0.1:0")?.local_addr()?.port()))
        .collect::<io::Result<_>>()?;
    let peers: Vec<String> = ports.iter().map(|port| format!("127.0.0.1:{port}")).collect();
    let mut nodes = Vec::new();
    for (number, address) in peers.iter().enumerate() {
        let node = Node::builder(Counter::default())
            .data_dir(folder.join(number.to_string()))
            .address(address.clone())
            .peers(peers.clone())
            .settings(roomy)
            .start()
            .await?;
        nodes.push(node);
    }
    let leader = loop {
        if let Some(leader) = nodes.iter().find(|node| node.status().is_leader()) {
            break leader.clone();
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    };
    // They run to the end of the process; their open files outlive the folder.
    std::mem::forget(nodes);
    Ok(Nodes(leader))
}

/// So many clients must not be refused for being many.
fn roomy(settings: &mut Settings) {
    settings.backlog_entries_max = 10_000_000;
    settings.queue_bytes_max = 1 << 30;
}

// --- drivers with channels

/// Files in memory.
#[derive(Clone, Default)]
pub struct MemDisk(Arc<Mutex<HashMap<PathBuf, MemFile>>>);

#[derive(Clone, Default)]
pub struct MemFile(Arc<Mutex<Vec<u8>>>);

impl Disk for MemDisk {
    type File = MemFile;
    type Lock = ();

    fn create_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<MemFile> {
        let mut files = self.0.lock().expect("nobody panics");
        match (files.get(path), mode) {
            (Some(_), OpenMode::CreateNew) => Err(ErrorKind::AlreadyExists.into()),
            (Some(file), _) => Ok(file.clone()),
            (None, OpenMode::CreateNew) => Ok(files.entry(path.to_owned()).or_default().clone()),
            (None, _) => Err(ErrorKind::NotFound.into()),
        }
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let files = self.0.lock().expect("nobody panics");
        let inside = files.keys().filter(|path| path.parent() == Some(dir));
        let names = inside.filter_map(|path| path.file_name()?.to_str().map(str::to_owned));
        let mut names: Vec<String> = names.collect();
        names.sort();
        Ok(names)
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        let files = self.0.lock().expect("nobody panics");
        Ok(files.keys().any(|file| file.starts_with(path)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut files = self.0.lock().expect("nobody panics");
        let file = files.remove(from).ok_or(ErrorKind::NotFound)?;
        files.insert(to.to_owned(), file);
        Ok(())
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut files = self.0.lock().expect("nobody panics");
        files.remove(path).map(|_| ()).ok_or_else(|| ErrorKind::NotFound.into())
    }

    fn sync_dir(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }

    fn lock(&self, _: &Path) -> io::Result<()> {
        Ok(())
    }
}

impl DiskFile for MemFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        let content = self.0.lock().expect("nobody panics");
        let start = offset as usize;
        let found = content.get(start..start + buffer.len()).ok_or(ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(found);
        Ok(())
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let mut content = self.0.lock().expect("nobody panics");
        let (start, end) = (offset as usize, offset as usize + bytes.len());
        if content.len() < end {
            content.resize(end, 0);
        }
        content[start..end].copy_from_slice(bytes);
        Ok(())
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        let mut content = self.0.lock().expect("nobody panics");
        content.clear();
        content.resize(len as usize, 0);
        Ok(())
    }

    fn len(&self) -> io::Result<u64> {
        Ok(self.0.lock().expect("nobody panics").len() as u64)
    }

    fn sync(&self) -> io::Result<()> {
        Ok(())
    }
}

type In = Input<Counter>;

/// What the others must know of a member to speak to it.
struct Contact {
    address: String,
    inputs: UnboundedSender<In>,
    hello: Mutex<Hello>,
}

/// The ways to the other members.
struct Channels {
    to: HashMap<NodeId, UnboundedSender<In>>,
    from: NodeId,
    epoch: u64,
}

impl Network for Channels {
    fn send(&mut self, to: NodeId, _: Stream, message: PeerMessage) {
        if let Some(peer) = self.to.get(&to) {
            // Nobody stops before the process ends.
            peer.send(Input::Message { from: self.from, epoch: self.epoch, message }).ok();
        }
    }
}

struct Member {
    number: usize,
    contacts: Arc<Vec<Contact>>,
    driver: Driver<Counter>,
    log: LogWorker<MemDisk>,
    apply: ApplyWorker<Counter>,
    snapshots: SnapshotWorker<MemDisk>,
    network: Channels,
    inputs: UnboundedReceiver<In>,
    cluster: Option<ClusterId>,
    connected: BTreeSet<(NodeId, bool)>,
    status: watch::Sender<Option<Arc<Status>>>,
}

impl Member {
    /// Turn after turn: everything that waits goes in, what comes out is done at once.
    async fn run(mut self) {
        let mut batch: Vec<In> = Vec::new();
        let mut next: Vec<In> = Vec::new();
        let mut deadline: Option<Time> = None;
        loop {
            if next.is_empty() {
                let now = BootClock.now();
                let wait = deadline.map_or(Duration::from_secs(1), |at| at.since(now));
                if self.inputs.is_empty()
                    && let Ok(Some(input)) = tokio::time::timeout(wait, self.inputs.recv()).await
                {
                    next.push(input);
                }
            } else {
                // Three members share two threads: each gets a turn now and then.
                tokio::task::coop::consume_budget().await;
            }
            while next.len() < 4096 {
                let Ok(input) = self.inputs.try_recv() else { break };
                next.push(input);
            }
            let cluster = self.cluster;
            batch.extend(next.drain(..).filter(|input| match input {
                // As the transport: what is about a cluster says nothing to a node that is not in it yet.
                Input::Message { message, .. } => {
                    cluster.is_some()
                        || matches!(message, PeerMessage::Formation(_) | PeerMessage::Goodbye)
                }
                _ => true,
            }));
            let out = self.driver.turn(BootClock.now(), batch.drain(..), &mut self.network);
            deadline = out.deadline;
            self.carry_out(out, &mut next);
        }
    }

    fn carry_out(&mut self, mut out: Outputs<Counter>, next: &mut Vec<In>) {
        if !out.log.is_empty() {
            let completions = self.log.handle(std::mem::take(&mut out.log));
            let epoch = self.log.log().epoch();
            next.extend(completions.into_iter().map(|done| Input::Log(epoch, done)));
            let kept = self.log.housekeep();
            next.extend(kept.into_iter().map(|done| Input::Log(epoch, done)));
        }
        if !out.apply.is_empty() {
            let completions = self.apply.handle(std::mem::take(&mut out.apply));
            next.extend(completions.into_iter().map(|done| match done {
                ApplyCompletion::Failed(error) => panic!("{error}"),
                done => Input::Apply(done),
            }));
        }
        for job in out.snapshot.drain(..) {
            let done = run_snapshot_job(&mut self.snapshots, job);
            next.extend(done.into_iter().map(Input::Snapshot));
        }
        self.cluster = out.formed.or(self.cluster);
        self.network.epoch = out.epoch;
        if let Some(Err(error)) = out.end {
            panic!("a member ended: {error}");
        }
        let changed = out.formed.is_some() || out.dial.is_some() || out.status.is_some();
        if changed {
            let mut hello = self.contacts[self.number].hello.lock().expect("nobody panics");
            hello.cluster = self.cluster;
            hello.epoch = out.epoch;
            hello.last_durable = out.last_durable;
        }
        if let Some(dial) = out.dial.take() {
            for peer in dial {
                self.connect(&peer.address, peer.node.is_some());
            }
        }
        if let Some(status) = out.status.take() {
            self.status.send_replace(Some(status));
        }
    }

    /// As after a handshake. What is sent in bulk is for members only.
    fn connect(&mut self, address: &str, bulk: bool) {
        let contact = self.contacts.iter().find(|contact| contact.address == address);
        let Some(contact) = contact.filter(|contact| contact.address != self.address()) else {
            return;
        };
        let hello = contact.hello.lock().expect("nobody panics").clone();
        self.network.to.insert(hello.node, contact.inputs.clone());
        for stream in [Stream::Control, Stream::Bulk] {
            let is_bulk = stream == Stream::Bulk;
            if (is_bulk && !bulk) || !self.connected.insert((hello.node, is_bulk)) {
                continue;
            }
            let connected =
                Input::Connected { hello: hello.clone(), address: address.to_owned(), stream };
            self.contacts[self.number].inputs.send(connected).ok();
            if stream == Stream::Control {
                let own = self.contacts[self.number].hello.lock().expect("nobody panics").clone();
                contact.inputs.send(Input::Accepted(own)).ok();
            }
        }
    }

    fn address(&self) -> &str {
        &self.contacts[self.number].address
    }
}

/// The leader's inputs.
#[derive(Clone)]
pub struct Leader {
    node: NodeId,
    inputs: UnboundedSender<In>,
    next_request: Arc<AtomicU64>,
}

impl Leader {
    /// As `Node::propose`.
    fn send(&self, payload: Bytes) -> oneshot::Receiver<Result<u64, raft::error::ProposeError>> {
        let request = self.next_request.fetch_add(1, Ordering::Relaxed);
        let mut encoded = BytesMut::with_capacity(HEADER_BYTES + payload.len());
        EntryHeader { proposer: self.node, request, session: None }.encode(&mut encoded);
        Payload(payload).encode(&mut encoded);
        let (waiter, answer) = oneshot::channel();
        let payload = encoded.freeze();
        let request = NodeRequest::Propose { request, payload, permit: None, waiter };
        self.inputs.send(Input::Request(request)).ok();
        answer
    }
}

impl Group for Leader {
    async fn propose(&self, payload: Bytes) {
        self.send(payload).await.expect("members run").expect("a proposal is applied");
    }

    async fn propose_many(&self, payloads: Vec<Bytes>) {
        let answers: Vec<_> = payloads.into_iter().map(|payload| self.send(payload)).collect();
        // All at once: whoever awaits one after the other is woken for every one.
        for answer in join_all(answers).await {
            answer.expect("members run").expect("a proposal is applied");
        }
    }
}

/// Three members as tasks of this runtime.
pub async fn start() -> anyhow::Result<Leader> {
    let addresses: Vec<String> = (0..3).map(|number| format!("m{number}:1")).collect();
    let (mut contacts, mut parts) = (Vec::new(), Vec::new());
    for (number, address) in addresses.iter().enumerate() {
        let fresh = Identity {
            member: MemberId(100 + number as u64),
            incarnation: Incarnation(1000 + number as u128),
        };
        let (disk, dir) = (MemDisk::default(), Path::new("/data"));
        let Opened { log, state } = Log::open(disk.clone(), dir, LogOptions::default(), fresh)?;
        let store = SnapshotStore::open(disk, dir).map_err(|e| anyhow::anyhow!("{e}"))?;
        let mut settings = Settings {
            data_dir: dir.to_path_buf(),
            address: address.clone(),
            peers: addresses.clone(),
            ..Settings::default()
        };
        roomy(&mut settings);
        let epoch = log.epoch();
        let start = Start { state, formation: log.formation_state(), epoch };
        let rng = Rng::new(number as u64 + 1);
        let driver = Driver::new(settings, start, rng, BootClock.now())?;
        let node = driver.node();
        let (inputs, receiver) = unbounded_channel();
        let hello = Hello {
            version_min: 1,
            version_max: 1,
            cluster: None,
            node,
            address: address.clone(),
            epoch,
            last_durable: EntryId::ZERO,
            epoch_seen: 0,
        };
        contacts.push(Contact { address: address.clone(), inputs, hello: Mutex::new(hello) });
        let snapshots = SnapshotWorker::new(store, first_request(epoch));
        parts.push((driver, LogWorker::new(log), snapshots, receiver));
    }
    let contacts = Arc::new(contacts);
    let mut statuses = Vec::new();
    for (number, (driver, log, snapshots, inputs)) in parts.into_iter().enumerate() {
        let node = driver.node();
        let epoch = log.log().epoch();
        let (status, watched) = watch::channel(None::<Arc<Status>>);
        statuses.push(watched);
        let member = Member {
            number,
            contacts: Arc::clone(&contacts),
            driver,
            log,
            apply: ApplyWorker::new(Counter::default()),
            snapshots,
            network: Channels { to: HashMap::new(), from: node, epoch },
            inputs,
            cluster: None,
            connected: BTreeSet::new(),
            status,
        };
        tokio::spawn(member.run());
    }
    loop {
        for (contact, status) in contacts.iter().zip(&statuses) {
            if let Some(status) = &*status.borrow()
                && status.is_leader()
            {
                let epoch = contact.hello.lock().expect("nobody panics").epoch;
                return Ok(Leader {
                    node: status.node,
                    inputs: contact.inputs.clone(),
                    next_request: Arc::new(AtomicU64::new(first_request(epoch))),
                });
            }
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
