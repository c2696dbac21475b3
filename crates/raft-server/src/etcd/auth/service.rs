//! The service: logging in, and managing users, roles and permissions.

use std::time::SystemTime;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use raft_kv::auth::AuthState;
use raft_kv::proto::authpb::Permission;
use raft_kv::proto::authpb::permission::Type as PermissionType;
use raft_kv::proto::etcdserverpb::*;
use raft_kv::{Command, KvError};
use tonic::{Request, Response, Status, async_trait};

use super::{Admission, Governed, passwords};
use crate::etcd::kv::mismatch;
use crate::etcd::{Etcd, errors};
use crate::proto::etcdserverpb::auth_server::Auth;

/// The role that may do everything, and whose one permission nobody has to grant.
const ROOT: &str = "root";
/// Whoever logs in where tokens are only checked hears this, as in etcd.
const VERIFY_ONLY: &str = "auth: token signing attempted with verify-only key";
/// The bytes of the secret that tokens are made with.
const TOKEN_SECRET_BYTES: usize = 32;

impl Etcd {
    /// Changes users, roles or permissions; the header of the answer.
    async fn manage(
        &self,
        admission: &Admission,
        command: Command,
    ) -> Result<Option<ResponseHeader>, Status> {
        let raft_kv::Response::Auth(mut header) = self.propose(admission, command).await? else {
            return Err(mismatch());
        };
        self.complete(&mut header);
        Ok(header)
    }

    /// Looks at users and roles with everything that was agreed before.
    async fn look_at_users<M: Governed, T>(
        &self,
        mut admission: Admission,
        request: &M,
        look: impl FnOnce(&AuthState) -> Result<T, KvError>,
    ) -> Result<(Option<ResponseHeader>, T), Status> {
        self.linearize().await?;
        // One state for the decision and the look: nothing can come between.
        let state = self.auth.decide_with(&mut admission, &request.access());
        let found = state.and_then(|state| look(&state)).map_err(errors::of_kv)?;
        Ok((Some(self.header(self.reader.revision())), found))
    }

    /// Takes a password, or somebody else's hash of one, for a hash.
    async fn hash(&self, password: String, hashed: &str) -> Result<Bytes, Status> {
        if !password.is_empty() || hashed.is_empty() {
            return self.auth.passwords.hash(password).await;
        }
        let text = STANDARD.decode(hashed).ok().and_then(|bytes| String::from_utf8(bytes).ok());
        text.and_then(|text| passwords::foreign_hash(&text))
            .ok_or_else(|| errors::of_kv(KvError::InvalidAuthManagement))
    }

    /// A token for somebody who knows the password.
    async fn log_in(&self, name: &str, password: &str) -> Result<String, Status> {
        loop {
            let state = self.auth.state();
            if !state.is_enabled() {
                return Err(errors::of_kv(KvError::AuthNotEnabled));
            }
            let user = state.user(name);
            let hash = user.and_then(|user| user.password_hash().cloned());
            if user.is_some() && hash.is_none() {
                return Err(errors::of_kv(KvError::NoPasswordUser));
            }
            let is_right = self.auth.passwords.is_right(password.to_owned(), hash).await?;
            if !is_right {
                tracing::debug!("somebody with a wrong password wanted to be {name:?}");
                return Err(errors::of_kv(KvError::AuthFailed));
            }
            // The password may have been changed meanwhile.
            let now = self.auth.state();
            let same = user.map(|user| user.since()) == now.user(name).map(|user| user.since());
            if same && now.token_secret() == state.token_secret() {
                if !self.auth.tokens.are_made_here() {
                    return Err(Status::unknown(VERIFY_ONLY));
                }
                let token = self.auth.tokens.issue(name, &now, SystemTime::now());
                return token.ok_or_else(|| errors::of_kv(KvError::AuthNotEnabled));
            }
        }
    }
}

#[async_trait]
impl Auth for Etcd {
    async fn auth_enable(
        &self,
        request: Request<AuthEnableRequest>,
    ) -> Result<Response<AuthEnableResponse>, Status> {
        let (AuthEnableRequest {}, admission) = self.admit(request).await?;
        let mut secret = [0; TOKEN_SECRET_BYTES];
        fill_randomly(&mut secret)?;
        let command = Command::auth_enable(Bytes::copy_from_slice(&secret));
        let header = self.manage(&admission, command).await?;
        tracing::info!("authentication is enabled");
        Ok(Response::new(AuthEnableResponse { header }))
    }

    async fn auth_disable(
        &self,
        request: Request<AuthDisableRequest>,
    ) -> Result<Response<AuthDisableResponse>, Status> {
        let (AuthDisableRequest {}, admission) = self.admit(request).await?;
        let header = self.manage(&admission, Command::auth_disable()).await?;
        tracing::info!("authentication is disabled");
        Ok(Response::new(AuthDisableResponse { header }))
    }

    async fn auth_status(
        &self,
        request: Request<AuthStatusRequest>,
    ) -> Result<Response<AuthStatusResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let look = |state: &AuthState| Ok((state.is_enabled(), state.revision()));
        let (header, (enabled, auth_revision)) =
            self.look_at_users(admission, &request, look).await?;
        Ok(Response::new(AuthStatusResponse { header, enabled, auth_revision }))
    }

    async fn authenticate(
        &self,
        request: Request<AuthenticateRequest>,
    ) -> Result<Response<AuthenticateResponse>, Status> {
        let (AuthenticateRequest { name, password }, _) = self.admit(request).await?;
        self.linearize().await?;
        let token = self.log_in(&name, &password).await?;
        let header = Some(self.header(self.reader.revision()));
        Ok(Response::new(AuthenticateResponse { header, token }))
    }

    async fn user_add(
        &self,
        request: Request<AuthUserAddRequest>,
    ) -> Result<Response<AuthUserAddResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let AuthUserAddRequest { name, password, options, hashed_password } = request;
        let no_password = options.unwrap_or_default().no_password;
        let hash =
            if no_password { None } else { Some(self.hash(password, &hashed_password).await?) };
        let header = self.manage(&admission, Command::user_add(name, hash)).await?;
        Ok(Response::new(AuthUserAddResponse { header }))
    }

    async fn user_get(
        &self,
        request: Request<AuthUserGetRequest>,
    ) -> Result<Response<AuthUserGetResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let look = |state: &AuthState| {
            let user = state.user(&request.name).ok_or(KvError::UserNotFound)?;
            Ok(user.roles().map(str::to_owned).collect())
        };
        let (header, roles) = self.look_at_users(admission, &request, look).await?;
        Ok(Response::new(AuthUserGetResponse { header, roles }))
    }

    async fn user_list(
        &self,
        request: Request<AuthUserListRequest>,
    ) -> Result<Response<AuthUserListResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let look = |state: &AuthState| Ok(state.users().map(str::to_owned).collect());
        let (header, users) = self.look_at_users(admission, &request, look).await?;
        Ok(Response::new(AuthUserListResponse { header, users }))
    }

    async fn user_delete(
        &self,
        request: Request<AuthUserDeleteRequest>,
    ) -> Result<Response<AuthUserDeleteResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let header = self.manage(&admission, Command::user_delete(request)).await?;
        Ok(Response::new(AuthUserDeleteResponse { header }))
    }

    async fn user_change_password(
        &self,
        request: Request<AuthUserChangePasswordRequest>,
    ) -> Result<Response<AuthUserChangePasswordResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let AuthUserChangePasswordRequest { name, password, hashed_password } = request;
        let hash = self.hash(password, &hashed_password).await?;
        let command = Command::user_change_password(name, hash);
        let header = self.manage(&admission, command).await?;
        Ok(Response::new(AuthUserChangePasswordResponse { header }))
    }

    async fn user_grant_role(
        &self,
        request: Request<AuthUserGrantRoleRequest>,
    ) -> Result<Response<AuthUserGrantRoleResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let header = self.manage(&admission, Command::user_grant_role(request)).await?;
        Ok(Response::new(AuthUserGrantRoleResponse { header }))
    }

    async fn user_revoke_role(
        &self,
        request: Request<AuthUserRevokeRoleRequest>,
    ) -> Result<Response<AuthUserRevokeRoleResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let header = self.manage(&admission, Command::user_revoke_role(request)).await?;
        Ok(Response::new(AuthUserRevokeRoleResponse { header }))
    }

    async fn role_add(
        &self,
        request: Request<AuthRoleAddRequest>,
    ) -> Result<Response<AuthRoleAddResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let header = self.manage(&admission, Command::role_add(request)).await?;
        Ok(Response::new(AuthRoleAddResponse { header }))
    }

    async fn role_get(
        &self,
        request: Request<AuthRoleGetRequest>,
    ) -> Result<Response<AuthRoleGetResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let look = |state: &AuthState| {
            let permissions = state.role(&request.role).ok_or(KvError::RoleNotFound)?;
            if request.role == ROOT {
                return Ok(vec![Permission {
                    perm_type: PermissionType::Readwrite.into(),
                    key: Bytes::new(),
                    range_end: Bytes::from_static(b"\0"),
                }]);
            }
            let message = |(key, range_end, kind): (&Bytes, &Bytes, PermissionType)| Permission {
                perm_type: kind.into(),
                key: key.clone(),
                range_end: range_end.clone(),
            };
            Ok(permissions.map(message).collect())
        };
        let (header, perm) = self.look_at_users(admission, &request, look).await?;
        Ok(Response::new(AuthRoleGetResponse { header, perm }))
    }

    async fn role_list(
        &self,
        request: Request<AuthRoleListRequest>,
    ) -> Result<Response<AuthRoleListResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let look = |state: &AuthState| Ok(state.roles().map(str::to_owned).collect());
        let (header, roles) = self.look_at_users(admission, &request, look).await?;
        Ok(Response::new(AuthRoleListResponse { header, roles }))
    }

    async fn role_delete(
        &self,
        request: Request<AuthRoleDeleteRequest>,
    ) -> Result<Response<AuthRoleDeleteResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let header = self.manage(&admission, Command::role_delete(request)).await?;
        Ok(Response::new(AuthRoleDeleteResponse { header }))
    }

    async fn role_grant_permission(
        &self,
        request: Request<AuthRoleGrantPermissionRequest>,
    ) -> Result<Response<AuthRoleGrantPermissionResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let header = self.manage(&admission, Command::role_grant_permission(request)).await?;
        Ok(Response::new(AuthRoleGrantPermissionResponse { header }))
    }

    async fn role_revoke_permission(
        &self,
        request: Request<AuthRoleRevokePermissionRequest>,
    ) -> Result<Response<AuthRoleRevokePermissionResponse>, Status> {
        let (request, admission) = self.admit(request).await?;
        let header = self.manage(&admission, Command::role_revoke_permission(request)).await?;
        Ok(Response::new(AuthRoleRevokePermissionResponse { header }))
    }
}

/// Bytes that nobody can guess, from the system.
fn fill_randomly(mut bytes: &mut [u8]) -> Result<(), Status> {
    use rustix::rand::{GetRandomFlags, getrandom};
    while !bytes.is_empty() {
        let count = getrandom(&mut *bytes, GetRandomFlags::empty())
            .map_err(|error| Status::internal(format!("etcdserver: no random bytes: {error}")))?;
        bytes = &mut bytes[count..];
    }
    Ok(())
}
