//! Three members, each a process, and what can be asked of them.

use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use raft_kv::proto::etcdserverpb::{HashRequest, StatusRequest, StatusResponse};
use raft_server::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use tonic::transport::{Channel, Endpoint};

use crate::{MEMBERS, Options};

/// Three members, each a process of its own.
pub(crate) struct Cluster {
    program: PathBuf,
    pub(crate) dir: PathBuf,
    config: PathBuf,
    pub(crate) addresses: Vec<String>,
    pub(crate) children: Vec<Option<Child>>,
}

impl Cluster {
    pub(crate) fn new(options: &Options) -> Result<Self> {
        let dir = options.dir.clone();
        if dir.exists() {
            std::fs::remove_dir_all(&dir).with_context(|| format!("removing {}", dir.display()))?;
        }
        std::fs::create_dir_all(&dir)?;
        let dir = dir.canonicalize()?;
        let state = dir.join("data.raft");
        let port = usize::from(options.port);
        let addresses: Vec<String> =
            (0..MEMBERS).map(|member| format!("127.0.0.1:{}", port + member)).collect();
        let config = dir.join("config.ron");
        std::fs::write(
            &config,
            format!(
                "(\n    persistent_state_file: {state:?},\n    cluster_members: {addresses:?},\n    \
                 election_timeout_interval: RangeInclusive(start: 300.0, end: 500.0),\n    \
                 heartbeat_interval: 100,\n    {}\n)\n",
                options.scenario.settings()
            ),
        )?;
        let children = (0..MEMBERS).map(|_| None).collect();
        Ok(Self { program: options.program.clone(), dir, config, addresses, children })
    }

    /// What a member printed, in all its lives.
    pub(crate) fn log_path(&self, member: usize) -> PathBuf {
        self.dir.join(format!("node_{member}.log"))
    }

    /// Where a member keeps its state.
    pub(crate) fn data_dir(&self, member: usize) -> PathBuf {
        self.dir.join(format!("node_{member}_data.raft"))
    }

    pub(crate) fn start(&mut self, member: usize) -> Result<()> {
        let log = self.log_path(member);
        let log = std::fs::OpenOptions::new().create(true).append(true).open(log)?;
        let child = Command::new(&self.program)
            .arg("node")
            .arg(&self.config)
            .arg(member.to_string())
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()
            .with_context(|| format!("starting {}", self.program.display()))?;
        if let Some(slot) = self.children.get_mut(member) {
            *slot = Some(child);
        }
        Ok(())
    }

    /// kill -9, and no more of it.
    pub(crate) fn kill(&mut self, member: usize) -> Result<()> {
        if let Some(mut child) = self.children.get_mut(member).and_then(Option::take) {
            child.kill()?;
            child.wait()?;
        }
        Ok(())
    }

    /// As Ctrl-C and service managers do; returns when it has ended.
    pub(crate) fn stop(&mut self, member: usize) -> Result<()> {
        if let Some(mut child) = self.children.get_mut(member).and_then(Option::take) {
            Command::new("kill").args(["-TERM", &child.id().to_string()]).status()?;
            child.wait()?;
        }
        Ok(())
    }

    /// Whether a member that was started has ended by itself.
    pub(crate) fn has_ended(&mut self, member: usize) -> Result<bool> {
        match self.children.get_mut(member) {
            Some(Some(child)) => Ok(child.try_wait()?.is_some()),
            Some(None) | None => Ok(true),
        }
    }

    /// How a member that ended by itself ended.
    pub(crate) fn exit_code(&mut self, member: usize) -> Result<Option<i32>> {
        match self.children.get_mut(member) {
            Some(Some(child)) => Ok(child.wait()?.code()),
            Some(None) | None => Ok(None),
        }
    }

    pub(crate) async fn status(&self, member: usize) -> Result<StatusResponse> {
        let channel = channel(&self.addresses[member]).await?;
        Ok(MaintenanceClient::new(channel).status(StatusRequest {}).await?.into_inner())
    }

    /// The member that leads, as it says itself.
    pub(crate) async fn leader(&self) -> Option<usize> {
        for member in 0..MEMBERS {
            if self.children[member].is_some()
                && let Ok(status) = self.status(member).await
                && status.header.is_some_and(|header| header.member_id == status.leader)
            {
                return Some(member);
            }
        }
        None
    }

    pub(crate) async fn wait_for_leader(&self) -> Result<usize> {
        let began = Instant::now();
        while began.elapsed() < Duration::from_secs(30) {
            if let Some(leader) = self.leader().await {
                return Ok(leader);
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        bail!("no leader after 30 s; see the logs in {}", self.dir.display())
    }

    /// Waits until every member has applied the same, and compares the digests of their whole state.
    pub(crate) async fn compare_members(&self) -> Result<()> {
        let began = Instant::now();
        loop {
            let states = self.states().await;
            if let Ok(states) = &states
                && states.iter().all(|state| *state == states[0])
            {
                let (applied, revision, hash) = states[0];
                println!(
                    "equal on all members: applied {applied}, revision {revision}, {hash:08x}"
                );
                return Ok(());
            }
            ensure!(began.elapsed() < Duration::from_secs(30), "members differ: {states:?}");
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    }

    /// Applied index, revision and digest of the state of every member.
    async fn states(&self) -> Result<Vec<(u64, i64, u32)>> {
        let mut states = Vec::new();
        for address in &self.addresses {
            let mut client = MaintenanceClient::new(channel(address).await?);
            let status = client.status(StatusRequest {}).await?.into_inner();
            let hash = client.hash(HashRequest {}).await?.into_inner();
            let revision = hash.header.map_or(0, |header| header.revision);
            states.push((status.raft_applied_index, revision, hash.hash));
        }
        Ok(states)
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for child in self.children.iter_mut().flatten() {
            let stopped = child.kill().and_then(|()| child.wait());
            if let Err(error) = stopped {
                println!("a member could not be stopped: {error}");
            }
        }
    }
}

pub(crate) async fn channel(address: &str) -> Result<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))?
        .connect_timeout(Duration::from_secs(1))
        .timeout(Duration::from_secs(10));
    Ok(endpoint.connect().await?)
}
