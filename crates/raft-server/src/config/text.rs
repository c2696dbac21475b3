//! A configuration file as it was written: values by field, places for messages, names nobody knows.

use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use serde::Deserialize;

use super::Warning;
use super::problem::{Place, Problem};
use super::scan::{self, Key};
use crate::tls::TlsFiles;

/// Which of the two files a text is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Kind {
    /// For `rusty-raft node`.
    Node,
    /// For `rusty-raft cluster`.
    Cluster,
}

/// Every field of either file, all optional here: which are missing is said by name later.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename = "Config")]
pub(super) struct Fields {
    #[serde(default)]
    pub(super) persistent_state_file: Option<String>,
    #[serde(default)]
    pub(super) cluster_members: Option<Vec<String>>,
    #[serde(default)]
    pub(super) client_addresses: Option<Vec<String>>,
    #[serde(default)]
    pub(super) peer_addresses: Option<Vec<String>>,
    #[serde(default)]
    pub(super) cluster_secret: Option<String>,
    #[serde(default)]
    pub(super) log_segment_bytes: Option<u64>,
    #[serde(default)]
    pub(super) checkpoint_entries: Option<u64>,
    #[serde(default)]
    pub(super) checkpoint_bytes: Option<u64>,
    #[serde(default)]
    pub(super) trailing_entries: Option<u64>,
    #[serde(default)]
    pub(super) trailing_bytes: Option<u64>,
    #[serde(default)]
    pub(super) scrub_bytes_per_second: Option<u64>,
    #[serde(default)]
    pub(super) auto_compaction_mode: Option<String>,
    #[serde(default)]
    pub(super) auto_compaction_retention: Option<String>,
    #[serde(default)]
    pub(super) busy_poll: Option<f64>,
    #[serde(default)]
    pub(super) auth_token: Option<String>,
    #[serde(default)]
    pub(super) auth_token_ttl: Option<f64>,
    #[serde(default)]
    pub(super) readmit_after: Option<f64>,
    #[serde(default)]
    pub(super) rebuild_damaged: Option<bool>,
    #[serde(default)]
    pub(super) data_path: Option<String>,
    #[serde(default)]
    pub(super) port_range_start: Option<u64>,
    #[serde(default)]
    pub(super) election_timeout_interval: Option<RangeInclusive<f64>>,
    #[serde(default)]
    pub(super) heartbeat_interval: Option<f64>,
    #[serde(default)]
    pub(super) request_timeout: Option<f64>,
    #[serde(default)]
    pub(super) max_request_bytes: Option<u64>,
    pub(super) watch_progress_interval: Option<f64>,
    #[serde(default)]
    pub(super) quota_backend_bytes: Option<u64>,
    #[serde(default)]
    pub(super) max_learners: Option<u64>,
    #[serde(default)]
    pub(super) client_tls: Option<TlsFields>,
    #[serde(default)]
    pub(super) peer_tls: Option<TlsFields>,
}

/// TLS of one kind of connections. A misspelled field could leave a door open: it is refused.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename = "Tls", deny_unknown_fields)]
pub(super) struct TlsFields {
    cert_file: PathBuf,
    key_file: PathBuf,
    #[serde(default)]
    trusted_ca_file: Option<PathBuf>,
    #[serde(default)]
    crl_file: Option<PathBuf>,
    #[serde(default)]
    allowed_common_names: Vec<String>,
    #[serde(default)]
    allowed_host_names: Vec<String>,
}

impl TlsFields {
    /// As files; `None` when names are demanded of certificates that nobody has to present.
    pub(super) fn files(&self) -> Option<TlsFiles> {
        let demands = self.crl_file.is_some()
            || !self.allowed_common_names.is_empty()
            || !self.allowed_host_names.is_empty();
        if demands && self.trusted_ca_file.is_none() {
            return None;
        }
        Some(TlsFiles {
            cert: self.cert_file.clone(),
            key: self.key_file.clone(),
            trusted_ca: self.trusted_ca_file.clone(),
            crl: self.crl_file.clone(),
            allowed_common_names: self.allowed_common_names.clone(),
            allowed_host_names: self.allowed_host_names.clone(),
            ..TlsFiles::default()
        })
    }
}

/// What is known of a field: its name, which files have it, and what a right value looks like.
struct Field {
    name: &'static str,
    node: bool,
    cluster: bool,
    right: &'static str,
}

const FIELDS: [Field; 29] = [
    Field {
        name: "auth_token",
        node: true,
        cluster: true,
        right: r#"what etcd's --auth-token takes: auth_token: "simple", or "jwt,sign-method=RS256,pub-key=…,priv-key=…,ttl=5m""#,
    },
    Field {
        name: "auth_token_ttl",
        node: true,
        cluster: true,
        right: "a number of milliseconds: auth_token_ttl: 300000",
    },
    Field {
        name: "readmit_after",
        node: true,
        cluster: true,
        right: "a number of milliseconds, 0 for never: readmit_after: 5000",
    },
    Field {
        name: "rebuild_damaged",
        node: true,
        cluster: true,
        right: "true or false: rebuild_damaged: true",
    },
    Field {
        name: "client_tls",
        node: true,
        cluster: false,
        right: r#"files in quotes: client_tls: (cert_file: "n0.pem", key_file: "n0-key.pem", trusted_ca_file: "ca.pem")"#,
    },
    Field {
        name: "peer_tls",
        node: true,
        cluster: false,
        right: r#"files in quotes: peer_tls: (cert_file: "n0.pem", key_file: "n0-key.pem", trusted_ca_file: "ca.pem")"#,
    },
    Field {
        name: "peer_addresses",
        node: true,
        cluster: false,
        right: r#"one address for each member, in the order of cluster_members: peer_addresses: ["10.1.0.1:2380", …]"#,
    },
    Field {
        name: "cluster_secret",
        node: true,
        cluster: true,
        right: r#"at least 16 bytes in quotes, the same for all members: cluster_secret: "…""#,
    },
    Field {
        name: "log_segment_bytes",
        node: true,
        cluster: true,
        right: "a number of bytes from 1048576 to 1073741824: log_segment_bytes: 16777216",
    },
    Field {
        name: "checkpoint_entries",
        node: true,
        cluster: true,
        right: "a number of entries: checkpoint_entries: 100000",
    },
    Field {
        name: "checkpoint_bytes",
        node: true,
        cluster: true,
        right: "a number of bytes: checkpoint_bytes: 67108864",
    },
    Field {
        name: "scrub_bytes_per_second",
        node: true,
        cluster: true,
        right: "a number of bytes, 0 for never: scrub_bytes_per_second: 1048576",
    },
    Field {
        name: "trailing_entries",
        node: true,
        cluster: true,
        right: "a number of entries: trailing_entries: 10000",
    },
    Field {
        name: "trailing_bytes",
        node: true,
        cluster: true,
        right: "a number of bytes: trailing_bytes: 16777216",
    },
    Field {
        name: "auto_compaction_mode",
        node: true,
        cluster: true,
        right: r#"periodic or revision in quotes: auto_compaction_mode: "periodic""#,
    },
    Field {
        name: "auto_compaction_retention",
        node: true,
        cluster: true,
        right: r#"how long, or how many revisions, in quotes: auto_compaction_retention: "1h""#,
    },
    Field {
        name: "busy_poll",
        node: true,
        cluster: true,
        right: "a number of milliseconds, 0 for never: busy_poll: 1",
    },
    Field {
        name: "persistent_state_file",
        node: true,
        cluster: false,
        right: r#"a path in quotes: persistent_state_file: "data.raft""#,
    },
    Field {
        name: "cluster_members",
        node: true,
        cluster: false,
        right: r#"one address for each member: cluster_members: ["10.0.0.1:2379", "10.0.0.2:2379", "10.0.0.3:2379"]"#,
    },
    Field {
        name: "client_addresses",
        node: true,
        cluster: false,
        right: r#"one address for each member, in the order of cluster_members: client_addresses: ["10.1.0.1:2379", …]"#,
    },
    Field {
        name: "data_path",
        node: false,
        cluster: true,
        right: r#"a folder in quotes, created when missing: data_path: "raft_data/""#,
    },
    Field {
        name: "port_range_start",
        node: false,
        cluster: true,
        right: "a port with room for all members above it: port_range_start: 54000",
    },
    Field {
        name: "election_timeout_interval",
        node: true,
        cluster: true,
        right: "two numbers of milliseconds, the smaller first: election_timeout_interval: RangeInclusive(start: 300.0, end: 500.0)",
    },
    Field {
        name: "heartbeat_interval",
        node: true,
        cluster: true,
        right: "a number of milliseconds well below the shortest election timeout: heartbeat_interval: 100",
    },
    Field {
        name: "request_timeout",
        node: true,
        cluster: true,
        right: "a number of milliseconds: request_timeout: 5000",
    },
    Field {
        name: "max_request_bytes",
        node: true,
        cluster: true,
        right: "a number of bytes, at most 67108864: max_request_bytes: 1572864",
    },
    Field {
        name: "watch_progress_interval",
        node: true,
        cluster: true,
        right: "a number of milliseconds: watch_progress_interval: 600000",
    },
    Field {
        name: "quota_backend_bytes",
        node: true,
        cluster: true,
        right: "a number of bytes: quota_backend_bytes: 2147483648",
    },
    Field {
        name: "max_learners",
        node: true,
        cluster: true,
        right: "a number of members: max_learners: 1",
    },
];

fn right(name: &str) -> &'static str {
    FIELDS
        .iter()
        .find(|field| field.name == name)
        .map_or("see config.ron in the sources", |f| f.right)
}

/// A configuration file that is at least RON with values of the right types.
pub(super) struct Text {
    path: PathBuf,
    kind: Kind,
    text: String,
    keys: Vec<Key>,
    pub(super) fields: Fields,
}

impl Text {
    /// Reads and parses `path`.
    pub(super) fn read(path: &Path, kind: Kind) -> Result<Self, Box<Problem>> {
        let bytes = std::fs::read(path).map_err(|error| unreadable(path, &error))?;
        let text = String::from_utf8(bytes).map_err(|error| {
            let at = error.utf8_error().valid_up_to();
            Problem::of_file(
                path,
                format!("it is not UTF-8 text (byte {at} is no part of a character)"),
                "a text file in RON; config.ron and cluster_config.ron in the sources are examples",
            )
        })?;
        let keys = scan::keys(&text);
        let options = ron::Options::default()
            .with_default_extension(ron::extensions::Extensions::IMPLICIT_SOME);
        match options.from_str::<Fields>(&text) {
            Ok(fields) => Ok(Self { path: path.to_owned(), kind, text, keys, fields }),
            Err(error) => Err(wrong_ron(path, &text, &keys, &error)),
        }
    }

    fn key(&self, name: &str) -> Option<&Key> {
        self.keys.iter().find(|key| key.name == name)
    }

    /// One warning for every field that this kind of file does not have.
    pub(super) fn unknown(&self) -> Vec<Warning> {
        let known = || {
            let wanted = FIELDS.iter().filter(|field| match self.kind {
                Kind::Node => field.node,
                Kind::Cluster => field.cluster,
            });
            wanted.map(|field| field.name)
        };
        let mut warnings: Vec<Warning> = Vec::new();
        for key in &self.keys {
            let repeated = warnings.iter().any(|warning| warning.field == key.name);
            if repeated || known().any(|name| name == key.name) {
                continue;
            }
            let place = Place::at(&self.text, key.name_at);
            let advice = match scan::nearest(&key.name, known()) {
                Some(near) => format!("unknown field, ignored; did you mean `{near}`?"),
                None => "unknown field, ignored".to_owned(),
            };
            warnings.push(Warning {
                place: format!("{}:{}:{}", self.path.display(), place.line, place.column),
                field: key.name.clone(),
                advice,
            });
        }
        warnings
    }

    /// A warning about a field that is known.
    pub(super) fn warning(&self, field: &str, advice: impl Into<String>) -> Warning {
        let offset = self.key(field).map_or(0, |key| key.value_at);
        let place = Place::at(&self.text, offset);
        Warning {
            place: format!("{}:{}:{}", self.path.display(), place.line, place.column),
            field: field.to_owned(),
            advice: advice.into(),
        }
    }

    /// The value of a field that must be there.
    pub(super) fn required<T>(&self, value: Option<T>, field: &str) -> Result<T, Box<Problem>> {
        value.ok_or_else(|| {
            let mut problem = Problem::of_file(&self.path, "this field is missing", right(field));
            problem.field = Some(field.to_owned());
            problem.also = self.also();
            problem
        })
    }

    /// What else looks wrong: the name of a field that is missing may be misspelled.
    fn also(&self) -> Vec<String> {
        let unknown = self.unknown().into_iter();
        unknown.map(|w| format!("{}: {}: {}", w.place, w.field, w.advice)).collect()
    }

    /// A field's value is wrong and must not be shown.
    pub(super) fn wrong_unseen(&self, field: &str, wrong: impl Into<String>) -> Box<Problem> {
        self.wrong_at(field, None, wrong, right(field))
    }

    /// A field's value is wrong.
    pub(super) fn wrong(&self, field: &str, wrong: impl Into<String>) -> Box<Problem> {
        self.wrong_at(field, self.key(field).map(|key| key.value_at), wrong, right(field))
    }

    /// A field's value is wrong, and what is right depends on other values.
    pub(super) fn wrong_because(
        &self,
        field: &str,
        wrong: impl Into<String>,
        right: impl Into<String>,
    ) -> Box<Problem> {
        self.wrong_at(field, self.key(field).map(|key| key.value_at), wrong, right)
    }

    /// One string of a field's list is wrong: its last appearance when `last`, else its first.
    pub(super) fn wrong_item(
        &self,
        field: &str,
        item: &str,
        last: bool,
        wrong: impl Into<String>,
    ) -> Box<Problem> {
        let quoted = format!("\"{item}\"");
        let offset = self.key(field).map(|key| {
            let list = &self.text[key.value_at..];
            let list = &list[..list.find(']').unwrap_or(list.len())];
            let found = if last { list.rfind(&quoted) } else { list.find(&quoted) };
            key.value_at + found.unwrap_or(0)
        });
        self.wrong_at(field, offset, wrong, right(field))
    }

    fn wrong_at(
        &self,
        field: &str,
        offset: Option<usize>,
        wrong: impl Into<String>,
        right: impl Into<String>,
    ) -> Box<Problem> {
        let mut problem = Problem::of_file(&self.path, wrong, right);
        problem.field = Some(field.to_owned());
        problem.place = offset.map(|offset| Place::at(&self.text, offset));
        problem.also = self.also();
        problem
    }
}

fn unreadable(path: &Path, error: &io::Error) -> Box<Problem> {
    let example = "config.ron (for `node`) and cluster_config.ron (for `cluster`) in the sources are examples";
    if error.kind() == io::ErrorKind::NotFound {
        return Problem::of_file(
            path,
            "there is no such file",
            format!("an existing file; {example}"),
        );
    }
    Problem::of_file(
        path,
        format!("it cannot be read: {error}"),
        format!("a readable file; {example}"),
    )
}

/// A text that is no RON, or whose values have wrong types.
fn wrong_ron(
    path: &Path,
    text: &str,
    keys: &[Key],
    error: &ron::error::SpannedError,
) -> Box<Problem> {
    // `ron` points behind the last thing it understood: what it stumbled over follows the blank.
    let start = scan::skip_blank(text.as_bytes(), offset_of(text, error.span.start));
    // The field whose value the error lies in is the last one that begins before it.
    let key = keys.iter().rev().find(|key| key.name_at <= start);
    let known = key.filter(|key| FIELDS.iter().any(|field| field.name == key.name));
    let (wrong, right) = match (&error.code, known) {
        (ron::Error::DuplicateStructField { field, .. }, _) => {
            (format!("the field `{field}` is given twice"), right(field).to_owned())
        }
        (code, Some(key)) => (lowercase_first(&code.to_string()), right(&key.name).to_owned()),
        (code, None) => (
            lowercase_first(&code.to_string()),
            "RON: ( field: value, field: value ); config.ron and cluster_config.ron in the sources are examples"
                .to_owned(),
        ),
    };
    Box::new(Problem {
        file: path.to_owned(),
        place: Some(Place::at(text, start)),
        field: key.map(|key| key.name.clone()),
        wrong,
        right,
        also: Vec::new(),
    })
}

/// Bytes before a position that counts lines and characters from one.
fn offset_of(text: &str, position: ron::error::Position) -> usize {
    let line_start: usize =
        text.split_inclusive('\n').take(position.line.saturating_sub(1)).map(str::len).sum();
    let column = position.col.saturating_sub(1);
    let in_line = text[line_start..].chars().take(column).map(char::len_utf8).sum::<usize>();
    line_start + in_line
}

fn lowercase_first(text: &str) -> String {
    let mut chars = text.chars();
    chars.next().map_or_else(String::new, |first| first.to_lowercase().chain(chars).collect())
}
