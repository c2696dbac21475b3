//! The one binary: see [`raft_server::cli`].

use std::process::ExitCode;

fn main() -> ExitCode {
    raft_server::cli::main()
}
