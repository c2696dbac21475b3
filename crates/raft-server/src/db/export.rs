//! From the folder of a stopped member to a database.

use std::io::{self, Write};
use std::sync::Arc;

use raft::MemberInfo;
use raft::core::StateMachine as _;
use raft::disk::StdDisk;
use raft::error::NodeError;
use raft::log::Survivor;
use raft::node::replay;
use raft_kv::Store;
use raft_kv::proto::etcdserverpb::Member;
use sha2::{Digest as _, Sha256};

use super::{Contents, Totals};
use crate::bbolt::Layout;

/// What the folder of a stopped member holds.
pub(crate) struct Stopped {
    pub(crate) contents: Contents,
    pub(crate) totals: Totals,
}

/// Replays the folder of a stopped member.
///
/// # Errors
/// When something is damaged or not understood.
pub(crate) fn open(survivor: &Survivor<StdDisk>) -> Result<Stopped, NodeError> {
    let store = replay(survivor, Store::new())?;
    let totals = Totals::of_store(&store);
    let members = survivor.membership();
    let members = members.members().map(|(node, member)| {
        let info = MemberInfo::decode(&member.info).unwrap_or_default();
        let id = info.known_as.unwrap_or(node.member).0;
        let peer_ur_ls = vec![format!("http://{}", info.peer_address)];
        Member { id, name: info.name, peer_ur_ls, ..Member::default() }
    });
    let last = survivor.last();
    let contents = Contents {
        picture: Arc::new(store.snapshot()),
        members: members.collect(),
        index: last.index.0,
        term: last.term.0,
    };
    Ok(Stopped { contents, totals })
}

/// Writes the database with its checksum behind it. `progress` hears how many bytes of how many were written.
///
/// # Errors
/// Those of `out`.
pub(crate) fn write<W: Write>(
    contents: &Contents,
    out: W,
    progress: &mut dyn FnMut(u64, u64),
) -> io::Result<W> {
    let (layout, _) = contents.write(io::sink(), Layout::default())?;
    let hashing = Hashing { out, hasher: Sha256::new(), written: 0, layout, progress };
    let (written, mut hashing) = contents.write(hashing, layout)?;
    if written != layout {
        return Err(io::Error::other("it came out otherwise than it was laid out"));
    }
    hashing.out.write_all(&hashing.hasher.finalize())?;
    Ok(hashing.out)
}

struct Hashing<'a, W> {
    out: W,
    hasher: Sha256,
    written: u64,
    layout: Layout,
    progress: &'a mut dyn FnMut(u64, u64),
}

impl<W: Write> Write for Hashing<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = self.out.write(bytes)?;
        self.hasher.update(&bytes[..taken]);
        self.written += u64::try_from(taken).unwrap_or(u64::MAX);
        (self.progress)(self.written, self.layout.file_bytes());
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.out.flush()
    }
}
