//! `auth`, `user` and `role`.

use std::ffi::OsString;

use bytes::Bytes;
use clap::{Args, Subcommand, ValueEnum};
use raft_kv::proto::authpb::permission::Type;
use raft_kv::proto::authpb::{Permission, UserAddOptions};
use raft_kv::proto::etcdserverpb::{
    AuthDisableRequest, AuthEnableRequest, AuthRoleAddRequest, AuthRoleDeleteRequest,
    AuthRoleGetRequest, AuthRoleGetResponse, AuthRoleGrantPermissionRequest, AuthRoleListRequest,
    AuthRoleRevokePermissionRequest, AuthStatusRequest, AuthUserAddRequest,
    AuthUserChangePasswordRequest, AuthUserDeleteRequest, AuthUserGetRequest,
    AuthUserGrantRoleRequest, AuthUserListRequest, AuthUserRevokeRoleRequest,
};

use super::dial::Cluster;
use super::kv::{OPEN_END, prefix_end, range};
use super::print::{Out, Printer, say};
use super::{Failure, go, prompt};

/// Asks for a change and prints the line that says that it was made.
macro_rules! change {
    ($cluster:expr, $call:ident, $request:expr, $name:literal, $line:expr) => {{
        let printer = Printer::for_messages(&$cluster.wishes)?;
        let answer = $cluster
            .write($request, async |link, request| link.auth().$call(link.by(request)).await)
            .await?;
        let header = answer.header;
        printer.show($name, &answer, |out| out.line($line), |out| out.header(header.as_ref()));
        Ok(())
    }};
}

#[derive(Clone, Copy, Debug, Subcommand)]
pub(in crate::cli) enum Auth {
    /// From now on, ask everybody who they are.
    Enable,
    /// Let everybody in again.
    Disable,
    /// Show whether everybody is asked.
    Status,
}

#[derive(Clone, Debug, Subcommand)]
pub(in crate::cli) enum User {
    /// Add a user; the password is asked for if it is nowhere given.
    Add {
        #[arg(value_name = "NAME[:PASSWORD]")]
        name: String,
        /// The password.
        #[arg(long, value_name = "PASSWORD", conflicts_with = "no_password")]
        new_user_password: Option<String>,
        /// Nobody can come in as this user but by a certificate.
        #[arg(long)]
        no_password: bool,
        #[command(flatten)]
        asking: Asking,
    },
    /// Delete a user.
    Delete { name: String },
    /// Show the roles of a user.
    Get {
        name: String,
        /// And what each of them may do.
        #[arg(long)]
        detail: bool,
    },
    /// List all users.
    List,
    /// Change a user's password.
    Passwd {
        name: String,
        #[command(flatten)]
        asking: Asking,
    },
    /// Give a user a role.
    GrantRole { name: String, role: String },
    /// Take a role from a user.
    RevokeRole { name: String, role: String },
}

/// Where a password comes from.
#[derive(Clone, Copy, Debug, Args)]
pub(in crate::cli) struct Asking {
    /// Ask at the terminal; `--interactive=false` reads the password from standard input.
    #[arg(long, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", default_value = "true", hide_default_value = true, action = clap::ArgAction::Set, hide_possible_values = true)]
    interactive: bool,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(in crate::cli) enum Kind {
    Read,
    Write,
    Readwrite,
}

#[derive(Clone, Debug, Subcommand)]
pub(in crate::cli) enum Role {
    /// Add a role.
    Add { name: String },
    /// Delete a role.
    Delete { name: String },
    /// Show what a role may do.
    Get { name: String },
    /// List all roles.
    List,
    /// Let a role read or write keys.
    GrantPermission {
        name: String,
        #[arg(value_enum, value_name = "read|write|readwrite", hide_possible_values = true)]
        kind: Kind,
        #[command(flatten)]
        keys: Keys,
    },
    /// Take that back.
    RevokePermission {
        name: String,
        #[command(flatten)]
        keys: Keys,
    },
}

#[derive(Clone, Debug, Args)]
pub(in crate::cli) struct Keys {
    /// The key, or the first one of a range.
    key: OsString,
    /// The first key that is not in the range any more.
    #[arg(conflicts_with_all = ["prefix", "from_key"])]
    end_key: Option<OsString>,
    /// All keys that begin with it.
    #[arg(long, conflicts_with = "from_key")]
    prefix: bool,
    /// All keys from it on.
    #[arg(long)]
    from_key: bool,
}

impl Keys {
    fn range(&self) -> (Bytes, Bytes) {
        let (key, end) = range(&self.key, self.end_key.as_ref(), self.prefix, self.from_key);
        // A permission has to begin somewhere.
        if key.is_empty() { (Bytes::from_static(b"\0"), end) } else { (key, end) }
    }
}

impl Auth {
    pub(super) async fn run(self, cluster: &Cluster) -> Result<(), Failure> {
        match self {
            Self::Enable => enable(cluster).await,
            Self::Disable => {
                cluster
                    .write(AuthDisableRequest {}, async |link, request| {
                        link.auth().auth_disable(link.by(request)).await
                    })
                    .await?;
                say("Authentication Disabled");
                Ok(())
            }
            Self::Status => {
                let printer = Printer::for_messages(&cluster.wishes)?;
                let answer = cluster
                    .read(AuthStatusRequest {}, async |link, request| {
                        link.auth().auth_status(link.by(request)).await
                    })
                    .await?;
                printer.show(
                    "AuthStatusResponse",
                    &answer,
                    |out| {
                        out.line(format!("Authentication Status: {}", answer.enabled));
                        out.line(format!("AuthRevision: {}", answer.auth_revision));
                    },
                    |out| {
                        out.header(answer.header.as_ref());
                        out.field("Enabled", answer.enabled);
                        out.field("AuthRevision", answer.auth_revision);
                    },
                );
                Ok(())
            }
        }
    }
}

/// A user root without the role root is given it.
async fn enable(cluster: &Cluster) -> Result<(), Failure> {
    let try_it = async || {
        cluster
            .write(AuthEnableRequest {}, async |link, request| {
                link.auth().auth_enable(link.by(request)).await
            })
            .await
    };
    match try_it().await {
        Ok(_) => {}
        Err(failure) if failure.words == "etcdserver: root user does not have root role" => {
            let root = || String::from("root");
            cluster
                .write(AuthRoleAddRequest { name: root() }, async |link, request| {
                    match link.auth().role_add(link.by(request)).await {
                        Err(status)
                            if status.message() == "etcdserver: role name already exists" =>
                        {
                            Ok(tonic::Response::new(Default::default()))
                        }
                        answer => answer,
                    }
                })
                .await?;
            let request = AuthUserGrantRoleRequest { user: root(), role: root() };
            cluster
                .write(request, async |link, request| {
                    link.auth().user_grant_role(link.by(request)).await
                })
                .await?;
            try_it().await?;
        }
        Err(failure) => return Err(failure),
    }
    say("Authentication Enabled");
    Ok(())
}

impl User {
    pub(super) async fn run(&self, cluster: &Cluster) -> Result<(), Failure> {
        match self {
            Self::Add { name, new_user_password, no_password, asking } => {
                let (name, password) = match (new_user_password, name.split_once(':')) {
                    _ if *no_password => (name.clone(), String::new()),
                    (Some(password), _) => (name.clone(), password.clone()),
                    (None, Some((name, password))) => (name.to_owned(), password.to_owned()),
                    (None, None) => (name.clone(), asking.password(name)?),
                };
                if name.is_empty() {
                    return Err(Failure::bad(
                        "empty user name is not allowed\n\n  right  user add NAME[:PASSWORD]",
                    ));
                }
                let line = format!("User {name} created");
                let options = Some(UserAddOptions { no_password: *no_password });
                let hashed_password = String::new();
                let request = AuthUserAddRequest { name, password, options, hashed_password };
                change!(cluster, user_add, request, "AuthUserAddResponse", line)
            }
            Self::Delete { name } => {
                let request = AuthUserDeleteRequest { name: name.clone() };
                let line = format!("User {name} deleted");
                change!(cluster, user_delete, request, "AuthUserDeleteResponse", line)
            }
            Self::Get { name, detail } => get_user(cluster, name, *detail).await,
            Self::List => {
                let printer = Printer::for_messages(&cluster.wishes)?;
                let answer = cluster
                    .read(AuthUserListRequest {}, async |link, request| {
                        link.auth().user_list(link.by(request)).await
                    })
                    .await?;
                printer.show(
                    "AuthUserListResponse",
                    &answer,
                    |out| answer.users.iter().for_each(|user| out.line(user)),
                    |out| {
                        out.header(answer.header.as_ref());
                        out.line(listed("Users", &answer.users));
                    },
                );
                Ok(())
            }
            Self::Passwd { name, asking } => {
                let request = AuthUserChangePasswordRequest {
                    name: name.clone(),
                    password: asking.password(name)?,
                    hashed_password: String::new(),
                };
                let line = "Password updated";
                change!(
                    cluster,
                    user_change_password,
                    request,
                    "AuthUserChangePasswordResponse",
                    line
                )
            }
            Self::GrantRole { name, role } => {
                let request = AuthUserGrantRoleRequest { user: name.clone(), role: role.clone() };
                let line = format!("Role {role} is granted to user {name}");
                change!(cluster, user_grant_role, request, "AuthUserGrantRoleResponse", line)
            }
            Self::RevokeRole { name, role } => {
                let request = AuthUserRevokeRoleRequest { name: name.clone(), role: role.clone() };
                let line = format!("Role {role} is revoked from user {name}");
                change!(cluster, user_revoke_role, request, "AuthUserRevokeRoleResponse", line)
            }
        }
    }
}

impl Asking {
    fn password(self, user: &str) -> Result<String, Failure> {
        if self.interactive { prompt::new_password(user) } else { prompt::from_stdin() }
    }
}

async fn get_user(cluster: &Cluster, name: &str, detail: bool) -> Result<(), Failure> {
    let printer = Printer::for_messages(&cluster.wishes)?;
    let answer = cluster
        .read(AuthUserGetRequest { name: name.to_owned() }, async |link, request| {
            link.auth().user_get(link.by(request)).await
        })
        .await?;
    if detail {
        say(format!("User: {name}"));
        for role in &answer.roles {
            say("");
            get_role(cluster, role).await?;
        }
        return Ok(());
    }
    printer.show(
        "AuthUserGetResponse",
        &answer,
        |out| {
            out.line(format!("User: {name}"));
            let roles: String = answer.roles.iter().map(|role| format!(" {role}")).collect();
            out.line(format!("Roles:{roles}"));
        },
        |out| {
            out.header(answer.header.as_ref());
            out.line(listed("Roles", &answer.roles));
        },
    );
    Ok(())
}

fn listed(name: &str, texts: &[String]) -> String {
    let texts: String =
        texts.iter().map(|text| format!(" {}", go::quoted(text.as_bytes()))).collect();
    format!("\"{name}\" :{texts}")
}

impl Role {
    pub(super) async fn run(&self, cluster: &Cluster) -> Result<(), Failure> {
        match self {
            Self::Add { name } => {
                let request = AuthRoleAddRequest { name: name.clone() };
                let line = format!("Role {name} created");
                change!(cluster, role_add, request, "AuthRoleAddResponse", line)
            }
            Self::Delete { name } => {
                let request = AuthRoleDeleteRequest { role: name.clone() };
                let line = format!("Role {name} deleted");
                change!(cluster, role_delete, request, "AuthRoleDeleteResponse", line)
            }
            Self::Get { name } => get_role(cluster, name).await,
            Self::List => {
                let printer = Printer::for_messages(&cluster.wishes)?;
                let answer = cluster
                    .read(AuthRoleListRequest {}, async |link, request| {
                        link.auth().role_list(link.by(request)).await
                    })
                    .await?;
                printer.show(
                    "AuthRoleListResponse",
                    &answer,
                    |out| answer.roles.iter().for_each(|role| out.line(role)),
                    |out| {
                        out.header(answer.header.as_ref());
                        out.line(listed("Roles", &answer.roles));
                    },
                );
                Ok(())
            }
            Self::GrantPermission { name, kind, keys } => {
                let (key, range_end) = keys.range();
                let perm_type = match kind {
                    Kind::Read => Type::Read,
                    Kind::Write => Type::Write,
                    Kind::Readwrite => Type::Readwrite,
                };
                let perm = Some(Permission { perm_type: perm_type.into(), key, range_end });
                let request = AuthRoleGrantPermissionRequest { name: name.clone(), perm };
                let line = format!("Role {name} updated");
                change!(
                    cluster,
                    role_grant_permission,
                    request,
                    "AuthRoleGrantPermissionResponse",
                    line
                )
            }
            Self::RevokePermission { name, keys } => {
                let (key, range_end) = keys.range();
                let line = revoked(name, &super::print::bytes(&keys.key), &range_end);
                let request =
                    AuthRoleRevokePermissionRequest { role: name.clone(), key, range_end };
                change!(
                    cluster,
                    role_revoke_permission,
                    request,
                    "AuthRoleRevokePermissionResponse",
                    line
                )
            }
        }
    }
}

fn revoked(role: &str, key: &[u8], end: &[u8]) -> Vec<u8> {
    let role = role.as_bytes();
    match end {
        [] => [b"Permission of key ", key, b" is revoked from role ", role].concat(),
        OPEN_END => {
            [b"Permission of range [", key, b", <open ended> is revoked from role ", role].concat()
        }
        end => {
            [b"Permission of range [", key, b", ", end, b") is revoked from role ", role].concat()
        }
    }
}

async fn get_role(cluster: &Cluster, name: &str) -> Result<(), Failure> {
    let printer = Printer::for_messages(&cluster.wishes)?;
    let answer = cluster
        .read(AuthRoleGetRequest { role: name.to_owned() }, async |link, request| {
            link.auth().role_get(link.by(request)).await
        })
        .await?;
    printer.show(
        "AuthRoleGetResponse",
        &answer,
        |out| simple_role(out, name, &answer),
        |out| {
            out.header(answer.header.as_ref());
            for permission in &answer.perm {
                let kind = Type::try_from(permission.perm_type).unwrap_or(Type::Read);
                // Two spaces, as etcdctl has them.
                out.line(format!("\"PermType\" :  {}", kind.as_str_name()));
                out.text("Key", &permission.key);
                out.text("RangeEnd", &permission.range_end);
            }
        },
    );
    Ok(())
}

fn simple_role(out: &mut Out, name: &str, answer: &AuthRoleGetResponse) {
    out.line(format!("Role {name}"));
    for (title, kind) in [("KV Read:", Type::Read), ("KV Write:", Type::Write)] {
        out.line(title);
        let of_kind = |permission: &&Permission| {
            let own = Type::try_from(permission.perm_type).unwrap_or(Type::Read);
            own == kind || own == Type::Readwrite
        };
        answer.perm.iter().filter(of_kind).for_each(|permission| out.line(keys(permission)));
    }
}

fn keys(permission: &Permission) -> Vec<u8> {
    let (key, end) = (&permission.key[..], &permission.range_end[..]);
    let mut line = match end {
        [] => return [b"\t", key].concat(),
        OPEN_END => [b"\t[", key, b", <open ended>"].concat(),
        end => [b"\t[", key, b", ", end, b")"].concat(),
    };
    if prefix_end(key) == end {
        line.extend_from_slice(&[b" (prefix ", key, b")"].concat());
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn permissions_are_shown_as_etcdctl_shows_them() {
        let of = |key: &'static str, range_end: &'static [u8]| {
            let permission =
                Permission { perm_type: 0, key: key.into(), range_end: range_end.into() };
            String::from_utf8(keys(&permission)).unwrap()
        };
        assert_eq!(of("a", b""), "\ta");
        assert_eq!(of("a", b"\0"), "\t[a, <open ended>");
        assert_eq!(of("a", b"b"), "\t[a, b) (prefix a)");
        assert_eq!(of("a", b"d"), "\t[a, d)");
        let said = |end: &[u8]| String::from_utf8(revoked("r", b"k", end)).unwrap();
        assert_eq!(said(b""), "Permission of key k is revoked from role r");
        assert_eq!(said(b"m"), "Permission of range [k, m) is revoked from role r");
        assert_eq!(said(b"\0"), "Permission of range [k, <open ended> is revoked from role r");
    }
}
