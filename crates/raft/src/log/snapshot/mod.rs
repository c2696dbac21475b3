//! Snapshots on disk and on their way (§7).
//!
//! A snapshot is a list of blobs named by their content, and a manifest that lists them. A blob that two
//! snapshots share is stored and sent once. [`SnapshotStore`] is the files; [`SnapshotWorker`] sends and
//! receives them as a function from requests to effects.

mod blob;
#[cfg(test)]
mod decoders;
mod store;
mod worker;

pub(super) use blob::{blob_step_end, first_bad_block, parse_name as parse_blob_name};
pub(super) use store::{
    BlobFault, check_blob, decode_manifest, encode_manifest, has_blobs, list_manifests,
};
pub use store::{SnapshotStore, SnapshotWriter, StoredSnapshot};
pub use worker::{SnapshotCounters, SnapshotEffect, SnapshotRequest, SnapshotWorker};
