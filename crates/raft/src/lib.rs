//! Raft as a library: the durable log, the transport and the driver around [`raft_core`].

pub mod error;
pub mod io;
pub mod message;
pub mod node;

pub use node::{MemberInfo, Node, Status};
pub use raft_core as core;
