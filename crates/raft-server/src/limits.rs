//! The system's limits on this process.

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

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
