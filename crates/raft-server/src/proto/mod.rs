//! The gRPC services of etcd's public interface: traits to implement, and a few clients.
//!
//! Everything below is written by `tools/protogen` from `crates/raft-kv/proto`; the messages are in
//! `raft_kv::proto`.

#![allow(
    missing_docs,
    unreachable_pub,
    unused_qualifications,
    elided_lifetimes_in_paths,
    clippy::pedantic,
    clippy::allow_attributes_without_reason,
    clippy::wildcard_enum_match_arm,
    clippy::use_self,
    clippy::or_fun_call,
    clippy::needless_pass_by_ref_mut,
    clippy::disallowed_types,
    reason = "generated code"
)]

#[rustfmt::skip]
pub mod etcdserverpb;
#[rustfmt::skip]
#[path = "grpc.health.v1.rs"]
pub mod health;
#[rustfmt::skip]
pub mod v3electionpb;
#[rustfmt::skip]
pub mod v3lockpb;

/// Every message of the API with its fields, as written by `tools/protogen`; `None` never happens.
#[must_use]
pub fn descriptors() -> Option<&'static prost_reflect::DescriptorPool> {
    static POOL: std::sync::LazyLock<Option<prost_reflect::DescriptorPool>> =
        std::sync::LazyLock::new(|| {
            let descriptors = include_bytes!("api.descriptors");
            prost_reflect::DescriptorPool::decode(&descriptors[..]).ok()
        });
    POOL.as_ref()
}
