//! `completions` and `man`: what shells and manuals say of this command line, from the same definitions.

use std::fs;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use clap::{Args, Command, ValueEnum};
use clap_complete::Shell;

use super::{complain, say};
use crate::exit::Exit;

/// Print what makes a shell complete words of this command line.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  rusty-raft completions bash > /etc/bash_completion.d/rusty-raft
  rusty-raft completions zsh > /usr/share/zsh/site-functions/_rusty-raft
  rusty-raft completions fish > ~/.config/fish/completions/rusty-raft.fish")]
pub(super) struct CompletionsArgs {
    /// bash, zsh or fish.
    #[arg(value_enum, hide_possible_values = true)]
    shell: Kind,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Kind {
    Bash,
    Zsh,
    Fish,
}

/// Write the manual's pages, one for each command.
#[derive(Debug, Args)]
#[command(after_help = "Example:\n  rusty-raft man /usr/local/share/man/man1")]
pub(super) struct ManArgs {
    /// Where they go; created when missing.
    folder: PathBuf,
}

pub(super) fn completions(mut command: Command, args: &CompletionsArgs) -> Exit {
    let shell = match args.shell {
        Kind::Bash => Shell::Bash,
        Kind::Zsh => Shell::Zsh,
        Kind::Fish => Shell::Fish,
    };
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut command, "rusty-raft", &mut text);
    match io::stdout().lock().write_all(&text) {
        Ok(()) => Exit::Success,
        Err(_) => Exit::Failure,
    }
}

pub(super) fn man(command: Command, args: &ManArgs) -> Exit {
    match write_pages(command, &args.folder) {
        Ok(()) => {
            say(&format!("wrote the pages to {}", args.folder.display()));
            Exit::Success
        }
        Err(error) => {
            complain(&format!("rusty-raft: {} cannot be written: {error}", args.folder.display()));
            Exit::Failure
        }
    }
}

fn write_pages(command: Command, folder: &Path) -> io::Result<()> {
    fs::create_dir_all(folder)?;
    clap_mangen::generate_to(command, folder)
}
