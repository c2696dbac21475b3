//! Members are added and removed, back to back, while others write and any process may be killed at any moment.
//!
//! Every member is a process of its own that embeds the library; this program is both the members and what drives
//! them. At the end no acknowledged write is missing, no refused one was applied, none twice, and every member of
//! the final configuration takes writes. What the clients saw meanwhile is linearizable.
//!
//! ```text
//! cargo test -p rusty-raft --test churn                                  # a few seconds
//! cargo test --release -p rusty-raft --test churn -- --rounds 100        # what .ci/long runs
//! ```
//!
//! It has a `main` of its own because a test harness cannot be a member.

#![expect(clippy::print_stdout, reason = "it is a test that talks like the harness does")]

use std::process::ExitCode;

mod history;
mod machine;
mod member;
mod process;
mod scenario;

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime can be made");
    if let Some(("member", arguments)) =
        arguments.split_first().map(|(first, rest)| (first.as_str(), rest))
    {
        let code = runtime.block_on(member::run(arguments)).unwrap_or_else(|error| {
            tracing::error!("{error}");
            ExitCode::FAILURE
        });
        // A thread of the runtime may still be reading standard input.
        runtime.shutdown_background();
        return code;
    }
    let value = |name: &str| {
        let at = arguments.iter().position(|argument| argument == name)?;
        arguments.get(at + 1)?.parse().ok()
    };
    // As with the harness, a name selects tests; what follows an option is none.
    let filter = arguments.first().filter(|first| !first.starts_with("--"));
    if arguments.iter().any(|argument| argument == "--list")
        || filter.is_some_and(|name| !"members_come_and_go".contains(name.as_str()))
    {
        return ExitCode::SUCCESS;
    }
    let (rounds, seed) = (value("--rounds").unwrap_or(3), value("--seed").unwrap_or(1));
    println!("test members_come_and_go: {rounds} rounds, seed {seed}");
    let local = tokio::task::LocalSet::new();
    local.block_on(&runtime, scenario::members_come_and_go(rounds, seed));
    println!("test members_come_and_go ... ok");
    ExitCode::SUCCESS
}
