//! In etcd's place: its flags, variables and file, its words, its ways to start a cluster.

use std::fs;
use std::io::BufRead as _;
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;

use raft_kv::proto::etcdserverpb::{
    MemberAddRequest, MemberListRequest, MemberListResponse, MemberRemoveRequest, PutRequest,
    RangeRequest, RequestOp, TxnRequest, request_op,
};
use raft_server::proto::etcdserverpb::cluster_client::ClusterClient;
use tonic::Code;

use crate::support::{
    Process, channel_to, folder, free_ports, get, kv, program, put, tree, until_serving,
};

const READY: &str = "ready to serve client requests";

fn etcd(folder: &Path) -> Command {
    let mut command = program();
    command.arg("etcd").current_dir(folder);
    command
}

/// The flags of member `n` of three whose peers listen from `port` on and whose clients right behind them.
fn flags(n: u16, port: u16) -> Vec<(&'static str, String)> {
    let peer = |n: u16| format!("http://127.0.0.1:{}", port + n);
    let client = format!("http://127.0.0.1:{}", port + 3 + n);
    vec![
        ("name", format!("n{n}")),
        ("data-dir", format!("n{n}.etcd")),
        ("listen-peer-urls", peer(n)),
        ("initial-advertise-peer-urls", peer(n)),
        ("listen-client-urls", client.clone()),
        ("advertise-client-urls", client),
        ("initial-cluster", format!("n0={},n1={},n2={}", peer(0), peer(1), peer(2))),
        ("initial-cluster-token", "a-token".to_owned()),
        ("heartbeat-interval", "50".to_owned()),
        ("election-timeout", "300".to_owned()),
    ]
}

async fn members(address: &str) -> MemberListResponse {
    let mut client = ClusterClient::new(channel_to(address));
    client.member_list(MemberListRequest { linearizable: true }).await.unwrap().into_inner()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn three_members_start_by_flags_variables_and_a_file() {
    let folder = folder();
    let port = free_ports(7);
    let address = |n: u16| format!("127.0.0.1:{}", port + 3 + n);

    // One dash or two, with an equal sign or without.
    let mut by_flags = etcd(folder.path());
    for (at, (name, value)) in flags(0, port).into_iter().enumerate() {
        match at % 3 {
            0 => by_flags.arg(format!("-{name}")).arg(value),
            1 => by_flags.arg(format!("--{name}")).arg(value),
            _ => by_flags.arg(format!("--{name}={value}")),
        };
    }
    let metrics = format!("127.0.0.1:{}", port + 6);
    by_flags.arg(format!("--listen-metrics-urls=http://{metrics}"));
    by_flags.args(["--enable-v2", "--log-outputs=stdout,n0.log"]);

    // Called by its name.
    let etcd_itself = folder.path().join("etcd");
    symlink(env!("CARGO_BIN_EXE_rusty-raft"), &etcd_itself).unwrap();
    let mut by_variables = Command::new(&etcd_itself);
    by_variables.current_dir(folder.path()).env_remove("RUST_LOG");
    for (name, value) in flags(1, port) {
        by_variables.env(format!("ETCD_{}", name.to_uppercase().replace('-', "_")), value);
    }

    let file = folder.path().join("etcd.yml");
    let lines = flags(2, port).into_iter().map(|(name, value)| format!("{name}: {value}\n"));
    fs::write(&file, lines.collect::<String>()).unwrap();
    let mut by_file = etcd(folder.path());
    by_file.arg("--config-file").arg(&file).args(["--log-format", "console"]);

    let mut processes = [by_flags, by_variables, by_file].map(Process::start);
    let line = processes[0].line_with(READY);
    assert!(line.starts_with(r#"{"level":"info","ts":""#), "{line}");
    let warning = processes[0].line_with("enable-v2");
    assert!(warning.contains("the v2 interface is not served"), "{warning}");
    processes[0].line_with("published local member to cluster through raft");
    processes[1].line_with(READY);
    let line = processes[2].line_with(READY);
    assert!(!line.starts_with('{'), "{line}");
    let logged = fs::read_to_string(folder.path().join("n0.log")).unwrap();
    assert!(logged.contains(READY), "{logged}");

    put(&address(0), "k", "v").await.unwrap();
    for n in 0..3 {
        assert_eq!(get(&address(n), "k").await.unwrap().as_deref(), Some("v"));
    }
    let mut listed: Vec<_> = members(&address(1)).await.members;
    listed.sort_by(|a, b| a.name.cmp(&b.name));
    let names: Vec<&str> = listed.iter().map(|member| member.name.as_str()).collect();
    assert_eq!(names, ["n0", "n1", "n2"]);
    assert_eq!(listed[2].peer_ur_ls, [format!("http://127.0.0.1:{}", port + 2)]);
    assert_eq!(listed[2].client_ur_ls, [format!("http://{}", address(2))]);
    // Peers' addresses are for peers, and those for metrics for metrics.
    assert!(put(&format!("127.0.0.1:{port}"), "k", "w").await.is_err());
    let refused = put(&metrics, "k", "w").await.unwrap_err();
    assert_eq!(refused.code(), Code::Unimplemented);
    let scraped = http_get(&metrics, "/metrics");
    assert!(scraped.contains("etcd_server_has_leader 1"), "{scraped}");
    // A member that is started again is what it was, whatever its flags say about the beginning: nothing at all, a list
    // that was never right, or that the cluster exists; and what it says of itself is told to all.
    let [first, second, third] = processes;
    drop((first, second, third));
    assert!(folder.path().join("n1.etcd/member").is_dir());
    let mut again = Vec::new();
    for n in 0..3 {
        let mut command = etcd(folder.path());
        for (name, value) in flags(n, port) {
            let value = match (name, n) {
                ("initial-cluster", 0) => continue,
                ("initial-cluster", 1) => {
                    format!("x=http://127.0.0.1:1,n2=http://127.0.0.1:{port}")
                }
                ("initial-cluster", _) => format!("n2=http://127.0.0.1:{}", port + 2),
                ("initial-cluster-token", _) => format!("{value}-{n}"),
                ("name", 1) => "renamed".to_owned(),
                ("advertise-client-urls", 1) => format!("{value},http://localhost:1"),
                _ => value,
            };
            command.arg(format!("--{name}={value}"));
        }
        if n == 2 {
            command.arg("--initial-cluster-state=existing");
        }
        again.push(Process::start(command));
    }
    for (n, process) in (0..3).zip(&mut again) {
        process.line_with(READY);
        assert_eq!(get(&address(n), "k").await.unwrap().as_deref(), Some("v"));
    }
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    let clients = [format!("http://{}", address(1)), "http://localhost:1".to_owned()];
    while !members(&address(0))
        .await
        .members
        .iter()
        .any(|member| member.name == "renamed" && member.client_ur_ls == clients)
    {
        assert!(std::time::Instant::now() < deadline, "the new name is not known");
    }
    for (n, process) in (0..3).zip(&mut again) {
        assert_eq!(get(&address(n), "k").await.unwrap().as_deref(), Some("v"));
        assert_eq!(process.child.try_wait().unwrap(), None, "n{n} has ended");
    }
}

/// The answer to a GET, head and body.
fn http_get(address: &str, path: &str) -> String {
    use std::io::{Read as _, Write as _};
    let mut stream = std::net::TcpStream::connect(address).unwrap();
    write!(stream, "GET {path} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    answer
}

/// A member alone, ready, with more flags.
fn alone(folder: &Path, port: u16, more: &[&str]) -> (Process, String) {
    let mut command = etcd(folder);
    let peer = format!("http://127.0.0.1:{port}");
    let client = format!("127.0.0.1:{}", port + 1);
    command.args(["--name=a", "--heartbeat-interval=50", "--election-timeout=300"]);
    command.arg(format!("--listen-peer-urls={peer}"));
    command.arg(format!("--initial-advertise-peer-urls={peer}"));
    command.arg(format!("--listen-client-urls=http://{client}"));
    command.arg(format!("--advertise-client-urls=http://{client}"));
    command.arg(format!("--initial-cluster=a={peer}"));
    command.args(more);
    let mut process = Process::start(command);
    process.line_with(READY);
    (process, client)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_joins_a_cluster_that_exists() {
    let folder = folder();
    let port = free_ports(4);
    let (_first, client) = alone(folder.path(), port, &[]);
    put(&client, "k", "v").await.unwrap();
    let (peer, second_client) =
        (format!("127.0.0.1:{}", port + 2), format!("127.0.0.1:{}", port + 3));
    let mut command = etcd(folder.path());
    command.args(["--name=b", "--initial-cluster-state=existing"]);
    command.arg(format!("--listen-peer-urls=http://{peer}"));
    command.arg(format!("--initial-advertise-peer-urls=http://{peer}"));
    command.arg(format!("--listen-client-urls=http://{second_client}"));
    command.arg(format!("--advertise-client-urls=http://{second_client}"));
    command.arg(format!("--initial-cluster=a=http://127.0.0.1:{port},b=http://{peer}"));
    let mut second = Process::start(command);
    second.line_with("serves clients at");
    let mut cluster = ClusterClient::new(channel_to(&client));
    let request =
        MemberAddRequest { peer_ur_ls: vec![format!("http://{peer}")], is_learner: false };
    cluster.member_add(request).await.unwrap();
    second.line_with(READY);
    until_serving(&second_client).await;
    assert_eq!(get(&second_client, "k").await.unwrap().as_deref(), Some("v"));
    let names: Vec<String> =
        members(&client).await.members.into_iter().map(|member| member.name).collect();
    assert!(names.contains(&"b".to_owned()), "{names:?}");
    // Again, and now it lists nobody but itself.
    drop(second);
    let mut command = etcd(folder.path());
    command.args(["--name=b", "--initial-cluster-state=existing"]);
    command.arg(format!("--listen-peer-urls=http://{peer}"));
    command.arg(format!("--initial-advertise-peer-urls=http://{peer}"));
    command.arg(format!("--listen-client-urls=http://{second_client}"));
    command.arg(format!("--advertise-client-urls=http://{second_client}"));
    let mut second = Process::start(command);
    second.line_with(READY);
    put(&second_client, "k", "w").await.unwrap();
    assert_eq!(get(&client, "k").await.unwrap().as_deref(), Some("w"));
    let listed = members(&second_client).await.members;
    assert_eq!(listed.len(), 2);
    // Whoever is removed has done what was asked for.
    let id = listed.iter().find(|member| member.name == "b").unwrap().id;
    cluster.member_remove(MemberRemoveRequest { id }).await.unwrap();
    assert_eq!(second.ended_within(crate::support::PATIENCE).code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_are_served_at_any_free_port_and_only_so_many_at_once() {
    let folder = folder();
    let mut command = etcd(folder.path());
    let peer = format!("http://127.0.0.1:{}", free_ports(1));
    command.args(["--listen-client-urls=http://127.0.0.1:0", "--max-concurrent-streams=2"]);
    command.args(["--advertise-client-urls=http://127.0.0.1:0", "--name=a"]);
    command.arg(format!("--listen-peer-urls={peer}"));
    command.arg(format!("--initial-advertise-peer-urls={peer}"));
    command.arg(format!("--initial-cluster=a={peer}"));
    let mut process = Process::start(command);
    let line = process.line_with("which was free");
    let words: Vec<&str> = line.split([' ', ',']).collect();
    let at = words.iter().position(|word| *word == "at").unwrap();
    let client = words[at + 1].to_owned();
    process.line_with(READY);
    put(&client, "k", "v").await.unwrap();

    // The gateway as a whole is one client.
    let watching = || {
        let request = r#"{"create_request":{"key":"aw=="}}"#;
        let mut answer = crate::gateway::send(&client, "POST", "/v3/watch", request);
        let mut line = String::new();
        // Chunks: a length, a line of JSON, an empty line.
        while !line.contains("created") {
            line.clear();
            assert!(answer.reader.read_line(&mut line).unwrap() > 0, "the stream has ended");
        }
        answer
    };
    let (first, second) = (watching(), watching());
    let asking = {
        let client = client.clone();
        std::thread::spawn(move || {
            crate::gateway::send(&client, "POST", "/v3/kv/range", r#"{"key":"aw=="}"#).status
        })
    };
    // Clients of gRPC have connections of their own: time goes by while they are served.
    let held = std::time::Duration::from_millis(300);
    let since = std::time::Instant::now();
    while since.elapsed() < held {
        assert_eq!(get(&client, "k").await.unwrap().as_deref(), Some("v"));
    }
    assert!(!asking.is_finished(), "a third one was served");
    drop(first);
    assert_eq!(asking.join().unwrap(), 200);
    drop(second);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn old_revisions_go_by_themselves_and_transactions_are_as_long_as_is_said() {
    let folder = folder();
    let (_process, client) =
        alone(folder.path(), free_ports(2), &["--auto-compaction-retention=1s", "--max-txn-ops=2"]);
    for value in ["1", "2", "3"] {
        put(&client, "k", value).await.unwrap();
    }
    let op = |key: &str| RequestOp {
        request: Some(request_op::Request::RequestPut(PutRequest {
            key: key.to_owned().into(),
            ..PutRequest::default()
        })),
    };
    let txn = |keys: &[&str]| TxnRequest {
        success: keys.iter().map(|key| op(key)).collect(),
        ..TxnRequest::default()
    };
    kv(&client).txn(txn(&["a", "b"])).await.unwrap();
    let refused = kv(&client).txn(txn(&["a", "b", "c"])).await.unwrap_err();
    assert_eq!(refused.message(), "etcdserver: too many operations in txn request");

    // Every read of the past goes on until the first one is refused.
    let deadline = std::time::Instant::now() + crate::support::PATIENCE;
    loop {
        let old = RangeRequest { key: "k".into(), revision: 2, ..RangeRequest::default() };
        match kv(&client).range(old).await {
            Err(status) => {
                let compacted = "etcdserver: mvcc: required revision has been compacted";
                assert_eq!(status.message(), compacted);
                break;
            }
            Ok(_) => assert!(std::time::Instant::now() < deadline, "nothing was compacted"),
        }
    }
    assert_eq!(get(&client, "k").await.unwrap().as_deref(), Some("3"));
}

#[test]
fn the_version_and_the_help_are_in_etcds_form() {
    let output = program().args(["etcd", "--version"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let first = text.lines().next().unwrap().strip_prefix("etcd Version: ").unwrap();
    assert!(first.split('.').all(|part| part.parse::<u32>().is_ok()), "{text}");
    assert_eq!((text.lines().count(), output.status.code()), (4, Some(0)));
    let output = program().args(["etcd", "-h"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("  --initial-cluster-state 'new'\n"), "{text}");
    assert!(text.contains("Accepted, without effect: "), "{text}");
}

#[test]
fn the_last_word_on_a_setting_is_shown_with_its_place() {
    let folder = folder();
    let file = folder.path().join("etcd.yml");
    fs::write(&file, "name: from-file\nsnapshot-count: 5\n").unwrap();
    let output = program()
        .args(["config", "show", "etcd", "--config-file", file.to_str().unwrap()])
        .args(["--initial-cluster", "x=http://localhost:2380", "-name", "x"])
        .env("ETCD_NAME", "from-environment")
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    let lines: Vec<Vec<&str>> =
        text.lines().map(|line| line.split_whitespace().collect()).collect();
    let from_file = format!("{}:1", file.display());
    let name = lines.iter().position(|line| line[0] == "name").unwrap();
    assert_eq!(lines[name], ["name", "x", "flag"], "{text}");
    assert_eq!(lines[name + 1], ["not", "from-environment", "environment", "ETCD_NAME"]);
    assert_eq!(lines[name + 2], ["not", "from-file", &from_file]);
    let count = lines.iter().find(|line| line[0] == "snapshot-count").unwrap();
    assert_eq!(*count, ["snapshot-count", "5", &format!("{}:2", file.display())]);
    assert!(!text.contains("heartbeat-interval"), "{text}");
    let output = program().args(["config", "show", "--all", "etcd"]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(text.contains("heartbeat-interval"), "{text}");
}

#[test]
fn whatever_is_wrong_is_refused_before_anything_is_written() {
    let folder = folder();
    fs::write(folder.path().join("typo.yml"), "name: a\nheartbeat-intervall: 5\n").unwrap();
    fs::create_dir_all(folder.path().join("theirs/member/snap")).unwrap();
    // What a start that never got further leaves behind.
    fs::create_dir_all(folder.path().join("begun/member")).unwrap();
    fs::create_dir_all(folder.path().join("rebuilt/member.damaged")).unwrap();
    let table: &[(&[&str], i32, &[&str])] = &[
        (&["--nmae", "x"], 2, &["--nmae", "did you mean --name?"]),
        (&["--election-timeout", "soon"], 2, &["--election-timeout", "a whole number"]),
        (&["--config-file=typo.yml"], 2, &["typo.yml:2:1", "heartbeat-interval", "2 | heartb"]),
        (&["--config-file=none.yml"], 2, &["none.yml", "cannot be read"]),
        (&["--log-outputs=no/such/folder/log"], 2, &["no/such/folder/log"]),
        (&["--data-dir=theirs"], 65, &["theirs", "etcd itself has written it"]),
        (&["--initial-cluster-state=existing"], 65, &["lists no other member"]),
        (
            &["--initial-cluster-state=existing", "--data-dir=begun"],
            65,
            &["it belongs to no cluster", "lists no other member"],
        ),
        (&["--data-dir=rebuilt"], 65, &["member.damaged", "lists no other member"]),
    ];
    for (line, code, parts) in table {
        let before = tree(folder.path());
        let output = etcd(folder.path()).args(*line).output().unwrap();
        assert_eq!(tree(folder.path()), before, "{line:?} changed something on disk");
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(*code), "{line:?}: {text}");
        for part in *parts {
            assert!(text.contains(part), "{line:?}: {part:?} is missing in\n{text}");
        }
        assert!(text.ends_with("Nothing was written.\n"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_of_three_members_goes_on_alone_when_it_is_told_to() {
    let folder = folder();
    let port = free_ports(6);
    let command = |n: u16, more: &[&str]| {
        let mut command = etcd(folder.path());
        command.args(flags(n, port).iter().map(|(name, value)| format!("--{name}={value}")));
        command.args(more);
        command
    };
    let address = format!("127.0.0.1:{}", port + 3);
    let mut processes: Vec<Process> = (0..3).map(|n| Process::start(command(n, &[]))).collect();
    for process in &mut processes {
        process.line_with(READY);
    }
    put(&address, "k", "v").await.unwrap();
    let cluster = members(&address).await.header.unwrap().cluster_id;
    drop(processes);

    let mut alone = Process::start(command(0, &["--force-new-cluster"]));
    alone.line_with("of this member alone");
    alone.line_with(READY);
    until_serving(&address).await;
    assert_eq!(get(&address, "k").await.unwrap().as_deref(), Some("v"));
    let answer = members(&address).await;
    assert_eq!(answer.members.len(), 1);
    assert_ne!(answer.header.unwrap().cluster_id, cluster);
    put(&address, "k", "w").await.unwrap();
    alone.kill9();
    // A flag that was left in the manifest changes nothing: it is alone already.
    let mut again = Process::start(command(0, &["--force-new-cluster"]));
    again.line_with(READY);
    until_serving(&address).await;
    assert_eq!(get(&address, "k").await.unwrap().as_deref(), Some("w"));
}
