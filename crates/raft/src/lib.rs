//! Raft as a library: the durable log, the transport and the driver around [`raft_core`].

pub mod apply;
pub mod disk;
pub mod entry_header;
pub mod error;
pub mod io;
pub mod log;
pub mod message;
pub mod meters;
pub mod node;
pub mod sessions;
pub mod transport;
pub mod waiter;

pub use node::{MemberInfo, Node, Status};
pub use raft_core as core;
pub use sessions::{SessionClient, Sessions};
