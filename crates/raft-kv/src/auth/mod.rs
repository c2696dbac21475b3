//! Who may do what: users, roles, permissions. Replicated like the keys, and part of every snapshot.
//!
//! [`AuthState`] is all of it, and never changes: whoever changes something makes a new one. The store applies
//! changes to its own and publishes it with the batch, *before* the keys that the batch wrote, so that whoever sees a
//! key also sees the permissions that held when it was written. [`AuthState::authorize`] is the one place that decides.
//!
//! Nothing here draws a random number, looks at a clock or hashes a password: the member that takes a request does so
//! before it proposes. Passwords are there only as hashes in the form of bcrypt, and what is printed for debugging has
//! neither hashes nor secrets.

mod access;
mod encoding;
mod manage;
mod rights;
mod secrecy;
mod view;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use bytes::Bytes;
use raft_core::Digest;

pub use access::Access;
pub(crate) use access::watched;
pub(crate) use encoding::{decode, encode, of_records};
use rights::Rights;
pub(crate) use view::Published;
pub use view::{AuthChanges, AuthView};

use crate::error::KvError;
use crate::key_range::KeyRange;
use crate::proto::authpb::permission::Type as PermissionType;
use crate::proto::raftkv::Caller;

/// The user, and the role, that may do everything.
pub(crate) const ROOT: &str = "root";

/// The number of changes before the first one, as in etcd.
const FIRST_REVISION: u64 = 1;

/// A user.
#[derive(Clone, PartialEq, Eq)]
pub struct User {
    /// In the form of bcrypt; `None` for one that cannot come in by password.
    password_hash: Option<Bytes>,
    /// The auth revision at which the user or the password came to be: tokens from before are void.
    since: u64,
    roles: BTreeSet<String>,
}

impl User {
    /// The hash of the password in the form of bcrypt; `None` for a user that cannot come in by password.
    #[must_use]
    pub const fn password_hash(&self) -> Option<&Bytes> {
        self.password_hash.as_ref()
    }

    /// The auth revision at which the user was added or the password was last changed. Whatever proved who somebody
    /// is proves it for this revision only.
    #[must_use]
    pub const fn since(&self) -> u64 {
        self.since
    }

    /// The roles, in order.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.roles.iter().map(String::as_str)
    }
}

impl fmt::Debug for User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { password_hash, since, roles } = self;
        f.debug_struct("User")
            .field("has_password", &password_hash.is_some())
            .field("since", since)
            .field("roles", roles)
            .finish()
    }
}

/// What a role may do, by key and range end: a range as in a request.
type Permissions = BTreeMap<(Bytes, Bytes), PermissionType>;

/// All users and roles at one moment.
#[derive(Clone, PartialEq, Eq)]
pub struct AuthState {
    enabled: bool,
    revision: u64,
    /// What tokens are made with; empty before authentication was first enabled.
    token_secret: Bytes,
    users: BTreeMap<String, Arc<User>>,
    roles: BTreeMap<String, Arc<Permissions>>,
    /// What follows from the roles of each user.
    rights: BTreeMap<String, Arc<Rights>>,
}

impl Default for AuthState {
    fn default() -> Self {
        Self {
            enabled: false,
            revision: FIRST_REVISION,
            token_secret: Bytes::new(),
            users: BTreeMap::new(),
            roles: BTreeMap::new(),
            rights: BTreeMap::new(),
        }
    }
}

impl fmt::Debug for AuthState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { enabled, revision, token_secret: _, users, roles, rights: _ } = self;
        f.debug_struct("AuthState")
            .field("enabled", enabled)
            .field("revision", revision)
            .field("users", users)
            .field("roles", roles)
            .finish_non_exhaustive()
    }
}

impl AuthState {
    /// Whether permissions are demanded.
    #[must_use]
    pub const fn is_enabled(&self) -> bool {
        self.enabled
    }

    /// Grows with every change of users, roles and permissions. Never 0.
    #[must_use]
    pub const fn revision(&self) -> u64 {
        self.revision
    }

    /// 0 while permissions are not demanded, else the [`revision`](Self::revision).
    #[must_use]
    pub const fn epoch(&self) -> u64 {
        if self.enabled { self.revision } else { 0 }
    }

    /// What tokens are made with. Another one each time authentication is enabled.
    #[must_use]
    pub const fn token_secret(&self) -> &Bytes {
        &self.token_secret
    }

    /// A user.
    #[must_use]
    pub fn user(&self, name: &str) -> Option<&User> {
        self.users.get(name).map(Arc::as_ref)
    }

    /// The names of all users, in order.
    pub fn users(&self) -> impl Iterator<Item = &str> {
        self.users.keys().map(String::as_str)
    }

    /// The permissions of a role, by key and range end.
    #[must_use]
    pub fn role(
        &self,
        name: &str,
    ) -> Option<impl Iterator<Item = (&Bytes, &Bytes, PermissionType)>> {
        let permissions = self.roles.get(name)?;
        Some(permissions.iter().map(|((key, range_end), kind)| (key, range_end, *kind)))
    }

    /// The names of all roles, in order.
    pub fn roles(&self) -> impl Iterator<Item = &str> {
        self.roles.keys().map(String::as_str)
    }

    /// A digest over everything here.
    #[must_use]
    pub fn digest(&self) -> Digest {
        Digest(xxhash_rust::xxh3::xxh3_128(&encode(self).concat()))
    }

    /// Whether a watcher of a range that `caller` was allowed to begin may go on. `since` is what
    /// [`User::since`] was when the caller proved who it is.
    ///
    /// # Errors
    /// As [`authorize`](Self::authorize) for a read; permission denied when the user is gone or has another password.
    pub(crate) fn may_watch_on(
        &self,
        watcher: Option<(&str, u64)>,
        range: &KeyRange,
    ) -> Result<(), KvError> {
        if !self.enabled {
            return Ok(());
        }
        let Some((name, since)) = watcher else {
            return Err(KvError::UserEmpty);
        };
        match (self.users.get(name), self.rights.get(name)) {
            (Some(user), Some(rights)) if user.since == since && rights.may_read(range) => Ok(()),
            _ => Err(KvError::PermissionDenied),
        }
    }

    /// Computes anew what follows from the roles of a user.
    fn refresh(&mut self, name: &str) {
        let Some(user) = self.users.get(name) else {
            self.rights.remove(name);
            return;
        };
        let is_root = user.roles.contains(ROOT);
        let permissions = user.roles.iter().filter_map(|role| self.roles.get(role));
        let permissions = permissions.flat_map(|permissions| permissions.iter());
        let rights = Rights::new(
            is_root,
            permissions.map(|((key, range_end), kind)| (KeyRange::new(key, range_end), *kind)),
        );
        self.rights.insert(name.to_owned(), Arc::new(rights));
    }

    /// Computes anew what follows from a role, for all who have it.
    fn refresh_all_with(&mut self, role: &str) {
        let with = self.users.iter().filter(|(_, user)| user.roles.contains(role));
        let names: Vec<String> = with.map(|(name, _)| name.clone()).collect();
        for name in names {
            self.refresh(&name);
        }
    }
}

impl Caller {
    /// Somebody who proved to be `user` when the auth revision was `auth_revision`.
    #[must_use]
    pub const fn new(user: String, auth_revision: u64) -> Self {
        Self { user, auth_revision }
    }
}
