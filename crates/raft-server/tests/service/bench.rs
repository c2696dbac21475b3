//! The load generator, against real members.

use std::process::Output;
use std::time::Instant;

use raft_kv::proto::etcdserverpb::watch_request::RequestUnion;
use raft_kv::proto::etcdserverpb::{RangeRequest, WatchCreateRequest, WatchRequest};
use raft_server::proto::etcdserverpb::watch_client::WatchClient;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Members, PATIENCE, Process, channel_to, free_ports, kv, program};

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

/// Three members that elect nobody new when the processors are busy for a second.
fn patient_members() -> Members {
    let mut members = Members::configure(3);
    let text = std::fs::read_to_string(members.config()).unwrap();
    let patient = text.replace("start: 300.0, end: 500.0", "start: 2000.0, end: 4000.0");
    assert_ne!(patient, text);
    std::fs::write(members.config(), patient).unwrap();
    for index in 0..3 {
        members.start_one(index);
    }
    members
}

/// What the members elected so far: another term is another leader.
async fn term(members: &Members) -> u64 {
    members.leader().await;
    let status = raft_server::client::status(&members.addresses[0]).await.unwrap();
    status.header.unwrap().raft_term
}

fn end_of(prefix: &str) -> String {
    format!("{prefix}\u{7f}")
}

/// Waits until somebody writes under the prefix, from now on.
async fn until_written(address: &str, prefix: &str) {
    let create = WatchCreateRequest {
        key: prefix.to_owned().into(),
        range_end: end_of(prefix).into(),
        ..WatchCreateRequest::default()
    };
    let create = WatchRequest { request_union: Some(RequestUnion::CreateRequest(create)) };
    let heard = async {
        let mut client = WatchClient::new(channel_to(address));
        // The stream lasts as long as its requests do.
        let (requests, receiver) = tokio::sync::mpsc::channel(1);
        requests.send(create).await.unwrap();
        let requests_stream = tokio_stream::wrappers::ReceiverStream::new(receiver);
        let mut answers = client.watch(requests_stream).await.unwrap().into_inner();
        while answers.message().await.unwrap().unwrap().events.is_empty() {}
        drop(requests);
    };
    let heard = tokio::time::timeout(PATIENCE, heard).await;
    heard.unwrap_or_else(|_| panic!("nobody writes under {prefix}"));
}

/// How many keys lie under the prefix.
async fn count(address: &str, prefix: &str) -> i64 {
    let request = RangeRequest {
        key: prefix.to_owned().into(),
        range_end: end_of(prefix).into(),
        count_only: true,
        ..RangeRequest::default()
    };
    kv(address).range(request).await.unwrap().into_inner().count
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn every_kind_counts_what_it_sends() {
    let members = patient_members();
    let endpoints = members.addresses.join(",");
    let common = ["--endpoints", &endpoints, "--keys", "250", "--clients", "8", "--json"];
    // An election in the middle is no fault of the load generator: only then a load is tried again.
    let bench = async |arguments: &[&str]| {
        let deadline = Instant::now() + PATIENCE;
        loop {
            let before = term(&members).await;
            let output = run(&[&["bench"], arguments, &common].concat());
            let measured = output.status.success().then(|| json(&output));
            if let Some(json) = measured.filter(|json| json["errors"] == 0) {
                return json;
            }
            let excused = term(&members).await != before && Instant::now() < deadline;
            let (out, err) = (text(&output.stdout), text(&output.stderr));
            assert!(excused, "{arguments:?}: {out}{err}");
        }
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
        let json = bench(arguments).await;
        assert_eq!((&json["requests"], &json["errors"]), (&300.into(), &0.into()), "{json}");
        assert_eq!(json["empty_reads"], 0, "{json}");
        assert!(json["p50_us"].as_f64().unwrap() > 0.0, "{json}");
        assert!(json["p50_us"].as_f64() <= json["max_us"].as_f64(), "{json}");
    }
    assert_eq!(count(&members.addresses[0], "/rusty-raft-bench/0").await, 250);
    assert_eq!(count(&members.addresses[0], "/in-order/").await, 250, "all keys, some twice");
    // Twenty keys of 256 B each.
    let json = bench(&["range", "--total", "10", "--limit", "20"]).await;
    assert!(json["bytes_received"].as_u64().unwrap() > 10 * 20 * 256, "{json}");

    let json = bench(&["watch", "--total", "50", "--watchers", "30", "--streams", "4"]).await;
    assert_eq!((&json["events"], &json["events_missing"]), (&1500.into(), &0.into()), "{json}");

    let output =
        run(&["bench", "put", "--endpoints", &endpoints, "--seconds", "0.2", "--warmup", "0"]);
    let shown = text(&output.stdout);
    for part in ["throughput", "p99.9", "█", " failed"] {
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
    until_written(&endpoint, "/mine/").await;
    members.kill9(0);
    // One client's failures are the sign that it has noticed; the signal ends it in good order.
    members.start_one(0);
    members.leader().await;
    bench.signal(Signal::INT);
    let json: Value = serde_json::from_str(&bench.line_with("ops_per_sec")).unwrap();
    assert!(json["requests"].as_u64().unwrap() > 0, "{json}");
    assert!(json["errors"].as_u64().unwrap() > 0, "{json}");
    assert!(bench.ended_within(PATIENCE).success());

    let nobody = format!("127.0.0.1:{}", free_ports(1));
    let output = run(&["bench", "put", "--endpoints", &nobody]);
    assert_eq!(output.status.code(), Some(1));
    assert!(text(&output.stderr).contains("does not answer"), "{}", text(&output.stderr));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn a_member_that_stops_in_good_order_is_waited_for() {
    let mut members = Members::start(1);
    members.leader().await;
    let endpoint = members.addresses[0].clone();
    let mut command = program();
    command.args(["bench", "put", "--endpoints", &endpoint, "--clients", "8", "--threads", "1"]);
    command.args(["--connections", "1", "--total", "100000000", "--json", "--prefix", "/mine/"]);
    let mut bench = Process::start(command);
    until_written(&endpoint, "/mine/").await;
    // It announces its end to each connection, which from then on refuses every request at once.
    members.process(0).signal(Signal::TERM);
    let since = Instant::now();
    assert!(members.process(0).ended_within(PATIENCE).success());
    members.start_one(0);
    members.leader().await;
    until_written(&endpoint, "/mine/").await;
    let down = since.elapsed();
    bench.signal(Signal::INT);
    let json: Value = serde_json::from_str(&bench.line_with("ops_per_sec")).unwrap();
    assert!(bench.ended_within(PATIENCE).success());
    // Eight clients who pause for 10 ms each time.
    let errors = json["errors"].as_f64().unwrap();
    assert!(errors <= 8.0 * (down.as_secs_f64() * 100.0 + 1.0), "{down:?}: {json}");
    assert_eq!(json["interrupted"], true, "{json}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn whoever_interrupts_is_told_no_verdict() {
    let members = Members::start(1);
    members.leader().await;
    let endpoint = members.addresses[0].clone();

    let mut command = program();
    command.args(["check", "perf", "--seconds", "600", "--json", "--endpoints", &endpoint]);
    let mut check = Process::start(command);
    until_written(&endpoint, "/rusty-raft-check-perf/").await;
    check.signal(Signal::INT);
    let json: Value = serde_json::from_str(&check.line_with("measured")).unwrap();
    assert!(json["pass"].is_null() && json["measured"]["interrupted"] == true, "{json}");
    check.line_with("no verdict");
    assert_eq!(check.ended_within(PATIENCE).code(), Some(1));
    assert_eq!(count(&endpoint, "/rusty-raft-check-perf/").await, 0);

    // While the keys that are to be read are still being written.
    let mut command = program();
    command.args(["bench", "get", "--keys", "99999999", "--endpoints", &endpoint]);
    let mut bench = Process::start(command);
    until_written(&endpoint, "/rusty-raft-bench/").await;
    bench.signal(Signal::INT);
    bench.line_with("interrupted while it prepared");
    assert_eq!(bench.ended_within(PATIENCE).code(), Some(1));
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
