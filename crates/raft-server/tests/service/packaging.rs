//! What is in packaging/: each file is checked by what reads it, or against what members say.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use saphyr_parser::{Event, Parser};

use crate::support::{Members, folder, program, put};

fn packaging() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("../../packaging")
}

fn read(name: &str) -> String {
    fs::read_to_string(packaging().join(name)).unwrap()
}

/// Every scalar of a YAML file, in order: keys and values.
fn scalars(text: &str) -> Vec<String> {
    let events = Parser::new_from_str(text).map(|event| event.unwrap().0);
    let text_of = |event| {
        if let Event::Scalar(text, ..) = event { Some(text.into_owned()) } else { None }
    };
    events.filter_map(text_of).collect()
}

#[test]
fn systemd_understands_the_unit() {
    if Command::new("systemd-analyze").arg("--version").output().is_err() {
        eprintln!("NOTICE: no systemd-analyze on the PATH: this test did nothing");
        return;
    }
    let folder = folder();
    let unit = read("systemd/rusty-raft.service")
        .replace("/usr/bin/rusty-raft", env!("CARGO_BIN_EXE_rusty-raft"))
        .replace("Documentation=man:rusty-raft(1)\n", "");
    let backup = packaging().join("systemd/rusty-raft-backup");
    let saving = read("systemd/rusty-raft-backup.service")
        .replace("/usr/bin/rusty-raft-backup", backup.to_str().unwrap());
    let timer = read("systemd/rusty-raft-backup.timer");
    for (name, unit) in [
        ("rusty-raft.service", unit),
        ("rusty-raft-backup.service", saving),
        ("rusty-raft-backup.timer", timer),
    ] {
        let path = folder.path().join(name);
        fs::write(&path, unit).unwrap();
        let output = Command::new("systemd-analyze").arg("verify").arg(&path).output().unwrap();
        let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
        let ours: Vec<&str> = text.lines().filter(|line| line.contains(name)).collect();
        assert!(output.status.success() && ours.is_empty(), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn backups_are_whole_and_the_oldest_go() {
    let members = Members::start(1);
    members.leader().await;
    put(&members.addresses[0], "k", "v").await.unwrap();
    let folder = folder();
    let backups = folder.path().join("backups");
    fs::create_dir(&backups).unwrap();
    for name in ["20200101T000000Z.db", "20200102T000000Z.db", "other.db", "unfinished"] {
        fs::write(backups.join(name), "old").unwrap();
    }
    let run = |endpoint: &str| {
        let bin = folder.path().join("bin");
        if !bin.exists() {
            fs::create_dir(&bin).unwrap();
            let program = env!("CARGO_BIN_EXE_rusty-raft");
            std::os::unix::fs::symlink(program, bin.join("rusty-raft")).unwrap();
        }
        let path = std::env::var_os("PATH").unwrap_or_default();
        let path = std::env::join_paths([bin].into_iter().chain(std::env::split_paths(&path)));
        Command::new(packaging().join("systemd/rusty-raft-backup"))
            .env("PATH", path.unwrap())
            .env("ETCDCTL_ENDPOINTS", endpoint)
            .env("BACKUP_FOLDER", &backups)
            .env("BACKUP_KEEP", "2")
            .output()
            .unwrap()
    };
    let names = || {
        let entries = fs::read_dir(&backups).unwrap();
        let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
        entries.map(|entry| name(entry).into_string().unwrap()).collect::<BTreeSet<String>>()
    };
    // Nobody is there: what there was stays.
    let before = names();
    assert!(!run("127.0.0.1:1").status.success());
    assert_eq!(names(), before);
    let output = run(&format!("127.0.0.1:1,{}", members.addresses[0]));
    assert!(output.status.success(), "{output:?}");
    let mut left = names();
    for name in ["20200102T000000Z.db", "other.db"] {
        assert!(left.remove(name), "{left:?}");
    }
    let saved = left.pop_first().unwrap();
    assert!(left.is_empty() && saved.ends_with("Z.db"), "{saved} {left:?}");
    let verified = program().arg("verify").arg(backups.join(saved)).output().unwrap();
    assert!(verified.status.success(), "{verified:?}");
}

/// What a member would make of these variables.
fn shown(variables: &[(String, String)]) -> String {
    let mut command = program();
    command.args(["config", "show", "etcd"]).envs(variables.iter().cloned());
    let output = command.output().unwrap();
    let text = String::from_utf8([output.stdout, output.stderr].concat()).unwrap();
    assert!(output.status.success(), "{text}");
    text
}

#[test]
fn the_variables_of_the_debian_package_are_known() {
    let text = read("debian/rusty-raft.default");
    let variables: Vec<(String, String)> = text
        .lines()
        .filter_map(|line| line.strip_prefix("#ETCD_")?.split_once('='))
        .map(|(name, value)| (format!("ETCD_{name}"), value.to_owned()))
        .collect();
    assert_eq!(variables.len(), 7);
    let text = shown(&variables);
    for (name, value) in &variables {
        assert!(text.contains(name) && text.contains(value), "{name}: {text}");
    }
}

#[test]
fn the_variables_of_the_stateful_set_are_known_and_its_members_agree() {
    let scalars = scalars(&read("kubernetes/statefulset.yaml"));
    let value_of = |name: &str| {
        let place = scalars.iter().position(|scalar| scalar == name).unwrap();
        assert_eq!(scalars[place + 1], "value", "{name}");
        scalars[place + 2].clone()
    };
    let replicas = scalars.iter().position(|scalar| scalar == "replicas").unwrap();
    let replicas: usize = scalars[replicas + 1].parse().unwrap();
    let names = [
        "ETCD_DATA_DIR",
        "ETCD_LISTEN_PEER_URLS",
        "ETCD_LISTEN_CLIENT_URLS",
        "ETCD_INITIAL_ADVERTISE_PEER_URLS",
        "ETCD_ADVERTISE_CLIENT_URLS",
        "ETCD_INITIAL_CLUSTER_TOKEN",
        "ETCD_INITIAL_CLUSTER",
    ];
    let members: Vec<String> =
        value_of("ETCD_INITIAL_CLUSTER").split(',').map(str::to_owned).collect();
    assert_eq!(members.len(), replicas);
    for (index, member) in members.iter().enumerate() {
        let own = format!("rusty-raft-{index}");
        let variables =
            names.map(|name| (name.to_owned(), value_of(name).replace("$(ETCD_NAME)", &own)));
        let peer = variables[3].1.clone();
        assert_eq!(*member, format!("{own}={peer}"));
        let text = shown(&[&variables[..], &[("ETCD_NAME".to_owned(), own)]].concat());
        assert!(text.contains(&peer), "{text}");
    }
}

/// Names of metrics in an expression.
fn metrics_in(text: &str) -> impl Iterator<Item = &str> {
    let words = text.split(|c: char| !c.is_ascii_alphanumeric() && c != '_');
    let ours = ["etcd_", "grpc_server_", "process_", "rusty_raft_"];
    words.filter(move |word| ours.iter().any(|prefix| word.starts_with(prefix)))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn alerts_and_dashboard_ask_for_metrics_that_members_have() {
    let members = Members::start(3);
    let leader = members.leader().await;
    put(&members.addresses[leader], "k", "v").await.unwrap();
    let mut known: BTreeSet<String> = BTreeSet::new();
    for address in &members.addresses {
        let page = crate::http::get(address, "/metrics").1;
        let samples = page.lines().filter(|line| !line.starts_with('#'));
        known.extend(samples.filter_map(|line| Some(line.split(['{', ' ']).next()?.to_owned())));
    }
    // Only with TLS.
    let source = include_str!("../../src/metrics/mod.rs");
    let with_tls = "rusty_raft_certificate_expires_timestamp_seconds";
    assert!(source.contains(with_tls));
    known.insert(with_tls.to_owned());

    let rules = scalars(&read("prometheus/alerts.yaml"));
    let expressions = rules.windows(2).filter(|pair| pair[0] == "expr").map(|pair| pair[1].clone());
    let mut asked: Vec<String> = expressions.collect();
    assert!(asked.len() > 8);
    assert_eq!(rules.iter().filter(|rule| *rule == "alert").count(), asked.len());
    let dashboard: serde_json::Value =
        serde_json::from_str(&read("grafana/dashboard.json")).unwrap();
    for panel in dashboard["panels"].as_array().unwrap() {
        for target in panel["targets"].as_array().unwrap() {
            asked.push(target["expr"].as_str().unwrap().to_owned());
        }
    }
    for expression in &asked {
        for metric in metrics_in(expression) {
            assert!(known.contains(metric), "{metric} of {expression}\n{known:?}");
        }
        assert_eq!(
            expression.matches('(').count(),
            expression.matches(')').count(),
            "{expression}"
        );
    }
}

#[test]
fn shells_and_the_manual_know_every_command() {
    let said = |words: &[&str]| {
        let output = program().args(words).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let folder = folder();
    said(&["man", folder.path().join("man1").to_str().unwrap()]);
    let commands = ["node", "cluster", "etcd", "import", "export", "verify", "get", "snapshot"];
    for shell in ["bash", "zsh", "fish"] {
        let script = said(&["completions", shell]);
        for command in commands {
            assert!(script.contains(command), "{shell}: {command}");
        }
        let path = folder.path().join(shell);
        fs::write(&path, script).unwrap();
        // Where the shell is there, it is asked whether it can read it.
        if let Ok(read) = Command::new(shell).arg("-n").arg(&path).output() {
            assert!(read.status.success(), "{shell}: {read:?}");
        }
    }
    for command in commands {
        let page = folder.path().join(format!("man1/rusty-raft-{command}.1"));
        assert!(fs::read_to_string(page).unwrap().contains(".SH SYNOPSIS"), "{command}");
    }
    let output = program().args(["completions", "tcsh"]).output().unwrap();
    assert_eq!(output.status.code(), Some(2));
}
