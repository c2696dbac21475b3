//! From etcd to here and back: import, export, `snapshot restore`, and `verify` of both ends.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};

use raft_kv::proto::etcdserverpb::{
    CompactionRequest, DeleteRangeRequest, HashKvRequest, LeaseGrantRequest,
    LeaseTimeToLiveRequest, PutRequest, RangeRequest, RequestOp, TxnRequest, request_op,
};
use raft_kv::proto::mvccpb::KeyValue;
use raft_server::proto::etcdserverpb::lease_client::LeaseClient;
use raft_server::proto::etcdserverpb::maintenance_client::MaintenanceClient;
use rustix::process::Signal;

use crate::support::{
    Members, PATIENCE, Process, channel_to, contents, folder, free_ports, get, kv, program, put,
    until_serving,
};

const READY: &str = "ready to serve client requests";

fn run(command: &mut Command) -> (i32, String) {
    let Output { status, stdout, stderr } = command.output().unwrap();
    (status.code().unwrap(), String::from_utf8([stdout, stderr].concat()).unwrap())
}

#[track_caller]
fn says(command: &mut Command) -> String {
    let (code, text) = run(command);
    assert_eq!(code, 0, "{command:?}: {text}");
    text
}

/// This program, in a folder.
fn here(folder: &Path, words: &[&str]) -> Command {
    let mut command = program();
    command.current_dir(folder).args(words);
    command
}

fn etcdctl(folder: &Path, words: &[&str]) -> Command {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").current_dir(folder).args(words);
    command
}

/// A real etcd with its data in `folder`/`name`; its clients' address.
fn etcd(folder: &Path, name: &str) -> (Process, String) {
    let port = free_ports(2);
    let client = format!("http://127.0.0.1:{port}");
    let peer = format!("http://127.0.0.1:{}", port + 1);
    let mut command = Command::new("etcd");
    command.current_dir(folder).args(["--data-dir", name, "--listen-client-urls", &client]);
    command.args(["--advertise-client-urls", &client, "--listen-peer-urls", &peer]);
    let mut process = Process::start(command);
    process.line_with(READY);
    (process, format!("127.0.0.1:{port}"))
}

fn etcd_is_missing() -> bool {
    let missing = Command::new("etcd").arg("--version").output().is_err();
    if missing {
        eprintln!(
            "NOTICE: no etcd on the PATH: this test did nothing (Debian: apt install etcd-server)"
        );
    }
    missing || crate::etcdctl::is_missing()
}

/// Puts as one revision.
async fn put_together(address: &str, pairs: &[(String, String)], lease: i64) {
    let success = pairs.iter().map(|(key, value)| {
        let (key, value) = (key.clone().into(), value.clone().into());
        let put = PutRequest { key, value, lease, ..PutRequest::default() };
        RequestOp { request: Some(request_op::Request::RequestPut(put)) }
    });
    let request = TxnRequest { success: success.collect(), ..TxnRequest::default() };
    kv(address).txn(request).await.unwrap();
}

async fn all_at(address: &str, revision: i64) -> Vec<KeyValue> {
    let everything = bytes::Bytes::from_static(b"\0");
    let request = RangeRequest {
        key: everything.clone(),
        range_end: everything,
        revision,
        ..RangeRequest::default()
    };
    kv(address).range(request).await.unwrap().into_inner().kvs
}

async fn hash_at(address: &str, revision: i64) -> (u32, i64) {
    let mut client = MaintenanceClient::new(channel_to(address));
    let answer = client.hash_kv(HashKvRequest { revision }).await.unwrap().into_inner();
    (answer.hash, answer.compact_revision)
}

/// 10,000 keys with their history: puts, deletes, puts again, a lease, a compaction. The newest revision.
async fn fill(address: &str) -> i64 {
    let mut leases = LeaseClient::new(channel_to(address));
    let grant = LeaseGrantRequest { ttl: 5000, id: 77 };
    leases.lease_grant(grant).await.unwrap();
    let pair = |n: usize, round: usize| (format!("key/{n:05}"), format!("value {n} of {round}"));
    for (round, count) in [(1, 10_000), (2, 3000)] {
        let pairs: Vec<_> = (0..count).map(|n| pair(n, round)).collect();
        for (index, some) in pairs.chunks(100).enumerate() {
            put_together(address, some, if index % 10 == 0 { 77 } else { 0 }).await;
        }
    }
    for (from, to) in [("key/00100", "key/00200"), ("key/05000", "key/05050")] {
        let (key, range_end) = (from.into(), to.into());
        let request = DeleteRangeRequest { key, range_end, prev_kv: false };
        kv(address).delete_range(request).await.unwrap();
    }
    kv(address).compact(CompactionRequest { revision: 110, physical: true }).await.unwrap();
    for n in 0..50 {
        put(address, &format!("key/{:05}", n * 7), "again").await.unwrap();
    }
    put(address, "last", "one").await.unwrap()
}

/// Both have the same keys at every revision that is not compacted, and the same hashes of them.
async fn assert_same(one: &str, two: &str, newest: i64) {
    for revision in (110..=newest).step_by(5).chain([newest]) {
        assert_eq!(all_at(one, revision).await, all_at(two, revision).await, "{revision}");
        // At the compacted revision itself etcd 3.4 refuses a hash; we answer as 3.7 does.
        if revision > 110 {
            assert_eq!(hash_at(one, revision).await, hash_at(two, revision).await, "{revision}");
        }
    }
    for address in [one, two] {
        let too_old = RangeRequest { key: "last".into(), revision: 109, ..RangeRequest::default() };
        let error = kv(address).range(too_old).await.unwrap_err();
        assert!(error.message().contains("compacted"), "{error}");
        let mut leases = LeaseClient::new(channel_to(address));
        let request = LeaseTimeToLiveRequest { id: 77, keys: true };
        let lease = leases.lease_time_to_live(request).await.unwrap().into_inner();
        assert_eq!(lease.granted_ttl, 5000);
        assert!(lease.keys.len() > 900, "{}", lease.keys.len());
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_etcd_comes_here_and_goes_back() {
    if etcd_is_missing() {
        return;
    }
    let folder = folder();
    let (mut old, old_address) = etcd(folder.path(), "old.etcd");
    let newest = fill(&old_address).await;
    let to_old = format!("--endpoints={old_address}");
    for words in [
        &["user", "add", "root:r"][..],
        &["user", "add", "alice:a"],
        &["role", "add", "reader"],
        &["role", "grant-permission", "reader", "read", "key/00", "key/01"],
        &["user", "grant-role", "alice", "reader"],
        &["user", "grant-role", "root", "root"],
    ] {
        says(etcdctl(folder.path(), words).arg(&to_old));
    }
    says(etcdctl(folder.path(), &["snapshot", "save", "saved.db"]).arg(&to_old));

    // The same words about the same file.
    for format in ["simple", "json", "table", "fields"] {
        let words = ["snapshot", "status", "saved.db", "-w", format];
        let theirs = says(&mut etcdctl(folder.path(), &words));
        assert_eq!(says(&mut here(folder.path(), &words)), theirs);
    }

    let mut members = Members::configure(1);
    let imported =
        says(here(folder.path(), &["import", "saved.db", "node"]).arg(members.config()).arg("0"));
    assert!(
        imported.contains(&format!("revision {newest}, compacted at 110, 9865 keys")),
        "{imported}"
    );
    assert!(imported.contains("1 leases, 2 users, 1 roles, authentication off"), "{imported}");
    members.start_one(0);
    members.leader().await;
    let new_address = members.addresses[0].clone();
    assert_same(&old_address, &new_address, newest).await;
    let urls = [format!("http://{old_address}"), format!("http://{new_address}")];
    let equal = says(&mut here(folder.path(), &["verify", &urls[0], &urls[1]]));
    assert!(equal.ends_with("equal\n"), "{equal}");

    // Authentication is on in both before the way back.
    let to_new = format!("--endpoints={new_address}");
    says(etcdctl(folder.path(), &["auth", "enable"]).arg(&to_new));
    let as_alice = ["--user=alice:a", "get", "key/00007", "--print-value-only"];
    let read = says(etcdctl(folder.path(), &as_alice).arg(&to_new));
    assert_eq!(read, "again\n");
    let (_, denied) = run(etcdctl(folder.path(), &["--user=alice:a", "get", "last"]).arg(&to_new));
    assert!(denied.contains("permission denied"), "{denied}");
    says(&mut here(folder.path(), &["export", &urls[1], "back.db", "--user=root:r"]));
    members.process(0).signal(Signal::TERM);
    members.process(0).ended_within(PATIENCE);
    let state = members.folder.path().join("node_0_data.raft");
    says(here(folder.path(), &["export"]).arg(&state).arg("stopped.db"));
    let equal = says(here(folder.path(), &["verify", "back.db"]).arg(&state));
    assert!(equal.contains("authentication on") && equal.ends_with("equal\n"), "{equal}");
    says(&mut here(folder.path(), &["verify", "back.db", "stopped.db"]));
    let (code, different) =
        run(&mut here(folder.path(), &["verify", "saved.db", "back.db", "--json"]));
    assert_eq!(code, 1);
    assert!(different.contains("\"equal\":false"), "{different}");

    for file in ["back.db", "stopped.db"] {
        let data = format!("{file}.etcd");
        says(&mut etcdctl(folder.path(), &["snapshot", "restore", file, "--data-dir", &data]));
        let (_process, address) = etcd(folder.path(), &data);
        let to = format!("--endpoints={address}");
        let read = says(etcdctl(folder.path(), &as_alice).arg(&to));
        assert_eq!(read, "again\n");
        says(etcdctl(folder.path(), &["--user=root:r", "auth", "disable"]).arg(&to));
        assert_same(&old_address, &address, newest).await;
    }
    old.kill9();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_folder_of_a_stopped_etcd_is_taken_and_one_whose_log_goes_further_is_not() {
    if etcd_is_missing() {
        return;
    }
    let folder = folder();
    let (mut old, address) = etcd(folder.path(), "old.etcd");
    for n in 0..20 {
        put(&address, &format!("k{n}"), "v").await.unwrap();
    }
    let members = Members::configure(1);
    let import = || {
        let mut command = here(folder.path(), &["import", "old.etcd", "node"]);
        command.arg(members.config()).arg("0");
        run(&mut command)
    };
    let (code, text) = import();
    assert_eq!(code, 65);
    assert!(text.contains("an etcd runs on it") && text.contains("Nothing was written"), "{text}");
    // From its address it may be taken while it runs.
    let other = Members::configure(1);
    let url = format!("http://{address}");
    let text = says(here(folder.path(), &["import", &url, "node"]).arg(other.config()).arg("0"));
    assert!(text.contains("revision 21, never compacted, 20 keys"), "{text}");
    // Killed right after a put: that one is in the log only.
    put(&address, "lost?", "no").await.unwrap();
    old.kill9();
    let (code, text) = import();
    assert_eq!(code, 65, "{text}");
    assert!(text.contains("not stopped in an orderly way"), "{text}");
    // Started again it writes down what it has, and stops as it should.
    let (mut old, _) = etcd(folder.path(), "old.etcd");
    old.signal(Signal::TERM);
    old.ended_within(PATIENCE);
    let (code, text) = import();
    assert_eq!(code, 0, "{text}");
    assert!(text.contains("revision 22, never compacted, 21 keys"), "{text}");
}

/// A member with something in it, and what `export` makes of it.
async fn exported(folder: &Path) -> (Members, PathBuf) {
    let members = Members::start(1);
    members.leader().await;
    for n in 0..30 {
        put(&members.addresses[0], &format!("k{}", n % 10), &format!("v{n}")).await.unwrap();
    }
    let file = folder.join("saved.db");
    let url = format!("http://{}", members.addresses[0]);
    says(here(folder, &["export", &url]).arg(&file));
    (members, file)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_begin_with_the_same_file_wherever_they_are_made() {
    let folder = folder();
    let (_source, file) = exported(folder.path()).await;
    let mut members = Members::configure(3);
    let mut clusters = Vec::new();
    for index in 0..3 {
        let mut command = here(folder.path(), &["import"]);
        command.arg(&file).arg("node").arg(members.config()).arg(index.to_string());
        let text = says(&mut command);
        let cluster = text.lines().find(|line| line.starts_with("cluster")).unwrap().to_owned();
        clusters.push(cluster);
    }
    assert!(clusters[0].contains("of 3 members") && clusters.iter().all(|it| *it == clusters[0]));
    // Two are a quorum; the third one comes later and is no stranger.
    members.start_one(0);
    members.start_one(1);
    members.leader().await;
    let address = members.addresses[0].clone();
    assert_eq!(get(&address, "k3").await.unwrap().as_deref(), Some("v23"));
    assert_eq!(put(&address, "new", "one").await.unwrap(), 32);
    members.start_one(2);
    members.leader().await;
    assert_eq!(get(&members.addresses[2], "new").await.unwrap().as_deref(), Some("one"));
    // A second time nothing is written over.
    let before = contents(&members.folder.path().join("node_1_data.raft"));
    let mut again = here(folder.path(), &["import"]);
    let (code, text) = run(again.arg(&file).arg("node").arg(members.config()).arg("1"));
    assert_eq!(code, 65);
    assert!(text.contains("is not empty"), "{text}");
    let names =
        |files: &[(PathBuf, Vec<u8>)]| files.iter().map(|it| it.0.clone()).collect::<Vec<_>>();
    assert_eq!(names(&contents(&members.folder.path().join("node_1_data.raft"))), names(&before));
    // Another token makes another cluster of the same file.
    let other = Members::configure(3);
    let mut command = here(folder.path(), &["import", "--token", "b"]);
    let text = says(command.arg(&file).arg("node").arg(other.config()).arg("0"));
    assert!(!text.contains(&clusters[0]));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restored_member_may_begin_with_a_greater_revision() {
    let folder = folder();
    let (_source, file) = exported(folder.path()).await;
    let port = free_ports(2);
    let peer = format!("http://127.0.0.1:{port}");
    let client = format!("http://127.0.0.1:{}", port + 1);
    let cluster = format!("--initial-cluster=n0={peer}");
    let words = [
        "snapshot",
        "restore",
        file.to_str().unwrap(),
        "--name=n0",
        "--data-dir=n0.etcd",
        &cluster,
        &format!("--initial-advertise-peer-urls={peer}"),
        "--initial-cluster-token=t",
        "--bump-revision=1000",
        "--mark-compacted",
    ];
    let text = says(&mut here(folder.path(), &words));
    assert!(text.contains("revision 1031, compacted at 1031, 10 keys"), "{text}");
    let mut command = here(folder.path(), &["etcd", "--name=n0", "--data-dir=n0.etcd", &cluster]);
    command.args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer]);
    command.args(["--listen-client-urls", &client, "--advertise-client-urls", &client]);
    let mut process = Process::start(command);
    process.line_with(READY);
    let address = client.strip_prefix("http://").unwrap();
    until_serving(address).await;
    assert_eq!(get(address, "k9").await.unwrap().as_deref(), Some("v29"));
    assert_eq!(put(address, "k9", "w").await.unwrap(), 1032);
    assert_eq!(hash_at(address, 0).await.1, 1031);
    let (code, text) = run(&mut here(folder.path(), &words));
    assert_eq!(code, 65);
    assert!(text.contains("is not empty"), "{text}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_cannot_be_taken_is_refused_in_words_and_nothing_is_written() {
    let folder = folder();
    let (_source, file) = exported(folder.path()).await;
    let whole = fs::read(&file).unwrap();
    let at = |name: &str, bytes: &[u8]| {
        let path = folder.path().join(name);
        fs::write(&path, bytes).unwrap();
        path.to_str().unwrap().to_owned()
    };
    let mut flipped = whole.clone();
    flipped[5 * 4096 + 100] ^= 1;
    // The same with the right checksum: then the page itself has to say so.
    let mut torn = whole.clone();
    torn[3 * 4096 + 8] = 7;
    torn.truncate(whole.len() - 32);
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(&torn);
    torn.extend_from_slice(&digest);
    let mut nothing = vec![0u8; 8192];
    nothing.extend_from_slice(&sha2::Sha256::digest(&nothing));
    let files = [
        (at("cut.db", &whole[..whole.len() - 100]), "no checksum at its end"),
        (at("flipped.db", &flipped), "checksum does not hold"),
        (at("torn.db", &torn), "page 3 is damaged"),
        (at("nothing.db", &nothing), "no database of etcd"),
        (at("empty.db", b""), "no checksum at its end"),
        (folder.path().join("missing.db").to_str().unwrap().to_owned(), "cannot be read"),
        (folder.path().to_str().unwrap().to_owned(), "without member/snap/db"),
    ];
    let members = Members::configure(1);
    let before = contents(members.folder.path());
    for (file, why) in &files {
        let mut command = here(folder.path(), &["import", file, "node"]);
        let (code, text) = run(command.arg(members.config()).arg("0"));
        assert_eq!(code, 65, "{file}: {text}");
        assert!(text.contains(why) && text.contains("right"), "{file}: {text}");
        assert!(text.lines().count() < 12, "{text}");
    }
    let good = file.to_str().unwrap();
    let config = members.config();
    let config = config.to_str().unwrap();
    for (words, why) in [
        (&["import", good][..], "Usage"),
        (&["import", good, "node", config, "7"], "0"),
        (&["import", good, "node", config, "0", "--bump-revision=5"], "unexpected argument"),
        (&["import", good, "--bump-revision=5", "node", config, "0"], "--mark-compacted"),
        (&["import", good, "--mark-compacted", "node", config, "0"], "--bump-revision"),
        (&["import", good, "cluster", config, "3"], "config"),
        (&["import", good, "etcd", "--initial-cluster-state=existing"], "existing"),
        (&["snapshot", "restore", good, "--name=a"], "initial-cluster"),
    ] {
        let (code, text) = run(&mut here(folder.path(), words));
        assert_eq!(code, 2, "{words:?}: {text}");
        assert!(text.contains(why), "{words:?}: {text}");
    }
    assert_eq!(contents(members.folder.path()), before);
}
