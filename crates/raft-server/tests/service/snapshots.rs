//! Maintenance.Snapshot: a file that etcd's own tools take.

use std::path::Path;
use std::process::Command;

use raft_kv::proto::etcdserverpb::SnapshotRequest;
use raft_server::proto::etcdserverpb::maintenance_client::MaintenanceClient;

use crate::support::{Members, channel_to, folder, put};

/// A tool, as operators use it; what it says on either output.
fn tool(folder: &Path, name: &str, words: &[&str]) -> String {
    let output = Command::new(name)
        .env("ETCDCTL_API", "3")
        .current_dir(folder)
        .args(words)
        .output()
        .unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{name} {words:?}: {text}");
    text
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stream_says_what_is_left_and_ends_with_a_digest() {
    let members = Members::start(1);
    members.leader().await;
    let address = &members.addresses[0];
    for index in 0..20 {
        put(address, &format!("k{index}"), &"v".repeat(10_000)).await.unwrap();
    }
    let mut client = MaintenanceClient::new(channel_to(address));
    let mut stream = client.snapshot(SnapshotRequest {}).await.unwrap().into_inner();
    let (mut parts, mut left) = (Vec::new(), Vec::new());
    while let Some(part) = stream.message().await.unwrap() {
        parts.push(part.blob);
        left.push(part.remaining_bytes);
    }
    let digest = parts.pop().unwrap();
    assert_eq!((digest.len(), left.pop()), (32, Some(0)));
    assert_eq!(left.last(), Some(&0));
    let bytes: usize = parts.iter().map(bytes::Bytes::len).sum();
    assert_eq!(bytes % 512, 0);
    assert!(bytes > 200_000 && parts[0].len() == 32 << 10, "{bytes}");
    assert!(left.windows(2).all(|pair| pair[0] > pair[1]), "{left:?}");
    use sha2::Digest as _;
    assert_eq!(digest[..], sha2::Sha256::digest(parts.concat())[..]);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_etcdctl_saves_and_restores_it() {
    if crate::etcdctl::is_missing() {
        return;
    }
    let members = Members::start(1);
    members.leader().await;
    let folder = folder();
    let endpoints = format!("--endpoints={}", members.addresses[0]);
    let ctl = |words: &[&str]| {
        let words: Vec<&str> =
            std::iter::once(endpoints.as_str()).chain(words.iter().copied()).collect();
        tool(folder.path(), "etcdctl", &words)
    };
    for index in 0..300 {
        put(&members.addresses[0], &format!("k{:03}", index % 200), "v").await.unwrap();
    }
    ctl(&["del", "k000"]);
    let granted = ctl(&["lease", "grant", "1000"]);
    let lease = granted.split_whitespace().nth(1).unwrap();
    ctl(&["put", "leased", "x", "--lease", lease]);
    ctl(&["user", "add", "alice:secret"]);
    ctl(&["role", "add", "hers"]);
    ctl(&["role", "grant-permission", "hers", "readwrite", "a/", "--prefix"]);
    ctl(&["compact", "250"]);
    ctl(&["snapshot", "save", "saved.db"]);
    let status = ctl(&["snapshot", "status", "saved.db", "-w", "json"]);
    // 300 puts, a delete and a put after the empty store's revision.
    assert!(status.contains("\"revision\":303"), "{status}");
    ctl(&["snapshot", "restore", "saved.db", "--data-dir", "restored"]);
    assert!(folder.path().join("restored/member/snap/db").is_file());
}
