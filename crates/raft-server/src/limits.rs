//! The system's limits on this process.

use std::fs;

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustix::system::sysinfo;

/// The store's default share of the memory is one in this many parts: what it holds takes more room than it is long.
const MEMORY_PARTS: u64 = 4;
/// Where the limit of a control group stands.
const CGROUP_LIMIT: &str = "/sys/fs/cgroup/memory.max";

/// Raises the limit on open files to what the system allows: every client is one, and the usual 1024 is few.
pub fn raise_open_files() {
    let Rlimit { current, maximum } = getrlimit(Resource::Nofile);
    if current == maximum {
        return;
    }
    match setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }) {
        Ok(()) => tracing::debug!("open files: from {current:?} to {maximum:?}"),
        Err(error) => tracing::debug!("the limit on open files stays at {current:?}: {error}"),
    }
}

/// How many files this process may have open; `None` when there is no limit.
#[must_use]
pub fn open_files() -> Option<u64> {
    getrlimit(Resource::Nofile).current
}

/// The bytes that a store may take on this machine when nobody says otherwise: a share of the memory that this process
/// may use.
#[must_use]
pub fn quota_bytes() -> u64 {
    let system = sysinfo();
    let unit = u64::from(system.mem_unit).max(1);
    let machine = system.totalram.saturating_mul(unit);
    // "max", or no such file, where there is no limit.
    let group = fs::read_to_string(CGROUP_LIMIT).ok().and_then(|text| text.trim().parse().ok());
    machine.min(group.unwrap_or(u64::MAX)) / MEMORY_PARTS
}
