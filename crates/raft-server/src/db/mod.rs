//! What etcd keeps in its database, a file of [`bbolt`](crate::bbolt): written for those who go to etcd, read for those
//! who come from it.
//!
//! ```text
//! key              revision, "_", sub-revision, each 8 bytes big-endian; "t" if deleted -> mvccpb.KeyValue
//! meta             consistent_index, term: u64 big-endian; finishedCompactRev, scheduledCompactRev: a revision as above
//! lease            id: 8 bytes big-endian -> leasepb.Lease
//! auth             authEnabled: 0 or 1; authRevision: u64 big-endian
//! authUsers        name -> authpb.User
//! authRoles        name -> authpb.Role
//! alarm            etcdserverpb.AlarmMember -> nothing
//! members          id in hexadecimal digits -> JSON
//! ```

pub(crate) mod export;
pub(crate) mod import;
mod read;
mod source;
mod survey;
mod wal;
mod write;

pub(crate) use read::{Database, Wishes};
pub(crate) use source::{DbError, Source};
pub(crate) use survey::Totals;
pub(crate) use write::Contents;

/// The key of a revision.
pub(crate) fn revision_key(main: i64, sub: u32, deleted: bool) -> Vec<u8> {
    let mut key = Vec::with_capacity(18);
    key.extend(main.to_be_bytes());
    key.push(b'_');
    key.extend(i64::from(sub).to_be_bytes());
    if deleted {
        key.push(b't');
    }
    key
}

/// What [`revision_key`] made: revision, sub-revision, whether it was deleted.
fn parse_revision(key: &[u8]) -> Option<(i64, u32, bool)> {
    let number = |at: usize| Some(i64::from_be_bytes(key.get(at..at + 8)?.try_into().ok()?));
    let deleted = match key.len() {
        17 => false,
        18 if key[17] == b't' => true,
        _ => return None,
    };
    let main = number(0).filter(|main| *main > 0)?;
    let sub = u32::try_from(number(9)?).ok()?;
    (key[8] == b'_').then_some((main, sub, deleted))
}

/// etcd's HashKV, as it is continued with each version.
#[derive(Clone, Copy, Debug)]
pub(crate) struct HashKv(u32);

impl HashKv {
    pub(crate) fn new() -> Self {
        Self(crc32c::crc32c(b"key"))
    }

    pub(crate) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.0 = crc32c::crc32c_append(crc32c::crc32c_append(self.0, key), value);
    }

    pub(crate) const fn get(self) -> u32 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn revisions_sort_as_they_happened_and_come_back() {
        let keys = [
            revision_key(1, 0, false),
            revision_key(1, 1, true),
            revision_key(2, 0, false),
            revision_key(256, 0, false),
        ];
        assert!(keys.is_sorted(), "{keys:?}");
        assert_eq!(keys[1], b"\0\0\0\0\0\0\0\x01_\0\0\0\0\0\0\0\x01t");
        assert_eq!(parse_revision(&keys[1]), Some((1, 1, true)));
        assert_eq!(parse_revision(&keys[3]), Some((256, 0, false)));
        for wrong in [&b""[..], b"\0\0\0\0\0\0\0\x01", &[0; 17], &[b'_'; 18], &[0xff; 17]] {
            assert_eq!(parse_revision(wrong), None, "{wrong:?}");
        }
    }
}
