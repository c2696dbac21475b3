use tracing_subscriber::filter::LevelFilter;

use super::*;
use crate::tls::TlsFiles;

fn read_for(line: &[&str], formed: bool) -> Result<EtcdConfig, Box<Problem>> {
    let words: Vec<String> = line.iter().map(|word| (*word).to_owned()).collect();
    EtcdConfig::read(&words, std::iter::empty(), |_| formed)
}

fn read(line: &[&str]) -> Result<EtcdConfig, Box<Problem>> {
    read_for(line, false)
}

#[test]
fn without_flags_it_is_what_etcd_would_be() {
    let config = read(&[]).unwrap();
    let url = |text: &str| Url::parse(text).unwrap();
    let expected = EtcdConfig {
        name: "default".to_owned(),
        data_dir: PathBuf::from("default.etcd"),
        listen_peers: vec![url("http://localhost:2380")],
        listen_clients: vec![url("http://localhost:2379")],
        listen_metrics: Vec::new(),
        advertise_peer: url("http://localhost:2380"),
        advertise_clients: vec![url("http://localhost:2379")],
        members: vec!["localhost:2380".to_owned()],
        formed: false,
        existing: false,
        force_new_cluster: false,
        token: String::new(),
        settings: Settings {
            election_timeout_min: Duration::from_secs(1),
            election_timeout_max: Duration::from_secs(2),
            heartbeat_interval: Duration::from_millis(100),
            request_timeout: Duration::from_secs(7),
            request_bytes_max: 1_572_864,
            watch_progress_interval: Duration::from_secs(600),
            quota_bytes: None,
            learners_max: 1,
            tuning: Tuning::default(),
        },
        txn_ops_max: 128,
        streams_max: None,
        compaction: None,
        client_tls: None,
        peer_tls: None,
        certificates_name_users: false,
        log: LogSettings {
            level: LevelFilter::INFO,
            format: Format::Json,
            outputs: vec![Output::Stderr],
        },
        warnings: Vec::new(),
    };
    assert_eq!(config, expected);
}

#[test]
fn every_flag_that_does_something_does_it() {
    let config = read(&[
        "--name=n1",
        "--data-dir=/d",
        "--listen-peer-urls=http://127.0.0.1:1,http://10.0.0.1:1",
        "--listen-client-urls=http://127.0.0.1:2",
        "--listen-client-http-urls=http://127.0.0.1:3",
        "--advertise-client-urls=http://a:2,http://b:2/",
        "--initial-advertise-peer-urls=http://10.0.0.1:1",
        "--initial-cluster=n0=http://10.0.0.0:1, n1=http://10.0.0.1:1,n0=http://10.1.0.0:1",
        "--initial-cluster-state=existing",
        "--initial-cluster-token=t",
        "--listen-metrics-urls=http://127.0.0.1:4",
        "--snapshot-count=7",
        "--snapshot-catchup-entries=8",
        "--heartbeat-interval=10",
        "--election-timeout=50",
        "--quota-backend-bytes=9",
        "--max-request-bytes=11",
        "--max-txn-ops=12",
        "--max-concurrent-streams=3",
        "--experimental-max-learners=3",
        "--watch-progress-notify-interval=13s",
        "--auto-compaction-retention=90m",
        "--log-level=warn",
        "--log-format=console",
        "--log-outputs=stdout,/l",
    ])
    .unwrap();
    assert_eq!(config.listen_peers.len(), 2);
    let addresses = |urls: &[Url]| urls.iter().map(|url| url.address.clone()).collect::<Vec<_>>();
    assert_eq!(addresses(&config.listen_clients), ["127.0.0.1:2", "127.0.0.1:3"]);
    assert_eq!(addresses(&config.advertise_clients), ["a:2", "b:2"]);
    assert_eq!(addresses(&config.listen_metrics), ["127.0.0.1:4"]);
    assert_eq!((config.members, config.existing), (vec!["10.0.0.0:1".to_owned()], true));
    assert_eq!(config.token, "t");
    let settings = config.settings;
    assert_eq!(settings.tuning.checkpoint_entries, Some(7));
    assert_eq!(settings.tuning.trailing_entries, Some(8));
    assert_eq!(settings.election_timeout_max, Duration::from_millis(100));
    assert_eq!((settings.quota_bytes, settings.request_bytes_max), (Some(9), 11));
    assert_eq!(settings.learners_max, 3);
    assert_eq!(settings.watch_progress_interval, Duration::from_secs(13));
    assert_eq!(config.txn_ops_max, 12);
    assert_eq!(config.streams_max, Some(3));
    let retention = Duration::from_secs(5400);
    assert_eq!(config.compaction, Some(Compaction::Periodic { retention }));
    assert_eq!(config.log.format, Format::Text);
    assert_eq!(config.log.outputs, [Output::Stdout, Output::File(PathBuf::from("/l"))]);
    assert_eq!(config.warnings.len(), 1, "{:?}", config.warnings);
}

#[test]
fn compaction_is_by_time_or_by_revisions() {
    let compaction = |mode: &str, retention: &str| {
        let (mode, retention) = (
            format!("--auto-compaction-mode={mode}"),
            format!("--auto-compaction-retention={retention}"),
        );
        read(&[&mode, &retention]).map(|config| config.compaction)
    };
    let hours =
        |hours: u64| Some(Compaction::Periodic { retention: Duration::from_secs(hours * 3600) });
    assert_eq!(compaction("periodic", "2"), Ok(hours(2)));
    assert_eq!(compaction("periodic", "72h"), Ok(hours(72)));
    assert_eq!(compaction("periodic", "0"), Ok(None));
    assert_eq!(compaction("revision", "5"), Ok(Some(Compaction::Revision { retention: 5 })));
    assert_eq!(compaction("revision", ""), Ok(None));
    for (mode, retention) in
        [("revision", "5m"), ("revision", "-1"), ("periodic", "x"), ("never", "1")]
    {
        assert!(compaction(mode, retention).is_err(), "{mode} {retention}");
    }
}

#[test]
fn the_scheme_decides_whether_tls_is_spoken() {
    let files = ["--cert-file=c", "--key-file=k", "--trusted-ca-file=a", "--client-cert-auth"];
    let config = read(&files).unwrap();
    assert_eq!((config.client_tls, config.certificates_name_users), (None, false));
    assert!(config.warnings[0].contains("no URL in --listen-client-urls"), "{:?}", config.warnings);

    let urls = ["--listen-client-urls=https://a:1", "--advertise-client-urls=https://a:1"];
    let more =
        ["--client-crl-file=r", "--client-cert-allowed-hostname=x,y", "--tls-min-version=TLS1.3"];
    let config = read(&[&files[..], &urls, &more].concat()).unwrap();
    let expected = TlsFiles {
        cert: PathBuf::from("c"),
        key: PathBuf::from("k"),
        trusted_ca: Some(PathBuf::from("a")),
        crl: Some(PathBuf::from("r")),
        allowed_host_names: vec!["x".to_owned(), "y".to_owned()],
        only_1_3: Some(true),
        ..TlsFiles::default()
    };
    assert_eq!(config.client_tls, Some(TlsPlan::Files(expected)));
    assert_eq!((config.peer_tls, config.certificates_name_users), (None, true));

    let config = read(&[
        "--peer-auto-tls",
        "--listen-peer-urls=https://[::1]:1",
        "--initial-advertise-peer-urls=https://b:1",
        "--self-signed-cert-validity=3",
    ])
    .unwrap();
    let hosts = vec!["::1".to_owned(), "b".to_owned()];
    assert_eq!(config.peer_tls, Some(TlsPlan::Auto { hosts, years: 3 }));
}

#[test]
fn the_list_need_not_name_a_member_that_is_formed() {
    let own = ["--name=n1", "--initial-advertise-peer-urls=http://a:1"];
    let members = |more: &[&str]| {
        let line = [&own[..], more].concat();
        read_for(&line, true).map(|config| config.members).map_err(|problem| problem.wrong)
    };
    let list = |addresses: &[&str]| {
        Ok::<_, String>(addresses.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>())
    };
    assert_eq!(members(&[]), list(&["a:1"]));
    assert_eq!(members(&["--initial-cluster=n0=http://b:1"]), list(&["b:1", "a:1"]));
    // Under another name, or at another address.
    assert_eq!(members(&["--initial-cluster=n0=http://a:1"]), list(&["a:1"]));
    assert_eq!(members(&["--initial-cluster=n0=http://b:1,n1=http://c:1"]), list(&["b:1", "a:1"]));
    let existing = "--initial-cluster-state=existing";
    assert_eq!(members(&[existing]), list(&[]));
    assert_eq!(members(&[existing, "--initial-cluster=n0=http://a:1"]), list(&[]));
    assert_eq!(members(&[existing, "--initial-cluster=n0=http://b:1"]), list(&["b:1"]));
    for more in [&["--initial-cluster=n0=http://b:1"][..], &["--initial-cluster=n1=http://b:1"]] {
        assert!(read(&[&own[..], more].concat()).is_err(), "{more:?}");
    }
}

#[test]
fn what_is_said_twice_is_said_once() {
    let config = read(&[
        "--listen-peer-urls=http://a:1,http://a:1",
        "--listen-client-urls=http://a:2",
        "--listen-client-http-urls=http://a:2,http://a:3",
        "--advertise-client-urls=http://a:2",
        "--initial-cluster=default=http://localhost:2380,default=http://localhost:2380",
    ])
    .unwrap();
    let url = |text: &str| Url::parse(text).unwrap();
    assert_eq!(config.listen_peers, [url("http://a:1")]);
    assert_eq!(config.listen_clients, [url("http://a:2"), url("http://a:3")]);
    assert_eq!(config.members, ["localhost:2380"]);
    assert_eq!(config.warnings, [] as [String; 0]);
}

/// What is marked as used and looked at by nobody would be ignored without a word.
#[test]
fn every_flag_marked_as_used_is_read() {
    let readers = [include_str!("mod.rs"), include_str!("tls.rs"), include_str!("sources.rs")];
    let readers = readers.map(|text| text.split("#[cfg(test)]").next().unwrap());
    for flag in FLAGS.iter().filter(|flag| flag.fate == Fate::Used) {
        let name = format!("\"{}\"", flag.name);
        assert!(readers.iter().any(|text| text.contains(&name)), "nobody reads {name}");
    }
}

#[test]
fn what_manifests_say_and_etcd_ignores_is_taken() {
    let config = read(&[
        "--enable-grpc-gateway=true",
        "--raft-read-timeout=5s",
        "--raft-write-timeout=7s",
        "--disable-log-sampling",
        "--force",
        "--retry-interval=5",
        "--auth-token-ttl=60",
    ])
    .unwrap();
    let named: Vec<&str> =
        config.warnings.iter().map(|line| line.split(' ').next().unwrap()).collect();
    let expected = [
        "--raft-write-timeout",
        "--auth-token-ttl",
        "--disable-log-sampling",
        "--force",
        "--retry-interval",
    ];
    assert_eq!(named, expected);
}

#[test]
fn a_negative_quota_is_none_at_all() {
    assert_eq!(read(&["--quota-backend-bytes=-1"]).unwrap().settings.quota_bytes, Some(u64::MAX));
}

#[test]
fn what_makes_no_sense_here_is_accepted_with_a_reason() {
    let config = read(&[
        "--enable-v2=true",
        "--backend-batch-limit=5",
        "--strict-reconfig-check=true",
        "--pre-vote",
        "--max-snapshots=5",
        "--unsafe-no-fsync",
    ])
    .unwrap();
    // Those at their defaults say nothing.
    let named: Vec<&str> =
        config.warnings.iter().map(|line| line.split(' ').next().unwrap()).collect();
    assert_eq!(named, ["--backend-batch-limit", "--enable-v2", "--unsafe-no-fsync"]);
    assert!(config.warnings[0].contains("no bbolt backend"), "{:?}", config.warnings);
}

#[test]
fn what_is_wrong_is_said_with_what_would_be_right() {
    // (the command line, the field named, a part of what is wrong or right)
    let table: &[(&[&str], &str, &str)] = &[
        (&["--name=a=b"], "--name", "without commas"),
        (&["--listen-client-urls=http://a:1"], "--advertise-client-urls", "is missing"),
        (&["--listen-peer-urls=a:1"], "--listen-peer-urls", "does not begin with http://"),
        (&["--listen-metrics-urls=http://a"], "--listen-metrics-urls", "no port"),
        (&["--initial-cluster=a=http://a:1"], "--initial-cluster", "but not this member"),
        (&["--initial-cluster=default"], "--initial-cluster", "name=URL"),
        (
            &["--initial-cluster=default=http://localhost:2380,b=http://localhost:2380"],
            "--initial-cluster",
            "given to default and to b",
        ),
        (
            &["--initial-cluster=default=http://b:1"],
            "--initial-advertise-peer-urls",
            "the same URL in both",
        ),
        (&["--initial-cluster-state=old"], "--initial-cluster-state", "existing for one"),
        (&["--heartbeat-interval=0"], "--heartbeat-interval", "from 1"),
        (&["--election-timeout=400"], "--election-timeout", "five times"),
        (&["--election-timeout=60000"], "--election-timeout", "to 50000"),
        (&["--max-request-bytes=0"], "--max-request-bytes", "from 1"),
        (&["--max-txn-ops=0"], "--max-txn-ops", "at least 1"),
        (&["--max-concurrent-streams=-1"], "--max-concurrent-streams", "whole number"),
        (&["--listen-peer-urls=http://a:0"], "--listen-peer-urls", "from 1 to 65535"),
        (&["--initial-advertise-peer-urls=http://a:0"], "--initial-advertise-peer-urls", "65535"),
        (&["--watch-progress-notify-interval=0s"], "--watch-progress-notify-interval", "an hour"),
        (&["--log-level=loud"], "--log-level", "dpanic"),
        (&["--log-format=xml"], "--log-format", "console"),
        (&["--logger=glog"], "--logger", "capnslog"),
        (&["--discovery=https://x"], "--discovery", "--initial-cluster"),
        (&["--proxy=on"], "--proxy", "no v2 proxy"),
        (&["--auth-token=jwt,pub-key=x"], "--auth-token", "sign-method"),
        (&["--auth-token=none"], "--auth-token", "simple"),
        (&["--auth-token-ttl=0"], "--auth-token-ttl", "1"),
        (
            &["--listen-metrics-urls=https://a:1"],
            "--cert-file",
            "--cert-file and --key-file, or --auto-tls",
        ),
        (
            &["--listen-metrics-urls=https://a:1", "--cert-file=x"],
            "--key-file",
            "though --cert-file is given",
        ),
        (
            &[
                "--listen-metrics-urls=https://a:1",
                "--cert-file=x",
                "--key-file=x",
                "--client-cert-auth",
            ],
            "--client-cert-auth",
            "without --trusted-ca-file",
        ),
        (
            &[
                "--listen-metrics-urls=https://a:1",
                "--cert-file=x",
                "--key-file=x",
                "--tls-min-version=3",
            ],
            "--tls-min-version",
            "TLS1.2 or TLS1.3",
        ),
        (&["--listen-peer-urls=https://a:1"], "--listen-peer-urls", "one of the two"),
        (
            &["--initial-advertise-peer-urls=https://a:1"],
            "--initial-advertise-peer-urls",
            "no URL in --listen-peer-urls begins with https://",
        ),
        (
            &["--initial-advertise-peer-urls=http://localhost:2380,https://a:1"],
            "--initial-advertise-peer-urls",
            "it is https://a:1",
        ),
        (
            &[
                "--listen-client-urls=http://a:1",
                "--advertise-client-urls=http://a:1,https://a:1",
                "--cert-file=c",
                "--key-file=k",
            ],
            "--advertise-client-urls",
            "no URL in --listen-client-urls begins with https://",
        ),
        (
            &["--initial-cluster=default=https://localhost:2380"],
            "--initial-cluster",
            "differs from",
        ),
        (
            &["--initial-cluster=default=http://localhost:2380,b=https://b:1"],
            "--initial-cluster",
            "differs from",
        ),
    ];
    for (line, field, part) in table {
        let problem = read(line).unwrap_err();
        assert_eq!(problem.field.as_deref(), Some(*field), "{line:?}: {problem}");
        assert!(problem.to_string().contains(part), "{line:?}: {problem}");
    }
}
