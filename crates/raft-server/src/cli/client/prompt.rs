//! Passwords, asked for on a terminal without showing them.

use std::io::{self, IsTerminal as _, Write as _};

use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};

use super::Failure;

/// Asks once.
pub(super) fn password(prompt: &str) -> Result<String, Failure> {
    let stdin = io::stdin();
    if !stdin.is_terminal() {
        return Err(Failure::bad(
            "a password is needed, and standard input is no terminal to ask at\n\n  right  --user=name:password, or --password",
        ));
    }
    let failed =
        |error: io::Error| Failure::failed(format!("the password cannot be asked for: {error}"));
    let before = tcgetattr(&stdin).map_err(|error| failed(error.into()))?;
    let mut silent = before.clone();
    silent.local_modes.remove(LocalModes::ECHO);
    let mut terminal = io::stderr().lock();
    write!(terminal, "{prompt}").and_then(|()| terminal.flush()).map_err(failed)?;
    tcsetattr(&stdin, OptionalActions::Flush, &silent).map_err(|error| failed(error.into()))?;
    let mut line = String::new();
    let read = stdin.read_line(&mut line);
    // Whatever was read: the terminal is to be as it was.
    tcsetattr(&stdin, OptionalActions::Flush, &before).map_err(|error| failed(error.into()))?;
    writeln!(terminal).ok();
    read.map_err(failed)?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

/// Asks twice for a new one.
pub(super) fn new_password(user: &str) -> Result<String, Failure> {
    let first = password(&format!("Password of {user}: "))?;
    if first.is_empty() {
        return Err(Failure::bad("the password is empty"));
    }
    if first != password(&format!("Type password of {user} again for confirmation: "))? {
        return Err(Failure::bad("the two passwords differ"));
    }
    Ok(first)
}

/// The first word of standard input: for `--interactive=false`.
pub(super) fn from_stdin() -> Result<String, Failure> {
    let mut line = String::new();
    let read = io::stdin().read_line(&mut line);
    read.map_err(|error| Failure::failed(format!("standard input cannot be read: {error}")))?;
    Ok(line.split_whitespace().next().unwrap_or_default().to_owned())
}
