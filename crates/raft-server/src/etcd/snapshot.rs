//! Maintenance.Snapshot: everything that is stored, as the file that etcd's tools know.
//!
//! The store is looked at once, at one applied index, and stays readable as it was then; the file is written as it is
//! sent, so that neither memory nor disk has to hold it. Its head says where it ends: it is laid out once before.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::{Bytes, BytesMut};
use prost::Message as _;
use raft_kv::proto::authpb::{Permission, Role, User, UserAddOptions};
use raft_kv::proto::etcdserverpb::AlarmType;
use raft_kv::proto::etcdserverpb::{Member, ResponseHeader, SnapshotResponse};
use raft_kv::{Answer, Caller, Picture, Query};
use serde_json::json;
use sha2::{Digest as _, Sha256};
use tokio::sync::mpsc;
use tonic::Status;

use super::kv::mismatch;
use super::{ETCD_VERSION, Etcd, errors};
use crate::bbolt::{Layout, Writer};

/// Bytes of one part of the stream, as in etcd.
const PART_BYTES: usize = 32 << 10;
/// Parts that wait for a client to take them.
const PARTS_MAX: usize = 8;

/// What a file holds.
struct Contents {
    picture: Arc<Picture>,
    members: Vec<Member>,
    /// Where in the log this is.
    index: u64,
    term: u64,
}

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

/// The key of a revision.
fn revision_key(main: i64, sub: u32, deleted: bool) -> Vec<u8> {
    let mut key = Vec::with_capacity(18);
    key.extend(main.to_be_bytes());
    key.push(b'_');
    key.extend(i64::from(sub).to_be_bytes());
    if deleted {
        key.push(b't');
    }
    key
}

impl Contents {
    /// Writes the file; the same each time.
    fn write<W: Write>(&self, out: W, layout: Layout) -> io::Result<(Layout, W)> {
        let picture = &self.picture;
        let mut writer = Writer::begin(out, layout)?;
        let mut keys = writer.bucket("key");
        for version in picture.versions() {
            let key = revision_key(version.main, version.sub, version.deleted);
            keys.put(&key, &version.kv.encode_to_vec())?;
        }
        keys.end()?;

        let mut meta = writer.bucket("meta");
        meta.put(b"consistent_index", &self.index.to_be_bytes())?;
        if picture.compact_revision() > 0 {
            let compacted = revision_key(picture.compact_revision(), 0, false);
            meta.put(b"finishedCompactRev", &compacted)?;
            meta.put(b"scheduledCompactRev", &compacted)?;
        }
        meta.put(b"term", &self.term.to_be_bytes())?;
        meta.end()?;

        let mut leases = writer.bucket("lease");
        let mut records = picture.leases().to_vec();
        // Ids as etcd's keys are: in the order of their bytes.
        records.sort_by_key(|record| record.id.to_be_bytes());
        for record in records {
            // leasepb.Lease: the id is field 1, the seconds are field 2.
            let mut lease = vec![0x08];
            prost::encoding::encode_varint(record.id.cast_unsigned(), &mut lease);
            lease.push(0x10);
            prost::encoding::encode_varint(record.ttl.cast_unsigned(), &mut lease);
            leases.put(&record.id.to_be_bytes(), &lease)?;
        }
        leases.end()?;

        self.write_users(&mut writer)?;
        let mut alarms: Vec<Vec<u8>> = picture
            .notices()
            .of_type(AlarmType::None)
            .into_iter()
            .map(|alarm| alarm.encode_to_vec())
            .collect();
        alarms.sort();
        let mut bucket = writer.bucket("alarm");
        for alarm in alarms {
            bucket.put(&alarm, b"")?;
        }
        bucket.end()?;

        let mut members: Vec<(String, String)> = self
            .members
            .iter()
            .map(|member| (format!("{:x}", member.id), json_of(member)))
            .collect();
        members.sort();
        let mut bucket = writer.bucket("members");
        for (id, member) in members {
            bucket.put(id.as_bytes(), member.as_bytes())?;
        }
        bucket.end()?;
        // What etcd expects to be there.
        for name in ["cluster", "members_removed"] {
            writer.bucket(name).end()?;
        }
        writer.end()
    }

    fn write_users<W: Write>(&self, writer: &mut Writer<W>) -> io::Result<()> {
        let auth = self.picture.auth();
        let mut bucket = writer.bucket("auth");
        bucket.put(b"authEnabled", &[u8::from(auth.is_enabled())])?;
        bucket.put(b"authRevision", &auth.revision().to_be_bytes())?;
        bucket.end()?;

        let mut roles = writer.bucket("authRoles");
        for name in auth.roles() {
            let permissions = auth.role(name).into_iter().flatten();
            let key_permission = permissions.map(|(key, range_end, kind)| Permission {
                perm_type: kind.into(),
                key: key.clone(),
                range_end: range_end.clone(),
            });
            let role = Role {
                name: Bytes::copy_from_slice(name.as_bytes()),
                key_permission: key_permission.collect(),
            };
            roles.put(name.as_bytes(), &role.encode_to_vec())?;
        }
        roles.end()?;

        let mut users = writer.bucket("authUsers");
        for name in auth.users() {
            let Some(user) = auth.user(name) else { continue };
            let no_password = user.password_hash().is_none();
            let record = User {
                name: Bytes::copy_from_slice(name.as_bytes()),
                password: user.password_hash().cloned().unwrap_or_default(),
                roles: user.roles().map(str::to_owned).collect(),
                options: Some(UserAddOptions { no_password }),
            };
            users.put(name.as_bytes(), &record.encode_to_vec())?;
        }
        users.end()
    }
}

/// A member as etcd stores it.
fn json_of(member: &Member) -> String {
    let mut value = json!({
        "id": member.id,
        "peerURLs": member.peer_ur_ls,
        "name": member.name,
        "clientURLs": member.client_ur_ls,
    });
    if member.is_learner {
        value["isLearner"] = true.into();
    }
    value.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_sort_as_they_happened() {
        let keys = [
            revision_key(1, 0, false),
            revision_key(1, 1, true),
            revision_key(2, 0, false),
            revision_key(256, 0, false),
        ];
        assert!(keys.is_sorted(), "{keys:?}");
        assert_eq!(keys[1], b"\0\0\0\0\0\0\0\x01_\0\0\0\0\0\0\0\x01t");
    }
}
