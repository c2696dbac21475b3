//! The replicated key-value store with the semantics of etcd v3: a [`raft_core::StateMachine`].

pub mod proto;

pub mod auth;
mod check;
mod command;
mod error;
mod key_range;
mod lease_clock;
mod lease_keeper;
mod reader;
mod store;
pub mod watch;

pub use check::{
    KEY_VALUE_BYTES_MAX, LEASE_TTL_MAX, TXN_DEPTH_MAX, TXN_OPS_MAX, check_compact, check_delete,
    check_lease_grant, check_put, check_range, check_txn,
};
pub use command::{Answer, Command, Query, Response};
pub use error::{Code, KvError};
pub use lease_clock::{LeaseClock, LeaseSlack};
pub use lease_keeper::{LeaseKeeper, Standing};
pub use proto::raftkv::{Caller, Expiry};
pub use reader::{Events, PinnedReader, Publications, Reader, Stretch, is_read_only};
pub use store::lease::{LeaseChange, LeaseChanges, LeaseRecord, LeaseState};
pub use store::notices::Notices;
pub use store::{ForeignState, Picture, PicturedVersion, SnapshotBuilder, Store};
