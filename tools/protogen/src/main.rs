//! Writes the Rust code of the .proto files in `crates/raft-kv/proto`.
//!
//! `cargo run --manifest-path tools/protogen/Cargo.toml` writes messages to `crates/raft-kv/src/proto` and
//! services to `crates/raft-server/src/proto`, and beside the services what the JSON gateway needs to know of the
//! messages (`api.descriptors`, a `FileDescriptorSet`); with `--check` it writes nothing and fails when the
//! committed files are not what it would write. Normal builds need neither this tool nor `protoc`.

#![forbid(unsafe_code)]

use std::error::Error;
use std::path::{Path, PathBuf};
use std::{env, fs};

use prost::Message as _;
use prost_build::{Service, ServiceGenerator};

type Result<T> = std::result::Result<T, Box<dyn Error>>;

/// The files with messages that clients see.
const API: [&str; 11] = [
    "mvccpb.proto",
    "authpb.proto",
    "header.proto",
    "kv.proto",
    "watch.proto",
    "lease.proto",
    "cluster.proto",
    "maintenance.proto",
    "auth.proto",
    "v3lock.proto",
    "v3election.proto",
];

/// The file with messages of our own.
const INTERNAL: &str = "raftkv.proto";

/// The messages and their fields, for the JSON gateway.
const DESCRIPTORS: &str = "api.descriptors";

/// The file of the health service; its few messages live beside the service.
const HEALTH: &str = "health.proto";

/// Packages whose messages live in `raft_kv::proto`.
const SHARED_PACKAGES: [&str; 5] = ["mvccpb", "authpb", "etcdserverpb", "v3lockpb", "v3electionpb"];

/// The services that tests and the command line call as a client.
const CLIENTS: [&str; 9] =
    ["KV", "Watch", "Lease", "Cluster", "Maintenance", "Auth", "Health", "Lock", "Election"];

/// Messages with a password, its hash or a token inside: what they print is written by hand.
const SECRETIVE: [&str; 9] = [
    ".etcdserverpb.AuthenticateRequest",
    ".etcdserverpb.AuthenticateResponse",
    ".etcdserverpb.AuthUserAddRequest",
    ".etcdserverpb.AuthUserChangePasswordRequest",
    ".authpb.User",
    ".raftkv.AuthEnable",
    ".raftkv.AuthV1",
    ".raftkv.UserAdd",
    ".raftkv.UserChangePassword",
];

fn main() -> Result<()> {
    let check = match env::args().nth(1).as_deref() {
        None => false,
        Some("--check") => true,
        Some(other) => {
            return Err(format!("unknown argument {other}; only --check is known").into());
        }
    };
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
    let protos = root.join("crates/raft-kv/proto");
    let scratch = env::temp_dir().join(format!("protogen-{}", std::process::id()));
    let result = generate(&protos, &scratch).and_then(|outputs| {
        for (from, to) in outputs {
            install(&from, &root.join(to), check)?;
        }
        Ok(())
    });
    if scratch.exists() {
        fs::remove_dir_all(&scratch)?;
    }
    result
}

/// Generates into `scratch`; returns which folder there belongs where below the root.
fn generate(protos: &Path, scratch: &Path) -> Result<Vec<(PathBuf, &'static str)>> {
    let messages = scratch.join("messages");
    let services = scratch.join("services");
    fs::create_dir_all(&messages)?;
    fs::create_dir_all(&services)?;

    let mut files = API.to_vec();
    files.push(INTERNAL);
    let mut config = prost_build::Config::new();
    config.bytes(["."]).skip_debug(SECRETIVE).out_dir(&messages);
    config.compile_fds(protox::compile(&files, [protos])?)?;

    let mut files = API.to_vec();
    files.push(HEALTH);
    let mut config = prost_build::Config::new();
    config.bytes(["."]).out_dir(&services).service_generator(Box::new(Services::new()));
    for package in SHARED_PACKAGES {
        config.extern_path(format!(".{package}"), format!("::raft_kv::proto::{package}"));
    }
    let mut descriptors = protox::compile(&files, [protos])?;
    for file in &mut descriptors.file {
        // Comments and positions.
        file.source_code_info = None;
    }
    fs::write(services.join(DESCRIPTORS), descriptors.encode_to_vec())?;
    config.compile_fds(protox::compile(&files, [protos])?)?;

    Ok(vec![(messages, "crates/raft-kv/src/proto"), (services, "crates/raft-server/src/proto")])
}

/// Copies the generated files of one folder, or compares them with what is there.
fn install(from: &Path, to: &Path, check: bool) -> Result<()> {
    fs::create_dir_all(to)?;
    let mut files: Vec<PathBuf> =
        fs::read_dir(from)?.map(|entry| Ok(entry?.path())).collect::<Result<_>>()?;
    files.sort();
    for file in files {
        let code = fs::read(&file)?;
        // A package without services leaves an empty file in the folder of the services.
        if std::str::from_utf8(&code)
            .is_ok_and(|code| code.lines().all(|line| line.is_empty() || line.starts_with("//")))
        {
            continue;
        }
        let target = to.join(file.file_name().ok_or("a file without a name")?);
        if !check {
            fs::write(&target, code)?;
        } else if fs::read(&target).ok().as_ref() != Some(&code) {
            return Err(format!("{} is not current; run protogen", target.display()).into());
        }
    }
    Ok(())
}

/// Server traits for every service, clients only for [`CLIENTS`].
struct Services {
    server: Box<dyn ServiceGenerator>,
    client: Box<dyn ServiceGenerator>,
}

impl Services {
    fn new() -> Self {
        let half = |server: bool| {
            tonic_prost_build::configure()
                .build_server(server)
                .build_client(!server)
                // Clients are built over whatever channel the caller has.
                .build_transport(false)
                .service_generator()
        };
        Self { server: half(true), client: half(false) }
    }
}

impl ServiceGenerator for Services {
    fn generate(&mut self, service: Service, buf: &mut String) {
        if CLIENTS.contains(&service.proto_name.as_str()) {
            self.client.generate(service.clone(), buf);
        }
        self.server.generate(service, buf);
    }

    fn finalize(&mut self, buf: &mut String) {
        self.client.finalize(buf);
        self.server.finalize(buf);
    }
}
