//! Settings that few need, in real processes.

use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{
    Members, Process, cluster_command, free_ports, get, program, put, until_serving,
};

const SECRET: &str = "cluster_secret: \"nobody else knows this\"";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_meet_at_their_own_addresses_and_only_with_the_secret() {
    let mut members = Members::configure(3);
    let first = free_ports(3);
    let peers: Vec<String> = (first..first + 3).map(|port| format!("127.0.0.1:{port}")).collect();
    let plain = fs::read_to_string(members.config()).unwrap();
    let with = |more: &str| {
        plain.replace(
            "heartbeat_interval: 100",
            &format!("heartbeat_interval: 100, {more}, busy_poll: 0"),
        )
    };
    let with_peers = format!("peer_addresses: {peers:?}, log_segment_bytes: 1048576");
    fs::write(members.config(), with(&format!("{with_peers}, {SECRET}"))).unwrap();
    members.start_one(0);
    members.start_one(1);
    until_serving(&members.addresses[0]).await;
    put(&members.addresses[1], "k", "v").await.unwrap();
    // Where members come to, no client is served.
    assert!(put(&peers[0], "k", "w").await.is_err());

    fs::write(members.config(), with(&with_peers)).unwrap();
    members.start_one(2);
    members.process(2).line_with("no connection");
    members.kill9(2);
    fs::write(members.config(), with(&format!("{with_peers}, {SECRET}"))).unwrap();
    members.start_one(2);
    until_serving(&members.addresses[2]).await;
    assert_eq!(get(&members.addresses[2], "k").await.unwrap().as_deref(), Some("v"));
    let log = members.folder.path().join("node_2_data.raft/0000000001.log");
    assert_eq!(fs::metadata(log).unwrap().len(), 1 << 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cluster_hands_the_settings_on_and_keeps_the_secret() {
    let folder = crate::support::folder();
    let (_, address) = cluster_command(folder.path(), 3);
    let file = folder.path().join("cluster_config.ron");
    let text = fs::read_to_string(&file).unwrap();
    fs::write(
        &file,
        text.replace("port_range_start", &format!("{SECRET}, busy_poll: 0, port_range_start")),
    )
    .unwrap();
    let mut command = program();
    command.arg("cluster").arg(&file).arg("3");
    let mut cluster = Process::start(command);
    cluster.line_with("  leader  n");
    put(&address, "k", "v").await.unwrap();
    let written = folder.path().join("raft_data/config.ron");
    assert!(fs::read_to_string(&written).unwrap().contains(SECRET));
    assert_eq!(fs::metadata(&written).unwrap().permissions().mode() & 0o777, 0o600);
    cluster.signal(Signal::TERM);
    assert_eq!(cluster.ended_within(Duration::from_secs(2)).code(), Some(0));
}
