//! The folder `snapshot`: manifests, and every block of every blob that they name.

use std::collections::BTreeMap;
use std::path::PathBuf;

use raft_core::{BlobId, SnapshotMeta};

use super::segments::Replayed;
use super::small::first_difference;
use super::{Effect, Examiner, SnapshotSummary};
use crate::error::DataError;
use crate::io::Disk;
use crate::log::files::read_file;
use crate::log::open::Found;
use crate::log::record::to_u64;
use crate::log::snapshot::{
    BlobFault, check_blob, decode_manifest, encode_manifest, parse_blob_name,
};

/// One manifest; without content when no copy of it is intact.
pub(super) struct Manifest {
    path: PathBuf,
    content: Option<(SnapshotMeta, Vec<BlobId>)>,
    /// Where a damaged copy differs.
    differs: Option<u64>,
}

impl Manifest {
    pub(super) fn meta(&self) -> Option<&SnapshotMeta> {
        self.content.as_ref().map(|(meta, _)| meta)
    }
}

impl<D: Disk> Examiner<'_, D> {
    /// The manifests, oldest first; their names sort as their indexes do.
    pub(super) fn manifests(&mut self) -> Result<Vec<Manifest>, DataError> {
        let mut manifests = Vec::new();
        for name in self.snapshot_files()? {
            if !name.starts_with("manifest-") || name.ends_with(".new") {
                continue;
            }
            let path = self.dir.join("snapshot").join(name);
            let bytes = read_file(self.disk, &path)?.unwrap_or_default();
            self.advance(to_u64(bytes.len()));
            let content = decode_manifest(&bytes);
            let differs = content
                .as_ref()
                .and_then(|(meta, blobs)| first_difference(&bytes, &encode_manifest(meta, blobs)));
            manifests.push(Manifest { path, content, differs });
        }
        Ok(manifests)
    }

    fn snapshot_files(&self) -> Result<Vec<String>, DataError> {
        let dir = self.dir.join("snapshot");
        let refused = |source| DataError::Io { path: dir.clone(), action: "list", source };
        if !self.disk.exists(&dir).map_err(refused)? {
            return Ok(Vec::new());
        }
        self.disk.list(&dir).map_err(refused)
    }

    /// Reads every blob; what follows for the snapshots, and which of them are intact. A damage is covered when a start
    /// finds another snapshot, or needs none.
    pub(super) fn blobs(
        &mut self,
        manifests: Vec<Manifest>,
        log: Option<&Replayed>,
        found: &Found,
    ) -> Result<(Vec<SnapshotSummary>, Vec<SnapshotMeta>), DataError> {
        let dir = self.dir.join("snapshot");
        let mut faults: BTreeMap<BlobId, Option<BlobFault>> = BTreeMap::new();
        let names = self.snapshot_files()?;
        let stored: Vec<BlobId> = names.iter().filter_map(|name| parse_blob_name(name)).collect();
        let named = manifests.iter().filter_map(|manifest| manifest.content.as_ref());
        let named: Vec<BlobId> = named.flat_map(|(_, blobs)| blobs.iter().copied()).collect();
        for id in named.iter().chain(&stored).copied() {
            if faults.contains_key(&id) {
                continue;
            }
            let fault = check_blob(self.disk, &dir, id).err();
            if fault.as_ref().is_none_or(|fault| !fault.missing) {
                self.advance(id.len);
            }
            faults.insert(id, fault);
        }
        let is_intact = |id: &BlobId| matches!(faults.get(id), Some(None));
        let usable = manifests.iter().rev().filter_map(|manifest| manifest.content.as_ref());
        let usable = usable.filter(|(_, blobs)| blobs.iter().all(is_intact));
        let intact: Vec<SnapshotMeta> = usable.clone().map(|(meta, _)| meta.clone()).collect();
        let usable = match log {
            Some(log) if log.unbroken => {
                usable.filter(|(meta, _)| log.replay.accepts(meta)).count()
            }
            // The log says why nothing can start from here.
            Some(_) | None => usable.count(),
        };
        let needless =
            log.is_none_or(|log| log.from_origin) || !matches!(&found.cluster, Some(Ok(_)));
        let effect = if usable > 0 || needless { Effect::Covered } else { Effect::Needed };
        for (id, fault) in &faults {
            let Some(fault) = fault else { continue };
            let effect = if named.contains(id) { effect } else { Effect::Unused };
            self.damage(&fault.path, (fault.offset, 0), effect, &fault.problem);
        }
        for manifest in &manifests {
            match (&manifest.content, manifest.differs) {
                (None, _) => {
                    let problem = "no copy of the snapshot's manifest is intact";
                    self.damage(&manifest.path, (0, 0), effect, problem);
                }
                (Some(_), Some(offset)) => {
                    let problem = "one of two copies of the manifest is damaged";
                    self.damage(&manifest.path, (offset, 0), Effect::Covered, problem);
                }
                (Some(_), None) => {}
            }
        }
        if let Some(log) = log
            && log.unbroken
            && effect == Effect::Needed
        {
            let problem = format!(
                "no intact snapshot covers the log's beginning at {}",
                log.summary.compacted
            );
            self.damage(&dir, (0, 0), Effect::Needed, &problem);
        }
        let whole = manifests.into_iter().filter_map(|manifest| manifest.content);
        let summaries = whole.map(|(meta, blobs)| SnapshotSummary {
            at: meta.last_included,
            membership: meta.membership,
            blobs: blobs.len(),
            bytes: blobs.iter().map(|id| id.len).sum(),
            whole: blobs.iter().all(is_intact),
        });
        Ok((summaries.collect(), intact))
    }
}
