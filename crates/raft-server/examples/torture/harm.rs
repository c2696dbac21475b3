//! What is done to a stopped member's folder: one damage, drawn from a seed.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use raft::core::Rng;

/// What may happen to a folder.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Harm {
    /// One bit of one file.
    FlipBit,
    /// The end of a file reads as zeros.
    ZeroEnd,
    /// The end of a file is gone.
    Truncate,
    /// Some bytes of a client's value are others.
    OverwriteValue,
    /// A file of the log is gone.
    DeleteSegment,
    /// The file with term and vote is gone.
    DeletePromises,
    /// The whole folder is gone.
    DeleteFolder,
    /// The folder is what it was some time ago.
    OldCopy,
}

impl Harm {
    /// All of them, the common ones first.
    pub(crate) const ALL: [Self; 8] = [
        Self::FlipBit,
        Self::ZeroEnd,
        Self::Truncate,
        Self::OverwriteValue,
        Self::DeleteSegment,
        Self::DeletePromises,
        Self::DeleteFolder,
        Self::OldCopy,
    ];

    /// Does it; returns what exactly, for the table. `old` is a copy of the folder as it was.
    pub(crate) fn inflict(self, rng: &mut Rng, folder: &Path, old: &Path) -> Result<String> {
        match self {
            Self::FlipBit => {
                let (path, len) = one_of(rng, files(folder)?)?;
                let (offset, bit) = (rng.below(len), rng.below(8));
                let file = OpenOptions::new().read(true).write(true).open(&path)?;
                let mut byte = [0];
                file.read_exact_at(&mut byte, offset)?;
                file.write_all_at(&[byte[0] ^ 1 << bit], offset)?;
                Ok(format!("{} bit {bit} of byte {offset}", short(folder, &path)))
            }
            Self::ZeroEnd => {
                let (path, len) = one_of(rng, files(folder)?)?;
                let count = rng.between(1, len.min(64 << 10));
                let zeros = vec![0; usize::try_from(count)?];
                OpenOptions::new().write(true).open(&path)?.write_all_at(&zeros, len - count)?;
                Ok(format!("{} {count} of {len} bytes", short(folder, &path)))
            }
            Self::Truncate => {
                let (path, len) = one_of(rng, files(folder)?)?;
                let count = rng.between(1, len.min(64 << 10));
                OpenOptions::new().write(true).open(&path)?.set_len(len - count)?;
                Ok(format!("{} {count} of {len} bytes", short(folder, &path)))
            }
            Self::OverwriteValue => overwrite_value(rng, folder),
            Self::DeleteSegment => {
                let segments = files(folder)?;
                let is_segment = |(path, _): &(PathBuf, u64)| {
                    path.extension().is_some_and(|extension| extension == "log")
                };
                let (path, _) = one_of(rng, segments.into_iter().filter(is_segment).collect())?;
                fs::remove_file(&path)?;
                Ok(short(folder, &path))
            }
            Self::DeletePromises => {
                fs::remove_file(folder.join("promises"))?;
                Ok("promises".to_owned())
            }
            Self::DeleteFolder => {
                fs::remove_dir_all(folder)?;
                Ok("everything".to_owned())
            }
            Self::OldCopy => {
                fs::remove_dir_all(folder)?;
                copy(old, folder)?;
                Ok("as it was before its last life".to_owned())
            }
        }
    }
}

fn short(folder: &Path, path: &Path) -> String {
    path.strip_prefix(folder).unwrap_or(path).display().to_string()
}

fn one_of<T>(rng: &mut Rng, mut list: Vec<T>) -> Result<T> {
    let count = u64::try_from(list.len())?;
    anyhow::ensure!(count > 0, "there is nothing to damage");
    Ok(list.swap_remove(usize::try_from(rng.below(count))?))
}

/// All files that are not empty, with their lengths, in order of their names.
fn files(folder: &Path) -> Result<Vec<(PathBuf, u64)>> {
    let mut found = Vec::new();
    let mut folders = vec![folder.to_path_buf()];
    while let Some(next) = folders.pop() {
        for entry in fs::read_dir(&next)? {
            let entry = entry?;
            let metadata = entry.metadata()?;
            if metadata.is_dir() {
                folders.push(entry.path());
            } else if metadata.len() > 0 {
                found.push((entry.path(), metadata.len()));
            }
        }
    }
    found.sort();
    Ok(found)
}

/// Writes other letters over those of a value, wherever one stands.
fn overwrite_value(rng: &mut Rng, folder: &Path) -> Result<String> {
    const VALUE: &[u8] = b"value of ";
    let mut places = Vec::new();
    for (path, _) in files(folder)? {
        // Not those of earlier lives of a recycled file, which nobody reads.
        if path.file_name().is_some_and(|name| name.to_string_lossy().starts_with("spare-")) {
            continue;
        }
        let bytes = fs::read(&path)?;
        let mut from = 0;
        while let Some(at) = bytes[from..].windows(VALUE.len()).position(|it| it == VALUE) {
            places.push((path.clone(), u64::try_from(from + at)?));
            from += at + VALUE.len();
        }
    }
    let (path, offset) = one_of(rng, places).context("no value is stored yet")?;
    let file = OpenOptions::new().write(true).open(&path)?;
    file.write_all_at(b"VALUE OF ", offset)?;
    Ok(format!("{} at byte {offset}", short(folder, &path)))
}

/// Copies a folder with everything in it.
pub(crate) fn copy(from: &Path, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    for entry in fs::read_dir(from)? {
        let entry = entry?;
        let target = to.join(entry.file_name());
        if entry.metadata()?.is_dir() {
            copy(&entry.path(), &target)?;
        } else {
            fs::copy(entry.path(), &target)?;
        }
    }
    Ok(())
}
