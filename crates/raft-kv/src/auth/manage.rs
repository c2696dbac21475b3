//! Changing users, roles and permissions, with etcd's refusals.

use std::sync::Arc;

use bytes::Bytes;

use super::{AuthState, Permissions, ROOT, User};
use crate::error::KvError;
use crate::proto::authpb::Permission;
use crate::proto::etcdserverpb::{
    AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest, AuthUserGrantRoleRequest,
    AuthUserRevokeRoleRequest,
};
use crate::proto::raftkv::{AuthEnable, UserAdd, UserChangePassword};

impl AuthState {
    /// Demands permissions from now on. Nothing changes when they are demanded already.
    pub(crate) fn enable(&mut self, request: &AuthEnable) -> Result<(), KvError> {
        if self.enabled {
            return Ok(());
        }
        let root = self.users.get(ROOT).ok_or(KvError::RootUserNotExist)?;
        if !root.roles.contains(ROOT) {
            return Err(KvError::RootRoleNotGranted);
        }
        self.enabled = true;
        self.token_secret = own(&request.token_secret);
        Ok(())
    }

    /// Demands permissions no more.
    pub(crate) fn disable(&mut self) {
        if self.enabled {
            self.enabled = false;
            self.revision += 1;
        }
    }

    pub(crate) fn user_add(&mut self, request: &UserAdd) -> Result<(), KvError> {
        if request.name.is_empty() {
            return Err(KvError::UserEmpty);
        }
        if self.users.contains_key(&request.name) {
            return Err(KvError::UserExists);
        }
        self.revision += 1;
        let password_hash = (!request.no_password).then(|| own(&request.password_hash));
        let user = User { password_hash, since: self.revision, roles: [].into() };
        self.users.insert(request.name.clone(), Arc::new(user));
        self.refresh(&request.name);
        Ok(())
    }

    pub(crate) fn user_delete(&mut self, name: &str) -> Result<(), KvError> {
        if self.enabled && name == ROOT {
            return Err(KvError::InvalidAuthManagement);
        }
        self.users.remove(name).ok_or(KvError::UserNotFound)?;
        self.revision += 1;
        self.refresh(name);
        Ok(())
    }

    /// A user without a password stays one.
    pub(crate) fn user_change_password(
        &mut self,
        request: &UserChangePassword,
    ) -> Result<(), KvError> {
        let user = self.users.get_mut(&request.name).ok_or(KvError::UserNotFound)?;
        let user = Arc::make_mut(user);
        self.revision += 1;
        user.since = self.revision;
        if user.password_hash.is_some() {
            user.password_hash = Some(own(&request.password_hash));
        }
        Ok(())
    }

    /// The role root need not exist to be granted.
    pub(crate) fn user_grant_role(
        &mut self,
        request: &AuthUserGrantRoleRequest,
    ) -> Result<(), KvError> {
        let user = self.users.get_mut(&request.user).ok_or(KvError::UserNotFound)?;
        if request.role != ROOT && !self.roles.contains_key(&request.role) {
            return Err(KvError::RoleNotFound);
        }
        if !Arc::make_mut(user).roles.insert(request.role.clone()) {
            return Ok(());
        }
        self.revision += 1;
        self.refresh(&request.user);
        Ok(())
    }

    pub(crate) fn user_revoke_role(
        &mut self,
        request: &AuthUserRevokeRoleRequest,
    ) -> Result<(), KvError> {
        if self.enabled && request.name == ROOT && request.role == ROOT {
            return Err(KvError::InvalidAuthManagement);
        }
        let user = self.users.get_mut(&request.name).ok_or(KvError::UserNotFound)?;
        if !Arc::make_mut(user).roles.remove(&request.role) {
            return Err(KvError::RoleNotGranted);
        }
        self.revision += 1;
        self.refresh(&request.name);
        Ok(())
    }

    pub(crate) fn role_add(&mut self, name: &str) -> Result<(), KvError> {
        if name.is_empty() {
            return Err(KvError::RoleEmpty);
        }
        if self.roles.contains_key(name) {
            return Err(KvError::RoleExists);
        }
        self.roles.insert(name.to_owned(), Arc::default());
        self.revision += 1;
        Ok(())
    }

    /// Takes the role from everybody who has it, too.
    pub(crate) fn role_delete(&mut self, name: &str) -> Result<(), KvError> {
        if self.enabled && name == ROOT {
            return Err(KvError::InvalidAuthManagement);
        }
        self.roles.remove(name).ok_or(KvError::RoleNotFound)?;
        self.revision += 1;
        let with = self.users.iter().filter(|(_, user)| user.roles.contains(name));
        let names: Vec<String> = with.map(|(name, _)| name.clone()).collect();
        for user in names {
            if let Some(user) = self.users.get_mut(&user) {
                Arc::make_mut(user).roles.remove(name);
            }
            self.refresh(&user);
        }
        Ok(())
    }

    /// A permission for the same key and range end replaces the one that was there.
    pub(crate) fn role_grant_permission(
        &mut self,
        request: &AuthRoleGrantPermissionRequest,
    ) -> Result<(), KvError> {
        let Some(permission) = &request.perm else {
            return Err(KvError::PermissionNotGiven);
        };
        if !is_sound(permission) {
            return Err(KvError::InvalidAuthManagement);
        }
        let role = self.roles.get_mut(&request.name).ok_or(KvError::RoleNotFound)?;
        let place = (own(&permission.key), own(&permission.range_end));
        Arc::make_mut(role).insert(place, permission.perm_type());
        self.revision += 1;
        self.refresh_all_with(&request.name);
        Ok(())
    }

    pub(crate) fn role_revoke_permission(
        &mut self,
        request: &AuthRoleRevokePermissionRequest,
    ) -> Result<(), KvError> {
        let role = self.roles.get_mut(&request.role).ok_or(KvError::RoleNotFound)?;
        let place = (request.key.clone(), request.range_end.clone());
        let permissions: &mut Permissions = Arc::make_mut(role);
        permissions.remove(&place).ok_or(KvError::PermissionNotGranted)?;
        self.revision += 1;
        self.refresh_all_with(&request.role);
        Ok(())
    }
}

/// Whether a permission is of a known kind and for at least one key.
fn is_sound(permission: &Permission) -> bool {
    let Permission { perm_type, key, range_end } = permission;
    let is_known = crate::proto::authpb::permission::Type::try_from(*perm_type).is_ok();
    let is_some = range_end.is_empty() || key < range_end || range_end.as_ref() == b"\0";
    is_known && !key.is_empty() && is_some
}

/// A copy of its own: a slice would keep the whole log entry in memory.
fn own(bytes: &Bytes) -> Bytes {
    Bytes::copy_from_slice(bytes)
}
