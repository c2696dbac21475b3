//! The service `rusty-raft`: an etcd v3 server on the Raft library, and the one binary.

pub mod bbolt;
pub mod bench;
pub mod cli;
pub mod client;
pub mod config;
mod db;
pub mod etcd;
pub mod exit;
pub mod front;
pub mod limits;
pub mod logging;
pub mod metrics;
pub mod proto;
pub mod supervisor;
pub mod tls;
