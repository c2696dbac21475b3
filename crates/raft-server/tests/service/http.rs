//! Plain HTTP: probes, metrics, web sockets.

use std::io::{Read as _, Write as _};
use std::net::TcpStream;

use raft_kv::proto::etcdserverpb::alarm_request::AlarmAction;
use raft_kv::proto::etcdserverpb::{AlarmRequest, AlarmType};
use raft_server::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use serde_json::{Value, json};

use crate::gateway::send;
use crate::support::{Members, PATIENCE, channel_to, put, range};

pub(crate) fn get(address: &str, path: &str) -> (u16, String) {
    let mut answer = send(address, "GET", path, "");
    let mut text = String::new();
    answer.reader.read_to_string(&mut text).unwrap();
    (answer.status, text)
}

/// The value of the first line of the page that begins with `name`.
fn metric(page: &str, name: &str) -> f64 {
    let line = page.lines().find(|line| line.starts_with(name));
    let line = line.unwrap_or_else(|| panic!("no {name} in\n{page}"));
    line.rsplit(' ').next().unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_say_what_is_wrong_in_etcds_form() {
    let mut members = Members::configure(3);
    // Those that need a leader are answered only after this when there is none.
    members.set("request_timeout: 1500.0");
    for index in 0..3 {
        members.start_one(index);
    }
    members.leader().await;
    let address = members.addresses[0].clone();
    let ok = |text: &str| (200, text.to_owned());
    assert_eq!(get(&address, "/livez"), ok("ok\n"));
    assert_eq!(get(&address, "/livez?verbose"), ok("[+]serializable_read ok\nok\n"));
    assert_eq!(get(&address, "/livez/serializable_read"), ok("ok\n"));
    assert_eq!(get(&address, "/livez/linearizable_read").0, 404);
    assert_eq!(get(&address, "/readyz"), ok("ok\n"));
    let all = "[+]data_corruption ok\n[+]serializable_read ok\n[+]linearizable_read ok\n[+]non_learner ok\nok\n";
    assert_eq!(get(&address, "/readyz?verbose"), ok(all));
    let fewer = "[+]data_corruption ok\n[+]serializable_read ok\nok\n";
    let excluded = "/readyz?verbose&exclude=linearizable_read&exclude=non_learner";
    assert_eq!(get(&address, excluded), ok(fewer));
    for check in ["data_corruption", "serializable_read", "linearizable_read", "non_learner"] {
        assert_eq!(get(&address, &format!("/readyz/{check}")), ok("ok\n"));
    }
    assert_eq!(get(&address, "/readyz/nothing").0, 404);
    for path in ["/health", "/version", "/livez", "/readyz", "/metrics"] {
        assert_eq!(send(&address, "POST", path, "").status, 405, "{path}");
    }

    let alarm = |action: AlarmAction, alarm: AlarmType| {
        let mut client = MaintenanceClient::new(channel_to(&members.addresses[0]));
        let request = AlarmRequest { action: action.into(), member_id: 7, alarm: alarm.into() };
        async move { client.alarm(request).await.unwrap() }
    };
    let healthy = (200, r#"{"health":"true","reason":""}"#.to_owned());
    assert_eq!(get(&address, "/health"), healthy);
    alarm(AlarmAction::Activate, AlarmType::Nospace).await;
    let full = (503, r#"{"health":"false","reason":"ALARM NOSPACE"}"#.to_owned());
    assert_eq!(get(&address, "/health"), full);
    assert_eq!(get(&address, "/health?serializable=true"), full);
    assert_eq!(get(&address, "/health?exclude=NOSPACE"), healthy);
    alarm(AlarmAction::Activate, AlarmType::Corrupt).await;
    assert_eq!(get(&address, "/health?exclude=NOSPACE").1, full.1.replace("NOSPACE", "CORRUPT"));
    let corrupt = "[-]data_corruption failed: alarm activated: CORRUPT\n".to_owned();
    assert_eq!(get(&address, "/readyz/data_corruption"), (503, corrupt));
    assert_eq!(get(&address, "/livez").0, 200);
    alarm(AlarmAction::Deactivate, AlarmType::Corrupt).await;
    alarm(AlarmAction::Deactivate, AlarmType::Nospace).await;

    // Without a quorum the member lives and is not ready.
    members.kill9(1);
    members.kill9(2);
    let (status, text) = get(&address, "/readyz/linearizable_read");
    assert_eq!(status, 503);
    assert!(text.starts_with("[-]linearizable_read failed: range error: etcdserver: "), "{text}");
    assert_eq!(get(&address, "/health").0, 503);
    assert_eq!(get(&address, "/health?serializable=true"), healthy);
    assert_eq!(get(&address, "/livez?verbose"), ok("[+]serializable_read ok\nok\n"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_have_etcds_names_and_count() {
    let members = Members::start(3);
    let leader = members.leader().await;
    let address = &members.addresses[leader];
    for n in 0..10 {
        put(address, &format!("k{n}"), &"v".repeat(1000)).await.unwrap();
    }
    assert!(put(address, "", "v").await.is_err());
    // Two of three were enough for the writes: now they are with everybody.
    for member in &members.addresses {
        assert_eq!(range(member, "k9", "").await.unwrap().count, 1);
    }
    get(address, "/health");
    let (status, page) = get(address, "/metrics");
    assert_eq!(status, 200);
    for (name, kind) in [
        ("etcd_server_has_leader", "gauge"),
        ("etcd_server_is_leader", "gauge"),
        ("etcd_server_is_learner", "gauge"),
        ("etcd_server_leader_changes_seen_total", "counter"),
        ("etcd_server_proposals_failed_total", "counter"),
        ("etcd_server_proposals_committed_total", "gauge"),
        ("etcd_server_proposals_applied_total", "gauge"),
        ("etcd_server_proposals_pending", "gauge"),
        ("etcd_server_quota_backend_bytes", "gauge"),
        ("etcd_server_health_success", "counter"),
        ("etcd_server_health_failures", "counter"),
        ("etcd_server_version", "gauge"),
        ("etcd_cluster_version", "gauge"),
        ("etcd_server_id", "gauge"),
        ("etcd_mvcc_db_total_size_in_bytes", "gauge"),
        ("etcd_mvcc_db_total_size_in_use_in_bytes", "gauge"),
        ("etcd_disk_wal_fsync_duration_seconds", "histogram"),
        ("etcd_disk_backend_commit_duration_seconds", "histogram"),
        ("etcd_network_peer_round_trip_time_seconds", "histogram"),
        ("etcd_network_peer_sent_bytes_total", "counter"),
        ("etcd_network_peer_received_bytes_total", "counter"),
        ("etcd_network_peer_sent_failures_total", "counter"),
        ("etcd_network_active_peers", "gauge"),
        ("etcd_network_client_grpc_sent_bytes_total", "counter"),
        ("etcd_network_client_grpc_received_bytes_total", "counter"),
        ("grpc_server_started_total", "counter"),
        ("grpc_server_handled_total", "counter"),
        ("grpc_server_handling_seconds", "histogram"),
        ("process_resident_memory_bytes", "gauge"),
        ("process_open_fds", "gauge"),
        ("rusty_raft_term", "gauge"),
        ("rusty_raft_damage_found_total", "counter"),
        ("rusty_raft_damage_repaired_total", "counter"),
        ("rusty_raft_damage_open", "gauge"),
        ("rusty_raft_folders_set_aside", "gauge"),
    ] {
        let line = format!("# TYPE {name} {kind}\n");
        assert!(page.contains(&line), "no {line:?} in\n{page}");
    }
    let is = |name: &str, value: f64| assert_eq!(metric(&page, name), value, "{name}");
    is("etcd_server_has_leader ", 1.0);
    is("etcd_server_is_leader ", 1.0);
    is("etcd_server_health_success ", 1.0);
    is("etcd_server_proposals_pending ", 0.0);
    is("etcd_mvcc_db_total_size_in_bytes ", 10.0 * (64.0 + 2.0 + 1000.0));
    is("etcd_server_version{server_version=\"3.7.0\"}", 1.0);
    let put = "grpc_method=\"Put\",grpc_service=\"etcdserverpb.KV\",grpc_type=\"unary\"}";
    is(&format!("grpc_server_started_total{{{put}"), 11.0);
    is(&format!("grpc_server_handled_total{{grpc_code=\"OK\",{put}"), 10.0);
    is(&format!("grpc_server_handled_total{{grpc_code=\"InvalidArgument\",{put}"), 1.0);
    is(&format!("grpc_server_handling_seconds_count{{{put}"), 11.0);
    let more = |name: &str, value: f64| {
        let found = metric(&page, name);
        assert!(found >= value, "{name} is {found}, expected {value} at least");
    };
    more("etcd_network_client_grpc_received_bytes_total ", 10_000.0);
    more("etcd_network_client_grpc_sent_bytes_total ", 100.0);
    more("etcd_server_leader_changes_seen_total ", 1.0);
    more("etcd_server_proposals_committed_total ", 10.0);
    more("etcd_disk_wal_fsync_duration_seconds_count ", 10.0);
    more("etcd_network_peer_sent_bytes_total{", 10_000.0);
    more("etcd_network_peer_received_bytes_total{", 100.0);
    more("process_resident_memory_bytes ", 1e6);
    assert_eq!(page.matches("\netcd_network_active_peers{").count(), 2);
}

/// A web socket by hand: masked frames of less than 126 bytes out, frames in.
struct Socket(TcpStream);

impl Socket {
    fn open(address: &str, path: &str) -> Self {
        let mut stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        write!(
            stream,
            "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\
             Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
        )
        .unwrap();
        let mut head = Vec::new();
        while !head.ends_with(b"\r\n\r\n") {
            let mut byte = [0];
            stream.read_exact(&mut byte).unwrap();
            head.push(byte[0]);
        }
        let head = String::from_utf8(head).unwrap().to_ascii_lowercase();
        assert!(head.starts_with("http/1.1 101"), "{head}");
        // The answer to the key above that RFC 6455 gives as its example.
        assert!(head.contains("s3pplmbitxaq9kygzzhzrbk+xoo="), "{head}");
        Self(stream)
    }

    fn send(&mut self, message: &Value) {
        let text = message.to_string();
        let mut frame = vec![0x81, 0x80 | u8::try_from(text.len()).unwrap()];
        assert!(text.len() < 126);
        frame.extend([0, 0, 0, 0]);
        frame.extend(text.as_bytes());
        self.0.write_all(&frame).unwrap();
    }

    fn next(&mut self) -> Value {
        let mut head = [0; 2];
        self.0.read_exact(&mut head).unwrap();
        assert_eq!(head[0], 0x81, "one whole text message");
        let length = match head[1] {
            126 => {
                let mut length = [0; 2];
                self.0.read_exact(&mut length).unwrap();
                usize::from(u16::from_be_bytes(length))
            }
            length => usize::from(length),
        };
        let mut text = vec![0; length];
        self.0.read_exact(&mut text).unwrap();
        serde_json::from_slice(&text).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_over_a_web_socket() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    let mut socket = Socket::open(address, "/v3/watch");
    socket.send(&json!({"create_request": {"key": "aw=="}}));
    assert_eq!(socket.next()["result"]["created"], true);
    put(address, "k", "v").await.unwrap();
    assert_eq!(socket.next()["result"]["events"][0]["kv"]["value"], "dg==");
    // The socket still takes requests.
    socket.send(&json!({"progress_request": {}}));
    assert_eq!(socket.next()["result"]["watch_id"], "-1");
    socket.send(&json!({"cancel_request": {"watch_id": 0}}));
    assert_eq!(socket.next()["result"]["canceled"], true);
    socket.send(&json!({"create_request": 1}));
    assert_eq!(socket.next()["error"]["grpc_code"], 3);
    assert_eq!(send(address, "GET", "/v3/watch", "").status, 405);
}
