//! Whom to ask, as whom, for how long, and how to print the answer: what every command of the client takes, from flags
//! or from `ETCDCTL_*` variables. Flags win.

use std::ffi::OsString;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, ValueEnum};

use super::Failure;
use crate::config::etcd::values::{duration as go_duration, switch};

const COMMAND_TIMEOUT: Duration = Duration::from_secs(5);
const DIAL_TIMEOUT: Duration = Duration::from_secs(2);
const KEEPALIVE_TIME: Duration = Duration::from_secs(2);
const KEEPALIVE_TIMEOUT: Duration = Duration::from_secs(6);

/// How an answer is printed.
#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
pub(super) enum Format {
    Simple,
    Json,
    Fields,
    Table,
    Protobuf,
}

/// What every command of the client takes.
#[derive(Clone, Debug, Args)]
#[command(next_help_heading = "Whom to ask, and how to answer (also as ETCDCTL_* variables)")]
pub(in crate::cli) struct To {
    /// Members, as host:port, http://host:port or https://host:port [default: 127.0.0.1:2379 if something listens there,
    /// else the cluster at 127.0.0.1:54000 and up].
    #[arg(long, global = true, value_name = "LIST", value_delimiter = ',')]
    endpoints: Vec<String>,
    /// Who asks; the password is asked for if it is nowhere given.
    #[arg(long = "user", global = true, value_name = "NAME[:PASSWORD]")]
    as_user: Option<String>,
    /// The password, when --user is only a name.
    #[arg(long = "password", global = true, hide_short_help = true, value_name = "PASSWORD")]
    with_password: Option<String>,
    /// simple, json, fields, table or protobuf.
    #[arg(
        short = 'w',
        long,
        global = true,
        value_enum,
        value_name = "FORMAT",
        hide_possible_values = true
    )]
    write_out: Option<Format>,
    /// The same as --write-out=json.
    #[arg(long, global = true, conflicts_with = "write_out")]
    json: bool,
    /// simple: keys and values byte by byte, as \x61.
    #[arg(long, global = true, hide_short_help = true)]
    hex: bool,
    /// How long a command may take [default: 5s].
    #[arg(long, global = true, hide_short_help = true, value_name = "TIME", value_parser = time)]
    command_timeout: Option<Duration>,
    /// How long connecting to one member may take [default: 2s].
    #[arg(long, global = true, hide_short_help = true, value_name = "TIME", value_parser = time)]
    dial_timeout: Option<Duration>,
    /// A connection on which nothing is heard is asked after this time [default: 2s].
    #[arg(long, global = true, hide_short_help = true, value_name = "TIME", value_parser = time)]
    keepalive_time: Option<Duration>,
    /// And is given up after this time without an answer [default: 6s].
    #[arg(long, global = true, hide_short_help = true, value_name = "TIME", value_parser = time)]
    keepalive_timeout: Option<Duration>,
    /// The authorities that members' certificates come from (PEM) [default: the system's].
    #[arg(long, global = true, hide_short_help = true, value_name = "FILE")]
    cacert: Option<PathBuf>,
    /// The certificate to present (PEM).
    #[arg(long, global = true, hide_short_help = true, value_name = "FILE")]
    cert: Option<PathBuf>,
    /// Its key (PEM).
    #[arg(long = "key", global = true, hide_short_help = true, value_name = "FILE")]
    key_file: Option<PathBuf>,
    /// Take whoever answers for a member: for tests only.
    #[arg(long, global = true, hide_short_help = true)]
    insecure_skip_tls_verify: bool,
    /// Whether endpoints without http:// or https:// are spoken to in plain text [default: true, unless a certificate is
    /// given].
    #[arg(long, global = true, hide_short_help = true, value_name = "true|false", num_args = 0..=1, require_equals = true, default_missing_value = "true", value_parser = go_bool)]
    insecure_transport: Option<bool>,
}

/// One of Go's durations, as a flag wants it.
fn time(text: &str) -> Result<Duration, String> {
    go_duration(text).ok_or_else(|| String::from("a time is written 5s, 500ms or 1m30s"))
}

fn go_bool(text: &str) -> Result<bool, String> {
    switch(text).ok_or_else(|| String::from("that is true or false"))
}

/// What [`To`] and the variables come to.
#[derive(Clone, Debug)]
pub(super) struct Wishes {
    /// Empty: nobody said.
    pub(super) endpoints: Vec<String>,
    pub(super) user: Option<String>,
    pub(super) password: Option<String>,
    pub(super) format: Format,
    pub(super) hex: bool,
    pub(super) command_timeout: Duration,
    /// A time was named, by flag or variable.
    pub(super) command_timeout_named: bool,
    pub(super) dial_timeout: Duration,
    pub(super) keepalive: (Duration, Duration),
    pub(super) cacert: Option<PathBuf>,
    pub(super) cert: Option<PathBuf>,
    pub(super) key: Option<PathBuf>,
    pub(super) skip_verify: bool,
    pub(super) insecure_transport: Option<bool>,
}

impl To {
    /// The same, of this member.
    pub(super) fn at(&self, endpoint: &str) -> Self {
        Self { endpoints: vec![endpoint.to_owned()], ..self.clone() }
    }

    /// The answer is for programs.
    pub(in crate::cli) fn wants_json(&self) -> bool {
        self.json || self.write_out == Some(Format::Json)
    }

    /// Flags before variables before defaults.
    pub(super) fn wishes(&self) -> Result<Wishes, Failure> {
        self.wishes_with(|name| std::env::var_os(name).filter(|value| !value.is_empty()))
    }

    fn wishes_with(&self, variable: impl Fn(&str) -> Option<OsString>) -> Result<Wishes, Failure> {
        let raw = |name: &str| variable(&format!("ETCDCTL_{name}"));
        let text = |name: &str| raw(name).map(|value| value.to_string_lossy().into_owned());
        let wrong = |name: &str, right: &str| {
            Failure::bad(format!("the variable ETCDCTL_{name} is wrong: {right}"))
        };
        let time_of = |flag: Option<Duration>, name: &str| match (flag, text(name)) {
            (Some(time), _) => Ok(Some(time)),
            (None, None) => Ok(None),
            (None, Some(value)) => time(&value).map(Some).map_err(|right| wrong(name, &right)),
        };
        let switch_of = |flag: Option<bool>, name: &str| match (flag, text(name)) {
            (Some(flag), _) => Ok(Some(flag)),
            (None, None) => Ok(None),
            (None, Some(value)) => go_bool(&value).map(Some).map_err(|right| wrong(name, &right)),
        };
        let format = match (self.json, self.write_out, text("WRITE_OUT")) {
            (true, _, _) => Format::Json,
            (false, Some(format), _) => format,
            (false, None, None) => Format::Simple,
            (false, None, Some(name)) => Format::from_str(&name, false)
                .map_err(|_| wrong("WRITE_OUT", "it is simple, json, fields, table or protobuf"))?,
        };
        let endpoints = if self.endpoints.is_empty() {
            text("ENDPOINTS")
                .map_or_else(Vec::new, |list| list.split(',').map(str::to_owned).collect())
        } else {
            self.endpoints.clone()
        };
        let own_user = || variable("RUSTY_RAFT_USER").map(|it| it.to_string_lossy().into_owned());
        let command_timeout = time_of(self.command_timeout, "COMMAND_TIMEOUT")?;
        let path = |flag: &Option<PathBuf>, name: &str| {
            flag.clone().or_else(|| raw(name).map(PathBuf::from))
        };
        let yes = |flag: bool| flag.then_some(true);
        let skip = switch_of(yes(self.insecure_skip_tls_verify), "INSECURE_SKIP_TLS_VERIFY")?;
        Ok(Wishes {
            endpoints,
            user: self.as_user.clone().or_else(|| text("USER")).or_else(own_user),
            password: self.with_password.clone().or_else(|| text("PASSWORD")),
            format,
            hex: switch_of(yes(self.hex), "HEX")?.unwrap_or(false),
            command_timeout: command_timeout.unwrap_or(COMMAND_TIMEOUT),
            command_timeout_named: command_timeout.is_some(),
            dial_timeout: time_of(self.dial_timeout, "DIAL_TIMEOUT")?.unwrap_or(DIAL_TIMEOUT),
            keepalive: (
                time_of(self.keepalive_time, "KEEPALIVE_TIME")?.unwrap_or(KEEPALIVE_TIME),
                time_of(self.keepalive_timeout, "KEEPALIVE_TIMEOUT")?.unwrap_or(KEEPALIVE_TIMEOUT),
            ),
            cacert: path(&self.cacert, "CACERT"),
            cert: path(&self.cert, "CERT"),
            key: path(&self.key_file, "KEY"),
            skip_verify: skip.unwrap_or(false),
            insecure_transport: switch_of(self.insecure_transport, "INSECURE_TRANSPORT")?,
        })
    }
}

#[cfg(test)]
mod tests {
    use clap::Parser;

    use super::*;

    #[derive(Debug, Parser)]
    struct Only {
        #[command(flatten)]
        to: To,
    }

    fn wishes(words: &[&str], variables: &[(&str, &str)]) -> Result<Wishes, String> {
        let words = std::iter::once("x").chain(words.iter().copied());
        let only = Only::try_parse_from(words).map_err(|error| error.to_string())?;
        let variable = |name: &str| {
            variables.iter().find(|(it, _)| *it == name).map(|(_, value)| OsString::from(value))
        };
        only.to.wishes_with(variable).map_err(|failure| failure.words)
    }

    #[test]
    fn flags_win_over_variables_and_variables_over_defaults() {
        let nothing = wishes(&[], &[]).unwrap();
        assert_eq!((nothing.format, nothing.command_timeout), (Format::Simple, COMMAND_TIMEOUT));
        assert!(nothing.endpoints.is_empty() && nothing.insecure_transport.is_none());
        let variables = [
            ("ETCDCTL_ENDPOINTS", "a:1,b:2"),
            ("ETCDCTL_WRITE_OUT", "table"),
            ("ETCDCTL_COMMAND_TIMEOUT", "1m30s"),
            ("ETCDCTL_USER", "root:pw"),
            ("RUSTY_RAFT_USER", "other"),
            ("ETCDCTL_HEX", "1"),
            ("ETCDCTL_CACERT", "/ca"),
        ];
        let all = wishes(&[], &variables).unwrap();
        assert_eq!(all.endpoints, ["a:1", "b:2"]);
        assert_eq!((all.format, all.hex), (Format::Table, true));
        assert_eq!(all.command_timeout, Duration::from_secs(90));
        assert_eq!(all.user.as_deref(), Some("root:pw"));
        assert_eq!(all.cacert, Some(PathBuf::from("/ca")));
        let flags = [
            "--endpoints=c:3",
            "--json",
            "--command-timeout",
            "500ms",
            "--insecure-transport=false",
        ];
        let flags = wishes(&flags, &variables).unwrap();
        assert_eq!((flags.endpoints, flags.format), (vec!["c:3".to_owned()], Format::Json));
        assert_eq!(flags.command_timeout, Duration::from_millis(500));
        assert_eq!(flags.insecure_transport, Some(false));
        assert_eq!(wishes(&["--insecure-transport"], &[]).unwrap().insecure_transport, Some(true));
    }

    #[test]
    fn what_is_wrong_is_said() {
        let text = wishes(&["--command-timeout", "5"], &[]).unwrap_err();
        assert!(text.contains("5s, 500ms or 1m30s"), "{text}");
        let text = wishes(&["-w", "xml"], &[]).unwrap_err();
        assert!(text.contains("json") && text.contains("xml"), "{text}");
        let text = wishes(&[], &[("ETCDCTL_DIAL_TIMEOUT", "soon")]).unwrap_err();
        assert!(text.contains("ETCDCTL_DIAL_TIMEOUT") && text.contains("5s"), "{text}");
        let text = wishes(&[], &[("ETCDCTL_HEX", "maybe")]).unwrap_err();
        assert!(text.contains("ETCDCTL_HEX"), "{text}");
        assert!(wishes(&["--json", "-w", "table"], &[]).is_err());
    }
}
