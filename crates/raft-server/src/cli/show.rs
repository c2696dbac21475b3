//! `rusty-raft config show etcd …`: where each setting comes from.

use super::etcd::{is_formed, variables};
use super::{complain, say};
use crate::config::etcd::{self, EtcdConfig, Origin, Row};
use crate::exit::Exit;

/// Prints the settings that a member started with these words would have; those left at their defaults when `all`.
pub(super) fn run(words: &[String], all: bool) -> Exit {
    let rows = etcd::table(words, variables()).and_then(|rows| {
        EtcdConfig::read(words, variables(), is_formed).map(|config| (rows, config))
    });
    match rows {
        Ok((rows, config)) => {
            let shown = rows.iter().filter(|row| all || row.origin != Origin::Default);
            for row in shown {
                for line in lines(row) {
                    say(&line);
                }
            }
            for warning in &config.warnings {
                say(&format!("warning: {warning}"));
            }
            Exit::Success
        }
        Err(problem) => {
            complain(&problem.to_string());
            Exit::BadConfiguration
        }
    }
}

/// A line for what counts, and one for each value that does not.
fn lines(row: &Row) -> Vec<String> {
    let mut lines = vec![format!("{:<32} {:<40} {}", row.name, quoted(&row.value), row.origin)];
    for (value, origin) in row.overruled.iter().rev() {
        lines.push(format!("{:<32} {:<40} {origin}", "", format!("not {}", quoted(value))));
    }
    lines
}

fn quoted(value: &str) -> String {
    if value.is_empty() { "''".to_owned() } else { value.to_owned() }
}
