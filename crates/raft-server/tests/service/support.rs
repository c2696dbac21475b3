//! Real processes for tests: started on free ports with data on a real disk, watched line by line, never slept for.

use std::io::{BufRead as _, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::time::{Duration, Instant};

use raft_kv::proto::etcdserverpb::{PutRequest, RangeRequest, RangeResponse};
use raft_server::proto::etcdserverpb::kv_client::KvClient;
use raft_server::proto::health::HealthCheckRequest;
use raft_server::proto::health::health_check_response::ServingStatus;
use raft_server::proto::health::health_client::HealthClient;
use rustix::process::{Pid, Signal, WaitOptions, kill_process, waitpid};
use tonic::Status;
use tonic::transport::{Channel, Endpoint};

/// Nothing here takes this long unless it is broken.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// The program under test.
pub(crate) fn program() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_rusty-raft"));
    command.env_remove("RUST_LOG").stdin(Stdio::null());
    command
}

/// A folder of its own under the build's folder, which is no tmpfs.
pub(crate) fn folder() -> tempfile::TempDir {
    tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// The first of `count` ports in a row that are free, below the range from which the system picks.
pub(crate) fn free_ports(count: u16) -> u16 {
    static NEXT: AtomicU16 = AtomicU16::new(0);
    let offset = u16::try_from(std::process::id() % 9000).unwrap() * 2;
    for _ in 0..2000 {
        let first = 12_000 + (offset + NEXT.fetch_add(count, Ordering::Relaxed)) % 18_000;
        let free =
            (first..first + count).all(|port| TcpListener::bind(("127.0.0.1", port)).is_ok());
        if free {
            return first;
        }
    }
    panic!("no free ports");
}

/// A running process. Killed when dropped.
pub(crate) struct Process {
    pub(crate) child: Child,
    lines: Receiver<String>,
    seen: Vec<String>,
}

impl Process {
    /// Starts `command` and listens to both of its outputs.
    pub(crate) fn start(mut command: Command) -> Self {
        let mut child = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let (sender, lines) = channel();
        read_lines(child.stdout.take().unwrap(), sender.clone());
        read_lines(child.stderr.take().unwrap(), sender);
        Self { child, lines, seen: Vec::new() }
    }

    /// The first line that contains `part`, among those already printed or yet to come.
    pub(crate) fn line_with(&mut self, part: &str) -> String {
        if let Some(line) = self.seen.iter().find(|line| line.contains(part)) {
            return line.clone();
        }
        self.next_line_with(part)
    }

    /// The first line from now on that contains `part`.
    pub(crate) fn next_line_with(&mut self, part: &str) -> String {
        let deadline = Instant::now() + PATIENCE;
        loop {
            match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
                Ok(line) => {
                    self.seen.push(line.clone());
                    if line.contains(part) {
                        return line;
                    }
                }
                Err(RecvTimeoutError::Timeout) => {
                    panic!("no {part:?} in\n{}", self.seen.join("\n"))
                }
                Err(RecvTimeoutError::Disconnected) => {
                    panic!("ended without {part:?}:\n{}", self.seen.join("\n"));
                }
            }
        }
    }

    /// Everything printed until the process has closed its outputs.
    pub(crate) fn rest(&mut self) -> String {
        self.seen.extend(self.lines.iter());
        self.seen.join("\n")
    }

    pub(crate) fn signal(&self, signal: Signal) {
        kill(self.child.id(), signal);
    }

    /// Stops it until it gets a CONT, and returns when every one of its threads stands still: they go on for a moment after the
    /// signal was sent.
    pub(crate) fn pause(&self) {
        self.signal(Signal::STOP);
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let (_, status) = waitpid(pid, WaitOptions::UNTRACED).unwrap().unwrap();
        assert!(status.stopped(), "{status:?}");
    }

    pub(crate) fn kill9(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
    }

    /// How it ended, within `limit` from now.
    pub(crate) fn ended_within(&mut self, limit: Duration) -> ExitStatus {
        let since = Instant::now();
        let text = self.rest();
        let status = self.child.wait().unwrap();
        assert!(since.elapsed() < limit, "took {:?} to end:\n{text}", since.elapsed());
        status
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // It may be gone already.
        self.child.kill().ok();
        self.child.wait().ok();
        if std::thread::panicking() {
            eprintln!("--- what it printed:\n{}", self.rest());
        }
    }
}

fn read_lines(pipe: impl Read + Send + 'static, sender: Sender<String>) {
    std::thread::spawn(move || {
        for line in BufReader::new(pipe).lines() {
            let Ok(line) = line else { return };
            if sender.send(line).is_err() {
                return;
            }
        }
    });
}

pub(crate) fn kill(pid: u32, signal: Signal) {
    kill_process(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), signal).unwrap();
}

/// Members started one by one with `rusty-raft node`.
pub(crate) struct Members {
    pub(crate) folder: tempfile::TempDir,
    pub(crate) addresses: Vec<String>,
    pub(crate) processes: Vec<Option<Process>>,
}

impl Members {
    /// `count` members, none started yet.
    pub(crate) fn configure(count: u16) -> Self {
        let first = free_ports(count);
        let addresses: Vec<String> =
            (first..first + count).map(|port| format!("127.0.0.1:{port}")).collect();
        let folder = folder();
        let text = format!(
            "(persistent_state_file: {:?}, cluster_members: {addresses:?}, election_timeout_interval: \
             RangeInclusive(start: 300.0, end: 500.0), heartbeat_interval: 100)",
            folder.path().join("data.raft")
        );
        std::fs::write(folder.path().join("config.ron"), text).unwrap();
        let processes = addresses.iter().map(|_| None).collect();
        Self { folder, addresses, processes }
    }

    /// `count` members, all started.
    pub(crate) fn start(count: u16) -> Self {
        let mut members = Self::configure(count);
        for index in 0..members.addresses.len() {
            members.start_one(index);
        }
        members
    }

    pub(crate) fn config(&self) -> PathBuf {
        self.folder.path().join("config.ron")
    }

    pub(crate) fn command(&self, index: usize) -> Command {
        let mut command = program();
        command.arg("node").arg(self.config()).arg(index.to_string());
        command
    }

    /// The command of one more member, which waits to be added at `address`.
    pub(crate) fn joining(&self, address: &str) -> Command {
        let text = std::fs::read_to_string(self.config()).unwrap();
        let last = format!("{:?}]", self.addresses.last().unwrap());
        let longer = text.replace(&last, &format!("{}, {address:?}]", last.trim_end_matches(']')));
        let config = self.folder.path().join(format!("{}.ron", address.replace(':', "-")));
        std::fs::write(&config, longer).unwrap();
        let mut command = program();
        command.arg("node").arg(&config).arg(self.addresses.len().to_string());
        command.args(["--join", &self.addresses.join(",")]);
        command
    }

    /// Adds settings to the configuration file.
    pub(crate) fn set(&self, settings: &str) {
        let text = std::fs::read_to_string(self.config()).unwrap();
        std::fs::write(self.config(), text.replacen('(', &format!("({settings}, "), 1)).unwrap();
    }

    /// Starts a member and returns once it serves clients.
    pub(crate) fn start_one(&mut self, index: usize) {
        let mut process = Process::start(self.command(index));
        process.line_with("serves clients at");
        self.processes[index] = Some(process);
    }

    pub(crate) fn process(&mut self, index: usize) -> &mut Process {
        self.processes[index].as_mut().unwrap()
    }

    pub(crate) fn kill9(&mut self, index: usize) {
        self.processes[index].take().unwrap().kill9();
    }

    /// Waits until every running member knows a leader; returns the leader's place.
    pub(crate) async fn leader(&self) -> usize {
        for (address, process) in self.addresses.iter().zip(&self.processes) {
            if process.is_some() {
                until_serving(address).await;
            }
        }
        let deadline = Instant::now() + PATIENCE;
        while Instant::now() < deadline {
            for (index, process) in self.processes.iter().enumerate() {
                if process.is_none() {
                    continue;
                }
                let status = raft_server::client::status(&self.addresses[index]).await;
                if status.is_ok_and(|s| s.header.is_some_and(|h| h.member_id == s.leader)) {
                    return index;
                }
            }
        }
        panic!("no member leads");
    }
}

/// A connection that is made when it is needed, and again when it breaks.
pub(crate) fn channel_to(address: &str) -> Channel {
    Endpoint::from_shared(format!("http://{address}"))
        .unwrap()
        .connect_timeout(PATIENCE)
        .timeout(PATIENCE)
        .connect_lazy()
}

pub(crate) fn kv(address: &str) -> KvClient<Channel> {
    KvClient::new(channel_to(address)).max_decoding_message_size(usize::MAX)
}

/// Waits until the member says that it serves: it knows a leader.
pub(crate) async fn until_serving(address: &str) {
    let deadline = Instant::now() + PATIENCE;
    // The stream says every change; it breaks only when the member does.
    while Instant::now() < deadline {
        let mut health = HealthClient::new(channel_to(address));
        let Ok(stream) = health.watch(HealthCheckRequest::default()).await else { continue };
        let mut stream = stream.into_inner();
        while let Ok(Some(answer)) = stream.message().await {
            if answer.status == i32::from(ServingStatus::Serving) {
                return;
            }
        }
    }
    panic!("{address} does not serve");
}

pub(crate) async fn put(address: &str, key: &str, value: &str) -> Result<i64, Status> {
    let request = PutRequest {
        key: key.to_owned().into(),
        value: value.to_owned().into(),
        ..PutRequest::default()
    };
    Ok(kv(address).put(request).await?.into_inner().header.unwrap().revision)
}

pub(crate) async fn get(address: &str, key: &str) -> Result<Option<String>, Status> {
    let kvs = range(address, key, "").await?.kvs;
    Ok(kvs.first().map(|kv| String::from_utf8(kv.value.to_vec()).unwrap()))
}

pub(crate) async fn range(address: &str, key: &str, end: &str) -> Result<RangeResponse, Status> {
    let request = RangeRequest {
        key: key.to_owned().into(),
        range_end: end.to_owned().into(),
        ..RangeRequest::default()
    };
    Ok(kv(address).range(request).await?.into_inner())
}

/// A cluster of `count` members in one process group on free ports with its data in `folder`/raft_data: the command, and
/// the first member's address.
pub(crate) fn cluster_command(folder: &Path, count: u16) -> (Command, String) {
    let port = free_ports(count);
    let text = include_str!("../../../../cluster_config.ron")
        .replace("raft_data/", folder.join("raft_data").to_str().unwrap())
        .replace("heartbeat", &format!("port_range_start: {port}, heartbeat"));
    std::fs::write(folder.join("cluster_config.ron"), text).unwrap();
    let mut command = program();
    command.arg("cluster").arg(folder.join("cluster_config.ron")).arg(count.to_string());
    (command, format!("127.0.0.1:{port}"))
}

/// Every file below `folder` with its content, to show that not a byte changed.
pub(crate) fn contents(folder: &Path) -> Vec<(PathBuf, Vec<u8>)> {
    let files = tree(folder).into_iter().map(|(path, _)| path).filter(|path| path.is_file());
    files.map(|path| (path.clone(), std::fs::read(&path).unwrap())).collect()
}

/// Every path below `folder`, with lengths, to show that nothing changed.
pub(crate) fn tree(folder: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(&next).unwrap() {
            let path = entry.unwrap().path();
            let length = std::fs::metadata(&path).unwrap().len();
            if path.is_dir() {
                folders.push(path.clone());
            }
            found.push((path, length));
        }
    }
    found.sort();
    found
}
