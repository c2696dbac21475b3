//! `lease grant`, `revoke`, `timetolive`, `list` and `keep-alive`.

use std::time::Duration;

use clap::{Args, Subcommand};
use raft_kv::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseKeepAliveRequest, LeaseKeepAliveResponse, LeaseLeasesRequest,
    LeaseRevokeRequest, LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use tokio::sync::mpsc;
use tokio::time::sleep;
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::Failure;
use super::dial::{Cluster, Link, RETRY};
use super::json::{self, Json};
use super::print::{Printer, header_json, say};
use super::to::Format;
use super::words::lease_id;

/// The soonest that a lease is renewed again.
const SOONEST: Duration = Duration::from_millis(500);

#[derive(Clone, Debug, Subcommand)]
pub(in crate::cli) enum Lease {
    /// Make a lease.
    Grant {
        /// For how many seconds.
        #[arg(allow_negative_numbers = true)]
        ttl: i64,
    },
    /// End a lease, and with it its keys.
    Revoke {
        #[command(flatten)]
        lease: Id,
    },
    /// Show how long a lease will last.
    Timetolive {
        #[command(flatten)]
        lease: Id,
        /// And the keys that end with it.
        #[arg(long)]
        keys: bool,
    },
    /// List all leases.
    List,
    /// Renew a lease until this program ends.
    KeepAlive {
        #[command(flatten)]
        lease: Id,
        /// Only once.
        #[arg(long)]
        once: bool,
    },
}

#[derive(Clone, Copy, Debug, Args)]
pub(in crate::cli) struct Id {
    /// The lease, in hexadecimal digits.
    #[arg(value_name = "LEASE_ID", value_parser = lease_id)]
    id: i64,
}

impl Lease {
    pub(super) async fn run(&self, cluster: &Cluster) -> Result<(), Failure> {
        let printer = Printer::for_messages(&cluster.wishes)?;
        match self {
            Self::Grant { ttl } => grant(cluster, &printer, *ttl).await,
            Self::Revoke { lease } => revoke(cluster, &printer, lease.id).await,
            Self::Timetolive { lease, keys } => {
                time_to_live(cluster, &printer, lease.id, *keys).await
            }
            Self::List => list(cluster, &printer).await,
            Self::KeepAlive { lease, once: true } => {
                let answer = renew(cluster, lease.id).await?;
                if answer.ttl <= 0 {
                    return Err(Failure::failed("etcdserver: requested lease not found"));
                }
                show_renewal(&printer, &answer);
                Ok(())
            }
            Self::KeepAlive { lease, once: false } => keep_alive(cluster, &printer, lease.id).await,
        }
    }
}

async fn grant(cluster: &Cluster, printer: &Printer, ttl: i64) -> Result<(), Failure> {
    let request = LeaseGrantRequest { ttl, id: 0 };
    let answer = cluster
        .write(request, async |link, request| link.lease().lease_grant(link.by(request)).await)
        .await
        .map_err(|failure| failure.inside("failed to grant lease"))?;
    let header = answer.header;
    printer.show_as(
        &answer,
        || {
            header_json(header.as_ref()).and([
                ("ID", Json::number(answer.id)),
                ("TTL", Json::number(answer.ttl)),
                ("Error", Json::text(&answer.error)),
            ])
        },
        |out| out.line(format!("lease {:016x} granted with TTL({}s)", answer.id, answer.ttl)),
        |out| {
            out.header(header.as_ref());
            out.field("ID", answer.id);
            out.field("TTL", answer.ttl);
        },
    );
    Ok(())
}

async fn revoke(cluster: &Cluster, printer: &Printer, id: i64) -> Result<(), Failure> {
    let answer = cluster
        .write(LeaseRevokeRequest { id }, async |link, request| {
            link.lease().lease_revoke(link.by(request)).await
        })
        .await
        .map_err(|failure| failure.inside("failed to revoke lease"))?;
    printer.show(
        "LeaseRevokeResponse",
        &answer,
        |out| out.line(format!("lease {id:016x} revoked")),
        |out| out.header(answer.header.as_ref()),
    );
    Ok(())
}

async fn time_to_live(
    cluster: &Cluster,
    printer: &Printer,
    id: i64,
    keys: bool,
) -> Result<(), Failure> {
    let answer = cluster
        .read(LeaseTimeToLiveRequest { id, keys }, async |link, request| {
            link.lease().lease_time_to_live(link.by(request)).await
        })
        .await?;
    let header = answer.header;
    let listed = || match &answer.keys[..] {
        [] => Json::Null,
        keys => Json::List(keys.iter().map(|key| json::bytes(key)).collect()),
    };
    printer.show_as(
        &answer,
        || {
            header_json(header.as_ref()).and([
                ("id", Json::number(answer.id)),
                ("ttl", Json::number(answer.ttl)),
                ("granted-ttl", Json::number(answer.granted_ttl)),
                ("keys", listed()),
            ])
        },
        |out| out.line(simple_time_to_live(&answer, keys)),
        |out| {
            out.header(header.as_ref());
            out.field("ID", answer.id);
            out.field("TTL", answer.ttl);
            out.field("GrantedTTL", answer.granted_ttl);
            for key in &answer.keys {
                out.text("Key", key);
            }
        },
    );
    Ok(())
}

fn simple_time_to_live(answer: &LeaseTimeToLiveResponse, keys: bool) -> Vec<u8> {
    let (id, granted, left) = (answer.id, answer.granted_ttl, answer.ttl);
    if granted == 0 && left == -1 {
        return format!("lease {id:016x} already expired").into_bytes();
    }
    let text = format!("lease {id:016x} granted with TTL({granted}s), remaining({left}s)");
    let mut line = text.into_bytes();
    if keys {
        line.extend_from_slice(b", attached keys([");
        line.extend_from_slice(&answer.keys.join(&b' '));
        line.extend_from_slice(b"])");
    }
    line
}

async fn list(cluster: &Cluster, printer: &Printer) -> Result<(), Failure> {
    let answer = cluster
        .read(LeaseLeasesRequest {}, async |link, request| {
            link.lease().lease_leases(link.by(request)).await
        })
        .await?;
    let header = answer.header;
    let listed = answer.leases.iter().map(|lease| Json::object([("id", Json::number(lease.id))]));
    let listed = Json::List(listed.collect());
    printer.show_as(
        &answer,
        || header_json(header.as_ref()).and([("leases", listed)]),
        |out| {
            out.line(format!("found {} leases", answer.leases.len()));
            for lease in &answer.leases {
                out.line(format!("{:016x}", lease.id));
            }
        },
        |out| {
            out.header(header.as_ref());
            for lease in &answer.leases {
                out.field("ID", lease.id);
            }
        },
    );
    Ok(())
}

async fn keep_alive(cluster: &Cluster, printer: &Printer, id: i64) -> Result<(), Failure> {
    loop {
        let answer = renew(cluster, id).await?;
        if answer.ttl <= 0 {
            break;
        }
        show_renewal(printer, &answer);
        sleep(until_next(answer.ttl)).await;
    }
    if printer.format == Format::Simple {
        say(format!("lease {id:016x} expired or revoked."));
    }
    Ok(())
}

/// When a lease of so many seconds is to be renewed again.
pub(super) fn until_next(ttl: i64) -> Duration {
    (Duration::from_secs(u64::try_from(ttl).unwrap_or(0)) / 3).max(SOONEST)
}

fn show_renewal(printer: &Printer, answer: &LeaseKeepAliveResponse) {
    printer.show_as(
        answer,
        || {
            header_json(answer.header.as_ref())
                .and([("ID", Json::number(answer.id)), ("TTL", Json::number(answer.ttl))])
        },
        |out| out.line(format!("lease {:016x} keepalived with TTL({})", answer.id, answer.ttl)),
        |out| {
            out.header(answer.header.as_ref());
            out.field("ID", answer.id);
            out.field("TTL", answer.ttl);
        },
    );
}

/// Renews a lease through any member that can; one that is gone has no time left.
pub(super) async fn renew(cluster: &Cluster, id: i64) -> Result<LeaseKeepAliveResponse, Failure> {
    // Two renewals do no more than one.
    let renewed = cluster.read(id, async |link, id| renew_by(&link, id).await);
    renewed.await
}

async fn renew_by(link: &Link, id: i64) -> Result<tonic::Response<LeaseKeepAliveResponse>, Status> {
    let (requests, stream) = mpsc::channel(1);
    // There is room for one.
    requests.try_send(LeaseKeepAliveRequest { id }).ok();
    let answers = link.lease().lease_keep_alive(link.by(ReceiverStream::new(stream))).await?;
    let answer = answers.into_inner().message().await?;
    drop(requests);
    let ended = || Status::unavailable("the member ended the renewal");
    answer.map(tonic::Response::new).ok_or_else(ended)
}

/// Makes a lease, for a lock or an election.
pub(super) async fn grant_for(cluster: &Cluster, ttl: i64) -> Result<i64, Failure> {
    let request = LeaseGrantRequest { ttl, id: 0 };
    let answer = cluster
        .write(request, async |link, request| link.lease().lease_grant(link.by(request)).await)
        .await?;
    Ok(answer.id)
}

/// Ends a lease that nobody needs any more; if that fails, it ends by itself.
pub(super) async fn revoke_quietly(cluster: &Cluster, id: i64) {
    let revoked = cluster.read(LeaseRevokeRequest { id }, async |link, request| {
        link.lease().lease_revoke(link.by(request)).await
    });
    revoked.await.ok();
}

/// Renews a lease until it is lost: its time is over, or nobody could be asked for that long.
pub(super) async fn hold(cluster: &Cluster, id: i64, ttl: i64) -> Failure {
    let lost = || Failure::failed("session expired");
    let granted = Duration::from_secs(u64::try_from(ttl).unwrap_or(0));
    let mut renewed = tokio::time::Instant::now();
    loop {
        sleep(until_next(ttl)).await;
        match renew(cluster, id).await {
            Ok(answer) if answer.ttl > 0 => renewed = tokio::time::Instant::now(),
            Ok(_) => return lost(),
            Err(_) if renewed.elapsed() < granted => sleep(RETRY).await,
            Err(_) => return lost(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_of_a_lease_is_said_as_by_etcdctl() {
        let answer = |granted_ttl, ttl, keys: &[&'static str]| LeaseTimeToLiveResponse {
            id: 31,
            granted_ttl,
            ttl,
            keys: keys.iter().map(|key| key.as_bytes().into()).collect(),
            ..LeaseTimeToLiveResponse::default()
        };
        let said = |answer, keys| String::from_utf8(simple_time_to_live(&answer, keys)).unwrap();
        assert_eq!(said(answer(0, -1, &[]), true), "lease 000000000000001f already expired");
        let line = "lease 000000000000001f granted with TTL(60s), remaining(59s)";
        assert_eq!(said(answer(60, 59, &[]), false), line);
        let wanted = format!("{line}, attached keys([a b])");
        assert_eq!(said(answer(60, 59, &["a", "b"]), true), wanted);
        assert_eq!(until_next(60), Duration::from_secs(20));
        assert_eq!(until_next(0), SOONEST);
    }
}
