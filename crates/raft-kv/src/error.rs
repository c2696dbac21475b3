//! What is wrong with a request, in etcd's words.

use std::fmt;

/// Why a request was refused. Nothing was changed.
///
/// The text of [`Display`](fmt::Display) and the [`code`](Self::code) are what clients compare, letter for
/// letter.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
pub enum KvError {
    /// The key is empty.
    EmptyKey,
    /// `ignore_value` or `ignore_lease` on a key that does not exist; an operation of no kind in a transaction.
    KeyNotFound,
    /// `ignore_value` together with a value.
    ValueProvided,
    /// `ignore_lease` together with a lease.
    LeaseProvided,
    /// A transaction with too many operations, or nested too deep.
    TooManyOps,
    /// A transaction that writes a key twice.
    DuplicateKey,
    /// A sort order or target that does not exist.
    InvalidSortOption,
    /// A key with its value over [`KEY_VALUE_BYTES_MAX`](crate::KEY_VALUE_BYTES_MAX), or a request over the
    /// server's limit.
    RequestTooLarge,
    /// The revision is below the compacted one; for a compaction: not above it.
    Compacted,
    /// The revision does not exist yet.
    FutureRevision,
    /// The lease does not exist.
    LeaseNotFound,
    /// A lease of this id exists.
    LeaseExists,
    /// A lease for more seconds than [`LEASE_TTL_MAX`](crate::LEASE_TTL_MAX).
    LeaseTtlTooLarge,
    /// Authentication cannot be enabled: there is no user root.
    RootUserNotExist,
    /// Authentication cannot be enabled: the user root does not have the role root.
    RootRoleNotGranted,
    /// A user of this name exists.
    UserExists,
    /// A user without a name; whoever asks has not said who it is.
    UserEmpty,
    /// There is no such user.
    UserNotFound,
    /// A role of this name exists.
    RoleExists,
    /// There is no such role.
    RoleNotFound,
    /// A role without a name.
    RoleEmpty,
    /// The name or the password is wrong.
    AuthFailed,
    /// A password for a user that has none.
    NoPasswordUser,
    /// A grant without a permission.
    PermissionNotGiven,
    /// Whoever asks may not do that.
    PermissionDenied,
    /// The user does not have the role.
    RoleNotGranted,
    /// The role does not have the permission.
    PermissionNotGranted,
    /// Authentication is not enabled.
    AuthNotEnabled,
    /// A token that nobody gave out, or that is too old.
    InvalidAuthToken,
    /// A change that would take what root needs, or a permission for no key.
    InvalidAuthManagement,
    /// Users or permissions have changed since it was found out who asks.
    OldAuthRevision,
    /// The quota is exceeded; what makes the store smaller is allowed.
    NoSpace,
    /// A member's state was found to differ from the others'.
    Corrupt,
    /// The cluster is about to go back to an older version already.
    DowngradeInProgress,
    /// There is no downgrade to take back.
    NoDowngrade,
}

/// The gRPC status codes that go with a [`KvError`]. The numbers are gRPC's.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[non_exhaustive]
#[repr(i32)]
pub enum Code {
    /// etcd has no code for it.
    Unknown = 2,
    /// The request makes no sense, whatever the state.
    InvalidArgument = 3,
    /// Something named in the request does not exist.
    NotFound = 5,
    /// Whoever asks may not do that.
    PermissionDenied = 7,
    /// Too much is stored.
    ResourceExhausted = 8,
    /// Not in this state.
    FailedPrecondition = 9,
    /// A revision outside what is kept, or a number that is too large.
    OutOfRange = 11,
    /// It is not known who asks.
    Unauthenticated = 16,
    /// Something stored is lost.
    DataLoss = 15,
}

impl KvError {
    /// The gRPC status code.
    #[must_use]
    pub const fn code(self) -> Code {
        match self {
            Self::EmptyKey
            | Self::KeyNotFound
            | Self::ValueProvided
            | Self::LeaseProvided
            | Self::TooManyOps
            | Self::DuplicateKey
            | Self::InvalidSortOption
            | Self::RequestTooLarge
            | Self::UserEmpty
            | Self::RoleEmpty
            | Self::AuthFailed
            | Self::PermissionNotGiven
            | Self::InvalidAuthManagement
            | Self::OldAuthRevision => Code::InvalidArgument,
            Self::Compacted | Self::FutureRevision | Self::LeaseTtlTooLarge => Code::OutOfRange,
            Self::LeaseExists
            | Self::RootUserNotExist
            | Self::RootRoleNotGranted
            | Self::UserExists
            | Self::UserNotFound
            | Self::RoleExists
            | Self::RoleNotFound
            | Self::RoleNotGranted
            | Self::PermissionNotGranted
            | Self::AuthNotEnabled
            | Self::DowngradeInProgress
            | Self::NoDowngrade => Code::FailedPrecondition,
            Self::LeaseNotFound => Code::NotFound,
            Self::PermissionDenied => Code::PermissionDenied,
            Self::InvalidAuthToken => Code::Unauthenticated,
            Self::NoPasswordUser => Code::Unknown,
            Self::NoSpace => Code::ResourceExhausted,
            Self::Corrupt => Code::DataLoss,
        }
    }

    /// The status message.
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::EmptyKey => "etcdserver: key is not provided",
            Self::KeyNotFound => "etcdserver: key not found",
            Self::ValueProvided => "etcdserver: value is provided",
            Self::LeaseProvided => "etcdserver: lease is provided",
            Self::TooManyOps => "etcdserver: too many operations in txn request",
            Self::DuplicateKey => "etcdserver: duplicate key given in txn request",
            Self::InvalidSortOption => "etcdserver: invalid sort option",
            Self::RequestTooLarge => "etcdserver: request is too large",
            Self::Compacted => "etcdserver: mvcc: required revision has been compacted",
            Self::FutureRevision => "etcdserver: mvcc: required revision is a future revision",
            Self::LeaseNotFound => "etcdserver: requested lease not found",
            Self::LeaseExists => "etcdserver: lease already exists",
            Self::LeaseTtlTooLarge => "etcdserver: too large lease TTL",
            Self::RootUserNotExist => "etcdserver: root user does not exist",
            Self::RootRoleNotGranted => "etcdserver: root user does not have root role",
            Self::UserExists => "etcdserver: user name already exists",
            Self::UserEmpty => "etcdserver: user name is empty",
            Self::UserNotFound => "etcdserver: user name not found",
            Self::RoleExists => "etcdserver: role name already exists",
            Self::RoleNotFound => "etcdserver: role name not found",
            Self::RoleEmpty => "etcdserver: role name is empty",
            Self::AuthFailed => "etcdserver: authentication failed, invalid user ID or password",
            Self::NoPasswordUser => {
                "auth: authentication failed, password was given for no password user"
            }
            Self::PermissionNotGiven => "etcdserver: permission not given",
            Self::PermissionDenied => "etcdserver: permission denied",
            Self::RoleNotGranted => "etcdserver: role is not granted to the user",
            Self::PermissionNotGranted => "etcdserver: permission is not granted to the role",
            Self::AuthNotEnabled => "etcdserver: authentication is not enabled",
            Self::InvalidAuthToken => "etcdserver: invalid auth token",
            Self::InvalidAuthManagement => "etcdserver: invalid auth management",
            Self::OldAuthRevision => "etcdserver: revision of auth store is old",
            Self::NoSpace => "etcdserver: mvcc: database space exceeded",
            Self::Corrupt => "etcdserver: corrupt cluster",
            Self::DowngradeInProgress => "etcdserver: cluster has a downgrade job in progress",
            Self::NoDowngrade => "etcdserver: no inflight downgrade job",
        }
    }
}

impl fmt::Display for KvError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.message())
    }
}

impl std::error::Error for KvError {}
