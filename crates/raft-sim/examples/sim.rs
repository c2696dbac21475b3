//! `rusty-raft sim` without the server around it, which builds sooner:
//! `cargo run --release -p rusty-raft-sim --features cli --example sim -- --seeds 0..1000`. Built with
//! `RUSTFLAGS="--cfg mutants"`, `--mutant 3` turns deliberate bug 3 on (docs/testing.md).

use std::process::ExitCode;

use clap::Parser;
use raft_sim::cli;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Run whole clusters in one thread under one seed each, with faults, and check everything.
#[derive(Debug, Parser)]
#[command(name = "sim")]
struct Cli {
    #[command(flatten)]
    arguments: cli::Arguments,
}

fn main() -> ExitCode {
    let program = std::env::args().next().unwrap_or_default();
    cli::main(&Cli::parse().arguments, &program).into()
}
