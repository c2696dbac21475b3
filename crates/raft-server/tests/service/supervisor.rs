//! `rusty-raft cluster`: starts, tells, restarts, stops.

use std::fs;
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fd::OwnedFd;
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open};

use crate::support::{
    Members, Process, cluster_command, folder, get, kill, program, put, until_serving,
};

/// The process of a member, from the banner.
fn pid(cluster: &mut Process, member: &str) -> u32 {
    let line = cluster.line_with(&format!("  {member}  "));
    line.split_whitespace().nth(2).unwrap().parse().unwrap()
}

fn handle(pid: u32) -> OwnedFd {
    pidfd_open(Pid::from_raw(i32::try_from(pid).unwrap()).unwrap(), PidfdFlags::empty()).unwrap()
}

/// Waits until the process is gone.
fn gone_within(process: &OwnedFd, seconds: i64) -> bool {
    let mut fds = [PollFd::new(process, PollFlags::IN)];
    poll(&mut fds, Some(&Timespec { tv_sec: seconds, tv_nsec: 0 })).unwrap() == 1
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_banner_tells_what_runs_and_who_leads() {
    let folder = folder();
    let (command, first) = cluster_command(folder.path(), 3);
    let mut cluster = Process::start(command);
    let leader = cluster.line_with("  leader  n");
    assert!(leader.contains("in term"), "{leader}");
    let line = cluster.line_with("  n2  ");
    assert!(line.contains("raft_data/node_2_data.raft"), "{line}");
    assert!(cluster.line_with("etcdctl --endpoints=").contains(&first));
    put(&first, "k", "v").await.unwrap();

    let output = program().args(["status", &first]).output().unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success() && text.contains("n0") && text.contains("3.7.0"), "{text}");
    let output = program().args(["status", "--json", &first]).output().unwrap();
    let json: serde_json::Value = serde_json::from_slice(&output.stdout).unwrap();
    assert_eq!(json["members"][0]["name"], "n0");
    assert!(json["leader"].is_string());

    cluster.signal(Signal::TERM);
    assert_eq!(cluster.ended_within(Duration::from_secs(2)).code(), Some(0));
    let output = program().args(["status", &first]).output().unwrap();
    assert_eq!(output.status.code(), Some(1), "nobody is there any more");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_of_one_keeps_its_data_and_node_takes_over() {
    let folder = folder();
    let (mut command, address) = cluster_command(folder.path(), 1);
    for round in 0..2 {
        let mut cluster = Process::start(std::mem::replace(&mut command, program()));
        cluster.line_with("  leader  n0");
        if round == 0 {
            put(&address, "k", "v").await.unwrap();
        }
        assert_eq!(get(&address, "k").await.unwrap().as_deref(), Some("v"));
        cluster.signal(Signal::INT);
        assert_eq!(cluster.ended_within(Duration::from_secs(2)).code(), Some(0));
        command.args(["cluster", folder.path().join("cluster_config.ron").to_str().unwrap(), "1"]);
    }
    let config = folder.path().join("raft_data/config.ron");
    let mut node = program();
    node.arg("node").arg(config).arg("0");
    let mut node = Process::start(node);
    node.line_with("serves clients at");
    until_serving(&address).await;
    assert_eq!(get(&address, "k").await.unwrap().as_deref(), Some("v"));
    node.signal(Signal::TERM);
    assert_eq!(node.ended_within(Duration::from_secs(2)).code(), Some(0));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_killed_member_is_started_again() {
    let folder = folder();
    let (command, first) = cluster_command(folder.path(), 3);
    let mut cluster = Process::start(command);
    cluster.line_with("  leader  n");
    put(&first, "k", "v").await.unwrap();
    kill(pid(&mut cluster, "n0"), Signal::KILL);
    cluster.next_line_with("n0 | ── was killed");
    cluster.next_line_with("serves clients at");
    until_serving(&first).await;
    assert_eq!(get(&first, "k").await.unwrap().as_deref(), Some("v"));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_restarts_a_killed_member_stays_down() {
    let folder = folder();
    let (mut command, _) = cluster_command(folder.path(), 1);
    command.arg("--no-restart");
    let mut cluster = Process::start(command);
    cluster.line_with("  leader  n0");
    kill(pid(&mut cluster, "n0"), Signal::KILL);
    cluster.next_line_with("not restarted");
    assert_eq!(cluster.ended_within(Duration::from_secs(2)).code(), Some(75));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn members_do_not_outlive_a_supervisor_that_is_killed() {
    let folder = folder();
    let (command, _) = cluster_command(folder.path(), 3);
    let mut cluster = Process::start(command);
    cluster.line_with("  leader  n");
    let members: Vec<OwnedFd> =
        ["n0", "n1", "n2"].map(|member| handle(pid(&mut cluster, member))).into();
    cluster.kill9();
    for member in &members {
        assert!(gone_within(member, 3), "a member lives on");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_stays_at_its_addresses() {
    let folder = folder();
    let (command, first) = cluster_command(folder.path(), 1);
    let mut cluster = Process::start(command);
    cluster.line_with("  leader  n0");
    let present = fs::read(folder.path().join("raft_data/config.ron")).unwrap();
    let (mut other, _) = cluster_command(folder.path(), 1);
    let output = other.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(2), "{text}");
    let port = first.rsplit(':').next().unwrap();
    assert!(text.contains(&format!("port_range_start: {port}")), "{text}");
    assert_eq!(fs::read(folder.path().join("raft_data/config.ron")).unwrap(), present);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_are_quiet_unless_asked() {
    let mut members = Members::start(1);
    members.leader().await;
    for n in 0..50 {
        put(&members.addresses[0], &format!("key-{n}"), "v").await.unwrap();
    }
    members.process(0).signal(Signal::TERM);
    members.process(0).ended_within(Duration::from_secs(2));
    let text = members.process(0).rest();
    assert!(text.lines().count() < 30, "a line per request?\n{text}");
    assert!(!text.contains("TRACE") && !text.contains("DEBUG"), "{text}");

    let mut traced = members.command(0);
    traced.env("RUST_LOG", "raft=trace");
    let mut traced = Process::start(traced);
    traced.line_with("TRACE");
    traced.line_with("serves clients at");
}
