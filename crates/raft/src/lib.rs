//! Raft as a library: the durable log, the transport and the driver around [`raft_core`].

pub mod error;
pub mod io;
pub mod message;

pub use raft_core as core;
