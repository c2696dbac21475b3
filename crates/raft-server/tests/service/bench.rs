//! The load generator, against real members.

use std::process::Output;

use raft_kv::proto::etcdserverpb::RangeRequest;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Members, Process, free_ports, kv, program};

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

fn json(output: &Output) -> Value {
    serde_json::from_slice(&output.stdout)
        .unwrap_or_else(|error| panic!("{error}: {}", text(&output.stderr)))
}

/// How many keys lie under the prefix.
async fn count(address: &str, prefix: &str) -> i64 {
    let request = RangeRequest {
        key: prefix.to_owned().into(),
        range_end: format!("{prefix}\u{7f}").into(),
        count_only: true,
        ..RangeRequest::default()
    };
    kv(address).range(request).await.unwrap().into_inner().count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_kind_counts_what_it_sends() {
    let members = Members::start(3);
    members.leader().await;
    let endpoints = members.addresses.join(",");
    let bench = |arguments: &[&str]| {
        let common = ["--endpoints", &endpoints, "--keys", "250", "--clients", "8", "--json"];
        let output = run(&[&["bench"], arguments, &common].concat());
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        json(&output)
    };
    for arguments in [
        &["put", "--total", "300"][..],
        &["get", "--total", "300", "--threads", "2"],
        &["get", "--total", "300", "--serializable", "--target", "follower"],
        &["mixed", "--total", "300", "--read-percent", "40"],
        &["txn", "--total", "300"],
        &["range", "--total", "300", "--limit", "20"],
        &["put", "--total", "300", "--rate", "3000", "--target", "leader"],
        &["put", "--total", "300", "--sequential", "--prefix", "/in-order/", "--threads", "2"],
    ] {
        let json = bench(arguments);
        assert_eq!((&json["requests"], &json["errors"]), (&300.into(), &0.into()), "{json}");
        assert_eq!(json["empty_reads"], 0, "{json}");
        assert!(json["p50_us"].as_f64().unwrap() > 0.0, "{json}");
        assert!(json["p50_us"].as_f64() <= json["max_us"].as_f64(), "{json}");
    }
    assert_eq!(count(&members.addresses[0], "/rusty-raft-bench/0").await, 250);
    assert_eq!(count(&members.addresses[0], "/in-order/").await, 250, "all keys, some twice");
    // Twenty keys of 256 B each.
    let json = bench(&["range", "--total", "10", "--limit", "20"]);
    assert!(json["bytes_received"].as_u64().unwrap() > 10 * 20 * 256, "{json}");

    let json = bench(&["watch", "--total", "50", "--watchers", "30", "--streams", "4"]);
    assert_eq!((&json["events"], &json["events_missing"]), (&1500.into(), &0.into()), "{json}");

    let output =
        run(&["bench", "put", "--endpoints", &endpoints, "--seconds", "0.2", "--warmup", "0"]);
    let shown = text(&output.stdout);
    for part in ["throughput", "p99.9", "█", "0 failed"] {
        assert!(shown.contains(part), "no {part:?} in\n{shown}");
    }
    assert_eq!(text(&output.stderr), "", "no progress bar where no terminal is");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn failures_are_counted_and_named() {
    let mut members = Members::start(1);
    members.leader().await;
    let endpoint = members.addresses[0].clone();
    let put = ["bench", "put", "--endpoints", &endpoint, "--clients", "2"];
    // Longer than the server takes.
    let output = run(&[&put[..], &["--total", "4", "--value-size", "2000000"]].concat());
    assert_eq!(output.status.code(), Some(1), "nothing succeeded");
    let shown = text(&output.stdout);
    assert!(shown.contains("4 failed") && shown.contains("request is too large"), "{shown}");

    // A member that dies meanwhile: what it answered counts, the others are failures.
    let mut command = program();
    command.args(put).args(["--total", "100000000", "--timeout", "0.5", "--json"]);
    command.args(["--prefix", "/mine/"]);
    let mut bench = Process::start(command);
    while count(&endpoint, "/mine/").await == 0 {}
    members.kill9(0);
    // One client's failures are the sign that it has noticed; the signal ends it in good order.
    members.start_one(0);
    members.leader().await;
    bench.signal(Signal::INT);
    let json: Value = serde_json::from_str(&bench.line_with("ops_per_sec")).unwrap();
    assert!(json["requests"].as_u64().unwrap() > 0, "{json}");
    assert!(json["errors"].as_u64().unwrap() > 0, "{json}");
    assert!(bench.ended_within(crate::support::PATIENCE).success());

    let nobody = format!("127.0.0.1:{}", free_ports(1));
    let output = run(&["bench", "put", "--endpoints", &nobody]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("does not answer"), "{}", text(&output.stderr));
}

#[test]
fn what_makes_no_sense_is_refused() {
    for (arguments, word) in [
        (&["fetch"][..], "possible values: put, get"),
        (&["put", "--serializable"], "get, mixed and range"),
        (&["put", "--read-percent", "5"], "is for mixed"),
        (&["get", "--sequential"], "is for put"),
        (&["mixed", "--read-percent", "101"], "0 to 100"),
        (&["put", "--clients", "0"], "1 to 100000"),
        (&["put", "--rate", "0"], "requests a second"),
        (&["put", "--rate", "-1"], "requests a second"),
        (&["put", "--rate", "nan"], "requests a second"),
        (&["put", "--seconds", "0"], "more than 0"),
        (&["put", "--seconds", "1", "--total", "1"], "cannot be used with"),
        (&["put", "--total", "0"], "1 at least"),
        (&["put", "--keys", "1000", "--key-size", "2"], "can be 1 to 100"),
        (&["range", "--limit", "11", "--keys", "10"], "1 to the 10"),
        (&["watch", "--value-size", "7"], "8 at least"),
        (&["watch", "--streams", "0"], "1 to 10000"),
        (&["put", "--endpoints", "localhost"], "host:port"),
        (&["put", "--endpoints", "https://localhost:1"], "TLS"),
    ] {
        let output = run(&[&["bench"], arguments].concat());
        let words = text(&output.stderr);
        assert_eq!(output.status.code(), Some(2), "{arguments:?}: {words}");
        assert!(words.contains(word), "{arguments:?}: {words}");
    }
    let output = run(&["check", "perf", "--load", "xxl"]);
    assert_eq!(output.status.code(), Some(2));
    assert!(text(&output.stderr).contains("there are s, m, l and xl"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_check_says_pass_or_fail_and_leaves_nothing() {
    let members = Members::start(1);
    members.leader().await;
    let endpoint = &members.addresses[0];
    let check = ["check", "perf", "--seconds", "1", "--json", "--endpoints", endpoint];
    let output = run(&check);
    let json = json(&output);
    let passed = json["pass"].as_bool().unwrap();
    assert_eq!(output.status.code(), Some(if passed { 0 } else { 1 }), "{json}");
    assert_eq!(json["findings"].as_array().unwrap().len(), 4, "{json}");
    assert!(json["measured"]["requests"].as_u64().unwrap() > 0, "{json}");
    assert_eq!(count(endpoint, "/rusty-raft-check-perf/").await, 0);

    // Somebody's keys are nobody else's to delete.
    crate::support::put(endpoint, "/rusty-raft-check-perf/x", "mine").await.unwrap();
    let output = run(&check);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("1 keys lie under"), "{}", text(&output.stderr));
    assert_eq!(count(endpoint, "/rusty-raft-check-perf/").await, 1);
}
