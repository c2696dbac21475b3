//! `rusty-raft node <config> <index>`: one member, until it is told to stop.

use raft_kv::TXN_OPS_MAX;

use super::member::{Plan, PlannedTls, Refusal};
use super::{NodeArgs, complain};
use crate::config::{self, NodeConfig};
use crate::exit::Exit;
use crate::front::Doors;
use crate::logging::{self, Color};
use crate::tls::{Role, Tls, TlsFiles};

pub(super) async fn run(args: &NodeArgs, color: Color) -> Exit {
    let started = match plan(args, color) {
        Ok(plan) => plan.start().await,
        Err(refusal) => Err(refusal),
    };
    match started {
        Ok(member) => member.run(args.stop_with_stdin).await,
        Err(refusal) => {
            complain(&refusal.text);
            refusal.exit
        }
    }
}

/// Checks everything that can be wrong on paper.
fn plan(args: &NodeArgs, color: Color) -> Result<Plan, Refusal> {
    let config = NodeConfig::read(&args.config)?;
    let own = config.member(args.index)?.clone();
    for address in &args.join {
        config::resolve(address).map_err(|reason| Refusal {
            exit: Exit::BadConfiguration,
            text: format!("rusty-raft: --join: {reason}\n\nNothing was written."),
        })?;
    }
    let load = |files: Option<&TlsFiles>, role: Role| {
        files.map(|files| Tls::load(files.clone(), role)).transpose().map_err(|error| Refusal {
            exit: Exit::BadConfiguration,
            text: format!("rusty-raft: TLS cannot begin\n\n  {error}\n\nNothing was written."),
        })
    };
    let tls = PlannedTls {
        clients: load(config.client_tls.as_ref(), Role::Clients)?,
        peers: load(config.peer_tls.as_ref(), Role::Peers)?,
        // Where clients present certificates.
        names_users: config.client_tls.as_ref().is_some_and(|files| files.trusted_ca.is_some()),
    };
    logging::init(color);
    tls.warn();
    for warning in &config.warnings {
        tracing::warn!("{}: {}: {}", warning.place, warning.field, warning.advice);
    }
    let secured = tls.clients.is_some();
    let mut listen =
        vec![(own.peer.clone(), Doors { peers: true, clients: own.peer == own.client, secured })];
    let mut clients = Vec::new();
    if own.peer != own.client {
        listen.push((own.client.clone(), Doors { peers: false, clients: true, secured }));
    }
    if secured {
        clients.push(format!("https://{}", own.client));
    } else if own.peer != own.client {
        clients.push(own.client);
    }
    Ok(Plan {
        label: format!("member {}", args.index),
        name: format!("n{}", args.index),
        data_dir: config.data_dir(args.index),
        peer: own.peer,
        clients,
        listen,
        listen_metrics: Vec::new(),
        peers: config.members.iter().map(|member| member.peer.clone()).collect(),
        peers_form_only: false,
        join: args.join.clone(),
        token: String::new(),
        compaction: config.settings.tuning.auto_compaction,
        settings: config.settings,
        txn_ops_max: TXN_OPS_MAX,
        streams_max: None,
        tls,
    })
}
