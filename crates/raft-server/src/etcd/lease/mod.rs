//! Lease: keys that live as long as their owner says so.
//!
//! Grants, renewals and ends are commands in the log ([`raft_kv::LeaseClock`] says why). Two tasks stand behind
//! the service: one collects the renewals that clients of this member ask for, so that each round through the log
//! carries all that waited ([`renewals`]); one runs the clock, and ends leases while this member leads ([`expiry`]).

pub(super) mod expiry;
pub(super) mod renewals;

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher as _, Hasher as _};
use std::time::Duration;

use raft_kv::auth::Access;
use raft_kv::proto::etcdserverpb::{
    LeaseGrantRequest, LeaseGrantResponse, LeaseKeepAliveRequest, LeaseKeepAliveResponse,
    LeaseLeasesRequest, LeaseLeasesResponse, LeaseRevokeRequest, LeaseRevokeResponse, LeaseStatus,
    LeaseTimeToLiveRequest, LeaseTimeToLiveResponse,
};
use raft_kv::{Answer, Command, KvError, LeaseSlack, Query, check_lease_grant};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming, async_trait};

use super::auth::Admission;
use super::kv::mismatch;
use super::{Etcd, errors};
use crate::proto::etcdserverpb::lease_server::Lease;

/// Answers of a keep-alive stream that wait for the client to take them.
const ANSWERS_MAX: usize = 64;

impl Etcd {
    /// The shortest lease, in seconds: one and a half election timeouts, as in etcd.
    fn lease_ttl_min(&self) -> i64 {
        let millis = self.settings.election_timeout_min.as_millis();
        i64::try_from((millis * 3).div_ceil(2).div_ceil(1000)).unwrap_or(i64::MAX)
    }

    /// Renews a lease; its seconds, 0 when there is none of this id.
    async fn renew(&self, id: i64) -> Result<i64, Status> {
        self.renewals.renew(id).await
    }

    async fn grant(
        &self,
        admission: &Admission,
        mut request: LeaseGrantRequest,
    ) -> Result<LeaseGrantResponse, Status> {
        request.ttl = request.ttl.max(self.lease_ttl_min());
        let choose = request.id == 0;
        let asked = Instant::now();
        let mut response = loop {
            if choose {
                request.id = random_id();
            }
            match self.propose_raw(admission, Command::lease_grant(request)).await? {
                Ok(raft_kv::Response::LeaseGrant(response)) => break response,
                Ok(_) => return Err(mismatch()),
                // Somebody has the number that we drew.
                Err(KvError::LeaseExists) if choose => {}
                Err(error) => return Err(errors::of_kv(error)),
            }
        };
        let slack = LeaseSlack::of(self.settings.election_timeout_max);
        if slack.promise(response.ttl, asked.elapsed()) != Some(response.ttl) {
            // The lease began long ago: what is left must not be less than what is told.
            response.ttl = self.renew(response.id).await?;
            if response.ttl == 0 {
                return Err(errors::of_kv(KvError::LeaseNotFound));
            }
        }
        self.complete(&mut response.header);
        Ok(response)
    }

    /// Answers keep-alives in order until the client ends the stream, or this member cannot go on.
    async fn keep_alive(
        &self,
        mut requests: Streaming<LeaseKeepAliveRequest>,
        mut admission: Admission,
        answers: &mpsc::Sender<Result<LeaseKeepAliveResponse, Status>>,
    ) -> Result<(), Status> {
        while let Some(request) = requests.message().await? {
            let answer = self.keep_alive_once(&mut admission, request.id).await?;
            if answers.send(Ok(answer)).await.is_err() {
                break;
            }
        }
        Ok(())
    }

    /// Renews a lease, and answers.
    pub(super) async fn keep_alive_once(
        &self,
        admission: &mut Admission,
        id: i64,
    ) -> Result<LeaseKeepAliveResponse, Status> {
        self.admit_more(admission, &Access::LeaseRenew(id)).await?;
        if admission.caller().is_some() {
            // Renewals go through the log in batches, in nobody's name: the store decides before.
            self.ask(admission, Query::MayRenew(id)).await?;
        }
        // As in etcd, before renewing: a lease may end right after it, and the header must not be newer.
        let header = Some(self.header(self.reader.revision()));
        let ttl = self.renew(id).await?;
        Ok(LeaseKeepAliveResponse { header, id, ttl })
    }
}

/// A positive number that is hardly anybody's.
fn random_id() -> i64 {
    let random = RandomState::new().build_hasher().finish();
    (random & (u64::MAX >> 1)).max(1).cast_signed()
}

/// Whole seconds, as etcd has them: rounded down.
fn seconds(duration: Duration) -> i64 {
    i64::try_from(duration.as_secs()).unwrap_or(i64::MAX)
}

#[async_trait]
impl Lease for Etcd {
    async fn lease_grant(
        &self,
        request: Request<LeaseGrantRequest>,
    ) -> Result<Response<LeaseGrantResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        // Unlike what is wrong with keys, etcd says this only to those whom it knows.
        check_lease_grant(&request).map_err(errors::of_kv)?;
        self.grant(&admission, request).await.map(Response::new)
    }

    async fn lease_revoke(
        &self,
        request: Request<LeaseRevokeRequest>,
    ) -> Result<Response<LeaseRevokeResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let command = Command::lease_revoke(request);
        let raft_kv::Response::LeaseRevoke(mut response) =
            self.propose(&admission, command).await?
        else {
            return Err(mismatch());
        };
        self.complete(&mut response.header);
        Ok(Response::new(response))
    }

    type LeaseKeepAliveStream = ReceiverStream<Result<LeaseKeepAliveResponse, Status>>;

    async fn lease_keep_alive(
        &self,
        request: Request<Streaming<LeaseKeepAliveRequest>>,
    ) -> Result<Response<Self::LeaseKeepAliveStream>, Status> {
        let cut = self.cut(&request);
        let (requests, admission) = self.admit_stream(request)?;
        let (answers, stream) = mpsc::channel(ANSWERS_MAX);
        let etcd = self.itself();
        // Ends with the client's stream, or with the node.
        tokio::spawn(async move {
            let failed = tokio::select! {
                ended = etcd.keep_alive(requests, admission, &answers) => ended.err(),
                status = cut => Some(status),
                () = answers.closed() => None,
            };
            if let Some(status) = failed {
                // The client may be gone as well.
                answers.send(Err(status)).await.ok();
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn lease_time_to_live(
        &self,
        request: Request<LeaseTimeToLiveRequest>,
    ) -> Result<Response<LeaseTimeToLiveResponse>, Status> {
        let (LeaseTimeToLiveRequest { id, keys }, admission) = self.admit(request).await?;
        let Answer::Lease(found) = self.ask(&admission, Query::Lease { id, keys }).await? else {
            return Err(mismatch());
        };
        let mut response = LeaseTimeToLiveResponse {
            header: Some(self.header(self.reader.revision())),
            id,
            ttl: -1,
            ..LeaseTimeToLiveResponse::default()
        };
        if let Some(lease) = found {
            response.ttl = self.remaining(id).await.map_or(lease.ttl, seconds);
            response.granted_ttl = lease.ttl;
            response.keys = lease.keys;
        }
        Ok(Response::new(response))
    }

    async fn lease_leases(
        &self,
        request: Request<LeaseLeasesRequest>,
    ) -> Result<Response<LeaseLeasesResponse>, Status> {
        let (LeaseLeasesRequest {}, admission) = self.admit(request).await?;
        let Answer::Leases(ids) = self.ask(&admission, Query::Leases).await? else {
            return Err(mismatch());
        };
        let leases = ids.into_iter().map(|id| LeaseStatus { id }).collect();
        let header = Some(self.header(self.reader.revision()));
        Ok(Response::new(LeaseLeasesResponse { header, leases }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn drawn_numbers_are_positive_and_differ() {
        let mut drawn: Vec<i64> = (0..1000).map(|_| random_id()).collect();
        drawn.sort_unstable();
        drawn.dedup();
        assert_eq!((drawn.len(), drawn[0] > 0), (1000, true));
    }
}
