//! The words of a command line as etcdctl takes them, arranged so that one definition reads them: flags of the client
//! before the command, and switches with a value, `--prefix=true`. And words taken apart: numbers, lines of requests.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};

use clap::{Arg, ArgAction, Args as _, Command, Subcommand as _};

use super::to::To;
use super::{ClientCommand, go};
use crate::config::etcd::values::switch;

/// The words of a process, rearranged where a command of the client follows; all others untouched.
pub(in crate::cli) fn arrange(words: Vec<OsString>) -> Vec<OsString> {
    let commands = ClientCommand::augment_subcommands(Command::new("client"));
    let global = To::augment_args(Command::new("to"));
    let mut place = 1;
    while let Some(length) = words.get(place).and_then(|word| words_of_flag(&global, word)) {
        place += length;
    }
    let named = words.get(place).and_then(|word| word.to_str());
    let Some(command) = named.and_then(|name| commands.find_subcommand(name)) else {
        return words;
    };
    let mut rest = words;
    let mut arranged: Vec<OsString> = rest.drain(..1).collect();
    let before: Vec<OsString> = rest.drain(..place - 1).collect();
    arranged.extend(rest.drain(..1));
    arranged.extend(plain(&global, before));
    // What follows the name of a lock is somebody else's command line.
    arranged.extend(if command.get_name() == "lock" { rest } else { plain(command, rest) });
    arranged
}

/// How many words a flag of this command is; `None` for what is none.
fn words_of_flag(command: &Command, word: &OsString) -> Option<usize> {
    let word = word.to_str()?;
    let takes_word = |arg: &Arg| {
        matches!(arg.get_action(), ArgAction::Set | ArgAction::Append)
            && arg.get_num_args().is_none_or(|range| range.min_values() > 0)
    };
    if let Some(long) = word.strip_prefix("--") {
        let (name, value) = long.split_once('=').map_or((long, None), |(a, b)| (a, Some(b)));
        let arg = command.get_arguments().find(|arg| arg.get_long() == Some(name))?;
        return Some(if value.is_none() && takes_word(arg) { 2 } else { 1 });
    }
    let mut short = word.strip_prefix('-')?.chars();
    let name = short.next()?;
    let arg = command.get_arguments().find(|arg| arg.get_short() == Some(name))?;
    Some(if short.as_str().is_empty() && takes_word(arg) { 2 } else { 1 })
}

/// Switches without a value: `--prefix=true` as `--prefix`, and nothing for `--prefix=false`.
pub(super) fn plain(command: &Command, words: Vec<OsString>) -> Vec<OsString> {
    let mut switches = Vec::new();
    collect_switches(command, &mut switches);
    let mut is_over = false;
    let replaced = words.into_iter().filter_map(|word| {
        is_over |= word == "--";
        let parts = word.to_str().and_then(|text| text.strip_prefix("--")?.split_once('='));
        match parts {
            Some((name, value)) if !is_over && switches.iter().any(|it| it == name) => {
                match switch(value) {
                    Some(true) => Some(OsString::from(format!("--{name}"))),
                    Some(false) => None,
                    // Whoever parses it says what is wrong.
                    None => Some(word),
                }
            }
            _ => Some(word),
        }
    });
    replaced.collect()
}

fn collect_switches(command: &Command, switches: &mut Vec<String>) {
    let own = command.get_arguments().filter(|arg| matches!(arg.get_action(), ArgAction::SetTrue));
    switches.extend(own.filter_map(|arg| arg.get_long().map(str::to_owned)));
    for inner in command.get_subcommands() {
        collect_switches(inner, switches);
    }
}

/// A lease's number, in hexadecimal digits.
pub(super) fn lease_id(text: &str) -> Result<i64, String> {
    i64::from_str_radix(text, 16).map_err(|_| {
        String::from(
            "a lease is named by hexadecimal digits, as `lease grant` and `lease list` show them",
        )
    })
}

/// A member's number, in hexadecimal digits.
pub(super) fn member_id(text: &str) -> Result<u64, String> {
    u64::from_str_radix(text, 16).map_err(|_| {
        String::from("a member is named by hexadecimal digits, as `member list` shows them")
    })
}

/// Takes a line apart: words, 'words in quotes' and "with Go's escapes".
pub(super) fn argify(line: &str) -> Result<Vec<OsString>, String> {
    let mut words = Vec::new();
    let mut rest = line.trim_start();
    while let Some(first) = rest.chars().next() {
        match first {
            '"' => {
                let (word, after) = go::unquoted(rest).ok_or_else(|| {
                    format!("the quotes are not closed, or an escape is wrong: {rest}")
                })?;
                words.push(OsString::from_vec(word));
                rest = after;
            }
            '\'' => {
                let (word, after) = rest[1..]
                    .split_once('\'')
                    .ok_or_else(|| format!("the quotes are not closed: {rest}"))?;
                words.push(OsString::from(word));
                rest = after;
            }
            _ => {
                let end = rest.find(char::is_whitespace).unwrap_or(rest.len());
                words.push(OsString::from(&rest[..end]));
                rest = &rest[end..];
            }
        }
        rest = rest.trim_start();
    }
    Ok(words)
}

/// Words joined again, for messages.
pub(super) fn shown(words: &[OsString]) -> String {
    let words: Vec<_> = words.iter().map(|word| String::from_utf8_lossy(word.as_bytes())).collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn arranged(line: &str) -> String {
        shown(&arrange(line.split(' ').map(OsString::from).collect()))
    }

    #[test]
    fn flags_before_a_command_and_switches_with_values_are_taken() {
        for (line, wanted) in [
            ("x get a", "x get a"),
            ("x --endpoints a:1 -w json get a", "x get --endpoints a:1 -w json a"),
            ("x --endpoints=a:1 --hex=false put a b", "x put --endpoints=a:1 a b"),
            ("x get a --prefix=true --keys-only=false", "x get a --prefix"),
            ("x get -- --prefix=true", "x get -- --prefix=true"),
            ("x get a --prefix=maybe", "x get a --prefix=maybe"),
            ("x lock a echo --json=true", "x lock a echo --json=true"),
            ("x -wjson member list", "x member -wjson list"),
            ("x --insecure-transport=false get a", "x get --insecure-transport=false a"),
            ("x node get --prefix=true", "x node get --prefix=true"),
            ("x --color always get a", "x --color always get a"),
            ("x status", "x status"),
            ("x", "x"),
        ] {
            assert_eq!(arranged(line), wanted);
        }
    }

    #[test]
    fn lines_are_taken_apart() {
        let words = |line: &str| argify(line).map(|words| shown(&words));
        assert_eq!(words(r#"  put "a b" 'c "d' e'f "#), Ok(r#"put a b c "d e'f"#.to_owned()));
        assert_eq!(argify(r#"put k """#).unwrap().len(), 3);
        assert_eq!(words(r#"put "\x61\n""#), Ok("put a\n".to_owned()));
        assert!(words("put \"a").is_err());
        assert!(words("put 'a").is_err());
    }

    #[test]
    fn numbers_are_hexadecimal() {
        assert_eq!(lease_id("3c8e16d4eeecb322"), Ok(4_363_450_192_765_956_898));
        assert_eq!(member_id("94c749c3bc8678ce"), Ok(10_720_618_543_009_134_798));
        assert!(lease_id("x").unwrap_err().contains("lease list"));
        assert!(member_id("").unwrap_err().contains("member list"));
    }
}
