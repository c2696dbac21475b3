//! Data of another cluster in a member's folder: refused in words, and not a byte is changed.

use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use rustix::process::Signal;

use crate::support::{Members, Process, cluster_command, contents, put, until_serving};

/// Runs `command`, which must be refused because of the data in `folder`, where nothing may change.
fn refused(command: &mut Command, folder: &Path) -> String {
    let before = contents(folder);
    let output = command.output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(65), "{text}");
    assert!(contents(folder) == before, "something on disk was changed");
    assert!(text.lines().count() <= 24, "more than a screen:\n{text}");
    text
}

/// Three members that have formed a cluster and stopped; one write is in it.
async fn formed() -> Members {
    let mut members = Members::start(3);
    members.leader().await;
    put(&members.addresses[0], "k", "v").await.unwrap();
    for index in 0..3 {
        members.kill9(index);
    }
    members
}

fn data(members: &Members, index: usize) -> std::path::PathBuf {
    members.folder.path().join(format!("node_{index}_data.raft"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_of_a_cluster_of_other_members_is_refused_and_an_address_may_change() {
    let mut ours = formed().await;
    let theirs = Members::configure(3);
    fs::rename(data(&ours, 0), data(&theirs, 0)).unwrap();
    let text = refused(&mut theirs.command(0), theirs.folder.path());
    for part in ["node_0_data.raft/cluster", "cluster", &ours.addresses[2], &theirs.addresses[2]] {
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
    // The same data, where one of the others is known: that member's own address may be another one now.
    fs::rename(data(&theirs, 0), data(&ours, 0)).unwrap();
    let config = fs::read_to_string(ours.config()).unwrap();
    fs::write(ours.config(), config.replace(&ours.addresses[0], &theirs.addresses[0])).unwrap();
    ours.addresses[0].clone_from(&theirs.addresses[0]);
    for index in [0, 1] {
        ours.start_one(index);
    }
    until_serving(&ours.addresses[0]).await;
}

/// The lists are the same on both sides, as with two clusters at the default ports: only the others can tell.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_member_whose_data_is_of_another_cluster_than_the_others_ends_with_a_message() {
    let mut members = formed().await;
    let kept = members.folder.path().join("kept");
    fs::rename(data(&members, 0), &kept).unwrap();
    for index in [1, 2] {
        fs::remove_dir_all(data(&members, index)).unwrap();
    }
    // A second cluster at the same addresses.
    for index in 0..3 {
        members.start_one(index);
    }
    members.leader().await;
    members.kill9(0);
    fs::remove_dir_all(data(&members, 0)).unwrap();
    fs::rename(&kept, data(&members, 0)).unwrap();
    let mut stranger = Process::start(members.command(0));
    let status = stranger.ended_within(Duration::from_secs(10));
    let text = stranger.rest();
    assert_eq!(status.code(), Some(65), "{text}");
    assert!(
        text.contains("most of the configured members") && text.contains(&members.addresses[1]),
        "{text}"
    );
    put(&members.addresses[1], "k", "the others go on").await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_cluster_with_data_of_another_one_is_refused() {
    let folders = [crate::support::folder(), crate::support::folder()];
    let mut addresses = Vec::new();
    for folder in &folders {
        let (command, address) = cluster_command(folder.path(), 3);
        let mut cluster = Process::start(command);
        cluster.line_with("  leader  n");
        cluster.signal(Signal::TERM);
        cluster.ended_within(Duration::from_secs(2));
        addresses.push(address);
    }
    let data = |folder: usize, index: usize| {
        folders[folder].path().join(format!("raft_data/node_{index}_data.raft"))
    };
    let again = || {
        let mut command = crate::support::program();
        command.arg("cluster").arg(folders[0].path().join("cluster_config.ron")).arg("3");
        command
    };
    // All of it from elsewhere, and nothing beside it that tells.
    let own = folders[0].path().join("own");
    fs::rename(folders[0].path().join("raft_data"), &own).unwrap();
    fs::rename(folders[1].path().join("raft_data"), folders[0].path().join("raft_data")).unwrap();
    fs::remove_file(folders[0].path().join("raft_data/config.ron")).unwrap();
    let text = refused(&mut again(), folders[0].path());
    assert!(text.contains(&addresses[0]) && text.contains(&addresses[1]), "{text}");
    // One member's from a cluster that had the same addresses.
    fs::remove_dir_all(folders[0].path().join("raft_data")).unwrap();
    let mut cluster = Process::start(again());
    cluster.line_with("  leader  n");
    cluster.signal(Signal::TERM);
    cluster.ended_within(Duration::from_secs(2));
    fs::remove_dir_all(data(0, 1)).unwrap();
    fs::rename(own.join("node_1_data.raft"), data(0, 1)).unwrap();
    let text = refused(&mut again(), folders[0].path());
    assert!(
        text.contains("node_1_data.raft/cluster") && text.contains("the other members'"),
        "{text}"
    );
}
