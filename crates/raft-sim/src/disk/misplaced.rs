//! Writes that the disk acknowledged and that are not where they belong: lost, or written over something else.

use std::collections::VecDeque;
use std::sync::Arc;

use raft_core::Rng;

use super::{Image, Piece, SECTOR, SimDisk, State, below};

/// Writes that are remembered.
const REMEMBERED_MAX: usize = 64;

/// A write that was synced, and what was there before.
pub(super) struct Durable {
    inode: u64,
    offset: usize,
    before: Vec<u8>,
    after: Vec<u8>,
    /// How many syncs had succeeded.
    syncs: u64,
}

impl Durable {
    const fn end(&self) -> usize {
        self.offset + self.after.len()
    }
}

/// The last writes that were synced, on a disk that is to lose some.
#[derive(Default)]
pub(super) struct Remembered {
    on: bool,
    writes: VecDeque<Durable>,
}

impl Remembered {
    /// This is about to take the place of what `image` holds there.
    pub(super) fn write(&mut self, (inode, syncs): (u64, u64), image: &Image, piece: &Piece) {
        if !self.on {
            return;
        }
        if self.writes.len() == REMEMBERED_MAX {
            self.writes.pop_front();
        }
        let (offset, after) = (piece.offset, piece.bytes());
        let before = image.bytes(offset..offset + after.len());
        self.writes.push_back(Durable { inode, offset, before, after, syncs });
    }

    /// Whether this write still stands as it was made, and others were made and synced in its file later, so that whoever
    /// reads the file can tell that something is missing.
    fn may_be_lost(&self, nth: usize, state: &State) -> bool {
        let Some(write) = self.writes.get(nth) else { return false };
        let later = || self.writes.iter().skip(nth + 1).filter(|it| it.inode == write.inode);
        let followed = later().any(|it| it.syncs > write.syncs);
        let stands = state.inodes.get(&write.inode).is_some_and(|inode| {
            let there = |image: &Image| image.holds(write.offset, &write.after);
            there(&inode.durable) && there(&inode.cache)
        });
        let differs = write.before != write.after;
        let overwritten = later().any(|it| it.offset < write.end() && write.offset < it.end());
        followed && stands && differs && !overwritten
    }
}

impl SimDisk {
    /// Remembers what is written from now on, so that [`lose_write`](Self::lose_write) finds something.
    pub fn remember_writes(&self) {
        self.with(|state| state.remembered.on = true);
    }

    /// An empty disk, which remembers writes if this one does.
    #[must_use]
    pub fn replacement(&self) -> Self {
        let disk = Self::new();
        if self.with(|state| state.remembered.on) {
            disk.remember_writes();
        }
        disk
    }

    /// Takes back one of the last writes that were acknowledged, of a file whose path ends with one of `files`, as if it had
    /// never reached the medium; with `elsewhere` it stands in some other place of such a file instead. Never the last
    /// write of a file. What was done, in words; `None` when there is no such write.
    pub fn lose_write(&self, rng: &mut Rng, files: &[&str], elsewhere: bool) -> Option<String> {
        self.with(|state| {
            let named = |path: &str| files.iter().any(|end| path.ends_with(end));
            let known: Vec<(Arc<str>, u64)> = state
                .names
                .iter()
                .filter(|(path, _)| named(path))
                .map(|(path, inode)| (Arc::clone(path), inode))
                .collect();
            let name = |inode: u64| known.iter().find(|(_, found)| *found == inode);
            let remembered = std::mem::take(&mut state.remembered.writes);
            let remembered = Remembered { on: true, writes: remembered };
            let candidates: Vec<usize> = (0..remembered.writes.len())
                .filter(|nth| name(remembered.writes[*nth].inode).is_some())
                .filter(|nth| remembered.may_be_lost(*nth, state))
                .collect();
            let chosen = (!candidates.is_empty())
                .then(|| &remembered.writes[candidates[below(rng, candidates.len())]]);
            let what = chosen.and_then(|write| {
                let (path, _) = name(write.inode)?;
                state.replace(write.inode, write.offset, &write.before);
                let mut what = format!(
                    "a write of {} bytes at {} of {} is lost",
                    write.after.len(),
                    write.offset,
                    path
                );
                if elsewhere {
                    let (path, inode) = &known[below(rng, known.len())];
                    let len = state.inodes.get(inode).map_or(0, |inode| inode.durable.len());
                    let room = len.saturating_sub(write.after.len()) / SECTOR;
                    let at = below(rng, room + 1) * SECTOR + write.offset % SECTOR;
                    if at + write.after.len() <= len {
                        state.replace(*inode, at, &write.after);
                        what += &format!(", and stands at {at} of {}", path);
                    }
                }
                Some(what)
            });
            state.remembered = remembered;
            what
        })
    }
}

impl State {
    /// In the cache and on the medium.
    fn replace(&mut self, inode: u64, offset: usize, bytes: &[u8]) {
        if let Some(inode) = self.inodes.get_mut(&inode) {
            inode.tamper(|image| image.put(offset, bytes));
        }
    }
}
