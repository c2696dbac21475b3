//! What is in a database: history in its order, and the small buckets.

use std::fs::File;

use bytes::Bytes;
use prost::Message;
use raft::core::SnapshotError;
use raft_kv::auth::AuthState;
use raft_kv::proto::authpb::{Role, User};
use raft_kv::proto::etcdserverpb::AlarmMember;
use raft_kv::proto::mvccpb::KeyValue;
use raft_kv::{ForeignState, LeaseRecord, Notices, PicturedVersion, SnapshotBuilder};
use sha2::{Digest as _, Sha256};

use super::survey::{Survey, Totals};
use super::{DbError, Source, parse_revision};
use crate::bbolt::{ReadError, Reader};

/// A lease as etcd stores it (leasepb.Lease). What is left of its time is not looked at: it begins anew.
#[derive(Clone, PartialEq, Eq, Message)]
struct StoredLease {
    #[prost(int64, tag = "1")]
    id: i64,
    #[prost(int64, tag = "2")]
    ttl: i64,
}

/// What is to become of a database that is taken over.
#[derive(Clone, Copy, PartialEq, Eq, Default, Debug)]
pub(crate) struct Wishes {
    /// The newest revision is to be greater by so many, and everything before it compacted.
    pub(crate) bump_revision: i64,
}

/// A version where it stands.
pub(super) struct Stored<'a> {
    pub(super) main: i64,
    pub(super) sub: u32,
    pub(super) deleted: bool,
    pub(super) kv: KeyValue,
    pub(super) raw_key: &'a [u8],
    pub(super) raw_value: &'a [u8],
}

/// A database that was looked through once.
#[derive(Debug)]
pub(crate) struct Database {
    pub(crate) source: Source,
    survey: Survey,
    leases: Vec<LeaseRecord>,
    auth: AuthState,
    notices: Notices,
}

impl Database {
    /// Looks through all of it. `progress` hears how many bytes of how many were read.
    ///
    /// # Errors
    /// Everything that etcd does not write.
    pub(crate) fn read(
        source: Source,
        wishes: Wishes,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<Self, DbError> {
        let refused = |error: ReadError| DbError::read(&source.path, &error);
        let reader = Reader::open(&source.file).map_err(refused)?;
        if reader.bucket("key").is_none() || reader.bucket("meta").is_none() {
            return Err(DbError::new(
                &source.path,
                "it is a file of bbolt, but not of etcd: the buckets `key` and `meta` are missing",
                "a file of `etcdctl snapshot save`",
            ));
        }
        let meta = |name: &[u8]| value(&reader, "meta", name).map_err(refused);
        let revision_of = |value: Option<Vec<u8>>| {
            value.and_then(|value| parse_revision(&value)).map_or(-1, |(main, ..)| main)
        };
        // A compaction that was begun is carried out when etcd starts.
        let compacted = revision_of(meta(b"finishedCompactRev")?)
            .max(revision_of(meta(b"scheduledCompactRev")?));
        source.check_log(number(meta(b"consistent_index")?))?;
        let survey = {
            let mut each = |progress: &mut dyn FnMut(u64, u64),
                            visit: &mut dyn FnMut(&Stored<'_>)| {
                each_version(&reader, progress, &mut |stored| {
                    visit(&stored);
                    Ok(())
                })
            };
            Survey::of(&mut each, compacted, wishes, progress).map_err(refused)?
        };
        let leases = leases(&reader).map_err(refused)?;
        let auth = auth(&reader, &source.digest).map_err(refused)?;
        let mut notices = Notices::default();
        for (key, _) in pairs(&reader, "alarm").map_err(refused)? {
            let alarm = AlarmMember::decode(&key[..])
                .map_err(|_| refused(ReadError::Refused("an alarm does not decode".to_owned())))?;
            notices.alarms.insert((alarm.alarm, alarm.member_id));
        }
        drop(reader);
        Ok(Self { source, survey, leases, auth, notices })
    }

    /// What there is to compare.
    pub(crate) fn totals(&self) -> Totals {
        self.survey.totals(&self.leases, &self.auth)
    }

    /// How far history is whole, where that is less than the database says.
    pub(crate) fn whole_from(&self) -> Option<i64> {
        self.survey.whole_from()
    }

    /// Alarms that are raised.
    pub(crate) fn alarms(&self) -> usize {
        self.notices.alarms.len()
    }

    /// Writes a snapshot of it.
    ///
    /// # Errors
    /// Those of the sink, and a database that was changed meanwhile.
    pub(crate) fn write(
        &self,
        sink: &mut dyn raft::core::SnapshotSink,
        progress: &mut dyn FnMut(u64, u64),
    ) -> Result<(), SnapshotError> {
        let undecodable = |error: ReadError| SnapshotError::Undecodable(error.to_string());
        let reader = Reader::open(&self.source.file).map_err(undecodable)?;
        let mut builder = SnapshotBuilder::new(sink);
        let mut failed = None;
        let written = each_version(&reader, progress, &mut |stored| {
            if !self.survey.keeps(&stored) {
                return Ok(());
            }
            let Stored { main, sub, deleted, kv, .. } = stored;
            builder.version(PicturedVersion { main, sub, kv, deleted }).map_err(|error| {
                let text = error.to_string();
                failed = Some(error);
                text
            })
        });
        match (written, failed) {
            (_, Some(error)) => return Err(error),
            (written, None) => written.map_err(undecodable)?,
        }
        builder.end(ForeignState {
            revision: self.survey.revision(),
            compact_revision: self.survey.compact_revision(),
            leases: self.leases.clone(),
            auth: self.auth.clone(),
            notices: self.notices.clone(),
        })
    }
}

/// Visits all versions in the order in which they were written.
fn each_version(
    reader: &Reader<'_, File>,
    progress: &mut dyn FnMut(u64, u64),
    visit: &mut dyn FnMut(Stored<'_>) -> Result<(), String>,
) -> Result<(), ReadError> {
    let Some(bucket) = reader.bucket("key") else { return Ok(()) };
    let total = reader.file_bytes();
    let mut read = 0;
    let mut heard = |bytes: u64| {
        read += bytes;
        progress(read.min(total), total);
    };
    reader.each(bucket, &mut heard, &mut |raw_key, raw_value| {
        let Some((main, sub, deleted)) = parse_revision(raw_key) else {
            return Err(format!("the bucket `key` has a key that is no revision: {raw_key:02x?}"));
        };
        let kv = KeyValue::decode(raw_value)
            .map_err(|error| format!("revision {main}.{sub} does not decode: {error}"))?;
        visit(Stored { main, sub, deleted, kv, raw_key, raw_value })
    })
}

/// Keys and values.
type Pairs = Vec<(Vec<u8>, Vec<u8>)>;

/// Those of a small bucket.
fn pairs(reader: &Reader<'_, File>, name: &str) -> Result<Pairs, ReadError> {
    let mut pairs = Vec::new();
    if let Some(bucket) = reader.bucket(name) {
        reader.each(bucket, &mut |_| {}, &mut |key, value| {
            pairs.push((key.to_vec(), value.to_vec()));
            Ok(())
        })?;
    }
    Ok(pairs)
}

fn value(
    reader: &Reader<'_, File>,
    bucket: &str,
    wanted: &[u8],
) -> Result<Option<Vec<u8>>, ReadError> {
    let found = pairs(reader, bucket)?.into_iter().find(|(key, _)| key == wanted);
    Ok(found.map(|(_, value)| value))
}

/// A number as etcd writes it; 0 where there is none.
fn number(value: Option<Vec<u8>>) -> u64 {
    let bytes = value.and_then(|value| value.try_into().ok());
    bytes.map_or(0, u64::from_be_bytes)
}

fn leases(reader: &Reader<'_, File>) -> Result<Vec<LeaseRecord>, ReadError> {
    let leases = pairs(reader, "lease")?.into_iter().map(|(_, value)| {
        match StoredLease::decode(&value[..]) {
            Ok(lease) if lease.id != 0 => {
                Ok(LeaseRecord { id: lease.id, ttl: lease.ttl, renewals: 0 })
            }
            Ok(_) | Err(_) => Err(ReadError::Refused("a lease does not decode".to_owned())),
        }
    });
    leases.collect()
}

fn auth(reader: &Reader<'_, File>, digest: &[u8]) -> Result<AuthState, ReadError> {
    let wrong = |what: &str| ReadError::Refused(format!("{what} does not decode"));
    let users = pairs(reader, "authUsers")?;
    let roles = pairs(reader, "authRoles")?;
    let enabled = value(reader, "auth", b"authEnabled")? == Some(vec![1]);
    let revision = number(value(reader, "auth", b"authRevision")?);
    if !enabled && revision <= 1 && users.is_empty() && roles.is_empty() {
        return Ok(AuthState::default());
    }
    // All members have the same. Hashes of passwords are in it, so that only who knows these could guess it.
    let mut secret = Sha256::new();
    secret.update(b"rusty-raft: what tokens are made with");
    secret.update(digest);
    for (name, user) in &users {
        secret.update(name);
        secret.update(user);
    }
    let secret = Bytes::copy_from_slice(&secret.finalize());
    let users = users.iter().map(|(_, user)| User::decode(&user[..]).map_err(|_| wrong("a user")));
    let roles = roles.iter().map(|(_, role)| Role::decode(&role[..]).map_err(|_| wrong("a role")));
    let (users, roles) = (users.collect::<Result<_, _>>()?, roles.collect::<Result<_, _>>()?);
    AuthState::of_records((enabled, revision), secret, users, roles)
        .map_err(|error| ReadError::Refused(error.to_string()))
}
