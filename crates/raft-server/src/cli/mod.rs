//! The command line: `node`, `cluster`, `status`, `etcd`, `config`, `bench`, `check`, and `sim` where it is built in;
//! `inspect`, `verify` and `recover` for the folder of a stopped member; `import` and `export` from
//! and to etcd; `get`, `put` and the other commands of a client.

mod bench;
mod client;
mod cluster;
mod etcd;
mod generate;
mod inspect;
mod member;
mod node;
mod progress;
mod recover;
mod show;
mod signals;
mod status;
mod transfer;
mod verify;

use std::ffi::OsString;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, CommandFactory as _, Parser, Subcommand};
#[cfg(feature = "sim")]
use raft_sim::cli::End;

use crate::config::CLUSTER_MEMBERS_MAX;
use crate::exit::{self, Exit};
use crate::logging::Color;

/// A replicated key-value store that speaks etcd v3 and survives.
#[derive(Debug, Parser)]
#[command(name = "rusty-raft", version, after_long_help = exit::HELP, subcommand_required = true, arg_required_else_help = true)]
struct Cli {
    /// When to colour the output.
    #[arg(
        long,
        global = true,
        value_enum,
        default_value = "auto",
        hide_possible_values = true,
        hide_default_value = true,
        value_name = "auto|always|never"
    )]
    color: Color,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Node(NodeArgs),
    Cluster(ClusterArgs),
    Status(StatusArgs),
    Inspect(InspectArgs),
    Verify(VerifyArgs),
    Recover(RecoverArgs),
    Import(transfer::ImportArgs),
    Export(transfer::ExportArgs),
    Etcd(EtcdArgs),
    #[command(subcommand)]
    Config(ConfigCommand),
    Bench(bench::BenchArgs),
    Check(bench::CheckArgs),
    Completions(generate::CompletionsArgs),
    Man(generate::ManArgs),
    #[command(flatten)]
    Client(client::ClientCommand),
    #[cfg(feature = "sim")]
    Sim(raft_sim::cli::Arguments),
}

/// Run one member of a cluster.
#[derive(Debug, Args)]
#[command(
    version,
    after_help = "Example, in three shells:\n  rusty-raft node config.ron 0\n  rusty-raft node config.ron 1\n  rusty-raft node config.ron 2"
)]
struct NodeArgs {
    /// The configuration of all members (RON); config.ron in the sources is an example.
    config: PathBuf,
    /// Which of its cluster_members this is, counted from 0.
    #[arg(allow_negative_numbers = true)]
    index: usize,
    /// Join a running cluster at these addresses instead of forming one.
    #[arg(long, value_name = "ADDRESS", value_delimiter = ',')]
    join: Vec<String>,
    /// Stop when standard input closes; how `cluster` keeps its members from outliving it.
    #[arg(long, hide = true)]
    stop_with_stdin: bool,
}

/// Run a whole cluster on this machine, one process per member.
#[derive(Debug, Args)]
#[command(version, after_help = "Example:\n  rusty-raft cluster cluster_config.ron 3")]
struct ClusterArgs {
    /// The configuration (RON); cluster_config.ron in the sources is an example.
    config: PathBuf,
    /// How many members, 1 to 9.
    #[arg(allow_negative_numbers = true, value_parser = num_nodes)]
    num_nodes: usize,
    /// Leave a member that dies as it is.
    #[arg(long)]
    no_restart: bool,
}

/// Run one member by etcd's flags, ETCD_* variables and YAML file: etcd's place in a manifest.
#[derive(Debug, Args)]
#[command(
    disable_help_flag = true,
    after_help = "The same as this program under the name `etcd`. All flags: rusty-raft etcd --help\nExample:\n  rusty-raft etcd --name n0 --data-dir n0.etcd"
)]
struct EtcdArgs {
    /// etcd's flags.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true, value_name = "FLAGS")]
    flags: Vec<OsString>,
}

/// Look at a configuration.
#[derive(Debug, Subcommand)]
enum ConfigCommand {
    /// Show every setting and where it comes from.
    Show {
        /// Those left at their defaults, too.
        #[arg(long)]
        all: bool,
        #[command(subcommand)]
        of: ShowCommand,
    },
}

#[derive(Debug, Subcommand)]
enum ShowCommand {
    Etcd(EtcdArgs),
}

/// Show leader, term, positions and lag of every member.
#[derive(Debug, Args)]
#[command(
    version,
    after_help = "Without addresses, 127.0.0.1:54000 and up are asked, where `cluster` puts its members."
)]
struct StatusArgs {
    /// Members to ask, as host:port.
    #[arg(value_delimiter = ',')]
    addresses: Vec<String>,
    /// For programs.
    #[arg(long)]
    json: bool,
    /// Who asks, where authentication is on. The variable RUSTY_RAFT_USER does the same and shows up in no list of
    /// processes.
    #[arg(long, value_name = "NAME:PASSWORD")]
    user: Option<String>,
}

/// Show what the state folder of a stopped member holds. Changes nothing.
#[derive(Debug, Args)]
#[command(
    version,
    after_help = "Example:\n  rusty-raft inspect raft_data/node_0_data.raft\n\nDamage is listed and does not change the \
                  exit code; `verify` is for that."
)]
struct InspectArgs {
    /// A member's state folder, such as node_0_data.raft.
    folder: PathBuf,
    /// For programs.
    #[arg(long)]
    json: bool,
}

/// Check every checksum of a stopped member's state folder, or of a snapshot. With two: whether they hold the same.
#[derive(Debug, Args)]
#[command(
    version,
    after_help = "Examples:
  rusty-raft verify raft_data/node_0_data.raft && echo sound
  rusty-raft verify backup.db
  rusty-raft verify backup.db raft_data/node_0_data.raft
  rusty-raft verify http://old:2379 http://new:2379

Two are compared by their newest and compacted revisions, number of keys, etcd's HashKV, leases, users and roles. Changes
nothing. Exits with 0 when everything is intact and equal, 1 when something is damaged or differs, 65 when a folder is in
use, of a newer format or not accessible or a file is no whole snapshot, 66 when there is no state folder."
)]
struct VerifyArgs {
    /// A stopped member's state folder, a file of `snapshot save`, the --data-dir of an etcd that is stopped, or a URL.
    what: PathBuf,
    /// What is to be compared with it.
    other: Option<PathBuf>,
    /// Take files whose checksum is missing.
    #[arg(long)]
    skip_hash_check: bool,
    #[command(flatten)]
    to: client::To,
}

/// Make a new cluster of one member from what is left, when a quorum is lost for ever.
#[derive(Debug, Args)]
#[command(
    version,
    after_help = "Example, when the folders of two of three members are gone:\n  rusty-raft recover \
                  raft_data/node_2_data.raft\n\nOf several folders, the one with the longest log goes on. Shows what would \
                  be lost, and asks. Refuses while a quorum may still exist. The old folder is kept as \
                  <folder>.before-recovery."
)]
struct RecoverArgs {
    /// The state folders of all members that are left, all of them stopped.
    #[arg(required = true)]
    folders: Vec<PathBuf>,
    /// Do not ask.
    #[arg(long)]
    yes: bool,
}

fn num_nodes(text: &str) -> Result<usize, String> {
    match text.parse::<usize>() {
        Ok(count) if (1..=CLUSTER_MEMBERS_MAX).contains(&count) => Ok(count),
        _ => Err(format!(
            "a cluster on one machine has 1 to {CLUSTER_MEMBERS_MAX} members, such as 3"
        )),
    }
}

/// Reads the command line, does what it says and returns how the process ends.
#[must_use]
pub fn main() -> ExitCode {
    if let Some(flags) = called_as_etcd(std::env::args_os().collect()) {
        return run(Command::Etcd(EtcdArgs { flags }), Color::Auto);
    }
    let words = client::arrange(std::env::args_os().collect());
    let cli = match Cli::try_parse_from(words) {
        Ok(cli) => cli,
        Err(error) => {
            let code = if error.use_stderr() { Exit::BadConfiguration } else { Exit::Success };
            // Nowhere to say that standard output is closed.
            error.print().ok();
            return code.into();
        }
    };
    run(cli.command, cli.color)
}

/// The flags of etcd, when this is to be it: by its name, or as the first word. They are not like ours: one dash is
/// enough for a long one.
fn called_as_etcd(words: Vec<OsString>) -> Option<Vec<OsString>> {
    let name = |word: &OsString| Path::new(word).file_name().map(OsString::from);
    if words.first().and_then(name).is_some_and(|name| name == "etcd") {
        return Some(words.into_iter().skip(1).collect());
    }
    (words.get(1)? == "etcd").then(|| words.into_iter().skip(2).collect())
}

fn run(command: Command, color: Color) -> ExitCode {
    // One processor is left to the node's own threads: on the way of a write they are what everybody waits for.
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(processors.saturating_sub(1).max(1))
        .thread_name("server")
        .enable_all()
        .build();
    let runtime = match runtime {
        Ok(runtime) => runtime,
        Err(error) => {
            complain(&format!("rusty-raft: cannot start: {error}"));
            return Exit::RestartMe.into();
        }
    };
    let exit = runtime.block_on(async {
        match command {
            Command::Node(args) => node::run(&args, color).await,
            Command::Cluster(args) => cluster::run(&args, color).await,
            Command::Status(args) => status::run(&args).await,
            Command::Inspect(args) => inspect::run(&args),
            Command::Verify(args) => verify::run(&args).await,
            Command::Recover(args) => recover::run(&args).await,
            Command::Import(args) => transfer::import(&args).await,
            Command::Export(args) => transfer::export(&args).await,
            Command::Etcd(args) => etcd::run(&etcd::words(args.flags), color).await,
            Command::Config(ConfigCommand::Show { all, of: ShowCommand::Etcd(args) }) => {
                show::run(&etcd::words(args.flags), all)
            }
            Command::Bench(args) => bench::run(&args).await,
            Command::Check(args) => bench::check(&args).await,
            Command::Completions(args) => generate::completions(Cli::command(), &args),
            Command::Man(args) => generate::man(Cli::command(), &args),
            Command::Client(command) => client::run(&command).await,
            #[cfg(feature = "sim")]
            Command::Sim(args) => match raft_sim::cli::main(&args, "rusty-raft sim") {
                End::Fine => Exit::Success,
                End::Failed => Exit::Failure,
                End::BadArguments => Exit::BadConfiguration,
            },
        }
    });
    // Reading standard input cannot be interrupted; nothing else is left to wait for.
    runtime.shutdown_background();
    exit.into()
}

/// Prints to standard error; what cannot be printed is lost.
fn complain(text: &str) {
    writeln!(io::stderr().lock(), "{text}").ok();
}

/// Prints to standard output; what cannot be printed is lost.
fn say(text: &str) {
    writeln!(io::stdout().lock(), "{text}").ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_command_line_is_well_formed() {
        Cli::command().debug_assert();
    }

    #[test]
    fn the_name_or_the_first_word_makes_it_etcd() {
        let flags = |words: &[&str]| called_as_etcd(words.iter().map(OsString::from).collect());
        let some = |words: &[&str]| Some(words.iter().map(OsString::from).collect());
        assert_eq!(flags(&["/usr/bin/etcd", "-name", "a"]), some(&["-name", "a"]));
        assert_eq!(flags(&["rusty-raft", "etcd", "--name=a"]), some(&["--name=a"]));
        assert_eq!(flags(&["rusty-raft", "node", "etcd"]), None);
        assert_eq!(flags(&["rusty-raft"]), None);
        assert_eq!(flags(&[]), None);
    }

    #[test]
    fn clusters_have_one_to_nine_members() {
        for bad in ["0", "10", "-1", "three", ""] {
            assert!(num_nodes(bad).is_err(), "{bad}");
        }
        assert_eq!(num_nodes("1"), Ok(1));
        assert_eq!(num_nodes("9"), Ok(9));
    }
}
