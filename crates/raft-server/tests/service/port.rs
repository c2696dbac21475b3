//! The one port: whoever sends nonsense is cut off, everyone else is served.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use raft_server::proto::health::HealthCheckRequest;
use raft_server::proto::health::health_check_response::ServingStatus;
use raft_server::proto::health::health_client::HealthClient;
use tonic::Code;

use crate::support::{Members, PATIENCE, Process, channel_to, get, put, until_serving};

/// Sends `bytes` and returns all that comes back until the other side closes.
fn exchange(address: &str, bytes: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    // The other side may close before it has read everything.
    stream.write_all(bytes).ok();
    let mut answer = Vec::new();
    if let Err(error) = stream.read_to_end(&mut answer) {
        assert_eq!(error.kind(), std::io::ErrorKind::ConnectionReset, "never closed");
    }
    String::from_utf8_lossy(&answer).into_owned()
}

/// One HTTP/1 request; status line and body.
fn http(address: &str, method: &str, path: &str) -> (String, String) {
    let request = format!("{method} {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n");
    let answer = exchange(address, request.as_bytes());
    let (head, body) = answer.split_once("\r\n\r\n").unwrap();
    (head.lines().next().unwrap().to_owned(), body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn plain_http_is_answered() {
    let members = Members::start(1);
    members.leader().await;
    let address = members.addresses[0].clone();
    let (status, body) = http(&address, "GET", "/health");
    assert_eq!(
        (status.as_str(), body.as_str()),
        ("HTTP/1.1 200 OK", r#"{"health":"true","reason":""}"#)
    );
    assert!(http(&address, "GET", "/health?serializable=true").0.contains("200"));
    assert!(http(&address, "POST", "/health").0.contains("405"));
    let (_, body) = http(&address, "GET", "/version");
    let version: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(version["etcdserver"], "3.7.0");
    assert_eq!(version["etcdcluster"], "3.7.0");
    assert_eq!(http(&address, "GET", "/livez").1, "ok\n");
    assert_eq!(http(&address, "GET", "/readyz").1, "ok\n");
    let (status, body) = http(&address, "GET", "/nothing/here");
    assert!(status.contains("404"), "{status}");
    let error: serde_json::Value = serde_json::from_str(&body).unwrap();
    assert_eq!(error["code"], 5);

    let mut health = HealthClient::new(channel_to(&address));
    let ask = |service: &str| HealthCheckRequest { service: service.to_owned() };
    for service in ["", "etcdserverpb.KV"] {
        let answer = health.check(ask(service)).await.unwrap().into_inner();
        assert_eq!(answer.status, i32::from(ServingStatus::Serving));
    }
    assert_eq!(health.check(ask("nobody")).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn services_that_do_not_exist_are_unimplemented() {
    let members = Members::start(1);
    let mut grpc = tonic::client::Grpc::new(channel_to(&members.addresses[0]));
    grpc.ready().await.unwrap();
    for path in ["/etcdserverpb.Nobody/Range", "/etcdserverpb.KV/Nothing"] {
        let codec = tonic_prost::ProstCodec::<HealthCheckRequest, HealthCheckRequest>::default();
        let request = tonic::Request::new(HealthCheckRequest::default());
        let answer = grpc.unary(request, path.parse().unwrap(), codec).await;
        assert_eq!(answer.unwrap_err().code(), Code::Unimplemented, "{path}");
        grpc.ready().await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nonsense_closes_its_own_connection_and_touches_nothing_else() {
    let mut members = Members::start(3);
    members.leader().await;
    let address = members.addresses[0].clone();
    put(&address, "k", "before").await.unwrap();

    let mut flood = vec![b'A'; 1 << 20];
    flood.splice(..0, *b"GET / HTTP/1.1\r\nx: ");
    let mut preface_then_noise = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    preface_then_noise.extend([0xffu8; 512]);
    let mut pings = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\x04\0\0\0\0\0".to_vec();
    pings.extend(b"\0\0\x08\x06\0\0\0\0\0--------".repeat(200_000));
    let peer: Vec<u8> =
        (0..=255u8).filter(|byte| raft::transport::first_byte_is_peer(*byte)).collect();
    let mut peer_noise = peer.clone();
    peer_noise.extend([0xa5u8; 4096]);
    let cases: [(&str, &[u8]); 9] = [
        ("noise", &[0u8; 64]),
        ("more noise", &[0xff; 64]),
        ("no HTTP", b"hello there\r\n\r\n"),
        ("a TLS record", &[0x16, 3, 1, 0, 5, 1, 0, 0, 1, 0]),
        ("a head without an end", &flood),
        ("HTTP/2 with noise", &preface_then_noise),
        ("a broken HTTP/2 preface", b"PRI * HTTP/2.0\r\n\r\nSN\r\n\r\n"),
        ("too many pings", &pings),
        ("a peer with noise", &peer_noise),
    ];
    for (name, bytes) in cases {
        exchange(&address, bytes);
        assert_eq!(get(&address, "k").await.unwrap().as_deref(), Some("before"), "after {name}");
    }
    put(&address, "k", "after").await.unwrap();
    for index in 0..3 {
        assert!(members.process(index).child.try_wait().unwrap().is_none(), "member {index} died");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_want_of_file_descriptors_is_survived() {
    let mut members = Members::configure(1);
    let address = members.addresses[0].clone();
    let node = members.command(0);
    // The shell lowers the limit for the member alone.
    let mut command = Command::new("sh");
    command.env_remove("RUST_LOG").args(["-c", "ulimit -n 64; exec \"$0\" \"$@\""]);
    command.arg(node.get_program()).args(node.get_args());
    let mut member = Process::start(command);
    member.line_with("serves clients at");
    until_serving(&address).await;
    let crowd: Vec<TcpStream> = (0..64).map(|_| TcpStream::connect(&address).unwrap()).collect();
    member.line_with("cannot accept connections");
    drop(crowd);
    put(&address, "k", "v").await.unwrap();
    members.processes[0] = Some(member);
    assert_eq!(members.leader().await, 0);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn silent_connections_take_no_places_from_others() {
    let members = Members::start(1);
    members.leader().await;
    let address = members.addresses[0].clone();
    // More than one address may hold without a word; the surplus is closed, and so are these after a while.
    let silent: Vec<TcpStream> = (0..64).map(|_| TcpStream::connect(&address).unwrap()).collect();
    let mut surplus = TcpStream::connect(&address).unwrap();
    surplus.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut byte = [0u8; 1];
    assert!(matches!(surplus.read(&mut byte), Ok(0) | Err(_)), "one too many is closed");
    for mut stream in silent {
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        assert_eq!(stream.read(&mut byte).unwrap(), 0, "a silent connection is closed in the end");
    }
    put(&address, "k", "v").await.unwrap();
}
