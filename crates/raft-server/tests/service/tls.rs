//! TLS with clients and among members: who gets through, who does not, and that certificates change under way.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use std::time::Instant;

use raft_server::tls::PEER_PROTOCOL;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateRevocationListParams, CertifiedIssuer, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyIdMethod, KeyPair, KeyUsagePurpose, RevokedCertParams,
    SerialNumber,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{
    ClientConfig, ClientConnection, RootCertStore, StreamOwned, SupportedProtocolVersion,
};
use time::OffsetDateTime;

use crate::support::{Members, PATIENCE, Process, folder, free_ports, program};

const READY: &str = "ready to serve client requests";
const DAY: time::Duration = time::Duration::DAY;
const FOR_MEMBERS: [ExtendedKeyUsagePurpose; 2] =
    [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
const FOR_CLIENTS: [ExtendedKeyUsagePurpose; 1] = [ExtendedKeyUsagePurpose::ClientAuth];

/// An authority whose files lie in a folder.
struct Authority {
    folder: PathBuf,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new(folder: &Path, name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        params.distinguished_name.push(DnType::CommonName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(folder.join(format!("{name}.pem")), issuer.pem()).unwrap();
        Self { folder: folder.to_owned(), issuer }
    }

    /// Writes `name.pem` and `name-key.pem`: a certificate with `serial` for `host`, good for `days` from yesterday on.
    fn certify(
        &self,
        name: &str,
        host: &str,
        uses: &[ExtendedKeyUsagePurpose],
        serial: u64,
        days: i32,
    ) {
        let mut params = CertificateParams::new(vec![host.to_owned()]).unwrap();
        params.distinguished_name.push(DnType::CommonName, name);
        params.extended_key_usages = uses.to_vec();
        params.serial_number = Some(SerialNumber::from(serial));
        params.not_before = OffsetDateTime::now_utc() - DAY * 10;
        params.not_after = OffsetDateTime::now_utc() + DAY * days;
        let key = KeyPair::generate().unwrap();
        let cert = params.signed_by(&key, &self.issuer).unwrap();
        fs::write(self.folder.join(format!("{name}-key.pem")), key.serialize_pem()).unwrap();
        fs::write(self.folder.join(format!("{name}.pem")), cert.pem()).unwrap();
    }

    /// Writes `crl.pem`: certificates with these serials are not good any more.
    fn revoke(&self, serials: &[u64]) {
        let now = OffsetDateTime::now_utc();
        let revoked = |serial: &u64| RevokedCertParams {
            serial_number: SerialNumber::from(*serial),
            revocation_time: now - DAY,
            reason_code: None,
            invalidity_date: None,
        };
        let list = CertificateRevocationListParams {
            this_update: now - DAY,
            next_update: now + DAY,
            crl_number: SerialNumber::from(1u64),
            issuing_distribution_point: None,
            revoked_certs: serials.iter().map(revoked).collect(),
            key_identifier_method: KeyIdMethod::Sha256,
        };
        let list = list.signed_by(&self.issuer).unwrap();
        fs::write(self.folder.join("crl.pem"), list.pem().unwrap()).unwrap();
    }
}

/// A client that trusts `ca` and presents `name`, if it has one.
fn client(
    folder: &Path,
    ca: &str,
    name: Option<&str>,
    versions: &[&'static SupportedProtocolVersion],
    alpn: &[u8],
) -> Arc<ClientConfig> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(folder.join(format!("{ca}.pem"))).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(versions)
        .unwrap()
        .with_root_certificates(roots);
    let mut config = match name {
        None => builder.with_no_client_auth(),
        Some(name) => {
            let cert = CertificateDer::from_pem_file(folder.join(format!("{name}.pem"))).unwrap();
            let key = PrivateKeyDer::from_pem_file(folder.join(format!("{name}-key.pem"))).unwrap();
            builder.with_client_auth_cert(vec![cert], key).unwrap()
        }
    };
    config.alpn_protocols = vec![alpn.to_vec()];
    Arc::new(config)
}

const BOTH: [&SupportedProtocolVersion; 2] = [&rustls::version::TLS13, &rustls::version::TLS12];

type Stream = StreamOwned<ClientConnection, TcpStream>;

fn connect(address: &str, config: Arc<ClientConfig>) -> io::Result<Stream> {
    let tcp = TcpStream::connect(address)?;
    tcp.set_read_timeout(Some(PATIENCE))?;
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let connection = ClientConnection::new(config, name).map_err(io::Error::other)?;
    Ok(StreamOwned::new(connection, tcp))
}

/// A request on a connection that is kept, and the head and body of its answer.
fn post(stream: &mut Stream, path: &str, body: &str) -> io::Result<String> {
    let length = body.len();
    write!(stream, "POST {path} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n{body}")?;
    let mut answer = Vec::new();
    let mut buffer = [0u8; 4096];
    loop {
        let text = String::from_utf8_lossy(&answer).into_owned();
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let mut lines = head.lines().map(str::to_lowercase);
            let length: Option<usize> =
                lines.find_map(|line| line.strip_prefix("content-length: ")?.parse().ok());
            // Without a length it comes in pieces, of which the last is empty.
            if length.map_or_else(|| body.ends_with("0\r\n\r\n"), |length| body.len() >= length) {
                return Ok(text);
            }
        }
        match stream.read(&mut buffer)? {
            0 => return Err(io::ErrorKind::UnexpectedEof.into()),
            count => answer.extend_from_slice(&buffer[..count]),
        }
    }
}

/// Whether a client is served.
fn is_served(address: &str, config: &Arc<ClientConfig>) -> bool {
    let served = connect(address, Arc::clone(config))
        .and_then(|mut stream| post(&mut stream, "/v3/maintenance/status", "{}"));
    served.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

/// Waits until a client is served, or is not.
#[track_caller]
fn until_served(address: &str, config: &Arc<ClientConfig>, wanted: bool) {
    let deadline = Instant::now() + PATIENCE;
    while is_served(address, config) != wanted {
        assert!(Instant::now() < deadline, "served: {}", !wanted);
    }
}

/// Member `n` of `count` with its peers at `port + n` and its clients at `port + count + n`, all by TLS.
fn member(folder: &Path, n: u16, count: u16, port: u16, more: &[&str]) -> Command {
    let mut command = program();
    let peer = |n: u16| format!("https://127.0.0.1:{}", port + n);
    let client = format!("https://127.0.0.1:{}", port + count + n);
    let all: Vec<String> = (0..count).map(|n| format!("n{n}={}", peer(n))).collect();
    command.arg("etcd").current_dir(folder).arg(format!("--name=n{n}"));
    command.args(["--heartbeat-interval=50", "--election-timeout=300", "--log-format=console"]);
    command.arg(format!("--listen-peer-urls={}", peer(n)));
    command.arg(format!("--initial-advertise-peer-urls={}", peer(n)));
    command.arg(format!("--listen-client-urls={client}"));
    command.arg(format!("--advertise-client-urls={client}"));
    command.arg(format!("--initial-cluster={}", all.join(",")));
    command.args(more);
    command
}

const PEER_FILES: [&str; 4] = [
    "--peer-cert-file=member.pem",
    "--peer-key-file=member-key.pem",
    "--peer-trusted-ca-file=ca.pem",
    "--peer-client-cert-auth",
];
const CLIENT_FILES: [&str; 4] = [
    "--cert-file=member.pem",
    "--key-file=member-key.pem",
    "--trusted-ca-file=ca.pem",
    "--client-cert-auth",
];

#[test]
fn who_gets_through_and_who_does_not() {
    let folder = folder();
    let path = folder.path();
    let ca = Authority::new(path, "ca");
    let other = Authority::new(path, "other");
    ca.certify("member", "127.0.0.1", &FOR_MEMBERS, 1, 100);
    ca.certify("client", "a-client", &FOR_CLIENTS, 2, 100);
    ca.certify("expired", "a-client", &FOR_CLIENTS, 3, -1);
    ca.certify("revoked", "a-client", &FOR_CLIENTS, 4, 100);
    ca.certify("elsewhere", "10.0.0.1", &FOR_MEMBERS, 5, 100);
    other.certify("stranger", "a-client", &FOR_MEMBERS, 6, 100);
    ca.revoke(&[4]);
    let port = free_ports(6);
    let flags = [&PEER_FILES[..], &CLIENT_FILES, &["--client-crl-file=crl.pem"]].concat();
    let mut processes: Vec<Process> =
        (0..2).map(|n| Process::start(member(path, n, 3, port, &flags))).collect();
    for process in &mut processes {
        process.line_with(READY);
    }

    let address = format!("127.0.0.1:{}", port + 3);
    let with = |name: Option<&str>| client(path, "ca", name, &BOTH, b"http/1.1");
    assert!(is_served(&address, &with(Some("client"))));
    for version in BOTH {
        let config = client(path, "ca", Some("client"), &[version], b"http/1.1");
        assert!(is_served(&address, &config), "{version:?}");
    }
    for name in [None, Some("expired"), Some("revoked"), Some("stranger")] {
        assert!(!is_served(&address, &with(name)), "{name:?}");
    }
    // The other way round: this client trusts somebody else.
    assert!(!is_served(&address, &client(path, "other", Some("client"), &BOTH, b"http/1.1")));
    // In plain text, a sentence says what is wrong.
    let mut plain = TcpStream::connect(&address).unwrap();
    plain.write_all(b"GET /health HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
    let mut answer = String::new();
    plain.read_to_string(&mut answer).ok();
    assert!(answer.contains("HTTP request to an HTTPS server"), "{answer}");

    // Where members meet, a client's certificate opens nothing, whatever the client says it speaks; a member's does.
    let peers = format!("127.0.0.1:{port}");
    // In TLS 1.2 the one who dials hears the verdict before it can say anything.
    let opened = |name: Option<&str>, protocol: &[u8]| {
        let config = client(path, "ca", name, &[&rustls::version::TLS12], protocol);
        let mut stream = connect(&peers, config).unwrap();
        stream.conn.complete_io(&mut stream.sock).is_ok()
    };
    for name in [None, Some("client"), Some("revoked"), Some("expired"), Some("stranger")] {
        assert!(!opened(name, PEER_PROTOCOL), "{name:?}");
    }
    assert!(!opened(Some("member"), b"http/1.1"));
    assert!(opened(Some("member"), PEER_PROTOCOL));

    // A third member whose certificate is for another host is not dialled by the others; with the right one it is.
    let wrong: Vec<&str> = flags
        .iter()
        .map(|flag| match *flag {
            "--peer-cert-file=member.pem" => "--peer-cert-file=elsewhere.pem",
            "--peer-key-file=member-key.pem" => "--peer-key-file=elsewhere-key.pem",
            flag => flag,
        })
        .collect();
    let third = format!("127.0.0.1:{}", port + 2);
    let mut impostor = Process::start(member(path, 2, 3, port, &wrong));
    impostor.line_with("serves clients at");
    let refused = processes[0].line_with("not valid for name");
    assert!(refused.contains(&third), "{refused}");
    drop(impostor);
    Process::start(member(path, 2, 3, port, &flags)).line_with(READY);
}

#[test]
fn certificates_change_while_connections_go_on() {
    let folder = folder();
    let path = folder.path();
    let ca = Authority::new(path, "ca");
    ca.certify("member", "127.0.0.1", &FOR_MEMBERS, 1, 10);
    ca.certify("client", "a-client", &FOR_CLIENTS, 2, 100);
    ca.certify("second", "a-client", &FOR_CLIENTS, 3, 100);
    ca.revoke(&[]);
    let port = free_ports(2);
    let flags = [&PEER_FILES[..], &CLIENT_FILES, &["--client-crl-file=crl.pem"]].concat();
    let mut process = Process::start(member(path, 0, 1, port, &flags));
    process.line_with("expires in 9 days");
    process.line_with(READY);
    let address = format!("127.0.0.1:{}", port + 1);
    let config = client(path, "ca", Some("client"), &BOTH, b"http/1.1");
    let mut kept = connect(&address, Arc::clone(&config)).unwrap();
    let put = r#"{"key":"aw==","value":"dg=="}"#;
    assert!(post(&mut kept, "/v3/kv/put", put).unwrap().starts_with("HTTP/1.1 200"));
    let presented = |stream: &Stream| stream.conn.peer_certificates().unwrap()[0].clone();
    let old = presented(&kept);

    // Half of a pair changes nothing and is said once; the whole pair is used within two seconds.
    let key = fs::read(path.join("member-key.pem")).unwrap();
    fs::write(path.join("member-key.pem"), "no key").unwrap();
    process.line_with("stay as they are");
    assert!(is_served(&address, &config));
    fs::write(path.join("member-key.pem"), key).unwrap();
    ca.certify("member", "127.0.0.1", &FOR_MEMBERS, 7, 100);
    let changed = Instant::now();
    loop {
        let mut stream = connect(&address, Arc::clone(&config)).unwrap();
        post(&mut stream, "/v3/maintenance/status", "{}").unwrap();
        if presented(&stream) != old {
            break;
        }
        assert!(changed.elapsed() < PATIENCE, "the old certificate is still presented");
    }
    process.line_with("new certificates for clients are in use");
    assert!(post(&mut kept, "/v3/kv/put", put).unwrap().starts_with("HTTP/1.1 200"));

    // A certificate is revoked: whoever is there stays, and does not come again.
    ca.revoke(&[2]);
    until_served(&address, &config, false);
    assert!(post(&mut kept, "/v3/kv/put", put).unwrap().starts_with("HTTP/1.1 200"));
    let second = client(path, "ca", Some("second"), &BOTH, b"http/1.1");
    assert!(is_served(&address, &second));

    // The authority changes.
    let ca = Authority::new(path, "ca");
    ca.certify("member", "127.0.0.1", &FOR_MEMBERS, 1, 100);
    ca.revoke(&[]);
    until_served(&address, &second, false);
    ca.certify("third", "a-client", &FOR_CLIENTS, 8, 100);
    let third = client(path, "ca", Some("third"), &BOTH, b"http/1.1");
    until_served(&address, &third, true);
    let metrics = {
        let mut stream = connect(&address, third).unwrap();
        stream.write_all(b"GET /metrics HTTP/1.0\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).ok();
        text
    };
    let line = "rusty_raft_certificate_expires_timestamp_seconds{for=\"clients\"} ";
    let expires = metrics.lines().find_map(|it| it.strip_prefix(line)).unwrap().to_owned();
    let wanted: OffsetDateTime = OffsetDateTime::now_utc() + DAY * 100;
    let wanted = wanted.unix_timestamp();
    assert!(expires.parse::<i64>().unwrap().abs_diff(wanted) < 600, "{expires}");
}

#[test]
fn one_port_serves_members_and_clients_by_tls() {
    let mut members = Members::configure(3);
    let path = members.folder.path().to_owned();
    let ca = Authority::new(&path, "ca");
    ca.certify("member", "127.0.0.1", &FOR_MEMBERS, 1, 100);
    ca.certify("client", "a-client", &FOR_CLIENTS, 2, 100);
    let file = |name: &str| format!("{:?}", path.join(name));
    let tls = format!(
        "(cert_file: {}, key_file: {}, trusted_ca_file: {})",
        file("member.pem"),
        file("member-key.pem"),
        file("ca.pem")
    );
    members.set(&format!("client_tls: {tls}, peer_tls: {tls}"));
    for index in 0..3 {
        members.start_one(index);
    }
    let config = client(&path, "ca", Some("client"), &BOTH, b"http/1.1");
    let put = r#"{"key":"aw==","value":"dg=="}"#;
    for address in &members.addresses {
        until_served(address, &config, true);
        let mut stream = connect(address, Arc::clone(&config)).unwrap();
        assert!(post(&mut stream, "/v3/kv/put", put).unwrap().starts_with("HTTP/1.1 200"));
    }
    let stranger = client(&path, "ca", None, &BOTH, b"http/1.1");
    assert!(!is_served(&members.addresses[0], &stranger));
}

#[test]
fn members_make_certificates_of_their_own() {
    let folder = folder();
    let port = free_ports(6);
    let flags = ["--auto-tls", "--peer-auto-tls"];
    let mut processes: Vec<Process> =
        (0..3).map(|n| Process::start(member(folder.path(), n, 3, port, &flags))).collect();
    for process in &mut processes {
        process.line_with(READY);
    }
    for n in 0..3u16 {
        let made = folder.path().join(format!("n{n}.etcd/fixtures/client"));
        fs::copy(made.join("cert.pem"), folder.path().join(format!("own{n}.pem"))).unwrap();
        let config = client(folder.path(), &format!("own{n}"), None, &BOTH, b"http/1.1");
        assert!(is_served(&format!("127.0.0.1:{}", port + 3 + n), &config), "n{n}");
    }
}

#[test]
fn one_certificate_that_has_signed_itself_may_be_everything() {
    let folder = folder();
    let path = folder.path();
    let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned()]).unwrap();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    params.distinguished_name.push(DnType::CommonName, "root");
    let key = KeyPair::generate().unwrap();
    fs::write(path.join("ca.pem"), params.self_signed(&key).unwrap().pem()).unwrap();
    fs::write(path.join("ca-key.pem"), key.serialize_pem()).unwrap();
    let flags = [
        "--peer-cert-file=ca.pem",
        "--peer-key-file=ca-key.pem",
        "--peer-trusted-ca-file=ca.pem",
        "--peer-client-cert-auth",
        "--cert-file=ca.pem",
        "--key-file=ca-key.pem",
        "--trusted-ca-file=ca.pem",
        "--client-cert-auth",
    ];
    let port = free_ports(6);
    let mut processes: Vec<Process> =
        (0..3).map(|n| Process::start(member(path, n, 3, port, &flags))).collect();
    for process in &mut processes {
        process.line_with(READY);
    }
    let mut command = program();
    command.current_dir(path).args(["put", "k", "v"]);
    command.args(["--cacert=ca.pem", "--cert=ca.pem", "--key=ca-key.pem"]);
    command.arg(format!("--endpoints=https://127.0.0.1:{}", port + 3));
    let output = command.output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "OK\n", "{output:?}");
}

#[test]
fn a_member_with_another_name_is_turned_away_in_etcds_words() {
    let folder = folder();
    let path = folder.path();
    let ca = Authority::new(path, "ca");
    ca.certify("member", "127.0.0.1", &FOR_MEMBERS, 1, 100);
    ca.certify("another", "127.0.0.1", &FOR_MEMBERS, 2, 100);
    let port = free_ports(6);
    let common = [&PEER_FILES[..], &CLIENT_FILES].concat();
    let with_name = [&common[..], &["--peer-cert-allowed-cn=member"]].concat();
    let mut processes: Vec<Process> =
        (0..2).map(|n| Process::start(member(path, n, 3, port, &with_name))).collect();
    for process in &mut processes {
        process.line_with(READY);
    }
    let mut flags = common;
    flags[0] = "--peer-cert-file=another.pem";
    flags[1] = "--peer-key-file=another-key.pem";
    flags.push("--peer-cert-allowed-cn=another");
    let mut stranger = Process::start(member(path, 2, 3, port, &flags));
    stranger.line_with("remote error: tls: bad certificate");
    stranger.line_with("client certificate authentication failed");
    processes[0].line_with("client certificate authentication failed");
}

/// etcdctl with the client's files; standard output and error.
fn etcdctl(folder: &Path, address: &str, name: &str, words: &[&str]) -> (bool, String) {
    let output = Command::new("etcdctl")
        .env("ETCDCTL_API", "3")
        .current_dir(folder)
        .arg(format!("--endpoints=https://{address}"))
        .args(["--cacert=ca.pem", &format!("--cert={name}.pem"), &format!("--key={name}-key.pem")])
        .args(words)
        .output()
        .unwrap();
    let text = [output.stdout, output.stderr].concat();
    (output.status.success(), String::from_utf8(text).unwrap())
}

#[test]
fn our_own_client_speaks_tls() {
    let folder = folder();
    let path = folder.path();
    let ca = Authority::new(path, "ca");
    ca.certify("member", "127.0.0.1", &FOR_MEMBERS, 1, 100);
    ca.certify("client", "a-client", &FOR_CLIENTS, 2, 100);
    Authority::new(path, "other");
    let port = free_ports(2);
    let flags = [&PEER_FILES[..], &CLIENT_FILES].concat();
    let mut process = Process::start(member(path, 0, 1, port, &flags));
    process.line_with(READY);
    let own = ["--cert=client.pem", "--key=client-key.pem"];
    let says = |url: bool, files: &[&str], words: &[&str]| {
        let mut command = program();
        let scheme = if url { "https://" } else { "" };
        command.current_dir(path).args(words).args(files);
        command.arg(format!("--endpoints={scheme}127.0.0.1:{}", port + 1));
        let output = command.output().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        (text(output.stdout), text(output.stderr))
    };
    let all = [&own[..], &["--cacert=ca.pem"]].concat();
    assert_eq!(says(true, &all, &["put", "k", "v"]).0, "OK\n");
    assert_eq!(says(false, &all, &["get", "k"]).0, "k\nv\n");
    let anybody = [&own[..], &["--insecure-skip-tls-verify"]].concat();
    assert_eq!(says(true, &anybody, &["get", "k"]).0, "k\nv\n");
    // Without a certificate, or by one who trusts somebody else.
    for files in [&["--cacert=ca.pem"][..], &[&own[..], &["--cacert=other.pem"]].concat()] {
        let (said, complaint) = says(true, files, &["get", "k", "--command-timeout=2s"]);
        assert_eq!(said, "", "{files:?}");
        assert!(complaint.starts_with("Error: "), "{complaint}");
    }
}

#[test]
fn a_stock_etcdctl_is_the_user_in_its_certificate() {
    if crate::etcdctl::is_missing() {
        return;
    }
    let folder = folder();
    let path = folder.path();
    let ca = Authority::new(path, "ca");
    ca.certify("member", "127.0.0.1", &FOR_MEMBERS, 1, 100);
    for (name, serial) in [("root", 2), ("alice", 3), ("mallory", 4)] {
        ca.certify(name, "a-client", &FOR_CLIENTS, serial, 100);
    }
    let port = free_ports(2);
    let flags = [&PEER_FILES[..], &CLIENT_FILES].concat();
    let mut process = Process::start(member(path, 0, 1, port, &flags));
    process.line_with(READY);
    let address = format!("127.0.0.1:{}", port + 1);
    let says = |name: &str, words: &[&str]| {
        let (good, text) = etcdctl(path, &address, name, words);
        assert!(good, "{name} {words:?}: {text}");
        text
    };
    let listed = says("alice", &["member", "list"]);
    let urls = format!("https://127.0.0.1:{port}, https://{address}");
    assert!(listed.contains(&urls), "{listed}");
    says("root", &["user", "add", "root:secret"]);
    says("root", &["user", "add", "alice", "--no-password"]);
    says("root", &["role", "add", "hers"]);
    says("root", &["role", "grant-permission", "hers", "readwrite", "a/", "--prefix"]);
    says("root", &["user", "grant-role", "alice", "hers"]);
    says("root", &["user", "grant-role", "root", "root"]);
    says("root", &["auth", "enable"]);
    says("alice", &["put", "a/1", "x"]);
    assert!(says("alice", &["get", "a/1"]).contains('x'));
    says("root", &["put", "b/1", "y"]);
    for (name, words) in [("alice", ["get", "b/1"]), ("mallory", ["get", "a/1"])] {
        let (good, text) = etcdctl(path, &address, name, &words);
        assert!(!good && text.contains("permission denied"), "{name}: {text}");
    }
    // A password says more than a certificate.
    says("mallory", &["--user=root:secret", "get", "b/1"]);
}

/// Nothing is written, and no port opened, when the files are not right.
#[test]
fn files_that_are_not_right_are_named() {
    let folder = folder();
    let path = folder.path();
    let ca = Authority::new(path, "ca");
    ca.certify("member", "127.0.0.1", &FOR_MEMBERS, 1, 100);
    ca.certify("another", "127.0.0.1", &FOR_MEMBERS, 2, 100);
    fs::write(path.join("empty.pem"), "").unwrap();
    let port = free_ports(2);
    let table = [
        (["--cert-file=none.pem", "--key-file=member-key.pem"], "none.pem: there is no such file"),
        (
            ["--cert-file=empty.pem", "--key-file=member-key.pem"],
            "empty.pem: there is no certificate",
        ),
        (["--cert-file=member.pem", "--key-file=empty.pem"], "empty.pem: there is no key"),
        (["--cert-file=member.pem", "--key-file=another-key.pem"], "member.pem: "),
    ];
    for (flags, part) in table {
        let flags = [&PEER_FILES[..], &flags].concat();
        let output = member(path, 0, 1, port, &flags).output().unwrap();
        let text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(2), "{text}");
        assert!(text.contains(part), "{part}: {text}");
        assert!(!path.join("n0.etcd").exists(), "{flags:?}");
    }
}
