//! A stock etcdctl, as operators use it. Runs where one is installed; CI installs it.

use std::process::{Command, Output};

use crate::support::Members;

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

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_stock_etcdctl_works_through_every_member() {
    if Command::new("etcdctl").arg("version").output().is_err() {
        eprintln!(
            "NOTICE: no etcdctl on the PATH: this test did nothing (Debian: apt install etcd-client)"
        );
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
}
