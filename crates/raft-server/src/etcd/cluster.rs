//! Cluster: who belongs to it. Headers of these answers carry no revision.

use std::time::Duration;

use raft::MemberInfo;
use raft::core::MemberId;
use raft::node::MemberStatus;
use raft_kv::proto::etcdserverpb::{
    Member, MemberAddRequest, MemberAddResponse, MemberListRequest, MemberListResponse,
    MemberPromoteRequest, MemberPromoteResponse, MemberRemoveRequest, MemberRemoveResponse,
    MemberUpdateRequest, MemberUpdateResponse,
};
use tonic::{Request, Response, Status, async_trait};

use super::{Etcd, errors};
use crate::config;
use crate::proto::etcdserverpb::cluster_server::Cluster;

/// How long a client that adds a voter waits for its vote; the promotion goes on without it.
const PROMOTION_PATIENCE: Duration = Duration::from_secs(2);

impl Etcd {
    pub(super) fn members(&self) -> Vec<Member> {
        self.node.status().members.iter().map(|it| self.member(it)).collect()
    }

    /// The member whose peers dial it at `address`.
    fn member_at(&self, address: &str) -> Option<Member> {
        let status = self.node.status();
        let found = status.members.iter().find(|member| member.info.peer_address == address);
        found.map(|it| self.member(it))
    }

    /// A member as clients see it.
    fn member(&self, status: &MemberStatus) -> Member {
        let info = &status.info;
        let clients = if info.client_addresses.is_empty() {
            std::slice::from_ref(&info.peer_address)
        } else {
            info.client_addresses.as_slice()
        };
        Member {
            id: status.node.member.0,
            name: info.name.clone(),
            peer_ur_ls: vec![format!("{}{}", self.peer_scheme(), info.peer_address)],
            client_ur_ls: clients.iter().map(|address| url(address)).collect(),
            is_learner: !status.voter,
        }
    }

    /// What members' URLs begin with.
    const fn peer_scheme(&self) -> &'static str {
        if self.settings.peers_secured { "https://" } else { "http://" }
    }

    /// Learners that stay such until somebody promotes them.
    fn learners(&self) -> usize {
        let status = self.node.status();
        status.members.iter().filter(|member| !member.voter && !member.auto_promote).count()
    }

    /// Refuses to remove a voter that is connected when those that would be left and are connected are no quorum.
    /// Which are connected is what this member sees.
    fn check_removal(&self, id: MemberId) -> Result<(), Status> {
        let status = self.node.status();
        let voters = || status.members.iter().filter(|member| member.voter);
        let Some(target) = voters().find(|member| member.node.member == id) else {
            return Ok(());
        };
        let left = voters().count() - 1;
        let connected =
            voters().filter(|member| member.connected && member.node.member != id).count();
        let quorum = left / 2 + 1;
        if target.connected && left > 0 && connected < quorum {
            tracing::warn!(
                "refused to remove member {id}: of the {left} voters that would be left, {connected} are connected, \
                 and a quorum takes {quorum}"
            );
            return Err(Status::unavailable("etcdserver: unhealthy cluster"));
        }
        Ok(())
    }

    /// Returns a while after a member at `address` is in the configuration, as a learner at least.
    async fn long_since_listed(&self, address: &str) {
        let mut watch = self.node.watch_status();
        let listed = watch.wait_for(|status| {
            status.members.iter().any(|member| member.info.peer_address == address)
        });
        if listed.await.is_err() {
            // The node is gone; whoever waits for the change itself hears of it.
            std::future::pending::<()>().await;
        }
        tokio::time::sleep(PROMOTION_PATIENCE).await;
    }
}

/// A URL, which an address may be already: those of clients that speak TLS are.
fn url(address: &str) -> String {
    if address.contains("://") { address.to_owned() } else { format!("http://{address}") }
}

/// The one address of a request's peer URLs.
fn peer_address(urls: &[String], scheme: &str) -> Result<String, Status> {
    let invalid = || Status::invalid_argument("etcdserver: given member URLs are invalid");
    let [url] = urls else {
        return Err(invalid());
    };
    let address = url.strip_prefix(scheme).ok_or_else(invalid)?;
    let address = address.strip_suffix('/').unwrap_or(address);
    config::check_syntax(address).map_err(|_| invalid())?;
    Ok(address.to_owned())
}

#[async_trait]
impl Cluster for Etcd {
    async fn member_list(
        &self,
        request: Request<MemberListRequest>,
    ) -> Result<Response<MemberListResponse>, Status> {
        // That it is linearizable, if it is to be, is a part of that.
        self.admit(request).await?;
        Ok(Response::new(MemberListResponse {
            header: Some(self.header(0)),
            members: self.members(),
        }))
    }

    async fn member_add(
        &self,
        request: Request<MemberAddRequest>,
    ) -> Result<Response<MemberAddResponse>, Status> {
        let (request, _) = self.admit(request).await?;
        let address = &peer_address(&request.peer_ur_ls, self.peer_scheme())?;
        if self.member_at(address).is_some() {
            return Err(Status::failed_precondition("etcdserver: Peer URLs already exists"));
        }
        if request.is_learner && self.learners() >= self.settings.learners_max {
            return Err(Status::failed_precondition(
                "etcdserver: too many learner members in cluster",
            ));
        }
        // Its name and client addresses are its own to announce.
        let info = MemberInfo { peer_address: address.to_owned(), ..MemberInfo::default() };
        let members = self.node.members();
        // A voter is first a learner that the leader promotes by itself, which takes as long as it has to catch
        // up: a client need not wait for all of it.
        let add = async {
            if request.is_learner {
                members.add_learner(info).await
            } else {
                members.add(info).await
            }
        };
        tokio::select! {
            added = add => added.map_err(|error| errors::of_admin(&error))?,
            () = self.long_since_listed(address) => {}
        }
        Ok(Response::new(MemberAddResponse {
            header: Some(self.header(0)),
            member: self.member_at(address),
            members: self.members(),
        }))
    }

    async fn member_remove(
        &self,
        request: Request<MemberRemoveRequest>,
    ) -> Result<Response<MemberRemoveResponse>, Status> {
        let (request, _) = self.admit(request).await?;
        let id = MemberId(request.id);
        self.check_removal(id)?;
        self.node.members().remove(id).await.map_err(|error| errors::of_admin(&error))?;
        Ok(Response::new(MemberRemoveResponse {
            header: Some(self.header(0)),
            members: self.members(),
        }))
    }

    async fn member_update(
        &self,
        request: Request<MemberUpdateRequest>,
    ) -> Result<Response<MemberUpdateResponse>, Status> {
        let (request, _) = self.admit(request).await?;
        let address = &peer_address(&request.peer_ur_ls, self.peer_scheme())?;
        let status = self.node.status();
        let known = status.members.iter().find(|member| member.node.member.0 == request.id);
        let Some(known) = known else {
            return Err(Status::not_found("etcdserver: member not found"));
        };
        if self.member_at(address).is_some_and(|other| other.id != request.id) {
            return Err(Status::failed_precondition("etcdserver: Peer URLs already exists"));
        }
        let info =
            MemberInfo { peer_address: address.to_owned(), ..MemberInfo::clone(&known.info) };
        let updated = self.node.members().update(known.node.member, &info).await;
        updated.map_err(|error| errors::of_admin(&error))?;
        Ok(Response::new(MemberUpdateResponse {
            header: Some(self.header(0)),
            members: self.members(),
        }))
    }

    async fn member_promote(
        &self,
        request: Request<MemberPromoteRequest>,
    ) -> Result<Response<MemberPromoteResponse>, Status> {
        let (request, _) = self.admit(request).await?;
        let id = MemberId(request.id);
        self.node.members().promote(id).await.map_err(|error| errors::of_admin(&error))?;
        Ok(Response::new(MemberPromoteResponse {
            header: Some(self.header(0)),
            members: self.members(),
        }))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peer_urls_are_one_http_address() {
        let address = |urls: &[&str]| {
            let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
            peer_address(&urls, "http://").map_err(|status| status.message().to_owned())
        };
        assert_eq!(address(&["http://127.0.0.1:2380"]), Ok("127.0.0.1:2380".to_owned()));
        assert_eq!(address(&["http://[::1]:2380/"]), Ok("[::1]:2380".to_owned()));
        for bad in [
            &[][..],
            &["127.0.0.1:2380"],
            &["http://127.0.0.1"],
            &["http://:2380"],
            &["http://a b:1/x"],
            &["http://a:1", "http://b:1"],
        ] {
            assert_eq!(address(bad), Err("etcdserver: given member URLs are invalid".to_owned()));
        }
    }
}
