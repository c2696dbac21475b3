//! Logs: `tracing` to standard error, INFO unless `RUST_LOG` says otherwise. As etcd, also in etcd's form and elsewhere.

mod json;

use std::fs::{File, OpenOptions};
use std::io::{self, IsTerminal as _};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::LevelFilter;

use self::json::Zap;

/// When to colour what is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
pub enum Color {
    /// On a terminal, unless `NO_COLOR` is set.
    Auto,
    /// Yes.
    Always,
    /// No.
    Never,
}

impl Color {
    /// Whether standard error is coloured.
    #[must_use]
    pub fn on_stderr(self) -> bool {
        match self {
            Self::Always => true,
            Self::Never => false,
            Self::Auto => io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none(),
        }
    }
}

/// Sends everything that `tracing` gets to standard error. Call once.
pub fn init(color: Color) {
    // With `env-filter` the default of no RUST_LOG would be ERROR: it is set here explicitly. Directives match
    // crate names by prefix, so that `raft=trace` shows all of ours.
    let filter =
        EnvFilter::builder().with_default_directive(LevelFilter::INFO.into()).from_env_lossy();
    let subscriber = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(color.on_stderr())
        // A closed standard error must not end the process by a panic in `eprintln!`.
        .log_internal_errors(false)
        .finish();
    if tracing::subscriber::set_global_default(subscriber).is_err() {
        tracing::debug!("logging was set up before");
    }
}

/// How a line of the log looks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Format {
    /// For people.
    Text,
    /// A JSON object with the keys that etcd's log has: `level`, `ts`, `caller`, `msg`, then what belongs to it.
    Json,
}

/// Where lines of the log go.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Output {
    /// Standard error.
    Stderr,
    /// Standard output.
    Stdout,
    /// The end of this file, which is created when missing.
    File(PathBuf),
    /// Nowhere.
    Nowhere,
}

/// What is logged, how and where.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct LogSettings {
    /// What is logged unless `RUST_LOG` says otherwise.
    pub level: LevelFilter,
    /// How.
    pub format: Format,
    /// Where: to all of these.
    pub outputs: Vec<Output>,
}

/// A level by one of etcd's names for it.
#[must_use]
pub fn level(name: &str) -> Option<LevelFilter> {
    match name {
        "debug" => Some(LevelFilter::DEBUG),
        "info" => Some(LevelFilter::INFO),
        "warn" => Some(LevelFilter::WARN),
        // What ends the process is logged as an error here.
        "error" | "dpanic" | "panic" | "fatal" => Some(LevelFilter::ERROR),
        _ => None,
    }
}

/// An output that is open.
#[derive(Debug)]
enum Open {
    Stderr,
    Stdout,
    File(File),
}

/// Writes to all outputs what is written to it.
#[derive(Clone, Debug)]
struct Tee(Arc<[Open]>);

impl io::Write for Tee {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        for output in self.0.iter() {
            // One output that fails does not keep a line from the others, and there is nowhere to say it.
            match output {
                Open::Stderr => io::stderr().write_all(line).ok(),
                Open::Stdout => io::stdout().write_all(line).ok(),
                Open::File(file) => {
                    let mut file = file;
                    file.write_all(line).ok()
                }
            };
        }
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// As [`init`], by etcd's settings. Call once.
///
/// # Errors
/// The file that cannot be opened, and why.
pub fn init_as_etcd(settings: &LogSettings, color: Color) -> Result<(), (&Path, io::Error)> {
    let mut outputs = Vec::new();
    for output in &settings.outputs {
        outputs.push(match output {
            Output::Stderr => Open::Stderr,
            Output::Stdout => Open::Stdout,
            Output::Nowhere => continue,
            Output::File(path) => {
                let file = OpenOptions::new().create(true).append(true).open(path);
                Open::File(file.map_err(|error| (path.as_path(), error))?)
            }
        });
    }
    let tee = Tee(outputs.into());
    let filter =
        EnvFilter::builder().with_default_directive(settings.level.into()).from_env_lossy();
    let plain = settings.outputs.iter().any(|output| *output != Output::Stderr);
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(move || tee.clone())
        .with_ansi(color.on_stderr() && !plain)
        .log_internal_errors(false);
    let set = match settings.format {
        Format::Text => tracing::subscriber::set_global_default(builder.finish()),
        Format::Json => tracing::subscriber::set_global_default(builder.event_format(Zap).finish()),
    };
    if set.is_err() {
        tracing::debug!("logging was set up before");
    }
    Ok(())
}
