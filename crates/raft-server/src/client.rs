//! Asking members how they are, as `status` and `cluster` do.

use std::io;
use std::time::Duration;

use raft_kv::proto::etcdserverpb::{
    AuthenticateRequest, Member, MemberListRequest, StatusRequest, StatusResponse,
};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tonic::Request;
use tonic::transport::{Channel, Endpoint};

use crate::proto::etcdserverpb::auth_client::AuthClient;
use crate::proto::etcdserverpb::cluster_client::ClusterClient;
use crate::proto::etcdserverpb::maintenance_client::MaintenanceClient;

/// How long a member may take to be reached and to answer.
const TIMEOUT: Duration = Duration::from_secs(2);
/// Bytes of a page of metrics at most.
const PAGE_BYTES_MAX: u64 = 4 << 20;

/// A member's account of itself.
///
/// # Errors
/// In words: why it cannot be had.
pub async fn status(address: &str) -> Result<StatusResponse, String> {
    status_for(address, None).await
}

/// As [`status`], for whoever has a token of the cluster.
///
/// # Errors
/// In words: why it cannot be had.
pub async fn status_for(address: &str, token: Option<&str>) -> Result<StatusResponse, String> {
    let channel = connect(address).await?;
    let answer = MaintenanceClient::new(channel).status(by(token, StatusRequest {})?).await;
    answer.map(tonic::Response::into_inner).map_err(|status| words(&status))
}

/// Whether the member leads, and if so in which term. Asks for what everybody may know, also while authentication is on.
///
/// # Errors
/// In words: why it cannot be had.
pub async fn leads(address: &str) -> Result<Option<u64>, String> {
    let page = async {
        let mut stream = TcpStream::connect(address).await?;
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").await?;
        let mut page = String::new();
        stream.take(PAGE_BYTES_MAX).read_to_string(&mut page).await?;
        Ok(page)
    };
    let page: io::Result<String> =
        tokio::time::timeout(TIMEOUT, page).await.map_err(|_| "no answer in time")?;
    let page = page.map_err(|error| error.to_string())?;
    let value = |name: &str| {
        let line = page.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
        line.and_then(|value| value.trim().parse::<u64>().ok())
    };
    Ok(value("rusty_raft_term").filter(|_| value("etcd_server_is_leader") == Some(1)))
}

/// The members as the one at `address` knows them, for whoever has a token of the cluster if it wants one.
///
/// # Errors
/// In words: why it cannot be had.
pub async fn members(address: &str, token: Option<&str>) -> Result<Vec<Member>, String> {
    let channel = connect(address).await?;
    let request = by(token, MemberListRequest::default())?;
    let answer = ClusterClient::new(channel).member_list(request).await;
    answer.map(|list| list.into_inner().members).map_err(|status| words(&status))
}

/// A token for `user`, written as name, colon, password. Every member of the cluster takes it.
///
/// # Errors
/// In words: why it cannot be had.
pub async fn log_in(address: &str, user: &str) -> Result<String, String> {
    let (name, password) = user.split_once(':').ok_or("a user is written as name:password")?;
    let request = AuthenticateRequest { name: name.to_owned(), password: password.to_owned() };
    let answer = AuthClient::new(connect(address).await?).authenticate(request).await;
    answer.map(|answer| answer.into_inner().token).map_err(|status| words(&status))
}

/// A request of whoever has this token.
fn by<T>(token: Option<&str>, message: T) -> Result<Request<T>, String> {
    let mut request = Request::new(message);
    if let Some(token) = token {
        let token = token.parse().map_err(|_| "the token is no text")?;
        request.metadata_mut().insert("token", token);
    }
    Ok(request)
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
