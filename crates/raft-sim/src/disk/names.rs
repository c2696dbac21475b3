//! Names of files and directories, and what is pending of them.

use std::collections::BTreeMap;
use std::ops::Bound;
use std::path::Path;
use std::sync::Arc;

/// Files by path, ordered by the paths' bytes: comparing them part by part would cost the simulator a third of its
/// time.
#[derive(Clone, Default)]
pub(super) struct Names(BTreeMap<Arc<str>, u64>);

/// A change of a name that is not durable yet.
#[derive(Clone)]
pub(super) enum Naming {
    Link(Arc<str>, u64),
    Rename(Arc<str>, Arc<str>),
    Unlink(Arc<str>),
}

impl Names {
    pub(super) fn len(&self) -> usize {
        self.0.len()
    }

    pub(super) fn get(&self, path: &str) -> Option<u64> {
        self.0.get(path).copied()
    }

    pub(super) fn contains_key(&self, path: &str) -> bool {
        self.0.contains_key(path)
    }

    pub(super) fn insert(&mut self, path: Arc<str>, inode: u64) {
        self.0.insert(path, inode);
    }

    pub(super) fn remove(&mut self, path: &str) -> Option<u64> {
        self.0.remove(path)
    }

    pub(super) fn values(&self) -> impl Iterator<Item = u64> {
        self.0.values().copied()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&Arc<str>, u64)> {
        self.0.iter().map(|(path, inode)| (path, *inode))
    }

    /// Names of the files in this directory, sorted; not those further below.
    pub(super) fn within(&self, dir: &str) -> impl Iterator<Item = &str> {
        let from = (Bound::Included(dir), Bound::Unbounded);
        let all = self.0.range::<str, _>(from).map(|(path, _)| &**path);
        all.take_while(move |path| path.starts_with(dir)).filter_map(move |path| below(dir, path))
    }

    pub(super) fn change(&mut self, change: &Naming) {
        match change {
            Naming::Link(path, inode) => self.insert(Arc::clone(path), *inode),
            Naming::Rename(from, to) => {
                if let Some(inode) = self.remove(from) {
                    self.insert(Arc::clone(to), inode);
                }
            }
            Naming::Unlink(path) => {
                self.remove(path);
            }
        }
    }
}

/// The name of `path` in the directory `dir`, if it stands right in it.
pub(super) fn below<'a>(dir: &str, path: &'a str) -> Option<&'a str> {
    let name = path.strip_prefix(dir)?.strip_prefix('/')?;
    (!name.is_empty() && !name.contains('/')).then_some(name)
}

/// Members of the simulator give their files names of plain letters.
pub(super) fn text(path: &Path) -> &str {
    path.to_str().unwrap_or_default()
}

/// The directory that holds this.
pub(super) fn parent(path: &str) -> &str {
    match path.rsplit_once('/') {
        Some((dir, _)) if !dir.is_empty() => dir,
        Some(_) | None => "/",
    }
}
