//! Maintenance.Snapshot: everything that is stored, as the file that etcd's tools know.
//!
//! The store is looked at once, at one applied index, and stays readable as it was then; the file is written as it is
//! sent, so that neither memory nor disk has to hold it. Its head says where it ends: it is laid out once before.

use std::io::{self, Write};

use bytes::{Bytes, BytesMut};
use raft_kv::proto::etcdserverpb::{ResponseHeader, SnapshotResponse};
use raft_kv::{Answer, Caller, Query};
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tonic::Status;

use super::kv::mismatch;
use super::{ETCD_VERSION, Etcd, errors};
use crate::bbolt::Layout;
use crate::db::Contents;

/// Bytes of one part of the stream, as in etcd.
const PART_BYTES: usize = 32 << 10;
/// Parts that wait for a client to take them.
const PARTS_MAX: usize = 8;

impl Etcd {
    /// The parts of a snapshot, made while they are taken.
    pub(super) async fn snapshot_parts(
        &self,
        caller: Option<Caller>,
    ) -> Result<mpsc::Receiver<Result<SnapshotResponse, Status>>, Status> {
        let status = self.node.status();
        let answer = self.node.read_local(Query::Picture.by(caller)).await;
        let answer = answer.map_err(|error| errors::of_read(&error))?.map_err(errors::of_kv)?;
        let Answer::Picture(picture) = answer else {
            return Err(mismatch());
        };
        let header = self.header(picture.revision());
        let contents = Contents {
            picture,
            members: self.members(),
            index: status.last_applied.0,
            term: status.term.0,
        };
        let (sender, receiver) = mpsc::channel(PARTS_MAX);
        tokio::task::spawn_blocking(move || {
            if let Err(error) = send(&contents, header, &sender) {
                // Mostly, nobody listens any more.
                tracing::debug!("a snapshot ended early: {error}");
                let text = format!("etcdserver: the snapshot failed: {error}");
                sender.blocking_send(Err(Status::internal(text))).ok();
            }
        });
        Ok(receiver)
    }
}

fn send(
    contents: &Contents,
    header: ResponseHeader,
    sender: &mpsc::Sender<Result<SnapshotResponse, Status>>,
) -> io::Result<()> {
    let (layout, _) = contents.write(io::sink(), Layout::default())?;
    let parts = Parts {
        header,
        sender,
        part: BytesMut::with_capacity(PART_BYTES),
        left: layout.file_bytes(),
        digest: Sha256::new(),
    };
    let (written, parts) = contents.write(parts, layout)?;
    if written != layout {
        return Err(io::Error::other("it came out otherwise than it was laid out"));
    }
    parts.end()
}

/// Where the file goes: to a client, part by part.
struct Parts<'a> {
    header: ResponseHeader,
    sender: &'a mpsc::Sender<Result<SnapshotResponse, Status>>,
    part: BytesMut,
    /// Bytes that are still to come after those sent.
    left: u64,
    digest: Sha256,
}

impl Parts<'_> {
    fn send(&mut self) -> io::Result<()> {
        let blob = self.part.split().freeze();
        self.digest.update(&blob);
        self.left = self.left.saturating_sub(u64::try_from(blob.len()).unwrap_or(u64::MAX));
        self.send_blob(blob)
    }

    fn send_blob(&self, blob: Bytes) -> io::Result<()> {
        let part = SnapshotResponse {
            header: Some(self.header),
            remaining_bytes: self.left,
            blob,
            version: ETCD_VERSION.to_owned(),
        };
        self.sender.blocking_send(Ok(part)).map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// The last part is the digest of all before.
    fn end(mut self) -> io::Result<()> {
        if !self.part.is_empty() {
            self.send()?;
        }
        let digest = Bytes::copy_from_slice(&self.digest.clone().finalize());
        self.send_blob(digest)
    }
}

impl Write for Parts<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let taken = bytes.len().min(PART_BYTES - self.part.len());
        self.part.extend_from_slice(&bytes[..taken]);
        if self.part.len() == PART_BYTES {
            self.send()?;
        }
        Ok(taken)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
