//! Step 5 of the life of a write: bytes, checksum, one `fdatasync` per batch; only then `persisted`.
//!
//! A data directory holds the identity of a node, its promises (term and vote), its log and its snapshots.
//! [`Log`] is its only writer, apart from the snapshot files, which belong to [`snapshot`]. Everything here
//! is synchronous and runs on one worker thread ([`LogWorker`]); the disk is a seam
//! ([`Disk`](crate::io::Disk)), so that the simulator can lie. The formats are drawn byte by byte in
//! docs/disk-format.md.
//!
//! Deliberately absent: any decision of the protocol, any clock, any network, any retry of a failed sync.

mod body;
#[cfg(test)]
mod decoders;
pub mod examine;
mod files;
mod hard_state;
mod identity;
mod inspect;
mod mend;
mod open;
mod options;
mod record;
mod recovery;
mod repair;
mod salvage;
pub mod scrub;
mod segment;
pub mod snapshot;
mod spares;
mod store;
mod survivor;
mod tables;
mod worker;

pub use inspect::{Inspected, inspect};
pub use mend::Mend;
pub use options::{
    Belongs, DamagedState, DataState, Formed, FormedState, Identity, LatchError, LogOptions,
    LogStatus, Missing, Opened, RecoveryReport, Supply,
};
pub use store::Log;
pub use survivor::Survivor;
pub use worker::{LogCompletion, LogRequest, LogWorker};
