//! The database that etcd would have, bucket by bucket.

use std::io::{self, Write};
use std::sync::Arc;

use bytes::Bytes;
use prost::Message as _;
use raft_kv::Picture;
use raft_kv::proto::authpb::{Permission, Role, User, UserAddOptions};
use raft_kv::proto::etcdserverpb::{AlarmType, Member};
use serde_json::json;

use super::revision_key;
use crate::bbolt::{Layout, Writer};

/// What a file holds.
pub(crate) struct Contents {
    pub(crate) picture: Arc<Picture>,
    pub(crate) members: Vec<Member>,
    /// Where in the log this is.
    pub(crate) index: u64,
    pub(crate) term: u64,
}

impl Contents {
    /// Writes the file; the same each time.
    pub(crate) fn write<W: Write>(&self, out: W, layout: Layout) -> io::Result<(Layout, W)> {
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
