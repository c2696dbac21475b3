//! Asking members how they are, as `status` and `cluster` do.

use std::time::Duration;

use raft_kv::proto::etcdserverpb::{Member, MemberListRequest, StatusRequest, StatusResponse};
use tonic::transport::{Channel, Endpoint};

use crate::proto::etcdserverpb::cluster_client::ClusterClient;
use crate::proto::etcdserverpb::maintenance_client::MaintenanceClient;

/// How long a member may take to be reached and to answer.
const TIMEOUT: Duration = Duration::from_secs(2);

/// A member's account of itself.
///
/// # Errors
/// In words: why it cannot be had.
pub async fn status(address: &str) -> Result<StatusResponse, String> {
    let channel = connect(address).await?;
    let answer = MaintenanceClient::new(channel).status(StatusRequest {}).await;
    answer.map(tonic::Response::into_inner).map_err(|status| words(&status))
}

/// The members as the one at `address` knows them.
///
/// # Errors
/// In words: why it cannot be had.
pub async fn members(address: &str) -> Result<Vec<Member>, String> {
    let channel = connect(address).await?;
    let answer = ClusterClient::new(channel).member_list(MemberListRequest::default()).await;
    answer.map(|list| list.into_inner().members).map_err(|status| words(&status))
}

async fn connect(address: &str) -> Result<Channel, String> {
    let endpoint = Endpoint::from_shared(format!("http://{address}"))
        .map_err(|_| format!("{address:?} is no address"))?;
    let endpoint = endpoint.connect_timeout(TIMEOUT).timeout(TIMEOUT);
    endpoint.connect().await.map_err(|error| {
        let mut innermost: &dyn std::error::Error = &error;
        while let Some(source) = innermost.source() {
            innermost = source;
        }
        innermost.to_string()
    })
}

fn words(status: &tonic::Status) -> String {
    format!("{} ({:?})", status.message(), status.code())
}
