//! Looking at a data directory that somebody else may have open: two small files, read without the lock.

use std::path::{Path, PathBuf};

use bytes::Bytes;

use super::files::read_file;
use super::identity::{CLUSTER_MAGIC, decode_cluster, newest_formation, unseal_either};
use super::{Formed, Identity};
use crate::error::DataError;
use crate::io::Disk;

/// What the data directory of a cluster's member says of itself.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inspected {
    /// The file that names the cluster.
    pub path: PathBuf,
    /// Whose directory it is.
    pub identity: Identity,
    /// Of which cluster.
    pub formed: Formed,
    /// What formation stored there last; empty when nothing.
    pub formation: Bytes,
}

/// Looks at a data directory and changes nothing. `None`: it is not there, belongs to no cluster, or cannot be
/// understood, which [`Log::open`](super::Log::open) says in words.
///
/// # Errors
/// When the disk refuses.
pub fn inspect<D: Disk>(disk: &D, dir: &Path) -> Result<Option<Inspected>, DataError> {
    let path = dir.join("cluster");
    let Some(cluster) = read_file(disk, &path)? else { return Ok(None) };
    let text = unseal_either(CLUSTER_MAGIC, &cluster).ok();
    let Some((identity, formed)) = text.and_then(|text| decode_cluster(&text)) else {
        return Ok(None);
    };
    let formation = read_file(disk, &dir.join("formation"))?;
    let formation = formation.and_then(|bytes| newest_formation(&bytes));
    let formation = formation.map(|(_, text)| text).unwrap_or_default();
    Ok(Some(Inspected { path, identity, formed, formation }))
}
