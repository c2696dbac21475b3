//! v3election: one leader at a time, who says something, and others who listen.

use raft_kv::proto::etcdserverpb::PutRequest;
use raft_kv::proto::etcdserverpb::request_op::Request as Op;
use raft_kv::proto::mvccpb::event::EventType;
use raft_kv::proto::v3electionpb::{
    CampaignRequest, CampaignResponse, LeaderKey, LeaderRequest, LeaderResponse, ProclaimRequest,
    ProclaimResponse, ResignRequest, ResignResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, async_trait};

use super::{Caller, Waiting, end_of};
use crate::etcd::Etcd;
use crate::proto::v3electionpb::election_server::Election;

const NO_LEADER: &str = "election: no leader";
const NOT_LEADER: &str = "election: not leader";
const MISSING_LEADER: &str = "\"leader\" field must be provided";

/// Announcements that wait for a listener.
const ANNOUNCEMENTS_MAX: usize = 16;

impl Caller {
    /// Says something new as the leader.
    async fn proclaim(
        &self,
        leader: LeaderKey,
        value: bytes::Bytes,
    ) -> Result<ProclaimResponse, Status> {
        let LeaderKey { key, rev, lease, .. } = leader;
        let put = PutRequest { key: key.clone(), value, lease, ..PutRequest::default() };
        let answer = self.if_created((&key, rev), Op::RequestPut(put), None).await?;
        if answer.succeeded {
            Ok(ProclaimResponse { header: answer.header })
        } else {
            Err(Status::unknown(NOT_LEADER))
        }
    }

    /// Tells who leads and what they say, for as long as somebody listens.
    async fn observe(
        &self,
        prefix: &[u8],
        answers: &mpsc::Sender<Result<LeaderResponse, Status>>,
    ) -> Result<(), Status> {
        loop {
            let first = self.first(prefix).await?;
            let mut from = first.header.map_or(0, |header| header.revision) + 1;
            let (mut header, mut leader) = (first.header, first.kvs.into_iter().next());
            if leader.is_none() {
                let mut changes = self.follow(prefix.to_vec().into(), end_of(prefix), from)?;
                while leader.is_none() {
                    let (told, events) = changes.next().await?;
                    header = told;
                    leader = events
                        .into_iter()
                        .find(|event| event.r#type() == EventType::Put)
                        .and_then(|event| event.kv);
                }
                from = leader.as_ref().map_or(from, |kv| kv.mod_revision + 1);
            }
            let Some(kv) = leader else { continue };
            let key = kv.key.clone();
            if answers.send(Ok(LeaderResponse { header, kv: Some(kv) })).await.is_err() {
                return Ok(());
            }
            let mut changes = self.follow(key, bytes::Bytes::new(), from)?;
            'leads: loop {
                let (header, events) = changes.next().await?;
                for event in events {
                    if event.r#type() == EventType::Delete {
                        break 'leads;
                    }
                    let answer = LeaderResponse { header, kv: event.kv };
                    if answers.send(Ok(answer)).await.is_err() {
                        return Ok(());
                    }
                }
            }
        }
    }
}

#[async_trait]
impl Election for Etcd {
    async fn campaign(
        &self,
        request: Request<CampaignRequest>,
    ) -> Result<Response<CampaignResponse>, Status> {
        let (caller, CampaignRequest { name, lease, value }) = Caller::of(self, request).await?;
        let prefix = [&name[..], b"/"].concat();
        let lease = caller.lease(lease).await?;
        let place = caller.enqueue(&prefix, lease, value.clone()).await?;
        let waiting = Waiting::new(&caller, &place);
        let key = place.key.clone();
        let leader = LeaderKey { name, key, rev: place.revision, lease };
        let mut header = place.header;
        if place.found.is_some_and(|found| found.value != value) {
            header = caller.proclaim(leader.clone(), value).await?.header;
        }
        let turn = caller.wait_for_turn(&prefix, place.revision).await?;
        waiting.keep();
        let header = turn.or(header);
        Ok(Response::new(CampaignResponse { header, leader: Some(leader) }))
    }

    async fn proclaim(
        &self,
        request: Request<ProclaimRequest>,
    ) -> Result<Response<ProclaimResponse>, Status> {
        let (caller, ProclaimRequest { leader, value }) = Caller::of(self, request).await?;
        let leader = leader.ok_or_else(|| Status::unknown(MISSING_LEADER))?;
        caller.proclaim(leader, value).await.map(Response::new)
    }

    async fn leader(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<LeaderResponse>, Status> {
        let (caller, LeaderRequest { name }) = Caller::of(self, request).await?;
        let first = caller.first(&[&name[..], b"/"].concat()).await?;
        let kv = first.kvs.into_iter().next().ok_or_else(|| Status::unknown(NO_LEADER))?;
        Ok(Response::new(LeaderResponse { header: first.header, kv: Some(kv) }))
    }

    type ObserveStream = ReceiverStream<Result<LeaderResponse, Status>>;

    async fn observe(
        &self,
        request: Request<LeaderRequest>,
    ) -> Result<Response<Self::ObserveStream>, Status> {
        let (caller, LeaderRequest { name }) = Caller::of(self, request).await?;
        let (answers, stream) = mpsc::channel(ANNOUNCEMENTS_MAX);
        // Ends with the client's stream, or with the node.
        tokio::spawn(async move {
            let prefix = [&name[..], b"/"].concat();
            let failed = tokio::select! {
                ended = caller.observe(&prefix, &answers) => ended.err(),
                () = answers.closed() => None,
            };
            if let Some(status) = failed {
                // The client may be gone as well.
                answers.send(Err(status)).await.ok();
            }
        });
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn resign(
        &self,
        request: Request<ResignRequest>,
    ) -> Result<Response<ResignResponse>, Status> {
        let (caller, ResignRequest { leader }) = Caller::of(self, request).await?;
        let leader = leader.ok_or_else(|| Status::unknown(MISSING_LEADER))?;
        let answer = caller.leave(&leader.key, leader.rev).await?;
        Ok(Response::new(ResignResponse { header: answer.header }))
    }
}
