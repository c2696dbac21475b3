//! `lock` and `elect`, on the services that members have for them: what is held is a key under a lease, which this
//! program renews while it runs.

use std::ffi::OsString;
use std::process::Stdio;

use clap::Args;
use raft_kv::proto::etcdserverpb::RangeRequest;
use raft_kv::proto::v3electionpb::{CampaignRequest, LeaderRequest, ResignRequest};
use raft_kv::proto::v3lockpb::{LockRequest, UnlockRequest};
use tokio::process::Command;
use tokio::time::sleep;

use super::Failure;
use super::dial::{Cluster, RETRY, is_passing};
use super::kv::show_range;
use super::lease::{grant_for, hold, revoke_quietly};
use super::print::{Printer, bytes};
use crate::cli::signals::Signals;

/// The seconds after which an election goes on without a leader that has died.
const ELECTION_TTL: i64 = 60;

/// Holds a lock until this program is stopped, or while a command runs.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Lock {
    /// The lock.
    name: OsString,
    /// The seconds after which a lock is free when its holder has died.
    #[arg(long, value_name = "SECONDS", default_value_t = 10)]
    ttl: i64,
    /// What to run under the lock; it finds ETCD_LOCK_KEY and ETCD_LOCK_REV among its variables.
    #[arg(trailing_var_arg = true, value_name = "COMMAND")]
    command: Vec<OsString>,
}

/// Stands for election, or says who leads.
#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Elect {
    /// The election.
    name: OsString,
    /// What to proclaim once elected.
    #[arg(required_unless_present = "listen", conflicts_with = "listen")]
    proposal: Option<OsString>,
    /// Say who leads, and whoever comes next.
    #[arg(short, long)]
    listen: bool,
}

impl Lock {
    pub(super) async fn run(&self, cluster: &Cluster) -> Result<(), Failure> {
        let printer = Printer::for_messages(&cluster.wishes)?;
        let mut signals = listen()?;
        let lease = grant_for(cluster, self.ttl).await?;
        let outcome = tokio::select! {
            outcome = self.hold(cluster, &printer, lease, &mut signals) => outcome,
            lost = hold(cluster, lease, self.ttl) => return Err(lost),
        };
        revoke_quietly(cluster, lease).await;
        outcome
    }

    async fn hold(
        &self,
        cluster: &Cluster,
        printer: &Printer,
        lease: i64,
        signals: &mut Signals,
    ) -> Result<(), Failure> {
        let request = LockRequest { name: bytes(&self.name), lease };
        // Asking again with the same lease gives the same place.
        let locking =
            cluster.wait(request, async |link, request| link.lock().lock(link.by(request)).await);
        let lock = tokio::select! {
            lock = locking => lock?,
            signal = signals.next() => return Err(interrupted(signal)),
        };
        let revision = lock.header.map_or(0, |header| header.revision);
        if let Some((program, arguments)) = self.command.split_first() {
            let ran = Command::new(program)
                .args(arguments)
                .env("ETCD_LOCK_KEY", key_text(&lock.key))
                .env("ETCD_LOCK_REV", revision.to_string())
                .stdin(Stdio::null())
                .status()
                .await;
            self.unlock(cluster, &lock.key).await?;
            return match ran {
                Ok(status) if status.success() => Ok(()),
                Ok(status) => Err(Failure::failed(status.to_string())),
                Err(error) => Err(Failure::failed(format!("{}: {error}", program.display()))),
            };
        }
        let request = RangeRequest { key: lock.key.clone(), ..RangeRequest::default() };
        let shown = cluster
            .read(request, async |link, request| link.kv().range(link.by(request)).await)
            .await?;
        if shown.kvs.is_empty() {
            return Err(Failure::failed("lock lost on init"));
        }
        show_range(printer, &shown);
        signals.next().await;
        self.unlock(cluster, &lock.key).await
    }

    async fn unlock(&self, cluster: &Cluster, key: &bytes::Bytes) -> Result<(), Failure> {
        // Unlocking twice does no more than once.
        let request = UnlockRequest { key: key.clone() };
        let unlocked = cluster
            .read(request, async |link, request| link.lock().unlock(link.by(request)).await)
            .await;
        unlocked.map(drop)
    }
}

fn key_text(key: &[u8]) -> OsString {
    use std::os::unix::ffi::OsStringExt as _;
    OsString::from_vec(key.to_vec())
}

fn listen() -> Result<Signals, Failure> {
    Signals::listen().map_err(|error| Failure::failed(format!("signals cannot be heard: {error}")))
}

fn interrupted(signal: &str) -> Failure {
    Failure::failed(format!("interrupted by {signal} while waiting"))
}

impl Elect {
    pub(super) async fn run(&self, cluster: &Cluster) -> Result<(), Failure> {
        let printer = Printer::for_messages(&cluster.wishes)?;
        let mut signals = listen()?;
        let Some(proposal) = &self.proposal else {
            return tokio::select! {
                failure = self.observe(cluster, &printer) => Err(failure),
                _ = signals.next() => Ok(()),
            };
        };
        let lease = grant_for(cluster, ELECTION_TTL).await?;
        let outcome = tokio::select! {
            outcome = self.stand(cluster, &printer, lease, proposal, &mut signals) => outcome,
            lost = hold(cluster, lease, ELECTION_TTL) => return Err(lost.inside("elect")),
        };
        revoke_quietly(cluster, lease).await;
        outcome
    }

    async fn stand(
        &self,
        cluster: &Cluster,
        printer: &Printer,
        lease: i64,
        proposal: &OsString,
        signals: &mut Signals,
    ) -> Result<(), Failure> {
        let request = CampaignRequest { name: bytes(&self.name), lease, value: bytes(proposal) };
        // Standing again with the same lease gives the same place.
        let standing = cluster
            .wait(request, async |link, request| link.election().campaign(link.by(request)).await);
        let elected = tokio::select! {
            elected = standing => elected?,
            signal = signals.next() => return Err(interrupted(signal)),
        };
        let leader = elected.leader.unwrap_or_default();
        let request = RangeRequest { key: leader.key.clone(), ..RangeRequest::default() };
        let shown = cluster
            .read(request, async |link, request| link.kv().range(link.by(request)).await)
            .await?;
        show_range(printer, &shown);
        signals.next().await;
        let request = ResignRequest { leader: Some(leader) };
        let resigned = cluster
            .read(request, async |link, request| link.election().resign(link.by(request)).await)
            .await;
        resigned.map(drop)
    }

    /// Says who leads whenever that changes, through any member, until it may not.
    async fn observe(&self, cluster: &Cluster, printer: &Printer) -> Failure {
        let mut last = None;
        let mut is_first = true;
        loop {
            let link = match cluster.any_link().await {
                Ok(link) => link,
                Err(failure) if is_first => return failure,
                Err(_) => {
                    sleep(RETRY).await;
                    continue;
                }
            };
            is_first = false;
            let request = LeaderRequest { name: bytes(&self.name) };
            let status = match link.election().observe(link.by(request)).await {
                Ok(answers) => {
                    let mut answers = answers.into_inner();
                    loop {
                        match answers.message().await {
                            Ok(Some(answer)) => {
                                let seen = answer.kv.as_ref().map(|kv| kv.mod_revision);
                                // Another member begins with what was said already.
                                if seen != last {
                                    last = seen;
                                    let kvs = answer.kv.into_iter().collect();
                                    let header = answer.header;
                                    let shown = raft_kv::proto::etcdserverpb::RangeResponse {
                                        header,
                                        kvs,
                                        ..Default::default()
                                    };
                                    show_range(printer, &shown);
                                }
                            }
                            Ok(None) => break None,
                            Err(status) => break Some(status),
                        }
                    }
                }
                Err(status) => Some(status),
            };
            match status {
                Some(status) if !is_passing(&status) => return status.into(),
                Some(_) | None => sleep(RETRY).await,
            }
        }
    }
}
