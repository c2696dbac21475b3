//! The service as its users see it: real processes, killed and restarted, spoken to over the network.

#![expect(clippy::unwrap_used, reason = "a test fails on what it does not expect")]
#![expect(clippy::print_stderr, reason = "a failing test shows what the processes printed")]

mod as_etcd;
mod auth;
mod bad_input;
mod bench;
mod client;
mod crashes;
mod etcdctl;
mod folders;
mod gateway;
mod hostile;
mod http;
mod kv;
mod leases;
mod maintenance;
mod membership;
mod no_quorum;
mod operations;
mod other_cluster;
mod packaging;
mod port;
mod recipes;
mod settings;
mod snapshots;
mod supervisor;
mod support;
mod texts;
mod tls;
mod transfer;
mod watches;
mod words;
