//! `endpoint health`, `status` and `hashkv`, and `defrag`: every endpoint is asked by itself.

use std::time::Instant;

use clap::{Args, Subcommand};
use raft_kv::proto::etcdserverpb::{
    DefragmentRequest, HashKvRequest, HashKvResponse, RangeRequest, StatusRequest, StatusResponse,
};
use tokio::time::timeout;
use tonic::{Code, Response, Status};

use super::Failure;
use super::dial::{Cluster, Link, Target};
use super::go;
use super::json::{self, Json};
use super::member::client_addresses;
use super::print::{Out, Printer, say};
use super::to::Format;
use crate::cli::complain;

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Endpoint {
    #[command(flatten)]
    of: Of,
    #[command(subcommand)]
    what: What,
}

/// Which endpoints.
#[derive(Clone, Copy, Debug, Args)]
pub(in crate::cli) struct Of {
    /// All members that the cluster lists, instead of the endpoints named.
    #[arg(long, global = true)]
    cluster: bool,
}

#[derive(Clone, Copy, Debug, Subcommand)]
enum What {
    /// Ask each whether it serves, with a read that goes by the majority.
    Health,
    /// Show each one's id, version, size, whether it leads or learns, term, indexes and errors.
    Status,
    /// Show a hash of each one's keys and their history.
    Hashkv {
        /// Up to this revision [default: all].
        #[arg(long, value_name = "N", default_value_t = 0, hide_default_value = true)]
        rev: i64,
    },
}

/// Asks each member to give back unused space; ours has none to give, etcd's does.
#[derive(Clone, Copy, Debug, Args)]
pub(in crate::cli) struct Defrag {
    #[command(flatten)]
    of: Of,
}

/// What an endpoint said of its health.
struct Health {
    name: String,
    took: String,
    error: Option<String>,
}

impl Of {
    async fn find(self, cluster: &Cluster) -> Result<Cluster, Failure> {
        if !self.cluster {
            let names: Vec<String> =
                cluster.targets.iter().map(|target| target.name.clone()).collect();
            return cluster.with(&names);
        }
        cluster.with(&client_addresses(cluster).await?)
    }
}

impl Endpoint {
    pub(super) async fn run(&self, cluster: &Cluster) -> Result<(), Failure> {
        let printer = Printer::for_rows(&cluster.wishes)?;
        let cluster = self.of.find(cluster).await?;
        match self.what {
            What::Health => health(&cluster, &printer).await,
            What::Status => status(&cluster, &printer).await,
            What::Hashkv { rev } => hash_kv(&cluster, &printer, rev).await,
        }
    }
}

impl Defrag {
    pub(super) async fn run(self, cluster: &Cluster) -> Result<(), Failure> {
        let cluster = self.of.find(cluster).await?;
        let mut result = Ok(());
        for target in &cluster.targets {
            let defragmented =
                ask(&cluster, target, DefragmentRequest {}, async |link, request| {
                    link.maintenance().defragment(link.by(request)).await
                });
            match defragmented.await {
                Ok(_) => say(format!("Finished defragmenting etcd member[{}]", target.name)),
                Err(error) => {
                    complain(&format!(
                        "Failed to defragment etcd member[{}] ({error})",
                        target.name
                    ));
                    result = Err(Failure::silent());
                }
            }
        }
        result
    }
}

/// Asks one endpoint, and says in words why it did not answer.
async fn ask<R, T>(
    cluster: &Cluster,
    target: &Target,
    request: R,
    call: impl AsyncFnOnce(Link, R) -> Result<Response<T>, Status>,
) -> Result<T, String> {
    let asking = async {
        let link = cluster.link(target).await.map_err(|failure| failure.words)??;
        call(link, request)
            .await
            .map(Response::into_inner)
            .map_err(|status| status.message().to_owned())
    };
    let limit = cluster.wishes.command_timeout;
    timeout(limit, asking).await.unwrap_or_else(|_| Err(String::from("context deadline exceeded")))
}

async fn health(cluster: &Cluster, printer: &Printer) -> Result<(), Failure> {
    let mut healths = Vec::new();
    for target in &cluster.targets {
        let began = Instant::now();
        let request = RangeRequest { key: "health".into(), ..RangeRequest::default() };
        let asked = ask(cluster, target, request, async |link, request| {
            match link.kv().range(link.by(request)).await {
                // Who may not read this key has heard so from a cluster that decides.
                Err(status) if status.code() == Code::PermissionDenied => {
                    Ok(Response::new(Default::default()))
                }
                answer => answer,
            }
        });
        let error = asked.await.err();
        let took = go::duration(began.elapsed());
        healths.push(Health { name: target.name.clone(), took, error });
    }
    let mut out = Out::default();
    match printer.format {
        Format::Simple => {
            for Health { name, took, error } in &healths {
                complain(&match error {
                    None => {
                        format!("{name} is healthy: successfully committed proposal: took = {took}")
                    }
                    Some(error) => {
                        format!("{name} is unhealthy: failed to commit proposal: {error}")
                    }
                });
            }
        }
        Format::Json => {
            let of_one = |health: &Health| {
                let json = Json::object([
                    ("endpoint", Json::text(&health.name)),
                    ("health", Json::Bool(health.error.is_none())),
                    ("took", Json::text(&health.took)),
                ]);
                match &health.error {
                    Some(error) => json.and([("error", Json::text(error))]),
                    None => json,
                }
            };
            out.line(Json::List(healths.iter().map(of_one).collect()).to_string());
        }
        Format::Fields | Format::Protobuf => {
            for Health { name, took, error } in &healths {
                out.text("Endpoint", name.as_bytes());
                out.field("Health", error.is_none());
                out.field("Took", took);
                out.field("Error", error.as_deref().unwrap_or_default());
                out.line("");
            }
        }
        Format::Table => {
            let row = |health: &Health| {
                let error = health.error.clone().unwrap_or_default();
                vec![
                    health.name.clone(),
                    health.error.is_none().to_string(),
                    health.took.clone(),
                    error,
                ]
            };
            let rows: Vec<Vec<String>> = healths.iter().map(row).collect();
            out.rows(Format::Table, &["endpoint", "health", "took", "error"], &rows);
        }
    }
    out.print();
    if healths.iter().any(|health| health.error.is_some()) {
        return Err(Failure::failed("unhealthy cluster"));
    }
    Ok(())
}

async fn status(cluster: &Cluster, printer: &Printer) -> Result<(), Failure> {
    let mut answers = Vec::new();
    let mut result = Ok(());
    for target in &cluster.targets {
        let asked = ask(cluster, target, StatusRequest {}, async |link, request| {
            link.maintenance().status(link.by(request)).await
        });
        match asked.await {
            Ok(answer) => answers.push((target.name.as_str(), answer)),
            Err(error) => {
                complain(&format!(
                    "Failed to get the status of endpoint {} ({error})",
                    target.name
                ));
                result = Err(Failure::silent());
            }
        }
    }
    let mut out = Out::default();
    match printer.format {
        Format::Json => {
            let of_one = |(name, answer): &(&str, StatusResponse)| {
                Json::object([
                    ("Endpoint", Json::text(*name)),
                    ("Status", json::message("etcdserverpb.StatusResponse", answer)),
                ])
            };
            out.line(Json::List(answers.iter().map(of_one).collect()).to_string());
        }
        Format::Fields => {
            answers.iter().for_each(|(name, answer)| fields_status(&mut out, name, answer))
        }
        Format::Simple | Format::Table | Format::Protobuf => {
            let head = [
                "endpoint",
                "ID",
                "version",
                "db size",
                "is leader",
                "is learner",
                "raft term",
                "raft index",
                "raft applied index",
                "errors",
            ];
            let rows: Vec<Vec<String>> =
                answers.iter().map(|(name, answer)| status_row(name, answer)).collect();
            out.rows(printer.format, &head, &rows);
        }
    }
    out.print();
    result
}

fn status_row(name: &str, answer: &StatusResponse) -> Vec<String> {
    let id = answer.header.as_ref().map_or(0, |header| header.member_id);
    vec![
        name.to_owned(),
        format!("{id:x}"),
        answer.version.clone(),
        go::size(answer.db_size),
        (answer.leader == id).to_string(),
        answer.is_learner.to_string(),
        answer.raft_term.to_string(),
        answer.raft_index.to_string(),
        answer.raft_applied_index.to_string(),
        answer.errors.join(", "),
    ]
}

fn fields_status(out: &mut Out, name: &str, answer: &StatusResponse) {
    out.header(answer.header.as_ref());
    out.text("Version", answer.version.as_bytes());
    out.field("DBSize", answer.db_size);
    out.field("Leader", answer.leader);
    out.field("IsLearner", answer.is_learner);
    out.field("RaftIndex", answer.raft_index);
    out.field("RaftTerm", answer.raft_term);
    out.field("RaftAppliedIndex", answer.raft_applied_index);
    out.field("Errors", format_args!("[{}]", answer.errors.join(" ")));
    out.text("Endpoint", name.as_bytes());
    out.line("");
}

async fn hash_kv(cluster: &Cluster, printer: &Printer, revision: i64) -> Result<(), Failure> {
    let mut answers: Vec<(&str, HashKvResponse)> = Vec::new();
    let mut result = Ok(());
    for target in &cluster.targets {
        let asked = ask(cluster, target, HashKvRequest { revision }, async |link, request| {
            link.maintenance().hash_kv(link.by(request)).await
        });
        match asked.await {
            Ok(answer) => answers.push((target.name.as_str(), answer)),
            Err(error) => {
                complain(&format!("Failed to get the hash of endpoint {} ({error})", target.name));
                result = Err(Failure::failed(error));
            }
        }
    }
    let mut out = Out::default();
    match printer.format {
        Format::Json => {
            let of_one = |(name, answer): &(&str, HashKvResponse)| {
                Json::object([
                    ("Endpoint", Json::text(*name)),
                    ("HashKV", json::message("etcdserverpb.HashKVResponse", answer)),
                ])
            };
            out.line(Json::List(answers.iter().map(of_one).collect()).to_string());
        }
        Format::Fields => {
            for (name, answer) in &answers {
                out.header(answer.header.as_ref());
                out.text("Endpoint", name.as_bytes());
                out.field("Hash", answer.hash);
                out.line("");
            }
        }
        Format::Simple | Format::Table | Format::Protobuf => {
            let row = |(name, answer): &(&str, HashKvResponse)| {
                vec![(*name).to_owned(), answer.hash.to_string()]
            };
            let rows: Vec<Vec<String>> = answers.iter().map(row).collect();
            out.rows(printer.format, &["endpoint", "hash"], &rows);
        }
    }
    out.print();
    result
}
