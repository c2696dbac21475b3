//! The store: step 8 of the life of a write.
//!
//! [`Store`] belongs to the apply thread and is the only writer; [`Reader`]s look at the same
//! maps concurrently, at revisions that [`flush`](StateMachine::flush) published. There is no clock here, no
//! network and no disk: durability is the log's.

mod compact;
pub(crate) mod data;
pub(crate) mod lease;
pub(crate) mod notices;
pub(crate) mod read;
pub(crate) mod segment;
mod snapshot;
pub(crate) mod version;
mod write;

use std::sync::Arc;

use arc_swap::{ArcSwap, ArcSwapOption};
use atomic_waker::AtomicWaker;
use raft_core::{ApplyContext, Digest, SnapshotError, SnapshotSource, StateMachine};

use crate::auth::{Access, AuthChanges, AuthState, AuthView, Published};
use crate::command::{Answer, Command, FEATURE_LEVEL_WITH_QUOTA, Query, Response};
use crate::error::KvError;
use crate::proto::raftkv::Caller;
use crate::proto::raftkv::command_v1::Kind;
use crate::reader::{Publications, Reader};
use compact::{Garbage, Sweep};
use data::{Data, FIRST_REVISION, NEVER_COMPACTED};
use lease::Leases;
use read::{View, header};
use snapshot::Layout;

pub use snapshot::{Picture, PicturedVersion};

/// The bytes that a revision segment has on average. Part of the format: members that disagree about it
/// write different snapshots of the same state.
const SEGMENT_BYTES: u64 = 4 << 20;

/// The multi-version key-value store of etcd v3 as a replicated state machine.
///
/// ```
/// use raft_core::{ApplyContext, EntryId, StateMachine};
/// use raft_kv::proto::etcdserverpb::{PutRequest, RangeRequest};
/// use raft_kv::{Command, Store};
///
/// let mut store = Store::new();
/// let reader = store.reader();
/// let put = PutRequest { key: "k".into(), value: "v".into(), ..PutRequest::default() };
/// let answer = store.apply(ApplyContext::at(EntryId::new(1, 1)), Command::put(put));
/// assert!(answer.is_ok());
/// store.flush();
///
/// let range = RangeRequest { key: "k".into(), ..RangeRequest::default() };
/// assert_eq!(reader.range(&range).unwrap().kvs[0].value, "v");
/// ```
#[derive(Debug)]
pub struct Store {
    /// Where readers find the present maps; a restore puts new ones there.
    published: Arc<ArcSwap<Data>>,
    /// The present maps.
    data: Arc<Data>,
    /// The newest revision applied; at least the published one.
    revision: i64,
    /// The newest compaction applied; at most `revision`.
    compact_revision: i64,
    /// The bytes that the retained versions take; see [`version::VERSION_BYTES`].
    logical_size: u64,
    garbage: Garbage,
    sweep: Sweep,
    leases: Leases,
    /// Users and roles as the newest command left them.
    auth: Arc<AuthState>,
    /// Where others find them.
    auth_published: Arc<Published>,
    /// Users or roles have changed since they were published.
    auth_news: bool,
    /// Changed by the apply thread only.
    notices: notices::Published,
    /// Whoever waits for new revisions.
    publications: Arc<AtomicWaker>,
    /// The segments of the newest snapshot that was written, so that the next one need not find them again.
    layout: Arc<ArcSwapOption<Layout>>,
    /// What segments are cut by; [`SEGMENT_BYTES`].
    segment_bytes: u64,
}

impl Store {
    /// An empty store, at revision 1.
    #[must_use]
    pub fn new() -> Self {
        Self::with_segment_bytes(SEGMENT_BYTES)
    }

    /// An empty store whose snapshots consist of segments of `segment_bytes` on average, for simulations of
    /// many of them in little memory. All members must have the same.
    #[must_use]
    pub fn with_segment_bytes(segment_bytes: u64) -> Self {
        let data = Arc::new(Data::new());
        Self {
            published: Arc::new(ArcSwap::new(data.clone())),
            data,
            revision: FIRST_REVISION,
            compact_revision: NEVER_COMPACTED,
            logical_size: 0,
            garbage: Garbage::new(NEVER_COMPACTED),
            sweep: Sweep::new(NEVER_COMPACTED),
            leases: Leases::default(),
            auth: Arc::default(),
            auth_published: Arc::default(),
            auth_news: false,
            notices: notices::Published::default(),
            publications: Arc::new(AtomicWaker::new()),
            layout: Arc::new(ArcSwapOption::empty()),
            segment_bytes: segment_bytes.clamp(1, SEGMENT_BYTES),
        }
    }

    /// A handle for reading from other threads.
    #[must_use]
    pub fn reader(&self) -> Reader {
        Reader::new(self.published.clone(), self.notices.clone())
    }

    /// A handle for looking at users and roles from other threads.
    #[must_use]
    pub fn auth(&self) -> AuthView {
        AuthView::new(Arc::clone(&self.auth_published))
    }

    /// What wakes a task when users, roles or permissions change: one task, the newest that asks.
    #[must_use]
    pub fn auth_changes(&self) -> AuthChanges {
        AuthChanges::new(self.auth())
    }

    /// What wakes a task when new revisions are published: one task, the newest that asks.
    #[must_use]
    pub fn publications(&self) -> Publications {
        Publications::new(self.reader(), Arc::clone(&self.publications))
    }

    /// The newest revision.
    #[must_use]
    pub const fn revision(&self) -> i64 {
        self.revision
    }

    /// The revision below which history is forgotten; -1 before the first compaction.
    #[must_use]
    pub const fn compact_revision(&self) -> i64 {
        self.compact_revision
    }

    /// The bytes of everything that can still be read: keys, values and 64 bytes per version. Equal on all
    /// members at equal applied indexes, whatever their memory or disk holds.
    #[must_use]
    pub const fn logical_size(&self) -> u64 {
        self.logical_size
    }

    /// How many versions are in memory, those included that [`compact_slice`](Self::compact_slice) has yet to
    /// remove.
    #[must_use]
    pub fn versions_in_memory(&self) -> usize {
        self.data.len()
    }
}

impl Default for Store {
    fn default() -> Self {
        Self::new()
    }
}

impl StateMachine for Store {
    type Command = Command;
    type Response = Result<Response, KvError>;
    type Query = Query;
    type Answer = Result<Answer, KvError>;
    type Snapshot = Picture;

    const FEATURE_LEVEL: u16 = FEATURE_LEVEL_WITH_QUOTA;

    fn apply(&mut self, context: ApplyContext, command: Command) -> Result<Response, KvError> {
        let access = Access::of(&command.kind);
        self.authorize(command.caller.as_ref(), &access)?;
        self.check_alarms(&command.kind)?;
        match command.kind {
            Kind::Put(request) => self.put(&request).map(Response::Put),
            Kind::DeleteRange(request) => self.delete_range(&request).map(Response::DeleteRange),
            Kind::Txn(request) => self.txn(&request).map(Response::Txn),
            Kind::Compact(request) => self.compact(&request).map(Response::Compact),
            Kind::LeaseGrant(request) => self.lease_grant(&request).map(Response::LeaseGrant),
            Kind::LeaseRevoke(request) => self.lease_revoke(&request).map(Response::LeaseRevoke),
            Kind::LeaseRenew(request) => Ok(Response::LeaseRenew(self.lease_renew(&request.ids))),
            Kind::LeaseExpire(request) => {
                Ok(Response::LeaseExpire(self.lease_expire(context.id.term, &request)))
            }
            Kind::AuthEnable(request) => self.change_auth(|auth| auth.enable(&request)),
            Kind::AuthDisable(_) => self.change_auth(|auth| {
                auth.disable();
                Ok(())
            }),
            Kind::UserAdd(request) => self.change_auth(|auth| auth.user_add(&request)),
            Kind::UserDelete(request) => self.change_auth(|auth| auth.user_delete(&request.name)),
            Kind::UserChangePassword(request) => {
                self.change_auth(|auth| auth.user_change_password(&request))
            }
            Kind::UserGrantRole(request) => self.change_auth(|auth| auth.user_grant_role(&request)),
            Kind::UserRevokeRole(request) => {
                self.change_auth(|auth| auth.user_revoke_role(&request))
            }
            Kind::RoleAdd(request) => self.change_auth(|auth| auth.role_add(&request.name)),
            Kind::RoleDelete(request) => self.change_auth(|auth| auth.role_delete(&request.role)),
            Kind::RoleGrantPermission(request) => {
                self.change_auth(|auth| auth.role_grant_permission(&request))
            }
            Kind::RoleRevokePermission(request) => {
                self.change_auth(|auth| auth.role_revoke_permission(&request))
            }
            Kind::Alarm(request) => Ok(Response::Alarm(self.alarm(&request))),
            Kind::Downgrade(request) => self.downgrade(&request).map(|()| Response::Downgrade),
            Kind::Quota(request) => {
                self.quota(request);
                Ok(Response::Quota)
            }
        }
    }

    fn flush(&mut self) {
        let revisions = self.revision - self.data.revision();
        // Before the keys: whoever sees a key sees the permissions that it was written under.
        self.publish_auth();
        self.data.publish(self.revision, self.compact_revision, self.logical_size);
        if revisions > 0 {
            self.publications.wake();
        }
        self.compact_some(revisions);
        self.leases.flush();
    }

    fn query(&self, query: Query) -> Result<Answer, KvError> {
        match query {
            Query::By(caller, query) => self.answer(Some(&caller), *query),
            query @ (Query::Range(_)
            | Query::Lease { .. }
            | Query::Leases
            | Query::Picture
            | Query::MayRenew(_)) => self.answer(None, query),
        }
    }

    fn snapshot(&self) -> Picture {
        Picture::take(self, self.layout.clone())
    }

    fn restore(&mut self, source: &dyn SnapshotSource) -> Result<(), SnapshotError> {
        let restored = snapshot::load(source)?;
        self.revision = restored.revision;
        self.compact_revision = restored.compact_revision;
        self.logical_size = restored.logical_size;
        self.garbage = restored.garbage;
        self.sweep = Sweep::new(restored.compact_revision);
        self.leases.replace(restored.leases);
        self.notices.store(Arc::new(restored.notices));
        // A picture that is still being written must not leave its segments here.
        self.layout = Arc::new(ArcSwapOption::empty());
        self.auth = Arc::new(restored.auth);
        self.auth_news = true;
        self.publish_auth();
        self.data = Arc::new(restored.data);
        self.data.publish(self.revision, self.compact_revision, self.logical_size);
        self.published.store(self.data.clone());
        self.publications.wake();
        Ok(())
    }

    fn digest(&self) -> Digest {
        Picture::take(self, Arc::new(ArcSwapOption::empty())).digest()
    }
}

impl Store {
    /// The second decision about everything that changes or asks something; the first was made by the member that took
    /// the request, from what it knew then.
    fn authorize(&self, caller: Option<&Caller>, access: &Access<'_>) -> Result<(), KvError> {
        self.auth.authorize_with(caller, access, Some(&self.leases))
    }

    /// Changes users or roles; a refused change changes nothing.
    fn change_auth(
        &mut self,
        change: impl FnOnce(&mut AuthState) -> Result<(), KvError>,
    ) -> Result<Response, KvError> {
        let mut changed = AuthState::clone(&self.auth);
        change(&mut changed)?;
        self.auth = Arc::new(changed);
        self.auth_news = true;
        Ok(Response::Auth(header(self.revision)))
    }

    fn publish_auth(&mut self) {
        if self.auth_news {
            self.auth_news = false;
            self.auth_published.publish(&self.auth);
        }
    }

    fn answer(&self, caller: Option<&Caller>, query: Query) -> Result<Answer, KvError> {
        match query {
            Query::Range(request) => {
                crate::check::check_range(&request)?;
                self.authorize(caller, &Access::Range(&request))?;
                self.view().range(&request).map(Answer::Range)
            }
            Query::Lease { id, keys } => {
                self.authorize(caller, &Access::LeaseTimeToLive { id, keys })?;
                Ok(Answer::Lease(self.lease_state(id, keys)))
            }
            Query::Leases => {
                self.authorize(caller, &Access::LeaseLeases)?;
                Ok(Answer::Leases(self.leases.table.keys().copied().collect()))
            }
            Query::Picture => {
                self.authorize(caller, &Access::Snapshot)?;
                let whole = Picture::take(self, Arc::new(ArcSwapOption::empty()));
                Ok(Answer::Picture(Arc::new(whole)))
            }
            Query::MayRenew(id) => {
                self.authorize(caller, &Access::LeaseRenew(id))?;
                Ok(Answer::MayRenew)
            }
            // Nobody can speak for somebody else than the outermost says.
            Query::By(_, query) => self.answer(caller, *query),
        }
    }

    fn view(&self) -> View<'_> {
        View { data: &self.data, revision: self.revision, compact_revision: self.compact_revision }
    }
}
