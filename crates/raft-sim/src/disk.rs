//! A disk that lies as disks do: what was written is not what is durable.
//!
//! Every file has a *cache* (what reads see) and a *durable image* (what a power loss leaves), and the
//! ordered writes that lie between the two. Names work alike: a rename is pending until its directory is
//! synced. Nothing here is random by itself; what a power loss keeps follows from the seed handed in.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::io::{self, ErrorKind};
use std::path::{Path, PathBuf};
use std::sync::{Arc, PoisonError};

use raft::io::{Disk, DiskFile, OpenMode};
use raft_core::Rng;
use xxhash_rust::xxh3::xxh3_64;

mod image;
mod misplaced;
mod names;

use image::{Image, Piece};
use misplaced::Remembered;
use names::{Names, Naming, parent, text};

/// Sectors are written whole or not at all.
const SECTOR: usize = 512;
/// Pages are what a disk rewrites as one; see [`SimDisk::set_power_safe_overwrite`].
const PAGE: usize = 4096;

// The simulator runs on one thread: `Disk` asks for `Send`, and nothing contends.
type Shared = Arc<std::sync::Mutex<State>>;

/// How a machine stops.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Crash {
    /// The process dies; the system keeps its page cache and will write it out.
    Process,
    /// Power is lost: of everything not synced any subset survives, chosen by the seed, in sectors.
    Power(u64),
}

/// A simulated disk. Clones are handles to the same one.
#[derive(Clone)]
pub struct SimDisk {
    state: Shared,
}

impl fmt::Debug for SimDisk {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SimDisk").field("operations", &self.operations()).finish_non_exhaustive()
    }
}

/// A file of a [`SimDisk`], valid until the next crash.
pub struct SimFile {
    state: Shared,
    inode: u64,
    boot: u64,
    path: Arc<str>,
}

/// The lock of a directory; free again when dropped or when the process crashes.
pub struct SimLock {
    state: Shared,
    dir: PathBuf,
    boot: u64,
}

#[derive(Clone, Default)]
struct Inode {
    cache: Image,
    durable: Image,
    pending: Vec<Change>,
    /// The cache is something else than the durable image with what is pending.
    diverged: bool,
}

#[derive(Clone)]
enum Change {
    Write(Piece),
    Len(usize),
}

struct State {
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// How many handles each file has.
    open: BTreeMap<u64, u64>,
    names: Names,
    durable_names: Names,
    pending_names: BTreeMap<Arc<str>, Vec<Naming>>,
    dirs: BTreeSet<Arc<str>>,
    locks: BTreeSet<PathBuf>,
    /// Counts restarts: handles of an earlier process are dead.
    boot: u64,
    operations: u64,
    syncs: u64,
    fuse: Option<u64>,
    blown: bool,
    fail_syncs: Vec<(String, u64)>,
    /// So many syncs of directories succeed before the journal fails.
    fail_journal: Option<u64>,
    /// The journal has failed: nothing can be changed until power is cycled.
    read_only: bool,
    capacity: Option<u64>,
    power_safe_overwrite: bool,
    /// What may still be lost although it was synced.
    remembered: Remembered,
    trace: u64,
}

impl Default for SimDisk {
    fn default() -> Self {
        Self::new()
    }
}

impl SimDisk {
    /// An empty disk without limits.
    #[must_use]
    pub fn new() -> Self {
        let state = State {
            inodes: BTreeMap::new(),
            next_inode: 0,
            open: BTreeMap::new(),
            names: Names::default(),
            durable_names: Names::default(),
            pending_names: BTreeMap::new(),
            dirs: BTreeSet::new(),
            locks: BTreeSet::new(),
            boot: 0,
            operations: 0,
            syncs: 0,
            fuse: None,
            blown: false,
            fail_syncs: Vec::new(),
            fail_journal: None,
            read_only: false,
            capacity: None,
            power_safe_overwrite: true,
            remembered: Remembered::default(),
            trace: 0,
        };
        Self { state: Arc::new(std::sync::Mutex::new(state)) }
    }

    fn with<T>(&self, f: impl FnOnce(&mut State) -> T) -> T {
        f(&mut self.state.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// Stops the machine and starts it again: open files and locks are gone, the fuse is whole, and of what
    /// was not synced is left what `crash` says.
    pub fn crash(&self, crash: Crash) {
        self.with(|state| {
            state.boot += 1;
            state.locks.clear();
            state.fuse = None;
            state.blown = false;
            if let Crash::Power(seed) = crash {
                state.read_only = false;
                state.fail_journal = None;
                state.lose_power(&mut Rng::new(seed));
            }
            state.open.clear();
            state.forget_unlinked();
        });
    }

    /// The operation after `operations` further ones fails, and every one after it, until [`crash`](Self::crash).
    /// A write that fails so has reached the cache in part. `None` removes the fuse.
    pub fn set_fuse(&self, operations: Option<u64>) {
        self.with(|state| {
            state.fuse = operations;
            state.blown = false;
        });
    }

    /// Whether the fuse has blown.
    #[must_use]
    pub fn is_blown(&self) -> bool {
        self.with(|state| state.blown)
    }

    /// The sync of a file whose path contains `path`, after `skip` further ones, fails once. As
    /// real systems do, it drops the unsynced writes: the cache still shows them, no later sync writes them.
    pub fn fail_sync(&self, path: &str, skip: u64) {
        self.with(|state| state.fail_syncs.push((path.to_owned(), skip)));
    }

    /// Whether a failure that [`fail_sync`](Self::fail_sync) or [`fail_journal`](Self::fail_journal) announced is
    /// still to come.
    #[must_use]
    pub fn will_fail(&self) -> bool {
        self.with(|state| !state.fail_syncs.is_empty() || state.fail_journal.is_some())
    }

    /// Nothing that was announced fails any more.
    pub fn fail_no_more(&self) {
        self.with(|state| {
            state.fail_syncs.clear();
            state.fail_journal = None;
        });
    }

    /// The sync of a directory after `skip` further ones fails, and from then on the file system can only be read,
    /// until power is lost: what a journalling file system does when its journal cannot be written.
    pub fn fail_journal(&self, skip: u64) {
        self.with(|state| state.fail_journal = Some(skip));
    }

    /// Whether nothing can be changed any more.
    #[must_use]
    pub fn is_read_only(&self) -> bool {
        self.with(|state| state.read_only)
    }

    /// Bytes of all files.
    #[must_use]
    pub fn used_bytes(&self) -> u64 {
        let used = self.with(|state| state.inodes.values().map(|i| i.cache.len()).sum::<usize>());
        u64::try_from(used).unwrap_or(u64::MAX)
    }

    /// Names of all files with their lengths, sorted.
    #[must_use]
    pub fn lengths(&self) -> Vec<(PathBuf, u64)> {
        self.with(|state| {
            let len = |inode| state.inodes.get(&inode).map_or(0, |inode| inode.cache.len());
            let files = state.names.iter();
            files
                .map(|(path, inode)| {
                    (PathBuf::from(&**path), u64::try_from(len(inode)).unwrap_or(u64::MAX))
                })
                .collect()
        })
    }

    /// Bytes that all files together may have.
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.with(|state| state.capacity = bytes);
    }

    /// As [`set_capacity`](Self::set_capacity) set it.
    #[must_use]
    pub fn capacity(&self) -> Option<u64> {
        self.with(|state| state.capacity)
    }

    /// Whether a torn write leaves the rest of its 4 KiB page alone. On at first.
    pub fn set_power_safe_overwrite(&self, on: bool) {
        self.with(|state| state.power_safe_overwrite = on);
    }

    /// Flips the bits of `mask` in one byte, in the cache and on the medium. False when there is no such byte.
    pub fn flip(&self, path: &Path, offset: u64, mask: u8) -> bool {
        self.with(|state| {
            let Some(inode) = state.inode_at(path) else { return false };
            let offset = size(offset);
            let there = offset < inode.cache.len();
            if there {
                inode.tamper(|image| image.flip(offset, mask));
            }
            there
        })
    }

    /// Where the written part of a file ends: behind it are only zeros.
    pub fn written(&self, path: &Path) -> u64 {
        self.with(|state| state.inode_at(path).map_or(0, |inode| inode.cache.written() as u64))
    }

    /// Replaces bytes in the cache and on the medium, as a lost or misdirected write would.
    pub fn overwrite(&self, path: &Path, offset: u64, bytes: &[u8]) {
        self.with(|state| {
            if let Some(inode) = state.inode_at(path) {
                inode.tamper(|image| image.put(size(offset), bytes));
            }
        });
    }

    /// Removes a file without a trace, as an operator would.
    pub fn lose(&self, path: &Path) {
        self.with(|state| {
            state.names.remove(text(path));
            state.durable_names.remove(text(path));
        });
    }

    /// Puts a file there, durable at once.
    pub fn plant(&self, path: &Path, bytes: &[u8]) {
        self.with(|state| {
            let inode = state.new_inode();
            if let Some(file) = state.inodes.get_mut(&inode) {
                file.cache.put(0, bytes);
                file.durable = file.cache.clone();
            }
            let path: Arc<str> = text(path).into();
            state.names.insert(Arc::clone(&path), inode);
            state.durable_names.insert(Arc::clone(&path), inode);
            state.add_dirs(parent(&path));
        });
    }

    /// Everything that reads would see: path and content, sorted.
    #[must_use]
    pub fn files(&self) -> Vec<(PathBuf, Vec<u8>)> {
        self.with(|state| {
            let files = state.names.iter().filter_map(|(path, inode)| {
                let cache = &state.inodes.get(&inode)?.cache;
                Some((PathBuf::from(&**path), cache.bytes(0..cache.len())))
            });
            files.collect()
        })
    }

    /// A disk of its own with the same files, all durable.
    #[must_use]
    pub fn copy(&self) -> Self {
        let copy = Self::new();
        for (path, bytes) in self.files() {
            copy.plant(&path, &bytes);
        }
        let dirs = self.with(|state| state.dirs.clone());
        copy.with(|state| state.dirs.extend(dirs));
        copy
    }

    /// A disk of its own in exactly this state: cache, durable image and everything between.
    #[must_use]
    pub fn fork(&self) -> Self {
        let fork = Self::new();
        self.with(|from| {
            fork.with(|to| {
                to.inodes.clone_from(&from.inodes);
                to.next_inode = from.next_inode;
                to.names = from.names.clone();
                to.durable_names = from.durable_names.clone();
                to.pending_names.clone_from(&from.pending_names);
                to.dirs = from.dirs.clone();
                to.boot = from.boot;
                to.capacity = from.capacity;
                to.power_safe_overwrite = from.power_safe_overwrite;
            });
        });
        fork
    }

    /// Operations that changed something or made it durable so far.
    #[must_use]
    pub fn operations(&self) -> u64 {
        self.with(|state| state.operations)
    }

    /// Successful syncs of files so far.
    #[must_use]
    pub fn syncs(&self) -> u64 {
        self.with(|state| state.syncs)
    }

    /// A digest of every operation so far, in order: equal runs have equal ones.
    #[must_use]
    pub fn trace(&self) -> u64 {
        self.with(|state| state.trace)
    }
}

impl State {
    /// Counts an operation and adds it to the trace; fails when the fuse has blown.
    fn operate(&mut self, kind: u8, path: &str, offset: u64, bytes: &[u8]) -> io::Result<()> {
        if self.blown {
            return Err(io::Error::other("the simulated machine has stopped"));
        }
        if self.read_only {
            return Err(ErrorKind::ReadOnlyFilesystem.into());
        }
        match &mut self.fuse {
            Some(0) => {
                self.blown = true;
                return Err(io::Error::other("the simulated machine has stopped"));
            }
            Some(left) => *left -= 1,
            None => {}
        }
        self.operations += 1;
        for part in [u64::from(kind), xxh3_64(path.as_bytes()), offset, xxh3_64(bytes)] {
            self.trace = (self.trace ^ part).wrapping_mul(0x9E37_79B9_7F4A_7C15).rotate_left(29);
        }
        Ok(())
    }

    fn new_inode(&mut self) -> u64 {
        self.next_inode += 1;
        self.inodes.insert(self.next_inode, Inode::default());
        self.next_inode
    }

    fn inode_at(&mut self, path: &Path) -> Option<&mut Inode> {
        self.inodes.get_mut(&self.names.get(text(path))?)
    }

    fn add_dirs(&mut self, dir: &str) {
        let mut dir = dir;
        while self.dirs.insert(dir.into()) && dir != "/" {
            dir = parent(dir);
        }
    }

    /// A name in the directory `dir` changes.
    fn naming(&mut self, dir: &str, change: Naming) {
        self.names.change(&change);
        if let Some(changes) = self.pending_names.get_mut(dir) {
            changes.push(change);
        } else {
            self.pending_names.insert(dir.into(), vec![change]);
        }
    }

    fn sync_dir(&mut self, dir: &str) {
        for change in self.pending_names.get_mut(dir).map(std::mem::take).unwrap_or_default() {
            self.durable_names.change(&change);
        }
    }

    /// Whether a sync of `path` fails by [`SimDisk::fail_sync`].
    fn sync_fails(&mut self, path: &str) -> bool {
        for position in 0..self.fail_syncs.len() {
            let (pattern, skip) = &mut self.fail_syncs[position];
            if path.contains(pattern.as_str()) {
                if *skip == 0 {
                    self.fail_syncs.remove(position);
                    return true;
                }
                *skip -= 1;
            }
        }
        false
    }

    fn journal_fails(&mut self) -> bool {
        match &mut self.fail_journal {
            Some(0) => {
                self.fail_journal = None;
                true
            }
            Some(skip) => {
                *skip -= 1;
                false
            }
            None => false,
        }
    }

    fn has_room(&self, inode: u64, len: usize) -> bool {
        let Some(capacity) = self.capacity else { return true };
        let others = self.inodes.iter().filter(|(id, _)| **id != inode);
        let used: usize = others.map(|(_, inode)| inode.cache.len()).sum();
        u64::try_from(used + len).is_ok_and(|bytes| bytes <= capacity)
    }

    /// Files that have no name any more, neither in the cache nor on the medium, and no handle.
    fn forget_unlinked(&mut self) {
        let pending = self.pending_names.values().flatten().filter_map(|change| match change {
            Naming::Link(_, inode) => Some(*inode),
            Naming::Rename(..) | Naming::Unlink(_) => None,
        });
        let named = self.names.values().chain(self.durable_names.values());
        let linked: BTreeSet<u64> = named.chain(pending).chain(self.open.keys().copied()).collect();
        self.inodes.retain(|inode, _| linked.contains(inode));
    }

    fn lose_power(&mut self, rng: &mut Rng) {
        // A journal commits changes of names in order: a prefix of them survives, per directory.
        for changes in std::mem::take(&mut self.pending_names).into_values() {
            let kept = below(rng, changes.len() + 1);
            for change in &changes[..kept] {
                self.durable_names.change(change);
            }
        }
        self.names = self.durable_names.clone();
        for inode in self.inodes.values_mut() {
            inode.lose_power(rng, self.power_safe_overwrite);
        }
    }
}

impl Inode {
    /// `about` is the number of the file and that of the syncs before.
    fn make_durable(
        &mut self,
        pending: Vec<Change>,
        remembered: &mut Remembered,
        about: (u64, u64),
    ) {
        for change in pending {
            match change {
                Change::Len(len) => self.durable.resize(len),
                Change::Write(piece) => {
                    remembered.write(about, &self.durable, &piece);
                    if self.diverged {
                        self.durable.put(piece.offset, &piece.bytes());
                    } else {
                        self.durable.share(piece);
                    }
                }
            }
        }
    }

    fn lose_power(&mut self, rng: &mut Rng, power_safe_overwrite: bool) {
        // Swarm: all, nothing, or each sector by a coin of its own weight.
        let weight = [0, 4, 1, 2, 3][below(rng, 5)];
        for change in std::mem::take(&mut self.pending) {
            match change {
                Change::Len(len) => {
                    if rng.chance(weight, 4) {
                        self.durable.resize(len);
                    }
                }
                Change::Write(piece) => {
                    let (offset, bytes) = (piece.offset, piece.bytes());
                    let mut torn = false;
                    let mut position = 0;
                    while position < bytes.len() {
                        let at = offset + position;
                        let end = bytes.len().min(position + SECTOR - at % SECTOR);
                        if rng.chance(weight, 4) {
                            self.durable.put(at, &bytes[position..end]);
                        } else {
                            torn = true;
                        }
                        position = end;
                    }
                    if torn && !power_safe_overwrite && rng.chance(1, 2) {
                        let page = offset / PAGE * PAGE;
                        let victim = page + below(rng, PAGE / SECTOR) * SECTOR;
                        if victim + SECTOR <= self.durable.len() {
                            self.durable.put(victim, &[0xA5; SECTOR]);
                        }
                    }
                }
            }
        }
        self.cache = self.durable.clone();
        self.diverged = false;
    }

    /// Does the same to the cache and to the medium.
    fn tamper(&mut self, mut change: impl FnMut(&mut Image)) {
        change(&mut self.cache);
        change(&mut self.durable);
        self.diverged |= !self.pending.is_empty();
    }
}

fn size(bytes: u64) -> usize {
    usize::try_from(bytes).unwrap_or(usize::MAX)
}

fn below(rng: &mut Rng, bound: usize) -> usize {
    size(rng.below(u64::try_from(bound).unwrap_or(u64::MAX)))
}

impl Disk for SimDisk {
    type File = SimFile;
    type Lock = SimLock;

    fn create_dir(&self, path: &Path) -> io::Result<()> {
        self.with(|state| {
            let path = text(path);
            if !state.dirs.contains(path) {
                state.operate(1, path, 0, &[])?;
                state.add_dirs(path);
            }
            Ok(())
        })
    }

    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<SimFile> {
        self.with(|state| {
            if state.blown {
                return Err(io::Error::other("the simulated machine has stopped"));
            }
            let path = text(path);
            let name: Arc<str> = path.into();
            let inode = match (state.names.get(path), mode) {
                (Some(_), OpenMode::CreateNew) => return Err(ErrorKind::AlreadyExists.into()),
                (Some(inode), OpenMode::Read | OpenMode::ReadWrite) => inode,
                (None, OpenMode::Read | OpenMode::ReadWrite) => {
                    return Err(ErrorKind::NotFound.into());
                }
                (None, OpenMode::CreateNew) => {
                    if !state.dirs.contains(parent(path)) {
                        return Err(ErrorKind::NotFound.into());
                    }
                    state.operate(2, path, 0, &[])?;
                    let inode = state.new_inode();
                    state.naming(parent(path), Naming::Link(Arc::clone(&name), inode));
                    inode
                }
            };
            *state.open.entry(inode).or_default() += 1;
            let file =
                SimFile { state: Arc::clone(&self.state), inode, boot: state.boot, path: name };
            Ok(file)
        })
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.with(|state| {
            let dir = text(dir);
            if !state.dirs.contains(dir) {
                return Err(ErrorKind::NotFound.into());
            }
            let dirs = state.dirs.iter().filter_map(|path| names::below(dir, path));
            let mut names: Vec<String> =
                state.names.within(dir).chain(dirs).map(str::to_owned).collect();
            names.sort_unstable();
            Ok(names)
        })
    }

    fn exists(&self, path: &Path) -> io::Result<bool> {
        self.with(|state| {
            Ok(state.names.contains_key(text(path)) || state.dirs.contains(text(path)))
        })
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.with(|state| {
            let (from, to) = (text(from), text(to));
            state.operate(3, from, 0, to.as_bytes())?;
            if !state.names.contains_key(from) {
                return Err(ErrorKind::NotFound.into());
            }
            let change = Naming::Rename(from.into(), to.into());
            state.naming(parent(to), change);
            Ok(())
        })
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        self.with(|state| {
            let path = text(path);
            state.operate(4, path, 0, &[])?;
            if !state.names.contains_key(path) {
                return Err(ErrorKind::NotFound.into());
            }
            state.naming(parent(path), Naming::Unlink(path.into()));
            Ok(())
        })
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.with(|state| {
            let dir = text(dir);
            state.operate(5, dir, 0, &[])?;
            if state.journal_fails() {
                state.read_only = true;
                return Err(io::Error::other("simulated failure of the journal"));
            }
            state.sync_dir(dir);
            // Now and then is enough to keep within twice of what is in use.
            if state.inodes.len() > 2 * state.names.len() + 32 {
                state.forget_unlinked();
            }
            Ok(())
        })
    }

    fn lock(&self, dir: &Path) -> io::Result<SimLock> {
        self.with(|state| {
            if state.blown {
                return Err(io::Error::other("the simulated machine has stopped"));
            }
            if !state.locks.insert(dir.to_path_buf()) {
                return Err(ErrorKind::WouldBlock.into());
            }
            let lock = SimLock {
                state: Arc::clone(&self.state),
                dir: dir.to_path_buf(),
                boot: state.boot,
            };
            Ok(lock)
        })
    }
}

impl SimFile {
    fn with<T>(&self, f: impl FnOnce(&mut State) -> io::Result<T>) -> io::Result<T> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.boot != self.boot || state.blown {
            return Err(io::Error::other("the simulated machine has stopped"));
        }
        f(&mut state)
    }
}

impl Drop for SimFile {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        // The handles of an earlier process are gone already.
        if state.boot == self.boot
            && let Some(handles) = state.open.get_mut(&self.inode)
        {
            *handles -= 1;
            if *handles == 0 {
                state.open.remove(&self.inode);
            }
        }
    }
}

impl DiskFile for SimFile {
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()> {
        self.with(|state| {
            let inode = state.inodes.get(&self.inode);
            if inode.is_some_and(|inode| inode.cache.read(size(offset), buffer)) {
                Ok(())
            } else {
                Err(ErrorKind::UnexpectedEof.into())
            }
        })
    }

    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.with(|state| {
            let at = size(offset);
            let outcome = state.operate(6, &self.path, offset, bytes);
            // The process may die in the middle of a write.
            let bytes = match &outcome {
                Ok(()) => bytes,
                Err(_) => &bytes[..bytes.len() / 2 / SECTOR * SECTOR],
            };
            let len = state.inodes.get(&self.inode).map_or(0, |inode| inode.cache.len());
            let end = at + bytes.len();
            if end > len && !state.has_room(self.inode, end) {
                return Err(ErrorKind::StorageFull.into());
            }
            if let Some(inode) = state.inodes.get_mut(&self.inode) {
                if end > len {
                    inode.pending.push(Change::Len(end));
                }
                inode.cache.put(at, bytes);
                inode.pending.push(Change::Write(inode.cache.piece(at, bytes.len())));
            }
            outcome
        })
    }

    fn allocate(&self, len: u64) -> io::Result<()> {
        self.with(|state| {
            state.operate(7, &self.path, len, &[])?;
            let len = size(len);
            if !state.has_room(self.inode, len) {
                return Err(ErrorKind::StorageFull.into());
            }
            if let Some(inode) = state.inodes.get_mut(&self.inode) {
                inode.diverged |= inode.cache.len() > 0;
                inode.cache = Image::zeros(len);
                inode.pending.push(Change::Len(len));
            }
            Ok(())
        })
    }

    fn len(&self) -> io::Result<u64> {
        self.with(|state| {
            let len = state.inodes.get(&self.inode).map_or(0, |inode| inode.cache.len());
            Ok(u64::try_from(len).unwrap_or(u64::MAX))
        })
    }

    fn sync(&self) -> io::Result<()> {
        self.with(|state| {
            state.operate(8, &self.path, 0, &[])?;
            // By its present name: files are renamed while they are open.
            let fails = !state.fail_syncs.is_empty() && {
                let named = state.names.iter().find(|(_, inode)| *inode == self.inode);
                let path = Arc::clone(named.map_or(&self.path, |(path, _)| path));
                state.sync_fails(&path)
            };
            if let Some(inode) = state.inodes.get_mut(&self.inode) {
                let pending = std::mem::take(&mut inode.pending);
                if !fails {
                    let about = (self.inode, state.syncs);
                    inode.make_durable(pending, &mut state.remembered, about);
                } else {
                    inode.diverged = true;
                }
            }
            if fails {
                return Err(io::Error::other("simulated failure of a sync"));
            }
            state.syncs += 1;
            Ok(())
        })
    }
}

impl Drop for SimLock {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.boot == self.boot {
            state.locks.remove(&self.dir);
        }
    }
}
