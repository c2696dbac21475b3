//! The commands of a client: the same words to a stock etcdctl and to ours, the same on standard output.

use std::io::Write as _;
use std::process::{Command, Output, Stdio};

use rustix::process::Signal;

use crate::etcdctl::is_missing;
use crate::support::{Members, PATIENCE, Process, folder, program};

fn output(mut command: Command, endpoints: &str, words: &[&str], input: &str) -> Output {
    command.env("ETCDCTL_API", "3").env("ETCDCTL_ENDPOINTS", endpoints).args(words);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().unwrap();
    // Whoever refuses the words may be gone before it reads.
    child.stdin.take().unwrap().write_all(input.as_bytes()).ok();
    child.wait_with_output().unwrap()
}

fn ours(endpoints: &str, words: &[&str], input: &str) -> Output {
    output(program(), endpoints, words, input)
}

fn said(output: &Output) -> String {
    String::from_utf8_lossy(&output.stdout).into_owned()
}

/// Without numbers, which differ from one request to the next, and without leases' names.
fn without_numbers(text: &str) -> String {
    let mut out = String::new();
    for run in text.split_inclusive(|c: char| !c.is_ascii_hexdigit()) {
        let digits = run.trim_end_matches(|c: char| !c.is_ascii_hexdigit());
        if digits.len() == 16 {
            out.push_str(&run.replacen(digits, "#", 1));
            continue;
        }
        for c in run.chars() {
            match c {
                '0'..='9' if out.ends_with('#') => {}
                '0'..='9' => out.push('#'),
                c => out.push(c),
            }
        }
    }
    out
}

/// The code with which ours ends where etcdctl ends with this one: 1 for what failed, 2 for what nobody can mean.
fn code_of(etcdctl: Option<i32>) -> Option<i32> {
    match etcdctl {
        Some(0) => Some(0),
        Some(1 | 2 | 5) => Some(1),
        Some(_) => Some(2),
        None => None,
    }
}

/// Both say the same. What changes the store is said once before, so that both find the same; numbers may differ.
#[track_caller]
fn alike(endpoint: &str, words: &[&str], input: &str, exactly: bool) {
    if !exactly {
        ours(endpoint, words, input);
    }
    let theirs = output(Command::new("etcdctl"), endpoint, words, input);
    let mine = ours(endpoint, words, input);
    let complaints = String::from_utf8_lossy(&mine.stderr).into_owned();
    let (one, other) = (said(&theirs), said(&mine));
    if exactly {
        assert_eq!(other, one, "{words:?}: {complaints}");
    } else {
        assert_eq!(without_numbers(&other), without_numbers(&one), "{words:?}: {complaints}");
    }
    let code = code_of(theirs.status.code());
    assert_eq!(mine.status.code(), code, "{words:?}: {complaints}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_same_words_give_the_same_output_as_etcdctl() {
    if is_missing() {
        return;
    }
    let members = Members::start(1);
    members.leader().await;
    let one = &*members.addresses[0];
    let id = without_prefix(&said(&ours(one, &["member", "list"], "")));

    // What changes something, in every format.
    for words in [
        &["put", "a", "1"][..],
        &["put", "a", "grün <&> \t\"x\"", "--prev-kv", "-w", "json"],
        &["put", "a", "x y", "--prev-kv", "-w", "fields"],
        &["put", "a", "2", "--prev-kv=true"],
        &["put", "b/1", "z"],
        &["put", "b/2", "y"],
        &["put", "b/3", "x"],
        &["put", "a", "--ignore-value"],
        &["put", "--ignore-value", "missing"],
        &["put", "a", "v", "--lease=7777"],
        &["put", "--", "dash", "-v"],
        &["lease", "grant", "60"],
        &["lease", "grant", "60", "-w", "json"],
        &["lease", "grant", "60", "--write-out=fields"],
        &["lease", "revoke", "7777"],
        &["lease", "keep-alive", "--once", "7777"],
        &["lease", "keep-alive", "7777"],
        &["member", "remove", "1"],
        &["member", "promote", "1"],
        &["move-leader", "1"],
        &["alarm", "disarm"],
        &["defrag"],
        &["endpoint", "status"],
        &["endpoint", "status", "-w", "json"],
        &["endpoint", "status", "-w", "fields"],
        &["endpoint", "status", "-w", "table"],
        &["endpoint", "health"],
        &["user", "get", "nobody"],
        &["role", "get", "nobody"],
        &["auth", "enable"],
    ] {
        alike(one, words, "", false);
    }
    alike(one, &["put", "from-stdin"], "a\nb", false);

    // What only reads, byte for byte.
    for words in [
        &["get", "a"][..],
        &["get", "a", "-w", "json"],
        &["get", "a", "-w", "fields"],
        &["get", "a", "--write-out", "protobuf"],
        &["get", "nothing"],
        &["get", "nothing", "-w", "json"],
        &["get", "b/", "--prefix"],
        &["get", "b/", "--prefix", "--keys-only"],
        &["get", "b/", "--prefix", "--limit=2", "-w", "json"],
        &["get", "b/", "--prefix", "--sort-by=value", "--order=ASCEND"],
        &["get", "b/", "--prefix", "--sort-by=CREATE", "--order=descend", "--print-value-only"],
        &["get", "b/1", "b/3"],
        &["get", "b/2", "--from-key"],
        &["get", "", "--prefix", "--hex"],
        &["get", "a", "--rev=3"],
        &["get", "a", "--rev=100000"],
        &["get", "a", "--consistency=s"],
        &["get", "--print-value-only", "from-stdin"],
        &["get", "dash"],
        &["get", ""],
        &["lease", "list"],
        &["lease", "list", "-w", "json"],
        &["lease", "list", "-w", "fields"],
        &["lease", "timetolive", "7777"],
        &["lease", "timetolive", "7777", "-w", "json"],
        &["lease", "timetolive", "7777", "-w", "fields"],
        &["member", "list"],
        &["member", "list", "-w", "json"],
        &["member", "list", "-w", "fields"],
        &["member", "list", "-w", "table"],
        &["endpoint", "hashkv"],
        &["endpoint", "hashkv", "-w", "json"],
        &["endpoint", "hashkv", "-w", "fields"],
        &["endpoint", "hashkv", "-w", "table"],
        &["alarm", "list"],
        &["alarm", "list", "-w", "json"],
        &["user", "list"],
        &["role", "list", "-w", "fields"],
        &["move-leader", &id],
    ] {
        alike(one, words, "", true);
    }

    let txn = "mod(\"a\") > \"0\"\nvalue(\"b/1\") = \"z\"\n\nput a \"new value\"\nget a\nget b/ --prefix --limit=1\ndel \"b/9\"\n\nget a\n\n";
    for words in [&["txn"][..], &["txn", "-i"], &["txn", "-w", "json"], &["txn", "-w", "fields"]] {
        alike(one, words, txn, false);
        alike(one, words, &txn.replace("\"z\"", "\"no\""), false);
    }
    for broken in ["mod(a) > \"0\"\n\n\n\n", "\nput a\n", "", "mod(\"a\") > \"0\"\n"] {
        alike(one, &["txn"], broken, true);
    }
    let deleted = said(&ours(one, &["del", "b/3", "--prev-kv", "-w", "json"], ""));
    assert!(deleted.contains(r#""deleted":1,"prev_kvs":[{"key":"Yi8z","#), "{deleted}");
    alike(one, &["del", "nothing"], "", true);
    assert_eq!(
        said(&ours(one, &["del", "b/", "--prefix", "--prev-kv"], "")),
        "2\nb/1\nz\nb/2\ny\n"
    );

    // Users and roles, each kind of change made once by either.
    let both = |before: &[&str], after: &[&str]| {
        for (name, other) in [("theirs", false), ("ours", true)] {
            let words: Vec<&str> =
                before.iter().copied().chain([name]).chain(after.iter().copied()).collect();
            let made = if other {
                ours(one, &words, "")
            } else {
                output(Command::new("etcdctl"), one, &words, "")
            };
            assert!(made.status.success(), "{words:?}: {}", String::from_utf8_lossy(&made.stderr));
            let made = said(&made);
            assert!(made.contains(name) || made.starts_with("Password"), "{words:?}: {made}");
        }
    };
    both(&["user", "add", "--no-password"], &[]);
    both(&["role", "add"], &[]);
    both(&["role", "grant-permission"], &["readwrite", "a/", "--prefix"]);
    both(&["role", "grant-permission"], &["read", "b", "c"]);
    both(&["role", "grant-permission"], &["write", "d", "--from-key"]);
    both(&["role", "grant-permission"], &["read", "e"]);
    both(&["user", "grant-role"], &["ours"]);
    for words in [
        &["role", "get", "ours"][..],
        &["role", "get", "ours", "-w", "json"],
        &["role", "get", "ours", "-w", "fields"],
        &["role", "get", "theirs"],
        &["role", "list"],
        &["user", "list", "-w", "json"],
        &["user", "get", "ours"],
        &["user", "get", "theirs", "--detail"],
    ] {
        alike(one, words, "", true);
    }
    both(&["role", "revoke-permission"], &["b", "c"]);
    both(&["role", "revoke-permission"], &["a/", "--prefix"]);
    both(&["user", "revoke-role"], &["ours"]);
    both(&["role", "delete"], &[]);
    both(&["user", "delete"], &[]);

    // Last, because it forgets.
    assert_eq!(said(&ours(one, &["compaction", "4"], "")), "compacted revision 4\n");
    alike(one, &["compact", "4"], "", true);
    alike(one, &["get", "a", "--rev=2"], "", true);
}

fn without_prefix(listed: &str) -> String {
    listed.split(',').next().unwrap_or_default().to_owned()
}

/// What is wrong on the command line is said on one screen, with what would be right.
#[test]
fn what_nobody_can_mean_ends_with_2_and_says_what_would_be_right() {
    for words in [
        &["get"][..],
        &["get", "a", "--nope"],
        &["get", "a", "b", "--prefix"],
        &["get", "a", "--prefix", "--from-key"],
        &["get", "a", "--sort-by=COLOUR"],
        &["get", "a", "-w", "xml"],
        &["get", "a", "-w", "table"],
        &["get", "a", "--rev=x"],
        &["get", "a", "--print-value-only", "--json"],
        &["get", "a", "--command-timeout=5"],
        &["get", "a", "--endpoints=unix://x"],
        &["get", "a", "--cert=x.pem"],
        &["get", "a", "--endpoints=https://a:1", "--cacert=/no/such/file"],
        &["put"],
        &["put", "k"],
        &["put", "k", "v", "--lease=xyz"],
        &["put", "k", "v", "--ignore-value"],
        &["del"],
        &["watch"],
        &["watch", "a", "b", "--prefix"],
        &["compact"],
        &["compact", "soon"],
        &["lease"],
        &["lease", "grant"],
        &["lease", "grant", "long"],
        &["lease", "revoke", "zz"],
        &["member", "add"],
        &["member", "add", "n1"],
        &["member", "remove", "n1"],
        &["endpoint"],
        &["endpoint", "health", "-w", "protobuf"],
        &["elect", "a"],
        &["elect", "a", "b", "--listen"],
        &["lock"],
        &["snapshot", "save"],
        &["snapshot", "save", "f", "--endpoints=a:1,b:1"],
        &["user", "add"],
        &["user", "add", ":pw"],
        &["user", "add", "asked"],
        &["role", "grant-permission", "r", "fly", "k"],
        &["txn", "extra"],
        &["move-leader", "n1"],
    ] {
        let refused = ours("127.0.0.1:1", words, "");
        let text = String::from_utf8(refused.stderr).unwrap();
        assert_eq!(refused.status.code(), Some(2), "{words:?}: {text}");
        assert!(text.lines().count() <= 40 && text.len() > 20, "{words:?}: {text}");
        assert!(
            text.contains("right")
                || text.contains("Usage")
                || text.contains("--help")
                || text.contains("--key")
                || text.contains("/no/such/file"),
            "{words:?}: {text}"
        );
    }
    let nobody = ours("127.0.0.1:1", &["get", "a"], "");
    assert_eq!(nobody.status.code(), Some(1));
    assert!(String::from_utf8(nobody.stderr).unwrap().contains("127.0.0.1:1: "));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn watches_locks_and_elections_go_on_through_other_members() {
    let mut members = Members::start(3);
    let leader = members.leader().await;
    let follower = (leader + 1) % 3;
    let all = format!("127.0.0.1:1,{},{}", members.addresses[follower], members.addresses[leader]);
    let running = |words: &[&str]| {
        let mut command = program();
        command.env("ETCDCTL_ENDPOINTS", &all).args(words);
        Process::start(command)
    };
    let does = |words: &[&str]| {
        let done = ours(&all, words, "");
        let complaints = String::from_utf8_lossy(&done.stderr).into_owned();
        assert!(done.status.success(), "{words:?}: {complaints}");
        said(&done)
    };

    assert_eq!(does(&["put", "w/1", "a"]), "OK\n");
    let mut watch = running(&["watch", "w/", "--prefix", "--rev=1"]);
    let mut runs = running(&[
        "watch",
        "w/",
        "--prefix",
        "--rev=1",
        "--",
        "sh",
        "-c",
        "echo $ETCD_WATCH_EVENT_TYPE $ETCD_WATCH_KEY $ETCD_WATCH_VALUE",
    ]);
    watch.line_with("w/1");
    runs.line_with("\"PUT\" \"w/1\" \"a\"");
    let mut lock = running(&["lock", "mutex"]);
    lock.line_with("mutex/");
    let under = ours(&all, &["lock", "other", "sh", "-c", "echo $ETCD_LOCK_KEY; exit 3"], "");
    assert!(said(&under).starts_with("other/"), "{under:?}");
    assert_eq!(under.status.code(), Some(1));
    let mut office = running(&["elect", "office", "alice"]);
    office.line_with("alice");
    let mut listener = running(&["elect", "--listen", "office"]);
    listener.line_with("alice");

    // The member that all of them speak to goes away.
    members.kill9(follower);
    assert_eq!(does(&["put", "w/2", "b"]), "OK\n");
    watch.line_with("w/2");
    runs.line_with("\"PUT\" \"w/2\" \"b\"");
    let mut waiting = running(&["lock", "mutex"]);
    let mut next = running(&["elect", "office", "bob"]);
    for (process, _) in [(&mut lock, "lock"), (&mut office, "office")] {
        process.signal(Signal::INT);
        assert!(process.ended_within(PATIENCE).success());
    }
    waiting.line_with("mutex/");
    next.line_with("bob");
    listener.line_with("bob");
    let lines = watch_lines(watch);
    assert_eq!(lines, ["PUT", "w/1", "a", "PUT", "w/2", "b"]);

    // What is saved is whole.
    let folder = folder();
    let file = folder.path().join("snapshot.db");
    let file = file.to_str().unwrap();
    let live = &*members.addresses[leader];
    let saved = ours(live, &["snapshot", "save", file], "");
    assert_eq!(said(&saved), format!("Snapshot saved at {file}\n"));
    assert!(!std::path::Path::new(&format!("{file}.part")).exists());
    assert!(std::fs::metadata(file).unwrap().len() % 512 == 32);
}

/// Everything that a watch printed until it was stopped.
fn watch_lines(mut watch: Process) -> Vec<String> {
    watch.signal(Signal::TERM);
    watch.rest().lines().map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn users_come_in_and_others_do_not() {
    let members = Members::start(1);
    members.leader().await;
    let one = &*members.addresses[0];
    let done = |words: &[&str]| {
        let done = ours(one, words, "");
        (said(&done), String::from_utf8_lossy(&done.stderr).into_owned())
    };
    assert_eq!(done(&["user", "add", "root:pw"]).0, "User root created\n");
    assert_eq!(done(&["put", "k", "v", "--user=root:pw"]).0, "OK\n");
    assert_eq!(done(&["auth", "enable"]).0, "Authentication Enabled\n");
    assert_eq!(done(&["get", "k"]).1, "Error: etcdserver: user name is empty\n");
    assert_eq!(done(&["get", "k", "--user=root:pw"]).0, "k\nv\n");
    assert_eq!(done(&["get", "k", "--user=root", "--password=pw"]).0, "k\nv\n");
    let wrong = done(&["get", "k", "--user=root:no"]).1;
    assert!(wrong.contains("invalid user ID or password"), "{wrong}");
    let asked = done(&["get", "k", "--user=root"]).1;
    assert!(asked.contains("no terminal") && asked.contains("--password"), "{asked}");
    let status = done(&["auth", "status", "--user=root:pw"]).0;
    assert!(status.starts_with("Authentication Status: true\n"), "{status}");
    let passwd =
        ours(one, &["user", "passwd", "root", "--interactive=false", "--user=root:pw"], "new\n");
    assert_eq!(said(&passwd), "Password updated\n");
    assert_eq!(done(&["--user=root:new", "auth", "disable"]).0, "Authentication Disabled\n");
    assert_eq!(done(&["get", "k"]).0, "k\nv\n");
}
