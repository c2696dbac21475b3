//! An administrator who switches authentication on, then gives a guest the right to see the accounts and takes it away,
//! again and again; and the guest, who must see what is granted for certain, and nothing that is not.

use bytes::Bytes;
use raft_core::Rng;
use raft_kv::proto::authpb::{Permission, permission::Type};
use raft_kv::proto::etcdserverpb::{
    AuthRoleGrantPermissionRequest, AuthRoleRevokePermissionRequest, AuthUserGrantRoleRequest,
};
use raft_kv::{Answer, Caller, Command, KvError, Query};

use super::requests::{ACCOUNTS, SESSIONS, accounts, sessions};
use crate::workload::Call;

const ROOT: &str = "root";
const GUEST: &str = "guest";
const READER: &str = "reader";

/// What the administrator does, one after the other; the last two for ever.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
enum Step {
    #[default]
    AddRoot,
    MakeRoot,
    AddReader,
    AddGuest,
    MakeReader,
    Enable,
    Grant,
    Revoke,
}

impl Step {
    const fn next(self) -> Self {
        match self {
            Self::AddRoot => Self::MakeRoot,
            Self::MakeRoot => Self::AddReader,
            Self::AddReader => Self::AddGuest,
            Self::AddGuest => Self::MakeReader,
            Self::MakeReader => Self::Enable,
            Self::Enable | Self::Revoke => Self::Grant,
            Self::Grant => Self::Revoke,
        }
    }
}

/// What is known of users and permissions.
#[derive(Debug, Default)]
pub(super) struct Administrator {
    /// Whether there is an administrator in this run.
    wanted: Option<bool>,
    step: Step,
    /// Somebody has asked to enable it; it is enabled for certain.
    enable_asked: bool,
    enabled: bool,
    /// Whether the guest may see the accounts, if that is certain.
    granted: Option<bool>,
    /// Counts what may change that.
    changes: u64,
    /// A change may come at any time: nothing is certain any more.
    blurred: bool,
    /// The newest revision of users and roles that a member has shown.
    revision: u64,
}

/// What a guest asked for, and what was certain then.
#[derive(Debug)]
pub(super) struct Guest {
    /// What is never granted.
    secret: bool,
    enabled: bool,
    granted: Option<bool>,
    changes: u64,
}

impl Guest {
    pub(super) const fn looks_at_accounts(&self) -> bool {
        !self.secret
    }
}

/// Whether somebody is refused because of who they are.
pub(super) const fn is_refusal(error: KvError) -> bool {
    matches!(error, KvError::PermissionDenied | KvError::OldAuthRevision | KvError::UserEmpty)
}

impl Administrator {
    /// Whether the administrator has something to do now.
    pub(super) fn is_busy(&mut self, rng: &mut Rng) -> bool {
        let wanted = *self.wanted.get_or_insert_with(|| rng.chance(1, 2));
        wanted && rng.chance(1, 4)
    }

    /// A member shows this revision of users and roles, 0 while authentication is off.
    pub(super) fn sees(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
    }

    /// Whether anybody may be refused.
    pub(super) const fn may_refuse(&self) -> bool {
        self.enable_asked
    }

    pub(super) fn root(&self) -> Caller {
        Caller { user: ROOT.to_owned(), auth_revision: self.revision }
    }

    pub(super) fn as_root(&self, query: Query) -> Query {
        if matches!(query, Query::By(..)) { query } else { query.by(Some(self.root())) }
    }

    /// What the administrator asks next.
    pub(super) fn command(&mut self) -> Command {
        let role = |user: &str, role: &str| {
            let (user, role) = (user.to_owned(), role.to_owned());
            Command::user_grant_role(AuthUserGrantRoleRequest { user, role })
        };
        let (key, range_end) = (Bytes::from(ACCOUNTS.0), Bytes::from(ACCOUNTS.1));
        match self.step {
            Step::AddRoot => Command::user_add(ROOT.to_owned(), None),
            Step::MakeRoot => role(ROOT, ROOT),
            Step::AddReader => {
                Command::role_add(raft_kv::proto::etcdserverpb::AuthRoleAddRequest {
                    name: READER.to_owned(),
                })
            }
            Step::AddGuest => Command::user_add(GUEST.to_owned(), None),
            Step::MakeReader => role(GUEST, READER),
            Step::Enable => {
                self.enable_asked = true;
                Command::auth_enable(Bytes::from_static(&[7; 32]))
            }
            Step::Grant => {
                self.changes_permissions();
                let perm = Permission { perm_type: i32::from(Type::Read), key, range_end };
                Command::role_grant_permission(AuthRoleGrantPermissionRequest {
                    name: READER.to_owned(),
                    perm: Some(perm),
                })
            }
            Step::Revoke => {
                self.changes_permissions();
                let role = READER.to_owned();
                Command::role_revoke_permission(AuthRoleRevokePermissionRequest {
                    role,
                    key,
                    range_end,
                })
            }
        }
    }

    const fn changes_permissions(&mut self) {
        self.changes += 1;
        self.granted = None;
    }

    /// The last step is done.
    pub(super) fn done(&mut self) {
        self.enabled |= self.step == Step::Enable;
        if !self.blurred {
            self.granted = match self.step {
                Step::Grant => Some(true),
                Step::Revoke | Step::Enable => Some(false),
                Step::AddRoot
                | Step::MakeRoot
                | Step::AddReader
                | Step::AddGuest
                | Step::MakeReader => None,
            };
        }
        self.step = self.step.next();
    }

    /// Nobody will say what became of the last step. It is asked for again, and what it does may still be done when
    /// later ones are.
    pub(super) fn gave_up(&mut self) {
        self.blurred |= matches!(self.step, Step::Grant | Step::Revoke);
    }

    /// Whether this error says that the last step had been done before.
    pub(super) fn has_it(&self, error: KvError) -> bool {
        match self.step {
            Step::AddRoot | Step::AddGuest => error == KvError::UserExists,
            Step::AddReader => error == KvError::RoleExists,
            Step::Revoke => error == KvError::PermissionNotGranted && self.blurred,
            Step::MakeRoot | Step::MakeReader | Step::Enable | Step::Grant => false,
        }
    }

    /// A guest asks for all accounts, or for what nobody ever granted.
    pub(super) fn guest(&self, rng: &mut Rng) -> (Guest, Query) {
        let secret = rng.chance(1, 2);
        let (enabled, granted, changes) = (self.enabled, self.granted, self.changes);
        let guest = Guest { secret, enabled, granted, changes };
        let caller = Caller { user: GUEST.to_owned(), auth_revision: self.revision };
        let query = if secret { sessions() } else { accounts(0) };
        (guest, query.by(Some(caller)))
    }

    /// What a guest was told, and what that was.
    ///
    /// # Panics
    /// When it is not what was granted.
    pub(super) fn judge(
        &self,
        call: &Call,
        guest: &Guest,
        answer: &Result<Answer, KvError>,
    ) -> &'static str {
        if let Err(error) = answer {
            assert!(is_refusal(*error) && self.enable_asked, "{call:?}, a guest, fails: {error}");
        }
        let certain = guest.enabled && guest.changes == self.changes;
        if guest.secret && guest.enabled {
            assert!(answer.is_err(), "{call:?}: a guest sees {} to {}", SESSIONS.0, SESSIONS.1);
        }
        match (guest.granted.filter(|_| certain && !guest.secret), answer) {
            (Some(false), Ok(_)) => panic!("{call:?}: a guest sees what was taken away"),
            (Some(true), Err(KvError::PermissionDenied)) => {
                panic!("{call:?}: a guest does not see what was granted")
            }
            (Some(true), Ok(_)) => "bank: a guest sees what was granted",
            (_, Ok(_)) => "bank: a guest sees something",
            (_, Err(_)) => "bank: a guest is refused",
        }
    }
}
