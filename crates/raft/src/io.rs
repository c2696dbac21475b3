//! The seams: the only traits between the node and the world.
//!
//! Production implements them with files, sockets and `CLOCK_BOOTTIME`; the simulator with a lying disk, a
//! lossy network and virtual time. Everything between these seams and the tokio shell runs unchanged in both.

use std::io;
use std::path::Path;

use raft_core::{NodeId, Time};

use crate::message::PeerMessage;

/// How a file is opened.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum OpenMode {
    /// An existing file, for reading.
    Read,
    /// An existing file, for reading and writing.
    ReadWrite,
    /// A new file, for reading and writing; an error when it exists.
    CreateNew,
}

/// Files and directories. Every call blocks; only worker threads and start-up call it.
///
/// Nothing is durable until [`DiskFile::sync`] for contents and [`Disk::sync_dir`] for names has returned.
pub trait Disk: Clone + Send + Sync + 'static {
    /// An open file.
    type File: DiskFile;
    /// Keeps a directory from being opened by another process while it lives.
    type Lock: Send + 'static;

    /// Creates a directory and its missing parents, readable by the owner only; durable on return. Nothing
    /// happens when it exists.
    ///
    /// # Errors
    /// As the system says.
    fn create_dir(&self, path: &Path) -> io::Result<()>;

    /// Opens a file. New files are readable by the owner only.
    ///
    /// # Errors
    /// As the system says.
    fn open(&self, path: &Path, mode: OpenMode) -> io::Result<Self::File>;

    /// Names in a directory, sorted.
    ///
    /// # Errors
    /// As the system says.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;

    /// Whether something exists at `path`.
    ///
    /// # Errors
    /// As the system says, except "not found".
    fn exists(&self, path: &Path) -> io::Result<bool>;

    /// Renames a file, replacing what was there. Durable after [`sync_dir`](Self::sync_dir) of the directory.
    ///
    /// # Errors
    /// As the system says.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;

    /// Removes a file. Durable after [`sync_dir`](Self::sync_dir) of the directory.
    ///
    /// # Errors
    /// As the system says.
    fn remove(&self, path: &Path) -> io::Result<()>;

    /// Makes the names in a directory durable.
    ///
    /// # Errors
    /// As the system says. Never retried.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;

    /// Takes the lock of a directory without waiting.
    ///
    /// # Errors
    /// [`io::ErrorKind::WouldBlock`] when another process holds it.
    fn lock(&self, dir: &Path) -> io::Result<Self::Lock>;
}

/// One open file. Positions and lengths are bytes.
pub trait DiskFile: Send + Sync + 'static {
    /// Fills `buffer` from `offset`.
    ///
    /// # Errors
    /// [`io::ErrorKind::UnexpectedEof`] when the file ends before, else as the system says.
    fn read_at(&self, offset: u64, buffer: &mut [u8]) -> io::Result<()>;

    /// Writes all of `bytes` at `offset`. Not durable.
    ///
    /// # Errors
    /// As the system says. What was written of `bytes` is then unknown.
    fn write_at(&self, offset: u64, bytes: &[u8]) -> io::Result<()>;

    /// Makes the file `len` bytes long, all zero and all allocated, so that later writes within it change no
    /// metadata. Only for new files. Not durable.
    ///
    /// # Errors
    /// As the system says, [`io::ErrorKind::StorageFull`] among it.
    fn allocate(&self, len: u64) -> io::Result<()>;

    /// The file's length.
    ///
    /// # Errors
    /// As the system says.
    fn len(&self) -> io::Result<u64>;

    /// Whether the file has no bytes.
    ///
    /// # Errors
    /// As [`len`](Self::len).
    fn is_empty(&self) -> io::Result<bool> {
        Ok(self.len()? == 0)
    }

    /// Makes everything written so far durable (`fdatasync`).
    ///
    /// # Errors
    /// As the system says. After an error nothing written since the last success may be believed, also not
    /// after a later success: never retried.
    fn sync(&self) -> io::Result<()>;
}

/// Monotonic time that goes on while the machine sleeps.
pub trait Clock: Send + 'static {
    /// The present time.
    fn now(&self) -> Time;
}

/// Which of the two connections to a peer carries a message.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Stream {
    /// Everything small and urgent: votes, entries, heartbeats.
    Control,
    /// Snapshots: never in front of a heartbeat.
    Bulk,
}

/// Messages to other nodes. Never blocks; whatever cannot be sent is dropped, as any network may.
pub trait Network {
    /// Queues a message for a peer. Messages of one stream arrive in order or, from some point on, not at all
    /// until the peer is reported connected again.
    fn send(&mut self, to: NodeId, stream: Stream, message: PeerMessage);
}
