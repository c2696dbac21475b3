//! A client for people without etcdctl: its commands, flags, variables and output, and an exit code of 2 for what is
//! wrong on the command line.
//!
//! A command knows what it asks for and how the answer is printed; [`dial`] knows whom to ask. Absent on purpose:
//! `make-mirror`, `migrate` and interactive watching.

mod auth;
mod dial;
mod endpoint;
mod go;
mod json;
mod kv;
mod lease;
mod maintenance;
mod member;
mod print;
mod prompt;
mod recipes;
mod snapshot;
mod table;
mod to;
mod txn;
mod watch;
mod words;

use clap::{Args, Subcommand};
use tonic::Status;

use self::dial::Cluster;
pub(super) use self::snapshot::{Part, Restore, fetch};
pub(super) use self::to::To;
pub(super) use self::words::arrange;
use super::complain;
use crate::exit::Exit;

/// A command with what all commands take.
#[derive(Clone, Debug, Args)]
pub(super) struct Client<C: Args> {
    #[command(flatten)]
    what: C,
    #[command(flatten)]
    to: To,
}

/// A group of commands with what all commands take.
#[derive(Clone, Debug, Args)]
pub(super) struct Group<C: Subcommand> {
    #[command(subcommand)]
    what: C,
    #[command(flatten)]
    to: To,
}

/// The commands of a client.
#[derive(Clone, Debug, Subcommand)]
pub(super) enum ClientCommand {
    /// Show the value of a key, or of a range of keys.
    #[command(
        after_help = "Examples:\n  rusty-raft get hello\n  rusty-raft get /app/ --prefix --keys-only --limit=10\n  rusty-raft get hello --rev=5 --json"
    )]
    Get(Client<kv::Get>),
    /// Write a key.
    #[command(
        after_help = "Examples:\n  rusty-raft put hello world\n  rusty-raft put motd < /etc/motd\n  rusty-raft put key -- -value\n\nA value that begins with - comes after --."
    )]
    Put(Client<kv::Put>),
    /// Remove a key, or a range of keys.
    #[command(
        after_help = "Examples:\n  rusty-raft del hello\n  rusty-raft del /app/ --prefix --prev-kv"
    )]
    Del(Client<kv::Del>),
    /// Write several keys at once, or others if something does not hold.
    #[command(
        after_help = "Standard input holds three lists, each ended by an empty line: compares, requests for success, requests
for failure. A compare is target(\"key\") operator \"value\": the target is value, mod, create, version or lease,
the operator =, !=, < or >.

Example:
  rusty-raft txn <<'END'
  mod(\"hello\") > \"0\"

  put hello again

  put hello first

  END"
    )]
    Txn(Client<txn::Txn>),
    /// Forget changes before a revision.
    #[command(visible_alias = "compact")]
    Compaction(Client<kv::Compaction>),
    /// Show changes as they happen, or run a command for each.
    #[command(
        after_help = "Examples:\n  rusty-raft watch hello\n  rusty-raft watch /app/ --prefix --rev=1\n  rusty-raft watch hello -- sh -c 'echo $ETCD_WATCH_VALUE'"
    )]
    Watch(Client<watch::Watch>),
    /// Keys that end by themselves: make, renew, show and end leases.
    Lease(Group<lease::Lease>),
    /// Add, remove, move, promote and list members.
    Member(Group<member::Member>),
    /// Ask each endpoint how it is.
    Endpoint(Client<endpoint::Endpoint>),
    /// Accepted for etcd's sake: members give back space by themselves.
    Defrag(Client<endpoint::Defrag>),
    /// Show alarms, or take them back.
    Alarm(Group<maintenance::Alarm>),
    /// Make another member the leader.
    MoveLeader(Client<maintenance::MoveLeader>),
    /// Save what a member holds, look at what was saved, begin a cluster with it.
    Snapshot(Group<snapshot::Snapshot>),
    /// Switch authentication on and off.
    Auth(Group<auth::Auth>),
    /// Add, change and list users.
    User(Group<auth::User>),
    /// Add, change and list roles.
    Role(Group<auth::Role>),
    /// Hold a lock until stopped, or while a command runs.
    #[command(
        after_help = "Examples:\n  rusty-raft lock nightly\n  rusty-raft lock nightly ./backup.sh --all"
    )]
    Lock(Client<recipes::Lock>),
    /// Stand for election, or say who leads.
    #[command(
        after_help = "Examples:\n  rusty-raft elect office alice\n  rusty-raft elect --listen office"
    )]
    Elect(Client<recipes::Elect>),
}

/// Why a command was not carried out.
#[derive(Debug)]
struct Failure {
    exit: Exit,
    /// Empty: everything was said.
    words: String,
}

impl Failure {
    /// The command line or a variable cannot be meant.
    fn bad(words: impl Into<String>) -> Self {
        Self { exit: Exit::BadConfiguration, words: words.into() }
    }

    /// It was asked for, and is not so.
    fn failed(words: impl Into<String>) -> Self {
        Self { exit: Exit::Failure, words: words.into() }
    }

    /// Somebody has said why.
    fn silent() -> Self {
        Self::failed("")
    }

    /// With what was being done.
    fn inside(self, what: &str) -> Self {
        Self { words: format!("{what} ({})", self.words), ..self }
    }
}

impl From<Status> for Failure {
    fn from(status: Status) -> Self {
        Self::failed(status.message())
    }
}

/// Carries out a command.
pub(super) async fn run(command: &ClientCommand) -> Exit {
    match carry_out(command).await {
        Ok(()) => Exit::Success,
        Err(failure) => {
            if !failure.words.is_empty() {
                complain(&format!("Error: {}", failure.words));
            }
            failure.exit
        }
    }
}

async fn carry_out(command: &ClientCommand) -> Result<(), Failure> {
    use ClientCommand as C;
    match command {
        C::Get(Client { what, to }) => what.run(&Cluster::find(to).await?).await,
        C::Put(Client { what, to }) => what.run(&Cluster::find(to).await?).await,
        C::Del(Client { what, to }) => what.run(&Cluster::find(to).await?).await,
        C::Txn(Client { what, to }) => what.run(&Cluster::find(to).await?).await,
        C::Compaction(Client { what, to }) => what.run(&Cluster::find(to).await?).await,
        C::Watch(Client { what, to }) => what.run(&Cluster::find(to).await?).await,
        C::Lease(Group { what, to }) => what.run(&Cluster::find(to).await?).await,
        C::Member(Group { what, to }) => what.run(&Cluster::find(to).await?).await,
        C::Endpoint(Client { what, to }) => what.run(&Cluster::find(to).await?).await,
        C::Defrag(Client { what, to }) => what.run(&Cluster::find(to).await?).await,
        C::Alarm(Group { what, to }) => what.run(&Cluster::find(to).await?).await,
        C::MoveLeader(Client { what, to }) => what.run(&Cluster::find(to).await?).await,
        C::Snapshot(Group { what, to }) => what.run(to).await,
        C::Auth(Group { what, to }) => what.run(&Cluster::find(to).await?).await,
        C::User(Group { what, to }) => what.run(&Cluster::find(to).await?).await,
        C::Role(Group { what, to }) => what.run(&Cluster::find(to).await?).await,
        C::Lock(Client { what, to }) => what.run(&Cluster::find(to).await?).await,
        C::Elect(Client { what, to }) => what.run(&Cluster::find(to).await?).await,
    }
}
