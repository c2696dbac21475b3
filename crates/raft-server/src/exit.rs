//! How the program ends, so that a supervisor knows what to do next (decision 11).

use std::process::ExitCode;

use raft::error::NodeError;

/// Exit codes. They are part of the interface: docs/operations.md lists them.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
#[repr(u8)]
pub enum Exit {
    /// Ended as asked.
    Success = 0,
    /// What was asked for is not so: a command of the client failed, `status` found no leader or an unreachable member, no request of `bench` succeeded,
    /// `check` found fault, a seed of `sim` fails, `verify` found damage or a difference, `recover` was not told to go on.
    Failure = 1,
    /// The command line or a configuration is wrong. Nothing was written.
    BadConfiguration = 2,
    /// The data folder is refused: locked, of another cluster or member, of a newer format, damaged; `import`: the source is
    /// no whole database of etcd, or the folder is not empty.
    DataRefused = 65,
    /// `inspect`, `verify`, `recover`: there is no state folder of a member at this path.
    NoData = 66,
    /// Another process listens on the address.
    PortInUse = 69,
    /// Writing or syncing failed. Check the disk before starting again.
    DiskLatched = 74,
    /// A passing fault or a bug: starting again is right.
    RestartMe = 75,
    /// The cluster removed this member; its data folder may not be used again.
    Removed = 77,
}

/// The table for `--help`.
pub const HELP: &str = "\
Exit codes:
   0  ended as asked
   1  get, put, …: it failed; status: no leader, or a member is unreachable; bench: no request succeeded; check: FAIL; sim: a seed fails;
      verify: damaged or different; recover: not done
   2  bad command line or configuration; nothing was written
  65  data folder refused: locked, of another cluster or member, newer format, damaged; import: the source is no whole
      database of etcd, or the folder is not empty
  66  inspect, verify, recover: no state folder of a member
  69  address in use
  74  disk latched: a write or sync failed; check the disk, then start again
  75  restart me: a passing fault (`cluster` does)
  77  removed from the cluster: this data folder may not return";

impl Exit {
    /// The number.
    #[must_use]
    pub const fn code(self) -> u8 {
        // The discriminants are the interface.
        self as u8
    }

    /// What a node that ended with `error` tells whoever started it.
    #[must_use]
    pub fn of_node(error: &NodeError) -> Self {
        match error {
            NodeError::Config(_) => Self::BadConfiguration,
            NodeError::Data(_)
            | NodeError::Snapshot(_)
            | NodeError::UnknownEntry(_)
            | NodeError::FeatureLevel { .. } => Self::DataRefused,
            NodeError::Bind { .. } => Self::PortInUse,
            NodeError::DiskLatched { .. } => Self::DiskLatched,
            NodeError::Removed => Self::Removed,
            // Started again, it goes on without what was damaged.
            NodeError::SetAside(_) => Self::RestartMe,
            // A bug, or something a newer library knows: starting again loses nothing.
            NodeError::Panicked(_) | _ => Self::RestartMe,
        }
    }

    /// What a member that ended with `code` makes of the whole.
    #[must_use]
    pub const fn of_code(code: i32) -> Self {
        match code {
            0 => Self::Success,
            2 => Self::BadConfiguration,
            65 => Self::DataRefused,
            66 => Self::NoData,
            69 => Self::PortInUse,
            74 => Self::DiskLatched,
            77 => Self::Removed,
            _ => Self::RestartMe,
        }
    }

    /// Whether a member that ended with this code is worth starting again at once.
    #[must_use]
    pub const fn wants_restart(code: i32) -> bool {
        /// What Rust exits with after a panic in `main`.
        const PANICKED: i32 = 101;
        code == Self::RestartMe as i32 || code == PANICKED
    }

    /// A few words for the code of a child.
    #[must_use]
    pub fn describe(code: i32) -> &'static str {
        match code {
            0 => "stopped",
            2 => "bad configuration",
            65 => "data folder refused",
            66 => "no state folder",
            69 => "address in use",
            74 => "disk latched: check the disk",
            75 => "asks to be restarted",
            77 => "removed from the cluster",
            101 => "died of a bug",
            _ => "failed",
        }
    }
}

impl From<Exit> for ExitCode {
    fn from(exit: Exit) -> Self {
        Self::from(exit.code())
    }
}
