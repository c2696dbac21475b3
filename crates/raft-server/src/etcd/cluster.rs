//! Cluster: who belongs to it. Headers of these answers carry no revision.

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
        let clients = match info.client_addresses.as_slice() {
            // It will say so when it starts.
            [] if status.is_awaited() => &[],
            [] => std::slice::from_ref(&info.peer_address),
            clients => clients,
        };
        Member {
            id: status.known_as().0,
            name: info.name.clone(),
            peer_ur_ls: vec![format!("{}{}", self.peer_scheme(), info.peer_address)],
            client_ur_ls: clients.iter().map(|address| url(address)).collect(),
            // Whoever is to get a vote by itself was not added as a learner.
            is_learner: !status.voter && !status.auto_promote,
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

    /// Refuses another voter while too many that were added have yet to start, by etcd's arithmetic. Nothing would be at
    /// risk: none of them counts before it has caught up.
    fn check_addition(&self) -> Result<(), Status> {
        let status = self.node.status();
        let voters = || status.members.iter().filter(|member| member.voter || member.auto_promote);
        let (members, awaited) = (voters().count(), voters().filter(|m| m.is_awaited()).count());
        if may_add_voter(members - awaited, awaited) {
            return Ok(());
        }
        tracing::warn!(
            "refused to add a voter: {awaited} of the {members} that there are have yet to start, and with one more a \
             quorum would take {}",
            quorum(members + 1)
        );
        Err(Status::failed_precondition(errors::NOT_ENOUGH))
    }

    /// Refuses to remove a voter that is connected when those that would be left and are connected are no quorum.
    /// Which are connected is what this member sees.
    fn check_removal(&self, id: MemberId) -> Result<(), Status> {
        let status = self.node.status();
        let voters = || status.members.iter().filter(|member| member.voter);
        let node = status.find(id);
        let Some(target) = voters().find(|member| Some(member.node) == node) else {
            return Ok(());
        };
        let left = voters().count() - 1;
        let connected =
            voters().filter(|member| member.connected && member.node != target.node).count();
        let quorum = quorum(left);
        if target.connected && left > 0 && connected < quorum {
            tracing::warn!(
                "refused to remove member {id}: of the {left} voters that would be left, {connected} are connected, \
                 and a quorum takes {quorum}"
            );
            return Err(Status::unavailable("etcdserver: unhealthy cluster"));
        }
        Ok(())
    }
}

const fn quorum(members: usize) -> usize {
    members / 2 + 1
}

/// Whether those that have started would be a quorum, with all that were added and one more. A second member may be
/// added to a first.
const fn may_add_voter(started: usize, awaited: usize) -> bool {
    started >= quorum(started + awaited + 1) || (started == 1 && awaited == 0)
}

/// A URL, which an address may be already: those of clients that speak TLS are.
fn url(address: &str) -> String {
    if address.contains("://") { address.to_owned() } else { format!("http://{address}") }
}

/// The one address of a request's peer URLs. Members speak TLS with one another, or do not, whatever a URL says; as in
/// etcd, it may say the other.
fn peer_address(urls: &[String]) -> Result<String, Status> {
    let invalid = || Status::invalid_argument("etcdserver: given member URLs are invalid");
    let [url] = urls else {
        return Err(invalid());
    };
    let address = url.strip_prefix("http://").or_else(|| url.strip_prefix("https://"));
    let address = address.ok_or_else(invalid)?;
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
        let address = &peer_address(&request.peer_ur_ls)?;
        if self.member_at(address).is_some() {
            return Err(Status::failed_precondition("etcdserver: Peer URLs already exists"));
        }
        if request.is_learner && self.learners() >= self.settings.learners_max {
            return Err(Status::failed_precondition(
                "etcdserver: too many learner members in cluster",
            ));
        }
        if !request.is_learner {
            self.check_addition()?;
        }
        // Its name and client addresses are its own to announce. It may start before or after this: a voter is first a
        // learner, and the leader promotes it by itself once it has caught up.
        let info = MemberInfo { peer_address: address.to_owned(), ..MemberInfo::default() };
        let added = self.node.members().invite(info, !request.is_learner).await;
        let id = added.map_err(|error| errors::of_admin(&error))?;
        let members = self.members();
        let member = members.iter().find(|member| member.id == id.0).cloned();
        Ok(Response::new(MemberAddResponse {
            header: Some(self.header(0)),
            member: member.or_else(|| self.member_at(address)),
            members,
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
        let address = &peer_address(&request.peer_ur_ls)?;
        let status = self.node.status();
        let node = status.find(MemberId(request.id));
        let known = status.members.iter().find(|member| Some(member.node) == node);
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

    /// As in etcd's own table (server/etcdserver/api/membership: started voters, others, whether one more may come).
    #[test]
    fn voters_are_added_while_a_quorum_has_started() {
        for (started, awaited, may) in [
            (1, 0, true),
            (1, 1, false),
            (2, 0, true),
            (2, 1, false),
            (3, 0, true),
            (3, 1, true),
            (3, 2, false),
            (5, 3, true),
            (5, 4, false),
        ] {
            assert_eq!(may_add_voter(started, awaited), may, "{started} and {awaited}");
        }
    }

    #[test]
    fn peer_urls_are_one_http_address() {
        let address = |urls: &[&str]| {
            let urls: Vec<String> = urls.iter().map(|url| (*url).to_owned()).collect();
            peer_address(&urls).map_err(|status| status.message().to_owned())
        };
        assert_eq!(address(&["http://127.0.0.1:2380"]), Ok("127.0.0.1:2380".to_owned()));
        assert_eq!(address(&["https://127.0.0.1:2380"]), Ok("127.0.0.1:2380".to_owned()));
        assert_eq!(address(&["http://[::1]:2380/"]), Ok("[::1]:2380".to_owned()));
        for bad in [
            &[][..],
            &["127.0.0.1:2380"],
            &["unix://127.0.0.1:2380"],
            &["http://127.0.0.1"],
            &["http://:2380"],
            &["http://a b:1/x"],
            &["http://a:1", "http://b:1"],
        ] {
            assert_eq!(address(bad), Err("etcdserver: given member URLs are invalid".to_owned()));
        }
    }
}
