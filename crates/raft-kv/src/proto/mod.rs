//! The messages of etcd's public protobuf interface, and our own of the log.
//!
//! Everything below is written by `tools/protogen` from `crates/raft-kv/proto`; change it there. The
//! services of the same files are in `raft-server`.

#![allow(
    missing_docs,
    unreachable_pub,
    clippy::pedantic,
    clippy::wildcard_enum_match_arm,
    clippy::use_self,
    clippy::enum_variant_names,
    clippy::doc_markdown,
    reason = "generated code; its names and comments come from the .proto files"
)]

#[rustfmt::skip]
pub mod authpb;
#[rustfmt::skip]
pub mod etcdserverpb;
#[rustfmt::skip]
pub mod mvccpb;
#[rustfmt::skip]
pub(crate) mod raftkv;
#[rustfmt::skip]
pub mod v3electionpb;
#[rustfmt::skip]
pub mod v3lockpb;
