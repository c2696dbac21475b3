//! Whatever is wrong is said on one screen, with a code, and nothing is written.

use std::fs;
use std::net::TcpListener;
use std::path::Path;
use std::process::Output;

use crate::support::{Members, folder, free_ports, program, tree};

const NODE: &str = include_str!("../../../../config.ron");
const CLUSTER: &str = include_str!("../../../../cluster_config.ron");

/// Runs the program in `folder`; nothing there may change.
fn refused(folder: &Path, arguments: &[&str]) -> (i32, String) {
    let before = tree(folder);
    let output: Output = program().args(arguments).current_dir(folder).output().unwrap();
    assert_eq!(tree(folder), before, "{arguments:?} changed something on disk");
    let text = String::from_utf8(output.stderr).unwrap();
    // The list of all commands is longer than what is said about any of them.
    let screen = if arguments.is_empty() { 44 } else { 24 };
    assert!(text.lines().count() <= screen, "more than a screen:\n{text}");
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "", "errors go to standard error");
    (output.status.code().unwrap(), text)
}

#[test]
fn every_bad_configuration_of_a_node_is_refused_in_words() {
    // (what to change in the sample, into what, what the message must contain)
    let table: &[(&str, &str, &[&str])] = &[
        (
            "heartbeat_interval: 100,",
            "heartbeat_interval: 200,",
            &["config.ron:5:25", "heartbeat_interval", "not below", "at most half"],
        ),
        (
            "heartbeat_interval: 100,",
            "heartbeat_interval: \"x\",",
            &["config.ron:5:25", "expected float", "milliseconds"],
        ),
        ("heartbeat_interval: 100,", "heartbeat_interval 100,", &["config.ron:5:", "right"]),
        ("heartbeat_interval: 100,", "heartbeat_interval: 0,", &["config.ron:5:25", "more than 0"]),
        ("start: 200.0, end: 400.0", "start: 400.0, end: 200.0", &["config.ron:4:32", "reversed"]),
        ("start: 200.0, end: 400.0", "start: 200.0, end: 200.0", &["config.ron:4:32", "empty"]),
        ("start: 200.0, end: 400.0", "start: 0.0, end: 400.0", &["config.ron:4:32", "more than 0"]),
        ("127.0.0.1:38419", "127.0.0.1:47812", &["config.ron:3:42", "two members"]),
        ("127.0.0.1:38419", "localhost:47812", &["config.ron:3:42", "are the same"]),
        ("127.0.0.1:38419", "no-such-host.invalid:1", &["config.ron:3:42", "does not resolve"]),
        ("127.0.0.1:38419", "127.0.0.1", &["config.ron:3:42", "has no port"]),
        ("persistent_state_file: \"data.raft\",", "", &["persistent_state_file", "missing"]),
    ];
    for (from, to, parts) in table {
        let folder = folder();
        assert!(NODE.contains(from), "{from}");
        fs::write(folder.path().join("config.ron"), NODE.replace(from, to)).unwrap();
        let (code, text) = refused(folder.path(), &["node", "config.ron", "0"]);
        assert_eq!(code, 2, "{text}");
        for part in *parts {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
        assert!(text.ends_with("Nothing was written.\n"), "{text}");
    }
}

#[test]
fn every_bad_configuration_of_a_cluster_is_refused_in_words() {
    let table: &[(&str, &str, &[&str])] = &[
        ("data_path: \"raft_data/\",", "", &["data_path", "missing"]),
        ("data_path: \"raft_data/\",", "data_path: \"\",", &["cluster_config.ron:2:16", "empty"]),
        (
            "heartbeat_interval: 100,",
            "heartbeat_interval: 300,",
            &["heartbeat_interval", "not below"],
        ),
        (
            "heartbeat_interval: 100,",
            "heartbeat_interval: 100, port_range_start: 65534,",
            &["port_range_start", "65534 to 65536"],
        ),
        (
            "data_path: \"raft_data/\",",
            "data_path: \"cluster_config.ron/x\",",
            &["data_path", "cannot create"],
        ),
    ];
    for (from, to, parts) in table {
        let folder = folder();
        assert!(CLUSTER.contains(from), "{from}");
        let mut text = CLUSTER.replace(from, to);
        if !text.contains(" port_range_start: 6") {
            // Whatever else runs on this machine at the default ports.
            let port = format!("    port_range_start: {},\n)", free_ports(3));
            text = text.replace("\n)", &format!("\n{port}"));
        }
        fs::write(folder.path().join("cluster_config.ron"), text).unwrap();
        let (code, text) = refused(folder.path(), &["cluster", "cluster_config.ron", "3"]);
        assert_eq!(code, 2, "{text}");
        for part in *parts {
            assert!(text.contains(part), "{part:?} is missing in\n{text}");
        }
    }
}

#[test]
fn wrong_arguments_are_refused_in_words() {
    let folder = folder();
    fs::write(folder.path().join("config.ron"), NODE).unwrap();
    fs::write(folder.path().join("cluster_config.ron"), CLUSTER).unwrap();
    let table: &[(&[&str], &str)] = &[
        (&[], "Usage"),
        (&["serve"], "unrecognized subcommand"),
        (&["node"], "required"),
        (&["node", "config.ron"], "required"),
        (&["node", "config.ron", "3"], "an index from 0 to 2"),
        (&["node", "config.ron", "-1"], "invalid value"),
        (&["node", "config.ron", "one"], "invalid value"),
        (&["node", "nowhere.ron", "0"], "there is no such file"),
        (&["node", ".", "0"], "cannot be read"),
        (&["node", "cluster_config.ron", "0"], "persistent_state_file"),
        (&["node", "config.ron", "0", "--join", "127.0.0.1"], "has no port"),
        (&["cluster", "cluster_config.ron", "0"], "1 to 9"),
        (&["cluster", "cluster_config.ron", "10"], "1 to 9"),
        (&["cluster", "cluster_config.ron", "three"], "1 to 9"),
        (&["cluster", "nowhere.ron", "3"], "there is no such file"),
        (&["cluster", "config.ron", "3"], "data_path"),
    ];
    for (arguments, part) in table {
        let (code, text) = refused(folder.path(), arguments);
        assert_eq!(code, 2, "{arguments:?}: {text}");
        assert!(text.contains(part), "{part:?} is missing in\n{text}");
    }
}

#[test]
fn a_port_in_use_is_refused_before_anything_is_written() {
    let members = Members::configure(3);
    let _taken = TcpListener::bind(&members.addresses[0]).unwrap();
    let config = members.config();
    let folder = folder();
    let port = members.addresses[0].rsplit(':').next().unwrap();
    let text = CLUSTER.replace("heartbeat", &format!("port_range_start: {port}, heartbeat"));
    fs::write(folder.path().join("cluster_config.ron"), text).unwrap();
    // Both try for two seconds.
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let node = ["node", config.to_str().unwrap(), "0"];
            let (code, text) = refused(members.folder.path(), &node);
            assert_eq!(code, 69, "{text}");
            let address = &members.addresses[0];
            assert!(text.contains(address) && text.contains("another process"), "{text}");
        });
        let (code, text) = refused(folder.path(), &["cluster", "cluster_config.ron", "3"]);
        assert_eq!(code, 69, "{text}");
        assert!(text.contains("port_range_start"), "{text}");
    });
}

#[test]
fn a_cluster_of_another_size_is_refused_with_the_command_to_use() {
    let folder = folder();
    fs::write(folder.path().join("cluster_config.ron"), CLUSTER).unwrap();
    fs::create_dir(folder.path().join("raft_data")).unwrap();
    fs::write(folder.path().join("raft_data/config.ron"), NODE).unwrap();
    let (code, text) = refused(folder.path(), &["cluster", "cluster_config.ron", "5"]);
    assert_eq!(code, 2, "{text}");
    assert!(text.contains("holds a cluster of 3, not of 5"), "{text}");
    assert!(text.contains("rusty-raft cluster cluster_config.ron 3"), "{text}");
}

#[test]
fn data_that_another_process_uses_is_refused() {
    let mut members = Members::start(1);
    // The same data folder under another address: the port does not give it away.
    let other = members.folder.path().join("other.ron");
    let text = fs::read_to_string(members.config()).unwrap();
    let port = free_ports(1);
    fs::write(&other, text.replace(&members.addresses[0], &format!("127.0.0.1:{port}"))).unwrap();
    let output = program().arg("node").arg(&other).arg("0").output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(65), "{text}");
    assert!(text.contains("in use by another process"), "{text}");
    assert!(members.process(0).child.try_wait().unwrap().is_none(), "the first one goes on");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn data_of_another_member_is_refused() {
    let mut members = Members::start(3);
    members.leader().await;
    for index in 0..3 {
        members.kill9(index);
    }
    let data = |index| members.folder.path().join(format!("node_{index}_data.raft"));
    fs::remove_dir_all(data(0)).unwrap();
    fs::rename(data(1), data(0)).unwrap();
    let output = members.command(0).output().unwrap();
    let text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(65), "{text}");
    assert!(text.contains("belongs to member") && text.contains(&members.addresses[1]), "{text}");
}

#[test]
fn a_data_folder_that_cannot_be_made_is_refused() {
    let members = Members::configure(1);
    let config = members.config();
    let text = fs::read_to_string(&config).unwrap();
    fs::write(&config, text.replace("data.raft", "config.ron/data.raft")).unwrap();
    let (code, text) = refused(members.folder.path(), &["node", config.to_str().unwrap(), "0"]);
    assert_eq!(code, 65, "{text}");
    assert!(text.contains("node_0_data.raft"), "{text}");
}

#[test]
fn help_and_versions_are_everywhere() {
    for arguments in
        [&["--help"][..], &["node", "--help"], &["cluster", "--help"], &["status", "--help"]]
    {
        let output = program().args(arguments).output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains("Usage: rusty-raft"));
    }
    for arguments in [
        &["--version"][..],
        &["node", "--version"],
        &["cluster", "--version"],
        &["status", "--version"],
    ] {
        let output = program().args(arguments).output().unwrap();
        assert!(output.status.success());
        assert!(String::from_utf8(output.stdout).unwrap().contains(env!("CARGO_PKG_VERSION")));
    }
}
