//! What can be done with the folder of a stopped member: look at it, check it, and begin anew from it.

use std::path::{Path, PathBuf};
use std::process::Output;
use std::time::Duration;

use raft_kv::proto::etcdserverpb::MemberListRequest;
use raft_server::proto::etcdserverpb::cluster_client::ClusterClient;
use rustix::process::Signal;
use serde_json::Value;

use crate::support::{Members, Process, channel_to, contents, get, program, put, until_serving};

fn folder(members: &Members, index: usize) -> PathBuf {
    members.folder.path().join(format!("node_{index}_data.raft"))
}

/// Runs the program to its end.
fn run(arguments: &[&str], folders: &[&Path]) -> (Option<i32>, String) {
    let Output { status, stdout, stderr } =
        program().args(arguments).args(folders).output().unwrap();
    let text = [stdout, stderr].concat();
    (status.code(), String::from_utf8(text).unwrap())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_is_described_checked_and_not_changed() {
    let mut members = Members::start(1);
    members.leader().await;
    for number in 0..20 {
        put(&members.addresses[0], &format!("k{number}"), "v").await.unwrap();
    }
    let folder = folder(&members, 0);
    for command in ["inspect", "verify"] {
        let (code, text) = run(&[command], &[&folder]);
        assert_eq!(code, Some(65), "{text}");
        assert!(text.contains("is in use by another process"), "{text}");
    }
    members.kill9(0);
    let before = contents(&folder);

    let (code, text) = run(&["inspect"], &[&folder]);
    assert_eq!(code, Some(0), "{text}");
    for part in ["n0", "voter", &members.addresses[0], "by a crash", "segments", "sound"] {
        assert!(text.contains(part), "no {part:?} in\n{text}");
    }
    let (code, text) = run(&["inspect", "--json"], &[&folder]);
    assert_eq!(code, Some(0), "{text}");
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["membership"]["members"][0]["peer_address"], members.addresses[0].as_str());
    assert!(json["log"]["ends_at"]["index"].as_u64().unwrap() >= 20, "{text}");
    assert_eq!(json["slots"].as_array().unwrap().len(), 4);
    let (code, text) = run(&["verify"], &[&folder]);
    assert_eq!(code, Some(0), "{text}");
    assert_eq!(contents(&folder), before, "looking changed something");

    // One bit of the first batch.
    let segment = folder.join("0000000001.log");
    let mut bytes = std::fs::read(&segment).unwrap();
    bytes[4096 + 100] ^= 1;
    std::fs::write(&segment, bytes).unwrap();
    let (code, text) = run(&["verify"], &[&folder]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("0000000001.log at byte 4096"), "{text}");
    let (code, text) = run(&["verify", "--json"], &[&folder]);
    let json: Value = serde_json::from_str(&text).unwrap();
    assert_eq!((code, &json["damages"][0]["offset"]), (Some(1), &Value::from(4096)), "{text}");

    let nothing = members.folder.path();
    for command in ["inspect", "verify", "recover"] {
        for folder in [nothing, &nothing.join("missing"), &members.config()] {
            let (code, text) = run(&[command], &[folder]);
            // A file may be a snapshot: its bytes are what is wrong.
            let is_read = command == "verify" && folder.is_file();
            let (expected, words) =
                if is_read { (65, "no snapshot") } else { (66, "no state folder") };
            assert_eq!(code, Some(expected), "{text}");
            assert!(text.contains(words), "{text}");
        }
    }
}

/// Two of three folders are gone for ever.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_left_of_a_lost_quorum_becomes_a_cluster_that_grows_again() {
    let mut members = Members::start(3);
    members.leader().await;
    for number in 0..50 {
        put(&members.addresses[0], &format!("k{number}"), &format!("v{number}")).await.unwrap();
    }
    // Read through it, and stopped cleanly: it has them all, on its disk, too.
    assert!(get(&members.addresses[2], "k49").await.unwrap().is_some());
    let mut process = members.processes[2].take().unwrap();
    process.signal(Signal::TERM);
    assert_eq!(process.ended_within(Duration::from_secs(20)).code(), Some(0));
    let survivor = folder(&members, 2);

    // The two others are alive and well.
    let before = contents(&survivor);
    let (code, text) = run(&["recover", "--yes"], &[&survivor]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("may be alive") && text.contains("answers: term"), "{text}");
    members.kill9(0);
    members.kill9(1);
    let (code, text) = run(&["recover", "--yes"], &[&survivor, &folder(&members, 0)]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("these folders are a quorum"), "{text}");
    for lost in [0, 1] {
        std::fs::remove_dir_all(folder(&members, lost)).unwrap();
    }
    let (code, text) = run(&["recover"], &[&survivor]);
    assert_eq!(code, Some(1), "{text}");
    assert!(text.contains("nobody is there to be asked"), "{text}");
    assert_eq!(contents(&survivor), before, "a refusal changed something");

    let (code, text) = run(&["recover", "--yes"], &[&survivor]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("Lost is") && text.contains("Done."), "{text}");
    let kept = members.folder.path().join("node_2_data.raft.before-recovery");
    let names = |found: Vec<(PathBuf, Vec<u8>)>, dir: &Path| -> Vec<(PathBuf, Vec<u8>)> {
        let relative = |path: PathBuf| path.strip_prefix(dir).unwrap().to_path_buf();
        found.into_iter().map(|(path, bytes)| (relative(path), bytes)).collect()
    };
    assert_eq!(names(contents(&kept), &kept), names(before, &survivor), "the old folder changed");
    let (code, text) = run(&["verify"], &[&survivor]);
    assert_eq!(code, Some(0), "{text}");

    // Alone, with everything, and it takes more.
    members.start_one(2);
    members.leader().await;
    let address = members.addresses[2].clone();
    for number in 0..50 {
        let value = get(&address, &format!("k{number}")).await.unwrap();
        assert_eq!(value, Some(format!("v{number}")));
    }
    put(&address, "after", "recovery").await.unwrap();

    // The others come with empty folders, and are taken in.
    for index in [0, 1] {
        let mut process = Process::start(members.command(index));
        process.line_with("serves clients at");
        members.processes[index] = Some(process);
        until_serving(&members.addresses[index]).await;
        assert_eq!(
            get(&members.addresses[index], "after").await.unwrap().as_deref(),
            Some("recovery")
        );
    }
    // A list shows the configuration in force, which may still be on its way through a joint one.
    let complete = |line: String| {
        let (_, membership) = line.split_once("membership=").unwrap();
        let voters_alone = !membership.contains("outgoing") && !membership.contains("learners");
        voters_alone && membership.matches(", ").count() == 2
    };
    while !complete(members.process(2).next_line_with("membership committed")) {}
    let mut client = ClusterClient::new(channel_to(&address));
    let list = client.member_list(MemberListRequest { linearizable: true }).await.unwrap();
    let list = list.into_inner().members;
    assert!(list.len() == 3 && list.iter().all(|member| !member.is_learner), "{list:?}");
    // The recovered one may go: the others are a quorum and have everything.
    members.kill9(2);
    members.leader().await;
    assert_eq!(get(&members.addresses[0], "k7").await.unwrap().as_deref(), Some("v7"));
}
