//! A stock etcdctl, as operators use it. Runs where one is installed; CI installs it.

use std::process::{Command, Output};

use rustix::process::Signal;

use crate::support::{Members, PATIENCE, Process};

fn etcdctl(endpoints: &str, arguments: &[&str]) -> Output {
    Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={endpoints}"))
        .args(arguments)
        .output()
        .unwrap()
}

#[track_caller]
fn says(endpoints: &str, arguments: &[&str]) -> String {
    let output = etcdctl(endpoints, arguments);
    let text = String::from_utf8(output.stdout).unwrap();
    let complaints = String::from_utf8(output.stderr).unwrap();
    assert!(output.status.success(), "{arguments:?}: {text}{complaints}");
    // `endpoint health` writes to standard error.
    text + &complaints
}

/// `etcdctl txn` reads compares, then one list for success and one for failure, from standard input.
fn txn(endpoints: &str, input: &str) -> String {
    use std::io::Write as _;
    use std::process::Stdio;
    let mut child = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .arg(format!("--endpoints={endpoints}"))
        .arg("txn")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    String::from_utf8(child.wait_with_output().unwrap().stdout).unwrap()
}

/// Says so, once for each test, where there is none to test with.
pub(crate) fn is_missing() -> bool {
    let missing = Command::new("etcdctl").arg("version").output().is_err();
    if missing {
        eprintln!(
            "NOTICE: no etcdctl on the PATH: this test did nothing (Debian: apt install etcd-client)"
        );
    }
    missing
}

/// An etcdctl that goes on until it is stopped.
fn running(endpoints: &str, arguments: &[&str]) -> Process {
    let mut command = Command::new("etcdctl");
    command.env("ETCDCTL_API", "3").arg(format!("--endpoints={endpoints}")).args(arguments);
    command.stdin(std::process::Stdio::null());
    Process::start(command)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_etcdctl_watches_leases_locks_and_elects() {
    if is_missing() {
        return;
    }
    let members = Members::start(3);
    members.leader().await;
    let all = members.addresses.join(",");
    let (one, two) = (&members.addresses[0], &members.addresses[1]);

    // A watcher of the past and the present, with what was there before.
    says(&all, &["put", "w/1", "a"]);
    let mut watch = running(one, &["watch", "w/", "--prefix", "--rev=2", "--prev-kv"]);
    watch.line_with("a");
    says(two, &["put", "w/1", "b"]);
    let lines: Vec<String> = (0..5).map(|_| watch.next_line_with("")).collect();
    assert_eq!(lines, ["PUT", "w/1", "a", "w/1", "b"]);
    says(two, &["del", "w/1"]);
    let lines: Vec<String> = (0..4).map(|_| watch.next_line_with("")).collect();
    assert_eq!(lines, ["DELETE", "w/1", "b", "w/1"]);

    // A lease: granted, used, kept alive, looked at, listed, revoked.
    let granted = says(one, &["lease", "grant", "60"]);
    let id = granted.split_whitespace().nth(1).unwrap().to_owned();
    assert_eq!(granted, format!("lease {id} granted with TTL(60s)\n"));
    says(two, &["put", "leased", "v", &format!("--lease={id}")]);
    let alive = says(two, &["lease", "keep-alive", "--once", &id]);
    assert_eq!(alive, format!("lease {id} keepalived with TTL(60)\n"));
    let left = says(&all, &["lease", "timetolive", &id, "--keys"]);
    assert!(left.starts_with(&format!("lease {id} granted with TTL(60s), remaining(")), "{left}");
    assert!(left.contains("attached keys([leased])"), "{left}");
    assert_eq!(says(&all, &["lease", "list"]), format!("found 1 leases\n{id}\n"));
    assert_eq!(says(&all, &["lease", "revoke", &id]), format!("lease {id} revoked\n"));
    assert_eq!(says(&all, &["get", "leased"]), "");
    assert_eq!(says(&all, &["lease", "timetolive", &id]), format!("lease {id} already expired\n"));

    // A lock, held by one and waited for by the other until the first lets go.
    let mut first = running(one, &["lock", "mutex"]);
    first.line_with("mutex/");
    let mut second = running(two, &["lock", "mutex"]);
    until_count(&all, "mutex/", 2);
    first.signal(Signal::INT);
    assert!(first.ended_within(PATIENCE).success());
    second.line_with("mutex/");

    // An election with an observer elsewhere.
    let mut leader = running(one, &["elect", "office", "alice"]);
    leader.line_with("alice");
    let mut listener = running(two, &["elect", "--listen", "office"]);
    listener.line_with("alice");
    let mut next = running(two, &["elect", "office", "bob"]);
    until_count(&all, "office/", 2);
    leader.signal(Signal::INT);
    leader.ended_within(PATIENCE);
    next.line_with("bob");
    listener.line_with("bob");
}

/// Waits until so many keys begin with `prefix`.
#[track_caller]
fn until_count(endpoints: &str, prefix: &str, count: usize) {
    let since = std::time::Instant::now();
    while says(endpoints, &["get", prefix, "--prefix", "--keys-only"]).matches(prefix).count()
        != count
    {
        assert!(since.elapsed() < PATIENCE, "there are never {count} keys below {prefix}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_etcdctl_works_through_every_member() {
    if is_missing() {
        return;
    }
    let members = Members::start(3);
    members.leader().await;
    let all = members.addresses.join(",");

    assert_eq!(says(&all, &["endpoint", "health"]).matches("is healthy").count(), 3);
    assert_eq!(says(&all, &["endpoint", "status"]).matches("3.7.0").count(), 3);
    assert_eq!(says(&all, &["member", "list"]).matches("started").count(), 3);
    for (n, address) in members.addresses.iter().enumerate() {
        let (key, value) = (format!("key-{n}"), format!("value-{n}"));
        assert_eq!(says(address, &["put", &key, &value]), "OK\n");
        for other in &members.addresses {
            assert_eq!(says(other, &["get", &key, "--print-value-only"]), format!("{value}\n"));
        }
        let input = format!(
            "value(\"{key}\") = \"{value}\"\n\nput {key} changed\nget {key}\n\nget {key}\n\n"
        );
        assert_eq!(txn(address, &input), format!("SUCCESS\n\nOK\n\n{key}\nchanged\n"));
        assert_eq!(txn(address, &input), format!("FAILURE\n\n{key}\nchanged\n"));
        assert_eq!(says(address, &["del", &key]), "1\n");
        assert_eq!(says(address, &["del", &key]), "0\n");
    }
    says(&all, &["put", "a/1", "x"]);
    says(&all, &["put", "a/2", "y"]);
    let prefix = ["get", "a/", "--prefix", "--keys-only", "--sort-by=KEY", "--order=DESCEND"];
    assert_eq!(says(&all, &prefix), "a/2\n\na/1\n\n");
    assert_eq!(says(&all, &["get", "a/", "--prefix", "--limit=1", "--print-value-only"]), "x\n");
    assert!(says(&all, &["compact", "5"]).contains("compacted revision 5"));
    let refused = etcdctl(&all, &["compact", "5"]);
    let text = String::from_utf8(refused.stderr).unwrap();
    assert!(!refused.status.success());
    assert!(text.contains("required revision has been compacted"), "{text}");
    let old = etcdctl(&all, &["get", "a/1", "--rev=4"]);
    assert!(!old.status.success());
    let hashes = says(&all, &["endpoint", "hashkv"]);
    let mut hashes: Vec<&str> = hashes.lines().filter_map(|line| line.split(", ").nth(1)).collect();
    assert_eq!(hashes.len(), 3);
    hashes.dedup();
    assert_eq!(hashes.len(), 1, "members differ: {hashes:?}");
    assert_eq!(says(&all, &["alarm", "list"]), "");
    says(&all, &["defrag"]);
    // Written as URLs, which is what the list of members says, endpoints go to the server as they are.
    let urls: Vec<String> =
        members.addresses.iter().map(|address| format!("http://{address}")).collect();
    for arguments in [&["endpoint", "status"][..], &["endpoint", "hashkv"], &["defrag"]] {
        let cluster = [arguments, &["--cluster"]].concat();
        assert_eq!(says(&urls.join(","), arguments).matches("http://").count(), 3);
        assert_eq!(says(&all, &cluster).matches("http://").count(), 3);
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_etcdctl_manages_users_and_comes_in_as_one() {
    if is_missing() {
        return;
    }
    let members = Members::start(3);
    members.leader().await;
    let all = members.addresses.join(",");
    let (one, two) = (&members.addresses[0], &members.addresses[1]);
    let refused = |endpoints: &str, arguments: &[&str]| {
        let output = etcdctl(endpoints, arguments);
        assert!(!output.status.success(), "{arguments:?}");
        String::from_utf8(output.stderr).unwrap()
    };

    says(one, &["put", "secret", "s"]);
    assert!(refused(one, &["auth", "enable"]).contains("root user does not exist"));
    assert_eq!(says(one, &["user", "add", "root:pw"]), "User root created\n");
    assert_eq!(says(two, &["user", "add", "alice:wonder"]), "User alice created\n");
    let bare = says(one, &["user", "add", "bare", "--no-password"]);
    assert_eq!(bare, "User bare created\n");
    assert_eq!(says(one, &["role", "add", "house"]), "Role house created\n");
    let granted = says(two, &["role", "grant-permission", "house", "readwrite", "a/", "--prefix"]);
    assert_eq!(granted, "Role house updated\n");
    says(one, &["role", "grant-permission", "house", "read", "k"]);
    let role = says(two, &["role", "get", "house"]);
    for line in ["Role house", "KV Read:", "KV Write:", "[a/, a0) (prefix a/)", "k"] {
        assert!(role.contains(line), "{role}");
    }
    let given = says(one, &["user", "grant-role", "alice", "house"]);
    assert_eq!(given, "Role house is granted to user alice\n");
    // This makes the role root and gives it to root, when it hears that it is missing.
    let enabled = says(two, &["auth", "enable"]);
    assert!(enabled.starts_with("Authentication Enabled\n"), "{enabled}");

    let as_root = |arguments: &[&'static str]| [&["--user=root:pw"], arguments].concat();
    let as_alice = |arguments: &[&'static str]| [&["--user=alice:wonder"], arguments].concat();
    for endpoints in [one, two, &all] {
        assert!(refused(endpoints, &["get", "secret"]).contains("user name is empty"));
        let wrong = refused(endpoints, &["--user=alice:x", "get", "a/1"]);
        assert!(wrong.contains("authentication failed, invalid user ID or password"), "{wrong}");
        let denied = refused(endpoints, &as_alice(&["get", "secret"]));
        assert!(denied.contains("etcdserver: permission denied"), "{denied}");
        let denied = refused(endpoints, &as_alice(&["put", "k", "x"]));
        assert!(denied.contains("etcdserver: permission denied"), "{denied}");
        assert_eq!(says(endpoints, &as_alice(&["put", "a/1", "x"])), "OK\n");
        assert_eq!(says(endpoints, &as_alice(&["get", "a/", "--prefix"])), "a/1\nx\n");
        assert_eq!(says(endpoints, &as_root(&["get", "secret"])), "secret\ns\n");
        let denied = refused(endpoints, &as_alice(&["user", "list"]));
        assert!(denied.contains("etcdserver: permission denied"), "{denied}");
    }
    // A member that refuses to say whether it is well is well.
    assert_eq!(says(&all, &as_alice(&["endpoint", "health"])).matches("is healthy").count(), 3);
    assert_eq!(says(&all, &as_root(&["endpoint", "status"])).matches("3.7.0").count(), 3);
    assert_eq!(says(one, &as_root(&["user", "list"])), "alice\nbare\nroot\n");
    assert_eq!(says(two, &as_root(&["role", "list"])), "house\nroot\n");
    assert_eq!(says(one, &as_alice(&["user", "get", "alice"])), "User: alice\nRoles: house\n");
    let mut watch = running(one, &as_alice(&["watch", "a/", "--prefix", "--rev=1"]));
    let lease = says(two, &as_alice(&["lease", "grant", "60"]));
    let id = lease.split_whitespace().nth(1).unwrap().to_owned();
    says(two, &["--user=alice:wonder", "put", "a/2", "y", &format!("--lease={id}")]);
    let alive = says(one, &["--user=alice:wonder", "lease", "keep-alive", "--once", &id]);
    assert_eq!(alive, format!("lease {id} keepalived with TTL(60)\n"));
    watch.line_with("a/2");
    let gone = says(one, &as_root(&["role", "revoke-permission", "house", "a/", "--prefix"]));
    assert!(gone.contains("is revoked from role house"), "{gone}");
    let denied = refused(two, &as_alice(&["get", "a/1"]));
    assert!(denied.contains("etcdserver: permission denied"), "{denied}");
    assert!(refused(one, &as_alice(&["auth", "disable"])).contains("permission denied"));
    assert_eq!(says(two, &as_root(&["auth", "disable"])), "Authentication Disabled\n");
    assert_eq!(says(one, &["get", "secret"]), "secret\ns\n");
}
