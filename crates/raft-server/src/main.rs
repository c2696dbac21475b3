//! The one binary: see [`raft_server::cli`].

use std::process::ExitCode;

/// Members allocate in some threads what others free, and grow for as long as they are written to: both are what the C
/// library's allocator is slow at.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    raft_server::cli::main()
}
