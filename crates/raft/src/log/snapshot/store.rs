//! The folder `snapshot`: blobs, manifests, and what may be forgotten.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Display;
use std::path::{Path, PathBuf};

use bytes::{Buf, BufMut, Bytes};
use raft_core::{
    BLOB_BYTES_MAX, BlobId, Digest, EntryId, Index, Membership, SnapshotError, SnapshotMeta,
    SnapshotSink, SnapshotSource, Term,
};

use super::blob;
use crate::error::DataError;
use crate::io::{Disk, DiskFile, OpenMode};
use crate::log::Mend;
use crate::log::files::read_file;
use crate::log::identity::{MANIFEST_MAGIC, seal_twice, unseal_either};
use crate::log::record::{to_u32, to_u64};
use crate::log::spares::has_run_out;

/// How much of a blob is written before it is synced: a write to the log, which shares the disk and somebody waits for,
/// then stands behind no more than this.
const PIECE_BYTES: usize = 4 * blob::BLOCK_BYTES;
/// Manifests that are kept in any case.
const MANIFESTS_KEPT: usize = 2;

fn manifest_name(id: EntryId) -> String {
    format!("manifest-{:016x}-{:016x}", id.index.0, id.term.0)
}

/// A manifest's file.
pub(in crate::log) fn encode_manifest(meta: &SnapshotMeta, blobs: &[BlobId]) -> Vec<u8> {
    let membership = meta.membership.encode(&[]);
    let mut out = Vec::new();
    out.put_u64_le(meta.last_included.index.0);
    out.put_u64_le(meta.last_included.term.0);
    out.put_u128_le(meta.digest.0);
    out.put_u32_le(to_u32(membership.len()));
    out.put_slice(&membership);
    out.put_u32_le(to_u32(blobs.len()));
    for id in blobs {
        out.put_u128_le(id.digest.0);
        out.put_u64_le(id.len);
    }
    seal_twice(MANIFEST_MAGIC, &out)
}

/// What either copy in a manifest's file says.
pub(in crate::log) fn decode_manifest(bytes: &[u8]) -> Option<(SnapshotMeta, Vec<BlobId>)> {
    let mut input = unseal_either(MANIFEST_MAGIC, bytes).ok()?;
    let index = Index(input.try_get_u64_le().ok()?);
    let last_included = EntryId { index, term: Term(input.try_get_u64_le().ok()?) };
    let digest = Digest(input.try_get_u128_le().ok()?);
    let len = crate::log::record::to_usize(u64::from(input.try_get_u32_le().ok()?));
    if input.remaining() < len {
        return None;
    }
    let (membership, _) = Membership::decode(&input.split_to(len))?;
    let count = input.try_get_u32_le().ok()?;
    let mut blobs = Vec::new();
    for _ in 0..count {
        let digest = Digest(input.try_get_u128_le().ok()?);
        blobs.push(BlobId { digest, len: input.try_get_u64_le().ok()? });
    }
    Some((SnapshotMeta { last_included, digest, membership }, blobs))
}

/// Whether all blobs are there by name.
pub(in crate::log) fn has_blobs<D: Disk>(disk: &D, dir: &Path, blobs: &[BlobId]) -> bool {
    let dir = dir.join("snapshot");
    blobs.iter().all(|id| disk.exists(&dir.join(blob::name(*id))).unwrap_or(false))
}

/// What is wrong with a blob.
pub(in crate::log) struct BlobFault {
    /// Its file.
    pub(in crate::log) path: PathBuf,
    /// Where in it the first bad block begins.
    pub(in crate::log) offset: u64,
    pub(in crate::log) problem: String,
    /// There is no such file.
    pub(in crate::log) missing: bool,
}

/// Reads a blob, or says what is wrong with it; changes nothing, unlike reading it for the protocol.
pub(in crate::log) fn check_blob<D: Disk>(
    disk: &D,
    dir: &Path,
    id: BlobId,
) -> Result<Vec<u8>, BlobFault> {
    let path = dir.join(blob::name(id));
    let fault = |path, offset, problem: &str, missing| {
        Err(BlobFault { path, offset, problem: problem.to_owned(), missing })
    };
    match disk.exists(&path) {
        Ok(true) => {}
        Ok(false) => return fault(path, 0, "a blob of a snapshot is missing", true),
        Err(error) => return fault(path, 0, &format!("it cannot be read: {error}"), false),
    }
    match blob::read_prefix(disk, &path, id) {
        Ok(content) if BlobId::of(&content) == id => Ok(content),
        Ok(content) if to_u64(content.len()) == id.len => {
            fault(path, 0, "every block of this blob is intact, and the whole is another", false)
        }
        Ok(content) if content.is_empty() => {
            fault(path, 0, "the beginning of this blob is damaged", false)
        }
        Ok(content) => {
            let offset = blob::block_offset(to_u64(content.len()));
            fault(path, offset, "a block of this blob is damaged", false)
        }
        Err(error) => fault(path, 0, &format!("it cannot be read: {error}"), false),
    }
}

/// The manifests of a data directory.
pub(in crate::log) struct Manifests {
    /// Oldest first.
    pub(in crate::log) intact: Vec<(SnapshotMeta, Vec<BlobId>)>,
    pub(in crate::log) damaged: Vec<PathBuf>,
}

/// Reads the manifests of the data directory `dir`; changes nothing.
pub(in crate::log) fn list_manifests<D: Disk>(
    disk: &D,
    dir: &Path,
) -> Result<Manifests, DataError> {
    let dir = dir.join("snapshot");
    let mut manifests = Manifests { intact: Vec::new(), damaged: Vec::new() };
    let refused = |source| DataError::Io { path: dir.clone(), action: "list", source };
    if !disk.exists(&dir).map_err(refused)? {
        return Ok(manifests);
    }
    for name in disk.list(&dir).map_err(refused)? {
        if name.starts_with("manifest-") && !name.ends_with(".new") {
            let path = dir.join(name);
            let bytes = read_file(disk, &path)?.unwrap_or_default();
            match decode_manifest(&bytes) {
                Some(manifest) => manifests.intact.push(manifest),
                None => manifests.damaged.push(path),
            }
        }
    }
    manifests.intact.sort_by_key(|(meta, _)| (meta.last_included.index, meta.last_included.term));
    Ok(manifests)
}

/// The folder `snapshot` of a data directory.
pub struct SnapshotStore<D: Disk> {
    pub(super) disk: D,
    pub(super) dir: PathBuf,
    /// Oldest first.
    manifests: Vec<(SnapshotMeta, Vec<BlobId>)>,
    /// Blobs of which every byte was checked or written by this process.
    checked: BTreeSet<BlobId>,
    /// How many manifests name each blob.
    named: BTreeMap<BlobId, u64>,
    /// Blobs of which this process began a file, and that no manifest names, or none any more.
    loose: BTreeSet<BlobId>,
    /// No other files need to go. Not so before the folder was looked through, nor after something failed.
    tidy: bool,
}

fn refused(path: &Path, error: &dyn Display) -> SnapshotError {
    SnapshotError::Disk(format!("{}: {error}", path.display()))
}

impl<D: Disk> SnapshotStore<D> {
    /// Opens the folder `snapshot` in the data directory `dir`, creating it if needed.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn open(disk: D, dir: &Path) -> Result<Self, SnapshotError> {
        let manifests = list_manifests(&disk, dir).map_err(|error| refused(dir, &error))?;
        let dir = dir.join("snapshot");
        disk.create_dir(&dir).map_err(|error| refused(&dir, &error))?;
        // What was only renamed by the last process must not be lost after it was counted on.
        disk.sync_dir(&dir).map_err(|error| refused(&dir, &error))?;
        let manifests = manifests.intact;
        let mut named = BTreeMap::new();
        for id in manifests.iter().flat_map(|(_, blobs)| blobs) {
            *named.entry(*id).or_default() += 1;
        }
        let (checked, loose) = (BTreeSet::new(), BTreeSet::new());
        Ok(Self { disk, dir, manifests, checked, named, loose, tidy: false })
    }

    /// The newest snapshot whose manifest is intact and whose blobs are all here.
    #[must_use]
    pub fn newest(&self) -> Option<(SnapshotMeta, Vec<BlobId>)> {
        let whole = |blobs: &[BlobId]| blobs.iter().all(|id| self.has(*id).unwrap_or(false));
        self.manifests.iter().rev().find(|(_, blobs)| whole(blobs)).cloned()
    }

    /// The blobs of the snapshot at `id`; every block is checked whenever it is read.
    #[must_use]
    pub fn source(&self, id: EntryId) -> Option<StoredSnapshot<D>> {
        let (meta, blobs) = self.manifests.iter().find(|(meta, _)| meta.last_included == id)?;
        Some(StoredSnapshot {
            disk: self.disk.clone(),
            dir: self.dir.clone(),
            meta: meta.clone(),
            blobs: blobs.clone(),
        })
    }

    /// Begins to write the snapshot of this node's own state.
    pub const fn begin(&mut self, meta: SnapshotMeta) -> SnapshotWriter<'_, D> {
        SnapshotWriter { store: self, meta, blobs: Vec::new() }
    }

    pub(super) fn guard<T>(
        &self,
        name: &str,
        outcome: std::io::Result<T>,
    ) -> Result<T, SnapshotError> {
        outcome.map_err(|error| refused(&self.dir.join(name), &error))
    }

    /// Whether all of a blob is here.
    pub(super) fn has(&self, id: BlobId) -> Result<bool, SnapshotError> {
        let name = blob::name(id);
        self.guard(&name, self.disk.exists(&self.dir.join(&name)))
    }

    /// Whether all of a blob is here and is what its name says. A damaged one is set aside, so that it is
    /// written or fetched again.
    pub(super) fn has_intact(&mut self, id: BlobId) -> Result<bool, SnapshotError> {
        if !self.has(id)? {
            return Ok(false);
        }
        if self.checked.contains(&id) {
            return Ok(true);
        }
        match read_blob(&self.disk, &self.dir, id) {
            Ok(_) => {
                self.checked.insert(id);
                Ok(true)
            }
            Err(SnapshotError::Damaged(_) | SnapshotError::Missing(_)) => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// Looks at a file that looked damaged to somebody else. A manifest is written again; a blob is set aside, and the
    /// next checkpoint that contains it writes it again.
    pub(super) fn mend(&mut self, path: &Path) -> Mend {
        let name = path.file_name().map(|name| name.to_string_lossy()).unwrap_or_default();
        let known = self.manifests.iter().find(|(meta, blobs)| {
            manifest_name(meta.last_included) == name
                || blobs.iter().any(|id| blob::name(*id) == name)
        });
        let Some((meta, blobs)) = known.cloned() else { return Mend::Intact };
        if let Some(id) = blob::parse_name(&name) {
            self.checked.remove(&id);
            return match self.has_intact(id) {
                Ok(true) => Mend::Intact,
                Ok(false) => Mend::Beyond(
                    "a blob of a snapshot; it is set aside, and the next checkpoint writes it again"
                        .to_owned(),
                ),
                Err(error) => Mend::Beyond(error.to_string()),
            };
        }
        match read_file(&self.disk, path) {
            Ok(Some(bytes)) if bytes == encode_manifest(&meta, &blobs) => Mend::Intact,
            Ok(_) | Err(_) => match self.publish(meta, blobs) {
                Ok(()) => Mend::Repaired,
                Err(error) => Mend::Beyond(error.to_string()),
            },
        }
    }

    /// Writes a whole blob. Its name is durable with the manifest.
    fn put(&mut self, id: BlobId, content: &[u8]) -> Result<(), SnapshotError> {
        if self.has_intact(id)? {
            return Ok(());
        }
        // One that a manifest names and that is not here was set aside.
        self.tidy &= !self.named.contains_key(&id);
        self.loose.insert(id);
        let partial = self.dir.join(blob::partial_name(id));
        let name = blob::name(id);
        if self.guard(&name, self.disk.exists(&partial))? {
            self.guard(&name, self.disk.remove(&partial))?;
        }
        let file = self.guard(&name, blob::create(&self.disk, &partial, id))?;
        let mut offset = 0;
        for piece in content.chunks(PIECE_BYTES) {
            self.guard(&name, blob::write(&file, id, offset, piece))?;
            self.guard(&name, file.sync())?;
            offset += to_u64(piece.len());
        }
        if content.is_empty() {
            self.guard(&name, file.sync())?;
        }
        self.guard(&name, self.disk.rename(&partial, &self.dir.join(&name)))?;
        self.checked.insert(id);
        Ok(())
    }

    /// The beginning of a blob that arrived earlier, checked, written again and synced: it may have been
    /// only in the page cache of the process before.
    pub(super) fn resume(&mut self, id: BlobId) -> Result<(D::File, u64), SnapshotError> {
        self.tidy &= !self.named.contains_key(&id);
        self.loose.insert(id);
        let name = blob::partial_name(id);
        let path = self.dir.join(&name);
        let content = self.guard(&name, blob::read_prefix(&self.disk, &path, id))?;
        if self.guard(&name, self.disk.exists(&path))? && content.is_empty() {
            self.guard(&name, self.disk.remove(&path))?;
        }
        let block = to_u64(blob::BLOCK_BYTES);
        let whole = to_u64(content.len()) / block * block;
        let whole = if to_u64(content.len()) == id.len { id.len } else { whole };
        let kept = &content[..crate::log::record::to_usize(whole)];
        let file = if content.is_empty() {
            self.guard(&name, blob::create(&self.disk, &path, id))?
        } else {
            self.guard(&name, blob::reopen(&self.disk, &path, id, kept))?
        };
        self.guard(&name, file.sync())?;
        self.guard(&name, self.disk.sync_dir(&self.dir))?;
        Ok((file, whole))
    }

    /// Makes a blob that has arrived completely a whole one, if it is what its name says.
    pub(super) fn complete(&mut self, id: BlobId, file: &D::File) -> Result<bool, SnapshotError> {
        let name = blob::partial_name(id);
        let path = self.dir.join(&name);
        self.guard(&name, file.sync())?;
        let content = self.guard(&name, blob::read_prefix(&self.disk, &path, id))?;
        if BlobId::of(&content) != id {
            self.guard(&name, self.disk.remove(&path))?;
            return Ok(false);
        }
        self.guard(&name, self.disk.rename(&path, &self.dir.join(blob::name(id))))?;
        self.checked.insert(id);
        Ok(true)
    }

    /// Makes a snapshot whose blobs are all here durable: from now on it is the newest.
    pub(super) fn publish(
        &mut self,
        meta: SnapshotMeta,
        blobs: Vec<BlobId>,
    ) -> Result<(), SnapshotError> {
        let tidy = std::mem::replace(&mut self.tidy, false);
        let name = manifest_name(meta.last_included);
        let new = self.dir.join(format!("{name}.new"));
        if self.guard(&name, self.disk.exists(&new))? {
            self.guard(&name, self.disk.remove(&new))?;
        }
        let file = self.guard(&name, self.disk.open(&new, OpenMode::CreateNew))?;
        self.guard(&name, file.write_at(0, &encode_manifest(&meta, &blobs)))?;
        self.guard(&name, file.sync())?;
        // The blobs' names before the name of what lists them.
        self.guard(&name, self.disk.sync_dir(&self.dir))?;
        self.guard(&name, self.disk.rename(&new, &self.dir.join(&name)))?;
        self.guard(&name, self.disk.sync_dir(&self.dir))?;
        self.tidy = tidy;
        for id in &blobs {
            *self.named.entry(*id).or_default() += 1;
            self.loose.remove(id);
        }
        let known = |(known, _): &mut (SnapshotMeta, _)| known.last_included == meta.last_included;
        for (_, blobs) in self.manifests.extract_if(.., known).collect::<Vec<_>>() {
            self.forget(&blobs);
        }
        self.manifests.push((meta, blobs));
        self.manifests.sort_by_key(|(meta, _)| (meta.last_included.index, meta.last_included.term));
        Ok(())
    }

    /// A manifest is gone that named these blobs.
    fn forget(&mut self, blobs: &[BlobId]) {
        for id in blobs {
            if let Some(count) = self.named.get_mut(id) {
                *count -= 1;
                if *count == 0 {
                    self.named.remove(id);
                    self.loose.insert(*id);
                }
            }
        }
    }

    /// Forgets what nothing needs: manifests older than `base`, where the log begins, except the newest two;
    /// blobs that neither a manifest nor `arriving` names; and whatever was begun and given up. The work is bounded by
    /// what goes, but for the first time, and the first one after something failed.
    ///
    /// # Errors
    /// When the disk refuses.
    pub fn prune(&mut self, base: EntryId, arriving: &[BlobId]) -> Result<(), SnapshotError> {
        let surplus = self.manifests.len().saturating_sub(MANIFESTS_KEPT);
        let old = self.manifests.iter().take(surplus);
        let old = old.take_while(|(meta, _)| meta.last_included.index < base.index).count();
        let forgotten: Vec<_> = self.manifests.drain(..old).collect();
        let tidy = std::mem::replace(&mut self.tidy, false);
        for (meta, blobs) in &forgotten {
            self.forget(blobs);
            let name = manifest_name(meta.last_included);
            self.guard(&name, self.disk.remove(&self.dir.join(&name)))?;
        }
        // The manifest goes durably before what it names.
        self.guard("", self.disk.sync_dir(&self.dir))?;
        let arriving: BTreeSet<BlobId> = arriving.iter().copied().collect();
        // Also what an earlier process had of them.
        self.loose.extend(arriving.iter().filter(|id| !self.named.contains_key(id)));
        let names = if tidy { self.loose_files(&arriving)? } else { self.litter(&arriving)? };
        for name in names {
            self.guard(&name, self.disk.remove(&self.dir.join(&name)))?;
        }
        for id in self.loose.extract_if(.., |id| !arriving.contains(id)) {
            self.checked.remove(&id);
        }
        self.tidy = true;
        self.guard("", self.disk.sync_dir(&self.dir))
    }

    /// The files of what is loose.
    fn loose_files(&self, arriving: &BTreeSet<BlobId>) -> Result<Vec<String>, SnapshotError> {
        let mut names = Vec::new();
        for id in self.loose.difference(arriving) {
            for name in [blob::name(*id), blob::damaged_name(*id), blob::partial_name(*id)] {
                if self.guard(&name, self.disk.exists(&self.dir.join(&name)))? {
                    names.push(name);
                }
            }
        }
        Ok(names)
    }

    /// Every file in the folder that nothing needs.
    fn litter(&self, arriving: &BTreeSet<BlobId>) -> Result<Vec<String>, SnapshotError> {
        let begun: BTreeSet<String> = arriving.iter().map(|id| blob::partial_name(*id)).collect();
        let mut names = self.guard("", self.disk.list(&self.dir))?;
        names.retain(|name| {
            let needed = |id: &BlobId| self.named.contains_key(id) || arriving.contains(id);
            let forgotten = blob::parse_name(name).is_some_and(|id| !needed(&id));
            let given_up = blob::is_scrap(name) && !begun.contains(name)
                || name.starts_with("manifest-") && name.ends_with(".new");
            forgotten || given_up
        });
        Ok(names)
    }
}

/// A snapshot being written. Nothing of it counts before [`commit`](Self::commit).
pub struct SnapshotWriter<'a, D: Disk> {
    store: &'a mut SnapshotStore<D>,
    meta: SnapshotMeta,
    blobs: Vec<BlobId>,
}

impl<D: Disk> SnapshotWriter<'_, D> {
    /// Stands for everything that was written, equal on all members that write the same.
    #[must_use]
    pub fn state(&self) -> Digest {
        BlobId::digest_of(&self.blobs)
    }

    /// Makes the snapshot durable; it is the newest on return.
    ///
    /// # Errors
    /// When the disk refuses; the older snapshot stays.
    pub fn commit(self) -> Result<SnapshotMeta, SnapshotError> {
        self.store.publish(self.meta.clone(), self.blobs)?;
        Ok(self.meta)
    }
}

impl<D: Disk> SnapshotSink for SnapshotWriter<'_, D> {
    fn put(&mut self, content: &[u8]) -> Result<BlobId, SnapshotError> {
        if content.len() > BLOB_BYTES_MAX {
            let len = content.len();
            return Err(SnapshotError::Undecodable(format!("a blob of {len} bytes is too long")));
        }
        let id = BlobId::of(content);
        self.store.put(id, content)?;
        self.blobs.push(id);
        Ok(id)
    }

    fn reuse(&mut self, id: BlobId) -> Result<bool, SnapshotError> {
        let here = self.store.has(id)?;
        if here {
            self.blobs.push(id);
        }
        Ok(here)
    }
}

/// A snapshot to read from.
pub struct StoredSnapshot<D: Disk> {
    disk: D,
    dir: PathBuf,
    meta: SnapshotMeta,
    blobs: Vec<BlobId>,
}

impl<D: Disk> StoredSnapshot<D> {
    /// What it stands for.
    #[must_use]
    pub const fn meta(&self) -> &SnapshotMeta {
        &self.meta
    }
}

impl<D: Disk> SnapshotSource for StoredSnapshot<D> {
    fn blobs(&self) -> &[BlobId] {
        &self.blobs
    }

    fn read(&self, position: usize) -> Result<Bytes, SnapshotError> {
        let Some(id) = self.blobs.get(position).copied() else {
            return Err(SnapshotError::Undecodable("no such blob".to_owned()));
        };
        read_blob(&self.disk, &self.dir, id)
    }
}

/// Reads a whole blob, every byte checked. A damaged one is set aside: from then on it is missing.
fn read_blob<D: Disk>(disk: &D, dir: &Path, id: BlobId) -> Result<Bytes, SnapshotError> {
    let path = dir.join(blob::name(id));
    if !disk.exists(&path).map_err(|error| refused(&path, &error))? {
        return Err(SnapshotError::Missing(id));
    }
    let content = match blob::read_prefix(disk, &path, id) {
        Ok(content) => content,
        // It says nothing about the bytes.
        Err(error) if has_run_out(&error) => return Err(refused(&path, &error)),
        // A read that fails is damage, not a reason to stop.
        Err(_) => Vec::new(),
    };
    if BlobId::of(&content) == id {
        return Ok(Bytes::from(content));
    }
    tracing::error!(path = %path.display(), "a blob of a snapshot is damaged: it is set aside");
    if let Err(error) = disk.rename(&path, &dir.join(blob::damaged_name(id))) {
        tracing::warn!(path = %path.display(), %error, "the damaged blob cannot be set aside");
    }
    Err(SnapshotError::Damaged(id))
}
