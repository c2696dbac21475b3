//! Users and roles as bytes, for snapshots and for the digest of the state.
//!
//! ```text
//! auth:        protobuf of AuthV1 (crates/raft-kv/proto/raftkv.proto), cut into blobs of at most 1 MiB
//! blob:        "RKVA" | version u8 = 1 | a piece of it
//! ```

use std::sync::Arc;

use bytes::{BufMut, Bytes};
use prost::Message;
use raft_core::SnapshotError;

use super::{AuthState, User};
use crate::proto::authpb::permission::Type as PermissionType;
use crate::proto::authpb::{Permission, Role, User as UserRecord, UserAddOptions};
use crate::proto::raftkv::{AuthUserV1, AuthV1};
use crate::store::segment::{check_magic, undecodable};

const MAGIC: &[u8; 4] = b"RKVA";
const VERSION: u8 = 1;
/// The bytes of a piece.
const PIECE_BYTES: usize = 1 << 20;

/// The blobs of a state; none for one that nobody has ever changed.
pub(crate) fn encode(state: &AuthState) -> Vec<Vec<u8>> {
    if *state == AuthState::default() {
        return Vec::new();
    }
    let users = state.users.iter().map(|(name, user)| AuthUserV1 {
        user: Some(UserRecord {
            name: Bytes::copy_from_slice(name.as_bytes()),
            password: user.password_hash.clone().unwrap_or_default(),
            roles: user.roles.iter().cloned().collect(),
            options: Some(UserAddOptions { no_password: user.password_hash.is_none() }),
        }),
        since: user.since,
    });
    let roles = state.roles.iter().map(|(name, permissions)| Role {
        name: Bytes::copy_from_slice(name.as_bytes()),
        key_permission: permissions
            .iter()
            .map(|((key, range_end), kind)| Permission {
                perm_type: (*kind).into(),
                key: key.clone(),
                range_end: range_end.clone(),
            })
            .collect(),
    });
    let all = AuthV1 {
        enabled: state.enabled,
        revision: state.revision,
        token_secret: state.token_secret.clone(),
        users: users.collect(),
        roles: roles.collect(),
    };
    all.encode_to_vec()
        .chunks(PIECE_BYTES)
        .map(|piece| {
            let mut blob = Vec::with_capacity(MAGIC.len() + 1 + piece.len());
            blob.put_slice(MAGIC);
            blob.put_u8(VERSION);
            blob.put_slice(piece);
            blob
        })
        .collect()
}

/// Reads what [`encode`] wrote.
pub(crate) fn decode(
    blobs: impl Iterator<Item = Result<Bytes, SnapshotError>>,
) -> Result<AuthState, SnapshotError> {
    let mut bytes = Vec::new();
    for blob in blobs {
        let blob = blob?;
        bytes.extend_from_slice(check_magic(&blob, MAGIC, VERSION, "list of users and roles")?);
    }
    if bytes.is_empty() {
        return Ok(AuthState::default());
    }
    let AuthV1 { enabled, revision, token_secret, users, roles } = AuthV1::decode(&bytes[..])
        .map_err(|_| undecodable("the list of users and roles is damaged"))?;
    let users = users.into_iter().map(|AuthUserV1 { user, since }| {
        Ok((user.ok_or_else(|| undecodable("a user is missing"))?, since))
    });
    let users = users.collect::<Result<Vec<_>, SnapshotError>>()?;
    assemble(AuthState { enabled, revision, token_secret, ..AuthState::default() }, users, roles)
}

/// See [`AuthState::of_records`].
pub(crate) fn of_records(
    (enabled, revision): (bool, u64),
    token_secret: Bytes,
    users: Vec<UserRecord>,
    roles: Vec<Role>,
) -> Result<AuthState, SnapshotError> {
    // etcd counts from 0 until something is changed for the first time.
    let revision = revision.max(AuthState::default().revision);
    let users = users.into_iter().map(|user| (user, revision)).collect();
    assemble(AuthState { enabled, revision, token_secret, ..AuthState::default() }, users, roles)
}

/// Adds users, with their `since`, and roles.
fn assemble(
    mut state: AuthState,
    users: Vec<(UserRecord, u64)>,
    roles: Vec<Role>,
) -> Result<AuthState, SnapshotError> {
    if state.revision == 0 {
        return Err(undecodable("the auth revision is 0"));
    }
    for role in roles {
        let permissions = role.key_permission.into_iter().map(|permission| {
            let kind = PermissionType::try_from(permission.perm_type)
                .map_err(|_| undecodable("a permission is of no known kind"))?;
            Ok(((permission.key, permission.range_end), kind))
        });
        let permissions = permissions.collect::<Result<_, SnapshotError>>()?;
        if state.roles.insert(name(&role.name)?, Arc::new(permissions)).is_some() {
            return Err(undecodable("a role is there twice"));
        }
    }
    for (user, since) in users {
        let no_password = user.options.unwrap_or_default().no_password;
        let record = User {
            password_hash: (!no_password).then_some(user.password),
            since,
            roles: user.roles.into_iter().collect(),
        };
        if state.users.insert(name(&user.name)?, Arc::new(record)).is_some() {
            return Err(undecodable("a user is there twice"));
        }
    }
    let names: Vec<String> = state.users.keys().cloned().collect();
    for name in names {
        state.refresh(&name);
    }
    Ok(state)
}

fn name(bytes: &Bytes) -> Result<String, SnapshotError> {
    let name = String::from_utf8(bytes.to_vec());
    name.ok().filter(|name| !name.is_empty()).ok_or_else(|| undecodable("a name is no text"))
}
