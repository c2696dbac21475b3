//! What messages with a secret inside print of themselves: everything else.

use std::fmt;

use crate::proto::authpb;
use crate::proto::etcdserverpb::{
    AuthUserAddRequest, AuthUserChangePasswordRequest, AuthenticateRequest, AuthenticateResponse,
};
use crate::proto::raftkv::{AuthEnable, AuthV1, UserAdd, UserChangePassword};

impl fmt::Debug for AuthenticateRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthenticateRequest").field("name", &self.name).finish_non_exhaustive()
    }
}

impl fmt::Debug for AuthenticateResponse {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthenticateResponse").field("header", &self.header).finish_non_exhaustive()
    }
}

impl fmt::Debug for AuthUserAddRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthUserAddRequest")
            .field("name", &self.name)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for AuthUserChangePasswordRequest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthUserChangePasswordRequest")
            .field("name", &self.name)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for authpb::User {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("User")
            .field("name", &self.name)
            .field("roles", &self.roles)
            .field("options", &self.options)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for AuthEnable {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthEnable").finish_non_exhaustive()
    }
}

impl fmt::Debug for AuthV1 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("AuthV1")
            .field("enabled", &self.enabled)
            .field("revision", &self.revision)
            .field("users", &self.users)
            .field("roles", &self.roles)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for UserAdd {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserAdd")
            .field("name", &self.name)
            .field("no_password", &self.no_password)
            .finish_non_exhaustive()
    }
}

impl fmt::Debug for UserChangePassword {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UserChangePassword").field("name", &self.name).finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use bytes::Bytes;

    use super::*;
    use crate::Command;

    /// CVE-2021-28235: a password must not come out by way of a debugging aid.
    #[test]
    fn neither_passwords_nor_hashes_nor_secrets_are_printed() {
        let secret = "hunter2";
        let bytes = Bytes::from_static(secret.as_bytes());
        let printed = [
            format!("{:?}", AuthenticateRequest { name: "alice".into(), password: secret.into() }),
            format!("{:?}", AuthenticateResponse { header: None, token: secret.into() }),
            format!(
                "{:?}",
                AuthUserAddRequest {
                    name: "alice".into(),
                    password: secret.into(),
                    options: None,
                    hashed_password: secret.into()
                }
            ),
            format!(
                "{:?}",
                AuthUserChangePasswordRequest {
                    name: "alice".into(),
                    password: secret.into(),
                    hashed_password: secret.into()
                }
            ),
            format!(
                "{:?}",
                authpb::User {
                    name: "alice".into(),
                    password: bytes.clone(),
                    ..Default::default()
                }
            ),
            format!("{:?}", Command::auth_enable(bytes.clone())),
            format!("{:?}", Command::user_add("alice".into(), Some(bytes.clone()))),
            format!("{:?}", Command::user_change_password("alice".into(), bytes)),
        ];
        for text in printed {
            // As text and as the numbers of its bytes.
            assert!(!text.contains(secret) && !text.contains("104, 117"), "{text}");
        }
    }
}
